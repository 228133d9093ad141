"""One training job: observe, split, fit every candidate, score, pack, check what was packed, and put it in place.

Every finished stage is kept in the workshop, so an interrupted job goes on from there. Knows the order of things. What
each step does is in `data`, `fit`, `evaluate`, `cost` and `packing`.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ts_parity import __version__
from ts_parity.codes import Code, Family, make_code
from ts_parity.errors import CodeError, TrainingError, TsParityError
from ts_parity.torchserve.archive import Archive, extract_archive, read_archive
from ts_parity.training import TrainSettings
from ts_parity.training.architectures import (
    DEPLOYED,
    FRESH,
    Called,
    Shapes,
    make_called,
    multiplications,
    usual_architecture,
)
from ts_parity.training.bodies import Body, list_bodies, read_labels
from ts_parity.training.cost import Cost, measure
from ts_parity.training.data import Observations, observe
from ts_parity.training.devices import launch, make_fabric
from ts_parity.training.evaluate import evaluate, over_seeds
from ts_parity.training.fit import Knobs, Material, Progress, check_batches, run_network
from ts_parity.training.goals import Goal, draw_groups
from ts_parity.training.packing import Packer
from ts_parity.training.page import page
from ts_parity.training.recommend import recommend
from ts_parity.training.workshop import workshop
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

SCORED_GROUPS = 2000
FEWEST_BODIES = 20
HELD_OUT = 0.15
"""Share of bodies that choose the best weights, and score the report unless others are given for that."""


@dataclass(frozen=True)
class Candidate:
    """One code and k to be made."""

    code: Code
    architecture: str | None

    @property
    def label(self) -> str:
        return f"{self.code.name}-k{self.code.k}" + (f"-r{self.code.r}" if self.code.r > 1 else "")


def run(settings: TrainSettings) -> dict[str, Any]:
    """See `training.train`."""
    candidates, refused = _candidates(settings)
    if settings.out.exists() and not settings.force:
        raise TrainingError(f"{settings.out} exists; choose another --out, or --force to replace it")
    archive = read_archive(settings.archive)
    bodies = list_bodies(settings.inputs, settings.body)
    if any(not candidate.code.lossless for candidate in candidates):
        _check_enough(len(bodies), candidates)
    with workshop(settings, bodies) as work:
        report = _Job(settings, archive, bodies, work).run(candidates)
        report["refused"] = refused
        report["recommendation"] = recommend(report)
        made = work / "made"
        (made / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (made / "report.html").write_text(page(report), encoding="utf-8")
        if settings.out.exists():
            shutil.rmtree(settings.out)
        made.rename(settings.out)
    return report


def _candidates(settings: TrainSettings) -> tuple[list[Candidate], list[str]]:
    """Every code with every k, and why some of these cannot be. Raise CodeError if none can."""
    made, refused = [], []
    for name in dict.fromkeys(settings.codes):
        for k in dict.fromkeys(settings.ks):
            try:
                made.append(Candidate(make_code(name, k, settings.r), settings.architecture))
            except CodeError as error:
                refused.append(str(error))
    if not made:
        raise CodeError("; ".join(refused) or "no code was asked for")
    return made, refused


def _check_enough(bodies: int, candidates: Sequence[Candidate]) -> None:
    if bodies < max(FEWEST_BODIES, 4 * max(candidate.code.k for candidate in candidates)):
        raise TrainingError(f"{bodies} usable bodies are too few; give some hundreds at least")


class _Job:
    """What the stages share."""

    def __init__(self, settings: TrainSettings, archive: Archive, bodies: Sequence[Body], work: Path) -> None:
        self.settings = settings
        self.archive = archive
        self.bodies = bodies
        self.work = work
        self.extracted = work / "archive"
        self.fabric = make_fabric(settings)
        self.knobs = _knobs(settings)

    def run(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        started = time.monotonic()
        shutil.rmtree(self.extracted, ignore_errors=True)
        extract_archive(self.settings.archive, self.extracted)
        report: dict[str, Any] = {
            "package": __version__,
            "deployed": asdict(self.archive.protects()),
            "bodies": len(self.bodies),
            "seed": self.settings.seed,
            "metric": self.settings.metric,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads",
            "device": str(self.fabric.device),
        }
        learned = [candidate for candidate in candidates if not candidate.code.lossless]
        if learned or self.settings.score is not None:
            report |= self._learn(candidates)
        else:
            report["candidates"] = [self._exact(candidate) for candidate in candidates]
        if any(c.code.family is Family.PARITY for c in candidates):
            packer = Packer(self.settings, self.archive, self.extracted, self.samples, self.work / "made")
            report["archives"] = {"deployed": packer.deployed()}
        report["seconds"] = round(time.monotonic() - started, 1)
        return report

    @property
    def samples(self) -> Sequence[Body]:
        """Bodies the workers test themselves on."""
        return self.bodies[:2] if not hasattr(self, "seen") else [self.bodies[i] for i in self.seen.kept[:2]]

    def _learn(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        gpu = self.fabric.device.index if self.fabric.device.type == "cuda" else None
        with _loaded(self.extracted, gpu) as handler:
            self.seen = self._observe(handler, self.bodies, "seen", "deployed model")
            _check_enough(len(self.seen), candidates)
            self.shapes = Shapes(tuple(self.seen.inputs.shape[1:]), tuple(self.seen.outputs.shape[1:]))
            self.model = handler.model
            self.learn, self.choose = _split(len(self.seen), self.settings.seed)
            self._prepare_scoring(handler)
            made = [self._candidate(candidate) for candidate in candidates]
        shared = {name: made[0][name] for name in _SHARED if name in made[0]}
        return {
            "refused_bodies": list(self.seen.refused[:20]),
            "knobs": {**asdict(self.knobs), "vary": list(self.knobs.vary)},
            "held_out": HELD_OUT,
            "scored_on": self.scored_on,
            "scored_groups": SCORED_GROUPS,
            **shared,
            "candidates": made,
        }

    def _observe(self, handler: OfflineHandler, bodies: Sequence[Body], folder: str, what: str) -> Observations:
        with self._bar(what, len(bodies), "body") as bar:
            return observe(handler, bodies, self.work / folder, bar.update)

    def _prepare_scoring(self, handler: OfflineHandler) -> None:
        """On bodies no model has learned from: those given for it, or the held-out share (which F may have seen)."""
        settings = self.settings
        if settings.score is not None:
            bodies, source = list_bodies(settings.score, settings.body), settings.score
            self.scored = self._observe(handler, bodies, "scored", "scoring")
            self.scored_rows = np.arange(len(self.scored))
            self.scored_on = f"{len(self.scored)} bodies of {source.name}"
        else:
            bodies, source = list(self.bodies), settings.inputs
            self.scored, self.scored_rows = self.seen, self.choose
            self.scored_on = f"{len(self.choose)} held-out bodies of {source.name}"
        kept = [bodies[int(i)] for i in self.scored.kept]
        self.labels = None if settings.labels is None else read_labels(settings.labels, source, kept)

    def _deployed(self) -> Called:
        return make_called(DEPLOYED, self.model, self.seen.call, self.shapes).requires_grad_(False).eval()

    def _candidate(self, candidate: Candidate) -> dict[str, Any]:
        """Train it with every seed, score it, and pack the best of them."""
        code = candidate.code
        if code.lossless:
            return self._exact(candidate)
        architecture = candidate.architecture or (
            DEPLOYED if code.family is Family.PARITY else usual_architecture(self.shapes)
        )
        rows = range(code.r if code.family is Family.PARITY else 1)  # the r instances of a backup run one network
        trained = [
            [self._row(candidate, architecture, row, seed) for row in rows]
            for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds)
        ]
        scores = [self._scores(code, models, seed) for seed, models in enumerate(trained)]
        best = max(range(len(scores)), key=lambda i: scores[i]["agreement"])
        cost = self._cost(code, trained[best][0])
        return {
            **_told(code, architecture),
            **over_seeds(scores),
            "cost": cost.ratio,
            "group_ms": cost.group_ms,
            "one_ms": cost.one_ms,
            "multiplications": cost.multiplications,
            "archives": self._pack(candidate, [model.network for model in trained[best]], cost.ratio),
        }

    def _exact(self, candidate: Candidate) -> dict[str, Any]:
        code = candidate.code
        told: dict[str, Any] = {**_told(code, "the deployed model itself"), "agreement": 1.0, "seeds": 0}
        cost: float | None = None
        if hasattr(self, "scored"):
            deployed = self._deployed().to(self.fabric.device)
            groups = draw_groups(self.scored_rows, code.k, np.random.default_rng(self.settings.seed + 1), SCORED_GROUPS)
            outputs = self.scored.outputs[groups]
            same = {members: {0: outputs} for members in range(1, code.k + 1)}
            labels = None if self.labels is None else self.labels[groups]
            told |= over_seeds([evaluate(code, outputs, same, labels, self.settings.metric)]) | {"seeds": 0}
            measured = self._cost(code, deployed)
            told |= {"cost": measured.ratio, "group_ms": measured.group_ms, "one_ms": measured.one_ms}
            told["multiplications"], cost = float(code.k), measured.ratio
        told["archives"] = self._pack(candidate, [None], cost)
        return told

    def _pack(self, candidate: Candidate, networks: Sequence[nn.Module | None], cost: float | None) -> list[str]:
        """One archive for each of the r protections."""
        made = self.work / "made"
        packer = Packer(self.settings, self.archive, self.extracted, self.samples, made)
        return [
            packer.protection(
                candidate.code, row, networks[min(row, len(networks) - 1)], self._name(candidate, row), cost
            )
            for row in range(candidate.code.r)
        ]

    def _row(self, candidate: Candidate, architecture: str, row: int, seed: int) -> Called:
        """One trained network, from its finished weights if an interrupted run left them."""
        goal, label = Goal(candidate.code, row), f"{candidate.label}-row{row}-seed{seed}"
        torch.manual_seed(seed * 100 + row)
        model = make_called(
            architecture, self.model, self.seen.call, self.shapes, self.settings.budget, candidate.code.k
        )
        if architecture in (DEPLOYED, FRESH) or self.knobs.vary:
            check_batches(self._deployed(), self.seen.inputs, self.seen.outputs)
        finished = self.work / f"{label}.weights"
        if finished.exists():
            model.load_state_dict(torch.load(finished, weights_only=True))
            return model.to(self.fabric.device).eval()
        deployed = self._deployed() if self.knobs.vary else None
        material = Material(self.seen.inputs, self.seen.outputs, self.learn, self.choose, deployed)
        with self._bar(label, self.knobs.steps, "step") as bar:

            def told(step: int, loss: float, agreement: float) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreement:.3f}")

            weights = launch(
                self.fabric, model, material, goal, self.knobs, seed * 100 + row, self.work / f"{label}.checkpoint",
                Progress(told),
            )  # fmt: skip
        model.load_state_dict(weights)
        torch.save(weights, finished)
        (self.work / f"{label}.checkpoint").unlink(missing_ok=True)
        return model.to(self.fabric.device).eval()

    def _scores(self, code: Code, models: Sequence[Called], seed: int) -> dict[str, Any]:
        dice = np.random.default_rng(self.settings.seed + 1 + seed)
        groups = draw_groups(self.scored_rows, code.k, dice, SCORED_GROUPS)
        protections = said(code, models, self.scored.inputs, groups)
        labels = None if self.labels is None else self.labels[groups]
        return evaluate(code, self.scored.outputs[groups], protections, labels, self.settings.metric)

    def _cost(self, code: Code, model: Called) -> Cost:
        deployed = self._deployed().to(self.fabric.device)
        cost = measure(deployed, model, Goal(code), self.seen.inputs[: code.k])
        runs = 1 if code.family is Family.PARITY else code.k
        counted = runs * multiplications(model, self.shapes) / multiplications(deployed, self.shapes)
        return replace(cost, multiplications=round(counted, 3))

    def _name(self, candidate: Candidate, row: int) -> str:
        base = self.settings.name or f"{self.archive.model_name}-parity"
        if len(self.settings.codes) * len(self.settings.ks) > 1:
            base += f"-{candidate.code.name}-k{candidate.code.k}"
        return base if candidate.code.r == 1 else f"{base}-{row}"

    def _bar(self, what: str, total: int, unit: str) -> Any:
        return tqdm(total=total, desc=what, disable=not self.settings.progress, file=sys.stderr, unit=unit)


def _loaded(folder: Path, gpu: int | None) -> OfflineHandler:
    try:
        return OfflineHandler(folder, gpu)
    except TsParityError:
        raise
    except Exception as error:  # whatever user code raises while it loads
        raise TrainingError(f"the archive's handler could not be loaded: {type(error).__name__}: {error}") from error


_SHARED = ("A_a", "A_default")


def said(code: Code, models: Sequence[nn.Module], inputs: torch.Tensor, groups: Array) -> dict[int, dict[int, Array]]:
    """What the protections say to groups (G, k) of inputs, for every number of members, as `evaluate` wants it."""
    if code.family is Family.BACKUP:
        flat = run_network(models[0], inputs, groups.reshape(-1, 1), Goal(code))
        answers = flat.reshape(*groups.shape, *flat.shape[1:])
        return {members: {0: answers} for members in range(1, code.k + 1)}
    return {
        members: {row: run_network(model, inputs, groups, Goal(code, row), members) for row, model in enumerate(models)}
        for members in range(1, code.k + 1)
    }


def _told(code: Code, architecture: str) -> dict[str, Any]:
    return {
        "code": code.name,
        "k": code.k,
        "r": code.r,
        "family": code.family.value,
        "coefficients": [list(row) for row in code.coefficients],
        "architecture": architecture,
    }


def _split(count: int, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(count)
    held = max(2, int(count * HELD_OUT))
    return order[held:], order[:held]


def _knobs(settings: TrainSettings) -> Knobs:
    knobs = Knobs(classes=settings.metric != "iou")
    if settings.steps is not None:
        if settings.steps < 1:
            raise TrainingError(f"--steps must be at least 1, not {settings.steps}")
        knobs = replace(knobs, steps=settings.steps)
    chosen = tuple(kind for kind in settings.vary or () if kind != "none")
    return replace(knobs, vary=chosen)
