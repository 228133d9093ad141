"""A protection's standing: what puts it in use, what takes it out, and what an operator is told."""

import random

import pytest

from ts_parity.engine.trust import (
    CONTRADICTIONS,
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_TRIAL,
    QUIET_S,
    TRIAL,
    TRIAL_WHERE_QUIET,
    UNDECIDED,
    Finding,
    Repeats,
    Standing,
    Trust,
    allowed_agreement,
    unlikely,
)

AGREED, DIFFERED, UNKNOWN, FAILED = Finding


def told(trust, *findings, at=0.0):
    for finding in findings:
        trust.compared(finding, "why", at)
    return trust


def exact():
    trust = Trust("exact", True)
    trust.restart(0.0)
    return trust


def student(agreement=0.95):
    trust = Trust("student", False, agreement)
    trust.restart(0.0)
    return trust


def test_a_protection_begins_on_trial_and_is_in_use_after_enough_agreements():
    trust = told(exact(), *[AGREED] * (TRIAL - 1))
    assert (trust.standing, trust.in_use) == (Standing.ON_TRIAL, False)
    assert told(trust, AGREED).in_use


def test_one_difference_takes_a_lossless_protection_out_on_trial_and_in_use():
    assert told(exact(), AGREED, DIFFERED).standing is Standing.OUT
    trust = told(exact(), *[AGREED] * 36, DIFFERED)
    assert trust.standing is Standing.OUT
    assert "1 of 37 rebuilt answers differed from the deployed model's own" in trust.reason
    assert trust.snapshot() | {"reason": ""} == {
        "state": "out", "agreed": 36, "differed": 1, "unknown": 0, "failed": 0, "reason": "",
    }  # fmt: skip


def test_a_student_may_differ_as_its_report_says_and_not_clearly_more():
    findings = [AGREED] * 19 + [DIFFERED]
    trust = told(student(0.95), *findings * 40)
    assert trust.in_use
    assert trust.snapshot()["differed"] == 40
    assert told(student(0.95), DIFFERED, DIFFERED, DIFFERED).standing is Standing.OUT
    trust = told(student(0.95), *[AGREED] * 30, *[DIFFERED] * 20)
    assert trust.standing is Standing.OUT, "it drifts"


def test_a_student_as_good_as_its_report_is_practically_never_taken_out():
    dice = random.Random(1)
    for _ in range(50):
        trust = student(0.9)
        for _ in range(1000):
            told(trust, AGREED if dice.random() < 0.9 else DIFFERED)
        assert trust.in_use


def test_a_trial_that_stays_undecided_ends():
    trust = student(0.95)  # 0.86 of the answers agree: below what is allowed, but not so that chance is excluded soon
    for number in range(UNDECIDED):
        told(trust, DIFFERED if number % 7 == 6 else AGREED)
        assert not trust.in_use or number < 25
    assert trust.standing is Standing.OUT


def test_where_the_report_is_silent_the_trial_says_what_is_expected():
    assert told(student(None), *[DIFFERED] * 10).standing is Standing.OUT
    trust = told(student(None), *[AGREED] * 40)
    assert trust.in_use
    assert told(trust, *[DIFFERED] * 12).standing is Standing.OUT


def test_a_quiet_model_needs_few_comparisons_after_a_minute():
    trust = told(exact(), *[AGREED] * TRIAL_WHERE_QUIET, at=QUIET_S / 2)
    assert trust.on_trial
    assert told(trust, AGREED, at=QUIET_S).in_use


def test_who_was_out_is_tried_again_later_and_for_longer():
    trust = told(exact(), DIFFERED)
    trust.try_again_if_due(FIRST_PAUSE_S - 1)
    assert trust.standing is Standing.OUT
    trust.try_again_if_due(FIRST_PAUSE_S)
    assert trust.on_trial
    told(trust, *[AGREED] * TRIAL, at=1000.0)
    assert trust.on_trial
    assert told(trust, *[AGREED] * TRIAL, at=1000.0).in_use


