"""The clients' end over real sockets: HTTP as they speak it, well, badly and at its most awkward."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proxy.conftest import PATIENCE_S, read_answer, until
from tests.proxy.http.both_ends import LIMIT, by, echo, ended
from ts_parity.proxy.http.messages import MAX_HEAD_BYTES, Request, Response
from ts_parity.proxy.http.server import ClientTimeouts, PendingResponse, Server
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.serving.service import StreamedResponse

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"


@asynccontextmanager
async def serving(answer=echo, patience=None):
    server = Server(by(answer), LIMIT, patience or ClientTimeouts())
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield server, reader, writer
    finally:
        writer.close()
        await server.close()
        assert server.in_flight == 0


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_pipelined_requests_are_answered_in_order_however_they_are_split(size: int) -> None:
    requests = b"".join(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n%02d" % (n, n) for n in range(20))
    async with serving() as (_, reader, writer):
        for at in range(0, len(requests), size):
            writer.write(requests[at : at + size])
            await writer.drain()
        for n in range(20):
            assert (await read_answer(reader)).body == b"POST /%d 2 %02d" % (n, n)


async def test_a_slow_answer_holds_up_those_behind_it_and_nothing_is_lost() -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> Response:
        if request.target == "/0":
            await release.wait()
        return await echo(request)

    async with serving(slow) as (server, reader, writer):
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(200)))
        await until(lambda: server.in_flight > 1, "the first requests")
        release.set()
        for n in range(200):
            assert (await read_answer(reader)).body.startswith(b"GET /%d " % n)


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as (_, reader, writer):
        writer.write(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\nGET /y HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 10\r\n" in head
        assert (await read_answer(reader)).body == b"GET /y 1 "


@pytest.mark.parametrize(
    ("request_head", "stays"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", True),
    ],
)
async def test_connections_stay_open_as_asked(request_head: bytes, stays: bool) -> None:
    async with serving() as (_, reader, writer):
        writer.write(request_head)
        answer = await read_answer(reader)
        assert answer.status == 200
        assert (answer.get("connection") == "close") is not stays
        if stays:
            writer.write(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"/again" in (await read_answer(reader)).body
        else:
            assert await ended(reader)


@pytest.mark.parametrize(
    "smuggled",
    [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused(smuggled: bytes) -> None:
    seen = []

    async def answer(request: Request) -> Response:
        seen.append(request.target)
        return await echo(request)

    async with serving(answer) as (_, reader, writer):
        writer.write(smuggled + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
        refused = await read_answer(reader)
        assert (refused.status, refused.json()["type"]) == (400, "BadRequestException")
        assert await ended(reader)
        assert "/smuggled" not in seen


async def test_nothing_is_answered_behind_the_last_answer() -> None:
    """However it is read: by the parser too, and though the answers come at once."""
    seen: list[str] = []

    def at_once(request: Request, pending: PendingResponse) -> None:
        seen.append(request.target)
        pending.respond(Response(200, "", (("content-length", "0"),), b""))

    chunked = b"POST /%d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    plain = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"
    for request in (chunked, plain):
        seen.clear()
        server = Server(at_once, LIMIT)
        reader, writer = await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1", 0))
        server.draining = True  # so that each answer is its connection's last
        writer.write(b"".join(request % n for n in range(5)))
        assert (await read_answer(reader)).get("connection") == "close"
        assert await ended(reader)
        assert seen == ["/0"]
        writer.close()
        await server.close()
        assert server.in_flight == 0


@pytest.mark.parametrize("pieces", [1, 20])
async def test_a_head_without_end_is_refused(pieces: int) -> None:
    async with serving() as (_, reader, writer):
        for _ in range(pieces):
            writer.write((b"GET / HTTP/1.1\r\nX: " if _ == 0 else b"") + b"x" * (3 * MAX_HEAD_BYTES // pieces))
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"\r\n\r\n")
        assert (await read_answer(reader)).status == 431


async def test_a_body_over_the_limit_is_refused_after_those_before_it() -> None:
    async with serving() as (_, reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        assert (await read_answer(reader)).status == 413
        assert await ended(reader)


HALF = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"


@pytest.mark.slow
async def test_slow_clients_are_given_up() -> None:
    quick = ClientTimeouts(idle_s=0.1, head_s=0.1, body_s=0.1)
    for sent, status in ((b"GET / HT", 408), (HALF, 408), (b"", None)):
        async with serving(patience=quick) as (_, reader, writer):
            writer.write(sent)
            if status is not None:
                assert (await read_answer(reader)).status == status
            assert await ended(reader)


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    cancelled = asyncio.Event()

    async def never(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with serving(never) as (server, _, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
        await until(lambda: server.in_flight == 3, "the requests")
        writer.close()
        await asyncio.wait_for(cancelled.wait(), PATIENCE_S)
        await until(lambda: server.in_flight == 0, "nothing in flight")


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [
                    b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.1\r\n", b"Host: h\r\n", b"Content-Length: 3\r\n", b"\r\n",
                    b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"\n", b"\r", b" ",
                    b"\x00", b"Connection: close\r\n", b"Expect: 100-continue\r\n",
                    b"Content-Length: 99999999999999999999\r\n",
                    b"Connection: upgrade\r\nUpgrade: x\r\n",
                ]
            ),
        ),
        max_size=14,
    )
)  # fmt: skip
def test_no_bytes_harm_the_server_or_its_other_clients(pieces: list[bytes]) -> None:
    """Whatever comes: no exception escapes, the count of requests comes back to zero, and a neighbour is served."""
    trouble = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        async with serving() as (server, _, writer):
            neighbour, to_neighbour = await asyncio.open_connection(*writer.get_extra_info("peername"))
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            to_neighbour.write(b"GET /mine HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await asyncio.wait_for(read_answer(neighbour), PATIENCE_S)).body == b"GET /mine 1 "
            to_neighbour.close()
            writer.close()
            await until(lambda: not server.connections and not server.in_flight, "everybody to have gone")

    asyncio.run(go())
    assert trouble == []


# ---- clients at their most awkward -----------------------------------------------------------------------------------


def reply(body: bytes) -> Response:
    return Response(200, "OK", (("content-length", str(len(body))),), body)


async def statuses(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    data = b""
    while data.count(b"HTTP/1.1") < count:
        data += await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S)
    return re.findall(rb"HTTP/1\.1 (\d+)", data)


async def opened(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1", 0))


class StreamSource:
    left = False

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        self.left = True


async def test_a_stream_is_left_though_its_client_went_before_it_began() -> None:
    waiting: list[PendingResponse] = []
    server = Server(lambda request, pending: waiting.append(pending), 1000)
    _, writer = await opened(server)
    writer.write(GET % 1)
    await until(lambda: len(waiting) == 1, "the request")
    tap = StreamSource()
    stream = Stream(200, "OK", (), tap)
    waiting[0].respond(StreamedResponse(stream, ()))
    for connection in server.connections:
        connection._transport.abort()
    await until(lambda: tap.left, "the stream to be left")
    writer.close()
    await server.close()


async def test_a_client_that_asks_and_says_goodbye_at_once_still_gets_an_answer_that_was_made() -> None:
    server = Server(lambda request, pending: pending.respond(reply(b"made")), 1000)
    reader, writer = await opened(server)
    writer.write(GET % 1)
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"made")
    writer.close()
    await server.close()


@pytest.mark.slow
async def test_a_connection_with_too_many_questions_ends_with_the_answer_that_closes_it() -> None:
    waiting: list[PendingResponse] = []
    server = Server(lambda request, pending: waiting.append(pending), 1000, ClientTimeouts(0.2, 0.2, 0.2))
    reader, writer = await opened(server)
    writer.write(b"GET /0 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET % 1)
    writer.write(b"".join(GET % n for n in range(20)))
    await until(lambda: len(waiting) == 1, "the first request")
    waiting[0].respond(reply(b"ok"))
    assert await statuses(reader, 1) == [b"200"]
    await until(lambda: not server.connections, "the connection to end")
    assert server.in_flight == 0
    writer.close()
    await server.close()


@pytest.mark.slow
async def test_who_is_slow_to_take_one_answer_gets_the_others_all_the_same() -> None:
    waiting: list[PendingResponse] = []
    server = Server(lambda request, pending: waiting.append(pending), 1000, ClientTimeouts(60.0, 0.5, 60.0))
    reader, writer = await opened(server)
    writer.write(b"".join(GET % n for n in range(3)))
    big = reply(b"x" * 10_000_000)
    await until(lambda: len(waiting) == 1, "the first request")
    waiting[0].respond(big)
    await asyncio.sleep(2.5)  # longer than the patience with a head, and two looks at it
    for n in range(3):
        got = await reader.readuntil(b"\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200")
        await reader.readexactly(10_000_000 if n == 0 else 2)
        if n < 2:
            await until(lambda n=n: len(waiting) == n + 2, "the next request")
            waiting[n + 1].respond(reply(b"ok"))
    writer.close()
    await server.close()


@pytest.mark.slow
async def test_who_never_takes_its_answer_is_given_up() -> None:
    server = Server(
        lambda request, pending: pending.respond(reply(b"x" * 20_000_000)), 1000, ClientTimeouts(0.2, 0.2, 0.2)
    )
    _, writer = await opened(server)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET % 1)
    await until(lambda: bool(server.connections), "the connection")
    await until(lambda: not server.connections, "the client to be given up")
    writer.close()
    await server.close()


async def test_nobody_is_told_to_go_on_before_the_answers_that_come_first() -> None:
    big = reply(b"x" * 5_000_000)
    server = Server(lambda request, pending: pending.respond(big), 1000)
    reader, writer = await opened(server)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET % 1 + GET % 2)
    await asyncio.sleep(0.1)
    writer.write(b"POST /3 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    await asyncio.sleep(0.1)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert await statuses(reader, 3) == [b"200", b"200", b"100"]
    writer.close()
    await server.close()
