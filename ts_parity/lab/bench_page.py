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

UNANSWERED = "unanswered"
"""In place of a time that a query without an answer decides."""
COLOURS = ("student", "sum", "exact", "concat", "plain")
"""Of the page, in the order of the targets."""
_POINTS = 160
_TIMES = ("p50", "p90", "p99", "p99.9")

Row = Mapping[str, Any]


def milliseconds(row: Row, name: str) -> str:
    if name in row["unanswered"]:
        return UNANSWERED
    return "-" if row[name] is None else f"{1000 * row[name]:.1f}"


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
                *(milliseconds(row, name) for name in (*_TIMES, "max", "lag")),
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
                    "due, so a load that could not be sent in time shows. A query that is lost or fails counts as "
                    "infinitely late, so a curve never comes down to the share of those."
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
    name = next((name for name in ("p99.9", "p99", "p50") if all(name in row["intervals"] for row in rows)), None)
    if name is None:
        return "Too few queries were sent for any percentile."
    return f"{name} is " + "; ".join(f"{_at(row, name)} at {row['name']}" for row in rows) + "."


def _at(row: Row, name: str) -> str:
    if name in row["unanswered"]:
        return f"among the {row['queries'] - row['answered']:,} of {row['queries']:,} queries without an answer"
    return f"{milliseconds(row, name)} ms ({_interval(row, name)})"


def _interval(row: Row, name: str) -> str:
    """Empty: it says no more than the percentile itself."""
    low, high = ("" if end is None else f"{1000 * end:.1f}" for end in row["intervals"][name])
    return f"{low} to {high}" if high else low and f"at least {low}"


def _samples() -> str:
    told = ", ".join(f"{needed(SHARES[name]):,} for {name}" for name in _TIMES if name != "p50")
    return (
        f"A percentile is left out unless there were enough queries: {told}. Intervals are of 95 %, from a "
        f"bootstrap of blocks of queries that follow each other. {UNANSWERED.capitalize()}: so many queries were lost "
        "or failed that the time is one of theirs. Lag: how late queries were sent, p99; where it is large, this "
        "machine could not keep up, and the latencies include it."
    )


def _figures(rows: Sequence[Row]) -> str:
    heads = ("target", *_TIMES, "longest", "lag", "queries", "answered", "errors", "lost")
    lines = []
    for row in rows:
        times = [TableCell(_time(row, name)) for name in (*_TIMES, "max", "lag")]
        counts = [TableCell(f"{row[name]:,}") for name in ("queries", "answered", "errors", "lost")]
        lines.append(("", [TableCell(text(row["name"])), *times, *counts]))
    return table("Latency from when a query was due, over all queries", heads, lines)


def _time(row: Row, name: str) -> str:
    told = milliseconds(row, name) + ("" if row[name] is None else " ms")
    interval = _interval(row, name) if name in row["intervals"] else ""
    return told + (between(interval) if interval else "")


def _sources(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seen = row["agreement"]
        compared = seen["agreed"] + seen["differing"]
        told = f"{seen['differing']:,} of {compared:,} compared" if compared else "none compared"
        told += between(f"{seen['unknown']:,} could not be") if seen["unknown"] else ""
        counts = [f"{row['sources'].get(name, 0):,}" for name in ("deployed", "hedged", "reconstructed", "default")]
        lines.append(("", [TableCell(text(row["name"])), *map(TableCell, counts), TableCell(told)]))
    heads = ("target", "the model's own", "second copies", "rebuilt", "default answers", "rebuilt ones that differ")
    caption = (
        "Rebuilt answers are compared with the model's own answer to the same body in this run, from any target: the "
        "same decision"
    )
    return table(caption, heads, lines)


def _reasons(rows: Sequence[Row]) -> str:
    return listed(
        [f"{row['name']}: {times:,} times {reason}" for row in rows for reason, times in row["reasons"].items()]
    )


def _curves(measured: Sequence[Measured]) -> Chart:
    marks = []
    for place, each in enumerate(measured):
        points = curve(each)
        if points:
            marks.append(Series(each.target.name, COLOURS[place % len(COLOURS)], points, place, line=True))
    told = "The share of queries slower than t, against t in milliseconds, for each target."
    return Chart(told, "t, ms", "share slower", marks or [Series("", "plain", [(1.0, 1.0)])], logarithmic=True)


def curve(each: Measured) -> list[tuple[float, float]]:
    """Milliseconds, and the share of all queries that took so long or got no answer.

    Thinned evenly on the logarithmic axis, so that the tail keeps its steps.
    """
    latencies = sorted(1000 * r.latency_s for r in each.records if r.answered and r.latency_s is not None)
    total, found, last = len(each.records), [], float("inf")
    for rank, latency in enumerate(latencies):
        slower = (total - rank) / total
        if slower <= last * total ** (-1 / _POINTS):
            found.append((max(latency, 1e-3), slower))
            last = slower
    return found
