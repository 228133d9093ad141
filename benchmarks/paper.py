"""The evaluation of the paper (Parity Models, SOSP 2019, figures 9 to 13), on real TorchServe, beside what a user would
really pick.

    apt-get install nginx-light; pip install hedge-python
    python benchmarks/paper.py                 everything: hours; an interrupted run goes on where it stopped
    python benchmarks/paper.py --figure 9      one figure
    python benchmarks/paper.py --service 100   in slow motion, for hosts whose cores do not suffice otherwise
    python benchmarks/paper.py --missing       only points that the kept results lack
    python benchmarks/paper.py --quick         figure 9 at one load on six machines, 500 queries a point; not kept
    python benchmarks/paper.py --collect       measure nothing; keep the points that are done in `--work` so far
    python benchmarks/paper.py --tables        renew docs/benchmarks.md from the kept results

The paper measured latency with untrained networks, and had neither a deadline, nor second copies, nor a balancer worth
the name beside it. Here latency and answers are measured together: each query carries a scan of a digit that no model
has seen, and what is rebuilt is compared with what the deployed model says. Emulated: the accelerator (an inference is
a wait) and the network between machines (a gate, which delays messages as the paper's shuffles do). Real: TorchServe,
the models, the proxy, its protections, HTTP, clients, crashes.

A point is one arm under one load with one seed; it is measured once, whatever figures show it. All arms of a figure
meet the same arrivals, bodies and trouble. Points that are done are in the folder `--work`, with their records. Rows
and thinned curves are kept in benchmarks/results/paper.json: points of `--work` that are newer replace the same ones
there, others stay as long as a figure shows them. So all of it can be measured in parts, on several days and machines.
Every row says when and on which host, and arms are best compared that were measured on one.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from paper_fleet import Archives, Cluster, HedgePython, Twice, have_hedge_python, make_archives, nginx, tenant
from paper_points import ARMS, FIGURES, QUICK, SLOW, Point, Size, extra_machines, point_of, points, shown
from paper_tables import CURVES, PERCENTILES, PLOT, Row, over_loads, plot, plot_curves, sections
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count, number
from ts_parity.errors import INTERRUPTED
from ts_parity.lab.compare import World, service_from
from ts_parity.lab.demo import MODEL, read_bodies, read_digit
from ts_parity.lab.emulation import Emulation, make_spells
from ts_parity.lab.faults import CRASH, Fault, shuffles
from ts_parity.lab.intervals import interval
from ts_parity.lab.live import (
    LiveMachine,
    ProxyProcess,
    Trouble,
    proxy_over,
    run_arm,
)
from ts_parity.lab.records import QueryRecord, read_records
from ts_parity.lab.report import percentile, summarize
from ts_parity.lab.rivals import UNBOUNDED, Arrangement, arrange
from ts_parity.lab.scenario import Outage, ServiceTimes
from ts_parity.lab.simulate import Result, simulate
from ts_parity.lab.traffic import LabelledBody, Load, poisson_load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "paper.json"
DOCS, PLOTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs"

CONTENTION = 0.12
"""Mean delay of a message while its instance's network is contended, in service times. A query has two of them, and 8
of 18 instances are contended at a time, so the p99.9 of equal resources is about 2.5 medians, as in the paper's figure
9: 1 + 0.24 ln(0.44 / 0.001)."""
PAPERS_MACHINES = 18
WARM_UP = 150
COLD = 100
"""Queries for each machine of a fleet that has just started: the first ones are slow, and the first arm would be blamed
for it."""
UNTIMED = 0.1, 0.005
"""Of a load, the first and last queries, whose latencies do not count: machines are still getting warm for the first,
and have less and less to do for the last."""
MOMENT_S = 0.5
"""In which slow queries count as slow together."""
USUAL = 1500
"""Queries to machines that nothing troubles, before equal resources are measured: what the host adds to an inference at
this load, for the simulator."""
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
HOST = hashlib.blake2b((_BOOT.read_bytes() if _BOOT.exists() else platform.node().encode()), digest_size=4).hexdigest()
"""One machine between two of its starts: after one it may be another machine of the same name."""
MADE = {"measured_at", "host", "machine"}
"""What a row says of how it was made."""
SIZE = "machines", "queries", "steps"
"""What points must have in common to be kept in one document."""
LINES_S = 2.0
"""A proxy writes its access log about once a second."""
CURVE = 80
"""Points of a kept curve."""


# ---- a point --------------------------------------------------------------------------------------------------------


def transfers_of(point: Point, machines_: int) -> int:
    """At a time. The figures are for the paper's 18 machines, and a smaller fleet has as many a machine."""
    return max(1, round(point.disturbances * machines_ / PAPERS_MACHINES))


