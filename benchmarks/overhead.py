"""What a proxy costs: ours beside nginx, HAProxy and a plain aiohttp proxy, in one run and interleaved.

    apt-get install nginx-light haproxy wrk
    python benchmarks/overhead.py                 everything, half an hour
    python benchmarks/overhead.py --quick         every kind of row, 3 minutes; what it measures is not kept
    python benchmarks/overhead.py --upstream kinds          the pair alone, 1 minute; it takes its place in what is kept
    python benchmarks/overhead.py --only haproxy "ts_parity uncoded"      these arms beside direct and nginx; not kept
    python benchmarks/overhead.py --tables        renew docs/benchmarks.md and README.md from the kept results

Four parts. With trivial instances behind (overhead_instances.py), where next to all the time is the proxy's; a pair
of our proxies, one before such instances and one before trivial servers of the Open Inference Protocol; with real
TorchServe behind, a model that takes 10 ms; and with TorchServe at half of its capacity, measured just before, by an
open loop with Poisson arrivals (overhead_clients.py). In the first three the client is wrk, which asks again as soon
as it is answered. The proxy runs on the first core, client and instances on the second. Cell after cell, all arms
take their turn, in another order each round, so that a drift of the machine hits all alike; a figure is the median
over the rounds, a ratio that of the rounds' ratios.

Requests per second per core: requests divided by the processor time that the proxy took, so neighbours on the
machine matter less. `direct` is wrk at the two deployed instances themselves, half of the connections each. "unique
heads": every request has a path and an `X-Request-Id` of its own, while wrk usually sends the same bytes again and
again, which flatters a proxy that remembers them. Which build of ours: the one that is imported here, so PYTHONPATH
says; where that is the compiled one, one cell is measured of the plain Python sources too.

At half of capacity each slice has a proxy just started and warmed up. Every arm gets the very same arrivals, so
what is added is a seed's percentile through the proxy less the same seed's direct; of these the median, least and
greatest. In a queue a moment's delay grows, so the same seed twice is not the same latency twice: `direct again` says
by how much direct differs from itself, and what differs by no more than that is not shown to differ. Once with one
instance, where balancing plays no role; once with two, which direct, nginx and HAProxy take in turn while ours sends
to the one with fewer outstanding. The client is on the first core here: beside JVMs and workers it would wait for the
processor longer than a proxy takes.

Exit code 1 if a target is missed or a proxy did not start or did not last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from overhead_clients import SAME, UNIQUE, Answers, Slice, open_loop, wrk
from overhead_instances import SERVICE_S, WORKERS, body_of, play_instances, play_open_inference, torchserve
from overhead_proxies import (
    COMPILED,
    OPEN_INFERENCE,
    OTHERS_CORE,
    PLAIN,
    PREDICT,
    PROXY_CORE,
    SOURCES,
    TORCHSERVE,
    Arm,
    NotServing,
    Running,
    build_of,
    imported_from,
    proxy,
    running,
    serve_aiohttp,
)
from tables import renew
from ts_parity.arguments import count
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "overhead.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
README = Path(__file__).parent.parent / "README.md"
Row = dict[str, Any]

MODES = ("pass-through", "uncoded", "coded-exact", "coded-sum")
DIRECT = Arm("direct")
AGAIN = Arm("direct again")
"""What a comparison with direct says of direct itself."""
CENTRE = (16, 3000)
"""The cell that targets speak of."""
HALF_BYTES = 3000
HALF_WARM_S = 1.0
ENOUGH = 300
"""Requests below which a cell says no p99: it would be that of a handful."""
CODES = ("sum", "exact")


@dataclass(frozen=True)
class Cell:
    connections: int
    body_bytes: int
    client: str = SAME


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seconds: int = 1
    rounds: int = 3
    connections: tuple[int, ...] = (1, 16, 128)
    bodies: tuple[int, ...] = (300, 3000, 100_000, 1_000_000)
    kinds_seconds: int = 1
    kinds_rounds: int = 30
    torchserve_seconds: int = 2
    torchserve_rounds: int = 2
    torchserve_bodies: tuple[int, ...] = (3000, 100_000, 1_000_000)
    half_seconds: float = 10.0
    """With one instance; with two, which answer twice as many, half of it."""
    seeds: int = 12

    @property
    def cells(self) -> list[Cell]:
        whole = [Cell(connections, size) for connections in self.connections for size in self.bodies]
        return [*whole, Cell(*CENTRE, UNIQUE)]

    @property
    def torchserve_cells(self) -> list[Cell]:
        """Many connections with small bodies only: with large ones they are a trial of the JVM's memory."""
        whole = [Cell(connections, size) for connections in self.connections for size in self.torchserve_bodies]
        return [cell for cell in whole if cell.connections * cell.body_bytes <= 16_000_000]


