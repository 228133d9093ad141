"""Budgets alone: tokens that come with traffic and with time."""

import pytest

from ts_parity.engine import plain
from ts_parity.engine.budgets import TokenBucket, retry_budget, work_budget


def test_a_budget_that_grows_with_time_alone():
    bucket = TokenBucket(0.1, 2.0, 2.0)
    bucket.pass_time(100.0)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    assert bucket.wait_s(0) == pytest.approx(0.5)
    assert bucket.wait_s(2) == pytest.approx(1.5)
    bucket.pass_time(100.5)
    assert bucket.take()
    bucket.pass_time(200.0)
    assert bucket.tokens == 2.0


def test_a_budget_of_nothing_never_has_a_token():
    bucket = TokenBucket(1.0, 0.5, 0.5)
    bucket.pass_time(1e9)
    assert not bucket.take()
    assert bucket.wait_s(0) == float("inf")


def test_a_token_comes_with_so_many_queries():
    bucket = TokenBucket(0.25, 1.0)
    assert bucket.take()
    for _ in range(4):
        assert not bucket.take()
        bucket.deposit()
    assert bucket.take()


def test_retries_come_back_within_a_second_and_second_copies_with_traffic_only():
    retries, hedges = (
        retry_budget(plain(retry_burst=2.0)),
        work_budget(plain(copies=True, extra_work=0.1, work_burst=2.0)),
    )
    for budget in (retries, hedges):
        assert [budget.take() for _ in range(3)] == [True, True, False]
        budget.pass_time(1.0)
    assert (retries.take(), hedges.take()) == (True, False)


def test_what_is_kept_for_others_is_not_taken_and_what_is_owed_is_paid_first():
    bucket = TokenBucket(0.5, 2.0)
    assert not bucket.take(1.5, reserve=0.5)
    assert bucket.take(1.0, reserve=0.5)
    assert bucket.affords(1.0)
    bucket.spend(1.5)
    bucket.deposit()
    assert not bucket.affords(0.25)
    bucket.deposit()
    assert bucket.affords(0.5)


def test_a_ratio_of_nothing_is_no_budget():
    assert not work_budget(plain(extra_work=0.0)).take()
    empty = retry_budget(plain(retry_ratio=0.0, retry_burst=1.0))
    assert not empty.take()
    empty.pass_time(1e9)
    assert not empty.take()


def test_no_more_is_saved_up_than_the_burst():
    bucket = TokenBucket(0.5, 2.0)
    for _ in range(100):
        bucket.deposit()
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_a_budget_at_another_rate_keeps_its_tokens():
    budget = TokenBucket(0.1, 10.0)
    budget.spend(7.0)
    budget.adopt(TokenBucket(0.5, 10.0))
    assert budget.tokens == 3.0
    budget.deposit()
    assert budget.tokens == 3.5
    assert budget.spent == 7.0


def test_a_budget_that_is_switched_off_has_nothing_and_begins_full_when_it_is_on_again():
    budget = TokenBucket(0.1, 10.0)
    budget.adopt(TokenBucket(0.0, 0.0))
    assert not budget.take()
    budget.adopt(TokenBucket(0.1, 10.0))
    assert budget.tokens == 10.0
