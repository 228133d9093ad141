"""The data of benchmarks/accuracy.py: images that are read, scans of digits, spoken words and boxes that are made.

Knows files and tensors. Knows nothing of networks or codes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Data:
    """inputs (n, 1, C, H, W) in the range a handler would make; labels (n,) of classes, or (n, numbers)."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    @property
    def outputs(self) -> int:
        """Of a model of these: classes, or numbers."""
        if self.train_labels.ndim > 1:
            return self.train_labels.shape[1]
        return 1 + int(max(self.train_labels.max(), self.test_labels.max()))

    def first(self, train: int, test: int) -> Data:
        return Data(self.train[:train], self.train_labels[:train], self.test[:test], self.test_labels[:test])


def load(name: str, folder: Path) -> Data:
    return LOADERS[name](folder)


def _arrays(file: str) -> Callable[[Path], Data]:
    def load(folder: Path) -> Data:
        with np.load(folder / file) as opened:
            parts = [torch.from_numpy(opened[part]) for part in ("x_train", "y_train", "x_test", "y_test")]
        images = [part[:, None, None].float() / 255 for part in (parts[0], parts[2])]
        return Data(images[0], parts[1].long(), images[1], parts[3].long())

    return load


def _cifar(folder: Path) -> Data:
    from PIL import Image

    mean, spread = (torch.tensor(v)[:, None, None] for v in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    parts: dict[str, list[torch.Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with zipfile.ZipFile(folder / "cifar10_jpeg.zip") as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for name in tqdm(names, desc="cifar10", unit="image"):
            part, shown, _ = name.split("/")
            pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(opened.read(name)))).copy())
            parts[part].append((pixels.permute(2, 0, 1).float() / 255 - mean) / spread)
            labels[part].append(classes.index(shown))
    images = {part: torch.stack(shown)[:, None] for part, shown in parts.items()}
    return Data(images["train"], torch.tensor(labels["train"]), images["test"], torch.tensor(labels["test"]))


def _digits(folder: Path) -> Data:
    """scikit-learn's 1,797 scans of 8 x 8, of which 500 are scored."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(scans.target)))
    images = torch.from_numpy(scans.images)[order, None, None].float() / 16
    labels = torch.from_numpy(scans.target)[order].long()
    return Data(images[500:], labels[500:], images[:500], labels[:500])


LOADERS: dict[str, Callable[[Path], Data]] = {
    "digits": _digits,
    "mnist": _arrays("mnist.npz"),
    "fashion": _arrays("fashion_mnist.npz"),
    "cifar10": _cifar,
}
