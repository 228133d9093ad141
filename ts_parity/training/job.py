"""One training job: observe, split, fit every candidate, score, pack, check what was packed, and put it in place.

Finished stages are kept in the workshop, so an interrupted job continues from there. Knows the order of the steps; what
happens to one candidate is in `candidates`.
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ts_parity import __version__, output
from ts_parity.codes import ErasureCode, Family
from ts_parity.errors import NotCodable, NotRepeatable, TrainingError, TsParityError
from ts_parity.fingerprint import fingerprint
from ts_parity.torchserve.archive import extract_archive
from ts_parity.training import TrainSettings
from ts_parity.training.architecture_choice import ArchitectureChooser, sample_of, sample_run, substitutes
from ts_parity.training.architectures import (
    DEPLOYED,
    FRESH,
    check_architecture,
)
from ts_parity.training.bodies import RequestBody, bodies_of
from ts_parity.training.candidates import (
    ITSELF,
    SCORED_GROUPS,
    CandidateTrainer,
    described,
    pack_exact,
    progress_bar,
)
from ts_parity.training.data import not_encodable, some_calls
from ts_parity.training.dataset import Dataset, prepare
from ts_parity.training.devices import device_told, make_fabric, serving_device
from ts_parity.training.fit import Hyperparameters
from ts_parity.training.inputs import Calls, Inputs
from ts_parity.training.job_spec import FEWEST_BODIES, Candidate, JobSpec, check_enough
from ts_parity.training.packing import Packer
from ts_parity.training.page import report_page
from ts_parity.training.recommend import recommend
from ts_parity.training.repeats import MOST, check_repeatable
from ts_parity.training.semantics import OutputSemantics, infer_semantics
from ts_parity.training.sizing import USUAL_BUDGET
from ts_parity.training.steps import command_of
from ts_parity.training.workshop import workshop
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

_SHARED = ("A_a", "A_default", "E_a", "E_default", "spread")
"""Figures that are the same for all candidates."""
_NAMED = 20
"""Refused bodies; of more there is the count."""


def run(spec: JobSpec) -> dict[str, Any]:
    """See `training.train`."""
    settings = spec.settings
    check_architecture(settings.architecture)
    with workshop(settings, spec.bodies) as work:
        refused = list(spec.refused)
        job = _Job(spec, work)
        report = job.run(spec.candidates, refused)
        report["refused"] = refused
        report["recommendation"] = recommend(report)
        made = work / "made"
        report["hashes"] = _hashes(made, spec.settings.archive)
        (made / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (made / "report.html").write_text(report_page(report, settings.out, job.shown), encoding="utf-8")
        output.moved(made, settings.out)
    return report


class _Job:
    """The stages of a job, and what they share."""

    def __init__(self, spec: JobSpec, work: Path) -> None:
        settings = self.settings = spec.settings
        self.archive = spec.archive
        self.protects = spec.archive.protects(settings.protects)
        self.bodies = spec.bodies
        self.labels = spec.labels
        self.work = work
        self.extracted = work / "archive"
        self.fabric = make_fabric(settings)
        self.serves = serving_device(settings, self.fabric.device)
        self.hparams = _hparams(settings)
        self.chooser = ArchitectureChooser(settings, self.hparams, self.fabric.device, work)
        self.warnings: list[str] = []
        self.shown: dict[int, RequestBody] = {}
        """The bodies of the disagreements, by their row among the scored ones."""

    def run(self, candidates: Sequence[Candidate], refused: list[str]) -> dict[str, Any]:
        """Adds to `refused` what this handler's inputs rule out."""
        started = time.monotonic()
        shutil.rmtree(self.extracted, ignore_errors=True)
        extract_archive(self.settings.archive, self.extracted)
        candidates = self._codable(candidates, refused)
        report: dict[str, Any] = {
            "package": __version__,
            "made_at": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            "command": command_of(self.settings),
            "archive": str(self.settings.archive),
            "deployed": asdict(self.protects),
            "bodies": len(self.bodies),
            "seed": self.settings.seed,
            "budget": self.settings.budget or USUAL_BUDGET,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {platform.system()}, threads: {torch.get_num_threads()}",
            "device": device_told(self.fabric.device),
            "serve_on": device_told(self.serves),
        }
        varying = self._check_repeatable(any(candidate.code.lossless for candidate in candidates))
        learns = any(not candidate.code.lossless for candidate in candidates)
        try:
            if learns or self.settings.score is not None:
                report |= self._learn(candidates, refused)
        except (NotCodable, TrainingError) as refusal:
            if learns:
                raise
            report["warnings"] = [f"exact loses nothing, but what it costs could not be measured: {refusal}"]
        if "candidates" not in report:
            packer = self._packer(self.bodies[:2])
            report["candidates"] = [
                _unscored(candidate.code, pack_exact(packer, self.settings, candidate, lambda packed: None))
                for candidate in candidates
            ]
        if varying:
            report.setdefault("warnings", []).append(
                f"every answer differs from every other at {', '.join(varying)}, and so does a rebuilt one"
            )
        report["seconds"] = round(time.monotonic() - started, 1)
        return report

    def _codable(self, candidates: Sequence[Candidate], refused: list[str]) -> list[Candidate]:
        """Those whose encoder takes what this handler gives its model. Raise NotCodable if none does.

        A few bodies are usually enough to see it; observing all of them finds the rest.
        """
        encoded = [candidate for candidate in candidates if candidate.code.family is Family.PARITY]
        if not encoded:
            return list(candidates)
        with _loaded(self.extracted, self._gpu, self.settings.declaration) as handler:
            calls = some_calls(handler, self.bodies)
        reasons = {candidate.label: why for candidate in encoded if (why := not_encodable(candidate.code, calls))}
        left = [candidate for candidate in candidates if candidate.label not in reasons]
        if not left:
            raise NotCodable("; ".join(dict.fromkeys(reasons.values())))
        refused += dict.fromkeys(reasons.values())
        return left

    def _check_repeatable(self, lossless: bool) -> list[str]:
        """Raise NotCodable: what answers one body in two ways cannot be learned from, nor stand in for itself."""
        scored = self.bodies if self.settings.score is None else bodies_of(self.settings, self.settings.score)
        try:
            most = MOST if lossless else FEWEST_BODIES
            return check_repeatable(self.extracted, self._gpu, scored, most, self.settings.declaration)
        except NotRepeatable as refusal:
            raise NotCodable(f"no protection of this handler can be believed: {refusal}") from None
        except TsParityError:
            raise
        except Exception as error:  # whatever user code raises while it loads
            raise _unloadable(error) from error

    @property
    def _gpu(self) -> int | None:
        return self.fabric.device.index if self.fabric.device.type == "cuda" else None

    def _learn(self, candidates: Sequence[Candidate], refused: list[str]) -> dict[str, Any]:
        with _loaded(self.extracted, self._gpu, self.settings.declaration) as handler:
            if (sample := sample_run(handler, self.bodies)) is not None:
                candidates = self._of_such_inputs(sample.inputs, candidates, refused)
                if self.labels is not None or self.settings.metric is not None:  # whether they fit, before hours
                    infer_semantics(self.settings.metric, sample.outputs, self.labels, list)
                for candidate in candidates:
                    self.chooser.chosen(candidate, sample)
            bar = functools.partial(progress_bar, self.settings)
            dataset = prepare(handler, self.settings, self.bodies, self.labels, self.work, bar)
            candidates = self._of_such_inputs(dataset.seen.inputs, candidates, refused)
            candidates = _of_such_outputs(dataset, candidates, refused)
            check_enough(len(dataset.seen), candidates, dataset.repeated)
            sample = sample_of(dataset.model, dataset.seen)
            chosen = [self.chooser.chosen(candidate, sample) for candidate in candidates]
            packer = self._packer([self.bodies[int(dataset.seen.kept[row])] for row in dataset.seen.examples()])
            self._tell(dataset.semantics)
            trainer = CandidateTrainer(
                self.settings, self.protects, self.bodies, self.extracted, self.work, self.fabric, self.serves,
                self.hparams, self.chooser, handler, dataset, packer, self.warnings, self.shown,
            )  # fmt: skip
            made = [trainer.made(candidate) for candidate in chosen]
            beside = [
                trainer.exact_beside(k)
                for k in self.settings.ks
                if all(k != c["k"] for c in made if c["code"] == "exact")
            ]
        report = {
            "refused_bodies": list(dataset.refused[:_NAMED]),
            "refused_count": len(dataset.refused),
            "warnings": [
                *dataset.doubts,
                *_overlap(dataset, chosen),
                *_warnings(dataset.seen.outputs, chosen),
                *substitutes(candidates, chosen),
                *self.warnings,
            ],
            "hyperparameters": {**asdict(self.hparams), "vary": list(self.hparams.vary)},
            "split": {
                "learn": len(dataset.learn),
                "choose": len(dataset.choose),
                "score": len(dataset.scored_rows),
                "repeated": dataset.repeated,
                "scored_repeated": dataset.scored_repeated,
                "overlap": dataset.overlap,
            },
            "scored_on": dataset.scored_on,
            "scored_groups": SCORED_GROUPS,
            "metric": dataset.semantics.metric,
            "outputs": {"kind": dataset.semantics.kind, "why": dataset.semantics.why},
            **{name: made[0][name] for name in _SHARED if name in made[0]},
            "candidates": made,
            "beside": beside,
        }
        if any(candidate.code.family is Family.PARITY for candidate in candidates):
            report["archives"] = {"deployed": packer.deployed()}
        return report

    def _of_such_inputs(self, inputs: Inputs, candidates: Sequence[Candidate], refused: list[str]) -> list[Candidate]:
        """The candidates that inputs of this kind allow."""
        if not isinstance(inputs, Calls):
            return list(candidates)
        if self.hparams.vary:
            raise TrainingError("--vary is for images: one floating input of one shape for all bodies")
        why = f"needs one floating input of one shape, and {inputs.told()}; use code student or exact"
        refused += [f"code {one.code.name} {why}" for one in candidates if one.code.family is Family.PARITY]
        left = [one for one in candidates if one.code.family is not Family.PARITY]
        if not left:
            raise NotCodable(f"code {candidates[0].code.name} {why}")
        return left

    def _tell(self, semantics: OutputSemantics) -> None:
        """Print it before hours are spent on it."""
        if self.settings.progress:
            print(
                f"outputs are taken for {semantics.kind} and scored by {semantics.metric}: {semantics.why}",
                file=sys.stderr,
            )

    def _packer(self, bodies: Sequence[RequestBody]) -> Packer:
        made = self.work / "made"
        return Packer(self.settings, self.archive, self.protects, self.extracted, bodies, made, self.serves.type)


