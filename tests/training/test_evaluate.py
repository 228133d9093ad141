"""What a rebuilt answer is worth, as one pure function: by hand where it can be worked out by hand."""

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.training.evaluate import evaluate, over_seeds

RNG = np.random.default_rng(0)


def linear(code, outputs):
    """-> what perfect parity models say, for every number of members."""
    rows = {row: np.array(c).reshape(1, -1, *[1] * (outputs.ndim - 2)) for row, c in enumerate(code.coefficients)}
    return {m: {row: (c * outputs)[:, :m].sum(1) for row, c in rows.items()} for m in range(1, code.k + 1)}


@pytest.mark.parametrize(("name", "k", "r"), [("sum", 2, 1), ("sum", 3, 2), ("sum", 4, 1), ("concat", 4, 1)])
def test_a_perfect_parity_model_loses_nothing(name, k, r):
    code = make_code(name, k, r)
    outputs = RNG.normal(size=(50, k, 1, 4)).astype(np.float32)
    labels = outputs[:, :, 0].argmax(-1)
    labels[:10] = 3
    scores = evaluate(code, outputs, linear(code, outputs), labels)
    assert scores["agreement"] == 1.0
    assert scores["A_d"] == scores["A_a"] == scores["A_o"]["0.20"]
    assert scores["drop"] == 0
    assert all(each["agreement"] == 1.0 for each in scores["members"].values())
    assert ("two_erased" in scores) == (r == 2)


def test_two_erased_cost_more_than_one():
    """The amplification of error: x0 = 2 P0 - P1 against x0 = P0 - x1."""
    code = make_code("sum", 2, 2)
    outputs = RNG.normal(size=(4000, 2, 1, 5)).astype(np.float32)
    said = linear(code, outputs)
    noisy = {m: {row: p + RNG.normal(scale=0.3, size=p.shape) for row, p in rows.items()} for m, rows in said.items()}
    scores = evaluate(code, outputs, noisy)
    assert scores["two_erased"]["agreement"] < scores["agreement"]
    growth = scores["two_erased"]["error"] / 0.3
    assert growth == pytest.approx(np.sqrt((5 + 2) / 2), rel=0.1)  # of the two slots, sqrt(5) and sqrt(2)


def test_a_student_is_scored_slot_by_slot():
    code = make_code("student", 2)
    outputs = np.zeros((3, 2, 1, 3), np.float32)
    outputs[..., 0] = 1
    answers = outputs.copy()
    answers[0, 1, 0] = [0, 5, 0]  # one of six is another class
    labels = np.zeros((3, 2), int)
    labels[2, 0] = 2
    scores = evaluate(code, outputs, {1: {0: answers}, 2: {0: answers}}, labels)
    assert scores["agreement"] == pytest.approx(5 / 6, abs=1e-5)
    assert (scores["A_a"], scores["A_d"]) == (pytest.approx(5 / 6, abs=1e-5), pytest.approx(4 / 6, abs=1e-5))
    assert scores["members"]["1"]["agreement"] == 1.0
    assert scores["A_default"] == pytest.approx(5 / 6, abs=1e-5)
    assert scores["A_o_default"]["0.20"] == pytest.approx(5 / 6, abs=1e-5)


def test_top5():
    code = make_code("exact", 1)
    outputs = np.arange(10, dtype=np.float32).reshape(1, 1, 1, 10)
    for label, right in ((9, 1.0), (5, 1.0), (4, 0.0)):
        scores = evaluate(code, outputs, {1: {0: outputs}}, np.array([[label]]), "top5")
        assert scores["A_a"] == right


def test_boxes_are_scored_by_their_overlap():
    code = make_code("exact", 1)
    outputs = np.array([[[[0.0, 0.0, 2.0, 2.0]]]])
    for box, overlap in (([0, 0, 2, 2], 1.0), ([2, 2, 0, 0], 1.0), ([1, 0, 3, 2], 1 / 3), ([5, 5, 6, 6], 0.0)):
        scores = evaluate(code, outputs, {1: {0: outputs}}, np.array([[box]], float), "iou")
        assert scores["A_a"] == pytest.approx(overlap, abs=1e-5)
        assert scores["agreement"] == 1.0


def test_outputs_of_one_number_are_classes_by_sign():
    code = make_code("exact", 1)
    outputs = np.array([[[[0.7]]], [[[-2.0]]]])
    scores = evaluate(code, outputs, {1: {0: -outputs}}, np.array([[1], [0]]))
    assert (scores["A_a"], scores["A_d"], scores["agreement"]) == (1.0, 0.0, 0.0)


def test_several_seeds_have_a_mean_and_a_spread():
    results = [{"metric": "top1", "A_d": a, "agreement": 0.9, "A_o": {"0.10": a / 2}} for a in (0.8, 0.9)]
    mean = over_seeds(results)
    assert (mean["A_d"], mean["A_d_spread"]) == (pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4))
    assert mean["A_o"]["0.10"] == pytest.approx(0.425)
    assert mean["agreement_spread"] == 0
    assert over_seeds(results[:1])["A_d_spread"] == 0.0
