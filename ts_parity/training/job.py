"""One training job: observe, split, fit every candidate, score, pack, check what was packed, and put it in place.

Every finished stage is kept in the workshop, so an interrupted job goes on from there. Knows the order of things. What
each step does is in `data`, `fit`, `evaluate`, `cost` and `packing`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ts_parity import __version__, output
from ts_parity.codes import ErasureCode, Family, RowErrors, make_code
from ts_parity.errors import NotCodable, NotRepeatable, TrainingError, TsParityError
from ts_parity.fingerprint import fingerprint
from ts_parity.torchserve.archive import extract_archive, protection_name
from ts_parity.training import FOLDERS, TrainSettings
from ts_parity.training.architecture_choice import ArchitectureChooser, sample_of, sample_run, substitutes
from ts_parity.training.architectures import (
    DEPLOYED,
    FRESH,
    CallAdapter,
    ReshapedNetwork,
    check_architecture,
    folded,
    make_model,
)
from ts_parity.training.bodies import RequestBody, bodies_of
from ts_parity.training.confidence import calibrated
from ts_parity.training.cost import Cost, measure
from ts_parity.training.data import not_encodable, some_calls
from ts_parity.training.dataset import Dataset, prepare
from ts_parity.training.devices import launch, make_fabric
from ts_parity.training.disagreements import (
    RebuiltAnswers,
    by_class,
    chosen_from,
    class_name,
    class_names,
    label_told,
    told_of,
    who_was_right,
)
from ts_parity.training.evaluate import Protections, evaluate, of_packed, rebuilt_slots
from ts_parity.training.fit import Hyperparameters, Progress, TrainingData, run_network
from ts_parity.training.goals import Goal, draw_groups
from ts_parity.training.inputs import Calls, Inputs, tensor_bytes
from ts_parity.training.job_spec import FEWEST_BODIES, Candidate, JobSpec, check_enough
from ts_parity.training.packing import Packer
from ts_parity.training.page import report_page
from ts_parity.training.previews import as_text
from ts_parity.training.promise import COMPARED, Promise, finished, promise
from ts_parity.training.recommend import recommend
from ts_parity.training.repeats import MOST, check_repeatable
from ts_parity.training.scaling import scaled
from ts_parity.training.semantics import OutputSemantics, infer_semantics
from ts_parity.training.sizing import USUAL_BUDGET, Model, multiplications
from ts_parity.training.steps import command_of
from ts_parity.training.text_network import TextAdapter, TextNetwork
from ts_parity.training.weighing import MOST_GROUPS, all_members, is_weighed, row_errors
from ts_parity.training.workshop import workshop
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

SCORED_GROUPS = 2000
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


@dataclass(frozen=True)
class Trained:
    """The networks of one candidate with one seed: one for each row, or one for all."""

    models: Sequence[CallAdapter | TextAdapter]
    errors: RowErrors | None = None


@dataclass
class _CostMeter:
    """What a group costs; asked for each row of a code, whose networks are alike, and measured once."""

    measured: Callable[[Path], Cost]
    found: Cost | None = None

    def __call__(self, packed: Path) -> float | None:
        self.found = self.found or self.measured(packed)
        return self.found.cost

    def told(self) -> dict[str, Any]:
        return asdict(self.found or Cost())


class _Job:
    """What the stages share."""

    def __init__(self, spec: JobSpec, work: Path) -> None:
        settings = self.settings = spec.settings
        self.archive = spec.archive
        self.protects = spec.archive.protects(settings.protects)
        self.bodies = spec.bodies
        self.labels = spec.labels
        self.work = work
        self.extracted = work / "archive"
        self.fabric = make_fabric(settings)
        self.hparams = _hparams(settings)
        self.chooser = ArchitectureChooser(settings, self.hparams, self.fabric.device, work)
        self.warnings: list[str] = []
        self.shown: dict[int, RequestBody] = {}
        """Those of the disagreements, by their row among the scored ones."""

    def run(self, candidates: Sequence[Candidate], refused: list[str]) -> dict[str, Any]:
        """`refused` grows by what this handler's inputs rule out."""
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
            "device": str(self.fabric.device),
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
                _unscored(candidate.code, self._exact(packer, candidate, lambda packed: None))
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

        A few bodies tell, as a rule; what only others would show, observing all of them finds.
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
            dataset = prepare(handler, self.settings, self.bodies, self.labels, self.work, self._bar)
            candidates = self._of_such_inputs(dataset.seen.inputs, candidates, refused)
            candidates = _of_such_outputs(dataset, candidates, refused)
            check_enough(len(dataset.seen), candidates, dataset.repeated)
            sample = sample_of(dataset.model, dataset.seen)
            chosen = [self.chooser.chosen(candidate, sample) for candidate in candidates]
            packer = self._packer([self.bodies[int(dataset.seen.kept[row])] for row in dataset.seen.examples()])
            self._tell(dataset.semantics)
            made = [self._candidate(handler, dataset, packer, candidate) for candidate in chosen]
            beside = [
                self._beside(handler, dataset, packer, k)
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
        """Those that can be made of what only some bodies have shown."""
        if not isinstance(inputs, Calls):
            return list(candidates)
        if self.hparams.vary:
            raise TrainingError("--vary is for images: one floating input of one shape for all bodies")
        why = f"needs one floating input of one shape, and {inputs.told()}; take code student or exact"
        refused += [f"code {one.code.name} {why}" for one in candidates if one.code.family is Family.PARITY]
        left = [one for one in candidates if one.code.family is not Family.PARITY]
        if not left:
            raise NotCodable(f"code {candidates[0].code.name} {why}")
        return left

    def _candidate(
        self, handler: OfflineHandler, dataset: Dataset, packer: Packer, candidate: Candidate
    ) -> dict[str, Any]:
        """Train it with every seed, score it, and pack the best of them."""
        code = candidate.code
        if code.lossless:
            scores = [self._scores(dataset, code, self._answered(dataset, code, Trained([]), 0))]
            price = self._price(handler, dataset, code, dataset.deployed())
            archives = self._exact(packer, candidate, price)
            return {
                **_told(code, ITSELF),
                **of_packed(scores, 0),
                "seeds": 0,
                **price.told(),
                "archives": archives,
            }
        rows = range(code.r if code.family is Family.PARITY else 1)  # the r instances of a backup run one network
        trained = [
            self._weighed(dataset, code, [self._row(dataset, candidate, row, seed) for row in rows])
            for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds)
        ]
        answered = [self._answered(dataset, code, each, seed) for seed, each in enumerate(trained)]
        scores = [self._scores(dataset, code, each) for each in answered]
        chosen = self._chosen(dataset, code, trained)
        best = trained[chosen]
        promised = self._promise(handler, dataset, code, best, scores[chosen])
        says = functools.partial(predictions, code, best.models)
        confidence, worth = calibrated(dataset, code, says, best.errors, self.settings.seed)
        price, archives = self._price(handler, dataset, code, best.models[0]), []
        for row in range(code.r):
            model, name = best.models[min(row, len(best.models) - 1)], self._name(candidate, row)
            archives.append(packer.protection(code, row, model, name, price, promised, best.errors, confidence))
        told = {
            "promised": asdict(promised),
            "confidence": worth,
            "packed_seed": self.settings.seed + chosen,
            "archives": archives,
            **self._shows(handler, dataset, code, answered[chosen]),
        }
        return {**_told(code, str(candidate.architecture)), **of_packed(scores, chosen), **price.told(), **told}

    def _weighed(self, dataset: Dataset, code: ErasureCode, models: Sequence[CallAdapter | TextAdapter]) -> Trained:
        """With how the rows' errors go together, where there are several."""
        if not is_weighed(code):
            return Trained(models)
        groups, outputs = self._choosing(dataset, code, MOST_GROUPS)
        told = {
            slots: {
                row: run_network(model, dataset.seen.inputs, groups, Goal(code, row), slots)
                for row, model in enumerate(models)
            }
            for slots in all_members(code)
        }
        return Trained(models, row_errors(code, outputs, told, dataset.semantics, len(dataset.choose)))

    def _chosen(self, dataset: Dataset, code: ErasureCode, trained: Sequence[Trained]) -> int:
        """The best of several seeds, on bodies that are not scored: the best of what is scored would be luck, too."""
        if len(trained) == 1:
            return 0
        groups, outputs = self._choosing(dataset, code)
        losses = [
            evaluate(
                code,
                outputs,
                predictions(code, each.models, dataset.seen.inputs, groups),
                semantics=dataset.semantics,
                errors=each.errors,
            )["loss"]
            for each in trained
        ]
        return losses.index(min(losses))

    def _choosing(self, dataset: Dataset, code: ErasureCode, most: int = SCORED_GROUPS) -> tuple[Array, Array]:
        """-> groups of bodies that were neither learned nor scored, and what the deployed model said to them."""
        groups = draw_groups(dataset.choose, code.k, np.random.default_rng(self.settings.seed), most)
        return groups, dataset.seen.outputs[groups]

    def _exact(self, packer: Packer, candidate: Candidate, price: Callable[[Path], float | None]) -> list[str]:
        code = candidate.code
        return [packer.protection(code, row, None, self._name(candidate, row), price) for row in range(code.r)]

    def _row(self, dataset: Dataset, candidate: Candidate, row: int, seed: int) -> CallAdapter | TextAdapter:
        """One trained network, from its finished weights if an earlier run left them."""
        goal, label = Goal(candidate.code, row), f"{candidate.label}-row{row}-seed{seed}"
        dice = seed * 100 + row
        torch.manual_seed(dice)
        model = make_model(
            str(candidate.architecture), dataset.model, dataset.seen.call, dataset.shapes, candidate.width
        )
        observed = dataset.semantics, dataset.seen.inputs, dataset.seen.outputs
        if isinstance(model.network, TextNetwork):
            model.network.head = scaled(model.network.head, dataset.shapes, goal, *observed)
        if isinstance(model.network, ReshapedNetwork) and ".py:" not in str(
            candidate.architecture
        ):  # a user's own is as it is
            model.network.network = scaled(model.network.network, dataset.shapes, goal, *observed)
        key = self.chooser.key(candidate, row, seed, dataset.semantics, _digest(model))
        kept = self.work / f"{label}-{key}"
        finished, checkpoint = kept.with_suffix(".weights"), kept.with_suffix(".checkpoint")
        if not finished.exists():
            deployed = dataset.deployed() if self.hparams.vary else None
            seen = dataset.seen
            data = TrainingData(seen.inputs, seen.outputs, dataset.learn, dataset.choose, deployed, dataset.semantics)
            with self._bar(label, self.hparams.steps, "step") as bar:

                def told(step: int, loss: float, score: float) -> None:
                    bar.update(step - bar.n)
                    figure = dataset.semantics.figure
                    bar.set_postfix_str(f"loss={loss:.3f}, {figure.own}={figure.told(score)}")

                weights = launch(self.fabric, model, data, goal, self.hparams, dice, checkpoint, Progress(told))
            torch.save(weights, finished)
            checkpoint.unlink(missing_ok=True)
        model.load_state_dict(torch.load(finished, weights_only=True))
        model.to(self.fabric.device).eval()
        if isinstance(
            model.network, ReshapedNetwork
        ):  # ours, so it may be rebuilt; user code must find its own as it made it
            folded(model.network)
        return model

    def _answered(self, dataset: Dataset, code: ErasureCode, trained: Trained, seed: int) -> _Answered:
        dice = np.random.default_rng(self.settings.seed + 1 + seed)
        groups = draw_groups(dataset.scored_rows, code.k, dice, SCORED_GROUPS)
        if not code.lossless:
            return groups, predictions(code, trained.models, dataset.scored.inputs, groups), trained.errors
        outputs = dataset.scored.outputs[groups]  # it says what the deployed model has said, which was found repeatable
        return groups, {members: {0: outputs} for members in range(1, code.k + 1)}, None

    def _scores(self, dataset: Dataset, code: ErasureCode, answered: _Answered) -> dict[str, Any]:
        groups, protections, errors = answered
        labels = None if dataset.labels is None else dataset.labels[groups]
        contents = dataset.scored_contents[groups]
        return evaluate(code, dataset.scored.outputs[groups], protections, labels, dataset.semantics, contents, errors)

    def _shows(
        self, handler: OfflineHandler, dataset: Dataset, code: ErasureCode, answered: _Answered
    ) -> dict[str, Any]:
        """How the packed one errs: by class, and on a dozen bodies."""
        groups, protections, errors = answered
        semantics, outputs = dataset.semantics, dataset.scored.outputs
        told = rebuilt_slots(code, outputs[groups], protections[code.k], code.k, 1, errors)
        slots, rebuilt = zip(*told, strict=True)
        rows = np.concatenate([groups[:, slot] for slot in slots])
        labels = None if dataset.labels is None else dataset.labels[rows]
        all_of_them = RebuiltAnswers(
            rows, np.concatenate(rebuilt), outputs[rows], dataset.scored_contents[rows], labels
        )
        folders = self.bodies if str(self.settings.labels) == FOLDERS else ()
        names = class_names(self.extracted, semantics.rows(outputs[:1], 1).shape[-1], folders)
        shown = []
        for place in chosen_from(all_of_them, semantics, np.random.default_rng(self.settings.seed)):
            row, raw = int(rows[place]), all_of_them.rebuilt[place].astype(outputs.dtype)
            body = self.shown[row] = dataset.scored_bodies[row]
            both = finished(handler, body, raw)
            shown.append(
                {
                    "body": body.name,
                    "row": row,
                    "deployed": told_of(outputs[row], semantics, names),
                    "rebuilt": told_of(raw, semantics, names),
                    **({} if labels is None else {"label": label_told(labels[place], semantics, names)}),
                    **(
                        {}
                        if both is None
                        else {"answer": as_text(both[0].body), "rebuilt_answer": as_text(both[1].body)}
                    ),
                }
            )
        classes = [{**each, "name": class_name(each["class"], names)} for each in by_class(all_of_them, semantics)]
        return {"classes": classes, "differing": who_was_right(all_of_them, semantics), "disagreements": shown}

    def _beside(self, handler: OfflineHandler, dataset: Dataset, packer: Packer, k: int) -> dict[str, Any]:
        """What `exact` would cost, which nobody asked for: the others are compared with it."""
        code = make_code("exact", k)
        cost = asdict(Cost(float(k), multiplications=float(k)))  # a CPU answers one slot after the other
        if self.fabric.device.type == "cuda":
            price = self._price(handler, dataset, code, dataset.deployed())
            with tempfile.TemporaryDirectory(prefix="ts-parity-exact-") as scratch:
                replace(packer, out=Path(scratch)).protection(code, 0, None, f"exact-k{k}", price)
            cost = price.told()
        return {**_told(code, ITSELF), "metric": dataset.semantics.metric, "loss": 0.0, **cost}

    def _tell(self, semantics: OutputSemantics) -> None:
        """Before hours are spent on it."""
        if self.settings.progress:
            print(
                f"outputs are taken for {semantics.kind} and scored by {semantics.metric}: {semantics.why}",
                file=sys.stderr,
            )

    def _promise(
        self,
        handler: OfflineHandler,
        dataset: Dataset,
        code: ErasureCode,
        trained: Trained,
        scores: Mapping[str, Any],
    ) -> Promise:
        """Of classes a proxy will find what was scored; all else is finished and compared."""
        semantics, scored = dataset.semantics, dataset.scored
        if semantics.metric == "accuracy" and scored.outputs[0].size > 1:
            return Promise(float(scores["agreement"]), interval=scores["intervals"]["agreement"])
        groups = draw_groups(dataset.scored_rows, code.k, np.random.default_rng(self.settings.seed), COMPARED)
        rows = predictions(code, trained.models, scored.inputs, groups)[code.k]

        def rebuilt() -> Iterator[tuple[int, Array]]:
            for slot, raw in rebuilt_slots(code, scored.outputs[groups], rows, code.k, 1, trained.errors):
                for group in range(slot, len(groups), code.k):
                    yield int(groups[group, slot]), raw[group].astype(scored.outputs.dtype)

        return promise(handler, dataset.scored_bodies, rebuilt, semantics.kind in ("numbers", "box", "embedding"))

    def _price(self, handler: OfflineHandler, dataset: Dataset, code: ErasureCode, model: Model) -> _CostMeter:
        """`model`: what will be packed."""
        runs = 1 if code.family is Family.PARITY else code.k
        own, one = (multiplications(each, dataset.shapes) for each in (model, dataset.deployed()))
        counted = None if own is None or one is None else runs * own / one
        counted = float(runs) if code.lossless else counted
        inputs = dataset.seen.inputs
        rows = inputs.typical(code.k).rows if isinstance(inputs, Calls) else range(code.k)
        bodies = [self.bodies[int(dataset.seen.kept[row])] for row in rows]

        def measured(packed: Path) -> Cost:
            try:
                return measure(handler, packed, bodies, counted, self.fabric.device)
            except Exception as error:  # whatever user code raises at what was packed for it
                self.warnings.append(f"{packed.name} does not answer a group here, and perhaps on no worker: {error}")
                return Cost(multiplications=counted)

        return _CostMeter(measured)

    def _packer(self, bodies: Sequence[RequestBody]) -> Packer:
        return Packer(self.settings, self.archive, self.protects, self.extracted, bodies, self.work / "made")

    def _name(self, candidate: Candidate, row: int) -> str:
        code = candidate.code
        if self.settings.name is None:
            return protection_name(self.protects, code.name, code.k, code.r, row)
        several = len(self.settings.codes) * len(self.settings.ks) > 1
        base = f"{self.settings.name}-{code.name}-k{code.k}" if several else self.settings.name
        return base if code.r == 1 else f"{base}-row{row}"

    def _bar(self, what: str, total: int, unit: str = "body") -> Any:
        return tqdm(total=total, desc=what, disable=not self.settings.progress, file=sys.stderr, unit=unit)


