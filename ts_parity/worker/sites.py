"""Where the user's model object is: every place that user code may read it from, found anew for each call.

A site is one reference that can be exchanged and put back: an entry of an instance's, a module's or a container's
dictionary, a slot, a closure's cell. Knows Python objects; what a model is, `kinds` knows; knows nothing of calls.

Only what the entry point can reach is looked at: the owner of a bound method and the globals that its code names, never
a global picked for its name (a decoy singleton may sit beside the object that is served). Modules, sessions and
estimators are not entered: the top-most one is the model. The user's own helpers are: what they keep is the model, if
they keep one. Classes are never changed.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.kinds import FUNCTIONS, Rank, rank_of
from ts_parity.worker.remedy import declarable
from ts_parity.worker.standin import unwrap

MAX_DEPTH = 5
"""Steps from the entry point to the model: self.predictor.models["en"].net is four."""
MAX_ITEMS = 64
"""Containers larger than this are vocabularies and label maps, not homes of models."""
MAX_OBJECTS = 1000

_GLOBAL_ACCESS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
_SURROUNDINGS = frozenset({"builtins", "logging", "pathlib", "threading", "ts", "numpy", "torch"})
_STORED = frozenset({"STORE_GLOBAL"})
_PLAIN_VALUES = frozenset(
    {bool, int, float, complex, str, bytes, bytearray, set, frozenset, type, torch.device, torch.dtype}
    | {torch.Tensor, torch.nn.Parameter, types.ModuleType}
)
_OPAQUE = frozenset(sys.stdlib_module_names) | {
    *("builtins", "numpy", "PIL", "torch", "torchvision", "ts", "cv2", "scipy", "pandas", "tokenizers"),
    *("onnxruntime", "sklearn", "xgboost", "lightgbm", "catboost", "keras", "tensorflow"),
}


class Site(Protocol):
    """One exchangeable reference."""

    @property
    def path(self) -> str: ...
    def get(self) -> Any: ...
    def put(self, value: Any) -> None: ...
    def put_back(self, value: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class Item:
    """An entry of a dictionary (instance, module globals, `_modules`, plain dict) or of a list."""

    path: str
    holder: Any
    key: Any

    def get(self) -> Any:
        try:
            return self.holder[self.key]
        except LookupError:
            return None

    def put(self, value: Any) -> None:
        self.holder[self.key] = value

    put_back = put


@dataclass(frozen=True, eq=False)
class Member:
    """An entry of a tuple: the tuple is made again around it, where it is kept."""

    path: str
    kept: Site
    index: int

    def get(self) -> Any:
        members = self.kept.get()
        return members[self.index] if type(members) is tuple and len(members) > self.index else None

    def put(self, value: Any) -> None:
        members = self.kept.get()
        self.kept.put((*members[: self.index], value, *members[self.index + 1 :]))

    put_back = put


@dataclass(frozen=True, eq=False)
class Shadow:
    """A class attribute, covered by an instance attribute while exchanged: the class itself stays as it is."""

    path: str
    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name)

    def put(self, value: Any) -> None:
        vars(self.owner)[self.name] = value

    def put_back(self, value: Any) -> None:
        del vars(self.owner)[self.name]


@dataclass(frozen=True, eq=False)
class Slot:
    path: str
    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name, None)

    def put(self, value: Any) -> None:
        object.__setattr__(self.owner, self.name, value)

    put_back = put


@dataclass(frozen=True, eq=False)
class Cell:
    path: str
    cell: types.CellType

    def get(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not filled yet
            return None

    def put(self, value: Any) -> None:
        self.cell.cell_contents = value

    put_back = put


@dataclass(eq=False)
class _Found:
    """A site of what may be a model, and what it was found inside of, if that may be one too."""

    site: Site
    value: Any
    rank: Rank
    outer: _Found | None

    def around(self) -> Iterator[_Found]:
        outer = self.outer
        while outer is not None:
            yield outer
            outer = outer.outer


class Search:
    """Finds the sites of an entry point. What its code names is worked out once; what is there, at each call."""

    def __init__(self, entry: Any) -> None:
        self._owner = owner_of(entry)
        self._class_attributes = _class_attributes(self._owner)
        functions = functions_of(entry)
        self._module: dict[str, Any] = functions[0].__globals__ if functions else {}
        # A name may get its value later: singletons are often made by the first request.
        names = {(id(f.__globals__), name): f.__globals__ for f in functions for name in global_names(f.__code__)}
        stored = {(id(f.__globals__), name) for f in functions for name in global_names(f.__code__, _STORED)}
        self._globals = [
            (space, name)
            for (where, name), space in names.items()
            if (where, name) in stored or _may_change(space.get(name))
        ]
        self._cells = [cell for function in functions for cell in _cells(function)]

    def surely(self) -> bool:
        """Is something found that is a model, and not only something that may be one?"""
        return any(rank_of(site.get()) is Rank.MODEL for site in self.sites())

    def sites(self) -> list[Site]:
        """Every site of a model object that can be reached now, of the surest kind that is found.

        Of two models one inside the other, the inner one counts if it is the surer or both are models: then the outer
        one is a helper of the user's. Of two callables the outer one.
        """
        found = self._found()
        models = [each for each in found if each.rank is Rank.MODEL]
        if models:
            helpers = {id(outer.value) for each in models for outer in each.around()}
            return [each.site for each in models if id(each.value) not in helpers]
        return [each.site for each in found if each.outer is None]

    def _found(self) -> list[_Found]:
        found: list[_Found] = []
        seen: set[int] = set()
        queue: list[tuple[Site, int, _Found | None]] = [(site, 1, None) for site in self._roots()]
        for site, depth, outer in queue:  # grows while it is walked: nearest first
            value = _healed(site)
            rank = None if self._is_own(value) else rank_of(value)
            if rank is not None:
                outer = _Found(site, value, rank, outer)
                found.append(outer)
            if depth < MAX_DEPTH and len(seen) < MAX_OBJECTS and id(value) not in seen and _may_hold(value):
                seen.add(id(value))
                inside = _members(site, value) if type(value) is tuple else _children(value, site.path)
                queue += [(child, depth + 1, outer) for child in inside]
        return found

    def _is_own(self, value: Any) -> bool:
        """The handler itself and its methods are what is watched, not what it calls."""
        return self._owner is not None and (value is self._owner or getattr(value, "__self__", None) is self._owner)

    def helpers(self, sites: Sequence[Site]) -> list[Site]:
        """Other objects that the handler itself keeps and that may be called: what a declaration might be about."""
        watched = {id(site.get()) for site in sites}
        return [
            site
            for site in self._roots()
            if id(value := _healed(site)) not in watched and not self._is_own(value) and _may_be_asked(value)
        ]

    def declared(self, path: str) -> list[Site]:
        """The declared site, and every other one that holds the same object."""
        known = (site for site in self.sites() if declarable(path) in (site.path, declarable(site.path)))
        declared = next(known, None) or self.resolve(path)
        model = _healed(declared)
        if model is None:
            return []
        return [
            declared,
            *(s for s in self.sites() if s.get() is model and declarable(s.path) != declarable(declared.path)),
        ]

    def resolve(self, path: str) -> Site:
        """The site named by a dotted path from the handler object (`model`, `self.net.body`) or its module."""
        first, *rest = declarable(path).split(".")
        if self._owner is not None and hasattr(self._owner, first):
            site = _attribute_site(self._owner, first)
        elif first in self._module:
            site = Item(first, self._module, first)
        else:
            raise NotCodable(
                f"model: {path!r} is declared, but neither the handler object nor its module has {first!r}"
            )
        for name in rest:
            holder = unwrap(site.get())
            if isinstance(holder, MutableMapping):
                site = Item(f"{site.path}.{name}", holder, _key(holder, name))
            elif isinstance(holder, MutableSequence) and name.isdigit():
                site = Item(f"{site.path}.{name}", holder, int(name))
            elif type(holder) is tuple and name.isdigit():
                site = Member(f"{site.path}.{name}", site, int(name))
            elif hasattr(holder, name):
                site = _attribute_site(holder, name, site.path)
            elif holder is None:
                return Item(path, {}, name)  # not made yet
            else:
                raise NotCodable(f"model: {path!r} is declared, but {site.path} has no {name!r}")
        return site

    def _roots(self) -> Iterator[Site]:
        if self._owner is not None:
            yield from _children(self._owner, "self")
            own = vars(self._owner) if self._class_attributes else {}
            yield from (Shadow(f"self.{n}", self._owner, n) for n in self._class_attributes if n not in own)
        for space, name in self._globals:
            if name in space:
                yield Item(name, space, name)
        yield from self._cells


def owner_of(entry: Any) -> Any:
    """The object whose method the entry point is, or the entry point itself if it is a callable object."""
    if isinstance(entry, functools.partial):
        return owner_of(entry.func)
    if inspect.ismethod(entry):
        return entry.__self__
    return None if inspect.isfunction(entry) or inspect.isbuiltin(entry) else entry


def functions_of(entry: Any) -> list[types.FunctionType]:
    """The user's functions that the entry point consists of: itself, its class's methods, and what these name."""
    if isinstance(entry, functools.partial):
        return functions_of(entry.func)
    owner = owner_of(entry)
    if owner is None:
        functions = [entry] if inspect.isfunction(entry) else []
    else:
        functions = functions_in(type(owner))
    known = {id(function) for function in functions}
    for function in functions:  # grows while it is walked
        for name in global_names(function.__code__):
            other = function.__globals__.get(name)
            if inspect.isfunction(other) and other.__module__ == function.__module__ and id(other) not in known:
                known.add(id(other))
                functions.append(other)
    return functions


def functions_in(kind: type) -> list[types.FunctionType]:
    """The functions of a class that are the user's own, inherited ones included."""
    return [
        function
        for cls in kind.__mro__
        if cls.__module__.partition(".")[0] not in _OPAQUE
        for function in map(_plain_function, vars(cls).values())
        if function is not None
    ]


