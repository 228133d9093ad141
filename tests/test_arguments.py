"""Numbers on command lines: what is none is refused, and the message says what is allowed."""

import argparse
import ast
import re
from pathlib import Path

import pytest

from ts_parity.arguments import address, count, number, url
from ts_parity.cli import main


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "x", "0x10", "1,5", "٣x"])
def test_no_number_is_no_number(text):
    for kind in (number(), number(least=0), count(0)):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a"):
            kind(text)


def test_limits():
    assert number(least=0)("0") == 0.0
    assert number(above=0, below=1)("0.5") == 0.5
    assert count(2, most=4)("4") == 4
    for kind, text, why in (
        (number(above=0), "0", "must be a number above 0, not '0'"),
        (number(least=0, most=100), "101", "must be a number of at least 0 and at most 100, not '101'"),
        (number(above=0, below=1), "1", "must be a number above 0 and below 1, not '1'"),
        (count(), "0", "must be a whole number of at least 1, not '0'"),
        (count(), "1.5", "must be a whole number of at least 1, not '1.5'"),
        (count(0, most=3), "4", "must be a whole number of at least 0 and at most 3, not '4'"),
        (count(), "9" * 400, f"must be a whole number of at least 1 and at most 1e\\+15, not '{'9' * 40}...'"),
        (count(), "9" * 5000, f"must be a whole number of at least 1, not '{'9' * 40}...'"),
        (number(least=0), "1e300", r"must be a number of at least 0 and at most 1e\+15, not '1e300'"),
        (number(above=0), "1e-300", "must be a number of at least 1e-09, not '1e-300'"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{why}$"):
            kind(text)


def test_an_address_is_of_a_program_and_a_url_is_asked_for():
    assert address("http://h:1/") == "http://h:1"
    assert url("http://h:1/p/") == "http://h:1/p/"
    assert url("https://h?v=2/") == "https://h?v=2/"
    with pytest.raises(argparse.ArgumentTypeError, match="must be like http://HOST:PORT, not 'http://h/p"):
        address("http://h/p?v=2")
    for wrong in ("h:1/p", "ftp://h/p", "http:///p", "http://h:0/p", "http://h:x/p", "http://h/ p", "http://[h/p"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be like http://HOST:PORT/PATH, not "):
            url(wrong)


SERVICE = "--service-log=/dev/null"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["simulate", flag, bad]
            for flag in ("--load", "--gaps-cv", "--burst", "--cost", "--queries", "--seeds", "--workers", "--k")
            for bad in ("nan", "inf", "0", "-1")
        ),
        *(
            ["simulate", flag, "9" * 12]
            for flag in ("--workers", "--extra", "--domains", "--proxies", "--queries", "--seeds")
        ),
        *(["simulate", "--net", bad] for bad in ("0.02:nan", "nan:5", "0:5", "1:5", "0.02:inf", "0.02", "0.02:5:1")),
        *(["simulate", "--slow", bad] for bad in ("0.04:100:nan", "0.04:inf:5", "0.04:100:0.5", "0.04:100")),
        *(["plan", SERVICE, "--workers=2", "--rate", bad] for bad in ("nan", "0", "inf", "-3")),
        *(["plan", SERVICE, "--workers=2", "--rate=1", flag, "nan"] for flag in ("--max-work", "--max-loss", "--p999")),
        ["plan", SERVICE, "--workers=2", "--rate=1", "--max-work", "30"],
        *(["train", flag, bad] for flag in ("--budget", "--rate") for bad in ("nan", "inf", "0", "-1", "1e999", "x")),
        *(
            ["train", flag, bad]
            for flag in ("--k", "--r", "--steps", "--seeds", "--devices")
            for bad in ("0", "-1", "nan", "1.5", "9" * 400)
        ),
        ["train", "--seed", "-1"],
        *(["package", flag, bad] for flag in ("--k", "--r", "--response-timeout-s") for bad in ("0", "-1", "nan")),
        ["package", "--row", "-1"],
        *(
            ["register", flag, bad]
            for flag in ("--workers", "--batch-size", "--max-batch-delay-ms")
            for bad in ("-1", "x")
        ),
        ["demo", "--rate", "nan"],
        ["demo", "--queries", "0"],
    ],
    ids=" ".join,
)
def test_no_command_takes_a_number_that_is_none(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "must be" in said or "must have" in said or "is meant" in said
    assert "Traceback" not in said


ROOT = Path(__file__).parent.parent
# Scripts without ts_parity: one started by us, one that goes beside a student to a machine that has LitServe only.
ALONE = {ROOT / "ts_parity/torchserve/guard.py", ROOT / "ts_parity/training/servers/litserve_server.py"}


def test_no_flag_takes_numbers_as_python_does():
    """`int` and `float` let nan, -1 and 1e999 through; `count()` and `number()` say what a flag allows."""
    files = {*ROOT.glob("ts_parity/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/**/*.py")} - ALONE
    found = [
        f"{file.relative_to(ROOT)}:{node.value.lineno}"
        for file in sorted(files)
        if re.search(r"\btype=(int|float)\b", text := file.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.keyword) and node.arg == "type" and isinstance(node.value, ast.Name)
        if node.value.id in ("int", "float")
    ]
    assert not found, "give these flags type=ts_parity.arguments.count() or number()"
