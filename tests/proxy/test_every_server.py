"""Ten servers, as they were recorded: second copies and students before each, with one instance frozen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.proxy.conftest import MakeFleet
from ts_parity.config import ModelSettings, parse_endpoint
from ts_parity.testing.model_servers import TRAITS, FakeFunction, FakeModelServer

ROW = [1.0, 2.0]
_TENSOR = {"id": "q", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": ROW}]}
ASKED: dict[str, tuple[str, Any, str, str]] = {
    # protocol -> path, body, the model's name in the configuration, its student's
    "open-inference": ("/v2/models/deployed/infer", _TENSOR, "deployed", "small"),
    "rest": ("/predict", {"x": ROW}, "/predict", "/small"),
    "tensorflow": ("/v1/models/deployed:predict", {"instances": [ROW]}, "deployed", "small"),
    "openai": ("/v1/embeddings", {"model": "deployed", "input": "a text"}, "deployed", "small"),
    "sagemaker": ("/invocations", {"x": ROW}, "/invocations", "small"),
}
STUDENT = FakeFunction("small", ((1.0, 2.0), (3.0, 4.1)))


def asked(server: str) -> tuple[str, Any, str, str]:
    path, body, model, student = ASKED[TRAITS[server].protocol]
    return ("/deployed", body, "/deployed", student) if server == "ray" else (path, body, model, student)


@pytest.mark.parametrize("server", TRAITS)
async def test_a_frozen_instance_costs_nobody_an_answer(make_fleet: MakeFleet, server: str):
    path, body, model, _ = asked(server)
    models = (ModelSettings(model),) if server == "ray" else ()
    async with FakeModelServer(server, FakeFunction()) as one, FakeModelServer(server, FakeFunction()) as two:
        given = tuple(parse_endpoint(f"{each.url},kind={each.traits.protocol}") for each in (one, two))
        copies = {"copies": True, "hedge_after_s": 0.02, "extra_work": 1.0}
        fleet = await make_fleet(given=given, models=models, **copies)
        one.freeze()
        answers = [await fleet.client.post(path, json.dumps(body).encode()) for _ in range(3)]
        assert [(answer.status, answer.get("x-ts-parity") is not None) for answer in answers] == [(200, True)] * 3
        one.thaw()


@pytest.mark.parametrize("server", TRAITS)
async def test_a_late_query_has_the_students_answer(make_fleet: MakeFleet, server: str):
    path, body, model, student = asked(server)
    declared = ModelSettings(model, student=student, tolerance=1.0)
    async with (
        FakeModelServer(server, FakeFunction(), STUDENT) as one,
        FakeModelServer(server, FakeFunction(), STUDENT) as two,
    ):
        given = tuple(parse_endpoint(f"{each.url},kind={each.traits.protocol}") for each in (one, two))
        fleet = await make_fleet(given=given, models=(declared,), differing=1.0, launch="late", launch_after_s=0.01)
        own = await fleet.client.post(path, json.dumps(body).encode())
        assert (own.status, own.get("x-ts-parity")) == (200, "deployed")
        for attempt in range(200):  # until one goes where it waits
            frozen, other = (one, two) if attempt // 50 % 2 == 0 else (two, one)  # one that is thought slow is avoided
            other.thaw()
            frozen.freeze()
            answer = await fleet.client.post(path, json.dumps(body).encode())
            assert answer.status == 200
            if answer.get("x-ts-parity") == "reconstructed":
                break
        assert answer.get("x-ts-parity") == "reconstructed"
        assert answer.body != own.body
        frozen.thaw()
