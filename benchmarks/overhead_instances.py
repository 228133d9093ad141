"""What stands behind the proxies of overhead.py: trivial instances, and real TorchServe.

Trivial: a recorded answer for each kind of request, so that next to all the time is the proxy's; they speak as
TorchServe does, or the Open Inference Protocol as Triton does. TorchServe: two instances of a model and one with its
protections, all archives wrapped as `ts-parity package` wraps them, for every arm alike, so that no arm differs from
another by what an archive does.

A prediction there takes the model `SERVICE_S` and no processor: the worker waits, as it does for an accelerator.
Were it to compute, the one core that workers, JVMs and client share would be the bottleneck, and a proxy's own time
would be lost in the queue for it. 10 ms, and always 10 ms: short for a model, so the proxy's share is rather over-
than understated, and what one arm has more than another is the arms' doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from overhead_proxies import INFER, OPEN_INFERENCE, TORCHSERVE

PLACES = 256
"""Of a trivial instance: it is never what a query waits for."""
SERVICE_S = 0.010
WORKERS = 2
"""Of a TorchServe instance: one worker would make every burst of two a queue, many would need more than one core."""
LARGEST_BYTES = 4 << 20
LOOKS = (
    "/v2", "/v2/health/ready", "/v2/repository/index", "/v2/models", "/v2/models/linear", "/v2/models/linear/ready",
    "/v2/models/linear/config",
)  # fmt: skip
"""Where a server of the Open Inference Protocol tells of itself."""
Asked = tuple[str, dict[str, str], bytes | None]
"""Address, headers, and what is posted."""
TENSOR = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": '


def body_of(size: int, kind: str = TORCHSERVE) -> bytes:
    """A model's input with blanks, so that it is as large as asked."""
    before, after = (b"[1, 2", b"]") if kind == TORCHSERVE else (TENSOR + b"[1, 2", b"]}]}")
    return before + b" " * (size - len(before) - len(after)) + after


# ---- trivial: what instances answer, recorded once and played again --------------------------------------------------


async def play_instances(code: str) -> None:
    """Two deployed instances and one with their protection; prints their endpoints and serves until killed."""
    from ts_parity.testing import FakeModel, FakeTorchServe, protection

    many = {"workers": PLACES}
    models = [FakeModel(**many), FakeModel(**many), protection(code=code, **many)]
    endpoints = []
    for model in models:
        fake = FakeTorchServe(model)
        await fake.start()
        url = f"{fake.inference}/predictions/{model.name}"
        played = await _play(await _record(_operations(url, model)))
        endpoints.append(f"{played},management={fake.management}")
    print(json.dumps(endpoints), flush=True)
    await asyncio.Event().wait()


def _operations(url: str, model: Any) -> dict[str, Asked]:
    """What a TorchServe is asked for."""
    import numpy as np

    from ts_parity.wire import OP, OP_FINISH, OP_GROUP, OP_RAW, Frame, Part, pack_frame

    small = body_of(30)
    finish = pack_frame(Frame((Part((), small),), np.array([5.0, 11.0], dtype=np.float32)))
    asked = {"": small, OP_RAW: small, OP_FINISH: finish}
    if model.role == "parity":
        asked[OP_GROUP] = pack_frame(Frame((Part((), small), Part((), small)), None))
    return {operation: (url, {OP: operation} if operation else {}, body) for operation, body in asked.items()}


async def play_open_inference() -> None:
    """Two instances that answer as Triton does; prints their endpoints and serves until killed."""
    from ts_parity.testing import FakeFunction, FakeModelServer

    endpoints = []
    for _ in range(2):
        async with FakeModelServer("triton", FakeFunction("linear")) as fake:
            asked: dict[str, Asked] = {path: (fake.url + path, {}, None) for path in LOOKS}
            asked[""] = (fake.url + INFER, {"Content-Type": "application/json"}, body_of(200, OPEN_INFERENCE))
            played = await _play(await _record(asked))
        endpoints.append(f"{played},kind={OPEN_INFERENCE},places={PLACES}")
    print(json.dumps(endpoints), flush=True)
    await asyncio.Event().wait()


