"""Students of models that read ids: an embedding bag, or a small transformer, for texts of any length.

The network is given what the handler gives the deployed model, tensor by tensor, and `parts_of` finds out beforehand
what each of them is: ids, a mask, offsets, lengths, or numbers. Knows torch and what people give to such models. Knows
nothing of codes, losses or archives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ts_parity.errors import NotCodable
from ts_parity.training.inputs import Calls, Column, Inputs

NO_ID = -(1 << 62)
"""In place of an id: there is none here. No handler's own id, whatever it pads with."""
MOST_ROWS = 1 << 16
"""Of an embedding. Where there are more ids, some share a row, as in fastText."""
MOST_PAIRS = 1 << 15
"""The same for pairs of neighbours. Each step of learning moves all rows, so it is their number that takes time."""
LONGEST = 512
"""Distinct positions. Those beyond share the last one."""
MOST_FIXED = 64
"""Ids in every call, where each place may have a meaning of its own."""
LOOKED_AT = 1000
"""Calls, when it is found out what the tensors are."""


class InputKind(Enum):
    IDS = "ids"
    NUMBERS = "numbers"
    MASK = "mask"  # 1 where there is an id
    HIDES = "hides"  # 1 where there is none
    LENGTHS = "lengths"  # so many are ids, what follows is none
    OFFSETS = "offsets"  # where in one row of ids each text begins
    NOTHING = "nothing"  # the same in every call, or of no use


@dataclass(frozen=True)
class InputPart:
    """What one tensor of a call is. `batched`: its first axis is the batch, 1 here.

    Of ids: `told_by`, the tensors of the call that are its mask, lengths or offsets; `rows` and `pairs`, how many ids
    and pairs of neighbours are told apart; `longest`; `fixed`, their number if it is the same in every call and each
    place has its own meaning (a user, an item, an hour), else 0. Of numbers (and fixed ids): `mean` and `scale`, and of
    numbers `varying`, the axes whose length differs from call to call.
    """

    kind: InputKind
    batched: bool = True
    told_by: tuple[int, ...] = ()
    rows: int = 1
    pairs: int = 0
    longest: int = 1
    fixed: int = 0
    varying: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


def parts_of(columns: Sequence[Column], batched: bool) -> tuple[InputPart, ...]:
    """What each tensor is, as far as the calls show. `batched`: outputs have a batch axis of 1.

    Raise NotCodable if all calls are the same.
    """
    looked = [[column[row] for row in _some(len(column.shapes))] for column in columns]
    kinds = [InputKind.NOTHING if column.constant else _kind(column) for column in columns]
    told_by: dict[int, tuple[int, ...]] = {}
    ids = [i for i, kind in enumerate(kinds) if kind is InputKind.IDS]
    texts = [i for i in ids if _largest(columns[i]) > 1]  # and not only zeros and ones
    for text in texts:
        found = {
            i: kind
            for i in range(len(columns))
            if i != text and (kind := _of_a_text(columns[i].name, looked[i], looked[text], batched)) is not None
        }
        masks = [i for i, kind in found.items() if kind is InputKind.MASK]
        if len(masks) > 1:  # of two, one tells sentences apart: a mask is mostly ones
            mask = max(masks, key=lambda i: float(np.mean([tensor.float().mean() for tensor in looked[i]])))
            found = {i: kind for i, kind in found.items() if kind is not InputKind.MASK or i == mask}
        told_by[text] = tuple(found)
        for i, kind in found.items():
            kinds[i] = kind
    parts = [
        _part(column, kind, batched, told_by.get(i, ()), [kinds[j] for j in told_by.get(i, ())])
        for i, (column, kind) in enumerate(zip(columns, kinds, strict=True))
    ]
    if not any(part.kind in (InputKind.IDS, InputKind.NUMBERS) for part in parts):
        raise NotCodable("the model was given the same by every body: nothing can be learned from it; use code exact")
    return tuple(parts)


def _some(count: int) -> list[int]:
    return [int(row) for row in np.linspace(0, count - 1, min(count, LOOKED_AT)).round()]


def _kind(column: Column) -> InputKind:
    """By itself."""
    dtype, dims = column.flat.dtype, column.shapes.shape[1]
    pixels = dtype == torch.uint8 and dims >= 3 and column.shape is not None
    return InputKind.NUMBERS if dtype.is_floating_point or dtype.is_complex or pixels else InputKind.IDS


def _largest(column: Column) -> int:
    return int(column.flat.max()) if column.flat.numel() else 0


