"""Speed: which endpoints are slower than their pool; the rule alone, with dice that are fixed."""

import itertools
import random

import pytest

from ts_parity.engine import Arrived, Policy, Query, Scheduler, Send
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.speed import APART, CALM, DOUBT, SURE, Evidence, Speed
from ts_parity.testing import POOL, fleet

APART_ENOUGH = itertools.count(0.0, 10.0)
"""Instants at which answers come one by one."""


def usual(cv, dice):
    """A service time of mean about 1."""
    return dice.lognormvariate(0.0, cv)


def known(cv, seed=0, slow_share=0.0, unit=1.0):
    """What a pool knows after five hundred answers, some of them of machines that are twice as slow."""
    dice, window = random.Random(seed), LatencyWindow()
    for _ in range(500):
        window.add(usual(cv, dice) * (2.0 if dice.random() < slow_share else 1.0) / unit)
    evidence = Evidence(window)
    evidence.renew()
    return evidence


def answers_until(bound, evidence, slower, cv, seed):
    dice, speed = random.Random(seed), Speed()
    for number in range(1, 200):
        speed.answered(evidence, slower * usual(cv, dice), was_out=False, now=next(APART_ENOUGH))
        if speed.slow >= bound:
            return number
    return 200


@pytest.mark.parametrize(
    ("cv", "slower", "most"), [(0.1, 2.0, 3), (0.1, 5.0, 3), (0.5, 2.0, 12), (0.5, 5.0, 3), (1.0, 5.0, 8)]
)
def test_how_many_answers_it_takes(cv, slower, most):
    """The median of forty endpoints. Twice as slow is noticed within a dozen answers."""
    evidence = known(cv)
    numbers = sorted(answers_until(DOUBT, evidence, slower, cv, seed) for seed in range(40))
    assert numbers[20] <= most


def test_service_times_that_vary_by_as_much_as_they_last_take_longer():
    numbers = sorted(answers_until(DOUBT, known(1.0), 2.0, 1.0, seed) for seed in range(40))
    assert 5 < numbers[20] <= 25


@pytest.mark.parametrize("cv", [0.1, 0.5, 1.0])
def test_one_like_the_others_is_hardly_ever_ejected(cv):
    """Ten thousand answers of each of ten."""
    evidence, ejected, doubted = known(cv), 0, 0
    for seed in range(10):
        dice, speed = random.Random(seed), Speed()
        for _ in range(10_000):
            before = speed.slow
            speed.answered(evidence, usual(cv, dice), was_out=False, now=next(APART_ENOUGH))
            ejected += before < SURE <= speed.slow
            doubted += speed.slow >= DOUBT
    assert ejected <= 10
    assert doubted / 100_000 < 0.01


def test_where_every_fourth_machine_is_slow_it_is_seen_too():
    evidence = known(0.1, slow_share=0.25)
    assert answers_until(DOUBT, evidence, 2.0, 0.1, seed=1) <= 6
    assert answers_until(DOUBT, evidence, 1.0, 0.1, seed=1) == 200


def test_one_that_is_fast_again_is_believed_at_its_next_answers():
    evidence, dice, speed = known(0.1), random.Random(0), Speed()
    for _ in range(20):
        speed.answered(evidence, 2.0, was_out=False, now=next(APART_ENOUGH))
    assert speed.slow > SURE
    speed.answered(evidence, usual(0.1, dice), was_out=True, now=next(APART_ENOUGH))
    assert speed.slow < DOUBT
    for _ in range(5):
        speed.answered(evidence, usual(0.1, dice), was_out=False, now=next(APART_ENOUGH))
    assert speed.slow <= CALM


def test_one_answer_is_no_proof_however_late():
    speed = Speed()
    speed.answered(known(0.1), 1e6, was_out=False, now=next(APART_ENOUGH))
    assert DOUBT <= speed.slow < SURE
    assert speed.ratio == pytest.approx(0.7 + 0.3 * 100.0)


def test_its_ratio_follows_what_it_takes():
    evidence, speed = known(0.1), Speed()
    for _ in range(20):
        speed.answered(evidence, 3.0, was_out=False, now=next(APART_ENOUGH))
    assert speed.ratio == pytest.approx(3.0, rel=0.05)


def test_as_long_as_nothing_is_known_nobody_is_slow():
    window, speed = LatencyWindow(), Speed()
    evidence = Evidence(window)
    for _ in range(10):
        window.add(1.0)
    assert not evidence.renew()
    for _ in range(50):
        speed.answered(evidence, 100.0, was_out=False, now=next(APART_ENOUGH))
    assert speed.slow <= CALM


def test_answers_that_come_together_are_one():
    """Whatever was under way while the proxy stood still comes late at the same moment."""
    evidence, speed = known(0.1), Speed()
    for number in range(16):
        speed.answered(evidence, 20.0, was_out=False, now=0.001 * number)
    once = speed.slow
    assert once < SURE
    speed.answered(evidence, 20.0, was_out=False, now=APART * evidence.usual_s)
    assert speed.slow > max(once, SURE)


def test_an_answer_that_is_late_by_a_tenth_is_rare_and_yet_says_nothing():
    """Of an endpoint twice as slow it would be rarer."""
    evidence, speed = known(0.02), Speed()
    for _ in range(20):
        speed.answered(evidence, 1.1, was_out=False, now=next(APART_ENOUGH))
    assert speed.slow < DOUBT


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_proxy_that_stands_still_now_and_then_ejects_nobody(seed):
    """Two endpoints of eight places, never idle, and twenty service times of nothing after each fifty."""
    scheduler = Scheduler(fleet(deployed=2, code=None, places=8), Policy())
    dice, under_way, numbers, now, still_at = random.Random(seed), [], itertools.count(), 0.0, 0.0

    def take(actions):
        under_way.extend((now + 0.0001 * dice.uniform(0.8, 1.2), a.task) for a in actions if isinstance(a, Send))

    for _ in range(16):
        take(scheduler.query_arrived(Query(next(numbers), POOL, None), now))
    for _ in range(5_000):
        under_way.sort(key=lambda each: each[0])
        at, task = under_way.pop(0)
        now = max(now, at)
        if now > still_at:
            now, still_at = now + 0.002, now + 0.007
        take(scheduler.task_done(task, Arrived(), now))
        take(scheduler.query_arrived(Query(next(numbers), POOL, None), now))
    assert list(scheduler.changes) == []


def test_a_change_of_everything_is_told_once():
    window = LatencyWindow()
    evidence = Evidence(window)
    told = []
    for number in range(400):
        window.add((1.0 if number < 200 else 3.0) * (1.0 + 0.001 * (number * 7 % 10)))
        told.append(evidence.renew())
    assert sum(told) == 1
    assert 200 < told.index(True) < 260


def test_no_unit_is_in_it():
    in_seconds, in_hours = known(0.5), known(0.5, unit=3600.0)
    for latency in (0.3, 0.9, 1.4, 2.5, 9.0):
        assert in_seconds.of(latency) == pytest.approx(in_hours.of(latency / 3600.0))


def test_what_was_long_ago_excuses_nobody():
    evidence, dice, speed = known(0.1), random.Random(0), Speed()
    for _ in range(1_000):
        speed.answered(evidence, usual(0.1, dice), was_out=False, now=next(APART_ENOUGH))
    for _ in range(3):
        speed.answered(evidence, 2.0, was_out=False, now=next(APART_ENOUGH))
    assert speed.slow >= DOUBT


def test_three_quarters_of_the_answers_say_little():
    """Those that come later are looked at, whoever they are of."""
    assert 1.04 < known(0.1).usual_s < 1.1
