"""The planner: what it compares, what its limits forbid, and that it says so when nothing is worth it."""

import argparse
import http.server
import json
import re
import shlex
import threading
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.proxy.conftest import make_fleet  # noqa: F401 - a fixture
from ts_parity import __version__
from ts_parity.arguments import seconds
from ts_parity.cli import main, parsed
from ts_parity.config import given_flags, load_settings
from ts_parity.errors import ConfigError, TsParityError
from ts_parity.lab.compare import World, row_of
from ts_parity.lab.page import command, spread
from ts_parity.lab.plan import (
    Limits,
    _choose,
    _sentence,
    assumed,
    choices,
    left_out,
    make_plan,
    plan_page,
    plan_table,
    read_candidates,
    read_report,
    unseen,
)
from ts_parity.lab.plan_command import _share_of_work, _workers_of
from ts_parity.lab.rivals import PATIENT, serve_flags
from ts_parity.lab.scenario import Outage, ServiceTimes, Spells
from ts_parity.lab.spells import ObservedFleet
from ts_parity.proxy.app import policy_of
from ts_parity.testing import FakeModel, FakeTorchServe
from ts_parity.training.recommend import extra_work

STUDENT = {
    "code": "student", "family": "backup", "k": 4, "r": 1, "cost": 1.0, "drop": 0.01, "agreement": 0.97,
}  # fmt: skip
SUM = {"code": "sum", "family": "parity", "k": 4, "r": 1, "cost": 1.0, "drop": 0.2, "agreement": 0.8}
SLOW = World(load=0.3, queries=15_000, spells=Spells(0.04, 100, 5))


@pytest.fixture(scope="module", autouse=True)
def simulated_once():
    """What a policy makes of a world is the same whatever the limits."""
    rows = {}

    def kept(world, name, seeds, progress=None, **shape):
        asked = repr((world, name, seeds, shape))
        if asked not in rows:
            rows[asked] = row_of(world, name, seeds, progress, **shape)
        return dict(rows[asked])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ts_parity.lab.plan.row_of", kept)
        yield


def test_what_there_is_to_choose_from():
    made = choices(12, 3, [STUDENT, SUM])
    assert [(c.policy, c.extra) for c in made] == [
        ("none", 0), ("copies", 0), ("equal", 3), ("copies", 3), ("default", 0), ("default", 3), ("coded", 3),
    ]  # fmt: skip
    assert [(c.policy, c.extra) for c in choices(12, 0, [])] == [("none", 0), ("copies", 0)]


@pytest.mark.long
@pytest.mark.slow
def test_the_student_is_taken_where_machines_have_slow_spells():
    plan = make_plan(SLOW, [STUDENT, SUM], Limits(machines=3), (0,))
    chosen = plan["rows"][plan["recommended"]]
    assert (chosen["policy"], chosen["code"], chosen["extra_machines"]) == ("default", "student", 0)
    assert "Run default with student k=4: p99.9" in plan["sentence"]
    assert chosen["loss"] == pytest.approx(chosen["reconstructed"] * 0.01)
    assert plan_table(plan, SLOW).count("\n") == len(plan["rows"])
    page = plan_page(plan, SLOW)
    ElementTree.fromstring(page.split("\n", 1)[1])
    assert 'class="bar take"' in page


@pytest.mark.long
@pytest.mark.slow
def test_limits_forbid_and_say_so():
    plan = make_plan(SLOW, [STUDENT, SUM], Limits(work=0.001, loss=0.0, p999=0.5), (0,))
    broken = {(row["policy"], row["extra_machines"]): row["broken"] for row in plan["rows"]}
    assert any("more machines" in why for why in broken["coded", 3])
    assert any("points lost" in why for why in broken["default", 0])
    assert all("p99.9 too high" in why for why in broken.values())
    assert plan["recommended"] == 0
    assert not plan["reached"]
    assert "Nothing reaches a p99.9 of 0.50 service times within these limits. The lowest is" in plan["sentence"]
    plan = make_plan(World(load=0.2, queries=15_000), [STUDENT, SUM], Limits(work=0.001, loss=0.0), (0,))
    assert plan["reached"]
    assert "Run nothing: within these limits nothing is clearly better" in plan["sentence"]


@pytest.mark.slow
def test_where_nothing_is_slow_nothing_is_worth_it():
    plan = make_plan(World(load=0.2, queries=15_000), [STUDENT], Limits(), (0,))
    assert plan["recommended"] == 0
    assert "Run nothing: it is enough" in plan["sentence"]


