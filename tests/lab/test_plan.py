"""The planner: what it compares, what its limits forbid, and that it says so when nothing is worth it."""

import json
from xml.etree import ElementTree

import pytest

from tests.proxy.conftest import make_fleet  # noqa: F401 - a fixture
from ts_parity.cli import main
from ts_parity.errors import ConfigError
from ts_parity.lab.commands import _share_of_work
from ts_parity.lab.compare import World
from ts_parity.lab.plan import Limits, choices, make_plan, plan_page, plan_table, read_candidates
from ts_parity.lab.simulate import Spells
from ts_parity.testing import FakeModel, FakeTorchServe

STUDENT = {
    "code": "student", "family": "backup", "k": 4, "r": 1, "cost": 1.0, "drop": 0.01, "agreement": 0.97,
}  # fmt: skip
SUM = {"code": "sum", "family": "parity", "k": 4, "r": 1, "cost": 1.0, "drop": 0.2, "agreement": 0.8}
SLOW = World(load=0.3, queries=15_000, spells=Spells(0.04, 100, 5))


def test_what_there_is_to_choose_from():
    made = choices(12, 3, [STUDENT, SUM])
    assert [(c.policy, c.extra) for c in made] == [
        ("none", 0), ("hedge", 0), ("equal", 3), ("hedge", 3), ("ours", 0), ("ours", 3), ("coded", 3),
    ]  # fmt: skip
    assert [(c.policy, c.extra) for c in choices(12, 0, [])] == [("none", 0), ("hedge", 0)]


@pytest.mark.slow
def test_the_student_is_taken_where_machines_have_slow_spells():
    plan = make_plan(SLOW, [STUDENT, SUM], Limits(machines=3), (0,))
    chosen = plan["rows"][plan["recommended"]]
    assert (chosen["policy"], chosen["code"], chosen["extra_machines"]) == ("ours", "student", 0)
    assert "Run ours with student k=4: p99.9" in plan["sentence"]
    assert chosen["loss"] == pytest.approx(chosen["reconstructed"] * 0.01)
    assert plan_table(plan, SLOW).count("\n") == len(plan["rows"])
    page = plan_page(plan, SLOW)
    ElementTree.fromstring(page.split("\n", 1)[1])
    assert 'class="bar take"' in page


@pytest.mark.slow
def test_limits_forbid_and_say_so():
    plan = make_plan(SLOW, [STUDENT, SUM], Limits(work=0.001, loss=0.0, p999=0.5), (0,))
    broken = {(row["policy"], row["extra_machines"]): row["broken"] for row in plan["rows"]}
    assert any("more machines" in why for why in broken["coded", 3])
    assert any("points lost" in why for why in broken["ours", 0])
    assert all("p99.9 too high" in why for why in broken.values())
    assert plan["recommended"] == 0
    assert not plan["reached"]
    assert "Nothing reaches a p99.9 of 0.50 service times within these limits. The lowest is" in plan["sentence"]
    plan = make_plan(SLOW, [STUDENT, SUM], Limits(work=0.001, loss=0.0), (0,))
    assert plan["reached"]
    assert "Run nothing: within these limits nothing is clearly better" in plan["sentence"]


@pytest.mark.slow
def test_where_nothing_is_slow_nothing_is_worth_it():
    plan = make_plan(World(load=0.2, queries=15_000), [STUDENT], Limits(), (0,))
    assert plan["recommended"] == 0
    assert "Run nothing: it is enough" in plan["sentence"]


def test_the_command_reads_a_report_and_a_log(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT]}))
    log, page = tmp_path / "log.csv", tmp_path / "plan.html"
    log.write_text("\n".join(str(0.02 + 0.0001 * (n % 50)) for n in range(500)))
    arguments = ["plan", "--queries", "2000", "--seeds", "1", "--report", str(tmp_path), "--service-log", str(log)]
    arguments += ["--workers", "4", "--rate", "100"]
    assert main([*arguments, "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert " ms" in out
    assert "<table>" in page.read_text()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["policy"] == "none"
    assert main([*arguments, "--p999", "0.001"]) == 4
    assert "Nothing reaches a p99.9 of 1.0 ms" in capsys.readouterr().out


def test_an_overloaded_fleet_is_said_to_be_one(tmp_path, capsys):
    log = tmp_path / "log.csv"
    log.write_text("0.02\n" * 100)
    assert main(["plan", "--service-log", str(log), "--workers", "2", "--rate", "5000"]) == 4
    said = capsys.readouterr()
    assert "overloaded: 2 machines would have to be busy 5000% of the time" in said.err
    assert "at least 101 machines, and 143 for a load of 0.7" in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--load", "0.5", "--workers", "2", "--report", "/nowhere"], "cannot read the training report"),
        (["--rate", "10", "--admin", "http://127.0.0.1:1"], "no status of a proxy there"),
        (["--rate", "10"], "--workers N or --admin URL"),
        (["--workers", "2"], "--rate QUERIES_PER_SECOND or --load"),
        (["--workers", "2", "--rate", "10", "--load", "0.5"], "say the same in two ways"),
        (["--workers", "2", "--admin", "http://127.0.0.1:1", "--load", "0.5"], "say the same in two ways"),
    ],
)
def test_what_the_command_cannot_use(arguments, why, tmp_path, capsys):
    log = tmp_path / "log.csv"
    log.write_text("0.02\n" * 100)
    assert main(["plan", "--queries", "100", "--service-log", str(log), *arguments]) == 2
    assert why in capsys.readouterr().err


def test_there_is_no_plan_for_an_invented_fleet(capsys):
    assert main(["plan"]) == 2
    assert "--service-log FILE: how long your model takes; --workers N" in capsys.readouterr().err


def test_extra_work_may_be_a_percentage_and_is_asked_about(capsys):
    assert _share_of_work("0.3") == _share_of_work("30%") == 0.3
    with pytest.raises(SystemExit):
        main(["plan", "--max-work", "30"])
    assert "30 is 30 times the work of the deployed model; if 30 % is meant, write 0.3" in capsys.readouterr().err


def test_candidates_without_a_cost_are_left_out(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT, {**SUM, "cost": None}]}))
    assert read_candidates(tmp_path) == [STUDENT]
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot read the training report"):
        read_candidates(tmp_path)


async def test_a_running_proxy_says_how_many_machines_serve(make_fleet):  # noqa: F811
    import asyncio

    from ts_parity.lab.commands import _workers_of

    fleet = await make_fleet(*(FakeTorchServe(FakeModel(role=None)) for _ in range(3)))
    assert await asyncio.to_thread(_workers_of, fleet.proxy.admin_url) == 3
