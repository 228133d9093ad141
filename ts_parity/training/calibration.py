"""How often an answer that looks so sure is right: fits a protection's confidence, and says what that is worth.

Fitted and judged on groups of bodies that nothing was learned from, and never on the same ones. No labels are needed:
what is predicted is agreement with the deployed model's own answer. Of outputs that are no decisions (numbers, boxes,
embeddings) an answer agrees if it is no farther off than nine in ten are, as proxies hold such answers to a tolerance.
Knows codes, arrays and what outputs mean. Knows nothing of networks or files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ts_parity.codes import Code, Family, RowErrors
from ts_parity.confidence import (
    ALONE,
    CLASSES,
    LABELS,
    MOST_NUMBERS,
    NUMBERS,
    SUMMED_UP,
    TOP5,
    Confidence,
    Curve,
    Line,
    Sureness,
    features,
    pattern_of,
)
from ts_parity.training.evaluate import Protections, rebuilt_slots
from ts_parity.training.meaning import CLASSES as SCORES_OF_CLASSES
from ts_parity.training.meaning import PROBABILITIES, SHARES, Meaning
from ts_parity.wire import Array

FEWEST = 100
"""Bodies. Of fewer, the tenth that is least sure is a handful, and its agreement is anything."""
RELEASED = (0.95, 0.90, 0.85, 0.80, 0.70, 0.50)
"""Shares of the answers, the surest ones, of which the report says how they do."""
TOLERATED = 0.9
"""Of answers that are no decisions, the share that agrees."""
_BINS, _IN_A_BIN = 24, 10
"""Knots of a curve, and the bodies that each stands for at least."""
_RIDGE, _FOLDS = 1.0, 5
Z = 1.96


class TooFew(NamedTuple):
    """Why there is no confidence."""

    reason: str


@dataclass(frozen=True)
class HeldOut:
    """What was said to groups of bodies that nothing was learned from; the arguments of `evaluate`.

    `bodies`: how many different ones these are. Groups may repeat them, and repetition proves nothing.
    """

    outputs: Array
    protections: Protections
    labels: Array | None = None
    bodies: int | None = None
    errors: RowErrors | None = None

    @property
    def different(self) -> int:
        return self.outputs.shape[0] * self.outputs.shape[1] if self.bodies is None else self.bodies


@dataclass(frozen=True)
class _Pairs:
    """Answers of one pattern beside the deployed model's own: raw outputs (n, *output), and their labels if known."""

    rebuilt: Array
    own: Array
    labels: Array | None


@dataclass(frozen=True)
class Calibrated:
    """A confidence, and how sure the answers looked that it was fitted on, those of full groups."""

    confidence: Confidence
    full: str
    """Their pattern."""
    scores: Array
    tolerance: float | None
    """The distance at which an answer that is no decision still agrees; see `meaning` for its unit."""


def calibrate(code: Code, held: HeldOut, meaning: Meaning = SCORES_OF_CLASSES) -> Calibrated | TooFew:
    """One curve for each pattern: groups of 1 to k members, and with r > 1 for what has arrived of them."""
    if held.different < FEWEST:
        return TooFew(f"{held.different} held-out bodies are too few to say how sure an answer is; it takes {FEWEST}")
    pairs = dict(_patterns(code, held))
    full = _full(code)
    tolerance = None
    if _is_no_decision(meaning):
        tolerance = float(np.quantile(_distances(pairs[full], meaning), TOLERATED))
    sureness = _sureness(pairs[full], meaning)
    curves = {}
    for pattern, each in pairs.items():
        scores, agreed = sureness.scores(each.rebuilt), _agreed(each, meaning, tolerance)
        curves[pattern] = _curve(scores, agreed, min(held.different, len(scores)))
    scores = sureness.scores(pairs[full].rebuilt)
    if _is_no_decision(meaning):  # a line fits best those whom it was drawn through
        scores = _crossed(pairs[full], meaning)
        curves[full] = _curve(scores, _agreed(pairs[full], meaning, tolerance), min(held.different, len(scores)))
    return Calibrated(Confidence(sureness, curves), full, np.sort(scores), tolerance)


def _full(code: Code) -> str:
    if code.family is Family.BACKUP:
        return ALONE
    return pattern_of(code, range(1, code.k), dict.fromkeys(range(code.r), frozenset(range(code.k))))


def _patterns(code: Code, held: HeldOut) -> Iterator[tuple[str, _Pairs]]:
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


def _pairs(held: HeldOut, rebuilt: Iterator[tuple[int, Array]]) -> _Pairs:
    slots, outputs = zip(*rebuilt, strict=True)
    labels = None if held.labels is None else np.concatenate([held.labels[:, slot] for slot in slots])
    return _Pairs(np.concatenate(outputs), np.concatenate([held.outputs[:, slot] for slot in slots]), labels)


