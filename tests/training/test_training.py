"""Training through an archive's own handler: what is learned, scored, packed, and refused."""

import copy
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from ts_parity.codes import make_code
from ts_parity.errors import NotCodable, TrainingError
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, train
from ts_parity.training.commands import report_text
from ts_parity.training.data import Observations, list_bodies, observe, read_labels
from ts_parity.training.evaluate import evaluate
from ts_parity.training.fit import Knobs, draw_present, encode_groups, fit, group_loss
from ts_parity.worker.encoders import combine
from ts_parity.worker.offline import OfflineHandler

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    def forward(self, x):
        return self.layers(x)
"""
HANDLER = """
import os
import numpy as np
import torch

class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        file = os.path.join(folder, context.manifest["model"]["serializedFile"])
        {load}
        self.model.eval()
    def handle(self, data, context):
        rows = [np.frombuffer(bytes(row["body"]), np.float32) for row in data]
        if any(len(row) != 8 for row in rows):
            raise ValueError("eight numbers are needed")
        with torch.no_grad():
            out = self.model(torch.from_numpy(np.stack(rows).copy()))
        {finish}
"""
EAGER = "from net import Net; self.model = Net(); self.model.load_state_dict(torch.load(file))"
SCRIPT = "self.model = torch.jit.load(file)"
ODD = "from net import Net; self.model = Net(); self.model.load_state_dict(torch.load(file)['weights'])"
SCORES = "return [scores.tolist() for scores in out]"


def net(seed=0):
    scope = {}
    exec(NET, scope)
    torch.manual_seed(seed)
    return scope["Net"]()


def serialised(kind, network):
    buffer = io.BytesIO()
    if kind == "script":
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 8)), buffer)
    else:
        torch.save({"weights": network.state_dict()} if kind == "odd" else network.state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def model(tmp_path):
    """`model("eager")` -> an archive."""

    def make(kind="eager", finish=SCORES, network=None):
        load = {"eager": EAGER, "script": SCRIPT, "odd": ODD}[kind]
        handler = HANDLER.replace("{load}", load).replace("{finish}", finish)
        weights = serialised(kind, network or net())
        return write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": NET})

    return make


@pytest.fixture
def bodies(tmp_path):
    folder = tmp_path / "bodies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        (folder / f"{number:03d}.bin").write_bytes(rng.normal(size=8).astype(np.float32).tobytes())
    return folder


def run(model, bodies, tmp_path, **more):
    settings = {"steps": 60, "progress": False, "out": tmp_path / "out", **more}
    return train(TrainSettings(archive=model, inputs=bodies, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own_form"), [("eager", True), ("script", True), ("odd", False)])
def test_what_is_packed_answers_as_it_was_trained(model, bodies, tmp_path, kind, own_form):
    """In the form of the archive's own file where that works, else as TorchScript beside it."""
    report = run(model(kind), bodies, tmp_path)
    packed = read_archive(tmp_path / "out" / report["archives"]["parity"][0])
    assert packed.role == "parity"
    assert packed.section["partial"] is True
    assert packed.section["protects"] == {"model": "vec", "version": "1.0", "weights": report["deployed"]["weights"]}
    assert ("parity_model" in packed.section) == (not own_form)
    deployed = read_archive(tmp_path / "out" / report["archives"]["deployed"])
    assert deployed.role == "deployed"
    assert deployed.weights() == report["deployed"]["weights"]
    assert (packed.weights() != deployed.weights()) == own_form
    assert 0.3 < report["agreement"] <= 1.0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(model, bodies, tmp_path):
    archive = model()
    first = run(archive, bodies, tmp_path, out=tmp_path / "a")
    second = run(archive, bodies, tmp_path, out=tmp_path / "b")
    names = [tmp_path / which / first["archives"]["parity"][0] for which in "ab"]
    assert read_archive(names[0]).weights() == read_archive(names[1]).weights()
    assert first["agreement"] == second["agreement"]
    third = run(archive, bodies, tmp_path, out=tmp_path / "c", seed=1)
    assert read_archive(tmp_path / "c" / third["archives"]["parity"][0]).weights() != read_archive(names[0]).weights()


