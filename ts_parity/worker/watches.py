"""What a stand-in does with a model call: record it, end the run there, or answer in the model's place.

There is one watch for each run of the user's entry point. Knows calls and outputs. Knows nothing of where the model
object is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch

from ts_parity.errors import NotCodable
from ts_parity.wire import Array
from ts_parity.worker import suggestions
from ts_parity.worker.missing_part import missing_parts_in, refuse_use
from ts_parity.worker.model_kinds import ModelKind, calls_of, model_kind
from ts_parity.worker.outputs import Container, SeveralParts, take
from ts_parity.worker.stand_in import CALL, StandIn, Watch
from ts_parity.worker.suggestions import Declaration, ObservedCall

NO_MODEL_BEFORE = "no model object was found before the request"


class ModelReached(BaseException):
    """Ends a run at the model call. Not an Exception: user code's `except Exception` must not swallow it."""


class _OutputRefused(RuntimeError):
    """Raised in user code if there is no output for it. The watch's refusal is what gets reported."""


@dataclass(frozen=True)
class ModelCall:
    """One model call by user code: the object's site, the method, the arguments.

    `input` and `output`: the places of what is coded in its arguments and output, if the archive declares them.
    `autocast`: the precisions that user code had switched on around the call.
    """

    site: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input: str = ""
    output: str = ""
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    """(kind of device, dtype) each."""

    @property
    def name(self) -> str:
        return self.site if self.method == CALL else f"{self.site}.{self.method}"

    @contextmanager
    def as_called(self) -> Iterator[None]:
        """While it lasts, the precisions of the call are on: weights of half precision may not run without them."""
        with ExitStack() as stack:
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            yield


def precisions() -> tuple[tuple[str, torch.dtype], ...]:
    """The autocast that is on here."""
    if not hasattr(torch, "get_autocast_dtype"):  # torch before 2.4
        known = (
            ("cuda", torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()),
            ("cpu", torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()),
        )
        return tuple((kind, dtype) for kind, on, dtype in known if on)
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind))


@dataclass(frozen=True)
class DeclaredPlaces:
    """Places in the model call's arguments and output, as the archive declares them; empty: there is only one."""

    input: str = ""
    output: str = ""


class CallWatch:
    """Counts the model calls of one run; the kinds of watches differ in `called`."""

    def __init__(self, declared: DeclaredPlaces) -> None:
        self.calls: list[ModelCall] = []
        self.extra: list[StandIn] = []
        """More stand-ins that user code got, besides those at the sites; all are dismissed together."""
        self._declared = declared

    def at(self, path: str, model: Any) -> Watch:
        return _SiteWatch(self, path, model, self._declared)

    def read(self, path: str, model: Any, name: str, value: Any) -> Any:
        """User code reads an attribute of the model. -> what it gets."""
        return value

    def returned(self, path: str, method: str, result: Any) -> None:
        """Another method of the model has returned."""

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        raise NotImplementedError

    def several_calls(self) -> NotCodable:
        where = ", ".join(sorted({call.name for call in self.calls}))
        return NotCodable(
            f"the model was called {len(self.calls)} times in one request ({where}); a code needs exactly one call"
        )


