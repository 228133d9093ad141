"""Chunked responses with back-pressure: `Stream` comes from an instance, `Pipe` leads from a task to a client.

A task fills its pipe only a few chunks ahead of the client. When the client leaves, the task reads the rest and drops
it, because the worker goes on anyway and its place is taken until it ends. Knows chunks. Knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from ts_parity.proxy.http.buffers import BodyBuffer
from ts_parity.proxy.http.messages import BrokenStream
from ts_parity.wire import Headers

# When this much of a stream waits for its reader, the connection stops reading.
_AHEAD_BYTES = 1 << 18
_CHUNKS_AHEAD = 16
# Up to this many waiting chunks are kept as they came. Beyond it they are joined, since tiny chunks would cost far more
# memory than their bytes.
_MOST_PIECES = 256


class StreamSource(Protocol):
    """The connection that a stream reads from."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


class Stream:
    """A chunked response. It holds its connection until it is read to the end or closed."""

    def __init__(
        self, status: int, phrase: str, headers: Headers, connection: StreamSource, controls: Headers = ()
    ) -> None:
        self.status = status
        self.phrase = phrase
        self.headers = headers
        self.controls = controls
        self._connection = connection
        self._pieces: list[bytes] = []
        self._gathered = BodyBuffer()
        self.held = 0
        """Bytes that wait for the reader."""
        self._ended = False
        self._broken = ""
        self._changed = asyncio.Event()

    def feed(self, piece: bytes) -> None:
        if len(self._pieces) < _MOST_PIECES:
            self._pieces.append(piece)
        else:
            self._gathered.add(piece)
        self.held += len(piece)
        if self.held > _AHEAD_BYTES:
            self._connection.pause()
        self._changed.set()

    def end(self, broken: str = "") -> None:
        self._ended, self._broken = True, broken
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._pieces:
                pieces, self._pieces, self.held = self._pieces, [], 0
                if gathered := self._gathered.take():
                    pieces.append(gathered)
                self._connection.resume()
                for piece in pieces:
                    yield piece
            if self._ended:
                if self._broken:
                    raise BrokenStream(f"the streamed answer broke off: {self._broken}")
                return
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._connection.abort()


class Pipe:
    """Filled by one task with `put`, emptied by one client by iteration; `close` ends the client's part."""

    def __init__(self, stream: Stream, headers: Headers, stall_timeout_s: float) -> None:
        self.status = stream.status
        self.phrase = stream.phrase
        self.headers = headers
        self._stall_timeout_s = stall_timeout_s
        # An element is a chunk, or the end: None if the stream is complete, else the reason why it is not.
        self._queue: asyncio.Queue[bytes | str | None] = asyncio.Queue(_CHUNKS_AHEAD)
        self._closed = False

    async def put(self, chunk: bytes | str | None) -> None:
        if self._closed:
            return
        try:
            await asyncio.wait_for(self._queue.put(chunk), self._stall_timeout_s)
        except asyncio.TimeoutError:
            # A client that stays and never reads would hold the worker's place for ever.
            self.close()
            self._queue.put_nowait(f"nothing was read for {self._stall_timeout_s} s")

    def close(self) -> None:
        self._closed = True
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
