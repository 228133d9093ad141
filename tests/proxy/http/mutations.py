"""Requests and answers, first as they should be, then not: seeded, so that a case is its seed and number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

_METHODS = [
    b"GET", b"POST", b"POST", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH",
]  # fmt: skip
_TARGETS = [
    b"/t%d", b"/t%d", b"/t%d?q=1", b"/predictions/linear?t%d", b"/predictions/linear/1.0/t%d",
    b"/predictions/other/t%d", b"http://h/t%d", b"//t%d", b"/t%d/\xc3\xbc\x80",
    b"/t%d%%20%%0d%%0a", b"/v1/models/linear:predict?t%d",
]  # fmt: skip
_FIELDS = [
    b"Accept: */*", b"Connection: close", b"Connection: keep-alive", b"Connection: X-Own, keep-alive", b"X-Own: 1",
    b"Keep-Alive: 5", b"TE: trailers", b"Trailer: X-T",
    b"X-Empty:", b"x-ts-parity-op: raw", b"x-ts-parity-exact: 1", b"Content-Type: application/json", b"Cookie: a=b; c",
    b"X-Long: " + b"y" * 30, b"Authorization: Bearer k", b"X-Latin: \xe9\xff",
]  # fmt: skip
_RARE_FIELDS = [
    b"Connection: upgrade\r\nUpgrade: h2c", b"Expect: 100-continue", b"Sec-WebSocket-Key1: 1\r\nSec-WebSocket-Key2: 2",
    b"HTTP2-Settings: AAMA",
]  # fmt: skip
_ODD_LINES = [
    b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: 5", b"content-length: 99999999999999999999",
    b"Content-Length: 18446744073709551616", b"Content-Length: -1", b"Content-Length: +3", b"Content-Length: 0x3",
    b"Content-Length: 3, 3", b"Content-Length: 3 3", b"Content-Length:", b"Content-Length : 3", b"Content-Length:\t3",
    b"Content-Length: 3 ", b"Content-Length: 3\x0b", b"Content-Length: 03", b"Content-Length: 1_0",
    b"Content_Length: 3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: \"chunked\"",
    b"Transfer-Encoding: CHUNKED", b"Transfer-Encoding:", b"Transfer-Encoding: chunked ", b"transfer-encoding:chunked",
    b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked,",
    b"X-A: b\r\n c", b"X-A: b\r\n\tTransfer-Encoding: chunked", b" X-A: b", b"X A: b", b": b", b"X-A", b"X-A: \x00",
    b"X-A: b\rX-B: c", b"X-A: b\nContent-Length: 5", b"X-A: b\r\rContent-Length: 5", b"X-\xe9: b", b"X-A:b:c",
    b"(X): b",
    b"Host: other", b"Host:", b"Host: h, g",
    b"Host: h/x", b"host: h", b"Connection: content-length", b"Connection: transfer-encoding", b"Connection: host",
    b"Connection: close, keep-alive", b"Connection: keep-alive\r\nConnection: close", b"Connection: ,close",
    b"Connection: upgrade\r\nUpgrade: websocket", b"Upgrade: x", b"Proxy-Connection: close", b"Connection: clos",
    b"Expect: 200-ok", b"Expect: 100-Continue", b"HTTP/1.1 200 OK", b"GET /t0 HTTP/1.1", b"X-Nul: a\x00b",
    b"X-Long: " + b"z" * 70_000,
]  # fmt: skip
_VERSIONS = [
    b"HTTP/1.0", b"HTTP/1.1", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1", b"HTTP/11", b"http/1.1", b"HTTP/1.1 ",
    b" HTTP/1.1", b"HTTP/01.1", b"HTTP/1.10", b"", b"ICE/1.0", b"RTSP/1.0", b"HTTP/1.1\x00",
]  # fmt: skip
_LINE_ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"", b"\t\r\n", b"\x0b\r\n"]
_CHUNK_SIZES = [
    b"0", b"00", b"3 ", b" 3", b"0x3", b"-1", b"+3", b"3;", b"3;a", b"3;a=b", b'3;a="b"', b'3;a="\r\n"', b"3;a=\n0",
    b"3;\x00", b"3 ;a", b"3; a = b", b"3\t", b"FFFFFFFFFFFFFFFFF", b"10000000000000003", b"g", b"", b"003", b"3;a=b;c",
    b"3;;", b"3;=", b'3;a="b', b"3;" + b"e" * 20_000,
]  # fmt: skip
_NASTY = [b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"9", b"\x80", b"\xff", b"\x0b", b"\x7f"]
_PHRASES = [b"OK", b"", b"Fine and well", b"\xe9t\xe9"]
_STATUSES = [b"200", b"200", b"200", b"201", b"404", b"500", b"503", b"204", b"304", b"299"]


def requests(chance: Random, count: int) -> bytes:
    """Well-formed ones, each with its number in its target where that has room."""
    return b"".join(_request(chance, number) for number in range(count))


def mutated(chance: Random, data: bytes) -> bytes:
    """One change, sometimes several."""
    for _ in range(chance.choice([1, 1, 1, 2, 2, 3, 5])):
        data = chance.choice(_MUTATIONS)(chance, data)
    return data


def split(chance: Random, data: bytes) -> list[bytes]:
    """In one piece, in a few, in front of and behind every line end, or (if short) byte by byte."""
    how = chance.random()
    if how < 0.4 or len(data) < 2:
        return [data]
    if how < 0.45 and len(data) < 400:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted({chance.randrange(1, len(data)) for _ in range(chance.randint(1, 4))})
    if how < 0.6:
        ends = [at for at in range(1, len(data)) if data[at - 1 : at + 1] == b"\r\n"]
        cuts = sorted(set(chance.sample(ends, min(4, len(ends)))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def answer(chance: Random, body: bytes) -> bytes:
    """A well-formed one, of any framing."""
    fields = chance.sample(_FIELDS, chance.randrange(4))
    status = chance.choice(_STATUSES)
    if status in (b"204", b"304"):
        body = b""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" if chance.random() < 0.1 else b""
    framing = chance.random()
    if framing < 0.5:
        fields.append(b"Content-Length: %d" % len(body))
    elif framing < 0.9 and body:
        fields.append(b"Transfer-Encoding: chunked")
        body = _chunked(chance, body)
    chance.shuffle(fields)
    line = b"HTTP/%b %b %b" % (chance.choice([b"1.1", b"1.1", b"1.1", b"1.0"]), status, chance.choice(_PHRASES))
    if b"Transfer-Encoding: chunked" in fields:
        line = line.replace(b"HTTP/1.0", b"HTTP/1.1")
    return interim + b"\r\n".join([line, *fields, b"", body])


def _request(chance: Random, number: int) -> bytes:
    method, target = chance.choice(_METHODS), chance.choice(_TARGETS) % number
    fields = [b"Host: h", *chance.sample(_FIELDS, chance.randrange(4))]
    if chance.random() < 0.1:
        fields.append(chance.choice(_RARE_FIELDS))
    body = b""
    if chance.random() < 0.6:
        body = chance.choice(
            [b"abc", b"[1, 2]", b"", b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"x" * 60]
        )
        if chance.random() < 0.5:
            fields.append(b"Content-Length: %d" % len(body))
        else:
            fields.append(b"Transfer-Encoding: chunked")
            body = _chunked(chance, body)
    chance.shuffle(fields)
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *fields, b"", body])


def _chunked(chance: Random, body: bytes) -> bytes:
    step = chance.randint(1, max(1, len(body)))
    pieces = [body[at : at + step] for at in range(0, len(body), step)][:20]
    pieces.append(body[len(b"".join(pieces)) :])
    extension = chance.choice([b"", b"", b"", b";a", b";a=b", b';a="b c"'])
    said = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    trailer = chance.choice([b"", b"", b"X-T: 1\r\n", b"X-T: 1\r\nX-U:\r\n"]) if chance.random() < 0.2 else b""
    return said + b"0\r\n" + trailer + b"\r\n"


# ---- what can be done to bytes -------------------------------------------------------------------------------------


def _flip(chance: Random, data: bytes) -> bytes:
    at = chance.randrange(len(data)) if data else 0
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :] if data else b"\xff"


def _insert(chance: Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(_NASTY) + data[at:]


def _delete(chance: Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.choice([1, 1, 1, 2, 5, 20]) :]


def _repeat(chance: Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at : at + chance.choice([1, 2, 10, 40])] * 2 + data[at:]


def _cut_off(chance: Random, data: bytes) -> bytes:
    return data[: chance.randint(0, len(data))]


def _odd_line(chance: Random, data: bytes) -> bytes:
    """One more header line, somewhere (also where it is in a body)."""
    return _at_line_end(chance, data, lambda _: b"\r\n" + chance.choice(_ODD_LINES) + b"\r\n")


def _line_end(chance: Random, data: bytes) -> bytes:
    return _at_line_end(chance, data, lambda _: chance.choice(_LINE_ENDS))


def _first_headers(chance: Random, data: bytes) -> bytes:
    """A further header in the first head."""
    at = data.find(b"\r\n")
    return data[:at] + b"\r\n" + chance.choice(_ODD_LINES) + data[at:] if at >= 0 else data


def _version(chance: Random, data: bytes) -> bytes:
    return _at(chance, data, b"HTTP/1.1", lambda _: chance.choice(_VERSIONS))


def _chunk_size(chance: Random, data: bytes) -> bytes:
    """A line of a few characters is most often a chunk's size."""
    lines = data.split(b"\r\n")
    short = [n for n, line in enumerate(lines) if 0 < len(line) < 6]
    if short:
        lines[chance.choice(short)] = chance.choice(_CHUNK_SIZES)
    return b"\r\n".join(lines)


