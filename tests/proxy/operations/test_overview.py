"""The last five minutes in a sentence and in figures, of one process or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ts_parity.proxy.operations.overview import merge_recent, sentence, with_overview
from ts_parity.proxy.operations.remedies import OTHERWISE, REMEDIES, remedy
from ts_parity.proxy.serving.durations import bucket_of
from ts_parity.proxy.serving.recent import SLOT_S

NOW = 1_800_000_003.0
SLOT = int(NOW // SLOT_S)
PACKAGE = Path(__file__).parents[3] / "ts_parity"


def slot(number: int = SLOT, given: float = 0.041, without: float = 0.212, queries: int = 20_000) -> dict[str, Any]:
    return {
        "number": number,
        "extra_work": 0.031 * queries,
        "differing": 0.00004 * queries,
        "given": {"m/1": [[bucket_of(given), queries]]},
        "unprotected": {"m/1": [[bucket_of(without), queries]]},
        "sources": {"m/1": {"deployed": queries - 100, "reconstructed": 100}},
        "findings": {"m/1": {"agreed": 99, "differed": 1}},
    }


def machine(name: str, state: str = "serving", reason: str = "") -> dict[str, Any]:
    return {"name": name, "condition": {"state": state, "reason": reason}}


def status(*machines: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "state": "serving",
        "uptime_s": 300.0,
        "problems": [],
        "policy": {"extra_work": 0.05, "differing": 0.0005},
        "pools": {"m/1": {}},
        "instances": list(machines),
        **more,
    }


def test_the_sentence_says_what_an_operator_wants_to_know_first() -> None:
    machines = [machine(f"h{n}") for n in range(8)]
    told = with_overview(
        status(*machines, machine("h8", "silent", "no answer")), {"slots": [slot()], "races": []}, NOW
    )["sentence"]
    assert told.startswith("8 of 9 machines serve; p99.9 ")
    assert "without protection; extra work 3.1 of 5 %; differing 0.004 of 0.05 %" in told


def test_what_is_spent_at_once_is_not_said_to_be_within_the_limit() -> None:
    """Thirty inferences may be made at once: with the first dozen queries that is more than a share of 5 %."""
    few = {**slot(queries=13), "extra_work": 2.0, "differing": 0.0}
    told = with_overview(status(machine("h")), {"slots": [few], "races": []}, NOW)["sentence"]
    assert told.endswith("; extra work 15.4 %, at most 5 % over time; differing 0 of 0.05 %")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"instances": []}, "0 of 0 machines serve; no queries in the last five minutes"),
        ({"instances": [machine("h")]}, "1 of 1 machine serves; no queries in the last five minutes"),
        ({"instances": [machine("h")], "state": "draining"}, "Draining; 1 of 1 machine serves; no queries"),
    ],
)
def test_the_sentence_of_a_quiet_proxy(more: dict[str, Any], words: str) -> None:
    assert with_overview(status(**more), {"slots": [], "races": []}, NOW)["sentence"].startswith(words)


def test_a_percentile_is_the_highest_that_enough_answers_lie_beyond() -> None:
    for queries, share in ((20_000, 0.999), (2_000, 0.99), (200, 0.9), (10, 0.5)):
        told = with_overview(status(), {"slots": [slot(queries=queries)], "races": []}, NOW)["recent"]
        assert told["percentile"] == share
        assert told["queries"] == queries


def test_what_happened_more_than_five_minutes_ago_is_not_told() -> None:
    old = {"slots": [slot(SLOT - 100), slot(queries=10)], "races": []}
    assert with_overview(status(), old, NOW)["recent"]["queries"] == 10


def test_the_timeline_has_every_slot_and_leaves_the_empty_ones_out_of_the_curve() -> None:
    told = with_overview(status(), {"slots": [slot(SLOT - 2)], "races": []}, NOW)["recent"]["timeline"]
    assert [one["at"] for one in told] == [(SLOT - 60 + n) * SLOT_S for n in range(61)]
    assert [one["queries"] for one in told[-3:]] == [20_000, 0, 0]
    assert told[-3]["given_s"] < told[-3]["unprotected_s"]
    assert told[-1]["given_s"] is None


def test_several_processes_are_added_up_by_the_clock() -> None:
    race = {"answered_at": NOW - 2}
    one = {"slots": [slot(SLOT - 1, queries=10), slot(queries=10)], "races": [{"answered_at": NOW - 3}]}
    other = {"slots": [slot(given=0.3, queries=30)], "races": [race, {"answered_at": NOW - 9}]}
    merged = merge_recent([one, other])
    assert [each["number"] for each in merged["slots"]] == [SLOT - 1, SLOT]
    assert merged["races"][0] is race
    told = with_overview(status(), merged, NOW)["recent"]
    assert told["queries"] == 50
    assert told["sources"] == {"deployed": -250, "reconstructed": 300}
    assert told["extra_work"] == pytest.approx(0.031)
    assert merge_recent([]) == {"slots": [], "races": []}


def test_a_machine_that_is_silent_is_a_problem_too_and_each_has_its_remedy() -> None:
    silent = machine("a", "silent", "no answer to the task that it has")
    told = with_overview(
        status(silent, machine("b", "suspect", "slow"), problems=["other"]),
        {"slots": [], "races": []},
        NOW,
    )
    assert [one["problem"] for one in told["advice"]] == ["other", "a: no answer to the task that it has"]
    assert told["advice"][0]["remedy"] == OTHERWISE
    assert "frozen" in told["advice"][1]["remedy"]
    assert told["problems"] == ["other"]


def test_each_remedy_is_for_words_that_some_problem_has() -> None:
    """Whoever rewords a problem rewords what finds its remedy."""
    code = "".join(file.read_text() for file in PACKAGE.rglob("*.py") if file.name != "remedies.py")
    joined = code.replace('"\n', "").replace('f"', "")
    never_there = "protection student of m: 10 of 10 groups in a row brought nothing; the last: answered 404"
    assert "under the name that it was given" in remedy(never_there), "and not about its weights"
    for words, what in REMEDIES:
        assert any(words in text or words.rstrip(": ") in text for text in (code, joined)), words
        assert remedy(f"before {words} after")
        assert what.endswith(".")


def test_the_sentence_needs_nothing_but_the_status() -> None:
    told = with_overview(status(machine("h")), {"slots": [slot()], "races": []}, NOW)
    assert sentence(told) == told["sentence"]
