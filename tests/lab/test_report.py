"""Summaries are made from records alone, and say nothing that the samples do not support."""

import pytest

from ts_parity.lab.records import QueryRecord
from ts_parity.lab.report import percentile, plot_latencies, summarize, table


def record(seq, latency_s=0.01, outcome="deployed", predicted=1, label=1, lag_s=0.0):
    return QueryRecord(seq, float(seq), seq + lag_s, latency_s, outcome, 200, predicted, label)


def test_every_query_is_counted_once():
    records = [record(0), record(1, outcome="reconstructed"), record(2, outcome="error"), record(3, None, "lost")]
    summary = summarize(records, work_per_query=1.5)
    assert (summary.queries, summary.answered, summary.errors, summary.lost) == (4, 2, 1, 1)
    assert summary.reconstructed == 1
    assert summary.work_per_query == 1.5


def test_accuracy_overall_and_of_rebuilt_answers():
    records = [record(i) for i in range(6)]
    records += [record(6, outcome="reconstructed", predicted=2), record(7, outcome="reconstructed")]
    records += [record(8, outcome="error", predicted=None), record(9, label=None)]
    summary = summarize(records)
    assert summary.accuracy == pytest.approx(7 / 8)
    assert summary.accuracy_reconstructed == pytest.approx(1 / 2)


def test_labels_read_from_a_file_compare_with_numbers_from_json():
    assert summarize([record(0, predicted=3, label="3")]).accuracy == 1.0


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        (7, 0.5, 4.0),
        (6, 0.5, None),
        (459, 0.99, 455.0),
        (458, 0.99, None),
        (10_000, 0.999, 9990.0),
        (4_603, 0.999, 4_599.0),
        (4_602, 0.999, None),
        (0, 0.5, None),
    ],
)
def test_a_percentile_needs_so_many_samples_that_one_is_beyond_it(samples, share, expected):
    assert percentile([float(n) for n in range(1, samples + 1)], share) == expected


def test_errors_do_not_flatter_the_percentiles():
    """A fast error is no fast answer."""
    slow = [record(i, 1.0) for i in range(40)]
    fast_errors = [record(i, 0.001, "error") for i in range(40, 400)]
    assert summarize(slow + fast_errors).p50_ms == 1000.0


def test_the_table_shows_a_dash_where_there_is_nothing_to_say():
    lines = table({"round_robin": summarize([]), "coded": summarize([record(i) for i in range(20)], 1.53)}).splitlines()
    assert lines[2].split() == ["round", "robin", "-", "-", "-", "0", "0", "-", "-", "-", "-"]
    assert lines[3].split() == ["coded", "10.0", "-", "-", "0", "0", "0.00%", "100.00%", "-", "1.53"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.slow
def test_the_plot_is_a_png(tmp_path):
    arms = {"coded": [record(i, 0.001 * (i + 1)) for i in range(50)], "none": [record(0, None, "lost")]}
    plot_latencies(arms, tmp_path / "latency.png", "three arms")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
