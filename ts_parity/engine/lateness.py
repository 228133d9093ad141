"""What is usual: how long an answer takes, measured from few samples and from samples that hold what is to be cured.

Knows latencies of answers that came. Knows nothing of queries, endpoints or why one was late.

A plain quantile learns from what it should cure: of twenty answers the 0.95 quantile is the largest, so one frozen
worker sets it; with a tenth of all answers late it is a late one. So two estimates are made, and the lower one counts:

  - the quantile as it was measured;
  - what it would be if the upper tail were that of a lognormal distribution through median and upper quartile. Lateness
    has to reach a quarter of all answers before it moves the quartile. Service times are close to lognormal, narrow or
    wide; mixed sizes have a farther quartile, and there the measured quantile counts.

When everything has changed (a new version, another machine), most of the last few answers are slower than four fifths
of those before, or three quarters are far faster than was usual: the older ones are forgotten.
"""

from __future__ import annotations

from collections import deque
from statistics import NormalDist
from typing import Final

WINDOW: Final = 512
FEW: Final = 5
"""Answers from which on there is an estimate."""
ENOUGH: Final = 20
"""Answers from which on their spread says something."""
MANY: Final = 64
"""Answers from which on a fifth of late ones hardly ever reaches the quartile. Reading must cost nothing, so quantiles
are computed again after this many more answers, and earlier while there are few."""
RECENT: Final = 32
"""Answers in which a change of everything shows."""
MARGIN: Final = 1.5
"""An answer within this many medians is not late. Even narrow distributions have tails heavier than a lognormal one:
the garbage collector, the scheduler, a cold cache."""
MARGIN_OF_FEW: Final = 3.0
"""No estimate from few answers is farther from the median."""
FASTER: Final = 1.5
"""Three quarters of the recent answers this many times faster than the median: everything has become faster."""
LATE: Final = 0.9
"""The quantile of latency at which a backup is launched for a late query; its answer is used as soon as it comes."""
_NORMAL: Final = NormalDist()
_QUARTILE: Final = _NORMAL.inv_cdf(0.75)


class LatencyWindow:
    """Robust quantiles of the last `size` latencies.

    Only work that ended counts: a frozen worker's latency is unknown until it thaws.
    """

    def __init__(self, size: int = WINDOW) -> None:
        self._latencies: deque[float] = deque(maxlen=size)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._unseen = 0
        self._unsorted = 0
        self._due = FEW
        self.ordered: list[float] = []
        """Those known, in ascending order."""
        self.version = 0
        """Counts how often they were put in order."""
        self.changes = 0
        """And how often everything has changed."""
        self._known: dict[float, float] = {}
        self.median = 0.0
        """0 as long as nothing is known."""

    def add(self, latency_s: float) -> None:
        self._latencies.append(latency_s)
        self._recent.append(latency_s)
        self._unseen += 1
        if self._unseen >= self._due:
            self._refresh()

    def rescale(self, factor: float) -> None:
        """Multiply all known latencies by this, because the unit that they are measured in has changed."""
        for known in (self._latencies, self._recent):
            for _ in range(len(known)):
                known.append(known.popleft() * factor)
        if self.ordered:
            self._order()

    def _refresh(self) -> None:
        self._unsorted += self._unseen
        self._unseen = 0
        changed = len(self._latencies) > RECENT and self._has_changed()
        if changed:
            newest = [*self._recent][-ENOUGH:]
            self._latencies.clear()
            self._latencies.extend(newest)
        if changed or self._unsorted >= min(MANY, len(self._latencies) // 4):
            self.changes += changed
            self._order()
        self._due = FEW if len(self._latencies) < RECENT else RECENT // 2

    def _order(self) -> None:
        self._unsorted = 0
        self.ordered = sorted(self._latencies)
        self.version += 1
        self._known.clear()
        self.median = _at(self.ordered, 0.5)

    def _has_changed(self) -> bool:
        """Whether most of the recent ones are slower than four fifths of all, or nearly all far faster than usual.

        With all as ever, either happens once in millions of answers, whatever their distribution.
        """
        recent = sorted(self._recent)
        slower = _at(recent, 0.4) > _at(self.ordered, 0.8)
        return slower or _at(recent, 0.75) * FASTER < self.median

    def quantile(self, share: float) -> float | None:
        """None until there are enough latencies to know anything."""
        known = self._known.get(share)
        if known is None and self.ordered:
            known = self._known[share] = robust_quantile(self.ordered, share)
        return known


def robust_quantile(ordered: list[float], share: float) -> float:
    """Of latencies in ascending order, at least one, of which up to a fifth may be late ones."""
    median = _at(ordered, 0.5)
    if share <= 0.5:
        return _at(ordered, share)
    if len(ordered) < ENOUGH:
        return median * MARGIN_OF_FEW
    spread = _at(ordered, 0.75) / median if median > 0 else 1.0
    tail: float = spread ** (_NORMAL.inv_cdf(share) / _QUARTILE)
    usual = median * max(MARGIN, tail)
    if len(ordered) < MANY:
        usual = min(usual, median * MARGIN_OF_FEW)
    return min(_at(ordered, share), usual)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