QUICK = Plan(
    rounds=1, connections=(1, 16), bodies=(3000,), kinds_rounds=10, torchserve_seconds=1, torchserve_rounds=1,
    torchserve_bodies=(3000,), half_seconds=3.0, seeds=2,
)  # fmt: skip


def arms_of(build: str, only: Sequence[str] = ()) -> list[Arm]:
    """All, or direct, nginx and those whose name, or whose proxy's, is given."""
    arms = [DIRECT, Arm("nginx"), Arm("haproxy"), *(Arm("ts_parity", mode, build) for mode in MODES), Arm("aiohttp")]
    if build == COMPILED:
        arms += [Arm("ts_parity", mode, PLAIN) for mode in MODES]
    known = {name for arm in arms for name in _names(arm)}
    if unknown := set(only) - known:
        raise SystemExit(f"there is no arm {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    wanted = {*only, "direct", "nginx"}
    return [arm for arm in arms if not only or wanted & _names(arm)]


def _names(arm: Arm) -> set[str]:
    return {arm.name, arm.proxy, f"{arm.proxy} {arm.mode}"}


def takes(arm: Arm, cell: Cell, build: str) -> bool:
    """The plain build is measured in one cell beside the compiled one, and unique heads where they could matter."""
    if cell.client == UNIQUE and arm.proxy in ("direct", "aiohttp"):
        return False
    return arm.build in (None, build) or cell == Cell(*CENTRE)


# ---- a closed loop ---------------------------------------------------------------------------------------------------


def closed_loop(
    upstream: str,
    endpoints: dict[str, list[str]],
    arms: Sequence[Arm],
    cells: Sequence[Cell],
    seconds: int,
    rounds: int,
    bench: Bench,
    settle: Callable[[], None] = lambda: None,
) -> list[list[Row]]:
    """Rows of each round. `endpoints`: by the code of their protections."""
    with ExitStack() as stack:
        served: dict[Arm, Running | None] = {}
        for arm in arms:
            listed = endpoints[arm.code] if arm.code else endpoints["sum"][:2]
            if arm is DIRECT:
                served[arm] = None
                continue
            try:
                served[arm] = stack.enter_context(proxy(arm, listed, bench.folder, bench.root))
            except NotServing as error:
                bench.gave_up(arm, error)
        direct = [endpoint.partition(",")[0] for endpoint in endpoints["sum"][:2]]
        for arm, found in served.items():
            if found is not None:
                wrk([found.url + arm.path], 16, 1, body_of(300), bench.folder, OTHERS_CORE)  # warm, for a second
                settle()
        measured = []
        for turn in range(rounds):
            rows = []
            for cell in cells:
                for arm in rotated([arm for arm in served if takes(arm, cell, bench.build)], turn):
                    bench.bar.set_description(f"{upstream}, {cell.connections} x {cell.body_bytes}, {arm.name}")
                    try:
                        rows.append(_row(upstream, arm, cell, served[arm], direct, seconds, bench.folder))
                    except NotServing as error:
                        bench.gave_up(arm, error)
                    settle()
                    bench.bar.update()
            measured.append(rows)
        return measured


def rotated(arms: list[Arm], turn: int) -> list[Arm]:
    """Another goes first each time, and every other time the order is the reverse: nobody always follows the same."""
    start = turn % max(1, len(arms))
    order = arms[start:] + arms[:start]
    return order[:1] + order[:0:-1] if turn % 2 else order


def _row(
    upstream: str, arm: Arm, cell: Cell, served: Running | None, direct: list[str], seconds: int, folder: Path
) -> Row:
    urls = [each + arm.path for each in (direct if served is None else [served.url])]
    before = 0.0 if served is None else served.cpu_s()
    body = body_of(cell.body_bytes, arm.kind)
    seen = wrk(urls, cell.connections, seconds, body, folder, OTHERS_CORE, cell.client)
    row = {
        "proxy": arm.proxy,
        "mode": arm.mode,
        "build": arm.build,
        "upstream": upstream,
        "load": "closed",
        "client": cell.client,
        "connections": cell.connections,
        "body_bytes": cell.body_bytes,
        "requests": seen.requests,
        "requests_per_second": seen.requests / seen.seconds,
        "requests_per_second_per_core": None,
        "p50_us": seen.p50_us if seen.requests else None,
        "p99_us": seen.p99_us if seen.requests >= ENOUGH else None,
        "rss_rest_mb": None,
        "rss_mb": None,
        "errors": seen.errors,
    }
    if served is not None:
        row["requests_per_second_per_core"] = seen.requests / max(served.cpu_s() - before, 1e-9)
        row["rss_rest_mb"], row["rss_mb"] = served.rest_mb, served.rss_mb()
    return row


KEY = ("proxy", "mode", "build", "upstream", "load", "client", "connections", "body_bytes")
FIGURES = {
    "requests": 0, "requests_per_second": 0, "requests_per_second_per_core": 0, "rps_ratio_to_nginx": 3, "p50_us": 0,
    "p99_us": 0, "added_p50_us": 0, "added_p50_ratio_to_nginx": 2, "rss_rest_mb": 1, "rss_mb": 1,
}  # fmt: skip


def combined(rounds: Iterable[list[Row]]) -> list[Row]:
    """Medians over the rounds; what compares with nginx or direct compares within a round."""
    by_key: dict[tuple[Any, ...], list[Row]] = {}
    for rows in rounds:
        beside = {(row["proxy"], *(row[part] for part in KEY[3:])): row for row in rows if row["build"] is None}
        for row in rows:
            place = tuple(row[part] for part in KEY[3:])
            nginx, direct = beside.get(("nginx", *place)), beside.get(("direct", *place))
            by_key.setdefault(tuple(row[part] for part in KEY), []).append({**row, **_compared(row, nginx, direct)})
    out = []
    for rows in by_key.values():
        row = dict(rows[0])
        for name, digits in FIGURES.items():
            values = [each[name] for each in rows if each[name] is not None]
            row[name] = round(statistics.median(values), digits) if values else None
        row["errors"] = sum(each["errors"] for each in rows)
        out.append(row)
    return out


def _compared(row: Row, nginx: Row | None, direct: Row | None) -> Row:
    ratio = added = added_ratio = None
    if nginx is not None and row["requests_per_second_per_core"] and nginx["requests_per_second_per_core"]:
        ratio = row["requests_per_second_per_core"] / nginx["requests_per_second_per_core"]
    # With more connections a closed loop waits for the slowest part, and there is no sense in taking one from another.
    if direct is not None and row is not direct and row["connections"] == 1 and row["p50_us"] and direct["p50_us"]:
        added = row["p50_us"] - direct["p50_us"]
        if nginx is not None and nginx["p50_us"] and nginx["p50_us"] > direct["p50_us"]:
            added_ratio = added / (nginx["p50_us"] - direct["p50_us"])
    return {"rps_ratio_to_nginx": ratio, "added_p50_us": added, "added_p50_ratio_to_nginx": added_ratio}


# ---- a pair of kinds -------------------------------------------------------------------------------------------------


def kinds_pair(arm: Arm, endpoints: dict[str, list[str]], plan: Plan, bench: Bench) -> list[Row]:
    """One of our arms before servers of each kind. `endpoints`: by kind."""
    measured: dict[str, list[Row]] = {kind: [] for kind in endpoints}
    with ExitStack() as stack:
        try:
            served = {}
            for kind, listed in endpoints.items():
                each = replace(arm, kind=kind)
                served[each] = stack.enter_context(proxy(each, listed, bench.folder, bench.root))
                # Warm, for a second; and servers that list no models are asked for one when a client has named it.
                wrk([served[each].url + each.path], 16, 1, body_of(300, kind), bench.folder, OTHERS_CORE)
            for turn in range(plan.kinds_rounds):
                for each in rotated([*served], turn):
                    bench.bar.set_description(f"kinds, {each.name}")
                    row = _row("trivial", each, Cell(*CENTRE), served[each], [], plan.kinds_seconds, bench.folder)
                    measured[each.kind].append(row)
                    bench.bar.update()
        except NotServing as error:
            bench.gave_up(arm, error)
            return []
    return [kinds_row(kind, rows, measured[TORCHSERVE]) for kind, rows in measured.items()]


def kinds_row(kind: str, rows: Sequence[Row], torchserve: Sequence[Row]) -> Row:
    """One row of each round. A ratio is of one round, and the median of these counts."""
    costs, theirs = ([1e6 / row["requests_per_second_per_core"] for row in each] for each in (rows, torchserve))
    ratios = [own / other for own, other in zip(costs, theirs, strict=True)]
    shared = ("proxy", "mode", "build", "upstream", "client", "connections", "body_bytes")
    return {
        **{name: rows[0][name] for name in shared},
        "load": "kinds",
        "kind": kind,
        "requests": sum(row["requests"] for row in rows),
        "cpu_us": round(statistics.median(costs), 1),
        "cpu_ratio_to_torchserve": None if kind == TORCHSERVE else round(statistics.median(ratios), 2),
        "cpu_ratio_spread": None if kind == TORCHSERVE else [round(min(ratios), 2), round(max(ratios), 2)],
        "errors": sum(row["errors"] for row in rows),
    }


# ---- half of the capacity --------------------------------------------------------------------------------------------


def half_load(endpoints: list[str], arms: Sequence[Arm], plan: Plan, bench: Bench) -> list[Row]:
    rows = []
    compared = half_arms(arms, bench.build)
    for used in (1, 2):
        direct = [endpoint.partition(",")[0] for endpoint in endpoints[:used]]
        capacity = _capacity([url + PREDICT for url in direct], plan, bench)
        seconds = plan.half_seconds / used
        slices: dict[Arm, list[Answers]] = {arm: [] for arm in compared}
        for seed in range(plan.seeds):
            for arm in rotated(compared, seed):
                bench.bar.set_description(f"half of capacity, {used}, seed {seed}, {arm.name}")
                load = Slice((), capacity / 2, HALF_WARM_S, seconds, seed, HALF_BYTES)
                try:
                    slices[arm].append(_slice(arm, load, endpoints[:used], direct, bench))
                except NotServing as error:
                    bench.gave_up(arm, error)
                bench.bar.update()
        for arm, answers in slices.items():
            if len(answers) == plan.seeds:
                rows.append(half_row(arm, answers, slices[DIRECT], used, capacity / 2))
    return rows


def half_arms(arms: Sequence[Arm], build: str) -> list[Arm]:
    wanted = (DIRECT, AGAIN, Arm("nginx"), Arm("haproxy"), Arm("ts_parity", "uncoded", build))
    return [arm for arm in wanted if arm in {*arms, AGAIN}]


def _capacity(urls: list[str], plan: Plan, bench: Bench) -> float:
    """Requests a second of instances that never want for work."""
    seconds = max(2, round(plan.half_seconds / 2))
    connections = 4 * WORKERS * len(urls)
    seen = wrk(urls, connections, seconds, body_of(HALF_BYTES), bench.folder, OTHERS_CORE)
    if seen.errors or not seen.requests:
        raise SystemExit(f"the instances' capacity cannot be told: {seen}")
    return seen.requests / seen.seconds


def _slice(arm: Arm, load: Slice, endpoints: list[str], direct: list[str], bench: Bench) -> Answers:
    if arm in (DIRECT, AGAIN):
        return open_loop(replace(load, urls=tuple(url + PREDICT for url in direct)), PROXY_CORE)
    with proxy(arm, endpoints, bench.folder, bench.root) as served:
        return open_loop(replace(load, urls=(served.url + PREDICT,)), PROXY_CORE)


def half_row(arm: Arm, answers: list[Answers], direct: list[Answers], instances: int, rate: float) -> Row:
    """One Answers per seed. Medians over the seeds, so that one slice in which the machine stood still says little."""
    row: Row = {
        "proxy": arm.proxy,
        "mode": arm.mode if arm.build else "uncoded",  # the predictions' own address, for all
        "build": arm.build,
        "upstream": "torchserve",
        "load": "half",
        "instances": instances,
        "body_bytes": HALF_BYTES,
        "rate": round(rate, 1),
        "seeds": len(answers),
        "requests": sum(len(each.latencies_us) for each in answers),
        "send_lag_p99_us": round(statistics.median(percentile(each.lags_us, 99) for each in answers)),
        "errors": sum(each.errors for each in answers),
    }
    for q in (50, 99):
        ours = [percentile(each.latencies_us, q) for each in answers]
        theirs = [percentile(each.latencies_us, q) for each in direct]
        shares = [own / other - 1 for own, other in zip(ours, theirs, strict=True)]
        row[f"p{q}_us"] = round(statistics.median(ours))
        row[f"added_p{q}_share"] = None if arm == DIRECT else round(statistics.median(shares), 4)
        row[f"added_p{q}_share_spread"] = None if arm == DIRECT else [round(min(shares), 4), round(max(shares), 4)]
    return row


def percentile(values: list[int], q: int) -> int:
    if not values:
        raise SystemExit("an arm has answered nothing at half of the capacity")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * q // 100)]


def drained(endpoints: list[str]) -> Callable[[], None]:
    """-> waits until nobody's requests are left in the instances' queues: wrk leaves when its time is over."""
    managements = [endpoint.rpartition("management=")[2] for endpoint in endpoints]

    def pending() -> int:
        waiting = 0
        for url in managements:
            for model in _get(f"{url}/models")["models"]:
                waiting += sum(
                    each["jobQueueStatus"]["pendingRequests"] for each in _get(f"{url}/models/{model['modelName']}")
                )
        return waiting

    def settle() -> None:
        until = time.monotonic() + 30
        while pending() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.05)  # the last ones, with the workers

    return settle


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


