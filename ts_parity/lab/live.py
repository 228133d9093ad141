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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_parity.errors import ManagementError, StartError
from ts_parity.lab.emulation import MachineFile, of_machine
from ts_parity.lab.faults import CONTEND, CRASH, RESET, RESTART, Carrier, Fault, Injector
from ts_parity.lab.gate import GateProcess, gates
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.scenario import Outage
from ts_parity.lab.traffic import LabelledBody, Load, Post, Reader, drive
from ts_parity.torchserve.archive import read_archive
from ts_parity.torchserve.configuration import HOST, InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, launch_fleet, stop_fleet, together
from ts_parity.torchserve.management import unready

CLIENT_TIMEOUT_S = 20.0
START_S = 60.0
READY_S = 60.0
"""A killed worker is back within seconds; on a busy machine it takes longer to import torch."""
SETTLED_S = 20.0
"""A frozen worker goes on when an arm ends, and then its tasks end, too."""
LEAD_S = 0.3
"""Machines are told of their spells before the first of them begins."""


@dataclass
class LiveMachine:
    """One real TorchServe instance on one emulated accelerator, behind a gate where `gate` is its port."""

    instance: TorchServeInstance
    machine: MachineFile
    hosted: Sequence[Path]
    gate: int | None = None
    beside: dict[str, Path] = field(default_factory=dict)
    """What has been registered since it started, by the model's name."""

    @property
    def inference_url(self) -> str:
        return self.instance.inference_url if self.gate is None else f"http://{HOST}:{self.gate}"

    @property
    def endpoint(self) -> str:
        return f"{self.inference_url},management={self.instance.management_url}"

    def worker_pids(self) -> list[int]:
        """Of all models: a machine that stands still stands still for all it hosts. None while it is away."""
        try:
            with self.instance.management() as management:
                every = [d for model in management.models() for d in management.describe_all(model.name)]
        except (ManagementError, OSError):
            return []
        return [worker.pid for described in every for worker in described.workers if worker.pid > 0]

    def server_pids(self) -> list[int]:
        return [self.instance.pid] if self.instance.running else []

    def register(self, archive: Path) -> None:
        """Beside what it hosts; returns when its workers are ready."""
        with self.instance.management() as management:
            management.register(self.instance.add_archive(archive))
        self.beside[read_archive(archive).model_name] = archive

    def unregister(self, model: str) -> None:
        with self.instance.management() as management:
            management.unregister(model)
        self.beside.pop(model, None)

    def crash(self) -> None:
        self.instance.stop(orderly=False)

    def restart(self) -> None:
        """After a crash, at the same ports and with what stood beside the model."""
        before = self.instance
        self.instance = TorchServeInstance(self.hosted, before.options, name=before.name, ports=before.ports)
        self.instance.start()
        for archive in [*self.beside.values()]:
            self.register(archive)


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
        made.append(LiveMachine(TorchServeInstance(hosted, options, name=f"m{index}"), machine, hosted))
    return made


@contextmanager
def started(fleet: Sequence[LiveMachine]) -> Iterator[Sequence[LiveMachine]]:
    """Serving when this yields, and stopped afterwards, with whatever has been started again meanwhile."""
    launch_fleet([live.instance for live in fleet])
    try:
        yield fleet
    finally:
        stop_fleet([live.instance for live in fleet], orderly=False)


@contextmanager
def behind_gates(fleet: Sequence[LiveMachine], seed: int) -> Iterator[GateProcess]:
    """Inference goes through a gate each, until the body ends."""
    addresses = [(HOST, int(live.instance.inference_url.rpartition(":")[2])) for live in fleet]
    with gates(addresses, seed) as process:
        for live, port in zip(fleet, process.ports, strict=True):
            live.gate = port
        try:
            yield process
        finally:
            for live in fleet:
                live.gate = None


