"""Confidence: how often an answer that looks like this one is the deployed model's own, told by its raw output alone.

    raw output -> score: how sure it looks -> curve, one for each kind of group -> expected agreement, 0 to 1

Training fits the curves on bodies that nothing was learned from; worker and proxy read them from the archive and look
them up. What looks sure is sure only of bodies like those: under a shift of the inputs outputs go on looking sure, and
only the comparison with late answers tells. Knows arrays (numpy) and codes. Knows nothing of torch, HTTP, or of how a
curve is fitted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ts_parity.codes import Covers, ErasureCode, Family
from ts_parity.errors import ConfigError
from ts_parity.wire import Array

CLASSES, TOP5, LABELS, NUMBERS = "classes", "top5", "labels", "numbers"
KINDS = (CLASSES, TOP5, LABELS, NUMBERS)
ALONE = "1"
"""The pattern of what is not decoded from others."""
SMALLEST_DOUBT = 1e-12
MOST_NUMBERS = 16
"""Of an output, each with weights of its own; of longer ones all numbers share them."""
SUMMED_UP = 3
_FARTHEST = 10.0
"""In spreads: an outlier's predicted error is not extrapolated beyond."""
_MOST_CURVES, _MOST_KNOTS = 256, 64


@dataclass(frozen=True)
class LinearErrorModel:
    """Predicts from an output how far off it is: constant + weights * (z, |z|), where z = (output - mean) / spread.

    Of an output of more than `MOST_NUMBERS` numbers, which share mean and spread, z is summed up first: its root mean
    square, its mean and its largest size.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    constant: float

    def predicted(self, numbers: Array) -> Array:
        """(n, numbers) -> (n,), in the unit of the errors that it was fitted to."""
        errors = features(numbers, self.mean, self.spread) @ np.array(self.weights) + self.constant
        return np.asarray(np.maximum(errors, 0.0))

    def fits(self, size: int) -> bool:
        return size == len(self.mean) if size <= MOST_NUMBERS else len(self.weights) == SUMMED_UP


def features(numbers: Array, mean: Sequence[float], spread: Sequence[float]) -> Array:
    """(n, numbers) -> (n, as many as a `LinearErrorModel` has weights)."""
    z = np.clip((numbers - np.array(mean)) / np.array(spread), -_FARTHEST, _FARTHEST)
    if numbers.shape[1] <= MOST_NUMBERS:
        return np.concatenate([z, np.abs(z)], axis=1)
    return np.stack([np.sqrt(np.square(z).mean(1)), z.mean(1), np.abs(z).max(1)], axis=1)


@dataclass(frozen=True)
class ConfidenceScorer:
    """How sure an output looks. Of classes by the margin of the two best, of labels by the chance that all are as said,
    of numbers (boxes, embeddings) by the error that a linear model predicts.

    `axis`: of one output, along which the classes stand. `probabilities`: the outputs are such, and not logits.
    """

    kind: str
    axis: int = -1
    probabilities: bool = False
    error_model: LinearErrorModel | None = None

    def fits(self, outputs: Array) -> bool:
        """Whether (n, *output) are of the kind that was learned from."""
        if self.error_model is not None:
            return self.error_model.fits(outputs[:1].size)
        return outputs.ndim == 1 or self.kind == LABELS or outputs.ndim > -self.axis

    def scores(self, outputs: Array) -> Array:
        """(n, *output) -> (n,): the higher, the surer; -inf for an output that is not finite."""
        with np.errstate(all="ignore"):
            wide = outputs.astype(np.float64)
            finite = np.isfinite(wide).all(axis=tuple(range(1, wide.ndim)))
            if wide.size == 0 or not finite.any():
                return np.full(len(wide), -np.inf)
            wide = np.where(finite.reshape(-1, *[1] * (wide.ndim - 1)), wide, 0.0)
            if self.error_model is not None:
                scores = -self.error_model.predicted(wide.reshape(len(wide), -1))
            else:
                doubt = _DOUBTS[self.kind](self._rows(wide), self.probabilities).mean(-1)
                scores = -np.log(np.clip(doubt, SMALLEST_DOUBT, 1.0))
            return np.where(finite, scores, -np.inf)

    def _rows(self, outputs: Array) -> Array:
        """-> (n, positions, numbers)."""
        if self.kind == LABELS or outputs.ndim == 1:
            return outputs.reshape(len(outputs), 1, -1)
        moved = np.moveaxis(outputs, self.axis, -1)
        return moved.reshape(len(outputs), -1, moved.shape[-1])


def _doubt_of_class(rows: Array, probabilities: bool) -> Array:
    """1 - (the largest share - the second), exact where it is small. A lone score has two classes, yes and no."""
    if rows.shape[-1] == 1:
        return 2 * _wrong(rows, probabilities)[..., 0]
    shares = _shares(rows, probabilities)
    ordered = np.partition(shares, shares.shape[-1] - 2, axis=-1)
    return np.asarray((ordered[..., :-1].sum(-1) + ordered[..., -2]) / ordered.sum(-1))


def _doubt_of_five(rows: Array, probabilities: bool) -> Array:
    """What is left for all but the five largest."""
    if rows.shape[-1] <= 5:
        return np.zeros(rows.shape[:-1])
    shares = _shares(rows, probabilities)
    ordered = np.partition(shares, shares.shape[-1] - 5, axis=-1)
    return np.asarray(ordered[..., :-5].sum(-1) / ordered.sum(-1))


def _doubt_of_labels(rows: Array, probabilities: bool) -> Array:
    """The chance that any of them is otherwise, were they independent."""
    return np.asarray(-np.expm1(np.log1p(-_wrong(rows, probabilities)).sum(-1)))


def _shares(rows: Array, probabilities: bool) -> Array:
    """Up to a common factor."""
    if probabilities:  # decoded from a sum, one may lie below 0
        return np.asarray(np.maximum(rows, SMALLEST_DOUBT))
    return np.asarray(np.exp(rows - rows.max(-1, keepdims=True)))


def _wrong(rows: Array, probabilities: bool) -> Array:
    """For each yes or no: the smaller of their chances."""
    if probabilities:
        inside = np.clip(rows, 0.0, 1.0)
        return np.asarray(np.minimum(inside, 1 - inside))
    return np.asarray(1 / (1 + np.exp(np.abs(rows))))


_DOUBTS = {CLASSES: _doubt_of_class, TOP5: _doubt_of_five, LABELS: _doubt_of_labels}


@dataclass(frozen=True)
class Curve:
    """Expected agreement at some scores, both rising; straight between them, level beyond."""

    scores: tuple[float, ...]
    expected: tuple[float, ...]

    def at(self, scores: Array) -> Array:
        """0 where a score is -inf."""
        return np.where(np.isneginf(scores), 0.0, np.interp(scores, self.scores, self.expected))


@dataclass(frozen=True)
class Confidence:
    """A curve for each pattern of what an output is decoded from, see `pattern_of`."""

    scorer: ConfidenceScorer
    curves: Mapping[str, Curve]

    def expected(self, outputs: Array, pattern: str = ALONE) -> Array | None:
        """(n, *output) -> (n,), 0 to 1; None: such a pattern was never seen, or these outputs are of another kind."""
        curve = self.curves.get(pattern)
        return curve.at(self.scorer.scores(outputs)) if curve is not None and self.scorer.fits(outputs) else None

    def of(self, output: Array, pattern: str = ALONE) -> float | None:
        """Of one raw output."""
        expected = self.expected(output[None], pattern)
        return None if expected is None else float(expected[0])

    def as_json(self) -> dict[str, Any]:
        """What `read_confidence` reads: JSON of a few kilobytes at most."""
        scorer = self.scorer
        told: dict[str, Any] = {"score": scorer.kind}
        if scorer.error_model is not None:
            error_model = scorer.error_model
            told["line"] = {
                **{name: list(getattr(error_model, name)) for name in ("mean", "spread", "weights")},
                "constant": error_model.constant,
            }
        else:
            told |= {"axis": scorer.axis, "probabilities": scorer.probabilities}
        told["curves"] = {
            pattern: {"scores": list(curve.scores), "expected": list(curve.expected)}
            for pattern, curve in self.curves.items()
        }
        return told


CERTAIN = "1"
"""In a header, of a lossless protection."""


def in_header(expected: float) -> str:
    return f"{expected:.6g}"


def from_header(text: str | None) -> float | None:
    """What is no share is as good as not said."""
    if text is None:  # nearly always, and an exception costs more than all else here
        return None
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0.0 <= share <= 1.0 else None


def pattern_of(code: ErasureCode, have: Iterable[int], covers: Covers) -> str:
    """What the error of a decoded output depends on: the members of its group, and with r > 1 which rows have arrived
    and how many members have not ("4" or "4:01:2").
    """
    if code.family is Family.BACKUP:
        return ALONE
    members = frozenset().union(*covers.values())
    if code.r == 1:
        return str(len(members))
    return f"{len(members)}:{''.join(map(str, sorted(covers)))}:{len(members.difference(have))}"


# ---- reading -------------------------------------------------------------------------------------------------------


def read_confidence(told: Any) -> Confidence:
    """What an archive says. Raise ConfigError unless every curve of it rises and stays between 0 and 1."""
    try:
        return _read(told)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"confidence is not what training writes: {type(error).__name__} {error}") from None


def _read(told: Any) -> Confidence:
    kind, error_model = told["score"], told.get("line")
    if kind not in KINDS:
        raise ValueError(f"score is one of {', '.join(KINDS)}, not {str(kind)[:40]!r}")
    if (kind == NUMBERS) != (error_model is not None):
        raise ValueError("a line belongs to numbers, and numbers need one")
    axis, probabilities = told.get("axis", -1), told.get("probabilities", False)
    if not isinstance(axis, int) or not -16 <= axis < 0 or not isinstance(probabilities, bool):
        raise ValueError("axis counts from the end, and probabilities is true or false")
    curves = {str(pattern): _read_curve(curve) for pattern, curve in told["curves"].items()}
    if not 1 <= len(curves) <= _MOST_CURVES:
        raise ValueError(f"{len(curves)} curves")
    return Confidence(
        ConfidenceScorer(kind, axis, probabilities, None if error_model is None else _read_error_model(error_model)),
        curves,
    )


def _read_curve(told: Any) -> Curve:
    scores, expected = _numbers(told["scores"]), _numbers(told["expected"])
    if not 1 <= len(scores) <= _MOST_KNOTS or len(scores) != len(expected):
        raise ValueError(f"a curve has 1 to {_MOST_KNOTS} scores and as many expected shares")
    rises = all(one < other for one, other in itertools.pairwise(scores))
    if not rises or list(expected) != sorted(expected) or not 0.0 <= expected[0] <= expected[-1] <= 1.0:
        raise ValueError("a curve must rise, from 0 to 1 at most")
    return Curve(scores, expected)


def _read_error_model(told: Any) -> LinearErrorModel:
    mean, spread, weights = (_numbers(told[name]) for name in ("mean", "spread", "weights"))
    [constant] = _numbers([told["constant"]])
    if not 1 <= len(mean) <= MOST_NUMBERS or len(spread) != len(mean) or min(spread) <= 0:
        raise ValueError(f"a line has 1 to {MOST_NUMBERS} means and as many spreads above 0")
    if len(weights) != 2 * len(mean) and (len(mean) != 1 or len(weights) != SUMMED_UP):
        raise ValueError("a line has two weights for each mean, or three in all")
    return LinearErrorModel(mean, spread, weights, constant)


def _numbers(told: Any) -> tuple[float, ...]:
    if not isinstance(told, (list, tuple)) or not all(
        isinstance(each, (int, float)) and not isinstance(each, bool) and math.isfinite(each) for each in told
    ):
        raise ValueError("a list of numbers was expected")
    return tuple(float(each) for each in told)
