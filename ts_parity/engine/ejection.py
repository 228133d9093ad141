"""Ejection: which endpoints are ejected for errors of their own, and which must stay.

What each endpoint did is kept in `outliers`; here is what only its pool can say: more errors than the others, and
whether the others can bear its load. Never the last one.

Knows endpoints and the load. Knows nothing of queries.
"""

from __future__ import annotations

from typing import Final, final

from ts_parity.engine.capacity import EndpointSet, EndpointState
from ts_parity.engine.health import Condition
from ts_parity.engine.policy import LoadMeter

BEARABLE: Final = 0.85
"""Load of the remaining endpoints up to which errors may take one out, if it answers most queries well."""


@final
class Ejection:
    """Of one pool's deployed endpoints."""

    __slots__ = ("_endpoints", "_load")

    def __init__(self, load: LoadMeter) -> None:
        self._load = load
        self._endpoints = EndpointSet()

    def adopt(self, endpoints: EndpointSet) -> None:
        self._endpoints = endpoints

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
