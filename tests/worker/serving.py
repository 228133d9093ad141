"""A TorchServe worker in this process: the real loader, service and message format, without frontend and socket.

Handlers come from tests/handlers, wrapped or not, in a folder like an extracted archive.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ts
import yaml
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader

from ts_parity.codes import make_code
from ts_parity.wire import FRAME_TYPE, OP, Array, Frame, Part, find_tail, pack_frame, unpack_frame

ROOT = Path(__file__).parents[2]
HANDLERS = ROOT / "tests" / "handlers"
RAW_HEADER = "x-ts-parity-raw"


def network() -> torch.nn.Module:
    """The tests' model, always with the same weights."""
    torch.manual_seed(7)
    net = torch.nn.Module()
    net.head = torch.nn.Linear(8, 5)
    return net


def make_folder(
    folder: Path,
    handler: str,
    section: dict[str, Any] | None = None,
    *,
    eager: bool = False,
    weights: dict[str, torch.Tensor] | None = None,
    files: dict[str, bytes] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """An extracted archive. `section` is the ts_parity section; None leaves the handler unwrapped."""
    shutil.copytree(HANDLERS, folder, ignore=shutil.ignore_patterns("__*"))
    state = weights or network().state_dict()
    torch.save(state, folder / "weights.pt")
    torch.jit.save(scripted(state), folder / "script.pt")
    for name, written in FOREIGN.get(handler, {}).items():
        (folder / name).write_bytes(written(state))
    model: dict[str, Any] = {"modelName": "vectors", "modelVersion": "1.0", "handler": f"{handler}.py"}
    model["serializedFile"] = "weights.pt" if eager else "script.pt"
    if eager:
        model["modelFile"] = "net.py"
    if section is not None:
        role = section.get("role", "deployed")
        shutil.copy(ROOT / "handlers" / f"{role}_handler.py", folder / f"ts_parity_{role}.py")
        model["handler"] = f"ts_parity_{role}.py"
        # A busy machine takes long over the self-test, which has a third of what TorchServe gives a worker to start.
        told = {"startupTimeout": 1200, **(config or {})}
        config = {**told, "ts_parity": {"role": role, "handler": f"{handler}.py", **section}}
    if config is not None:
        model["configFile"] = "model-config.yaml"
        (folder / "model-config.yaml").write_text(yaml.safe_dump(config))
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
    return folder


def onnx_file(state: dict[str, torch.Tensor]) -> bytes:
    """The tests' model for ONNX Runtime."""
    import onnx
    from onnx import helper, numpy_helper

    matrix, bias = state["head.weight"].numpy().T.copy(), state["head.bias"].numpy()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "matrix", "bias"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", len(matrix)])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", len(bias)])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    # What every runtime since 2021 reads.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    written: bytes = made.SerializeToString()
    return written


def estimator_file(state: dict[str, torch.Tensor]) -> bytes:
    """The tests' model as a fitted estimator of scikit-learn, pickled."""
    from sklearn.linear_model import LinearRegression

    fitted = LinearRegression()
    fitted.coef_, fitted.intercept_ = state["head.weight"].numpy(), state["head.bias"].numpy()
    return pickle.dumps(fitted)


FOREIGN = {"onnx_session": {"model.onnx": onnx_file}, "estimator": {"model.pkl": estimator_file}}


def pack(folder: Path, name: str) -> Path:
    """The folder as `name`.mar beside it."""
    manifest = folder / "MAR-INF" / "MANIFEST.json"
    described = json.loads(manifest.read_text())
    described["model"]["modelName"] = name
    manifest.write_text(json.dumps({"createdOn": "", "runtime": "python", "archiverVersion": "0.12.0", **described}))
    archive = folder.parent / f"{name}.mar"
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.rglob("*")):
            written.write(file, file.relative_to(folder))
    return archive


