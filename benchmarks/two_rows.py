"""What r = 2 is worth on Fashion-MNIST: two rows of `sum`, one or both of whose answers are late.

    python benchmarks/accuracy.py --data DIR --sets fashion --steps 1000 --only sum:2:2 sum:3:2 sum:4:2 --out OUT/r.json
    python benchmarks/two_rows.py OUT/r.json      from what that has kept: results/two_rows.json, and the docs' table
    python benchmarks/two_rows.py                    the table alone

How the rows err is measured on training images that chose the best weights, as `ts-parity train` does; all figures are
of the 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from accuracy_kept import KeptOutputs, errors_of_rows
from tables import renew
from ts_parity.codes import make_code
from ts_parity.tables import markdown
from ts_parity.training.evaluate import evaluate
from ts_parity.training.semantics import CLASSES

RESULTS = Path(__file__).parent / "results" / "two_rows.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
WAYS = {"first": "the first row alone", "alike": "as if they erred alike", "weighed": "weighed"}


def run_of(file: Path, k: int, seed: int, steps: int) -> dict[str, Any]:
    code, kept = make_code("sum", k, 2), KeptOutputs.load(file)
    errors, test = errors_of_rows(code, kept.held, CLASSES), kept.test
    (first, both), (_, second) = np.array(errors.of(frozenset(range(k))))
    only_first = {members: {0: rows[0]} for members, rows in test.protections.items()}
    scored = test.outputs[test.groups], test.labels[test.groups]
    scores = {
        "first": evaluate(make_code("sum", k), scored[0], only_first, scored[1], contents=test.groups),
        "alike": evaluate(code, scored[0], test.protections, scored[1], contents=test.groups),
        "weighed": evaluate(code, scored[0], test.protections, scored[1], contents=test.groups, errors=errors),
    }
    return {
        "k": k,
        "seed": seed,
        "steps": steps,
        "correlation": round(float(both / np.sqrt(first * second)), 3),
        "sizes": round(float(np.sqrt(second / first)), 3),
        "A_a": scores["weighed"]["A_a"],
        **{way: _told(each) for way, each in scores.items()},
        "two_erased": _told(scores["weighed"]["two_erased"]),
    }


def _told(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: (scores[name], scores["intervals"][name]) for name in ("agreement", "A_d")}


def table(document: dict[str, Any]) -> str:
    rows = []
    for k in dict.fromkeys(run["k"] for run in document["runs"]):
        runs = [run for run in document["runs"] if run["k"] == k]
        errors = (f"{np.mean([run[name] for run in runs]):.2f}" for name in ("correlation", "sizes"))
        agreement = [_mean([run[way]["agreement"] for run in runs]) for way in (*WAYS, "two_erased")]
        accuracy = [_mean([run[way]["A_d"] for run in runs]) for way in ("first", "weighed", "two_erased")]
        own = f"{np.mean([run['A_a'] for run in runs]):.2%}"
        rows.append([str(k), *errors, *agreement, own, *accuracy, str(len(runs))])
    head = ["k", "correlation", "sizes", *WAYS.values(), "two late"]
    return markdown([*head, "A_a", "A_d, the first alone", "A_d, weighed", "A_d, two late", "seeds"], rows)


def _mean(values: list[Any]) -> str:
    """The mean over seeds, and the mean margin of the intervals, which are those of the test images."""
    mean = np.mean([value for value, _ in values])
    margin = np.mean([max(value - low, high - value) for value, (low, high) in values])
    return f"{mean:.2%} ± {100 * margin:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="?", help="what benchmarks/accuracy.py was given as --out")
    args = parser.parse_args()
    if args.rows is not None:
        document = json.loads(args.rows.read_text())
        kept = args.rows.parent / f".{args.rows.stem}"
        runs = [
            run_of(kept / f"fashion-sum-k={run['k']}-r=2-seed-{run['seed']}.npz", run["k"], run["seed"], run["steps"])
            for run in sorted(document["runs"], key=lambda run: (run["k"], run["seed"]))
        ]
        RESULTS.write_text(json.dumps({"machine": document["machine"], "runs": runs}, indent=1) + "\n")
    document = json.loads(RESULTS.read_text())
    renew(DOCS, "two rows", table(document))
    print(table(document))


if __name__ == "__main__":
    main()
