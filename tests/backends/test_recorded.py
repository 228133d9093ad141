"""Recorded before a real server, trained from, and served by a real one, as docs/any-server.md says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend_programs.emulated import FEATURES, scores
from backend_servers import DEPLOYED, ENVIRONMENTS, HOST, KINDS, READY_S
from backends import proxy_before
from tests.backends.conftest import Servers
from ts_parity.cli import main
from ts_parity.lab.live import ProxyProcess
from ts_parity.torchserve.configuration import free_ports

pytestmark = [pytest.mark.backends, pytest.mark.slow]
PAIRS = 400


def asked(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def rows(seed: int, count: int) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.uniform(-1.0, 1.0) for _ in range(FEATURES)] for _ in range(count)]


def record(kind: str, proxy: ProxyProcess, out: Path) -> None:
    asked(proxy.url, KINDS[kind].body(rows(0, 1)[0], "q"))  # models of some servers are known when they are asked for
    codes: list[int] = []
    words = ["record", "--admin", proxy.admin_url, "--out", str(out), "--share", "1", "--most", str(PAIRS)]
    command = threading.Thread(target=lambda: codes.append(main(words)))
    command.start()
    seed = 0
    while command.is_alive():
        for row in rows(seed, 50):
            asked(proxy.url, KINDS[kind].body(row, "q"))
        seed += 1
    command.join()
    assert codes == [0]


@contextmanager
def triton(models: Path, log: Path) -> Iterator[str]:
    """NVIDIA's server by itself, as PyTriton brings it: it reads config.pbtxt and has the Python backend only."""
    (server,) = (ENVIRONMENTS / "triton").glob("lib/python*/site-packages/pytriton/tritonserver")
    python = KINDS["triton"].python  # its numpy is one that this backend was built for
    told = [python, "-c", "import sysconfig as s; print(s.get_config_var('LIBDIR'), s.get_python_version())"]
    library, version = subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()
    shutil.copytree(server / "backends/python", log.with_name("backends") / "python")
    shutil.copy(
        server / f"python_backend_stubs/{version}/triton_python_backend_stub", log.with_name("backends") / "python"
    )
    port = free_ports().inference
    command = [
        str(server / "bin/tritonserver"), "--model-repository", str(models), "--backend-directory",
        str(log.with_name("backends")), "--http-address", HOST, "--http-port", str(port),
        "--allow-grpc", "false", "--allow-metrics", "false",
    ]  # fmt: skip
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{library}:{server.parents[1] / 'nvidia_pytriton.libs'}",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    with serving(command, port, "/v2/health/ready", log, env) as url:
        yield url


@contextmanager
def litserve(folder: Path, log: Path) -> Iterator[str]:
    port = free_ports().inference
    command = [str(KINDS["litserve"].python), str(folder / "server.py"), "--port", str(port)]
    with serving(command, port, "/health", log, dict(os.environ)) as url:
        yield url


@contextmanager
def serving(command: list[str], port: int, health: str, log: Path, env: dict[str, str]) -> Iterator[str]:
    with (
        open(log, "wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=env, cwd=log.parent, start_new_session=True) as process,
    ):
        try:
            url, ends_at = f"http://{HOST}:{port}", time.monotonic() + READY_S
            while True:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < ends_at, log.read_text()[-3000:]
                try:
                    with urllib.request.urlopen(f"{url}{health}", timeout=5):
                        break
                except OSError:
                    time.sleep(0.05)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["triton", "litserve"])
def test_a_student_of_what_a_real_server_was_asked(kind: str, servers: Servers, tmp_path: Path) -> None:
    fleet = servers(kind)
    pairs, student = tmp_path / "pairs.jsonl", tmp_path / "student"
    with proxy_before(fleet, tmp_path, "recording") as proxy:
        record(kind, proxy, pairs)
    assert main(["train", "--from-pairs", str(pairs), "--out", str(student), "--steps", "300"]) == 0
    about = json.loads((student / "student.json").read_text())
    others = rows(1000, 50)
    if kind == "litserve":
        with litserve(student / "litserve", tmp_path / "log") as url:
            assert agreed(kind, f"{url}{KINDS[kind].paths[DEPLOYED]}", others) > len(others) / 2, "of three classes"
        return
    with triton(student / "triton", tmp_path / "log") as url:
        own = json.loads(fleet[0].ask(f"/v2/models/{DEPLOYED}")[1])
        with urllib.request.urlopen(f"{url}/v2/models/{about['name']}", timeout=30) as answer:
            told = json.load(answer)
        assert (told["inputs"], told["outputs"]) == (own["inputs"], own["outputs"])
        assert agreed(kind, f"{url}/v2/models/{about['name']}/infer", others) > len(others) / 2, "of three classes"


def agreed(kind: str, url: str, others: list[list[float]]) -> int:
    """For how many the student at this address and the deployed model name the same class."""
    count = 0
    for row in others:
        says, right = KINDS[kind].read(asked(url, KINDS[kind].body(row, "q"))), scores(DEPLOYED, row)
        count += says.index(max(says)) == right.index(max(right))
    return count
