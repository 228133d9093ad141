"""Train the deployed model on scikit-learn's scans of handwritten digits, and write the scans as PNG request bodies.

    python train_digits.py --out work

writes  work/digits.pt            the weights
        work/train/0000.png ...   request bodies to train a parity model on
        work/test/0000.png ...    request bodies neither model has seen
        work/labels.csv           file,label for all of them (for scoring only)

Everything is repeatable: one seed gives the same split, the same weights and the same files.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from model import DigitsNet
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional

from ts_parity.arguments import count

TEST = 450  # of 1,797 scans
STEPS = 800
BATCH = 128
PEAK_RATE = 3e-3  # of a one-cycle schedule
NOISE = 0.05  # a little noise on the pixels stands in for more scans: 1,347 are few


def load_scans(seed: int):
    """-> pixels (1797, 8, 8) as uint8, labels (1797,), indices for training, indices for the test."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(pixels))
    return pixels, digits.target, order[TEST:], order[:TEST]


def train(pixels, labels, seed: int) -> DigitsNet:
    torch.manual_seed(seed)
    images = torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(1)
    labels = torch.from_numpy(labels)
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        picks = torch.randint(len(images), (BATCH,))
        scores = net(images[picks] + NOISE * torch.randn(BATCH, 1, 8, 8))
        loss = functional.cross_entropy(scores, labels[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def accuracy(net: DigitsNet, pixels, labels) -> float:
    scores = net(torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(1))
    return float((scores.argmax(1).numpy() == labels).mean())


def write_bodies(folder: Path, pixels, labels) -> list:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (scan, label) in enumerate(zip(pixels, labels, strict=False)):
        path = folder / f"{number:04d}.png"
        Image.fromarray(scan, mode="L").save(path)
        rows.append((f"{folder.name}/{path.name}", int(label)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=count(0), default=0)
    args = parser.parse_args()

    pixels, labels, seen, unseen = load_scans(args.seed)
    net = train(pixels[seen], labels[seen], args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), args.out / "digits.pt")
    rows = write_bodies(args.out / "train", pixels[seen], labels[seen])
    rows += write_bodies(args.out / "test", pixels[unseen], labels[unseen])
    with open(args.out / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    figures = {"accuracy": round(accuracy(net, pixels[unseen], labels[unseen]), 4), "train": len(seen), "test": TEST}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
