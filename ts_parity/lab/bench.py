"""Load for somebody's own live fleet, and what its clients saw: latency, sources, errors, agreement.

The load is open-loop, and bounded, since it goes to a service that others use: it ends by itself when most of it fails
or too much of it is outstanding. Several addresses (with protection and without, say) get the very same load in slices
that alternate, so that whatever changes on the way changes for all. Knows HTTP, bodies and records. Knows nothing of
command lines or pages.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from bisect import bisect_left
from collections import ChainMap, Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import ClientSession

from ts_parity.engine import Finding
from ts_parity.lab.faults import FREEZE, Fault, Injector, thawed_afterwards
from ts_parity.lab.intervals import interval
from ts_parity.lab.records import ANSWERED, ERROR, LOST, QueryRecord
from ts_parity.lab.report import percentile
from ts_parity.lab.thresholds import LAG, Threshold
from ts_parity.lab.traffic import LabelledBody, Load, drive, new_session
from ts_parity.proxy.http.messages import Response
from ts_parity.proxy.serving.comparison import compare

SLICE_S = 10.0
"""Short against what changes during an hour, long against a queue."""
WARM_UP, WARM_UP_S = 20, 2.0
"""Queries before the load, and the time for them: for connections, caches and whatever is compiled at first use. Each
slice has as much time before it, see `lead_in`.
"""
LEAST_FAILED = 3
"""Queries without an answer, and none with one, make a warm-up that failed."""
MOST_OUTSTANDING = 2000
"""More than that would be a flood, and no measurement."""
WINDOW, MOST_FAILED = 100, 0.5
"""Of so many queries in a row this share may fail; a load that goes on then does harm and measures nothing."""
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
RECONSTRUCTED = "reconstructed"
OWN = ("deployed", "hedged")
"""Answers of the deployed model itself."""
_REASONS = 5
MOST_ANSWERS = 20_000
"""Different ones that are kept to compare. A model that puts the time into its answer would fill the memory."""


@dataclass(frozen=True)
class BenchTarget:
    """One address that gets the load. `name`: what the table calls it."""

    name: str
    url: str


@dataclass
class Measured:
    """What one target's clients saw. `answers`: an answer of each body by its digest, as many as were seen."""

    target: BenchTarget
    records: list[QueryRecord] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)


@dataclass
class _Guard:
    """Says when enough is enough."""

    began: int = 0
    ended: int = 0
    stopped: str = ""
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Why queries failed; empty: answered."""

    def goes_on(self) -> bool:
        self.began += 1
        if self.began - self.ended > MOST_OUTSTANDING:
            self.stopped = f"over {MOST_OUTSTANDING} queries were outstanding"
        return not self.stopped

    def heard(self, record: QueryRecord) -> None:
        self.ended += 1
        self._last.append("" if record.answered else _told(record))
        failed = len(self._last) - self._last.count("")
        if len(self._last) == WINDOW and failed > MOST_FAILED * WINDOW:
            reason = _commonest(filter(None, self._last))
            self.stopped = f"{failed} of {WINDOW} queries in a row failed, most with {reason}"

    def warmed_up(self, target: BenchTarget, records: Sequence[QueryRecord]) -> None:
        if records and not any(record.answered for record in records):
            self.stopped = f"no query of the warm-up was answered at {target.name}: {_commonest(map(_told, records))}"


@dataclass(frozen=True)
class BenchPlan:
    """What is to be done, whole and checked before the first query."""

    targets: Sequence[BenchTarget]
    bodies: Sequence[LabelledBody]
    load: Load
    timeout_s: float = 20.0
    headers: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    pids: Sequence[int] = ()
    """The processes that `faults` may strike: fault i strikes the process at its `instance`."""

    @property
    def lasts_s(self) -> float:
        """About, over all targets: the answers to the last queries come later."""
        warm_ups = 1 + len(slices(self.load, len(self.targets)))
        return len(self.targets) * (warm_ups * WARM_UP_S + self.load.duration_s)


def run_bench(
    plan: BenchPlan, on_record: Callable[[QueryRecord], object] = lambda record: None
) -> tuple[list[Measured], str, dict[str, int]]:
    """-> what each target's clients saw, why the load ended early (empty: it did not), and the faults that struck."""
    measured = [Measured(target) for target in plan.targets]
    guard = _Guard()
    injector = Injector(lambda index: [plan.pids[index]])

    async def run() -> None:
        async with AsyncExitStack() as stack:
            # One session a target for all of it: a fresh one would put its handshakes into each slice.
            clients = [(each, await stack.enter_async_context(new_session())) for each in measured]
            for each, session in clients:
                await _warm_up(plan, each, session, guard)
            for turn, (begins_at, ends_at) in enumerate(slices(plan.load, len(measured))):
                for each, session in clients if turn % 2 == 0 else reversed(clients):
                    if not guard.stopped:
                        await _slice(plan, each, session, begins_at, ends_at, injector, guard, on_record)

    with thawed_afterwards([plan.pids[index] for index in {f.instance for f in plan.faults if f.kind == FREEZE}]):
        asyncio.run(run())
    return measured, guard.stopped, dict(injector.struck)


