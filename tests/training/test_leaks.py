"""Bodies that repeat, and what is scored after being learned: counted, kept apart, and said."""

import numpy as np
import pytest

from tests.conftest import write_archive
from tests.training.test_training import EAGER, HANDLER, NET, SCORES, net, run, serialised
from ts_parity.errors import TrainingError
from ts_parity.training.commands import report_text


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


def test_bodies_that_repeat_stand_on_one_side_of_the_split(archive, tmp_path):
    report = run(archive, write_bodies(tmp_path / "bodies", 40, 3), tmp_path, steps=2)
    told = {"learn": 90, "choose": 4, "score": 6, "repeated": 80, "scored_repeated": 0, "overlap": 0}
    assert report["split"] == told
    assert "80 bodies repeat another" in report_text(report, tmp_path / "out")
    assert not [line for line in report["warnings"] if "learned" in line]


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


def test_few_bodies_that_repeat_often_are_too_few(archive, tmp_path):
    with pytest.raises(TrainingError, match="50 usable bodies, 5 of them different, are too few"):
        run(archive, write_bodies(tmp_path / "bodies", 5, 10), tmp_path, steps=2)
