"""Does what `ts-parity plan` foretells happen? Real runs, each with its access log, and what is foretold from each log.

    python benchmarks/foretold.py run --fleet torchserve|workers --policy none|hedge|student|exact [--seed S] --work DIR
    python benchmarks/foretold.py compare --work DIR    and renew the table of docs/benchmarks.md

`run` serves one load with one policy: Poisson arrivals at a proxy of its own process in front of two real TorchServe
instances whose model sleeps for 15 ms, or of six workers that speak HTTP like them and sleep for 20 ms. Instances are
frozen (SIGSTOP to TorchServe's workers) for 0.3 to 0.7 s now and then. All policies get the same load and the same
freezes; the flags are those that `plan` says. It keeps the clients' records and the proxy's access log.

`compare` foretells the p99 and p99.9 of every policy out of every log, through the code of `plan`, and puts them beside
what the clients of that policy measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count
from ts_parity.lab.compare import World, service_from
from ts_parity.lab.faults import Fault, FaultPlan, Injector, make_schedule
from ts_parity.lab.records import QueryRecord, read_records, write_records
from ts_parity.lab.report import percentile
from ts_parity.lab.rivals import Arrangement, arrange, serve_flags
from ts_parity.lab.simulate import simulate
from ts_parity.lab.traffic import LabelledBody, drive, poisson_load
from ts_parity.tables import markdown
from ts_parity.testing import FakeModel, FakeTorchServe, protection

RESULTS = Path(__file__).parent / "results" / "foretold.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HANDLER = Path(__file__).parent / "sleeping_handler.py"
MODEL = "linear"
SHARES = {"p99": 0.99, "p99.9": 0.999}
WITHIN = 0.25
WARM_UP = 400
"""Enough to prove a protection, and to know what is usual."""


@dataclass(frozen=True)
class Fleet:
    """`sleeps_s`: the deployed model; a student takes `STUDENT` of it. `overhead_s`: what an instance takes beside."""

    machines: int
    sleeps_s: float
    overhead_s: float
    rate: float
    queries: int
    faults: FaultPlan

    @property
    def unit_s(self) -> float:
        return self.sleeps_s + self.overhead_s


STUDENT = 0.25
FLEETS = {
    "torchserve": Fleet(2, 0.015, 0.004, 60.0, 10_500, FaultPlan(12.0, (0.3, 0.7), kills=0)),
    "workers": Fleet(6, 0.020, 0.003, 130.0, 21_000, FaultPlan(18.0, (0.3, 0.7), kills=0)),
}
POLICIES = ("none", "hedge", "student", "exact")


def arranged(policy: str, machines: int) -> Arrangement:
    """As `plan` arranges it."""
    if policy in ("student", "exact"):
        return arrange("default", machines, 0, code=policy, k=1, cost=STUDENT if policy == "student" else 1.0)
    return arrange("copies", machines, 0, **({"copies": False} if policy == "none" else {}))


# ---- instances -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def torchserve(fleet: Fleet, policy: str, work: Path) -> AsyncIterator[tuple[list[str], Any]]:
    """-> `--endpoint`s, and what freezes the instances by a schedule from an instant on."""
    from ts_parity.torchserve.configuration import InstanceOptions
    from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet

    archives = make_archives(fleet, policy, work)
    options = InstanceOptions(workers=1, properties={"disable_system_metrics": "true"})
    with start_fleet([TorchServeInstance(archives, options) for _ in range(fleet.machines)]) as instances:
        pids = [[pid for archive in archives for pid in i.worker_pids(archive.stem)] for i in instances]

        async def freeze(schedule: Sequence[Fault], started_at: float) -> None:
            await Injector(lambda index: pids[index]).run(schedule, started_at)

        yield [f"{i.inference_url},management={i.management_url}" for i in instances], freeze


def make_archives(fleet: Fleet, policy: str, work: Path) -> list[Path]:
    """The deployed model and what protects it."""
    import torch

    from ts_parity.torchserve.archive import pack
    from ts_parity.torchserve.wrapping import wrap_parity

    class Net(torch.nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.register_buffer("seconds", torch.tensor(seconds))
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    work.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, seconds in (("deployed", fleet.sleeps_s), ("student", STUDENT * fleet.sleeps_s)):
        torch.manual_seed(0)
        files[name] = work / f"{name}.pt"
        torch.jit.script(Net(seconds).eval()).save(str(files[name]))
    plain = pack(work, model_name=MODEL, handler=HANDLER, serialized_file=files["deployed"])
    if policy == "student":
        return [plain, wrap_parity(plain, work, "pupil", code="student", k=1, serialized_file=files["student"])]
    return [plain, wrap_parity(plain, work, "twin", code="exact", k=1)] if policy == "exact" else [plain]


@asynccontextmanager
async def workers(fleet: Fleet, policy: str, work: Path) -> AsyncIterator[tuple[list[str], Any]]:
    """In a process of their own, for they take processor time too."""
    command = [sys.executable, __file__, "serve", "--policy", policy]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    endpoints = json.loads(await process.stdout.readline())
    try:

        async def freeze(schedule: Sequence[Fault], started_at: float) -> None:
            said = [[fault.at + started_at, fault.spell_s, fault.instance] for fault in schedule]
            process.stdin.write(json.dumps(said).encode() + b"\n")

        yield endpoints, freeze
    finally:
        process.stdin.close()
        await process.wait()


class Worker(FakeTorchServe):
    """Frozen, it does not go on sleeping: what it has begun is late by as much."""

    async def _on_inference(self, http: Any) -> Any:
        answer = await super()._on_inference(http)
        await self._thawed.wait()
        return answer


async def serve(policy: str, fleet: Fleet) -> None:
    """Six workers, frozen as a line on standard input says, until that ends."""
    deployed = FakeModel(role=None, latency_s=fleet.sleeps_s)
    backup = protection(
        name="backup", code=policy, k=1, latency_s=fleet.sleeps_s * (STUDENT if policy == "student" else 1)
    )
    models = [deployed, backup] if policy in ("student", "exact") else [deployed]
    instances = [Worker(*(replace(model) for model in models)) for _ in range(fleet.machines)]
    for instance in instances:
        await instance.start()
    print(json.dumps([instance.endpoint for instance in instances]), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        for at, lasts_s, index in json.loads(line):
            loop.call_at(at, instances[index].freeze)
            loop.call_at(at + lasts_s, instances[index].thaw)


# ---- a run ---------------------------------------------------------------------------------------------------------


async def run(kind: str, policy: str, seed: int, work: Path) -> list[QueryRecord]:
    fleet = FLEETS[kind]
    start: Callable[..., Any] = torchserve if kind == "torchserve" else workers
    named = f"{kind}-{policy}-{seed}"
    log = work / f"{named}.jsonl"
    given = ["--access-log", str(log), *(serve_flags(arranged(policy, fleet.machines).name) or ())]
    given += ["--extra-work", "0"] if policy == "none" else []
    async with start(fleet, policy, work / named) as (endpoints, freeze), proxy(endpoints, given) as url:
        return await loaded(fleet, url, seed, freeze, log)


async def loaded(fleet: Fleet, url: str, seed: int, freeze: Any, log: Path) -> list[QueryRecord]:
    body = np.array([1.0, 2.0], dtype=np.float32).tobytes() if "torchserve" in log.name else b"[1, 2]"
    bodies = [LabelledBody(body)]
    targets = [f"{url}/predictions/{MODEL}"]
    for _ in range(3):  # until a protection has proved itself
        await drive(poisson_load(WARM_UP, fleet.rate / 2, 1, seed + 1), bodies, targets, json.loads, 30.0)
    await asyncio.sleep(2.0)  # lines are written about once a second
    os.truncate(log, 0)
    load = poisson_load(fleet.queries, fleet.rate, 1, seed)
    schedule = make_schedule(fleet.faults, fleet.machines, fleet.machines, load.duration_s, seed)
    started_at = time.monotonic() + 0.5
    freezing = asyncio.create_task(freeze(schedule, started_at))
    with tqdm(total=fleet.queries, unit="query", mininterval=5) as bar:
        records = await drive(load, bodies, targets, json.loads, 30.0, lambda record: bar.update(), started_at)
    await freezing
    await asyncio.sleep(2.0)
    return records


@asynccontextmanager
async def proxy(endpoints: Sequence[str], given: Sequence[str]) -> AsyncIterator[str]:
    command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0", *given]
    for endpoint in endpoints:
        command += ["--endpoint", endpoint]
    with tempfile.TemporaryDirectory(prefix="ts-parity-foretold-") as folder:
        ready = os.path.join(folder, "ready")
        process = await asyncio.create_subprocess_exec(*command, "--ready-file", ready)
        try:
            while not (url := url_in(ready)):
                if process.returncode is not None:
                    raise RuntimeError("the proxy did not start")
                await asyncio.sleep(0.1)
            yield url
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def url_in(ready: str) -> str:
    """Empty until there is one."""
    try:
        with open(ready) as file:
            return str(json.load(file)["url"])
    except (FileNotFoundError, ValueError):
        return ""


def measured(records: Sequence[QueryRecord]) -> dict[str, float]:
    """By the clients, from when a query was due."""
    return percentiles([r.latency_s for r in records if r.answered and r.latency_s is not None])


def logged(log: Path) -> dict[str, float]:
    """By the proxy."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return percentiles([line["latency_s"] for line in lines if "task" not in line and line["status"] == 200])