def _members(site: Site, value: tuple[Any, ...]) -> Iterator[Site]:
    if len(value) <= MAX_ITEMS:
        yield from (Member(f"{site.path}[{i}]", site, i) for i, child in enumerate(value) if not _is_plain(child))


def _children(value: Any, path: str) -> Iterator[Site]:
    if isinstance(value, MutableMapping):
        if len(value) <= MAX_ITEMS:
            yield from (Item(f"{path}[{k!r}]", value, k) for k, child in list(value.items()) if not _is_plain(child))
    elif isinstance(value, MutableSequence):
        if len(value) <= MAX_ITEMS:
            yield from (Item(f"{path}[{i}]", value, i) for i, child in enumerate(value) if not _is_plain(child))
    elif isinstance(value, types.FunctionType):
        yield from _cells(value, path)
    elif isinstance(value, types.MethodType):
        yield from _children(value.__self__, f"{path}.__self__")
    else:
        attributes = getattr(value, "__dict__", {})
        yield from (Item(f"{path}.{n}", attributes, n) for n, child in list(attributes.items()) if not _is_plain(child))
        yield from (Slot(f"{path}.{name}", value, name) for name in _slots(type(value)))


def _cells(function: types.FunctionType, path: str = "") -> list[Site]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [Cell(f"{path or function.__name__}.{name}", cell) for name, cell in cells]


