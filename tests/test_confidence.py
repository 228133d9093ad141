"""How sure an output looks, and what is expected of it: the part that worker and proxy share."""

import json

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.confidence import (
    CLASSES,
    LABELS,
    NUMBERS,
    TOP5,
    Confidence,
    ConfidenceScorer,
    Curve,
    LinearErrorModel,
    from_header,
    in_header,
    pattern_of,
    read_confidence,
)
from ts_parity.errors import ConfigError

CURVE = Curve((0.0, 1.0, 3.0), (0.5, 0.75, 0.95))


def confidence(**scorer):
    return Confidence(ConfidenceScorer(**{"kind": CLASSES, **scorer}), {"1": CURVE, "2": Curve((0.0,), (0.25,))})


def logits_with_margin(margin):
    """Two classes whose shares differ by so much."""
    return np.array([np.log((1 + margin) / 2), np.log((1 - margin) / 2)])


def test_the_score_of_classes_is_their_margin():
    """-log(1 - margin), so that 0.999 and 0.9999 are told apart."""
    scores = ConfidenceScorer(CLASSES).scores(np.stack([logits_with_margin(m) for m in (0.0, 0.5, 0.999, 0.999999)]))
    np.testing.assert_allclose(scores, [0.0, np.log(2), np.log(1e3), np.log(1e6)], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_it_is_the_same_in_every_dtype_that_holds_the_output(dtype):
    output = np.array([[3.0, 1.0, -2.0]])
    expected = ConfidenceScorer(CLASSES).scores(output)
    np.testing.assert_allclose(ConfidenceScorer(CLASSES).scores(output.astype(dtype)), expected, rtol=1e-3)


def test_logits_of_any_size_have_a_score():
    scores = ConfidenceScorer(CLASSES).scores(
        np.array([[1e30, 0.0], [-1e4, -1e4], [65504.0, 65504.0]], dtype=np.float32)
    )
    assert np.isfinite(scores).all()
    assert scores[0] > 20
    assert scores[1] == scores[2] == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scorer", [ConfidenceScorer(CLASSES), ConfidenceScorer(LABELS), ConfidenceScorer(TOP5)])
def test_an_output_that_is_not_finite_is_never_trusted(scorer, wrong):
    outputs = np.array([[0.0] * 7, [wrong] + [0.0] * 6])
    expected = Confidence(scorer, {"1": CURVE}).expected(outputs)
    assert expected[0] >= 0.5
    assert expected[1] == 0.0


def test_an_output_without_numbers_is_never_trusted():
    assert confidence().of(np.zeros((1, 0))) == 0.0


def test_a_lone_score_is_a_yes_or_a_no():
    logits = ConfidenceScorer(CLASSES).scores(np.array([[-4.0], [0.0], [4.0]]))
    assert logits[0] == logits[2] > logits[1] == 0.0
    shares = ConfidenceScorer(CLASSES, probabilities=True).scores(np.array([[0.01], [0.5], [0.99], [1.3]]))
    assert shares[0] == pytest.approx(shares[2])
    assert shares[1] == 0.0
    assert shares[3] > shares[2], "decoded from a sum, a share may lie outside"


def test_probabilities_are_taken_as_they_are():
    scores = ConfidenceScorer(CLASSES, probabilities=True).scores(
        np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [1.2, -0.1, -0.1]])
    )
    np.testing.assert_allclose(scores[:2], [-np.log(0.5), -np.log(1.0)], atol=1e-9)
    assert scores[2] > 20


def test_of_tokens_or_pixels_the_mean_margin_counts():
    sure, unsure = logits_with_margin(0.998), logits_with_margin(0.0)
    scores = ConfidenceScorer(CLASSES).scores(np.stack([[sure, sure], [sure, unsure]]))
    np.testing.assert_allclose(scores, [-np.log(0.002), -np.log(0.501)], rtol=1e-6)
    channels_first = np.moveaxis(np.stack([[[sure, sure]], [[sure, unsure]]]), -1, 1)
    np.testing.assert_allclose(ConfidenceScorer(CLASSES, axis=-3).scores(channels_first), scores)


def test_of_the_five_best_what_they_leave_counts():
    few, many = np.zeros((1, 5)), np.zeros((1, 10))
    assert ConfidenceScorer(TOP5).scores(few)[0] > 20, "of five classes the five best hold any"
    assert ConfidenceScorer(TOP5).scores(many)[0] == pytest.approx(-np.log(0.5))


def test_of_labels_the_chance_that_all_are_as_said():
    wrong = 1 / (1 + np.e)
    assert ConfidenceScorer(LABELS).scores(np.array([[1.0, -1.0]]))[0] == pytest.approx(-np.log(1 - (1 - wrong) ** 2))
    shares = ConfidenceScorer(LABELS, probabilities=True).scores(np.array([[0.9, 0.1]]))
    assert shares[0] == pytest.approx(-np.log(1 - 0.81))


