"""The GPU's benchmark in its CPU form: every section runs; what fails or finds no time is told; the page is right."""

import io
import json
import os
import zipfile
from dataclasses import replace

import accuracy
import numpy as np
import pytest
import torch
from PIL import Image

import accuracy_data
import gpu
import gpu_bundle
import gpu_run
from gpu_networks import STUDENTS, Deployed, multiplications
from gpu_sharing import Beside, two_processes
from gpu_times import costs, workers
from ts_parity.training import cost, sizing

CPU = torch.device("cpu")
TINY = gpu.setting_of(CPU, tiny=True)


def measured(*arguments, out):
    assert gpu.main(["--tiny", "--device", "cpu", "--out", str(out), "--only", *arguments]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "billions"), [("resnet18", 11.69, 1.81), ("resnet50", 25.56, 4.09), ("vit_b", 86.57, 17.56)]
)
def test_the_networks_are_those_of_their_papers(name, parameters, billions):
    network = Deployed(name)
    with torch.device("meta"):
        assert round(sum(weight.numel() for weight in network.make().parameters()) / 1e6, 2) == parameters
    assert round(multiplications(network) / 1e9, 2) == billions
    for share in (1 / 4, 1 / 10):
        assert 0.75 * share < multiplications(network.student(share)) / multiplications(network) <= share
    assert len(STUDENTS) == 6


@pytest.mark.long
@pytest.mark.slow
def test_times_are_measured_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sizing, "WARM", 1)
    document = measured("steps", "networks", "sizes", out=tmp_path / "gpu.json")
    assert document["left"] == {}
    assert {row["step"] for row in document["sections"]["steps"]} >= {"encode sum, k=2", "encode concat, k=4"}
    rows = document["sections"]["networks"]
    assert len(rows) == 3 * 3 * len(TINY.batches)
    assert all(row["ms"] > 0 for part in ("steps", "networks") for row in document["sections"][part])
    page = gpu.sections(document)["gpu"]
    for told in ("`exact` beside a student", "T(group) / T(1)", "resnet50", "encode concat"):
        assert told in page


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_answers_every_kind_of_group(monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 8)
    [rows] = workers(replace(TINY, networks=TINY.networks[:1], ks=(2,)))
    assert [(row["code"], row["k"]) for row in rows] == [(code, 2) for code in ("exact", "student", "sum", "concat")]
    assert all(row["cost"] > 0 for row in rows)


