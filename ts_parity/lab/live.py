"""A live arm: a proxy in a process of its own, emulated machines, faults and open-loop load, all from one instant on.

What the demo and the benchmarks on real TorchServe share. Knows processes, machine files and records. Knows nothing of
which arms there are, or of training.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_parity.errors import StartError
from ts_parity.lab.emulation import MachineFile, of_machine
from ts_parity.lab.faults import Fault, Injector
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.scenario import Outage
from ts_parity.lab.traffic import LabelledBody, Load, Reader, drive
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, together
from ts_parity.torchserve.management import unready

CLIENT_TIMEOUT_S = 20.0
START_S = 60.0
READY_S = 60.0
"""A killed worker is back within seconds; on a busy machine it takes longer to import torch."""
LEAD_S = 0.3
"""Machines are told of their spells before the first of them begins."""


@dataclass(frozen=True)
class LiveMachine:
    """One real TorchServe instance on one emulated accelerator."""

    instance: TorchServeInstance
    machine: MachineFile

    @property
    def endpoint(self) -> str:
        return f"{self.instance.inference_url},management={self.instance.management_url}"

    def worker_pids(self) -> list[int]:
        """Of all models: a machine that stands still stands still for all it hosts."""
        with self.instance.management() as management:
            every = [d for model in management.models() for d in management.describe_all(model.name)]
        return [worker.pid for described in every for worker in described.workers if worker.pid > 0]


def machines(archives: Sequence[Sequence[Path]], folder: Path, batch_size: int = 1) -> list[LiveMachine]:
    """Not started yet; `archives` of each. Their machine files are put into the folder."""
    made = []
    for index, hosted in enumerate(archives):
        machine = MachineFile(folder / f"machine-{index}.json")
        # TorchServe's system metrics start one more process an instance every minute, all at the same instant here.
        options = InstanceOptions(
            workers=1,
            batch_size=batch_size,
            max_batch_delay_ms=1,
            model_api=True,
            env=machine.env,
            properties={"disable_system_metrics": "true"},
        )
        made.append(LiveMachine(TorchServeInstance(hosted, options), machine))
    return made


def register(fleet: Sequence[LiveMachine], archive: Path) -> None:
    """On each machine, beside what it hosts; returns when their workers are ready."""

    def one(live: LiveMachine) -> None:
        with live.instance.management() as management:
            management.register(live.instance.add_archive(archive))

    together(fleet, one)


def unregister(fleet: Sequence[LiveMachine], model: str) -> None:
    def one(live: LiveMachine) -> None:
        with live.instance.management() as management:
            management.unregister(model)

    together(fleet, one)


def wait_until_ready(fleet: Sequence[LiveMachine], within_s: float = READY_S) -> None:
    """What was killed in one arm is back before the next. Raise StartError."""
    ends_at = time.monotonic() + within_s
    for live in fleet:
        while missing := _missing(live):
            if time.monotonic() > ends_at:
                raise StartError(f"{live.instance.name} is not ready again: {missing}")
            time.sleep(0.2)


def _missing(live: LiveMachine) -> str:
    with live.instance.management() as management:
        return "; ".join(unready([d for m in management.models() for d in management.describe_all(m.name)]))


class ProxyProcess:
    """`ts-parity serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, admin_url: str, model: str) -> None:
        self.process = process
        self.base_url = url
        self.model = model
        self.url = f"{url}/predictions/{model}"
        self.admin_url = admin_url

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin_url}/status", timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)
            return status

    def work(self) -> float:
        """Work sent so far, in deployed inferences, finishes aside: they run no model."""
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(r'^ts_parity_work_total\{kind="(?:deployed|protection)"\} (\S+)', text, re.MULTILINE)
        return sum(map(float, found))

    def wait_for_code(self, code: str, within_s: float = START_S) -> None:
        """Until it has found the protection. Raise StartError."""
        ends_at = time.monotonic() + within_s
        while not any(pool["code"] and pool["code"]["name"] == code for pool in self._pools()):
            if time.monotonic() > ends_at:
                said = "; ".join(self.status()["problems"]) or "it has found none"
                raise StartError(f"the proxy did not begin to code with {code}: {said}")
            time.sleep(0.2)

    def on_trial(self) -> bool:
        return any(pool.get("trust") and pool["trust"]["state"] == "on trial" for pool in self._pools())

    def _pools(self) -> list[dict[str, Any]]:
        return [pool for pool in self.status()["pools"].values() if pool["model"] == self.model]


@contextmanager
def proxy_over(
    endpoints: Sequence[str], model: str, out: Path, name: str, flags: Sequence[str] = ()
) -> Iterator[ProxyProcess]:
    """A proxy in front of these `--endpoint`s, serving when this yields. Its log stands in the folder `out`."""
    ready, log = out / f"proxy-{name}.json", out / f"proxy-{name}.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0"]
    command += ["--ready-file", str(ready), *flags]
    for endpoint in endpoints:
        command += ["--endpoint", endpoint]
    with open(log, "wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        ends_at = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > ends_at:
                raise StartError(f"the proxy did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        said = json.loads(ready.read_text())
        yield ProxyProcess(process, said["url"], said["admin_url"], model)
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any], within_s: float = 15.0) -> None:
    """Asked to end, and killed if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Trouble:
    """What happens to the machines while they serve. Instants count from the start of the load."""

    spells: Sequence[Outage] = ()
    faults: Sequence[Fault] = ()


def run_arm(
    fleet: Sequence[LiveMachine],
    targets: Sequence[str],
    load: Load,
    bodies: Sequence[LabelledBody],
    read: Reader,
    trouble: Trouble,
    seed: int,
    on_record: Callable[[QueryRecord], object] = lambda record: None,
) -> tuple[list[QueryRecord], dict[str, int]]:
    """The load under its trouble, from one common instant. -> the records, and how often each kind of fault struck.

    Afterwards all machines are as usual again, however it ends.
    """
    injector = Injector(lambda index: fleet[index].worker_pids())
    try:
        records = asyncio.run(_under_fire(fleet, targets, load, bodies, read, trouble, seed, injector, on_record))
    finally:
        for live in fleet:
            live.machine.set(seed=seed)
    return records, dict(injector.struck)


async def _under_fire(
    fleet: Sequence[LiveMachine],
    targets: Sequence[str],
    load: Load,
    bodies: Sequence[LabelledBody],
    read: Reader,
    trouble: Trouble,
    seed: int,
    injector: Injector,
    on_record: Callable[[QueryRecord], object],
) -> list[QueryRecord]:
    started_at = time.monotonic() + LEAD_S
    for index, live in enumerate(fleet):
        live.machine.set(of_machine(trouble.spells, index), started_at, seed)
    faults = asyncio.create_task(injector.run(trouble.faults, started_at))
    try:
        return await drive(load, bodies, targets, read, CLIENT_TIMEOUT_S, on_record, started_at)
    finally:
        faults.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await faults
