"""One machine frozen, one slow but answering, one of three failure domains dead: what each policy makes of it.

    python benchmarks/outages.py [--seeds N]    and renew the table of docs/policy.md

Twelve machines at load 0.3 and an outage from 500 to 3,500 (mean service times). p99.9 is of the queries that arrived
in the outage; `hits`: queries that a machine in trouble was given while it lasted, second copies included; `out after`:
from its beginning until the last machine concerned is passed over, for what it did or because its place stays taken;
`back after`: from its end until all serve again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.engine import Kind, Send
from ts_parity.lab.compare import World
from ts_parity.lab.rivals import arrange
from ts_parity.lab.scenario import Outage
from ts_parity.lab.simulate import simulate
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "outages.json"
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
BEGINS, LASTS, LOAD = 500.0, 3000.0, 0.3
OUTAGES = {
    "frozen": (Outage("m0", BEGINS, LASTS),),
    "slow": (Outage("m0", BEGINS, LASTS, "slow"),),
    "dead": tuple(Outage(f"m{i}", BEGINS, LASTS, "dead") for i in (0, 3, 6, 9)),
}
POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {"extra": 0}),
    ("hedge", {"extra": 0}),
    ("coded", {"extra": 3, "k": 4}),
    ("default", {"extra": 0, "k": 4, "cost": 0.25}),
)


class Watch:
    """Sees every event of a run, and what the machines in trouble are given and when."""

    def __init__(self, machines: set[str]) -> None:
        self._machines = machines
        self._places: dict[str, Any] = {}
        self.hits = 0
        self.out: dict[str, float] = {}
        self.back: dict[str, float] = {}

    def __call__(self, what: str, now: float, subject: object, actions: list[object]) -> None:
        ends = BEGINS + LASTS
        for action in actions:
            if isinstance(action, Send) and action.task.kind is Kind.DEPLOYED:
                machine = action.task.endpoint.instance
                if machine in self._machines:
                    self._places[machine] = action.task.place
                    self.hits += BEGINS <= now < ends
                    if now >= ends:
                        self.back.setdefault(machine, now - ends)
        if BEGINS <= now < ends:
            for machine, place in self._places.items():
                held = [task.sent_at for state in place.host.endpoints for task in state.tasks.values()]
                stuck = held and now - min(held) > 10.0
                if machine not in self.out and (not place.host.clean or stuck):
                    self.out[machine] = max(0.0, (min(held) if stuck else now) - BEGINS)


def row_of(trouble: str, name: str, shape: dict[str, Any], seeds: range) -> dict[str, Any]:
    made = arrange(name, 12, domains=3 if trouble == "dead" else None, **shape)
    world = World(load=LOAD, queries=int((BEGINS + LASTS + 1000) * LOAD * 12), outages=OUTAGES[trouble])
    machines = {outage.worker for outage in OUTAGES[trouble]}
    tails, hits, out, back, lost = [], [], [], [], 0
    for seed in seeds:
        watch = Watch(machines)
        scenario = replace(world.scenario(made), warm_up=0.0)
        result = simulate(scenario, seed, keep_records=True, on_event=watch)
        during = [r.latency_s for r in result.records or () if BEGINS <= r.due_at < BEGINS + LASTS and r.answered]
        tails.append(float(np.quantile(np.asarray(during), 0.999)))
        hits.append(watch.hits / len(machines))
        out.append(max(watch.out.values()) if len(watch.out) == len(machines) else math.inf)
        back.append(max(watch.back.values()) if len(watch.back) == len(machines) else math.inf)
        lost += result.failed + result.unanswered
    numbers = {"p999": tails, "hits": hits, "out_after": out, "back_after": back}
    means = {key: statistics.fmean(values) for key, values in numbers.items()}
    shown = {key: round(mean, 2) if mean < math.inf else None for key, mean in means.items()}
    return {"trouble": trouble, "policy": name, "machines": made.workers, **shown, "lost": lost, "seeds": len(seeds)}


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/policy.md says between its marks."""
    head = ("trouble", "policy", "machines", "p99.9", "hits a machine", "out after", "back after", "lost")
    body = []
    for row in document["rows"]:
        times = ["never" if row[key] is None else f"{row[key]:.0f}" for key in ("out_after", "back_after")]
        shown = [f"{row['p999']:.2f}", f"{row['hits']:.0f}", *times, str(row["lost"])]
        body.append([row["trouble"], row["policy"], str(row["machines"]), *shown])
    return {"outages": f"`{document['command']}`, {document['seeds']} seeds.\n\n{markdown(head, body)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cells = [(trouble, name, shape) for trouble in OUTAGES for name, shape in POLICIES]
    document = {
        "command": "python benchmarks/outages.py",
        "seeds": args.seeds,
        "rows": [row_of(*cell, range(args.seeds)) for cell in tqdm(cells, unit="run")],
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    for mark, text in sections(document).items():
        print(text)
        if args.out == RESULTS:
            renew(DOCS, mark, text)


if __name__ == "__main__":
    main()
