"""What stands in a rebuilt output where the model had said something that no raw output carries.

User code may pass it on and throw it away; whatever else it does with it is told to whoever made it. Knows nothing of
outputs or codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class MissingPart:
    """`refuse(place)` is called, and raises, when it is looked at."""

    __slots__ = ("_place", "_refuse")

    def __init__(self, place: str, refuse: Callable[[str], NoReturn]) -> None:
        self._place = place
        self._refuse = refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python asks for these by itself, as to copy a container
        refuse_use(self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for found in missing_parts_in((args, kwargs)):
            refuse_use(found)


def refuse_use(unsaid: MissingPart) -> NoReturn:
    unsaid._refuse(unsaid._place)


def missing_parts_in(value: Any) -> Iterator[MissingPart]:
    """Those in plain containers, such as an answer."""
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
