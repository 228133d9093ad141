"""What is usual, from few samples and from polluted ones. Latencies are in mean service times; dice are fixed."""

import math
import random

import pytest

from ts_parity.engine.lateness import LatencyWindow, robust_quantile
from ts_parity.testing import scenario

SHARES = (0.9, 0.95, 0.98)


def lognormal(rng, cv):
    sigma = math.sqrt(math.log(1 + cv**2))
    return rng.lognormvariate(-(sigma**2) / 2, sigma)


def sizes(*weights):
    """Bodies of one, four and ten units."""
    return lambda rng: rng.choices([1.0, 4.0, 10.0], weights)[0] * lognormal(rng, 0.1)


WORKLOADS = {
    "narrow": lambda rng: lognormal(rng, 0.1),
    "cv 0.5": lambda rng: lognormal(rng, 0.5),
    "cv 1": lambda rng: lognormal(rng, 1.0),
    "three sizes alike": sizes(1, 1, 1),
    "mostly small": sizes(60, 30, 10),
}


def filled(draw, count, seed=0, late=0.0, factor=7.0):
    """A window after `count` answers, a share `late` of them `factor` times as long."""
    rng, window = random.Random(seed), LatencyWindow()
    for _ in range(count):
        latency = draw(rng)
        window.add(latency * (factor if rng.random() < late else 1.0))
    return window


def share_above(draw, limit, count=2000):
    rng = random.Random(99)
    return sum(draw(rng) > limit for _ in range(count)) / count


@pytest.mark.parametrize("frozen_s", [5.0, 500.0])
@pytest.mark.parametrize("count", [5, 20, 64])
def test_one_frozen_answer_among_the_first_sets_nothing(count, frozen_s):
    window = LatencyWindow()
    for number in range(count):
        window.add(frozen_s if number == count // 2 else 0.05 + 0.0001 * number)
    assert 0.05 <= window.quantile(0.95) <= 0.2


@pytest.mark.parametrize("late", [0.01, 0.05, 0.1, 0.2])
def test_lateness_is_not_learnt(late):
    """Whether one in a hundred answers is late or one in five, the usual time stays about what it is."""
    for seed in range(5):
        window = filled(WORKLOADS["narrow"], 2000, seed, late)
        for share in SHARES:
            assert 1.0 < window.quantile(share) < 2.0
        assert 0.9 < window.quantile(0.5) < 1.1


@pytest.mark.parametrize("late", [0.05, 0.1, 0.2])
def test_few_samples_with_late_ones_among_them_bound_the_estimate_too(late):
    for seed in range(20):
        assert filled(WORKLOADS["narrow"], 20, seed, late).quantile(0.95) < 4.0


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_clean_distribution_keeps_its_quantiles_however_wide(workload):
    draw = WORKLOADS[workload]
    for seed in range(3):
        window = filled(draw, 1000, seed)
        for share in SHARES:
            assert share_above(draw, window.quantile(share)) < 2.0 * (1.0 - share) + 0.01


@pytest.mark.parametrize("workload", ["narrow", "cv 0.5", "cv 1"])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_change_of_all_is_adopted_in_a_few_dozen_answers(workload, factor):
    """A new version: three times as slow, or as fast."""
    draw, needed = WORKLOADS[workload], []
    for seed in range(10):
        window, rng, count = filled(draw, 1000, seed), random.Random(seed + 100), 0
        aim = window.quantile(0.5) * factor
        while not 0.7 < window.quantile(0.5) / aim < 1.4:
            window.add(draw(rng) * factor)
            count += 1
        needed.append(count)
    assert sorted(needed)[len(needed) // 2] <= 60
    assert max(needed) <= 200


def test_slowness_of_a_third_of_the_machines_is_no_change_of_all():
    window = filled(WORKLOADS["narrow"], 1000)
    rng = random.Random(7)
    for _ in range(100):
        window.add(lognormal(rng, 0.1) * (5.0 if rng.random() < 1 / 3 else 1.0))
    assert window.quantile(0.5) < 1.2


def test_nothing_is_known_before_there_is_anything_to_know():
    window = LatencyWindow()
    for latency in (0.01, 0.01, 5.0, 0.01):
        window.add(latency)
    assert window.quantile(0.95) is None
    window.add(0.01)
    assert window.quantile(0.95) == pytest.approx(0.03)
    assert window.quantile(0.5) == 0.01


def test_latencies_of_nothing_do_not_divide():
    assert robust_quantile([0.0] * 100, 0.95) == 0.0


def test_the_first_release_time_is_not_that_of_a_frozen_worker():
    """One of the first twenty answers takes five seconds; a query that is late afterwards is rebuilt in good time."""
    arrivals = [0.1 * i for i in range(80)]
    run = scenario(
        arrivals=arrivals,
        tasks=[(3, 5.0, "ok"), (79, 0.0, "never")],
        policy={"reconstruct_after_s": None, "deadline_s": 10.0},
        deployed=4,
    )
    source, at = run.answers[79]
    assert source == "reconstructed"
    assert at - arrivals[79] < 0.05


def test_with_one_late_answer_in_twenty_late_queries_are_rebuilt():
    """The plain 0.95 quantile would be that of the late ones, and nothing would be rebuilt."""
    arrivals = [0.05 * i for i in range(600)]
    late = [(i, 0.5, "ok") for i in range(15, 600, 20)]
    run = scenario(arrivals=arrivals, tasks=late, policy={"reconstruct_after_s": None}, deployed=12, protections=6)
    rebuilt = [number for number, (source, _) in run.answers.items() if source == "reconstructed"]
    assert len(rebuilt) > 0.8 * len(late)
    assert set(rebuilt) <= {number for number, *_ in late}


def test_everything_known_takes_longer_when_what_is_usual_does():
    window, same = LatencyWindow(), LatencyWindow()
    for n in range(300):
        window.add(0.01 + 0.001 * (n % 7))
        same.add(0.04 + 0.004 * (n % 7))
    version, changes = window.version, window.changes
    window.rescale(4.0)
    assert (window.version, window.changes) == (version + 1, changes), "who is slow beside others is as slow as before"
    assert window.median == pytest.approx(same.median)
    assert window.quantile(0.9) == pytest.approx(same.quantile(0.9))
    for n in range(300):
        for each in (window, same):
            each.add(0.04 + 0.004 * (n % 7))
    assert window.changes == same.changes == changes
    empty = LatencyWindow()
    empty.rescale(4.0)
    assert (empty.median, empty.quantile(0.9)) == (0.0, None)
