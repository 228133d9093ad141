"""What rebuilt answers are worth on MNIST, Fashion-MNIST and CIFAR-10, by code and k, beside the rows of the paper.

    python benchmarks/accuracy.py --data DIR            everything, hours on two cores
    python benchmarks/accuracy.py --data DIR --quick    a minute: all codes, too few steps to mean anything
    python benchmarks/accuracy.py --tables              the tables of docs/training.md, renewed from the kept results

DIR holds mnist.npz and fashion_mnist.npz (x_train, y_train, x_test, y_test) and cifar10_jpeg.zip (train/CLASS/*.jpg and
test/CLASS/*.jpg). Training and scoring are the package's own `fit` and `evaluate`; only archives and HTTP are left out.
Every row is written as soon as it is known, and one that is there is not made again: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import platform
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count, number
from ts_parity.codes import Code, Family, make_code
from ts_parity.training.architectures import DEPLOYED, Called, Shaped, Shapes, cnn, folded, has_width, make_called
from ts_parity.training.augment import vary
from ts_parity.training.cost import measure
from ts_parity.training.evaluate import evaluate, over_seeds
from ts_parity.training.fit import Knobs, Material, Progress, fit, run_network
from ts_parity.training.goals import Goal, draw_groups
from ts_parity.training.job import said
from ts_parity.training.sizing import affordable_width, multiplications
from ts_parity.worker.watches import ModelCall

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
DOCS = Path(__file__).parent.parent / "docs" / "training.md"
CACHE = Path(__file__).parent / "results" / ".accuracy"
CLASSES = 10
KEY = ("data", "code", "k", "seed", "bodies")
CHOOSE = 5000
"""Training samples held out to choose the best weights, as many as the paper's."""

# A_a and drop in points, as the paper's figures show them (ResNet-18, Adam 1e-3, 500 epochs, CIFAR-10 1000, GPU).
PAPER = {
    ("mnist", "sum", 2): (99.2, 0.01),
    ("fashion", "sum", 2): (92.9, 1.79),
    ("cifar10", "sum", 2): (93.5, 6.13),
    ("cifar10", "concat", 2): (93.5, 4.0),
    ("cifar10", "sum", 4): (93.5, 41.0),
    ("cifar10", "concat", 4): (93.5, 19.0),
}


@dataclass(frozen=True)
class Plan:
    """One dataset: how long everything is trained, and on which variations of the images."""

    deployed_steps: int
    steps: dict[str, int]
    varied: tuple[str, ...]
    copies: dict[str, int]
    """By code: varied copies of the training set, of which the deployed model is asked once: cheaper than at every
    step. `sum` and `concat` agree no less on images they have not seen, so variations would only take room."""


COPIES = {"sum": 0, "concat": 0, "student": 0}
RATE = 8e-3
"""3e-3, the usual one, lost half a point more with `sum` on Fashion-MNIST at 2,500 steps."""
PLANS = {
    "mnist": Plan(2000, {"sum": 2500, "concat": 2500, "student": 2500}, ("shift",), COPIES),
    "fashion": Plan(5000, {"sum": 8000, "concat": 6000, "student": 4000}, ("shift", "flip"), COPIES),
    "cifar10": Plan(8000, {"sum": 4000, "concat": 4000, "student": 6000}, ("shift", "flip"), {**COPIES, "student": 4}),
}
CANDIDATES = [("sum", 2), ("concat", 2), ("student", 2), ("student", 4), ("sum", 3), ("sum", 4), ("concat", 4)]


