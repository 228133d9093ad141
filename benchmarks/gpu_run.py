"""Runs a bundle of benchmarks/gpu_bundle.py on a bare machine, and leaves one JSON.

    python3 part1/run.py --out result.json [--minutes 8] [--only tests benchmarks accuracy]

Needs Python and torch, and no network. In this order: wheels that are missing here are unpacked into a folder beside
the parts, tests/gpu is run, then benchmarks/gpu.py, then as much of the accuracy at the paper's scale as time is left
for. The JSON is written after each step, and by benchmarks/gpu.py's own after each list of rows, so whatever ends the
run early leaves what was found until then. A JSON that is there is gone on with: what is not run again stays, and rows
of the accuracy that are known are not made again, on another machine either. Imports nothing but the standard library:
nothing else is there yet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEPS = ("tests", "benchmarks", "accuracy")
TESTS_S = 120.0
LEAST_S = 20.0
"""A step that would have less is not begun."""
MARGIN_S = 10.0
"""For ending what runs, and writing."""
TAIL = 6000
UNFINISHED = 75


class Run:
    """One run: where the parts are, when it must have ended, and what is known so far."""

    def __init__(self, here: Path, out: Path, minutes: float) -> None:
        self.parts = sorted(each for each in here.parent.glob("part*") if each.is_dir())
        self.home = here.parent / "unpacked"
        self.project = here / "project"
        self.out = out
        self.ends_at = time.monotonic() + 60 * minutes
        earlier = json.loads(out.read_text()) if out.exists() else {}
        self.document: dict[str, Any] = {
            **earlier,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "steps": earlier.get("steps", {}),
        }

    def left_s(self) -> float:
        return self.ends_at - time.monotonic() - MARGIN_S

    def write(self) -> None:
        unfinished = self.out.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.document, indent=1) + "\n")
        unfinished.replace(self.out)

    def unpack(self) -> None:
        """Wheels of distributions that are not here, or are older here; and the project's own."""
        site = self.home / "site"
        unpacked = []
        for wheel in sorted(file for part in self.parts for file in part.glob("wheels/*.whl")):
            name, version = wheel.name.split("-")[:2]
            marker = site / f".{wheel.name}"
            if marker.exists() or (name != "ts_parity" and _installed(name) >= _numbers(version)):
                continue
            with zipfile.ZipFile(wheel) as opened:
                for member in opened.infolist():
                    target = opened.extract(member, site)
                    if member.external_attr >> 16 & 0o111:  # Java is a program, and zipfile forgets that
                        os.chmod(target, 0o755)
            marker.touch()
            unpacked.append(f"{name} {version}")
        self.document["unpacked"] = unpacked
        self.write()

    def environment(self) -> dict[str, str]:
        path = [str(self.home / "site"), str(self.project), str(self.project / "benchmarks")]
        path += [own] if (own := os.environ.get("PYTHONPATH")) else []
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}

    def step(self, name: str, command: list[str], most_s: float) -> int | None:
        """Its exit code; None: there was no time for it, or it was ended for that."""
        most_s = min(most_s, self.left_s())
        told = self.document["steps"][name] = {"command": " ".join(command)}
        if most_s < LEAST_S:
            told["left"] = "there was no time for it"
            self.write()
            return None
        begun = time.monotonic()
        log = self.home / f"{name}.log"
        with log.open("wb") as written:
            how = {"stdout": written, "stderr": written, "start_new_session": True}
            process = subprocess.Popen(command, cwd=self.project, env=self.environment(), **how)
            code = _ended(process, most_s)
        told |= {"exit": code, "seconds": round(time.monotonic() - begun, 1)}
        told["said"] = log.read_text(errors="replace")[-TAIL:]
        if code is None:
            told["left"] = f"ended after {most_s:.0f} s"
        self.write()
        return code

    def tests(self, device: str) -> None:
        # What compiles takes longest, and comes last.
        files = [f"tests/gpu/test_{name}.py" for name in ("worker", "training", "worker_compiled")]
        command = [sys.executable, "-m", "pytest", *files, "-vv", "--tb=short", "-W", "ignore"]
        self.step("tests", command, TESTS_S)

    def benchmarks(self, device: str, more: Sequence[str]) -> None:
        rows = self.home / "gpu.json"
        minutes = max(0.1, (self.left_s() - MARGIN_S) / 60)
        command = [sys.executable, "benchmarks/gpu.py", "--device", device, "--out", str(rows), *more]
        self.step("benchmarks", [*command, "--minutes", f"{minutes:.2f}"], self.left_s())
        if rows.exists():
            self.document["benchmarks"] = json.loads(rows.read_text())
            self.write()

    def accuracy(self, device: str, more: Sequence[str]) -> None:
        data = self.data()
        if data is None:
            self.document["steps"]["accuracy"] = {"left": "there is no data in the parts: pack it with --data"}
            self.write()
            return
        rows = self.home / "accuracy.json"
        if not rows.exists() and (known := self.document.get("accuracy")) is not None:
            rows.write_text(json.dumps(known))
        command = [sys.executable, "benchmarks/accuracy.py", "--data", str(data), "--sets", "cifar10-resnet18"]
        command += ["--device", device, "--out", str(rows), *more]
        minutes = max(0.1, (self.left_s() - 30) / 60)  # it stops at a checkpoint, some seconds after them
        code = self.step("accuracy", [*command, "--minutes", f"{minutes:.2f}"], self.left_s())
        if code == UNFINISHED:
            self.document["steps"]["accuracy"]["left"] = "the same command goes on"
        if rows.exists():
            self.document["accuracy"] = json.loads(rows.read_text())
        self.write()

    def data(self) -> Path | None:
        """The folder of the data, its pieces joined."""
        folder = self.home / "data"
        pieces = sorted((file for part in self.parts for file in part.glob("data/*.[0-9][0-9]")), key=lambda f: f.name)
        for piece in pieces:
            joined = folder / piece.stem
            if piece.suffix == ".00":
                if joined.exists():
                    break
                folder.mkdir(parents=True, exist_ok=True)
            with joined.with_suffix(".unfinished").open("ab" if piece.suffix != ".00" else "wb") as opened:
                opened.write(piece.read_bytes())
        for unfinished in folder.glob("*.unfinished"):
            unfinished.replace(unfinished.with_suffix(".zip"))
        return folder if folder.exists() else None


