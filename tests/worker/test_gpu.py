"""What a worker does about its GPU, as far as it shows without one; the rest is in tests/gpu."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.serving import Ask, InProcess, linear, make_folder, network, vector
from ts_parity.codes import make_code
from ts_parity.wire import OP
from ts_parity.worker.encoders import encode, mismatched_slots, non_finite_slots
from ts_parity.worker.entry import make_handle, self_test
from ts_parity.worker.gpu import MPS_PRIORITY, assigned_device, is_out_of_memory, recover
from ts_parity.worker.protections import ScriptedModel
from ts_parity.worker.responses import HandlerResponse
from ts_parity.worker.selftest_process import verdict_file, verdict_on_samples
from ts_parity.worker.verdict import BATCH_CLOSE, VerdictState, alike, in_a_batch, same_raw
from ts_parity.worker.watches import ModelCall

Serve = Callable[..., InProcess]
LARGE = np.full(8, 1000, np.float32).tobytes()
OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
LOST = RuntimeError("CUDA error: device-side assert triggered")


class FakeCuda:
    """As many GPUs as wanted, whose calls are counted. `lost`: the context is, so that each call raises again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 4) -> None:
        self.count = count
        self.lost = False
        self.emptied = 0
        self.ended: list[int] = []
        for name in ("is_available", "is_initialized"):
            monkeypatch.setattr(torch.cuda, name, lambda: self.count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 20)
        monkeypatch.setattr(torch.cuda, "synchronize", self._synchronize)
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty_cache)
        monkeypatch.setattr(os, "_exit", self.ended.append)

    def _synchronize(self, device: int) -> None:
        if self.lost:
            raise LOST

    def _empty_cache(self) -> None:
        self.emptied += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def _context(gpu_id: int | None) -> Any:
    return SimpleNamespace(system_properties={"gpu_id": gpu_id})


def test_a_worker_computes_on_the_gpu_that_torchserve_assigns(cuda: FakeCuda) -> None:
    assert [str(assigned_device(_context(gpu))) for gpu in (0, 1, 3)] == ["cuda:0", "cuda:1", "cuda:3"]
    assert str(assigned_device(_context(None))) == "cpu", "a worker of an instance whose number_of_gpu is 0"
    cuda.count = 0
    assert str(assigned_device(_context(0))) == "cpu"


def test_memory_goes_back_to_the_device(cuda: FakeCuda) -> None:
    """Where the deployed model's worker may be waiting for it."""
    recover(OUT_OF_MEMORY)
    assert (cuda.emptied, cuda.ended) == (1, [])
    recover(ValueError("a bad body"))
    recover(RuntimeError("CUDA error: invalid configuration argument"))
    assert (cuda.emptied, cuda.ended) == (1, []), "of other errors the next call knows nothing"


def test_a_worker_that_has_lost_its_gpu_ends(cuda: FakeCuda) -> None:
    """Each later call would fail as well, with 507 for ever; TorchServe starts another process."""
    cuda.lost = True
    recover(LOST)
    assert cuda.ended == [1]


