"""A stand-in for the user's model object, during one run of the user's entry point.

It behaves like the model in everything except model calls, which go to a watch. Knows Python's object protocol. Knows
nothing of what the watch does with a call, of where the model is kept, or of what the output means.
"""

from __future__ import annotations

import copy
import functools
import operator
import types
import weakref
from collections.abc import Callable
from typing import Any, Protocol


class Watch(Protocol):
    """Gets what user code does with one model object."""

    def called(self, method: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`run`: the model's own method. -> what user code gets."""

    def read(self, name: str, value: Any) -> Any:
        """User code reads an attribute or an item. -> what it gets."""

    def returned(self, method: str, result: Any) -> None:
        """A method that is no model call has returned."""


CALL = "__call__"
MODEL_CALLS = frozenset({CALL, "forward"})

_read = object.__getattribute__
_WEAKLY_REFERENCED: list[StandIn] = []
"""Stand-ins with weak references to them: kept alive, since the model itself would be alive too."""


class StandIn:
    """Forwards attributes, writes and special methods to the real object; the methods in `calls` go to the watch.

    User code may keep a stand-in after the run (`self.net = self.model.eval()`), so a dismissed one only forwards.
    """

    __slots__ = ("__weakref__", "_ts_parity_calls", "_ts_parity_real", "_ts_parity_watch")

    def __init__(self, real: object, watch: Watch, calls: frozenset[str]) -> None:
        object.__setattr__(self, "_ts_parity_real", real)
        object.__setattr__(self, "_ts_parity_watch", watch)
        object.__setattr__(self, "_ts_parity_calls", calls)

    def __getattribute__(self, name: str) -> Any:
        real = _read(self, "_ts_parity_real")
        value = getattr(real, name)
        if name in _read(self, "_ts_parity_calls"):
            return functools.partial(_called, self, name)
        if isinstance(value, types.MethodType) and value.__self__ is real:
            return _returning_stand_in(self, real, value)
        watch = _read(self, "_ts_parity_watch")
        return value if watch is None else watch.read(name, value)

    def __getitem__(self, key: Any) -> Any:
        value, watch = _read(self, "_ts_parity_real")[key], _read(self, "_ts_parity_watch")
        # A slice is a new object each time, so calling it is no call of a part that the model keeps.
        return watch.read(str(key), value) if watch is not None and isinstance(key, (int, str)) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_read(self, "_ts_parity_real"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_read(self, "_ts_parity_real"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if CALL in _read(self, "_ts_parity_calls"):
            return _called(self, CALL, *args, **kwargs)
        return _read(self, "_ts_parity_real")(*args, **kwargs)

    def __enter__(self) -> Any:
        real = _read(self, "_ts_parity_real")
        entered = type(real).__enter__(real)
        return self if entered is real else entered

    def __exit__(self, *exception: Any) -> Any:
        real = _read(self, "_ts_parity_real")
        return type(real).__exit__(real, *exception)

    def __eq__(self, other: object) -> bool:
        return bool(_read(self, "_ts_parity_real") == unwrap(other))

    def __hash__(self) -> int:
        return hash(_read(self, "_ts_parity_real"))


def unwrap(value: Any) -> Any:
    """The real object behind a stand-in; any other value unchanged."""
    return _read(value, "_ts_parity_real") if type(value) is StandIn else value


def dismiss(stand_in: StandIn) -> None:
    """End the watch: from now on the stand-in only forwards."""
    object.__setattr__(stand_in, "_ts_parity_watch", None)
    _WEAKLY_REFERENCED[:] = [each for each in (*_WEAKLY_REFERENCED, stand_in) if weakref.getweakrefcount(each)]


def _called(stand_in: StandIn, name: str, *args: Any, **kwargs: Any) -> Any:
    real, watch = _read(stand_in, "_ts_parity_real"), _read(stand_in, "_ts_parity_watch")
    run = real if name == CALL else getattr(real, name)
    return run(*args, **kwargs) if watch is None else watch.called(name, run, args, kwargs)


def _returning_stand_in(stand_in: StandIn, real: object, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the stand-in where a method returns the model: `model.eval()(x)`, `model = model.to(device)`."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if result is real:
            return stand_in
        watch = _read(stand_in, "_ts_parity_watch")
        if watch is not None:
            watch.returned(method.__name__, result)
        return result

    return call


def _forwarding(operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        return operation(_read(self, "_ts_parity_real"), *args)

    return method


# Python looks special methods up on the class, so forwarding attributes does not cover them.
_SPECIAL: dict[str, Callable[..., Any]] = {
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__reversed__": reversed,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__contains__": operator.contains,
    "__bool__": bool,
    "__repr__": repr,
    "__str__": str,
    "__format__": format,
    "__dir__": dir,
    "__copy__": copy.copy,
    "__deepcopy__": copy.deepcopy,
    "__reduce_ex__": lambda real, protocol: real.__reduce_ex__(protocol),
}
for _name, _operation in _SPECIAL.items():
    setattr(StandIn, _name, _forwarding(_operation))
