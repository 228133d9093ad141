"""Races in virtual time: a table of what each task does, in; who was answered how and when, out.

For tests and for trying a policy by hand. Drives the real Scheduler; time is a number, so results are
exact and instant.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts_parity.codes import make_code
from ts_parity.engine import (
    ARRIVED_ERROR,
    LOSSLESS,
    Action,
    Answer,
    Arrived,
    Cause,
    Compare,
    Endpoint,
    Fail,
    Failed,
    Finding,
    Fleet,
    Instance,
    Kind,
    Outcome,
    Pool,
    Query,
    Rejected,
    Scheduler,
    Send,
    Task,
    plain,
)
from ts_parity.engine.accuracy import BURST

POOL = "model"
OUTCOMES: Mapping[str, Outcome] = {
    "ok": Arrived(raw=True),
    "plain": Arrived(raw=False),
    "error": ARRIVED_ERROR,
    "fail": Failed("worker died"),
    "fatal": Failed("refused", retry=False),
    "unreachable": Failed("connection refused", cause=Cause.UNREACHABLE),
    "killed": Failed("500 Worker died.", cause=Cause.WORKER_DIED),
    "lost": Failed("it closed the connection", cause=Cause.LOST),
    "lost behind": Failed("502 from a gateway", cause=Cause.LOST_BEHIND),
    "reject": Rejected(),
}
TaskRow = tuple[int | str, float, str]
"""(query or "retry 0" or "parity 0" or "finish 0", seconds after it was sent, an outcome or "never").

The outcome of a protection or a finish may be a number instead: it has arrived, and this is its expected agreement.
"""


@dataclass
class Run:
    """What happened. Times are rounded to the microsecond."""

    scheduler: Scheduler
    answers: dict[int, tuple[str, float]] = field(default_factory=dict)
    failures: dict[int, tuple[str, float]] = field(default_factory=dict)
    errors: list[int] = field(default_factory=list)
    """Queries whose answer was an error of the handler."""
    sent: list[tuple[float, str, str]] = field(default_factory=list)
    """(time, what, endpoint): what is a query's number, "parity 0" or "finish 0" as in the table."""
    actions: list[Action] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    unfinished: int = 0
    compared: list[tuple[int, str, str]] = field(default_factory=list)
    """(query, the kind of task it was compared with, the finding)."""

    def sends(self, what: int | str) -> list[tuple[float, str]]:
        return [(at, endpoint) for at, sent, endpoint in self.sent if sent == str(what)]

    def nothing_left_over(self) -> bool:
        """No open query, nothing queued, no group open; tasks that never end aside, no place taken."""
        pools = list(self.scheduler.pools())
        lines = [
            line
            for p in pools
            for line in (p.waiting, p.retries, p.placement.open_groups, p.finishes, p.late, p.hedges)
        ]
        empty = not any(lines) and all(_all_done(p.protections) for p in pools)
        return empty and self.scheduler.open_queries() == 0 and self.scheduler.in_flight() == self.unfinished


def _all_done(protections: Iterable[tuple[Any, int]]) -> bool:
    return all(group.done for group, _ in protections)


def fleet(
    *,
    deployed: int = 4,
    code: str | None = "sum",
    k: int = 2,
    r: int = 1,
    protections: int = 1,
    places: int = 1,
    domains: Sequence[str] | None = None,
    shared: bool = False,
    partial: bool = True,
    proved: bool = True,
    repeatable: bool = True,
) -> Fleet:
    """Instances d0, d1 .. with the deployed model and p0.0 (row 0, number 0) .. with protections.

    `proved`: nothing is on trial. `shared`: the protections stand beside the deployed model on d0, d1 .. instead.
    """
    instances = [Instance(f"d{i}", places, domains[i] if domains else f"d{i}") for i in range(deployed)]
    endpoints = [Endpoint(f"d{i}", f"d{i}", POOL, None, places) for i in range(deployed)]
    for row in range(r if code else 0):
        for number in range(protections):
            name = f"p{row}.{number}"
            host = f"d{number}" if shared else name
            if not shared:
                instances.append(Instance(name, places, name))
            endpoints.append(Endpoint(name, host, POOL, row, places))
    pool = Pool(POOL, make_code(code, k, r) if code else None, partial, proved=proved, repeatable=repeatable)
    return Fleet(tuple(instances), tuple(endpoints), (pool,))


