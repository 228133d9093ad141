"""Several processes on one port: who is asked, who is counted, who is replaced, and that all of it ends as one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.proxy.collector import Collector
from tests.proxy.conftest import PATIENCE_S, PROMPT, Client, Raw, read_answer, until
from tests.proxy.test_app import JSON, Process, draining, refused
from ts_parity.cli import main
from ts_parity.config import Settings, parse_endpoint, settings_of
from ts_parity.errors import ConfigError, StartError
from ts_parity.pairs import read_pairs
from ts_parity.proxy.app import Proxy
from ts_parity.proxy.operations import child, processes
from ts_parity.proxy.operations.child import receive, send
from ts_parity.proxy.operations.merge import families_json
from ts_parity.proxy.operations.processes import ChildProcess, Supervisor, reserve
from ts_parity.proxy.operations.reloading import NoAnswer
from ts_parity.proxy.operations.status import status_table
from ts_parity.proxy.serving.durations import CountedDurations
from ts_parity.proxy.serving.metrics import Counter, Histogram
from ts_parity.proxy.serving.recording import Recording, Wanted
from ts_parity.testing import FakeModel, FakeTorchServe

BODY = b"[1, 2]"


class Fleet:
    """Two processes in front of instances."""

    def __init__(self, supervisor: Supervisor, life: asyncio.Task[int]) -> None:
        self.supervisor = supervisor
        self.life = life
        self.client = Client(supervisor.url)
        self.admin = Client(supervisor.admin_url)

    async def post(self) -> Raw:
        return await self.client.post("/predictions/linear", BODY)

    async def status(self) -> Any:
        return (await self.admin.get("/status")).json()

    async def pids(self) -> list[int]:
        return [process["pid"] for process in (await self.status())["processes"]]

    async def answered(self) -> float:
        """As /metrics says."""
        text = (await self.admin.get("/metrics")).body.decode()
        name = 'ts_parity_queries_total{outcome="answered",pool="linear/1.0",source="deployed"} '
        return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


class Kept:
    """A client that keeps its connection."""

    @classmethod
    async def open(cls, client: Client) -> Kept:
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(client.host, client.port)
        self.port = self.writer.get_extra_info("sockname")[1]
        return self

    async def post(self) -> Raw:
        head = f"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: {len(BODY)}\r\n\r\n"
        self.writer.write(head.encode() + BODY)
        return await asyncio.wait_for(read_answer(self.reader), PATIENCE_S)

    def owned_by(self, pid: int) -> bool:
        connections = psutil.Process(pid).net_connections("tcp")
        return any(connection.raddr and connection.raddr.port == self.port for connection in connections)


def ended(process: psutil.Process) -> bool:
    """Orphans may wait a while for whoever inherits them."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


MakeFleet = Callable[..., Awaitable[Fleet]]


async def record(fleet: Fleet, out: Path, *more: str) -> int:
    """`ts-parity record`, beside the fleet."""
    words = ["record", "--admin", fleet.supervisor.admin_url, "--out", str(out), "--share", "1", *more]
    return await asyncio.to_thread(main, words)


