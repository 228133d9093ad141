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

from accuracy_boxes import make_canvases
from accuracy_words import make_words
from ts_parity.wire import Array


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


def load(name: str, folder: Path, cache: Path | None = None) -> Data:
    """`folder`: of the files that are read. `cache`: where what takes minutes to make is kept."""
    if name == "cifar10":
        return _cifar(folder, cache)
    if name not in MAKERS:
        return LOADERS[name](folder)
    file = None if cache is None else cache / f"{name}.npz"
    if file is not None and file.exists():
        with np.load(file) as opened:
            parts = [opened[part] for part in PARTS]
    else:
        parts = MAKERS[name](folder)
        if file is not None:
            _keep(parts, file)
    train, train_labels, test, test_labels = (torch.from_numpy(np.asarray(part)) for part in parts)
    return Data(train[:, None].float(), train_labels, test[:, None].float(), test_labels)


def _keep(parts: list[Array], file: Path) -> None:
    unfinished = file.with_suffix(".unfinished")
    with open(unfinished, "wb") as opened:
        np.savez(opened, **dict(zip(PARTS, parts, strict=True)))  # type: ignore[arg-type]
    unfinished.replace(file)


def _arrays(file: str) -> Callable[[Path], Data]:
    def load(folder: Path) -> Data:
        with np.load(folder / file) as opened:
            parts = [torch.from_numpy(opened[part]) for part in ("x_train", "y_train", "x_test", "y_test")]
        images = [part[:, None, None].float() / 255 for part in (parts[0], parts[2])]
        return Data(images[0], parts[1].long(), images[1], parts[3].long())

    return load


def _cifar(folder: Path, cache: Path | None = None) -> Data:
    """Decoding the images takes half a minute, which a slice of a few minutes should not pay again."""
    file = None if cache is None else cache / "cifar10-pixels.npz"
    if file is not None and file.exists():
        with np.load(file) as opened:
            parts = [opened[part] for part in PARTS]
    else:
        binary = folder / "cifar-10-batches-bin"
        parts = _binary_pixels(binary) if binary.is_dir() else _jpeg_pixels(folder / "cifar10_jpeg.zip")
        if file is not None:
            _keep(parts, file)
    mean, spread = (torch.tensor(v)[:, None, None] for v in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    pixels, labels = parts[::2], [torch.from_numpy(part).long() for part in parts[1::2]]
    images = [(torch.from_numpy(each).float() / 255 - mean) / spread for each in pixels]
    return Data(images[0][:, None], labels[0], images[1][:, None], labels[1])


def _binary_pixels(folder: Path) -> list[Array]:
    """A byte of label and 3 x 32 x 32 bytes of pixels each."""
    files = {"data_batch": sorted(folder.glob("data_batch_*.bin")), "test_batch": [folder / "test_batch.bin"]}
    read = [np.concatenate([np.fromfile(each, np.uint8).reshape(-1, 3073) for each in some]) for some in files.values()]
    return [part for rows in read for part in (rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])]


def _jpeg_pixels(file: Path) -> list[Array]:
    from PIL import Image

    parts: dict[str, list[Array]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with zipfile.ZipFile(file) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for name in tqdm(names, desc="cifar10", unit="image"):
            part, shown, _ = name.split("/")
            parts[part].append(np.asarray(Image.open(io.BytesIO(opened.read(name)))).transpose(2, 0, 1))
            labels[part].append(classes.index(shown))
    return [made for part in parts for made in (np.stack(parts[part]), np.array(labels[part], np.uint8))]


def _digits(folder: Path) -> Data:
    """scikit-learn's 1,797 scans of 8 x 8, of which 500 are scored."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(scans.target)))
    images = torch.from_numpy(scans.images)[order, None, None].float() / 16
    labels = torch.from_numpy(scans.target)[order].long()
    return Data(images[500:], labels[500:], images[:500], labels[:500])


WORDS_TRAIN, WORDS_TEST = 20_000, 5_000
BOXES_TRAIN, BOXES_TEST = 40_000, 8_000


def _words(folder: Path) -> list[Array]:
    return list(make_words(WORDS_TRAIN, WORDS_TEST))


def _boxes(folder: Path) -> list[Array]:
    """On each side of the split with digits and scraps of its own."""
    parts: list[Array] = []
    with np.load(folder / "mnist.npz") as opened:
        for seed, (part, count) in enumerate((("x_train", BOXES_TRAIN), ("x_test", BOXES_TEST))):
            parts += make_canvases(opened[part] / np.float32(255), count, seed)
    return parts


PARTS = ("x_train", "y_train", "x_test", "y_test")
MAKERS: dict[str, Callable[[Path], list[Array]]] = {"words": _words, "boxes": _boxes}
LOADERS: dict[str, Callable[[Path], Data]] = {
    "digits": _digits,
    "mnist": _arrays("mnist.npz"),
    "fashion": _arrays("fashion_mnist.npz"),
}