async def _warm_up(plan: BenchPlan, each: Measured, session: ClientSession, guard: _Guard) -> None:
    """Where a load has one or two queries in such a time, their failure says little: they are asked again, no faster
    than the load asks, until one is answered or three have failed.
    """
    asked: list[QueryRecord] = []
    while not guard.stopped and len(asked) < LEAST_FAILED and not any(record.answered for record in asked):
        if asked:
            await asyncio.sleep(max(WARM_UP_S, plan.load.duration_s / len(plan.load.due_at)))
        asked += await drive(warm_up(plan.load), plan.bodies, [each.target.url], _Reader(each), plan.timeout_s,
                             guard.heard, headers=plan.headers, goes_on=guard.goes_on, session=session)  # fmt: skip
    guard.warmed_up(each.target, asked)


def warm_up(load: Load) -> Load:
    """At even gaps, and no more than the load itself has in such a time, which may be all that the service can bear."""
    queries = min(WARM_UP, max(1, int(len(load.due_at) * WARM_UP_S / max(load.duration_s, WARM_UP_S))))
    return Load(tuple(WARM_UP_S * n / queries for n in range(queries)), load.picks[:queries])


def slices(load: Load, targets: int) -> list[tuple[float, float]]:
    """From when to when, the last without an end; one target needs no others to take turns with."""
    count = 1 if targets == 1 else max(1, round(load.duration_s / SLICE_S))
    begin = [load.duration_s * n / count for n in range(count)]
    return [*zip(begin, [*begin[1:], math.inf], strict=True)]


def lead_in(load: Load, begins_at: float) -> Load:
    """What a target gets before a slice, in no figure: what comes before it in the load, where the warm-up comes first.

    A server may have closed all connections while others had their turn, uvicorn after 5 s. So they open here, and by
    as many queries at a time as in the load. At least one query, however long ago the last one was due.
    """
    warm, earliest = warm_up(load), begins_at - WARM_UP_S
    due_at = [*(at - WARM_UP_S for at in warm.due_at), *load.due_at]
    end = bisect_left(due_at, begins_at)
    begin = min(bisect_left(due_at, earliest), end - 1)
    return Load(tuple(max(at, earliest) for at in due_at[begin:end]), (*warm.picks, *load.picks)[begin:end])


async def _slice(
    plan: BenchPlan,
    each: Measured,
    session: ClientSession,
    begins_at: float,
    ends_at: float,
    injector: Injector,
    guard: _Guard,
    on_record: Callable[[QueryRecord], object],
) -> None:
    load = plan.load
    first, end = (bisect_left(load.due_at, at) for at in (begins_at, ends_at))
    if first == end:
        return
    lead = lead_in(load, begins_at)
    part = Load((*lead.due_at, *load.due_at[first:end]), (*lead.picks, *load.picks[first:end]))
    # When the whole load would have begun, from which all its times count.
    origin = time.monotonic() + 0.05 + WARM_UP_S - begins_at

    def heard(record: QueryRecord) -> None:
        guard.heard(record)
        if record.due_at >= begins_at:
            on_record(record)

    faults = asyncio.create_task(injector.run([f for f in plan.faults if begins_at <= f.at < ends_at], origin))
    try:
        records = await drive(part, plan.bodies, [each.target.url], _Reader(each), plan.timeout_s, heard, origin,
                              plan.headers, guard.goes_on, session=session)  # fmt: skip
    finally:
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)
    earlier = first - len(lead.due_at)
    each.records += [replace(r, seq=r.seq + earlier) for r in records if r.due_at >= begins_at]


@dataclass(frozen=True)
class _Reader:
    """Remembers each different answer, and says which one it was."""

    measured: Measured

    def __call__(self, answer: bytes) -> str:
        digest = hashlib.blake2b(answer, digest_size=12).hexdigest()
        if len(self.measured.answers) < MOST_ANSWERS:
            self.measured.answers.setdefault(digest, answer)
        return digest


