"""Pages that the commands write: one HTML file each that needs nothing else, no network, no script, no other file.

One look for all of them: readable on a telephone, in the dark and on paper. Whatever goes through `text` is shown as it
is and can do nothing. Knows HTML. Knows nothing of what the pages say.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What no page may hold, or what would turn the rest of a line around."""
_COMMAND = re.compile(r"`(?P<typed>[^`]+)`|(?<!\S)(?P<flag>--[a-z][a-z-]*(?: \d+(?:\.\d+)?)?)")


def text(value: object, most: int | None = None) -> str:
    """As HTML that shows just this. `most`: characters, beyond which it is cut."""
    told = str(value)
    told = told if most is None or len(told) <= most else f"{told[: most - 1]}…"
    return html.escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", told))


def page(title: str, body: Iterable[str], foot: str = "") -> str:
    """A whole page, under its title. `title` is plain text, `body` and `foot` are HTML."""
    heading = f"<h1>{text(title, 200)}</h1>"
    return _PAGE.format(title=text(title), style=_STYLE, body="\n".join([heading, *body]), foot=foot)


def lead(told: str) -> str:
    """The sentence that says most. `told` is HTML."""
    return f'<p class="say">{told}</p>'


def note(words: str) -> str:
    """Small print, from plain text."""
    return f'<p class="note">{text(words)}</p>'


def between(words: str, most: int | None = None) -> str:
    """Small print beside a figure, such as its interval, from plain text, cut to `most` characters."""
    return f' <span class="between">{text(words, most)}</span>'


def section(heading: str, *parts: str, kind: str = "") -> str:
    """Nothing without parts."""
    filled = [part for part in parts if part]
    classed = f' class="{kind}"' if kind else ""
    return f"<section{classed}>\n<h2>{text(heading)}</h2>\n" + "\n".join(filled) + "\n</section>" if filled else ""


@dataclass(frozen=True)
class TableCell:
    """Of a table. `shown` is HTML; an empty one is left out where rows are cards."""

    shown: str
    kind: str = ""


def table(
    caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[TableCell]]], small: bool = False
) -> str:
    """On a narrow screen each row is a card, with the heads beside its cells, or, in a `small` table, two lines.

    The first cell is the row's own head. A small table has five columns.

    rows: each with its class, which may be empty.
    """
    bars = ' class="bars"'  # bars have no word at their head; a narrow screen has no room for them
    lines = ["<tr>" + "".join(f'<th scope="col"{"" if head else bars}>{text(head)}</th>' for head in heads) + "</tr>"]
    for kind, cells in rows:
        first, *others = cells
        shown = "".join(_cell(head, cell) for head, cell in zip(heads[1:], others, strict=True))
        classed = f' class="{kind}"' if kind else ""
        lines.append(f'<tr{classed}><th scope="row"><span>{first.shown}</span></th>{shown}</tr>')
    look = "small" if small else "cards"
    return f'<table class="{look}">\n<caption>{text(caption)}</caption>\n' + "\n".join(lines) + "\n</table>"


def _cell(head: str, cell: TableCell) -> str:
    kind = cell.kind if cell.shown else "none"
    classed = f' class="{kind}"' if kind else ""
    return f'<td{classed} data-head="{text(head)}"><span>{cell.shown}</span></td>'


def bar(mean: float, low: float, high: float, largest: float, kind: str = "", least: float = 0.0) -> str:
    """From zero to the mean, with a line from the low end to the high one. Shown beside the same numbers as text.

    The track goes from `least`, at most zero, to `largest`. A line marks zero where bars may lie on both sides of it.
    """
    zero, start, end, at = (
        100 * (min(largest, max(least, value)) - least) / (largest - least) for value in (0.0, low, high, mean)
    )
    axis = f'<span class="zero" style="left: {zero:.1f}%"></span>' if least < 0 else ""
    return (
        f'<span class="track" aria-hidden="true">{axis}<span class="bar {kind}" '
        f'style="left: {min(zero, at):.1f}%; width: {abs(at - zero):.1f}%"></span>'
        f'<span class="range" style="left: {start:.1f}%; width: {max(0.0, end - start):.1f}%"></span></span>'
    )


def pairs(told: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of them, both plain text."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(what)}</dd>" for name, what in told) + "</dl>"


