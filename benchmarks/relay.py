"""A relay in front of one instance that makes a chosen share of its predictions late, and changes nothing else.

Lateness on purpose, without touching the instance: its worker is free again while the answer waits here. Knows HTTP and
ts_parity's operations by their header. Knows nothing of coding: it does not look into bodies.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from ts_parity.wire import OP, OP_FINISH, OP_GROUP

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"})


class LateRelay:
    """Forwards to `target`; a share `late` of the predictions is held back for `by_s` seconds after it has come.

    Groups and finishes are never held back: what is measured is what late deployed predictions cost. The dice are
    thrown with `seed`.
    """

    def __init__(self, target: str, late: float, by_s: float, seed: int) -> None:
        if not 0 <= late <= 1 or by_s < 0:
            raise ValueError(f"a share from 0 to 1 can be late, by no less than 0 s, not {late} by {by_s}")
        self.target = target
        self.held_back = 0
        self.predictions = 0
        self._late = late
        self._by_s = by_s
        self._dice = random.Random(f"late {seed}")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """-> its address, while it lasts."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
            app = web.Application(client_max_size=1 << 30)

            async def forward(request: web.Request) -> web.Response:
                return await self._forward(session, request)

            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                yield f"http://127.0.0.1:{runner.addresses[0][1]}"
            finally:
                await runner.cleanup()

    async def _forward(self, session: aiohttp.ClientSession, request: web.Request) -> web.Response:
        body = await request.read()
        url = f"{self.target}{request.raw_path}"
        async with session.request(request.method, url, data=body, headers=_kept(request.headers)) as answer:
            content = await answer.read()
            status, phrase, headers = answer.status, answer.reason, _kept(answer.headers)
        if request.method == "POST" and request.headers.get(OP) not in (OP_GROUP, OP_FINISH):
            self.predictions += 1
            if self._dice.random() < self._late:
                self.held_back += 1
                await asyncio.sleep(self._by_s)
        return web.Response(status=status, reason=phrase, headers=headers, body=content)


def _kept(headers: CIMultiDict[str] | aiohttp.typedefs.LooseHeaders) -> CIMultiDict[str]:
    kept: CIMultiDict[str] = CIMultiDict(headers)
    for name in _HOP_BY_HOP | {"host"}:
        kept.popall(name, None)
    return kept
