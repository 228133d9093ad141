"""Open-loop load: queries leave at Poisson instants whether or not earlier ones were answered.

A closed loop would stop asking while a worker is frozen and so hide the very tail it should measure; therefore the
instants are drawn beforehand, and a query's latency counts from when it was due, not from when it could be sent.

Knows HTTP and the clock. Knows nothing of proxies, coding or faults: one target, or several taken in turn (what people
put in front of TorchServe today). Meant to run in another process than the proxy it loads.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp

from ts_parity.lab.records import ERROR, LOST, QueryRecord
from ts_parity.wire import SOURCE

REASON_CHARACTERS = 200

Reader = Callable[[bytes], str | int | None]
"""Reads the prediction, comparable with a label, out of an answer's body. May raise ValueError or KeyError."""


@dataclass(frozen=True)
class LabelledBody:
    """A request body as a client would send it, and, for scoring, what it shows."""

    data: bytes
    content_type: str = "application/octet-stream"
    label: str | int | None = None


Post = Callable[[int, LabelledBody], Coroutine[Any, Any, tuple[int, str, bytes]]]
"""Sends a body, the query's number saying to which target -> status, outcome, answer."""


@dataclass(frozen=True)
class Load:
    """When each query is due, and which body it carries: data, so that every arm gets the very same."""

    due_at: tuple[float, ...]
    picks: tuple[int, ...]

    @property
    def duration_s(self) -> float:
        return self.due_at[-1] if self.due_at else 0.0


def poisson_load(queries: int, rate: float, bodies: int, seed: int) -> Load:
    """Exponential gaps of mean 1 / rate. The same arguments give the same load.

    Bodies are taken in shuffled passes, so that each is sent equally often (give or take one): the accuracy over a
    whole number of passes is then that of the set, and not of a sample drawn from it.
    """
    if queries < 1 or rate <= 0 or bodies < 1:
        raise ValueError(f"a load needs queries, a rate and bodies, not {queries}, {rate} and {bodies}")
    rng = random.Random(f"load {seed}")
    due_at, at = [], 0.0
    for _ in range(queries):
        at += rng.expovariate(rate)
        due_at.append(at)
    return Load(tuple(due_at), tuple(_shuffled_passes(rng, queries, bodies)))


def load_at(instants: Sequence[float], bodies: int, seed: int) -> Load:
    """Queries at these instants, ascending from 0, with bodies in shuffled passes."""
    picks = _shuffled_passes(random.Random(f"bodies {seed}"), len(instants), bodies)
    return Load(tuple(instants), tuple(picks))


def _shuffled_passes(rng: random.Random, queries: int, bodies: int) -> list[int]:
    picks: list[int] = []
    while len(picks) < queries:
        picks += rng.sample(range(bodies), bodies)
    return picks[:queries]


async def drive(
    load: Load,
    bodies: Sequence[LabelledBody],
    targets: Sequence[str],
    read: Reader,
    timeout_s: float,
    on_record: Callable[[QueryRecord], object] = lambda record: None,
    started_at: float | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    goes_on: Callable[[], bool] = lambda: True,
    through: Callable[[Post], Post] = lambda post: post,
    session: aiohttp.ClientSession | None = None,
) -> list[QueryRecord]:
    """Send the whole load and wait for every answer or its time limit. -> records in order of `seq`.

    Query i goes to targets[i % len(targets)]. `started_at` (time.monotonic) lets a fault schedule share the origin.
    `headers` go with each query. Nothing more is sent once `goes_on` says no.
    `through`: what stands between a client and the network, such as a library that sends a request again.
    `session`: one of `new_session`, whose connections stay open for the next load. It stays the caller's.
    """
    origin = time.monotonic() if started_at is None else started_at

    # What has ended is put aside at once: to wait for a long list of it takes the loop a fifth of a second, and the
    # last queries would be that late.
    flights: set[asyncio.Task[QueryRecord]] = set()
    records: list[QueryRecord] = []
    failed: list[BaseException] = []

    def told(flight: asyncio.Task[QueryRecord]) -> None:
        flights.discard(flight)
        error = asyncio.CancelledError() if flight.cancelled() else flight.exception()
        if error is not None:
            failed.append(error)
            return
        records.append(flight.result())
        on_record(records[-1])

    with _out_of_the_collectors_way():
        async with nullcontext(session) if session is not None else new_session() as used:
            network = _Network(used, targets, headers)
            client = _Client(through(network.post), bodies, read, timeout_s, origin)
            try:
                for seq, due_at in enumerate(load.due_at):
                    delay = origin + due_at - time.monotonic()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    if failed or not goes_on():
                        break
                    flight = asyncio.create_task(client.ask(seq, due_at, load.picks[seq]))
                    flights.add(flight)
                    flight.add_done_callback(told)
                if not failed:
                    await asyncio.gather(*flights)
                if failed:
                    raise failed[0]
            finally:
                left = [*flights]
                for flight in left:
                    flight.cancel()
                await asyncio.gather(*left, return_exceptions=True)
    return sorted(records, key=lambda record: record.seq)


