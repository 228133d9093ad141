"""The training loop: one network learns one goal from what the deployed model was given and said.

One visible loop on Lightning Fabric, which brings devices, mixed precision, several GPUs and checkpoints. Knows torch
and goals. Knows nothing of archives, files of bodies or reports. The deployed model is never touched: its outputs were
taken beforehand, or it is asked, without gradients, what it says to a variation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.training.augment import vary
from ts_parity.training.goals import Goal, draw_groups, draw_present
from ts_parity.training.inputs import Inputs
from ts_parity.training.semantics import CLASSES, OutputSemantics
from ts_parity.wire import Array

RESIDENT = 0.25
"""Share of a GPU's free memory that the inputs may take."""


@dataclass(frozen=True)
class Hyperparameters:
    """All of them, each with the reason for its value."""

    steps: int = 2000
    """Groups are redrawn at every step, so there are far more pairs than bodies."""
    groups: int = 128
    """Groups per step (of all devices together). For a student, inputs per step are this many times 2."""
    peak_rate: float = 3e-3
    """Of a one-cycle schedule with AdamW."""
    weight_decay: float = 1e-2
    empty: float = 0.15
    """Share of groups with at least one empty slot, so that one set of weights serves groups of 1 to k members."""
    output_loss: float = 0.2
    """Weight of the squared error on outputs (in units of their spread) beside the divergence of rebuilt predictions.
    The paper uses the squared error alone; what is wanted is that the rebuilt prediction says what F said."""
    vary: tuple[str, ...] = ()
    """Variations of the inputs, see `augment`; the deployed model says what they mean, at the cost of running it."""
    checks: int = 20
    """How often the held-out score is taken and a checkpoint written; the best weights are kept."""


@dataclass(frozen=True)
class TrainingData:
    """Inputs and targets. `learn` and `choose` are indices into inputs (n) and outputs (n, *output).

    `semantics`: of the outputs; it decides by which loss they are learned, and which weights are the best.

    `deployed` is asked only for variations: (m, *input) -> (m, *output).
    """

    inputs: Inputs
    outputs: Array
    learn: Array
    choose: Array
    deployed: Callable[[torch.Tensor], torch.Tensor] | None = None
    semantics: OutputSemantics = CLASSES


@dataclass
class Progress:
    """Called after each check with step, loss and held-out score."""

    told: Callable[[int, float, float], None] = lambda step, loss, score: None


@dataclass
class _State:
    """Everything that a run needs to continue. Fabric saves and restores it whole."""

    step: int = 0
    best: float = -math.inf
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)