def scenario(
    *,
    arrivals: Sequence[float],
    tasks: Sequence[TaskRow] = (),
    service: float = 0.010,
    exact: Collection[int] = (),
    least: Mapping[int, float] | None = None,
    abandons: Mapping[int, float] | None = None,
    deadlines: Mapping[int, float] | None = None,
    keys: Mapping[int, str | None] | None = None,
    policy: Mapping[str, Any] | None = None,
    slow: Mapping[str, tuple[float, float]] | None = None,
    dead: Mapping[str, tuple[float, float]] | None = None,
    erring: Mapping[str, tuple[float, float]] | None = None,
    findings: Sequence[str] = (),
    differing_left: float | None = None,
    until: float = 100.0,
    **shape: Any,
) -> Run:
    """Run query i from arrivals[i] on. A task not in the table is "ok" after `service`, a finish after 1 ms.

    Several rows with one name are taken in turn. `shape` is passed to `fleet`. `exact` lists the queries that refuse
    rebuilt answers, `least` maps queries to the confidence they want of one. `abandons` and `deadlines` map queries to
    instants, `keys` maps queries to group keys, `slow` maps endpoints to an instant and the service time that deployed
    tasks have there from then on. `dead` maps instances to when they die and when they are back: what they had is lost,
    and meanwhile they accept no connection. `erring` maps endpoints to when they begin and when they cease to answer
    whatever they get with an error, in 1 ms. `differing_left` is what is left of the accuracy budget when it begins
    (None: all). With `proved=False` (of `fleet`) protections are on trial first; `findings` are what is found by
    comparisons, in turn.
    """
    settings = {"reconstruct_after_s": 0.05, "group_wait_s": 0.02, "deadline_s": 1.0, **(policy or {})}
    run = Run(Scheduler(fleet(**shape), plain(**settings)))
    if differing_left is not None:
        for pool in run.scheduler.pools():
            pool.release.budget.spend(BURST - differing_left)
    world = _Race(run, list(tasks), service, slow or {}, dead or {}, erring or {}, findings)
    wanted = {**dict.fromkeys(exact, LOSSLESS), **(least or {})}
    queries = [
        Query(i, POOL, (keys or {}).get(i, "same"), (deadlines or {}).get(i), wanted.get(i, 0.0))
        for i in range(len(arrivals))
    ]
    for query, at in zip(queries, arrivals, strict=True):
        world.at(at, query, None)
    for number, at in (abandons or {}).items():
        world.at(at, queries[number], "left")
    world.go(until)
    return run


