"""Histograms of durations: narrow buckets, from which percentiles are read, and of these the wider ones that Prometheus
gets.

Durations are added many at a time, which costs a fraction of adding them one by one. Knows numbers. Knows nothing of
queries or tasks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from struct import pack
from typing import Final, final

import numpy as np

# From half a small model's millisecond to TorchServe's own timeout; finest where tails lie.
WIDE_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.4,
    0.6,
    1.0,
    1.5,
    2.5,
    5.0,
    10.0,
    30.0,
    120.0,
)
NARROW: Final = 1.12
"""A narrow bucket's end is at most this many times its start, so a percentile is off by 6 % at most."""
BEHIND: Final = 10
"""Answers that must lie beyond a percentile for it to be told: one outlier more or less must not decide it."""
PERCENTILES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999)


def _narrow() -> tuple[float, ...]:
    """The ends of the narrow buckets."""
    ends = [WIDE_S[0]]
    for start, end in pairwise(WIDE_S):
        parts = math.ceil(math.log(end / start) / math.log(NARROW))
        ends += [start * (end / start) ** (part / parts) for part in range(1, parts)]
        ends.append(end)
    return tuple(ends)


ENDS_S: Final = _narrow()
BUCKETS: Final = len(ENDS_S) + 1
"""The last one holds whatever took longer than TorchServe's own timeout."""
LABELS: Final = (*(str(end) for end in WIDE_S), "+Inf")
_ENDS = np.array([*ENDS_S, math.inf])
_WIDE_ENDS = np.array([*WIDE_S, math.inf])

Counts = Mapping[int, int]
"""Of the narrow buckets that hold anything: how many."""


def bucket_of(seconds: float) -> int:
    return bisect_left(ENDS_S, seconds)


@final
class CountedDurations:
    """Several durations, to be added to each histogram that they belong to."""

    __slots__ = ("_sorted", "total_s", "wide")

    def __init__(self, seconds: Sequence[float]) -> None:
        # Packed, for numpy's own way to read a list takes twice as long; and sorted, for so few ends are found in them
        # far faster than each of them among the ends.
        self._sorted = np.sort(np.frombuffer(pack(f"{len(seconds)}d", *seconds)))
        self.wide = self._sorted.searchsorted(_WIDE_ENDS, side="right")
        self.total_s = float(self._sorted.sum())

    def counts(self) -> Counts:
        buckets = self._sorted.searchsorted(_ENDS, side="right")
        buckets[1:] -= buckets[:-1].copy()
        held = np.flatnonzero(buckets)
        return dict(zip(held.tolist(), buckets[held].tolist(), strict=True))


@final
class DurationHistogram:
    """Of all durations since the start, in wide buckets."""

    __slots__ = ("_wide", "total_s")

    def __init__(self) -> None:
        self._wide = np.zeros(len(LABELS), dtype=np.int64)
        self.total_s = 0.0

    def add(self, durations: CountedDurations) -> None:
        self._wide += durations.wide
        self.total_s += durations.total_s

    def wide(self) -> list[int]:
        """As Prometheus has it: for each of LABELS, how many took no longer."""
        upto: list[int] = self._wide.tolist()
        return upto


def wide_label(seconds: float) -> str:
    """The bucket, of those that Prometheus has, that a duration falls into."""
    return LABELS[bisect_left(WIDE_S, seconds)]


def added(several: Iterable[Counts]) -> dict[int, int]:
    total: dict[int, int] = {}
    for counts in several:
        for bucket, number in counts.items():
            total[bucket] = total.get(bucket, 0) + number
    return total


def percentile(counts: Counts, share: float) -> float | None:
    """None where too few lie beyond it. Within a bucket durations are taken to be spread evenly."""
    number = sum(counts.values())
    behind = (1.0 - share) * number
    if number == 0 or behind < min(BEHIND, 0.5 * number) - 1e-9:
        return None
    wanted, before = share * number, 0
    for bucket in sorted(counts):
        held = counts[bucket]
        if before + held >= wanted:
            start = ENDS_S[bucket - 1] if bucket else 0.0
            end = ENDS_S[bucket] if bucket < len(ENDS_S) else ENDS_S[-1]
            return start + (end - start) * (wanted - before) / held
        before += held
    return None


def farthest(*several: Counts) -> float:
    """The highest percentile that all of them can tell."""
    return next(
        (share for share in reversed(PERCENTILES) if all(percentile(counts, share) is not None for counts in several)),
        PERCENTILES[0],
    )


def beyond(counts: Counts) -> list[tuple[float, float]]:
    """The tail as a curve: (seconds, the share of all that took longer), at the end of each bucket that holds any."""
    left = number = sum(counts.values())
    curve = []
    for bucket in sorted(counts):
        left -= counts[bucket]
        curve.append((ENDS_S[min(bucket, len(ENDS_S) - 1)], left / number))
    return curve
