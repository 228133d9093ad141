"""Finds the user's model object: every place that user code may read it from, searched again for each run.

A site is one reference that can be replaced and restored: an entry in the dictionary of an instance, a module, a class
or a container; a slot; a closure's cell; the cached result of a function.

The search begins with what the entry point can reach: the object whose method it is, and the globals and classes that
its code names. It never picks a global by its name, since another instance may be kept beside the one that serves. It
does not enter torch modules, sessions or estimators: the outermost one is the model. It does enter the user's own
helpers: what they keep is the model, if they keep one.

Knows Python objects; `model_kinds` decides what a model is. Knows nothing of model calls.
"""

from __future__ import annotations

import functools
import gc
import inspect
import queue
import threading
import types
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.model_kinds import (
    FUNCTIONS,
    ModelKind,
    is_cache_or_weakref,
    is_compiled,
    is_container,
    model_kind,
)
from ts_parity.worker.stand_in import unwrap
from ts_parity.worker.suggestions import declarable
from ts_parity.worker.user_code import FOREIGN, CodeNames, own_classes, owner_of, referent

MAX_DEPTH = 5
"""Steps from the entry point to the model: self.predictor.models["en"].net is four."""
MAX_ITEMS = 64
"""Larger containers are vocabularies and label maps, and hold no models."""
MAX_OBJECTS = 1000

_SURROUNDINGS = frozenset({"builtins", "logging", "pathlib", "threading", "ts", "numpy", "torch"})
_PLAIN_VALUES = frozenset(
    {bool, int, float, complex, str, bytes, bytearray, set, frozenset, type, torch.device, torch.dtype}
    | {torch.Tensor, torch.nn.Parameter, types.ModuleType}
)
_HOLDERS = (
    MutableMapping,
    MutableSequence,
    types.SimpleNamespace,
    types.MappingProxyType,
    threading.local,
    queue.Queue,
    functools.partial,
)
"""The standard library's objects that may contain a model."""


@dataclass(frozen=True, eq=False)
class Site(ABC):
    """One reference that can be replaced. `path`: how messages and declarations name it."""

    path: str

    @abstractmethod
    def get(self) -> Any: ...

    @abstractmethod
    def put(self, value: Any) -> None: ...

    def put_back(self, value: Any) -> None:
        """Restore what `get` returned before."""
        self.put(value)


@dataclass(frozen=True, eq=False)
class EntrySite(Site):
    """An entry of a dictionary (of an instance, a module, `_modules`, a plain dict) or of a list."""

    holder: Any
    key: Any

    def get(self) -> Any:
        try:
            return self.holder[self.key]
        except LookupError:
            return None

    def put(self, value: Any) -> None:
        self.holder[self.key] = value


@dataclass(frozen=True, eq=False)
class FixedEntrySite(Site):
    """An entry of an immutable container (tuple, read-only mapping), which is replaced by a changed copy."""

    kept: Site
    key: Any

    def get(self) -> Any:
        try:
            return self.kept.get()[self.key]
        except (LookupError, TypeError):
            return None

    def put(self, value: Any) -> None:
        self.kept.put(_with_entry(self.kept.get(), self.key, value))

    def put_back(self, value: Any) -> None:
        self.kept.put_back(_with_entry(self.kept.get(), self.key, value))


@dataclass(frozen=True, eq=False)
class PartialSite(Site):
    """The function of a functools.partial (place -1), or one of its arguments."""

    partial: functools.partial[Any]
    place: int

    def get(self) -> Any:
        return self.partial.func if self.place < 0 else self.partial.args[self.place]

    def put(self, value: Any) -> None:
        state = [self.partial.func, *self.partial.args]
        state[self.place + 1] = value
        function, *args = state
        # As unpickling does: this changes the partial itself, for all who hold it.
        self.partial.__setstate__((function, tuple(args), self.partial.keywords, vars(self.partial)))  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class ClassAttributeSite(Site):
    """An attribute of one of the user's classes, which methods and users of the class may read."""

    owner: type
    name: str

    def get(self) -> Any:
        return vars(self.owner).get(self.name)

    def put(self, value: Any) -> None:
        setattr(self.owner, self.name, value)


