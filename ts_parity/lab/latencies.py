"""Numbers out of text: seconds out of a table, instants out of a trace.

Knows what may stand on a line; an error names the line. Knows nothing of what the times are for.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ts_parity.arguments import LARGEST
from ts_parity.errors import ConfigError
from ts_parity.lab.lines import read_lines, shown

_JSON = (".json", ".jsonl", ".ndjson")
_TABLE = (".csv", ".tsv")
_SHOWN = 60

Numbered = Iterator[tuple[int, str]]
"""The lines of a file that are not blank, each with its number."""


def read_instants(file: Path) -> list[float]:
    """Of arrivals, one a line, in ascending order. Raise ConfigError, with the line, for what is none."""
    found = []
    for number, line in numbered(file, "--trace"):
        instant = float(line) if _is_number(line) else math.nan
        if not (0 <= instant <= LARGEST):
            raise ConfigError(
                f"--trace {shown(file)}, line {number} must be a number of at least 0, not {_quoted(line.strip())}"
            )
        found.append(instant)
    if not found:
        raise ConfigError(f"--trace {shown(file)} holds no instants")
    return sorted(found)


def rate_of(instants: Sequence[float], what: str = "--trace") -> float:
    """Per unit of their time. Raise ConfigError, which says `what` they are from."""
    span = instants[-1] - instants[0]
    if span <= 0:
        raise ConfigError(f"{what} holds no two different instants, so it has no rate")
    return (len(instants) - 1) / span


def numbered(file: Path, what: str) -> Numbered:
    """Raise ConfigError, saying that `what` cannot be read."""
    return ((number, line) for number, line in enumerate(read_lines(file, what), 1) if line.strip())


def is_table(file: Path, first: str) -> bool:
    """By its name, or, where that does not tell, by what stands on its first line, whose beginning may be cut."""
    ends = [suffix.lower() for suffix in file.suffixes if suffix != ".gz"][-1:]
    return (
        ends[0] in _TABLE
        if ends and ends[0] in _JSON + _TABLE
        else not (first.lstrip().startswith("{") or first.rstrip().endswith("}"))
    )


def last_cells(lines: Numbered, file: Path) -> Iterator[tuple[int, Any]]:
    """The last column of a CSV, whose first row, if it has no number, is a head."""
    begun: list[int] = []
    """Numbers of the lines of the present row: a cell in quotes may have several."""

    def told() -> Iterator[str]:
        for number, line in lines:
            begun.append(number)
            yield line

    texts = told()
    first = next(texts, "")
    rows = csv.reader(chain([first], texts), delimiter=next((mark for mark in ";\t" if mark in first), ","))
    head = True
    try:
        for row in rows:
            if any(cell.strip() for cell in row) and not (head and not any(map(_is_number, row))):
                yield begun[0], row[-1]
            head = False
            begun.clear()
    except csv.Error as error:
        raise ConfigError(f"line {begun[0]} of {shown(file)} is no row of a CSV: {error}") from None


def seconds(value: Any, number: int, file: Path) -> float:
    """Raise ConfigError if it is not a positive, finite number of them."""
    found = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool) and _is_number(value):
        found = float(value)
    if not (0 < found <= LARGEST):
        raise ConfigError(
            f"line {number} of {shown(file)} is not a positive, finite number of seconds: {_quoted(value)}"
        )
    return found


def _quoted(value: Any) -> str:
    """Short: it stands in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _is_number(text: str | int | float) -> bool:
    """`0213` is none here: what is left of a decimal comma where commas divide columns."""
    try:
        float(text)
    except (ValueError, OverflowError):
        return False
    return not (isinstance(text, str) and re.match(r"\s*0\d", text))
