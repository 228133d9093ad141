"""The parts of the paper's evaluation: what is measured, what a row says, and what tables make of rows. The measuring
itself is `--quick`, and its pieces are tested in tests/lab.
"""

import asyncio
import gzip
import itertools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import paper
import paper_fleet
import paper_tables
import psutil
import pytest
from paper_fleet import Twice
from paper_points import ARMS, FIGURES, HOSTINGS, QUICK, Point, Size, extra_machines, point_of, points, shown

from ts_parity.engine import Policy
from ts_parity.lab.faults import CONTEND, CRASH
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.scenario import ServiceTimes
from ts_parity.lab.traffic import LabelledBody, Load

SMALL = replace(QUICK, queries=600)
COSTS = {"sum2": 1.0, "sum3": 1.0, "sum4": 1.0, "student": 0.25, "backup": 0.25}


def test_each_point_has_a_name_of_its_own_and_few_fleets_are_started():
    made = points(Size(), list(FIGURES))
    assert len({point.key for point in made}) == len(made) == len(set(made))
    fleets = [point.fleet for point in made]
    changes = sum(this != after for this, after in itertools.pairwise(fleets))
    assert changes + 1 == len(set(fleets))


def test_every_figure_has_equal_resources_beside_it_and_the_arms_there_are():
    for figure in FIGURES.values():
        assert "equal" in figure.arms
        assert set(figure.arms) <= ARMS.keys()
    assert {arm.hosting for arm in ARMS.values()} == HOSTINGS.keys()
    assert set(FIGURES["9"].arms) == ARMS.keys()


@pytest.mark.parametrize(("k", "extra"), [(2, 6), (3, 4), (4, 3)])
def test_the_machines_are_the_papers(k, extra):
    assert (Size().machines, extra_machines(Size(), k)) == (12, extra)


def test_a_point_is_measured_once_and_shown_in_each_of_its_figures():
    whole = points(Size(), list(FIGURES))
    rows = shown(whole)
    assert set(whole) == {point for _, point in rows}
    for name in FIGURES:
        assert {point for figure, point in rows if figure == name} == set(points(Size(), [name]))
    assert sum(len(points(Size(), [name])) for name in FIGURES) > len(whole)
    assert [name for name, each in rows if each == point()] == ["9", "10", "11", "13", "batch"]


def test_a_figure_shows_no_load_at_which_it_has_nothing_of_its_own():
    half = [point(), point(arm="equal"), point(arm="parm")]
    assert shown(half) == [("9", half[1]), ("9", half[2]), ("9", half[0])]
    assert [name for name, _ in shown([*half, point(k=4)])] == ["9"] * 3 + ["10"] * 4
    assert [name for name, _ in shown([*half, point(load=0.35, batch=2)])] == ["9"] * 3
    assert [name for name, _ in shown([*half, point(arm="approximate")])] == ["9"] * 4 + ["13"] * 4


def point(**changes):
    return Point(**{"arm": "default", "load": 0.5, "k": 2, "disturbances": 4, "batch": 1, "seed": 0,
                    "trouble": "shuffles"} | changes)  # fmt: skip


def test_trouble_is_what_the_figure_says():
    assert {f.kind for f in paper.trouble_of(Size(), point(), 18, 60.0).faults} == {CONTEND}
    [crash] = paper.trouble_of(Size(), point(trouble="crash"), 18, 60.0).faults
    assert (crash.kind, crash.at) == (CRASH, 30.0)
    assert paper.trouble_of(Size(), point(trouble="slow"), 18, 60.0).spells
    assert not paper.trouble_of(Size(), point(trouble="tenant"), 18, 60.0).faults


@pytest.mark.parametrize("trouble", ["shuffles", "slow", "crash"])
def test_longer_inferences_are_the_same_run_in_slow_motion(trouble):
    slower = replace(Size(), service_s=0.1)
    usual = paper.trouble_of(Size(), point(trouble=trouble), 18, 60.0)
    slow = paper.trouble_of(slower, point(trouble=trouble, service_ms=100.0), 18, 120.0)
    assert [(f.at, f.spell_s, f.strength_s) for f in slow.faults] == [
        (pytest.approx(2 * f.at), pytest.approx(2 * f.spell_s), pytest.approx(2 * f.strength_s)) for f in usual.faults
    ]
    assert [(s.at, s.lasts, s.factor) for s in slow.spells] == [
        (pytest.approx(2 * s.at), pytest.approx(2 * s.lasts), s.factor) for s in usual.spells
    ]
    [first], [after] = ({p.service_ms for p in points(size, ["9"])} for size in (Size(), slower))
    assert (first, after) == (50.0, 100.0)
    assert not {p.key for p in points(slower, list(FIGURES))} & {p.key for p in points(Size(), list(FIGURES))}


