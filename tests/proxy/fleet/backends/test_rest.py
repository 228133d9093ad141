"""REST: paths that are predictions, where a student is, and what of an answer counts."""

from __future__ import annotations

import pytest

from tests.proxy.fleet.backends.test_open_inference import looked
from ts_parity.config import ModelSettings, parse_endpoint
from ts_parity.proxy.fleet.backends.rest import RestBackend, picked
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

GIVEN = parse_endpoint("http://a:1,kind=rest")


def post(target: str, **headers: str) -> Request:
    return Request("POST", target, tuple(headers.items()), b"{}")


def test_declared_paths_are_predictions_and_predict_where_none_is_declared():
    assert RestBackend().match(post("/predict?x=1")) == Ask("/predict")
    assert RestBackend().match(Request("GET", "/predict", (), b"")) is None
    assert RestBackend().match(post("/predict/")) is None
    declared = RestBackend([ModelSettings("/classify")])
    assert declared.match(post("/predict")) is None
    assert declared.match(post("/classify")) == Ask("/classify")


def test_a_student_is_another_path():
    payload = QueryPayload(post("/predict?x=1"), Ask("/predict"))
    assert RestBackend().redirect(payload, Target("i", "/student", "", False)).target == "/student?x=1"


def test_a_client_that_asks_for_a_stream_is_passed_through():
    asked = RestBackend().unprotected(Ask("/predict"), post("/predict", Accept="text/event-stream"))
    assert asked is not None
    assert RestBackend().unprotected(Ask("/predict"), post("/predict", Accept="*/*")) is None


def test_an_instance_is_ready_if_it_takes_a_connection_or_says_so():
    seen, asked = looked(RestBackend().probe(GIVEN, [], ()), {})
    assert (seen.ready, [each.name for each in seen.models], asked) == (True, ["/predict"], [""])
    given = parse_endpoint("http://a:1,kind=rest,ready=/health")
    assert looked(RestBackend().probe(given, ["/p"], ()), {"GET /health": (503, b"not ready")})[0].ready is False
    seen, _ = looked(RestBackend().probe(given, ["/p"], ()), {"GET /health": (200, b"ok")})
    assert (seen.ready, [each.name for each in seen.models]) == (True, ["/p"])


def test_pointers_say_what_counts_in_an_answer():
    body = b'{"output": [1, {"a/b": 2}], "id": "x"}'
    assert picked(body, ["/output/0", "/output/1/a~1b"]) == [1, 2]
    for pointer in ("/nothing", "/output/2", "/output/x"):
        with pytest.raises(ValueError, match="there is no"):
            picked(body, [pointer])
    read = RestBackend([ModelSettings("/p", compare=("/output",))]).meaning("/p")
    assert read is not None
    assert read(Response(200, "", (), body)) == [[1, {"a/b": 2}]]
    assert RestBackend().meaning("/predict") is None
