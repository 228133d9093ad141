"""What each rule of the recipe is worth: all of them, and all but one, in the scenarios of benchmarks/policies.py.

    python benchmarks/ablation.py [--queries N] [--seeds N]     about half an hour on one core
    python benchmarks/ablation.py --tables                      renew the table of docs/policy.md

`default` has a student of a quarter of the cost, k = 4; `copies` has no protection. p99.9 and p99.99 in mean service
times, means over the seeds; work in deployed inferences a query; answers that were rebuilt, and those of all that are
expected to differ from the deployed model's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from policies import SCENARIOS
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World, row_of
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "ablation.json"
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
CELLS: tuple[tuple[str, float, int], ...] = (
    ("ep", 0.1, 0),
    ("ep", 0.6, 0),
    ("ep", 0.85, 3),
    ("ep", 1.0, 0),
    ("net", 0.6, 0),
    ("twice", 0.6, 0),
    ("cv05", 0.6, 0),
)
WITHOUT_PROTECTION = CELLS[:2] + CELLS[4:]
RULES: dict[str, dict[str, Any]] = {
    "all": {},
    "launched with the group": {"launch": "group", "launch_waiting": 0.0},
    "no backups for queries that wait long": {"launch_waiting": 0.0},
    "launch not later under load": {"launch_stretch": 0.0},
    "no second copies": {"copies": False},
    "slow machines stay in": {"learn_speed": False},
    "no places lent": {"spare_places": 0},
    "doubtful answers are given at once": {"doubt_waits": False},
    "no limit to differing answers": {"differing": 1.0},
    "no extra work": {"extra_work": 0.0},
}
OF_COPIES: dict[str, dict[str, Any]] = {
    "all": {},
    "copies from p95": {"hedge_quantile": 0.95},
    "copies from p90": {"hedge_quantile": 0.9},
    "copies from p95, of a tenth": {"hedge_quantile": 0.95, "extra_work": 0.1},
    "no second copies": {"copies": False},
    "slow machines stay in": {"learn_speed": False},
}
POLICIES = {"default": (RULES, CELLS), "copies": (OF_COPIES, WITHOUT_PROTECTION)}


def table(rows: list[dict[str, Any]], policy: str) -> str:
    rules, shown = POLICIES[policy]
    head = [f"`{policy}`", *(f"`{name}` {load:g}, {12 + extra} machines" for name, load, extra in shown)]
    body = []
    for rule in rules:
        cells = [rule]
        for name, load, _ in shown:
            key = (policy, rule, name, load)
            row = next(r for r in rows if (r["policy"], r["rule"], r["scenario"], r["load"]) == key)
            cells.append(f"{row['p999']:.2f} / {row['p9999']:.2f}, {row['work']:.3f}, {_shares(row)}")
        body.append(cells)
    return markdown(head, body)


def _shares(row: dict[str, Any]) -> str:
    return f"{row['reconstructed']:.2%}, {row['differing']:.3%}"


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    size = f"{document['queries']:,} queries x {document['seeds']} seeds"
    said = f"p99.9 / p99.99, work, rebuilt, expected to differ. `{document['command']}`, {size}."
    measured = {row["policy"] for row in document["rows"]}
    parts = (table(document["rows"], policy) for policy in POLICIES if policy in measured)
    return {"ablation": "\n\n".join([said, *parts])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=60_000)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES), help="others are kept")
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    if args.tables:
        for mark, text in sections(json.loads(args.out.read_text())).items():
            renew(DOCS, mark, text)
        return
    kept = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    rows = [row for row in kept if row["policy"] not in args.policies]
    todo = {policy: POLICIES[policy] for policy in args.policies}
    runs = sum(len(rules) * len(cells) for rules, cells in todo.values()) * args.seeds
    with tqdm(total=runs * args.queries, unit="query", unit_scale=True) as bar:
        for policy, (rules, cells) in todo.items():
            for name, load, extra in cells:
                world = World(load=load, queries=args.queries, **SCENARIOS[name])
                for rule, changes in rules.items():
                    shape = {"extra": extra, "k": 4, "cost": 0.25, **changes}
                    row = row_of(world, policy, range(args.seeds), bar.update, **shape)
                    rows.append({"rule": rule, "scenario": name, **row})
    document = {
        "command": "python benchmarks/ablation.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "queries": args.queries,
        "seeds": args.seeds,
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print("\n\n".join(table(rows, policy) for policy in todo))


if __name__ == "__main__":
    main()
