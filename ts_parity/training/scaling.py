"""A fresh network in the deployed model's scale: it is shown numbers of mean 0 and spread 1, and what it says is put
where the deployed outputs lie.

A table's columns are millimetres beside millions, and a price is 150 000 before anything is learned: from there, no
usual rate of learning arrives. Knows networks and what outputs mean. Knows nothing of losses or archives.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ts_parity.codes import Family
from ts_parity.training.architectures import Shapes
from ts_parity.training.goals import Goal
from ts_parity.training.inputs import Inputs
from ts_parity.training.semantics import ANY, LENGTH_1, LOGARITHMS, PROBABILITIES, SHARES, OutputSemantics
from ts_parity.wire import Array

Moments = tuple[torch.Tensor, torch.Tensor]
"""Mean and spread of each number."""


class Scaled(nn.Module):
    """(n, *one_input) -> (n, numbers), around a network that does the same. `bounds`: what all answers keep to."""

    given_mean: torch.Tensor | None
    given_spread: torch.Tensor | None
    said_mean: torch.Tensor | None
    said_spread: torch.Tensor | None

    def __init__(self, network: nn.Module, given: Moments | None, said: Moments | None, bounds: str = ANY) -> None:
        super().__init__()
        self.network = network
        self.bounds = bounds
        for name, moments in (("given", given), ("said", said)):
            for part, value in zip(("mean", "spread"), moments or (None, None), strict=True):
                self.register_buffer(f"{name}_{part}", value)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.given_mean is not None and self.given_spread is not None:
            # What is missing in a table (NaN) is taken for the mean.
            inputs = torch.nan_to_num((inputs - self.given_mean) / self.given_spread)
        said: torch.Tensor = self.network(inputs)
        if self.said_mean is not None and self.said_spread is not None:
            said = said * self.said_spread + self.said_mean
        if self.bounds == PROBABILITIES:
            return said.softmax(-1)
        if self.bounds == LOGARITHMS:
            return said.log_softmax(-1)
        if self.bounds == SHARES:
            return said.sigmoid()
        return functional.normalize(said, dim=-1) if self.bounds == LENGTH_1 else said


def scaled(
    network: nn.Module, shapes: Shapes, goal: Goal, semantics: OutputSemantics, inputs: Inputs, outputs: Array
) -> Scaled:
    """`network` (n, *one_input) -> (n, numbers) with new weights; inputs (n, *input), outputs (n, *output) as observed.

    Images stay as they are, since their handlers have scaled them, and so do ids. Of a sum's inputs and outputs mean
    and spread grow as those of sums do, and a sum of probabilities keeps to no bounds.
    """
    alone = goal.code.family is Family.BACKUP
    bounded = alone and len(shapes.one_output) == 1 and semantics.kind not in ("numbers", "box")
    given = said = None
    if not shapes.is_image and isinstance(inputs, torch.Tensor) and inputs.is_floating_point():
        given = _moments(inputs.numpy().reshape(len(inputs), *shapes.one_input), goal)
    if semantics.has_units or semantics.metric == "cosine":
        said = _moments(outputs.reshape(len(outputs), -1), goal)
    return Scaled(network, given, said, semantics.bounds if bounded else ANY)


def _moments(numbers: Array, goal: Goal) -> Moments:
    wide = numbers.astype(np.float64)
    known = np.isfinite(wide)
    counts = np.maximum(known.sum(0), 1)
    mean = np.where(known, wide, 0.0).sum(0) / counts
    spread = np.sqrt(np.where(known, np.square(wide - mean), 0.0).sum(0) / counts)
    spread = np.where(spread <= 1e-6 * np.abs(mean), 1.0, spread)
    once, each = sum(goal.coefficients), math.sqrt(sum(c * c for c in goal.coefficients))
    return torch.from_numpy(mean * once).float(), torch.from_numpy(spread * each).float()
