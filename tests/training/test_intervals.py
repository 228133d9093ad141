"""Intervals: by hand where they can be worked out, and as often right as they say where not."""

import math

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.training.evaluate import evaluate, of_packed
from ts_parity.training.figures import margin
from ts_parity.training.goals import draw_groups
from ts_parity.training.intervals import ScoredAnswers, of_difference, of_mean, of_root, of_share, wilson
from ts_parity.training.semantics import OutputSemantics


def alone(count):
    """Each body once, in a group of its own."""
    return ScoredAnswers((0,), np.arange(count)[:, None], together=False)


def test_wilsons_interval_is_that_of_the_books():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 50) == pytest.approx((0.0, 0.0714), abs=1e-4)
    assert wilson(1.0, 50) == pytest.approx((0.9286, 1.0), abs=1e-4)


def test_a_share_of_independent_bodies_has_wilsons_interval():
    scores = np.array([[1.0] * 90 + [0.0] * 10])
    assert of_share(scores, alone(100)) == pytest.approx(wilson(0.9, 99), abs=1e-9)
    assert of_share(np.ones((1, 100)), alone(100)) == pytest.approx(wilson(1.0, 100))


def test_copies_of_a_body_are_no_more_evidence_than_it_is():
    scores = np.array([[1.0] * 18 + [0.0] * 2])
    ten_times = ScoredAnswers((0,), np.repeat(np.arange(20), 10)[:, None], together=False)
    assert of_share(np.repeat(scores, 10, axis=1), ten_times) == pytest.approx(of_share(scores, alone(20)))
    assert of_share(np.ones((1, 200)), ten_times) == pytest.approx(wilson(1.0, 20))


def test_answers_that_share_their_error_are_no_more_evidence_than_their_group():
    """A parity model errs for all members at once: so many groups are so many answers, whatever their size."""
    errors = np.random.default_rng(0).normal(size=100)
    bodies = np.arange(400).reshape(100, 4)
    of_groups = ScoredAnswers((0, 1, 2, 3), bodies, together=True).variance(np.tile(errors, (4, 1)))
    assert of_groups == pytest.approx(alone(100).variance(errors[None, :]), rel=0.01)
    assert ScoredAnswers((0, 1, 2, 3), bodies, together=False).variance(np.tile(errors, (4, 1))) < 0.3 * of_groups


def test_a_drop_is_known_better_than_either_of_its_sides():
    """The same answers: what both get wrong says nothing of the difference."""
    own = np.array([[1.0] * 800 + [0.0] * 200])
    rebuilt = own.copy()
    rebuilt[0, :10] = 0.0
    low, high = of_difference(own - rebuilt, alone(1000))
    assert low == pytest.approx(0.01 - 1.96 * math.sqrt(0.01 * 0.99 / 1000), abs=1e-3)
    assert (high - low) / 2 < 0.3 * (of_share(own, alone(1000))[1] - 0.8)
    low, high = of_difference(np.zeros((1, 50)), alone(50))
    assert low == -high < -0.03, "of fifty pairs none differed; the next one may"


def test_means_and_roots():
    numbers = np.random.default_rng(0).normal(10.0, 2.0, (1, 400))
    low, high = of_mean(numbers, alone(400))
    assert high - low == pytest.approx(2 * 1.96 * numbers.std(ddof=1) / 20, rel=1e-3)
    assert of_root(numbers, alone(400)) == pytest.approx((math.sqrt(low), math.sqrt(high)))


@pytest.mark.parametrize(("bodies", "together"), [(60, False), (60, True), (1500, False), (1500, True), (5000, True)])
def test_nineteen_of_twenty_intervals_hold_what_is_true_of_all_bodies(bodies, together):
    """Answers to one body are alike, and those of one group where its error is made of all members."""
    k, bound = 2, 2.2 if together else 1.55

    def scored(groups, count, dice):
        own, part = dice.normal(size=(2, count))
        error = part[groups].sum(1) / math.sqrt(k) + 0.5 * dice.normal(size=len(groups))
        harm = 0.8 * np.abs(error) if together else 0.0
        return np.stack([(harm + own[groups[:, slot]] < bound).astype(float) for slot in range(k)])

    dice = np.random.default_rng(1)
    truth = scored(np.arange(200_000).reshape(-1, k), 200_000, dice).mean()
    held = []
    for _ in range(100):
        groups = draw_groups(np.arange(bodies), k, dice, 1000)
        low, high = of_share(scored(groups, bodies, dice), ScoredAnswers((0, 1), groups, together))
        held.append(low <= truth <= high)
    assert sum(held) >= 90


def figures_of(scores):
    """Every figure with its name, that of each share apart, and the intervals by the same names."""
    for name, value in scores.items():
        if isinstance(value, float) and name != "spread":
            yield value, scores["intervals"][name]
        elif name == "members":
            for each in value.values():
                yield from figures_of(each)
        elif name == "two_erased":
            yield from figures_of(value)
        elif name != "intervals" and isinstance(value, dict):
            yield from ((each, scores["intervals"][name][f]) for f, each in value.items())


@pytest.mark.parametrize(
    ("metric", "labelled"),
    [(metric, labelled) for metric in ("accuracy", "top5", "labels", "cosine", "mae", "rmse") for labelled in (0, 1)],
)
@pytest.mark.parametrize(("name", "r"), [("sum", 2), ("student", 1)])
def test_every_figure_has_an_interval_around_it(metric, labelled, name, r):
    code, dice = make_code(name, 2, r), np.random.default_rng(0)
    outputs = dice.normal(size=(300, 2, 1, 6))
    noisy = outputs + dice.normal(scale=0.4, size=outputs.shape)
    rows = {row: np.einsum("k,gk...->g...", c, noisy) for row, c in enumerate(code.coefficients)} or {0: noisy}
    labels = outputs[:, :, 0].argmax(-1) if metric in ("accuracy", "top5") else outputs + 0.1
    labels = (labels > 0) if metric == "labels" else labels
    scores = evaluate(code, outputs, {1: rows, 2: rows}, labels if labelled else None, OutputSemantics(metric))
    pairs = [*figures_of(scores)]
    assert len(pairs) > 5
    for value, (low, high) in pairs:
        assert low <= value <= high
        assert high - low < 0.5 * max(1.0, abs(value))
    assert margin(scores, "score") > 0


def test_what_loses_nothing_by_construction_has_no_interval():
    outputs = np.random.default_rng(0).normal(size=(40, 1, 1, 3))
    scores = evaluate(make_code("exact", 1), outputs, {1: {0: outputs}}, outputs.argmax(-1)[..., 0])
    assert (margin(scores, "score"), margin(scores, "drop")) == (0.0, 0.0)
    assert margin(scores, "A_d") > 0.05, "right about 40 bodies, of all there are"


def test_the_report_is_of_the_packed_seed_and_tells_the_others_beside_it():
    results = [{"metric": "accuracy", "A_d": a, "score": 0.9, "intervals": {"A_d": [a, a]}} for a in (0.8, 0.9)]
    told = of_packed(results, 0)
    assert (told["A_d"], told["intervals"]["A_d"], told["seeds"]) == (0.8, [0.8, 0.8], 2)
    assert told["over_seeds"]["A_d"] == pytest.approx(0.85)
    assert told["A_d_spread"] == told["over_seeds"]["A_d_spread"] == pytest.approx(0.0707, abs=1e-4)
    assert "over_seeds" not in of_packed(results[:1], 0)