@pytest.mark.long
@pytest.mark.slow
def test_something_runs_beside_the_deployed_model():
    [network, *_] = TINY.networks
    taken = two_processes(TINY, network, 40.0, Beside("student", network.student(1 / 4), 1, 20.0), 0.5)
    assert len(taken) > 5
    assert all(taken > 0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.torchserve
def test_real_torchserve_with_frozen_workers(tmp_path):
    document = measured("torchserve", out=tmp_path / "gpu.json")
    start, *arms = document["sections"]["torchserve"]
    assert (start["workers"], start["on a GPU"]) == (4, 0)
    assert [arm["arm"] for arm in arms] == ["round robin", "proxy, exact launched late"]
    assert all(arm["queries"] == 60 and arm["errors"] == 0 for arm in arms)


def run_of(monkeypatch, sections, ends_at=float("inf"), tiny=False):
    written = []
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    document = gpu.measure_all(TINY, [*sections], ends_at, tiny, lambda document: written.append(json.dumps(document)))
    return document, [json.loads(each) for each in written]


def test_what_fails_is_told_and_the_next_begins(monkeypatch, capsys):
    def breaks(setting, tiny):
        yield [{"dtype": "float32", "step": "one", "ms": 1.0}]
        raise RuntimeError("CUDA error: out of luck")

    document, written = run_of(
        monkeypatch, {"steps": (breaks, 1), "sizes": (lambda setting, tiny: iter([[{"network": "a"}]]), 1)}
    )
    assert document["left"] == {"steps": "failed: RuntimeError: CUDA error: out of luck"}
    assert written[0]["sections"] == {"steps": [{"dtype": "float32", "step": "one", "ms": 1.0}]}, "as soon as known"
    assert written[0]["left"] == {"steps": "not finished", "sizes": "not begun"}
    assert document["sections"]["sizes"] == [{"network": "a"}]
    assert "Not run: `steps` (failed" in gpu.sections(document)["gpu"]


def test_a_section_that_would_not_fit_is_left_out(monkeypatch):
    begun = []
    document, _ = run_of(
        monkeypatch,
        {
            name: (lambda setting, tiny, name=name: begun.append(name) or iter([]), s)
            for name, s in (("a", 1e9), ("b", 0))
        },
        ends_at=gpu.time.monotonic() + 1000,
    )
    assert (begun, document["left"]) == (["b"], {"a": "there was no time for it"})


def test_all_sections_together_fit_into_eight_minutes():
    """With what a bundle does beside them: tests come first, and may take two minutes."""
    assert sum(seconds for _, seconds in gpu.SECTIONS.values()) <= 8 * 60
    first = sum(seconds for _, seconds in [*gpu.SECTIONS.values()][:3])
    assert gpu_run.TESTS_S + first + 2 * gpu_run.MARGIN_S <= 8 * 60, "what matters most fits in any case"


def test_costs_are_times_of_a_group_over_those_of_one():
    rows = [
        {"network": "n", "dtype": "half", "how": "graph", "role": role, "batch": batch, "ms": ms}
        for role, times in {"deployed": (2.0, 3.0), "student 1/4": (1.0, 1.2), "student 1/10": (0.5, 0.5)}.items()
        for batch, ms in zip((1, 2), times, strict=True)
    ]
    [found] = costs(rows, (2,))
    assert (found["cost of exact"], found["cost of sum, concat"], found["cost of student 1/4"]) == (1.5, 1.0, 0.6)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 3
    assert "--tiny --device cpu" in capsys.readouterr().err


def test_the_page_says_what_has_been_run_and_what_not():
    for mark, text in gpu.sections(gpu.read_results()).items():
        assert f"<!-- {mark} -->\n\n{text}\n\n<!-- end of {mark} -->" in gpu.DOCS.read_text()


# ---- the paper's scale -----------------------------------------------------------------------------------------------


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def binary_folder(folder, train=40, test=20):
    """CIFAR-10 as its authors give it, with fewer images."""
    made = folder / "cifar-10-batches-bin"
    made.mkdir(parents=True)
    for name, count in (("data_batch_1.bin", train), ("test_batch.bin", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)[:, None]
        np.concatenate([labels, pixels(count).reshape(count, -1)], 1).tofile(made / name)
    return folder


def test_cifar_is_read_in_either_form_and_decoded_once(tmp_path):
    data = accuracy_data.load("cifar10", binary_folder(tmp_path / "data"), tmp_path)
    assert (tuple(data.train.shape), tuple(data.test.shape)) == ((40, 1, 3, 32, 32), (20, 1, 3, 32, 32))
    assert data.test_labels.tolist() == [*range(10), *range(10)]
    again = accuracy_data.load("cifar10", tmp_path / "nowhere", tmp_path)
    assert torch.equal(again.train, data.train)
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg.zip", "w") as packed:
        for part in ("train", "test"):
            for n, image in enumerate(pixels(4)):
                written = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(written, "JPEG")
                packed.writestr(f"{part}/{'cat' if n % 2 else 'dog'}/{n}.jpg", written.getvalue())
    jpeg = accuracy_data.load("cifar10", tmp_path)
    assert (tuple(jpeg.train.shape), sorted(jpeg.train_labels.tolist())) == ((4, 1, 3, 32, 32), [0, 0, 1, 1])


@pytest.mark.long
@pytest.mark.slow
def test_the_papers_table_in_slices_on_a_handful_of_images(tmp_path, capsys):
    """A ResNet-18 of four channels: deployed, a parity model and a student of a tenth; interrupted, and gone on."""
    command = ["--data", str(binary_folder(tmp_path)), "--sets", "cifar10-resnet18", "--quick", "--steps", "2"]
    command += ["--only", "sum:2", "student:10", "--out", str(tmp_path / "rows.json"), "--device", "cpu"]
    assert accuracy.main([*command, "--minutes", "0"]) == accuracy.UNFINISHED
    assert accuracy.main(command) == 0
    document = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["code"], row["k"]) for row in document["rows"]] == [("sum", 2), ("student", 10)]
    assert all(row["rate"] == 3e-3 for row in document["runs"])
    shown = accuracy.tables(document)
    assert "| CIFAR-10, ResNet-18 | 2 | `sum` |" in shown
    assert "| 6.13 |" in shown, "the paper's own beside ours"


