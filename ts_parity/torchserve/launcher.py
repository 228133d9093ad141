"""Real TorchServe instances on this machine: started, known to be ready, and gone afterwards, whatever happens.

An instance is a guard process (`guard.py`), the JVM under it and the JVM's Python workers, in a session and folder of
their own. Ready means that describe shows every worker READY; /ping says healthy long before that and long after.
Knows processes, ports, logs and time-outs; knows nothing of what the models do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ts_parity.describe import ModelDescription
from ts_parity.errors import ConfigError, ManagementError, StartError
from ts_parity.keys import read_key
from ts_parity.torchserve.archive import read_archive
from ts_parity.torchserve.configuration import (
    HOST,
    LOG,
    InstanceOptions,
    Ports,
    StartModel,
    command_line,
    environment,
    free_ports,
    write_configuration,
)
from ts_parity.torchserve.management import ManagementClient, unready

T = TypeVar("T")

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.1
ATTEMPTS = 3  # a port can be taken between our choosing and TorchServe's binding it
GRACE_S = 10.0  # TorchServe's orderly stop takes two to three seconds
# TorchServe may end the thread that copies the traceback before it was read: a later attempt to load writes it again.
TRACEBACK_S = 20.0
LOG_LINES = 40
MAX_TMPDIR = 107 - len("/.ts.sock.65535")

_CLASH = re.compile(r"Address already in use|Failed to bind", re.IGNORECASE)
_LOAD_FAILED = re.compile(r"Load model failed: (?P<model>[^,\s]+)")
_STORE_REFUSED = re.compile(r"Failed to load model: (?P<file>\S+)")
# What every start says: the JVM of our choice about TorchServe's old libraries, workers about their sockets.
_NOISE = re.compile(
    r"^WARNING: |nvidia-smi not available|access any URL to load models|s_name_part0|Listening on port"
    r"|Successfully loaded .*metrics|Python runtime|Connection accepted|\[PID\]|Torch worker started"
    r"|Model server started"
)


class _PortClash(Exception):
    """One of the ports was taken after all."""


class TorchServeInstance:
    """One local TorchServe. A context manager: entering starts it and waits until it is ready, leaving stops it. One
    life each: to start again, make a new one.

    `archives` are loaded at start. They are put (linked, or copied) into a model store of the instance's own, where
    `add_archive` puts more; with `model_store` that folder is used instead and the archives must lie in it.
    With `folder` the configuration and logs are kept there; otherwise they vanish with the instance.
    """

    def __init__(
        self,
        archives: Sequence[str | os.PathLike[str]] = (),
        options: InstanceOptions | None = None,
        *,
        name: str = "torchserve",
        model_store: Path | None = None,
        folder: Path | None = None,
        start_timeout_s: float = 120.0,
        ports: Ports | None = None,
    ) -> None:
        """`ports`: those of an instance whose place it takes; None: free ones."""
        self.name = name
        self.options = options or InstanceOptions()
        self.ports: Ports | None = None
        self._given_ports = ports
        self._archives = [Path(archive) for archive in archives]
        self._given_store = model_store.resolve() if model_store else None
        self._given_folder = folder.resolve() if folder else None
        self._start_timeout_s = start_timeout_s
        self._folder: Path | None = None
        self._scratch: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._spawning = threading.Lock()

    def __repr__(self) -> str:
        state = f"{self.inference_url} pid {self.pid}" if self.running else "not running"
        return f"<TorchServeInstance {self.name} {state}>"

    def __enter__(self) -> TorchServeInstance:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(orderly=kind is None)

    @property
    def inference_url(self) -> str:
        return f"http://{HOST}:{self._known_ports.inference}"

    @property
    def management_url(self) -> str:
        return f"http://{HOST}:{self._known_ports.management}"

    @property
    def folder(self) -> Path:
        """Where its configuration, logs and key file are."""
        if self._folder is None:
            raise StartError(f"{self.name} has not been started")
        return self._folder

    @property
    def model_store(self) -> Path:
        return self._given_store or self.folder / "model_store"

    @property
    def running(self) -> bool:
        return self._guard is not None and not _ended(self._guard)

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        return int((self.folder / "pid").read_text())

    def token(self, purpose: str = "management") -> str | None:
        """The key for management, inference or API; None with token authorization off. Keys expire (60 minutes)."""
        if not self.options.token_auth:
            return None
        return read_key(self.folder / "key_file.json", purpose)

    def management(self, timeout_s: float = 10.0) -> ManagementClient:
        """A new client of this instance's management API, with its key."""
        return ManagementClient(self.management_url, self.token(), timeout_s)

    def worker_pids(self, model: str, version: str | None = None) -> list[int]:
        with self.management() as management:
            return [worker.pid for worker in management.describe(model, version).workers if worker.pid > 0]

    def add_archive(self, archive: str | os.PathLike[str]) -> str:
        """Put an archive into the model store. -> the `url` to register it with."""
        source, target = Path(archive).resolve(), self.model_store / Path(archive).name
        if source != target:
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)  # a symbolic link would lead out of the store, which TorchServe refuses
            except OSError:
                shutil.copy2(source, target)
        return target.name

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """The end of what TorchServe, its workers and the user's handlers said, without the small talk."""
        said = [line for line in self._log().splitlines() if line.strip() and not _NOISE.search(line)]
        return "\n".join(said[-lines:])

    def start(self) -> None:
        """Raise StartError, with the end of the log, if it does not become ready. Nothing is left running then."""
        if self._guard is not None or self._stopping.is_set():
            raise StartError(f"{self.name} has been started before: make a new instance")
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._spawn()
                    self._wait_until_ready()
                    return
                except _PortClash as clash:
                    with self._spawning:
                        self._end(orderly=False)
                    if attempt == ATTEMPTS:
                        raise StartError(f"{self.name} found its ports taken {ATTEMPTS} times over: {clash}") from None
        except BaseException:
            self.stop(orderly=False)
            raise

    def abandon_start(self) -> None:
        """Make a `start` under way in another thread give up."""
        self._stopping.set()

    def stop(self, orderly: bool = True) -> None:
        """End the JVM, every worker (frozen ones too) and the guard, and remove the folder. Harmless to repeat.

        Orderly lets TorchServe finish requests in flight, which takes seconds; otherwise everything is killed at once.
        """
        self._stopping.set()
        with self._spawning:
            self._end(orderly)

    @property
    def _known_ports(self) -> Ports:
        if self.ports is None:
            raise StartError(f"{self.name} has not been started")
        return self.ports

    def _spawn(self) -> None:
        with self._spawning:
            if self._stopping.is_set():
                raise StartError(f"{self.name} was stopped while it was starting")
            # Never in a given folder: a worker's Unix socket lies in it, and the path of one has room for 107 bytes.
            self._scratch = Path(tempfile.mkdtemp(prefix="ts-parity-")).resolve()
            self._folder = self._given_folder or self._scratch
            try:
                self._guard = self._start_guard(self._folder, self._scratch / "tmp")
            except BaseException:
                self._remove_scratch()
                raise

    def _start_guard(self, folder: Path, tmp: Path) -> subprocess.Popen[bytes]:
        if len(os.fsencode(tmp)) > MAX_TMPDIR:
            raise ConfigError(
                f"TMPDIR makes {tmp}, too long for the Unix sockets of TorchServe's workers: set a shorter one"
            )
        for part in (tmp, folder / "logs", folder / "model_store"):
            part.mkdir(parents=True, exist_ok=True)
        models = self._start_models()
        self.ports = self._given_ports or free_ports()
        write_configuration(folder, self.model_store, self.ports, models, self.options)
        for stale in ("pid", "key_file.json", f"logs/{LOG}"):
            (folder / stale).unlink(missing_ok=True)
        guard = [sys.executable, "-I", "-S", str(GUARD), "--pid-file", str(folder / "pid"), "--grace", str(GRACE_S)]
        guard += ["--remove", str(tmp.parent)]
        with open(folder / "logs" / "console.log", "wb") as console:
            return subprocess.Popen(
                [*guard, "--", *command_line(folder, tmp, self.model_store, self.options.heap_mb)],
                cwd=folder,
                env=environment(folder, tmp, self.options.env),
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for us, and the group can be killed as a whole
            )

    def _start_models(self) -> list[StartModel]:
        models = []
        for path in self._archives:
            archive = read_archive(path)
            if self._given_store is not None and path.resolve().parent != self._given_store:
                raise ConfigError(
                    f"{path} is not in the model store {self._given_store}, so TorchServe would refuse it"
                )
            models.append(StartModel(self.add_archive(path), archive.model_name, archive.model_version))
        return models

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            self._check_alive()
            missing = self._missing()
            if not missing:
                return
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._start_timeout_s:g} s ({missing})")
            # Not a plain sleep: stop() from another thread ends the wait.
            self._stopping.wait(POLL_S)

    def _missing(self) -> str:
        """What is not there yet; nothing when ready."""
        try:
            with self.management(timeout_s=5.0) as management:
                registered = [m.name for m in management.models()]
                described: list[ModelDescription] = []
                for name in registered:
                    described += management.describe_all(name)
        except (ManagementError, ConfigError, OSError):
            return "its management API does not answer"  # neither port nor key file need be there yet
        if len(described) < len(self._archives):
            return f"{len(self._archives) - len(described)} of {len(self._archives)} archives are not registered"
        return "; ".join(unready(described))

    def _check_alive(self) -> None:
        log = self._log()
        if self._stopping.is_set():
            raise StartError(f"{self.name} was stopped while it was starting")
        if clash := _CLASH.search(log):
            raise _PortClash(clash.group())
        if failed := _LOAD_FAILED.search(log):
            # Another of TorchServe's threads writes the traceback, sometimes later than this line.
            late = time.monotonic() + TRACEBACK_S
            while "Traceback" not in self._log() and time.monotonic() < late:
                time.sleep(0.05)
            self._stopping.wait(2 * POLL_S)  # the traceback comes through another thread and may be a line behind
            raise self._failure(f"could not load model {failed['model']}; the handler's traceback is in the log")
        if refused := _STORE_REFUSED.search(log):
            raise self._failure(f"could not register {refused['file']}; is it a whole archive?")
        guard = self._guard
        if guard is not None and _ended(guard):
            raise self._failure("ended by itself while starting")

    def _failure(self, what: str) -> StartError:
        return StartError(f"{self.name} {what}. The end of its log:\n{self.log_tail()}")

    def _log(self) -> str:
        if self._folder is None:
            return ""
        logs = [self._folder / "logs" / "console.log", self._folder / "logs" / LOG]
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())

    def _end(self, orderly: bool) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            if orderly:
                guard.stdin.write(b"t")
            guard.stdin.close()
        deadline = time.monotonic() + (GRACE_S if orderly else 0.0) + 10.0
        while not _ended(guard) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Only now is the guard reaped: until then its id, which is that of the group, cannot be anybody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _ended(guard: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended, without reaping it."""
    if guard.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def launch_fleet(instances: Sequence[TorchServeInstance]) -> None:
    """Start instances side by side. If one fails, or Ctrl-C comes, all are stopped and the first error is raised."""
    try:
        _start_together(instances)
    except BaseException:
        stop_fleet(instances, orderly=False)
        raise


@contextlib.contextmanager
def start_fleet(instances: Sequence[TorchServeInstance]) -> Iterator[Sequence[TorchServeInstance]]:
    """`launch_fleet`, and stop them all after the body; at once if that raises."""
    launch_fleet(instances)
    try:
        yield instances
    except BaseException:
        stop_fleet(instances, orderly=False)
        raise
    stop_fleet(instances)


def stop_fleet(instances: Sequence[TorchServeInstance], orderly: bool = True) -> None:
    """Stop instances side by side."""
    together(instances, lambda instance: instance.stop(orderly))


def _start_together(instances: Sequence[TorchServeInstance]) -> None:
    def give_up() -> None:
        for instance in instances:
            instance.abandon_start()

    together(instances, TorchServeInstance.start, give_up)


def together(things: Sequence[T], act: Callable[[T], object], give_up: Callable[[], None] = lambda: None) -> None:
    """One thread each, until all have ended. The first error is raised; `give_up` makes the others end sooner then."""
    pool = ThreadPoolExecutor(max(1, len(things)))
    try:
        done, _ = wait([pool.submit(act, thing) for thing in things], return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        give_up()
        raise
    finally:
        pool.shutdown()
