"""What clients and fleets do wrong, and the clear outcome each has."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.conftest import MakeFleet, nothing_left, until
from ts_parity.config import parse_endpoint
from ts_parity.testing import FakeModel, FakeTorchServe, protection
from ts_parity.wire import FRAME_TYPE, Frame, Part, pack_frame


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


async def test_an_empty_body_is_the_handlers_to_refuse(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    answer = await fleet.client.post("/predictions/linear")
    assert (answer.status, answer.json()["message"]) == (503, "Prediction failed")


async def test_a_body_the_handler_cannot_read_harms_no_neighbour(make_fleet: MakeFleet) -> None:
    """The bad member of a group fails alone; the other is rebuilt from the slots that are covered."""
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    good, bad = await asyncio.gather(
        fleet.post(x=(1, 2)), fleet.client.post("/predictions/linear", b"\x89PNG", (("Content-Type", "image/png"),))
    )
    assert (good.status, good.json()) == (200, [5.0, 11.0])
    assert (bad.status, bad.json()["message"]) == (503, "Prediction failed")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_answered_as_torchserve_does(make_fleet: MakeFleet, chunked: bool) -> None:
    fleet = await make_fleet(*coded(), max_body_bytes=10)
    if chunked:
        answer = await fleet.client.send(
            b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"b\r\n01234567890\r\n0\r\n\r\n"
        )
    else:
        answer = await fleet.client.post("/predictions/linear", b"01234567890")
    assert (answer.status_line, answer.body) == ("HTTP/1.1 413 Request Entity Too Large", b"")
    assert ("content-length", "0") in answer.headers
    assert answer.get("content-type") is None
    assert (await fleet.client.post("/predictions/linear", b"[1, 2]    ")).status == 200


async def test_a_client_that_asks_first_is_told_before_it_sends(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded(), max_body_bytes=10)
    head = b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    refused = await fleet.client.send(head % 11)
    assert refused.status == 413
    asked = await fleet.client.send(head % 6)
    assert asked.status_line == "HTTP/1.1 100 Continue"


@pytest.mark.parametrize("deadline", ["soon", "0", "-5", "nan", "inf", "1e12", ""])
async def test_a_deadline_that_makes_no_sense(make_fleet: MakeFleet, deadline: str) -> None:
    fleet = await make_fleet(*coded())
    answer = await fleet.post(x_ts_parity_deadline_ms=deadline)
    assert answer.status == 400
    assert answer.json()["type"] == "BadRequestException"
    assert "x-ts-parity-deadline-ms must be a positive number" in answer.json()["message"]


async def test_exact_is_0_or_1(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    assert (await fleet.post(x_ts_parity_exact="yes")).status == 400
    assert (await fleet.post(x_ts_parity_exact="0")).status == 200


@pytest.mark.parametrize("least", ["much", "-0.1", "1.5", "nan", ""])
async def test_a_least_confidence_is_from_0_to_1(make_fleet: MakeFleet, least: str) -> None:
    fleet = await make_fleet(*coded())
    answer = await fleet.post(x_ts_parity_least_confidence=least)
    assert answer.status == 400
    assert "x-ts-parity-least-confidence must be a number from 0 to 1" in answer.json()["message"]
    assert (await fleet.post(x_ts_parity_least_confidence="1")).status == 200


async def test_control_headers_cannot_be_forged(make_fleet: MakeFleet) -> None:
    """A client that tries to run an operation on a worker runs an ordinary prediction."""
    instances = coded()
    fleet = await make_fleet(*instances, protect="off")
    frame = pack_frame(Frame((Part((), b"[1, 2]"),)))
    forged = (
        ("X-TS-Parity-Op", "finish"),
        ("x-ts-parity-secret", "s"),
        ("x-ts-parity", "deployed"),
        ("x-ts-parity-anything", "1"),
        ("Content-Type", FRAME_TYPE),
    )
    answer = await fleet.client.post("/predictions/linear", frame, forged)
    assert (answer.status, answer.json()["message"]) == (503, "Prediction failed")
    received = [request for instance in instances for request in instance.received]
    assert all(not name.lower().startswith("x-ts-parity") for request in received for name, _ in request.headers)


async def test_protections_are_not_for_clients(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    for path in ("/predictions/linear_parity", "/predictions/linear_parity/1.0", "/v1/models/linear_parity:predict"):
        answer = await fleet.client.post(path, b"[1, 2]")
        assert answer.status == 404
        assert answer.json() == {
            "code": 404,
            "type": "ModelNotFoundException",
            "message": "Model not found: linear_parity",
        }
    assert instances[2].received == []


async def test_unknown_models_are_torchserves_to_refuse(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    for path in ("/predictions/nobody", "/predictions/linear/9.9", "/nowhere"):
        assert (await fleet.client.post(path, b"x")).status == 404


async def test_a_header_that_is_not_utf8_goes_on_as_it_is(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    answer = await fleet.client.send(b"GET /ping HTTP/1.1\r\nHost: h\r\nX-Name: M\xfcller\r\n\r\n")
    assert answer.status == 200
    [received] = [request for request in instance.received if request.target == "/ping"]
    assert ("X-Name", "M\xfcller") in received.headers


async def test_an_endpoint_that_is_down_at_start_joins_when_it_is_up(make_fleet: MakeFleet) -> None:
    """The others serve meanwhile; status says who is missing and why."""
    late = FakeTorchServe(FakeModel())
    await late.start()
    ports = [int(url.rpartition(":")[2]) for url in (late.inference, late.management)]
    await late.stop()
    there = FakeTorchServe(FakeModel())
    await there.start()
    try:
        fleet = await make_fleet(given=(parse_endpoint(there.endpoint), parse_endpoint(late.endpoint)))
        assert (await fleet.post()).status == 200
        status = (await fleet.admin.get("/status")).json()
        assert [instance["up"] for instance in status["instances"]] == [True, False]
        assert any("gave no answer" in problem and "asked again" in problem for problem in status["problems"])
        await late.start(*ports)
        await until(lambda: len(fleet.proxy.plan.up) == 2, "the late instance to join")
        assert fleet.proxy.plan.problems == ()
    finally:
        await late.stop()
        await there.stop()


async def test_no_instance_at_all_is_said_and_not_hidden(make_fleet: MakeFleet) -> None:
    gone = FakeTorchServe(FakeModel())
    await gone.start()
    await gone.stop()
    fleet = await make_fleet(given=(parse_endpoint(gone.endpoint),))
    answer = await fleet.post()
    assert answer.status == 503
    assert "no instance can be reached" in answer.json()["message"]
    assert (await fleet.admin.get("/health")).status == 503


async def test_an_instance_that_goes_away_is_a_refused_connection_and_no_error(make_fleet: MakeFleet) -> None:
    """Predictions are sent again; what is passed through goes to another instance."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances)
    await instances[0].stop()
    assert [answer.status for answer in [await fleet.post() for _ in range(4)]] == [200] * 4
    assert [answer.status for answer in [await fleet.client.get("/ping") for _ in range(4)]] == [200] * 4
    await instances[1].stop()
    assert (await fleet.client.get("/ping")).status == 503


async def test_nothing_is_left_after_bad_input(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    bodies = (b"", b"x", b"[1]", b"{}", b"[1, 2]")
    await asyncio.gather(*(fleet.client.post("/predictions/linear", body) for body in bodies * 4))
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
