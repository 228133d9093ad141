"""Fake instances.

`FakeTorchServe` answers on real sockets as TorchServe with wrapped archives does, but its models are matrices, and its
failures are a script. What it claims to imitate is itself checked against the real thing (tests marked `torchserve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import numpy as np
from aiohttp import web
from multidict import CIMultiDict

from ts_parity.codes import make_code
from ts_parity.confidence import in_header, read_confidence
from ts_parity.errors import MalformedFrame, error_body
from ts_parity.wire import (
    CONFIDENCE,
    FRAME_TYPE,
    OP,
    OP_FINISH,
    OP_GROUP,
    OP_RAW,
    RAW,
    SECRET,
    VERSION,
    Array,
    Frame,
    Headers,
    Part,
    attach_tail,
    pack_frame,
    unpack_frame,
)

PROXYS_PING = "/ping?from=ts_parity"
"""How a proxy looks whether an address is an inference port."""


@dataclass
class Canned:
    """One scripted answer. `chunks`: streamed instead of `body`. `drop`: the connection is closed without an answer,
    or, with chunks, after them. `hold_s`: how long it takes.

    Its headers are all it has: what TorchServe writes bears more (`error`, `own`), a gateway's page does not.
    """

    status: int = 200
    phrase: str = ""
    headers: Headers = ()
    body: bytes = b""
    chunks: tuple[bytes, ...] | None = None
    drop: bool = False
    hold_s: float = 0.0

    @classmethod
    def error(cls, status: int, kind: str, message: str) -> Canned:
        """An error as TorchServe's frontend makes it."""
        return cls.own(status, error_body(status, kind, message), (("content-type", "application/json"),))

    @classmethod
    def own(cls, status: int, body: bytes, headers: Headers = (), phrase: str = "") -> Canned:
        """A handler's own status and body, with what TorchServe's frontend puts on every answer."""
        return cls(status, phrase, (*headers, *_frontend()), body)

    @classmethod
    def worker_died(cls) -> Canned:
        return cls.error(500, "InternalServerException", "Worker died.")

    @classmethod
    def no_worker(cls, model: str = "model") -> Canned:
        return cls.error(
            503, "ServiceUnavailableException", f'Model "{model}" has no worker to serve inference request.'
        )

    @classmethod
    def prediction_failed(cls) -> Canned:
        return cls.error(503, "InternalServerException", "Prediction failed")


