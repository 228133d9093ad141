"""The main job, end to end, on real TorchServe: train, package, serve, break things, and show what clients saw.

Six arms get the same load and the same trouble, each on six instances: round robin over plain instances (what people
have today), the proxy's queue alone, second copies only, the coded proxy as in the paper, and the proxy as it is with
`exact` and with a student beside the model. Inference is emulated (a wait), because six models on two cores would show
what those cores do and not what a policy does. This process makes the load and the faults; TorchServe and the proxy
run in processes of their own. Knows the order of the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ts_parity
from ts_parity.codes import Family, make_code
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, StartError
from ts_parity.lab.emulation import Emulation, emulate, make_spells
from ts_parity.lab.faults import FREEZE, KILL, FaultPlan, make_schedule
from ts_parity.lab.live import (
    CLIENT_TIMEOUT_S,
    LiveMachine,
    ProxyProcess,
    Trouble,
    machines,
    proxy_over,
    register,
    run_arm,
    unregister,
    wait_until_ready,
)
from ts_parity.lab.records import QueryRecord, write_records
from ts_parity.lab.report import Summary, needed, plot_latencies, summarize, table
from ts_parity.lab.scenario import Spells
from ts_parity.lab.traffic import LabelledBody, drive, poisson_load
from ts_parity.torchserve.archive import pack, wrap_parity
from ts_parity.torchserve.launcher import launch_fleet, stop_fleet
from ts_parity.training import TrainSettings, train

INSTANCES = 6
DEPLOYED = 4
MODEL = "digits"
WARM_UP = 150
ROUNDS = 4
"""Of the warm-up, at most, until a protection has ended its trial."""
EMULATION = Emulation(service_s=0.05, cv=0.1)
SPELLS = Spells(share=0.06, mean=2.0, factor=5.0)
FAULTS = FaultPlan(mean_gap_s=12.0, spell_s=(0.2, 0.6), kills=1)
AS_IN_THE_PAPER = ("--extra-work", "0", "--differing", "1", "--reconstruct-after-s", "0")
"""No second copies, and the first usable answer wins."""
POLICIES: dict[str, tuple[str, ...]] = {
    "uncoded": ("--protect", "off", "--extra-work", "0"),
    "hedge": ("--protect", "off"),
    "coded": AS_IN_THE_PAPER,
    "exact": (),
    "default": (),
}
"""The flags of an arm's proxy."""
ARMS = ("round_robin", "uncoded", "hedge", "coded", "exact", "default")
"""In the order of the table."""


@dataclass(frozen=True)
class DemoSettings:
    """The options of `ts-parity demo`."""

    out: Path = Path("demo-out")
    code: str = "sum"
    k: int = 2
    queries: int = 1000
    rate: float = 50.0
    seed: int = 0
    steps: int = 800
    """Of each protection's training; so few are enough for digits, and the demo is to end in minutes."""
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
    say(
        f"Inference is emulated: a worker waits {1000 * EMULATION.service_s:.0f} ms (cv {EMULATION.cv:g}) and answers "
        "with what a real small model says. All else is real: TorchServe, the proxy, its protections, HTTP, faults."
    )
    say("1/5  training the deployed model and its protections")
    data, archives, report = make_models(settings, example)
    archives["student"], student = make_student(settings, archives["plain"], data)
    archives["exact"] = wrap_parity(archives["plain"], settings.out / "exact", code="exact", k=2)
    archives = make_slow(settings.out / "emulated", archives, report, student)
    run = _DemoRun(settings, read_bodies(data), say)
    say(f"2/5  {DEPLOYED} instances serve the model, {INSTANCES - DEPLOYED} its {settings.code} parity model")
    with ExitStack() as stack:
        hosted = [[archives["deployed"]]] * DEPLOYED + [[archives["parity"]]] * (INSTANCES - DEPLOYED)
        run.start(hosted, stack)
        run.through_proxy("coded", settings.code)
    with ExitStack() as stack:
        say("3/5  six instances serve the model, and nothing else")
        run.start([[archives["plain"]]] * INSTANCES, stack)
        targets = [f"{live.instance.inference_url}/predictions/{MODEL}" for live in run.fleet]
        run.arm("round_robin", targets, None)
        for arm in ("uncoded", "hedge"):
            run.through_proxy(arm)
        say("4/5  the same six, with the model itself as a backup (exact), then with a student")
        register(run.fleet, archives["exact"])
        run.through_proxy("exact", "exact")
        unregister(run.fleet, archives["exact"].stem)
        register(run.fleet, archives["student"])
        with run.proxy("default", "student") as proxy:
            run.arm("default", [proxy.url], proxy)
            say("5/5  what the clients saw\n")
            arms = {name: run.arms[name] for name in ARMS}
            summary = _summary(settings, arms, report, student, run.trouble)
            _write(settings, summary, arms)
            say(demo_text(settings, summary, arms, report))
            say(closing_commands(proxy.url, data / "test" / "0000.png", settings.keep))
            if settings.keep:
                _wait_for_interrupt(say)
    return summary


