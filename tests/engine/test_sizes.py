"""Sizes: how many times longer than usual a query takes, and from when on it is helped all the same."""

import math
import random
from bisect import bisect_right
from heapq import heappop, heappush
from itertools import accumulate

import pytest

from ts_parity.engine import Policy, Query, Scheduler, Send, plain
from ts_parity.engine.events import Arrived
from ts_parity.engine.sizes import (
    FEW,
    FULL,
    HALF,
    MOST,
    PARTS,
    RENEWED,
    SHORTEST,
    TURN,
    WINDOW,
    Latest,
    Scales,
    size_class,
)
from ts_parity.engine.speed import DOUBT
from ts_parity.testing import POOL, fleet

SMALL, BIG = size_class("/predictions", 1_000), size_class("/predictions", 10_000)
BIGGER = size_class("/predictions", 100_000)


def learnt(*pairs, times=40):
    scales = Scales()
    for _ in range(times):
        for size, ratio in pairs:
            scales.answered(size, ratio)
    return scales


def test_classes_are_half_octaves_of_a_path():
    sizes = [0, 1, 2, 3, 4, 6, 8, 12, 16, 1 << 40]
    classes = [size_class("/p", size)[1] for size in sizes]
    assert classes == sorted(set(classes))
    assert size_class("/p", 1000) == size_class("/p", 1020) != size_class("/q", 1000)
    assert size_class("/p", 512) != size_class("/p", 768)


def test_a_class_that_takes_longer_is_late_later():
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert (scales.of(SMALL), scales.of(BIG)) == (1.0, 8.0)


def test_one_that_is_nearly_as_usual_is_usual():
    assert learnt((SMALL, 1.0), (BIG, 1.4)).of(BIG) == 1.0
    assert learnt((SMALL, 1.0), (BIG, 0.5)).of(BIG) == 0.5


def test_nothing_is_known_from_few_answers_or_of_queries_without_a_class():
    assert learnt((SMALL, 1.0), (BIG, 8.0), times=FEW - 1).of(BIG) == 1.0
    scales = learnt((None, 5.0), (SMALL, 1.0))
    assert (scales.of(None), scales.differ) == (1.0, 0)


def test_where_there_is_one_class_nothing_is_learnt():
    assert learnt((BIG, 8.0)).of(BIG) == 1.0


def test_lateness_of_some_does_not_become_usual():
    scales = learnt((SMALL, 1.0), (SMALL, 1.0), (SMALL, 1.0), (SMALL, 5.0), (BIG, 8.0), (BIG, 8.0), (BIG, 40.0))
    assert (scales.of(SMALL), scales.of(BIG)) == (1.0, 8.0)


def test_a_size_never_seen_takes_as_long_as_the_next_smaller():
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert scales.of(size_class("/predictions", 10**6)) == 8.0
    assert scales.of(size_class("/predictions", 3_000)) == 1.0
    assert scales.of(size_class("/predictions", 1)) == 1.0
    assert scales.of(size_class("/explanations", 10**6)) == 1.0


def test_classes_that_differ_are_counted():
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert scales.differ == 1
    for _ in range(40):
        scales.answered(BIG, 1.0)
    assert (scales.differ, scales.of(BIG)) == (0, 1.0)


def test_memory_is_bounded_whatever_clients_send():
    scales = Scales()
    for number in range(10 * MOST):
        scales.answered(size_class(f"/{number}", 1), 1.0)
    assert len(scales._answers) == MOST
    for _ in range(40):
        scales.answered(BIG, 8.0)
    assert (scales.of(BIG), scales.differ) == (8.0, 1), "and what they sent before keeps nothing from being learnt"
    for number in range(MOST):
        scales.answered(size_class(f"/again/{number}", 1), 1.0)
    assert (scales.of(BIG), scales.differ) == (1.0, 0)


# ---- the latest, whatever their size --------------------------------------------------------------------------------


def latest(affordable, answers, load=0.0):
    rule = Latest()
    rule.adopt(affordable)
    for latency, scale in answers:
        rule.answered(latency, scale, load)
    return rule.after_s


def mixed(number=1000):
    """One in a hundred takes ten times as long, one in ten four times."""
    return [(10.0, 10.0) if n % 100 == 0 else (4.0, 4.0) if n % 10 == 0 else (1.0, 1.0) for n in range(number)]