@pytest.mark.slow
def test_the_command_reads_a_report_and_a_log(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT]}))
    log, page = tmp_path / "log.csv", tmp_path / "plan.html"
    log.write_text("\n".join(str(0.02 + 0.0001 * (n % 50)) for n in range(500)))
    arguments = ["plan", "--queries", "2000", "--seeds", "1", "--report", str(tmp_path), "--service-log", str(log)]
    arguments += ["--workers", "4", "--rate", "100"]
    assert main([*arguments, "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert " ms" in out
    assert "<table " in page.read_text()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["policy"] == "none"
    assert main([*arguments, "--p999", "0.001"]) == 4
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Nothing reaches a p99.9 of 1.0 ms"), "the last word"
    assert "->" not in out  # what does not do is not pointed at, nor is there a command line for it
    assert "ts-parity serve" not in out


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
        (["--load", "0.5", "--workers", "2", "--report", "/"], "cannot read the training report"),
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
    assert main(["plan", "--max-work", "30"]) == 2
    assert "30 is 30 times the work of the deployed model; if 30 % is meant, write 0.3" in capsys.readouterr().err
    assert main(["plan", "--max-work", "2"]) == 2
    assert "if 2 % is meant, write 0.02, else 200%" in capsys.readouterr().err
    assert _share_of_work("200%") == 2.0


def test_a_target_may_have_its_unit_and_is_asked_about(tmp_path, capsys):
    assert [seconds(text) for text in ("200ms", "0.2s", "0.2")] == [0.2, 0.2, 0.2]
    for text in ("ms", "200 m", "nans", "-1ms", "0"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a number above 0 .* not {text!r}"):
            seconds(text)
    log = tmp_path / "log.csv"
    log.write_text("0.02\n" * 100)
    assert main(["plan", "--service-log", str(log), "--workers", "2", "--rate", "10", "--p999", "200"]) == 2
    assert "--p999 is 200 seconds, where an inference takes 20 ms; if 200 ms are meant, write 200ms" in (
        capsys.readouterr().err
    )


def test_candidates_without_a_cost_are_left_out(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT, {**SUM, "cost": None}]}))
    assert read_candidates(tmp_path) == [STUDENT]
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot read the training report"):
        read_candidates(tmp_path)


def test_what_is_not_compared_is_said(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT, {**SUM, "r": 2}, {**SUM, "cost": None}]}))
    assert left_out(read_report(tmp_path)) == [
        "sum k=4 r=2: only protections with r = 1 are simulated",
        "sum k=4 r=1: what it costs was not measured (train it with --score)",
    ]


def test_what_was_measured_beside_the_trained_is_compared_too(tmp_path):
    beside = {"code": "exact", "family": "backup", "k": 4, "r": 1, "cost": 2.0, "loss": 0.0}
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT], "beside": [beside]}))
    plan = make_plan(World(queries=300), read_candidates(tmp_path), Limits(), (0,))
    assert [row["code"] for row in plan["rows"]] == [None, None, "student", "exact"]
    assert "`ts-parity package --role parity --code exact --k 4`" in plan["rows"][3]["set_up"]


