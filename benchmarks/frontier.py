"""What a budget of differing answers buys: the frontier of docs/policy.md.

    python benchmarks/frontier.py [--queries N] [--seeds N]    a quarter of an hour on one core
    python benchmarks/frontier.py --tables                     renew the table and the figure of docs/policy.md

The scenarios `ep`, `net` and `cv05` of benchmarks/policies.py at load 0.6, 12 machines, a student of cost 0.25 whose
confidence is that measured on Fashion-MNIST. `gated`: the budget as it is, an answer in doubt waits. `ungated`: every
answer is given as soon as its query is late, until the budget is spent. With a budget of 0: second copies alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from policies import POLICY, SCENARIOS
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World, row_of
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "frontier.json"
DOCS = POLICY
FIGURE = DOCS.parent / "frontier.png"
LOAD = 0.6
WORLDS = ("ep", "net", "cv05")
BUDGETS = (0.0, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 1.0)


def run(world: str, budget: float, gated: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One row, its R against `none` with nothing slow."""
    scenario = World(load=LOAD, queries=args.queries, **SCENARIOS[world])
    shape: dict[str, Any] = {"extra": 0, "k": 4, "cost": 0.25, "differing": budget, "doubt_waits": gated}
    name, made = ("default", shape) if budget else ("copies", {"extra": 0})
    row = row_of(scenario, name, range(args.seeds), **made)
    quiet = row_of(scenario.with_nothing_slow(), "none", range(args.seeds), extra=0)
    kept = ("p99", "p999", "work", "reconstructed", "differing", "differing_drawn")
    return {
        "scenario": world,
        "budget": budget,
        "gated": gated,
        "r": round(row["p999"] / quiet["p999"], 3),
        **{key: row.get(key) for key in kept},
    }


def table(rows: list[dict[str, Any]]) -> str:
    body = []
    for budget in BUDGETS:
        cells = ["no limit" if budget >= 1.0 else f"{budget:.3%}"]
        for world in WORLDS:
            for gated in (True, False):
                row = _of(rows, world, budget, gated)
                cells.append("" if row is None else f"{row['p999']:.2f}, {row['differing'] or 0.0:.3%}")
        body.append(cells)
    heading = ["budget", *(f"`{world}` {kind}" for world in WORLDS for kind in ("gated", "ungated"))]
    return markdown(heading, body)


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    size = f"{document['queries']:,} queries x {document['seeds']} seeds"
    return {"frontier": f"`{document['command']}`, {size} a row.\n\n{table(document['rows'])}"}


def _of(rows: list[dict[str, Any]], world: str, budget: float, gated: bool) -> dict[str, Any] | None:
    found = [r for r in rows if (r["scenario"], r["budget"], r["gated"]) == (world, budget, gated)]
    return found[0] if found else None


def draw(rows: list[dict[str, Any]]) -> None:
    """p99.9 against the share of answers expected to differ, one line a scenario and kind."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, world in enumerate(WORLDS):
        for gated in (True, False):
            points = sorted(
                (100 * (row["differing"] or 0.0), row["p999"])
                for row in rows
                if row["scenario"] == world and (row["gated"] == gated or row["budget"] in (0.0, 1.0))
            )
            label = f"{world}, {'gated' if gated else 'ungated'}"
            axes.plot(*zip(*points, strict=True), "o-" if gated else "x--", color=f"C{number}", label=label)
    axes.set_xlabel("answers expected to differ, per cent of all")
    axes.set_ylabel("p99.9, in mean service times")
    axes.set_ylim(bottom=1.0)
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="renew table and figure, run nothing")
    parser.add_argument("--queries", type=count(), default=100_000)
    parser.add_argument("--seeds", type=count(), default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.tables:
        document = json.loads(args.out.read_text())
        draw(document["rows"])
        for mark, text in sections(document).items():
            renew(DOCS, mark, text)
        return
    # Ungated is the same as gated where there is no limit, and where there is nothing to gate.
    todo = [
        (world, budget, gated)
        for world in WORLDS
        for budget in BUDGETS
        for gated in ((True, False) if 0.0 < budget < 1.0 else (True,))
    ]
    rows = [run(*each, args) for each in tqdm(todo, unit="row")]
    document = {
        "command": "python benchmarks/frontier.py",
        "queries": args.queries,
        "seeds": args.seeds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
