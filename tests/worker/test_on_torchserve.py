"""The worker in a real TorchServe: what the frontend, the socket and the batches make of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from tests.conftest import TorchServeFactory
from tests.worker.serving import check_decoding, group_of, linear, make_folder, pack, split_tail, unbiased, vector
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.torchserve.wrapping import wrap_deployed, wrap_parity
from ts_parity.wire import FRAME_TYPE, OP, RAW, Frame, Part, pack_frame, unpack_frame

pytestmark = [pytest.mark.torchserve, pytest.mark.slow, pytest.mark.long]

PLAIN = ["overrides_steps", "overrides_handle", "lazy_function", "own_status", "streams", "echoes"]
SIZES = [(2, 1), (3, 2)]
"""k and r; in `test_operations` all others."""


@pytest.fixture(scope="module")
def server(torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory) -> TorchServeInstance:
    folder = tmp_path_factory.mktemp("archives")
    archives = []
    for handler in PLAIN:
        eager = handler == "lazy_function"
        archives.append(pack(make_folder(folder / handler, handler, eager=eager), f"bare-{handler}"))
        if handler != "echoes":
            archives.append(wrap_deployed(archives[-1], folder, f"wrapped-{handler}"))
    linear_archive = pack(
        make_folder(folder / "linear", "overrides_steps", weights=unbiased(), config={"maxBatchDelay": 100}), "linear"
    )
    (folder / "first.bin").write_bytes(vector(901))
    (folder / "second.bin").write_bytes(vector(902))
    samples = [folder / "first.bin", folder / "second.bin"]
    batched = pack(
        make_folder(folder / "four", "overrides_steps", config={"batchSize": 4, "maxBatchDelay": 500}), "four"
    )
    archives.append(wrap_deployed(batched, folder, "batched", samples=samples))
    script = folder / "four" / "script.pt"
    archives.append(wrap_parity(batched, folder, "batched-parity", code="sum", k=2, partial=True, parity_model=script))
    stateful = pack(make_folder(folder / "converses", "converses"), "bare-converses")
    archives.append(wrap_deployed(stateful, folder, "watched-converses"))
    archives.append(wrap_deployed(stateful, folder, "tested-converses", samples=samples))
    single = make_folder(folder / "single", "one_at_a_time", config={"batchSize": 2, "maxBatchDelay": 2000})
    archives.append(pack(single, "bare-single"))
    archives.append(wrap_deployed(archives[-1], folder, "wrapped-single"))
    weights = folder / "linear" / "script.pt"
    for k, r in SIZES:
        model = {"parity_model" if k == 2 else "serialized_file": weights}
        for row in range(r):
            named = {"code": "sum", "k": k, "r": r, "row": row, "partial": True}
            archives.append(wrap_parity(linear_archive, folder, f"sum-{k}-{row}", **named, **model))
    archives.append(wrap_parity(folder / "bare-echoes.mar", folder, "exact", code="exact", k=4))
    # The workers must run the code of the archives, not that of the checkout.
    return torchserve_factory(archives, env={"PYTHONPATH": ""})


def _post(server: TorchServeInstance, model: str, body: bytes, **headers: str) -> requests.Response:
    url = f"{server.inference_url}/predictions/{model}"
    return requests.post(url, data=body, headers={n.replace("_", "-"): v for n, v in headers.items()}, timeout=60)


def _operate(server: TorchServeInstance, model: str, op: str, body: bytes, **headers: str) -> requests.Response:
    kind = {} if op == "raw" else {"content-type": FRAME_TYPE}
    return _post(server, model, body, **{OP: op, **kind, **headers})


def _seen(response: requests.Response) -> tuple[Any, ...]:
    """Everything a client sees, save the frontend's own request id."""
    headers = [(n, v) for n, v in response.raw.headers.items() if n.lower() != "x-request-id"]
    return response.status_code, response.reason, headers, response.content


BODIES = {
    "vector": vector(5),
    "other vector": vector(6),
    "too short": vector(5)[:28],
    "not a number": np.full(8, np.nan, np.float32).tobytes(),
    "empty": b"",
}


@pytest.mark.parametrize("handler", [h for h in PLAIN if h != "echoes"])
def test_plain_requests_are_byte_identical(server: TorchServeInstance, handler: str) -> None:
    """Status, phrase, headers and body, errors of user code and chunks included."""
    statuses = set()
    for body in BODIES.values():
        bare, wrapped = (_seen(_post(server, f"{kind}-{handler}", body)) for kind in ("bare", "wrapped"))
        assert wrapped == bare
        statuses.add(bare[0])
    assert (
        statuses
        == {
            "overrides_steps": {200, 503},
            "overrides_handle": {200, 503},
            "lazy_function": {200},
            "own_status": {200, 422, 513},
            "streams": {200, 503},
        }[handler]
    )


