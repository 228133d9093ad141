"""The report as one HTML file that needs nothing else: plots, the table, the sentence.

Knows the report's keys and matplotlib. Computes nothing that is not in the report.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        figures.append(("Overall accuracy against the share of rebuilt answers", _svg(lambda a: _overall(a, scored))))
        figures.append(("Rebuilt answers against k", _svg(lambda a: _against_k(a, scored))))
    priced = [c for c in scored if extra_work(c) is not None]
    if priced:
        figures.append(("The frontier: what a group costs, and what its rebuilt answers are worth", _svg(
            lambda a: _frontier(a, priced))))  # fmt: skip
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="say">{html.escape(report["recommendation"])}</p>']
    body += [f"<figure><figcaption>{html.escape(name)}</figcaption>{svg}</figure>" for name, svg in figures]
    body += [_table(candidates), _notes(report)]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _value(candidate: Candidate) -> float:
    return float(candidate["A_d"] if "A_d" in candidate else candidate["agreement"])


def _what(candidates: Sequence[Candidate]) -> str:
    return "A_d, accuracy of rebuilt answers" if "A_d" in candidates[0] else "agreement with the deployed model"


def _label(candidate: Candidate) -> str:
    return f"{candidate['code']} k={candidate['k']}" + (f" r={candidate['r']}" if candidate["r"] > 1 else "")


def _overall(axes: Any, candidates: Sequence[Candidate]) -> None:
    first = candidates[0]
    available = float(first.get("A_a", 1.0))
    for c in candidates:
        style = {2: "-", 3: "--", 4: ":"}.get(c["k"], "-.")
        axes.plot(
            [100 * f for f in F], [100 * ((1 - f) * available + f * _value(c)) for f in F], style,
            color=COLOURS[c["code"]], label=_label(c),
        )  # fmt: skip
    if "A_default" in first:
        default = float(first["A_default"])
        axes.plot(
            [100 * f for f in F], [100 * ((1 - f) * available + f * default) for f in F], color="#888888",
            label="a default answer",
        )  # fmt: skip
        lowest = min(0.8 * available + 0.2 * _value(c) for c in candidates)
        axes.set_ylim(bottom=100 * (lowest - 0.5 * (available - lowest) - 0.005))
    axes.set_xlabel("f, share of answers that are rebuilt (%)")
    axes.set_ylabel("A_o (%)" if "A_d" in first else "overall agreement (%)")
    axes.legend(fontsize=8)


def _against_k(axes: Any, candidates: Sequence[Candidate]) -> None:
    for code in dict.fromkeys(c["code"] for c in candidates):
        mine = sorted((c for c in candidates if c["code"] == code), key=lambda c: int(c["k"]))
        spread = [100 * float(c.get("A_d_spread", c.get("agreement_spread", 0.0))) for c in mine]
        axes.errorbar(
            [c["k"] for c in mine], [100 * _value(c) for c in mine], yerr=spread, marker="o", capsize=3,
            color=COLOURS[code], label=code,
        )  # fmt: skip
    axes.set_xticks(sorted({c["k"] for c in candidates}))
    axes.set_xlabel("k, queries to a coding group")
    axes.set_ylabel(f"{_what(candidates)} (%)")
    axes.legend(fontsize=8)


def _frontier(axes: Any, candidates: Sequence[Candidate]) -> None:
    for c in candidates:
        axes.scatter(
            c["cost"], 100 * _value(c), color=COLOURS[c["code"]], marker=MARKERS.get(c["k"], "x"), s=40, label=_label(c)
        )
    axes.set_xlabel("T(group) / T(1), cost of a group in deployed inferences")
    axes.set_ylabel(f"{_what(candidates)} (%)")
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
    columns: list[tuple[str, Callable[[Candidate], str]]] = [
        ("code", lambda c: str(c["code"])),
        ("k", lambda c: str(c["k"])),
        ("r", lambda c: str(c["r"])),
        ("architecture", lambda c: str(c["architecture"])),
        ("A_a", lambda c: _percent(c.get("A_a"))),
        ("A_d", lambda c: _percent(c.get("A_d"), c.get("A_d_spread"))),
        ("loss", lambda c: f"{100 * loss(c):.2f}"),
        ("agreement", lambda c: _percent(c["agreement"], c.get("agreement_spread"))),
        ("cost of a group", lambda c: "" if c.get("cost") is None else f"{c['cost']:.2f}"),
        ("extra work", lambda c: "" if extra_work(c) is None else f"{extra_work(c):.0%}"),
        ("seeds", lambda c: str(c["seeds"])),
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    rows = ["".join(f"<td>{html.escape(cell(c))}</td>" for _, cell in columns) for c in candidates]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _percent(value: Any, spread: Any = None) -> str:
    if value is None:
        return ""
    return f"{100 * float(value):.2f} %" + (f" ± {100 * float(spread):.2f}" if spread else "")


def _notes(report: Mapping[str, Any]) -> str:
    told = [f"Scored on {report['scored_on']}, {report['scored_groups']} groups."] if "scored_on" in report else []
    told.append(f"Machine: {report['machine']}, {report['device']}; torch {report['torch']}; seed {report['seed']}.")
    told.append(
        "A_a: accuracy of the deployed model's own answers; A_d: of rebuilt ones, every slot erased once; loss: points "
        "lost on a rebuilt answer; cost: the time of a group's protection in deployed inferences on this device, "
        "preprocessing left out; extra work: per query."
    )
    told += [*report.get("warnings", []), *report.get("refused", [])]
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in told)


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
