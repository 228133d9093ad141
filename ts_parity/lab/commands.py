"""The subcommand `demo`: parses, calls, prints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ts_parity.config import CODES


def add_parsers(subparsers: Any) -> None:
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