class _DemoRun:
    """The arms of one demo, one after the other, under the same trouble."""

    def __init__(self, settings: DemoSettings, bodies: Sequence[LabelledBody], say: Say) -> None:
        self._settings, self._bodies, self._say = settings, bodies, say
        load_s = settings.queries / settings.rate
        self.trouble = Trouble(
            make_spells(SPELLS, INSTANCES, load_s, settings.seed),
            make_schedule(FAULTS, INSTANCES, DEPLOYED, load_s, settings.seed),
        )
        self.fleet: list[LiveMachine] = []
        self.arms: dict[str, Arm] = {}

    def start(self, hosted: Sequence[Sequence[Path]], stack: ExitStack) -> None:
        """Fresh instances, stopped with the stack."""
        self.fleet = machines(hosted, self._settings.out / "machines")
        instances = [live.instance for live in self.fleet]
        launch_fleet(instances)
        stack.callback(stop_fleet, instances)

    @contextlib.contextmanager
    def proxy(self, arm: str, code: str | None = None) -> Iterator[ProxyProcess]:
        wait_until_ready(self.fleet)
        endpoints = [live.endpoint for live in self.fleet]
        with proxy_over(endpoints, MODEL, self._settings.out, arm, POLICIES[arm]) as proxy:
            if code is not None:
                proxy.wait_for_code(code)
            yield proxy

    def through_proxy(self, arm: str, code: str | None = None) -> None:
        with self.proxy(arm, code) as proxy:
            self.arm(arm, [proxy.url], proxy)

    def arm(self, name: str, targets: Sequence[str], proxy: ProxyProcess | None) -> None:
        """Warm up, then the load and its trouble from one common instant. Says in a line what came of it."""
        settings, said = self._settings, name.replace("_", " ")
        self._warm_up(targets, proxy)
        before = proxy.work() if proxy else 0.0
        load = poisson_load(settings.queries, settings.rate, len(self._bodies), settings.seed)
        with tqdm(
            total=settings.queries, desc=f"{said:12}", unit="query", file=sys.stderr, disable=not settings.progress
        ) as bar:
            records, struck = run_arm(
                self.fleet, targets, load, self._bodies, read_digit, self.trouble, settings.seed, lambda _: bar.update()
            )
        summary = summarize(records, (proxy.work() - before) / settings.queries if proxy else 1.0)
        self._say(f"     {said}: {_in_a_line(summary)}")
        self.arms[name] = Arm(summary, records, struck)

    def _warm_up(self, targets: Sequence[str], proxy: ProxyProcess | None) -> None:
        """Until what is usual is known, and a protection has proved itself."""
        for round_ in range(ROUNDS):
            load = poisson_load(WARM_UP, self._settings.rate, len(self._bodies), self._settings.seed + 1 + round_)
            asyncio.run(drive(load, self._bodies, targets, read_digit, CLIENT_TIMEOUT_S))
            if proxy is None or not proxy.on_trial():
                return


def _in_a_line(summary: Summary) -> str:
    times = {"p50": summary.p50_ms, "p99": summary.p99_ms, "p99.9": summary.p999_ms, "slowest": summary.max_ms}
    told = ", ".join(f"{name} {value:.0f} ms" for name, value in times.items() if value is not None)
    return f"{told}; {summary.reconstructed} rebuilt, {summary.errors} errors, {summary.lost} lost"


