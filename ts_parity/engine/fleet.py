"""The fleet as the engine sees it: each pool with its endpoints and its queues.

Placement (other failure domains) lives here. Knows nothing of queries' races: it is asked for an endpoint.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from ts_parity.engine.admission import Admission
from ts_parity.engine.capacity import EndpointSet, EndpointState, InstanceState, PoolShare
from ts_parity.engine.ejection import Ejection
from ts_parity.engine.events import Code, Endpoint, Fleet, Pool
from ts_parity.engine.hedging import Hedging
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.launch import Launch
from ts_parity.engine.placement import Placement
from ts_parity.engine.policy import LoadMeter, Policy
from ts_parity.engine.query import CodingGroup, Query, Task
from ts_parity.engine.release import Release
from ts_parity.engine.selection import Selection
from ts_parity.engine.sizes import Scales
from ts_parity.engine.speed import Evidence
from ts_parity.engine.target import LatencyTarget
from ts_parity.engine.trials import Trials
from ts_parity.engine.trust import Repeats, Trust

SEEN: Final = 1000


class PoolState:
    """All endpoints of one model and version, its waiting queries, its open groups and its queued protections."""

    def __init__(self, pool: Pool, policy: Policy) -> None:
        self.pool = pool
        self.deployed = EndpointSet()
        self.rows: dict[int, EndpointSet] = {}
        self.waiting: deque[Query] = deque()
        self.retries: dict[int, Query] = {}
        """Queries that have failed and wait for an instance elsewhere: before all others, without blocking them."""
        self.protections: deque[tuple[CodingGroup, int]] = deque()
        self.protections_blocked = False
        """No row had a place when last asked, and none has come free since."""
        self.finishes: deque[Query] = deque()
        self.late: dict[int, Query] = {}
        """Queries for which a backup is to be launched as soon as there is a place."""
        self.hedges: dict[int, Query] = {}
        """Queries for which a second copy is to be sent as soon as a place is idle."""
        self.asked_at = -math.inf
        """When a query last came."""
        self.unreachable_since = math.inf
        """When a query first found no instance that accepts connections, if no answer has come since."""
        self.latency = LatencyWindow()
        self.scales = Scales()
        self.evidence = Evidence(self.latency)
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
        self.load = LoadMeter()
        self.places = 0
        """Of all its endpoints; of a deployed model and its protections on one machine, the larger number."""
        self.admission = Admission(policy, self.latency)
        self.release = Release(policy, self.latency)
        self.placement = Placement(policy, self.release)
        self.launch = Launch(policy, self.latency, self.load)
        self.hedging = Hedging(policy, self.latency, self.backup_latency)
        self.ejection = Ejection(self.load)
        self.target = LatencyTarget(policy, self.latency, self.backup_latency)
        self.selection = Selection(policy, self.release)

    def adopt(self, policy: Policy) -> None:
        """What was measured stays."""
        self.admission.policy = self.placement.policy = self.hedging.policy = self.selection.policy = policy
        self.launch.policy = self.target.policy = self.release.policy = policy
        self.release.budget.adopt(policy.differing)
        self._adopt_endpoints()

    def learn_latency(self, query: Query, latency_s: float) -> float:
        """Of an answer of a deployed endpoint. -> how many times longer what is usual takes from now on, nearly always
        1: the scales of all other queries have to be divided by it.
        """
        usual = self.scales.answered(query.size, latency_s / self.latency.median) if self.latency.median else 1.0
        if usual != 1.0:
            self.latency.rescale(usual)
            self.backup_latency.rescale(usual)
            self.launch.latest.rescale(usual)
            query.scale /= usual
        self.latency.add(latency_s / query.scale)
        if self.scales.differ:
            self.launch.latest.answered(latency_s, query.scale, self.load.value)
        return usual

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
        """Endpoints or the code may have changed: what was started or registered again may be something else.

        A worker that is merely not reported (frozen, restarting) changes nothing. Any new one puts the protection on
        trial again, be it the restart of a single worker among many: a trial costs some twenty queries' protections,
        and only its answers show which weights a process has loaded.
        """
        code = self.pool.code
        if code is not None and (self.trust is None or code != self._trusted_code):
            name = f"protection {code.name} of {self.pool.name}"
            self.trust = Trust(name, code.lossless, self.pool.agreement, self.pool.proved)
            self.trials.clear()
            self._trusted_code = code
            self.trust.restart(now)
        elif code is not None and self.trust is not None and self.trust.promise(self.pool.agreement, now):
            self.trials.clear()
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
                self.trust.restart(now)
            if new_deployed:
                self.repeats.restart(now)
        # Those that are gone may come back; but where workers come and go all day, they are not remembered for ever.
        self._seen = workers if len(self._seen) > 4 * len(workers) + SEEN else {**self._seen, **workers}

    def set_endpoints(self, members: Iterable[EndpointState]) -> None:
        rows: dict[int | None, list[EndpointState]] = {}
        for state in members:
            rows.setdefault(state.endpoint.row, []).append(state)
        self.deployed = EndpointSet(rows.pop(None, ()))
        self.rows = {row: EndpointSet(states) for row, states in rows.items() if row is not None}
        self._adopt_endpoints()

    def _adopt_endpoints(self) -> None:
        code, partial = self.pool.code, self.pool.partial
        shared = any(s.host.serves for line in self.rows.values() for s in line.everyone)
        self.launch.adopt(code, partial, shared, self.pool.cost)
        self.target.adopt(self.pool.cost)
        self.release.late = self.launch.late
        self.placement.adopt(code, partial, len({state.domain for state in self.deployed.everyone}))
        self.ejection.adopt(self.deployed)
        self.selection.adopt(self.deployed, self.rows)
        self.admission.adopt(sum(state.endpoint.places for state in self.deployed.everyone))
        states = (state for line in (self.deployed, *self.rows.values()) for state in line.everyone)
        shares = {state.endpoint.instance: state for state in states if not state.apart}
        self.places = sum(min(state.share.places, state.host.instance.places) for state in shares.values())

    def may_launch(self, group: CodingGroup, row: int) -> bool:
        """Whether there is a protection for this row, and one that takes the group as it is by now."""
        if not self.rows.get(row):
            return False
        return not group.barred or (self.pool.partial and bool(group.sendable()))

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

    def is_pressed(self, now: float) -> bool:
        """Whether a query waits for a place, and does not merely rest."""
        return bool(self.waiting) or any(now >= query.yields_until for query in self.retries.values())

    def to_the_front(self, query: Query) -> None:
        """It waits for any place, before all others, however long."""
        query.start_by = query.stale_at = math.inf
        self.waiting.appendleft(query)

    def leave_line(self, query: Query) -> None:
        """It waits no more, if it did."""
        if self.retries.pop(query.id, None) is None and query in self.waiting:
            self.waiting.remove(query)

    def forget(self, query: Query) -> None:
        """It is done."""
        if query.waiting:
            self.leave_line(query)
        self.late.pop(query.id, None)
        self.hedges.pop(query.id, None)


def next_pool(waiting: list[PoolState]) -> PoolState:
    """Of those in which queries wait. Where an operator has capped an instance, pools compete: a crowd in one must not
    keep the others out, so the one with the smallest share of its places taken goes first.
    """
    return min(waiting, key=_share_taken)


def _share_taken(pool: PoolState) -> tuple[float, float]:
    return pool.in_flight() / max(pool.places, 1), pool.waiting[0].arrived_at


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
        self._nowhere = PoolState(Pool("", repeatable=False, proved=True), replace(policy, learn_speed=False))

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

    def adopt(self, policy: Policy) -> None:
        self._policy = policy
        for pool in self.pools.values():
            pool.adopt(policy)

    def pool_of(self, name: str) -> PoolState:
        """One that is gone has no endpoints, and nothing waits in it."""
        return self.pools.get(name, self._nowhere)

    def pool_of_group(self, group: CodingGroup) -> PoolState:
        first = group.members[0]
        return self._nowhere if first is None else self.pool_of(first.pool)

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
            whose = endpoint.name if endpoint.apart else endpoint.pool
            self._shares.setdefault((endpoint.instance, whose), PoolShare()).add(state)
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
