"""What each rule of `ours` is worth: all of them, and all but one, in the scenarios of benchmarks/policies.py.

    python benchmarks/ablation.py [--queries N] [--seeds N]     about ten minutes on one core
    python benchmarks/ablation.py --tables                      renew the table of docs/policy.md

A student of a quarter of the cost, k = 4. p99.9 and p99.99 in mean service times, means over the seeds; work in
deployed inferences a query.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tables import markdown, renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World, row_of
from ts_parity.lab.simulate import Spells

RESULTS = Path(__file__).parent / "results" / "ablation.json"
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
CELLS: tuple[tuple[str, float, int], ...] = (
    ("ep", 0.1, 0),
    ("ep", 0.6, 0),
    ("ep", 0.85, 3),
    ("ep", 1.0, 0),
    ("net", 0.6, 0),
)
SCENARIOS: dict[str, dict[str, Any]] = {
    "ep": {"spells": Spells(0.04, 100.0, 5.0)},
    "net": {"net_share": 0.02, "net_mean": 5.0},
}
RULES: dict[str, dict[str, Any]] = {
    "all": {},
    "launched with the group": {"launch": "group", "launch_waiting": 0.0},
    "no backups for who waits long": {"launch_waiting": 0.0},
    "launch not later under load": {"launch_stretch": 0.0},
    "no second copies": {"hedge_ratio": 0.0, "hedge_burst": 1.0},
    "slow machines stay in": {"slow_factor": 0.0},
    "no places lent": {"spare_places": 0},
}


def table(rows: list[dict[str, Any]]) -> str:
    head = ["", *(f"`{name}` {load:g}, {12 + extra} machines" for name, load, extra in CELLS)]
    body = []
    for rule in RULES:
        cells = [rule]
        for name, load, _ in CELLS:
            row = next(r for r in rows if (r["rule"], r["scenario"], r["load"]) == (rule, name, load))
            cells.append(f"{row['p999']:.2f} / {row['p9999']:.2f}, {row['work']:.3f}, {row['reconstructed']:.2%}")
        body.append(cells)
    return markdown(head, body)


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    size = f"{document['queries']:,} queries x {document['seeds']} seeds"
    said = f"p99.9 / p99.99, work, rebuilt. `{document['command']}`, {size}."
    return {"ablation": f"{said}\n\n{table(document['rows'])}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=60_000)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    if args.tables:
        for mark, text in sections(json.loads(args.out.read_text())).items():
            renew(DOCS, mark, text)
        return
    rows = []
    with tqdm(total=len(CELLS) * len(RULES) * args.seeds * args.queries, unit="query", unit_scale=True) as bar:
        for name, load, extra in CELLS:
            world = World(load=load, queries=args.queries, **SCENARIOS[name])
            for rule, changes in RULES.items():
                shape = {"extra": extra, "k": 4, "cost": 0.25, **changes}
                rows.append(
                    {"rule": rule, "scenario": name, **row_of(world, "ours", range(args.seeds), bar.update, **shape)}
                )
    document = {
        "command": "python benchmarks/ablation.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "queries": args.queries,
        "seeds": args.seeds,
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
