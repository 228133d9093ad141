"""Remembers what archives publish in describe: which workers to ask, when, and what to assume until they answer.

TorchServe's own description does not show whether an archive is wrapped, so a worker must be asked. That costs a
request: a handler that is not wrapped may take it for a prediction and run for seconds. So each set of worker processes
is asked once. Of several instances of a model one is asked first, and the others only if it turns out to be wrapped. An
instance is asked while it is idle, and never while an earlier describe is pending. Knows reports and times. Knows
nothing of HTTP: how to ask is passed in.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ts_parity.errors import TsParityError
from ts_parity.proxy.fleet.reports import UNTESTED, ArchiveDescription, InstanceReport, ModelReport

log = logging.getLogger(__name__)

ModelKey = tuple[str, str, str]
"""Instance, model and version."""

# An untested handler may reach a verdict while it serves, so it is asked again after this.
_UNTESTED_S = 30.0
# TorchServe queues a describe until a worker takes it, so after a lost connection one may still be pending there.
_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 600.0
# While a describe is pending, the model's other instances are not asked, but only for this long: the asked one may be
# frozen. For less if another instance is left to serve.
_IN_TURN_S = 10.0
_IN_TURN_OF_MANY_S = 2.0
# An instance that is never idle is asked after this long all the same.
_BUSY_S = 10.0


class DescribeFailed(TsParityError):
    """The describe may have been lost, or may still be pending."""


@dataclass(frozen=True)
class DescribeResult:
    """`described` is None for an archive that is not wrapped. `problem`: why its describe cannot be understood."""

    described: ArchiveDescription | None
    problem: str = ""


@dataclass(frozen=True)
class _CachedResult:
    result: DescribeResult
    pids: tuple[str, ...]
    at: float

    def is_current(self, pids: tuple[str, ...], now: float) -> bool:
        described = self.result.described
        untested = described is not None and described.verdict == UNTESTED
        return pids == self.pids and not (untested and now - self.at >= _UNTESTED_S)


@dataclass(frozen=True)
class _PendingDescribe:
    task: asyncio.Task[None]
    pids: tuple[str, ...]
    at: float
    idle: bool
    """Nothing else was outstanding there, so a query sent now would wait behind the describe."""


class DescribeCache:
    """Which archives were asked, and what they published."""

    def __init__(self, ask: Callable[[ModelKey], Awaitable[DescribeResult]], idle: Callable[[str], bool]) -> None:
        """`ask` raises DescribeFailed. `idle`: whether nothing is outstanding at the instance of that name."""
        self._ask = ask
        self._idle = idle
        self._cached: dict[ModelKey, _CachedResult] = {}
        self._pending: dict[ModelKey, _PendingDescribe] = {}
        self._busy_since: dict[ModelKey, float] = {}
        self._backoff: dict[ModelKey, tuple[float, float]] = {}
        """Models whose describe failed -> when to ask again, and the pause after that."""

    async def close(self) -> None:
        tasks = [pending.task for pending in self._pending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def complete(
        self, reports: Sequence[InstanceReport], wait_s: float, may_describe: bool = True
    ) -> list[InstanceReport]:
        """The reports, completed with what is known about each model. `wait_s`: how long to wait for new answers."""
        now = asyncio.get_running_loop().time()
        until = now + wait_s
        self._forget(reports)
        waiting: set[asyncio.Task[None]] = set()
        # Where other instances are wrapped, one that has not answered describe gets no queries, so it may be asked even
        # while its instance is busy.
        known_wrapped, _ = self._wrapped_and_bare(reports)
        while may_describe:
            waiting |= self._ask_due(reports, known_wrapped, now)
            if not waiting:
                break
            done, waiting = await asyncio.wait(waiting, timeout=until - now, return_when=asyncio.FIRST_COMPLETED)
            now = asyncio.get_running_loop().time()
            if not done or now >= until:
                break
        wrapped, bare = self._wrapped_and_bare(reports)
        return [
            replace(report, models=tuple(self._filled(report.name, m, bare - wrapped) for m in report.models))
            if report.up
            else report
            for report in reports
        ]

    def _ask_due(
        self, reports: Sequence[InstanceReport], known_wrapped: set[tuple[str, str]], now: float
    ) -> set[asyncio.Task[None]]:
        """-> the describes that are sent now. `known_wrapped`: the models that were known to be wrapped before."""
        wrapped, bare = self._wrapped_and_bare(reports)
        pending = self._models_in_turn(reports, now)
        tasks: set[asyncio.Task[None]] = set()
        for report in reports:
            for model in report.models if report.up else ():
                key, kind = (report.name, model.model, model.version), (model.model, model.version)
                if not self._is_due(key, model, now):
                    continue
                if kind not in wrapped and (kind in pending or (kind in bare and not self._was_wrapped(key))):
                    continue
                unused = kind in known_wrapped and key not in self._cached
                idle = unused or self._idle(report.name)
                if not idle and now - self._busy_since.setdefault(key, now) < _BUSY_S:
                    continue
                task = asyncio.get_running_loop().create_task(self._describe(key, model.pids))
                self._pending[key] = _PendingDescribe(task, model.pids, now, idle)
                pending.add(kind)
                tasks.add(task)
        return tasks

    def _models_in_turn(self, reports: Sequence[InstanceReport], now: float) -> set[tuple[str, str]]:
        """Models and versions of which no other instance may be asked yet."""
        ready = Counter((m.model, m.version) for report in reports if report.up for m in report.models if m.ready)
        pending = Counter(key[1:] for key in self._pending)
        return {
            key[1:]
            for key, question in self._pending.items()
            if now - question.at < (_IN_TURN_OF_MANY_S if ready[key[1:]] - pending[key[1:]] > 1 else _IN_TURN_S)
        }

    def _is_due(self, key: ModelKey, model: ModelReport, now: float) -> bool:
        cached = self._cached.get(key)
        if not model.ready or key in self._pending or (cached is not None and cached.is_current(model.pids, now)):
            return False
        return now >= self._backoff.get(key, (-math.inf, 0.0))[0]

    async def _describe(self, key: ModelKey, pids: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        try:
            result = await self._ask(key)
        except DescribeFailed as error:
            log.info("%s: %s did not answer describe: %s", key[0], key[1], error)
            pause_s = self._backoff.get(key, (0.0, _FIRST_PAUSE_S))[1]
            self._backoff[key] = (loop.time() + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S))
        else:
            self._cached[key] = _CachedResult(result, pids, loop.time())
            self._backoff.pop(key, None)
        finally:
            pending = self._pending.get(key)
            if pending is not None and pending.task is asyncio.current_task():
                del self._pending[key]

    def _was_wrapped(self, key: ModelKey) -> bool:
        cached = self._cached.get(key)
        return cached is not None and cached.result.described is not None

    def _wrapped_and_bare(self, reports: Sequence[InstanceReport]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """-> the models and versions that are wrapped on some instance, and those that are not on some instance."""
        wrapped, bare = set(), set()
        for report in reports:
            for model in report.models if report.up else ():
                cached = self._cached.get((report.name, model.model, model.version))
                if cached is not None and cached.pids == model.pids:
                    if cached.result.described is not None or cached.result.problem:
                        wrapped.add((model.model, model.version))
                    else:
                        bare.add((model.model, model.version))
        return wrapped, bare

    def _filled(self, instance: str, model: ModelReport, bare: set[tuple[str, str]]) -> ModelReport:
        """Add what is known. A worker that is restarting or frozen is assumed to be what it was."""
        key = (instance, model.model, model.version)
        cached, pending = self._cached.get(key), self._pending.get(key)
        if cached is not None:
            return replace(model, described=cached.result.described, problem=cached.result.problem)
        if (model.model, model.version) in bare:
            return model
        return replace(model, silent=model.ready > 0, describing=pending is not None and pending.idle)

    def _forget(self, reports: Sequence[InstanceReport]) -> None:
        """Forget instances that are not asked any more, models that one no longer has, and describes to workers that
        are gone.
        """
        asked = {report.name for report in reports}
        up = {report.name for report in reports if report.up}
        pids = {(report.name, model.model, model.version): model.pids for report in reports for model in report.models}
        for key, pending in [*self._pending.items()]:
            if key[0] not in asked or (key[0] in up and pids.get(key) != pending.pids):
                pending.task.cancel()
                del self._pending[key]
        for memory in (self._cached, self._backoff, self._busy_since):
            for key in [key for key in memory if key[0] not in asked or (key[0] in up and key not in pids)]:
                del memory[key]
