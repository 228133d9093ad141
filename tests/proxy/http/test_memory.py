"""What a client or an instance can make the proxy hold: by the byte, within limits, and nothing once it has left.

Memory is counted by Python itself, so that no allocator's habits are measured; `benchmarks/soak.py` looks at
the process.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import uvloop

from tests.proxy.authority import Authority
from tests.proxy.conftest import until
from ts_parity.config import Settings
from ts_parity.proxy.http.certificates import client_side
from ts_parity.proxy.http.connections import UpstreamConnection
from ts_parity.proxy.http.messages import BrokenStream, Request
from ts_parity.proxy.http.request_reader import RequestReader
from ts_parity.proxy.http.server import ClientConnection, PendingResponse, Server
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, Upstream

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")

CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
READ = 262_144
"""What a loop takes from a socket at a time."""


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """-> bytes that were allocated since and are still held; nothing is collected but by counting references."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    begin = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - begin
    finally:
        tracemalloc.stop()
        gc.enable()


# ---- on sockets ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request):
    return request.param()


@asynccontextmanager
async def crowd(
    authority: Authority | None, begin: bytes, more: bytes, seen: Callable[[Server], bool], count: int = 5
) -> AsyncIterator[tuple[Server, Callable[[], int]]]:
    """So many clients that have sent this to a server that answers nobody; then they leave."""
    tls = None
    if authority is not None:
        certificate, key = authority.issue()
        tls = client_side(Settings(tls_certificate=certificate, tls_key=key))
    trusting = authority.trusting if authority is not None else None
    server = Server(lambda request, turn: None, 10**7, tls=tls)
    port = await server.start("127.0.0.1", 0)
    with counted() as held:
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writers.append(writer)
            writer.write(begin)
            writer.write(more)
        await until(lambda: seen(server), "what was sent to be read")
        yield server, held
        for writer in writers:
            writer.transport.abort()
        await until(lambda: not server.connections, "the connections to go")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert alive(ClientConnection) == alive(RequestReader) == alive(PendingResponse) == 0, "kept by each other"
    await server.close()


def alive(kind: type) -> int:
    return sum(type(item) is kind for item in gc.get_objects())


def received(server: Server, size: int) -> bool:
    return sum(connection._reader._body_bytes for connection in server.connections) >= size


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("begin", [SIZED, CHUNKED + b"%x\r\n" % 10**6], ids=["sized", "chunked"])
async def test_who_leaves_in_the_middle_of_a_body_leaves_nothing(authority: Authority, begin: bytes, tls: bool) -> None:
    """It was kept until a collector ran, which an idle proxy never sees: 742 MB."""
    size = 400_000
    async with crowd(authority if tls else None, begin, bytes(size), lambda s: received(s, 5 * size)) as (_, held):
        assert held() > 5 * size


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GET, GET[:-2] + b"Connection: x, y\r\n\r\n"], ids=["plain", "odd"])
async def test_who_pipelines_without_end_is_read_ahead_of_to_a_limit(kind: bytes) -> None:
    """It was 1.3 MB a connection: all that was in one packet, each request with what it takes in Python."""
    flood = kind * 20_000
    async with crowd(None, b"", flood, lambda s: sum(c.reading_paused for c in s.connections) == 5) as (server, held):
        # What its client still holds is no concern of ours, but that is in this process too.
        assert held() < 5 * (len(flood) + READ + 2 * 65536)
        for connection in [*server.connections]:  # its goodbye stands behind what no kernel has room for
            connection.cut()
        del connection


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_pipelines_and_leaves_is_noticed(authority: Authority, tls: bool) -> None:
    """Reading had stopped, so its end was not seen, and its queries were worked off one by one."""
    trusted = authority if tls else None
    async with crowd(trusted, b"", GET * 40, lambda s: sum(c.reading_paused for c in s.connections) == 5) as (
        server,
        _,
    ):
        assert server.in_flight >= 5 * 17
    assert server.in_flight == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [b"Content-Length: 2000000\r\n\r\n", b"X: y, z\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"],
    ids=["sized", "until it closes", "chunked"],
)
async def test_an_instance_that_leaves_in_the_middle_of_an_answer_leaves_nothing(said: bytes) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + said + bytes(1_000_000))
        writer.close()

    instance = await asyncio.start_server(say, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{instance.sockets[0].getsockname()[1]}")
    upstream = Upstream(60.0, 60.0)
    asked = Request("GET", "/x", (("Host", "h"),), b"")
    with counted() as held:
        for _ in range(5):
            answer = await upstream.exchange(address, asked, 60.0)
            if isinstance(answer, Stream):
                with suppress(BrokenStream):
                    assert [len(piece) async for piece in answer]
            del answer
        await until(lambda: alive(UpstreamConnection) == 0, "the connections to go")
        await asyncio.sleep(0)
        assert held() < 1_000_000
    await upstream.close()
    instance.close()
