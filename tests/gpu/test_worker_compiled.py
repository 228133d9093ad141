"""User models behind torch.compile, with CUDA graphs and without. Last, since compiling takes most of the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.test_worker import SUM, near
from tests.gpu.workers import expected, image, needs_cuda
from tests.gpu.workers import served as served
from tests.worker.serving import InProcess

pytestmark = needs_cuda
Serve = Callable[..., InProcess]
WAYS = {
    "graphs": {"compiled": "reduce-overhead"},
    "channels last": {"compiled": "default", "channels_last": True},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=[*WAYS])
def test_raw_tails_and_groups(serve: Serve, way: dict[str, Any]) -> None:
    """With graphs, an output lies where the next run will write: whoever keeps it must copy it at once."""
    worker = serve({}, samples=0, **way)
    raws = [worker.ask(image(seed), "raw").raw for seed in range(4)]
    assert raws[0] is None, "the first live requests are watched"
    assert near(raws[2], expected(image(2)), "")
    assert near(raws[3], expected(image(3)), "")
    worker = serve(SUM, samples=0, **way)
    bias = expected(np.zeros((3, 8, 8), np.float32).tobytes())
    for first in (0, 3):
        bodies = [image(first + slot) for slot in range(3)]
        frame = worker.group(*bodies).frame
        assert near(frame.raw, sum(expected(body) for body in bodies) - 2 * bias, "")
