"""What raw outputs mean - classes, labels, numbers, a box, an embedding - and how an answer is scored accordingly.

The outputs themselves tell, labels tell more, and where a doubt is left the handler's own answers do; `--metric`
overrules them all. In this order:

    what is seen                                                     taken for  scored by
    ---------------------------------------------------------------  ---------  ---------
    labels: whole numbers, one a body, several outputs               classes    accuracy
    labels: 0 or 1, one output                                       classes    accuracy
    labels: 0 or 1 for each of several outputs                       labels     labels
    labels: two corners in order                                     box        iou
    labels: other numbers, as many as outputs                        numbers    mae
    outputs add up to 1 and none is below 0; or the logs of such     classes    accuracy
    four outputs: two corners in order                               box        iou
    one output, or one a place: few whole numbers, from 0 on         classes    accuracy
    one output, and the handler answers with one of two values       classes    accuracy
    one output                                                       numbers    mae
    outputs of length 1; or none below 0, and many are 0             embedding  cosine
    outputs between 0 and 1                                          labels     labels
    one output is always the largest, and their spreads differ much  numbers    mae
    many outputs, as far below their mean as above, answered as such embedding  cosine
    several outputs, and answers that list now more and now fewer    labels     labels
    anything else                                                    classes    accuracy

Knows arrays and JSON. Knows nothing of codes, models or files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ts_parity.errors import TrainingError
from ts_parity.training.figures import FIGURES, Figure
from ts_parity.wire import Array

ANY = "any"
PROBABILITIES, LOGARITHMS = "probabilities", "logarithms of probabilities"
"""They add up to 1."""
SHARES, LENGTH_1 = "between 0 and 1", "of length 1"


@dataclass(frozen=True)
class OutputSemantics:
    """What the outputs of one model are taken for.

    Outputs are (*lead, *output): one raw output as the handler's model gives it, behind `lead` axes of any number.
    """

    metric: str = "accuracy"
    why: str = "--metric says so"
    axis: int = -1
    """Of one output: along which the classes stand. What is left are positions: one class a token or a pixel, say."""
    threshold: float = 0.0
    """Above it a lone score, or that of a label, says yes."""
    bounds: str = ANY
    """What all outputs keep to, and a student's must too."""
    numbered: bool = False
    """The outputs are the classes' own numbers (0.0, 1.0, 2.0 ...), no scores: what lies between two is no class."""

    @property
    def figure(self) -> Figure:
        return FIGURES[self.metric]

    @property
    def kind(self) -> str:
        return self.figure.kind

    @property
    def has_units(self) -> bool:
        """Each number has a unit, and so a spread, of its own."""
        return self.kind in ("numbers", "box")

    def rows(self, outputs: Array, lead: int) -> Array:
        """-> (*lead, positions, numbers)."""
        outer = outputs.shape[:lead]
        if self.numbered:
            return outputs.reshape(*outer, -1, 1)
        if self.kind != "classes" or outputs.ndim == lead:
            return outputs.reshape(*outer, 1, -1)
        moved = np.moveaxis(outputs, self.axis, -1)
        return moved.reshape(*outer, -1, moved.shape[-1])

    def answers(self, outputs: Array, lead: int = 2) -> Array:
        """What they say: classes (*lead, positions), labels as booleans or numbers (*lead, 1, numbers)."""
        rows = self.rows(outputs, lead)
        if self.kind == "labels":
            return rows > self.threshold
        if self.kind != "classes":
            return rows
        if self.numbered:
            return np.rint(rows[..., 0]).astype(np.int64)
        return rows.argmax(-1) if rows.shape[-1] > 1 else (rows[..., 0] > self.threshold).astype(np.int64)

    def truths(self, labels: Array, lead: int = 2) -> Array:
        """Labels in the form of `answers`."""
        outer = labels.shape[:lead]
        if self.kind == "classes":
            return labels.reshape(*outer, -1).astype(np.int64)
        numbers = labels.reshape(*outer, 1, -1)
        return numbers > 0.5 if self.kind == "labels" else numbers.astype(np.float64)

    def scores(self, outputs: Array, truth: Array, lead: int = 2) -> Array:
        """`truth`: as from `answers` or `truths`. -> (*lead): a number for each answer; for rmse its square."""
        return np.asarray(_SCORES[self.metric](self, self.rows(outputs, lead), truth).mean(-1))

    def figure_of(self, scores: Array) -> float:
        mean = float(np.mean(scores))
        return math.sqrt(mean) if self.metric == "rmse" else mean

    def mixed(self, own: float, other: float, share: float) -> float:
        """The figure of all answers, a share of which scores as `other`."""
        if self.metric == "rmse":
            return math.sqrt((1 - share) * own**2 + share * other**2)
        return (1 - share) * own + share * other

    def spread(self, outputs: Array, lead: int = 2) -> Array:
        """Standard deviation over all outputs: of each number, where it has its own unit, else of all alike.

        A number that is always the same has spread 1, as in scikit-learn's StandardScaler.
        """
        if not self.has_units:
            return np.array(float(outputs.std()) or 1.0)
        numbers = outputs.reshape(math.prod(outputs.shape[:lead]), -1).astype(np.float64)
        spread = numbers.std(0)
        return np.where(spread <= 1e-6 * np.abs(numbers).max(0), 1.0, spread)

    def lost_variance(self, outputs: Array, truth: Array, spread: Array, lead: int = 2) -> Array:
        """-> (*lead): of each answer the mean square error in units of the spread; over all answers 0 for the truth
        itself, 1 for their mean.
        """
        return np.asarray(np.square((self.rows(outputs, lead) - truth) / spread).mean((-2, -1)))

    def default_scores(self, truth: Array) -> Array:
        """What the best constant answer scores, for each (*lead) as in `scores`: the most frequent class (or five of
        them), else a mean or a median.
        """
        if self.kind == "classes":
            classes, counts = np.unique(truth, return_counts=True)
            best = classes[np.argsort(-counts, kind="stable")[: 5 if self.metric == "top5" else 1]]
            return np.asarray(np.isin(truth, best).mean(-1))
        middle = np.median if self.metric in ("mae", "labels") else np.mean
        constant = middle(truth.reshape(-1, truth.shape[-1]).astype(float), axis=0)
        yes = replace(self, threshold=0.5)
        return np.asarray(_SCORES[self.metric](yes, np.broadcast_to(constant, truth.shape), truth).mean(-1))


