"""Requests and responses as values, and the header rules of a proxy that clients must not notice.

Which headers are stripped is decided here: hop-by-hop headers (`without_hop_by_hop`) and the control headers that only
proxy and worker may exchange (`split_controls`). Knows HTTP and the shape of TorchServe's errors. Knows nothing of
sockets, or of who sends what to whom.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Final, NamedTuple, Protocol, final

from ts_parity.errors import TsParityError, Unavailable, error_body
from ts_parity.wire import CONTROL_PREFIX, Headers

MAX_HEAD_BYTES: Final = 65536
"""Of a request line or status line and its headers."""
MAX_HEADERS: Final = 200
"""In one head. Each costs some 160 bytes besides its own, so a head of tiny headers would take twelve times its size.
Apache, Tomcat, Envoy and hyper accept 100; this leaves room for what a service mesh adds behind such a server.
"""
REQUEST_ID: Final = "x-request-id"
# RFC 9110, 7.6.1: these concern one connection and are not passed on. Nor are requests for another protocol, which
# can change where the receiver looks for the end of the message: Netty, under TorchServe, waits for eight bytes more
# behind a GET with Sec-WebSocket-Key1 and -Key2. `_header_flags` adds all that begins with SEC_WEBSOCKET.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
SEC_WEBSOCKET: Final = "sec-websocket-"
NO_BODY: Final = b"\r\ncontent-length: 0"
"""Of a request, behind its other headers; spelt as TorchServe's own frontend adds it for its handlers."""
BODILESS: Final = frozenset({204, 304})
"""Responses with these have no body, whatever their headers say (RFC 9112, 6.3)."""


# Flags: what a header's name can mean to a proxy.
HOP: Final = 1
CONNECTION_OPTIONS: Final = 2
CONTROL: Final = 4
LENGTH: Final = 8
EXPECT: Final = 16
HOST: Final = 32
AUTHORIZATION: Final = 64
_LONGEST_NAME: Final = 64
_MOST_NAMES: Final = 4096
_FLAGS_OF: Final[dict[str, int]] = {}


def header_flags(name: str) -> int:
    """The flags of a header's name in this spelling. The same few names come again and again, so they are cached."""
    flags = _FLAGS_OF.get(name)
    if flags is None:
        flags = _header_flags(name.lower())
        if len(name) <= _LONGEST_NAME:  # or a few clients could fill the memory
            if len(_FLAGS_OF) >= _MOST_NAMES:
                _FLAGS_OF.clear()
            _FLAGS_OF[name] = flags
    return flags


def _header_flags(name: str) -> int:
    named = {
        "connection": CONNECTION_OPTIONS, "content-length": LENGTH, "expect": EXPECT, "host": HOST,
        "authorization": AUTHORIZATION,
    }.get(name, 0)  # fmt: skip
    hop = name in HOP_BY_HOP or name.startswith(SEC_WEBSOCKET)
    return named | (HOP if hop else 0) | (CONTROL if name.startswith(CONTROL_PREFIX) else 0)


def has(headers: Iterable[tuple[str, str]], flags: int) -> bool:
    """Whether one of the headers has one of these flags."""
    for name, _ in headers:  # noqa: SIM110 - a generator would cost more than the loop
        if header_flags(name) & flags:
            return True
    return False


@final
class Request:
    """What a client sent, without hop-by-hop headers. `target` is path and query exactly as in the request line.
    Control headers, which are for the proxy, are in `controls` only. `block`, if any, holds the headers as bytes, ready
    to be sent on (with a Host and the right length); code that changes `headers` must drop it.
    """

    __slots__ = ("block", "body", "controls", "headers", "method", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        block: bytes | None = None,
        controls: Headers = (),
    ) -> None:
        self.controls = controls
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.block = block

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query_string(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        """The last value of this name (given in lower case), which is the one that TorchServe keeps."""
        return header(self.headers, name)


@final
class Response:
    """A whole response. TorchServe often sends an empty `phrase`. `controls` and `block` are as in a request: headers
    from the worker for the proxy, and the headers as bytes, with the length.
    """

    __slots__ = ("block", "body", "controls", "headers", "phrase", "status")

    def __init__(
        self,
        status: int,
        phrase: str,
        headers: Headers,
        body: bytes,
        block: bytes | None = None,
        controls: Headers = (),
    ) -> None:
        self.controls = controls
        self.status = status
        self.phrase = phrase
        self.headers = headers
        self.body = body
        self.block = block

    def header(self, name: str) -> str | None:
        return header(self.headers, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Response):
            return False
        mine = (self.status, self.phrase, self.headers, self.body)
        return mine == (other.status, other.phrase, other.headers, other.body)

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.phrase!r} {self.headers} {self.body[:200]!r}>"


