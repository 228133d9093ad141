"""What to run: every policy, code and k for one's own fleet, traffic and accuracy report, and which is worth it.

Knows rows of the simulator, the training report and limits. Runs nothing itself but the simulator.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_parity.errors import ConfigError
from ts_parity.lab.compare import World, row_of

WORTH = 0.97
"""What is not at least this much better at p99.9 than doing nothing is not worth having."""
ALIKE = 1.05
"""Of choices this close at p99.9, the one with the fewest machines is taken, then the least work and loss."""


_TOO_HIGH = "p99.9 too high"


@dataclass(frozen=True)
class Limits:
    """What the user allows; None: anything. `work` beyond that of no protection, `loss` of overall accuracy, in shares;
    `p999` in the world's unit; `machines` more than the workers.
    """

    work: float | None = None
    loss: float | None = None
    p999: float | None = None
    machines: int = 0

    def broken_by(self, row: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
        broken = []
        if row["extra_machines"] > self.machines:
            broken.append(f"{row['extra_machines']} more machines")
        if self.work is not None and row["work"] - plain["work"] > self.work:
            broken.append(f"{row['work'] - plain['work']:.0%} more work")
        if self.loss is not None and row["loss"] > self.loss:
            broken.append(f"{100 * row['loss']:.3f} points lost")
        if self.p999 is not None and row["p999"] > self.p999:
            broken.append(_TOO_HIGH)
        return broken


@dataclass(frozen=True)
class Choice:
    """One thing that could be run. `loss_each`: on a rebuilt answer, as a share of `loss_of`."""

    policy: str
    extra: int
    loss_each: float = 0.0
    code: str = "sum"
    k: int = 1
    cost: float = 1.0
    loss_of: str = "accuracy"


def read_candidates(folder: Path) -> list[dict[str, Any]]:
    """The trained candidates of a report folder. Raise ConfigError."""
    file = folder / "report.json"
    try:
        candidates: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["candidates"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot read the training report {file}: {error!r}") from None
    return [candidate for candidate in candidates if candidate.get("cost")]


def choices(workers: int, extra: int, candidates: Sequence[Mapping[str, Any]]) -> list[Choice]:
    """What there is to choose from: without training, and with each trained candidate."""
    made = [Choice("none", 0), Choice("hedge", 0)]
    if extra:
        made += [Choice("equal", extra), Choice("hedge", extra)]
    for candidate in candidates:
        # Reports of older versions name the loss otherwise.
        lost = float(candidate.get("loss", candidate.get("drop", 1.0 - candidate.get("agreement", 1.0))))
        k, cost, of = int(candidate["k"]), float(candidate["cost"]), candidate.get("loss_of", "accuracy")
        if candidate["family"] == "parity" and candidate["r"] == 1:
            made.append(Choice("coded", math.ceil(workers / k), max(0.0, lost), candidate["code"], k, cost, of))
        elif candidate["family"] == "backup":
            made.append(Choice("ours", 0, max(0.0, lost), candidate["code"], k, cost / k, of))
            if extra:
                made.append(Choice("ours", extra, max(0.0, lost), candidate["code"], k, cost / k, of))
    return made


def make_plan(
    world: World,
    candidates: Sequence[Mapping[str, Any]],
    limits: Limits,
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """-> `rows` of all choices, each with what it breaks, `recommended` (its index), `sentence`, and `reached`: whether
    what is recommended is within the limits.
    """
    rows = []
    for choice in choices(world.workers, limits.machines, candidates):
        shape = {"extra": choice.extra, "code": choice.code, "k": choice.k, "cost": choice.cost}
        row = row_of(world, choice.policy, seeds, progress, **shape)
        if choice.policy in ("coded", "ours"):
            row |= {"code": choice.code, "k": choice.k, "cost": choice.cost}
        row |= {
            "extra_machines": choice.extra,
            "loss": row["reconstructed"] * choice.loss_each,
            "loss_of": choice.loss_of,
        }
        rows.append(row)
    plain = rows[0]
    for row in rows:
        row["broken"] = limits.broken_by(row, plain)
    chosen = _choose(rows, plain)
    return {
        "rows": rows,
        "recommended": rows.index(chosen),
        "sentence": _sentence(chosen, plain, world, rows, limits),
        "reached": not chosen["broken"],
    }


def _choose(rows: Sequence[dict[str, Any]], plain: dict[str, Any]) -> dict[str, Any]:
    """None is kept to if nothing within the limits is clearly better."""
    fitting = [row for row in rows if not row["broken"] and row["p999"] < WORTH * plain["p999"]]
    if not fitting:
        return plain
    best = min(row["p999"] for row in fitting)
    close = [row for row in fitting if row["p999"] <= ALIKE * best]
    return min(close, key=lambda row: (row["extra_machines"], row["work"], row["loss"]))


def named(row: Mapping[str, Any]) -> str:
    code = f" with {row['code']} k={row['k']}" if row["code"] else ""
    more = f" on {row['extra_machines']} machines more" if row["extra_machines"] else ""
    return f"{row['policy']}{code}{more}"


def _sentence(
    chosen: Mapping[str, Any],
    plain: Mapping[str, Any],
    world: World,
    rows: Sequence[Mapping[str, Any]],
    limits: Limits,
) -> str:
    if chosen["broken"] and limits.p999 is not None:
        best = min(rows, key=lambda row: float(row["p999"]))
        others = [why for why in best["broken"] if why != _TOO_HIGH]
        price = f" ({'; '.join(others)})" if others else ""
        return (
            f"Nothing reaches a p99.9 of {_time(limits.p999, world)} within these limits. The lowest is "
            f"{_time(best['p999'], world)}, with {named(best)}{price}; without protection it is "
            f"{_time(plain['p999'], world)}."
        )
    if chosen is plain:
        why = "within these limits nothing is clearly better" if any(row["broken"] for row in rows) else "it is enough"
        return f"Run nothing: {why}; p99.9 is {_time(plain['p999'], world)}."
    loss = (
        f"{100 * chosen['loss']:.3f} points of {chosen['loss_of']} lost over all answers"
        if chosen["loss"]
        else "nothing lost"
    )
    return (
        f"Run {named(chosen)}: p99.9 {_time(chosen['p999'], world)} against {_time(plain['p999'], world)} without, "
        f"{chosen['work'] - plain['work']:+.1%} of work, {loss} ({chosen['reconstructed']:.2%} of the answers rebuilt)."
    )


def _time(value: float, world: World) -> str:
    return f"{value:.2f} service times" if world.unit == 1.0 else f"{1000 * value:.1f} ms"


def plan_table(plan: Mapping[str, Any], world: World) -> str:
    cells = [["", "what", "machines", "p50", "p99", "p99.9", "work", "rebuilt", "loss", "not allowed"]]
    for index, row in enumerate(plan["rows"]):
        cells.append(
            [
                "->" if index == plan["recommended"] else "",
                named(row),
                str(row["workers"]),
                *(_time(row[name], world).removesuffix(" service times") for name in ("p50", "p99", "p999")),
                f"{row['work']:.3f}",
                f"{row['reconstructed']:.2%}",
                f"{100 * row['loss']:.3f}",
                "; ".join(row["broken"]),
            ]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def plan_page(plan: Mapping[str, Any], world: World) -> str:
    """The plan as one HTML file that needs nothing else."""
    rows: Sequence[Mapping[str, Any]] = plan["rows"]
    largest = max(row["p999"] for row in rows)
    lines = []
    for index, row in enumerate(rows):
        kind = "take" if index == plan["recommended"] else "no" if row["broken"] else "may"
        width = 100 * row["p999"] / largest
        cells = [
            html.escape(named(row)), str(row["workers"]), _time(row["p99"], world), _time(row["p999"], world),
            f'<div class="bar {kind}" style="width: {width:.1f}%"></div>', f"{row['work']:.3f}",
            f"{row['reconstructed']:.2%}", f"{100 * row['loss']:.3f}", html.escape("; ".join(row["broken"])),
        ]  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ["what", "machines", "p99", "p99.9", "", "work", "rebuilt", "points lost", "not allowed"]
    head = "".join(f"<th>{name}</th>" for name in heads)
    told = f"Load {world.load:.2f} of {world.workers} machines; {world.queries:,} queries a seed."
    return _PAGE.format(
        sentence=html.escape(plan["sentence"]), head=head, rows="\n".join(lines), told=html.escape(told)
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<title>What to run</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.say {{ font-size: 1.15rem; border-left: 4px solid #2a6f97; padding-left: .8rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }}
th, td {{ padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }}
td:nth-child(5) {{ width: 30%; }}
.bar {{ height: .8rem; background: #9bb8c9; }} .bar.take {{ background: #2a6f97; }} .bar.no {{ background: #ddd; }}
.note {{ color: #666; }}
</style>
</head>
<body>
<h1>What to run</h1>
<p class="say">{sentence}</p>
<table>
<tr>{head}</tr>
{rows}
</table>
<p class="note">{told} Bars: p99.9. Work: per query, in deployed inferences.</p>
</body>
</html>
"""
