"""Ejection alone: who may be taken out."""

import pytest

from ts_parity.engine import plain
from ts_parity.engine.ejection import Ejection
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.policy import LoadMeter

from .made import endpoints


def ejection(load=0.0, number=3, latencies=(), **policy):
    meter, window = LoadMeter(), LatencyWindow()
    meter.value = load
    for latency in latencies:
        window.add(latency)
    rule = Ejection(plain(**policy), window, meter)
    everyone = endpoints(number)
    rule.adopt(everyone)
    return rule, everyone.everyone


def erring(load, share, suspects=0):
    """Three endpoints at this load, of which the first errs in this share of its answers."""
    rule, (first, *others) = ejection(load)
    first.record.answers, first.record.errors = 100.0, 100.0 * share
    for other in others[:suspects]:
        other.record.suspect = True
    return rule, first, others


@pytest.mark.parametrize(
    ("load", "share", "suspects", "may"),
    [
        (0.5, 0.3, 0, True),
        (0.6, 0.3, 0, False),  # 1.8 machines' work for two
        (0.6, 0.8, 0, True),  # it bears nothing itself
        (0.1, 0.3, 1, True),
        (0.1, 0.8, 2, False),  # nobody else is above suspicion
    ],
)
def test_whom_errors_may_take_out(load, share, suspects, may):
    rule, first, _ = erring(load, share, suspects)
    assert rule.may_convict(first) is may


def test_who_is_out_bears_no_load():
    rule, first, others = erring(0.5, 0.3)
    others[1].health.condition = Condition.OUT
    assert not rule.may_convict(first)


def test_suspects_are_told_by_instance_and_peers_by_their_counts():
    rule, first, others = erring(0.1, 0.3, suspects=1)
    others[0].record.answers = 7.0
    others[1].record.answers, others[1].record.errors = 3.0, 1.0
    assert rule.suspects() == {"d1"}
    assert rule.peers_of(first) == (10.0, 1.0)


@pytest.mark.parametrize(
    ("number", "out", "load", "may"),
    [
        (3, 0, 0.5, True),
        (3, 1, 0.1, False),  # a third of three is one
        (2, 0, 0.1, False),
        (3, 0, 0.6, False),  # 1.8 machines' work for two
        (6, 1, 0.5, True),
    ],
)
def test_whom_slowness_may_take_out(number, out, load, may):
    rule, everyone = ejection(load, number, max_out=0.34)
    for place in everyone[:out]:
        place.health.condition = Condition.OUT
        place.peers.count(Condition.IN, Condition.OUT)
    assert rule.may_take_out() is may


@pytest.mark.parametrize(
    ("factor", "known", "latency", "slow"),
    [(3.0, 20, 0.031, True), (3.0, 20, 0.030, False), (3.0, 0, 9.0, False), (0.0, 20, 9.0, False)],
)
def test_what_is_slow(factor, known, latency, slow):
    rule, _ = ejection(latencies=[0.010] * known, slow_factor=factor)
    assert rule.is_slow(latency) is slow
