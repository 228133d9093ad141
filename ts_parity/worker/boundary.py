"""The boundary at the model call: runs the user's whole entry point, and watches or replaces its one model call.

Loads the entry point by TorchServe's own rules. For one run at a time it puts a stand-in wherever the user's code keeps
the model object. So the model call can be recorded (its raw output), captured (its inputs; the run ends there) or
finished (user code gets a raw output from elsewhere). Workers use it, and training does in process. Knows nothing of
requests, frames, codes, or what the numbers mean.

It promises two things. After a run nothing stays changed, whatever user code does. And a run that calls the model
twice, or whose output does not have exactly one floating part, is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
from ts.model_loader import TsModelLoader

from ts_parity.errors import NotCodable
from ts_parity.wire import Array
from ts_parity.worker.model_kinds import calls_of
from ts_parity.worker.model_search import ModelSearch, Site
from ts_parity.worker.outputs import Container, take
from ts_parity.worker.stand_in import CALL, StandIn, dismiss, unwrap
from ts_parity.worker.suggestions import Declaration, suggestion
from ts_parity.worker.watches import (
    NO_MODEL_BEFORE,
    CallWatch,
    CapturingWatch,
    DeclaredPlaces,
    ModelCall,
    ModelReached,
    RecordingWatch,
    SubstitutingWatch,
    copied,
)

EntryPoint = Callable[[Any, Any], Any]
NOT_FOUND = "no model object was found; declare where it is with model:, or use code exact"


@dataclass(frozen=True)
class RecordedRun:
    """What one ordinary run showed. `reason`: why `raw` is None; `lines`: what to declare so that it need not be."""

    answer: Any
    raw: Array | None
    reason: str | None
    calls: tuple[ModelCall, ...] = ()
    computed_in: str = ""
    """As in a frame."""
    models: dict[str, Any] = field(default_factory=dict)
    """The model objects that were called, by site."""
    existed: bool = True
    """False if no model object was found before the run; the run may have created it."""
    parts: tuple[str, ...] = ()
    """The places of the floating parts, if the output has several and none is declared."""
    lines: Declaration = field(default_factory=dict)

    @property
    def refusal(self) -> str | None:
        """Why there is no raw output, with the line to write if one may help."""
        return f"{self.reason}; {suggestion(**self.lines)}" if self.lines else self.reason


def load_entry_point(handler: str, context: Any) -> EntryPoint:
    """Import `handler` (file[:function] or a stock name) and initialise its entry point, all as TorchServe does."""
    loader = TsModelLoader()
    module, function = _import_handler(loader, handler)
    function = function or "handle"
    if hasattr(module, function):
        entry, initialize = loader._get_function_entry_point(module, function)
    else:
        entry, initialize = loader._get_class_entry_point(module)
    initialize(context)
    return entry  # type: ignore[no-any-return]


def _import_handler(loader: Any, handler: str) -> tuple[ModuleType, str | None]:
    try:
        return loader._load_handler_file(handler)  # type: ignore[no-any-return]
    except ImportError as own:
        try:
            return loader._load_default_handler(handler), None
        except ImportError as stock:
            # TorchServe always reports the second error. Raise the one of the two that helps.
            module = handler.split(":", 1)[0].removesuffix(".py")
            raise (own if stock.name == f"ts.torch_handler.{module}" else stock) from None


class Boundary:
    """The entry point of one user handler, and all the ways to run it.

    The other arguments are what the archive declares: `model` and `call` if the search would not find the right object
    or method, `input` and `output` if the call has several floating inputs or its output several floating parts.
    """

    def __init__(
        self,
        entry: EntryPoint,
        model: str | None = None,
        call: str | None = None,
        input: str | None = None,
        output: str | None = None,
    ) -> None:
        self.entry = entry
        self._declared = DeclaredPlaces(input or "", output or "")
        self._reached = False
        self._has_run = False
        self._search = ModelSearch(entry)
        self._model = model
        self._calls = frozenset({call}) if call else None
        self._container: Container | None = None

    def plain(self, data: Any, context: Any) -> Any:
        answer = self.entry(data, context)
        self._has_run = True
        return answer

    def record(self, data: Any, context: Any, keep_inputs: bool = False, look_around: bool = False) -> RecordedRun:
        """Run as always and take the model's raw output. Exceptions of user code pass through.

        `look_around`: also watch the user's other objects, to find out what to declare. Never while serving clients: a
        stand-in for an object that is no model is one more thing that can surprise user code.
        """
        watch = RecordingWatch(self._declared, keep_inputs, observes=look_around or not self._reached)
        try:
            may_come, sites = self._may_be_created(), self.sites()
        except NotCodable as wrong:  # a wrong declaration must not cost clients their answers
            return RecordedRun(self.plain(data, context), None, str(wrong))
        around = self._search.helpers(sites) if look_around else []
        with _observed(watch, around), _watched(watch, sites, self._calls):
            answer = self.entry(data, context)
        self._reached, self._has_run = self._reached or bool(watch.calls), True
        if may_come and self._search.finds_model():
            # The run has created the model, so what was watched was not it.
            return RecordedRun(answer, None, NO_MODEL_BEFORE, existed=False)
        if watch.container is not None:
            self._container = watch.container
        raw, reason, lines = watch.verdict([site.path for site in sites])
        computed_in = "" if watch.container is None else watch.container.computed_in
        called = {call.site for call in watch.calls}
        models = {site.path: site.get() for site in sites if site.path in called}
        return RecordedRun(
            answer, raw, reason, tuple(watch.calls), computed_in, models, bool(sites), watch.parts, lines
        )

    def capture(self, data: Any, context: Any) -> ModelCall:
        """Run up to the model call and end there. Raise NotCodable unless there was exactly one such call.

        Exceptions of user code pass through, unless they came after the model call: then user code has swallowed the
        exception that should have ended the run, and whatever followed does not matter.
        """
        watch = CapturingWatch(self._declared)
        try:
            with _watched(watch, self._existing_sites(data, context), self._calls):
                watch.ended_with(self.entry(data, context))
        except ModelReached:
            pass
        except Exception:
            if not watch.calls:
                raise
        return watch.only_call()

    def finish(self, data: Any, context: Any, raw: Array) -> Any:
        """Run as always, with `raw` in place of what the model would have returned. -> the entry point's result.

        The first run lets the model compute once, to learn the container of its output.
        """
        return self._run_with_output(lambda call: raw, data, context)

    def run_with(
        self, compute: Callable[[ModelCall], Any], data: Any, context: Any, on_raw: Callable[[Array], object]
    ) -> Any:
        """Run as always, with `compute` in place of the user's own model; `on_raw` gets the raw output. -> the entry
        point's result.
        """

        def raw_of(call: ModelCall) -> Array:
            raw = finite(take(compute(call), call.output)[0])
            on_raw(raw)
            return raw

        return self._run_with_output(raw_of, data, context)

    def run_checked(self, data: Any, context: Any, on_raw: Callable[[Array], object]) -> Any:
        """Run as always; raise NotCodable if the model returned NaN or infinity. `on_raw` gets the raw output, if
        there is one. -> the entry point's result.
        """
        record = self.record(data, context)
        if record.raw is not None:
            on_raw(finite(record.raw))
        return record.answer

    def _run_with_output(self, raw_of: Callable[[ModelCall], Array], data: Any, context: Any) -> Any:
        watch = SubstitutingWatch(self._declared, raw_of, self._container)
        try:
            with _watched(watch, self._existing_sites(data, context), self._calls):
                answer = self.entry(data, context)
            watch.answered(answer)
        except Exception:
            if watch.refusal is None:
                raise
        if watch.refusal is not None:
            raise watch.refusal
        self._container = watch.container
        return answer

    @property
    def models(self) -> list[Any]:
        """The distinct model objects that user code would call now; empty until it has created one."""
        return list({id(model): model for model in (site.get() for site in self.sites())}.values())

    def compute(self, call: ModelCall) -> Any:
        """Let the user's own model compute a call captured here, perhaps with other inputs. -> its output."""
        model = self.called(call)
        run = model if call.method == CALL else getattr(model, call.method)
        with call.as_called():
            return run(*call.args, **call.kwargs)

    def called(self, call: ModelCall) -> Any:
        """The model object whose call was captured here."""
        for site in self.sites():
            if site.path == call.site:
                return site.get()
        raise NotCodable(f"the model object that was at {call.site} is no longer there")

    @contextmanager
    def replaced(self, model: Any) -> Iterator[None]:
        """While it lasts, this model replaces the user's own at every site."""
        sites = self.sites()
        if not sites:
            raise NotCodable(NOT_FOUND)
        originals = [site.get() for site in sites]
        try:
            for site in sites:
                site.put(model)
            yield
        finally:
            for site, original in zip(sites, originals, strict=True):
                site.put_back(original)

    def sites(self) -> list[Site]:
        """The sites where the model object is now."""
        return self._search.declared(self._model) if self._model else self._search.sites()

    def _may_be_created(self) -> bool:
        """A handler may create its model in its first request."""
        return not self._has_run and not self._model and not self._search.finds_model()

    def _existing_sites(self, data: Any, context: Any) -> list[Site]:
        """The sites of the model. If a first request may have yet to create it, run this one plainly first."""
        sites = self.sites()
        if not sites or self._may_be_created():
            self.plain(copied(data), context)
            sites = self.sites()
        if not sites:
            raise NotCodable(NOT_FOUND)
        return sites

    @contextmanager
    def declaring(self, model: str = "", call: str = "", output: str = "") -> Iterator[None]:
        """While it lasts, these count as declared too."""
        kept = self._declared, self._container, self._model, self._calls
        self._declared, self._container = replace(self._declared, output=output or self._declared.output), None
        self._model, self._calls = model or self._model, frozenset({call}) if call else self._calls
        try:
            yield
        finally:
            self._declared, self._container, self._model, self._calls = kept