def test_points_of_several_runs_are_collected(tmp_path):
    load = Load(tuple(n / 10 for n in range(600)), tuple(n % 50 for n in range(600)))
    there = [
        point(arm="hedge"),
        point(seed=1),
        point(),
        point(arm="equal", service_ms=100.0),
        point(arm="equal", trouble="crash"),
    ]
    for each in (there[4], there[3], there[1], there[0], there[2]):
        row = json.dumps(paper.row_of(SMALL, each, records(load), load, 1.0, 6) | made())
        (tmp_path / f"{each.key}.json").write_text(row)
    (tmp_path / f"{point(seed=2).key}.unfinished").write_text("{")
    (tmp_path / "proxy-proxy.json").write_text("{}")
    (tmp_path / f"9-{there[2].key}.json").write_text(row)
    (tmp_path / f"{point(seed=4).key}.json").write_text(json.dumps({"spec": "default", "load": 0.5}))
    undated = paper.row_of(SMALL, point(seed=5), records(load), load, 1.0, 6)
    (tmp_path / f"{point(seed=5).key}.json").write_text(json.dumps(undated))
    found = paper.collected(tmp_path)
    assert {each: point_of(row) for each, row in found.items()} == {each: each for each in there}
    in_order = [("9", there[0]), ("9", there[2]), ("9", there[1]), ("9", there[3]), ("crash", there[4])]
    assert shown(list(found)) == in_order


def test_all_arms_of_a_setting_meet_one_load():
    loads = {paper.load_of(SMALL, point(arm=arm), 450) for arm in ARMS}
    assert len(loads) == 1


def records(load):
    made = [QueryRecord(seq, at, at, 0.05 + seq / 1e5, "deployed", 200, load.picks[seq], load.picks[seq])
            for seq, at in enumerate(load.due_at)]  # fmt: skip
    made[7] = replace(made[7], outcome="reconstructed", predicted=99)
    made[8] = replace(made[8], outcome="reconstructed")
    made[9] = replace(made[9], outcome="hedged")
    made[10] = replace(made[10], outcome="lost", latency_s=None)
    return made


def test_a_row_says_what_clients_saw():
    load = Load(tuple(n / 10 for n in range(600)), tuple(n % 50 for n in range(600)))
    row = paper.row_of(SMALL, point(), records(load), load, 1.04, 6)
    named = "arm load k workers seed queries p50_ms p99_ms p999_ms lost errors reconstructed differing work"
    assert row.keys() >= set(named.split())
    fewer = paper.row_of(SMALL, point(arm="default, no machine more"), records(load), load, 1.0, 4)
    assert (fewer["arm"], fewer["workers"]) == ("default", 4)
    assert point_of(fewer).key == point(arm="default, no machine more").key
    assert (row["lost"], row["reconstructed"], row["differing"], row["compared"]) == (1, 2, 1, 2)
    assert row["p99_low_ms"] <= row["p99_ms"] <= row["p99_high_ms"]
    assert row["p999_ms"] is None, "600 queries say nothing about it"
    json.dumps(row)


def test_the_first_and_the_last_queries_are_not_timed():
    load = Load(tuple(n / 20 for n in range(6000)), tuple(n % 50 for n in range(6000)))
    made = records(load)
    for seq in [*range(600), *range(5970, 6000)]:
        made[seq] = replace(made[seq], latency_s=5.0)
    row = paper.row_of(SMALL, point(), made, load, 1.0, 6)
    assert row["timed"] == 5370
    assert row["max_ms"] == pytest.approx(1000 * (0.05 + 5969 / 1e5))
    assert row["lost"] == 1, "which counts wherever it is"
    assert row["clustered"] == 1.0, "the later the slower: the slowest are due within half a second"


def test_slow_queries_that_come_together_are_seen():
    load = Load(tuple(n / 10 for n in range(6000)), tuple(n % 50 for n in range(6000)))
    made = records(load)
    for seq in (1000, 1003, 1007, 3000, 3007, 4000):
        made[seq] = replace(made[seq], latency_s=5.0)
    assert paper.clustered(made) == 0.333, "two of six: 1007 and 3007 come too late"
    assert paper.row_of(SMALL, point(), made[:3000], load, 1.0, 6)["clustered"] is None, (
        "no p99.9, nothing to say of it"
    )