# ---- the whole run ---------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all parts need: where the proxy is imported from, a folder, the bar, and what went wrong."""

    root: Path
    build: str
    folder: Path
    bar: Any
    failed: list[str]

    def gave_up(self, arm: Arm, error: Exception) -> None:
        self.bar.write(str(error), file=sys.stderr)
        if arm.name not in self.failed:
            self.failed.append(arm.name)


KINDS = "kinds"
"""The part that is kept by itself, too."""
UPSTREAMS = ("trivial", KINDS, "torchserve", "half")


def measure(
    plan: Plan, only: Sequence[str] = (), upstreams: Sequence[str] = UPSTREAMS, quiet: bool = False
) -> dict[str, Any]:
    """-> the document, without its command."""
    root = imported_from()
    build = build_of(root)
    arms = arms_of(build, only)
    if build_of(SOURCES) != PLAIN:  # compiled in place: there is no plain one to compare with
        arms = [arm for arm in arms if arm.build in (None, build)]
    whole = [arm for arm in arms if arm.build in (None, build)]
    paired = [arm for arm in whole if arm.mode == "uncoded"]
    turns = [
        plan.rounds * sum(takes(arm, cell, build) for cell in plan.cells for arm in arms),
        plan.kinds_rounds * 2 * len(paired),
        plan.torchserve_rounds * len(whole) * len(plan.torchserve_cells),
        2 * plan.seeds * len(half_arms(whole, build)),
    ]
    total = sum(count for count, upstream in zip(turns, UPSTREAMS, strict=True) if upstream in upstreams)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=total, unit="cell", disable=quiet) as bar,
    ):
        bench = Bench(root, build, Path(folder), bar, [])
        if "trivial" in upstreams:
            with ExitStack() as stack:
                endpoints = {code: played(code, bench, stack) for code in CODES}
                rounds = closed_loop("trivial", endpoints, arms, plan.cells, plan.seconds, plan.rounds, bench)
            rows += combined(rounds)
        if KINDS in upstreams:
            for arm in paired:
                with ExitStack() as stack:
                    behind = {TORCHSERVE: played("sum", bench, stack)[:2]}
                    behind[OPEN_INFERENCE] = played(OPEN_INFERENCE, bench, stack)
                    rows += kinds_pair(arm, behind, plan, bench)
        if {"torchserve", "half"} & set(upstreams):
            bar.set_description("TorchServe starts")
            with torchserve(bench.folder, OTHERS_CORE) as deployed:
                if "torchserve" in upstreams:
                    behind = dict.fromkeys(CODES, deployed)
                    cells, seconds, turns_ = plan.torchserve_cells, plan.torchserve_seconds, plan.torchserve_rounds
                    settle = drained(deployed)
                    rows += combined(closed_loop("torchserve", behind, whole, cells, seconds, turns_, bench, settle))
                if "half" in upstreams:
                    rows += half_load(deployed, whole, plan, bench)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {
        "machine": machine,
        "build": build,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        KINDS: {"machine": machine, "build": build, "seconds": plan.kinds_seconds, "rounds": plan.kinds_rounds},
        "torchserve": {
            "seconds": plan.torchserve_seconds,
            "rounds": plan.torchserve_rounds,
            "service_ms": SERVICE_S * 1e3,
            "workers": WORKERS,
            "half_seconds": plan.half_seconds,
            "seeds": plan.seeds,
        },
        "failed": bench.failed,
        "rows": rows,
    }


