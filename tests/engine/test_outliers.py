"""Whose errors are its own: the rule alone, and at work in virtual time."""

import random

import pytest

from ts_parity.engine.outliers import PROOFS, WELL, ErrorRecord
from ts_parity.testing import scenario


def first_suspicion(chance, shares, weights, queries):
    """-> (queries until some endpoint was suspect, which), or None. `weights`: who gets how much of the traffic."""
    records = [ErrorRecord() for _ in shares]
    for number in range(queries):
        at = chance.choices(range(len(shares)), weights)[0]
        record = records[at]
        if chance.random() >= shares[at]:
            record.answered()
            continue
        others = [other for other in records if other is not record]
        if record.erred(sum(r.answers for r in others), sum(r.errors for r in others)):
            return number, at
    return None


@pytest.mark.parametrize(
    ("shares", "within"),
    [
        ([1.0, 0.0], 40),
        ([0.5, 0.0], 100),
        ([0.05, 0.0], 1000),
        ([0.6, 0.1, 0.1], 150),
        ([1.0] + [0.2] * 9, 150),
        ([0.05] + [0.0] * 9, 2000),
    ],
)
def test_whoever_fails_more_than_its_peers_is_found(shares, within):
    """Also where it draws most of the traffic, for it is always idle."""
    for draws in (1, 9):
        weights = [draws] + [1] * (len(shares) - 1)
        for seed in range(20):
            found = first_suspicion(random.Random(seed), shares, weights, 20 * within)
            assert found is not None
            assert found[1] == 0
        typical = sorted(first_suspicion(random.Random(s), shares, weights, 20 * within)[0] for s in range(20))[10]
        assert typical <= within


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_who_fails_like_its_peers_is_seldom_suspected(share, count):
    """2,000 queries. What suspicion costs is one attempt elsewhere, which clears it."""
    suspected = sum(
        first_suspicion(random.Random(seed), [share] * count, [1] * count, 2000) is not None for seed in range(20)
    )
    assert suspected <= (0 if count == 1 or share in (0.0, 1.0) else 6)


def test_a_burst_of_bad_clients_reaches_all_alike():
    chance = random.Random(1)
    records = [ErrorRecord() for _ in range(3)]
    for number in range(900):
        at = chance.randrange(3)
        if 300 <= number < 600 and chance.random() < 0.9:
            others = [r for r in records if r is not records[at]]
            assert not records[at].erred(sum(r.answers for r in others), sum(r.errors for r in others))
        else:
            records[at].answered()


def suspect():
    record = ErrorRecord()
    while not record.erred(50.0, 0.0):
        pass
    return record


def test_it_takes_proofs():
    record = suspect()
    assert [record.proved() for _ in range(PROOFS + 1)] == [False] * (PROOFS - 1) + [True, True]


def test_a_query_that_fails_elsewhere_too_clears_it():
    record = suspect()
    record.proved()
    record.clear()
    assert not record.suspect
    assert not record.proved()


def test_who_does_well_for_long_is_above_suspicion():
    record = suspect()
    for _ in range(WELL - 1):
        record.answered()
    assert record.suspect
    record.answered()
    assert not record.suspect


def test_old_answers_are_forgotten():
    record = ErrorRecord()
    for _ in range(100_000):
        record.answered()
    assert record.answers < 1100
    while not record.erred(500.0, 0.0):
        pass
    assert record.errors < 60


# ---- in the engine -------------------------------------------------------------------------------------------------

FOREVER = 1000.0


def served(erring, *, deployed, count=600, gap=0.004, **more):
    """A query every 4 ms that takes 10, so an endpoint that errs at once is always idle."""
    arrivals = [number * gap for number in range(count)]
    run = scenario(arrivals=arrivals, code=None, deployed=deployed, erring=erring, **more)
    assert len(run.answers) == count
    assert run.nothing_left_over()
    return run


def on(run, endpoint, since):
    return sum(name == endpoint and at >= since for at, _, name in run.sent)


@pytest.mark.parametrize("deployed", [3, 5, 10])
@pytest.mark.parametrize("since", [0.0, 1.0])
def test_a_black_hole_is_taken_out(deployed, since):
    run = served({"d0": (since, FOREVER)}, deployed=deployed)
    assert len(run.errors) <= 12
    assert max((run.answers[number][1] for number in run.errors), default=0.0) < since + 0.5
    assert on(run, "d0", since + 0.5) <= 10, "trials, and what they are answered is not passed on"


