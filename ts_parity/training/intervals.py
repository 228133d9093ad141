"""95 % intervals of what was measured on some bodies, for bodies of the same kind.

Bodies are drawn, answers are not: one body is scored in several groups, and of a parity code all that one group's
answers have in common is its parity model's error, made of all its members. So what answers are worth is worked out
from sums over all groups that have a body in common (Aronow, Samii and Assenova, Political Analysis 2015), for shares
as so many independent bodies with Wilson's interval, and for differences on the same answers (a drop) from the pairs.

Pure arithmetic. Knows nothing of codes or of what is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ts_parity.wire import Array

Z = 1.959964
"""Of the normal distribution, 2.5 % lie beyond it."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class ScoredAnswers:
    """To which bodies the answers belong whose scores are (answers of a group, groups).

    `slots`: of each of a group's answers. `contents` (groups, members): the number of each slot's content. `together`:
    an answer depends on all members of its group, and not on its own body alone.
    """

    slots: tuple[int, ...]
    contents: Array
    together: bool

    @property
    def different(self) -> int:
        return len(np.unique(self.contents))

    def variance(self, scores: Array) -> float:
        """Of the mean of `scores`."""
        _, contents = np.unique(self.contents, return_inverse=True)
        contents = contents.reshape(self.contents.shape)
        off, count, members = scores - scores.mean(), int(contents.max()) + 1, len(contents[0])
        own = np.zeros(count)
        for slot, each in zip(self.slots, off, strict=True):
            own += np.bincount(contents[:, slot], each, count)
        squares = float(np.square(own).sum())
        if self.together:
            groups = off.sum(0)
            shared = np.bincount(contents.ravel(), np.repeat(groups, members), count)
            # A group is counted once for each of its members, and is one.
            squares = max(squares, float(np.square(shared).sum() - (members - 1) * np.square(groups).sum()))
        return float(squares / scores.size**2 * count / max(1, count - 1))


def of_share(scores: Array, answers: ScoredAnswers, binary: bool = True) -> Interval:
    """Of the mean of scores between 0 and 1. `binary`: each is (nearly) one or the other, and then they tell no more
    than so many bodies do; none in fifty wrong is no proof that none is.
    """
    share, variance, bodies = float(scores.mean()), answers.variance(scores), answers.different
    worth = share * (1 - share) / variance if variance > 0 else float(bodies)
    return wilson(share, min(worth, bodies) if binary else worth)


def wilson(share: float, count: float) -> Interval:
    """Of `count` independent trials (Wilson, JASA 1927)."""
    squared = Z * Z / count
    middle = (share + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_difference(scores: Array, answers: ScoredAnswers) -> Interval:
    """Of the mean of scores that are 1, 0 or -1, or between these: of two shares, pair by pair.

    With half a pair more of each kind (Agresti and Min, Statistics in Medicine 2005): where no pair differs, the next
    one may.
    """
    more = 1.0 / (answers.different + 2)
    return _normal(float(scores.mean()), answers.variance(scores) + more * more)


def of_mean(scores: Array, answers: ScoredAnswers) -> Interval:
    """Of the mean of scores that have a unit."""
    return _normal(float(scores.mean()), answers.variance(scores))


def of_root(squares: Array, answers: ScoredAnswers) -> Interval:
    """Of the root of a mean of squares."""
    low, high = of_mean(squares, answers)
    return math.sqrt(max(0.0, low)), math.sqrt(high)


def _normal(mean: float, variance: float) -> Interval:
    half = Z * math.sqrt(variance)
    return mean - half, mean + half
