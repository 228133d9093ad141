"""What the engine's events speak of: the fleet, and how a task ended. Values that know nothing else.

Beside `query`, which has the queries and tasks themselves and the actions that name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol


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
    """The connection broke: whatever the instance had is lost with it, perhaps because of this very query."""
    LOST_BEHIND = "lost behind a gateway"
    """A gateway says that the instance is gone, which may not even have had the query."""
    MISSING = "missing"
    """The instance no longer has the model, so nothing was run: the model may have been registered again."""
    WORKER_DIED = "worker died"
    """Perhaps of this very query."""


class Blame(Enum):
    """Whose an error is, as far as the answer tells."""

    LIKELY_CLIENTS = "likely the client's"
    """A handler's error: an endpoint that makes more of them than its peers is suspect."""
    CLIENTS = "the client's"
    """Whatever endpoint is asked, it says this."""
    DOUBTFUL = "doubtful"
    """As likely the endpoint's own as the query's: only a peer can tell."""


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

    `places`: tasks in flight, over all models it hosts, from which on nothing is idle for protections. `capped`: an
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
    """Its READY worker processes, each by what changes when it is restarted or registered again."""
    apart: bool = False
    """Of a protection: its server has places for it that no other model's requests take."""


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
    cost: float = 1.0
    """Of a backup's answer to one query, in deployed inferences."""


@dataclass(frozen=True)
class Fleet:
    """Everything there is, as last discovered."""

    instances: tuple[Instance, ...]
    endpoints: tuple[Endpoint, ...]
    pools: tuple[Pool, ...]


class Arrived(NamedTuple):
    """An answer came. `raw`: the model's raw output came with it. `covers`: the slots a protection's answer is good for
    (None: all that were sent). `error`: it is an error of the user's handler, and `blame` says whose. `agreement`: by
    slot, how often a rebuilt answer that looks like this one is the deployed model's own (None, or a slot that is not
    there: unknown).
    """

    raw: bool = False
    covers: frozenset[int] | None = None
    error: bool = False
    agreement: Mapping[int, float] | None = None
    blame: Blame = Blame.LIKELY_CLIENTS


class Failed(NamedTuple):
    """No answer will come. `retry`: another endpoint may do better."""

    reason: str
    retry: bool = True
    cause: Cause = Cause.ERROR


class HealthChange(NamedTuple):
    """An endpoint was ejected, or is back (`out` is False). `reason`: why it was ejected."""

    endpoint: str
    out: bool
    reason: str


class Rejected(NamedTuple):
    """The instance had no place after all (its queue is full, or others use it too). Nothing was run."""


Outcome = Arrived | Failed | Rejected
ARRIVED: Final = Arrived()
ARRIVED_ERROR: Final = Arrived(error=True)
ARRIVED_RAW: Final = Arrived(raw=True)
