"""A discrete-event simulator that drives the very Scheduler the proxy drives, in virtual time.

Knows service times, slowdowns, arrivals and queues at workers. Knows nothing of policy: it obeys the engine's actions,
as the proxy does. The unit of time is whatever the scenario's service times are in; tables use the mean service time of
the deployed model.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from ts_parity.engine import (
    Answer,
    Arrived,
    Cause,
    Fail,
    Failed,
    Fleet,
    Kind,
    Outcome,
    Policy,
    Query,
    Scheduler,
    Send,
    Source,
)
from ts_parity.engine.query import Action, Task
from ts_parity.lab.records import ERROR, Record

BLOCK = 1 << 14
"""Random numbers are drawn so many at a time: one by one they would cost more than the engine."""


@dataclass(frozen=True)
class Service:
    """How long one deployed inference takes: lognormal of this mean and cv, or drawn from `samples` (a latency log)."""

    mean: float = 1.0
    cv: float = 0.1
    samples: tuple[float, ...] = ()

    def draw(self, rng: np.random.Generator, size: int) -> list[float]:
        if self.samples:
            drawn: list[float] = rng.choice(np.asarray(self.samples), size).tolist()
            return drawn
        sigma = math.sqrt(math.log(1 + self.cv**2))
        lognormal: list[float] = rng.lognormal(math.log(self.mean) - sigma**2 / 2, sigma, size).tolist()
        return lognormal


@dataclass(frozen=True)
class Spells:
    """Each worker, or each failure domain together, is `factor` times slower for a share of the time, in spells.

    `factor` inf: frozen, what it has begun goes on when the spell ends. Lengths and gaps are exponential.
    """

    share: float
    mean: float
    factor: float
    by_domain: bool = False


@dataclass(frozen=True)
class Outage:
    """From `at` on, for `lasts`, this worker does what `kind` says: frozen, dead (what is sent fails), or slow."""

    worker: str
    at: float
    lasts: float = math.inf
    kind: str = "frozen"
    factor: float = 5.0

    @property
    def ends_at(self) -> float:
        return self.at + self.lasts


@dataclass(frozen=True)
class Arrivals:
    """Poisson of a rate; Gamma gaps of this cv; bursts (`burst` times as many for a tenth of the time); or a trace."""

    rate: float
    cv: float = 1.0
    burst: float = 1.0
    burst_mean: float = 50.0
    trace: tuple[float, ...] = ()

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        if self.trace:
            yield from self.trace
            return
        at, high, until = 0.0, False, 0.0
        # So that the mean rate is `rate`: a tenth of the time at `burst` times the low rate.
        low = self.rate / (0.9 + 0.1 * self.burst)
        while True:
            shape = 1.0 / self.cv**2
            for gap in rng.gamma(shape, 1.0 / shape, BLOCK).tolist():
                while self.burst > 1.0 and at >= until:
                    high = not high
                    until = at + rng.exponential(self.burst_mean * (1.0 if high else 9.0))
                at += gap / (low * self.burst if high and self.burst > 1.0 else low if self.burst > 1.0 else self.rate)
                yield at


@dataclass(frozen=True)
class Costs:
    """In deployed inferences. `group`: of a parity model's answer, or of each query in a backup's group.

    `batch_saves`: what each further query in one run saves, from 0 (k cost k) to 1 (k cost one).
    """

    group: float = 1.0
    batch_saves: float = 0.0
    finish: float = 0.01
    decode: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Everything that makes a run. The same scenario and seed give the same run."""

    fleet: Fleet
    policy: Policy
    arrivals: Arrivals
    queries: int
    service: Service = field(default_factory=Service)
    spells: Spells | None = None
    outages: tuple[Outage, ...] = ()
    net_share: float = 0.0
    net_mean: float = 0.0
    costs: Costs = field(default_factory=Costs)
    proxies: int = 1
    places: int = 1
    """How many tasks a machine runs at once."""
    clock: float = 0.0
    """What the proxies' clock counts in; 0: exact. Their timers are up to two counts late: one since the clock was
    read, one since they sleep for whole counts.
    """
    worker_batch: int = 1
    deadline: float = math.inf
    """What each client asks for; inf: nothing but the policy's."""
    patience: float = math.inf
    """So long after its query a client leaves, which the proxy is not told before."""
    warm_up: float = 0.02
    """Share of the queries at the beginning that is not measured."""


