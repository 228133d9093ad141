"""The subcommands `demo`, `simulate` and `plan`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity.config import CODES
from ts_parity.errors import ConfigError

if TYPE_CHECKING:
    from ts_parity.lab.compare import World


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
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="default %(default)s")
    parser.add_argument("--code", default="sum", choices=CODES, help="default %(default)s")
    parser.add_argument("--k", type=int, default=2, help="queries per coding group, default %(default)s")
    parser.add_argument("--queries", type=int, default=10_500, help="per arm, default %(default)s")
    parser.add_argument("--rate", type=float, default=200.0, help="queries per second, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--steps", type=int, help="training steps of the parity model")
    parser.add_argument("--example", type=Path, metavar="DIR", help="the digits example, if not in a checkout")
    parser.add_argument("--keep", action="store_true", help="leave the coded service running until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print summary.json on stdout, the rest on stderr")
    parser.set_defaults(run=run_demo_command)


def run_demo_command(args: argparse.Namespace) -> int:
    import logging

    from ts_parity.lab.demo import DemoSettings, run_demo

    # TorchServe's handlers warn about every accelerator they do not find; that is no news here.
    logging.getLogger().setLevel(logging.ERROR)
    talk = sys.stderr if args.json else sys.stdout
    chosen = {key: value for key, value in vars(args).items() if key not in ("run", "json")}
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
    )
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="may be repeated; default: none, hedge, parm, coded, ours"
    )
    _add_world(parser)
    parser.add_argument("--extra", type=int, default=3, help="machines more, for policies that use them")
    parser.add_argument("--load", type=float, default=0.6, help="of what the workers can do, default %(default)s")
    parser.add_argument("--code", default="sum", choices=CODES, help="of parm and coded, default %(default)s")
    parser.add_argument("--k", type=int, default=4, help="queries to a coding group, default %(default)s")
    parser.add_argument("--cost", type=float, default=0.25, help="of a student's answer, in deployed inferences")
    parser.add_argument("--plot", type=Path, help="write a plot of the latency distributions, of the first seed")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run_simulate)


def _add_world(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=12, help="machines that serve, default %(default)s")
    parser.add_argument(
        "--slow", metavar="SHARE:MEAN:FACTOR", help="spells of slowness, such as 0.04:100:5; inf freezes"
    )
    parser.add_argument("--net", metavar="SHARE:MEAN", help="replies that are late on the way, such as 0.02:5")
    parser.add_argument("--gaps-cv", type=float, default=1.0, help="of the gaps between arrivals; 1: Poisson")
    parser.add_argument("--burst", type=float, default=1.0, help="so many times the rate for a tenth of the time")
    parser.add_argument("--trace", type=Path, help="arrival instants, one a line")
    parser.add_argument(
        "--service-log", type=Path, help="draw service times from records (.jsonl) or a .csv of seconds"
    )
    parser.add_argument("--domains", type=int, help="failure domains; default: each machine its own")
    parser.add_argument("--proxies", type=int, default=1, help="proxies that see only their own traffic")
    parser.add_argument("--queries", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default %(default)s")


def _add_plan(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="say what to run for a fleet, its traffic and its accuracy report",
        description="Compare every policy, code and k on your own latencies, rate and training report, within your "
        "limits, and say what to run, what it costs and what it gains, or that nothing is worth it.",
    )
    _add_world(parser)
    parser.add_argument("--rate", type=float, help="queries per second; needs --service-log")
    parser.add_argument("--load", type=float, default=0.6, help="instead of --rate: of what the workers can do")
    parser.add_argument("--admin", metavar="URL", help="a running proxy's admin port: takes --workers from its fleet")
    parser.add_argument("--report", type=Path, metavar="DIR", help="the folder that `ts-parity train` wrote")
    parser.add_argument("--max-work", type=float, metavar="SHARE", help="at most so much extra work, such as 0.3")
    parser.add_argument("--max-loss", type=float, metavar="POINTS", help="at most so many points of overall accuracy")
    parser.add_argument("--p999", type=float, metavar="T", help="p99.9 at most this, in seconds (or service times)")
    parser.add_argument("--extra", type=int, default=0, help="at most so many more machines, default %(default)s")
    parser.add_argument("--html", type=Path, help="write a page")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from tqdm import tqdm

    from ts_parity.lab.plan import Limits, choices, make_plan, plan_page, plan_table, read_candidates

    if args.admin is not None:
        args.workers = _workers_of(args.admin)
    world = _world(args)
    if args.rate is not None:
        if args.service_log is None or args.rate <= 0:
            raise ConfigError("--rate is a positive number of queries per second, and needs --service-log")
        world = replace(world, load=args.rate * world.unit / world.workers)
    candidates = [] if args.report is None else read_candidates(args.report)
    loss = None if args.max_loss is None else args.max_loss / 100
    limits = Limits(args.max_work, loss, args.p999, args.extra)
    seeds = range(args.seeds)
    total = len(choices(world.workers, limits.machines, candidates)) * len(seeds) * world.queries
    with tqdm(total=total, unit="query", unit_scale=True, file=sys.stderr) as bar:
        plan = make_plan(world, candidates, limits, seeds, bar.update)
    if args.html is not None:
        args.html.write_text(plan_page(plan, world), encoding="utf-8")
    print(json.dumps(plan, indent=1) if args.json else f"{plan_table(plan, world)}\n\n{plan['sentence']}")
    return 0


def _workers_of(admin: str) -> int:
    """How many endpoints serve the (only) deployed model behind a running proxy."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{admin.rstrip('/')}/status", timeout=10) as answer:
            pools = json.load(answer)["pools"]
    except (urllib.error.URLError, TimeoutError, ValueError, KeyError) as error:
        raise ConfigError(f"--admin {admin}: no status of a proxy there: {error}") from None
    counts = {name: sum(e["row"] is None for e in pool["endpoints"]) for name, pool in pools.items()}
    if len(counts) != 1:
        raise ConfigError(f"--admin {admin}: it serves {len(counts)} models ({', '.join(counts)}); give --workers")
    return next(iter(counts.values()))