def find_example(settings: DemoSettings) -> Path:
    example = settings.example or Path(ts_parity.__file__).resolve().parent.parent / "examples" / "digits"
    if not (example / "train_digits.py").is_file():
        raise ConfigError(f"no example in {example}: run the demo in a checkout, or say where it is with --example DIR")
    return example


def make_slow(out: Path, archives: dict[str, Path], report: dict[str, Any], student: dict[str, Any]) -> dict[str, Path]:
    """-> the same archives on emulated accelerators. A protection costs what it has in multiplications: the clock would
    say how long this machine takes to read a scan.
    """
    costs = {"parity": cost_of(report), "student": cost_of(student)}
    return {name: emulate(archive, out / name, EMULATION, costs.get(name, 1.0)) for name, archive in archives.items()}


def cost_of(candidate: dict[str, Any]) -> float:
    """Of one inference of a protection, by the training report: of a backup for each query of a group."""
    counted = candidate.get("multiplications") or candidate["k"]
    code = make_code(candidate["code"], candidate["k"], candidate["r"])
    return float(counted) / (candidate["k"] if code.family is Family.BACKUP else 1)


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


_SCORES = ("A_a", "A_d", "A_o", "agreement")


def _summary(
    settings: DemoSettings,
    arms: dict[str, Arm],
    report: dict[str, Any],
    student: dict[str, Any],
    trouble: Trouble,
) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "code": settings.code,
        "k": settings.k,
        "r": report["r"],
        "rate": settings.rate,
        "machine": f"{os.cpu_count()} cores",
        "emulated": EMULATION.described(),
        "service_ms": 1000 * EMULATION.service_s,
        "load": round(settings.rate * EMULATION.service_s / INSTANCES, 3),
        "faults": {
            "spells": len(trouble.spells),
            "freezes": sum(fault.kind == FREEZE for fault in trouble.faults),
            "kills": sum(fault.kind == KILL for fault in trouble.faults),
        },
        "training": {key: report[key] for key in _SCORES if key in report},
        "student": {key: student[key] for key in _SCORES if key in student} | {"cost": round(cost_of(student), 3)},
        "arms": {name: arm.summary.as_dict() for name, arm in arms.items()},
    }


def _write(settings: DemoSettings, summary: dict[str, Any], arms: dict[str, Arm]) -> None:
    (settings.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, arm in arms.items():
        write_records(settings.out / f"records-{name}.jsonl", arm.records)
    title = (
        f"{settings.queries} queries at {settings.rate:g}/s, six instances, slow, frozen and killed; "
        f"{summary['service_ms']:.0f} ms emulated"
    )
    plot_latencies({name: arm.records for name, arm in arms.items()}, settings.out / "latency.png", title)


def demo_text(settings: DemoSettings, summary: dict[str, Any], arms: dict[str, Arm], report: dict[str, Any]) -> str:
    """The table and what to read in it."""
    lines = [table({name: arm.summary for name, arm in arms.items()}), ""]
    faults = summary["faults"]
    lines.append(
        f"{settings.queries} queries an arm at {settings.rate:g}/s (load {summary['load']:.2f} of {INSTANCES} "
        f"machines), seed {settings.seed}; {summary['emulated']}. In each arm the same {faults['spells']} spells in "
        f"which a machine is {SPELLS.factor:g} times slower, {faults['freezes']} freezes of "
        f"{FAULTS.spell_s[0] * 1000:.0f} to {FAULTS.spell_s[1] * 1000:.0f} ms, {faults['kills']} killed worker. "
        "Work is in deployed inferences a query."
    )
    if settings.queries < needed(0.999):
        lines.append(
            f"No p99.9: it takes {needed(0.999):,} queries an arm. --queries {needed(0.999)} shows it, and takes "
            f"{needed(0.999) / settings.rate:.0f} s an arm."
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
    with contextlib.suppress(KeyboardInterrupt):
        say("Ctrl-C stops it.")
        while True:
            time.sleep(3600)
