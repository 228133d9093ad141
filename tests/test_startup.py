"""How a command may be started and spoken to: closed descriptors, readers that leave, signals that come early."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import ts_parity.proxy.operations.signals as proxy_signals
from ts_parity import startup

SERVE = [
    *(sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0"),
    *("--endpoint", "http://127.0.0.1:1"),
]
PRINT = """
import sys
import ts_parity.cli as cli

class Parser:
    def parse_known_args(self, words):
        import argparse
        return argparse.Namespace(run=run), []

def run(args):
    {}
    print("done", file=sys.stderr)
    return 0

cli.build_parser = Parser
sys.exit(cli.main())
"""
UNDOES = PRINT.replace("Namespace(run=run)", "Namespace(run=run, undoes=True)")


def run(code: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command that runs `code`, with the shell's redirections."""
    line = f'"$0" -c "$1" {redirect}'
    command = ["/bin/bash", "-c", line, sys.executable, PRINT.format(code)]
    return subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **environment})


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_what_cannot_be_encoded_is_escaped(encoding: str) -> None:
    ran = run(r"print('k\udce4 ± 0.31')", PYTHONIOENCODING=encoding)
    plus = "±" if encoding.startswith("utf") else r"\xb1"
    assert (ran.returncode, ran.stdout.decode()) == (0, rf"k\udce4 {plus} 0.31" + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("flush", ["True", "False"])
def test_a_reader_that_leaves_does_not_stop_the_work(flush: str) -> None:
    ran = run(f"[print('x' * 99, flush={flush}) for _ in range(9999)]", "| head -c 10; exit ${PIPESTATUS[0]}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"x" * 10, b"done\n")


@pytest.mark.slow
def test_a_full_disk_is_told() -> None:
    """Not at the first line that is lost, for there is work to do; but it is no success."""
    ran = run("print('x', flush=True)", "> /dev/full")
    assert (ran.returncode, ran.stderr) == (3, b"done\nts-parity: standard output: No space left on device\n")
    assert run("print('x')", "2> /dev/full").returncode == 0
    helped = subprocess.run(f"{sys.executable} -m ts_parity.cli --help > /dev/full", shell=True, capture_output=True)
    assert (helped.returncode, helped.stderr) == (3, b"ts-parity: standard output: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "numbers"), [("<&-", [0]), (">&-", [1]), ("2>&-", [2]), ("<&- >&- 2>&-", [0, 1, 2])]
)
def test_closed_descriptors_are_opened_before_something_else_takes_their_numbers(
    closed: str, numbers: list[int]
) -> None:
    code = "import os; assert {os.readlink(f'/proc/self/fd/{n}') for n in CLOSED} == {os.devnull}"
    ran = run(code.replace("CLOSED", str(numbers)), closed)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_proxy_serves_and_drains_with_closed_descriptors(tmp_path: Path, closed: int, processes: str) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [*SERVE, "--processes", processes, "--ready-file", str(ready)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.close(closed),
    )
    started_at = time.monotonic()
    while not ready.exists() and process.poll() is None and time.monotonic() < started_at + 60:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 0
    assert ready.exists()


@pytest.mark.slow
def test_a_ready_file_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "ready.partial").mkdir()
    command = [*SERVE, "--ready-file", str(tmp_path / "ready")]
    ran = subprocess.run(command, capture_output=True, timeout=60)
    assert ran.returncode == 3
    assert ran.stderr.decode().endswith(f"cannot write '{tmp_path}/ready': Is a directory\n")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the imports", "before the loop"])
def test_an_early_sigterm_is_not_forgotten(when: str) -> None:
    """It ends with 0, for nothing was in flight, and never hears of the ready file."""
    patch = "cli.parsed" if when == "before the imports" else "proxy_app.use_uvloop"
    code = (
        "import os, signal, sys\nimport ts_parity.cli as cli\nimport ts_parity.proxy.app as proxy_app\n"
        f"real = {patch}\n"
        "def killed_first(*args):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return real(*args)\n"
        f"{patch} = killed_first\nsys.exit(cli.main())"
    )
    ran = subprocess.run([sys.executable, "-c", code, *SERVE[3:]], capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, b"")
    assert b"Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a namespace of processes")
