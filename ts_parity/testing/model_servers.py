"""Fake model servers of other kinds than TorchServe, on real sockets: `FakeModelServer("triton", FakeFunction())`.

They answer with the heads that were recorded from the real ones and have the quirks that a proxy trips over. Those of
`CHECKED` are compared with the real servers, where these are installed (tests/backends). The others are from recorded
exchanges and from the servers' documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ts_parity.testing.fakes import Canned, Received
from ts_parity.wire import Headers

CHECKED = ("triton", "kserve", "litserve")
_PHRASES = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 422: "Unprocessable Entity",
    429: "Too Many Requests", 500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip
_UVICORN: Headers = (("date", "Sat, 28 Nov 2026 03:07:08 GMT"), ("server", "uvicorn"))


@dataclass
class FakeFunction:
    """A model: y = matrix @ x for each row. `script`: answers that are used up one by one before it is asked."""

    name: str = "deployed"
    matrix: tuple[tuple[float, ...], ...] = ((1.0, 2.0), (3.0, 4.0))
    latency_s: float = 0.0
    ready: bool = True
    script: deque[Canned] = field(default_factory=deque)

    def answer(self, row: Any) -> list[float]:
        """Raise ValueError for a row of another length."""
        if len(row) != len(self.matrix[0]):
            raise ValueError(f"an input has {len(self.matrix[0])} numbers, not {len(row)}")
        return [sum(w * float(x) for w, x in zip(each, row, strict=True)) for each in self.matrix]


@dataclass(frozen=True)
class ServerTraits:
    """What one server does otherwise than others. A status of None: it does not say so of its own accord."""

    protocol: str
    headers: Headers = _UVICORN
    """On each answer."""
    idle_close_s: float | None = 5.0
    resets_after_500: bool = False
    """Without having said `Connection: close`."""
    chunked: bool = False
    one_loop: bool = False
    """A prediction holds up whatever else is asked, health included; frozen, nothing is answered."""
    full: int | None = None
    """What is answered where as many requests are in work as the server has places."""
    malformed: int = 500
    """To what is no JSON."""
    misfit: int = 500
    """To an input that the model does not take."""
    ids: str = "echoed"
    """Or "needed" (500 without one) or "invented"."""
    version: str | None = None
    versions: bool = False
    """Whether a path may name one."""


TRAITS: Mapping[str, ServerTraits] = {
    "triton": ServerTraits("open-inference", (), None, misfit=400, version="1", versions=True),
    "kserve": ServerTraits(
        "open-inference", idle_close_s=65.0, resets_after_500=True, one_loop=True, malformed=422, ids="needed"
    ),
    "mlserver": ServerTraits("open-inference", malformed=422, ids="invented", version="1", versions=True),
    "ovms": ServerTraits("open-inference", (), None, malformed=400, misfit=400, version="1", versions=True),
    "litserve": ServerTraits("rest"),
    "bentoml": ServerTraits("rest", full=429, malformed=400, misfit=400),
    "ray": ServerTraits("rest", idle_close_s=90.0, chunked=True, full=503),
    "tensorflow": ServerTraits("tensorflow", (), None, malformed=400, misfit=400, versions=True),
    "vllm": ServerTraits("openai", malformed=400, misfit=400),
    "sagemaker": ServerTraits("sagemaker", malformed=400, misfit=400),
}
"""The servers that can be imitated, by name."""


class FakeModelServer:
    """One server of this kind, on a free port. `async with FakeModelServer("litserve", ...) as server: ... server.url`

    `places`: how many predictions it works on at once; others wait, or are refused as the server refuses.
    """

    def __init__(self, kind: str, *models: FakeFunction, places: int = 1) -> None:
        self.kind = kind
        self.traits = TRAITS[kind]
        self.models = list(models)
        self.url = ""
        self.received: list[Received] = []
        self.predicted = 0
        """How many predictions it has ended, whoever still waited for them."""
        self._places = asyncio.Semaphore(places)
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._work: set[asyncio.Task[Canned]] = set()

    async def __aenter__(self) -> FakeModelServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Listen; the port of an earlier life can be asked for again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Go away at once, with whatever is in flight."""
        if self._server is not None:
            self._server.close()
        ending = [*self._clients, *self._work]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def freeze(self) -> None:
        """As SIGSTOP to the processes that the models are in. What answers for the server's health may live on."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    # ---- connections -----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while (request := await self._next(reader)) is not None:
                self.received.append(request)
                # None of these servers stops what it has begun when its client leaves.
                work = asyncio.ensure_future(self._answer(request))
                self._work.add(work)
                work.add_done_callback(self._work.discard)
                answer = await asyncio.shield(work)
                if answer.drop:
                    break
                writer.write(self._bytes(answer))
                await writer.drain()
                if answer.status == 500 and self.traits.resets_after_500:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a task of asyncio's streams that ends as cancelled is logged as an error by some Pythons
        finally:
            self._clients.discard(task)
            writer.close()

    async def _next(self, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.traits.idle_close_s)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError):
            return None
        line, *lines = head.decode("latin-1")[:-4].split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (each.partition(":") for each in lines))
        request = Received(method, target, headers, b"")
        if (request.header("transfer-encoding") or "").lower() == "chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(request.header("content-length") or 0))
        return Received(method, target, headers, body)

    def _bytes(self, answer: Canned) -> bytes:
        chunks = answer.chunks
        if chunks is None and self.traits.chunked and answer.body:
            chunks = (answer.body,)
        headers = [*self.traits.headers, *answer.headers]
        if chunks is None:
            headers.append(("content-length", str(len(answer.body))))
            body = answer.body
        else:
            headers.append(("transfer-encoding", "chunked"))
            body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        phrase = answer.phrase or _PHRASES.get(answer.status, "Unknown")
        lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    # ---- answers ---------------------------------------------------------------------------------------------------

    async def _answer(self, request: Received) -> Canned:
        if self.traits.one_loop:
            async with self._places:
                return await self._unlocked(request)
        return await self._unlocked(request)

    async def _unlocked(self, request: Received) -> Canned:
        if self.traits.one_loop:
            await self._thawed.wait()
        path = request.target.partition("?")[0]
        return await _PROTOCOLS[self.traits.protocol](self, request, [*path.split("/")[1:]])

    async def predict(self, model: FakeFunction, work: Callable[[], Canned]) -> Canned:
        """Its answer, when there is a place and it has had its time; or what the script says."""
        if self.traits.full is not None and self._places.locked():
            return self.full()
        async with contextlib.AsyncExitStack() as stack:
            if not self.traits.one_loop:
                await stack.enter_async_context(self._places)
            await self._thawed.wait()
            await asyncio.sleep(model.latency_s)
            self.predicted += 1
            if model.script:
                canned = model.script.popleft()
                await asyncio.sleep(canned.hold_s)
                return canned
            return work()

    def full(self) -> Canned:
        """As the server says it: 429 or 503 (Triton's and others' 503 come from their own limits)."""
        return _json(self.traits.full or 503, {"error": "Too many requests"})

    def error(self, status: int, text: str) -> Canned:
        """In this server's shape."""
        return _json(status, {"detail" if self.kind == "litserve" else "error": text})

    def misfit(self, error: Exception) -> Canned:
        """The client's fault, as this server says it."""
        if self.kind == "litserve":
            return self.error(500, "Internal server error")
        named = f"{type(error).__name__} : {error}" if self.kind == "kserve" else str(error)
        return self.error(self.traits.misfit, named)

    def find(self, name: str) -> FakeFunction | None:
        return next((model for model in self.models if model.name == name), None)


