"""`ts-parity status` for people: what it shows, and that it fits the screen."""

from __future__ import annotations

from typing import Any

import pytest

from ts_parity.codes import make_code
from ts_parity.engine import Policy
from ts_parity.proxy.fleet.plan import NO_PROTECTION, PoolPlan
from ts_parity.proxy.operations.status import status_table, what_it_does

LONG = "deployed endpoints of linear/1.0 have other weights than those which the protection was made for, " * 3


def endpoint(instance: str, row: int | None, health: str) -> dict[str, Any]:
    return {"name": f"{instance}/linear/1.0", "instance": instance, "row": row, "health": health}


def pool(**more: Any) -> dict[str, Any]:
    return {
        "does": "late queries get second copies",
        "code": {"name": "sum", "k": 2, "r": 1},
        "trust": {"state": "in use", "reason": ""},
        "copies": {"reason": ""},
        "verdicts": ["codable", "codable", "untested"],
        "endpoints": [endpoint("a:1", None, "in"), endpoint("b:1", None, "out"), endpoint("c:1", 0, "in")],
        "waiting": 0,
        "reconstruct_after_s": 0.02,
        **more,
    }


def status(**pools: Any) -> dict[str, Any]:
    up = {"up": True, "places": 4}
    return {
        "version": "1",
        "state": "serving",
        "uptime_s": 12.0,
        "pools": pools,
        "instances": [
            {**up, "name": "a:1", "domain": "rack 1"},
            {**up, "name": "b:1", "domain": "b:1"},
            {**up, "name": "d:1", "domain": "d:1", "up": False},
        ],
        "problems": [LONG, "b:1/linear/1.0 is ejected: 507 Worker died.; it is probed regularly"],
    }


def test_a_row_says_how_it_is_and_the_rest_stands_below() -> None:
    uncoded = pool(code=None, does="nothing", trust=None, verdicts=[], reconstruct_after_s=None)
    lines = status_table(status(one=pool(), two=uncoded)).splitlines()
    assert lines[2].split()[:4] == ["pool", "code", "trust", "verdict"]
    assert lines[3] == "one   sum k=2 r=1  in use  codable, untested  1 of 2 in  1            0        20.0 ms"
    assert lines[4] == "    late queries get second copies"
    assert lines[5].split() == ["two", "none", "1", "of", "2", "in", "1", "0"]
    assert lines[6] == "    nothing"
    assert [line.split() for line in lines[8:12]] == [
        ["instance", "state", "places", "domain"],
        ["a:1", "in", "4", "rack", "1"],
        ["b:1", "out", "4"],
        ["d:1", "down", "4"],
    ]
    assert lines[-1] == "  - b:1/linear/1.0 is ejected: 507 Worker died.; it is probed regularly"


@pytest.mark.parametrize("width", [30, 40, 80, 100, 250])
def test_it_fits_the_screen(width: int) -> None:
    """Whatever is in it: nothing is cut off, long texts are wrapped, and a narrow screen gets paragraphs."""
    name = "a-model-with-quite-a-name/1.0"
    shown = status(**{name: pool(code=None, does=LONG), "two": pool()})
    columns = ("process", "pid", "state", "uptime_s", "requests_in_flight", "answered", "restarts")
    shown["processes"] = [dict.fromkeys(columns, 7)]
    table = status_table(shown, width)
    assert max(map(len, table.splitlines())) <= width
    for word in (name, "codable", "20.0", "rack", *LONG.split()):
        assert word in table


IN_USE = {"trust": {"state": "in use", "reason": ""}, "copies": {"reason": ""}, "instances": 3}
COPIES = "second copies, for at most 0.05 extra inferences a query"
NOTHING = "nothing, since extra_work is 0"
BALANCED = "queries are balanced and nothing else"
ON_TRIAL = {"trust": {"state": "on trial", "reason": "3 of 20 comparisons made"}}
BESIDE = "is launched for late queries, since it stands beside the model; then they get"
APART = "is launched with every 2 queries, since it has machines of its own; late queries get its answers, then"


@pytest.mark.parametrize(
    ("code", "pool", "policy", "live", "said"),
    [
        (None, {}, {}, {}, f"late queries get {COPIES}; no protection: none was found"),
        (None, {}, {}, {"instances": 1}, "get no second copies, since one instance serves it; no protection: none was"),
        (None, {}, {"extra_work": 0.0}, {}, f"late queries get {NOTHING}; no protection: none was found"),
        (None, {"reason": NO_PROTECTION}, {}, {}, f"late queries get {COPIES}; it has no protection"),
        (None, {"repeatable": False}, {}, {}, f"{BALANCED}, since the model may be asked once only"),
        ("sum", {}, {}, {"copies": {"reason": "two answers differ"}}, f"{BALANCED}: two answers differ"),
        ("sum", {}, {}, ON_TRIAL, f"late queries get {COPIES}; sum is on trial: 3 of 20 comparisons made"),
        ("student", {}, {}, {"launch": "late"}, f"student {BESIDE} {COPIES}; at most 0.05 % of all answers may differ"),
        (
            "student",
            {},
            {"target_s": 0.1},
            {"launch": "late"},
            "launched for late queries, and in time for an answer within 0.1 s, since it stands beside the model",
        ),
        (
            "student",
            {},
            {"extra_work": 0.0},
            {"launch": "late"},
            f"{NOTHING}; student stands beside the model",
        ),
        ("sum", {}, {"differing": 1.0}, {"launch": "group"}, f"sum {APART} {COPIES}; any number of answers may differ"),
        ("exact", {}, {}, {"launch": "late"}, f"exact {BESIDE} {COPIES}; its answers are the model's own"),
    ],
)
def test_what_it_does_and_why_in_a_sentence(
    code: str | None, pool: dict[str, Any], policy: dict[str, Any], live: dict[str, Any], said: str
) -> None:
    made = make_code(code, 2, 1) if code else None
    fields = {"reason": "none was found", **pool}
    plan = PoolPlan("m/1.0", "m", "1.0", made, partial=True, verdicts=(), **fields)
    assert said in what_it_does(plan, Policy(**policy), {**IN_USE, **live})