def percentiles(latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    return {name: percentile(ordered, share) or 0.0 for name, share in {"p50": 0.5, **SHARES}.items()}


# ---- what is foretold ----------------------------------------------------------------------------------------------


def foretold(log: Path, policy: str, fleet: Fleet, seeds: range) -> dict[str, float]:
    service, unit, seen = service_from(log)
    assert seen is not None
    trace = tuple(at / unit for at in seen.arrivals)
    load = len(trace) / trace[-1] / fleet.machines
    world = World(load, fleet.machines, service=service, unit=unit, seen=seen, trace=trace)
    scenario = replace(world.scenario(arranged(policy, fleet.machines)), warm_up=0.0)
    results = [simulate(scenario, seed) for seed in seeds]
    return {name: unit * float(np.mean([r.percentile(share) for r in results])) for name, share in SHARES.items()}


def compare(work: Path, seeds: range) -> dict[str, Any]:
    rows = []
    for kind, fleet in FLEETS.items():
        for file in sorted(work.glob(f"{kind}-*.records.jsonl")):
            policy, seed = file.name.removesuffix(".records.jsonl").split("-")[1:]
            clients = measured([*read_records(file)])
            proxys = logged(work / f"{kind}-{policy}-{seed}.jsonl")
            for log_of in POLICIES:
                log = work / f"{kind}-{log_of}-{seed}.jsonl"
                told = foretold(log, policy, fleet, seeds) if log.exists() else {}
                for name, value in told.items():
                    row = {"fleet": kind, "seed": int(seed), "policy": policy, "percentile": name, "log_of": log_of}
                    times = {"foretold_ms": value, "proxy_ms": proxys[name], "clients_ms": clients[name]}
                    row |= {what: round(1000 * seconds, 1) for what, seconds in times.items()}
                    row |= {"ratio": round(value / proxys[name], 3), "to_clients": round(value / clients[name], 3)}
                    rows.append(row)
                    print(row, flush=True)
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows}


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    told: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in document["rows"]:
        key = (row["fleet"], row["policy"], row["percentile"])
        told.setdefault(tuple(map(str, key)), {})[row["log_of"]] = row
    body = []
    for key, by_log in told.items():
        one = next(iter(by_log.values()))
        logs = [by_log.get(policy) for policy in POLICIES]
        cells = ["-" if row is None else f"{row['foretold_ms']:.0f} ({row['ratio']:.2f})" for row in logs]
        body.append([*key, f"{one['proxy_ms']:.0f}", f"{one['clients_ms']:.0f}", *cells])
    head = ["fleet", "policy", "", "measured", "by clients", *(f"from the log of {policy}" for policy in POLICIES)]
    rows = document["rows"]
    within = {of: sum(abs(row[of] - 1) <= WITHIN for row in rows) for of in ("ratio", "to_clients")}
    farthest = max(rows, key=lambda row: abs(math.log(row["ratio"])))
    text = (
        f"`{document['command']}`; {document['machine']}. Milliseconds.\n\n{markdown(head, body)}\n\n"
        f"Of {len(rows)} figures {within['ratio']} are within 25 % of what was measured at the proxy (the farthest is "
        f"{farthest['ratio']:.2f} of it), {within['to_clients']} of what its clients measured."
    )
    return {"foretold": text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "compare", "serve"))
    parser.add_argument("--fleet", choices=FLEETS, default="workers")
    parser.add_argument("--policy", choices=POLICIES, default="none")
    parser.add_argument("--seed", type=count(0), default=0)
    parser.add_argument("--seeds", type=count(), default=3, help="of the simulation, default %(default)s")
    parser.add_argument("--work", type=Path, default=Path("foretold"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "serve":
        asyncio.run(serve(args.policy, FLEETS["workers"]))
    elif args.what == "run":
        args.work.mkdir(parents=True, exist_ok=True)
        records = asyncio.run(run(args.fleet, args.policy, args.seed, args.work))
        named = f"{args.fleet}-{args.policy}-{args.seed}"
        write_records(args.work / f"{named}.records.jsonl", records)
        print(named, measured(records))
    else:
        document = {"command": "python benchmarks/foretold.py compare", **compare(args.work, range(args.seeds))}
        args.out.write_text(json.dumps(document, indent=1) + "\n")
        for mark, text in sections(document).items():
            print(text)
            if args.out == RESULTS:
                renew(DOCS, mark, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
