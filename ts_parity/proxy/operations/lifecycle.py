"""From start to drained: what one proxy and a supervisor of several have in common.

Knows the order of start, drain and close, and which signal asks for what. Knows nothing of requests, fleets or
processes: `app` and `processes` say how theirs start, finish and close.
"""

from __future__ import annotations

import asyncio
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ts_parity.proxy.operations import signals
from ts_parity.proxy.operations.reloading import Reloader, ReloadResult

L = TypeVar("L", bound="Lifecycle")


class Lifecycle(ABC):
    """`run` it, or call `start`, `drain` and `close` yourself."""

    def __init__(self) -> None:
        self._drain_asked = asyncio.Event()
        self._cut_asked = asyncio.Event()
        self._started = asyncio.Event()
        """Whatever is to be reloaded is there."""
        self._reloading: set[asyncio.Task[ReloadResult]] = set()
        self.reloader: Reloader | None = None
        """None: its parent says which settings run."""

    @abstractmethod
    async def start(self) -> None:
        """Listen. Raise StartError."""

    @abstractmethod
    async def _drained(self) -> int:
        """Finish what is in flight, or cut it when its time is up. -> the exit code: 0 finished, 1 cut."""

    @abstractmethod
    async def close(self) -> None:
        """Give back everything, whatever is still in flight."""

    @abstractmethod
    def refresh_files(self) -> None:
        """Read again what may have changed outside: certificates, keys, the fleet, and the access log's file."""

    @abstractmethod
    def reopen(self) -> None:
        """Open the access log's file again, since a log rotation has moved it."""

    async def run(self: L, ready: Callable[[L], None]) -> int:
        """From start to drained; -> the exit code. `signals` says what each signal does."""
        signals.install_handlers(self._end_signalled, self.reload, self.reopen)
        return await self.live(ready)

    async def live(self: L, ready: Callable[[L], None]) -> int:
        """The same without signals: the caller calls `drain` and `cut`."""
        try:
            if not await finished_before(self._drain_asked, self.start()):
                return 0
            # What was imported and set up stays: the collector need not walk through it again and again.
            gc.collect()
            gc.freeze()
            ready(self)
            await self._drain_asked.wait()
            return await self._drained()
        finally:
            await self.close()

    def reload(self) -> None:
        """Refresh files, and read the configuration again; the log says what came of it."""
        self.refresh_files()
        if self.reloader is not None and self.reloader.has_source:
            self.reload_configuration()

    def reload_configuration(self) -> asyncio.Future[ReloadResult]:
        """Whoever waits for the result may leave: what has begun is not left half done."""
        task = asyncio.get_running_loop().create_task(self._reloaded())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)
        return asyncio.shield(task)

    async def _reloaded(self) -> ReloadResult:
        await self._started.wait()
        assert self.reloader is not None
        return await self.reloader.reload(lambda: "it drains, and ends soon" if self.draining else "")

    async def end_reloads(self) -> None:
        for task in self._reloading:
            task.cancel()
        await asyncio.gather(*self._reloading, return_exceptions=True)

    @property
    def draining(self) -> bool:
        return self._drain_asked.is_set()

    def drain(self) -> None:
        """Report not ready, then stop accepting, finish what is in flight, and end."""
        self._drain_asked.set()

    def cut(self) -> None:
        """End without waiting for what is in flight."""
        self._cut_asked.set()
        self.drain()

    def _end_signalled(self) -> None:
        if self.draining:
            self.cut()
        else:
            self.drain()


async def finished_before(asked: asyncio.Event, starting: Coroutine[Any, Any, None]) -> bool:
    """-> whether the start finished before `asked` was set; otherwise the start is cancelled. Raise what the start
    raises, unless `asked` was set: a stop may have reached children first.
    """
    start, end = asyncio.ensure_future(starting), asyncio.ensure_future(asked.wait())
    await asyncio.wait({start, end}, return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not start.done() or asked.is_set():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return False
    start.result()
    return True


def url_of(host: str, port: int, tls: bool = False) -> str:
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
