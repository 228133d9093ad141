"""A kind of server: the eight questions that the proxy has about it, and the answers where nothing is special.

    1  match            is this request a prediction, and of which model and version?
    2  variants         what must be equal for two requests to mean the same? and how is an answer compared: `meaning`
    3  prediction       what goes to the deployed model; `protection` and `finish`: what goes to its protection
    4  read_prediction  what came back: an answer, good or bad, or why there is none; `trouble` of a head alone
    5  unprotected      may this request not be repeated? then it is passed through, as is all that is no prediction
    6  prober           what does an instance host, asked of it; shapes and places where it tells
    7  key_refused, from_gateway, was_not_run: who speaks in an error, and was anything run?
    8  error            an error of the proxy's own, as this kind of server would have said it

Pure but for what a prober does. Knows requests and responses. Knows nothing of queries, timers or policy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ts_parity.config import InstanceSettings
from ts_parity.engine import Outcome
from ts_parity.engine.events import Failed, Rejected
from ts_parity.errors import TsParityError
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target, TaskResult
from ts_parity.proxy.fleet.reports import InstanceReport
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.upstream import NoResponse, Upstream
from ts_parity.wire import Array

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_: bool):
        """What only mypyc reads: here it says that a compiled kind may be extended by one that is not."""
        return lambda kind: kind


class Unprotected(NamedTuple):
    """Why a request is passed through. Those with the same text in `stays_with`, if any, go to the same instance."""

    reason: str
    stays_with: str = ""


TaskEnd = tuple[Outcome, TaskResult]


class Prober(Protocol):
    """Asks the instances of one kind what they host, again and again."""

    async def refresh(self, may_describe: bool = True) -> list[InstanceReport]:
        """One report per instance, in the order in which it knows them; whatever goes wrong stands in it. Without
        `may_describe` no worker is asked: a request waits for this, and perhaps for that very worker.
        """
        ...

    async def close(self) -> None: ...

    def want(self, name: str) -> None:
        """A client has asked for a model of this name, and nobody was seen to host it."""
        ...

    def doubt(self, instance: str, why: str, sample: Request | None) -> InstanceReport | None:
        """It may confuse requests, so it is not used until it has answered rightly again. `sample`: a request that may
        be repeated, to find that out: the one that it failed, or, without `why`, one that another instance has answered
        since. -> its report from now on; None: it was doubted already, or is not of this kind.
        """
        ...

    def in_use(self, names: Collection[str]) -> None:
        """Clients have asked for these models of late."""
        ...


class Backend(Protocol):
    """One kind of server, and what the configuration says of its models. What is known of an instance stands in its
    reports.
    """

    @property
    def kind(self) -> str: ...
    @property
    def prefix(self) -> str:
        """Before the names of its models, where kinds are mixed: clients do not write it."""
        ...

    @property
    def whole(self) -> bool:
        """Whether a chunked answer is gathered, unless it says that it is a stream."""
        ...

    @property
    def confuses(self) -> bool:
        """Whether its answers are looked at by `confused`."""
        ...

    def match(self, request: Request) -> Ask | None:
        """The prediction that it asks for; None: it asks for something else."""
        ...

    def speaks(self, request: Request) -> bool:
        """Whether a request that asks for no prediction is for this kind of server."""
        ...

    def model_named(self, request: Request) -> str | None:
        """The model that a request which asks for no prediction is about."""
        ...

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        """Why it may be neither copied nor answered by anything else; None: it may."""
        ...

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        """What an answer of this model says, as JSON has it, to be compared; None: its JSON. It raises ValueError if an
        answer cannot be read.
        """
        ...

    def variants(self, ask: Ask, request: Request, group_by: frozenset[str]) -> Hashable:
        """Equal for queries for which the model computes the same function. `group_by`: headers, in lower case, that an
        operator says change it.
        """
        ...

    def prediction(self, payload: QueryPayload, target: Target, raw: bool, secret: str) -> Request:
        """`raw`: the model's raw output shall come along."""
        ...

    def protection(self, members: Sequence[QueryPayload | None], target: Target, secret: str) -> Request:
        """Of a coding group; a slot without a member is None."""
        ...

    def finish(self, payload: QueryPayload, raw: Array, target: Target, secret: str) -> Request:
        """Make an ordinary answer of a rebuilt raw output."""
        ...

    def read_prediction(self, result: Response | NoResponse) -> TaskEnd: ...

    def read_protection(self, result: Response | NoResponse, family: str, k: int, sent: frozenset[int]) -> TaskEnd:
        """`sent`: the slots with a member."""
        ...

    def read_finish(self, result: Response | NoResponse) -> TaskEnd: ...

    def trouble(self, response: Response) -> Failed | Rejected | None:
        """Why this is no answer of the model, so that another instance may do better; None: it is one."""
        ...

    def confused(self, servers: str, request: Request, response: Response) -> str:
        """Why this server may answer one request with what is another's, as far as this answer tells; empty: it may
        not. `servers`: alike for those that serve the same.
        """
        ...

    def key_refused(self, response: Response) -> bool:
        """Whether the instance refuses the key that it was shown. Nothing was run."""
        ...

    def from_gateway(self, response: Response) -> bool:
        """Whether something between proxy and instance wrote this error, which then speaks of the instance."""
        ...

    def was_not_run(self, response: Response) -> bool:
        """Whether this error says that nothing was run, since key or model may belong to another instance."""
        ...

    def prober(
        self,
        instances: Sequence[InstanceSettings],
        upstream: Upstream,
        timeout_s: float,
        before: Prober | None = None,
    ) -> Prober:
        """`before`: of this kind, until the configuration changed. What it knows of an instance stays as long as the
        instance's addresses do; it is not used again.
        """
        ...

    def error(self, error: TsParityError) -> Response: ...