class ResponseStream(Protocol):
    """A response whose body comes in pieces. Its reader calls `close` at the end, read to the end or not.

    Iteration raises BrokenStream if the response breaks off.
    """

    status: int
    phrase: str
    headers: Headers

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def close(self) -> None: ...


class StreamedResponse(NamedTuple):
    """A chunked response with the headers that the client gets."""

    chunks: ResponseStream
    headers: Headers


AnyResponse = Response | StreamedResponse


class BrokenStream(TsParityError):
    """A streamed response broke off. Its status is sent already, so the proxy can only break off too."""

    status = 502


def header(headers: Headers, name: str) -> str | None:
    found = None
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def without_hop_by_hop(headers: Headers) -> Headers:
    """Without the headers that concern one connection, including those that `Connection` names."""
    if not has(headers, HOP):
        return headers
    named = {
        token.strip().lower() for key, value in headers if key.lower() == "connection" for token in value.split(",")
    }
    return tuple(pair for pair in headers if not header_flags(pair[0]) & HOP and pair[0].lower() not in named)


def encode_head(first_line: str, headers: Headers, more: Headers = ()) -> bytes:
    """The head of a request or a response. A line break in a header, which a handler may set, becomes a space."""
    lines = [first_line]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"{name}: {value}" for name, value in more]
    lines.append("\r\n")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        cleaned = [line.replace("\r", " ").replace("\n", " ") for line in lines[:-1]]
        text = "\r\n".join([*cleaned, "\r\n"])
    return text.encode("latin-1", "replace")


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    return "\r\n".join([f"{name}: {value}" for name, value in headers]).encode("latin-1", "replace")


def split_controls(headers: Headers) -> tuple[Headers, Headers]:
    """-> (the other headers, the control headers)."""
    if not has(headers, CONTROL):
        return headers, ()
    controls = tuple(pair for pair in headers if header_flags(pair[0]) & CONTROL)
    return tuple(pair for pair in headers if not header_flags(pair[0]) & CONTROL), controls


def with_header(response: Response, name: str, value: str) -> Response:
    """`name` and `value` come from the proxy itself, so they need no cleaning."""
    block = response.block
    if block is not None:
        block = b"%b\r\n%b: %b" % (block, name.encode(), value.encode())
    return Response(response.status, response.phrase, (*response.headers, (name, value)), response.body, block)


def with_request_id(response: Response, client_id: str | None) -> Response:
    """A response made by the proxy carries a request id as TorchServe's do: the client's, or a new one."""
    return with_header(response, REQUEST_ID, client_id or str(uuid.uuid4()))


def error_response(error: TsParityError) -> Response:
    """In TorchServe's shape, with the error's own status and type."""
    response = torchserve_error(error.status, error.kind, str(error))
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        return with_header(response, "Retry-After", str(max(1, round(error.retry_after_s))))
    return response


def torchserve_error(status: int, kind: str, message: str) -> Response:
    body = error_body(status, kind, message)
    headers = (("content-type", "application/json"), ("content-length", str(len(body))))
    return Response(status, phrase_of(status), headers, body)


def phrase_of(status: int) -> str:
    """Of an error of the proxy's own."""
    return _PHRASES.get(status, "")


def too_large() -> Response:
    """TorchServe's response to a body over the limit: nothing but the status."""
    return Response(413, "Request Entity Too Large", (("content-length", "0"),), b"")


_PHRASES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
