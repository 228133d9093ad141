"""Answers one request: predictions of deployed models through the engine, everything else passed through.

Knows routes, the plan and the control headers. Knows nothing of client sockets, of how tasks are carried out, or of
TorchServe's management API.
"""

from __future__ import annotations

import logging
import math
from asyncio import Future, TimerHandle, get_running_loop
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from ts_parity.confidence import in_header
from ts_parity.engine import Query, Source
from ts_parity.errors import BadClientRequest, DeadlineExceeded, Unavailable
from ts_parity.proxy.fleet.plan import Plan, pool_name
from ts_parity.proxy.fleet.reports import REFUSED
from ts_parity.proxy.http.access import ERROR, PASSED, Facts
from ts_parity.proxy.http.messages import (
    AUTHORIZATION,
    REQUEST_ID,
    Answered,
    Reply,
    Request,
    Streamed,
    error_reply,
    has,
    header,
    identified,
    torchserve_error,
    with_header,
)
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, Exchange, Result, Upstream, error_fields, from_gateway
from ts_parity.proxy.serving.driver import RETRY_AFTER_S, Delivered, Driver
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.proxy.serving.routes import Prediction, model_named, prediction
from ts_parity.proxy.serving.tasks import Ask
from ts_parity.wire import CONFIDENCE, DEADLINE_MS, EXACT, SOURCE, Headers

log = logging.getLogger(__name__)

# TorchServe itself speaks to handlers with these: they decide which of its functions runs.
_ALWAYS_GROUP_BY = ("explain", "describe")
_MAX_DEADLINE_S = 24 * 3600.0
# So long a request for an unknown model waits for the instances to say what they host.
_LOOK_S = 1.0
_WARMED_EVERY_S = 10.0
_NOT_RUN = frozenset({"InvalidKeyException", "ModelNotFoundException", "ModelVersionNotFoundException"})


class Asker(Protocol):
    """Who wants an answer: `answer` is called once. What is put into `on_leave` is called if it goes before."""

    on_leave: Callable[[], object] | None
    facts: Facts | None

    def answer(self, answered: Answered) -> None: ...


