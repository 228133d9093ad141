"""The story of a query, from arrival to its one answer.

Told by events (`query_arrived`, `task_done`, `answer_started`, `query_abandoned`, `endpoints_changed`, `tick`), it
answers with actions. Every method takes the time; nothing here reads a clock. The driver arms one timer at
`next_deadline()` and calls `tick`.

TorchServe never cancels work, so neither do we: a task in flight keeps its place until it ends, and its late outcome is
ignored or used for a neighbour. What is still queued here is dropped without a trace when nobody needs it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from ts_parity.engine.admission import Verdict
from ts_parity.engine.budgets import TokenBucket, hedge_budget
from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.events import Arrived, Cause, Failed, Fleet, HealthChange, Kind, Outcome, Reason, Rejected, Source
from ts_parity.engine.fleet import FleetState, PoolState
from ts_parity.engine.health import Condition
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import Action, Answer, CodingGroup, Compare, Fail, Query, QueryState, Send, Task
from ts_parity.engine.release import MAX_FINISHES, Release
from ts_parity.engine.retries import Retries, Retry
from ts_parity.engine.timers import Timer, Timers
from ts_parity.engine.trust import Finding, Standing, Trust

GONE: Final = Failed("its endpoint is gone", cause=Cause.GONE)
MOST_CHANGES: Final = 64
WATCH_S: Final = 0.1
"""A comparison takes up to milliseconds; ten a second find what has changed and cost nobody anything."""


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
        self._retries = Retries(policy)
        self._token_at = math.inf
        """When the timer for the next token is due, if one is armed."""
        self._hedges = hedge_budget(policy)
        self._timers = Timers()
        self._serial = 0
        self._live: dict[int, Query] = {}
        self._in_flight = 0
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.changes: deque[HealthChange] = deque(maxlen=MOST_CHANGES)
        """For whoever tells people. Taken from the left; what nobody takes is forgotten."""

    # ---- events ------------------------------------------------------------------------------------------------

    def query_arrived(self, query: Query, now: float) -> list[Action]:
        """Raise ValueError if this query was told of before."""
        if query.state is not QueryState.NEW or query.id in self._live:
            raise ValueError(f"{query!r} has arrived already")
        actions: list[Action] = []
        pool = self._fleet.pools.get(query.pool)
        query.arrived_at = now
        if query.deadline_at is None:
            query.deadline_at = now + self.policy.deadline_s
        self._live[query.id] = query
        query.state = QueryState.WAITING
        self._retries.budget.deposit()
        if self.policy.hedge_ratio:
            self._hedges.deposit()
        if pool is None or not pool.deployed:
            self._fail(query, Reason.NO_ENDPOINT, actions)
        elif pool.waiting and not self._may_wait(pool, query, now, actions):
            self._turn_away(query, Reason.OVERLOADED, actions)
        else:
            pool.waiting.append(query)
            if len(pool.waiting) == 1:  # else those before it found no place, and none has come free since
                self._pump(now, actions)
            if query.state is QueryState.WAITING:
                query.launch_at = now + pool.launch.after_waiting_s
                self._arm_query(query)
        return actions

    def task_done(self, task: Task, outcome: Outcome, now: float) -> list[Action]:
        """Raise ValueError if the task has ended before."""
        if task.done:
            raise ValueError(f"{task!r} has ended already")
        actions: list[Action] = []
        task.done = True
        task.place.free_place(task)
        if task.place.host.protects:
            self._unblock()
        self._in_flight -= 1
        self._note_health(task, outcome, now)
        died = isinstance(outcome, Failed) and outcome.cause is Cause.WORKER_DIED
        if died:
            self._suspect_queries(task)
        if task.kind is Kind.DEPLOYED:
            self._deployed_done(task, outcome, now, actions)
        elif task.kind is Kind.PROTECTION:
            self._protection_done(task, outcome, now, actions)
        else:
            self._finish_done(task, outcome, now, actions)
        if died:
            self._review_suspects(task, actions)
        self._pump(now, actions)
        return actions

    def answer_started(self, task: Task, now: float) -> list[Action]:
        """A streamed answer begins: its query is answered with it, its place is taken until `task_done`."""
        if task.done or task.kind is not Kind.DEPLOYED or task.query is None:
            raise ValueError(f"{task!r} cannot start an answer")
        actions: list[Action] = []
        if task.query.open:
            self._answer(task.query, Source.DEPLOYED, task, actions)
        return actions

    def query_abandoned(self, query: Query, now: float) -> list[Action]:
        """The client left. A queued task is dropped; work in flight goes on, a neighbour may need it."""
        actions: list[Action] = []
        if query.open and query.id in self._live:
            self.answered["abandoned"] += 1
            pool = self._fleet.pools.get(query.pool)
            if pool is not None and query.state is QueryState.WAITING:
                pool.admission.left(query, pool.waiting, now)
            self._close(query, actions)
            self._pump(now, actions)
        return actions

    def endpoints_changed(self, fleet: Fleet, now: float) -> list[Action]:
        """The fleet was discovered anew. Raise ValueError, and change nothing, if its names do not fit together."""
        actions: list[Action] = []
        gone = self._fleet.update(fleet)
        self._unblock()
        for pool in self._fleet.pools.values():
            pool.renew_trust(now)
            if not pool.deployed:  # nobody is left to be compared with
                pool.trials.clear()
            self._withdraw_if_out(pool, actions)
        for pool in [*gone, *self._fleet.pools.values()]:
            if pool in gone or not pool.deployed:
                pool.trials.clear()
                for query in [*pool.waiting, *pool.retries.values()]:
                    if query.state is QueryState.WAITING:
                        self._fail(query, Reason.NO_ENDPOINT, actions)
        for pool in gone:
            for group, row in pool.protections:
                self._protection_lost(group, row, actions)
            self._give_up_launches(pool, actions)
        for pool in [*gone, *self._fleet.pools.values()]:
            if pool in gone or not pool.can_finish:
                for query in [*pool.finishes]:
                    self._finish_lost(query, actions)
                pool.finishes.clear()
        for pool in self._fleet.pools.values():
            for group, row in [*pool.protections]:
                if not pool.rows.get(row):
                    pool.protections.remove((group, row))
                    self._protection_lost(group, row, actions)
            if pool.late and not any(pool.rows.values()):
                self._give_up_launches(pool, actions)
        for task in self._fleet.left_behind():
            self._leave_behind(task, now, actions)
        for query in [*self._live.values()]:
            if query.group is not None and query.state is QueryState.RUNNING and not query.in_flight:
                self._review(query.group, actions)  # what it waits for may have gone with its pool
            if query.open and query.pool not in self._fleet.pools:
                # Who has it may still answer it in the usual time. Later than that, nobody is left who could.
                assert query.deadline_at is not None
                query.deadline_at = min(query.deadline_at, max(now, query.release_at))
                self._arm_query(query)
        self._pump(now, actions)
        return actions

    def compared(self, pair: Compare, finding: Finding, why: str, now: float) -> list[Action]:
        """What the comparison that was asked for has shown, and in which words."""
        actions: list[Action] = []
        query, group = pair.own.query, pair.other.group
        assert query is not None
        pool = self._fleet.pools.get(query.pool)
        if pool is None:
            return actions
        if pair.other.kind is Kind.DEPLOYED:
            if min(pair.own.sent_at, pair.other.sent_at) >= pool.repeats.since:
                pool.repeats.compared(finding, why, now)
                if pool.repeats.reason:
                    self._contradicted(pool, now)
        elif group is not None and group.trust is not None and group.begun_at >= group.trust.since:
            group.trust.compared(finding, why, now)
        self._withdraw_if_out(pool, actions)
        self._pump(now, actions)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Let everything happen that is due."""
        actions: list[Action] = []
        while (due := self._timers.pop_due(now)) is not None:
            at, kind, subject = due
            if isinstance(subject, CodingGroup):
                self._seal(subject, actions)
            elif isinstance(subject, Query):
                if subject.open:
                    self._query_timer(kind, at, subject, now, actions)
            elif isinstance(subject, TokenBucket):
                self._token_at = math.inf
            else:  # an endpoint may be asked again
                if subject.health.resumes_at <= now:
                    subject.peers.unpark(subject)
                    if not self._probes(subject):  # then the next query tells
                        subject.health.clean = True
                        subject.host.judge()
                self._unblock()
        self._pump(now, actions)
        return actions

    def may_copy(self, pool: str, now: float) -> bool:
        """Whether a query of this pool may be run once more."""
        state = self._fleet.pools.get(pool)
        return state is not None and state.may_copy(now)

    def next_deadline(self) -> float:
        """When `tick` must be called next, unless an event comes first; inf: never."""
        return self._timers.earliest()

    # ---- what is waiting gets its place ----------------------------------------------------------------------------

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
            # Where an operator has capped an instance, pools compete: a crowd in one must not keep the others out.
            pool = waiting[0] if len(waiting) == 1 else min(waiting, key=_share_taken)
            query = pool.waiting[0]
            newest = pool.admission.newest_first(query, now)
            if newest:
                query = pool.waiting[-1]
            # One that has just arrived is sent if there is a place, or nobody would learn when all goes faster again.
            if now >= query.start_by and now > query.arrived_at and pool.admission.is_hopeless(query, now):
                self._refuse_late(pool, query, now, actions)
            else:
                place = pool.selection.for_query(query, now, len(pool.waiting))
                if place is None:
                    waiting.remove(pool)
                    continue
                if newest:
                    pool.waiting.pop()
                else:
                    pool.waiting.popleft()
                pool.admission.served(query, now)
                self._dispatch(pool, query, place, now, actions)
            if not pool.waiting:
                waiting.remove(pool)
        for pool in pools:
            if pool.hedges and not pool.waiting and not pool.retries:
                self._send_hedges(pool, now, actions)
            if pool.protections and not pool.protections_blocked:
                self._send_protections(pool, now, actions)
            if (pool.trials.launches or pool.trials.finishes) and not pool.waiting and not pool.retries:
                self._send_trials(pool, now, actions)

    def _may_wait(self, pool: PoolState, query: Query, now: float, actions: list[Action]) -> bool:
        """Whether one more may join those that wait. Where the newest goes first, the oldest makes room for it."""
        verdict = pool.admission.judge(query, pool.waiting[0], len(pool.waiting), now)
        if verdict is Verdict.MAKE_ROOM:
            self._refuse_late(pool, pool.waiting[0], now, actions)
        return verdict is not Verdict.REFUSE

    def _refuse_late(self, pool: PoolState, query: Query, now: float, actions: list[Action]) -> None:
        """It has waited in vain, and is told so before its time is up: another service may still help its client."""
        assert query.deadline_at is not None
        pool.admission.refused(query, now)
        self._turn_away(query, Reason.OVERLOADED if now < query.deadline_at else Reason.DEADLINE, actions)

    def _turn_away(self, query: Query, reason: Reason, actions: list[Action]) -> None:
        """No prediction will come in time."""
        if self.policy.default_answer:
            self._answer(query, Source.DEFAULT, None, actions)
        else:
            self._fail(query, reason, actions)

    def _send_retries(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        self._retries.budget.pass_time(now)
        for query in [*pool.retries.values()]:
            if query.id not in pool.retries:
                continue
            if query.owes and self._retries.budget.wait_s(0) > 0:
                self._await_token(now)
                continue
            place = pool.selection.for_retry(query, now, len(pool.waiting))
            if place is not None:
                if query.owes:
                    self._pay(query)
                del pool.retries[query.id]
                self._dispatch(pool, query, place, now, actions)

    def _pay(self, query: Query) -> None:
        self._retries.settle(query)
        self.sent["retry"] += 1

    def _await_token(self, now: float) -> None:
        if self._token_at <= now or self._token_at == math.inf:
            self._token_at = now + self._retries.budget.wait_s(0)
            self._timers.arm(self._token_at, Timer.TOKEN, self._retries.budget)

    def _unblock(self) -> None:
        for pool in self._fleet.pools.values():
            pool.protections_blocked = False

    def _dispatch(self, pool: PoolState, query: Query, place: EndpointState, now: float, actions: list[Action]) -> None:
        query.state = QueryState.RUNNING
        query.attempts += 1
        query.in_flight += 1
        if query.kills:
            query.last_chance = True
        query.avoid = query.avoid | place.only if query.avoid else place.only
        query.domain = place.domain
        pool.load.add(pool.in_flight() + len(pool.waiting), pool.places)
        sealed = None
        if query.release_at == math.inf:  # the first dispatch; a rejected query comes here again, in its group already
            query.release_at = now + pool.release.after_s
            if pool.code is not None and pool.rows and query.key is not None:
                if not pool.protecting:
                    self._try_protection(pool, query, place.domain, now)
                elif pool.launch.late:
                    query.launch_at = now + pool.launch.after_s
                else:
                    sealed = self._join(pool, query, place.domain, now)
            if self.policy.hedge_ratio and pool.may_copy(now):
                query.hedge_at = now + pool.hedging.after_s(query.launch_at - now)
            self._arm_query(query)
        self._send(Kind.DEPLOYED, place, query, query.group, query.slot, None, now, actions)
        if sealed is not None:
            self._seal(sealed, actions)
        spare = self.policy.hedge_ratio and not query.kills and not pool.waiting and not pool.retries
        if pool.deployed.trials and spare:
            probe = pool.selection.for_probe(query, now) if pool.may_copy(now) else None
            if probe is not None and self._hedges.take():
                self._send_copy(query, probe, now, actions)

    def _join(self, pool: PoolState, query: Query, domain: str, now: float) -> CodingGroup | None:
        """-> the group, if this was its last member: it is full, or no other is expected in time."""
        assert pool.code is not None
        pool.placement.gap.arrived(now)
        group = pool.placement.group_for(query.key, domain)
        if group is None:
            self._serial += 1
            group = CodingGroup(self._serial, query.key, pool.code, now + pool.placement.wait_s, pool.trust, now)
            pool.placement.open(group)
            self._timers.arm(group.closes_at, Timer.SEAL, group)
        group.join(query, domain)
        return None if not group.full and pool.placement.expects_member(group, now) else group

    def _seal(self, group: CodingGroup, actions: list[Action]) -> None:
        """No more members; launch the protections, unless everybody has an answer already."""
        if group.sealed:
            return
        if group.on_trial:
            self._seal_trial(group)
            return
        group.sealed = True
        first = group.members[0]
        pool = self._fleet.pools.get(first.pool) if first is not None else None
        if pool is not None:
            pool.placement.close(group)
        if group.unanswered == 0:
            group.retire()
            return
        # Nobody protects it, and nobody joins any more.
        if pool is None or not group.usable or (not group.full and not pool.pool.partial):
            group.retire()
            self._review(group, actions)
            return
        shed = pool.launch.sheds
        for row in range(0 if shed else group.code.r):
            if pool.may_launch(group, row):
                group.pending_rows.add(row)
                pool.protections.append((group, row))
                pool.protections_blocked = False
        if not group.pending_rows:
            self._review(group, actions)

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
            self._send(Kind.PROTECTION, place, None, group, None, row, now, actions)
        pool.protections.extendleft(reversed(held))
        pool.protections_blocked = bool(held)

    def _launch(self, pool: PoolState, query: Query) -> None:
        """A backup for a query that is late: it waits for a place with the other late ones."""
        due, query.launch_at = query.launch_at, math.inf
        code = pool.code
        if query.late or query.kills or query.group is not None or query.key is None:
            return
        if code is None or not pool.protected:
            return
        if not query.exact or code.lossless:
            query.late = True
            pool.late[query.id] = query
            if query.state is QueryState.WAITING:
                query.release_at = min(query.release_at, due)

    def _send_late(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        """As many late queries as the code takes go together to the first place that comes free."""
        while pool.late:
            first = next(iter(pool.late.values()))
            place = pool.selection.for_late(first, now)
            if place is None or pool.code is None or place.endpoint.row is None:
                return
            self._serial += 1
            group = CodingGroup(self._serial, first.key, pool.code, math.inf, pool.trust, now)
            for query in [*pool.late.values()]:
                if query is first or (query.key == first.key and query.domain != place.domain and not group.full):
                    group.join(query, query.domain)
                    del pool.late[query.id]
                    if query.state is QueryState.WAITING:  # a place for its backup is worth more than one for itself
                        query.state = QueryState.RUNNING
                        query.displaced = True
                        pool.leave_line(query)
            group.sealed = True
            group.pending_rows.add(place.endpoint.row)
            self.sent["late"] += group.size
            group.protection_sent(place.endpoint.row)
            self._send(Kind.PROTECTION, place, None, group, None, place.endpoint.row, now, actions)

    @staticmethod
    def _contradicted(pool: PoolState, now: float) -> None:
        """There are no second copies any more: who was to come back by one is tried by a query."""
        if pool.trust is not None:
            pool.trust.withdraw(pool.repeats.reason, now)
        for place in [*pool.deployed.trials.values()]:
            place.health.clean = True
            place.host.judge()

    def _withdraw_if_out(self, pool: PoolState, actions: list[Action]) -> None:
        """A protection that is not in use any more stands in for nobody: who has nothing else to wait for has failed.
        What of it is still under way is of no use when it arrives.
        """
        if pool.trust is not None and pool.trust.standing is Standing.OUT:
            pool.trials.clear()
        was, pool.protecting = pool.protecting, pool.trust is not None and pool.trust.in_use
        if was and not pool.protecting:
            self._give_up_launches(pool, actions)
            for group, row in [*pool.protections]:
                if not group.usable:
                    pool.protections.remove((group, row))
                    self._protection_lost(group, row, actions)

    # ---- trials ----------------------------------------------------------------------------------------------------

    def _try_protection(self, pool: PoolState, query: Query, domain: str, now: float) -> None:
        """The query is served without a protection; but it may help to prove one."""
        trust, trials = pool.trust, pool.trials
        if trust is None or pool.code is None or pool.repeats.contradict(now):
            return
        trust.try_again_if_due(now)
        if not trust.on_trial:
            return
        soon = max(1.0, 4.0 * pool.release.after_s)
        trials.drop_overdue(now - self.policy.deadline_s, now - soon, trust, now)
        group = trials.group_for(query.key)
        if group is None:
            if not trials.may_begin:
                return
            self._serial += 1
            group = CodingGroup(self._serial, query.key, pool.code, now + pool.placement.wait_s, trust, now, True)
            trials.begin(group)
            self._timers.arm(group.closes_at, Timer.SEAL, group)
        trials.join(group, query, domain)
        if group.full:
            self._seal_trial(group)

    def _seal_trial(self, group: CodingGroup) -> None:
        first = group.members[0]
        pool = self._fleet.pools.get(first.pool) if first is not None else None
        if pool is not None:
            usable = group.full or pool.pool.partial
            pool.trials.seal(group, [row for row in range(group.code.r) if pool.rows.get(row)] if usable else [])

    def _send_trials(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        trials = pool.trials
        long = pool.trust is not None and pool.trust.is_slow(now)
        for group, row in [*trials.launches]:
            if not pool.rows.get(row):  # any more
                trials.drop(group)
            place = None if group.done else pool.selection.for_trial(group, row, now, long)
            if place is not None:
                group.protection_sent(row)
                self._send(Kind.PROTECTION, place, None, group, None, row, now, actions)
            if place is not None or group.done:
                trials.launches.remove((group, row))
        for group, slot in [*trials.finishes]:
            place = None if group.done else pool.selection.for_trial(group, None, now, long)
            if place is not None:
                self._send(Kind.FINISH, place, group.members[slot], group, slot, None, now, actions)
            if place is not None or group.done:
                trials.finishes.remove((group, slot))

    def _trial_ended(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        """A protection on trial, or the finish of what it helped to decode."""
        group = task.group
        assert group is not None
        first = group.members[0]
        pool = self._fleet.pools.get(first.pool) if first is not None else None
        if pool is None or pool.trust is None or group.done:
            return
        if isinstance(outcome, Rejected):
            if task.kind is Kind.FINISH and task.slot is not None:
                pool.trials.finishes.append((group, task.slot))
            elif task.row is not None:
                pool.trials.launches.append((group, task.row))
        elif task.kind is Kind.FINISH:
            actions += pool.trials.finish_ended(task, outcome, pool.trust, now)
        else:
            actions += pool.trials.protection_ended(task, outcome, pool.trust, now)
        self._withdraw_if_out(pool, actions)

    def _lost_for_trial(self, query: Query) -> None:
        pool = self._fleet.pools.get(query.pool)
        if pool is not None:
            pool.trials.own_lost(query)
        query.trial = None

    def _compare_with_given(self, query: Query, task: Task, outcome: Outcome, actions: list[Action]) -> None:
        """The query was answered while this task was out; what it brings should have been the same."""
        given, query.given = query.given, None
        if isinstance(outcome, Arrived) and given is not None:
            pool = self._fleet.pools.get(query.pool)
            if given is not task and given.done and pool is not None and not pool.pool.proved:  # no stream under way
                actions.append(Compare(task, given, query.slot))
            given = task
        if query.in_flight:
            query.given = given

    def _give_up_launches(self, pool: PoolState, actions: list[Action]) -> None:
        """There is no protection any more: who has nothing else to wait for has failed."""
        for query in [*pool.late.values()]:
            del pool.late[query.id]
            query.late = False
            if query.open and not query.in_flight and query.state is not QueryState.WAITING:
                self._fail(query, Reason.FAILED, actions)

    def _send_hedges(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        """Second copies, on idle places only. Without a token the copy is not made; the query itself is untouched."""
        if not pool.may_copy(now):  # any more
            pool.hedges.clear()
        for query in [*pool.hedges.values()]:
            if query.in_flight:
                place = pool.selection.for_hedge(query, now)
                if place is None:
                    return
                if self._hedges.take():
                    self._send_copy(query, place, now, actions)
            del pool.hedges[query.id]

    def _send_copy(self, query: Query, place: EndpointState, now: float, actions: list[Action]) -> None:
        query.in_flight += 1
        query.avoid |= place.only
        self.sent["hedge"] += 1
        self._send(Kind.DEPLOYED, place, query, query.group, query.slot, None, now, actions, hedge=True)

    def _send_finishes(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        while pool.finishes:
            query = pool.finishes[0]
            if query.open:
                place = pool.selection.for_finish(query, now)
                if place is None:
                    return
                query.finish_attempts += 1
                query.avoid |= place.only
                self._send(Kind.FINISH, place, query, query.group, query.slot, None, now, actions)
                # The endpoint may be frozen and not known to be: then a second one is asked.
                self._timers.arm(now + pool.release.after_s, Timer.FINISH, query)
            pool.finishes.popleft()

    def _send(
        self,
        kind: Kind,
        place: EndpointState,
        query: Query | None,
        group: CodingGroup | None,
        slot: int | None,
        row: int | None,
        now: float,
        actions: list[Action],
        hedge: bool = False,
    ) -> None:
        self._serial += 1
        task = Task(self._serial, kind, query, group, slot, row, place, now, hedge)
        place.take_place(task, now)
        self._in_flight += 1
        self.sent[kind._value_] += 1
        actions.append(Send(task))

    # ---- what ended ------------------------------------------------------------------------------------------------

    def _deployed_done(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        query, group = task.query, task.group
        assert query is not None
        if not task.lost:
            query.in_flight -= 1
        if query.given is not None:
            self._compare_with_given(query, task, outcome, actions)
        if isinstance(outcome, Rejected):
            query.avoid -= task.place.only
        if isinstance(outcome, Arrived):
            query.refused = outcome.error
            pool = self._fleet.pools.get(query.pool)
            pairs: list[Compare] = []
            if pool is not None:
                pool.unreachable_since = math.inf
                if outcome.error or query.set_aside is not None:
                    if self._weigh_error(task, query, outcome, pool, now):
                        return
                else:
                    task.place.record.answered()
                if not outcome.error:  # an error's speed says nothing of what is usual
                    pool.latency.add(now - task.sent_at)
                if query.trial is not None and pool.trust is not None:
                    pairs = pool.trials.own_arrived(query, task, outcome.raw, pool.trust, now)
                elif query.group is not None and not outcome.error:
                    pairs = self._watch(query.group, pool, query.slot, task, now)
            if query.open:
                self._answer(query, Source.HEDGED if task.hedge else Source.DEPLOYED, task, actions)
            actions += pairs
            if group is not None and not group.done:
                if outcome.raw:
                    group.member_arrived(task)
                    self._rebuild_what_is_due(group, now, actions)
                else:
                    self._review(group, actions)
        elif not task.lost:
            self._deployed_failed(task, query, outcome, now, actions)

    def _weigh_error(self, task: Task, query: Query, outcome: Arrived, pool: PoolState, now: float) -> bool:
        """Learn whose fault errors are; see `outliers`. -> whether this answer is set aside until a peer has spoken."""
        place, first = task.place, query.set_aside
        suspect = place.record.erred(*pool.ejection.peers_of(place)) if outcome.error else False
        if not outcome.error:
            place.record.answered()
        if first is not None:
            query.set_aside = None
            if first.place is place:
                return False
            if outcome.error:
                self._acquit(first.place, now)
            elif first.place.record.proved() and pool.ejection.may_convict(first.place):
                before = first.place.health.condition
                first.place.health.convicted(now)
                self._health_changed(first.place, before, "it answers with errors what its peers answer well", now)
            return False
        if not suspect or not query.open:
            return False
        if not query.in_flight and query.state is not QueryState.WAITING:
            if not self._may_ask_a_peer(query, pool, now):
                return False
            query.choosy_until = self._retries.choosy_until(query, pool.release.after_s, now)
            self._queue_again(query, choosy=True)
        query.set_aside = task
        return True

    def _may_ask_a_peer(self, query: Query, pool: PoolState, now: float) -> bool:
        """It has an answer, if a doubtful one: so only at once, and within the budget."""
        query.avoid |= pool.ejection.suspects()
        if query.kills or not pool.pool.repeatable or not pool.selection.has_elsewhere(query):
            return False
        self._retries.budget.pass_time(now)
        queue = any(other.owes for other_pool in self._fleet.pools.values() for other in other_pool.retries.values())
        if queue or self._retries.budget.wait_s(0) or not self._retries.has_attempts(query):
            return False
        self._pay(query)
        return True

    def _acquit(self, place: EndpointState, now: float) -> None:
        place.record.clear()
        before = place.health.condition
        if before is not Condition.IN:
            place.health.succeeded()
            self._health_changed(place, before, "", now)

    def _deployed_failed(
        self, task: Task, query: Query, outcome: Failed | Rejected, now: float, actions: list[Action]
    ) -> None:
        group = task.group
        if query.open:
            if task.hedge and self._copy_is_simply_gone(query, outcome, now, actions):
                return
            if isinstance(outcome, Failed):
                query.last_failure = task
                query.first_cause = query.first_cause or f"{task.endpoint.name}: {outcome.reason}"
                query.release_at = now
                pool = self._fleet.pools.get(query.pool)
                if pool is not None and pool.launch.late:
                    self._launch(pool, query)
            if not self._try_again(query, task, outcome, now):
                self._give_up_on_own_task(query, now, actions)
                return
            self._rebuild_if_due(query, now, actions)
        elif group is not None and not group.done:
            self._review(group, actions)
        elif query.trial is not None and not query.in_flight:
            self._lost_for_trial(query)

    def _copy_is_simply_gone(self, query: Query, outcome: Outcome, now: float, actions: list[Action]) -> bool:
        """A copy has failed. Whether something else goes on for its query, or has ended before it."""
        if query.in_flight:
            return True
        if query.state is QueryState.WAITING:
            self._arm_query(query)
        elif query.displaced and query.group is not None:
            self._review(query.group, actions)
        elif isinstance(outcome, Rejected):
            if not (query.displaced and self._queue_again(query)):
                self._give_up_on_own_task(query, now, actions)
        else:
            return False
        return True

    def _protection_done(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        group = task.group
        assert group is not None
        assert task.row is not None
        if not task.lost:
            group.flying -= 1
        if isinstance(outcome, Arrived):
            pool = self._fleet.pools.get(task.endpoint.pool)
            if pool is not None:
                pool.backup_latency.add(now - task.sent_at)
        if group.on_trial:
            self._trial_ended(task, outcome, now, actions)
            return
        if group.trust is not None and not group.trust.proved:
            self._note_use(task, group, outcome, now, actions)
        if group.own is not None:
            self._watched(group, task, outcome, now, actions)
        if group.done:
            return
        if isinstance(outcome, Arrived):
            group.protection_arrived(task, outcome.covers)
            self._rebuild_what_is_due(group, now, actions)
            self._review(group, actions)
        elif task.lost:
            return
        elif isinstance(outcome, Rejected):
            pool = self._fleet.pools.get(task.endpoint.pool)
            if pool is None or not pool.may_launch(group, task.row):
                self._protection_lost(group, task.row, actions)
            else:
                pool.protections.appendleft((group, task.row))
        else:
            self._protection_lost(group, task.row, actions)

    def _note_use(self, task: Task, group: CodingGroup, outcome: Outcome, now: float, actions: list[Action]) -> None:
        """Whether a protection in use brings anything: one that fails every group is taken out."""
        trust = group.trust
        assert trust is not None
        if group.begun_at < trust.since or isinstance(outcome, Rejected):
            return
        if isinstance(outcome, Failed):
            trust.failed(outcome.reason, now)
        elif outcome.covers is None or outcome.covers:
            trust.arrived()
        elif not any(member is not None and member.refused for member in group.members):
            trust.failed("it answered for no member of its group", now)
        pool = self._fleet.pools.get(task.endpoint.pool)
        if pool is not None:
            self._withdraw_if_out(pool, actions)

    @staticmethod
    def _watch(group: CodingGroup, pool: PoolState, slot: int, task: Task, now: float) -> list[Compare]:
        """A member's own answer has come first, or in time. What a backup says of it is of no use to anybody any more,
        but it says what the backup is worth, before a client has its word for it.
        """
        trust = group.trust
        if trust is None or trust.proved or group.code.family != "backup" or now < pool.watch_at:
            return []
        for row, protection in group.protections.items():
            if slot in group.covers[row]:
                pool.watch_at = now + WATCH_S
                return [Compare(task, protection, slot)]
        group.own = (slot, task)
        return []

    def _watched(self, group: CodingGroup, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        assert group.own is not None
        slot, own = group.own
        pool = self._fleet.pools.get(task.endpoint.pool)
        answered = isinstance(outcome, Arrived) and (outcome.covers is None or slot in outcome.covers)
        if answered and pool is not None and now >= pool.watch_at:
            pool.watch_at = now + WATCH_S
            actions.append(Compare(own, task, slot))
            group.own = None
        if not group.flying:
            group.own = None

    def _finish_done(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        query, group = task.query, task.group
        assert query is not None
        if group is not None and group.on_trial:
            self._trial_ended(task, outcome, now, actions)
            return
        if not task.lost:
            query.finishes_pending -= 1
        if group is not None and group.trust is not None and not group.trust.proved:
            self._note_finish(group.trust, query, outcome, now, actions)
        if not query.open:
            return
        if group is not None and not group.usable:
            query.finish_attempts = MAX_FINISHES
            self._review(group, actions)
            return
        if isinstance(outcome, Arrived):
            self._answer(query, Source.RECONSTRUCTED, task, actions)
            return
        if task.lost:
            return
        if isinstance(outcome, Rejected):
            query.finish_attempts -= 1
        elif not outcome.retry:
            query.finish_attempts = MAX_FINISHES
        if not self._queue_finish(query) and query.group is not None:
            self._review(query.group, actions)

    def _note_finish(self, trust: Trust, query: Query, outcome: Outcome, now: float, actions: list[Action]) -> None:
        """What cannot be decoded or finished anywhere is the protection's failure as well."""
        pool = self._fleet.pools.get(query.pool)
        if isinstance(outcome, Arrived):
            trust.decoded()
        elif isinstance(outcome, Failed) and not outcome.retry:
            trust.failed(outcome.reason, now, decoding=True)
            if pool is not None:
                self._withdraw_if_out(pool, actions)

    def _queue_finish(self, query: Query) -> bool:
        pool = self._fleet.pools.get(query.pool)
        if pool is None or not pool.release.may_be_finished(query, pool.can_finish):
            return False
        query.last_chance = query.kills > 0
        query.finishes_pending += 1
        pool.finishes.append(query)
        return True

    def _try_again(self, query: Query, task: Task, outcome: Outcome, now: float) -> bool:
        """Queue the query again: it has waited longest. A rejection costs no budget: nothing was run."""
        pool = self._fleet.pools.get(query.pool)
        if pool is None or not pool.deployed:
            return False
        elsewhere = pool.selection.has_elsewhere(query)
        if isinstance(outcome, Failed):
            if not self._may_retry(query, task, outcome, pool, elsewhere, now):
                return False
            query.choosy_until = self._retries.choosy_until(query, pool.release.after_s, now)
            if outcome.cause is Cause.UNREACHABLE and not elsewhere:
                pool.unreachable_since = min(pool.unreachable_since, now)
                rest_until = self._retries.rest_until(query, pool.unreachable_since, now)
                if rest_until == math.inf:
                    return False
                query.choosy_until = query.rests_until = rest_until
        else:
            query.attempts -= 1
            query.last_chance = False
        choosy = now < query.choosy_until and self.policy.balance != "round_robin" and elsewhere
        return self._queue_again(query, choosy or now < query.rests_until)

    def _suspect_queries(self, task: Task) -> None:
        """A worker died of a query it had, perhaps, and the same body would kill the next. So none of them is copied or
        put into a protection's group any more, and it runs at most once more: see `_may_run`.
        """
        group = task.group
        if task.query is not None:
            suspects = [task.query]
        else:
            assert group is not None
            assert task.row is not None
            slots = group.sent[task.row]
            group.barred |= slots
            had = [member for slot, member in enumerate(group.members) if slot in slots]
            suspects = [member for member in had if member is not None and member.open]
        for query in suspects:
            query.kills += 1
            query.hedge_at = math.inf
            if query.group is not None:
                query.group.barred.add(query.slot)
            elif group is not None and task.slot is not None:
                group.barred.add(task.slot)
            pool = self._fleet.pools.get(query.pool)
            if pool is not None:
                pool.hedges.pop(query.id, None)
                query.late = pool.late.pop(query.id, None) is None and query.late
                if query.trial is not None:
                    pool.trials.drop(query.trial)
        if group is not None:
            pool = self._fleet.pools.get(task.endpoint.pool)
            for queued, row in [] if pool is None else [*pool.protections]:
                if pool is not None and queued is group and not pool.may_launch(group, row):
                    pool.protections.remove((group, row))
                    group.pending_rows.discard(row)

    def _review_suspects(self, task: Task, actions: list[Action]) -> None:
        """Something may have been taken from them that they had waited for."""
        query = task.query
        if task.group is not None and not task.group.done:
            self._review(task.group, actions)
            return
        alone = query is not None and query.group is None and query.state is QueryState.RUNNING
        if query is not None and alone and not (query.in_flight or query.late):
            self._fail(query, Reason.FAILED, actions)

    def _may_retry(
        self, query: Query, task: Task, outcome: Failed, pool: PoolState, elsewhere: bool, now: float
    ) -> bool:
        """Whether a failed query is tried again, now or as soon as the budget allows."""
        verdict = self._retries.judge(query, outcome, pool.pool.repeatable, task.hedge)
        if verdict is Retry.OWES:
            ahead = sum(other.owes for each in self._fleet.pools.values() for other in each.retries.values())
            group = query.group
            hopeful = elsewhere or (group is not None and group.could_recover(query.slot))
            verdict = self._retries.pay(query, ahead, hopeful, now)
        if verdict is Retry.FREE:
            self.sent["moved"] += 1
        elif verdict is Retry.PAID:
            self.sent["retry"] += 1
        return verdict is not Retry.NO

    def _queue_again(self, query: Query, choosy: bool = False) -> bool:
        """At the head of those that wait for any place; or, if it may not have just any now, in a line beside it."""
        pool = self._fleet.pools.get(query.pool)
        if pool is None or not pool.deployed or (query.kills and not query.may_run()):
            return False
        query.state = QueryState.WAITING
        query.displaced = False
        if choosy or query.owes:
            pool.retries[query.id] = query
        else:
            pool.to_the_front(query)
        self._arm_query(query)
        return True

    def _give_up_on_own_task(self, query: Query, now: float, actions: list[Action]) -> None:
        self._rebuild_if_due(query, now, actions)
        if not query.open or query.in_flight:  # a copy may still answer
            return
        if query.group is not None:
            self._review(query.group, actions)
        elif not query.late:
            self._fail(query, Reason.FAILED, actions)

    def _leave_behind(self, task: Task, now: float, actions: list[Action]) -> None:
        """Its endpoint is gone. What it was for is asked for elsewhere; where there is no elsewhere it may yet come."""
        query, group = task.query, task.group
        pool = self._fleet.pools.get(task.endpoint.pool)
        if group is not None and group.on_trial:
            task.lost = True
            if pool is not None:
                pool.trials.drop(group)
        elif task.kind is Kind.DEPLOYED:
            assert query is not None
            if pool is not None and pool.deployed and pool.pool.repeatable:
                task.lost = True
                query.in_flight -= 1
                self._deployed_failed(task, query, GONE, now, actions)
        elif task.kind is Kind.PROTECTION:
            assert group is not None
            assert task.row is not None
            task.lost = True
            group.flying -= 1
            if pool is not None and pool.may_launch(group, task.row):
                pool.protections.appendleft((group, task.row))
            else:
                self._protection_lost(group, task.row, actions)
        else:
            assert query is not None
            task.lost = True
            query.finishes_pending -= 1
            query.finish_attempts -= 1
            if query.open and not self._queue_finish(query) and query.group is not None:
                self._review(query.group, actions)

    def _protection_lost(self, group: CodingGroup, row: int, actions: list[Action]) -> None:
        group.pending_rows.discard(row)
        if not group.done:
            self._review(group, actions)

    def _finish_lost(self, query: Query, actions: list[Action]) -> None:
        query.finishes_pending -= 1
        query.finish_attempts = MAX_FINISHES
        if query.group is not None:
            self._review(query.group, actions)

    # ---- the race --------------------------------------------------------------------------------------------------

    def _rebuild_what_is_due(self, group: CodingGroup, now: float, actions: list[Action]) -> None:
        if group.unanswered == 0 or not group.covers:
            return
        if not group.usable:  # any more
            self._review(group, actions)
            return
        recoverable = group.recoverable()
        for query in [*group.open_members()]:
            if query.slot in recoverable:
                self._rebuild(query, group, now, actions)

    def _rebuild_if_due(self, query: Query, now: float, actions: list[Action]) -> None:
        group = query.group
        if group is not None and query.slot in group.recoverable():
            self._rebuild(query, group, now, actions)

    def _rebuild(self, query: Query, group: CodingGroup, now: float, actions: list[Action]) -> None:
        """Use the rebuilt answer, if the query may have it and its time has come."""
        if not (Release.is_due(query, now) and self._may_be_rebuilt(query, group)):
            return
        if group.code.family == "backup":
            task = next(group.protections[row] for row, slots in group.covers.items() if query.slot in slots)
            self._answer(query, Source.RECONSTRUCTED, task, actions)
            return
        self._queue_finish(query)

    def _review(self, group: CodingGroup, actions: list[Action]) -> None:
        """Fail the members for whom nothing can come any more."""
        for query in [*group.open_members()]:
            if query.in_flight or query.finishes_pending or query.state is QueryState.WAITING:
                continue
            if not (self._may_be_rebuilt(query, group) and group.could_recover(query.slot)):
                if query.displaced and self._queue_again(query):  # its backup ran first, and failed
                    continue
                if query.displaced and query.kills == 1 and group.flying:  # not before that has ended
                    continue
                self._fail(query, Reason.FAILED, actions)

    def _may_be_rebuilt(self, query: Query, group: CodingGroup) -> bool:
        pool = self._fleet.pools.get(query.pool)
        return Release.may_be_rebuilt(query, group, pool is not None and pool.can_finish)

    def _arm_query(self, query: Query) -> None:
        """One timer a query: for what comes next."""
        assert query.deadline_at is not None
        at = query.deadline_at
        if query.launch_at < at:
            at = query.launch_at
        if query.hedge_at < at:
            at = query.hedge_at
        if query.choosy_until and query.choosy_until < at:
            at = query.choosy_until
        if query.release_at < at and not query.released and (query.late or query.group is not None):
            at = query.release_at
        if query.state is QueryState.WAITING and not query.attempts and not query.in_flight:
            pool = self._fleet.pools.get(query.pool)
            if pool is not None:
                pool.admission.judge_time(query)
                at = min(at, pool.admission.waits_until(query), max(query.arrived_at, query.start_by))
        query.armed_at = at
        self._timers.arm(at, Timer.QUERY, query)

    def _query_timer(self, kind: Timer, at: float, query: Query, now: float, actions: list[Action]) -> None:
        if kind is Timer.FINISH:
            self._queue_finish(query)
        elif at == query.armed_at:  # else it was armed anew
            self._query_due(query, now, actions)

    def _query_due(self, query: Query, now: float, actions: list[Action]) -> None:
        assert query.deadline_at is not None
        pool = self._fleet.pools.get(query.pool)
        if (
            query.state is QueryState.WAITING
            and not query.attempts
            and not query.in_flight
            and pool is not None
            and now >= pool.admission.waits_until(query)
        ):
            pool.admission.patience.stayed(now - query.arrived_at)
            self._fail(query, Reason.OVERLOADED, actions)
            return
        if pool is not None and now >= query.launch_at:
            self._launch(pool, query)
        if pool is not None and now >= query.hedge_at:
            pool.hedges[query.id] = query
        if pool is not None and query.state is QueryState.WAITING and pool.admission.is_hopeless(query, now):
            self._refuse_late(pool, query, now, actions)
            return
        query.launch_at = math.inf if now >= query.launch_at else query.launch_at
        query.hedge_at = math.inf if now >= query.hedge_at else query.hedge_at
        if query.choosy_until and now >= query.choosy_until:
            query.choosy_until = 0.0
            if pool is not None and not query.owes and pool.retries.pop(query.id, None) is not None:
                pool.to_the_front(query)  # from now on any place will do
        if now >= query.release_at:
            query.released = True
            self._rebuild_if_due(query, now, actions)
        if not query.open:
            return
        if now < query.deadline_at:
            self._arm_query(query)
        elif self.policy.default_answer:
            self._answer(query, Source.DEFAULT, None, actions)
        else:
            reason = Reason.DEADLINE
            if pool is None:
                reason = Reason.NO_ENDPOINT
            elif query.rests_until and query.state is QueryState.WAITING:
                reason = Reason.FAILED  # nobody was there to ask
            self._fail(query, reason, actions)

    # ---- the end of a query ----------------------------------------------------------------------------------------

    def _answer(self, query: Query, source: Source, task: Task | None, actions: list[Action]) -> None:
        self.answered[source._value_] += 1
        if query.in_flight:
            query.given = task
        actions.append(Answer(query, source, task))
        self._close(query, actions)

    def _fail(self, query: Query, reason: Reason, actions: list[Action]) -> None:
        if query.set_aside is not None:  # a doubtful answer is one
            self._answer(query, Source.HEDGED if query.set_aside.hedge else Source.DEPLOYED, query.set_aside, actions)
            return
        self.failed[reason._value_] += 1
        actions.append(Fail(query, reason, query.last_failure))
        self._close(query, actions)

    def _close(self, query: Query, actions: list[Action]) -> None:
        waited = query.state is QueryState.WAITING
        if waited:
            pool = self._fleet.pools.get(query.pool)
            if pool is not None:
                pool.leave_line(query)
        if query.late or query.hedge_at == math.inf:  # only then can it stand in one of these lines
            pool = self._fleet.pools.get(query.pool)
            if pool is not None:
                pool.late.pop(query.id, None)
                pool.hedges.pop(query.id, None)
        query.state = QueryState.DONE
        if query.trial is not None and not query.in_flight:
            self._lost_for_trial(query)
        self._live.pop(query.id, None)
        group = query.group
        query.group = query.last_failure = query.set_aside = None  # no cycles: nothing is left to the garbage collector
        if group is not None:
            group.member_done()
            if waited and not group.done:  # its own answer, which a neighbour may have waited for, comes no more
                self._review(group, actions)

    # ---- small print -----------------------------------------------------------------------------------------------

    def _note_health(self, task: Task, outcome: Outcome, now: float) -> None:
        place = task.place
        health = place.health
        if isinstance(outcome, Arrived):
            if outcome.error and place.record.suspect and task.kind is Kind.DEPLOYED:
                if health.condition is Condition.TRIAL:  # it goes on when a peer has answered the query, or later
                    health.pause(now + self.policy.out_s)
                    self._health_changed(place, Condition.TRIAL, "", now)
                return
            slow = self.policy.slow_factor and task.kind is Kind.DEPLOYED and self._was_slow(task, now)
            if health.untroubled and not slow:
                return
            before, why = health.condition, f"its answers come over {self.policy.slow_factor:g} times later than usual"
            if slow:
                pool = self._fleet.pools[task.endpoint.pool]
                health.was_slow(now, self.policy.slow_until_out, pool.ejection.may_take_out())
            else:
                health.succeeded()
        else:
            before, why = health.condition, ""
            if isinstance(outcome, Rejected):
                health.pause(now + self.policy.reject_pause_s)
            elif outcome.retry:
                why = outcome.reason
                place.failures += 1
                health.failed(now)
            else:
                health.undecided()
        self._health_changed(place, before, why, now)

    def _health_changed(self, place: EndpointState, before: Condition, why: str, now: float) -> None:
        health = place.health
        self._note_change(place, before, why)
        place.peers.count(before, health.condition)
        if health.resumes_at > now:
            place.peers.park(place)
            self._timers.arm(health.resumes_at, Timer.RESUME, place)
        else:
            place.peers.unpark(place)
            if not health.clean and not self._probes(place):
                self._timers.arm(now + self.policy.out_s, Timer.RESUME, place)
        place.host.judge()

    def _note_change(self, place: EndpointState, before: Condition, why: str) -> None:
        """Told once when it is taken out and once when it is back, however many trials are between."""
        after = place.health.condition
        if after is Condition.OUT:
            place.why = why or place.why
        if (before is Condition.IN) is not (after is Condition.IN):
            out = after is not Condition.IN
            place.ejections += out
            self.changes.append(HealthChange(place.name, out, place.why))
        if after is Condition.IN:
            place.why = ""

    def _probes(self, place: EndpointState) -> bool:
        """Whether it comes back by a second copy of some query, so that none has to wait for what it does."""
        if place.health.condition is Condition.IN or self.policy.hedge_ratio == 0 or place.endpoint.row is not None:
            return False
        pool = self._fleet.pools.get(place.endpoint.pool)
        return pool is not None and pool.pool.repeatable and not pool.repeats.reason

    def _was_slow(self, task: Task, now: float) -> bool:
        pool = self._fleet.pools.get(task.endpoint.pool)
        return pool is not None and pool.ejection.is_slow(now - task.sent_at)

    def open_queries(self) -> int:
        return len(self._live)

    def in_flight(self) -> int:
        return self._in_flight

    def pools(self) -> Iterator[PoolState]:
        return iter(self._fleet.pools.values())

    def snapshot(self) -> dict[str, object]:
        """For people and metrics: queues, places, groups, counters."""
        return {
            "open_queries": len(self._live),
            "in_flight": self._in_flight,
            "load": round(max((pool.load.value for pool in self._fleet.pools.values()), default=0.0), 3),
            "retry_tokens": round(self._retries.budget.tokens, 3),
            "sent": dict(self.sent),
            "answered": dict(self.answered),
            "failed": dict(self.failed),
            "pools": {
                name: {
                    "waiting": len(pool.waiting) + len(pool.retries),
                    "load": round(pool.load.value, 3),
                    "open_groups": sum(len(groups) for groups in pool.placement.open_groups.values()),
                    "late": len(pool.late),
                    "queued_protections": sum(not group.done for group, _ in pool.protections),
                    "reconstruct_after_s": pool.release.after_s,
                    "trust": None if pool.trust is None or pool.code is None else pool.trust.told(),
                    "copies": pool.repeats.told(),
                    "group_wait_s": pool.placement.wait_s,
                }
                for name, pool in self._fleet.pools.items()
            },
            "endpoints": {
                name: {
                    "pool": state.endpoint.pool,
                    "in_flight": state.in_flight,
                    "health": state.health.condition.value,
                    "why_out": state.why,
                    "failures": state.failures,
                    "ejections": state.ejections,
                }
                for name, state in self._fleet.endpoints.items()
            },
        }


def _head(pool: PoolState) -> Query:
    return pool.waiting[0]


def _share_taken(pool: PoolState) -> tuple[float, float]:
    return pool.in_flight() / max(pool.places, 1), _head(pool).arrived_at
