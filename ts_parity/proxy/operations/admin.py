"""The admin port: page, status, metrics, health, configuration; drain, reload, recordings. Not for clients, nor for web
pages in an operator's browser.

Knows HTTP, the routes and who may use them. Knows nothing of fleets or queries: the responses' contents are passed in.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ts_parity.config import Settings, host_and_port
from ts_parity.errors import BadClientRequest
from ts_parity.pairs import note
from ts_parity.proxy.http.descriptors import admin_limit, open_files
from ts_parity.proxy.http.server import cannot_listen
from ts_parity.proxy.operations.page import PAGE_HEADERS, page
from ts_parity.proxy.operations.reloading import ReloadResult
from ts_parity.proxy.serving.exposition import OPENMETRICS, PLAIN
from ts_parity.proxy.serving.recording import TAKEN_EVERY_S, NotRecorded, Recording, Wanted

log = logging.getLogger(__name__)

Json = dict[str, Any]
Route = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_NOTED_EVERY_S = 1.0
"""A reader that hears nothing for much longer knows that the proxy is gone, and one that is gone is noticed."""
_STALLED_S = 30.0
"""A reader that takes nothing for so long is gone."""

_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]@:/]*))(:\d*)?")


async def _nothing_to_wait_for() -> None:
    pass


class AdminServer:
    """Listening ports for operators and their tools. Status and metrics wait for `refresh`; health does not, since
    probes have short timeouts, and one process that is slow to report makes the others no less ready. docs/http.md is
    made of the routes' docstrings.
    """

    def __init__(
        self,
        status: Callable[[], Json],
        health: Callable[[], Json],
        drain: Callable[[], None],
        exposition: Callable[[bool], bytes],
        record: Callable[[Wanted], Recording],
        reload: Callable[[], Awaitable[ReloadResult]],
        configuration: Callable[[], Json],
        refresh: Callable[[], Awaitable[None]] = _nothing_to_wait_for,
    ) -> None:
        self._status = status
        self._health = health
        self._drain = drain
        self._exposition = exposition
        self._record = record
        self._reload = reload
        self._configuration = configuration
        self.token = ""
        """The key of actions; empty: they need none."""
        self._refresh = refresh
        self._runners: list[web.ServerRunner] = []

    async def start(self, settings: Settings) -> int:
        """-> the admin port. Raise StartError."""
        name, self.token = settings.admin_host.lower(), settings.admin_token
        reads = {
            "/health": self._on_health,
            "/livez": self._on_livez,
            "/readyz": self._on_readyz,
            "/metrics": self._on_metrics,
        }
        if settings.metrics_address:
            # It has its own address for this purpose: anyone who can reach it may read, by any host name.
            await self._listen(_AdminListener(reads, {}), *host_and_port(settings.metrics_address), "--metrics-address")
        door = _AdminListener(
            {"/": self._on_page, **reads, "/status": self._on_status, "/config": self._on_config},
            {"/drain": self._on_drain, "/reload": self._on_reload, "/record": self._on_record},
            lambda request: refusal(request, name, self.token),
        )
        return await self._listen(door, settings.admin_host, settings.admin_port, "--admin-port")

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, door: _AdminListener, host: str, port: int, flag: str) -> int:
        runner = web.ServerRunner(door, shutdown_timeout=0.5)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=door.limit).start()
        except OSError as error:
            raise cannot_listen(host, port, error, flag) from None
        return int(runner.addresses[0][1])

    async def _on_status(self, _: web.BaseRequest) -> web.Response:
        """Everything that is known, as JSON. Addresses, errors and reasons are here and in the log; clients never get
        them.
        """
        await self._refresh()
        return _json(200, self._status())

    async def _on_config(self, _: web.BaseRequest) -> web.Response:
        """The settings that run, each with where it came from, and what waits for a restart. Secrets are shown as
        set.
        """
        return _json(200, self._configuration())

    async def _on_livez(self, _: web.BaseRequest) -> web.Response:
        """200 as long as the process answers, also while it drains: a restart would fix nothing."""
        return _json(200, {"status": "alive"})

    async def _on_health(self, _: web.BaseRequest) -> web.Response:
        """For alerts: as `/readyz`, and 503 with the reason also if all endpoints that serve a model are ejected
        (`degraded`).
        """
        state = self._health()
        return _json(200 if state["status"] == "healthy" else 503, state)

    async def _on_readyz(self, _: web.BaseRequest) -> web.Response:
        """For balancers: 503 while it drains, or if no deployed model is known to have a READY worker and every
        instance that is up says what it hosts. 200 even if all instances are ejected: another proxy would see the same
        ones, and an ejected one comes back only through queries.
        """
        state = self._health()
        return _json(200 if state["status"] in ("healthy", "degraded") else 503, state)

    async def _on_metrics(self, request: web.BaseRequest) -> web.Response:
        """For Prometheus ([metrics](metrics.md)); as OpenMetrics, with exemplars, for clients that accept it."""
        await self._refresh()
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        told = self._exposition(openmetrics)
        return web.Response(body=told, headers={"Content-Type": OPENMETRICS if openmetrics else PLAIN})

    async def _on_page(self, _: web.BaseRequest) -> web.Response:
        """The [status page](behaviour.md#the-status-page), for a browser."""
        return web.Response(text=page(), headers=PAGE_HEADERS)

    async def _on_drain(self, _: web.BaseRequest) -> web.Response:
        """202: drains as after a first SIGTERM."""
        self._drain()
        return _json(202, {"status": "draining"})

    async def _on_record(self, request: web.BaseRequest) -> web.StreamResponse:
        """A stream of sampled requests and answers, until the time is over or the reader leaves, for
        [`ts-parity record`](any-server.md#what-a-recording-holds-and-who-may-read-it). 403 from another machine unless
        `admin_token` is set.
        """
        if not self.token and not _is_local(request.remote):
            why = "a recording shows what clients send: set admin_token, or ask from the proxy's own machine"
            return _json(403, {"status": "refused", "reason": why})
        try:
            recording = self._record(Wanted.read(json.loads(await request.read())))
        except (ValueError, RecursionError, BadClientRequest) as error:
            return _json(400, {"status": "refused", "reason": str(error)})
        except NotRecorded as error:
            return _json(error.status, {"status": "refused", "reason": str(error)})
        log.warning("a recording of requests and answers begins: %s", recording.wanted)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        try:
            await response.prepare(request)
            await self._send_pairs(recording, request, response)
        except (OSError, asyncio.TimeoutError):
            recording.close("its reader has left")
        finally:
            recording.close("it was cut off")
            log.warning("the recording is over: %s", recording.ended)
        return response

    @staticmethod
    async def _send_pairs(recording: Recording, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Raise OSError if the reader has left, TimeoutError if it does not read."""
        loop = asyncio.get_running_loop()
        ends_at, noted_at = loop.time() + recording.wanted.seconds, 0.0

        async def send(told: bytes) -> None:
            await asyncio.wait_for(response.write(told), _STALLED_S)

        await send(note(counts=recording.counts))
        while True:
            await asyncio.sleep(TAKEN_EVERY_S)
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
            now = loop.time()
            if now >= ends_at:
                recording.close("its time is over")
            for frame in recording.take():
                await send(frame)
            if recording.ended or now >= noted_at + _NOTED_EVERY_S:
                noted_at = now
                await send(note(counts=recording.counts))
            if recording.ended:
                await send(note(ended=recording.ended))
                await response.write_eof()
                return

    async def _on_reload(self, _: web.BaseRequest) -> web.Response:
        """Reads the [configuration again](behaviour.md#what-a-reload-does): 200 it is in force, or has not changed; 422
        it is wrong; 409 not while draining; 503 one of several processes gives no answer. After 422, 409 and 503
        nothing has changed.
        """
        result = await self._reload()
        told = result.json()
        return _json(result.status, {**told, "reason": "; ".join(told["problems"])} if told["problems"] else told)


class _AdminListener(web.Server):
    """A port with few connections, so that they never use up the process's file descriptors. For a new one the
    connection that has been idle longest is closed.
    """

    def __init__(
        self,
        reads: Mapping[str, Route],
        actions: Mapping[str, Route],
        refused: Callable[[web.BaseRequest], str] = lambda _: "",
    ) -> None:
        super().__init__(self._answer, access_log=None, logger=_log())
        self.limit = admin_limit(open_files())
        self._reads = reads
        self._actions = actions
        self._refused = refused
        self._open: dict[asyncio.BaseProtocol, asyncio.Transport] = {}
        """In the order in which they connected or last sent a request."""
        self._asking: set[asyncio.BaseProtocol] = set()

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open[handler] = transport
        if len(self._open) > self.limit:
            quiet = next((one for one in self._open if one not in self._asking), next(iter(self._open)))
            self._open.pop(quiet).abort()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asking = request.protocol
        if asking in self._open:
            self._open[asking] = self._open.pop(asking)
        self._asking.add(asking)
        try:
            return await self._answered(request)
        finally:
            self._asking.discard(asking)

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        if refused := self._refused(request):
            return _json(403, {"status": "refused", "reason": refused})
        path = request.path
        for methods, routes in ((("GET", "HEAD"), self._reads), (("POST",), self._actions)):
            if path in routes:
                if request.method in methods:
                    return await routes[path](request)
                allowed = ", ".join(methods)
                return _json(405, {"status": "refused", "reason": f"{path} takes {allowed}"}, {"Allow": allowed})
        return _json(404, {"status": "not found", "reason": f"there are {', '.join([*self._reads, *self._actions])}"})


def _log() -> logging.Logger:
    """Logs our own errors only: a client that sends no valid HTTP gets an error, which is enough."""
    log = logging.getLogger(f"{__name__}.http")
    if not log.filters:
        log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return log


def refusal(request: web.BaseRequest, name: str, token: str) -> str:
    """Why the admin port refuses the request; empty if it does not. `name` is the port's host in the configuration.

    A web page in an operator's browser can send requests anywhere, and can read the response if its own host name
    points here (DNS rebinding). It cannot learn the token, claim another origin, or send JSON to another origin.
    """
    shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    if token and hmac.compare_digest(shown, f"Bearer {token}".encode()):
        return ""
    if not request.raw_path.startswith("/"):
        return "no answer in anybody else's name: ask for a path"
    for host in request.headers.getall("Host", ()):
        if not _is_ours(host, name):
            return f"no answer by the name {host!r}: ask by IP address, as localhost, or by a name without dots"
    if request.method in ("GET", "HEAD"):
        return ""
    if token:
        return "actions need the header 'Authorization: Bearer TOKEN', with the admin_token"
    origins: Sequence[str] = request.headers.getall("Origin", ())
    fetched = request.headers.get("Sec-Fetch-Site", "none")
    if fetched not in ("same-origin", "none") or any(origin != f"http://{request.host}" for origin in origins):
        return "actions are not for pages from elsewhere"
    if request.content_type != "application/json":
        return "actions need the header 'Content-Type: application/json', which no page from elsewhere can send"
    return ""


def _is_local(address: str | None) -> bool:
    """Whether a connection comes from this machine."""
    try:
        read = ipaddress.ip_address(address or "")
        return (getattr(read, "ipv4_mapped", None) or read).is_loopback
    except ValueError:
        return False


def _is_ours(host: str, name: str) -> bool:
    """An IP address, or a name that no outsider can point here: names in the public DNS have a dot."""
    read = _HOST.fullmatch(host.lower())
    if read is None:
        return False
    asked = (read["address"] or read["name"]).removesuffix(".")
    if not read["address"] and ("." not in asked or asked == name or asked.endswith(".localhost")):
        return True
    try:
        ipaddress.ip_address(asked)
    except ValueError:
        return False
    return True


def _json(status: int, value: Json, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(value, status=status, headers=headers, dumps=lambda v: json.dumps(v, indent=2) + "\n")
