"""What rebuilt answers are worth on images, spoken words and boxes, by code and k, beside the rows of the paper.

    python benchmarks/accuracy.py --data DIR                everything, hours on two cores
    python benchmarks/accuracy.py --data DIR --minutes 20   a slice of it; the same command goes on (exit code 75)
    python benchmarks/accuracy.py --data DIR --quick        a minute: all codes, too few steps to mean anything
    python benchmarks/accuracy.py --data DIR --sets cifar10-resnet18 --device cuda --minutes 5
                                                            the paper's own network, for a GPU; a slice of it
    python benchmarks/accuracy.py --rescore                 the figures anew from the kept outputs; nothing is trained
    python benchmarks/accuracy.py --tables                  the tables of docs/benchmarks.md, renewed from the results

DIR holds mnist.npz and fashion_mnist.npz (x_train, y_train, x_test, y_test) and cifar10_jpeg.zip (train/CLASS/*.jpg and
test/CLASS/*.jpg) or cifar-10-batches-bin, as the authors of CIFAR-10 give it; digits are scikit-learn's. Training and
scoring are the package's own `fit` and `evaluate`; only archives and HTTP are left out.

Every row is written as soon as it is known, and one that is there is not made again. Beside the results, in a folder
that git ignores (`.accuracy`), stand the deployed models, the networks and raw outputs of finished runs, and the
checkpoint of the one that was interrupted. On a machine that has other work say OMP_NUM_THREADS=1: two threads that
wait for each other took 27 times as long as one, on two cores with five processes each.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from accuracy_boxes import locator
from accuracy_data import Data, load
from accuracy_kept import KeptOutputs, Said, errors_of_rows, with_repeats, without_repeats
from tables import renew
from ts_parity.arguments import count, number
from ts_parity.codes import ErasureCode, Family, make_code
from ts_parity.tables import markdown
from ts_parity.training.architectures import (
    BUILT_IN,
    DEPLOYED,
    CallAdapter,
    ReshapedNetwork,
    Shapes,
    folded,
    has_width,
    make_model,
)
from ts_parity.training.augment import vary
from ts_parity.training.calibration import HeldOut, NotCalibrated, calibrate, reliability
from ts_parity.training.candidates import predictions
from ts_parity.training.evaluate import evaluate, over_seeds
from ts_parity.training.fit import Hyperparameters, Progress, TrainingData, fit, run_network
from ts_parity.training.goals import Goal, draw_groups
from ts_parity.training.semantics import CLASSES, OutputSemantics
from ts_parity.training.sizing import affordable_width, in_turn, multiplications, usual
from ts_parity.training.weighing import is_weighed
from ts_parity.wire import Array
from ts_parity.worker.watches import ModelCall

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
KEY = ("data", "code", "k", "r", "seed", "bodies")
CHOOSE = 5000
"""Training samples held out to choose the best weights, as many as the paper's."""
UNFINISHED = 75
"""Exit code (EX_TEMPFAIL of sysexits.h): the minutes are over, the same command goes on."""

# A_a and drop in points, as the paper's figures show them (ResNet-18, Adam 1e-3, 500 epochs, CIFAR-10 1000, GPU).
PAPER = {
    ("mnist", "sum", 2): (99.2, 0.01),
    ("fashion", "sum", 2): (92.9, 1.79),
    ("cifar10", "sum", 2): (93.5, 6.13),
    ("cifar10", "concat", 2): (93.5, 4.0),
    ("cifar10", "sum", 4): (93.5, 41.0),
    ("cifar10", "concat", 4): (93.5, 19.0),
    # Recorded speech, thirty words, VGG-11.
    ("words", "sum", 2): (94.6, 3.06),
    ("words", "sum", 3): (94.6, 10.7),
    ("words", "sum", 4): (94.6, 19.0),
    # Birds of CUB-200: overlap with the truth, of the example that is shown.
    ("boxes", "sum", 2): (86.0, 26.0),
}
PAPER |= {("cifar10-resnet18", code, k): told for (data, code, k), told in PAPER.items() if data == "cifar10"}


