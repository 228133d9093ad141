"""Fixtures for every room: archives made from a few lines of handler, and real TorchServe instances to load them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from hypothesis import HealthCheck, settings

from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, launch_fleet, stop_fleet

# What is printed depends on how wide the terminal is. And two threads of one test that wait for each other stand still
# on a busy machine.
os.environ.update({"COLUMNS": "120", "OMP_NUM_THREADS": "1"})

# A script's `&` starts us with Ctrl-C ignored, `nohup` with SIGHUP ignored. Programs that a test starts would inherit
# that, and not end when it interrupts them. They do not inherit handlers, so each signal gets one; that of SIGHUP does
# nothing, and the suite still outlives its terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

# The default suite is the same on every run. `--hypothesis-profile dice` throws new ones, as `make fuzz` does.
# No limits in time: a busy machine is not a fault.
UNHURRIED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **UNHURRIED)
settings.register_profile("dice", print_blob=True, **UNHURRIED)
settings.load_profile("fixed")

UNHURRIED_S = 500.0
"""For what hangs, and within pytest's own limit."""

NO_TORCH = {"PYTHONPATH": str(Path(__file__).parent / "no_torch")}
"""The environment of an instance whose handlers use no torch, nor wrappers, which do. To import torch takes a worker
over a second of processor time, and the suite starts a hundred workers."""

TINY_HANDLER = '''\
"""Answers a body with itself. Needs no model and no torch."""


def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"tiny": {"pid": __import__("os").getpid()}}]
    return [bytes(row.get("body") or b"") for row in data]
'''

BROKEN_HANDLER = """\
raise ValueError("broken on purpose")
"""


def write_archive(
    path: Path,
    handler: str = TINY_HANDLER,
    *,
    name: str | None = None,
    version: str = "1.0",
    handler_entry: str | None = None,
    serialized: bytes | None = None,
    files: Mapping[str, str | bytes] | None = None,
    config: str | None = None,
    model_file: str | None = None,
    suffix: str = ".pt",
) -> Path:
    """A .mar as torch-model-archiver would write it, without starting one: handler text in, archive out."""
    name = name or path.stem
    model: dict[str, Any] = {
        "modelName": name,
        "handler": handler_entry or f"{name}_handler.py",
        "modelVersion": version,
    }
    contents: dict[str, str | bytes] = {f"{name}_handler.py": handler, **(files or {})}
    if serialized is not None:
        model["serializedFile"] = f"{name}{suffix}"
        contents[f"{name}{suffix}"] = serialized
    if model_file is not None:
        model["modelFile"] = model_file
    if config is not None:
        model["configFile"] = "model-config.yaml"
        contents["model-config.yaml"] = config
    manifest = {"createdOn": "01/01/2026 00:00:00", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in contents.items():
            archive.writestr(file, content)
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest, indent=2))
    return path


class TorchServeFactory:
    """Starts real instances; whoever made it stops them. Options are those of InstanceOptions."""

    def __init__(self) -> None:
        self._started: list[TorchServeInstance] = []

    def __call__(self, archives: Sequence[str | os.PathLike[str]] = (), **options: Any) -> TorchServeInstance:
        return self.fleet([archives], **options)[0]

    def fleet(self, archives: Sequence[Sequence[str | os.PathLike[str]]], **options: Any) -> list[TorchServeInstance]:
        """One instance per entry, started side by side, each with the archives of its entry."""
        chosen = InstanceOptions(**options)
        instances = [
            TorchServeInstance(each, chosen, name=f"instance {i}", start_timeout_s=UNHURRIED_S)
            for i, each in enumerate(archives)
        ]
        launch_fleet(instances)
        self._started += instances
        return instances

    def stop(self) -> None:
        instances, self._started = self._started, []
        stop_fleet(instances, orderly=False)


def scale(instance: TorchServeInstance, model: str, workers: int, version: str = "") -> None:
    """Give a model so many workers, as an operator would; no command of ours does."""
    token = instance.token()
    answer = requests.put(
        f"{instance.management_url}/models/{model}{version and '/' + version}",
        params={"min_worker": workers, "max_worker": workers, "synchronous": "true"},
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=180,
    )
    answer.raise_for_status()


@pytest.fixture(scope="module")
def torchserve_factory() -> Iterator[TorchServeFactory]:
    """`torchserve_factory([archive, ...], workers=1, ...)` -> an instance, ready; it lives as long as the module."""
    factory = TorchServeFactory()
    try:
        yield factory
    finally:
        factory.stop()


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """`make_archive("digits", handler_text, ...)` -> the path of a .mar, fresh for each test."""

    def make(name: str = "tiny", handler: str = TINY_HANDLER, **more: Any) -> Path:
        return write_archive(tmp_path / "archives" / f"{name}.mar", handler, **more)

    return make


def free_ports(count: int, run: int = 1) -> list[int]:
    """The first of each of `count` runs of ports that nobody has, for servers that cannot choose one themselves.

    From below those that the kernel hands out, or another test's connection takes one before its server does.
    """
    found: list[int] = []
    candidate = 20000 + os.getpid() * 97 % 12000  # tests that run at once begin apart
    while len(found) < count:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(candidate, candidate + run):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            found.append(candidate)
        candidate += run
    return found


def torchserve_processes(root: int | None = None) -> list[psutil.Process]:
    """Guards, JVMs and workers below a process (this one by default)."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if "guard.py" in line or "org.pytorch.serve" in line or "model_service_worker" in line:
                found.append(process)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first, so that at the end nobody waits for one of them alone."""
    longest = {item.path: 0 for item in items}
    for item in items:
        weight = 2 if item.get_closest_marker("torchserve") else 1 if item.get_closest_marker("slow") else 0
        longest[item.path] = max(longest[item.path], weight)
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(autouse=True)
def the_level_of_logging_stays() -> Iterator[None]:
    """Some commands set it, and a later test of this process would wait in vain for what is logged."""
    before = logging.root.level
    yield
    logging.root.setLevel(before)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """The whole suite leaves no TorchServe behind."""
    yield
    assert torchserve_processes() == []
