"""Workers on a real GPU, in this process, whose handler serves in whatever way its config asks for.

`needs_gpu` skips a test without one. With TS_PARITY_GPU_TESTS_ON=cpu, what is not `needs_cuda` runs on the CPU instead:
whether the tests themselves are right.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.worker.serving import ROOT, InProcess
from ts_parity.worker.entry import self_test
from ts_parity.worker.selftest_process import verdict_file, write_verdict

ELSEWHERE = os.environ.get("TS_PARITY_GPU_TESTS_ON")
GPU_ID = 0 if torch.cuda.is_available() else None
NO_GPU = "there is no GPU here"
needs_gpu = pytest.mark.skipif(GPU_ID is None and ELSEWHERE != "cpu", reason=NO_GPU)
needs_cuda = pytest.mark.skipif(GPU_ID is None, reason=NO_GPU)

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))
"""
HANDLER = '''
"""Images of 3 x 8 x 8 float32, by whatever way of serving its config asks for. Linear, so that decoding is exact."""

import contextlib
import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Images(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.asked = (context.model_yaml_config or {}).get("way") or {}
        if self.asked.get("hard_wired") and torch.cuda.is_available():
            self.device = torch.device("cuda")  # as much user code does, whatever gpu_id says
            self.model = self.model.to(self.device)
        self.dtype = getattr(torch, self.asked.get("dtype", "float32"))
        self.layout = torch.channels_last if self.asked.get("channels_last") else torch.contiguous_format
        if not self.asked.get("autocast"):
            self.model = self.model.to(self.dtype)
        self.model = self.model.to(memory_format=self.layout)
        if self.asked.get("compiled"):
            self.model = torch.compile(self.model, mode=self.asked["compiled"])

    def preprocess(self, data):
        rows = [np.frombuffer(bytes(row.get("data") or row.get("body")), np.float32) for row in data]
        images = torch.from_numpy(np.stack(rows).reshape(-1, 3, 8, 8)).to(self.device)
        dtype = torch.float32 if self.asked.get("autocast") else self.dtype
        return images.to(dtype, memory_format=self.layout)

    def around(self):
        if self.asked.get("autocast"):
            return torch.autocast(self.device.type, self.dtype)
        if self.asked.get("stream") and self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))
        return contextlib.nullcontext()

    def inference(self, images):
        if bool(images[0, 0, 0, 0] == 1e6):  # out of memory, by asking for more than any GPU has
            torch.empty(1 << 50, dtype=torch.uint8, device=self.device)
        if bool(images[0, 0, 0, 0] == 2e6):  # an assertion on the device
            torch.zeros(4, device=self.device)[torch.tensor([99], device=self.device)].sum().item()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the input is ready, whatever stream follows
        with torch.no_grad(), self.around():
            return self.model(images)

    def postprocess(self, scores):
        return [{"best": int(row.argmax()), "scores": row.tolist()} for row in scores.float()]
'''


def network() -> torch.nn.Module:
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    torch.manual_seed(5)
    made: torch.nn.Module = scope["Net"]().eval()
    return made


def image(seed: int) -> bytes:
    return np.random.default_rng(seed).standard_normal((3, 8, 8)).astype(np.float32).tobytes()


def marked(number: float) -> bytes:
    """An image that makes the handler fail, see there."""
    pixels = np.zeros((3, 8, 8), np.float32)
    pixels[0, 0, 0] = number
    return pixels.tobytes()


OUT_OF_MEMORY, ASSERTION = marked(1e6), marked(2e6)


def expected(body: bytes, net: torch.nn.Module | None = None) -> np.ndarray:
    """(1, classes): what the network says, in float32 on the CPU."""
    pixels = torch.from_numpy(np.frombuffer(body, np.float32).copy().reshape(1, 3, 8, 8))
    with torch.no_grad():
        return np.asarray((net or network())(pixels).numpy())


def make_folder(folder: Path, section: dict[str, Any] | None, way: dict[str, Any], samples: int = 2) -> Path:
    """An extracted archive."""
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(MODEL)
    (folder / "images.py").write_text(HANDLER)
    torch.save(network().state_dict(), folder / "weights.pt")
    torch.manual_seed(6)
    other = network()
    for weight in other.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    torch.jit.save(torch.jit.trace(other, torch.zeros(1, 3, 8, 8)), str(folder / "other.pt"))
    for n in range(samples):
        (folder / f"sample{n}").write_bytes(image(100 + n))
    model = {"modelName": "images", "modelVersion": "1.0", "handler": "images.py"}
    model |= {"serializedFile": "weights.pt", "modelFile": "net.py", "configFile": "model-config.yaml"}
    config: dict[str, Any] = {"way": way, "startupTimeout": 1200}
    if section is not None:
        role = section.get("role", "deployed")
        shutil.copy(ROOT / "handlers" / f"{role}_handler.py", folder / f"ts_parity_{role}.py")
        model["handler"] = f"ts_parity_{role}.py"
        told = {"samples": [{"file": f"sample{n}", "content_type": "a/b"} for n in range(samples)]} if samples else {}
        config["ts_parity"] = {"role": role, "handler": "images.py", **told, **section}
    (folder / "model-config.yaml").write_text(yaml.safe_dump(config))
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
    return folder


@pytest.fixture(name="serve")
def served(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    """`serve(section, samples=2, **way)`."""
    opened: list[InProcess] = []

    def start(section: dict[str, Any] | None = None, samples: int = 2, **way: Any) -> InProcess:
        while opened:
            opened.pop().close()
        folder = make_folder(tmp_path / f"a{len(list(tmp_path.iterdir()))}", section, way, samples)
        if section is not None and samples:
            # As in tests/worker: what takes seconds in a process of its own is done here beforehand.
            tested = self_test(folder, section.get("role", "deployed"), GPU_ID)
            write_verdict(tested, verdict_file(folder, GPU_ID))
        opened.append(InProcess(folder, gpu_id=GPU_ID))
        return opened[-1]

    yield start
    while opened:
        opened.pop().close()
