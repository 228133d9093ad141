"""What a group costs: T(group) / T(1), the time of a protection's work in deployed inferences, on this device.

Knows models and clocks. Knows nothing of accuracy. Preprocessing is left out: it is the same k times for every code.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ts_parity.codes import Family
from ts_parity.training.goals import Goal

ROUNDS, WARM = 30, 5


@dataclass(frozen=True)
class Cost:
    """`cost`: T(group) / T(1), the median of alternating pairs; `multiplications`: the same counted, not timed, if the
    deployed model is one whose multiplications can be counted.
    """

    cost: float
    group_ms: float
    one_ms: float
    multiplications: float | None


@torch.inference_mode()
def measure(deployed: nn.Module, model: nn.Module, goal: Goal, inputs: torch.Tensor, counted: float | None) -> Cost:
    """Inputs (k, *given) of one group. As the worker does it: a parity model answers once, after encoding; a student
    the k as a batch; the deployed model itself too on CUDA, but one by one on a CPU.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    group, one = inputs.to(device), inputs[:1].to(device)
    full = torch.ones(1, goal.k, device=device)
    deployed.eval()
    model.eval()

    def answer_group() -> object:
        if goal.code.family is Family.PARITY:
            return model(goal.encode(group[None], full))
        if goal.code.lossless and device.type == "cpu":
            return [model(group[slot : slot + 1]) for slot in range(len(group))]
        return model(group)

    pairs = _paired(answer_group, lambda: deployed(one), device)
    return Cost(
        cost=round(statistics.median(g / o for g, o in pairs), 3),
        group_ms=round(1000 * statistics.median(g for g, _ in pairs), 3),
        one_ms=round(1000 * statistics.median(o for _, o in pairs), 3),
        multiplications=None if counted is None else round(counted, 3),
    )


def _paired(group: Callable[[], object], one: Callable[[], object], device: torch.device) -> list[tuple[float, float]]:
    """One after the other, over and over: what else the machine does strikes both alike."""
    return [(_seconds(group, device), _seconds(one, device)) for _ in range(ROUNDS + WARM)][WARM:]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
