"""Files of pairs: what was written is read again, bytes for bytes, and a crash costs at most the last line."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from ts_parity.errors import ConfigError, Exhausted
from ts_parity.pairs import Pair, PairWriter, framed, frames, note, read_pairs

PAIRS = [
    Pair("m/1", "/v2/models/m/infer", "application/json", b'{"a": "\xc3\xa4\\n"}\r\n', "application/json", b"[1]\n"),
    Pair("m/1", "/p", "", b"\x00\xff\xfe{}\n", "application/octet-stream", bytes(range(256))),
]


def recorded(path: Path, *pairs: Pair) -> Path:
    writer = PairWriter(path, {"share": 1.0})
    for pair in pairs:
        writer.add(pair)
    writer.close()
    return path


def test_pairs_come_back_as_they_were(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a", *PAIRS)
    assert list(read_pairs(file)) == PAIRS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = json.loads(file.read_text().splitlines()[0])
    assert (first["ts_parity_pairs"], first["share"]) == (1, 1.0)
    assert '"body": "{\\"a\\": \\"ä' in file.read_text()  # a text stays one, for ordinary tools


def test_files_can_be_joined(tmp_path: Path) -> None:
    one, other = (recorded(tmp_path / name, *PAIRS) for name in "ab")
    joined = tmp_path / "c"
    joined.write_bytes(one.read_bytes() + other.read_bytes())
    assert list(read_pairs(joined)) == [*PAIRS, *PAIRS]


def test_what_was_written_before_a_crash_is_there(tmp_path: Path) -> None:
    """Nothing waits in the process for a proper end."""
    writer = PairWriter(tmp_path / "a", {})
    for pair in PAIRS:
        writer.add(pair)
    assert list(read_pairs(tmp_path / "a")) == PAIRS
    whole = (tmp_path / "a").read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in (last, last + 1, len(whole) - 1):
        (tmp_path / "a").write_bytes(whole[:cut])
        assert list(read_pairs(tmp_path / "a")) == PAIRS[:1]
    writer.close()


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a", *PAIRS)
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match="--force"):
        PairWriter(file, {})
    assert list(read_pairs(file)) == PAIRS
    PairWriter(file, {}, force=True).close()
    assert list(read_pairs(file)) == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_told() -> None:
    writer = PairWriter.__new__(PairWriter)
    writer.path, writer.bytes, writer._synced_at = Path("full"), 0, 0.0
    with open("/dev/full", "wb", buffering=0) as full:
        writer._file = full.fileno()
        with pytest.raises(Exhausted, match="No space left"):
            writer.add(PAIRS[0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"what\n", "line 1 is no pair"),
        (b"[]\n", "no JSON object"),
        (b'{"model": "m"}\n', "does not say ts_parity_pairs"),
        (b'{"ts_parity_pairs": 2}\n', "version 2; this ts_parity reads 1"),
        (b'{"ts_parity_pairs": 1}\n{"model": "m"}\n', "line 2 is no pair .* 'path'"),
        (b'{"ts_parity_pairs": 1}\n{"model":1,"path":"","type":"","answer_type":"","body":"","answer":""}\n', "texts"),
        (
            b'{"ts_parity_pairs":1}\n{"model":"","path":"","type":"","answer_type":"","body_base64":"!","answer":""}\n',
            "line 2 is no pair",
        ),
        (b"[" * 100_000 + b"\n", "line 1"),
    ],
)
def test_what_is_no_pair_is_told_with_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        list(read_pairs(tmp_path / "a"))


def test_frames_carry_pairs_and_notes() -> None:
    sent = note(counts={"seen": 1}) + b"".join(map(framed, PAIRS)) + note(ended="enough")
    assert list(frames(io.BytesIO(sent))) == [{"counts": {"seen": 1}}, *PAIRS, {"ended": "enough"}]
    with pytest.raises(ValueError, match="within a pair"):
        list(frames(io.BytesIO(framed(PAIRS[1])[:-1])))
    for wrong in (b"<html>\n", b"[1]\n"):
        with pytest.raises(ValueError, match=r"Expecting value|no frame"):
            list(frames(io.BytesIO(wrong)))
