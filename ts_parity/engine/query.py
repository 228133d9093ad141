"""A query, its tasks and its coding group: which waits for what, and which may be answered.

They stand together because they know each other. Knows slots and times. Knows nothing of arrays, sockets, or how a
prediction is computed; `payload` and `value` are the driver's and never looked at.

A coding group is up to k queries that share r protections. It is *open* while it takes members, *sealed* when it is
full or `group_wait` has passed (then its protections are launched), and *done* when no member waits any more. A slot is

    empty      no member
    pending    its query's own task waits or runs
    arrived    its own task answered; `have` holds it if the model's raw output came along
    lost       its own task failed and is not tried again
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, final

from ts_parity.engine.capacity import EndpointState, Occupant
from ts_parity.engine.events import Arrived, Code, Endpoint, Kind, Reason, Source
from ts_parity.engine.sizes import SizeClass
from ts_parity.engine.trust import Trust

_NOBODY: frozenset[str] = frozenset()
_NOTHING: frozenset[int] = frozenset()
_UNKNOWN: Mapping[int, float] = {}
LOSSLESS: Final = math.inf
"""Confidence that only a lossless protection has."""


class QueryState(IntEnum):
    """Where the query's own attempt stands; see `life`, which has the table. Copies and protections run beside it."""

    NEW = 0
    WAITING = 1
    RETRYING = 2
    RUNNING = 3
    POSTPONED = 4
    RELYING = 5
    DONE = 6


@final
class Query:
    """One client's request. Queries with equal `key` may share a group; `key` None is never grouped.

    The driver fills the first six fields; the rest belongs to the engine.
    """

    __slots__ = (
        "armed_at", "arrived_at", "attempts", "avoid", "broke", "broke_s", "choosy_until", "copied_at", "deadline_at",
        "domain", "doubtful", "excused", "finish_attempts", "finishes_pending", "first_cause", "forgiven", "free_at",
        "given", "group", "hedge_at", "held", "id", "in_flight", "key", "kills", "last_chance", "last_failure", "late",
        "launch_at", "least", "owes", "payload", "pool", "refused", "rejections", "release_at", "released",
        "rests_until", "scale", "set_aside", "size", "slot", "stale_at", "start_by", "state", "trial", "trial_slot",
        "yields_until",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        pool: str,
        key: Hashable = None,
        deadline_at: float | None = None,
        least: float = 0.0,
        payload: Any = None,
        size: SizeClass | None = None,
    ) -> None:
        self.id = id
        self.pool = pool
        self.key = key
        self.deadline_at = deadline_at
        self.least = least
        """Confidence of a rebuilt answer that its client takes, at least."""
        self.payload = payload
        self.size = size
        """See `sizes`; None: as any other."""
        self.scale = 1.0
        """How many times longer than usual it takes."""
        self.state = QueryState.NEW
        self.arrived_at = 0.0
        self.release_at = math.inf
        self.group: CodingGroup | None = None
        """As long as the query is open."""
        self.slot = -1
        self.attempts = 0
        """Tasks of its own, second copies aside."""
        self.excused = 0
        """How many of them count for nothing: they ended with their instance, not with an answer."""
        self.forgiven = False
        """A connection broke under it, and that did not count: the next time it does."""
        self.broke = ""
        """The first instance whose connection broke under it."""
        self.broke_s = 0.0
        """How long that one had had it."""
        self.copied_at = 0.0
        """When its last second copy was sent."""
        self.yields_until = 0.0
        """It is not sent before: its copy may break as the first instance did, or all have rejected it."""
        self.in_flight = 0
        self.avoid = _NOBODY
        """Instances that have it or have failed it."""
        self.choosy_until = 0.0
        """It has failed, and until then it waits for an instance elsewhere."""
        self.rests_until = 0.0
        """Nobody is there, and until then it does not ask again."""
        self.rejections = 0
        self.owes = False
        """It may be tried again as soon as the budget has a token for it."""
        self.first_cause = ""
        """Where the first of its tasks failed, and with which message."""
        self.last_failure: Task | None = None
        self.finishes_pending = 0
        self.finish_attempts = 0
        self.doubtful = False
        """What is set aside may as well be the endpoint's own error."""
        self.set_aside: Task | None = None
        """A suspect endpoint answered it with an error, and whose fault that is will be seen."""
        self.kills = 0
        """Workers that died while they had it. Two instances whose connections broke under it count as two."""
        self.last_chance = False
        """One has, and it has been sent once more since: never again."""
        self.domain = ""
        """Failure domain of its last own task."""
        self.released = False
        self.held: Task | None = None
        """What has rebuilt its answer, which is too doubtful for as long as it has waited."""
        self.free_at = math.inf
        """When that is looked at again."""
        self.launch_at = math.inf
        self.late = False
        """A backup was asked for, or is to be: something may come even when its own task has failed."""
        self.hedge_at = math.inf
        self.armed_at = math.inf
        self.given: Task | None = None
        """What it was answered with, while tasks of its own are still out: their late answers are compared with it."""
        self.trial: CodingGroup | None = None
        """The group on trial it was put into, until its own answer has come."""
        self.trial_slot = -1
        self.refused = False
        """Its own answer was an error of the handler's: a protection that refuses it too has not failed."""
        self.start_by = math.inf
        """While it waits for its first place: sent at this instant or later, it cannot be answered in time."""
        self.stale_at = math.inf
        """While it waits for its first place: from then on the queue behind it is a standing one."""

    @property
    def open(self) -> bool:
        """Neither answered, failed nor abandoned."""
        return self.state is not QueryState.DONE

    @property
    def waiting(self) -> bool:
        """For a place."""
        return self.state is QueryState.WAITING or self.state is QueryState.RETRYING

    def may_run(self) -> bool:
        """Whether one that may be what its workers died of is sent once more: only after the first, only once, and not
        while anybody else still has it. So it kills two workers at most, unless more had it when the first died.
        """
        group = self.group
        others = self.in_flight + self.finishes_pending + (0 if group is None else group.flying)
        return not self.kills or (self.kills == 1 and not self.last_chance and not others)

    def __repr__(self) -> str:
        where = f" group {self.group.id} slot {self.slot}" if self.group is not None else ""
        return f"<Query {self.id} {self.pool} {self.state.name.lower()}{where}>"


