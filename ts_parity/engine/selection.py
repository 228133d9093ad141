"""Which of the endpoints with a free place a piece of work goes to: the least outstanding healthy one.

Knows endpoints and their places. Knows nothing of queues, or of what happens to the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ts_parity.engine.capacity import EndpointState, Line
from ts_parity.engine.health import Condition
from ts_parity.engine.query import Query

NO_DOMAINS: Final[Mapping[str, int]] = {}


def choose(
    line: Line,
    now: float,
    avoid: frozenset[str] = frozenset(),
    domains: Mapping[str, int] = NO_DOMAINS,
) -> EndpointState | None:
    """As `least_outstanding` says. Health never takes out the last one: if all are out, it is ignored."""
    chosen = None
    if line.ready or line.doubted or line.trials:
        chosen = least_outstanding(line.with_place(), now, avoid, domains)
    return soonest_back(line.everyone) if chosen is None and line.out == len(line.everyone) else chosen


def least_outstanding(
    candidates: Iterable[EndpointState],
    now: float,
    avoid: frozenset[str] = frozenset(),
    domains: Mapping[str, int] = NO_DOMAINS,
    in_order: bool = True,
) -> EndpointState | None:
    """Least outstanding among the healthy ones, which all have a free place; ties go to the one longest unused.

    A deployed model's own load counts first, then its machine's; what uses idle machines looks at the machine's only.
    `in_order`: the candidates come from one line, longest idle first, so the first idle one is it.
    Instances in `avoid` and failure domains in `domains` are taken only if there is nothing else; of the others, those
    whose last answer was late only if there is nothing else.
    """
    best: EndpointState | None = None
    best_rank: tuple[bool, bool, float, float, int] | None = None
    # The hottest loop of the engine: attributes are read once, and nothing is called.
    for state in candidates:
        health = state.health
        if health.condition is Condition.TRIAL:  # one that is running is the only one
            continue
        if now < health.resumes_at or state.in_flight >= health.ramp:
            continue
        host = state.host
        instance = host.instance
        taken = host.in_flight
        unwanted = instance.name in avoid or instance.domain in domains
        if avoid and health.condition is Condition.OUT:  # who has failed once already is nobody's trial
            unwanted = True
        if taken == 0 and not unwanted and in_order and host.clean:
            return state
        endpoint = state.endpoint
        own = state.in_flight / endpoint.places if in_order and endpoint.row is None else 0.0
        rank = (unwanted, not host.clean, own, taken / instance.places, state.last_sent)
        if best_rank is None or rank < best_rank:
            best, best_rank = state, rank
    return best


def is_elsewhere(state: EndpointState, query: Query, far: bool) -> bool:
    """Healthy, and not where the query has failed. `far`: nor in the same failure domain."""
    if state.health.condition is not Condition.IN or state.endpoint.instance in query.avoid:
        return False
    return not far or state.domain != query.domain


def soonest_back(all_out: Iterable[EndpointState]) -> EndpointState | None:
    out = [s for s in all_out if s.has_place() and s.health.condition is Condition.OUT]
    return min(out, key=lambda s: (s.health.resumes_at, s.last_sent), default=None)