@pytest.mark.parametrize("handler", [h for h in PLAIN if h not in ("echoes", "streams")])
def test_raw_requests_keep_the_ordinary_answer(server: TorchServeInstance, handler: str) -> None:
    """Also the answers that carry no tail: TorchServe's errors, and the handler's own."""
    for _ in range(3):
        _operate(server, f"wrapped-{handler}", "raw", vector(1))
        _operate(server, f"wrapped-{handler}", "raw", vector(2))
    for name, body in BODIES.items():
        bare = _post(server, f"bare-{handler}", body)
        raw = _operate(server, f"wrapped-{handler}", "raw", body)
        tail = raw.headers.get(RAW)
        content = raw.content if tail is None else split_tail(raw.content, tail)[0]
        assert (raw.status_code, raw.reason, content) == (bare.status_code, bare.reason, bare.content)
        ignored = {"x-request-id", "content-length", RAW}
        theirs, ours = ({n: v for n, v in r.headers.items() if n.lower() not in ignored} for r in (bare, raw))
        assert ours == theirs
        assert (tail is not None) is (name in ("vector", "other vector"))


def test_a_streamed_answer_stays_streamed(server: TorchServeInstance) -> None:
    bare, wrapped = _post(server, "bare-streams", vector(1)), _operate(server, "wrapped-streams", "raw", vector(1))
    assert bare.headers["transfer-encoding"] == "chunked"
    assert _seen(wrapped) == _seen(bare)
    described = server.management().describe("wrapped-streams", customized=True).customized
    assert described is not None
    assert described["ts_parity"]["verdict"] == "refused"


@pytest.mark.parametrize("model", ["watched-converses", "tested-converses"])
def test_no_test_touches_what_serves(server: TorchServeInstance, model: str) -> None:
    """Neither samples at load nor the first raw requests have taken a turn of the conversation."""
    answers = [_operate(server, model, "raw", vector(seed)) for seed in range(4)]
    tails = [answer.headers.get(RAW) for answer in answers]
    bodies = [
        a.content if tail is None else split_tail(a.content, tail)[0] for a, tail in zip(answers, tails, strict=True)
    ]
    turns = [json.loads(body)["turn"] for body in bodies]
    assert turns == [1, 2, 3, 4]
    described = server.management().describe(model, customized=True).customized
    assert described is not None
    ours = described["ts_parity"]
    assert (ours["verdict"], ours["repeatable"]) == (("refused", False) if "tested" in model else ("codable", True))


def test_raw_requests_in_one_batch_run_as_they_would_have(server: TorchServeInstance) -> None:
    """A handler that refuses batches refuses them behind the wrapper too."""
    for model, ask in (("bare-single", _post), ("wrapped-single", lambda *a: _operate(*a[:2], "raw", a[2]))):
        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(lambda seed, a=ask, m=model: a(server, m, vector(seed)), range(2))]
        assert {answer.status_code for answer in answers} == {503}, model
        assert {answer.json()["message"] for answer in answers} == {"Prediction failed"}


def test_a_mixed_batch(server: TorchServeInstance) -> None:
    """Plain, raw, finish and a bad raw request, four at a time in one batch, each answered rightly."""
    expected = {seed: json.loads(_post(server, "bare-overrides_steps", vector(seed)).content) for seed in range(9)}
    for start in range(0, 6, 3):
        raw = linear(vector(start + 2)).astype(np.float32)
        finish = pack_frame(Frame((Part((), vector(start + 2)),), raw))
        with ThreadPoolExecutor(4) as pool:
            plain, tailed, finished, bad = pool.map(
                lambda arguments: arguments[0](server, "batched", *arguments[1:]),
                [
                    (_post, vector(start)),
                    (_operate, "raw", vector(start + 1)),
                    (_operate, "finish", finish),
                    (_operate, "raw", b"bad"),
                ],
            )
        body, decoded = split_tail(tailed.content, tailed.headers[RAW])
        for seed, answer in enumerate((plain.content, body, finished.content), start):
            _assert_close(json.loads(answer), expected[seed])
        np.testing.assert_allclose(decoded, linear(vector(start + 1)), rtol=1e-4, atol=1e-5)
        assert (bad.status_code, bad.reason) == (503, "Service Unavailable")
        assert bad.json()["message"] == "Prediction failed"


