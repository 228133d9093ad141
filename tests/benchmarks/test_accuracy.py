"""The accuracy benchmark, on pictures made here: it runs, what it writes is whole, and the docs say what it wrote."""

import functools
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


def in_a_process_of_its_own(*arguments):
    ran = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("name", "codes"), [("mnist", ["sum:2", "student:2"]), ("cifar10", ["concat:4"])])
def test_a_quick_run_writes_whole_rows(script, data, tmp_path, capsys, name, codes):
    out = tmp_path / "accuracy.json"
    arguments = ["--data", str(data), "--quick", "--sets", name, "--only", *codes, "--steps", "4", "--out", str(out)]
    if name == "cifar10":
        table = in_a_process_of_its_own(*arguments)
    else:
        script.main(arguments)
        table = capsys.readouterr().out
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
        script.main(arguments)
        assert json.loads(out.read_text())["runs"] == kept, "what is there is not made again"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.in_turn = functools.partial(module.in_turn, rounds=8)
    return module


@pytest.mark.long
@pytest.mark.slow
def test_a_run_in_slices_ends_as_one_without(script, data, tmp_path):
    """Stopped at every checkpoint, the deployed model's training included, it says the same to the last bit."""
    arguments = ["--data", str(data), "--quick", "--sets", "mnist", "--only", "student:2", "sum:2:2", "--steps", "4"]

    def ended(name, *more):
        code = script.main([*arguments, "--out", str(tmp_path / name), *more])
        return code != script.UNFINISHED

    assert ended("whole.json")
    stops = 0
    while not ended("sliced.json", "--minutes", "0"):
        stops += 1
    assert stops == 19 + 3 * (1 + 2), "the deployed model, a student, and two rows of a sum"
    whole, sliced = (json.loads((tmp_path / name).read_text())["runs"] for name in ("whole.json", "sliced.json"))
    clock = ("seconds", "cost")
    assert [{k: v for k, v in run.items() if k not in clock} for run in whole] == [
        {k: v for k, v in run.items() if k not in clock} for run in sliced
    ]
    outputs = [sorted((tmp_path / folder).glob("*.npz")) for folder in (".whole", ".sliced")]
    assert [len(files) for files in outputs] == [2, 2]
    for files in zip(*outputs, strict=True):
        one, other = (dict(np.load(file).items()) for file in files)
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=f"{files[0].name} {name}")
    assert not list((tmp_path / ".sliced").glob("*.checkpoint"))


@pytest.mark.long
@pytest.mark.slow
def test_figures_are_made_anew_from_kept_outputs(script, data, tmp_path):
    """Nothing is trained for it, and a run whose outputs are gone is made again only with --renew."""
    out = tmp_path / "accuracy.json"
    arguments = ["--data", str(data), "--quick", "--sets", "mnist", "--only", "sum:2", "--steps", "4"]
    arguments += ["--out", str(out)]
    script.main(arguments)
    made = json.loads(out.read_text())
    broken = {**made, "runs": [{**run, "A_d": 0.123} for run in made["runs"]]}
    out.write_text(json.dumps(broken))
    script.main(["--rescore", "--out", str(out)])
    assert json.loads(out.read_text())["runs"] == made["runs"]
    outputs = next((tmp_path / ".accuracy").glob("*.npz"))
    outputs.unlink()
    out.write_text(json.dumps(broken))
    script.main(arguments)
    assert json.loads(out.read_text())["runs"][0]["A_d"] == 0.123
    script.main([*arguments, "--renew"])
    assert json.loads(out.read_text())["runs"][0]["A_d"] == made["runs"][0]["A_d"]
    assert outputs.exists()


def test_a_row_of_fewer_than_three_seeds_says_so(script):
    row = {"data": "mnist", "code": "sum", "k": 2, "r": 1, "bodies": None, "architecture": "deployed", "steps": 9}
    row |= {"A_a": 0.9, "A_d": 0.8, "drop": 0.1, "agreement": 0.85, "A_default": 0.1, "cost": 1.0, "multiplications": 1}
    for seeds, said in ((1, "1 of 3"), (2, "2 of 3"), (3, "3")):
        runs = [{**row, "seed": seed} for seed in range(seeds)]
        assert f"| {said} | 9 |" in script.tables({"rows": script.summary(runs)})


def test_the_docs_say_what_was_measured(script):
    """The tables of docs/benchmarks.md are the script's own output from the kept results."""
    document = json.loads(RESULTS.read_text())
    assert all(row.keys() >= COLUMNS for row in document["rows"])
    assert script.summary([run for run in document["runs"] if run.get("bodies") is None]) == document["rows"]
    assert script.curve(document["runs"]) == document["curve"]
    assert script.surest(document["runs"]) == document["surest"]
    docs = (ROOT / "docs" / "benchmarks.md").read_text()
    assert script.tables(document) in docs
    assert script.surest_table(document) in docs
    assert script.curve_table(document) in docs
