"""Whether the archive's handler is repeatable on the bodies that are scored: if not, no report of it can be believed.

Each body is run several times, in another order and by a fresh object of the handler. Knows handlers and bodies; knows
nothing of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ts_parity.errors import NotRepeatable
from ts_parity.training.bodies import RequestBody
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.repeatable import ObservedRun, RunOnce, check_repeats
from ts_parity.worker.requests import HandlerRequest
from ts_parity.worker.responses import HandlerResponse, response_to_error
from ts_parity.worker.verdict import differing, same_raw

MOST = 100
"""Bodies that are run five times each; spread over all there are."""
_SHOWN = 60


def check_repeatable(
    folder: Path,
    gpu_id: int | None,
    bodies: Sequence[RequestBody],
    most: int = MOST,
    declaration: Mapping[str, str] | None = None,
) -> list[str]:
    """-> where every answer differs from every other, as times and ids do. Raise NotRepeatable with the difference."""
    chosen = bodies[:: max(1, -(-len(bodies) // most))]
    with OfflineHandler(folder, gpu_id, declaration) as handler:
        once = _answering(handler)
        requests = [handler.request(body.read(), body.content_type) for body in chosen]
        first = check_repeats(once, requests, lambda: _answering(handler.another()))
        again = [once(request) for request in requests]
        varying = [{where for where, _, _ in differing(*pair)} for pair in _answers(first, again)]
        fresh = _answering(handler.another())
        elsewhere = [fresh(request) for request in reversed(requests)][::-1]
    for body, own, other_seen, natural in zip(chosen, first, elsewhere, varying, strict=True):
        _check_same(body, own, other_seen, natural)
    return sorted(set().union(*varying))


def _answering(handler: OfflineHandler) -> RunOnce:
    """A refusal of a body is an answer too."""

    def once(request: HandlerRequest) -> ObservedRun:
        try:
            return handler.once(request)
        except Exception as error:  # user code's own way of refusing; TorchServe answers for it
            return ObservedRun(response_to_error(error))

    return once


def _check_same(body: RequestBody, own: ObservedRun, other: ObservedRun, natural: set[str]) -> None:
    told = f"body {body.name}: a fresh copy of the handler, asked in another order, gave"
    if not same_raw(own.raw, other.raw, own.computed_in):
        raise NotRepeatable(f"{told} another raw output")
    for where, a, b in differing(own.answer, other.answer):
        if where not in natural:
            raise NotRepeatable(f"{told} {repr(b)[:_SHOWN]} in place of {repr(a)[:_SHOWN]} at {where}")


def _answers(one: Sequence[ObservedRun], other: Sequence[ObservedRun]) -> list[tuple[HandlerResponse, HandlerResponse]]:
    return [(a.answer, b.answer) for a, b in zip(one, other, strict=True)]
