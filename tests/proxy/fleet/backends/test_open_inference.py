"""The Open Inference Protocol: routes, what a server tells of itself, and what its answers say."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from tests.proxy.fleet.backends.servers import body, inferred, triton
from ts_parity.config import parse_endpoint
from ts_parity.engine import Finding
from ts_parity.proxy.fleet.backends.open_inference import OpenInferenceBackend, outputs_of, places_of
from ts_parity.proxy.fleet.backends.probing import Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.serving.comparison import compare

BACKEND = OpenInferenceBackend()
GIVEN = parse_endpoint("http://a:1,kind=open-inference")


def looked(probe: Probe, answers: dict[str, Any]) -> tuple[Seen, list[str]]:
    """Play a server that answers by `answers`, else 404. -> what was seen, and what was asked ("": a connection)."""
    asked: list[str] = []
    request = next(probe)
    while True:
        asked.append("" if request is None else f"{request.method} {request.target}")
        status, said = answers.get(asked[-1], (404, b"")) if asked[-1] else (200, b"")
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        try:
            request = probe.send(Response(status, "", (), data))
        except StopIteration as stop:
            return stop.value, asked


def look(answers: dict[str, Any], names: tuple[str, ...] = (), known: tuple[str, ...] = ()) -> Seen:
    return looked(BACKEND.probe(GIVEN, names, known), answers)[0]


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("POST", "/v2/models/m/infer", Ask("m")),
        ("POST", "/v2/models/m/infer?x=1", Ask("m")),
        ("POST", "/v2/models/my%20m/versions/2/infer", Ask("my m", "2")),
        ("GET", "/v2/models/m/infer", None),
        ("POST", "/v2/models/m/generate", None),
        ("POST", "/v2/models/m/generate_stream", None),
        ("POST", "/v2/models/m/infer_stream", None),
        ("POST", "/v2/models//infer", None),
        ("POST", "/v2/repository/models/m/load", None),
        ("POST", "/v2/models/" + "m" * 300 + "/infer", Ask("m" * 300)),
    ],
)
def test_which_requests_are_predictions(method: str, target: str, expected: Ask | None):
    request = Request(method, target, (), b"{}")
    assert BACKEND.match(request) == expected
    assert BACKEND.speaks(request)


def test_what_other_requests_are_about():
    for target in ("/v2/models/my%20m", "/v2/models/my%20m/ready", "/v2/repository/models/my%20m/load"):
        assert BACKEND.model_named(Request("GET", target, (), b"")) == "my m"
    assert BACKEND.model_named(Request("GET", "/v2/health/ready", (), b"")) is None
    assert not BACKEND.speaks(Request("GET", "/v1/models", (), b""))


def test_the_student_is_another_segment_of_the_path_and_another_version():
    payload = QueryPayload(Request("POST", "/v2/models/m/versions/3/infer", (), b"{}"), Ask("m", "3"))
    assert BACKEND.redirect(payload, Target("i", "s m", "1", False)).target == "/v2/models/s%20m/infer"
    assert BACKEND.redirect(payload, Target("i", "small/2", "2", False)).target == "/v2/models/small/versions/2/infer"


def test_sequences_and_shared_memory_are_passed_through():
    def why(data: bytes, *headers: tuple[str, str]) -> Any:
        return BACKEND.unprotected(Ask("m"), Request("POST", "/v2/models/m/infer", headers, data))

    assert why(body([1.0])) is None
    assert why(body([1.0], parameters={"sequence_id": 0})) is None, "0 is no sequence"
    first = why(body([1.0], parameters={"sequence_id": 7, "sequence_start": True}))
    assert first.stays_with == why(body([2.0], parameters={"sequence_id": 7})).stays_with != ""
    assert first.stays_with != why(body([1.0], parameters={"sequence_id": "other"})).stays_with
    shared = {"inputs": [{"name": "x", "parameters": {"shared_memory_region": "r"}}]}
    assert why(json.dumps(shared).encode()).stays_with == ""
    head = body([1.0], parameters={"sequence_id": 9})
    assert why(head + b"\0raw", ("Inference-Header-Content-Length", str(len(head)))).stays_with == "m 9"


def test_triton_tells_its_models_places_and_shapes():
    answers = triton("big", "small")
    config = {"instance_group": [{"count": 2}], "dynamic_batching": {}, "max_batch_size": 4}
    config = {"instance_group": [{"count": 2}], "dynamic_batching": {}, "max_batch_size": 4}
    answers["GET /v2/models/big/config"] = (200, config)
    seen = look(answers)
    assert [(each.name, each.version, each.places) for each in seen.models] == [("big", "1", 8), ("small", "1", 1)]
    assert seen.models[0].takes == seen.models[1].takes != ""


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"instance_group": [{"count": 2}, {"count": 1}]}, 3),
        ({"instance_group": [{"count": 2, "gpus": [0, 1]}]}, 4),
        ({"instance_group": [{"count": 1}], "max_batch_size": 8}, 1),
        ({"instance_group": [{"count": 1}], "max_batch_size": 8, "dynamic_batching": {}}, 8),
        ({}, None),
        ({"instance_group": [{"kind": "KIND_CPU"}]}, None),
        ({"instance_group": "x"}, None),
    ],
)
def test_places_in_a_triton_config(config: dict[str, Any], places: int | None):
    assert places_of(config) == places


def test_models_that_answer_otherwise_are_passed_through():
    answers = triton("talks", "remembers")
    answers["GET /v2/models/talks/config"] = (200, {"model_transaction_policy": {"decoupled": True}})
    answers["GET /v2/models/remembers/config"] = (200, {"sequence_batching": {}})
    assert ["decoupled" in each.passed or "sequence" in each.passed for each in look(answers).models] == [True, True]
    assert look(triton("m")).models[0].passed == ""


def test_a_server_that_lists_nothing_is_asked_for_the_names_there_are():
    answers = triton("declared", listed=False)
    assert look(answers).models == ()
    assert [each.name for each in look(answers, ("declared", "other")).models] == ["declared"]


def test_kserve_lists_its_models_in_its_own_way():
    answers = {
        "GET /v2/health/ready": (200, {"ready": True}),
        "GET /v2": (200, {"name": "kserve", "version": "0.21.0", "extensions": []}),
        "GET /v2/models": (200, {"models": ["big"]}),
        "GET /v2/models/big": (200, {"name": "big", "versions": None, "platform": "", "inputs": [], "outputs": []}),
        "GET /v2/models/big/ready": (200, {"name": "big", "ready": True}),
    }
    (hosted,) = look(answers).models
    assert (hosted.name, hosted.version, hosted.places, hosted.takes) == ("big", "", None, "")


def test_a_model_comes_in_when_it_is_ready_and_stays_whatever_its_readiness_says():
    answers = triton("m")
    answers["POST /v2/repository/index"] = (200, [{"name": "m", "version": "1", "state": "UNAVAILABLE"}])
    answers["GET /v2/models/m/ready"] = (400, b"")
    assert look(answers).models == ()
    assert [each.name for each in look(answers, known=("m",)).models] == ["m"]
    del answers["GET /v2/models/m"]
    assert look(answers, known=("m",)).models == (), "it is gone"


def test_what_is_no_such_server_is_told():
    seen = look({})
    assert not seen.ready
    assert "is it an Open Inference server?" in seen.problem


def response(said: dict[str, Any], raw: bytes = b"") -> Response:
    head = json.dumps(said).encode()
    headers = (("Inference-Header-Content-Length", str(len(head))),) if raw else ()
    return Response(200, "", headers, head + raw)


def test_outputs_are_read_by_name_and_shape_in_either_form():
    said = {
        "id": "q",
        "model_name": "m",
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
    }
    assert outputs_of(response(said)) == {"p": [[1.0, 2.0], [3.0, 4.0]]}
    raw = struct.pack("<4f", 1, 2, 3, 4) + struct.pack("<I", 3) + b"cat"
    binary = {
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
            {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
        ]
    }
    assert outputs_of(response(binary, raw)) == {"p": [[1.0, 2.0], [3.0, 4.0]], "label": ["cat"]}
    brain = {"outputs": [{"name": "p", "datatype": "BF16", "shape": [1], "parameters": {"binary_data_size": 2}}]}
    assert outputs_of(response(brain, struct.pack("<f", 1.5)[2:])) == {"p": [1.5]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"outputs": []},
        {"outputs": [{"name": "p"}]},
        {"outputs": [{"name": "p", "datatype": "FP99", "shape": [1], "data": [1]}]},
        {"outputs": [{"name": "p", "datatype": "FP32", "shape": [3], "data": [1]}]},
        {"outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]},
    ],
)
def test_what_cannot_be_read_is_not_compared(said: dict[str, Any]):
    with pytest.raises(ValueError):  # noqa: PT011
        outputs_of(response(said))
    assert compare(response(said), response(said), True, None, outputs_of).finding is Finding.UNKNOWN


def test_answers_are_compared_by_their_outputs_alone():
    own = response(inferred("m", [0.1, 0.9], id="a", model_version="1"))
    same = response(inferred("m", [0.10001, 0.9], id="b"))
    other = response(inferred("small", [0.4, 0.6]))
    flipped = response(inferred("small", [0.6, 0.4]))
    found = [
        compare(own, each, lossless, None, outputs_of).finding
        for each, lossless in [(same, True), (other, True), (other, False), (flipped, False)]
    ]
    assert found == [Finding.AGREED, Finding.DIFFERED, Finding.AGREED, Finding.DIFFERED]
    assert compare(own, other, False, 0.31, outputs_of).finding is Finding.AGREED
    assert compare(own, other, False, 0.29, outputs_of).finding is Finding.DIFFERED
    raw = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}
    assert compare(own, response(raw, struct.pack("<2f", 0.1, 0.9)), True, None, outputs_of).finding is Finding.AGREED
