"""Histograms: narrow buckets give percentiles, wide ones go to Prometheus, and both hold the same."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ts_parity.proxy.serving.durations import (
    BUCKETS,
    ENDS_S,
    LABELS,
    NARROW,
    WIDE_S,
    CountedDurations,
    DurationHistogram,
    added,
    beyond,
    bucket_of,
    farthest,
    percentile,
    wide_label,
)


def test_narrow_buckets_are_narrow_and_no_wide_one_ends_within_one() -> None:
    assert all(end <= start * NARROW * (1 + 1e-9) for start, end in pairwise(ENDS_S))
    assert set(WIDE_S) <= set(ENDS_S)
    assert len(ENDS_S) == BUCKETS - 1


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.00051, 0.001, 0.0200001, 119.9, 120.0, 500.0])
def test_one_duration_is_in_one_bucket_of_each_kind(seconds: float) -> None:
    histogram = DurationHistogram()
    one = CountedDurations([seconds])
    assert one.counts() == {bucket_of(seconds): 1}
    histogram.add(one)
    wide = dict(zip(LABELS, histogram.wide(), strict=True))
    assert [end for end, upto in wide.items() if upto] == [*LABELS[LABELS.index(wide_label(seconds)) :]]
    assert histogram.total_s == seconds


def test_added_together_or_one_by_one_is_the_same() -> None:
    dice = random.Random(1)
    many = [dice.lognormvariate(-3, 1.5) for _ in range(500)]
    together, single = DurationHistogram(), DurationHistogram()
    together.add(CountedDurations(many))
    for each in many:
        single.add(CountedDurations([each]))
    assert added(CountedDurations([each]).counts() for each in many) == CountedDurations(many).counts()
    assert together.wide() == single.wide()
    assert together.total_s == pytest.approx(single.total_s)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
def test_percentiles_are_off_by_less_than_a_bucket(share: float) -> None:
    dice = random.Random(2)
    many = sorted(dice.lognormvariate(-3, 0.7) for _ in range(20_000))
    found = percentile(CountedDurations(many).counts(), share)
    assert found == pytest.approx(many[int(share * len(many))], rel=NARROW - 1)


def test_a_percentile_with_a_handful_behind_it_is_not_told() -> None:
    counts = CountedDurations([0.01] * 999).counts()
    assert percentile(counts, 0.99) is None
    assert percentile(counts, 0.9) is not None
    assert percentile({}, 0.5) is None
    assert percentile(CountedDurations([0.01]).counts(), 0.5) is not None, "a median is told of whatever there is"
    assert farthest(counts, counts) == 0.9
    assert farthest(added([counts, {bucket_of(0.01): 1}])) == 0.99


def test_the_tail_ends_at_the_slowest() -> None:
    curve = beyond(CountedDurations([0.01, 0.01, 0.02, 0.4]).counts())
    assert [share for _, share in curve] == [0.5, 0.25, 0.0]
    assert curve[-1][0] == ENDS_S[bucket_of(0.4)]
