"""What all candidates of one job stand on: the deployed model, what it was given and said, and what is scored.

Knows observations and how they are divided. Knows nothing of codes or of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ts_parity.training import TrainSettings
from ts_parity.training.architectures import Deployed, Shapes
from ts_parity.training.bodies import Body, bodies_of
from ts_parity.training.data import Observations, observe
from ts_parity.training.labels import doubts, read_labels
from ts_parity.training.meaning import Meaning, find_meaning
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

HELD_OUT = 0.15
"""Share of bodies that choose the best weights, and score the report unless others are given for that."""
_ANSWERS = 20
"""Of the handler, looked at where its outputs leave a doubt of what they mean."""

Observing = Callable[[str, int], Any]
"""(what, how many) -> a progress bar: a context manager with `update`."""


@dataclass(frozen=True)
class Ground:
    """`learn` and `choose` are rows of `seen`, `scored_rows` of `scored`, to whose rows `labels` and `scored_bodies`
    belong.
    """

    model: Any
    seen: Observations
    shapes: Shapes
    learn: Array
    choose: Array
    scored: Observations
    scored_bodies: Sequence[Body]
    scored_rows: Array
    scored_on: str
    labels: Array | None
    meaning: Meaning
    doubts: tuple[str, ...] = ()
    """About the labels, for the report."""

    def deployed(self) -> Deployed:
        return Deployed(self.model, self.seen.call, self.shapes)


def prepare(
    handler: OfflineHandler, settings: TrainSettings, bodies: Sequence[Body], work: Path, bar: Observing
) -> Ground:
    """Run every body through the handler and divide what was seen. Labels are read first: a body may take long.

    Scored are bodies no model has learned from: those given for it, or the held-out share (which the deployed model may
    have learned from). Raise TrainingError and NotCodable as `observe` does.
    """
    source, others = settings.inputs, bodies
    if settings.score is not None:
        source, others = settings.score, bodies_of(settings, settings.score)
    every_label = None if settings.labels is None else read_labels(settings.labels, source, others, bodies)
    seen = _observe(handler, bodies, work / "seen", bar, "deployed model")
    order = np.random.default_rng(settings.seed).permutation(len(seen))
    held = max(2, int(len(seen) * HELD_OUT))
    learn, choose = order[held:], order[:held]
    if settings.score is not None:
        scored = _observe(handler, others, work / "scored", bar, "scoring")
        rows, told = np.arange(len(scored)), f"{len(scored)} bodies of {source.name}"
    else:
        scored = seen
        rows, told = choose, f"{len(choose)} held-out bodies of {source.name}"
    labels = None if every_label is None else every_label[scored.kept]
    shapes = Shapes.of(seen.inputs, seen.outputs, seen.column)
    scored_bodies = [others[int(i)] for i in scored.kept]

    def answers() -> list[bytes]:
        some = scored_bodies[:_ANSWERS]
        return [handler.answer(handler.request(body.read(), body.content_type)).body for body in some]

    meaning = find_meaning(settings.metric, scored.outputs, labels, answers)
    doubtful = doubts(labels, scored.outputs) if labels is not None and meaning.kind == "classes" else []
    model = handler.model_of(seen.call)
    return Ground(
        model, seen, shapes, learn, choose, scored, scored_bodies, rows, told, labels, meaning, tuple(doubtful)
    )


def _observe(handler: OfflineHandler, bodies: Sequence[Body], folder: Path, bar: Observing, what: str) -> Observations:
    with bar(what, len(bodies)) as shown:
        return observe(handler, bodies, folder, shown.update)
