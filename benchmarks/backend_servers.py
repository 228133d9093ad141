"""Real model servers other than TorchServe, for tests and for `backends.py`: started, ready, in trouble, and gone.

    python benchmarks/backend_servers.py triton litserve kserve      installs them, each in build/backends/NAME

Each runs in an environment of its own that nothing of ts_parity is installed in, nor anything of it in ours. Its
processes are below a guard process, which ends them all, frozen ones too, whatever becomes of the process that holds
the `ModelServer`. Knows programs, addresses and processes. Knows nothing of the proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

import ts_parity
from ts_parity.lab.emulation import MachineFile
from ts_parity.torchserve.configuration import free_ports
from ts_parity.torchserve.launcher import GUARD

HERE = Path(__file__).parent
PROGRAMS = HERE / "backend_programs"
ENVIRONMENTS = Path(os.environ.get("TS_PARITY_BACKENDS", HERE.parent / "build" / "backends")).resolve()
DEPLOYED, STUDENT = "deployed", "student"
HOST = "127.0.0.1"
ATTEMPTS = 3
"""A port can be taken between our choosing and the server's binding it."""
READY_S = 240.0
"""On a busy machine; alone they take seconds."""
POLL_S = 0.05


@dataclass(frozen=True)
class ServerKind:
    """What a client has to know of one of them. `kind`: as the proxy calls its protocol."""

    name: str
    kind: str
    ready_path: str
    paths: dict[str, str]
    """Of the two models."""
    ports: int = 1
    glibc: tuple[int, int] = (0, 0)

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if not _stamp(self.name).exists():
            return f"{self.name} is not installed: make test-backends BACKENDS={self.name}"
        if (have := _glibc()) < self.glibc:
            return f"{self.name} needs glibc {_dotted(self.glibc)}, and this machine has {_dotted(have)}"
        return ""

    def body(self, row: Sequence[float], name: str = "") -> bytes:
        """A request. `name`: its id, for protocols that have one."""
        if self.kind == "rest":
            return json.dumps({"x": list(row)}).encode()
        tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": list(row)}
        return json.dumps({**({"id": name} if name else {}), "inputs": [tensor]}).encode()

    def read(self, answer: bytes) -> list[float]:
        """The scores in an answer. Raise ValueError, KeyError or TypeError for what is none."""
        said = json.loads(answer)
        scores: list[float] = said["scores"] if self.kind == "rest" else said["outputs"][0]["data"]
        return scores


def _oip(model: str) -> str:
    return f"/v2/models/{model}/infer"


KINDS = {
    each.name: each
    for each in (
        ServerKind(
            "triton", "open-inference", "/v2/health/ready", {m: _oip(m) for m in (DEPLOYED, STUDENT)}, 3, (2, 35)
        ),
        ServerKind("litserve", "rest", "/health", {DEPLOYED: "/predict", STUDENT: "/student"}),
        ServerKind("kserve", "open-inference", "/v2/health/ready", {m: _oip(m) for m in (DEPLOYED, STUDENT)}),
    )
}


