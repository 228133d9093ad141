"""What protections cost the deployed model when they share its GPU: the section `sharing` of benchmarks/gpu.py.

The deployed model answers Poisson arrivals, one at a time, in a process of its own, as a worker does. Beside it, in
another process, groups run for a share of its queries, or without a pause. In the rows of `one process` they run in a
thread beside it, on a stream of CUDA's lowest priority, and the deployed model on one of the same or of the highest.
With NVIDIA's MPS, where it can be started, both processes run at one instant. Knows networks, processes and clocks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import torch

from gpu_networks import Deployed
from gpu_times import Rows, Setting
from ts_parity.worker.gpu import MPS_PRIORITY

LOAD = 0.4
"""Of the deployed model alone: its queries seldom wait for each other."""
SHARES = (0.05, 0.2)
"""Of all queries, for which one group runs: a usual share of late ones, and a large one."""
PAUSELESS = 1e9
WARM = 20
STARTUP_S = 180.0
HIGHEST = -5


@dataclass(frozen=True)
class Beside:
    """What runs beside the deployed model. `rate`: groups a second."""

    what: str
    network: Deployed
    batch: int
    rate: float


def sharing(setting: Setting, seconds: float) -> Iterator[Rows]:
    """`seconds` of load for each row."""
    for deployed in setting.networks:
        alone_s = _usual_seconds(setting, deployed)
        rate = LOAD / alone_s
        rivals: list[tuple[str, Beside | None]] = [("nothing", None)]
        for share in SHARES:
            rivals.append((f"student 1/4 for {share:.0%}", Beside("student", deployed.student(1 / 4), 1, share * rate)))
        rivals.append(("exact, k=2 for 5%", Beside("exact", deployed, 2, 0.05 * rate)))
        rivals.append(("student 1/4 without a pause", Beside("student", deployed.student(1 / 4), 1, PAUSELESS)))
        for name, rival in rivals:
            yield [_row(deployed, "two processes", name, two_processes(setting, deployed, rate, rival, seconds))]
        with mps(setting) as runs:
            for name, rival in (rivals[1], rivals[-1]) if runs else ():
                yield [_row(deployed, "MPS", name, two_processes(setting, deployed, rate, rival, seconds))]
        if setting.device.type == "cuda":
            for priority in (0, HIGHEST):
                for name, rival in (rivals[1], rivals[-1]):
                    taken = one_process(setting, deployed, rate, rival, seconds, priority)
                    yield [_row(deployed, f"one process, priority {priority}", name, taken)]


def _row(deployed: Deployed, how: str, beside: str, latencies: np.ndarray) -> dict[str, Any]:
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) * 1000
    row = {"network": deployed.name, "how": how, "beside": beside, "queries": len(latencies)}
    row |= {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
    if len(latencies) >= 5000:  # else a handful of samples
        row["p999_ms"] = round(float(np.quantile(latencies, 0.999)) * 1000, 3)
    return row


class Inference:
    """One inference with its copies, as a worker makes it: an image there, the network, an output back."""

    def __init__(self, setting: Setting, network: Deployed, batch: int) -> None:
        self._device, self._dtype = setting.device, setting.halves[-1]
        self._model = network.make().to(self._device, self._dtype)
        self._images = network.images(batch)

    @torch.inference_mode()
    def __call__(self) -> object:
        return self._model(self._images.to(self._device, self._dtype)).float().cpu()


def _usual_seconds(setting: Setting, network: Deployed) -> float:
    run, taken = Inference(setting, network, 1), []
    for _ in range(WARM + setting.rounds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[WARM:]))


def answered(run: Callable[[], object], rate: float, seconds: float) -> np.ndarray:
    """-> how long each of the Poisson arrivals took from when it was due, one answered at a time."""
    dice, due_at, taken, begun = np.random.default_rng(0), 0.0, [], time.perf_counter()
    while (due_at := due_at + dice.exponential(1 / rate)) < seconds:
        time.sleep(max(0.0, begun + due_at - time.perf_counter()))
        run()
        taken.append(time.perf_counter() - begun - due_at)
    return np.array(taken)


def repeat(run: Callable[[], object], rate: float, ended: Callable[[], bool]) -> None:
    """Groups at Poisson instants, or without a pause; those that are overdue are left out."""
    dice = np.random.default_rng(1)
    while not ended():
        if rate < PAUSELESS:
            time.sleep(min(1.0, dice.exponential(1 / rate)))
        run()


def two_processes(
    setting: Setting, deployed: Deployed, rate: float, rival: Beside | None, seconds: float
) -> np.ndarray:
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Event(), context.Event()
    process = context.Process(target=_run_beside, args=(setting, rival, ready, ended), daemon=True)
    receiving, sending = context.Pipe(duplex=False)
    serving = context.Process(target=_serve, args=(setting, deployed, rate, seconds, ready, sending), daemon=True)
    try:
        if rival is None:
            ready.set()
        else:
            process.start()
        serving.start()
        if not receiving.poll(STARTUP_S + seconds):
            raise RuntimeError(f"no answer within {STARTUP_S + seconds:.0f} s")
        return np.asarray(receiving.recv())
    finally:
        ended.set()
        for each in (process, serving):
            if each.pid is not None:
                each.join(10)
                each.kill()


def _run_beside(setting: Setting, rival: Beside, ready: Event, ended: Event) -> None:
    os.environ[MPS_PRIORITY] = "1"
    torch.set_num_threads(1)
    run = Inference(setting, rival.network, rival.batch)
    for _ in range(WARM):
        run()
    ready.set()
    repeat(run, rival.rate, ended.is_set)


def _serve(setting: Setting, deployed: Deployed, rate: float, seconds: float, ready: Event, sending: Any) -> None:
    torch.set_num_threads(1)
    run = Inference(setting, deployed, 1)
    for _ in range(WARM):
        run()
    ready.wait(STARTUP_S)
    sending.send(answered(run, rate, seconds))


def one_process(
    setting: Setting, deployed: Deployed, rate: float, rival: Beside, seconds: float, priority: int
) -> np.ndarray:
    own, other = (
        torch.cuda.Stream(setting.device, priority=priority),
        torch.cuda.Stream(setting.device, priority=0),
    )
    ended = threading.Event()
    ready = threading.Event()

    def beside() -> None:
        with torch.cuda.stream(other):
            run = Inference(setting, rival.network, rival.batch)
            for _ in range(WARM):
                run()
            ready.set()
            repeat(run, rival.rate, ended.is_set)

    thread = threading.Thread(target=beside, daemon=True)
    thread.start()
    try:
        with torch.cuda.stream(own):
            run = Inference(setting, deployed, 1)
            for _ in range(WARM):
                run()
            ready.wait(STARTUP_S)
            return answered(run, rate, seconds)
    finally:
        ended.set()
        thread.join(10)


@contextlib.contextmanager
def mps(setting: Setting) -> Iterator[bool]:
    """While it lasts, processes that are started share the GPU by MPS. False: it cannot be started here."""
    control = shutil.which("nvidia-cuda-mps-control")
    if setting.device.type != "cuda" or control is None:
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield _ran([control, "-d"])
        finally:
            _ran([control], b"quit\n")
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _ran(command: list[str], said: bytes = b"") -> bool:
    try:
        return subprocess.run(command, input=said, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