def played(code: str, bench: Bench, stack: ExitStack) -> list[str]:
    folder = bench.folder / f"instances-{code}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--play", code]
    process = stack.enter_context(running(command, OTHERS_CORE, folder, bench.root))
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        raise SystemExit(f"the trivial instances did not start:\n{(folder / 'stderr').read_text()}")
    return list(json.loads(said))


# ---- targets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    what: str
    bound: float
    least: bool
    shown: str
    reached: float | None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if self.reached is None:
            return None
        return self.reached >= self.bound if self.least else self.reached <= self.bound

    @property
    def line(self) -> list[str]:
        bound = f"{'at least' if self.least else 'at most'} {format(self.bound, self.shown)}"
        if self.reached is None:
            return [self.what, bound, "-", "not measured"]
        return [self.what, bound, format(self.reached, self.shown) + self.note, "met" if self.met else "MISSED"]


RATIOS = {"pass-through": 0.6, "uncoded": 0.4, "coded-exact": 0.25, "coded-sum": 0.25}


def targets(document: dict[str, Any]) -> list[Target]:
    rows, build = document["rows"], document["build"]
    connections, size = CENTRE
    centre: Row = {"proxy": "ts_parity", "build": build, "upstream": "trivial", "load": "closed", "body_bytes": size}
    found = []
    for mode, least in RATIOS.items():
        here: Row = {**centre, "mode": mode, "connections": connections}
        reached = _of(rows, "rps_ratio_to_nginx", **here, client=SAME)
        unique = _of(rows, "rps_ratio_to_nginx", **here, client=UNIQUE)
        note = "" if unique is None else f" ({unique:.2f} with unique heads)"
        found.append(Target(f"{mode}: requests/s per core, of nginx's", least, True, ".2f", reached, note))
    added = _of(rows, "added_p50_ratio_to_nginx", **centre, mode="pass-through", connections=1, client=SAME)
    found.insert(1, Target("pass-through: added median at one connection, times nginx's", 2.5, False, ".2f", added))
    half: Row = {"proxy": "ts_parity", "build": build, "mode": "uncoded", "load": "half", "instances": 1}
    for q, most in ((50, 0.05), (99, 0.10)):
        share = _of(rows, f"added_p{q}_share", **half)
        spread = _of(rows, f"added_p{q}_share_spread", **half)
        note = "" if spread is None else f" ({spread[0]:.1%} to {spread[1]:.1%} over the seeds)"
        what = f"uncoded, TorchServe at half of its capacity: added p{q}, of TorchServe's own"
        found.append(Target(what, most, False, ".1%", share, note))
    pair: Row = {"proxy": "ts_parity", "build": build, "mode": "uncoded", "load": KINDS, "kind": OPEN_INFERENCE}
    ratio, spread = (_of(rows, f"cpu_ratio_{what}", **pair) for what in ("to_torchserve", "spread"))
    note = "" if spread is None else f" ({spread[0]:.2f} to {spread[1]:.2f} over the rounds)"
    what = "uncoded, open-inference: processor time a query, of that before TorchServe"
    found.append(Target(what, 1.0, False, ".2f", ratio, note))
    rest = [row["rss_rest_mb"] for row in rows if row["proxy"] == "ts_parity" and row.get("rss_rest_mb") is not None]
    found.append(Target("memory per process at rest, MB", 80, False, ".0f", max(rest, default=None)))
    return found


