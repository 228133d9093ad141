"""A gate passes bytes on; told so, it delays them, breaks connections, or leads elsewhere."""

import asyncio
import contextlib
import time

import pytest

from ts_parity.lab.gate import Gate, gates


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


@pytest.mark.slow
async def test_gates_stand_in_a_process_of_their_own(upstream):
    port, _ = upstream
    with gates([("127.0.0.1", 1), ("127.0.0.1", port)], seed=3) as process:
        first, second = process.ports
        await asked(await asyncio.open_connection("127.0.0.1", second), b"one")
        process.order(0, "aim", host="127.0.0.1", port=port)
        process.contend(1, 0.01)
        for _ in range(500):  # the order takes its way through a pipe
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await asked(await asyncio.open_connection("127.0.0.1", first), b"two")
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("it never led elsewhere")
    assert process.process.wait(timeout=60) != 0