def scripted(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    linear = torch.nn.Linear(8, 5)
    linear.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    return torch.jit.script(torch.nn.Sequential(linear))


def split_tail(body: bytes, header: str) -> tuple[bytes, Array]:
    """-> (ordinary body, raw output)."""
    tail = find_tail(body, header)
    return body[: tail.offset], tail.array(body)


@dataclass
class Reply:
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes
    content_type: str = ""

    @property
    def raw(self) -> Array | None:
        header = self.headers.get(RAW_HEADER)
        return None if header is None else split_tail(self.body, header)[1]

    @property
    def ordinary_body(self) -> bytes:
        header = self.headers.get(RAW_HEADER)
        return self.body if header is None else split_tail(self.body, header)[0]

    @property
    def ordinary(self) -> tuple[Any, ...]:
        headers = {name: value for name, value in self.headers.items() if name != RAW_HEADER}
        return self.status, self.phrase, headers, self.ordinary_body

    @property
    def frame(self) -> Frame:
        assert self.status == 200, self.body
        return unpack_frame(self.body)


@dataclass
class Ask:
    """One request of a batch."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class InProcess:
    """Loads a folder as a worker would and answers batches. A context manager."""

    def __init__(self, folder: Path, batch_size: int = 4, gpu_id: int | None = None) -> None:
        self.folder = folder
        self.sent = bytearray()
        self._modules = set(sys.modules)
        self._cwd = os.getcwd()
        sys.path.insert(0, str(folder))
        os.chdir(folder)
        metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
        metrics.initialize_cache()
        metrics.model_name = "vectors"
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
        try:
            self.service = TsModelLoader().load(
                "vectors", str(folder), manifest["model"]["handler"], gpu_id, batch_size, metrics_cache=metrics
            )
        except BaseException:
            self.close()
            raise
        self.service.set_cl_socket(self)

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        os.chdir(self._cwd)
        sys.path.remove(str(self.folder))
        for name in set(sys.modules) - self._modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(self.folder):
                del sys.modules[name]

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def batch(self, asks: Sequence[Ask]) -> list[Reply]:
        return decode(bytes(self.service.predict([_row(index, ask) for index, ask in enumerate(asks)])))

    def ask(self, body: bytes, op: str | None = None, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.batch([Ask(body, {**named, **({OP: op} if op else {})})])[0]

    def group(self, *bodies: bytes | Part | None, **headers: str) -> Reply:
        return self.batch([group_ask(*bodies, **headers)])[0]

    def finish(self, body: bytes | Part, raw: Array) -> Reply:
        return self.batch([finish_ask(body, raw)])[0]

    def describe(self) -> dict[str, Any]:
        [reply] = self.batch([Ask(b"", {"describe": "True"})])
        described: dict[str, Any] = json.loads(reply.body)
        return described


def group_ask(*bodies: bytes | Part | None, **headers: str) -> Ask:
    frame = Frame(tuple(Part((), body) if isinstance(body, bytes) else body for body in bodies))
    return Ask(pack_frame(frame), {OP: "group", "content-type": FRAME_TYPE, **headers})


def finish_ask(body: bytes | Part, raw: Array) -> Ask:
    part = Part((), body) if isinstance(body, bytes) else body
    return Ask(pack_frame(Frame((part,), raw)), {OP: "finish", "content-type": FRAME_TYPE})


def vector(seed: int) -> bytes:
    return np.random.default_rng(seed).standard_normal(8).astype(np.float32).tobytes()


def linear(body: bytes, state: dict[str, torch.Tensor] | None = None) -> Array:
    """What the tests' model says to a vector."""
    state = state or network().state_dict()
    x = np.frombuffer(body, np.float32)
    result: Array = (state["head.weight"].numpy() @ x + state["head.bias"].numpy())[None]
    return result


def unbiased() -> dict[str, torch.Tensor]:
    """Without a bias, the tests' model is its own parity model, for every code of sums."""
    state = network().state_dict()
    return {**state, "head.bias": torch.zeros_like(state["head.bias"])}


def group_of(k: int, members: frozenset[int]) -> Frame:
    """Vectors in these slots."""
    return Frame(tuple(Part((), vector(10 * k + slot)) if slot in members else None for slot in range(k)))


def check_decoding(k: int, members: frozenset[int], rows: Sequence[Frame]) -> None:
    """What `unbiased` says of `group_of`, one frame a row: whatever slots are lost, up to as many as there are rows,
    the decoded outputs are the model's own.
    """
    r, state = len(rows), unbiased()
    code = make_code("sum", k, r)
    truth = {slot: linear(vector(10 * k + slot), state) for slot in members}
    covers = {row: frame.covers for row, frame in enumerate(rows)}
    assert set(covers.values()) == {members}
    parity: dict[int, Array] = {row: frame.raw for row, frame in enumerate(rows) if frame.raw is not None}
    for lost in itertools.chain.from_iterable(itertools.combinations(members, n + 1) for n in range(r)):
        have = {slot: truth[slot].astype(np.float32) for slot in members if slot not in lost}
        assert code.recoverable(frozenset(have), covers) == set(lost)
        for slot in lost:
            np.testing.assert_allclose(code.decode(slot, have, parity, covers), truth[slot], rtol=1e-3, atol=1e-4)


def _row(index: int, ask: Ask) -> dict[str, Any]:
    kind = next((value for name, value in ask.headers.items() if name.lower() == "content-type"), "").partition(";")[0]
    value: Any = bytearray(ask.body)
    if kind == "application/json":
        value = json.loads(value)
    elif kind.startswith("text"):
        value = value.decode()
    return {
        "requestId": f"id{index}".encode(),
        "headers": [{"name": n.encode(), "value": v.encode()} for n, v in ask.headers.items()],
        "parameters": [{"name": "body", "contentType": kind, "value": value}],
    }


def decode(message: bytes) -> list[Reply]:
    """A response message of a worker, as the frontend reads it."""
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("!i", message, at - 4)[0])

    def text() -> bytes:
        nonlocal at
        length = number()
        at += length
        return message[at - length : at]

    code, note = number(), text().decode()
    replies = []
    while (length := number()) != -1:
        at += length
        kind = text().decode()
        status, phrase = number(), text().decode()
        headers = {text().decode(): text().decode() for _ in range(number())}
        replies.append(Reply(status, phrase, headers, text(), kind))
    if code != 200:  # the frontend makes the error answer from the note
        body = {"code": code, "type": "InternalServerException", "message": note}
        return [Reply(code, "", {}, (json.dumps(body, indent=2) + "\n").encode()) for _ in replies]
    return replies
