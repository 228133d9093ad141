"""When an endpoint is left alone, and how it comes back.

Here: consecutive failures or slow answers, a pause after a rejection, a single trial before a return and a slow start
after it. Knows one endpoint's outcomes and times, and nothing else. An endpoint that fails fast is always idle, so
without this it would draw all the traffic.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

LONGEST_OUT: Final = 30
LONGEST_SLOW: Final = 4
"""And of one that is merely slow: it helps again when it is fast, and a probe costs one inference."""
"""Times the first time out, which is a second."""
WARM: Final = 64
"""Tasks at a time from which a slow start is over."""
NO_LIMIT: Final = 1 << 30


class Condition(Enum):
    IN = "in"
    OUT = "out"
    TRIAL = "trial"


class Health:
    """IN until `failures_until_out` failures in a row, then OUT until `resumes_at`, then one TRIAL that decides.

    An endpoint that comes back has cold caches and must warm up: one task more at a time with each that succeeds.
    """

    __slots__ = (
        "_failures",
        "_failures_until_out",
        "_out_s",
        "_returns",
        "clean",
        "condition",
        "only_slow",
        "ramp",
        "resumes_at",
        "untroubled",
    )

    def __init__(self, failures_until_out: int, out_s: float) -> None:
        self._failures_until_out = failures_until_out
        self._out_s = out_s
        self._failures = 0
        self._returns = 0
        self.condition = Condition.IN
        self.resumes_at = 0.0
        self.only_slow = False
        """It is out for answering slowly: better than nothing when everybody else is busy."""
        self.ramp = NO_LIMIT
        """Tasks it may have in flight, if its places allow it."""
        self.clean = True
        """Its last answer came, and in time."""
        self.untroubled = True
        """Another success would change nothing."""

    def sent(self, now: float) -> None:
        """The first task after a time out is the trial."""
        if self.condition is Condition.OUT and now >= self.resumes_at:
            self.condition = Condition.TRIAL

    def succeeded(self) -> None:
        if self.condition is not Condition.IN:
            self.ramp = 1
        elif self.ramp < NO_LIMIT:
            self.ramp = self.ramp + 1 if self.ramp < WARM else NO_LIMIT
        self._failures = 0
        self._returns = 0
        self.condition = Condition.IN
        self.resumes_at = 0.0
        self.clean = True
        self.untroubled = self.ramp == NO_LIMIT

    def failed(self, now: float) -> None:
        self.clean = self.untroubled = False
        self._failures += 1
        if self.condition is Condition.IN and self._failures < self._failures_until_out:
            return
        self._eject(now)

    def undecided(self) -> None:
        """What failed says nothing of the endpoint. If it was its trial, the next task is another."""
        if self.condition is Condition.TRIAL:
            self.condition = Condition.OUT

    def convicted(self, now: float) -> None:
        """It answers with errors of its own: out at once, from its trial too."""
        self.clean = self.untroubled = False
        self.condition = Condition.IN
        self._eject(now)

    def was_slow(self, now: float, sure: bool) -> None:
        """It seems slower than its peers, or surely is. A slow trial keeps it out."""
        self.clean = self.untroubled = False
        self._failures = 0
        if self.condition is Condition.OUT:  # of a task sent before it was ejected; why it was does not change
            return
        if self.condition is Condition.TRIAL or sure:
            self._eject(now, True)
            self.only_slow = True

    def _eject(self, now: float, slow: bool = False) -> None:
        if self.condition is Condition.OUT:  # a task sent before it was ejected; it is counted already
            return
        self.condition = Condition.OUT
        self.only_slow = False
        self.resumes_at = now + self._out_s * min(LONGEST_SLOW if slow else LONGEST_OUT, 2**self._returns)
        self._returns = min(self._returns + 1, 10)

    def pause(self, until: float) -> None:
        """The instance is full: it did not fail, and asking again at once would only be rejected again."""
        self.untroubled = False
        self.resumes_at = max(self.resumes_at, until)
        if self.condition is Condition.TRIAL:
            self.condition = Condition.OUT
