"""Training: from a user's archive and request bodies to protections one can register, and their price.

Importing this package is cheap; torch is imported when training runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_parity.errors import ConfigError
from ts_parity.output import check_free
from ts_parity.training.figures import FIGURES

METRICS = tuple(FIGURES)
"""How an answer is scored: by its best class, its five best, its set of labels, the overlap of its box, its direction,
or how far its numbers are off. See `semantics`."""
FORMATS = ("png", "npy", "raw", "json")
"""How a row of an .npz array becomes a request body."""
VARIATIONS = ("none", "shift", "flip", "mix")
FOLDERS = "folders"
"""Labels from folder names: a body's class is the place of its folder's name among all of them, sorted."""


@dataclass(frozen=True)
class TrainSettings:
    """The options of `ts-parity train`.

    `inputs` and `score` (bodies no model has seen) are folders, zips (FILE.zip/FOLDER), arrays (FILE.npz/ARRAY) or JSON
    lines, sent as `content_type` if that is given (see `forms`); `labels`, used only to score, a CSV, an array or the
    word `folders`. `metric` None: found from outputs and labels. Every one of `codes` is made with every one of `ks`,
    and each trained with `seeds` seeds from `seed` on. `architecture` None: the deployed model's own for parity models,
    a built-in one for students, of no more multiplications than `budget` deployed inferences have. `serve_on`: where
    costs are measured, if not on the device that learns. `never_code`: content types, and keys of bodies, that no
    protection may answer. `protects`: NAME or NAME/VERSION under which the model is registered, if not its own.
    `declaration`: model, call, input and output, where the model call is not found without. `out` is a new folder.
    """

    archive: Path
    inputs: Path
    out: Path
    codes: tuple[str, ...] = ("sum",)
    ks: tuple[int, ...] = (2,)
    r: int = 1
    labels: Path | None = None
    score: Path | None = None
    body: str | None = None
    content_type: str | None = None
    metric: str | None = None
    architecture: str | None = None
    budget: float | None = None
    vary: tuple[str, ...] | None = None
    steps: int | None = None
    rate: float | None = None
    seed: int = 0
    seeds: int = 1
    device: str | None = None
    serve_on: str | None = None
    devices: int = 1
    precision: str | None = None
    name: str | None = None
    protects: str | None = None
    secret: str | None = None
    never_code: tuple[str, ...] = ()
    declaration: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    progress: bool = True


@dataclass(frozen=True)
class PairSettings:
    """The options of `ts-parity train --from-pairs`.

    `from_pairs`: files of `ts-parity record`. `protects`: NAME or NAME/VERSION of the model, if there are several in
    them. `input`, `output`: JSON pointers to the numbers. `name`: of the student. Its size: at most `parameters`, and
    at most `budget` (1) of `service_time`, which is what the deployed model takes for one query, in seconds; otherwise
    the usual size. `out` is a new folder.
    """

    from_pairs: tuple[Path, ...]
    out: Path
    protects: str | None = None
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    name: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    service_time: float | None = None
    budget: float | None = None
    metric: str | None = None
    steps: int | None = None
    rate: float | None = None
    seed: int = 0
    seeds: int = 1
    device: str | None = None
    devices: int = 1
    precision: str | None = None
    force: bool = False
    progress: bool = True


def train_from_pairs(settings: PairSettings) -> dict[str, Any]:
    """Make a student from what was recorded. -> the report that is also written to `out`/report.json, with a page
    report.html beside it.

    Raise ConfigError or TrainingError, each saying what was wrong and what to do; then there is no `out`.
    """
    check_free(settings.out, settings.force)
    if settings.name is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", settings.name):
        raise ConfigError(f"--name {settings.name!r}: letters, digits, dots, hyphens and underscores make a name")
    if settings.budget is not None and settings.service_time is None:
        raise ConfigError("--budget is a share of what the deployed model takes: say --service-time too")
    from ts_parity.training.recorded import read_recorded

    pairs = read_recorded(settings.from_pairs, settings.protects, settings.input, settings.output)
    from ts_parity.training.from_pairs import run  # now that there is something to learn from: torch takes seconds

    return run(settings, pairs)


def train(settings: TrainSettings) -> dict[str, Any]:
    """Make the protections. -> the report that is also written to `out`/report.json, with a page report.html beside it.

    Raise ConfigError, TrainingError, NotCodable, ArchiveError or CodeError, each saying what was wrong and what to do;
    then there is no `out`. What was finished before an interruption is kept beside it, and the same settings go on from
    there.
    """
    check_free(settings.out, settings.force)
    from ts_parity.training.job_spec import checked

    spec = checked(settings)
    from ts_parity.training.job import run

    return run(spec)


__all__ = ["FORMATS", "METRICS", "VARIATIONS", "PairSettings", "TrainSettings", "train", "train_from_pairs"]
