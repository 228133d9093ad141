"""The faults made on purpose are of the code as it is; `python -m tests.mutants` says whether the tests notice each."""

import pytest

from tests.mutants import MUTANTS, ROOT, made


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.room}: {mutant.what}")
def test_it_can_be_made(mutant):
    file = ROOT / "ts_parity" / mutant.file
    compile(made(mutant, file.read_text()), str(file), "exec")
    assert all((ROOT / tests).exists() for tests in mutant.tests)
