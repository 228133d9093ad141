"""Retries: whether what failed is sent again, and at what price; the rule alone, and at work in virtual time."""

import math

import pytest

from tests.engine.races import NEVER
from ts_parity.engine import (
    Arrived,
    Cause,
    Endpoint,
    Fail,
    Failed,
    Fleet,
    Instance,
    Pool,
    Query,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.retries import LONGEST_REST_S, Retries, Retry
from ts_parity.testing import scenario


def query(attempts=1, kills=0, last_chance=False, in_flight=0):
    made = Query(0, "m", deadline_at=10.0)
    made.attempts, made.kills, made.last_chance, made.in_flight = attempts, kills, last_chance, in_flight
    return made


@pytest.mark.parametrize(
    ("cause", "verdict"),
    [
        (Cause.ERROR, Retry.OWES),
        (Cause.UNREACHABLE, Retry.FREE),
        (Cause.GONE, Retry.FREE),
        (Cause.LOST, Retry.FREE),
        (Cause.LOST_BEHIND, Retry.FREE),
        (Cause.MISSING, Retry.OWES),
        (Cause.WORKER_DIED, Retry.FREE),
    ],
)
def test_what_fails_with_its_instance_costs_nothing(cause, verdict):
    assert Retries(plain()).judge(query(), Failed("x", cause=cause), True, False) is verdict


def test_a_connection_that_breaks_is_forgiven_once():
    rule, made = Retries(plain()), query()
    lost = Failed("closed", cause=Cause.LOST)
    assert [rule.judge(made, lost, True, False) for _ in range(2)] == [Retry.FREE, Retry.OWES]
    assert made.excused == 1


@pytest.mark.parametrize(
    ("cause", "repeatable", "verdict"),
    [
        (Cause.ERROR, False, Retry.NO),
        (Cause.LOST, False, Retry.NO),
        (Cause.UNREACHABLE, False, Retry.FREE),
        (Cause.MISSING, False, Retry.OWES),
    ],
)
def test_what_must_not_run_twice_is_tried_again_only_where_nothing_ran(cause, repeatable, verdict):
    assert Retries(plain()).judge(query(), Failed("x", cause=cause), repeatable, False) is verdict


def test_who_refuses_for_good_is_not_asked_elsewhere():
    assert Retries(plain()).judge(query(), Failed("refused", retry=False), True, False) is Retry.NO


@pytest.mark.parametrize(("attempts", "verdict"), [(2, Retry.OWES), (3, Retry.NO)])
def test_attempts_end(attempts, verdict):
    assert Retries(plain(max_attempts=3)).judge(query(attempts), Failed("x"), True, False) is verdict


def test_one_attempt_means_one():
    rule = Retries(plain(max_attempts=1))
    assert rule.judge(query(), Failed("x", cause=Cause.GONE), True, False) is Retry.NO
    assert rule.judge(query(), Failed("x", cause=Cause.UNREACHABLE), True, False) is Retry.FREE


@pytest.mark.parametrize(
    ("kills", "last_chance", "in_flight", "verdict"),
    [(1, False, 0, Retry.FREE), (1, False, 1, Retry.LATER), (1, True, 0, Retry.NO), (2, False, 0, Retry.NO)],
)
def test_what_may_kill_workers_runs_once_more_and_not_while_others_have_it(kills, last_chance, in_flight, verdict):
    died = Failed("killed", cause=Cause.WORKER_DIED)
    assert Retries(plain()).judge(query(1, kills, last_chance, in_flight), died, True, False) is verdict


def test_without_a_token_it_waits_for_one_if_that_helps():
    rule = Retries(plain(retry_ratio=0.1, retry_burst=1.0))
    assert rule.pay(query(), 0, True, 0.0) is Retry.PAID
    made = query()
    assert rule.pay(made, 0, True, 0.0) is Retry.OWES
    assert made.owes
    assert rule.pay(query(), 0, False, 0.0) is Retry.NO
    assert rule.pay(query(), 20, True, 0.0) is Retry.NO, "its deadline comes first"


def test_it_is_choosy_for_as_long_as_makes_a_query_late_and_for_half_its_time_at_most():
    rule = Retries(plain())
    assert rule.choosy_until(query(), 0.5, 1.0) == 1.5
    assert rule.choosy_until(query(), 60.0, 1.0) == 5.5


@pytest.mark.parametrize(
    ("now", "elsewhere", "policy", "choosy"),
    [
        (0.9, True, {}, True),
        (0.9, False, {}, False),
        (1.0, True, {}, False),
        (0.9, True, {"balance": "round_robin"}, False),
    ],
)
def test_who_is_choosy(now, elsewhere, policy, choosy):
    made = query()
    made.choosy_until = 1.0
    assert Retries(plain(**policy)).is_choosy(made, elsewhere, now) is choosy
    made.rests_until = 2.0
    assert Retries(plain(**policy)).is_choosy(made, elsewhere, now)


def test_where_nobody_is_there_it_rests_longer_each_time_and_not_for_ever():
    rule, made = Retries(plain(max_wait_s=10.0, reject_pause_s=0.05)), query()
    assert rule.rest_until(made, 0.0, 1.0) == pytest.approx(1.05)
    made.excused = 3
    assert rule.rest_until(made, 0.0, 1.0) == pytest.approx(1.4)
    made.excused = 30
    assert rule.rest_until(made, 0.0, 1.0) == 1.0 + LONGEST_REST_S
    assert rule.rest_until(made, 0.0, 10.1) == math.inf


# ---- in the engine --------------------------------------------------------------------------------------------------


def test_a_failed_task_is_tried_elsewhere():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, 0.005, "fail")])
    assert run.sends(0) == [(0.0, "d0"), (0.005, "d1")]
    assert run.answers == {0: ("deployed", 0.015)}


