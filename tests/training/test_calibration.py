"""Confidence as training fits it: what is expected of an answer is what is found, on answers that it has not seen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.confidence import NUMBERS, TOP5, read_confidence
from ts_parity.training import calibration
from ts_parity.training.calibration import (
    FEWEST,
    RELEASED,
    HeldOut,
    NotCalibrated,
    calibrate,
    cross_validated,
    reliability,
)
from ts_parity.training.semantics import CLASSES, LENGTH_1, PROBABILITIES, SHARES, OutputSemantics

K = 2


def held_out(groups, seed, k=K, classes=10, noise=0.3, labelled=False):
    """A student that is off where the deployed model is unsure too: groups of logits (groups, k, 1, classes)."""
    dice = np.random.default_rng(seed)
    outputs = dice.normal(size=(groups, k, 1, classes)) * dice.gamma(2.0, 2.0, size=(groups, k, 1, 1))
    said = outputs + noise * dice.normal(size=outputs.shape)
    labels = None
    if labelled:
        labels = np.where(dice.random((groups, k)) < 0.9, outputs[:, :, 0].argmax(-1), 0)
    return HeldOut(outputs, {members: {0: said} for members in range(1, k + 1)}, labels)


STUDENT = make_code("student", K)


def worth(code, fitted, judged, semantics=CLASSES):
    return reliability(code, [calibrate(code, fitted, semantics)], [judged], semantics)


def test_what_is_expected_is_what_is_found():
    told = worth(STUDENT, held_out(1000, 1), held_out(20000, 2))
    assert 0.85 < told["agreement"] < 0.97
    assert told["expected"] == pytest.approx(told["agreement"], abs=0.01)
    assert told["off"] < 0.015
    for each in told["bins"]:
        assert each["expected"] == pytest.approx(each["agreement"], abs=0.05)


def test_the_surer_the_fewer_differ():
    told = worth(STUDENT, held_out(1000, 1), held_out(20000, 2))
    agreements = [told["agreement"], *(each["agreement"] for each in told["surest"])]
    assert agreements == sorted(agreements)
    assert agreements[-1] > 0.999
    for wanted, each in zip(RELEASED, told["surest"], strict=True):
        assert each["share"] == wanted
        assert each["released"] == pytest.approx(wanted, abs=0.03)
        low, high = each["agreement_95"]
        assert low <= each["agreement"] <= high


def test_with_labels_it_says_what_the_released_lose():
    """Against the deployed model's own answers to the same bodies, which are easier than all."""
    told = worth(STUDENT, held_out(1000, 1), held_out(5000, 2, labelled=True))
    every = [each["loss"] for each in told["surest"]]
    assert every == sorted(every, reverse=True)
    assert every[0] == pytest.approx(told["surest"][0]["A_a"] - told["surest"][0]["A_d"], abs=1e-4)


def test_nothing_is_expected_to_be_right_without_exception():
    perfect = held_out(100, 1, noise=0.0)
    [curve] = calibrate(STUDENT, perfect).confidence.curves.values()
    assert 1.0 - max(curve.expected) == pytest.approx(0.5 / 200, rel=0.1)


def test_bodies_that_are_repeated_prove_nothing_more():
    once = held_out(60, 1, noise=0.0)
    outputs = np.tile(once.outputs, (50, 1, 1, 1))
    often = HeldOut(outputs, {K: {0: outputs}}, contents=np.tile(np.arange(120).reshape(60, K), (50, 1)))
    curves = [calibrate(STUDENT, each).confidence.curves["1"] for each in (once, often)]
    assert max(curves[1].expected) == pytest.approx(max(curves[0].expected), abs=2e-3)


