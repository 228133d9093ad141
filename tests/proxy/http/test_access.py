"""The access log and request ids: what an operator can find out about one request."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, until
from ts_parity.errors import ConfigError
from ts_parity.lab.compare import service_from
from ts_parity.lab.history import TaskEnd, read_history
from ts_parity.proxy.http.access import FIELDS, TASK_FIELDS, VERSION, AccessEntry, AccessLog
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


async def lines(fleet: Fleet, file: Path, count: int) -> list[dict[str, Any]]:
    """As soon as there are so many; they are written about once a second."""
    fleet.proxy._server.access.flush()
    await until(lambda: len(read(file)) >= count, f"{count} lines")
    return read(file)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_line_says_who_answered_and_when(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instances = coded()
    fleet = await make_fleet(*instances, access_log=str(file))
    await fleet.posts(2, x_request_id="mine")
    instances[0].freeze()
    answers = await fleet.posts(2)
    await fleet.client.get("/ping")
    written = await lines(fleet, file, 5)
    instances[0].thaw()
    first, second, *pair, ping = written
    assert first["group"] == second["group"] is not None
    assert (first["method"], first["target"], first["status"]) == ("POST", "/predictions/linear", 200)
    assert (first["request_id"], first["outcome"], first["pool"]) == ("mine", "deployed", "linear/1.0")
    assert first["endpoint"].endswith("/linear/1.0")
    assert first["attempts"] == 1
    assert 0 < first["service_s"] <= first["latency_s"] + 0.002  # by a finer clock
    assert first["places"] == 1
    assert 0 <= first["waited_s"] < first["latency_s"]
    assert sorted(line["outcome"] for line in pair) == ["deployed", "reconstructed"]
    assert pair[0]["group"] == pair[1]["group"] is not None
    assert {line["answer_id"] for line in pair} == {answer.get("x-request-id") for answer in answers}
    assert (ping["outcome"], ping["target"], ping["pool"], ping["group"]) == ("passed", "/ping", None, None)
    assert ping["endpoint"] in {instance.inference.removeprefix("http://") for instance in instances}
    assert ping["client"].startswith("127.0.0.1:")


async def test_lines_for_those_who_got_no_prediction(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, access_log=str(file))
    instance.freeze()
    assert (await fleet.post(x_ts_parity_deadline_ms="30")).status == 504
    assert (await fleet.client.send(b"nonsense\r\n\r\n")).status == 400
    _, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    writer.write(b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n[1, 2]")
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 1, "the request to be in")
    writer.close()
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 0, "the client's leave to be noticed")
    written = await lines(fleet, file, 3)
    instance.thaw()
    seen = [(line["status"], line["outcome"]) for line in written]
    assert seen == [(504, "error"), (400, "refused"), (499, "left")]
    late, _, left = written
    asked = f"{instance.inference.removeprefix('http://')}/linear/1.0"
    assert (late["pool"], late["endpoint"], late["attempts"], late["cause"]) == ("linear/1.0", asked, 1, "deadline")
    assert (left["pool"], left["endpoint"], left["cause"]) == ("linear/1.0", None, None)  # it still waited for a place


async def test_a_failure_says_who_failed_first_and_why(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """To the operator; the client is told of no address and of nothing that the operating system said."""
    file = tmp_path / "access.jsonl"
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances, access_log=str(file), max_attempts=2, max_wait_s=0.2)
    names = [instance.inference.removeprefix("http://") for instance in instances]
    for instance in instances:
        instance.models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
    assert (await fleet.post()).status == 507
    instances[0].models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
    answers = [await fleet.post() for _ in range(2)]
    for instance in instances:
        await instance.stop()
    answers += [await fleet.post(), await fleet.client.get("/ping")]
    assert [answer.status for answer in answers] == [200, 200, 503, 503]
    died, *saved, gone, ping = await lines(fleet, file, 5)
    assert (died["outcome"], died["pool"], died["attempts"]) == ("error", "linear/1.0", 2)
    assert died["endpoint"] in {f"{name}/linear/1.0" for name in names}
    assert died["cause"] in {f"{name}/linear/1.0: 507 Worker died." for name in names}
    assert died["endpoint"] not in died["cause"]  # the last, and the first
    assert [line["cause"] for line in saved if line["attempts"] == 2] == [f"{names[0]}/linear/1.0: 507 Worker died."]
    assert [line["cause"] for line in saved if line["attempts"] == 1] == [None]
    assert (gone["outcome"], gone["pool"]) == ("error", "linear/1.0")
    assert gone["attempts"] >= 2
    assert "Connection" in gone["cause"]
    assert (ping["outcome"], ping["attempts"], ping["endpoint"]) == ("error", 2, ", ".join(names))
    assert ping["cause"].startswith(f"{names[0]}: Connection")
    for answer in answers[2:]:
        for secret in ("127.0.0.1", "Errno", "refused", "Connect", "management"):
            assert secret not in answer.json()["message"]
        assert answer.get("retry-after") == "1"


# ---- disks that are full -------------------------------------------------------------------------------------------


class FullDisk:
    """Takes so many bytes of what is written to one descriptor, then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.descriptor, self.room, self._write = -1, 0, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if descriptor != self.descriptor:
            return self._write(descriptor, data)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


