"""The accuracy benchmark, on pictures made here: it runs, what it writes is whole, and the docs say what it wrote."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "accuracy.py"
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
COLUMNS = {
    "data", "architecture", "code", "k", "r", "seeds", "steps", "A_a", "A_d", "drop", "drop_spread", "agreement",
    "cost",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The three sets' files, in small: scans of digits blown up to 28 and, in colour, to 32 pixels."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4))).clip(0, 16) * 15.9
    padded = np.pad(images[:, 2:-2, 2:-2], ((0, 0), (0, 0), (0, 0))).astype(np.uint8)
    for name in ("mnist", "fashion_mnist"):
        np.savez(
            folder / f"{name}.npz",
            x_train=padded[:1200], y_train=digits.target[:1200], x_test=padded[1200:], y_test=digits.target[1200:],
        )  # fmt: skip
    with zipfile.ZipFile(folder / "cifar10_jpeg.zip", "w") as written:
        for number in range(300):
            shown = io.BytesIO()
            Image.fromarray(np.stack([images[number].astype(np.uint8)] * 3, -1)).save(shown, "jpeg")
            part = "train" if number < 200 else "test"
            written.writestr(f"{part}/class{digits.target[number]}/{number:04d}.jpg", shown.getvalue())
    return folder


def run(data, *arguments):
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--quick", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codes"), [("mnist", ["sum:2", "student:2"]), ("cifar10", ["concat:4"])])
def test_a_quick_run_writes_whole_rows(data, tmp_path, name, codes):
    out = tmp_path / "accuracy.json"
    table = run(data, "--sets", name, "--only", *codes, "--out", str(out))
    document = json.loads(out.read_text())
    assert {"command", "machine", "rows"} <= document.keys()
    assert [f"{row['code']}:{row['k']}" for row in document["rows"]] == codes
    for row in document["rows"]:
        assert row.keys() >= COLUMNS
        assert row["drop"] == pytest.approx(row["A_a"] - row["A_d"], abs=1e-4)
    assert table.count("\n| ") >= len(codes)
    kept = [*document["runs"]]
    kept[0]["A_d"] = 0.123
    out.write_text(json.dumps({**document, "runs": kept}))
    if name == "cifar10":
        run(data, "--sets", name, "--only", *codes, "--out", str(out))
        assert json.loads(out.read_text())["runs"] == kept, "what is there is not made again"


def test_the_docs_say_what_was_measured():
    """The tables of docs/training.md are the script's own output from the kept results."""
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    document = json.loads(RESULTS.read_text())
    assert all(row.keys() >= COLUMNS for row in document["rows"])
    assert module.summary([run for run in document["runs"] if run.get("bodies") is None]) == document["rows"]
    assert module.curve(document["runs"]) == document["curve"]
    docs = (ROOT / "docs" / "training.md").read_text()
    assert module.tables(document) in docs
    assert module.curve_table(document) in docs
