"""One floating leaf in a container, out and back; everything else is refused with a reason."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ts_parity.errors import NotCodable
from ts_parity.worker.outputs import take

LOGITS = torch.tensor([[1.5, -2.0]])
Pair = namedtuple("Pair", ["logits", "extra"])


@dataclass
class Output:
    logits: Any
    loss: Any = None


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: a mapping that is a dataclass."""


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
    if isinstance(one, Output):
        return type(one) is type(other) and _same(vars(one), vars(other))
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
        ((LOGITS, torch.tensor([1])), "int64"),
        ((LOGITS, LOGITS), "2 floating parts"),
        ({"a": LOGITS, "b": 0.5}, "2 floating parts"),
        ([LOGITS, LOGITS], "2 floating parts"),
        (None, "no floating"),
        ([], "no floating"),
        ("text", "a str"),
        (7, "an integer"),
        (True, "an integer"),
        ([1, 2], "integers"),
        ([0.5, 1], "integers"),
        ([[0.5], [0.5, 0.25]], "ragged"),
        (np.array([1, 2]), "not floating"),
        (torch.tensor([1 + 2j]), "complex"),
        (LOGITS.to_sparse(), "sparse"),
        (iter([1.0]), "cannot be coded"),
    ],
)
def test_refused(output: Any, why: str) -> None:
    with pytest.raises(NotCodable, match=why):
        take(output)


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
