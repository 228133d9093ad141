"""The tables and the plot of `paper.py`, made of its kept rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_points import ARMS, FIGURES, point_of

from ts_parity.tables import markdown

Row = dict[str, Any]
PERCENTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}


PAPER = {
    "9": "gap between p99.9 and p50 2.6 to 3.5 times smaller than equal resources', p99.9 38 to 48 % lower",
    "10": "still well below equal resources at k = 3 and 4; the benefit falls with k",
    "11": "the benefit grows with the number of transfers",
    "12": "gap up to 2.3 times smaller",
    "13": "similar at low rates; then the backups, which get every query, are overloaded",
    "batch": "the benefit persists, p99.9 about 40 to 47 % lower",
}
"""What the paper reports."""
PLOTTED, PLOT = "9", "paper.png"
"""The figure that is drawn over the loads, and where."""
CURVES = {"9": "paper-9.png", "slow": "paper-slow.png"}
"""The figures whose latencies are drawn as curves, and where."""
_HEAD = (
    "arm", "host", "machines", "seeds", "p50 ms", "p99 ms", "p99.9 ms (lowest, highest seed)", "clustered",
    "gap, of equal's", "rebuilt", "differing", "accuracy", "of rebuilt", "work", "lost", "errors", "lag ms",
)  # fmt: skip


def sections(document: Mapping[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    rows = document["rows"]
    hosts = _hosts(rows)
    parts = [
        f"`{document['command']}`, with `--figure`, `--load`, `--arm`, `--seeds` and `--service` as each table says; "
        f"{document['machine']}; {document['emulated']}. "
        f"{document['size']['machines']} deployed machines and half as many more; "
        f"{document['size']['queries']:,} queries a point, of which the first tenth and the last 0.5 % are not timed. "
        "*lag*: how late queries were sent, p99; where it is large "
        "the host was too busy, and that row's latencies are the host's. *clustered*: the largest share of the slowest "
        "thousandth that was due within half a second; where it is large, one pause of the host or one long queue made "
        "the p99.9 of that row. *gap*: on the same host, over the seeds that both arms have. "
        "*host*: by letters; machines of the same name."
    ]
    for name, figure in FIGURES.items():
        own = [row for row in rows if row["figure"] == name]
        if own:
            over = over_loads(rows) if name == PLOTTED else []
            drawn = f"\n\nOn host {hosts[over[0]['host']]}:\n\n![p99.9 by load]({PLOT})" if over else ""
            if name in CURVES:
                drawn += f"\n\n![share of the queries that take longer, by latency; a line a seed]({CURVES[name]})"
            parts.append(f"**{_title(name)}: {figure.told}.** {_paper(name)}\n\n{_tables(own, hosts)}{drawn}")
    return {"paper": "\n\n".join(parts), "paper-simulated": _beside(rows)}


def _title(name: str) -> str:
    return f"Figure {name}" if name.isdigit() else name.capitalize()


def _paper(name: str) -> str:
    return f"In the paper: {PAPER[name]}." if name in PAPER else "Not in the paper."


def _tables(own: Sequence[Row], hosts: Mapping[str, str]) -> str:
    told = []
    for setting in dict.fromkeys(map(_setting, own)):
        here = [r for r in own if _setting(r) == setting]
        service_ms, load, k, _, batch = setting
        cells = []
        for arm in dict.fromkeys(r["spec"] for r in here):
            for host, letter in hosts.items():
                there = [r for r in here if r["host"] == host]
                if rows := _of(there, arm):
                    cells.append(_cells(arm, letter, rows, _of(there, "equal")))
        told.append(
            f"Load {load:g}, inferences of {service_ms:g} ms, k = {k}, {_trouble(here[0])}batches of {batch}; measured "
            f"on {' and '.join(sorted({row['measured_at'][:10] for row in here}))}:\n\n"
            f"{markdown(_HEAD, cells)}"
        )
    return "\n\n".join(told)


def _setting(row: Row) -> tuple[float, float, int, int, int]:
    return row["service_ms"], row["load"], row["k"], row["disturbances"], row["batch"]


def _trouble(row: Row) -> str:
    return f"{row['disturbances']} transfers for each 18 machines, " if row["trouble"] == "shuffles" else ""


def _of(rows: Sequence[Row], arm: str) -> list[Row]:
    return [row for row in rows if row["spec"] == arm]


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Over seeds; None if one of them has none."""
    values = [row.get(name) for row in rows]
    return None if not values or any(value is None for value in values) else sum(values) / len(values)


