"""A proxy in front of fake instances, all on real sockets and free ports, and a client that hides nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.proxy.authority import Authority
from tests.proxy.collector import Collector
from ts_parity.config import InstanceSettings, parse_endpoint, settings_of
from ts_parity.engine.policy import PLAIN
from ts_parity.proxy.app import Proxy
from ts_parity.testing import FakeTorchServe

pytest.register_assert_rewrite("tests.proxy.side_by_side")

PATIENCE_S = 60.0
"""How long a test waits for what must come: it breaks what hangs, not what a busy machine delays."""
PROMPT: dict[str, Any] = {
    **PLAIN,
    "host": "127.0.0.1",
    "port": 0,
    "admin_port": 0,
    "reconstruct_after_s": 0.02,
    "group_wait_s": 0.02,
    "discovery_interval_s": 60.0,
    "describe_timeout_s": PATIENCE_S,
    "connect_timeout_s": PATIENCE_S,
    "deadline_s": PATIENCE_S,
    "drain_s": PATIENCE_S,
}
"""Settings that leave no test waiting, and rules that a test must ask for."""


@dataclass
class Raw:
    """An answer as it came over the wire."""

    status_line: str
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = True

    @property
    def status(self) -> int:
        return int(self.status_line.split(" ")[1])

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """HTTP/1.1 by hand, one connection per request: nothing is added, hidden or retried."""

    def __init__(self, url: str, trusting: ssl.SSLContext | None = None) -> None:
        """`trusting`: for an https address."""
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self._tls = trusting if parts.scheme == "https" else None

    async def post(self, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> Raw:
        return await self.ask("POST", path, body, headers)

    async def get(self, path: str) -> Raw:
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> Raw:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        return await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def send(self, data: bytes) -> Raw:
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self._tls)
        try:
            writer.write(data)
            return await asyncio.wait_for(read_answer(reader), PATIENCE_S)
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader, to_head: bool = False) -> Raw:
    """`to_head`: it answers a HEAD request, so no body follows whatever its headers say."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head[:-4].split("\r\n")
    headers = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines]
    raw = Raw(status_line, headers, b"")
    if to_head or raw.status < 200 or raw.status in (204, 304):
        return raw
    if "chunked" in (raw.get("transfer-encoding") or ""):
        await _read_chunks(reader, raw)
    else:
        raw.body = await reader.readexactly(int(raw.get("content-length") or 0))
    return raw


async def _read_chunks(reader: asyncio.StreamReader, raw: Raw) -> None:
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            raw.chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError):
        raw.complete = False
    raw.body = b"".join(raw.chunks)


async def until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Poll; no test waits a fixed time for something to happen."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_s} s for {what}"
        await asyncio.sleep(0.005)


class Clock:
    """The loop's own, which a test can put forward: whatever waits for a time by then happens now."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real, self._ahead_s = loop.time, 0.0
        loop.time = lambda: self._real() + self._ahead_s  # type: ignore[method-assign]

    def advance(self, seconds: float) -> None:
        """By less than PATIENCE_S in all, or whatever the test waits for is given up too."""
        self._ahead_s += seconds


@pytest.fixture
async def clock() -> Clock:
    return Clock(asyncio.get_running_loop())


def nothing_left(proxy: Proxy) -> bool:
    """No client, no task, no group, no place taken."""
    snapshot: dict[str, Any] = proxy.scheduler.snapshot()
    pools = snapshot["pools"].values()
    return (
        proxy.driver.left_over() == {"clients": 0, "tasks": 0}
        and snapshot["open_queries"] == 0
        and snapshot["in_flight"] == 0
        and all(pool["waiting"] == pool["open_groups"] == pool["queued_protections"] == 0 for pool in pools)
        and all(endpoint["in_flight"] == 0 for endpoint in snapshot["endpoints"].values())
        and proxy.upstream.in_flight == 0
    )


@dataclass
class Fleet:
    """A proxy and the instances behind it."""

    proxy: Proxy
    instances: list[FakeTorchServe]
    client: Client
    admin: Client

    async def post(self, path: str = "/predictions/linear", x: Any = (1, 2), **headers: str) -> Raw:
        body = x if isinstance(x, bytes) else json.dumps(list(x)).encode()
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return await self.client.post(path, body, (("Content-Type", "application/json"), *named))

    async def posts(self, count: int, **headers: str) -> list[Raw]:
        """At the same time, each with its own input (n, n + 1)."""
        return list(await asyncio.gather(*(self.post(x=(n, n + 1), **headers) for n in range(count))))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


MakeFleet = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def make_fleet() -> AsyncIterator[MakeFleet]:
    """Call it with instances and settings; what it makes is started, and stopped after the test."""
    async with AsyncExitStack() as stack:

        async def make(
            *instances: FakeTorchServe,
            given: tuple[InstanceSettings, ...] = (),
            trusting: ssl.SSLContext | None = None,
            proved: bool = True,
            **settings: Any,
        ) -> Fleet:
            for instance in instances:
                await stack.enter_async_context(instance)
            listed = given or tuple(parse_endpoint(instance.endpoint) for instance in instances)
            proxy = Proxy(settings_of({**PROMPT, **settings, "instances": listed}), proved=proved)
            stack.push_async_callback(proxy.close)
            for instance in instances:
                stack.callback(instance.thaw)
            await proxy.start()
            return Fleet(proxy, list(instances), Client(proxy.url, trusting), Client(proxy.admin_url))

        yield make


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Name it before whatever makes a proxy: then it is there until that has ended."""
    made = Collector()
    runner = await made.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    yield made
    await runner.cleanup()
