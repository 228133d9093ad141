"""The encoder: sums of floating inputs, everything else equal or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from ts_parity.codes import make_code
from ts_parity.errors import NotCodable
from ts_parity.worker.encoders import combine, encode, mismatched_slots, model_input, tile
from ts_parity.worker.watches import ModelCall

A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])


def _call(*args: Any, **kwargs: Any) -> ModelCall:
    return ModelCall("self.model", "__call__", args, kwargs)


def test_combine() -> None:
    assert combine([A, B], [1.0, 2.0]).tolist() == [[21.0, 42.0]]
    assert combine([None, B], [1.0, 2.0]).tolist() == [[20.0, 40.0]]
    assert combine([A.half(), B.half()], [1.0, 1.0]).dtype == torch.float16
    large, one = torch.tensor([2048.0]).half(), torch.tensor([1.0]).half()
    assert combine([large, one, one], [1.0, 1.0, 1.0]) == 2050.0, "in half precision 2048 and 1 are 2048"
    with pytest.raises(NotCodable, match="at least one member"):
        combine([None], [1.0])


def test_the_call_keeps_its_form() -> None:
    encoded = encode(
        [_call(pixels={"x": [A]}, flag=True), None, _call(pixels={"x": [B]}, flag=True)],
        make_code("sum", 3, 1, ((1.0, 1.0, 3.0),)),
    )
    assert encoded.kwargs["pixels"]["x"][0].tolist() == [[31.0, 62.0]]
    assert encoded.kwargs["flag"] is True


class Matrix:
    """In the manner of XGBoost's DMatrix: what is NaN is missing, and is not kept."""

    def __init__(self, data: Any, feature_names: Any = None, feature_types: Any = None) -> None:
        rows, columns = np.nonzero(~np.isnan(data))
        self._held = csr_matrix((data[rows, columns], (rows, columns)), shape=data.shape)
        self.feature_names, self.feature_types = feature_names, feature_types

    def get_data(self) -> Any:
        return self._held

    def num_row(self) -> int:
        return int(self._held.shape[0])

    def num_col(self) -> int:
        return int(self._held.shape[1])


def test_numbers_in_the_matrices_of_libraries() -> None:
    one, other = np.array([[1.0, 0.0]], np.float32), np.array([[10.0, 20.0]], np.float32)
    summed = encode([_call(Matrix(one, ["a", "b"])), _call(Matrix(other, ["a", "b"]))], make_code("sum", 2))
    assert isinstance(summed.args[0], Matrix)
    assert summed.args[0].feature_names == ["a", "b"]
    assert model_input(summed).tolist() == [[11.0, 20.0]]
    sparse = encode([_call(csr_matrix(one), 3), _call(csr_matrix(other), 3)], make_code("sum", 2))
    assert isinstance(sparse.args[0], csr_matrix)
    assert sparse.args[0].toarray().tolist() == [[11.0, 20.0]]
    graph = csr_matrix(np.eye(2))  # the same for all
    assert encode([_call(A, graph), _call(B, graph.copy())], make_code("sum", 2)).args[0].tolist() == [[11.0, 22.0]]
    lacking = model_input(_call(Matrix(np.array([[np.nan, 2.0]], np.float32))))
    assert torch.isnan(lacking).tolist() == [[True, False]]


def test_constants_are_passed_once() -> None:
    graph = torch.eye(2)
    encoded = encode(
        [_call(A, graph, torch.tensor([1])), _call(B, graph.clone(), torch.tensor([1]))], make_code("sum", 2)
    )
    assert encoded.args[0].tolist() == [[11.0, 22.0]]
    assert torch.equal(encoded.args[1], graph)


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([_call(torch.tensor([1])), _call(torch.tensor([2]))], "integers"),
        ([_call(A, torch.tensor([1])), _call(B, torch.tensor([2]))], "integers"),
        ([_call(A, A), _call(B, B)], "2 floating tensors"),
        ([_call(A, A)], "2 floating tensors"),
        (
            [_call(np.array([[1.0, "red"]], object)), _call(np.array([[2.0, "red"]], object))],
            "other things than numbers",
        ),
        ([_call("text"), _call("other")], "differs from request to request"),
        ([_call(A, 1), _call(B, 2)], "differs from request to request"),
        ([_call(A), _call(x=B)], "different arguments"),
        ([_call("same"), _call("same")], "0 floating tensors"),
    ],
)
def test_refused(calls: list[ModelCall], why: str) -> None:
    with pytest.raises(NotCodable, match=why):
        encode(calls, make_code("sum", 2))


def test_odd_ones_out() -> None:
    odd = mismatched_slots({0: _call(A), 1: _call(torch.ones(2, 2)), 3: _call(B)})
    assert list(odd) == [1]
    assert "float32 (2, 2) cannot be coded with the group's float32 (1, 2)" in odd[1]
    assert mismatched_slots({0: _call(A), 1: _call(B.double())}).keys() == {1}
    assert mismatched_slots({0: _call(A)}) == {}


def test_model_input() -> None:
    assert model_input(_call(A, 1, None)) is A


def _images(k: int, height: int = 6, width: int = 8) -> list[torch.Tensor]:
    return [torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(i)) for i in range(k)]


@pytest.mark.parametrize(("k", "places"), [(2, [(0, 0), (0, 4)]), (4, [(0, 0), (0, 4), (3, 0), (3, 4)])])
def test_concat_shrinks_and_tiles_channel_by_channel(k: int, places: list[tuple[int, int]]) -> None:
    images = _images(k)
    tiled = encode([_call(image) for image in images], make_code("concat", k)).args[0]
    assert tiled.shape == images[0].shape
    height = 6 if k == 2 else 3
    for image, (top, left) in zip(images, places, strict=True):
        small = torch.nn.functional.interpolate(image, (height, 4), mode="bilinear", antialias=True)
        torch.testing.assert_close(tiled[..., top : top + height, left : left + 4], small)


def test_an_empty_slot_of_a_concat_group_is_black() -> None:
    image = _images(1)[0]
    tiled = encode([None, _call(image)], make_code("concat", 2)).args[0]
    assert not tiled[..., :4].any()
    quarters = encode([None, _call(image), None, None], make_code("concat", 4)).args[0]
    assert not quarters[..., 3:, :].any()
    assert quarters[..., :3, 4:].all()


def test_batches_of_groups_are_tiled_like_single_ones() -> None:
    """Training tiles many groups at once, a worker one."""
    groups = torch.stack([torch.stack(_images(4)), torch.stack(_images(4)[::-1])])  # (2, 4, 1, 3, 6, 8)
    for group, tiled in zip(groups.squeeze(2), tile(groups.squeeze(2)), strict=True):
        single = encode([_call(image[None]) for image in group], make_code("concat", 4)).args[0]
        torch.testing.assert_close(tiled[None], single)


@pytest.mark.parametrize(
    ("shape", "why"), [((1, 8), "needs images"), ((1, 3, 5, 8), "even height and width, not 5 x 8")]
)
def test_what_is_no_image_is_not_tiled(shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(NotCodable, match=why):
        encode([_call(torch.ones(shape))] * 4, make_code("concat", 4))
