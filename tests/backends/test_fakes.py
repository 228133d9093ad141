"""Fakes say what the real servers say: one table, asked of both. The real ones where they are installed."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backend_programs.emulated import WEIGHTS, scores
from backend_servers import DEPLOYED, KINDS, STUDENT
from tests.backends.conftest import Connection, Servers
from tests.proxy.conftest import Clock, Raw
from ts_parity.testing import Canned, FakeFunction, FakeModelServer
from ts_parity.testing.model_servers import CHECKED

ROW = (1.0, 2.0, 3.0, 4.0)
INFER = "/v2/models/deployed/infer"
OIP = KINDS["triton"]
GOOD, NO_ID, SHORT = OIP.body(ROW, "7"), OIP.body(ROW), OIP.body(ROW[:3], "7")
UNFILLED = json.dumps(
    {"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3]}]}
).encode()
_BINARY = json.dumps(
    {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
    }
).encode()
BINARY = (_BINARY + struct.pack("<4f", *ROW), f"Inference-Header-Content-Length: {len(_BINARY)}\r\n")

Said = tuple[int, str, bool]
"""Status, what the body is (keys of the JSON, or the text), and whether the next request is answered as well."""
ANSWERED, TRITONS = "id,model_name,model_version,outputs", "model_name,model_version,outputs"
KSERVES = "id,model_name,model_version,outputs,parameters"
META = "inputs,name,outputs,platform,versions"
TABLE: dict[str, dict[tuple[str, str, bytes | None], Said]] = {
    "triton": {
        ("POST", INFER, GOOD): (200, ANSWERED, True),
        ("POST", INFER, NO_ID): (200, TRITONS, True),
        ("POST", "/v2/models/deployed/versions/1/infer", GOOD): (200, ANSWERED, True),
        ("POST", INFER, b"{bad"): (500, "error", True),
        ("POST", INFER, SHORT): (400, "error", True),
        ("POST", INFER, UNFILLED): (500, "error", True),
        ("GET", INFER, None): (405, "error", True),
        ("POST", "/v2/models/nobody/infer", GOOD): (404, "error", True),
        ("GET", "/v2/health/ready", None): (200, "", True),
        ("GET", "/v2/health/live", None): (200, "", True),
        ("GET", "/v2/models/deployed", None): (200, META, True),
        ("GET", "/v2/models/deployed/ready", None): (200, "", True),
        ("GET", "/v2/models/nobody/ready", None): (400, "error", True),
        ("GET", "/v2/models/deployed/versions/9/ready", None): (400, "error", True),
        ("GET", "/v2", None): (200, "extensions,name,version", True),
        ("POST", "/v2/repository/index", b"{}"): (403, "error", True),
        ("GET", "/v1/models", None): (404, "error", True),
    },
    "kserve": {
        ("POST", INFER, GOOD): (200, KSERVES, True),
        ("POST", INFER, NO_ID): (500, "error", False),
        ("POST", "/v2/models/deployed/versions/1/infer", GOOD): (501, "error", True),
        ("POST", INFER, b"{bad"): (422, "detail", True),
        ("POST", INFER, SHORT): (500, "error", False),
        ("POST", INFER, UNFILLED): (500, "error", False),
        ("GET", INFER, None): (405, "detail", True),
        ("POST", "/v2/models/nobody/infer", GOOD): (404, "error", True),
        ("GET", "/v2/health/ready", None): (200, "ready", True),
        ("GET", "/v2/health/live", None): (200, "live", True),
        ("GET", "/v2/models/deployed", None): (200, META, True),
        ("GET", "/v2/models/deployed/ready", None): (200, "name,ready", True),
        ("GET", "/v2/models/nobody/ready", None): (404, "error", True),
        ("GET", "/v2", None): (200, "extensions,name,version", True),
        ("GET", "/v2/models", None): (200, "models", True),
        ("POST", "/v2/repository/index", b"{}"): (404, "detail", True),
        ("GET", "/nowhere", None): (404, "detail", True),
    },
    "litserve": {
        ("POST", "/predict", b'{"x": [1, 2, 3, 4]}'): (200, "scores", True),
        ("POST", "/student", b'{"x": [1, 2, 3, 4]}'): (200, "scores", True),
        ("POST", "/predict", b"{bad"): (500, "detail", True),
        ("POST", "/predict", b'{"x": [1, 2, 3]}'): (500, "detail", True),
        ("GET", "/predict", None): (405, "detail", True),
        ("GET", "/health", None): (200, "ok", True),
        ("GET", "/info", None): (200, "model,server", True),
        ("GET", "/nowhere", None): (404, "detail", True),
    },
}


def said(answer: Raw | None, again: Raw | None) -> Said:
    assert answer is not None
    body = answer.body.decode()
    if body[:1] == "{":
        body = ",".join(sorted(json.loads(body)))
    return answer.status, body, again is not None and again.status == answer.status


@asynccontextmanager
async def a_server(which: str, kind: str, servers: Servers) -> AsyncIterator[Any]:
    """A fake or a real one, with the same two models."""
    if which == "real":
        yield servers(kind)[0]
        return
    student = tuple(tuple(1.001 * w for w in row) for row in WEIGHTS)
    async with FakeModelServer(kind, FakeFunction(DEPLOYED, WEIGHTS), FakeFunction(STUDENT, student)) as server:
        yield server


REAL = pytest.param("real", marks=[pytest.mark.backends, pytest.mark.slow])
BOTH = pytest.mark.parametrize("which", ["fake", REAL])


@BOTH
@pytest.mark.parametrize("kind", CHECKED)
async def test_what_they_answer(which: str, kind: str, servers: Servers) -> None:
    """KServe keeps no connection after a 500, and does not say so; the others do."""
    async with a_server(which, kind, servers) as server:
        found = {}
        for ask in TABLE[kind]:
            async with Connection(server.url) as connection:
                found[ask] = said(await connection.ask(*ask), await connection.ask(*ask))
        assert found == TABLE[kind]


@BOTH
@pytest.mark.parametrize("kind", CHECKED)
async def test_both_models_answer_and_can_be_told_apart(which: str, kind: str, servers: Servers) -> None:
    protocol = KINDS[kind]
    async with a_server(which, kind, servers) as server, Connection(server.url) as connection:
        for model in (DEPLOYED, STUDENT):
            answer = await connection.ask("POST", protocol.paths[model], protocol.body(ROW, "7"))
            assert answer is not None
            assert protocol.read(answer.body) == pytest.approx(scores(model, ROW), rel=1e-6)
            if protocol.kind == "open-inference":
                assert (answer.json()["id"], answer.json()["model_name"]) == ("7", model)


@BOTH
async def test_triton_takes_and_gives_binary_tensors(which: str, servers: Servers) -> None:
    async with a_server(which, "triton", servers) as server, Connection(server.url) as connection:
        answer = await connection.ask("POST", INFER, *BINARY)
        assert answer is not None
        length = int(answer.get("inference-header-content-length") or 0)
        (output,) = json.loads(answer.body[:length])["outputs"]
        assert output["parameters"] == {"binary_data_size": 12}
        assert struct.unpack("<3f", answer.body[length:]) == pytest.approx(scores(DEPLOYED, ROW))


@BOTH
async def test_triton_tells_its_batches_and_places(which: str, servers: Servers) -> None:
    async with a_server(which, "triton", servers) as server, Connection(server.url) as connection:
        answer = await connection.ask("GET", "/v2/models/deployed/config")
        assert answer is not None
        config = answer.json()
        assert config["max_batch_size"] == 8
        assert "dynamic_batching" in config
        assert [group["count"] for group in config["instance_group"]] == [1]


@BOTH
@pytest.mark.parametrize("kind", CHECKED)
async def test_whether_it_is_ready_while_its_models_are_frozen(which: str, kind: str, servers: Servers) -> None:
    """Triton and LitServe have other processes to say so, and KServe has not."""
    protocol = KINDS[kind]
    async with a_server(which, kind, servers) as server, Connection(server.url) as first:
        server.freeze(*([server.inference_processes()] if which == "real" else []))
        try:
            async with Connection(server.url) as second:
                await first.send("POST", protocol.paths[DEPLOYED], protocol.body(ROW, "7"))
                await second.send("GET", protocol.ready_path)
                if kind == "kserve":
                    assert not await second.answers_within(0.05)
                else:
                    answer = await second.answer()
                    assert answer is not None
                    assert answer.status == 200
                assert not await first.answers_within(0.05)
        finally:
            server.thaw()
        answer = await first.answer()
        assert answer is not None
        assert answer.status == 200


@BOTH
async def test_litserve_closes_an_idle_connection(which: str, servers: Servers, clock: Clock) -> None:
    """As whatever runs on uvicorn: after 5 s."""
    async with a_server(which, "litserve", servers) as server, Connection(server.url) as connection:
        assert await connection.ask("GET", "/health") is not None
        if which == "fake":
            clock.advance(5.0)
        assert await connection.ends()


# ---- quirks of those that nobody has installed here: as recorded ----------------------------------------------------


async def asked(server: FakeModelServer, path: str, body: bytes | None, headers: str = "") -> Raw:
    async with Connection(server.url) as connection:
        answer = await connection.ask("GET" if body is None else "POST", path, body, headers)
        assert answer is not None
        return answer


async def test_mlserver_invents_ids() -> None:
    async with FakeModelServer("mlserver", FakeFunction()) as server:
        body = OIP.body((1.0, 2.0))
        first, second = [await asked(server, INFER, body) for _ in range(2)]
        assert first.json()["id"] != second.json()["id"]
        assert first.get("ce-id") == first.get("ce-requestid") == first.json()["id"]
        assert (await asked(server, INFER, OIP.body((1.0, 2.0), "mine"))).json()["id"] == "mine"
        server.models[0].ready = False
        assert (await asked(server, INFER, body)).status == 400
        assert (await asked(server, "/v2/health/ready", None)).status == 400


async def test_ray_answers_in_chunks_with_a_name_for_each_request() -> None:
    async with FakeModelServer("ray", FakeFunction("big"), FakeFunction("small")) as server:
        answer = await asked(server, "/big", b'{"x": [4, 1]}', "X-Request-Id: mine\r\n")
        assert (answer.get("transfer-encoding"), answer.get("x-request-id")) == ("chunked", "mine")
        assert answer.json() == {"scores": [6.0, 16.0]}
        assert (await asked(server, "/-/routes", None)).json() == {"/big": "big", "/small": "small"}


@pytest.mark.parametrize(("kind", "path", "status"), [("bentoml", "/predict", 429), ("ray", "/deployed", 503)])
async def test_they_refuse_what_they_have_no_place_for(kind: str, path: str, status: int) -> None:
    async with FakeModelServer(kind, FakeFunction()) as server, Connection(server.url) as first:
        server.freeze()
        await first.send("POST", path, b'{"x": [1, 2]}')
        while not server.received:
            await first.pause()
        assert (await asked(server, path, b'{"x": [1, 2]}')).status == status
        server.thaw()
        answer = await first.answer()
        assert answer is not None
        assert answer.status == 200


OTHERS: dict[str, tuple[str, bytes, Any]] = {
    "ovms": (INFER, OIP.body((1.0, 2.0)), {"outputs": [{"data": [5.0, 11.0]}]}),
    "bentoml": ("/predict", b'{"x": [1, 2]}', [5.0, 11.0]),
    "tensorflow": ("/v1/models/deployed:predict", b'{"instances": [[1, 2]]}', {"predictions": [[5, 11]]}),
    "vllm": ("/v1/embeddings", b'{"model": "deployed", "input": "a b"}', {"model": "deployed"}),
    "sagemaker": ("/invocations", b'{"x": [1, 2]}', {"scores": [5.0, 11.0]}),
}  # fmt: skip


def holds(answer: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(holds(answer[key], each) for key, each in part.items())
    if isinstance(part, list):
        return len(answer) == len(part) and all(holds(a, p) for a, p in zip(answer, part, strict=True))
    return bool(answer == part)


@pytest.mark.parametrize("kind", OTHERS)
async def test_each_protocol_has_its_answer_and_its_faults(kind: str) -> None:
    path, body, part = OTHERS[kind]
    async with FakeModelServer(kind, FakeFunction()) as server:
        answer = await asked(server, path, body)
        assert answer.status == 200
        assert holds(answer.json(), part)
        assert (await asked(server, path, b"{bad")).status == 400
        server.models[0].script.append(Canned(500, body=b"{}"))
        assert [(await asked(server, path, body)).status for _ in range(2)] == [500, 200]


async def test_what_has_begun_ends_though_its_client_has_left() -> None:
    async with FakeModelServer("litserve", FakeFunction()) as server:
        server.freeze()
        async with Connection(server.url) as connection:
            await connection.send("POST", "/predict", b'{"x": [1, 2]}')
            while not server.received:
                await connection.pause()
        server.thaw()
        async with Connection(server.url) as connection:
            await connection.ask("POST", "/predict", b'{"x": [1, 2]}')
        assert server.predicted == 2
