"""Target: within what time the operator wants queries answered, which is not when they are given up.

A backup that takes 0.3 s is of use for a target of 1 s only if it is launched within 0.7 s. Where the general rule (see
`launch`) would launch it later, the target decides; but never earlier than the budget for extra work could pay for, or
queries that would have answered by themselves used up what others need. An answer that is rebuilt before its query
counts as late is held until the target, so that no accuracy is spent on a query that answers in time by itself. Where
the target is farther than the general rule nothing changes, for an answer sooner than wanted costs nothing more.

Knows latencies. Knows nothing of queries.
"""

from __future__ import annotations

import math
from typing import Final, final

from ts_parity.engine.lateness import LATE, LatencyWindow
from ts_parity.engine.launch import LATEST_OF_ALL
from ts_parity.engine.policy import Policy

IN_TIME: Final = 0.95
"""Of the target: by then an answer is to be there, since finishing and sending it take time too."""
PAYABLE: Final = 0.9
"""Of the budget for extra work, what launches for the target may take."""

SOONEST: Final = 0.01
"""The quantile of latency at which the cheapest backup is launched, if the target wants it at once."""


@final
class LatencyTarget:
    """Of one pool. Times are in seconds."""

    __slots__ = ("_backup_latency", "_earliest", "_latency", "policy")

    def __init__(self, policy: Policy, latency: LatencyWindow, backup_latency: LatencyWindow) -> None:
        self.policy = policy
        self._latency = latency
        self._backup_latency = backup_latency
        self._earliest = LATE

    def adopt(self, cost: float) -> None:
        """`cost`: of a backup's answer, in deployed inferences."""
        payable = PAYABLE * self.policy.extra_work / cost if cost > 0.0 else 1.0
        self._earliest = min(LATEST_OF_ALL, max(SOONEST, 1.0 - payable))

    def launch_by(self, arrived_at: float, sent_at: float, scale: float) -> float:
        """When a backup has to be launched to answer by the target; inf: no matter when.

        `scale`: how many times longer than usual the query takes.
        """
        if self.policy.target_s is None:
            return math.inf
        backup_s, earliest_s = self._backup_latency.quantile(LATE), self._latency.quantile(self._earliest)
        if backup_s is None or earliest_s is None:
            return math.inf  # nobody knows yet
        return max(sent_at + earliest_s * scale, self.release_by(arrived_at) - backup_s * scale)

    def release_by(self, arrived_at: float) -> float:
        """When a rebuilt answer is given at the latest; inf: when its query is late."""
        target_s = self.policy.target_s
        return math.inf if target_s is None else arrived_at + IN_TIME * target_s
