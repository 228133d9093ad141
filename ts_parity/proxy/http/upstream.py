"""The instances' side: sends one request to an instance and returns what came of it, as data.

Knows addresses and keys. Knows nothing of queries, groups or policy, nor of what a kind of server means by a status.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, final

from ts_parity.engine import Cause
from ts_parity.proxy.http.certificates import Tls, why_failed
from ts_parity.proxy.http.connections import Origin, UpstreamConnection
from ts_parity.proxy.http.messages import (
    AUTHORIZATION,
    EXPECT,
    HOST,
    LENGTH,
    Request,
    Response,
    encode_head,
    has,
    header_flags,
    without_hop_by_hop,
)
from ts_parity.proxy.http.outbox import Outbox
from ts_parity.proxy.http.streams import Stream
from ts_parity.wire import Headers

_SMALL_BODY: Final = 65536


@dataclass(frozen=True)
class Address:
    """Where an API of an instance is, and its key. `vouch`: it replaces the key that a client brings."""

    url: str
    token: str = ""
    vouch: bool = False

    def checks_client_key(self, request: Request) -> bool:
        """Whether the client's own key is passed on, so that the instance checks it."""
        return bool(self.token) and not self.vouch and has(request.headers, AUTHORIZATION)


@dataclass(frozen=True)
class NoResponse:
    """There was no connection, so nothing was run; or the connection broke; or time was up."""

    reason: str
    cause: Cause = Cause.ERROR

    @property
    def refused(self) -> bool:
        return self.cause is Cause.UNREACHABLE


Result = Response | Stream | NoResponse


@final
class Exchange:
    """One request to an instance, until its result is known or the exchange is cancelled."""

    __slots__ = (
        "_connection",
        "_done",
        "_max_bytes",
        "_once",
        "_opening",
        "_origin",
        "_outstanding",
        "_request",
        "_token",
        "_whole",
        "times_out_at",
    )  # fmt: skip

    def __init__(
        self,
        outstanding_exchanges: dict[Exchange, None],
        origin: Origin,
        request: Request,
        token: str,
        times_out_at: float,
        done: Callable[[Result], None],
        max_bytes: float = math.inf,
        once: bool = False,
        whole: bool = False,
    ) -> None:
        self._max_bytes = max_bytes
        self._whole = whole
        self._once = once
        self._outstanding = outstanding_exchanges
        self._origin = origin
        self._request = request
        self._token = token
        self._done = done
        self._connection: UpstreamConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self.times_out_at = times_out_at
        outstanding_exchanges[self] = None
        origin.in_flight += 1

    def start(self, data: list[bytes]) -> None:
        """`data` is not kept: while the instance works it would be a second copy of the body."""
        idle = self._origin.idle
        while idle and not self._once:
            connection = idle.pop()
            if not connection.closing:
                self._write(connection, data)
                return
        self._connection = None
        self._opening = asyncio.get_running_loop().create_task(self._open(data))

    async def _open(self, data: list[bytes]) -> None:
        try:
            connection = await self._origin.connection()
        except (OSError, ValueError, asyncio.TimeoutError) as error:  # ValueError: a name that cannot be one
            if self in self._outstanding:  # otherwise it was cancelled as the connection failed
                self._end(NoResponse(_in_words(error), Cause.UNREACHABLE))
            return
        if self not in self._outstanding:  # it ended meanwhile, and the cancellation was swallowed
            connection.abort()
        elif connection.closing:
            self._end(NoResponse("it closed the connection at once", Cause.UNREACHABLE))
        else:
            self._write(connection, data)

    def _write(self, connection: UpstreamConnection, data: list[bytes]) -> None:
        self._connection = connection
        connection.send(data, self._request.method == "HEAD", self, self._max_bytes, self._whole)

    def arrived(self, response: Response | Stream) -> None:
        self._end(response)

    def lost(self, reason: str, untouched: bool) -> None:
        if untouched and self._opening is None:
            # The instance closed an idle connection as we wrote. Nothing was run, so this is no second attempt.
            self.start(_serialized(self._request, self._token, self._origin))
        else:
            self._end(NoResponse(reason, Cause.LOST))

    def time_out(self) -> None:
        """End it: the time is up."""
        self._give_up_connection()
        self._end(NoResponse("no answer in time"))

    def cancel(self) -> None:
        """End it without calling `done`."""
        if self in self._outstanding:
            self._give_up_connection()
            self._done = _ignore
            self._end(NoResponse("cancelled"))

    def _give_up_connection(self) -> None:
        """Close the connection: what still arrives could be taken for the next response."""
        if self._connection is not None:
            self._connection.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def _end(self, result: Result) -> None:
        del self._outstanding[self]
        self._origin.in_flight -= 1
        self._done(result)


def _ignore(result: Result) -> None:
    pass