def test_a_mixed_batch_of_groups(server: TorchServeInstance) -> None:
    """On a parity worker: a plain request, two groups (one with a bad slot) and an operation it does not have."""
    good = pack_frame(Frame((Part((), vector(1)), Part((), vector(2)))))
    partly = pack_frame(Frame((Part((), vector(1)), Part((), b"bad"))))
    with ThreadPoolExecutor(4) as pool:
        plain, group, spoilt, refused = pool.map(
            lambda arguments: arguments[0](server, "batched-parity", *arguments[1:]),
            [(_post, vector(1)), (_operate, "group", good), (_operate, "group", partly), (_operate, "finish", good)],
        )
    assert plain.status_code == 200
    assert unpack_frame(group.content).covers == {0, 1}
    assert group.headers["content-type"] == FRAME_TYPE
    frame = unpack_frame(spoilt.content)
    assert frame.covers == {0}
    np.testing.assert_allclose(frame.raw, linear(vector(1)), rtol=1e-4, atol=1e-5)
    assert frame.slots[1] is not None
    assert frame.slots[1].status == 503
    assert refused.status_code == 400


def _assert_close(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer.keys() == expected.keys()
    assert answer["name"] == expected["name"]
    np.testing.assert_allclose(answer["scores"], expected["scores"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("k", "r"), SIZES)
def test_decoding_a_linear_model(server: TorchServeInstance, k: int, r: int) -> None:
    for members in (frozenset(range(k)), frozenset(range(1, k))):
        frame = pack_frame(group_of(k, members))
        answers = [_operate(server, f"sum-{k}-{row}", "group", frame).content for row in range(r)]
        check_decoding(k, members, [unpack_frame(answer) for answer in answers])


def test_slots_look_like_requests(server: TorchServeInstance) -> None:
    """What user code sees of a slot is what it sees of the request itself: types, values, parts, headers."""
    form, image = b"a=1&b=two+words&c=", bytes(range(256)) * 9 + b"\r\n\r\n--\r\n"
    document = ("d.json", b'{"a": [1]}', "application/json")
    cases = [
        (b"\x00\xff", {}),
        (b"\x00\xff", {"content-type": "application/octet-stream", "X-Own": "Value"}),
        (b'{"a": [1, 2.5, null]}', {"content-type": "application/json"}),
        (b'{"a": 1}', {"Content-Type": "application/json; charset=utf-8"}),
        (b"{not json", {"content-type": "application/json"}),
        ("grüße".encode(), {"content-type": "text/plain"}),
        (b"\xff", {"content-type": "text/plain; charset=utf-8"}),
        (b"", {}),
        (form, {"content-type": "application/x-www-form-urlencoded"}),
        _multipart({"image": ("x.png", image, "image/png"), "doc": document}),
        _multipart({"field": (None, b"value", None), "text": ("t.txt", b"hello\r\n", "text/plain; charset=utf-8")}),
        _multipart({"bare": ("name only", b"\r", None)}),
    ]
    for body, headers in cases:
        ordinary = json.loads(_post(server, "bare-echoes", body, **headers).content)
        sent = {name: value for name, value in ordinary["headers"].items() if isinstance(value, str)}
        slots = (Part(tuple(sent.items()), body), None, None, None)
        frame = unpack_frame(_operate(server, "exact", "group", pack_frame(Frame(slots))).content)
        assert frame.slots[0] is not None
        assert json.loads(frame.slots[0].body) == ordinary


def _multipart(parts: dict[str, tuple[str | None, bytes, str | None]]) -> tuple[bytes, dict[str, str]]:
    boundary = "AaB03x-1"
    pieces = []
    for name, (filename, value, kind) in parts.items():
        head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        head += f"\r\nContent-Type: {kind}" if kind else ""
        pieces.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n")
    body = b"".join(pieces) + f"--{boundary}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={boundary}"}


def test_describe_arrives_as_promised(server: TorchServeInstance) -> None:
    described = server.management().describe("batched", customized=True).customized
    assert described is not None
    ours = described["ts_parity"]
    assert (ours["verdict"], ours["batched"], ours["model"]) == ("codable", True, "batched")
    assert ours["output"] == {"shape": [1, 5], "dtype": "float32"}
    described = server.management().describe("sum-3-1", customized=True).customized
    assert described is not None
    assert described["ts_parity"]["coefficients"] == [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]
    assert described["ts_parity"]["protects"]["model"] == "linear"