def finite(raw: Array) -> Array:
    """The same raw output. Raise NotCodable unless every number of it is finite."""
    if not np.isfinite(raw).all():
        raise NotCodable("the model's output is not finite (NaN or infinity)")
    return raw


@contextmanager
def _observed(watch: RecordingWatch, around: Sequence[Site]) -> Iterator[None]:
    """While it lasts, stand-ins at these sites that only observe."""
    armed: list[tuple[Site, Any]] = []
    try:
        for site in around:
            real = site.get()
            site.put(watch.observing(site.path, real))
            armed.append((site, real))
        yield
    finally:
        for site, real in armed:
            if unwrap(site.get()) is real:
                site.put_back(real)


@contextmanager
def _watched(watch: CallWatch, sites: Sequence[Site], calls: frozenset[str] | None) -> Iterator[None]:
    """While it lasts, stand-ins at every site of a model; one per object, so that aliases stay aliases.

    `calls`: the methods that are model calls, if the archive declares them; None: those of the object's kind.
    """
    stand_ins: dict[int, StandIn] = {}
    armed: list[tuple[Site, StandIn]] = []
    try:
        for site in sites:
            real = unwrap(site.get())
            if id(real) not in stand_ins:
                stand_ins[id(real)] = StandIn(real, watch.at(site.path, real), calls or calls_of(real))
            site.put(stand_ins[id(real)])
            armed.append((site, stand_ins[id(real)]))
        yield
    finally:
        for stand_in in (*stand_ins.values(), *watch.extra):
            dismiss(stand_in)
        for site, stand_in in armed:
            # If user code has put another object there meanwhile, it stays.
            if site.get() is stand_in:
                site.put_back(unwrap(stand_in))
