"""Hedging: when a second copy of a query is made.

Knows latencies. Where it goes is `selection`'s, how many there may be the budget's.
"""

from __future__ import annotations

import math
from typing import final

from ts_parity.engine.lateness import LATE, LatencyWindow
from ts_parity.engine.policy import Policy


@final
class Hedging:
    """Of one pool."""

    __slots__ = ("_backup_latency", "_latency", "policy")

    def __init__(self, policy: Policy, latency: LatencyWindow, backup_latency: LatencyWindow) -> None:
        self.policy = policy
        self._latency = latency
        self._backup_latency = backup_latency

    def after_s(self, launch_after_s: float, scale: float = 1.0) -> float:
        """A second copy costs more than a backup: one that is launched (inf: none is) first gets its time to answer."""
        policy = self.policy
        if policy.hedge_after_s is not None:
            return policy.hedge_after_s
        measured = self._latency.quantile(policy.hedge_quantile)
        after_s = policy.reconstruct_cold_s if measured is None else measured
        if launch_after_s == math.inf:
            return after_s * scale
        return max(after_s * scale, launch_after_s + (self._backup_latency.quantile(LATE) or 0.0) * scale)
