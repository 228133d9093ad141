"""How fast the simulator is, and how its cost grows with the fleet.

    python benchmarks/simulator.py [--queries N] [--seeds N]    and renew the table of docs/benchmarks.md

Queries per second on one core, the scenario `ep` at load 0.6 (see benchmarks/policies.py), for `none` and `default`,
with 12 to 10,000 machines. Targets: 100,000 for none and 40,000 for default with 12 machines, and about as much with
more.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World
from ts_parity.lab.rivals import arrange
from ts_parity.lab.scenario import Spells
from ts_parity.lab.simulate import simulate
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "simulator.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
TARGETS = {"none": 100_000, "default": 40_000}
WORKERS = (12, 100, 1000, 10_000)


def speed(name: str, workers: int, queries: int, seed: int) -> float:
    """-> queries per second once it runs: what a run of a few queries takes, to build the fleet, is taken off."""
    world = World(load=0.6, workers=workers, spells=Spells(0.04, 100.0, 5.0))
    scenario = world.scenario(arrange(name, workers, 0, k=4, cost=0.25))
    took = []
    for number in (100, queries):
        started = time.perf_counter()
        simulate(replace(scenario, queries=number), seed)
        took.append(time.perf_counter() - started)
    return (queries - 100) / (took[1] - took[0])


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    by = {(row["policy"], row["workers"]): row["queries_per_second"] for row in document["rows"]}
    body = [[f"{workers:,}", *(f"{by[name, workers]:,}" for name in TARGETS)] for workers in WORKERS]
    said = (
        f"`{document['command']}`, {document['queries']:,} queries, median of {document['seeds']} seeds; queries per "
        f"second on one core; {document['machine']}. Targets: 100,000 and 40,000 with 12 machines."
    )
    return {"simulator": f"{said}\n\n{markdown(['machines', *TARGETS], body)}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=100_000)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for workers in WORKERS:
        for name in TARGETS:
            speeds = [speed(name, workers, args.queries, seed) for seed in range(args.seeds)]
            rows.append({"policy": name, "workers": workers, "queries_per_second": round(statistics.median(speeds))})
    document = {
        "command": "python benchmarks/simulator.py",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "queries": args.queries,
        "seeds": args.seeds,
        "rows": rows,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    for mark, text in sections(document).items():
        print(text)
        if args.out == RESULTS:
            renew(DOCS, mark, text)
    small = {row["policy"]: row["queries_per_second"] for row in rows if row["workers"] == 12}
    return 0 if all(small[name] >= target for name, target in TARGETS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