def listed(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def typed(command: str) -> str:
    """Commands to copy."""
    return f'<pre tabindex="0">{_whole_words(command)}</pre>'


def sentence(told: str) -> str:
    """What stands between backticks is a command, and so is a flag with its number."""
    shown, end = [], 0
    for found in _COMMAND.finditer(told):
        shown += [text(told[end : found.start()]), f"<code>{_whole_words(found['typed'] or found['flag'])}</code>"]
        end = found.end()
    return "".join([*shown, text(told[end:])])


def _whole_words(command: str) -> str:
    """Lines break between words only: flags are full of hyphens, at which a browser would break them."""
    return re.sub(r"\S+", lambda word: f"<span>{text(word[0])}</span>", command)


_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1f2328; --soft: #57606a; --line: #d4d9de; --panel: #f4f6f8; --accent: #2a6f97; --pale: #9bb8c9;
  --alarm: #9a5b00; --sum: #c44536; --concat: #a86b00; --student: #2a6f97; --exact: #3a7d44; --plain: #7a828a;
}
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --ink: #e3e6ea; --soft: #9da7b1; --line: #343b43; --panel: #1e2328; --accent: #79b8de;
  --pale: #3f6075; --alarm: #e3b261; --sum: #f0897b; --concat: #e5b04a; --student: #79b8de; --exact: #7fc98d;
  --plain: #8f99a3;
} }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; margin: 0; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
main, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; } main { padding-top: 2rem; }
footer { color: var(--soft); font-size: .85rem; padding-top: 2rem; padding-bottom: 3rem; }
h1 { font-size: clamp(1.45rem, 1rem + 2vw, 2.1rem); line-height: 1.2; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
section { margin: 2.6rem 0 0; }
p, li, dd { max-width: 46rem; } p { margin: .5rem 0; } ul, ol { margin: .5rem 0; padding-left: 1.3rem; }
.say { font-size: 1.15rem; border-left: 4px solid var(--accent); padding-left: .9rem; margin: 0 0 1rem; }
.note, .between { color: var(--soft); font-size: .9rem; }
.between { display: block; font-size: .85rem; font-weight: 400; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  margin: .4rem 0; font: .9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre span { display: inline-block; max-width: 100%; vertical-align: bottom; } code span { white-space: nowrap; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
a { color: var(--accent); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .95rem; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding: 0 0 .5rem; max-width: 46rem; }
th, td { padding: .45rem .7rem .45rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th[scope=row] { min-width: 9rem; font-weight: 500; } td { white-space: nowrap; }
th[scope=row], .cards td > span, dt { overflow-wrap: anywhere; }
th[scope=col] { color: var(--soft); font-size: .85rem; vertical-align: bottom; }
td.long { white-space: normal; } td.bars { width: 25%; min-width: 6rem; padding-top: .75rem; }
tr.take > * { font-weight: 600; } tr.no { color: var(--soft); }
td.bars > span { display: block; } .tag { font-size: .8rem; font-weight: 600; color: var(--accent); }
tr.no .tag { color: var(--alarm); }
.track { position: relative; display: block; height: .9rem; }
.bar { position: absolute; height: 100%; background: var(--pale); border-radius: 2px; }
.bar.take { background: var(--accent); } .bar.no { background: var(--line); }
.range { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--ink); }
.zero { position: absolute; top: -.2rem; bottom: -.2rem; width: 1px; background: var(--soft); }
table + dl, table + p, dl + table, pre + table { margin-top: 1rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .35rem 1.4rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.alarm h2 { color: var(--alarm); } .alarm ul { border-left: 4px solid var(--alarm); padding-left: 2rem; }
.tiles { margin-top: 1.6rem; } .tiles h2 { font-size: .95rem; color: var(--soft); }
.tiles dl { display: flex; flex-wrap: wrap; gap: 1rem; }
.tile { flex: 1 1 13rem; max-width: 22rem; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.tile dd { font-size: 1.7rem; line-height: 1.25; font-weight: 600; margin: 0; } .tile dt { font-size: .9rem; }
.steps li { margin: .9rem 0; } .steps pre { max-width: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; } figcaption p { margin: .2rem 0 .6rem; color: var(--soft); font-size: .9rem; }
figure > svg { width: 100%; max-width: 38rem; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } svg .name { fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .level { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .line { fill: none; stroke-width: 2; } svg .ends { fill: none; stroke-width: 1.5; }
svg .band { opacity: .16; stroke: none; } svg .dot { stroke: var(--paper); stroke-width: 1; }
svg .form1 { stroke-dasharray: 7 4; } svg .form2 { stroke-dasharray: 2 3; } svg .form3 { stroke-dasharray: 9 3 2 3; }
svg .form4 { stroke-dasharray: 12 4 2 4 2 4; }
.sum { fill: var(--sum); stroke: var(--sum); } .concat { fill: var(--concat); stroke: var(--concat); }
.student { fill: var(--student); stroke: var(--student); } .exact { fill: var(--exact); stroke: var(--exact); }
.plain { fill: var(--plain); stroke: var(--plain); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .3rem 0 0; padding: 0;
  font-size: .9rem; }
.legend svg { width: 28px; height: 16px; vertical-align: -3px; margin-right: .35rem; }
.gallery { list-style: none; padding: 0; margin: 1rem 0 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.gallery > li { border: 1px solid var(--line); border-radius: 8px; padding: .8rem; min-width: 0; break-inside: avoid; }
.gallery h3 { font-size: .85rem; font-weight: 500; color: var(--soft); overflow-wrap: anywhere; }
.gallery .body { margin: 0 0 .7rem; } .gallery .body pre { margin: 0; max-height: 11rem; overflow: auto; }
.gallery dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem .8rem; }
.gallery dd { margin: 0; min-width: 0; }
.gallery img { display: block; max-width: 100%; height: auto; max-height: 14rem; width: auto; border-radius: 4px; }
.gallery img.tiny { width: 9rem; height: auto; image-rendering: pixelated; } .gallery audio { width: 100%; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media screen and (max-width: 48rem) {
  svg text { font-size: 15px; }
  .small, .small > tbody, .small caption { display: block; }
  .small tr { display: grid; grid-template-columns: 4rem 1fr 6.2rem 5.8rem; column-gap: .5rem; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  .small th, .small td { border: 0; padding: 0; } .small tr > :first-child { grid-column: 1 / -1; }
  .small td.bars { width: auto; min-width: 0; padding-top: .3rem; }
  dl { display: block; } dd { margin: 0 0 .6rem; } .tiles dl { display: flex; } .tile { max-width: none; }
}
@media screen and (max-width: 64rem) {
  table.cards, .cards > tbody, .cards tr, .cards caption { display: block; }
  .cards tr:first-child { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards tr { border: 1px solid var(--line); border-radius: 8px; margin: 0 0 .8rem; padding: .6rem .8rem; }
  .cards tr.take { border: 2px solid var(--accent); }
  .cards td, .cards th[scope=row] { display: flex; justify-content: space-between; gap: 1rem; border: 0;
    padding: .12rem 0; white-space: normal; text-align: right; width: auto; }
  .cards td::before { content: attr(data-head); color: var(--soft); font-weight: 400; text-align: left; flex: none; }
  .cards th[scope=row] { text-align: left; font-size: 1.05rem; font-weight: 600; }
  .cards td.long { display: block; text-align: left; } .cards td.long::before { display: block; }
  .cards td.none { display: none; } .cards td.bars::before { content: none; } .cards td.bars > span { flex: 1; }
  .cards .between { display: inline; }
}
@media screen and (max-width: 23rem) {
  svg text { font-size: 18px; } .small .bars { display: none; } .small tr { grid-template-columns: 1fr 1fr 1fr; }
}
@media print {
  body { font-size: 10.5pt; } main, footer { max-width: none; padding: 0; } section { margin-top: 1.4rem; }
  figure, pre, tr, li, .tile { break-inside: avoid; } h2, h3, caption, dt, tr:first-child { break-after: avoid; }
  pre { break-before: avoid; } .bar, .range, .zero { print-color-adjust: exact; }
  .gallery { display: block; } .gallery > li { display: inline-block; width: 31%; margin: 0 1.5% 1rem 0; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="referrer" content="no-referrer"/>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"/>
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>{foot}</footer>
</body>
</html>
"""
