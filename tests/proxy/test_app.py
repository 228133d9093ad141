"""The life of a proxy: admin port, changes of the fleet, drain, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.proxy.conftest import PATIENCE_S, Client, Clock, Fleet, MakeFleet, Raw, read_answer, until
from ts_parity.arguments import Parser
from ts_parity.config import Settings, settings_of
from ts_parity.engine import Policy
from ts_parity.errors import ConfigError, StartError, TsParityError
from ts_parity.proxy.app import policy_of
from ts_parity.proxy.commands import add_parsers
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

JSON = (("Content-Type", "application/json"),)
"""Without which the admin port takes no action."""


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


def test_the_policy_is_what_the_settings_say():
    assert policy_of(Settings()) == Policy()
    assert policy_of(settings_of({"launch": "late"})) == Policy(launch="late")
    assert policy_of(Settings(default_answer="file")).default_answer
    with pytest.raises(ConfigError, match="launch must be auto, group or late, not 'sometimes'"):
        settings_of({"launch": "sometimes"})


async def test_status_tells_what_was_discovered(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    await fleet.posts(4)
    status = (await fleet.admin.get("/status")).json()
    pool = status["pools"]["linear/1.0"]
    assert pool["code"] == {"name": "sum", "k": 2, "r": 1, "family": "parity", "partial": True}
    assert [endpoint["row"] for endpoint in pool["endpoints"]] == [None, None, 0]
    assert pool["verdicts"] == ["codable"]
    assert status["problems"] == []
    assert status["state"] == "serving"
    assert status["engine"]["answered"]["deployed"] == 4
    assert [instance["places"] for instance in status["instances"]] == [1, 1, 1]


async def test_metrics_count_queries_tasks_and_work(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    await fleet.posts(2)
    await fleet.client.get("/ping")
    text = (await fleet.admin.get("/metrics")).body.decode()
    for line in (
        'ts_parity_queries_total{outcome="answered",pool="linear/1.0",source="deployed"} 1.0',
        'ts_parity_queries_total{outcome="answered",pool="linear/1.0",source="reconstructed"} 1.0',
        'ts_parity_query_duration_seconds_count{pool="linear/1.0",source="reconstructed"} 1.0',
        'ts_parity_tasks_total{kind="protection",outcome="arrived",pool="linear/1.0"} 1.0',
        # two, if the other was a little late as well
        'ts_parity_tasks_total{kind="finish",outcome="arrived",pool="linear/1.0"} ',
        'ts_parity_work_total{kind="deployed",pool="linear/1.0"} 1.0',  # the other's has not ended
        'ts_parity_work_total{kind="protection",pool="linear/1.0"} 1.0',
        'ts_parity_passed_through_total{outcome="answered"} 1.0',
        "ts_parity_in_flight 1.0",
        'ts_parity_reconstruct_after_seconds{pool="linear/1.0"} 0.02',
        'ts_parity_waiting{pool="linear/1.0"} 0.0',
        "ts_parity_decode_failures_total 0.0",
    ):
        assert line in text, f"{line} not in\n{text}"


async def test_a_finish_that_is_refused_is_counted_and_the_query_answered_late(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances, group_wait_s=0.01, reconstruct_after_s=0.2)
    instances[0].freeze()
    first = asyncio.ensure_future(fleet.post(x=(1, 2)))
    await until(lambda: "group" in instances[2].operations(), "the protection to be sent")
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 1, "the protection to answer")
    instances[2].models[0].script.append(Canned.error(403, "ForbiddenException", "no"))
    await until(lambda: "finish" in instances[2].operations(), "the finish to be sent where the protection answered")
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 1, "the finish to be refused")
    instances[0].thaw()
    answer = await first
    assert (answer.json(), answer.get("x-ts-parity")) == ([5.0, 11.0], "deployed")
    assert "ts_parity_finish_failures_total 1.0" in (await fleet.admin.get("/metrics")).body.decode()


async def test_health_is_true_only_while_a_prediction_can_be_had(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    assert (await fleet.admin.get("/health")).status == 200
    instance.models[0].ready = False
    await fleet.proxy.discover()
    sick = await fleet.admin.get("/health")
    assert sick.status == 503
    assert "no READY worker" in sick.json()["reason"]
    refused = await fleet.post()
    assert refused.status == 503
    assert "no instance with a READY worker serves linear/1.0" in refused.json()["message"]


async def test_a_fleet_that_changes_is_followed(make_fleet: MakeFleet) -> None:
    """A protection that is registered later begins to protect; a worker that dies leaves; nothing is restarted."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe()]
    fleet = await make_fleet(*instances, discovery_interval_s=0.05)
    assert await code_of(fleet) is None
    instances[2].models.append(protection())
    await until(lambda: fleet.proxy.plan.pools["linear/1.0"].code is not None, "the protection to be found")
    instances[2].models.clear()
    await until(lambda: fleet.proxy.plan.pools["linear/1.0"].code is None, "the protection to be gone")
    assert [answer.status for answer in await fleet.posts(4)] == [200] * 4