# ---- Open Inference Protocol ---------------------------------------------------------------------------------------


async def _open_inference(server: FakeModelServer, request: Received, path: list[str]) -> Canned:
    ready = all(model.ready for model in server.models)
    match path:
        case ["v2"]:
            return _json(200, {"name": server.kind, "version": "1", "extensions": _extensions(server)})
        case ["v2", "health", "live"]:
            return _health(server, "live", True)
        case ["v2", "health", "ready"]:
            return _health(server, "ready", ready)
        case ["v2", "models"] if server.kind == "kserve":
            return _json(200, {"models": [model.name for model in server.models]})
        case ["v2", "repository", "index"] if server.kind == "mlserver" and request.method == "POST":
            index = [{"name": m.name, "version": "1", "state": _state(m), "reason": ""} for m in server.models]
            return _json(200, index)
        case ["v2", "repository", "index"] if server.kind == "triton":
            return _text(403, "This API is restricted, expecting header 'triton-access-token'")
        case ["v2", "models", name, *rest]:
            return await _of_model(server, request, name, rest)
    return server.error(404, "Not Found") if server.kind != "kserve" else _json(404, {"detail": "Not Found"})


async def _of_model(server: FakeModelServer, request: Received, name: str, rest: list[str]) -> Canned:
    model, version = server.find(name), None
    if rest[:1] == ["versions"] and len(rest) > 1:
        if not server.traits.versions:
            return server.error(501, "Model versioning not supported yet.")
        version, rest = rest[1], rest[2:]
    known = model is not None and version in (None, server.traits.version)
    if rest == ["ready"]:
        if not known and server.kind == "triton":
            return _text(400, "Model version not ready")
        if model is not None and known:
            return _model_ready(server, model)
    if model is None or not known:
        return _unknown(server, name)
    if not rest:
        return _json(200, _metadata(server, model))
    if rest == ["config"] and server.kind == "triton":
        return _json(200, _config(model))
    if rest != ["infer"]:
        return server.error(404, "Not Found")
    if request.method != "POST":
        return _text(405, "Method Not Allowed") if server.kind == "triton" else _json(405, {"detail": "..."})
    if not model.ready:
        return server.error(400, f"Model {name} is not ready yet.")
    return await server.predict(model, lambda: _infer(server, model, request))