def _key(holder: Any, name: str) -> Any:
    """Keys may be numbers, which a dotted path cannot tell from texts."""
    return next((key for key in holder if str(key) == name), name)


def _may_be_asked(value: Any) -> bool:
    """An object with methods of its own, such as an engine; no container, number, text, class or part of TorchServe."""
    if _is_plain(value) or isinstance(value, (type, dict, list, tuple, *FUNCTIONS)):
        return False
    return type(value).__module__.partition(".")[0] not in _SURROUNDINGS


def _is_plain(value: Any) -> bool:
    """Most values are numbers and texts; they are passed over before anything is made of them."""
    return value is None or type(value) in _PLAIN_VALUES


def _slots(cls: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        found += (slots,) if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _class_attributes(owner: Any) -> list[str]:
    """Names that the owner's own classes give values to, other than functions and the like."""
    if not hasattr(owner, "__dict__"):
        return []
    classes = [cls for cls in type(owner).__mro__ if cls.__module__.partition(".")[0] not in _OPAQUE]
    return [name for cls in classes for name, value in vars(cls).items() if rank_of(value) is Rank.MODEL]


def _attribute_site(owner: Any, name: str, path: str = "") -> Site:
    path = f"{path}.{name}" if path else name
    if isinstance(owner, torch.jit.ScriptModule):
        raise NotCodable(f"model: {path!r} is inside a TorchScript model, whose parts cannot be watched")
    if isinstance(owner, torch.nn.Module) and name in owner._modules:
        return Item(path, owner._modules, name)
    if name in getattr(owner, "__dict__", {}):
        return Item(path, owner.__dict__, name)
    descriptor = inspect.getattr_static(owner, name, None)
    if isinstance(descriptor, types.MemberDescriptorType):
        return Slot(path, owner, name)
    if isinstance(descriptor, property) or not hasattr(owner, "__dict__"):
        raise NotCodable(f"model: {path!r} is computed (a property); declare the attribute that it reads instead")
    return Shadow(path, owner, name)


def _healed(site: Site) -> Any:
    """The value at a site; a stand-in that user code kept from an earlier call gives way to the real object."""
    value = site.get()
    real = unwrap(value)
    if real is not value:
        site.put(real)
    return real


def _may_hold(value: Any) -> bool:
    if isinstance(value, (dict, list, types.SimpleNamespace, types.FunctionType)) or type(value) is tuple:
        return True
    if isinstance(value, types.MethodType):
        value = value.__self__
    if isinstance(value, (type, types.ModuleType, torch.nn.Module, types.BuiltinFunctionType)):
        return False
    return type(value).__module__.partition(".")[0] not in _OPAQUE


def _may_change(value: Any) -> bool:
    return not isinstance(value, (type, types.ModuleType, *FUNCTIONS))


def global_names(code: types.CodeType, access: frozenset[str] = _GLOBAL_ACCESS) -> set[str]:
    """The globals that a function's code, and the code of functions inside it, reads or writes."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in access}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return names.union(*(global_names(constant, access) for constant in inner))


def _plain_function(member: Any) -> types.FunctionType | None:
    member = getattr(member, "__func__", member)  # static and class methods
    return member if isinstance(member, types.FunctionType) else None
