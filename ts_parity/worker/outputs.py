"""A model's output: the one floating leaf in it, and how to build the same container around another leaf.

What cannot be added and subtracted is refused here, once: integers (ids, class indices), several leaves, none.
Knows torch, numpy and containers; knows nothing of handlers or requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ts_parity.errors import NotCodable
from ts_parity.wire import MAX_DIMENSIONS, Array
from ts_parity.worker.leaves import is_numbers

_WIRE_DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Container:
    """What surrounds the raw output: rebuild(raw) is a fresh output as the model would have returned it."""

    rebuild: Callable[[Array], Any]
    computed_in: str = ""
    """The output's own dtype where the raw output, which is float32 or float64, is finer; else empty."""


@dataclass(frozen=True)
class _Leaf:
    where: str
    what: Callable[[], str]
    array: Callable[[], Array]
    build: Callable[[Array], Any]
    computed_in: str = ""


def take(output: Any) -> tuple[Array, Container]:
    """-> (raw output, copied to the CPU before user code can change it; its container). Raise NotCodable."""
    leaves: list[_Leaf] = []
    node = _node(output, "", leaves)
    if not leaves:
        raise NotCodable("the model's output holds no floating tensor, array or list")
    if len(leaves) > 1:
        listed = ", ".join(f"{leaf.where or 'output'} {leaf.what()}" for leaf in leaves)
        raise NotCodable(f"the model's output holds {len(leaves)} floating parts ({listed}); a code needs exactly one")
    raw = leaves[0].array()
    if raw.ndim > MAX_DIMENSIONS:
        raise NotCodable(f"the model's output has {raw.ndim} dimensions; at most {MAX_DIMENSIONS} can be coded")
    return raw, Container(node, leaves[0].computed_in)


def floating_leaf(output: Any) -> torch.Tensor:
    """The one floating tensor in an output, gradients and all: `take`, for training. Raise NotCodable without one.

    Of a model that is no torch module, its array as a tensor.
    """
    found = _first_floating(output)
    return torch.from_numpy(take(output)[0]) if found is None else found


def _first_floating(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    fields = _fields(output)
    children = fields.values() if fields is not None else output if isinstance(output, (tuple, list)) else ()
    return next((found for child in children if (found := _first_floating(child)) is not None), None)


def _node(value: Any, where: str, leaves: list[_Leaf]) -> Callable[[Array], Any]:
    """Collect the leaves and return the builder of this part of the output."""
    if value is None:
        return _nothing
    if isinstance(value, torch.Tensor):
        return _grown(_tensor_leaf(value, where), leaves)
    if isinstance(value, (np.ndarray, np.generic)):
        return _grown(_numpy_leaf(value, where), leaves)
    if isinstance(value, float):
        return _grown(_Leaf(where, lambda: "float", lambda: np.array(value), float), leaves)
    if isinstance(value, list) and is_numbers(value):
        return _grown(_list_leaf(value, where), leaves)
    if isinstance(value, int):
        raise NotCodable(f"the model's output holds an integer at {where or 'its root'}: integers are never coded")
    return _container(value, where, leaves)


def _grown(leaf: _Leaf, leaves: list[_Leaf]) -> Callable[[Array], Any]:
    leaves.append(leaf)
    return leaf.build


def _nothing(raw: Array) -> None:
    return None


def _container(value: Any, where: str, leaves: list[_Leaf]) -> Callable[[Array], Any]:
    kind = type(value)
    if isinstance(value, (tuple, list)):
        children = [_node(child, f"{where}[{i}]", leaves) for i, child in enumerate(value)]
        if hasattr(kind, "_fields"):  # a named tuple
            return lambda raw: kind(*(child(raw) for child in children))
        return lambda raw: kind(child(raw) for child in children)
    fields = _fields(value)
    if fields is None:
        raise NotCodable(f"the model's output holds a {kind.__name__} at {where or 'its root'}, which cannot be coded")
    parts = {name: _node(child, f"{where}[{name!r}]", leaves) for name, child in fields.items()}
    if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        return lambda raw: kind((name, part(raw)) for name, part in parts.items())
    return lambda raw: kind(**{name: part(raw) for name, part in parts.items()})


def _fields(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _tensor_leaf(tensor: torch.Tensor, where: str) -> _Leaf:
    dtype, device = tensor.dtype, tensor.device
    if dtype not in _WIRE_DTYPES or tensor.layout is not torch.strided or tensor.is_nested:
        raise NotCodable(
            f"the model's output holds a {_name(dtype)} tensor ({tensor.layout}) at {where or 'its root'}; "
            "only dense float16, bfloat16, float32 and float64 can be coded"
        )
    return _Leaf(
        where,
        lambda: f"{_name(dtype)} {tuple(tensor.shape)}",
        lambda: to_array(tensor),
        lambda raw: torch.from_numpy(np.array(raw)).to(device=device, dtype=dtype),
        _name(dtype) if dtype in _HALF else "",
    )


def to_array(tensor: torch.Tensor) -> Array:
    """A copy on the CPU in the dtype that travels: float32, or float64 where the tensor is float64."""
    array: Array = tensor.detach().to("cpu", _WIRE_DTYPES[tensor.dtype], copy=True).contiguous().numpy()
    return array


def _numpy_leaf(value: Any, where: str) -> _Leaf:
    if value.dtype not in (np.float16, np.float32, np.float64):
        raise NotCodable(f"the model's output holds {value.dtype} numbers at {where or 'its root'}: not floating")
    dtype, scalar = value.dtype, isinstance(value, np.generic)

    def build(raw: Array) -> Any:
        array = np.array(raw, dtype=dtype)
        return array[()] if scalar else array

    wire = np.float32 if dtype == np.float16 else dtype
    computed_in = "float16" if dtype == np.float16 else ""
    return _Leaf(where, lambda: f"{dtype} {value.shape}", lambda: np.array(value, dtype=wire), build, computed_in)


def _list_leaf(value: list[Any], where: str) -> _Leaf:
    if not all(type(number) is float for number in _numbers(value)):
        raise NotCodable(f"the model's output holds integers in a list at {where or 'its root'}: they are never coded")
    try:
        array = np.array(value, dtype=np.float64)
    except ValueError:
        raise NotCodable(f"the model's output holds a ragged list at {where or 'its root'}") from None
    return _Leaf(where, lambda: f"list {array.shape}", lambda: array, lambda raw: raw.tolist())


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for child in value:
            yield from _numbers(child)
    else:
        yield value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
