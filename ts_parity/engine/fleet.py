"""The fleet as the engine sees it: each pool with its endpoints and its queues.

Placement (other failure domains) lives here. Knows nothing of queries' races: it is asked for an endpoint.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final

from ts_parity.engine.admission import STANDING, PatienceMeter, last_start
from ts_parity.engine.capacity import EndpointState, InstanceState, Line, PoolShare
from ts_parity.engine.events import Code, Endpoint, Fleet, Pool
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.policy import GapMeter, LoadMeter, Policy
from ts_parity.engine.query import CodingGroup, Query, Task
from ts_parity.engine.selection import NO_DOMAINS, choose, is_elsewhere, least_outstanding, soonest_back
from ts_parity.engine.trials import Trials
from ts_parity.engine.trust import QUIET_S, Repeats, Trust

SEEN: Final = 1000
LATE: Final = 0.9
"""The quantile of latency at which a backup is launched for a late query; its answer is used as soon as it comes."""
BEARABLE: Final = 0.85
"""Load of the remaining endpoints up to which slowness may take one out: a slow machine still is a machine."""


class PoolState:
    """All endpoints of one model and version, its waiting queries, its open groups and its queued protections."""

    def __init__(self, pool: Pool, policy: Policy) -> None:
        self.pool = pool
        self.deployed = Line()
        self.rows: dict[int, Line] = {}
        self.waiting: deque[Query] = deque()
        self.waiting_count = 0
        self.retries: dict[int, Query] = {}
        """Queries that have failed and wait for an instance elsewhere: before all others, and in nobody's way."""
        self.open_groups: dict[Hashable, list[CodingGroup]] = {}
        self.protections: deque[tuple[CodingGroup, int]] = deque()
        self.protections_blocked = False
        """No row had a place when last asked, and none has come free since."""
        self.finishes: deque[Query] = deque()
        self.late: dict[int, Query] = {}
        """Queries for which a backup is to be launched as soon as there is a place."""
        self.hedges: dict[int, Query] = {}
        """Queries for which a second copy is to be sent as soon as a place is idle."""
        self.unreachable_since = math.inf
        """When the first query found nobody, if no answer has come since."""
        self.latency = LatencyWindow()
        self.backup_latency = LatencyWindow()
        self.trust: Trust | None = None
        """In its protection, the last it had: one that is not reported for a while comes back as what it was."""
        self.trials = Trials()
        self.repeats = Repeats()
        self.watch_at = -math.inf
        """When the next answer that comes too late for anybody is compared."""
        self.protecting = False
        """Whether its protection is in use; looked at when anything has been found out about it."""
        self._trusted_code: Code | None = None
        self._seen: dict[str, None] = {}
        """Worker processes that were there when its protection was last put on trial, or since."""
        self.gap = GapMeter()
        self.patience = PatienceMeter()
        self.pressed_until = -math.inf
        """Until then the newest goes first, since one that waited has run out of time."""
        self.load = LoadMeter()
        self.shares_machines = False
        """A protection stands on a machine that serves deployed models too."""
        self.launches_late = False
        """Backups are launched for late queries only: as the policy says, or where they stand beside deployed models.
        Late queries seldom fill a group, so the protection must take groups of any size.
        """
        self.deployed_places = 1
        self.places = 0
        """Of all its endpoints; of a deployed model and its protections on one machine, the larger number."""
        self._policy = policy
        self._per_domain = 1
        self._domains = 1

    @property
    def code(self) -> Code | None:
        return self.pool.code

    @property
    def protected(self) -> bool:
        """Whether rebuilt answers may be made for its queries."""
        return self.pool.code is not None and self.trust is not None and self.trust.in_use and bool(self.rows)

    def may_copy(self, now: float) -> bool:
        """Whether a second copy of a query does no harm and would say the same."""
        return self.pool.repeatable and not self.repeats.contradict(now)

    def renew_trust(self, now: float) -> None:
        """Endpoints or the code may have changed: what was started or registered anew is not known to be what it was.

        A worker that is merely not reported (frozen, restarting) changes nothing. Any new one puts the protection on
        trial again, be it the restart of a single worker among many: a trial costs some twenty queries' protections,
        and which weights a process has loaded nobody knows but by its answers.
        """
        code = self.pool.code
        if code is not None and (self.trust is None or code != self._trusted_code):
            name = f"protection {code.name} of {self.pool.name}"
            self.trust = Trust(name, code.lossless, self.pool.agreement, self.pool.proved)
            self.trials.clear()
            self._trusted_code = code
            self.trust.begin_anew(now)
        workers: dict[str, None] = {}
        new = new_deployed = False
        for line in (self.deployed, *self.rows.values()):
            for state in line.everyone:
                for worker in state.endpoint.workers:
                    known = f"{state.name} {worker}"
                    workers[known] = None
                    if known not in self._seen:
                        new = True
                        new_deployed = new_deployed or state.endpoint.row is None
        if new and self._seen:
            self.trials.clear()
            if self.trust is not None:
                self.trust.begin_anew(now)
            if new_deployed:
                self.repeats.begin_anew(now)
        # Those that are gone may come back; but where workers come and go all day, they are not remembered for ever.
        self._seen = workers if len(self._seen) > 4 * len(workers) + SEEN else {**self._seen, **workers}

    @property
    def reconstruct_after_s(self) -> float:
        if self._policy.reconstruct_after_s is not None:
            return self._policy.reconstruct_after_s
        policy = self._policy
        measured = self.latency.quantile(LATE if self.launches_late else policy.reconstruct_quantile)
        return policy.reconstruct_cold_s if measured is None else measured

    @property
    def group_wait_s(self) -> float:
        return self.reconstruct_after_s if self._policy.group_wait_s is None else self._policy.group_wait_s

    def expects_member(self, group: CodingGroup, now: float) -> bool:
        """Whether one more is likely to come before the group is sealed anyway."""
        return not (self._policy.seal_early and self.pool.partial) or now + self.gap.mean <= group.closes_at

    @property
    def launch_after_s(self) -> float:
        """The last tenth of the load stretches it most: there the queue, not the worker, makes queries late."""
        if self._policy.launch_after_s is not None:
            base = self._policy.launch_after_s
        else:
            measured = self.latency.quantile(LATE)
            base = self._policy.reconstruct_cold_s if measured is None else measured
        return base * (1.0 + self._policy.launch_stretch * min(1.0, max(0.0, (self.load.value - 0.5) / 0.5)))

    def hedge_after_s(self, launch_after_s: float) -> float:
        """A second copy costs more than a backup: one that is launched (inf: none is) first gets its time to answer."""
        if self._policy.hedge_after_s is not None:
            return self._policy.hedge_after_s
        measured = self.latency.quantile(self._policy.hedge_quantile)
        after_s = self._policy.reconstruct_cold_s if measured is None else measured
        if launch_after_s == math.inf:
            return after_s
        return max(after_s, launch_after_s + (self.backup_latency.quantile(LATE) or 0.0))

    def may_take_out(self) -> bool:
        """Whether slowness may take one more endpoint out: not too many, and only if the others can bear the load."""
        count = len(self.deployed)
        out = 1 + self.deployed.out
        return out <= self._policy.max_out * count and self.load.value * count < BEARABLE * (count - out)

    def may_convict(self, place: EndpointState) -> bool:
        """Whether errors may take it out: there is another above suspicion, and the others can bear the load, unless it
        fails so much that it bears nothing itself.
        """
        others = [state for state in self.deployed.everyone if state is not place]
        count, fit = len(others) + 1, sum(state.health.condition is Condition.IN for state in others)
        if not any(s.health.condition is Condition.IN and not s.record.suspect for s in others):
            return False
        return place.record.share > 0.5 or self.load.value * count < BEARABLE * fit

    def peers_of(self, place: EndpointState) -> tuple[float, float]:
        """How often the others have answered, and how often with an error."""
        others = [state.record for state in self.deployed.everyone if state is not place]
        return sum(record.answers for record in others), sum(record.errors for record in others)

    def suspects(self) -> frozenset[str]:
        """Instances whose errors may be their own."""
        return frozenset(state.endpoint.instance for state in self.deployed.everyone if state.record.suspect)

    def set_endpoints(self, members: Iterable[EndpointState]) -> None:
        rows: dict[int | None, list[EndpointState]] = {}
        for state in members:
            rows.setdefault(state.endpoint.row, []).append(state)
        self.deployed = Line(rows.pop(None, ()))
        self.rows = {row: Line(states) for row, states in rows.items() if row is not None}
        self.shares_machines = any(state.host.serves for line in self.rows.values() for state in line.everyone)
        late = self._policy.launch == "late" or (self._policy.launch == "auto" and self.shares_machines)
        takes_any = self.code is not None and self.code.family == "backup" and (self.pool.partial or self.code.k == 1)
        self.launches_late = late and takes_any
        domains = self._domains = len({state.domain for state in self.deployed.everyone})
        self.deployed_places = max(1, sum(state.endpoint.places for state in self.deployed.everyone))
        states = (state for line in (self.deployed, *self.rows.values()) for state in line.everyone)
        shares = {state.endpoint.instance: state for state in states}
        self.places = sum(min(state.share.places, state.host.instance.places) for state in shares.values())
        # With fewer domains than k a group cannot be spread over k of them; it is spread as evenly as it can be.
        self._per_domain = math.ceil(self.code.k / domains) if self.code is not None and domains else 1

    def may_launch(self, group: CodingGroup, row: int) -> bool:
        """Whether there is a protection for this row, and one that takes the group as it is by now."""
        return bool(self.rows.get(row)) and bool(group.sendable()) and (not group.barred or self.pool.partial)

    @property
    def can_finish(self) -> bool:
        """Whether anybody has the user's code, so that a rebuilt output can become an answer."""
        return len(self.deployed) > 0 or len(self.rows) > 0

    def in_flight(self) -> int:
        """Its tasks, the protections' too."""
        taken = self.deployed.taken
        for line in self.rows.values():
            taken += line.taken
        return taken

    def group_for(self, key: Hashable, domain: str) -> CodingGroup | None:
        """The oldest open group that can take a member in this domain."""
        for group in self.open_groups.get(key, ()):
            if group.domains.get(domain, 0) < self._per_domain:
                return group
        return None

    def judge_time(self, query: Query) -> None:
        """By when a query that waits must be sent, and for how long the queue behind it may be taken for a burst."""
        query.start_by = query.stale_at = math.inf
        if query.release_at < math.inf or query.in_flight or query.late:  # it was sent before, or helped otherwise
            return
        assert query.deadline_at is not None
        usual_s, arrived_at = self.latency.median, query.arrived_at
        query.start_by = start_by = last_start(query.deadline_at, usual_s)
        leaves_at = arrived_at + self.patience.patience_s - usual_s
        query.stale_at = arrived_at + STANDING * ((start_by if start_by < leaves_at else leaves_at) - arrived_at)

    def is_hopeless(self, query: Query, now: float) -> bool:
        if now < query.start_by:
            return False
        self.judge_time(query)  # what is usual may have changed since
        return now >= query.start_by

    def left_waiting(self, query: Query, now: float) -> None:
        """Its client left."""
        before = self.patience.patience_s
        self.patience.left(now - query.arrived_at)
        if before == math.inf and self.patience.patience_s < math.inf:
            for other in self.waiting:
                self.judge_time(other)

    def to_the_front(self, query: Query) -> None:
        """It waits for any place, before all others, however long."""
        query.start_by = query.stale_at = math.inf
        self.waiting.appendleft(query)
        self.waiting_count += 1

    def leave_line(self, query: Query) -> None:
        """It waits no more, if it did."""
        if self.retries.pop(query.id, None) is None and query in self.waiting:
            self.waiting.remove(query)
            self.waiting_count -= 1

    def close_group(self, group: CodingGroup) -> None:
        groups = self.open_groups.get(group.key)
        if groups is not None and group in groups:
            groups.remove(group)
            if not groups:
                del self.open_groups[group.key]

    def endpoint_for_query(self, query: Query, now: float) -> EndpointState | None:
        if self._policy.balance == "round_robin":
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
        if chosen is None and self._policy.slow_factor and self.waiting_count > len(self.deployed):
            # Where so many wait, a slow machine is sooner done than the queue.
            slow = [s for s in self.deployed.parked.values() if s.health.only_slow and s.has_place()]
            chosen = min(slow, key=lambda s: s.last_sent, default=None)
        if chosen is None and self._policy.spare_places:
            chosen = self._given_the_benefit_of_the_doubt(query, now)
        return chosen

    def endpoint_for_retry(self, query: Query, now: float) -> EndpointState | None:
        """One elsewhere, in another failure domain if there are any healthy ones, or none for now. If there is no
        elsewhere (any more), as for every query, but not while a copy runs there.
        """
        far = any(is_elsewhere(state, query, True) for state in self.deployed.everyone)
        free = [state for state in self.deployed.with_place() if is_elsewhere(state, query, far)]
        if free:
            return least_outstanding(free, now)
        if far or self.has_elsewhere(query) or now < query.rests_until:
            return None
        return self.endpoint_for_query(query, now)

    def has_elsewhere(self, query: Query) -> bool:
        """Whether a copy of it is still out, or there is a healthy endpoint, busy or not, that has not failed it."""
        return query.in_flight > 0 or any(is_elsewhere(state, query, False) for state in self.deployed.everyone)

    def _given_the_benefit_of_the_doubt(self, query: Query, now: float) -> EndpointState | None:
        spare, overdue_s = self._policy.spare_places, self.reconstruct_after_s
        doubtful = [
            state
            for state in self.deployed.everyone
            if state.host.clean
            and state.share.in_flight < state.share.places + spare
            and state.host.in_flight < state.machine_places + spare
            and state.in_flight < state.endpoint.places + spare
            and state.tasks
            and now - next(iter(state.tasks.values())).sent_at > overdue_s
            and state.endpoint.instance not in query.avoid
        ]
        return min(doubtful, key=lambda s: (s.host.in_flight, s.last_sent), default=None)

    def endpoint_for_hedge(self, query: Query, now: float) -> EndpointState | None:
        """An idle one in another failure domain, or none: a hedge must not make others wait."""
        chosen = choose(self.deployed, now, query.avoid, {query.domain: 1})
        if chosen is None or chosen.host.in_flight or chosen.endpoint.instance in query.avoid:
            return None
        return chosen if chosen.domain != query.domain or self._domains == 1 else None

    def endpoint_for_probe(self, query: Query, now: float) -> EndpointState | None:
        """One that was taken out, has nothing to do and may be tried."""
        for state in self.deployed.trials.values():
            due = now >= state.health.resumes_at
            if due and not state.host.in_flight and state.endpoint.instance not in query.avoid:
                return state
        return None

    def endpoint_for_late(self, query: Query, now: float) -> EndpointState | None:
        """Where a backup of a late query runs: in another failure domain than the query, if there is one."""
        chosen = None
        for line in self.rows.values():
            chosen = choose(line, now, query.avoid, {query.domain: 1})
            if chosen is not None and chosen.domain != query.domain:
                return chosen
        everyone = (state for line in self.rows.values() for state in line.everyone)
        return chosen if all(state.domain == query.domain for state in everyone) else None

    def endpoint_for_protection(self, group: CodingGroup, row: int, now: float) -> EndpointState | None:
        return choose(self.rows[row], now, domains=group.domains)

    def endpoint_for_trial(self, group: CodingGroup, row: int | None, now: float) -> EndpointState | None:
        """For a protection on trial, or a finish (no row): only where it takes nothing from anybody. A machine that
        serves deployed models too must be half idle; but a trial that has gone on for long takes any free place.
        """
        line = self.deployed if row is None else self.rows.get(row)
        chosen = choose(line, now, domains=group.domains) if line is not None else None
        if chosen is None or not chosen.has_place():
            return None
        host = chosen.host
        long = self.trust is not None and now - self.trust.since > QUIET_S
        return chosen if not host.serves or long or 2 * host.in_flight <= host.instance.places else None

    def endpoint_for_finish(self, query: Query, now: float) -> EndpointState | None:
        """Any endpoint with the user's code will do, but not where a task of this query is stuck already.

        First the one whose protection has just answered: of the idle ones it is the least likely to be frozen.
        """
        lively = [] if query.group is None else [task.place for task in query.group.protections.values()]
        idle = [state for state in lively if state.has_place() and state.endpoint.instance not in query.avoid]
        chosen = least_outstanding(idle, now)
        if chosen is not None:
            return chosen
        lines = [self.deployed, *self.rows.values()]
        ready = [state for line in lines for state in line.with_place()]
        chosen = least_outstanding(ready, now, query.avoid, in_order=False)
        if chosen is not None or any(line.out < len(line) for line in lines):
            return chosen
        return soonest_back(state for line in lines for state in line.everyone)