@dataclass
class Result:
    """What was measured, in the scenario's unit of time."""

    latencies: list[float] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    abandoned: int = 0
    """Their clients left."""
    unanswered: int = 0
    """Still waiting when everything else had ended: on a machine that is frozen for ever."""
    work: float = 0.0
    work_of: dict[str, float] = field(default_factory=dict)
    """The same by what was run: `deployed`, `copy` (second copies), `protection`, `finish`."""
    queries: int = 0
    records: list[Record] | None = None
    sent: dict[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        return float(np.quantile(np.asarray(self.latencies), share)) if self.latencies else math.nan

    @property
    def work_per_query(self) -> float:
        return self.work / max(1, self.queries)

    @property
    def reconstructed(self) -> float:
        return self.answered.get(Source.RECONSTRUCTED.value, 0) / max(1, len(self.latencies))


class _Worker:
    """One TorchServe: a queue, and as many runs at a time as it has places, or one (of up to `batch` tasks)."""

    __slots__ = ("deaths", "free_at", "name", "outages", "queue", "running", "spell")

    def __init__(self, name: str, spell: _Spell | None, outages: Sequence[Outage], places: int) -> None:
        self.name = name
        self.spell = spell
        self.outages = deque(outage for outage in outages if outage.kind != "dead")
        self.deaths = deque(outage for outage in outages if outage.kind == "dead")
        self.free_at = [0.0] * places
        """When each place is free again: a heap."""
        self.queue: list[tuple[int, Task]] = []
        self.running = False

    def dies_at(self, now: float) -> float:
        """When it is dead from then on or, if it is now, the present. Asked only at instants that never go back."""
        deaths = self.deaths
        while deaths and deaths[0].ends_at <= now:
            deaths.popleft()
        return max(now, deaths[0].at) if deaths else math.inf

    def through(self, begins: float, takes: float) -> tuple[float, float]:
        """-> when a run of this much work ends that begins then, and how long it is busy with it; frozen, it is not.

        Asked only for runs that begin one after the other.
        """
        outages = self.outages
        while outages and outages[0].ends_at <= begins:
            outages.popleft()
        at, busy = begins, 0.0
        for outage in outages:
            if outage.at >= at + takes:
                break
            if outage.at > at:
                takes, busy, at = takes - (outage.at - at), busy + outage.at - at, outage.at
            if outage.kind == "frozen":
                at = max(at, outage.ends_at)
                continue
            lasts = max(0.0, outage.ends_at - at)
            if takes * outage.factor <= lasts:
                return at + takes * outage.factor, busy + takes * outage.factor
            takes, busy, at = takes - lasts / outage.factor, busy + lasts, at + lasts
        return at + takes, busy + takes


_FORGOTTEN = 100
"""So many spells later it is as likely to be slow as at first. Each is a step, and there may be no end of them."""


class _Spell:
    """Alternates between usual and slow; asked only at instants that never go back."""

    __slots__ = ("_mean_fast", "_mean_slow", "_rng", "_share", "factor", "slow", "until")

    def __init__(self, spells: Spells, rng: np.random.Generator) -> None:
        self._rng = rng
        self.factor = spells.factor
        self._share = spells.share
        self._mean_slow = spells.mean
        self._mean_fast = spells.mean * (1 - spells.share) / spells.share
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self.slow = bool(self._rng.random() < self._share)
        self.until = now + self._rng.exponential(self._mean_slow if self.slow else self._mean_fast)

    def at(self, now: float) -> tuple[bool, float]:
        """-> whether it is slow now, and until when it stays so."""
        if now - self.until > _FORGOTTEN * (self._mean_slow + self._mean_fast):
            self._begin(now)  # lengths are exponential: so much later nothing depends on what was
        while now >= self.until:
            self.slow = not self.slow
            self.until += self._rng.exponential(self._mean_slow if self.slow else self._mean_fast)
        return self.slow, self.until


def simulate(
    scenario: Scenario,
    seed: int = 0,
    keep_records: bool = False,
    progress: Callable[[int], object] | None = None,
    on_event: Callable[[str, float, object, list[Action]], object] | None = None,
) -> Result:
    """Run it. `progress` is told how many more queries have arrived; `on_event` sees every event and its actions."""
    return _Run(scenario, seed, keep_records, progress, on_event).go()


_ARRIVED = Arrived(raw=True)
_DEAD = Failed("dead", cause=Cause.UNREACHABLE)
_KILLED = Failed("it died", cause=Cause.LOST)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        keep_records: bool,
        progress: Callable[[int], object] | None,
        on_event: Callable[[str, float, object, list[Action]], object] | None,
    ) -> None:
        self.scenario = scenario
        self._rng = np.random.default_rng(seed)
        self._schedulers = [Scheduler(scenario.fleet, scenario.policy) for _ in range(scenario.proxies)]
        self._workers = self._make_workers(scenario)
        self._heap: list[tuple[float, int, Task | Query, Outcome | None]] = []
        self._order = count()
        self._service: list[float] = []
        self._uniform: list[float] = []
        self._result = Result(records=[] if keep_records else None)
        self._progress = progress
        self._on_event = on_event
        self._skip = int(scenario.warm_up * scenario.queries)
        self._pool = scenario.fleet.pools[0].name
        self._owner: dict[int, Scheduler] = {}
        self._deadline = self._timer_at = math.inf

    def _make_workers(self, scenario: Scenario) -> dict[str, _Worker]:
        spells: dict[str, _Spell] = {}
        workers = {}
        outages: dict[str, list[Outage]] = {}
        for outage in sorted(scenario.outages, key=lambda outage: outage.at):
            outages.setdefault(outage.worker, []).append(outage)
        for instance in scenario.fleet.instances:
            spell = None
            if scenario.spells is not None and scenario.spells.share > 0:
                key = instance.domain if scenario.spells.by_domain else instance.name
                if key not in spells:
                    spells[key] = _Spell(scenario.spells, self._rng)
                spell = spells[key]
            workers[instance.name] = _Worker(instance.name, spell, outages.get(instance.name, ()), scenario.places)
        return workers

    def go(self) -> Result:
        scenario, heap, schedulers = self.scenario, self._heap, self._schedulers
        arrivals = scenario.arrivals.times(np.random.default_rng(self._rng.integers(1 << 60)))
        arrived, inf = 0, math.inf
        arrival_at = next(arrivals, inf)
        one = schedulers[0] if len(schedulers) == 1 else None
        while True:
            event_at = heap[0][0] if heap else inf
            scheduler = one or min(schedulers, key=Scheduler.next_deadline)
            deadline = scheduler.next_deadline()
            due_at = self._fires_at(deadline) if scenario.clock else deadline
            if due_at <= arrival_at and due_at <= event_at:
                if due_at == inf:
                    break
                self._obey(scheduler, scheduler.tick(max(deadline, self._read(due_at))), due_at, "tick", None)
            elif arrival_at <= event_at:
                query = Query(arrived, self._pool, "key", payload=arrival_at)
                if scenario.deadline < inf:
                    query.deadline_at = arrival_at + scenario.deadline
                if scenario.patience < inf:
                    heapq.heappush(heap, (arrival_at + scenario.patience, next(self._order), query, None))
                scheduler = one or schedulers[arrived % len(schedulers)]
                self._obey(
                    scheduler, scheduler.query_arrived(query, self._read(arrival_at)), arrival_at, "arrived", query
                )
                arrived += 1
                if self._progress is not None and arrived % 1000 == 0:
                    self._progress(1000)
                arrival_at = next(arrivals, inf) if arrived < scenario.queries else inf
            else:
                now, _, task, outcome = heapq.heappop(heap)
                if isinstance(task, Query):
                    if task.open:
                        self._leaves(one or schedulers[task.id % len(schedulers)], task, now)
                    continue
                if outcome is None:
                    self._next_run(self._workers[task.endpoint.instance], now)
                    continue
                scheduler = one or self._owner.pop(id(task))
                self._obey(scheduler, scheduler.task_done(task, outcome, self._read(now)), now, "done", task)
        self._result.queries = arrived
        ended = len(self._result.latencies) + self._result.failed + self._result.abandoned
        self._result.unanswered = max(0, arrived - self._skip) - ended
        for scheduler in schedulers:
            for kind, number in scheduler.sent.items():
                name = str(getattr(kind, "value", kind))
                self._result.sent[name] = self._result.sent.get(name, 0) + number
        return self._result

    def _read(self, now: float) -> float:
        """The proxies' clock."""
        clock = self.scenario.clock
        return math.floor(now / clock) * clock if clock else now

    def _fires_at(self, deadline: float) -> float:
        if deadline != self._deadline:
            self._deadline = deadline
            self._timer_at = deadline + 2 * self.scenario.clock * float(self._rng.random())
        return self._timer_at

    def _leaves(self, scheduler: Scheduler, query: Query, now: float) -> None:
        if query.id >= self._skip:
            self._result.abandoned += 1
        self._obey(scheduler, scheduler.query_abandoned(query, self._read(now)), now, "left", query)

    def _obey(self, scheduler: Scheduler, actions: list[Action], now: float, what: str, subject: object) -> None:
        if self._on_event is not None:
            self._on_event(what, now, subject, actions)
        for action in actions:
            if type(action) is Send:
                if len(self._schedulers) > 1:
                    self._owner[id(action.task)] = scheduler
                self._start(action.task, now)
            elif type(action) is Answer:
                self._answered(action, now)
            elif type(action) is Fail:
                self._failed(action, now)  # there is nothing to compare where answers are times

    def _answered(self, action: Answer, now: float) -> None:
        query, result = action.query, self._result
        if query.id < self._skip:
            return
        latency = now - query.payload
        if action.source is Source.RECONSTRUCTED:
            latency += self.scenario.costs.decode
        result.latencies.append(latency)
        source = action.source.value
        result.answered[source] = result.answered.get(source, 0) + 1
        if result.records is not None:
            result.records.append(Record(query.id, query.arrived_at, query.arrived_at, latency, source, 200))

    def _failed(self, action: Fail, now: float) -> None:
        if action.query.id < self._skip:
            return
        self._result.failed += 1
        if self._result.records is not None:
            at, reason = action.query.arrived_at, action.reason.value
            self._result.records.append(Record(action.query.id, at, at, now - at, ERROR, 503, reason=reason))

    # ---- workers ---------------------------------------------------------------------------------------------------

    def _start(self, task: Task, now: float) -> None:
        worker = self._workers[task.endpoint.instance]
        dies_at = worker.dies_at(now)
        if dies_at == now:
            heapq.heappush(self._heap, (now, next(self._order), task, _DEAD))
            return
        if self.scenario.worker_batch > 1:
            worker.queue.append((next(self._order), task))
            if not worker.running:
                self._next_run(worker, now)
            return
        free_at = worker.free_at[0]
        begins = now if now > free_at else free_at
        before = self._result.work
        ends = self._runs(worker, begins, self._cost(task))
        self._worked(task, self._result.work - before)
        if dies_at < ends:
            heapq.heapreplace(worker.free_at, dies_at)
            heapq.heappush(self._heap, (dies_at, next(self._order), task, _KILLED))
            return
        heapq.heapreplace(worker.free_at, ends)
        self._reply(task, ends)

    def _next_run(self, worker: _Worker, now: float) -> None:
        """A worker that batches takes what waits, up to its batch size, in one run."""
        taken, worker.queue = worker.queue[: self.scenario.worker_batch], worker.queue[self.scenario.worker_batch :]
        worker.running = bool(taken)
        if not taken:
            return
        costs = [self._cost(task) for _, task in taken]
        saved = self.scenario.costs.batch_saves
        before = self._result.work
        ends = self._runs(worker, now, max(costs) + (1 - saved) * (sum(costs) - max(costs)))
        work = self._result.work - before
        for (_, task), cost in zip(taken, costs, strict=True):
            self._worked(task, work * cost / sum(costs))
            self._reply(task, ends)
        heapq.heappush(self._heap, (ends, next(self._order), taken[0][1], None))

    def _worked(self, task: Task, work: float) -> None:
        kind, of = "copy" if task.hedge else task.kind._value_, self._result.work_of
        of[kind] = of.get(kind, 0.0) + work

    def _reply(self, task: Task, ends: float) -> None:
        if self.scenario.net_share:
            if not self._uniform:
                self._uniform = self._rng.random(BLOCK).tolist()
            if self._uniform.pop() < self.scenario.net_share:
                ends += self._rng.exponential(self.scenario.net_mean)
        heapq.heappush(self._heap, (ends, next(self._order), task, _ARRIVED))

    def _cost(self, task: Task) -> float:
        """Of one task on a worker of the usual speed, in deployed inferences."""
        if task.kind is Kind.DEPLOYED:
            return 1.0
        costs = self.scenario.costs
        if task.kind is Kind.FINISH:
            return costs.finish
        group = task.group
        assert group is not None
        if group.code.family == "parity":
            return costs.group
        return costs.group * (1 + (1 - costs.batch_saves) * (group.size - 1))

    def _runs(self, worker: _Worker, begins: float, cost: float) -> float:
        """-> when a run ends that begins then. Work counts as the worker is busy with it; frozen time is no work."""
        if not self._service:
            self._service = self.scenario.service.draw(self._rng, BLOCK)
        takes = self._service.pop() * cost
        if worker.spell is not None:
            slow, until = worker.spell.at(begins)
            if slow and worker.spell.factor == math.inf:
                begins = until
            elif slow:
                takes *= worker.spell.factor
        if worker.outages:
            ends, takes = worker.through(begins, takes)
        else:
            ends = begins + takes
        if ends < math.inf:
            self._result.work += takes
        return ends


