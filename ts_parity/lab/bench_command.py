"""The subcommand `bench`: parse, call, print.

The load goes to a service that others may be using, and faults to their processes. So rate and time are bounded, faults
strike only processes that were named, and before the first of them there is time to say no.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ts_parity import output
from ts_parity.arguments import content_type as as_content_type
from ts_parity.arguments import count, existing, number, seconds, source, to_write, url
from ts_parity.errors import FAILED, ConfigError, OutOfReach, TrainingError
from ts_parity.lab.thresholds import threshold

if TYPE_CHECKING:
    from ts_parity.lab.bench import BenchPlan, BenchTarget
    from ts_parity.lab.traffic import LabelledBody

MOST_RATE, MOST_S = 2000, 3600.0
"""In any second, and over all targets, without warm-ups: a typing error must not become a flood, or last a night."""
MOST_TIMEOUT_S = 600.0
"""So long it may wait for its last answer."""
SECOND = 1 - 1e-6
"""A little less, since MOST_RATE at even gaps are not too many, and are rounded."""
LEAST = 0.01
"""Of a rate or a speed that is worth a try."""
MOST_TARGETS = 5
COUNTDOWN_S = 5.0


def add_bench(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure a live fleet of your own: latency with and without protection, and thresholds for CI",
        description="Send an open-loop load to a live service and say what its clients saw. Latency counts from when a "
        "query was due. Several targets get the same load in slices that alternate: the proxy, and the fleet without "
        "it, say. Nothing is broken unless --freeze or --kill names a process.",
        examples=(
            "ts-parity bench --target http://proxy:8000/predictions/resnet --bodies bodies/ --rate 20",
            "ts-parity bench --target proxy=http://10.0.0.5:8000/predictions/resnet --bodies bodies/ --rate 50 "
            "--duration 120s --target plain=http://10.0.0.6/predictions/resnet --html bench.html "
            "--fail-if 'p99>80ms' --fail-if 'lost>0'",
        ),
    )
    fleet = parser.add_argument_group("what is asked")
    fleet.add_argument(
        "--target",
        action="append",
        required=True,
        type=_target,
        metavar="[NAME=]URL",
        help="where queries go, path, query and all; may be repeated; thresholds judge the first",
    )
    fleet.add_argument(
        "--bodies", type=source, required=True, metavar="PATH", help="request bodies, as `train --inputs` takes them"
    )
    fleet.add_argument(
        "--content-type", type=as_content_type, metavar="TYPE", help="of the bodies, if names do not say"
    )
    fleet.add_argument(
        "--header", action="append", default=[], type=_header, metavar="NAME:VALUE", help="goes with each query"
    )
    fleet.add_argument(
        "--timeout",
        type=seconds,
        default=20.0,
        metavar="TIME",
        help="a query without an answer by then is lost; at most 600s",
    )
    load = parser.add_argument_group("the load")
    load.add_argument(
        "--rate",
        type=number(above=0, most=MOST_RATE),
        metavar="RATE",
        help=f"queries per second; default: 10; up to about 1,800 if Poisson, as no second may have over {MOST_RATE:,}",
    )
    load.add_argument(
        "--duration",
        type=seconds,
        metavar="TIME",
        help="default: 60s, or the whole trace; over all targets an hour at most",
    )
    load.add_argument(
        "--gaps-cv",
        type=number(above=0),
        default=1.0,
        metavar="CV",
        help="variation of the gaps between queries; 1: Poisson",
    )
    load.add_argument(
        "--burst",
        type=number(least=1),
        default=1.0,
        metavar="TIMES",
        help="this many times the rate for a tenth of the time",
    )
    load.add_argument("--trace", type=existing(), metavar="FILE", help="send at these instants: seconds, one a line")
    load.add_argument("--replay", type=existing(), metavar="FILE", help="send when the queries of this access log came")
    load.add_argument("--model", metavar="NAME[/VERSION]", help="whose queries, if the access log is of several models")
    load.add_argument(
        "--speed", type=number(above=0), default=1.0, metavar="TIMES", help="play a trace or a log so much faster"
    )
    load.add_argument("--seed", type=count(0), default=0, metavar="N", help="seed of everything that is random")
    faults = parser.add_argument_group("faults, on this machine only")
    faults.add_argument(
        "--freeze", action="append", default=[], type=count(2), metavar="PID", help="stop this process now and then"
    )
    faults.add_argument("--freeze-for", type=seconds, default=0.5, metavar="TIME", help="how long each time")
    faults.add_argument("--freeze-every", type=seconds, default=10.0, metavar="TIME", help="how often, on average")
    faults.add_argument(
        "--kill", action="append", default=[], type=count(2), metavar="PID", help="kill it in the middle of the load"
    )
    faults.add_argument("--yes", action="store_true", help=f"do not wait {COUNTDOWN_S:.0f} s before the first fault")
    shown = parser.add_argument_group("what is written, and the exit code")
    shown.add_argument(
        "--fail-if",
        action="append",
        default=[],
        type=threshold,
        metavar="'WHAT>VALUE'",
        help="end with exit code 4 if the first target has it: p99.9>80ms, errors>0.1%%, lost>0; may be repeated",
    )
    shown.add_argument("--html", type=to_write(), metavar="FILE", help="write a page")
    shown.add_argument("--records", type=to_write("folder"), metavar="DIR", help="write one line a query")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_force(shown)
    parser.set_defaults(run=run_bench_command, undoes=True)


def run_bench_command(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ts_parity.lab.bench import described, for_thresholds, run_bench
    from ts_parity.lab.bench_page import bench_page, bench_table
    from ts_parity.lab.records import write_records

    output.check_free(args.html, args.force, "--html")
    output.check_free(args.records, args.force, "--records")
    plan = plan_of(args)
    for each in args.fail_if:
        each.check_possible(len(plan.load.due_at))
    _announce(args, plan)
    total = len(plan.load.due_at) * len(plan.targets)
    with tqdm(total=total, unit="query", file=sys.stderr) as bar:
        measured, stopped, struck = run_bench(plan, lambda record: bar.update())
    rows = [described(each, plan.load, measured) for each in measured]
    judged = for_thresholds(rows[0], args.fail_if, measured[0])
    failed = [f"the load was ended early: {stopped}"] if stopped else []
    silent = [
        f"no query was answered at {row['name']}: {next(iter(row['reasons']))}"
        for row in rows
        if row["queries"] and not row["answered"]
    ]
    failed += [*silent, *filter(None, (each.broken_by(judged) for each in args.fail_if))]
    document = {"inputs": _inputs(args, plan, struck), "targets": rows, "failed": failed, "made": _made()}
    if args.html is not None:
        with output.written(args.html) as file:
            file.write_text(bench_page(rows, measured, document), encoding="utf-8")
    if args.records is not None:
        args.records.mkdir(parents=True, exist_ok=True)
        for each in measured:
            write_records(args.records / f"{each.target.name}.jsonl", each.records)
    print(json.dumps(document, indent=1) if args.json else bench_table(rows))
    for line in failed:
        print(line, file=sys.stderr)
    return FAILED if stopped or silent else OutOfReach.exit_code if failed else 0


def plan_of(args: argparse.Namespace) -> BenchPlan:
    """Everything checked. Raise ConfigError."""
    from ts_parity.lab.bench import BenchPlan
    from ts_parity.lab.faults import KILL, Fault, FaultPlan, make_schedule
    from ts_parity.lab.traffic import load_at

    if len({target.name for target in args.target}) != len(args.target) or len(args.target) > MOST_TARGETS:
        raise ConfigError(f"up to {MOST_TARGETS} targets, each with a name of its own: --target NAME=URL")
    if args.kill and len(args.target) > 1:
        raise ConfigError("--kill strikes once, so it would strike one target only: give one --target")
    if args.timeout > MOST_TIMEOUT_S:
        raise ConfigError(f"--timeout is at most {MOST_TIMEOUT_S:g} s, not {args.timeout:g}")
    bodies = _bodies(args)
    load = load_at(_instants(args), len(bodies), args.seed)
    faults: list[Fault] = []
    if args.freeze:
        plan = FaultPlan(args.freeze_every, (args.freeze_for, args.freeze_for), kills=0)
        faults += make_schedule(plan, len(args.freeze), len(args.freeze), load.duration_s, args.seed)
    pids = [*args.freeze, *args.kill]
    faults += (Fault(load.duration_s / 2, len(args.freeze) + place, KILL) for place in range(len(args.kill)))
    for pid in pids:
        _command_of(pid)
    return BenchPlan(args.target, bodies, load, args.timeout, dict(args.header), sorted(faults), pids)


def _instants(args: argparse.Namespace) -> list[float]:
    """When queries are due, from 0."""
    import numpy as np

    from ts_parity.lab.history import read_history
    from ts_parity.lab.latencies import read_instants
    from ts_parity.lab.scenario import Arrivals

    given = [flag for flag, value in (("--trace", args.trace), ("--replay", args.replay)) if value is not None]
    targets = len(args.target)
    most_s, each = MOST_S / targets, f" for each of {targets} targets" if targets > 1 else ""
    if len(given) > 1 or (given and (args.rate or args.burst != 1.0 or args.gaps_cv != 1.0)):
        raise ConfigError("--trace, --replay and --rate (with --gaps-cv and --burst) each say when queries are due")
    if args.model is not None and args.replay is None:
        raise ConfigError("--model says whose queries of a --replay are meant: give that too")
    if args.speed != 1.0 and not given:
        raise ConfigError("--speed is for a --trace or a --replay; say --rate")
    if args.duration is not None and args.duration > most_s:
        raise ConfigError(f"--duration is at most {most_s:g} s{each}, not {args.duration:g}")
    if not given:
        rate, lasts_s = args.rate or 10.0, args.duration or 60.0

        def generated(rate: float) -> list[float]:
            arrivals = Arrivals(rate, args.gaps_cv, args.burst, burst_mean=5.0)
            return _until(lasts_s, arrivals.times(np.random.default_rng(args.seed)))

        found = _bounded(generated, rate, f"--rate {rate:g}", "--burst, --gaps-cv or --rate")
        if not found:
            raise ConfigError(f"--rate {rate:g} brings no query in {lasts_s:g} s: raise it, or --duration")
        return found
    every = read_instants(args.trace) if args.trace else [*read_history(args.replay, args.model).arrivals]
    if not every:
        raise ConfigError(f"{args.replay} does not say when its queries came: give an access log of the proxy")
    whole_s = (every[-1] - every[0]) / args.speed
    if args.duration is None and whole_s > most_s:
        raise ConfigError(
            f"{given[0]} lasts {math.ceil(whole_s)} s, and {most_s:g} s fit{each}: play its beginning with --duration "
            f"{most_s:g}s, or raise --speed"
        )

    def played(speed: float) -> list[float]:
        return _until(args.duration or most_s, ((at - every[0]) / speed for at in every))

    return _bounded(played, args.speed, given[0], "--speed")


def _bounded(instants: Callable[[float], list[float]], value: float, flag: str, lower: str) -> list[float]:
    """What a rate or a speed gives. Raise ConfigError, naming a value that fits, where a second has too many."""
    found = instants(value)
    takes_s, begins_at = _densest(found)
    if takes_s >= SECOND:
        return found
    fits = value
    while takes_s < SECOND:
        fits = float(f"{0.95 * fits * takes_s:.1e}")  # a little less, in two digits
        takes_s = _densest(instants(fits))[0] if fits >= LEAST else math.inf
    raise ConfigError(
        f"{flag} comes to more than {MOST_RATE:,} queries, the limit, in the second from {begins_at:.1f} s on; "
        f"lower {lower}" + (f" ({fits:g} fits)" if fits >= LEAST else "")
    )


def _until(ends_at: float, times: Iterable[float]) -> list[float]:
    """Those of the ascending `times`; of far too many, enough to see that they are."""
    return [*islice(takewhile(lambda at: at <= ends_at, times), MOST_RATE * (int(ends_at) + 1) + 1)]


def _densest(instants: Sequence[float]) -> tuple[float, float]:
    """In how short a time more than MOST_RATE are due, and when it begins."""
    ends = islice(instants, MOST_RATE, None)
    return min(((end - begin, begin) for begin, end in zip(instants, ends, strict=False)), default=(math.inf, 0.0))


def _bodies(args: argparse.Namespace) -> list[LabelledBody]:
    from ts_parity.lab.traffic import LabelledBody
    from ts_parity.training.bodies import list_bodies

    try:
        found = list_bodies(args.bodies, content_type=args.content_type)
    except TrainingError as error:
        raise ConfigError(str(error).replace("--inputs", "--bodies")) from None
    return [LabelledBody(body.read(), body.content_type or "application/octet-stream") for body in found]


def _target(text: str) -> BenchTarget:
    from ts_parity.lab.bench import BenchTarget

    name, equals, asked = text.partition("=")
    if not equals or "/" in name:
        name, asked = "", text
    if name and not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f"a target's name is letters, digits, - and _, not {name!r}")
    checked = url(asked)
    return BenchTarget(name or urlsplit(checked).netloc.replace(":", "-"), checked)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not (name + value).isprintable() or " " in name:
        raise argparse.ArgumentTypeError("must be like NAME:VALUE")  # it may hold a key, so it is not quoted
    return name, value.strip()


# ---- faults ----------------------------------------------------------------------------------------------------------


def _command_of(pid: int) -> str:
    """Of a process that may be struck. Raise ConfigError."""
    import psutil

    if pid in (os.getpid(), os.getppid()):
        raise ConfigError(f"process {pid} is this command, or what started it")
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
        os.kill(pid, 0)
    except psutil.NoSuchProcess:
        raise ConfigError(f"there is no process {pid} on this machine") from None
    except (psutil.AccessDenied, PermissionError):
        raise ConfigError(f"process {pid} is somebody else's") from None
    return command


def _announce(args: argparse.Namespace, plan: BenchPlan) -> None:
    """Before a fault there is time to say no. Whatever was frozen goes on again when the load ends, however it does."""
    to = plan.targets[0].url if len(plan.targets) == 1 else f"each of {len(plan.targets)} targets"
    told = f"{len(plan.load.due_at):,} queries to {to}: about {plan.lasts_s:.0f} s in all, with warm-ups"
    print(told, file=sys.stderr, flush=True)
    if not plan.faults:
        return
    for pid in plan.pids:
        verb = "frozen now and then" if pid in args.freeze else "killed"
        print(f"process {pid} will be {verb}: {_command_of(pid)[:100]}", file=sys.stderr)
    if not args.yes:
        print(f"Ctrl-C within {COUNTDOWN_S:.0f} s leaves them alone", file=sys.stderr, flush=True)
        time.sleep(COUNTDOWN_S)


def _inputs(args: argparse.Namespace, plan: BenchPlan, struck: dict[str, int]) -> dict[str, str]:
    """What the figures were made from."""
    load = plan.load
    rate = len(load.due_at) / load.duration_s if load.duration_s else 0.0
    arrivals = (
        f"as in {args.trace or args.replay}" + (f", {args.speed:g} times as fast" if args.speed != 1.0 else "")
        if args.trace or args.replay
        else f"open loop, gaps of cv {args.gaps_cv:g}" + (f", bursts of {args.burst:g}" if args.burst > 1 else "")
    )
    told = {
        "targets": ", ".join(f"{target.name}: {target.url}" for target in plan.targets),
        "load": f"{len(load.due_at):,} queries in {load.duration_s:.1f} s, {rate:.1f}/s; {arrivals}; seed {args.seed}",
        "bodies": f"{len(plan.bodies):,} of {args.bodies}",
        "lost": f"no answer within {args.timeout:g} s",
    }
    if plan.faults:
        told["faults"] = ", ".join(f"{times} times {kind}" for kind, times in struck.items() if times) or "none struck"
    if args.fail_if:
        told["fails if"] = ", ".join(each.text for each in args.fail_if)
    return told


def _made() -> str:
    from ts_parity import __version__

    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f" by ts_parity {__version__}"
