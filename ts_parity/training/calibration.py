"""Calibration of confidence: how often an answer that looks this sure agrees, and how good that estimate is.

Fitted and judged on groups of bodies that nothing was learned from, and never on the same ones. No labels are needed:
what is predicted is agreement with the deployed model's own answer. Of outputs that are no decisions (numbers, boxes,
embeddings) an answer agrees if it is no farther off than nine in ten are, as proxies hold such answers to a tolerance.
Knows codes, arrays and what outputs mean. Knows nothing of networks or files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.confidence import (
    ALONE,
    CLASSES,
    LABELS,
    MOST_NUMBERS,
    NUMBERS,
    SUMMED_UP,
    TOP5,
    Confidence,
    ConfidenceScorer,
    Curve,
    LinearErrorModel,
    features,
    pattern_of,
)
from ts_parity.training.evaluate import Protections, rebuilt_slots
from ts_parity.training.intervals import ScoredAnswers, of_difference, wilson
from ts_parity.training.semantics import CLASSES as SCORES_OF_CLASSES
from ts_parity.training.semantics import PROBABILITIES, SHARES, OutputSemantics
from ts_parity.wire import Array

FEWEST = 100
"""Bodies. Of fewer, the tenth that is least sure is a handful, and its agreement is anything."""
RELEASED = (0.95, 0.90, 0.85, 0.80, 0.70, 0.50)
"""Shares of the answers, the surest ones, of which the report says how they do."""
TOLERATED = 0.9
"""Of answers that are no decisions, the share that agrees."""
_BINS, _IN_A_BIN = 24, 10
"""Knots of a curve, and the bodies that each stands for at least, where each stands for its own."""
_POINTS = 200
_RIDGE, _FOLDS = 1.0, 5


class NotCalibrated(NamedTuple):
    """Why there is no confidence."""

    reason: str


@dataclass(frozen=True)
class HeldOut:
    """Outputs for groups of held-out bodies: the arguments of `evaluate`. Groups may repeat bodies, and repetition
    proves nothing.
    """

    outputs: Array
    protections: Protections
    labels: Array | None = None
    contents: Array | None = None
    errors: RowErrors | None = None

    @property
    def bodies(self) -> Array:
        """(groups, k) numbers, the same for the same body."""
        shape = self.outputs.shape[:2]
        return np.arange(shape[0] * shape[1]).reshape(shape) if self.contents is None else self.contents

    @property
    def different(self) -> int:
        return len(np.unique(self.bodies))


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """One of several, without labels: nothing is fitted to these."""
    first = parts[0]
    protections = {
        members: {row: np.concatenate([part.protections[members][row] for part in parts]) for row in rows}
        for members, rows in first.protections.items()
    }
    outputs, contents = (np.concatenate([getattr(part, name) for part in parts]) for name in ("outputs", "bodies"))
    return HeldOut(outputs, protections, None, contents, first.errors)


@dataclass(frozen=True)
class _AnswerPairs:
    """Answers of one pattern beside the deployed model's own: raw outputs (slots * groups, *output), and labels."""

    slots: tuple[int, ...]
    rebuilt: Array
    own: Array
    labels: Array | None


@dataclass(frozen=True)
class Calibrated:
    """A confidence, and the scores of the full groups' answers that it was fitted on."""

    confidence: Confidence
    full: str
    """Their pattern."""
    scores: Array
    tolerance: float | None
    """The distance at which an answer that is no decision still agrees; see `semantics` for its unit."""


def calibrate(
    code: ErasureCode, held: HeldOut, semantics: OutputSemantics = SCORES_OF_CLASSES
) -> Calibrated | NotCalibrated:
    """One curve for each pattern: groups of 1 to k members, and with r > 1 for what has arrived of them."""
    different = held.different
    if different < FEWEST:
        return NotCalibrated(f"{different} held-out bodies are too few to say how sure an answer is; it takes {FEWEST}")
    return _fitted(code, held, semantics)