def measured(
    scenario: Scenario | Callable[[int], Scenario],
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Of a scenario, or of one for each seed: means over seeds of percentiles, work and shares; `p99_low`, `p99_high`
    and so on are the extremes.

    `samples`: the fewest answers there are behind a seed's percentiles. A percentile of no answers is None. `launched`:
    protections per query; `launched_late`: of the queries, those that got one because they were late.
    """
    made = [scenario if isinstance(scenario, Scenario) else scenario(seed) for seed in seeds]
    results = [simulate(each, seed, progress=progress) for each, seed in zip(made, seeds, strict=True)]
    row: dict[str, Any] = {}
    for name, share in PERCENTILES.items():
        each = [r.percentile(share) for r in results]
        known = not any(math.isnan(value) for value in each)
        row[name] = _mean(each) if known else None
        row[f"{name}_low"], row[f"{name}_high"] = (round(min(each), 3), round(max(each), 3)) if known else (None, None)
    return {
        **row,
        "samples": min(len(r.latencies) for r in results),
        "work": _mean([r.work_per_query for r in results]),
        **{
            f"work_{kind}": _mean([r.work_of.get(kind, 0.0) / max(1, r.queries) for r in results], 5)
            for kind in WORK_KINDS
        },
        "launched": _mean([r.sent.get("protection", 0) / max(1, r.queries) for r in results], 5),
        "launched_late": _mean([r.sent.get("late", 0) / max(1, r.queries) for r in results], 5),
        "reconstructed": _mean([r.reconstructed for r in results], 5),
        "unanswered": float(sum(r.failed + r.unanswered for r in results)),
    }


PERCENTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
WORK_KINDS = ("copy", "protection", "finish")
"""Of the work, what is there beside the deployed model's own answers."""
CONFIDENCE = 0.99


def needed(share: float) -> int:
    """So many samples that one of them at least is beyond this percentile, with CONFIDENCE: 459 for p99, 4,603 for
    p99.9, 46,050 for p99.99. With fewer, the percentile may lie above all that was seen.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))


def doubtful(samples: int) -> list[str]:
    """The percentiles that this many samples do not support."""
    return [name for name, share in PERCENTILES.items() if samples < needed(share)]


def _mean(values: Sequence[float], digits: int = 3) -> float:
    return round(float(np.mean(values)), digits)
