"""Budgets: how much may be spent on retries, and on extra work for late queries.

Knows numbers and times. Knows nothing of queries.
"""

from __future__ import annotations

import math
from typing import Final

from ts_parity.engine.policy import Policy

KEPT_FROM_COPIES: Final = 0.2
"""Of the burst of extra work, the share that second copies leave for protections, which cost less and answer sooner."""
KEPT_FROM_PROBES: Final = 0.5
"""And that probes leave for both: an endpoint that is out can wait."""


class TokenBucket:
    """A budget that grows with the traffic, by `ratio` per query, and with time, by `per_s`; never above `burst`."""

    def __init__(self, ratio: float, burst: float, per_s: float = 0.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self._per_s = per_s
        self._seen_at = 0.0
        self.tokens = burst
        self.spent = 0.0
        """Since the start."""

    def adopt(self, other: TokenBucket) -> None:
        """Its rate and burst, from now on, and the tokens that there are; one that was switched off begins full."""
        if self._burst == 0.0:
            self.tokens += other._burst
        self._ratio, self._burst, self._per_s = other._ratio, other._burst, other._per_s
        self.tokens = min(self.tokens, self._burst)

    def deposit(self, scale: float = 1.0) -> None:
        self.tokens = min(self._burst, self.tokens + self._ratio * scale)

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

    def affords(self, cost: float) -> bool:
        return self.tokens >= cost - 1e-9

    @property
    def in_debt(self) -> bool:
        return self.tokens < -1e-9

    def spend(self, cost: float) -> None:
        """What is more than there was, is owed."""
        self.tokens -= cost
        self.spent += cost

    def take(self, cost: float = 1.0, reserve: float = 0.0) -> bool:
        """`reserve`: what must be left for others, as a share of the burst."""
        if self.tokens - cost < reserve * self._burst - 1e-9:
            return False
        self.tokens -= cost
        self.spent += cost
        return True


def retry_budget(policy: Policy) -> TokenBucket:
    """With time the whole burst comes back within a second, as with Finagle's `minRetriesPerSec`: a proxy without
    traffic would never have a retry again. A ratio of 0 means none at all.
    """
    burst = policy.retry_burst if policy.retry_ratio else 0.0
    return TokenBucket(policy.retry_ratio, burst, burst)


def work_budget(policy: Policy) -> TokenBucket:
    """For late queries: second copies, launches of protections, probes."""
    return TokenBucket(policy.extra_work, policy.work_burst if policy.extra_work else 0.0)
