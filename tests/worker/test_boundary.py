"""The boundary: finding the model wherever it is, one run at a time, and leaving nothing behind."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ts_parity.errors import NotCodable
from ts_parity.worker import boundary as boundary_module
from ts_parity.worker.boundary import Boundary
from ts_parity.worker.encoders import model_input
from ts_parity.worker.model_search import ModelSearch
from ts_parity.worker.stand_in import StandIn

X = torch.tensor([[1.0, 2.0, 3.0]])


def _net() -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(3, 2)


class Plain:
    def __init__(self, model: Any = None) -> None:
        self.model = model or _net()

    def handle(self, data: Any, context: Any) -> Any:
        with torch.no_grad():
            return self.model(data).tolist()


class Slotted:
    __slots__ = ("net",)

    def __init__(self) -> None:
        self.net = _net()

    def handle(self, data: Any, context: Any) -> Any:
        return self.net(data).tolist()


class IsModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def handle(self, data: Any, context: Any) -> Any:
        return self.net(data).tolist()


class OnClass:
    net = _net()

    def handle(self, data: Any, context: Any) -> Any:
        return self.net(data).tolist()


class Nested:
    def __init__(self) -> None:
        self.parts = types.SimpleNamespace(models={"en": [Plain()]})

    def handle(self, data: Any, context: Any) -> Any:
        return self.parts.models["en"][0].handle(data, context)


class Property:
    def __init__(self) -> None:
        self._hidden = _net()

    @property
    def model(self) -> Any:
        return self._hidden

    def handle(self, data: Any, context: Any) -> Any:
        return self.model(data).tolist()


class Chained:
    def __init__(self) -> None:
        self.model = _net()

    def handle(self, data: Any, context: Any) -> Any:
        self.model = self.model.to("cpu").eval()
        return self.model.requires_grad_(False)(data).tolist()


class CallableHandler:
    def __init__(self) -> None:
        self.model = _net()

    def __call__(self, data: Any, context: Any) -> Any:
        return self.model.forward(data).tolist()


def _closure() -> Callable[[Any, Any], Any]:
    model = _net()

    def handle(data: Any, context: Any) -> Any:
        return model(data).tolist()

    return handle


MODEL = _net()
DECOY = _net()


def _predict(data: Any) -> Any:
    return MODEL(data)


def by_global(data: Any, context: Any) -> Any:
    return _predict(data).tolist()


def by_partial(extra: Any, data: Any, context: Any) -> Any:
    return MODEL(data).tolist()


ENTRIES: dict[str, Callable[[], Any]] = {
    "attribute": lambda: Plain().handle,
    "slot": lambda: Slotted().handle,
    "module as handler": lambda: IsModule().handle,
    "class attribute": lambda: OnClass().handle,
    "nested": lambda: Nested().handle,
    "property": lambda: Property().handle,
    "chained": lambda: Chained().handle,
    "callable object": CallableHandler,
    "closure": _closure,
    "global": lambda: by_global,
    "partial": lambda: functools.partial(by_partial, None),
    "script": lambda: Plain(torch.jit.script(_net())).handle,
}


def _no_stand_ins_left(entry: Any) -> bool:
    return not any(type(site.get()) is StandIn for site in ModelSearch(entry).sites())


@pytest.mark.parametrize("where", ENTRIES)
def test_the_model_is_found(where: str) -> None:
    entry = ENTRIES[where]()
    ordinary = entry(X, None)
    boundary = Boundary(entry)
    record = boundary.record(X, None)
    assert record.answer == ordinary
    assert record.raw is not None
    np.testing.assert_allclose(record.raw, ordinary)
    assert torch.equal(model_input(boundary.capture(X, None)), X)
    assert boundary.finish(X, None, record.raw * 2) == (record.raw * 2).tolist()
    assert entry(X, None) == ordinary
    assert _no_stand_ins_left(entry)
    assert len(boundary.models) == 1


def test_nothing_stays_behind_when_user_code_raises() -> None:
    class Fails(Plain):
        def handle(self, data: Any, context: Any) -> Any:
            self.model(data)
            raise KeyError("user")

    handler = Fails()
    boundary = Boundary(handler.handle)
    with pytest.raises(KeyError):
        boundary.record(X, None)
    with pytest.raises(KeyError):
        boundary.finish(X, None, np.zeros((1, 2), np.float32))
    assert torch.equal(model_input(boundary.capture(X, None)), X)
    assert type(handler.model) is torch.nn.Linear


def test_a_model_that_user_code_replaces_stays_replaced() -> None:
    class Reloads(Plain):
        def handle(self, data: Any, context: Any) -> Any:
            answer = self.model(data).tolist()
            self.model = torch.nn.Linear(3, 2)
            return answer

    handler = Reloads()
    before = handler.model
    assert Boundary(handler.handle).record(X, None).raw is not None
    assert handler.model is not before
    assert type(handler.model) is torch.nn.Linear


def test_aliases_are_one_model_and_stay_aliases() -> None:
    class Aliased(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.same = self.model

        def handle(self, data: Any, context: Any) -> Any:
            assert self.same is self.model
            return self.same(data).tolist()

    handler = Aliased()
    boundary = Boundary(handler.handle)
    assert boundary.record(X, None).raw is not None
    assert boundary.models == [handler.model]


def test_the_stand_in_looks_like_the_model() -> None:
    class Curious(Plain):
        def handle(self, data: Any, context: Any) -> Any:
            model = self.model
            assert isinstance(model, torch.nn.Sequential)
            assert len(model) == 2
            assert [type(part) for part in model] == [torch.nn.Linear, torch.nn.ReLU]
            assert isinstance(model[0], torch.nn.Linear)
            assert bool(model)
            assert repr(model).startswith("Sequential")
            assert next(model.parameters()).device.type == "cpu"
            model.note = "kept"
            assert "note" in dir(model)
            return model(data).tolist()

    net = torch.nn.Sequential(_net(), torch.nn.ReLU())
    assert Boundary(Curious(net).handle).record(X, None).raw is not None
    assert net.note == "kept"


def test_a_stand_in_that_user_code_kept_becomes_the_model_again() -> None:
    class Keeps(Plain):
        def handle(self, data: Any, context: Any) -> Any:
            self.kept = self.model
            return self.kept(data).tolist()

    handler = Keeps()
    boundary = Boundary(handler.handle)
    for _ in range(2):
        assert boundary.record(X, None).raw is not None
    assert boundary.models == [handler.model]
    assert type(handler.kept) is torch.nn.Linear


def test_several_calls_are_refused_by_name() -> None:
    class Pair:
        def __init__(self) -> None:
            self.first, self.second = _net(), torch.nn.Linear(2, 2)

        def handle(self, data: Any, context: Any) -> Any:
            return self.second(self.first(data)).tolist()

    boundary = Boundary(Pair().handle)
    refusal = boundary.record(X, None).refusal
    assert refusal is not None
    assert "called 2 times in one request (self.first, self.second)" in refusal
    # A declaration says which of them is the model.
    declared = Boundary(Pair().handle, model="self.first")
    record = declared.record(X, None)
    assert record.raw is not None
    assert declared.finish(X, None, record.raw) == record.answer


def test_a_declared_method_is_the_model_call() -> None:
    class Encoder:
        def encode(self, rows: Any) -> Any:
            return np.asarray(rows, np.float32) * 3

    class Embeds:
        def __init__(self) -> None:
            self.encoder = Encoder()

        def handle(self, data: Any, context: Any) -> Any:
            return self.encoder.encode(data.numpy()).tolist()

    record = Boundary(Embeds().handle).record(X, None)
    assert record.refusal is not None
    assert "no model object was found" in record.refusal
    boundary = Boundary(Embeds().handle, model="encoder", call="encode")
    record = boundary.record(X, None)
    np.testing.assert_allclose(record.raw, X * 3)
    assert boundary.capture(X, None).method == "encode"
    assert boundary.finish(X, None, np.ones((1, 3), np.float32)) == [[1.0, 1.0, 1.0]]


def test_a_wrong_declaration_says_what_is_wrong() -> None:
    """A request is answered all the same; what needs the model is refused."""
    why = "neither the handler object nor its module has 'modle'"
    record = Boundary(Plain().handle, model="modle").record(X, None)
    assert (len(record.answer[0]), record.raw) == (2, None)
    assert why in (record.refusal or "")
    with pytest.raises(NotCodable, match=why):
        Boundary(Plain().handle, model="modle").capture(X, None)
    assert "computed" in (Boundary(Property().handle, model="model").record(X, None).refusal or "")


def test_a_bare_except_does_not_hide_the_capture() -> None:
    class Swallows(Plain):
        def handle(self, data: Any, context: Any) -> Any:
            try:
                return self.model(data).tolist()
            except:  # noqa: E722
                return "sorry"

    boundary = Boundary(Swallows().handle)
    assert torch.equal(model_input(boundary.capture(X, None)), X)


def test_inputs_are_copies() -> None:
    class Buffered(Plain):
        buffer = torch.zeros(1, 3)

        def handle(self, data: Any, context: Any) -> Any:
            self.buffer.copy_(data)
            with torch.inference_mode():
                return self.model(self.buffer).tolist()

    boundary = Boundary(Buffered().handle)
    first, _ = boundary.capture(X, None), boundary.capture(X * 2, None)
    assert torch.equal(model_input(first), X)
    assert not model_input(first).is_inference()


def test_a_model_that_is_made_late_is_made_first() -> None:
    class Lazy:
        model: Any = None

        def handle(self, data: Any, context: Any) -> Any:
            if self.model is None:
                self.model = _net()
            return self.model(data).tolist()

    record = Boundary(Lazy().handle).record(X, None)
    assert (record.raw, record.existed) == (None, False)
    assert torch.equal(model_input(Boundary(Lazy().handle).capture(X, None)), X)
    assert Boundary(Lazy().handle).finish(X, None, np.ones((1, 2), np.float32)) == [[1.0, 1.0]]


def test_transforms_are_not_the_model() -> None:
    class Transforms(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Identity()

        def handle(self, data: Any, context: Any) -> Any:
            return self.model(self.scale(data)).tolist()

    assert Boundary(Transforms().handle).record(X, None).raw is not None


def test_replaced_and_compute() -> None:
    handler = Plain()
    boundary = Boundary(handler.handle)
    other = torch.nn.Linear(3, 2)
    with boundary.replaced(other):
        assert boundary.record(X, None).answer == other(X).tolist()
    assert handler.model is not other
    call = boundary.capture(X, None)
    assert torch.equal(boundary.compute(call), handler.model(X))


def test_the_import_error_that_helps_is_told() -> None:
    with pytest.raises(ImportError, match="no_such_handler_anywhere"):
        boundary_module.load_entry_point("no_such_handler_anywhere.py", None)
