"""What a bench makes of its records: figures, verdicts, a page."""

import json
import random
import re

import pytest

from ts_parity.lab.bench import BenchTarget, Measured, agreement, described, for_thresholds
from ts_parity.lab.bench_page import bench_page, bench_table, curve
from ts_parity.lab.intervals import interval
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.thresholds import threshold
from ts_parity.lab.traffic import Load


def lasting(latencies, name="m", outcome="deployed"):
    """Measured so, one query after another; None: it is lost."""
    return Measured(
        BenchTarget(name, "http://h:1/"),
        [
            QueryRecord(seq, float(seq), float(seq), latency, "lost" if latency is None else outcome, 200, "cat")
            for seq, latency in enumerate(latencies)
        ],
    )


def load_of(measured):
    return Load(tuple(float(record.seq) for record in measured.records), (0,) * len(measured.records))


def verdict(text, measured):
    wanted = threshold(text)
    row = described(measured, load_of(measured))
    return wanted.broken_by(for_thresholds(row, [wanted], measured))


@pytest.mark.parametrize(
    ("written", "at"),
    [("p99", 990), ("p99.0", 990), ("p99.00", 990), ("p05", 50), ("p5", 50), ("p50.05", 501), ("p0.00000001", 1)],
)
def test_a_percentile_is_judged_however_it_is_written(written, at):
    measured = lasting([rank / 1000 for rank in range(1, 1001)])
    assert verdict(f"{written}>={at}ms", measured) == f"{written}>={at}ms: it is {at:.1f} ms"
    assert verdict(f"{written}>{at}ms", measured) == ""


def with_trouble():
    """500 queries: 490 answered in 10 ms, 4 lost at the end of all, 6 failed at once."""
    found = lasting([0.01] * 490 + [None] * 4)
    found.records += lasting([0.001] * 6, outcome="error").records
    return found


def test_a_query_without_an_answer_is_infinitely_late():
    measured = with_trouble()
    row = described(measured, load_of(measured))
    assert (row["p50"], row["p90"], row["lag"]) == (0.01, 0.01, 0.0)
    assert (row["p99"], row["mean"], row["max"]) == (None, None, None)
    assert row["unanswered"] == ["p99", "mean", "max"], "p99.9 has too few samples, which is something else"
    assert row["intervals"] == {"p50": [0.01, 0.01], "p90": [0.01, 0.01], "p99": [0.01, None]}
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("what", ["p99>80ms", "p99.0>20s", "mean>20s", "max>20s"])
def test_a_threshold_of_a_time_breaks_where_queries_get_no_answer(what):
    assert verdict(what, with_trouble()) == f"{what}: 10 of 500 queries got no answer"


@pytest.mark.parametrize("what", ["p97>80ms", "p99<1ms", "lag>1ms"])
def test_a_threshold_that_no_query_without_an_answer_decides_holds(what):
    assert verdict(what, with_trouble()) == ""


def test_an_interval_ends_at_what_was_measured():
    """Between a number and infinity there is none."""
    assert interval([1.0] * 100 + [float("inf")] * 100, 0.5) == (1.0, float("inf"))
    assert interval([float("inf")] * 100, 0.5) == (float("inf"), float("inf"))


def page_of(*measured):
    rows = [described(each, load_of(each)) for each in measured]
    return bench_page(rows, measured, {"failed": [], "inputs": {}, "made": ""})


def test_the_page_and_the_table_say_that_queries_got_no_answer():
    measured = with_trouble()
    page = page_of(measured, lasting([0.02] * 500, "plain"))
    assert "p99 is among the 10 of 500 queries without an answer at m; 20.0 ms (20.0 to 20.0) at plain." in page
    assert '<span>unanswered <span class="between">at least 10.0</span></span>' in page
    head, line = bench_table([described(measured, load_of(measured))]).splitlines()
    assert dict(zip(head.replace(" ms", "").replace("lag p99", "lag").split(), line.split(), strict=True)) == {
        "target": "m", "p50": "10.0", "p90": "10.0", "p99": "unanswered", "p99.9": "-", "max": "unanswered",
        "lag": "0.0", "queries": "500", "errors": "6", "lost": "4", "rebuilt": "0", "hedged": "0", "differing": "-",
    }  # fmt: skip


def test_the_curve_and_the_percentiles_are_of_the_same_queries(monkeypatch):
    monkeypatch.setattr("ts_parity.lab.intervals.RESAMPLES", 10)
    measured = lasting([n / 1000 for n in range(1, 4998)] + [None] * 3)
    row = described(measured, load_of(measured))
    shares = {round(milliseconds): share for milliseconds, share in curve(measured)}
    assert row["p99.9"] == 4.995
    assert shares[4995] == 6 / 5000, "itself, two that took longer, and three without an answer"


