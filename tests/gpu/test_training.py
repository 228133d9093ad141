"""Training on the GPU, and what it packs there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from tests.gpu.workers import GPU_ID, HANDLER, MODEL, expected, image, needs_cuda, needs_gpu, network
from ts_parity.torchserve.archive import extract_archive
from ts_parity.training import TrainSettings, train
from ts_parity.wire import Frame, Part
from ts_parity.worker.entry import OfflineProtection

pytestmark = needs_gpu
DEVICE = "cuda" if GPU_ID is not None else "cpu"


def _train(tmp_path: Path, way: str = "", **more: Any) -> tuple[dict[str, Any], Path]:
    state = io.BytesIO()
    torch.save(network().state_dict(), state)
    archive = write_archive(
        tmp_path / "images.mar", HANDLER, serialized=state.getvalue(), files={"net.py": MODEL}, model_file="net.py",
        config=way,
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    for seed in range(200):
        (tmp_path / "in" / f"{seed:03}.bin").write_bytes(image(seed))
    out = tmp_path / "out"
    settings = {"steps": 60, "device": DEVICE, "progress": False, **more}
    report = train(TrainSettings(archive, tmp_path / "in", out, ("sum", "student", "exact"), (2,), **settings))
    return report, out


WAYS = {"float": "", "half": "way: {dtype: float16}", "hard-wired": "way: {hard_wired: true}"}


@pytest.mark.parametrize("way", [*WAYS.values()], ids=[*WAYS])
def test_what_is_trained_answers_on_both_kinds_of_device(tmp_path: Path, way: str) -> None:
    if GPU_ID is None and "float16" in way:
        pytest.skip("convolutions of half precision take long on a CPU")
    report, out = _train(tmp_path, way)
    by_code = {one["code"]: one for one in report["candidates"]}
    assert all(one["cost"] is not None and one["cost"] > 0 for one in by_code.values()), report["warnings"]
    assert by_code["sum"]["agreement"] > 0.6
    if GPU_ID is not None:
        assert report["device"].startswith("cuda:0, ")
    frame = Frame(tuple(Part((), image(seed)) for seed in (1, 2)))
    for code, one in by_code.items():
        extract_archive(out / one["archives"][0], tmp_path / code)
        said = []
        for gpu in dict.fromkeys((GPU_ID, None)):
            answered = OfflineProtection(tmp_path / code, gpu).answer(frame)
            if code == "sum":
                assert answered.raw is not None
                said.append(answered.raw)
            else:
                assert [part.status for part in answered.slots if part is not None] == [200, 200]
        assert all(np.allclose(each, said[0], atol=0.05 * np.abs(expected(image(1))).max()) for each in said)


def test_costs_are_measured_where_it_will_serve(tmp_path: Path) -> None:
    report, _ = _train(tmp_path, serve_on="cpu", steps=2)
    assert report["serve_on"] == "cpu"
    assert all(one["cost"] for one in report["candidates"])


@needs_cuda
def test_inputs_stay_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ts_parity.training import fit

    near = []
    real = fit._near
    monkeypatch.setattr(fit, "_near", lambda inputs, device: near.append(real(inputs, device)) or near[-1])
    _train(tmp_path, steps=2)
    assert all(each.device.type == "cuda" for each in near)
