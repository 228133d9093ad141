"""How the errors of a code's rows go together, measured on bodies that choose: what decode weighs the rows by.

Knows codes, arrays and what outputs mean. Knows nothing of networks or archives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.training.semantics import OutputSemantics
from ts_parity.wire import Array

HALF_BELIEVED = 1
"""From so many bodies, half of what they show of rows that err alike is believed; from thirty, nearly all. Measured on
Fashion-MNIST (k = 2 and 4): with 10 in its place, what ten bodies told lost up to a point of agreement; with 0, what
two told was in the worst case no better than nothing.
"""
MOST_GROUPS = 500
"""For each set of members: fifteen of them with k = 4."""

Slots = tuple[int, ...]


def is_weighed(code: ErasureCode) -> bool:
    """Whether there is a choice: with one row there is one way to decode."""
    return code.family is Family.PARITY and code.r > 1


def all_members(code: ErasureCode) -> Iterator[Slots]:
    """The slots that a group may have: a query may be refused in any of them."""
    for members in range(1, code.k + 1):
        yield from itertools.combinations(range(code.k), members)


def row_errors(
    code: ErasureCode,
    outputs: Array,
    said: Mapping[Slots, Mapping[int, Array]],
    semantics: OutputSemantics,
    bodies: int,
) -> RowErrors:
    """Of the deployed model's outputs (groups, k, *output), and of what the rows said to groups with members in these
    slots only: by row (groups, *output). bodies: how many different ones the groups are made of.

    Errors count in units of each number's spread. Of scores of classes only what tells one class from another counts.
    """
    spread = semantics.spread(outputs)
    believed = bodies / (bodies + HALF_BELIEVED)
    moments = {
        slots: _moments(code, outputs, slots, rows, semantics, spread) * np.where(np.eye(code.r), 1.0, believed)
        for slots, rows in said.items()
    }
    unit = float(np.trace(moments[tuple(range(code.k))])) or 1.0
    return RowErrors(tuple((slots, _rounded(matrix / unit)) for slots, matrix in moments.items()))


def _moments(
    code: ErasureCode,
    outputs: Array,
    slots: Slots,
    rows: Mapping[int, Array],
    semantics: OutputSemantics,
    spread: Array,
) -> Array:
    errors = []
    for row in range(code.r):
        weights = np.array([code.coefficients[row][slot] for slot in slots])
        wanted = np.einsum("s,gs...->g...", weights, outputs[:, list(slots)].astype(np.float64))
        error = (rows[row] - wanted).reshape(len(outputs), -1) / spread
        if semantics.kind == "classes" and error.shape[1] > 1:
            error = semantics.rows(error.reshape(wanted.shape), 1)
            error = error - error.mean(-1, keepdims=True)
        errors.append(error.ravel())
    stacked = np.stack(errors)
    return np.asarray(stacked @ stacked.T / stacked.shape[1])


def _rounded(matrix: Array) -> Any:
    """Six digits, so that an archive holds little; the same on both sides of the diagonal."""
    return tuple(tuple(float(f"{float(number):.6g}") for number in row) for row in matrix)
