"""A model's output: its one floating part, which is coded, and how to build the same container around another one.

Values that cannot be added and subtracted, such as integers (ids, class indices) and texts, are never coded. They may
be there beside the floating part. When an answer is made from a raw output, user code gets a `MissingPart` in their
place, which it may pass on but not use. Knows torch, numpy and containers. Knows nothing of handlers or requests.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from ts_parity.errors import NotCodable, with_article
from ts_parity.wire import MAX_DIMENSIONS, Array
from ts_parity.worker.missing_part import MissingPart

_WIRE_DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

_HALF = (torch.float16, torch.bfloat16)
_DEEPEST = 6
_USUAL = ("logits", "scores", "probabilities", "probs", "predictions", "prediction", "out", "output", "embedding")
"""Usual names of the part that is coded, if there are several."""

Place = tuple[str, ...]
Refuse = Callable[[str], NoReturn]
"""Called with the place of a part that user code has used although no raw output carries it. Raises."""
_Build = Callable[[Any, Refuse], Any]
"""(the coded part, made from a raw output; refuse) -> this part of the output."""


class SeveralParts(NotCodable):
    """The archive must declare which part is coded. `parts`: their places."""

    def __init__(self, message: str, parts: tuple[str, ...]) -> None:
        super().__init__(message)
        self.parts = parts


def _refuse(place: str) -> NoReturn:
    raise NotCodable(f"the handler uses {place} of the model's output beside the part that is coded")


@dataclass(frozen=True)
class Container:
    """What surrounds the raw output: `rebuild(raw)` is a new output as the model would have returned it."""

    make: Callable[[Array], Any]
    build: _Build
    computed_in: str = ""
    """The output's own dtype, if it is coarser than the raw output's float32 or float64; else empty."""

    def rebuild(self, raw: Array, refuse: Refuse = _refuse) -> Any:
        """Raise NotCodable if the output's type cannot be built again."""
        try:
            return self.build(self.make(raw), refuse)
        except (TypeError, ValueError, AttributeError) as error:
            raise NotCodable(f"the model's output cannot be made again around another raw output: {error}") from error


@dataclass(frozen=True)
class _Leaf:
    where: Place
    value: Any
    what: Callable[[], str]
    array: Callable[[], Array]
    build: Callable[[Array], Any]
    computed_in: str = ""


@dataclass(frozen=True)
class _UncodablePart:
    """A part that is not floating, and why it cannot be coded."""

    where: Place
    why: str


def take(output: Any, declared: str = "") -> tuple[Array, Container]:
    """-> (raw output, copied to the CPU before user code can change it; its container). Raise NotCodable.

    `declared`: the place of the part that is coded, where there are several (`logits`, `0`, `scores.1`).
    """
    parts = _Parts()
    build = parts.node(output, ())
    leaf = _chosen(parts, declared)
    raw = leaf.array()
    if raw.ndim > MAX_DIMENSIONS:
        raise NotCodable(f"the model's output has {raw.ndim} dimensions; at most {MAX_DIMENSIONS} can be coded")
    return raw, Container(leaf.build, build(leaf), leaf.computed_in)


def floating_leaf(output: Any, declared: str = "") -> torch.Tensor:
    """The part that is coded, gradients and all: `take`, for training. Raise NotCodable without one.

    For a model that is no torch module: its array as a tensor.
    """
    parts = _Parts()
    parts.node(output, ())
    leaf = _chosen(parts, declared)
    return leaf.value if isinstance(leaf.value, torch.Tensor) else torch.from_numpy(leaf.array())


def _chosen(parts: _Parts, declared: str) -> _Leaf:
    leaves = parts.leaves
    wanted = _place(declared)
    if wanted and [leaf.where for leaf in leaves] != [()]:  # a network made by training returns this part alone
        for leaf in leaves:
            if leaf.where == wanted:
                return leaf
        there = ", ".join(_place_name(leaf.where) for leaf in leaves) or "none"
        raise NotCodable(
            f"output: {declared!r} is declared, but is no floating part of the model's output; there are: {there}"
        )
    if not leaves:
        whys = [other.why for other in parts.others]
        raise NotCodable(whys[0] if whys else "the model's output holds no floating tensor, array or list")
    if len(leaves) > 1:
        listed = ", ".join(f"{_place_name(leaf.where)} {leaf.what()}" for leaf in leaves[:8])
        places = sorted((".".join(leaf.where) for leaf in leaves), key=_usual_first)
        raise SeveralParts(
            f"the model's output holds {len(leaves)} floating parts ({listed}); a code needs exactly one",
            tuple(places),
        )
    return leaves[0]


def _usual_first(place: str) -> int:
    name = place.rpartition(".")[2]
    return _USUAL.index(name) if name in _USUAL else len(_USUAL)


