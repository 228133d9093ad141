"""A placeholder, in a rebuilt output, for a part that the model returned beside the raw output.

No raw output carries such parts (class indices, texts), so nobody knows their values. User code may pass the
placeholder on or drop it; any other use ends the run with a refusal that names the part. Knows nothing of outputs or
codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class MissingPart:
    """Any use of it calls `refuse(place)`, which raises."""

    __slots__ = ("_place", "_refuse")

    def __init__(self, place: str, refuse: Callable[[str], NoReturn]) -> None:
        self._place = place
        self._refuse = refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python itself reads these, for example to copy a container
        refuse_use(self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for found in missing_parts_in((args, kwargs)):
            refuse_use(found)


def refuse_use(missing: MissingPart) -> NoReturn:
    missing._refuse(missing._place)


def missing_parts_in(value: Any) -> Iterator[MissingPart]:
    """The placeholders in plain containers, such as an answer."""
    if type(value) is MissingPart:
        yield value
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from missing_parts_in(child)
    elif isinstance(value, dict):
        for child in value.values():
            yield from missing_parts_in(child)


def _refusing(self: MissingPart, *args: Any, **kwargs: Any) -> Any:
    refuse_use(self)


_OPERATORS = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
for _name in (
    *("call", "iter", "len", "getitem", "setitem", "contains", "bool", "eq", "ne", "lt", "le", "gt", "ge", "hash"),
    *("int", "float", "complex", "index", "str", "repr", "format", "bytes", "neg", "pos", "abs", "invert", "round"),
    *("array", "array_ufunc", "array_function"),
    *_OPERATORS,
    *(f"r{operator}" for operator in _OPERATORS),
):
    setattr(MissingPart, f"__{_name}__", _refusing)
