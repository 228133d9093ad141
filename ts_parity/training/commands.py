"""The subcommand `train`: parses, calls, prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ts_parity.training import TrainSettings


def add_parsers(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="make protections for a model from its archive and a folder of request bodies",
        description="Distil parity models on the deployed model's raw outputs, taken through the archive's own "
        "handler, and write archives ready to register and a report of what a rebuilt answer is worth.",
    )
    parser.add_argument("--archive", type=Path, required=True, help="the deployed model's .mar")
    parser.add_argument("--inputs", type=Path, required=True, help="a folder of files, each one request body")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for archives and report.json")
    parser.add_argument("--code", default="sum", choices=["sum", "exact"], help="default %(default)s")
    parser.add_argument("--k", type=int, default=2, help="queries per coding group, default %(default)s")
    parser.add_argument("--r", type=int, default=1, help="protections per coding group, default %(default)s")
    parser.add_argument("--labels", type=Path, help="CSV with the header file,label; used only to score")
    parser.add_argument("--score", type=Path, help="a folder of bodies no model has seen, to score on")
    parser.add_argument("--steps", type=int, help="training steps per parity model")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    parser.add_argument("--name", help="model name of the protection, default <model>-parity")
    parser.add_argument("--secret", help="the fleet's shared secret, written into the archives")
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    from ts_parity.training import train

    chosen = {key: value for key, value in vars(args).items() if key not in ("run", "json")}
    report = train(TrainSettings(**chosen))
    print(json.dumps(report, indent=2) if args.json else report_text(report, args.out))
    return 0


def report_text(report: dict[str, Any], out: Path) -> str:
    lines = [f"code {report['code']}, k={report['k']}, r={report['r']}: {report['seconds']} s"]
    if "scored_on" in report:
        lines.append(f"scored on {report['scored_on']}, {report['scored_groups']} groups, every slot erased once")
    lines.append(f"  agreement with the deployed model  {report['agreement']:.2%}")
    if "A_a" in report:
        lines.append(f"  A_a, of deployed answers           {report['A_a']:.2%}")
        lines.append(f"  A_d, of rebuilt answers            {report['A_d']:.2%}")
        shares = ", ".join(f"{value:.2%} at f={float(f):.0%}" for f, value in report["A_o"].items())
        lines.append(f"  A_o, overall                       {shares}")
    for members, scores in report.get("members", {}).items():
        lines.append(f"  with {members} of {report['k']} members: agreement {scores['agreement']:.2%}")
    if "two_erased" in report:
        lines.append(f"  with two slots erased: agreement {report['two_erased']['agreement']:.2%}")
    archives = report["archives"]
    lines.append(f"deployed archive  {out / archives['deployed']}")
    lines += [f"parity archive    {out / name}" for name in archives["parity"]]
    return "\n".join(lines)
