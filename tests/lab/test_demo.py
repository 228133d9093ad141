"""A short run of the demo, on real TorchServe."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]

ARM = {
    "queries",
    "answered",
    "errors",
    "lost",
    "reconstructed",
    "accuracy",
    "accuracy_reconstructed",
    "p50_ms",
    "p99_ms",
    "p999_ms",
    "work_per_query",
}


def test_the_demo_answers_everything_while_workers_are_frozen_and_killed(tmp_path):
    command = [sys.executable, "-m", "ts_parity.cli", "demo", "--out", str(tmp_path), "--json"]
    ran = subprocess.run(
        [*command, "--queries", "900", "--rate", "90", "--steps", "100"], capture_output=True, text=True, timeout=500
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    summary = json.loads(ran.stdout)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert {"arms", "seed", "code", "k", "r", "rate"} <= summary.keys()
    assert summary["arms"].keys() == {"round_robin", "uncoded", "coded", "default"}
    for arm in summary["arms"].values():
        assert arm.keys() >= ARM
        assert arm["queries"] == arm["answered"] + arm["errors"] + arm["lost"] == 900
    coded, ours = summary["arms"]["coded"], summary["arms"]["default"]
    for arm in (coded, ours):
        assert (arm["lost"], arm["errors"]) == (0, 0)
        assert arm["reconstructed"] > 0
    # A query costs its own inference, a few retries, and at most a group of its own, at the price measured here.
    [sum_code] = json.loads((tmp_path / "trained" / "report.json").read_text())["candidates"]
    assert 1.0 < coded["work_per_query"] < 1.1 + sum_code["cost"]
    assert 1.0 < ours["work_per_query"] < coded["work_per_query"]
    assert summary["arms"]["uncoded"]["reconstructed"] == 0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "curl -i -X POST http://127.0.0.1:" in ran.stderr


def test_a_demo_outside_a_checkout_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "ts_parity.cli", "demo", "--out", str(tmp_path), "--example", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 2
    assert "--example DIR" in ran.stderr
