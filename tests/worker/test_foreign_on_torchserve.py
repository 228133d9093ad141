"""An ONNX session and a scikit-learn estimator in a real TorchServe: trained for, packed, served and protected."""

from __future__ import annotations

import json

import numpy as np
import pytest
import requests

from tests.conftest import TorchServeFactory
from tests.worker.serving import linear, make_folder, pack, split_tail, vector
from ts_parity.torchserve.archive import read_archive
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.training import TrainSettings, train
from ts_parity.wire import FRAME_TYPE, OP, RAW, Frame, Part, pack_frame, unpack_frame

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]

HANDLERS = ["onnx_session", "estimator"]
ROLES = ("deployed", "sum", "student")


@pytest.fixture(scope="module")
def served(
    torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TorchServeInstance, dict[tuple[str, str], str]]:
    """-> (an instance, (handler, role) -> the model's name there), all made by `train` of a plain archive."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "bodies").mkdir()
    for number in range(60):
        (folder / "bodies" / f"{number}.bin").write_bytes(vector(1000 + number))
    archives, names = [], {}
    for handler in HANDLERS:
        made_slowly = {"startupTimeout": 1200}  # on a busy machine; of which a third is for the self-test
        plain = pack(make_folder(folder / handler, handler, config=made_slowly), handler.replace("_", "-"))
        out = folder / f"made-{handler}"
        asked = {"codes": ("sum", "student"), "steps": 50, "progress": False}
        report = train(TrainSettings(plain, folder / "bodies", out, **asked))
        made = [report["archives"]["deployed"], *(c["archives"][0] for c in report["candidates"])]
        for role, file in zip(ROLES, made, strict=True):
            archives.append(out / file)
            names[handler, role] = read_archive(out / file).model_name
    return torchserve_factory(archives, env={"PYTHONPATH": ""}), names


def _post(server: TorchServeInstance, model: str, body: bytes, **headers: str) -> requests.Response:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{server.inference_url}/predictions/{model}", data=body, headers=told, timeout=60)


def _framed(server: TorchServeInstance, model: str, op: str, frame: Frame) -> requests.Response:
    return _post(server, model, pack_frame(frame), **{OP: op, "content-type": FRAME_TYPE})


@pytest.mark.long
@pytest.mark.parametrize("handler", HANDLERS)
def test_it_serves_and_is_protected(
    served: tuple[TorchServeInstance, dict[tuple[str, str], str]], handler: str
) -> None:
    """Workers have judged their samples codable; raw outputs, groups and finished answers are the model's own."""
    server, names = served
    for role in ROLES:
        described = server.management().describe(names[handler, role], customized=True).customized
        assert described is not None
        assert described["ts_parity"]["verdict"] == "codable", described["ts_parity"]["reason"]
    body, other = vector(5), vector(6)
    plain = _post(server, names[handler, "deployed"], body)
    np.testing.assert_allclose(plain.json()["scores"], linear(body)[0], rtol=1e-4, atol=1e-5)
    tailed = _post(server, names[handler, "deployed"], body, **{OP: "raw"})
    ordinary, raw = split_tail(tailed.content, tailed.headers[RAW])
    assert ordinary == plain.content
    finished = _framed(server, names[handler, "deployed"], "finish", Frame((Part((), body),), raw))
    assert finished.content == plain.content
    group = Frame((Part((), body), Part((), other)))
    parity = unpack_frame(_framed(server, names[handler, "sum"], "group", group).content)
    assert parity.covers == {0, 1}
    assert parity.raw is not None
    assert parity.raw.shape == raw.shape
    rebuilt = parity.raw - linear(other)
    answer = _framed(server, names[handler, "deployed"], "finish", Frame((Part((), body),), rebuilt)).json()
    np.testing.assert_allclose(answer["scores"], rebuilt[0], rtol=1e-4, atol=1e-5)
    student = unpack_frame(_framed(server, names[handler, "student"], "group", group).content)
    assert [slot is not None and slot.status for slot in student.slots] == [200, 200]
    assert all(len(json.loads(slot.body)["scores"]) == 5 for slot in student.slots if slot is not None)
