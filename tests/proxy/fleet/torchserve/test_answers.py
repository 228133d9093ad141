"""What TorchServe's status codes and errors mean: tables."""

from __future__ import annotations

import pytest

from ts_parity.engine import Failed, Rejected
from ts_parity.errors import error_body
from ts_parity.proxy.fleet.torchserve.answers import classify
from ts_parity.proxy.http.messages import Response

FRONTEND = (
    ("Cache-Control", "no-cache; no-store, must-revalidate, private"),
    ("Expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
)
INTERNAL, UNAVAILABLE = "InternalServerException", "ServiceUnavailableException"

CLASSES = [
    # status, type, message -> what it is
    (500, INTERNAL, "Worker died.", "failed"),
    (507, INTERNAL, "Worker died.", "failed"),
    (507, INTERNAL, "Out of resources", "failed"),
    (503, UNAVAILABLE, 'Model "m" has no worker to serve inference request.', "rejected"),
    (503, INTERNAL, "Prediction failed", "answer"),
    (503, INTERNAL, "Invalid model predict output", "answer"),
    (500, INTERNAL, "the handler's own PredictionException", "answer"),
    (400, "InvalidKeyException", "Token Authorization failed.", "answer"),
    (400, "BadRequestException", "Parameter model_name is required.", "answer"),
    (403, "IllegalArgumentException", "no", "answer"),
    (404, "ModelNotFoundException", "Model not found: m", "failed"),
    (404, "ModelVersionNotFoundException", "m", "failed"),
    (405, "MethodNotAllowedException", "m", "answer"),
    (408, "RequestTimeoutException", "m", "answer"),
    (409, "ConflictStatusException", "m", "answer"),
    (200, INTERNAL, "Worker died.", "answer"),
]


@pytest.mark.parametrize(("status", "kind", "message", "expected"), CLASSES)
def test_torchserves_status_codes(status: int, kind: str, message: str, expected: str):
    outcome = classify(Response(status, "", (), error_body(status, kind, message)))
    names = {type(None): "answer", Failed: "failed", Rejected: "rejected"}
    assert names[type(outcome)] == expected


@pytest.mark.parametrize("body", [b"", b"Worker died.", b"[]", b'"x"', b"\xff", b"{" * 100, b"x" * 100_000])
@pytest.mark.parametrize("status", [500, 503, 507, 413, 418])
def test_a_handlers_own_status_is_an_answer_whatever_its_body(status: int, body: bytes):
    assert classify(Response(status, "", FRONTEND, body)) is None


GATEWAYS = [
    (503, b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"),
    (502, b"<html><h1>502 Bad Gateway</h1></html>"),
    (504, b""),
    (500, b"<html>" + b"x" * 100_000),
    (503, b'{"code": 503, "message": "no healthy upstream"}'),
    (503, b'{"code": "503", "type": "ServiceUnavailableException", "message": "in quotes"}'),
    (502, b'{"code": 503, "type": "ServiceUnavailableException", "message": "of another status"}'),
    (503, b'{"code": 503, "type": "no_healthy_upstream", "message": ""}'),
    (503, b'{"code": 503, "type": ["ServiceUnavailableException"]}'),
    (503, b"[" * 60_000),
    (503, b'{"code": 503, "type": ' + b"[" * 60_000),
    (520, b"error code: 520"),
    (429, b"local_rate_limited"),
    (408, b"stream timeout"),
    (404, b"default backend - 404"),
    (302, b""),
]


@pytest.mark.parametrize(("status", "body"), GATEWAYS)
def test_what_torchserve_did_not_write_is_its_instances_failure(status: int, body: bytes):
    outcome = classify(Response(status, "", (("content-type", "text/plain"), ("server", "envoy")), body))
    assert isinstance(outcome, Failed)
    assert outcome.retry
    assert f"{status} from a gateway" in outcome.reason
    assert len(outcome.reason) < 300
    assert "\n" not in outcome.reason


@pytest.mark.parametrize("mark", FRONTEND)
@pytest.mark.parametrize("status", [302, 404, 429, 502, 503, 504])
def test_either_of_torchserves_own_headers_is_enough(status: int, mark: tuple[str, str]):
    assert classify(Response(status, "", (mark,), b"the handler's own")) is None


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 403, 413, 422])
def test_what_speaks_of_the_request_is_an_answer_whoever_wrote_it(status: int):
    assert classify(Response(status, "", (), b"")) is None