def _place(declared: str) -> Place:
    """Parse logits, 0, scores.1, or the same in Python's notation: .logits, [0], ['scores'][1]."""
    dotted = re.sub(r"\[\s*['\"]?([^\]'\"]*)['\"]?\s*\]", r".\1", declared)
    return tuple(name for name in dotted.split(".") if name)


def _place_name(where: Place) -> str:
    return f"output {'.'.join(where)}" if where else "its root"


_Bound = Callable[[_Leaf], _Build]
"""Gives the builder of a part, once it is known which leaf is coded."""


class _Parts:
    """Walks an output, collects its floating leaves and other parts, and makes the builder of each part."""

    def __init__(self) -> None:
        self.leaves: list[_Leaf] = []
        self.others: list[_UncodablePart] = []
        self._seen: dict[int, _Leaf] = {}

    def node(self, value: Any, where: Place) -> _Bound:
        if value is None:
            return lambda coded: lambda made, refuse: None
        try:
            leaf = _leaf(value, where)
        except NotCodable as refusal:
            return self._other(where, str(refusal))
        if leaf is None:
            return self._container(value, where)
        if isinstance(value, (torch.Tensor, np.ndarray)):
            leaf = self._seen.setdefault(id(value), leaf)  # an output may contain one tensor twice
        if leaf.where == where:
            self.leaves.append(leaf)
        return self._leaf_node(leaf)

    def _leaf_node(self, leaf: _Leaf) -> _Bound:
        def bound(coded: _Leaf) -> _Build:
            return (lambda made, refuse: made) if coded is leaf else _missing(leaf.where)

        return bound

    def _other(self, where: Place, why: str) -> _Bound:
        self.others.append(_UncodablePart(where, why))
        return lambda coded: _missing(where)

    def _container(self, value: Any, where: Place) -> _Bound:
        kind, fields = type(value), None
        if len(where) < _DEEPEST:
            if isinstance(value, (tuple, list)):
                return self._sequence(value, where)
            fields = _fields(value)
        if fields is None:
            return self._other(
                where,
                f"the model's output holds {with_article(kind.__name__)} at {_place_name(where)}, which cannot be "
                "coded",
            )
        before = len(self.leaves)
        nodes = {name: self.node(child, (*where, str(name))) for name, child in fields.items()}
        if len(self.leaves) == before and not isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            return lambda coded: _missing(where)  # an object without a floating part is replaced whole
        if isinstance(value, Mapping):
            keyed = dataclasses.is_dataclass(kind)

            def mapping(coded: _Leaf) -> _Build:
                builds = {name: node(coded) for name, node in nodes.items()}

                def build(made: Any, refuse: Refuse) -> Any:
                    parts = {name: part(made, refuse) for name, part in builds.items()}
                    return kind(**parts) if keyed else kind(parts.items())

                return build

            return mapping
        return self._object(value, nodes)

    def _sequence(self, value: Any, where: Place) -> _Bound:
        kind = type(value)
        nodes = [self.node(child, (*where, str(i))) for i, child in enumerate(value)]

        def sequence(coded: _Leaf) -> _Build:
            builds = [node(coded) for node in nodes]

            def build(made: Any, refuse: Refuse) -> Any:
                parts = [part(made, refuse) for part in builds]
                # A named tuple takes its fields as arguments; torch's return types take one sequence.
                return kind(*parts) if hasattr(kind, "_fields") else kind(parts)

            return build

        return sequence

    def _object(self, value: Any, nodes: Mapping[str, _Bound]) -> _Bound:
        """An object of the user's own: copied, never constructed, since its constructor's arguments are unknown."""
        skeleton = copy.copy(value)
        for name in nodes:
            object.__setattr__(skeleton, name, None)  # do not keep what it held

        def bound(coded: _Leaf) -> _Build:
            builds = {name: node(coded) for name, node in nodes.items()}

            def build(made: Any, refuse: Refuse) -> Any:
                another = copy.copy(skeleton)
                for name, part in builds.items():
                    object.__setattr__(another, name, part(made, refuse))
                return another

            return build

        return bound


def _missing(where: Place) -> _Build:
    return lambda made, refuse: MissingPart(_place_name(where), refuse)