class ModelServer:
    """One server on one emulated machine; whoever starts it stops it. `folder`: an existing one of its own, for the
    machine's file and the log.
    """

    def __init__(self, kind: ServerKind, folder: Path) -> None:
        self.kind = kind
        self.machine = MachineFile(folder / "machine.json")
        self.url = ""
        self._folder = folder
        self._scratch: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._frozen: list[psutil.Process] = []

    def start(self) -> None:
        """Return at once; `wait` says when it serves. A stopped one may be started again, elsewhere."""
        ports = [str(port) for port in astuple(free_ports())[: self.kind.ports]]
        # Not in the folder, which may be deep: the path of a Unix socket has 107 characters at most.
        self._scratch = scratch = Path(tempfile.mkdtemp(prefix="server-"))
        root = str(Path(ts_parity.__file__).parents[1])
        library = subprocess.run(
            [self.kind.python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        env = {
            **os.environ,
            **self.machine.env,
            "PYTHONPATH": os.pathsep.join((str(PROGRAMS), root)),
            # PyTriton's stub takes whichever libpython the loader finds, and dies with one of another build.
            "LD_LIBRARY_PATH": library,
            "PYTRITON_HOME": str(scratch),
            "TMPDIR": str(scratch),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        guard = [
            sys.executable,
            "-I",
            "-S",
            str(GUARD),
            "--pid-file",
            str(scratch / "pid"),
            "--remove",
            str(scratch),
            "--",
        ]
        program = [str(self.kind.python), str(PROGRAMS / f"{self.kind.name}_server.py"), *ports]
        self.url = f"http://{HOST}:{ports[0]}"
        with open(self.log, "wb") as log:
            self._guard = subprocess.Popen(
                [*guard, *program],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, cwd=scratch, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self._folder / "log"

    @property
    def address(self) -> tuple[str, int]:
        return HOST, int(self.url.rpartition(":")[2])

    def wait(self, within_s: float = READY_S) -> None:
        """Until both models have answered. Raise RuntimeError with the log's end if it ends or takes too long."""
        ends_at, attempts = time.monotonic() + within_s, 1
        while not self._serves():
            assert self._guard is not None
            ended = self._guard.poll() is not None
            if ended and attempts < ATTEMPTS and "in use" in self._told():
                attempts += 1
                self.start()
            elif ended or time.monotonic() > ends_at:
                raise RuntimeError(f"{self.kind.name} did not start:\n{self._told()}")
            time.sleep(POLL_S)

    def ask(self, path: str, body: bytes | None = None, timeout_s: float = 30.0) -> tuple[int, bytes]:
        """-> status and body. Raise OSError where there is no answer."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            request = urllib.request.Request(self.url + path, body, headers)
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def stop(self) -> None:
        """All of its processes, at once. Harmless to repeat."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()  # the guard kills what it guards, and then ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(20)
        if guard.poll() is None:
            os.killpg(guard.pid, signal.SIGKILL)
            guard.wait()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """All of its own, without the guard."""
        return psutil.Process(self._guard.pid).children(recursive=True) if self._guard is not None else []

    def inference_processes(self) -> list[psutil.Process]:
        """Those in which the models are. LitServe and Triton have others that take requests."""
        files = sorted(self.machine.file.parent.glob(f"{self.machine.file.name}.*.pid"))
        pids = {int(file.read_text()) for file in files}
        return [process for process in self.processes() if process.pid in pids]

    def freeze(self, processes: Sequence[psutil.Process] | None = None) -> None:
        """SIGSTOP: connections are still taken, by the kernel. Without an argument, all of its processes."""
        self._frozen = list(self.processes() if processes is None else processes)
        for process in self._frozen:
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._frozen = []

    def _serves(self) -> bool:
        try:
            if self.ask(self.kind.ready_path)[0] != 200:
                return False
            body = self.kind.body([0.0, 0.0, 0.0, 0.0], "ready")
            return all(self.ask(path, body)[0] == 200 for path in self.kind.paths.values())
        except OSError:
            return False

    def _told(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@contextmanager
def model_servers(kind: ServerKind, count: int, folder: Path) -> Iterator[list[ModelServer]]:
    """As many, started side by side and ready; gone when the body ends."""
    servers = []
    for index in range(count):
        own = folder / f"{kind.name}-{index}"
        own.mkdir(parents=True)
        servers.append(ModelServer(kind, own))
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop()


# ---- installing ----------------------------------------------------------------------------------------------------

UNREACHABLE = re.compile("NewConnectionError|ConnectTimeoutError|NameResolutionError|Failed to establish a new conn")
"""What pip says where it has found no registry at all. A package that is not there, or a broken one, is a failure."""


def install(name: str) -> str:
    """Make the server's environment, unless it is there with the same packages. -> what has become of it, in words.

    Raise RuntimeError if its packages cannot be installed though a registry answers.
    """
    wanted, environment = (PROGRAMS / f"{name}.txt").read_text(), ENVIRONMENTS / name
    if _stamp(name).exists() and _stamp(name).read_text() == wanted:
        return f"{name}: installed"
    began_at = time.monotonic()
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    command = [
        str(KINDS[name].python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--requirement",
        str(PROGRAMS / f"{name}.txt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        _stamp(name).write_text(wanted)
        return f"{name}: installed in {time.monotonic() - began_at:.0f} s"
    shutil.rmtree(environment, ignore_errors=True)
    if UNREACHABLE.search(done.stderr) and "404" not in done.stderr:
        return f"{name}: NOT installed, and its tests are skipped: no package registry can be reached"
    raise RuntimeError(f"{name} cannot be installed:\n{done.stderr[-3000:]}")


def _stamp(name: str) -> Path:
    return ENVIRONMENTS / name / ".ready"


def main(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in KINDS]:
        raise SystemExit(f"the servers are {', '.join(KINDS)}, not {', '.join(unknown)}")
    # Most of it is waiting for the registry.
    with ThreadPoolExecutor() as pool:
        for said in pool.map(install, names):
            print(said, flush=True)


def _glibc() -> tuple[int, int]:
    try:
        said = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return 0, 0
    return _version(said.partition(" ")[2])


def _version(text: str) -> tuple[int, int]:
    numbers = [int(part) for part in text.split(".")[:2] if part.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    main(sys.argv[1:])
