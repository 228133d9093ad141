"""What counts as a model object, and which of its methods are model calls.

Torch modules, ONNX Runtime sessions, estimators like scikit-learn's (XGBoost, LightGBM and Keras included) and plain
callables. Objects of other libraries are recognised by their methods; the libraries are never imported. Knows Python
objects. Knows nothing of where they are kept, or of what a call does.
"""

from __future__ import annotations

import functools
import types
import weakref
from enum import IntEnum
from typing import Any

import torch

from ts_parity.worker.stand_in import CALL, MODEL_CALLS

ESTIMATOR_CALLS = frozenset(
    {"predict_proba", "predict_log_proba", "decision_function", "predict", "inplace_predict", "predict_on_batch"}
)
SESSION_CALLS = frozenset({"run"})
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_TRANSFORMS = frozenset({"torchvision", "PIL", "numpy", "cv2", "builtins", "logging"})
"""Packages whose callables prepare inputs or write logs."""


class ModelKind(IntEnum):
    """How certain it is that an object is a model. Of all objects found, only the most certain kind is taken."""

    MODEL = 0
    CALLABLE = 1
    """It may be one: a module without weights (a transform, a loss), a function, a callable object."""


def model_kind(value: Any) -> ModelKind | None:
    """None: it cannot be a model."""
    if isinstance(value, torch.nn.Module):
        if is_container(value):
            return None
        return ModelKind.MODEL if has_weights(value) else None if _prepares(type(value)) else ModelKind.CALLABLE
    if isinstance(value, type) or is_cache_or_weakref(value):
        return None
    if is_compiled(value):
        return ModelKind.MODEL
    if isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        owner = value.__self__
        if isinstance(owner, types.ModuleType) or owner is None:
            return ModelKind.CALLABLE
        kept_of_model = value.__name__ in calls_of(owner) and model_kind(owner) is ModelKind.MODEL
        return ModelKind.MODEL if kept_of_model else ModelKind.CALLABLE
    return _kind_of_class(type(value))  # type: ignore[arg-type]  # classes can be hashed


def is_compiled(value: Any) -> bool:
    """A function made by torch.compile, or an object of a class with such a method. What it uses is compiled into it,
    so a stand-in inside it would have no effect or raise an error.
    """
    if isinstance(value, FUNCTIONS):
        return hasattr(value, "_torchdynamo_orig_callable")
    return not isinstance(value, (type, torch.nn.Module)) and bool(_compiled_calls(type(value)))  # type: ignore[arg-type]


def is_cache_or_weakref(value: Any) -> bool:
    """A function or method behind functools.cache or lru_cache, or a weak reference: not a model, but it may return one
    that exists already.
    """
    return isinstance(getattr(value, "__func__", value), (functools._lru_cache_wrapper, weakref.ref))


def is_container(value: Any) -> bool:
    """A ModuleList or ModuleDict, which cannot be called but may contain models."""
    if not isinstance(value, (torch.nn.ModuleList, torch.nn.ModuleDict)):
        return False
    return type(value).forward is torch.nn.Module.forward and not _estimator_calls(type(value))


def calls_of(value: Any) -> frozenset[str]:
    """The methods that are model calls; for an object of no known kind, calling it."""
    kind = type(value)
    if isinstance(value, torch.nn.Module):
        return MODEL_CALLS | _estimator_calls(kind)
    if _is_session(kind):
        return SESSION_CALLS
    if compiled := _compiled_calls(kind):  # type: ignore[arg-type]
        return compiled
    if calls := _estimator_calls(kind):
        return calls | {CALL} if _is_called(kind) else calls
    return frozenset({CALL})


def has_weights(model: Any) -> bool:
    """A script always counts, since a frozen one holds its weights as constants."""
    if isinstance(model, torch.jit.ScriptModule):
        return True
    return next(model.parameters(), None) is not None or next(model.buffers(), None) is not None


@functools.lru_cache(maxsize=1024)  # every request asks this about all reachable objects
def _kind_of_class(kind: type) -> ModelKind | None:
    """Decided by the class, since reading an object's attributes may run its properties."""
    if _is_session(kind) or _estimator_calls(kind):
        return ModelKind.MODEL
    return ModelKind.CALLABLE if _is_called(kind) else None


@functools.lru_cache(maxsize=1024)
def _compiled_calls(kind: type) -> frozenset[str]:
    return frozenset(
        name
        for cls in kind.__mro__
        for name, member in vars(cls).items()
        if hasattr(member, "_torchdynamo_orig_callable")
    )


def _is_session(kind: type) -> bool:
    return callable(getattr(kind, "run", None)) and callable(getattr(kind, "get_inputs", None))


def _estimator_calls(kind: type) -> frozenset[str]:
    return frozenset(name for name in ESTIMATOR_CALLS if callable(getattr(kind, name, None)))


def _is_called(kind: type) -> bool:
    if issubclass(kind, (*FUNCTIONS, functools.partial)):
        return True
    return any("__call__" in vars(cls) for cls in kind.__mro__) and not _prepares(kind)


def _prepares(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _TRANSFORMS
