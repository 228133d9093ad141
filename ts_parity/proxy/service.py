"""Answers one request: predictions of deployed models through the engine, everything else passed through.

Knows routes, the plan and the control headers. Knows nothing of client sockets, of how tasks are carried out, or of
TorchServe's management API.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from ts_parity.engine import Query, Source
from ts_parity.errors import BadClientRequest, Unavailable
from ts_parity.proxy.access import ERROR, PASSED, Facts
from ts_parity.proxy.driver import RETRY_AFTER_S, Delivered, Driver
from ts_parity.proxy.messages import (
    REQUEST_ID,
    Chunks,
    Reply,
    Request,
    error_reply,
    header,
    identified,
    torchserve_error,
    with_header,
)
from ts_parity.proxy.metrics import Metrics
from ts_parity.proxy.operations import Ask
from ts_parity.proxy.plan import Plan, pool_name
from ts_parity.proxy.routes import Prediction, model_named, prediction
from ts_parity.proxy.streams import Stream
from ts_parity.proxy.upstream import Address, Result, Upstream, from_gateway
from ts_parity.wire import DEADLINE_MS, EXACT, SOURCE, Headers

log = logging.getLogger(__name__)

# TorchServe itself speaks to handlers with these: they decide which of its functions runs.
_ALWAYS_GROUP_BY = ("explain", "describe")
_MAX_DEADLINE_S = 24 * 3600.0


class Streamed(NamedTuple):
    """A chunked answer with the headers the client shall see."""

    chunks: Chunks
    headers: Headers


Answered = Reply | Streamed


class Asker(Protocol):
    """Who wants an answer: `answer` is called once. What is put into `on_leave` is called if it goes before."""

    on_leave: Callable[[], object] | None
    facts: Facts | None

    def answer(self, answered: Answered) -> None: ...


class Service:
    """The proxy's answer to everything, given a plan of the fleet."""

    def __init__(self, driver: Driver, upstream: Upstream, metrics: Metrics, group_by: tuple[str, ...]) -> None:
        self._driver = driver
        self._upstream = upstream
        self._metrics = metrics
        self._group_by = frozenset((*_ALWAYS_GROUP_BY, *(name.lower() for name in group_by)))
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}

    def change_fleet(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        self._plan, self._addresses = plan, addresses

    def answer(self, request: Request, asker: Asker) -> None:
        """Never raises for what can go wrong with a request: errors are answers in TorchServe's shape."""
        exact, deadline_s = False, None
        if request.controls:
            try:
                exact = _read_header(request, EXACT, _flag) or False
                deadline_s = _read_header(request, DEADLINE_MS, _milliseconds)
            except BadClientRequest as error:
                asker.answer(_own(error_reply(error), request))
                return
        path, _, query_string = request.target.partition("?")
        asked = prediction(request.method, path)
        pool = None if asked is None else self._pool(asked)
        if asked is not None and pool is not None:
            self._predict(pool, asked, request, exact, deadline_s, asker)
            return
        model = asked.model if asked is not None else model_named(path, query_string)
        if model is not None and model in self._plan.protections and model not in self._plan.hosts:
            asker.answer(_own(torchserve_error(404, "ModelNotFoundException", f"Model not found: {model}"), request))
            return
        self._pass_through(_Passing(request, model, asker))

    def _pool(self, asked: Prediction) -> str | None:
        version = asked.version or self._plan.versions.get(asked.model)
        pool = None if version is None else pool_name(asked.model, version)
        return pool if pool in self._plan.pools else None

    def _predict(
        self, pool: str, asked: Prediction, request: Request, exact: bool, deadline_s: float | None, asker: Asker
    ) -> None:
        code = self._plan.pools[pool].code
        # The answer to HEAD has no body, so there is no raw output behind it and nothing to rebuild.
        key = None if code is None or request.method == "HEAD" else self._key(asked, request)
        client = partial(_give, asker, request)
        query = self._driver.predict(pool, Ask(request, asked.extra), key, client, exact, deadline_s)
        asker.on_leave = partial(self._leave, asker, query)

    def _leave(self, asker: Asker, query: Query) -> None:
        asker.facts = self._driver.abandon(query)

    def _key(self, asked: Prediction, request: Request) -> Hashable:
        """Queries share a group only if the model computes the same function for them. (TorchServe drops the query
        string of predictions, so that is no difference.)
        """
        found: dict[str, str] | None = None
        for name, value in request.headers:
            lower = name.lower()
            if lower in self._group_by:
                found = {} if found is None else found
                found[lower] = value  # the last one of that name, as TorchServe's own map keeps it
        return asked.extra if found is None else (asked.extra, *sorted(found.items()))

    # ---- everything else -------------------------------------------------------------------------------------------

    def _pass_through(self, passing: _Passing) -> None:
        instance = self._candidate(passing.model, passing.tried)
        if instance is None:
            self._metrics.passed_through.add("unavailable")
            # Why is for operators: problems name addresses, and say what the operating system said.
            tried, cause = passing.tried, passing.cause or "; ".join(self._plan.problems)
            passing.asker.facts = Facts(ERROR, ", ".join(tried) or None, attempts=len(tried), cause=cause)
            error = Unavailable("no instance can be reached", RETRY_AFTER_S)
            passing.asker.answer(_own(error_reply(error), passing.request))
            return
        passing.instance = instance
        passing.asker.facts = Facts(PASSED, instance)
        exchange = self._upstream.send(self._addresses[instance], passing.request, partial(self._passed, passing))
        passing.asker.on_leave = exchange.cancel

    def _passed(self, passing: _Passing, result: Result) -> None:
        answer: Answered
        if isinstance(result, Reply):
            if from_gateway(result) and self._candidate(passing.model, [*passing.tried, passing.instance]):
                # As for a prediction: the instance behind it is in trouble, and another may not be.
                passing.failed(f"{result.status} from a gateway")
                self._pass_through(passing)
                return
            self._metrics.passed_through.add("answered")
            answer = result
        elif isinstance(result, Stream):
            self._metrics.passed_through.add("answered")
            answer = Streamed(result, result.headers)
        elif result.refused:
            passing.failed(result.reason)
            self._pass_through(passing)  # nothing was run, so this is not a second attempt
            return
        else:
            self._metrics.passed_through.add("failed")
            passing.failed(result.reason)
            log.info("%s %s: %s", passing.request.method, passing.request.target, passing.cause)
            reply = torchserve_error(502, "BadGatewayException", "the instance gave no answer")
            attempts = len(passing.tried)
            passing.asker.facts = Facts(ERROR, passing.instance, attempts=attempts, cause=passing.cause)
            answer = _own(reply, passing.request)
        passing.asker.answer(answer)

    def _candidate(self, model: str | None, tried: Sequence[str]) -> str | None:
        """The least busy one not tried yet, of those that host the model, or of all that are up."""
        hosts = self._plan.hosts.get(model, ()) if model is not None else ()
        best, least = None, 0
        for name in hosts or self._plan.up:
            busy = self._upstream.busy(self._addresses[name])
            if (best is None or busy < least) and name not in tried:
                best, least = name, busy
        return best


class _Passing:
    """A request that is passed through, and who has refused the connection so far."""

    __slots__ = ("asker", "cause", "instance", "model", "request", "tried")

    def __init__(self, request: Request, model: str | None, asker: Asker) -> None:
        self.request = request
        self.model = model
        self.asker = asker
        self.instance = ""
        self.tried: list[str] = []
        self.cause = ""
        """What went wrong first."""

    def failed(self, reason: str) -> None:
        self.tried.append(self.instance)
        self.cause = self.cause or f"{self.instance}: {reason}"


def _own(reply: Reply, request: Request) -> Reply:
    return identified(reply, request.header(REQUEST_ID))


def _give(asker: Asker, request: Request, delivered: Delivered) -> None:
    """What the driver brings, as an answer that says where it came from."""
    answer, source = delivered.answer, delivered.source
    asker.facts = delivered.facts
    if isinstance(answer, Unavailable):
        asker.answer(_own(error_reply(answer), request))
        return
    if isinstance(answer, Reply):
        if source is Source.DEFAULT:
            answer = _own(answer, request)
        asker.answer(answer if source is None else with_header(answer, SOURCE, source._value_))
        return
    mark: Headers = () if source is None else ((SOURCE, source.value),)
    asker.answer(Streamed(answer, (*answer.headers, *mark)))


T = TypeVar("T")


def _read_header(request: Request, name: str, read: Callable[[str], T]) -> T | None:
    text = header(request.controls, name)
    if text is None:
        return None
    try:
        return read(text.strip())
    except ValueError as error:
        raise BadClientRequest(f"header {name} must be {error}, not {text[:100]!r}") from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _milliseconds(text: str) -> float:
    try:
        seconds = float(text) / 1000.0
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_DEADLINE_S:
        raise ValueError("a positive number of milliseconds, at most a day")
    return seconds
