"""Parts that have no content in common, whatever repeats."""

import numpy as np
import pytest

from ts_parity.training.split import contents_of, repeated, split


def test_bodies_with_any_key_in_common_are_one_content():
    keys = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "2"), ("d", "4"), ("d", "1")]
    [contents] = contents_of(keys)
    assert contents.tolist() == [0, 1, 0, 1, 0, 0], "the last ties ('d', '4') to the first"
    assert repeated(contents) == 4


def test_contents_are_counted_over_several_lists():
    own, other = contents_of([("a",), ("b",), ("a",)], [("c",), ("b",)])
    assert (own.tolist(), other.tolist()) == ([0, 1, 0], [2, 1])


@pytest.mark.parametrize("apart", [False, True])
def test_no_content_stands_in_two_parts_and_only_learning_sees_copies(apart):
    dice = np.random.default_rng(0)
    contents = dice.zipf(1.3, 3000) % 400  # as traffic repeats: some bodies make up much of it
    parts = split(contents, np.random.default_rng(1), apart)
    held = [parts.choose, parts.score]
    for part in held:
        assert len(np.unique(contents[part])) == len(part)
    everything = [set(contents[part]) for part in (parts.learn, *held)]
    assert sum(map(len, everything)) == len(set.union(*everything)) == len(np.unique(contents))
    assert len(parts.learn) == np.isin(contents, contents[parts.learn]).sum()
    assert (len(parts.score) == 0) == apart


def test_the_same_dice_give_the_same_parts():
    contents = np.arange(50)
    one, other = (split(contents, np.random.default_rng(3)) for _ in range(2))
    assert (one.learn == other.learn).all()
    assert (one.score == other.score).all()
    assert {len(one.learn), len(one.choose), len(one.score)} == {37, 5, 8}