def test_who_fails_fast_does_not_get_all_attempts_while_the_other_is_busy():
    """d1 refuses at once, so it always has a place; d0 is healthy and works on the query before."""
    run = scenario(arrivals=[0.0, 0.001], code=None, deployed=2, tasks=[(1, 0.001, "fail")])
    assert run.sends(1) == [(0.001, "d1"), (0.010, "d0")]
    assert run.answers[1] == ("deployed", 0.020)
    assert run.nothing_left_over()


def test_who_waits_for_the_other_holds_up_nobody():
    run = scenario(
        arrivals=[0.0, 0.001, 0.001, 0.005], code=None, deployed=2, tasks=[(0, 0.030, "ok"), (1, 0.001, "fail")]
    )
    assert run.sends(1) == [(0.001, "d1"), (0.030, "d0")]
    assert run.sends(2) == [(0.002, "d1")], "it came after, and waited already when the first became choosy"
    assert run.sends(3) == [(0.012, "d1")]
    assert set(run.answers) == {0, 1, 2, 3}


def test_who_comes_while_another_is_choosy_is_served_at_once():
    run = scenario(arrivals=[0.0, 0.001, 0.005], code=None, deployed=2, tasks=[(0, 0.030, "ok"), (1, 0.001, "fail")])
    assert run.sends(2) == [(0.005, "d1")]


def test_nobody_waits_for_a_frozen_instance_longer_than_for_a_late_answer():
    """d0 is frozen. d1 has failed one query, and serves others since."""
    run = scenario(arrivals=[0.0, 0.001], code=None, deployed=2, tasks=[(0, NEVER, "never"), (1, 0.001, "fail")])
    assert run.sends(1) == [(0.001, "d1"), (0.052, "d1")]
    assert run.answers[1] == ("deployed", 0.062)


def test_who_was_merely_full_is_still_worth_waiting_for():
    run = scenario(arrivals=[0.0], code=None, deployed=2, tasks=[(0, 0.001, "reject"), (0, 0.001, "fail")])
    assert run.sends(0) == [(0.0, "d0"), (0.001, "d1"), (0.051, "d0")]
    assert run.answers == {0: ("deployed", 0.061)}


