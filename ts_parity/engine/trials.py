"""Groups on trial: a pool's protection run for queries that are served as if it were not there.

A group on trial has members as any other, but they do not know it: `query.group` stays None, no query waits for it
and none is answered from it. Its protections are launched on places that would be idle, and what they bring is compared
with each member's own answer. A backup's answer is compared as it is; a parity output is decoded for every member in
turn, as if that member's output were missing, and finished.

Holds at most `MOST` groups, hence that many times k + r answers. Knows groups and tasks. Decides neither where a
task goes nor what a comparison means for the protection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final, final

from ts_parity.engine.events import Arrived, Failed, Outcome
from ts_parity.engine.query import CodingGroup, Compare, Query, Task
from ts_parity.engine.trust import Finding, Trust

MOST: Final = 4
"""Groups on trial at one time. A trial is over after some twenty comparisons, so more would hardly shorten it."""


@final
class Trials:
    """The groups on trial of one pool."""

    __slots__ = ("_open", "_running", "finishes", "launches")

    def __init__(self) -> None:
        self.launches: deque[tuple[CodingGroup, int]] = deque()
        """(group, row): protections that wait for an idle place."""
        self.finishes: deque[tuple[CodingGroup, int]] = deque()
        """(group, slot): decoded outputs that wait for an idle place to be made answers of."""
        self._open: CodingGroup | None = None
        self._running: list[CodingGroup] = []

    @property
    def waiting(self) -> bool:
        return bool(self.launches or self.finishes)

    def group_for(self, key: Hashable) -> CodingGroup | None:
        return self._open if self._open is not None and self._open.key == key else None

    @property
    def may_begin(self) -> bool:
        return self._open is None and len(self._running) < MOST

    def begin(self, group: CodingGroup) -> None:
        self._open = group
        self._running.append(group)

    def join(self, group: CodingGroup, query: Query, domain: str) -> None:
        group.members[group.size] = query
        query.trial, query.trial_slot = group, group.size
        group.size += 1
        group.unanswered += 1
        group.domains[domain] = group.domains.get(domain, 0) + 1

    def seal(self, group: CodingGroup, rows: Iterable[int]) -> None:
        """No more members. Without rows nothing can be tried with it."""
        if group.sealed:
            return
        group.sealed = True
        self._open = None
        for row in rows:
            group.pending_rows.add(row)
            self.launches.append((group, row))
        if not group.pending_rows:
            self.drop(group)

    def own_arrived(self, query: Query, task: Task, raw: bool, trust: Trust, now: float) -> list[Compare]:
        """The deployed model's own answer has come."""
        group, slot = query.trial, query.trial_slot
        query.trial = None
        if group is None or group.done:
            return []
        group.unanswered -= 1
        if group.code.family != "backup" and not raw:
            trust.compared(Finding.UNKNOWN, "the deployed model's answer came without its raw output", now)
            self.drop(group)
            return []
        group.have[slot] = task
        pairs: list[Compare] = []
        if group.code.family == "backup":
            pairs = [Compare(task, protection, slot) for protection in group.protections.values()]
        self._go_on(group, trust, now)
        return pairs

    def own_lost(self, query: Query) -> None:
        """It comes no more."""
        group, query.trial = query.trial, None
        if group is None or group.done:
            return
        group.unanswered -= 1
        backup = group.code.family == "backup"
        if not backup or (group.sealed and not group.pending_rows and not group.unanswered):
            self.drop(group)

    def protection_ended(self, task: Task, outcome: Outcome, trust: Trust, now: float) -> list[Compare]:
        """It has arrived, or failed; a rejected one is launched again by the scheduler."""
        group = task.group
        assert group is not None
        assert task.row is not None
        if group.done:
            return []
        pairs: list[Compare] = []
        if isinstance(outcome, Arrived):
            group.protection_arrived(task, outcome.covers)
            if group.code.family == "backup":
                pairs = [Compare(own, task, slot) for slot, own in group.have.items()]
        else:
            group.pending_rows.discard(task.row)
            trust.failed(outcome.reason if isinstance(outcome, Failed) else "", now)
            if group.code.family != "backup":
                self.drop(group)
        self._go_on(group, trust, now)
        return pairs

    def finish_ended(self, task: Task, outcome: Outcome, trust: Trust, now: float) -> list[Compare]:
        group, slot = task.group, task.slot
        assert group is not None
        assert slot is not None
        if group.done:
            return []
        pairs: list[Compare] = []
        if isinstance(outcome, Arrived):
            pairs = [Compare(group.have[slot], task, slot)]
        else:
            trust.compared(Finding.FAILED, outcome.reason if isinstance(outcome, Failed) else "", now)
        group.unanswered -= 1
        if group.unanswered == 0:
            self.drop(group)
        return pairs

    def drop_overdue(self, before: float, own_before: float, trust: Trust, now: float) -> None:
        """Give up on groups that began before these instants: their protection is frozen; or only a member's own worker
        is, which is no failure of the protection, and they must not stand in the way of others.
        """
        for group in [*self._running]:
            waits_for_own = group.sealed and not group.pending_rows
            if group.begun_at < (own_before if waits_for_own else before):
                if group.pending_rows and not any(waiting is group for waiting, _ in self.launches):
                    trust.failed("no answer in time", now)
                self.drop(group)

    def drop(self, group: CodingGroup) -> None:
        if group in self._running:
            self._running.remove(group)
        if self._open is group:
            self._open = None
        group.pending_rows.clear()
        group.retire()

    def clear(self) -> None:
        for group in [*self._running]:
            self.drop(group)
        self.launches.clear()
        self.finishes.clear()

    def _go_on(self, group: CodingGroup, trust: Trust, now: float) -> None:
        """All that was to come has come: a backup's group is done, a parity group's members are decoded."""
        if group.done or not group.sealed or group.pending_rows or group.unanswered:
            return
        if group.code.family == "backup":
            self.drop(group)
            return
        decodable = [slot for slot in range(group.size) if slot in group.recoverable_without(slot)]
        if not decodable:
            trust.failed("its output covers no member", now)
            self.drop(group)
            return
        self.finishes.extend((group, slot) for slot in decodable)
        group.unanswered = len(decodable)  # from now on: finishes to come
