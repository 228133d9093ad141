"""Hedging: when a second copy is made; the rule alone, and at work in virtual time."""

import math

import pytest

from tests.engine.races import HEDGE, NEVER, hedged, late
from ts_parity.engine import (
    Arrived,
    Query,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.hedging import Hedging
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.testing import POOL, fleet, scenario


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


# ---- in the engine --------------------------------------------------------------------------------------------------

LATE_AND_HEDGED = {"code": "student", "k": 1, "deployed": 3, "protections": 1, "shared": False}


@pytest.mark.parametrize("outcome", ["fail", "fatal", "reject"])
def test_a_copy_that_fails_while_its_query_waits_to_be_tried_again_is_simply_gone(outcome):
    run = hedged(
        arrivals=[0.0, 0.035],
        tasks=[(0, 0.040, "fail"), ("hedge 0", 0.020, outcome), (1, 0.030, "ok")],
        deployed=3,
    )
    assert run.sends("hedge 0") == [(0.030, "d1")]
    assert [at for at, _ in run.sends(0)] == [0.0, 0.065]
    assert run.answers == {0: ("deployed", 0.075), 1: ("deployed", 0.065)}
    assert run.nothing_left_over()


def test_a_query_that_ends_while_it_waits_to_be_tried_again_ends_once():
    run = hedged(
        arrivals=[0.0, 0.035],
        tasks=[(0, 0.040, "fail"), ("hedge 0", 0.020, "fail"), (1, 0.100, "ok")],
        deadlines={0: 0.060},
        deployed=3,
    )
    assert run.failures == {0: ("deadline", 0.060)}
    assert len(run.sends(0)) == 2, "half of the time that was left was kept for an attempt anywhere"
    assert run.nothing_left_over()


@pytest.mark.parametrize("outcome", ["fail", "reject"])
def test_a_copy_that_fails_while_a_backup_runs_instead_of_the_query_does_not_start_it_again(outcome):
    run = late(
        arrivals=[0.0],
        **LATE_AND_HEDGED,
        policy={**HEDGE, "launch_after_s": 0.9, "max_attempts": 2, "retry_ratio": 1e-9, "retry_burst": 2.0},
        tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, outcome), ("parity 0", 0.015, "fail"), ("retry 0", 0.015, "fail")],
    )
    assert run.sends("parity 0") == [(0.04, "p0.0")]
    assert len(run.sends(0)) == 2
    assert run.failures == {0: ("failed", 0.07)}


def test_a_copy_that_is_rejected_gives_no_attempt_beyond_the_budget():
    run = hedged(
        arrivals=[0.0],
        deployed=3,
        policy={"max_attempts": 1},
        tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "reject")],
    )
    assert run.sends(0) == [(0.0, "d0")]
    assert run.failures == {0: ("failed", 0.05)}


def test_who_was_rejected_late_is_not_refused_while_its_copy_runs():
    run = hedged(
        arrivals=[0.0], deployed=2, policy={"max_wait_s": 0.05}, tasks=[(0, 0.06, "reject"), ("hedge 0", 0.04, "ok")]
    )
    assert run.answers == {0: ("hedged", 0.07)}


def test_no_copy_is_sent_while_a_retry_waits():
    run = hedged(arrivals=[0.0, 0.019], deployed=2, tasks=[(0, 0.2, "ok"), (1, 0.001, "fail"), ("hedge 0", 0.15, "ok")])
    assert run.sends(1) == [(0.019, "d1"), (0.07, "d1")]
    assert run.sends("hedge 0") == [(0.08, "d1")]


def test_a_retry_waits_for_its_copy_rather_than_ask_again_who_has_failed():
    run = hedged(arrivals=[0.0], deployed=2, tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "ok")])
    assert len(run.sends(0)) == 1
    assert run.answers == {0: ("hedged", 0.05)}
    run = hedged(arrivals=[0.0], deployed=2, tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "fail")])
    assert [at for at, _ in run.sends(0)] == [0.0, 0.05]


def test_a_second_copy_goes_to_another_domain_and_may_win():
    run = hedged(arrivals=[0.0], tasks=[(0, NEVER, "never")], deployed=3, domains=["a", "a", "b"])
    assert run.sends("hedge 0") == [(0.030, "d2")]
    assert run.answers == {0: ("hedged", 0.040)}
    assert run.nothing_left_over()


