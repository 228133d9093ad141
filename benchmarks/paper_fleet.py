"""What `paper.py` measures on: archives on emulated accelerators, fleets of them, what stands before them, and clients.

Knows hosting and processes. Knows nothing of figures, rows or tables.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_points import ARMS, Point, Size, extra_machines

from ts_parity.lab.demo import DemoSettings, cost_of, find_example, make_models
from ts_parity.lab.emulation import Emulation, emulate
from ts_parity.lab.live import (
    LiveMachine,
    behind_gates,
    machines,
    register,
    started,
    stop,
    unregister,
    wait_until_ready,
)
from ts_parity.lab.traffic import LabelledBody, Post
from ts_parity.torchserve.archive import pack, wrap_parity
from ts_parity.training import TrainSettings, train

STUDENT = 0.25
"""What a student may cost, in deployed inferences an answer: as in the simulator's tables, and about what the paper's
approximate backup has."""
TENANT = "tenant"
TENANT_LOAD = 0.43
"""Of an instance that a second tenant uses: the paper's 14 queries/s at about 31 ms."""

# ---- archives -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archives:
    """All that may be registered, on emulated accelerators: by name, and for `coded` by k."""

    plain: Path
    student: Path
    exact: Path
    tenant: Path
    backup: Path
    """A student of each query by itself: the paper's approximate backup."""
    deployed: Mapping[int, Path]
    parity: Mapping[int, Path]
    costs: Mapping[str, float]
    data: Path


def make_archives(size: Size, work: Path) -> Archives:
    """Train once; what is there already is taken."""
    example = find_example(DemoSettings())
    models = work / "models"
    done = models / "done.json"
    if not done.exists():
        shutil.rmtree(models, ignore_errors=True)
        costs = {}
        for k in (2, 3, 4):
            settings = DemoSettings(out=models / f"k{k}", k=k, steps=size.steps)
            settings.out.mkdir(parents=True)
            data, made, report = make_models(settings, example)
            costs[f"sum{k}"] = cost_of(report)
            for name in ("deployed", "parity"):
                shutil.copy(made[name], models / f"{name}{k}.mar")
            if k == 2:
                shutil.copy(made["plain"], models / "plain.mar")
                shutil.copytree(data, models / "data")
        for name, k in (("student", 2), ("backup", 1)):
            costs[name] = _student(size, models, name, k)
        wrap_parity(models / "plain.mar", models / "exact", "twin", code="exact", k=2)
        pack(models, model_name=TENANT, handler=example / "digits_handler.py", model_file=example / "model.py",
             serialized_file=models / "data" / "digits.pt")  # fmt: skip
        done.write_text(json.dumps(costs))
    costs = json.loads(done.read_text())
    slow, emulation = work / "emulated", Emulation(size.service_s)

    def on_accelerator(file: str, cost: float = 1.0) -> Path:
        path = models / file
        return emulate(path, slow / path.stem, emulation, cost)

    return Archives(
        plain=on_accelerator("plain.mar"),
        student=on_accelerator("student.mar", costs["student"]),
        exact=on_accelerator("exact/twin.mar"),
        tenant=on_accelerator(f"{TENANT}.mar"),
        backup=on_accelerator("backup.mar", costs["backup"]),
        deployed={k: on_accelerator(f"deployed{k}.mar") for k in (2, 3, 4)},
        parity={k: on_accelerator(f"parity{k}.mar", costs[f"sum{k}"]) for k in (2, 3, 4)},
        costs=costs,
        data=models / "data",
    )


def _student(size: Size, models: Path, name: str, k: int) -> float:
    data = models / "data"
    report = train(
        TrainSettings(
            archive=models / "plain.mar", inputs=data / "train", score=data / "test", labels=data / "labels.csv",
            out=models / name, codes=("student",), ks=(k,), steps=size.steps, name=name, force=True,
            budget=STUDENT * k,
        )
    )  # fmt: skip
    [candidate] = report["candidates"]
    shutil.copy(models / name / candidate["archives"][0], models / f"{name}.mar")
    return cost_of(candidate)


# ---- fleets ---------------------------------------------------------------------------------------------------------


