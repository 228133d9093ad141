"""How many copies of one request an instance answers at once before each of them takes longer: its places, measured.

One copy, then 2, 4, 8 ... at once, until the slowest of them takes clearly longer than one alone; then the numbers
between, by halves. Each number is tried a few times and the best counts, since a pause of the machine says nothing of
places. It stops at limits, at an error, and when its time is over. Loads the instance, so it runs only when asked.
Knows
requests and times. Knows nothing of checks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from ts_parity.config import InstanceSettings, Settings
from ts_parity.errors import ConfigError, TsParityError
from ts_parity.proxy.fleet.plan import Plan
from ts_parity.proxy.http.certificates import instance_side
from ts_parity.proxy.http.messages import Request
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Upstream, excerpt
from ts_parity.tables import columns

GROWN: Final = 1.5
"""Times what one copy takes alone. Beyond the places the last one waits for a whole answer, which makes it 2."""
TRIES: Final = 3
MOST_COPIES: Final = 64
LONGEST_S: Final = 60.0
"""For one instance."""
_MOST_ANSWER: Final = 64 << 20


class NotAnswered(TsParityError):
    """An instance has not answered a copy as it should. The message says how."""


@dataclass(frozen=True)
class PlacesRound:
    """So many copies at once, and the slowest of them in the best of the tries."""

    copies: int
    slowest_s: float


@dataclass
class MeasuredPlaces:
    """`places`: with one copy more, answers take longer; None: not found out, and `problem` says why. `declared`: what
    the proxy gives it.
    """

    instance: str
    pool: str
    declared: int
    rounds: list[PlacesRound] = field(default_factory=list)
    places: int | None = None
    at_least: int = 0
    """So many were answered as soon as one."""
    problem: str = ""

    def json(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "pool": self.pool,
            "declared": self.declared,
            "places": self.places,
            "at_least": self.at_least,
            "problem": self.problem,
            "rounds": [{"copies": one.copies, "slowest_s": round(one.slowest_s, 4)} for one in self.rounds],
        }


async def find_places(
    found: MeasuredPlaces,
    take: Callable[[int], Awaitable[float]],
    note: Callable[[MeasuredPlaces], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fill in what is found. `take`: sends so many at once, -> what the slowest took; raises NotAnswered."""
    ends_at = clock() + LONGEST_S
    alone_s, enough, too_many, copies = 0.0, 0, MOST_COPIES + 1, 1
    try:
        await take(1)  # connections are opened, caches are filled
        while too_many - enough > 1 and copies <= MOST_COPIES:
            slowest_s = min([await take(copies) for _ in range(TRIES)])
            found.rounds.append(PlacesRound(copies, slowest_s))
            note(found)
            alone_s = alone_s or slowest_s
            if slowest_s < GROWN * alone_s:
                enough = found.at_least = copies
            else:
                too_many = copies
            if clock() > ends_at:
                found.problem = f"{LONGEST_S:.0f} s were not enough to find it out"
                return
            copies = 2 * copies if too_many > MOST_COPIES else (enough + too_many) // 2
    except NotAnswered as error:
        found.problem = str(error)
        return
    if too_many > MOST_COPIES:
        found.problem = f"{MOST_COPIES} at once take no longer than one, and no more are tried"
    else:
        found.places = enough


@dataclass(frozen=True)
class CopiesOf:
    """What is sent: `body` to `model` of an instance."""

    given: InstanceSettings
    model: str
    version: str
    body: bytes
    content_type: str

    async def take(self, upstream: Upstream, timeout_s: float, copies: int) -> float:
        """-> what the slowest took. Raise NotAnswered."""
        try:
            address = Address(self.given.inference, self.given.inference_token())
        except ConfigError as error:
            raise NotAnswered(str(error)) from None
        target = f"/predictions/{quote(self.model, safe='')}/{quote(self.version, safe='')}"
        request = Request("POST", target, (("content-type", self.content_type),), self.body)
        began = time.monotonic()
        sent = (upstream.exchange(address, request, timeout_s, _MOST_ANSWER) for _ in range(copies))
        for answer in await asyncio.gather(*sent):
            if isinstance(answer, Stream):
                answer.close()
                raise NotAnswered("its answers are streamed, and nobody knows here when one is complete")
            if isinstance(answer, NoResponse):
                raise NotAnswered(f"of {copies} at once, one was not answered: {answer.reason}")
            if answer.status >= 300:
                raise NotAnswered(f"of {copies} at once, one was answered {answer.status}: {excerpt(answer.body)}")
        return time.monotonic() - began


def measure_places(
    settings: Settings, plan: Plan, pool: str, body: bytes, content_type: str, note: Callable[[MeasuredPlaces], object]
) -> tuple[MeasuredPlaces, ...]:
    """Of each instance that serves the pool, one after another. Raise ConfigError if a certificate cannot be read."""
    return asyncio.run(_measured(settings, plan, pool, body, content_type, note))


async def _measured(
    settings: Settings, plan: Plan, pool: str, body: bytes, content_type: str, note: Callable[[MeasuredPlaces], object]
) -> tuple[MeasuredPlaces, ...]:
    upstream = Upstream(settings.connect_timeout_s, settings.task_timeout_s, instance_side(settings))
    given = {each.name: each for each in settings.instances}
    measured = []
    try:
        for endpoint in plan.fleet.endpoints:
            if endpoint.pool != pool or endpoint.row is not None:
                continue
            instance, of_pool = given[endpoint.instance], plan.pools[pool]
            copies = CopiesOf(instance, of_pool.model, of_pool.version, body, content_type)
            found = MeasuredPlaces(instance.name, pool, min(endpoint.places, instance.places or endpoint.places))
            await find_places(found, partial(copies.take, upstream, settings.task_timeout_s), note)
            measured.append(found)
    finally:
        await upstream.close()
    return tuple(measured)


def measured_table(measured: Sequence[MeasuredPlaces]) -> str:
    """A row for each number that was tried, and a sentence for each instance."""
    rows = [("instance", "at once", "slowest ms", "answers/s")]
    rows += [
        (one.instance, str(each.copies), f"{1000 * each.slowest_s:.1f}", f"{each.copies / each.slowest_s:.1f}")
        for one in measured
        for each in sorted(one.rounds, key=lambda each: each.copies)
    ]
    return "\n".join([*columns(rows), *map(in_words, measured)])


def in_words(one: MeasuredPlaces) -> str:
    given = f"the proxy gives it {one.declared}"
    if one.places is not None:
        return f"{one.instance}: {one.pool} is answered {one.places} at a time before each takes longer; {given}"
    known = f"at least {one.at_least} at a time; " if one.at_least else ""
    return f"{one.instance}: {one.pool}: {known}{one.problem}; {given}"
