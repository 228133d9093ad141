"""What was found wrong at the doors once, a row each: instances and clients at their most awkward."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import suppress

import pytest

from tests.proxy.conftest import PATIENCE_S, until
from ts_parity import wire
from ts_parity.proxy.http import messages
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.server import ClientTimeouts, PendingResponse, Server
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Result, Upstream
from ts_parity.proxy.serving import routes
from ts_parity.proxy.serving.service import StreamedResponse
from ts_parity.wire import Frame, Part, pack_frame

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"
ASKED = Request("POST", "/x", (("Host", "h"),), b"body")


def reply(body: bytes) -> Response:
    return Response(200, "OK", (("content-length", str(len(body))),), body)


async def statuses(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    data = b""
    while data.count(b"HTTP/1.1") < count:
        data += await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S)
    return re.findall(rb"HTTP/1\.1 (\d+)", data)


# ---- instances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
async def test_who_takes_a_connection_and_closes_it_at_once_has_run_nothing(reset: bool) -> None:
    """A balancer before a dead instance does so. Nobody waits for an answer that cannot come."""

    def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reset:
            taken = writer.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
    results: list[Result] = []
    for n in range(20):
        upstream.send(address, ASKED, results.append)
        await until(lambda n=n: len(results) > n, "the exchange to end")
    assert all(isinstance(result, NoResponse) for result in results)
    assert upstream.in_flight == 0
    await upstream.close()
    server.close()


async def test_what_was_cancelled_while_a_connection_was_made_is_not_sent() -> None:
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
    results: list[Result] = []
    for waiting in range(6):  # of the loop, in which the connection is being made
        exchange = upstream.send(address, ASKED, results.append)
        for _ in range(waiting):
            await asyncio.sleep(0)
        sent = exchange._connection is not None
        exchange.cancel()
        await asyncio.sleep(0.02)
        assert sent or b"POST" not in b"".join(heard)
        heard.clear()
    assert results == []
    assert upstream.in_flight == 0
    await upstream.close()
    server.close()


async def test_what_was_cancelled_at_once_is_not_sent_on_a_connection_that_is_open() -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            heard.append(data)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
    for _ in range(2):
        assert isinstance(await upstream.exchange(address, ASKED, 60.0), Response)
    upstream.send(address, ASKED, lambda result: None).cancel()
    assert isinstance(await upstream.exchange(address, ASKED, 60.0), Response)
    assert len(heard) == 3
    await upstream.close()
    server.close()


async def test_a_host_that_cannot_be_one_is_unreachable() -> None:
    upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
    result = await upstream.exchange(Address("http://a..b:8080"), ASKED, 60.0)
    assert isinstance(result, NoResponse)
    assert result.refused
    await upstream.close()


# ---- clients -------------------------------------------------------------------------------------------------------


async def serving(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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
    _, writer = await serving(server)
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
    reader, writer = await serving(server)
    writer.write(GET % 1)
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"made")
    writer.close()
    await server.close()


async def test_a_connection_with_too_many_questions_ends_with_the_answer_that_closes_it() -> None:
    waiting: list[PendingResponse] = []
    server = Server(lambda request, pending: waiting.append(pending), 1000, ClientTimeouts(0.2, 0.2, 0.2))
    reader, writer = await serving(server)
    writer.write(b"GET /0 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET % 1)
    writer.write(b"".join(GET % n for n in range(20)))
    await until(lambda: len(waiting) == 1, "the first request")
    waiting[0].respond(reply(b"ok"))
    assert await statuses(reader, 1) == [b"200"]
    await until(lambda: not server.connections, "the connection to end")
    assert server.in_flight == 0
    writer.close()
    await server.close()


async def test_who_is_slow_to_take_one_answer_gets_the_others_all_the_same() -> None:
    waiting: list[PendingResponse] = []
    server = Server(lambda request, pending: waiting.append(pending), 1000, ClientTimeouts(60.0, 0.5, 60.0))
    reader, writer = await serving(server)
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


async def test_who_never_takes_its_answer_is_given_up() -> None:
    server = Server(
        lambda request, pending: pending.respond(reply(b"x" * 20_000_000)), 1000, ClientTimeouts(0.2, 0.2, 0.2)
    )
    _, writer = await serving(server)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET % 1)
    await until(lambda: bool(server.connections), "the connection")
    await until(lambda: not server.connections, "the client to be given up")
    writer.close()
    await server.close()


async def test_nobody_is_told_to_go_on_before_the_answers_that_come_first() -> None:
    big = reply(b"x" * 5_000_000)
    server = Server(lambda request, pending: pending.respond(big), 1000)
    reader, writer = await serving(server)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET % 1 + GET % 2)
    await asyncio.sleep(0.1)
    writer.write(b"POST /3 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    await asyncio.sleep(0.1)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert await statuses(reader, 3) == [b"200", b"200", b"100"]
    writer.close()
    await server.close()


# ---- memory --------------------------------------------------------------------------------------------------------


def test_what_is_long_is_not_remembered() -> None:
    """Else some thousand requests could fill the memory for good."""
    caches = (routes._prediction, routes._model_named, wire._packed_head)
    before = [cache.cache_info().currsize for cache in caches] + [len(messages._FLAGS_OF)]
    for n in range(20):
        long = f"{n:06d}" + "n" * 60_000
        routes.prediction("GET", f"/predictions/m/{long}")
        routes.model_named(f"/{long}", "")
        pack_frame(Frame((Part(((long, "x"),), b""),)))
        messages.header_flags(long)
    assert [cache.cache_info().currsize for cache in caches] + [len(messages._FLAGS_OF)] == before