def cross_validated(
    code: ErasureCode,
    others: Sequence[HeldOut],
    folds: Sequence[HeldOut],
    semantics: OutputSemantics = SCORES_OF_CLASSES,
) -> tuple[Calibrated, dict[str, Any]] | NotCalibrated:
    """Fitted on all of them, which is what an archive holds; and what that is worth, see `reliability`: each of `folds`
    is judged by what was fitted on all but it. No two have a body in common. `others` are never judged.
    """
    everything = joined([*others, *folds])
    fitted = calibrate(code, everything, semantics)
    if isinstance(fitted, NotCalibrated):
        return fitted
    without = [joined([*others, *folds[:place], *folds[place + 1 :]]) for place in range(len(folds))]
    told = reliability(code, [_fitted(code, each, semantics) for each in without], folds, semantics)
    return fitted, {"fitted_on": everything.different, "score": fitted.confidence.scorer.kind, **told}


def _fitted(code: ErasureCode, held: HeldOut, semantics: OutputSemantics) -> Calibrated:
    different = held.different
    pairs = dict(_patterns(code, held))
    full = _full(code)
    tolerance = None
    if _is_no_decision(semantics):
        tolerance = float(np.quantile(_distances(pairs[full], semantics), TOLERATED))
    scorer = _scorer(pairs[full], semantics)
    curves = {}
    for pattern, each in pairs.items():
        scores, agreed = scorer.scores(each.rebuilt), _agreed(each, semantics, tolerance)
        curves[pattern] = _curve(scores, agreed, min(different, len(scores)))
    scores = scorer.scores(pairs[full].rebuilt)
    if _is_no_decision(semantics):  # a model fits its own training data best
        scores = _crossed(pairs[full], semantics)
        curves[full] = _curve(scores, _agreed(pairs[full], semantics, tolerance), min(different, len(scores)))
    return Calibrated(Confidence(scorer, curves), full, np.sort(scores), tolerance)


def _full(code: ErasureCode) -> str:
    if code.family is Family.BACKUP:
        return ALONE
    return pattern_of(code, range(1, code.k), dict.fromkeys(range(code.r), frozenset(range(code.k))))


def _patterns(code: ErasureCode, held: HeldOut) -> Iterator[tuple[str, _AnswerPairs]]:
    """Every slot erased, alone and (r > 1) together with others, for each set of rows that can tell it."""
    if code.family is Family.BACKUP:
        yield ALONE, _pairs(held, rebuilt_slots(code, held.outputs, held.protections[code.k], code.k, 1))
        return
    for members, said in sorted(held.protections.items()):
        for count in range(1, len(said) + 1):
            for rows in itertools.combinations(sorted(said), count):
                for erased in range(1, min(count, members) + 1):
                    told = {row: said[row] for row in rows}
                    covers = dict.fromkeys(rows, frozenset(range(members)))
                    pattern = pattern_of(code, range(erased, members), covers)
                    yield pattern, _pairs(held, rebuilt_slots(code, held.outputs, told, members, erased, held.errors))


def _pairs(held: HeldOut, rebuilt: Iterator[tuple[int, Array]]) -> _AnswerPairs:
    slots, outputs = zip(*rebuilt, strict=True)
    labels = None if held.labels is None else np.concatenate([held.labels[:, slot] for slot in slots])
    return _AnswerPairs(
        slots, np.concatenate(outputs), np.concatenate([held.outputs[:, slot] for slot in slots]), labels
    )


# ---- what is predicted ---------------------------------------------------------------------------------------------


def _is_no_decision(semantics: OutputSemantics) -> bool:
    return semantics.kind in ("numbers", "box", "embedding")


def _scores(pairs: _AnswerPairs, semantics: OutputSemantics) -> Array:
    """By the metric, against the deployed model's own answers: (n,)."""
    return semantics.scores(pairs.rebuilt, semantics.answers(pairs.own, 1), 1)


def _distances(pairs: _AnswerPairs, semantics: OutputSemantics) -> Array:
    scores = _scores(pairs, semantics)
    if semantics.metric == "rmse":
        return np.sqrt(scores)
    return scores if semantics.figure.error else 1.0 - scores


def _agreed(pairs: _AnswerPairs, semantics: OutputSemantics, tolerance: float | None) -> Array:
    """(n,) of 0 and 1; where an answer has several classes, of tokens say, the share that is the same."""
    if tolerance is not None:
        return np.asarray(_distances(pairs, semantics) <= tolerance, dtype=float)
    scores = _scores(pairs, semantics)
    return np.asarray(scores == 1.0, dtype=float) if semantics.kind == "labels" else scores


# ---- how sure it looks ---------------------------------------------------------------------------------------------


