"""Service times out of a latency log: a proxy's access log, the lab's records (both JSON lines), or a CSV.

Knows lines and what may stand on them; whatever may not is named with its line. Knows nothing of what the times are
for.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ts_parity.errors import ConfigError
from ts_parity.lab.records import ANSWERED


def read_latencies(file: Path) -> list[float]:
    """Seconds, each positive and finite, of all queries that were answered. A `.gz` is read as what it holds.

    Raise ConfigError, with the line, for what is no latency log.
    """
    table = file.name.removesuffix(".gz").endswith(".csv")
    found = []
    try:
        with _opened(file) as lines:
            for number, value in _last_cells(lines) if table else _logged(lines, file):
                found.append(_seconds(value, number, file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read latencies from {file}: {error}") from None
    if not found:
        raise ConfigError(f"{file} holds no latencies of answered queries")
    return found


def _opened(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return open(file, encoding="utf-8-sig", newline="")


def _last_cells(lines: TextIO) -> Iterator[tuple[int, Any]]:
    """The last column of a CSV, whose first row may be a head."""
    rows = csv.reader(lines)
    first = True
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if not (first and not _is_number(row[-1])):
            yield rows.line_num, row[-1]
        first = False


def _logged(lines: TextIO, file: Path) -> Iterator[tuple[int, Any]]:
    """The deployed model's own times of an access log, or the latencies of answered records."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"line {number} of {file} is not JSON, or is cut: {error}") from None
        if isinstance(entry, dict) and "service_s" in entry:
            if entry["service_s"] is not None:
                yield number, entry["service_s"]
        elif isinstance(entry, dict) and "outcome" in entry and "latency_s" in entry:
            if entry["outcome"] in ANSWERED and entry["latency_s"] is not None:
                yield number, entry["latency_s"]
        else:
            raise ConfigError(f"line {number} of {file} is neither a line of an access log nor a query record")


def _seconds(value: Any, number: int, file: Path) -> float:
    seconds = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool) and _is_number(value):
        seconds = float(value)
    if not (0 < seconds < math.inf):
        raise ConfigError(f"line {number} of {file} is not a positive, finite number of seconds: {value!r}")
    return seconds


def _is_number(text: str | int | float) -> bool:
    try:
        float(text)
    except (ValueError, OverflowError):
        return False
    return True
