"""Admission: which waiting query is served next, and which need not wait any longer.

Knows queries' instants, how long clients wait, and what a prediction usually takes. Knows nothing of endpoints, groups,
or of the queue itself: it receives how many wait, and the oldest.

First come, first served is fair, and where clients wait for as long as it takes it wastes nothing. Under overload with
deadlines, or with clients that leave, it is the worst order there is: each query is sent just before its client gives
up, and nearly all work is wasted. So three rules:

  - A query that cannot be answered by its deadline any more, were it sent now, is not sent; it is refused at once.
  - One that could not be answered in time even if no other came, because too many are before it, is refused on arrival.
  - When the oldest has waited for half of the time it had, there is a standing queue and not just a burst, and from
    then on the newest is served first (as Facebook's adaptive LIFO; Maurer, "Fail at Scale", 2015). Those passed over
    are served when load falls, or refused when they cannot make it any more; the oldest gives way to newcomers.

How long clients wait is their deadline, if the proxy knows it. Those that leave show how long others will stay.
Without either the order is that of arrival, and `max_waiting` and `max_wait_s` bound the queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final, final

from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.policy import Policy
from ts_parity.engine.query import Query

STANDING: Final = 0.5
"""Of the time it had, the share for which the oldest has waited when the queue is a standing one."""
REMEMBERED: Final = 32
"""Clients that left."""
WEIGHT: Final = 0.05
IMPATIENT: Final = 0.25
"""From this share of leavers, among those who had waited as long as leavers do, the crowd is taken to be impatient. A
few clients that leave must not cost the many that wait their turn."""


def last_start(deadline_at: float, usual_s: float) -> float:
    """Sent at this instant or later, a query cannot be answered in time."""
    return deadline_at - usual_s


class Verdict(Enum):
    """What becomes of a query that finds others waiting."""

    WAIT = "wait"
    REFUSE = "refuse"
    MAKE_ROOM = "make room"
    """It waits, and the oldest, which cannot be answered in time any more, is refused."""


@final
class Admission:
    """Of one pool: which query may wait, which is served next and which is refused."""

    __slots__ = ("_latency", "_places", "_pressed_until", "patience", "policy")

    def __init__(self, policy: Policy, latency: LatencyWindow) -> None:
        self.policy = policy
        self._latency = latency
        self._places = 1
        self._pressed_until = -math.inf
        """Until then the newest goes first, since one that waited has run out of time."""
        self.patience = PatienceMeter()

    def adopt(self, places: int) -> None:
        """Of the deployed endpoints."""
        self._places = max(1, places)

    def judge(self, query: Query, oldest: Query, waiting: int, now: float) -> Verdict:
        """Whether one more may join `waiting` others. Where the newest goes first, the oldest makes room for it."""
        full = waiting >= self.policy.max_waiting
        median = self._latency.median
        usual_s = median * query.scale
        starts_at = now + self.clears_s(waiting)
        if not self.newest_first(oldest, now):
            assert query.deadline_at is not None
            return Verdict.WAIT if not full and starts_at < query.deadline_at - usual_s else Verdict.REFUSE
        return Verdict.MAKE_ROOM if full or starts_at >= oldest.start_by else Verdict.WAIT

    def clears_s(self, waiting: int) -> float:
        """How long it usually takes until so many have had a place."""
        return waiting * self._latency.median / self._places

    def newest_first(self, oldest: Query, now: float) -> bool:
        return now > oldest.stale_at or (now < self._pressed_until and oldest.start_by < math.inf)

    def judge_time(self, query: Query) -> None:
        """By when a query that waits must be sent, and for how long the queue behind it may be taken for a burst."""
        query.start_by = query.stale_at = math.inf
        if query.release_at < math.inf or query.in_flight or query.late:  # it was sent before, or helped otherwise
            return
        assert query.deadline_at is not None
        usual_s, arrived_at = self._latency.median * query.scale, query.arrived_at
        query.start_by = start_by = last_start(query.deadline_at, usual_s)
        leaves_at = arrived_at + self.patience.patience_s - usual_s
        query.stale_at = arrived_at + STANDING * ((start_by if start_by < leaves_at else leaves_at) - arrived_at)

    def is_hopeless(self, query: Query, now: float) -> bool:
        """Whether it would be sent in vain."""
        if now < query.start_by:
            return False
        self.judge_time(query)  # what is usual may have changed since
        return now >= query.start_by

    def is_in_vain(self, query: Query, now: float) -> bool:
        """Whether one that could have a place is refused instead. One that has just arrived is sent, or nobody would
        learn when all goes faster again.
        """
        return now > query.arrived_at and self.is_hopeless(query, now)

    def waits_until(self, query: Query) -> float:
        """For its first place."""
        return query.arrived_at + self.policy.max_wait_s

    def refused(self, query: Query, now: float) -> None:
        """It has waited in vain: for as long as it waited, the newest goes first."""
        self._pressed_until = max(self._pressed_until, now + (now - query.arrived_at))
        self.patience.stayed(now - query.arrived_at)

    def served(self, query: Query, now: float) -> None:
        if now - query.arrived_at > self.patience.leave_after_s:
            self.patience.stayed(now - query.arrived_at)

    def left(self, query: Query, others: Iterable[Query], now: float) -> None:
        """Its client left. `others`: those that wait; it may follow that they will leave as well."""
        before = self.patience.patience_s
        self.patience.left(now - query.arrived_at)
        if before == math.inf and self.patience.patience_s < math.inf:
            for other in others:
                self.judge_time(other)


class PatienceMeter:
    """How long clients wait for a place before they leave; inf: for as long as it takes, so far as is known."""

    __slots__ = ("_left", "_share", "leave_after_s", "patience_s")

    def __init__(self) -> None:
        self._left: deque[float] = deque(maxlen=REMEMBERED)
        self._share = 0.0
        """Of those who had waited as long as leavers do, how many left."""
        self.leave_after_s = math.inf
        """How long those had waited who left."""
        self.patience_s = math.inf

    def left(self, waited_s: float) -> None:
        """A client left while its query waited for a place."""
        self._left.append(waited_s)
        # A quarter of the leavers may have had other reasons, and left earlier.
        self.leave_after_s = sorted(self._left)[len(self._left) // 4]
        self._judge(1.0)

    def stayed(self, waited_s: float) -> None:
        """A client was still there when its query got a place, or was refused."""
        if waited_s > self.leave_after_s:
            self._judge(0.0)

    def _judge(self, left: float) -> None:
        self._share += WEIGHT * (left - self._share)
        self.patience_s = self.leave_after_s if self._share >= IMPATIENT else math.inf
