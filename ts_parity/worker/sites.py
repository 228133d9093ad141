"""Where the user's model object is: every place that user code may read it from, found anew for each call.

A site is one reference that can be exchanged and put back: an entry of an instance's, a module's or a container's
dictionary, a slot, a closure's cell. Knows Python objects and what a torch module is; knows nothing of calls.

Only what the entry point can reach is looked at: the owner of a bound method and the globals that its code names, never
a global picked for its name (a decoy singleton may sit beside the object that is served). Modules are not entered: the
top-most one is the model. Classes are never changed.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.standin import unwrap

MAX_DEPTH = 5
"""Steps from the entry point to the model: self.predictor.models["en"].net is four."""
MAX_ITEMS = 64
"""Containers larger than this are vocabularies and label maps, not homes of models."""
MAX_OBJECTS = 1000

_OPAQUE = frozenset(sys.stdlib_module_names) | {"builtins", "numpy", "PIL", "torch", "torchvision", "ts", "cv2"}


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


def find_sites(entry: Any) -> list[Site]:
    """Every site of a model object that the entry point can reach.

    Modules without weights (transforms, losses) count only where nothing with weights is found.
    """
    found: list[Site] = []
    seen: set[int] = set()
    queue = [(site, 1) for site in _roots(entry)]
    for site, depth in queue:  # grows while it is walked: nearest first
        value = _healed(site)
        if isinstance(value, torch.nn.Module):
            found.append(site)
        elif depth < MAX_DEPTH and len(seen) < MAX_OBJECTS and id(value) not in seen and _may_hold(value):
            seen.add(id(value))
            queue += [(child, depth + 1) for child in _children(value, site.path)]
    weighty = [site for site in found if has_weights(site.get())]
    return weighty or found


def declared_sites(entry: Any, path: str) -> list[Site]:
    """The declared site, and every other one that holds the same object."""
    declared = resolve(entry, path)
    model = _healed(declared)
    if model is None:
        return []
    return [declared, *(s for s in find_sites(entry) if s.get() is model and s.path != declared.path)]


def resolve(entry: Any, path: str) -> Site:
    """The site named by a dotted path from the handler object (`model`, `self.net.body`) or the handler's module."""
    first, *rest = path.removeprefix("self.").split(".")
    owner = owner_of(entry)
    if owner is not None and hasattr(owner, first):
        site = _attribute_site(owner, first)
    elif first in _globals_of(entry):
        site = Item(first, _globals_of(entry), first)
    else:
        raise NotCodable(f"model: {path!r} is declared, but neither the handler object nor its module has {first!r}")
    for name in rest:
        holder = unwrap(site.get())
        if isinstance(holder, MutableMapping):
            site = Item(f"{site.path}.{name}", holder, name)
        elif hasattr(holder, name):
            site = _attribute_site(holder, name, site.path)
        else:
            raise NotCodable(f"model: {path!r} is declared, but {site.path} has no {name!r}")
    return site


def has_weights(model: Any) -> bool:
    """A frozen script holds its weights as constants, so a script always counts."""
    if isinstance(model, torch.jit.ScriptModule):
        return True
    return next(model.parameters(), None) is not None or next(model.buffers(), None) is not None


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
        functions = [
            function
            for cls in type(owner).__mro__
            if cls.__module__.partition(".")[0] not in _OPAQUE
            for function in map(_plain_function, vars(cls).values())
            if function is not None
        ]
    known = {id(function) for function in functions}
    for function in functions:  # grows while it is walked
        for name in _names(function.__code__):
            other = function.__globals__.get(name)
            if inspect.isfunction(other) and other.__module__ == function.__module__ and id(other) not in known:
                known.add(id(other))
                functions.append(other)
    return functions


def _roots(entry: Any) -> Iterator[Site]:
    owner = owner_of(entry)
    if owner is not None:
        yield from _children(owner, "self")
        yield from _class_attributes(owner)
    for function in functions_of(entry):
        for name in _names(function.__code__):
            if name in function.__globals__ and not isinstance(function.__globals__[name], types.FunctionType):
                yield Item(name, function.__globals__, name)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield Cell(f"{function.__name__}.{name}", cell)


def _children(value: Any, path: str) -> Iterator[Site]:
    if isinstance(value, MutableMapping):
        if len(value) <= MAX_ITEMS:
            yield from (Item(f"{path}[{key!r}]", value, key) for key in list(value))
    elif isinstance(value, MutableSequence):
        if len(value) <= MAX_ITEMS:
            yield from (Item(f"{path}[{index}]", value, index) for index in range(len(value)))
    else:
        attributes = getattr(value, "__dict__", {})
        yield from (Item(f"{path}.{name}", attributes, name) for name in list(attributes))
        for cls in type(value).__mro__:
            slots = vars(cls).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            yield from (Slot(f"{path}.{n}", value, n) for n in names if n not in ("__dict__", "__weakref__"))


def _class_attributes(owner: Any) -> Iterator[Site]:
    if not hasattr(owner, "__dict__"):
        return
    for cls in type(owner).__mro__:
        if cls.__module__.partition(".")[0] in _OPAQUE:
            continue
        for name, value in list(vars(cls).items()):
            if name not in vars(owner) and isinstance(unwrap(value), torch.nn.Module):
                yield Shadow(f"self.{name}", owner, name)


def _attribute_site(owner: Any, name: str, path: str = "") -> Site:
    path = f"{path}.{name}" if path else name
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
    cls = type(value)
    if isinstance(value, (dict, list, types.SimpleNamespace)):
        return True
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType)):
        return False
    return cls.__module__.partition(".")[0] not in _OPAQUE


def _globals_of(entry: Any) -> dict[str, Any]:
    functions = functions_of(entry)
    return functions[0].__globals__ if functions else {}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _plain_function(member: Any) -> types.FunctionType | None:
    member = getattr(member, "__func__", member)  # static and class methods
    return member if isinstance(member, types.FunctionType) else None
