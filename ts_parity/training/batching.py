"""Batches several calls of a network into one, as far as the network allows it.

A network for one text at a time is called once per text; most take texts of one length together, and some take all at
once, padded. Knows tensors and what they are. Knows nothing of networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch

from ts_parity.training.inputs import Calls
from ts_parity.training.text_network import InputKind, InputPart
from ts_parity.wire import Array


class BatchMode(Enum):
    """The fastest first, which few networks allow."""

    PADDED = "padded with zeros to the longest"
    ALIKE = "those of the same shapes"
    ALONE = "alone"


@dataclass(frozen=True)
class CallBatcher:
    mode: BatchMode
    parts: tuple[InputPart, ...]

    def together(self, calls: Calls) -> list[Array]:
        """(n,) calls -> the rows of each batch."""
        if self.mode is BatchMode.PADDED:
            return [np.arange(len(calls))]
        if self.mode is BatchMode.ALONE:
            return [np.array([at]) for at in range(len(calls))]
        shapes = np.concatenate([column.shapes[calls.rows] for column in calls.columns], axis=1)
        _, kind = np.unique(shapes, axis=0, return_inverse=True)
        order = np.argsort(kind.reshape(-1), kind="stable")
        return np.split(order, np.cumsum(np.bincount(kind.reshape(-1)))[:-1])

    def joined(self, calls: Calls) -> list[torch.Tensor]:
        """The tensors of one call that stands for all of these. Raise RuntimeError if they cannot be joined."""
        rows = [calls.tensors(row) for row in calls.rows]
        return [self._joined(place, rows) for place in range(len(self.parts))]

    def _joined(self, place: int, rows: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        part, given = self.parts[place], [row[place] for row in rows]
        if len(given) == 1:
            return given[0]
        if part.kind is InputKind.OFFSETS:
            text = next(i for i, other in enumerate(self.parts) if place in other.told_by)
            lengths = [row[text].shape[0] for row in rows]
            starts = np.cumsum([0, *lengths[:-1]])
            # Some end with where the last text ends.
            ends = [sum(lengths)] if given[0].numel() > 1 else []
            return torch.tensor([*starts, *ends], dtype=given[0].dtype, device=given[0].device)
        if any(self.parts[i].kind is InputKind.OFFSETS for i in part.told_by):
            return torch.cat(given)
        if part.kind is InputKind.NOTHING and all(torch.equal(given[0], other) for other in given[1:]):
            return given[0]
        if not part.batched:
            raise RuntimeError("it has no axis along which calls could be joined")
        return torch.cat(_padded(given, 1 if part.kind is InputKind.HIDES else 0))


def _padded(tensors: list[torch.Tensor], value: int) -> list[torch.Tensor]:
    longest = [max(sides) for sides in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return [
        torch.nn.functional.pad(tensor, [by for side, most in reversed([*zip(tensor.shape, longest, strict=True)])
                                         for by in (0, most - side)], value=value)
        for tensor in tensors
    ]  # fmt: skip
