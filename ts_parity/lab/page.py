"""A plan as people read it: a table for the terminal, and one HTML page that needs nothing else.

Knows the plan's keys. Decides nothing, and computes nothing but widths.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ts_parity.lab.compare import DOUBTFUL, World, doubts
from ts_parity.pages import (
    TableCell,
    bar,
    between,
    lead,
    listed,
    note,
    page,
    pairs,
    section,
    sentence,
    table,
    text,
    typed,
)
from ts_parity.tables import columns

ENDPOINT = "--endpoint http://HOST:8080"
"""To fill in: no plan knows where the instances are."""
MEANING = {
    "none": "one queue; each query goes to the machine with the fewest outstanding",
    "copies": "a query that is late gets a second copy on another machine; slow machines are taken out",
    "equal": "as none, on more machines",
    "default": "a backup stands beside the model on every machine; it and second copies are for late queries only",
    "coded": "the paper's: machines of their own serve a protection for every group of k queries; second copies too",
}
_EACH = "One --endpoint for each machine."
_SHOWN = ("p50", "p99", "p999")


def named(row: Mapping[str, Any]) -> str:
    code = f" with {row['code']} k={row['k']}" if row["code"] else ""
    more = f" on {row['extra_machines']} extra machines" if row["extra_machines"] else ""
    return f"{row['policy']}{code}{more}"


def time_told(value: float | None, world: World) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} service times" if world.unit == 1.0 else f"{1000 * value:.1f} ms"


def spread(row: Mapping[str, Any], name: str, world: World) -> str:
    """The mean over seeds, and between what two they lie. Marked where too few answers stand behind it."""
    told = _mark(row, name) + time_told(row[name], world)
    return told if row["seeds"] == 1 or row[name] is None else f"{told} ({_between(row, name, world)})"


def _between(row: Mapping[str, Any], name: str, world: World) -> str:
    low, high = (_bare(row[f"{name}_{end}"], world) for end in ("low", "high"))
    return f"{low} to {high}"


def _bare(value: float | None, world: World) -> str:
    return time_told(value, world).removesuffix(" service times").removesuffix(" ms")


def _mark(row: Mapping[str, Any], name: str) -> str:
    return DOUBTFUL * (name in row["doubtful"])


def command(row: Mapping[str, Any]) -> str:
    """The command line that does what a row of the plan says; empty: nothing needs to be run."""
    return "" if row["serve"] is None else shlex.join(["ts-parity", "serve", *ENDPOINT.split(), *row["serve"]])


def plan_table(plan: Mapping[str, Any], world: World) -> str:
    heads = ["", "what", "machines", "p50", "p99", "p99.9", "(lowest", "highest)", "work", "rebuilt", "loss"]
    cells = [[*heads, "not allowed"]]
    for index, row in enumerate(plan["rows"]):
        cells.append(
            [
                "->" if index == plan["recommended"] and plan["reached"] else "",
                named(row),
                str(row["workers"]),
                *(_mark(row, name) + time_told(row[name], world).removesuffix(" service times") for name in _SHOWN),
                *(_bare(row[f"p999_{end}"], world) for end in ("low", "high")),
                f"{row['work']:.3f}",
                f"{row['reconstructed']:.2%}",
                f"{100 * row['loss']:.3f}",
                "; ".join(row["broken"]),
            ]
        )
    return "\n".join(columns(cells))


def plan_text(plan: Mapping[str, Any], world: World) -> str:
    """The table, what to do, and what must be known beside it."""
    row = plan["rows"][plan["recommended"]]
    said = [plan["sentence"]]
    if plan["reached"] and command(row):
        said += ["", f"{row['set_up']} {_EACH}", "", command(row)]
    told = [
        row["work_told"],
        doubts(plan["rows"], _SHOWN),
        *(f"Not compared: {what}." for what in plan.get("left_out", ())),
    ]
    noted = [*filter(None, told)]
    parts = [said, noted] if plan["reached"] else [noted, said]  # a refusal is the last word
    return "\n\n".join("\n".join(part) for part in [[plan_table(plan, world)], *parts] if part)


def plan_page(plan: Mapping[str, Any], world: World) -> str:
    """The plan as one HTML file that needs nothing else."""
    rows: Sequence[Mapping[str, Any]] = plan["rows"]
    row = rows[plan["recommended"]]
    notes = [
        doubts(rows, _SHOWN),
        *(f"Not compared: {what}." for what in plan.get("left_out", ())),
    ]
    runs = plan["reached"] and command(row)
    to_run = (f"<p>{sentence(row['set_up'])} {sentence(_EACH)}</p>", typed(command(row))) if runs else ()
    worked = [(named(each), each["work_told"]) for each in rows if each["work_told"]]
    return page(
        "What to run",
        [
            lead(text(plan["sentence"])),
            section("To run it", *to_run),
            section(
                "What was compared",
                _rows(plan, world),
                *(note(words) for words in notes if words),
                pairs((name, MEANING[name]) for name in dict.fromkeys(each["policy"] for each in rows)),
            ),
            section("Where the work comes from", pairs(worked) if worked else ""),
            section("Inputs", pairs(plan.get("inputs", {}).items())),
            section("Assumptions", listed(plan["assumed"])),
            section("Not in these figures", listed(plan["unseen"])),
        ],
    )


_COLUMNS = ("what", "machines", "p50", "p99", "p99.9", "", "work", "rebuilt", "points lost", "not allowed")


def _rows(plan: Mapping[str, Any], world: World) -> str:
    largest = max((row["p999_high"] or 0.0 for row in plan["rows"]), default=0.0) or 1.0
    lines = []
    for index, row in enumerate(plan["rows"]):
        kind = "take" if index == plan["recommended"] and plan["reached"] else "no" if row["broken"] else "may"
        cells = [
            TableCell(text(named(row))),
            TableCell(str(row["workers"])),
            *(TableCell(_time(row, name, world)) for name in _SHOWN),
            TableCell(_bar(row, largest, kind), "bars"),
            TableCell(f"{row['work']:.3f}"),
            TableCell(f"{row['reconstructed']:.2%}"),
            TableCell(f"{100 * row['loss']:.3f}"),
            TableCell(text("; ".join(row["broken"])), "long"),
        ]
        lines.append((kind, cells))
    return table(_legend(plan["rows"], world), _COLUMNS, lines)


def _time(row: Mapping[str, Any], name: str, world: World) -> str:
    told = text(_mark(row, name) + time_told(row[name], world))
    if row["seeds"] == 1 or row[name] is None:
        return told
    return told + between(_between(row, name, world))


def _bar(row: Mapping[str, Any], largest: float, kind: str) -> str:
    """As long as the mean p99.9, with a line from the lowest seed to the highest."""
    if row["p999"] is None:
        return ""
    return bar(row["p999"], row["p999_low"], row["p999_high"], largest, kind)


def _legend(rows: Sequence[Mapping[str, Any]], world: World) -> str:
    first = rows[0]
    told = (
        f"means over {first['seeds']} seeds, and the lowest and highest of them"
        if first["seeds"] > 1
        else "of one seed, so chance is unknown: try --seeds 3"
    )
    lost = " and of ".join(dict.fromkeys(row["loss_of"] for row in rows if row["code"]))
    return (
        f"Latencies: {told}; the bars are p99.9. Machines: all that are used. Work: per query, in deployed inferences; "
        f"what a slow machine does counts for as long as it takes. Points lost: {f'of {lost}, ' if lost else ''}over "
        f"all answers at the share that is rebuilt. Load {world.load:.2f} of {world.workers} machines."
    )
