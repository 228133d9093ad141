"""Figures of the docs, drawn from the kept results.

    python benchmarks/figures.py                  # writes docs/figures/*.svg from benchmarks/results/*.json

Each figure names the content of the results that it was drawn from, so that a test finds one that is out of date. They
have no background, and grey letters that are read on white and on black.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "docs" / "figures"

INK, PALE = "#7a7f87", "#9aa0a8"
OURS, COPIES, HEDGE, PLAIN = "#2f81f7", "#8250df", "#d29922", "#d1495b"


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def stamp(name: str) -> str:
    """What a figure says of the results that it was drawn from."""
    digest = hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()
    return f"benchmarks/results/{name}.json sha256:{digest[:16]}"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {"svg.hashsalt": "ts_parity", "font.family": "sans-serif", "font.size": 11,
         "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE, "xtick.color": INK, "ytick.color": INK}
    )  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=PALE, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _legend(axes: Any, columns: int) -> None:
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    axes.legend(frameon=False, ncols=columns, handlelength=1, **above)


def demo() -> Any:
    """p99 of each arm, one dot a seed: `python benchmarks/demo.py`."""
    names = {
        "round_robin": "round robin", "uncoded": "the proxy's queue alone", "hedge": "second copies only",
        "coded": "the paper's: sum, two machines aside", "exact": "exact beside the model",
        "default": "a student beside the model",
    }  # fmt: skip
    runs = results("demo")["runs"]
    arms = list(runs[0]["arms"])
    figure, axes = _axes(7.2, 2.9)
    for row, arm in enumerate(reversed(arms)):
        values = [run["arms"][arm]["p99_ms"] for run in runs]
        axes.plot([min(values), max(values)], [row, row], color=PALE, linewidth=2, zorder=1)
        axes.scatter(values, [row] * len(values), s=42, color=OURS if arm == "default" else INK, zorder=2)
    axes.set_yticks(range(len(arms)), [names[arm] for arm in reversed(arms)])
    axes.set_xscale("log")
    axes.set_xticks([100, 200, 500, 1000, 2000], ["100", "200", "500", "1,000", "2,000"])
    axes.minorticks_off()
    axes.set_xlabel("p99, milliseconds; one dot a seed; an inference takes 50")
    return figure


def policies() -> Any:
    """R by scenario and load: `python benchmarks/policies.py`."""
    found = results("policies")
    quiet = {(each["scenario"], each["load"]): each["quiet_p999"] for each in found["baselines"]}
    drawn: dict[tuple[str, float], dict[str, float]] = {}
    for row in found["rows"]:
        usual = quiet.get((row["scenario"], row["load"]))
        ours = row["policy"] == "default" and row["code"] == "student" and row["cost"] == 0.25 and row["workers"] <= 12
        rival = row["policy"] in ("none", "hedge", "copies") and row["workers"] == 12
        if usual and row["load"] <= 0.85 and (ours or rival):
            drawn.setdefault((row["scenario"], row["load"]), {})[row["policy"]] = row["p999"] / usual
    rows = [(key, values) for key, values in drawn.items() if "default" in values and "none" in values]
    rows.sort(key=lambda each: each[1]["default"], reverse=True)
    figure, axes = _axes(7.2, 0.27 * len(rows) + 1.1)
    axes.axvline(1, color=INK, linewidth=1, alpha=0.7)
    for policy, label, colour, size in (
        ("none", "one queue", PLAIN, 30), ("hedge", "adaptive hedging", HEDGE, 30),
        ("copies", "second copies alone", COPIES, 30), ("default", "with a student", OURS, 46),
    ):  # fmt: skip
        places = [(values[policy], place) for place, (_, values) in enumerate(rows) if policy in values]
        axes.scatter(*zip(*places, strict=True), s=size, color=colour, label=label, zorder=3)
    axes.set_yticks(range(len(rows)), [f"{scenario} {load:g}" for (scenario, load), _ in rows])
    axes.set_xscale("log")
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_xlabel("R: p99.9, of that of one queue with nothing slow")
    _legend(axes, 4)
    return figure


def rivals() -> Any:
    """p99.9 by machines at `ep` 0.3 and 0.6: `python benchmarks/policies.py`."""
    names = {
        "none": "one queue",
        "equal": "one queue",
        "hedge": "adaptive hedging",
        "approximate": "small models get every query",
        "replication": "every query twice",
        "coded": "parity, our rules",
        "copies": "second copies",
        "default": "with a student",
    }
    rows = [
        row
        for row in results("policies")["rows"]
        if row["scenario"] == "ep" and row["load"] in (0.3, 0.6) and row["policy"] in names
        and (row["policy"] != "default" or (row["code"], row["cost"]) == ("student", 0.25))
    ]  # fmt: skip
    best: dict[tuple[float, str, int], float] = {}
    for row in rows:
        key = (row["load"], f"{names[row['policy']]}, {row['workers']}", row["workers"])
        best[key] = min(best.get(key, row["p999"]), row["p999"])
    figure, axes = _axes(7.2, 5.0)
    labels = sorted({key[1] for key in best}, key=lambda name: -min(v for k, v in best.items() if k[1] == name))
    for load, colour, marker in ((0.3, OURS, "o"), (0.6, HEDGE, "s")):
        places = [(value, labels.index(name)) for (at, name, _), value in best.items() if at == load]
        axes.scatter(*zip(*places, strict=True), s=40, color=colour, marker=marker, label=f"load {load}", zorder=3)
    axes.set_yticks(range(len(labels)), [f"{name} machines" for name in labels])
    axes.set_xscale("log")
    axes.set_xticks([1, 1.5, 2, 3, 4, 6], ["1", "1.5", "2", "3", "4", "6"])
    axes.minorticks_off()
    axes.set_xlabel("p99.9, in mean service times (12 machines at load 1 are full)")
    _legend(axes, 2)
    return figure


def accuracy() -> Any:
    """Points of accuracy that rebuilt answers lose: `python benchmarks/accuracy.py`."""
    rows = [row for row in results("accuracy")["rows"] if row["k"] in (2, 4) and row["data"] != "boxes"]
    lost: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (f"{row['data']}, k = {row['k']}", row["code"])
        lost[key] = min(lost.get(key, 1.0), row["drop"])
    labels = sorted({key[0] for key in lost}, reverse=True)
    figure, axes = _axes(7.2, 0.34 * len(labels) + 1.1)
    for code, colour in (("sum", PLAIN), ("concat", HEDGE), ("student", OURS)):
        places = [(100 * value, labels.index(label)) for (label, of), value in lost.items() if of == code]
        axes.scatter(*zip(*places, strict=True), s=44, color=colour, label=code, zorder=3)
    axes.axvline(0, color=INK, linewidth=1, alpha=0.7)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("accuracy that rebuilt answers lose, in points; the best network of each code")
    _legend(axes, 3)
    return figure


DRAWN: dict[str, tuple[str, Callable[[], Any]]] = {
    "demo": ("demo", demo),
    "policies": ("policies", policies),
    "rivals": ("policies", rivals),
    "accuracy": ("accuracy", accuracy),
}
"""Figure -> the results that it is drawn from, and how."""


def main(names: Sequence[str] = tuple(DRAWN)) -> None:
    from matplotlib import pyplot

    FIGURES.mkdir(exist_ok=True)
    for name in names:
        source, draw = DRAWN[name]
        metadata = {"Date": None, "Creator": None, "Source": stamp(source)}
        draw().savefig(FIGURES / f"{name}.svg", transparent=True, bbox_inches="tight", metadata=metadata)
        pyplot.close("all")


if __name__ == "__main__":
    main()
