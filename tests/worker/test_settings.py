"""The `ts_parity` section: what is wrong is said, with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from ts_parity.errors import ConfigError
from ts_parity.worker.settings import SampleFile, read_settings

PARITY = {"role": "parity", "handler": "h.py", "code": "sum", "k": 2}


def test_a_deployed_section() -> None:
    section = {"handler": "h.py:predict", "model": "net", "samples": ["a.png", {"file": "b", "content_type": "x/y"}]}
    settings = read_settings({"minWorkers": 1, "ts_parity": section}, "deployed")
    assert (settings.handler, settings.declaration) == ("h.py:predict", {"model": "net"})
    assert settings.samples == (SampleFile("a.png"), SampleFile("b", "x/y"))
    assert settings.protection is None


def test_what_is_declared_of_a_handler() -> None:
    """YAML reads `output: 1` as a number; the others are texts."""
    section = {"handler": "h.py", "model": "a.b", "call": "encode", "input": "args.0", "output": 1}
    declared = read_settings({"ts_parity": section}, "deployed").declaration
    assert declared == {"model": "a.b", "call": "encode", "input": "args.0", "output": "1"}
    with pytest.raises(ConfigError, match="call must be a non-empty text"):
        read_settings({"ts_parity": {"handler": "h.py", "call": 1}}, "deployed")


def test_a_parity_section() -> None:
    settings = read_settings({"ts_parity": {**PARITY, "r": 2, "row": 1, "partial": True}}, "parity")
    assert settings.protection is not None
    assert settings.protection.code.coefficients[1] == (1.0, 2.0)
    assert not settings.protection.is_backup
    exact = read_settings({"ts_parity": {**PARITY, "code": "exact", "coefficients": []}}, "parity").protection
    assert exact is not None
    assert (exact.is_backup, exact.partial) == (True, True)


@pytest.mark.parametrize(
    ("config", "role", "why"),
    [
        (None, "deployed", "no section ts_parity. Write one like this"),
        ({"ts_parity": None}, "parity", "role: parity"),
        ({"ts_parity": {}}, "deployed", "handler must be a non-empty text, not None"),
        ({"ts_parity": {"handler": 3}}, "deployed", "handler must be a non-empty text, not 3"),
        ({"ts_parity": {"handler": "h", "k": 2}}, "deployed", "k is unknown for role deployed"),
        ({"ts_parity": PARITY}, "deployed", "unknown for role deployed"),
        ({"ts_parity": {**PARITY, "role": "deployed"}}, "parity", "role is 'deployed'"),
        ({"ts_parity": {**PARITY, "code": "xor"}}, "parity", "unknown code 'xor'"),
        ({"ts_parity": {**PARITY, "k": "two"}}, "parity", "k must be a whole number, not 'two'"),
        ({"ts_parity": {**PARITY, "row": 1}}, "parity", "row must be 0 to 0"),
        ({"ts_parity": {**PARITY, "coefficients": [[1, 0]]}}, "parity", "singular"),
        ({"ts_parity": {**PARITY, "coefficients": ["ab"]}}, "parity", "coefficients must be r rows"),
        ({"ts_parity": {**PARITY, "partial": "yes"}}, "parity", "partial must be true or false"),
        ({"ts_parity": {**PARITY, "protects": 1}}, "parity", "protects must have"),
        (
            {"ts_parity": {**PARITY, "tolerance": 0}},
            "parity",
            "tolerance is how far off its numbers usually are, not 0",
        ),
        ({"ts_parity": {**PARITY, "cost": 0}}, "parity", "cost is what a group costs in deployed inferences, not 0"),
        ({"ts_parity": {**PARITY, "agreement": 97}}, "parity", "agreement is a share between 0 and 1, not 97"),
        (
            {"ts_parity": {**PARITY, "code": "exact", "parity_model": "p.pt"}},
            "parity",
            "code exact runs the deployed model itself; it has no parity_model",
        ),
        (
            {"ts_parity": {**PARITY, "row_errors": {"0": [[1.0]], "5": [[1.0]]}}},
            "parity",
            "row_errors: (5,) is no set of slots",
        ),
        ({"ts_parity": {"handler": "h", "samples": "a"}}, "deployed", "samples must be a list"),
        ({"ts_parity": {"handler": "h", "samples": [{"path": "a"}]}}, "deployed", "a sample is a file name"),
    ],
)
def test_mistakes_are_told(config: Any, role: str, why: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_settings(config, role)
    assert why in str(told.value)