def test_the_first_process_of_a_container_hears_sigterm() -> None:
    """The kernel keeps from it what it has no handler for."""
    # In short sleeps: one that begins just as the signal arrives is slept to its end.
    waits = "import time; [time.sleep(0.01) for _ in range(6000)]"
    for command, code in ((SERVE, 0), ([sys.executable, "-c", PRINT.format(waits)], 143)):
        outside = subprocess.Popen(["unshare", "-fp", "--mount-proc", "--kill-child", *command], stderr=subprocess.PIPE)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        while not (child := children.read_text()) and outside.poll() is None:
            time.sleep(0.01)
        if not child:
            pytest.skip(str(outside.communicate()[1]))
        handled = 0
        while not handled & 1 << (signal.SIGTERM - 1):
            status = Path(f"/proc/{child.strip()}/status").read_text()
            handled = int(status.partition("SigCgt:")[2].split()[0], 16)
            time.sleep(0.01)
        os.kill(int(child), signal.SIGTERM)
        outside.communicate(timeout=30)
        assert outside.returncode == code


@pytest.mark.slow
@pytest.mark.parametrize("ignored", ["", "SIGINT"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_has_something_to_undo_does_so_at_a_signal(number: int, code: int, ignored: str) -> None:
    """Once: the second signal does not cut the undoing. Where Ctrl-C is ignored, too, as in the background."""
    waits = f"""
    import asyncio, os
    async def wait():
        try:
            os.kill(os.getpid(), {number})
            await asyncio.sleep(60)
        finally:
            os.kill(os.getpid(), {signal.SIGTERM})
            await asyncio.sleep(0.01)
            print("undone")
    asyncio.run(wait())"""
    command = [sys.executable, "-c", UNDOES.format(waits)]
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    ran = subprocess.run(command, capture_output=True, timeout=60, preexec_fn=ignore)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, b"undone\n", b"")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_a_demo_that_is_kept_says_which_signal_ended_it(number: int, code: int) -> None:
    """Ctrl-C is its usual end."""
    waits = f"""
    import os
    from ts_parity.lab.demo import _wait_for_interrupt
    _wait_for_interrupt(lambda _: os.kill(os.getpid(), {number}))"""
    ran = subprocess.run([sys.executable, "-c", UNDOES.format(waits)], capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (code, b"done\n")


def test_a_signal_counts_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may have come where an exception is lost; what comes right after it is the same request."""
    monkeypatch.setattr(startup, "_ended_by", 0)
    monkeypatch.setattr(startup, "_ended_at", -math.inf)

    def interrupts(number: int, now: float) -> bool:
        monkeypatch.setattr(startup, "time", SimpleNamespace(monotonic=lambda: now))
        try:
            startup._interrupt(number, None)
        except KeyboardInterrupt:
            return True
        return False

    assert interrupts(signal.SIGTERM, 100.0)
    assert not interrupts(signal.SIGHUP, 100.1)
    assert not interrupts(signal.SIGTERM, 104.9)
    assert interrupts(signal.SIGHUP, 105.1)
    assert not interrupts(signal.SIGTERM, 105.2)
    assert startup.exit_code(0) == 129


@pytest.mark.slow
def test_nohup_is_respected_by_what_has_something_to_undo() -> None:
    command = ["nohup", sys.executable, "-c", UNDOES.format(f"import os; os.kill(os.getpid(), {signal.SIGHUP})")]
    ran = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (ran.returncode, ran.stderr) == (0, b"done\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
async def test_what_each_signal_means(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {}

    class Loop:
        def add_signal_handler(self, number: int, does: object) -> None:
            handlers[signal.Signals(number).name] = does

    monkeypatch.setattr("asyncio.get_running_loop", Loop)
    monkeypatch.setattr("os.isatty", lambda _: False)
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_DFL)
    proxy_signals.install_handlers("end", "reload", "reopen")  # type: ignore[arg-type]
    del handlers["SIGUSR2"]
    ends = dict.fromkeys(("SIGTERM", "SIGINT", "SIGQUIT"), "end")
    assert handlers == {**ends, "SIGHUP": "reload", "SIGUSR1": "reopen"}
    monkeypatch.setattr("os.isatty", lambda _: True)
    proxy_signals.install_handlers("end", "reload", "reopen")  # type: ignore[arg-type]
    assert handlers["SIGHUP"] == "end"
    handlers.clear()
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_IGN)
    proxy_signals.install_handlers("end", "reload", "reopen")  # type: ignore[arg-type]
    assert "SIGHUP" not in handlers
