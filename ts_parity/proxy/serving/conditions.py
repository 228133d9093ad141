"""What an endpoint is doing, in one word and in a sentence.

Pure: the engine's snapshot in, words out. Knows what its numbers mean. Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

SERVING: Final = "serving"
SUSPECT: Final = "suspect"
SILENT: Final = "silent"
EJECTED: Final = "ejected"
DOWN: Final = "down"
CONDITIONS: Final = (SERVING, SUSPECT, SILENT, EJECTED, DOWN)
"""From best to worst."""
SILENT_S: Final = 1.0
"""A pause of the garbage collector is over by then."""
SILENT_LATE: Final = 5.0
"""Times as long as after which a query of its pool is late."""
DOUBT: Final = 0.5
"""The engine's: slower than its pool with at least this chance."""


class EndpointCondition(NamedTuple):
    """`reason` is empty while it serves."""

    state: str
    reason: str


def endpoint_condition(endpoint: Mapping[str, Any], pool: Mapping[str, Any]) -> EndpointCondition:
    """Both as the engine's snapshot has them."""
    if endpoint["health"] == "out":
        return EndpointCondition(EJECTED, f"{endpoint['why_out'] or 'it failed'}; it is probed regularly")
    if endpoint["health"] == "trial":
        return EndpointCondition(EJECTED, f"{endpoint['why_out'] or 'it failed'}; it is being probed now")
    oldest_s, scale = endpoint.get("oldest_s"), endpoint.get("oldest_scale", 1.0)
    late_s = pool.get("reconstruct_after_s", SILENT_S)
    if oldest_s is not None and oldest_s > max(SILENT_S, SILENT_LATE * late_s) * max(1.0, scale):
        tasks = endpoint["in_flight"]
        out = "the task that it has" if tasks == 1 else f"any of the {tasks} tasks that it has"
        usual_s = pool.get("usual_s")
        usual = f"; {told_seconds(usual_s)} is usual" if usual_s else ""
        return EndpointCondition(SILENT, f"no answer to {out}, the oldest for {told_seconds(oldest_s)}{usual}")
    if endpoint["slower"] >= DOUBT:
        times = f"its answers take {endpoint['speed']:.1f} times as long as usual in its pool"
        return EndpointCondition(SUSPECT, f"{times}; it is used while no other has a place")
    if endpoint["suspect"]:
        return EndpointCondition(
            SUSPECT, "its last answer came late or not at all; it is used while no other has a place"
        )
    return EndpointCondition(SERVING, "")


def worst(conditions: Iterable[EndpointCondition]) -> EndpointCondition:
    return max(conditions, key=lambda one: CONDITIONS.index(one.state), default=EndpointCondition(SERVING, ""))


def told_seconds(seconds: float) -> str:
    """As a person says it: 0.8 ms, 41 ms, 3.2 s, 4 min."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f}".removesuffix(".0") + " s" if seconds < 100 else f"{seconds / 60:.0f} min"
