"""Handles one request: predictions of deployed models go through the engine, everything else is passed through.

Also decides what becomes of a request for a model that is not known (discovery runs first), not READY, or gone while
its query waited. Knows routes, the plan and the control headers. Knows nothing of client sockets, of how tasks are
carried out, or of TorchServe's management API.
"""

from __future__ import annotations

import hashlib
import logging
import math
from asyncio import Future, TimerHandle, get_running_loop
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from ts_parity.confidence import in_header
from ts_parity.engine import LOSSLESS, Query, Source
from ts_parity.errors import BadClientRequest, BadGateway, DeadlineExceeded, Unavailable, UnknownModel
from ts_parity.proxy.fleet.backends.backend import Backend, Unprotected
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload
from ts_parity.proxy.fleet.plan import Plan, pool_name
from ts_parity.proxy.fleet.reports import REFUSED
from ts_parity.proxy.http.access import ERROR, PASSED, STATUS_LEFT, UNLOGGED, AccessEntry
from ts_parity.proxy.http.messages import (
    AUTHORIZATION,
    REQUEST_ID,
    AnyResponse,
    Request,
    Response,
    StreamedResponse,
    has,
    header,
    with_header,
    with_request_id,
)
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, Exchange, Result, Upstream
from ts_parity.proxy.serving.driver import RETRY_AFTER_S, Driver, QueryResult
from ts_parity.proxy.serving.forwarding import Forwarder, PeerResponder, Responder
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.proxy.serving.tracing import LEFT, NOBODY, Relayed, Tracer
from ts_parity.proxy.serving.tracing import PASSED as FROM_INSTANCE
from ts_parity.wire import CONFIDENCE, DEADLINE_MS, EXACT, LEAST_CONFIDENCE, SOURCE, Headers

log = logging.getLogger(__name__)

_MAX_DEADLINE_S = 24 * 3600.0
# A request for an unknown model waits this long for discovery.
_DISCOVERY_WAIT_S = 1.0
_WARMED_EVERY_S = 10.0