def test_pauses_and_trials_have_a_longest():
    trust, now = exact(), 0.0
    for _ in range(20):
        told(trust, DIFFERED, at=now)
        now = trust.until
        trust.try_again_if_due(now)
    assert told(trust, *[AGREED] * LONGEST_TRIAL, at=now).in_use


def test_workers_started_anew_begin_from_nothing():
    trust = told(exact(), *[AGREED] * TRIAL)
    trust.restart(5.0)
    assert trust.on_trial
    assert trust.snapshot()["agreed"] == 0
    trust = told(exact(), DIFFERED)
    trust.restart(5.0)
    assert told(trust, *[AGREED] * TRIAL, at=5.0).in_use


@pytest.mark.parametrize("in_use", [False, True])
def test_a_protection_whose_groups_all_fail_is_out(in_use):
    trust = told(exact(), *[AGREED] * (TRIAL if in_use else 0))
    for _ in range(FAILURES):
        assert trust.standing is not Standing.OUT
        trust.failed("refused with 400: no", 0.0)
    assert trust.standing is Standing.OUT
    assert "10 of 10 groups in a row brought nothing; the last: refused with 400: no" in trust.reason


def test_failures_among_successes_take_nobody_out():
    trust = told(exact(), *[AGREED] * TRIAL)
    for _ in range(100):
        trust.failed("busy", 0.0)
        trust.arrived()
    assert trust.in_use


def test_another_promise_is_proved_anew():
    """A lower one also brings back who was out, without waiting for the end of its pause."""
    trust = told(student(0.95), *[AGREED] * TRIAL)
    assert not trust.promise(0.95, 1.0)
    assert trust.in_use
    assert trust.promise(0.6, 1.0)
    assert (trust.standing, trust.since, trust.expected) == (Standing.ON_TRIAL, 1.0, 0.6)
    told(trust, *[AGREED, DIFFERED] * 2, *[AGREED] * TRIAL, at=1.0)
    assert trust.in_use
    assert trust.promise(1.0, 2.0)
    assert told(trust, *[DIFFERED] * 2, at=2.0).standing is Standing.OUT
    assert trust.promise(None, 3.0)
    assert trust.on_trial


def test_answers_that_cannot_be_compared_are_said_and_not_run_for_ever():
    trust = told(student(), *[UNKNOWN] * 5)
    assert trust.on_trial
    assert "5 could not be compared: why" in str(trust.snapshot()["reason"])
    assert told(trust, *[UNKNOWN] * UNDECIDED).standing is Standing.OUT


def test_a_proved_one_is_in_use_whatever_comes():
    trust = Trust("exact", True, proved=True)
    trust.restart(1.0)
    for _ in range(FAILURES):
        trust.failed("no", 0.0)
    assert trust.in_use


def test_copies_that_differ_twice_show_a_fleet_that_contradicts_itself():
    repeats = Repeats()
    assert CONTRADICTIONS == 2
    told(repeats, *[AGREED] * 10, DIFFERED)
    assert not repeats.contradict(0.0)
    told(repeats, UNKNOWN, DIFFERED)
    assert repeats.contradict(0.0)
    assert "2 of 12 second copies were answered differently from their originals" in repeats.reason
    assert repeats.contradict(299.0)
    assert not repeats.contradict(300.0)


def test_a_rare_tie_among_many_copies_is_no_contradiction():
    repeats = Repeats()
    for _ in range(20):
        told(repeats, *[AGREED] * 400, DIFFERED)
    assert not repeats.contradict(0.0)


def test_the_bounds():
    assert allowed_agreement(1.0) == pytest.approx(0.98)
    assert allowed_agreement(0.2) == 0.0
    assert not unlikely(9, 10, 0.9)
    assert unlikely(2, 10, 0.9)
    assert unlikely(0, 10, 1.0)
    assert not unlikely(0, 10, 0.0)
