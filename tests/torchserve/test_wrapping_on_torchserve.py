"""Wrapped archives on real TorchServe: self-contained, and a plain request meets the user's handler as before."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest

from tests.conftest import TorchServeFactory, write_archive
from ts_parity.torchserve.archive import SampleRequest, wrap_deployed, wrap_parity
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.wire import CONFIDENCE

pytestmark = [pytest.mark.torchserve, pytest.mark.slow, pytest.mark.long]

HANDLER = """\
def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        body = bytes(row.get("body") or b"")
        context.set_response_header(index, "x-length", str(len(body)))
        if body == b"teapot":
            context.set_response_status(418, "I am a teapot", index)
        if body == b"raise":
            raise ValueError("as asked")
        answers.append({"body": body.decode()})
    return answers
"""
PER_REQUEST = {"x-request-id"}


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory) -> TorchServeInstance:
    folder = tmp_path_factory.mktemp("archives")
    own = write_archive(folder / "own.mar", HANDLER, serialized=b"weights")
    body = folder / "body.txt"
    body.write_bytes(b"sample")
    wrapped = wrap_deployed(own, folder / "wrapped", "wrapped", samples=[SampleRequest(body)], response_timeout_s=33)
    guard = wrap_parity(own, folder / "wrapped", "guard", code="exact", k=2)
    return torchserve_factory([own, wrapped, guard])


def ask(instance: TorchServeInstance, model: str, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(urlsplit(instance.inference_url).netloc, timeout=60)
    try:
        connection.request("POST", f"/predictions/{model}", body)
        answer = connection.getresponse()
        headers = [(name, value) for name, value in answer.getheaders() if name not in PER_REQUEST]
        return answer.status, answer.reason, headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("body", [b"", b"hello", b"teapot", b"raise", b"\xff not text"])
def test_plain_requests_are_answered_as_before(instance: TorchServeInstance, body: bytes) -> None:
    assert ask(instance, "wrapped", body) == ask(instance, "own", body)


@pytest.mark.parametrize(
    ("body", "confident"), [(b"", True), (b"hello", True), (b"teapot", True), (b"raise", False), (b"\xff", False)]
)
def test_a_protection_adds_to_a_plain_answer_how_sure_it_is(
    instance: TorchServeInstance, body: bytes, confident: bool
) -> None:
    status, reason, headers, content = ask(instance, "guard", body)
    if confident:
        headers.remove((CONFIDENCE, "1"))
    assert (status, reason, headers, content) == ask(instance, "own", body)


def test_describe_says_the_role_and_what_is_protected(instance: TorchServeInstance) -> None:
    with instance.management() as management:
        wrapped, guard = (management.describe(model, customized=True) for model in ("wrapped", "guard"))
    assert wrapped.customized is not None
    assert guard.customized is not None
    said, protection = wrapped.customized["ts_parity"], guard.customized["ts_parity"]
    assert (said["role"], protection["role"]) == ("deployed", "parity")
    assert protection["protects"] == {"model": "own", "version": "1.0", "weights": said["weights"]}
    assert wrapped.response_timeout_s == 33