def test_a_worker_on_the_cpu_asks_no_driver(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    for name in ("empty_cache", "synchronize", "get_rng_state_all", "device_count"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("no GPU is used here"))
    recover(OUT_OF_MEMORY)
    worker = serve("runs_out", {})
    assert worker.ask(LARGE, "raw").status == 507
    assert worker.ask(vector(1), "raw").status == 200


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_told_in_many_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(LOST)
    assert not is_out_of_memory(ValueError("out of memory of the good old days"))


def test_a_protection_out_of_memory_is_the_protections_failure(serve: Serve, cuda: FakeCuda) -> None:
    """In a slot, before a group's model call, in a finish. The deployed model's own requests are answered."""
    exact = serve("runs_out", {"role": "parity", "code": "exact", "k": 2})
    statuses = [None if part is None else part.status for part in exact.group(LARGE, vector(1)).frame.slots]
    assert statuses == [507, 200]
    parity = serve("runs_out", {"role": "parity", "code": "sum", "k": 2, "partial": True})
    frame = parity.group(vector(1), LARGE).frame
    assert [part.status for part in frame.slots if part is not None] == [200, 507]
    assert np.allclose(frame.raw, linear(vector(1))), "the other slot is coded all the same"
    deployed = serve("runs_out", {})
    for seed in range(2):
        deployed.ask(vector(seed), "raw")
    finish, plain = deployed.finish(LARGE, linear(vector(3))), deployed.ask(vector(4))
    assert (finish.status, plain.status) == (507, 200)
    assert cuda.emptied > 0
    assert cuda.ended == []


def test_a_batch_that_does_not_fit_is_answered_one_by_one(serve: Serve, cuda: FakeCuda) -> None:
    """`exact` on a GPU: k at once where there is room for k."""
    worker = serve("runs_out", {"role": "parity", "code": "exact", "k": 2})
    frame = worker.group(vector(1), vector(2)).frame
    assert [part.status for part in frame.slots if part is not None] == [200, 200]


def test_a_self_test_out_of_memory_decides_nothing(tmp_path: Path) -> None:
    """Whoever tests again may have more room: nothing is refused, and nothing is written down for later workers."""
    for section in ({}, {"role": "parity", "code": "exact", "k": 2}):
        samples = {"samples": [{"file": "large"}]}
        folder = make_folder(tmp_path / f"a{len(section)}", "runs_out", {**section, **samples}, files={"large": LARGE})
        role = str(section.get("role", "deployed"))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            self_test(folder, role)


@pytest.mark.slow
def test_a_worker_whose_self_test_ran_out_of_memory_watches_instead(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", "runs_out", {"samples": [{"file": "large"}]}, files={"large": LARGE})
    verdict = verdict_on_samples(folder, "deployed", None, {"startupTimeout": 1200})
    assert verdict.state is VerdictState.UNTESTED
    assert "live requests are watched instead" in verdict.reason
    assert not verdict_file(folder, None).exists()


def test_the_precision_around_the_model_call_belongs_to_it(serve: Serve) -> None:
    """A parity model computes after the handler's run has ended, and so outside the autocast that the handler made."""
    state = network().state_dict()
    expected = linear(vector(1), state) + linear(vector(2), state) - state["head.bias"].numpy()
    worker = serve("autocasts", {"role": "parity", "code": "sum", "k": 2, "partial": True})
    reply = worker.group(vector(1), vector(2))
    assert reply.status == 200, reply.body
    raw = reply.frame.raw
    assert raw is not None
    assert np.allclose(raw, expected, rtol=0.05, atol=0.1)
    assert reply.frame.computed_in == "bfloat16"
    assert json.loads(serve("autocasts", {}).ask(vector(1)).body)["scores"]


class _Questions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what asks a device for a value, and so waits until it has computed it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func.__name__.partition(".")[0] in ("equal", "_local_scalar_dense", "is_nonzero")
        return func(*args, **(kwargs or {}))


def test_encoding_asks_the_device_one_question() -> None:
    """Whether all inputs are finite, for all slots at once: that is one copy of k booleans."""
    calls = {slot: ModelCall("m", "__call__", (torch.rand(1, 8),), {"scale": 2.0}) for slot in range(4)}
    with _Questions() as questions:
        assert mismatched_slots(calls) == non_finite_slots(calls) == {}
        encode([*calls.values()], make_code("sum", 4))
    assert questions.asked == 0
    calls[2].args[0][0, 3] = float("nan")
    assert [*non_finite_slots(calls)] == [2]


class _Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(x)
        return scores + torch.arange(5, device=x.device)


def test_a_trace_made_on_the_cpu_runs_on_the_assigned_device(tmp_path: Path) -> None:
    """What it creates itself, too: a trace names the device that it was made on."""
    script = torch.jit.trace(torch.nn.Sequential(_Counts()), torch.zeros(1, 8))
    torch.jit.save(script, str(tmp_path / "made.pt"))
    model = ScriptedModel(str(tmp_path / "made.pt"), torch.device("meta"))  # the only other device of every machine
    assert model(ModelCall("m", "__call__", (torch.zeros(1, 8),), {})).device.type == "meta"


def test_a_batch_is_compared_by_the_precision_it_was_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(score: float) -> HandlerResponse:
        return HandlerResponse(json.dumps({"score": score}).encode())

    assert in_a_batch("") == BATCH_CLOSE
    assert not alike(answer(0.5), answer(0.51), in_a_batch("float16"))
    assert alike(answer(0.5), answer(0.51), in_a_batch("bfloat16"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert BATCH_CLOSE < in_a_batch("") < 0.01, "convolutions in TF32"
    raw = np.array([1.0, 0.5], np.float32)
    assert same_raw(raw, raw * (1 + 2.0**-8), "bfloat16")
    assert not same_raw(raw, raw * (1 + 2.0**-8))


def test_a_protection_asks_mps_for_the_lower_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MPS_PRIORITY, raising=False)
    make_handle("deployed")
    assert MPS_PRIORITY not in os.environ
    make_handle("parity")
    assert os.environ[MPS_PRIORITY] == "1"
    monkeypatch.setenv(MPS_PRIORITY, "0")
    make_handle("parity")
    assert os.environ[MPS_PRIORITY] == "0", "the operator's word"


def test_plain_requests_of_a_batch_with_a_failing_group_are_answered(serve: Serve) -> None:
    worker = serve("runs_out", {"role": "parity", "code": "exact", "k": 2})
    plain, group = worker.batch([Ask(vector(1)), Ask(LARGE, {OP: "group"})])
    assert (plain.status, group.status) == (200, 400)
