"""One floating leaf in a container, out and back; everything else is refused with a reason."""

from __future__ import annotations

import json
import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.missing_part import MissingPart
from ts_parity.worker.outputs import SeveralParts, floating_leaf, take

LOGITS = torch.tensor([[1.5, -2.0]])
Pair = namedtuple("Pair", ["logits", "extra"])


@dataclass
class Output:
    logits: Any
    loss: Any = None


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: a mapping that is a dataclass."""


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Any) -> None:
        self.logits = logits


class Wanting:
    def __init__(self, count: int, logits: Any) -> None:
        self.logits = logits[:count]


CONTAINERS = {
    "tensor": LOGITS,
    "half": LOGITS.half(),
    "bfloat16": LOGITS.bfloat16(),
    "double": LOGITS.double(),
    "scalar": torch.tensor(2.0),
    "list of a tensor": [LOGITS],
    "tuple": (LOGITS, None),
    "named tuple": Pair(LOGITS, None),
    "dict": {"logits": LOGITS},
    "ordered": ModelOutput(logits=LOGITS),
    "dataclass": Output(LOGITS),
    "deep": {"a": [(Output({"b": LOGITS}),)]},
    "list": [[1.5, -2.0], [0.0, 1.0]],
    "array": LOGITS.numpy(),
    "half array": LOGITS.numpy().astype(np.float16),
    "numpy scalar": np.float32(0.5),
    "float": 0.5,
    "tuple of floats": (0.25, 0.75),
    "by name": {"cat": 0.25, "dog": 0.75},
    "rows by name": [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}],
    "plain object": types.SimpleNamespace(logits=LOGITS, loss=None),
    "slots": Slotted(LOGITS),
    "constructor that wants more": Wanting(7, LOGITS),
    "one tensor twice": (LOGITS, {"again": LOGITS}),
    "values and indices": torch.return_types.cummax((LOGITS, None)),
    "strided": torch.arange(12.0).reshape(3, 4).t()[::2],
}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return type(one) is type(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return type(one) is type(other) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (Output, types.SimpleNamespace, Wanting)):
        return type(one) is type(other) and _same(vars(one), vars(other))
    if isinstance(one, Slotted):
        return type(one) is type(other) and _same(one.logits, other.logits)
    return bool(one == other)


@pytest.mark.parametrize("name", CONTAINERS)
def test_out_and_back(name: str) -> None:
    output = CONTAINERS[name]
    raw, container = take(output)
    assert raw.dtype in (np.float32, np.float64)
    assert _same(container.rebuild(raw), output)
    doubled = container.rebuild(raw * 2)
    np.testing.assert_allclose(take(doubled)[0], raw * 2)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (torch.tensor([1, 2]), "int64"),
        ((torch.tensor([1]), "text"), "int64"),
        (types.SimpleNamespace(count=7), "an integer at output count"),
        ((LOGITS, LOGITS.clone()), "2 floating parts"),
        ({"a": LOGITS, "b": 0.5}, "2 floating parts"),
        ([LOGITS, LOGITS.clone()], "2 floating parts"),
        (None, "no floating"),
        ([], "no floating"),
        ("text", "a str"),
        (7, "an integer"),
        (True, "an integer"),
        ([1, 2], "integers"),
        ([0.5, 1], "integers"),
        ([[0.5], [0.5, 0.25]], "ragged"),
        (np.array([1, 2]), "int64 numbers at its root: a code needs floating ones"),
        (np.array(["cat", "dog"]), r"no numbers at its root: .* scores of classes \(predict_proba\)"),
        (torch.tensor([1 + 2j]), "complex"),
        (LOGITS.to_sparse(), "sparse"),
        (iter([1.0]), "cannot be coded"),
    ],
)
def test_refused(output: Any, why: str) -> None:
    with pytest.raises(NotCodable, match=why):
        take(output)


BESIDE = {
    "tuple": (LOGITS, torch.tensor([1]), "label"),
    "dict": {"logits": LOGITS, "labels": [1, 2], "name": "net"},
    "dataclass": Output(LOGITS, 3),
    "object": types.SimpleNamespace(logits=LOGITS, steps=3),
    "array": [np.array([4]), LOGITS.numpy()],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_number_may_be_beside_it_and_is_not_said_again(name: str) -> None:
    """User code gets the coded part, in a container of the same type; whatever it does with the rest is refused."""
    output = BESIDE[name]
    raw, container = take(output)
    np.testing.assert_array_equal(raw, LOGITS.numpy())
    again = container.rebuild(raw)
    assert type(again) is type(output)
    np.testing.assert_array_equal(take(again)[0], raw)
    fields = again if isinstance(again, (tuple, list)) else vars(again) if hasattr(again, "__dict__") else again
    rest = fields.values() if isinstance(fields, dict) else fields
    unsaid = [part for part in rest if type(part) is MissingPart]
    assert unsaid
    for part in unsaid:
        assert part is not None
        for use in (str, bool, list, len, float, torch.argmax, np.asarray, json.dumps, lambda x: x + 1, lambda x: x[0]):
            with pytest.raises((NotCodable, TypeError)):
                use(part)
        for use in (str, bool, list, torch.argmax, np.asarray, lambda x: x + 1, lambda x: x.item(), lambda x: x == 1):
            with pytest.raises(NotCodable, match="beside the part that is coded"):
                use(part)


SEVERAL = {"hidden": torch.ones(2, 3), "logits": LOGITS, "scores": [LOGITS * 2]}


@pytest.mark.parametrize("declared", ["logits", ".logits", "['logits']"])
def test_of_several_parts_the_declared_one_is_coded(declared: str) -> None:
    raw, container = take(SEVERAL, declared)
    np.testing.assert_array_equal(raw, LOGITS.numpy())
    assert torch.equal(container.rebuild(raw)["logits"], LOGITS)
    np.testing.assert_array_equal(take(SEVERAL, "scores.0")[0], 2 * LOGITS.numpy())
    np.testing.assert_array_equal(take((LOGITS, LOGITS * 3), "1")[0], 3 * LOGITS.numpy())
    np.testing.assert_array_equal(take(LOGITS, "logits")[0], LOGITS.numpy())  # a network of ours says it alone
    assert floating_leaf(SEVERAL, declared) is LOGITS
    with pytest.raises(SeveralParts) as several:
        take(SEVERAL)
    assert several.value.parts[0] == "logits"
    with pytest.raises(NotCodable, match="there are: output hidden, output logits, output scores"):
        take(SEVERAL, "logit")


def test_the_raw_output_is_a_copy() -> None:
    output = LOGITS.clone()
    raw, _ = take(output)
    output.zero_()
    assert raw.tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("name", "computed_in"),
    [("tensor", ""), ("double", ""), ("half", "float16"), ("bfloat16", "bfloat16"), ("half array", "float16")],
)
def test_a_coarser_dtype_than_the_one_that_travels_is_told(name: str, computed_in: str) -> None:
    assert take(CONTAINERS[name])[1].computed_in == computed_in
