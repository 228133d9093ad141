"""The report as one HTML file that needs nothing else: plots, the table, the sentence.

Knows the report's keys and matplotlib. Computes nothing that is not in the report.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ts_parity.training.figures import FIGURES, Figure
from ts_parity.training.meaning import Meaning
from ts_parity.training.recommend import extra_work, loss

COLOURS = {"sum": "#c44536", "concat": "#e0a030", "student": "#2a6f97", "exact": "#3a7d44"}
MARKERS = {1: "o", 2: "s", 3: "^", 4: "D"}
F = [i / 100 for i in range(21)]

Candidate = Mapping[str, Any]


def page(report: Mapping[str, Any]) -> str:
    candidates: Sequence[Candidate] = report["candidates"]
    scored = [c for c in candidates if "error" in c]
    deployed = report["deployed"]
    title = f"What a rebuilt answer of {deployed['model']} {deployed['version']} is worth"
    figures = []
    if scored:
        name = f"{_overall_name(scored[0])} against the share of rebuilt answers"
        figures.append((name, _svg(lambda a: _overall(a, scored))))
    if len(scored) > 1:  # a single dot shows nothing that the table does not say
        figures.append(("Rebuilt answers against k", _svg(lambda a: _against_k(a, scored))))
    priced = [c for c in scored if extra_work(c) is not None]
    if len(priced) > 1:
        figures.append(("The frontier: what a group costs, and what its rebuilt answers are worth", _svg(
            lambda a: _frontier(a, priced))))  # fmt: skip
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="say">{html.escape(report["recommendation"])}</p>']
    body += [f"<figure><figcaption>{html.escape(name)}</figcaption>{svg}</figure>" for name, svg in figures]
    body += [_table(candidates), _notes(report)]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _figure(candidate: Candidate) -> Figure:
    return FIGURES[candidate["metric"]]


def _scale(candidate: Candidate) -> float:
    """Shares are shown in percent, errors in their unit."""
    return 1.0 if _figure(candidate).error else 100.0


def _labelled(candidate: Candidate) -> bool:
    return "A_d" in candidate or "E_d" in candidate


def _value(candidate: Candidate) -> float:
    """What rebuilt answers score: against labels where there are some."""
    return float(next(candidate[name] for name in ("A_d", "E_d", "score") if name in candidate))


def _what(candidates: Sequence[Candidate]) -> str:
    figure = _figure(candidates[0])
    name = figure.true if _labelled(candidates[0]) else figure.own
    return f"{name} of rebuilt answers" + ("" if figure.error else " (%)")


def _overall_name(candidate: Candidate) -> str:
    figure = _figure(candidate)
    return f"Overall {figure.true if _labelled(candidate) else figure.own}"


def _label(candidate: Candidate) -> str:
    return f"{candidate['code']} k={candidate['k']}" + (f" r={candidate['r']}" if candidate["r"] > 1 else "")


def _overall(axes: Any, candidates: Sequence[Candidate]) -> None:
    first = candidates[0]
    scale, error = _scale(first), _figure(first).error
    available = float(first.get("E_a", 0.0) if error else first.get("A_a", 1.0))

    def mixed(other: float) -> list[float]:
        return [scale * Meaning(metric=first["metric"]).mixed(available, other, f) for f in F]

    for c in candidates:
        style = {2: "-", 3: "--", 4: ":"}.get(c["k"], "-.")
        axes.plot([100 * f for f in F], mixed(_value(c)), style, color=COLOURS[c["code"]], label=_label(c))
    default = first.get("E_default" if error else "A_default")
    if default is not None:
        axes.plot([100 * f for f in F], mixed(float(default)), color="#888888", label="a default answer")
        furthest = max((mixed(_value(c))[-1] for c in candidates), key=lambda value: abs(value - scale * available))
        room = 1.5 * (furthest - scale * available) + (0.02 if error else -0.005) * scale * max(available, 0.1)
        axes.set_ylim(**{"top" if error else "bottom": scale * available + room})
    axes.set_xlabel("f, share of answers that are rebuilt (%)")
    axes.set_ylabel(f"{_overall_name(first)}" + ("" if error else " (%)"))
    axes.legend(fontsize=8)


def _against_k(axes: Any, candidates: Sequence[Candidate]) -> None:
    scale = _scale(candidates[0])
    for code in dict.fromkeys(c["code"] for c in candidates):
        mine = sorted((c for c in candidates if c["code"] == code), key=lambda c: int(c["k"]))
        spread = [
            scale * float(next((c[n] for n in ("A_d_spread", "E_d_spread", "score_spread") if n in c), 0.0))
            for c in mine
        ]
        axes.errorbar(
            [c["k"] for c in mine], [scale * _value(c) for c in mine], yerr=spread, marker="o", capsize=3,
            color=COLOURS[code], label=code,
        )  # fmt: skip
    axes.set_xticks(sorted({c["k"] for c in candidates}))
    axes.set_xlabel("k, queries to a coding group")
    axes.set_ylabel(_what(candidates))
    axes.legend(fontsize=8)


def _frontier(axes: Any, candidates: Sequence[Candidate]) -> None:
    scale = _scale(candidates[0])
    for c in candidates:
        marker = MARKERS.get(c["k"], "x")
        axes.scatter(c["cost"], scale * _value(c), color=COLOURS[c["code"]], marker=marker, s=40, label=_label(c))
    axes.set_xlabel("T(group) / T(1), cost of a group in deployed inferences")
    axes.set_ylabel(_what(candidates))
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)


def _svg(draw: Callable[[Any], None]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "ts_parity", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        draw(axes)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    text = written.getvalue()
    return text[text.index("<svg") :]


def _table(candidates: Sequence[Candidate]) -> str:
    figure = FIGURES[candidates[0].get("metric", "accuracy")]
    own, rebuilt = ("E_a", "E_d") if figure.error else ("A_a", "A_d")

    def told(name: str) -> Callable[[Candidate], str]:
        return lambda c: figure.told(c[name], c.get(f"{name}_spread")) if name in c else ""

    columns: list[tuple[str, Callable[[Candidate], str]]] = [
        ("code", lambda c: str(c["code"])),
        ("k", lambda c: str(c["k"])),
        ("r", lambda c: str(c["r"])),
        ("architecture", lambda c: str(c["architecture"])),
        (own, told(own)),
        (rebuilt, told(rebuilt)),
        ("loss", lambda c: f"{100 * loss(c):.2f}"),
        (figure.own, told("score")),
        ("cost of a group", lambda c: "" if c.get("cost") is None else f"{c['cost']:.2f}"),
        ("extra work", lambda c: "" if extra_work(c) is None else f"{extra_work(c):.0%}"),
        ("seeds", lambda c: str(c["seeds"])),
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    rows = ["".join(f"<td>{html.escape(cell(c))}</td>" for _, cell in columns) for c in candidates]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _notes(report: Mapping[str, Any]) -> str:
    told = [f"Scored on {report['scored_on']}, {report['scored_groups']} groups."] if "scored_on" in report else []
    told.append(f"Machine: {report['machine']}, {report['device']}; torch {report['torch']}; seed {report['seed']}.")
    if "outputs" in report:
        figure = FIGURES[report["metric"]]
        told.append(f"The outputs are taken for {report['outputs']['kind']}: {report['outputs']['why']}.")
        told.append(_legend(figure, report["candidates"][0]))
    told += [
        f"{c['code']} with k={c['k']}, which was not asked for, would lose nothing at a cost of {c['cost']:.2f}."
        for c in report.get("beside", [])
    ]
    told += [*report.get("warnings", []), *report.get("refused", [])]
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in told)


def _legend(figure: Figure, candidate: Candidate) -> str:
    letter, truth = "E" if figure.error else "A", figure.true
    known = f"{letter}_a: {truth} of the deployed model's own answers, {letter}_d: of rebuilt ones; " if _labelled(
        candidate) else ""  # fmt: skip
    unit = f"in the outputs' unit, and their spread is {candidate['spread']:.4g}; " if figure.error else ""
    return (
        f"{known}{figure.own}: of rebuilt answers against the deployed model's own, every slot erased once; {unit}"
        f"loss: of a rebuilt answer, in points of {candidate['loss_of']}; cost: the time of a group's protection in "
        "deployed inferences on this device, preprocessing left out; extra work: per query."
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width"/>
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.say {{ font-size: 1.15rem; border-left: 4px solid #2a6f97; padding-left: .8rem; }}
figure {{ margin: 2rem 0; }} figcaption {{ font-weight: 600; }} svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }}
td {{ white-space: nowrap; }}
.note {{ color: #666; font-size: .9rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