async def code_of(fleet: Fleet) -> object:
    return (await fleet.admin.get("/status")).json()["pools"]["linear/1.0"]["code"]


async def test_a_group_whose_code_is_gone_is_not_sent_to_another_codes_endpoint(
    make_fleet: MakeFleet, clock: Clock
) -> None:
    instances = coded()
    fleet = await make_fleet(*instances, group_wait_s=20.0, reconstruct_after_s=20.0)
    instances[0].freeze()
    waiting = asyncio.ensure_future(fleet.post(x=(1, 2)))
    await until(lambda: len(instances[0].received) == 1, "the query to be sent")
    instances[2].models[:] = [protection(k=3, name="other")]
    await fleet.proxy.discover()
    clock.advance(20.0)
    await until(lambda: fleet.proxy.metrics.tasks.value("linear/1.0", "protection", "failed") == 1, "the group to fail")
    assert "group" not in instances[2].operations()
    instances[0].thaw()
    assert (await waiting).json() == [5.0, 11.0]


@pytest.mark.parametrize("setting", ["port", "admin_port"])
async def test_a_port_that_is_taken_is_a_start_error_that_names_the_flag(make_fleet: MakeFleet, setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartError, match=rf"cannot listen on .* choose another port \({flag}\)"):
            await make_fleet(FakeTorchServe(FakeModel()), **{setting: taken.getsockname()[1]})


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("203.0.113.1", "this machine has no such address; give one of its own, or 0.0.0.0 for all"),
        ("nobody.invalid", "no address is known by the name 'nobody.invalid'"),
    ],
)
async def test_an_address_that_is_not_ours_is_no_reason_for_another_port(
    make_fleet: MakeFleet, host: str, why: str
) -> None:
    with pytest.raises(StartError, match=rf"cannot listen on {host}:0: {why}"):
        await make_fleet(FakeTorchServe(FakeModel()), host=host)
    with pytest.raises(StartError, match=rf"cannot listen on {host}:0: {why}"):
        await make_fleet(FakeTorchServe(FakeModel()), admin_host=host)


