"""The proxy in front of a real TorchServe: the same bytes as without it, and a fake that does not lie about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TorchServeFactory, write_archive
from tests.proxy.conftest import Client, MakeFleet, Raw
from ts_parity.config import InstanceSettings
from ts_parity.testing import FakeModel, FakeTorchServe
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = pytest.mark.torchserve

HANDLER = '''\
"""Doubles a list; a body may ask for a status, a stream or a header instead. Knows nothing of ts_parity."""

import json

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        asked = row.get("body")
        if isinstance(asked, (bytes, bytearray)):
            asked = json.loads(bytes(asked))
        if isinstance(asked, list):
            answers.append([2 * x for x in asked])
        elif "status" in asked:
            context.set_response_status(asked["status"], asked["phrase"], index)
            context.set_response_header(index, "X-Mine", "yes")
            answers.append("by hand")
        elif "echo" in asked:
            headers = context.get_all_request_header(index)
            context.set_response_content_type(index, "text/x-echo")
            answers.append({name: headers.get(name) for name in asked["echo"]})
        else:
            for part in asked["stream"][:-1]:
                send_intermediate_predict_response(
                    [part], context.request_ids, "Intermediate Prediction success", 200, context
                )
            answers.append(asked["stream"][-1])
    return answers
'''


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    folder: Path = tmp_path_factory.mktemp("archives")
    return torchserve_factory([write_archive(folder / "double.mar", HANDLER)])


def given(instance: TorchServeInstance) -> tuple[InstanceSettings, ...]:
    return (InstanceSettings(instance.inference_url, instance.management_url, "here"),)


CHANGING = ("x-request-id",)
HOP_BY_HOP = ("connection", "transfer-encoding")


def comparable(answer: Raw, marked: bool) -> tuple[Any, ...]:
    """Everything but the id that is new each time, the headers of one connection, and the proxy's own mark."""
    headers = [
        (name, "..." if name.lower() in CHANGING else value)
        for name, value in answer.headers
        if name.lower() not in HOP_BY_HOP
    ]
    if marked:
        assert headers.pop() == ("x-ts-parity", "deployed")
    return answer.status_line, headers, answer.body, answer.chunks


JSON = (("Content-Type", "application/json"),)
REQUESTS = {
    "an answer": ("POST", "/predictions/double", b"[1, 2]", (), True),
    "with a version": ("POST", "/predictions/double/1.0", b"[1, 2]", JSON, True),
    "GET": ("GET", "/predictions/double", b"[3]", (), True),
    "its own status": ("POST", "/predictions/double", b'{"status": 422, "phrase": "My own"}', (), True),
    "its own content type": ("POST", "/predictions/double/1.0/a%20b", b'{"echo": ["url_path"]}', (), True),
    "a handler's exception": ("POST", "/predictions/double", b"\x89PNG", (), True),
    "an empty body": ("POST", "/predictions/double", b"", (), True),
    "streaming": ("POST", "/predictions/double", b'{"stream": ["one", "two", "three"]}', (), True),
    "unknown model": ("POST", "/predictions/nobody", b"x", (), False),
    "unknown version": ("POST", "/predictions/double/9", b"x", (), False),
    "unknown path": ("POST", "/nowhere", b"x", (), False),
    "ping": ("GET", "/ping", b"", (), False),
    "description": ("OPTIONS", "/", b"", (), False),
    "explanation": ("POST", "/explanations/double", b"[1]", (), False),
    "v1": ("POST", "/v1/models/double:predict", b"[1, 2]", JSON, False),
    "v2": ("POST", "/v2/models/double/infer", b"[1, 2]", JSON, False),
    "sagemaker": ("POST", "/models/double/invoke", b"[1, 2]", JSON, False),
    "invocations without a model": ("POST", "/invocations", b"[1]", JSON, False),
    "too large": ("POST", "/predictions/double", b" " * 6_553_501, (), False),
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_the_same_bytes_as_without_a_proxy(
    make_fleet: MakeFleet, instance: TorchServeInstance, case: str
) -> None:
    method, path, body, headers, marked = REQUESTS[case]
    fleet = await make_fleet(given=given(instance), describe_timeout_s=5.0, task_timeout_s=30.0)
    assert fleet.proxy.plan.versions == {"double": "1.0"}
    direct = await Client(instance.inference_url).ask(method, path, body, headers)
    proxied = await fleet.client.ask(method, path, body, headers)
    assert comparable(proxied, marked) == comparable(direct, False)


async def test_a_handler_sees_the_same_request_headers(make_fleet: MakeFleet, instance: TorchServeInstance) -> None:
    names = ["X-Odd", "x-odd", "Content-Type", "User-Agent", "Accept", "Accept-Encoding", "x-ts-parity-op", "Cookie"]
    body = json.dumps({"echo": names}).encode()
    headers = (("X-Odd", "a  b"), ("Cookie", "c=d"), ("Content-Type", "application/x-mine; a=1"))
    fleet = await make_fleet(given=given(instance), describe_timeout_s=5.0)
    direct = await Client(instance.inference_url).post("/predictions/double", body, headers)
    proxied = await fleet.client.post("/predictions/double", body, (*headers, ("x-ts-parity-op", "finish")))
    assert proxied.json() == direct.json()


async def test_the_fake_has_the_same_shape(make_fleet: MakeFleet, instance: TorchServeInstance) -> None:
    """What FakeTorchServe claims to imitate: status, phrase, header names and the keys of describe."""
    model = FakeModel("double", role=None)
    async with FakeTorchServe(model) as fake:
        for path, body in (
            ("/predictions/double", b"[1, 2]"),
            ("/predictions/double", b"x"),
            ("/predictions/no", b"x"),
        ):
            real = await Client(instance.inference_url).post(path, body)
            faked = await Client(fake.inference).post(path, body)
            assert faked.status == real.status
            names = [name for name, _ in real.headers if name.lower() != "connection"]
            if real.status == 200:
                assert faked.status_line == real.status_line
                assert [name for name, _ in faked.headers if name.lower() != "connection"] == names
            else:
                assert set(faked.json()) == set(real.json())
                assert faked.json()["type"] == real.json()["type"]
        for path in ("/models?limit=1", "/models/double", "/models/double/all", "/models/double/1.0"):
            real = (await Client(instance.management_url).get(path)).json()
            faked = (await Client(fake.management).get(path)).json()
            real, faked = (answer[0] if isinstance(answer, list) else answer for answer in (real, faked))
            assert set(faked) <= set(real)
            if "workers" in faked:
                assert set(faked["workers"][0]) <= set(real["workers"][0])
