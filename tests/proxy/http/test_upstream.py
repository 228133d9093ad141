"""The instances' end over real sockets: HTTP as they speak it, well and badly, and what their answers mean."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from contextlib import suppress

import pytest

from tests.proxy.conftest import until
from tests.proxy.http.both_ends import PLAIN, Instance
from ts_parity.proxy.http.certificates import Tls
from ts_parity.proxy.http.messages import BrokenStream, Request, Response
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Result, Upstream

ASKED = Request("POST", "/x", (("Host", "h"),), b"body")


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


@pytest.mark.parametrize("status", [b"200 OK", b"404 Gone"], ids=["streamed", "gathered"])
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


async def test_what_is_cancelled_as_its_connection_fails_ends_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = Address(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
        troubles: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        for waiting in range(12):  # of the loop, in which the connection is refused
            exchange = upstream.send(address, ASKED, lambda result: None)
            for _ in range(waiting):
                await asyncio.sleep(0)
            exchange.cancel()
            await asyncio.sleep(0.02)
        del exchange
        gc.collect()
        assert troubles == []
        assert upstream.in_flight == 0
        await upstream.close()


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


async def test_tls_settings_of_an_address_that_is_forgotten_are_too() -> None:
    class Settings:
        context = ssl.create_default_context()

    known: dict[str, Tls] = {"https://127.0.0.1:1": Settings()}  # type: ignore[dict-item]
    upstream = Upstream(60.0, 60.0, known)
    for port in range(2, 50):
        upstream.adopt({f"https://127.0.0.1:{port}": Settings()})  # type: ignore[dict-item]
        upstream.forget(f"https://127.0.0.1:{port - 1}")
    assert list(upstream._tls) == ["https://127.0.0.1:49"]
    assert len(known) == 1, "it is the caller's own"
    assert upstream._origins == {}