@dataclass(frozen=True)
class _SiteWatch:
    """Adds the site of one model object to what a watch gets."""

    watching: CallWatch
    path: str
    model: Any
    declared: DeclaredPlaces

    def called(self, method: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        places = self.declared.input, self.declared.output
        call = ModelCall(self.path, method, args, kwargs, *places, precisions())
        return self.watching.called(call, run)

    def read(self, name: str, value: Any) -> Any:
        return self.watching.read(self.path, self.model, name, value)

    def returned(self, method: str, result: Any) -> None:
        self.watching.returned(self.path, method, result)


class RecordingWatch(CallWatch):
    """Let the model compute, and take its output.

    `observes`: also watch what else user code does with the model, and with objects passed to `observing`, to find out
    what to declare.
    """

    def __init__(self, declared: DeclaredPlaces, keep_inputs: bool = False, observes: bool = False) -> None:
        super().__init__(declared)
        self.container: Container | None = None
        self._observes = observes
        self._keep_inputs = keep_inputs
        self._raw: Array | None = None
        self._refusal: str | None = None
        self._outcomes: list[ObservedCall] = []
        self._observed_calls: list[ObservedCall] = []

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(_detached(call) if self._keep_inputs else call)
        output = run(*call.args, **call.kwargs)
        outcome = ObservedCall(call.site, call.method)
        try:
            # At once, since user code may change the output in place.
            self._raw, self.container = take(output, call.output)
        except NotCodable as refusal:
            self._refusal, outcome = str(refusal), _refused(outcome, refusal)
        self._outcomes.append(outcome)
        return output

    def read(self, path: str, model: Any, name: str, value: Any) -> Any:
        """An attribute read after the call may hold results that a rebuilt output would lack."""
        if self.calls:
            if not self._refusal and _is_left_behind(value, model):
                self._refusal = (
                    f"the handler takes more from its model than the output ({path}.{name}, read after the call), so "
                    "an answer cannot be made from an output alone"
                )
        elif self._observes and model_kind(value) is ModelKind.MODEL and not isinstance(model, torch.jit.ScriptModule):
            return self.observing(f"{path}.{name}", value)
        return value

    def returned(self, path: str, method: str, result: Any) -> None:
        if self._observes and not self.calls:
            self.observe(path, method, result)

    def observing(self, path: str, value: Any) -> StandIn:
        """A stand-in that only observes the calls of an object that is not watched for model calls."""
        stand_in = StandIn(value, _ObservingWatch(self, path, value), calls_of(value))
        self.extra.append(stand_in)
        return stand_in

    def observe(self, path: str, method: str, result: Any) -> None:
        outcome = ObservedCall(path, method)
        try:
            take(result)
        except NotCodable as refusal:
            outcome = _refused(outcome, refusal)
        if result is None:
            outcome = replace(outcome, why="it returns nothing: what it computes cannot be taken from where it lies")
        self._observed_calls.append(outcome)

    @property
    def parts(self) -> tuple[str, ...]:
        """The places of the only call's floating parts, if there are several and none is declared."""
        return self._outcomes[0].parts if len(self._outcomes) == 1 else ()

    def verdict(self, sites: Sequence[str]) -> tuple[Array | None, str | None, Declaration]:
        """-> (raw output, None, {}) or (None, why there is none, what to declare). `sites`: where models were."""
        if len(self.calls) > 1:
            return None, str(self.several_calls()), suggestions.for_several_calls(self._outcomes, self._observed_calls)
        if not self.calls:
            missing = "the model was not reached" if sites else NO_MODEL_BEFORE
            if lines := suggestions.for_other_calls(self._observed_calls, sites):
                return None, missing, lines
            if instead := suggestions.called_instead(self._observed_calls, sites):
                return None, f"{missing}: {instead}; use code exact", {}
            return None, f"{missing}; if this is always so, declare where it is with model:, or use code exact", {}
        if self.parts:
            return None, self._refusal, suggestions.for_parts(self.parts)
        if self._raw is None or self._refusal:
            return None, self._refusal or "the model raised an exception", {}
        return self._raw, None, {}


def _refused(outcome: ObservedCall, refusal: NotCodable) -> ObservedCall:
    parts = refusal.parts if isinstance(refusal, SeveralParts) else ()
    return replace(outcome, why=str(refusal), parts=parts)


@dataclass(frozen=True)
class _ObservingWatch:
    """Observes an object that is not watched for model calls, and its parts, for a recording."""

    recording: RecordingWatch
    path: str
    value: Any

    def called(self, method: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = run(*args, **kwargs)
        self.recording.observe(self.path, method, result)
        return result

    def read(self, name: str, value: Any) -> Any:
        return self.recording.observing(f"{self.path}.{name}", value) if model_kind(value) is ModelKind.MODEL else value

    def returned(self, method: str, result: Any) -> None:
        self.recording.observe(self.path, method, result)


class CapturingWatch(CallWatch):
    """Take the model's inputs, and end the run."""

    def __init__(self, declared: DeclaredPlaces) -> None:
        super().__init__(declared)
        self._ended = ""

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(_detached(call))
        raise ModelReached

    def ended_with(self, answer: Any) -> None:
        self._ended = f"; the handler answered {str(answer)[:200]!r}"

    def only_call(self) -> ModelCall:
        if len(self.calls) == 1:
            return self.calls[0]
        raise self.several_calls() if self.calls else NotCodable(f"the model was not reached{self._ended}")


class SubstitutingWatch(CallWatch):
    """Return a raw output from elsewhere, in the container that the model would have used.

    `raw_of`: the output for this call, known beforehand or computed by another model.
    """

    def __init__(
        self, declared: DeclaredPlaces, raw_of: Callable[[ModelCall], Array], container: Container | None
    ) -> None:
        super().__init__(declared)
        self.container = container
        self.refusal: NotCodable | None = None
        self._raw_of = raw_of

    def called(self, call: ModelCall, run: Callable[..., Any]) -> Any:
        self.calls.append(call)
        try:
            if len(self.calls) > 1:
                raise self.several_calls()
            if self.container is None:
                _, self.container = take(run(*call.args, **call.kwargs), call.output)
            return self.container.rebuild(self._raw_of(call), self._refuse_use)
        except NotCodable as refusal:
            self.refusal = refusal
            raise _OutputRefused(str(refusal)) from refusal

    def answered(self, answer: Any) -> None:
        """The answer may not contain a missing part."""
        for missing in missing_parts_in(answer):
            with suppress(_OutputRefused):
                refuse_use(missing)

    def _refuse_use(self, place: str) -> NoReturn:
        self.refusal = NotCodable(
            f"the handler uses {place} of its model beside the part that is coded, so an answer cannot be made from "
            "that part alone"
        )
        raise _OutputRefused(str(self.refusal))


def _is_left_behind(value: Any, model: Any) -> bool:
    """Whether it is a tensor, or holds one, that is none of the model's weights."""
    if type(value) in (list, tuple):
        return any(_is_left_behind(child, model) for child in value)
    if type(value) is dict:
        return any(_is_left_behind(child, model) for child in value.values())
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return False
    own = (*model.parameters(), *model.buffers()) if isinstance(model, torch.nn.Module) else ()
    return not any(buffer.data_ptr() == value.data_ptr() for buffer in own)


def copied(value: Any) -> Any:
    """A copy of tensors, arrays, bytes and plain containers; anything else unchanged."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, bytearray):
        return bytearray(value)
    if type(value) in (list, tuple):
        return type(value)(copied(child) for child in value)
    if isinstance(value, MutableMapping):
        other = copy.copy(value)
        other.update({name: copied(child) for name, child in value.items()})
        return other
    return value


def _detached(call: ModelCall) -> ModelCall:
    """Copy the inputs: user code may reuse the same buffer for its next request."""
    # Outside inference mode, because training needs ordinary tensors.
    with torch.inference_mode(False), torch.no_grad():
        return replace(call, args=copied(call.args), kwargs=copied(call.kwargs))
