"""Speed: which endpoints are slower than their pool, learnt from every answer.

An answer says something by where it stands among the recent answers of its pool. Those also say how answers would be
spread if all took twice as long, or five times; so the pool knows how much likelier an answer is of an endpoint that is
so much slower than of one like the others. Nothing has a unit, and no distribution is assumed: where service times
hardly vary, two answers are enough, and where they vary much it takes a dozen.

Each endpoint keeps the chances that it is slower, by Bayes' rule. It may have changed since its last answer, so with
each answer a part of what was learnt is forgotten.

Knows latencies of answers that came. Knows nothing of endpoints, queries or load.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Final, final

from ts_parity.engine.lateness import ENOUGH, LatencyWindow

TWICE: Final = 2.0
FAR: Final = 5.0
"""Times slower that an endpoint may be: between a bit and far. What is slower still looks like the latter."""
EDGES: Final = (0.25, 0.5, 0.75, 0.9, 0.97)
"""Shares of the pool's answers between which answers are told apart."""
SOONEST: Final = 0.01
"""They are told apart as well from where all but this share of an endpoint's twice as slow would be: where answers
hardly vary, one that is late by a tenth is rare, but rarer still of an endpoint twice as slow."""
APART: Final = 0.25
"""Of what is usual. Answers of an endpoint that come closer together than this count as one: where the proxy or the way
has stood still, whatever was under way is late together."""
USUALLY: Final = 0.75
"""The share up to which an answer says little of an endpoint that nobody suspects."""
ORDINARY: Final = 0.1
"""Share of a slower endpoint's answers that are taken to be as any other's: a small window is not the whole truth."""
RARE: Final = 0.02
"""Share of an endpoint's answers that may come from anywhere: nothing that is seen once is proof."""
PRIOR: Final = 0.02
"""The chance of being twice as slow, and that of being far slower, before anything is known."""
FORGOTTEN: Final = 0.02
"""With each answer: spells last for some fifty answers."""
FORGOTTEN_OUT: Final = 0.5
"""With the first answer after it was left alone."""
CALM: Final = 0.05
"""Chance of being slower up to which nobody suspects it."""
DOUBT: Final = 0.5
"""And from which it is used for want of others."""
SURE: Final = 0.98
"""And from which it is ejected."""
WEIGHT: Final = 0.3
MOST: Final = 100.0


@final
class Evidence:
    """Of one pool: what a latency says of the endpoint that it is of."""

    __slots__ = ("_changes", "_edges", "_far", "_latency", "_twice", "_version", "usual_s")

    def __init__(self, latency: LatencyWindow) -> None:
        self._latency = latency
        self._version = self._changes = 0
        self._edges: list[float] = []
        self._twice: list[float] = [1.0]
        self._far: list[float] = [1.0]
        self.usual_s = 0.0
        """An answer that comes as soon says little of an endpoint that nobody suspects."""

    def renew(self) -> bool:
        """Learn what is usual by now. -> whether everything has changed, so that nothing learnt before counts."""
        latency = self._latency
        if self._version == latency.version or len(latency.ordered) < ENOUGH:
            return False
        self._version = latency.version
        ordered, number = latency.ordered, len(latency.ordered)
        self.usual_s = ordered[int(USUALLY * number)]
        edges = [ordered[int(share * number)] for share in EDGES]
        self._edges = sorted([*edges, TWICE * ordered[int(SOONEST * number)]])
        usual = self._shares(1.0)
        self._twice = [_likelier(slow, base) for slow, base in zip(self._shares(TWICE), usual, strict=True)]
        self._far = [_likelier(slow, base) for slow, base in zip(self._shares(FAR), usual, strict=True)]
        changed = self._changes != latency.changes
        self._changes = latency.changes
        return changed

    def _shares(self, slower: float) -> list[float]:
        """If all took `slower` times as long: the shares before the first edge, between each two, after the last."""
        ordered = self._latency.ordered
        below = [bisect_right(ordered, edge / slower) / len(ordered) for edge in self._edges]
        return [high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True)]

    def of(self, latency_s: float) -> tuple[float, float, float]:
        """-> how many times likelier it is of an endpoint that is twice as slow, and of one far slower; and its ratio
        to the median.
        """
        place, median = bisect_left(self._edges, latency_s), self._latency.median
        return self._twice[place], self._far[place], latency_s / median if median else 1.0


def _likelier(slow: float, base: float) -> float:
    return ((1.0 - ORDINARY) * slow + ORDINARY * base) / max(base, RARE)


@final
class Speed:
    """Of one endpoint."""

    __slots__ = ("_far", "_learnt_at", "_twice", "ratio", "slow")

    def __init__(self) -> None:
        self._learnt_at = -math.inf
        self._twice = self._far = PRIOR
        self.slow = 2.0 * PRIOR
        """The chance that it is slower than its pool."""
        self.ratio = 1.0
        """Of its latencies to the pool's median: a running mean."""

    def answered(self, evidence: Evidence, latency_s: float, was_out: bool, now: float) -> None:
        """`was_out`: it was left alone before."""
        if now - self._learnt_at < APART * evidence.usual_s:
            return
        self._learnt_at = now
        twice, far, ratio = evidence.of(latency_s)
        self.ratio += WEIGHT * (min(ratio, MOST) - self.ratio)
        forgotten = FORGOTTEN_OUT if was_out else FORGOTTEN
        a = (self._twice + forgotten * (PRIOR - self._twice)) * twice
        b = (self._far + forgotten * (PRIOR - self._far)) * far
        c = 1.0 - self.slow + forgotten * (self.slow - 2.0 * PRIOR)
        self._twice, self._far = a / (a + b + c), b / (a + b + c)
        self.slow = self._twice + self._far
