"""A student from recorded pairs as servers run it: TorchScript and ONNX, a folder for Triton, a file for LitServe.

Whatever is written is loaded again and asked: it must answer as the network does that was trained. Knows networks,
tensors and files. Knows nothing of how a network learned.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ts_parity.errors import TrainingError
from ts_parity.training.recorded import DATATYPES, OPEN_INFERENCE, RecordedPairs, Tensor
from ts_parity.training.scaling import Scaled
from ts_parity.training.semantics import ANY, LOGARITHMS, PROBABILITIES, SHARES, OutputSemantics
from ts_parity.training.servers.student_runtime import Student
from ts_parity.wire import Array

TORCHSCRIPT, ONNX, LAYERS, ABOUT = "student.pt", "student.onnx", "student.npz", "student.json"
FEWEST_ROWS = 64
"""Of a Triton batch: the recorded requests may have been smaller than those that the deployed model takes."""
_OPSET = 17
_CLOSE = 1e-4
"""In units of an output's largest number: kernels round differently."""
_IMPORT = "from ts_parity.training.servers.student_runtime import "


class FlatNetwork(nn.Module):
    """(n, numbers) -> (n, *output). Outputs of several axes keep to their bounds here, those of one in `network`."""

    def __init__(self, network: nn.Module, output: tuple[int, ...], semantics: OutputSemantics) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.axis = semantics.axis
        decides = len(output) > 1 and semantics.kind in ("classes", "labels")
        self.bounds = semantics.bounds if decides else ANY

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.network(numbers)
        said = said.reshape(-1, *self.output)
        if self.bounds == PROBABILITIES:
            return said.softmax(self.axis)
        if self.bounds == LOGARITHMS:
            return said.log_softmax(self.axis)
        return said.sigmoid() if self.bounds == SHARES else said


class ServedNetwork(nn.Module):
    """`network` (n, numbers) -> (n, *output), behind the tensors of a request, each in its own datatype."""

    def __init__(self, network: nn.Module, pairs: RecordedPairs) -> None:
        super().__init__()
        self.network = network
        self._sizes = [each.size for each in pairs.inputs]
        self._outputs = [(each.size, each.shape, each.is_whole, _dtype(each)) for each in pairs.outputs]
        self._batched = pairs.batched

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = [each.reshape(-1, size).float() for each, size in zip(given, self._sizes, strict=True)]
        numbers = self.network(torch.cat(flat, 1)).reshape(-1, sum(size for size, *_ in self._outputs))
        said, at = [], 0
        for size, shape, is_whole, dtype in self._outputs:
            own = numbers[:, at : at + size].reshape(-1, *shape) if self._batched else numbers[0, at : at + size]
            own = own if self._batched else own.reshape(shape)
            said.append((own.round() if is_whole else own).to(dtype))
            at += size
        return tuple(said)


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, np.dtype(DATATYPES[tensor.datatype]))).dtype


def write(network: nn.Module, pairs: RecordedPairs, name: str, out: Path) -> tuple[list[str], list[str]]:
    """`network` (n, numbers) -> (n, *output) on the CPU, in eval mode. -> what was written, and what could not be.

    Raise TrainingError if what was written does not answer as the network does.
    """
    served = ServedNetwork(network, pairs).eval()
    requests = _requests(pairs)
    with torch.no_grad():
        expected = [[each.numpy() for each in served(*map(torch.from_numpy, given))] for given in requests]
    made, missing = [TORCHSCRIPT], []
    with _quiet():
        script = torch.jit.trace(served, tuple(map(torch.from_numpy, requests[-1])))  # type: ignore[no-untyped-call]
        script.save(str(out / TORCHSCRIPT))
    (out / ABOUT).write_text(json.dumps(_about(pairs, name), indent=2) + "\n", encoding="utf-8")
    _check(_alone(out, TORCHSCRIPT), requests, expected, TORCHSCRIPT)
    if why := _write_onnx(served, pairs, requests[-1], out / ONNX):
        missing.append(f"{ONNX}: {why}")
    else:
        _check(_alone(out, ONNX), requests, expected, ONNX)
        made.append(ONNX)
    if (layers := _plain_layers(network)) is not None:
        np.savez(out / LAYERS, **layers)
        _check(_alone(out, LAYERS), requests, expected, LAYERS)
        made.append(LAYERS)
    made += _write_servers(pairs, name, out, made)
    return made, missing


