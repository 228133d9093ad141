"""Release: when a rebuilt answer may be used, and by whom.

"First wins" would spend accuracy where nothing is late. So a query waits for its own answer for as long as answers
usually take (a quantile, made robust in `lateness`), or until its own task has failed.

Knows latencies, queries and groups. Knows nothing of endpoints, or of how an answer is rebuilt.
"""

from __future__ import annotations

from typing import Final, final

from ts_parity.engine.accuracy import AccuracyBudget
from ts_parity.engine.lateness import LATE, LatencyWindow
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import CodingGroup, Query, QueryState
from ts_parity.engine.trust import UNREPORTED

MAX_FINISHES: Final = 2
"""Attempts to make an answer of one rebuilt output: what two instances cannot finish is not tried on a third."""


@final
class Release:
    """Of one pool."""

    __slots__ = ("_latency", "budget", "late", "policy")

    def __init__(self, policy: Policy, latency: LatencyWindow) -> None:
        self.policy = policy
        self._latency = latency
        self.budget = AccuracyBudget(policy.differing, policy.doubt_waits)
        self.late = False
        """Backups are launched for late queries only, so their answers are used as soon as they come."""

    @property
    def after_s(self) -> float:
        """How long a query that was sent waits for its own answer."""
        policy = self.policy
        if policy.reconstruct_after_s is not None:
            return policy.reconstruct_after_s
        measured = self._latency.quantile(LATE if self.late else policy.reconstruct_quantile)
        return policy.reconstruct_cold_s if measured is None else measured

    def doubt(self, query: Query, group: CodingGroup) -> float:
        """How often its rebuilt answer is expected to differ from the deployed model's own."""
        if group.code.lossless:
            return 0.0
        known = group.agreement.get(query.slot)
        if known is not None:
            return 1.0 - known
        return 1.0 - (UNREPORTED if group.trust is None else group.trust.expected)

    def wait_s(self, doubt: float) -> float:
        """How much longer a query waits for its own answer if the rebuilt one is in doubt; inf: the budget is spent."""
        price = self.budget.price(doubt)
        return self.after_s * price if price else 0.0

    @staticmethod
    def is_due(query: Query, now: float) -> bool:
        """Whether it has waited long enough, and nothing is being made of a rebuilt output already."""
        return now >= query.release_at and not query.finishes_pending

    def may_be_rebuilt(self, query: Query, group: CodingGroup, finisher: bool) -> bool:
        """Whether a rebuilt answer of this group is good for it. `finisher`: somebody can make answers of outputs."""
        backup = group.code.family == "backup"
        if not group.usable:
            return False
        known = query.least > 1.0 or (query.least > 0.0 and self._is_known(query, group, backup))
        if known and not self.is_confident(query, group):
            return False
        return backup or self.may_be_finished(query, finisher)  # a backup's answers are ready, an output is not

    def is_confident(self, query: Query, group: CodingGroup) -> bool:
        """Whether the answer that has come is as sure as its client wants it."""
        return group.code.lossless or (query.least <= 1.0 and 1.0 - self.doubt(query, group) >= query.least)

    @staticmethod
    def _is_known(query: Query, group: CodingGroup, backup: bool) -> bool:
        """How sure it is; a backup that has said nothing by now never will, and an output says it when finished."""
        return query.slot in group.agreement or (backup and query.slot in group.recoverable())

    @staticmethod
    def may_be_finished(query: Query, finisher: bool) -> bool:
        if query.kills and (query.waiting or query.state is QueryState.POSTPONED or not query.may_run()):
            return False  # it runs at most once more, and that is its own attempt
        return finisher and query.finish_attempts < MAX_FINISHES
