"""What time will do: one heap of instants and what is due at each.

Timers are data; whoever drives the engine arms one real timer for the earliest of them. Knows what makes a timer stale
(its query was answered, its group is sealed). Knows nothing of what happens when one is due.
"""

from __future__ import annotations

import heapq
from enum import IntEnum
from itertools import count

from ts_parity.engine.events import Query, QueryState
from ts_parity.engine.fleet import EndpointState
from ts_parity.engine.group import CodingGroup

Subject = Query | CodingGroup | EndpointState


class Timer(IntEnum):
    SEAL = 0
    QUERY = 1
    """The next thing that time does to a query: launch, hedge, release or deadline."""
    WAIT = 2
    RESUME = 3
    FINISH = 4


class Timers:
    """Equal instants in the order in which they were armed, so that the same events give the same actions."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer, Subject]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, at: float, kind: Timer, subject: Subject) -> None:
        heapq.heappush(self._heap, (at, next(self._order), kind, subject))

    def pop_due(self, now: float) -> tuple[float, Timer, Subject] | None:
        """The earliest that is due by now, if any."""
        if not self._heap or self._heap[0][0] > now:
            return None
        at, _, kind, subject = heapq.heappop(self._heap)
        return at, kind, subject

    def earliest(self) -> float | None:
        heap = self._heap
        while heap and is_stale(heap[0][2], heap[0][3]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def forget_stale(self) -> None:
        """An answered query leaves its timers behind; they go when they outnumber the rest."""
        self._heap = [timer for timer in self._heap if not is_stale(timer[2], timer[3])]
        heapq.heapify(self._heap)

    def stale(self) -> int:
        return sum(is_stale(kind, subject) for _, _, kind, subject in self._heap)


def is_stale(kind: Timer, subject: Subject) -> bool:
    if isinstance(subject, Query):
        state = subject.state
        return state is QueryState.DONE or (kind is Timer.WAIT and state is not QueryState.WAITING)
    return isinstance(subject, CodingGroup) and subject.sealed
