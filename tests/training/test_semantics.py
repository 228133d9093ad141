"""What outputs are taken for: each kind by itself, by its labels, by the handler's answers, and by --metric."""

import json

import numpy as np
import pytest

from ts_parity.errors import TrainingError
from ts_parity.training.semantics import ANY, LENGTH_1, LOGARITHMS, PROBABILITIES, SHARES, infer_semantics

DICE = np.random.default_rng(0)
N = 200
LOGITS = DICE.normal(size=(N, 1, 10))
CHANCES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LONE = DICE.normal(size=(N, 1, 1))
TAGS = 1 / (1 + np.exp(-3 * DICE.normal(size=(N, 1, 5))))
CORNERS = np.sort(DICE.uniform(size=(N, 1, 2, 2)), axis=2).reshape(N, 1, 4)
CENTRES = np.concatenate([DICE.uniform(0.4, 0.6, (N, 1, 2)), DICE.uniform(0.1, 0.7, (N, 1, 2))], axis=-1)
LONG = DICE.normal(size=(N, 1, 128))
UNIT = LONG / np.linalg.norm(LONG, axis=-1, keepdims=True)
SIZES = np.array([178.0, 35.0, 56.0]) + DICE.normal(size=(N, 1, 3)) * np.array([24.0, 3.0, 7.0])
RARE = np.array([4.0, -4.0]) + DICE.normal(size=(N, 1, 1)) * np.array([1.0, -1.0])  # a fraud in a thousand


def found(outputs, labels=None, answers=(), metric=None):
    return infer_semantics(metric, outputs, labels, lambda: [json.dumps(each).encode() for each in answers])


@pytest.mark.parametrize(
    ("outputs", "kind", "metric", "bounds"),
    [
        (LOGITS, "classes", "accuracy", ANY),
        (LOGITS[:, 0], "classes", "accuracy", ANY),
        (CHANCES, "classes", "accuracy", PROBABILITIES),
        (np.log(CHANCES), "classes", "accuracy", LOGARITHMS),
        (CHANCES.astype(np.float16), "classes", "accuracy", PROBABILITIES),
        (RARE, "classes", "accuracy", ANY),
        (LONE, "numbers", "mae", ANY),
        (LONE[:, 0], "numbers", "mae", ANY),
        (LONE[:, 0, 0], "numbers", "mae", ANY),
        (100 + 10 * LONE, "numbers", "mae", ANY),
        (TAGS[..., :1], "numbers", "mae", SHARES),
        (TAGS, "labels", "labels", SHARES),
        (CORNERS, "box", "iou", SHARES),
        (CORNERS * 600 - 20, "box", "iou", ANY),
        (CENTRES, "numbers", "mae", SHARES),
        (SIZES, "numbers", "mae", ANY),
        (UNIT, "embedding", "cosine", LENGTH_1),
        (np.maximum(LONG, 0), "embedding", "cosine", ANY),
        (LONG, "classes", "accuracy", ANY),
    ],
)
def test_what_outputs_tell_by_themselves(outputs, kind, metric, bounds):
    semantics = found(outputs)
    assert (semantics.kind, semantics.metric, semantics.bounds) == (kind, metric, bounds)


WHOLE = DICE.integers(0, 10, N)


IDS = WHOLE.astype(np.float32) % 3


@pytest.mark.parametrize(
    ("outputs", "labels", "metric", "numbered"),
    [
        (IDS, None, None, True),
        (IDS[:, None, None], None, None, True),
        (IDS % 2, None, None, True),
        (IDS, WHOLE % 3, None, True),
        (IDS % 2, WHOLE % 2, None, True),
        (IDS, None, "accuracy", True),
        (IDS, None, "mae", False),
        (IDS - 1, None, None, False),
        (IDS + 0.5, None, None, False),
        (IDS[:15], None, None, False),  # too few to tell
        (DICE.integers(18, 90, N).astype(np.float32), None, None, False),  # ages
        (DICE.integers(0, 150, N).astype(np.float32), None, None, False),  # each seen once or twice
        (DICE.integers(0, 3, (N, 1, 6, 6)).astype(np.float32), None, None, True),  # a class for each pixel
        (DICE.integers(0, 10, (N, 1, 3)).astype(np.float32), None, None, False),  # votes
        (np.eye(3, dtype=np.float32)[WHOLE % 3], None, None, False),
    ],
)
def test_numbers_of_classes_are_no_quantities_and_no_scores(outputs, labels, metric, numbered):
    semantics = found(outputs, labels, metric=metric)
    assert semantics.numbered == numbered
    if numbered:
        assert semantics.metric == "accuracy"
        said = semantics.answers(outputs, 1)
        assert np.array_equal(said.reshape(outputs.shape), outputs)
        other = np.where(outputs == 0, 1, outputs)
        assert np.mean(semantics.scores(other, said, 1)) == pytest.approx(1 - np.mean(outputs == 0))


