"""What naming a target buys: the share of queries that take longer than it, with `target_s` and by the general rule.

    python benchmarks/target.py [--queries N] [--seeds N]     a quarter of an hour on one core
    python benchmarks/target.py --tables                      renew the table of docs/policy.md

Scenarios of benchmarks/policies.py, 12 machines, a student of cost 0.25. Targets in mean service times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from statistics import mean
from typing import Any

from policies import POLICY, SCENARIOS
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World
from ts_parity.lab.simulate import simulate
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "target.json"
DOCS = POLICY
CELLS = (("ep", 0.3), ("ep", 0.6), ("net", 0.6), ("twice", 0.6), ("cv05", 0.6), ("cv10", 0.6))
TARGETS = (1.5, 2.0, 3.0)


def measure(scenario: str, load: float, target: float, named: bool, args: argparse.Namespace) -> dict[str, Any]:
    world = World(load=load, queries=args.queries, **SCENARIOS[scenario])
    made = world.arranged("default", extra=0, k=4, cost=0.25, **({"target_s": target} if named else {}))
    runs = [simulate(world.scenario(made, seed), seed) for seed in range(args.seeds)]
    return {
        "scenario": scenario,
        "load": load,
        "target": target,
        "named": named,
        "later": [round(mean(latency > target for latency in run.latencies), 6) for run in runs],
        "work": round(mean(run.work_per_query for run in runs), 4),
        "differing": round(mean(run.differing / run.queries for run in runs), 6),
    }


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    found = {(row["scenario"], row["load"], row["target"], row["named"]): row for row in document["rows"]}
    body = []
    for scenario, load in CELLS:
        for target in TARGETS:
            rule, named = (found[scenario, load, target, named] for named in (False, True))
            body.append([f"`{scenario}` {load:g}", f"{target:g}", _cell(rule), _cell(named)])
    told = f"`{document['command']}`, {document['queries']:,} queries x {document['seeds']} seeds a cell."
    return {"target": f"{told}\n\n{markdown(('at load', 'target', 'general rule', '`target_s`'), body)}"}


def _cell(row: dict[str, Any]) -> str:
    """Mean, lowest and highest seed."""
    later = row["later"]
    share = f"{mean(later):.3%} ({min(later):.3%} to {max(later):.3%})"
    return f"{share}, {row['work']:.3f}, {row['differing']:.3%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=50_000)
    parser.add_argument("--seeds", type=count(), default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="renew the table, run nothing")
    args = parser.parse_args()
    if args.tables:
        for mark, text in sections(json.loads(args.out.read_text())).items():
            renew(DOCS, mark, text)
        return
    todo = [(*cell, target, named) for cell in CELLS for target in TARGETS for named in (False, True)]
    rows = [measure(*each, args) for each in tqdm(todo, unit="row")]
    document = {
        "command": "python benchmarks/target.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "queries": args.queries,
        "seeds": args.seeds,
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(sections(document)["target"])


if __name__ == "__main__":
    main()
