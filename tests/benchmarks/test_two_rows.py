"""The benchmark of two rows: what it finds in outputs that were made here, and that the docs say what it wrote."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ts_parity.codes import make_code

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import two_rows

    import accuracy_kept

    yield two_rows, accuracy_kept
    for name in ("two_rows", "accuracy_kept", "tables"):
        sys.modules.pop(name, None)


def kept(accuracy_kept, seed):
    """Rows that err alike, the second twice as much."""
    dice, code = np.random.default_rng(seed), make_code("sum", 2, 2)
    outputs = dice.normal(size=(600, 1, 4))
    groups = dice.permutation(600).reshape(-1, 2)
    off = dice.normal(scale=0.4, size=(300, 1, 4))
    said = {
        row: np.einsum("k,gk...->g...", c, outputs[groups]) + (1 + row) * off + dice.normal(scale=0.1, size=off.shape)
        for row, c in enumerate(code.coefficients)
    }
    return accuracy_kept.Said(outputs, outputs[:, 0].argmax(-1), groups, {1: said, 2: said})


def test_what_is_weighed_beats_the_first_row_alone_and_rows_taken_as_alike(benchmarks, tmp_path):
    two_rows, accuracy_kept = benchmarks
    file = tmp_path / "fashion-sum-k=2-r=2-seed-0.npz"
    accuracy_kept.KeptOutputs(kept(accuracy_kept, 0), kept(accuracy_kept, 1)).save(file)
    run = two_rows.run_of(file, 2, 0, 100)
    assert (run["correlation"], run["sizes"]) == (pytest.approx(0.96, abs=0.02), pytest.approx(2.0, rel=0.1))
    agreement = {way: run[way]["agreement"][0] for way in two_rows.WAYS}
    assert agreement["weighed"] > max(agreement["first"], agreement["alike"])
    assert "| 2 |" in two_rows.table({"runs": [run]})


@pytest.mark.slow
def test_the_docs_say_what_was_measured(benchmarks):
    two_rows, _ = benchmarks
    document = json.loads(two_rows.RESULTS.read_text())
    assert two_rows.table(document) in two_rows.DOCS.read_text()
