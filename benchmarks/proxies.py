"""Three proxies before twelve machines: what each way to share them is worth.

    python benchmarks/proxies.py [--queries N] [--seeds N]    and renew the table of docs/policy.md

`ep`: each machine 5 times slower for 4 % of the time, in spells of mean 100; a student of cost 0.25 beside the model on
every machine; the default policy. Clients are spread evenly over the proxies. A hop from one proxy to another takes
HOP one way: 1 ms beside a service time of 50 ms. What proxies tell each other, they tell every EXCHANGE.

R is p99.9 against that of policy `none` with one proxy at the same load with nothing slow; `of one` is p99.9 against
one proxy's in the same scenario, as the other columns of this table have it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World, row_of
from ts_parity.lab.scenario import Spells
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "proxies.json"
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
LOADS = (0.3, 0.6)
HOP = 0.02
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one proxy", {}),
    ("three, each with all machines, knowing nothing", {"proxies": 3}),
    ("a third of the machines each, for its own clients", {"proxies": 3, "sharing": "apart"}),
    (
        "machines by rendezvous hashing, forwarding to whoever has a place",
        {"proxies": 3, "sharing": "hashed"},
    ),
    ("a third of the machines each, forwarding to whoever has a place", {"proxies": 3, "sharing": "owned"}),
    ("idle machines leased, every 5 service times", {"proxies": 3, "sharing": "leased", "exchange": 5.0}),
    ("idle machines leased, every half service time", {"proxies": 3, "sharing": "leased", "exchange": 0.5}),
    ("machines report their load, every 5 service times", {"proxies": 3, "sharing": "reported", "exchange": 5.0}),
    ("machines report their load, every half service time", {"proxies": 3, "sharing": "reported", "exchange": 0.5}),
    ("one serves, the others forward", {"proxies": 3, "sharing": "active"}),
    ("the same, ten times as far", {"proxies": 3, "sharing": "active", "hop": 10 * HOP}),
)


def rows_of(load: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    world = World(load=load, queries=args.queries, spells=Spells(0.04, 100.0, 5.0))
    seeds = range(args.seeds)
    quiet = row_of(world.with_nothing_slow(), "none", seeds, extra=0)["p999"]
    none_work = row_of(world, "none", seeds, extra=0)["work"]
    rows: list[dict[str, Any]] = []
    for name, way in tqdm(WAYS, desc=f"load {load:g}", unit="way"):
        shared = replace(world, **{"hop": HOP, **way})
        row = row_of(shared, "default", seeds, extra=0, k=4, cost=0.25)
        one = rows[0]["p999"] if rows else row["p999"]
        compared = {"r": round(row["p999"] / quiet, 3), "of_one": round(row["p999"] / one, 3)}
        rows.append({"way": name, **row, **compared, "extra_work": round(row["work"] / none_work - 1.0, 4)})
    return rows


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    figures = ("p99", "p99.9 (lowest, highest seed)", "R", "of one", "extra work", "differing")
    body = []
    for row in document["rows"]:
        p999 = f"{row['p999']:.2f} ({row['p999_low']:.2f}, {row['p999_high']:.2f})"
        told = (f"{row['r']:.2f}", f"{row['of_one']:.2f}", f"{row['extra_work']:.1%}", f"{row['differing']:.3%}")
        body.append([f"{row['load']:g}", row["way"], f"{row['p99']:.2f}", p999, *told])
    said = f"`{document['command']}`, {document['queries']:,} queries x {document['seeds']} seeds."
    table = markdown(("at load", "how they share", *figures), body)
    return {"sharing": f"{said}\n\n{table}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=60_000)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    document = {
        "command": "python benchmarks/proxies.py",
        "queries": args.queries,
        "seeds": args.seeds,
        "rows": [row for load in LOADS for row in rows_of(load, args)],
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    for mark, text in sections(document).items():
        print(text)
        if args.out == RESULTS:
            renew(DOCS, mark, text)


if __name__ == "__main__":
    main()
