"""What protecting one group costs, in deployed inferences: the time of what was packed, on a worker as it will be.

Measured with the packed archive, its own handler and its decoding of bodies included, against plain requests to the
archive of the user. Knows handlers, protections and clocks. Knows nothing of training.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ts_parity.errors import NotCodable
from ts_parity.torchserve.archive import extract_archive
from ts_parity.training.bodies import RequestBody
from ts_parity.training.sizing import ROUNDS, in_turn, usual
from ts_parity.wire import Frame, Part
from ts_parity.worker.entry import OfflineProtection
from ts_parity.worker.offline import OfflineHandler, working_in

_REFUSED = 400


@dataclass(frozen=True)
class Cost:
    """`cost`: T(group) / T(1), taken in turn; None: it could not be measured. `multiplications`: of
    the networks alone, counted, if they can be.
    """

    cost: float | None = None
    group_ms: float | None = None
    one_ms: float | None = None
    multiplications: float | None = None


def measure(
    handler: OfflineHandler,
    packed: Path,
    bodies: Sequence[RequestBody],
    multiplications: float | None,
    device: torch.device,
) -> Cost:
    """`handler`: of the deployed archive; `bodies`: the k of one group. Raise NotCodable if what was packed does not
    answer them, as it would not on a worker.
    """
    parts = [Part((("content-type", b.content_type),) if b.content_type else (), b.read()) for b in bodies]
    frame = Frame(tuple(parts))
    with tempfile.TemporaryDirectory(prefix="ts-parity-cost-") as scratch:
        extract_archive(packed, Path(scratch))
        protection = OfflineProtection(Path(scratch), device.index if device.type == "cuda" else None)
        answered = protection.answer(frame)
        if answered.raw is None and not all(part and part.status < _REFUSED for part in answered.slots):
            said = next(part for part in answered.slots if part and part.status >= _REFUSED)
            raise NotCodable(
                f"its group is answered by status {said.status}: {said.body[:200].decode(errors='replace')}"
            )

        ones = [handler.prediction(handler.request(body.read(), body.content_type)) for body in bodies]
        with working_in(handler.folder):
            group_s, *each_s = usual(in_turn((protection.prediction(frame), *ones), device, ROUNDS))
    one_s = statistics.mean(each_s)
    return Cost(
        cost=round(float(group_s / one_s), 3),
        group_ms=round(1000 * float(group_s), 3),
        one_ms=round(1000 * float(one_s), 3),
        multiplications=None if multiplications is None else round(multiplications, 3),
    )
