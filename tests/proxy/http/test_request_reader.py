"""Requests out of bytes: what they cost while they are read, and how far ahead."""

from __future__ import annotations

from random import Random

import pytest

from tests.proxy.http.both_ends import PLAIN, Instance
from tests.proxy.http.test_memory import CHUNKED, SIZED, counted
from ts_parity.proxy.http.buffers import BodyBuffer
from ts_parity.proxy.http.messages import MAX_HEADERS, Request, Response
from ts_parity.proxy.http.request_reader import RequestReader
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import NoResponse

HOST = b"Host: h\r\n"


class Requests:
    """Takes what comes and answers nothing, up to `room` requests."""

    def __init__(self, room: int = 10**9) -> None:
        self.requests: list[Request] = []
        self.room = room
        self.reader = RequestReader(self, 10**8)

    def on_begin(self) -> None:
        pass

    def on_expect_continue(self) -> None:
        pass

    def on_request(self, request: Request, size: int, keep_alive: bool, http10: bool) -> None:
        self.requests.append(request)
        self.reader.paused = len(self.requests) >= self.room


# ---- by the byte ---------------------------------------------------------------------------------------------------


def test_a_buffer_gives_back_what_it_was_given() -> None:
    dice = Random(1)
    buffer = BodyBuffer()
    for _ in range(50):
        pieces = [
            dice.randbytes(dice.choice([0, 1, 2, 40, 4095, 4096, 5000, 70_000])) for _ in range(dice.randrange(9))
        ]
        for piece in pieces:
            buffer.add(piece)
        assert buffer.take() == b"".join(pieces)
    assert buffer.take() == b""


@pytest.mark.slow
@pytest.mark.parametrize("head", [CHUNKED, SIZED])
def test_a_body_in_tiny_pieces_costs_its_bytes(head: bytes) -> None:
    """It was 27 times as many: 8 connections took 1.4 GB."""
    taker = Requests()
    taker.reader.feed(head)
    size = 12_000 if head is CHUNKED else 200_000
    with counted() as held:
        for _ in range(size // 2):
            taker.reader.feed(b"2\r\nab\r\n" if head is CHUNKED else b"ab")
        assert size <= held() < 1.5 * size + 4096
    assert taker.requests == []


def test_a_body_that_is_mostly_chunk_headers_is_refused() -> None:
    """Up to 64 KB of them are fine, and so are as many as there are bytes of a body."""
    taker = Requests()
    taker.reader.feed(CHUNKED + b"1\r\nx\r\n" * 12_000 + b"0\r\n\r\n" + CHUNKED + b"8\r\n01234567\r\n" * 40_000)
    assert [len(request.body) for request in taker.requests] == [12_000]
    assert taker.reader.refusal is None
    taker = Requests()
    for _ in range(14_000):
        taker.reader.feed(CHUNKED + b"1\r\nx\r\n" if not taker.reader.in_body else b"1\r\nx\r\n")
    assert taker.reader.refusal is not None
    assert b"mostly chunk headers" in taker.reader.refusal.body
    taker = Requests()
    taker.reader.feed(CHUNKED)
    for _ in range(20):
        taker.reader.feed(b"1;" + b"e" * 4000 + b"\r\nx\r\n")
    assert taker.reader.refusal is not None


@pytest.mark.slow
def test_a_stream_that_nobody_reads_costs_its_bytes() -> None:
    class StreamSource:
        paused = False

        def pause(self) -> None:
            self.paused = True

        def resume(self) -> None:
            self.paused = False

        abort = pause

    tap = StreamSource()
    stream = Stream(200, "OK", (), tap)
    with counted() as held:
        while not tap.paused:
            stream.feed(bytes(2))
        assert held() < 1.5 * stream.held


async def test_chunks_that_were_gathered_are_all_there() -> None:
    chunks = [b"%d " % n for n in range(1000)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    async with Instance(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body) as instance:
        stream = await instance.get()
        assert b"".join([part async for part in stream]) == b"".join(chunks)


# ---- heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("count", [MAX_HEADERS, MAX_HEADERS + 2, 12_000])
def test_a_head_has_so_many_headers_and_no_more(count: int, whole: bool) -> None:
    head = b"GET / HTTP/1.1\r\n" + HOST + b"a:b\r\n" * (count - 1)
    taker = Requests()
    with counted() as held:
        taker.reader.feed(head + b"\r\n" if whole else head)
        assert held() < len(head) + 2 * 160 * MAX_HEADERS + 4096
    if count > MAX_HEADERS:
        assert taker.reader.refusal is not None
        assert (taker.reader.refusal.status, b"200 headers" in taker.reader.refusal.body) == (431, True)
    else:
        assert taker.reader.refusal is None
        assert len(taker.requests) == whole


@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
async def test_an_answer_with_a_flood_of_headers_is_none(framing: bytes) -> None:
    async with Instance(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MAX_HEADERS + framing, PLAIN) as instance:
        answer = await instance.get()
        assert isinstance(answer, NoResponse)
        assert "over 200 headers" in answer.reason
    async with Instance(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_HEADERS - 1) + framing, PLAIN) as instance:
        assert isinstance(await instance.get(), (Response, Stream))


# ---- read ahead ----------------------------------------------------------------------------------------------------


PLAIN_GET = b"GET /%d HTTP/1.1\r\n" + HOST + b"\r\n"
ODD_GET = b"GET /%d HTTP/1.1\r\n" + HOST + b"Connection: x, y\r\n\r\n"
EXPECTING = b"POST /%d HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
IN_CHUNKS = b"POST /%d HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
UPGRADING = b"GET /%d HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
KINDS = {"plain": PLAIN_GET, "odd": ODD_GET, "expecting": EXPECTING, "chunked": IN_CHUNKS, "upgrading": UPGRADING}


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_a_reader_stops_where_its_taker_is_full_and_goes_on_there(kind: str, size: int) -> None:
    """Inside the parser too: it is not given what it must not read yet."""
    shapes = [*KINDS.values()] if kind == "mixed" else [KINDS[kind]]
    data = b"".join(shapes[n % len(shapes)] % n for n in range(60))
    taker = Requests(room=1)
    for at in range(0, len(data), size):
        taker.reader.feed(data[at : at + size])
        # What ends with an empty line may end just before another one that does.
        assert len(taker.requests) <= 3
    while len(taker.requests) < 60:
        known = len(taker.requests)
        taker.room, taker.reader.paused = known + 1, False
        taker.reader.resume()
        assert known < len(taker.requests) <= known + 3
    assert [request.target for request in taker.requests] == [f"/{n}" for n in range(60)]
    assert taker.reader.refusal is None