@pytest.mark.parametrize(("affordable", "after"), [(0.0, 10.0), (0.05, 10.0), (0.08, 4.0), (0.4, 1.0)])
def test_the_latest_are_helped_as_far_as_that_can_be_paid(affordable, after):
    """Of 1.36 usual inferences a query, 0.1 are of the biggest bodies and 0.36 of the big ones."""
    assert latest(affordable, mixed()) == after


@pytest.mark.parametrize(("load", "after"), [(0.3, 4.0), (0.5, 4.0), (0.7, 10.0), (0.8, 10.0), (1.5, 10.0)])
def test_the_fuller_the_pool_the_less_can_be_spared(load, after):
    assert latest(0.1, mixed(), load) == after


@pytest.mark.parametrize(
    ("late", "scale", "at"),
    [(1.2, 1.0, 1.2), (1.2, 10.0, 4.0), (1.2, 2.0, 2.4), (5.0, 10.0, 5.0), (1.2, 0.5, 0.6)],
)
def test_a_big_query_is_late_later_but_not_later_than_the_latest(late, scale, at):
    rule = Latest()
    rule.after_s = 4.0
    assert rule.bound(late, scale) == at


def test_nobody_is_latest_as_long_as_little_is_known():
    assert latest(1.0, mixed(RENEWED - 1)) == math.inf


