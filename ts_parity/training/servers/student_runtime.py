"""A student that was made from recorded pairs: numpy arrays in, numpy arrays out.

It needs nothing of ts_parity. A student of plain layers (`student.npz`) needs numpy alone, any other ONNX Runtime or
torch. `student.json` beside it says what goes in and what comes out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64,
}  # fmt: skip


class Student:
    """Call it with the inputs in the order of `student.json`; with a batch, each has one more axis before its own."""

    def __init__(self, folder: Any) -> None:
        folder = Path(folder)
        self.about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        self.inputs = self.about["inputs"]
        self.outputs = self.about["outputs"]
        self.batched = self.about["batched"]
        layers = folder / "student.npz"
        self._run = (
            self._layers(layers) if layers.exists() else _onnx(folder / "student.onnx") or _torch(folder / "student.pt")
        )

    def __call__(self, given: Any) -> Any:
        """Raise ValueError for arrays of another shape."""
        taken: list[Any] = []
        for tensor, array in zip(self.inputs, given, strict=True):
            array = np.asarray(array)
            shape, own = tuple(tensor["shape"]), array.shape[1:] if self.batched else array.shape
            if own != shape or (self.batched and not array.ndim):
                raise ValueError(f"{tensor['name'] or 'the input'} must have the shape {list(shape)}, not {list(own)}")
            taken.append(np.asarray(array, DTYPES[tensor["datatype"]], order="C"))
        return self._run(taken)

    def _layers(self, file: Any) -> Any:
        with np.load(file) as kept:
            parts = {name: kept[name] for name in kept.files}
        last = sum(name.startswith("weight_") for name in parts) - 1
        bounds, axis = str(parts["bounds"]), int(parts["axis"])

        def run(given: Any) -> Any:
            sizes = [int(np.prod(tensor["shape"])) for tensor in self.inputs]
            flat = [each.reshape(-1, size).astype(np.float32) for each, size in zip(given, sizes, strict=True)]
            numbers = np.nan_to_num((np.concatenate(flat, 1) - parts["given_mean"]) / parts["given_spread"])
            for place in range(last + 1):
                numbers = numbers @ parts[f"weight_{place}"].T + parts[f"bias_{place}"]
                numbers = np.maximum(numbers, 0) if place < last else numbers
            numbers = numbers * parts["said_spread"] + parts["said_mean"]
            return self._split(_within(numbers.reshape(-1, *parts["shape"]), bounds, axis).reshape(len(numbers), -1))

        return run

    def _split(self, numbers: Any) -> Any:
        said, at = [], 0
        for tensor in self.outputs:
            size, dtype = int(np.prod(tensor["shape"])), DTYPES[tensor["datatype"]]
            own = numbers[:, at : at + size].reshape(([-1] if self.batched else []) + tensor["shape"])
            said.append((own if np.issubdtype(dtype, np.floating) else np.rint(own)).astype(dtype))
            at += size
        return said


def _within(numbers: Any, bounds: str, axis: int) -> Any:
    """What all answers keep to."""
    if bounds in ("probabilities", "logarithms of probabilities"):
        shifted = numbers - numbers.max(axis, keepdims=True)
        logarithms = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
        return np.exp(logarithms) if bounds == "probabilities" else logarithms
    if bounds == "between 0 and 1":
        return 0.5 + 0.5 * np.tanh(0.5 * numbers)
    if bounds == "of length 1":
        return numbers / np.maximum(np.linalg.norm(numbers, axis=-1, keepdims=True), 1e-12)
    return numbers


def _onnx(file: Any) -> Any:
    """None: ONNX Runtime or the file is not there."""
    if not file.exists():
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a small network waits longer for a second thread
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda given: session.run(None, dict(zip(names, given, strict=True)))


def _torch(file: Any) -> Any:
    try:
        import torch
    except ImportError:
        raise RuntimeError("a student runs with onnxruntime or torch: pip install onnxruntime") from None

    network = torch.jit.load(str(file)).eval()

    def run(given: Any) -> Any:
        with torch.inference_mode():
            return [each.numpy() for each in network(*map(torch.from_numpy, given))]

    return run
