"""For a linear F the sum code is exact: whatever is recoverable is decoded to F's own output."""

import itertools
import json
import math

import numpy as np
import pytest

from ts_parity.codes import Family, RowErrors, check_coefficients, make_code, read_row_errors
from ts_parity.config import CODES
from ts_parity.errors import CodeError, DecodeError
from ts_parity.wire import ROUNDOFF


def linear_group(code, members, seed=0):
    """-> F's outputs by slot and the parity outputs by row, of a linear F, with `members` slots present."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(6, 5)).astype(np.float32)
    inputs = rng.normal(size=(code.k, 1, 6)).astype(np.float32)
    outputs = {slot: inputs[slot] @ weights for slot in range(members)}
    parities = {
        row: sum(c * inputs[slot] for slot, c in enumerate(code.coefficients[row]) if slot < members) @ weights
        for row in range(code.r)
    }
    return outputs, parities


CASES = [(k, r, members) for k in (2, 3, 4) for r in (1, 2) for members in range(1, k + 1)]


@pytest.mark.parametrize(("k", "r", "members"), CASES)
def test_every_recoverable_pattern_is_decoded_exactly(k, r, members):
    code = make_code("sum", k, r)
    outputs, parities = linear_group(code, members)
    everyone = frozenset(range(members))
    for lost in itertools.chain.from_iterable(itertools.combinations(range(members), n) for n in range(members + 1)):
        for rows in itertools.chain.from_iterable(itertools.combinations(range(r), n) for n in range(r + 1)):
            have = {slot: outputs[slot] for slot in everyone - set(lost)}
            covers = dict.fromkeys(rows, everyone)
            expected = frozenset(lost) if len(lost) <= len(rows) else frozenset()
            assert code.recoverable(frozenset(have), covers) == expected
            for slot in expected:
                rebuilt = code.decode(slot, have, {row: parities[row] for row in rows}, covers)
                np.testing.assert_allclose(rebuilt, outputs[slot], rtol=1e-4, atol=1e-4)


def test_a_slot_that_a_parity_does_not_cover_is_not_in_its_equation():
    """Row 1 lost a bad slot; slot 0 is decoded from it without knowing that slot."""
    code = make_code("sum", 3, 2)
    outputs, _ = linear_group(code, 3)
    covers = {1: frozenset({0, 2})}
    said = {1: 1.0 * outputs[0] + 3.0 * outputs[2]}
    have = {2: outputs[2]}
    assert code.recoverable(frozenset(have), covers) == {0}
    np.testing.assert_allclose(code.decode(0, have, said, covers), outputs[0], rtol=1e-4, atol=1e-4)


def test_two_rows_can_recover_one_of_three_unknowns_only_if_they_can_tell_it_apart():
    code = make_code("sum", 3, 2)
    covers = {0: frozenset({0, 1}), 1: frozenset({0, 1, 2})}
    assert code.recoverable(frozenset(), covers) == frozenset()
    assert code.recoverable(frozenset({0}), covers) == {1, 2}


def amplification(code, slot, have, covers):
    """How much independent, equally large errors of the rows grow in this slot: sqrt(sum w_j^2) over the rows' weights.

    A weight is what is decoded from a 1 in its row and 0 everywhere else.
    """
    others = {member: np.zeros(1) for member in have}
    weights = [code.combined(slot, others, {row: np.full(1, row == j) for row in covers}, covers)[0] for j in covers]
    return math.sqrt(sum(float(weight[0]) ** 2 for weight in weights))


def test_two_rows_amplify_errors_by_their_weights():
    code = make_code("sum", 2, 2)
    both = {0: frozenset({0, 1}), 1: frozenset({0, 1})}
    assert amplification(code, 0, frozenset(), both) == pytest.approx(math.sqrt(5))  # x0 = 2 P0 - P1
    assert amplification(code, 1, frozenset(), both) == pytest.approx(math.sqrt(2))  # x1 = P1 - P0
    assert amplification(code, 1, frozenset({0}), {1: both[1]}) == pytest.approx(0.5)  # x1 = (P1 - x0) / 2
    assert amplification(code, 0, frozenset({1}), {0: both[0]}) == pytest.approx(1.0)


def test_of_several_solutions_the_least_amplifying_is_taken():
    code = make_code("sum", 2, 2)
    both = {0: frozenset({0, 1}), 1: frozenset({0, 1})}
    assert amplification(code, 1, frozenset({0}), both) < 0.5


def correlated(slots):
    """Rows that err alike, the second three times as much as the first: what training on the same bodies makes."""
    spread = np.array([[1.0, 0.0], [2.4, 1.8]])
    return (tuple(slots), tuple(map(tuple, (spread @ spread.T).tolist()))), spread


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_rows_that_err_alike_are_weighed_by_it_whatever_is_lost(k, members):
    """Exact outputs give exact answers; of others the error is never larger than by any one row, nor than unweighed."""
    if members > k:
        pytest.skip("no such group")
    code, dice = make_code("sum", k, 2), np.random.default_rng(k)
    outputs, slots = dice.normal(size=(k, 20_000)), frozenset(range(members))
    moments, spread = correlated(sorted(slots))
    errors = RowErrors((moments,))
    exact = {row: sum(code.coefficients[row][i] * outputs[i] for i in slots) for row in range(2)}
    off = spread @ dice.normal(size=(2, 20_000))
    noisy = {row: exact[row] + off[row] for row in range(2)}
    covers = dict.fromkeys(range(2), slots)
    for lost in itertools.chain(itertools.combinations(slots, 1), itertools.combinations(slots, 2)):
        have = {i: outputs[i] for i in slots if i not in lost}
        for slot in lost:
            decoded = code.decode(slot, have, exact, covers, errors=errors)
            np.testing.assert_allclose(decoded, outputs[slot], atol=1e-9)

            def error(told, known, slot=slot, have=have):
                rebuilt, _ = code.combined(slot, have, told, dict.fromkeys(told, slots), known)
                return float(np.square(rebuilt - outputs[slot]).mean())

            weighed = error(noisy, errors)
            assert weighed <= 1.001 * error(noisy, None)
            if len(lost) == 1:
                assert weighed <= 1.001 * min(error({row: noisy[row]}, errors) for row in noisy)
                assert weighed < 0.9 * error(noisy, None) or slot > 0


def test_what_is_not_known_of_a_pattern_is_weighed_as_ever():
    code = make_code("sum", 3, 2)
    moments, _ = correlated((0, 1, 2))
    errors, outputs = RowErrors((moments,)), np.random.default_rng(0).normal(size=(3, 5))
    for covers in ({0: frozenset({0, 1}), 1: frozenset({0, 1})}, {0: frozenset({0, 1}), 1: frozenset({0, 1, 2})}):
        rows = {row: np.ones(5) for row in covers}
        have = {1: outputs[1], 2: outputs[2]}
        with_errors, without = (code.combined(0, have, rows, covers, known)[0] for known in (errors, None))
        assert (with_errors == without).all()


def test_row_errors_are_written_as_json_and_read_again():
    code = make_code("sum", 2, 2)
    told = {"0": [[1.0, 0.5], [0.5, 2.0]], "0,1": [[1.0, 1.4], [1.4, 2.0]]}
    errors = read_row_errors(json.loads(json.dumps(told)), code)
    assert errors.as_json() == told
    assert (errors, hash(errors)) == (read_row_errors(told, code), hash(read_row_errors(told, code)))
    assert errors.of(frozenset({0, 1})) == ((1.0, 1.4), (1.4, 2.0))
    assert errors.of(frozenset({1})) is None


@pytest.mark.parametrize(
    "told",
    [
        7, "0", [], {"": [[1, 0], [0, 1]]}, {"0,2": [[1, 0], [0, 1]]}, {"1,0": [[1, 0], [0, 1]]}, {"0": [[1]]},
        {"0": [[1, 0], [0, "x"]]}, {"0": [[1, 2], [2, 1]]}, {"0": [[1, 0.2], [0.3, 1]]}, {"0": [[1, 0], [0, math.nan]]},
        {"0": 1}, {0: [[1, 0], [0, 1]]},
    ],
)  # fmt: skip
def test_row_errors_that_cannot_be_are_refused(told):
    with pytest.raises(CodeError, match="row_errors"):
        read_row_errors(told, make_code("sum", 2, 2))


def test_what_cannot_be_decoded_is_an_error():
    code = make_code("sum", 2)
    full = {0: frozenset({0, 1})}
    with pytest.raises(DecodeError, match="slot 0 cannot be decoded"):
        code.decode(0, {}, {0: np.zeros(3)}, full)
    with pytest.raises(DecodeError, match="shapes"):
        code.decode(0, {1: np.zeros(4)}, {0: np.zeros(3)}, full)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        code.decode(1, {1: np.zeros(3)}, {0: np.zeros(3)}, full)


@pytest.mark.parametrize("k", [1, 2, 5, 64])
def test_exact_answers_whatever_arrived(k):
    code = make_code("exact", k)
    assert (code.family, code.lossless) == (Family.BACKUP, True)
    assert code.recoverable(frozenset(), {0: frozenset(range(k))}) == frozenset(range(k))
    assert code.recoverable(frozenset({0}), {0: frozenset(range(k))}) == frozenset(range(1, k))
    with pytest.raises(DecodeError, match="nothing to decode"):
        code.decode(0, {}, {}, {0: frozenset({0})})


@pytest.mark.parametrize(
    ("coefficients", "says"),
    [
        (((1.0, 1.0), (2.0, 2.0)), "singular"),
        (((1.0, 0.0), (1.0, 2.0)), "singular"),
        (((1.0, math.inf), (1.0, 2.0)), "finite"),
        (((1.0, 1.0),), "shape"),
        (((1.0,), (1.0,)), "shape"),
    ],
)
def test_bad_coefficients_are_refused(coefficients, says):
    with pytest.raises(CodeError, match=says):
        check_coefficients(coefficients, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sum", 1), "k of 2 to 4"),
        (("sum", 5), "k of 2 to 4"),
        (("sum", 2, 3), "r of 1 or 2"),
        (("sum", 2, 0), "r of 1 or 2"),
        (("exact", 0), "k of 1"),
        (("exact", 65), "k of 1"),
        (("exact", 2, 0), "at least 1"),
        (("exact", 2, 1, ((1.0, 1.0),)), "no coefficients"),
        (("berrut", 2), "unknown code"),
    ],
)
def test_impossible_codes_are_refused(arguments, says):
    with pytest.raises(CodeError, match=says):
        make_code(*arguments)


@pytest.mark.parametrize("name", CODES)
def test_every_code_that_command_lines_offer_can_be_made(name):
    code = make_code(name, 2)
    assert (code.family is Family.PARITY) == (name in ("sum", "concat"))
    assert code.lossless == (name == "exact")


@pytest.mark.parametrize("k", [2, 4])
def test_concat_decodes_by_subtraction(k):
    code = make_code("concat", k)
    outputs, parities = linear_group(code, k)
    have = {slot: outputs[slot] for slot in range(1, k)}
    covers = {0: frozenset(range(k))}
    assert code.recoverable(frozenset(have), covers) == {0}
    np.testing.assert_allclose(code.decode(0, have, parities, covers), outputs[0], rtol=1e-4, atol=1e-4)
    assert amplification(code, 0, frozenset(have), covers) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("k", "r", "coefficients", "why"),
    [
        (3, 1, None, "k of 2 or 4, not 3: k images of one size must tile"),
        (2, 2, None, "r of 1, not 2"),
        (2, 1, ((1.0, 2.0),), "decodes by subtraction"),
    ],
)
def test_concat_says_what_it_cannot_do(k, r, coefficients, why):
    with pytest.raises(CodeError, match=why):
        make_code("concat", k, r, coefficients)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_student_recovers_every_slot_it_covers(k):
    code = make_code("student", k)
    everyone = frozenset(range(k))
    assert code.recoverable(frozenset(), {0: everyone}) == everyone
    with pytest.raises(DecodeError, match="nothing to decode"):
        code.decode(0, {}, {0: np.zeros(3)}, {0: everyone})
    with pytest.raises(CodeError, match="no coefficients"):
        make_code("student", k, 1, ((1.0,) * k,))


def _decoded_beside(outlier, own, dtype=np.float32, roundoff=0.0):
    """Slot 0, whose output is `own`, from a true parity output and a neighbour's."""
    own, outlier = np.asarray(own, dtype), np.asarray(outlier, dtype)
    covers = {0: frozenset({0, 1})}
    said = (own.astype(np.float64) + outlier).astype(dtype)
    return make_code("sum", 2).decode(0, {1: outlier}, {0: said}, covers, roundoff)


