"""Local instances: ready means READY workers, and nothing is left behind, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import BROKEN_HANDLER, NO_TORCH, TINY_HANDLER, torchserve_processes
from ts_parity.errors import ArchiveError, ConfigError, StartError
from ts_parity.torchserve import launcher
from ts_parity.torchserve.configuration import InstanceOptions, free_ports
from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
MakeArchive = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance's environment is that of its owner, who may be a process of a test's own and needs ts_parity."""
    inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([NO_TORCH["PYTHONPATH"], *inherited]))


SLOW_TO_LOAD = "import time\ntime.sleep(1.5)\n" + TINY_HANDLER


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and _status(p) not in (psutil.STATUS_ZOMBIE, None)]


def _status(process: psutil.Process) -> str | None:
    """None: it has ended meanwhile."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return None


def wait_until_gone(processes: list[psutil.Process], within_s: float = 60.0) -> list[psutil.Process]:
    deadline = time.monotonic() + within_s
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(processes)


def test_an_instance_is_ready_serves_and_leaves_nothing(make_archive: MakeArchive) -> None:
    """Ready: every worker loaded, however slowly. Afterwards: no process, even with a frozen worker, and no folder."""
    archive = make_archive(handler=SLOW_TO_LOAD)
    with TorchServeInstance([archive], InstanceOptions(workers=2, batch_size=3, max_batch_delay_ms=5)) as instance:
        with instance.management() as management:
            described = management.describe("tiny")
        assert [worker.status for worker in described.workers] == ["READY", "READY"]
        assert (described.batch_size, described.max_batch_delay_ms) == (3, 5)
        assert requests.post(f"{instance.inference_url}/predictions/tiny", data=b"abc", timeout=60).content == b"abc"
        processes = torchserve_processes()
        assert {p.pid for p in processes} >= {instance.pid, *instance.worker_pids("tiny")}
        assert len(processes) == 4  # guard, JVM, two workers
        os.kill(instance.worker_pids("tiny")[0], signal.SIGSTOP)
        folder = instance.folder
    assert alive(processes) == []
    assert not folder.exists()
    assert not instance.running


def test_workers_run_on_one_thread_and_see_the_given_environment(make_archive: MakeArchive) -> None:
    handler = (
        "import os\ndef handle(data, context):\n"
        "    if data is not None:\n"
        "        return [f\"{os.environ['OMP_NUM_THREADS']} {os.environ['FLAVOUR']}\" for _ in data]\n"
    )
    options = InstanceOptions(env={"FLAVOUR": "lemon"})
    with TorchServeInstance([make_archive(handler=handler)], options) as instance:
        assert requests.get(f"{instance.inference_url}/predictions/tiny", timeout=60).text == "1 lemon"


def test_a_failed_load_raises_at_once_with_the_handlers_traceback(make_archive: MakeArchive) -> None:
    started_at = time.monotonic()
    with pytest.raises(StartError, match="broken on purpose") as failure:
        TorchServeInstance([make_archive("bad", BROKEN_HANDLER)], start_timeout_s=90).start()
    assert "could not load model bad" in str(failure.value)
    assert time.monotonic() - started_at < 60  # it did not sit through TorchServe's retries
    assert torchserve_processes() == []


def test_a_start_that_takes_too_long_says_what_is_missing(make_archive: MakeArchive) -> None:
    handler = "import time\ntime.sleep(600)\n" + TINY_HANDLER
    with pytest.raises(StartError, match=r"not ready after 4 s \(.*(tiny 1\.0|management API)"):
        TorchServeInstance([make_archive(handler=handler)], start_timeout_s=4).start()
    assert torchserve_processes() == []


def test_a_broken_setting_quotes_what_torchserve_said() -> None:
    options = InstanceOptions(properties={"inference_address": "nonsense"})
    with pytest.raises(StartError, match=r"(?s)ended by itself.*nonsense"):
        TorchServeInstance((), options).start()


@pytest.mark.long
def test_a_taken_port_is_answered_with_other_ports(make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        answers = iter([replace(free_ports(), management=holder.getsockname()[1]), free_ports()])
        monkeypatch.setattr(launcher, "free_ports", lambda: next(answers))
        with TorchServeInstance([make_archive()]) as instance:
            assert instance.ports is not None
            assert instance.ports.management != holder.getsockname()[1]
            assert next(answers, None) is None


def test_a_fleet_starts_side_by_side_and_one_failure_stops_all(make_archive: MakeArchive) -> None:
    good, bad = make_archive(), make_archive("bad", BROKEN_HANDLER)
    instances = [TorchServeInstance([good], name="good"), TorchServeInstance([bad], name="bad")]
    with pytest.raises(StartError, match="bad could not load"), start_fleet(instances):
        pytest.fail("the fleet is not ready")
    assert torchserve_processes() == []


OWNER = """
import sys, time
from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet
with start_fleet([TorchServeInstance([sys.argv[1]]) for _ in range(2)]) as fleet:
    for instance in fleet:
        print(instance.folder, flush=True)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_nothing_survives_the_owner(make_archive: MakeArchive, how: signal.Signals) -> None:
    """Ctrl-C, a plain kill, and SIGKILL, where nobody is left to clean up; one worker is frozen each time."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(make_archive())], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        folders = [Path(owner.stdout.readline().strip()) for _ in range(2)]
        assert owner.stdout.readline() == "ready\n"
        processes = torchserve_processes(owner.pid)
        workers = [p for p in processes if "model_service_worker" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[0].suspend()
        owner.send_signal(how)
        owner.wait(30)
        assert wait_until_gone(processes) == []
        assert [folder for folder in folders if folder.exists()] == []
    finally:
        owner.kill()
        owner.communicate()


def test_ctrl_c_while_starting(make_archive: MakeArchive) -> None:
    archive = make_archive(handler="import time\ntime.sleep(600)\n" + TINY_HANDLER)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(archive)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(processes := torchserve_processes(owner.pid)) < 6 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(processes) == 6  # twice guard, JVM and worker
        owner.send_signal(signal.SIGINT)
        owner.wait(30)
        assert wait_until_gone(processes) == []
    finally:
        owner.kill()
        owner.wait()


def test_a_killed_guard_takes_its_jvm_along(make_archive: MakeArchive) -> None:
    with TorchServeInstance([make_archive()]) as instance:
        processes = torchserve_processes()
        guard = next(p for p in processes if "guard.py" in " ".join(p.cmdline()))
        os.kill(instance.worker_pids("tiny")[0], signal.SIGSTOP)
        guard.kill()
        assert wait_until_gone([psutil.Process(instance.pid)]) == []
        assert not instance.running
    assert wait_until_gone(processes) == []


def test_an_instance_has_one_life(make_archive: MakeArchive) -> None:
    instance = TorchServeInstance([make_archive()])
    instance.stop()
    with pytest.raises(StartError, match="make a new instance"):
        instance.start()


def test_a_given_folder_and_store_are_kept(make_archive: MakeArchive, tmp_path: Path) -> None:
    archive, folder = make_archive(), tmp_path / ("a very long name " * 5) / "képt 文"
    with TorchServeInstance([archive], model_store=archive.parent, folder=folder) as instance:
        assert instance.model_store == archive.parent
        with pytest.raises(StartError, match="make a new instance"):
            instance.start()
        assert instance.running
    assert "load_models=tiny.mar" in (folder / "config.properties").read_text()
    assert "model_name: tiny" in (folder / "logs" / "torchserve.log").read_text()


def test_what_cannot_be_started_is_said_before_java_runs(make_archive: MakeArchive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="there is no archive"):
        TorchServeInstance([tmp_path / "nowhere.mar"]).start()
    with pytest.raises(ConfigError, match="not in the model store"):
        TorchServeInstance([make_archive()], model_store=tmp_path).start()
    with pytest.raises(ConfigError, match="workers of a TorchServe instance must be at least 1, not 0"):
        InstanceOptions(workers=0)


def test_a_temporary_folder_too_deep_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(ConfigError, match="set a shorter one"):
        TorchServeInstance(()).start()
    assert list(deep.iterdir()) == []


def test_no_java_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(StartError, match="no bin/java: correct it or unset it"):
        TorchServeInstance(()).start()
