"""A bench as one HTML file that needs nothing else, and as a table for a terminal.

Knows what a bench measured. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts_parity.lab.bench import SHARES, Measured
from ts_parity.lab.report import needed
from ts_parity.pages import TableCell, between, lead, listed, note, page, pairs, section, table, text
from ts_parity.tables import columns
from ts_parity.training.charts import Chart, Series

COLOURS = ("student", "sum", "exact", "concat", "plain")
"""Of the page, in the order of the targets."""
_POINTS = 160
_TIMES = ("p50", "p90", "p99", "p99.9")

Row = Mapping[str, Any]


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def bench_table(rows: Sequence[Row]) -> str:
    head = ["target", *(f"{name} ms" for name in _TIMES), "max", "lag p99", "queries", "errors", "lost", "rebuilt",
            "hedged", "differing"]  # fmt: skip
    cells = [head]
    for row in rows:
        sources, seen = row["sources"], row["agreement"]
        compared = seen["agreed"] + seen["differing"]
        cells.append(
            [
                row["name"],
                *(milliseconds(row[name]) for name in _TIMES),
                milliseconds(row["max"]),
                milliseconds(row["lag"]),
                str(row["queries"]),
                str(row["errors"]),
                str(row["lost"]),
                str(sources.get("reconstructed", 0)),
                str(sources.get("hedged", 0)),
                f"{seen['differing']} of {compared}" if compared else "-",
            ]
        )
    return "\n".join(columns(cells, numbers=True))


def bench_page(rows: Sequence[Row], measured: Sequence[Measured], document: Row) -> str:
    """`document`: what `--json` prints."""
    verdicts = document["failed"]
    return page(
        "What clients saw",
        [
            lead(text(_sentence(rows))),
            section("Not as it should be", listed(verdicts), kind="alarm") if verdicts else "",
            section(
                "Latency",
                f"<figure>{_curves(measured).svg()}</figure>",
                note(
                    "The share of queries slower than t; both axes logarithmic. Latency counts from when a query was "
                    "due, so a load that could not be sent in time shows. Queries without an answer never come down."
                ),
            ),
            section("Figures", _figures(rows), note(_samples())),
            section("Where answers came from", _sources(rows)),
            section("What went wrong", _reasons(rows)),
            section("The load", pairs((name, str(told)) for name, told in document["inputs"].items())),
        ],
        foot=text(document["made"]),
    )


def _sentence(rows: Sequence[Row]) -> str:
    name = next((name for name in ("p99.9", "p99", "p50") if all(row[name] is not None for row in rows)), None)
    if name is None:
        return "Too few answers came for any percentile."
    return f"{name} is " + "; ".join(f"{_with_interval(row, name)} at {row['name']}" for row in rows) + "."


def _with_interval(row: Row, name: str) -> str:
    low, high = row["intervals"][name]
    return f"{milliseconds(row[name])} ms ({milliseconds(low)} to {milliseconds(high)})"


def _samples() -> str:
    told = ", ".join(f"{needed(share):,} for {name}" for name, share in SHARES.items() if name != "p50")
    return (
        f"A percentile is left out unless enough queries were answered: {told}. In brackets: 95 % intervals, from a "
        "bootstrap of blocks of queries that follow each other. Lag: how late queries were sent, p99; where it is "
        "large, this machine could not keep up, and the latencies include it."
    )


def _figures(rows: Sequence[Row]) -> str:
    heads = ("target", *_TIMES, "longest", "lag", "queries", "answered", "errors", "lost")
    lines = []
    for row in rows:
        times = [TableCell(_time(row, name)) for name in _TIMES]
        rest = [TableCell(f"{milliseconds(row[name])} ms" if row[name] is not None else "-") for name in ("max", "lag")]
        counts = [TableCell(f"{row[name]:,}") for name in ("queries", "answered", "errors", "lost")]
        lines.append(("", [TableCell(text(row["name"])), *times, *rest, *counts]))
    return table("Latency from when a query was due, over answered queries", heads, lines)


def _time(row: Row, name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row["intervals"][name]
    return f"{milliseconds(row[name])} ms" + between(f"{milliseconds(low)} to {milliseconds(high)}")


def _sources(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seen = row["agreement"]
        compared = seen["agreed"] + seen["differing"]
        told = f"{seen['differing']:,} of {compared:,} compared" if compared else "none compared"
        counts = [f"{row['sources'].get(name, 0):,}" for name in ("deployed", "hedged", "reconstructed", "default")]
        lines.append(("", [TableCell(text(row["name"])), *map(TableCell, counts), TableCell(text(told))]))
    heads = ("target", "the model's own", "second copies", "rebuilt", "default answers", "rebuilt ones that differ")
    caption = "Rebuilt answers are compared with the model's own answer to the same body in this run: the same decision"
    return table(caption, heads, lines)


def _reasons(rows: Sequence[Row]) -> str:
    return listed(
        [f"{row['name']}: {times:,} times {reason}" for row in rows for reason, times in row["reasons"].items()]
    )


def _curves(measured: Sequence[Measured]) -> Chart:
    marks = []
    for place, each in enumerate(measured):
        points = _curve(each)
        if points:
            marks.append(Series(each.target.name, COLOURS[place % len(COLOURS)], points, place, line=True))
    told = "The share of queries slower than t, against t in milliseconds, for each target."
    return Chart(told, "t, ms", "share slower", marks or [Series("", "plain", [(1.0, 1.0)])], logarithmic=True)


def _curve(each: Measured) -> list[tuple[float, float]]:
    """Thinned evenly on the logarithmic axis, so that the tail keeps its steps."""
    latencies = sorted(1000 * r.latency_s for r in each.records if r.answered and r.latency_s is not None)
    total, found, last = len(each.records), [], float("inf")
    for rank, latency in enumerate(latencies):
        slower = (total - rank) / total
        if slower <= last * total ** (-1 / _POINTS):
            found.append((max(latency, 1e-3), slower))
            last = slower
    return found