def _fields(value: Any) -> dict[Any, Any] | None:
    """The fields of a container, by name; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (type, torch.nn.Module, str, bytes, int)):
        return None
    names = [*getattr(value, "__dict__", {}), *_slots(type(value))]
    return {name: getattr(value, name) for name in names if hasattr(value, name)} or None


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield name


def _leaf(value: Any, where: Place) -> _Leaf | None:
    """None for a container. Raise NotCodable for numbers of another kind, and for non-numbers."""
    if isinstance(value, torch.Tensor):
        return _tensor_leaf(value, where)
    if isinstance(value, (np.ndarray, np.generic)):
        return _numpy_leaf(value, where)
    if isinstance(value, float):
        return _Leaf(where, value, lambda: "float", lambda: np.array(value), float)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple) and _is_numbers(value):
        return _list_leaf(value, where)
    if (keys := _keys_of_numbers(value)) is not None:
        return _table_leaf(value, keys, where)
    if isinstance(value, int):
        raise NotCodable(f"the model's output holds an integer at {_place_name(where)}: integers are never coded")
    return None


def _tensor_leaf(tensor: torch.Tensor, where: Place) -> _Leaf:
    dtype, device = tensor.dtype, tensor.device
    if dtype not in _WIRE_DTYPES or tensor.layout is not torch.strided or tensor.is_nested:
        raise NotCodable(
            f"the model's output holds {with_article(_name(dtype))} tensor ({tensor.layout}) at {_place_name(where)}; "
            "only dense float16, bfloat16, float32 and float64 can be coded"
        )
    return _Leaf(
        where,
        tensor,
        lambda: f"{_name(dtype)} {tuple(tensor.shape)}",
        lambda: to_array(tensor),
        lambda raw: torch.from_numpy(np.array(raw)).to(device=device, dtype=dtype),
        _name(dtype) if dtype in _HALF else "",
    )


def to_array(tensor: torch.Tensor) -> Array:
    """A copy on the CPU in the dtype of the wire: float32, or float64 if the tensor is float64."""
    array: Array = tensor.detach().to("cpu", _WIRE_DTYPES[tensor.dtype], copy=True).contiguous().numpy()
    return array


def _numpy_leaf(value: Any, where: Place) -> _Leaf:
    if value.dtype not in (np.float16, np.float32, np.float64):
        what = f"{value.dtype} numbers" if value.dtype.kind in "iufbc" else "no numbers"
        raise NotCodable(
            f"the model's output holds {what} at {_place_name(where)}: a code needs floating ones, such as the "
            "scores of classes (predict_proba)"
        )
    dtype, scalar = value.dtype, isinstance(value, np.generic)

    def build(raw: Array) -> Any:
        array = np.array(raw, dtype=dtype)
        return array[()] if scalar else array

    wire = np.float32 if dtype == np.float16 else dtype
    computed_in = "float16" if dtype == np.float16 else ""
    what = f"{dtype} {value.shape}"
    return _Leaf(where, value, lambda: what, lambda: np.array(value, dtype=wire), build, computed_in)


def _list_leaf(value: Any, where: Place) -> _Leaf:
    if not all(isinstance(number, float) for number in _numbers(value)):
        raise NotCodable(f"the model's output holds integers in a list at {_place_name(where)}: they are never coded")
    try:
        array = np.array(value, dtype=np.float64)
    except ValueError:
        raise NotCodable(f"the model's output holds a ragged list at {_place_name(where)}") from None
    kind = type(value)
    return _Leaf(where, value, lambda: f"list {array.shape}", lambda: array, lambda raw: kind(raw.tolist()))


def _table_leaf(value: Any, keys: list[Any], where: Place) -> _Leaf:
    """Numbers by name, or a list of such rows, as converted scikit-learn models return: {"cat": 0.9, "dog": 0.1}."""
    rows = value if isinstance(value, list) else [value]
    array = np.array([[row[key] for key in keys] for row in rows], dtype=np.float64)

    def build(raw: Array) -> Any:
        made = [dict(zip(keys, row, strict=True)) for row in raw.reshape(-1, len(keys)).tolist()]
        return made if isinstance(value, list) else made[0]

    shaped = array if isinstance(value, list) else array[0]
    return _Leaf(where, value, lambda: f"numbers by name {shaped.shape}", lambda: shaped, build)


def _keys_of_numbers(value: Any) -> list[Any] | None:
    """The keys of a dictionary of at least two floats, or of each one in a list; None for anything else."""
    rows = value if type(value) is list and value else [value]
    if not all(type(row) is dict and len(row) > 1 and row.keys() == rows[0].keys() for row in rows):
        return None
    return list(rows[0]) if all(isinstance(number, float) for row in rows for number in row.values()) else None


def _is_numbers(value: Any) -> bool:
    """Whether it is a non-empty list of numbers, or a tuple of floats; other tuples may consist of parts."""
    numbers = list(_numbers(value))
    kinds = float if isinstance(value, tuple) else (int, float)
    return bool(numbers) and all(isinstance(number, kinds) for number in numbers)


def _numbers(value: Any) -> Iterator[Any]:
    if type(value) in (list, tuple):
        for child in value:
            yield from _numbers(child)
    else:
        yield value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