@dataclass(frozen=True)
class Plan:
    """One dataset: how long everything is trained, and on which variations of the images."""

    deployed_steps: int
    steps: dict[str, int]
    varied: tuple[str, ...] = ()
    network: str = "cnn"
    """Of the deployed model; at a smaller width of students."""
    width: float = 1.0
    rate: float = 8e-3
    """Peak learning rate. 3e-3, the usual one, lost half a point more with `sum` on Fashion-MNIST at 2,500 steps."""
    data: str = ""
    """The set that it is of, if it is called otherwise."""
    candidates: tuple[tuple[str, int, int], ...] = ()
    """(code, k, r), if not the usual ones."""
    needs_gpu: bool = False
    """Weeks on two cores."""
    semantics: OutputSemantics = CLASSES
    copies: dict[str, int] = field(default_factory=dict)
    """By code: varied copies of the training set, of which the deployed model is asked once: cheaper than at every
    step. `sum` and `concat` agree no less on images they have not seen, so variations would only take room."""


LOCATOR = f"{Path(__file__).parent / 'accuracy_boxes.py'}:locator"
PLANS = {
    "digits": Plan(1000, {"sum": 2000, "concat": 2000, "student": 2000}, ("shift",)),
    "mnist": Plan(2000, {"sum": 2500, "concat": 2500, "student": 2500}, ("shift",)),
    "fashion": Plan(5000, {"sum": 8000, "concat": 6000, "student": 4000}, ("shift", "flip")),
    "cifar10": Plan(8000, {"sum": 4000, "concat": 4000, "student": 18000}, ("shift", "flip"), copies={"student": 4}),
    "words": Plan(2000, {"sum": 2000, "concat": 2000, "student": 2000}, ("shift",)),
    "boxes": Plan(
        2000, {"sum": 2000, "concat": 2000, "student": 2000}, network=LOCATOR, semantics=OutputSemantics("iou")
    ),
    # The paper's network and its table. A student of k = 4 is a quarter of it, one of k = 10 a tenth.
    "cifar10-resnet18": Plan(
        16_000, {"sum": 30_000, "concat": 30_000, "student": 30_000}, ("shift", "flip"), "resnet18",
        copies={"student": 4}, rate=3e-3, data="cifar10", needs_gpu=True,
        candidates=(("sum", 2, 1), ("concat", 2, 1), ("student", 4, 1), ("student", 10, 1), ("sum", 4, 1),
                    ("concat", 4, 1)),
    ),
}  # fmt: skip
CANDIDATES = [("sum", 2, 1), ("concat", 2, 1), ("student", 2, 1), ("student", 4, 1), ("sum", 3, 1), ("sum", 4, 1)]
CANDIDATES += [("concat", 4, 1)]


class OutOfTimeError(Exception):
    """The minutes are over, and everything that is needed to go on is on the disk."""


@dataclass(frozen=True)
class Clock:
    """`ends`: seconds of time.monotonic. Asked at every checkpoint."""

    ends: float

    def check(self, what: str) -> None:
        if time.monotonic() >= self.ends:
            raise OutOfTimeError(what)


@dataclass(frozen=True)
class Task:
    """One dataset and the model that serves it. `weights_hash` tells one deployed model from another."""

    name: str
    plan: Plan
    data: Data
    network: nn.Module
    deployed: CallAdapter
    weights_hash: str

    @property
    def shapes(self) -> Shapes:
        return Shapes(tuple(self.data.train.shape[1:]), (1, self.data.outputs))

    @property
    def call(self) -> ModelCall:
        return ModelCall("self.model", "__call__", (self.data.train[0],), {})


def task_of(name: str, args: argparse.Namespace) -> Task:
    """With its deployed model: a built-in network, trained on labels in the usual way, and kept once it is made."""
    plan = PLANS[name]
    data = load(plan.data or name, args.data, args.kept)
    if args.quick:
        width, steps = (1 / 16, 5) if plan.needs_gpu else (1 / 4, 20)
        plan = replace(plan, deployed_steps=steps, steps=dict.fromkeys(plan.steps, 30), copies={}, width=width)
        data = data.first(4000, 1000)
    shapes = Shapes(tuple(data.train.shape[1:]), (1, data.outputs))
    torch.manual_seed(0)
    make = locator if plan.network == LOCATOR else BUILT_IN[plan.network]
    network = ReshapedNetwork(make(shapes.one_input, data.outputs, plan.width), shapes)
    own, usual = args.kept / f"{name}.pt", _kept_beside(RESULTS) / f"{name}.pt"
    if not own.exists() and (args.quick or not usual.exists()):
        _train_on_labels(network, data, plan, own, args.clock, args.device)
    weights = torch.load(own if own.exists() else usual, weights_only=True)
    network.load_state_dict(weights)
    network.eval()
    call = ModelCall("self.model", "__call__", (data.train[0],), {})
    deployed = make_model(DEPLOYED, network, call, shapes).requires_grad_(False).eval().to(args.device)
    return Task(name, plan, data, network, deployed, _hash_of(weights))


