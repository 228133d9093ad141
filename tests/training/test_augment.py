"""Variations of inputs: each input by itself, repeatable, and nothing but what is asked for."""

import pytest
import torch

from ts_parity.training.augment import MOST_SHIFT, vary


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(6, 1, 3, 20, 30), (6, 20, 30), (6, 3, 20, 30)])
@pytest.mark.parametrize("kinds", [("shift",), ("flip",), ("mix",), ("shift", "flip", "mix"), ()])
def test_shapes_stay_and_the_dice_decide(shape, kinds):
    inputs = torch.rand(shape, generator=dice(9))
    varied = vary(inputs, kinds, dice(1))
    assert varied.shape == inputs.shape
    assert torch.equal(varied, vary(inputs, kinds, dice(1)))
    if kinds:
        assert not torch.equal(varied, vary(inputs, kinds, dice(2)))
    else:
        assert torch.equal(varied, inputs)


def test_a_shift_moves_the_whole_image_and_repeats_its_border():
    inputs = torch.arange(400.0).reshape(1, 1, 20, 20).repeat(64, 2, 1, 1)
    varied = vary(inputs, ("shift",), dice())
    most = round(MOST_SHIFT * 20)
    seen = set()
    for image in varied:
        assert torch.equal(image[0], image[1]), "channels move together"
        top_left = int(image[0, most, most])
        by = (top_left // 20 - most, top_left % 20 - most)
        assert max(map(abs, by)) <= most
        rows = (torch.arange(20) + by[0]).clamp(0, 19)
        columns = (torch.arange(20) + by[1]).clamp(0, 19)
        assert torch.equal(image[0], inputs[0, 0][rows][:, columns])
        seen.add(by)
    assert len(seen) > 10


def test_a_flip_is_for_about_half_of_them():
    inputs = torch.rand(200, 1, 8, 8, generator=dice(3))
    varied = vary(inputs, ("flip",), dice())
    flipped = [torch.equal(after, before.flip(-1)) for before, after in zip(inputs, varied, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(inputs, varied, strict=True)]
    assert all(a or b for a, b in zip(flipped, kept, strict=True))
    assert 70 < sum(flipped) < 130


def test_a_mix_lies_between_two_inputs():
    inputs = torch.stack([torch.full((1, 8, 8), float(n)) for n in range(100)])
    varied = vary(inputs, ("mix",), dice())
    changed = [float(after.mean()) != n for n, after in enumerate(varied)]
    assert 30 < sum(changed) < 70
    assert float(varied.min()) >= 0
    assert float(varied.max()) <= 99
    assert all(float(image.std()) < 1e-4 for image in varied)
