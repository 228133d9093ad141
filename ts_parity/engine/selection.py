"""Which of the endpoints with a free place a piece of work goes to: the least outstanding healthy one.

Knows endpoints and their places. Knows nothing of queues, or of what happens to the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ts_parity.engine.capacity import EndpointSet, EndpointState
from ts_parity.engine.health import Condition
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import CodingGroup, Query
from ts_parity.engine.release import Release

HELPED: Final = 2.0
"""No machine counts as more times slower than this: its queries are late, and late queries are helped."""
NO_DOMAINS: Final[Mapping[str, int]] = {}


class Selection:
    """The endpoint of one pool to which each kind of work goes, or None: for now, it waits."""

    def __init__(self, policy: Policy, release: Release) -> None:
        self.policy = policy
        self._release = release
        self.deployed = EndpointSet()
        self.rows: dict[int, EndpointSet] = {}
        self._domains = 1

    def adopt(self, deployed: EndpointSet, rows: dict[int, EndpointSet]) -> None:
        """`rows`: the endpoints of each protection."""
        self.deployed, self.rows = deployed, rows
        self._domains = len({state.domain for state in deployed.everyone})

    def for_query(self, query: Query, now: float, waiting: int) -> EndpointState | None:
        if self.policy.balance == "round_robin":
            return next((state for state in self.deployed.with_place()), None)
        line = self.deployed
        if not query.avoid:
            first = next(iter(line.ready.values()), None)
            if first is not None and not first.host.in_flight and now >= first.health.resumes_at:
                return first  # what `choose` would say, and nearly always the case
        chosen = None
        if line.ready or line.doubted or line.trials or line.out == len(line.everyone):
            # A second attempt goes to another failure domain, for what failed may have failed together.
            domains = {query.domain: 1} if query.avoid else NO_DOMAINS
            chosen = choose(line, now, query.avoid, domains)
        if chosen is None and self.is_crowd(waiting):
            chosen = self._slow_but_sooner(waiting)
        if chosen is None and self.policy.spare_places:
            chosen = self._with_an_overdue_reply(query, now)
        return chosen

    def is_crowd(self, waiting: int) -> bool:
        """So many wait that a slow endpoint may be sooner done with a query than the others."""
        return self.policy.learn_speed and waiting > 0 and self.deployed.out > 0

    def _slow_but_sooner(self, waiting: int) -> EndpointState | None:
        """The fastest of those that are out for their slowness alone, if a query that waits for another ends later."""
        fit = max(len(self.deployed) - self.deployed.out, 1)
        slow = [
            state
            for state in self.deployed.parked.values()
            if state.health.only_slow
            and state.has_place()
            and waiting > (min(state.speed.ratio, HELPED) - 1.0) * fit * state.endpoint.places
        ]
        return min(slow, key=lambda state: state.speed.ratio, default=None)

    def for_retry(self, query: Query, now: float, waiting: int) -> EndpointState | None:
        """One elsewhere, in another failure domain if there are any healthy ones, or none for now. If there is no
        elsewhere (any more), as for every query, but not while a copy runs there.
        """
        far = any(is_elsewhere(state, query, True) for state in self.deployed.everyone)
        free = [state for state in self.deployed.with_place() if is_elsewhere(state, query, far)]
        if free:
            return least_outstanding(free, now)
        if far or self.has_elsewhere(query) or now < query.rests_until:
            return None
        return self.for_query(query, now, waiting)

    def has_elsewhere(self, query: Query) -> bool:
        """Whether a copy of it is still out, or there is a healthy endpoint, busy or not, that has not failed it."""
        return query.in_flight > 0 or any(is_elsewhere(state, query, False) for state in self.deployed.everyone)

    def _with_an_overdue_reply(self, query: Query, now: float) -> EndpointState | None:
        """One more than its places, to an instance whose oldest task is overdue and whose last answer was in time: that
        one reply may be late on its way while the machine is idle.
        """
        spare, overdue_s = self.policy.spare_places, self._release.after_s
        overdue = [
            state
            for state in self.deployed.everyone
            if state.host.clean
            and state.share.in_flight < state.share.places + spare
            and state.host.in_flight < state.machine_places + spare
            and state.in_flight < state.endpoint.places + spare
            and state.tasks
            and now - (oldest := next(iter(state.tasks.values()))).sent_at > overdue_s * oldest.scale
            and state.endpoint.instance not in query.avoid
        ]
        return min(overdue, key=lambda s: (s.host.in_flight, s.last_sent), default=None)

    def for_hedge(self, query: Query, now: float) -> EndpointState | None:
        """An idle one in another failure domain, or none: a hedge must not make others wait."""
        chosen = choose(self.deployed, now, query.avoid, {query.domain: 1})
        if chosen is None or chosen.host.in_flight or chosen.endpoint.instance in query.avoid:
            return None
        return chosen if chosen.domain != query.domain or self._domains == 1 else None

    def for_probe(self, query: Query, now: float) -> EndpointState | None:
        """An ejected one that has nothing to do and may be probed."""
        for state in self.deployed.trials.values():
            due = now >= state.health.resumes_at
            if due and not state.host.in_flight and state.endpoint.instance not in query.avoid:
                return state
        return None

    def for_late(self, query: Query, now: float) -> EndpointState | None:
        """Where a backup of a late query runs: in another failure domain than the query, if there is one."""
        chosen = None
        for line in self.rows.values():
            chosen = choose(line, now, query.avoid, {query.domain: 1})
            if chosen is not None and chosen.domain != query.domain:
                return chosen
        everyone = (state for line in self.rows.values() for state in line.everyone)
        return chosen if all(state.domain == query.domain for state in everyone) else None

    def for_protection(self, group: CodingGroup, row: int, now: float) -> EndpointState | None:
        return choose(self.rows[row], now, domains=group.domains)

    def for_trial(self, group: CodingGroup, row: int | None, now: float, long: bool) -> EndpointState | None:
        """For a protection on trial, or a finish (no row): only where it takes nothing from anybody. A machine that
        serves deployed models too must be half idle; but a trial that has gone on for `long`, takes any free place.
        """
        line = self.deployed if row is None else self.rows.get(row)
        chosen = choose(line, now, domains=group.domains) if line is not None else None
        if chosen is None or not chosen.has_place():
            return None
        host = chosen.host
        return chosen if not host.serves or long or 2 * host.in_flight <= host.instance.places else None

    def for_finish(self, query: Query, now: float) -> EndpointState | None:
        """Any endpoint with the user's code will do, but not where a task of this query is stuck already.

        First the one whose protection has just answered: of the idle ones it is the least likely to be frozen.
        """
        lively = [] if query.group is None else [task.place for task in query.group.protections.values()]
        there = [state for line in self.rows.values() for state in line.everyone]
        idle = [s for s in lively if s in there and s.has_place() and s.endpoint.instance not in query.avoid]
        chosen = least_outstanding(idle, now)
        if chosen is not None:
            return chosen
        lines = [self.deployed, *self.rows.values()]
        ready = [state for line in lines for state in line.with_place()]
        chosen = least_outstanding(ready, now, query.avoid, in_order=False)
        if chosen is not None or any(line.out < len(line) for line in lines):
            return chosen
        return soonest_back(state for line in lines for state in line.everyone)


def choose(
    line: EndpointSet,
    now: float,
    avoid: frozenset[str] = frozenset(),
    domains: Mapping[str, int] = NO_DOMAINS,
) -> EndpointState | None:
    """As `least_outstanding` says. Health never ejects the last one: if all are out, it is ignored."""
    chosen = None
    if line.ready or line.doubted or line.trials:
        chosen = least_outstanding(line.with_place(), now, avoid, domains)
    return soonest_back(line.everyone) if chosen is None and line.out == len(line.everyone) else chosen


def least_outstanding(
    candidates: Iterable[EndpointState],
    now: float,
    avoid: frozenset[str] = frozenset(),
    domains: Mapping[str, int] = NO_DOMAINS,
    in_order: bool = True,
) -> EndpointState | None:
    """Least outstanding among the healthy ones, which all have a free place; ties go to the one longest unused.

    A deployed model's own load counts first, then its machine's; what uses idle machines looks at the machine's only.
    `in_order`: the candidates come from one line, longest idle first, so the first idle one is it.
    Instances in `avoid` and failure domains in `domains` are taken only if there is nothing else; of the others, those
    whose last answer was late only if there is nothing else.
    """
    best: EndpointState | None = None
    best_rank: tuple[bool, bool, float, float, int] | None = None
    # The hottest loop of the engine: attributes are read once, and nothing is called.
    for state in candidates:
        health = state.health
        if health.condition is Condition.TRIAL:  # one that is running is the only one
            continue
        if now < health.resumes_at or state.in_flight >= health.ramp:
            continue
        host = state.host
        instance = host.instance
        taken = host.in_flight
        unwanted = instance.name in avoid or instance.domain in domains
        if avoid and health.condition is Condition.OUT:  # a query that has failed once already probes no endpoint
            unwanted = True
        if taken == 0 and not unwanted and in_order and host.clean:
            return state
        endpoint = state.endpoint
        own = state.in_flight / endpoint.places if in_order and endpoint.row is None else 0.0
        rank = (unwanted, not host.clean, own, taken / instance.places, state.last_sent)
        if best_rank is None or rank < best_rank:
            best, best_rank = state, rank
    return best


def is_elsewhere(state: EndpointState, query: Query, far: bool) -> bool:
    """Healthy, and not where the query has failed. `far`: nor in the same failure domain."""
    if state.health.condition is not Condition.IN or state.endpoint.instance in query.avoid:
        return False
    return not far or state.domain != query.domain


def soonest_back(all_out: Iterable[EndpointState]) -> EndpointState | None:
    out = [s for s in all_out if s.has_place() and s.health.condition is Condition.OUT]
    return min(out, key=lambda s: (s.health.resumes_at, s.last_sent), default=None)