def _of_a_text(
    name: str, told: Sequence[torch.Tensor], text: Sequence[torch.Tensor], batched: bool
) -> InputKind | None:
    """What a tensor says of the ids, if it says something: `told` and `text` are of the same calls."""
    if told[0].is_floating_point() or told[0].is_complex():
        return None
    if all(a.shape == b.shape for a, b in zip(told, text, strict=True)):
        return _as_mask(name.lower(), told, text)
    if any(tensor.numel() == 0 for tensor in text):
        return None
    lengths = [tensor.shape[-1] for tensor in text]
    flat = batched and text[0].dim() == 1
    if flat and all(t.tolist() in ([0], [0, length]) for t, length in zip(told, lengths, strict=True)):
        return InputKind.OFFSETS
    if any(tensor.numel() != 1 for tensor in told):
        return None
    numbers = [int(tensor) for tensor in told]
    if any(not 0 <= number <= length for number, length in zip(numbers, lengths, strict=True)):
        return None
    beyond = torch.cat([tensor.reshape(-1)[number:] for tensor, number in zip(text, numbers, strict=True)])
    padded = bool((beyond == beyond[:1]).all()) and max(lengths) > 1  # always by the same id, or not at all
    return InputKind.LENGTHS if padded or "len" in name.lower() else None


def _as_mask(name: str, told: Sequence[torch.Tensor], text: Sequence[torch.Tensor]) -> InputKind | None:
    """What it hides is padding: one and the same id, or nothing. What tells two sentences apart is no such thing."""
    marks, ids = (torch.cat([tensor.reshape(-1) for tensor in each]) for each in (told, text))
    if any(word in name for word in ("type", "segment")) or bool(((marks != 0) & (marks != 1)).any()):
        return None
    for kind, hidden in ((InputKind.MASK, ids[marks == 0]), (InputKind.HIDES, ids[marks == 1])):
        if bool((hidden == hidden[:1]).all()):
            return kind
    return None


def _part(
    column: Column, kind: InputKind, batched: bool, told_by: tuple[int, ...], kinds: Sequence[InputKind]
) -> InputPart:
    shapes = column.shapes
    leading = batched and shapes.shape[1] > 0 and bool((shapes[:, 0] == 1).all())
    if kind is InputKind.NUMBERS:
        varying = tuple(axis for axis in range(leading, shapes.shape[1]) if len(set(shapes[:, axis])) > 1)
        return replace(_measured(column, varying), kind=kind, batched=leading, varying=varying)
    if kind is not InputKind.IDS:
        return InputPart(kind, leading)
    lengths = shapes.prod(axis=1)
    longest = int(lengths.max())
    fixed = longest if bool((lengths == longest).all()) and longest <= MOST_FIXED else 0
    if fixed and (
        InputKind.MASK in kinds or InputKind.HIDES in kinds or InputKind.LENGTHS in kinds or _is_padded(column, fixed)
    ):
        fixed = 0
    part = _measured(column, ()) if fixed else InputPart(kind)
    return replace(
        part,
        kind=kind,
        batched=leading,
        told_by=told_by,
        rows=min(max(_largest(column), 0) + 1, MOST_ROWS),
        pairs=0 if fixed or longest < 2 else min(MOST_PAIRS, 1 << column.flat.numel().bit_length()),
        longest=min(longest, LONGEST),
        fixed=fixed,
    )


def _is_padded(column: Column, length: int) -> bool:
    """Do most texts end with one and the same id?"""
    last = column.flat.reshape(-1, length)[:, -1]
    return length > 1 and float((last == last.mode().values).float().mean()) > 0.9


def _measured(column: Column, varying: tuple[int, ...]) -> InputPart:
    """Mean and spread of each number over all calls, so that all weigh alike at first."""
    rows = torch.stack([_pooled(column[row], varying) for row in _some(len(column.shapes))])
    mean, scale = rows.mean(0), rows.std(0, unbiased=False)
    scale = torch.where(scale > 1e-6 * (1.0 + mean.abs()), scale, 1.0)
    return InputPart(InputKind.NUMBERS, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))


def _pooled(numbers: torch.Tensor, varying: tuple[int, ...]) -> torch.Tensor:
    """(*axes) -> (size,): over axes of varying length mean and spread stand for all."""
    numbers = _real(numbers).double()
    if not varying:
        return numbers.reshape(-1)
    mean, spread = numbers.mean(varying), numbers.std(varying, unbiased=False)
    return torch.cat([mean.reshape(-1), spread.reshape(-1)])


