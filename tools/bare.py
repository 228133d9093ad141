"""A wheel as it comes to somebody who has nothing else: an empty environment, no compiler, nothing of this repository.

Knows one wheel and one Python. Needs a pip that installs for other interpreters (22.3 or later).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

_FILES = """
import importlib, json, sys
print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))
"""

_ONE_QUERY = """
import asyncio, json, pathlib, subprocess, sys, urllib.request
from ts_parity.testing import FakeModel, FakeTorchServe

def read(url, body=None):
    with urllib.request.urlopen(url, body) as answer:
        return answer.headers["x-ts-parity"], answer.read().decode()

def ask(url, admin_url, pid):
    source, answer = read(f"{url}/predictions/linear", b"[1, 1]")
    _, page = read(admin_url)
    _, metrics = read(f"{admin_url}/metrics")
    (built,) = [line for line in metrics.splitlines() if line.startswith("ts_parity_build_info{")]
    return {"source": source, "answer": json.loads(answer), "page": page[:15], "built": built}

async def main(ready):
    async with FakeTorchServe(FakeModel()) as instance:
        serve = ["ts-parity", "serve", "--port", "0", "--admin-port", "0", "--endpoint", instance.endpoint]
        with subprocess.Popen([*serve, "--ready-file", ready]) as proxy:
            try:
                while not ready.exists():
                    assert proxy.poll() is None, "the proxy has ended"
                    await asyncio.sleep(0.05)
                said = await asyncio.to_thread(ask, **json.loads(ready.read_text()))
            finally:
                proxy.terminate()
                await asyncio.to_thread(proxy.wait)
        print(json.dumps({**said, "code": proxy.returncode}))

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


class BareEnvironment:
    """A virtual environment in `folder` with this wheel, whose PATH has its own programs only.

    `extras`: those of its requirements that are installed from the registry, as wheels only. `borrowed`: folders in
    which others' packages lie already; imported from where the wheel has none.
    """

    def __init__(
        self, python: str, folder: Path, wheel: Path, extras: str = "", borrowed: tuple[str, ...] = ()
    ) -> None:
        subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
        self.folder = folder
        self._bin = folder / "bin"
        what = [f"{wheel}[{extras}]", "--only-binary", ":all:"] if extras else [str(wheel), "--no-deps"]
        pip = [sys.executable, "-m", "pip", "--python", str(self._bin / "python"), "install", "--quiet"]
        # What its Python finds by PYTHONPATH, pip would take for installed.
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*pip, *what], env=own, check=True)
        (packages,) = (folder / "lib").glob("python*/site-packages")
        (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))

    def run(self, *command: str) -> str:
        """What it prints on standard output. Raises if it fails."""
        environment = {"PATH": str(self._bin), "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        ran = subprocess.run(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, check=True)
        return ran.stdout.decode()

    def files(self, modules: list[str]) -> dict[str, str]:
        """Module -> the file that is imported, relative to the environment."""
        found: dict[str, str] = json.loads(self.run("python", "-I", "-c", _FILES, *modules))
        return {name: str(Path(file).relative_to(self.folder)) for name, file in found.items()}


def modules(wheel: Path, ending: str) -> list[str]:
    """The modules of the package that the wheel has files of this kind for (`.py`, `.so`)."""
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ts_parity/")]
    parts = [(*name.parent.parts, name.name.partition(".")[0]) for name in names if name.suffix == ending]
    return sorted(".".join(part) for part in parts if part[-1] not in ("__init__", "__main__"))


def foreign(wheel: Path, *folders: str) -> list[str]:
    """The files that do not belong into the wheel, and those that name these folders of the machine that built it."""
    own = r"ts_parity/|ts_parity-[^/]+\.(dist-info/|data/data/share/ts-parity/)|[0-9a-f]+__mypyc\.[^/]+\.so$"
    named = re.compile(b"|".join(re.escape(os.fsencode(folder)) for folder in folders))
    with zipfile.ZipFile(wheel) as files:
        held = [file.filename for file in files.infolist() if not file.is_dir()]
        return [name for name in held if not re.match(own, name) or named.search(files.read(name))]


def check(environment: BareEnvironment, wheel: Path, *, compiled: bool) -> None:
    """The commands run, the compiled modules are those that are used, and a query comes through. Raises if not."""
    version = wheel.name.split("-")[1]
    _same("--version", environment.run("ts-parity", "--version").strip(), f"ts-parity {version}")
    _same("serve --help", "--endpoint" in environment.run("ts-parity", "serve", "--help"), True)
    (environment.folder / "fleet.toml").write_text(environment.run("ts-parity", "config", "init"))
    environment.run("ts-parity", "config", "check", "fleet.toml")
    binary = modules(wheel, ".so")
    for name in ("ts_parity.wire", "ts_parity.engine.life", "ts_parity.proxy.serving.driver"):
        _same(f"{name} compiled", name in binary, compiled)
    files = environment.files(binary or ["ts_parity.engine.life"])
    _same(
        "imported as they were compiled", [name for name, file in files.items() if file.endswith(".so") != compiled], []
    )
    said = json.loads(environment.run("python", "-I", "-c", _ONE_QUERY, str(environment.folder / "ready")))
    built = said.pop("built")
    for label in (f'version="{version}"', f'compiled="{"yes" if compiled else "no"}"'):
        _same(f"{built} has {label}", label in built, True)
    expected = {"source": "deployed", "answer": [3.0, 7.0], "page": "<!doctype html>", "code": 0}
    _same("one query", said, expected)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{what}: {found!r}, not {expected!r}")
