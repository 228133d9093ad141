"""The admin port: status, metrics, health, drain. Not for clients, nor for web pages in an operator's browser.

Knows HTTP, a few questions and who may ask them; the answers come from the application.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ts_parity.config import Settings, host_and_port
from ts_parity.proxy.metrics import CONTENT_TYPE
from ts_parity.proxy.server import cannot_listen

Json = dict[str, Any]
_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]@:/]*))(:\d*)?")


async def _nothing_to_wait_for() -> None:
    pass


class Admin:
    """Listening ports for operators and their tools. `refresh` is waited for before status or metrics are told; not
    for health: whoever probes gives up soon, and a process that is slow to report makes no other less ready.
    """

    def __init__(
        self,
        status: Callable[[], Json],
        health: Callable[[], Json],
        drain: Callable[[], None],
        exposition: Callable[[], bytes],
        refresh: Callable[[], Awaitable[None]] = _nothing_to_wait_for,
    ) -> None:
        self._status = status
        self._health = health
        self._drain = drain
        self._exposition = exposition
        self._refresh = refresh
        self._runners: list[web.AppRunner] = []

    async def start(self, settings: Settings) -> int:
        """-> the admin port. Raise StartError."""
        if settings.metrics_address:
            # Its own address is the permission: whoever reaches it may read, by whatever name.
            await self._listen(web.Application(), *host_and_port(settings.metrics_address))
        name, token = settings.admin_host.lower(), settings.admin_token

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            refused = refusal(request, name, token)
            return await handler(request) if not refused else _json(403, {"status": "refused", "reason": refused})

        app = web.Application(middlewares=[guarded])
        app.router.add_get("/status", self._on_status)
        app.router.add_post("/drain", self._on_drain)
        return await self._listen(app, settings.admin_host, settings.admin_port)

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, app: web.Application, host: str, port: int) -> int:
        app.router.add_get("/health", self._on_health)
        app.router.add_get("/livez", self._on_livez)
        app.router.add_get("/readyz", self._on_readyz)
        app.router.add_get("/metrics", self._on_metrics)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise cannot_listen(host, port, error) from None
        return int(runner.addresses[0][1])

    async def _on_status(self, _: web.Request) -> web.Response:
        await self._refresh()
        return _json(200, self._status())

    async def _on_livez(self, _: web.Request) -> web.Response:
        """Only that somebody answers: a new start would mend nothing that is wrong with the fleet, or with a drain."""
        return _json(200, {"status": "alive"})

    async def _on_health(self, _: web.Request) -> web.Response:
        said = self._health()
        return _json(200 if said["status"] == "healthy" else 503, said)

    async def _on_readyz(self, _: web.Request) -> web.Response:
        """Another proxy would see the same instances, and one that is out comes back by being asked: so a proxy whose
        instances all fail is ready as long as they are there.
        """
        said = self._health()
        return _json(200 if said["status"] in ("healthy", "degraded") else 503, said)

    async def _on_metrics(self, _: web.Request) -> web.Response:
        await self._refresh()
        return web.Response(body=self._exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _on_drain(self, _: web.Request) -> web.Response:
        self._drain()
        return _json(202, {"status": "draining"})


def refusal(request: web.BaseRequest, name: str, token: str) -> str:
    """Why the admin port does not answer; empty if it does. `name` is what it is called in the configuration.

    A page in an operator's browser can send a request anywhere, and read the answer if it has made its own name point
    here (DNS rebinding). It cannot learn the token, claim another origin, or send JSON elsewhere unasked.
    """
    shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    if token and hmac.compare_digest(shown, f"Bearer {token}".encode()):
        return ""
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


def _is_ours(host: str, name: str) -> bool:
    """An address, or a name that nobody outside could have pointed here: one in the public DNS has a dot."""
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


def _json(status: int, value: Json) -> web.Response:
    return web.json_response(value, status=status, dumps=lambda v: json.dumps(v, indent=2) + "\n")
