"""What the engine receives, and who gets the places that are free.

It receives events (`query_arrived`, `task_done`, `answer_started`, `query_abandoned`, `endpoints_changed`,
`policy_changed`, `compared`, `tick`) and returns actions. Every method takes the time; nothing here reads a clock. The
driver arms one timer at `next_deadline()` and calls `tick`. After each event every queue is offered the places that are
free (`_pump`).

Composes `life` (what happens to a query), `suspicion`, `proving` and the rules of each pool, and has none of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from ts_parity.engine.budgets import KEPT_FROM_COPIES, TokenBucket
from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.events import Cause, Failed, Fleet, Kind, Outcome, Reason, Source
from ts_parity.engine.fleet import FleetState, PoolState, next_pool
from ts_parity.engine.health import Condition
from ts_parity.engine.life import Life
from ts_parity.engine.policy import Policy, is_setting
from ts_parity.engine.query import Action, CodingGroup, Compare, Query, QueryState, Task
from ts_parity.engine.sending import Sender
from ts_parity.engine.timers import Timer, Timers
from ts_parity.engine.trust import Finding


class Scheduler:
    """All models of one proxy: their queues, groups, places and budgets."""

    def __init__(self, fleet: Fleet, policy: Policy) -> None:
        """Raise ValueError if the fleet's names do not fit together."""
        self.policy = policy
        self._fleet = FleetState(policy)
        self._fleet.update(fleet)
        for pool in self._fleet.pools.values():
            pool.renew_trust(0.0)
            pool.protecting = pool.protected
        self._timers = Timers()
        self._sender = Sender()
        self._life = Life(policy, self._fleet, self._timers, self._sender)
        self._suspicion = self._life.suspicion
        self._token_at = math.inf
        """When the timer for the next token is due, if one is armed."""
        self.sent = self._sender.sent
        self.answered = self._life.answered
        self.failed = self._life.failed
        self.changes = self._suspicion.changes
        """For whoever logs them. Taken from the left; the oldest are dropped if they are not taken."""

    def query_arrived(self, query: Query, now: float) -> list[Action]:
        """Raise ValueError if this query has arrived before."""
        life = self._life
        if query.state is not QueryState.NEW or query.id in life.live:
            raise ValueError(f"{query!r} has arrived already")
        actions: list[Action] = []
        pool = self._fleet.pool_of(query.pool)
        life.arrived(query, now)
        if not pool.deployed.everyone:
            life.fail(query, Reason.NO_ENDPOINT, actions)
        elif pool.waiting and not life.may_wait(pool, query, now, actions):
            life.turn_away(query, Reason.OVERLOADED, actions)
        else:
            pool.waiting.append(query)
            # Else those before it found no place, and none has come free since.
            if len(pool.waiting) == 1 or pool.selection.is_crowd(len(pool.waiting)):
                self._pump(now, actions)
            if query.waiting:
                query.launch_at = now + pool.launch.after_waiting_s * query.scale
                life.arm(query)
        return actions

    def task_done(self, task: Task, outcome: Outcome, now: float) -> list[Action]:
        """Raise ValueError if the task has ended before."""
        if task.done:
            raise ValueError(f"{task!r} has ended already")
        actions: list[Action] = []
        self._sender.ended(task)
        if task.place.host.protects:
            self._unblock()
        self._suspicion.ended(task, outcome, now)
        suspects: list[Query] = []
        if isinstance(outcome, Failed):
            if (query := task.query) is not None:
                query.first_cause = query.first_cause or f"{task.endpoint.name}: {outcome.reason}"
            lost = outcome.cause is Cause.LOST
            if outcome.cause is Cause.WORKER_DIED or (lost and self._life.broke_again(task, now)):
                suspects = self._life.suspect_queries(task)
        if task.kind is Kind.DEPLOYED:
            self._life.own_ended(task, outcome, now, actions)
        elif task.kind is Kind.PROTECTION:
            self._life.protection_ended(task, outcome, now, actions)
        else:
            self._life.finish_ended(task, outcome, now, actions)
        if suspects:
            self._life.review_suspects(task, suspects, actions)
        self._pump(now, actions)
        return actions

    def answer_started(self, task: Task, now: float) -> list[Action]:
        """A streamed answer begins: its query is answered with it, its place is taken until `task_done`."""
        if task.done or task.kind is not Kind.DEPLOYED or task.query is None:
            raise ValueError(f"{task!r} cannot start an answer")
        actions: list[Action] = []
        if task.query.open:
            self._life.answer(task.query, Source.DEPLOYED, task, actions)
        return actions

    def query_abandoned(self, query: Query, now: float) -> list[Action]:
        """The client left. A queued task is dropped; work in flight goes on, a neighbour may need it."""
        actions: list[Action] = []
        if query.open and query.id in self._life.live:
            self.answered["abandoned"] += 1
            pool = self._fleet.pool_of(query.pool)
            if query.waiting:
                pool.admission.left(query, pool.waiting, now)
            self._life.close(query, actions)
            self._pump(now, actions)
        return actions

    def endpoints_changed(self, fleet: Fleet, now: float) -> list[Action]:
        """The fleet has changed. Raise ValueError, and change nothing, if its names do not fit together."""
        actions: list[Action] = []
        gone = self._fleet.update(fleet)
        self._unblock()
        for pool in self._fleet.pools.values():
            pool.renew_trust(now)
            if not pool.deployed:  # no endpoint is left to compare with
                pool.trials.clear()
            self._life.withdraw_if_out(pool, actions)
        for pool in [*gone, *self._fleet.pools.values()]:
            if pool in gone or not pool.deployed:
                pool.trials.clear()
                for query in [*pool.waiting, *pool.retries.values()]:
                    if query.waiting:
                        self._life.fail(query, Reason.NO_ENDPOINT, actions)
        for pool in gone:
            for group, row in pool.protections:
                self._life.protection_lost(group, row, actions)
            self._life.give_up_launches(pool, actions)
        for pool in [*gone, *self._fleet.pools.values()]:
            if pool in gone or not pool.can_finish:
                for query in [*pool.finishes]:
                    self._life.finish_lost(query, actions)
                pool.finishes.clear()
        for pool in self._fleet.pools.values():
            for group, row in [*pool.protections]:
                if not pool.rows.get(row):
                    pool.protections.remove((group, row))
                    self._life.protection_lost(group, row, actions)
            if pool.late and not any(pool.rows.values()):
                self._life.give_up_launches(pool, actions)
        for task in self._fleet.left_behind():
            self._life.leave_behind(task, now, actions)
        for query in [*self._life.live.values()]:
            if query.group is not None and not query.waiting and not query.in_flight:
                self._life.review(query.group, actions)  # what it waits for may have gone with its pool
            if query.open and query.pool not in self._fleet.pools:
                # An instance that has it may still answer it in the usual time. Later than that, no instance could.
                assert query.deadline_at is not None
                query.deadline_at = min(query.deadline_at, max(now, query.release_at))
                self._life.arm(query)
        self._pump(now, actions)
        return actions

    def policy_changed(self, policy: Policy, now: float) -> list[Action]:
        """The operator's settings have changed. Raise ValueError, and change nothing, if a rule's own number has."""
        for item in fields(Policy):
            if not (is_setting(item) or getattr(policy, item.name) == getattr(self.policy, item.name)):
                raise ValueError(f"{item.name} stays as it is while the engine runs")
        actions: list[Action] = []
        self.policy = policy
        self._fleet.adopt(policy)
        self._life.adopt(policy, now, actions)
        self._token_at = math.inf
        self._unblock()
        self._pump(now, actions)
        return actions

    def compared(self, pair: Compare, finding: Finding, why: str, now: float) -> list[Action]:
        """What the comparison that was asked for has shown, and in which words."""
        actions: list[Action] = []
        query, group = pair.own.query, pair.other.group
        assert query is not None
        if query.pool not in self._fleet.pools:
            return actions
        pool = self._fleet.pool_of(query.pool)
        if pair.other.kind is Kind.DEPLOYED:
            if min(pair.own.sent_at, pair.other.sent_at) >= pool.repeats.since:
                pool.repeats.compared(finding, why, now)
                if pool.repeats.reason:
                    self._life.proving.contradicted(pool, now)
        elif group is not None and group.trust is not None and group.begun_at >= group.trust.since:
            if finding in (Finding.AGREED, Finding.DIFFERED) and pair.slot in group.agreement:
                doubt = 1.0 - group.agreement[pair.slot]
                pool.release.budget.compared(doubt, finding is Finding.DIFFERED)
            group.trust.compared(finding, why, now)
        self._life.withdraw_if_out(pool, actions)
        self._pump(now, actions)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Let everything happen that is due."""
        actions: list[Action] = []
        while (due := self._timers.pop_due(now)) is not None:
            at, kind, subject = due
            if isinstance(subject, CodingGroup):
                self._life.seal(subject, actions)
            elif isinstance(subject, Query):
                if subject.open:
                    self._life.due(kind, at, subject, now, actions)
            elif isinstance(subject, TokenBucket):
                self._token_at = math.inf
            else:  # an endpoint may be asked again
                self._suspicion.resume(subject, now)
                self._unblock()
        self._pump(now, actions)
        return actions

    def may_copy(self, pool: str, now: float) -> bool:
        """Whether a query of this pool may be run once more."""
        return self._fleet.pool_of(pool).may_copy(now)

    def is_repeatable(self, pool: str) -> bool:
        """Whether a query of this pool may be run again after a failure."""
        return self._fleet.pool_of(pool).pool.repeatable

    def can_serve(self, pool: str, now: float) -> bool:
        """Whether some endpoint of the deployed model is in, or may be tried again by now."""
        return any(
            state.health.condition is not Condition.OUT or state.health.resumes_at <= now
            for state in self._fleet.pool_of(pool).deployed.everyone
        )

    def clears_s(self, pool: str) -> float:
        """How long it takes until those who wait in this pool have had a place, or no longer wait for one."""
        state = self._fleet.pool_of(pool)
        return min(state.admission.clears_s(len(state.waiting)), self.policy.max_wait_s)

    def next_deadline(self) -> float:
        """When `tick` must be called next, unless an event comes first; inf: never."""
        return self._timers.earliest()

    def _pump(self, now: float, actions: list[Action]) -> None:
        """Finishes and late launches first (someone is late), then retries, then queries in order of arrival, then
        second copies and protections on idle places.
        """
        pools = []
        for pool in self._fleet.pools.values():  # after most events, none has anything to do
            protects = pool.protections and not pool.protections_blocked
            trying = pool.trials.launches or pool.trials.finishes
            if pool.waiting or protects or pool.late or pool.hedges or pool.finishes or pool.retries or trying:
                pools.append(pool)
        if not pools:
            return
        for pool in pools:
            if pool.finishes:
                self._send_finishes(pool, now, actions)
            if pool.late:
                self._send_late(pool, now, actions)
            if pool.retries:
                self._send_retries(pool, now, actions)
        waiting = [pool for pool in pools if pool.waiting]
        while waiting:
            pool = waiting[0] if len(waiting) == 1 else next_pool(waiting)
            query = pool.waiting[0]
            newest = len(pool.waiting) > 1 and pool.admission.newest_first(query, now)
            if newest:
                query = pool.waiting[-1]
            if now >= query.start_by and pool.admission.is_in_vain(query, now):
                self._life.refuse_late(pool, query, now, actions)
            else:
                place = pool.selection.for_query(query, now, len(pool.waiting))
                if place is None:
                    waiting.remove(pool)
                    continue
                if newest:
                    pool.waiting.pop()
                else:
                    pool.waiting.popleft()
                if now > query.arrived_at:
                    pool.admission.served(query, now)
                self._life.dispatch(pool, query, place, now, actions)
            if not pool.waiting:
                waiting.remove(pool)
        for pool in pools:
            if pool.hedges and not pool.is_pressed(now):
                self._send_hedges(pool, now, actions)
            if pool.protections and not pool.protections_blocked:
                self._send_protections(pool, now, actions)
            if (pool.trials.launches or pool.trials.finishes) and not pool.is_pressed(now):
                self._life.proving.send_trials(pool, now, actions)

    def _send_retries(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        self._life.retries.budget.pass_time(now)
        for query in [*pool.retries.values()]:
            if query.id not in pool.retries or now < query.yields_until:
                continue
            if query.owes and self._life.retries.budget.wait_s(0) > 0:
                self._await_token(now)
                continue
            place = pool.selection.for_retry(query, now, len(pool.waiting))
            if place is not None:
                if query.owes:
                    self._life.pay(query)
                del pool.retries[query.id]
                self._life.dispatch(pool, query, place, now, actions)

    def _await_token(self, now: float) -> None:
        if self._token_at <= now or self._token_at == math.inf:
            self._token_at = now + self._life.retries.budget.wait_s(0)
            if self._token_at < math.inf:
                self._timers.arm(self._token_at, Timer.TOKEN, self._life.retries.budget)

    def _unblock(self) -> None:
        for pool in self._fleet.pools.values():
            pool.protections_blocked = False

    def _send_protections(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        held: list[tuple[CodingGroup, int]] = []
        while pool.protections:
            group, row = pool.protections.popleft()
            if group.done or row not in group.pending_rows:
                continue
            place = pool.selection.for_protection(group, row, now)
            if place is None:
                held.append((group, row))
                if len(held) >= len(pool.rows):  # every row is busy; the rest of the queue need not be asked
                    break
                continue
            group.protection_sent(row)
            self._sender.send(Kind.PROTECTION, place, None, group, None, row, now, actions)
        pool.protections.extendleft(reversed(held))
        pool.protections_blocked = bool(held)

    def _send_late(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        """Backups of late queries, to the first places that come free. One in the stead of a query that waits saves
        work, so it needs no token; but none is sent while earlier ones owe some, whose queries had to run after all.
        """
        work = self._life.work
        while pool.late and pool.code is not None:
            first = next(iter(pool.late.values()))
            if not work.affords(pool.pool.cost):
                unsent = (query for query in pool.late.values() if query.waiting)
                found = next(unsent, None) if self._life.policy.extra_work and not work.in_debt else None
                if found is None:
                    return
                first = found
            place = pool.selection.for_late(first, now)
            if place is None or place.endpoint.row is None:
                return
            self._life.launch_now(pool, pool.code, first, place, place.endpoint.row, now, actions)

    def _send_hedges(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        """Second copies, on idle places only. Without a token the copy is not made; the query itself is untouched."""
        if not pool.may_copy(now):  # any more
            pool.hedges.clear()
        for query in [*pool.hedges.values()]:
            if query.in_flight:
                place = pool.selection.for_hedge(query, now)
                if place is None:
                    return
                if self._life.pays_for_copy(query, KEPT_FROM_COPIES if pool.launch.late else 0.0):
                    self._life.send_copy(query, place, now, actions)
            del pool.hedges[query.id]

    def _send_finishes(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        while pool.finishes:
            query = pool.finishes[0]
            if query.open:
                place = pool.selection.for_finish(query, now)
                if place is None:
                    return
                self._life.send_finish(pool, query, place, now, actions)
            pool.finishes.popleft()

    def open_queries(self) -> int:
        return len(self._life.live)

    def in_flight(self) -> int:
        return self._sender.in_flight

    def pools(self) -> Iterator[PoolState]:
        return iter(self._fleet.pools.values())

    def tasks_of(self, query: Query) -> list[Task]:
        """Of its own tasks, copies included, those that are out; but for those on endpoints that are gone."""
        hosts = (self._fleet.instances.get(name) for name in query.avoid)
        places = [state for host in hosts if host is not None for state in host.endpoints]
        tasks = (task for state in places for task in state.tasks.values() if isinstance(task, Task))
        return [task for task in tasks if task.query is query and task.kind is Kind.DEPLOYED]

    def spent(self) -> tuple[float, float]:
        """-> extra work for late queries so far, in deployed inferences; and how many of the answers given so far are
        expected to differ from the deployed model's.
        """
        return self._life.work.spent, sum(pool.release.budget.spent for pool in self._fleet.pools.values())

    def snapshot(self, now: float | None = None) -> dict[str, object]:
        """For people and metrics: queues, places, groups, counters. Without `now`, no task has an age."""
        return {
            "open_queries": len(self._life.live),
            "in_flight": self._sender.in_flight,
            "load": round(max((pool.load.value for pool in self._fleet.pools.values()), default=0.0), 3),
            "retry_tokens": round(self._life.retries.budget.tokens, 3),
            "work_tokens": round(self._life.work.tokens, 3),
            "work_spent": round(self._life.work.spent, 3),
            "sent": dict(self.sent),
            "answered": dict(self.answered),
            "failed": dict(self.failed),
            "pools": {
                name: {
                    "waiting": len(pool.waiting) + len(pool.retries),
                    "load": round(pool.load.value, 3),
                    "open_groups": sum(len(groups) for groups in pool.placement.open_groups.values()),
                    "late": len(pool.late),
                    "instances": len(pool.selection.deployed),
                    "launch": "late" if pool.launch.late else "group",
                    "queued_protections": sum(not group.done for group, _ in pool.protections),
                    "reconstruct_after_s": pool.release.after_s,
                    "launch_after_s": pool.launch.after_s,
                    "usual_s": pool.latency.median or None,
                    "differing": pool.release.budget.snapshot(),
                    "trust": None if pool.trust is None or pool.code is None else pool.trust.snapshot(),
                    "copies": pool.repeats.snapshot(),
                    "group_wait_s": pool.placement.wait_s,
                }
                for name, pool in self._fleet.pools.items()
            },
            "endpoints": {
                name: {
                    "pool": state.endpoint.pool,
                    "in_flight": state.in_flight,
                    "places": state.endpoint.places,
                    "health": state.health.condition.value,
                    "why_out": state.why,
                    "failures": state.failures,
                    "ejections": state.ejections,
                    "suspect": not state.health.clean,
                    "slower": round(state.speed.slow, 3),
                    "speed": round(state.speed.ratio, 2),
                    **_overdue(state, now),
                }
                for name, state in self._fleet.endpoints.items()
            },
        }


def _overdue(state: EndpointState, now: float | None) -> dict[str, float]:
    """How long its oldest task has been out, and how many times longer than usual that one takes; if there is one."""
    oldest = next(iter(state.tasks.values()), None)
    if oldest is None or now is None:
        return {}
    return {"oldest_s": round(now - oldest.sent_at, 3), "oldest_scale": round(oldest.scale, 3)}
