"""OpenAI-style servers: the model in the body, one string replaced in place, and what its answers say."""

from __future__ import annotations

import json

import pytest

from tests.proxy.fleet.backends.test_open_inference import GIVEN, looked
from ts_parity.config import ModelSettings
from ts_parity.engine import Failed, Finding
from ts_parity.errors import Unavailable
from ts_parity.proxy.fleet.backends.openai import OpenAiBackend, string_in
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.serving.comparison import compare

BACKEND = OpenAiBackend()
BODY = b'{"input": "a \\"model\\": b", "model" : "big", "user": {"model": "x"}}'


def post(path: str, body: bytes = BODY, **headers: str) -> Request:
    return Request("POST", path, (("Content-Length", str(len(body))), *headers.items()), body)


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/embeddings", BODY, "big"),
        ("/v3/embeddings", BODY, "big"),
        ("/classify", BODY, "big"),
        ("/v2/rerank", BODY, "big"),
        ("/v1/completions", BODY, None),
        ("/v1/chat/completions", BODY, None),
        ("/v1/embeddings", b"{}", None),
        ("/v1/embeddings", b"not JSON", None),
        ("/v1/embeddings", b'{"model": 1}', None),
        ("/v1/embeddings", b'{"model": "a", "model": "b"}', None),
        ("/v1/embeddings", b'{"model": "big", "input": "' + b"x" * (1 << 20) + b'"}', None),
    ],
)
def test_the_body_tells_the_model_and_generation_is_no_prediction(path: str, body: bytes, model: str | None):
    assert BACKEND.match(post(path, body)) == (None if model is None else Ask(model, None, path))


@pytest.mark.parametrize(
    ("said", "lacks"),
    [(b'{"error": {"message": "The model `big` does not exist."}}', True), (b'{"detail":"Not Found"}', False)],
)
def test_a_route_that_is_not_there_is_no_model_that_is_not_there(said: bytes, lacks: bool):
    """Any client can ask for one; then nothing is held against the instance."""
    outcome, _ = BACKEND.read_prediction(Response(404, "", (), said))
    assert isinstance(outcome, Failed) is lacks


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b'{"model":"big"}',
        b'{"a":[{"model":"x"}],"model":"b\\u00fcg"}',
        b'{"a":"\\\\","model":"big","z":1e5}',
        b'{"mod\\u0065l":"big"}',
    ],
)
def test_one_string_is_replaced_in_place(body: bytes):
    """Everything else stays as the client wrote it."""
    where = string_in(body, b"model")
    assert where is not None
    payload = QueryPayload(post("/v1/embeddings", body), Ask("big", None, "/v1/embeddings"))
    sent = BACKEND.redirect(payload, Target("i", 'sm"all', "", False))
    assert sent.body == body[: where[0]] + b'"sm\\"all"' + body[where[1] :]
    assert json.loads(sent.body) == {**json.loads(body), "model": 'sm"all'}
    assert (sent.header("content-length"), sent.target) == (str(len(sent.body)), "/v1/embeddings")


def test_streams_are_passed_through():
    assert BACKEND.unprotected(Ask("m"), post("/v1/embeddings", b'{"model": "m", "stream": true}')) is not None
    assert BACKEND.unprotected(Ask("m"), post("/v1/embeddings", b'{"model": "m", "stream": false}')) is None
    assert BACKEND.unprotected(Ask("m"), post("/v1/embeddings", Accept="text/event-stream")) is not None


@pytest.mark.parametrize(
    ("declared", "used"),
    [({}, ""), ({"exact": True}, "small"), ({"tolerance": 0.1}, "small"), ({"agreement": 0.99}, "")],
)
def test_a_student_in_another_space_is_not_used(declared: dict[str, float], used: str):
    backend = OpenAiBackend([ModelSettings("big", student="small", **declared)])
    assert backend.models["big"].student == used


def test_models_are_listed_or_named():
    answers = {"GET /v1/models": (200, {"object": "list", "data": [{"id": "big"}]})}
    assert [each.name for each in looked(BACKEND.probe(GIVEN, ["x"], ()), answers)[0].models] == ["big"]
    assert [each.name for each in looked(BACKEND.probe(GIVEN, ["x"], ()), {})[0].models] == ["x"]


def test_answers_are_compared_without_what_is_of_the_run():
    def said(model: str, *rows: tuple[int, list[float]]) -> Response:
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in rows]
        return Response(200, "", (), json.dumps({"id": model, "model": model, "data": data, "usage": {}}).encode())

    read = BACKEND.meaning("big")
    own = said("big", (0, [0.1, 0.9]), (1, [0.5, 0.5]))
    assert compare(own, said("b", (1, [0.5, 0.5]), (0, [0.1, 0.9])), True, None, read).finding is Finding.AGREED
    assert compare(own, said("b", (0, [0.5, 0.5]), (1, [0.1, 0.9])), True, None, read).finding is Finding.DIFFERED
    assert compare(own, said("b", (0, [0.2, 0.8]), (1, [0.5, 0.5])), False, 0.2, read).finding is Finding.AGREED


def test_an_error_of_the_proxy_looks_like_one_of_the_server():
    told = json.loads(BACKEND.error(Unavailable("too many wait")).body)
    assert told["error"]["message"] == "too many wait"