def trouble_of(size: Size, point: Point, machines_: int, duration_s: float) -> Trouble:
    if point.trouble == "shuffles":
        strength_s = CONTENTION * size.service_s
        transfers = transfers_of(point, machines_)
        made = shuffles(transfers, machines_, duration_s / size.slower, point.seed, strength_s)
        return Trouble(faults=[replace(f, at=f.at * size.slower, spell_s=f.spell_s * size.slower) for f in made])
    if point.trouble == "slow":
        return Trouble(spells=make_spells(size.spells, machines_, duration_s, point.seed))
    if point.trouble == "crash":
        return Trouble(faults=(Fault(duration_s / 2, 0, CRASH),))
    return Trouble()


def load_of(size: Size, point: Point, bodies: int) -> Load:
    return poisson_load(size.queries, point.load * size.machines / size.service_s, bodies, point.seed)


def measure(
    size: Size, point: Point, cluster: Cluster, archives: Archives, work: Path, tick: Callable[[object], object]
) -> Row:
    """One point: warm up, then load and trouble from one instant. -> its row."""
    bodies = read_bodies(archives.data)
    fleet = cluster.arranged(point)
    arm, load = ARMS[point.arm], load_of(size, point, len(bodies))
    log = log_of(work, point) if point.arm == "equal" else None
    rate = len(load.due_at) / load.duration_s
    with ExitStack() as stack:
        proxy = None
        if arm.flags is None:
            url = f"{stack.enter_context(nginx(fleet))}/predictions/{MODEL}"
        else:
            flags = flags_of(size, point)
            if log is not None:
                flags += ("--access-log", str(log))
            endpoints = [live.endpoint for live in fleet]
            proxy = stack.enter_context(proxy_over(endpoints, MODEL, work, "proxy", flags))
            if arm.hosting != "plain":
                proxy.wait_for_code(
                    "sum" if arm.hosting == "coded" else "exact" if arm.hosting == "exact" else "student"
                )
            url = proxy.url
        client = {"twice": Twice, "hedge-python": lambda: HedgePython(rate)}.get(arm.client, lambda: None)()
        if cluster.cold:
            _drive(fleet, url, bodies, COLD * len(fleet), rate, point.seed)
            cluster.cold = len(fleet) < len(cluster.fleet)  # the others still are
        _warm_up(fleet, url, bodies, rate, point.seed, proxy)
        if log is not None:
            time.sleep(LINES_S)
            os.truncate(log, 0)
            _drive(fleet, url, bodies, min(USUAL, size.queries), rate, point.seed)
            time.sleep(LINES_S)
            shutil.copyfile(log, usual_log_of(work, point))
            os.truncate(log, 0)
        if point.trouble == "tenant":
            stack.enter_context(tenant(size, cluster.fleet, archives, load.duration_s, point.seed))
        before, sent = proxy.work() if proxy else 0.0, client.sent if client else 0
        records, struck = run_arm(
            fleet, [url], load, bodies, read_digit, trouble_of(size, point, len(fleet), load.duration_s), point.seed,
            tick,
            cluster.gate, client or (lambda post: post),
        )  # fmt: skip
        if log is not None:
            time.sleep(LINES_S)
        asked = client.sent - sent if client else size.queries
        work_sent = asked if proxy is None else proxy.work() - before
    with gzip.open(work / f"{point.key}.records.gz", "wt") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
    made = row_of(size, point, records, load, work_sent / size.queries, len(fleet))
    now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M}"
    return made | {"struck": sum(struck.values()), "measured_at": now, "host": HOST, "machine": MACHINE}


def log_of(work: Path, point: Point) -> Path:
    """The access log of equal resources in the setting of a point."""
    return work / f"{replace(point, arm='equal').key}.access.jsonl"


def usual_log_of(work: Path, point: Point) -> Path:
    """The access log of equal resources in the setting of a point, before its trouble began."""
    return work / f"{replace(point, arm='equal').key}.usual.jsonl"


