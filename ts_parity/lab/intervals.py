"""How sure a percentile is: intervals by resampling, which assume nothing about a distribution.

Knows numbers in the order in which they were measured. Knows nothing of queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ts_parity.lab.report import needed

RESAMPLES = 400
BLOCKS = 50
"""A run is cut into so many pieces, or fewer where there are few samples. Queries near each other in time wait for the
same slow machine, so single ones drawn independently would make an interval far too narrow."""
LOW, HIGH = 0.025, 0.975


def interval(values: Sequence[float], share: float, seed: int = 0) -> tuple[float, float] | None:
    """95 % of a percentile, from a block bootstrap of values in order of time. None: too few samples for it.

    Blocks are drawn with replacement and wrap around, so that all values are drawn equally often.
    """
    if len(values) < needed(share):
        return None
    ordered = np.asarray(values, dtype=float)
    size = max(1, math.ceil(len(ordered) / BLOCKS))
    pieces = math.ceil(len(ordered) / size)
    rng = np.random.default_rng(seed)
    rank = math.ceil(round(share * len(ordered), 6)) - 1
    found = []
    for _ in range(RESAMPLES):
        starts = rng.integers(len(ordered), size=pieces)
        picked = (starts[:, None] + np.arange(size)).ravel()[: len(ordered)] % len(ordered)
        found.append(np.partition(ordered[picked], rank)[rank])
    # One of the found values and none between two of them: values may be infinite.
    return float(np.quantile(found, LOW, method="lower")), float(np.quantile(found, HIGH, method="higher"))
