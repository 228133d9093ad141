"""Every page with commands to type, typed as it stands: its commands work, and print what it says they print.

Fenced `sh` (or `bash`) blocks are the commands, one shell for all of a page. Fenced `text` blocks are what must be
printed, in this order, line by line; `...` stands for anything within a line, and one space for any number of them.
Pages of docs go on where the README ends, with its fleet and in its shell; its last block, which stops all, comes last.
Indented blocks are not typed: they name machines, or files, that only their reader has.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import free_ports

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
GOES_ON = [ROOT / "docs" / f"{name}.md" for name in ("start", "saved", "fleet-size", "refused", "roll-out")]
"""In this order."""
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
SESSIONS = [[README, *GOES_ON], *([example] for example in EXAMPLES)]
TYPED = [
    pytest.param([README], id="README.md"),
    *(
        pytest.param(each, id=f"{each[0].relative_to(ROOT)}{' and docs' * (len(each) > 1)}", marks=pytest.mark.long)
        for each in SESSIONS
    ),
]
LIMIT_S = 1100  # for what hangs; each takes a minute or two on a machine that is not busy

typed = pytest.mark.skipif(shutil.which("curl") is None, reason="the READMEs use curl, which is not installed")


def test_there_are_examples():
    assert {"digits", "sentences", "table"} <= {readme.parent.name for readme in EXAMPLES}


def test_every_page_with_commands_to_type_is_typed():
    pages = [README, *sorted((ROOT / "docs").glob("*.md")), *EXAMPLES]
    typed_pages = {page for session in SESSIONS for page in session}
    assert {page for page in pages if fenced(page.read_text(), "sh", "bash")} == typed_pages


def fenced(text, *languages):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def unmet(expected, said):
    """The first expected line that is not printed after the ones before it; None if all are."""
    at = 0
    for line in filter(None, map(str.strip, expected.splitlines())):
        words = (".*?".join(map(re.escape, word.split("..."))) for word in line.split())
        found = re.compile("[ \t]+".join(words), re.IGNORECASE).search(said, at)
        if found is None:
            return line
        at = found.end()
    return None


def test_what_a_readme_promises_is_looked_for_in_order():
    said = "verdict\ndigits/1.0   sum k=2   in use  81%\nHTTP/1.1 200 \nx-ts-parity: deployed\n"
    assert unmet("digits/1.0 sum k=2 in use ...\nx-ts-parity: deployed", said) is None
    assert unmet("x-ts-parity: deployed\nHTTP/1.1 200", said) == "HTTP/1.1 200"
    assert unmet("digits/1.0 sum k=3", said) == "digits/1.0 sum k=3"


def still_running(group):
    """What is left of a process group half a minute after its first process has ended."""
    ends_at = time.monotonic() + 30
    while True:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.cmdline())[:200])
        if not left or time.monotonic() > ends_at:
            return left
        time.sleep(0.2)


@typed
@pytest.mark.torchserve
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("session", TYPED)
def test_the_commands_of_a_page_work_as_they_stand(session, tmp_path):
    *blocks, stop = fenced(session[0].read_text(), "sh", "bash")
    assert len(blocks) >= 3
    blocks += [block for page in session[1:] for block in fenced(page.read_text(), "sh", "bash")]
    promised = [text for page in session for text in fenced(page.read_text(), "text")]
    assert any("x-ts-parity:" in block for block in promised), "a README shows whose answers came"
    ports = dict(zip(("ONE", "TWO", "THREE", "PROXY", "ADMIN"), map(str, free_ports(5, run=5)), strict=True))
    environment = {**os.environ, **ports, "WORK": str(tmp_path), "TRAIN_OPTIONS": "--steps 80", "BENCH_FOR": "5s"}
    environment["PLAN_OPTIONS"] = "--queries 2000 --seeds 1"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["JDK_JAVA_OPTIONS"] = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"  # as our own have
    script = tmp_path / "typed.sh"
    script.write_text("set -euo pipefail\n" + "\n".join([*blocks, stop]))
    with open(tmp_path / "output", "w+") as output:
        shell = subprocess.Popen(
            ["bash", str(script)], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = shell.wait(timeout=LIMIT_S)
            left = still_running(shell.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended what it had started
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, said[-3000:]
    assert left == [], "a README ends what it has started"
    missing = unmet("\n".join(promised), said)
    assert missing is None, f"not printed: {missing}\n{said[-5000:]}"
