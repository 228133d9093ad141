"""A proxy before servers that know nothing of ts_parity: what clients get, and what goes up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from tests.proxy.conftest import Fleet, MakeFleet, Raw, until
from tests.proxy.fleet.backends.servers import PlainServer, body, inferred, triton
from ts_parity.config import ModelSettings, parse_endpoint, parse_model
from ts_parity.testing import FakeModel, FakeTorchServe

INFER = "/v2/models/big/infer"
COPIES: dict[str, Any] = {"copies": True, "hedge_after_s": 0.02, "extra_work": 1.0}
STUDENT = (ModelSettings("big", student="small"),)


async def post(fleet: Fleet, path: str = INFER, data: bytes | None = None, **headers: str) -> Raw:
    sent = body([1.0, 2.0]) if data is None else data
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return await fleet.client.post(path, sent, (("Content-Type", "application/json"), *named))


def rest(**paths: Any) -> dict[str, Any]:
    return {f"POST /{name}": (200, said) for name, said in paths.items()}


def endpoints(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.proxy.scheduler.snapshot()["endpoints"]
    return found


# ---- with nothing but addresses and places ---------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "asked for"])
async def test_second_copies_need_nothing_but_addresses_and_places(make_fleet: MakeFleet, listed: bool):
    slow, quick = (PlainServer(triton("big", listed=listed), "kind=open-inference,places=4") for _ in range(2))
    slow.held.add(INFER)
    quick.held.add(INFER)
    fleet = await make_fleet(slow, quick, **COPIES)
    asked = asyncio.ensure_future(post(fleet))
    await until(lambda: len(slow.asked(f"POST {INFER}") + quick.asked(f"POST {INFER}")) == 2, "a second copy")
    quick.thaw()
    answer = await asked
    assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [0.1, 0.9])
    assert answer.get("x-ts-parity") in ("hedged", "deployed")
    assert [each.places for each in fleet.proxy.plan.fleet.instances] == [4, 4]


async def test_a_path_of_a_service_needs_no_declaration_if_it_is_predict(make_fleet: MakeFleet):
    one, two = (PlainServer(rest(predict={"output": 8}), "kind=rest") for _ in range(2))
    one.held.add("/predict")
    two.held.add("/predict")
    fleet = await make_fleet(one, two, **COPIES)
    asked = asyncio.ensure_future(post(fleet, "/predict"))
    await until(lambda: len(one.received + two.received) == 2, "a second copy")
    one.thaw()
    two.thaw()
    assert (await asked).json() == {"output": 8}
    assert fleet.proxy.plan.pools.keys() == {"/predict"}


async def test_what_goes_up_and_comes_down_is_what_was_sent(make_fleet: MakeFleet):
    async with PlainServer(triton("big")) as server:
        fleet = await make_fleet(given=(parse_endpoint(server.endpoint),))
        sent = json.dumps({"id": "mine", "inputs": []}).encode() + b"\0\1binary"
        answer = await post(fleet, f"{INFER}?x=1", sent, Inference_Header_Content_Length="30", traceparent="00-a-b-01")
        ((target, got, headers),) = server.asked("POST /v2/models")
        assert (target, got) == (f"POST {INFER}?x=1", sent)
        assert (headers["inference-header-content-length"], headers["traceparent"]) == ("30", "00-a-b-01")
        assert answer.json() == inferred("big", [0.1, 0.9])
        assert answer.get("x-ts-parity") == "deployed"
        for path in ("/v2/health/ready", "/v2", "/v2/models/big/config"):
            assert (await fleet.client.get(path)).status == 200, path
        assert (await fleet.client.get("/v2/models/other")).status == 404


# ---- students --------------------------------------------------------------------------------------------------------


async def student_answers(fleet: Fleet, late: list[PlainServer], path: str = INFER) -> Raw:
    for server in late:
        server.held.add(path)
    return await post(fleet, path)


async def test_a_late_query_is_answered_by_another_segment_of_the_path(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big", "small", small=[0.4, 0.6]), "kind=open-inference") for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, differing=1.0, launch="late", launch_after_s=0.01)
    answer = await student_answers(fleet, servers)
    assert (answer.status, answer.get("x-ts-parity")) == (200, "reconstructed")
    assert answer.json() == inferred("small", [0.4, 0.6])
    for server in servers:
        server.thaw()


async def test_a_late_query_is_answered_by_another_path(make_fleet: MakeFleet):
    servers = [PlainServer(rest(predict={"a": 1}, student={"a": 2}), "kind=rest,student_places=1") for _ in range(2)]
    models = (parse_model("/predict,student=/student"),)
    fleet = await make_fleet(*servers, models=models, differing=1.0, launch="late", launch_after_s=0.01)
    answer = await student_answers(fleet, servers, "/predict")
    assert (answer.json(), answer.get("x-ts-parity")) == ({"a": 2}, "reconstructed")
    for server in servers:
        server.thaw()


async def test_a_late_query_is_answered_at_another_address(make_fleet: MakeFleet):
    deployed, student = (
        PlainServer(rest(predict={"a": 1}), "kind=rest"),
        PlainServer(rest(predict={"a": 2}), "kind=rest"),
    )
    async with deployed, student:
        models = (ModelSettings("/predict", student=f"{student.inference}/predict"),)
        given = tuple(parse_endpoint(each.endpoint) for each in (deployed, student))
        fleet = await make_fleet(given=given, models=models, differing=1.0, launch="late", launch_after_s=0.01)
        answer = await student_answers(fleet, [deployed], "/predict")
        assert (answer.json(), answer.get("x-ts-parity")) == ({"a": 2}, "reconstructed")
        assert student.received[-1][2]["host"] == student.name
        deployed.thaw()
        assert (await post(fleet, "/predict")).json() == {"a": 1}
        assert fleet.proxy.plan.hosts["/predict"] == (deployed.name,)


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_students_error_is_never_shown(make_fleet: MakeFleet, status: int):
    answers = triton("big", "small")
    answers["POST /v2/models/small/infer"] = (status, {"error": "of the student"})
    servers = [PlainServer(dict(answers)) for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, differing=1.0, launch="late", launch_after_s=0.01)
    for server in servers:
        server.held.add(INFER)
    asked = asyncio.ensure_future(post(fleet))
    await until(lambda: any(server.asked("POST /v2/models/small") for server in servers), "the student")
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 1, "its answer")
    for server in servers:
        server.thaw()
    answer = await asked
    assert (answer.json(), answer.get("x-ts-parity")) == (inferred("big", [0.1, 0.9]), "deployed")


@pytest.mark.parametrize(("more", "apart"), [("student_places=3", 3), ("places=2", 1), ("", 1)])
async def test_places_of_a_student_are_apart_where_the_server_has_them_apart(
    make_fleet: MakeFleet, more: str, apart: int
):
    """Triton tells them; where one does not, they are declared, or shared."""
    server = PlainServer(triton("big", "small"), f"kind=open-inference,{more}".rstrip(","))
    fleet = await make_fleet(server, models=STUDENT)
    (student,) = [each for each in fleet.proxy.plan.fleet.endpoints if each.row is not None]
    assert (student.apart, student.places) == (True, apart)
    shared = PlainServer(rest(predict=1, student=1), "kind=rest,places=2")
    fleet = await make_fleet(shared, models=(parse_model("/predict,student=/student"),))
    (student,) = [each for each in fleet.proxy.plan.fleet.endpoints if each.row is not None]
    assert (student.apart, student.places) == (False, 2)


async def test_a_student_can_still_be_asked_by_itself(make_fleet: MakeFleet):
    fleet = await make_fleet(PlainServer(triton("big", "small", small=[0.4, 0.6])), models=STUDENT)
    answer = await post(fleet, "/v2/models/small/infer")
    assert answer.json() == inferred("small", [0.4, 0.6])
    assert answer.get("x-ts-parity") is None


async def test_a_student_that_says_something_else_is_out_after_its_trial(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big", "small", small=[0.9, 0.1])) for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, proved=False, differing=1.0)
    for _ in range(60):
        assert (await post(fleet)).json() == inferred("big", [0.1, 0.9])
    trust = fleet.proxy.status()["pools"]["big/1"]["trust"]
    assert trust["state"] == "out", trust


async def test_a_student_that_agrees_is_in_use_after_its_trial(make_fleet: MakeFleet):
    """Ids, names of models, and the last digits do not count."""
    servers = [PlainServer(triton("big", "small", small=[0.2, 0.8])) for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, proved=False, differing=1.0)
    for _ in range(60):
        await post(fleet)
    assert fleet.proxy.status()["pools"]["big/1"]["trust"]["state"] == "in use"


# ---- what may not be repeated ----------------------------------------------------------------------------------------


async def test_a_sequence_stays_on_one_instance_and_the_reason_is_told(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big")) for _ in range(3)]
    fleet = await make_fleet(*servers, **COPIES)
    for _ in range(5):
        answer = await post(fleet, data=body([1.0], parameters={"sequence_id": 7}))
        assert (answer.status, answer.get("x-ts-parity")) == (200, None)
    assert sorted(len(server.asked(f"POST {INFER}")) for server in servers) == [0, 0, 5]
    page = (await fleet.admin.get("/metrics")).body.decode()
    assert 'ts_parity_unrepeatable_total{kind="open-inference",reason="it is one of a sequence"} 5' in page


async def test_generation_and_decoupled_models_are_passed_through(make_fleet: MakeFleet):
    answers = triton("big", "talks")
    answers["GET /v2/models/talks/config"] = (200, {"model_transaction_policy": {"decoupled": True}})
    answers["POST /v2/models/talks/generate"] = (200, {"text": "x"})
    fleet = await make_fleet(PlainServer(answers))
    for path in ("/v2/models/talks/infer", "/v2/models/talks/generate"):
        answer = await post(fleet, path)
        assert (answer.status, answer.get("x-ts-parity")) == (200, None)
    assert fleet.proxy.plan.pools.keys() == {"big/1"}
    assert "decoupled" in fleet.proxy.plan.passed["talks"]


# ---- errors ----------------------------------------------------------------------------------------------------------


async def test_one_500_is_tried_elsewhere_and_the_good_answer_is_given(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big")) for _ in range(2)]
    fleet = await make_fleet(*servers)
    for server in servers:
        server.script.append((500, {"error": "of one"}))
    servers[1].script.clear()
    answers = [await post(fleet) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert sum(len(server.asked(f"POST {INFER}")) for server in servers) == 3


async def test_two_500s_are_the_clients_and_nobody_is_marked(make_fleet: MakeFleet):
    answers = triton("big")
    good = inferred("big", [1.0])
    answers[f"POST {INFER}"] = lambda _, data: (500, {"error": "bad"}) if b"bad" in data else (200, good)
    servers = [PlainServer(dict(answers)) for _ in range(2)]
    fleet = await make_fleet(*servers, retry_ratio=1.0)
    for _ in range(20):
        answer = await post(fleet, data=b'{"bad": 1}')
        assert (answer.status, answer.json()) == (500, {"error": "bad"})
        assert (await post(fleet)).status == 200
    assert {each["health"] for each in endpoints(fleet).values()} == {"in"}


async def test_an_instance_that_stands_alone_with_its_500s_is_ejected(make_fleet: MakeFleet):
    ill, well, other = (PlainServer(triton("big")) for _ in range(3))
    ill.answers[f"POST {INFER}"] = (500, {"error": "a frozen stub"})
    fleet = await make_fleet(ill, well, other, retry_ratio=1.0)
    for _ in range(20):
        assert (await post(fleet)).status == 200
    states = {name.partition("/")[0]: each["health"] for name, each in endpoints(fleet).items()}
    assert (states.pop(ill.name), set(states.values())) == ("out", {"in"})


@pytest.mark.parametrize("status", [429, 503])
async def test_a_full_instance_costs_nothing(make_fleet: MakeFleet, status: int):
    servers = [PlainServer(triton("big")) for _ in range(2)]
    fleet = await make_fleet(*servers, retry_ratio=0.0)
    servers[0].script.append((status, {"error": "full"}))
    assert [(await post(fleet)).status for _ in range(4)] == [200] * 4
    assert {each["health"] for each in endpoints(fleet).values()} == {"in"}


async def test_other_4xx_are_passed_on_at_once_and_held_against_nobody(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big")) for _ in range(2)]
    for server in servers:
        server.answers[f"POST {INFER}"] = (400, {"error": "batch-size must be <= 8"})
    fleet = await make_fleet(*servers, retry_ratio=1.0)
    for number in range(1, 21):
        assert (await post(fleet)).status == 400
        assert sum(len(server.asked(f"POST {INFER}")) for server in servers) == number
    assert {each["health"] for each in endpoints(fleet).values()} == {"in"}


async def test_a_connection_is_not_used_again_after_a_server_error(make_fleet: MakeFleet):
    """KServe's server resets it then without having said so."""
    async with PlainServer(triton("big")) as server:
        fleet = await make_fleet(given=(parse_endpoint(server.endpoint),))
        server.connections.clear()
        await post(fleet)
        await post(fleet)
        assert len(server.connections) == 1
        server.script.append((500, {"error": "no id"}))
        assert (await post(fleet)).status == 500
        await post(fleet)
        assert len(server.connections) == 2


