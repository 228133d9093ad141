"""Runs the self-test on an archive's samples in a separate process, before the worker loads the handler for clients.

A handler may keep state from every run: on itself, in its modules, on its model. So the object that serves clients is
never used for tests. Another process loads the archive, runs the samples, writes its verdict and ends. The verdict
stays in a file in the extracted archive, so other workers of the archive, and restarted ones, have it at once. What
user code does outside its process, in files or databases, happens as for any request. Knows processes and files. Knows
nothing of what is tested: that is in `selftest`.
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

from ts_parity.worker.gpu import MPS_PRIORITY
from ts_parity.worker.verdict import HandlerVerdict, VerdictState

log = logging.getLogger(__name__)

_SHARE = 1 / 3
"""The share of TorchServe's start timeout that the self-test may take; the rest is for loading."""
_STARTUP_S = 120.0  # TorchServe's own default
_POLL_S = 0.1
_OOM_SCORE = "1000"
"""The OOM score: if memory runs out, Linux kills the test and no worker."""


def verdict_on_samples(folder: Path, role: str, gpu_id: Any, config: Mapping[str, Any]) -> HandlerVerdict:
    """The verdict on the archive's samples: from its file, else by running the test; untested if that fails."""
    timeout_s = config.get("startupTimeout")
    limit_s = _SHARE * (float(timeout_s) if isinstance(timeout_s, (int, float)) and timeout_s > 0 else _STARTUP_S)
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
    """The verdict's file, one for CPUs and one for GPUs, since results may differ."""
    return folder / f".ts_parity_verdict.{'cpu' if gpu_id is None else 'cuda'}.json"


def write_verdict(verdict: HandlerVerdict, file: Path) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as unfinished:
        json.dump(verdict.as_json(), unfinished)
    os.replace(unfinished.name, file)


@contextlib.contextmanager
def _exclusive(file: Path, limit_s: float) -> Iterator[Path]:
    """Let one worker test while the others wait for its verdict. In a read-only folder each worker tests for itself."""
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
        time.sleep(_POLL_S)


def _in_a_process(folder: Path, role: str, gpu_id: Any, file: Path, limit_s: float) -> None:
    arguments = [str(folder), role, "" if gpu_id is None else str(gpu_id), str(file), f"{limit_s:.0f}"]
    path = os.pathsep.join([str(folder), *(entry for entry in sys.path if entry)])
    subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        env={**os.environ, "PYTHONPATH": path, MPS_PRIORITY: "1"},  # clients of other workers are waiting
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # TorchServe parses some lines of a worker's output
        timeout=limit_s,
        check=True,
    )


def main(arguments: list[str]) -> None:
    from ts_parity.worker.entry import self_test

    folder, role, gpu_id, file, limit_s = arguments
    signal.alarm(int(limit_s) + 5)  # in case the waiting worker is gone
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    verdict = self_test(Path(folder), role, int(gpu_id) if gpu_id else None)
    if verdict.state is VerdictState.UNTESTED:
        raise SystemExit("the self-test came to no verdict")
    write_verdict(verdict, Path(file))
    os._exit(0)  # threads of user code might keep this process alive


if __name__ == "__main__":
    main(sys.argv[1:])
