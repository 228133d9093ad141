"""One candidate of a job: a network for each row and seed is trained and scored, and the best is packed.

Knows the order of these steps. What each does is in `fit`, `evaluate`, `calibration`, `cost` and `packing`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from ts_parity.codes import ErasureCode, Family, RowErrors, make_code
from ts_parity.describe import ProtectedModel
from ts_parity.torchserve.archive import protection_name
from ts_parity.training import FOLDERS, PairSettings, TrainSettings
from ts_parity.training.architecture_choice import ArchitectureChooser
from ts_parity.training.architectures import (
    CallAdapter,
    ReshapedNetwork,
    folded,
    make_model,
)
from ts_parity.training.bodies import RequestBody
from ts_parity.training.confidence import calibrated
from ts_parity.training.cost import Cost, measure
from ts_parity.training.dataset import Dataset
from ts_parity.training.devices import launch
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
from ts_parity.training.job_spec import Candidate
from ts_parity.training.packing import Packer
from ts_parity.training.previews import as_text
from ts_parity.training.promise import COMPARED, Promise, finished, promise
from ts_parity.training.scaling import scaled
from ts_parity.training.sizing import Model, multiplications
from ts_parity.training.text_network import TextAdapter, TextNetwork
from ts_parity.training.weighing import MOST_GROUPS, all_members, is_weighed, row_errors
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

SCORED_GROUPS = 2000
ITSELF = "the deployed model itself"
_Answered = tuple[Array, Protections, RowErrors | None]
"""Groups (G, k) of scored bodies, the protections' outputs for them, and the errors that rows are weighed by."""


@dataclass(frozen=True)
class Trained:
    """The networks of one candidate with one seed: one for each row, or one for all."""

    models: Sequence[CallAdapter | TextAdapter]
    errors: RowErrors | None = None


@dataclass
class _CostMeter:
    """What a group costs. The networks of a code's rows are alike, so the first row is measured for all."""

    measured: Callable[[Path], Cost]
    found: Cost | None = None

    def __call__(self, packed: Path) -> float | None:
        self.found = self.found or self.measured(packed)
        return self.found.cost

    def told(self) -> dict[str, Any]:
        return asdict(self.found or Cost())