def test_where_nothing_is_done_the_kept_results_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which it would set itself
    monkeypatch.setattr("sys.argv", ["paper.py", "--collect", "--work", str(tmp_path)])
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(paper, "RESULTS", kept)
    with pytest.raises(SystemExit, match="no point is done in"):
        paper.main()
    assert not kept.exists()


def made(at="2026-11-29T07:00", host="b"):
    return {"measured_at": at, "host": host, "machine": "m"}


def measured(work, *there, at="2026-11-29T07:00"):
    """Points that are done, in a folder."""
    load = Load(tuple(n / 10 for n in range(600)), tuple(n % 50 for n in range(600)))
    (work / "models").mkdir(parents=True, exist_ok=True)
    (work / "models" / "done.json").write_text(json.dumps(COSTS))
    for each in there:
        row = paper.row_of(SMALL, each, records(load), load, 1.0, 6) | made(at)
        (work / f"{each.key}.json").write_text(json.dumps(row))
        with gzip.open(work / f"{each.key}.records.gz", "wt") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records(load))


def test_what_is_measured_replaces_the_same_points_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "simulated", lambda *point: {})
    measured(tmp_path / "first", point(), point(arm="equal"))
    first = paper.document_of(SMALL, paper.collected(tmp_path / "first"), tmp_path / "first", {})
    first["rows"] = [row | {"machine": "another", "measured_at": "2026-11-01"} for row in first["rows"]]
    gone = point(trouble="weather")
    first["rows"].append(first["rows"][0] | {"trouble": "weather"})
    first["curves"][gone.key] = []
    measured(tmp_path / "second", point(), point(seed=1))
    both = paper.document_of(SMALL, paper.collected(tmp_path / "second"), tmp_path / "second", first)
    assert {point_of(row): row["measured_at"][:10] for row in both["rows"]} == {
        point(arm="equal"): "2026-11-01", point(): "2026-11-29", point(seed=1): "2026-11-29",
    }  # fmt: skip
    assert both["curves"].keys() == {point_of(row).key for row in both["rows"]}
    assert both["machine"] == "another; m"
    again = paper.document_of(SMALL, paper.collected(tmp_path / "first"), tmp_path / "first", both)
    assert again["rows"] == [row | made() if point_of(row) == point(arm="equal") else row for row in both["rows"]]
    measured(tmp_path / "old", point(), at="2026-10-01T07:00")
    older = paper.document_of(SMALL, paper.collected(tmp_path / "old"), tmp_path / "old", both)
    assert older["rows"] == both["rows"], "what is kept is newer"


def test_results_of_another_size_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "kept.json")
    assert paper.kept_results(Size()) == {}, "there is nothing yet"
    document = {"size": {name: getattr(Size(), name) for name in paper.SIZE}}
    paper.RESULTS.write_text(json.dumps(document))
    assert paper.kept_results(Size(loads=(0.5,), service_s=0.1)) == document
    assert paper.kept_results(Size(queries=500)) is None


def test_only_what_the_kept_results_lack_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which it would set itself
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "kept.json")
    kept = point(arm="equal", trouble="crash")
    size = {name: getattr(Size(), name) for name in paper.SIZE}
    paper.RESULTS.write_text(json.dumps({"size": size, "curves": {kept.key: []}}))
    wanted = []
    monkeypatch.setattr(paper, "run", lambda size, points, work: wanted.extend(points))
    command = ["paper.py", "--figure", "crash", "--seeds", "1", "--arm", "equal", "--arm", "default"]
    monkeypatch.setattr("sys.argv", [*command, "--missing", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="no point is done in"):
        paper.main()
    assert wanted == [point(trouble="crash")]
    monkeypatch.setattr("sys.argv", ["paper.py", "--figure", "crash", "--seeds", "1", "--arm", "equal", "--missing"])
    assert paper.main() == 0, "nothing is left to do"
    monkeypatch.setattr("sys.argv", ["paper.py", "--collect", "--missing"])
    with pytest.raises(SystemExit):
        paper.main()


@pytest.mark.slow
def test_results_of_another_size_replace_none(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "kept.json")
    kept = json.dumps({"size": {name: getattr(Size(), name) for name in paper.SIZE}})
    paper.RESULTS.write_text(kept)
    command = ["paper.py", "--collect", "--queries", "600", "--work", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    folder = tmp_path / f"{Size().machines}-600-{Size().steps}"
    measured(folder, point(), point(arm="equal"))
    assert paper.main() == 1, "a query of these points is lost"
    assert paper.RESULTS.read_text() == kept
    assert len(json.loads((folder / "kept.json").read_text())["rows"]) == 2


def test_a_kept_curve_is_thin_and_keeps_the_tail():
    load = Load(tuple(n / 10 for n in range(5000)), tuple(n % 50 for n in range(5000)))
    kept = paper.curve(records(load))
    assert len(kept) <= paper.CURVE + 2
    assert kept[0][1] == 1.0
    assert kept[-1][1] <= 3 / 5000
    assert kept == sorted(kept)


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "batch"), [("shuffles", 1), ("shuffles", 4), ("slow", 1), ("crash", 1)])
def test_the_simulator_can_be_set_beside_every_arm(trouble, batch):
    for arm in ARMS.values():
        there = point(arm=arm.name, trouble=trouble, batch=batch)
        told = paper.simulated(SMALL, there, COSTS, ServiceTimes(cv=0.1), 0.05)
        assert told["simulated_p50_ms"] > 40
        machines = paper.arranged(SMALL, point(arm=arm.name), COSTS, 0.05).workers
        assert machines == SMALL.machines + (extra_machines(SMALL, 2) if arm.extra else 0)


