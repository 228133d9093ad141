"""Real TorchServe with workers on the GPU, end to end through the proxy: the section `torchserve` of benchmarks/gpu.py.

Two instances serve the deployed model with `exact` beside it, launched late: a student of random weights would not pass
its trial. The same Poisson load and the same freezes of whole instances' workers (SIGSTOP) strike two arms: round robin
over the instances, and `ts-parity serve` in front of them. Knows the order of the steps; the pieces are the lab's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_networks import Deployed
from gpu_times import Rows, Setting, make_archives
from ts_parity.lab.faults import FREEZE, Fault, FaultPlan, Injector, make_schedule
from ts_parity.lab.live import ProxyProcess, proxy_over
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.report import summarize
from ts_parity.lab.traffic import LabelledBody, drive, poisson_load
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet

INSTANCES = 2
FAULTS = FaultPlan(mean_gap_s=4.0, spell_s=(0.3, 0.7), kills=0)
CLIENT_TIMEOUT_S = 20.0
PROVING_S = 30.0
"""Of load at most before anything is measured: a protection answers clients after its trial only."""
PIECE_S = 2.0


def torchserve(setting: Setting, seconds: float, rate: float, proving_s: float = PROVING_S) -> Iterator[Rows]:
    """`rate` in queries a second; `seconds` of it for each arm."""
    network = setting.networks[0]
    with tempfile.TemporaryDirectory(prefix="ts-parity-gpu-") as scratch, contextlib.ExitStack() as stack:
        made = make_archives(Path(scratch) / "made", network, [("exact", 2)])
        exact = made.protections["exact", 2]
        cpu = {} if setting.device.type == "cuda" else {"number_of_gpu": "0"}
        options = InstanceOptions(properties=cpu)
        fleet = [TorchServeInstance([made.plain, exact], options, name=f"instance {n}") for n in range(INSTANCES)]
        begun = time.monotonic()
        stack.enter_context(start_fleet(fleet))
        model, models = _model(network), [_model(network), exact.stem]
        yield [_workers(fleet, models, time.monotonic() - begun)]
        bodies = [LabelledBody(body, "application/octet-stream") for body in made.bodies]
        schedule = make_schedule(FAULTS, INSTANCES, INSTANCES, seconds, seed=0)
        own = [f"{instance.inference_url}/predictions/{model}" for instance in fleet]
        _load(own, bodies, rate, 2.0, (), fleet, models)
        yield [_row("round robin", rate, _load(own, bodies, rate, seconds, schedule, fleet, models))]
        endpoints = [f"{each.inference_url},management={each.management_url}" for each in fleet]
        proxy = stack.enter_context(proxy_over(endpoints, model, Path(scratch), "gpu"))
        proxy.wait_for_code("exact")
        targets = [proxy.url]
        for _ in range(round(proving_s / PIECE_S)):
            if proxy.on_trial():
                _load(targets, bodies, rate, PIECE_S, (), fleet, models)
        before, told = proxy.work(), _load(targets, bodies, rate, seconds, schedule, fleet, models)
        work = (proxy.work() - before) / len(told)
        yield [_row("proxy, exact launched late", rate, told) | {"work": round(work, 3), **_pool(proxy, model)}]


def _model(network: Deployed) -> str:
    return network.name.replace("_", "-")


def _workers(fleet: Sequence[TorchServeInstance], models: Sequence[str], seconds: float) -> dict[str, Any]:
    """On which devices TorchServe has put them."""
    found = []
    for instance in fleet:
        with instance.management() as management:
            found += [worker for model in models for worker in management.describe(model).workers]
    gpus = sum(worker.gpu for worker in found)
    return {"arm": "start", "workers": len(found), "on a GPU": gpus, "start_s": round(seconds, 1)}


def _pool(proxy: ProxyProcess, model: str) -> dict[str, Any]:
    [pool] = [pool for pool in proxy.status()["pools"].values() if pool["model"] == model]
    return {"does": pool.get("does", "")}


def _load(
    targets: Sequence[str],
    bodies: Sequence[LabelledBody],
    rate: float,
    seconds: float,
    schedule: Sequence[Fault],
    fleet: Sequence[TorchServeInstance],
    models: Sequence[str],
) -> list[QueryRecord]:
    load = poisson_load(max(1, round(rate * seconds)), rate, len(bodies), seed=0)
    # A machine that stands still stands still for all models that it hosts.
    injector = Injector(lambda index: [pid for model in models for pid in fleet[index].worker_pids(model)])

    async def struck() -> list[QueryRecord]:
        started_at = time.monotonic() + 0.2
        faults = asyncio.create_task(injector.run(schedule, started_at))
        try:
            return await drive(load, bodies, targets, _best, CLIENT_TIMEOUT_S, started_at=started_at)
        finally:
            faults.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await faults

    records = asyncio.run(struck())
    assert not schedule or injector.struck[FREEZE], "no freeze found a worker"
    return records


def _best(body: bytes) -> int:
    return int(json.loads(body)["best"])


def _row(arm: str, rate: float, records: list[QueryRecord]) -> dict[str, Any]:
    seen = summarize(records)
    return {
        "arm": arm,
        "rate": round(rate, 1),
        "queries": len(records),
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "max_ms": seen.max_ms,
        "errors": seen.errors + seen.lost,
        "rebuilt": seen.reconstructed,
    }
