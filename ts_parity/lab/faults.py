"""Faults made beforehand as data, and the injector that carries them out on real processes.

A schedule names instances by index, so the same one strikes every arm of a comparison alike, whatever the instances
serve. The injector looks the worker's process up when the fault is due, touches only processes of workers it is told
of, and thaws whatever it froze, however it ends; `thawed_afterwards` is for the case that this process is killed.

    freeze, kill           the workers of an instance: stopped for a while; gone
    freeze_server          its server (the JVM): it accepts and does not answer
    crash, restart         the whole instance: gone; gone and started again when the spell ends
    contend                its network: every message is late, by an exponential time of mean `strength_s`, and its
                           link carries `bytes_per_s` each way (0: no limit), so a large body is later than a small one
    reset                  all its connections break

Slow answers that are otherwise right are no fault here: an emulated machine is slow by its own schedule (`emulation`).
Knows signals and times. Knows nothing of TorchServe, load or coding: what is no signal is done by `carriers`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

FREEZE = "freeze"
KILL = "kill"
FREEZE_SERVER = "freeze_server"
CRASH, RESTART, CONTEND, RESET = "crash", "restart", "contend", "reset"
KINDS = (FREEZE, KILL, FREEZE_SERVER, CRASH, RESTART, CONTEND, RESET)

Lookup = Callable[[int], Sequence[int]]
"""Index of an instance -> process ids now; empty while they restart. May block."""


@dataclass(frozen=True, order=True)
class Fault:
    """At `at` seconds, do this to the instance, for `spell_s` seconds where it is something that ends."""

    at: float
    instance: int
    kind: str
    spell_s: float = 0.0
    strength_s: float = 0.0
    bytes_per_s: float = 0.0

    @property
    def ends_at(self) -> float:
        return self.at + self.spell_s


Carrier = Callable[[Fault], Callable[[], object] | None]
"""Begins a fault, and returns what ends it. Both may block."""


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
    places = [(instance,) for instance in range(instances)]
    faults = [*now_and_then(FREEZE, places, duration_s, seed, plan.mean_gap_s, plan.spell_s)]
    rng = random.Random(f"kill {seed}")
    for _ in range(plan.kills):
        faults.append(Fault(duration_s * rng.uniform(0.25, 0.75), rng.randrange(victims), KILL))
    return tuple(sorted(faults))


def now_and_then(
    kind: str,
    places: Sequence[Sequence[int]],
    duration_s: float,
    seed: int,
    mean_gap_s: float,
    spell_s: tuple[float, float] = (0.0, 0.0),
    strength_s: float = 0.0,
) -> tuple[Fault, ...]:
    """One kind of fault, again and again, at each of `places` by itself. In order of time.

    A place is a failure domain: all its instances are struck at once. Gaps are exponential of this mean, lengths
    uniform between the ends of `spell_s`. Spells of one place never overlap, and all have ended by `duration_s`.
    """
    if kind not in KINDS or mean_gap_s <= 0 or not 0 <= spell_s[0] <= spell_s[1]:
        raise ValueError(f"there are no faults like {kind}, every {mean_gap_s} s for {spell_s} s")
    faults = []
    for number, place in enumerate(places):
        rng = random.Random(f"{kind} {seed} {number}")
        at = rng.expovariate(1 / mean_gap_s)
        while True:
            lasts = rng.uniform(*spell_s)
            if at + lasts > duration_s:
                break
            faults += [Fault(at, instance, kind, lasts, strength_s) for instance in place]
            at += lasts + rng.expovariate(1 / mean_gap_s)
    return tuple(sorted(faults))


def shuffles(
    transfers: int, instances: int, duration_s: float, seed: int, strength_s: float, bytes_per_s: float = 0.0
) -> tuple[Fault, ...]:
    """The paper's background traffic: so many transfers at any time, each between two instances drawn at random, both
    contended while it lasts. A transfer of 128 to 256 MB, both ways, takes 2 to 4 s at 1 Gbit/s.

    `bytes_per_s`: what one transfer leaves of an instance's link; 0: messages are late whatever their size.
    """
    faults = []
    for transfer in range(transfers):
        rng = random.Random(f"shuffle {seed} {transfer}")
        at = 0.0
        while at < duration_s:
            lasts = min(rng.uniform(2.0, 4.0), duration_s - at)
            both = rng.sample(range(instances), 2)
            faults += [Fault(at, instance, CONTEND, lasts, strength_s, bytes_per_s) for instance in both]
            at += lasts
    return tuple(sorted(faults))


@dataclass
class Injector:
    """Carries out one schedule. `struck` counts the faults that found a process; a restarting worker has none.

    `servers` finds the process of an instance's server. `carriers` do what is no signal. Faults of one kind on one
    instance may overlap: it ends when the last of them does.
    """

    lookup: Lookup
    servers: Lookup = lambda instance: ()
    carriers: Mapping[str, Carrier] = field(default_factory=dict)
    struck: dict[str, int] = field(default_factory=lambda: {FREEZE: 0, KILL: 0})
    _frozen: dict[int, int] = field(default_factory=dict)  # pid -> spells it is in

    async def run(self, schedule: Sequence[Fault], started_at: float) -> None:
        """Strike at `started_at` (time.monotonic) + each fault's time. Cancelled, it ends what it has begun."""
        spells = [asyncio.create_task(self._strike(fault, started_at)) for fault in schedule]
        try:
            await asyncio.gather(*spells)
        finally:
            for spell in spells:
                spell.cancel()
            await asyncio.gather(*spells, return_exceptions=True)  # each thaws what it froze

    async def _strike(self, fault: Fault, started_at: float) -> None:
        await _sleep_until(started_at + fault.at)
        if fault.kind in self.carriers:
            await self._carry(self.carriers[fault.kind], fault, started_at)
            return
        pids = await asyncio.to_thread(self.servers if fault.kind == FREEZE_SERVER else self.lookup, fault.instance)
        if fault.kind == KILL:
            self._count(fault, [pid for pid in pids if _signal(pid, signal.SIGKILL)])
            return
        if fault.kind not in (FREEZE, FREEZE_SERVER):
            raise ValueError(f"nobody here can {fault.kind} an instance")
        frozen = [pid for pid in pids if self._freeze(pid)]
        self._count(fault, frozen)
        try:
            await _sleep_until(started_at + fault.ends_at)
        finally:
            for pid in frozen:
                self._thaw(pid)

    async def _carry(self, carrier: Carrier, fault: Fault, started_at: float) -> None:
        end = await asyncio.to_thread(carrier, fault)
        self._count(fault, [fault])
        if end is None:
            return
        try:
            await _sleep_until(started_at + fault.ends_at)
        finally:
            await asyncio.shield(asyncio.to_thread(end))

    def _count(self, fault: Fault, found: Sequence[object]) -> None:
        self.struck[fault.kind] = self.struck.get(fault.kind, 0) + bool(found)

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


@contextmanager
def thawed_afterwards(pids: Sequence[int]) -> Iterator[None]:
    """These go on when the body ends, or this process, even by SIGKILL: another one waits for that."""
    if not pids:
        yield
        return
    # What is sent to all processes of a terminal or a service must not end it first.
    script = 'trap "" HUP INT TERM; read -r line; kill -CONT "$@"'
    command, quiet = ["/bin/sh", "-c", script, "thaw", *map(str, pids)], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True):
        yield


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))


def _signal(pid: int, number: signal.Signals) -> bool:
    """-> whether the process was there. One that has just died is no error: a kill may come before a thaw."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
