"""Distilling one parity model: a network that is shown sum_i c_i x_i and learns to say sum_i c_i F(x_i).

Knows torch, groups and losses. Knows nothing of archives, files or how inputs came to be. The deployed model is never
touched: its outputs were taken beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.training.data import Observations
from ts_parity.wire import Array
from ts_parity.worker.encoders import with_input
from ts_parity.worker.watches import ModelCall


@dataclass(frozen=True)
class Knobs:
    """Everything one may turn, with the reason for its value."""

    steps: int = 2000
    """Groups are redrawn at every step, so there are far more pairs than bodies."""
    groups: int = 128
    """Groups per step."""
    peak_rate: float = 3e-3
    """Of a one-cycle schedule with AdamW."""
    weight_decay: float = 1e-2
    empty: float = 0.15
    """Share of groups with at least one empty slot, so that one set of weights serves groups of 1 to k members."""
    output_loss: float = 0.2
    """Weight of the squared error on outputs (in units of their spread) beside the divergence of rebuilt predictions.
    The paper uses the squared error alone; what is wanted is that the rebuilt prediction says what F said."""
    held_out: float = 0.15
    """Share of bodies that choose the best weights and score the report."""
    checks: int = 20
    """How often the held-out agreement is taken; the best weights are kept."""


Progress = Callable[[int, float, float], None]
"""Told after each check: step, loss, held-out agreement."""


class ParityModel:
    """A network and the user's way of calling it: (n, *one input) -> (n, *one raw output), with gradients."""

    def __init__(self, network: nn.Module, call: ModelCall, one_input: tuple[int, ...]) -> None:
        self.network = network
        self._call = call
        self._batch_axis = bool(one_input) and one_input[0] == 1

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        given = inputs.flatten(0, 1) if self._batch_axis else inputs
        call = with_input(self._call, given)
        run: Any = self.network if call.method == "__call__" else getattr(self.network, call.method)
        leaf = _floating_leaf(run(*call.args, **call.kwargs))
        return leaf.unsqueeze(1) if self._batch_axis else leaf