def _scorer(pairs: _AnswerPairs, semantics: OutputSemantics) -> ConfidenceScorer:
    if _is_no_decision(semantics):
        return ConfidenceScorer(NUMBERS, error_model=_error_model(_flat(pairs.rebuilt), _distances(pairs, semantics)))
    kind = {"accuracy": CLASSES, "top5": TOP5}.get(semantics.metric, LABELS)
    return ConfidenceScorer(kind, semantics.axis, semantics.bounds in (PROBABILITIES, SHARES))


def _flat(outputs: Array) -> Array:
    return outputs.reshape(len(outputs), -1).astype(np.float64)


def _error_model(numbers: Array, distances: Array) -> LinearErrorModel:
    """Ridge regression, so that redundant columns share a weight."""
    apart = numbers.shape[1] <= MOST_NUMBERS
    mean = _rounded(numbers.mean(0) if apart else [numbers.mean()])
    spread = _rounded([each or 1.0 for each in (numbers.std(0) if apart else [numbers.std()])])
    shown = features(numbers, mean, spread)
    centre = shown.mean(0)
    centred = shown - centre
    gram = centred.T @ centred + _RIDGE * np.eye(shown.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (distances - distances.mean()))
    assert len(weights) == (2 * len(mean) if apart else SUMMED_UP)
    return LinearErrorModel(mean, spread, _rounded(weights), _rounded([distances.mean() - centre @ weights])[0])


def _crossed(pairs: _AnswerPairs, semantics: OutputSemantics) -> Array:
    """Scores of each answer by an error model that was fitted to others."""
    numbers, distances = _flat(pairs.rebuilt), _distances(pairs, semantics)
    scores = np.empty(len(numbers))
    for fold in range(_FOLDS):
        out = np.arange(len(numbers)) % _FOLDS == fold
        scores[out] = -_error_model(numbers[~out], distances[~out]).predicted(numbers[out])
    return scores


def _curve(scores: Array, agreed: Array, bodies: int) -> Curve:
    """The logistic curve, unless isotonic regression clearly predicts held-out answers better."""
    finite = np.isfinite(scores)
    scores, agreed = scores[finite], agreed[finite]
    if not len(scores):
        return Curve((0.0,), (0.0,))
    gain = _lost(_logistic, scores, agreed, bodies) - _lost(_isotonic, scores, agreed, bodies)
    clear = float(gain.mean()) > float(gain.std()) / math.sqrt(bodies)  # Breiman's rule of one standard error
    return (_isotonic if clear else _logistic)(scores, agreed, bodies)


def _lost(fit: Callable[[Array, Array, int], Curve], scores: Array, agreed: Array, bodies: int) -> Array:
    """Log loss of each answer under a curve that was fitted to others."""
    foretold, fold_of = np.empty(len(scores)), np.arange(len(scores)) % _FOLDS
    for fold in np.unique(fold_of):
        inside = fold_of != fold
        if inside.any():
            foretold[~inside] = fit(scores[inside], agreed[inside], max(1, round(bodies * inside.mean()))).at(
                scores[~inside]
            )
        else:
            foretold[:] = 0.5
    shares = np.clip(foretold, 1e-6, 1 - 1e-6)
    return np.asarray(-(agreed * np.log(shares) + (1 - agreed) * np.log(1 - shares)))


def _logistic(scores: Array, agreed: Array, bodies: int) -> Curve:
    """Two parameters (Platt), so a hundred bodies are enough, and all other answers say what the surest are worth.

    One body that half agrees is added in the middle, and the less of it the more have differed: of n that all agree the
    next may not. And one body in all is like none that was seen: it agrees as the average does.
    """
    from sklearn.linear_model import LogisticRegression

    points, shares, weights = _binned(scores, agreed, bodies, _POINTS)
    middle, spread = points.mean(), points.std() or 1.0
    more = 1 / (1 + float(weights @ (1 - shares)))
    points, shares, weights = np.append(points, middle), np.append(shares, 0.5), np.append(weights, more)
    fitted = LogisticRegression(C=1e3).fit(
        np.tile((points - middle) / spread, 2)[:, None],
        np.repeat([1, 0], len(points)),
        sample_weight=np.concatenate([weights * shares, weights * (1 - shares)]),
    )
    rise, start = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    average = float(np.average(shares, weights=weights))
    knots = np.unique(_rounded(np.quantile(scores, np.linspace(0, 1, _BINS + 1))))
    told = 1 / (1 + np.exp(-(start + rise * (knots - middle) / spread))) if rise > 0 else np.full(len(knots), average)
    return _curve_of(knots, told + (average - told) / (bodies + 1))


