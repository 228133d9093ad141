"""Retries alone: whether what failed is sent again, and at what price."""

import math

import pytest

from ts_parity.engine import Cause, Failed, Query, plain
from ts_parity.engine.retries import LONGEST_REST_S, Retries, Retry


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
