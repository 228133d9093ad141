"""Puts the confidence of each of a backup's answers into a response header.

A student's confidence comes from its raw output and the archive's calibration; an exact copy is certain. If the raw
output is not known, or the archive has no calibration, there is no header. Knows contexts and raw outputs. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ts_parity.confidence import CERTAIN, Confidence, in_header
from ts_parity.wire import CONFIDENCE, Array
from ts_parity.worker.boundary import EntryPoint


def with_certainty(entry: EntryPoint, data: Any, context: Any) -> Any:
    """Run as always. -> the answer."""
    answer = entry(data, context)
    _put(context, [CERTAIN] * len(data))
    return answer


def with_confidence(
    confidence: Confidence | None, entry: Callable[[Any, Any, Callable[[Array], None]], Any], data: Any, context: Any
) -> Any:
    """`entry` runs as always and passes the raw output to its third argument. -> the answer."""
    raws: list[Array] = []
    answer = entry(data, context, raws.append)
    if confidence is not None and len(raws) == 1:
        _put(context, confidence_headers(confidence, raws[0], len(data)))
    return answer


def confidence_headers(confidence: Confidence, raw: Array, requests: int) -> Sequence[str]:
    """A header for each request; none if the rows of the raw output do not correspond to requests."""
    if requests == 1:
        raw = raw[None]
    elif raw.ndim == 0 or raw.shape[0] != requests:
        return []
    expected = confidence.expected(raw)
    return [] if expected is None else [in_header(float(each)) for each in expected]


def _put(context: Any, headers: Sequence[str]) -> None:
    if len(headers) == len(context.request_processor or ()):
        for index, header in enumerate(headers):
            context.set_response_header(index, CONFIDENCE, header)