@pytest.mark.parametrize(
    ("outputs", "labels", "metric"),
    [
        (LOGITS, WHOLE, "accuracy"),
        (LONE, WHOLE % 2, "accuracy"),
        (TAGS[..., :1], WHOLE % 2, "accuracy"),
        (LONE, WHOLE, "mae"),  # a count, or the diabetes table's whole numbers
        (LONE, DICE.normal(size=N), "mae"),
        (TAGS, (TAGS[:, 0] > 0.5).astype(np.int64), "labels"),
        (LOGITS, (LOGITS[:, 0] > 0).astype(np.int64), "labels"),
        (LOGITS, LOGITS[:, 0], "mae"),
        (CORNERS, CORNERS[:, 0], "iou"),
        (LOGITS[..., :4], CORNERS[:, 0], "iou"),  # a model that learned little
        (LOGITS[..., :4], LOGITS[:, 0, :4], "mae"),
    ],
)
def test_labels_tell_more(outputs, labels, metric):
    assert found(outputs, labels).metric == metric


def test_what_the_handler_answers_tells_where_outputs_leave_a_doubt():
    words = [{"label": "spam" if x > 0 else "ham", "score": float(x)} for x in LONE[:20, 0, 0]]
    assert found(LONE, answers=words).metric == "accuracy"
    assert found(TAGS[..., :1], answers=[int(x > 0.5) for x in TAGS[:20, 0, 0]]).threshold == 0.5
    assert found(LONE, answers=["ham"] * 20).metric == "accuracy", "no spam among them"
    assert found(LONE, answers=[float(x) for x in LONE[:20, 0, 0]]).metric == "mae"
    assert found(LONE, answers=[{"price": float(x), "unit": "EUR"} for x in LONE[:20, 0, 0]]).metric == "mae"
    assert found(LONE, answers=[round(100 * float(x)) for x in LONE[:20, 0, 0]]).metric == "mae"
    assert found(LONG, answers=LONG[:20, 0].tolist()).metric == "cosine"
    top = [[[int(i), float(row[i])] for i in row.argsort()[-5:]] for row in LONG[:20, 0]]
    assert found(LONG, answers=top).metric == "accuracy"
    tags = [[f"tag {i}" for i in np.flatnonzero(row > 0)] for row in LOGITS[:20, 0]]
    assert found(LOGITS, answers=tags).metric == "labels"
    assert found(LOGITS, answers=[{"tags": each, "model": "v3"} for each in tags]).metric == "labels"
    assert found(LOGITS, answers=[["cat", "dog", "fox"]] * 20).metric == "accuracy", "always the three best"
    peaked = LONG.copy()
    peaked[np.arange(N), 0, DICE.integers(0, 128, N)] += 9
    assert found(peaked, answers=peaked[:20, 0].tolist()).metric == "accuracy", "one class stands out in each"


def test_pixels_and_tokens():
    pixels = DICE.normal(size=(30, 1, 3, 8, 9))
    shares = np.exp(pixels) / np.exp(pixels).sum(2, keepdims=True)
    assert (found(pixels).metric, found(pixels).axis) == ("accuracy", -3)
    assert (found(shares).bounds, found(shares).axis) == (PROBABILITIES, -3)
    assert (found(pixels[:, 0]).axis, found(pixels[:, :, 0]).axis) == (-3, -1)
    assert found(pixels[:, :, :1]).metric == "mae", "a depth for each pixel"
    assert found(1 / (1 + np.exp(-pixels[:, :, :1]))).metric == "labels", "a mask"


def test_the_metric_that_is_asked_for_wins():
    assert found(LOGITS, metric="mae").kind == "numbers"
    assert found(LONE, metric="accuracy").threshold == 0.0
    assert found(TAGS[..., :1], metric="accuracy").threshold == 0.5
    assert found(LOGITS, WHOLE, metric="top5").metric == "top5"
    assert found(LOGITS, metric="mae").why == "--metric says so"


@pytest.mark.parametrize(
    ("outputs", "labels", "metric", "why"),
    [
        (LOGITS, None, "iou", "needs four outputs, two corners of a box; this model has 10"),
        (LONE, None, "cosine", "needs several outputs; this model has one"),
        (LONE, None, "top5", "needs several outputs; this model has one"),
        (LOGITS, WHOLE, "mae", "--labels gives 1 numbers a body; mean absolute error of this model's outputs"),
        (LOGITS, CORNERS[:, 0], None, "--labels gives 4 numbers a body; accuracy of this model's outputs"),
        (LOGITS, WHOLE + 0.5, None, "--labels gives fractions, such as .*.5, and the model 10 outputs a body"),
        (CORNERS, WHOLE, "iou", "--labels gives 1 numbers a body"),
    ],
)
def test_what_does_not_fit_together_is_refused(outputs, labels, metric, why):
    with pytest.raises(TrainingError, match=why):
        found(outputs, labels, metric=metric)