def new_session() -> aiohttp.ClientSession:
    """For `drive`. It keeps no cookies, by which a balancer would send all queries to one instance."""
    limits, cookies = aiohttp.ClientTimeout(total=None), aiohttp.DummyCookieJar()
    # No limit on connections: a client that waits for a free one would no longer be open-loop. And none is closed for
    # being idle: there may be another load for it, after that of others.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3600)
    return aiohttp.ClientSession(timeout=limits, connector=connector, cookie_jar=cookies, auto_decompress=False)


@contextmanager
def _out_of_the_collectors_way() -> Iterator[None]:
    """What is in memory already is not looked at until the end: a walk through models and their library would hold up
    every query for half a second.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class _Client:
    post: Post
    bodies: Sequence[LabelledBody]
    read: Reader
    timeout_s: float
    origin: float

    async def ask(self, seq: int, due_at: float, pick: int) -> QueryRecord:
        body = self.bodies[pick]
        sent_at = time.monotonic() - self.origin
        # The time limit, too, counts from when the query was due.
        patience_s = max(0.001, self.timeout_s - (sent_at - due_at))
        predicted = status = None
        try:
            status, outcome, answer = await asyncio.wait_for(self.post(seq, body), patience_s)
            reason = None
            if outcome == ERROR:
                reason = answer.decode("utf-8", "replace")[:REASON_CHARACTERS]
            else:
                predicted = self.read(answer)
        except asyncio.TimeoutError:
            return QueryRecord(
                seq, due_at, sent_at, None, LOST, None, None, body.label, f"no answer in {self.timeout_s:g} s"
            )
        except aiohttp.ClientError as error:
            outcome, reason = ERROR, f"{type(error).__name__}: {error}"[:REASON_CHARACTERS]
        except (ValueError, KeyError, TypeError) as error:
            outcome, reason = ERROR, f"unreadable answer: {error!r}"[:REASON_CHARACTERS]
        latency_s = time.monotonic() - self.origin - due_at
        return QueryRecord(seq, due_at, sent_at, latency_s, outcome, status, predicted, body.label, reason)


@dataclass(frozen=True)
class _Network:
    session: aiohttp.ClientSession
    targets: Sequence[str]
    headers: Mapping[str, str]

    async def post(self, seq: int, body: LabelledBody) -> tuple[int, str, bytes]:
        url = self.targets[seq % len(self.targets)]
        headers = {"Content-Type": body.content_type, **self.headers}
        async with self.session.post(url, data=body.data, headers=headers, allow_redirects=False) as response:
            answer = await response.read()
            if 300 <= response.status < 400:  # what it leads to is not what was to be asked
                answer = f"a redirect to {response.headers.get('Location', 'nowhere')}, not followed".encode()
            source = response.headers.get(SOURCE, "deployed")
            return response.status, source if response.status < 300 else ERROR, answer