def _of(rows: list[Row], name: str, **wanted: Any) -> Any:
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row[name]
    return None


# ---- the documents' sections -----------------------------------------------------------------------------------------


def headline(document: dict[str, Any]) -> str:
    """What README.md says between its marks."""
    connections, size = CENTRE
    cell = {"upstream": "trivial", "load": "closed", "connections": connections, "body_bytes": size, "client": SAME}

    def told(mode: str) -> tuple[str, str]:
        ours = {"proxy": "ts_parity", "mode": mode, "build": document["build"], **cell}
        per_core = _of(document["rows"], "requests_per_second_per_core", **ours)
        return f"{per_core:,.0f}", f"{_of(document['rows'], 'rps_ratio_to_nginx', **ours):.2f}"

    passed, queued, coded = told("pass-through"), told("uncoded"), told("coded-sum")
    return (
        f"One core passes on {passed[0]} requests of {size:,} bytes a second, {passed[1]} of what nginx does; "
        f"it serves {queued[0]} ({queued[1]})\nthrough the proxy's queue, and {coded[0]} ({coded[1]}) with a parity "
        "model. More: [Benchmarks](docs/benchmarks.md#the-data-path)."
    )


def summary(document: dict[str, Any]) -> str:
    """One cell of all, with unique heads beside it."""
    connections, size = CENTRE
    cell: Row = {"upstream": "trivial", "load": "closed", "connections": connections, "body_bytes": size}
    lines = []
    for row in document["rows"]:
        if row["proxy"] == "direct" or any(row.get(key) != value for key, value in {**cell, "client": SAME}.items()):
            continue
        who = {"proxy": row["proxy"], "mode": row["mode"], "build": row["build"], **cell, "client": UNIQUE}
        unique = _of(document["rows"], "rps_ratio_to_nginx", **who)
        name = ", ".join([row["proxy"], *_who(row, document["build"])[1:]])
        ratio = _shown(row["rps_ratio_to_nginx"], ".2f")
        lines.append([name, f"{row['requests_per_second_per_core']:,.0f}", ratio, _shown(unique, ".2f")])
    head = ("proxy", "requests/s per core", "of nginx's", "of nginx's, unique heads")
    how = f"{connections} connections, {size:,} bytes, instances that answer at once. {_rounds(document)}"
    return f"{markdown(head, lines)}\n\n`{document['command']}`, {document['machine']}; {how}"


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    said = _how(document)
    failed = document["failed"]
    if failed:
        said += f" Not serving, so left out: {', '.join(failed)}."
    parts = {
        "overhead": (_rounds(document), closed_tables(document, "trivial")),
        "overhead-kinds": (_pairs(document), kinds_table(document)),
        "overhead-torchserve": (_rounds(document["torchserve"]), closed_tables(document, "torchserve")),
        "overhead-half": (_seeds(document["torchserve"]), half_table(document)),
    }
    verdicts = markdown(("target", "is", "reached", ""), [target.line for target in targets(document)])
    out = {"overhead-targets": f"{said}\n\n{verdicts}", "overhead-summary": summary(document)}
    for mark, (how, tables) in parts.items():
        out[mark] = f"{how}\n\n{tables}" if tables else "Not measured."
    return out