def flags_of(size: Size, point: Point) -> tuple[str, ...]:
    if point.arm == "approximate":  # a backup's answer is used from the median on
        return ("--extra-work", "0", "--differing", "1", "--reconstruct-after-s", f"{size.service_s:g}")
    return ARMS[point.arm].flags or ()


def _warm_up(
    fleet: Sequence[LiveMachine], url: str, bodies: Sequence[LabelledBody], rate: float, seed: int,
    proxy: ProxyProcess | None,
) -> None:  # fmt: skip
    for round_ in range(4):
        _drive(fleet, url, bodies, WARM_UP, rate, seed + round_)
        if proxy is None or not proxy.on_trial():
            return


def _drive(
    fleet: Sequence[LiveMachine], url: str, bodies: Sequence[LabelledBody], queries: int, rate: float, seed: int
) -> None:
    load = poisson_load(queries, rate, len(bodies), 1000 + seed)
    run_arm(fleet, [url], load, bodies, read_digit, Trouble(), seed)


def row_of(size: Size, point: Point, records: Sequence[QueryRecord], load: Load, work: float, machines_: int) -> Row:
    """What clients saw."""
    summary = summarize(records, work)
    differing, compared = differing_of(records, load)
    made: Row = {
        "arm": point.arm.partition(",")[0], "spec": point.arm, "load": point.load, "k": point.k, "workers": machines_,
        "seed": point.seed, "queries": size.queries, "disturbances": point.disturbances, "batch": point.batch,
        "trouble": point.trouble, "service_ms": point.service_ms,
    }  # fmt: skip
    return (
        made
        | times_of(records, point.seed)
        | {
            "lost": summary.lost,
            "errors": summary.errors,
            "reconstructed": summary.reconstructed,
            "hedged": sum(r.outcome == "hedged" for r in records),
            "differing": differing,
            "compared": compared,
            "accuracy": summary.accuracy,
            "accuracy_reconstructed": summary.accuracy_reconstructed,
            "work": round(work, 4),
        }
    )


def times_of(records: Sequence[QueryRecord], seed: int) -> Row:
    """How long clients waited."""
    timed = timed_of(records)
    summary = summarize(timed, 0.0)
    in_order = [r.latency_s for r in timed if r.answered and r.latency_s is not None]
    made: Row = {"timed": len(timed), "max_ms": summary.max_ms, "send_lag_p99_ms": summary.send_lag_p99_ms}
    made["clustered"] = None if summary.p999_ms is None else clustered(timed)
    for name, share in PERCENTILES.items():
        found = interval(in_order, share, seed)
        made[name] = getattr(summary, name)
        made[f"{name[:-3]}_low_ms"], made[f"{name[:-3]}_high_ms"] = (
            (None, None) if found is None else tuple(round(1000 * end, 2) for end in found)
        )
    return made


