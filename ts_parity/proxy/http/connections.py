"""Connections to the instances: kept open and reused, with one exchange at a time on each.

Knows sockets and HTTP's framing: `heads` reads heads of the common shape, httptools the rest. Knows nothing of what a
request asks or what a response means.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from typing import Protocol, cast, final
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ts_parity.config import UNIX
from ts_parity.proxy.http.buffers import BodyBuffer
from ts_parity.proxy.http.certificates import Tls
from ts_parity.proxy.http.heads import ResponseHead, read_response_head
from ts_parity.proxy.http.messages import (
    BODILESS,
    HOP,
    LENGTH,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Response,
    header_flags,
    split_controls,
    without_hop_by_hop,
)
from ts_parity.proxy.http.outbox import Outbox
from ts_parity.proxy.http.streams import Stream
from ts_parity.wire import Headers

_BACKLOG_PAUSE_S = 0.01
# No file descriptor is left, in this process or in the system. The instance is not to blame, and one is free soon.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_NO_DESCRIPTOR_PAUSE_S = 0.05
_STREAMS = "ts_stream_next"
"""TorchServe's header on what a handler streams."""
_GATHERED_BYTES = 65536
_STREAMED = ("text/event-stream", "application/x-ndjson", "application/jsonl", "multipart/")


class ResponseListener(Protocol):
    """Waits for the response to one request. Exactly one of the two methods is called, once."""

    def arrived(self, response: Response | Stream) -> None: ...
    def lost(self, reason: str, untouched: bool) -> None:
        """`untouched`: the connection was closed before the first byte of a response."""


@final
class Origin:
    """One API of one instance: its address and its idle connections."""

    def __init__(self, url: str, outbox: Outbox, connect_timeout_s: float, tls: Tls | None = None) -> None:
        """`url`: as the configuration has checked it; `tls` is needed for every https one."""
        parts = urlsplit("http://localhost" if url.startswith(UNIX) else url)
        if parts.scheme == "https" and tls is None:
            raise ValueError(f"there are no TLS settings for {url}")
        self.prefix = parts.path.rstrip("/")
        self.host_header = parts.netloc.rpartition("@")[2]
        self._path = url.removeprefix(UNIX) if url.startswith(UNIX) else ""
        self._host = parts.hostname or ""
        self._tls = tls
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._connect_timeout_s = connect_timeout_s
        self.outbox = outbox
        self.in_flight = 0
        self.closed = False
        """Nothing more is sent there."""
        self.idle: list[UpstreamConnection] = []
        """The last one used is at the end, so those that are not needed grow old until the instance closes them."""

    async def connection(self) -> UpstreamConnection:
        """Open a new one. Raise OSError (ssl.SSLError is one) or asyncio.TimeoutError."""
        made = UpstreamConnection(self)
        await asyncio.wait_for(self._connect_when_possible(made), self._connect_timeout_s)
        return made

    async def _connect_when_possible(self, made: UpstreamConnection) -> None:
        while True:
            try:
                await self._connect(made)
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
            await asyncio.sleep(_NO_DESCRIPTOR_PAUSE_S)

    async def _connect(self, made: UpstreamConnection) -> None:
        loop = asyncio.get_running_loop()
        if self._path:
            connected = await _connect_unix(self._path)
            await loop.create_unix_connection(lambda: cast(asyncio.Protocol, made), sock=connected)
        else:
            tls, name = (self._tls.context, self._tls.name) if self._tls is not None else (None, None)
            await loop.create_connection(
                lambda: cast(asyncio.Protocol, made), self._host, self._port, ssl=tls, server_hostname=name
            )

    def close(self) -> None:
        self.closed = True
        for connection in [*self.idle]:
            connection.abort()


async def _connect_unix(path: str) -> socket.socket:
    """Connect a Unix socket. The loop's own method will not do: a full backlog refuses at once, where TCP would wait,
    and asyncio takes that for a connection.
    """
    connecting = socket.socket(socket.AF_UNIX)
    try:
        connecting.setblocking(False)
        while True:
            try:
                connecting.connect(path)
                return connecting
            except BlockingIOError:
                await asyncio.sleep(_BACKLOG_PAUSE_S)
    except BaseException:
        connecting.close()
        raise


