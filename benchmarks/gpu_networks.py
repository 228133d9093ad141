"""ResNet-18, ResNet-50 and ViT-B/16 as in their papers, of any width, and students: the same networks, narrower.

Written down here since torchvision may be missing where they are measured. Weights are random: time does not depend on
them. Knows torch and shapes. Knows nothing of what is measured.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from ts_parity.training.counting import counting

CLASSES = 1000


@dataclass(frozen=True)
class Deployed:
    """A network by name, its width (1: as in its paper), and the side of the images that it is shown."""

    name: str
    width: float = 1.0
    side: int = 224
    classes: int = CLASSES

    def make(self) -> nn.Module:
        return NETWORKS[self.name](self.width, self.side, self.classes).eval()

    def images(self, count: int) -> torch.Tensor:
        return torch.randn(count, 3, self.side, self.side)

    def student(self, share: float) -> Deployed:
        """The same network, so narrow that in its paper's width it takes at most this share of the multiplications."""
        return replace(self, width=self.width * STUDENTS[self.name, share])


STUDENTS = {
    ("resnet18", 1 / 4): 0.47656,
    ("resnet18", 1 / 10): 0.28906,
    ("resnet50", 1 / 4): 0.49218,
    ("resnet50", 1 / 10): 0.30468,
    ("vit_b", 1 / 4): 0.46874,
    ("vit_b", 1 / 10): 0.31249,
}
"""Found by bisection; a ViT's heads make steps, so its quarter is a fifth."""


@functools.cache
def multiplications(network: Deployed) -> float:
    """Of one inference, counted without weights or images."""
    with torch.device("meta"), counting() as counter, torch.no_grad():
        network.make()(network.images(1))
    return counter.get_total_flops() / 2


class _Residual(nn.Module):
    """Two convolutions of 3 x 3 (ResNet-18) or, `deep`, 1 x 1, 3 x 3 and 1 x 1 with four times the channels (-50)."""

    def __init__(self, entering: int, inner: int, stride: int, deep: bool) -> None:
        super().__init__()
        leaving = 4 * inner if deep else inner
        sizes = [(entering, inner, 1, 1), (inner, inner, 3, stride), (inner, leaving, 1, 1)]
        sizes = sizes if deep else [(entering, inner, 3, stride), (inner, inner, 3, 1)]
        self.layers = nn.Sequential(*(_convolved(*size, last=size is sizes[-1]) for size in sizes))
        alike = stride == 1 and entering == leaving
        self.aside = nn.Identity() if alike else _convolved(entering, leaving, 1, stride, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.layers(x) + self.aside(x))


def _convolved(entering: int, leaving: int, size: int, stride: int, last: bool = False) -> nn.Sequential:
    made: list[nn.Module] = [
        nn.Conv2d(entering, leaving, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(leaving),
    ]
    return nn.Sequential(*made, *([] if last else [nn.ReLU()]))


def _resnet(depths: tuple[int, ...], deep: bool, width: float, side: int, classes: int) -> nn.Module:
    first = max(1, round(64 * width))
    # Small images would vanish in the first two layers.
    layers: list[nn.Module] = [_convolved(3, first, 7, 2), nn.MaxPool2d(3, 2, 1)]
    if side <= 64:
        layers = [_convolved(3, first, 3, 1)]
    entering = first
    for stage, depth in enumerate(depths):
        inner = first * 2**stage
        for block in range(depth):
            layers.append(_Residual(entering, inner, 2 if stage and not block else 1, deep))
            entering = 4 * inner if deep else inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(entering, classes))


class _Attention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.asked, self.answered = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.layers = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, size) -> the same shape."""
        count, length, size = x.shape
        asked = self.asked(self.norms[0](x)).reshape(count, length, 3, self.heads, size // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.answered(seen.transpose(1, 2).reshape(count, length, size))
        return x + self.layers(self.norms[1](x))


class _Vit(nn.Module):
    def __init__(self, width: float, side: int, classes: int) -> None:
        super().__init__()
        heads = max(1, round(12 * width))
        # Between two numbers of heads the heads themselves are narrower, by eights, as kernels like them.
        size = max(8, round(768 * width / heads / 8) * 8) * heads
        patch = 16 if side >= 64 else 4
        self.patches = nn.Conv2d(3, size, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, size))
        self.places = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, size))
        self.blocks = nn.Sequential(*(_Attention(size, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, L, size)
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(x)[:, 0]))


NETWORKS = {
    "resnet18": functools.partial(_resnet, (2, 2, 2, 2), False),
    "resnet50": functools.partial(_resnet, (3, 4, 6, 3), True),
    "vit_b": _Vit,
}
