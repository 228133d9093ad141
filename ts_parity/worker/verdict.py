"""The verdict on a handler (can its predictions be coded?), and the comparisons that decide it.

A wrong rebuilt answer is worse than none, so in doubt the verdict is no. Knows responses and arrays. Runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch

from ts_parity.codes import OWN_ROUNDINGS
from ts_parity.errors import NotRepeatable
from ts_parity.wire import CONTROL_PREFIX, ROUNDOFF, Array
from ts_parity.worker.responses import HandlerResponse

CLOSE = 1e-4
"""Two runs of one request may differ this much, relative to the largest output: parallel sums, low precision."""
BATCH_CLOSE = 1e-3
"""A batch of two runs other kernels than one request, with other roundings."""
TF32_ROUNDOFF = 2.0**-11
"""Of a GPU's products of float32, which convolutions round to ten bits unless user code forbids it."""


class VerdictState(str, Enum):
    CODABLE = "codable"
    UNTESTED = "untested"
    REFUSED = "refused"


@dataclass
class HandlerVerdict:
    """`refused` is final for the process.

    `batched`: one run of a batch gives each request the answer and raw output that it gets alone. `alone`: requests of
    a batch may run one by one, since the answers are the same. None: not known.
    """

    state: VerdictState = VerdictState.UNTESTED
    reason: str = "no request has been seen yet"
    batched: bool | None = None
    alone: bool | None = None
    repeatable: bool = True
    """False: the same request may get another answer, so no copy may answer for it."""
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None

    @property
    def refused(self) -> bool:
        return self.state is VerdictState.REFUSED

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> HandlerVerdict:
        """Raise KeyError, TypeError or ValueError unless it is as `as_json` writes it."""
        return cls(**{**values, "state": VerdictState(values["state"])})

    def refuse(self, reason: str | Exception) -> None:
        """Refuse for this reason, which may be an exception."""
        if isinstance(reason, NotRepeatable):
            self.repeatable = False
        if not self.refused:
            self.state, self.reason = VerdictState.REFUSED, str(reason)

    def accept(self, reason: str) -> None:
        if not self.refused:
            self.state, self.reason = VerdictState.CODABLE, reason


def shape_and_dtype(array: Any) -> dict[str, Any]:
    """Shape and dtype of an array or a tensor, for describe."""
    return {"shape": list(array.shape), "dtype": str(array.dtype).removeprefix("torch.")}


def close(one: Array, other: Array, tolerance: float = CLOSE) -> bool:
    """Equal in shape and, relative to the largest number, in value."""
    if one.shape != other.shape:
        return False
    scale = float(np.abs(one).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=0.0, atol=tolerance * max(scale, 1e-6)))


def same_raw(one: Array | None, other: Array | None, computed_in: str = "") -> bool:
    """Whether two runs of one request may give these. NaN must be in the same places. `computed_in`: as in a frame."""
    if one is None or other is None:
        return one is other
    # A GPU's parallel sums end in another order each time: in half precision, a rounding or two apart.
    tolerance = max(CLOSE, 2 * ROUNDOFF.get(computed_in, 0.0))
    same = one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=True))
    return same or close(one, other, tolerance)


def in_a_batch(computed_in: str) -> float:
    """How far off an answer or a raw output of a batch may be from that of a single run: rounded alike, layer by layer,
    but by other kernels.
    """
    usual = TF32_ROUNDOFF if torch.cuda.is_initialized() else 0.0  # type: ignore[no-untyped-call]
    return max(BATCH_CLOSE, OWN_ROUNDINGS * ROUNDOFF.get(computed_in, usual))


def same_answer(expected: HandlerResponse, repeated: HandlerResponse, got: HandlerResponse) -> bool:
    """Whether `got` is the answer `expected`. What differs between two ordinary runs (times, ids) need not agree."""
    if expected.status != got.status or not _agree(expected.headers, repeated.headers, got.headers):
        return False
    if expected.body == got.body:
        return True
    bodies = [_json(answer.body) for answer in (expected, repeated, got)]
    if any(body is None for body in bodies):
        return False
    return _agree(*(dict(_flat(body)) for body in bodies))


def alike(one: HandlerResponse, other: HandlerResponse, tolerance: float = BATCH_CLOSE) -> bool:
    """Equal answers, except that numbers in JSON may differ by rounding."""
    return not differing(one, other, tolerance)


def differing(
    one: HandlerResponse, other: HandlerResponse, tolerance: float = BATCH_CLOSE
) -> list[tuple[str, Any, Any]]:
    """Where two answers differ by more than rounding -> (where, in the one, in the other). Control headers are ignored:
    another rounding gives another confidence.
    """
    compared: list[tuple[str, Any, Any]] = [("status", one.status, other.status)]
    names = sorted(name for name in {*one.headers, *other.headers} if not name.lower().startswith(CONTROL_PREFIX))
    compared += [(f"header {name}", one.headers.get(name), other.headers.get(name)) for name in names]
    found = [(where, a, b) for where, a, b in compared if a != b]
    if one.body == other.body:
        return found
    bodies = _json(one.body), _json(other.body)
    if None in bodies:
        return [*found, ("body", one.body, other.body)]
    flat, other_flat = (dict(_flat(body)) for body in bodies)
    paths = [*flat, *(path for path in other_flat if path not in flat)]
    missing = object()
    pairs = ((path, flat.get(path, missing), other_flat.get(path, missing)) for path in paths)
    return found + [
        (".".join(map(str, path)) or "body", None if a is missing else a, None if b is missing else b)
        for path, a, b in pairs
        if a is missing or b is missing or not _near(a, b, tolerance)
    ]


def not_finite(body: bytes) -> bool:
    """Whether a JSON answer holds NaN or infinity. Python writes them, though JSON has no such numbers."""
    if b"NaN" not in body and b"Infinity" not in body:
        return False
    parsed = _json(body)
    return any(isinstance(value, float) and not math.isfinite(value) for _, value in _flat(parsed))


def _agree(expected: dict[Any, Any], repeated: dict[Any, Any], got: dict[Any, Any]) -> bool:
    if not expected.keys() == repeated.keys() == got.keys():
        return False
    return all(expected[key] == got[key] for key in expected if expected[key] == repeated[key])


def _near(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance) or (one != one and other != other)
    return bool(one == other)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _flat(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        yield path, sorted(value)
        for name, child in value.items():
            yield from _flat(child, (*path, name))
    elif isinstance(value, list):
        yield path, len(value)
        for index, child in enumerate(value):
            yield from _flat(child, (*path, index))
    else:
        yield path, value
