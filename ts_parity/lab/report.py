"""Summaries, tables and plots, made from records and from nothing else.

Knows records and numbers. Knows nothing of how a run was made. matplotlib is imported only when a plot is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ts_parity.lab.records import ERROR, LOST, QueryRecord
from ts_parity.tables import columns

CONFIDENCE = 0.99

RECONSTRUCTED = "reconstructed"


@dataclass(frozen=True)
class Summary:
    """One arm of a comparison.

    Percentiles are over answered queries; what failed is counted beside them, in `errors` and `lost`, so a fast error
    flatters nothing. Accuracies are over answered queries that carry a label. None: too few samples to say.
    """

    queries: int
    answered: int
    errors: int
    lost: int
    reconstructed: int
    accuracy: float | None
    accuracy_reconstructed: float | None
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    send_lag_p99_ms: float | None
    work_per_query: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(records: Sequence[QueryRecord], work_per_query: float | None = None) -> Summary:
    answered = [record for record in records if record.answered]
    rebuilt = [record for record in answered if record.outcome == RECONSTRUCTED]
    latencies = sorted(record.latency_s for record in answered if record.latency_s is not None)
    lags = sorted(record.sent_at - record.due_at for record in records)
    return Summary(
        queries=len(records),
        answered=len(answered),
        errors=sum(record.outcome == ERROR for record in records),
        lost=sum(record.outcome == LOST for record in records),
        reconstructed=len(rebuilt),
        accuracy=_accuracy(answered),
        accuracy_reconstructed=_accuracy(rebuilt),
        p50_ms=_ms(percentile(latencies, 0.50)),
        p99_ms=_ms(percentile(latencies, 0.99)),
        p999_ms=_ms(percentile(latencies, 0.999)),
        max_ms=_ms(latencies[-1] if latencies else None),
        send_lag_p99_ms=_ms(percentile(lags, 0.99)),
        work_per_query=None if work_per_query is None else round(work_per_query, 5),
    )


def needed(share: float) -> int:
    """So many samples that one of them at least is beyond this percentile, with CONFIDENCE: 459 for p99, 4,603 for
    p99.9, 46,050 for p99.99. With fewer, the percentile may lie above all that was seen.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank of an ascending sequence; None where fewer samples than `needed` stand behind it."""
    if len(ordered) < needed(share):
        return None
    return ordered[max(1, math.ceil(round(share * len(ordered), 6))) - 1]


def table(arms: Mapping[str, Summary]) -> str:
    """The arms side by side, one a line, for a terminal or a fixed-width block."""
    header = (
        "arm",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "errors",
        "lost",
        "rebuilt",
        "accuracy",
        "of rebuilt",
        "work/query",
    )
    lines = columns([header, *(_row(name, summary) for name, summary in arms.items())], numbers=True)
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def plot_latencies(arms: Mapping[str, Sequence[QueryRecord]], path: Path, title: str) -> None:
    """Share of queries slower than t, both axes logarithmic: the tail is what it shows. Writes a PNG.

    Queries without an answer never come down: each arm's curve ends at the share that errors and losses hold.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, records in arms.items():
        latencies = sorted(r.latency_s * 1000 for r in records if r.answered and r.latency_s is not None)
        slower = [(len(records) - rank) / len(records) for rank in range(len(latencies))]
        axes.step(latencies, slower, where="pre", label=name.replace("_", " "))
    axes.set(xscale="log", yscale="log", xlabel="latency from when the query was due, t (ms)", title=title)
    axes.set_ylabel("share of queries slower than t")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _row(name: str, summary: Summary) -> tuple[str, ...]:
    share = summary.reconstructed / summary.answered if summary.answered else None
    return (
        name.replace("_", " "),
        _number(summary.p50_ms, "{:.1f}"),
        _number(summary.p99_ms, "{:.1f}"),
        _number(summary.p999_ms, "{:.1f}"),
        str(summary.errors),
        str(summary.lost),
        _number(share, "{:.2%}"),
        _number(summary.accuracy, "{:.2%}"),
        _number(summary.accuracy_reconstructed, "{:.2%}"),
        _number(summary.work_per_query, "{:.2f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _accuracy(records: Sequence[QueryRecord]) -> float | None:
    labelled = [record for record in records if record.label is not None]
    if not labelled:
        return None
    return round(sum(str(r.predicted) == str(r.label) for r in labelled) / len(labelled), 6)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
