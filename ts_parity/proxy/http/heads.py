"""Reads message heads of the common shape without a parser.

Nearly every head arrives whole in one packet, is framed by one Content-Length, and consists of header lines that were
seen before. So the meaning of a line is cached. For any other head, and in any doubt, the functions here return None
and llhttp decides. They accept a strict subset of what llhttp accepts and read it the same way, which a test checks
against llhttp. The one exception is a target with bytes beyond ASCII: TorchServe accepts them, llhttp does not. Knows
bytes. Knows nothing of sockets.
"""

from __future__ import annotations

import re
from typing import Final, final

from ts_parity.proxy.http.messages import (
    BODILESS,
    CONNECTION_OPTIONS,
    CONTROL,
    EXPECT,
    HOP,
    HOST,
    LENGTH,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    NO_BODY,
    header_flags,
)
from ts_parity.proxy.http.request_line import host_is_sound, target_is_sound
from ts_parity.wire import Headers

_NEEDS_PARSER: Final = 1024
_CLOSE: Final = 2048
"""Two more flags beside those in `messages`: a header that needs the parser; the connection ends here."""
_REQUEST_LINE: Final = re.compile(rb"(GET|POST|PUT|PATCH|DELETE|OPTIONS|HEAD) (/[!-~\x80-\xff]*) HTTP/1\.1")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([2-9][0-9][0-9]) ([ -~]*)")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE: Final = rb"(?:[!-~\x80-\xff](?:[ -~\t\x80-\xff]*[!-~\x80-\xff])?)?"
_LINE: Final = re.compile(rb"(%b):[ \t]*(%b)" % (_TOKEN, _VALUE))
_MOST_DIGITS: Final = 15
_MOST_REMEMBERED: Final = 4096
"""When the cache holds this many lines it is cleared: common lines are back at once."""
_LONGEST: Final = 256
_MOST_LINES_PER_NAME: Final = 64
"""A header name with this many different lines differs in each message (an id, a length): no more are cached."""


@final
class _Name:
    """A header's name in one spelling, and what it means."""

    __slots__ = ("depends_on_value", "flags", "lines", "text")

    def __init__(self, text: str, flags: int) -> None:
        self.text = text
        self.flags = flags
        self.lines = 0
        self.depends_on_value = bool(flags & (CONNECTION_OPTIONS | EXPECT | HOP | HOST | _NEEDS_PARSER | _CLOSE))
        """The meaning depends on the value, so each line is read closely."""


_names: Final[dict[bytes, _Name]] = {}
_lines: Final[dict[bytes, tuple[tuple[str, str], int]]] = {}
_requests: Final[dict[bytes, tuple[str, str]]] = {}
_statuses: Final[dict[bytes, tuple[int, str]]] = {}
_FRAMING: Final = frozenset({"transfer-encoding", "upgrade", "proxy-connection"})