# ---- what is predicted ---------------------------------------------------------------------------------------------


def _is_no_decision(meaning: Meaning) -> bool:
    return meaning.kind in ("numbers", "box", "embedding")


def _scores(pairs: _Pairs, meaning: Meaning) -> Array:
    """By the metric, against the deployed model's own answers: (n,)."""
    return meaning.scores(pairs.rebuilt, meaning.answers(pairs.own, 1), 1)


def _distances(pairs: _Pairs, meaning: Meaning) -> Array:
    scores = _scores(pairs, meaning)
    if meaning.metric == "rmse":
        return np.sqrt(scores)
    return scores if meaning.figure.error else 1.0 - scores


def _agreed(pairs: _Pairs, meaning: Meaning, tolerance: float | None) -> Array:
    """(n,) of 0 and 1; where an answer has several classes, of tokens say, the share that is the same."""
    if tolerance is not None:
        return np.asarray(_distances(pairs, meaning) <= tolerance, dtype=float)
    scores = _scores(pairs, meaning)
    return np.asarray(scores == 1.0, dtype=float) if meaning.kind == "labels" else scores


# ---- how sure it looks ---------------------------------------------------------------------------------------------


def _sureness(pairs: _Pairs, meaning: Meaning) -> Sureness:
    if _is_no_decision(meaning):
        return Sureness(NUMBERS, line=_line(_flat(pairs.rebuilt), _distances(pairs, meaning)))
    kind = {"accuracy": CLASSES, "top5": TOP5}.get(meaning.metric, LABELS)
    return Sureness(kind, meaning.axis, meaning.bounds in (PROBABILITIES, SHARES))


def _flat(outputs: Array) -> Array:
    return outputs.reshape(len(outputs), -1).astype(np.float64)


def _line(numbers: Array, distances: Array) -> Line:
    """Ridge regression, so that columns that say the same share a weight."""
    apart = numbers.shape[1] <= MOST_NUMBERS
    mean = _rounded(numbers.mean(0) if apart else [numbers.mean()])
    spread = _rounded([each or 1.0 for each in (numbers.std(0) if apart else [numbers.std()])])
    shown = features(numbers, mean, spread)
    centre = shown.mean(0)
    centred = shown - centre
    gram = centred.T @ centred + _RIDGE * np.eye(shown.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (distances - distances.mean()))
    assert len(weights) == (2 * len(mean) if apart else SUMMED_UP)
    return Line(mean, spread, _rounded(weights), _rounded([distances.mean() - centre @ weights])[0])


def _crossed(pairs: _Pairs, meaning: Meaning) -> Array:
    """The scores of each answer by a line that was drawn through others."""
    numbers, distances = _flat(pairs.rebuilt), _distances(pairs, meaning)
    scores = np.empty(len(numbers))
    for fold in range(_FOLDS):
        out = np.arange(len(numbers)) % _FOLDS == fold
        scores[out] = -_line(numbers[~out], distances[~out]).predicted(numbers[out])
    return scores


