"""Overload: what share of a fleet's capacity goes into answers that somebody still waits for, on the simulator.

    python benchmarks/overload.py [--seeds N] [--out FILE]    a minute on one core
    python benchmarks/overload.py --tables                    renew docs/policy.md

Eight machines that take 0.1 s (lognormal, cv as in the table) bear 80 queries/s; `batches`: four places each, and four
queries in one run take as long as 1.6. Ten seconds at half of that, twenty at `load` times, ten at half again. Clients
ask for a deadline, leave after a second without having said so, or wait for as long as it takes. Goodput counts the
answers that came in time, per second of overload, as a share of capacity; `answered p50` is that of those answers;
`after` is the median of who comes between two and four seconds after the overload's end. The
policy is the plain one: admission alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from tables import renew
from ts_parity.arguments import count
from ts_parity.engine import plain
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.rivals import make_fleet
from ts_parity.lab.scenario import Arrivals, Costs, Scenario, ServiceTimes
from ts_parity.lab.simulate import simulate
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "overload.json"
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
MACHINES, SERVICE_S = 8, 0.1
BEGINS, ENDS, OVER = 10.0, 30.0, 40.0
CLIENTS: dict[str, dict[str, float]] = {
    "deadline 0.3 s": {"deadline": 0.3},
    "deadline 1 s": {"deadline": 1.0},
    "leave after 1 s": {"patience": 1.0},
    "patient": {},
}
FLEETS: dict[str, tuple[float, int]] = {"cv 0.1": (0.1, 1), "cv 0.5": (0.5, 1), "cv 1": (1.0, 1), "batches": (0.1, 4)}
"""cv, places of each machine."""
SAVES = 0.8
LOADS = (0.9, 1.5, 2.0, 3.0)


def capacity(batch: int) -> float:
    """Queries a second."""
    return MACHINES * batch / (1 + (1 - SAVES) * (batch - 1)) / SERVICE_S


def arrivals(load: float, rate: float, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    at: list[float] = []
    for begins, ends, share in ((0.0, BEGINS, 0.5), (BEGINS, ENDS, load), (ENDS, OVER, 0.5)):
        count = rng.poisson(share * rate * (ends - begins))
        at += sorted(rng.uniform(begins, ends, count).tolist())
    return tuple(at)


def one_run(fleet: str, clients: str, load: float, seed: int) -> dict[str, float]:
    cv, batch = FLEETS[fleet]
    bears = capacity(batch)
    due = arrivals(load, bears, seed)
    scenario = Scenario(
        make_fleet(MACHINES, 0, True, None, batch),
        plain(),
        Arrivals(0.0, trace=due),
        len(due),
        ServiceTimes(SERVICE_S, cv),
        costs=Costs(batch_saves=SAVES),
        worker_batch=batch,
        warm_up=0.0,
        **CLIENTS[clients],
    )
    records = simulate(scenario, seed, keep_records=True).records or []
    answered = [record for record in records if record.answered]
    limit = min(scenario.deadline, scenario.patience)
    # Between the first second of overload, when queues only fill, and its end.
    window = [r for r in answered if BEGINS + 1 <= ended_at(r) < ENDS and latency(r) <= limit]
    after = [latency(r) for r in answered if ENDS + 2 <= r.due_at < ENDS + 4]
    return {
        "goodput": len(window) / (bears * (ENDS - BEGINS - 1)),
        "answered_p50_s": statistics.median(map(latency, window)),
        "after_p50_s": statistics.median(after) if after else math.nan,
    }


def latency(record: QueryRecord) -> float:
    assert record.latency_s is not None
    return record.latency_s


def ended_at(record: QueryRecord) -> float:
    return record.due_at + latency(record)


def row_of(fleet: str, clients: str, load: float, seeds: int) -> dict[str, Any]:
    runs = [one_run(fleet, clients, load, seed) for seed in range(seeds)]
    means = {name: round(statistics.fmean(run[name] for run in runs), 3) for name in runs[0]}
    worst = round(min(run["goodput"] for run in runs), 3)
    return {"fleet": fleet, "clients": clients, "load": load, "seeds": seeds, **means, "goodput_worst": worst}


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind of client and fleet, a column for each load."""
    body = []
    for clients in CLIENTS:
        for fleet in FLEETS:
            found = {row["load"]: row for row in rows if (row["fleet"], row["clients"]) == (fleet, clients)}
            cells = [
                f"{row['goodput']:.0%}, {row['answered_p50_s'] * 1000:.0f}, {row['after_p50_s'] * 1000:.0f}"
                for load in LOADS
                if (row := found.get(load)) is not None
            ]
            body.append([clients, fleet, *cells])
    return markdown(("clients", "fleet", *(f"load {load:g}" for load in LOADS)), body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count(), default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="renew the table of docs/policy.md, run nothing")
    args = parser.parse_args()
    if not args.tables:
        rows = [row_of(f, c, load, args.seeds) for f in FLEETS for c in CLIENTS for load in LOADS]
        document = {
            "command": f"python benchmarks/overload.py --seeds {args.seeds}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "rows": rows,
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(args.out.read_text())
    made = table(document["rows"])
    if args.tables:
        note = f"Goodput, p50 of the answers in time and p50 after, in ms. `{document['command']}`."
        renew(DOCS, "overload", f"{note}\n\n{made}")
    else:
        print(made)


if __name__ == "__main__":
    main()
