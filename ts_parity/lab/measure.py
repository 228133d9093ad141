"""Figures of several simulated runs: means over seeds, extremes, and how many samples a percentile takes.

Knows results. Knows nothing of fleets or policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ts_parity.lab.report import needed
from ts_parity.lab.scenario import Scenario
from ts_parity.lab.simulate import simulate

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
WORK_KINDS = ("copy", "protection", "finish")
"""Of the work, what is there beside the deployed model's own answers."""


def measured(
    scenario: Scenario | Callable[[int], Scenario],
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Of a scenario, or of one for each seed: means over seeds of percentiles, work and shares; `p99_low`, `p99_high`
    and so on are the extremes.

    `samples`: the fewest answers there are behind a seed's percentiles. A percentile of no answers is None. `launched`:
    protections per query; `launched_late`: of the queries, those that got one because they were late.
    """
    made = [scenario if isinstance(scenario, Scenario) else scenario(seed) for seed in seeds]
    results = [simulate(each, seed, progress=progress) for each, seed in zip(made, seeds, strict=True)]
    row: dict[str, Any] = {}
    for name, share in PERCENTILES.items():
        each = [r.percentile(share) for r in results]
        known = not any(math.isnan(value) for value in each)
        row[name] = _mean(each) if known else None
        row[f"{name}_low"], row[f"{name}_high"] = (round(min(each), 3), round(max(each), 3)) if known else (None, None)
    return {
        **row,
        "samples": min(len(r.latencies) for r in results),
        "work": _mean([r.work_per_query for r in results]),
        **{
            f"work_{kind}": _mean([r.work_of.get(kind, 0.0) / max(1, r.queries) for r in results], 5)
            for kind in WORK_KINDS
        },
        "launched": _mean([r.sent.get("protection", 0) / max(1, r.queries) for r in results], 5),
        "launched_late": _mean([r.sent.get("late", 0) / max(1, r.queries) for r in results], 5),
        "reconstructed": _mean([r.reconstructed for r in results], 5),
        "differing": _mean([r.differing / max(1, len(r.latencies)) for r in results], 7),
        "differing_drawn": _mean([r.differing_drawn / max(1, len(r.latencies)) for r in results], 7),
        "unanswered": float(sum(r.failed + r.unanswered for r in results)),
    }


def doubtful(samples: int) -> list[str]:
    """The percentiles that this many samples do not support."""
    return [name for name, share in PERCENTILES.items() if samples < needed(share)]


def _mean(values: Sequence[float], digits: int = 3) -> float:
    return round(float(np.mean(values)), digits)
