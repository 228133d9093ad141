"""TensorFlow Serving: routes, what it tells, and what its answers say."""

from __future__ import annotations

import pytest

from tests.proxy.fleet.backends.test_open_inference import GIVEN, looked
from ts_parity.engine import Finding
from ts_parity.proxy.fleet.backends.tensorflow import TensorFlowBackend
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.serving.comparison import compare

BACKEND = TensorFlowBackend()


def post(path: str) -> Request:
    return Request("POST", path, (), b'{"instances": [[1.0]]}')


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/m:predict", Ask("m", None, ":predict")),
        ("/v1/models/m/versions/2:classify", Ask("m", "2", ":classify")),
        ("/v1/models/m/labels/canary:regress", Ask("m", "canary", ":regress")),
        ("/v1/models/m", None),
        ("/v1/models/m/metadata", None),
        ("/v1/models/m:explain", None),
    ],
)
def test_which_requests_are_predictions(path: str, expected: Ask | None):
    assert BACKEND.match(post(path)) == expected
    assert BACKEND.match(Request("GET", path, (), b"")) is None
    assert BACKEND.model_named(post(path)) == "m"
    assert (expected is not None and BACKEND.unprotected(expected, post(path)) is not None) is ("labels" in path)


def test_the_student_is_another_segment_and_the_method_stays():
    payload = QueryPayload(post("/v1/models/m/versions/2:classify?x=1"), Ask("m", "2", ":classify"))
    assert BACKEND.redirect(payload, Target("i", "small", "1", False)).target == "/v1/models/small:classify?x=1"
    sent = BACKEND.redirect(payload, Target("i", "small/3", "3", False))
    assert sent.target == "/v1/models/small/versions/3:classify?x=1"


def test_models_are_those_that_are_named_and_available():
    states = [{"version": "2", "state": "AVAILABLE"}, {"version": "10", "state": "AVAILABLE"}]
    states.append({"version": "11", "state": "LOADING"})
    answers = {"GET /v1/models/m": (200, {"model_version_status": states})}
    seen, _ = looked(BACKEND.probe(GIVEN, ["m", "none"], ()), answers)
    assert [(each.name, each.version, each.default) for each in seen.models] == [("m", "2", False), ("m", "10", True)]
    assert seen.ready
    assert looked(BACKEND.probe(GIVEN, [], ()), {})[0].ready, "it takes connections"
    assert not looked(BACKEND.probe(GIVEN, ["m"], ()), {"GET /v1/models/m": (503, b"")})[0].ready


def test_predictions_are_what_is_compared():
    def said(text: bytes) -> Response:
        return Response(200, "", (), text)

    read = BACKEND.meaning("m")
    own = said(b'{"predictions": [[0.1, 0.9]]}')
    for other, finding in [
        (b'{"predictions": [[0.10001, 0.9]], "warning": "x"}', Finding.AGREED),
        (b'{"predictions": [[0.9, 0.1]]}', Finding.DIFFERED),
        (b'{"outputs": [[0.1, 0.9]]}', Finding.DIFFERED),
        (b'{"rows": 1}', Finding.UNKNOWN),
    ]:
        assert compare(own, said(other), True, None, read).finding is finding
