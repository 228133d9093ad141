"""`ts-parity top`: the status page in a terminal, from the same words and figures of `/status`.

Pure: a status in, lines out, at most as wide and as many as the screen. Knows how a terminal shows colours. Knows
nothing of how the status is had.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ts_parity.proxy.operations.overview import told_percentile
from ts_parity.proxy.serving.conditions import CONDITIONS, told_seconds
from ts_parity.tables import columns

BOLD: Final = "1"
SOFT: Final = "2"
_COLOURS: Final = {
    "serving": "32", "suspect": "33", "silent": "31", "ejected": "31", "down": "31",
    "in use": "32", "on trial": "33", "out": "31",
}  # fmt: skip
_NAME: Final = 9
"""Columns for the name of a row of bars."""
_BARS: Final = " ▁▂▃▄▅▆▇█"
_SOURCES: Final = {
    "deployed": "its own answer", "reconstructed": "rebuilt", "hedged": "second copy", "default": "default answer",
    "none": "no answer",
}  # fmt: skip
MOST_RACES: Final = 8


def screen(status: Mapping[str, Any], width: int, height: int, colour: bool) -> str:
    """What comes first matters most; what does not fit below is left out."""
    paint = _Paint(colour)
    recent = status["recent"]
    lines = [paint(line, BOLD) for line in _wrapped(f"{status['sentence']}.", width)]
    about = f"ts-parity {status['version']}, {status['state']}, up {told_seconds(status['uptime_s'])}"
    lines += [paint(about[:width], SOFT), ""]
    for advice in status["advice"]:
        lines += [paint(line, "31") for line in _wrapped(f"! {advice['problem']}", width)]
        lines += [f"  {line}" for line in _wrapped(advice["remedy"], width - 2)]
    lines += [""] if status["advice"] else []
    lines += [*_curves(recent, width, paint), ""]
    lines += [*_table(_machines(status), width, paint), ""]
    lines += [*_table(_models(status), width, paint), ""]
    lines += _races(status["late_queries"], width, paint)
    while lines and not lines[-1]:
        lines.pop()
    shown = lines if len(lines) <= height else [*lines[: height - 1], paint("… a taller window shows more", SOFT)]
    return "\n".join(shown)


class _Paint:
    """Colours, or none where nobody would see them."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False) or [""]


def _curves(recent: Mapping[str, Any], width: int, paint: _Paint) -> list[str]:
    """The last five minutes as two rows of bars on one scale, and the percentiles that can be told."""
    points = recent["timeline"][-max(10, min(len(recent["timeline"]), width - _NAME)) :]
    values = [value for point in points for value in (point["given_s"], point["unprotected_s"]) if value]
    if not values:
        return ["no queries in the last five minutes"]
    largest, told = max(values), told_percentile(recent["timeline_percentile"])
    lines = []
    for name, key, code in (("given", "given_s", "34"), ("without", "unprotected_s", "33")):
        bars = "".join(_bar(point[key], largest) for point in points)
        lines.append(f"{name:<{_NAME}}{paint(bars, code)}")
    told_pairs = [
        f"{told_percentile(float(share))} {told_seconds(given)}"
        + (f" ({told_seconds(without)} without)" if without is not None and without > given * 1.02 else "")
        for share, (given, without) in recent["percentiles"].items()
        if given is not None
    ]
    scale = f"{told} of each five seconds, the last five minutes; a full bar is {told_seconds(largest)}"
    return [*lines, *(paint(line, SOFT) for line in _wrapped(scale, width)), *_wrapped("; ".join(told_pairs), width)]


def _bar(value: float | None, largest: float) -> str:
    return " " if not value else _BARS[1 + min(7, int(8 * value / largest))]


def _machines(status: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("machine", "state", "places", "speed", "why")]
    machines = sorted(status["instances"], key=lambda one: -CONDITIONS.index(one["condition"]["state"]))
    for machine in machines:
        slowness = machine["slowness"]
        rows.append(
            (
                machine["name"],
                machine["condition"]["state"],
                f"{machine['in_flight']} of {machine['model_places']}",
                "" if slowness is None else f"{slowness:.2g} x",
                machine["condition"]["reason"],
            )
        )
    return rows


def _models(status: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("model", "protection", "queries/s", "median", "tail", "without", "rescued", "agreed", "waiting")
    ]
    for name, pool in status["pools"].items():
        recent, code = pool["recent"], pool["code"]
        findings, sources = recent["findings"], recent["sources"]
        compared = findings.get("agreed", 0) + findings.get("differed", 0)
        trust = (pool["trust"] or {}).get("state", "in use")
        median, given, without = recent["percentiles"]["0.5"][0], recent["given_s"], recent["unprotected_s"]
        rows.append(
            (
                name,
                f"{code['name']} k={code['k']} {trust}" if code else "none",
                f"{recent['rate']:.3g}",
                _seconds(median),
                "" if given is None else f"{told_percentile(recent['percentile'])} {told_seconds(given)}",
                _seconds(without),
                str(sum(number for source, number in sources.items() if source != "deployed")),
                f"{findings.get('agreed', 0)} of {compared}" if compared else "",
                str(pool["waiting"]),
            )
        )
    return rows


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else told_seconds(seconds)


def _table(rows: Sequence[tuple[str, ...]], width: int, paint: _Paint) -> list[str]:
    """Cut to the width. A state in the second column has its colour."""
    told = columns(rows)
    lines = [paint(told[0][:width], SOFT)]
    for row, line in zip(rows[1:], told[1:], strict=True):
        cut = line if len(line) <= width else f"{line[: width - 1]}…"
        state = next((state for state in _COLOURS if row[1] == state or row[1].endswith(f" {state}")), "")
        before, found, after = cut.partition(row[1])
        lines.append(f"{before}{paint(found, _COLOURS[state])}{after}" if state and found else cut)
    return lines


def _races(races: Sequence[Mapping[str, Any]], width: int, paint: _Paint) -> list[str]:
    """The newest late queries, a line each: who was asked when, and what came of it."""
    if not races:
        return []
    lines = [paint(line, SOFT) for line in _wrapped("late queries: what was asked, and from when to when", width)]
    for race in races[:MOST_RACES]:
        would_s = race["age_s"] if race["unprotected"] == "out" else race["unprotected_s"]
        saved_s = 0.0 if would_s is None else would_s - race["given_s"]
        over = "over " if race["unprotected"] in ("out", "never") else ""
        saved = f", {over}{told_seconds(saved_s)} saved" if saved_s > 0.05 * race["given_s"] else ""
        tasks = ", ".join(
            f"{task['kind']} {task['endpoint'].partition('/')[0]} "
            f"{told_seconds(task['sent_s'])} to {'…' if task['ended_s'] is None else told_seconds(task['ended_s'])}"
            for task in race["tasks"]
        )
        finding = f", {race['finding']}" if race["finding"] else ""
        source = _SOURCES.get(race["source"], race["source"])
        line = f"{race['pool']} {told_seconds(race['given_s'])} {source}{saved}{finding}: {tasks}"
        lines.append(line if len(line) <= width else f"{line[: width - 1]}…")
    return lines
