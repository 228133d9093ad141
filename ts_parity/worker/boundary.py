"""The boundary at the model call: the user's own entry point, run whole, with one point of it watched or replaced.

Finds the entry point with TorchServe's own rules and, for one call at a time, puts a stand-in wherever the model object
is. Then a call can be recorded (raw output), stopped (model inputs) or fed (a raw output from elsewhere). Used inside a
worker and, in process, by training. Knows nothing of requests, frames, codes or what the numbers mean.

Promises: nothing stays changed after a call, whatever user code does in it; a run that reaches the model twice, or
whose output is not one floating leaf, is not codable, and the reason is said.
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
    NOT_BEFORE,
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
NOT_FOUND = "no model object was found; declare where it is with model:, or take code exact"


@dataclass(frozen=True)
class RecordedRun:
    """What one ordinary run showed. `raw` is None if `reason` says why there is none; `lines`: what to declare."""

    answer: Any
    raw: Array | None
    reason: str | None
    calls: tuple[ModelCall, ...] = ()
    computed_in: str = ""
    """As in a frame."""
    models: dict[str, Any] = field(default_factory=dict)
    """Those that were called, by site."""
    existed: bool = True
    """False if no model object could be found before the run: it may have been created in it."""
    parts: tuple[str, ...] = ()
    """Places of the floating parts of an output that has several, none of which is declared."""
    lines: Declaration = field(default_factory=dict)

    @property
    def refusal(self) -> str | None:
        """Why there is no raw output, and the line to write where one may help."""
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
            # TorchServe reports the second error whatever the first was. Of the two, the one that helps is told.
            module = handler.split(":", 1)[0].removesuffix(".py")
            raise (own if stock.name == f"ts.torch_handler.{module}" else stock) from None


class Boundary:
    """The entry point of one user handler, and every way to run it.

    The others are the archive's declaration: `model` and `call`, where the search would not find the right object or
    method, `input` and `output`, where the call has several floating inputs, or its output several floating parts.
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

        `look_around`: see what user code does with its other objects too, to name the line of a declaration. Not where
        clients are served: a stand-in in the place of something that is no model is one more thing that may surprise.
        """
        watch = RecordingWatch(self._declared, keep_inputs, looks=look_around or not self._reached)
        try:
            may_come, sites = self._may_come(), self.sites()
        except NotCodable as wrong:  # a declaration that does not fit is no client's fault
            return RecordedRun(self.plain(data, context), None, str(wrong))
        around = self._search.helpers(sites) if look_around else []
        with _observed(watch, around), _watched(watch, sites, self._calls):
            answer = self.entry(data, context)
        self._reached, self._has_run = self._reached or bool(watch.calls), True
        if may_come and self._search.finds_model():
            # What was watched was none: the model is there from now on.
            return RecordedRun(answer, None, NOT_BEFORE, existed=False)
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
        """Run up to the model call and end there. Raise NotCodable if the run ended without exactly one such call.

        Exceptions of user code pass through, unless they came after the model was reached: then user code swallowed
        our own, and what follows is of no interest.
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
        """Run as always, `raw` standing in for what the model would have returned. -> the entry point's answer.

        The first of all runs learns the output's container by letting the model compute once.
        """
        return self._run_with_output(lambda call: raw, data, context)

    def run_with(
        self, compute: Callable[[ModelCall], Any], data: Any, context: Any, on_raw: Callable[[Array], object]
    ) -> Any:
        """Run as always, with `compute` making the model call in place of the user's own model, and `told` the raw
        output. -> the answer.
        """

        def raw_of(call: ModelCall) -> Array:
            raw = finite(take(compute(call), call.output)[0])
            on_raw(raw)
            return raw

        return self._run_with_output(raw_of, data, context)

    def run_checked(self, data: Any, context: Any, on_raw: Callable[[Array], object]) -> Any:
        """Run as always; raise NotCodable if the model said NaN or infinity. `told` of the raw output, if there is one.
        -> the answer.
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
        """The distinct model objects that user code would call now; empty while it has not created one."""
        return list({id(model): model for model in (site.get() for site in self.sites())}.values())

    def compute(self, call: ModelCall) -> Any:
        """Let the user's own model compute a call that was captured here, perhaps with other inputs. -> its output."""
        model = self.called(call)
        run = model if call.method == CALL else getattr(model, call.method)
        return run(*call.args, **call.kwargs)

    def called(self, call: ModelCall) -> Any:
        """The model object whose call was captured here."""
        for site in self.sites():
            if site.path == call.site:
                return site.get()
        raise NotCodable(f"the model object that was at {call.site} is no longer there")

    @contextmanager
    def replaced(self, model: Any) -> Iterator[None]:
        """While it lasts, user code uses this model instead of its own, at every site."""
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
        """Where the model object is now."""
        return self._search.declared(self._model) if self._model else self._search.sites()

    def _may_come(self) -> bool:
        """A handler may create its model in its first request."""
        return not self._has_run and not self._model and not self._search.finds_model()

    def _existing_sites(self, data: Any, context: Any) -> list[Site]:
        """Where the model may have yet to be created by a first request, this one is first run once, plainly."""
        sites = self.sites()
        if not sites or self._may_come():
            self.plain(copied(data), context)
            sites = self.sites()
        if not sites:
            raise NotCodable(NOT_FOUND)
        return sites

    @contextmanager
    def declaring(self, model: str = "", call: str = "", output: str = "") -> Iterator[None]:
        """While it lasts, these count as declared, beside what is."""
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
    """Stand-ins that only look, at these sites while it lasts."""
    armed: list[tuple[Site, Any]] = []
    try:
        for site in around:
            real = site.get()
            site.put(watch.looking(site.path, real))
            armed.append((site, real))
        yield
    finally:
        for site, real in armed:
            if unwrap(site.get()) is real:
                site.put_back(real)


@contextmanager
def _watched(watch: CallWatch, sites: Sequence[Site], calls: frozenset[str] | None) -> Iterator[None]:
    """Stand-ins at every site of a model while it lasts; one per object, so that aliases stay aliases.

    `calls`: the methods that are model calls, where the archive declares them; None: those of the object's kind.
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
            # What user code put there meanwhile is its own business.
            if site.get() is stand_in:
                site.put_back(unwrap(stand_in))
