"""What TorchServe's own published tests ask of the inference API, asked of the proxy, in words of our own.

They are those of its front end (ModelServerTest), its Postman collections (inference, explanations, KServe V1 and V2,
HTTPS, workflows) and its Python tests (url paths, tokens, streaming, bad handlers, images in forms, batches). Two small
handlers stand in for their large models. Each request goes to TorchServe and to the proxy: what it published must
hold, and the answers must be the same. Tokens have a file of their own; HTTPS and gRPC are not asked for here.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from tests.proxy.conftest import Raw
from tests.proxy.side_by_side import Case, Headers, Pair, ask, proxy_before
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = [pytest.mark.torchserve, pytest.mark.asyncio(loop_scope="module")]

NOOP = '''\
"""Says OK, whatever it is asked."""


def handle(data, context):
    return None if data is None else ["OK"] * len(data)
'''

STAND_IN = '''\
"""In place of classifiers, KServe's models, an echo, a stream and handlers that break: the input says which."""

import json

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

CLASSES = ("tabby", "tiger_cat", "Egyptian_cat", "lynx", "bucket")


def handle(data, context):
    if data is None:
        return None
    return [one(row, context, index) for index, row in enumerate(data)]


def one(row, context, index):
    path = context.get_request_header(index, "url_path")
    explain = context.get_request_header(index, "explain") == "True"
    given = row.get("data", row.get("image_data", row.get("body")))
    if path:
        return path
    if isinstance(given, dict) and "instances" in given:
        return {"explanations" if explain else "predictions": [len(each["data"]) for each in given["instances"]]}
    if isinstance(given, dict) and "inputs" in given:
        return infer(given, explain)
    if isinstance(given, dict):
        return type(given).__name__
    given = bytes(given or b"")
    if given == b"invalid_output":
        context.set_response_status(507, "Broken on purpose", index)
        return "Invalid response"
    if given == b"memory":
        raise MemoryError("on purpose")
    if given == b"custom code":
        raise PredictionException("on purpose", 599)
    if given == b"exception":
        raise ValueError("on purpose")
    if given == b"headers":
        context.set_response_header(index, "dummy", "1")
        context.set_response_content_type(index, "text/plain")
        return repr(type(row["body"]))
    if given == b"stream":
        for _ in range(3):
            send_intermediate_predict_response(["hello"], context.request_ids, "Intermediate", 200, context)
        return "hello world "
    if given[:4] == b"\\x89PNG":
        return [[[0.25, -0.5]]] if explain else str(len(given) % 10)
    if given[:2] == b"\\xff\\xd8":
        share = sum(range(1, len(CLASSES) + 1))
        return {name: (len(CLASSES) - at) / share for at, name in enumerate(CLASSES)}
    if given.startswith(b"text: "):
        return {"World": 0.25, "Sports": 0.75}
    return given


def infer(given, explain):
    inputs = given["inputs"]
    shape, kind = ([1, 2, 2], "FP64") if explain else ([len(inputs)], "INT64")
    outputs = [{"name": each["name"], "shape": shape, "datatype": kind, "data": each["data"]} for each in inputs]
    return {"id": given["id"], "model_name": "stand_in", "model_version": "1.0", "outputs": outputs}