def _plain_layers(network: nn.Module) -> dict[str, Any] | None:
    """The numbers of a network of plain layers, which numpy can run; None: it has others."""
    inner = getattr(network, "network", None)
    if not isinstance(network, FlatNetwork) or not isinstance(inner, Scaled):
        return None
    plain: Any = inner.network
    layers = [each for each in plain.modules() if not isinstance(each, nn.Sequential | nn.Flatten | nn.ReLU)]
    if not all(isinstance(each, nn.Linear) for each in layers):
        return None
    kept: dict[str, Any] = {}
    for place, layer in enumerate(layers):
        kept |= {f"weight_{place}": layer.weight.detach().numpy(), f"bias_{place}": layer.bias.detach().numpy()}
    for side in ("given", "said"):
        for moment, none in (("mean", 0.0), ("spread", 1.0)):
            value = getattr(inner, f"{side}_{moment}")
            kept[f"{side}_{moment}"] = np.float32(none) if value is None else value.numpy()
    bounds, axis = (network.bounds, network.axis) if network.bounds != ANY else (inner.bounds, -1)
    return {**kept, "bounds": np.array(bounds), "axis": np.array(axis), "shape": np.array(network.output)}


def _requests(pairs: RecordedPairs) -> list[list[Array]]:
    """Some that were recorded: one query, and where requests have an axis of queries three of them."""
    dtypes, ends = (
        [np.dtype(DATATYPES[each.datatype]) for each in pairs.inputs],
        np.cumsum([x.size for x in pairs.inputs]),
    )
    requests = []
    for rows in [slice(0, 1), slice(0, 3)] if pairs.batched else [slice(0, 1), slice(1, 2)]:
        parts = np.split(pairs.given[rows], ends[:-1], axis=1)
        shaped = [
            part.reshape(-1, *each.shape) if pairs.batched else part.reshape(each.shape)
            for part, each in zip(parts, pairs.inputs, strict=True)
        ]
        requests.append([np.array(part, dtype) for part, dtype in zip(shaped, dtypes, strict=True)])
    return requests


def _about(pairs: RecordedPairs, name: str) -> dict[str, Any]:
    is_open = pairs.kind == OPEN_INFERENCE
    return {
        "name": name,
        "of": pairs.model,
        "kind": pairs.kind,
        "path": f"/v2/models/{name}/infer" if is_open else pairs.path,
        "batched": pairs.batched,
        "inputs": [asdict(each) for each in pairs.inputs],
        "outputs": [asdict(each) for each in pairs.outputs],
        "answer": asdict(pairs.answers),
    }


