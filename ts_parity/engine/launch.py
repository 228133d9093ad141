"""Launch: when a protection is asked to run.

With its group where it has machines of its own (the paper's way; parity models always, for they need the other
members' outputs). For late queries only where it stands beside the deployed model: there it would stand in the way of
queries, and a small student launched late gives a better tail at a tenth of the work.

Knows latencies, the load and the code. Knows nothing of where a protection runs.
"""

from __future__ import annotations

import math
from typing import Final, final

from ts_parity.engine.events import Code
from ts_parity.engine.lateness import LATE, LatencyWindow
from ts_parity.engine.policy import LoadMeter, Policy
from ts_parity.engine.query import Query
from ts_parity.engine.sizes import Latest

USUALLY: Final = 0.3
"""Of the budget for extra work, the share that launches take where nothing is slow; the rest is for when something is.
So a cheap protection is launched early, and `exact`, which costs a whole inference, for the latest queries only."""
LATEST: Final = 0.9
"""Of the budget, the share that may go into launches for the latest queries, whatever their size: they are the tail."""
LATEST_OF_ALL: Final = 0.999
"""No protection is so dear, and no budget so small, that only later queries get it: nobody knows what is later."""
SHED_LOAD: Final = 0.85
"""Above this share of places taken, a protection on shared machines is no longer launched with its group: what is left
idle is what queries need."""


@final
class Launch:
    """Of one pool."""

    __slots__ = ("_latency", "_load", "_quantile", "_shared", "late", "latest", "policy")

    def __init__(self, policy: Policy, latency: LatencyWindow, load: LoadMeter) -> None:
        self.policy = policy
        self._latency = latency
        self._load = load
        self._shared = False
        self._quantile = LATE
        self.latest = Latest()
        self.late = False
        """Backups are launched for late queries only."""

    def adopt(self, code: Code | None, partial: bool, shared: bool, cost: float = 1.0) -> None:
        """`partial`: the protection takes groups of any size, for late queries seldom fill one. `shared`: a protection
        stands on a machine that serves deployed models too. `cost`: of a backup's answer, in deployed inferences.
        """
        share = USUALLY * self.policy.extra_work / cost if cost > 0.0 else 1.0
        self._quantile = min(LATEST_OF_ALL, max(LATE, 1.0 - share))
        self.latest.adopt(LATEST * self.policy.extra_work / cost if cost > 0.0 else 1.0)
        self._shared = shared
        late = self.policy.launch == "late" or (self.policy.launch == "auto" and shared)
        self.late = late and code is not None and code.family == "backup" and (partial or code.k == 1)

    @property
    def after_s(self) -> float:
        """How long after a query was sent. The last tenth of the load stretches it most: there the queue, not the
        worker, makes queries late.
        """
        policy = self.policy
        if policy.launch_after_s is not None:
            base = policy.launch_after_s
        else:
            measured = self._latency.quantile(self._quantile)
            base = policy.reconstruct_cold_s if measured is None else measured
        return base * (1.0 + policy.launch_stretch * min(1.0, max(0.0, (self._load.value - 0.5) / 0.5)))

    @property
    def after_waiting_s(self) -> float:
        """How long after a query that has no place yet has come; inf: it is not launched for such."""
        waiting = self.policy.launch_waiting
        return waiting * self.after_s if waiting and self.late else math.inf

    def suits(self, query: Query, code: Code) -> bool:
        """Whether a backup may be launched for this query: once, if it has no group, and no worker may have died of it.
        Where its answer could not be given, because the client or the operator wants none that may differ, it is not.
        """
        if query.late or query.kills or query.group is not None or query.key is None:
            return False
        return code.lossless or (query.least <= 1.0 and self.policy.differing > 0.0)

    @property
    def sheds(self) -> bool:
        """Whether groups go without, for queries need the machines."""
        return self._load.value > SHED_LOAD and self._shared
