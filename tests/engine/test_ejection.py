"""Ejection: who may be taken out; the rule alone, and at work in virtual time."""

import pytest

from ts_parity.engine import (
    plain,
)
from ts_parity.engine.ejection import Ejection
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.policy import LoadMeter
from ts_parity.testing import scenario

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
def test_which_errors_may_eject(load, share, suspects, may):
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
def test_which_slowness_may_eject(number, out, load, may):
    rule, everyone = ejection(load, number, max_out=0.34)
    for place in everyone[:out]:
        place.health.condition = Condition.OUT
        place.peers.count(Condition.IN, Condition.OUT)
    assert rule.may_eject() is may


@pytest.mark.parametrize(
    ("factor", "known", "latency", "slow"),
    [(3.0, 20, 0.031, True), (3.0, 20, 0.030, False), (3.0, 0, 9.0, False), (0.0, 20, 9.0, False)],
)
def test_what_is_slow(factor, known, latency, slow):
    rule, _ = ejection(latencies=[0.010] * known, slow_factor=factor)
    assert rule.is_slow(latency) is slow


# ---- in the engine --------------------------------------------------------------------------------------------------

SLOW = {"slow_factor": 3.0, "slow_until_out": 2, "out_s": 1.0, "deadline_s": 100.0}


def test_an_endpoint_that_answers_far_too_slowly_is_taken_out_and_tried_again():
    """Of three, d0 becomes five times slower; the third slow answer is the trial, and it stays out for longer."""
    arrivals = [n * 0.02 for n in range(200)]
    policy = {**SLOW, "max_out": 0.34}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    on_d0 = [at for at, what, endpoint in run.sent if endpoint == "d0" and at >= 1.0]
    assert len(on_d0) <= 4
    assert any(at > 2.0 for at in on_d0), "a single trial brings it back or keeps it out"
    assert len(run.answers) == 200


def test_an_endpoint_that_is_out_is_tried_with_second_copies():
    """No query waits for what it does: with a budget for copies, after two slow answers none is late any more."""
    arrivals = [n * 0.02 for n in range(200)]
    policy = {**SLOW, "copies": True, "extra_work": 0.1, "hedge_after_s": 10.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    tried = [at for at, what, endpoint in run.sent if endpoint == "d0" and at > 2.5]
    assert tried
    assert all(what.startswith("hedge") for at, what, endpoint in run.sent if endpoint == "d0" and at > 2.5)
    late_ones = [number for number, (_, at) in run.answers.items() if at - arrivals[number] > 0.02 and at > 2.5]
    assert late_ones == []


@pytest.mark.parametrize(("burst", "probes"), [(2.0, 1), (1.0, 0)])
def test_probes_leave_half_of_the_budget_to_late_queries(burst, probes):
    policy = {**SLOW, "copies": True, "extra_work": 1e-9, "work_burst": burst, "hedge_after_s": 10.0, "out_s": 0.1}
    arrivals = [n * 0.02 for n in range(200)]
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert sum(what.startswith("hedge") for _, what, _ in run.sent) == probes


def test_never_more_than_the_allowed_share_is_out():
    """Of five, two become slow at once; the others could bear the load without both."""
    arrivals = [n * 0.01 for n in range(400)]
    slow = {"d0": (1.0, 0.05), "d1": (1.0, 0.05)}
    policy = {**SLOW, "slow_until_out": 1, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=5, policy={**policy, "max_out": 0.4}, slow=slow)
    assert {change.endpoint for change in run.scheduler.changes} == {"d0", "d1"}
    run = scenario(arrivals=arrivals, code=None, deployed=5, policy={**policy, "max_out": 0.34}, slow=slow)
    assert len(run.scheduler.changes) == 1
    assert len(run.answers) == 400


def test_a_slow_endpoint_stays_where_the_others_could_not_bear_the_load():
    """Two machines, one five times slower, as many queries as both can do: it is needed."""
    arrivals = [n * 0.009 for n in range(600)]
    policy = {**SLOW, "max_out": 0.5}
    run = scenario(arrivals=arrivals, code=None, deployed=2, policy=policy, slow={"d0": (2.0, 0.05)})
    assert not run.scheduler.changes
    assert sum(endpoint == "d0" for at, _, endpoint in run.sent if at > 2.5) > 10
    assert len(run.answers) == 600


def test_a_slow_endpoint_that_is_out_helps_when_many_wait():
    """It is taken out in quiet times; then a crowd comes, and it takes its share before its time out is over."""
    arrivals = [*(n * 0.04 for n in range(60)), *([2.45] * 40)]
    policy = {**SLOW, "slow_until_out": 1, "max_out": 0.5, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert [change.endpoint for change in run.scheduler.changes] == ["d0"]
    quiet = [at for at, _, endpoint in run.sent if endpoint == "d0" and 1.7 < at < 2.4]
    crowded = [at for at, _, endpoint in run.sent if endpoint == "d0" and at >= 2.45]
    assert quiet == []
    assert crowded
    assert len(run.answers) == 100
