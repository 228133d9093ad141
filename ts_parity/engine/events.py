"""The engine's words: what it is told about, and what it answers.

Values only. Knows nothing of how an action is carried out; `payload` and `value` are the driver's and never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from ts_parity.engine.fleet import EndpointState
    from ts_parity.engine.group import CodingGroup

_NOBODY: frozenset[str] = frozenset()


class Source(str, Enum):
    """Where an answer came from; also the value of the answer header."""

    DEPLOYED = "deployed"
    RECONSTRUCTED = "reconstructed"
    HEDGED = "hedged"
    DEFAULT = "default"


class Kind(str, Enum):
    """What a task asks of an endpoint: a prediction, the protection of a group, or the finish of a rebuilt output."""

    DEPLOYED = "deployed"
    PROTECTION = "protection"
    FINISH = "finish"


class Reason(str, Enum):
    """Why a query got no prediction."""

    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    NO_ENDPOINT = "no endpoint"
    FAILED = "failed"


class Cause(Enum):
    """Why a task failed, as far as it decides what is done about it."""

    ERROR = "error"
    """The instance said so, or said nothing in time."""
    UNREACHABLE = "unreachable"
    """There was no connection, so nothing was run."""
    GONE = "gone"
    """Its endpoint is no longer there: scaled to nothing, unregistered, or its instance is down."""
    LOST = "lost"
    """The connection broke: whatever the instance had is lost with it."""
    MISSING = "missing"
    """The instance does not have the model that it was seen to have, so nothing was run: it may be registered anew."""
    WORKER_DIED = "worker died"
    """Perhaps of this very query."""


class Code(Protocol):
    """What the engine asks of a code. `codes.Code` is one; a test may bring its own."""

    @property
    def name(self) -> str: ...
    @property
    def k(self) -> int: ...
    @property
    def r(self) -> int: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def family(self) -> str: ...
    def recoverable(self, have: frozenset[int], covers: Mapping[int, frozenset[int]]) -> frozenset[int]: ...


@dataclass(frozen=True)
class Instance:
    """One TorchServe. `domain` names what it fails together with.

    `places`: with so many tasks in flight, over all models it hosts, it has nothing idle for protections. `capped`: an
    operator has set them, and they bound all work; otherwise each endpoint has its own.
    """

    name: str
    places: int
    domain: str
    capped: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A model on an instance: the deployed model of a pool (`row` None) or the protection of that row.

    `places`: how many tasks it may have in flight, whatever other models on its instance do.
    """

    name: str
    instance: str
    pool: str
    row: int | None
    places: int
    workers: frozenset[str] = frozenset()
    """Its READY worker processes, each by what changes when it is started or registered anew."""


@dataclass(frozen=True)
class Pool:
    """All endpoints of one model and version, and the code that protects it, if any.

    `partial`: the protection serves groups with fewer than k members.
    """

    name: str
    code: Code | None = None
    partial: bool = True
    repeatable: bool = True
    """Asked twice, it says the same and is none the worse. Else a query is run once, and nothing stands in for it."""
    agreement: float | None = None
    """With the deployed model, as the protection's report says."""
    proved: bool = False
    """Proved elsewhere: no trial and no comparisons. For simulations, and tests of other things."""


@dataclass(frozen=True)
class Fleet:
    """Everything there is, as last discovered."""

    instances: tuple[Instance, ...]
    endpoints: tuple[Endpoint, ...]
    pools: tuple[Pool, ...]


class QueryState(Enum):
    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@final
class Query:
    """One client's request. Queries with equal `key` may share a group; `key` None is never grouped.

    The driver fills the first six fields; the rest belongs to the engine.
    """

    __slots__ = (
        "armed_at", "arrived_at", "attempts", "avoid", "choosy_until", "deadline_at", "displaced", "domain", "exact",
        "excused", "finish_attempts", "finishes_pending", "first_cause", "forgiven", "given", "group", "hedge_at",
        "id", "in_flight", "key", "kills", "last_chance", "last_failure", "late", "launch_at", "owes", "payload",
        "pool", "refused", "release_at", "released", "rests_until", "set_aside", "slot", "stale_at", "start_by",
        "state", "trial",
        "trial_slot",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        pool: str,
        key: Hashable = None,
        deadline_at: float | None = None,
        exact: bool = False,
        payload: Any = None,
    ) -> None:
        self.id = id
        self.pool = pool
        self.key = key
        self.deadline_at = deadline_at
        self.exact = exact
        self.payload = payload
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
        self.in_flight = 0
        self.avoid = _NOBODY
        """Instances that have it or have failed it."""
        self.choosy_until = 0.0
        """It has failed, and until then it waits for an instance elsewhere."""
        self.rests_until = 0.0
        """Nobody is there, and until then it does not ask again."""
        self.owes = False
        """It may be tried again as soon as the budget has a token for it."""
        self.first_cause = ""
        """What its first failure said, and where."""
        self.last_failure: Task | None = None
        self.finishes_pending = 0
        self.finish_attempts = 0
        self.set_aside: Task | None = None
        """A suspect endpoint answered it with an error, and whose fault that is will be seen."""
        self.kills = 0
        """Workers that died while they had it."""
        self.last_chance = False
        """One has, and it has been sent once more since: never again."""
        self.domain = ""
        """Failure domain of its last own task."""
        self.released = False
        self.launch_at = math.inf
        self.late = False
        """A backup was asked for, or is to be: something may come even when its own task has failed."""
        self.displaced = False
        """Its backup runs instead of its own task, for which it was waiting."""
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

    def __repr__(self) -> str:
        where = f" group {self.group.id} slot {self.slot}" if self.group is not None else ""
        return f"<Query {self.id} {self.pool} {self.state.value}{where}>"


@final
class Task:
    """One piece of work on one endpoint. It belongs to its group as well as to its query: a neighbour may need it."""

    __slots__ = ("done", "group", "hedge", "id", "kind", "lost", "place", "query", "row", "sent_at", "slot", "value")

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
        self.id = id
        self.kind = kind
        self.query = query
        self.group = group
        self.slot = slot
        self.row = row
        self.place = place
        self.sent_at = sent_at
        self.hedge = hedge
        self.done = False
        self.lost = False
        """Its endpoint is gone. Nobody waits for it any more, but should it end well, it is as good as any other."""
        self.value: Any = None

    @property
    def endpoint(self) -> Endpoint:
        return self.place.endpoint

    def __repr__(self) -> str:
        of = f"group {self.group.id}" if self.query is None and self.group is not None else f"{self.query!r}"
        return f"<Task {self.id} {self.kind.value} of {of} on {self.endpoint.name}>"


class Arrived(NamedTuple):
    """An answer came. `raw`: the model's raw output came with it. `covers`: the slots a protection's answer is good for
    (None: all that were sent). `error`: it is an error of the user's handler.
    """

    raw: bool = False
    covers: frozenset[int] | None = None
    error: bool = False


class Failed(NamedTuple):
    """No answer will come. `retry`: another endpoint may do better."""

    reason: str
    retry: bool = True
    cause: Cause = Cause.ERROR


class HealthChange(NamedTuple):
    """An endpoint was taken out, or is back (`out` is False). `reason`: why it was taken out."""

    endpoint: str
    out: bool
    reason: str


class Rejected(NamedTuple):
    """The instance had no place after all (its queue is full, or others use it too). Nothing was run."""


Outcome = Arrived | Failed | Rejected
ARRIVED: Final = Arrived()
ARRIVED_ERROR: Final = Arrived(error=True)
ARRIVED_RAW: Final = Arrived(raw=True)


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
