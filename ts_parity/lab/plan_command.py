"""The subcommand `plan`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import address, count, existing, number, seconds, to_write
from ts_parity.errors import ConfigError, OutOfReach, Unreachable
from ts_parity.lab.world_flags import MOST_MACHINES, add_output, add_world, world_of

if TYPE_CHECKING:
    from ts_parity.lab.compare import World

MOST_WORK = 1.0
"""A larger share of extra work was surely meant as a percentage: a copy of everything is 1."""
MOST_TAIL = 1000.0
"""A p99.9 of more mean service times was surely meant in milliseconds."""


def add_plan(subparsers: Any) -> None:
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
        help="queries per second; or --load; default: as in the access log",
    )
    fleet.add_argument("--load", type=number(above=0), metavar="SHARE", help="share of the workers' capacity")
    fleet.add_argument(
        "--report", type=existing("folder"), metavar="DIR", help="the folder that `ts-parity train` wrote"
    )
    limits = parser.add_argument_group("your limits")
    limits.add_argument(
        "--max-work",
        type=_share_of_work,
        metavar="SHARE",
        help="most extra work, as a share of the deployed model's own, such as 0.3 or 30%%",
    )
    limits.add_argument(
        "--max-loss",
        type=number(least=0, most=100),
        metavar="POINTS",
        help="most points of accuracy that answers may lose",
    )
    limits.add_argument("--p999", type=seconds, metavar="T", help="highest p99.9, such as 200ms, or in seconds")
    limits.add_argument("--extra", type=count(0, MOST_MACHINES), default=0, metavar="N", help="most extra machines")
    add_world(parser)
    add_output(parser).add_argument("--html", type=to_write(), metavar="FILE", help="write a page")
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
    world = world_of(args)
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
    """What a plan was made from, so that others can repeat it, or see why theirs differs."""
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
        "traffic": f"{rate:.4g} queries/s, a load of {world.load:.2f}"
        + (f"; as in {shown(args.trace or args.service_log)}" if world.trace else "; Poisson arrivals"),
        "spells": "unknown: the log does not say who answered, and when; service times are drawn one by one"
        if world.seen is None
        else world.seen.in_words(),
        "limits": _limits_told(args),
        "simulated": f"{queries:,} queries, {queries / rate:,.0f} s of traffic, with each of the seeds "
        f"{', '.join(map(str, range(args.seeds)))}",
    }
    if args.report is not None:
        made["training report"] = f"{args.report}: {_report_told(report)}"
    made["made"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f" by ts_parity {__version__}"
    return made


def _limits_told(args: argparse.Namespace) -> str:
    told = [f"{args.extra} extra machines"] if args.extra else ["no extra machines"]
    told += [] if args.max_work is None else [f"{args.max_work:.0%} more work"]
    told += [] if args.max_loss is None else [f"{args.max_loss:g} points lost"]
    told += [] if args.p999 is None else [f"a p99.9 of {1000 * args.p999:g} ms"]
    return "at most " + ", ".join(told)


def _report_told(report: dict[str, Any]) -> str:
    deployed = report.get("deployed")
    deployed = deployed if isinstance(deployed, dict) else {}
    told = [f"of {deployed['model']} {deployed.get('version', '')}".rstrip()] if "model" in deployed else []
    told += [f"by ts_parity {report['package']}"] if "package" in report else []
    if "machine" in report:  # older reports measured costs where they learned
        told += [f"on {report['machine']}, {report.get('serve_on', report.get('device', 'cpu'))}"]
    return ", ".join([*told, f"{len(report['candidates'])} protections"])


_HOW_MUCH = "--rate QUERIES_PER_SECOND or --load SHARE (or --trace FILE): how much traffic they get"


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
