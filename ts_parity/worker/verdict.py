"""Whether this handler's predictions can be coded, and the comparisons that the self-test decides it by.

Knows answers and arrays; runs nothing. A wrong decoded answer is worse than none, so doubt means no.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ts_parity.wire import Array
from ts_parity.worker.answers import Answer

CLOSE = 1e-4
"""Two runs of one request may differ by what reduced precision and parallel sums make of the largest output."""
BATCH_CLOSE = 1e-3
"""Other kernels run for a batch of two than for one, with other roundings."""


class State(str, Enum):
    CODABLE = "codable"
    UNTESTED = "untested"
    REFUSED = "refused"


@dataclass
class Verdict:
    """Refused is final for the process. `batched`: a batch gives each request the answer it would get alone."""

    state: State = State.UNTESTED
    reason: str = "no request has been seen yet"
    batched: bool | None = None
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None

    @property
    def refused(self) -> bool:
        return self.state is State.REFUSED

    def refuse(self, reason: str) -> None:
        if not self.refused:
            self.state, self.reason = State.REFUSED, reason

    def accept(self, reason: str) -> None:
        if not self.refused:
            self.state, self.reason = State.CODABLE, reason


def described(array: Any) -> dict[str, Any]:
    """Shape and dtype of an array or a tensor, for describe."""
    return {"shape": list(array.shape), "dtype": str(array.dtype).removeprefix("torch.")}


def close(one: Array, other: Array, tolerance: float = CLOSE) -> bool:
    """Equal in shape and, relative to the largest number, in value."""
    if one.shape != other.shape:
        return False
    scale = float(np.abs(one).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=0.0, atol=tolerance * max(scale, 1e-6)))


def same_answer(expected: Answer, repeated: Answer, got: Answer) -> bool:
    """Is `got` the answer `expected`? What differs between two ordinary runs (times, ids) need not agree."""
    if expected.status != got.status or not _agree(expected.headers, repeated.headers, got.headers):
        return False
    if expected.body == got.body:
        return True
    bodies = [_json(answer.body) for answer in (expected, repeated, got)]
    if any(body is None for body in bodies):
        return False
    return _agree(*(dict(_flat(body)) for body in bodies))


def alike(one: Answer, other: Answer) -> bool:
    """Equal answers, save that numbers in JSON may differ by rounding."""
    if one.status != other.status or one.headers != other.headers:
        return False
    if one.body == other.body:
        return True
    bodies = _json(one.body), _json(other.body)
    if None in bodies:
        return False
    flat, other_flat = (dict(_flat(body)) for body in bodies)
    return flat.keys() == other_flat.keys() and all(_near(flat[path], other_flat[path]) for path in flat)


def not_finite(body: bytes) -> bool:
    """Does a JSON answer hold NaN or infinity? Python writes them, though JSON has no such numbers."""
    if b"NaN" not in body and b"Infinity" not in body:
        return False
    parsed = _json(body)
    return any(isinstance(value, float) and not math.isfinite(value) for _, value in _flat(parsed))


def _agree(expected: dict[Any, Any], repeated: dict[Any, Any], got: dict[Any, Any]) -> bool:
    if not expected.keys() == repeated.keys() == got.keys():
        return False
    return all(expected[key] == got[key] for key in expected if expected[key] == repeated[key])


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=BATCH_CLOSE, abs_tol=BATCH_CLOSE)
    return bool(one == other)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
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