async def test_a_request_on_its_way_when_a_drain_begins_is_answered(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    ask = b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n[1, 2]"
    reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    writer.write(ask)
    assert (await read_answer(reader)).status == 200
    fleet.proxy.drain()
    drained = asyncio.ensure_future(fleet.proxy._drained())
    await refused(fleet.client)
    writer.write(ask)
    answer = await read_answer(reader)
    assert (answer.status, answer.get("connection")) == (200, "close")
    assert await drained == 0
    writer.close()


def parse(*argv: str) -> argparse.Namespace:
    parser = Parser()
    add_parsers(parser.add_subparsers(required=True))
    return parser.parse_args(argv)


RUN = (
    "import sys\n"
    "from ts_parity.arguments import Parser\n"
    "from ts_parity.proxy.commands import add_parsers\n"
    "parser = Parser()\n"
    "add_parsers(parser.add_subparsers(required=True))\n"
    "args = parser.parse_args()\n"
    "sys.exit(args.run(args))\n"
)


class Process:
    """`ts-parity serve` in a process of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.ready_file = tmp_path / "ready.json"

    async def start(self, *endpoints: str, **settings: str) -> dict[str, str]:
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        given = [part for endpoint in endpoints for part in ("--endpoint", endpoint)]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUN, "serve", "--port", "0", "--admin-port", "0"),
            *("--ready-file", str(self.ready_file), *given, *flags),
            stderr=asyncio.subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if not key.startswith("TS_PARITY_")},
        )
        await until(self.ready_file.exists, "the proxy to be ready")
        return json.loads(self.ready_file.read_text())

    async def end(self) -> tuple[int, str]:
        _, stderr = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        return self.process.returncode or 0, stderr.decode()


async def draining(admin: Client) -> Raw:
    """Ask until it says so."""
    while (health := await admin.get("/health")).status == 200:
        pass
    return health


async def refused(client: Client) -> None:
    """Ask until nobody listens any more."""
    with contextlib.suppress(ConnectionError):
        while True:
            await client.get("/ping")


@pytest.mark.slow
async def test_the_first_signal_drains(tmp_path: Path) -> None:
    """Accepting ends, what is in flight is finished, and the exit code is 0."""
    async with FakeTorchServe(FakeModel()) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint)
        client, admin = Client(ready["url"]), Client(ready["admin_url"])
        instance.freeze()
        asked = asyncio.ensure_future(client.post("/predictions/linear", b"[1, 2]"))
        await until(lambda: len(instance.received) == 1, "the query to be in flight")
        process.process.send_signal(signal.SIGTERM)
        assert (await draining(admin)).json()["status"] == "draining"
        await refused(client)
        instance.thaw()
        answer = await asked
        assert (answer.status, answer.get("connection")) == (200, "close")
        code, stderr = await process.end()
    assert code == 0
    assert f"serving on {ready['url']} (admin {ready['admin_url']})" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_the_second_signal_exits_at_once(tmp_path: Path) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint)
        instance.freeze()
        asked = asyncio.ensure_future(Client(ready["url"]).post("/predictions/linear", b"[1, 2]"))
        await until(lambda: len(instance.received) == 1, "the query to be in flight")
        process.process.send_signal(signal.SIGINT)
        await draining(Client(ready["admin_url"]))
        process.process.send_signal(signal.SIGINT)
        code, stderr = await process.end()
        assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], Exception)
    assert code == 1
    assert "cut 1 requests" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
async def test_drain_on_the_admin_port_ends_the_process(tmp_path: Path) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint)
        answer = await Client(ready["admin_url"]).post("/drain", headers=JSON)
        assert (answer.status, answer.json()) == (202, {"status": "draining"})
        assert (await process.end())[0] == 0


async def test_status_command(make_fleet: MakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = await make_fleet(*coded())
    args = parse("status", "--admin", fleet.proxy.admin_url)
    assert await asyncio.to_thread(args.run, args) == 0
    table = capsys.readouterr().out
    assert "linear/1.0  sum k=2 r=1  in use  codable  2         1" in table
    args = parse("status", "--admin", fleet.proxy.admin_url, "--json")
    await asyncio.to_thread(args.run, args)
    assert json.loads(capsys.readouterr().out)["state"] == "serving"


def test_status_of_nobody_says_so():
    args = parse("status", "--admin", "http://127.0.0.1:1")
    with pytest.raises(TsParityError, match=r"no status from http://127\.0\.0\.1:1/status"):
        args.run(args)
    with pytest.raises(ConfigError, match="--admin must be like"):
        parse("status", "--admin", "localhost")


def test_serve_without_instances_is_a_usage_error():
    args = parse("serve")
    with pytest.raises(ConfigError, match="no instances"):
        args.run(args)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
async def test_signals_that_are_no_end_cut_nothing(tmp_path: Path, processes: str) -> None:
    """SIGHUP looks at the fleet and the log's file again, SIGUSR1 at the file, SIGUSR2 at nothing; SIGQUIT drains."""
    file, moved = tmp_path / "access.jsonl", tmp_path / "access.1"
    async with FakeTorchServe(FakeModel()) as instance:
        process = Process(tmp_path)
        ready = await process.start(
            instance.endpoint, processes=processes, access_log=str(file), discovery_interval_s="600"
        )
        client, admin = Client(ready["url"]), Client(ready["admin_url"])
        instance.models.append(FakeModel(name="later"))
        process.process.send_signal(signal.SIGHUP)
        while "later/1.0" not in (await admin.get("/status")).json()["pools"]:
            await asyncio.sleep(0.01)
        instance.freeze()
        asked = asyncio.ensure_future(client.post("/predictions/linear", b"[1, 2]"))
        await until(lambda: len(instance.received) == 1, "the query to be in flight")
        for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
            file.rename(moved)
            process.process.send_signal(number)
            if number != signal.SIGUSR2:
                await until(file.exists, "the log to be opened anew")
            else:
                moved.rename(file)
        process.process.send_signal(signal.SIGQUIT)
        await draining(admin)
        instance.thaw()
        assert (await asked).status == 200
        code, stderr = await process.end()
    assert (code, "Traceback" in stderr) == (0, False)
    assert [json.loads(line)["status"] for line in file.read_text().splitlines()] == [200]
