"""The life of a query, from its arrival to its one answer.

A query wants one prediction of its pool's model. Some instance is always slow, frozen or dead, and nothing tells which;
so a query may have several tasks, and the first good one to end answers it:

  - its *own task*: the deployed model on its own body. It has one at a time; one that fails may be tried again.
  - a *second copy*: the same, on an idle machine, when its own has taken longer than nearly all do.
  - its *protection*: the task of a coding group that it shares (launched with the group), or a backup of a few late
    queries (launched late). With what its neighbours have brought, it rebuilds the answer.
  - a *finish*: what a parity model rebuilds is a raw output, of which the user's code makes an answer.

No task is ever cancelled: servers run what they have accepted. So a task keeps its place until it ends, and what it
brings too late serves a neighbour, is compared with the answer that was given, or is dropped.

The state says where the query's *own attempt* stands. Copies, protections and finishes run beside it and need no state
of their own: `in_flight` counts its own task and its copies, `finishes_pending` its finishes, `late` says that a backup
is wanted or under way, its `group` knows what may still be rebuilt, and `held` is a rebuilt answer in too much doubt to
be given yet.

    new         has not arrived
    waiting     for any place, in the order of the pool's queue; its first place, or one after a rejection
    retrying    for a place elsewhere, or for a token of the retry budget, or for somebody to be there at all
    running     its own task is out
    postponed   its backup has got the place that it waited for, or a worker may have died of it while others still have
                it: its own attempt is due if what is out brings nothing
    relying     its own task is lost and not tried again: a copy, its backup or its group may still answer
    done        answered, failed or abandoned

    state       event                                                              next
    ----------  -----------------------------------------------------------------  ---------
    new         arrived    the proxy has it; admission says whether it may wait     waiting
    waiting     sent       a place is free and it is next (selection, admission)    running
                put off    its backup goes first (launch), or others may die of it  postponed
                ended      too late or too many (admission), no endpoint, left      done
    retrying    sent       an endpoint elsewhere is free and its token is there     running
                any place  it has waited for one elsewhere for as long as is late   waiting
                put off    its backup goes first (launch), or others may die of it  postponed
                ended      deadline, no endpoint, rebuilt, a copy answered, left    done
    running     again      rejected, so nothing was run; or any place will do       waiting
                elsewhere  it has failed, and is tried again (retries)              retrying
                put off    it may have killed a worker, and others have it          postponed
                lost       it has failed for good                                   relying
                ended      answered, by whichever task; deadline, left              done
    postponed   again      what was out has brought nothing                         waiting
                elsewhere  its copy has failed, and it is tried again (retries)     retrying
                ended      rebuilt, a copy answered; deadline, left                 done
    relying     again      its copy has failed, and any place will do               waiting
                elsewhere  its copy has failed, and it is tried again (retries)     retrying
                put off    its copy may have killed a worker, and others have it    postponed
                ended      rebuilt, a copy answered; nothing can come; left         done

What a rule decides stands in the rule's file: admission (which may wait, which is next), selection (which endpoint),
placement (which group), launch and hedging (when more is sent), release (when a rebuilt answer may be used), accuracy
(how many may differ), retries, budgets, ejection and suspicion (which endpoints are left alone), trust (which
protections may answer at all). Here they are composed.

Time moves a query too. One timer a query is armed, for the earliest of: launch, second copy, the end of being choosy,
release, the latest start, and its deadline, at which it is answered by default or fails.

What is promised (tests/engine/test_invariants.py checks each on random interleavings):

  1. Every query gets exactly one Answer or Fail, or was abandoned by its client.
  2. A rebuilt answer may be used only if the code can recover the slot from what has arrived, and `reconstruct_after`
     has passed since the query was sent or its own task failed. Never for a query that refuses it, unless the code is
     lossless. A rebuilt answer comes only from a protection in use (see `trust`), and is given only while its doubt is
     within the accuracy budget.
  3. A protection that fails never fails a query.
  4. Work in flight never exceeds an endpoint's places, nor those that a pool has on an instance, nor an instance's
     places where an operator has set them; by at most `spare_places` while its oldest task is overdue. A protection
     starts only where the instance, with all its models, has a place left.
  5. Retries and second copies never exceed their budgets, and a second copy is sent only to an idle instance while no
     query waits. What an instance's death takes with it is no retry: a query that could not connect goes elsewhere for
     nothing, and so does, once, one whose connection broke. If an operator changes the budgets, each covers the
     queries that came under it.
  6. A query that a worker may have died of is sent at most once more, protections, second copies and finishes included.
     One under which the connections to two instances broke is not sent at all.
  7. Memory is bounded by the work waiting and in flight: when all is done, nothing is left.
  8. The same events at the same times give the same actions.

A late event is normal and is ignored. An event that makes no sense raises and changes nothing.

Knows queries, tasks and groups. Knows nothing of arrays, sockets or clocks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from enum import IntEnum
from itertools import chain
from typing import Final

from ts_parity.engine.admission import Verdict
from ts_parity.engine.budgets import KEPT_FROM_PROBES, work_budget
from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.events import Arrived, Blame, Cause, Code, Failed, Kind, Outcome, Reason, Rejected, Source
from ts_parity.engine.fleet import FleetState, PoolState
from ts_parity.engine.policy import Policy
from ts_parity.engine.proving import Proving
from ts_parity.engine.query import Action, Answer, CodingGroup, Compare, Fail, Query, QueryState, Task
from ts_parity.engine.release import MAX_FINISHES, Release
from ts_parity.engine.retries import Retries, Retry
from ts_parity.engine.sending import Sender
from ts_parity.engine.suspicion import Suspicion
from ts_parity.engine.timers import Timer, Timers
from ts_parity.engine.trust import Standing


class Event(IntEnum):
    """What moves a query from one state to another."""

    ARRIVED = 0
    SENT = 1
    PUT_OFF = 2
    ANY_PLACE = 3
    AGAIN = 4
    ELSEWHERE = 5
    LOST = 6
    ENDED = 7


# By name, since a query moves three times and looking for an attribute of a class takes its time.
ARRIVED: Final = Event.ARRIVED
SENT: Final = Event.SENT
PUT_OFF: Final = Event.PUT_OFF
ANY_PLACE: Final = Event.ANY_PLACE
AGAIN: Final = Event.AGAIN
ELSEWHERE: Final = Event.ELSEWHERE
LOST: Final = Event.LOST
ENDED: Final = Event.ENDED

TABLE: Final[Mapping[QueryState, Mapping[Event, QueryState]]] = {
    QueryState.NEW: {ARRIVED: QueryState.WAITING},
    QueryState.WAITING: {
        SENT: QueryState.RUNNING,
        PUT_OFF: QueryState.POSTPONED,
        ENDED: QueryState.DONE,
    },
    QueryState.RETRYING: {
        SENT: QueryState.RUNNING,
        ANY_PLACE: QueryState.WAITING,
        PUT_OFF: QueryState.POSTPONED,
        ENDED: QueryState.DONE,
    },
    QueryState.RUNNING: {
        AGAIN: QueryState.WAITING,
        ELSEWHERE: QueryState.RETRYING,
        PUT_OFF: QueryState.POSTPONED,
        LOST: QueryState.RELYING,
        ENDED: QueryState.DONE,
    },
    QueryState.POSTPONED: {
        AGAIN: QueryState.WAITING,
        ELSEWHERE: QueryState.RETRYING,
        ENDED: QueryState.DONE,
    },
    QueryState.RELYING: {
        AGAIN: QueryState.WAITING,
        ELSEWHERE: QueryState.RETRYING,
        PUT_OFF: QueryState.POSTPONED,
        ENDED: QueryState.DONE,
    },
    QueryState.DONE: {},
}


def move(query: Query, event: Event) -> None:
    """Raise ValueError, and change nothing, if the event makes no sense in the query's state."""
    after = TABLE[query.state].get(event)
    if after is None:
        raise ValueError(f"{query!r}: {event.name.lower()} makes no sense")
    query.state = after


