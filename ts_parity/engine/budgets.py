"""Budgets: how much may be spent on retries and on second copies.

Knows numbers and times. Knows nothing of queries.
"""

from __future__ import annotations

import math

from ts_parity.engine.policy import Policy


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


def retry_budget(policy: Policy) -> TokenBucket:
    """With time the whole burst comes back within a second, as with Finagle's `minRetriesPerSec`: a proxy without
    traffic would never have a retry again.
    """
    return TokenBucket(policy.retry_ratio, policy.retry_burst, policy.retry_burst if policy.retry_ratio else 0.0)


def hedge_budget(policy: Policy) -> TokenBucket:
    return TokenBucket(policy.hedge_ratio, policy.hedge_burst if policy.hedge_ratio else 0.0)
