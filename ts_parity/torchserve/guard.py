"""The process between us and a TorchServe: it outlives us just long enough to end everything that TorchServe started.

Run as a script, with the standard library only. Knows processes and one pipe; knows nothing of TorchServe itself.

    python guard.py --pid-file FILE [--remove FOLDER] [--grace SECONDS] -- COMMAND ...

Why a process of its own: TorchServe's workers are children of the JVM, a killed JVM leaves them behind, and one that is
stopped (SIGSTOP) never notices that its socket closed. Death signals (PR_SET_PDEATHSIG) alone will not do: they follow
the *thread* that forked, which is wrong for a fleet started from a thread pool, and grandchildren do not inherit them.

  - stdin is a pipe whose other end our owner holds. It closes however the owner dies, SIGKILL included: then everything
    is killed at once. One byte asks for an orderly stop: SIGTERM to the command, `--grace` seconds, then the same.
  - Linux: the guard is a subreaper, so whatever the command leaves behind becomes its child and is found and killed.
  - Should the guard itself be killed, the command gets SIGKILL (the guard has one thread, so here the death signal is
    right) and the owner kills the process group.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_DEADLINE_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pid-file", required=True)
    parser.add_argument("--remove")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    wakeup = _hear_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        command = subprocess.Popen(args.command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_guard)
        _write(args.pid_file, str(command.pid))
        owner_gone = _watch(command.pid, wakeup, args.grace)
    finally:
        _kill_descendants()
    if args.remove and owner_gone:  # an owner who is there wants to read the log first
        shutil.rmtree(args.remove, ignore_errors=True)
    if not sys.platform.startswith("linux"):
        os.killpg(0, signal.SIGKILL)  # without /proc there is no finer tool; it ends this process as well
    return 0


def _hear_signals() -> int:
    """-> a file descriptor that becomes readable when a child ends or somebody asks us to end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our owner
    return reading


def _watch(pid: int, wakeup: int, grace_s: float) -> bool:
    """Until the command ends, or the owner asks for a stop or is gone. -> whether the owner is gone."""
    stdin, deadline = sys.stdin.fileno(), None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        watched = [wakeup] if deadline is not None else [wakeup, stdin]
        ready, _, _ = select.select(watched, [], [], left)
        if not ready:
            return False
        if stdin in ready:
            if not os.read(stdin, 1):
                return True
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        if wakeup in ready and signal.SIGTERM in os.read(wakeup, 512):
            return False
        if pid in _reap():
            return False


def _reap() -> set[int]:
    """The children that have ended: the command itself, and what was left to us as the subreaper."""
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def _kill_descendants() -> None:
    """SIGKILL ends stopped processes too. Repeated, since the dying may have started more."""
    deadline = time.monotonic() + KILL_DEADLINE_S
    while time.monotonic() < deadline:
        _reap()
        alive = _descendants(os.getpid())
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            # stat is "pid (name) state ppid ..."; a name may itself hold spaces and parentheses
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                children.setdefault(int(stat.read().rpartition(b")")[2].split()[1]), []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _die_with_guard() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _write(path: str, text: str) -> None:
    """Whole or not at all: our owner reads it while we write."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


if __name__ == "__main__":
    sys.exit(main())