def _overlap(dataset: Dataset, candidates: Sequence[Candidate]) -> list[str]:
    if not dataset.overlap or all(candidate.code.lossless for candidate in candidates):
        return []
    told = f"{dataset.overlap} of the {len(dataset.scored_rows)} scored bodies"
    return [f"{told} are the same as bodies of --inputs: they may have been learned, so the figures are too good"]


def _warnings(outputs: Array, candidates: Sequence[Candidate]) -> list[str]:
    """Why parity models of bounded outputs score badly."""
    copies = [c for c in candidates if c.code.family is Family.PARITY and c.architecture in (None, DEPLOYED, FRESH)]
    bounded = float(outputs.min()) >= 0.0 and float(outputs.max()) <= 1.0
    if not copies or not bounded:
        return []
    return [
        "the deployed outputs lie between 0 and 1, as after a softmax or a sigmoid: a parity model of the same network "
        "cannot say their sum; serve logits, give an --architecture, or take a student"
    ]


def _loaded(folder: Path, gpu: int | None, declaration: Mapping[str, str]) -> OfflineHandler:
    try:
        return OfflineHandler(folder, gpu, declaration)
    except TsParityError:
        raise
    except Exception as error:  # whatever user code raises while it loads
        raise _unloadable(error) from error


def _of_such_outputs(dataset: Dataset, candidates: Sequence[Candidate], refused: list[str]) -> list[Candidate]:
    """Without those that would have to learn class numbers, which no network can. Raise NotCodable if none is left."""
    if not dataset.semantics.numbered:
        return list(candidates)
    values = [f"{value:g}" for value in np.unique(dataset.seen.outputs)]
    shown = ", ".join(values if len(values) <= 4 else [*values[:2], "...", values[-1]])
    why = (
        f"cannot be learned: the model answers with {shown}, as classes are numbered, and a network would answer with "
        "what lies between. Let the model give scores (of XGBoost: multi:softprob, binary:logistic) or use code exact;"
        " if these are quantities, say --metric mae"
    )
    refused += [f"code {one.code.name} {why}" for one in candidates if not one.code.lossless]
    left = [one for one in candidates if one.code.lossless]
    if not left:
        raise NotCodable(f"code {candidates[0].code.name} {why}")
    return left


