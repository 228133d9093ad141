"""A student from recorded pairs: from the file to the report, and to what servers run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.pairs import classes, inputs, json_pair, of_rows, open_inference, written
from ts_parity.cli import main
from ts_parity.errors import TrainingError
from ts_parity.pairs import Pair
from ts_parity.training import PairSettings, train_from_pairs
from ts_parity.training.servers.student_runtime import Student

QUICK: dict[str, Any] = {"steps": 60, "progress": False}


def trained(tmp_path: Path, pairs: list[Pair], **more: Any) -> tuple[dict[str, Any], Path]:
    tmp_path.mkdir(exist_ok=True)
    file = written(tmp_path / "pairs.jsonl", pairs)
    out = tmp_path / "student"
    return train_from_pairs(PairSettings((file,), out, **{**QUICK, **more})), out


def api(x: Any, y: Any) -> Pair:
    told = {"probs": y[0].tolist(), "label": ["cat", "dog", "cow"][int(y[0].argmax())], "request_id": str(x[0, 0])}
    return json_pair({"x": x[0].tolist()}, {**told, "version": 2})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Of the protocol, in batches."""
    return trained(tmp_path_factory.mktemp("made"), of_rows(open_inference, 300, rows=(1, 2)), steps=150)


@pytest.fixture(scope="module")
def made_of_json(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return trained(tmp_path_factory.mktemp("json"), of_rows(api, 300), output=("/probs",), steps=150)


@pytest.mark.slow
def test_it_learns_what_the_service_says_and_the_report_says_how_well(made: tuple[dict[str, Any], Path]) -> None:
    report, out = made
    [one] = report["candidates"]
    assert report["outputs"] == {"kind": "classes", "why": "the outputs are probabilities: they add up to 1"}
    assert one["agreement"] > 0.9
    low, high = one["intervals"]["agreement"]
    assert low < one["agreement"] <= high
    assert report["split"]["score"] > 50
    assert "surest" in one["confidence"]
    student, rows = Student(out), inputs(500, seed=77)
    [said] = student([rows])
    agreement = float((said.argmax(1) == classes(rows).argmax(1)).mean())
    assert low - 0.05 <= agreement <= high + 0.05  # what was promised holds for queries that nobody recorded
    assert json.loads((out / "report.json").read_text()) == report
    assert not (out.parent / "student.unfinished").exists()


@pytest.mark.slow
def test_what_is_written_answers_as_the_network_does(
    made: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By numpy, by ONNX and by TorchScript, for one query and for many."""
    folder = tmp_path / "student"
    shutil.copytree(made[1], folder)
    by_numpy = Student(folder)
    (folder / "student.npz").unlink()
    by_onnx = Student(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    by_torch = Student(folder)
    for rows in (1, 2, 17):
        given = [inputs(rows, seed=rows).astype("f4")]
        (one,), (other,), (third,) = by_onnx(given), by_torch(given), by_numpy(given)
        assert one.shape == other.shape == third.shape == (rows, 3)
        assert one.dtype == other.dtype == third.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(third, other, atol=1e-5)
        np.testing.assert_allclose(one.sum(1), 1.0, atol=1e-5)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match="pip install onnxruntime"):
        Student(folder)


@pytest.mark.slow
def test_the_page_and_the_table_hold_no_body(made_of_json: tuple[dict[str, Any], Path], capsys: Any) -> None:
    report, out = made_of_json
    page = (out / "report.html").read_text()
    first = json.loads(Path(report["from_pairs"][0]).read_text().splitlines()[1])
    number = re.findall(r"\d\.\d{4}", first["body"])[0]
    assert number not in page
    assert "litserve/server.py" in page
    assert "cow" in page  # a class has the name that the answers give it
    assert main(["report", str(out)]) == 0
    told = capsys.readouterr().out
    assert "learned from" in told
    assert "loses" in told
    assert str(out / "litserve/server.py") in told


@pytest.mark.slow
def test_the_same_seed_gives_the_same_student(tmp_path: Path) -> None:
    pairs = of_rows(open_inference, 100)
    one, first = trained(tmp_path, pairs)
    weights = torch.jit.load(str(first / "student.pt")).state_dict()  # type: ignore[no-untyped-call]
    other, again = trained(tmp_path, pairs, force=True)
    for name, value in torch.jit.load(str(again / "student.pt")).state_dict().items():  # type: ignore[no-untyped-call]
        assert torch.equal(value, weights[name]), name
    assert one["candidates"][0]["score"] == other["candidates"][0]["score"]
    third, _ = trained(tmp_path, pairs, force=True, seed=1, seeds=2)
    assert third["candidates"][0]["packed_seed"] in (1, 2)
    assert third["candidates"][0]["seeds"] == 2


@pytest.mark.slow
def test_its_size_is_what_was_allowed(tmp_path: Path) -> None:
    pairs = of_rows(open_inference, 100)
    sizes = []
    for number, most in enumerate((100, 2_000, 20_000)):
        told, _ = trained(tmp_path / str(number), pairs, parameters=most, steps=2)
        sizes.append(told["candidates"][0]["parameters"])
        assert 0.5 * most < sizes[-1] <= most
    with pytest.raises(TrainingError, match="--parameters 10 is too few: the narrowest mlp has"):
        trained(tmp_path / "none", pairs, parameters=10)
    told, _ = trained(tmp_path / "timed", pairs, service_time=10.0, budget=0.5, steps=2)
    assert told["candidates"][0]["cost"] < 0.5
    assert "of a deployed inference's time" in told["recommendation"] or "Do not use it" in told["recommendation"]
    with pytest.raises(TrainingError, match=r"even the narrowest mlp takes .* ms here"):
        trained(tmp_path / "none", pairs, service_time=1e-7)
    assert not (tmp_path / "none" / "student.unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [None, "cnn:0.2", "mlp:0.1"])
def test_images_are_learned_too(tmp_path: Path, architecture: str | None) -> None:
    """Pixels of 0 to 255, and an answer of one number."""
    dice, pairs = np.random.default_rng(1), []
    for _ in range(80):
        image = dice.integers(0, 255, (1, 1, 8, 8)).astype(float)
        asked = {"inputs": [{"name": "i", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": image.ravel().tolist()}]}
        bright = float(image.mean())
        answer = {"outputs": [{"name": "o", "shape": [1, 1], "datatype": "FP64", "data": [bright]}]}
        pairs.append(json_pair(asked, answer, "/v2/models/bright/infer"))
    told, out = trained(tmp_path, pairs, architecture=architecture, steps=20, name="small")
    assert told["metric"] == "mae"
    assert told["candidates"][0]["architecture"].startswith("mlp" if architecture == "mlp:0.1" else "cnn")
    [said] = Student(out)([np.full((2, 1, 8, 8), 128, np.uint8)])
    assert (said.shape, said.dtype) == ((2, 1), np.float64)
    assert "TYPE_UINT8 dims: [ 1, 8, 8 ]" in (out / "triton" / "small" / "config.pbtxt").read_text()


@pytest.mark.slow
def test_whole_numbers_are_answered_whole(tmp_path: Path) -> None:
    pairs = [json_pair({"input": n / 7}, {"output": round(n / 7) * 8 + 1000, "n": 1}) for n in range(200)]
    _, out = trained(tmp_path, pairs)
    [said] = Student(out)([np.array(4.0)])
    assert (said.shape, said.dtype) == ((), np.int64)


def test_numbers_of_classes_and_wrong_networks_are_refused(tmp_path: Path) -> None:
    numbers = [json_pair([n / 7, 1.5], {"class": n % 3}) for n in range(100)]
    with pytest.raises(TrainingError, match=r"/class is the number of a class .*--metric mae"):
        trained(tmp_path, numbers)
    pairs = of_rows(open_inference, 60)
    for architecture, told in (("bag", "from pairs learn mlp, cnn, resnet18"), ("mlp:x", "from pairs learn"),
                               ("cnn", r"--architecture cnn is for images .* not for x FP32 \[4\]")):  # fmt: skip
        with pytest.raises(TrainingError, match=told):
            trained(tmp_path, pairs, architecture=architecture)
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.slow
def test_the_command_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "pairs.jsonl", of_rows(open_inference, 60))
    out = str(tmp_path / "out")
    words = ["train", "--from-pairs", str(file), "--out", out, "--steps", "5", "--name", "tiny", "--seed", "3"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["seed"], report["from_pairs"]) == ("tiny", 3, [str(file)])
    assert main([*words, "--force"]) == 0
    said = capsys.readouterr()
    assert "pairs: x FP32 [4] -> probs FP32 [3]; network: mlp" in said.err
    assert "report page" in said.out
    assert report["command"][:4] == ["ts-parity", "train", "--from-pairs", str(file)]
