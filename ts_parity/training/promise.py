"""What an archive promises its proxy: how often its answers will be found to agree, and how far off numbers may be.

A proxy compares finished answers, not raw outputs, so that is done here too, with the proxy's own comparison. Knows
handlers and scores. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ts_parity.engine import Finding
from ts_parity.errors import TsParityError
from ts_parity.proxy.http.messages import Response
from ts_parity.proxy.serving.comparison import compare, off_by
from ts_parity.training.bodies import RequestBody
from ts_parity.training.intervals import wilson
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.responses import HandlerResponse

COMPARED = 200
"""Rebuilt answers that are finished by the handler; fewer than `FEWEST` prove nothing."""
FEWEST = 20
USUAL = 0.9
"""Share of rebuilt answers that are off by no more than the tolerance; of random ones a third would be, at most."""
_NOTHING = 1e-9


@dataclass(frozen=True)
class Promise:
    """`agreement`: share of answers that will be found to agree, with its 95 % interval; None: it was not measured, and
    the proxy will see.
    """

    agreement: float | None = None
    tolerance: float | None = None
    interval: list[float] | None = None


NOTHING_PROMISED = Promise()


def promise(
    handler: OfflineHandler,
    bodies: Sequence[RequestBody],
    rebuilt: Callable[[], Iterator[tuple[int, Array]]],
    numbers: bool,
) -> Promise:
    """`rebuilt`: pairs of an index into `bodies` and the raw output that was decoded for it. `numbers`: the outputs are
    no decisions, so their answers are compared by how far off they are.
    """
    pairs = [pair for index, raw in rebuilt() if (pair := finished(handler, bodies[index], raw)) is not None]
    if len(pairs) < FEWEST:
        return NOTHING_PROMISED
    tolerance = None
    if numbers:
        off = [each for own, other in pairs if (each := off_by(own.body, other.body)) is not None]
        tolerance = max(float(f"{np.quantile(off, USUAL):.3g}"), _NOTHING) if len(off) >= FEWEST else None
    findings = [compare(_response(own), _response(other), False, tolerance).finding for own, other in pairs]
    known = [finding is Finding.AGREED for finding in findings if finding in (Finding.AGREED, Finding.DIFFERED)]
    if len(known) < FEWEST:
        return Promise(None, tolerance)
    agreement = float(np.mean(known))
    low, high = wilson(agreement, len(known))
    return Promise(round(agreement, 4), tolerance, [round(low, 4), round(high, 4)])


def finished(handler: OfflineHandler, body: RequestBody, raw: Array) -> tuple[HandlerResponse, HandlerResponse] | None:
    """The handler's own answer, and the one that it makes of this raw output; None if there is none."""
    request = handler.request(body.read(), body.content_type)
    try:
        return handler.answer(request), handler.finish(request, raw)
    except TsParityError:
        return None
    except Exception:  # whatever user code raises at an output that its model never gave
        return None


def _response(answer: HandlerResponse) -> Response:
    return Response(answer.status, answer.phrase or "", answer.header_pairs, answer.body)
