"""What would make a report better than it is: bodies on both sides of the split, and work that is out of date."""

import sys

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from tests.training.test_training import EAGER, HANDLER, NET, SCORES, net, run, serialised
from ts_parity.codes import make_code
from ts_parity.errors import TrainingError
from ts_parity.training import TrainSettings, candidates, job
from ts_parity.training.architecture_choice import ArchitectureChooser
from ts_parity.training.bodies import list_bodies
from ts_parity.training.commands import report_text
from ts_parity.training.fit import Hyperparameters
from ts_parity.training.job_spec import Candidate
from ts_parity.training.semantics import OutputSemantics
from ts_parity.training.workshop import workshop


@pytest.fixture
def archive(tmp_path):
    """Of a body it reads eight numbers, and not the id behind them."""
    handler = HANDLER.replace("{load}", EAGER).replace("{finish}", SCORES)
    handler = handler.replace(
        "if any(len(row) != 8 for row in rows):", "rows = [row[:8] for row in rows]\n        if 0:"
    )
    return write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=serialised("eager", net()), files={
        "net.py": NET})  # fmt: skip


def write_bodies(folder, contents, copies, first=0):
    """Each content so many times, each time with an id of its own: no two bodies have the same bytes."""
    folder.mkdir()
    for content in range(first, first + contents):
        numbers = np.random.default_rng(content).normal(size=8).astype(np.float32).tobytes()
        for copy in range(copies):
            (folder / f"{content:03d}-{copy}.bin").write_bytes(numbers + np.int32([copy]).tobytes())
    return folder


@pytest.mark.slow
def test_bodies_that_repeat_stand_on_one_side_of_the_split(archive, tmp_path):
    report = run(archive, write_bodies(tmp_path / "bodies", 40, 3), tmp_path, steps=2)
    told = {"learn": 90, "choose": 4, "score": 6, "repeated": 80, "scored_repeated": 0, "overlap": 0}
    assert report["split"] == told
    assert "80 bodies are repeats" in report_text(report, tmp_path / "out")
    assert not [line for line in report["warnings"] if "learned" in line]


@pytest.mark.slow
def test_scored_bodies_that_were_perhaps_learned_are_counted_and_warned_of(archive, tmp_path):
    inputs = write_bodies(tmp_path / "bodies", 40, 1)
    scored = write_bodies(tmp_path / "fresh", 30, 2, first=35)  # five of the thirty are inputs as well
    report = run(archive, inputs, tmp_path, steps=2, score=scored)
    split = report["split"]
    assert (split["learn"], split["choose"], split["score"]) == (36, 4, 60)
    assert (split["overlap"], split["scored_repeated"]) == (10, 30)
    [warning] = [line for line in report["warnings"] if "learned" in line]
    assert warning.startswith("10 of the 60 scored bodies")
    assert warning in report_text(report, tmp_path / "out")


@pytest.mark.slow
def test_few_bodies_that_repeat_often_are_too_few(archive, tmp_path):
    with pytest.raises(TrainingError, match="50 usable bodies, 5 of them different, are too few"):
        run(archive, write_bodies(tmp_path / "bodies", 5, 10), tmp_path, steps=2)


@pytest.mark.slow
def test_refused_bodies_are_counted_beyond_those_that_are_named(archive, tmp_path):
    inputs, scored = (write_bodies(tmp_path / name, 480, 1) for name in ("bodies", "fresh"))
    for folder, refused in ((inputs, 22), (scored, 3)):
        for number in range(refused):
            (folder / f"x{number:02d}.bin").write_bytes(b"short")
    report = run(archive, inputs, tmp_path, codes=("exact",), score=scored)
    assert report["refused_count"] == 25
    assert len(report["refused_bodies"]) == 20
    assert "bodies the handler refused: 25, such as x00.bin" in report_text(report, tmp_path / "out")


def begin(settings):
    """A run that is interrupted at once."""
    with pytest.raises(KeyboardInterrupt), workshop(settings, list_bodies(settings.inputs)):
        raise KeyboardInterrupt


@pytest.mark.parametrize("changed", ["inputs", "score", "archive", "declaration"])
def test_an_interrupted_run_does_not_go_on_with_other_contents_of_the_same_names(archive, tmp_path, changed):
    inputs, scored = (write_bodies(tmp_path / name, 30, 1, first) for name, first in (("bodies", 0), ("fresh", 50)))
    settings = TrainSettings(archive, inputs, tmp_path / "out", score=scored, progress=False)
    begin(settings)
    begin(settings)  # as often as one likes
    if changed == "archive":
        kept = HANDLER.replace("{load}", EAGER).replace("{finish}", "return [(2 * scores).tolist() for scores in out]")
        write_archive(archive, kept, name="vec", serialized=serialised("eager", net()), files={"net.py": NET})
    elif changed == "declaration":
        settings = TrainSettings(archive, inputs, tmp_path / "out", score=scored, declaration={"call": "forward"})
    else:
        body = next(iter(sorted((inputs if changed == "inputs" else scored).iterdir())))
        body.write_bytes(body.read_bytes()[::-1])
    with pytest.raises(TrainingError, match=rf"unfinished work with other {changed}, .* delete that folder"):
        begin(settings)