CLASSES = OutputSemantics()

# ---- how one answer is scored: rows (..., positions, numbers) and the truth -> (..., positions) ------------------


def _accuracy(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    if semantics.numbered:
        return np.asarray(np.rint(rows[..., 0]) == truth, dtype=float)
    said = rows.argmax(-1) if rows.shape[-1] > 1 else rows[..., 0] > semantics.threshold
    return np.asarray(said == truth, dtype=float)


def _top5(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    best = np.argpartition(rows, -min(5, rows.shape[-1]), axis=-1)[..., -5:]
    return np.asarray((best == truth[..., None]).any(-1), dtype=float)


def _labels(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    """Of the labels that either side gives, the share that both give (Jaccard); 1 if neither gives any."""
    said = rows > semantics.threshold
    either, both = (said | truth).sum(-1), (said & truth).sum(-1)
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _iou(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    """Boxes as two corners (x1, y1, x2, y2), in any order of corners."""
    one, other = _corners(rows), _corners(truth)
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-12))


def _corners(boxes: Array) -> Array:
    pairs = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return np.concatenate([pairs.min(-2), pairs.max(-2)], axis=-1)


def _cosine(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(truth, axis=-1)
    return np.asarray((rows * truth).sum(-1) / np.maximum(lengths, 1e-12))


def _mae(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    return np.asarray(np.abs(rows - truth).mean(-1))


def _rmse(semantics: OutputSemantics, rows: Array, truth: Array) -> Array:
    return np.asarray(np.square(rows - truth).mean(-1))


_SCORES: dict[str, Callable[[OutputSemantics, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "top5": _top5,
    "labels": _labels,
    "iou": _iou,
    "cosine": _cosine,
    "mae": _mae,
    "rmse": _rmse,
}
assert set(_SCORES) == set(FIGURES)


# ---- what they mean ----------------------------------------------------------------------------------------------

_ENOUGH = 20
"""Outputs that show a pattern which chance does not make."""
_NEARLY_ALL = 0.99
_LOOKED_AT = 5_000_000
"""Numbers: outputs as large as images need not all be looked at."""
_SHORTEST_EMBEDDING, _LONG = 8, 64


def infer_semantics(
    metric: str | None, outputs: Array, labels: Array | None, answers: Callable[[], Sequence[bytes]]
) -> OutputSemantics:
    """For outputs (n, *output) and labels (n,) or (n, numbers), of any bodies of the same kind.

    `answers`: what the handler says to some bodies, asked for only in doubt. Raise TrainingError if outputs, labels and
    metric do not fit together.
    """
    seen = outputs[: max(_ENOUGH, _LOOKED_AT // max(1, math.prod(outputs.shape[1:])))]
    shown = _shape_of_scores(seen)
    if metric is not None:
        numbered = metric == "accuracy" and seen[0].size == 1 and _are_class_numbers(seen)
        semantics = replace(shown, metric=metric, numbered=numbered)
    elif labels is not None:
        semantics = _by_labels(shown, seen, labels)
    else:
        semantics = _by_outputs(shown, seen, answers)
    _check(semantics, seen, labels)
    return semantics


def _shape_of_scores(outputs: Array) -> OutputSemantics:
    """All but what they are scored by."""
    said = outputs.shape[1:]
    one = said[1:] if len(said) > 1 and said[0] == 1 else said  # without the batch axis
    usual = -3 if len(one) == 3 else -1  # channels first, as in torch
    inside = bool(outputs.min() >= 0.0) and bool(outputs.max() <= 1.0)
    axis = next((axis for axis in dict.fromkeys((usual, -1)) if one and _add_up(outputs, axis)), None)
    flat = outputs.reshape(len(outputs), -1)
    if axis is not None:
        bounds = PROBABILITIES if inside else LOGARITHMS
    elif flat.shape[1] >= _SHORTEST_EMBEDDING and np.allclose(np.linalg.norm(flat, axis=1), 1.0, atol=1e-2):
        bounds = LENGTH_1
    else:
        bounds = SHARES if inside else ANY
    return OutputSemantics(axis=usual if axis is None else axis, threshold=0.5 if inside else 0.0, bounds=bounds)


def _add_up(outputs: Array, axis: int) -> bool:
    if outputs.shape[axis] < 2:
        return False
    with np.errstate(over="ignore"):
        shares = outputs.astype(np.float64) if outputs.min() >= 0.0 else np.exp(outputs.astype(np.float64))
    return bool(np.allclose(shares.sum(axis), 1.0, atol=1e-2))


def _by_labels(shown: OutputSemantics, outputs: Array, labels: Array) -> OutputSemantics:
    size, one_each = math.prod(outputs.shape[1:]), labels.size == len(labels)
    binary = bool(np.isin(labels, (0, 1)).all())
    if one_each and size == 1:
        if _are_class_numbers(outputs):
            return replace(shown, metric="accuracy", numbered=True, why=_NUMBERED)
        if binary:
            return replace(shown, metric="accuracy", why="one output, and labels that are 0 or 1")
        return replace(shown, metric="mae", why="one output, and labels that are numbers")
    if one_each:
        return replace(shown, metric="accuracy", why="one label for several outputs")
    if labels.size // len(labels) != size:
        return replace(shown, metric="accuracy", why="fewer labels than outputs")
    if binary:
        return replace(shown, metric="labels", why="as many labels of 0 and 1 as outputs")
    if size == 4 and _is_box(labels):
        return replace(shown, metric="iou", why="labels of two corners in order")
    return replace(shown, metric="mae", why="labels that are numbers")


def _by_outputs(shown: OutputSemantics, outputs: Array, answers: Callable[[], Sequence[bytes]]) -> OutputSemantics:
    flat = outputs.reshape(len(outputs), -1)
    size = flat.shape[1]
    places = outputs[0].size > max(outputs.shape[1:], default=1)  # more than one vector
    if shown.bounds in (PROBABILITIES, LOGARITHMS):
        return replace(shown, why=f"the outputs are {shown.bounds}: they add up to 1")
    if (size == 1 or places) and _are_class_numbers(outputs):
        return replace(shown, metric="accuracy", numbered=True, why=_NUMBERED)
    if size == 1:
        if _decide(answers()):
            return replace(shown, why="one output, and the handler answers with one of two values")
        return replace(shown, metric="mae", why="one output")
    if size == 4 and len(flat) >= _ENOUGH and _is_box(flat):
        return replace(shown, metric="iou", why="four outputs, two corners in order")
    if size == 4 and len(flat) >= _ENOUGH and shown.bounds == SHARES and _is_box(_corners_of_centres(flat)):
        return replace(shown, metric="mae", why="four outputs, a centre and a size")
    if shown.bounds == LENGTH_1:
        return replace(shown, metric="cosine", why="each output has length 1")
    if not places and size >= 16 and flat.min() == 0.0 and float((flat == 0.0).mean()) > 0.1:
        return replace(shown, metric="cosine", why="no output is below 0, and many are 0")
    if shown.bounds == SHARES:
        return replace(shown, metric="labels", why="the outputs are between 0 and 1, and do not add up to 1")
    if places and outputs.shape[shown.axis] == 1:
        return replace(shown, metric="mae", why="one number for each place of an output")
    if not places and _have_units(flat):
        return replace(shown, metric="mae", why="one output is always the largest, and their spreads differ much")
    if not places and size >= _LONG and _are_symmetric(flat) and _give_all(answers(), size):
        return replace(shown, metric="cosine", why=f"{size} outputs are answered as they are")
    if not places and _list_more_or_fewer(answers()):
        return replace(shown, metric="labels", why="the handler answers with now more and now fewer labels")
    return replace(shown, why="the largest of several outputs decides")


_NUMBERED = "the outputs are few whole numbers from 0 on, as classes are numbered"
_REPEATED, _GAPS = 3, 3
"""Of few classes each is seen so often, on average, and so many numbers at most are not."""


def _are_class_numbers(outputs: Array) -> bool:
    """A score is hardly ever whole, and numbers that were rounded (ages, prices) leave gaps."""
    if len(outputs) < _ENOUGH or outputs.min() < 0 or not bool((outputs == np.rint(outputs)).all()):
        return False
    values = np.unique(outputs)
    return 2 <= len(values) <= outputs.size / _REPEATED and float(values[-1]) < _GAPS * len(values)


def _is_box(rows: Array) -> bool:
    return bool(((rows[:, 0] <= rows[:, 2]) & (rows[:, 1] <= rows[:, 3])).mean() >= _NEARLY_ALL)


def _corners_of_centres(rows: Array) -> Array:
    """(x, y, width, height) -> how far the box reaches into the unit square: in order if it lies within."""
    low, high = rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2
    slack = 0.02
    return np.concatenate([np.maximum(-low, high - 1.0) - slack, np.zeros_like(low)], axis=1)


def _have_units(flat: Array) -> bool:
    """A classifier whose bodies are nearly all of one class has scores of like spreads, since they compete."""
    spreads = flat.std(0)
    commonest = np.bincount(flat.argmax(1)).max() / len(flat)
    return len(flat) >= _ENOUGH and commonest >= _NEARLY_ALL and float(spreads.max()) > 3 * float(spreads.min())


def _are_symmetric(flat: Array) -> bool:
    """Of learned class scores one stands out at the top."""
    mean = flat.mean(1)
    return float(np.median((flat.max(1) - mean) / np.maximum(mean - flat.min(1), 1e-12))) < 1.3


def _decide(answers: Sequence[bytes]) -> bool:
    """Whether the answers hold one of two values, that are no fractions, or nothing else than one."""
    parsed = [dict(_leaves(_json(answer))) for answer in answers]
    values: dict[str, set[Any]] = {}
    for leaves in parsed:
        for where, value in leaves.items():
            values.setdefault(where, set()).add(value)
    whole = {where: seen for where, seen in values.items() if not any(isinstance(value, float) for value in seen)}
    if any(len(seen) == 2 for seen in whole.values()):
        return True
    return bool(values) and len(whole) == len(values) and all(len(seen) == 1 for seen in values.values())


def _list_more_or_fewer(answers: Sequence[bytes]) -> bool:
    lengths: dict[str, set[int]] = {}
    for answer in answers:
        for where, length in _lists_of_labels(_json(answer)):
            lengths.setdefault(where, set()).add(length)
    return any(len(seen) > 1 for seen in lengths.values())


def _lists_of_labels(value: Any, where: str = "") -> Iterator[tuple[str, int]]:
    parts = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if isinstance(value, list) and not any(isinstance(part, float | list | dict) for part in value):
        yield where, len(value)
    for key, part in parts:
        yield from _lists_of_labels(part, f"{where}.{key}")


def _give_all(answers: Sequence[bytes], size: int) -> bool:
    return bool(answers) and all(
        sum(isinstance(value, float) for _, value in _leaves(_json(answer))) >= size for answer in answers
    )


def _json(body: bytes) -> Any:
    """A text that is no JSON is one value; a number within it a fraction."""
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        found = re.search(r"-?\d+\.\d+", text)
        return float(found.group()) if found else text


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{where}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{where}[{index}]")
    else:
        yield where, value


def _check(semantics: OutputSemantics, outputs: Array, labels: Array | None) -> None:
    size = math.prod(outputs.shape[1:])
    rows = semantics.rows(outputs[:1], 1)
    if semantics.metric == "iou" and size != 4:
        raise TrainingError(f"--metric iou needs four outputs, two corners of a box; this model has {size}")
    if semantics.metric in ("cosine", "top5") and rows.shape[-1] < 2:
        raise TrainingError(f"--metric {semantics.metric} needs several outputs; this model has one")
    if labels is None:
        return
    each = labels.size // max(1, len(labels))
    wanted = rows.shape[-2] if semantics.kind == "classes" else size
    if each != wanted:
        raise TrainingError(
            f"--labels gives {each} numbers a body; {semantics.figure.true} of this model's outputs "
            f"{outputs.shape[1:]} needs {wanted}"
        )
    if semantics.kind == "classes" and labels.dtype.kind == "f" and (labels != np.rint(labels)).any():
        raise TrainingError(
            f"--labels gives fractions, such as {labels[labels != np.rint(labels)].flat[0]:g}, and the model {size} "
            "outputs a body: a class index is a whole number; for numbers say --metric mae and give one for each output"
        )
