"""What all candidates of one job learn from and are scored on: the deployed model, its inputs and its outputs.

Knows observations and how they are divided. Knows nothing of codes or of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ts_parity.training import TrainSettings
from ts_parity.training.architectures import DeployedModel, Shapes
from ts_parity.training.bodies import RequestBody, bodies_of
from ts_parity.training.data import Observations, observe
from ts_parity.training.labels import classes_of_folders, doubts
from ts_parity.training.semantics import OutputSemantics, infer_semantics
from ts_parity.training.split import contents_of, repeated, split
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

_ANSWERS = 20
"""Answers of the handler to look at if its outputs leave a doubt about their meaning."""

Observing = Callable[[str, int], Any]
"""(what, how many) -> a progress bar: a context manager with `update`."""


@dataclass(frozen=True)
class Dataset:
    """`learn` and `choose` are rows of `seen`, `scored_rows` of `scored`, to whose rows `labels`, `scored_bodies` and
    `scored_contents` belong. What each part may be used for: see `split`. `repeated` counts the bodies of `seen` that
    are copies of another, `scored_repeated` the same of what is scored, `overlap` what is scored and may be learned.
    """

    model: Any
    seen: Observations
    shapes: Shapes
    learn: Array
    choose: Array
    scored: Observations
    scored_bodies: Sequence[RequestBody]
    scored_rows: Array
    scored_contents: Array
    scored_on: str
    labels: Array | None
    semantics: OutputSemantics
    repeated: int = 0
    scored_repeated: int = 0
    overlap: int = 0
    doubts: tuple[str, ...] = ()
    """About the labels, for the report."""

    @property
    def refused(self) -> tuple[str, ...]:
        """Bodies, of whatever part, with the reason."""
        return self.seen.refused + (() if self.scored is self.seen else self.scored.refused)

    def deployed(self) -> DeployedModel:
        return DeployedModel(self.model, self.seen.call, self.shapes)


def prepare(
    handler: OfflineHandler,
    settings: TrainSettings,
    bodies: Sequence[RequestBody],
    every_label: Array | None,
    work: Path,
    bar: Observing,
) -> Dataset:
    """Run every body through the handler and divide what was seen. `every_label`: of all bodies that are to be scored.

    Scored are bodies no model has learned from: those given for it, or the held-out share (which the deployed model may
    have learned from). Raise TrainingError and NotCodable as `observe` does.
    """
    source, others = settings.inputs, bodies
    if settings.score is not None:
        source, others = settings.score, bodies_of(settings, settings.score)
    seen = _observe(handler, bodies, work / "seen", bar, "deployed model")
    dice, overlap = np.random.default_rng(settings.seed), 0
    if settings.score is not None:
        scored = _observe(handler, others, work / "scored", bar, "scoring")
        contents, scored_contents = contents_of(seen.keys, scored.keys)
        parts = split(contents, dice, scored_apart=True)
        overlap = int(np.isin(scored_contents, contents).sum())
        rows, told = np.arange(len(scored)), f"{len(scored)} bodies of {source.name}"
    else:
        scored = seen
        [contents] = contents_of(seen.keys)
        scored_contents, parts = contents, split(contents, dice)
        rows, told = parts.score, f"{len(parts.score)} held-out bodies of {source.name}"
    labels = None if every_label is None else every_label[scored.kept]
    shapes = Shapes.of(seen.inputs, seen.outputs, seen.column)
    scored_bodies = [others[int(i)] for i in scored.kept]

    def answers() -> list[bytes]:
        some = scored_bodies[:_ANSWERS]
        return [handler.answer(handler.request(body.read(), body.content_type)).body for body in some]

    semantics = infer_semantics(settings.metric, scored.outputs, labels, answers)
    doubtful = []
    if labels is not None and semantics.kind == "classes" and not semantics.numbered:
        folders = classes_of_folders(settings.labels, others, bodies)
        doubtful = doubts(labels, semantics.rows(scored.outputs, 1), semantics.answers(scored.outputs, 1), folders)
    return Dataset(
        handler.model_of(seen.call),
        seen,
        shapes,
        parts.learn,
        parts.choose,
        scored,
        scored_bodies,
        rows,
        scored_contents,
        told,
        labels,
        semantics,
        repeated(contents),
        repeated(scored_contents[rows]),
        overlap,
        tuple(doubtful),
    )


def _observe(
    handler: OfflineHandler, bodies: Sequence[RequestBody], folder: Path, bar: Observing, what: str
) -> Observations:
    with bar(what, len(bodies)) as shown:
        return observe(handler, bodies, folder, shown.update)
