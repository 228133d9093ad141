"""Real model servers, where `make test-backends` has installed them; and what can be asked of these and of fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from backend_servers import KINDS, ModelServer, model_servers
from tests.proxy.conftest import PATIENCE_S, Raw, clock, read_answer

__all__ = ("clock",)


class Servers:
    """`servers("triton", 3)` -> as many, ready: the same for all tests of a module, so nobody leaves one in trouble."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._started: dict[str, list[ModelServer]] = {}

    def __call__(self, name: str, count: int = 1) -> list[ModelServer]:
        if reason := KINDS[name].missing():
            pytest.skip(reason)
        if name not in self._started:
            self._started[name] = self._stack.enter_context(model_servers(KINDS[name], count, self._folder))
        assert len(self._started[name]) >= count
        return self._started[name][:count]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


class Connection:
    """One connection, kept open as long as the server keeps it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._reader: Any = None
        self._reading: asyncio.Future[Raw] | None = None

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._writer.close()

    async def send(self, method: str, path: str, body: bytes | None = None, headers: str = "") -> None:
        if body is not None:
            headers += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n".encode() + (body or b""))

    async def answer(self) -> Raw | None:
        """None where the server has closed the connection."""
        try:
            self._reading = self._reading or asyncio.ensure_future(read_answer(self._reader))
            answer, self._reading = await asyncio.wait_for(self._reading, PATIENCE_S), None
            return answer
        except (ConnectionError, asyncio.IncompleteReadError):
            return None

    async def ask(self, method: str, path: str, body: bytes | None = None, headers: str = "") -> Raw | None:
        """None where the server has closed the connection."""
        await self.send(method, path, body, headers)
        return await self.answer()

    async def answers_within(self, seconds: float) -> bool:
        self._reading = self._reading or asyncio.ensure_future(read_answer(self._reader))
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        return bool(done)

    async def pause(self) -> None:
        await asyncio.sleep(0.005)

    async def ends(self) -> bool:
        """Wait until the server closes it. -> whether without a word."""
        return await asyncio.wait_for(self._reader.read(1), PATIENCE_S) == b""
