"""The door to the instances: sends one request, gives back what came of it, as data.

The only place that knows aiohttp's client, its exceptions, and what TorchServe's status codes mean for the question
"would another endpoint do better?". Knows nothing of queries, groups or policy.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ts_parity.engine import Failed, Rejected
from ts_parity.proxy.messages import BrokenStream, Reply, Request, without_hop_by_hop
from ts_parity.wire import Headers

# Headers aiohttp would add of its own accord, and a handler could see.
_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
# `Expect` was for the proxy and has been answered; the length is set anew.
_NOT_FORWARDED = frozenset({"expect", "content-length"})
_MAX_HEADER_BYTES = 65536
_ERROR_BYTES = 65536
_LARGE_BODY = 1 << 20


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


class Stream:
    """An answer that comes in chunks. Holds its connection until read to the end or left."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.phrase = response.reason or ""
        self.headers = _headers(response)
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data, _ in self._response.content.iter_chunks():
                if data:
                    yield data
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise BrokenStream(f"the streamed answer broke off: {_say(error)}") from None

    def leave(self) -> None:
        self._response.close()


Result = Reply | Stream | Unreachable


class Upstream:
    """One pool of connections to all instances."""

    def __init__(self, connect_timeout_s: float, task_timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=task_timeout_s, sock_connect=connect_timeout_s)
        self._session = aiohttp.ClientSession(
            # How much is in flight is the engine's business; no limit here.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTO_HEADERS,
            timeout=self._timeout,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        self.in_flight: Counter[str] = Counter()

    async def close(self) -> None:
        await self._session.close()

    async def exchange(self, address: Address, request: Request, timeout_s: float | None = None) -> Result:
        """Send and wait. A chunked answer is given back as soon as it begins."""
        timeout = self._timeout if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s)
        self.in_flight[address.url] += 1
        try:
            response = await self._session.request(
                request.method,
                URL(address.url + request.target, encoded=True),
                data=_payload(request.body),
                headers=_forwarded(request.headers, address.token),
                allow_redirects=False,
                timeout=timeout,
            )
            if "chunked" in response.headers.get("Transfer-Encoding", "").lower():
                return Stream(response)
            return await _whole(response)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ssl.CertificateError) as error:
            return _unreachable(error)
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


async def _whole(response: aiohttp.ClientResponse) -> Reply:
    try:
        body = await response.read()
    except BaseException:  # cancelled, timed out or broken: the connection is of no further use
        response.close()
        raise
    return Reply(response.status, response.reason or "", _headers(response), body)


def _headers(response: aiohttp.ClientResponse) -> Headers:
    # aiohttp can send no header that is not UTF-8; what is not becomes visible as U+FFFD instead of vanishing.
    pairs = tuple((key.decode("utf-8", "replace"), value.decode("utf-8", "replace")) for key, value in _raw(response))
    return without_hop_by_hop(pairs)


def _raw(response: aiohttp.ClientResponse) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(response.raw_headers)


def _forwarded(headers: Headers, token: str) -> CIMultiDict[str]:
    forwarded: CIMultiDict[str] = CIMultiDict()
    spelling: dict[str, str] = {}
    for name, value in without_hop_by_hop(headers):
        if name.lower() not in _NOT_FORWARDED:
            # Of a header given twice in two letter cases aiohttp would drop the first, so both get one spelling.
            forwarded.add(spelling.setdefault(name.lower(), name), value)
    if token:
        # Every instance makes its own keys, so a client's could fit one of them at most.
        forwarded["Authorization"] = f"Bearer {token}"
    return forwarded


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    # A large body goes out in pieces, so that writing it does not hold up everybody else.
    return io.BytesIO(body) if len(body) >= _LARGE_BODY else (body or None)


def _unreachable(error: Exception) -> Unreachable:
    refused = isinstance(error, aiohttp.ClientConnectorError) or (
        isinstance(error, asyncio.TimeoutError) and "onnection timeout" in str(error)
    )
    return Unreachable(_say(error), refused)


def _say(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return str(error) or "no answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