def _gap(rows: Sequence[Row]) -> float | None:
    tail, middle = mean(rows, "p999_ms"), mean(rows, "p50_ms")
    return None if tail is None or middle is None else tail - middle


def _share_of_gap(rows: Sequence[Row], equal: Sequence[Row]) -> float | None:
    """Of equal resources', over the seeds that both have."""
    both = {row["seed"] for row in rows} & {row["seed"] for row in equal}
    gap, equals = (_gap([row for row in some if row["seed"] in both]) for some in (rows, equal))
    return None if gap is None or not equals else gap / equals


def _of_rebuilt(rows: Sequence[Row]) -> float | None:
    """The accuracy of rebuilt answers, where there are any."""
    some = [row for row in rows if row["reconstructed"]]
    right = sum(row["accuracy_reconstructed"] * row["reconstructed"] for row in some)
    return right / sum(row["reconstructed"] for row in some) if some else None


def _hosts(rows: Sequence[Row]) -> dict[str, str]:
    """-> letters for the hosts, in the order of their first measurements."""
    in_order = dict.fromkeys(row["host"] for row in sorted(rows, key=lambda row: row["measured_at"]))
    return {host: chr(ord("A") + n) for n, host in enumerate(in_order)}


def _cells(arm: str, host: str, rows: Sequence[Row], equal: Sequence[Row]) -> list[str]:
    def told(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    tail = mean(rows, "p999_ms")
    spread = "" if tail is None else f" ({min(r['p999_ms'] for r in rows):.0f}, {max(r['p999_ms'] for r in rows):.0f})"
    answered = sum(r["queries"] - r["lost"] - r["errors"] for r in rows)
    rebuilt, compared = sum(r["reconstructed"] for r in rows), sum(r["compared"] for r in rows)
    differing = sum(r["differing"] for r in rows) / compared * rebuilt / answered if compared else None
    return [
        arm,
        host,
        str(rows[0]["workers"]),
        str(len(rows)),
        told(mean(rows, "p50_ms"), "{:.0f}"),
        told(mean(rows, "p99_ms"), "{:.0f}"),
        told(tail, "{:.0f}") + spread,
        told(mean(rows, "clustered"), "{:.0%}"),
        told(_share_of_gap(rows, equal), "{:.2f}"),
        f"{rebuilt / max(1, answered):.2%}",
        told(differing, "{:.3%}"),
        told(mean(rows, "accuracy"), "{:.2%}"),
        told(_of_rebuilt(rows), "{:.1%}"),
        told(mean(rows, "work"), "{:.3f}"),
        str(sum(r["lost"] for r in rows)),
        str(sum(r["errors"] for r in rows)),
        told(mean(rows, "send_lag_p99_ms"), "{:.0f}"),
    ]


def _beside(rows: Sequence[Row]) -> str:
    """The simulator, and the planner, against the live runs."""
    cells, within = [], {"simulated": [], "foretold": []}
    known = [row for row in rows if row.get("simulated_p50_ms") or row.get("foretold_p50_ms")]
    for key in dict.fromkeys((r["trouble"], r["spec"], *_setting(r)) for r in known):
        shown = [r for r in known if (r["trouble"], r["spec"], *_setting(r)) == key]
        here = list({r["seed"]: r for r in shown}.values())  # a point stands in each figure that shows it
        trouble, arm, service_ms, load, *others = key
        line = [trouble, arm, f"{service_ms:g}", f"{load:g}", *map(str, others)]
        for name in PERCENTILES:
            live = mean(here, name)
            line.append("-" if live is None else f"{live:.0f}")
            for by, limit in (("simulated", 0.15), ("foretold", 0.25)):
                both = [r for r in here if r.get(name) is not None and r.get(f"{by}_{name}") is not None]
                told, there = mean(both, f"{by}_{name}"), mean(both, name)
                if told is None or there is None:
                    line.append("-")
                    continue
                within[by] += [abs(r[f"{by}_{name}"] / r[name] - 1) <= limit for r in both]
                line.append(f"{told:.0f} ({told / there:.2f})")
        cells.append(line)
    times = [f"{name}{by}" for name in ("p50", "p99", "p99.9") for by in (" live", " simulated", " foretold")]
    counts = {by: (sum(each), len(each)) for by, each in within.items()}
    return (
        f"{markdown(('trouble', 'arm', 'inference ms', 'load', 'k', 'transfers', 'batch', *times), cells)}\n\n"
        "Simulated: the same arrivals and spells, with tasks that take as long as they took on the host outside "
        "spells, where that was measured at this load; else as long as emulated. Foretold: by the "
        "planner, from the access log of equal resources in the same setting and with the same seed, where there is "
        "one. In brackets: of what was measured with these seeds. "
        f"{counts['simulated'][0]} of {counts['simulated'][1]} simulated percentiles of single seeds are within 15 %, "
        f"{counts['foretold'][0]} of {counts['foretold'][1]} foretold ones within 25 %. The simulator has no proxy and "
        "no client that take time, and knows contention as single replies that are late at random, not as "
        "machines all of whose messages are late for seconds."
    )


def over_loads(rows: Sequence[Row]) -> list[Row]:
    """What can be drawn over the loads: the figure's rows of the length of an inference and the host that were measured
    at most of them, the newest if there are several. None: nothing was measured at two.
    """
    loads: dict[tuple[float, str], set[float]] = {}
    own = sorted((row for row in rows if row["figure"] == PLOTTED), key=lambda row: row["measured_at"], reverse=True)
    for row in own:
        loads.setdefault((row["service_ms"], row["host"]), set()).add(row["load"])
    most = max(loads, key=lambda place: len(loads[place]), default=None)
    if most is None or len(loads[most]) < 2:
        return []
    return [row for row in rows if row["figure"] == PLOTTED and (row["service_ms"], row["host"]) == most]


def plot(rows: Sequence[Row], file: Path) -> None:
    """p99.9 (or p99, where there are too few samples) over the loads, an arm a line. `rows`: of `over_loads`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter

    name = "p999_ms" if all(row["p999_ms"] is not None for row in rows) else "p99_ms"
    drawn, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for arm in dict.fromkeys(row["spec"] for row in rows):
        loads = sorted({row["load"] for row in rows})
        values = [mean([r for r in rows if r["spec"] == arm and r["load"] == load], name) for load in loads]
        axes.plot(loads, [math.nan if v is None else v for v in values], marker="o", label=arm)
    axes.set(
        title=f"inferences of {rows[0]['service_ms']:g} ms",
        xlabel="load of the deployed machines",
        ylabel=f"{'p99.9' if name == 'p999_ms' else 'p99'}, ms",
        yscale="log",
    )
    for set_ in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_(FormatStrFormatter("%.0f"))
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    drawn.savefig(file, dpi=130)
    pyplot.close(drawn)


def plot_curves(rows: Sequence[Row], curves: Mapping[str, Sequence[tuple[float, float]]], file: Path) -> None:
    """The share of queries that take longer than t, a line for each arm and seed, a panel for each load and length of
    an inference. `rows`: of one figure; `curves`: by the keys of points.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    places = list(dict.fromkeys((row["service_ms"], row["load"]) for row in rows))
    arms = [arm for arm in ARMS if any(row["spec"] == arm for row in rows)]
    across = min(len(places), 3)
    down = math.ceil(len(places) / across)
    drawn, panels = pyplot.subplots(
        down, across, figsize=(5.5 * across, 4.5 * down), layout="constrained", sharey=True, squeeze=False
    )
    for axes in panels.flat[len(places) :]:
        axes.remove()
    for axes, place in zip(panels.flat, places, strict=False):
        told = set()
        for row in (row for row in rows if (row["service_ms"], row["load"]) == place):
            arm, point = row["spec"], point_of(row)
            line = curves[point.key] if point else []
            label = None if arm in told else arm
            told.add(arm)
            axes.plot(*zip(*line, strict=True), color=f"C{arms.index(arm) % 10}", linewidth=1, label=label)
        axes.set(
            title=f"load {place[1]:g}, inferences of {place[0]:g} ms", xscale="log", yscale="log", xlabel="latency, ms"
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("share of queries that take longer")
    drawn.savefig(file, dpi=110)
    pyplot.close(drawn)
