"""The encoders: from the model inputs of a group's slots to the input of a parity model, on the inputs' own device.

`sum` adds floating tensors of one shape; `concat` shrinks and tiles images. What cannot be encoded is refused with a
reason. Workers and training use the same functions. Knows torch and containers. Knows nothing of requests or models.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from ts_parity.codes import ErasureCode
from ts_parity.errors import NotCodable
from ts_parity.worker.suggestions import suggestion
from ts_parity.worker.tensor_conversion import (
    any_tensor,
    floating_tensor,
    from_tensor,
    is_numbers,
    non_floating_dtype,
    same,
)
from ts_parity.worker.watches import ModelCall

Place = tuple[Any, ...]
"""Where a value is in the arguments of a call: ("args", 0) or ("kwargs", "pixel_values")."""
Shape = tuple[tuple[int, ...], torch.dtype]


def combine(inputs: Sequence[torch.Tensor | None], coefficients: Sequence[float]) -> torch.Tensor:
    """sum_i coefficients[i] * inputs[i], an empty slot counting as zeros. No division by k, as in the paper.

    Half precision is added in float32 and comes back in the inputs' dtype.
    """
    present = [(c, x) for c, x in zip(coefficients, inputs, strict=True) if x is not None]
    if not present:
        raise NotCodable("a group needs at least one member")
    dtype = present[0][1].dtype
    wide = torch.promote_types(dtype, torch.float32)
    total = present[0][1].to(wide) * present[0][0]
    for coefficient, tensor in present[1:]:
        total = total.add(tensor.to(wide), alpha=coefficient)
    return total.to(dtype)


def tile(inputs: torch.Tensor) -> torch.Tensor:
    """(..., k, *image) -> (..., *image): k images, the last two axes height and width, shrunk and tiled into one.

    k = 2: halves of the width, slot 0 left. k = 4: quarters, slots 0 and 1 above. Each channel is tiled by itself. An
    image has at least three axes (channels first, a batch axis of 1 before them or not); here it is the last three.
    Raise NotCodable for a size that does not halve.
    """
    k, height, width = inputs.shape[-4], inputs.shape[-2], inputs.shape[-1]
    rows, columns = (1, 2) if k == 2 else (2, 2)
    if height % rows or width % columns:
        raise NotCodable(f"code concat with k = {k} needs images of even height and width, not {height} x {width}")
    flat = inputs.reshape(-1, *inputs.shape[-3:]).float()
    # As image libraries do it: the filter grows with the scale, so every pixel counts.
    small = functional.interpolate(
        flat, (height // rows, width // columns), mode="bilinear", align_corners=False, antialias=True
    )
    small = small.reshape(*inputs.shape[:-4], rows, columns, *small.shape[-3:])  # (..., rows, columns, C, h, w)
    tiled = small.movedim((-5, -4), (-4, -2))  # (..., C, rows, h, columns, w)
    return tiled.reshape(*inputs.shape[:-4], inputs.shape[-3], height, width).to(inputs.dtype)


def combine_by(code: ErasureCode, row: int, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The input of the parity model of this row of the code. None is an empty slot; there may be fewer than k."""
    padded = [*inputs, *[None] * (code.k - len(inputs))]
    if code.name != "concat":
        return combine(padded, code.coefficients[row])
    first = next((x for x in padded if x is not None), None)
    if first is None:
        raise NotCodable("a group needs at least one member")
    check_images(tuple(first.shape))
    stacked = torch.stack([torch.zeros_like(first) if x is None else x for x in padded], dim=-4)
    return tile(stacked)


def check_images(shape: tuple[int, ...]) -> None:
    """Raise NotCodable unless a model input of this shape can be an image."""
    if len(shape) < 3:
        raise NotCodable(
            f"code concat needs images, (channels, height, width) or a batch of them, not a model input of {shape}"
        )


def model_input(call: ModelCall) -> torch.Tensor:
    """The one floating tensor of a call. Raise NotCodable if there is none, or more."""
    return _tensor_at(call, _input_place([call]))


def tensors(call: ModelCall) -> dict[Place, torch.Tensor]:
    """The arguments of a call that hold numbers, in order: a student's inputs."""
    found = {place: any_tensor(leaf) for place, leaf in _leaves(call)}
    return {place: tensor for place, tensor in found.items() if tensor is not None}