def _how(measured: dict[str, Any]) -> str:
    build = {COMPILED: "our proxy compiled", PLAIN: "our proxy as plain Python"}[measured["build"]]
    return f"`{measured['command']}`; {build}; {measured['machine']}."


def _pairs(document: dict[str, Any]) -> str:
    how = document.get(KINDS)
    return "" if how is None else f"{_how({'command': document['command'], **how})} {_rounds(how)}"


def _rounds(how: dict[str, Any] | None) -> str:
    return "" if how is None else f"Rounds: {how['rounds']}, of {how['seconds']:g} s a cell.{_model(how)}"


def _seeds(how: dict[str, Any] | None) -> str:
    if how is None:
        return ""
    return f"Seeds: {how['seeds']}, of {how['half_seconds']:g} s with one instance, half as long with two.{_model(how)}"


def _model(how: dict[str, Any]) -> str:
    if "workers" not in how:
        return ""
    return f" {how['workers']} workers an instance, {how['service_ms']:g} ms a prediction."


def closed_tables(document: dict[str, Any], upstream: str) -> str:
    """Nothing, where nothing was measured; as half_table."""
    rows = [row for row in document["rows"] if row["upstream"] == upstream and row["load"] == "closed"]
    rows.sort(key=lambda row: (row["connections"], row["body_bytes"], row["client"] == UNIQUE))
    direct = [
        [
            *_place(row),
            _shown(row["p50_us"], ",.0f"),
            _shown(row["p99_us"], ",.0f"),
            f"{row['requests_per_second']:,.0f}",
        ]
        for row in rows
        if row["proxy"] == "direct"
    ]
    through = []
    for row in rows:
        if row["proxy"] == "direct":
            continue
        numbers = (
            ("requests_per_second_per_core", ",.0f"), ("rps_ratio_to_nginx", ".2f"), ("p50_us", ",.0f"),
            ("p99_us", ",.0f"), ("added_p50_us", ",.0f"), ("rss_rest_mb", ".0f"), ("rss_mb", ".0f"), ("errors", ",.0f"),
        )  # fmt: skip
        through.append([*_place(row), *_who(row, document["build"]), *(_shown(row[n], form) for n, form in numbers)])
    head = (
        "connections", "body", "proxy", "mode", "requests/s per core", "of nginx", "p50 us", "p99 us", "added p50",
        "MB at rest", "MB after", "errors",
    )  # fmt: skip
    if not rows:
        return ""
    without = markdown(("connections", "body", "p50 us, direct", "p99 us, direct", "requests/s"), direct)
    return f"{without}\n\n{markdown(head, through)}"


