"""Faults made beforehand as data, and the injector that carries them out on real processes.

A schedule names instances by index, so the same one strikes every arm of a comparison alike, whatever the instances
serve. The injector looks the worker's process up when the fault is due, touches only processes of workers it is told
of, and thaws whatever it froze, however it ends.

Knows signals and times. Knows nothing of TorchServe, load or coding.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FREEZE = "freeze"
KILL = "kill"

Lookup = Callable[[int], Sequence[int]]
"""Index of an instance -> process ids of its workers now; empty while they restart. May block."""


@dataclass(frozen=True, order=True)
class Fault:
    """At `at` seconds, freeze the instance's workers for `spell_s` seconds, or kill them."""

    at: float
    instance: int
    kind: str
    spell_s: float = 0.0

    @property
    def ends_at(self) -> float:
        return self.at + self.spell_s


@dataclass(frozen=True)
class FaultPlan:
    """How often and how long. The defaults leave each worker frozen about a twentieth of the time."""

    mean_gap_s: float = 2.5
    """Between two spells of one instance."""
    spell_s: tuple[float, float] = (0.05, 0.25)
    """Shortest and longest spell; lengths are uniform between."""
    kills: int = 1

    def __post_init__(self) -> None:
        shortest, longest = self.spell_s
        if self.mean_gap_s <= 0 or not 0 < shortest <= longest or self.kills < 0:
            raise ValueError(f"impossible fault plan: {self}")


def make_schedule(plan: FaultPlan, instances: int, victims: int, duration_s: float, seed: int) -> tuple[Fault, ...]:
    """Spells on all `instances`, kills on one of the first `victims` in the middle half of the run. In order of time.

    Spells of one instance never overlap; those of different instances may. Everything has ended by `duration_s`.
    """
    if not 0 < victims <= instances:
        raise ValueError(f"victims must be 1 to {instances}, not {victims}")
    faults = []
    for instance in range(instances):
        rng = random.Random(f"freeze {seed} {instance}")
        at = rng.expovariate(1 / plan.mean_gap_s)
        while True:
            spell_s = rng.uniform(*plan.spell_s)
            if at + spell_s > duration_s:
                break
            faults.append(Fault(at, instance, FREEZE, spell_s))
            at += spell_s + rng.expovariate(1 / plan.mean_gap_s)
    rng = random.Random(f"kill {seed}")
    for _ in range(plan.kills):
        faults.append(Fault(duration_s * rng.uniform(0.25, 0.75), rng.randrange(victims), KILL))
    return tuple(sorted(faults))


@dataclass
class Injector:
    """Carries out one schedule. `struck` counts the faults that found a process; a restarting worker has none."""

    lookup: Lookup
    struck: dict[str, int] = field(default_factory=lambda: {FREEZE: 0, KILL: 0})
    _frozen: dict[int, int] = field(default_factory=dict)  # pid -> spells it is in

    async def run(self, schedule: Sequence[Fault], started_at: float) -> None:
        """Strike at `started_at` (time.monotonic) + each fault's time. Cancel it to stop early: all is thawed."""
        spells = [asyncio.create_task(self._strike(fault, started_at)) for fault in schedule]
        try:
            await asyncio.gather(*spells)
        finally:
            for spell in spells:
                spell.cancel()
            self.thaw_all()

    def thaw_all(self) -> None:
        for pid in list(self._frozen):
            _signal(pid, signal.SIGCONT)
        self._frozen.clear()

    async def _strike(self, fault: Fault, started_at: float) -> None:
        await _sleep_until(started_at + fault.at)
        pids = await asyncio.to_thread(self.lookup, fault.instance)
        if fault.kind == KILL:
            killed = [pid for pid in pids if _signal(pid, signal.SIGKILL)]
            self.struck[KILL] += bool(killed)
            return
        frozen = [pid for pid in pids if self._freeze(pid)]
        self.struck[FREEZE] += bool(frozen)
        try:
            await _sleep_until(started_at + fault.ends_at)
        finally:
            for pid in frozen:
                self._thaw(pid)

    def _freeze(self, pid: int) -> bool:
        # Noted first: between the signal and the note nothing may leave a process frozen for ever.
        self._frozen[pid] = self._frozen.get(pid, 0) + 1
        return _signal(pid, signal.SIGSTOP)

    def _thaw(self, pid: int) -> None:
        spells = self._frozen.pop(pid, 0) - 1
        if spells > 0:
            self._frozen[pid] = spells
        else:
            _signal(pid, signal.SIGCONT)


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))


def _signal(pid: int, number: signal.Signals) -> bool:
    """-> whether the process was there. One that has just died is no error: a kill may come before a thaw."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
