"""The settings of the policy as one value, and the two small instruments it measures with.

Knows numbers. Knows nothing of queries, groups or endpoints.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Policy:
    """Every duration in seconds. What each does, and when it helps, is in docs/design.md."""

    reconstruct_after_s: float | None = None
    """A rebuilt answer may be used from this long after its query was sent. None: a running quantile of latency."""
    reconstruct_quantile: float = 0.95
    reconstruct_cold_s: float = 1.0
    """Stands in for the quantile until there are enough latencies to know it."""
    group_wait_s: float | None = None
    """A group is sealed with the members it has after this long. None: as `reconstruct_after_s`."""
    deadline_s: float = 30.0
    max_waiting: int = 1000
    max_wait_s: float = 10.0
    retry_ratio: float = 0.1
    """Retries allowed per query, on average."""
    retry_burst: float = 10.0
    max_attempts: int = 3
    default_answer: bool = False
    """At its deadline a query gets the configured default answer instead of an error."""
    failures_until_out: int = 3
    out_s: float = 1.0
    """How long an endpoint that failed so often is left alone, at first; doubled for each failed return, up to 30 s."""
    reject_pause_s: float = 0.05

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, float | int) and not isinstance(value, bool) and not (0 <= value < math.inf):
                raise ValueError(f"{setting.name} must be a number of at least 0, not {value}")
        if not 0 < self.reconstruct_quantile < 1:
            raise ValueError(f"reconstruct_quantile must lie between 0 and 1, not {self.reconstruct_quantile}")
        for name in ("max_waiting", "max_attempts", "failures_until_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class TokenBucket:
    """A budget that grows with the traffic: `ratio` per query, never more than `burst`."""

    def __init__(self, ratio: float, burst: float) -> None:
        self._ratio = ratio
        self._burst = burst
        self.tokens = burst

    def deposit(self) -> None:
        self.tokens = min(self._burst, self.tokens + self._ratio)

    def take(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class LatencyWindow:
    """A quantile of the last `size` latencies, recomputed now and then so that reading it costs nothing.

    Only work that ended counts: a frozen worker's latency is unknown until it thaws.
    """

    ENOUGH = 20
    EVERY = 64

    def __init__(self, quantile: float, size: int = 512) -> None:
        self._quantile = quantile
        self._latencies: deque[float] = deque(maxlen=size)
        self._unseen = 0
        self.value: float | None = None

    def add(self, latency_s: float) -> None:
        self._latencies.append(latency_s)
        self._unseen += 1
        count = len(self._latencies)
        if count >= self.ENOUGH and (self.value is None or self._unseen >= self.EVERY):
            self._unseen = 0
            self.value = sorted(self._latencies)[min(count - 1, int(count * self._quantile))]
