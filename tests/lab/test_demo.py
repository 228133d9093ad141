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


@pytest.mark.long
def test_the_demo_answers_everything_while_workers_are_frozen_and_killed(tmp_path):
    command = [sys.executable, "-m", "ts_parity.cli", "demo", "--out", str(tmp_path), "--json"]
    ran = subprocess.run(
        [*command, "--queries", "500", "--rate", "60", "--steps", "100"], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    summary = json.loads(ran.stdout)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert {"arms", "seed", "code", "k", "r", "rate", "emulated"} <= summary.keys()
    assert list(summary["arms"]) == ["round_robin", "uncoded", "hedge", "coded", "exact", "default"]
    for arm in summary["arms"].values():
        assert arm.keys() >= ARM
        assert arm["queries"] == arm["answered"] + arm["errors"] + arm["lost"] == 500
        assert arm["p50_ms"] > summary["service_ms"] / 2, "an inference takes as long as the first line says"
        assert arm["p99_ms"] is not None
        assert arm["p999_ms"] is None, "too few queries for one"
    for name in ("hedge", "exact", "default"):
        arm = summary["arms"][name]
        assert (arm["lost"], arm["errors"]) == (0, 0)
        # A query that a protection answered while it still waited for a place costs the deployed model nothing.
        least = 1.0 - arm["reconstructed"] / 500
        assert least <= arm["work_per_query"] < 1.2
        assert arm["work_per_query"] > least or not arm["reconstructed"], "what rebuilt these"
    for name in ("coded", "default"):
        assert summary["arms"][name]["reconstructed"] > 0
    assert 1.3 < summary["arms"]["coded"]["work_per_query"] < 1.7, "a parity query for every two"
    for name in ("round_robin", "uncoded", "hedge"):
        assert summary["arms"][name]["reconstructed"] == 0
    first, *_ = ran.stderr.splitlines()
    assert "emulated" in first
    assert "50 ms" in first
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "curl -i -X POST http://127.0.0.1:" in ran.stderr


def test_a_demo_outside_a_checkout_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "ts_parity.cli", "demo", "--out", str(tmp_path), "--example", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 2
    assert "--example DIR" in ran.stderr
