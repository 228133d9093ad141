"""Sizes: how many times longer than usual a query takes, by the size of its body and its path.

A big body is late later. Queries are told apart by *size class*: the path, and the size in half octaves. The median of
a class's last answers is compared with what is usual; where it is far off, all times of its queries are scaled. A
median is moved by lateness only where half of a class's answers are late. What is compared are ratios, so a change of
everything at once changes no scale. Where all sizes take as long, all scales are 1. And where three quarters of the
queries take longer than usual, or less, their median is usual from then on.

But the tail is made of big bodies too: `Latest` says from which latency on a query is helped whatever its size.

Knows classes, latencies and ratios of them. Knows nothing of bytes, seconds or queries.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, final

REMEMBERED: Final = 32
"""Answers of a class."""
FEW: Final = 8
"""Answers from which on a class is known."""
OFTEN: Final = 4
"""Answers after which it is looked at again."""
FAR: Final = 1.5
"""A class within this many times of what is usual is usual."""
SHORTEST: Final = 0.01
"""No class is taken to be shorter than this share of what is usual: a clock of milliseconds shows no time at all for
the quickest answers, and times are divided by scales."""
TURN: Final = 256
"""Answers of which three quarters must take longer than usual, or three quarters less, for their median to become what
is usual. Then at most half are on either side of it: it is not left again unless bodies change once more."""
MOST: Final = 256
"""Classes that are told apart, whatever clients send."""
WINDOW: Final = 2048
"""Answers from which `Latest` is learnt: twenty of a size that one body in a hundred has."""
HALF: Final = 0.5
FULL: Final = 0.8
"""Loads up to which big bodies are helped as far as the budget goes, and from which on only if late for their size: at
0.83 their help took what all others needed, and p99.9 was higher than with one queue alone."""
RENEWED: Final = 64
PARTS: Final = 8
"""It is learnt again after so many more answers, or after this part of those that it is learnt from."""
NEAR: Final = 0.75
"""The bound seldom falls by more than a quarter from one time to the next."""

SizeClass = tuple[str, int]
"""Path, and size of the body in half octaves."""


def size_class(path: str, size: int) -> SizeClass:
    """`size`: in bytes."""
    bits = size.bit_length()
    return path, 2 * bits + (size >> (bits - 2) & 1 if bits > 1 else 0)


@final
class Scales:
    """Of one pool."""

    __slots__ = ("_answers", "_known", "_latest", "_unseen", "differ")

    def __init__(self) -> None:
        self.differ = 0
        """Classes that take longer or shorter than usual."""
        self._latest: list[float] = []
        """Scales of the last answers, at most `TURN`."""
        self._answers: dict[SizeClass, deque[float]] = {}
        self._unseen: dict[SizeClass, int] = {}
        self._known: dict[SizeClass, float] = {}

    def of(self, size: SizeClass | None) -> float:
        """How many times longer than usual it takes. A class that is not known takes as long as the next smaller."""
        if not self._known or size is None:
            return 1.0
        scale = self._known.get(size)
        if scale is not None:
            return scale
        smaller = [known for known in self._known if known[0] == size[0] and known[1] < size[1]]
        return self._known[max(smaller)] if smaller else 1.0

    def answered(self, size: SizeClass | None, ratio: float) -> float:
        """`ratio`: of the latency to what is usual. -> how many times longer what is usual takes from now on, nearly
        always 1.
        """
        if size is None:
            return 1.0
        answers = self._answers.get(size)
        if answers is None:
            if len(self._answers) >= MOST:
                self._forget(next(iter(self._answers)))
            answers = self._answers[size] = deque(maxlen=REMEMBERED)
            self._unseen[size] = 0
        answers.append(ratio)
        if len(self._answers) == 1:  # there is nothing to compare with
            return 1.0
        scale = self._known.get(size, 1.0)
        self._unseen[size] += 1
        if len(answers) >= FEW and self._unseen[size] >= OFTEN:
            self._unseen[size] = 0
            before, scale = scale, _scale(sorted(answers)[len(answers) // 2])
            self._known[size] = scale
            self.differ += (scale != 1.0) - (before != 1.0)
        self._latest.append(scale)
        return 1.0 if len(self._latest) < TURN else self._turn()

    def _turn(self) -> float:
        latest, self._latest = sorted(self._latest), []
        if latest[TURN // 4] <= 1.0 <= latest[-TURN // 4 - 1]:
            return 1.0
        usual = latest[TURN // 2]
        for answers in self._answers.values():
            for _ in range(len(answers)):
                answers.append(answers.popleft() / usual)
        self._known = {size: _scale(self.of(size) / usual) for size in self._answers}
        self.differ = sum(scale != 1.0 for scale in self._known.values())
        return usual

    def _forget(self, size: SizeClass) -> None:
        """The class known for longest makes room; if it is asked for again, it is learnt again in a few answers."""
        del self._answers[size], self._unseen[size]
        self.differ -= self._known.pop(size, 1.0) != 1.0


def _scale(ratio: float) -> float:
    return 1.0 if 1.0 / FAR < ratio < FAR else max(SHORTEST, ratio)


@final
class Latest:
    """Of one pool: from which latency on all queries can be helped, whatever their size."""

    __slots__ = ("_affordable", "_answers", "_far_s", "_unseen", "after_s")

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._affordable = 0.0
        self._far_s = 0.0
        """Answers that took as long are most likely enough to learn from."""
        self._unseen = 0
        self.after_s = math.inf

    def adopt(self, affordable: float) -> None:
        """Help for queries of usual size that can be paid for, per query of usual size."""
        self._affordable = affordable

    def rescale(self, usual: float) -> None:
        """Divide all known scales by this: the usual latency has changed by that factor."""
        for _ in range(len(self._answers)):
            latency_s, scale = self._answers.popleft()
            self._answers.append((latency_s, scale / usual))

    def bound(self, late_s: float, scale: float) -> float:
        """When a query is late that would be after `late_s` if it were of usual size."""
        return late_s if scale == 1.0 else min(late_s * scale, max(late_s, self.after_s))

    def answered(self, latency_s: float, scale: float, load: float) -> None:
        """Help for a query costs as much more as the query itself, and the fuller the pool the less can be spared."""
        self._answers.append((latency_s, scale))
        self._unseen += 1
        if self._unseen < max(RENEWED, len(self._answers) // PARTS):
            return
        self._unseen = 0
        idle = min(1.0, max(0.0, (FULL - load) / (FULL - HALF)))
        total, far_s, far = 0.0, self._far_s, []
        for answer in self._answers:
            total += answer[1]
            if answer[0] >= far_s:
                far.append(answer)
        left = idle * self._affordable * total
        if not self._spend(left, far):
            self._spend(left, [*self._answers])
        self._far_s = NEAR * self.after_s

    def _spend(self, left: float, answers: list[tuple[float, float]]) -> bool:
        """On the latest of these answers. -> whether there were enough of them."""
        answers.sort(reverse=True)
        for late_s, scale in answers:
            self.after_s = late_s
            left -= scale
            if left < 0.0:
                return True
        return False