def note(log: AccessLog, *numbers: int) -> None:
    for n in numbers:
        log.add("c", "GET", f"/{n}", 200, 0, 0.1, None, None, None, AccessEntry("passed"))
    log.flush()


@pytest.mark.parametrize("room", [0, 1, 200, 5000])
def test_lines_stay_whole_when_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    file = tmp_path / "access.jsonl"
    log = AccessLog(str(file))
    disk = FullDisk(monkeypatch)
    note(log, 1)
    disk.descriptor, disk.room = log._descriptor, room
    note(log, *range(2, 30))
    note(log, 30)
    disk.room = 1 << 20
    note(log, 31)
    log.close()
    targets = [line["target"] for line in read(file)]
    kept = len(targets) - 2
    assert targets == ["/1", *(f"/{n}" for n in range(2, 2 + kept)), "/31"]
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "No space left on device; lines are lost until it can be written",
        f"it can be written again; {29 - kept} lines were lost",
    ]


def test_what_another_wrote_meanwhile_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then half a line stays, and the next begins behind it."""
    file = tmp_path / "access.jsonl"
    log = AccessLog(str(file))
    disk = FullDisk(monkeypatch)
    disk.descriptor, disk.room = log._descriptor, 10
    lseek = os.lseek

    def seek(*where: int) -> int:
        with file.open("a") as another:
            another.write("other\n")
        return lseek(*where)

    monkeypatch.setattr(os, "lseek", seek)
    note(log, 1)
    disk.room = 1 << 20
    note(log, 2)
    log.close()
    half, nothing, second = file.read_text().splitlines()
    assert (half.endswith("other"), nothing, json.loads(second)["target"]) == (True, "", "/2")


def test_a_file_that_ends_within_a_line_gets_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    file.write_text('{"at": "2026')
    log = AccessLog(str(file))
    note(log, 1)
    log.reopen()
    note(log, 2)
    log.close()
    assert [line[:13] for line in file.read_text().splitlines()] == ['{"at": "2026', *['{"at": "2026-'] * 2]


def test_a_pipe_that_is_full_begins_a_new_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be cut."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    disk = FullDisk(monkeypatch)
    disk.descriptor, disk.room = log._descriptor, 10
    note(log, 1)
    disk.room = 1 << 20
    note(log, 2)
    log.close()
    half, second = os.read(reader, 1 << 16).decode().splitlines()
    os.close(reader)
    assert (len(half), json.loads(second)["target"]) == (10, "/2")


async def test_a_streamed_answer_has_one_line_when_it_has_ended(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, access_log=str(file))
    instance.models[0].script.append(Canned(chunks=(b"one", b"three")))
    assert (await fleet.post()).body == b"onethree"
    (line,) = await lines(fleet, file, 1)
    assert (line["status"], line["bytes"], line["outcome"]) == (200, 8, "deployed")


async def test_what_ends_after_its_query_has_a_line_of_its_own(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """The very tasks that are slow: rebuilt answers, and copies, come before theirs."""
    file = tmp_path / "access.jsonl"
    instances = coded()
    fleet = await make_fleet(*instances, access_log=str(file))
    await fleet.posts(2)
    instances[0].freeze()
    await fleet.posts(2)
    rescued = next(line for line in await lines(fleet, file, 4) if line["outcome"] == "reconstructed")
    where = f"{instances[0].inference.removeprefix('http://')}/linear/1.0"
    (out,) = rescued["others"]
    assert (out["endpoint"], out["failed"]) == (where, False)
    assert out["at_least_s"] > 0
    assert all(line["others"] == [] for line in read(file) if line is not rescued and line["query"] != rescued["query"])
    before = read_history(file)
    assert [task.endpoint for task in before.served if task.end is TaskEnd.UNKNOWN] == [where]
    instances[0].thaw()
    *_, late = await lines(fleet, file, 5)
    assert {line["version"] for line in read(file)} == {VERSION}
    assert (late["task"], late["query"], late["pool"], late["endpoint"]) == (
        "arrived", rescued["query"], "linear/1.0", where,
    )  # fmt: skip
    assert late["service_s"] > out["at_least_s"]
    history = read_history(file)
    assert len(history.arrivals) == 4
    assert [task.end for task in history.served] == [TaskEnd.ANSWERED] * 4
    assert late["service_s"] in [task.took_s for task in history.served]


async def test_attempts_that_failed_stand_on_their_querys_line(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances, access_log=str(file))
    instances[0].models[0].script.append(Canned.worker_died())
    for _ in range(2):
        assert (await fleet.post()).status == 200
    written = await lines(fleet, file, 2)
    (failed,) = [other for line in written for other in line["others"]]
    assert (failed["endpoint"], failed["failed"]) == (
        f"{instances[0].inference.removeprefix('http://')}/linear/1.0",
        True,
    )
    assert sorted(task.end.value for task in read_history(file).served) == ["answered", "answered", "failed"]


async def test_what_fails_after_its_client_has_left_has_a_line_too(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, access_log=str(file))
    instance.freeze()
    assert (await fleet.post(x_ts_parity_deadline_ms="30")).status == 504
    await instance.stop()
    gone, late = await lines(fleet, file, 2)
    assert (late["task"], late["query"], late["service_s"]) == ("failed", gone["query"], None)
    assert late["at_least_s"] > gone["others"][0]["at_least_s"] > 0
    assert late["cause"]


async def test_a_plan_can_be_made_of_it(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """The deployed model's own times are its service times; other lines say nothing about them."""
    file = tmp_path / "access.jsonl"
    fleet = await make_fleet(FakeTorchServe(FakeModel(latency_s=0.01)), access_log=str(file))
    await fleet.posts(3)
    await fleet.client.get("/ping")
    written = await lines(fleet, file, 4)
    service, mean, _ = service_from(file)
    times = [line["service_s"] for line in written if line["service_s"] is not None]
    assert len(times) == len(service.samples) == 3
    assert mean == pytest.approx(sum(times) / 3)