def _train_on_labels(
    network: nn.Module, data: Data, plan: Plan, file: Path, clock: Clock, device: torch.device
) -> None:
    """Write its weights into the file. What an interrupted training needs stands in a checkpoint beside it."""
    steps, every = plan.deployed_steps, max(1, plan.deployed_steps // 20)
    shown, labels = data.train.to(device), data.train_labels.to(device)
    network = on_device(network, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    dice = torch.Generator().manual_seed(0)
    parts, begun, checkpoint = (network, optimizer, schedule), 0, file.with_suffix(".checkpoint")
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        for part, state in zip(parts, kept["parts"], strict=True):
            part.load_state_dict(state)
        dice.set_state(kept["dice"])
        begun = kept["step"]
    for step in tqdm(range(begun + 1, steps + 1), desc=f"{file.stem} deployed", unit="step"):
        picks = torch.randint(len(shown), (128,), generator=dice).to(device)
        images = vary(shown[picks].flatten(0, 1), plan.varied, dice)
        with torch.autocast(device.type, torch.bfloat16):
            answers = network(images)
        loss = _loss(answers.float(), labels[picks])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % every == 0 and step < steps:
            states = [part.state_dict() for part in parts]
            _save({"parts": states, "dice": dice.get_state(), "step": step}, checkpoint)
            clock.check(f"{file.stem} deployed, step {step} of {steps}")
    network.to("cpu", memory_format=torch.contiguous_format)
    _save(network.state_dict(), file)
    checkpoint.unlink(missing_ok=True)


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """There, and in the layout that a GPU's convolutions of half precision want."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return network.to(device, memory_format=layout)


def _loss(said: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of classes (n,), or of boxes (n, 4), where the paper too takes the absolute error of all but small ones."""
    if labels.ndim > 1:
        return functional.smooth_l1_loss(said.flatten(1), labels, beta=0.02)
    return functional.cross_entropy(said, labels, label_smoothing=0.05)


def _save(state: Any, file: Path) -> None:
    unfinished = file.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(file)


def _hash_of(weights: dict[str, torch.Tensor]) -> str:
    read = hashlib.sha256()
    for name, value in sorted(weights.items()):
        read.update(name.encode())
        read.update(value.numpy().tobytes())
    return read.hexdigest()[:12]


def outputs_of(model: nn.Module, inputs: torch.Tensor) -> Array:
    exact = Goal(make_code("exact", 1))
    return run_network(model, inputs, np.arange(len(inputs))[:, None], exact)


class Materials:
    """What the runs of one dataset learn from: the last is remembered, since runs of one code come together.

    A share of the training set is held out (`held`): by it the best weights are chosen, and from it, without labels,
    comes what is foretold.
    """

    def __init__(self, task: Task, bodies: int | None, folder: Path) -> None:
        self._task, self._folder = task, folder
        order = np.random.default_rng(0).permutation(len(task.data.train))
        held = min(CHOOSE, len(order) // 5)
        self.held, self._learn = order[:held], order[held:][:bodies]
        self._made: tuple[int, TrainingData] | None = None

    def of(self, copies: int) -> TrainingData:
        """The images and varied copies of those to learn from, with what the deployed model says to each."""
        if self._made is None or self._made[0] != copies:
            self._made = None  # before the next is made: each may take gigabytes
            self._made = (copies, self._make(copies))
        return self._made[1]

    def _make(self, copies: int) -> TrainingData:
        task, dice = self._task, torch.Generator().manual_seed(0)
        inputs = task.data.train
        shown = inputs[torch.from_numpy(self._learn)].flatten(0, 1)
        everything = torch.cat([inputs, *(vary(shown, task.plan.varied, dice)[:, None] for _ in range(copies))])
        more = np.arange(len(inputs), len(everything))
        outputs = self._outputs(everything)
        return TrainingData(
            everything, outputs, np.concatenate([self._learn, more]), self.held, semantics=task.plan.semantics
        )

    def _outputs(self, inputs: torch.Tensor) -> Array:
        """Of an interrupted run they need not be made again: minutes, with copies."""
        file = self._folder / f"{self._task.name}-{self._task.weights_hash}-{len(inputs)}.npy"
        if file.exists():
            return np.asarray(np.load(file))
        outputs = outputs_of(self._task.deployed, inputs)
        np.save(file, outputs)
        return outputs


def wanted(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The keys of rows still to be made for this set; with --renew also of those whose outputs are not kept."""
    kept = {tuple(run[part] for part in KEY) for run in runs_in(args.out)}
    keys = [
        {"data": name, "code": code, "k": k, "r": r, "seed": seed, "bodies": args.bodies}
        for code, k, r in args.candidates or PLANS[name].candidates or CANDIDATES
        for seed in args.seeds
    ]
    lacks = [tuple(key[part] for part in KEY) not in kept for key in keys]
    return [
        key for key, lack in zip(keys, lacks, strict=True) if lack or (args.renew and not _file(args, key).exists())
    ]


def label_of(key: dict[str, Any]) -> str:
    more = [f" r={key['r']}"] if key["r"] > 1 else []
    more += [f" of {key['bodies']}"] if key["bodies"] else []
    return f"{key['data']} {key['code']} k={key['k']}{''.join(more)} seed {key['seed']}"


def _file(args: argparse.Namespace, key: dict[str, Any], suffix: str = "npz") -> Path:
    return Path(args.kept / f"{label_of(key).replace(' ', '-')}.{suffix}")


def rows_of(name: str, args: argparse.Namespace) -> None:
    keys = wanted(name, args)
    if not keys:
        return
    task = task_of(name, args)
    materials = Materials(task, args.bodies, args.kept)
    test = outputs_of(task.deployed, task.data.test)
    semantics = task.plan.semantics
    own = semantics.scores(test, semantics.truths(task.data.test_labels.numpy(), 1), 1)
    print(f"{name}: A_a {semantics.figure_of(own):.2%}", file=sys.stderr)
    for key in keys:
        started = time.monotonic()
        code = make_code(key["code"], key["k"], key["r"])
        copies = task.plan.copies.get(code.name, 0) if args.copies is None else args.copies
        hparams = Hyperparameters(
            steps=args.steps or task.plan.steps[code.name],
            peak_rate=args.rate or task.plan.rate,
            output_loss=args.output_loss,
            empty=args.empty,
        )
        architecture = args.architecture or (task.plan.network if code.family is Family.BACKUP else DEPLOYED)
        data = materials.of(copies)
        models = [
            _learnt(task, code, row, architecture, hparams, key, data, args) for row in range(len(rows_to_learn(code)))
        ]
        kept = _kept_outputs(task, code, models, key["seed"], test, data.outputs[materials.held], materials.held)
        kept.save(_file(args, key))
        runs = _runs(code)
        made_with = {
            "architecture": architecture
            if runs == 1
            else f"{_name(architecture)} at {runs} x {_share(models[0], task)}",
            "steps": hparams.steps,
            "copies": copies,
            "rate": hparams.peak_rate,
            "precision": args.precision,
            "deployed": task.weights_hash,
        }
        row = {**key, **made_with, **figures(code, kept, semantics), **_cost(task, models[0], code)}
        row["seconds"] = round(time.monotonic() - started)  # of the last slice
        write(args, [row])
        for index in range(len(models)):
            _file(args, key, f"row{index}.checkpoint").unlink(missing_ok=True)
        print(
            f"{label_of(key)}: A_d {row['A_d']:.2%}, drop {100 * row['drop']:.2f}, {row['seconds']} s", file=sys.stderr
        )


def rows_to_learn(code: ErasureCode) -> range:
    return range(code.r if code.family is Family.PARITY else 1)


def _name(architecture: str) -> str:
    """Without the path of a function of the user's."""
    return architecture.rpartition(":")[2] if ".py:" in architecture else architecture


def _runs(code: ErasureCode) -> int:
    """Inferences that protect one group."""
    return code.k if code.family is Family.BACKUP else 1


def _learnt(
    task: Task,
    code: ErasureCode,
    row: int,
    architecture: str,
    hparams: Hyperparameters,
    key: dict[str, Any],
    data: TrainingData,
    args: argparse.Namespace,
) -> CallAdapter:
    """One row's network, from its file if it is there, else from its checkpoint or from the beginning."""
    torch.manual_seed(key["seed"])

    def make(width: float) -> CallAdapter:
        return make_model(architecture, task.network, task.call, task.shapes, width)

    width = 1.0
    if has_width(architecture):
        width = affordable_width(make, task.deployed, task.shapes, _runs(code), 1.0, torch.device("cpu"))
    model = make(width)
    weights, checkpoint = (_file(args, key, f"row{row}.{what}") for what in ("pt", "checkpoint"))
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        model.eval()
    else:
        label = label_of(key)
        with tqdm(total=hparams.steps, desc=label, unit="step") as bar:

            def told(step: int, loss: float, score: float) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}", score=f"{score:.4f}")
                if step < hparams.steps:
                    args.clock.check(f"{label}, step {step} of {hparams.steps}")

            devices = 1 if args.device.type == "cpu" else [args.device.index or 0]
            fabric = Fabric(accelerator=args.device.type, devices=devices, precision=args.precision)
            seed = key["seed"] + 100 * row
            on_device(model, args.device)
            fit(fabric, model, data, Goal(code, row), hparams, seed, checkpoint, Progress(told))
        model.to("cpu", memory_format=torch.contiguous_format)
        _save(model.state_dict(), weights)
    model.to(args.device)
    if code.family is Family.BACKUP:
        folded(model.network)
    return model


def _kept_outputs(
    task: Task, code: ErasureCode, models: Sequence[CallAdapter], seed: int, test: Array, held: Array, held_out: Array
) -> KeptOutputs:
    data = task.data

    def asked(outputs: Array, inputs: torch.Tensor, labels: torch.Tensor) -> Said:
        groups = draw_groups(np.arange(len(inputs)), code.k, np.random.default_rng(seed), len(inputs) // code.k)
        answers = without_repeats(code, predictions(code, models, inputs, groups))
        return Said(outputs, labels.numpy(), groups, answers)

    picks = torch.from_numpy(held_out)
    return KeptOutputs(
        asked(test, data.test, data.test_labels), asked(held, data.train[picks], data.train_labels[picks])
    )


def figures(code: ErasureCode, kept: KeptOutputs, semantics: OutputSemantics) -> dict[str, Any]:
    """All of a row that follows from what was said."""
    errors = errors_of_rows(code, kept.held, semantics) if is_weighed(code) else None
    test, held = (replace(_answered(code, said), errors=errors) for said in (kept.test, kept.held))
    scores = evaluate(code, test.outputs, test.protections, test.labels, semantics, kept.test.groups, errors)
    return {
        **{part: scores[part] for part in ("A_a", "A_d", "drop", "A_default")},
        "agreement": scores["score"],
        **{f"{part}_95": scores["intervals"][name] for part, name in INTERVALS.items()},
        "members": {m: each["A_d"] for m, each in scores["members"].items()},
        **({"two_erased": _two_erased(scores)} if code.r > 1 else {}),
        **_surest(code, held, test, semantics),
    }


INTERVALS = {"A_d": "A_d", "drop": "drop", "agreement": "score"}


def _answered(code: ErasureCode, said: Said) -> HeldOut:
    groups = said.groups
    return HeldOut(said.outputs[groups], with_repeats(code, said.protections), said.labels[groups], contents=groups)


def _two_erased(scores: dict[str, Any]) -> dict[str, Any]:
    return {"A_d": scores["two_erased"]["A_d"], "agreement": scores["two_erased"]["score"]}


SUREST = (95, 90, 85, 80)


def _surest(code: ErasureCode, held: HeldOut, test: HeldOut, semantics: OutputSemantics) -> dict[str, Any]:
    """Of the test set, by curve and thresholds from held-out bodies without their labels: how often the surest answers
    differ from the deployed model's own (of boxes: by more than nine tenths of the held-out do), and what `released`
    lose against it on the same bodies.
    """
    fitted = calibrate(code, held, semantics)
    if isinstance(fitted, NotCalibrated):
        return {}
    told = reliability(code, [fitted], [test], semantics)
    surest = {round(100 * each["share"]): each for each in told["surest"] if round(100 * each["share"]) in SUREST}
    rows: dict[str, Any] = {f"surest_{share}": round(1.0 - each["agreement"], 5) for share, each in surest.items()}
    for share, each in surest.items():
        rows |= {
            f"released_{share}": each["released"],
            f"expected_{share}": round(1.0 - each["expected"], 5),
            f"lost_{share}": each["loss"],
            f"surest_{share}_95": [round(1.0 - end, 5) for end in reversed(each["agreement_95"])],
        }
    return {
        **rows,
        "surest_100": round(1.0 - told["agreement"], 5),
        "expected": round(1.0 - told["expected"], 5),
        "expected_off": told["off"],
    }


def rescored(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every run whose outputs are kept, with its figures made anew."""
    rows = []
    for run in runs_in(args.out):
        file = _file(args, run)
        if file.exists():
            code = make_code(run["code"], run["k"], run["r"])
            rows.append({**run, **figures(code, KeptOutputs.load(file), PLANS[run["data"]].semantics)})
    return rows


def _cost(task: Task, model: nn.Module, code: ErasureCode) -> dict[str, Any]:
    """Of the networks alone, as the TorchScript that a worker runs: handlers are left out here, and what they do."""
    device = next(model.parameters()).device
    inputs, goal = task.data.train[: code.k].to(device), Goal(code)

    def encoded() -> torch.Tensor:
        return (
            inputs if code.family is Family.BACKUP else goal.encode(inputs[None], torch.ones(1, code.k, device=device))
        )

    with torch.inference_mode():
        group = torch.jit.trace(model, encoded(), check_trace=False)
        one = torch.jit.trace(task.deployed, inputs[:1], check_trace=False)
        runs = (lambda: group(encoded()), lambda: one(inputs[:1]))
        together, alone = usual(in_turn(runs, device))
    return {"cost": round(float(together / alone), 3), "multiplications": round(_runs(code) * _share(model, task), 3)}


def _share(model: nn.Module, task: Task) -> float:
    own, deployed = (multiplications(each, task.shapes) for each in (model, task.deployed))
    assert own is not None
    assert deployed is not None
    return round(own / deployed, 3)


def runs_in(out: Path | None) -> list[dict[str, Any]]:
    return json.loads(out.read_text())["runs"] if out is not None and out.exists() else []


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """These runs in place of those with their keys, and the rows that the documentation is made from.

    Another process may have written since this one began: under a lock, the file is read again.
    """
    if args.out is None:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = {tuple(run[part] for part in KEY): run for run in [*runs_in(args.out), *rows]}
        runs = list(kept.values())
        document = {
            "command": "python benchmarks/accuracy.py --data DIR" + (" --quick" if args.quick else ""),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "rows": summary([run for run in runs if run.get("bodies") is None]),
            "surest": surest(runs),
            "curve": curve(runs),
            "runs": runs,
        }
        unfinished = args.out.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=1) + "\n")
        unfinished.replace(args.out)


def summary(kept: list[dict]) -> list[dict]:
    """The mean over seeds; of intervals, which are those of the bodies scored, that of their ends."""
    rows = []
    for key in dict.fromkeys(tuple(run[part] for part in ("data", "code", "k", "r")) for run in kept):
        runs = [run for run in kept if tuple(run[part] for part in ("data", "code", "k", "r")) == key]
        parts = [
            part for part, value in runs[0].items() if _is_figure(part, value) and all(part in run for run in runs)
        ]
        mean = over_seeds([{part: run[part] for part in parts} for run in runs])
        for part in parts:
            if isinstance(runs[0][part], list):
                mean[part] = [round(float(np.mean([run[part][end] for run in runs])), 5) for end in (0, 1)]
        same = {part: runs[0][part] for part in ("data", "architecture", "code", "k", "r", "steps", "multiplications")}
        rows.append({**same, **mean, "seeds": len(runs), "seed_list": [run["seed"] for run in runs]})
    return rows


def surest(kept: list[dict]) -> list[dict]:
    """The rows of runs whose outputs are kept: what the surest answers are worth is known of these alone."""
    return summary([run for run in kept if run.get("bodies") is None and "surest_90" in run])


def _is_figure(part: str, value: Any) -> bool:
    return (
        part in ("A_a", "A_d", "drop", "agreement", "A_default", "cost", "two_erased")
        or part.startswith(("surest", "released", "expected", "lost"))
        or part.endswith("_95")
    )


def curve(kept: list[dict]) -> list[dict]:
    """What fewer bodies cost: runs of equal length on some of them."""
    some = [run for run in kept if run.get("bodies") is not None]
    return [
        {part: run[part] for part in (*KEY, "steps", "A_a", "A_d", "drop", "agreement")}
        for run in sorted(some, key=lambda run: (run["data"], run["code"], run["k"], run["bodies"]))
    ]


NAMES = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "cifar10": "CIFAR-10 (JPEG)",
    "cifar10-resnet18": "CIFAR-10, ResNet-18",
    "words": "spoken words",
    "boxes": "boxes",
}
SEEDS = 3
"""Of a row; one that has fewer says so."""


def tables(document: dict) -> str:
    """Markdown: ours beside the paper's, and the rivals at equal cost."""
    head = (
        "data", "k", "code", "A_a", "A_d", "drop", "agreement", "cost of a group", "seeds", "steps", "paper's drop",
    )  # fmt: skip
    cells = []
    rows = [row for row in in_order(document["rows"]) if row["r"] == 1]
    for row in rows:
        paper = PAPER.get((row["data"], row["code"], row["k"]))
        spread = f" ± {100 * row['drop_spread']:.2f}" if row["seeds"] > 1 else ""
        if "drop_95" in row:
            spread += " [{:.2f}, {:.2f}]".format(*(100 * end for end in row["drop_95"]))
        cost = f"{row['cost']:.2f} ({row['multiplications']:.2f})"
        cells.append(
            [
                NAMES[row["data"]], str(row["k"]), f"`{row['code']}`", f"{row['A_a']:.2%}", f"{row['A_d']:.2%}",
                f"{100 * row['drop']:.2f}{spread}", f"{row['agreement']:.2%}", cost, seeds_of(row),
                f"{row['steps']:,}", "" if paper is None else f"{paper[1]:.2f}",
            ]
        )  # fmt: skip
    firsts = [next((row for row in rows if row["data"] == name), None) for name in NAMES]
    beside = [
        [NAMES[row["data"]], f"{row['A_default']:.2%}", f"{row['A_a']:.2%} (drop 0, cost k)"] for row in firsts if row
    ]
    return f"{markdown(head, cells)}\n\n{markdown(('data', 'a default answer', '`exact`'), beside)}"


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    codes = ("sum", "concat", "student")
    return sorted(rows, key=lambda row: (list(NAMES).index(row["data"]), row["k"], codes.index(row["code"])))


def surest_table(document: dict[str, Any]) -> str:
    """Markdown: what the surest answers are worth, of every row whose outputs are kept."""
    head = ["data", "k", "code", "all", *(f"surest {share} %" for share in SUREST), "released of 90 %", "off", "seeds"]
    rows = []
    for row in in_order(document["surest"]):
        if row["r"] > 1:
            continue
        cells = [NAMES[row["data"]], str(row["k"]), f"`{row['code']}`"]
        cells.append(f"{100 * row['surest_100']:.2f} ({100 * row['expected']:.2f}), {100 * row['drop']:.2f}")
        for share in SUREST:
            measured, expected, lost = (100 * row[f"{part}_{share}"] for part in ("surest", "expected", "lost"))
            cells.append(f"{measured:.2f} ({expected:.2f}), {lost:.2f}")
        cells += [f"{row['released_90']:.1%}", f"{100 * row['expected_off']:.2f}", seeds_of(row)]
        rows.append(cells)
    return markdown(head, rows)


def seeds_of(row: dict[str, Any]) -> str:
    return str(row["seeds"]) if row["seeds"] >= SEEDS else f"{row['seeds']} of {SEEDS}"


def curve_table(document: dict) -> str:
    rows = [
        [
            NAMES[row["data"]], f"`{row['code']}`", str(row["k"]), f"{row['bodies']:,}", f"{row['steps']:,}",
            f"{100 * row['drop']:.2f}", f"{row['agreement']:.2%}",
        ]
        for row in document["curve"]
    ]  # fmt: skip
    return markdown(("data", "code", "k", "bodies", "steps", "drop", "agreement"), rows)


def sections(document: dict) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    return {"accuracy": tables(document), "surest": surest_table(document), "curve": curve_table(document)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the datasets")
    parser.add_argument("--sets", nargs="+", choices=list(PLANS), default=None)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default %(default)s")
    parser.add_argument("--only", nargs="+", metavar="CODE:K", help="such as sum:2 student:4, sum:2:2 for r = 2")
    parser.add_argument("--seeds", nargs="+", type=count(0), default=list(range(SEEDS)))
    parser.add_argument("--minutes", type=number(least=0), help="stop at the first checkpoint after so many")
    parser.add_argument("--renew", action="store_true", help="make rows again whose outputs are not kept")
    parser.add_argument("--steps", type=count(), help="instead of each plan's own")
    tried = parser.add_argument_group("to try other things", "their rows go to an --out of their own")
    tried.add_argument("--rate", type=number(above=0), help="peak learning rate, default: each plan's own")
    tried.add_argument(
        "--output-loss", type=number(least=0), default=Hyperparameters().output_loss, help="default %(default)s"
    )
    tried.add_argument(
        "--empty", type=number(least=0, most=1), default=Hyperparameters().empty, help="default %(default)s"
    )
    tried.add_argument("--architecture", help="of what is trained, as for ts-parity train")
    tried.add_argument("--copies", type=count(0), help="varied copies of each image")
    parser.add_argument("--bodies", type=count(), help="learn from so many images only: a row of the curve")
    parser.add_argument("--precision", default="bf16-mixed", help="of training, default %(default)s; or 32-true")
    parser.add_argument(
        "--quick", action="store_true", help="a minute, one seed; writes to --out only if that is given"
    )
    parser.add_argument("--out", type=Path, help=f"default {RESULTS}")
    parser.add_argument("--rescore", action="store_true", help="make the figures anew from kept outputs, train nothing")
    parser.add_argument("--tables", action="store_true", help="renew the tables from the kept results, train nothing")
    args = parser.parse_args(arguments)
    if not args.quick:
        args.out = args.out or RESULTS
    if args.rescore:
        args.kept = _kept_beside(args.out)
        write(args, rescored(args))
    if args.tables:
        document = json.loads(args.out.read_text())
        for mark, text in sections(document).items():
            renew(DOCS, mark, text)
    if args.tables or args.rescore:
        document = json.loads(args.out.read_text())
        print("\n\n".join(sections(document).values()))
        return 0
    if args.data is None or not args.data.is_dir():
        parser.error("--data must be the folder of the datasets")
    usual = (None, Hyperparameters().output_loss, Hyperparameters().empty, None, None)
    tried_ones = (args.rate, args.output_loss, args.empty, args.architecture, args.copies)
    if tried_ones != usual and args.out in (None, RESULTS):
        parser.error("what is tried needs an --out of its own")
    args.candidates = [_candidate(only) for only in args.only or ()]
    args.sets = args.sets or [name for name, plan in PLANS.items() if not plan.needs_gpu or args.device.type == "cuda"]
    args.seeds = args.seeds[:1] if args.quick else args.seeds
    args.clock = Clock(np.inf if args.minutes is None else time.monotonic() + 60 * args.minutes)
    with tempfile.TemporaryDirectory() as nowhere:
        args.out = args.out or Path(nowhere) / "accuracy.json"
        args.kept = _kept_beside(args.out)
        args.kept.mkdir(parents=True, exist_ok=True)
        try:
            for name in args.sets:
                rows_of(name, args)
        except OutOfTimeError as stopped:
            print(f"stopped after {args.minutes:g} minutes at {stopped}: the same command goes on", file=sys.stderr)
            return UNFINISHED
        print(tables({"rows": summary([run for run in runs_in(args.out) if run.get("bodies") is None])}))
    return 0


def _kept_beside(out: Path) -> Path:
    return out.parent / f".{out.stem}"


def _candidate(told: str) -> tuple[str, int, int]:
    """sum:2 or sum:2:2 -> code, k, r."""
    code, k, *r = told.split(":")
    return code, int(k), int(r[0]) if r else 1


if __name__ == "__main__":
    sys.exit(main())