def _curve(scores: Array, agreed: Array, bodies: int) -> Curve:
    """Isotonic regression on bins of equally many answers. One answer that differs is added to the surest, one that
    agrees to the least sure: nothing is ever expected to be right, or wrong, without exception (rule of succession).
    """
    from sklearn.isotonic import IsotonicRegression

    finite = np.isfinite(scores)
    scores, agreed = scores[finite], agreed[finite]
    if not len(scores):
        return Curve((0.0,), (0.0,))
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, max(1, min(_BINS, bodies // _IN_A_BIN)))
    middles = list(_rounded([scores[part].mean() for part in parts]))
    weight = bodies / len(scores)
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(
        [middles[0], *middles, middles[-1]],
        [1.0, *(agreed[part].mean() for part in parts), 0.0],
        sample_weight=[1.0, *(weight * len(part) for part in parts), 1.0],
    )
    knots = zip(fitted.X_thresholds_, fitted.y_thresholds_, strict=True)
    told = [(float(score), round(float(min(max(share, 0.0), 1.0)), 6)) for score, share in knots]
    return Curve(tuple(score for score, _ in told), tuple(share for _, share in told))


def _rounded(numbers: Sequence[float] | Array) -> tuple[float, ...]:
    """Six digits, so that an archive holds little."""
    return tuple(float(f"{float(number):.6g}") for number in numbers)


# ---- what it is worth ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """Answers of full groups, by a confidence that was fitted on others: all (n,), `released` (shares, n)."""

    expected: Array
    released: Array
    agreed: Array
    scored: Array
    right: Array | None
    own_right: Array | None


def reliability(
    code: Code,
    fitted: Sequence[Calibrated],
    judged: Sequence[HeldOut],
    meaning: Meaning = SCORES_OF_CLASSES,
    bodies: int | None = None,
) -> dict[str, Any]:
    """What the surest answers are worth: each of `judged` is judged by the calibration of the same place, which has not
    seen it. `bodies`: how many different ones these are.

    -> `agreement` and what was `expected` of all, `surest` (one for each of `RELEASED`: which `share` was wanted, which
    was `released`, their `agreement` with its 95 % interval, what was `expected`; `score` by the metric; with labels
    `A_a` and `A_d` (or `E_a`, `E_d`) on these bodies, and `loss`), `bins` (ten, from the least sure: `share`,
    `expected`, `agreement` with its interval), and `off`, by how much these miss on the average.
    """
    parts = [_judge(each, held, code, meaning) for each, held in zip(fitted, judged, strict=True)]
    expected, agreed = (np.concatenate([getattr(part, name) for part in parts]) for name in ("expected", "agreed"))
    count = min(len(agreed), sum(held.different for held in judged) if bodies is None else bodies)
    everything = np.ones(len(agreed), dtype=bool)
    released = np.concatenate([part.released for part in parts], axis=1)
    surest = [
        {"share": share, **_told(parts, each, meaning, count)}
        for share, each in zip((1.0, *RELEASED), (everything, *released), strict=True)
    ]
    bins = _reliability_bins(expected, agreed, count)
    off = sum(each["share"] * abs(each["expected"] - each["agreement"]) for each in bins)
    return {
        "bodies": count,
        **{name: surest[0][name] for name in ("agreement", "agreement_95", "expected")},
        "surest": surest[1:],
        "bins": bins,
        "off": round(off, 5),
    }


def _judge(fitted: Calibrated, held: HeldOut, code: Code, meaning: Meaning) -> _Judged:
    members = dict.fromkeys(range(code.r), frozenset(range(code.k)))
    rebuilt = rebuilt_slots(code, held.outputs, held.protections[code.k], code.k, 1, held.errors)
    assert code.family is Family.BACKUP or pattern_of(code, range(1, code.k), members) == fitted.full
    pairs = _pairs(held, rebuilt)
    scores = fitted.confidence.sureness.scores(pairs.rebuilt)
    thresholds = np.quantile(fitted.scores, [1 - share for share in RELEASED])
    right = own_right = None
    if pairs.labels is not None:
        truth = meaning.truths(pairs.labels, 1)
        right, own_right = meaning.scores(pairs.rebuilt, truth, 1), meaning.scores(pairs.own, truth, 1)
    return _Judged(
        fitted.confidence.curves[fitted.full].at(scores),
        scores >= thresholds[:, None],
        _agreed(pairs, meaning, fitted.tolerance),
        _scores(pairs, meaning),
        right,
        own_right,
    )


def _told(parts: Sequence[_Judged], chosen: Array, meaning: Meaning, bodies: int) -> dict[str, Any]:
    """Of the chosen (n,) answers."""

    def of(name: str) -> Array:
        values: Array = np.concatenate([getattr(part, name) for part in parts])[chosen]
        return values

    share = float(chosen.mean())
    if not chosen.any():
        return {"released": 0.0}
    agreement, count = float(of("agreed").mean()), share * bodies
    told: dict[str, Any] = {
        "released": round(share, 5),
        "agreement": round(agreement, 5),
        "agreement_95": interval(agreement, count),
        "expected": round(float(of("expected").mean()), 5),
        "score": round(meaning.figure_of(of("scored")), 5),
    }
    if parts[0].right is None:
        return told
    letter = "E" if meaning.figure.error else "A"
    own, rebuilt = meaning.figure_of(of("own_right")), meaning.figure_of(of("right"))
    lost = rebuilt - own if meaning.figure.error else own - rebuilt
    return {
        **told,
        f"{letter}_a": round(own, 5),
        f"{letter}_d": round(rebuilt, 5),
        "loss": round(lost, 5),
        "loss_within": round(Z * float((of("right") - of("own_right")).std()) / math.sqrt(max(1.0, count)), 5),
    }


def _reliability_bins(expected: Array, agreed: Array, bodies: int) -> list[dict[str, Any]]:
    order = np.argsort(expected, kind="stable")
    bins = []
    for part in np.array_split(order, max(1, min(10, bodies // _IN_A_BIN))):
        share, agreement = len(part) / len(order), float(agreed[part].mean())
        bins.append(
            {
                "share": round(share, 5),
                "expected": round(float(expected[part].mean()), 5),
                "agreement": round(agreement, 5),
                "agreement_95": interval(agreement, share * bodies),
            }
        )
    return bins


def interval(share: float, count: float) -> list[float]:
    """Wilson's, at 95 %, of a share that was found in so many independent cases."""
    middle, wide = share + Z * Z / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count**2))
    ends = ((middle + sign * wide) / (1 + Z * Z / count) for sign in (-1, 1))
    return [round(min(max(end, 0.0), 1.0), 5) for end in ends]
