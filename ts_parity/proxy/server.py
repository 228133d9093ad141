"""The door to the clients: reads requests, writes answers byte for byte as TorchServe would.

The only place that knows client sockets. Knows nothing of models, engine or instances: whatever is asked is handed to
one function, `answer`. httptools parses (llhttp, strict: conflicting lengths, bare line feeds and folded headers are
refused); what is here is the order of things on one connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ts_parity.errors import StartError, TsParityError
from ts_parity.proxy.messages import (
    EXPECT,
    LENGTH,
    MAX_HEAD_BYTES,
    BrokenStream,
    Reply,
    Request,
    error_reply,
    has,
    head,
    meaning,
    too_large,
    torchserve_error,
)
from ts_parity.proxy.service import Answered, Streamed
from ts_parity.wire import Headers

log = logging.getLogger(__name__)

# Requests of one connection that are read ahead while the first is being answered.
_PIPELINED = 16
_SWEEP_S = 1.0
# A refused request may still be on its way: closing at once would reset the connection before the answer is read.
_LINGER_S = 2.0


@dataclass(frozen=True)
class Patience:
    """How long a client may take, in seconds: between requests, for a head, and between two pieces of a body."""

    idle_s: float = 75.0
    head_s: float = 30.0
    body_s: float = 60.0


class Server:
    """One listening port. Create, `start`, and in the end `stop_accepting`, wait for `idle`, `close`."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Answered]],
        max_body_bytes: int,
        patience: Patience = Patience(),
    ) -> None:
        self.answer = answer
        self.max_body_bytes = max_body_bytes
        self.patience = patience
        self.draining = False
        self.connections: set[_Connection] = set()
        self.in_flight = 0
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, host: str, port: int, reuse_port: bool = False) -> int:
        """-> the port, which matters if 0 was asked for. Raise StartError."""
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: _Connection(self, loop), host, port, backlog=1024, reuse_port=reuse_port
            )
        except OSError as error:
            raise cannot_listen(host, port, error) from None
        self._sweep()
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop_accepting(self) -> None:
        """No new connections; connections that are open end with their next answer."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cut what is left."""
        await self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        cut = [task for connection in [*self.connections] if (task := connection.cut()) is not None]
        await asyncio.gather(*cut, return_exceptions=True)

    def begins(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def ends(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def _sweep(self) -> None:
        """One timer for the patience with all clients: one for each would cost more than reading their requests."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self.connections]:
            connection.check(now)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)


@dataclass
class _Asked:
    """A request that is waiting for its turn, or the refusal that stands in its place."""

    request: Request
    keep: bool
    old: bool
    """HTTP/1.0: no chunks, and it closes unless asked not to."""
    refusal: Reply | None = None


class _Connection(asyncio.Protocol):
    """One client's connection: requests are answered one by one, in the order in which they came."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport = cast(asyncio.Transport, None)
        self._parser = HttpRequestParser(self)
        self._queue: deque[_Asked] = deque()
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._done = False
        """Nothing more is read: the client is told so, or has left."""
        self._give_up_at = loop.time() + server.patience.head_s
        self._in_head = self._in_body = False
        self._counted = False
        """The request that is being read counts as in flight already."""
        self._unfinished = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._pieces: list[bytes] = []
        self._head_bytes = self._body_bytes = 0
        self._refusal: Reply | None = None
        self._expects = False

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._done = True
        self._server.connections.discard(self)
        self._may_write.set()
        self._drop_queue()
        if self._counted:
            self._counted = False
            self._server.ends()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        if self._done:
            return
        had_begun = self._in_head
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # Nobody here speaks another protocol: the request is answered as if it had not asked.
            self._parser = HttpRequestParser(self)
            if rest := data[upgrade.args[0] :]:
                self.data_received(rest)
            return
        except HttpParserError as error:
            self._refuse(torchserve_error(400, "BadRequestException", f"not HTTP as it should be: {error}"))
            return
        # A header without an end is not told of: the parser gathers it.
        self._unfinished = self._unfinished + len(data) if self._in_head and had_begun else 0
        if self._unfinished > MAX_HEAD_BYTES:
            self._refusal = _long_head()
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        # A head must come whole in its time; a body may take long as long as it moves.
        if self._in_body:
            self._give_up_at = self._loop.time() + self._server.patience.body_s
        elif self._in_head and not had_begun:
            self._give_up_at = self._loop.time() + self._server.patience.head_s
        if len(self._queue) > _PIPELINED:
            self._transport.pause_reading()

    def check(self, now: float) -> None:
        """Whether the client has used up its patience."""
        answering = self._task is not None and not (self._in_head or self._in_body)
        if now < self._give_up_at or answering or len(self._queue) > _PIPELINED:  # then it is we who do not read
            return
        if self._done or not (self._in_head or self._in_body):
            self._transport.close()
        else:
            self._refuse(torchserve_error(408, "RequestTimeoutException", "the request did not arrive in time"))

    def cut(self) -> asyncio.Task[None] | None:
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    # ---- the parser's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reset()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        # Latin-1 gives every byte back as it was, as TorchServe reads it too.
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._counted = True
        self._server.begins()
        length, expects = 0, None
        for name, value in self._headers:
            flags = meaning(name)
            if flags & LENGTH:
                length = int(value)
            elif flags & EXPECT:
                expects = value.lower()
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = _long_head()
        elif length > self._server.max_body_bytes:
            self._refusal = too_large()
        elif expects == "100-continue":
            self._expects = True
            if self._task is None and not self._queue:
                self._go_on()
        elif expects is not None:
            self._refusal = Reply(417, "Expectation Failed", (("content-length", "0"),), b"")

    def on_body(self, piece: bytes) -> None:
        self._expects = False
        self._body_bytes += len(piece)
        if self._body_bytes > self._server.max_body_bytes:
            self._refusal = too_large()
        elif self._refusal is None:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._refusal is not None:
            return
        self._counted = False
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._queue.append(_Asked(self._request(body), self._parser.should_keep_alive(), self._is_old()))
        self._reset()
        self._answer_next()

    def _request(self, body: bytes) -> Request:
        method = self._parser.get_method().decode("latin-1")
        return Request(method, self._target.decode("latin-1"), tuple(self._headers), body)

    def _is_old(self) -> bool:
        return self._parser.get_http_version() == "1.0"

    def _go_on(self) -> None:
        """A client that asks first (curl does, for large bodies) is told to go on only if its body will be taken."""
        self._expects = False
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, reply: Reply) -> None:
        """The last answer on this connection, after those to what came before."""
        self._done = True
        self._in_head = self._in_body = False
        if not self._counted:
            self._server.begins()
        self._counted = False
        self._queue.append(_Asked(Request("", "", (), b""), False, False, reply))
        self._answer_next()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _drop_queue(self) -> None:
        for _ in self._queue:
            self._server.ends()
        self._queue.clear()

    def _answer_next(self) -> None:
        if self._task is None and self._queue:
            self._task = self._loop.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        try:
            while self._queue:
                asked = self._queue.popleft()
                if not await self._answer_one(asked):
                    self._drop_queue()
                    self._end()
                    return
                if not self._may_write.is_set():
                    await self._may_write.wait()
                if len(self._queue) <= _PIPELINED and not self._transport.is_closing():
                    self._transport.resume_reading()
            self._give_up_at = self._loop.time() + self._server.patience.idle_s
            if self._expects:
                self._go_on()
        finally:
            self._task = None

    async def _answer_one(self, asked: _Asked) -> bool:
        """-> whether the connection goes on."""
        server, request = self._server, asked.request
        try:
            if asked.refusal is not None:
                return self._write(asked.refusal, asked)
            answered = await server.answer(request)
            if isinstance(answered, Streamed):
                return await self._write_stream(answered, asked)
            return self._write(answered, asked)
        except TsParityError as error:
            return self._write(error_reply(error), asked)
        except Exception:
            log.exception("a request could not be answered: %s %s", request.method, request.path)
            reply = torchserve_error(500, "InternalServerException", "internal error of the proxy")
            return self._write(reply, asked)
        finally:
            server.ends()

    def _keeps(self, asked: _Asked) -> bool:
        return asked.keep and not self._server.draining

    def _write(self, reply: Reply, asked: _Asked) -> bool:
        keep = self._keeps(asked)
        headers = reply.headers
        bodiless = reply.status in (204, 304) or reply.status < 200
        if not bodiless and not has(headers, LENGTH):
            headers = (*headers, ("content-length", str(len(reply.body))))
        data = head(_status_line(reply.status, reply.phrase), headers, _connection(keep, asked.old))
        body = b"" if bodiless or asked.request.method == "HEAD" else reply.body
        self._transport.write(data + body if len(body) < MAX_HEAD_BYTES else data)
        if len(body) >= MAX_HEAD_BYTES:
            self._transport.write(body)
        return keep

    async def _write_stream(self, streamed: Streamed, asked: _Asked) -> bool:
        chunks = streamed.chunks
        keep = self._keeps(asked) and not asked.old
        headers: Headers = tuple(pair for pair in streamed.headers if pair[0].lower() != "content-length")
        if not asked.old:
            headers = (*headers, ("Transfer-Encoding", "chunked"))
        try:
            line = _status_line(chunks.status, chunks.phrase)
            self._transport.write(head(line, headers, _connection(keep, asked.old)))
            silent = asked.request.method == "HEAD"
            async for chunk in chunks:
                if chunk and not silent:
                    self._transport.write(chunk if asked.old else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    if not self._may_write.is_set():
                        await self._may_write.wait()
            if not asked.old and not silent:
                self._transport.write(b"0\r\n\r\n")
            return keep
        except BrokenStream as error:
            # The status is long gone; an end without the last chunk is the only way left to say it.
            log.info("%s", error)
            self._transport.abort()
            return False
        finally:
            chunks.leave()

    def _end(self) -> None:
        """Close, but let the client read what was written to it first."""
        self._done = True
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
            self._give_up_at = self._loop.time() + _LINGER_S
        else:
            self._transport.close()


def cannot_listen(host: str, port: int, error: OSError) -> StartError:
    return StartError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port")


def _long_head() -> Reply:
    return torchserve_error(431, "BadRequestException", f"headers of over {MAX_HEAD_BYTES} bytes")


def _status_line(status: int, phrase: str) -> str:
    return f"HTTP/1.1 {status} {phrase}"


def _connection(keep: bool, old: bool) -> Headers:
    if not keep:
        return (("Connection", "close"),)
    return (("Connection", "keep-alive"),) if old else ()
