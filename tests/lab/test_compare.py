"""What is compared, how it is shown, and what a command line may ask for."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ts_parity.cli import main
from ts_parity.engine import Source
from ts_parity.errors import ConfigError
from ts_parity.lab.compare import World, markdown_table, row_of, service_from, table
from ts_parity.lab.history import TaskEnd, read_history
from ts_parity.lab.records import QueryRecord, write_records
from ts_parity.lab.scenario import ServiceTimes, Spells

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ours_beats_hedging_where_machines_have_slow_spells():
    """The claim of docs/policy.md, in small: on the same 12 machines, and at less work."""
    world = World(load=0.3, queries=15_000, spells=Spells(0.04, 100, 5))
    hedge = row_of(world, "hedge", (0, 1), extra=0)
    ours = row_of(world, "default", (0, 1), extra=0, k=4, cost=0.25)
    assert hedge["workers"] == ours["workers"] == 12
    assert ours["p999"] < 1.6 < 2.0 < hedge["p999"]
    assert ours["work"] < hedge["work"]
    assert ours["reconstructed"] < 0.03


@pytest.mark.slow
def test_nothing_is_rebuilt_where_nothing_is_late():
    ours = row_of(World(load=0.6, queries=15_000), "default", (0,), extra=0, k=4, cost=0.25)
    none = row_of(World(load=0.6, queries=15_000), "none", (0,), extra=0)
    assert ours["reconstructed"] < 0.001
    assert ours["p50"] == pytest.approx(none["p50"], rel=0.01)


def test_load_is_measured_by_the_workers_and_not_by_the_machines():
    rows = [row_of(World(load=0.5, queries=4000), name, (0,), extra=3) for name in ("none", "equal")]
    assert [row["workers"] for row in rows] == [12, 15]
    assert "equal" in table(rows)
    assert markdown_table(rows).count("\n| ") == 2


def test_service_times_from_logs(tmp_path):
    records = tmp_path / "records.jsonl"
    write_records(records, [QueryRecord(n, 0.0, 0.0, 0.1 * (n + 1), Source.DEPLOYED.value, 200) for n in range(3)])
    assert service_from(records)[1] == pytest.approx(0.2)
    file = tmp_path / "log.csv"
    file.write_text("at,seconds\n1,0.5\n2,1.5\n")
    service, unit, seen = service_from(file)
    assert (service.samples, unit, seen) == ((0.5, 1.5), 1.0, None)
    told = row_of(World(load=0.1, queries=2000, service=service, unit=20.0), "none", (0,), extra=0)
    assert 8 <= told["p50"] <= 32
    for text in ("at,seconds\n", "at,seconds\n1,-2\n", "at,seconds\n1,x\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"log\.csv"):
            service_from(file)
    with pytest.raises(ConfigError, match="cannot read latencies"):
        service_from(tmp_path / "none.csv")


GOOD = '{"service_s": 0.5}\n'


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", "s\n0.5\nnan\n", "line 3 of .*a.csv is not a positive, finite number of seconds: 'nan'"),
        ("a.csv", "0.5\n\ninf\n", "line 3 of"),
        ("a.csv", "0.5\nseconds\n", "line 2 of"),
        ("a.csv", "0.5\n0\n", "line 2 of"),
        ("a.jsonl", GOOD + '{"service_s": NaN}\n', "line 2 of .* is not a positive, finite number of seconds: nan"),
        ("a.jsonl", GOOD + '{"service_s": "a"}', "line 2 of"),
        ("a.jsonl", GOOD + '{"service_s": [1]}', "line 2 of"),
        ("a.jsonl", GOOD + '{"service_s": true}', "line 2 of"),
        ("a.jsonl", GOOD + '{"service_s": 0.\n', "line 2 of .* is not JSON, or is cut"),
        ("a.jsonl", GOOD + "[" * 100_000, "line 2 of .* is not JSON, or is cut"),
        ("a.jsonl", GOOD + "7\n", "line 2 of .* is neither a line of an access log nor a query record"),
        ("a.jsonl", '{"service_s": null}\n', "holds no latencies"),
        ("a.csv", "", "holds no latencies"),
    ],
)
def test_what_is_wrong_in_a_log_is_named_by_its_line(name, text, why, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=why):
        service_from(tmp_path / name)


def test_blank_lines_marks_and_compression_are_no_obstacle(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + GOOD + "\n" + GOOD, encoding="utf-8-sig")
    assert service_from(tmp_path / "a.jsonl") == (ServiceTimes(samples=(1.0, 1.0)), 0.5, None)
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("seconds\n0.5\n\n1.5\n")
    assert service_from(tmp_path / "a.csv.gz")[1] == 1.0
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot read latencies"):
        service_from(tmp_path / "b.csv.gz")


def test_a_trace_is_read_line_by_line(tmp_path, capsys):
    trace = tmp_path / "trace.txt"
    trace.write_text("0.0\n\n0.5\nnan\n")
    assert main(["simulate", "--trace", str(trace)]) == 2
    assert "trace.txt, line 4 must be a number of at least 0, not 'nan'" in capsys.readouterr().err


def test_everybody_has_the_same_machines_unless_told(capsys):
    words = ["simulate", "--workers", "2", "--k", "2", "--queries", "500", "--seeds", "1", "--json"]
    assert main(words) == 0
    rows = {row["policy"]: row["workers"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {"none": 2, "hedge": 2, "default": 2, "parm": 3, "coded": 3}
    assert main([*words, "--extra", "1", "--policy", "hedge"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["workers"] == 3


def test_what_too_few_answers_stand_behind_is_marked(tmp_path, capsys):
    """Simulated or in the log: what is rarer than that, nobody has seen."""
    words = ["simulate", "--policy", "none", "--seeds", "1", "--queries", "500"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].count("~") == 2
    assert said.err.splitlines()[-1] == (
        "~: may be too low, for only 490 answers stand behind it, and it takes 4,603 for p99.9 and 46,050 for p99.99."
    )
    log = tmp_path / "log.csv"
    log.write_text("0.02\n0.03\n" * 100)
    assert main([*words, "--service-log", str(log)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].count("~") == 3
    assert "only 200 answers stand behind it, and it takes 459 for p99 and 4,603 for p99.9 and 46,050" in said.err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["doubtful"] == ["p999", "p9999"]


def test_an_overloaded_fleet_is_called_so(capsys):
    words = ["simulate", "--policy", "none", "--seeds", "1", "--queries", "500", "--workers", "2"]
    assert main([*words, "--load", "2"]) == 0
    assert "overloaded: 2 machines would have to be busy 200% of the time" in capsys.readouterr().err
    assert main([*words, "--load", "0.8", "--slow", "0.5:10:5"]) == 0
    assert "busy 133% of the time" in capsys.readouterr().err
    assert World(load=0.8, spells=Spells(0.5, 10.0, math.inf)).busy == 1.6


def test_a_trace_has_a_rate(tmp_path, capsys):
    """In seconds where there is a log, whose mean service time is known; the first arrival is the beginning."""
    log, trace = tmp_path / "log.csv", tmp_path / "trace"
    log.write_text("0.02\n" * 10)
    trace.write_text("\n".join(str(1.7e9 + 0.1 * n) for n in range(201)))
    words = ["--workers", "2", "--seeds", "1", "--service-log", str(log), "--trace", str(trace), "--json"]
    assert main(["simulate", "--policy", "none", *words]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["load"], row["queries"]) == (pytest.approx(0.1), 201)
    assert main(["plan", *words]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["load"] == pytest.approx(0.1)
    assert main(["plan", *words, "--rate", "5"]) == 2
    assert "--trace says when queries come" in capsys.readouterr().err
    trace.write_text("1\n1\n")
    assert main(["simulate", *words]) == 2
    assert "no two different instants" in capsys.readouterr().err


def test_what_cannot_be_had_is_said_before_anything_has_run(tmp_path, capsys, caplog):
    caplog.set_level("WARNING")  # and back again: the demo silences the root logger
    out = tmp_path / "out"
    for words in (["simulate", "--policy", "none", "--policy", "coded"], ["demo", "--out", str(out)]):
        assert main([*words, "--code", "concat", "--k", "3"]) != 0
        assert "code concat has k of 2 or 4, not 3" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_the_command_prints_a_table_or_json_and_draws(tmp_path, capsys):
    plot = tmp_path / "tail.png"
    common = ["simulate", "--queries", "2000", "--seeds", "1", "--policy", "none", "--policy", "default"]
    assert main([*common, "--slow", "0.04:100:inf", "--net", "0.02:5", "--plot", str(plot)]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*common, "--json"]) == 0
    assert [row["policy"] for row in json.loads(capsys.readouterr().out)] == ["none", "default"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--policy", "best"], "there is no policy 'best'"),
        (["--slow", "4:100:5"], "--slow SHARE:MEAN:FACTOR"),
        (["--net", "0.1"], "--net SHARE:MEAN"),
        (["--slow", "0.1:5:x"], "--slow SHARE:MEAN:FACTOR must be a number of at least 1, not 'x'"),
        (["--trace", "/nowhere"], "--trace: there is no file '/nowhere'"),
        (["--plot", "tail.txt"], "--plot must end in .png, .svg, .pdf, .jpg, not 'tail.txt'"),
        (["--sizes", "1:0.5"], "the shares of --sizes must add up to 1, not 0.5"),
        (["--sizes", "1"], "--sizes SIZE:SHARE,... must have 2 numbers between colons, not '1'"),
        (["--speeds", "1,x"], "--speeds FACTOR,... must be a number above 0, not 'x'"),
        (["--cv", "0"], "--cv must be a number above 0, not '0'"),
        (["--cv", "0.5", "--service-log", __file__], "give one of them"),
    ],
)
def test_what_a_command_line_may_not_ask_for(arguments, why, capsys):
    assert main(["simulate", "--queries", "100", *arguments]) == 2
    assert why in capsys.readouterr().err


# ---- histories -----------------------------------------------------------------------------------------------------


def entry(n, at, outcome="deployed", service_s=0.02, waited_s=0.0, latency_s=None, **more):
    """A line of an access log, n-th query of its process, `at` seconds past the minute."""
    line = {
        "version": 2, "at": f"2026-11-27T03:00:{at:09.6f}Z", "status": 200, "outcome": outcome, "pool": "m/1.0",
        "endpoint": "a/m/1.0", "attempts": 1, "waited_s": waited_s, "service_s": service_s, "cause": None,
        "latency_s": latency_s or (service_s or 0.05) + waited_s, "query": f"p-{n}", "others": [],
    }  # fmt: skip
    return {**line, **more}


def late(n, at, service_s, **more):
    line = {"version": 2, "task": "arrived", "at": f"2026-11-27T03:00:{at:09.6f}Z", "query": f"p-{n}", "pool": "m/1.0"}
    return {**line, "endpoint": "a/m/1.0", "waited_s": 0.0, "service_s": service_s, "at_least_s": None, **more}


def out(at_least_s=0.05, endpoint="a/m/1.0", waited_s=0.0, failed=False):
    return {"endpoint": endpoint, "waited_s": waited_s, "at_least_s": at_least_s, "failed": failed}


def history_of(folder, *entries, model=None):
    file = folder / "access.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return read_history(file, model)


def test_a_rescued_querys_own_task_counts_with_the_time_it_took(tmp_path):
    rescued = entry(2, 1.0, "reconstructed", None, others=[out()])
    history = history_of(tmp_path, entry(1, 0.5), rescued, late(2, 1.0, 0.6), entry(3, 2.0))
    assert [(round(t.sent_at, 3), t.took_s, t.end) for t in history.served] == [
        (0.0, 0.02, TaskEnd.ANSWERED), (0.5, 0.6, TaskEnd.ANSWERED), (1.5, 0.02, TaskEnd.ANSWERED),
    ]  # fmt: skip
    assert history.arrivals == pytest.approx((0.0, 0.5, 1.5))


def test_one_that_never_ended_took_at_least_as_long_as_its_process_was_heard_of(tmp_path):
    rescued = entry(1, 1.0, "hedged", 0.02, waited_s=0.03, endpoint="b/m/1.0", others=[out()])
    history = history_of(tmp_path, rescued, entry(2, 4.0), entry(1, 50.0, query="other-1"))
    assert [(t.endpoint[0], round(t.took_s, 6), t.end) for t in history.served] == [
        ("a", 3.02, TaskEnd.UNKNOWN), ("b", 0.02, TaskEnd.ANSWERED), ("a", 0.02, TaskEnd.ANSWERED),
        ("a", 0.02, TaskEnd.ANSWERED),
    ]  # fmt: skip


@pytest.mark.parametrize("outcome", ["reconstructed", "hedged", "default"])
def test_a_log_that_hides_the_slow_answers_is_refused_with_what_to_do(outcome, tmp_path):
    old = {
        key: value for key, value in entry(2, 1.0, outcome, None).items() if key not in ("version", "query", "others")
    }
    fine = {**old, "outcome": "deployed", "service_s": 0.02}
    with pytest.raises(ConfigError, match=rf"line 2 of .* was answered otherwise \({outcome}\), .*record again"):
        history_of(tmp_path, fine, old)
    write_records(tmp_path / "records.jsonl", [QueryRecord(0, 0.0, 0.0, 0.1, outcome, 200)])
    with pytest.raises(ConfigError, match="query records do not say how long the model itself took"):
        read_history(tmp_path / "records.jsonl")
    assert len(history_of(tmp_path, fine).served) == 1  # nothing is missing here
    left = {**fine, "outcome": "left", "status": 499, "service_s": None, "latency_s": 5.0}
    assert [task.end for task in history_of(tmp_path, fine, left).served] == [TaskEnd.ANSWERED, TaskEnd.UNKNOWN]


def test_what_was_forwarded_is_in_the_log_of_the_proxy_that_has_served_it(tmp_path):
    """Two proxies' logs together count each query once."""
    forwarded = entry(1, 0.5, "forwarded", None, endpoint="http://b:8080")
    forwarded |= {"pool": None, "query": None, "waited_s": None, "attempts": None}
    served = entry(1, 0.5, query="b-1", forwarded_by="a")
    history = history_of(tmp_path, entry(1, 0.1), forwarded, served)
    assert [(round(task.sent_at, 3), task.endpoint) for task in history.served] == [(0.0, "a/m/1.0"), (0.4, "a/m/1.0")]
    assert len(history.arrivals) == 2


