"""The two doors alone, over real sockets: HTTP as clients and instances speak it, well and badly."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proxy.conftest import PATIENCE_S, read_answer, until
from ts_parity.proxy.http.messages import MAX_HEAD_BYTES, BrokenStream, Request, Response
from ts_parity.proxy.http.server import ClientTimeouts, PendingResponse, Server
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Upstream

LIMIT = 1000


async def echo(request: Request) -> Response:
    """What was asked, as an answer."""
    body = f"{request.method} {request.target} {len(request.headers)} ".encode() + request.body
    return Response(200, "OK", (("x-echo", "1"), ("content-length", str(len(body)))), body)


def by(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request, PendingResponse], None]:
    """A coroutine as what a server asks; it is cancelled if its client leaves."""

    def ask(request: Request, pending: PendingResponse) -> None:
        task = asyncio.ensure_future(answer(request))
        pending.on_disconnect = task.cancel
        task.add_done_callback(lambda task: task.cancelled() or pending.respond(task.result()))

    return ask


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


async def ended(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    return True


# ---- clients -------------------------------------------------------------------------------------------------------


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


# ---- instances -----------------------------------------------------------------------------------------------------


class Instance:
    """Answers each request with the next of its lines; `None` closes the connection instead."""

    def __init__(self, *says: bytes | None) -> None:
        self.says = list(says)
        self.heard: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> "Instance":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address(f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")
        self.upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.upstream.close()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while self.says:
                self.heard.append(await reader.readuntil(b"\r\n\r\n"))
                said = self.says.pop(0)
                if said is None:
                    break
                writer.write(said)
        writer.close()

    async def get(self, method: str = "GET", timeout_s: float = 60.0):
        request = Request(method, "/x", (("Host", "h"),), b"")
        return await self.upstream.exchange(self.address, request, timeout_s)


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("end", [b"0\r\nX: ", b"0\r\n", b"2;x="], ids=["one trailer", "trailers", "an extension"])
async def test_what_an_instance_says_beside_its_body_has_an_end(end: bytes) -> None:
    """The parser gathers a trailer until it ends, and tells nobody: one instance could fill the memory."""
    flood = (b"x: y\r\n" if end == b"0\r\n" else b"x" * 8) * 5000

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n" + end)
        with suppress(ConnectionError):
            while True:
                writer.write(flood)
                await writer.drain()

    instance = await asyncio.start_server(say, "127.0.0.1", 0)
    upstream = Upstream(60.0, 60.0)
    address = Address(f"http://127.0.0.1:{instance.sockets[0].getsockname()[1]}")
    answer = await upstream.exchange(address, Request("GET", "/x", (("Host", "h"),), b""), 60.0)
    assert isinstance(answer, Stream)
    with pytest.raises(BrokenStream, match="over 65536 bytes"):
        assert [piece async for piece in answer] == [b"ab"]
    await upstream.close()
    instance.close()


async def test_a_connection_is_used_again() -> None:
    async with Instance(PLAIN, PLAIN, PLAIN) as instance:
        assert [(await instance.get()).body for _ in range(3)] == [b"ok"] * 3
        assert instance.connections == 1


@pytest.mark.parametrize(
    ("says", "status", "body"),
    [
        (b"HTTP/1.1 200 \r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    ],
)
async def test_answers_of_every_framing_are_read(says: bytes, status: int, body: bytes) -> None:
    async with Instance(says) as instance:
        answer = await instance.get()
        assert (answer.status, answer.body) == (status, body)


async def test_the_answer_to_head_has_no_body_though_it_has_a_length() -> None:
    async with Instance(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", PLAIN) as instance:
        answer = await instance.get("HEAD")
        assert (answer.body, answer.header("content-length")) == (b"", "9")
        assert (await instance.get()).body == b"ok"


@pytest.mark.parametrize("stray", [PLAIN.replace(b"ok", b"no"), b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_answer_that_nobody_asked_for_is_given_to_nobody(stray: bytes) -> None:
    """It comes in one packet with a good one; the connection is not used again, least of all by two at a time."""
    async with Instance(PLAIN + stray, PLAIN, PLAIN, PLAIN) as instance:
        assert (await instance.get()).body == b"ok"
        answers = await asyncio.gather(*(instance.get() for _ in range(3)))
        assert [answer.body for answer in answers] == [b"ok"] * 3


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"


@pytest.mark.parametrize(
    "behind",
    [
        PLAIN.replace(b"ok", b"no"),
        CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"2\r\nno\r\n0\r\n\r\n",
        b"\x00\x01",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_what_follows_the_last_chunk_goes_to_nobody(behind: bytes) -> None:
    """It was appended to the body that the client got; nor is that connection used again."""
    async with Instance(CHUNKED + b"\r\n" + behind, PLAIN) as instance:
        stream = await instance.get()
        assert isinstance(stream, Stream)
        assert b"".join([piece async for piece in stream]) == b"ok"
        answer = await instance.get()
        assert (answer.body, instance.connections) == (b"ok", 2)


@pytest.mark.parametrize("status", [b"200 OK", b"503 Busy"], ids=["streamed", "gathered"])
async def test_trailers_are_no_headers(status: bytes) -> None:
    """They came late, from whoever made the body, and were given to the client as if the instance had said them."""
    trailers = b"Set-Cookie: a=b\r\nX-T: 1\r\n\r\n"
    async with Instance(CHUNKED.replace(b"200 OK", status) + trailers, PLAIN) as instance:
        answer = await instance.get()
        assert answer.headers == ()
        assert (b"".join([piece async for piece in answer]) if isinstance(answer, Stream) else answer.body) == b"ok"
        assert (await instance.get()).body == b"ok"
        assert instance.connections == 1


@pytest.mark.parametrize("upgrade", [b"", b"Connection: upgrade\r\nUpgrade: x\r\n"])
async def test_an_instance_does_not_change_the_protocol(upgrade: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with Instance(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + b"\r\n\x00\x01" + PLAIN, PLAIN) as instance:
        assert isinstance(await instance.get(), NoResponse)
        assert (await instance.get()).body == b"ok"
    assert not caplog.records, "an exception must not be what ends the connection"


async def test_interim_answers_without_end_are_none() -> None:
    async with Instance(b"HTTP/1.1 102 Processing\r\n\r\n" * 4000, PLAIN) as instance:
        assert isinstance(await instance.get(), NoResponse)
        assert (await instance.get()).body == b"ok"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2, 2\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Content-Length: 2\r\nX: y\r\n z\r\n",
        b"Content-Length: 2\r\nX : y\r\n",
        b"Content-Length: 2\r\nX: \x00\r\n",
    ],
)
async def test_an_answer_that_two_parsers_could_read_differently_is_none(head: bytes) -> None:
    async with Instance(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nok", PLAIN) as instance:
        assert isinstance(await instance.get(), NoResponse)
        assert (await instance.get()).body == b"ok"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_body_where_there_can_be_none_goes_to_nobody(status: bytes) -> None:
    async with Instance(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno", PLAIN) as instance:
        assert (await instance.get()).body == b""
        assert (await instance.get()).body == b"ok"
        assert instance.connections == 2


async def test_an_idle_connection_that_was_closed_costs_nothing() -> None:
    """The instance closes as we write: nothing was run, and another connection is tried."""
    async with Instance(PLAIN, None, PLAIN) as instance:
        assert (await instance.get()).body == b"ok"
        assert (await instance.get()).body == b"ok"
        assert len(instance.heard) == 3


async def test_a_new_connection_that_is_closed_without_an_answer_is_a_failure() -> None:
    async with Instance(None, PLAIN) as instance:
        answer = await instance.get()
        assert isinstance(answer, NoResponse)
        assert not answer.refused


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99999,
    ],
)
async def test_half_an_answer_is_none(says: bytes) -> None:
    async with Instance(says) as instance:
        assert isinstance(await instance.get(), NoResponse)


async def test_no_answer_in_time() -> None:
    async with Instance(b"HTTP/1.1 200 OK\r\n", PLAIN) as instance:
        answer = await instance.get(timeout_s=0.1)
        assert answer == NoResponse("no answer in time")


async def test_a_streamed_answer_waits_for_its_reader() -> None:
    piece = b"x" * 50_000
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for _ in range(100)) + b"0\r\n\r\n"
    async with Instance(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body, PLAIN) as instance:
        stream = await instance.get()
        assert isinstance(stream, Stream)
        await asyncio.sleep(0.2)
        assert stream.held <= 1 << 20, "what nobody reads is left to the instance"
        assert sum([len(part) async for part in stream]) == 100 * len(piece)
        assert (await instance.get()).body == b"ok"
        assert instance.connections == 1