def _number(chance: Random, data: bytes) -> bytes:
    new = [b"0", b"1", b"2", b"99999999999999999999", b"-1", b"4294967296", b"1e3", b" 3", b"3 ", b"", b"\xb2"]
    return _at(chance, data, b"Length: ", lambda _: b"Length: " + chance.choice(new))


def _white(chance: Random, data: bytes) -> bytes:
    return _at(
        chance, data, b" ", lambda _: chance.choice([b"  ", b"\t", b"", b"\x0b", b"\x0c", b" \t", b"\xa0", b"\r"])
    )


def _space_line(chance: Random, data: bytes) -> bytes:
    """A line made a continuation of the one before."""
    return _at_line_end(chance, data, lambda _: b"\r\n" + chance.choice([b" ", b"\t"]))


_MUTATIONS: Sequence[Callable[[Random, bytes], bytes]] = [
    _flip, _flip, _insert, _insert, _delete, _repeat, _cut_off, _odd_line, _line_end, _first_headers, _first_headers,
    _version, _chunk_size, _number, _white, _space_line,
]  # fmt: skip


def _at_line_end(chance: Random, data: bytes, new: Callable[[bytes], bytes]) -> bytes:
    return _at(chance, data, b"\r\n", new)


def _at(chance: Random, data: bytes, old: bytes, new: Callable[[bytes], bytes]) -> bytes:
    """One occurrence of `old` becomes something else."""
    count = data.count(old)
    if not count:
        return data
    at = -1
    for _ in range(chance.randint(1, min(count, 12))):
        at = data.find(old, at + 1)
    return data[:at] + new(old) + data[at + len(old) :]
