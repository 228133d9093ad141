"""The clients' side: accepts connections, reads requests, writes responses byte for byte as TorchServe would.

The only file that knows client sockets. `request_reader` turns bytes into requests; this file keeps responses in the
order of their requests, limits how long a client may take, and drains. It passes each request to one function,
`handle`, and knows nothing of models, engine or instances.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast, final

from ts_parity.errors import StartError
from ts_parity.proxy.http.access import ERROR, LEFT, REFUSED, STATUS_LEFT, UNLOGGED, AccessEntry, AccessLog
from ts_parity.proxy.http.certificates import Tls, listening
from ts_parity.proxy.http.descriptors import ClientLimit, client_limit, open_files
from ts_parity.proxy.http.messages import (
    BODILESS,
    LENGTH,
    MAX_HEAD_BYTES,
    REQUEST_ID,
    AnyResponse,
    BrokenStream,
    Request,
    Response,
    StreamedResponse,
    encode_head,
    has,
    header,
    torchserve_error,
    with_header,
    with_request_id,
)
from ts_parity.proxy.http.outbox import Outbox
from ts_parity.proxy.http.request_reader import RequestReader
from ts_parity.proxy.http.trace_context import trace_context
from ts_parity.wire import Headers

log = logging.getLogger(__name__)

# Requests of one connection that are read ahead while the first is being answered.
_PIPELINED: Final = 16
_PIPELINED_BYTES: Final = 65536
_SWEEP_S: Final = 1.0
# A socket that is not read does not show that the client has closed it; Linux tells when polled for it.
_POLL_CLOSED: Final[int] = getattr(select, "POLLRDHUP", 0)
# A refused request may still be arriving: closing at once would reset the connection before the response is read.
_LINGER_S: Final = 2.0
# A connection closes when everything written has been sent; over TLS, when both sides have also said goodbye.
_CLOSE_TIMEOUT_S: Final = 30.0
_AHEAD_BYTES: Final = 65536
_NOT_LISTENING: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "not allowed, as ports below 1024 mostly are",
}
# A client that has just connected or has just got its response is about to send a request: it is not idle yet.
_SETTLED_S: Final = 1.0
# Like nginx, evict one in this many idle connections together, so that not every newcomer scans them all.
_IDLE_PER_EVICTION: Final = 32
_CROWDED_S: Final = 60.0
_NO_REQUEST: Final = Request("", "", (), b"")


@dataclass(frozen=True)
class ClientTimeouts:
    """How long a client may take, in seconds: between requests, for a head, between two pieces of a body, and for the
    TLS handshake.
    """

    idle_s: float = 75.0
    head_s: float = 30.0
    body_s: float = 60.0
    handshake_s: float = 10.0


class Server:
    """One listening port. Create, `start`; in the end set `draining`, `stop_accepting`, wait for `idle`, `close`."""

    def __init__(
        self,
        handle: Callable[[Request, PendingResponse], None],
        max_body_bytes: int,
        timeouts: ClientTimeouts = ClientTimeouts(),
        access: AccessLog | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.handle = handle
        self.access = access
        self.max_body_bytes = max_body_bytes
        self.timeouts = timeouts
        self.tls = tls
        self.draining = False
        """Each connection closes after its next response, which says so; new ones are still accepted."""
        self.connections: set[ClientConnection] = set()
        self.limit: ClientLimit = client_limit(open_files(), 0, 0)
        self.refused = self.closed_idle = 0
        """Clients refused because of the limit, and idle ones closed to make room."""
        self.problem = ""
        """Set while there are, or recently were, more clients than the limit allows."""
        self._crowded_until = 0.0
        self.outbox = Outbox()
        self.in_flight = 0
        self._listener: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        """Done when nothing is in flight."""

    async def start(self, host: str, port: int, reuse_port: bool = False) -> int:
        """-> the port, which differs from `port` if that is 0. Raise StartError."""
        loop = asyncio.get_running_loop()
        try:
            listener: Any = await loop.create_server(
                lambda: cast(asyncio.Protocol, ClientConnection(self, loop)),
                host,
                port,
                backlog=self.limit.burst,
                reuse_port=reuse_port,
                ssl=listening(self.tls) if self.tls is not None else None,
                ssl_handshake_timeout=self.timeouts.handshake_s if self.tls is not None else None,
            )
        except OSError as error:
            raise cannot_listen(host, port, error) from None
        self._listener = listener
        self._sweep()
        return int(listener.sockets[0].getsockname()[1])

    async def stop_accepting(self) -> None:
        """Stop listening. Connections that the kernel has already made are accepted first, or it would reset them."""
        self.draining = True
        listener, self._listener = self._listener, None
        if listener is not None:
            waiting = select.poll()
            for listening in listener.sockets:  # type: ignore[attr-defined]
                waiting.register(listening.fileno(), select.POLLIN)
            for _ in range(self.limit.burst):
                if not waiting.poll(0):
                    break
                await asyncio.sleep(0)
            listener.close()

    @property
    def unanswered(self) -> int:
        """Requests in flight, and clients that have not read their whole response."""
        return self.in_flight + sum(connection.has_unwritten for connection in self.connections)

    async def idle(self) -> None:
        """Wait until no request is in flight. Only one caller may wait."""
        while self.in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def close(self) -> None:
        """Abort whatever is left."""
        await self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        cut = [task for connection in [*self.connections] if (task := connection.cut()) is not None]
        await asyncio.gather(*cut, return_exceptions=True)
        if self.access is not None:
            self.access.close()
            self.access = None

    def request_begins(self) -> None:
        self.in_flight += 1

    def request_ends(self) -> None:
        self.in_flight -= 1
        if not self.in_flight and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _sweep(self) -> None:
        """Check the timeouts of all clients: a timer for each would cost more than reading its requests."""
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        now = loop.time()
        for connection in [*self.connections]:
            connection.check_timeouts(now)
        if self.problem and now >= self._crowded_until:
            log.info("no longer: %s", self.problem)
            self.problem = ""
        self._find_closed_clients()
        if self.access is not None:
            self.access.flush()

    def clients(self) -> tuple[int, int, int, int]:
        """-> connections now and at most; clients refused, and idle ones closed, because of the limit."""
        return len(self.connections), self.limit.connections, self.refused, self.closed_idle

    def make_room(self, newcomer: ClientConnection) -> None:
        """The newcomer exceeds the limit: close the connections that have been idle longest, or refuse it."""
        now = asyncio.get_running_loop().time()
        self._crowded_until = now + _CROWDED_S
        if not self.problem:
            self.problem = (
                f"more clients than the {self.limit.connections} connections that {self.limit.files} open files leave "
                "for them: idle ones are closed, others refused; raise the limit (ulimit -n, LimitNOFILE)"
            )
            log.warning("%s", self.problem)
        idle = [connection for connection in self.connections if connection.is_idle(now)]
        for connection in heapq.nsmallest(1 + len(idle) // _IDLE_PER_EVICTION, idle, key=lambda one: one.since):
            self.closed_idle += 1
            self.connections.discard(connection)
            connection.abort()
        if not idle:
            self.refused += 1
            newcomer.reject(linger=len(self.connections) <= self.limit.connections + self.limit.burst // 2)

    def _find_closed_clients(self) -> None:
        """Find clients that have left while their connection was not being read."""
        reading_paused = {
            connection.descriptor: connection for connection in self.connections if connection.reading_paused
        }
        if not reading_paused:
            return
        poll = select.poll()
        for descriptor in reading_paused:
            poll.register(descriptor, _POLL_CLOSED)
        for descriptor, _ in poll.poll(0):
            reading_paused[descriptor].closed_by_client()


@final
class PendingResponse:
    """One request and its place in the order of responses. Call `respond` once, now or later; a second response, or one
    to a client that has left, does no harm. `on_disconnect` is called if the client goes first.
    """

    __slots__ = (
        "_connection",
        "entry",
        "http10",
        "keep_alive",
        "on_disconnect",
        "received_at",
        "refusal",
        "request",
        "size",
    )

    def __init__(
        self,
        connection: ClientConnection,
        request: Request,
        keep_alive: bool,
        http10: bool,
        size: int,
        refusal: Response | None = None,
    ) -> None:
        self._connection: ClientConnection | None = connection
        self.request = request
        self.size = size
        """About what it takes in memory."""
        self.keep_alive = keep_alive
        self.http10 = http10
        """HTTP/1.0: no chunks, and it closes unless asked not to."""
        self.refusal = refusal
        """The response to a request that was not accepted."""
        self.on_disconnect: Callable[[], object] | None = None
        self.received_at = 0.0
        self.entry: AccessEntry | None = None
        """For the access log; set by whoever responds."""

    def respond(self, response: AnyResponse) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self.on_disconnect = None
            connection.send_response(self, response)
        elif isinstance(response, StreamedResponse):
            response.chunks.close()

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection = None
            if self.on_disconnect is not None:
                self.on_disconnect()


@final
class ClientConnection:
    """One client's connection, an asyncio protocol in all but name. Requests are answered one at a time, in the order
    in which they came.
    """

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport = cast(asyncio.Transport, None)
        self._reader = RequestReader(self, server.max_body_bytes)
        self._queue: deque[PendingResponse] = deque()
        self._queued_bytes = 0
        self._current: PendingResponse | None = None
        """The request that is being answered."""
        self._last: PendingResponse | None = None
        """While draining: the request whose response closes the connection."""
        self._handling = False
        self._streaming: asyncio.Task[None] | None = None
        self._streamed_bytes = 0
        self._write_paused = False
        """The client does not read what is written to it, so the transport has paused us."""
        self._writable: asyncio.Future[None] | None = None
        """Done when it reads again; a stream waits for it."""
        self.reading_paused = False
        """Nothing is read, because enough requests wait for their responses."""
        self._read_ended = False
        """Nothing more is read: the last response says so, or the client has left."""
        self.since = loop.time()
        """When it connected, or got its last response."""
        self._give_up_at = self.since + server.timeouts.head_s
        self._counted = False
        """The request that is being read is already counted as in flight."""
        self._closes_when_written = False
        """Over TLS, where anything still unwritten shortly after closing is lost."""
        self._unwritten = 0

    def _stop_reading(self) -> None:
        self._read_ended = True
        self._reader.stop()
        self.reading_paused = False

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        if self._server.tls is not None:
            self._transport.set_write_buffer_limits(_AHEAD_BYTES)  # as without TLS; the default with it is half a MB
        if len(self._server.connections) > self._server.limit.connections:
            self._server.make_room(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_reading()
        self._reader.drop()
        self._server.connections.discard(self)
        self._resume_stream()
        self._drop_queue()
        if self._counted:
            self._counted = False
            self._server.request_ends()
        pending, self._current, self._last = self._current, None, None
        if pending is not None:
            self._server.request_ends()
            pending.disconnect()
            self._log_access(pending, STATUS_LEFT, 0, None, LEFT)
        if self._streaming is not None:
            self._streaming.cancel()

    def eof_received(self) -> None:
        """A client that closes its sending side has left, for TorchServe as for us: the transport closes."""
        self._server.outbox.flush(self._transport)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._unwritten = -1

    def resume_writing(self) -> None:
        self._resume_stream()
        if self._read_ended:
            self._give_up_at = self._loop.time() + _LINGER_S
        if self._closes_when_written:
            self._close(self._loop.time())
        else:
            self._handle_next()

    def _resume_stream(self) -> None:
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._read_ended:
            return
        had_head = self._reader.in_head
        self._reader.feed(data)
        self._after_reading(had_head)

    def _after_reading(self, had_head: bool) -> None:
        reader = self._reader
        if reader.stopped:
            return
        if reader.refusal is not None:
            self._refuse(reader.refusal)
            return
        # A head must arrive whole in its time; a body may take any time as long as it keeps arriving.
        if reader.in_body:
            self._give_up_at = self._loop.time() + self._server.timeouts.body_s
        elif reader.in_head and not had_head:
            self._give_up_at = self._loop.time() + self._server.timeouts.head_s

    def _queue_is_full(self) -> bool:
        return len(self._queue) > _PIPELINED or self._queued_bytes > _PIPELINED_BYTES

    def _pause_reading(self) -> None:
        """Stop reading until there is room in the queue."""
        self.reading_paused = self._reader.paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        """First read what has arrived already, which may fill the queue again."""
        self.reading_paused = self._reader.paused = False
        had_head = self._reader.in_head
        self._reader.resume()
        self._after_reading(had_head)
        if not self.reading_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def descriptor(self) -> int:
        return int(self._transport.get_extra_info("socket").fileno())

    def closed_by_client(self) -> None:
        """The client has closed the connection beyond what was read: read to the end and drop it."""
        self._stop_reading()
        self._transport.resume_reading()

    def is_idle(self, now: float) -> bool:
        busy = self._current is not None or len(self._queue) > 0 or self._reader.in_head or self._reader.in_body
        return not busy and not self._read_ended and not self._write_paused and now >= self.since + _SETTLED_S

    def abort(self) -> None:
        self._transport.abort()

    def reject(self, linger: bool) -> None:
        """Refuse the client: there are too many. `linger`: keep the connection until it has read the response."""
        response = torchserve_error(503, "ServiceUnavailableException", "this proxy has too many connections")
        self._refuse(with_header(response, "Retry-After", "1"))
        if not linger:
            self._close(self._loop.time())
            self._give_up_at = self._loop.time() + _LINGER_S

    def check_timeouts(self, now: float) -> None:
        """Close the connection if the client has taken too long."""
        if self._write_paused:
            self._check_write_timeout(now)
            return
        reading = not self._read_ended and (self._reader.in_head or self._reader.in_body)
        answering = (self._current is not None or len(self._queue) > 0) and not reading
        if now < self._give_up_at or answering or self.reading_paused:  # then it is the proxy that does not read
            return
        if not reading:
            self._close_or_abort(now)
        else:
            self._refuse(torchserve_error(408, "RequestTimeoutException", "the request did not arrive in time"))

    def _check_write_timeout(self, now: float) -> None:
        """A client may read its response slowly, as long as it reads something."""
        unwritten = self._transport.get_write_buffer_size()
        if unwritten != self._unwritten:
            self._unwritten = unwritten
            self._give_up_at = now + self._server.timeouts.body_s
        elif now >= self._give_up_at:
            self._transport.abort()

    def _close_or_abort(self, now: float) -> None:
        if self._transport.is_closing():  # closed, but the client has not read everything, or not said TLS's goodbye
            self._transport.abort()
        else:
            self._close(now)

    def _close(self, now: float) -> None:
        self._give_up_at = now + _CLOSE_TIMEOUT_S
        self._server.outbox.flush(self._transport)
        self._transport.close()

    @property
    def has_unwritten(self) -> bool:
        return self._current is None and self._transport.get_write_buffer_size() > 0

    def cut(self) -> asyncio.Task[None] | None:
        """-> the task to wait for, if a stream was being written."""
        self._server.outbox.flush(self._transport)
        self._transport.abort()
        streaming = self._streaming
        self.connection_lost(None)
        return streaming

    # ---- the reader's side -----------------------------------------------------------------------------------------

    def on_begin(self) -> None:
        self._server.request_begins()
        self._counted = True

    def on_expect_continue(self) -> None:
        if self._current is None and not self._queue:  # otherwise when the requests before it are answered
            self._send_continue()

    def on_request(self, request: Request, size: int, keep_alive: bool, http10: bool) -> None:
        self._counted = False
        self._enqueue(PendingResponse(self, request, keep_alive, http10, size))
        if self._queue and not self.reading_paused and self._queue_is_full():
            self._pause_reading()

    def _send_continue(self) -> None:
        """Ask the client for its body (curl waits for this with large ones), now that the body will be read."""
        self._reader.expects = False
        self._write_now(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, response: Response) -> None:
        """Queue the last response on this connection, after those to earlier requests."""
        self._stop_reading()
        if not self._counted:
            self._server.request_begins()
        self._counted = False
        if response.body:  # TorchServe's own refusals without a body have no id either
            response = with_request_id(response, self._reader.request_id)
        self._enqueue(PendingResponse(self, _NO_REQUEST, False, False, 0, response))

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _drop_queue(self) -> None:
        for pending in self._queue:
            self._server.request_ends()
            self._log_access(pending, STATUS_LEFT, 0, None, LEFT)
        self._queue.clear()
        self._queued_bytes = 0

    def _enqueue(self, pending: PendingResponse) -> None:
        if self._server.access is not None:
            pending.received_at = self._loop.time()
        self._queue.append(pending)
        self._queued_bytes += pending.size
        if self._current is None:
            self._handle_next()

    def _handle_next(self) -> None:
        """Handle the next request once the previous one is answered and the client reads what was written."""
        if self._handling:  # called again by a response that came at once
            return
        self._handling = True
        try:
            while self._current is None and self._queue and not self._write_paused:
                self._current = pending = self._queue.popleft()
                self._queued_bytes -= pending.size
                self._handle(pending)
        finally:
            self._handling = False
        if self.reading_paused and not self._queue_is_full() and not self._transport.is_closing():
            self._resume_reading()

    def _handle(self, pending: PendingResponse) -> None:
        if pending.refusal is not None:
            pending.respond(pending.refusal)
            return
        try:
            self._server.handle(pending.request, pending)
        except Exception:
            log.exception("a request could not be answered: %s %s", pending.request.method, pending.request.path)
            response = torchserve_error(500, "InternalServerException", "internal error of the proxy")
            pending.respond(with_request_id(response, pending.request.header(REQUEST_ID)))

    def send_response(self, pending: PendingResponse, response: AnyResponse) -> None:
        """Write the response to the current request. `PendingResponse.respond` calls this once for each."""
        if isinstance(response, StreamedResponse):
            self._streaming = self._loop.create_task(self._write_stream(response, pending))
            # A task that is cancelled before it starts runs no code at all, so the callback closes the stream.
            self._streaming.add_done_callback(lambda _: response.chunks.close())
        else:
            self._response_written(self._write(response, pending))

    def _response_written(self, keep_alive: bool) -> None:
        """The response to the current request is written."""
        self._current = None
        self._server.request_ends()
        if not keep_alive:
            self._drop_queue()
            self._close_gracefully()
            return
        self.since = self._loop.time()
        self._give_up_at = self.since + self._server.timeouts.idle_s
        if self._queue:
            self._handle_next()
        elif self._reader.expects:
            self._send_continue()

    def _keeps_alive(self, pending: PendingResponse) -> bool:
        """Requests read before a drain are answered; the response to the last one closes the connection."""
        if not self._server.draining or not pending.keep_alive:
            return pending.keep_alive
        if self._last is None:
            self._last = self._queue[-1] if self._queue else pending
        return pending is not self._last

    def _write(self, response: Response, pending: PendingResponse) -> bool:
        """-> whether the connection stays open."""
        if self._transport.is_closing():
            self._log_access(pending, STATUS_LEFT, 0, None, LEFT)
            return False
        keep_alive = self._keeps_alive(pending)
        status, phrase, headers, body, block = (
            response.status,
            response.phrase,
            response.headers,
            response.body,
            response.block,
        )
        if block is not None and keep_alive and not pending.http10:
            data = b"HTTP/1.1 %d %b\r\n%b\r\n\r\n" % (status, phrase.encode("latin-1"), block)
        else:
            bodiless = status in BODILESS or status < 200
            if not bodiless and pending.request.method != "HEAD" and not has(headers, LENGTH):
                headers = (*headers, ("content-length", str(len(body))))
            data = encode_head(_status_line(status, phrase), headers, _connection(keep_alive, pending.http10))
            if bodiless:
                body = b""
        if pending.request.method == "HEAD":
            body = b""
        if len(body) < MAX_HEAD_BYTES:
            self._server.outbox.put(self._transport, data + body)
        else:
            self._write_now(data)
            self._transport.write(body)
        if self._server.access is not None:
            self._log_access(
                pending, status, len(body), header(headers, REQUEST_ID), ERROR if pending.refusal is None else REFUSED
            )
        return keep_alive

    def _log_access(
        self, pending: PendingResponse, status: int, body_bytes: int, answer_id: str | None, otherwise: str
    ) -> None:
        """Add the request to the access log. `otherwise`: the outcome if the handler has set none."""
        access = self._server.access
        if access is None:
            return
        name = self._transport.get_extra_info("peername")
        client = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        request, entry = pending.request, pending.entry
        if entry is None:
            entry = AccessEntry(otherwise)
        elif entry is UNLOGGED:
            return
        elif otherwise == LEFT:
            entry.outcome = LEFT
        trace = trace_context(request.headers)
        access.add(
            client,
            request.method,
            request.target,
            status,
            body_bytes,
            self._loop.time() - pending.received_at,
            request.header(REQUEST_ID),
            answer_id,
            None if trace is None else trace.trace_id,
            entry,
        )

    async def _write_stream(self, streamed: StreamedResponse, pending: PendingResponse) -> None:
        keep_alive, status = False, streamed.chunks.status
        try:
            keep_alive = await self._write_chunks(streamed, pending)
        except BrokenStream as error:
            # The status is sent; ending without the last chunk is the only way left to show that it broke off.
            log.info("%s", error)
            self._transport.abort()
        finally:
            self._streaming = None
            streamed.chunks.close()
            if self._current is pending:  # otherwise the client has left
                self._log_access(pending, status, self._streamed_bytes, header(streamed.headers, REQUEST_ID), ERROR)
                self._response_written(keep_alive)

    async def _write_chunks(self, streamed: StreamedResponse, pending: PendingResponse) -> bool:
        chunks = streamed.chunks
        keep_alive = self._keeps_alive(pending) and not pending.http10
        headers: Headers = tuple(pair for pair in streamed.headers if pair[0].lower() != "content-length")
        if not pending.http10:
            headers = (*headers, ("Transfer-Encoding", "chunked"))
        line = _status_line(chunks.status, chunks.phrase)
        self._write_now(encode_head(line, headers, _connection(keep_alive, pending.http10)))
        is_head = pending.request.method == "HEAD"
        self._streamed_bytes = 0
        async for chunk in chunks:
            if chunk and not is_head:
                self._streamed_bytes += len(chunk)
                self._write_now(chunk if pending.http10 else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if self._write_paused:
                    self._writable = self._loop.create_future()
                    await self._writable
        if not pending.http10 and not is_head:
            self._write_now(b"0\r\n\r\n")
        return keep_alive

    def _write_now(self, data: bytes) -> None:
        """Write now. A connection that was reset is closing before `connection_lost` is called, and takes nothing."""
        self._server.outbox.flush(self._transport)
        if not self._transport.is_closing():
            self._transport.write(data)

    def _close_gracefully(self) -> None:
        """Close, but let the client read everything written to it first."""
        may_be_sending = self._read_ended or self._server.draining
        self._stop_reading()
        self._server.outbox.flush(self._transport)
        if self._transport.is_closing():
            return
        self._give_up_at = self._loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        elif may_be_sending:
            # TLS closes both directions at once, and data that arrived later would reset the connection. The last
            # response has told the client that the connection closes, so the client will close it.
            self._transport.resume_reading()
        elif not self._write_paused:
            self._close(self._loop.time())
        else:
            self._give_up_at = self._loop.time() + self._server.timeouts.idle_s
            self._closes_when_written = True


def cannot_listen(host: str, port: int, error: OSError, flag: str = "--port") -> StartError:
    """`flag`: where the port was given, or would have been."""
    if isinstance(error, socket.gaierror):
        why = f"no address is known by the name {host!r}"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this machine has no such address; give one of its own, or 0.0.0.0 for all"
    else:
        why = f"{_NOT_LISTENING.get(error.errno or 0) or error.strerror or error}; choose another port ({flag})"
    return StartError(f"cannot listen on {host}:{port}: {why}")


def _status_line(status: int, phrase: str) -> str:
    return f"HTTP/1.1 {status} {phrase}"


def _connection(keep_alive: bool, http10: bool) -> Headers:
    if not keep_alive:
        return (("Connection", "close"),)
    return (("Connection", "keep-alive"),) if http10 else ()
