"""What a group costs: T(group) / T(1), the time of a protection's work in deployed inferences, on this device.

Knows models and clocks. Knows nothing of accuracy. Preprocessing is left out: it is the same k times for every code.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ts_parity.codes import Family
from ts_parity.training.goals import Goal
from ts_parity.training.inputs import Inputs
from ts_parity.training.sizing import Model, bound, paired


@dataclass(frozen=True)
class Cost:
    """`cost`: T(group) / T(1), the median of alternating pairs; `multiplications`: the same counted, if it can be."""

    cost: float
    group_ms: float
    one_ms: float
    multiplications: float | None


@torch.inference_mode()
def measure(
    deployed: Model,
    model: Model,
    goal: Goal,
    inputs: Inputs,
    multiplications: float | None,
    device: torch.device,
) -> Cost:
    """Inputs (k) of one group. As the worker does it: a parity model answers once, after encoding; a student
    the k as a batch; the deployed model itself too on CUDA, but one by one on a CPU.
    """
    group, one = inputs.to(device), inputs[:1].to(device)
    pairs = paired(_answering(model, goal, group, device), bound(deployed, one), device)
    return Cost(
        cost=round(statistics.median(g / o for g, o in pairs), 3),
        group_ms=round(1000 * statistics.median(g for g, _ in pairs), 3),
        one_ms=round(1000 * statistics.median(o for _, o in pairs), 3),
        multiplications=None if multiplications is None else round(multiplications, 3),
    )


def _answering(model: Model, goal: Goal, group: Inputs, device: torch.device) -> Callable[[], object]:
    if goal.code.family is Family.PARITY:
        assert isinstance(group, torch.Tensor)
        together, full = group[None], torch.ones(1, goal.k, device=device)
        return lambda: model(goal.encode(together, full))
    if goal.code.lossless and device.type == "cpu":
        each = [bound(model, group[slot : slot + 1]) for slot in range(len(group))]
        return lambda: [answer() for answer in each]
    return bound(model, group)
