"""Codes: how k queries share r protections, which slots are recoverable, and how a missing output is decoded.

Knows arrays (numpy). Knows nothing of torch, sockets or time; encoding happens on the worker, with these coefficients.

`sum` is the paper's code (Parity Models, SOSP'19): parity model j is trained to answer sum_i c_ji F(x_i) when it is
given sum_i c_ji x_i, so a missing F(x_i) is the solution of a small linear system, the same for every coordinate.
`concat` (the paper, for images) differs in the encoder only: k images are shrunk and tiled into one.
`student` and `exact` answer the k queries slot by slot on another instance, with a small distilled model or with F
itself: nothing to decode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

import numpy as np

from ts_parity.errors import CodeError, DecodeError
from ts_parity.wire import MAX_K, ROUNDOFF, Array

Coefficients = tuple[tuple[float, ...], ...]
Covers = Mapping[int, frozenset[int]]
"""Row of a protection that has arrived -> the slots it covers (a slot whose body was refused is not covered)."""

SUM_K = (2, 3, 4)
CONCAT_K = (2, 4)
MAX_R = 2


class Family(str, Enum):
    PARITY = "parity"
    BACKUP = "backup"


@dataclass(frozen=True)
class RowErrors:
    """How far off the rows of one training were on bodies that they had not learned, and how their errors go together.

    `moments`: for each set of slots that a group may have (sorted), r rows of r numbers, the mean product of what row i
    and row j said too much. Rows trained on the same bodies err alike (a correlation of 0.8 is usual), and a row of
    larger coefficients errs more, so to weigh them as if they erred independently and alike makes two worse than one.
    """

    moments: tuple[tuple[tuple[int, ...], Coefficients], ...]
    _by_slots: Mapping[frozenset[int], Coefficients] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_slots", {frozenset(slots): matrix for slots, matrix in self.moments})
        object.__setattr__(self, "_hash", hash(self.moments))

    def __hash__(self) -> int:
        return self._hash

    def of(self, slots: frozenset[int]) -> Coefficients | None:
        return self._by_slots.get(slots)

    def as_json(self) -> dict[str, list[list[float]]]:
        return {",".join(map(str, slots)): [list(row) for row in matrix] for slots, matrix in self.moments}


@dataclass(frozen=True)
class ErasureCode:
    """k queries to a group, r protections, and what can be recovered from what has arrived.

    Build one with `make_code`. `coefficients` has r rows of k numbers for the parity family and is empty for backups.
    """

    name: str
    k: int
    r: int
    family: Family
    coefficients: Coefficients
    lossless: bool
    """A recovered prediction is F's own, so a client that refuses rebuilt answers may have it."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # What is recoverable is remembered by code, and asked for with each answer.
        parts = (self.name, self.k, self.r, self.family, self.coefficients, self.lossless)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    def recoverable(self, have: frozenset[int], covers: Covers) -> frozenset[int]:
        """The slots not in `have` that could be answered from the outputs in `have` and the arrived protections."""
        return _recoverable(self, have, _pattern(covers))

    def decode(
        self,
        slot: int,
        have: Mapping[int, Array],
        protections: Mapping[int, Array],
        covers: Covers,
        roundoff: float = 0.0,
        errors: RowErrors | None = None,
    ) -> Array:
        """Rebuild slot's raw output.

        `have` maps slots to raw outputs and `protections` maps rows to parity outputs, all of one shape. The result is
        in the finest of their dtypes: a float64 model's parity model answers in float32, as a rule.
        Raise DecodeError if the pattern is not recoverable, shapes disagree, or the other outputs are so much larger
        that their rounding hides this one. `roundoff`: that of the coarsest dtype any of them was computed in, if that
        is coarser than the one they come in. Of several solutions the one of the least expected error is used, by what
        is known of the parity models' `errors`; if nothing is, as if these were independent and equally large.
        """
        _weights(self, slot, frozenset(have), _pattern(covers), errors)  # whether it can be decoded at all comes first
        outputs = [*have.values(), *protections.values()]
        first = outputs[0]
        for other in outputs:
            if other.shape != first.shape:
                raise DecodeError(
                    f"cannot decode slot {slot}: raw outputs of shapes {first.shape} and {other.shape} in one group"
                )
        total, size = self.combined(slot, have, protections, covers, errors)
        coarsest = min(outputs, key=lambda output: output.itemsize).dtype
        _check_known(slot, total, size, max(roundoff, ROUNDOFF[coarsest.name]))
        with np.errstate(over="ignore"):
            decoded: Array = total.astype(max(outputs, key=lambda output: output.itemsize).dtype)
        if not np.isfinite(decoded).all():
            raise DecodeError(f"cannot decode slot {slot}: what is left is not finite")
        return decoded

    def combined(
        self,
        slot: int,
        have: Mapping[int, Array],
        protections: Mapping[int, Array],
        covers: Covers,
        errors: RowErrors | None = None,
    ) -> tuple[Array, Array]:
        """-> what the slot's output must be by the code, and the sum of the terms' magnitudes; nothing is checked.

        In float64, so that the only rounding is that of the outputs themselves.
        """
        by_row, by_slot = _weights(self, slot, frozenset(have), _pattern(covers), errors)
        terms = [(weight, protections[row]) for row, weight in by_row if weight]
        terms += [(weight, have[member]) for member, weight in by_slot if weight]
        total, size = np.float64(0), np.float64(0)
        for weight, output in terms:
            term = output * np.float64(weight)
            total = total + term
            size = size + np.abs(term)
        return np.asarray(total), np.asarray(size)


