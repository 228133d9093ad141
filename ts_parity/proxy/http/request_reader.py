"""Parses a client's bytes into requests, or into the response that refuses them.

`heads` reads heads of the common shape; httptools (llhttp) reads the rest. llhttp is strict: it refuses conflicting
lengths, bare line feeds and folded headers. What it accepts but another parser could read differently is refused here
and in `request_line`, so that no request can be smuggled past a proxy. Knows bytes and limits. Knows nothing of
sockets, of time, or of what a request asks for.
"""

from __future__ import annotations

import re
from typing import Final, Protocol, final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ts_parity.proxy.http.buffers import BodyBuffer
from ts_parity.proxy.http.heads import RequestHead, read_request_head
from ts_parity.proxy.http.messages import (
    CONNECTION_OPTIONS,
    EXPECT,
    HOP,
    HOST,
    LENGTH,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    REQUEST_ID,
    Request,
    Response,
    encode_head,
    header,
    header_flags,
    split_controls,
    too_large,
    torchserve_error,
    without_hop_by_hop,
)
from ts_parity.proxy.http.request_line import REFUSED_METHODS, why_malformed

# llhttp accepts RTSP and ICE as well, without saying so.
_REQUEST_LINE: Final = re.compile(rb"[!-~]+ +([!-~\x80-\xff]+) +HTTP/[^\n]*\n")
_LINE_BREAKS: Final = re.compile(rb"[\r\n]+")
_BEYOND_ASCII: Final = bytes(byte if byte < 0x80 else ord("x") for byte in range(256))

_HEADER_BYTES: Final = 160
"""What a header takes besides its own bytes: a pair and two strings."""
_OVERHEAD_BYTES: Final = 65536
"""Up to this size chunk headers may exceed the body; beyond it, reading would cost far more than what is read."""


class RequestListener(Protocol):
    """Gets the requests. After `on_begin` comes `on_request`, unless the request is refused or the reader dropped."""

    def on_begin(self) -> None: ...
    def on_expect_continue(self) -> None:
        """The client waits for "100 Continue" before it sends its body; it may send it all the same."""

    def on_request(self, request: Request, size: int, keep_alive: bool, http10: bool) -> None:
        """`size`: about what it takes in memory. `keep_alive`: the connection may go on after it. `http10`: it is
        HTTP/1.0, which knows no chunks and no interim responses.
        """


@final
class _NoListener:
    """Replaces a listener that is gone, so that the reader does not keep it alive."""

    def on_begin(self) -> None: ...
    def on_expect_continue(self) -> None: ...
    def on_request(self, request: Request, size: int, keep_alive: bool, http10: bool) -> None: ...


_NO_LISTENER: Final = _NoListener()


