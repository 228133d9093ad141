"""Stopping behind a balancer: nobody is reset, neither at once nor while the balancer has not noticed yet."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import free_ports
from tests.proxy.conftest import Client, MakeFleet, read_answer, until
from tests.proxy.test_app import Process, draining, refused
from ts_parity.testing import Canned, FakeModel, FakeTorchServe

ASK = b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n[1, 2]"


async def test_while_balancers_have_not_noticed_it_accepts_and_says_goodbye(make_fleet: MakeFleet) -> None:
    """Not ready at once; each answer, on old connections and new ones, ends its connection."""
    fleet = await make_fleet(FakeTorchServe(FakeModel()), drain_delay_s=30.0)
    reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    writer.write(ASK)
    assert (await read_answer(reader)).get("connection") is None
    fleet.proxy.drain()
    drained = asyncio.ensure_future(fleet.proxy._drained())
    assert (await fleet.admin.get("/readyz")).status == 503
    assert (await fleet.admin.get("/livez")).status == 200
    writer.write(ASK)
    for answer in (await read_answer(reader), await fleet.post(), await fleet.post()):
        assert (answer.status, answer.get("connection")) == (200, "close")
    assert await reader.read() == b""
    writer.close()
    assert not drained.done()
    fleet.proxy.cut()  # nobody has to wait for it
    assert await drained == 0
    await refused(fleet.client)


async def test_connections_that_the_kernel_has_made_are_answered(make_fleet: MakeFleet) -> None:
    """They wait in the accept queue while the loop does something else, and closing would reset them."""
    fleet = await make_fleet(FakeTorchServe(FakeModel(workers=8)))
    clients = [socket.create_connection((fleet.client.host, fleet.client.port)) for _ in range(300)]
    for client in clients:  # the loop has not run since
        client.sendall(ASK)
    fleet.proxy.drain()
    drained = asyncio.ensure_future(fleet.proxy._drained())
    statuses: Counter[bytes] = Counter()
    for client in clients:
        reader, writer = await asyncio.open_connection(sock=client)
        statuses[(await reader.readuntil(b"\r\n"))[9:12]] += 1
        writer.close()
    assert statuses == {b"200": 300}
    assert await drained == 0


@pytest.mark.parametrize("after", [0, 3], ids=["in one go", "more behind them"])
async def test_what_was_pipelined_before_is_answered(make_fleet: MakeFleet, after: int) -> None:
    """The first answer said goodbye, and the others never came. What comes later is not waited for."""
    instance = FakeTorchServe(FakeModel(workers=8))
    fleet = await make_fleet(instance)
    reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    instance.freeze()
    writer.write(ASK * 4)
    await until(lambda: fleet.proxy._server.in_flight == 4, "them to be read")
    fleet.proxy.drain()
    drained = asyncio.ensure_future(fleet.proxy._drained())
    await until(lambda: fleet.proxy._server.draining, "the drain to begin")
    instance.thaw()
    answers = [await read_answer(reader)]
    writer.write(ASK * after)
    answers += [await read_answer(reader) for _ in range(3)]
    assert [(answer.status, answer.get("connection")) for answer in answers] == [(200, None)] * 3 + [(200, "close")]
    assert await reader.read() == b""
    writer.close()
    assert await drained == 0


@pytest.mark.slow
async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(make_fleet: MakeFleet) -> None:
    """Its request is not in flight any more, its answer is."""
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, drain_s=60.0)
    size = 1 << 25
    instance.models[0].script.append(Canned.own(200, bytes(size)))
    client = socket.create_connection((fleet.client.host, fleet.client.port))
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client, limit=1 << 16)
    writer.write(ASK)
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: fleet.proxy._server.in_flight == 0, "the answer to be written", 30)
    fleet.proxy.drain()
    drained = asyncio.ensure_future(fleet.proxy._drained())
    await asyncio.wait({drained}, timeout=0.2)
    assert not drained.done()
    assert len(await reader.readexactly(size)) == size
    writer.close()
    assert await drained == 0


CONFIGURATION = """
global
  maxconn 500
defaults
  mode http
  timeout connect 2s
  timeout client 20s
  timeout server 20s
  timeout check 2s
  retries 0
frontend front
  bind 127.0.0.1:{port}
  monitor-uri /both
  monitor fail if {{ nbsrv(proxies) lt 2 }}
  default_backend proxies
backend proxies
  option httpchk GET /readyz
  http-check expect status 200
"""


@asynccontextmanager
async def haproxy(folder: Path, own: int, ports: list[tuple[int, int]]) -> AsyncIterator[Client]:
    """A balancer that checks /readyz ten times a second and repeats nothing."""
    checked = "check inter 100ms fall 1 rise 1 port"
    servers = [f"  server s{n} 127.0.0.1:{port} {checked} {admin}\n" for n, (port, admin) in enumerate(ports)]
    file = folder / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(port=own) + "".join(servers))
    command = (shutil.which("haproxy") or "haproxy", "-db", "-f", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    client = Client(f"http://127.0.0.1:{own}")
    try:
        await both_seen(client)
        yield client
    finally:
        process.kill()
        await process.wait()


async def both_seen(balancer: Client) -> None:
    """Wait until it would send requests to either."""
    status = 0
    while status != 200:
        with contextlib.suppress(OSError):
            status = (await balancer.get("/both")).status
        await asyncio.sleep(0.02)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy")
@pytest.mark.parametrize(("processes", "stops"), [("1", 6), ("2", 4)])
async def test_two_proxies_behind_haproxy_are_stopped_in_turn_and_nobody_notices(
    tmp_path: Path, processes: str, stops: int
) -> None:
    balancer, *four = free_ports(5)
    ports = [(four[0], four[1]), (four[2], four[3])]
    async with FakeTorchServe(FakeModel(workers=32, latency_s=0.002)) as instance:

        async def start(n: int) -> Process:
            serving, admin = ports[n]
            process = Process(tmp_path)
            process.ready_file = tmp_path / f"ready{n}.json"
            process.ready_file.unlink(missing_ok=True)
            flags = {"port": str(serving), "admin_port": str(admin), "processes": processes, "drain_delay_s": "1.5"}
            await process.start(instance.endpoint, **flags)
            return process

        proxies = [await start(0), await start(1)]
        async with haproxy(tmp_path, balancer, ports) as client:
            statuses: Counter[object] = Counter()
            stop = asyncio.Event()

            async def keep_asking(keeps: bool) -> None:
                while not stop.is_set():
                    try:
                        reader, writer = await asyncio.open_connection(client.host, client.port)
                        for _ in range(50 if keeps else 1):
                            writer.write(ASK)
                            statuses[(await asyncio.wait_for(read_answer(reader), 20)).status] += 1
                            await asyncio.sleep(0.002)
                        writer.close()
                    except (OSError, asyncio.IncompleteReadError) as error:
                        statuses[type(error).__name__] += 1

            load = [asyncio.ensure_future(keep_asking(n % 2 == 0)) for n in range(8)]
            for n in range(stops):
                stopped = proxies[n % 2]
                stopped.process.send_signal(signal.SIGTERM)
                await draining(Client(f"http://127.0.0.1:{ports[n % 2][1]}"))
                code, stderr = await stopped.end()
                assert code == 0, stderr
                proxies[n % 2] = await start(n % 2)
                await both_seen(client)
            stop.set()
            await asyncio.gather(*load)
        for proxy in proxies:
            proxy.process.send_signal(signal.SIGTERM)
            assert (await proxy.end())[0] == 0
    assert set(statuses) == {200}, statuses
    assert statuses[200] > stops