def kinds_table(document: dict[str, Any]) -> str:
    lines = []
    for row in document["rows"]:
        if row["load"] != KINDS:
            continue
        ratio, spread = row["cpu_ratio_to_torchserve"], row["cpu_ratio_spread"]
        said = "" if ratio is None else f"{ratio:.2f} ({spread[0]:.2f} to {spread[1]:.2f})"
        lines.append([row["kind"], f"{row['requests']:,}", f"{row['cpu_us']:.1f}", said, str(row["errors"])])
    head = ("kind", "queries", "us of processor time a query", "of torchserve's (of the rounds)", "errors")
    return markdown(head, lines) if lines else ""


def half_table(document: dict[str, Any]) -> str:
    lines = []
    for row in document["rows"]:
        if row["load"] != "half":
            continue
        shares = []
        for q in (50, 99):
            share, spread = row[f"added_p{q}_share"], row[f"added_p{q}_share_spread"]
            shares.append("" if share is None else f"{share:.1%} ({spread[0]:.1%} to {spread[1]:.1%})")
        figures = [f"{row[name] / 1e3:.2f}" for name in ("p50_us", "p99_us")]
        lag = f"{row['send_lag_p99_us'] / 1e3:.2f}"
        counts = [str(row["instances"]), f"{row['rate']:.0f}", row["proxy"]]
        lines.append([*counts, f"{row['requests']:,}", *figures, *shares, lag, str(row["errors"])])
    head = (
        "instances", "requests/s", "proxy", "requests", "p50 ms", "p99 ms", "added p50 (of the seeds)",
        "added p99 (of the seeds)", "send lag p99 ms", "errors",
    )  # fmt: skip
    return markdown(head, lines) if lines else ""