@final
class RequestHead:
    """`headers` are for the other end, `controls` for the proxy. `block` holds `headers` as bytes, with a length, ready
    to be sent on.
    """

    __slots__ = ("block", "controls", "end", "headers", "keep_alive", "length", "method", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: Headers,
        controls: Headers,
        block: bytes,
        length: int,
        keep_alive: bool,
        end: int,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.controls = controls
        self.block = block
        self.length = length
        self.keep_alive = keep_alive
        self.end = end
        """Where in the data the body begins."""


@final
class ResponseHead:
    """The same for a response."""

    __slots__ = ("block", "controls", "end", "headers", "keep_alive", "length", "phrase", "status")

    def __init__(
        self,
        status: int,
        phrase: str,
        headers: Headers,
        controls: Headers,
        block: bytes,
        length: int,
        keep_alive: bool,
        end: int,
    ) -> None:
        self.status = status
        self.phrase = phrase
        self.headers = headers
        self.controls = controls
        self.block = block
        self.length = length
        self.keep_alive = keep_alive
        self.end = end


def read_request_head(data: bytes, start: int = 0) -> RequestHead | None:
    """The head that begins at `start`. None: the parser must read it, or it is incomplete."""
    end = data.find(b"\r\n\r\n", start)
    if end < 0 or end - start > MAX_HEAD_BYTES:
        return None
    lines = data[start:end].split(b"\r\n", MAX_HEADERS + 1)
    first = _requests.get(lines[0])
    if first is None:
        match = _REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            return None
        first = (match[1].decode(), match[2].decode("latin-1"))  # as TorchServe reads it
        if not target_is_sound(first[1]):
            return None
        if len(lines[0]) <= _LONGEST:
            if len(_requests) >= _MOST_REMEMBERED:
                _requests.clear()
            _requests[lines[0]] = first
    read = _read_lines(lines)
    if read is None:
        return None
    headers, controls, block, length, seen = read
    if not seen & HOST:
        return None
    if length < 0:  # the receiver must not have to guess where it ends
        block += NO_BODY
    return RequestHead(first[0], first[1], headers, controls, block, max(length, 0), not seen & _CLOSE, end + 4)


def read_response_head(data: bytes) -> ResponseHead | None:
    """The head of a final response with a length. None: the parser must read it, or it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or end > MAX_HEAD_BYTES:
        return None
    lines = data[:end].split(b"\r\n", MAX_HEADERS + 1)
    first = _statuses.get(lines[0])
    if first is None:
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            return None
        first = (int(match[1]), match[2].decode())
        if len(lines[0]) <= _LONGEST:
            if len(_statuses) >= _MOST_REMEMBERED:
                _statuses.clear()
            _statuses[lines[0]] = first
    read = _read_lines(lines)
    if read is None or read[3] < 0 or first[0] in BODILESS:
        return None
    headers, controls, block, length, seen = read
    return ResponseHead(first[0], first[1], headers, controls, block, length, not seen & _CLOSE, end + 4)


def _read_lines(lines: list[bytes]) -> tuple[Headers, Headers, bytes, int, int] | None:
    """-> headers for the other end, control headers, the former as bytes, length (-1: none), and all flags."""
    pairs: list[tuple[str, str]] = []
    controls: list[tuple[str, str]] = []
    kept: list[bytes] = []
    seen, length = 0, -1
    del lines[0]
    if len(lines) > MAX_HEADERS:
        return None
    for line in lines:
        known = _lines.get(line)
        if known is None:
            known = _read_new_line(line)
            if known is None:
                return None
        pair, flags = known
        if flags:
            if flags & _NEEDS_PARSER or flags & seen & HOST:
                return None
            seen |= flags
            if flags & CONTROL:
                controls.append(pair)
                continue
            if flags & HOP:
                continue
            if flags & LENGTH:
                if length >= 0:
                    return None
                length = int(pair[1])
        pairs.append(pair)
        kept.append(line)
    return tuple(pairs), tuple(controls), b"\r\n".join(kept), length, seen


def _read_new_line(line: bytes) -> tuple[tuple[str, str], int] | None:
    """Read and cache a new line. None: the parser must read it."""
    spelt, colon, rest = line.partition(b":")
    if not colon:
        return None
    name = _names.get(spelt)
    known = None if name is None or not rest.isascii() else _with_known_name(name, rest.decode())
    if known is None:
        known = _with_any_name(line)
        if known is None:
            return None
        if name is None and len(spelt) <= _LONGEST:
            if len(_names) >= _MOST_REMEMBERED:
                _clear_caches()
            name = _names[spelt] = _Name(known[0][0], known[1])
    if name is not None and name.lines < _MOST_LINES_PER_NAME and len(line) <= _LONGEST:
        name.lines += 1
        if len(_lines) >= _MOST_REMEMBERED:
            _clear_caches()
        _lines[line] = known
    return known


def _clear_caches() -> None:
    _lines.clear()
    _names.clear()


def _with_known_name(name: _Name, value: str) -> tuple[tuple[str, str], int] | None:
    """None: the line must be read closely."""
    if name.depends_on_value or not value.isprintable():
        return None
    value = value.lstrip(" ")
    if value.endswith(" ") or (name.flags & LENGTH and not (value.isdigit() and len(value) <= _MOST_DIGITS)):
        return None
    return (name.text, value), name.flags


def _with_any_name(line: bytes) -> tuple[tuple[str, str], int] | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name, value = match[1].decode(), match[2].decode("latin-1")
    flags = header_flags(name)
    if flags & CONNECTION_OPTIONS:
        option = value.lower()
        flags |= _CLOSE if option == "close" else 0 if option == "keep-alive" else _NEEDS_PARSER
    elif flags & EXPECT or name.lower() in _FRAMING:
        flags |= _NEEDS_PARSER
    elif flags & HOST:
        flags |= 0 if host_is_sound(value) else _NEEDS_PARSER
    elif flags & LENGTH:
        flags |= 0 if value.isdigit() and value.isascii() and len(value) <= _MOST_DIGITS else _NEEDS_PARSER
    return (name, value), flags