def test_where_there_is_another_failure_domain_it_waits_for_that():
    """Three instances of one machine that has died would have all attempts."""
    tasks = [(0, 0.001, "ok"), (1, 0.001, "ok"), (2, 0.001, "ok"), (3, 0.030, "ok"), (4, 0.001, "fail")]
    run = scenario(arrivals=[0.0] * 4 + [0.002], code=None, domains=["a", "a", "a", "b"], tasks=tasks)
    assert run.sends(4) == [(0.002, "d0"), (0.030, "d3")]


def test_where_there_is_one_failure_domain_any_other_place_will_do():
    """d1 is doubted, for it has failed before, and d2 is busy: d1 is asked at once."""
    tasks = [(0, 0.001, "ok"), (1, 0.001, "fail"), (2, 0.050, "ok"), (3, 0.001, "fail")]
    run = scenario(arrivals=[0.0] * 3 + [0.012], code=None, deployed=3, domains=["a"] * 3, tasks=tasks)
    assert run.sends(1) == [(0.0, "d1"), (0.001, "d0")]
    assert run.sends(3) == [(0.012, "d0"), (0.013, "d1")]


def test_it_goes_on_waiting_when_the_first_instance_elsewhere_is_full():
    tasks = [(0, 0.005, "ok"), (1, 0.03, "ok"), (2, 0.001, "fail"), (3, 0.001, "ok"), ("retry 2", 0.001, "reject")]
    run = scenario(arrivals=[0.0, 0.0, 0.0005, 0.003], code=None, deployed=3, tasks=tasks)
    assert run.sends(2) == [(0.0005, "d2"), (0.005, "d0"), (0.03, "d1")]


def test_half_of_the_time_that_is_left_is_kept_for_another_attempt():
    run = scenario(
        arrivals=[0.0, 0.001],
        code=None,
        deployed=2,
        tasks=[(0, NEVER, "never"), (1, 0.001, "fail")],
        deadlines={1: 0.030},
    )
    assert run.sends(1) == [(0.001, "d1"), (0.016, "d1")]
    assert run.answers[1] == ("deployed", 0.026)


def test_what_waits_for_another_instance_lets_nobody_pass_in_another_pool():
    """Both pools share two capped instances. x1 failed on the second, which y0 asked for before x3 did."""
    instances = (Instance("a", 1, "a", capped=True), Instance("b", 1, "b", capped=True))
    endpoints = tuple(Endpoint(f"{i}/{p}", i, p, None, 1) for p in "xy" for i in "ab")
    scheduler = Scheduler(Fleet(instances, endpoints, (Pool("x", None, True), Pool("y", None, True))), plain())
    sent = {}

    def obey(actions):
        sent.update((action.task.query.id, action.task) for action in actions if isinstance(action, Send))

    for number, pool, at in ((0, "x", 0.0), (1, "x", 0.001)):
        obey(scheduler.query_arrived(Query(number, pool), at))
    assert [sent[n].endpoint.instance for n in (0, 1)] == ["a", "b"]
    obey(scheduler.task_done(sent.pop(1), Failed("worker died"), 0.002))
    for number, pool, at in ((2, "x", 0.003), (3, "y", 0.004), (4, "x", 0.005)):
        obey(scheduler.query_arrived(Query(number, pool), at))
    assert set(sent) == {0, 2}
    obey(scheduler.task_done(sent[2], Arrived(), 0.013))
    assert set(sent) == {0, 2, 3}
    obey(scheduler.task_done(sent[0], Arrived(), 0.014))
    assert sent[1].endpoint.instance == "a"


def test_nobody_waits_for_an_instance_that_is_out():
    policy = {"failures_until_out": 2, "out_s": 10.0}
    tasks = [(i, 0.001, "fail") for i in range(3)]
    run = scenario(arrivals=[0.0, 0.002, 0.1], code=None, deployed=2, tasks=tasks, policy=policy)
    assert run.sends(1) == [(0.002, "d0"), (0.011, "d1")], "which takes d0 out"
    assert run.sends(2) == [(0.1, "d1"), (0.101, "d1")]


