"""Three `ts-parity serve` before twelve instances, in processes of their own: killed, restarted, stopped and drained
under load, and each query has its one right answer.
"""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_ports
from tests.proxy.authority import Authority
from tests.proxy.conftest import Client, Raw, until
from tests.proxy.test_app import Process
from ts_parity.testing import FakeModel, FakeTorchServe

pytestmark = pytest.mark.slow

POOL = "linear/1.0"


class Several:
    """Proxies with the same settings, each by its number."""

    def __init__(self, folder: Path, instances: list[FakeTorchServe], count: int, **settings: str) -> None:
        self.folder = folder
        self.instances = instances
        self.ports = free_ports(count)
        self.settings = {"peers": ",".join(self.url(n) for n in range(count)), "secret": "s3cret", **settings}
        self.processes: dict[int, Process] = {}
        self.admin: dict[int, Client] = {}
        self._started = 0

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.ports[number]}"

    async def start(self, number: int, **settings: str) -> None:
        self._started += 1
        folder = self.folder / str(self._started)
        folder.mkdir()
        process = self.processes[number] = Process(folder)
        chosen = {"port": str(self.ports[number]), **self.settings, **settings}
        ready = await process.start(*(each.endpoint for each in self.instances), **chosen)
        self.admin[number] = Client(ready["admin_url"])

    async def close(self) -> None:
        for process in self.processes.values():
            if process.process.returncode is None:
                process.process.send_signal(signal.SIGCONT)
                process.process.kill()
            await process.end()

    async def sharing(self, number: int) -> Any:
        return (await self.admin[number].get("/status")).json()["sharing"]

    async def owner(self, *among: int, alive: int) -> int:
        """The one that all of these name, once each sees so many others."""
        while True:
            said = [await self.sharing(number) for number in among]
            seen = [sum(peer["state"] == "alive" for peer in one["peers"]) for one in said]
            named = [one["served_by"].get(POOL) for one in said]
            owners = {n if name == "this proxy" else name for n, name in zip(among, named, strict=True)}
            owners = {self.number(owner) if isinstance(owner, str) else owner for owner in owners}
            if all(number == alive for number in seen) and len(owners) == 1 and None not in named:
                (owner,) = owners
                assert isinstance(owner, int)
                return owner
            await asyncio.sleep(0.1)

    def number(self, url: str) -> int:
        return next(n for n in range(len(self.ports)) if self.url(n) == url)


class Load:
    """Clients at some of the proxies. `finish` checks that each query has had its one right answer."""

    def __init__(self, several: Several, *at: int) -> None:
        self.asked = 0
        self.answers: dict[int, Raw] = {}
        self._over = asyncio.Event()
        self._clients = [asyncio.create_task(self._ask(Client(several.url(number)))) for number in at for _ in range(3)]

    async def _ask(self, client: Client) -> None:
        while not self._over.is_set():
            x, self.asked = self.asked, self.asked + 1
            assert x not in self.answers
            self.answers[x] = await client.post("/predictions/linear", json.dumps([x, 0]).encode())

    async def more(self, count: int = 50) -> None:
        seen = len(self.answers)
        await until(lambda: len(self.answers) >= seen + count or any(c.done() for c in self._clients), "answers")

    async def finish(self) -> None:
        self._over.set()
        await asyncio.gather(*self._clients)
        assert sorted(self.answers) == [*range(self.asked)]
        wrong = {x: (a.status, a.body) for x, a in self.answers.items() if a.status != 200 or a.json() != [x, 3.0 * x]}
        assert not wrong


@pytest.mark.long
async def test_killed_restarted_stopped_and_drained_under_load(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        instances = [FakeTorchServe(FakeModel(latency_s=0.005)) for _ in range(12)]
        for instance in instances:
            await stack.enter_async_context(instance)
        several = Several(tmp_path, instances, 3)
        stack.push_async_callback(several.close)
        await several.start(0, processes="2")
        await several.start(1)
        await several.start(2)
        first = await several.owner(0, 1, 2, alive=2)
        others = [number for number in range(3) if number != first]

        load = Load(several, *others)
        await load.more()
        several.processes[first].process.kill()
        await load.more()
        second = await several.owner(*others, alive=1)
        assert second != first
        await several.start(first)
        await several.owner(0, 1, 2, alive=2)
        await load.more()
        await load.finish()

        owner = await several.owner(0, 1, 2, alive=2)
        left = [number for number in range(3) if number != owner]
        load = Load(several, *left)
        await load.more()
        # Proxy 0 had several processes at first, and stopping the parent stops none of its children.
        if owner != 0 or first == 0:
            several.processes[owner].process.send_signal(signal.SIGSTOP)
            await several.owner(*left, alive=1)
            await load.more()
            several.processes[owner].process.send_signal(signal.SIGCONT)
            await several.owner(0, 1, 2, alive=2)
            await load.more()
        several.processes[owner].process.send_signal(signal.SIGTERM)
        await several.owner(*left, alive=1)
        await load.more()
        await load.finish()
        code, said = await several.processes[owner].end()
        assert code == 0
        assert "Traceback" not in said, said


async def test_over_tls_by_name(tmp_path: Path, authority: Authority) -> None:
    """All have one certificate, which each trusts, and it names what they are asked by."""
    certificate, key = authority.issue("localhost")
    async with AsyncExitStack() as stack:
        instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
        for instance in instances:
            await stack.enter_async_context(instance)
        ports = free_ports(2)
        peers = ",".join(f"https://localhost:{port}" for port in ports)
        several = Several(tmp_path, instances, 2, tls_certificate=certificate, tls_key=key, peers=peers)
        several.ports = ports
        stack.push_async_callback(several.close)
        for number in range(2):
            await several.start(number)
        named: set[str] = set()
        while len(named) != 1:
            await asyncio.sleep(0.1)
            said = [await several.sharing(number) for number in range(2)]
            alive = [sum(peer["state"] == "alive" for peer in one["peers"]) for one in said]
            named = {peer["name"] for one in said for peer in one["peers"] if peer["name"] in one["served_by"].values()}
            named = named if alive == [1, 1] else set()
        client = Client(f"https://localhost:{ports[0]}", authority.trusting)
        other = Client(f"https://localhost:{ports[1]}", authority.trusting)
        for each in (client, other):
            assert (await each.post("/predictions/linear", b"[1, 2]")).json() == [5.0, 11.0]
        text = "".join([(await several.admin[number].get("/metrics")).body.decode() for number in range(2)])
        assert 'ts_parity_forwarded_total{outcome="answered"} 1.0' in text