@dataclass(frozen=True)
class CandidateTrainer:
    """What all candidates of one job share. `work`: finished networks are kept there, for a run that goes on."""

    settings: TrainSettings
    protects: ProtectedModel
    bodies: Sequence[RequestBody]
    extracted: Path
    work: Path
    fabric: Fabric
    serves: torch.device
    hparams: Hyperparameters
    chooser: ArchitectureChooser
    handler: OfflineHandler
    dataset: Dataset
    packer: Packer
    warnings: list[str] = field(default_factory=list)
    shown: dict[int, RequestBody] = field(default_factory=dict)
    """The bodies of the disagreements, by their row among the scored ones."""

    def made(self, candidate: Candidate) -> dict[str, Any]:
        """Train it with every seed, score it, and pack the best of them."""
        code = candidate.code
        if code.lossless:
            scores = [self._scores(code, self._answered(code, Trained([]), 0))]
            price = self._price(code, self.dataset.deployed())
            archives = pack_exact(self.packer, self.settings, candidate, price)
            return {
                **described(code, ITSELF),
                **of_packed(scores, 0),
                "seeds": 0,
                **price.told(),
                "archives": archives,
            }
        rows = range(code.r if code.family is Family.PARITY else 1)  # the r instances of a backup run one network
        trained = [
            self._weighed(code, [self._row(candidate, row, seed) for row in rows])
            for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds)
        ]
        answered = [self._answered(code, each, seed) for seed, each in enumerate(trained)]
        scores = [self._scores(code, each) for each in answered]
        chosen = self._chosen(code, trained)
        best = trained[chosen]
        promised = self._promise(code, best, scores[chosen])
        says = functools.partial(predictions, code, best.models)
        confidence, worth = calibrated(self.dataset, code, says, best.errors, self.settings.seed)
        price, archives = self._price(code, best.models[0]), []
        for row in range(code.r):
            model = best.models[min(row, len(best.models) - 1)]
            name = archive_name(self.settings, self.protects, candidate, row)
            archives.append(self.packer.protection(code, row, model, name, price, promised, best.errors, confidence))
        told = {
            "promised": asdict(promised),
            "confidence": worth,
            "packed_seed": self.settings.seed + chosen,
            "archives": archives,
            **self._shows(code, answered[chosen]),
        }
        return {**described(code, str(candidate.architecture)), **of_packed(scores, chosen), **price.told(), **told}

    def _weighed(self, code: ErasureCode, models: Sequence[CallAdapter | TextAdapter]) -> Trained:
        """With how the rows' errors go together, where there are several."""
        if not is_weighed(code):
            return Trained(models)
        groups, outputs = self._choosing(code, MOST_GROUPS)
        told = {
            slots: {
                row: run_network(model, self.dataset.seen.inputs, groups, Goal(code, row), slots)
                for row, model in enumerate(models)
            }
            for slots in all_members(code)
        }
        return Trained(models, row_errors(code, outputs, told, self.dataset.semantics, len(self.dataset.choose)))

    def _chosen(self, code: ErasureCode, trained: Sequence[Trained]) -> int:
        """The best of several seeds, on bodies that are not scored: the best of what is scored would be luck, too."""
        if len(trained) == 1:
            return 0
        groups, outputs = self._choosing(code)
        losses = [
            evaluate(
                code,
                outputs,
                predictions(code, each.models, self.dataset.seen.inputs, groups),
                semantics=self.dataset.semantics,
                errors=each.errors,
            )["loss"]
            for each in trained
        ]
        return losses.index(min(losses))

    def _choosing(self, code: ErasureCode, most: int = SCORED_GROUPS) -> tuple[Array, Array]:
        """-> groups of bodies that were neither learned nor scored, and what the deployed model said to them."""
        groups = draw_groups(self.dataset.choose, code.k, np.random.default_rng(self.settings.seed), most)
        return groups, self.dataset.seen.outputs[groups]

    def _row(self, candidate: Candidate, row: int, seed: int) -> CallAdapter | TextAdapter:
        """One trained network, from its finished weights if an earlier run left them."""
        dataset, seen, semantics = self.dataset, self.dataset.seen, self.dataset.semantics
        goal, label = Goal(candidate.code, row), f"{candidate.label}-row{row}-seed{seed}"
        architecture, dice = str(candidate.architecture), seed * 100 + row
        torch.manual_seed(dice)
        model = make_model(architecture, dataset.model, seen.call, dataset.shapes, candidate.width)
        observed = semantics, seen.inputs, seen.outputs
        if isinstance(model.network, TextNetwork):
            model.network.head = scaled(model.network.head, dataset.shapes, goal, *observed)
        if isinstance(model.network, ReshapedNetwork) and ".py:" not in architecture:  # a user's own is as it is
            model.network.network = scaled(model.network.network, dataset.shapes, goal, *observed)
        key = self.chooser.key(candidate, row, seed, semantics, _digest(model))
        kept = self.work / f"{label}-{key}"
        finished, checkpoint = kept.with_suffix(".weights"), kept.with_suffix(".checkpoint")
        if not finished.exists():
            deployed = dataset.deployed() if self.hparams.vary else None
            data = TrainingData(seen.inputs, seen.outputs, dataset.learn, dataset.choose, deployed, semantics)
            with progress_bar(self.settings, label, self.hparams.steps, "step") as bar:

                def told(step: int, loss: float, score: float) -> None:
                    bar.update(step - bar.n)
                    figure = semantics.figure
                    bar.set_postfix_str(f"loss={loss:.3f}, {figure.own}={figure.format(score)}")

                weights = launch(self.fabric, model, data, goal, self.hparams, dice, checkpoint, Progress(told))
            torch.save(weights, finished)
            checkpoint.unlink(missing_ok=True)
        model.load_state_dict(torch.load(finished, weights_only=True))
        model.to(self.fabric.device).eval()
        if isinstance(model.network, ReshapedNetwork):  # ours; user code must find its own network as it made it
            folded(model.network)
        return model

    def _answered(self, code: ErasureCode, trained: Trained, seed: int) -> _Answered:
        dice = np.random.default_rng(self.settings.seed + 1 + seed)
        groups = draw_groups(self.dataset.scored_rows, code.k, dice, SCORED_GROUPS)
        if not code.lossless:
            return groups, predictions(code, trained.models, self.dataset.scored.inputs, groups), trained.errors
        outputs = self.dataset.scored.outputs[groups]  # a lossless protection repeats the deployed model's output
        return groups, {members: {0: outputs} for members in range(1, code.k + 1)}, None

    def _scores(self, code: ErasureCode, answered: _Answered) -> dict[str, Any]:
        groups, protections, errors = answered
        labels = None if self.dataset.labels is None else self.dataset.labels[groups]
        contents = self.dataset.scored_contents[groups]
        return evaluate(
            code, self.dataset.scored.outputs[groups], protections, labels, self.dataset.semantics, contents, errors
        )

    def _shows(self, code: ErasureCode, answered: _Answered) -> dict[str, Any]:
        """How the packed one errs: by class, and on a dozen bodies."""
        groups, protections, errors = answered
        semantics, outputs = self.dataset.semantics, self.dataset.scored.outputs
        told = rebuilt_slots(code, outputs[groups], protections[code.k], code.k, 1, errors)
        slots, rebuilt = zip(*told, strict=True)
        rows = np.concatenate([groups[:, slot] for slot in slots])
        labels = None if self.dataset.labels is None else self.dataset.labels[rows]
        all_of_them = RebuiltAnswers(
            rows, np.concatenate(rebuilt), outputs[rows], self.dataset.scored_contents[rows], labels
        )
        folders = self.bodies if str(self.settings.labels) == FOLDERS else ()
        names = class_names(self.extracted, semantics.rows(outputs[:1], 1).shape[-1], folders)
        shown = []
        for place in chosen_from(all_of_them, semantics, np.random.default_rng(self.settings.seed)):
            row, raw = int(rows[place]), all_of_them.rebuilt[place].astype(outputs.dtype)
            body = self.shown[row] = self.dataset.scored_bodies[row]
            both = finished(self.handler, body, raw)
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

    def exact_beside(self, k: int) -> dict[str, Any]:
        """What `exact` would cost, for comparison: the user has not ordered it."""
        code = make_code("exact", k)
        cost = asdict(Cost(float(k), multiplications=float(k)))  # a CPU answers one slot after the other
        if self.serves.type == "cuda":
            price = self._price(code, self.dataset.deployed())
            with tempfile.TemporaryDirectory(prefix="ts-parity-exact-") as scratch:
                replace(self.packer, out=Path(scratch)).protection(code, 0, None, f"exact-k{k}", price)
            cost = price.told()
        return {**described(code, ITSELF), "metric": self.dataset.semantics.metric, "loss": 0.0, **cost}

    def _promise(self, code: ErasureCode, trained: Trained, scores: Mapping[str, Any]) -> Promise:
        """Of classes a proxy will find what was scored; all else is finished and compared."""
        semantics, scored = self.dataset.semantics, self.dataset.scored
        if semantics.metric == "accuracy" and scored.outputs[0].size > 1:
            return Promise(float(scores["agreement"]), interval=scores["intervals"]["agreement"])
        groups = draw_groups(self.dataset.scored_rows, code.k, np.random.default_rng(self.settings.seed), COMPARED)
        rows = predictions(code, trained.models, scored.inputs, groups)[code.k]

        def rebuilt() -> Iterator[tuple[int, Array]]:
            for slot, raw in rebuilt_slots(code, scored.outputs[groups], rows, code.k, 1, trained.errors):
                for group in range(slot, len(groups), code.k):
                    yield int(groups[group, slot]), raw[group].astype(scored.outputs.dtype)

        return promise(
            self.handler, self.dataset.scored_bodies, rebuilt, semantics.kind in ("numbers", "box", "embedding")
        )

    def _price(self, code: ErasureCode, model: Model) -> _CostMeter:
        """`model`: what will be packed."""
        runs = 1 if code.family is Family.PARITY else code.k
        own, one = (multiplications(each, self.dataset.shapes) for each in (model, self.dataset.deployed()))
        counted = None if own is None or one is None else runs * own / one
        counted = float(runs) if code.lossless else counted
        inputs = self.dataset.seen.inputs
        rows = inputs.typical(code.k).rows if isinstance(inputs, Calls) else range(code.k)
        bodies = [self.bodies[int(self.dataset.seen.kept[row])] for row in rows]

        def measured(packed: Path) -> Cost:
            try:
                return measure(self._serving(), packed, bodies, counted, self.serves)
            except Exception as error:  # whatever user code raises at what was packed for it
                self.warnings.append(f"{packed.name} does not answer a group here, and perhaps on no worker: {error}")
                return Cost(multiplications=counted)

        return _CostMeter(measured)

    def _serving(self) -> OfflineHandler:
        """The deployed archive's handler on the device that will serve."""
        if self._learns_there():
            return self.handler
        return self.handler.on(self.serves.index if self.serves.type == "cuda" else None)

    def _learns_there(self) -> bool:
        return self.serves == self.fabric.device


