"""Records survive the disk, and nonsense is refused with its place."""

import pytest

from ts_parity.errors import ConfigError
from ts_parity.lab.records import OUTCOMES, QueryRecord, read_records, write_records


def test_what_is_written_is_read_back(tmp_path):
    records = [
        QueryRecord(0, 0.5, 0.501, 0.0231, "reconstructed", 200, 7, 7),
        QueryRecord(1, 0.7, 0.7, None, "lost", label=3, reason="no answer in 30 s"),
        QueryRecord(2, 0.9, 0.9, 0.004, "error", 503, reason="busy"),
    ]
    write_records(tmp_path / "run.jsonl", records)
    assert list(read_records(tmp_path / "run.jsonl")) == records


def test_fields_of_a_later_version_are_ignored(tmp_path):
    (tmp_path / "run.jsonl").write_text(
        '{"seq": 4, "due_at": 1.0, "sent_at": 1.0, "latency_s": 0.1, "outcome": "deployed", "group": 137}\n'
    )
    assert [record.seq for record in read_records(tmp_path / "run.jsonl")] == [4]


@pytest.mark.parametrize(
    "line", ["", "[]", '{"seq": 1}', "{", '{"seq":1,"due_at":0,"sent_at":0,"latency_s":0,"outcome":"?"}']
)
def test_a_bad_line_is_named(tmp_path, line):
    good = '{"seq": 0, "due_at": 0, "sent_at": 0, "latency_s": 0, "outcome": "deployed"}\n'
    (tmp_path / "run.jsonl").write_text(good + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        list(read_records(tmp_path / "run.jsonl"))


def test_answered_means_a_prediction_came():
    answered = {outcome for outcome in OUTCOMES if QueryRecord(0, 0, 0, 0.1, outcome).answered}
    assert answered == {"deployed", "reconstructed", "hedged", "default"}
