"""Bodies that hide what they are, and answers that cannot be read as they stand."""

from __future__ import annotations

import asyncio
import gzip
import json
import time

import pytest

from tests.proxy.conftest import Fleet, MakeFleet
from tests.proxy.fleet.backends.servers import PlainServer
from ts_parity.config import ModelSettings
from ts_parity.proxy.fleet.backends import probing
from ts_parity.proxy.fleet.backends.open_inference import OpenInferenceBackend, outputs_of
from ts_parity.proxy.fleet.backends.openai import OpenAiBackend, string_in
from ts_parity.proxy.fleet.backends.plain import MOST_JSON
from ts_parity.proxy.fleet.backends.rest import RestBackend
from ts_parity.proxy.fleet.backends.sagemaker import SageMakerBackend
from ts_parity.proxy.fleet.backends.tensorflow import TensorFlowBackend
from ts_parity.proxy.fleet.payloads import Ask
from ts_parity.proxy.http.messages import Request, Response

SEQUENCE = b'{"parameters": {"sequence_id": 7}, "inputs": []}'
PADDED = b'{"parameters": {"sequence_id": 7}, "inputs": ["' + b"x" * MOST_JSON + b'"]}'


def posted(path: str, body: bytes, **headers: str) -> Request:
    given = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request("POST", path, given, body)


def zipped(told: object) -> Response:
    headers = (("Content-Type", "application/json"), ("Content-Encoding", "gzip"))
    return Response(200, "OK", headers, gzip.compress(json.dumps(told).encode()))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (SEQUENCE, {}),
        (SEQUENCE.replace(b"sequence_id", b"sequence\\u005fid"), {}),
        (PADDED, {}),
        (gzip.compress(SEQUENCE), {"Content_Encoding": "gzip"}),
        (b'{"inputs": [{"parameters": {"shared_memory\\u005fregion": "r"}}]}', {}),
    ],
    ids=["plain", "escaped", "too-large", "compressed", "escaped-region"],
)
def test_what_may_be_of_a_sequence_is_not_repeated(body, headers):
    request = posted("/v2/models/m/infer", body, **headers)
    assert OpenInferenceBackend().unprotected(Ask("m"), request) is not None


def test_a_text_with_escapes_is_protected():
    request = posted("/v2/models/m/infer", b'{"inputs": [{"data": ["caf\\u00e9"]}]}')
    assert OpenInferenceBackend().unprotected(Ask("m"), request) is None


@pytest.mark.parametrize("key", [b'"stream"', b'"\\u0073tream"'])
@pytest.mark.parametrize("backend", [OpenAiBackend(), RestBackend(), SageMakerBackend()], ids=lambda b: b.kind)
def test_a_stream_that_the_body_asks_for_is_passed_through(backend, key):
    asked = posted("/predict", b'{"model": "m", ' + key + b": true}")
    assert backend.unprotected(Ask("m"), asked) is not None
    not_asked = posted("/predict", b'{"model": "m", ' + key + b": false}")
    assert backend.unprotected(Ask("m"), not_asked) is None


def test_a_body_of_many_numbers_is_looked_through_at_once():
    body = json.dumps({"input": [123456] * 30_000, "model": "big"}).encode()
    began = time.process_time()
    for _ in range(10):
        string_in(body, b"model")
    took_s = time.process_time() - began
    began = time.process_time()
    for _ in range(10):
        json.loads(body)
    assert took_s < 10 * (time.process_time() - began), "about as long as reading it, and not a step a byte"


def test_half_a_letter_is_no_models_name():
    assert OpenAiBackend().match(posted("/v1/embeddings", b'{"model": "\\ud800"}')) is None


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        (TensorFlowBackend(), {"predictions": [[1.0]]}),
        (OpenAiBackend(), {"data": [{"index": 0, "embedding": [1.0]}]}),
        (RestBackend([ModelSettings("/predict", compare=("/output",))]), {"output": 3}),
    ],
    ids=lambda given: getattr(given, "kind", ""),
)
def test_a_compressed_answer_is_one_and_is_compared(backend, told):
    answer = zipped(told)
    assert backend.is_answer(answer)
    plain = Response(200, "OK", (("Content-Type", "application/json"),), json.dumps(told).encode())
    meaning = backend.meaning("/predict")
    assert meaning is not None
    assert meaning(answer) == meaning(plain)


@pytest.mark.parametrize(
    ("output", "rest"),
    [
        ({"datatype": "UINT8", "shape": [1], "data": [300]}, b""),
        ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}, b"\x09\x00\x00\x00ab"),
        ({"datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": -1}}, b"x"),
    ],
    ids=["does-not-fit", "text-cut-short", "negative"],
)
def test_an_answer_that_contradicts_itself_is_not_compared(output, rest):
    head = json.dumps({"outputs": [{"name": "o", **output}]}).encode()
    headers = (("Inference-Header-Content-Length", str(len(head))),)
    with pytest.raises(ValueError, match=r"cut short|cannot be read"):
        outputs_of(Response(200, "OK", headers, head + rest))


def test_rows_without_an_order_are_not_compared():
    meaning = OpenAiBackend().meaning("m")
    assert meaning is not None
    with pytest.raises(ValueError, match="order"):
        meaning(Response(200, "OK", (), b'{"data": [{"index": 0}, {"index": "a"}]}'))


LISTS_NOTHING = {"POST /v1/embeddings": (200, {"data": [{"index": 0, "embedding": [1.0]}]})}
"""As LitServe's spec for embeddings does, which answers whatever name is asked for."""


async def embed(fleet: Fleet, *names: str) -> None:
    asked = (fleet.client.post("/v1/embeddings", json.dumps({"model": name, "input": "a"}).encode()) for name in names)
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * len(names)


@pytest.mark.slow
async def test_whoever_makes_up_names_takes_the_place_of_no_model_in_use(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are answered; those that find no room are passed through. A declared model needs none."""
    monkeypatch.setattr(probing, "MOST_WANTED", 4)
    declared = (ModelSettings("declared"),)
    fleet = await make_fleet(PlainServer(LISTS_NOTHING, "kind=openai"), models=declared)
    await embed(fleet, "real")
    for crowd in range(2):
        await embed(fleet, *(f"made up {crowd} {number}" for number in range(10)))
    pools = fleet.proxy.plan.pools
    assert len(pools) == 1 + 4
    assert {"declared", "real"} <= pools.keys()
    monkeypatch.setattr(probing, "IDLE_S", 0.0)
    await fleet.proxy.discover()
    await embed(fleet, "real")
    await fleet.proxy.discover()  # which sees that this one is asked for
    await embed(fleet, "another")
    await fleet.proxy.discover()  # on a busy machine the one that its request began may not have seen all
    pools = fleet.proxy.plan.pools
    assert len(pools) == 1 + 4
    assert {"declared", "real", "another"} <= pools.keys(), "nobody has asked for the others of late"