def _infer(server: FakeModelServer, model: FakeFunction, request: Received) -> Canned:
    length = request.header("inference-header-content-length")
    if length is not None and server.kind not in ("triton", "ovms"):
        return server.error(400 if server.kind == "kserve" else 500, "unsupported content")
    said = request.body if length is None else request.body[: int(length)]
    try:
        asked = json.loads(said)
    except ValueError as error:
        if server.traits.malformed == 422:
            return _json(422, {"detail": [{"type": "json_invalid", "msg": "JSON decode error"}]})
        return server.error(server.traits.malformed, f"failed to parse the request JSON buffer: {error}")
    given = asked.get("id")
    if given is None and server.traits.ids == "needed":
        return server.error(500, "ValidationError : 1 validation error for InferenceResponse\nid\n ...")
    try:
        tensor = asked["inputs"][0]
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = _flat(tensor["data"])
        else:
            data = list(struct.unpack(f"<{size // 4}f", request.body[len(said) : len(said) + size]))
        rows, width = int(tensor["shape"][0]), len(model.matrix[0])
        if rows * int(tensor["shape"][1]) != len(data):
            # Triton: 500 for this one, too, though it is the client's fault.
            raise _Misshapen("Unable to parse 'data': Shape does not match true shape of 'data' field")
        if int(tensor["shape"][1]) != width:
            raise ValueError(f"unexpected shape for input 'x' for model '{model.name}'")
        outputs = [model.answer(data[row * width : (row + 1) * width]) for row in range(rows)]
    except _Misshapen as error:
        return server.error(500, str(error))
    except (KeyError, TypeError, ValueError, IndexError, struct.error) as error:
        return server.misfit(error)
    binary = length is not None and any(o.get("parameters", {}).get("binary_data") for o in asked.get("outputs", ()))
    return _inferred(server, model, given, outputs, binary)


class _Misshapen(Exception):
    """The data do not fill the shape."""


