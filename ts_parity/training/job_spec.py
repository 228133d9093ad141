"""What a training job has to do, checked as far as possible before torch is imported: that takes seconds, and a
misspelt name should not wait for it.

Knows settings, archives and bodies as files. Runs nothing of what is inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ts_parity.arguments import is_key
from ts_parity.codes import ErasureCode, make_code
from ts_parity.errors import CodeError, TrainingError
from ts_parity.exclusion import declared_never_code
from ts_parity.torchserve.archive import Archive, read_archive
from ts_parity.training import TrainSettings
from ts_parity.training.bodies import RequestBody, bodies_of
from ts_parity.training.labels import read_labels
from ts_parity.wire import Array

FEWEST_BODIES = 20


@dataclass(frozen=True)
class Candidate:
    """One code and k to make. `architecture`: as given, later as chosen; `width`: where the architecture has none."""

    code: ErasureCode
    architecture: str | None
    width: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.code.name}-k{self.code.k}" + (f"-r{self.code.r}" if self.code.r > 1 else "")


@dataclass(frozen=True)
class JobSpec:
    """A job that can begin. `refused`: which codes cannot be made, and why. `labels`: of the bodies that are
    scored, in their order.
    """

    settings: TrainSettings
    archive: Archive
    bodies: Sequence[RequestBody]
    candidates: Sequence[Candidate]
    refused: Sequence[str]
    labels: Array | None = None


def checked(settings: TrainSettings) -> JobSpec:
    """Raise CodeError, TrainingError, ConfigError or ArchiveError if something is wrong with it."""
    declared_never_code(settings.never_code)  # written into the archives when all is trained
    if settings.secret is not None and not is_key(settings.secret):
        raise TrainingError("--secret travels in a header: printable ASCII, not empty, no spaces around it")
    candidates, refused = _candidates(settings)
    archive = read_archive(settings.archive)
    bodies = bodies_of(settings, settings.inputs)
    if any(not candidate.code.lossless for candidate in candidates):
        check_enough(len(bodies), candidates)
    return JobSpec(settings, archive, bodies, candidates, refused, _labels(settings, bodies))


def _labels(settings: TrainSettings, bodies: Sequence[RequestBody]) -> Array | None:
    if settings.labels is None:
        return None
    if settings.score is None:
        return read_labels(settings.labels, settings.inputs, bodies)
    return read_labels(settings.labels, settings.score, bodies_of(settings, settings.score), bodies)


def _candidates(settings: TrainSettings) -> tuple[list[Candidate], list[str]]:
    """Every code with every k, and why some of these cannot be. Raise CodeError if none can."""
    made, refused = [], []
    for name in dict.fromkeys(settings.codes):
        for k in dict.fromkeys(settings.ks):
            try:
                made.append(Candidate(make_code(name, k, settings.r), settings.architecture))
            except CodeError as error:
                refused.append(str(error))
    if not made:
        raise CodeError("; ".join(refused) or "no code was asked for")
    return made, refused


def check_enough(bodies: int, candidates: Sequence[Candidate], repeated: int = 0) -> None:
    """`repeated`: how many of the bodies are copies of another."""
    if bodies - repeated < max(FEWEST_BODIES, 4 * max(candidate.code.k for candidate in candidates)):
        different = f", {bodies - repeated} of them different," if repeated else ""
        raise TrainingError(f"{bodies} usable bodies{different} are too few; give some hundreds at least")
