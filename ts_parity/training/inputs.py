"""The deployed model's inputs for n bodies, kept on disk: any number of tensors each, of any kind and length.

Most models are given one floating tensor of one shape, and then that is all there is: (n, *shape). A model of texts is
given ids, often with a mask, and a length that differs from body to body: `Calls`. Knows tensors and files. Knows
nothing of handlers, networks, or what an id means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ts_parity.errors import TrainingError
from ts_parity.wire import Array


@dataclass(frozen=True)
class Column:
    """One tensor of every call. `shapes` (n, axes), `starts` (n,): where in `flat` each begins.

    A column that is the same in all n calls is stored once.
    """

    name: str
    flat: torch.Tensor = field(repr=False)
    shapes: Array = field(repr=False)
    starts: Array = field(repr=False)
    constant: bool = False

    def __getitem__(self, row: int) -> torch.Tensor:
        shape = tuple(int(side) for side in self.shapes[row])
        start = int(self.starts[row])
        return self.flat[start : start + int(np.prod(shape, dtype=np.int64))].reshape(shape)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of every call's tensor; None if they differ."""
        first = self.shapes[0]
        return tuple(map(int, first)) if bool((self.shapes == first).all()) else None


class Calls:
    """Some of the calls, in an array of any form: `calls[picks]` are others, as with a tensor. `kept` is for whoever
    wants to read each call only once; all that come from the same columns share it.

    Not a dataclass: the trainer library would take it apart to look for tensors.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Array,
        device: torch.device | str = "cpu",
        kept: dict[Any, dict[int, Any]] | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.rows = rows
        self.device = torch.device(device)
        self.kept = {} if kept is None else kept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, picks: Any) -> Calls:
        chosen = self.rows[picks.cpu().numpy() if isinstance(picks, torch.Tensor) else picks]
        return Calls(self.columns, np.atleast_1d(chosen), self.device, self.kept)

    def to(self, device: torch.device | str) -> Calls:
        return Calls(self.columns, self.rows, device, self.kept)

    def tensors(self, row: int) -> tuple[torch.Tensor, ...]:
        """Those of one call, by its place in the columns."""
        return tuple(column[row].to(self.device) for column in self.columns)

    def sizes(self) -> Array:
        """(n,): how many numbers each call holds."""
        return np.asarray(sum(column.shapes[self.rows].prod(axis=-1) for column in self.columns))

    def told(self) -> str:
        """How the calls differ, in words."""
        differ = [column for column in self.columns if not column.constant]
        if len(differ) != 1:
            return f"these bodies give {', '.join(column.name for column in differ)}"
        shapes = np.unique(differ[0].shapes, axis=0)
        some = " and ".join(str(tuple(map(int, shape))) for shape in (shapes[0], shapes[-1])[: len(shapes)])
        return f"these bodies give {str(differ[0].flat.dtype).removeprefix('torch.')} of {some}"

    def spread(self, count: int) -> Calls:
        """`count` of them, from the shortest to the longest in even steps."""
        order = np.argsort(self.sizes(), kind="stable")
        return self[order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]]

    def typical(self, count: int) -> Calls:
        """`count` of them, of middle length."""
        order, first = np.argsort(self.sizes(), kind="stable"), max(0, (len(self) - count) // 2)
        return self[order[first : first + count]]


Inputs = torch.Tensor | Calls
"""Of n calls: (n, *shape) where they differ in one floating tensor of one shape, else the calls."""


Given = tuple[tuple[str, torch.Tensor], ...]
"""The tensors of one call, by name."""


def check_alike(body: str, given: Given, first_body: str, first: Given) -> None:
    """Raise TrainingError unless two bodies give the model the same tensors, lengths aside."""
    names, first_names = ([name for name, _ in each] for each in (given, first))
    if names != first_names:
        raise TrainingError(
            f"{body} gives the model {', '.join(names) or 'no tensor'}, {first_body} gives it {', '.join(first_names)}"
            ": a network needs the same inputs from all"
        )
    for (_, tensor), (_, other) in zip(given, first, strict=True):
        if tensor.dtype != other.dtype or tensor.dim() != other.dim():
            raise TrainingError(
                f"{body} gives a model input of {_told(tensor)}, {first_body} one of {_told(other)}: a network needs "
                "one dtype and as many axes from all"
            )


def columns_of(calls: Sequence[Given]) -> tuple[Column, ...]:
    """Of a few calls that are alike in kind, in memory."""
    return tuple(_column(name, [call[place][1] for call in calls]) for place, (name, _) in enumerate(calls[0]))


def _column(name: str, tensors: Sequence[torch.Tensor]) -> Column:
    first = tensors[0]
    constant = all(tensor.shape == first.shape and torch.equal(tensor, first) for tensor in tensors)
    shapes = np.array([tuple(tensor.shape) for tensor in tensors], dtype=np.int64).reshape(len(tensors), -1)
    sizes = shapes.prod(axis=1, dtype=np.int64)
    flat = first.reshape(-1) if constant else torch.cat([tensor.reshape(-1) for tensor in tensors])
    return Column(name, flat, shapes, np.zeros_like(sizes) if constant else np.cumsum(sizes) - sizes, constant)


class Writer:
    """Keeps the calls of one job in `folder`, a file for each column."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: tuple[str, Given] = ("", ())
        self._columns: list[_ColumnWriter] = []

    def add(self, body: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The tensors of one call, by name. Raise TrainingError if they are others than those of the first."""
        given = tuple((name, tensor.detach().cpu().contiguous()) for name, tensor in tensors)
        if not self._columns:
            if not given:
                raise TrainingError(f"{body}: the model was given no tensor to learn from; use code exact")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._first = body, given
            self._columns = [
                _ColumnWriter(name, self._folder / f"given-{i}.bin", tensor) for i, (name, tensor) in enumerate(given)
            ]
        check_alike(body, given, *self._first)
        for column, (_, tensor) in zip(self._columns, given, strict=True):
            column.add(tensor)

    def finish(self) -> list[dict[str, Any]]:
        """-> what `read_columns` needs to know, as JSON."""
        return [column.finish() for column in self._columns]


class _ColumnWriter:
    """One column while it is written. Nothing is, beyond the first, until one differs from the first."""

    def __init__(self, name: str, file: Path, first: torch.Tensor) -> None:
        self.name = name
        self._file = file
        self._first = first
        self._shapes: list[tuple[int, ...]] = []
        self._opened: IO[bytes] | None = None

    def add(self, tensor: torch.Tensor) -> None:
        first = self._first
        if self._opened is None and (tensor.shape != first.shape or not torch.equal(tensor, first)):
            self._opened = self._file.open("wb")
            for _ in self._shapes:
                self._opened.write(tensor_bytes(first))
        if self._opened is not None:
            self._opened.write(tensor_bytes(tensor))
        self._shapes.append(tuple(tensor.shape))

    def finish(self) -> dict[str, Any]:
        constant = self._opened is None
        if self._opened is None:
            self._file.write_bytes(tensor_bytes(self._first))
        else:
            self._opened.close()
        np.save(self._file.with_suffix(".npy"), np.array(self._shapes, dtype=np.int64).reshape(len(self._shapes), -1))
        dtype = str(self._first.dtype).removeprefix("torch.")
        return {"name": self.name, "file": self._file.name, "dtype": dtype, "constant": constant}


def read_columns(folder: Path, written: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """What a Writer has finished, mapped into memory."""
    return tuple(_read(folder, one) for one in written)


def _read(folder: Path, one: dict[str, Any]) -> Column:
    file, dtype = folder / one["file"], getattr(torch, one["dtype"])
    shapes = np.load(file.with_suffix(".npy"))
    sizes = shapes.prod(axis=1, dtype=np.int64)
    count = int(sizes[0] if one["constant"] else sizes.sum())
    # Private: what is written to it stays in memory. Not `torch.from_file`: its tensors cannot be sent to a process.
    flat = torch.empty(0, dtype=dtype)
    if count:
        flat = torch.frombuffer(np.memmap(file, np.uint8, mode="c"), dtype=dtype, count=count)
    starts = np.zeros_like(sizes) if one["constant"] else np.cumsum(sizes) - sizes
    return Column(one["name"], flat, shapes, starts, one["constant"])


def inputs_of(columns: Sequence[Column]) -> tuple[Inputs, int]:
    """All of the calls, as they are to be learned from, and of one floating tensor, which of the columns it is."""
    count = len(columns[0].shapes)
    differ = [i for i, column in enumerate(columns) if not column.constant] or [0]
    column = columns[differ[0]]
    if len(differ) > 1 or column.shape is None or not column.flat.is_floating_point():
        return Calls(columns, np.arange(count)), 0
    same = column[0].expand(count, *column.shape)
    return (same if column.constant else column.flat.reshape(count, *column.shape)), differ[0]


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16


def _told(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
