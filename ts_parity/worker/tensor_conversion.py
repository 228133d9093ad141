"""Converts one argument of a model call to a tensor and back: tensors, arrays, lists of numbers, data frames, sparse
matrices, XGBoost's DMatrix.

A model that is no torch module must get what its library accepts, so each conversion has its inverse. Knows containers
of numbers. Knows nothing of calls or codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_FLOATING = (np.float16, np.float32, np.float64)


def floating_tensor(leaf: Any) -> torch.Tensor | None:
    """None unless it holds floating numbers. A list with some whole numbers is floating, as JSON writes 1.0 as 1.

    Arrays and tensors are not copied.
    """
    if isinstance(leaf, torch.Tensor):
        return leaf if leaf.is_floating_point() else None
    tensor = any_tensor(leaf)
    return tensor if tensor is not None and tensor.is_floating_point() else None


def any_tensor(leaf: Any) -> torch.Tensor | None:
    """None unless it holds numbers, whole or floating."""
    if isinstance(leaf, torch.Tensor):
        return leaf
    array = _array(leaf)
    if array is None or array.dtype.kind not in "bif":
        return None
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())


def non_floating_dtype(leaf: Any) -> str | None:
    """The dtype, if it holds numbers that are not floating; None for anything else."""
    if isinstance(leaf, torch.Tensor):
        return None if leaf.is_floating_point() else str(leaf.dtype)
    array = _array(leaf)
    return None if array is None or array.dtype in _FLOATING else str(array.dtype)


def from_tensor(leaf: Any, tensor: torch.Tensor) -> Any:
    """The tensor's numbers in the kind of container that `leaf` is."""
    if isinstance(leaf, torch.Tensor):
        return tensor
    array = tensor.detach().cpu().numpy()
    if _is_xgboost(leaf):
        return type(leaf)(array, feature_names=leaf.feature_names, feature_types=leaf.feature_types)
    if _is_sparse(leaf):
        return type(leaf)(array)
    if isinstance(leaf, np.ndarray):
        return array.astype(leaf.dtype, copy=False)
    if is_numbers(leaf):
        return array.tolist()
    index = leaf.index if len(leaf.index) == len(array) else None  # other rows need another index
    return type(leaf)(array, columns=leaf.columns, index=index)


def is_numbers(value: Any) -> bool:
    """A list of numbers, or of such lists."""
    if not isinstance(value, list):
        return False
    found = False
    for number in _numbers(value):
        if type(number) not in (int, float):
            return False
        found = True
    return found


def same(one: Any, other: Any) -> bool:
    """Equal in kind and value."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if hasattr(one, "to_numpy"):
        return bool(one.equals(other))
    if _is_sparse(one) or _is_xgboost(one):
        return np.array_equal(_array(one), _array(other), equal_nan=True)
    return bool(one == other)


def _array(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    if is_numbers(leaf):
        try:
            return np.array(leaf)
        except ValueError:  # ragged
            return None
    if hasattr(leaf, "to_numpy") and hasattr(leaf, "columns"):
        return leaf.to_numpy()
    if _is_sparse(leaf):
        return leaf.toarray()
    return _of_xgboost(leaf) if _is_xgboost(leaf) else None


def _is_sparse(leaf: Any) -> bool:
    """A matrix like SciPy's."""
    return hasattr(leaf, "toarray") and hasattr(leaf, "nnz")


def _is_xgboost(leaf: Any) -> bool:
    """A DMatrix."""
    return hasattr(leaf, "get_data") and hasattr(leaf, "num_row") and hasattr(leaf, "feature_names")


def _of_xgboost(leaf: Any) -> Any:
    """Entries that are absent are missing (NaN), not zero."""
    held = leaf.get_data().tocoo()
    array = np.full((leaf.num_row(), leaf.num_col()), np.nan, dtype=np.float32)
    array[held.row, held.col] = held.data
    return array


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for child in value:
            yield from _numbers(child)
    else:
        yield value