@final
class RequestReader:
    """`feed` it bytes; it calls its listener. Once `refusal` is set nothing more is read: that is the last response on
    the connection. While the listener has set `paused`, the reader stops after the current request; the rest waits for
    `resume`. At the end, or when the client has left, `drop` what it holds.
    """

    def __init__(self, listener: RequestListener, max_body_bytes: int) -> None:
        self._listener = listener
        self._max_body_bytes = max_body_bytes
        self._parser: HttpRequestParser | None = None
        """Created when needed, which is never for most connections."""
        self._head: RequestHead | None = None
        """The head of a request whose body is still arriving, if it was read without the parser."""
        self._clean = True
        """The parser is between two requests."""
        self._replaying_head = False
        """A second parser is being fed a head that was parsed already."""
        self._unfinished = 0
        self._body = BodyBuffer()
        self._rest = b""
        self.paused = False
        self._line = b""
        """The request line, as it came."""
        self._in_line = False
        self.in_head = False
        self.in_body = False
        self.stopped = False
        """Nothing more is read; the listener has called `stop`."""
        self._reset()

    def _reset(self) -> None:
        self._target = ""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = self._length = self._body_bytes = self._overhead = 0
        self.refusal: Response | None = None
        self.expects = False
        """The client waits for "100 Continue" before it sends its body."""
        self._method, self._keep_alive, self._http10 = "", False, False

    @property
    def request_id(self) -> str | None:
        """The id of the request that is being read or was refused."""
        headers = tuple(self._headers) if self._head is None else self._head.headers
        return header(headers, REQUEST_ID)

    def feed(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data
        self.resume()

    def resume(self) -> None:
        data, self._rest = self._rest, b""
        at, size = 0, len(data)
        while at < size and not self._is_over():
            if self.paused:
                self._rest = data[at:]
                return
            if self._head is not None:
                at = self._take_body(self._head, data, at)
            elif self._clean:
                at = self._take_request(data, at)
            else:
                at = self._parse(data, at)

    def stop(self) -> None:
        """Read nothing more."""
        self.stopped = True
        self._rest = b""
        self._body.drop()

    def drop(self) -> None:
        """The same, and let go of the listener and the parser: a reference cycle would live until the garbage collector
        runs, which in an idle process is never.
        """
        self.stop()
        self._listener = _NO_LISTENER
        self._parser = self._head = None
        self._reset()

    # ---- without the parser ----------------------------------------------------------------------------------------

    # Each reads what it can from position `at` on, and returns the position of the rest.

    def _take_request(self, data: bytes, at: int) -> int:
        """Read a request whose head has the common shape; the parser reads any other."""
        head = read_request_head(data, at)
        if head is None or head.length > self._max_body_bytes:
            return self._parse(data, at)
        self._listener.on_begin()
        end = head.end + head.length
        self._head_bytes = head.end - at
        if end <= len(data):
            self._deliver(head, data[head.end : end])
            return end
        self._head, self.in_body = head, True
        self._body_bytes = len(data) - head.end
        self._body.add(data[head.end :])
        return len(data)

    def _take_body(self, head: RequestHead, data: bytes, at: int) -> int:
        end = at + head.length - self._body_bytes
        whole = end <= len(data)
        piece = data if at == 0 and end >= len(data) else data[at:end]
        self._body_bytes += len(piece)
        self._body.add(piece)
        if whole:
            self._head, self.in_body = None, False
            self._deliver(head, self._body.take())
        return at + len(piece)

    def _deliver(self, head: RequestHead, body: bytes) -> None:
        request = Request(head.method, head.target, head.headers, body, head.block, head.controls)
        size = self._head_bytes + len(body) + _HEADER_BYTES * len(head.headers)
        self._listener.on_request(request, size, head.keep_alive, False)

    # ---- with it ---------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes, at: int) -> int:
        end = self._next_stop(data, at)
        piece = data if at == 0 and end == len(data) else data[at:end]
        taken = len(piece)
        had_begun, was_in_body, had_body = self.in_head, self.in_body, self._body_bytes
        self._clean = False
        try:
            taken = self._feed_parser(self._with_line(piece))
        except HttpParserError as error:
            self.refusal = _not_http(str(error))
        # The parser silently collects a header or a trailer that does not end.
        stuck = (self.in_head and had_begun) or (self.in_body and self._body_bytes == had_body)
        self._unfinished = self._unfinished + taken if stuck else 0
        if self._unfinished > MAX_HEAD_BYTES and self.refusal is None:
            self.refusal = _long_head()
        if was_in_body and self.in_body and self.refusal is None:
            self._overhead += taken - (self._body_bytes - had_body)
            if self._overhead > max(_OVERHEAD_BYTES, self._body_bytes):
                self.refusal = _not_http("a body that is mostly chunk headers")
        # Line breaks before a request mean nothing, so between two requests the parser holds no state.
        self._clean = self.refusal is None and not self.in_head and not self.in_body
        return at + taken

    def _next_stop(self, data: bytes, at: int) -> int:
        """Where to cut the data. The parser cannot be paused, so it never gets the end of one request and the start of
        the next together: a body with a length ends there, everything else ends with an empty line.
        """
        if self.in_body and self._length:
            return min(len(data), at + self._length - self._body_bytes)
        breaks = _LINE_BREAKS.match(data, at)
        if breaks is not None:  # perhaps the second half of such an empty line
            return breaks.end()
        empty_line = data.find(b"\r\n\r\n", at)
        return len(data) if empty_line < 0 else empty_line + 4

    def _with_line(self, data: bytes) -> bytes:
        """Keep the request line if `data` is part of it. -> `data` as llhttp can read it, which, unlike TorchServe,
        refuses targets beyond ASCII.
        """
        if not self.in_head and not self.in_body and data[0] not in b"\r\n":
            self._line, self._in_line = b"", True
        if not self._in_line:
            return data
        end = data.find(b"\n") + 1
        part = data[:end] if end else data
        self._line += part
        self._in_line = not end
        return data if part.isascii() else part.translate(_BEYOND_ASCII) + data[len(part) :]

    def _feed_parser(self, data: bytes) -> int:
        """-> how many bytes were read."""
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # The proxy speaks no other protocol, so it ignores the request for one. The parser has stopped after the
            # head; a new one reads the body.
            self._parser = HttpRequestParser(self)
            if not self._is_over():
                self._replaying_head = True
                self._parser.feed_data(_framing_only(self._headers))
                self._replaying_head = False
            return int(upgrade.args[0])
        return len(data)

    # The parser's callbacks. They do nothing once reading is over: the parser may have gone on to the next request.

    def _is_over(self) -> bool:
        return self.stopped or self.refusal is not None

    def on_message_begin(self) -> None:
        if not self._is_over() and not self._replaying_head:
            self._reset()
            self.in_head = True

    def on_url(self, url: bytes) -> None:
        if not self._is_over() and not self._replaying_head:
            self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_over() or self._replaying_head:
            return
        self._head_bytes += len(name) + len(value)
        if not self.in_body:
            # Latin-1 keeps every byte as it was, and TorchServe reads headers the same way.
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
            if len(self._headers) > MAX_HEADERS:
                self.refusal = _many_headers()
        elif self._head_bytes > MAX_HEAD_BYTES:  # trailers are dropped
            self.refusal = _long_head()

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self._is_over() or self._replaying_head or parser is None:
            return
        self.in_head, self.in_body = False, True
        self._listener.on_begin()
        version = parser.get_http_version()
        self._method, self._http10 = parser.get_method().decode("latin-1"), version == "1.0"
        length, expects, hosts, codings, closes = 0, "", [], [], False
        line = _REQUEST_LINE.fullmatch(self._line)
        self._target = "" if line is None else line[1].decode("latin-1")  # as TorchServe reads it
        for name, value in self._headers:
            flags = header_flags(name)
            if flags & LENGTH:
                length = int(value)
            elif flags & HOST:
                hosts.append(value)
            elif flags & EXPECT:
                expects = value.strip().lower()
            elif flags & CONNECTION_OPTIONS:
                closes = closes or "close" in [token.strip().lower() for token in value.split(",")]
            elif flags & HOP and name.lower() == "transfer-encoding":
                codings.append(value.strip(" ").lower())
        self._keep_alive = parser.should_keep_alive() and not closes
        self._length = length
        if self._head_bytes > MAX_HEAD_BYTES:
            self.refusal = _long_head()
        elif line is None or version not in ("1.0", "1.1"):
            self.refusal = _not_http(f"the version in {self._line[-20:].strip().decode('latin-1')!r}")
        elif self._method in REFUSED_METHODS:
            self.refusal = _not_allowed()
        elif wrong := why_malformed(self._target, hosts, self._http10):
            self.refusal = _not_http(wrong)
        elif codings and (codings != ["chunked"] or self._http10):
            self.refusal = _not_http(f"a body in the transfer encoding {', '.join(codings)}")
        elif length > self._max_body_bytes:
            self.refusal = too_large()
        elif expects and not self._http10:
            if expects == "100-continue":
                self.expects = True
                self._listener.on_expect_continue()
            else:
                self.refusal = Response(417, "Expectation Failed", (("content-length", "0"),), b"")

    def on_body(self, piece: bytes) -> None:
        if self._is_over():
            return
        self.expects = False
        self._body_bytes += len(piece)
        if self._body_bytes > self._max_body_bytes:
            self.refusal = too_large()
        else:
            self._body.add(piece)

    def on_message_complete(self) -> None:
        parser = self._parser
        if self._is_over() or parser is None or (parser.should_upgrade() and not self._replaying_head):
            return
        self.in_body = False
        body = self._body.take()
        size = self._head_bytes + len(body) + _HEADER_BYTES * len(self._headers)
        headers, controls = split_controls(without_hop_by_hop(tuple(self._headers)))
        request = Request(self._method, self._target, headers, body, None, controls)
        keep_alive, http10 = self._keep_alive, self._http10
        self._reset()
        self._listener.on_request(request, size, keep_alive, http10)


def _framing_only(headers: list[tuple[str, str]]) -> bytes:
    """A head that only tells how its body is framed."""
    framing = [pair for pair in headers if header_flags(pair[0]) & LENGTH or pair[0].lower() == "transfer-encoding"]
    return encode_head("POST / HTTP/1.1", tuple(framing))


def _not_http(what: str) -> Response:
    return torchserve_error(400, "BadRequestException", f"not HTTP as it should be: {what}")


def _not_allowed() -> Response:
    text = "Requested method is not allowed, please refer to API document."
    return torchserve_error(405, "MethodNotAllowedException", text)


def _long_head() -> Response:
    return torchserve_error(431, "BadRequestException", f"headers of over {MAX_HEAD_BYTES} bytes")


def _many_headers() -> Response:
    return torchserve_error(431, "BadRequestException", f"over {MAX_HEADERS} headers")