def make_code(name: str, k: int, r: int = 1, coefficients: Coefficients | None = None) -> ErasureCode:
    """Raise CodeError, saying which argument is wrong and what is possible."""
    if name == "sum":
        if k not in SUM_K:
            raise CodeError(f"code sum has k of {SUM_K[0]} to {SUM_K[-1]}, not {k}: accuracy falls fast with k")
        if not 1 <= r <= MAX_R:
            raise CodeError(f"code sum has r of 1 or {MAX_R}, not {r}")
        rows = default_coefficients(k, r) if coefficients is None else coefficients
        check_coefficients(rows, k, r)
        return ErasureCode(name, k, r, Family.PARITY, rows, lossless=False)
    if name == "concat":
        return _concat(k, r, coefficients)
    if name in ("student", "exact"):
        if not 1 <= k <= MAX_K:
            raise CodeError(f"code {name} has k of 1 to {MAX_K}, not {k}")
        if r < 1:
            raise CodeError(f"r must be at least 1, not {r}")
        if coefficients:
            raise CodeError(f"code {name} has no coefficients")
        return ErasureCode(name, k, r, Family.BACKUP, (), lossless=name == "exact")
    raise CodeError(f"unknown code {name!r}; there are sum, concat, student and exact")


def _concat(k: int, r: int, coefficients: Coefficients | None) -> ErasureCode:
    if k not in CONCAT_K:
        raise CodeError(
            f"code concat has k of {' or '.join(map(str, CONCAT_K))}, not {k}: k images of one size must tile an image "
            "of that size, two halves or four quarters"
        )
    if r != 1:
        raise CodeError(f"code concat has r of 1, not {r}: every tiling shows a parity model the same images")
    ones = ((1.0,) * k,)
    if coefficients is not None and coefficients != ones:
        raise CodeError(f"code concat decodes by subtraction: coefficients must be {ones}, not {coefficients}")
    return ErasureCode("concat", k, r, Family.PARITY, ones, lossless=False)


def default_coefficients(k: int, r: int) -> Coefficients:
    """Rows of a Vandermonde matrix on the nodes 1..k: (1, 1, ..), (1, 2, .., k). Positive distinct nodes make every
    square submatrix invertible, so any l <= r lost slots can be solved for from any l parity outputs.
    """
    return tuple(tuple(float(node**row) for node in range(1, k + 1)) for row in range(r))


def check_coefficients(coefficients: Coefficients, k: int, r: int) -> None:
    """Raise CodeError unless there are r rows of k finite numbers with every square submatrix invertible."""
    if len(coefficients) != r or any(len(row) != k for row in coefficients):
        shape = (len(coefficients), *{len(row) for row in coefficients})
        raise CodeError(f"coefficients must have shape (r, k) = {(r, k)}, not {shape}")
    matrix = np.array(coefficients, dtype=float)
    if not np.isfinite(matrix).all():
        raise CodeError(f"coefficients must be finite, not {coefficients}")
    for size in range(1, min(k, r) + 1):
        for rows in itertools.combinations(range(r), size):
            for columns in itertools.combinations(range(k), size):
                square = matrix[np.ix_(rows, columns)]
                if abs(np.linalg.det(square)) < 1e-9 * max(1.0, float(np.abs(square).max())) ** size:
                    raise CodeError(
                        f"coefficients {coefficients}: rows {rows} and columns {columns} form a singular matrix, "
                        "so these slots could not be told apart"
                    )


KNOWN = 0.01
"""A decoded number must be known to this share of itself ..."""
NEGLIGIBLE = 1e-5
"""... or of the output's largest number: what is lost there changes no decision ..."""
OWN_ROUNDINGS = 16.0
"""... or to so many roundings of the largest number: in half precision the model itself says no more than that."""


def _check_known(slot: int, total: Array, size: Array, roundoff: float) -> None:
    """Raise DecodeError where cancellation has left rounding for a result. `size`: the sum of the terms' magnitudes.

    A float32 output of 1e9 is known to 60, so a neighbour's 5 cannot be told from it. Only rounding can be known here;
    a parity model's own error grows with the magnitudes of the group as well.
    """
    noise = roundoff * size
    largest = float(np.abs(total).max(initial=0.0))
    enough = np.maximum(KNOWN * np.abs(total), max(NEGLIGIBLE, OWN_ROUNDINGS * roundoff) * largest)
    if (noise > enough).any():
        worst = int((noise - enough).argmax())
        raise DecodeError(
            f"cannot decode slot {slot}: other outputs of its group are so large that their rounding "
            f"(about {noise.flat[worst]:.3g}) hides it"
        )