@pytest.mark.parametrize("affordable", [0.02, 0.18, 2.0])
def test_looking_at_the_latest_alone_says_what_looking_at_all_would(affordable):
    """Also when everything becomes ten times faster or slower, or the pool is full for a while."""
    dice, rule = random.Random(0), Latest()
    rule.adopt(affordable)
    seen, told, unseen = [], set(), 0
    for number in range(12_000):
        scale = 10.0 if dice.random() < 0.05 else 1.0
        latency = scale * dice.lognormvariate(0.0, 0.5) * (0.1 if 4_000 <= number < 8_000 else 1.0)
        load = 0.9 if 6_000 <= number < 6_500 else 0.6
        rule.answered(latency, scale, load)
        seen.append((latency, scale))
        unseen += 1
        if unseen >= max(RENEWED, min(len(seen), WINDOW) // PARTS):
            unseen = 0
            last = seen[-WINDOW:]
            left = max(0.0, (FULL - load) / (FULL - HALF)) * affordable * sum(scale for _, scale in last)
            spent = [*accumulate((scale for _, scale in sorted(last, reverse=True)), initial=0.0)]
            helped = min(bisect_right(spent, left), len(last))
            assert rule.after_s == sorted(latency for latency, _ in last)[-helped], number
            told.add(rule.after_s)
    assert len(told) >= 10


def turns(scales, bodies, number=2 * TURN):
    """What is usual takes so many times longer, each time that it changes. `bodies`: what each of a size takes, by the
    first clock; they come in a random order.
    """
    dice, usual, turned = random.Random(1), 1.0, []
    for _ in range(number):
        size, took = dice.choice(bodies)
        turn = scales.answered(size, took / usual)
        if turn != 1.0:
            turned.append(turn)
            usual *= turn
    return turned


def test_what_nearly_all_queries_are_of_is_usual_then():
    """And what was usual is short for it."""
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert turns(scales, [(BIG, 8.0)]) == [8.0]
    assert (scales.of(BIG), scales.of(SMALL), scales.differ) == (1.0, 0.125, 1)
    assert turns(scales, [(BIG, 1.0)], 4 * TURN) == []
    assert scales.of(SMALL) == 0.125, "nothing is learnt of it from others' answers"
    assert turns(scales, [(SMALL, 0.125)]) == [0.125]
    assert (scales.of(BIG), scales.of(SMALL)) == (8.0, 1.0)


@pytest.mark.parametrize(("big", "turned"), [(1, []), (2, []), (5, [8.0])])
def test_where_sizes_are_mixed_what_is_usual_does_not_go_to_and_fro(big, turned):
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert turns(scales, [(SMALL, 1.0), *[(BIG, 8.0)] * big], 40 * TURN) == turned


@pytest.mark.parametrize("first", range(5))
def test_of_many_sizes_the_middle_one_becomes_usual_and_stays_so(first):
    sizes = [(size_class("/predictions", 1_000 * 4**n), 2.0**n) for n in range(5)]
    (usual, took), (other, others) = sizes[first], sizes[first - 1]
    scales = learnt((usual, 1.0), (other, others / took))
    turned = turns(scales, [(size, took / 2.0**first) for size, took in sizes], 200 * TURN)
    assert len(turned) == (first in (0, 4))
    assert [scales.of(size) for size, _ in sizes] == [2.0 ** (n - (2 if turned else first)) for n in range(5)]


def test_the_rare_biggest_does_not_become_usual():
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    assert turns(scales, [(BIG, 8.0)] * 9 + [(BIGGER, 80.0)], 20 * TURN) == [8.0]
    assert (scales.of(BIG), scales.of(BIGGER)) == (1.0, 10.0)


def test_only_what_is_known_of_a_size_moves_with_what_is_usual():
    scales = learnt((SMALL, 1.0), (BIG, 8.0))
    scales.answered(BIGGER, 16.0)
    assert turns(scales, [(BIG, 8.0)]) == [8.0]
    assert scales.of(BIGGER) == 1.0, "as the next smaller: one answer says nothing"
    for _ in range(FEW - 1):
        scales.answered(BIGGER, 2.0)
    assert scales.of(BIGGER) == 2.0


def test_the_latest_are_weighed_by_what_is_usual_then():
    rule, same = Latest(), Latest()
    for each in (rule, same):
        each.adopt(0.1)
    for n in range(WINDOW):
        rule.answered(0.001 * (n % 50), 1.0 + n % 3, 0.1)
        same.answered(0.001 * (n % 50), (1.0 + n % 3) / 4.0, 0.1)
    assert rule.after_s == same.after_s
    rule.rescale(4.0)
    for each in (rule, same):
        for n in range(WINDOW // PARTS):
            each.answered(0.003 * (n % 50), 0.5, 0.1)
    assert rule.after_s == same.after_s


# ---- in the engine --------------------------------------------------------------------------------------------------


def served(size_of, number=400):
    """Queries of which every tenth is big and takes ten times as long, on three machines. -> the scheduler."""
    whole = fleet(deployed=3, code="student", k=1, shared=True, protections=3)
    scheduler, now = Scheduler(whole, plain(launch="late")), 0.0
    for n in range(number):
        big = n % 10 == 0
        now += 1.0
        query = Query(n, POOL, "key", size=size_of(big))
        [sent] = [action for action in scheduler.query_arrived(query, now) if isinstance(action, Send)]
        scheduler.task_done(sent.task, Arrived(raw=True), now + (0.1 if big else 0.01))
    return scheduler, now


@pytest.mark.parametrize(("told", "scale"), [(True, 10.0), (False, 1.0)])
def test_a_big_query_is_late_later_and_its_times_teach_nothing_about_small_ones(told, scale):
    scheduler, now = served(lambda big: (BIG if big else SMALL) if told else None)
    [pool] = scheduler.pools()
    assert pool.latency.quantile(0.97) == pytest.approx(0.01 if told else 0.015, rel=0.01)
    query = Query(10_000, POOL, "key", size=BIG)
    scheduler.query_arrived(query, now + 1.0)
    assert query.scale == pytest.approx(scale if told else 1.0)
    late_s = pool.launch.latest.bound(pool.release.after_s, query.scale)
    assert query.release_at - (now + 1.0) == pytest.approx(late_s)


def test_a_second_copy_of_a_big_query_costs_as_much_as_the_query():
    policy = plain(copies=True, extra_work=1e-9, work_burst=30.0, hedge_after_s=0.02)
    scheduler = Scheduler(fleet(deployed=3, code=None), policy)
    [pool] = scheduler.pools()
    pool.scales._known[BIG] = 8.0
    query = Query(0, POOL, "key", size=BIG)
    scheduler.query_arrived(query, 0.0)
    [copy] = [action for action in scheduler.tick(0.03) if isinstance(action, Send)]
    assert copy.task.hedge
    assert 30.0 - scheduler._life.work.tokens == pytest.approx(8.0, abs=1e-6)


def test_a_big_query_brings_as_much_extra_work_as_it_takes():
    scheduler = Scheduler(fleet(deployed=3, code=None), plain(copies=True, extra_work=0.1, work_burst=30.0))
    [pool] = scheduler.pools()
    pool.scales._known[BIG] = 8.0
    scheduler._life.work.spend(10.0)
    scheduler.query_arrived(Query(0, POOL, "key", size=BIG), 0.0)
    assert scheduler._life.work.tokens == pytest.approx(20.8)


def test_a_backup_of_a_big_query_is_launched_later():
    whole = fleet(deployed=3, code="student", k=1, shared=True, protections=3)
    scheduler = Scheduler(whole, plain(launch="late", launch_after_s=0.02))
    [pool] = scheduler.pools()
    pool.scales._known[BIG] = 8.0
    query = Query(0, POOL, "key", size=BIG)
    scheduler.query_arrived(query, 1.0)
    assert query.launch_at == pytest.approx(1.16)


def turned(at_once, shift, until=4 * TURN):
    """Four hundred bodies, of which a fifth are big, then big ones alone, which take `shift` times as long.
    `at_once`: so many are in flight. `until`: so many more; 0: until what is usual has turned. -> the pool, and
    the tasks in flight.
    """
    whole = fleet(deployed=3, places=at_once, code="student", k=1, shared=True, protections=3)
    policy = plain(launch="late", launch_after_s=10.0 * shift, copies=True, extra_work=0.1)
    scheduler, now, flight = Scheduler(whole, policy), 0.0, []
    [pool] = scheduler.pools()
    for _ in range(FEW * 3):
        pool.backup_latency.add(0.002)
    for n in range(10_000):
        now += 0.0001
        size, latency_s = (SMALL, 0.01) if n < 400 and n % 5 else (BIG, 0.01 * shift)
        latency_s *= 0.97 + 0.01 * (n % 7)
        actions = scheduler.query_arrived(Query(n, POOL, "key", size=size), now)
        for action in actions:
            if isinstance(action, Send):
                heappush(flight, (now + latency_s, action.task.id, action.task))
        if n >= 400 + until and (until or pool.scales.of(SMALL) != 1.0):
            return pool, [task for _, _, task in flight]
        while len(flight) >= at_once:
            ends_at, _, task = heappop(flight)
            now = max(now, ends_at)
            scheduler.task_done(task, Arrived(raw=True), now)
    raise AssertionError("nothing has turned")


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("shift", [0.1, 10.0])
def test_times_are_those_of_the_size_that_nearly_all_queries_are_of(at_once, shift):
    """A group would wait for its members, and status would show, ten times what they take, or a tenth."""
    pool, _ = turned(at_once, shift)
    assert (pool.scales.of(BIG), pool.scales.of(SMALL)) == pytest.approx((1.0, 1.0 / shift), rel=0.05)
    assert pool.latency.median == pytest.approx(0.01 * shift, rel=0.05)
    assert pool.release.after_s == pytest.approx(0.01 * shift, rel=0.1)
    assert pool.backup_latency.median == pytest.approx(0.002 * shift, rel=0.05)
    assert max(state.speed.slow for state in pool.deployed.everyone) < DOUBT


@pytest.mark.parametrize("shift", [0.1, 10.0])
def test_what_is_in_flight_meanwhile_is_measured_in_what_is_usual_then(shift):
    """Or its answers would say that everything has become ten times slower, and acquit whoever is slow."""
    pool, tasks = turned(40, shift, until=0)
    assert len(tasks) >= 30
    assert {pool.scales.of(task.query.size) for task in tasks if task.query.size == BIG} == {1.0}
    for task in tasks:
        assert task.scale == task.query.scale == pytest.approx(pool.scales.of(task.query.size), rel=0.05)
    scales = [scale for _, scale in pool.launch.latest._answers]
    assert 0.5 * min(1.0, 1.0 / shift) < min(scales) <= max(scales) < 3.0 * max(1.0, 1.0 / shift)


@pytest.mark.slow
def test_answers_that_take_no_time_by_the_clock_are_learnt_from():
    """Uvloop's clock counts milliseconds: the quickest class took none, and its times could not be divided by it."""
    scheduler = Scheduler(fleet(deployed=3, code=None), Policy())
    [pool] = scheduler.pools()
    for number in range(400):
        size, latency_s = (SMALL, 0.0) if number % 4 == 0 else (BIG, 0.002)
        [send] = scheduler.query_arrived(Query(number, POOL, None, size=size), 0.01 * number)
        scheduler.task_done(send.task, Arrived(), 0.01 * number + latency_s)
    assert pool.scales.of(SMALL) == SHORTEST
    assert pool.scales.of(BIG) == 1.0