async def test_a_rotated_file_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    log = AccessLog(str(file))
    for n in (1, 2):
        log.add("c", "GET", f"/{n}", 200, 0, 0.1, None, None, None, AccessEntry("passed"))
        log.flush()
        file.rename(tmp_path / f"access.{n}")
    log.close()
    assert [json.loads((tmp_path / f"access.{n}").read_text())["target"] for n in (1, 2)] == ["/1", "/2"]


async def test_a_file_that_cannot_be_written_is_said_at_the_start(make_fleet: MakeFleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="access_log: cannot write"):
        await make_fleet(FakeTorchServe(FakeModel()), access_log=str(tmp_path / "no" / "such.jsonl"))


# ---- its fields ----------------------------------------------------------------------------------------------------

OF_VERSION = {
    2: (
        "at version client method target status bytes request_id answer_id latency_s outcome pool group endpoint "
        "attempts waited_s service_s cause places confidence query others",
        "at version task query pool endpoint waited_s service_s at_least_s cause",
    ),
    3: ("trace_id", ""),
}
"""Version -> what it added, to a request's line and to a task's. What was published stays as it is: who adds a field
adds a version, here and in `access`, and describes it in docs/behaviour.md.
"""


def test_a_new_field_is_a_new_version() -> None:
    assert max(OF_VERSION) == VERSION
    for n, fields in enumerate((FIELDS, TASK_FIELDS)):
        assert list(fields) == [name for added in OF_VERSION.values() for name in added[n].split()]


async def test_lines_have_the_fields_of_their_version(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, access_log=str(file))
    await fleet.posts(1)
    await fleet.client.get("/ping")
    instance.freeze()
    await fleet.post(x_ts_parity_deadline_ms="30")
    instance.thaw()
    *requests, task = await lines(fleet, file, 4)
    assert [tuple(line) for line in requests] == [FIELDS] * 3
    assert tuple(task) == TASK_FIELDS
    assert {line["version"] for line in (*requests, task)} == {VERSION}


async def test_a_line_names_the_trace_of_its_client(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    fleet = await make_fleet(FakeTorchServe(FakeModel()), access_log=str(file))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    await fleet.post(traceparent=f"00-{trace_id}-b7ad6b7169203331-00")
    await fleet.client.ask("GET", "/ping", headers=(("Traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),))
    await fleet.post(traceparent="00-nonsense")
    assert [line["trace_id"] for line in await lines(fleet, file, 3)] == [trace_id, trace_id, None]


# ---- request ids ---------------------------------------------------------------------------------------------------


async def test_an_error_of_the_proxys_own_bears_the_clients_id_or_a_new_one(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.freeze()
    late = await fleet.post(x_ts_parity_deadline_ms="30", x_request_id="mine")
    assert (late.status, late.get("x-request-id")) == (504, "mine")
    bad = await fleet.post(x_ts_parity_deadline_ms="soon")
    refused = await fleet.client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: its\r\nTransfer-Encoding: x\r\n\r\n")
    unread = await fleet.client.send(b"nonsense\r\n\r\n")
    assert (bad.status, refused.status, unread.status) == (400, 400, 400)
    assert refused.get("x-request-id") == "its"
    ids = [answer.get("x-request-id") for answer in (bad, unread)]
    assert len({uuid.UUID(text) for text in ids}) == 2
    instance.thaw()


async def test_a_clients_id_reaches_the_instance_and_its_answer_keeps_its_own(make_fleet: MakeFleet) -> None:
    """As without a proxy: TorchServe makes an id for each answer, and the handler sees the client's."""
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    answer = await fleet.post(x_request_id="mine")
    assert instance.received[-1].header("x-request-id") == "mine"
    assert answer.get("x-request-id") not in (None, "mine")
    await fleet.post()
    assert instance.received[-1].header("x-request-id") is None