@pytest.fixture
async def make_processes() -> AsyncIterator[MakeFleet]:
    async with AsyncExitStack() as stack:

        async def make(*instances: FakeTorchServe, pauses_s: tuple[float, ...] = (0.2,), **settings: Any) -> Fleet:
            for instance in instances:
                await stack.enter_async_context(instance)
            listed = tuple(parse_endpoint(instance.endpoint) for instance in instances)
            chosen = settings_of({**PROMPT, "processes": 2, **settings, "instances": listed})
            supervisor = Supervisor(chosen, pauses_s)
            ready = asyncio.Event()
            life = asyncio.ensure_future(supervisor.live(lambda _: ready.set()))

            async def end() -> None:
                supervisor.cut()
                await asyncio.gather(life, return_exceptions=True)

            stack.push_async_callback(end)
            for instance in instances:
                stack.callback(instance.thaw)
            listening = asyncio.ensure_future(ready.wait())
            await asyncio.wait({life, listening}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            if life.done():
                life.result()
            return Fleet(supervisor, life)

        yield make


@pytest.mark.slow
async def test_all_serve_one_port_and_are_told_of_as_one(make_processes: MakeFleet) -> None:
    fleet = await make_processes(FakeTorchServe(FakeModel(workers=5)), FakeTorchServe(FakeModel(workers=5)))
    answers = await asyncio.gather(*(fleet.post() for _ in range(40)))
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    status = await fleet.status()
    rows = status["processes"]
    assert sum(row["answered"] for row in rows) == 40
    assert all(row["answered"] > 0 for row in rows)
    assert len({os.getpid(), *(row["pid"] for row in rows)}) == 3
    assert [row["state"] for row in rows] == ["serving", "serving"]
    assert status["engine"]["answered"] == {"deployed": 40}
    assert [instance["places"] for instance in status["instances"]] == [5, 5]
    assert (status["state"], status["problems"]) == ("serving", [])
    assert f"0        {rows[0]['pid']}" in status_table(status)
    recent = status["recent"]
    assert (recent["queries"], recent["sources"]) == (40, {"deployed": 40})
    assert recent["tail"]["given"] == recent["tail"]["unprotected"] != []
    assert status["sentence"].startswith("2 of 2 machines serve; median ")
    assert status["pools"]["linear/1.0"]["recent"]["queries"] == 40
    assert (await fleet.admin.get("/")).get("content-type") == "text/html; charset=utf-8"
    openmetrics = await fleet.admin.ask("GET", "/metrics", headers=(("Accept", "application/openmetrics-text"),))
    assert openmetrics.body.endswith(b"# EOF\n")
    text = (await fleet.admin.get("/metrics")).body.decode()
    for line in (
        'ts_parity_queries_total{outcome="answered",pool="linear/1.0",source="deployed"} 40.0',
        'ts_parity_query_duration_seconds_count{pool="linear/1.0",source="deployed"} 40.0',
        'ts_parity_reconstruct_after_seconds{pool="linear/1.0"} 0.02',
        'ts_parity_unprotected_duration_seconds_count{pool="linear/1.0"} 40.0',
        "ts_parity_extra_work_limit_ratio ",
        "ts_parity_processes 2.0",
    ):
        assert line in text, f"{line} not in\n{text}"
    assert (await fleet.admin.get("/health")).status == 200
    answer = await fleet.admin.post("/drain", headers=JSON)
    assert (answer.status, answer.json()) == (202, {"status": "draining"})
    assert await asyncio.wait_for(fleet.life, PATIENCE_S) == 0
    assert not any(psutil.pid_exists(row["pid"]) for row in rows)


@pytest.mark.slow
async def test_each_process_sends_spans_of_its_own(collector: Collector, make_processes: MakeFleet) -> None:
    fleet = await make_processes(
        FakeTorchServe(FakeModel(workers=5)), FakeTorchServe(FakeModel(workers=5)), tracing=True
    )
    trace = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    await asyncio.gather(*(fleet.client.post("/predictions/linear", BODY, trace) for _ in range(40)))
    await until(lambda: len(collector.spans) == 80, "a span of each query and of its task")
    assert len({span.resource["service.instance.id"] for span in collector.spans}) == 2
    assert {span.trace_id for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    name = 'ts_parity_spans_total{outcome="sent"} '
    while f"{name}80.0" not in (await fleet.admin.get("/metrics")).body.decode():
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_killed_process_is_replaced_and_the_others_clients_notice_nothing(make_processes: MakeFleet) -> None:
    # Long enough to be asked twice meanwhile.
    fleet = await make_processes(FakeTorchServe(FakeModel(workers=8)), pauses_s=(3.0,))
    clients = await asyncio.gather(*(Kept.open(fleet.client) for _ in range(16)))
    await asyncio.gather(*(client.post() for client in clients))
    killed, other = await fleet.pids()
    theirs = [client for client in clients if client.owned_by(killed)]
    others = [client for client in clients if client not in theirs]
    assert theirs
    assert others
    assert await fleet.answered() == 16
    os.kill(killed, signal.SIGKILL)
    assert await asyncio.gather(*(client.reader.read() for client in theirs)) == [b""] * len(theirs)
    await until(lambda: fleet.supervisor.status()["processes"][0]["pid"] is None, "the death to be noticed")
    status = await fleet.status()
    assert status["recent"]["queries"] == 16, "what the killed process counted of late stays"
    assert status["problems"] == [f"process 0 (pid {killed}) was ended by signal 9; it is started again 3 s later"]
    assert "ts_parity_processes 1.0" in (await fleet.admin.get("/metrics")).body.decode()
    assert (await fleet.admin.get("/health")).status == 200
    counted = await fleet.answered()
    assert counted == 16
    while fleet.supervisor.status()["processes"][0]["state"] != "serving":
        assert [answer.status for answer in await asyncio.gather(*(client.post() for client in others))] == [
            200 for _ in others
        ]
        assert (await fleet.post()).status == 200
        assert counted < (counted := await fleet.answered())
    await asyncio.gather(*(fleet.post() for _ in range(20)))
    assert await fleet.answered() == counted + 20
    status = await fleet.status()
    assert [row["restarts"] for row in status["processes"]] == [1, 0]
    assert status["processes"][0]["pid"] not in (killed, other)
    assert status["problems"] == []
    assert status["engine"]["answered"]["deployed"] == counted + 20


@pytest.mark.slow
async def test_a_process_that_cannot_come_back_is_tried_after_longer_and_longer_pauses(
    make_processes: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = await make_processes(FakeTorchServe(FakeModel()), pauses_s=(0.01, 0.02, 60.0))
    fleet.supervisor.settings = replace(fleet.supervisor.settings, host="203.0.113.1")  # nobody's address
    os.kill((await fleet.pids())[1], signal.SIGKILL)
    why = "process 1 .*cannot listen on 203.0.113.1:.*; it is started again 60 s later"
    while not re.search(why, " ".join((await fleet.status())["problems"])):
        await asyncio.sleep(0.02)
    told = [message for message in caplog.messages if "it is started again" in message]
    assert [message.split()[-3] for message in told] == ["0.01", "0.02", "60"]
    assert [answer.status for answer in await asyncio.gather(*(fleet.post() for _ in range(4)))] == [200] * 4


@pytest.mark.slow
async def test_signals_to_a_process_alone(make_processes: MakeFleet) -> None:
    """A terminal's Ctrl-C means the parent; SIGTERM drains it, loses nothing, and it is replaced."""
    instance = FakeTorchServe(FakeModel(workers=8))
    fleet = await make_processes(instance)
    clients = await asyncio.gather(*(Kept.open(fleet.client) for _ in range(16)))
    instance.freeze()
    asked = [asyncio.ensure_future(client.post()) for client in clients]
    while (await fleet.status())["requests_in_flight"] < len(clients):
        pass
    pids = await fleet.pids()
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    os.kill(pids[1], signal.SIGTERM)
    os.kill(pids[1], signal.SIGTERM)
    while (await fleet.status())["processes"][1]["state"] != "draining":
        pass
    instance.thaw()
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    while (await fleet.status())["processes"][1]["state"] != "serving":
        await asyncio.sleep(0.01)
    now = await fleet.pids()
    assert (now[0], now[1] != pids[1]) == (pids[0], True)
    assert await fleet.answered() == 16


@pytest.mark.slow
async def test_a_process_stopped_while_it_starts_has_cut_nothing(make_processes: MakeFleet) -> None:
    """A stop that a service manager sends to all of them made the exit code 1."""
    fleet = await make_processes(FakeTorchServe(FakeModel()), pauses_s=(0.0, 30.0))
    slot = fleet.supervisor._slots[0]
    first = slot.child
    assert first is not None
    first.kill()
    await until(lambda: slot.child is not None and slot.child is not first, "another in its place")
    assert slot.child is not None
    assert not slot.child.listens
    os.kill(slot.child.pid, signal.SIGTERM)
    fleet.supervisor.drain()
    assert await fleet.life == 0


@pytest.mark.slow
def test_what_takes_long_to_import_comes_after_a_stop_can_be_remembered() -> None:
    code = "import sys, ts_parity.proxy.operations.child; print('ts_parity.proxy.app' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
async def test_a_frozen_process_holds_nobody_up(make_processes: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known by what it said last; at the end it is killed, which is a cut."""
    for name, seconds in {"_REPORT_WAIT_S": 2.0, "_SILENT_S": 2.0, "_GRACE_S": 0.2}.items():
        monkeypatch.setattr(processes, name, seconds)
    fleet = await make_processes(FakeTorchServe(FakeModel(workers=8)), drain_s=0.1)
    await asyncio.gather(*(fleet.post() for _ in range(20)))
    assert await fleet.answered() == 20
    frozen, other = await fleet.pids()
    os.kill(frozen, signal.SIGSTOP)
    while not (problems := (await fleet.status())["problems"]):
        pass
    assert problems == [f"process 0 (pid {frozen}) accepts requests but gives its parent no answer"]
    assert await fleet.answered() == 20
    assert (await fleet.admin.get("/health")).status == 200
    fleet.supervisor.drain()
    assert await asyncio.wait_for(fleet.life, PATIENCE_S) == 1
    assert not any(psutil.pid_exists(pid) for pid in (frozen, other))


@pytest.mark.slow
async def test_a_process_that_cannot_start_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def as_if_free(host: str, port_: int) -> tuple[list[socket.socket], int]:
            return [], port

        monkeypatch.setattr(processes, "reserve", as_if_free)
        supervisor = Supervisor(settings_of({**PROMPT, "processes": 2}))
        before = psutil.Process().children()  # other tests' helpers
        with pytest.raises(StartError, match=rf"cannot listen on 127.0.0.1:{port}: .*; choose another port"):
            await supervisor.live(lambda _: None)
    assert psutil.Process().children() == before


@pytest.mark.slow
async def test_a_process_that_dies_before_it_listens_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "initial_message", lambda *_: b"nonsense")
    before = psutil.Process().children()  # other tests' helpers
    with pytest.raises(StartError, match=r"the process with pid .* ended with exit code 1 before it accepted requests"):
        await Supervisor(settings_of({**PROMPT, "processes": 2})).live(lambda _: None)
    assert psutil.Process().children() == before


async def test_a_port_is_held_for_us_alone() -> None:
    held, port = await reserve("127.0.0.1", 0)
    with contextlib.ExitStack() as stack:
        for reserved in held:
            stack.enter_context(reserved)
        child = stack.enter_context(socket.socket())
        child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        child.bind(("127.0.0.1", port))
        child.listen()
        with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*; choose another port"):
            await reserve("127.0.0.1", port)  # as a second ts-parity would


async def test_settings_that_no_process_could_use_are_told_before_any_is_started() -> None:
    with pytest.raises(ConfigError, match="default_answer: cannot read"):
        await Supervisor(settings_of({**PROMPT, "processes": 2, "default_answer": "/no/file"})).live(lambda _: None)


async def test_a_platform_that_cannot_share_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(StartError, match=r"SO_REUSEPORT.*; set processes to 1"):
        await reserve("127.0.0.1", 0)


@pytest.mark.slow
async def test_drain_under_load_loses_nothing(tmp_path: Path) -> None:
    """Whatever reached an instance was answered, the exit code is 0, and nobody is left."""
    async with FakeTorchServe(FakeModel(workers=8, latency_s=0.02)) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint, processes="2")
        assert ready["pid"] == process.process.pid
        children = psutil.Process(process.process.pid).children()
        client = Client(ready["url"])
        answers: list[int] = []

        async def keep_asking() -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    answers.append((await client.post("/predictions/linear", BODY)).status)

        load = [asyncio.ensure_future(keep_asking()) for _ in range(16)]
        await until(lambda: len(answers) > 50, "some load")
        process.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*load)
        code, stderr = await process.end()
        assert (code, set(answers), len(answers)) == (0, {200}, len(instance.received))
    assert len(children) == 2
    assert all(ended(child) for child in children)
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_the_second_signal_cuts_all(tmp_path: Path) -> None:
    async with FakeTorchServe(FakeModel(workers=8)) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint, processes="2")
        client, admin = Client(ready["url"]), Client(ready["admin_url"])
        instance.freeze()
        asked = [asyncio.ensure_future(client.post("/predictions/linear", BODY)) for _ in range(8)]
        await until(lambda: len(instance.received) >= 4, "queries to be in flight")
        process.process.send_signal(signal.SIGINT)
        assert (await draining(admin)).json()["status"] == "draining"
        await refused(client)
        process.process.send_signal(signal.SIGINT)
        code, stderr = await process.end()
        assert all(isinstance(one, Exception) for one in await asyncio.gather(*asked, return_exceptions=True))
    assert code == 1
    assert "requests" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_a_killed_parent_leaves_nobody_behind(tmp_path: Path) -> None:
    """Its children finish what is in flight and end."""
    async with FakeTorchServe(FakeModel(workers=8)) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint, processes="2")
        children = psutil.Process(process.process.pid).children()
        client = Client(ready["url"])
        instance.freeze()
        asked = asyncio.ensure_future(client.post("/predictions/linear", BODY))
        await until(lambda: len(instance.received) == 1, "the query to be in flight")
        process.process.kill()
        with contextlib.suppress(asyncio.IncompleteReadError):  # accepted, and ended before it had asked
            await refused(client)
        await until(lambda: sum(ended(child) for child in children) == 1, "the idle one to end")
        instance.thaw()
        assert (await asked).status == 200
        await until(lambda: all(ended(child) for child in children), "the children to end")
        _, stderr = await process.end()
    assert len(children) == 2
    assert stderr.count("the parent process is gone: draining") == 2
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_a_port_that_is_taken_is_exit_code_3(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ts_parity.cli", "serve", "--port", port, "--admin-port", "0"),
            *("--processes", "2", "--endpoint", "http://127.0.0.1:1"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in stderr.decode()


@pytest.mark.slow
async def test_a_recording_has_what_every_process_answers(make_processes: MakeFleet, tmp_path: Path) -> None:
    """Also what one answers that was started in the place of another meanwhile."""
    fleet = await make_processes(FakeTorchServe(FakeModel(workers=5)))
    recording = asyncio.ensure_future(record(fleet, tmp_path / "all", "--most", "30"))
    kept = [await Kept.open(fleet.client) for _ in range(12)]
    first, second = await fleet.pids()
    split = {pid: [one for one in kept if one.owned_by(pid)] for pid in (first, second)}
    assert all(split.values())
    file, seen = tmp_path / "all", 0
    await until(lambda: file.exists() or recording.done(), "the recording to begin")

    async def recorded_more(client: Kept) -> None:
        nonlocal seen

        async def more() -> bool:
            assert (await client.post()).status == 200
            return sum(1 for _ in read_pairs(file)) > seen

        while not await more():
            await asyncio.sleep(0.05)
        seen = sum(1 for _ in read_pairs(file))

    for pid in (first, second):
        await recorded_more(split[pid][0])
    os.kill(first, signal.SIGKILL)
    while first in (pids := await fleet.pids()) or None in pids:
        await asyncio.sleep(0.05)
    newcomer = next(pid for pid in pids if pid != second)
    found = None
    while found is None:
        one = await Kept.open(fleet.client)
        if one.owned_by(newcomer):
            found = one
    await recorded_more(found)
    while not recording.done():
        await fleet.post()
    assert await recording == 0
    assert {(pair.body, pair.path) for pair in read_pairs(file)} == {(BODY, "/predictions/linear")}
    assert sum(1 for _ in read_pairs(file)) == 30


class Counting:
    """A child that has seen what a test wants."""

    pid, listens, why = 7, True, ""

    def __init__(self) -> None:
        self.seen = Histogram("ts_parity_endpoint_duration_seconds", "Text.", ["endpoint", "pool"])
        self.passed = Counter("ts_parity_unrepeatable", "Text.", ["reason"])

    @property
    def report(self) -> Any:
        families = families_json([self.seen.family(), self.passed.family()])
        return {"metrics": families, "status": {"engine": {}}, "recent": {}}

    async def release(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_no_counter_falls_however_processes_lose_endpoints_find_them_again_and_end(seed: int) -> None:
    """To Prometheus a sum that falls has begun again, and all that is left of it is counted once more."""
    dice = random.Random(seed)
    supervisor = Supervisor(settings_of({**PROMPT, "processes": 3}))
    names = ("h/m/1", "i/m/1")
    before: dict[str, float] = {}
    fell = 0
    for _ in range(400):
        slot = dice.choice(supervisor._slots)
        child: Any = slot.child
        if child is None:
            slot.child = Counting()  # type: ignore[assignment]
        elif (what := dice.random()) < 0.6:
            child.seen.begin(dice.choice(names), "m/1").add(CountedDurations([dice.choice((0.003, 0.3))]))
        elif what < 0.7:
            child.passed.add("stateful")
        elif what < 0.95:
            child.seen.keep({dice.choice(names)})
        else:
            await slot.record_exit()
        if dice.random() < 0.7:
            lines = [line.rpartition(" ") for line in supervisor.exposition().decode().splitlines() if line[0] != "#"]
            now = {series: float(number) for series, _, number in lines if not series.startswith("ts_parity_proc")}
            assert not {series for series in now if now[series] < before.get(series, 0.0)}
            fell += any(series not in now for series in before)
            before = now
    assert before['ts_parity_unrepeatable_total{reason="stateful"}'] > 10
    assert fell, "what no process has any more is shown no more"


# ---- what parent and child say to each other -------------------------------------------------------------------------


class OtherEnd:
    """A child's end of the socket, spoken by a test, and the child as its parent sees it."""

    def __init__(self, process: Any, ours: Any, theirs: Any) -> None:
        self.child = ChildProcess(process, *ours)
        self.reader, self.writer = theirs

    async def said(self) -> list[bytes]:
        """The next message, without what is pickled in it."""
        message = await asyncio.wait_for(receive(self.reader), PATIENCE_S)
        assert message is not None
        return message.split(b" ")[:2]

    def answer(self, **message: Any) -> None:
        child._send_message(self.writer, **message)


@pytest.fixture
async def other_end() -> AsyncIterator[OtherEnd]:
    class Process:
        pid = 7

        async def wait(self) -> int:
            return 0

    ends = [await asyncio.open_unix_connection(sock=one) for one in socket.socketpair()]
    other = OtherEnd(Process(), *ends)
    yield other
    other.writer.close()
    await other.child.release()


async def test_an_answer_to_an_earlier_reload_is_none_to_this_one(
    other_end: OtherEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was frozen during one, and answers when the next has begun."""
    child = other_end.child
    monkeypatch.setattr(processes, "_SILENT_S", 0.0)
    assert await child.prepare(Settings()) is None
    assert await other_end.said() == [b"prepare", b"1"]
    monkeypatch.setattr(processes, "_SILENT_S", PATIENCE_S)
    prepared = asyncio.ensure_future(child.prepare(Settings()))
    assert await other_end.said() == [b"prepare", b"2"]
    other_end.answer(number=1, prepared="")
    other_end.answer(number=2, prepared="default_answer: cannot read it")
    assert await prepared == "default_answer: cannot read it"

    assert await child.commit(0.0) is None
    assert await other_end.said() == [b"commit", b"2"]
    again = asyncio.ensure_future(child.prepare(Settings()))
    assert await other_end.said() == [b"prepare", b"3"]
    other_end.answer(number=3, prepared="")
    assert await again == ""
    committed = asyncio.ensure_future(child.commit(PATIENCE_S))
    assert await other_end.said() == [b"commit", b"3"]
    other_end.answer(number=2, committed=["the one before"])
    other_end.answer(number=3, committed=["this one"])
    assert await committed == ["this one"]


async def test_a_process_that_does_not_run_the_new_settings_is_told_of_until_it_does(other_end: OtherEnd) -> None:
    child = other_end.child
    child.listening.set_result(None)
    slot = processes.ProcessSlot(1, child)
    assert slot.problem() == ""
    child.change(Settings())  # it was started with older ones
    assert slot.problem() == "process 1 (pid 7) accepts requests but runs settings from before a reload"
    other_end.answer(number=1, prepared="")
    other_end.answer(number=1, committed=[])
    await until(lambda: slot.problem() == "", "it to run them")
    assert await child.commit(0.0) is None
    assert child.behind
    child.change(Settings())
    other_end.answer(number=1, committed=[])
    other_end.answer(number=2, prepared="")
    prepared = asyncio.ensure_future(child.prepare(Settings()))
    other_end.answer(number=3, prepared="")
    assert await prepared == ""
    assert "settings from before" in slot.problem(), "those of 1 are not those of 2"
    other_end.answer(number=2, committed=[])
    await until(lambda: slot.problem() == "", "it to run them")


@pytest.mark.parametrize("broken", ["prepare", "commit"])
async def test_a_process_that_cannot_run_the_new_settings_drains(other_end: OtherEnd, broken: str) -> None:
    """Its parent starts another, with the new ones."""

    class Broken:
        drained = asyncio.Event()
        committed = 0

        def prepare(self, settings: Settings) -> Any:
            if broken == "prepare":
                raise ConfigError("default_answer: cannot read it")

        async def commit(self, prepared: Any) -> tuple[str, ...]:
            self.committed += 1
            raise RuntimeError("half of it")

        def drain(self) -> None:
            self.drained.set()

    proxy: Any = Broken()
    commands = asyncio.ensure_future(child._run_commands(proxy, other_end.reader, other_end.writer))
    other_end.child.change(Settings())
    await asyncio.wait_for(proxy.drained.wait(), PATIENCE_S)
    assert proxy.committed == (broken == "commit")
    assert other_end.child.behind
    commands.cancel()
    await asyncio.gather(commands, return_exceptions=True)


async def test_what_is_left_of_a_recording_is_not_in_the_next(other_end: OtherEnd) -> None:
    first, second = Recording(Wanted(1.0, 60.0)), Recording(Wanted(1.0, 60.0))
    counts = {"seen": 3, "unfit": 1, "left_out": 0}
    other_end.child.record(first)
    assert await other_end.said() == [b"record", b"1"]
    send(other_end.writer, child.pair_message(1, b"one"))
    other_end.answer(number=1, recorded=counts)
    await until(lambda: first.counts == counts, "what it has counted")
    assert first.take() == [b"one"]
    first.close("it is over")
    other_end.child.record(second)
    assert await other_end.said() == [b"record", b"2"]
    send(other_end.writer, child.pair_message(1, b"late"))
    other_end.answer(number=1, recorded=counts)
    send(other_end.writer, child.pair_message(2, b"two"))
    other_end.answer(number=2, recorded={**counts, "seen": 5})
    await until(lambda: second.counts["seen"] > 0, "what it has counted")
    assert (second.take(), second.counts) == ([b"two"], {**counts, "seen": 5})
    assert (first.take(), first.counts) == ([], counts)


async def test_a_process_sends_what_it_records_with_the_number_of_the_recording(
    other_end: OtherEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "TAKEN_EVERY_S", 0.0)
    begun: list[Recording] = []

    class Recorded:
        def begin_recording(self, wanted: Wanted) -> Recording:
            begun.append(Recording(wanted))
            begun[-1].add(f"pair of {wanted.model}".encode())
            return begun[-1]

        def drain(self) -> None:
            pass

    proxy: Any = Recorded()
    commands = asyncio.ensure_future(child._run_commands(proxy, other_end.reader, other_end.writer))
    for name in ("a", "b"):
        told = Recording(Wanted(0.5, 60.0, name))
        other_end.child.record(told)
        taken: list[bytes] = []
        await until(lambda: taken.extend(told.take()) or bool(taken), "a pair")  # noqa: B023
        assert taken == [f"pair of {name}".encode()]
    assert [(one.wanted.share, bool(one.ended)) for one in begun] == [(0.5, True), (0.5, False)]
    other_end.child.send(child.STOP_RECORDING)
    await until(lambda: begun[1].ended == "it is over", "its end")
    commands.cancel()
    await asyncio.gather(commands, return_exceptions=True)


async def test_a_process_takes_part_in_a_recording_before_it_has_found_the_model(other_end: OtherEnd) -> None:
    """Its parent's word comes as it starts."""
    proxy = Proxy(settings_of({**PROMPT, "processes": 2}), process=0)
    relay = child._Relay(proxy, other_end.writer)
    relay.begin(1, Wanted(1.0, 60.0, "linear"))
    assert proxy.driver.recording is not None
    relay.stop()
    assert proxy.driver.recording is None
    await proxy.close()


class Told:
    """A child that says to a reload what a test wants, and remembers what it was told."""

    pid = 7

    def __init__(self, says: str | None = "") -> None:
        self.says = says
        self.committed = 0
        self.changed: list[Settings] = []

    async def prepare(self, settings: Settings) -> str | None:
        return self.says

    async def commit(self, patience_s: float) -> list[str]:
        self.committed += 1
        return []

    def change(self, settings: Settings) -> None:
        self.changed.append(settings)


@pytest.mark.parametrize("says", ["default_answer: cannot read it", None, ""])
async def test_one_process_that_cannot_use_the_new_settings_stops_all(says: str | None) -> None:
    supervisor = Supervisor(settings_of({**PROMPT, "processes": 2}))
    children: list[Any] = [Told(), Told(says)]
    for slot, one in zip(supervisor._slots, children, strict=True):
        slot.child = one
    before, wanted = supervisor.settings, replace(supervisor.settings, drain_s=7.0)
    refused = pytest.raises(ConfigError if says else NoAnswer) if says != "" else contextlib.nullcontext()
    with refused:
        await supervisor.adopt(wanted)
    assert [one.committed for one in children] == ([1, 1] if says == "" else [0, 0])
    assert supervisor.settings == (wanted if says == "" else before)


async def test_a_process_that_started_with_older_settings_is_told_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(settings_of({**PROMPT, "processes": 2}))
    wanted, started = replace(supervisor.settings, drain_s=7.0), Told()

    async def start(*_: Any) -> Any:
        await supervisor.adopt(wanted)
        return started

    monkeypatch.setattr(ChildProcess, "start", start)
    await supervisor._start_child(supervisor._slots[0])
    assert started.changed == [wanted]


@pytest.mark.slow
async def test_a_process_frozen_when_all_are_to_change_changes_when_it_goes_on(
    make_processes: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await make_processes(FakeTorchServe(FakeModel(workers=8)))
    supervisor = fleet.supervisor
    frozen = supervisor._slots[1].child
    assert frozen is not None
    commit = frozen.commit

    async def commit_frozen(patience_s: float) -> Any:
        os.kill(frozen.pid, signal.SIGSTOP)
        return await commit(0.0)

    monkeypatch.setattr(frozen, "commit", commit_frozen)
    settings = replace(supervisor.settings, policy=replace(supervisor.settings.policy, extra_work=0.5))
    told = await supervisor.adopt(settings)
    assert told == (f"process 1 (pid {frozen.pid}) has not said yet that it runs this",)
    assert any("runs settings from before a reload" in problem for problem in supervisor.status()["problems"])
    os.kill(frozen.pid, signal.SIGCONT)
    await until(lambda: not frozen.behind, "it to change")
    while frozen.report["status"]["policy"]["extra_work"] != 0.5:
        await supervisor.refresh()
    assert (await fleet.status())["problems"] == []
    assert [answer.status for answer in await asyncio.gather(*(fleet.post() for _ in range(8)))] == [200] * 8
