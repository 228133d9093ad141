"""What a query brings along on its way to an answer: what is asked, where a task of it goes, and what that brought.

Values. Knows requests and responses. Knows nothing of kinds of servers, or of what becomes of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ts_parity.confidence import from_header
from ts_parity.proxy.http.access import OtherTask
from ts_parity.proxy.http.messages import Request, Response, header
from ts_parity.wire import CONFIDENCE, Array


@dataclass(frozen=True)
class Ask:
    """The prediction that a request asks for, as one kind of server understands it. `version`: None if it names none.
    `extra`: what follows in the path.
    """

    model: str
    version: str | None = None
    extra: str = ""


@dataclass(frozen=True)
class Target:
    """Where a task goes: a model and version on an instance."""

    instance: str
    model: str
    version: str
    wrapped: bool
    cost: float | None = None
    """Measured cost of a full group, in deployed inferences; None for a deployed model or if it was not measured."""
    default: bool = False
    """The instance's default version, and nothing is coded for it: queries may go there without a version."""
    elsewhere: bool = False
    """A student at an address of its own: the client's Host is not its own."""


@final
class QueryPayload:
    """What the driver keeps of a query: the client's request without control headers, and what it asks for."""

    __slots__ = ("ask", "failed", "race", "relayed", "request", "service_s", "tasks")

    def __init__(self, request: Request, ask: Ask) -> None:
        self.request = request
        self.ask = ask
        self.failed: list[OtherTask] | None = None
        """Its failed attempts, if there is an access log."""
        self.service_s: float | None = None
        """How long the task took that answered it, if there is an access log."""
        self.race: object | None = None
        """If it was late; see `races`."""
        self.relayed: object | None = None
        """Where queries are traced: what became of it before the engine had it; see `tracing`."""
        self.tasks: tuple[object, ...] = ()
        """Where queries are traced: what was sent beside its first task, and that if it has failed; see `tracing`."""


class TaskResult:
    """What a task brought: the response, and what was parsed from it. The driver keeps it in `task.value`."""

    __slots__ = ("confidence", "response")

    def __init__(self, response: Response | None = None) -> None:
        self.response = response
        self.confidence: float | None = None
        """Of a finished answer: the confidence of the raw output that it was made from."""

    @property
    def raw(self) -> Array | None:
        """The model's raw output, if it came along."""
        return None

    @property
    def roundoff(self) -> float:
        """Of the dtype that the raw output was computed in; 0 if it arrived in that dtype."""
        return 0.0

    def has_slot(self, slot: int) -> bool:
        """Whether a protection's answer has one for this member of its group."""
        return self.response is not None

    def slot_response(self, slot: int) -> Response:
        """A backup's answer for this member, as its client gets it."""
        assert self.response is not None
        return self.response

    def slot_confidence(self, slot: int) -> float | None:
        """The confidence that a backup reports for this answer of its own."""
        return None if self.response is None else from_header(header(self.response.controls, CONFIDENCE))
