"""Forwards queries to the proxy that serves their model, and takes back what that proxy does not answer.

A forwarded query bears a proof that a member sent it, so it is served where it arrives and never forwarded again,
whatever the two think of who owns the model. Its answer says that a member gave it; anything else that comes back (an
error of something in between, a refused connection) is no answer. Then this proxy serves the query itself, as it does
when the other cannot, breaks off or falls silent: nothing is lost, and a model that must be asked once only is not
asked twice.

Knows peers and requests. Knows nothing of engine, tasks or instances.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from ts_parity.engine import Source
from ts_parity.errors import DeadlineExceeded, TsParityError, Unavailable
from ts_parity.proxy.fleet.peers import Peers
from ts_parity.proxy.http.access import ERROR, STATUS_LEFT, AccessEntry
from ts_parity.proxy.http.messages import (
    REQUEST_ID,
    AnyResponse,
    Request,
    Response,
    StreamedResponse,
    encode_headers,
    error_response,
    header,
    with_header,
    with_request_id,
)
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Result
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.proxy.serving.tracing import LEFT, NOBODY, Relayed
from ts_parity.wire import (
    CONFIDENCE,
    DEADLINE_MS,
    EXACT,
    FORWARDED,
    FORWARDED_ANSWERED,
    FORWARDED_UNABLE,
    LEAST_CONFIDENCE,
    SOURCE,
    SPAN,
    Headers,
)

log = logging.getLogger(__name__)

FORWARDED_TO: Final = "forwarded"
"""The outcome in the access log; the line of who served it has the rest."""
_OF_CLIENTS: Final = frozenset({EXACT, LEAST_CONFIDENCE})
"""Control headers that go on as the client sent them; of its deadline goes on what is left."""
_OF_ANSWERS: Final = frozenset({SOURCE, CONFIDENCE})
_GRACE_S: Final = 0.25
"""The owner answers at the deadline, and that answer takes its way."""


class Responder(Protocol):
    """Takes the response: `respond` is called once. `on_disconnect`, if set, is called when the client goes first."""

    on_disconnect: Callable[[], object] | None
    entry: AccessEntry | None

    def respond(self, response: AnyResponse) -> None: ...


class PeerResponder:
    """Whoever has forwarded a query gets its answer, marked as one of a member. `unable`: this proxy has none to give,
    and nobody is the worse if another tries. `traced`: it has spans of the query.
    """

    __slots__ = ("_member", "_responder", "traced", "unable")

    def __init__(self, responder: Responder, member: str) -> None:
        self._responder = responder
        self._member = member
        self.unable = False
        self.traced = False

    @property
    def on_disconnect(self) -> Callable[[], object] | None:
        return self._responder.on_disconnect

    @on_disconnect.setter
    def on_disconnect(self, call: Callable[[], object] | None) -> None:
        self._responder.on_disconnect = call

    @property
    def entry(self) -> AccessEntry | None:
        return self._responder.entry

    @entry.setter
    def entry(self, entry: AccessEntry | None) -> None:
        if entry is not None:
            entry.forwarded_by = self._member
        self._responder.entry = entry

    def respond(self, response: AnyResponse) -> None:
        marks = [(FORWARDED, FORWARDED_UNABLE if self.unable else FORWARDED_ANSWERED)]
        if self.traced:
            marks.append((SPAN, "1"))
        if isinstance(response, Response):
            for name, value in marks:
                response = with_header(response, name, value)
            self._responder.respond(response)
        else:
            self._responder.respond(StreamedResponse(response.chunks, (*response.headers, *marks)))

    def refuse(self, model: str, request: Request) -> None:
        """The model is not served here (any more)."""
        self.unable = True
        self.entry = AccessEntry(ERROR, None, model, cause="this proxy does not serve it")
        error = error_response(Unavailable(f"{model} is not served here"))
        self.respond(with_request_id(error, request.header(REQUEST_ID)))


class Forwarder:
    """The queries of this proxy that others serve."""

    def __init__(self, peers: Peers, metrics: Metrics, deadline_s: float, default: Response | None) -> None:
        """`deadline_s`: of a query that says none. `default`: answered at the deadline in place of an error."""
        self._peers = peers
        self._metrics = metrics
        self.adopt(deadline_s, default)
        self._keys: dict[str, str] = {}
        self._out: dict[str, dict[ForwardedQuery, None]] = {}
        """By address: what was sent there and is not answered yet."""

    def adopt(self, deadline_s: float, default: Response | None) -> None:
        """See above; for queries that come from now on."""
        self._deadline_s, self._default = deadline_s, default

    def change_keys(self, keys: dict[str, str]) -> None:
        """Pool -> key, the same for pools that must have one owner."""
        self._keys = keys

    def owner(self, pool: str) -> str | None:
        """The address of the peer that serves this pool; None: this proxy does."""
        return self._peers.members.owner(pool, self._keys.get(pool, pool))

    def answer_heartbeat(self, request: Request) -> Response | None:
        return self._peers.answer(request)

    def forwarded_by(self, request: Request) -> str | None:
        return self._peers.forwarded_by(request)

    def forward(
        self,
        address: str,
        pool: str,
        request: Request,
        responder: Responder,
        deadline_s: float | None,
        repeatable: bool,
        serve: Callable[[str, float], None],
        error: Callable[[TsParityError], Response],
        relayed: Relayed | None,
    ) -> None:
        """`error` makes responses of errors. `serve` is called if this proxy has to serve the query after all, with
        why and what is left of the deadline. `repeatable`: it may be, even if the other proxy may have run it.
        `relayed`: where queries are traced.
        """
        query = ForwardedQuery(self, address, pool, request, responder, deadline_s, repeatable, serve, error, relayed)
        self._out.setdefault(address, {})[query] = None
        query.start(self._peers, self._deadline_s)

    def lost(self, address: str, pools: frozenset[str] | None) -> None:
        """The peer is no longer alive, or cannot serve these pools: what it still has of them is served here."""
        for query in [*self._out.get(address, ())]:
            if pools is None or query.pool in pools:
                try:
                    query.peer_lost()
                except Exception:  # one query's failure must not affect the others
                    log.exception("a query could not be taken back")

    def ended(self, query: ForwardedQuery, outcome: str) -> None:
        self._metrics.forwarded.add(outcome)
        out = self._out[query.address]
        del out[query]
        if not out:
            del self._out[query.address]

    def default_answer(self) -> Response | None:
        return self._default

    def in_flight(self) -> int:
        return sum(len(out) for out in self._out.values())


class ForwardedQuery:
    """One query at another proxy, until it is answered, served here, or its client has left."""

    def __init__(
        self,
        forwarder: Forwarder,
        address: str,
        pool: str,
        request: Request,
        responder: Responder,
        deadline_s: float | None,
        repeatable: bool,
        serve: Callable[[str, float], None],
        error: Callable[[TsParityError], Response],
        relayed: Relayed | None,
    ) -> None:
        self.address = address
        self.pool = pool
        self._forwarder = forwarder
        self._request = request
        self._responder = responder
        self._given_s = deadline_s
        self._repeatable = repeatable
        self._serve = serve
        self._error = error
        self._relayed = relayed
        self._loop = asyncio.get_running_loop()

    def start(self, peers: Peers, deadline_s: float) -> None:
        self._peers = peers
        self._responder.entry = AccessEntry(FORWARDED_TO, self.address)
        marks = [peers.forwarding_header]
        if self._relayed is not None:
            marks.append(self._relayed.forwarded(self.address))
        request = forwarded_request(self._request, self._given_s, marks)
        self._ends_at = self._loop.time() + (deadline_s if self._given_s is None else self._given_s)
        self._timer = self._loop.call_at(self._ends_at + _GRACE_S, self._on_deadline)
        self._exchange = peers.upstream.send(Address(self.address), request, self._on_result, not self._repeatable)
        self._responder.on_disconnect = self._on_disconnect

    def peer_lost(self) -> None:
        """What must not be asked twice goes on waiting: its answer may still come."""
        if self._repeatable:
            self._take_back("was lost, or sees no instance of it any more")

    def _on_result(self, result: Result) -> None:
        if self._relayed is not None:
            self._relayed.came(result)
        if isinstance(result, NoResponse):
            # One connection that breaks says nothing of the others: whether the peer lives, its heartbeat tells.
            if result.refused:
                self._peers.lost(self.address, result.reason)
            self._not_answered(result.reason, untouched=result.refused)
            return
        mark = header(result.controls, FORWARDED)
        if mark == FORWARDED_ANSWERED:
            self._end("answered")
            source = header(result.controls, SOURCE) or NOBODY
            self._traced(source, result.status, "", header(result.controls, SPAN) is not None)
            self._responder.respond(_as_given(result))
            return
        if isinstance(result, Stream):
            result.close()
        if mark == FORWARDED_UNABLE:
            self._take_back("cannot serve it")
        else:
            self._not_answered(f"answered {result.status}, and not as a proxy does", untouched=False)

    def _not_answered(self, why: str, untouched: bool) -> None:
        if untouched or self._repeatable:
            self._take_back(why)
            return
        if self._relayed is not None:
            self._relayed.failed(why, FORWARDED_TO)
        self._end("failed")
        self._fail(Unavailable("the proxy that had the query gave no answer, and it must not be asked twice"), why)

    def _take_back(self, why: str) -> None:
        """Serve it here, in what is left of its time."""
        left_s = self._ends_at - self._loop.time()
        if self._relayed is not None:
            self._relayed.failed(why, FORWARDED_TO)
        self._end("taken back")
        self._exchange.cancel()
        if left_s <= 0.0:
            self._expire(why)
        else:
            self._responder.entry = None
            self._serve(f"peer {self.address} {why}", left_s)

    def _on_deadline(self) -> None:
        self._end("failed")
        self._exchange.cancel()
        self._expire("gave no answer before the deadline")

    def _expire(self, why: str) -> None:
        default = self._forwarder.default_answer()
        if default is None:
            self._fail(DeadlineExceeded("no prediction arrived before the deadline"), why)
            return
        self._traced(Source.DEFAULT.value, default.status)
        self._responder.respond(with_header(self._identified(default), SOURCE, Source.DEFAULT.value))

    def _fail(self, error: Unavailable, why: str) -> None:
        self._responder.entry = AccessEntry(ERROR, self.address, cause=f"peer {self.address} {why}")
        response = self._error(error)
        self._traced(NOBODY, response.status, "deadline" if isinstance(error, DeadlineExceeded) else "unavailable")
        self._responder.respond(self._identified(response))

    def _identified(self, response: Response) -> Response:
        return with_request_id(response, self._request.header(REQUEST_ID))

    def _on_disconnect(self) -> None:
        self._end("abandoned")
        self._exchange.cancel()
        self._traced(NOBODY, STATUS_LEFT, LEFT)

    def _traced(self, source: str, status: int, error: str = "", told: bool = False) -> None:
        if self._relayed is not None:
            self._relayed.end(self._responder.entry, source, status, error, told)

    def _end(self, outcome: str) -> None:
        self._timer.cancel()
        self._responder.on_disconnect = None
        self._forwarder.ended(self, outcome)


def forwarded_request(request: Request, deadline_s: float | None, marks: list[tuple[str, str]]) -> Request:
    """The client's request as it came, with what the client asks of the proxy, and with what one proxy tells the other:
    the proof that a member sends it, and whose span it belongs under.
    """
    controls = [pair for pair in request.controls if pair[0].lower() in _OF_CLIENTS]
    if deadline_s is not None:
        controls.append((DEADLINE_MS, f"{max(1000.0 * deadline_s, 0.001):.3f}"))
    controls += marks
    block = None if request.block is None else request.block + b"\r\n" + encode_headers(controls)
    return Request(request.method, request.target, (*request.headers, *controls), request.body, block)


def _as_given(result: Response | Stream) -> AnyResponse:
    """As the client would have got it from the other proxy."""
    kept: Headers = tuple(pair for pair in result.controls if pair[0].lower() in _OF_ANSWERS)
    if isinstance(result, Stream):
        return StreamedResponse(result, (*result.headers, *kept))
    for name, value in kept:
        result = with_header(result, name, value)
    return result
