"""The subcommands `demo`, `simulate` and `plan`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import address, count, existing, number, to_write
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, OutOfReach, Unreachable

if TYPE_CHECKING:
    from ts_parity.lab.compare import World

SET_ASIDE = ("parm", "coded", "approximate")
"""Policies whose protections stand on machines of their own."""
MOST_MACHINES, MOST_QUERIES, MOST_SEEDS = 10_000, 100_000_000, 1000
"""More than that would fill a machine's memory, or its days."""
PLOTS = (".png", ".svg", ".pdf", ".jpg")
MOST_WORK = 1.0
"""Extra work, as a share, above which a percentage was surely meant: a copy of everything is 1."""
MOST_TAIL = 1000.0
"""A p99.9 of more mean service times than that was surely meant in milliseconds."""


def add_parsers(subparsers: Any) -> None:
    _add_demo(subparsers)
    _add_simulate(subparsers)
    _add_plan(subparsers)


def _add_demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="see the whole thing work on real TorchServe while workers are frozen and killed",
        description="Train, package, serve and break a fleet of six TorchServe instances; compare round robin, the "
        "proxy without coding, and the coded proxy under the same load and the same faults.",
        examples=("ts-parity demo", "ts-parity demo --code exact --queries 2000 --keep"),
    )
    load = parser.add_argument_group("load and code")
    load.add_argument("--code", default="sum", choices=CODES, help="how groups are protected")
    load.add_argument("--k", type=count(), default=2, metavar="N", help="queries per coding group")
    load.add_argument("--queries", type=count(), default=10_500, metavar="N", help="per arm")
    load.add_argument("--rate", type=number(above=0), default=200.0, metavar="RATE", help="queries per second")
    load.add_argument("--seed", type=count(0), default=0, metavar="N", help="of all dice")
    load.add_argument(
        "--steps", type=count(), metavar="N", help="training steps of the parity model; default: as train has"
    )
    shown = parser.add_argument_group("files, and what is printed")
    shown.add_argument(
        "--out", type=to_write("folder"), default=Path("demo-out"), metavar="DIR", help="models, logs and results"
    )
    shown.add_argument(
        "--example", type=existing("folder"), metavar="DIR", help="the digits example, if not in a checkout"
    )
    output.add_force(shown)
    shown.add_argument("--keep", action="store_true", help="leave the coded service running until Ctrl-C")
    shown.add_argument("--json", action="store_true", help="print summary.json on stdout, the rest on stderr")
    parser.set_defaults(run=run_demo_command)


def run_demo_command(args: argparse.Namespace) -> int:
    import logging

    from ts_parity.lab.demo import DemoSettings, run_demo

    output.check_free(args.out, args.force)
    # TorchServe's handlers warn about every accelerator they do not find; that is no news here.
    logging.getLogger().setLevel(logging.ERROR)
    talk = sys.stderr if args.json else sys.stdout
    chosen = {key: value for key, value in vars(args).items() if key not in ("run", "json", "force")}
    summary = run_demo(DemoSettings(**chosen), lambda text: print(text, file=talk, flush=True))
    if args.json:
        print(json.dumps(summary, indent=2))
    coded = summary["arms"]["coded"]
    return 1 if coded["lost"] else 0


def _add_simulate(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="see what policies would do for a fleet, in virtual time",
        description="Drive the proxy's own engine through a simulated fleet and compare policies. Times are in mean "
        "service times of the deployed model; latencies are told in seconds with --service-log.",
        examples=(
            "ts-parity simulate --workers 12 --load 0.6",
            "ts-parity simulate --policy none --policy coded --k 2 --slow 0.04:100:5 --plot tail.png",
        ),
    )
    fleet = parser.add_argument_group("fleet and policies")
    fleet.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="may be repeated; default: none, hedge, parm, coded, ours",
    )
    fleet.add_argument("--workers", type=count(most=MOST_MACHINES), default=12, metavar="N", help="machines that serve")
    fleet.add_argument(
        "--extra",
        type=count(0, MOST_MACHINES),
        metavar="N",
        help="machines more, for every policy that can use them; default: none, save what parm and coded cannot do "
        "without, a machine for each k workers",
    )
    fleet.add_argument("--load", type=number(above=0), default=0.6, metavar="SHARE", help="of what the workers can do")
    fleet.add_argument("--code", default="sum", choices=CODES, help="of parm and coded")
    fleet.add_argument("--k", type=count(), default=4, metavar="N", help="queries to a coding group")
    fleet.add_argument(
        "--cost",
        type=number(above=0),
        default=0.25,
        metavar="COST",
        help="of a student's answer, in deployed inferences",
    )
    _add_world(parser)
    _add_shown(parser).add_argument(
        "--plot", type=_picture, metavar="FILE.png", help="write a plot of the latency distributions, of the first seed"
    )
    parser.set_defaults(run=run_simulate)


