"""The self-test in a process of its own: the object that serves is left as it was, whatever becomes of the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worker.serving import InProcess, make_folder, vector
from ts_parity.worker.selftest_process import verdict_file, verdict_on_samples
from ts_parity.worker.verdict import HandlerVerdict, VerdictState

FILES = {"a.bin": vector(1), "b.bin": vector(2)}
SECTION = {"samples": ["a.bin", "b.bin"]}
_DIES = """
import os


class Dies:
    def initialize(self, context): ...

    def handle(self, data, context):
        with open("/proc/self/cmdline") as words:
            if "ts_parity.worker.selftest_process" in words.read():
                os._exit(3)
        return ["fine"] * len(data)
"""


@pytest.mark.slow
def test_the_object_that_serves_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the archive's other workers, or one that is started again, have the verdict without a test."""
    folder = make_folder(tmp_path / "a", "counts_runs", SECTION, files=FILES)
    for _ in range(2):
        with InProcess(folder) as worker:
            described = worker.describe()["ts_parity"]
            assert (described["verdict"], described["batched"]) == ("codable", True), described["reason"]
            assert sys.modules["counts_runs"].RUNS == []
            assert worker.ask(vector(1), "raw").raw is not None
            assert sys.modules["counts_runs"].RUNS == [1]
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was tested again"))


@pytest.mark.slow
def test_a_test_that_ends_its_process_ends_no_worker(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", "dies", SECTION, files={**FILES, "dies.py": _DIES.encode()})
    with InProcess(folder) as worker:
        described = worker.describe()["ts_parity"]
        assert described["verdict"] == "untested"
        assert "could not be run" in described["reason"]
        assert "live requests are watched instead" in described["reason"]
        assert worker.ask(vector(1), "raw").body == b"fine"


@pytest.mark.parametrize("config", [{"startupTimeout": 0.003}, {"startupTimeout": 0.003, "responseTimeout": 9}])
def test_a_test_that_takes_too_long_is_given_up(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "a", "plain_class", SECTION, files=FILES)
    verdict = verdict_on_samples(folder, "deployed", None, config)
    assert verdict.state is VerdictState.UNTESTED
    assert "not through in 0 s" in verdict.reason


def test_a_verdict_comes_back_as_it_was(tmp_path: Path) -> None:
    verdict = HandlerVerdict(VerdictState.REFUSED, "why", True, False, False, {"shape": [1]}, None)
    assert HandlerVerdict.from_json(json.loads(json.dumps(verdict.as_json()))) == verdict
    damaged = verdict_file(tmp_path, None)
    for text in ("", "[]", '{"state": "sure"}', '{"state": "codable", "colour": 1}'):
        damaged.write_text(text)
        assert verdict_on_samples(tmp_path, "deployed", None, {}).state is VerdictState.UNTESTED
