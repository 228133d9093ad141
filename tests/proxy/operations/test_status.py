"""`ts-parity status` for people: what it shows, and that it fits the screen."""

from __future__ import annotations

from typing import Any

import pytest

from ts_parity.proxy.operations.status import status_table

LONG = "deployed endpoints of linear/1.0 have other weights than those which the protection was made for, " * 3


def endpoint(instance: str, row: int | None, health: str) -> dict[str, Any]:
    return {"name": f"{instance}/linear/1.0", "instance": instance, "row": row, "health": health}


def pool(**more: Any) -> dict[str, Any]:
    return {
        "code": {"name": "sum", "k": 2, "r": 1},
        "reason": "",
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
    uncoded = pool(code=None, reason="no protection was found", trust=None, verdicts=[], reconstruct_after_s=None)
    on_trial = pool(trust={"state": "on trial", "reason": "3 of 20 comparisons made"}, copies={"reason": "state"})
    lines = status_table(status(one=pool(), two=uncoded, three=on_trial)).splitlines()
    assert lines[2].split()[:4] == ["pool", "code", "trust", "verdict"]
    assert lines[3] == "one    sum k=2 r=1  in use    codable, untested  1 of 2 in  1            0        20.0 ms"
    assert lines[4].split() == ["two", "none", "1", "of", "2", "in", "1", "0"]
    assert lines[5] == "    not coded: no protection was found"
    assert lines[7:9] == ["    on trial: 3 of 20 comparisons made", "    no second copies: state"]
    assert [line.split() for line in lines[10:14]] == [
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
    shown = status(**{name: pool(code=None, reason=LONG), "two": pool()})
    columns = ("process", "pid", "state", "uptime_s", "requests_in_flight", "answered", "restarts")
    shown["processes"] = [dict.fromkeys(columns, 7)]
    table = status_table(shown, width)
    assert max(map(len, table.splitlines())) <= width
    for word in (name, "codable", "20.0", "rack", *LONG.split()):
        assert word in table