GONE: Final = Failed("its endpoint is gone", cause=Cause.GONE)
AS_LONG: Final = 2.0
"""A query that breaks connections breaks each after about the same time. So before a third instance gets it, the second
has had it for this many times as long as the first."""


class Life:
    """Of all queries of one proxy. When something has happened to one of them, the rules say what comes next."""

    def __init__(self, policy: Policy, fleet: FleetState, timers: Timers, sender: Sender) -> None:
        self.policy = policy
        self._fleet = fleet
        self._timers = timers
        self._sender = sender
        self.suspicion = Suspicion(policy, fleet, timers)
        self.proving = Proving(policy, fleet, timers, sender)
        self.retries = Retries(policy)
        self.work = work_budget(policy)
        self.live: dict[int, Query] = {}
        # Not a Counter, to which adding takes several times as long.
        self.answered: defaultdict[str, int] = defaultdict(int)
        self.failed: defaultdict[str, int] = defaultdict(int)

    def adopt(self, policy: Policy, now: float, actions: list[Action]) -> None:
        """For what happens from now on: a query that is under way keeps the instants that it was given."""
        self.policy = self.proving.policy = policy
        self.suspicion.adopt(policy, now)
        self.retries.adopt(policy)
        self.work.adopt(work_budget(policy))
        for pool in self._fleet.pools.values():
            for query in [*pool.retries.values()]:
                if query.owes and self.retries.budget.wait_s(0) == math.inf:
                    self._give_up_debt(query, actions)

    def _give_up_debt(self, query: Query, actions: list[Action]) -> None:
        """There will be no token for its retry. Something else may still answer it."""
        group = query.group
        rebuilt = query.finishes_pending or query.held is not None
        rebuilt = rebuilt or (group is not None and not group.done and group.could_recover(query.slot))
        if not (query.in_flight or query.late or rebuilt):
            self.fail(query, Reason.FAILED, actions)

    # ---- it comes ----------------------------------------------------------------------------------------------------

    def arrived(self, query: Query, now: float) -> None:
        query.arrived_at = now
        if query.deadline_at is None:
            query.deadline_at = now + self.policy.deadline_s
        self.live[query.id] = query
        move(query, ARRIVED)
        self.retries.budget.deposit()
        pool = self._fleet.pool_of(query.pool)
        pool.asked_at = now
        query.scale = pool.scales.of(query.size)
        if self.policy.extra_work:
            self.work.deposit(query.scale)
        if self.policy.differing < 1.0:
            pool.release.budget.deposit()

    def may_wait(self, pool: PoolState, query: Query, now: float, actions: list[Action]) -> bool:
        """Whether one more may join those that wait. Where the newest goes first, the oldest makes room for it."""
        verdict = pool.admission.judge(query, pool.waiting[0], len(pool.waiting), now)
        if verdict is Verdict.MAKE_ROOM:
            self.refuse_late(pool, pool.waiting[0], now, actions)
        return verdict is not Verdict.REFUSE

    def refuse_late(self, pool: PoolState, query: Query, now: float, actions: list[Action]) -> None:
        """It has waited in vain, and fails before its time is up: another service may still help its client."""
        assert query.deadline_at is not None
        pool.admission.refused(query, now)
        self.turn_away(query, Reason.OVERLOADED if now < query.deadline_at else Reason.DEADLINE, actions)

    def turn_away(self, query: Query, reason: Reason, actions: list[Action]) -> None:
        """No prediction will come in time."""
        if self.policy.default_answer:
            self.answer(query, Source.DEFAULT, None, actions)
        else:
            self.fail(query, reason, actions)

    # ---- it is sent --------------------------------------------------------------------------------------------------

    def dispatch(self, pool: PoolState, query: Query, place: EndpointState, now: float, actions: list[Action]) -> None:
        move(query, SENT)
        query.attempts += 1
        query.in_flight += 1
        if query.kills:
            query.last_chance = True
        query.avoid = query.avoid | place.only if query.avoid else place.only
        query.domain = place.domain
        pool.load.add(pool.in_flight() + len(pool.waiting), pool.places)
        sealed = None
        if query.release_at == math.inf:  # the first dispatch; a rejected query comes here again, in its group already
            late_at = now + pool.launch.latest.bound(pool.release.after_s, query.scale)
            query.release_at = min(late_at, pool.target.release_by(query.arrived_at))
            if pool.code is not None and pool.rows and query.key is not None:
                if not pool.protecting:
                    self.proving.try_protection(pool, query, place.domain, now)
                elif pool.launch.late:
                    late_at = now + pool.launch.latest.bound(pool.launch.after_s, query.scale)
                    query.launch_at = min(late_at, pool.target.launch_by(query.arrived_at, now, query.scale))
                else:
                    sealed = self._join(pool, query, place.domain, now)
            if self.policy.copies and pool.may_copy(now):
                query.hedge_at = now + pool.hedging.after_s(query.launch_at - now, query.scale)
            self.arm(query)
        self._sender.send(Kind.DEPLOYED, place, query, query.group, query.slot, None, now, actions)
        if sealed is not None:
            self.seal(sealed, actions)
        if query.broke:
            hedge_at = now if pool.hedges.pop(query.id, None) is not None else query.hedge_at
            query.hedge_at = max(hedge_at, now + AS_LONG * query.broke_s)
            self.arm(query)
        kept = query.kills or query.broke or not self.policy.copies
        if pool.deployed.trials and not (kept or pool.is_pressed(now)):
            probe = pool.selection.for_probe(query, now) if pool.may_copy(now) else None
            if probe is not None and self.pays_for_copy(query, KEPT_FROM_PROBES):
                self.send_copy(query, probe, now, actions)

    def pays_for_copy(self, query: Query, reserve: float) -> bool:
        """Whether there is a token; what more a big query costs is owed, or there might never be enough for one."""
        if not self.work.take(1.0, reserve):
            return False
        self.work.spend(query.scale - 1.0)
        return True

    def send_copy(self, query: Query, place: EndpointState, now: float, actions: list[Action]) -> None:
        query.in_flight += 1
        query.copied_at = now
        query.avoid |= place.only
        self._sender.sent["hedge"] += 1
        self._sender.send(Kind.DEPLOYED, place, query, query.group, query.slot, None, now, actions, hedge=True)

    def _join(self, pool: PoolState, query: Query, domain: str, now: float) -> CodingGroup | None:
        """-> the group, if this was its last member: it is full, or no other is expected in time."""
        assert pool.code is not None
        pool.placement.gap.arrived(now)
        group = pool.placement.group_for(query.key, domain)
        if group is None:
            group = CodingGroup(
                self._sender.next_id(), query.key, pool.code, now + pool.placement.wait_s, pool.trust, now
            )
            pool.placement.open(group)
            self._timers.arm(group.closes_at, Timer.SEAL, group)
        group.join(query, domain)
        return None if not group.full and pool.placement.expects_member(group, now) else group

    def seal(self, group: CodingGroup, actions: list[Action]) -> None:
        """No more members; launch the protections, unless everybody has an answer already."""
        if group.sealed:
            return
        if group.on_trial:
            self.proving.seal_trial(group)
            return
        group.sealed = True
        pool = self._fleet.pool_of_group(group)
        pool.placement.close(group)
        if group.unanswered == 0:
            group.retire()
            return
        # Nothing protects it, and no query joins it any more.
        if not pool.rows or not group.usable or (not group.full and not pool.pool.partial):
            group.retire()
            self.review(group, actions)
            return
        shed = pool.launch.sheds
        for row in range(0 if shed else group.code.r):
            if pool.may_launch(group, row):
                group.pending_rows.add(row)
                pool.protections.append((group, row))
                pool.protections_blocked = False
        if not group.pending_rows:
            self.review(group, actions)

    def launch(self, pool: PoolState, query: Query) -> None:
        """A backup for a query that is late: it waits for a place with the other late ones."""
        due, query.launch_at = query.launch_at, math.inf
        if pool.code is None or not pool.protected or not pool.launch.suits(query, pool.code):
            return
        query.late = True
        pool.late[query.id] = query
        if query.waiting:
            query.release_at = min(query.release_at, due)

    def launch_now(
        self,
        pool: PoolState,
        code: Code,
        first: Query,
        place: EndpointState,
        row: int,
        now: float,
        actions: list[Action],
    ) -> None:
        """As many late queries as the code takes go together."""
        group = CodingGroup(self._sender.next_id(), first.key, code, math.inf, pool.trust, now)
        for query in [first, *(each for each in pool.late.values() if each is not first)]:
            fits = query.key == first.key and query.domain != place.domain and not group.full
            if query is first or (fits and (query.waiting or self.work.affords(pool.pool.cost))):
                group.join(query, query.domain)
                del pool.late[query.id]
                if query.waiting:  # a place for its backup is worth more than one for itself, and costs less
                    pool.leave_line(query)
                    move(query, PUT_OFF)
                else:
                    self.work.spend(query.scale * pool.pool.cost)
        group.sealed = True
        group.pending_rows.add(row)
        self._sender.sent["late"] += group.size
        group.protection_sent(row)
        self._sender.send(Kind.PROTECTION, place, None, group, None, row, now, actions)

    def send_finish(
        self, pool: PoolState, query: Query, place: EndpointState, now: float, actions: list[Action]
    ) -> None:
        if query.kills:
            query.last_chance = True
        query.avoid |= place.only
        self._sender.send(Kind.FINISH, place, query, query.group, query.slot, None, now, actions)
        # The endpoint may be frozen and not known to be: then a second one is asked.
        self._timers.arm(now + pool.release.after_s, Timer.FINISH, query)

    # ---- its own task has ended --------------------------------------------------------------------------------------

    def own_ended(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        query, group = task.query, task.group
        assert query is not None
        if not task.lost:
            query.in_flight -= 1
        if query.given is not None:
            self.proving.compare_with_given(query, task, outcome, actions)
        if isinstance(outcome, Rejected):
            query.avoid -= task.place.only
        if isinstance(outcome, Arrived):
            query.refused = outcome.error
            pairs: list[Compare] = []
            pool = self._fleet.pools.get(query.pool)
            if pool is not None:  # a pool that is gone learns nothing
                pool.unreachable_since = math.inf
                if outcome.error or query.set_aside is not None:
                    if self._weigh_error(task, query, outcome, pool, now):
                        return
                else:
                    task.place.record.answered()
                if not outcome.error:  # an error's speed says nothing of what is usual
                    usual = pool.learn_latency(query, now - task.sent_at)
                    if usual != 1.0:
                        self._rescale(pool, query, usual)
                if query.trial is not None and pool.trust is not None:
                    pairs = pool.trials.own_arrived(query, task, outcome.raw, pool.trust, now)
                elif query.group is not None and not outcome.error:
                    pairs = self.proving.watch(query.group, pool, query.slot, task, now)
            if query.open:
                self.answer(query, Source.HEDGED if task.hedge else Source.DEPLOYED, task, actions)
            actions += pairs
            if group is not None and not group.done:
                if outcome.raw:
                    group.member_arrived(task)
                    self._rebuild_what_is_due(group, now, actions)
                else:
                    self.review(group, actions)
        elif not task.lost:
            self._own_failed(task, query, outcome, now, actions)

    def _rescale(self, pool: PoolState, query: Query, usual: float) -> None:
        """The usual latency has changed by this factor: rescale all that is open or in flight, save `query`."""
        others = {other.id: other for other in self.live.values() if other.pool == query.pool}
        for place in chain(pool.deployed.everyone, *(row.everyone for row in pool.rows.values())):
            for task in place.tasks.values():
                task.scale /= usual
                if isinstance(task, Task):
                    members = (task.query,) if task.group is None else task.group.members
                    others |= {member.id: member for member in members if member is not None}
        others.pop(query.id, None)
        for other in others.values():
            other.scale /= usual

    def _weigh_error(self, task: Task, query: Query, outcome: Arrived, pool: PoolState, now: float) -> bool:
        """Learn whose fault errors are; see `outliers`. -> whether this answer is set aside until a peer has spoken."""
        place, first = task.place, query.set_aside
        suspect, doubtful = False, outcome.error and outcome.blame is Blame.DOUBTFUL
        if not outcome.error:
            place.record.answered()
        elif outcome.blame is not Blame.CLIENTS:
            suspect = place.record.erred(*pool.ejection.peers_of(place)) or doubtful
        if first is not None:
            query.set_aside = None
            if first.place is place:
                return False
            if outcome.error:
                self.suspicion.acquit(first.place, now)
                if doubtful:  # they agree, so it is the query's
                    self.suspicion.acquit(place, now)
            elif first.place.record.proved(query.doubtful) and pool.ejection.may_convict(first.place):
                self.suspicion.convict(first.place, now)
            return False
        if not suspect or not query.open:
            return False
        if not query.in_flight and not query.waiting:
            if not self._may_ask_a_peer(query, pool, now):
                return False
            query.choosy_until = self.retries.choosy_until(query, pool.release.after_s, now)
            self._queue_again(query, choosy=True)
        elif query.state is QueryState.RUNNING and not task.hedge and not task.lost:
            move(query, LOST)  # a copy may have the better answer
        query.set_aside, query.doubtful = task, doubtful
        return True

    def _may_ask_a_peer(self, query: Query, pool: PoolState, now: float) -> bool:
        """It has an answer, if a doubtful one: so only at once, and within the budget."""
        query.avoid |= pool.ejection.suspects()
        if query.kills or not pool.pool.repeatable or not pool.selection.has_elsewhere(query):
            return False
        self.retries.budget.pass_time(now)
        queue = any(other.owes for other_pool in self._fleet.pools.values() for other in other_pool.retries.values())
        if queue or self.retries.budget.wait_s(0) or not self.retries.has_attempts(query):
            return False
        self.pay(query)
        return True

    def _own_failed(
        self, task: Task, query: Query, outcome: Failed | Rejected, now: float, actions: list[Action]
    ) -> None:
        group = task.group
        if query.open:
            if task.hedge and self._copy_is_simply_gone(query, outcome, now, actions):
                return
            if isinstance(outcome, Failed):
                query.last_failure = task
                query.release_at = now
                pool = self._fleet.pool_of(query.pool)
                if pool.launch.late:
                    self.launch(pool, query)
            if not self._try_again(query, task, outcome, now):
                self._give_up_on_own_task(query, now, actions)
                return
            self._rebuild_if_due(query, now, actions)
        elif group is not None and not group.done:
            self.review(group, actions)
        elif query.trial is not None and not query.in_flight:
            self.proving.own_lost(query)

    def _copy_is_simply_gone(self, query: Query, outcome: Outcome, now: float, actions: list[Action]) -> bool:
        """A copy has failed. Whether something else goes on for its query, or has ended before it."""
        if query.in_flight:
            return True
        if query.waiting:
            query.yields_until = 0.0
            self.arm(query)
        elif query.state is QueryState.POSTPONED and query.group is not None:
            self.review(query.group, actions)
        elif isinstance(outcome, Rejected):
            if not (query.state is QueryState.POSTPONED and self._queue_again(query)):
                self._give_up_on_own_task(query, now, actions)
        else:
            return False
        return True

    def leave_behind(self, task: Task, now: float, actions: list[Action]) -> None:
        """Its endpoint is gone. Its work goes elsewhere; with no other endpoint, its answer may still come."""
        query, group = task.query, task.group
        pool = self._fleet.pool_of(task.endpoint.pool)
        if group is not None and group.on_trial:
            task.lost = True
            pool.trials.drop(group)
        elif task.kind is Kind.DEPLOYED:
            assert query is not None
            if pool.deployed and pool.pool.repeatable:
                task.lost = True
                query.in_flight -= 1
                self._own_failed(task, query, GONE, now, actions)
        elif task.kind is Kind.PROTECTION:
            assert group is not None
            assert task.row is not None
            task.lost = True
            group.flying -= 1
            if pool.may_launch(group, task.row):
                pool.protections.appendleft((group, task.row))
            else:
                self.protection_lost(group, task.row, actions)
        else:
            assert query is not None
            task.lost = True
            query.finishes_pending -= 1
            query.finish_attempts -= 1
            if query.open and not self._queue_finish(query) and query.group is not None:
                self.review(query.group, actions)

    # ---- it is tried again -------------------------------------------------------------------------------------------

    def _try_again(self, query: Query, task: Task, outcome: Outcome, now: float) -> bool:
        """Queue the query again: it has waited longest. A rejection costs no budget: nothing was run."""
        pool = self._fleet.pool_of(query.pool)
        if not pool.deployed:
            return False
        elsewhere = pool.selection.has_elsewhere(query)
        if isinstance(outcome, Failed):
            if not self._may_retry(query, task, outcome, pool, elsewhere, now):
                return False
            query.choosy_until = self.retries.choosy_until(query, pool.release.after_s, now)
            if outcome.cause is Cause.LOST and query.in_flight:
                query.yields_until = now + AS_LONG * max(0.0, query.copied_at - task.sent_at)
                query.choosy_until = max(query.choosy_until, query.yields_until)
            if outcome.cause is Cause.UNREACHABLE and not elsewhere:
                pool.unreachable_since = min(pool.unreachable_since, now)
                rest_until = self.retries.rest_until(query, pool.unreachable_since, now)
                if rest_until == math.inf:
                    return False
                query.choosy_until = query.rests_until = rest_until
        else:
            query.attempts -= 1
            query.last_chance = False
            self._rest_after_rejections(query, task, pool, now)
        return self._queue_again(query, self.retries.is_choosy(query, elsewhere, now))

    def _rest_after_rejections(self, query: Query, task: Task, pool: PoolState, now: float) -> None:
        """All have rejected it. They may all be full, or it is the query that they do not take (its client has had its
        share, say), and then it must not stand in the others' way.
        """
        query.rejections += 1
        rounds = query.rejections - len(pool.deployed)
        if rounds >= 0:
            query.last_failure = task
            query.yields_until = query.rests_until = query.choosy_until = self.retries.rest_after(rounds, now)

    def _may_retry(
        self, query: Query, task: Task, outcome: Failed, pool: PoolState, elsewhere: bool, now: float
    ) -> bool:
        """Whether a failed query is tried again, now or as soon as the budget allows."""
        verdict = self.retries.judge(query, outcome, pool.pool.repeatable, task.hedge)
        if verdict is Retry.OWES:
            ahead = sum(other.owes for each in self._fleet.pools.values() for other in each.retries.values())
            group = query.group
            hopeful = elsewhere or (group is not None and group.could_recover(query.slot))
            verdict = self.retries.pay(query, ahead, hopeful, now)
        if verdict is Retry.FREE:
            self._sender.sent["moved"] += 1
        elif verdict is Retry.PAID:
            self._sender.sent["retry"] += 1
        elif verdict is Retry.LATER:
            move(query, PUT_OFF)
        return verdict not in (Retry.NO, Retry.LATER)

    def pay(self, query: Query) -> None:
        """For a retry."""
        self.retries.settle(query)
        self._sender.sent["retry"] += 1

    def _queue_again(self, query: Query, choosy: bool = False) -> bool:
        """At the head of those that wait for any place; or, if it may not have just any now, in a line beside it."""
        pool = self._fleet.pool_of(query.pool)
        if not pool.deployed or (query.kills and not query.may_run()):
            return False
        if query.state is QueryState.POSTPONED:  # its backup did not run in its stead after all
            self.work.spend(query.scale * pool.pool.cost)
        if choosy or query.owes:
            move(query, ELSEWHERE)
            pool.retries[query.id] = query
        else:
            move(query, AGAIN)
            pool.to_the_front(query)
        self.arm(query)
        return True

    def _give_up_on_own_task(self, query: Query, now: float, actions: list[Action]) -> None:
        if query.state is QueryState.RUNNING:
            move(query, LOST)
        self._rebuild_if_due(query, now, actions)
        if not query.open or query.in_flight:  # a copy may still answer
            return
        if query.group is not None:
            self.review(query.group, actions)
        elif not query.late:
            self.fail(query, Reason.FAILED, actions)

    # ---- its protection has ended ------------------------------------------------------------------------------------

    def protection_ended(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        group = task.group
        assert group is not None
        assert task.row is not None
        if not task.lost:
            group.flying -= 1
        if isinstance(outcome, Arrived):
            group.note_agreement(outcome)
            pool = self._fleet.pool_of(task.endpoint.pool)
            pool.backup_latency.add((now - task.sent_at) / group.scale)
        if group.on_trial:
            self.proving.trial_ended(task, outcome, now, actions)
            self.withdraw_if_out(self._fleet.pool_of_group(group), actions)
            return
        if group.trust is not None and not group.trust.proved:
            self.proving.note_use(group.trust, group, outcome, now)
            self.withdraw_if_out(self._fleet.pool_of(task.endpoint.pool), actions)
        if group.own is not None:
            self.proving.watched(group, task, outcome, now, actions)
        if group.done:
            return
        if isinstance(outcome, Arrived):
            group.protection_arrived(task, outcome.covers)
            self._rebuild_what_is_due(group, now, actions)
            self.review(group, actions)
        elif task.lost:
            return
        elif isinstance(outcome, Rejected):
            pool = self._fleet.pool_of(task.endpoint.pool)
            if not pool.may_launch(group, task.row):
                self.protection_lost(group, task.row, actions)
            else:
                pool.protections.appendleft((group, task.row))
        else:
            self.protection_lost(group, task.row, actions)

    def protection_lost(self, group: CodingGroup, row: int, actions: list[Action]) -> None:
        group.pending_rows.discard(row)
        if not group.done:
            self.review(group, actions)

    def withdraw_if_out(self, pool: PoolState, actions: list[Action]) -> None:
        """A protection that is not in use any more answers no query: one that has nothing else to wait for fails.
        What of it is still under way is of no use when it arrives.
        """
        if pool.trust is not None and pool.trust.standing is Standing.OUT:
            pool.trials.clear()
        was, pool.protecting = pool.protecting, pool.trust is not None and pool.trust.in_use
        if was and not pool.protecting:
            self.give_up_launches(pool, actions)
            for group, row in [*pool.protections]:
                if not group.usable:
                    pool.protections.remove((group, row))
                    self.protection_lost(group, row, actions)
            for query in [*self.live.values()]:
                held_by = query.group
                if query.held is not None and held_by is not None and not held_by.usable:
                    query.held = None
                    self.review(held_by, actions)

    def give_up_launches(self, pool: PoolState, actions: list[Action]) -> None:
        """There is no protection any more: a query that has nothing else to wait for fails."""
        for query in [*pool.late.values()]:
            del pool.late[query.id]
            query.late = False
            if query.open and not query.in_flight and not query.waiting:
                self.fail(query, Reason.FAILED, actions)

    # ---- a worker died of it, perhaps --------------------------------------------------------------------------------

    def broke_again(self, task: Task, now: float) -> bool:
        """The connection broke. Whether it is the second instance that this happens to with the query, and after about
        as long as the first: then it runs no more, in whatever form, and what still has it may answer it.
        """
        query, instance = task.query, task.endpoint.instance
        if query is None:
            return False
        had_it_s = now - task.sent_at
        if not query.broke:
            query.broke, query.broke_s = instance, had_it_s
        if query.broke == instance or AS_LONG * had_it_s < query.broke_s:  # as many connections break at once
            return False
        query.kills = max(query.kills, 1)
        return True

    def suspect_queries(self, task: Task) -> list[Query]:
        """A worker died of a query it had, perhaps, and the same body would kill the next. So none of them is copied or
        put into a protection's group any more, and it runs at most once more: see `Query.may_run`.
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
            pool = self._fleet.pool_of(query.pool)
            pool.hedges.pop(query.id, None)
            query.late = pool.late.pop(query.id, None) is None and query.late
            if query.waiting or query.state is QueryState.POSTPONED:  # what it runs once more is its own attempt
                while query in pool.finishes:
                    pool.finishes.remove(query)
                    query.finishes_pending -= 1
            if query.trial is not None:
                pool.trials.drop(query.trial)
        if group is not None:
            pool = self._fleet.pool_of(task.endpoint.pool)
            for queued, row in [*pool.protections]:
                if queued is group and not pool.may_launch(group, row):
                    pool.protections.remove((group, row))
                    group.pending_rows.discard(row)
        return suspects

    def review_suspects(self, task: Task, suspects: list[Query], actions: list[Action]) -> None:
        """Something may have been taken from them that they had waited for."""
        for query in suspects:
            if query.waiting and not query.may_run():
                self._fleet.pool_of(query.pool).leave_line(query)
                move(query, PUT_OFF)
                if query.group is not None:
                    self.review(query.group, actions)
        if task.group is not None and not task.group.done:
            self.review(task.group, actions)
        for query in suspects:
            alone = query.group is None and query.open and not query.waiting
            if alone and not (query.in_flight or query.late):
                self.fail(query, Reason.FAILED, actions)

    # ---- it is rebuilt -----------------------------------------------------------------------------------------------

    def _rebuild_what_is_due(self, group: CodingGroup, now: float, actions: list[Action]) -> None:
        if group.unanswered == 0 or not group.covers:
            return
        if not group.usable:  # any more
            self.review(group, actions)
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
        if not Release.is_due(query, now):
            return
        if query.held is not None and group.usable:
            self._give_rebuilt(query, group, query.held, now, actions)
        elif not self._may_be_rebuilt(query, group):
            self._copy_at_once(query, now)
        elif group.code.family == "backup":
            task = next(group.protections[row] for row, slots in group.covers.items() if query.slot in slots)
            self._give_rebuilt(query, group, task, now, actions)
        else:
            self._queue_finish(query)

    def _give_rebuilt(self, query: Query, group: CodingGroup, task: Task, now: float, actions: list[Action]) -> None:
        """Answer the query, if it is late enough for the doubt that there is. Else hold the answer, and have the query
        run: a second copy at once, or its own attempt, if that had given way to the backup.
        """
        pool = self._fleet.pool_of(query.pool)
        doubt = pool.release.doubt(query, group)
        at = query.release_at + pool.release.wait_s(doubt)
        if now >= at:
            pool.release.budget.spend(doubt)
            self.answer(query, Source.RECONSTRUCTED, task, actions)
            return
        if query.held is None:
            self._copy_at_once(query, now)
            if query.state is QueryState.POSTPONED:
                self._queue_again(query)
        query.held = task
        query.free_at = min(at, now + pool.release.after_s * query.scale)  # the price may have fallen by then
        self.arm(query)

    def _copy_at_once(self, query: Query, now: float) -> None:
        """Its rebuilt answer is not sure enough, for now or for good."""
        if now < query.hedge_at < math.inf and not query.broke:
            query.hedge_at = now
            self.arm(query)

    def _may_be_rebuilt(self, query: Query, group: CodingGroup) -> bool:
        pool = self._fleet.pool_of(query.pool)
        return pool.release.may_be_rebuilt(query, group, pool.can_finish)

    def _queue_finish(self, query: Query) -> bool:
        pool = self._fleet.pool_of(query.pool)
        if not pool.release.may_be_finished(query, pool.can_finish):
            return False
        query.finish_attempts += 1
        query.finishes_pending += 1
        pool.finishes.append(query)
        return True

    def finish_ended(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        query, group = task.query, task.group
        assert query is not None
        if group is not None and group.on_trial:
            self.proving.trial_ended(task, outcome, now, actions)
            self.withdraw_if_out(self._fleet.pool_of_group(group), actions)
            return
        if not task.lost:
            query.finishes_pending -= 1
        if group is not None and group.trust is not None and not group.trust.proved:
            self.proving.note_finish(group.trust, outcome, now)
            self.withdraw_if_out(self._fleet.pool_of(query.pool), actions)
        if not query.open:
            return
        if group is not None and not group.usable:
            query.finish_attempts = MAX_FINISHES
            self.review(group, actions)
            return
        if isinstance(outcome, Arrived):
            assert group is not None
            group.note_agreement(outcome)
            if self._fleet.pool_of(query.pool).release.is_confident(query, group):
                self._give_rebuilt(query, group, task, now, actions)
                return
            query.finish_attempts = MAX_FINISHES  # it would only say the same
            self.review(group, actions)
            return
        if task.lost:
            return
        if isinstance(outcome, Rejected):
            query.finish_attempts -= 1
        elif not outcome.retry:
            query.finish_attempts = MAX_FINISHES
        if not self._queue_finish(query) and query.group is not None:
            self.review(query.group, actions)

    def finish_lost(self, query: Query, actions: list[Action]) -> None:
        query.finishes_pending -= 1
        query.finish_attempts = MAX_FINISHES
        if query.group is not None:
            self.review(query.group, actions)

    def review(self, group: CodingGroup, actions: list[Action]) -> None:
        """Fail the members for whom nothing can come any more."""
        for query in [*group.open_members()]:
            held = query.held is not None and group.usable
            if query.in_flight or query.finishes_pending or query.waiting or held:
                continue
            if not (self._may_be_rebuilt(query, group) and group.could_recover(query.slot)):
                postponed = query.state is QueryState.POSTPONED
                if postponed and (self._queue_again(query) or (query.kills == 1 and group.flying)):
                    continue  # its own attempt is due, now or when what is out has ended
                self.fail(query, Reason.FAILED, actions)

    # ---- time passes -------------------------------------------------------------------------------------------------

    def arm(self, query: Query) -> None:
        """One timer a query: for what comes next."""
        assert query.deadline_at is not None
        at = query.deadline_at
        if query.launch_at < at:
            at = query.launch_at
        if query.hedge_at < at:
            at = query.hedge_at
        if query.choosy_until and query.choosy_until < at:
            at = query.choosy_until
        if query.free_at < at:
            at = query.free_at
        if query.release_at < at and not query.released and (query.late or query.group is not None):
            at = query.release_at
        if query.waiting and not query.attempts and not query.in_flight:
            pool = self._fleet.pool_of(query.pool)
            pool.admission.judge_time(query)
            at = min(at, pool.admission.waits_until(query), max(query.arrived_at, query.start_by))
        query.armed_at = at
        self._timers.arm(at, Timer.QUERY, query)

    def due(self, kind: Timer, at: float, query: Query, now: float, actions: list[Action]) -> None:
        if kind is Timer.FINISH:
            self._queue_finish(query)
        elif at == query.armed_at:  # else it was armed again
            self._due(query, now, actions)

    def _due(self, query: Query, now: float, actions: list[Action]) -> None:
        assert query.deadline_at is not None
        pool = self._fleet.pool_of(query.pool)
        if (
            query.waiting
            and not query.attempts
            and not query.in_flight
            and pool is not None
            and now >= pool.admission.waits_until(query)
        ):
            pool.admission.patience.stayed(now - query.arrived_at)
            self.fail(query, Reason.FAILED if query.rests_until else Reason.OVERLOADED, actions)
            return
        if now >= query.launch_at:
            self.launch(pool, query)
        if now >= query.hedge_at and pool.pool.repeatable:
            pool.hedges[query.id] = query
        if query.waiting and pool.admission.is_hopeless(query, now):
            self.refuse_late(pool, query, now, actions)
            return
        query.launch_at = math.inf if now >= query.launch_at else query.launch_at
        query.hedge_at = math.inf if now >= query.hedge_at else query.hedge_at
        if query.choosy_until and now >= query.choosy_until:
            query.choosy_until = 0.0
            if not query.owes and pool.retries.pop(query.id, None) is not None:
                move(query, ANY_PLACE)  # from now on any will do
                pool.to_the_front(query)
        if now >= query.free_at:
            query.free_at = math.inf
        if now >= query.release_at:
            query.released = True
            self._rebuild_if_due(query, now, actions)
        if not query.open:
            return
        if now < query.deadline_at:
            self.arm(query)
        elif self.policy.default_answer:
            self.answer(query, Source.DEFAULT, None, actions)
        else:
            reason = Reason.DEADLINE
            if query.pool not in self._fleet.pools:
                reason = Reason.NO_ENDPOINT
            elif query.rests_until and query.waiting:
                reason = Reason.FAILED  # there was no instance to ask, or none that takes it
            self.fail(query, reason, actions)

    # ---- it ends -----------------------------------------------------------------------------------------------------

    def answer(self, query: Query, source: Source, task: Task | None, actions: list[Action]) -> None:
        self.answered[source._value_] += 1
        if query.in_flight:
            query.given = task
        actions.append(Answer(query, source, task))
        self.close(query, actions)

    def fail(self, query: Query, reason: Reason, actions: list[Action]) -> None:
        if query.set_aside is not None:  # a doubtful answer is one
            self.answer(query, Source.HEDGED if query.set_aside.hedge else Source.DEPLOYED, query.set_aside, actions)
            return
        self.failed[reason._value_] += 1
        actions.append(Fail(query, reason, query.last_failure))
        self.close(query, actions)

    def close(self, query: Query, actions: list[Action]) -> None:
        waited = query.waiting
        copied = self.policy.copies and query.hedge_at == math.inf
        if waited or query.late or copied:  # only then can it stand in one of the pool's queues
            self._fleet.pool_of(query.pool).forget(query)
        move(query, ENDED)
        if query.trial is not None and not query.in_flight:
            self.proving.own_lost(query)
        self.live.pop(query.id, None)
        group = query.group
        # No cycles: nothing is left to the garbage collector.
        query.group = query.last_failure = query.set_aside = query.held = None
        if group is not None:
            group.member_done()
            if waited and not group.done:  # its own answer, which a neighbour may have waited for, comes no more
                self.review(group, actions)
