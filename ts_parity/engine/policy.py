"""The settings of the policy as one value, and the small instruments it measures with.

Knows numbers. Knows nothing of queries, groups or endpoints.
"""

from __future__ import annotations

import math
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
    seal_early: bool = False
    """A group is sealed at once when the next member, at the present rate of arrivals, would come too late for it."""
    launch: str = "group"
    """When a backup is launched: with its `group` (the paper's way), or `late`, only for queries not answered by then.
    Parity models are always launched with the group: they need the other members' outputs."""
    launch_after_s: float | None = None
    """Late launch this long after the query was sent. None: a running quantile of latency, and later under load."""
    launch_quantile: float = 0.9
    launch_stretch: float = 0.2
    """By how much later at full load: the more queries are late only by bad luck, the less a launch is worth."""
    launch_waiting: float = 0.0
    """A query that has waited for a place for so many times `launch_after_s` gets its backup first; 0: never. So a
    crowd is served with backups as far as places are short."""
    hedge_ratio: float = 0.0
    """Second copies allowed per query, on average. 0: no hedging."""
    hedge_burst: float = 10.0
    hedge_after_s: float | None = None
    """A query without an answer gets a second copy this long after it was sent. None: a running quantile of latency."""
    hedge_quantile: float = 0.95
    shed_load: float = 0.85
    """Above this share of places taken, a protection on shared machines is no longer launched with its group."""
    slow_factor: float = 0.0
    """An endpoint this many times slower than the pool's median, `slow_until_out` times in a row, is out. 0: never."""
    slow_until_out: int = 3
    age_factor: float = 0.0
    """An endpoint with a task in flight for so many release times is passed over while there are others. 0: never."""
    spare_places: int = 0
    """So many more than its places an instance is given while all are busy, if its oldest task is overdue and its last
    answer was in time: that one reply may be late on its way while the machine is idle."""
    max_out: float = 0.34
    """Share of a pool's endpoints that slowness may take out at one time."""
    balance: str = "least"
    """`least` outstanding, or `round_robin`, which looks at nothing: a rival to compare with."""
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
        for name in ("launch_quantile", "hedge_quantile"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name, known in (("launch", ("group", "late")), ("balance", ("least", "round_robin"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")
        for name in ("max_waiting", "max_attempts", "failures_until_out", "slow_until_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class TokenBucket:
    """A budget that grows with the traffic, by `ratio` per query, and with time, by `per_s`; never above `burst`."""

    def __init__(self, ratio: float, burst: float, per_s: float = 0.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self._per_s = per_s
        self._seen_at = 0.0
        self.tokens = burst

    def deposit(self) -> None:
        self.tokens = min(self._burst, self.tokens + self._ratio)

    def pass_time(self, now: float) -> None:
        if self._per_s:
            self.tokens = min(self._burst, self.tokens + self._per_s * max(0.0, now - self._seen_at))
            self._seen_at = now

    def wait_s(self, ahead: int) -> float:
        """How long it takes at most until there is a token for one behind `ahead` others; inf: perhaps for ever."""
        missing = ahead + 1.0 - self.tokens
        if missing < 1e-9:  # a timer that was armed for it may come a rounding too early
            return 0.0
        return missing / self._per_s if self._per_s and self._burst >= 1.0 else math.inf

    def take(self) -> bool:
        if self.wait_s(0):
            return False
        self.tokens -= 1.0
        return True


class GapMeter:
    """A running mean of the time between arrivals: when the next one is expected."""

    WEIGHT = 0.05

    def __init__(self) -> None:
        self.mean = 0.0
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        if self._last is not None:
            gap = now - self._last
            self.mean += self.WEIGHT * (gap - self.mean) if self.mean else gap
        self._last = now


class LoadMeter:
    """A running mean of the share of a pool's places that is taken, told at every dispatch: 1.0 is full."""

    WEIGHT = 0.02

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, taken: float, places: float) -> None:
        self.value += self.WEIGHT * (taken / max(places, 1.0) - self.value)