def _inferred(
    server: FakeModelServer, model: FakeFunction, given: str | None, outputs: list[list[float]], binary: bool
) -> Canned:
    flat = [y for row in outputs for y in row]
    tensor: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": [len(outputs), len(model.matrix)]}
    packed = struct.pack(f"<{len(flat)}f", *flat) if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(packed)}} if binary else {"data": flat}
    answer: dict[str, Any] = {"model_name": model.name, "model_version": server.traits.version, "outputs": [tensor]}
    headers: Headers = ()
    name = given
    if server.traits.ids == "invented":
        name = given or str(uuid.uuid4())
        headers = (("ce-specversion", "0.3.0"), ("ce-modelid", model.name), ("ce-id", name), ("ce-requestid", name))
    if name is not None:
        answer = {"id": name, **answer}
    if server.kind in ("kserve", "mlserver"):
        answer["parameters"] = None if server.kind == "kserve" else {}
    if not binary:
        return _json(200, answer, headers)
    head = json.dumps(answer, separators=(",", ":")).encode()
    said = (("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(len(head))))
    return Canned(200, headers=said, body=head + packed)


def _health(server: FakeModelServer, what: str, good: bool) -> Canned:
    if server.kind == "kserve":
        return _json(200 if good else 503, {what: good})
    return Canned(200 if good else 400, headers=(("content-type", "text/plain"),))


def _model_ready(server: FakeModelServer, model: FakeFunction) -> Canned:
    if server.kind == "kserve":
        return _json(200 if model.ready else 503, {"name": model.name, "ready": model.ready})
    return Canned(200 if model.ready else 400, headers=(("content-type", "text/plain"),))


def _unknown(server: FakeModelServer, name: str) -> Canned:
    if server.kind == "triton":
        return _text(404, f"Request for unknown model: '{name}' is not found")
    return server.error(404, f"Model with name {name} does not exist.")


def _metadata(server: FakeModelServer, model: FakeFunction) -> dict[str, Any]:
    if server.kind == "kserve":  # it does not know, unless the model says so
        return {"name": model.name, "versions": None, "platform": "", "inputs": [], "outputs": []}
    tensors = (("inputs", "x", len(model.matrix[0])), ("outputs", "scores", len(model.matrix)))
    told = {k: [{"name": name, "datatype": "FP32", "shape": [-1, n]}] for k, name, n in tensors}
    return {"name": model.name, "versions": ["1"], "platform": "python", **told}


def _config(model: FakeFunction) -> dict[str, Any]:
    return {
        "name": model.name,
        "backend": "python",
        "max_batch_size": 8,
        "dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": 0},
        "instance_group": [{"name": f"{model.name}_0", "kind": "KIND_CPU", "count": 1}],
    }


def _extensions(server: FakeModelServer) -> list[str]:
    return ["binary_tensor_data", "model_configuration", "statistics"] if server.kind in ("triton", "ovms") else []


def _state(model: FakeFunction) -> str:
    return "READY" if model.ready else "UNAVAILABLE"


# ---- plain REST ----------------------------------------------------------------------------------------------------

_HEALTH = {
    "litserve": {"health": "ok"},
    "bentoml": {"livez": "\n", "readyz": "\n", "healthz": "\n"},
    "ray": {"-/healthz": "success"},
}


async def _rest(server: FakeModelServer, request: Received, path: list[str]) -> Canned:
    """The first model is at /predict (Ray: at /deployed), others are at their names."""
    asked = "/".join(path)
    if (said := _HEALTH[server.kind].get(asked)) is not None:
        return Canned(200, body=said.encode())
    if server.kind == "litserve" and asked == "info":
        told = {"devices": ["cpu"], "workers_per_device": 1, "timeout": 30}
        return _json(200, {"model": None, "server": told})
    if server.kind == "ray" and asked == "-/routes":
        return _json(200, {f"/{model.name}": model.name for model in server.models})
    model = server.models[0] if asked == "predict" and server.kind != "ray" else server.find(asked)
    if model is None:
        return _json(404, {"detail": "Not Found"})
    if request.method != "POST":
        return _json(405, {"detail": "Method Not Allowed"}, (("allow", "POST"),))
    return await server.predict(model, lambda: _row(server, model, request, "x", "scores"))


def _row(server: FakeModelServer, model: FakeFunction, request: Received, key: str, says: str) -> Canned:
    headers: Headers = ()
    if server.kind == "bentoml":
        headers = (("x-bentoml-request-id", str(uuid.uuid4().int >> 64)),)
    if server.kind == "ray":
        headers = (("x-request-id", request.header("x-request-id") or str(uuid.uuid4())),)
    try:
        answer = model.answer(json.loads(request.body)[key])
    except (ValueError, KeyError, TypeError) as error:
        return server.misfit(error)
    return _json(200, answer if server.kind == "bentoml" else {says: answer}, headers)


# ---- the others ----------------------------------------------------------------------------------------------------


async def _tensorflow(server: FakeModelServer, request: Received, path: list[str]) -> Canned:
    """`/v1/models/NAME[/versions/V|/labels/L]:predict`, its status and metadata. From the documentation."""
    if path[:2] != ["v1", "models"] or len(path) < 3:
        return server.error(404, "Malformed request")
    *middle, last = path[2:]
    last, _, verb = last.partition(":")
    name = middle[0] if middle else last
    model = server.find(name)
    if model is None:
        return server.error(404, f"Servable not found for request: Latest({name})")
    if request.method == "GET" and last == "metadata":
        return _json(200, {"model_spec": {"name": name, "version": "1"}, "metadata": {}})
    if request.method == "GET":
        state = "AVAILABLE" if model.ready else "LOADING"
        return _json(200, {"model_version_status": [{"version": "1", "state": state, "status": {}}]})
    if verb != "predict":
        return server.error(404, "Malformed request")
    return await server.predict(model, lambda: _instances(server, model, request))


def _instances(server: FakeModelServer, model: FakeFunction, request: Received) -> Canned:
    try:
        rows = json.loads(request.body)["instances"]
        return _json(200, {"predictions": [model.answer(row) for row in rows]})
    except (ValueError, KeyError, TypeError) as error:
        return server.misfit(error)


async def _openai(server: FakeModelServer, request: Received, path: list[str]) -> Canned:
    """`/v1/embeddings` and `/v1/models`, `/health`. The model is named in the body. From the documentation."""
    asked = "/".join(path)
    if asked == "health":
        return Canned(200)
    if asked == "v1/models":
        return _json(200, {"object": "list", "data": [{"id": m.name, "object": "model"} for m in server.models]})
    try:
        named = json.loads(request.body)
        model = server.find(named["model"])
    except (ValueError, KeyError, TypeError) as error:
        return _json(400, {"error": {"message": str(error), "type": "BadRequestError", "code": 400}})
    if asked != "v1/embeddings" or model is None:
        message = f"The model `{named['model']}` does not exist."
        return _json(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
    return await server.predict(model, lambda: _embeddings(server, model, named))


def _embeddings(server: FakeModelServer, model: FakeFunction, named: dict[str, Any]) -> Canned:
    """A text's embedding is that of its length and its number of words."""
    texts = [named["input"]] if isinstance(named.get("input"), str) else list(named.get("input", ()))
    data = [
        {"index": i, "object": "embedding", "embedding": model.answer((len(text), len(text.split())))}
        for i, text in enumerate(texts)
    ]
    name = f"embd-{uuid.uuid4().hex}"
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return _json(200, {"id": name, "object": "list", "model": model.name, "data": data, "usage": usage})


async def _sagemaker(server: FakeModelServer, request: Received, path: list[str]) -> Canned:
    """`/ping`, `/invocations`, and `/models/NAME/invoke` where a container has several. From the documentation."""
    match path:
        case ["ping"]:
            return Canned(200 if all(model.ready for model in server.models) else 503)
        case ["invocations"]:
            model: FakeFunction | None = server.models[0]
        case ["models", name, "invoke"]:
            model = server.find(name)
        case _:
            model = None
    if model is None or request.method != "POST":
        return server.error(404, "Not Found")
    found = model
    return await server.predict(found, lambda: _row(server, found, request, "x", "scores"))


_PROTOCOLS = {
    "open-inference": _open_inference,
    "rest": _rest,
    "tensorflow": _tensorflow,
    "openai": _openai,
    "sagemaker": _sagemaker,
}


def _json(status: int, value: Any, headers: Headers = ()) -> Canned:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Canned(status, headers=(("content-type", "application/json"), *headers), body=body)


def _text(status: int, error: str) -> Canned:
    """Triton's errors that are no answer of a model: JSON, but called text."""
    return Canned(status, headers=(("content-type", "text/plain"),), body=json.dumps({"error": error}).encode())


def _flat(data: Any) -> list[float]:
    return [y for each in data for y in _flat(each)] if isinstance(data, list) else [data]
