"""Variations of model inputs. Inputs are varied and the deployed model says what each variation means, so no variation
can teach anything false; it can only be of no use.

Knows tensors. Knows nothing of what they show.
"""

from __future__ import annotations

import torch

SHIFT, FLIP, MIX = "shift", "flip", "mix"
MOST_SHIFT = 0.1
"""Of the image's side: 3 pixels of 28 or 32, about the 4 that are usual for CIFAR-10."""


def vary(inputs: torch.Tensor, kinds: tuple[str, ...], generator: torch.Generator) -> torch.Tensor:
    """(n, ..., height, width) -> the same shape, every input varied by itself.

    shift: by up to a tenth of the side, the border repeated. flip: left to right, half of them. mix: half of them
    become a blend with another input.
    """
    if SHIFT in kinds:
        inputs = _shifted(inputs, generator)
    if FLIP in kinds:
        flipped = torch.rand(len(inputs), generator=generator).to(inputs.device) < 0.5
        inputs = torch.where(flipped.reshape(-1, *[1] * (inputs.ndim - 1)), inputs.flip(-1), inputs)
    if MIX in kinds:
        inputs = _mixed(inputs, generator)
    return inputs


def _shifted(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, (height, width) = len(inputs), inputs.shape[-2:]
    flat = inputs.reshape(count, -1, height, width)
    rows = _moved(count, height, generator).to(inputs.device)
    columns = _moved(count, width, generator).to(inputs.device)
    each = torch.arange(count, device=inputs.device)[:, None, None]
    shifted = flat.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return shifted.reshape(inputs.shape)


def _moved(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(count, side): from which row (or column) each is taken."""
    most = max(1, round(MOST_SHIFT * side))
    by = torch.randint(-most, most + 1, (count, 1), generator=generator)
    return (torch.arange(side)[None] + by).clamp(0, side - 1)


def _mixed(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count = len(inputs)
    share = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.5)
    share = share.to(inputs).reshape(-1, *[1] * (inputs.ndim - 1))
    others = inputs[torch.randperm(count, generator=generator).to(inputs.device)]
    return inputs + share * (others - inputs)