class TextNetwork(nn.Module):
    """An embedding bag of ids and of pairs of neighbours (fastText's); with `blocks` of attention, a transformer too.

    It is called with the tensors of a call as the handler gives them to its own model, one text or many, padded or not:
    what is padding by a mask, lengths or offsets makes no difference to it. `head` is what its outputs go through.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, parts: Sequence[InputPart], said: tuple[int, ...], width: float, blocks: int = 0) -> None:
        """`width` 1: 64 numbers for each id. `said`: the deployed output's shape, with its batch axis of 1 if any."""
        super().__init__()
        self.parts = tuple(parts)
        self._shape = said
        self.head: nn.Module = nn.Identity()
        outputs = int(np.prod(said))
        self._ids = [i for i, part in enumerate(parts) if part.kind is InputKind.IDS]
        self._numbers = [i for i, part in enumerate(parts) if part.kind is InputKind.NUMBERS or part.fixed]
        heads = max(1, round(4 * width)) if blocks else 1
        size = max(1, round(64 * width / heads)) * heads
        texts = [parts[i] for i in self._ids]
        mean = torch.tensor([value for i in self._numbers for value in parts[i].mean])
        scale = torch.tensor([value for i in self._numbers for value in parts[i].scale])
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        # Nothing but looking up, where not even one multiplication for each output is affordable.
        bare = width < BARE and len(texts) == 1 and not blocks and not len(mean)
        size = outputs if bare else size
        self.single = nn.ModuleList(nn.Embedding(text.rows, size) for text in texts)
        self.pairs = nn.ModuleList(nn.Embedding(text.pairs, size) if text.pairs else nn.Identity() for text in texts)
        self.places = nn.ModuleList(
            nn.Embedding(_placed(text), size) if text.fixed else nn.Identity() for text in texts
        )
        self.positions = nn.ModuleList(nn.Embedding(text.longest, size) for text in texts if blocks)
        self.blocks = nn.ModuleList(_AttentionBlock(size, heads) for _ in range(blocks))
        features = size * (len(texts) + bool(blocks)) + len(mean)
        hidden = 0 if bare else round(64 * width * min(1.0, width))
        self.straight = nn.Identity() if bare else nn.Linear(features, outputs)
        bent = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        self.bent = bent if hidden else None
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.1)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        ids, numbers = self.opened(tensors)
        said = self.read(ids, self.scaled(numbers))
        return said.reshape(-1, *self._shape[1:]) if self._shape[:1] == (1,) else said.reshape(self._shape)

    def opened(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """-> the ids (B, L) of each part that has some, NO_ID where a text has none, and the numbers (B, count) as they
        are given. On the device of the tensors, which need not be the network's.
        """
        ids = [self._text(self.parts[i], tensors[i], tensors) for i in self._ids]
        numbers = [_rows(self.parts[i], tensors[i]).float() for i in self._numbers]
        return ids, torch.cat(numbers, 1) if numbers else ids[0].new_zeros(ids[0].shape[0], 0, dtype=torch.float32)

    def scaled(self, numbers: torch.Tensor) -> torch.Tensor:
        """(B, count) -> the same shape."""
        return ((numbers - self.mean) / self.scale).clamp(-10, 10) if self._numbers else numbers

    def _text(self, part: InputPart, given: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        told = [(self.parts[i].kind, tensors[i]) for i in part.told_by]
        offsets = next((tensor for kind, tensor in told if kind is InputKind.OFFSETS), None)
        if offsets is not None:
            apart: torch.Tensor = texts_of(given.long(), offsets.long())
            return apart
        ids = _rows(part, given).long()
        for kind, tensor in told:
            if kind is InputKind.LENGTHS:
                here = torch.ones_like(ids).cumsum(1) <= tensor.reshape(-1, 1)
            else:
                marked = tensor.reshape(ids.shape) != 0
                here = marked if kind is InputKind.MASK else ~marked
            ids = torch.where(here, ids, NO_ID)
        return ids

    def read(self, texts: Sequence[torch.Tensor], numbers: torch.Tensor) -> torch.Tensor:
        """-> (B, outputs)."""
        tokens = [self._tokens(place, ids) for place, ids in enumerate(texts)]  # (B, L, size) each
        heres = [ids != NO_ID for ids in texts]
        features = [_mean(x, here) for x, here in zip(tokens, heres, strict=True)]
        if len(self.blocks):
            placed = [
                x + self.positions[place]((here.cumsum(1) - 1).clamp(0, self.parts[self._ids[place]].longest - 1))
                for place, (x, here) in enumerate(zip(tokens, heres, strict=True))
            ]
            x, here = torch.cat(placed, 1), torch.cat(heres, 1)
            for block in self.blocks:
                x = block(x, here)
            features.append(_mean(x, here))
        read = torch.cat([*features, numbers], 1)
        numbers = self.straight(read)
        said: torch.Tensor = self.head(numbers if self.bent is None else numbers + self.bent(read))
        return said

    def _tokens(self, place: int, ids: torch.Tensor) -> torch.Tensor:
        part = self.parts[self._ids[place]]
        x: torch.Tensor = self.single[place](ids.remainder(part.rows))
        if part.pairs:
            before = functional.pad(ids, (1, 0), value=NO_ID)[:, :-1]
            x = x + self.pairs[place]((before * _MIX + ids * _STIR).remainder(part.pairs))
        if part.fixed:
            own = _placed(part) // part.fixed
            x = x + self.places[place](ids.remainder(own) + own * (torch.ones_like(ids).cumsum(1) - 1))
        return x


BARE = 1 / 48
"""A bag narrower than this would be one number for each id."""
_MIX, _STIR = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85  # odd, and with ones and zeros mixed: spread pairs over the rows


class _AttentionBlock(nn.Module):
    """Attention and two layers, each beside a straight way past it (pre-norm)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(size)
        self.asked = nn.Linear(size, 3 * size)
        self.answered = nn.Linear(size, size)
        self.layers = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """(B, L, size), (B, L) -> (B, L, size)."""
        batch, length, size = x.shape
        asked = self.asked(self.norm(x)).reshape(batch, length, 3, self._heads, size // self._heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, size / heads)
        # Not minus infinity: a text of no ids at all has nothing to look at, which must not end in NaN.
        hidden = (~here).to(x.dtype)[:, None, None, :] * -1e4
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
        x = x + self.answered(seen.transpose(1, 2).reshape(batch, length, size))
        return x + self.layers(x)  # type: ignore[no-any-return]


def _mean(x: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """(B, L, size) -> (B, size), over what is here."""
    count = here.to(x.dtype).sum(1, keepdim=True).clamp_min(1.0)
    return x.masked_fill(~here.unsqueeze(-1), 0.0).sum(1) / count


def _rows(part: InputPart, tensor: torch.Tensor) -> torch.Tensor:
    """(B, all else), B being 1 where there is no batch axis."""
    tensor = _real(tensor)
    if part.varying:
        tensor = tensor.float()
        mean, spread = tensor.mean(part.varying), tensor.std(part.varying, unbiased=False)
        parts = [each.reshape(each.shape[0] if part.batched else 1, -1) for each in (mean, spread)]
        return torch.cat(parts, 1)
    return tensor.reshape(tensor.shape[0], -1) if part.batched else tensor.reshape(1, -1)


def _real(numbers: torch.Tensor) -> torch.Tensor:
    """Complex numbers, a spectrum say, as two each."""
    return torch.view_as_real(numbers) if numbers.is_complex() else numbers


def _placed(part: InputPart) -> int:
    return part.fixed * max(1, min(part.rows, MOST_ROWS // max(1, part.fixed)))


@torch.jit.script
def texts_of(ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(all ids in a row,), (B,) where each text begins, perhaps with the end of the last -> (B, longest), padded.

    A script, since a trace would take the longest text of one call for that of all.
    """
    if len(offsets) > 1 and bool(offsets[-1] == len(ids)):
        offsets = offsets[:-1]
    ends = torch.cat([offsets[1:], torch.tensor([len(ids)], device=offsets.device, dtype=offsets.dtype)])
    lengths = ends - offsets
    longest = int(lengths.max()) if len(lengths) else 0
    places = torch.arange(longest, device=ids.device)
    here = places < lengths[:, None]
    if len(ids) == 0:
        return torch.full(here.shape, -(1 << 62), dtype=torch.long, device=ids.device)
    picked = ids[(offsets[:, None] + places).clamp(max=len(ids) - 1)]
    return torch.where(here, picked, torch.full_like(picked, -(1 << 62)))


class TextAdapter(nn.Module):
    """A TextNetwork that is called with calls, (n) -> (n, *output). `network` is what is packed."""

    def __init__(self, network: TextNetwork, said: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.plain = True
        self._said = said

    def forward(self, calls: Inputs) -> torch.Tensor:
        return self.bound(calls)()

    def bound(self, calls: Inputs) -> Callable[[], torch.Tensor]:
        """Prepare the inputs; the returned function runs the network alone."""
        assert isinstance(calls, Calls)
        opened = calls.kept.setdefault(self.network.parts, {})
        for row in calls.rows:
            if row not in opened:
                opened[row] = self._opened(calls.to("cpu").tensors(row))
        each = [opened[row] for row in calls.rows]
        device = self.network.mean.device
        texts = [pad_sequence([*ids], True, NO_ID).to(device) for ids in zip(*(ids for ids, _ in each), strict=True)]
        numbers = self.network.scaled(torch.cat([numbers for _, numbers in each]).to(device))
        return lambda: self.network.read(texts, numbers).float().reshape(-1, *self._said)

    def _opened(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        ids, numbers = self.network.opened(tensors)
        return [each[0][each[0] != NO_ID] for each in ids], numbers
