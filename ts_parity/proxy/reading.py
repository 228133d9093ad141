"""A client's bytes in, requests out, or the reason why there will be none.

`heads` reads what is plain, httptools the rest (llhttp, strict: conflicting lengths, bare line feeds and folded headers
are refused; what it would still let pass and another reader might take otherwise is refused here). Knows bytes and
limits; knows nothing of sockets, time, or what becomes of a request.
"""

from __future__ import annotations

from typing import Protocol, final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ts_parity.proxy.heads import PlainRequest, read_request
from ts_parity.proxy.messages import (
    EXPECT,
    HOP,
    LENGTH,
    MAX_HEAD_BYTES,
    NAMES_OTHERS,
    REQUEST_ID,
    Reply,
    Request,
    head,
    header,
    meaning,
    split_controls,
    too_large,
    torchserve_error,
    without_hop_by_hop,
)


class Taker(Protocol):
    """Whoever wants the requests. Each that begins is told of whole later, or the reader is refused or let go."""

    def begins(self) -> None: ...
    def waits(self) -> None:
        """The client says that it waits for a word before it sends its body; it may send it all the same."""

    def asks(self, request: Request, keep: bool, old: bool) -> None:
        """`keep`: the connection may go on after it. `old`: HTTP/1.0, no chunks and no interim answers."""


