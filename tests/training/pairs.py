"""Recorded pairs of services that the tests make up: a small classifier, asked in the forms that real servers take."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ts_parity.pairs import Pair, PairWriter
from ts_parity.wire import Array

WEIGHTS = np.random.default_rng(7).normal(size=(4, 3)) * 2.0


def classes(given: Array) -> Array:
    """(n, 4) -> probabilities (n, 3)"""
    scores = np.exp(given @ WEIGHTS)
    return np.asarray(scores / scores.sum(1, keepdims=True))


def inputs(count: int, seed: int = 0, numbers: int = 4) -> Array:
    return np.random.default_rng(seed).normal(size=(count, numbers)).round(4)


def open_inference(given: Array, said: Array, path: str = "/v2/models/big/infer", **more: Any) -> Pair:
    """One request of all these rows."""
    asked = {"inputs": [_tensor("x", given)], **more}
    answer = {"model_name": "big", "model_version": "1", "outputs": [_tensor("probs", said)], **more}
    return json_pair(asked, answer, path, "big/1")


def _tensor(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.astype("f4").ravel().tolist()}


def binary(given: Array, said: Array) -> Pair:
    """With the binary tensor extension, both ways."""
    parts = []
    for side, name, array in (("inputs", "x", given), ("outputs", "probs", said)):
        data = array.astype("<f4").tobytes()
        told = {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(data)},
        }
        parts.append(json.dumps({"id": "\u00e4", side: [told]}, ensure_ascii=False).encode() + data)
    kind = "application/octet-stream"
    return Pair("big/1", "/v2/models/big/infer", kind, parts[0], kind, parts[1])


def json_pair(asked: Any, answer: Any, path: str = "/predict", model: str = "api/1") -> Pair:
    kind = "application/json"
    return Pair(model, path, kind, json.dumps(asked).encode(), kind, json.dumps(answer).encode())


def of_rows(
    make: Callable[[Array, Array], Pair], count: int = 200, rows: Sequence[int] = (1,), seed: int = 0
) -> list[Pair]:
    """`count` requests of so many rows each, in turn."""
    pairs = []
    for number in range(count):
        given = inputs(rows[number % len(rows)], seed=seed * 100_000 + number)
        pairs.append(make(given, classes(given)))
    return pairs


def written(file: Path, pairs: Sequence[Pair]) -> Path:
    writer = PairWriter(file, {"share": 1.0}, force=True)
    for pair in pairs:
        writer.add(pair)
    writer.close()
    return file