@final
class UpstreamConnection:
    """One connection, an asyncio protocol in all but name. `send` a request; its listener gets the response, or a
    stream as soon as a chunked response begins.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._transport = cast(asyncio.Transport, None)
        self._parser: HttpResponseParser | None = None
        """Created when needed: most responses are read without it."""
        self._listener: ResponseListener | None = None
        self._stream: Stream | None = None
        self._head: ResponseHead | None = None
        """The head of a response whose body is still arriving, if it was read without the parser."""
        self._for_head = False
        self._max_bytes = math.inf
        self._whole = False
        self._open = False
        self._paused = False
        self._unsolicited = False
        """A response has begun that no request asked for: the next request could get it, so the connection must go."""
        self._ended: tuple[Response | None, bool] | None = None
        """The response has ended: the response (None: it was a stream), and whether the connection can be kept."""
        self._body = BodyBuffer()
        self._reset()

    def _reset(self) -> None:
        self._phrase = b""
        self._headers: list[tuple[str, str]] = []
        self._body.drop()
        self._received = 0
        self._status = 0
        self._until_close = False
        self._gathers = False
        """A chunked error that no handler streams: a gateway's page, collected whole unless it is long."""
        self._gathered = 0
        self._unfinished = 0
        """Bytes since the last piece of the body: the parser would silently collect an endless trailer."""
        self._framing_error = ""
        """Why the end of the response cannot be found."""

    def send(
        self,
        data: list[bytes],
        for_head: bool,
        listener: ResponseListener,
        max_bytes: float = math.inf,
        whole: bool = False,
    ) -> None:
        """Only when nobody is listening. `max_bytes`: of a response, head and all; a longer one counts as none.
        `whole`: a chunked response is gathered, as far as it is short and does not say that it is a stream.
        """
        if self._received:
            self._reset()
        self._for_head = for_head
        self._max_bytes = max_bytes
        self._whole = whole
        self._listener = listener
        outbox = self._origin.outbox
        if len(data) == 1:
            outbox.put(self._transport, data[0])
            return
        outbox.flush(self._transport)
        for part in data:
            self._transport.write(part)

    @property
    def closing(self) -> bool:
        """It was reset or closed, even if `connection_lost` has yet to be called."""
        return not self._open or self._transport.is_closing()

    def abort(self) -> None:
        """Close it and call no listener. What still arrives could not be matched to a request."""
        self._listener = None
        self._open = False
        if self in self._origin.idle:  # at once, or it could be taken before the loop has closed it
            self._origin.idle.remove(self)
        self._transport.abort()

    def pause(self) -> None:
        if self._open and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._open and self._paused:
            self._paused = False
            self._transport.resume_reading()

    # ---- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open = True

    def data_received(self, data: bytes) -> None:
        if self._listener is None and self._stream is None:
            self.abort()  # no request was sent
            return
        fresh = not self._received
        self._received += len(data)
        if self._received > self._max_bytes:
            self._fail(f"its answer is over {self._max_bytes:.0f} bytes")
        elif self._head is not None:
            self._body.add(data)
            if self._received >= self._head.end + self._head.length:
                self._complete_response(self._head, self._body.take())
        elif fresh and not self._for_head and (head := read_response_head(data)) is not None:
            if self._received >= head.end + head.length:
                self._complete_response(head, data)
            else:
                self._body.add(data)
                self._head = head
        else:
            self._parse(data)

    def _complete_response(self, head: ResponseHead, data: bytes) -> None:
        end = head.end + head.length
        self._head = None
        body = data[head.end : end]
        response = Response(head.status, head.phrase, head.headers, body, head.block, head.controls)
        # Bytes after the end belong to no request: they are dropped, and so is the connection.
        self._complete(response, keep_alive=head.keep_alive and self._received == end)

    def _parse(self, data: bytes) -> None:
        """Call the listener only when the parser is done: it may send on this very connection."""
        trouble = ""
        if self._parser is None:
            self._parser = HttpResponseParser(self)
        self._unfinished += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            trouble = f"its answer is not HTTP: {error}"
        except HttpParserUpgrade:
            trouble = "it changes the protocol, which nobody asked for"
        if self._framing_error:
            self._fail(self._framing_error)
            return
        if self._stream is not None and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.arrived(self._stream)
        if self._ended is not None:
            (response, keep_alive), self._ended = self._ended, None
            self._complete(response, keep_alive and not trouble and not self._unsolicited)
        elif trouble:
            self._fail(trouble)
        elif self._unsolicited:
            self.abort()
        elif not self._status and self._received > MAX_HEAD_BYTES:
            self._fail(f"its headers are over {MAX_HEAD_BYTES} bytes")
        elif self._status and self._unfinished > MAX_HEAD_BYTES:
            self._fail(f"it says over {MAX_HEAD_BYTES} bytes between two pieces of its body, or behind it")

    def eof_received(self) -> None:
        """The transport closes itself and then calls `connection_lost`."""

    def pause_writing(self) -> None:
        """A request waits whole in the transport; there is nothing else to hold back."""

    def resume_writing(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        if self in self._origin.idle:
            self._origin.idle.remove(self)
        if self._until_close and error is None:
            self._complete(self._response(), keep_alive=False)
        self._fail(str(error) or type(error).__name__ if error is not None else "it closed the connection")
        # Parser and connection refer to each other, and would live until the garbage collector runs.
        self._parser = None
        self._reset()

    def _fail(self, reason: str) -> None:
        listener, stream = self._listener, self._stream
        self._listener = self._stream = None
        self.abort()
        if listener is not None:
            listener.lost(reason, untouched=not self._received)
        if stream is not None:
            stream.end(reason)

    # ---- the parser's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._unsolicited = self._unsolicited or self._ended is not None

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # trailers are dropped
        if len(self._headers) < MAX_HEADERS:
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        else:
            self._framing_error = f"it has over {MAX_HEADERS} headers"

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()
        if self._status < 200 or self._unsolicited:
            return
        if self._for_head:
            # A response to HEAD has no body; the parser would wait for one.
            self._ended = (self._response(), False)
            return
        sized, codings = False, []
        for name, value in self._headers:
            flags = header_flags(name)
            if flags & LENGTH:
                sized = True
            elif flags & HOP and name.lower() == "transfer-encoding":
                codings.append(value.strip(" ").lower())
        bodiless = self._status in BODILESS
        if codings and codings != ["chunked"]:
            self._framing_error = f"its body has the transfer encoding {', '.join(codings)}"
        elif codings and not bodiless:
            if (self._status < 300 and not self._whole) or self._says_it_streams():
                self._begin_stream()
            else:
                self._gathers = True
        else:
            self._until_close = not sized and not bodiless

    def _says_it_streams(self) -> bool:
        """By TorchServe's header, or by its type, which `_whole` looks at too."""
        for name, value in self._headers:
            lower = name.lower()
            if lower == _STREAMS or (self._whole and lower == "content-type" and value.lower().startswith(_STREAMED)):
                return True
        return False

    def on_body(self, piece: bytes) -> None:
        if self._ended is not None:
            return  # of an unsolicited response
        self._unfinished = 0
        if self._stream is not None:
            self._stream.feed(piece)
            return
        self._body.add(piece)
        if self._gathers:
            self._gathered += len(piece)
            if self._gathered > _GATHERED_BYTES:
                self._begin_stream()

    def _begin_stream(self) -> None:
        headers, controls = self._end_to_end()
        stream = Stream(self._status, self._phrase.decode("latin-1"), headers, self, controls)
        if self._gathered:
            stream.feed(self._body.take())
        self._stream = stream

    def on_message_complete(self) -> None:
        if self._ended is not None:
            return
        if self._status < 200:  # an interim response; the final one follows
            received = self._received
            self._reset()
            self._received = received
            return
        assert self._parser is not None
        self._ended = (None if self._stream is not None else self._response(), self._parser.should_keep_alive())

    def _end_to_end(self) -> tuple[Headers, Headers]:
        return split_controls(without_hop_by_hop(tuple(self._headers)))

    def _response(self) -> Response:
        body = self._body.take()
        headers, controls = self._end_to_end()
        return Response(self._status, self._phrase.decode("latin-1"), headers, body, None, controls)

    def _complete(self, response: Response | None, keep_alive: bool) -> None:
        """`response`: None at the end of a stream."""
        listener, stream = self._listener, self._stream
        self._listener = self._stream = None
        self._body.drop()
        self._until_close = False
        if self._paused:
            self.resume()
        # Some servers reset it behind such an answer without saying so.
        if response is not None and response.status >= 500:
            keep_alive = False
        # Make the connection idle first: the listener may send the next request at once.
        if keep_alive and self._open and not self._origin.closed:
            self._origin.idle.append(self)
        else:
            self._open = False
            self._transport.close()
        if listener is not None and response is not None:
            listener.arrived(response)
        if stream is not None:
            stream.end()