def _write_onnx(served: nn.Module, pairs: RecordedPairs, example: Sequence[Array], file: Path) -> str:
    """-> why it could not be written, or not be checked."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed, so it could not be checked (pip install onnxruntime onnx)"
    names = [_names(tensors, side) for tensors, side in ((pairs.inputs, "input"), (pairs.outputs, "output"))]
    axes = {name: {0: "batch"} for name in (*names[0], *names[1])} if pairs.batched else {}
    try:
        with _quiet():
            torch.onnx.export(
                served, tuple(map(torch.from_numpy, example)), str(file), input_names=names[0], output_names=names[1],
                dynamic_axes=axes, opset_version=_OPSET, dynamo=False,
            )  # fmt: skip
    except Exception as error:  # the exporter's own, and of what it lacks
        file.unlink(missing_ok=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _names(tensors: Sequence[Tensor], side: str) -> list[str]:
    """A JSON pointer may be empty, or the same for an input and an output."""
    return [each.name if each.name and "/" not in each.name else f"{side}_{n}" for n, each in enumerate(tensors)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracers warn of every size that is written down, which these are on purpose."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _alone(out: Path, file: str) -> Student:
    """The student as a server loads it, from this file alone."""
    with contextlib.ExitStack() as stack:
        folder = out / f".{file}.check"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        shutil.copy(out / file, folder)
        shutil.copy(out / ABOUT, folder)
        return Student(folder)


def _check(
    student: Student, requests: Sequence[Sequence[Array]], expected: Sequence[Sequence[Array]], what: str
) -> None:
    for given, wanted in zip(requests, expected, strict=True):
        for one, other in zip(student(given), wanted, strict=True):
            close = _CLOSE * max(1e-6, float(np.abs(other.astype(np.float64)).max(initial=0.0)))
            if (
                one.shape != other.shape
                or one.dtype != other.dtype
                or not np.allclose(one, other, rtol=1e-3, atol=close)
            ):
                raise TrainingError(f"{what} does not answer as the network that was trained; it cannot be used")


# ---- for servers -----------------------------------------------------------------------------------------------------


def _write_servers(pairs: RecordedPairs, name: str, out: Path, written: Sequence[str]) -> list[str]:
    made = ["litserve/server.py"]
    folder = out / "litserve"
    files = [ABOUT, *([LAYERS] if LAYERS in written else written)]
    _with_student(out, folder, files)
    (folder / "server.py").write_text(standalone("litserve_server"), encoding="utf-8")
    if pairs.kind != OPEN_INFERENCE:
        return made
    folder = out / "triton" / name
    (folder / "1").mkdir(parents=True)
    _with_student(out, folder / "1", files)
    (folder / "1" / "model.py").write_text(standalone("triton_model"), encoding="utf-8")
    (folder / "config.pbtxt").write_text(triton_config(pairs, name, "python"), encoding="utf-8")
    made.append(f"triton/{name}")
    if ONNX in written:
        folder = out / "triton-onnx" / name
        (folder / "1").mkdir(parents=True)
        shutil.copy(out / ONNX, folder / "1" / "model.onnx")
        (folder / "config.pbtxt").write_text(triton_config(pairs, name, "onnxruntime"), encoding="utf-8")
        made.append(f"triton-onnx/{name}")
    return made


def _with_student(out: Path, folder: Path, files: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(out / file, folder)


def standalone(name: str) -> str:
    """A file of `servers` with what it takes from its neighbour in it: servers have no ts_parity."""
    folder = resources.files("ts_parity.training.servers")
    own, runtime = ((folder / f"{each}.py").read_text(encoding="utf-8") for each in (name, "student_runtime"))
    lines = [line for line in own.splitlines() if not line.startswith(_IMPORT)]
    last = max(n for n, line in enumerate(lines) if line.startswith(("import ", "from ")))
    _, _, body = runtime.split('"""', 2)
    return "\n".join([*lines[: last + 1], body.rstrip(), "", *lines[last + 1 :], ""])


def triton_config(pairs: RecordedPairs, name: str, backend: str) -> str:
    """config.pbtxt: the deployed model's tensors; a leading axis of queries where requests have one."""
    rows = max(FEWEST_ROWS, pairs.most_rows) if pairs.batched else 0
    sides = (
        f"{side} [\n{','.join(map(_triton_tensor, tensors))}\n]"
        for side, tensors in (("input", pairs.inputs), ("output", pairs.outputs))
    )
    batching = "dynamic_batching { }\n" if pairs.batched else ""
    return (
        f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: {rows}\n'
        + "\n".join(sides)
        + f"\n{batching}instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n"
    )


def _triton_tensor(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    name = tensor.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'\n  {{ name: "{name}" data_type: TYPE_{tensor.datatype} dims: [ {shape} ] }}'