def fit(
    deployed: nn.Module,
    seen: Observations,
    coefficients: Sequence[float],
    split: tuple[Array, Array],
    knobs: Knobs,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> ParityModel:
    """-> the parity model of one row, with the weights of best held-out agreement.

    `split`: indices of `seen` to learn from, and to choose by. The network is a copy of the deployed one, weights
    included: what F knows of the inputs is a better start than nothing.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ParityModel(trainable_copy(deployed).to(device), seen.call, tuple(seen.inputs.shape[1:]))
    check_batches(model, seen, device)
    learn, choose = split
    row = torch.tensor(coefficients, dtype=torch.float32, device=device)
    inputs = seen.inputs.to(device)  # (n, *input)
    outputs = torch.from_numpy(np.ascontiguousarray(seen.outputs)).to(device)  # (n, *output)
    spread = outputs.std().clamp_min(1e-6)
    k = len(coefficients)
    held = draw_groups(choose, k, rng, max(1, 2 * len(choose) // k))
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=knobs.peak_rate, weight_decay=knobs.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, knobs.peak_rate, total_steps=knobs.steps)
    every = max(1, knobs.steps // knobs.checks)
    best, best_weights = -1.0, copy.deepcopy(model.network.state_dict())
    model.network.train()
    for step in range(1, knobs.steps + 1):
        picks = torch.from_numpy(learn[rng.integers(len(learn), size=(knobs.groups, k))]).to(device)
        present = torch.from_numpy(draw_present(knobs.groups, k, knobs.empty, rng)).to(device)  # (G, k) of 0 and 1
        said = model(encode_groups(inputs, picks, row * present))  # (G, *output)
        loss = group_loss(said, outputs[picks], row, present, spread, knobs.output_loss)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step}: the deployed outputs may be too large")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == knobs.steps:
            agreement = held_out_agreement(model, inputs, outputs, held, row)
            if agreement > best:
                best, best_weights = agreement, copy.deepcopy(model.network.state_dict())
            progress(step, float(loss.detach()), agreement)
    model.network.load_state_dict(best_weights)
    model.network.eval()
    return model


def group_loss(
    said: torch.Tensor,
    targets: torch.Tensor,
    row: torch.Tensor,
    present: torch.Tensor,
    spread: torch.Tensor,
    output_loss: float,
) -> torch.Tensor:
    """Said (G, *output), targets (G, k, *output), present (G, k).

    With the neighbours' true outputs, slot i is rebuilt as F(x_i) + (said - wanted) / c_i: every slot's rebuilt
    prediction is compared with what F said, and the sum itself with what it should be.
    """
    weights = (row * present).reshape(*present.shape, *[1] * (targets.ndim - 2))
    error = (said - (weights * targets).sum(1)) / spread  # (G, *output)
    loss = output_loss * error.square().mean()
    if targets.shape[-1] == 1:  # regression: there is no distribution to compare
        return error.square().mean()
    rebuilt = targets + (error * spread).unsqueeze(1) / row.reshape(1, -1, *[1] * (targets.ndim - 2))
    divergence = functional.kl_div(
        rebuilt.log_softmax(-1), targets.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    while divergence.ndim > 2:
        divergence = divergence.mean(-1)
    return loss + (divergence * present).sum() / present.sum()


def encode_groups(inputs: torch.Tensor, picks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Inputs (n, *input), picks (G, k), weights (G, k) -> (G, *input): sum_i weights[g, i] * inputs[picks[g, i]]."""
    return torch.einsum("gk,gk...->g...", weights.to(inputs.dtype), inputs[picks])


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
    for group in np.flatnonzero(rng.random(groups) < empty):
        members = rng.integers(1, k)
        present[group, rng.permutation(k)[members:]] = 0.0
    return present


@torch.inference_mode()
def parity_outputs(model: ParityModel, inputs: torch.Tensor, groups: Array, weights: Sequence[float]) -> Array:
    """What the parity model says to each group: (G, *output). `weights` holds 0 for an empty slot."""
    was_training = model.network.training
    model.network.eval()
    row = torch.tensor(weights, dtype=torch.float32, device=inputs.device)
    said = []
    for picks in torch.from_numpy(groups).to(inputs.device).split(256):  # type: ignore[no-untyped-call]
        said.append(model(encode_groups(inputs, picks, row.expand(len(picks), -1))).float().cpu())
    model.network.train(was_training)
    return torch.cat(said).numpy()


def held_out_agreement(
    model: ParityModel, inputs: torch.Tensor, outputs: torch.Tensor, groups: Array, row: torch.Tensor
) -> float:
    """How often a rebuilt prediction is the deployed model's own, every slot erased once."""
    said = torch.from_numpy(parity_outputs(model, inputs, groups, row.tolist())).to(outputs.device)
    targets = outputs[torch.from_numpy(groups).to(outputs.device)]  # (G, k, *output)
    shape = [-1, *[1] * (targets.ndim - 2)]
    error = said - (row.reshape(shape) * targets).sum(1)
    rebuilt = targets + error.unsqueeze(1) / row.reshape(1, *shape)
    if targets.shape[-1] == 1:
        return -float((rebuilt - targets).square().mean())
    return float((rebuilt.argmax(-1) == targets.argmax(-1)).float().mean())


def trainable_copy(deployed: nn.Module) -> nn.Module:
    """A copy whose every parameter learns. Raise NotCodable if there is nothing to train."""
    network = copy.deepcopy(deployed)
    parameters = list(network.parameters())
    if not parameters:
        raise NotCodable("the deployed model has no parameters to learn (a frozen TorchScript module, perhaps)")
    for parameter in parameters:
        parameter.detach_().requires_grad_(True)  # a copied TorchScript module's parameters are not leaves
    return network


def check_batches(model: ParityModel, seen: Observations, device: torch.device) -> None:
    """Training runs many groups at once: refuse a network that does not treat them as single ones."""
    count = min(4, len(seen.inputs))
    model.network.eval()
    with torch.inference_mode():
        together = model(seen.inputs[:count].to(device)).float().cpu().numpy()
    expected = seen.outputs[:count].reshape(together.shape) if together.size == seen.outputs[:count].size else None
    if expected is None or not np.allclose(together, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max())):
        raise NotCodable("the deployed model answers a batch differently from single inputs; it cannot be distilled")


def _floating_leaf(output: Any) -> torch.Tensor:
    """The one floating tensor in a model's output, gradients and all. The boundary has checked that there is one."""
    if isinstance(output, torch.Tensor):
        return output.float()
    children = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else ()
    for child in children:
        if isinstance(child, torch.Tensor | list | tuple) or hasattr(child, "values"):
            found = _floating_leaf(child)
            if found.is_floating_point():
                return found
    raise NotCodable(f"no floating tensor to learn from in the model's output of type {type(output).__name__}")