def with_tensors(call: ModelCall, given: Mapping[Place, torch.Tensor]) -> ModelCall:
    """The same call with other numbers in these places, in the same kinds of containers."""
    for place, tensor in given.items():
        call = _with(call, place, tensor)
    return call


def check_one_input(calls: Sequence[ModelCall]) -> None:
    """Raise NotCodable unless these calls differ in at most one floating tensor, which an encoder can combine."""
    _input_place(calls)


def check_other_arguments(one: ModelCall, other: ModelCall) -> None:
    """Raise NotCodable unless two calls differ only in tensors, which are all that a network is given."""
    leaves, others = dict(_leaves(one)), dict(_leaves(other))
    if set(leaves) != set(others):
        raise NotCodable("the model was called with different arguments for different requests; use code exact")
    for place, leaf in leaves.items():
        if any_tensor(leaf) is None and not same(leaf, others[place]):
            raise NotCodable(
                f"the model's argument {place_name(place)} differs from request to request, and is no "
                "tensor that a network could be given; use code exact"
            )


def in_dtype(call: ModelCall, dtype: torch.dtype | None, device: torch.device | None = None) -> ModelCall:
    """The same call with floating tensors in this dtype and all tensors on this device. None: unchanged."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device or value.device, dtype if dtype and value.is_floating_point() else value.dtype)
        if type(value) in (list, tuple):
            return type(value)(map(moved, value))
        if type(value) is dict:
            return {name: moved(child) for name, child in value.items()}
        return value

    return replace(call, args=moved(call.args), kwargs=moved(call.kwargs))


def input_shapes(call: ModelCall) -> tuple[Shape, ...]:
    """Shapes and dtypes of a call's tensors. Slots of one group agree in them."""
    tensors = (leaf if isinstance(leaf, torch.Tensor) else floating_tensor(leaf) for _, leaf in _leaves(call))
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors if tensor is not None)


def mismatched_slots(calls: Mapping[int, ModelCall]) -> dict[int, str]:
    """Slots whose inputs have another shape than most of the group's -> why each cannot be coded with it."""
    shapes = {slot: input_shapes(call) for slot, call in calls.items()}
    if len(set(shapes.values())) <= 1:
        return {}
    common = Counter(shapes.values()).most_common(1)[0][0]
    return {
        slot: f"model inputs of {_listed(shape)} cannot be coded with the group's {_listed(common)}"
        for slot, shape in shapes.items()
        if shape != common
    }


def non_finite_slots(calls: Mapping[int, ModelCall]) -> dict[int, str]:
    """Slots with NaN or infinity in their inputs -> why. In a sum they would spoil the whole group."""
    if not calls:
        return {}
    place = _input_place([*calls.values()])  # other arguments, such as attention masks, may hold infinity
    # One answer for all: on a GPU each question waits until everything before it has run.
    finite = torch.stack([torch.isfinite(_tensor_at(call, place)).all() for call in calls.values()]).tolist()
    return {
        slot: "the model's input is not finite (NaN or infinity), which cannot be coded with others"
        for slot, is_finite in zip(calls, finite, strict=True)
        if not is_finite
    }


def encode(calls: Sequence[ModelCall | None], code: ErasureCode, row: int = 0) -> ModelCall:
    """The parity model's call: the same as the slots' calls, with the combined input in place of theirs.

    All other arguments must be the same in all slots. Raise NotCodable with a reason.
    """
    present = [call for call in calls if call is not None]
    place = _input_place(present)
    inputs = [None if call is None else _tensor_at(call, place) for call in calls]
    return _with(present[0], place, combine_by(code, row, inputs))


def _tensor_at(call: ModelCall, place: Place) -> torch.Tensor:
    tensor = floating_tensor(dict(_leaves(call))[place])
    assert tensor is not None
    return tensor


def _with(call: ModelCall, place: Place, tensor: torch.Tensor) -> ModelCall:
    held = from_tensor(dict(_leaves(call))[place], tensor)
    arguments = _replaced({"args": call.args, "kwargs": call.kwargs}, place, held)
    return replace(call, args=arguments["args"], kwargs=arguments["kwargs"])


