"""Retries: whether a query whose task has failed is sent again, and at what price.

The budget and the limit of attempts are there against queries that fail everywhere. That an instance is gone says
nothing of the query: where nothing was run it never counts, and a connection that breaks is forgiven once. Without a
token the query waits for one, if somebody healthy is there and its time allows: it loses nothing.

A fast-failing instance is always idle, so it would absorb every retry while the others are merely busy. So a retry
waits for an instance elsewhere, for as long as makes a query late; longer would be too long: that one may be frozen.

What may have killed a worker, or an instance, runs at most once more (`Query.may_run`).

Knows one query, the cause of its failure and the budget. Knows nothing of where it goes.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final, final

from ts_parity.engine.budgets import TokenBucket, retry_budget
from ts_parity.engine.events import Cause, Failed
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import Query

NOTHING_RAN: Final = (Cause.UNREACHABLE, Cause.MISSING)
LONGEST_REST_S: Final = 1.0
"""Where every instance refuses connections, or rejects it, a query asks again after twice the time before, and at least
this often."""


class Retry(Enum):
    NO = "no"
    FREE = "free"
    """It failed with its instance and not by itself."""
    LATER = "later"
    """What else has it may still kill a worker or answer it. If it does neither, its own second attempt is due."""
    PAID = "paid"
    OWES = "owes"
    """As soon as there is a token for it."""


@final
class Retries:
    """Of all pools together: a storm of one is one of all."""

    __slots__ = ("budget", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.budget: TokenBucket = retry_budget(policy)

    def adopt(self, policy: Policy) -> None:
        self.policy = policy
        self.budget.adopt(retry_budget(policy))

    def judge(self, query: Query, failed: Failed, repeatable: bool, hedge: bool) -> Retry:
        """Whether it may be sent again at all, and if so whether it has to be paid for. `hedge`: it was its second copy
        that failed, which is no attempt of its own.
        """
        cause = failed.cause
        if not failed.retry or (not repeatable and cause not in NOTHING_RAN):
            return Retry.NO
        excused = cause in (Cause.UNREACHABLE, Cause.GONE, Cause.WORKER_DIED)
        lost = cause in (Cause.LOST, Cause.LOST_BEHIND)
        excused = excused or (lost and not query.forgiven)
        if self.policy.max_attempts == 1 and cause is not Cause.UNREACHABLE:
            excused = False  # nothing that may have been run is to run twice
        if lost:
            query.forgiven = True
        elif cause is Cause.UNREACHABLE:
            query.last_chance = False
        if excused and not hedge:
            query.excused += 1
        if not self.has_attempts(query):
            return Retry.NO
        if query.kills and not query.may_run():
            return Retry.LATER if query.kills == 1 and not query.last_chance else Retry.NO
        return Retry.FREE if excused else Retry.OWES

    def pay(self, query: Query, ahead: int, hopeful: bool, now: float) -> Retry:
        """`ahead`: how many wait for a token before it. `hopeful`: something may come of waiting for one."""
        self.budget.pass_time(now)
        if not ahead and self.budget.wait_s(0) == 0:
            self.settle(query)
            return Retry.PAID
        assert query.deadline_at is not None
        query.owes = hopeful and self.budget.wait_s(ahead) < query.deadline_at - now
        return Retry.OWES if query.owes else Retry.NO

    def settle(self, query: Query) -> None:
        """There is a token, and it has it."""
        self.budget.take()
        query.owes = False

    def has_attempts(self, query: Query) -> bool:
        return query.attempts - query.excused < self.policy.max_attempts

    def is_choosy(self, query: Query, elsewhere: bool, now: float) -> bool:
        """Whether it does not take just any place now. `elsewhere`: a healthy instance has not failed it yet."""
        choosy = elsewhere and now < query.choosy_until and self.policy.balance != "round_robin"
        return choosy or now < max(query.rests_until, query.yields_until)

    def choosy_until(self, query: Query, late_after_s: float, now: float) -> float:
        """Until then it waits for an instance elsewhere."""
        assert query.deadline_at is not None
        return min(now + late_after_s, (now + query.deadline_at) / 2)

    def rest_until(self, query: Query, unreachable_since: float, now: float) -> float:
        """Nobody can be reached. They may be back in a moment, so it asks again then; inf: that has gone on for too
        long, and no query waits in vain.
        """
        if now > unreachable_since + self.policy.max_wait_s:
            return math.inf
        return self.rest_after(query.excused, now)

    def rest_after(self, rounds: int, now: float) -> float:
        """Until when a query rests after all instances have turned it down `rounds` times."""
        doubled: float = self.policy.reject_pause_s * 2.0 ** min(rounds, 10)
        return now + min(LONGEST_REST_S, doubled)
