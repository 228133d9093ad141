"""Suspicion: what the outcomes of tasks say about endpoints, and which are ejected and come back because of them.

Composes `health` (one endpoint's failures), `speed` (slower than its pool), `outliers` (whose errors are its own) and
`ejection` (which may be ejected). Knows nothing of what becomes of the queries.
"""

from __future__ import annotations

from collections import deque
from typing import Final, final

from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.events import Arrived, HealthChange, Kind, Outcome, Rejected
from ts_parity.engine.fleet import FleetState, PoolState
from ts_parity.engine.health import Condition
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import Task
from ts_parity.engine.speed import CALM, DOUBT, SURE, Speed
from ts_parity.engine.timers import Timer, Timers

MOST_CHANGES: Final = 64
MOST_SLOW: Final = 0.75
"""Share of a pool's endpoints that may be slow at one time; if more seem so, all has become slower. Two of three
failure domains may be slow together."""


@final
class Suspicion:
    """Of all endpoints."""

    def __init__(self, policy: Policy, fleet: FleetState, timers: Timers) -> None:
        self.policy = policy
        self._fleet = fleet
        self._timers = timers
        self.changes: deque[HealthChange] = deque(maxlen=MOST_CHANGES)
        """For whoever logs them. Taken from the left; the oldest are dropped if they are not taken."""

    def adopt(self, policy: Policy, now: float) -> None:
        """Whoever waited for a probe may have none any more."""
        self.policy = policy
        for place in self._fleet.endpoints.values():
            if not place.health.clean:
                self._timers.arm(max(now, place.health.resumes_at), Timer.RESUME, place)

    def ended(self, task: Task, outcome: Outcome, now: float) -> None:
        place = task.place
        health = place.health
        if isinstance(outcome, Arrived):
            if outcome.error and place.record.suspect and task.kind is Kind.DEPLOYED:
                if health.condition is Condition.TRIAL:  # it goes on when a peer has answered the query, or later
                    health.pause(now + self.policy.out_s)
                    self._changed(place, Condition.TRIAL, "", now)
                return
            learns = self.policy.learn_speed and task.kind is Kind.DEPLOYED
            slow = learns and self._seems_slow(task, outcome, now)
            if health.untroubled and not slow:
                return
            before, why = health.condition, f"its answers come {place.speed.ratio:.1f} times later than usual"
            if slow:
                health.was_slow(now, place.speed.slow >= SURE)
            else:
                health.succeeded()
        else:
            before, why = health.condition, ""
            if isinstance(outcome, Rejected):
                query = task.query
                if query is None or query.rejections < len(self._fleet.pool_of(query.pool).deployed):
                    health.pause(now + self.policy.reject_pause_s)
            elif outcome.retry:
                why = outcome.reason
                place.failures += 1
                health.failed(now)
            else:
                health.undecided()
        self._changed(place, before, why, now)

    def _changed(self, place: EndpointState, before: Condition, why: str, now: float) -> None:
        health = place.health
        self._note(place, before, why)
        place.peers.count(before, health.condition)
        if health.resumes_at > now:
            place.peers.park(place)
            self._timers.arm(health.resumes_at, Timer.RESUME, place)
        else:
            place.peers.unpark(place)
            if not health.clean and not self.probes(place):
                self._timers.arm(now + self.policy.out_s, Timer.RESUME, place)
        place.host.judge()

    def _note(self, place: EndpointState, before: Condition, why: str) -> None:
        """Reported once when it is ejected and once when it is back, however many probes are between."""
        after = place.health.condition
        if after is Condition.OUT:
            place.why = why or place.why
        if (before is Condition.IN) is not (after is Condition.IN):
            out = after is not Condition.IN
            place.ejections += out
            self.changes.append(HealthChange(place.name, out, place.why))
        if after is Condition.IN:
            place.why = ""

    def probes(self, place: EndpointState) -> bool:
        """Whether it comes back by a second copy of some query, so that none has to wait for what it does."""
        copies = self.policy.copies and self.policy.extra_work > 0.0
        if place.health.condition is Condition.IN or not copies or place.endpoint.row is not None:
            return False
        pool = self._fleet.pool_of(place.endpoint.pool)
        return pool.pool.repeatable and not pool.repeats.reason

    def _seems_slow(self, task: Task, outcome: Arrived, now: float) -> bool:
        """Learn from this answer. -> whether its endpoint is more likely slower than its pool than not."""
        place = task.place
        pool = self._fleet.pool_of(place.endpoint.pool)
        evidence, scale = pool.evidence, task.scale
        latency_s = (now - task.sent_at) / scale
        if evidence.renew():
            self._forget_speeds(pool, now)
        if outcome.error or (latency_s <= evidence.usual_s and place.speed.slow <= CALM):  # nearly always
            return False
        seemed_slow = place.speed.slow >= DOUBT
        place.speed.answered(evidence, latency_s, place.health.condition is not Condition.IN, now)
        if place.speed.slow < DOUBT:
            return False
        everyone = pool.deployed.everyone
        if not seemed_slow and sum(state.speed.slow >= DOUBT for state in everyone) > MOST_SLOW * len(everyone):
            self._forget_speeds(pool, now)
            return False
        return True

    def _forget_speeds(self, pool: PoolState, now: float) -> None:
        """Everything has changed, and whoever was slow may not be so any more. Where nearly all of a pool seem slow, it
        has: an endpoint is slow only beside others.
        """
        for state in pool.deployed.everyone:
            state.speed = Speed()
            if state.health.only_slow and state.health.condition is not Condition.IN:
                self.acquit(state, now)

    def acquit(self, place: EndpointState, now: float) -> None:
        place.record.clear()
        before = place.health.condition
        if before is not Condition.IN:
            place.health.succeeded()
            self._changed(place, before, "", now)

    def convict(self, place: EndpointState, now: float) -> None:
        """Its peers answer well what it answers with errors."""
        before = place.health.condition
        place.health.convicted(now)
        self._changed(place, before, "it answers with errors what its peers answer well", now)

    def resume(self, place: EndpointState, now: float) -> None:
        """It may be asked again, if nothing else has happened to it since."""
        if place.health.resumes_at <= now:
            place.peers.unpark(place)
            if not self.probes(place):  # then the next query tells
                place.health.clean = True
                place.host.judge()