def _unloadable(error: Exception) -> TrainingError:
    return TrainingError(f"the archive's handler could not be loaded: {type(error).__name__}: {error}")


def _unscored(code: ErasureCode, archives: list[str]) -> dict[str, Any]:
    """What is known of `exact` once the handler has proved repeatable: that it loses nothing."""
    return {**described(code, ITSELF), "agreement": 1.0, "loss": 0.0, "seeds": 0, "archives": archives}


def _hashes(made: Path, archive: Path) -> dict[str, str]:
    """sha256 of what was packed, and of what it was made from."""
    files = {file.name: file for file in sorted(made.glob("*.mar"))} | {f"{archive.name} (your own)": archive}
    return {name: fingerprint(file) for name, file in files.items()}


def _hparams(settings: TrainSettings) -> Hyperparameters:
    hparams = Hyperparameters()
    if settings.steps is not None:
        if settings.steps < 1:
            raise TrainingError(f"--steps must be at least 1, not {settings.steps}")
        hparams = replace(hparams, steps=settings.steps)
    if settings.rate is not None:
        if settings.rate <= 0:
            raise TrainingError(f"--rate must be positive, not {settings.rate}")
        hparams = replace(hparams, peak_rate=settings.rate)
    chosen = tuple(kind for kind in settings.vary or () if kind != "none")
    return replace(hparams, vary=chosen)
