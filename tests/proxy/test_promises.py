"""Promises of docs/behaviour.md that have their tests nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, Raw
from ts_parity.config import InstanceSettings
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


async def test_an_instance_that_breaks_off_what_is_passed_through(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Nobody knows whether it was carried out, so it is asked of nobody else; the log says why, and not the client."""
    file = tmp_path / "access.jsonl"
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    for instance in instances:
        instance.models[0].script.extend([Canned(drop=True)] * 3)
    fleet = await make_fleet(*instances, access_log=str(file))
    answer = await fleet.client.post("/explanations/linear", b"[1, 2]")
    assert (answer.status, answer.json()["type"]) == (502, "BadGatewayException")
    assert "127.0.0.1" not in answer.json()["message"]
    # Twice of the same one, for at first it had only closed an idle connection, as far as anybody can tell.
    assert sorted(len(instance.received) for instance in instances) == [0, 2]
    assert fleet.proxy._server.access is not None
    fleet.proxy._server.access.flush()
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["status"], line["outcome"], line["attempts"]) == (502, "error", 1)
    assert line["cause"].startswith(line["endpoint"] + ": ")
    assert len(line["cause"]) > len(line["endpoint"]) + 2


async def test_an_instance_behind_a_socket_has_a_host_for_clients_that_name_none(
    make_fleet: MakeFleet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with FakeTorchServe(FakeModel(), sockets=tmp_path_factory.mktemp("s")) as instance:
        fleet = await make_fleet(given=(InstanceSettings(instance.inference, instance.management, "one"),))
        ask = b"POST /predictions/linear HTTP/1.0\r\n%bContent-Length: 6\r\n\r\n[1, 2]"
        for given, host in ((b"", "localhost"), (b"Host: ts.example\r\n", "ts.example")):
            assert (await fleet.client.send(ask % given)).status == 200
            assert instance.received[-1].header("host") == host


# ---- how a request is framed: the proxy's column of the table --------------------------------------------------------


async def framed(fleet: Fleet, headers: bytes, body: bytes = b"", line: bytes = b"POST /predictions/linear") -> Raw:
    return await fleet.client.send(line + b" HTTP/1.1\r\nHost: h\r\n" + headers + b"\r\n" + body)


REFUSED = [
    b"Content-Length: -2\r\n", b"Content-Length: +2\r\n", b"Content-Length: 2\x0b\r\n", b"Content-Length: 2, 2\r\n",
    b"Content-Length: 0x2\r\n", b"Content-Length: 2 2\r\n", b"Content-Length: 1e0\r\n", b"Content-Length:\r\n",
    b"Content-Length: 18446744073709551616\r\n", b"Content-Length: 2\r\nContent-Length: 2\r\n",
    b"Content-Length: 2\r\nContent-Length: 3\r\n", b"Content-Length:\r\n 2\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked, gzip\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: ,chunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n", b'Transfer-Encoding: "chunked"\r\n', b"Transfer-Encoding:\r\n",
    b"Transfer-Encoding : chunked\r\n",
]  # fmt: skip


async def test_what_the_framing_table_says_is_refused(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    for headers in REFUSED:
        assert (await framed(fleet, headers)).status == 400, headers
    old = b"POST /predictions/linear HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert (await fleet.client.send(old)).status == 400
    for trailer in (b"Content-Length: 9", b"Transfer-Encoding: chunked"):
        body = b"2\r\n[]\r\n0\r\n" + trailer + b"\r\n\r\n"
        assert (await framed(fleet, b"Transfer-Encoding: chunked\r\n", body)).status == 400, trailer
    assert (await framed(fleet, b"Expect: something\r\n")).status == 417
    for method in (b"TRACE", b"CONNECT"):
        assert (await framed(fleet, b"", line=method + b" /predictions/linear")).status == 405
    for method in (b"MINE", b"get"):
        assert (await framed(fleet, b"", line=method + b" /predictions/linear")).status == 400
    assert instance.received == []


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Length: 02\r\n", b"[]"),
        (b"Content-Length:  2 \r\n", b"[]"),
        (b"Transfer-Encoding: Chunked\r\n", b"2\r\n[]\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: CHUNKED\r\n", b"2;a=b\r\n[]\r\n0\r\nX-T: 1\r\n\r\n"),
    ],
)
async def test_what_the_framing_table_says_is_sent_on_with_a_length(
    make_fleet: MakeFleet, headers: bytes, body: bytes
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    for method in (b"POST", b"GET", b"DELETE"):
        instance.models[0].script.append(Canned.own(200, b"ok"))
        line = method + b" /predictions/linear"
        assert (await framed(fleet, headers + b"Content-Encoding: x\r\n", body, line)).status == 200
        (heard,) = [request for request in instance.received if request.method == method.decode()]
        names = sorted(name.lower() for name, _ in heard.headers)
        assert names == ["content-encoding", "content-length", "host"]
        assert int(heard.header("content-length") or heard.header("Content-Length") or -1) == len(heard.body) == 2


async def test_a_protection_that_says_nan_answers_nobody(make_fleet: MakeFleet) -> None:
    """The query waits for its own answer, and the failure is told."""
    instances = coded()
    instances[2].models[0].matrix = instances[2].models[0].matrix * float("nan")
    fleet = await make_fleet(*instances, deadline_s=60.0)
    instances[0].models[0].latency_s = 0.1
    answers = await fleet.posts(4)
    assert [answer.status for answer in answers] == [200] * 4
    assert all(b"NaN" not in answer.body for answer in answers)
    assert {answer.get("x-ts-parity") for answer in answers} == {"deployed"}
