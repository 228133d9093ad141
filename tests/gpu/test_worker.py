"""A worker on the GPU that TorchServe assigns to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.workers import (
    ASSERTION,
    GPU_ID,
    OUT_OF_MEMORY,
    expected,
    image,
    make_folder,
    needs_cuda,
    needs_gpu,
)
from tests.gpu.workers import served as served
from tests.worker.serving import Ask, InProcess
from ts_parity.codes import make_code
from ts_parity.wire import OP
from ts_parity.worker.entry import OfflineProtection
from ts_parity.worker.selftest_process import verdict_file, verdict_on_samples
from ts_parity.worker.verdict import VerdictState

pytestmark = needs_gpu
Serve = Callable[..., InProcess]
SUM = {"role": "parity", "code": "sum", "k": 3, "partial": True}
EXACT = {"role": "parity", "code": "exact", "k": 3}
STUDENT = {"role": "parity", "code": "student", "k": 3, "parity_model": "other.pt"}

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "half": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "autocast": {"dtype": "bfloat16", "autocast": True},
    "channels last": {"channels_last": True},
    "a stream of its own": {"stream": True},
    "a GPU hard-wired": {"hard_wired": True},
}
OFF = {"half": 0.02, "bfloat16": 0.1, "autocast": 0.1}
"""Of the largest output; else what TF32 may be off."""


def near(raw: Any, wanted: Any, way: str) -> bool:
    return bool(np.allclose(raw, wanted, rtol=0, atol=OFF.get(way, 5e-3) * np.abs(wanted).max()))


every_way = pytest.mark.parametrize(("name", "way"), WAYS.items(), ids=[*WAYS])


@every_way
def test_raw_tails_and_finishes(serve: Serve, name: str, way: dict[str, Any]) -> None:
    worker = serve({}, **way)
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["batched"]) == ("codable", True), described["reason"]
    plain, reply = worker.ask(image(1)), worker.ask(image(1), "raw")
    assert near(reply.raw, expected(image(1)), name)
    assert reply.ordinary_body == plain.body
    finished = worker.finish(image(1), reply.raw)
    assert json.loads(finished.body)["best"] == json.loads(plain.body)["best"]
    together = worker.batch([Ask(image(seed), {OP: "raw"}) for seed in range(3)])
    assert all(near(each.raw, expected(image(seed)), name) for seed, each in enumerate(together))


@every_way
def test_groups_of_a_parity_model(serve: Serve, name: str, way: dict[str, Any]) -> None:
    """The protection's network is the deployed one here, which is linear: what is rebuilt is exact to rounding."""
    worker = serve(SUM, **way)
    bodies = [image(seed) for seed in range(3)]
    frame = worker.group(*bodies).frame
    said = [expected(body) for body in bodies]
    bias = expected(np.zeros((3, 8, 8), np.float32).tobytes())
    assert near(frame.raw, sum(said) - 2 * bias, name)
    have = {slot: said[slot] for slot in (1, 2)}
    code = make_code("sum", 3)
    assert near(code.decode(0, have, {0: frame.raw + 2 * bias}, {0: frozenset(range(3))}), said[0], name)


def test_a_bad_slot_fails_alone(serve: Serve) -> None:
    worker = serve(SUM)
    frame = worker.group(image(0), b"short", image(2)).frame
    assert [part.status for part in frame.slots if part is not None] == [200, 503, 200]
    bias = expected(np.zeros((3, 8, 8), np.float32).tobytes())
    assert near(frame.raw, expected(image(0)) + expected(image(2)) - bias, "")
    spoilt = np.frombuffer(image(1), np.float32).copy()
    spoilt[3] = np.nan
    frame = worker.group(image(0), spoilt.tobytes(), image(2)).frame
    assert [part.status for part in frame.slots if part is not None] == [200, 400, 200]