async def test_a_short_chunked_answer_can_be_compared_and_protected(make_fleet: MakeFleet):
    """Ray Serve chunks 19 bytes."""

    async def chunked(http: web.Request, _: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": http.headers.get("X-Type", "application/json")})
        response.enable_chunked_encoding()
        await response.prepare(http)
        await response.write(b'{"probs":')
        await response.write(b"[8.0]}")
        return response

    server = PlainServer(rest(student={"probs": [8.0]}), "kind=rest")
    fleet = await make_fleet(server, models=(parse_model("/predict,student=/student"),))
    server.answers["POST /predict"] = chunked
    answer = await post(fleet, "/predict")
    assert (answer.json(), answer.chunks) == ({"probs": [8.0]}, [])
    assert fleet.proxy.plan.pools["/predict"].code is not None
    streamed = await post(fleet, "/predict", X_Type="text/event-stream")
    assert (streamed.body, len(streamed.chunks)) == (b'{"probs":[8.0]}', 2)


async def test_errors_of_the_proxy_have_the_shape_of_the_server(make_fleet: MakeFleet):
    server = PlainServer(triton("big"))
    fleet = await make_fleet(server)
    await server.stop()
    await fleet.proxy.discover()
    answer = await post(fleet)
    assert (answer.status, answer.json().keys()) == (503, {"error"})
    refused = await post(fleet, x_ts_parity_deadline_ms="soon")
    assert (refused.status, refused.json().keys()) == (400, {"error"})


# ---- readiness -------------------------------------------------------------------------------------------------------


async def test_readiness_alone_takes_nobody_out_and_a_refused_connection_does(make_fleet: MakeFleet):
    server, other = PlainServer(triton("big")), PlainServer(triton("big"))
    fleet = await make_fleet(server, other, describe_timeout_s=0.2)
    server.answers["GET /v2/health/ready"] = (400, b"")
    server.answers["GET /v2/models/big/ready"] = (400, b"")
    await fleet.proxy.discover()
    assert fleet.proxy.plan.up == (server.name, other.name)
    server.held.add("/v2/health/ready")  # a prediction holds its event loop
    await fleet.proxy.discover()
    assert fleet.proxy.plan.up == (server.name, other.name)
    assert "used as last seen" in fleet.proxy.plan.problems[0]
    await server.stop()
    await fleet.proxy.discover()
    assert fleet.proxy.plan.up == (other.name,)


async def test_an_instance_comes_in_with_its_first_good_answer(make_fleet: MakeFleet):
    server = PlainServer(triton("big"))
    server.answers = {"GET /v2/health/ready": (400, b"")}
    fleet = await make_fleet(server)
    assert fleet.proxy.plan.up == ()
    server.answers = triton("big")
    await fleet.proxy.discover()
    assert (await post(fleet)).status == 200


async def test_a_model_that_is_gone_is_looked_for_elsewhere(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big")) for _ in range(2)]
    fleet = await make_fleet(*servers, retry_ratio=1.0)
    servers[0].answers = triton("other")
    assert [(await post(fleet)).status for _ in range(4)] == [200] * 4
    await until(lambda: fleet.proxy.plan.hosts["big"] == (servers[1].name,), "another look")


# ---- several kinds ---------------------------------------------------------------------------------------------------


async def test_instances_of_several_kinds_stand_behind_one_proxy(make_fleet: MakeFleet):
    """Models of one name do not meet, and what is no prediction goes to those that speak that way."""
    theirs, oip = FakeTorchServe(FakeModel("big", "1")), PlainServer(triton("big"))
    service = PlainServer(rest(predict={"output": 8}), "kind=rest")
    fleet = await make_fleet(theirs, oip, service)
    assert (await fleet.post("/predictions/big")).json() == [5.0, 11.0]
    assert (await post(fleet)).json() == inferred("big", [0.1, 0.9])
    assert (await post(fleet, "/predict")).json() == {"output": 8}
    assert fleet.proxy.plan.pools.keys() == {"big/1", "open-inference:big/1", "rest:/predict"}
    assert (await fleet.client.get("/v2/models/big/config")).status == 200
    assert (await fleet.client.get("/v2/health/ready")).status == 200
    assert (await post(fleet, "/v2/models/none/infer")).status == 404
    table = (await fleet.admin.get("/status")).json()
    assert [each["kind"] for each in table["instances"]] == ["torchserve", "open-inference", "rest"]
