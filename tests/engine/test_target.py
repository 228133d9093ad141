"""Target: within what time queries should be answered; the rule alone, and at work in virtual time."""

import math

import pytest

from tests.engine.races import NEVER, late
from ts_parity.engine import plain
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.target import IN_TIME, PAYABLE, LatencyTarget


def window(*latencies):
    made = LatencyWindow()
    for latency in latencies:
        made.add(latency)
    return made


def spread():
    """From 0.5 to 1.5 s, evenly."""
    return window(*(0.5 + 0.001 * (n * 619 % 1000) for n in range(1000)))


def target(target_s=2.0, cost=0.25, extra_work=0.05, usual=None, backups=None):
    rule = LatencyTarget(
        plain(target_s=target_s, extra_work=extra_work), usual or spread(), backups or window(*[0.3] * 100)
    )
    rule.adopt(cost)
    return rule


# ---- alone ---------------------------------------------------------------------------------------------------------


def test_without_a_target_the_general_rule_decides():
    assert target(None).launch_by(0.0, 0.0, 1.0) == math.inf
    assert target(None).release_by(0.0) == math.inf


def test_a_backup_is_launched_in_time_for_the_target_of_its_query():
    """Which counts from when it came, not from when it was sent."""
    for arrived, sent in ((0.0, 0.0), (5.0, 5.0), (5.0, 5.2)):
        assert target(2.0).launch_by(arrived, sent, 1.0) == pytest.approx(arrived + IN_TIME * 2.0 - 0.3)
    assert target(2.0).release_by(5.0) == pytest.approx(5.0 + IN_TIME * 2.0)


@pytest.mark.parametrize(
    ("cost", "extra_work", "quantile"),
    [(0.25, 0.05, 1 - PAYABLE * 0.2), (1.0, 0.05, 1 - PAYABLE * 0.05), (0.25, 0.0, 0.999), (0.01, 0.05, 0.01)],
)
def test_never_earlier_than_the_budget_could_pay_for(cost, extra_work, quantile):
    rule, latency = target(0.1, cost, extra_work), spread()
    assert rule.launch_by(0.0, 7.0, 1.0) == pytest.approx(7.0 + latency.quantile(quantile), abs=0.005)


def test_what_costs_nothing_may_be_launched_at_once():
    assert target(0.1, cost=0.0).launch_by(0.0, 0.0, 1.0) == pytest.approx(spread().quantile(0.01))


def test_a_big_body_and_its_backup_take_longer():
    assert target(9.0).launch_by(0.0, 0.0, 4.0) == pytest.approx(IN_TIME * 9.0 - 4 * 0.3)
    assert target(0.1).launch_by(0.0, 0.0, 4.0) == pytest.approx(4 * target(0.1).launch_by(0.0, 0.0, 1.0))


def test_until_latencies_are_known_nothing_is_launched_for_it():
    assert target(usual=window(1.0)).launch_by(0.0, 0.0, 1.0) == math.inf
    assert target(backups=window(0.3)).launch_by(0.0, 0.0, 1.0) == math.inf


# ---- in the engine --------------------------------------------------------------------------------------------------


def frozen(target_s, **policy):
    """Thirty queries of 10 ms, of which five are late and get backups of 10 ms; then one whose instance is frozen."""
    tasks = [*((number, 0.060, "ok") for number in range(0, 30, 6)), (30, NEVER, "never")]
    policy = {"target_s": target_s, "launch_after_s": 0.05, "reconstruct_after_s": 0.05, "extra_work": 1.0, **policy}
    return late(arrivals=[0.1 * number for number in range(31)], deployed=4, tasks=tasks, policy=policy)


def launches(run):
    return [at for at, what, _ in run.sent if what.startswith("parity")]


def test_a_query_is_answered_within_the_target_by_a_backup_launched_for_it():
    run, by = frozen(0.030), 3.0 + IN_TIME * 0.030
    assert 3.010 <= launches(run)[-1] <= by - 0.010
    assert run.answers[30] == ("reconstructed", pytest.approx(by))
    assert run.answers[29] == ("deployed", pytest.approx(2.910)), "and what answers in time is left alone"
    assert run.nothing_left_over()


@pytest.mark.parametrize("target_s", [None, 0.2])
def test_a_target_that_is_farther_than_the_general_rule_changes_nothing(target_s):
    run = frozen(target_s)
    assert launches(run)[-1] == pytest.approx(3.050)
    assert run.answers[30] == ("reconstructed", pytest.approx(3.060))


def test_a_doubtful_answer_is_not_given_for_the_target():
    assert frozen(0.030, differing=0.0).answers.get(30, ("none",))[0] != "reconstructed"