def _input_place(calls: Sequence[ModelCall]) -> Place:
    """The place of the input to combine: the only floating tensor, or the only one that differs between slots."""
    if not calls:
        raise NotCodable("a group needs at least one member")
    leaves = [dict(_leaves(call)) for call in calls]
    first = leaves[0]
    if calls[0].input:
        return _declared_place(calls[0].input, leaves)
    if any(set(other) != set(first) for other in leaves[1:]):
        raise NotCodable("the model was called with different arguments for different requests")
    floating = [place for place, leaf in first.items() if floating_tensor(leaf) is not None]
    # The only floating argument is the input, whatever it holds. On a GPU comparing it would wait for its values.
    compared = first.keys() - set(floating) if len(floating) == 1 else first.keys()
    constant = {place for place in compared if len(calls) > 1 and all(same(first[place], o[place]) for o in leaves[1:])}
    for place, leaf in first.items():
        _check_other(place, leaf, place in constant, len(calls))
    if len(floating) == 1:
        return floating[0]
    varying = [place for place in floating if place not in constant]
    if len(varying) == 1:
        return varying[0]
    listed = f" ({', '.join(map(place_name, floating))})" if floating else ""
    line = (
        f"; if only one of them depends on the request, {suggestion(input=place_name(varying[0]))}" if varying else ""
    )
    raise NotCodable(
        f"the model was called with {len(floating)} floating tensors{listed}, of which {len(varying)} differ from "
        f"slot to slot; code sum needs exactly one; use code student or exact{line}"
    )


def _declared_place(declared: str, leaves: Sequence[Mapping[Place, Any]]) -> Place:
    """The place of the input that the archive declares; all other arguments must be equal."""
    for place, leaf in leaves[0].items():
        if place_name(place) == declared and floating_tensor(leaf) is not None:
            if any(not same(leaves[0].get(p), o.get(p)) for o in leaves[1:] for p in {*leaves[0], *o} - {place}):
                raise NotCodable(f"input: {declared!r} is declared, but another argument of the model differs as well")
            return place
    there = (
        ", ".join(place_name(place) for place, leaf in leaves[0].items() if floating_tensor(leaf) is not None) or "none"
    )
    raise NotCodable(f"input: {declared!r} is declared, but is no floating argument of the model; there are: {there}")


def _check_other(place: Place, leaf: Any, constant: bool, slots: int) -> None:
    if constant or floating_tensor(leaf) is not None:
        return
    if dtype := non_floating_dtype(leaf):
        if not dtype.startswith(("int", "uint", "bool", "torch.")):
            raise NotCodable(
                f"the model's argument {place_name(place)} holds other things than numbers ({dtype}), and only "
                "floating inputs can be coded with sum or concat; use code exact"
            )
        raise NotCodable(
            f"the model was called with a tensor of {dtype} at {place_name(place)}: integers (token ids, indices) are "
            "never added, only floating inputs can be coded with sum or concat; use code student or exact"
        )
    if slots > 1:
        raise NotCodable(f"the model's argument {place_name(place)} differs from request to request")


def _leaves(call: ModelCall) -> Iterator[tuple[Place, Any]]:
    for index, value in enumerate(call.args):
        yield from _walk(value, ("args", index))
    for name, value in call.kwargs.items():
        yield from _walk(value, ("kwargs", name))


def _walk(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if type(value) in (list, tuple) and not is_numbers(value):
        for index, child in enumerate(value):
            yield from _walk(child, (*place, index))
    elif isinstance(value, MutableMapping):  # a tokenizer's result is no dict
        for name, child in value.items():
            yield from _walk(child, (*place, name))
    else:
        yield place, value


def _replaced(value: Any, place: Place, new: torch.Tensor) -> Any:
    if not place:
        return new
    key, *rest = place
    if isinstance(value, MutableMapping):
        other = copy.copy(value)
        other[key] = _replaced(value[key], tuple(rest), new)
        return other
    return type(value)(_replaced(child, tuple(rest), new) if i == key else child for i, child in enumerate(value))


def place_name(place: Place) -> str:
    """A place as messages name it."""
    return ".".join(map(str, place))


def _listed(shapes: tuple[Shape, ...]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {shape}" for shape, dtype in shapes) or "no tensors"
