"""What a network learns: for a group of inputs, one row of a code. A student is a row over groups of one.

The encoder is the worker's own, so that training and serving cannot differ. Knows codes and tensors; knows nothing of
networks or where inputs come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ts_parity.codes import ErasureCode, Family
from ts_parity.training.inputs import Inputs
from ts_parity.training.semantics import PROBABILITIES, SHARES, OutputSemantics
from ts_parity.wire import Array
from ts_parity.worker.encoders import check_images, tile

SMALLEST = 1e-6
"""Probability whose logarithm is taken for that of 0."""


@dataclass(frozen=True)
class Goal:
    """One row of a code. `k` and `coefficients` are those of learning: 1 and (1,) for a student."""

    code: ErasureCode
    row: int = 0

    @property
    def k(self) -> int:
        return 1 if self.code.family is Family.BACKUP else self.code.k

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (1.0,) if self.code.family is Family.BACKUP else self.code.coefficients[self.row]

    def encode(self, inputs: Inputs, present: torch.Tensor) -> Inputs:
        """Inputs (G, k, *input), present (G, k) of 0 and 1 -> what the network is given: (G, *input)."""
        if self.code.family is Family.BACKUP:  # as the handler made it, whatever it is
            return inputs[:, 0]
        assert isinstance(inputs, torch.Tensor)
        if self.code.name == "concat":
            check_images(tuple(inputs.shape[2:]))
            shown = inputs * present.reshape(*present.shape, *[1] * (inputs.ndim - 2)).to(inputs.dtype)
            return tile(shown.movedim(1, -4))
        row = torch.tensor(self.coefficients, device=inputs.device)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        return torch.einsum("gk,gk...->g...", (row * present).to(wide), inputs.to(wide)).to(inputs.dtype)

    def loss(
        self,
        said: torch.Tensor,
        targets: torch.Tensor,
        present: torch.Tensor,
        spread: torch.Tensor,
        output_loss: float,
        semantics: OutputSemantics,
    ) -> torch.Tensor:
        """Said (G, *output), targets (G, k, *output), present (G, k); spread: of the deployed outputs.

        With the neighbours' true outputs, slot i is rebuilt as F(x_i) + (said - wanted) / c_i. For classes and labels,
        every slot's rebuilt prediction is compared with what F said (divergence), and the sum itself with what it
        should be (squared error, in units of the spread); for other outputs the latter alone, the paper's loss.
        """
        row = torch.tensor(self.coefficients, device=said.device)
        wanted = (_wide(row * present, targets) * targets).sum(1)
        error = said - wanted  # (G, *output)
        squared = (error / spread).square().mean()
        rebuilt = targets + error.unsqueeze(1) / _wide(row.unsqueeze(0), targets)
        divergence = _divergence(rebuilt, targets, semantics, alone=self.k == 1)
        if divergence is None:
            return squared
        return output_loss * squared + (divergence.flatten(2).mean(-1) * present).sum() / present.sum()

    def rebuilt(self, said: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Each slot of full groups, rebuilt: (G, k, *output)."""
        row = torch.tensor(self.coefficients, device=said.device)
        error = said - (_wide(row.unsqueeze(0), targets) * targets).sum(1)
        return targets + error.unsqueeze(1) / _wide(row.unsqueeze(0), targets)


def _divergence(
    rebuilt: torch.Tensor, targets: torch.Tensor, semantics: OutputSemantics, alone: bool
) -> torch.Tensor | None:
    """(G, k, *output) each -> (G, k, ...) of predictions from what F said; None where there is no such thing: numbers,
    and probabilities rebuilt from a sum (not `alone`), which may be below 0.
    """
    bounded = semantics.bounds in (PROBABILITIES, SHARES)
    if semantics.kind not in ("classes", "labels") or (bounded and not alone):
        return None
    axis = semantics.axis if targets.ndim > 2 else -1
    if semantics.kind == "classes" and targets.ndim > 2 and targets.shape[axis] > 1:
        said, wanted = (
            (each + SMALLEST).log() if semantics.bounds == PROBABILITIES else each.log_softmax(axis)
            for each in (rebuilt, targets)
        )
        return functional.kl_div(said, wanted, reduction="none", log_target=True).sum(axis).unsqueeze(-1)
    if bounded:
        return functional.binary_cross_entropy(
            rebuilt.clamp(SMALLEST, 1 - SMALLEST), targets, reduction="none"
        ).unsqueeze(-1)
    return functional.binary_cross_entropy_with_logits(rebuilt, targets.sigmoid(), reduction="none").unsqueeze(-1)


def _wide(weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(g, k) -> (g, k, 1, ...), to be multiplied with (G, k, *output)."""
    return weights.reshape(*weights.shape, *[1] * (like.ndim - 2))


def draw_groups(indices: Array, k: int, rng: np.random.Generator, groups: int) -> Array:
    """(groups, k) indices: shuffled passes over all of them, so that each is used about equally often."""
    if len(indices) < k:
        return np.asarray(rng.choice(indices, size=(groups, k)))
    per_pass = len(indices) // k
    passes = [rng.permutation(indices)[: per_pass * k] for _ in range(-(-groups // per_pass))]
    return np.concatenate(passes).reshape(-1, k)[:groups]


def draw_present(groups: int, k: int, empty: float, rng: np.random.Generator) -> Array:
    """(groups, k) of 0 and 1: mostly full, some with 1 to k - 1 members in any of the slots."""
    present = np.ones((groups, k), dtype=np.float32)
    if k == 1:
        return present
    for group in np.flatnonzero(rng.random(groups) < empty):
        members = rng.integers(1, k)
        present[group, rng.permutation(k)[members:]] = 0.0
    return present
