"""What benchmarks/accuracy.py makes its data of: the same seed makes the same, and every label is true."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import accuracy_boxes
import accuracy_data
import accuracy_words
from ts_parity.training.architectures import Shapes
from ts_parity.training.sizing import multiplications


@pytest.fixture(scope="module")
def digits():
    """(n, 28, 28) in [0, 1], as MNIST's: scans of 8 x 8 blown up, with a white border."""
    scans = load_digits().images[:60] / 16.0
    return np.pad(np.kron(scans, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.float32)


def test_the_same_seed_makes_the_same_canvases(digits):
    one, other, third = (accuracy_boxes.make_canvases(digits, 12, seed) for seed in (3, 3, 4))
    for array, again in zip(one, other, strict=True):
        np.testing.assert_array_equal(array, again)
    assert (one[0] != third[0]).any()
    assert (one[1] != third[1]).any()


def test_a_box_is_tight_around_the_digit(digits, monkeypatch):
    """Without scraps there is nothing else: no ink outside, and ink at each of its sides."""
    monkeypatch.setattr(accuracy_boxes, "_SCRAPS", 0)
    canvases, boxes = accuracy_boxes.make_canvases(digits, 30, 0)
    assert canvases.shape == (30, 1, accuracy_boxes.SIDE, accuracy_boxes.SIDE)
    for canvas, box in zip(canvases[:, 0] > accuracy_boxes._INK, boxes, strict=True):
        x1, y1, x2, y2 = np.rint(box * accuracy_boxes.SIDE).astype(int)
        assert 0 <= x1 < x2 <= accuracy_boxes.SIDE
        assert 0 <= y1 < y2 <= accuracy_boxes.SIDE
        assert canvas.sum() == canvas[y1:y2, x1:x2].sum()
        assert canvas[y1, x1:x2].any()
        assert canvas[y2 - 1, x1:x2].any()
        assert canvas[y1:y2, x1].any()
        assert canvas[y1:y2, x2 - 1].any()


def test_a_canvas_is_cluttered(digits):
    canvases, boxes = accuracy_boxes.make_canvases(digits, 30, 0)
    outside = canvases[:, 0].copy()
    for canvas, box in zip(outside, np.rint(boxes * accuracy_boxes.SIDE).astype(int), strict=True):
        canvas[box[1] : box[3], box[0] : box[2]] = 0.0
    assert (outside > accuracy_boxes._INK).any((1, 2)).mean() > 0.9


@pytest.mark.slow
def test_a_narrower_locator_costs_less():
    shapes = Shapes((1, 1, 32, 32), (1, 4))
    costs = [
        multiplications(torch.nn.Sequential(torch.nn.Flatten(0, 1), accuracy_boxes.locator((1, 32, 32), 4, w)), shapes)
        for w in (0.25, 0.5, 1.0)
    ]
    assert costs[0] < 0.5 * costs[1] < 0.25 * costs[2]


@pytest.fixture(scope="module")
def few_words():
    pytest.importorskip("espeakng_loader", reason="espeak-ng has no wheel for this platform")
    return accuracy_words.make_words(24, 8, seed=5)


@pytest.mark.slow
def test_the_same_seed_speaks_the_same_words(few_words):
    """espeak-ng throws dice for breath and flutter, and by itself seeds them by the clock."""
    for array, again in zip(few_words, accuracy_words.make_words(24, 8, seed=5), strict=True):
        np.testing.assert_array_equal(array, again)


@pytest.mark.slow
def test_words_look_as_a_handler_makes_them(few_words):
    images, labels = few_words[:2]
    assert images.shape == (24, 1, accuracy_words.SIDE, accuracy_words.SIDE)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mean((1, 2, 3)), 0.0, atol=1e-3)
    np.testing.assert_allclose(images.std((1, 2, 3)), 1.0, atol=1e-3)
    assert set(labels) <= set(range(len(accuracy_words.WORDS)))


@pytest.mark.slow
def test_nobody_speaks_on_both_sides(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeak-ng has no wheel for this platform")
    heard = []

    def silent(utterances):
        heard.append({each.voice for each in utterances})
        return [np.ones(10, dtype=np.float32) for _ in utterances]

    monkeypatch.setattr(accuracy_words, "spoken", silent)
    monkeypatch.setattr(accuracy_words, "with_noise", lambda seconds, dice: seconds)
    monkeypatch.setattr(accuracy_words, "spectrogram", lambda seconds: seconds)
    accuracy_words.make_words(400, 200)
    train, test = heard
    assert len(train) > 50
    assert len(test) > 10
    assert not train & test


@pytest.mark.parametrize("kind", accuracy_words.NOISES)
def test_a_noise_is_as_loud_as_is_said(kind, monkeypatch):
    """At 0 decibels as loud as the word."""
    monkeypatch.setattr(accuracy_words, "NOISES", (kind,))
    monkeypatch.setattr(accuracy_words, "_MOST_DB", accuracy_words._LEAST_DB)
    moments = np.arange(accuracy_words.RATE_HZ) / accuracy_words.RATE_HZ
    words = np.stack([np.sin(2 * np.pi * hertz * moments) for hertz in (300, 500, 700)]).astype(np.float32)
    added = accuracy_words.with_noise(words, np.random.default_rng(0)) - words
    np.testing.assert_allclose(np.sqrt(np.square(added).mean(1)), np.sqrt(0.5), rtol=1e-3)


def test_a_tone_lights_its_band():
    moments = np.arange(accuracy_words.RATE_HZ) / accuracy_words.RATE_HZ
    tones = np.stack([np.sin(2 * np.pi * hertz * moments) for hertz in (200.0, 1000.0, 4000.0)]).astype(np.float32)
    brightest = accuracy_words.spectrogram(tones)[:, 0, :, 5].argmax(1)
    assert list(brightest) == sorted(set(brightest)), "higher tones in higher bands"


def test_what_takes_minutes_is_made_once(tmp_path, monkeypatch):
    rng, made = np.random.default_rng(0), []

    def make(folder):
        made.append(folder)
        return [rng.random((5, 1, 4, 4), dtype=np.float32), np.arange(5), rng.random((2, 1, 4, 4)), np.arange(2)]

    monkeypatch.setitem(accuracy_data.MAKERS, "made", make)
    first, second = (accuracy_data.load("made", tmp_path, tmp_path) for _ in range(2))
    assert made == [tmp_path]
    assert torch.equal(first.train, second.train)
    assert first.train.shape == (5, 1, 1, 4, 4)
    assert first.outputs == second.outputs == 5