def test_the_papers_network_is_for_gpus(monkeypatch):
    asked = []
    monkeypatch.setattr(accuracy, "rows_of", lambda name, args: asked.append(name))
    for device in ("cpu", "cuda"):
        accuracy.main(["--data", "tests", "--quick", "--device", device])
    assert asked.count("cifar10-resnet18") == 1
    plan = accuracy.PLANS["cifar10-resnet18"]
    assert {(code, k) for code, k, _ in plan.candidates} == {
        ("sum", 2), ("sum", 4), ("concat", 2), ("concat", 4), ("student", 4), ("student", 10),
    }  # fmt: skip


# ---- the bundle ------------------------------------------------------------------------------------------------------


def sized(folder, name, megabytes):
    file = folder / name
    with file.open("wb") as opened:
        opened.truncate(round(megabytes * 1e6))
    return file


def test_parts_stay_below_their_limit(tmp_path):
    wheels = {f"wheels/{n}": sized(tmp_path, str(n), mb) for n, mb in enumerate((42, 35, 35, 16, 9, 7, 5, 1))}
    parts = gpu_bundle.parts_of({"run.py": sized(tmp_path, "run.py", 10)}, wheels)
    assert all(part.size <= 60e6 for part in parts)
    assert "run.py" in parts[0].files
    assert sum(len(part.files) for part in parts) == 9
    with pytest.raises(ValueError, match="larger than a part"):
        gpu_bundle.parts_of({}, {"wheels/x": sized(tmp_path, "x", 61)})


