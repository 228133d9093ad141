"""What a bench makes of its records: figures, verdicts, a page."""

import pytest

from ts_parity.lab.bench import BenchTarget, Measured, described, for_thresholds
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
    [("p99", 990), ("p99.0", 990), ("p99.00", 990), ("p05", 50), ("p5", 50), ("p50.05", 501), ("p0.0000001", 1)],
)
def test_a_percentile_is_judged_however_it_is_written(written, at):
    measured = lasting([rank / 1000 for rank in range(1, 1001)])
    assert verdict(f"{written}>={at}ms", measured) == f"{written}>={at}ms: it is {at:.1f} ms"
    assert verdict(f"{written}>{at}ms", measured) == ""