def _overlap(dataset: Dataset, candidates: Sequence[Candidate]) -> list[str]:
    if not dataset.overlap or all(candidate.code.lossless for candidate in candidates):
        return []
    told = f"{dataset.overlap} of the {len(dataset.scored_rows)} scored bodies"
    return [f"{told} are the same as bodies of --inputs: they may have been learned, so the figures are too good"]


def _warnings(outputs: Array, candidates: Sequence[Candidate]) -> list[str]:
    """What the scores will show without saying why."""
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
    """Those that need not learn them, where no network can. Raise NotCodable if none is left."""
    if not dataset.semantics.numbered:
        return list(candidates)
    values = [f"{value:g}" for value in np.unique(dataset.seen.outputs)]
    shown = ", ".join(values if len(values) <= 4 else [*values[:2], "...", values[-1]])
    why = (
        f"cannot be learned: the model answers with {shown}, as classes are numbered, and a network would answer with "
        "what lies between. Let the model give scores (of XGBoost: multi:softprob, binary:logistic) or take code exact;"
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
    return {**_told(code, ITSELF), "agreement": 1.0, "loss": 0.0, "seeds": 0, "archives": archives}


def _hashes(made: Path, archive: Path) -> dict[str, str]:
    """sha256 of what was packed, and of what it was made from."""
    files = {file.name: file for file in sorted(made.glob("*.mar"))} | {f"{archive.name} (your own)": archive}
    return {name: fingerprint(file) for name, file in files.items()}


def _digest(model: nn.Module) -> str:
    """Of the weights that it begins with."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(tensor_bytes(value.detach().cpu()))
    return digest.hexdigest()


ITSELF = "the deployed model itself"
_Answered = tuple[Array, Protections, RowErrors | None]
"""Groups (G, k) of scored bodies, what the protections say to them, and by what rows are weighed."""
_SHARED = ("A_a", "A_default", "E_a", "E_default", "spread")


def predictions(
    code: ErasureCode, models: Sequence[nn.Module], inputs: Inputs, groups: Array
) -> dict[int, dict[int, Array]]:
    """What the protections say to groups (G, k) of inputs, for every number of members, as `evaluate` wants it."""
    if code.family is Family.BACKUP:
        flat = run_network(models[0], inputs, groups.reshape(-1, 1), Goal(code))
        answers = flat.reshape(*groups.shape, *flat.shape[1:])
        return {members: {0: answers} for members in range(1, code.k + 1)}
    return {
        members: {
            row: run_network(model, inputs, groups, Goal(code, row), range(members)) for row, model in enumerate(models)
        }
        for members in range(1, code.k + 1)
    }


def _told(code: ErasureCode, architecture: str) -> dict[str, Any]:
    return {
        "code": code.name,
        "k": code.k,
        "r": code.r,
        "family": code.family.value,
        "coefficients": [list(row) for row in code.coefficients],
        "architecture": architecture,
    }


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