def test_what_the_training_report_never_recommends_is_not_recommended_here():
    """Unless a loss is allowed in so many words."""
    plan = make_plan(World(queries=300), [SUM], Limits(machines=3), (0,))
    assert plan["rows"][-1]["broken"] == ["20% lost on a rebuilt answer"]
    assert Limits(machines=3, loss=0.5).broken_by(plan["rows"][-1], plan["rows"][0]) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"cost": float("nan")}, "candidate 2: cost must be a positive, finite number, not nan"),
        ({"cost": -1.0}, "candidate 2: cost must be"),
        ({"cost": "1"}, "candidate 2: cost must be"),
        ({"k": 0}, "candidate 2: k must be a whole number from 1 to 64, not 0"),
        ({"k": 2.5}, "candidate 2: k must be"),
        ({"r": True}, "candidate 2: r must be"),
        ({"code": "xor"}, "candidate 2: there is no code 'xor'"),
    ],
)
def test_a_report_with_what_is_no_number_is_refused(wrong, why, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT, {**SUM, **wrong}]}))
    with pytest.raises(ConfigError, match=f"cannot read the training report .*report.json: {why}"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"candidates": 5}', '{"candidates": [5]}', '{"candidates": [{}]}', "["]
)
def test_what_is_no_report_is_refused(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot read the training report"):
        read_report(tmp_path)


@pytest.mark.parametrize("choice", choices(12, 3, [STUDENT, SUM, {**STUDENT, "code": "exact"}]), ids=str)
def test_serve_takes_the_flags_and_does_what_was_simulated(choice):
    """But for patience: nobody gives up in a simulation."""
    world = World(service=ServiceTimes(samples=(1.0,)), unit=0.02)
    line = command({"serve": serve_flags(choice.policy)})
    assert bool(line) is (choice.policy not in ("none", "equal")), "what needs no proxy"
    if line:
        args = parsed(shlex.split(line)[1:])
        settings = load_settings(flags=given_flags(args), endpoints=args.endpoint)
        made = world.arranged(choice.policy, **choice.shape())
        assert (settings.protect == "off") is (made.code is None)
        assert replace(policy_of(settings).in_units(world.unit), **PATIENT) == made.policy


@pytest.mark.long
@pytest.mark.slow
def test_work_is_the_reports_where_every_query_is_protected_and_is_explained_where_it_is_not():
    world = World(load=0.6, queries=12_000)
    candidates = [{**STUDENT, "cost": 1.3, "multiplications": 1.0}, SUM]
    plan = make_plan(world, candidates, Limits(machines=3), (0,))
    rows = {row["policy"]: row for row in plan["rows"]}
    coded, ours = rows["coded"], rows["default"]
    assert coded["work_protection"] == pytest.approx(extra_work(SUM), rel=0.05)
    assert coded["work"] - rows["none"]["work"] == pytest.approx(
        sum(coded[f"work_{kind}"] for kind in ("protection", "copy", "finish")), abs=0.01
    )
    members = float(re.search(r"groups have (\S+) queries on average", coded["work_told"])[1])
    assert SUM["cost"] / members == pytest.approx(coded["work_protection"], rel=0.03)
    assert ours["work_reported"] == pytest.approx(1.3 / 4)
    assert ours["work_protection"] < 0.3 * ours["work_reported"]
    assert (
        "A group costs 1.30 deployed inferences by the clock, 1.00 counted in multiplications, which is 32.5%"
        in (ours["work_told"])
    )
    assert f"only late queries get one, {ours['launched_late']:.1%} of all" in ours["work_told"]
    assert ours["work_protection"] == pytest.approx(ours["launched_late"] * 1.3 / 4, rel=0.1)


def row(p999, low=None, high=None, **more):
    """As much of one as choosing needs."""
    return {
        "policy": "none", "code": None, "k": None, "extra_machines": 0, "workers": 2, "seeds": 3, "p50": 1.0,
        "p999": p999, "p999_low": low or p999, "p999_high": high or p999, "work": 1.0, "loss": 0.0, "broken": [],
        "loss_each": 0.0, "reconstructed": 0.0, "loss_of": "accuracy", "doubtful": [], "samples": 10**6, **more,
    }  # fmt: skip


COPIES = {"policy": "copies"}


def test_a_target_that_is_just_met_is_met():
    """It need not be clearly better than doing nothing, which does not meet it."""
    plain, hedge = row(1.01, broken=["p99.9 too high"]), row(0.99, **COPIES)
    assert _choose([plain, hedge], plain) is hedge
    assert _choose([row(1.01), hedge], plain := row(1.01)) is plain


def test_what_the_seeds_do_not_agree_on_may_be_chance():
    world = World()
    for high, chance in ((4.0, False), (6.0, True)):
        plain, hedge = row(8.0, 5.0, 9.0), row(3.0, 2.0, high, **COPIES)
        told = _sentence(hedge, plain, world, [plain, hedge], Limits())
        assert f"p99.9 3.00 service times (2.00 to {high:.2f}) against 8.00 service times (5.00 to 9.00)" in told
        assert ("may be chance" in told) is chance


def test_a_fleet_that_never_answers_is_not_told_to_run_nothing():
    rows = [row(3.0, broken=["2 queries never answered"]), row(3.0, broken=["5 queries never answered"], **COPIES)]
    told = _sentence(rows[0], rows[0], World(), rows, Limits())
    assert told.startswith("None of the choices fits these limits: with none there are 2 queries never answered")


def test_a_long_tail_is_not_called_enough():
    world, rows = World(), [row(30.0), row(30.0, **COPIES)]
    assert "Run nothing: none of the choices is clearly better; p99.9 is 30.00" in _sentence(
        rows[0], rows[0], world, rows, Limits()
    )
    assert "Run nothing: it is enough" in _sentence(rows[0], rows[0], world, rows, Limits(p999=40.0))
    rows = [row(None), row(None, **COPIES)]
    assert _choose(rows, rows[0]) is rows[0]
    assert "p99.9 is -." in _sentence(rows[0], rows[0], world, rows, Limits())
    rows[1] = row(3.0, **COPIES)
    assert _choose(rows, rows[0]) is rows[1]
    assert "p99.9 3.00 service times (3.00 to 3.00) against - without" in _sentence(
        rows[1], rows[0], world, rows, Limits()
    )


def test_what_is_taken_for_true_depends_on_what_the_log_said():
    spells = {"a": (Outage("", 10.0, 5.0), Outage("", 30.0, 5.0)), "b": ()}
    seen = ObservedFleet((1.0,), spells, (), 100.0, places=2)
    world = World(load=0.8, places=2, service=ServiceTimes(samples=(1.0,) * 7), seen=seen)
    told, blind = " ".join(assumed(world, None)), " ".join(unseen(world, [STUDENT]))
    assert "run 2 queries at a time" in told
    assert "frozen or dead when they were in the log, over and over" in told
    assert "The load of 0.84 lasts as long as the simulation" in told
    assert "once in the log's 7 answers" in blind
    assert "than the 2 that the log has in 100 s" in blind
    told, blind = " ".join(assumed(World(spells=Spells(0.1, 5, 3)), 3)), " ".join(unseen(World(), []))
    assert "10.0% of the time, 3 times slower, 5.00 service times long on average" in told
    assert "3 failure domains." in told
    assert "the log does not say which machine was slow when" in blind
    assert "give --report" in blind
    assert World(seen=ObservedFleet((1.0,), {"a": (Outage("", 0.0, 100.0),)}, (), 100.0)).busy == pytest.approx(600)


def test_too_few_answers_are_marked():
    assert spread(row(3.0, 2.0, 4.0, doubtful=["p999"]), "p999", World()) == "~3.00 service times (2.00 to 4.00)"
    assert spread(row(3.0, seeds=1), "p999", World(unit=0.02)) == "3000.0 ms"


def test_the_page_says_what_it_was_made_from_and_what_to_type(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"candidates": [STUDENT], "deployed": {"model": "<b>net"}}))
    log, page = tmp_path / "log.csv", tmp_path / "plan.html"
    log.write_text("\n".join(str(0.02 + 0.0001 * (n % 50)) for n in range(500)))
    words = ["plan", "--queries", "600", "--seeds", "2", "--report", str(tmp_path), "--service-log", str(log)]
    words += ["--workers", "4", "--rate", "100", "--domains", "2", "--max-work", "20%", "--p999", "0.1"]
    assert main([*words, "--html", str(page)]) == 0
    assert "ts-parity serve --endpoint http://HOST:8080" in capsys.readouterr().out
    root = ElementTree.fromstring(page.read_text().split("\n", 1)[1])
    told = " ".join("".join(root.itertext()).split())
    for said in (
        f"{log}: 500 service times; mean 22.5 ms, median 22.4 ms, p99 24.9 ms, longest 24.9 ms",
        "100 queries/s, a load of 0.56",
        "600 queries, 6 s of traffic, with each of the seeds 0, 1",
        f"{tmp_path}: of <b>net, 1 protections",
        "at most no extra machines, 20% more work, a p99.9 of 100 ms",
        f"by ts_parity {__version__}",
        "means over 2 seeds, and the lowest and highest of them",
        "ts-parity serve --endpoint http://HOST:8080",
        "2 failure domains.",
        "once in the log's 500 answers",
        "~: may be too low, for only 500 answers stand behind it, and it takes 4,603 for p99.9.",
    ):
        assert said in told
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", told)
    assert parsed(shlex.split("".join(root.find(".//pre").itertext()))[1:]).endpoint == ["http://HOST:8080"]
    assert root.find(".//meta[@name='viewport']") is not None
    assert len(root.findall(".//span[@class='between']")) == 9


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"[]", "no status of a proxy there"),
        (b'{"pools": 5}', "no status of a proxy there"),
        (b'{"pools": {"m": {}}}', "no status of a proxy there"),
        (b"\xff", "no status of a proxy there"),
        (b'{"pools": {"m": {"endpoints": []}}}', "no endpoint serves m just now"),
        (b'{"pools": {}}', "it serves 0 models"),
    ],
)
def test_what_is_no_proxy_is_told(said, why):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(TsParityError, match=why):
            _workers_of(f"http://127.0.0.1:{server.server_port}")


async def test_a_running_proxy_says_how_many_machines_serve(make_fleet):  # noqa: F811
    import asyncio

    fleet = await make_fleet(*(FakeTorchServe(FakeModel(role=None)) for _ in range(3)))
    assert await asyncio.to_thread(_workers_of, fleet.proxy.admin_url) == 3