def test_errors_and_what_is_passed_through_say_nothing_of_service_times(tmp_path):
    passed = {**entry(9, 0.1, "passed", None), "pool": None, "query": None}
    failed = entry(2, 0.3, others=[out(0.1, "b/m/1.0", failed=True)], waited_s=0.2)
    history = history_of(tmp_path, passed, entry(1, 0.2, status=500, service_s=0.001), failed, entry(3, 0.4))
    assert [task.end for task in history.served] == [TaskEnd.FAILED, TaskEnd.ANSWERED, TaskEnd.ANSWERED]
    assert len(history.arrivals) == 3


@pytest.mark.parametrize(
    "spoilt",
    [
        {"latency_s": float("nan")}, {"waited_s": float("inf")}, {"waited_s": -1.0}, {"latency_s": "x"}, {"at": "noon"},
        {"others": [out(float("nan"))]}, {"others": [{"endpoint": "a"}]}, {"others": 7}, {"query": "p"},
        {"status": None}, {"places": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_every_number_of_a_line_counts(spoilt, tmp_path):
    with pytest.raises(ConfigError, match=r"line 2 of .*access\.jsonl is not"):
        history_of(tmp_path, entry(1, 0.1), {**entry(2, 0.2), **spoilt})


def test_what_a_later_release_has_written_is_not_guessed_at(tmp_path):
    with pytest.raises(
        ConfigError, match=r"line 2 of .* is of version 4 of the access log, and this release reads 2 and 3"
    ):
        history_of(tmp_path, entry(1, 0.1), entry(2, 0.2, version=4))
    assert len(history_of(tmp_path, entry(1, 0.1), entry(2, 0.2, pool=5), model="m").served) == 1


def test_what_came_within_a_millisecond_took_half_of_one(tmp_path):
    """Where the event loop's clock counts these, the proxy's own log says 0."""
    gone = late(1, 0.1, None, task="failed", at_least_s=0.0)
    history = history_of(tmp_path, entry(1, 0.1, "hedged", 0.0, endpoint="b", latency_s=0.001), gone, late(2, 0.2, 0.0))
    assert [(task.took_s, task.end) for task in history.served] == [
        (0.0005, TaskEnd.ANSWERED), (0.0, TaskEnd.FAILED), (0.0005, TaskEnd.ANSWERED),
    ]  # fmt: skip


def test_a_log_that_ended_before_its_answers_came_says_nothing(tmp_path):
    rescued = [entry(n, 0.1 * n, "reconstructed", None, others=[out()]) for n in range(2, 40)]
    history_of(tmp_path, entry(1, 0.1), *rescued)
    with pytest.raises(ConfigError, match="of 39 of its answers 38 were still waited for when the log ended"):
        service_from(tmp_path / "access.jsonl")


def test_a_log_of_one_instant_has_no_rate(tmp_path, capsys):
    history_of(tmp_path, *(entry(n, 0.1) for n in range(20)))
    assert main(["plan", "--workers", "2", "--service-log", str(tmp_path / "access.jsonl")]) == 2
    assert "access.jsonl holds no two different instants" in capsys.readouterr().err


def test_a_log_of_several_versions_needs_to_be_told_which(tmp_path):
    new = entry(2, 1.0, pool="m/2.0", endpoint="a/m/2.0")
    with pytest.raises(
        ConfigError, match=r"several models or versions; .* --model: m/1.0 \(1 tasks\), m/2.0 \(1 tasks\)"
    ):
        history_of(tmp_path, entry(1, 0.0), new)
    assert history_of(tmp_path, entry(1, 0.0), new, model="m/2.0").served[0].endpoint == "a/m/2.0"
    with pytest.raises(ConfigError, match=r"holds no queries of x; it has m/1\.0, m/2\.0"):
        history_of(tmp_path, entry(1, 0.0), new, model="x")


def test_processes_side_by_side_have_a_share_of_the_places_each(tmp_path):
    times = [("p", 1, 0.0), ("q", 1, 0.1), ("p", 2, 9.0), ("q", 2, 9.1), ("r", 1, 10.0)]
    lines = [entry(n, at, query=f"{process}-{n}", places=4 if process == "r" else 2) for process, n, at in times]
    assert history_of(tmp_path, *lines).places == {"a/m/1.0": 4}
    assert history_of(tmp_path, *lines[:4]).places == {"a/m/1.0": 4}
    assert history_of(tmp_path, lines[0], lines[2]).places == {"a/m/1.0": 2}


def test_a_clock_that_is_set_back_and_files_in_any_order(tmp_path):
    set_back = [entry(n, at) for n, at in ((1, 10.0), (2, 11.0), (3, 5.0), (4, 6.0))]
    assert history_of(tmp_path, *set_back).arrivals == pytest.approx((0.0, 1.0, 1.0, 2.0))
    rotated = [entry(n, at) for n, at in ((3, 12.0), (4, 13.0), (1, 10.0), (2, 11.0), (2, 11.0))]
    assert history_of(tmp_path, *rotated).arrivals == pytest.approx((0.0, 1.0, 2.0, 3.0))


def test_a_fleet_with_nothing_slow_is_the_same_but_for_that():
    world = World(
        load=0.5, workers=6, spells=Spells(0.1, 50.0, 5.0), net_share=0.1, net_mean=5.0, slower_from_half=2.0, proxies=3
    )
    quiet = world.with_nothing_slow()
    assert (quiet.load, quiet.workers, quiet.busy) == (0.5, 6, 0.5)
    row = row_of(replace(quiet, queries=3000), "none", [0], extra=0)
    slow = row_of(replace(world, queries=3000), "none", [0], extra=0)
    assert row["p999"] < 3.0 < 6.0 < slow["p999"]


def test_every_machine_becomes_slower_in_the_middle():
    """Half of the queries take once, half three times as long."""
    row = row_of(World(load=0.1, queries=4000, slower_from_half=3.0), "none", [0], extra=0)
    assert row["p99"] == pytest.approx(3.8, rel=0.2)
    assert row["work"] == pytest.approx(2.0, rel=0.05)


def test_how_busy_a_fleet_is_counts_sizes_and_speeds():
    world = World(load=0.5, sizes=((1.0, 0.5), (3.0, 0.5)), speeds=(1.0, 2.0))
    assert world.busy == pytest.approx(0.5 * 2.0 / 0.75)


def test_worlds_by_flags(capsys):
    """Half of the bodies take twice as long, on whatever machine: with nothing else varying, so do they here."""
    given = ["simulate", "--policy", "none", "--workers", "2", "--load", "0.05", "--queries", "2000", "--seeds", "1"]
    assert main([*given, "--cv", "0.001", "--sizes", "1:0.9,2:0.1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["p50"], row["p99"], row["cv"]) == (pytest.approx(1.0, abs=0.01), pytest.approx(2.0, abs=0.05), 0.001)
    assert main([*given, "--cv", "0.001", "--speeds", "3,3", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["p50"] == pytest.approx(3.0, abs=0.01)


@pytest.mark.slow
def test_answers_that_differ_are_told_by_code():
    """A student's as measured, a lossless code's never; of a code that was not measured nothing is known."""
    world = World(load=0.5, spells=Spells(0.1, 50.0, 5.0), queries=6000)
    student = row_of(world, "default", [0], extra=0, k=4, cost=0.25)
    assert student["differing"] == pytest.approx(0.0371 * student["reconstructed"], rel=0.5)
    exact = row_of(world, "default", [0], extra=0, k=4, code="exact")
    assert exact["reconstructed"] > 0
    assert exact["differing"] == exact["differing_drawn"] == 0.0
