"""A streamed answer on its way from a task to a client, with back-pressure.

The task fills it at most a few chunks ahead of the client; a client that leaves lets the rest run through, because the
worker goes on anyway and its place is taken until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ts_parity.proxy.connections import Stream
from ts_parity.proxy.messages import BrokenStream
from ts_parity.wire import Headers

_AHEAD = 16


class Pipe:
    """Filled by one task with `put` and `close`, emptied by one client by iteration; `leave` ends the client's part."""

    def __init__(self, stream: Stream, headers: Headers, patience_s: float) -> None:
        self.status = stream.status
        self.phrase = stream.phrase
        self.headers = headers
        self._patience_s = patience_s
        # An element is a chunk, or how it ended: None well, a text not.
        self._queue: asyncio.Queue[bytes | str | None] = asyncio.Queue(_AHEAD)
        self._left = False

    async def put(self, chunk: bytes | str | None) -> None:
        if self._left:
            return
        try:
            await asyncio.wait_for(self._queue.put(chunk), self._patience_s)
        except asyncio.TimeoutError:
            # A client that stays and never reads would hold the worker's place for ever.
            self.leave()
            self._queue.put_nowait(f"nothing was read for {self._patience_s} s")

    def leave(self) -> None:
        self._left = True
        while not self._queue.empty():
            self._queue.get_nowait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            chunk = await self._queue.get()
            if chunk is None:
                return
            if isinstance(chunk, str):
                raise BrokenStream(chunk)
            yield chunk
