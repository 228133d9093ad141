"""Recordings: what is sampled, what is left out, and that the queries notice nothing of it."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from tests.proxy.conftest import Client, Clock, Fleet, MakeFleet, until
from ts_parity.errors import BadClientRequest
from ts_parity.pairs import Pair, framed, frames
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.serving import recording as rules
from ts_parity.proxy.serving.recording import NotRecorded, Recording, Wanted
from ts_parity.testing import FakeModel, FakeTorchServe

ALL = Wanted(1.0, 60.0)
JSON = (("content-type", "application/json"),)


def asked(body: bytes = b"[1]", **other: Any) -> Request:
    return Request(**{"method": "POST", "target": "/predictions/m?key=secret", "headers": JSON, "body": body, **other})


def answered(body: bytes = b"[2]", status: int = 200, headers: Any = JSON) -> Response:
    return Response(status, "", headers, body)


def taken(recording: Recording) -> list[Any]:
    return list(frames(io.BytesIO(b"".join(recording.take()))))


def test_a_pair_holds_bodies_path_and_content_types_only() -> None:
    recording = Recording(ALL)
    recording.offer("m/1", asked(headers=(*JSON, ("authorization", "Bearer k"), ("cookie", "c"))), answered())
    assert taken(recording) == [Pair("m/1", "/predictions/m", "application/json", b"[1]", "application/json", b"[2]")]
    assert taken(recording) == []


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (asked(), answered(status=400)),
        (asked(), answered(status=500)),
        (asked(), answered(b"")),
        (asked(b""), answered()),
        (asked(method="GET"), answered()),
        (asked(), "a stream"),
        (asked(headers=(("Content-Encoding", "gzip"),)), answered()),
        (asked(), answered(headers=(("Content-Encoding", "gzip"),))),
    ],
)
def test_what_is_no_good_whole_answer_to_a_body_is_not_recorded(request_: Request, answer: object) -> None:
    recording = Recording(ALL)
    recording.offer("m/1", request_, answer)
    assert taken(recording) == []
    assert recording.counts == {"seen": 1, "unfit": 1, "left_out": 0}


def test_the_share_is_sampled() -> None:
    dice = iter([0.1, 0.6, 0.49, 0.5])
    recording = Recording(Wanted(0.5, 60.0), dice=lambda: next(dice))
    for number in range(4):
        recording.offer("m/1", asked(b"%d" % number), answered())
    assert [pair.body for pair in taken(recording)] == [b"0", b"2"]
    assert recording.counts == {"seen": 4, "unfit": 0, "left_out": 0}


def test_a_reader_that_does_not_read_costs_no_more_than_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST_WAITING_BYTES", 1000)
    recording = Recording(ALL)
    for _ in range(10):
        recording.offer("m/1", asked(b"x" * 100), answered(b"y" * 100))
    waiting = taken(recording)
    assert 2 <= len(waiting) <= 4
    assert recording.counts == {"seen": 10, "unfit": 0, "left_out": 10 - len(waiting)}
    recording.offer("m/1", asked(b"x" * 5000), answered())  # alone it has all the room, or it would never be seen
    recording.add(framed(Pair("m/1", "/", "", b"z", "", b"z")))
    assert [len(pair.body) for pair in taken(recording)] == [5000]
    monkeypatch.setattr(rules, "MOST_WAITING", 3)
    for _ in range(5):
        recording.offer("m/1", asked(), answered())
    assert len(taken(recording)) == 3


def test_one_model_is_recorded_by_name_or_version() -> None:
    for wanted, pools in (("", ["a/1", "a/2", "b/1"]), ("a", ["a/1", "a/2"]), ("a/2", ["a/2"])):
        recording = Recording(Wanted(1.0, 60.0, wanted))
        for pool in ("a/1", "a/2", "b/1"):
            recording.offer(pool, asked(), answered())
        assert [pair.model for pair in taken(recording)] == pools
        assert recording.counts["seen"] == len(pools)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], "no object"),
        ({"share": 1}, "seconds must be"),
        ({"share": 0, "seconds": 1}, "share must be"),
        ({"share": 1.1, "seconds": 1}, "at most 1"),
        ({"share": True, "seconds": 1}, "share must be"),
        ({"share": 1, "seconds": 1e9}, "seconds must be"),
        ({"share": float("nan"), "seconds": 1}, "share must be"),
        ({"share": 1, "seconds": 1, "model": 3}, "NAME or NAME/VERSION"),
        ({"share": 1, "seconds": 1, "colour": 3}, "unknown: colour"),
    ],
)
def test_what_is_no_wish_is_refused(told: Any, why: str) -> None:
    with pytest.raises(BadClientRequest, match=why):
        Wanted.read(told)


# ---- in a proxy ------------------------------------------------------------------------------------------------------

ACTION = (("Content-Type", "application/json"),)


class Reader:
    """Reads a recording as it comes."""

    @classmethod
    async def open(cls, admin: Client, told: Any, headers: tuple[tuple[str, str], ...] = ACTION) -> Reader:
        self = cls()
        self.read, self.writer = await asyncio.open_connection(admin.host, admin.port)
        body = json.dumps(told).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.writer.write(
            f"POST /record HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
        )
        self.writer.write(body)
        self.head = (await self.read.readuntil(b"\r\n\r\n")).decode()
        return self

    async def rest(self) -> list[Any]:
        """All of it, until its end."""
        said = b""
        while size := int(await self.read.readuntil(b"\r\n"), 16):
            said += await self.read.readexactly(size)
            await self.read.readexactly(2)
        self.writer.close()
        return list(frames(io.BytesIO(said)))


async def begun(fleet: Fleet, **told: Any) -> Reader:
    reader = await Reader.open(fleet.admin, {"share": 1.0, "seconds": 50.0, **told})
    assert reader.head.startswith("HTTP/1.1 200"), reader.head
    return reader


async def test_only_the_deployed_models_answers_are_recorded(make_fleet: MakeFleet, clock: Clock) -> None:
    """Not those of a student, though it has just rescued the query."""
    student = FakeModel(name="small", role="parity", code="student", workers=2)
    instances = [FakeTorchServe(FakeModel(), student) for _ in range(2)]
    late = {"launch": "late", "launch_after_s": 10.0, "reconstruct_after_s": 10.0}
    fleet = await make_fleet(*instances, **late)
    reader = await begun(fleet)
    instances[0].freeze()
    waiting = [asyncio.ensure_future(fleet.post(x=(n, n))) for n in range(2)]
    await until(lambda: sum(task.done() for task in waiting) == 1, "the answer of the instance that is not frozen")
    clock.advance(12.0)
    answers = await asyncio.gather(*waiting)
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
    own = next(place for place, answer in enumerate(answers) if answer.get("x-ts-parity") == "deployed")
    clock.advance(40.0)
    *_, counts, ended = told = await reader.rest()
    pairs = [each for each in told if isinstance(each, Pair)]
    assert [(pair.model, pair.path, json.loads(pair.body)) for pair in pairs] == [
        ("linear/1.0", "/predictions/linear", [own, own])
    ]
    assert pairs[0].answer == answers[own].body
    assert counts == {"counts": {"seen": 1, "unfit": 0, "left_out": 0}}
    assert ended == {"ended": "its time is over"}
    assert fleet.proxy.driver.recording is None


async def test_a_second_copys_answer_is_the_deployed_models_own(make_fleet: MakeFleet, clock: Clock) -> None:
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances, copies=True, hedge_after_s=10.0, extra_work=1.0)
    reader = await begun(fleet)
    instances[0].freeze()
    waiting = [asyncio.ensure_future(fleet.post(x=(n, n))) for n in range(2)]
    await until(lambda: sum(task.done() for task in waiting) == 1, "the answer of the instance that is not frozen")
    clock.advance(12.0)
    await asyncio.gather(*waiting)
    clock.advance(40.0)
    assert sorted(json.loads(pair.body) for pair in await reader.rest() if isinstance(pair, Pair)) == [[0, 0], [1, 1]]


async def test_a_reader_that_leaves_ends_it_and_one_that_stays_keeps_it_alone(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    reader = await begun(fleet)
    second = await fleet.admin.post("/record", b'{"share": 1, "seconds": 1}', ACTION)
    assert (second.status, second.json()["reason"]) == (409, rules.UNDER_WAY)
    reader.writer.close()
    await until(lambda: fleet.proxy.driver.recording is None, "the proxy to notice that the reader has left")
    assert (await fleet.post()).status == 200


async def test_a_reader_that_does_not_read_delays_nobody(make_fleet: MakeFleet, monkeypatch: Any) -> None:
    """What does not fit into the room and the sockets is left out, and each query is answered."""
    monkeypatch.setattr(rules, "MOST_WAITING_BYTES", 1 << 16)
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    reader = await begun(fleet)
    recording = fleet.proxy.driver.recording
    assert recording is not None
    reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
    large = asked(b"x" * 60_000)
    for _ in range(2000):
        recording.offer("linear/1.0", large, answered())
        if recording.counts["left_out"] > 50:
            break
        await asyncio.sleep(0.002)
    assert recording.counts["left_out"] > 50
    assert [answer.status for answer in await fleet.posts(5)] == [200] * 5
    reader.writer.close()


async def test_the_end_of_the_proxy_ends_it(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    reader = await begun(fleet)
    await fleet.post(x=(5, 6))
    await fleet.proxy.close()
    *_, pair, _, ended = await reader.rest()
    assert (pair.body, ended) == (b"[5, 6]", {"ended": "the proxy has ended"})


async def test_who_may_record(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is on the machine, or has the token: nobody else sees what clients send."""
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    for told, why in (({"share": 2}, 400), ({"share": 1, "seconds": 1, "model": "other"}, 409)):
        refused = await fleet.admin.post("/record", json.dumps(told).encode(), ACTION)
        assert (refused.status, refused.json()["status"]) == (why, "refused")
    assert "there are linear/1.0" in refused.json()["reason"]
    assert (await fleet.admin.post("/record", b"{", ACTION)).status == 400
    assert (await fleet.admin.post("/record", b'{"share": 1, "seconds": 1}')).status == 403  # as a page could send it
    monkeypatch.setattr("ts_parity.proxy.operations.admin._is_local", lambda address: False)
    refused = await fleet.admin.post("/record", b'{"share": 1, "seconds": 1}', ACTION)
    assert (refused.status, "set admin_token" in refused.json()["reason"]) == (403, True)
    keyed = await make_fleet(FakeTorchServe(FakeModel()), admin_token="key")
    assert (await keyed.admin.post("/record", b"{}", ACTION)).status == 403
    reader = await Reader.open(keyed.admin, {"share": 1, "seconds": 1}, (*ACTION, ("Authorization", "Bearer key")))
    assert reader.head.startswith("HTTP/1.1 200")
    reader.writer.close()


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
     ("::ffff:10.0.0.1", False), ("", False), (None, False), ("unix:", False)],
)  # fmt: skip
def test_what_is_this_machine(address: str | None, local: bool) -> None:
    from ts_parity.proxy.operations.admin import _is_local

    assert _is_local(address) is local


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(NotRecorded, match=r"it has found no model yet; .*send one$"):
        ALL.check([])
    Wanted(1.0, 1.0, "a").check(["a/1"])
