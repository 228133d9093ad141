"""Training: from a user's archive and a folder of request bodies to protections one can register, and their price.

Importing this package is cheap; torch is imported when training runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainSettings:
    """What `ts-parity train` is asked to do. `out` is a new folder; `score` holds bodies no model has seen."""

    archive: Path
    inputs: Path
    out: Path
    code: str = "sum"
    k: int = 2
    r: int = 1
    labels: Path | None = None
    score: Path | None = None
    steps: int | None = None
    seed: int = 0
    device: str | None = None
    name: str | None = None
    secret: str | None = None
    force: bool = False
    progress: bool = True


def train(settings: TrainSettings) -> dict[str, Any]:
    """Make the protections. -> the report that is also written to `out`/report.json.

    Raise TrainingError, NotCodable, ArchiveError or CodeError, each saying what was wrong and what to do; then nothing
    is left in `out`.
    """
    from ts_parity.training.job import run

    return run(settings)


__all__ = ["TrainSettings", "train"]
