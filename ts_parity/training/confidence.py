"""The answers that a protection's confidence is fitted to and judged by: groups of bodies that it has not learned.

Those that chose the weights, and those that are scored, these in turn: each fifth of them is judged by what was fitted
on all the others, and the archive's own is fitted on all. Knows observations and groups. How a curve is fitted stands
in `calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.confidence import Confidence
from ts_parity.training.calibration import HeldOut, NotCalibrated, cross_validated
from ts_parity.training.data import Observations
from ts_parity.training.dataset import Dataset
from ts_parity.training.evaluate import Protections
from ts_parity.training.goals import draw_groups
from ts_parity.training.inputs import Inputs
from ts_parity.wire import Array

_FOLDS = 5
_GROUPS = 2000
_MOST_NUMBERS = 50_000_000
"""Of all outputs of these groups: masks and maps as large as images need not be that many."""

Says = Callable[[Inputs, Array], Protections]
"""What a protection says to groups (G, k) of inputs."""


def calibrated(
    dataset: Dataset, code: ErasureCode, says: Says, errors: RowErrors | None, seed: int
) -> tuple[Confidence | None, dict[str, Any]]:
    """-> what the archive holds, and what the report says of it: see `reliability`; or `too_few`, why there is none.

    `errors`: what decode weighs several rows by.
    """
    dice = np.random.default_rng([seed, 3])
    choose, scored = _unlearned(dataset)
    different, place = np.unique(dataset.scored_contents[scored], return_inverse=True)
    fold_of = dice.permutation(len(different))[place] % _FOLDS
    total = len(choose) + len(scored)

    def held(seen: Observations, rows: Array, contents: Array, labels: Array | None) -> list[HeldOut]:
        if not len(rows):
            return []
        groups = draw_groups(rows, code.k, dice, _how_many(code, len(rows), total, dataset.scored.outputs[0].size))
        own = None if labels is None else labels[groups]
        return [HeldOut(seen.outputs[groups], says(seen.inputs, groups), own, contents[groups], errors)]

    others = held(dataset.seen, choose, -1 - np.arange(len(dataset.seen)), None)
    parts = (scored[fold_of == fold] for fold in range(_FOLDS))
    folds = [one for rows in parts for one in held(dataset.scored, rows, dataset.scored_contents, dataset.labels)]
    if not folds:
        return None, {"too_few": "all scored bodies are bodies of --inputs, which may have been learned"}
    fitted = cross_validated(code, others, folds, dataset.semantics)
    if isinstance(fitted, NotCalibrated):
        return None, {"too_few": fitted.reason}
    return fitted[0].confidence, fitted[1]


def _unlearned(dataset: Dataset) -> tuple[Array, Array]:
    """Rows of `seen` and of `scored`, without a body in common and without any that was learned: what --score gives may
    be bodies of --inputs.
    """
    learned = {key for row in dataset.learn for key in dataset.seen.keys[row]}
    scored = [row for row in dataset.scored_rows if learned.isdisjoint(dataset.scored.keys[row])]
    judged = {key for row in scored for key in dataset.scored.keys[row]}
    choose = [row for row in dataset.choose if judged.isdisjoint(dataset.seen.keys[row])]
    return np.array(choose, dtype=int), np.array(scored, dtype=int)


def _how_many(code: ErasureCode, bodies: int, total: int, size: int) -> int:
    """A backup answers each body alone, so each body is needed once only."""
    most = min(_GROUPS, _MOST_NUMBERS // (code.k * (code.k + 1) * size))
    share = math.ceil(most * bodies / total)
    return max(1, min(share, bodies // code.k) if code.family is Family.BACKUP else share)