def test_a_wheel_that_needs_more_than_is_packed_is_found(tmp_path):
    needs = ["numpy>=1", "torch", "narwhals>=2", "colorama; sys_platform == 'win32'", "pandas; extra == 'all'"]
    files = []
    for name, lines in (("learner", needs), ("numpy", [])):
        files.append(tmp_path / f"{name}-1-py3-none-any.whl")
        with zipfile.ZipFile(files[-1], "w") as wheel:
            told = [f"Name: {name}", *(f"Requires-Dist: {line}" for line in lines)]
            wheel.writestr(f"{name}-1.dist-info/METADATA", "\n".join(told))
    assert gpu_bundle.lacking(files, "3.12") == ["narwhals (for learner-1-py3-none-any.whl)"]


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Two parts with the project in the first, as a link."""
    for number in (1, 2):
        (tmp_path / f"part{number}" / "wheels").mkdir(parents=True)
    (tmp_path / "part1" / "project").symlink_to(gpu_bundle.ROOT)
    return tmp_path


def ran(bundle, *arguments):
    out = bundle / "result.json"
    code = gpu_run.main(["--out", str(out), "--device", "cpu", *arguments], here=bundle / "part1" / "run.py")
    return code, json.loads(out.read_text())


def test_what_is_missing_is_unpacked_and_programs_stay_programs(bundle):
    wheels = {"jdk9py-1.0": "jdk9py/bin/java", "numpy-1.0": "numpy/x", "tqdm-99.0": "tqdm/x"}  # not here, newer, older
    for name, member in wheels.items():
        with zipfile.ZipFile(bundle / "part2" / "wheels" / f"{name}-py3-none-any.whl", "w") as wheel:
            entry = zipfile.ZipInfo(member)
            entry.external_attr = 0o755 << 16
            wheel.writestr(entry, b"#!")
    _, found = ran(bundle, "--only", "accuracy")
    assert found["unpacked"] == ["jdk9py 1.0", "tqdm 99.0"]
    assert os.access(bundle / "unpacked" / "site" / "jdk9py" / "bin" / "java", os.X_OK)
    assert found["steps"] == {"accuracy": {"left": "there is no data in the parts: pack it with --data"}}


def test_data_is_cut_and_joined(bundle, monkeypatch):
    monkeypatch.setattr(gpu_bundle, "PIECE_MB", 0.001)
    content = np.random.default_rng(0).bytes(2500)
    (bundle / gpu_bundle.DATA).write_bytes(content)
    for number, piece in enumerate(gpu_bundle.cut(bundle / gpu_bundle.DATA, bundle)):
        (bundle / f"part{1 + number % 2}" / "data").mkdir(exist_ok=True)
        piece.rename(bundle / f"part{1 + number % 2}" / "data" / piece.name)
    run = gpu_run.Run(bundle / "part1", bundle / "result.json", 1.0)
    run.home.mkdir()
    for _ in range(2):
        assert (run.data() / gpu_bundle.DATA).read_bytes() == content


def test_a_step_without_time_is_told(bundle):
    code, found = ran(bundle, "--minutes", "0.2")
    assert code == 0
    assert found["steps"]["tests"]["left"] == found["steps"]["benchmarks"]["left"] == "there was no time for it"


def test_a_step_that_takes_too_long_is_ended_and_the_rest_stays(bundle, monkeypatch):
    monkeypatch.setattr(gpu_run, "LEAST_S", 0.0)
    run = gpu_run.Run(bundle / "part1", bundle / "result.json", 1.0)
    run.home.mkdir()
    command = [gpu_run.sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    assert run.step("tests", command, 0.5) is None
    assert "ended after" in json.loads((bundle / "result.json").read_text())["steps"]["tests"]["left"]


def test_a_run_goes_on_with_the_json_that_is_there(bundle, monkeypatch):
    """A slice of the accuracy keeps what else was measured, and on another machine the rows that are known."""
    known = {"runs": [{"code": "sum"}], "rows": []}
    earlier = {"steps": {"benchmarks": {"exit": 0}}, "benchmarks": {"card": {"device": "H100"}}, "accuracy": known}
    (bundle / "result.json").write_text(json.dumps(earlier))
    (bundle / "part1" / "data").mkdir()
    (bundle / "part1" / "data" / "cifar10_jpeg.zip.00").write_bytes(b"data")
    begun = []
    monkeypatch.setattr(gpu_run.Run, "step", lambda self, name, command, most_s: begun.append(name))
    _, found = ran(bundle, "--only", "accuracy")
    assert begun == ["accuracy"]
    assert (found["benchmarks"], found["accuracy"]) == (earlier["benchmarks"], known)
    assert json.loads((bundle / "unpacked" / "accuracy.json").read_text()) == known


@pytest.mark.long
@pytest.mark.slow
def test_one_command_leaves_one_json(bundle):
    """The CPU form of what runs on the bare machine: the tests are skipped there, and one section is measured."""
    code, found = ran(bundle, "--tiny", "--minutes", "9", "--only", "tests", "benchmarks")
    assert code == 0, found["steps"]
    assert found["steps"]["tests"]["exit"] == found["steps"]["benchmarks"]["exit"] == 0
    assert found["benchmarks"]["sections"]["steps"]