def _place(row: Row) -> list[str]:
    return [str(row["connections"]), f"{row['body_bytes']:,}"]


def _who(row: Row, build: str) -> list[str]:
    said = [row["mode"]]
    if row["client"] == UNIQUE:
        said.append(UNIQUE)
    if row["build"] == PLAIN and build != PLAIN:
        said.append("plain Python")
    return [row["proxy"], ", ".join(said)]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# ---- command line ----------------------------------------------------------------------------------------------------


def with_kinds_of(kept: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The kept results with the pair of kinds as it was measured alone, and with what."""
    rows = [row for row in kept["rows"] if row["load"] != KINDS] + measured["rows"]
    how = {"command": measured["command"], **measured[KINDS]}
    return {**kept, KINDS: how, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of everything; what it measures is not kept")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these, direct and nginx; not kept")
    parser.add_argument(
        "--upstream", nargs="+", default=UPSTREAMS, choices=UPSTREAMS, help="these parts; not kept, but for `kinds`"
    )
    parser.add_argument("--seconds", type=count(), help="of a cell with trivial instances; wrk knows whole ones only")
    parser.add_argument("--rounds", type=count(), help="of the cells with trivial instances")
    parser.add_argument("--connections", type=count(), nargs="+")
    parser.add_argument("--bodies", type=count(), nargs="+", help="with trivial instances")
    parser.add_argument("--seeds", type=count(), help="at half of the capacity")
    parser.add_argument("--out", type=Path, help="keep the results here, whatever was measured")
    parser.add_argument("--tables", action="store_true", help="renew the tables of the docs, run nothing")
    parser.add_argument("--play", choices=(*CODES, OPEN_INFERENCE), help=argparse.SUPPRESS)
    parser.add_argument("--serve-aiohttp", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(play_open_inference() if args.play == OPEN_INFERENCE else play_instances(args.play))
        return 0
    if args.serve_aiohttp:
        asyncio.run(serve_aiohttp(int(args.serve_aiohttp[0]), args.serve_aiohttp[1:]))
        return 0
    if args.tables:
        for mark, text in sections(json.loads((args.out or RESULTS).read_text())).items():
            renew(DOCS, mark, text)
        renew(README, "overhead", headline(json.loads((args.out or RESULTS).read_text())))
        return 0
    missing = [program for program in ("nginx", "haproxy", "wrk", "taskset") if shutil.which(program) is None]
    if missing or (os.cpu_count() or 1) < 2:
        what = ", ".join(missing) or "a second core"
        print(f"missing: {what}; apt-get install nginx-light haproxy wrk", file=sys.stderr)
        return 3
    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = {name: getattr(args, name) for name in ("seconds", "rounds", "connections", "bodies", "seeds")}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    plan = replace(QUICK if args.quick else Plan(), **given)
    document = {"command": " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]])}
    document |= measure(plan, args.only, args.upstream)
    whole = not args.quick and not args.only and set(args.upstream) == set(UPSTREAMS)
    alone = not args.quick and not args.only and set(args.upstream) == {KINDS}
    out = args.out or (RESULTS if whole or alone else None)
    if out is not None:
        kept = with_kinds_of(json.loads(RESULTS.read_text()), document) if alone and out == RESULTS else document
        out.write_text(json.dumps(kept, indent=1) + "\n")
    for text in reversed(sections(document).values()):
        print(text, end="\n\n")
    missed = [target for target in targets(document) if target.met is False]
    return 1 if missed or document["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
