"""Who of those that wait is served next, and who need not wait any longer.

Knows instants, how long clients wait, and what a prediction usually takes. Knows nothing of endpoints or groups.

First come, first served is fair, and where clients wait for as long as it takes it wastes nothing. Under overload with
deadlines, or with clients that leave, it is the worst order there is: each query is sent just before its client gives
up, and nearly all work is for nobody. So three rules:

  - A query that cannot be answered by its deadline any more, were it sent now, is not sent; it is refused at once.
  - One that could not be answered in time even if nobody else came, for so many are before it, is refused on arrival.
  - When the oldest has waited for half of the time it had, there is a standing queue and not just a burst, and from
    then on the newest is served first (as Facebook's adaptive LIFO; Maurer, "Fail at Scale", 2015). Those passed over
    are served when load falls, or refused when they cannot make it any more; the oldest gives way to newcomers.

How long clients wait is their deadline, if the proxy knows it. Those that leave show how long others will stay.
Without either the order is that of arrival, and `max_waiting` and `max_wait_s` bound the queue.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

STANDING: Final = 0.5
"""Of the time it had, the share for which the oldest has waited when the queue is a standing one."""
REMEMBERED: Final = 32
"""Clients that left."""
WEIGHT: Final = 0.05
IMPATIENT: Final = 0.25
"""From this share of leavers, among those who had waited as long as leavers do, the crowd is taken to be impatient. A
few who leave must not cost many who wait their turn."""


def last_start(deadline_at: float, usual_s: float) -> float:
    """Sent at this instant or later, a query cannot be answered in time."""
    return deadline_at - usual_s


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
