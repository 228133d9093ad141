"""The accuracy budget: how many answers may differ from the deployed model's own, and what a doubtful one is worth.

A rebuilt answer costs its *doubt*: one minus its expected agreement. Every query adds `differing` to the budget, and
every rebuilt answer that is given takes its doubt. So over any number of queries the expected share that differs stays
within `differing`, but for at most `BURST` answers saved up before.

A sure answer costs next to nothing and is given as soon as its query is late. A doubtful one has a price in lateness:
its query waits longer for its own answer, the longer the more doubt there is and the less of the budget is left. The
price rises steeply with doubt, since most of the budget goes to the few most doubtful: a tenth of a student's answers
holds five sixths of its doubt. Leaving out the worst few pays for all the others at once, where a gentle price would
make everybody in some doubt wait. While the budget is hardly touched, as where few queries are late, nobody waits.

Expectations come from training's bodies. Live comparison with the queries' own late answers corrects them: where twice
as many differ as expected, each doubt counts twice.

Knows numbers. Knows nothing of queries, groups or answers.
"""

from __future__ import annotations

import math
from typing import Final, final

BURST: Final = 2.0
"""Answers that may differ at once: two given at random, a dozen in doubt, or thousands of sure ones."""
DEAR: Final = 0.4
"""An answer whose doubt is this share of what is left waits for one more usual latency."""
STEEP: Final = 8
"""The power of that share. With a price in proportion to doubt, p99.9 was 1.41 and 1.34 times that with nothing slow
where 2 % of the replies are late (load 0.3 and 0.6), with this power 1.13 and 1.23, and without any limit 1.09 and
1.13. Between powers of 4 and 16, and shares of 0.3 to 0.5, it differs by a twentieth."""
PRIOR: Final = 4.0
"""Answers taken to have differed, as many as expected, before any was compared."""
REMEMBERED: Final = 64.0
"""Answers expected to differ from which on earlier comparisons count half."""


@final
class AccuracyBudget:
    """Of one pool."""

    __slots__ = ("_differed", "_doubt_waits", "_expected", "_share", "_tokens", "spent")

    def __init__(self, share: float, doubt_waits: bool = True) -> None:
        """`share`: of all answers, those that may differ. 0: only answers without doubt are given. 1: no limit.
        `doubt_waits`: else answers are given as they come, until the budget is spent.
        """
        self._doubt_waits = doubt_waits
        self._share = share
        self._tokens = BURST if share else 0.0
        self.spent = 0.0
        """Answers given that are expected to differ, as corrected."""
        self._expected = self._differed = PRIOR

    def adopt(self, share: float) -> None:
        """Another share from now on. What is left of the old one stays; where there was none, it begins full."""
        if not self._share:
            self._tokens += BURST
        self._share = share
        self._tokens = min(self._tokens, BURST) if share else min(self._tokens, 0.0)

    def deposit(self) -> None:
        """A query has come."""
        self._tokens = min(BURST, self._tokens + self._share) if self._share else 0.0

    def compared(self, doubt: float, differs: bool) -> None:
        """A rebuilt answer of this doubt was compared with the query's own."""
        self._expected += doubt
        self._differed += differs
        if self._expected > REMEMBERED:
            self._expected /= 2.0
            self._differed /= 2.0

    @property
    def correction(self) -> float:
        """How many times more answers differ than expected."""
        return self._differed / self._expected

    def price(self, doubt: float) -> float:
        """How much longer the query waits for its own answer, in usual latencies; inf: too little is left."""
        if self._share >= 1.0 or doubt <= 0.0:
            return 0.0
        cost = doubt * self.correction
        if cost > self._tokens:
            return math.inf
        if not self._doubt_waits or self._tokens >= BURST:
            return 0.0
        price: float = (cost / (DEAR * self._tokens)) ** STEEP
        return price

    def snapshot(self) -> dict[str, float]:
        """For status."""
        return {
            "expected": round(self.spent, 6),
            "budget_left": round(self._tokens, 6),
            "correction": round(self.correction, 3),
        }

    def spend(self, doubt: float) -> None:
        """An answer of this doubt is given."""
        cost = doubt * self.correction
        self.spent += cost
        if self._share < 1.0:
            self._tokens -= cost
