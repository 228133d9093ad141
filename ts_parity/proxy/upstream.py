"""The door to the instances: sends one request, gives back what came of it, as data.

The only place that knows what TorchServe's status codes mean for the question "would another endpoint do better?".
Knows nothing of queries, groups or policy.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ts_parity.engine import Failed, Rejected
from ts_parity.proxy.connections import Lost, Origin, Stream
from ts_parity.proxy.messages import (
    AUTHORIZATION,
    EXPECT,
    HOST,
    LENGTH,
    Reply,
    Request,
    head,
    meaning,
    without_hop_by_hop,
)

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_ERROR_BYTES = 65536
_SMALL_BODY = 65536


@dataclass(frozen=True)
class Address:
    """Where an API of an instance is, and its key."""

    url: str
    token: str = ""


@dataclass(frozen=True)
class Unreachable:
    """No answer. `refused`: no connection either, so nothing was run."""

    reason: str
    refused: bool = False


Result = Reply | Stream | Unreachable


class Upstream:
    """Connections to all instances, kept open. How much is in flight is the engine's business: no limit here."""

    def __init__(self, connect_timeout_s: float, task_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._task_timeout_s = task_timeout_s
        self._origins: dict[str, Origin] = {}
        self.in_flight: Counter[str] = Counter()

    async def close(self) -> None:
        for origin in self._origins.values():
            origin.close()

    async def exchange(self, address: Address, request: Request, timeout_s: float | None = None) -> Result:
        """Send and wait. A chunked answer is given back as soon as it begins."""
        timeout_s = self._task_timeout_s if timeout_s is None else timeout_s
        origin = self._origins.get(address.url)
        if origin is None:
            origin = self._origins[address.url] = Origin(address.url, self._connect_timeout_s)
        data = _serialized(request, address.token, origin)
        self.in_flight[address.url] += 1
        try:
            while origin.idle:
                try:
                    return await origin.idle.pop().exchange(data, request.method == "HEAD", timeout_s)
                except Lost as lost:
                    # It closed an idle connection as we wrote: nothing was run, so this is no second attempt.
                    if not lost.untouched:
                        return Unreachable(str(lost))
            try:
                connection = await origin.connection()
            except (OSError, asyncio.TimeoutError) as error:
                return Unreachable(_say(error), refused=True)
            return await connection.exchange(data, request.method == "HEAD", timeout_s)
        except Lost as lost:
            return Unreachable(str(lost))
        finally:
            self.in_flight[address.url] -= 1


def classify(reply: Reply) -> Failed | Rejected | None:
    """None: this is the answer, good or bad. Else the instance, not the request, is what is wrong.

    TorchServe says "Worker died." with 500 or 507, "Out of resources" with 507, and 503 with the type
    ServiceUnavailableException when a queue is full or no worker is there. A handler's exception is 503 "Prediction
    failed": nearly always this client's own bad input, so it is passed on and never decoded into an invented answer.
    """
    if reply.status not in (500, 503, 507) or len(reply.body) > _ERROR_BYTES:
        return None
    kind, message = _error_fields(reply.body)
    if reply.status == 503:
        return Rejected() if kind == "ServiceUnavailableException" else None
    if kind != "InternalServerException":
        return None
    if reply.status == 507 or message == "Worker died.":
        return Failed(f"{reply.status} {message}")
    return None


def _error_fields(body: bytes) -> tuple[str, str]:
    try:
        error = json.loads(body)
    except ValueError:
        return "", ""
    if not isinstance(error, Mapping):
        return "", ""
    return str(error.get("type", "")), str(error.get("message", ""))


def _serialized(request: Request, token: str, origin: Origin) -> list[bytes]:
    headers = []
    has_host = sized = False
    left_out = LENGTH | EXPECT | (AUTHORIZATION if token else 0)
    for pair in without_hop_by_hop(request.headers):
        flags = meaning(pair[0])
        if flags & LENGTH:
            sized = True
        elif flags & HOST:
            has_host = True
        # `Expect` was for the proxy and has been answered; the length is set anew.
        if not flags & left_out:
            headers.append(pair)
    if not has_host:
        headers.append(("Host", origin.host_header))
    if token:
        # Every instance makes its own keys, so a client's could fit one of them at most.
        headers.append(("Authorization", f"Bearer {token}"))
    body = request.body
    if body or sized or request.method in _WITH_BODY:
        headers.append(("Content-Length", str(len(body))))
    data = head(f"{request.method} {origin.prefix}{request.target} HTTP/1.1", tuple(headers))
    # A small body goes out in one packet with its head; a large one is not copied for that.
    return [data + body] if len(body) < _SMALL_BODY else [data, body]


def _say(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no connection in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