@dataclass(frozen=True, eq=False)
class CachedSite(Site):
    """An object that a function has cached (functools.cache), or that a weak reference refers to. To replace it, the
    function or reference is wrapped.
    """

    kept: Site
    made: Any

    def get(self) -> Any:
        function = self.kept.get()
        return function.given.get(_identity(self.made), self.made) if isinstance(function, _CacheWrapper) else self.made

    def put(self, value: Any) -> None:
        function = self.kept.get()
        if not isinstance(function, _CacheWrapper):
            function = _CacheWrapper(function)
            self.kept.put(function)
        function.given[_identity(self.made)] = value

    def put_back(self, value: Any) -> None:
        function = self.kept.get()
        if isinstance(function, _CacheWrapper):
            function.given.pop(_identity(self.made), None)
            if not function.given:
                self.kept.put_back(function.function)


class _CacheWrapper:
    """Wraps a cached function, a method in its class, or a weak reference, and returns other objects in place of some
    of its results.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.given: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(self.function, *args, **kwargs)

    def __get__(self, instance: Any, owner: type) -> Any:
        function = self.function.__get__(instance, owner) if _is_bound(self.function) else self.function
        return functools.partial(self._called, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)

    def _called(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return self.given.get(_identity(made), made)


def _identity(made: Any) -> Any:
    """A bound method is a new object each time it is read."""
    return (id(made.__self__), id(made.__func__)) if type(made) is types.MethodType else id(made)


@dataclass(frozen=True, eq=False)
class ShadowingSite(Site):
    """A class attribute, shadowed by an instance attribute while replaced: the class itself stays unchanged."""

    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name)

    def put(self, value: Any) -> None:
        vars(self.owner)[self.name] = value

    def put_back(self, value: Any) -> None:
        del vars(self.owner)[self.name]


@dataclass(frozen=True, eq=False)
class SlotSite(Site):
    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name, None)

    def put(self, value: Any) -> None:
        object.__setattr__(self.owner, self.name, value)


@dataclass(frozen=True, eq=False)
class ClosureSite(Site):
    cell: types.CellType

    def get(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not filled yet
            return None

    def put(self, value: Any) -> None:
        self.cell.cell_contents = value


@dataclass(eq=False)
class _PossibleModel:
    """A site of an object that may be a model, and the enclosing object, if that may be one too."""

    site: Site
    value: Any
    kind: ModelKind
    outer: _PossibleModel | None

    def around(self) -> Iterator[_PossibleModel]:
        outer = self.outer
        while outer is not None:
            yield outer
            outer = outer.outer


class ModelSearch:
    """Finds the sites of an entry point. Its code is analysed once; objects are searched at each call."""

    def __init__(self, entry: Any) -> None:
        self._partial = entry if isinstance(entry, functools.partial) else None
        self._owner = owner_of(entry)
        self._class_attributes = _class_attributes(self._owner)
        names = CodeNames(entry)
        self._module = names.namespaces[0] if names.namespaces else {}
        self._classes = names.classes
        # A name may get its value later: singletons are often created by the first request.
        self._globals = [
            (path, namespace, name)
            for path, namespace, name, stored in names.places()
            if stored or _may_change(referent(namespace.get(name)))
        ]
        self._cells = [cell for function in names.functions for cell in _cells(function)]

    def finds_model(self) -> bool:
        """Whether it finds an object that certainly is a model."""
        return any(model_kind(site.get()) is ModelKind.MODEL for site in self.sites())

    def sites(self) -> list[Site]:
        """Every site of a model object that can be reached now; callables only if there is no certain model.

        Of two models, one inside the other, the inner one counts: the outer one is a helper of the user's. Of two
        callables the outer one counts.
        """
        found = self._found()
        models = [each for each in found if each.kind is ModelKind.MODEL]
        if models:
            helpers = {id(outer.value) for each in models for outer in each.around()}
            return [each.site for each in models if id(each.value) not in helpers]
        return [each.site for each in found if each.outer is None]

    def _found(self) -> list[_PossibleModel]:
        found: list[_PossibleModel] = []
        seen = {id(self._owner)}  # its attributes are roots already, even if a helper refers back to it
        queue: list[tuple[Site, int, _PossibleModel | None]] = [(site, 1, None) for site in self._roots()]
        for site, depth, outer in queue:  # grows during the loop: nearest objects first
            value = _unwrapped(site)
            kind = None if self._is_own(value) else model_kind(value)
            if kind is not None:
                outer = _PossibleModel(site, value, kind, outer)
                found.append(outer)
            if depth < MAX_DEPTH and len(seen) < MAX_OBJECTS and id(value) not in seen and _may_contain_model(value):
                seen.add(id(value))
                queue += [(child, depth + 1, outer) for child in _sites_inside(site, value)]
        return found

    def _is_own(self, value: Any) -> bool:
        """Whether it is the handler itself or a method of it, which cannot be its model."""
        return self._owner is not None and (value is self._owner or getattr(value, "__self__", None) is self._owner)

    def helpers(self, sites: Sequence[Site]) -> list[Site]:
        """Other callable objects that the handler keeps, one of which might have to be declared as the model."""
        watched = {id(site.get()) for site in sites}
        return [
            site
            for site in self._roots()
            if id(value := _unwrapped(site)) not in watched and not self._is_own(value) and _may_be_declared(value)
        ]

    def declared(self, path: str) -> list[Site]:
        """The declared site, and all others that hold the same object."""
        known = (site for site in self.sites() if declarable(path) in (site.path, declarable(site.path)))
        declared = next(known, None) or self.resolve(path)
        model = _unwrapped(declared)
        if model is None:
            return []
        return [
            declared,
            *(s for s in self.sites() if s.get() is model and declarable(s.path) != declarable(declared.path)),
        ]

    def resolve(self, path: str) -> Site:
        """The site named by a dotted path from the handler object (`model`, `self.net.body`) or its module."""
        site, rest = self._first(path)
        for name in rest:
            holder = unwrap(site.get())
            if isinstance(holder, MutableMapping):
                site = EntrySite(f"{site.path}.{name}", holder, _key(holder, name))
            elif isinstance(holder, MutableSequence) and name.isdigit():
                site = EntrySite(f"{site.path}.{name}", holder, int(name))
            elif _is_fixed(holder):
                site = FixedEntrySite(
                    f"{site.path}.{name}", site, int(name) if isinstance(holder, tuple) else _key(holder, name)
                )
            elif hasattr(holder, name):
                site = _attribute_site(holder, name, site.path)
            elif holder is None:
                return EntrySite(path, {}, name)  # not created yet
            elif (found := _by_item(site, holder, name)) is not None:
                site = found
            else:
                raise NotCodable(f"model: {path!r} is declared, but {site.path} has no {name!r}")
        return site

    def _first(self, path: str) -> tuple[Site, list[str]]:
        """-> the site that the path begins with, and the remaining names."""
        first, *rest = declarable(path).split(".")
        if self._owner is not None and hasattr(self._owner, first):
            return _attribute_site(self._owner, first), rest
        if first in self._module:
            return EntrySite(first, self._module, first), rest
        for root in self._roots():  # of another module, a closure or a class
            begin = declarable(root.path).split(".")
            if [first, *rest][: len(begin)] == begin:
                return root, [first, *rest][len(begin) :]
        raise NotCodable(f"model: {path!r} is declared, but neither the handler object nor its module has {first!r}")

    def _roots(self) -> Iterator[Site]:
        if self._partial is not None:
            yield from _children(self._partial, "entry")
        if self._owner is not None:
            yield from _children(self._owner, "self")
            own = vars(self._owner) if self._class_attributes else {}
            yield from (ShadowingSite(f"self.{n}", self._owner, n) for n in self._class_attributes if n not in own)
        for path, namespace, name in self._globals:
            if name in namespace:
                yield EntrySite(path, namespace, name)
        for cls in self._classes:
            for name, value in [*vars(cls).items()]:
                if _is_plain(value) or name.startswith("__"):
                    continue
                if not _is_bound(value) or is_cache_or_weakref(value):
                    yield ClassAttributeSite(f"{cls.__name__}.{name}", cls, name)
        yield from self._cells


def _sites_inside(site: Site, value: Any) -> Iterator[Site]:
    """The sites inside an object."""
    if is_cache_or_weakref(value):
        made = [
            each
            for each in _cached_objects(value)
            if model_kind(unwrap(each)) is ModelKind.MODEL or _may_contain_model(unwrap(each))
        ]
        for place, each in enumerate(made[:MAX_ITEMS]):
            yield CachedSite(f"{site.path}()" + (f"[{place}]" if place else ""), site, each)
    elif _is_fixed(value):
        entries = enumerate(value) if isinstance(value, tuple) else value.items()
        if len(value) <= MAX_ITEMS:
            yield from (FixedEntrySite(f"{site.path}[{k!r}]", site, k) for k, child in entries if not _is_plain(child))
    else:
        yield from _children(value, site.path)


def _is_fixed(value: Any) -> bool:
    """A tuple, named or not, or a read-only mapping."""
    return type(value) is tuple or isinstance(value, types.MappingProxyType) or hasattr(type(value), "_make")


def _with_entry(value: Any, key: Any, entry: Any) -> Any:
    if isinstance(value, types.MappingProxyType):
        return types.MappingProxyType({**value, key: entry})
    entries = (entry if place == key else child for place, child in enumerate(value))
    return tuple(entries) if type(value) is tuple else type(value)._make(entries)


def _cached_objects(function: Any) -> list[Any]:
    """The objects that it has cached. Only the garbage collector can list them."""
    if isinstance(function, weakref.ref):
        return [there] if (there := function()) is not None else []
    found = []
    for held in gc.get_referents(getattr(function, "__func__", function)):
        entries = [*held.values()] if type(held) is dict else [held]
        for entry in entries:
            linked = type(entry).__name__ == "_lru_list_elem"
            found += gc.get_referents(entry) if linked else [entry]
    return [*{id(each): each for each in found if not isinstance(each, (*FUNCTIONS, type))}.values()]


def _by_item(site: Site, holder: Any, name: str) -> Site | None:
    """The site inside the object of what `holder[name]` returns, as for pipelines and sequences of layers."""
    try:
        wanted = holder[int(name) if name.lstrip("-").isdigit() else name]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    queue: list[tuple[Site, int]] = [(child, 1) for child in _children(holder, site.path)]
    for child, depth in queue:  # grows during the loop
        value = child.get()
        if value is wanted:
            return child
        if depth < 3 and (isinstance(value, (dict, list)) or _is_fixed(value)):
            queue += [(inner, depth + 1) for inner in _sites_inside(child, value)]
    return None


def _children(value: Any, path: str) -> Iterator[Site]:
    if isinstance(value, MutableMapping):
        if len(value) <= MAX_ITEMS:
            yield from (
                EntrySite(f"{path}[{k!r}]", value, k) for k, child in list(value.items()) if not _is_plain(child)
            )
    elif isinstance(value, MutableSequence):
        if len(value) <= MAX_ITEMS:
            yield from (EntrySite(f"{path}[{i}]", value, i) for i, child in enumerate(value) if not _is_plain(child))
    elif isinstance(value, queue.Queue):
        yield from _children(value.queue, path)
    elif isinstance(value, functools.partial):
        yield PartialSite(f"{path}.func", value, -1)
        yield from (PartialSite(f"{path}.args[{i}]", value, i) for i, x in enumerate(value.args) if not _is_plain(x))
        yield from _children(value.keywords, f"{path}.keywords")
    elif is_container(value):
        numbered = isinstance(value, torch.nn.ModuleList)
        yield from (EntrySite(f"{path}[{k if numbered else repr(k)}]", value._modules, k) for k in list(value._modules))
    elif isinstance(value, types.FunctionType):
        yield from _cells(value, path)
    elif isinstance(value, types.MethodType):
        yield from _children(value.__self__, f"{path}.__self__")
    else:
        attributes = getattr(value, "__dict__", {})
        yield from (
            EntrySite(f"{path}.{n}", attributes, n) for n, child in list(attributes.items()) if not _is_plain(child)
        )
        yield from (SlotSite(f"{path}.{name}", value, name) for name in _slots(type(value)))


def _cells(function: types.FunctionType, path: str = "") -> list[Site]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [ClosureSite(f"{path or function.__name__}.{name}", cell) for name, cell in cells]


def _key(holder: Any, name: str) -> Any:
    """The key of this name. Keys may be numbers, which a dotted path cannot tell from texts."""
    return next((key for key in holder if str(key) == name), name)


def _may_be_declared(value: Any) -> bool:
    """Whether it has methods of its own, as an engine has; no container, number, text, class or part of TorchServe."""
    if _is_plain(value) or isinstance(value, (type, dict, list, tuple, *FUNCTIONS)):
        return False
    return type(value).__module__.partition(".")[0] not in _SURROUNDINGS


def _is_bound(value: Any) -> bool:
    """Whether it is a descriptor: read from a class, it is bound to the object; a stand-in would not be."""
    return hasattr(type(value), "__get__")


def _is_plain(value: Any) -> bool:
    """Whether it cannot contain a model. Most values are numbers and texts, so they are skipped early."""
    return value is None or type(value) in _PLAIN_VALUES


def _slots(cls: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        found += (slots,) if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _class_attributes(owner: Any) -> list[str]:
    """Names of class attributes of the owner that are models."""
    if not hasattr(owner, "__dict__"):
        return []
    classes = own_classes(type(owner))
    return [name for cls in classes for name, value in vars(cls).items() if model_kind(value) is ModelKind.MODEL]


def _attribute_site(owner: Any, name: str, path: str = "") -> Site:
    path = f"{path}.{name}" if path else name
    if isinstance(owner, torch.jit.ScriptModule):
        raise NotCodable(f"model: {path!r} is inside a TorchScript model, whose parts cannot be watched")
    if isinstance(owner, torch.nn.Module) and name in owner._modules:
        return EntrySite(path, owner._modules, name)
    if name in getattr(owner, "__dict__", {}):
        return EntrySite(path, owner.__dict__, name)
    descriptor = inspect.getattr_static(owner, name, None)
    if isinstance(descriptor, types.MemberDescriptorType):
        return SlotSite(path, owner, name)
    if isinstance(descriptor, property) or not hasattr(owner, "__dict__"):
        raise NotCodable(f"model: {path!r} is computed (a property); declare the attribute that it reads instead")
    return ShadowingSite(path, owner, name)


def _unwrapped(site: Site) -> Any:
    """The value at a site. If user code has kept a stand-in there from an earlier run, the real object is put back,
    except in a cache or a weak reference.
    """
    value = site.get()
    real = unwrap(value)
    if real is not value and not isinstance(site, CachedSite):
        site.put(real)
    return referent(real)


def _may_contain_model(value: Any) -> bool:
    if is_compiled(value):
        return False
    if isinstance(value, (*_HOLDERS, types.FunctionType)) or _is_fixed(value):
        return True
    if is_cache_or_weakref(value):
        return True
    if isinstance(value, types.MethodType):
        value = value.__self__
    if isinstance(value, torch.nn.Module):
        return is_container(value)
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return False
    return type(value).__module__.partition(".")[0] not in FOREIGN


def _may_change(value: Any) -> bool:
    return is_compiled(value) or not isinstance(value, (type, types.ModuleType, *FUNCTIONS))
