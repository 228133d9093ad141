"""Plain heads, read without a parser: whatever is read is read as llhttp reads it, and what is odd is left to it."""

from __future__ import annotations

import pytest
from httptools import HttpRequestParser, HttpResponseParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ts_parity.proxy.http.heads import read_request_head, read_response_head
from ts_parity.proxy.http.messages import HOP_BY_HOP, SEC_WEBSOCKET, Request
from ts_parity.proxy.http.outbox import Outbox
from ts_parity.proxy.http.request_line import why_malformed
from ts_parity.proxy.http.upstream import Address, Origin, _serialized

HOST = b"Host: h\r\n"


class Judge:
    """What llhttp makes of the same bytes."""

    def __init__(self) -> None:
        self.target = self.phrase = b""
        self.headers: list[tuple[str, str]] = []
        self.heads = 0
        self.keep_alive = False
        self.parser: HttpRequestParser | HttpResponseParser | None = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, phrase: bytes) -> None:
        self.phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.heads += 1
        self.keep_alive = self.parser.should_keep_alive()

    def end_to_end(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """-> (for the other end, for the proxy)."""
        kept = [
            pair
            for pair in self.headers
            if pair[0].lower() not in HOP_BY_HOP and not pair[0].lower().startswith(SEC_WEBSOCKET)
        ]
        controls = [pair for pair in kept if pair[0].lower().startswith("x-ts-parity")]
        return [pair for pair in kept if pair not in controls], controls


def judged_request(data: bytes) -> tuple[Judge, HttpRequestParser]:
    judge = Judge()
    parser = judge.parser = HttpRequestParser(judge)
    parser.feed_data(data)
    return judge, parser


def judged_answer(data: bytes) -> tuple[Judge, HttpResponseParser]:
    judge = Judge()
    parser = judge.parser = HttpResponseParser(judge)
    parser.feed_data(data)
    return judge, parser


LINES = st.sampled_from(
    [
        HOST, HOST, b"Host: a/b\r\n", b"Host:\r\n",
        b"host: a:1\r\n", b"Content-Length: 3\r\n", b"content-length:0\r\n", b"Content-Length: +3\r\n",
        b"Content-Length: 3, 3\r\n", b"Content-Length:\r\n", b"Transfer-Encoding: chunked\r\n", b"X: \r\n",
        b"X:  a b \r\n",
        b"X:\ta\tb\t\r\n", b"X: a\rb\r\n", b"X: a\x00b\r\n", b"X: gr\xfcn\r\n", b"X : a\r\n", b" folded\r\n", b"X\r\n",
        b"Connection: close\r\n", b"Connection: Keep-Alive\r\n", b"Connection: x-private, close\r\n",
        b"connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"Keep-Alive: timeout=5\r\n", b"TE: trailers\r\n",
        b"Expect: 100-continue\r\n", b"x-ts-parity-op: raw\r\n", b"Cookie: a=b\r\n", b"Cookie: c=d\r\n", b"A: b\n",
        b"Sec-WebSocket-Key1: 1 2\r\n", b"sec-websocket-key2: 3\r\n", b"HTTP2-Settings: AAMA\r\n", b"Trailer: X\r\n",
        b": no name\r\n", b"Proxy-Connection: close\r\n", b"Content-Length: 99999999999999999999\r\n",
    ]
)  # fmt: skip
ONLY_ASCII = bytes(byte if byte < 0x80 else ord("x") for byte in range(256))
NOISE = st.binary(max_size=12)
HEADERS = st.lists(st.one_of(LINES, LINES, LINES, NOISE), max_size=8).map(b"".join)
REQUEST_LINES = st.one_of(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n", b"POST /a%20b?c=d HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"get / HTTP/1.1\r\n",
            b"GET http://h/x HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"GET /\xfc HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n",
            b"GET /a/../.. HTTP/1.1\r\n", b"GET /%00 HTTP/1.1\r\n", b"GET /?%zz HTTP/1.1\r\n",
            b"CONNECT h:1 HTTP/1.1\r\n", b"PUT /x# HTTP/1.1\r\n", b"GET / HTTP/1.1 \r\n", b"\r\nGET / HTTP/1.1\r\n",
        ]
    ),
    NOISE,
)  # fmt: skip
STATUS_LINES = st.one_of(
    st.sampled_from(
        [
            b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 418 My own words\r\n", b"HTTP/1.1 204 \r\n",
            b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 200\r\n", b"HTTP/1.1 20 x\r\n",
            b"HTTP/1.1 200 gr\xfcn\r\n", b"HTTP/1.1  200 OK\r\n", b"HTTP/1.1 304 \r\n", b"http/1.1 200 OK\r\n",
        ]
    ),
    NOISE,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=600)
