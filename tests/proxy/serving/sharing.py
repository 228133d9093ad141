"""Several proxies in front of the same instances, in one process, with links that a test can cut or hang."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.conftest import free_ports
from tests.proxy.conftest import PROMPT, Client, Clock, Raw, until
from ts_parity.config import parse_endpoint, settings_of
from ts_parity.engine.members import BEAT_S, STANDBY_S, PeerState
from ts_parity.proxy.app import Proxy
from ts_parity.testing import FakeTorchServe

POOL = "linear/1.0"
SECRET = "s3cret"


class Link:
    """From one proxy to another: what one peer's address is to one proxy. `whole`, `cut` (as if nobody listened: each
    connection breaks at once), or `hung` (connections are taken, and nothing goes through).
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.state = "whole"
        self._open: set[asyncio.StreamWriter] = set()
        self._whole = asyncio.Event()
        self._whole.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def become(self, state: str) -> None:
        self.state = state
        if state == "cut":
            for writer in self._open:
                writer.transport.abort()
        (self._whole.clear if state == "hung" else self._whole.set)()

    async def close(self) -> None:
        self.become("cut")
        self._server.close()

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._whole.wait()
            if self.state == "cut":
                return
            beyond, onward = await asyncio.open_connection("127.0.0.1", self._port)
            self._open.add(onward)
            try:
                await asyncio.gather(self._pump(reader, onward), self._pump(beyond, writer))
            finally:
                self._open.discard(onward)
                onward.transport.abort()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._whole.wait()
                writer.write(data)
        writer.transport.abort()


class Sharing:
    """The proxies, the instances, and the links between each two proxies: `links[asking, asked]`."""

    def __init__(self, instances: list[FakeTorchServe], clock: Clock, count: int, **settings: Any) -> None:
        self.instances = instances
        self.clock = clock
        self._settings = settings
        self.ports = free_ports(count)
        self.links: dict[tuple[int, int], Link] = {}
        self.proxies: dict[int, Proxy] = {}

    async def start(self) -> None:
        count = len(self.ports)
        for pair in ((one, other) for one in range(count) for other in range(count) if one != other):
            link = self.links[pair] = Link(self.ports[pair[1]])
            await link.start()

    async def add(self, number: int, **settings: Any) -> Proxy:
        peers = tuple(link.url for (one, _), link in self.links.items() if one == number)
        listed = tuple(parse_endpoint(instance.endpoint) for instance in self.instances)
        chosen = {**PROMPT, "secret": SECRET, "peers": peers, **self._settings, **settings}
        proxy = Proxy(settings_of({**chosen, "port": self.ports[number], "instances": listed}))
        self.proxies[number] = proxy
        await proxy.start()
        return proxy

    async def remove(self, number: int) -> None:
        """As if it were killed: what it has in flight breaks off."""
        await self.proxies.pop(number).close()

    async def close(self) -> None:
        for number in [*self.proxies]:
            await self.remove(number)
        for link in self.links.values():
            await link.close()

    def split(self, *side: int, state: str = "cut") -> None:
        """These and the others no longer reach each other."""
        for (one, other), link in self.links.items():
            if (one in side) != (other in side):
                link.become(state)

    def join(self) -> None:
        for link in self.links.values():
            link.become("whole")

    async def pass_time(self, seconds: float) -> None:
        """Beat by beat: everyone is asked in between, and who can answer has answered, however busy the machine is."""
        for _ in range(round(seconds / BEAT_S)):
            self.clock.advance(BEAT_S)
            for _ in range(6):
                await asyncio.sleep(0.002)
            await until(lambda: not self._being_asked(), "all heartbeats to be answered")

    def _being_asked(self) -> bool:
        """Over a link that is whole, and of a proxy that is there."""
        return any(
            link.state == "whole" and other in self.proxies and link.url in self._asking(one)
            for (one, other), link in self.links.items()
        )

    def _asking(self, number: int) -> set[str]:
        proxy = self.proxies.get(number)
        return set() if proxy is None or proxy.peers is None else proxy.peers._asking

    async def settled(self) -> None:
        await self.pass_time(STANDBY_S + 4 * BEAT_S)

    def owner(self) -> int:
        """The one that all name."""
        named = {self.named(number) for number in self.proxies}
        assert len(named) == 1, f"they name {named}"
        return named.pop()

    def named(self, number: int) -> int:
        """By this one: who serves."""
        forwarder = self.proxies[number]._forwarder
        assert forwarder is not None
        address = forwarder.owner(POOL)
        return number if address is None else self._at(number, address)

    def _at(self, number: int, address: str) -> int:
        return next(other for (one, other), link in self.links.items() if one == number and link.url == address)

    def alive(self, number: int) -> set[int]:
        peers = self.proxies[number].peers
        assert peers is not None
        return {self._at(number, p.address) for p in peers.members.peers.values() if p.state is PeerState.ALIVE}

    def client(self, number: int) -> Client:
        return Client(f"http://127.0.0.1:{self.ports[number]}")

    async def post(self, number: int, x: int, path: str = "/predictions/linear", **headers: str) -> Raw:
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return await self.client(number).post(path, json.dumps([x, x + 1]).encode(), named)

    def answered(self, number: int) -> int:
        """Queries that this one's engine has answered."""
        return sum(self.proxies[number].scheduler.answered.values())

    def forwarded(self, number: int, outcome: str) -> int:
        return int(self.proxies[number].metrics.forwarded.value(outcome))


@asynccontextmanager
async def sharing(
    clock: Clock, instances: list[FakeTorchServe], count: int = 3, first: int = 3, **settings: Any
) -> AsyncIterator[Sharing]:
    """`first` of `count` proxies, known to each other."""
    async with contextlib.AsyncExitStack() as stack:
        for instance in instances:
            await stack.enter_async_context(instance)
        shared = Sharing(instances, clock, count, **settings)
        stack.push_async_callback(shared.close)
        for instance in instances:
            stack.callback(instance.thaw)
        await shared.start()
        for number in range(first):
            await shared.add(number)
        await shared.settled()
        while len({shared.named(number) for number in shared.proxies}) > 1:  # one was still starting
            await shared.pass_time(BEAT_S)
        yield shared
