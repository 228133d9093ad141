"""The demo's tables in docs/benchmarks.md and README.md, from finished runs of it.

    for s in 0 1 2; do ts-parity demo --seed $s --out runs/$s; done
    python benchmarks/demo.py runs/0 runs/1 runs/2

Keeps the runs' summaries in benchmarks/results/demo.json, puts all of them into docs/benchmarks.md and the first one
into README.md, between their marks, and its plot into docs/latency.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import renew
from ts_parity.tables import markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
README, DOCS, PLOT = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "latency.png"
ARMS = {
    "round_robin": "round robin (what people have)",
    "uncoded": "proxy, its queue alone",
    "hedge": "proxy, second copies only",
    "coded": "proxy, the paper's (`sum`, k=2, two of the six machines)",
    "exact": "default settings, `exact` beside the model",
    "default": "default settings, a student beside the model",
}
HEAD = ("arm", "p50 ms", "p99 ms", "max ms", "errors", "lost", "rebuilt", "accuracy", "of rebuilt", "work")


def rows(run: Mapping[str, Any]) -> list[list[str]]:
    return [_row(ARMS[name], arm) for name, arm in run["arms"].items()]


def _row(name: str, arm: Mapping[str, Any]) -> list[str]:
    times = [_told(arm[key], "{:.0f}") for key in ("p50_ms", "p99_ms", "max_ms")]
    rebuilt = f"{arm['reconstructed'] / arm['answered']:.2%}"
    accuracies = [_told(arm[key], "{:.2%}") for key in ("accuracy", "accuracy_reconstructed")]
    return [name, *times, str(arm["errors"]), str(arm["lost"]), rebuilt, *accuracies, f"{arm['work_per_query']:.2f}"]


def _told(value: float | None, form: str) -> str:
    """None: too few samples for it."""
    return "-" if value is None else form.format(value)


def headline(runs: Sequence[Mapping[str, Any]]) -> str:
    """For README.md: one run, and what it was."""
    run = runs[0]
    faults, arms = run["faults"], run["arms"]
    return (
        f"`make demo`, seed {run['seed']}: six TorchServe instances, {arms['default']['queries']:,} queries an arm at "
        f"{run['rate']:.0f}/s, {run['load']:.0%} of what they can do.\nInference is emulated: a wait of "
        f"{run['service_ms']:.0f} ms and a real small model's answer. In each arm the same {faults['spells']} spells\n"
        "in which an instance is "
        f"five times slower, {faults['freezes']} freezes of 0.2 to 0.6 s, and {faults['kills']} killed worker.\n\n"
        f"{markdown(HEAD, rows(run))}\n\n"
        "*lost*: never answered. *rebuilt*: answered by a protection. *accuracy*: of all answers, and of the rebuilt "
        "ones. *work*: inferences a\nquery, in those of the model. There is no p99.9, because that takes 4,603 queries "
        "an arm.\n"
        "Other seeds, and what the training reports said: [Benchmarks](docs/benchmarks.md#the-demo)."
    )


def all_tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """For docs/benchmarks.md: every run, and what its training reports said."""
    measured = [[str(run["seed"]), *row] for run in runs for row in rows(run)]
    said = [
        [
            str(run["seed"]),
            f"{run['training']['A_a']:.2%}",
            *(f"{run[part][key]:.2%}" for part in ("training", "student") for key in ("A_d", "agreement")),
        ]
        for run in runs
    ]
    head = ("seed", "A_a", "A_d of `sum`", "agreement", "A_d of the student", "agreement")
    return (
        f"{markdown(('seed', *HEAD), measured)}\n\nWhat the same runs' training reports say, k=2, scored on 450 scans "
        f"no model has seen, every slot erased once:\n\n{markdown(head, said)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="what the demo wrote, the README's first")
    args = parser.parse_args()
    runs = [json.loads((folder / "summary.json").read_text()) for folder in args.runs]
    RESULTS.write_text(json.dumps({"command": "ts-parity demo --seed S", "runs": runs}, indent=1) + "\n")
    shutil.copy(args.runs[0] / "latency.png", PLOT)
    renew(README, "demo", headline(runs))
    renew(DOCS, "demo", all_tables(runs))


if __name__ == "__main__":
    main()