def fit(
    fabric: Fabric,
    model: nn.Module,
    data: TrainingData,
    goal: Goal,
    hparams: Hyperparameters,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """-> the weights of best held-out score, on the CPU. `model`: inputs (G) -> (G, *output), left as it ends.

    A `checkpoint` that exists is gone on from, if it was made with the same arguments (TrainingError otherwise); it is
    written at every check. Raise TrainingError if the loss is not finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, fabric.global_rank])
    dice = torch.Generator().manual_seed(seed * 1000 + fabric.global_rank)
    held = draw_groups(data.choose, goal.k, np.random.default_rng(seed), max(1, 2 * len(data.choose) // goal.k))
    outputs = torch.from_numpy(np.ascontiguousarray(data.outputs)).float().to(fabric.device)  # (n, *output)
    semantics = _chosen_by(data.semantics)
    spread = torch.from_numpy(semantics.spread(data.outputs, 1)).float().to(fabric.device)
    spread = spread.reshape(outputs.shape[1:]) if semantics.has_units else spread
    near = _near(data.inputs, fabric.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=hparams.peak_rate, weight_decay=hparams.weight_decay)
    network, optimizer = fabric.setup(model, optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, hparams.peak_rate, total_steps=hparams.steps)
    groups = max(1, hparams.groups * (2 if goal.k == 1 else 1) // fabric.world_size)
    every = max(1, hparams.steps // hparams.checks)
    state, saved = _State(), _Checkpoint(fabric, checkpoint, network, optimizer, schedule, goal, hparams, seed)
    saved.restore(state, rng, dice)
    network.train()
    while state.step < hparams.steps:
        state.step += 1
        picks = data.learn[rng.integers(len(data.learn), size=(groups, goal.k))]  # (G, k)
        present = torch.from_numpy(draw_present(groups, goal.k, hparams.empty, rng)).to(fabric.device)  # (G, k)
        rows = torch.from_numpy(picks)
        inputs = near[rows.to(near.device)].to(fabric.device)  # (G, k, *input)
        targets = outputs[rows.to(fabric.device)]  # (G, k, *output)
        if hparams.vary and data.deployed is not None and isinstance(inputs, torch.Tensor):
            varied = vary(inputs.flatten(0, 1), hparams.vary, dice)
            with torch.no_grad():
                targets = data.deployed(varied).float().reshape(targets.shape)
            inputs = varied.reshape(inputs.shape)
        said = network(goal.encode(inputs, present)).float()  # (G, *output)
        loss = goal.loss(said, targets, present, spread, hparams.output_loss, semantics)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        schedule.step()
        if state.step % every == 0 or state.step == hparams.steps:
            # Not at every step: whoever asks a GPU for a number waits for it. What is not finite once is so in the
            # weights from then on.
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {state.step}: the deployed outputs may be too large"
                )
            score = held_out_score(network, near, outputs, held, goal, semantics)
            goodness = -score if semantics.figure.error else score
            if goodness >= state.best:  # of equals the later, whose rate is lower
                state.best, state.best_weights = goodness, _on_cpu(model.state_dict())
            saved.write(state, rng, dice)
            if progress is not None:
                progress.told(state.step, float(loss.detach()), score)
    model.load_state_dict(state.best_weights)
    model.eval()
    return state.best_weights


def _near(inputs: Inputs, device: torch.device) -> Inputs:
    """Where picking some of them takes the least time: on a GPU with room for them. A copy at every step would take
    longer than a small network's step.
    """
    if device.type != "cuda" or not isinstance(inputs, torch.Tensor):
        return inputs
    free, _ = torch.cuda.mem_get_info(device)
    return inputs.to(device) if inputs.nbytes <= RESIDENT * free else inputs


@torch.inference_mode()
def run_network(
    network: nn.Module, inputs: Inputs, groups: Array, goal: Goal, present: Sequence[int] | None = None
) -> Array:
    """The network's output for each group (G, k) of indices, with the `present` slots or all: (G, *output)."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    mask = torch.tensor([float(present is None or slot in present) for slot in range(goal.k)])
    said = []
    for picks in torch.from_numpy(groups).split(256):  # type: ignore[no-untyped-call]
        shown = goal.encode(inputs[picks].to(device), mask.expand(len(picks), -1).to(device))
        said.append(network(shown).float().cpu())
    network.train(was_training)
    return torch.cat(said).numpy()


def held_out_score(
    network: nn.Module, inputs: Inputs, outputs: torch.Tensor, groups: Array, goal: Goal, semantics: OutputSemantics
) -> float:
    """What rebuilt predictions score against the deployed model's own, every slot erased once."""
    said = torch.from_numpy(run_network(network, inputs, groups, goal)).to(outputs.device)
    targets = outputs[torch.from_numpy(groups).to(outputs.device)]  # (G, k, *output)
    rebuilt = goal.rebuilt(said, targets).cpu().numpy()
    return semantics.figure_of(semantics.scores(rebuilt, semantics.answers(targets.cpu().numpy())))


def _chosen_by(semantics: OutputSemantics) -> OutputSemantics:
    """With few classes the five best are always right, so top5 cannot tell weights apart."""
    return replace(semantics, metric="accuracy") if semantics.metric == "top5" else semantics


def check_batches(model: Callable[[Any], torch.Tensor], inputs: Inputs, outputs: Array) -> None:
    """Training runs many groups at once: refuse a deployed model that does not treat them as single ones.

    inputs (n), outputs (n, *output); `model` with the deployed weights.
    """
    count = min(4, len(inputs))
    refusal = NotCodable("the deployed model answers a batch differently from single inputs; it cannot be distilled")
    with torch.no_grad():
        try:
            together = model(inputs[:count]).float().cpu().numpy()
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise refusal from error
    expected = outputs[:count]
    if not np.allclose(together, expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max())):
        raise refusal


class _Checkpoint:
    """One file, replaced as a whole, with everything: weights, optimizer, generators, step, best, configuration."""

    def __init__(
        self,
        fabric: Fabric,
        file: Path | None,
        network: nn.Module,
        optimizer: Any,
        schedule: Any,
        goal: Goal,
        hparams: Hyperparameters,
        seed: int,
    ) -> None:
        self._fabric = fabric
        self._file = file
        self._parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        self._made_with = {
            "code": goal.code.name,
            "k": goal.code.k,
            "row": goal.row,
            "hyperparameters": asdict(hparams),
            "seed": seed,
        }

    def restore(self, state: _State, rng: np.random.Generator, dice: torch.Generator) -> None:
        if self._file is None or not self._file.exists():
            return
        kept: dict[str, Any] = {**self._parts, "state": {}, "made_with": {}}
        # The file is our own, written a moment ago beside the user's own files.
        self._fabric.load(self._file, kept, weights_only=False)
        if kept["made_with"] != self._made_with:
            raise TrainingError(f"{self._file} was made with other settings: {kept['made_with']}")
        vars(state).update(kept["state"])
        if self._fabric.global_rank == 0:  # the saved generators are rank 0's; the others continue with new ones
            rng.bit_generator.state = state.rng["numpy"]
            dice.set_state(state.rng["dice"])
            torch.set_rng_state(state.rng["torch"])

    def write(self, state: _State, rng: np.random.Generator, dice: torch.Generator) -> None:
        if self._file is None:
            return
        state.rng = {"numpy": rng.bit_generator.state, "dice": dice.get_state(), "torch": torch.get_rng_state()}
        unfinished = self._file.with_suffix(".unfinished")
        self._fabric.save(unfinished, {**self._parts, "state": vars(state), "made_with": self._made_with})
        if self._fabric.is_global_zero:
            unfinished.replace(self._file)


def _on_cpu(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
