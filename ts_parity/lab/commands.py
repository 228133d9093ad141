"""The subcommands `demo` and `simulate`: parse, call, print. `plan` and `bench` have modules of their own."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ts_parity import output
from ts_parity.arguments import count, existing, number, to_write
from ts_parity.config import CODES
from ts_parity.lab.bench_command import add_bench
from ts_parity.lab.plan_command import add_plan
from ts_parity.lab.world_flags import MOST_MACHINES, add_output, add_variety, add_world, world_of

SET_ASIDE = ("parm", "coded", "approximate")
"""Policies whose protections stand on machines of their own."""
PLOTS = (".png", ".svg", ".pdf", ".jpg")


def add_parsers(subparsers: Any) -> None:
    _add_demo(subparsers)
    _add_simulate(subparsers)
    add_plan(subparsers)
    add_bench(subparsers)


def _add_demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="see the whole thing work on real TorchServe while workers are frozen and killed",
        description="Train, package, serve and break a fleet of six TorchServe instances, whose inference is emulated "
        "(a wait of 50 ms); compare round robin, the proxy's queue, second copies only, the paper's coded proxy, and "
        "the proxy as it is with `exact` and with a student, under the same load and the same faults.",
        examples=("ts-parity demo", "ts-parity demo --code exact --queries 2000 --keep"),
    )
    load = parser.add_argument_group("load and code")
    load.add_argument("--code", default="sum", choices=CODES, help="code of the arm with machines of its own")
    load.add_argument("--k", type=count(), default=2, metavar="N", help="queries per coding group")
    load.add_argument("--queries", type=count(), default=1000, metavar="N", help="queries per arm")
    load.add_argument("--rate", type=number(above=0), default=50.0, metavar="RATE", help="queries per second")
    load.add_argument("--seed", type=count(0), default=0, metavar="N", help="seed of everything that is random")
    load.add_argument("--steps", type=count(), default=800, metavar="N", help="training steps of each protection")
    shown = parser.add_argument_group("files, and what is printed")
    shown.add_argument(
        "--out", type=to_write("folder"), default=Path("demo-out"), metavar="DIR", help="models, logs and results"
    )
    shown.add_argument(
        "--example", type=existing("folder"), metavar="DIR", help="the digits example, if not in a checkout"
    )
    output.add_force(shown)
    shown.add_argument("--keep", action="store_true", help="leave the service running until Ctrl-C")
    shown.add_argument("--json", action="store_true", help="print summary.json on stdout, the rest on stderr")
    parser.set_defaults(run=run_demo_command, undoes=True)


def run_demo_command(args: argparse.Namespace) -> int:
    import logging

    from ts_parity.lab.demo import DemoSettings, run_demo

    output.check_free(args.out, args.force)
    # TorchServe's handlers warn about every accelerator they do not find, which tells the reader of the demo nothing.
    logging.getLogger().setLevel(logging.ERROR)
    talk = sys.stderr if args.json else sys.stdout
    chosen = {key: value for key, value in vars(args).items() if key not in ("run", "json", "force", "undoes")}
    summary = run_demo(DemoSettings(**chosen), lambda text: print(text, file=talk, flush=True))
    if args.json:
        print(json.dumps(summary, indent=2))
    return 1 if any(summary["arms"][name]["lost"] for name in ("exact", "default")) else 0


def _add_simulate(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="see what policies would do for a fleet, in virtual time",
        description="Drive the proxy's own engine through a simulated fleet and compare policies. Times are in mean "
        "service times of the deployed model; with --service-log, latencies are in seconds.",
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
        help="may be repeated; unless given: none, hedge, parm, coded, default",
    )
    fleet.add_argument("--workers", type=count(most=MOST_MACHINES), default=12, metavar="N", help="machines that serve")
    fleet.add_argument(
        "--extra",
        type=count(0, MOST_MACHINES),
        metavar="N",
        help="extra machines, for every policy that can use them; default: none, but for parm, coded and approximate "
        "one for each k workers",
    )
    fleet.add_argument(
        "--load", type=number(above=0), default=0.6, metavar="SHARE", help="share of the workers' capacity"
    )
    fleet.add_argument("--code", default="sum", choices=CODES, help="code of parm and coded")
    fleet.add_argument("--k", type=count(), default=4, metavar="N", help="queries per coding group")
    fleet.add_argument(
        "--cost",
        type=number(above=0),
        default=0.25,
        metavar="COST",
        help="cost of a student's answer, in deployed inferences",
    )
    add_variety(add_world(parser))
    add_output(parser).add_argument(
        "--plot", type=_picture, metavar="FILE.png", help="write a plot of the latency distributions, of the first seed"
    )
    parser.set_defaults(run=run_simulate)


def _picture(text: str) -> Path:
    file = to_write()(text)
    if file.suffix.lower() not in PLOTS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PLOTS)}, not {text!r}")
    return file


def run_simulate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ts_parity.lab.compare import doubts, latencies_of, overloaded, plot, row_of, table
    from ts_parity.lab.rivals import arrange

    output.check_free(args.plot, args.force, "--plot")
    world = world_of(args)
    names = args.policy or ["none", "hedge", "parm", "coded", "default"]
    shapes = {name: _shape(name, args) for name in names}
    for name, shape in shapes.items():
        arrange(name, world.workers, **shape)  # refuse what is impossible before anything runs
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
    cost = args.cost if policy in ("default", "approximate") else 1.0
    return {"extra": _extra(policy, args), "code": args.code, "k": args.k, "domains": args.domains, "cost": cost}


def _extra(policy: str, args: argparse.Namespace) -> int:
    """Policies whose protections need machines of their own get these; all others have the same machines."""
    if args.extra is not None:
        return int(args.extra)
    return math.ceil(args.workers / args.k) if policy in SET_ASIDE else 0
