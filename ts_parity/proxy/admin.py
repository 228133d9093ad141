"""The admin port: status, metrics, health, drain. Not for clients.

Knows HTTP and four questions; the answers come from the application.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ts_parity.proxy.metrics import CONTENT_TYPE
from ts_parity.proxy.server import cannot_listen

Json = dict[str, Any]


async def _nothing_to_wait_for() -> None:
    pass


class Admin:
    """A listening port for operators and their tools. `refresh` is waited for before a question is answered."""

    def __init__(
        self,
        status: Callable[[], Json],
        health: Callable[[], tuple[int, Json]],
        drain: Callable[[], None],
        exposition: Callable[[], bytes],
        refresh: Callable[[], Awaitable[None]] = _nothing_to_wait_for,
    ) -> None:
        self._status = status
        self._health = health
        self._drain = drain
        self._exposition = exposition
        self._refresh = refresh
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """-> the port. Raise StartError."""
        app = web.Application()
        app.router.add_get("/status", self._on_status)
        app.router.add_get("/health", self._on_health)
        app.router.add_get("/metrics", self._on_metrics)
        app.router.add_post("/drain", self._on_drain)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise cannot_listen(host, port, error) from None
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _on_status(self, _: web.Request) -> web.Response:
        await self._refresh()
        return _json(200, self._status())

    async def _on_health(self, _: web.Request) -> web.Response:
        await self._refresh()
        return _json(*self._health())

    async def _on_metrics(self, _: web.Request) -> web.Response:
        await self._refresh()
        return web.Response(body=self._exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _on_drain(self, _: web.Request) -> web.Response:
        self._drain()
        return _json(202, {"status": "draining"})


def _json(status: int, value: Json) -> web.Response:
    return web.json_response(value, status=status, dumps=lambda v: json.dumps(v, indent=2) + "\n")
