"""Spells of slowness in a history: which machines were slow, when and for how long, so that they can be replayed.

Knows histories and random numbers. Knows nothing of policies. Times are seconds, from the first arrival.

Independent draws from all service times are no model of machines that freeze: every task has the same small chance in
them, so two machines are slow at once far too often, and a slow one is fast again with its next task. So slow
tasks are separated from usual ones, and stay where and when they were:

  - A task far beyond what is usual is late. So are tasks in a row on one endpoint that are all beyond the usual 95 %,
    if they are too many for chance.
  - As many in a row on whatever endpoints are late too: everything stood still.
  - Late tasks in a row on an endpoint are a spell. If they came one after the other and took alike, the endpoint was
    *slow* by so much; else it was *frozen*, until the usual time before each of them ended. A single one that took as
    long as those of slow spells is one of these.
  - Failures in a row are a spell in which it was *dead*, unless they were late themselves.
  - A task that an endpoint got beyond its places (`spare_places`) began only when another had ended.
  - A spell is seen by the tasks that it holds up. It may have begun while the endpoint was idle before, and a slow one
    may have lasted beyond its last task. By how much is drawn, evenly in time but not for longer than spells last.
  - Of a task that was still out when nobody looked any more only the least time is known. How long its spell lasted is
    drawn from those that lasted longer (Kaplan and Meier's estimate; the censored are handed on to the right, as Efron
    has it).

What is left, the usual tasks, are independent draws: what differs there is their own size.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from typing import Any

from ts_parity.engine.lateness import ENOUGH, MARGIN, robust_quantile
from ts_parity.lab.history import History, ServedTask, TaskEnd
from ts_parity.lab.scenario import Outage

FAR = 3.0
"""Times the median: nearer than that, nothing is late by itself."""
RUN = 2
"""So many late answers one after the other, all alike, make a spell in which an endpoint was slow. A proxy that takes
such machines out sees no more of them."""
ALIKE = 2.0
"""The longest takes at most this many times as long as the shortest; otherwise the machine froze now and then."""
CLEAR = 0.25
"""Times the median: tasks that overlap by less came one after the other. A busy proxy writes no more exact times."""
CHANCE = 0.01
"""That the longest run of somewhat late tasks in a log is taken for a spell, though it is chance."""
_FROZEN, _SLOW, _DEAD = "frozen", "slow", "dead"


@dataclass(frozen=True)
class ObservedFleet:
    """`usual`: service times without spells, each as likely as the others. `spells` by endpoint, in order."""

    usual: tuple[float, ...]
    spells: dict[str, tuple[Outage, ...]]
    arrivals: tuple[float, ...]
    duration_s: float
    places: int = 1
    """How many tasks each has at once, usually."""
    clock_s: float = 0.0
    """What the proxy's clock counts in; 0: exact."""

    @property
    def lost(self) -> float:
        """The share of all machines' time in which nothing was done, slow machines in proportion."""
        every = [spell for spells in self.spells.values() for spell in spells]
        lost_s = sum(s.lasts * (1.0 - 1.0 / s.factor if s.kind == _SLOW else 1.0) for s in every)
        return lost_s / (self.duration_s * len(self.spells)) if every else 0.0

    def told(self) -> dict[str, Any]:
        """How often, how long, and how many at once."""
        every = [spell for spells in self.spells.values() for spell in spells]
        kinds = {kind: sum(spell.kind == kind for spell in every) for kind in (_FROZEN, _SLOW, _DEAD)}
        lasted = sum(spell.lasts for spell in every)
        return {
            "endpoints": len(self.spells),
            "seconds": round(self.duration_s, 1),
            **kinds,
            "mean_spell_s": round(lasted / len(every), 4) if every else None,
            "share_in_spells": round(lasted / (self.duration_s * len(self.spells)), 5) if every else 0.0,
            "most_at_once": _most_at_once(every),
        }

    def in_words(self) -> str:
        told = self.told()
        where = f"{told['endpoints']} endpoints in {told['seconds']:g} s"
        kinds = ", ".join(f"{told[kind]} {kind}" for kind in (_FROZEN, _SLOW, _DEAD) if told[kind])
        if not kinds:
            return f"none seen of {where}"
        share = f"{told['share_in_spells']:.1%} of the time, at most {told['most_at_once']} at once"
        return f"replayed from {where}: {kinds}, of {1000 * told['mean_spell_s']:.0f} ms on average; {share}"

    def outages(self, machines: Sequence[str], until_s: float, begun: int = 0) -> Iterator[Outage]:
        """The spells, machine by machine, over and over until then; `begun`: 0 at the log's beginning, any other number
        somewhere within it, all machines together.

        Machines beyond those that were seen get what others had, at another time: each at its own, lest two are slow
        together that have nothing to do with each other.
        """
        seen = [*self.spells.values()]
        for index, machine in enumerate(machines):
            spells = seen[index % len(seen)]
            if not spells:
                continue
            # Fractions of the golden ratio never come close to each other.
            ahead_s = self.duration_s * ((index // len(seen) + begun) * 0.618034 % 1.0)
            for round_ in range(-1, math.ceil(until_s / self.duration_s)):
                for spell in spells:
                    at = spell.at + ahead_s + round_ * self.duration_s
                    if at + spell.lasts > 0 and at < until_s:
                        yield replace(spell, worker=machine, at=at)


def seen_in(history: History, seed: int = 0) -> ObservedFleet:
    """What the history says. It must hold answered tasks with their endpoints."""
    rng = random.Random(f"spells {seed}")
    ordered = sorted(task.took_s for task in history.served if task.answered)
    limits = _limits(ordered)
    median = limits.median
    usual: list[ServedTask] = []
    found: dict[str, list[_ObservedSpell]] = {}
    by_endpoint = sorted(history.served, key=lambda task: (task.endpoint, task.sent_at))
    row = _run_beyond_chance(len(ordered))
    together = _late_together(history.served, limits, row)
    for endpoint, group in groupby(by_endpoint, key=lambda task: task.endpoint):
        tasks, after_others = _begun([*group], history.places.get(endpoint), CLEAR * median)
        spells, rest = _spells(_marked(tasks, limits, row, together), limits, history.duration_s)
        found[endpoint] = spells
        usual += (task for task in rest if task not in after_others)
    every = [spell for spells in found.values() for spell in spells]
    _tell_slow_ones(every, median)
    cores = {kind: [spell for spell in every if spell.kind == kind] for kind in (_FROZEN, _SLOW, _DEAD)}
    means = {kind: _mean(spells, median) for kind, spells in cores.items() if spells}
    drawn = {
        endpoint: [_drawn(spell, means[spell.kind], cores[spell.kind], median, rng) for spell in spells]
        for endpoint, spells in found.items()
    }
    times = as_samples([task.took_s for task in usual], [task.answered for task in usual])
    return ObservedFleet(
        tuple(times),
        {name: _apart(spells) for name, spells in drawn.items()},
        history.arrivals,
        history.duration_s,
        sorted(history.places.values())[len(history.places) // 2] if history.places else 1,
        history.clock_s,
    )


def as_samples(times: Sequence[float], ended: Sequence[bool]) -> list[float]:
    """-> as many times, each as likely as the others, that have the distribution of these. Of one that has not `ended`
    only that it took longer is known: it stands for those that took longer, and if there is none for itself.
    """
    order = sorted(range(len(times)), key=lambda i: (times[i], not ended[i]))
    values, weights, passed_on = [], [], 0.0
    for place, i in enumerate(order):
        left = len(order) - place
        weight = 1.0 + passed_on
        if ended[i] or left == 1:
            values.append(times[i])
            weights.append(weight)
        else:
            passed_on += weight / (left - 1)
    sums, total = [], 0.0
    for weight in weights:
        total += weight
        sums.append(total)
    return [values[min(len(values) - 1, bisect_right(sums, (n + 0.5) * total / len(times)))] for n in range(len(times))]


@dataclass(frozen=True)
class _LateLimits:
    median: float
    late: float
    rather_late: float

    def rather(self, task: ServedTask) -> bool:
        return task.took_s > max(self.rather_late, MARGIN * self.median)


def _limits(ordered: Sequence[float]) -> _LateLimits:
    median = ordered[len(ordered) // 2]
    if len(ordered) < ENOUGH:  # nobody knows what is usual
        return _LateLimits(median, math.inf, math.inf)
    late = max(FAR * median, robust_quantile([*ordered], 0.999))
    return _LateLimits(median, late, robust_quantile([*ordered], 0.95))


@dataclass
class _ObservedSpell:
    """What is sure of it: from the first task that it held up to when the last went on, and the idle time around it."""

    kind: str
    begins_at: float
    ends_at: float
    factor: float = 1.0
    idle_before: float = 0.0
    """Since the endpoint was last seen to be well, or in another spell."""
    idle_after: float = 0.0
    """Until it was next seen; inf: never again."""
    ended: bool = True
    """Its end was seen."""

    @property
    def lasts(self) -> float:
        return self.ends_at - self.begins_at


_Marked = tuple[ServedTask, bool]
"""A task and whether it was late."""


def _run_beyond_chance(tasks: int) -> int:
    """So many tasks in a row of the slowest twentieth do not occur by chance."""
    return max(RUN, math.ceil(math.log(CHANCE / max(tasks, 1)) / math.log(0.05)))


def _late_together(tasks: Sequence[ServedTask], limits: _LateLimits, row: int) -> set[float]:
    """When many in a row that are rather late have ended, on whatever endpoints: all stood still, or the proxy did."""
    found: set[float] = set()
    for late, run in groupby(sorted(tasks, key=lambda task: task.ends_at), key=limits.rather):
        ends = [task.ends_at for task in run]
        if late and len(ends) >= row:
            found.update(ends)
    return found


def _marked(tasks: list[ServedTask], limits: _LateLimits, row: int, together: set[float]) -> list[_Marked]:
    marks = [task.took_s > limits.late for task in tasks]
    # Where others come and go as usual meanwhile, it is not the endpoint that is late, but one of its places.
    marks = [late and not _passed(tasks, at, limits) for at, late in enumerate(marks)]
    marks = [late or task.ends_at in together for late, task in zip(marks, tasks, strict=True)]
    at = 0
    for late, run in groupby(map(limits.rather, tasks)):
        length = len([*run])
        if late and length >= row:
            marks[at : at + length] = [True] * length
        at += length
    return [*zip(tasks, marks, strict=True)]


def _begun(tasks: list[ServedTask], places: int | None, clear_s: float) -> tuple[list[ServedTask], set[ServedTask]]:
    """-> the tasks of an endpoint as they began there, and those that began after others only.

    Unless they are known, its places are what it usually has in flight: nine of ten tasks found fewer.
    """
    found, ends = [], deque[float]()
    for task in tasks:
        ends = deque(end for end in ends if end > task.sent_at + clear_s)
        found.append([*ends])
        ends.append(task.ends_at)
    places = places or 1 + sorted(len(others) for others in found)[int(0.9 * (len(found) - 1))]
    begun: list[ServedTask] = []
    after_others = set()
    for task, others in zip(tasks, found, strict=True):
        if len(others) >= places:
            begins_at = min(task.ends_at, sorted(others)[len(others) - places])
            task = ServedTask(task.endpoint, begins_at, task.ends_at - begins_at, task.end)
            after_others.add(task)
        begun.append(task)
    return sorted(begun, key=lambda task: task.sent_at), after_others


def _tell_slow_ones(spells: Sequence[_ObservedSpell], median: float) -> None:
    """Single late tasks: what took as long as in spells that are known to be slow."""
    factors = sorted(spell.factor for spell in spells if spell.kind == _SLOW)
    if not factors:
        return
    usual = factors[len(factors) // 2]
    for spell in spells:
        factor = (spell.lasts + median) / median
        if spell.kind == _FROZEN and spell.ended and usual / ALIKE <= factor <= usual * ALIKE:
            spell.kind, spell.factor = _SLOW, factor
            spell.ends_at += median


def _spells(tasks: list[_Marked], limits: _LateLimits, until_s: float) -> tuple[list[_ObservedSpell], list[ServedTask]]:
    """-> of one endpoint, in order; and what was as usual."""
    found: list[_ObservedSpell] = []
    usual: list[ServedTask] = []
    well_at = 0.0
    for trouble, run in groupby(tasks, key=_trouble):
        held = [task for task, _ in run]
        if trouble:
            made = _spells_of(trouble, held, limits)
            made[0].idle_before = max(0.0, made[0].begins_at - well_at)
            made[-1].idle_after = math.inf
            found += made
        else:
            if found and found[-1].idle_after == math.inf:
                found[-1].idle_after = max(0.0, held[0].sent_at - found[-1].ends_at)
            usual += held
        well_at = max(well_at, *(task.ends_at for task in held))
    if found and found[-1].idle_after == math.inf:
        found[-1].idle_after = max(0.0, until_s - found[-1].ends_at)
    return found, usual


def _passed(tasks: Sequence[ServedTask], at: int, limits: _LateLimits) -> bool:
    """Whether one that was sent later was answered as usual in the meantime."""
    task = tasks[at]
    for other in islice(tasks, at + 1, None):
        if other.sent_at >= task.ends_at:
            return False
        if other.answered and other.took_s <= limits.late and other.ends_at < task.ends_at - limits.median:
            return True
    return False


def _trouble(marked: _Marked) -> str:
    task, late = marked
    return "late" if late else _DEAD if task.end is TaskEnd.FAILED else ""


def _spells_of(trouble: str, held: list[ServedTask], limits: _LateLimits) -> list[_ObservedSpell]:
    """Of tasks in a row on one endpoint, none of which was as usual."""
    if trouble == _DEAD:
        return [_ObservedSpell(_DEAD, held[0].sent_at, max(task.ends_at for task in held))]
    took = [task.took_s for task in held]
    inner = took[1:-1] if len(took) > 3 else took  # the spell began within the first, and ended within the last
    one_by_one = all(later.sent_at >= task.ends_at - 1e-3 for task, later in pairwise(held))
    if len(held) >= RUN and one_by_one and max(inner) <= ALIKE * min(inner):
        factor = sum(inner) / (len(inner) * limits.median)
        return [_ObservedSpell(_SLOW, held[0].sent_at, held[-1].ends_at, factor, ended=held[-1].answered)]
    spells: list[_ObservedSpell] = []
    for task in held:
        ends_at = task.ends_at - limits.median if task.answered else task.ends_at
        if spells and task.sent_at < spells[-1].ends_at:  # several places: held up together
            spells[-1].ends_at = max(spells[-1].ends_at, ends_at)
            spells[-1].ended = spells[-1].ended and task.answered
        else:
            before = max(0.0, task.sent_at - spells[-1].ends_at - limits.median) if spells else 0.0
            spells.append(_ObservedSpell(_FROZEN, task.sent_at, ends_at, idle_before=before, ended=task.answered))
    return spells


def _drawn(
    spell: _ObservedSpell, mean: float, others: Sequence[_ObservedSpell], median: float, rng: random.Random
) -> Outage:
    """Of its kind: as it may have been, given what is sure and how long the others lasted."""
    begins_at, ends_at = spell.begins_at, spell.ends_at
    if rng.random() < _chance_before(spell, mean, median):
        begins_at -= _share_of(spell.idle_before, mean, rng)
    elif spell.kind == _FROZEN:  # while it ran
        into = rng.random() * min(median, spell.lasts)
        begins_at, ends_at = begins_at + into, ends_at + into
    if not spell.ended:
        ends_at = max(ends_at, min(ends_at + spell.idle_after, spell.begins_at + _longer(spell, others, rng)))
    elif spell.kind != _FROZEN:
        ends_at += _share_of(spell.idle_after, mean, rng)
    return Outage("", begins_at, ends_at - begins_at, spell.kind, spell.factor)


def _mean(spells: Sequence[_ObservedSpell], median: float) -> float:
    """How long spells last, as if exponential, what is not seen of them included (Dempster, Laird and Rubin's EM)."""
    mean = sum(spell.lasts for spell in spells) / len(spells)
    for _ in range(10):
        total = 0.0
        for spell in spells:
            total += spell.lasts + _chance_before(spell, mean, median) * _expected_share(spell.idle_before, mean)
            if spell.kind != _FROZEN:
                total += _expected_share(spell.idle_after, mean)
        mean = total / len(spells)
    return mean


def _chance_before(spell: _ObservedSpell, mean: float, median: float) -> float:
    """That it began while nobody was there, and not while the first task that it held up ran."""
    before = mean * -math.expm1(-spell.idle_before / mean)
    return before / (before + median)


def _expected_share(idle: float, mean: float) -> float:
    return mean - idle / math.expm1(min(idle / mean, 700.0)) if idle > 0 else 0.0


def _share_of(idle: float, mean: float, rng: random.Random) -> float:
    """Exponential of this mean, given that it is less than `idle`."""
    return -mean * math.log1p(rng.random() * math.expm1(-idle / mean)) if idle > 0 else 0.0


def _longer(spell: _ObservedSpell, others: Sequence[_ObservedSpell], rng: random.Random) -> float:
    samples = as_samples([other.lasts for other in others], [other.ended for other in others])
    longer = [lasted for lasted in samples if lasted > spell.lasts]
    return rng.choice(longer) if longer else spell.lasts


def _apart(spells: Sequence[Outage]) -> tuple[Outage, ...]:
    """None begins before the one before it has ended."""
    kept: list[Outage] = []
    for spell in sorted(spells, key=lambda spell: spell.at):
        free_at = kept[-1].at + kept[-1].lasts if kept else -math.inf
        if spell.at >= free_at:
            kept.append(spell)
        elif spell.at + spell.lasts > free_at:
            kept.append(replace(spell, at=free_at, lasts=spell.at + spell.lasts - free_at))
    return tuple(kept)


def _most_at_once(spells: Sequence[Outage]) -> int:
    steps = sorted([(s.at, 1) for s in spells] + [(s.at + s.lasts, -1) for s in spells])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most
