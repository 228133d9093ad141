"""Ejection: who may be taken out; the rule alone, and at work in virtual time."""

import pytest

from ts_parity.engine.ejection import Ejection
from ts_parity.engine.health import Condition
from ts_parity.engine.policy import LoadMeter
from ts_parity.testing import scenario

from .made import endpoints


def ejection(load=0.0, number=3):
    meter = LoadMeter()
    meter.value = load
    rule = Ejection(meter)
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


# ---- in the engine --------------------------------------------------------------------------------------------------

SLOW = {"learn_speed": True, "out_s": 1.0, "deadline_s": 100.0}


def test_an_endpoint_that_answers_far_too_slowly_is_taken_out_and_tried_again():
    """Of three, d0 becomes five times slower; the third slow answer is the trial, and it stays out for longer."""
    arrivals = [n * 0.02 for n in range(200)]
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=SLOW, slow={"d0": (1.0, 0.05)})
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


@pytest.mark.parametrize("slower", [0.02, 0.05])
def test_where_service_times_hardly_vary_two_answers_are_enough(slower):
    """After the first it is used for want of others, or a second later."""
    arrivals = [*(n * 0.02 for n in range(70)), *([1.5] * 3), *(1.6 + slower + n * 0.02 for n in range(50))]
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=SLOW, slow={"d0": (1.0, slower)})
    assert [change.endpoint for change in run.scheduler.changes][:1] == ["d0"]
    assert len([at for at, _, endpoint in run.sent if endpoint == "d0" and 1.0 <= at < 2.4]) == 2


def test_two_of_three_may_be_out_for_their_slowness():
    """As two failure domains of three may be. The last one serves, and they help where that is sooner."""
    arrivals = [n * 0.01 for n in range(400)]
    slow = {"d0": (1.0, 0.05), "d1": (1.0, 0.05)}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy={**SLOW, "out_s": 50.0}, slow=slow)
    assert {change.endpoint for change in run.scheduler.changes} == {"d0", "d1"}
    assert len(run.answers) == 400


def test_a_slow_endpoint_helps_where_the_others_cannot_bear_the_load():
    """Two machines, one five times slower, as many queries as both can do: it is needed."""
    arrivals = [n * 0.009 for n in range(600)]
    run = scenario(arrivals=arrivals, code=None, deployed=2, policy=SLOW, slow={"d0": (2.0, 0.05)})
    assert sum(endpoint == "d0" for at, _, endpoint in run.sent if at > 2.5) > 10
    assert len(run.answers) == 600


def test_when_everything_is_slower_nobody_is_slow():
    """A new version, say: what was learnt about each endpoint is forgotten."""
    arrivals = [n * 0.02 for n in range(600)]
    slow = {f"d{n}": (4.0, 0.03) for n in range(6)}
    run = scenario(arrivals=arrivals, code=None, deployed=6, policy={**SLOW, "out_s": 50.0}, slow=slow)
    assert not run.scheduler.changes
    assert len(run.answers) == 600


def test_a_slow_endpoint_that_is_out_helps_when_many_wait():
    """It is taken out in quiet times; then a crowd comes, and it takes its share before its time out is over."""
    arrivals = [*(n * 0.04 for n in range(60)), *([2.45] * 40)]
    policy = {**SLOW, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert [change.endpoint for change in run.scheduler.changes] == ["d0"]
    quiet = [at for at, _, endpoint in run.sent if endpoint == "d0" and 1.7 < at < 2.4]
    crowded = [at for at, _, endpoint in run.sent if endpoint == "d0" and at >= 2.45]
    assert quiet == []
    assert crowded
    assert len(run.answers) == 100