def clustered(records: Sequence[QueryRecord]) -> float:
    """The largest share of the slowest thousandth of the answered queries that was due within `MOMENT_S`: near 1 where
    a single pause of the host, or one long queue, made all of p99.9.
    """
    answered = sorted((r.latency_s, r.due_at) for r in records if r.answered and r.latency_s is not None)
    due = sorted(at for _, at in answered[-(len(answered) // 1000 + 1) :])
    return round(max(bisect_right(due, at + MOMENT_S) - n for n, at in enumerate(due)) / len(due), 3)


def timed_of(records: Sequence[QueryRecord]) -> Sequence[QueryRecord]:
    first, last = (round(share * len(records)) for share in UNTIMED)
    return records[first : len(records) - last]


def differing_of(records: Sequence[QueryRecord], load: Load) -> tuple[int, int]:
    """Of the rebuilt answers: how many are not what the deployed model says of the same body, and how many could be
    compared.
    """
    own: dict[int, object] = {}
    for record in records:
        if record.outcome in ("deployed", "hedged"):
            own.setdefault(load.picks[record.seq], record.predicted)
    rebuilt = [r for r in records if r.outcome == "reconstructed" and load.picks[r.seq] in own]
    return sum(r.predicted != own[load.picks[r.seq]] for r in rebuilt), len(rebuilt)


# ---- the simulator beside it ----------------------------------------------------------------------------------------


def arranged(size: Size, point: Point, costs: Mapping[str, float], service_s: float) -> Arrangement:
    """The arm, as the simulator has it."""
    arm = ARMS[point.arm]
    extra = extra_machines(size, point.k) if arm.extra else 0
    code, k, cost = {
        "coded": ("sum", point.k, costs[f"sum{point.k}"]), "approximate": ("student", 1, costs["backup"]),
        "exact": ("exact", point.k, 1.0), "student": ("student", point.k, costs["student"]),
    }.get(arm.hosting, ("sum", point.k, 1.0))  # fmt: skip
    binds = arm.flags is None  # nginx sends on at once; the machines have queues of their own then
    changes: dict[str, Any] = {"balance": "round_robin"} if binds else dict(arm.changes)
    if arm.name == "approximate":
        changes["reconstruct_after_s"] = size.service_s / service_s
    workers = size.machines
    if arm.policy == "replication":  # which is of twice as many machines there
        workers, extra = (workers + extra) // 2, 0
    return arrange(arm.policy, workers, extra, code=code, k=k, cost=cost, service_s=service_s,
                   places=UNBOUNDED if binds else point.batch, **changes)  # fmt: skip


def usual_service(size: Size, point: Point, work: Path) -> tuple[ServiceTimes, float]:
    """What a task takes on these machines outside spells and contention, host and model included, at this load. -> its
    distribution, and its mean in seconds; what is emulated, where equal resources were not measured in this setting.
    """
    log = usual_log_of(work, point)
    if point.batch > 1 or not log.exists():  # a log of batches has the times of whole ones
        return ServiceTimes(cv=0.1), size.service_s
    service, unit, _ = service_from(log)
    return service, unit


def simulated(size: Size, point: Point, costs: Mapping[str, float], service: ServiceTimes, unit: float) -> Row:
    """The same point in the simulator: the same arrivals, the same spells, and tasks that take as long as on the host.
    Contention is replies that are late at random, for it has no network. Empty where a second tenant is the trouble.
    """
    if point.trouble == "tenant":
        return {}
    made = arranged(size, point, costs, unit)
    load = load_of(size, point, 450)
    spells = make_spells(size.spells, made.workers, load.duration_s, point.seed) if point.trouble == "slow" else ()
    contended = 2 * transfers_of(point, made.workers) / made.workers if point.trouble == "shuffles" else 0.0
    # In a spell the emulated wait grows, and not what the host adds to it.
    factor = 1 + (SLOW.factor - 1) * size.service_s / unit
    outages = [replace(o, at=o.at / unit, lasts=o.lasts / unit, factor=factor) for o in spells]
    if point.trouble == "crash":
        outages = [Outage("m0", load.duration_s / 2 / unit, kind="dead")]
    world = World(
        point.load * unit / size.service_s, size.machines, service=service,
        trace=tuple(at / unit for at in load.due_at), outages=tuple(outages), worker_batch=point.batch,
        net_share=min(1.0, contended), net_mean=2 * CONTENTION * size.service_s / unit, unit=unit,
    )  # fmt: skip
    return _told("simulated", simulate(replace(world.scenario(made, point.seed), warm_up=UNTIMED[0]), point.seed), unit)


def foretold(size: Size, point: Point, log: Path, costs: Mapping[str, float]) -> Row:
    """What `ts-parity plan` would say of this arm, from the access log of equal resources in the same setting."""
    if point.batch > 1 or not log.exists():
        return {}
    service, unit, seen = service_from(log)
    if seen is None:
        return {}
    trace = tuple(at / unit for at in seen.arrivals)
    world = World(point.load, size.machines, service=service, unit=unit, seen=seen, trace=trace)
    scenario = replace(world.scenario(arranged(size, point, costs, unit), 0), warm_up=UNTIMED[0])
    return _told("foretold", simulate(scenario, 0), unit)


def _told(by: str, result: Result, unit: float) -> Row:
    ordered = sorted(result.latencies)
    times = {name: percentile(ordered, share) for name, share in PERCENTILES.items()}
    return {f"{by}_{name}": None if t is None else round(1000 * unit * t, 1) for name, t in times.items()} | {
        f"{by}_work": round(result.work_per_query, 4)
    }


# ---- all of it ------------------------------------------------------------------------------------------------------


def estimate_s(size: Size, left: Sequence[Point]) -> float:
    """The time for these points: the loads themselves, warm-ups, and the starts of fleets."""
    usual = min(USUAL, size.queries)
    loads = sum(
        (size.queries + usual * (point.arm == "equal")) * size.service_s / (point.load * size.machines)
        for point in left
    )
    starts = len(dict.fromkeys(point.fleet for point in left)) * 12.0 * size.machines
    return loads + 12.0 * len(left) + starts


def collected(work: Path) -> dict[Point, Row]:
    """-> the points that are done, whatever run they are of. What an older version has left is left out."""
    rows = {file.stem: json.loads(file.read_text()) for file in sorted(work.glob("*-s[0-9]*.json"))}
    return {
        point: row
        for name, row in rows.items()
        if (point := point_of(row)) is not None and point.key == name and row.keys() >= MADE
    }


def wanted_of(size: Size, names: Sequence[str], arms: Sequence[str], but: Container[str] = ()) -> list[Point]:
    """`but`: keys of points that are not wanted."""
    wanted = [point for point in points(size, names) if point.arm in arms and point.key not in but]
    if have_hedge_python():
        return wanted
    print("hedge-python is not installed, so its arm is left out: pip install hedge-python", file=sys.stderr)
    return [point for point in wanted if ARMS[point.arm].client != "hedge-python"]


def run(size: Size, wanted: Sequence[Point], work: Path) -> None:
    """Measure what is left of these."""
    work.mkdir(parents=True, exist_ok=True)
    left = [point for point in wanted if not (work / f"{point.key}.json").exists()]
    if left:
        told = f"{len(left)} of {len(wanted)} points left, about {estimate_s(size, left) / 60:.0f} minutes"
        print(told, file=sys.stderr, flush=True)
        archives = make_archives(size, work)
        with Cluster(size, archives, work) as cluster, tqdm(total=len(left) * size.queries, unit="query") as bar:
            for point in left:
                bar.set_description(point.key)
                row = measure(size, point, cluster, archives, work, lambda record: bar.update())
                finished = work / f"{point.key}.json"
                finished.with_suffix(".unfinished").write_text(json.dumps(row))
                finished.with_suffix(".unfinished").replace(finished)


def document_of(size: Size, done: Mapping[Point, Row], work: Path, kept: Mapping[str, Any]) -> dict[str, Any]:
    """These points where they are newer than those of the kept document, and all others of that."""
    costs = json.loads((work / "models" / "done.json").read_text())
    full, curves = {}, dict(kept.get("curves", {}))
    for row in kept.get("rows", ()):
        if (point := point_of(row)) is not None:
            full[point] = {name: value for name, value in row.items() if name != "figure"}
    for point, row in done.items():
        if point in full and full[point]["measured_at"] > row["measured_at"]:
            continue
        paced = replace(size, service_s=point.service_ms / 1000)
        beside = simulated(paced, point, costs, *usual_service(paced, point, work))
        records = read_records_of(work / f"{point.key}.records.gz")
        now = times_of(records, point.seed)  # which are not those of an older version of this script
        full[point] = row | now | beside | foretold(paced, point, log_of(work, point), costs)
        curves[point.key] = curve(timed_of(records))
    for point, row in full.items():
        if "simulated_p50_ms" not in row:  # its logs are gone
            paced = replace(size, service_s=point.service_ms / 1000)
            full[point] = row | simulated(paced, point, costs, *usual_service(paced, point, work))
    rows = [full[point] | {"figure": figure} for figure, point in shown(list(full))]
    keys = {point.key for point in map(point_of, rows) if point is not None}
    return {
        "command": "python benchmarks/paper.py",
        "machine": "; ".join(dict.fromkeys(row["machine"] for row in rows)),
        "emulated": f"emulated accelerators: an inference is a wait as long as the table says, cv {Emulation().cv:g}; "
        "k in a batch take k times as long",
        "size": {name: getattr(size, name) for name in SIZE},
        "costs": costs,
        "rows": rows,
        "curves": {key: line for key, line in curves.items() if key in keys},
    }


def read_records_of(file: Path) -> list[QueryRecord]:
    with tempfile.NamedTemporaryFile("wb") as plain, gzip.open(file) as packed:
        shutil.copyfileobj(packed, plain)
        plain.flush()
        return [*read_records(Path(plain.name))]


def curve(records: Sequence[QueryRecord]) -> list[list[float]]:
    """(t in ms, share of queries slower than t), thinned evenly on a logarithmic axis."""
    latencies = sorted(1000 * r.latency_s for r in records if r.answered and r.latency_s is not None)
    found, last = [], math.inf
    for rank, latency in enumerate(latencies):
        slower = (len(records) - rank) / len(records)
        if slower <= last * len(records) ** (-1 / CURVE):
            found.append([round(latency, 2), round(slower, 6)])
            last = slower
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", action="append", choices=FIGURES, help="may be repeated; default: all")
    parser.add_argument("--arm", action="append", choices=ARMS, help="may be repeated; default: all of the figure")
    parser.add_argument("--quick", action="store_true", help="small; its results are printed and not kept")
    parser.add_argument("--load", action="append", type=number(above=0), help="only this; may be repeated")
    parser.add_argument("--seeds", type=count(), help="only so many")
    parser.add_argument("--queries", type=count(), help="a point")
    parser.add_argument(
        "--service", type=number(above=0), metavar="MS",
        help="of an inference (50); spells, transfers and delays grow with it: a host with few cores bears more then",
    )  # fmt: skip
    parser.add_argument("--steps", type=count(), help="of each protection's training")
    parser.add_argument("--machines", type=count(), help="that serve the model")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "paper", help="points that are done, and models")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="measure only points that the kept results lack, though an arm without its `equal` is of little use",
    )
    parser.add_argument("--collect", action="store_true", help="measure nothing, keep what is done here")
    parser.add_argument("--tables", action="store_true", help="only renew the docs")
    args = parser.parse_args()
    if args.missing and args.collect:
        parser.error("--missing measures, --collect does not: give one")
    # As the command line has it: on a busy machine threads that spin take minutes for what takes seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if args.tables:
        _renew(json.loads(RESULTS.read_text()))
        return 0
    size = QUICK if args.quick else Size()
    size = replace(
        size,
        seeds=size.seeds if args.seeds is None else tuple(range(args.seeds)),
        queries=args.queries or size.queries,
        machines=args.machines or size.machines,
        steps=args.steps or size.steps,
        loads=tuple(args.load or size.loads),
        load=args.load[0] if args.load else size.load,
        service_s=size.service_s if args.service is None else args.service / 1000,
    )
    work = args.work.resolve() / f"{size.machines}-{size.queries}-{size.steps}"
    kept = kept_results(size)
    keep = RESULTS if kept is not None else work / RESULTS.name
    if keep != RESULTS and not args.quick:  # said before hours of work, and not after them
        print(f"{RESULTS} is of another size: what this measures goes to {keep}", file=sys.stderr)
    figures, arms = args.figure or (["9"] if args.quick else list(FIGURES)), args.arm or list(ARMS)
    but = (kept or {}).get("curves", {}) if args.missing else {}
    wanted = [] if args.collect else wanted_of(size, figures, arms, but)
    if args.missing and not wanted:
        print(f"{RESULTS} has all of these points", file=sys.stderr)
        return 0
    run(size, wanted, work)
    done = collected(work)
    if not done:
        raise SystemExit(f"no point is done in {work}: run this without --collect, or name the folder with --work")
    document = document_of(size, done, work, kept or {})
    if not args.quick:
        keep.write_text(json.dumps(document, indent=1) + "\n")
    for text in sections(document).values():
        print(text)
    if not args.quick and keep == RESULTS:
        _renew(document)
    ours = [row for row in done.values() if row["arm"] in ("default", "exact", "sum", "hedge")]
    return 1 if any(row["lost"] for row in ours) else 0


def kept_results(size: Size) -> dict[str, Any] | None:
    """-> the kept document, empty where there is none; None: it is of another size, so its points are others."""
    if not RESULTS.exists():
        return {}
    kept: dict[str, Any] = json.loads(RESULTS.read_text())
    alike = all(kept["size"][name] == getattr(size, name) for name in SIZE)
    return kept if alike else None


def _renew(document: Mapping[str, Any]) -> None:
    for mark, text in sections(document).items():
        renew(DOCS, mark, text)
    if rows := over_loads(document["rows"]):
        plot(rows, PLOTS / PLOT)
    for name, file in CURVES.items():
        if rows := [row for row in document["rows"] if row["figure"] == name]:
            plot_curves(rows, document["curves"], PLOTS / file)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