class FleetState:
    """Places and pools by name, kept over re-discoveries so that work in flight stays counted."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.instances: dict[str, InstanceState] = {}
        self.endpoints: dict[str, EndpointState] = {}
        self._left: dict[str, EndpointState] = {}
        """Endpoints that are gone with work in flight: should they come back, it is still on their places."""
        self._parted: list[EndpointState] = []
        """Those that came back with other workers only: most likely their model was registered again, and TorchServe
        never answers what it had of the old one."""
        self._shares: dict[tuple[str, str], PoolShare] = {}
        self.pools: dict[str, PoolState] = {}

    def update(self, fleet: Fleet) -> list[PoolState]:
        """Adopt what was discovered; -> the pools that are gone. Raise ValueError if names do not fit together."""
        self._check(fleet)
        self._update_instances(fleet)
        self._update_endpoints(fleet)
        gone = [self.pools.pop(name) for name in [*self.pools] if name not in {p.name for p in fleet.pools}]
        for pool in fleet.pools:
            state = self.pools.setdefault(pool.name, PoolState(pool, self._policy))
            state.pool = pool
            state.set_endpoints(s for s in self.endpoints.values() if s.endpoint.pool == pool.name)
        return gone

    def left_behind(self) -> list[Task]:
        """What is in flight on endpoints that are gone."""
        gone = [*self._left.values(), *self._parted]
        tasks = (task for state in gone for task in state.tasks.values())
        return [task for task in tasks if isinstance(task, Task) and not task.lost]

    def _update_instances(self, fleet: Fleet) -> None:
        listed = {instance.name: instance for instance in fleet.instances}
        for name, instance in listed.items():
            self.instances.setdefault(name, InstanceState(instance)).instance = instance
        for name in [*self.instances]:
            # An instance that left and comes back while a query is still on it has that place taken.
            if name not in listed and self.instances[name].in_flight == 0:
                del self.instances[name]

    def _update_endpoints(self, fleet: Fleet) -> None:
        known = self._left | self.endpoints
        self.endpoints = {}
        self._shares = {key: share for key, share in self._shares.items() if share.in_flight}
        for share in self._shares.values():
            share.places = 0
        for host in self.instances.values():
            host.endpoints = []
            host.protects = host.serves = False
        for endpoint in fleet.endpoints:
            state = known.get(endpoint.name)
            if state is not None and endpoint.name in self._left and _is_another(state.endpoint, endpoint):
                state.part()
                self._parted.append(state)
                state = None
            if state is None or state.endpoint.instance != endpoint.instance:
                state = EndpointState(endpoint, self.instances[endpoint.instance], self._policy)
            state.describe(endpoint, self.instances[endpoint.instance])
            state.host.endpoints.append(state)
            self._shares.setdefault((endpoint.instance, endpoint.pool), PoolShare()).add(state)
            state.host.protects = state.host.protects or endpoint.row is not None
            state.host.serves = state.host.serves or endpoint.row is None
            self.endpoints[endpoint.name] = state
        for host in self.instances.values():
            host.clean = all(state.health.clean for state in host.endpoints)
        self._left = {name: s for name, s in known.items() if name not in self.endpoints and s.in_flight}
        self._parted = [state for state in self._parted if state.in_flight]

    @staticmethod
    def _check(fleet: Fleet) -> None:
        instances = {instance.name for instance in fleet.instances}
        pools = {pool.name for pool in fleet.pools}
        if len({endpoint.name for endpoint in fleet.endpoints}) != len(fleet.endpoints):
            raise ValueError("endpoint names must be unique")
        for endpoint in fleet.endpoints:
            if endpoint.instance not in instances:
                raise ValueError(f"endpoint {endpoint.name} is on instance {endpoint.instance}, which is not listed")
            if endpoint.pool not in pools:
                raise ValueError(f"endpoint {endpoint.name} belongs to pool {endpoint.pool}, which is not listed")


def _is_another(before: Endpoint, now: Endpoint) -> bool:
    """None of the workers it has was there before, as far as they are known."""
    return bool(before.workers and now.workers) and before.workers.isdisjoint(now.workers)
