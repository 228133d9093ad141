"""Analyses the user's own code: the functions that a request may run through, and the globals and classes they name.

The code is read, not run. The user's own code is the entry point's module and modules beside its file: a helper module
belongs to the user as much as the handler does. Knows functions, classes and modules. Knows nothing of models.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_GLOBAL_ACCESS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
_STORED = frozenset({"STORE_GLOBAL", "STORE_ATTR"})
_ATTRIBUTE_ACCESS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"})
FOREIGN = frozenset(sys.stdlib_module_names) | {
    *("builtins", "numpy", "PIL", "torch", "torchvision", "ts", "cv2", "scipy", "pandas", "tokenizers"),
    *("onnxruntime", "sklearn", "xgboost", "lightgbm", "catboost", "keras", "tensorflow"),
}
"""Packages whose classes and functions belong to no handler."""


class CodeNames:
    """What the code of an entry point names, directly or through other functions of the user's.

    `functions` and `classes` begin with those of the object that the entry point belongs to. `namespaces`: the globals
    of each module involved, the entry point's own first. `globals`: (namespace, name) -> whether this code assigns it.
    """

    def __init__(self, entry: Any) -> None:
        self.functions: list[types.FunctionType] = []
        self.classes: list[type] = []
        self.namespaces: list[dict[str, Any]] = []
        self.globals: dict[tuple[int, str], bool] = {}
        self._seen: set[int] = set()
        owner = owner_of(entry)
        kinds = [] if owner is None else own_classes(type(owner))
        first = plain_function(entry) if owner is None else None
        for function in [*([first] if first else []), *(f for kind in kinds for f in _functions_of_class(kind))]:
            self._add_function(function)
        self._home = _folder(self.namespaces[0]) if self.namespaces else None
        for kind in kinds:
            self._add_class(kind)
        for function in self.functions:  # grows while it is walked
            self._read(function)

    def places(self) -> Iterator[tuple[str, dict[str, Any], str, bool]]:
        """For every global: its path, its namespace, its name there, and whether this code assigns it."""
        for namespace in self.namespaces:
            prefix = "" if namespace is self.namespaces[0] else f"{namespace.get('__name__', '')}."
            for (where, name), stored in self.globals.items():
                if where == id(namespace):
                    yield f"{prefix}{name}", namespace, name, stored

    def _read(self, function: types.FunctionType) -> None:
        namespace = function.__globals__
        for name, stored, attribute in _accesses(function.__code__):
            module = referent(namespace.get(name))
            if not isinstance(module, types.ModuleType):
                self._add_global(namespace, name, stored)
            elif attribute is not None and self._is_users_module(vars(module)):
                self._add_global(vars(module), *attribute)

    def _add_global(self, namespace: dict[str, Any], name: str, stored: bool) -> None:
        self._add_namespace(namespace)
        place = (id(namespace), name)
        self.globals[place] = self.globals.get(place, False) or stored
        value = referent(namespace.get(name))
        if isinstance(value, type):
            for kind in own_classes(value):
                module = sys.modules.get(kind.__module__)
                if module is not None and self._is_users_module(vars(module)):
                    self._add_class(kind)
            return
        function = plain_function(value)
        if function and (function.__globals__ is namespace or self._is_users_module(function.__globals__)):
            self._add_function(function)

    def _add_class(self, kind: type) -> None:
        """Classes of networks are left out: what they name is inside a model."""
        if id(kind) not in self._seen and not issubclass(kind, torch.nn.Module):
            self._seen.add(id(kind))
            self.classes.append(kind)
            for function in _functions_of_class(kind):
                self._add_function(function)

    def _add_function(self, function: types.FunctionType) -> None:
        if id(function) not in self._seen:
            self._seen.add(id(function))
            self.functions.append(function)
            self._add_namespace(function.__globals__)

    def _add_namespace(self, namespace: dict[str, Any]) -> None:
        if not any(namespace is known for known in self.namespaces):
            self.namespaces.append(namespace)

    def _is_users_module(self, namespace: dict[str, Any]) -> bool:
        """Whether it is the entry point's own module, or one whose file is in the same folder or below."""
        folder = _folder(namespace)
        beside = self._home is not None and folder is not None and folder.is_relative_to(self._home)
        return beside or any(namespace is own for own in self.namespaces[:1])


def owner_of(entry: Any) -> Any:
    """The object whose method the entry point is, or the entry point itself if it is a callable object."""
    if isinstance(entry, functools.partial):
        return owner_of(entry.func)
    if inspect.ismethod(entry):
        return entry.__self__
    return None if inspect.isfunction(entry) or inspect.isbuiltin(entry) else entry


def referent(value: Any) -> Any:
    """The object behind a weakref.proxy, None if that is gone; any other value unchanged."""
    if type(value) not in weakref.ProxyTypes:
        return value
    try:
        return value.__str__.__self__  # a proxy has no public way to get at its object
    except ReferenceError:
        return None


def functions_of(entry: Any) -> list[types.FunctionType]:
    """The user's functions behind an entry point: itself, its class's methods, and what these name."""
    return CodeNames(entry).functions


def functions_in(kind: type) -> list[types.FunctionType]:
    """The functions of a class that are the user's own, inherited ones included."""
    return [function for cls in own_classes(kind) for function in _functions_of_class(cls)]


def own_classes(kind: type) -> list[type]:
    """A class and its base classes, as far as they are the user's own."""
    return [cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] not in FOREIGN]


def plain_function(member: Any) -> types.FunctionType | None:
    """The user's function behind a static or class method, a partial, a cache or another decorator."""
    member = referent(member)
    for _ in range(16):
        inner = getattr(member, "func", None) if isinstance(member, functools.partial) else None
        inner = inner or getattr(member, "__wrapped__", None) or getattr(member, "__func__", None)
        if inner is None:
            break
        member = inner
    return member if isinstance(member, types.FunctionType) else None


def _functions_of_class(cls: type) -> list[types.FunctionType]:
    return [function for member in vars(cls).values() if (function := plain_function(member))]


def _accesses(code: types.CodeType) -> Iterator[tuple[str, bool, tuple[str, bool] | None]]:
    """The globals that a function and its inner functions read or write: name, whether it is written, and which
    attribute of it is used, if any.
    """
    for step, after in itertools.pairwise([*dis.get_instructions(code), None]):
        if step is not None and step.opname in _GLOBAL_ACCESS:
            used = after is not None and after.opname in _ATTRIBUTE_ACCESS
            attribute = (str(after.argval), after.opname in _STORED) if after is not None and used else None
            yield str(step.argval), step.opname in _STORED, attribute
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _accesses(constant)


def _folder(namespace: dict[str, Any]) -> Path | None:
    file = namespace.get("__file__")
    return Path(file).resolve().parent if isinstance(file, str) else None