@final
class RequestReader:
    """`feed` it. When `refusal` is set, nothing more can be read: that is the last answer on this connection."""

    def __init__(self, taker: Taker, max_body_bytes: int) -> None:
        self._taker = taker
        self._max_body_bytes = max_body_bytes
        self._parser = HttpRequestParser(self)
        self._plain: PlainRequest | None = None
        """The head of a request whose body is still coming, if it was read without the parser."""
        self._clean = True
        """The parser is not in the middle of anything."""
        self._changing = False
        """A second parser is told of a head that is known already."""
        self._unfinished = 0
        self.in_head = False
        self.in_body = False
        self.stopped = False
        """Set by the taker: nothing more is wanted."""
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._pieces: list[bytes] = []
        self._head_bytes = self._body_bytes = 0
        self.refusal: Reply | None = None
        self.expects = False
        """The client waits for a word before it sends its body."""
        self._method, self._keep, self._old = "", False, False

    @property
    def request_id(self) -> str | None:
        """Of the request that is being read, or was refused."""
        headers = tuple(self._headers) if self._plain is None else self._plain.headers
        return header(headers, REQUEST_ID)

    def feed(self, data: bytes) -> None:
        if self._plain is not None:
            self._take_body(self._plain, data)
        elif self._clean:
            self._take(data, 0)
        else:
            self._parse(data)

    # ---- without the parser ----------------------------------------------------------------------------------------

    def _take(self, data: bytes, at: int) -> None:
        """Requests of the plain shape; from the first other one on it is the parser's."""
        size = len(data)
        while at < size and not self.stopped:
            plain = read_request(data, at)
            if plain is None or plain.length > self._max_body_bytes:
                self._parse(data[at:] if at else data)
                return
            self._taker.begins()
            end = plain.end + plain.length
            if end > size:
                self._plain, self.in_body = plain, True
                self._body_bytes = size - plain.end
                self._pieces.append(data[plain.end :])
                return
            self._asks(plain, data[plain.end : end])
            at = end

    def _take_body(self, plain: PlainRequest, data: bytes) -> None:
        missing = plain.length - self._body_bytes
        self._body_bytes += len(data)
        if len(data) < missing:
            self._pieces.append(data)
            return
        self._pieces.append(data if len(data) == missing else data[:missing])
        body = b"".join(self._pieces)
        self._plain, self.in_body = None, False
        self._pieces = []
        self._asks(plain, body)
        if len(data) > missing:
            self._take(data, missing)

    def _asks(self, plain: PlainRequest, body: bytes) -> None:
        request = Request(plain.method, plain.target, plain.headers, body, plain.block, plain.controls)
        self._taker.asks(request, plain.keep, False)

    # ---- with it ---------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        had_begun, had_body = self.in_head, self._body_bytes
        received = len(data)
        self._clean = False
        try:
            while data and not self._deaf():
                data = self._feed_parser(data)
        except HttpParserError as error:
            self.refusal = _not_http(str(error))
        # A header (or a trailer) without an end is not told of: the parser gathers it.
        stuck = (self.in_head and had_begun) or (self.in_body and self._body_bytes == had_body)
        self._unfinished = self._unfinished + received if stuck else 0
        if self._unfinished > MAX_HEAD_BYTES and self.refusal is None:
            self.refusal = _long_head()
        # Line breaks before a request say nothing, so between two of them the parser remembers nothing.
        self._clean = self.refusal is None and not self.in_head and not self.in_body

    def _feed_parser(self, data: bytes) -> bytes:
        """-> what is still to be fed."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # Nobody here speaks another protocol: the request is answered as if it had not asked. The parser has left
            # it at the end of its head; another one goes on with the body.
            self._parser = HttpRequestParser(self)
            if not self._deaf():
                self._changing = True
                self._parser.feed_data(_framing_only(self._headers))
                self._changing = False
            return data[upgrade.args[0] :]
        return b""

    # The parser's calls. At the end they fall on deaf ears, for it may have gone on to the next request.

    def _deaf(self) -> bool:
        return self.stopped or self.refusal is not None

    def on_message_begin(self) -> None:
        if not self._deaf() and not self._changing:
            self._reset()
            self.in_head = True

    def on_url(self, url: bytes) -> None:
        if not self._deaf() and not self._changing:
            self._target += url
            self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._deaf() or self._changing:
            return
        self._head_bytes += len(name) + len(value)
        if not self.in_body:
            # Latin-1 gives every byte back as it was, as TorchServe reads it too.
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        elif self._head_bytes > MAX_HEAD_BYTES:  # trailers are no headers, and go nowhere
            self.refusal = _long_head()

    def on_headers_complete(self) -> None:
        if self._deaf() or self._changing:
            return
        self.in_head, self.in_body = False, True
        self._taker.begins()
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
            self.refusal = _long_head()
        elif version not in ("1.0", "1.1"):
            self.refusal = _not_http(f"version {version}")
        elif codings and (codings != ["chunked"] or self._old):
            self.refusal = _not_http(f"a body in the transfer encoding {', '.join(codings)}")
        elif length > self._max_body_bytes:
            self.refusal = too_large()
        elif expects and not self._old:
            if expects == "100-continue":
                self.expects = True
                self._taker.waits()
            else:
                self.refusal = Reply(417, "Expectation Failed", (("content-length", "0"),), b"")

    def on_body(self, piece: bytes) -> None:
        if self._deaf():
            return
        self.expects = False
        self._body_bytes += len(piece)
        if self._body_bytes > self._max_body_bytes:
            self.refusal = too_large()
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._deaf() or (self._parser.should_upgrade() and not self._changing):
            return
        self.in_body = False
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        headers, controls = split_controls(without_hop_by_hop(tuple(self._headers)))
        request = Request(self._method, self._target.decode("latin-1"), headers, body, None, controls)
        keep, old = self._keep, self._old
        self._reset()
        self._taker.asks(request, keep, old)


def _framing_only(headers: list[tuple[str, str]]) -> bytes:
    """A head that says nothing but how its body is framed."""
    framing = [pair for pair in headers if meaning(pair[0]) & LENGTH or pair[0].lower() == "transfer-encoding"]
    return head("POST / HTTP/1.1", tuple(framing))


def _not_http(what: str) -> Reply:
    return torchserve_error(400, "BadRequestException", f"not HTTP as it should be: {what}")


def _long_head() -> Reply:
    return torchserve_error(431, "BadRequestException", f"headers of over {MAX_HEAD_BYTES} bytes")
