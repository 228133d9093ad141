"""Training through an archive's own handler: what is learned, scored, packed, and refused."""

import copy
import errno
import io
import json
import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tests.conftest import write_archive
from ts_parity.cli import main as run_cli
from ts_parity.codes import make_code, read_row_errors
from ts_parity.errors import ConfigError, Exhausted, NotCodable, TrainingError
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, job, train
from ts_parity.training import fit as fit_module
from ts_parity.training.architectures import DEPLOYED, Shapes, make_model
from ts_parity.training.bodies import list_bodies
from ts_parity.training.commands import report_text
from ts_parity.training.data import observe
from ts_parity.training.fit import Hyperparameters, Progress, TrainingData, check_batches, fit
from ts_parity.training.goals import Goal, draw_present
from ts_parity.training.semantics import OutputSemantics
from ts_parity.worker.encoders import combine_by
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


def run(model, bodies, tmp_path, **more):
    settings = {"steps": 60, "progress": False, "out": tmp_path / "out", **more}
    return train(TrainSettings(archive=model, inputs=bodies, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own_form"), [("eager", True), ("script", True), ("odd", False)])
def test_what_is_packed_answers_as_it_was_trained(model, bodies, tmp_path, kind, own_form):
    """In the form of the archive's own file where that works, else as TorchScript beside it."""
    report = run(model(kind), bodies, tmp_path)
    [made] = report["candidates"]
    packed = read_archive(tmp_path / "out" / made["archives"][0])
    assert packed.role == "parity"
    assert packed.section["partial"] is True
    assert packed.section["protects"] == {"model": "vec", "version": "1.0", "weights": report["deployed"]["weights"]}
    assert ("parity_model" in packed.section) == (not own_form)
    deployed = read_archive(tmp_path / "out" / report["archives"]["deployed"])
    assert deployed.role == "deployed"
    assert deployed.weights() == report["deployed"]["weights"]
    assert (packed.weights() != deployed.weights()) == own_form
    assert 0.3 < made["agreement"] <= 1.0
    assert packed.section["cost"] == made["cost"] > 0
    assert packed.section["agreement"] == made["agreement"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


@pytest.mark.long
@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(model, bodies, tmp_path):
    archive = model()
    first = run(archive, bodies, tmp_path, out=tmp_path / "a")
    second = run(archive, bodies, tmp_path, out=tmp_path / "b")
    names = [tmp_path / which / first["candidates"][0]["archives"][0] for which in "ab"]
    assert read_archive(names[0]).weights() == read_archive(names[1]).weights()
    assert first["candidates"][0]["agreement"] == second["candidates"][0]["agreement"]
    third = run(archive, bodies, tmp_path, out=tmp_path / "c", seed=1)
    other = read_archive(tmp_path / "c" / third["candidates"][0]["archives"][0])
    assert other.weights() != read_archive(names[0]).weights()


@pytest.mark.slow
def test_two_rows_and_labels(model, bodies, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = "".join(f"{file.name},{number % 3}\n" for number, file in enumerate(sorted(bodies.iterdir())))
    labels.write_text("file,label\n" + rows)
    report = run(model(), bodies, tmp_path, r=2, labels=labels)
    [made] = report["candidates"]
    assert made["archives"] == ["vec-1.0-sum-k2-r2-row0.mar", "vec-1.0-sum-k2-r2-row1.mar"]
    assert made["members"].keys() == {"1", "2"}
    errors = [read_archive(tmp_path / "out" / name).section["row_errors"] for name in made["archives"]]
    assert errors[0] == errors[1]
    assert set(read_row_errors(errors[0], make_code("sum", 2, 2)).as_json()) == {"0", "1", "0,1"}
    assert made["two_erased"].keys() == {"score", "agreement", "error", "A_d", "intervals"}
    assert made["A_o"]["0.10"] == pytest.approx(0.9 * made["A_a"] + 0.1 * made["A_d"], abs=1e-4)
    assert made["A_o_default"]["0.10"] == pytest.approx(0.9 * made["A_a"] + 0.1 * made["A_default"], abs=1e-4)
    text = report_text(report, tmp_path / "out")
    assert "with two slots erased" in text
    assert "vec-1.0-sum-k2-r2-row1.mar" in text


@pytest.mark.slow
def test_exact_needs_no_training(model, bodies, tmp_path):
    report = run(model(), bodies, tmp_path, codes=("exact",), ks=(3,))
    [made] = report["candidates"]
    packed = read_archive(tmp_path / "out" / made["archives"][0])
    assert (packed.section["code"], packed.section["k"]) == ("exact", 3)
    assert made["agreement"] == 1.0
    assert "archives" not in report, "a backup needs nothing of the deployed workers"


@pytest.mark.slow
def test_a_model_that_is_registered_under_another_name(model, bodies, tmp_path):
    report = run(model(), bodies, tmp_path, codes=("exact",), protects="prod/7")
    [name] = report["candidates"][0]["archives"]
    assert name == "prod-7-exact-k2.mar"
    protects = read_archive(tmp_path / "out" / name).section["protects"]
    assert (protects["model"], protects["version"]) == ("prod", "7")
    assert report["deployed"] == protects


STATE = """
import os
import time
import numpy as np
import torch
from net import Net

class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.model = Net()
        self.model.load_state_dict(torch.load(os.path.join(folder, context.manifest["model"]["serializedFile"])))
        self.model.eval()
        self.before = torch.zeros(8)
        self.turns = 0
    def handle(self, data, context):
        x = torch.from_numpy(np.frombuffer(bytes(data[0]["body"]), np.float32).copy()).reshape(1, 8)
        {act}
"""


def keeping(act, tmp_path):
    weights, handler = serialised("eager", net()), STATE.replace("{act}", act)
    return write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": NET})


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("self.turns += 1; return [{'turn': self.turns}]", "keeps something between requests"),
        ("x = x + self.before; self.before = x[0]; return self.model(x).tolist()", "keeps something between requests"),
        ("self.turns = max(self.turns, float(x[0, 0])); return [self.turns]", "keeps something|fresh copy"),
        ("return (self.model(x) + torch.rand(3)).tolist()", r"draws random numbers \(torch\)"),
    ],
    ids=["conversation", "recurrent", "sticky", "dice"],
)
@pytest.mark.parametrize("codes", [("exact",), pytest.param(("student",), marks=pytest.mark.slow)])
def test_what_is_not_repeatable_is_not_protected(tmp_path, bodies, act, why, codes):
    """`exact` would lose nothing, were it not for the state; and no network can learn what has two answers."""
    with pytest.raises(NotCodable, match="no protection of this handler can be believed") as error:
        run(keeping(act, tmp_path), bodies, tmp_path, codes=codes)
    assert not (tmp_path / "out").exists()
    assert re.search(why, str(error.value)), error.value


@pytest.mark.slow
def test_times_in_answers_are_told_and_no_obstacle(tmp_path, bodies):
    archive = keeping("return [{'scores': self.model(x)[0].tolist(), 'at': time.time_ns()}]", tmp_path)
    report = run(archive, bodies, tmp_path, codes=("exact",))
    assert report["warnings"] == ["every answer differs from every other at at, and so does a rebuilt one"]


def observations(archive, bodies, tmp_path):
    extract_archive(archive, tmp_path / "x")
    with OfflineHandler(tmp_path / "x") as handler:
        seen = observe(handler, list_bodies(bodies), tmp_path / "seen")
        return seen, copy.deepcopy(handler.model_of(seen.call))


def shapes_of(seen):
    return Shapes(tuple(seen.inputs.shape[1:]), tuple(seen.outputs.shape[1:]))


@pytest.mark.parametrize("vary", [(), ("mix",)])
def test_a_step_moves_the_parity_model_once_and_never_the_deployed_one(model, bodies, tmp_path, vary):
    seen, deployed = observations(model(), bodies, tmp_path)
    before = copy.deepcopy(deployed.state_dict())
    called = make_model(DEPLOYED, deployed, seen.call, shapes_of(seen))
    teacher = make_model(DEPLOYED, deployed, seen.call, shapes_of(seen)).requires_grad_(False)
    data = TrainingData(seen.inputs, seen.outputs, np.arange(100), np.arange(100, 120), teacher)
    told = []
    progress = Progress(lambda *said: told.append(said))
    hparams = Hyperparameters(steps=1, vary=vary)
    weights = fit(Fabric(accelerator="cpu"), called, data, Goal(make_code("sum", 2)), hparams, 0, None, progress)
    assert [step for step, _, _ in told] == [1]
    for module in (deployed, teacher.network):
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert any(not torch.equal(before[name], weights[f"network.{name}"]) for name in before)


def test_the_best_of_the_weights_are_kept_and_not_the_last(model, bodies, tmp_path, monkeypatch):
    seen, deployed = observations(model(), bodies, tmp_path)
    called = make_model(DEPLOYED, deployed, seen.call, shapes_of(seen))
    data = TrainingData(seen.inputs, seen.outputs, np.arange(100), np.arange(100, 120))
    scores, kept = iter([0.5, 0.9, 0.1]), []
    monkeypatch.setattr("ts_parity.training.fit.held_out_score", lambda *_: next(scores))
    progress = Progress(lambda *_: kept.append(copy.deepcopy(called.state_dict())))
    hparams = Hyperparameters(steps=3, checks=3)
    weights = fit(Fabric(accelerator="cpu"), called, data, Goal(make_code("sum", 2)), hparams, 0, None, progress)
    assert all(torch.equal(weights[name], value) for name, value in kept[1].items())
    assert any(not torch.equal(weights[name], value) for name, value in kept[2].items())


@pytest.mark.parametrize(("name", "k"), [("sum", 3), ("concat", 2), ("concat", 4)])
def test_training_encodes_as_the_worker_does(name, k):
    code = make_code(name, k, 1)
    inputs = torch.rand(1, k, 1, 3, 8, 6)
    present = torch.ones(1, k)
    present[0, 1] = 0
    slots = [inputs[0, slot] if slot != 1 else None for slot in range(k)]
    torch.testing.assert_close(Goal(code).encode(inputs, present)[0], combine_by(code, 0, slots))


def test_a_perfect_parity_model_has_no_loss():
    goal = Goal(make_code("sum", 3, 2), row=1)
    targets, present = torch.randn(4, 3, 1, 5), torch.ones(4, 3)
    said = torch.einsum("k,gk...->g...", torch.tensor(goal.coefficients), targets)
    for metric in ("accuracy", "mae"):
        loss = [
            float(goal.loss(each, targets, present, torch.tensor(1.0), 0.2, OutputSemantics(metric)))
            for each in (said, said + 1)
        ]
        assert loss[0] == pytest.approx(0, abs=1e-6)
        assert loss[1] > 0.1


def test_groups_with_empty_slots_have_at_least_one_member():
    present = draw_present(2000, 3, 0.3, np.random.default_rng(0))
    assert present.shape == (2000, 3)
    assert set(present.sum(1)) == {1.0, 2.0, 3.0}
    assert (present.sum(1) < 3).mean() == pytest.approx(0.3, abs=0.05)


def nothing_in(folder):
    return not folder.exists() or not any(folder.iterdir())


def test_what_cannot_be_trained_says_why_and_leaves_nothing(model, bodies, tmp_path):
    archive = model()
    few = tmp_path / "few"
    few.mkdir()
    (few / "one.bin").write_bytes(bytes(32))
    with pytest.raises(TrainingError, match="too few"):
        run(archive, few, tmp_path)
    with pytest.raises(TrainingError, match="is no folder"):
        run(archive, tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="holds no files"):
        run(archive, tmp_path / "empty", tmp_path)
    assert nothing_in(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").touch()  # an empty folder would be free to take
    with pytest.raises(ConfigError, match="out is there already; give another, or --force to replace it"):
        run(archive, bodies, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]


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
    with pytest.raises(NotCodable, match=r"an int64 tensor .*; or use code exact"):
        run(archive, bodies, tmp_path)


def test_a_model_that_treats_batches_differently_is_refused(model, bodies, tmp_path):
    seen, deployed = observations(model(), bodies, tmp_path)
    called = make_model(DEPLOYED, deployed, seen.call, shapes_of(seen))
    check_batches(called, seen.inputs, seen.outputs)
    with pytest.raises(NotCodable, match="batch"):
        check_batches(called, seen.inputs, seen.outputs + 5.0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own_form"), [("eager", False), ("script", True)])
def test_a_student_of_another_architecture_is_packed_for_the_users_own_handler(model, bodies, tmp_path, kind, own_form):
    """TorchScript takes the place of the archive's own file; a state dict cannot, so the student lies beside it."""
    report = run(model(kind), bodies, tmp_path, codes=("student",), ks=(2,), budget=4.0, steps=150)
    [made] = report["candidates"]
    assert made["architecture"] == "mlp"
    assert made["multiplications"] <= 4.0
    assert read_archive(tmp_path / "out" / made["archives"][0]).section["cost"] == made["cost"] > 0
    assert "archives" not in report
    packed = read_archive(tmp_path / "out" / made["archives"][0])
    assert ("parity_model" in packed.section) == (not own_form)
    assert packed.section["code"] == "student"
    assert made["agreement"] > 0.5


@pytest.mark.long
@pytest.mark.slow
def test_every_code_with_every_k_and_what_cannot_be(model, bodies, tmp_path):
    """And the table, the page and the recommendation of it."""
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{f.name},{i % 3}\n" for i, f in enumerate(sorted(bodies.iterdir()))))
    more = {"codes": ("sum", "student", "exact"), "ks": (2, 5), "budget": 8.0, "seeds": 2, "steps": 20}
    report = run(model(), bodies, tmp_path, labels=labels, **more)
    made = [(c["code"], c["k"]) for c in report["candidates"]]
    assert made == [("sum", 2), ("student", 2), ("student", 5), ("exact", 2), ("exact", 5)]
    assert report["refused"] == ["code sum has k of 2 to 4, not 5: accuracy falls fast with k"]
    assert [c["seeds"] for c in report["candidates"]] == [2, 2, 2, 0, 0]
    for each in report["candidates"][:3]:
        packed = read_archive(tmp_path / "out" / each["archives"][0]).section
        assert each["agreement"] == packed["agreement"], "of the archive that is there, not of a mean over seeds"
        assert each["over_seeds"]["agreement"] != each["agreement"]
    assert all(c["cost"] > 0 for c in report["candidates"])
    exact = report["candidates"][-1]
    assert (exact["drop"], exact["agreement"], exact["multiplications"]) == (0, 1.0, 5.0)
    names = {name for c in report["candidates"] for name in c["archives"]}
    assert names == {f"vec-1.0-{code}-k{k}.mar" for code, k in made}
    assert {file.name for file in (tmp_path / "out").glob("*.mar")} == names | {report["archives"]["deployed"]}
    text = report_text(report, tmp_path / "out")
    assert report["recommendation"] in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('role="img"') == 2
    assert [c["code"] for c in report["candidates"] if c.get("disagreements")] == ["sum", "student", "student"]
    assert all(sum(each["bodies"] for each in c["classes"]) <= 120 for c in report["candidates"] if "classes" in c)
    assert report["hashes"].keys() == names | {report["archives"]["deployed"], "vec.mar (your own)"}
    ElementTree.fromstring(page.split("\n", 1)[1])  # well formed, the doctype aside
    assert run_cli(["report", str(tmp_path / "out")]) == 0
    assert run_cli(["report", str(tmp_path)]) == 2


@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(model, bodies, tmp_path, monkeypatch):
    archive = model()
    whole = run(archive, bodies, tmp_path, out=tmp_path / "whole")
    written = []
    checkpoint = fit_module._Checkpoint.write

    def interrupted(self, state, rng, dice):
        checkpoint(self, state, rng, dice)
        written.append(state.step)
        if len(written) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit_module._Checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(archive, bodies, tmp_path)
    assert not (tmp_path / "out").exists()
    observed = (tmp_path / "out.unfinished" / "seen" / "index.json").stat().st_mtime_ns
    report = run(archive, bodies, tmp_path)
    assert written[7] == written[6] + 3, "it went on, it did not begin again"
    assert observed  # kept, not made again: the folder is gone now that all is done
    assert not (tmp_path / "out.unfinished").exists()
    for key in ("agreement", "error"):
        assert report["candidates"][0][key] == whole["candidates"][0][key]
    ours, theirs = (
        read_archive(tmp_path / which / whole["candidates"][0]["archives"][0]).weights() for which in ("out", "whole")
    )
    assert ours == theirs


@pytest.mark.long
@pytest.mark.slow
def test_what_cannot_be_done_is_said_before_any_work_and_corrected_settings_go_on(model, bodies, tmp_path, capsys):
    """A budget that nothing meets; then the one that is named. And what was finished under other settings is kept."""
    archive = model()
    student = {"codes": ("student",), "ks": (4,)}
    with pytest.raises(TrainingError, match=r"--budget 0.1 is too small") as refused:
        run(archive, bodies, tmp_path, budget=0.1, **student)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]
    enough = float(re.search(r"Give --budget (\S+) or more", str(refused.value))[1])

    def stopped(*args):
        raise TrainingError("as asked")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "recommend", stopped)
        with pytest.raises(TrainingError, match="as asked"):
            run(archive, bodies, tmp_path, budget=enough, **student)
    work = tmp_path / "out.unfinished"
    assert f"what is finished is in {work}" in capsys.readouterr().err
    kept = [*work.glob("*.weights"), work / "seen" / "index.json"]
    assert len(kept) == 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "recommend", stopped)
        with pytest.raises(TrainingError, match="as asked"):
            run(archive, bodies, tmp_path, budget=2 * enough, steps=20, **student)
    assert len([*work.glob("*.weights")]) == 2, "of two settings; neither is thrown away"
    assert all(file.exists() for file in kept)
    (bodies / "000.bin").write_bytes(bytes(32))
    with pytest.raises(TrainingError, match=r"unfinished work with other inputs, .* \(--force does\)"):
        run(archive, bodies, tmp_path, budget=enough, **student)
    [made] = run(archive, bodies, tmp_path, budget=enough, force=True, **student)["candidates"]
    assert made["multiplications"] <= enough


@pytest.mark.slow
def test_a_student_of_the_smallest_model_needs_no_budget(bodies, tmp_path):
    """Nothing is as cheap as a single layer of eight inputs: the student is as small as makes sense, and the report
    says what it costs.
    """
    single = NET.replace("torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)", "torch.nn.Linear(8, 3)")
    scope = {}
    exec(single, scope)
    weights = serialised("eager", scope["Net"]())
    handler = HANDLER.replace("{load}", EAGER).replace("{finish}", SCORES)
    archive = write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": single})
    [made] = run(archive, bodies, tmp_path, codes=("student",), ks=(4,), steps=5)["candidates"]
    assert made["multiplications"] > 1.0


@pytest.mark.slow
def test_force_throws_unfinished_work_away(model, bodies, tmp_path):
    left = tmp_path / "out.unfinished"
    left.mkdir()
    (left / "job.json").write_text('{"steps": 1}')
    with pytest.raises(TrainingError, match=r"unfinished work with other package and archive and inputs and score"):
        run(model(), bodies, tmp_path, codes=("exact",))
    run(model(), bodies, tmp_path, codes=("exact",), force=True)
    assert (tmp_path / "out" / "report.json").exists()


def test_no_space_on_the_disk_loses_nothing_finished(model, bodies, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(*args):
        raise full

    monkeypatch.setattr(fit_module._Checkpoint, "write", write)
    with pytest.raises(Exhausted, match=r"no space left on the disk .* free some space"):
        run(model(), bodies, tmp_path, steps=2)
    assert (tmp_path / "out.unfinished" / "seen" / "index.json").exists()


@pytest.mark.slow
def test_a_few_refused_bodies_are_counted_and_named_and_many_are_an_error(model, bodies, tmp_path):
    (bodies / "900.bin").write_bytes(b"short")
    report = run(model(), bodies, tmp_path, steps=2)
    assert report["refused_bodies"] == ["900.bin: ValueError: buffer size must be a multiple of element size"]
    assert "900.bin" in report_text(report, tmp_path / "out")
    for number in range(901, 911):
        (bodies / f"{number}.bin").write_bytes(b"short")
    with pytest.raises(
        TrainingError, match=r"refused 7 of 131 bodies so far .*multiple of element size \(7 times\).*900.bin"
    ):
        run(model(), bodies, tmp_path, out=tmp_path / "other", steps=2)


def test_a_handler_that_cannot_be_loaded_says_so(bodies, tmp_path):
    broken = write_archive(tmp_path / "vec.mar", "import nothing_of_that_name\n", name="vec")
    with pytest.raises(TrainingError, match=r"could not be loaded: ModuleNotFoundError.*nothing_of_that_name"):
        run(broken, bodies, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_several_devices_learn_together(model, bodies, tmp_path):
    """Two processes on the CPU, as they would be on two GPUs: each takes its share of every step's groups."""
    report = run(model(), bodies, tmp_path, devices=2, device="cpu", steps=20)
    assert report["candidates"][0]["agreement"] > 0.2


def test_devices_and_precisions_that_are_not_there(model, bodies, tmp_path):
    with pytest.raises(TrainingError, match="--device cuda:7 cannot be used here"):
        run(model(), bodies, tmp_path, device="cuda:7")
    with pytest.raises(TrainingError, match="--precision 3-bit"):
        run(model(), bodies, tmp_path, precision="3-bit")


@pytest.mark.slow
def test_half_precision_where_it_is_asked_for(model, bodies, tmp_path):
    report = run(model(), bodies, tmp_path, precision="bf16-mixed", steps=20)
    assert report["candidates"][0]["agreement"] > 0.2


@pytest.mark.slow
def test_boxes_are_learned_by_squared_error_and_scored_by_overlap(bodies, tmp_path):
    """The paper's localisation task in small: the model says a box, labels are boxes."""
    boxes = NET.replace("torch.nn.Linear(16, 3)", "torch.nn.Linear(16, 4)").replace(
        "return self.layers(x)", "return self.layers(x) * 0.2 + torch.tensor([-1.0, -1.0, 1.0, 1.0])"
    )
    scope = {}
    exec(boxes, scope)
    torch.manual_seed(0)
    network = scope["Net"]()
    handler = HANDLER.replace("{load}", EAGER).replace("{finish}", SCORES)
    weights = serialised("eager", network)
    archive = write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": boxes})
    labels = tmp_path / "labels.csv"
    lines = ["file,x1,y1,x2,y2"]
    for file in sorted(bodies.iterdir()):
        with torch.no_grad():
            box = network(torch.from_numpy(np.frombuffer(file.read_bytes(), np.float32).copy())[None])[0]
        lines.append(",".join([file.name, *(f"{value:.6f}" for value in box.tolist())]))
    labels.write_text("\n".join(lines))
    report = run(archive, bodies, tmp_path, labels=labels, steps=300)
    [made] = report["candidates"]
    assert report["outputs"] == {"kind": "box", "why": "labels of two corners in order"}
    assert made["metric"] == "iou"
    assert made["A_a"] == pytest.approx(1.0, abs=1e-3)
    assert 0.3 < made["A_d"] < 1.0
    assert made["A_d"] == pytest.approx(made["score"], abs=0.01), "the truth is the model's own here"
    assert "agreement" not in made
    assert 0 <= made["A_default"] < 1


@pytest.mark.long
@pytest.mark.slow
def test_a_regressor_is_learned_and_reported_in_its_own_unit(bodies, tmp_path):
    """One output far from 0, labels that are numbers: nothing of it is agreement, and the student is not far off."""
    prices = NET.replace("torch.nn.Linear(16, 3)", "torch.nn.Linear(16, 1)").replace(
        "return self.layers(x)", "return 150 + 77 * (x[:, :1] + self.layers(x))"
    )
    scope = {}
    exec(prices, scope)
    torch.manual_seed(0)
    handler = HANDLER.replace("{load}", EAGER).replace("{finish}", "return [price for [price] in out.tolist()]")
    weights = serialised("eager", scope["Net"]())
    archive = write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": prices})
    labels = tmp_path / "labels.csv"
    true = {f.name: 150 + 77 * np.frombuffer(f.read_bytes(), np.float32)[0] for f in sorted(bodies.iterdir())}
    labels.write_text("file,label\n" + "".join(f"{name},{price:.3f}\n" for name, price in true.items()))
    report = run(archive, bodies, tmp_path, codes=("student",), architecture="mlp", steps=400)
    [made] = report["candidates"]
    assert report["outputs"] == {"kind": "numbers", "why": "one output"}
    assert made["metric"] == "mae"
    assert 30 < made["spread"] < 110
    assert 1 < made["score"] < 40
    packed = read_archive(tmp_path / "out" / made["archives"][0]).section
    low, high = made["promised"]["interval"]
    assert made["promised"] == {
        "agreement": packed["agreement"],
        "tolerance": packed["tolerance"],
        "interval": [low, high],
    }
    assert low <= packed["agreement"] <= high
    assert packed["agreement"] == pytest.approx(0.9, abs=0.05), "of its answers, compared as a proxy will"
    assert made["score"] < packed["tolerance"] < 4 * made["score"]
    text, page = report_text(report, tmp_path / "out"), (tmp_path / "out" / "report.html").read_text()
    assert f"{made['score']:.4g}" in text
    assert "agreement" not in text + page
    assert "agreement" not in made
    labelled = run(archive, bodies, tmp_path, codes=("student",), architecture="mlp", labels=labels, out=tmp_path / "b")
    [made] = labelled["candidates"]
    assert made["E_a"] < made["E_default"]
    text, page = report_text(labelled, tmp_path / "b"), (tmp_path / "b" / "report.html").read_text()
    assert f"E_o, overall: {made['E_o']['0.01']:.4g} ± " in text
    assert "agreement" not in text + page
    assert not {"agreement", "A_a", "A_d"} & made.keys()
    ElementTree.fromstring(page.split("\n", 1)[1])


@pytest.mark.parametrize(
    ("run_model", "rows", "why"),
    [
        ("x[:, :1] * torch.ones(1, 3)", "row[:4] if row[0] > 1 else row", "differ from request to request; use code"),
        (
            "x[:, :1] * torch.ones(1, 3)",
            "row[:4] if row[0] > 2 else row",
            r"float32 of \(1, 4\) and \(1, 8\); use code",
        ),
        ("torch.ones(1, 3 if x[0, 0] > 1 else 4)", "row", "gives a raw output of"),
    ],
)
def test_inputs_and_outputs_of_several_shapes_are_refused(bodies, tmp_path, run_model, rows, why):
    net = f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return {run_model}\n"
    handler = HANDLER.replace("{load}", "from net import Net; self.model = Net()").replace("{finish}", SCORES)
    handler = handler.replace("self.model.eval()", "pass").replace(
        "np.stack(rows)", f"np.stack([{rows} for row in rows])"
    )
    archive = write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=b"-", files={"net.py": net})
    with pytest.raises((TrainingError, NotCodable), match=why):
        run(archive, bodies, tmp_path)


@pytest.mark.slow
def test_outputs_that_cannot_be_summed_by_their_own_network_are_warned_of(model, bodies, tmp_path):
    """A softmax says nothing above 1, and a parity model must say 1.8."""
    archive = model()
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    files["net.py"] = NET.replace("return self.layers(x)", "return self.layers(x).softmax(1)").encode()
    with zipfile.ZipFile(archive, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    report = run(archive, bodies, tmp_path, steps=2)
    assert "cannot say their sum" in report_text(report, tmp_path / "out")
    assert run(archive, bodies, tmp_path, steps=2, architecture="mlp", out=tmp_path / "other")["warnings"] == []
    assert run(model(), bodies, tmp_path, steps=2, out=tmp_path / "third")["warnings"] == []