async def _record(requests: dict[str, Asked]) -> dict[str, bytes]:
    """The whole answer to each of the requests."""
    import aiohttp

    recorded = {}
    async with aiohttp.ClientSession() as session:
        for what, (url, headers, body) in requests.items():
            method = "GET" if body is None else "POST"
            async with session.request(method, url, data=body, headers=headers) as answer:
                lines = [f"HTTP/1.1 {answer.status} "] + [f"{name}: {value}" for name, value in answer.headers.items()]
                recorded[what] = "\r\n".join(lines).encode() + b"\r\n\r\n" + await answer.read()
    return recorded


async def _play(recorded: dict[str, bytes]) -> str:
    """-> the address."""
    server = await asyncio.get_running_loop().create_server(lambda: _Player(recorded), "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class _Player(asyncio.Protocol):
    """Plays what was recorded of an operation or an address, or of neither, as soon as a request is complete."""

    def __init__(self, recorded: dict[str, bytes]) -> None:
        import httptools

        self._recorded = recorded
        self._parser = httptools.HttpRequestParser(self)
        self._asked = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self._asked = target.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-ts-parity-op":
            self._asked = value.decode()

    def on_message_complete(self) -> None:
        self._transport.write(self._recorded.get(self._asked, self._recorded[""]))


# ---- TorchServe ------------------------------------------------------------------------------------------------------

HANDLER = f'''\
"""Two numbers in, two numbers out, after {SERVICE_S * 1e3:g} ms in which the processor is free."""

import time

import torch
from ts.torch_handler.base_handler import BaseHandler


class Steady(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row.get("data") or row.get("body") for row in data], dtype=torch.float32)

    def inference(self, data):
        time.sleep({SERVICE_S})
        with torch.no_grad():
            return self.model(data)

    def postprocess(self, output):
        return output.tolist()
'''


@contextmanager
def torchserve(folder: Path, core: int) -> Iterator[list[str]]:
    """Two deployed instances and one with both protections, on one core. -> endpoints, by inference and management."""
    from ts_parity.torchserve.configuration import InstanceOptions
    from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet

    options = InstanceOptions(
        workers=WORKERS,
        job_queue_size=1000,  # 128 connections at one instance are a queue and not a refusal
        heap_mb=1024,  # and hold 128 MB
        max_request_size=LARGEST_BYTES,
        max_response_size=LARGEST_BYTES,
    )
    deployed, protections = _archives(folder)
    loaded = [[deployed], [deployed], protections]
    instances = [TorchServeInstance(each, options, name=f"instance {n}") for n, each in enumerate(loaded)]
    with start_fleet(instances):
        for instance in instances:
            _pin(psutil.Process(instance.pid), core)
        yield [f"{instance.inference_url},management={instance.management_url}" for instance in instances]


def _archives(folder: Path) -> tuple[Path, list[Path]]:
    """-> the deployed model's archive and those of its protections: a linear model can be its own parity model."""
    import torch

    from ts_parity.torchserve.wrapping import SampleRequest, wrap_deployed, wrap_parity

    linear = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    weights = folder / "linear.pt"
    torch.jit.save(torch.jit.script(linear), weights)
    bare = folder / "linear.mar"
    model = {"modelName": "linear", "modelVersion": "1.0", "handler": "steady.py", "serializedFile": weights.name}
    manifest = {"createdOn": "", "runtime": "python", "archiverVersion": "0.12.0", "model": model}
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("steady.py", HANDLER)
        archive.write(weights, weights.name)
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    samples = []
    for n in range(2):
        file = folder / f"sample{n}.json"
        file.write_text(json.dumps([n, 2]))
        samples.append(SampleRequest(file, "application/json"))
    out = folder / "wrapped"
    out.mkdir()
    deployed = wrap_deployed(bare, out, samples=samples)
    shared: dict[str, Any] = {"k": 2, "samples": samples}
    parity = wrap_parity(bare, out, "linear_sum", code="sum", partial=True, parity_model=weights, **shared)
    exact = wrap_parity(bare, out, "linear_exact", code="exact", **shared)
    return deployed, [parity, exact]


def _pin(process: psutil.Process, core: int) -> None:
    """With all its threads and children; those to come follow the ones that start them."""
    members: Sequence[psutil.Process] = [process, *process.children(recursive=True)]
    for member in members:
        for thread in os.listdir(f"/proc/{member.pid}/task"):
            os.sched_setaffinity(int(thread), {core})
