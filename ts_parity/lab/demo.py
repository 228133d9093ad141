"""The main job, end to end, on real TorchServe: train, package, serve, break things, and show what clients saw.

Four arms get the same load and the same faults: round robin over plain instances (what people have today), the proxy
without coding, the coded proxy as in the paper, and a student beside the deployed model, launched late; each on six
instances. This process makes the load and the faults; TorchServe and the proxy run in processes of their own. Knows
the order of the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ts_parity
from ts_parity.codes import make_code
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, StartError
from ts_parity.lab.faults import Fault, FaultPlan, Injector, make_schedule
from ts_parity.lab.records import QueryRecord, write_records
from ts_parity.lab.report import Summary, plot_latencies, summarize, table
from ts_parity.lab.traffic import LabelledBody, drive, poisson_load
from ts_parity.torchserve.archive import pack
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet
from ts_parity.training import TrainSettings, train

INSTANCES = 6
DEPLOYED = 4
MODEL = "digits"
CLIENT_TIMEOUT_S = 20.0
WARM_UP = 200
FAULTS = FaultPlan(mean_gap_s=2.2, spell_s=(0.06, 0.2))
# The flags of an arm's proxy: none, except where it must not rescue any query.
POLICIES: dict[str, tuple[str, ...]] = {
    "uncoded": ("--protect", "off", "--extra-work", "0"),
    "coded": (),
    "default": (),
}


@dataclass(frozen=True)
class DemoSettings:
    """The options of `ts-parity demo`."""

    out: Path = Path("demo-out")
    code: str = "sum"
    k: int = 2
    queries: int = 10_500
    rate: float = 200.0
    seed: int = 0
    steps: int | None = None
    keep: bool = False
    example: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class Arm:
    """One way to serve the same load."""

    summary: Summary
    records: Sequence[QueryRecord]
    struck: dict[str, int]


Say = Callable[[str], None]


def run_demo(settings: DemoSettings, say: Say) -> dict[str, Any]:
    """-> the summary that is also written to `out`/summary.json. Everything started is stopped, whatever happens."""
    if settings.code not in CODES:
        raise ConfigError(f"the demo has --code {', '.join(CODES)}, not {settings.code}")
    if settings.queries < 1 or settings.rate <= 0:
        raise ConfigError("--queries and --rate must be positive")
    make_code(settings.code, settings.k)  # which says what is wrong, before minutes have gone by
    example = find_example(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    say("1/5  training the deployed model and its protection")
    data, archives, report = make_models(settings, example)
    archives["student"], student = make_student(settings, archives["plain"], data)
    bodies = read_bodies(data)
    load_s = settings.queries / settings.rate
    schedule = make_schedule(FAULTS, INSTANCES, DEPLOYED, load_s, settings.seed)
    arms: dict[str, Arm] = {}
    with ExitStack() as plain:
        say("2/5  six TorchServe instances serve the deployed model")
        fleet = plain.enter_context(start_fleet([_instance(archives["plain"]) for _ in range(INSTANCES)]))
        targets = [f"{instance.inference_url}/predictions/{MODEL}" for instance in fleet]
        models = [[MODEL]] * INSTANCES
        arms["round_robin"] = _arm("round robin", settings, targets, fleet, models, bodies, schedule, None, say)
        with proxy_over(fleet, settings.out, "uncoded") as proxy:
            arms["uncoded"] = _arm("uncoded", settings, [proxy.url], fleet, models, bodies, schedule, proxy, say)
    with ExitStack() as coded:
        say(
            f"3/5  {DEPLOYED} instances serve the deployed model, {INSTANCES - DEPLOYED} its {settings.code} protection"
        )
        served = [archives["deployed"]] * DEPLOYED + [archives["parity"]] * (INSTANCES - DEPLOYED)
        fleet = coded.enter_context(start_fleet([_instance(archive) for archive in served]))
        models = [[MODEL]] * DEPLOYED + [[archives["parity"].stem]] * (INSTANCES - DEPLOYED)
        with proxy_over(fleet, settings.out, "coded") as proxy:
            proxy.wait_for_code(settings.code)
            arms["coded"] = _arm("coded", settings, [proxy.url], fleet, models, bodies, schedule, proxy, say)
    with ExitStack() as shared:
        say("4/5  six instances serve the deployed model and a student beside it, launched only for late queries")
        both = [archives["plain"], archives["student"]]
        fleet = shared.enter_context(start_fleet([_instance(*both) for _ in range(INSTANCES)]))
        models = [[MODEL, archives["student"].stem]] * INSTANCES
        proxy = shared.enter_context(proxy_over(fleet, settings.out, "default"))
        proxy.wait_for_code("student")
        arms["default"] = _arm("default", settings, [proxy.url], fleet, models, bodies, schedule, proxy, say)
        say("5/5  what the clients saw\n")
        summary = _summary(settings, arms, report, student, schedule)
        _write(settings, summary, arms)
        say(demo_text(settings, summary, arms, report))
        say(closing_commands(proxy.url, data / "test" / "0000.png", settings.keep))
        if settings.keep:
            _wait_for_interrupt(say)
    return summary


def find_example(settings: DemoSettings) -> Path:
    example = settings.example or Path(ts_parity.__file__).resolve().parent.parent / "examples" / "digits"
    if not (example / "train_digits.py").is_file():
        raise ConfigError(f"no example in {example}: run the demo in a checkout, or say where it is with --example DIR")
    return example


def make_models(settings: DemoSettings, example: Path) -> tuple[Path, dict[str, Path], dict[str, Any]]:
    """-> the example's data, the archives (plain, deployed, parity), the training report."""
    data = settings.out / "digits"
    shutil.rmtree(data, ignore_errors=True)
    command = [sys.executable, str(example / "train_digits.py"), "--out", str(data), "--seed", str(settings.seed)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise StartError(f"training the deployed model failed:\n{made.stderr[-2000:]}")
    plain = pack(
        settings.out,
        model_name=MODEL,
        handler=example / "digits_handler.py",
        model_file=example / "model.py",
        serialized_file=data / "digits.pt",
    )
    trained = settings.out / "trained"
    report = _train(settings, plain, data, trained, settings.code, settings.k)
    [protection] = report["candidates"]
    # A backup needs nothing of the deployed workers: then the archive stays as it is.
    deployed = trained / report["archives"]["deployed"] if "archives" in report else plain
    archives = {"plain": plain, "deployed": deployed, "parity": trained / protection["archives"][0]}
    return data, archives, protection


def make_student(settings: DemoSettings, plain: Path, data: Path) -> tuple[Path, dict[str, Any]]:
    """The small model that stands beside the deployed one in the fourth arm. -> its archive, its report."""
    out = settings.out / "student"
    report = _train(settings, plain, data, out, "student", 2, f"{MODEL}-student")
    [student] = report["candidates"]
    return out / student["archives"][0], student


def _train(
    settings: DemoSettings, plain: Path, data: Path, out: Path, code: str, k: int, name: str | None = None
) -> dict[str, Any]:
    return train(
        TrainSettings(
            archive=plain,
            inputs=data / "train",
            score=data / "test",
            labels=data / "labels.csv",
            out=out,
            codes=(code,),
            ks=(k,),
            steps=settings.steps,
            seed=settings.seed,
            name=name,
            force=True,
            progress=settings.progress,
        )
    )


def read_bodies(data: Path) -> list[LabelledBody]:
    """The scans no model has seen, as clients send them."""
    labels = dict(line.split(",") for line in (data / "labels.csv").read_text().splitlines()[1:])
    files = sorted((data / "test").glob("*.png"))
    return [LabelledBody(file.read_bytes(), "image/png", int(labels[f"test/{file.name}"])) for file in files]


def read_digit(body: bytes) -> int:
    return int(json.loads(body)["digit"])


class ProxyProcess:
    """`ts-parity serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, admin_url: str) -> None:
        self.process = process
        self.base_url = url
        self.url = f"{url}/predictions/{MODEL}"
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

    def wait_for_code(self, code: str, within_s: float = 60.0) -> None:
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            status = self.status()
            codes = [pool["code"] for pool in status["pools"].values() if pool["model"] == MODEL]
            if any(found and found["name"] == code for found in codes):
                return
            time.sleep(0.2)
        raise StartError(f"the proxy did not begin to code with {code}: {'; '.join(status['problems']) or codes}")


@contextmanager
def proxy_over(fleet: Sequence[TorchServeInstance], out: Path, arm: str) -> Iterator[ProxyProcess]:
    """An arm's proxy in front of these instances, serving when this yields."""
    ready, log = out / f"proxy-{arm}.json", out / f"proxy-{arm}.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0"]
    command += ["--ready-file", str(ready), *POLICIES[arm]]
    for instance in fleet:
        command += ["--endpoint", f"{instance.inference_url},management={instance.management_url}"]
    with open(log, "wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        ends_at = time.monotonic() + 60
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > ends_at:
                raise StartError(f"the proxy did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        said = json.loads(ready.read_text())
        yield ProxyProcess(process, said["url"], said["admin_url"])
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _instance(*archives: Path) -> TorchServeInstance:
    # One thread per worker: six workers on a small machine would otherwise fight over its cores.
    # TorchServe's system metrics start one more process per instance every minute, all six at the same instant here.
    return TorchServeInstance(archives, InstanceOptions(workers=1, properties={"disable_system_metrics": "true"}))


def _arm(
    name: str,
    settings: DemoSettings,
    targets: Sequence[str],
    fleet: Sequence[TorchServeInstance],
    models: Sequence[Sequence[str]],
    bodies: Sequence[LabelledBody],
    schedule: Sequence[Fault],
    proxy: ProxyProcess | None,
    say: Say,
) -> Arm:
    """Warm up, then the load and the faults from one common instant. Says in a line what came of it."""
    warm = poisson_load(WARM_UP, settings.rate, len(bodies), settings.seed + 1)
    asyncio.run(drive(warm, bodies, targets, read_digit, CLIENT_TIMEOUT_S))
    before = proxy.work() if proxy else 0.0
    # A machine that stands still stands still for all models it hosts.
    injector = Injector(lambda index: [pid for model in models[index] for pid in fleet[index].worker_pids(model)])
    with tqdm(
        total=settings.queries, desc=f"{name:12}", unit="query", file=sys.stderr, disable=not settings.progress
    ) as bar:

        def count(record: QueryRecord) -> None:
            bar.update()

        records = asyncio.run(_under_fire(settings, bodies, targets, schedule, injector, count))
    work = (proxy.work() - before) / settings.queries if proxy else 1.0
    summary = summarize(records, work)
    if summary.p50_ms is not None and summary.p99_ms is not None and summary.max_ms is not None:
        say(
            f"     {name}: p50 {summary.p50_ms:.1f} ms, p99 {summary.p99_ms:.0f} ms, slowest {summary.max_ms:.0f} ms; "
            f"{summary.reconstructed} rebuilt, {summary.errors} errors, {summary.lost} lost"
        )
    return Arm(summary, records, dict(injector.struck))


async def _under_fire(
    settings: DemoSettings,
    bodies: Sequence[LabelledBody],
    targets: Sequence[str],
    schedule: Sequence[Fault],
    injector: Injector,
    on_record: Callable[[QueryRecord], None],
) -> list[QueryRecord]:
    load = poisson_load(settings.queries, settings.rate, len(bodies), settings.seed)
    started_at = time.monotonic() + 0.2
    faults = asyncio.create_task(injector.run(schedule, started_at))
    try:
        return await drive(load, bodies, targets, read_digit, CLIENT_TIMEOUT_S, on_record, started_at)
    finally:
        faults.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await faults


_SCORES = ("A_a", "A_d", "A_o", "agreement")


def _summary(
    settings: DemoSettings,
    arms: dict[str, Arm],
    report: dict[str, Any],
    student: dict[str, Any],
    schedule: Sequence[Fault],
) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "code": settings.code,
        "k": settings.k,
        "r": report["r"],
        "rate": settings.rate,
        "machine": f"{os.cpu_count()} cores",
        "faults": {
            "freezes": sum(f.kind == "freeze" for f in schedule),
            "kills": sum(f.kind == "kill" for f in schedule),
        },
        "training": {key: report[key] for key in _SCORES if key in report},
        "student": {key: student[key] for key in (*_SCORES, "cost") if key in student},
        "arms": {name: arm.summary.as_dict() for name, arm in arms.items()},
    }


def _write(settings: DemoSettings, summary: dict[str, Any], arms: dict[str, Arm]) -> None:
    (settings.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, arm in arms.items():
        write_records(settings.out / f"records-{name}.jsonl", arm.records)
    title = f"{settings.queries} queries at {settings.rate:g}/s, six instances, workers frozen and killed"
    plot_latencies({name: arm.records for name, arm in arms.items()}, settings.out / "latency.png", title)


def demo_text(settings: DemoSettings, summary: dict[str, Any], arms: dict[str, Arm], report: dict[str, Any]) -> str:
    """The table and what to read in it."""
    lines = [table({name: arm.summary for name, arm in arms.items()}), ""]
    faults = summary["faults"]
    lines.append(
        f"{settings.queries} queries an arm at {settings.rate:g}/s, seed {settings.seed}; per arm {faults['freezes']} "
        f"freezes of {FAULTS.spell_s[0] * 1000:.0f} to {FAULTS.spell_s[1] * 1000:.0f} ms and {faults['kills']} killed "
        f"worker; {settings.queries // 1000} queries lie beyond p99.9."
    )
    coded = arms["coded"].summary
    if "A_d" in report and coded.answered and coded.accuracy is not None:
        share = coded.reconstructed / coded.answered
        expected = (1 - share) * report["A_a"] + share * report["A_d"]
        lines.append(
            f"Accuracy of the coded arm {coded.accuracy:.2%}; the training report says A_o = {expected:.2%} at this "
            f"share of rebuilt answers ({share:.2%}; A_a {report['A_a']:.2%}, A_d {report['A_d']:.2%})."
        )
    lines.append(f"Written: {settings.out / 'summary.json'}, {settings.out / 'latency.png'}, records-*.jsonl")
    return "\n".join(lines)


def closing_commands(url: str, png: Path, kept: bool) -> str:
    first = "The service is still running. Call it:" if kept else "To keep it running and call it: add --keep, then"
    return "\n".join(
        [
            "",
            first,
            f"  curl -i -X POST {url} -H 'Content-Type: image/png' --data-binary @{png}",
            f"  python -c \"import requests; print(requests.post('{url}', data=open('{png}', 'rb')).json())\"",
        ]
    )


def _wait_for_interrupt(say: Say) -> None:
    say("Ctrl-C stops it.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
