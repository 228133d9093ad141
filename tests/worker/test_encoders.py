"""The encoder: sums of floating inputs, everything else equal or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.encoders import combine, encode, model_input, odd_ones_out
from ts_parity.worker.watches import ModelCall

A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])


def _call(*args: Any, **kwargs: Any) -> ModelCall:
    return ModelCall("self.model", "__call__", args, kwargs)


def test_combine() -> None:
    assert combine([A, B], [1.0, 2.0]).tolist() == [[21.0, 42.0]]
    assert combine([None, B], [1.0, 2.0]).tolist() == [[20.0, 40.0]]
    assert combine([A.half(), B.half()], [1.0, 1.0]).dtype == torch.float16
    with pytest.raises(NotCodable, match="at least one member"):
        combine([None], [1.0])


def test_the_call_keeps_its_form() -> None:
    encoded = encode([_call(pixels={"x": [A]}, flag=True), None, _call(pixels={"x": [B]}, flag=True)], [1, 1, 3])
    assert encoded.kwargs["pixels"]["x"][0].tolist() == [[31.0, 62.0]]
    assert encoded.kwargs["flag"] is True


def test_constants_are_passed_once() -> None:
    graph = torch.eye(2)
    encoded = encode([_call(A, graph, torch.tensor([1])), _call(B, graph.clone(), torch.tensor([1]))], [1, 1])
    assert encoded.args[0].tolist() == [[11.0, 22.0]]
    assert torch.equal(encoded.args[1], graph)


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([_call(torch.tensor([1])), _call(torch.tensor([2]))], "integers"),
        ([_call(A, torch.tensor([1])), _call(B, torch.tensor([2]))], "integers"),
        ([_call(A, A), _call(B, B)], "2 floating tensors"),
        ([_call(A, A)], "2 floating tensors"),
        ([_call("text"), _call("other")], "differs between the slots"),
        ([_call(A, 1), _call(B, 2)], "differs between the slots"),
        ([_call(A), _call(x=B)], "different arguments"),
        ([_call("same"), _call("same")], "0 floating tensors"),
    ],
)
def test_refused(calls: list[ModelCall], why: str) -> None:
    with pytest.raises(NotCodable, match=why):
        encode(calls, [1.0] * len(calls))


def test_odd_ones_out() -> None:
    odd = odd_ones_out({0: _call(A), 1: _call(torch.ones(2, 2)), 3: _call(B)})
    assert list(odd) == [1]
    assert "float32 (2, 2) cannot be coded with the group's float32 (1, 2)" in odd[1]
    assert odd_ones_out({0: _call(A), 1: _call(B.double())}).keys() == {1}
    assert odd_ones_out({0: _call(A)}) == {}


def test_model_input() -> None:
    assert model_input(_call(A, 1, None)) is A
