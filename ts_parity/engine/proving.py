"""Proving: the protection beside the deployed model, on trial and in use.

Feeds what happens to queries and groups to `trials` (the groups on trial) and `trust` (the standing), and sends what is
on trial. Knows nothing of what becomes of the queries when a protection is taken out.
"""

from __future__ import annotations

from typing import Final, final

from ts_parity.engine.events import Arrived, Failed, Kind, Outcome, Rejected
from ts_parity.engine.fleet import FleetState, PoolState
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import Action, CodingGroup, Compare, Query, Task
from ts_parity.engine.sending import Sender
from ts_parity.engine.timers import Timer, Timers
from ts_parity.engine.trust import Trust

WATCH_S: Final = 0.1
"""A comparison takes up to milliseconds; ten a second find what has changed and cost next to nothing."""


@final
class Proving:
    """Of all pools' protections."""

    def __init__(self, policy: Policy, fleet: FleetState, timers: Timers, sender: Sender) -> None:
        self.policy = policy
        self._fleet = fleet
        self._timers = timers
        self._sender = sender

    def try_protection(self, pool: PoolState, query: Query, domain: str, now: float) -> None:
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
            group = CodingGroup(
                self._sender.next_id(), query.key, pool.code, now + pool.placement.wait_s, trust, now, True
            )
            trials.begin(group)
            self._timers.arm(group.closes_at, Timer.SEAL, group)
        trials.join(group, query, domain)
        if group.full:
            self.seal_trial(group)

    def seal_trial(self, group: CodingGroup) -> None:
        pool = self._fleet.pool_of_group(group)
        usable = group.full or pool.pool.partial
        pool.trials.seal(group, [row for row in range(group.code.r) if pool.rows.get(row)] if usable else [])

    def send_trials(self, pool: PoolState, now: float, actions: list[Action]) -> None:
        trials = pool.trials
        long = pool.trust is not None and pool.trust.is_slow(now)
        for group, row in [*trials.launches]:
            if not pool.rows.get(row):  # any more
                trials.drop(group)
            place = None if group.done else pool.selection.for_trial(group, row, now, long)
            if place is not None:
                group.protection_sent(row)
                self._sender.send(Kind.PROTECTION, place, None, group, None, row, now, actions)
            if place is not None or group.done:
                trials.launches.remove((group, row))
        for group, slot in [*trials.finishes]:
            place = None if group.done else pool.selection.for_trial(group, None, now, long)
            if place is not None:
                self._sender.send(Kind.FINISH, place, group.members[slot], group, slot, None, now, actions)
            if place is not None or group.done:
                trials.finishes.remove((group, slot))

    def trial_ended(self, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        """A protection on trial, or the finish of what it helped to decode."""
        group = task.group
        assert group is not None
        pool = self._fleet.pool_of_group(group)
        if pool.trust is None or group.done:
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

    def own_lost(self, query: Query) -> None:
        pool = self._fleet.pool_of(query.pool)
        pool.trials.own_lost(query)
        query.trial = None

    def compare_with_given(self, query: Query, task: Task, outcome: Outcome, actions: list[Action]) -> None:
        """The query was answered while this task was out; what it brings should have been the same."""
        given, query.given = query.given, None
        if isinstance(outcome, Arrived) and given is not None:
            pool = self._fleet.pool_of(query.pool)
            if given is not task and given.done and not pool.pool.proved:  # no stream under way
                actions.append(Compare(task, given, query.slot))
            given = task
        if query.in_flight:
            query.given = given

    @staticmethod
    def note_use(trust: Trust, group: CodingGroup, outcome: Outcome, now: float) -> None:
        """Whether a protection in use brings anything: a protection that fails every group is taken out."""
        if group.begun_at < trust.since or isinstance(outcome, Rejected):
            return
        if isinstance(outcome, Failed):
            trust.failed(outcome.reason, now)
        elif outcome.covers is None or outcome.covers:
            trust.arrived()
        elif not any(member is not None and member.refused for member in group.members):
            trust.failed("it answered for no member of its group", now)

    @staticmethod
    def watch(group: CodingGroup, pool: PoolState, slot: int, task: Task, now: float) -> list[Compare]:
        """A member's own answer has come first, or in time. What a backup says of it is of no use to anybody any more,
        but it says what the backup is worth, before a client has its word for it.
        """
        trust = group.trust
        if trust is None or pool.trust is None or trust.proved or group.code.family != "backup" or now < pool.watch_at:
            return []
        for row, protection in group.protections.items():
            if slot in group.covers[row]:
                pool.watch_at = now + WATCH_S
                return [Compare(task, protection, slot)]
        group.own = (slot, task)
        return []

    def watched(self, group: CodingGroup, task: Task, outcome: Outcome, now: float, actions: list[Action]) -> None:
        assert group.own is not None
        slot, own = group.own
        pool = self._fleet.pool_of(task.endpoint.pool)
        answered = isinstance(outcome, Arrived) and (outcome.covers is None or slot in outcome.covers)
        if answered and pool.trust is not None and now >= pool.watch_at:
            pool.watch_at = now + WATCH_S
            actions.append(Compare(own, task, slot))
            group.own = None
        if not group.flying:
            group.own = None

    @staticmethod
    def note_finish(trust: Trust, outcome: Outcome, now: float) -> None:
        """What cannot be decoded or finished anywhere is the protection's failure as well."""
        if isinstance(outcome, Arrived):
            trust.decoded()
        elif isinstance(outcome, Failed) and not outcome.retry:
            trust.failed(outcome.reason, now, decoding=True)

    @staticmethod
    def contradicted(pool: PoolState, now: float) -> None:
        """There are no second copies any more: an ejected endpoint that one was to probe is tried by a query."""
        if pool.trust is not None:
            pool.trust.withdraw(pool.repeats.reason, now)
        for place in [*pool.deployed.trials.values()]:
            place.health.clean = True
            place.host.judge()
