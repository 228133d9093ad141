"""What a rebuilt answer is worth: one pure function from outputs to numbers.

Knows codes and arrays. Knows nothing of models, files or how the outputs were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ts_parity.codes import Code
from ts_parity.wire import Array

SHARES = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Unavailable shares f at which the overall accuracy A_o = (1 - f) A_a + f A_d is stated."""

Parities = Mapping[int, Mapping[int, Array]]
"""Number of members present (slots 0 .. m-1) -> row -> parity outputs (groups, *output)."""


def evaluate(code: Code, outputs: Array, parities: Parities, labels: Array | None = None) -> dict[str, Any]:
    """Erase every slot once and compare what is decoded with what the deployed model said.

    outputs (groups, k, *output): the deployed raw outputs. labels (groups, k): class indices, if known.
    -> agreement, A_d (with labels) and error of rebuilt answers: for full groups at the top, per number of members
    present in `members`, and for r = 2 with two slots erased in `two_erased`. `error` is the root mean square error of
    rebuilt outputs in units of the deployed outputs' own spread.
    """
    full = _scores(code, outputs, parities[code.k], labels, code.k, 1)
    result: dict[str, Any] = dict(full)
    result["members"] = {str(m): _scores(code, outputs, rows, labels, m, 1) for m, rows in sorted(parities.items())}
    if code.r > 1:
        result["two_erased"] = _scores(code, outputs, parities[code.k], labels, code.k, 2)
    if labels is not None:
        a_a = float((_classes(outputs) == labels).mean())
        result["A_a"] = round(a_a, 4)
        result["drop"] = round(a_a - full["A_d"], 4)
        result["A_o"] = {f"{f:.2f}": round((1 - f) * a_a + f * full["A_d"], 4) for f in SHARES}
    return result


def _scores(
    code: Code, outputs: Array, rows: Mapping[int, Array], labels: Array | None, members: int, erased: int
) -> dict[str, float]:
    spread = float(outputs.std()) or 1.0
    agreed, right, squares = [], [], []
    covers = {row: frozenset(range(members)) for row in rows}
    for lost in itertools.combinations(range(members), min(erased, members)):
        have = {slot: outputs[:, slot] for slot in range(members) if slot not in lost}
        for slot in lost:
            rebuilt = code.decode(slot, have, rows, covers)
            agreed.append(_classes(rebuilt) == _classes(outputs[:, slot]))
            squares.append(float(((rebuilt - outputs[:, slot]) ** 2).mean()))
            if labels is not None:
                right.append(_classes(rebuilt) == labels[:, slot])
    scores = {
        "agreement": round(float(np.mean(agreed)), 4),
        "error": round(float(np.sqrt(np.mean(squares))) / spread, 4),
    }
    if labels is not None:
        scores["A_d"] = round(float(np.mean(right)), 4)
    return scores


def _classes(outputs: Array) -> Array:
    """(n, ..., *output) -> (n, ...): the class of each output; an output of one number is a class by its sign."""
    flat = outputs.reshape(*outputs.shape[: outputs.ndim - _output_axes(outputs)], -1)
    if flat.shape[-1] == 1:
        return np.asarray(flat[..., 0] > 0)
    return np.asarray(flat.argmax(-1))


def _output_axes(outputs: Array) -> int:
    # A raw output is (1, classes) as BaseHandler's models give it, or (classes,) without a batch axis.
    return 2 if outputs.ndim > 2 and outputs.shape[-2] == 1 else 1
