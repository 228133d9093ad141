"""Figures of proxies side by side: what is compared with what, what counts as reached; and one tiny cell for real."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import overhead
import overhead_pair
from overhead_clients import SAME, UNIQUE, Answers, Slice, open_loop
from overhead_instances import body_of
from overhead_proxies import (
    COMPILED,
    OPEN_INFERENCE,
    OTHERS_CORE,
    PLAIN,
    TORCHSERVE,
    Arm,
    NotServing,
    build_of,
    imported_from,
    proxy,
    running,
)

MISSING = [program for program in ("nginx", "wrk", "taskset") if shutil.which(program) is None]
needs_them = pytest.mark.skipif(
    bool(MISSING) or (os.cpu_count() or 1) < 2, reason=f"missing: {', '.join(MISSING) or 'a second core'}"
)


def row(proxy_, per_core=None, p50=100, mode="pass-through", build=None, **more):
    given = {
        "proxy": proxy_, "mode": mode, "build": build, "upstream": "trivial", "load": "closed", "client": SAME,
        "connections": 16, "body_bytes": 3000, "requests": 1000, "requests_per_second": 1000.0,
        "requests_per_second_per_core": per_core, "p50_us": p50, "p99_us": 2 * p50, "rss_rest_mb": 50.0, "rss_mb": 60.0,
        "errors": 0,
    }  # fmt: skip
    return {**given, **more}


def ours(per_core, p50=100, mode="uncoded", build=COMPILED, **more):
    return row("ts_parity", per_core, p50, mode, build, **more)


def document(rows):
    return {"rows": rows, "build": COMPILED}


def test_a_ratio_is_of_one_round():
    """The machine was half as fast in the second round, for both: the ratio of the medians would be another."""
    rounds = [
        [row("nginx", 1000), ours(500)],
        [row("nginx", 500), ours(250)],
        [row("nginx", 400), ours(240)],
    ]
    found = overhead.combined(rounds)[1]
    assert found["rps_ratio_to_nginx"] == 0.5
    assert found["requests_per_second_per_core"] == 250


def test_only_equal_cells_are_compared():
    (nginx, unique, plain, alone) = overhead.combined(
        [[row("nginx", 1000), ours(300, client=UNIQUE), ours(200, build=PLAIN), ours(500, connections=1)]]
    )
    assert nginx["rps_ratio_to_nginx"] == 1
    assert plain["rps_ratio_to_nginx"] == 0.2
    assert unique["rps_ratio_to_nginx"] is None
    assert alone["rps_ratio_to_nginx"] is None


def test_what_is_added_is_added_at_one_connection():
    one = {"connections": 1}
    rows = [
        row("direct", None, 20, **one),
        row("nginx", 1000, 120, **one),
        ours(500, 220, **one),
        row("direct", p50=20),
    ]
    direct, nginx, found, many = overhead.combined([rows])
    assert (nginx["added_p50_us"], found["added_p50_us"], found["added_p50_ratio_to_nginx"]) == (100, 200, 2)
    assert direct["added_p50_us"] is None
    assert many["added_p50_us"] is None


def test_errors_of_all_rounds_count():
    assert overhead.combined([[row("nginx", 1, errors=1)], [row("nginx", 1, errors=2)]])[0]["errors"] == 3


def test_every_target_has_a_verdict():
    found = overhead.targets(document([]))
    assert [target.line[-1] for target in found] == ["not measured"] * 9
    assert all(target.met is None for target in found)


def test_a_target_is_met_at_its_bound():
    nginx, one = {"rps_ratio_to_nginx": 0.4}, {"connections": 1, "added_p50_ratio_to_nginx": 2.51}
    rows = [ours(1, **nginx), ours(1, mode="pass-through", **one), ours(1, rss_rest_mb=80.0)]
    found = {
        target.what.partition(":")[0]: target for target in overhead.targets(document(rows)) if target.met is not None
    }
    assert found["uncoded"].met is True
    assert found["pass-through"].met is False
    assert found["memory per process at rest, MB"].met is True


def test_the_build_that_counts_is_the_one_measured():
    rows = [ours(1, build=PLAIN, rps_ratio_to_nginx=0.9), ours(1, rps_ratio_to_nginx=0.1)]
    assert [
        target.reached for target in overhead.targets(document(rows)) if target.what.startswith("uncoded: req")
    ] == [0.1]


def test_kinds_are_compared_round_by_round():
    """The machine was half as fast in the second round, for both; in the third for one only."""
    torchserve = [ours(20_000, errors=1), ours(10_000), ours(20_000)]
    rows = [ours(20_000), ours(8_000), ours(10_000)]
    found = overhead.kinds_row(OPEN_INFERENCE, rows, torchserve)
    assert (found["cpu_ratio_to_torchserve"], found["cpu_ratio_spread"]) == (1.25, [1.0, 2.0])
    assert (found["cpu_us"], found["requests"], found["errors"]) == (100.0, 3000, 0)
    beside = overhead.kinds_row(TORCHSERVE, torchserve, torchserve)
    assert (beside["cpu_us"], beside["cpu_ratio_to_torchserve"], beside["errors"]) == (50.0, None, 1)
    both = document([beside, found])
    (target,) = (target for target in overhead.targets(both) if target.met is not None)
    assert target.line[1:] == ["at most 1.00", "1.25 (1.00 to 2.00 over the rounds)", "MISSED"]
    assert "| open-inference | 3,000 | 100.0 | 1.25 (1.00 to 2.00) | 0 |" in overhead.kinds_table(both)


def test_the_pair_measured_alone_takes_its_place():
    old, new = ({**ours(1, load="kinds"), "kind": OPEN_INFERENCE, "cpu_us": cost} for cost in (2.0, 1.0))
    how = {"machine": "m", "build": COMPILED, "seconds": 2, "rounds": 10}
    kept = {"command": "whole", **document([ours(1), old]), "kinds": {**how, "rounds": 1}}
    found = overhead.with_kinds_of(kept, {"command": "alone", **document([new]), "kinds": how})
    assert found == {"command": "whole", **document([ours(1), new]), "kinds": {"command": "alone", **how}}


def test_kinds_are_asked_for_the_same_with_as_many_bytes():
    bodies = {kind: body_of(3000, kind) for kind in (TORCHSERVE, OPEN_INFERENCE)}
    assert {len(body) for body in bodies.values()} == {3000}
    (tensor,) = json.loads(bodies[OPEN_INFERENCE])["inputs"]
    assert tensor["data"] == json.loads(bodies[TORCHSERVE])
    assert tensor["shape"] == [1, len(tensor["data"])]


def test_half_of_capacity_compares_seed_by_seed():
    """In the second seed the machine was slow, for both; in the third for ours only, which one seed may be."""
    direct = [Answers([10_000] * 100, [5], 0), Answers([20_000] * 100, [5], 0), Answers([10_000] * 100, [5], 0)]
    through = [Answers([10_300] * 100, [5], 0), Answers([20_800] * 100, [5], 1), Answers([90_000] * 100, [5], 0)]
    arm = Arm("ts_parity", "uncoded", COMPILED)
    found = overhead.half_row(arm, through, direct, instances=1, rate=80)
    assert found["added_p50_share"] == found["added_p99_share"] == 0.04
    assert found["added_p50_share_spread"] == [0.03, 8.0]
    assert found["errors"] == 1
    assert overhead.half_row(overhead.DIRECT, direct, direct, 1, 80)["added_p50_share"] is None
    shares = [target.reached for target in overhead.targets(document([found])) if "half" in target.what]
    assert shares == [0.04, 0.04]


def test_half_of_capacity_says_how_far_direct_differs_from_itself():
    arms = overhead.half_arms(overhead.arms_of(COMPILED, ["ts_parity uncoded"]), COMPILED)
    assert [arm.name for arm in arms] == ["direct", "direct again", "nginx", "ts_parity uncoded compiled"]
    again = [Answers([10_200] * 100, [5], 0), Answers([9_900] * 100, [5], 0)]
    found = overhead.half_row(overhead.AGAIN, again, [Answers([10_000] * 100, [5], 0)] * 2, instances=1, rate=80)
    assert found["added_p99_share_spread"] == [-0.01, 0.02]
    table = overhead.half_table(document([found]))
    assert "| direct again | 200 | 10.05 | 10.05 | 0.5% (-1.0% to 2.0%) |" in table


def test_a_percentile_has_that_many_below():
    assert overhead.percentile(list(range(100)), 50) == 50
    assert overhead.percentile([3, 1, 2], 99) == 3


def test_everybody_goes_first_in_turn():
    arms = overhead.arms_of(PLAIN)
    orders = [overhead.rotated(arms, turn) for turn in range(len(arms))]
    assert [order[0] for order in orders] == arms
    assert all(set(order) == set(arms) for order in orders)


def test_arms_can_be_chosen():
    assert [arm.name for arm in overhead.arms_of(COMPILED, ["haproxy", "ts_parity uncoded"])] == [
        "direct", "nginx", "haproxy", "ts_parity uncoded compiled", "ts_parity uncoded plain",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="there is no arm squid"):
        overhead.arms_of(COMPILED, ["squid"])


def test_the_plain_build_is_measured_in_one_cell():
    plain = Arm("ts_parity", "uncoded", PLAIN)
    cells = [cell for cell in overhead.Plan().cells if overhead.takes(plain, cell, COMPILED)]
    assert cells == [overhead.Cell(16, 3000)]
    assert len([cell for cell in overhead.Plan().cells if overhead.takes(plain, cell, PLAIN)]) == 13


@contextmanager
def played(folder):
    """Trivial instances. -> their endpoints."""
    command = [sys.executable, str(Path(overhead.__file__).resolve()), "--play", "sum"]
    with running(command, OTHERS_CORE, folder, imported_from()) as process:
        yield json.loads(process.stdout.readline())


@pytest.mark.long
@needs_them
@pytest.mark.slow
def test_a_cell_is_measured():
    tiny = overhead.Plan(seconds=1, rounds=1, connections=(16,), bodies=(3000,))
    found = overhead.measure(tiny, only=["ts_parity uncoded"], upstreams=["trivial"], quiet=True)
    build = build_of(imported_from())
    assert found["build"] == build
    rows = {(row["proxy"], row["client"]): row for row in found["rows"] if row["build"] in (None, build)}
    assert set(rows) == {
        ("direct", SAME), ("nginx", SAME), ("ts_parity", SAME), ("nginx", UNIQUE), ("ts_parity", UNIQUE),
    }  # fmt: skip
    for (proxy_, _), row_ in rows.items():
        assert set(overhead.KEY) | set(overhead.FIGURES) | {"errors"} == set(row_)
        assert row_["requests"] > 0
        assert row_["errors"] == 0
        assert (row_["requests_per_second_per_core"] is None) == (proxy_ == "direct")
    assert rows["ts_parity", SAME]["mode"] == "uncoded"
    assert rows["ts_parity", SAME]["rps_ratio_to_nginx"] > 0
    assert 0 < rows["ts_parity", SAME]["rss_rest_mb"] < 200
    assert set(overhead.sections({"command": "", **found})) == {
        "overhead-targets", "overhead-summary", "overhead", "overhead-kinds", "overhead-torchserve", "overhead-half",
    }  # fmt: skip


@pytest.mark.long
@needs_them
@pytest.mark.slow
def test_a_pair_is_measured():
    tiny = overhead.Plan(kinds_seconds=1, kinds_rounds=1)
    found = overhead.measure(tiny, upstreams=["kinds"], quiet=True)
    assert found["failed"] == []
    beside, pair = found["rows"]
    assert (beside["kind"], pair["kind"]) == (TORCHSERVE, OPEN_INFERENCE)
    assert beside["requests"] > 0
    assert pair["requests"] > 0
    assert beside["errors"] == pair["errors"] == 0
    assert pair["cpu_ratio_to_torchserve"] > 0
    (target,) = (target for target in overhead.targets(found) if target.met is not None)
    assert target.reached == pair["cpu_ratio_to_torchserve"]


def test_two_builds_are_compared_cell_by_cell_and_start_by_start():
    fast, drifting = [[50.0, 60.0, 70.0], [55.0, 66.0, 77.0]], [[100.0, 200.0], [120.0, 240.0]]
    assert overhead_pair.compared([fast, drifting]) == {
        "before_us": 105.0, "after_us": 123.0, "ratio": 1.15, "ratios": [1.1, 1.2],
    }  # fmt: skip


@pytest.mark.long
@needs_them
@pytest.mark.slow
def test_two_builds_take_turns(monkeypatch, capsys):
    """Here the same one twice."""
    root = str(imported_from())
    words = ["overhead_pair.py", root, root, "--modes", "uncoded", "--starts", "1", "--cells", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    assert overhead_pair.main() == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert min(found["before_us"], found["after_us"], found["ratio"]) > 0
    monkeypatch.setattr(sys, "argv", [*words[:-1], "--most", "0.01"])
    assert overhead_pair.main() == 1
    assert "| uncoded | " in capsys.readouterr().out


@needs_them
@pytest.mark.slow
def test_the_open_loop_counts_from_when_a_request_was_due(tmp_path):
    with played(tmp_path) as endpoints:
        urls = tuple(endpoint.partition(",")[0] + "/predictions/linear" for endpoint in endpoints[:2])
        seen = open_loop(Slice(urls, rate=200, warm_s=0.2, seconds=0.8, seed=3, body_bytes=3000), OTHERS_CORE)
    assert seen.errors == 0
    assert len(seen.latencies_us) == len(seen.lags_us) > 100
    assert sorted(seen.latencies_us)[80] >= sorted(seen.lags_us)[80]


@needs_them
@pytest.mark.slow
def test_a_proxy_that_does_not_start_says_why(tmp_path):
    with pytest.raises(NotServing, match="invalid"), proxy(Arm("nginx"), ["http://a b"], tmp_path, imported_from()):
        pass
