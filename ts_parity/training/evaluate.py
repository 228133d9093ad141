"""What a rebuilt answer is worth: one pure function from outputs to numbers, and the mean of several of its results.

Used by training, the command line, benchmarks and tests alike. Knows codes, arrays and ways to score. Knows nothing of
models, files or how the outputs were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ts_parity.codes import Code, Family
from ts_parity.training import METRICS
from ts_parity.wire import Array

SHARES = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Unavailable shares f at which the overall accuracy A_o = (1 - f) A_a + f A_d is stated."""

Protections = Mapping[int, Mapping[int, Array]]
"""Number of members present (slots 0 .. m-1) -> row -> what was answered: the parity output (groups, *output), or of a
backup its output for each slot (groups, k, *output)."""


def evaluate(
    code: Code, outputs: Array, protections: Protections, labels: Array | None = None, metric: str = "top1"
) -> dict[str, Any]:
    """Erase every slot once and compare what is decoded with what the deployed model said, and with the truth.

    outputs (groups, k, *output): the deployed raw outputs. labels: (groups, k) class indices, or (groups, k, 4) boxes
    for metric `iou`. -> agreement, A_d (with labels) and error of rebuilt answers: for full groups at the top, per
    number of members present in `members`, and for a parity code of r = 2 with two slots erased in `two_erased`.
    `agreement` is the score against the deployed model's own answer, A_a and A_d are scores against the labels;
    `A_default` is what one constant answer would score, and `A_o_default` the overall accuracy with it. `error` is
    the root mean square error of rebuilt outputs in units of the deployed outputs' own spread.
    """
    score = _SCORES[metric]
    full = _scores(code, outputs, protections[code.k], labels, code.k, 1, score)
    result: dict[str, Any] = {"metric": metric, **full}
    result["members"] = {
        str(m): _scores(code, outputs, rows, labels, m, 1, score) for m, rows in sorted(protections.items())
    }
    if code.r > 1 and code.family is Family.PARITY:
        result["two_erased"] = _scores(code, outputs, protections[code.k], labels, code.k, 2, score)
    if labels is not None:
        a_a = float(score(outputs, labels).mean())
        default = _default_score(labels, outputs, metric)
        result |= {"A_a": round(a_a, 5), "drop": round(a_a - full["A_d"], 5), "A_default": round(default, 5)}
        result["A_o"] = {f"{f:.2f}": round((1 - f) * a_a + f * full["A_d"], 5) for f in SHARES}
        result["A_o_default"] = {f"{f:.2f}": round((1 - f) * a_a + f * default, 5) for f in SHARES}
    return result


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `evaluate` for one candidate: the mean of every number; of `agreement`, `A_d` and `drop` also
    their spread (standard deviation over seeds; 0 for one).
    """
    mean = _mean(results)
    for name in ("agreement", "A_d", "drop"):
        if name in mean:
            values = [float(result[name]) for result in results]
            mean[f"{name}_spread"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else 0.0
    return {**mean, "seeds": len(results)}


def _mean(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = results[0]
    mean: dict[str, Any] = {}
    for name, value in first.items():
        if isinstance(value, Mapping):
            mean[name] = _mean([result[name] for result in results])
        elif isinstance(value, float):
            mean[name] = round(float(np.mean([result[name] for result in results])), 5)
        else:
            mean[name] = value
    return mean


Score = Callable[[Array, Array], Array]
"""(..., *output) and the truth (labels, or another model's outputs) -> (...) numbers from 0 to 1."""


def _scores(
    code: Code, outputs: Array, rows: Mapping[int, Array], labels: Array | None, members: int, erased: int, score: Score
) -> dict[str, float]:
    spread = float(outputs.std()) or 1.0
    agreed, right, squares = [], [], []
    for lost in itertools.combinations(range(members), min(erased, members)):
        for slot in lost:
            rebuilt = _rebuilt(code, outputs, rows, members, lost, slot)
            agreed.append(score(rebuilt, outputs[:, slot]))
            squares.append(float(((rebuilt - outputs[:, slot]) ** 2).mean()))
            if labels is not None:
                right.append(score(rebuilt, labels[:, slot]))
    scores = {
        "agreement": round(float(np.mean(agreed)), 5),
        "error": round(float(np.sqrt(np.mean(squares))) / spread, 5),
    }
    if labels is not None:
        scores["A_d"] = round(float(np.mean(right)), 5)
    return scores


def _rebuilt(
    code: Code, outputs: Array, rows: Mapping[int, Array], members: int, lost: Sequence[int], slot: int
) -> Array:
    if code.family is Family.BACKUP:
        return rows[0][:, slot]
    have = {other: outputs[:, other] for other in range(members) if other not in lost}
    # Unchecked: of a group with an outlier a proxy would decode nothing, and these are many groups at once.
    total, _ = code.combined(slot, have, rows, dict.fromkeys(rows, frozenset(range(members))))
    return total


def _top1(outputs: Array, truth: Array) -> Array:
    return np.asarray(_classes(outputs) == _as_classes(outputs, truth))


def _top5(outputs: Array, truth: Array) -> Array:
    flat = _flat(outputs)
    best = np.argpartition(flat, -min(5, flat.shape[-1]), axis=-1)[..., -5:]
    return np.asarray((best == _as_classes(outputs, truth)[..., None]).any(-1))


def _iou(outputs: Array, truth: Array) -> Array:
    """Boxes as two corners (x1, y1, x2, y2), in any order of corners."""
    one, other = _corners(_flat(outputs)), _corners(_flat(truth))
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-12))


_SCORES: dict[str, Score] = {"top1": _top1, "top5": _top5, "iou": _iou}
assert set(_SCORES) == set(METRICS)


def _corners(boxes: Array) -> Array:
    pairs = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return np.concatenate([pairs.min(-2), pairs.max(-2)], axis=-1)


def _as_classes(outputs: Array, truth: Array) -> Array:
    """The truth is class indices already, or outputs of another model."""
    same = truth.ndim == outputs.ndim and truth.shape[-1] == outputs.shape[-1] and truth.dtype.kind == "f"
    return _classes(truth) if same else truth


def _classes(outputs: Array) -> Array:
    """(n, ..., *output) -> (n, ...): the class of each output; an output of one number is a class by its sign."""
    flat = _flat(outputs)
    if flat.shape[-1] == 1:
        return np.asarray(flat[..., 0] > 0)
    return np.asarray(flat.argmax(-1))


def _flat(outputs: Array) -> Array:
    # A raw output is (1, classes) as most handlers' models give it, or (classes,) without a batch axis.
    axes = 2 if outputs.ndim > 2 and outputs.shape[-2] == 1 else 1
    return outputs.reshape(*outputs.shape[: outputs.ndim - axes], -1)


def _default_score(labels: Array, outputs: Array, metric: str) -> float:
    """What the best constant answer scores: the most frequent class (or five of them), or the mean box."""
    if metric == "iou":
        mean = np.broadcast_to(labels.reshape(-1, labels.shape[-1]).mean(0), labels.shape)
        return float(_iou(mean, labels).mean())
    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    return float(counts[: 5 if metric == "top5" else 1].sum() / labels.size)