@pytest.mark.parametrize(
    ("text", "differing", "unknown", "said"),
    [
        ("differing>0", 0, 999, "differing>0: not measured; 999 of 1000 rebuilt answers could not be compared"),
        ("differing>0%", 0, 999, "differing>0%: not measured; 999 of 1000 rebuilt answers could not be compared"),
        ("differing>=1", 0, 1, "differing>=1: not measured; 1 of 1000 rebuilt answers could not be compared"),
        ("differing>0", 2, 500, "differing>0: it is 2; 500 of 1000 rebuilt answers could not be compared"),
        ("differing>5", 2, 4, "differing>5: not measured; 4 of 1000 rebuilt answers could not be compared"),
        ("differing>5", 2, 3, ""),
        ("differing<5", 2, 3, "differing<5: not measured; 3 of 1000 rebuilt answers could not be compared"),
        ("differing>0.1%", 4, 500,
         "differing>0.1%: it is 0.160% (8 of 5000); 500 of 1000 rebuilt answers could not be compared"),
        ("differing>0.2%", 4, 500, ""),
        ("differing>0.1%", 0, 999, ""),
        ("differing>50%", 0, 1000, "differing>50%: not measured; 1000 of 1000 rebuilt answers could not be compared"),
    ],
)  # fmt: skip
def test_rebuilt_answers_that_could_not_be_compared_are_no_agreement(text, differing, unknown, said):
    counts = {"queries": 5000, "reconstructed": 1000, "differing": differing, "unknown": unknown}
    assert threshold(text).broken_by(counts) == said


def answering(*answers):
    """(outcome, class) of one query after another."""
    measured = Measured(BenchTarget("m", "http://h:1/"), [], {c: f'{{"class": "{c}"}}'.encode() for _, c in answers})
    for seq, (outcome, found) in enumerate(answers):
        measured.records.append(QueryRecord(seq, float(seq), float(seq), 0.01, outcome, 200, found))
    return measured


def test_rebuilt_answers_are_compared_with_the_models_own_from_any_target():
    own, rebuilt = "deployed", "reconstructed"
    proxy = answering((rebuilt, "cat"), (rebuilt, "cat"), (rebuilt, "cat"), (own, "cat"), (rebuilt, "cat"))
    plain = answering((own, "cat"), (own, "dog"), (rebuilt, "dog"), (own, "dog"), (own, "dog"))
    load = Load((0.0,) * 5, (0, 1, 2, 3, 3))
    assert agreement(proxy, load) == {"agreed": 1, "differing": 0, "unknown": 3}
    assert agreement(proxy, load, [proxy, plain]) == {"agreed": 2, "differing": 1, "unknown": 1}, (
        "a rebuilt answer is not the model's own, and its own of this target goes before that of another"
    )
    row = described(proxy, load, [proxy, plain])
    said = threshold("differing>0").broken_by(for_thresholds(row, [], proxy))
    assert said == "differing>0: it is 1; 1 of 4 rebuilt answers could not be compared"
    page = bench_page([row], [proxy], {"failed": [], "inputs": {}, "made": ""})
    assert '1 of 3 compared <span class="between">1 could not be</span>' in page


def test_the_page_shows_the_targets_side_by_side(monkeypatch):
    """A curve each, with its name; how many queries; percentiles with intervals."""
    monkeypatch.setattr("ts_parity.lab.intervals.RESAMPLES", 20)
    rng = random.Random(1)
    proxy, plain = (
        lasting([rng.expovariate(1 / mean) for _ in range(5000)], name)
        for name, mean in (("proxy", 0.01), ("plain", 0.1))
    )
    page = page_of(proxy, plain)

    figure = page[page.index("<figure>") : page.index("</figure>")]
    curves = re.findall(r'<path class="line (\w+) form(\d)" d="M[^"]*L([\d.]+) ([\d.]+)"/>', figure)
    (_, _, proxy_ends, _), (_, _, plain_ends, _) = curves
    assert [(colour, form) for colour, form, _, _ in curves] == [("student", "0"), ("sum", "1")]
    assert float(proxy_ends) < float(plain_ends), "the slower one goes on farther to the right"
    assert re.findall(r"form(\d)\"[^>]*/></svg>(\w+)</li>", figure) == [("0", "proxy"), ("1", "plain")]

    said = []
    for each in (proxy, plain):
        row = described(each, load_of(each))
        for name in ("p50", "p99", "p99.9"):
            low, high = (f"{1000 * end:.1f}" for end in row["intervals"][name])
            at = f"{1000 * row[name]:.1f}"
            assert f'data-head="{name}"><span>{at} ms <span class="between">{low} to {high}</span></span>' in page
        assert float(low) < float(high)
        said.append(f"{at} ms ({low} to {high}) at {each.target.name}")
    assert f"p99.9 is {said[0]}; {said[1]}." in page
    assert page.count('data-head="queries"><span>5,000</span>') == 2
    assert "unless there were enough queries: 44 for p90, 459 for p99, 4,603 for p99.9." in page


def test_a_target_that_answers_nothing_has_no_curve():
    gone, there = lasting([None] * 500, "gone"), lasting([0.01] * 500, "there")
    page = page_of(gone, there)
    assert "p99 is among the 500 of 500 queries without an answer at gone; 10.0 ms (10.0 to 10.0) at there." in page
    assert 'data-head="p50"><span>unanswered</span>' in page
    assert re.findall(r"</svg>(\w+)</li>", page) == ["there"]
    assert "</svg>" in page_of(gone)