class Cluster:
    """Fleets one after the other; what stands beside the model is exchanged without starting the fleet anew."""

    def __init__(self, size: Size, archives: Archives, work: Path) -> None:
        self._size, self._archives, self._work = size, archives, work
        self._stack = ExitStack()
        self._what: tuple[str, int, int] | None = None
        self._beside: Path | None = None
        self.fleet: Sequence[LiveMachine] = ()
        self.gate: Any = None
        self.cold = False
        """Machines or models have been started since it was last set to False."""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def arranged(self, point: Point) -> Sequence[LiveMachine]:
        """-> the machines that serve this point."""
        if self._what != point.fleet:
            self._stack.close()
            self._what, self._beside = None, None
            self.fleet = machines(self._hosted(point), self._work / "machines", point.batch)
            self._stack.enter_context(started(self.fleet))
            self.gate = self._stack.enter_context(behind_gates(self.fleet, seed=point.seed))
            self._what, self.cold = point.fleet, True
        self._repair()
        arm = ARMS[point.arm]
        beside = {"exact": self._archives.exact, "student": self._archives.student}.get(arm.hosting)
        if self._what[0] == "beside" and beside != self._beside:
            if self._beside is not None:
                unregister(self.fleet, self._beside.stem)
            if beside is not None:
                register(self.fleet, beside)
                self.cold = True
            self._beside = beside
        wait_until_ready(self.fleet)
        return self.fleet if arm.extra else self.fleet[: self._size.machines]

    def _repair(self) -> None:
        for live in self.fleet:
            if not live.instance.running:
                live.restart()
                self.cold = True

    def _hosted(self, point: Point) -> list[list[Path]]:
        deployed, extra = self._size.machines, extra_machines(self._size, point.k)
        kind, archives = point.fleet[0], self._archives
        if kind == "coded":
            return [[archives.deployed[point.k]]] * deployed + [[archives.parity[point.k]]] * extra
        if kind == "approximate":
            return [[archives.plain]] * deployed + [[archives.backup]] * extra
        return [[archives.plain]] * (deployed + extra)


NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log error; daemon off;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 64m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream instances {{ {servers} keepalive 128; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://instances; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 60s; }} }}
}}
"""


@contextmanager
def nginx(fleet: Sequence[LiveMachine]) -> Iterator[str]:
    """Round robin over the machines, as people have it. -> its address."""
    from overhead_proxies import _listens, free_port

    if shutil.which("nginx") is None:
        raise SystemExit("there is no nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="ts-parity-nginx-") as folder:
        port = free_port()
        servers = " ".join(f"server {live.inference_url.removeprefix('http://')};" for live in fleet)
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, servers=servers, port=port))
        process = subprocess.Popen(["nginx", "-c", str(config), "-p", folder])
        try:
            ends_at = time.monotonic() + 30
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > ends_at:
                    raise SystemExit("nginx did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


@contextmanager
def tenant(size: Size, fleet: Sequence[LiveMachine], archives: Archives, seconds: float, seed: int) -> Iterator[None]:
    """Another model on a ninth of the machines, and a load of its own on it, from processes of its own. Raise
    SystemExit at the end if one of them has ended by itself: then the point had no second tenant.
    """
    chosen = [fleet[place] for place in range(0, len(fleet), 9)]
    register(chosen, archives.tenant)
    rate = TENANT_LOAD / size.service_s
    processes = []
    try:
        for place, live in enumerate(chosen):
            command = [sys.executable, "-m", "ts_parity.cli", "bench", "--seed", str(seed * 10 + place), "--json"]
            command += ["--target", f"{live.instance.inference_url}/predictions/{TENANT}", "--rate", f"{rate:.3f}"]
            command += ["--bodies", str(archives.data / "test"), "--duration", f"{seconds + 300:.0f}s"]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield
        if any(process.poll() is not None for process in processes):
            raise SystemExit(f"the second tenant's load has ended early; to see why: {shlex.join(command)}")
    finally:
        for process in processes:
            stop(process, 5)
        unregister(chosen, TENANT)


# ---- clients --------------------------------------------------------------------------------------------------------


class Twice:
    """Plain replication: every query is sent twice, and the first answer taken."""

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, post: Post) -> Post:
        import asyncio

        async def both(seq: int, body: LabelledBody) -> tuple[int, str, bytes]:
            self.sent += 2
            tasks = {asyncio.ensure_future(post(seq, body)) for _ in range(2)}
            try:
                while True:
                    done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    good = [task for task in done if task.exception() is None]
                    if good or not tasks:
                        return (good or [*done])[0].result()
            finally:
                for task in tasks:
                    task.cancel()

        return both


class HedgePython:
    """Second copies by the library `hedge-python` as it comes: a running p90, a budget of 10 %.

    Its aiohttp session sends no POST again, so its scheduler is used, which all of its transports share.
    """

    def __init__(self, rate: float) -> None:
        from hedge import HedgeConfig
        from hedge.transport._base import HedgeScheduler

        self._scheduler = HedgeScheduler(HedgeConfig(estimated_rps=rate))

    @property
    def sent(self) -> int:
        stats = self._scheduler.stats.snapshot()
        return int(stats.total_requests + stats.hedged_requests)

    def __call__(self, post: Post) -> Post:
        async def hedged(seq: int, body: LabelledBody) -> tuple[int, str, bytes]:
            began = time.monotonic()
            sketch = self._scheduler.sketch_for("fleet")

            async def send() -> tuple[int, str, bytes]:
                return await post(seq, body)

            answer: tuple[int, str, bytes] = await self._scheduler.execute_with_hedge(
                "fleet", send, send, lambda _, took: sketch.add(took or time.monotonic() - began)
            )
            return answer

        return hedged


def have_hedge_python() -> bool:
    return importlib.util.find_spec("hedge") is not None
