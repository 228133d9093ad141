"""How the rows' errors go together: measured for every set of members, and believed as far as bodies are many."""

import numpy as np
import pytest

from ts_parity.codes import make_code
from ts_parity.training.evaluate import evaluate
from ts_parity.training.semantics import CLASSES, OutputSemantics
from ts_parity.training.weighing import all_members, is_weighed, row_errors

SPREAD = np.array([[1.0, 0.0], [2.4, 1.8]])
"""Of the two rows' errors: the second is three times as large, and they go together by 0.8."""


def trained(k, groups, seed=0, size=5, common=0.0):
    """-> the code, outputs, and what two rows that err alike say for all sets of members."""
    code, dice = make_code("sum", k, 2), np.random.default_rng(seed)
    outputs = dice.normal(size=(groups, k, 1, size))
    said = {}
    for slots in all_members(code):
        off = np.einsum("rs,sg...->rg...", SPREAD, dice.normal(size=(2, groups, 1, size))) + common
        said[slots] = {
            row: np.einsum("s,gs...->g...", np.array(code.coefficients[row])[list(slots)], outputs[:, list(slots)])
            + 0.3 * off[row]
            for row in range(2)
        }
    return code, outputs, said


@pytest.mark.parametrize("k", [2, 3, 4])
def test_errors_are_found_for_every_set_of_members(k):
    code, outputs, said = trained(k, 4000)
    found = row_errors(code, outputs, said, OutputSemantics("mae"), 10_000)
    assert len(found.moments) == 2**k - 1
    for _, ((a, b), (c, d)) in found.moments:
        assert b == c
        assert (d / a, b / np.sqrt(a * d)) == (pytest.approx(9.0, rel=0.1), pytest.approx(0.8, abs=0.02))


def test_few_bodies_prove_little_of_what_goes_together():
    code, outputs, said = trained(2, 4000)
    together = []
    for bodies in (1, 4, 10_000):
        ((a, b), (_, d)) = row_errors(code, outputs, said, CLASSES, bodies).of(frozenset({0, 1}))
        together.append(b / np.sqrt(a * d))
    assert together == pytest.approx([0.4, 0.64, 0.8], abs=0.02)


def test_what_is_added_to_all_classes_is_no_error():
    code, outputs, said = trained(2, 4000)
    _, _, shifted = trained(2, 4000, common=100.0)
    one, other = (row_errors(code, outputs, each, CLASSES, 1000).moments for each in (said, shifted))
    for (_, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert row_errors(code, outputs, shifted, OutputSemantics("mae"), 1000).moments != one


@pytest.mark.parametrize("k", [2, 3, 4])
def test_two_rows_lose_less_than_the_first_alone(k):
    """As if they erred independently and alike, they lose more."""
    code, outputs, said = trained(k, 3000)
    errors = row_errors(code, outputs, said, CLASSES, 1000)
    _, fresh, told = trained(k, 3000, seed=1)
    protections = {members: told[tuple(range(members))] for members in range(1, k + 1)}
    first = {members: {0: rows[0]} for members, rows in protections.items()}
    weighed = evaluate(code, fresh, protections, errors=errors)
    unweighed = evaluate(code, fresh, protections)
    alone = evaluate(make_code("sum", k), fresh, first)
    assert weighed["agreement"] > alone["agreement"] > unweighed["agreement"]
    for members, scores in weighed["members"].items():
        assert scores["error"] <= 1.001 * min(
            unweighed["members"][members]["error"], alone["members"][members]["error"]
        )
    assert weighed["two_erased"]["error"] == unweighed["two_erased"]["error"], "two rows, two unknowns: no choice"


def test_one_row_and_backups_have_nothing_to_weigh():
    assert [is_weighed(make_code(*what)) for what in (("sum", 2, 2), ("sum", 2, 1), ("student", 2, 2))] == [
        True, False, False,
    ]  # fmt: skip