def _installed(name: str) -> tuple[int, ...]:
    """Its version; empty: it is not here."""
    try:
        return _numbers(importlib.metadata.version(re.sub(r"[-_.]+", "-", name)))
    except importlib.metadata.PackageNotFoundError:
        return ()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _ended(process: subprocess.Popen[bytes], most_s: float) -> int | None:
    """Its exit code, or None if it and what it started had to be ended."""
    try:
        return process.wait(most_s)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        return None


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0.0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return minutes


def main(arguments: Sequence[str] | None = None, here: Path | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="default %(default)s")
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="for everything, default %(default)g")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--device", default="cuda:0", help="default %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and steps: whether it runs at all")
    args = parser.parse_args(arguments)
    run = Run((here or Path(__file__)).resolve().parent, args.out.resolve(), args.minutes)
    run.home.mkdir(exist_ok=True)
    run.unpack()
    if "tests" in args.only:
        run.tests(args.device)
    if "benchmarks" in args.only:
        run.benchmarks(args.device, ["--tiny", "--only", "steps"] if args.tiny else [])
    if "accuracy" in args.only:
        run.accuracy(args.device, ["--quick", "--only", "sum:2", "--steps", "2"] if args.tiny else [])
    steps = {name: told for name, told in run.document["steps"].items() if name in args.only}
    for name, told in steps.items():
        print(name, {key: value for key, value in told.items() if key != "said"})
    codes = [told.get("exit") for told in steps.values()]
    return 0 if all(code in (0, UNFINISHED, None) for code in codes) else 1


if __name__ == "__main__":
    sys.exit(main())