def test_of_numbers_the_error_that_is_predicted():
    error_model = LinearErrorModel((10.0,), (2.0,), (0.5, 1.0), 3.0)
    assert ConfidenceScorer(NUMBERS, error_model=error_model).scores(np.array([[14.0], [6.0], [1e9]])).tolist() == [
        -6.0,
        -4.0,
        -18.0,
    ]


def test_of_long_outputs_their_numbers_are_summed_up():
    error_model = LinearErrorModel((0.0,), (1.0,), (1.0, 0.0, 0.0), 0.0)
    scorer = ConfidenceScorer(NUMBERS, error_model=error_model)
    assert scorer.scores(np.full((1, 1, 64), 2.0))[0] == pytest.approx(-2.0)
    assert Confidence(scorer, {"1": CURVE}).of(np.zeros(3)) is None, "it was learned from longer ones"


def test_what_is_expected_lies_on_the_curve():
    told = confidence()
    assert told.of(logits_with_margin(0.0)) == 0.5
    assert told.of(logits_with_margin(1 - np.exp(-2.0))) == pytest.approx(0.85)
    assert told.of(logits_with_margin(0.999999)) == 0.95
    assert told.of(logits_with_margin(0.9), "2") == 0.25
    assert told.of(logits_with_margin(0.9), "3") is None
    assert told.of(np.float64(3.0)) is not None, "an output may be a number alone"


def test_outputs_of_other_shapes_are_unknown():
    assert confidence(axis=-3).of(np.zeros(4)) is None


def test_a_pattern_is_what_an_error_depends_on():
    both = frozenset({0, 1})
    assert pattern_of(make_code("student", 4), (), {0: frozenset({2, 3})}) == "1"
    assert pattern_of(make_code("sum", 2), (1,), {0: both}) == "2"
    assert pattern_of(make_code("sum", 4), (), {0: frozenset({3})}) == "1"
    assert pattern_of(make_code("sum", 2, 2), (1,), {0: both, 1: both}) == "2:01:1"
    assert pattern_of(make_code("sum", 2, 2), (), {0: both, 1: both}) == "2:01:2"
    assert pattern_of(make_code("sum", 2, 2), (0,), {1: both}) == "2:1:1"


LINED = Confidence(
    ConfidenceScorer(NUMBERS, error_model=LinearErrorModel((1.0, 2.0), (1.0, 3.0), (0.1, 0.2, 0.3, 0.4), 0.5)),
    {"1": CURVE},
)


@pytest.mark.parametrize("told", [confidence(), confidence(kind=TOP5, axis=-3, probabilities=True), LINED])
def test_json_keeps_it(told):
    assert read_confidence(json.loads(json.dumps(told.as_json()))) == told


@pytest.mark.parametrize(
    "changed",
    [
        {"score": "luck"},
        {"score": NUMBERS},
        {"axis": 0},
        {"axis": "last"},
        {"probabilities": 1},
        {"curves": {}},
        {"curves": {"1": {"scores": [], "expected": []}}},
        {"curves": {"1": {"scores": [0.0, 1.0], "expected": [0.5]}}},
        {"curves": {"1": {"scores": [0.0, 1.0], "expected": [0.9, 0.5]}}},
        {"curves": {"1": {"scores": [1.0, 1.0], "expected": [0.5, 0.9]}}},
        {"curves": {"1": {"scores": [0.0], "expected": [1.5]}}},
        {"curves": {"1": {"scores": [float("nan")], "expected": [0.5]}}},
        {"curves": {"1": {"scores": [True], "expected": [0.5]}}},
        {"curves": {"1": {"scores": [*range(100)], "expected": [0.5] * 100}}},
        {"curves": {str(n): {"scores": [0.0], "expected": [0.5]} for n in range(300)}},
        {"curves": [1]},
        {"line": {"mean": [0.0], "spread": [1.0], "weights": [1.0, 1.0], "constant": 0.0}},
    ],
)
def test_what_training_would_not_write_is_refused(changed):
    with pytest.raises(ConfigError, match="confidence"):
        read_confidence({**confidence().as_json(), **changed})


@pytest.mark.parametrize("told", [None, [], "high", 0.9])
def test_anything_else_is_refused(told):
    with pytest.raises(ConfigError, match="confidence"):
        read_confidence(told)


def test_a_header_carries_it_whole():
    assert in_header(0.99996312) == "0.999963"
    assert from_header(in_header(0.87)) == 0.87
    assert from_header("1") == 1.0
    assert [from_header(text) for text in (None, "", "sure", "nan", "1.5", "-1", "inf")] == [None] * 7