@final
class Task(Occupant):
    """One piece of work on one endpoint. It belongs to its group as well as to its query: a neighbour may need it."""

    __slots__ = ("done", "group", "hedge", "kind", "place", "query", "row", "slot", "value")

    def __init__(
        self,
        id: int,
        kind: Kind,
        query: Query | None,
        group: CodingGroup | None,
        slot: int | None,
        row: int | None,
        place: EndpointState,
        sent_at: float,
        hedge: bool = False,
    ) -> None:
        # What Occupant does, without the call: tasks are made for every query.
        self.id = id
        self.sent_at = sent_at
        self.lost = False
        self.scale = 1.0 if query is None else query.scale
        self.kind = kind
        self.query = query
        self.group = group
        self.slot = slot
        self.row = row
        self.place = place
        self.hedge = hedge
        self.done = False
        self.value: Any = None

    @property
    def endpoint(self) -> Endpoint:
        return self.place.endpoint

    def __repr__(self) -> str:
        of = f"group {self.group.id}" if self.query is None and self.group is not None else f"{self.query!r}"
        return f"<Task {self.id} {self.kind.value} of {of} on {self.endpoint.name}>"


class CodingGroup:
    """Members by slot, what has arrived, and what is still to come."""

    __slots__ = (
        "agreement",
        "barred",
        "begun_at",
        "closes_at",
        "code",
        "covers",
        "domains",
        "done",
        "flying",
        "have",
        "id",
        "key",
        "members",
        "on_trial",
        "own",
        "pending_rows",
        "protections",
        "sealed",
        "sent",
        "size",
        "trust",
        "unanswered",
    )

    def __init__(
        self,
        group_id: int,
        key: Hashable,
        code: Code,
        closes_at: float = math.inf,
        trust: Trust | None = None,
        begun_at: float = 0.0,
        on_trial: bool = False,
    ) -> None:
        """`trust`: in its protection; None: there is nothing to doubt."""
        self.id = group_id
        self.trust = trust
        self.begun_at = begun_at
        self.on_trial = on_trial
        self.closes_at = closes_at
        self.key = key
        self.code = code
        self.members: list[Query | None] = [None] * code.k
        self.size = 0
        self.unanswered = 0
        self.domains: dict[str, int] = {}
        self.have: dict[int, Task] = {}
        self.protections: dict[int, Task] = {}
        self.covers: dict[int, frozenset[int]] = {}
        self.agreement: Mapping[int, float] = _UNKNOWN
        """By slot, how often a rebuilt answer that looks like this one is the deployed model's own; where known."""
        self.pending_rows: set[int] = set()
        self.barred: set[int] = set()
        """Slots whose query may have killed a worker: no protection gets it any more."""
        self.sent: dict[int, frozenset[int]] = {}
        """Row -> the slots whose queries were sent to its protection."""
        self.flying = 0
        """Protections in flight."""
        self.own: tuple[int, Task] | None = None
        """A member's slot and its own answer, to be compared with what is still in flight; see `Scheduler._watch`."""
        self.sealed = False
        self.done = False

    @property
    def k(self) -> int:
        return self.code.k

    @property
    def full(self) -> bool:
        return self.size == self.code.k

    @property
    def usable(self) -> bool:
        """Whether its protection is in use, and was when the group began."""
        trust = self.trust
        return not self.on_trial and (trust is None or (trust.in_use and self.begun_at >= trust.since))

    @property
    def present(self) -> frozenset[int]:
        """The slots that have a member."""
        return frozenset(range(self.size))

    @property
    def scale(self) -> float:
        """How many times longer than usual its protection takes: as its largest member."""
        scales = [query.scale for query in self.members if query is not None]
        return max(scales) if scales else 1.0

    def sendable(self) -> frozenset[int]:
        """The slots whose queries a protection that is sent now gets."""
        return self.present - self.barred if self.barred else self.present

    def protection_sent(self, row: int) -> None:
        self.sent[row] = self.sendable()
        self.flying += 1

    def open_members(self) -> Iterator[Query]:
        return (query for query in self.members if query is not None and query.state is not QueryState.DONE)

    def join(self, query: Query, domain: str) -> None:
        if self.sealed or self.full:
            raise ValueError(f"{query!r} cannot join {self!r}: it takes no more members")
        query.group, query.slot = self, self.size
        self.members[self.size] = query
        self.size += 1
        self.unanswered += 1
        self.domains[domain] = self.domains.get(domain, 0) + 1

    def member_arrived(self, task: Task) -> None:
        """A member's raw output is here: neighbours may be decoded with it."""
        assert task.slot is not None
        if not self.done:
            self.have[task.slot] = task

    def protection_arrived(self, task: Task, covers: frozenset[int] | None) -> None:
        assert task.row is not None
        self.pending_rows.discard(task.row)
        if not self.done:
            self.protections[task.row] = task
            self.covers[task.row] = self.sent[task.row] if covers is None else covers & self.sent[task.row]

    def note_agreement(self, arrived: Arrived) -> None:
        """How sure the protection, or what was decoded, is of its answers."""
        if arrived.agreement is not None:
            self.agreement = {**self.agreement, **arrived.agreement}

    def recoverable(self) -> frozenset[int]:
        """The slots that could be answered now from what has arrived."""
        if not self.covers:
            return _NOTHING
        return self.code.recoverable(frozenset(self.have), self.covers)

    def recoverable_without(self, slot: int) -> frozenset[int]:
        """The slots that could be recovered if this one's output had not arrived."""
        return self.code.recoverable(frozenset(self.have) - {slot}, self.covers) if self.covers else _NOTHING

    def could_recover(self, slot: int) -> bool:
        """Whether `slot` might still be recovered if everything that is pending arrived well."""
        if self.done:
            return False
        coming = frozenset(
            query.slot
            for query in self.members
            if query is not None and query.slot != slot and (query.in_flight > 0 or query.waiting)
        )
        rows = self.pending_rows if self.sealed else set(range(self.code.r))
        covers = {row: self.sent[row] if row in self.sent else self.sendable() for row in rows} | self.covers
        return bool(covers) and slot in self.code.recoverable(frozenset(self.have) | coming, covers)

    def member_done(self) -> None:
        """A member was answered, failed or abandoned. When no member waits, what arrived is dropped."""
        self.unanswered -= 1
        if self.unanswered == 0 and self.sealed:
            self.retire()

    def retire(self) -> None:
        self.done = True
        self.sealed = True
        self.have.clear()
        self.protections.clear()
        self.covers.clear()
        if not self.flying:
            self.own = None

    def __repr__(self) -> str:
        slots = []
        for slot, query in enumerate(self.members):
            if query is None:
                slots.append(f"{slot} empty")
            else:
                raw = "+raw" if slot in self.have else ""
                slots.append(f"{slot} {query.state.name.lower()}{raw}")
        rows = [f"{row} arrived" for row in self.protections] + [f"{row} pending" for row in sorted(self.pending_rows)]
        return f"<CodingGroup {self.id} k={self.code.k} r={self.code.r} [{', '.join(slots)} | {', '.join(rows)}]>"


@final
class Send:
    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task


@final
class Answer:
    """Give `query` the value of `task` (None: the configured default answer). For a backup's answer the task is a
    protection, and the query's prediction is in slot `query.slot`.
    """

    __slots__ = ("query", "source", "task")

    def __init__(self, query: Query, source: Source, task: Task | None) -> None:
        self.query = query
        self.source = source
        self.task = task


@final
class Fail:
    """No prediction for `query`. `task`, if any, is its last failed attempt, whose error may be passed on; what went
    wrong first is in `query.first_cause`.
    """

    __slots__ = ("query", "reason", "task")

    def __init__(self, query: Query, reason: Reason, task: Task | None = None) -> None:
        self.query = query
        self.reason = reason
        self.task = task


@final
class Compare:
    """Compare what `other` has brought (a protection, for that slot; a finish; a second copy) with the deployed model's
    `own` answer to the same query, and tell `compared`.
    """

    __slots__ = ("other", "own", "slot")

    def __init__(self, own: Task, other: Task, slot: int) -> None:
        self.own = own
        self.other = other
        self.slot = slot


Action = Send | Answer | Fail | Compare