class _Race:
    """The heap of what will happen, and the table of what tasks do."""

    def __init__(
        self,
        run: Run,
        table: list[TaskRow],
        service: float,
        slow: Mapping[str, tuple[float, float]],
        dead: Mapping[str, tuple[float, float]],
        erring: Mapping[str, tuple[float, float]],
        findings: Sequence[str],
    ) -> None:
        self._run = run
        self._table = [(str(what), seconds, outcome) for what, seconds, outcome in table]
        self._service = service
        self._slow = slow
        self._dead = dead
        self._findings = findings
        self._erring = erring
        self._errors: set[int] = set()
        self._heap: list[tuple[float, int, Query | Task, str | None]] = []
        self._order = 0

    def at(self, when: float, subject: Query | Task, what: str | None) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, subject, what))

    def go(self, until: float) -> None:
        scheduler = self._run.scheduler
        while True:
            timer = scheduler.next_deadline()
            event_at = self._heap[0][0] if self._heap else math.inf
            if timer < event_at:
                if timer > until:
                    return
                self._obey(scheduler.tick(timer), timer)
            elif event_at == math.inf or event_at > until:
                return
            else:
                _, _, subject, what = heapq.heappop(self._heap)
                self._obey(self._happen(subject, what, event_at), event_at)

    def _happen(self, subject: Query | Task, what: str | None, now: float) -> list[Action]:
        scheduler = self._run.scheduler
        if isinstance(subject, Query):
            return scheduler.query_arrived(subject, now) if what is None else scheduler.query_abandoned(subject, now)
        assert what is not None
        return scheduler.task_done(subject, _outcome(subject, what), now)

    def _obey(self, actions: list[Action], now: float) -> None:
        run, at = self._run, round(now, 6)
        run.actions += actions
        for action in actions:
            if isinstance(action, Send):
                self._start(action.task, now)
            elif isinstance(action, Answer):
                assert action.query.id not in run.answers
                run.answers[action.query.id] = (action.source.value, at)
                if action.task is not None and action.task.id in self._errors:
                    run.errors.append(action.query.id)
            elif isinstance(action, Fail):
                assert action.query.id not in run.failures
                run.failures[action.query.id] = (action.reason.value, at)
        for action in actions:
            if isinstance(action, Compare):
                self._compare(action, now)

    def _compare(self, pair: Compare, now: float) -> None:
        run, query = self._run, pair.own.query
        assert query is not None
        number = len(run.compared)
        finding = self._findings[number] if number < len(self._findings) else "agreed"
        run.compared.append((query.id, pair.other.kind.value, finding))
        self._obey(run.scheduler.compared(pair, Finding(finding), "as written", now), now)

    def _start(self, task: Task, now: float) -> None:
        name = _name(task)
        self._run.tasks.append(task)
        self._run.sent.append((round(now, 6), name.removeprefix("retry "), task.endpoint.name))
        usual = 0.001 if task.kind is Kind.FINISH else self._service
        since, slower = self._slow.get(task.endpoint.name, (float("inf"), usual))
        seconds, outcome = self._script(name, slower if now >= since and task.kind is Kind.DEPLOYED else usual)
        errs_at, ceases_at = self._erring.get(task.endpoint.name, (math.inf, math.inf))
        if task.kind is Kind.DEPLOYED and errs_at <= now < ceases_at:
            seconds, outcome = 0.001, "error"
        if outcome == "error":
            self._errors.add(task.id)
        dies_at, back_at = self._dead.get(task.endpoint.instance, (math.inf, math.inf))
        if dies_at <= now < back_at:
            self.at(now + 0.001, task, "unreachable")
        elif now < dies_at < math.inf and (outcome == "never" or dies_at < now + seconds):
            self.at(dies_at, task, "lost")
        elif outcome == "never":
            self._run.unfinished += 1
        else:
            self.at(now + seconds, task, outcome)

    def _script(self, name: str, otherwise: float) -> tuple[float, str]:
        for index, (what, seconds, outcome) in enumerate(self._table):
            if what == name:
                del self._table[index]
                return seconds, outcome
        return otherwise, "ok"


def _outcome(task: Task, what: str) -> Outcome:
    if what in OUTCOMES:
        return OUTCOMES[what]
    assert task.group is not None
    return Arrived(raw=True, agreement=dict.fromkeys(range(task.group.k), float(what)))


def _name(task: Task) -> str:
    if task.kind is Kind.PROTECTION:
        return f"parity {task.row}"
    assert task.query is not None
    if task.kind is Kind.FINISH:
        return f"finish {task.query.id}"
    if task.hedge:
        return f"hedge {task.query.id}"
    return f"{'retry ' if task.query.attempts > 1 else ''}{task.query.id}"
