"""The engine's words: what it is told about, and what it answers.

Values only. Knows nothing of how an action is carried out; `payload` and `value` are the driver's and never looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from ts_parity.engine.fleet import EndpointState
    from ts_parity.engine.group import CodingGroup


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
    """One TorchServe. Its places are shared by all models it hosts; `domain` names what it fails together with."""

    name: str
    places: int
    domain: str


@dataclass(frozen=True)
class Endpoint:
    """A model on an instance: the deployed model of a pool (`row` None) or the protection of that row."""

    name: str
    instance: str
    pool: str
    row: int | None
    places: int


@dataclass(frozen=True)
class Pool:
    """All endpoints of one model and version, and the code that protects it, if any.

    `partial`: the protection serves groups with fewer than k members.
    """

    name: str
    code: Code | None = None
    partial: bool = True


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


@dataclass(eq=False, slots=True)
class Query:
    """One client's request. Queries with equal `key` may share a group; `key` None is never grouped.

    The driver fills the first six fields; the rest belongs to the engine.
    """

    id: int
    pool: str
    key: Hashable = None
    deadline_at: float | None = None
    exact: bool = False
    payload: object = None

    state: QueryState = field(default=QueryState.NEW, init=False)
    arrived_at: float = field(default=0.0, init=False)
    release_at: float = field(default=float("inf"), init=False)
    group: CodingGroup | None = field(default=None, init=False)
    """As long as the query is open."""
    slot: int = field(default=-1, init=False)
    attempts: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    avoid: frozenset[str] = field(default=frozenset(), init=False)
    last_failure: Task | None = field(default=None, init=False)
    finishes_pending: int = field(default=0, init=False)
    finish_attempts: int = field(default=0, init=False)
    domain: str = field(default="", init=False)
    """Failure domain of its last own task."""
    released: bool = field(default=False, init=False)
    launch_at: float = field(default=float("inf"), init=False)
    late: bool = field(default=False, init=False)
    """A backup was asked for, or is to be: something may come even when its own task has failed."""
    hedge_at: float = field(default=float("inf"), init=False)
    armed_at: float = field(default=float("inf"), init=False)

    @property
    def open(self) -> bool:
        """Neither answered, failed nor abandoned."""
        return self.state is not QueryState.DONE

    def __repr__(self) -> str:
        where = f" group {self.group.id} slot {self.slot}" if self.group is not None else ""
        return f"<Query {self.id} {self.pool} {self.state.value}{where}>"


@dataclass(eq=False, slots=True)
class Task:
    """One piece of work on one endpoint. It belongs to its group as well as to its query: a neighbour may need it."""

    id: int
    kind: Kind
    query: Query | None
    group: CodingGroup | None
    slot: int | None
    row: int | None
    place: EndpointState
    sent_at: float
    hedge: bool = False
    done: bool = field(default=False, init=False)
    value: object = field(default=None, init=False)

    @property
    def endpoint(self) -> Endpoint:
        return self.place.endpoint

    def __repr__(self) -> str:
        of = f"group {self.group.id}" if self.query is None and self.group is not None else f"{self.query!r}"
        return f"<Task {self.id} {self.kind.value} of {of} on {self.endpoint.name}>"


class Arrived(NamedTuple):
    """An answer came. `raw`: the model's raw output came with it. `covers`: the slots a protection's answer is good for
    (None: all that were sent).
    """

    raw: bool = False
    covers: frozenset[int] | None = None


class Failed(NamedTuple):
    """No answer will come. `retry`: another endpoint may do better."""

    reason: str
    retry: bool = True


class Rejected(NamedTuple):
    """The instance had no place after all (its queue is full, or others use it too). Nothing was run."""


Outcome = Arrived | Failed | Rejected


class Send(NamedTuple):
    task: Task


class Answer(NamedTuple):
    """Give `query` the value of `task` (None: the configured default answer). For a backup's answer the task is a
    protection, and the query's prediction is in slot `query.slot`.
    """

    query: Query
    source: Source
    task: Task | None


class Fail(NamedTuple):
    """No prediction for `query`. `task`, if any, is its last failed attempt, whose error may be passed on."""

    query: Query
    reason: Reason
    task: Task | None = None


Action = Send | Answer | Fail
