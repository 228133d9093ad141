"""A discrete-event simulator that drives the very Scheduler the proxy drives, in virtual time.

Knows service times, slowdowns, arrivals and queues at workers. Knows nothing of policy: it obeys the engine's actions,
as the proxy does. The unit of time is whatever the scenario's service times are in; tables use the mean service time of
the deployed model.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from ts_parity.engine import (
    Answer,
    Arrived,
    Cause,
    Fail,
    Failed,
    Kind,
    Outcome,
    Query,
    Scheduler,
    Send,
    Source,
)
from ts_parity.engine.query import Action, Task
from ts_parity.engine.sizes import SizeClass, size_class
from ts_parity.lab.agreement import AgreementCurve
from ts_parity.lab.records import ERROR, QueryRecord
from ts_parity.lab.scenario import BLOCK, Outage, Scenario, ServiceTimes, Spells
from ts_parity.lab.sharing import sharing


@dataclass
class Result:
    """What was measured, in the scenario's unit of time."""

    latencies: list[float] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    abandoned: int = 0
    """Their clients left."""
    unanswered: int = 0
    """Still waiting when everything else had ended: on a machine that stays frozen."""
    work: float = 0.0
    work_of: dict[str, float] = field(default_factory=dict)
    """The same by what was run: `deployed`, `copy` (second copies), `protection`, `finish`."""
    differing: float = 0.0
    """Answers expected to differ from the deployed model's own, by their confidence."""
    differing_drawn: int = 0
    """Answers that did differ."""
    queries: int = 0
    records: list[QueryRecord] | None = None
    sent: dict[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        return float(np.quantile(np.asarray(self.latencies), share)) if self.latencies else math.nan

    @property
    def work_per_query(self) -> float:
        return self.work / max(1, self.queries)

    @property
    def reconstructed(self) -> float:
        return self.answered.get(Source.RECONSTRUCTED.value, 0) / max(1, len(self.latencies))


class _SimulatedQuery:
    """What a simulated query carries: when it came, how long it takes on a usual machine, which proxy serves it, and
    the expected agreement of a rebuilt answer (None: nobody has rebuilt one, or nothing is known).
    """

    __slots__ = ("agreement", "came_at", "proxy", "takes")

    def __init__(self, came_at: float, takes: float, proxy: int) -> None:
        self.came_at = came_at
        self.takes = takes
        self.proxy = proxy
        self.agreement: float | None = None


class _Worker:
    """One TorchServe: a queue, and as many runs at a time as it has places, or one (of up to `batch` tasks)."""

    __slots__ = ("deaths", "free_at", "name", "outages", "queue", "running", "speed", "spell")

    def __init__(self, name: str, spell: _Spell | None, outages: Sequence[Outage], places: int, speed: float) -> None:
        self.name = name
        self.speed = speed
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
"""After this many spells it is as likely to be slow as at first. Without a limit, each spell would be one step."""


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
    """Run it. `progress` is called with how many queries have arrived since its last call; `on_event` sees every event
    and its actions.
    """
    return _Run(scenario, seed, keep_records, progress, on_event).go()


BYTES = 10_000
"""Of a body of size 1."""
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
        # Separate streams: every policy meets the same queries and the same spells, however many times it runs them.
        self._query_rng = np.random.default_rng([seed, 1])
        self._draw_rng = np.random.default_rng([seed, 2])
        self._sharing = sharing(scenario.sharing, scenario.fleet, scenario.proxies, scenario.exchange)
        self._schedulers = [Scheduler(fleet, scenario.policy) for fleet in self._sharing.fleets]
        self._sharing.schedulers = self._schedulers
        self._workers = self._make_workers(scenario)
        self._heap: list[tuple[float, int, Task | Query, Outcome | None]] = []
        self._order = count()
        self._service: list[float] = []
        self._uniform: list[float] = []
        self._own: list[tuple[float, SizeClass | None]] = []
        self._drawn: list[float] = []
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
        speeds = scenario.speeds or (1.0,)
        outages: dict[str, list[Outage]] = {}
        for outage in sorted(scenario.outages, key=lambda outage: outage.at):
            outages.setdefault(outage.worker, []).append(outage)
        for index, instance in enumerate(scenario.fleet.instances):
            spell = None
            if scenario.spells is not None and scenario.spells.share > 0:
                key = instance.domain if scenario.spells.by_domain else instance.name
                if key not in spells:
                    spells[key] = _Spell(scenario.spells, np.random.default_rng(self._rng.integers(1 << 60)))
                spell = spells[key]
            own, speed = outages.get(instance.name, ()), speeds[index % len(speeds)]
            workers[instance.name] = _Worker(instance.name, spell, own, scenario.places, speed)
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
                takes, seen = self._takes()
                serves = 0 if one is not None else self._serves(arrived, arrival_at)
                # One that is forwarded came two hops earlier, so that one way there and one back are in its latency.
                came_at = arrival_at - (2 * scenario.hop if serves != arrived % len(schedulers) else 0.0)
                query = Query(arrived, self._pool, "key", payload=_SimulatedQuery(came_at, takes, serves), size=seen)
                if scenario.deadline < inf:
                    query.deadline_at = arrival_at + scenario.deadline
                if scenario.patience < inf:
                    heapq.heappush(heap, (arrival_at + scenario.patience, next(self._order), query, None))
                scheduler = schedulers[serves]
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
                        self._leaves(schedulers[task.payload.proxy], task, now)
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

    def _serves(self, arrived: int, now: float) -> int:
        """Which proxy serves it; before that, whatever the proxies have told each other by now."""
        if now >= self._sharing.exchange_at:
            for scheduler, actions in self._sharing.exchange(now):
                self._obey(scheduler, actions, now, "exchange", None)
        return self._sharing.serves(arrived % len(self._schedulers), now)

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
        latency = now - query.payload.came_at
        if action.source is Source.RECONSTRUCTED:
            latency += self.scenario.costs.decode
            if (agreement := query.payload.agreement) is not None:
                result.differing += 1.0 - agreement
                result.differing_drawn += float(self._draw_rng.random()) >= agreement
        result.latencies.append(latency)
        source = action.source.value
        result.answered[source] = result.answered.get(source, 0) + 1
        if result.records is not None:
            result.records.append(QueryRecord(query.id, query.arrived_at, query.arrived_at, latency, source, 200))

    def _failed(self, action: Fail, now: float) -> None:
        if action.query.id < self._skip:
            return
        self._result.failed += 1
        if self._result.records is not None:
            at, reason = action.query.arrived_at, action.reason.value
            self._result.records.append(QueryRecord(action.query.id, at, at, now - at, ERROR, 503, reason=reason))

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
        """A worker that batches takes what waits, up to its batch size, in one run. If it dies, all of that is lost."""
        dies_at = worker.dies_at(now)
        if dies_at == now:
            for _, task in worker.queue:
                heapq.heappush(self._heap, (now, next(self._order), task, _KILLED))
            worker.queue = []
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
            if dies_at < ends:
                heapq.heappush(self._heap, (dies_at, next(self._order), task, _KILLED))
            else:
                self._reply(task, ends)
        heapq.heappush(self._heap, (min(ends, dies_at), next(self._order), taken[0][1], None))

    def _worked(self, task: Task, work: float) -> None:
        kind, of = "copy" if task.hedge else task.kind._value_, self._result.work_of
        of[kind] = of.get(kind, 0.0) + work

    def _reply(self, task: Task, ends: float) -> None:
        if self.scenario.net_share and self._random() < self.scenario.net_share:
            ends += self._rng.exponential(self.scenario.net_mean)
        outcome = _ARRIVED
        if self.scenario.agreement is not None and task.kind is not Kind.DEPLOYED:
            outcome = Arrived(raw=True, agreement=self._agreements(task, self.scenario.agreement))
        heapq.heappush(self._heap, (ends, next(self._order), task, outcome))

    def _agreements(self, task: Task, curve: AgreementCurve) -> dict[int, float] | None:
        """By slot, of what a protection or a finish brings. To one query it is the same, whoever rebuilds it."""
        group = task.group
        assert group is not None
        if group.code.lossless:
            return None
        agreements = {}
        for slot, member in enumerate(group.members):
            if member is not None:
                if member.payload.agreement is None:
                    if not self._drawn:
                        self._drawn = curve.draw(self._draw_rng, BLOCK)
                    member.payload.agreement = self._drawn.pop()
                agreements[slot] = member.payload.agreement
        return agreements

    def _random(self) -> float:
        if not self._uniform:
            self._uniform = self._rng.random(BLOCK).tolist()
        return self._uniform.pop()

    def _takes(self) -> tuple[float, SizeClass | None]:
        """-> how long the next query takes on a usual machine, in mean deployed inferences, and its size class."""
        if not self._own:
            self._own = self._own_times(BLOCK)
        return self._own.pop()

    def _own_times(self, size: int) -> list[tuple[float, SizeClass | None]]:
        sizes, own_cv = self.scenario.sizes, self.scenario.own_cv
        takes = np.ones(size)
        classes: list[SizeClass | None] = [None] * size
        if sizes:
            values, shares = zip(*sizes, strict=True)
            bodies = self._query_rng.choice(np.asarray(values), size, p=np.asarray(shares))
            takes *= bodies
            classes = [size_class("", int(BYTES * body)) for body in bodies]
        if own_cv:
            takes *= ServiceTimes(cv=own_cv).draw(self._query_rng, size)
        return list(zip(takes.tolist(), classes, strict=True))

    def _cost(self, task: Task) -> float:
        """Of one task on a worker of the usual speed, in deployed inferences."""
        if task.kind is Kind.DEPLOYED:
            assert task.query is not None
            return float(task.query.payload.takes)
        costs = self.scenario.costs
        if task.kind is Kind.FINISH:
            return costs.finish
        group = task.group
        assert group is not None
        members = [member.payload.takes for member in group.members if member is not None]
        if group.code.family == "parity":
            return float(costs.group * max(members))
        return float(costs.group * (max(members) + (1 - costs.batch_saves) * (sum(members) - max(members))))

    def _runs(self, worker: _Worker, begins: float, cost: float) -> float:
        """-> when a run ends that begins then. Work counts as the worker is busy with it; frozen time is no work."""
        if not self._service:
            self._service = self.scenario.service.draw(self._rng, BLOCK)
        takes = self._service.pop() * cost * worker.speed
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