def test_without_a_token_the_query_itself_is_untouched():
    run = hedged(arrivals=[0.0, 0.0], tasks=[(0, NEVER, "never"), (1, 0.060, "ok")])
    assert len(run.sends("hedge 0")) == 1
    assert run.sends("hedge 1") == []
    assert run.answers[1] == ("deployed", 0.060)


def test_no_second_copy_on_a_busy_pool():
    """From 50 ms on d0 has a place, but is not idle."""
    tasks = [(0, 0.050, "ok"), (1, 0.060, "ok"), (2, 0.100, "ok"), (3, 0.100, "ok")]
    run = hedged(arrivals=[0.0] * 4, tasks=tasks, deployed=2, places=2)
    assert run.sends("hedge 0") == run.sends("hedge 1") == []
    assert run.answers[1] == ("deployed", 0.060)


@pytest.mark.parametrize("outcome", ["fail", "fatal", "reject"])
def test_a_copy_that_fails_does_not_fail_its_query(outcome):
    run = hedged(arrivals=[0.0], tasks=[(0, 0.070, "ok"), ("hedge 0", 0.005, outcome)])
    assert run.answers == {0: ("deployed", 0.070)}
    assert run.sends(0) == [(0.0, "d0")], "nor is it sent again"


def test_a_query_whose_own_task_fails_waits_for_its_copy():
    run = hedged(arrivals=[0.0], tasks=[(0, 0.035, "fatal"), ("hedge 0", 0.020, "ok")])
    assert run.answers == {0: ("hedged", 0.050)}


def test_a_copy_is_not_compared_with_a_stream_that_is_under_way():
    scheduler = Scheduler(
        fleet(deployed=3, code=None, proved=False), plain(copies=True, extra_work=1.0, hedge_after_s=0.05)
    )
    [own] = scheduler.query_arrived(Query(0, POOL, "same"), 0.0)
    [copy] = [action for action in scheduler.tick(0.05) if isinstance(action, Send)]
    scheduler.answer_started(own.task, 0.06)
    assert scheduler.task_done(copy.task, Arrived(), 0.07) == []


def test_a_second_copy_waits_until_the_backup_has_had_its_time():
    """Backups take 4 ms and are launched after 20: a copy goes out at 24, not at the usual quantile of 10 ms."""
    policy = {
        "copies": True,
        "extra_work": 1.0,
        "launch_after_s": 0.02,
        "reconstruct_after_s": 0.02,
        "deadline_s": 50.0,
    }
    lost = [(number, NEVER, "never") for number in range(30, 60)]
    backups = [*[("parity 0", 0.004, "ok")] * 29, ("parity 0", NEVER, "never")]
    run = late(
        arrivals=[0.1 * number for number in range(60)],
        tasks=[*lost, *backups],
        deployed=40,
        protections=40,
        policy=policy,
    )
    [(at, _)] = run.sends("hedge 59")
    assert at == pytest.approx(5.9 + 0.024, abs=1e-6)
    assert run.sends("hedge 58") == []


def test_a_second_copy_goes_to_an_idle_machine_or_to_none():
    """Three machines with two places: the query's own never answers; the second is busy, the third is as well."""
    policy = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.05}
    tasks = [(0, NEVER, "never"), (1, NEVER, "never"), (2, 0.2, "ok")]
    run = scenario(arrivals=[0.0, 0.0, 0.0], tasks=tasks, code=None, deployed=3, places=2, policy=policy)
    assert run.sends("hedge 0") == [(0.2, "d2")]


def test_second_copies_leave_a_fifth_of_the_budget_where_backups_are_launched():
    """They buy more for the same work."""
    policy = {**HEDGE, "extra_work": 1e-9, "work_burst": 1.2, "hedge_after_s": 0.01, "launch_after_s": 0.5}
    tasks = [(0, 0.1, "ok")]
    assert late(arrivals=[0.0], tasks=tasks, policy=policy).sends("hedge 0") == []
    assert [at for at, _ in hedged(arrivals=[0.0], deployed=2, tasks=tasks, policy=policy).sends("hedge 0")] == [0.01]
