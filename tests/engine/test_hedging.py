"""Hedging alone: when a second copy is made."""

import math

import pytest

from ts_parity.engine import plain
from ts_parity.engine.hedging import Hedging
from ts_parity.engine.lateness import LatencyWindow


def window(latency, number=100):
    made = LatencyWindow()
    for _ in range(number):
        made.add(latency)
    return made


def test_as_set_and_else_as_measured_and_before_that_a_guess():
    nothing = LatencyWindow()
    assert Hedging(plain(hedge_after_s=0.3), nothing, nothing).after_s(0.1) == 0.3
    assert Hedging(plain(), nothing, nothing).after_s(math.inf) == plain().reconstruct_cold_s
    assert Hedging(plain(), window(0.02), nothing).after_s(math.inf) == pytest.approx(0.02)


def test_a_backup_first_gets_its_time_to_answer():
    hedging = Hedging(plain(), window(0.02), window(0.03))
    assert hedging.after_s(0.015) == pytest.approx(0.045)
    assert hedging.after_s(math.inf) == pytest.approx(0.02)
