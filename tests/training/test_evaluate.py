"""What a rebuilt answer is worth, as one pure function: by hand where it can be worked out by hand."""

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.training.evaluate import evaluate, over_seeds
from ts_parity.training.semantics import CLASSES, SHARES, OutputSemantics

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
        scores = evaluate(code, outputs, {1: {0: outputs}}, np.array([[label]]), OutputSemantics("top5"))
        assert scores["A_a"] == right


def test_boxes_are_scored_by_their_overlap():
    code = make_code("exact", 1)
    outputs = np.array([[[[0.0, 0.0, 2.0, 2.0]]]])
    for box, overlap in (([0, 0, 2, 2], 1.0), ([2, 2, 0, 0], 1.0), ([1, 0, 3, 2], 1 / 3), ([5, 5, 6, 6], 0.0)):
        scores = evaluate(code, outputs, {1: {0: outputs}}, np.array([[box]], float), OutputSemantics("iou"))
        assert scores["A_a"] == pytest.approx(overlap, abs=1e-5)
        assert scores["score"] == 1.0
        assert "agreement" not in scores, "overlap is not agreement"


def test_outputs_of_one_number_are_classes_by_sign():
    code = make_code("exact", 1)
    outputs = np.array([[[[0.7]]], [[[-2.0]]]])
    scores = evaluate(code, outputs, {1: {0: -outputs}}, np.array([[1], [0]]))
    assert (scores["A_a"], scores["A_d"], scores["agreement"]) == (1.0, 0.0, 0.0)


def exact(outputs, rebuilt, labels=None, semantics=CLASSES):
    """One query a group; what a backup said in its place."""
    return evaluate(make_code("exact", 1), outputs[:, None], {1: {0: rebuilt[:, None]}}, labels, semantics)


def test_a_lone_probability_says_yes_above_a_half():
    outputs, rebuilt = np.array([[0.7], [0.2]]), np.array([[0.6], [0.1]])
    yes = OutputSemantics("accuracy", threshold=0.5, bounds=SHARES)
    scores = exact(outputs, rebuilt, np.array([[1], [0]]), yes)
    assert (scores["A_a"], scores["A_d"], scores["agreement"]) == (1.0, 1.0, 1.0)
    assert exact(outputs, 1 - rebuilt, semantics=yes)["agreement"] == 0.0


def test_numbers_are_off_by_so_much_in_their_own_unit():
    """Off by 10 in every second answer, of outputs that spread by 50."""
    outputs = np.array([[100.0], [200.0], [100.0], [200.0]])
    rebuilt = outputs + np.array([[10.0], [0.0], [-10.0], [0.0]])
    scores = exact(outputs, rebuilt, semantics=OutputSemantics("mae"))
    assert (scores["score"], scores["spread"]) == (5.0, 50.0)
    assert scores["error"] == pytest.approx(np.sqrt(50) / 50, abs=1e-5)
    assert (scores["loss"], scores["loss_of"]) == (pytest.approx(0.02), "the outputs' variance")
    assert "agreement" not in scores
    assert exact(outputs, rebuilt, semantics=OutputSemantics("rmse"))["score"] == pytest.approx(np.sqrt(50), abs=1e-4)


def test_numbers_against_labels_are_errors_and_no_accuracy():
    outputs = np.array([[100.0], [200.0], [100.0], [200.0]])
    labels = outputs + 20.0  # (groups, k = 1)
    scores = exact(outputs, outputs - 10.0, labels, OutputSemantics("mae"))
    assert (scores["E_a"], scores["E_d"]) == (20.0, 30.0)
    assert scores["E_o"]["0.10"] == pytest.approx(21.0)
    assert scores["E_default"] == pytest.approx(50.0), "the median of all labels"
    assert scores["loss"] == pytest.approx((900 - 400) / 2500)
    assert not {"A_a", "A_d", "drop", "agreement"} & scores.keys()
    squares = exact(outputs, outputs - 10.0, labels, OutputSemantics("rmse"))
    assert squares["E_o"]["0.10"] == pytest.approx(np.sqrt(0.9 * 400 + 0.1 * 900), abs=1e-4)


def test_numbers_of_several_units_count_alike_and_one_that_never_changes_does_no_harm():
    grams, metres = RNG.normal(70_000, 10_000, 200), RNG.normal(1.7, 0.1, 200)
    outputs = np.stack([grams, metres, np.full(200, 3.0)], axis=1)
    rebuilt = outputs + np.array([0.0, 0.1, 0.0])  # a whole spread off in the small one
    assert exact(outputs, rebuilt, semantics=OutputSemantics("mae"))["loss"] == pytest.approx(1 / 3, rel=0.2)


def test_several_labels_are_compared_as_sets():
    outputs = np.array([[0.9, 0.8, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.1]])
    rebuilt = np.array([[0.9, 0.2, 0.1], [0.9, 0.1, 0.1], [0.2, 0.2, 0.2]])
    semantics = OutputSemantics("labels", threshold=0.5, bounds=SHARES)
    scores = exact(outputs, rebuilt, np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])[:, None], semantics)
    assert scores["score"] == pytest.approx((0.5 + 1 + 1) / 3, abs=1e-5)
    assert scores["A_a"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-5)
    assert scores["A_default"] == pytest.approx((1 + 1 + 0) / 3, abs=1e-5)
    assert "agreement" not in scores


def test_embeddings_are_compared_by_direction():
    outputs = np.array([[3.0, 4.0], [0.0, 2.0]])
    scores = exact(outputs, np.array([[30.0, 40.0], [2.0, 0.0]]), semantics=OutputSemantics("cosine"))
    assert (scores["score"], scores["loss"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_class_for_each_pixel():
    outputs = RNG.normal(size=(6, 1, 3, 4, 5))
    scores = exact(outputs, outputs, outputs.argmax(2).reshape(6, 1, 20), OutputSemantics(axis=-3))
    assert (scores["A_a"], scores["A_d"], scores["agreement"]) == (1.0, 1.0, 1.0)
    turned = np.roll(outputs, 1, axis=2)
    assert exact(outputs, turned, semantics=OutputSemantics(axis=-3))["agreement"] == 0.0


def test_several_seeds_have_a_mean_and_a_spread():
    results = [{"metric": "accuracy", "A_d": a, "agreement": 0.9, "A_o": {"0.10": a / 2}} for a in (0.8, 0.9)]
    mean = over_seeds(results)
    assert (mean["A_d"], mean["A_d_spread"]) == (pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4))
    assert mean["A_o"]["0.10"] == pytest.approx(0.425)
    assert mean["agreement_spread"] == 0
    assert over_seeds(results[:1])["A_d_spread"] == 0.0
