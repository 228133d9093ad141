"""A bench says what clients saw, judges it, and does no harm that it was not told to do."""

import argparse
import asyncio
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
from aiohttp import web

from ts_parity.cli import main
from ts_parity.errors import ConfigError
from ts_parity.lab.bench import (
    WARM_UP_S,
    BenchPlan,
    BenchTarget,
    Measured,
    agreement,
    lead_in,
    run_bench,
    slices,
    warm_up,
)
from ts_parity.lab.intervals import interval
from ts_parity.lab.records import QueryRecord, read_records
from ts_parity.lab.thresholds import threshold
from ts_parity.lab.traffic import LabelledBody, Load, load_at


class Service:
    """Little servers in a thread, for a command that has an event loop of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.seen = []
        self.asked = []
        self.connections = []
        self.failing_until, self.failing_after = 0, math.inf
        self._runners = []
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, name="one", idle_s=60.0):
        """`idle_s`: after that long it closes a connection."""
        return asyncio.run_coroutine_threadsafe(self._start(name, idle_s), self.loop).result(30)

    async def _start(self, name, idle_s):
        async def answer(request):
            body = await request.read()
            self.seen.append((name, body, dict(request.headers)))
            self.asked.append(request.path_qs)
            self.connections.append(request.transport.get_extra_info("peername"))
            if len(self.seen) <= self.failing_until or len(self.seen) > self.failing_after:
                return web.json_response({"message": "no worker"}, status=503)
            rebuilt = {"x-ts-parity": "reconstructed"} if len(self.seen) % 3 == 0 else {}
            return web.json_response({"class": len(body)}, headers=rebuilt)

        async def moved(request):
            raise web.HTTPTemporaryRedirect("/predictions/m")

        app = web.Application()
        app.router.add_post("/predictions/m", answer)
        app.router.add_post("/predictions/m/", answer)
        app.router.add_post("/moved", moved)
        runner = web.AppRunner(app, shutdown_timeout=0.1, keepalive_timeout=idle_s)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/predictions/m"

    def close(self):
        for runner in self._runners:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr("ts_parity.lab.bench.WARM_UP_S", 0.2)
    made = Service()
    yield made
    made.close()


@pytest.fixture
def bodies(tmp_path):
    folder = tmp_path / "bodies"
    folder.mkdir()
    for size in (1, 2, 3):
        (folder / f"{size}.json").write_text("7" * size)
    return folder


def bench(service_url, bodies, *more):
    return main(["bench", "--target", service_url, "--bodies", str(bodies), "--duration", "1s", "--rate", "40", *more])


@pytest.mark.slow
def test_a_bench_says_what_clients_saw(service, bodies, capsys, tmp_path):
    page, records = tmp_path / "bench.html", tmp_path / "records"
    url = service.start()
    code = bench(url, bodies, "--json", "--html", str(page), "--records", str(records), "--header", "X-Key: secret",
                 "--fail-if", "lost>0", "--fail-if", "errors>1%", "--fail-if", "p50>20s")  # fmt: skip
    assert code == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    [row] = document["targets"]
    queries = row["queries"]
    assert 20 < queries < 60
    assert f"{queries} queries to {url}: about 1 s in all" in err
    assert (row["answered"], row["errors"], row["lost"]) == (queries, 0, 0)
    assert row["sources"]["reconstructed"] + row["sources"]["deployed"] == queries
    assert row["agreement"]["agreed"] == row["sources"]["reconstructed"], (
        "a body's class is its length, whoever says so"
    )
    assert row["p50"] > 0
    assert row["p99"] is None, "so few queries say nothing about it"
    assert row["intervals"].keys() == {"p50"}
    assert all(headers["X-Key"] == "secret" for _, _, headers in service.seen)
    assert {headers["Content-Type"] for _, _, headers in service.seen} == {"application/json"}
    text = page.read_text()
    assert "<svg" in text
    assert "http-equiv" in text
    assert "secret" not in text + json.dumps(document)
    name = url.split("//")[1].split("/")[0].replace(":", "-")
    assert len([*read_records(records / f"{name}.jsonl")]) == queries


@pytest.mark.slow
def test_a_threshold_sets_the_exit_code(service, bodies, capsys):
    assert bench(service.start(), bodies, "--fail-if", "reconstructed>0", "--fail-if", "lost>0") == 4
    assert "reconstructed>0: it is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_load_that_mostly_fails_is_ended(service, bodies, capsys):
    service.failing_after = 60
    target = ["bench", "--target", service.start(), "--bodies", str(bodies), "--duration", "20s", "--rate", "400"]
    assert main([*target, "--json"]) == 1
    out, err = capsys.readouterr()
    assert "of 100 queries in a row failed, most with 503: {" in err
    [row] = json.loads(out)["targets"]
    assert 70 <= row["queries"] < 8000, "the first forty were warm-ups"
    assert any("no worker" in reason for reason in row["reasons"])


@pytest.mark.slow
def test_a_service_that_is_not_there_is_a_failure(bodies, capsys):
    assert bench("here=http://127.0.0.1:1/predictions/m", bodies, "--rate", "20") == 1
    assert "no query of the warm-up was answered at here: error: ClientConnector" in capsys.readouterr().err


@pytest.mark.slow
def test_a_target_is_asked_as_it_is_given(service, bodies):
    url = service.start()
    assert bench(f"{url}/?v=2&w", bodies, "--rate", "5") == 0
    assert set(service.asked) == {"/predictions/m/?v=2&w"}


@pytest.mark.slow
def test_a_redirect_is_an_error_and_not_followed(service, bodies, capsys):
    moved = service.start().replace("/predictions/m", "/moved")
    assert bench(f"here={moved}", bodies, "--rate", "5") == 1
    assert "at here: 307: a redirect to /predictions/m, not followed" in capsys.readouterr().err
    assert not service.seen


def test_a_target_without_a_path_has_a_name():
    from ts_parity.cli import parsed

    common = ["bench", "--bodies", ".", "--target"]
    for asked, name in (("http://h:1?v=2", "h-1"), ("http://h/p/?v=2", "h"), ("m=http://h:1/?v=2", "m")):
        [target] = parsed([*common, asked]).target
        assert (target.name, target.url) == (name, asked.removeprefix("m="))


@pytest.mark.slow
def test_targets_take_turns_with_the_same_load(service, bodies, monkeypatch):
    monkeypatch.setattr("ts_parity.lab.bench.SLICE_S", 0.2)
    targets = [BenchTarget(name, service.start(name)) for name in "ab"]
    load = load_at([0.05 * n for n in range(20)], 3, seed=1)
    plan = BenchPlan(targets, [LabelledBody(b"7" * size) for size in (1, 2, 3)], load)
    one, other = run_bench(plan)[0]
    for measured in (one, other):
        assert [record.seq for record in measured.records] == [*range(20)]
        assert [round(record.due_at, 6) for record in measured.records] == [round(at, 6) for at in load.due_at]
    order = [name for name, _, _ in service.seen]
    assert order[0] == "a"
    assert len([None for this, after in itertools.pairwise(order) if this != after]) > 2, "in slices"


@pytest.mark.slow
def test_connections_last_from_slice_to_slice(service, monkeypatch):
    monkeypatch.setattr("ts_parity.lab.bench.SLICE_S", 0.2)
    targets = [BenchTarget(name, service.start(name)) for name in "ab"]
    run_bench(BenchPlan(targets, [LabelledBody(b"7")], load_at([0.05 * n for n in range(20)], 1, seed=1)))
    opened, turns, before = set(), 0, ""
    for (name, _, _), connection in zip(service.seen, service.connections, strict=True):
        if name != before and (name, connection) in opened:
            turns += 1
        elif name != before:
            assert not any(known == name for known, _ in opened), "it has an idle one"
        opened.add((name, connection))
        before = name
    assert turns > 2


@pytest.mark.slow
def test_connections_that_a_target_closed_open_before_its_slice(service, monkeypatch):
    monkeypatch.setattr("ts_parity.lab.bench.SLICE_S", 0.5)
    targets = [BenchTarget(name, service.start(name, idle_s=0.5)) for name in "abc"]
    load = Load(tuple(0.05 * n for n in range(20)), tuple(range(20)))
    told = []
    measured = run_bench(BenchPlan(targets, [LabelledBody(b"%d" % n) for n in range(20)], load), told.append)[0]
    asked = [(name, int(body), at) for (name, body, _), at in zip(service.seen, service.connections, strict=True)]
    for each in measured:
        mine = [(body, at) for name, body, at in asked if name == each.target.name]
        before, after = mine[:18], mine[18:]
        assert sorted(body for body, _ in before) == sorted([*range(4), *range(4), *range(10)]), "warm-ups, and a slice"
        assert sorted(body for body, _ in after) == [*range(6, 20)], "the end of that slice, and another"
        if each.target.name != "c":
            assert not {at for _, at in before} & {at for _, at in after}, "all were closed in the meantime"
        assert [record.seq for record in each.records] == [*range(20)]
    assert len(told) == 60


def test_before_a_slice_comes_what_the_load_has_before_it():
    load = Load((0.0, 7.0, 8.5, 9.5, 25.0), (0, 1, 2, 3, 4))
    assert lead_in(load, 10.0) == Load((8.5, 9.5), (2, 3))
    assert lead_in(load, 20.0) == Load((18.0,), (3,)), "the last one, which was long before"
    assert lead_in(load, 0.0) == Load((-2.0,), (0,)), "the warm-up"


@pytest.mark.slow
def test_a_warm_up_that_fails_is_the_end(service, bodies, capsys):
    there = service.start()
    gone = there.replace("/predictions/m", "/gone")
    assert bench(f"one={there}", bodies, "--target", f"two={gone}", "--target", f"three={gone}") == 1
    [told] = [line for line in capsys.readouterr().err.splitlines() if "answered" in line]
    assert told.startswith("the load was ended early: no query of the warm-up was answered at two: 404: ")
    assert len(service.seen) <= 20, "warm-ups only"


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "failing", "code"), [("3", 2, 0), ("3", 3, 1), ("12", 2, 0), ("12", 4, 1)], ids=str)
def test_a_warm_up_of_one_or_two_queries_is_asked_again(service, bodies, capsys, rate, failing, code):
    service.failing_until = failing
    assert bench(f"here={service.start()}", bodies, "--rate", rate, "--json") == code
    out, err = capsys.readouterr()
    [row] = json.loads(out)["targets"]
    assert row["queries"] == row["answered"]
    assert (len(service.seen) == failing, "no query of the warm-up was answered at here: 503: " in err) == (
        (code == 1,) * 2
    )


def test_a_bench_waits_minutes_at_most_for_an_answer(bodies):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    command = ["bench", "--target", "http://h:1/p", "--bodies", str(bodies), "--rate", "5", "--timeout"]
    assert plan_of(parsed([*command, "600s"])).timeout_s == 600
    with pytest.raises(ConfigError, match="--timeout is at most 600 s, not 1e"):
        plan_of(parsed([*command, "1e9"]))


@pytest.mark.parametrize(
    ("rate", "lasts_s", "queries"), [(100, 60, 20), (10, 60, 20), (3, 60, 6), (0.1, 60, 1), (40, 0.1, 4)]
)
def test_a_warm_up_is_short_and_no_faster_than_the_load(rate, lasts_s, queries):
    load = load_at([n / rate for n in range(round(rate * lasts_s))], 3, seed=1)
    warm = warm_up(load)
    assert len(warm.due_at) == len(warm.picks) == queries
    assert warm.duration_s < WARM_UP_S
    assert set(warm.picks) <= {0, 1, 2}


def test_the_time_of_all_targets_is_told():
    load = load_at([0.0, 58.0], 1, seed=1)
    targets = [BenchTarget(name, "http://h:1/") for name in "abc"]
    assert BenchPlan(targets, [LabelledBody(b"7")], load).lasts_s == 3 * (2.0 + 58.0 + 6 * 2.0)


def test_slices_cover_the_load():
    load = Load(tuple(float(n) for n in range(36)), (0,) * 36)
    assert slices(load, 1) == [(0.0, math.inf)]
    cut = slices(load, 2)
    assert (len(cut), cut[0][0], cut[-1][1]) == (4, 0.0, math.inf)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(cut))


def test_agreement_is_told_of_bodies_that_the_model_answered_too():
    answers = {"cat": b'{"class": "cat"}', "dog": b'{"class": "dog"}'}
    said = [(0, "deployed", "cat"), (1, "reconstructed", "cat"), (2, "reconstructed", "dog"), (3, "hedged", "dog"),
            (4, "reconstructed", "dog"), (5, "reconstructed", "cat")]  # fmt: skip
    records = [QueryRecord(seq, seq, seq, 0.01, outcome, 200, predicted) for seq, outcome, predicted in said]
    load = Load((0.0,) * 6, (0, 0, 0, 1, 1, 2))
    measured = Measured(BenchTarget("m", "http://h:1/"), records, answers)
    assert agreement(measured, load) == {"agreed": 2, "differing": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("text", "measured", "said"),
    [
        ("p99.9>80ms", {"p99.9": 0.081}, "p99.9>80ms: it is 81.0 ms"),
        ("p99.9>80ms", {"p99.9": 0.080}, ""),
        ("p99 >= 0.08s", {"p99": 0.080}, "p99 >= 0.08s: it is 80.0 ms"),
        ("mean>1ms", {"mean": None}, "mean>1ms: not measured"),
        ("errors>0", {"errors": 2}, "errors>0: it is 2"),
        ("errors>1%", {"errors": 2}, "errors>1%: it is 2.000% (2 of 100)"),
        ("errors>2%", {"errors": 2}, ""),
        ("errors>=1.1%", {"errors": 11, "queries": 1000}, "errors>=1.1%: it is 1.100% (11 of 1000)"),
        ("hedged<5", {"hedged": 2}, "hedged<5: it is 2"),
        ("differing>0", {"differing": 2}, "differing>0: it is 2"),
        ("differing>0", {}, ""),
    ],
)
def test_a_threshold_says_what_broke_it(text, measured, said):
    assert threshold(text).broken_by({"queries": 100, "differing": 0, "unknown": 0, **measured}) == said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p99.9", "must be like"),
        ("p99.9>80", "the unit of p99.9 is ms or s, not 'nothing'"),
        ("errors>80ms", r"the unit of errors is nothing \(a count\) or %, not 'ms'"),
        ("speed>1", "nothing called 'speed'"),
        ("p100>1ms", "nothing called 'p100'"),
        ("p0>1ms", "nothing called 'p0'"),
        ("p00.00>1ms", "nothing called 'p00.00'"),
        ("p99.9999999999999999999>1ms", "nothing called 'p99.9"),
        ("p99>-1ms", "must be like"),
        ("p99>nanms", "must be like"),
        ("p99>infs", "must be like"),
        ("p99>1e3ms", "must be like"),
        ("p99>1", "the unit of p99 is ms or s"),
        ("lag>1", "the unit of lag is ms or s"),
        (f"p99>{'9' * 16}ms", r"of at least 0 and at most 1e\+15"),
        (f"p99>{'9' * 400}ms", r"at most 1e\+15, not '9{40}\.\.\.'"),
        ("errors>150%", "at least 0 and at most 100, not '150'"),
    ],
)
def test_a_threshold_that_says_nothing_is_refused(text, told):
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        threshold(text)


def test_a_percentile_without_queries_enough_is_refused_before_the_load():
    with pytest.raises(ConfigError, match="takes at least 4,603 queries"):
        threshold("p99.9>80ms").check_possible(4602)
    threshold("p99.9>80ms").check_possible(4603)
    with pytest.raises(ConfigError, match="lag takes at least 459 queries"):
        threshold("lag>10ms").check_possible(458)
    with pytest.raises(ConfigError, match="takes at least 46,0"):
        threshold("p99.99999999999>1ms").check_possible(600)
    threshold("errors>0").check_possible(1)


def test_an_interval_covers_the_percentile_and_needs_samples():
    import random

    assert interval([1.0] * 458, 0.99) is None
    covered = 0
    for seed in range(40):
        rng = random.Random(seed)
        low, high = interval([rng.random() for _ in range(1000)], 0.9, seed)
        assert low <= high
        covered += low <= 0.9 <= high
    assert covered >= 33


def test_an_interval_is_wider_where_neighbours_are_alike():
    """Fifty queries behind one slow machine are one accident and not fifty."""
    alone = [float(n % 20 == 0) for n in range(2000)]
    together = [float((n // 100) % 20 == 0) for n in range(2000)]
    narrow, wide = (interval(values, 0.94) for values in (alone, together))
    assert narrow[1] - narrow[0] <= wide[1] - wide[0] == 1.0


@pytest.fixture
def process():
    made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield made
    made.kill()
    made.wait()


@pytest.mark.slow
def test_only_the_named_process_is_struck_and_it_is_said_before(service, bodies, process, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr("ts_parity.lab.bench_command.time.sleep", waited.append)
    assert bench(service.start(), bodies, "--kill", str(process.pid), "--json") == 0
    out, err = capsys.readouterr()
    assert f"process {process.pid} will be killed: " in err
    assert "Ctrl-C within 5 s" in err
    assert 5.0 in waited
    assert process.wait(timeout=60) == -9
    assert json.loads(out)["inputs"]["faults"] == "1 times kill"


@pytest.mark.slow
def test_a_frozen_process_goes_on_again(service, bodies, process):
    import psutil

    more = ["--freeze", str(process.pid), "--freeze-every", "100ms", "--freeze-for", "100ms", "--yes"]
    assert bench(service.start(), bodies, *more) == 0
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_frozen_process_goes_on_again_when_a_signal_ends_the_bench(service, bodies, process, number, code):
    import psutil

    def stopped():
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

    command = [sys.executable, "-m", "ts_parity.cli", "bench", "--target", service.start(), "--bodies", str(bodies)]
    command += ["--rate", "5", "--duration", "300s", "--yes"]
    command += ["--freeze", str(process.pid), "--freeze-every", "100ms", "--freeze-for", "200s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as benching:
        try:
            until(lambda: stopped() or benching.poll() is not None)
            benching.send_signal(number)
            _, said = benching.communicate(timeout=60)
        finally:
            benching.kill()
    assert benching.returncode == code, said
    assert b"Traceback" not in said
    until(lambda: not stopped())


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("command", [["demo"], ["bench", "--target", "http://h:1/p", "--bodies", "."]])
def test_what_breaks_things_is_ended_by_signals_as_by_ctrl_c(command):
    from ts_parity.cli import parsed

    assert parsed(command).undoes


def test_a_process_that_is_not_there_is_refused(bodies, capsys):
    assert bench("http://127.0.0.1:1/x", bodies, "--kill", "999999999") == 2
    assert "there is no process 999999999" in capsys.readouterr().err


def test_a_trace_and_an_access_log_are_replayed(bodies, tmp_path):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    trace, log = tmp_path / "trace.txt", tmp_path / "access.jsonl"
    trace.write_text("5\n6\n8\n")
    at = "2026-01-01T00:00:0{}.000Z"
    log.write_text(
        "\n".join(
            json.dumps({"version": 2, "at": at.format(n), "query": f"a-{n}", "pool": "m/1", "endpoint": "e",
                        "outcome": "deployed", "status": 200, "latency_s": 0.1, "waited_s": 0.0, "service_s": 0.1})
            for n in (1, 2, 4)
        )
        + "\n"
    )  # fmt: skip
    common = ["bench", "--target", "http://h:1/predictions/m", "--bodies", str(bodies)]
    for how in (["--trace", str(trace)], ["--replay", str(log)]):
        assert plan_of(parsed([*common, *how])).load.due_at == pytest.approx((0.0, 1.0, 3.0))
        assert plan_of(parsed([*common, *how, "--speed", "2"])).load.due_at == pytest.approx((0.0, 0.5, 1.5))
        assert plan_of(parsed([*common, *how, "--duration", "2s"])).load.due_at == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize("hours", [1, 2])
def test_a_trace_is_bounded_in_its_densest_second_and_over_all_targets(bodies, tmp_path, hours):
    """On average it has 28 queries/s."""
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    trace = tmp_path / "trace.txt"
    command = ["bench", "--target", "a=http://h:1/p", "--bodies", str(bodies), "--trace", str(trace)]
    command += ["--duration", "3600s"]
    even = "".join(f"{7 + n / 2000}\n" for n in range(4000))
    trace.write_text(f"{even}{3600 * hours - 100}\n")
    assert len(plan_of(parsed(command)).load.due_at) == 4000 + (hours == 1)
    more = ["--target", "b=http://h:1/p", "--duration", "1800s"]
    assert len(plan_of(parsed([*command, *more])).load.due_at) == 4000
    trace.write_text("5\n8.9\n" + "9\n" * 2000 + f"{3600 * hours}\n")
    told = r"^--trace comes to more than 2,000 .* from 3.9 s on; lower --speed \(0.095 fits\)$"
    with pytest.raises(ConfigError, match=told):
        plan_of(parsed(command))
    assert plan_of(parsed([*command, "--speed", "0.095"])).load.duration_s == pytest.approx(4 / 0.095)


def test_a_trace_that_does_not_fit_is_not_cut_without_a_word(bodies, tmp_path):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    trace = tmp_path / "trace.txt"
    trace.write_text("5\n1000\n3005\n")
    command = ["bench", "--target", "a=http://h:1/p", "--bodies", str(bodies), "--trace", str(trace)]
    assert plan_of(parsed(command)).load.due_at == (0.0, 995.0, 3000.0)
    command += ["--target", "b=http://h:1/p"]
    with pytest.raises(
        ConfigError, match=r"^--trace lasts 3000 s, and 1800 s fit for each of 2 .*--duration 1800s, or"
    ):
        plan_of(parsed(command))
    assert plan_of(parsed([*command, "--duration", "1800s"])).load.due_at == (0.0, 995.0)
    assert plan_of(parsed([*command, "--speed", "2"])).load.due_at == (0.0, 497.5, 1500.0)


@pytest.mark.parametrize("how", ["--rate 2000", "--rate 1000 --burst 50", "--rate 1900 --gaps-cv 3"])
@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_rate_that_fits_is_named(bodies, how, seed):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    command = ["bench", "--target", "http://h:1/p", "--bodies", str(bodies), "--duration", "20s", "--seed", seed]
    with pytest.raises(ConfigError, match=r"or --rate \([\d.]+ fits\)$") as refused:
        plan_of(parsed([*command, *how.split()]))
    fits = str(refused.value).split("(")[1].split(" ")[0]
    assert plan_of(parsed([*command, *how.split(), "--rate", fits])).load.due_at


def test_a_generated_load_ends_with_its_duration(bodies):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    common = ["bench", "--target", "http://h:1/predictions/m", "--bodies", str(bodies), "--duration", "1s"]
    for seed in range(20):
        load = plan_of(parsed([*common, "--rate", "40", "--seed", str(seed)])).load
        assert 10 < len(load.due_at) < 80
        assert load.duration_s <= 1.0


def test_bursts_keep_the_mean_rate(bodies):
    from ts_parity.cli import parsed
    from ts_parity.lab.bench_command import plan_of

    common = ["bench", "--target", "http://h:1/predictions/m", "--bodies", str(bodies), "--rate", "50"]
    load = plan_of(parsed([*common, "--duration", "1000s", "--burst", "5"])).load
    assert len(load.due_at) == pytest.approx(50_000, rel=0.15)
    assert 990 < load.duration_s <= 1000
    assert load == plan_of(parsed([*common, "--duration", "1000s", "--burst", "5"])).load