class Service:
    """The proxy's answer to everything, given a plan of the fleet."""

    def __init__(
        self,
        driver: Driver,
        upstream: Upstream,
        metrics: Metrics,
        group_by: tuple[str, ...],
        look: Callable[[], Future[None]],
    ) -> None:
        """`look` looks at the fleet now: what it gives back is done when `change_fleet` has been told."""
        self._driver = driver
        self._upstream = upstream
        self._metrics = metrics
        self._group_by = frozenset((*_ALWAYS_GROUP_BY, *(name.lower() for name in group_by)))
        self._look = look
        self._loop = get_running_loop()
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}
        self._probed: set[str] = set()
        """Instances that are not known to serve, and have a request all the same, one at a time."""
        self._warmed_at: dict[str, float] = {}

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
        if asked is not None and pool is not None and pool in self._plan.serving:
            self._predict(pool, asked, request, exact, deadline_s, asker)
            return
        model = asked.model if asked is not None else model_named(path, query_string)
        passing = _Passing(request, model, asker, asked, exact, deadline_s)
        if model is None or (asked is None and model in self._plan.hosts):
            self._pass_through(passing)
        elif not self._is_refused(passing):
            if self._plan.locked:  # a look would tell no more of those: nobody waits for it
                self._look()
                self._pass_through(passing)
            else:
                self._after_a_look(passing)

    def _pool(self, asked: Prediction) -> str | None:
        version = asked.version or self._plan.versions.get(asked.model)
        pool = None if version is None else pool_name(asked.model, version)
        return pool if pool in self._plan.pools else None

    # ---- models that nobody is known to serve ----------------------------------------------------------------------

    def _is_refused(self, passing: _Passing) -> bool:
        """A protection is not for clients, and a model whose instances are all down is not unknown."""
        model, asked, plan = passing.model, passing.asked, self._plan
        assert model is not None
        if model in plan.protections and model not in plan.hosts:
            not_found = torchserve_error(404, "ModelNotFoundException", f"Model not found: {model}")
            passing.asker.answer(_own(not_found, passing.request))
            return True
        pool = pool_name(model, asked.version) if asked is not None and asked.version else None
        if model in plan.missing or pool in plan.missing:
            self._metrics.passed_through.add("unavailable")
            cause = "; ".join(self._plan.problems)
            passing.asker.facts = Facts(ERROR, None, pool or model, cause=cause)
            error = Unavailable(f"no instance that serves {pool or model} can be reached", RETRY_AFTER_S)
            passing.asker.answer(_own(error_reply(error), passing.request))
            return True
        return False

    def _after_a_look(self, passing: _Passing) -> None:
        """It may have been registered, or become READY, since the last look: a client that did so need not pause. An
        instance that is slow to say what it has holds nobody up for long.
        """
        look = self._look()
        timer = self._loop.call_later(_LOOK_S, self._looked, passing)
        look.add_done_callback(lambda _: self._looked(passing))
        passing.asker.on_leave = passing.leave
        passing.timer = timer

    def _looked(self, passing: _Passing) -> None:
        if passing.timer is None:
            return
        passing.timer.cancel()
        passing.timer = None
        asked = passing.asked
        pool = None if asked is None else self._pool(asked)
        if passing.lost is not None and pool == passing.lost[0] and pool not in self._plan.serving:
            _give(passing.asker, passing.request, passing.lost[1])
            return
        if asked is None or pool is None:
            if not self._is_refused(passing):
                self._pass_through(passing)
            return
        if pool not in self._plan.serving:
            for host in self._plan.cold.get(pool, ()):
                if host not in self._probed:
                    self._pass_to(passing, host, probes=True)
                    return
            if self._plan.locked:
                self._pass_through(passing)
                return
        once = passing.lost is not None
        self._predict(pool, asked, passing.request, passing.exact, passing.deadline_s, passing.asker, once)

    def _warm(self, pool: str, request: Request) -> None:
        """Once in a while a copy of a query, for whose answer nobody waits, goes where it may be what READY needs."""
        plan, never = self._plan.pools[pool], self._plan.pools[pool].never_code
        if REFUSED in plan.verdicts or not self._driver.may_copy(pool):
            return
        if never is not None and never.covers(request.headers, request.body):
            return
        now = self._loop.time()
        for host in self._plan.cold[pool]:
            if host not in self._probed and now >= self._warmed_at.get(host, -math.inf) + _WARMED_EVERY_S:
                self._warmed_at[host] = now
                self._probed.add(host)
                self._upstream.send(self._addresses[host], request, partial(self._warmed, host))

    def _warmed(self, host: str, result: Result) -> None:
        self._probed.discard(host)
        if isinstance(result, Stream):
            result.leave()
        elif isinstance(result, Reply) and result.status < 300:
            self._look()

    # ---- predictions ------------------------------------------------------------------------------------------------

    def _predict(
        self,
        pool: str,
        asked: Prediction,
        request: Request,
        exact: bool,
        deadline_s: float | None,
        asker: Asker,
        once: bool = False,
    ) -> None:
        """`once`: what becomes of it is its answer, even if the model has gone meanwhile."""
        plan = self._plan.pools[pool]
        # The answer to HEAD has no body, so there is no raw output behind it and nothing to rebuild. And a client whose
        # key TorchServe is to judge gets TorchServe's answer: a rebuilt one would be had with the proxy's.
        uncoded = plan.code is None or request.method == "HEAD" or self._is_judged(request)
        key = None if uncoded else self._key(asked, request)
        if key is not None and plan.never_code is not None and plan.never_code.covers(request.headers, request.body):
            key = None
        if once or not plan.repeatable:
            client = partial(_give, asker, request)
        else:
            ends_at = None if deadline_s is None else self._loop.time() + deadline_s
            client = partial(self._give_or_look, pool, asked, request, exact, ends_at, asker)
        query = self._driver.predict(
            pool, Ask(request, asked.extra, asked.version is None), key, client, exact, deadline_s
        )
        if query.open:
            asker.on_leave = partial(self._leave, asker, query)
        if self._plan.cold and pool in self._plan.cold:
            self._warm(pool, request)

    def _give_or_look(
        self,
        pool: str,
        asked: Prediction,
        request: Request,
        exact: bool,
        ends_at: float | None,
        asker: Asker,
        delivered: Delivered,
    ) -> None:
        """Its version may have gone under it, and another may be the default by now. Or the same one is back: while a
        fleet is replaced in turn, each instance may lack it just when this query comes. Then it is asked anew, once.
        """
        left_s = None if ends_at is None else ends_at - self._loop.time()
        if not delivered.missing or (left_s is not None and left_s <= 0):
            _give(asker, request, delivered)
            return
        passing = _Passing(request, asked.model, asker, asked, exact, left_s)
        passing.lost = pool, delivered
        self._after_a_look(passing)

    def _leave(self, asker: Asker, query: Query) -> None:
        asker.facts = self._driver.abandon(query)

    def _is_judged(self, request: Request) -> bool:
        return has(request.headers, AUTHORIZATION) and any(each.judges(request) for each in self._addresses.values())

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
        if instance is not None:
            self._pass_to(passing, instance)
        elif passing.page is not None:
            passing.asker.answer(passing.page)
        else:
            self._metrics.passed_through.add("unavailable")
            # Why is for operators: problems name addresses, and say what the operating system said.
            tried, cause = passing.tried, passing.cause or "; ".join(self._plan.problems)
            passing.asker.facts = Facts(ERROR, ", ".join(tried) or None, attempts=len(tried), cause=cause)
            error = Unavailable("no instance can be reached", RETRY_AFTER_S)
            passing.asker.answer(_own(error_reply(error), passing.request))

    def _pass_to(self, passing: _Passing, instance: str, probes: bool = False) -> None:
        passing.instance = instance
        passing.asker.facts = Facts(PASSED, instance)
        passing.probes = probes or instance not in self._plan.up
        if passing.probes:
            self._probed.add(instance)
        exchange = self._upstream.send(self._addresses[instance], passing.request, partial(self._passed, passing))
        passing.asker.on_leave = partial(self._left, passing, exchange)
        if passing.asked is not None:  # a prediction has a deadline, whoever carries it out
            given = passing.deadline_s
            wait_s = self._driver.scheduler.policy.deadline_s if given is None else given
            passing.timer = self._loop.call_later(wait_s, self._late, passing, exchange)

    def _late(self, passing: _Passing, exchange: Exchange) -> None:
        passing.is_late = True
        exchange.late()

    def _left(self, passing: _Passing, exchange: Exchange) -> None:
        passing.leave()
        if passing.probes:
            self._probed.discard(passing.instance)
        exchange.cancel()

    def _passed(self, passing: _Passing, result: Result) -> None:
        answer: Answered
        passing.leave()
        if passing.probes:
            self._probed.discard(passing.instance)
        if isinstance(result, Reply):
            if from_gateway(result):
                # As for a prediction: the instance behind it is in trouble, and another may not be.
                passing.failed(f"{result.status} from a gateway")
                passing.page = result
                if self._may_be_repeated(passing.model):
                    self._pass_through(passing)
                else:
                    passing.asker.answer(result)
                return
            if passing.instance in self._plan.locked and _was_not_run(result):
                passing.failed(f"{result.status} {error_fields(result)[0]}")
                passing.page = passing.page or result
                self._pass_through(passing)
                return
            if passing.asked is not None and result.status < 300:
                self._look()  # somebody does serve it
            self._metrics.passed_through.add("answered")
            answer = result
        elif isinstance(result, Stream):
            self._metrics.passed_through.add("answered")
            answer = Streamed(result, result.headers)
        elif result.refused:
            passing.failed(result.reason)
            self._pass_through(passing)  # nothing was run, so this is not a second attempt
            return
        elif passing.is_late:
            self._metrics.passed_through.add("failed")
            passing.failed("no answer before the deadline")
            passing.asker.facts = Facts(ERROR, passing.instance, attempts=len(passing.tried), cause=passing.cause)
            error = DeadlineExceeded(f"no prediction of {passing.model} arrived before the deadline")
            answer = _own(error_reply(error), passing.request)
        else:
            self._metrics.passed_through.add("failed")
            passing.failed(result.reason)
            log.info("%s %s: %s", passing.request.method, passing.request.target, passing.cause)
            reply = torchserve_error(502, "BadGatewayException", "the instance gave no answer")
            attempts = len(passing.tried)
            passing.asker.facts = Facts(ERROR, passing.instance, attempts=attempts, cause=passing.cause)
            answer = _own(reply, passing.request)
        passing.asker.answer(answer)

    def _may_be_repeated(self, model: str | None) -> bool:
        """A gateway does not say whether the instance behind it has run what was asked."""
        return all(pool.repeatable for pool in self._plan.pools.values() if pool.model == model)

    def _candidate(self, model: str | None, tried: Sequence[str]) -> str | None:
        """The least busy one not tried yet, of those that host the model, or may, or of all that are up. If none is,
        one that only a gateway says is down; but no more than a request at a time.
        """
        hosts = () if model is None else self._plan.hosts.get(model, ()) or self._plan.locked
        best, least = None, 0
        for name in hosts or self._plan.up:
            busy = self._upstream.busy(self._addresses[name])
            if (best is None or busy < least) and name not in tried:
                best, least = name, busy
        if best is None and not self._plan.up:
            return next((name for name in self._plan.fronted if name not in self._probed and name not in tried), None)
        return best