@pytest.mark.parametrize(
    ("outlier", "own", "dtype", "roundoff"),
    [
        ([1e9], [5.0], np.float32, 0.0),
        ([1e9, 0.0], [5.0, 1e5], np.float32, 0.0),  # one coordinate is lost, the largest is not
        ([3e7, 1.0, 2.0], [5.0, 4.0, 3.0], np.float32, 0.0),
        ([1e17], [5.0], np.float64, 0.0),
        ([1000.0], [5.0], np.float32, ROUNDOFF["bfloat16"]),
        ([6e4], [5.0], np.float16, 0.0),
    ],
)
def test_what_rounding_has_swallowed_is_not_decoded(outlier, own, dtype, roundoff):
    with pytest.raises(DecodeError, match="so large that their rounding"):
        _decoded_beside(outlier, own, dtype, roundoff)


@pytest.mark.parametrize(
    ("outlier", "own", "dtype", "roundoff"),
    [
        ([20.0, -30.0, 1.0], [0.0, 3.0, 1e-5], np.float32, 0.0),  # small numbers beside larger ones are nothing lost
        ([1e9], [5.0], np.float64, 0.0),
        ([1e9], [7e8], np.float32, 0.0),
        ([0.0], [0.0], np.float32, 0.0),
        ([1.0, 2.0], [2.0, -1.0], np.float16, 0.0),
        ([1.0, 2.0], [2.0, 0.01], np.float32, ROUNDOFF["bfloat16"]),
    ],
)
def test_ordinary_magnitudes_are_decoded(outlier, own, dtype, roundoff):
    decoded = _decoded_beside(outlier, own, dtype, roundoff)
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded, own, rtol=1e-3, atol=1e-5 * np.abs(own).max())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_decoded(bad):
    code, covers = make_code("sum", 2), {0: frozenset({0, 1})}
    fine, spoilt = np.ones(2, np.float32), np.array([1.0, bad], np.float32)
    with pytest.raises(DecodeError, match="not finite"):
        code.decode(0, {1: fine}, {0: spoilt}, covers)
    with pytest.raises(DecodeError, match="not finite"):
        code.decode(0, {1: spoilt}, {0: fine}, covers)
    largest = np.full(1, np.finfo(np.float32).max, np.float32)
    with pytest.raises(DecodeError, match="not finite"):
        code.decode(0, {1: -largest}, {0: largest}, covers)


def test_a_parity_model_may_answer_in_another_dtype_than_the_deployed_model():
    """Which learned in float32 what a float64 model says: the result is a float64, known as well as a float32 is."""
    code, covers = make_code("sum", 2), {0: frozenset({0, 1})}
    for deployed, parity in ((np.float64, np.float32), (np.float32, np.float64)):
        decoded = code.decode(0, {1: np.ones(2, deployed)}, {0: np.full(2, 3.0, parity)}, covers)
        assert (decoded.dtype, decoded.tolist()) == (np.float64, [2.0, 2.0])
        with pytest.raises(DecodeError, match="so large that their rounding"):
            code.decode(0, {1: np.full(1, 1e9, deployed)}, {0: np.full(1, 1e9 + 5, parity)}, covers)
    with pytest.raises(DecodeError, match="of shapes"):
        code.decode(0, {1: np.ones(2)}, {0: np.ones(3)}, covers)