def _log(text: str) -> Path:
    """A file, or - for standard input."""
    return Path(text) if text == "-" else existing()(text)


def _picture(text: str) -> Path:
    file = to_write()(text)
    if file.suffix.lower() not in PLOTS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PLOTS)}, not {text!r}")
    return file


def _add_world(parser: argparse.ArgumentParser) -> None:
    world = parser.add_argument_group("what happens to it")
    world.add_argument(
        "--service-log",
        type=_log,
        metavar="FILE",
        help="draw service times from an access log or records (JSON lines), or a table of seconds; gzip or not, -: "
        "standard input",
    )
    world.add_argument("--model", metavar="NAME[/VERSION]", help="whose service times, if the log is of several models")
    world.add_argument(
        "--trace", type=_log, metavar="FILE", help="arrival instants, one a line; in seconds with --service-log"
    )
    world.add_argument(
        "--slow",
        metavar="SHARE:MEAN:FACTOR",
        help="spells of slowness, MEAN service times long, such as 0.04:100:5; inf freezes",
    )
    world.add_argument(
        "--net", metavar="SHARE:MEAN", help="replies that are late on the way by MEAN service times, such as 0.02:5"
    )
    world.add_argument(
        "--gaps-cv", type=number(above=0), default=1.0, metavar="CV", help="of the gaps between arrivals; 1: Poisson"
    )
    world.add_argument(
        "--burst",
        type=number(least=1),
        default=1.0,
        metavar="TIMES",
        help="this many times the rate for a tenth of the time",
    )
    world.add_argument(
        "--domains", type=count(most=MOST_MACHINES), metavar="N", help="failure domains; default: each machine its own"
    )
    world.add_argument(
        "--proxies",
        type=count(most=MOST_MACHINES),
        default=1,
        metavar="N",
        help="proxies that see only their own traffic",
    )
    world.add_argument(
        "--queries", type=count(most=MOST_QUERIES), default=100_000, metavar="N", help="of each policy and seed"
    )
    world.add_argument(
        "--seeds", type=count(most=MOST_SEEDS), default=3, metavar="N", help="how many times, each with other dice"
    )