@dataclass(frozen=True)
class Data:
    """inputs (n, 1, C, H, W) in the range a handler would make, labels (n,)."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


def load(name: str, folder: Path) -> Data:
    if name == "cifar10":
        return _load_cifar(folder / "cifar10_jpeg.zip")
    file = folder / {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz"}[name]
    with np.load(file) as opened:
        parts = [torch.from_numpy(opened[part]) for part in ("x_train", "y_train", "x_test", "y_test")]
    images = [part[:, None, None].float() / 255 for part in (parts[0], parts[2])]
    return Data(images[0], parts[1].long(), images[1], parts[3].long())


def _load_cifar(file: Path) -> Data:
    from PIL import Image

    mean, spread = (torch.tensor(v)[:, None, None] for v in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    parts: dict[str, list[torch.Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with zipfile.ZipFile(file) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for name in tqdm(names, desc="cifar10", unit="image"):
            part, shown, _ = name.split("/")
            pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(opened.read(name)))).copy())
            parts[part].append((pixels.permute(2, 0, 1).float() / 255 - mean) / spread)
            labels[part].append(classes.index(shown))
    images = {part: torch.stack(shown)[:, None] for part, shown in parts.items()}
    return Data(images["train"], torch.tensor(labels["train"]), images["test"], torch.tensor(labels["test"]))


def deployed_model(name: str, data: Data, plan: Plan, quick: bool) -> tuple[Called, nn.Module]:
    """The model to be protected: the built-in cnn, trained on labels in the usual way; kept once it is made."""
    shapes = Shapes(tuple(data.train.shape[1:]), (1, CLASSES))
    torch.manual_seed(0)
    network = Shaped(cnn(shapes.one_input, CLASSES, 1.0), shapes)
    file = CACHE / f"{name}.pt"
    if file.exists() and not quick:
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        _train_on_labels(network, data, plan.deployed_steps, plan.varied, name)
        if not quick:
            CACHE.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), file)
    network.eval()
    call = ModelCall("self.model", "__call__", (data.train[0],), {})
    return make_called(DEPLOYED, network, call, shapes).requires_grad_(False).eval(), network


def _train_on_labels(network: nn.Module, data: Data, steps: int, varied: tuple[str, ...], name: str) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    dice = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), desc=f"{name} deployed", unit="step"):
        picks = torch.randint(len(data.train), (128,), generator=dice)
        images = vary(data.train[picks].flatten(0, 1), varied, dice)
        loss = functional.cross_entropy(network(images), data.train_labels[picks], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def outputs_of(model: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    exact = Goal(make_code("exact", 1))
    return run_network(model, inputs, np.arange(len(inputs))[:, None], exact)


def with_copies(
    inputs: torch.Tensor,
    deployed: nn.Module,
    learn: np.ndarray,
    choose: np.ndarray,
    varied: tuple[str, ...],
    copies: int,
) -> Material:
    """The images as they are and varied copies of those to learn from, with what the deployed model says to each."""
    dice = torch.Generator().manual_seed(0)
    shown = inputs[torch.from_numpy(learn)].flatten(0, 1)
    everything = torch.cat([inputs, *(vary(shown, varied, dice)[:, None] for _ in range(copies))])
    more = np.arange(len(inputs), len(everything))
    return Material(everything, outputs_of(deployed, everything), np.concatenate([learn, more]), choose)


def missing(name: str, args: argparse.Namespace, kept: list[dict]) -> bool:
    """Whether this set has a row still to be made."""
    wanted = [(name, code, k, seed, args.bodies) for code, k in args.candidates for seed in args.seeds]
    there = {tuple(run.get(part) for part in KEY) for run in kept}
    return any(key not in there for key in wanted)


def rows_of(name: str, args: argparse.Namespace, kept: list[dict]) -> None:
    plan, data = PLANS[name], load(name, args.data)
    if args.quick:
        plan = Plan(40, dict.fromkeys(plan.steps, 30), plan.varied, dict.fromkeys(plan.copies, 0))
        data = Data(data.train[:4000], data.train_labels[:4000], data.test[:1000], data.test_labels[:1000])
    deployed, network = deployed_model(name, data, plan, args.quick)
    order = np.random.default_rng(0).permutation(len(data.train))
    held = min(CHOOSE, len(order) // 5)
    materials: dict[int, Material] = {}
    test_outputs = outputs_of(deployed, data.test)
    labels = data.test_labels.numpy()
    print(f"{name}: A_a {float((test_outputs[:, 0].argmax(-1) == labels).mean()):.2%}", file=sys.stderr)
    for code_name, k in args.candidates:
        for seed in args.seeds:
            key = {"data": name, "code": code_name, "k": k, "seed": seed, "bodies": args.bodies}
            if any(all(row.get(part) == value for part, value in key.items()) for row in kept):
                continue
            code = make_code(code_name, k)
            copies = plan.copies[code_name] if args.copies is None else args.copies
            if copies not in materials:
                shown = (order[held:][: args.bodies], order[:held], plan.varied, copies)
                materials = {copies: with_copies(data.train, deployed, *shown)}
            knobs = Knobs(
                steps=args.steps or plan.steps[code_name],
                peak_rate=args.rate,
                output_loss=args.output_loss,
                empty=args.empty,
            )
            torch.manual_seed(seed)
            architecture = args.architecture or ("cnn" if code.family is Family.BACKUP else DEPLOYED)
            shapes = Shapes(tuple(data.train.shape[1:]), (1, CLASSES))
            call = ModelCall("self.model", "__call__", (data.train[0],), {})

            def make(width: float, of: tuple = (architecture, network, call, shapes)) -> Called:
                return make_called(*of, width)

            runs, width = k if code.family is Family.BACKUP else 1, 1.0
            if has_width(architecture):
                width = affordable_width(make, deployed, shapes, runs, 1.0, torch.device("cpu"))
            model = make(width)
            label = f"{name} {code_name} k={k} seed {seed}"
            started = time.monotonic()
            with tqdm(total=knobs.steps, desc=label, unit="step") as bar:

                def told(step: int, loss: float, agreement: float, bar: tqdm = bar) -> None:
                    bar.update(step - bar.n)
                    bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreement:.4f}")

                checkpoint = None if args.quick else CACHE / f"{label.replace(' ', '-')}.checkpoint"
                fabric = Fabric(accelerator="cpu", precision=args.precision)
                fit(fabric, model, materials[copies], Goal(code), knobs, seed, checkpoint, Progress(told))
            if code.family is Family.BACKUP:
                folded(model.network)
            dice = np.random.default_rng(seed)
            groups = draw_groups(np.arange(len(data.test)), k, dice, len(data.test) // k)
            scores = evaluate(code, test_outputs[groups], said(code, [model], data.test, groups), labels[groups])
            kept.append(
                {
                    **key,
                    "r": 1,
                    "architecture": architecture if runs == 1 else f"cnn at {runs} x {_share(model, deployed, shapes)}",
                    "steps": knobs.steps,
                    "copies": copies,
                    "rate": args.rate,
                    "precision": args.precision,
                    **{part: scores[part] for part in ("A_a", "A_d", "drop", "agreement", "A_default")},
                    "members": {m: each["A_d"] for m, each in scores["members"].items()},
                    **_cost(deployed, model, code, data.train[:k], shapes),
                    "seconds": round(time.monotonic() - started),
                }
            )
            row = kept[-1]
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
            write(args, kept)
            print(f"{label}: A_d {row['A_d']:.2%}, drop {100 * row['drop']:.2f}, {row['seconds']} s", file=sys.stderr)


def _cost(deployed: nn.Module, model: nn.Module, code: Code, inputs: torch.Tensor, shapes: Shapes) -> dict:
    runs = code.k if code.family is Family.BACKUP else 1
    cost = measure(deployed, model, Goal(code), inputs, runs * _share(model, deployed, shapes), torch.device("cpu"))
    return {"cost": cost.cost, "multiplications": cost.multiplications}


def _share(model: nn.Module, deployed: nn.Module, shapes: Shapes) -> float:
    return round(multiplications(model, shapes) / multiplications(deployed, shapes), 3)


def write(args: argparse.Namespace, kept: list[dict]) -> None:
    """The runs one by one, and the rows that the documentation is made from: the mean over seeds."""
    if args.out is None:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(args, kept)


def _write(args: argparse.Namespace, kept: list[dict]) -> None:
    """Another process may have added its rows since this one read them."""
    for row in json.loads(args.out.read_text())["runs"] if args.out.exists() else []:
        if not any(all(mine.get(part) == row.get(part) for part in KEY) for mine in kept):
            kept.append(row)
    document = {
        "command": "python benchmarks/accuracy.py --data DIR" + (" --quick" if args.quick else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "rows": summary([run for run in kept if run.get("bodies") is None]),
        "curve": curve(kept),
        "runs": kept,
    }
    unfinished = args.out.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(args.out)


def summary(kept: list[dict]) -> list[dict]:
    rows = []
    for data, code, k in dict.fromkeys((run["data"], run["code"], run["k"]) for run in kept):
        runs = [run for run in kept if (run["data"], run["code"], run["k"]) == (data, code, k)]
        scores = [
            {part: run[part] for part in ("A_a", "A_d", "drop", "agreement", "A_default", "cost")} for run in runs
        ]
        mean = over_seeds(scores)
        same = {part: runs[0][part] for part in ("data", "architecture", "code", "k", "r", "steps", "multiplications")}
        rows.append({**same, **mean, "seeds": len(runs), "seed_list": [run["seed"] for run in runs]})
    return rows


def curve(kept: list[dict]) -> list[dict]:
    """What fewer bodies cost: runs of equal length on some of them."""
    some = [run for run in kept if run.get("bodies") is not None]
    return [
        {part: run[part] for part in (*KEY, "steps", "A_a", "A_d", "drop", "agreement")}
        for run in sorted(some, key=lambda run: (run["data"], run["code"], run["k"], run["bodies"]))
    ]


NAMES = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}


def tables(document: dict) -> str:
    """Markdown: ours beside the paper's, and the rivals at equal cost."""
    lines = [
        "| data | k | code | A_a | A_d | drop | agreement | cost of a group | seeds | steps | paper's drop |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {name: index for index, name in enumerate(("sum", "concat", "student"))}
    rows = sorted(document["rows"], key=lambda r: (list(NAMES).index(r["data"]), r["k"], order[r["code"]]))
    for row in rows:
        paper = PAPER.get((row["data"], row["code"], row["k"]))
        spread = f" ± {100 * row['drop_spread']:.2f}" if row["seeds"] > 1 else ""
        cost = f"{row['cost']:.2f} ({row['multiplications']:.2f})"
        lines.append(
            f"| {NAMES[row['data']]} | {row['k']} | `{row['code']}` | {row['A_a']:.2%} | {row['A_d']:.2%} | "
            f"{100 * row['drop']:.2f}{spread} | {row['agreement']:.2%} | {cost} | "
            f"{row['seeds']} | {row['steps']:,} | {'' if paper is None else f'{paper[1]:.2f}'} |"
        )
    lines += ["", "| data | a default answer | `exact` |", "|---|---|---|"]
    for name in NAMES:
        row = next((row for row in rows if row["data"] == name), None)
        if row is not None:
            lines.append(f"| {NAMES[name]} | {row['A_default']:.2%} | {row['A_a']:.2%} (drop 0, cost k) |")
    return "\n".join(lines)


def curve_table(document: dict) -> str:
    lines = ["| data | code | k | bodies | steps | drop | agreement |", "|---|---|---|---|---|---|---|"]
    for row in document["curve"]:
        lines.append(
            f"| {NAMES[row['data']]} | `{row['code']}` | {row['k']} | {row['bodies']:,} | {row['steps']:,} | "
            f"{100 * row['drop']:.2f} | {row['agreement']:.2%} |"
        )
    return "\n".join(lines)


def sections(document: dict) -> dict[str, str]:
    """What docs/training.md says between its marks."""
    return {"tables": tables(document), "curve": curve_table(document)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the datasets")
    parser.add_argument("--sets", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--only", nargs="+", metavar="CODE:K", help="such as sum:2 student:4; default: all")
    parser.add_argument("--seeds", nargs="+", type=count(0), default=[0, 1, 2])
    parser.add_argument("--steps", type=count(), help="instead of each plan's own")
    tried = parser.add_argument_group("to try other things", "their rows go to an --out of their own")
    tried.add_argument("--rate", type=number(above=0), default=RATE, help="peak learning rate, default %(default)s")
    tried.add_argument("--output-loss", type=number(least=0), default=Knobs().output_loss, help="default %(default)s")
    tried.add_argument("--empty", type=number(least=0, most=1), default=Knobs().empty, help="default %(default)s")
    tried.add_argument("--architecture", help="of what is trained, as for ts-parity train")
    tried.add_argument("--copies", type=count(0), help="varied copies of each image")
    parser.add_argument("--bodies", type=count(), help="learn from so many images only: a row of the curve")
    parser.add_argument("--precision", default="bf16-mixed", help="of training, default %(default)s; or 32-true")
    parser.add_argument(
        "--quick", action="store_true", help="a minute, one seed; writes to --out only if that is given"
    )
    parser.add_argument("--out", type=Path, help=f"default {RESULTS}")
    parser.add_argument("--tables", action="store_true", help="renew the tables from the kept results, train nothing")
    args = parser.parse_args()
    if args.tables:
        document = json.loads((args.out or RESULTS).read_text())
        for mark, text in sections(document).items():
            renew(DOCS, mark, text)
        print(f"{tables(document)}\n\n{curve_table(document)}")
        return
    if args.data is None or not args.data.is_dir():
        parser.error("--data must be the folder of the datasets")
    usual = (RATE, Knobs().output_loss, Knobs().empty, None, None)
    if (args.rate, args.output_loss, args.empty, args.architecture, args.copies) != usual and not args.out:
        parser.error("what is tried needs an --out of its own")
    args.candidates = [(o.split(":")[0], int(o.split(":")[1])) for o in args.only] if args.only else CANDIDATES
    if args.quick:
        args.seeds = args.seeds[:1]
    else:
        args.out = args.out or RESULTS
    kept = json.loads(args.out.read_text())["runs"] if args.out and args.out.exists() else []
    for name in args.sets:
        if missing(name, args, kept):
            rows_of(name, args, kept)
    print(tables({"rows": summary([run for run in kept if run.get("bodies") is None])}))


if __name__ == "__main__":
    main()