# ---- what came of it -------------------------------------------------------------------------------------------------


def described(measured: Measured, load: Load, run: Sequence[Measured] = ()) -> dict[str, Any]:
    """One target, for tables and programs: seconds, and counts.

    A time is None without samples enough, or if it is in `unanswered`: then a query without an answer decides it, which
    counts as infinitely late. None as an end of an interval says the same. `run`: every target.
    """
    records = measured.records
    in_order = _latencies(records)
    times = _times(in_order, SHARES)
    lags = sorted(r.sent_at - r.due_at for r in records)
    sources = Counter(r.outcome for r in records if r.answered)
    reasons = Counter(_told(r) for r in records if not r.answered)
    return {
        "name": measured.target.name,
        "url": measured.target.url,
        "queries": len(records),
        "answered": sum(r.answered for r in records),
        "errors": sum(r.outcome == ERROR for r in records),
        "lost": sum(r.outcome == LOST for r in records),
        "sources": {source: sources[source] for source in ANSWERED if sources[source]},
        **{name: _finite(time) for name, time in times.items()},
        "unanswered": [name for name, time in times.items() if time == math.inf],
        "intervals": {
            name: [_finite(end) for end in found]
            for name, share in SHARES.items()
            if (found := interval(in_order, share, seed=0)) is not None
        },
        "lag": percentile(lags, LAG),
        "agreement": agreement(measured, load, run),
        "reasons": dict(reasons.most_common(_REASONS)),
    }  # fmt: skip


def _latencies(records: Sequence[QueryRecord]) -> list[float]:
    """In the order of the records. An error may come fast, and is no answer all the same."""
    return [r.latency_s if r.answered and r.latency_s is not None else math.inf for r in records]


def _times(latencies: Sequence[float], shares: Mapping[str, float]) -> dict[str, float | None]:
    ordered = sorted(latencies)
    return {
        **{name: percentile(ordered, share) for name, share in shares.items()},
        "mean": sum(ordered) / len(ordered) if ordered else None,
        "max": ordered[-1] if ordered else None,
    }


def _finite(seconds: float | None) -> float | None:
    """JSON knows no infinity."""
    return None if seconds == math.inf else seconds


def _told(record: QueryRecord) -> str:
    return f"{record.status or record.outcome}: {record.reason or ''}".strip(": ")


def _commonest(reasons: Iterable[str]) -> str:
    return Counter(reasons).most_common(1)[0][0]


def agreement(measured: Measured, load: Load, run: Sequence[Measured] = ()) -> dict[str, int]:
    """Of the rebuilt answers whose bodies the deployed model answered too, in this run: how many are its own.

    Its answer at this target, or else at another of the `run`: all get the same bodies. The same decision, as the proxy
    compares them: see `proxy/serving/comparison`. `unknown`: nobody can tell.
    """
    targets = (measured, *run)
    own: dict[int, str] = {}
    for record in (record for each in targets for record in each.records):
        if record.outcome in OWN and isinstance(record.predicted, str):
            own.setdefault(load.picks[record.seq], record.predicted)
    answers = ChainMap(*(each.answers for each in targets))
    found = Counter[str]()
    for record in measured.records:
        if record.outcome != RECONSTRUCTED or not isinstance(record.predicted, str):
            continue
        known = own.get(load.picks[record.seq])
        found["unknown" if known is None else _finding(answers, known, record.predicted)] += 1
    return {name: found[name] for name in ("agreed", "differing", "unknown")}


def _finding(answers: Mapping[str, bytes], own: str, other: str) -> str:
    if own == other:
        return "agreed"
    if own not in answers or other not in answers:
        return "unknown"
    one, two = (Response(200, "", (), answers[each]) for each in (own, other))
    finding = compare(one, two, lossless=False).finding
    return {Finding.AGREED: "agreed", Finding.DIFFERED: "differing"}.get(finding, "unknown")


def for_thresholds(row: Mapping[str, Any], thresholds: Sequence[Threshold], measured: Measured) -> dict[str, Any]:
    """As `Threshold.broken_by` takes it. Any percentile, not only those that are shown."""
    shares = {each.what: each.percentile for each in thresholds if each.percentile is not None}
    return {
        **row,
        **_times(_latencies(measured.records), shares),
        **{source: row["sources"].get(source, 0) for source in (RECONSTRUCTED, "hedged")},
        **row["agreement"],
    }
