"""The self-test on an archive's samples, in a process of its own, before the worker loads the handler for its clients.

A handler may keep something of every run, on itself, in its modules or on its model. So the object that serves is never
run for a test: another process loads the archive, runs the samples, writes down its verdict and ends. The verdict stays
beside the extracted archive, so that an archive's other workers, and one that is started again, have it at once. What
user code does outside its process, in files or databases, happens as at any load and for any request. Knows processes
and files; what is tested is in `selftest`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ts_parity.worker.verdict import HandlerVerdict, VerdictState

log = logging.getLogger(__name__)

_SHARE = 1 / 3
"""Of the time that TorchServe gives a worker to start; the rest is for loading."""
_STARTUP_S = 120.0  # TorchServe's own default
_LOOK_S = 0.1
_LAST_TO_DIE = "1000"
"""If memory is short, the system shall end the test and not a worker."""


def verdict_on_samples(folder: Path, role: str, gpu_id: Any, config: Mapping[str, Any]) -> HandlerVerdict:
    """The verdict on the archive's samples: read if it is there, else found now; untested if it cannot be found."""
    told = config.get("startupTimeout")
    limit_s = _SHARE * (float(told) if isinstance(told, (int, float)) and told > 0 else _STARTUP_S)
    try:
        with _exclusive(verdict_file(folder, gpu_id), limit_s) as file:
            if not file.exists():
                _in_a_process(folder, role, gpu_id, file, limit_s)
            return HandlerVerdict.from_json(json.loads(file.read_text(encoding="utf-8")))
    except subprocess.TimeoutExpired:
        why = f"the samples were not through in {limit_s:.0f} s"
    except (OSError, ValueError, KeyError, TypeError, subprocess.CalledProcessError) as error:
        log.warning("self-test: the samples could not be run", exc_info=True)
        why = f"the samples could not be run: {error}"
    return HandlerVerdict(reason=f"{why}, so live requests are watched instead")


def verdict_file(folder: Path, gpu_id: Any) -> Path:
    """Where the verdict is kept. A CPU and a GPU may differ in it."""
    return folder / f".ts_parity_verdict.{'cpu' if gpu_id is None else 'cuda'}.json"


def write_verdict(verdict: HandlerVerdict, file: Path) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as unfinished:
        json.dump(verdict.as_json(), unfinished)
    os.replace(unfinished.name, file)


@contextlib.contextmanager
def _exclusive(file: Path, limit_s: float) -> Iterator[Path]:
    """One worker tests, the others wait for what it finds. Where nothing can be written, each tests for itself."""
    if not os.access(file.parent, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="ts-parity-verdict-") as own:
            yield Path(own) / file.name
        return
    with file.with_suffix(".lock").open("w") as lock:
        _wait_for(lock, limit_s)
        yield file


def _wait_for(lock: IO[str], limit_s: float) -> None:
    ends_at = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > ends_at:
            raise subprocess.TimeoutExpired("another worker's self-test", limit_s)
        time.sleep(_LOOK_S)


def _in_a_process(folder: Path, role: str, gpu_id: Any, file: Path, limit_s: float) -> None:
    words = [str(folder), role, "" if gpu_id is None else str(gpu_id), str(file), f"{limit_s:.0f}"]
    path = os.pathsep.join([str(folder), *(entry for entry in sys.path if entry)])
    subprocess.run(
        [sys.executable, "-m", __name__, *words],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # TorchServe takes some words of a worker's output for its own
        timeout=limit_s,
        check=True,
    )


def main(words: list[str]) -> None:
    from ts_parity.worker.entry import self_test

    folder, role, gpu_id, file, limit_s = words
    signal.alarm(int(limit_s) + 5)  # should the worker that waits be gone
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_LAST_TO_DIE)
    verdict = self_test(Path(folder), role, int(gpu_id) if gpu_id else None)
    if verdict.state is VerdictState.UNTESTED:
        raise SystemExit("the self-test came to no verdict")
    write_verdict(verdict, Path(file))
    os._exit(0)  # user code may have left threads that would keep this process


if __name__ == "__main__":
    main(sys.argv[1:])
