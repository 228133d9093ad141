"""Boxes for benchmarks/accuracy.py: where on a cluttered canvas is the digit? And a network that can tell.

The paper's task is localisation (birds of CUB-200, scored by the overlap of boxes); this is one that two cores can
learn. The same seed makes the same canvases.

Knows pictures of digits and torch. Knows nothing of codes.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ts_parity.wire import Array

SIDE = 32
_SMALLEST, _LARGEST = 12, 20
"""Sides to which a digit of 28 x 28 is shrunk."""
_SCRAPS, _SCRAP = 8, 6
"""Pieces of other digits that lie about, and their side."""
_INK = 0.2
"""What is darker belongs to the digit."""


def make_canvases(digits: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Digits (n, 28, 28) in [0, 1] -> canvases (count, 1, SIDE, SIDE) and their boxes (count, 4).

    A box has two corners (x1, y1, x2, y2) in shares of the canvas's side, tight around the ink of the digit.
    """
    dice = np.random.default_rng(seed)
    canvases = np.zeros((count, SIDE, SIDE), dtype=np.float32)
    boxes = np.empty((count, 4), dtype=np.float32)
    for canvas, box, shown in zip(canvases, boxes, dice.integers(len(digits), size=count), strict=True):
        for _ in range(_SCRAPS):
            from_y, from_x = dice.integers(4, 24 - _SCRAP, size=2)  # where a digit has its ink
            scrap = digits[dice.integers(len(digits))][from_y : from_y + _SCRAP, from_x : from_x + _SCRAP]
            _lay(canvas, scrap, dice)
        digit = _shrunk(digits[shown], int(dice.integers(_SMALLEST, _LARGEST + 1)))
        top, left = _lay(canvas, digit, dice)
        rows, columns = (np.flatnonzero((digit > _INK).any(axis)) for axis in (1, 0))
        box[:] = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return canvases[:, None], boxes / SIDE


def _lay(canvas: Array, piece: Array, dice: np.random.Generator) -> tuple[int, int]:
    top, left = (int(dice.integers(0, SIDE - side + 1)) for side in piece.shape)
    place = canvas[top : top + piece.shape[0], left : left + piece.shape[1]]
    np.maximum(place, piece, out=place)
    return top, left


def _shrunk(digit: Array, side: int) -> Array:
    shown = torch.from_numpy(digit)[None, None]
    return np.asarray(functional.interpolate(shown, (side, side), mode="bilinear", antialias=True)[0, 0])


def locator(one_input: tuple[int, ...], outputs: int, width: float) -> nn.Module:
    """The built-in cnn's channels, halved thrice and not averaged at the end: where something is, is what is asked."""
    channels = [one_input[0], *(max(1, round(c * width)) for c in (16, 32, 32, 64, 64))]
    layers: list[nn.Module] = []
    for index, (entering, leaving) in enumerate(itertools.pairwise(channels)):
        stride = 2 if index in (1, 3, 4) else 1
        layers += [nn.Conv2d(entering, leaving, 3, stride, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
    positions = (-(-one_input[1] // 8)) * (-(-one_input[2] // 8))
    hidden = max(1, round(128 * width))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(positions * channels[-1], hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