_Pattern = tuple[tuple[int, frozenset[int]], ...]


def _pattern(covers: Covers) -> _Pattern:
    if len(covers) == 1:
        return tuple(covers.items())
    return tuple(sorted(covers.items()))


@lru_cache(maxsize=4096)
def _recoverable(code: ErasureCode, have: frozenset[int], pattern: _Pattern) -> frozenset[int]:
    wanted = frozenset().union(*(slots for _, slots in pattern)) - have
    if code.family is Family.BACKUP:
        return wanted
    return frozenset(slot for slot in wanted if _solve(code, slot, have, pattern) is not None)


_Weights = tuple[tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]]


@lru_cache(maxsize=4096)
def _weights(
    code: ErasureCode, slot: int, have: frozenset[int], pattern: _Pattern, errors: RowErrors | None
) -> _Weights:
    if code.family is Family.BACKUP:
        raise DecodeError(f"code {code.name} has nothing to decode: take slot {slot} of the answer")
    solution = None if slot in have else _solve(code, slot, have, pattern, errors)
    if solution is None:
        rows = {row: sorted(slots) for row, slots in pattern}
        raise DecodeError(f"slot {slot} cannot be decoded from slots {sorted(have)} and parity rows covering {rows}")
    by_row = tuple((row, float(weight)) for (row, _), weight in zip(pattern, solution, strict=True))
    by_slot = []
    for member in sorted(have):
        pulls = (
            w * code.coefficients[row][member]
            for (row, slots), w in zip(pattern, solution, strict=True)
            if member in slots
        )
        by_slot.append((member, -float(sum(pulls))))
    return by_row, tuple(by_slot)


def _solve(
    code: ErasureCode, slot: int, have: frozenset[int], pattern: _Pattern, errors: RowErrors | None = None
) -> list[float] | None:
    """One weight per arrived parity row so that their weighted sum holds `slot` once and no other missing slot."""
    missing = sorted(frozenset().union(*(slots for _, slots in pattern)) - have)
    if slot not in missing:
        return None
    system = np.array([[code.coefficients[row][m] if m in slots else 0.0 for m in missing] for row, slots in pattern])
    target = np.array([1.0 if m == slot else 0.0 for m in missing])
    # The pseudo-inverse gives the shortest weight vector, hence the least amplification.
    weights = np.linalg.pinv(system.T) @ target
    if not np.allclose(system.T @ weights, target, atol=1e-9):
        return None
    weights = weights + _correction(system, weights, _moments(pattern, errors))
    return [0.0 if abs(w) < 1e-12 else float(w) for w in weights]


def _moments(pattern: _Pattern, errors: RowErrors | None) -> Array | None:
    """Of the rows that have arrived; known where they cover the same slots."""
    found = None if errors is None or len({slots for _, slots in pattern}) > 1 else errors.of(pattern[0][1])
    rows = [row for row, _ in pattern]
    return None if found is None else np.array(found)[np.ix_(rows, rows)]


def _correction(system: Array, weights: Array, moments: Array | None) -> Array:
    """What to add to weights that solve the system, so that they solve it with the least expected squared error:
    generalised least squares, in what the system leaves free. With exact parity outputs it changes nothing.
    """
    _, sizes, turns = np.linalg.svd(system.T)
    free = turns[int((sizes > 1e-9 * sizes.max(initial=0.0)).sum()) :].T  # (rows, what is free)
    if moments is None or not free.size:
        return np.zeros_like(weights)
    return np.asarray(-free @ np.linalg.pinv(free.T @ moments @ free) @ (free.T @ moments @ weights))


def read_row_errors(told: object, code: ErasureCode) -> RowErrors:
    """From what `as_json` gives. Raise CodeError for anything else, or what cannot be of this code."""
    try:
        assert isinstance(told, Mapping)
        moments = tuple(
            (tuple(map(int, slots.split(","))), tuple(tuple(map(float, row)) for row in matrix))
            for slots, matrix in told.items()
        )
    except (AssertionError, AttributeError, TypeError, ValueError):
        raise CodeError(
            f"row_errors must hold {code.r} rows of {code.r} numbers for sets of slots, not {told!r}"
        ) from None
    for slots, matrix in moments:
        if not set(slots) <= set(range(code.k)) or list(slots) != sorted(set(slots)):
            raise CodeError(f"row_errors: {slots} is no set of slots of a group of {code.k}")
        square = len(matrix) == code.r and all(len(row) == code.r for row in matrix)
        if not square or not _is_covariance(np.array(matrix)):
            raise CodeError(f"row_errors: {matrix} cannot be the mean products of the errors of {code.r} rows")
    return RowErrors(moments)


def _is_covariance(matrix: Array) -> bool:
    scale = float(np.abs(matrix).max())
    if not math.isfinite(scale) or not np.allclose(matrix, matrix.T, rtol=0, atol=1e-6 * scale):
        return False
    return float(np.linalg.eigvalsh(matrix).min()) >= -1e-6 * scale
