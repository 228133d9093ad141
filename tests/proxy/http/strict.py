"""HTTP/1.1 read slowly and strictly: what a run of bytes contains, by RFC 9112 alone. The fuzzer's second opinion.

Deliberately simple and deliberately unlike the proxy: no state, no callbacks, it is given all bytes at once. Where the
RFC leaves a recipient the choice between refusing and reading in one certain way, it reads in that way, with the
sentence that allows it beside; everything else that is not as it should be is BAD, and nothing behind it counts.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

Headers = tuple[tuple[bytes, bytes], ...]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# "recipients MAY instead parse on whitespace-delimited word boundaries" (3), of which spaces are the plainest.
_REQUEST_LINE = re.compile(rb"(%b) +([\x21-\x7e\x80-\xff]+) +HTTP/(1\.[01])" % _TOKEN)
# Answers come from one's own instances: where only their sender errs and all read alike, they are read. "A client
# SHOULD ignore the reason-phrase content" (4); the protocol's name and version say nothing that the framing does not.
_STATUS_LINE = re.compile(rb"(?:HTTP|RTSP|ICE)/(0\.9|1\.[01]|2\.0) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_FIELD = re.compile(
    rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*" % _TOKEN
)
# What an extension says matters to nobody, as long as it cannot end a line for some and not for others.
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?")


class End(Enum):
    """How the bytes end: after a whole message, inside one, after one that closes the connection, or in nonsense."""

    WHOLE = "whole"
    INSIDE = "inside"
    CLOSED = "closed"
    BAD = "bad"


class Message(NamedTuple):
    """A request (`first` is method and target) or an answer (`first` is the status and the phrase)."""

    first: tuple[bytes, bytes]
    version: bytes
    headers: Headers
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def tokens(self, name: bytes) -> list[bytes]:
        return [token.strip(b" \t").lower() for value in self.values(name) for token in value.split(b",")]

    @property
    def closes(self) -> bool:
        connection = self.tokens(b"connection")
        return b"close" in connection or (self.version == b"1.0" and b"keep-alive" not in connection)


class _Bad(Exception):
    pass


class _More(Exception):
    pass


def read_requests(data: bytes) -> tuple[list[Message], End]:
    """The requests that these bytes hold, one after another, until the first that is bad or the last on its way."""
    found: list[Message] = []
    at = 0
    while True:
        # "a server that is expecting to receive and parse a request-line SHOULD ignore at least one empty line", and
        # "MAY recognize a single LF as a line terminator" (2.2).
        while data[at : at + 1] in (b"\r", b"\n"):
            at += 1
        if at == len(data):
            return found, End.WHOLE
        try:
            message, at = _read_request(data, at)
        except _Bad:
            return found, End.BAD
        except _More:
            return found, End.INSIDE
        found.append(message)
        if message.closes:
            return found, End.CLOSED


def read_answer(data: bytes, method: bytes, closed: bool) -> tuple[Message | None, End, bytes]:
    """-> the final answer to a request of this method if it is there, how it ends, and the bytes behind it. Of an
    answer whose body is not whole, what has come. `closed`: no more bytes will come.
    """
    at = 0
    try:
        while True:
            while data[at : at + 1] in (b"\r", b"\n"):  # not in the RFC for answers; nothing can hide in it
                at += 1
            first, headers, at = _head(data, at, _STATUS_LINE)
            message = Message((first[2], first[3] or b""), first[1], headers, b"")
            if first[2][:1] != b"1":
                break
            if first[2] == b"101":
                raise _Bad  # nobody asked for another protocol
        return _read_body_of_answer(data, at, message, method, closed)
    except _Bad:
        return None, End.BAD, b""
    except _More:
        return None, End.INSIDE, b""


def _read_request(data: bytes, at: int) -> tuple[Message, int]:
    first, headers, at = _head(data, at, _REQUEST_LINE)
    message = Message((first[1], first[2]), first[3], headers, b"")
    _addressed(message)
    lengths = _lengths(message)
    codings = message.tokens(b"transfer-encoding")
    if codings:
        # "A server MAY reject a request that contains both Content-Length and Transfer-Encoding" (6.1), and ours does.
        if lengths or message.version == b"1.0" or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
            raise _Bad
        body, at, _ = _chunks(data, at)
        return message._replace(body=body), at
    if not lengths:
        return message, at
    until = at + lengths[0]
    if until > len(data):
        raise _More
    return message._replace(body=data[at:until]), until


def _addressed(message: Message) -> None:
    """Of one host (3.2), and of something it can have (3.2.1, 3.2.2); tunnels and echoes are not for instances."""
    hosts = message.values(b"host")
    if len(hosts) > 1 or (not hosts and message.version == b"1.1"):
        raise _Bad
    if hosts and (not hosts[0] or re.search(rb"[^!$%&'()*+\-.0-9:;=A-Z_a-z~\[\]]", hosts[0])):
        raise _Bad
    if not re.match(rb"/|https?://", message.first[1]) or message.first[0] in (b"CONNECT", b"TRACE"):
        raise _Bad


def _read_body_of_answer(
    data: bytes, at: int, message: Message, method: bytes, closed: bool
) -> tuple[Message | None, End, bytes]:
    lengths = _lengths(message)
    codings = message.tokens(b"transfer-encoding")
    if codings and lengths:
        raise _Bad
    if method == b"HEAD" or message.first[0] in (b"204", b"304"):
        return message, End.WHOLE, data[at:]
    if codings and codings[-1] == b"chunked":
        body, end, whole = _chunks(data, at, partly=True)
        return message._replace(body=body), End.WHOLE if whole else End.INSIDE, data[end:]
    if lengths and not codings:
        until = at + lengths[0]
        end = End.WHOLE if until <= len(data) else End.INSIDE
        return message._replace(body=data[at:until]), end, data[until:]
    return message._replace(body=data[at:]), End.CLOSED if closed else End.INSIDE, b""


def _head(data: bytes, at: int, line: re.Pattern[bytes]) -> tuple[re.Match[bytes], Headers, int]:
    """-> the first line, the fields and where the body begins."""
    end = data.find(b"\r\n\r\n", at)
    lines = data[at : end if end >= 0 else len(data)].split(b"\r\n")
    if end < 0 and re.search(rb"[\n\x00]|\r[^\n]", lines.pop()):
        raise _Bad  # whatever comes
    first = line.fullmatch(lines[0]) if lines else None
    if lines and first is None:
        raise _Bad
    fields = [_FIELD.fullmatch(text) for text in lines[1:]]
    if None in fields:
        raise _Bad
    if end < 0 or first is None:
        raise _More
    return first, tuple((field[1], field[2]) for field in fields if field is not None), end + 4


def _lengths(message: Message) -> list[int]:
    values = message.values(b"content-length")
    if len(values) > 1 or any(not re.fullmatch(rb"[0-9]+", value) for value in values):
        raise _Bad
    return [int(value) for value in values]


def _chunks(data: bytes, at: int, partly: bool = False) -> tuple[bytes, int, bool]:
    """-> the body, where it ends, and whether it is whole. Trailer fields are read and dropped (7.1.2 allows it)."""
    pieces: list[bytes] = []
    try:
        while True:
            end = data.find(b"\r\n", at)
            if end < 0:
                raise _More
            size = _CHUNK.fullmatch(data[at:end])
            if size is None:
                raise _Bad
            at, length = end + 2, int(size[1], 16)
            if not length:
                break
            pieces.append(data[at : at + length])
            if len(pieces[-1]) < length or len(data) < at + length + 2:
                raise _More
            if data[at + length : at + length + 2] != b"\r\n":
                raise _Bad
            at += length + 2
        while (end := data.find(b"\r\n", at)) != at:
            if end < 0:
                raise _More
            if not _FIELD.fullmatch(data[at:end]):
                raise _Bad
            at = end + 2
        return b"".join(pieces), at + 2, True
    except (_More, _Bad):
        if not partly:
            raise
        return b"".join(pieces), len(data), False