class Upstream:
    """Connections to all instances, kept open. The engine limits how much is in flight; this does not."""

    def __init__(self, connect_timeout_s: float, task_timeout_s: float, tls: Mapping[str, Tls] | None = None) -> None:
        """`tls`: the TLS settings of each https address; `adopt` takes more."""
        self._tls = dict(tls or {})
        self._connect_timeout_s = connect_timeout_s
        self._task_timeout_s = task_timeout_s
        self._outbox = Outbox()
        self._origins: dict[str, Origin] = {}
        self._outstanding: dict[Exchange, None] = {}
        """In the order of their deadlines, since all have the same timeout; so one timer serves them all."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        return sum(origin.in_flight for origin in self._origins.values())

    def outstanding(self, address: Address) -> int:
        """Outstanding exchanges with this address."""
        origin = self._origins.get(address.url)
        return 0 if origin is None else origin.in_flight

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for exchange in [*self._outstanding]:
            exchange.cancel()
        for origin in self._origins.values():
            origin.close()

    def adopt(self, tls: Mapping[str, Tls]) -> None:
        """The TLS settings of these https addresses from now on; where they are others, so are the connections."""
        for url, made in tls.items():
            if made is not self._tls.get(url):
                self.forget(url)
        self._tls.update(tls)

    def forget(self, url: str) -> None:
        """Nothing more is sent there. What is in flight goes on."""
        self._tls.pop(url, None)
        if (origin := self._origins.pop(url, None)) is not None:
            origin.close()

    def send(
        self,
        address: Address,
        request: Request,
        done: Callable[[Result], None],
        once: bool = False,
        whole: bool = False,
    ) -> Exchange:
        """`done` is called once, later, with the result; a chunked response is a result as soon as it begins. `once`:
        nothing may run twice, so the request gets a connection of its own: if one that was kept breaks without a word,
        nobody can tell whether it had been closed for its idleness, or somebody died with the request. `whole`: a
        chunked response that does not say that it is a stream is gathered, if it is short.
        """
        return self._send(address, request, done, self._outstanding, self._task_timeout_s, once=once, whole=whole)

    async def exchange(
        self, address: Address, request: Request, timeout_s: float, max_bytes: float = math.inf, whole: bool = False
    ) -> Result:
        """Send and wait for the result. `max_bytes`: of a response, a longer one is none; `whole`: see `send`."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(what: Result) -> None:
            if not result.done():
                result.set_result(what)

        exchange = self._send(address, request, done, {}, timeout_s, max_bytes, whole=whole)
        timer = asyncio.get_running_loop().call_later(timeout_s, exchange.time_out)
        try:
            return await result
        finally:
            timer.cancel()
            exchange.cancel()

    def _send(
        self,
        address: Address,
        request: Request,
        done: Callable[[Result], None],
        outstanding_exchanges: dict[Exchange, None],
        timeout_s: float,
        max_bytes: float = math.inf,
        once: bool = False,
        whole: bool = False,
    ) -> Exchange:
        loop = asyncio.get_running_loop()
        origin = self._origins.get(address.url)
        if origin is None:
            origin = self._new_origin(address.url)
        token = "" if address.checks_client_key(request) else address.token
        data = _serialized(request, token, origin)
        times_out_at = loop.time() + timeout_s
        exchange = Exchange(outstanding_exchanges, origin, request, token, times_out_at, done, max_bytes, once, whole)
        if self._timer is None and outstanding_exchanges is self._outstanding:
            self._timer = loop.call_at(times_out_at, self._check)
        exchange.start(data)
        return exchange

    def _new_origin(self, url: str) -> Origin:
        origin = self._origins[url] = Origin(url, self._outbox, self._connect_timeout_s, self._tls.get(url))
        return origin

    async def reach(self, address: Address) -> NoResponse | None:
        """Whether it takes connections: None, or why not. What is opened for this is kept for the next request."""
        origin = self._origins.get(address.url) or self._new_origin(address.url)
        if any(not connection.closing for connection in origin.idle):
            return None
        try:
            connection = await origin.connection()
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            return NoResponse(_in_words(error), Cause.UNREACHABLE)
        if not connection.closing:
            origin.idle.append(connection)
        return None

    def _check(self) -> None:
        """End the exchanges whose time is up, and set the timer for the next."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for exchange in [*takewhile(lambda exchange: exchange.times_out_at <= loop.time(), self._outstanding)]:
            if exchange in self._outstanding:  # ending another one may have ended this one too
                exchange.time_out()
        first = next(iter(self._outstanding), None)
        if first is not None and self._timer is None:
            self._timer = loop.call_at(first.times_out_at, self._check)


def excerpt(body: bytes) -> str:
    """The beginning of a foreign text as one line that is safe on a terminal."""
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _serialized(request: Request, token: str, origin: Origin) -> list[bytes]:
    """`token`, if any, replaces the client's key."""
    method, target, body, block = request.method, request.target, request.body, request.block
    if block is not None and not (token and has(request.headers, AUTHORIZATION)):
        key = b"\r\nAuthorization: Bearer " + token.encode("latin-1", "replace") if token else b""
        data = b"%b %b%b HTTP/1.1\r\n%b%b\r\n\r\n" % (
            method.encode(), origin.prefix.encode(), target.encode("latin-1"), block, key,
        )  # fmt: skip
    else:
        data = encode_head(f"{method} {origin.prefix}{target} HTTP/1.1", _outgoing_headers(request, token, origin))
    # A small body goes out in one packet with its head; copying a large one would cost more than a packet.
    return [data + body] if len(body) < _SMALL_BODY else [data, body]


def _outgoing_headers(request: Request, token: str, origin: Origin) -> Headers:
    """The headers with a Host, the right length, and the instance's own key if there is one."""
    headers = []
    has_host = sized = False
    # `Expect` was for the proxy, which has responded to it.
    left_out = EXPECT | (AUTHORIZATION if token else 0)
    for pair in without_hop_by_hop(request.headers):
        flags = header_flags(pair[0])
        if flags & LENGTH:
            sized = True
            headers.append((pair[0], str(len(request.body))))
        elif not flags & left_out:
            has_host = has_host or bool(flags & HOST)
            headers.append(pair)
    if not has_host:
        headers.append(("Host", origin.host_header))
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    if not sized:  # so that the receiver need not guess; spelt as TorchServe's own frontend spells it
        headers.append(("content-length", str(len(request.body))))
    return tuple(headers)


def _in_words(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLError):
        return why_failed(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
