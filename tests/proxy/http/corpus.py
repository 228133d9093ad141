"""Requests as they should not be, and what nginx passes on of each: what it refuses, the proxy must refuse.

    python -m tests.proxy.http.corpus        asks the nginx of this machine and writes corpus_nginx.json

Each case is all that one client sends. Where a receiver could be led to take a part of it for a request of its own,
that part asks for /smuggled. What nginx passed on is kept beside (its version too), so that the comparison needs no
nginx; a test compares with a live one where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from tests.conftest import free_ports

RECORDED = Path(__file__).with_name("corpus_nginx.json")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
_AT_ONCE = 12
_QUIET_S = 0.3
"""So long nothing has come from either side: then nothing will."""


def _line(line: bytes) -> bytes:
    return line + b"\r\nHost: h\r\n\r\n" + SMUGGLED


def _with(headers: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    return method + b" /a HTTP/1.1\r\nHost: h\r\n" + headers + b"\r\n\r\n" + body + SMUGGLED


def _chunks(body: bytes) -> bytes:
    return _with(b"Transfer-Encoding: chunked", body)


def _hosts(headers: bytes) -> bytes:
    return b"GET /a HTTP/1.1\r\n" + headers + b"\r\n"


_CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"
_REQUEST_LINES = [
    b"GET /a HTTP/1.1", b"GET /a HTTP/1.0", b"GET /a", b"GET /a ", b"GET /a HTTP/0.9", b"GET /a HTTP/1.2",
    b"GET /a HTTP/2.0", b"GET /a HTTP/3.0", b"GET /a HTTP/1", b"GET /a HTTP/1.", b"GET /a HTTP/.1", b"GET /a HTTP/11",
    b"GET /a HTTP/01.1", b"GET /a HTTP/1.10", b"GET /a HTTP/1,1", b"GET /a http/1.1", b"GET /a Http/1.1",
    b"GET /a HTTP/1.1x", b"GET /a HTTP/1.1 x", b"GET /a HTTP/1.1 ", b"GET /a  HTTP/1.1", b"GET  /a HTTP/1.1",
    b"GET\t/a HTTP/1.1", b"GET /a\tHTTP/1.1", b" GET /a HTTP/1.1", b"\tGET /a HTTP/1.1", b"GET/a HTTP/1.1",
    b"GET /a HTTP /1.1", b"GET /a HTTP/1.1\x00", b"GET /a\x00 HTTP/1.1", b"GET\x00 /a HTTP/1.1", b"\x00GET /a HTTP/1.1",
    b"GET /a HTTP/1.1\r", b"GET /a\r HTTP/1.1", b"GET /a\x0b HTTP/1.1", b"GET /a\x0cHTTP/1.1", b"GET /a\x7f HTTP/1.1",
    b"GET /a b HTTP/1.1", b"GET HTTP/1.1", b"GET  HTTP/1.1", b"/a HTTP/1.1", b" /a HTTP/1.1", b"HTTP/1.1 200 OK",
    b"GET /a RTSP/1.0", b"POST /a RTSP/1.0", b"OPTIONS /a RTSP/1.1", b"GET /a ICE/1.0", b"SOURCE /a ICE/1.0",
    b"GET /a SIP/2.0", b"GET /a FTP/1.1", b"GET /a HTTPS/1.1", b"DESCRIBE /a RTSP/1.0", b"PLAY /a RTSP/1.0",
    b"get /a HTTP/1.1", b"Get /a HTTP/1.1", b"gET /a HTTP/1.1", b"post /a HTTP/1.1", b"G\x01T /a HTTP/1.1",
    b"G=T /a HTTP/1.1", b"G T /a HTTP/1.1", b"(GET) /a HTTP/1.1", b"\"GET\" /a HTTP/1.1", b"G\xc9T /a HTTP/1.1",
    b"CONNECT h:80 HTTP/1.1", b"CONNECT /a HTTP/1.1", b"CONNECT http://h/a HTTP/1.1", b"TRACE /a HTTP/1.1",
    b"PRI * HTTP/2.0", b"OPTIONS * HTTP/1.1", b"GET * HTTP/1.1", b"GET a HTTP/1.1", b"GET h:80 HTTP/1.1",
    b"GET ?a HTTP/1.1", b"GET #a HTTP/1.1", b"GET \\a HTTP/1.1", b"GET http:/a HTTP/1.1", b"GET http:// HTTP/1.1",
    b"GET http:///a HTTP/1.1", b"GET http://h/a HTTP/1.1", b"GET HTTP://h/a HTTP/1.1", b"GET http://u@h/a HTTP/1.1",
    b"GET http://g/a HTTP/1.1", b"GET http://h g/a HTTP/1.1", b"GET ://h/a HTTP/1.1", b"GET file:///a HTTP/1.1",
    b"GET http://h\\@g/a HTTP/1.1", b"GET http://[h/a HTTP/1.1", b"GET http://h:80:80/a HTTP/1.1",
    b"GET /.. HTTP/1.1", b"GET /../a HTTP/1.1", b"GET /a/../../b HTTP/1.1", b"GET /a/%2e%2e/%2E%2e/b HTTP/1.1",
    b"GET /.%2e HTTP/1.1", b"GET /%2f..%2f.. HTTP/1.1", b"GET /a//../../.. HTTP/1.1", b"GET /a/../.. HTTP/1.1",
    b"GET /..?b HTTP/1.1", b"GET /..#b HTTP/1.1", b"GET /a/../b HTTP/1.1", b"GET /a?/../../.. HTTP/1.1",
    b"GET /%00 HTTP/1.1", b"GET /a%00b HTTP/1.1", b"GET /% HTTP/1.1", b"GET /%2 HTTP/1.1", b"GET /%zz HTTP/1.1",
    b"GET /%2%30 HTTP/1.1", b"GET /a%0d%0ab HTTP/1.1", b"GET /a?%zz HTTP/1.1", b"GET /\x01 HTTP/1.1",
    b"GET /\x1f?a HTTP/1.1", b"GET /a?\x01 HTTP/1.1", b"GET /a#\x7f HTTP/1.1", b"GET /\xc3\xbc HTTP/1.1",
    b"GET /a?\x80\xff HTTP/1.1", b"GET /a\x85b HTTP/1.1", b"GET /a\xa0HTTP/1.1", b"GET /a\xa0 HTTP/1.1",
    b"GET /" + b"u" * 70_000 + b" HTTP/1.1", b"M" * 70_000 + b" /a HTTP/1.1", b"GET /a HTTP/1." + b"1" * 70_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x80\x2e\x01\x03\x01", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2",
    b"\r\nGET /a HTTP/1.1", b"\r\n\r\n\r\nGET /a HTTP/1.1", b"\nGET /a HTTP/1.1", b"\rGET /a HTTP/1.1", b"{}", b"",
]  # fmt: skip
_HEADERS = [
    b"Content-Length: 3\r\nContent-Length: 3", b"Content-Length: 3\r\nContent-Length: 4", b"Content-Length: 3, 3",
    b"Content-Length: 3,4", b"Content-Length: +3", b"Content-Length: -3", b"Content-Length: 0x3",
    b"Content-Length: 3 3",
    b"Content-Length: 3;", b"Content-Length: 3.0", b"Content-Length: 3e0", b"Content-Length: \"3\"",
    b"Content-Length: ",
    b"Content-Length:", b"Content-Length: x", b"Content-Length: 1_0", b"Content-Length: \xb3", b"Content-Length: 3\x00",
    b"Content-Length: 3\x0b", b"Content-Length: \x0b3", b"Content-Length: 3\x0c", b"Content-Length: 3\xa0",
    b"Content-Length: 18446744073709551619", b"Content-Length: 9223372036854775811", b"Content-Length: -1",
    b"Content-Length: 99999999999999999999999", b"Content-Length: 4294967299", b"Content-Length : 3",
    b"Content-Length\t: 3", b" Content-Length: 3", b"\tContent-Length: 3", b"Content-Length\x00: 3",
    b"Content-Length\r: 3", b"Content-Length\n: 3", b"Content-Length\xa0: 3", b"Content Length: 3", b"Content-Length 3",
    b"Content-Length=3", b"Content-Length;: 3", b"Content-Length:\r\n 3", b"Content-Length:\r\n\t3",
    b"X: y\r\n Content-Length: 3", b"X: y\nContent-Length: 3", b"X: y\rContent-Length: 3",
    b"X: y\r\rContent-Length: 3", b"X: y\x00Content-Length: 3", b"X: y\x0bContent-Length: 3", b"Content_Length: 3",
    b"Content-Length:\t3", b"Content-Length:3", b"Content-Length: 3 ", b"Content-Length: 003", b"cOnTeNt-LeNgTh: 3",
    b"Content-Length: 3\r\nConnection: content-length", b"Content-Length: 3\r\nConnection: host",
]  # fmt: skip
_ENCODINGS = [
    b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"chunked ", b"\tchunked\t", b"xchunked", b"chunkedx", b"chunk",
    b"chunked, chunked", b"chunked,", b",chunked", b"chunked, identity", b"identity, chunked", b"identity", b"gzip",
    b"gzip, chunked", b"chunked, gzip", b"deflate", b"chunked;q=1", b"chunked; x", b'"chunked"', b"'chunked'", b"",
    b"\x0bchunked", b"\x0cchunked", b"chunked\x0b", b"\x00chunked", b"chunked\x00", b"\xa0chunked", b"chun\xc3\xa7ed",
    b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: identity",
    b"cow\r\nTransfer-Encoding: chunked",
    b"identity\r\nTransfer-Encoding: chunked", b"chunked\r\nContent-Length: 3", b"chunked\r\nContent-Length: 0",
    b"\r\n chunked", b"\r\n\tchunked", b"x\r\n chunked", b"chunked\r\nTrailer: X",
    b"chunked\r\nConnection: transfer-encoding",
    b"chunked\r\nTE: trailers",
]  # fmt: skip
_ENCODING_LINES = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"Content-Length: 5\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
    b"Transfer_Encoding: chunked", b"Transfer-Encoding\x00: chunked", b"Transfer-Encoding\x0b: chunked",
    b"Transfer-Encoding\n: chunked", b"Transfer-Encoding\r: chunked", b"Transfer-Encoding\xa0: chunked",
    b"Transfer Encoding: chunked", b"Transfer-Encoding; chunked", b"Transfer-Encoding",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b"X: y\n\rTransfer-Encoding: chunked",
    b"X: \x00\r\nTransfer-Encoding: chunked", b"transfer-encoding:chunked", b"TRANSFER-ENCODING: chunked",
    b"Content-Encoding: chunked\r\nContent-Length: 3",
]  # fmt: skip
_CHUNKS = [
    _CHUNKED, b"03\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n00\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"-3\r\nabc\r\n0\r\n\r\n", b"-1\r\nabc\r\n0\r\n\r\n", b" 3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n",
    b"3\t\r\nabc\r\n0\r\n\r\n", b"\r\n3\r\nabc\r\n0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nab\r\n0\r\n\r\n", b"3\rabc\r\n0\r\n\r\n",
    b"3\r\nabc\r0\r\n\r\n",
    b"3\r\nabc\r\n0\n\n", b"3\r\nabc\r\n0\r\r\n", b"3\r\nabc\r\n0\r\n\n", b"3\r\nabc\r\n0\r\n\rX\r\n",
    b"3\r\nabc\r\n\r\n",
    b"3\r\nabc\r\n-0\r\n\r\n", b"3\r\nabc\r\n0;x\r\n\r\n", b"3;x=y\r\nabc\r\n0\r\n\r\n",
    b'3;x="y;z"\r\nabc\r\n0\r\n\r\n',
    b'3;x="\r\n"\r\nabc\r\n0\r\n\r\n', b"3;x\ny\r\nabc\r\n0\r\n\r\n", b"3;x\ry\r\nabc\r\n0\r\n\r\n",
    b"3;x\x00\r\nabc\r\n0\r\n\r\n", b"3 ;x\r\nabc\r\n0\r\n\r\n", b"3 x\r\nabc\r\n0\r\n\r\n", b"3x\r\nabc\r\n0\r\n\r\n",
    b"g\r\nabc\r\n0\r\n\r\n", b"\r\nabc\r\n0\r\n\r\n", b"3.0\r\nabc\r\n0\r\n\r\n", b"3,3\r\nabc\r\n0\r\n\r\n",
    b"\xb3\r\nabc\r\n0\r\n\r\n", b"3\x00\r\nabc\r\n0\r\n\r\n", b"3\x0b\r\nabc\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n", b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    b"8000000000000003\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", b"100000003\r\nabc\r\n0\r\n\r\n",
    b"0" * 100 + b"3\r\nabc\r\n0\r\n\r\n", b"3;" + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX-T: y\r\n\r\n", b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX T: y\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX : y\r\n\r\n", b"3\r\nabc\r\n0\r\n X: y\r\n\r\n", b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX: \x00\r\n\r\n", b"3\r\nabc\r\n0\r\nX\r\n\r\n", b"3\r\nabc\r\n0\r\n: y\r\n\r\n",
    b"3\r\nabc\r\n0\r\n",
    b"3\r\nabc\r\n0", b"3\r\nabc",
]  # fmt: skip
_FIELDS = [
    b"X : y", b"X\t: y", b" X: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X: y\r\n", b"X", b"X y", b": y", b":", b"=x",
    b"X Y: z",
    b"X\x00: y", b"X\x01: y", b"X\x7f: y", b"X\x80: y", b"X\xc3\xbc: y", b"X(Y): z", b"X[Y]: z", b"X{Y}: z", b"X<Y>: z",
    b"X@Y: z", b"X,Y: z", b"X;Y: z", b"X/Y: z", b"X?Y: z", b"X=Y: z", b'X"Y: z', b"X\\Y: z", b"X_Y: z", b"X.Y: z",
    b"X!#$%&'*+-.^`|~: z", b"X: \x00", b"X: a\x00b", b"X: a\x01b", b"X: a\x08b", b"X: a\x0bb", b"X: a\x1fb",
    b"X: a\x7fb",
    b"X: a\x80\xffb", b"X: \xc3\xbc", b"X: a\rb", b"X: a\nb", b"X: a\r\rb", b"X: a\n\rb", b"X: a\r", b"X: a\r\r", b"X:",
    b"X: ", b"X:  a  ", b"X:\ta\t", b"X: y\r\n\r", b"X: y\n", b"X: " + b"y" * 70_000, b"X" * 70_000 + b": y",
    b"Connection: close", b"Connection: keep-alive, close", b"Connection: upgrade\r\nUpgrade: h2c",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA", b"Upgrade: websocket",
    b"Sec-WebSocket-Key1: 1\r\nSec-WebSocket-Key2: 2", b"Expect: 100-continue", b"Expect: x", b"TE: trailers",
    b"Trailer: X",
    b"Proxy: http://g", b"Proxy-Connection: close", b"Keep-Alive: x",
]  # fmt: skip
_HOSTS = [
    b"", b"Host:\r\n", b"Host: \r\n", b"Host: h\r\nHost: h\r\n", b"Host: h\r\nHost: g\r\n", b"Host: h\r\nhost: g\r\n",
    b"Host: h\r\nHost:\r\n", b"Host: h/a\r\n", b"Host: h, g\r\n", b"Host: h,g\r\n", b"Host: h g\r\n", b"Host: u@h\r\n",
    b"Host: u:p@h\r\n", b"Host: h:80:80\r\n", b"Host: h:\r\n", b"Host: h:x\r\n", b"Host: h:-1\r\n", b"Host: :80\r\n",
    b"Host: :\r\n", b"Host: [::1]:80\r\n", b"Host: [::1\r\n", b"Host: ::1\r\n", b"Host: []\r\n", b"Host: [x]\r\n",
    b"Host: [::1]x\r\n", b"Host: h?a\r\n", b"Host: h#a\r\n", b"Host: h\\g\r\n", b"Host: h..g\r\n", b"Host: ..\r\n",
    b"Host: .\r\n", b"Host: h.\r\n", b"Host: h_g\r\n", b"Host: <h>\r\n", b'Host: "h"\r\n', b"Host: h%20g\r\n",
    b"Host: \xc3\xbc\r\n", b"Host: h\tg\r\n", b"Host: h\x00\r\n", b"Host: h\x01\r\n", b"Host: h\x7f\r\n",
    b"Host: h;g\r\n",
    b"Host: http://h\r\n", b"Host: h\r\n g\r\n", b"Host : h\r\n", b" Host: h\r\n", b"Host: h\r\nX: y\nHost: g\r\n",
    b"Host: h\nHost: g\r\n", b"Host: h\r\nHost : g\r\n", b"Host: h\r\nConnection: host\r\n", b"Host: h:80\r\n",
    b"Host: " + b"h" * 70_000 + b"\r\n",
]  # fmt: skip
_WHOLE = {
    "bare line feeds": b"GET /a HTTP/1.1\nHost: h\n\n" + SMUGGLED,
    "bare line feed at the end": b"GET /a HTTP/1.1\r\nHost: h\r\n\n" + SMUGGLED,
    "bare line feed behind the request line": b"GET /a HTTP/1.1\nHost: h\r\n\r\n" + SMUGGLED,
    "bare carriage returns": b"GET /a HTTP/1.1\rHost: h\r\r" + SMUGGLED,
    "no header at all": b"GET /a HTTP/1.1\r\n\r\n" + SMUGGLED,
    "HTTP/1.0 without Host": b"GET /a HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with an empty Host": b"GET /a HTTP/1.0\r\nHost:\r\n\r\n",
    "HTTP/1.0 with two": b"GET /a HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n",
    "HTTP/1.0 in chunks": b"POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKED,
    "HTTP/0.9": b"GET /a\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "a line of spaces before the headers": b"GET /a HTTP/1.1\r\n \r\nHost: h\r\n\r\n" + SMUGGLED,
    "a folded request line": b"GET /a\r\n HTTP/1.1\r\nHost: h\r\n\r\n" + SMUGGLED,
    "GET with a body": _with(b"Content-Length: 3", b"abc", b"GET"),
    "GET with a body in chunks": _with(b"Transfer-Encoding: chunked", _CHUNKED, b"GET"),
    "GET with a body and no length": _with(b"X: y", b"abc", b"GET"),
    "HEAD with a body": _with(b"Content-Length: 3", b"abc", b"HEAD"),
    "DELETE with a body": _with(b"Content-Length: 3", b"abc", b"DELETE"),
    "less body than said": b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\nabc",
    "more body than said": _with(b"Content-Length: 3", b"abcde"),
    "a request in a body": _with(b"Content-Length: %d" % len(SMUGGLED), SMUGGLED),
    "a request in a chunk": _chunks(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "thousands of headers": _with(b"\r\n".join(b"X-%d: y" % n for n in range(20_000)), method=b"GET"),
    "a request after close": _with(b"Connection: close", method=b"GET"),
}


def _corpus() -> dict[str, bytes]:
    """By a name that says what is odd."""
    cases = dict(_WHOLE)
    cases |= {f"line {line[:60]!r}": _line(line) for line in _REQUEST_LINES}
    cases |= {f"header {header[:60]!r}": _with(header, b"abc") for header in _HEADERS}
    cases |= {f"coding {coding[:60]!r}": _with(b"Transfer-Encoding: " + coding, _CHUNKED) for coding in _ENCODINGS}
    cases |= {f"header {header[:60]!r}": _with(header, _CHUNKED) for header in _ENCODING_LINES}
    cases |= {f"chunks {chunks[:60]!r}": _chunks(chunks) for chunks in _CHUNKS}
    cases |= {f"field {field[:60]!r}": _with(field, method=b"GET") for field in _FIELDS}
    cases |= {f"hosts {hosts[:60]!r}": _hosts(hosts) for hosts in _HOSTS}
    return cases


CORPUS = _corpus()


class Recorder:
    """An instance that keeps what it was asked: method, target and body of each request, as Latin-1."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.url = ""

    async def __aenter__(self) -> Recorder:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = head.lower().split("\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
                body = (await reader.readexactly(length)).decode("latin-1")
                method, target = head.split(" ")[:2]
                self.heard.append(f"{method} {target} {body}".rstrip())
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (0 if method == "HEAD" else 2))
                writer.write(b"" if method == "HEAD" else b"ok")
        writer.close()


