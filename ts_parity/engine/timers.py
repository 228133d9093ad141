"""What time will do: one heap of instants and what is due at each.

Timers are data; whoever drives the engine arms one real timer for the earliest of them. Knows what makes a timer stale
(its query was answered, its group is sealed). Knows nothing of what happens when one is due.
"""

from __future__ import annotations

import heapq
import math
from enum import IntEnum
from itertools import count
from typing import Final

from ts_parity.engine.budgets import TokenBucket
from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.query import CodingGroup, Query, QueryState

Subject = Query | CodingGroup | EndpointState | TokenBucket


ROOM: Final = 16
"""Fewer stale timers are not worth looking for. More would keep the bodies of many answered queries; new bodies would
then go to memory that no cache holds."""


class Timer(IntEnum):
    SEAL = 0
    QUERY = 1
    """The next thing that time does to a query: launch, hedge, release, deadline, or too long a wait for a place."""
    RESUME = 2
    FINISH = 3
    TOKEN = 4
    """Queries wait for the budget, and it has a token again."""


class Timers:
    """Equal instants in the order in which they were armed, so that the same events give the same actions."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer, Subject]] = []
        self._order = count()
        self._limit = ROOM

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, at: float, kind: Timer, subject: Subject) -> None:
        heapq.heappush(self._heap, (at, next(self._order), kind, subject))
        if len(self._heap) > self._limit:
            self._forget_stale()

    def pop_due(self, now: float) -> tuple[float, Timer, Subject] | None:
        """The earliest that is due by now, if any."""
        if not self._heap or self._heap[0][0] > now:
            return None
        at, _, kind, subject = heapq.heappop(self._heap)
        return at, kind, subject

    def earliest(self) -> float:
        heap = self._heap
        while heap:
            timer = heap[0]
            if not is_stale(timer):
                return timer[0]
            heapq.heappop(heap)
        return math.inf

    def _forget_stale(self) -> None:
        """An answered query leaves its timers behind; they go when they outnumber the rest."""
        self._heap = [timer for timer in self._heap if not is_stale(timer)]
        heapq.heapify(self._heap)
        self._limit = ROOM + 2 * len(self._heap)

    def stale(self) -> int:
        return sum(map(is_stale, self._heap))


def is_stale(timer: tuple[float, int, Timer, Subject]) -> bool:
    """Whether nothing is left to do when it is due: a query's own timer counts only as it was last armed."""
    at, _, kind, subject = timer
    if isinstance(subject, Query):
        return subject.state is QueryState.DONE or (kind is Timer.QUERY and at != subject.armed_at)
    return isinstance(subject, CodingGroup) and subject.sealed