def _isotonic(scores: Array, agreed: Array, bodies: int) -> Curve:
    """On bins of equally many answers. One answer that differs is added to the surest, one that agrees to the least
    sure: nothing is expected to be right, or wrong, without exception (rule of succession).
    """
    from sklearn.isotonic import IsotonicRegression

    points, shares, weights = _binned(scores, agreed, bodies, min(_BINS, bodies // _IN_A_BIN))
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(
        [points[0], *points, points[-1]], [1.0, *shares, 0.0], sample_weight=[1.0, *weights, 1.0]
    )
    return _curve_of(fitted.X_thresholds_, fitted.y_thresholds_)


def _binned(scores: Array, agreed: Array, bodies: int, most: int) -> tuple[Array, Array, Array]:
    """-> of at most so many bins of equally many answers the mean score, the share that agreed, and its bodies."""
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, max(1, min(most, len(order))))
    points = np.array(_rounded([scores[part].mean() for part in parts]))
    weights = np.array([len(part) for part in parts]) * min(1.0, bodies / len(scores))
    return points, np.array([agreed[part].mean() for part in parts]), weights


def _curve_of(scores: Array, expected: Array) -> Curve:
    shares = np.maximum.accumulate(np.clip(expected, 0.0, 1.0))  # to the last digit
    return Curve(tuple(map(float, scores)), tuple(round(float(share), 7) for share in shares))


def _rounded(numbers: Sequence[float] | Array) -> tuple[float, ...]:
    """Six digits, so that an archive holds little."""
    return tuple(float(f"{float(number):.6g}") for number in numbers)


# ---- what it is worth ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CrossValidated:
    """Answers of one pattern under a confidence that was fitted on others: (slots, groups), `released` by shares."""

    slots: tuple[int, ...]
    expected: Array
    agreed: Array
    scored: Array
    released: Array
    right: Array | None
    own_right: Array | None


def reliability(
    code: ErasureCode,
    fitted: Sequence[Calibrated],
    judged: Sequence[HeldOut],
    semantics: OutputSemantics = SCORES_OF_CLASSES,
) -> dict[str, Any]:
    """What the surest answers are worth: each of `judged` is judged by the calibration of the same place, which has not
    seen it.

    -> of full groups the `agreement` and what was `expected`, `surest` (one for each of `RELEASED`: which `share` was
    wanted, which was `released`, their `agreement`, what was `expected`; `score` by the metric; with labels `A_a` and
    `A_d` (or `E_a`, `E_d`) on these bodies, and `loss`), `bins` (ten, from the least sure: `share`, `expected`,
    `agreement`), and `off`, how far these are off on average; of each pattern in `patterns` its `agreement` and
    what was `expected`. `bodies`: how many different ones were judged. What ends in `_95` is an interval.
    """
    bodies = np.concatenate([held.bodies for held in judged])
    by_pattern: dict[str, list[_CrossValidated]] = {}
    for calibrated, held in zip(fitted, judged, strict=True):
        for pattern, pairs in _patterns(code, held):
            by_pattern.setdefault(pattern, []).append(_judge(calibrated, pattern, pairs, len(held.outputs), semantics))
    tellers = {pattern: _ReliabilityFigures(parts, bodies, code, semantics) for pattern, parts in by_pattern.items()}
    teller = tellers[full := fitted[0].full]
    released = np.concatenate([part.released for part in by_pattern[full]], axis=2)
    whole = teller.told(np.ones(released.shape[1:], dtype=bool))
    return {
        "bodies": len(np.unique(bodies)),
        **{name: whole[name] for name in _WHOLE},
        "surest": [{"share": share, **teller.told(chosen)} for share, chosen in zip(RELEASED, released, strict=True)],
        **teller.bins(),
        "patterns": {pattern: _shortly(each) for pattern, each in tellers.items()},
    }


_WHOLE = ("agreement", "agreement_95", "expected")


def _shortly(teller: _ReliabilityFigures) -> dict[str, Any]:
    told = teller.told(np.ones(teller.expected.shape, dtype=bool))
    return {name: told[name] for name in _WHOLE}


def _judge(
    fitted: Calibrated, pattern: str, pairs: _AnswerPairs, groups: int, semantics: OutputSemantics
) -> _CrossValidated:
    def by_slot(values: Array) -> Array:
        return values.reshape(-1, groups)

    scores = fitted.confidence.scorer.scores(pairs.rebuilt)
    thresholds = np.quantile(fitted.scores, [1 - share for share in RELEASED])
    right = own_right = None
    if pairs.labels is not None:
        truth = semantics.truths(pairs.labels, 1)
        right, own_right = (by_slot(semantics.scores(each, truth, 1)) for each in (pairs.rebuilt, pairs.own))
    return _CrossValidated(
        pairs.slots,
        by_slot(fitted.confidence.curves[pattern].at(scores)),
        by_slot(_agreed(pairs, semantics, fitted.tolerance)),
        by_slot(_scores(pairs, semantics)),
        np.stack([by_slot(scores >= threshold) for threshold in thresholds]),
        right,
        own_right,
    )


class _ReliabilityFigures:
    """Figures of some of the answers of one pattern, with their intervals."""

    def __init__(
        self, parts: Sequence[_CrossValidated], bodies: Array, code: ErasureCode, semantics: OutputSemantics
    ) -> None:
        def whole(name: str) -> Array:
            return np.concatenate([getattr(part, name) for part in parts], axis=1)

        self.expected, self.agreed, self._scored = (whole(name) for name in ("expected", "agreed", "scored"))
        labelled = parts[0].right is not None
        self._right, self._own_right = (whole(n) if labelled else None for n in ("right", "own_right"))
        self._answers = ScoredAnswers(parts[0].slots, bodies, code.family is Family.PARITY)
        self._semantics = semantics

    def told(self, chosen: Array) -> dict[str, Any]:
        """Of the chosen (slots, groups) answers."""
        share, semantics = float(chosen.mean()), self._semantics
        if not share:
            return {"released": 0.0}
        told: dict[str, Any] = {
            "released": round(share, 5),
            **self._agreement(chosen),
            "expected": round(float(self.expected[chosen].mean()), 5),
            "score": round(semantics.figure_of(self._scored[chosen]), 5),
        }
        if self._right is None or self._own_right is None:
            return told
        letter = "E" if semantics.figure.error else "A"
        own, rebuilt = semantics.figure_of(self._own_right[chosen]), semantics.figure_of(self._right[chosen])
        lost = rebuilt - own if semantics.figure.error else own - rebuilt
        figures = {f"{letter}_a": own, f"{letter}_d": rebuilt, "loss": lost}
        told |= {name: round(value, 5) for name, value in figures.items()}
        if semantics.metric != "rmse":  # whose loss is no mean of single answers
            sign = 1 if semantics.figure.error else -1
            answers = sign * (self._right - self._own_right)
            low, high = of_difference(*self._as_mean(answers, chosen, lost))
            told["loss_95"] = [round(low + lost, 5), round(high + lost, 5)]
        return told

    def bins(self) -> dict[str, Any]:
        """Ten bins of the answers by their expected agreement, and how far off each is."""
        order = np.argsort(self.expected, axis=None, kind="stable")
        bins = []
        for part in np.array_split(order, max(1, min(10, self._answers.different // _IN_A_BIN))):
            chosen = np.zeros(self.expected.shape, dtype=bool)
            chosen.flat[part] = True
            expected = round(float(self.expected[chosen].mean()), 5)
            bins.append({"share": round(float(chosen.mean()), 5), "expected": expected, **self._agreement(chosen)})
        off = sum(each["share"] * abs(each["expected"] - each["agreement"]) for each in bins)
        return {"bins": bins, "off": round(off, 5)}

    def _agreement(self, chosen: Array) -> dict[str, Any]:
        agreement = float(self.agreed[chosen].mean())
        scores, answers = self._as_mean(self.agreed, chosen, agreement)
        variance, count = answers.variance(scores), max(1.0, float(chosen.mean()) * answers.different)
        worth = agreement * (1 - agreement) / variance if variance > 0 else count
        low, high = wilson(agreement, max(1.0, min(worth, count)))
        return {"agreement": round(agreement, 5), "agreement_95": [round(low, 5), round(high, 5)]}

    def _as_mean(self, values: Array, chosen: Array, mean: float) -> tuple[Array, ScoredAnswers]:
        """A mean of some is the ratio of two means of all: to first order, the mean of these (0) varies as it does."""
        return np.where(chosen, values - mean, 0.0) / float(chosen.mean()), self._answers
