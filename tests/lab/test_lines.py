"""Lines of logs as people have them, and what is said of files that are none."""

import gzip
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from ts_parity.cli import main
from ts_parity.errors import ConfigError
from ts_parity.lab.history import read_history
from ts_parity.lab.latencies import read_instants
from ts_parity.lab.lines import STDIN, read_lines

LOG = '{"service_s": 0.5}\n{"service_s": 1.5}\n'
CSV = "at,seconds\n1,0.5\n2,1.5\n"


@pytest.mark.parametrize(
    "text", [LOG, CSV, CSV.replace(",", ";"), CSV.replace(",", "\t"), "0.5\n1.5", "s\n0.5\n\n1.5\n"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_log_is_what_its_bytes_say(text, ends, encoding, packed, tmp_path):
    """Whatever its name: what comes through a pipe has none."""
    file = tmp_path / "log"
    file.write_bytes(packed(text.replace("\n", ends).encode(encoding)))
    assert read_history(file).times == (0.5, 1.5)


def test_a_pipe_and_standard_input_are_files_like_others(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(LOG,))
    writer.start()
    assert read_history(pipe).times == (0.5, 1.5)
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(CSV.encode()))))
    assert read_history(STDIN).times == (0.5, 1.5)


def test_bytes_that_are_no_text_spoil_no_line_but_their_own(tmp_path):
    file = tmp_path / "log.csv"
    file.write_bytes(b"gr\xf6\xdfe,s\n\xff,0.5\n1,\xff\n")
    with pytest.raises(
        ConfigError, match=r"line 3 of .*log.csv is not a positive, finite number of seconds: '\\\\xff'"
    ):
        read_history(file)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        (
            "a.csv.gz",
            gzip.compress(b"0.5\n" * 50_000, mtime=0)[:-30],
            "cannot read latencies from .*a.csv.gz.*: Compressed file",
        ),
        (
            "a.gz",
            gzip.compress(bytes(range(256)), mtime=0)[:12] + b"\xff" * 50,
            "cannot read latencies from .*a.gz.*: Error -3",
        ),
        ("a.csv", b'0.5\n"0.5\n1.5\n' + b"9" * 200_000, "line 2 of .*a.csv is no row of a CSV: field larger than"),
        ("a.csv", b"s\n0,0213\n", "line 2 of .* is not a positive, finite number of seconds: '0213'"),
        ("a.csv", b"s\n" + b"9" * 100_000, "line 2 of .*: '9999.*9[.]{3}$"),
        ("a.csv", b"0.5\n1e300\n", "line 2 of"),
        ("a.csv", b"0.5\n-0.5\n", "line 2 of"),
        ("a.csv", b"0.5,\n", "line 1 of"),
        ("a.csv", b"0.5\n0.", "line 2 of .*: '0.'"),
        ("a.csv", b"NaN\n0.5\n", "line 1 of"),
        ("a.jsonl", b'{"service_s": 0.5}\n\n{"service_s": 1' + b"0" * 400 + b"}\n", "line 3 of"),
        ("a.jsonl", b'service_s": 0.5}\n{"service_s": 0.5}\n', "line 1 of .* is not JSON, or is cut"),
        ("a", b'service_s": 0.5}\n{"service_s": 0.5}\n', "line 1 of .* is not JSON, or is cut"),
        ("a.jsonl", b"\x00\xff\x00", "line 1 of .* is not JSON"),
        ("a", b"", "holds no latencies"),
        ("a", b"\n\r\n \n", "holds no latencies"),
        ("a", b"latency\n", "holds no latencies"),
    ],
)
def test_what_is_no_log_is_told_by_file_and_line(name, data, why, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=why):
        read_history(tmp_path / name)


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_last_line_that_is_still_being_written_is_left_out_and_told(packed, tmp_path, capsys):
    log = tmp_path / "a.jsonl"
    log.write_bytes(packed((LOG * 100 + '{"service_s": 0.').encode()))
    assert (read_history(log).times, read_history(log).cut_line) == ((0.5, 1.5) * 100, 201)
    assert main(["simulate", "--policy", "none", "--queries", "50", "--seeds", "1", "--service-log", str(log)]) == 0
    assert f"line 201 of {log}, the last, is cut and was left out" in capsys.readouterr().err
    log.write_text('{"service_s": 0.')
    with pytest.raises(ConfigError, match=r"line 1 of .* is cut"):
        read_history(log)


def test_a_folder_is_no_log(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read latencies from .*: Is a directory"):
        read_history(tmp_path)
    with pytest.raises(ConfigError, match="cannot read latencies from nowhere: No such file or directory"):
        list(read_lines(Path("nowhere"), "latencies from"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0\n-1\n", "line 2 must be a number of at least 0, not '-1'"),
        ("0\n\ninf\n", "line 3 must be"),
        ("1e300", "line 1 must be"),
        ("0 1\n", "line 1 must be"),
        ("\n", "holds no instants"),
    ],
)
def test_instants_are_told_by_file_and_line(text, why, tmp_path):
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ConfigError, match=f"--trace .*trace.* {why}|--trace .*trace.* holds"):
        read_instants(tmp_path / "trace")


def test_instants_are_put_in_order(tmp_path):
    (tmp_path / "trace").write_text("2\n0\n1.5")
    assert read_instants(tmp_path / "trace") == [0.0, 1.5, 2.0]


@pytest.mark.parametrize("command", [["simulate"], ["plan", "--workers", "2", "--rate", "10"]])
def test_a_nan_anywhere_in_a_log_ends_the_command(command, tmp_path, capsys):
    log = tmp_path / "nan.csv"
    log.write_text("0.02\n" * 300 + "nan\n" + "0.02\n" * 199)
    assert main([*command, "--service-log", str(log)]) == 2
    said = capsys.readouterr()
    assert f"line 301 of {log} is not a positive, finite number of seconds: 'nan'" in said.err
    assert not said.out