def test_of_two_it_is_taken_out_too():
    run = served({"d0": (0.5, FOREVER)}, deployed=2, gap=0.011)
    assert len(run.errors) <= 12
    assert on(run, "d0", 1.5) <= 20


def test_with_second_copies_it_is_tried_without_anybody_waiting_for_it():
    run = served({"d0": (0.5, FOREVER)}, deployed=4, policy={"copies": True, "extra_work": 0.1, "hedge_after_s": 1.0})
    assert len(run.errors) <= 12
    assert all(what.startswith("hedge") for at, what, name in run.sent if name == "d0" and at > 1.5)


def test_it_is_back_when_it_does_well_again():
    run = served({"d0": (0.0, 1.0)}, deployed=4, count=2000)
    assert on(run, "d0", 7.0) > 50
    assert len(run.errors) <= 12


def test_one_alone_is_never_out():
    run = served({"d0": (0.0, FOREVER)}, deployed=1, count=50)
    assert len(run.errors) == 50


def test_where_all_err_alike_nobody_is_out_and_clients_are_told():
    run = served({f"d{n}": (0.5, FOREVER) for n in range(3)}, deployed=3)
    assert len(run.errors) > 400
    assert all(on(run, f"d{n}", 1.0) > 50 for n in range(3))


def test_two_of_five_err():
    run = served({"d0": (0.5, FOREVER), "d3": (0.5, FOREVER)}, deployed=5)
    assert len(run.errors) <= 30
    assert on(run, "d0", 1.5) + on(run, "d3", 1.5) <= 20


def test_bad_clients_condemn_nobody():
    """One query in three is bad, wherever it goes; two fifths of them come in one burst."""
    chance = random.Random(5)
    bad = [n for n in range(600) if chance.random() < 0.25 or 200 <= n < 260]
    tasks = [(n, 0.001, "error") for n in bad] + [(f"retry {n}", 0.001, "error") for n in bad]
    run = served({}, deployed=3, tasks=tasks)
    assert sorted(run.errors) == bad
    again = len(run.sent) - 600
    assert again <= 10
    assert all(on(run, f"d{n}", 1.0) > 100 for n in range(3))


def test_an_endpoint_that_fails_large_bodies_only():
    """One query in ten is large, and d0 fails those: d0 is suspect after a few, and others answer the rest."""
    arrivals = [number * 0.004 for number in range(1500)]
    large = set(range(0, 1500, 10))
    world = scenario(arrivals=arrivals, code=None, deployed=3)
    where = {int(what): name for _, what, name in world.sent}
    tasks = [(n, 0.010, "error") for n in sorted(large) if where[n] == "d0"]
    run = scenario(arrivals=arrivals, code=None, deployed=3, tasks=tasks)
    assert len(run.answers) == 1500
    assert len(run.errors) < len(tasks)


def test_the_doubtful_answer_is_better_than_none():
    """While d0 is suspect, the peer that was asked as well dies with the query, and there is no other."""
    policy = {"retry_burst": 10.0, "max_attempts": 2, "failures_until_out": 100}
    tasks = [(f"retry {n}", 0.001, "fail") for n in range(200)]
    run = served({"d0": (0.0, FOREVER)}, deployed=2, count=200, gap=0.011, tasks=tasks, policy=policy)
    assert run.failures == {}


def test_the_speed_of_errors_is_not_what_is_usual():
    run = served({f"d{n}": (0.5, FOREVER) for n in range(3)}, deployed=3)
    [pool] = run.scheduler.pools()
    assert pool.latency.quantile(0.5) == pytest.approx(0.010)


def test_what_must_not_be_repeated_is_asked_of_nobody_else():
    run = served({"d0": (0.0, FOREVER)}, deployed=3, repeatable=False)
    assert len(run.sent) == 600


def test_a_doubtful_error_that_a_peer_answers_well_is_evidence_by_itself():
    record = ErrorRecord()
    assert not record.suspect
    assert [record.proved(doubtful=True) for _ in range(PROOFS)] == [False] * (PROOFS - 1) + [True]
    assert record.suspect
