"""Chooses the network for each candidate after a run of a few bodies, before all of them are observed.

So a job that cannot work is refused before any work. Knows handlers, architectures and prices. Knows nothing of
learning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ts_parity.codes import Family
from ts_parity.errors import NotCodable
from ts_parity.training import TrainSettings
from ts_parity.training.architectures import (
    DEPLOYED,
    FRESH,
    CallAdapter,
    DeployedModel,
    ReshapedNetwork,
    Shapes,
    folded,
    has_width,
    make_model,
    usual_architecture,
    widest,
)
from ts_parity.training.bodies import RequestBody
from ts_parity.training.data import Observations, observe_few
from ts_parity.training.fit import Hyperparameters, check_batches
from ts_parity.training.goals import Goal
from ts_parity.training.inputs import Inputs
from ts_parity.training.job_spec import Candidate
from ts_parity.training.semantics import OutputSemantics
from ts_parity.training.sizing import affordable_width
from ts_parity.training.text_network import TextAdapter
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.watches import ModelCall

SEEN_FIRST = 8
"""Bodies in the sample run: usually enough to see whether their lengths differ."""
LOOKED_AT = 20
"""The sample run gives up after this many refused bodies; observing all of them will say what is wrong."""


@dataclass(frozen=True)
class SampleRun:
    """The deployed model and what it did with a few bodies, as in `Observations`."""

    model: Any
    call: ModelCall
    inputs: Inputs
    outputs: Array
    column: int = 0

    @functools.cached_property
    def shapes(self) -> Shapes:
        return Shapes.of(self.inputs, self.outputs, self.column)

    @property
    def deployed(self) -> DeployedModel:
        return DeployedModel(self.model, self.call, self.shapes)


def sample_run(handler: OfflineHandler, bodies: Sequence[RequestBody]) -> SampleRun | None:
    """Run a few bodies; None if the handler refuses all that are tried."""
    seen = observe_few(handler, bodies[:: max(1, len(bodies) // LOOKED_AT)], SEEN_FIRST)
    return None if seen is None else sample_of(handler.model_of(seen.call), seen)


def sample_of(model: Any, seen: Observations) -> SampleRun:
    few = slice(4) if isinstance(seen.inputs, torch.Tensor) else slice(None)  # of texts all, for their lengths
    return SampleRun(model, seen.call, seen.inputs[few], seen.outputs[few], seen.column)


@dataclass(frozen=True)
class ArchitectureChooser:
    """`work`: keeps each measured width, since measuring it again would give another."""

    settings: TrainSettings
    hparams: Hyperparameters
    device: torch.device
    work: Path

    def chosen(self, candidate: Candidate, sample: SampleRun) -> Candidate:
        """The candidate with its architecture and width. Raise TrainingError or NotCodable if it cannot be."""
        code = candidate.code
        if code.lossless:
            return candidate
        goal = Goal(code)
        if isinstance(sample.inputs, torch.Tensor):
            goal.encode(sample.inputs[:1].expand(goal.k, *sample.shapes.input)[None], torch.ones(1, goal.k))
        if self.hparams.vary:
            check_batches(sample.deployed, sample.inputs, sample.outputs)
        candidate = replace(candidate, architecture=self._architecture(candidate, sample))
        return replace(candidate, width=self._width(candidate, sample))

    def _architecture(self, candidate: Candidate, sample: SampleRun) -> str:
        asked = candidate.architecture
        if asked is None and candidate.code.family is Family.BACKUP:
            return usual_architecture(sample.shapes)
        if asked not in (None, DEPLOYED, FRESH):
            return asked
        try:
            self._check_learning(asked or DEPLOYED, sample)
        except NotCodable as refusal:
            if asked is not None:
                other = "" if "use --architecture" in str(refusal) else f"; use {usual_architecture(sample.shapes)}"
                raise NotCodable(f"--architecture {asked}: {refusal}{other}") from None
            return usual_architecture(sample.shapes)
        return asked or DEPLOYED

    def _check_learning(self, architecture: str, sample: SampleRun) -> None:
        """Raise NotCodable unless a copy of the deployed model can learn, many groups at once."""
        copied = make_model(architecture, sample.model, sample.call, sample.shapes)
        if self.settings.devices > 1 and any(isinstance(part, torch.jit.ScriptModule) for part in copied.modules()):
            raise NotCodable("a TorchScript model cannot be sent to several processes: train it with --devices 1")
        check_batches(copied.eval() if architecture == DEPLOYED else sample.deployed, sample.inputs, sample.outputs)
        with torch.enable_grad():
            if not copied(sample.inputs).requires_grad:
                raise NotCodable("the deployed model computes without gradients, so a copy of it cannot learn")

    def _width(self, candidate: Candidate, sample: SampleRun) -> float:
        assert candidate.architecture is not None

        def make(width: float) -> CallAdapter | TextAdapter:
            return make_model(architecture, sample.model, sample.call, sample.shapes, width)

        def served(width: float) -> CallAdapter | TextAdapter:
            model = make(width).to(self.device).eval()
            if isinstance(model.network, ReshapedNetwork):
                folded(model.network)
            return model

        architecture = candidate.architecture
        if not has_width(architecture):
            make(1.0)
            return 1.0
        # The first look has seen a few lengths, and what is paid for is the lengths of all.
        lengths = "" if isinstance(sample.inputs, torch.Tensor) else f"-{len(sample.inputs)}"
        kept = self.work / f"{candidate.label}-{self.key(candidate)}{lengths}.width"
        if kept.exists():
            return float(kept.read_text())
        runs = 1 if candidate.code.family is Family.PARITY else candidate.code.k
        most = widest(architecture)
        width = affordable_width(served, sample.deployed, sample.shapes, runs, self.settings.budget, self.device, most)
        kept.write_text(f"{width!r}\n")
        return width

    def key(
        self,
        candidate: Candidate,
        row: int = 0,
        seed: int = 0,
        semantics: OutputSemantics | None = None,
        begun: str = "",
    ) -> str:
        """A key that changes with everything that affects what is learned, and with nothing else. `begun`: identifies
        the network before its first step, since its code may read files.
        """
        settings = self.settings
        told = {
            **asdict(candidate),
            "row": row,
            "seeds": (settings.seed, seed),
            "hyperparameters": asdict(self.hparams),
            "meaning": semantics and {**asdict(semantics), "why": ""},
            "begun": begun,
            "budget": settings.budget if has_width(candidate.architecture or "") else None,
            "on": (self.device.type, settings.devices, settings.precision),
            "files": _sources(candidate.architecture or ""),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _sources(architecture: str) -> list[str]:
    """The text of a `file.py:function`'s file, and of what it has imported from its own folder."""
    file = Path(architecture.rpartition(":")[0])
    if not file.is_file():
        return []
    folder = f"{file.resolve().parent}{os.sep}"
    loaded = {getattr(module, "__file__", None) or "" for module in [*sys.modules.values()]}
    own = sorted(name for name in loaded if name.startswith(folder) and "site-packages" not in name)
    return [
        Path(name).read_text(encoding="utf-8", errors="replace") for name in (str(file), *own) if name.endswith(".py")
    ]


def substitutes(candidates: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[str]:
    """Warnings for the report: another network learns than a copy of the deployed one."""
    others = {
        after.architecture
        for before, after in zip(candidates, chosen, strict=True)
        if before.architecture is None and after.code.family is Family.PARITY and after.architecture != DEPLOYED
    }
    return [
        f"a copy of the deployed model cannot learn (it is frozen, quantized or no torch module, perhaps), so its "
        f"parity model is a network of another kind, {each}"
        for each in sorted(map(str, others))
    ]
