"""The example's README, typed as it stands."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "examples" / "digits" / "README.md"

pytestmark = [
    pytest.mark.torchserve,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands use curl, which is not installed"),
]


def free_ports(count):
    """Starts of `count` runs of five free ports."""
    starts, candidate = [], 20000 + os.getpid() % 20000
    while len(starts) < count:
        try:
            for port in range(candidate, candidate + 5):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
            starts.append(str(candidate))
        except OSError:
            pass
        candidate += 5
    return starts


def test_the_commands_of_the_readme_work_as_they_stand(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    one, two, three, proxy, admin = free_ports(5)
    ports = {"ONE": one, "TWO": two, "THREE": three, "PROXY": proxy, "ADMIN": admin}
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, **ports, "WORK": str(tmp_path), "TRAIN_OPTIONS": "--steps 300"}
    environment["OMP_NUM_THREADS"] = "1"  # two threads that wait for each other stand still on a busy machine
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    script = tmp_path / "typed.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(blocks))
    with open(tmp_path / "output", "w+") as output:
        typed = subprocess.Popen(
            ["bash", str(script)], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = typed.wait(timeout=500)
        finally:
            os.killpg(typed.pid, signal.SIGKILL)
            typed.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, said[-3000:]
    answer = said[said.index("HTTP/1.1 200") :]
    assert "x-ts-parity: deployed" in answer.lower()
    assert '"digit"' in answer
    assert re.search(r"deployed \d$", answer, re.MULTILINE)  # curl leaves no newline before it
    first, last = said.split("verdict", 2)[1:]
    assert re.search(r"digits/1\.0 +sum k=2 r=1 +on trial +\w+ +2 +1", first), said[-3000:]
    assert re.search(r"digits/1\.0 +sum k=2 r=1 +in use +\w+ +2 +1", last), said[-3000:]