@given(REQUEST_LINES, HEADERS)
@example(b"POST / HTTP/1.1\r\n", HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n")
def test_a_plain_request_is_what_the_parser_reads(line: bytes, headers: bytes) -> None:
    data = line + headers + b"\r\n"
    plain = read_request_head(data)
    if plain is None:
        return
    assert read_request_head(data[: plain.end - 1]) is None
    # llhttp takes no bytes beyond ASCII in a target.
    data = line.translate(ONLY_ASCII) + headers + b"\r\n"
    judge, parser = judged_request(data[: plain.end])
    assert judge.heads == 1, "the head ends where the parser says"
    assert judged_request(data[: plain.end - 1])[0].heads == 0
    target = plain.target.encode("latin-1").translate(ONLY_ASCII)
    assert (plain.method, target) == (parser.get_method().decode(), judge.target)
    hosts = [value for name, value in judge.headers if name.lower() == "host"]
    assert why_malformed(plain.target, hosts, http10=False) == ""
    assert (list(plain.headers), list(plain.controls)) == judge.end_to_end()
    assert plain.keep_alive == judge.keep_alive
    assert parser.get_http_version() == "1.1"
    lengths = [value for name, value in judge.headers if name.lower() == "content-length"]
    assert [int(value) for value in lengths] == ([plain.length] if lengths else [])
    assert not any(name.lower() in ("transfer-encoding", "expect", "upgrade") for name, _ in judge.headers)


@pytest.mark.slow
@settings(max_examples=600)
@given(STATUS_LINES, HEADERS)
def test_a_plain_answer_is_what_the_parser_reads(line: bytes, headers: bytes) -> None:
    data = line + headers + b"\r\n"
    plain = read_response_head(data)
    if plain is None:
        return
    judge, parser = judged_answer(data[: plain.end])
    assert judge.heads == 1
    assert judged_answer(data[: plain.end - 1])[0].heads == 0
    assert (plain.status, plain.phrase.encode()) == (parser.get_status_code(), judge.phrase)
    assert (list(plain.headers), list(plain.controls)) == judge.end_to_end()
    assert plain.keep_alive == judge.keep_alive
    assert [int(v) for n, v in judge.headers if n.lower() == "content-length"] == [plain.length]


@pytest.mark.slow
@settings(max_examples=400)
@given(st.sampled_from([b"GET /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n"]), HEADERS)
@example(b"GET /x HTTP/1.1\r\n", b"!x-ts-parity-op: raw\r\n")  # no control header, but the name of another
def test_what_goes_on_as_bytes_says_what_its_headers_say(line: bytes, headers: bytes) -> None:
    plain = read_request_head(line + HOST + headers + b"\r\n")
    if plain is None or plain.block is None:
        return
    body = b"x" * plain.length
    as_bytes = Request(plain.method, plain.target, plain.headers, body, plain.block)
    one_by_one = Request(plain.method, plain.target, plain.headers, body)
    origin, address = Origin("http://i:1", Outbox(), 1.0), Address("http://i:1", "key")
    heard = []
    for request in (as_bytes, one_by_one):
        judge, _ = judged_request(b"".join(_serialized(request, address.token, origin)))
        heard.append((judge.target, sorted((name.lower(), value) for name, value in judge.headers)))
    assert heard[0] == heard[1]
    assert not any(line.lower().startswith(b"x-ts-parity") for line in plain.block.split(b"\r\n"))
    assert [int(value) for name, value in heard[0][1] if name == "content-length"] == [plain.length]
    assert not any(name.startswith(SEC_WEBSOCKET) or name in HOP_BY_HOP for name, _ in heard[0][1])


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /x\x7f HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_odd_is_left_to_the_parser(head: bytes) -> None:
    assert read_request_head(head) is None


def test_an_ordinary_head() -> None:
    data = b"POST /predictions/m HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    headers = (("Host", "h"), ("Content-Length", "2"))
    block = b"Host: h\r\nContent-Length: 2"
    plain = read_request_head(data)
    assert plain is not None
    assert (plain.method, plain.target, plain.headers, plain.block) == ("POST", "/predictions/m", headers, block)
    assert (plain.length, plain.keep_alive, plain.end) == (2, False, len(data) - 2)
    answer = b"HTTP/1.1 200 \r\nx-request-id: 1\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok"
    kept = (("x-request-id", "1"), ("content-length", "2"))
    read = read_response_head(answer)
    assert read is not None
    assert (read.status, read.phrase, read.headers) == (200, "", kept)
    assert read.block == b"x-request-id: 1\r\ncontent-length: 2"
    assert (read.length, read.keep_alive, read.end) == (2, True, len(answer) - 2)


def test_whatever_has_been_seen_before_is_read_the_same_again() -> None:
    """More different lines than are remembered."""
    for n in range(10_000):
        data = b"GET /%d HTTP/1.1\r\nHost: h\r\nX-Request-Id: %d\r\n\r\n" % (n, n)
        plain = read_request_head(data)
        assert plain is not None
        assert (plain.target, plain.headers[1]) == (f"/{n}", ("X-Request-Id", str(n)))