def run_simulate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ts_parity.lab.compare import latencies_of, plot, row_of, table

    world = _world(args)
    names = args.policy or ["none", "hedge", "parm", "coded", "ours"]
    seeds = range(args.seeds)
    rows, shown = [], {}
    with tqdm(total=len(names) * len(seeds) * world.queries, unit="query", unit_scale=True, file=sys.stderr) as bar:
        for name in names:
            bar.set_description(name)
            shape = {"extra": args.extra, "code": args.code, "k": args.k, "domains": args.domains}
            shape["cost"] = args.cost if name in ("ours", "approximate") else 1.0
            rows.append(row_of(world, name, seeds, bar.update, **shape))
            if args.plot is not None:
                shown[name] = latencies_of(world, name, seeds[0], **shape).latencies
    if args.plot is not None:
        plot(shown, args.plot, f"load {world.load:g}, {world.workers} workers")
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return 0


def _world(args: argparse.Namespace) -> World:
    from ts_parity.lab.compare import World, service_from
    from ts_parity.lab.simulate import Service, Spells

    for name in ("workers", "queries", "seeds", "proxies"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.load <= 0:
        raise ConfigError(f"--load must be positive, not {args.load}")
    slow = _numbers(args.slow, 3, "--slow SHARE:MEAN:FACTOR")
    net = _numbers(args.net, 2, "--net SHARE:MEAN") or (0.0, 0.0)
    trace: tuple[float, ...] = ()
    if args.trace is not None:
        try:
            trace = tuple(sorted(float(line) for line in args.trace.read_text().split()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--trace {args.trace}: {error}") from None
    service, unit = (Service(), 1.0) if args.service_log is None else service_from(args.service_log)
    return World(
        load=args.load,
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
    )


def _numbers(text: str | None, count: int, what: str) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not 0 < numbers[0] < 1 or numbers[1] <= 0:
        raise ConfigError(f"{what} has a share between 0 and 1 and positive numbers, not {text!r}")
    return numbers
