"""Answers one request: predictions of deployed models through the engine, everything else passed through.

Knows routes, the plan and the control headers. Knows nothing of client sockets, of how tasks are carried out, or of
TorchServe's management API.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ts_parity.errors import BadClientRequest, TsParityError, Unavailable
from ts_parity.proxy.connections import Stream
from ts_parity.proxy.driver import Delivered, Driver
from ts_parity.proxy.messages import (
    Chunks,
    Reply,
    Request,
    error_reply,
    torchserve_error,
    with_header,
    without_control,
)
from ts_parity.proxy.metrics import Metrics
from ts_parity.proxy.operations import Ask
from ts_parity.proxy.plan import Plan, pool_name
from ts_parity.proxy.routes import Prediction, model_named, prediction
from ts_parity.proxy.upstream import Address, Unreachable, Upstream
from ts_parity.wire import DEADLINE_MS, EXACT, SOURCE, Headers

# TorchServe itself speaks to handlers with these: they decide which of its functions runs.
_ALWAYS_GROUP_BY = ("explain", "describe")
_MAX_DEADLINE_S = 24 * 3600.0


class Streamed(NamedTuple):
    """A chunked answer with the headers the client shall see."""

    chunks: Chunks
    headers: Headers


Answered = Reply | Streamed


class Service:
    """The proxy's answer to everything, given a plan of the fleet."""

    def __init__(self, driver: Driver, upstream: Upstream, metrics: Metrics, group_by: tuple[str, ...]) -> None:
        self._driver = driver
        self._upstream = upstream
        self._metrics = metrics
        self._group_by = tuple(dict.fromkeys((*_ALWAYS_GROUP_BY, *group_by)))
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}

    def change_fleet(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        self._plan, self._addresses = plan, addresses

    async def answer(self, request: Request) -> Answered:
        """Never raises for what can go wrong with a request: errors are answers in TorchServe's shape."""
        try:
            exact, deadline_s = False, None
            headers = without_control(request.headers)
            if headers is not request.headers:
                exact = _read_header(request, EXACT, _flag) or False
                deadline_s = _read_header(request, DEADLINE_MS, _milliseconds)
                # From here on nothing a client sent can steer a worker.
                request = request._replace(headers=headers)
            asked = prediction(request.method, request.path)
            if asked is not None and (pool := self._pool(asked)) is not None:
                return await self._predict(pool, asked, request, exact, deadline_s)
            return await self._pass_through(asked, request)
        except TsParityError as error:
            return error_reply(error)

    def _pool(self, asked: Prediction) -> str | None:
        version = asked.version or self._plan.versions.get(asked.model)
        pool = None if version is None else pool_name(asked.model, version)
        return pool if pool in self._plan.pools else None

    async def _predict(
        self, pool: str, asked: Prediction, request: Request, exact: bool, deadline_s: float | None
    ) -> Answered:
        code = self._plan.pools[pool].code
        key = None if code is None else self._key(asked, request)
        delivered = await self._driver.predict(pool, Ask(request, asked.extra), key, exact, deadline_s)
        return _marked(delivered)

    def _key(self, asked: Prediction, request: Request) -> Hashable:
        """Queries share a group only if the model computes the same function for them. (TorchServe drops the query
        string of predictions, so that is no difference.)
        """
        headers = tuple(request.header(name) for name in self._group_by)
        return (asked.extra, *headers)

    async def _pass_through(self, asked: Prediction | None, request: Request) -> Answered:
        model = asked.model if asked is not None else model_named(request.path, request.query_string)
        if model is not None and model in self._plan.protections and model not in self._plan.hosts:
            return torchserve_error(404, "ModelNotFoundException", f"Model not found: {model}")
        tried: list[str] = []
        while (instance := self._candidate(model, tried)) is not None:
            result = await self._upstream.exchange(self._addresses[instance], request)
            if isinstance(result, Unreachable):
                if result.refused:
                    tried.append(instance)
                    continue  # nothing was run, so this is not a second attempt
                self._metrics.passed_through.labels("failed").inc()
                return torchserve_error(502, "BadGatewayException", f"{instance} gave no answer: {result.reason}")
            self._metrics.passed_through.labels("answered").inc()
            if isinstance(result, Stream):
                return Streamed(result, without_control(result.headers))
            headers = without_control(result.headers)
            return result if headers is result.headers else result._replace(headers=headers)
        self._metrics.passed_through.labels("unavailable").inc()
        reason = "; ".join(self._plan.problems) or "all refused the connection"
        raise Unavailable(f"no instance can be reached: {reason}")

    def _candidate(self, model: str | None, tried: Sequence[str]) -> str | None:
        """The least busy one not tried yet, of those that host the model, or of all that are up."""
        hosts = self._plan.hosts.get(model, ()) if model is not None else ()
        best, least = None, math.inf
        for name in hosts or self._plan.up:
            busy = self._upstream.in_flight[self._addresses[name].url]
            if busy < least and name not in tried:
                best, least = name, busy
        return best


def _marked(delivered: Delivered) -> Answered:
    answer, source = delivered.answer, delivered.source
    if isinstance(answer, Reply):
        return answer if source is None else with_header(answer, SOURCE, source.value)
    mark: Headers = () if source is None else ((SOURCE, source.value),)
    return Streamed(answer, (*answer.headers, *mark))


T = TypeVar("T")


def _read_header(request: Request, name: str, read: Callable[[str], T]) -> T | None:
    text = request.header(name)
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