'''


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    folder: Path = tmp_path_factory.mktemp("archives")
    return torchserve_factory(
        [
            write_archive(folder / "noop.mar", NOOP, version="1.11"),
            write_archive(folder / "noop_v2.mar", NOOP, name="noop", version="1.2.1"),
            write_archive(folder / "stand_in.mar", STAND_IN),
        ],
        env=NO_TORCH,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(instance: TorchServeInstance) -> AsyncIterator[Pair]:
    async with proxy_before(instance) as proxy:
        yield Pair(instance.inference_url, proxy.url, proxy)


Holds = Callable[[Raw], bool]


@dataclass(frozen=True)
class Published:
    """One request of a published test and what it expects beyond the status."""

    case: Case
    holds: Holds = lambda answer: True


def says(text: str) -> Holds:
    return lambda answer: answer.body == text.encode()


def names(kind: str, message: str) -> Holds:
    return lambda answer: answer.json() == {"code": answer.status, "type": kind, "message": message}


def sums_to_one(answer: Raw) -> bool:
    return abs(sum(answer.json().values()) - 1) < 0.01


FORM: Headers = (("Content-Type", "application/x-www-form-urlencoded"),)
JSON: Headers = (("Content-Type", "application/json"),)
OCTETS: Headers = (("Content-Type", "application/octet-stream"),)
PARTS: Headers = (("Content-Type", "multipart/form-data; boundary=of-our-own"),)

NO_SUCH_PATH = names("ResourceNotFoundException", "Requested resource is not found, please refer to API document.")
ALL_BYTES = bytes(range(256))
PNG, JPEG, TEXT = b"\x89PNG\r\n\x1a\n" + b"0" * 22, b"\xff\xd8\xff\xe0" + ALL_BYTES * 40, b"text: a cup final"
TENSOR = {"name": "input-0", "shape": [1], "datatype": "INT64", "data": [1]}


def parts(**named: tuple[bytes, str]) -> bytes:
    """Of a form: each with a file name and a type if it has one."""
    said = b""
    for name, (value, kind) in named.items():
        file = f'; filename="{name}.bin"\r\nContent-Type: {kind}' if kind else ""
        said += (
            f'--of-our-own\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
        )
    return said + b"--of-our-own--\r\n"


OK = says("OK")


def predict(path: str, body: bytes, headers: Headers = (), holds: Holds = OK, status: int = 200) -> Published:
    return Published(Case(status, "POST", path, body, headers, path.startswith("/predictions/")), holds)


def refused(method: str, path: str, status: int, holds: Holds) -> Published:
    return Published(Case(status, method, path, marked=False), holds)


FRONT_END = {
    "ping": Published(
        Case(200, "GET", "/ping", marked=False),
        lambda answer: answer.json()["status"] == "Healthy" and answer.get("x-request-id") is not None,
    ),
    "the API's description": Published(
        Case(200, "OPTIONS", "/", marked=False), lambda answer: "/predictions/{model_name}" in answer.json()["paths"]
    ),
    "and at its own path": Published(
        Case(200, "GET", "/api-description", marked=False), lambda answer: answer.json()["openapi"] == "3.0.1"
    ),
    "a model's description": Published(
        Case(200, "OPTIONS", "/predictions/noop", marked=False),
        lambda answer: answer.json()["info"]["title"].endswith(": noop"),
    ),
    "prediction": predict("/predictions/noop", b"data=test", FORM),
    "prediction of a version": predict("/predictions/noop/1.11", b"data=test", FORM),
    "prediction of another": predict("/predictions/noop/1.2.1", b"data=test", FORM),
    "explanation": predict("/explanations/noop", b"data=test", FORM),
    "explanation of a version": predict("/explanations/noop/1.11", b"data=test", FORM),
    "KServe V1 prediction": predict("/v1/models/noop:predict", b"data=test", FORM),
    "KServe V1 explanation": predict("/v1/models/noop:explain", b"data=test", FORM),
    "KServe V2 prediction": predict("/v2/models/noop/infer", b"data=test", FORM),
    "KServe V2 explanation": predict("/v2/models/noop/explain", b"data=test", FORM),
    "octets": predict("/predictions/noop", b"test", OCTETS),
    "JSON": predict("/predictions/noop", b'{"data": "test"}', JSON),
    "invocation with JSON": predict("/invocations?model_name=noop", b'{"data": "test"}', JSON),
    "invocation with parts": predict(
        "/invocations", parts(model_name=(b"noop", ""), data=(b"test", "text/plain")), PARTS
    ),
    "a model's invocation with JSON": predict("/models/noop/invoke", b'{"data": "test"}', JSON),
    "a model's invocation with parts": predict("/models/noop/invoke", parts(data=(b"test", "text/plain")), PARTS),
    "legacy prediction": Published(Case(200, "GET", "/noop/predict?data=test", marked=False), says("OK")),
    "a body within the limit": predict("/predictions/noop", bytes(6_000_000), OCTETS),
    "a body over the limit": Published(
        Case(413, body=bytes(11_485_760), path="/predictions/noop", headers=OCTETS, marked=False), says("")
    ),
    "JSON arrives decoded": predict("/predictions/stand_in", b'{"data": "test"}', JSON, says("dict")),
    "an echo of parts": predict(
        "/predictions/stand_in",
        parts(data=(ALL_BYTES, "application/octet-stream")),
        PARTS,
        lambda answer: answer.body == ALL_BYTES,
    ),
    "an echo of a form": predict(
        "/predictions/stand_in",
        b"data=" + "".join(f"%{byte:02x}" for byte in range(128)).encode(),
        FORM,
        lambda answer: answer.body == bytes(range(128)),
    ),
    "a handler's headers": predict(
        "/predictions/stand_in",
        b"headers",
        (),
        lambda answer: (
            (answer.get("dummy"), answer.get("content-type")) == ("1", "text/plain") and b"bytearray" in answer.body
        ),
    ),
    "a code of the handler's own": predict(
        "/predictions/stand_in", b"custom code", (), lambda answer: answer.json()["message"] == "on purpose", 599
    ),
    "output that the handler calls invalid": predict(
        "/predictions/stand_in", b"data=invalid_output", FORM, says("Invalid response"), 507
    ),
    "GET of nothing": refused(
        "GET",
        "/",
        405,
        names("MethodNotAllowedException", "Requested method is not allowed, please refer to API document."),
    ),
    "no such path": refused("GET", "/InvalidUrl", 404, NO_SUCH_PATH),
    "the description of no model": refused(
        "OPTIONS", "/predictions/InvalidModel", 404, names("ModelNotFoundException", "Model not found: InvalidModel")
    ),
    "predictions of what": refused("GET", "/predictions", 404, NO_SUCH_PATH),
    "no such model": refused(
        "GET", "/predictions/InvalidModel", 404, names("ModelNotFoundException", "Model not found: InvalidModel")
    ),
    "no such version": refused(
        "GET",
        "/predictions/noop/1.3.1",
        404,
        names("ModelVersionNotFoundException", "Model version: 1.3.1 does not exist for model: noop"),
    ),
}

POSTMAN = {
    "a text's classes": predict("/predictions/stand_in", TEXT, (), sums_to_one),
    "an image's five classes": predict(
        "/predictions/stand_in", JPEG, (), lambda answer: sums_to_one(answer) and len(answer.json()) == 5
    ),
    "a digit": predict("/predictions/stand_in", PNG, (), says("0")),
    "a digit's explanation": predict(
        "/explanations/stand_in", PNG, (), lambda answer: answer.json() == [[[0.25, -0.5]]]
    ),
    "KServe V1": predict(
        "/v1/models/stand_in:predict",
        json.dumps({"instances": [{"data": "ab"}, {"data": "abc"}]}).encode(),
        JSON,
        lambda answer: answer.json() == {"predictions": [2, 3]},
    ),
    "KServe V1 explains": predict(
        "/v1/models/stand_in:explain",
        json.dumps({"instances": [{"data": "ab"}]}).encode(),
        JSON,
        lambda answer: answer.json() == {"explanations": [2]},
    ),
    "KServe V2": predict(
        "/v2/models/stand_in/infer",
        json.dumps({"id": "an-id", "inputs": [TENSOR]}).encode(),
        JSON,
        lambda answer: (
            answer.json() == {"id": "an-id", "model_name": "stand_in", "model_version": "1.0", "outputs": [TENSOR]}
        ),
    ),
    "KServe V2 explains": predict(
        "/v2/models/stand_in/explain",
        json.dumps({"id": "an-id", "inputs": [TENSOR]}).encode(),
        JSON,
        lambda answer: answer.json()["outputs"][0]["datatype"] == "FP64",
    ),
    "a workflow that is not there": refused(
        "POST", "/wfpredict/densenet", 404, lambda answer: answer.json()["type"] == "WorkflowNotFoundException"
    ),
}

PYTHON = {
    "an image in a form": predict("/predictions/stand_in", parts(data=(PNG, "image/png")), PARTS, says("0")),
    "its explanation": predict(
        "/explanations/stand_in",
        parts(data=(PNG, "image/png")),
        PARTS,
        lambda answer: answer.json() == [[[0.25, -0.5]]],
    ),
    "an image among a form's fields": predict(
        "/predictions/stand_in",
        b"params1=meta_data1&params2=meta_data2&image_data=" + base64.b64encode(PNG).replace(b"=", b"%3D"),
        FORM,
        lambda answer: base64.b64decode(answer.body) == PNG,
    ),
    "a path behind the version": Published(
        Case(200, "GET", "/predictions/stand_in/1.0/v1/chat/completion", b'{"prompt": "hello"}', JSON),
        says("v1/chat/completion"),
    ),
    "a handler that raises": predict(
        "/predictions/stand_in", b"exception", (), names("InternalServerException", "Prediction failed"), 503
    ),
    "a stream": predict(
        "/predictions/stand_in",
        b"stream",
        (),
        lambda answer: (
            answer.get("transfer-encoding") == "chunked"
            and answer.chunks == [b"hello", b"hello", b"hello", b"hello world "]
        ),
    ),
    "a file as curl -T sends it": Published(
        Case(200, "PUT", "/predictions/stand_in", TEXT, (("User-Agent", "curl/8"), ("Accept", "*/*"))),
        sums_to_one,
    ),
}

PUBLISHED = {**FRONT_END, **POSTMAN, **PYTHON}


@pytest.mark.parametrize("name", PUBLISHED)
async def test_what_torchserve_published_holds_through_the_proxy(pair: Pair, name: str) -> None:
    published = PUBLISHED[name]
    assert published.holds(await pair.same(published.case))


async def test_a_prediction_without_memory(instance: TorchServeInstance) -> None:
    """507, as published; the proxy, which would try another instance, is told not to."""
    case = Case(507, path="/predictions/stand_in", body=b"data=memory", headers=FORM, marked=False)
    async with proxy_before(instance, max_attempts=1) as proxy:
        await Pair(instance.inference_url, proxy.url, proxy).same(case)


@pytest.mark.parametrize("count", [2, 8])
async def test_requests_at_the_same_time_get_each_its_own_answer(pair: Pair, count: int) -> None:
    """As the published tests of batches and url paths send them."""
    paths = [f"/predictions/stand_in/1.0/v1/completion/{at}" for at in range(count)]
    answers = await asyncio.gather(*(ask(pair.proxied, Case(200, path=path, body=b"{}").data) for path in paths))
    assert [answer.body.decode() for (answer,) in answers] == [f"v1/completion/{at}" for at in range(count)]