def test_of_few_bodies_there_is_no_confidence():
    told = calibrate(STUDENT, held_out(FEWEST // K - 1, 1))
    assert told == NotCalibrated(
        f"{FEWEST - K} held-out bodies are too few to say how sure an answer is; it takes {FEWEST}"
    )
    assert not isinstance(calibrate(STUDENT, held_out(FEWEST // K, 1)), NotCalibrated)


def test_a_curve_is_small_and_can_be_read_again():
    fitted = calibrate(STUDENT, held_out(20000, 1)).confidence
    text = json.dumps(fitted.as_json())
    assert len(text) < 1500
    assert read_confidence(json.loads(text)) == fitted


def sums(groups, seed, k=4, r=1, classes=10):
    """Parity outputs whose error grows with the number of members."""
    dice = np.random.default_rng(seed)
    code = make_code("sum", k, r)
    outputs = dice.normal(size=(groups, k, 1, classes)) * dice.gamma(2.0, 2.0, size=(groups, k, 1, 1))
    said = {
        members: {
            row: np.einsum("k,gk...->g...", np.array(code.coefficients[row][:members]), outputs[:, :members])
            + 0.5 * members * dice.normal(size=(groups, 1, classes))
            for row in range(r)
        }
        for members in range(1, k + 1)
    }
    return code, HeldOut(outputs, said)


def test_a_lone_member_is_surer_than_a_full_group():
    code, held = sums(3000, 1)
    fitted = calibrate(code, held).confidence
    assert sorted(fitted.curves) == ["1", "2", "3", "4"]
    output = np.array([[3.0] + [1.0] * 9])
    expected = [fitted.of(output, str(members)) for members in range(1, 5)]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] > expected[-1] + 0.1


@pytest.mark.slow
def test_with_two_rows_each_pattern_of_loss_has_a_curve():
    code, held = sums(3000, 1, k=2, r=2)
    fitted = calibrate(code, held)
    assert sorted(fitted.confidence.curves) == sorted(
        ["1:0:1", "1:1:1", "1:01:1", "2:0:1", "2:1:1", "2:01:1", "2:01:2"]
    )
    assert fitted.full == "2:01:1"
    output = np.array([[4.0] + [0.0] * 9])
    assert fitted.confidence.of(output, "2:01:1") > fitted.confidence.of(output, "2:01:2")
    assert worth(code, held, sums(2000, 2, k=2, r=2)[1])["off"] < 0.02


def numbers(groups, seed, count=1):
    """Prices: the larger, the farther off."""
    dice = np.random.default_rng(seed)
    outputs = 100.0 * dice.gamma(2.0, 1.0, size=(groups, K, 1, count))
    said = outputs * (1 + 0.1 * dice.normal(size=outputs.shape))
    return HeldOut(outputs, {members: {0: said} for members in range(1, K + 1)})


@pytest.mark.parametrize("metric", ["mae", "rmse"])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_of_numbers_an_error_is_predicted(metric, count):
    semantics = OutputSemantics(metric)
    fitted = calibrate(STUDENT, numbers(1000, 1, count), semantics)
    assert fitted.confidence.scorer.kind == NUMBERS
    judged = numbers(4000, 2, count)
    predicted = -fitted.confidence.scorer.scores(judged.protections[K][0].reshape(-1, 1, count))
    power = {"mae": 1, "rmse": 2}[metric]
    found = (np.abs(judged.protections[K][0] - judged.outputs) ** power).reshape(-1, count).mean(1) ** (1 / power)
    assert np.mean(predicted) == pytest.approx(np.mean(found), rel=0.1)
    if count < 40:
        assert np.corrcoef(predicted, found)[0, 1] > 0.3
    told = reliability(STUDENT, [fitted], [judged], semantics)
    assert told["agreement"] == pytest.approx(0.9, abs=0.02), "nine in ten are within the tolerance"
    assert told["expected"] == pytest.approx(told["agreement"], abs=0.02)
    off = [each["score"] for each in told["surest"]]
    assert count == 40 or off == sorted(off, reverse=True)


@pytest.mark.parametrize(
    ("semantics", "make"),
    [
        (OutputSemantics("accuracy", threshold=0.0), lambda dice: dice.normal(size=(1, 1)) * 3),
        (OutputSemantics("accuracy", threshold=0.5, bounds=SHARES), lambda dice: dice.random((1, 1))),
        (
            OutputSemantics("accuracy", threshold=0.5, bounds=PROBABILITIES),
            lambda dice: dice.dirichlet([0.3] * 5)[None],
        ),
        (OutputSemantics("top5"), lambda dice: 3 * dice.normal(size=(1, 30))),
        (OutputSemantics("labels"), lambda dice: 3 * dice.normal(size=(1, 4))),
        (OutputSemantics("labels", threshold=0.5, bounds=SHARES), lambda dice: dice.random((1, 4))),
        (OutputSemantics("iou"), lambda dice: np.cumsum(dice.random((2, 2)), axis=0).reshape(1, 4)),
        (OutputSemantics("cosine"), lambda dice: dice.normal(size=(1, 64))),
        (OutputSemantics("cosine", bounds=LENGTH_1), lambda dice: _unit(dice.normal(size=(1, 64)))),
        (OutputSemantics("accuracy"), lambda dice: 2 * dice.normal(size=(1, 6, 3))),
        (OutputSemantics("accuracy", axis=-3), lambda dice: 2 * dice.normal(size=(1, 3, 4, 4))),
        (OutputSemantics("mae"), lambda dice: dice.normal(size=())),
    ],
    ids=lambda value: f"{value.metric} {value.bounds} {value.axis}" if isinstance(value, OutputSemantics) else "",
)
def test_every_task_has_a_confidence(semantics, make):
    def held(seed):
        dice = np.random.default_rng(seed)
        outputs = np.stack([np.stack([make(dice) for _ in range(K)]) for _ in range(700)])
        said = outputs + 0.1 * dice.normal(size=outputs.shape)
        return HeldOut(outputs, {members: {0: said} for members in range(1, K + 1)})

    fitted, judged = calibrate(STUDENT, held(1), semantics), held(2)
    assert read_confidence(json.loads(json.dumps(fitted.confidence.as_json()))) == fitted.confidence
    told = reliability(STUDENT, [fitted], [judged], semantics)
    assert told["expected"] == pytest.approx(told["agreement"], abs=0.05)
    one = judged.protections[K][0][0, 0]
    assert 0.0 <= fitted.confidence.of(one) <= 1.0
    assert fitted.confidence.scorer.kind != TOP5 or semantics.metric == "top5"


def _unit(vector):
    return vector / np.linalg.norm(vector)


def test_outputs_that_are_all_alike_have_the_mean_for_a_confidence():
    held = held_out(200, 1)
    same = replace(held, protections={K: {0: np.ones_like(held.outputs)}})
    fitted = calibrate(STUDENT, same).confidence
    assert len(fitted.curves["1"].scores) == 1
    assert fitted.of(np.ones((1, 10))) == pytest.approx(0.1, abs=0.05)


def test_a_network_that_says_nan_leaves_no_hole():
    held = held_out(300, 1)
    said = held.protections[K][0].copy()
    said[::7] = np.nan
    fitted = calibrate(STUDENT, replace(held, protections={K: {0: said}})).confidence
    assert fitted.of(np.full((1, 10), np.nan)) == 0.0
    assert all(np.isfinite(curve.expected).all() for curve in fitted.curves.values())


def test_folds_are_judged_by_what_has_not_seen_them(monkeypatch):
    """And the archive's own curve has seen all of them."""
    folds = [numbered(held_out(100, seed), 1000 * seed) for seed in range(5)]
    others = numbered(held_out(60, 9), 9000)
    seen = []
    fitted = calibration._fitted
    monkeypatch.setattr(
        calibration, "_fitted", lambda code, held, semantics: seen.append(held) or fitted(code, held, semantics)
    )
    calibrated, told = cross_validated(STUDENT, [others], folds)
    assert told["fitted_on"] == 5 * 200 + 120
    assert told["bodies"] == 5 * 200
    whole, *without = seen
    for fold, held in zip(folds, without, strict=True):
        assert not set(held.bodies.flat) & set(fold.bodies.flat)
        assert held.different == 4 * 200 + 120
    assert calibrated.confidence == fitted(STUDENT, whole, CLASSES).confidence
    assert told["expected"] == pytest.approx(told["agreement"], abs=0.03)


def numbered(held, first):
    contents = first + np.arange(held.outputs.shape[0] * K).reshape(-1, K)
    return replace(held, contents=contents)


def test_too_few_in_all_folds_are_too_few():
    folds = [numbered(held_out(5, seed), 1000 * seed) for seed in range(5)]
    assert "50 held-out bodies are too few" in cross_validated(STUDENT, [], folds).reason


def test_an_interval_holds_for_bodies_and_not_for_their_repetitions():
    once, fitted = held_out(100, 1), [calibrate(STUDENT, held_out(1000, 2))]
    often = HeldOut(
        np.tile(once.outputs, (20, 1, 1, 1)),
        {K: {0: np.tile(once.protections[K][0], (20, 1, 1, 1))}},
        contents=np.tile(np.arange(200).reshape(100, K), (20, 1)),
    )
    told = [reliability(STUDENT, fitted, [each])["surest"][1]["agreement_95"] for each in (once, often)]
    assert told[1] == pytest.approx(told[0], abs=0.005)


def test_nine_in_ten_intervals_hold_what_is_true():
    """95 % of them, on the average."""
    fitted = [calibrate(STUDENT, held_out(1000, 0))]
    true = reliability(STUDENT, fitted, [held_out(10000, 1)])["surest"]
    hits = []
    for seed in range(2, 42):
        told = reliability(STUDENT, fitted, [held_out(150, seed)])["surest"]
        hits += [
            low <= each["agreement"] <= high
            for each, (low, high) in zip(true[:4], (one["agreement_95"] for one in told[:4]), strict=True)
        ]
    assert 0.9 <= np.mean(hits) <= 1.0
