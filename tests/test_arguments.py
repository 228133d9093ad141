"""Numbers on command lines: what is none is refused, and the message says what is allowed."""

import argparse

import pytest

from ts_parity.arguments import count, number
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
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{why}$"):
            kind(text)


SERVICE = "--service-log=/nowhere.csv"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["simulate", flag, bad]
            for flag in ("--load", "--gaps-cv", "--burst", "--cost", "--queries", "--seeds", "--workers", "--k")
            for bad in ("nan", "inf", "0", "-1")
        ),
        *(["simulate", "--net", bad] for bad in ("0.02:nan", "nan:5", "0:5", "1:5", "0.02:inf", "0.02", "0.02:5:1")),
        *(["simulate", "--slow", bad] for bad in ("0.04:100:nan", "0.04:inf:5", "0.04:100:0.5", "0.04:100")),
        *(["plan", SERVICE, "--workers=2", "--rate", bad] for bad in ("nan", "0", "inf", "-3")),
        *(["plan", SERVICE, "--workers=2", "--rate=1", flag, "nan"] for flag in ("--max-work", "--max-loss", "--p999")),
        ["plan", SERVICE, "--workers=2", "--rate=1", "--max-work", "30"],
        ["demo", "--rate", "nan"],
        ["demo", "--queries", "0"],
    ],
    ids=" ".join,
)
def test_no_command_takes_a_number_that_is_none(words, capsys):
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2
    assert "must be" in said or "must have" in said or "is meant" in said
    assert "Traceback" not in said