def archive_name(settings: TrainSettings, protects: ProtectedModel, candidate: Candidate, row: int) -> str:
    code = candidate.code
    if settings.name is None:
        return protection_name(protects, code.name, code.k, code.r, row)
    several = len(settings.codes) * len(settings.ks) > 1
    base = f"{settings.name}-{code.name}-k{code.k}" if several else settings.name
    return base if code.r == 1 else f"{base}-row{row}"


def pack_exact(
    packer: Packer, settings: TrainSettings, candidate: Candidate, price: Callable[[Path], float | None]
) -> list[str]:
    code = candidate.code
    names = (archive_name(settings, packer.protects, candidate, row) for row in range(code.r))
    return [packer.protection(code, row, None, name, price) for row, name in enumerate(names)]


def progress_bar(settings: TrainSettings | PairSettings, what: str, total: int, unit: str = "body") -> Any:
    return tqdm(total=total, desc=what, disable=not settings.progress, file=sys.stderr, unit=unit)


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


def described(code: ErasureCode, architecture: str) -> dict[str, Any]:
    return {
        "code": code.name,
        "k": code.k,
        "r": code.r,
        "family": code.family.value,
        "coefficients": [list(row) for row in code.coefficients],
        "architecture": architecture,
    }


def _digest(model: nn.Module) -> str:
    """Of the weights that it begins with."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(tensor_bytes(value.detach().cpu()))
    return digest.hexdigest()