class _Passing:
    """A request that is passed through, and who has refused the connection so far."""

    __slots__ = (
        "asked", "asker", "cause", "deadline_s", "exact", "instance", "is_late", "lost", "model", "page", "probes",
        "request", "timer", "tried",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        model: str | None,
        asker: Asker,
        asked: Prediction | None,
        exact: bool,
        deadline_s: float | None,
    ) -> None:
        self.request = request
        self.model = model
        self.asker = asker
        self.asked = asked
        self.exact = exact
        self.deadline_s = deadline_s
        self.instance = ""
        self.is_late = False
        self.probes = False
        """Its instance is not known to serve, so it is the only one there."""
        self.tried: list[str] = []
        self.cause = ""
        """What went wrong first."""
        self.page: Reply | None = None
        """What a gateway said, for want of a better answer."""
        self.lost: tuple[str, Delivered] | None = None
        """The pool that was gone when its turn came, and what it would have been told."""
        self.timer: TimerHandle | None = None
        """Of its wait for a look at the fleet, then of its deadline."""

    def failed(self, reason: str) -> None:
        self.tried.append(self.instance)
        self.cause = self.cause or f"{self.instance}: {reason}"

    def leave(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _was_not_run(reply: Reply) -> bool:
    """It is another instance's key, or another has the model."""
    return reply.status in (400, 404) and error_fields(reply)[0] in _NOT_RUN


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
        if source is not None:
            answer = with_header(answer, SOURCE, source._value_)
        if delivered.confidence is not None:
            answer = with_header(answer, CONFIDENCE, in_header(delivered.confidence))
        asker.answer(answer)
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