def test_retries_end_with_the_attempts():
    tasks = [(0, 0.001, "fail"), ("retry 0", 0.001, "fail"), ("retry 0", 0.001, "fail")]
    run = scenario(arrivals=[0.0], code=None, tasks=tasks)
    assert run.failures == {0: ("failed", 0.003)}


def test_retries_end_with_the_budget():
    run = scenario(
        arrivals=[0.0, 0.1, 0.2],
        code=None,
        tasks=[(i, 0.001, "fail") for i in range(3)],
        policy={"retry_burst": 1.0, "retry_ratio": 1e-9, "deadline_s": 0.5},
    )
    assert set(run.answers) == {0}
    assert {reason for reason, _ in run.failures.values()} == {"failed"}


def test_a_ratio_of_nothing_means_no_retry():
    """But what an instance takes with it goes elsewhere all the same."""
    tasks = [(0, 0.001, "fail"), (1, 0.001, "lost")]
    run = scenario(arrivals=[0.0, 0.1], code=None, tasks=tasks, policy={"retry_ratio": 0.0})
    assert run.failures == {0: ("failed", 0.001)}
    assert (set(run.answers), run.scheduler.sent["retry"]) == ({1}, 0)


@pytest.mark.parametrize("places", [1, 4])
def test_what_everybody_rejects_keeps_nobody_else_waiting(places):
    """Its client may have had its share. The fleet is a third busy."""
    arrivals = [0.0, *(0.01 * n for n in range(1, 100))]
    rows, policy = [(0, 0.003, "reject")] * 200, {"deadline_s": 3.0, "max_wait_s": 2.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, places=places, tasks=rows, policy=policy)
    assert run.failures == {0: ("failed", pytest.approx(2.0))}, "and its answer is the rejection"
    assert next(action for action in run.actions if isinstance(action, Fail)).task is not None
    assert [at for at, _ in run.sends(0)] == pytest.approx(
        [0.0, 0.003, 0.006, 0.059, 0.162, 0.365, 0.768, 1.571], abs=0.02
    )
    late = [n for n in range(1, 100) if run.answers[n][1] > arrivals[n] + 0.02]
    assert len(late) <= 8


def test_what_rests_keeps_no_late_query_from_its_copy():
    rows = [(0, 0.001, "reject")] * 200 + [(1, 0.9, "ok")]
    copies = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.03}
    run = scenario(arrivals=[0.0, 0.2], code=None, deployed=3, tasks=rows, policy=copies)
    assert run.answers == {1: ("hedged", pytest.approx(0.24))}


def test_what_everybody_rejects_is_answered_when_one_takes_it():
    run = scenario(arrivals=[0.0], code=None, deployed=2, tasks=[(0, 0.001, "reject")] * 3)
    assert run.answers == {0: ("deployed", pytest.approx(0.163))}
    assert run.nothing_left_over()


def test_a_rejection_costs_no_budget_and_goes_elsewhere():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, 0.001, "reject")], policy={"retry_burst": 0.0})
    assert run.sends(0) == [(0.0, "d0"), (0.001, "d1")]
    assert run.answers == {0: ("deployed", 0.011)}


def test_a_query_nothing_can_save_fails_at_once():
    run = scenario(arrivals=[0.0], tasks=[(0, 0.030, "fatal"), ("parity 0", 0.001, "fail")])
    assert run.failures == {0: ("failed", 0.030)}


def test_a_second_attempt_goes_to_another_failure_domain():
    run = scenario(
        arrivals=[0.0], code=None, deployed=3, domains=["a", "a", "b"], tasks=[(0, 0.001, "fail")], policy={}
    )
    assert [endpoint for _, _, endpoint in run.sent] == ["d0", "d2"]
    assert run.answers == {0: ("deployed", 0.011)}