@pytest.mark.parametrize("arm", [arm for arm in ARMS.values() if arm.flags is not None and not arm.client])
def test_what_the_proxy_runs_is_what_the_simulator_runs(arm):
    policy = paper.arranged(SMALL, point(arm=arm.name), COSTS, 0.06).policy
    flags = paper.flags_of(SMALL, point(arm=arm.name))
    usual = Policy().in_units(0.06)
    for flag, name, unit in (("--extra-work", "extra_work", 1.0), ("--differing", "differing", 1.0),
                             ("--reconstruct-after-s", "reconstruct_after_s", 0.06)):  # fmt: skip
        given = float(flags[flags.index(flag) + 1]) / unit if flag in flags else getattr(usual, name)
        assert getattr(policy, name) == given, name
    assert (policy.learn_speed, policy.group_wait_s) == (usual.learn_speed, usual.group_wait_s)


def test_the_simulator_takes_as_long_as_tasks_took_on_the_host(tmp_path):
    there = point(arm="hedge", trouble="shuffles")
    assert paper.usual_service(SMALL, there, tmp_path)[1] == SMALL.service_s, "nothing is known of the host"
    lines = [{"service_s": 0.06} for _ in range(50)]
    before = paper.usual_log_of(tmp_path, replace(there, arm="equal"))
    before.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    service, unit = paper.usual_service(SMALL, there, tmp_path)
    assert unit == pytest.approx(0.06)
    batches = replace(there, batch=4)
    paper.usual_log_of(tmp_path, batches).write_text(before.read_text())
    assert paper.usual_service(SMALL, batches, tmp_path)[1] == SMALL.service_s, "those would be times of batches"
    told = paper.simulated(SMALL, there, COSTS, service, unit)
    assert told["simulated_p50_ms"] == pytest.approx(60, rel=0.1)


