"""A gate passes bytes on; told so, it delays them, breaks connections, or leads elsewhere."""

import asyncio
import contextlib
import time

import pytest

from ts_parity.lab.faults import CONTEND, Fault
from ts_parity.lab.gate import Gate, gates
from ts_parity.lab.live import carriers_of


@pytest.fixture
async def upstream():
    """Sends back what comes; -> its port, and what has come."""
    came = []

    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            came.append(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], came
    server.close()


@contextlib.asynccontextmanager
async def gated(port):
    gate = Gate("127.0.0.1", port, "seed")
    server = await asyncio.start_server(gate.serve, "127.0.0.1", 0)
    try:
        yield gate, await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def asked(connection, text, size=None):
    reader, writer = connection
    began = time.monotonic()
    writer.write(text)
    await writer.drain()
    assert await reader.readexactly(size or len(text)) == text
    return time.monotonic() - began


async def test_a_calm_gate_passes_everything_on(upstream):
    port, came = upstream
    async with gated(port) as (_, connection):
        await asked(connection, b"one")
        await asked(connection, b"x" * 300_000)
        assert b"".join(came) == b"one" + b"x" * 300_000
        connection[1].write_eof()
        assert await connection[0].read() == b"", "an end is passed on too"


async def test_contention_makes_messages_late(upstream):
    async with gated(upstream[0]) as (gate, connection):
        gate.obey({"do": "contend", "delay_s": 0.05, "bytes_per_s": 0.0})
        took = [await asked(connection, b"one") for _ in range(3)]
        assert sum(took) > 0.05, "of six exponential delays of this mean, from a seed"
        gate.obey({"do": "contend", "delay_s": 0.0, "bytes_per_s": 0.0})
        await asked(connection, b"calm again")


async def test_a_contended_link_is_slower(upstream):
    async with gated(upstream[0]) as (gate, connection):
        gate.obey({"do": "contend", "delay_s": 0.0, "bytes_per_s": 1e6})
        assert await asked(connection, b"x" * 50_000) >= 0.1, "there and back"


async def test_a_reset_breaks_connections_and_not_the_gate(upstream):
    async with gated(upstream[0]) as (gate, connection):
        await asked(connection, b"one")
        gate.obey({"do": "reset"})
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asked(connection, b"two")


async def test_where_nobody_listens_a_connection_breaks():
    async with gated(1) as (_, (reader, _)):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="knows how to 'dance'"):
        Gate("127.0.0.1", 1, "seed").obey({"do": "dance"})


async def leads_to(process, gate, port):
    """Returns when the order has been obeyed: it takes its way through a pipe."""
    process.order(gate, "aim", host="127.0.0.1", port=port)
    for _ in range(500):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await asked(await asyncio.open_connection("127.0.0.1", process.ports[gate]), b"two")
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never led elsewhere")


@pytest.mark.slow
async def test_gates_stand_in_a_process_of_their_own(upstream):
    port, _ = upstream
    with gates([("127.0.0.1", 1), ("127.0.0.1", port)], seed=3) as process:
        await asked(await asyncio.open_connection("127.0.0.1", process.ports[1]), b"one")
        process.contend(1, 0.01)
        await leads_to(process, 0, port)
    assert process.process.wait(timeout=60) != 0


@pytest.mark.slow
async def test_a_throttled_link_makes_a_large_body_late(upstream):
    body, bytes_per_s = b"x" * 100_000, 1e6
    with gates([("127.0.0.1", upstream[0]), ("127.0.0.1", 1)]) as process:
        connection = await asyncio.open_connection("127.0.0.1", process.ports[0])
        await asked(connection, body)
        carriers_of([], process)[CONTEND](Fault(0.0, 0, CONTEND, 1.0, bytes_per_s=bytes_per_s))
        await leads_to(process, 1, upstream[0])  # orders are obeyed in turn
        assert await asked(connection, body) >= len(body) / bytes_per_s
