"""More clients than open files: those who are served stay so, and who is not is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxy.conftest import Client, MakeFleet, read_answer, until
from tests.proxy.http.both_ends import PLAIN, Instance, by, echo
from tests.proxy.test_app import RUN
from ts_parity.proxy.http.descriptors import ClientLimit, client_limit
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.server import PendingResponse, Server
from ts_parity.testing import FakeModel, FakeTorchServe

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("files", "places", "instances", "connections", "burst"),
    [(64, 6, 3, 16, 8), (1024, 100, 10, 756, 64), (65536, 100, 10, 64308, 1024), (64, 500, 100, 8, 8)],
)
def test_clients_get_what_is_left(files: int, places: int, instances: int, connections: int, burst: int) -> None:
    assert client_limit(files, places, instances) == ClientLimit(connections, burst, files)


def test_where_queries_are_forwarded_each_client_may_need_a_connection_more() -> None:
    assert client_limit(1024, 100, 10, forwards=True) == ClientLimit(378, 64, 1024)
    assert client_limit(64, 500, 100, forwards=True) == ClientLimit(8, 8, 64)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))

    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ts_parity.proxy.http import descriptors as d; d.raise_limit(); print(d.open_files())",
        ],
        preexec_fn=lower,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "128", said.stderr


class Crowded:
    """A server with room for two clients."""

    def __init__(self, answer=None) -> None:
        self.server = Server(answer or by(echo), 1000)
        self.server.limit = ClientLimit(2, 8, 64)

    async def __aenter__(self) -> Crowded:
        self.port = await self.server.start("127.0.0.1", 0)
        self.writers: list[asyncio.StreamWriter] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.close()
        await self.server.close()

    async def client(self, data: bytes = b"") -> asyncio.StreamReader:
        seen = sum(self.server.clients()) + self.server.refused
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        await until(lambda: sum(self.server.clients()) + self.server.refused > seen, "the connection")
        return reader

    def settle(self) -> None:
        """As if a while had gone by."""
        for connection in self.server.connections:
            connection.since -= 10.0


async def test_who_is_too_many_is_told_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with Crowded() as it:
        first, second = await it.client(), await it.client()
        for n in range(3):
            answer = await read_answer(await it.client(GET % n))
            assert (answer.status, answer.get("retry-after"), answer.get("connection")) == (503, "1", "close")
            assert "too many connections" in answer.json()["message"]
        for reader, writer in zip((first, second), it.writers, strict=False):
            writer.write(GET % 7)
            assert (await read_answer(reader)).status == 200
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert told == [it.server.problem]
        assert "2 connections that 64 open files leave" in told[0]
        assert it.server.clients()[1:] == (2, 3, 0)


async def test_who_has_been_idle_for_longest_makes_room() -> None:
    async with Crowded() as it:
        used, never = await it.client(GET % 0), await it.client()
        assert (await read_answer(used)).status == 200
        it.settle()
        for connection in it.server.connections:  # the one that has asked did so later
            connection.since += connection._reader._head_bytes > 0
        assert (await read_answer(await it.client(GET % 1))).status == 200
        assert await never.read() == b""
        it.writers[0].write(GET % 2)
        assert (await read_answer(used)).status == 200
        assert it.server.clients() == (2, 2, 0, 1)


@pytest.mark.parametrize("data", [GET % 1, b"GET / HT", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab"])
async def test_who_is_asking_or_waiting_is_not_idle(data: bytes) -> None:
    waiting: list[PendingResponse] = []

    def keep(request: Request, pending: PendingResponse) -> None:
        waiting.append(pending)

    async with Crowded(keep) as it:
        for _ in range(2):
            await it.client(data)
        await until(
            lambda: all(c._current or c._reader.in_head or c._reader.in_body for c in it.server.connections), "it"
        )
        it.settle()
        assert (await read_answer(await it.client())).status == 503
        for pending in waiting:
            pending.respond(Response(200, "OK", (("content-length", "0"),), b""))


async def test_without_a_descriptor_the_connection_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the instance that failed."""
    loop = asyncio.get_running_loop()
    make, tried = loop.create_connection, []

    async def full(*args, **kwargs):
        tried.append(1)
        if len(tried) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await make(*args, **kwargs)

    async with Instance(PLAIN) as instance:
        monkeypatch.setattr(loop, "create_connection", full)
        assert (await instance.get(timeout_s=60.0)).body == b"ok"
        assert len(tried) == 3


async def test_status_and_metrics_tell(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert "ts_parity_client_connections 0.0" in (await fleet.admin.get("/metrics")).body.decode()
    fleet.proxy._server.limit = ClientLimit(0, 8, 64)
    assert (await fleet.post()).status == 503
    status = (await fleet.admin.get("/status")).json()
    assert [problem for problem in status["problems"] if "open files leave" in problem] == [fleet.proxy._server.problem]
    text = (await fleet.admin.get("/metrics")).body.decode()
    assert 'ts_parity_clients_turned_away_total{how="refused"} 1.0' in text


async def test_idle_clients_of_the_admin_port_have_a_limit_too(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knew none, and they could take all open files there are. Who asks stays, and who comes is heard."""
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert [answer.status for answer in await asyncio.gather(*(fleet.admin.get("/health") for _ in range(50)))] == [
        200
    ] * 50
    monkeypatch.setattr(fleet.proxy._admin._runners[0].server, "limit", 8)
    busy, asking = await asyncio.open_connection(fleet.admin.host, fleet.admin.port)
    crowd = []
    for _ in range(10):
        asking.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(busy)).status == 200
        crowd += [await asyncio.open_connection(fleet.admin.host, fleet.admin.port) for _ in range(4)]
        assert (await fleet.admin.get("/health")).status == 200
    gone = [await reader.read() for reader, _ in crowd[: len(crowd) - 8]]
    assert gone == [b""] * len(gone)
    for _, writer in [*crowd, (busy, asking)]:
        writer.close()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
async def test_more_idle_clients_than_open_files(tmp_path: Path) -> None:
    """Instances and admin port notice nothing, and every client that asks is answered."""
    ready = tmp_path / "ready.json"
    async with FakeTorchServe(FakeModel(workers=4)) as one, FakeTorchServe(FakeModel(workers=4)) as two:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUN, "serve", "--port", "0", "--admin-port", "0", "--ready-file", str(ready)),
            *("--endpoint", one.endpoint, "--endpoint", two.endpoint),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(ready.exists, "the proxy to be ready")
            urls = json.loads(ready.read_text())
            client, admin = Client(urls["url"]), Client(urls["admin_url"])
            crowd = [await asyncio.open_connection(client.host, client.port) for _ in range(70)]
            crowd += [await asyncio.open_connection(admin.host, admin.port) for _ in range(70)]
            statuses = []
            while 200 not in statuses[-3:]:  # at the latest when one of the crowd has been idle for a second
                # Of very many that come at once, some may be sending still when they are told and cut off.
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    statuses.append((await client.post("/predictions/linear", b"[1, 2]")).status)
            assert set(statuses) <= {200, 503}
            assert (await admin.get("/health")).status == 200
            problems = (await admin.get("/status")).json()["problems"]
            assert sum("open files leave" in problem for problem in problems) == 1
            for _, writer in crowd:
                writer.close()
        finally:
            process.terminate()
        _, stderr = await process.communicate()
    assert process.returncode == 0
    assert stderr.decode().count("open files leave") == 1
    assert "Traceback" not in stderr.decode()