class Service:
    """Handles requests according to the current plan."""

    def __init__(
        self,
        driver: Driver,
        upstream: Upstream,
        backends: Mapping[str, Backend],
        metrics: Metrics,
        group_by: tuple[str, ...],
        discover: Callable[[str, str], Future[None]],
        forwarder: Forwarder | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`backends`: of each instance. `discover` starts discovery; its future is done once `change_fleet` has been
        called. It is told the kind and the name of a model that a client asks for and nobody hosts, if that is why.
        `forwarder`: to other proxies, if there are any.
        """
        self._driver = driver
        self._forwarder = forwarder
        self._tracer = tracer
        self._upstream = upstream
        self._backends = [*dict.fromkeys(backends.values())]
        """The kinds there are; the first speaks for requests that are of none."""
        self._backend_of = backends
        self._metrics = metrics
        self._group_by = frozenset(name.lower() for name in group_by)
        self._grouping = 0
        """Which `group_by` it is, the first, the second ..."""
        self._discover = discover
        self._loop = get_running_loop()
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}
        self._probed: set[str] = set()
        """Instances that are not known to serve and have one request all the same."""
        self._warmed_at: dict[str, float] = {}

    def change_settings(self, group_by: tuple[str, ...], backends: Mapping[str, Backend]) -> None:
        """Adopt the operator's settings. A query that came before another `group_by` never shares a group with one that
        comes after: one header more may tell them apart.
        """
        names = frozenset(name.lower() for name in group_by)
        if names != self._group_by:
            self._group_by = names
            self._grouping += 1
        self._backends = [*dict.fromkeys(backends.values())]
        self._backend_of = {**self._backend_of, **backends}  # the plan still names the old ones

    def change_fleet(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        """`addresses`: of all instances there are."""
        self._plan, self._addresses = plan, addresses
        self._backend_of = {name: self._backend_of[name] for name in addresses}
        self._warmed_at = {name: at for name, at in self._warmed_at.items() if name in addresses}

    def handle(self, request: Request, responder: Responder) -> None:
        """Respond, now or later. Never raises for a bad request: errors are responses in its server's shape."""
        least, deadline_s = 0.0, None
        if request.controls:
            if (forwarder := self._forwarder) is not None:
                if (answer := forwarder.answer_heartbeat(request)) is not None:
                    responder.entry = UNLOGGED
                    responder.respond(answer)
                    return
                if (member := forwarder.forwarded_by(request)) is not None:
                    responder = PeerResponder(responder, member)
            try:
                least = _least_confidence(request)
                deadline_s = _read_header(request, DEADLINE_MS, _milliseconds)
            except BadClientRequest as error:
                responder.respond(_identified(self._backends[0].error(error), request))
                return
        backend, route = self._matching(request)
        if route is not None and (why := self._why_passed(backend, route, request)) is not None:
            self._pass_unprotected(backend, route, request, responder, why)
            return
        pool = None if route is None else self._pool(backend, route)
        if route is not None and pool is not None and pool in self._plan.serving:
            self._predict(pool, backend, route, request, least, deadline_s, responder)
            return
        if isinstance(responder, PeerResponder):
            responder.refuse(request.path if route is None else route.model, request)
            return
        named = route.model if route is not None else backend.model_named(request)
        model = None if named is None else backend.prefix + named
        passed = _PassThrough(backend, request, model, responder, route, least, deadline_s)
        if self._tracer is not None:
            passed.relayed = self._tracer.relays(request, route, model or "")
        if model is None or (route is None and model in self._plan.hosts):
            self._pass_through(passed)
        elif not self._refuse_unavailable(passed):
            if self._plan.unauthorized:  # discovery cannot see what those host, so the request does not wait for it
                self._discover("", "")
                self._pass_through(passed)
            else:
                self._wait_for_discovery(passed)

    def _matching(self, request: Request) -> tuple[Backend, Ask | None]:
        """-> the kind of server that the request is for, and the prediction that it asks for, if any."""
        for backend in self._backends:
            if (ask := backend.match(request)) is not None:
                return backend, ask
        if len(self._backends) > 1:
            for backend in self._backends:
                if backend.speaks(request):
                    return backend, None
        return self._backends[0], None

    def _why_passed(self, backend: Backend, route: Ask, request: Request) -> Unprotected | None:
        """Why a prediction does not go through the engine, if it does not."""
        why = backend.unprotected(route, request)
        if why is None and self._plan.passed:
            reason = self._plan.passed.get(backend.prefix + route.model)
            return None if reason is None else Unprotected(reason)
        return why

    def _pass_unprotected(
        self, backend: Backend, route: Ask, request: Request, responder: Responder, why: Unprotected
    ) -> None:
        """Once, to one instance, and for as long as it takes."""
        self._metrics.unrepeatable.add(backend.kind, why.reason)
        passed = _PassThrough(backend, request, backend.prefix + route.model, responder, None, 0.0, None)
        passed.stays_with, passed.why = why.stays_with, why.reason
        if self._tracer is not None:
            passed.relayed = self._tracer.relays(request, route, passed.model or "")
        if isinstance(responder, PeerResponder):
            responder.refuse(route.model, request)
        elif not self._refuse_unavailable(passed):
            self._pass_through(passed)

    def _pool(self, backend: Backend, route: Ask) -> str | None:
        model = backend.prefix + route.model
        version = route.version or self._plan.versions.get(model)
        pool = None if version is None else pool_name(model, version)
        return pool if pool in self._plan.pools else None

    # ---- models that no instance is known to serve -----------------------------------------------------------------

    def _refuse_unavailable(self, passed: _PassThrough) -> bool:
        """Respond with an error if it is a protection, or if all instances of the model are down. -> whether it was."""
        model, route, plan = passed.model, passed.route, self._plan
        assert model is not None
        if model in plan.protections and model not in plan.hosts:
            not_found = UnknownModel(f"Model not found: {model}")
            passed.fail(passed.backend.error(not_found))
            return True
        pool = pool_name(model, route.version) if route is not None and route.version else None
        if model in plan.missing or pool in plan.missing:
            self._metrics.passed_through.add("unavailable")
            cause = "; ".join(self._plan.problems)
            passed.responder.entry = AccessEntry(ERROR, None, pool or model, cause=cause)
            error = Unavailable(f"no instance that serves {pool or model} can be reached", RETRY_AFTER_S)
            passed.fail(passed.backend.error(error), "unavailable")
            return True
        return False

    def _wait_for_discovery(self, passed: _PassThrough) -> None:
        """The model may have been registered, or become READY, since the last discovery; a client that has just
        registered it need not pause. A slow instance delays the request only briefly.
        """
        named = "" if passed.model is None else passed.model.removeprefix(passed.backend.prefix)
        discover = self._discover(passed.backend.kind, named)
        timer = self._loop.call_later(_DISCOVERY_WAIT_S, self._after_discovery, passed)
        discover.add_done_callback(lambda _: self._after_discovery(passed))
        passed.responder.on_disconnect = passed.abandon
        passed.timer = timer

    def _after_discovery(self, passed: _PassThrough) -> None:
        if passed.timer is None:
            return
        passed.timer.cancel()
        passed.timer = None
        route = passed.route
        pool = None if route is None else self._pool(passed.backend, route)
        if passed.fallback is not None and pool == passed.fallback[0] and pool not in self._plan.serving:
            _respond(passed.responder, passed.backend, passed.request, passed.fallback[1])
            return
        if route is None or pool is None:
            if not self._refuse_unavailable(passed):
                self._pass_through(passed)
            return
        if pool not in self._plan.serving:
            for host in self._plan.cold.get(pool, ()):
                if host not in self._probed:
                    self._pass_to(passed, host, probes=True)
                    return
            if self._plan.unauthorized:
                self._pass_through(passed)
                return
        final, least, left_s = passed.fallback is not None, passed.least, passed.deadline_s
        responder, relayed = passed.responder, passed.relayed
        self._predict(pool, passed.backend, route, passed.request, least, left_s, responder, final, "", relayed)

    def _warm(self, pool: str, request: Request) -> None:
        """Occasionally send a copy of a query to instances whose workers may need one to become READY."""
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
            result.close()
        elif isinstance(result, Response) and result.status < 300:
            self._discover("", "")

    # ---- predictions ------------------------------------------------------------------------------------------------

    def _predict(
        self,
        pool: str,
        backend: Backend,
        route: Ask,
        request: Request,
        least: float,
        deadline_s: float | None,
        responder: Responder,
        final: bool = False,
        cause: str = "",
        relayed: Relayed | None = None,
    ) -> None:
        """`final`: the result is the response, even if the model has gone meanwhile. `cause`: why the peer that it was
        forwarded to has not answered it. `relayed`: where queries are traced, what became of it before.
        """
        plan = self._plan.pools[pool]
        if self._forwarder is not None:
            if isinstance(responder, PeerResponder):
                final = True  # whoever has forwarded it looks further
                if self._tracer is not None:
                    relayed = self._tracer.relays(request, route, pool, by_peer=True)
            elif not cause and (peer := self._forwarder.owner(pool)) is not None:
                if relayed is None and self._tracer is not None:
                    relayed = self._tracer.relays(request, route, pool)
                serve = partial(self._serve_after_all, pool, backend, route, request, least, responder, final, relayed)
                self._forwarder.forward(
                    peer, pool, request, responder, deadline_s, plan.repeatable, serve, backend.error, relayed
                )
                return
        # A response to HEAD has no body, so it has no raw output and nothing can be rebuilt. And a client whose key
        # TorchServe must check gets TorchServe's answer: a rebuilt one would come with the proxy's key.
        uncoded = plan.code is None or request.method == "HEAD" or self._key_is_checked(request)
        key = None if uncoded else (self._grouping, backend.variants(route, request, self._group_by))
        if key is not None and plan.never_code is not None and plan.never_code.covers(request.headers, request.body):
            key = None
        if final or not plan.repeatable:
            client = partial(_respond, responder, backend, request)
        else:
            ends_at = None if deadline_s is None else self._loop.time() + deadline_s
            client = partial(self._respond_or_rediscover, pool, backend, route, request, least, ends_at, responder)
        payload = QueryPayload(request, route)
        if relayed is not None:
            payload.relayed = relayed
        query = self._driver.predict(pool, payload, key, client, least, deadline_s)
        if query.open:
            query.first_cause = query.first_cause or cause
            responder.on_disconnect = partial(self._abandon, responder, query)
        if self._plan.cold and pool in self._plan.cold:
            self._warm(pool, request)

    def _serve_after_all(
        self,
        pool: str,
        backend: Backend,
        route: Ask,
        request: Request,
        least: float,
        responder: Responder,
        final: bool,
        relayed: Relayed | None,
        cause: str,
        left_s: float,
    ) -> None:
        """The peer that it was forwarded to has not answered it."""
        if pool in self._plan.pools:
            self._predict(pool, backend, route, request, least, left_s, responder, final, cause, relayed)
            return
        passed = _PassThrough(backend, request, backend.prefix + route.model, responder, route, least, left_s)
        passed.relayed = relayed
        if not self._refuse_unavailable(passed):
            self._wait_for_discovery(passed)

    def _respond_or_rediscover(
        self,
        pool: str,
        backend: Backend,
        route: Ask,
        request: Request,
        least: float,
        ends_at: float | None,
        responder: Responder,
        result: QueryResult,
    ) -> None:
        """If no instance has the version any more, discover and send the query once more. Another version may be the
        default by now, or the same one may be back: while instances are replaced one by one, each may lack the model
        just when the query reaches it.
        """
        left_s = None if ends_at is None else ends_at - self._loop.time()
        if not result.missing or (left_s is not None and left_s <= 0):
            _respond(responder, backend, request, result)
            return
        passed = _PassThrough(backend, request, backend.prefix + route.model, responder, route, least, left_s)
        passed.fallback = pool, result
        self._wait_for_discovery(passed)

    def _abandon(self, responder: Responder, query: Query) -> None:
        responder.entry = self._driver.abandon(query)

    def _key_is_checked(self, request: Request) -> bool:
        return has(request.headers, AUTHORIZATION) and any(
            each.checks_client_key(request) for each in self._addresses.values()
        )

    # ---- everything else -------------------------------------------------------------------------------------------

    def _pass_through(self, passed: _PassThrough) -> None:
        instance = self._candidate(passed)
        if instance is not None:
            self._pass_to(passed, instance)
        elif passed.page is not None:
            passed.respond(passed.page)
        else:
            self._metrics.passed_through.add("unavailable")
            # The cause is for operators only: it names addresses and quotes the operating system.
            tried, cause = passed.tried, passed.cause or "; ".join(self._plan.problems)
            passed.responder.entry = AccessEntry(ERROR, ", ".join(tried) or None, attempts=len(tried), cause=cause)
            error = Unavailable("no instance can be reached", RETRY_AFTER_S)
            passed.fail(passed.backend.error(error), "unavailable")

    def _pass_to(self, passed: _PassThrough, instance: str, probes: bool = False) -> None:
        passed.instance, passed.asked = instance, self._backend_of[instance]
        passed.responder.entry = AccessEntry(PASSED, instance, cause=passed.why or None)
        if passed.relayed is not None:
            passed.relayed.sent(instance)
        passed.probes = probes or instance not in self._plan.up
        if passed.probes:
            self._probed.add(instance)
        exchange = self._upstream.send(self._addresses[instance], passed.request, partial(self._on_result, passed))
        passed.responder.on_disconnect = partial(self._on_disconnect, passed, exchange)
        if passed.route is not None:  # a prediction has a deadline, passed through or not
            given = passed.deadline_s
            wait_s = self._driver.scheduler.policy.deadline_s if given is None else given
            passed.timer = self._loop.call_later(wait_s, self._on_deadline, passed, exchange)

    def _on_deadline(self, passed: _PassThrough, exchange: Exchange) -> None:
        passed.is_late = True
        exchange.time_out()

    def _on_disconnect(self, passed: _PassThrough, exchange: Exchange) -> None:
        passed.abandon()
        if passed.probes:
            self._probed.discard(passed.instance)
        exchange.cancel()

    def _on_result(self, passed: _PassThrough, result: Result) -> None:
        answer: AnyResponse
        passed.stop_timer()
        if passed.relayed is not None:
            passed.relayed.came(result)
        if passed.probes:
            self._probed.discard(passed.instance)
        if isinstance(result, Response):
            backend = passed.asked
            if backend.from_gateway(result):
                # As for a prediction: the instance behind the gateway is in trouble, and another may not be.
                passed.failed(f"{result.status} from a gateway")
                passed.page = result
                if self._may_be_repeated(passed.model):
                    self._pass_through(passed)
                else:
                    passed.respond(result)
                return
            if passed.instance in self._plan.unauthorized and backend.was_not_run(result):
                passed.failed(f"answered {result.status}, so nothing was run")
                passed.page = passed.page or result
                self._pass_through(passed)
                return
            if passed.route is not None and result.status < 300:
                self._discover("", "")  # an instance does serve it
            self._metrics.passed_through.add("answered")
            answer = result
        elif isinstance(result, Stream):
            self._metrics.passed_through.add("answered")
            answer = StreamedResponse(result, result.headers)
        elif result.refused:
            passed.failed(result.reason)
            self._pass_through(passed)  # nothing was run, so this is not a second attempt
            return
        elif passed.is_late:
            self._metrics.passed_through.add("failed")
            passed.failed("no answer before the deadline")
            passed.responder.entry = AccessEntry(ERROR, passed.instance, attempts=len(passed.tried), cause=passed.cause)
            error = DeadlineExceeded(f"no prediction of {passed.model} arrived before the deadline")
            passed.fail(passed.backend.error(error), "deadline")
            return
        else:
            self._metrics.passed_through.add("failed")
            passed.failed(result.reason)
            log.info("%s %s: %s", passed.request.method, passed.request.target, passed.cause)
            response = passed.backend.error(BadGateway("the instance gave no answer"))
            attempts = len(passed.tried)
            passed.responder.entry = AccessEntry(ERROR, passed.instance, attempts=attempts, cause=passed.cause)
            passed.fail(response, "failed")
            return
        passed.respond(answer)

    def _may_be_repeated(self, model: str | None) -> bool:
        """Whether the request may be sent again: a gateway does not say whether the instance has run it."""
        return all(pool.repeatable for pool in self._plan.pools.values() if pool.model == model)

    def _candidate(self, passed: _PassThrough) -> str | None:
        """The instance with the fewest outstanding requests that was not tried yet: of those that host the model, else
        that may host it, else of all that are up. If none is up, one that only a gateway calls down, one request at a
        time.
        """
        model, tried = passed.model, passed.tried
        hosts: Sequence[str] = () if model is None else self._plan.hosts.get(model, ())
        if model is not None and not hosts:
            hosts = [name for name in self._plan.unauthorized if self._backend_of[name].kind == passed.backend.kind]
        best, least = None, 0
        if passed.stays_with:
            there = [name for name in hosts or self._of_kind(passed.backend) if name not in tried]
            return _the_same(passed.stays_with, there)
        for name in hosts or self._of_kind(passed.backend):
            busy = self._upstream.outstanding(self._addresses[name])
            if (best is None or busy < least) and name not in tried:
                best, least = name, busy
        if best is None and not self._plan.up:
            return next(
                (name for name in self._plan.down_by_gateway if name not in self._probed and name not in tried), None
            )
        return best

    def _of_kind(self, backend: Backend) -> Sequence[str]:
        """Instances that are up and speak as this client does."""
        if len(self._backends) == 1:
            return self._plan.up
        return [name for name in self._plan.up if self._backend_of[name].kind == backend.kind]


def _the_same(key: str, instances: Sequence[str]) -> str | None:
    """For equal keys the same instance, for as long as that one is there (rendezvous hashing)."""
    return max(
        instances,
        key=lambda name: hashlib.blake2b(f"{key} {name}".encode("utf-8", "surrogatepass")).digest(),
        default=None,
    )


class _PassThrough:
    """A request that is passed through, and the instances tried so far."""

    __slots__ = (
        "asked",
        "backend",
        "cause",
        "deadline_s",
        "fallback",
        "instance",
        "is_late",
        "least",
        "model",
        "page",
        "probes",
        "relayed",
        "request",
        "responder",
        "route",
        "stays_with",
        "timer",
        "tried",
        "why",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        request: Request,
        model: str | None,
        responder: Responder,
        route: Ask | None,
        least: float,
        deadline_s: float | None,
    ) -> None:
        self.backend = backend
        """The kind of server that the client believes it speaks to."""
        self.request = request
        self.model = model
        self.responder = responder
        self.route = route
        self.least = least
        self.deadline_s = deadline_s
        self.instance = ""
        self.asked = backend
        """The kind of the instance; which may be gone by the time its answer comes."""
        self.is_late = False
        self.probes = False
        """Its instance is not known to serve, so no other request may go there meanwhile."""
        self.stays_with = ""
        """It goes where all go that have this text."""
        self.why = ""
        """Why a prediction is passed through."""
        self.tried: list[str] = []
        self.cause = ""
        """The first thing that went wrong."""
        self.relayed: Relayed | None = None
        """Where queries are traced."""
        self.page: Response | None = None
        """A gateway's error page, used if no instance gives a better response."""
        self.fallback: tuple[str, QueryResult] | None = None
        """The pool that was gone when the query was sent, and its result, used unless the pool is back."""
        self.timer: TimerHandle | None = None
        """For its wait for discovery, then for its deadline."""

    def failed(self, reason: str) -> None:
        self.tried.append(self.instance)
        self.cause = self.cause or f"{self.instance}: {reason}"

    def respond(self, answer: AnyResponse) -> None:
        """With what an instance has said."""
        if self.relayed is not None:
            status = answer.status if isinstance(answer, Response) else answer.chunks.status
            self.relayed.end(self.responder.entry, FROM_INSTANCE, status)
        self.responder.respond(answer)

    def fail(self, answer: Response, error: str = "") -> None:
        """With an error of this proxy's. `error`: of which kind, unless it is the client's."""
        if self.relayed is not None:
            self.relayed.end(self.responder.entry, NOBODY, answer.status, error)
        self.responder.respond(_identified(answer, self.request))

    def abandon(self) -> None:
        """Its client has left."""
        self.stop_timer()
        if self.relayed is not None:
            self.relayed.end(self.responder.entry, NOBODY, STATUS_LEFT, LEFT)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _identified(response: Response, request: Request) -> Response:
    return with_request_id(response, request.header(REQUEST_ID))


def _respond(responder: Responder, backend: Backend, request: Request, result: QueryResult) -> None:
    """Respond with the driver's result, and name its source in a header."""
    answer, source = result.answer, result.source
    responder.entry = result.entry
    if isinstance(responder, PeerResponder):
        responder.unable, responder.traced = result.unable, result.traced
    if isinstance(answer, Unavailable):
        responder.respond(_identified(backend.error(answer), request))
        return
    if isinstance(answer, Response):
        if source is Source.DEFAULT:
            answer = _identified(answer, request)
        if source is not None:
            answer = with_header(answer, SOURCE, source._value_)
        if result.confidence is not None:
            answer = with_header(answer, CONFIDENCE, in_header(result.confidence))
        responder.respond(answer)
        return
    mark: Headers = () if source is None else ((SOURCE, source.value),)
    responder.respond(StreamedResponse(answer, (*answer.headers, *mark)))


T = TypeVar("T")


def _read_header(request: Request, name: str, read: Callable[[str], T]) -> T | None:
    text = header(request.controls, name)
    if text is None:
        return None
    try:
        return read(text.strip())
    except ValueError as error:
        raise BadClientRequest(f"header {name} must be {error}, not {text[:100]!r}") from None


def _least_confidence(request: Request) -> float:
    """Of a rebuilt answer, at least."""
    exact, least = _read_header(request, EXACT, _flag), _read_header(request, LEAST_CONFIDENCE, _share)
    return LOSSLESS if exact else least or 0.0


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError("a number from 0 to 1")
    return share


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