async def passed_on(port: int, recorder: Recorder, data: bytes, quiet_s: float = _QUIET_S) -> list[str]:
    """What of `data`, sent to a proxy before the recorder, reaches the latter."""
    begin = len(recorder.heard)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            while await asyncio.wait_for(reader.read(65536), quiet_s):
                pass
    writer.close()
    return recorder.heard[begin:]


@contextlib.asynccontextmanager
async def nginx(upstreams: list[str]) -> AsyncIterator[list[int]]:
    """A real one on free ports, one before each of these addresses, its heads as large as ours may be. -> the ports."""
    with tempfile.TemporaryDirectory() as folder:
        ports = free_ports(len(upstreams))
        process = _start_nginx(folder, ports, upstreams)
        try:
            for port in ports:
                await _listening(port)
            yield ports
        finally:
            process.terminate()
            process.wait()


def _start_nginx(folder: str, ports: list[int], upstreams: list[str]) -> subprocess.Popen[bytes]:
    assert NGINX is not None
    temporary = " ".join(
        f"{what}_temp_path {folder}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = "\n".join(
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; }} }}"
        for port, upstream in zip(ports, upstreams, strict=True)
    )
    Path(folder, "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log crit; events {{}}\n"
        f"http {{ access_log off; {temporary} large_client_header_buffers 4 64k;\n"
        f"proxy_http_version 1.1; proxy_set_header Host $http_host;\n{servers}\n}}\n"
    )
    return subprocess.Popen([NGINX, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"])


async def _listening(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("nginx does not listen")


async def ask_nginx(names: Collection[str] = CORPUS, quiet_s: float = _QUIET_S) -> dict[str, list[str]]:
    """What it passes on of each. A machine that stalls for over `quiet_s` can move something to the next case."""
    at_once = min(_AT_ONCE, len(names))
    async with contextlib.AsyncExitStack() as stack:
        recorders = [await stack.enter_async_context(Recorder()) for _ in range(at_once)]
        ports = await stack.enter_async_context(nginx([recorder.url for recorder in recorders]))
        found: dict[str, list[str]] = {}

        async def ask(n: int) -> None:
            for name in list(names)[n::at_once]:
                found[name] = await passed_on(ports[n], recorders[n], CORPUS[name], quiet_s)

        await asyncio.gather(*(ask(n) for n in range(at_once)))
        return {name: found[name] for name in names}


def nginx_version() -> str:
    assert NGINX is not None
    return subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr.strip().partition(": ")[2]


if __name__ == "__main__":
    found = {"version": nginx_version(), "passed_on": asyncio.run(ask_nginx())}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
