"""One record per query, the only thing reports are made from.

Knows the fields and how they are kept as JSON lines. Knows nothing of how a query was sent or what a summary says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ts_parity.errors import ConfigError

ERROR = "error"
"""An answer came and was no prediction, or the connection broke."""
LOST = "lost"
"""No answer at all by the client's own, generous, time limit."""
ANSWERED = ("deployed", "reconstructed", "hedged", "default")
OUTCOMES = (*ANSWERED, ERROR, LOST)


@dataclass(frozen=True)
class QueryRecord:
    """What became of one query. Instants count from the start of the load; the latency from when the query was due."""

    seq: int
    due_at: float
    sent_at: float
    latency_s: float | None
    outcome: str
    status: int | None = None
    predicted: str | int | None = None
    label: str | int | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {self.outcome!r}")

    @property
    def answered(self) -> bool:
        return self.outcome in ANSWERED


def write_records(path: Path, records: Iterable[QueryRecord]) -> None:
    """One JSON object a line."""
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record)) + "\n")


def read_records(path: Path) -> Iterator[QueryRecord]:
    """Raise ConfigError naming the file and line of what is not a record. Fields of later versions are ignored."""
    known = {field.name for field in fields(QueryRecord)}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield QueryRecord(**{name: value for name, value in json.loads(line).items() if name in known})
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path}, line {number}: not a query record: {error}") from None
