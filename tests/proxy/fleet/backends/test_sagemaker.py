"""SageMaker's containers: one model without a name, or several with one."""

from __future__ import annotations

import pytest

from tests.proxy.fleet.backends.test_open_inference import GIVEN, looked
from ts_parity.config import ModelSettings
from ts_parity.engine import Blame
from ts_parity.proxy.fleet.backends.sagemaker import SageMakerBackend
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

BACKEND = SageMakerBackend()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/invocations?x=1", Ask("/invocations")),
        ("POST", "/models/my%20m/invoke", Ask("my m")),
        ("POST", "/models", None),
        ("GET", "/ping", None),
        ("POST", "/other", None),
    ],
)
def test_which_requests_are_predictions(method: str, path: str, expected: Ask | None):
    request = Request(method, path, (), b"")
    assert BACKEND.match(request) == expected
    assert BACKEND.speaks(request) is (path != "/other")


def test_the_student_is_another_path_or_another_name():
    payload = QueryPayload(Request("POST", "/invocations", (), b"x"), Ask("/invocations"))
    assert BACKEND.redirect(payload, Target("i", "/student", "", False)).target == "/student"
    assert BACKEND.redirect(payload, Target("i", "small", "", False)).target == "/models/small/invoke"


def test_a_container_is_ready_when_its_ping_says_so_and_may_list_models():
    seen, _ = looked(BACKEND.probe(GIVEN, ["/student"], ()), {"GET /ping": (200, b"")})
    assert (seen.ready, [each.name for each in seen.models]) == (True, ["/invocations", "/student"])
    answers = {"GET /ping": (200, b""), "GET /models": (200, {"models": [{"modelName": "m"}]})}
    assert [each.name for each in looked(BACKEND.probe(GIVEN, [], ()), answers)[0].models] == ["/invocations", "m"]
    assert not looked(BACKEND.probe(GIVEN, [], ()), {"GET /ping": (503, b"")})[0].ready


def test_a_404_is_the_containers_own_word():
    assert BACKEND.read_prediction(Response(404, "", (), b""))[0].blame is Blame.CLIENTS


def test_its_models_are_named_or_the_one_that_is_not():
    models = [ModelSettings("/invocations"), ModelSettings("m"), ModelSettings("/predict")]
    assert SageMakerBackend(models).models.keys() == {"/invocations", "m"}
