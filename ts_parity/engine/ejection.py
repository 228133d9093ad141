"""Ejection: which endpoints are ejected for being slow or for errors of their own, and which must stay.

What each endpoint did is kept in `health` (failures, slowness) and `outliers` (errors); here is what only its pool can
say: slower than the others, more errors than the others, and whether the others can bear its load. Never the last one.

Knows endpoints and the load. Knows nothing of queries.
"""

from __future__ import annotations

from typing import Final, final

from ts_parity.engine.capacity import EndpointSet, EndpointState
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.policy import LoadMeter, Policy

BEARABLE: Final = 0.85
"""Load of the remaining endpoints up to which slowness may take one out: a slow machine still is a machine."""


@final
class Ejection:
    """Of one pool's deployed endpoints."""

    __slots__ = ("_endpoints", "_latency", "_load", "_policy")

    def __init__(self, policy: Policy, latency: LatencyWindow, load: LoadMeter) -> None:
        self._policy = policy
        self._latency = latency
        self._load = load
        self._endpoints = EndpointSet()

    def adopt(self, endpoints: EndpointSet) -> None:
        self._endpoints = endpoints

    def is_slow(self, latency_s: float) -> bool:
        """Whether an answer took far longer than is usual."""
        factor = self._policy.slow_factor
        if latency_s <= factor * self._latency.median:  # nearly always
            return False
        usual = self._latency.quantile(0.5)
        return usual is not None and factor > 0 and latency_s > factor * usual

    def may_eject(self) -> bool:
        """Whether slowness may take one more endpoint out: not too many, and only if the others can bear the load."""
        count = len(self._endpoints)
        out = 1 + self._endpoints.out
        return out <= self._policy.max_out * count and self._load.value * count < BEARABLE * (count - out)

    def may_convict(self, place: EndpointState) -> bool:
        """Whether errors may take it out: there is another above suspicion, and the others can bear the load, unless it
        fails so much that it bears nothing itself.
        """
        others = [state for state in self._endpoints.everyone if state is not place]
        count, fit = len(others) + 1, sum(state.health.condition is Condition.IN for state in others)
        if not any(s.health.condition is Condition.IN and not s.record.suspect for s in others):
            return False
        return place.record.share > 0.5 or self._load.value * count < BEARABLE * fit

    def peers_of(self, place: EndpointState) -> tuple[float, float]:
        """How often the others have answered, and how often with an error."""
        others = [state.record for state in self._endpoints.everyone if state is not place]
        return sum(record.answers for record in others), sum(record.errors for record in others)

    def suspects(self) -> frozenset[str]:
        """Instances whose errors may be their own."""
        return frozenset(state.endpoint.instance for state in self._endpoints.everyone if state.record.suspect)