@every_way
def test_exact_answers_as_a_batch_after_its_self_test(serve: Serve, name: str, way: dict[str, Any]) -> None:
    worker = serve(EXACT, **way)
    assert worker.describe()["ts_parity"]["batched"] is (GPU_ID is not None)
    slots = worker.group(*(image(seed) for seed in range(3))).frame.slots
    for seed, part in enumerate(slots):
        assert part is not None
        assert part.status == 200
        assert near(json.loads(part.body)["scores"], expected(image(seed))[0], name)


def test_a_student_beside_the_deployed_model_in_one_process(serve: Serve) -> None:
    worker = serve(STUDENT, dtype="float16")
    other = torch.jit.load(str(worker.folder / "other.pt"))
    slots = worker.group(*(image(seed) for seed in range(3))).frame.slots
    for seed, part in enumerate(slots):
        assert part is not None
        assert near(json.loads(part.body)["scores"], expected(image(seed), other)[0], "half")
    plain = worker.ask(image(1))
    assert near(json.loads(plain.body)["scores"], expected(image(1), other)[0], "half")


@needs_cuda
def test_it_lies_where_it_was_assigned(serve: Serve) -> None:
    before = torch.cuda.memory_allocated(0)
    worker = serve(SUM)
    assert torch.cuda.memory_allocated(0) > before
    assert worker.group(image(0), image(1), image(2)).status == 200
    if torch.cuda.device_count() > 1:
        protection = OfflineProtection(worker.folder, 1)
        assert torch.cuda.memory_allocated(1) > 0
        assert protection.verdict.state is VerdictState.CODABLE


@needs_cuda
@pytest.mark.parametrize("k", [2, 4])
def test_one_copy_back_for_the_answer_and_one_for_whether_inputs_are_finite(serve: Serve, k: int) -> None:
    """However many slots there are; the handler's own questions (two for each slot here) aside."""
    from torch.profiler import ProfilerActivity, profile

    worker = serve({**SUM, "k": k})
    bodies = [image(seed) for seed in range(k)]
    worker.group(*bodies)

    def copies(run: Callable[[], object]) -> int:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            run()
            torch.cuda.synchronize()
        return sum(event.count for event in seen.key_averages() if "Memcpy DtoH" in event.key)

    assert copies(lambda: worker.group(*bodies)) <= 2 * k + 2


def test_out_of_memory_is_the_protections_failure(serve: Serve) -> None:
    worker = serve(EXACT)
    if GPU_ID is not None:
        hoarded = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        del hoarded  # torch keeps it for later
        assert torch.cuda.memory_reserved(0) >= 1 << 30
    statuses = [part.status for part in worker.group(image(0), OUT_OF_MEMORY, image(2)).frame.slots if part is not None]
    assert statuses[::2] == [200, 200]
    if GPU_ID is not None:
        assert statuses[1] == 507
        assert torch.cuda.memory_reserved(0) < 1 << 30, "it lies on the device again, where others may need it"
    assert worker.ask(image(1)).status == 200
    deployed = serve({})
    assert deployed.ask(OUT_OF_MEMORY, "raw").status >= 500
    assert deployed.ask(image(1)).status == 200


@needs_cuda
def test_a_worker_that_lost_its_gpu_ends(tmp_path: Path) -> None:
    """In a process of its own: nothing of CUDA works there afterwards."""
    folder = make_folder(tmp_path / "a", {}, {}, samples=0)
    script = f"""
import sys
from pathlib import Path
from tests.gpu.workers import ASSERTION, image
from tests.worker.serving import InProcess
worker = InProcess(Path({str(folder)!r}), gpu_id=0)
assert worker.ask(image(1)).status == 200
worker.ask(ASSERTION)
print("still there")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "still there" not in done.stdout
    assert "has lost its GPU" in done.stderr
    assert len(ASSERTION) == len(image(1))


def test_the_self_test_of_a_process_of_its_own(tmp_path: Path) -> None:
    for name, section in (("deployed", {}), ("parity", EXACT)):
        folder = make_folder(tmp_path / name, section, {"dtype": "bfloat16"})
        verdict = verdict_on_samples(folder, name, GPU_ID, {"startupTimeout": 1200})
        assert verdict.state is VerdictState.CODABLE, verdict.reason
        assert verdict_file(folder, GPU_ID).exists()
