"""Students of a model that reads: what each architecture makes of texts in which the order of words is everything.

    python benchmarks/word_order.py [--texts N] [--steps N] [--seeds N]      some minutes on two cores; prints a table

Every text holds four marks among other words, each of them once, and its class is which mark comes first, so single
words tell nothing. Marks that stand side by side, as in short texts many do, tell a student that sees neighbours
something. The deployed model, a recurrent network, is trained
here and packed with an ordinary handler; the students are made from its archive by `ts-parity train`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ts_parity.arguments import count
from ts_parity.tables import markdown
from ts_parity.training import TrainSettings, train
from ts_parity.wire import Array

MARKS, WORDS = 4, 64
"""Ids: 0 is padding, then the marks, then the other words."""
SHORTEST, LONGEST = 6, 16
STUDENTS = ("bag", "transformer", "narrower")
SCORED = 1000
DEPLOYED_STEPS = 1000

MODEL = f"""
import torch
from torch import nn


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding({WORDS}, 32, padding_idx=0)
        self.recurrent = nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, {MARKS})

    def forward(self, ids):
        return self.head(self.recurrent(self.words(ids))[0][:, -1])
"""
HANDLER = """
import json, os
import torch
from model import First


class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.model = First()
        self.model.load_state_dict(torch.load(os.path.join(folder, "first.pt")))
        self.model.eval()

    def handle(self, data, context):
        rows = [row.get("data") or row.get("body") for row in data]
        with torch.inference_mode():
            return [self.model(torch.tensor([row]))[0].tolist() for row in rows]
"""


def texts(count: int, rng: np.random.Generator) -> tuple[list[list[int]], Array]:
    """-> the ids of each text, and its class."""
    made, classes = [], np.zeros(count, dtype=np.int64)
    for row in range(count):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        text = rng.integers(1 + MARKS, WORDS, length)
        order = rng.permutation(MARKS)
        text[np.sort(rng.choice(length, MARKS, replace=False))] = 1 + order
        made.append(text.tolist())
        classes[row] = order[0]
    return made, classes


def deployed(made: list[list[int]], classes: Array, seed: int) -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(MODEL, space)
    torch.manual_seed(seed)
    model, rng = space["First"](), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    by_length: dict[int, list[int]] = {}
    for row, text in enumerate(made):
        by_length.setdefault(len(text), []).append(row)
    lengths = sorted(by_length)
    for _ in range(DEPLOYED_STEPS):
        rows = rng.choice(by_length[int(rng.choice(lengths))], 64)
        loss = functional.cross_entropy(model(torch.tensor([made[i] for i in rows])), torch.from_numpy(classes[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def write(folder: Path, archive: Path, bodies: int, seed: int) -> None:
    """The deployed model's archive, and what is learned from and scored on."""
    rng = np.random.default_rng(seed)
    made, classes = texts(bodies, rng)
    torch.save(deployed(made, classes, seed).state_dict(), folder / "first.pt")
    model = {"modelName": "first", "modelVersion": "1.0", "handler": "handler.py", "serializedFile": "first.pt"}
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(folder / "first.pt", "first.pt")
        packed.writestr("model.py", MODEL)
        packed.writestr("handler.py", HANDLER)
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
    others, labels = texts(SCORED, rng)
    for name, each in (("train", made), ("score", others)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in each))
    np.savez(folder / "labels.npz", labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=count(), default=4000)
    parser.add_argument("--steps", type=count(), default=2000)
    parser.add_argument("--seeds", type=count(), default=1)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, folder / "first.mar", args.texts, 0)
        for architecture in STUDENTS:
            settings = TrainSettings(
                archive=folder / "first.mar",
                inputs=folder / "train.jsonl",
                score=folder / "score.jsonl",
                labels=folder / "labels.npz",
                out=folder / architecture,
                codes=("student",),
                architecture=architecture,
                steps=args.steps,
                seeds=args.seeds,
                progress=False,
            )
            made = next(c for c in train(settings)["candidates"] if c["code"] == "student")
            counted = "-" if made.get("multiplications") is None else f"{made['multiplications']:.2f}"
            rows.append(
                [f"`{architecture}`", f"{made['A_a']:.2%}", f"{made['A_d']:.2%}", f"{made['score']:.2%}",
                 f"{made['cost']:.2f} ({counted})"]
            )  # fmt: skip
            print(rows[-1], flush=True)
    print(markdown(["architecture", "A_a", "A_d", "agreement", "cost of a group"], rows))


if __name__ == "__main__":
    main()