def _add_shown(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    shown = parser.add_argument_group("what is printed")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_force(shown)
    return shown


def _add_plan(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="say what to run for a fleet, its traffic and its accuracy report",
        description="Compare every policy, code and k on your own latencies, rate and training report, within your "
        "limits, and say what to run, what it costs and what it gains, or that nothing is worth it.",
        examples=(
            "ts-parity plan --service-log requests.jsonl --rate 120 --workers 12 --report protected/",
            "ts-parity plan --service-log requests.jsonl --rate 120 --workers 12 --p999 200ms --max-work 30%",
        ),
    )
    fleet = parser.add_argument_group("your fleet and its traffic")
    fleet.add_argument("--workers", type=count(most=MOST_MACHINES), metavar="N", help="machines that serve; or --admin")
    fleet.add_argument(
        "--admin", type=address, metavar="URL", help="a running proxy's admin port: takes --workers from its fleet"
    )
    fleet.add_argument(
        "--rate",
        type=number(above=0),
        metavar="RATE",
        help="queries per second; or --load; default: as they came in the access log",
    )
    fleet.add_argument("--load", type=number(above=0), metavar="SHARE", help="of what the workers can do")
    fleet.add_argument(
        "--report", type=existing("folder"), metavar="DIR", help="the folder that `ts-parity train` wrote"
    )
    limits = parser.add_argument_group("your limits")
    limits.add_argument(
        "--max-work",
        type=_share_of_work,
        metavar="SHARE",
        help="at most so much extra work, such as 0.3 or 30%%, of what the deployed model does alone",
    )
    limits.add_argument(
        "--max-loss", type=number(least=0, most=100), metavar="POINTS", help="at most so many points of accuracy"
    )
    limits.add_argument("--p999", type=_duration, metavar="T", help="p99.9 at most this, such as 200ms, or seconds")
    limits.add_argument(
        "--extra", type=count(0, MOST_MACHINES), default=0, metavar="N", help="at most this many more machines"
    )
    _add_world(parser)
    _add_shown(parser).add_argument("--html", type=to_write(), metavar="FILE", help="write a page")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from tqdm import tqdm

    from ts_parity.lab.compare import overloaded
    from ts_parity.lab.page import plan_page, plan_text
    from ts_parity.lab.plan import Limits, candidates_of, choices, left_out, make_plan, read_report

    _needs_what_is_true(args)
    output.check_free(args.html, args.force, "--html")
    report = {"candidates": []} if args.report is None else read_report(args.report)
    candidates = candidates_of(report)
    if args.admin is not None:
        args.workers = _workers_of(args.admin)
    world = _world(args)
    if args.rate is None and args.load is None and not world.trace:
        raise ConfigError(f"{args.service_log} does not say when queries came; give {_HOW_MUCH}")
    if args.rate is not None:
        world = replace(world, load=args.rate * world.unit / (world.workers * world.places))
    if world.busy >= 1:
        raise OutOfReach(overloaded(world))
    if args.p999 is not None and args.p999 > MOST_TAIL * world.unit:
        raise ConfigError(
            f"--p999 is {args.p999:g} seconds, where an inference takes {1000 * world.unit:.3g} ms; "
            f"if {args.p999:g} ms are meant, write {args.p999:g}ms"
        )
    loss = None if args.max_loss is None else args.max_loss / 100
    limits = Limits(args.max_work, loss, args.p999, args.extra)
    seeds = range(args.seeds)
    total = len(choices(world.workers, limits.machines, candidates)) * len(seeds) * world.asked
    with tqdm(total=total, unit="query", unit_scale=True, file=sys.stderr) as bar:
        plan = make_plan(world, candidates, limits, seeds, bar.update, args.domains)
    plan |= {"inputs": _inputs(args, world, report), "left_out": left_out(report)}
    if args.html is not None:
        with output.written(args.html) as page:
            page.write_text(plan_page(plan, world), encoding="utf-8")
    print(json.dumps(plan, indent=1) if args.json else plan_text(plan, world))
    return 0 if plan["reached"] else OutOfReach.exit_code


def _inputs(args: argparse.Namespace, world: World, report: dict[str, Any]) -> dict[str, str]:
    """What a plan was made from, so that somebody else can make it again, or see why theirs differs."""
    import time

    from ts_parity import __version__
    from ts_parity.lab.lines import shown

    queries, rate = world.asked, world.rate / world.unit
    samples = sorted(world.service.samples)
    ranks = {name: samples[int(share * (len(samples) - 1))] for name, share in (("median", 0.5), ("p99", 0.99))}
    told = ", ".join(f"{name} {1000 * value * world.unit:.1f} ms" for name, value in ranks.items())
    told = f"{len(samples):,} service times; mean {1000 * world.unit:.1f} ms, {told}, longest " + (
        f"{1000 * samples[-1] * world.unit:.1f} ms"
    )
    made = {
        "latency log": f"{shown(args.service_log)}: {told}",
        "machines": str(world.workers) + (f", as {args.admin} says" if args.admin else ""),
        "asked of them": f"{rate:.4g} queries/s, a load of {world.load:.2f}"
        + (f"; as in {shown(args.trace or args.service_log)}" if world.trace else "; Poisson arrivals"),
        "spells": "unknown: the log does not say who answered, and when; service times are drawn one by one"
        if world.seen is None
        else world.seen.told_in_words(),
        "limits": _limits_told(args),
        "simulated": f"{queries:,} queries, {queries / rate:,.0f} s of traffic, with each of the seeds "
        f"{', '.join(map(str, range(args.seeds)))}",
    }
    if args.report is not None:
        made["training report"] = f"{args.report}: {_report_told(report)}"
    made["made"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f" by ts_parity {__version__}"
    return made


def _limits_told(args: argparse.Namespace) -> str:
    told = [f"{args.extra} machines more"] if args.extra else ["no machines more"]
    told += [] if args.max_work is None else [f"{args.max_work:.0%} more work"]
    told += [] if args.max_loss is None else [f"{args.max_loss:g} points lost"]
    told += [] if args.p999 is None else [f"a p99.9 of {1000 * args.p999:g} ms"]
    return "at most " + ", ".join(told)


def _report_told(report: dict[str, Any]) -> str:
    deployed = report.get("deployed")
    deployed = deployed if isinstance(deployed, dict) else {}
    told = [f"of {deployed['model']} {deployed.get('version', '')}".rstrip()] if "model" in deployed else []
    told += [f"by ts_parity {report['package']}"] if "package" in report else []
    told += [f"on {report['machine']}, {report.get('device', 'cpu')}"] if "machine" in report else []
    return ", ".join([*told, f"{len(report['candidates'])} protections"])


_HOW_MUCH = "--rate QUERIES_PER_SECOND or --load SHARE (or --trace FILE): how much is asked of them"


def _needs_what_is_true(args: argparse.Namespace) -> None:
    """A plan made of defaults would be a plan for somebody else's fleet."""
    missing = [
        what
        for what, given in (
            ("--service-log FILE: how long your model takes", args.service_log is not None),
            ("--workers N or --admin URL: how many machines serve it", args.workers or args.admin),
            (_HOW_MUCH, args.rate or args.load or args.trace or args.service_log is not None),
        )
        if not given
    ]
    if missing:
        raise ConfigError("a plan is for your own fleet; give " + "; ".join(missing))
    if args.rate and args.load:
        raise ConfigError("--rate and --load say the same in two ways: give one of them")
    if args.trace and (args.rate or args.load):
        raise ConfigError("--trace says when queries come: leave --rate and --load out")
    if args.workers and args.admin:
        raise ConfigError("--workers and --admin say the same in two ways: give one of them")


def _share_of_work(text: str) -> float:
    """A share, or a percentage with its sign."""
    percent = text.endswith("%")
    share = number(least=0)(text.removesuffix("%")) / (100 if percent else 1)
    if not percent and share > MOST_WORK:
        raise argparse.ArgumentTypeError(
            f"{text} is {share:g} times the work of the deployed model; "
            f"if {share:g} % is meant, write {share / 100:g}, else {share:.0%}"
        )
    return share


def _duration(text: str) -> float:
    """Seconds; or with their unit, s or ms."""
    unit = next((unit for unit in ("ms", "s") if text.endswith(unit)), "")
    try:
        return number(above=0)(text.removesuffix(unit)) / (1000 if unit == "ms" else 1)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (seconds, or as in 200ms), not {text!r}") from None


def _workers_of(admin: str) -> int:
    """How many endpoints serve the (only) deployed model behind a running proxy."""
    from ts_parity.admin_client import ask

    try:
        pools = ask(f"{admin}/status")["pools"]
        counts = {name: sum(e["row"] is None for e in pool["endpoints"]) for name, pool in pools.items()}
    except (Unreachable, KeyError, TypeError, AttributeError) as error:
        raise Unreachable(f"--admin {admin}: no status of a proxy there: {error}") from None
    if len(counts) != 1:
        raise ConfigError(f"--admin {admin}: it serves {len(counts)} models ({', '.join(counts)}); give --workers")
    [workers] = counts.values()
    if not workers:
        raise ConfigError(f"--admin {admin}: no endpoint serves {next(iter(counts))} just now; give --workers")
    return workers


def run_simulate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ts_parity.lab.compare import doubts, latencies_of, overloaded, plot, row_of, table
    from ts_parity.lab.rivals import arrange

    output.check_free(args.plot, args.force, "--plot")
    world = _world(args)
    names = args.policy or ["none", "hedge", "parm", "coded", "ours"]
    shapes = {name: _shape(name, args) for name in names}
    for name, shape in shapes.items():
        arrange(name, world.workers, **shape)  # what cannot be had is said before anything has run
    seeds = range(args.seeds)
    rows, shown = [], {}
    with tqdm(total=len(names) * len(seeds) * world.asked, unit="query", unit_scale=True, file=sys.stderr) as bar:
        for name in names:
            bar.set_description(name)
            rows.append(row_of(world, name, seeds, bar.update, **shapes[name]))
            if args.plot is not None:
                shown[name] = latencies_of(world, name, seeds[0], **shapes[name]).latencies
    if args.plot is not None:
        with output.written(args.plot) as file:
            plot(shown, file, f"load {world.load:g}, {world.workers} workers")
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    for note in (overloaded(world) if world.busy >= 1 else "", doubts(rows)):
        if note:
            print(note, file=sys.stderr)
    return 0


def _shape(policy: str, args: argparse.Namespace) -> dict[str, Any]:
    cost = args.cost if policy in ("ours", "approximate") else 1.0
    return {"extra": _extra(policy, args), "code": args.code, "k": args.k, "domains": args.domains, "cost": cost}


def _extra(policy: str, args: argparse.Namespace) -> int:
    """All have the same machines unless told, but for those that cannot do without machines set aside."""
    if args.extra is not None:
        return int(args.extra)
    return math.ceil(args.workers / args.k) if policy in SET_ASIDE else 0


def _world(args: argparse.Namespace) -> World:
    from ts_parity.lab.compare import World, service_from
    from ts_parity.lab.latencies import rate_of, read_instants
    from ts_parity.lab.simulate import Service, Spells

    share, positive = number(above=0, below=1), number(above=0)
    slow = _spell(args.slow, "--slow SHARE:MEAN:FACTOR", (share, number(least=0.01), _factor))
    net = _spell(args.net, "--net SHARE:MEAN", (share, positive)) or (0.0, 0.0)
    service, unit, seen = Service(), 1.0, None
    if args.service_log is not None:
        service, unit, seen = service_from(args.service_log, args.model, _note)
    elif args.model is not None:
        raise ConfigError("--model says whose service times of a --service-log are meant: give that too")
    trace = () if args.trace is None else _from_zero(read_instants(args.trace), unit)
    if seen is not None and not trace and args.load is None and args.rate is None and len(seen.arrivals) > 1:
        trace = _from_zero(seen.arrivals, unit)
    places = 1 if seen is None else seen.places
    rate = rate_of(trace, "--trace" if args.trace is not None else str(args.service_log)) if trace else 0.0
    return World(
        load=rate / (args.workers * places) if trace else args.load,
        workers=args.workers,
        queries=args.queries,
        service=service,
        spells=Spells(slow[0], slow[1], slow[2]) if slow else None,
        net_share=net[0],
        net_mean=net[1],
        arrival_cv=args.gaps_cv,
        burst=args.burst,
        trace=trace,
        proxies=args.proxies,
        unit=unit,
        places=places,
        seen=seen,
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _from_zero(instants: Sequence[float], unit: float) -> tuple[float, ...]:
    return tuple((instant - instants[0]) / unit for instant in instants)


def _spell(text: str | None, what: str, limits: Sequence[Callable[[str], float]]) -> tuple[float, ...]:
    """`text`: numbers between colons, one for each of `limits`."""
    if text is None:
        return ()
    parts = text.split(":")
    try:
        if len(parts) != len(limits):
            raise argparse.ArgumentTypeError(f"must have {len(limits)} numbers between colons, not {text!r}")
        return tuple(limit(part) for limit, part in zip(limits, parts, strict=True))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{what} {error}") from None


def _factor(text: str) -> float:
    """How many times slower; inf freezes."""
    return math.inf if text in ("inf", "infinity") else number(least=1)(text)