def register(fleet: Sequence[LiveMachine], archive: Path) -> None:
    """On each machine, beside what it hosts; returns when their workers are ready."""
    together(fleet, lambda live: live.register(archive))


def unregister(fleet: Sequence[LiveMachine], model: str) -> None:
    together(fleet, lambda live: live.unregister(model))


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

    def work(self, within_s: float = SETTLED_S) -> float:
        """Work so far, in deployed inferences, finishes aside: they run no model. It is counted when a task has ended,
        so this waits for those that are out; what is still out then counts as an inference each.
        """
        ends_at = time.monotonic() + within_s
        while True:
            with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            out = sum(map(float, re.findall(r"^ts_parity_in_flight (\S+)", text, re.MULTILINE)))
            if not out or time.monotonic() > ends_at:
                break
            time.sleep(0.2)
        ended = re.findall(r'^ts_parity_work_total\{kind="(?:deployed|protection)"[^}]*\} (\S+)', text, re.MULTILINE)
        return out + sum(map(float, ended))

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


def carriers_of(fleet: Sequence[LiveMachine], process: GateProcess | None = None) -> dict[str, Carrier]:
    """What the injector does on this fleet beside signals; with gates, to its network too."""

    def crash(fault: Fault) -> None:
        fleet[fault.instance].crash()

    def restart(fault: Fault) -> Callable[[], object]:
        fleet[fault.instance].crash()
        return fleet[fault.instance].restart

    made: dict[str, Carrier] = {CRASH: crash, RESTART: restart}
    if process is not None:
        made |= {CONTEND: _Contention(process), RESET: lambda fault: process.order(fault.instance, "reset")}
    return made


class _Contention:
    """Several transfers may use one instance's network: delays add up, and so does the time that a byte takes."""

    def __init__(self, process: GateProcess) -> None:
        self._process = process
        self._now: dict[int, list[Fault]] = {}
        self._lock = threading.Lock()

    def __call__(self, fault: Fault) -> Callable[[], object]:
        self._change(fault, list.append)
        return lambda: self._change(fault, list.remove)

    def _change(self, fault: Fault, how: Callable[[list[Fault], Fault], object]) -> None:
        with self._lock:
            now = self._now.setdefault(fault.instance, [])
            how(now, fault)
            byte_s = sum(1 / each.bytes_per_s for each in now if each.bytes_per_s)
            delay_s = sum(each.strength_s for each in now)
            self._process.contend(fault.instance, delay_s, 1 / byte_s if byte_s else 0.0)


def run_arm(
    fleet: Sequence[LiveMachine],
    targets: Sequence[str],
    load: Load,
    bodies: Sequence[LabelledBody],
    read: Reader,
    trouble: Trouble,
    seed: int,
    on_record: Callable[[QueryRecord], object] = lambda record: None,
    process: GateProcess | None = None,
    through: Callable[[Post], Post] = lambda post: post,
) -> tuple[list[QueryRecord], dict[str, int]]:
    """The load under its trouble, from one common instant. -> the records, and how often each kind of fault struck.

    `process`: the gates that the fleet is behind. `through`: as in `drive`. Afterwards all machines are as usual again,
    however it ends, but for those that have crashed.
    """
    injector = Injector(
        lambda index: fleet[index].worker_pids(),
        lambda index: fleet[index].server_pids(),
        carriers_of(fleet, process),
    )

    async def under_fire() -> list[QueryRecord]:
        started_at = time.monotonic() + LEAD_S
        for index, live in enumerate(fleet):
            live.machine.set(of_machine(trouble.spells, index), started_at, seed)
        faults = asyncio.create_task(injector.run(trouble.faults, started_at))
        try:
            return await drive(
                load, bodies, targets, read, CLIENT_TIMEOUT_S, on_record, started_at, through=through
            )  # fmt: skip
        finally:
            faults.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await faults

    try:
        records = asyncio.run(under_fire())
    finally:
        for live in fleet:
            live.machine.set(seed=seed)
    return records, dict(injector.struck)
