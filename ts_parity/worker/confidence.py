"""How sure a backup is of each of its answers, said in a header beside it.

Of a student by its raw output, of which the archive's confidence knows what it is worth; an exact copy is certain. An
answer whose raw output is not known, or an archive that has no confidence, says nothing. Knows contexts and raw
outputs; knows nothing of models.
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
    """`entry` runs as always and hands over the raw output that the answers were made of. -> the answer."""
    raws: list[Array] = []
    answer = entry(data, context, raws.append)
    if confidence is not None and len(raws) == 1:
        _put(context, confidence_headers(confidence, raws[0], len(data)))
    return answer


def confidence_headers(confidence: Confidence, raw: Array, requests: int) -> Sequence[str]:
    """The header of each request; none at all where the rows of a raw output do not belong to requests."""
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