def keyed(source, tmp_path, **more):
    hparams = Hyperparameters(steps=2)
    settings = TrainSettings(tmp_path / "vec.mar", tmp_path, tmp_path / "out", progress=False)
    candidate = Candidate(make_code("student", 2), f"{source}:make")
    return ArchitectureChooser(settings, hparams, torch.device("cpu"), tmp_path).key(candidate, **more)


def test_weights_of_an_edited_architecture_are_learned_anew(tmp_path, monkeypatch):
    """Edited itself, or a module of its own folder that it imports."""
    source, helper = tmp_path / "student.py", tmp_path / "ts_parity_test_layers.py"
    source.write_text("import ts_parity_test_layers")
    helper.write_text("WIDTH = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "ts_parity_test_layers", type(sys)("ts_parity_test_layers"))
    sys.modules["ts_parity_test_layers"].__file__ = str(helper)
    keys = [keyed(source, tmp_path), keyed(source, tmp_path)]
    source.write_text("import ts_parity_test_layers  # and more")
    keys.append(keyed(source, tmp_path))
    helper.write_text("WIDTH = 2")
    keys.append(keyed(source, tmp_path))
    keys.append(keyed(source, tmp_path, semantics=OutputSemantics(axis=-3)))
    keys.append(
        keyed(source, tmp_path, semantics=OutputSemantics(axis=-3, why="another reason, which is none to learn anew"))
    )
    assert keys[0] == keys[1]
    assert keys[4] == keys[5]
    assert len(set(keys)) == 4


def test_what_an_architecture_reads_from_a_file_is_seen_by_the_weights_it_begins_with():
    one, other, again = (net(seed) for seed in (0, 1, 0))
    assert candidates._digest(one) == candidates._digest(again) != candidates._digest(other)


@pytest.mark.slow
def test_labels_that_were_corrected_meanwhile_score_what_was_learned(archive, tmp_path, monkeypatch):
    bodies, labels = write_bodies(tmp_path / "bodies", 60, 1), tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{each.name},7\n" for each in sorted(bodies.iterdir())))
    with monkeypatch.context() as patched:
        patched.setattr(candidates, "evaluate", lambda *args: (_ for _ in ()).throw(TrainingError("as asked")))
        with pytest.raises(TrainingError, match="as asked"):
            run(archive, bodies, tmp_path, steps=2, labels=labels)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out.unfinished").glob("*.weights")}
    assert kept
    with torch.no_grad():
        own = {
            each.name: int(net()(torch.tensor(np.frombuffer(each.read_bytes()[:32], np.float32))).argmax())
            for each in bodies.iterdir()
        }
    labels.write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in own.items()))
    report = run(archive, bodies, tmp_path, steps=2, labels=labels)
    assert report["candidates"][0]["A_a"] == 1.0


def test_labels_that_do_not_fit_are_refused_before_any_body_is_run(archive, tmp_path, monkeypatch):
    """Where the table is wrong, not one; where it has other numbers than the model, not more than a look needs."""
    bodies, labels = write_bodies(tmp_path / "bodies", 40, 1), tmp_path / "labels.csv"
    labels.write_text("file,label\n000-0.bin,1\n")
    ran = []
    monkeypatch.setattr(job, "check_repeatable", lambda *args: ran.append(args) or [])
    monkeypatch.setattr(job, "prepare", lambda *args: ran.append(args))
    with pytest.raises(TrainingError, match="has no label for 39 of 40 bodies"):
        run(archive, bodies, tmp_path, steps=2, labels=labels)
    assert not ran
    labels.write_text("file,a,b\n" + "".join(f"{each.name},0.5,1\n" for each in bodies.iterdir()))
    with pytest.raises(TrainingError, match="--labels gives 2 numbers a body"):
        run(archive, bodies, tmp_path, steps=2, labels=labels)
    assert len(ran) == 1, "whether it is repeatable, and nothing else"
    with pytest.raises(TrainingError, match="--metric iou needs four outputs"):
        run(archive, bodies, tmp_path, steps=2, metric="iou")
    assert not (tmp_path / "out.unfinished").exists()
