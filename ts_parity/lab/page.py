"""A plan as people read it: a table for the terminal, and one HTML page that needs nothing else.

Knows the plan's keys. Decides nothing, and computes nothing but widths.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ts_parity.lab.compare import DOUBTFUL, World, doubts

ENDPOINT = "--endpoint http://HOST:8080"
"""What no plan knows: where the instances are."""
MEANING = {
    "none": "one queue; each query goes to the machine with the fewest outstanding",
    "hedge": "a query that is late gets a second copy on another machine",
    "equal": "as none, on more machines",
    "ours": "a backup stands beside the model on every machine; it and second copies are for late queries only",
    "coded": "the paper's: machines of their own serve a protection for every group of k queries; second copies too",
}
_EACH = "One --endpoint for each machine."
_SHOWN = ("p50", "p99", "p999")


def named(row: Mapping[str, Any]) -> str:
    code = f" with {row['code']} k={row['k']}" if row["code"] else ""
    more = f" on {row['extra_machines']} machines more" if row["extra_machines"] else ""
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
    """The command line that does what a row of the plan says."""
    return f"ts-parity serve {ENDPOINT} {shlex.join(row['serve'])}"


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
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def plan_text(plan: Mapping[str, Any], world: World) -> str:
    """The table, what to do, and what must be known beside it."""
    row = plan["rows"][plan["recommended"]]
    lines = [plan_table(plan, world), "", plan["sentence"]]
    if plan["reached"]:
        lines += ["", f"{row['set_up']} {_EACH}", "", command(row)]
    told = [
        row["work_told"],
        doubts(plan["rows"], _SHOWN),
        *(f"Not compared: {what}." for what in plan.get("left_out", ())),
    ]
    return "\n".join([*lines, *(["", *filter(None, told)] if any(told) else [])])


def plan_page(plan: Mapping[str, Any], world: World) -> str:
    """The plan as one HTML file that needs nothing else."""
    rows: Sequence[Mapping[str, Any]] = plan["rows"]
    row = rows[plan["recommended"]]
    parts = [f'<h1>What to run</h1>\n<p class="say">{_text(plan["sentence"])}</p>']
    if plan["reached"]:
        parts.append(f"<h2>To run it</h2>\n<p>{_text(row['set_up'])} {_EACH}</p>\n<pre>{_text(command(row))}</pre>")
    parts.append(f"<h2>What was compared</h2>\n{_rows(plan, world)}")
    notes = [
        _legend(rows, world),
        doubts(rows, _SHOWN),
        *(f"Not compared: {what}." for what in plan.get("left_out", ())),
    ]
    parts += [f'<p class="note">{_text(note)}</p>' for note in notes if note]
    policies = dict.fromkeys(each["policy"] for each in rows)
    parts.append(_pairs((name, MEANING[name]) for name in policies))
    worked = [(named(each), each["work_told"]) for each in rows if each["work_told"]]
    if worked:
        parts.append(f"<h2>Where the work comes from</h2>\n{_pairs(worked)}")
    parts.append(f"<h2>What it was made from</h2>\n{_pairs(plan.get('inputs', {}).items())}")
    parts.append(f"<h2>What it takes for true</h2>\n{_list(plan['assumed'])}")
    parts.append(f"<h2>What it cannot have seen</h2>\n{_list(plan['unseen'])}")
    return _PAGE.format(body="\n".join(parts))


_COLUMNS = ("what", "machines", "p50", "p99", "p99.9", "", "work", "rebuilt", "points lost", "not allowed")


def _rows(plan: Mapping[str, Any], world: World) -> str:
    """A table; on a narrow screen each of its rows is a card, with the heads beside the cells."""
    largest = max((row["p999_high"] or 0.0 for row in plan["rows"]), default=0.0) or 1.0
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in _COLUMNS) + "</tr>"]
    for index, row in enumerate(plan["rows"]):
        kind = "take" if index == plan["recommended"] and plan["reached"] else "no" if row["broken"] else "may"
        cells = [
            _text(named(row)), str(row["workers"]), *(_time_cell(row, name, world) for name in _SHOWN),
            _bar(row, largest, kind), f"{row['work']:.3f}", f"{row['reconstructed']:.2%}", f"{100 * row['loss']:.3f}",
            _text("; ".join(row["broken"])),
        ]  # fmt: skip
        line = "".join(
            f'<td data-head="{head}">{cell}</td>' if cell else '<td class="none"></td>'
            for head, cell in zip(_COLUMNS, cells, strict=True)
        )
        lines.append(f'<tr class="{kind}">{line}</tr>')
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _time_cell(row: Mapping[str, Any], name: str, world: World) -> str:
    told = _mark(row, name) + time_told(row[name], world)
    if row["seeds"] == 1 or row[name] is None:
        return f"<span>{_text(told)}</span>"
    return f'<span>{_text(told)} <span class="between">{_text(_between(row, name, world))}</span></span>'


def _bar(row: Mapping[str, Any], largest: float, kind: str) -> str:
    """As long as the mean p99.9, with a line from the lowest seed to the highest."""
    if row["p999"] is None:
        return ""
    mean, low, high = (100 * row[name] / largest for name in ("p999", "p999_low", "p999_high"))
    return (
        f'<div class="track"><div class="bar {kind}" style="width: {mean:.1f}%"></div>'
        f'<div class="range" style="left: {low:.1f}%; width: {high - low:.1f}%"></div></div>'
    )


def _legend(rows: Sequence[Mapping[str, Any]], world: World) -> str:
    first = rows[0]
    told = (
        f"means over {first['seeds']} seeds, and the lowest and highest of them"
        if first["seeds"] > 1
        else "of one seed, so nothing is known of chance: --seeds 3 would tell"
    )
    lost = " and of ".join(dict.fromkeys(row["loss_of"] for row in rows if row["code"]))
    return (
        f"Latencies: {told}; the bars are p99.9. Machines: all that are used. Work: per query, in deployed inferences; "
        f"what a slow machine does counts for as long as it takes. Points lost: {f'of {lost}, ' if lost else ''}over "
        f"all answers at the share that is rebuilt. Load {world.load:.2f} of {world.workers} machines."
    )


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(told)}</dd>" for name, told in pairs) + "</dl>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _text(text: str) -> str:
    return html.escape(text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>What to run</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ margin: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
p, li, dl {{ max-width: 60rem; }}
.say {{ font-size: 1.15rem; border-left: 4px solid #2a6f97; padding-left: .8rem; }}
pre {{ background: #f3f3f3; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }}
th, td {{ padding: .4rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }}
td {{ white-space: nowrap; }} td:nth-child(6) {{ width: 25%; min-width: 5rem; vertical-align: middle; }}
td:first-child, td:last-child {{ white-space: normal; }} td:first-child {{ min-width: 10rem; }}
.between {{ display: block; color: #666; font-size: .85rem; }}
.track {{ position: relative; height: .9rem; }}
.bar {{ height: 100%; background: #9bb8c9; }}
.range {{ position: absolute; top: calc(50% - 1px); height: 2px; background: #222; }}
tr.take {{ font-weight: 600; }} .bar.take {{ background: #2a6f97; }} .take .between {{ font-weight: 400; }}
tr.no {{ color: #767676; }} .bar.no {{ background: #ddd; }}
.note {{ color: #666; font-size: .9rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; }}
dt {{ color: #666; }} dd {{ margin: 0; overflow-wrap: anywhere; }} ul {{ margin: 0; padding-left: 1.2rem; }}
@media (max-width: 64rem) {{
  tr:first-child, td.none {{ display: none; }}
  table, tbody, tr, td {{ display: block; width: auto; }}
  tr {{ border: 1px solid #ddd; margin: 0 0 .8rem; padding: .5rem .7rem; }} tr.take {{ border-color: #2a6f97; }}
  td {{ border: 0; padding: .1rem 0; display: flex; justify-content: space-between; gap: 1rem; white-space: normal; }}
  td:nth-child(6), td:first-child {{ width: auto; min-width: 0; }} td:nth-child(6) .track {{ flex: 1; }}
  td::before {{ content: attr(data-head); color: #666; font-weight: 400; }}
  td:first-child::before, td:nth-child(6)::before {{ content: none; }}
  td:first-child {{ font-size: 1.05rem; font-weight: 600; }}
  .between {{ display: inline; }}
  dl {{ display: block; }} dd {{ margin: 0 0 .5rem; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""