@dataclass
class FakeModel:
    """y = matrix @ x. A request body is a JSON list x, the answer a JSON list y; a parity model gets the sum of its
    group's x, so for a linear model its output is exact. `role` None: an archive that is not wrapped.
    """

    name: str = "linear"
    version: str = "1.0"
    role: str | None = "deployed"
    matrix: Array = field(default_factory=lambda: np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    latency_s: float = 0.0
    workers: int = 1
    batch_size: int = 1
    default: bool = True
    weights: str | None = "sha256:f"
    verdict: str = "codable"
    reason: str = ""
    repeatable: bool = True
    cost: float | None = None
    agreement: float | None = None
    tolerance: float | None = None
    row_errors: dict[str, list[list[float]]] | None = None
    confidence: dict[str, Any] | None = None
    """Of a protection, as `ts_parity.confidence` reads it; a backup then says it with each answer."""
    output: dict[str, Any] | None = None
    code: str = "sum"
    k: int = 2
    r: int = 1
    row: int = 0
    partial: bool = True
    protects: tuple[str, str, str | None] = ("linear", "1.0", "sha256:f")
    secret: str = ""
    never_code: dict[str, Any] | None = None
    ready: bool = True
    warms_up: str = ""
    """Until its first prediction it is not READY: "loading" says its description, "unavailable" answers 503 instead."""
    pid: int = 100
    script: deque[Canned] = field(default_factory=deque)
    """Answers used up one by one, before the model is asked."""
    mute_describe: bool = False
    """A handler that answers `?customized=true` with an error, as handlers that know no describe do."""
    describe_pause_s: float = 0.0
    """How long it takes to answer `?customized=true`, as while its worker loads what describe needs."""
    url: str = ""
    """What it was registered from; its name with .mar if empty."""
    loads: bool = True
    """False: in a model store, an archive whose workers do not start."""

    def described(self) -> dict[str, Any] | None:
        """What a wrapped archive would publish, as TorchServe's customizedMetadata."""
        if self.role is None:
            return None
        size = self.matrix.shape[0]
        ours: dict[str, Any] = {
            "wire": VERSION,
            "package": "0",
            "role": self.role,
            "model": self.name,
            "version": self.version,
            "weights": self.weights,
            "verdict": self.verdict,
            "reason": self.reason,
            "repeatable": self.repeatable,
            "batched": True,
            "input": None,
            "output": self.output or {"shape": [size], "dtype": "float32"},
        }
        if self.never_code is not None:
            ours["never_code"] = self.never_code
        if self.role == "parity":
            model, version, weights = self.protects
            ours |= {"code": self.code, "k": self.k, "r": self.r, "row": self.row, "partial": self.partial}
            ours["coefficients"] = [list(row) for row in make_code(self.code, self.k, self.r).coefficients]
            ours |= {"agreement": self.agreement, "tolerance": self.tolerance, "row_errors": self.row_errors}
            ours |= {"confidence": self.confidence, "cost": self.cost}
            ours["protects"] = {"model": model, "version": version, "weights": weights}
        return {"ts_parity": ours}

    def answer(self, body: bytes) -> tuple[bytes, Array]:
        """-> (ordinary body, raw output). Raise ValueError for a body that is no list of the right length."""
        x = np.array(json.loads(body), dtype=np.float32)
        if x.shape != (self.matrix.shape[1],):
            raise ValueError(f"the body must be a list of {self.matrix.shape[1]} numbers")
        raw = (self.matrix @ x).astype(np.float32)
        return self.finish(raw), raw

    @staticmethod
    def finish(raw: Array) -> bytes:
        return json.dumps([round(float(y), 4) for y in raw], indent=2).encode()


def protection(**settings: Any) -> FakeModel:
    """A parity model (or backup) with the defaults that fit `FakeModel()`."""
    return FakeModel(**{"name": "linear_parity", "role": "parity", "weights": "sha256:p", **settings})


@dataclass(frozen=True)
class Received:
    """A request as it came in at the inference port; the proxy's own pings are not kept."""

    method: str
    target: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


class FakeTorchServe:
    """One instance, on two free ports. `async with FakeTorchServe(FakeModel()) as instance: ... instance.inference`

    `tls`: its addresses are https. `sockets`: an existing folder; two Unix sockets in it take the place of the ports.
    """

    def __init__(
        self,
        *models: FakeModel,
        token: str = "",
        management_token: str = "",
        max_request_size: int = 6_553_500,
        tls: ssl.SSLContext | None = None,
        sockets: Path | None = None,
    ) -> None:
        self.models = list(models)
        self.received: list[Received] = []
        self.describes = 0
        self.managed: Canned | None = None
        """What the management port answers instead, whatever it is asked."""
        self.store: dict[str, FakeModel] = {}
        """Archives that can be registered, by file name."""
        self.model_api = True
        self.changes: list[str] = []
        """What was asked of the management port other than to describe, such as "DELETE /models/linear/1.0"."""
        self.before_change: Callable[[str], Canned | None] = lambda change: None
        """Called with each of these; what it returns is the answer, and nothing is changed."""
        self.after_change: Callable[[str], Canned | None] = lambda change: None
        """Called when it has been done; what it returns is the answer all the same."""
        self.management_pause_s = 0.0
        """How long the management port thinks about each answer."""
        self.inference = self.management = ""
        self._token = token
        self._management_token = management_token
        self._max_request_size = max_request_size
        self.tls = tls
        self._sockets = sockets
        self._runners: list[web.AppRunner] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._workers: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._pid = 1000

    async def __aenter__(self) -> FakeTorchServe:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0, management_port: int = 0) -> None:
        """Listen; the ports of an earlier life can be asked for again."""
        self.inference = await self._listen(self._on_inference, "inference", port)
        self.management = await self._listen(self._on_management, "management", management_port)

    async def stop(self) -> None:
        """Go away at once, with whatever is in flight."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()
        # Like TorchServe, the fake works on for clients that have left, and the runner knows nothing of those.
        running, self._running = self._running, set()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def freeze(self) -> None:
        """As SIGSTOP to the workers: requests are taken and not answered. Management answers on."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def renew_keys(self, token: str = "", management_token: str = "") -> None:
        self._token, self._management_token = token, management_token

    def operations(self) -> list[str]:
        """The operations asked for so far; an ordinary request is "plain"."""
        return [request.header(OP) or "plain" for request in self.received]

    @property
    def endpoint(self) -> str:
        """As `--endpoint` takes it."""
        return f"{self.inference},management={self.management}"

    async def _listen(self, handler: Any, api: str, port: int) -> str:
        app = web.Application(client_max_size=1 << 30)
        expects = self._on_expect if api == "inference" else None
        app.router.add_route("*", "/{path:.*}", handler, expect_handler=expects)
        app.on_response_prepare.append(_as_netty)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, auto_decompress=False)
        await runner.setup()
        self._runners.append(runner)
        if self._sockets is not None:
            path = self._sockets / api
            await web.UnixSite(runner, path).start()
            return f"unix:{path}"
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=self.tls).start()
        return f"http{'s' if self.tls is not None else ''}://127.0.0.1:{runner.addresses[0][1]}"

    # ---- the inference port ----------------------------------------------------------------------------------------

    async def _on_expect(self, http: web.Request) -> web.Response | None:
        """As Netty answers `Expect: 100-continue`: by the announced size, before anything else is looked at."""
        if (http.content_length or 0) > self._max_request_size:
            return _response(413, b"")
        assert http.transport is not None
        http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _on_inference(self, http: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        body = await http.read()
        headers = tuple((key.decode("latin-1"), value.decode("latin-1")) for key, value in http.raw_headers)
        request = Received(http.method, http.raw_path, headers, body)
        if request.target != PROXYS_PING:
            self.received.append(request)
        if self._token and http.headers.get("Authorization") != f"Bearer {self._token}":
            return _error(400, "InvalidKeyException", "Token Authorization failed. Token either incorrect, expired")
        if len(body) > self._max_request_size:
            return _response(413, b"")
        segments = [unquote(segment) for segment in http.raw_path.partition("?")[0].split("/")[1:]]
        if segments == ["ping"]:
            return _json(200, {"status": "Healthy"})
        if segments[0] not in ("predictions", "explanations") or len(segments) < 2:
            return _error(
                404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document."
            )
        model = self._find(segments[1], segments[2] if len(segments) > 2 else None)
        if model is None:
            return _error(404, "ModelNotFoundException", f"Model not found: {segments[1]}")
        async with self._worker(model):
            await self._thawed.wait()
            await asyncio.sleep(model.latency_s)
            model.warms_up = ""
            if model.script:
                return await _play(http, model.script.popleft())
            return _work(model, request)

    def _find(self, name: str, version: str | None) -> FakeModel | None:
        return next(
            (m for m in self.models if m.name == name and (m.default if version is None else m.version == version)),
            None,
        )

    def _worker(self, model: FakeModel) -> asyncio.Semaphore:
        return self._workers.setdefault(
            (model.name, model.version), asyncio.Semaphore(model.workers * model.batch_size)
        )

    # ---- the management port ---------------------------------------------------------------------------------------

    async def _on_management(self, http: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.management_pause_s)
        if self.managed is not None:
            return await _play(http, self.managed)
        if self._management_token and http.headers.get("Authorization") != f"Bearer {self._management_token}":
            return _error(400, "InvalidKeyException", "Token Authorization failed. Token either incorrect, expired")
        segments = [unquote(segment) for segment in http.path.split("/")[1:]]
        if http.method != "GET":
            self.changes.append(f"{http.method} {http.path_qs}")
            change = self.changes[-1]
            if (refusal := self.before_change(change)) is not None:
                return await _play(http, refusal)
            done = self._change(http, segments)
            return done if (other := self.after_change(change)) is None else await _play(http, other)
        if segments == ["models"]:
            return self._list(int(http.query.get("limit", "100")), int(http.query.get("next_page_token", "0")))
        versions = [m for m in self.models if m.name == segments[1]]
        if len(segments) == 2:
            versions = [m for m in versions if m.default]
        elif segments[2] != "all":
            versions = [m for m in versions if m.version == segments[2]]
        if not versions and any(m.name == segments[1] for m in self.models):
            message = f"Model version: {segments[2]} does not exist for model: {segments[1]}"
            return _error(404, "ModelVersionNotFoundException", message)
        if not versions:
            return _error(404, "ModelNotFoundException", f"Model not found: {segments[1]}")
        if any(m.warms_up == "unavailable" for m in versions):
            return _response(503, b"not ready yet")
        entries = [_describe(m) for m in versions]
        if http.query.get("customized") == "true":
            self.describes += 1
            async with self._worker(versions[0]):
                await self._thawed.wait()
            await asyncio.sleep(versions[0].describe_pause_s)
            if versions[0].mute_describe:
                return _error(503, "InternalServerException", "Prediction failed")
            entries[0]["customizedMetadata"] = versions[0].described()
        return _json(200, entries)

    def _change(self, http: web.Request, segments: list[str]) -> web.Response:
        """Register, make the default, unregister: with TorchServe's answers."""
        if http.method in ("POST", "DELETE") and not self.model_api:
            return _error(
                405, "MethodNotAllowedException", "Requested method is not allowed, please refer to API document."
            )
        if http.method == "POST":
            return self._register(http.query)
        name, version = segments[1], segments[2] if len(segments) > 2 else None
        versions = [model for model in self.models if model.name == name]
        if not versions:
            return _error(404, "ModelNotFoundException", f"Model not found: {name}")
        model = next((m for m in versions if (m.default if version is None else m.version == version)), None)
        if http.method == "PUT":
            if model is None:
                return _error(
                    404, "ModelVersionNotFoundException", f"Model version {version} does not exist for model {name}"
                )
            for each in versions:
                each.default = each is model
            return _json(200, {"status": f'Default version successfully updated for model "{name}" to "{version}"'})
        if model is None:
            return _error(
                404, "ModelVersionNotFoundException", f"Model version: {version} does not exist for model: {name}"
            )
        if model.default and len(versions) > 1:
            return _error(403, "InvalidModelVersionException", f"Cannot remove default version for model {name}")
        self.models = [each for each in self.models if each is not model]
        return _json(200, {"status": f'Model "{name}" unregistered'})

    def _register(self, query: Mapping[str, str]) -> web.Response:
        url = query["url"]
        if url not in self.store:
            return _error(404, "ModelNotFoundException", f"Model not found at: {url}")
        found = self.store[url]
        name = query.get("model_name", found.name)
        versions = [model for model in self.models if model.name == name]
        if any(model.version == found.version for model in versions):
            message = f"Model version {found.version} is already registered for model {name}"
            return _error(409, "ConflictStatusException", message)
        if not found.loads:
            message = f"Failed to start workers for model {name} version: {found.version}"
            return _error(500, "InternalServerException", message)
        workers, self._pid = int(query.get("initial_workers", "0")), self._pid + 100
        made = replace(found, name=name, url=url, workers=workers, default=not versions, pid=self._pid)
        made.batch_size = int(query.get("batch_size", found.batch_size))
        self.models = [*self.models, made]
        message = f'Model "{name}" Version: {made.version} registered with {workers} initial workers'
        return _json(200, {"status": message})

    def _list(self, limit: int, start: int) -> web.Response:
        names = list(dict.fromkeys(m.name for m in self.models))
        page: dict[str, Any] = {
            "models": [{"modelName": n, "modelUrl": f"{n}.mar"} for n in names[start : start + limit]]
        }
        if start + limit < len(names):
            page["nextPageToken"] = str(start + limit)
        return _json(200, page)


def _describe(model: FakeModel) -> dict[str, Any]:
    status = "READY" if model.ready and not model.warms_up else "LOADING"
    return {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.url or f"{model.name}.mar",
        "runtime": "python",
        "minWorkers": model.workers,
        "maxWorkers": model.workers,
        "batchSize": model.batch_size,
        "maxBatchDelay": 100,
        "workers": [{"id": str(9000 + n), "status": status, "pid": model.pid + n} for n in range(model.workers)],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
    }


def _work(model: FakeModel, request: Received) -> web.Response:
    operation = request.header(OP)
    if model.role is None:
        operation = None
    if operation is not None and model.secret and request.header(SECRET) != model.secret:
        return _error(403, "ForbiddenException", "the secret is missing or wrong")
    try:
        if operation == OP_GROUP:
            return _group(model, unpack_frame(request.body))
        if operation == OP_FINISH:
            frame = unpack_frame(request.body)
            if frame.raw is None:
                raise MalformedFrame("a finish needs a raw output")
            return _response(200, model.finish(frame.raw), _frontend())
        body, raw = model.answer(request.body)
    except MalformedFrame as error:
        return _error(400, "BadRequestException", str(error))
    except ValueError:
        return _error(503, "InternalServerException", "Prediction failed")
    if operation == OP_RAW and model.verdict != "refused":
        body, described = attach_tail(body, raw)
        return _response(200, body, (*_frontend(), (RAW, described)))
    return _response(200, body, _frontend())


def _group(model: FakeModel, frame: Frame) -> web.Response:
    if model.role != "parity" or frame.k != model.k:
        return _error(400, "BadRequestException", f"not a protection of groups of {frame.k}")
    code = make_code(model.code, model.k, model.r)
    slots: list[Part | None] = []
    total = np.zeros(model.matrix.shape[0], dtype=np.float32)
    for slot, part in enumerate(frame.slots):
        if part is None:
            slots.append(None)
            continue
        try:
            body, raw = model.answer(part.body)
        except ValueError:
            slots.append(Part((), error_body(503, "InternalServerException", "Prediction failed"), 503))
            continue
        if code.coefficients:
            total += np.float32(code.coefficients[model.row][slot]) * raw
            slots.append(Part((), b""))
        else:
            slots.append(Part(_sure(model, raw), body))
    answer = Frame(tuple(slots), total if code.coefficients else None)
    return _response(200, pack_frame(answer), (*_frontend(), ("content-type", FRAME_TYPE)))


def _sure(model: FakeModel, raw: Array) -> Headers:
    if model.confidence is None:
        return ()
    expected = read_confidence(model.confidence).of(raw)
    return () if expected is None else ((CONFIDENCE, in_header(expected)),)


async def _play(http: web.Request, canned: Canned) -> web.StreamResponse:
    await asyncio.sleep(canned.hold_s)
    if canned.chunks is not None:
        response = web.StreamResponse(status=canned.status, reason=canned.phrase, headers=CIMultiDict(canned.headers))
        response.enable_chunked_encoding()
        await response.prepare(http)
        for chunk in canned.chunks:
            await response.write(chunk)
        if not canned.drop:
            await response.write_eof()
            return response
    if canned.drop:
        assert http.transport is not None
        with contextlib.suppress(ConnectionError):
            http.transport.close()
        return web.Response()
    return _response(canned.status, canned.body, canned.headers, canned.phrase)


def _frontend() -> Headers:
    return (
        ("x-request-id", str(uuid.uuid4())),
        ("Pragma", "no-cache"),
        ("Cache-Control", "no-cache; no-store, must-revalidate, private"),
        ("Expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
    )


def _response(status: int, body: bytes, headers: Headers = (), phrase: str = "") -> web.Response:
    lengths = (("content-length", str(len(body))),)
    response = web.Response(status=status, reason=phrase, headers=CIMultiDict((*headers, *lengths)), body=body)
    if status >= 400:
        response.force_close()
    return response


def _json(status: int, value: Any) -> web.Response:
    body = json.dumps(value, indent=2).encode() + b"\n"
    return _response(status, body, (("content-type", "application/json"), *_frontend()))


def _error(status: int, kind: str, message: str) -> web.Response:
    return _response(status, error_body(status, kind, message), (("content-type", "application/json"), *_frontend()))


async def _as_netty(_: web.Request, response: web.StreamResponse) -> None:
    """TorchServe adds no date, no server name, and no content type that its handler did not set."""
    for name in ("Date", "Server"):
        response.headers.popall(name, None)
    if response.headers.get("Content-Type") == "application/octet-stream":
        del response.headers["Content-Type"]
