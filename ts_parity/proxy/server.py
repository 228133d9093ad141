"""The door to the clients: reads requests, writes answers byte for byte as TorchServe would.

The only place that knows client sockets. Knows nothing of models, engine or instances: whatever is asked is handed to
one function, `answer`. `heads` reads what is plain, httptools the rest (llhttp, strict: conflicting lengths, bare line
feeds and folded headers are refused); what is here is the order of things on one connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast, final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ts_parity.errors import StartError
from ts_parity.proxy.access import ERROR, LEFT, REFUSED, STATUS_LEFT, AccessLog, Facts
from ts_parity.proxy.certificates import Tls, listening
from ts_parity.proxy.heads import PlainRequest, read_request
from ts_parity.proxy.messages import (
    EXPECT,
    HOP,
    LENGTH,
    MAX_HEAD_BYTES,
    NAMES_OTHERS,
    REQUEST_ID,
    BrokenStream,
    Reply,
    Request,
    has,
    head,
    header,
    identified,
    meaning,
    too_large,
    torchserve_error,
    without_hop_by_hop,
)
from ts_parity.proxy.service import Answered, Streamed
from ts_parity.wire import Headers

log = logging.getLogger(__name__)

# Requests of one connection that are read ahead while the first is being answered.
_PIPELINED: Final = 16
_PIPELINED_BYTES: Final = 65536
_SWEEP_S: Final = 1.0
# A refused request may still be on its way: closing at once would reset the connection before the answer is read.
_LINGER_S: Final = 2.0
# TLS is closed when both sides have said so, and what was written has gone.
_GOODBYE_S: Final = 30.0
_AHEAD_BYTES: Final = 65536
_NOTHING: Final = Request("", "", (), b"")


@dataclass(frozen=True)
class Patience:
    """How long a client may take, in seconds: between requests, for a head, between two pieces of a body, and for TLS's
    handshake.
    """

    idle_s: float = 75.0
    head_s: float = 30.0
    body_s: float = 60.0
    handshake_s: float = 10.0


class Server:
    """One listening port. Create, `start`, and in the end `stop_accepting`, wait for `idle`, `close`."""

    def __init__(
        self,
        answer: Callable[[Request, Turn], None],
        max_body_bytes: int,
        patience: Patience = Patience(),
        access: AccessLog | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.answer = answer
        self.access = access
        self.max_body_bytes = max_body_bytes
        self.patience = patience
        self.tls = tls
        self.draining = False
        self.connections: set[_Connection] = set()
        self.in_flight = 0
        self._listener: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        """For whoever waits until nothing is in flight."""

    async def start(self, host: str, port: int, reuse_port: bool = False) -> int:
        """-> the port, which matters if 0 was asked for. Raise StartError."""
        loop = asyncio.get_running_loop()
        try:
            listener: Any = await loop.create_server(
                lambda: cast(asyncio.Protocol, _Connection(self, loop)),
                host,
                port,
                backlog=1024,
                reuse_port=reuse_port,
                ssl=listening(self.tls) if self.tls is not None else None,
                ssl_handshake_timeout=self.patience.handshake_s if self.tls is not None else None,
            )
        except OSError as error:
            raise cannot_listen(host, port, error) from None
        self._listener = listener
        self._sweep()
        return int(listener.sockets[0].getsockname()[1])

    async def stop_accepting(self) -> None:
        """No new connections; connections that are open end with their next answer."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()

    async def idle(self) -> None:
        """Wait until no request is in flight. For one at a time."""
        while self.in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def close(self) -> None:
        """Cut what is left."""
        await self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        cut = [task for connection in [*self.connections] if (task := connection.cut()) is not None]
        await asyncio.gather(*cut, return_exceptions=True)
        if self.access is not None:
            self.access.close()
            self.access = None

    def begins(self) -> None:
        self.in_flight += 1

    def ends(self) -> None:
        self.in_flight -= 1
        if not self.in_flight and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _sweep(self) -> None:
        """One timer for the patience with all clients: one for each would cost more than reading their requests."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self.connections]:
            connection.check(now)
        if self.access is not None:
            self.access.flush()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)


@final
class Turn:
    """One request and its place in the order of answers. `answer` it once, now or later; who answers a client that has
    left, or answers twice, does no harm. `on_leave` is called if the client goes before.
    """

    __slots__ = ("_connection", "asked_at", "facts", "keep", "old", "on_leave", "refusal", "request")

    def __init__(
        self, connection: _Connection, request: Request, keep: bool, old: bool, refusal: Reply | None = None
    ) -> None:
        self._connection: _Connection | None = connection
        self.request = request
        self.keep = keep
        self.old = old
        """HTTP/1.0: no chunks, and it closes unless asked not to."""
        self.refusal = refusal
        """The answer that stands already, to a request that was not taken."""
        self.on_leave: Callable[[], object] | None = None
        self.asked_at = 0.0
        self.facts: Facts | None = None
        """For the access log, from whoever answers."""

    def answer(self, answered: Answered) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self.on_leave = None
            connection.answered(self, answered)
        elif isinstance(answered, Streamed):
            answered.chunks.leave()

    def leave(self) -> None:
        if self._connection is not None:
            self._connection = None
            if self.on_leave is not None:
                self.on_leave()


@final
class _Connection:
    """One client's connection, an asyncio protocol in all but name: requests are answered one by one, in the order in
    which they came.
    """

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport = cast(asyncio.Transport, None)
        self._parser = HttpRequestParser(self)
        self._plain: PlainRequest | None = None
        """The head of a request whose body is still coming, if it was read without the parser."""
        self._clean = True
        """The parser is not in the middle of anything."""
        self._queue: deque[Turn] = deque()
        self._queued_bytes = 0
        self._turn: Turn | None = None
        """Whose answer is being made or written."""
        self._advancing = False
        self._streaming: asyncio.Task[None] | None = None
        self._streamed_bytes = 0
        self._full = False
        """The client does not take what is written to it."""
        self._room: asyncio.Future[None] | None = None
        """For a stream that waits until it does."""
        self._held_back = False
        """Nothing is read, because enough is waiting for its answer."""
        self._done = False
        """Nothing more is read: the client is told so, or has left."""
        self._give_up_at = loop.time() + server.patience.head_s
        self._in_head = self._in_body = False
        self._counted = False
        """The request that is being read counts as in flight already."""
        self._changing = False
        """A second parser is told of a head that is known already."""
        self._unfinished = 0
        self._closes_when_written = False
        """Over TLS, where what has not been written soon after closing is lost."""
        self._unwritten = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._pieces: list[bytes] = []
        self._head_bytes = self._body_bytes = 0
        self._refusal: Reply | None = None
        self._expects = False
        self._method, self._keep, self._old = "", False, False

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        if self._server.tls is not None:
            self._transport.set_write_buffer_limits(_AHEAD_BYTES)  # as without TLS, where its default is half a MB

    def connection_lost(self, error: Exception | None) -> None:
        self._done = True
        self._server.connections.discard(self)
        self._make_room()
        self._drop_queue()
        if self._counted:
            self._counted = False
            self._server.ends()
        turn, self._turn = self._turn, None
        if turn is not None:
            self._server.ends()
            self._note(turn, STATUS_LEFT, 0, None, LEFT)
            turn.leave()
        if self._streaming is not None:
            self._streaming.cancel()

    def eof_received(self) -> None:
        """A client that has nothing more to say has left, for TorchServe as for us: the transport closes."""

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._make_room()
        if self._closes_when_written:
            self._give_up_at = self._loop.time() + _GOODBYE_S
            self._transport.close()
        else:
            self._advance()

    def _make_room(self) -> None:
        self._full = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._done:
            return
        if self._plain is not None:
            self._take_body(self._plain, data)
        elif self._clean:
            self._take(data, 0)
        else:
            self._parse(data)
        if self._queue and not self._held_back and not self._done and self._is_full():
            self._held_back = True
            self._transport.pause_reading()

    def _is_full(self) -> bool:
        return len(self._queue) > _PIPELINED or self._queued_bytes > _PIPELINED_BYTES

    def _take(self, data: bytes, at: int) -> None:
        """Requests of the plain shape; from the first other one on it is the parser's."""
        size = len(data)
        while at < size and not self._done:
            plain = read_request(data, at)
            if plain is None or plain.length > self._server.max_body_bytes:
                self._parse(data[at:] if at else data)
                return
            self._server.begins()
            end = plain.end + plain.length
            if end > size:
                self._plain, self._counted, self._in_body = plain, True, True
                self._body_bytes = size - plain.end
                self._pieces.append(data[plain.end :])
                self._give_up_at = self._loop.time() + self._server.patience.body_s
                return
            self._asks(plain, data[plain.end : end])
            at = end

    def _take_body(self, plain: PlainRequest, data: bytes) -> None:
        missing = plain.length - self._body_bytes
        self._body_bytes += len(data)
        if len(data) < missing:
            self._pieces.append(data)
            self._give_up_at = self._loop.time() + self._server.patience.body_s
            return
        self._pieces.append(data if len(data) == missing else data[:missing])
        body = b"".join(self._pieces)
        self._plain, self._counted, self._in_body = None, False, False
        self._pieces = []
        self._asks(plain, body)
        if len(data) > missing and not self._done:
            self._take(data, missing)

    def _asks(self, plain: PlainRequest, body: bytes) -> None:
        request = Request(plain.method, plain.target, plain.headers, body, plain.block)
        self._ask(Turn(self, request, plain.keep, False))

    def _parse(self, data: bytes) -> None:
        had_begun, had_body = self._in_head, self._body_bytes
        received = len(data)
        self._clean = False
        try:
            while data and self._refusal is None:
                data = self._feed(data)
        except HttpParserError as error:
            self._refusal = _not_http(str(error))
        # A header (or a trailer) without an end is not told of: the parser gathers it.
        stuck = (self._in_head and had_begun) or (self._in_body and self._body_bytes == had_body)
        self._unfinished = self._unfinished + received if stuck else 0
        if self._unfinished > MAX_HEAD_BYTES and self._refusal is None:
            self._refusal = _long_head()
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        # A head must come whole in its time; a body may take long as long as it moves.
        if self._in_body:
            self._give_up_at = self._loop.time() + self._server.patience.body_s
        elif self._in_head:
            if not had_begun:
                self._give_up_at = self._loop.time() + self._server.patience.head_s
        else:
            self._clean = True  # line breaks before a request say nothing, so none is remembered

    def _feed(self, data: bytes) -> bytes:
        """-> what is still to be fed."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # Nobody here speaks another protocol: the request is answered as if it had not asked. The parser has left
            # it at the end of its head; another one goes on with the body.
            self._parser = HttpRequestParser(self)
            if self._refusal is None:
                self._changing = True
                self._parser.feed_data(_framing_only(self._headers))
                self._changing = False
            return data[upgrade.args[0] :]
        return b""

    def check(self, now: float) -> None:
        """Whether the client has used up its patience."""
        answering = self._turn is not None and not (self._in_head or self._in_body)
        if now < self._give_up_at or answering or self._held_back:  # then it is we who do not read
            return
        if self._done or not (self._in_head or self._in_body):
            self._leave(now)
        else:
            self._refuse(torchserve_error(408, "RequestTimeoutException", "the request did not arrive in time"))

    def _leave(self, now: float) -> None:
        if self._server.tls is not None:
            if self._transport.is_closing():
                self._transport.abort()  # it does not say goodbye
                return
            unwritten = self._transport.get_write_buffer_size()
            if self._full and unwritten != self._unwritten:  # slow, but it reads
                self._unwritten = unwritten
                self._give_up_at = now + self._server.patience.body_s
                return
            self._give_up_at = now + _GOODBYE_S
        self._transport.close()

    def cut(self) -> asyncio.Task[None] | None:
        """-> what is still to be waited for."""
        self._transport.abort()
        streaming = self._streaming
        self.connection_lost(None)
        return streaming

    # ---- the parser's side: deaf after a refusal, for it may have gone on to the next request ------------------------

    def on_message_begin(self) -> None:
        if self._refusal is None and not self._changing:
            self._reset()
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        if self._refusal is None and not self._changing:
            self._target += url
            self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refusal is not None or self._changing:
            return
        self._head_bytes += len(name) + len(value)
        if not self._in_body:
            # Latin-1 gives every byte back as it was, as TorchServe reads it too.
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        elif self._head_bytes > MAX_HEAD_BYTES:  # trailers are no headers, and go nowhere
            self._refusal = _long_head()

    def on_headers_complete(self) -> None:
        if self._refusal is not None or self._changing:
            return
        self._in_head, self._in_body = False, True
        self._counted = True
        self._server.begins()
        version = self._parser.get_http_version()
        self._method, self._old = self._parser.get_method().decode("latin-1"), version == "1.0"
        length, expects, codings, closes = 0, "", [], False
        for name, value in self._headers:
            flags = meaning(name)
            if flags & LENGTH:
                length = int(value)
            elif flags & EXPECT:
                expects = value.strip().lower()
            elif flags & NAMES_OTHERS:
                closes = closes or "close" in [token.strip().lower() for token in value.split(",")]
            elif flags & HOP and name.lower() == "transfer-encoding":
                codings.append(value.strip(" ").lower())
        self._keep = self._parser.should_keep_alive() and not closes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = _long_head()
        elif version not in ("1.0", "1.1"):
            self._refusal = _not_http(f"version {version}")
        elif codings and (codings != ["chunked"] or self._old):
            self._refusal = _not_http(f"a body in the transfer encoding {', '.join(codings)}")
        elif length > self._server.max_body_bytes:
            self._refusal = too_large()
        elif self._old:  # it knows of no interim answers
            pass
        elif expects == "100-continue":
            self._expects = True
            if self._turn is None and not self._queue:
                self._go_on()
        elif expects:
            self._refusal = Reply(417, "Expectation Failed", (("content-length", "0"),), b"")

    def on_body(self, piece: bytes) -> None:
        if self._refusal is not None:
            return
        self._expects = False
        self._body_bytes += len(piece)
        if self._body_bytes > self._server.max_body_bytes:
            self._refusal = too_large()
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._refusal is not None or (self._parser.should_upgrade() and not self._changing):
            return
        self._in_body = self._counted = False
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        headers = without_hop_by_hop(tuple(self._headers))
        request = Request(self._method, self._target.decode("latin-1"), headers, body)
        turn = Turn(self, request, self._keep, self._old)
        self._reset()
        self._ask(turn)

    def _go_on(self) -> None:
        """A client that asks first (curl does, for large bodies) is told to go on only if its body will be taken."""
        self._expects = False
        self._put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, reply: Reply) -> None:
        """The last answer on this connection, after those to what came before."""
        self._done = True
        self._in_head = self._in_body = False
        self._plain = None
        if not self._counted:
            self._server.begins()
        self._counted = False
        if reply.body:  # TorchServe's own refusals without one have no id either
            reply = identified(reply, header(tuple(self._headers), REQUEST_ID))
        self._ask(Turn(self, _NOTHING, False, False, reply))

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _drop_queue(self) -> None:
        for _ in self._queue:
            self._server.ends()
        self._queue.clear()
        self._queued_bytes = 0

    def _ask(self, turn: Turn) -> None:
        if self._server.access is not None:
            turn.asked_at = self._loop.time()
        self._queue.append(turn)
        self._queued_bytes += len(turn.request.body)
        if self._turn is None:
            self._advance()

    def _advance(self) -> None:
        """The next request's turn, as soon as the one before has its answer and the client takes what was written."""
        if self._advancing:  # an answer that came at once
            return
        self._advancing = True
        while self._turn is None and self._queue and not self._full:
            self._turn = turn = self._queue.popleft()
            self._queued_bytes -= len(turn.request.body)
            if turn.refusal is not None:
                turn.answer(turn.refusal)
                continue
            try:
                self._server.answer(turn.request, turn)
            except Exception:
                log.exception("a request could not be answered: %s %s", turn.request.method, turn.request.path)
                reply = torchserve_error(500, "InternalServerException", "internal error of the proxy")
                turn.answer(identified(reply, turn.request.header(REQUEST_ID)))
        self._advancing = False
        if self._held_back and not self._is_full() and not self._transport.is_closing():
            self._held_back = False
            self._transport.resume_reading()

    def answered(self, turn: Turn, answered: Answered) -> None:
        """Of the turn that it is, and of no other: each is asked once, and answers once."""
        if isinstance(answered, Streamed):
            self._streaming = self._loop.create_task(self._write_stream(answered, turn))
        else:
            self._ended(self._write(answered, turn))

    def _ended(self, goes_on: bool) -> None:
        """An answer is written."""
        self._turn = None
        self._server.ends()
        if not goes_on:
            self._drop_queue()
            self._end()
            return
        if self._queue:
            self._advance()
        else:
            self._give_up_at = self._loop.time() + self._server.patience.idle_s
            if self._expects:
                self._go_on()

    def _keeps(self, turn: Turn) -> bool:
        return turn.keep and not self._server.draining

    def _write(self, reply: Reply, turn: Turn) -> bool:
        """-> whether the connection goes on."""
        if self._transport.is_closing():
            return False
        keep = self._keeps(turn)
        status, phrase, headers, body, block = reply.status, reply.phrase, reply.headers, reply.body, reply.block
        if block is not None and keep and not turn.old:
            data = b"HTTP/1.1 %d %b\r\n%b\r\n\r\n" % (status, phrase.encode("latin-1"), block)
        else:
            bodiless = status in (204, 304) or status < 200
            if not bodiless and turn.request.method != "HEAD" and not has(headers, LENGTH):
                headers = (*headers, ("content-length", str(len(body))))
            data = head(_status_line(status, phrase), headers, _connection(keep, turn.old))
            if bodiless:
                body = b""
        if turn.request.method == "HEAD":
            body = b""
        if len(body) < MAX_HEAD_BYTES:
            self._transport.write(data + body)
        else:
            self._transport.write(data)
            self._transport.write(body)
        if self._server.access is not None:
            self._note(turn, status, len(body), header(headers, REQUEST_ID), ERROR if turn.refusal is None else REFUSED)
        return keep

    def _note(self, turn: Turn, status: int, body_bytes: int, answer_id: str | None, otherwise: str) -> None:
        """For the access log. `otherwise`: what to call it if nobody has said."""
        access = self._server.access
        if access is None:
            return
        name = self._transport.get_extra_info("peername")
        client = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        request = turn.request
        access.add(
            client,
            request.method,
            request.target,
            status,
            body_bytes,
            self._loop.time() - turn.asked_at,
            request.header(REQUEST_ID),
            answer_id,
            Facts(otherwise) if turn.facts is None or otherwise == LEFT else turn.facts,
        )

    async def _write_stream(self, streamed: Streamed, turn: Turn) -> None:
        goes_on, status = False, streamed.chunks.status
        try:
            goes_on = await self._write_chunks(streamed, turn)
        except BrokenStream as error:
            # The status is long gone; an end without the last chunk is the only way left to say it.
            log.info("%s", error)
            self._transport.abort()
        finally:
            self._streaming = None
            streamed.chunks.leave()
            if self._turn is turn:  # else the client has left
                self._note(turn, status, self._streamed_bytes, header(streamed.headers, REQUEST_ID), ERROR)
                self._ended(goes_on)

    async def _write_chunks(self, streamed: Streamed, turn: Turn) -> bool:
        chunks = streamed.chunks
        keep = self._keeps(turn) and not turn.old
        headers: Headers = tuple(pair for pair in streamed.headers if pair[0].lower() != "content-length")
        if not turn.old:
            headers = (*headers, ("Transfer-Encoding", "chunked"))
        line = _status_line(chunks.status, chunks.phrase)
        self._put(head(line, headers, _connection(keep, turn.old)))
        silent = turn.request.method == "HEAD"
        self._streamed_bytes = 0
        async for chunk in chunks:
            if chunk and not silent:
                self._streamed_bytes += len(chunk)
                self._put(chunk if turn.old else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if self._full:
                    self._room = self._loop.create_future()
                    await self._room
        if not turn.old and not silent:
            self._put(b"0\r\n\r\n")
        return keep

    def _put(self, data: bytes) -> None:
        """A connection that was reset is closing before we are told, and takes nothing any more."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def _end(self) -> None:
        """Close, but let the client read what was written to it first."""
        may_be_sending = self._done or self._server.draining
        self._done = True
        if self._transport.is_closing():
            return
        self._give_up_at = self._loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        elif may_be_sending:
            # TLS is closed in both directions at once, and what came after that would reset the connection. The client
            # has been told that it closes, so it will do so itself.
            self._transport.resume_reading()
        elif not self._full:
            self._give_up_at = self._loop.time() + _GOODBYE_S
            self._transport.close()
        else:
            self._give_up_at = self._loop.time() + self._server.patience.idle_s
            self._closes_when_written = True


def cannot_listen(host: str, port: int, error: OSError) -> StartError:
    return StartError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port")


def _framing_only(headers: list[tuple[str, str]]) -> bytes:
    """A head that says nothing but how its body is framed."""
    framing = [pair for pair in headers if meaning(pair[0]) & LENGTH or pair[0].lower() == "transfer-encoding"]
    return head("POST / HTTP/1.1", tuple(framing))


def _not_http(what: str) -> Reply:
    return torchserve_error(400, "BadRequestException", f"not HTTP as it should be: {what}")


def _long_head() -> Reply:
    return torchserve_error(431, "BadRequestException", f"headers of over {MAX_HEAD_BYTES} bytes")


def _status_line(status: int, phrase: str) -> str:
    return f"HTTP/1.1 {status} {phrase}"


def _connection(keep: bool, old: bool) -> Headers:
    if not keep:
        return (("Connection", "close"),)
    return (("Connection", "keep-alive"),) if old else ()
