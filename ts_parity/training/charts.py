"""Plots as SVG inside a page: the page's colours, light and dark, its fonts, no script.

Sizes are in units of the drawing, which is about as wide as a phone, so that its letters can be read there too. Knows
numbers and marks. Knows nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ts_parity.pages import text

WIDTH, HEIGHT = 420.0, 284.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 28.0, 44.0
_TICKS = 5
_FORMS = 5
"""Of marks and of lines."""
_ROOM = 0.06
"""Of an axis, beyond what lies on it."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One series: `label` names it in the legend, `colour` is one of the page's, `form` keeps those of a colour apart.

    points: (x, y), with `ends` from low to high of each y where they are known. `line`: joined, and not marked.
    """

    label: str
    colour: str
    points: Sequence[Pair]
    form: int = 0
    ends: Sequence[Pair | None] = ()
    line: bool = False


@dataclass(frozen=True)
class Chart:
    """`told`: the text for screen readers. `across`, `up`: the axes. `limit`: a level, and its words."""

    told: str
    across: str
    up: str
    marks: Sequence[Series]
    limit: tuple[float, str] | None = None
    zero: bool = True
    """Both axes begin at 0 where all lies above it."""
    bounds: Pair = (-math.inf, math.inf)
    """Of the axis that goes up, whatever else there is to show."""
    logarithmic: bool = False
    """Both axes; all that is shown lies above 0."""

    def svg(self) -> str:
        """With its legend."""
        across, up = self._scale(0), self._scale(1)
        drawn = [_grid(across, up), _names(self.across, self.up)]
        if self.limit is not None and up.low <= self.limit[0] <= up.high:
            drawn.append(_level(up.at(self.limit[0]), self.limit[1]))
        drawn += [_within("".join(_drawn(mark, across, up) for mark in self.marks))]
        size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{text(self.told)}">'
            f"{''.join(drawn)}</svg>\n{_legend(self.marks)}"
        )

    def _scale(self, axis: int) -> _Scale:
        values = [point[axis] for mark in self.marks for point in mark.points]
        if axis == 1:
            values += [end for mark in self.marks for ends in mark.ends if ends for end in ends]
        low, high = min(values), max(values)
        start, end = (LEFT, WIDTH - RIGHT) if axis == 0 else (HEIGHT - BOTTOM, TOP)
        if self.logarithmic:
            return _LogScale(low, max(high, 2 * low), start, end)
        if self.zero:
            low, high = min(0.0, low), max(0.0, high)
        room = _ROOM * (high - low or abs(high) or 1.0)
        low, high = (low if low == 0.0 else low - room), high + room
        if axis == 1:
            low, high = max(low, self.bounds[0]), min(high, self.bounds[1])
        return _Scale(low, high, start, end)


@dataclass(frozen=True)
class _Scale:
    """Values from low to high lie from start to end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / _TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * nice for nice in (1, 2, 2.5, 5, 10) if unit * nice >= rough)
        return [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


class _LogScale(_Scale):
    """On a logarithmic axis, with ticks at powers of ten, or at 1, 2 and 5 of each where it has few of them."""

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 1000 else (1,)
        every = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in every if self.low <= tick <= self.high]


def _grid(across: _Scale, up: _Scale) -> str:
    left, right, bottom = across.start, across.end, up.start
    lines = []
    for tick in up.ticks():
        y = up.at(tick)
        lines.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in across.ticks():
        x = across.at(tick)
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{up.end:.1f}"/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_number(tick)}</text>')
    return "".join(lines)


def _names(across: str, up: str) -> str:
    """The vertical axis has its name above it: beside it, long numbers would be in the way."""
    return (
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6:.1f}" text-anchor="middle">'
        f'{text(across)}</text><text class="name" x="4" y="13">{text(up)}</text>'
    )


def _level(y: float, words: str) -> str:
    """Named on the left: what adds little work is rare, what adds much is not."""
    return (
        f'<line class="level" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="soft" x="{LEFT + 4:g}" y="{y - 4:.1f}">{text(words)}</text>'
    )


def _within(drawn: str) -> str:
    """Clipped to the axes, but for dots on an edge."""
    left, top, width, height = LEFT - 6, TOP - 6, WIDTH - LEFT - RIGHT + 12, HEIGHT - TOP - BOTTOM + 6
    at = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
    return f'<svg aria-hidden="true" {at} viewBox="{left:g} {top:g} {width:g} {height:g}">{drawn}</svg>'


def _drawn(mark: Series, across: _Scale, up: _Scale) -> str:
    at = [(across.at(x), up.at(y)) for x, y in mark.points]
    if mark.line:
        lows = [(x, up.at(ends[0])) for (x, _), ends in zip(at, mark.ends, strict=False) if ends]
        highs = [(x, up.at(ends[1])) for (x, _), ends in zip(at, mark.ends, strict=False) if ends]
        band = f'<path class="band {mark.colour}" d="{_path([*lows, *reversed(highs)])}Z"/>' if lows else ""
        return f'{band}<path class="line {mark.colour} form{mark.form % _FORMS}" d="{_path(at)}"/>'
    drawn = []
    for place, (x, y) in enumerate(at):
        ends = mark.ends[place] if place < len(mark.ends) else None
        if ends:
            low, high = up.at(ends[0]), up.at(ends[1])
            d = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
            drawn.append(f'<path class="ends {mark.colour}" d="{d}"/>')
        drawn.append(f'<path class="dot {mark.colour}" d="{_form(mark.form, x, y)}"/>')
    return "".join(drawn)


def _path(points: Sequence[Pair]) -> str:
    return "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))


def _form(form: int, x: float, y: float) -> str:
    """A circle, a square, a triangle, a diamond or a cross."""
    return (
        f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
        f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9Z",
        f"M{x:.1f} {y - 6:.1f}l5.5 10h-11Z",
        f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z",
        f"M{x - 2:.1f} {y - 6:.1f}h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
    )[form % _FORMS]


def _legend(marks: Sequence[Series]) -> str:
    """Which mark is which; a page's letters are larger than a drawing's on a wide screen, so it stands below."""
    if len(marks) == 1 and not marks[0].label:
        return ""
    items = []
    for mark in marks:
        line = f'<path class="line {mark.colour} form{mark.form % _FORMS}" d="M1 8h26"/>'
        sign = line if mark.line else f'<path class="dot {mark.colour}" d="{_form(mark.form, 14, 8)}"/>'
        items.append(f'<li><svg viewBox="0 0 28 16" aria-hidden="true">{sign}</svg>{text(mark.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _number(value: float) -> str:
    return f"{value:.6g}"
