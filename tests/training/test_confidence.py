"""The confidence of what a job packs: fitted to bodies that were not learned, in the archive as in the report."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.test_training import model as model
from tests.training.test_training import run
from ts_parity.confidence import read_confidence
from ts_parity.torchserve.archive import read_archive
from ts_parity.training.commands import report_text
from ts_parity.training.confidence import _unlearned
from ts_parity.training.figures import NO_GUARD


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for number in range(480):
        (folder / f"{number:03d}.bin").write_bytes(dice.normal(size=8).astype(np.float32).tobytes())
    return folder


@pytest.mark.slow
def test_archive_and_report_say_the_same(model, many, tmp_path):
    report = run(model(), many, tmp_path, codes=("sum", "student"), steps=20)
    text = report_text(report, tmp_path / "out")
    assert text.count(NO_GUARD) == 1
    split = report["split"]
    for made, patterns in zip(report["candidates"], (["1", "2"], ["1"]), strict=True):
        told = made["confidence"]
        assert (split["choose"], split["score"]) == (48, 72)
        assert 112 <= told["fitted_on"] <= 120, "a body may be left over in each fold"
        assert 66 <= told["bodies"] <= 72
        assert [each["share"] for each in told["surest"]] == [0.95, 0.90, 0.85, 0.80, 0.70, 0.50]
        assert sorted(told["patterns"]) == patterns
        assert told["expected"] == pytest.approx(told["agreement"], abs=0.15)
        assert f"{made['code']} k=2: calibrated on {told['fitted_on']} bodies" in text
        [archive] = made["archives"]
        packed = read_archive(tmp_path / "out" / archive).section["confidence"]
        assert sorted(read_confidence(packed).curves) == patterns
        assert len(json.dumps(packed)) < 2000
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


@pytest.mark.slow
def test_too_few_bodies_are_said_and_leave_it_out(model, bodies, tmp_path):
    report = run(model(), bodies, tmp_path, steps=5)
    [made] = report["candidates"]
    why = "30 held-out bodies are too few to say how sure an answer is; it takes 100"
    assert made["confidence"] == {"too_few": why}
    assert f"sum k=2: no confidence: {why}" in report_text(report, tmp_path / "out")
    assert "confidence" not in read_archive(tmp_path / "out" / made["archives"][0]).section


def dataset(learn, choose, score, seen, scored):
    return SimpleNamespace(
        learn=np.array(learn),
        choose=np.array(choose),
        scored_rows=np.array(score),
        seen=SimpleNamespace(keys=seen),
        scored=SimpleNamespace(keys=scored),
    )


def test_what_was_learned_neither_fits_nor_judges():
    """Whatever --score gives; and what is judged is fitted to in another fold only, never as one that chose weights."""
    seen = [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
    scored = [("x", "A"), ("y", "Y"), ("c", "Z")]
    choose, score = _unlearned(dataset([0, 1], [2, 3], [0, 1, 2], seen, scored))
    assert (choose.tolist(), score.tolist()) == ([3], [1, 2])
    same = _unlearned(dataset([0, 1], [2], [3], seen, seen))
    assert [each.tolist() for each in same] == [[2], [3]]


@pytest.mark.slow
def test_scored_bodies_that_were_learned_fit_nothing(model, many, tmp_path):
    """Of 480 that are learned from and scored as well, only the 48 that chose the weights are left."""
    report = run(model(), many, tmp_path, codes=("student",), steps=5, score=many)
    [made] = report["candidates"]
    assert re.match("4[0-8] held-out bodies are too few", made["confidence"]["too_few"])
