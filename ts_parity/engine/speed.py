"""Speed: which endpoints are slower than their pool, learnt from every answer.

An answer says something by where it stands among the recent answers of its pool. Those also say how answers would be
spread if all took twice as long, or five times; so the pool knows how much likelier an answer is of an endpoint that is
so much slower than of one like the others. Nothing has a unit, and no distribution is assumed: where service times
hardly vary, two answers are enough, and where they vary much it takes a dozen. An endpoint that gives much of all
answers is judged by the others' alone.

Each endpoint keeps the chances that it is slower, by Bayes' rule. It may have changed since its last answer, so with
each answer a part of what was learnt is forgotten.

Knows latencies of answers that came. Knows nothing of endpoints, queries or load.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from typing import Final, final

from ts_parity.engine.lateness import ENOUGH, LatencyWindow

TWICE: Final = 2.0
FAR: Final = 5.0
"""Times slower that an endpoint may be: between a bit and far. What is slower still looks like the latter."""
OWN: Final = 1 / 6
"""Share of its pool's last answers from which on an endpoint is judged by the others' alone. One that gives a quarter
of all would make its own lateness usual; a twelfth says next to nothing, and then the pool's are at hand."""
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
class Spread:
    """How some answers are spread, at least one, in ascending order: what a latency says by its place among them."""

    __slots__ = ("_edges", "_far", "_median", "_ordered", "_twice", "far_s", "usual_s")

    def __init__(self, ordered: list[float]) -> None:
        number = len(ordered)
        self._ordered = ordered
        self._median = ordered[number // 2]
        self.usual_s = ordered[int(USUALLY * number)]
        self.far_s = FAR * ordered[number // 4]
        edges = [ordered[int(share * number)] for share in EDGES]
        self._edges = sorted([*edges, TWICE * ordered[int(SOONEST * number)]])
        usual = self._shares(1.0)
        self._twice = [_likelier(slow, base) for slow, base in zip(self._shares(TWICE), usual, strict=True)]
        self._far = [_likelier(slow, base) for slow, base in zip(self._shares(FAR), usual, strict=True)]

    def _shares(self, slower: float) -> list[float]:
        """If all took `slower` times as long: the shares before the first edge, between each two, after the last."""
        ordered = self._ordered
        below = [bisect_right(ordered, edge / slower) / len(ordered) for edge in self._edges]
        return [high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True)]

    def of(self, latency_s: float) -> tuple[float, float, float]:
        """-> how many times likelier it is of an endpoint that is twice as slow, and of one far slower; and its ratio
        to the median.
        """
        place, median = bisect_left(self._edges, latency_s), self._median
        return self._twice[place], self._far[place], latency_s / median if median else 1.0


def _likelier(slow: float, base: float) -> float:
    return ((1.0 - ORDINARY) * slow + ORDINARY * base) / max(base, RARE)


@final
class OwnAnswers:
    """The latencies of one endpoint's answers that its pool still knows, and of those since."""

    __slots__ = ("_each",)

    def __init__(self) -> None:
        self._each: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        return len(self._each)

    def add(self, latency_s: float, window: LatencyWindow) -> None:
        """`window`: that of its pool, which has just learnt of this answer."""
        each = self._each
        each.append((window.count, latency_s))
        while each[0][0] < window.first:
            each.popleft()

    def known(self, window: LatencyWindow) -> list[float]:
        """Those by which it was put in order last."""
        return [latency_s for number, latency_s in self._each if window.first <= number <= window.last]


@final
class Evidence:
    """Of one pool: what a latency says of the endpoint that it is of."""

    __slots__ = ("_changes", "_latency", "spread", "usual_s", "version")

    def __init__(self, latency: LatencyWindow) -> None:
        self._latency = latency
        self._changes = 0
        self.spread: Spread | None = None
        """None as long as too little is known."""
        self.version = 0
        """Counts how often it was learnt what is usual."""
        self.usual_s = 0.0
        """An answer that comes as soon says little of an endpoint that nobody suspects."""

    def renew(self) -> bool:
        """Learn what is usual by now. -> whether everything has changed, so that nothing learnt before counts."""
        latency = self._latency
        if self.version == latency.version or len(latency.ordered) < ENOUGH:
            return False
        self.version = latency.version
        self.spread = Spread(latency.ordered)
        self.usual_s = self.spread.usual_s
        changed = self._changes != latency.changes
        self._changes = latency.changes
        return changed

    def beside(self, own: OwnAnswers) -> Spread | None:
        """What is usual beside the endpoint whose answers these are."""
        latency = self._latency
        known = len(latency.ordered)
        if self.spread is None or len(own) <= OWN * known:
            return self.spread
        mine = sorted(own.known(latency))
        if not OWN * known < len(mine) <= known - ENOUGH:
            return self.spread
        others, skipped = [], 0
        for each in latency.ordered:
            if skipped < len(mine) and each == mine[skipped]:
                skipped += 1
            else:
                others.append(each)
        return Spread(others)


@final
class Speed:
    """Of one endpoint."""

    __slots__ = ("_beside", "_far", "_learnt_at", "_twice", "_version", "own", "ratio", "slow")

    def __init__(self) -> None:
        self.own = OwnAnswers()
        self._beside: Spread | None = None
        self._version = 0
        self.forget()

    def forget(self) -> None:
        """Whatever it was, it is like the others now."""
        self._learnt_at = -math.inf
        self._twice = self._far = PRIOR
        self.slow = 2.0 * PRIOR
        """The chance that it is slower than its pool."""
        self.ratio = 1.0
        """Of its latencies to the pool's median: a running mean."""

    def answered(self, evidence: Evidence, latency_s: float, was_out: bool, now: float) -> None:
        """`was_out`: it was left alone before."""
        spread = evidence.spread
        if spread is not None and (self.slow > CALM or latency_s > spread.far_s):  # else both say next to the same
            if self._version != evidence.version:
                self._version, self._beside = evidence.version, evidence.beside(self.own)
            spread = self._beside
        if spread is None or now - self._learnt_at < APART * spread.usual_s:
            return
        self._learnt_at = now
        twice, far, ratio = spread.of(latency_s)
        self.ratio += WEIGHT * (min(ratio, MOST) - self.ratio)
        forgotten = FORGOTTEN_OUT if was_out else FORGOTTEN
        a = (self._twice + forgotten * (PRIOR - self._twice)) * twice
        b = (self._far + forgotten * (PRIOR - self._far)) * far
        c = 1.0 - self.slow + forgotten * (self.slow - 2.0 * PRIOR)
        self._twice, self._far = a / (a + b + c), b / (a + b + c)
        self.slow = self._twice + self._far