@pytest.mark.slow
def test_two_rows_and_labels(model, bodies, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = "".join(f"{file.name},{number % 3}\n" for number, file in enumerate(sorted(bodies.iterdir())))
    labels.write_text("file,label\n" + rows)
    report = run(model(), bodies, tmp_path, r=2, labels=labels)
    assert report["archives"]["parity"] == ["vec-parity-0.mar", "vec-parity-1.mar"]
    assert report["members"].keys() == {"1", "2"}
    assert report["two_erased"].keys() == {"agreement", "error", "A_d"}
    expected = 0.9 * report["A_a"] + 0.1 * report["A_d"]
    assert report["A_o"]["0.10"] == pytest.approx(expected, abs=1e-3)
    text = report_text(report, tmp_path / "out")
    assert "A_d, of rebuilt answers" in text
    assert "vec-parity-1.mar" in text


def test_exact_needs_no_training(model, bodies, tmp_path):
    report = run(model(), bodies, tmp_path, code="exact", k=3)
    packed = read_archive(tmp_path / "out" / report["archives"]["parity"][0])
    assert (packed.section["code"], packed.section["k"]) == ("exact", 3)
    assert report["agreement"] == 1.0


def observations(archive, bodies, tmp_path):
    extract_archive(archive, tmp_path / "x")
    with OfflineHandler(tmp_path / "x") as handler:
        return observe(handler, list_bodies(bodies)), copy.deepcopy(handler.model)


def test_a_step_moves_the_parity_model_and_never_the_deployed_one(model, bodies, tmp_path):
    seen, deployed = observations(model(), bodies, tmp_path)
    before = copy.deepcopy(deployed.state_dict())
    split = (np.arange(100), np.arange(100, 120))
    told = []
    trained = fit(
        deployed, seen, (1.0, 1.0), split, Knobs(steps=1), 0, torch.device("cpu"), lambda *said: told.append(said)
    )
    assert len(told) == 1
    assert all(torch.equal(before[name], value) for name, value in deployed.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in trained.network.state_dict().items())


def test_training_encodes_as_the_worker_does():
    inputs = torch.randn(6, 1, 8)
    picks = torch.tensor([[0, 3, 5]])
    weights = torch.tensor([[1.0, 2.0, 0.0]])
    expected = combine([inputs[0], inputs[3], None], (1.0, 2.0, 3.0))
    torch.testing.assert_close(encode_groups(inputs, picks, weights)[0], expected)


def test_a_perfect_parity_model_has_no_loss():
    targets, row, present = torch.randn(4, 3, 1, 5), torch.tensor([1.0, 2.0, 3.0]), torch.ones(4, 3)
    said = torch.einsum("k,gk...->g...", row, targets)
    assert float(group_loss(said, targets, row, present, torch.tensor(1.0), 0.2)) == pytest.approx(0, abs=1e-6)
    assert float(group_loss(said + 1.0, targets, row, present, torch.tensor(1.0), 0.2)) > 0.1


def test_groups_with_empty_slots_have_at_least_one_member():
    present = draw_present(2000, 3, 0.3, np.random.default_rng(0))
    assert present.shape == (2000, 3)
    assert set(present.sum(1)) == {1.0, 2.0, 3.0}
    assert (present.sum(1) < 3).mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("k", "r"), [(2, 1), (3, 2), (4, 1)])
def test_a_linear_model_loses_nothing(k, r):
    code = make_code("sum", k, r)
    outputs = np.random.default_rng(0).normal(size=(50, k, 1, 4)).astype(np.float32)
    labels = outputs[:, :, 0].argmax(-1)
    labels[:10] = 3
    rows = {row: np.array(c)[:, None, None] for row, c in enumerate(code.coefficients)}
    parities = {m: {row: (c * outputs)[:, :m].sum(1) for row, c in rows.items()} for m in range(1, k + 1)}
    scores = evaluate(code, outputs, parities, labels)
    assert scores["agreement"] == 1.0
    assert scores["A_d"] == scores["A_a"] == scores["A_o"]["0.20"]
    assert all(each["agreement"] == 1.0 for each in scores["members"].values())


def nothing_in(folder):
    return not folder.exists() or not any(folder.iterdir())


def test_what_cannot_be_trained_says_why_and_leaves_nothing(model, bodies, tmp_path):
    archive = model()
    few = tmp_path / "few"
    few.mkdir()
    (few / "one.bin").write_bytes(bytes(32))
    with pytest.raises(TrainingError, match="too few"):
        run(archive, few, tmp_path)
    with pytest.raises(TrainingError, match="not a folder"):
        run(archive, tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="holds no files"):
        run(archive, tmp_path / "empty", tmp_path)
    assert nothing_in(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingError, match="--force"):
        run(archive, bodies, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".ts-parity")]


def test_outputs_that_are_not_finite_are_refused(model, bodies, tmp_path):
    broken = net()
    with torch.no_grad():
        broken.layers[2].bias[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        run(model(network=broken), bodies, tmp_path)


def test_integer_outputs_are_refused(model, bodies, tmp_path):
    """The handler's model is made to say class indices."""
    archive = model()
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    files["net.py"] = NET.replace("return self.layers(x)", "return self.layers(x).argmax(1)").encode()
    with zipfile.ZipFile(archive, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    with pytest.raises(NotCodable, match="int"):
        run(archive, bodies, tmp_path)


def test_labels_that_do_not_fit_are_refused(bodies, tmp_path):
    listed, file = list_bodies(bodies), tmp_path / "labels.csv"
    with pytest.raises(TrainingError, match="cannot read the labels"):
        read_labels(file, listed, bodies)
    file.write_text("file,label\n000.bin,two\n")
    with pytest.raises(TrainingError, match="line 2"):
        read_labels(file, listed, bodies)
    file.write_text("file,label\n000.bin,2\n")
    with pytest.raises(TrainingError, match="no label for 119 of 120"):
        read_labels(file, listed, bodies)


def test_a_model_that_treats_batches_differently_is_refused(model, bodies, tmp_path):
    seen, deployed = observations(model(), bodies, tmp_path)
    shifted = Observations(seen.bodies, seen.inputs, seen.outputs + 5.0, seen.call, 0)
    with pytest.raises(NotCodable, match="batch"):
        fit(
            deployed, shifted, (1.0, 1.0), (np.arange(100), np.arange(100, 120)), Knobs(steps=1), 0,
            torch.device("cpu"), lambda *said: None,
        )  # fmt: skip