@pytest.mark.slow
def test_a_point_whose_second_tenant_has_gone_home_is_an_error(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(paper_fleet, "register", lambda fleet, archive: done.append("register"))
    monkeypatch.setattr(paper_fleet, "unregister", lambda fleet, name: done.append(f"unregister {name}"))
    live = SimpleNamespace(instance=SimpleNamespace(inference_url="http://127.0.0.1:9"))
    archives = SimpleNamespace(tenant="tenant.mar", data=tmp_path / "not there")
    before = set(psutil.Process().children())
    visits = paper_fleet.tenant(SMALL, [live], archives, 10.0, 0)
    visits.__enter__()
    [load] = set(psutil.Process().children()) - before
    load.wait(60)
    with pytest.raises(SystemExit, match=r"has ended early; to see why: .* bench "):
        visits.__exit__(None, None, None)
    assert done == ["register", "unregister tenant"]


async def test_replication_takes_the_first_answer_and_survives_an_error():
    sent = []

    async def post(seq, body):
        sent.append(seq)
        if len(sent) == 1:
            raise ConnectionError
        await asyncio.sleep(0)
        return 200, "deployed", b"answer"

    twice = Twice()
    assert await twice(post)(3, LabelledBody(b"x")) == (200, "deployed", b"answer")
    assert (sent, twice.sent) == ([3, 3], 2)


def document():
    rows = []
    for figure, arm, seed in [("9", arm, seed) for arm in ("equal", "hedge", "default") for seed in (0, 1)]:
        row = {"figure": figure, "arm": arm, "spec": arm, "load": 0.5, "k": 2, "workers": 18, "seed": seed,
               "queries": 20_000, "disturbances": 4, "batch": 1, "trouble": "shuffles", "service_ms": 50.0,
               **made(f"2026-11-{28 + seed}", "ab"[seed]),
               "p50_ms": 50.0, "p99_ms": 90.0,
               "p999_ms": 130.0, "lost": 0, "errors": 0, "reconstructed": 10, "compared": 10, "differing": 1,
               "accuracy": 0.98, "accuracy_reconstructed": 0.9, "work": 1.05, "send_lag_p99_ms": 2.0, "clustered": 0.2,
               "simulated_p50_ms": 51.0, "simulated_p99_ms": 120.0, "simulated_p999_ms": None}  # fmt: skip
        rows.append(row | ({"p999_ms": 70.0 + seed} if arm == "default" else {}))
    return {"command": "python benchmarks/paper.py", "machine": "m", "emulated": "a wait", "size": asdict(Size()),
            "rows": rows}  # fmt: skip


def test_tables_say_the_gap_beside_equal_resources():
    sections = paper_tables.sections(document())
    assert "**Figure 9: loads, network contention.** In the paper: gap between" in sections["paper"]
    line, other = [line for line in sections["paper"].splitlines() if line.startswith("| default")]
    assert "70 (70, 70) | 20% |" in line
    assert "| 0.25 |" in line, "20 of 80 ms"
    assert "0.005%" in line, "a tenth of the rebuilt ones, over all answers"
    assert "| 98.00% | 90.0% |" in line
    assert "6 of 12 simulated percentiles of single seeds are within 15 %" in sections["paper-simulated"]
    assert "0 of 0 foretold ones" in sections["paper-simulated"]
    assert "batches of 1; measured on 2026-11-28 and 2026-11-29:" in sections["paper"]
    assert "71 (71, 71) | 20% | 0.26 |" in other, "seed 1, on the other host, beside what equal resources have there"
    assert line.startswith("| default | A | 18 | 1 |")
    assert other.startswith("| default | B | 18 | 1 |")


def test_a_gap_is_compared_over_the_seeds_that_both_have():
    one = document()
    for row in one["rows"]:
        row["host"] = "a"
        if row["seed"] == 1 and row["arm"] == "default":
            row["p999_ms"] = 1000.0
    one["rows"] = [row for row in one["rows"] if (row["arm"], row["seed"]) != ("equal", 1)]
    [line] = [line for line in paper_tables.sections(one)["paper"].splitlines() if line.startswith("| default")]
    assert "535 (70, 1000)" in line
    assert "| 0.25 |" in line, "20 of 80 ms"


def test_a_table_holds_every_host_however_many_there_are():
    one = document()
    one["rows"] = [row | {"host": str(n), "seed": n} for n, row in enumerate(one["rows"] * 5)]
    lines = [line for line in paper_tables.sections(one)["paper"].splitlines() if line.startswith("| default")]
    assert len(lines) == 10


@pytest.mark.slow
def test_the_plots_are_pngs(tmp_path):
    slow = [row | {"load": 0.85, "service_ms": 100.0} for row in document()["rows"]]
    more = [row | {"load": 0.85} for row in document()["rows"]]
    assert paper_tables.over_loads(document()["rows"] + slow) == [], "two loads, but of different lengths"
    rows = paper_tables.over_loads(document()["rows"] + more + slow)
    assert rows == [row for row in document()["rows"] + more if row["host"] == "b"], "the newer one of two hosts"
    told = paper_tables.sections(document() | {"rows": document()["rows"] + more})["paper"]
    assert "On host B:\n\n![p99.9 by load](paper.png)" in told
    paper_tables.plot(rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    shown_ = [*rows, *slow, *(row | {"load": 0.35} for row in slow)]
    curves = {point_of(row).key: [(50.0, 1.0), (90.0, 0.01), (130.0, 0.001)] for row in shown_}
    paper_tables.plot_curves(shown_, curves, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_the_length_of_a_run_is_known_before_it():
    whole = paper.estimate_s(Size(), points(Size(), list(FIGURES)))
    quick = paper.estimate_s(QUICK, points(QUICK, ["9"]))
    assert whole > 3600 * 10
    assert quick < 600


class CrashedMachine:
    """Comes back with what stood beside its model, and so takes nothing that is registered after that."""

    def __init__(self):
        self.instance, self.running, self.restarts = self, False, 0

    def restart(self):
        self.running, self.restarts = True, self.restarts + 1


def test_a_machine_that_has_crashed_is_started_again_before_the_next_point(tmp_path):
    cluster = paper.Cluster(SMALL, None, tmp_path)
    cluster.fleet, cluster._beside = [CrashedMachine()], tmp_path / "student.mar"
    for _ in range(2):
        cluster._repair()
    assert (cluster.fleet[0].restarts, cluster.cold) == (1, True)
