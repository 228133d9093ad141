"""What it means that two answers agree, case by case."""

from __future__ import annotations

import gzip
import json
import math
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_parity.engine import Finding
from ts_parity.proxy.http.messages import Response
from ts_parity.proxy.serving.comparison import LARGEST, ResponseComparer, compare, off_by

AGREED, DIFFERED, UNKNOWN = Finding.AGREED, Finding.DIFFERED, Finding.UNKNOWN


def reply(body: Any, status: int = 200, **headers: str) -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, "", tuple((name.replace("_", "-"), value) for name, value in headers.items()), data)


EQUAL: list[tuple[Any, Any, Finding]] = [
    ([0.1, 0.9], [0.1000001, 0.8999999], AGREED),
    ([0.1, 0.9], [0.2, 0.8], DIFFERED),
    ({"cat": 0.93, "dog": 0.07}, {"dog": 0.07001, "cat": 0.92999}, AGREED),
    ({"cat": 0.93, "dog": 0.07}, {"cat": 0.93, "fox": 0.07}, DIFFERED),
    ([12.5, 1e-9], [12.5, 3e-9], AGREED),
    ([0.004, 0.003], [0.003, 0.004], DIFFERED),
    (0.3, 0.300001, AGREED),
    (0.0002, 0.0008, DIFFERED),
    (1, 2, DIFFERED),
    (1000, 1001, DIFFERED),
    (1.0, 1, AGREED),
    (True, 1, DIFFERED),
    (None, 0, DIFFERED),
    ("cat", "dog", DIFFERED),
    ([1, 2, 3], [1, 2], DIFFERED),
    ([1, 2], [2, 1], DIFFERED),
    ({"a": [{"b": [1.0, "x"]}]}, {"a": [{"b": [1.00001, "x"]}]}, AGREED),
    ({"a": [{"b": [1.0, "x"]}]}, {"a": [{"b": [1.00001, "y"]}]}, DIFFERED),
    (float("nan"), float("nan"), AGREED),
    (float("inf"), 1.0, DIFFERED),
    (10**400, 1.5, DIFFERED),
    ({"label": "cat", "request_id": "a"}, {"label": "cat", "request_id": "b"}, AGREED),
    ({"request_id": "a"}, {"request_id": "b"}, UNKNOWN),
    ({"label": "cat", "inference_time_ms": 1.2}, {"label": "cat", "inference_time_ms": 9.7}, AGREED),
    ({"label": "cat", "score": "93.41%"}, {"label": "cat", "score": "93.42%"}, AGREED),
    ({"label": "cat", "score": "93.41%"}, {"label": "cat", "score": "39.41%"}, DIFFERED),
    ("tensor([0.1234, 2.0])", "tensor([0.1234, 2.0001])", AGREED),
    ("cat 7", "cat 8", DIFFERED),
    ([["cat", 0.99], ["dog", 0.00100]], [["cat", 0.99], ["dog", 0.00101]], AGREED),
    ([["cat", 0.99], ["dog", 0.001]], [["cat", 0.99], ["dog", 0.011]], DIFFERED),
    ([{"box": [0.00100, 0.5], "score": 0.9}], [{"box": [0.00102, 0.5], "score": 0.9}], AGREED),
    ({"score": 900.0, "box": [0.0001]}, {"score": 900.0, "box": [0.0002]}, DIFFERED),
    ([["cat", 0.4001], ["dog", 0.4]], [["dog", 0.4001], ["cat", 0.4]], AGREED),
    ([["cat", 0.6], ["dog", 0.4]], [["dog", 0.6], ["cat", 0.4]], DIFFERED),
    ([["cat", 0.6], ["dog", 0.4]], [["dog", 0.4], ["cat", 0.6]], DIFFERED),
    (gzip.compress(b"[0.5]", mtime=1), gzip.compress(b"[0.5]", mtime=2), AGREED),
    (gzip.compress(b"[0.5]", mtime=1), gzip.compress(b"[0.50001]", mtime=2), AGREED),
    (gzip.compress(b"[0.5]", mtime=1), gzip.compress(b"[0.7]", mtime=2), DIFFERED),
    (gzip.compress(bytes(LARGEST + 1), mtime=1), gzip.compress(bytes(LARGEST + 2), mtime=2), UNKNOWN),
    (b"\x1f\x8bno gzip", b"\x1f\x8bno gzip either", DIFFERED),
    (
        {"label": "cat", "hostname": "ts1", "worker_pid": 7},
        {"label": "cat", "hostname": "ts2", "worker_pid": 8},
        AGREED,
    ),
    (b"cat 0.93001", b"cat 0.93002", AGREED),
    (b"cat 0.93", b"cat 0.12", DIFFERED),
    (b"cat 7", b"cat 8", DIFFERED),
    (b"\x89PNG\0a", b"\x89PNG\0b", DIFFERED),
    (b"", b"", AGREED),
    (b"", b"x", DIFFERED),
    (b"[" * 100_000, b"[" * 100_001, DIFFERED),
]


@pytest.mark.parametrize(("one", "other", "finding"), EQUAL)
def test_equal_up_to_the_last_digits(one: Any, other: Any, finding: Finding) -> None:
    assert compare(reply(one), reply(other), lossless=True).finding is finding
    assert compare(reply(other), reply(one), lossless=True).finding is finding


DECISIONS: list[tuple[Any, Any, Finding]] = [
    ({"cat": 0.93, "dog": 0.07}, {"cat": 0.55, "dog": 0.45}, AGREED),
    ({"cat": 0.93, "dog": 0.07}, {"dog": 0.55, "cat": 0.45}, DIFFERED),
    ([0.1, 0.7, 0.2], [0.3, 0.4, 0.3], AGREED),
    ([0.1, 0.7, 0.2], [0.6, 0.4, 0.3], DIFFERED),
    ([{"cat": 0.93, "dog": 0.07}], [{"cat": 0.6, "dog": 0.4}], AGREED),
    ([["cat", 0.9], ["dog", 0.1]], [["cat", 0.6], ["fox", 0.3]], AGREED),
    ([["cat", 0.9], ["dog", 0.1]], [["dog", 0.6], ["cat", 0.3]], DIFFERED),
    ([{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}], [{"label": "cat", "score": 0.5}], AGREED),
    ({"label": "cat", "score": 0.9}, {"label": "cat", "score": 0.4}, AGREED),
    ({"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.9}, DIFFERED),
    ("cat", "cat", AGREED),
    ("cat", "dog", DIFFERED),
    (3, 4, DIFFERED),
    ([3, 1], [3, 2], DIFFERED),
    (100.0, 104.0, AGREED),
    (100.0, 150.0, DIFFERED),
    ({"price": 100.0}, {"price": 101.0}, AGREED),
    ([0.42], [0.47], AGREED),
    ([0.42], [0.97], DIFFERED),
    ([[0.1, 0.9], [0.8, 0.2]], [[0.3, 0.7], [0.6, 0.4]], AGREED),
    ([[0.1, 0.9], [0.8, 0.2]], [[0.3, 0.7], [0.4, 0.6]], DIFFERED),
    ([math.nan, math.nan], [0.9, 0.1], DIFFERED),
    ({"cat": math.nan, "dog": 0.1}, {"cat": 0.1, "dog": 0.2}, DIFFERED),
    (math.nan, 0.5, DIFFERED),
    ([], None, UNKNOWN),
    ({"a": {"b": 0.5, "c": None}}, {"a": {"b": 0.6, "c": 0.5}}, UNKNOWN),
    (b"\x89PNG\0a", b"\x89PNG\0b", UNKNOWN),
    (b"\x89PNG\0a", b"\x89PNG\0a", AGREED),
    (b"the cat", b"the  cat\n", AGREED),
    (b"the cat", b"the dog", DIFFERED),
]


@pytest.mark.parametrize(("one", "other", "finding"), DECISIONS)
def test_the_same_decision(one: Any, other: Any, finding: Finding) -> None:
    found = compare(reply(one), reply(other), lossless=False)
    assert found.finding is finding
    assert bool(found.why) == (finding is not AGREED)
    assert compare(reply(other), reply(one), lossless=False).finding is finding


NUMBERS: list[tuple[Any, Any, Finding]] = [
    (100.0, 104.0, AGREED),
    (100.0, 106.0, DIFFERED),
    (0.2, 4.9, AGREED),
    (151, 155, AGREED),  # a handler that rounds
    ({"price": 100.0, "currency": "EUR"}, {"price": 104.0, "currency": "EUR"}, AGREED),
    ({"price": 100.0, "currency": "EUR"}, {"price": 100.0, "currency": "USD"}, DIFFERED),
    ([10.0, 20.0, 110.0, 120.0], [12.0, 26.0, 108.0, 118.0], AGREED),  # by 3.5 on average
    ([10.0, 20.0, 110.0, 120.0], [12.0, 40.0, 108.0, 118.0], DIFFERED),
    ([1.0, 9.0], [9.0, 1.0], DIFFERED),
    ([9.0, 1.0], [9.0], DIFFERED),
    (math.nan, 1.0, DIFFERED),
    (10**400, 1.5, DIFFERED),
    (5_000_000.0, 5_000_100.0, AGREED),  # the last digits of what is large
    ("high", "high", AGREED),
    ("high", "low", DIFFERED),
]


@pytest.mark.parametrize(("one", "other", "finding"), NUMBERS)
def test_numbers_agree_within_what_their_archive_says(one: Any, other: Any, finding: Finding) -> None:
    """Of a box or a price nothing is the largest; how far off it usually is was measured in training."""
    found = compare(reply(one), reply(other), lossless=False, tolerance=5.0)
    assert found.finding is finding
    assert compare(reply(other), reply(one), lossless=False, tolerance=5.0).finding is finding
    assert compare(reply(one), reply(other), lossless=True, tolerance=5.0) == compare(reply(one), reply(other), True)


def test_how_far_off_numbers_are() -> None:
    assert off_by(b"[1.0, 2.0]", b"[4.0, 6.0]") == pytest.approx(math.sqrt(12.5))
    assert off_by(b"[1.0, 2.0]", b"[4.0]") is None
    assert off_by(b'"cat"', b'"cat"') is None
    assert off_by(b"no JSON", b"1.0") is None
    found = compare(reply(100.0), reply(112.0), lossless=False, tolerance=5.0)
    assert found.why == "numbers: off by 12, where 5 is usual"


@pytest.mark.parametrize("lossless", [False, True])
def test_errors_prove_nothing(lossless: bool) -> None:
    """Or twenty bodies that nobody can read would end a trial."""
    bad = reply({"code": 400}, 400)
    assert compare(bad, bad, lossless).finding is UNKNOWN
    assert compare(bad, reply({"code": 503}, 503), lossless).finding is UNKNOWN
    assert compare(reply(1), reply({}, 503), lossless).finding is UNKNOWN
    assert compare(reply(1), reply({}, 400), lossless).finding is DIFFERED
    assert compare(reply(1), reply(1, 201), lossless).finding is DIFFERED


def test_a_mask_as_text_is_compared_in_no_time() -> None:
    """It took a time that grew with the square of its length: for this one, half an hour."""
    one = "01" * (LARGEST // 2 - 20)
    for body, other in ((one, one + "1"), (one.encode(), one.encode() + b"1")):
        assert compare(reply(body), reply(other), lossless=True).finding is DIFFERED


def test_large_bodies_are_not_parsed() -> None:
    numbers, others = [0.5] * LARGEST, [0.6] * LARGEST
    assert compare(reply(numbers), reply(numbers), lossless=True).finding is AGREED
    assert compare(reply(numbers), reply(others), lossless=True).finding is UNKNOWN
    assert compare(reply(b"\0" * LARGEST + b"a"), reply(b"\0" * LARGEST + b"b"), lossless=True).finding is DIFFERED


def test_headers_that_say_how_to_read_the_body_decide() -> None:
    one, other = reply(b"x", Content_Type="text/plain"), reply(b"x", content_type="image/png")
    assert compare(one, other, lossless=True).finding is DIFFERED
    assert compare(one, reply(b"x", content_type="Text/Plain"), lossless=True).finding is AGREED


def test_headers_made_anew_for_each_answer_do_not() -> None:
    answers = ResponseComparer()
    at = "Mon, 01 Jan 2026 00:00:0"
    for number in range(5):
        one = reply("cat", x_request_id=f"a{number}", Date=f"{at}0 GMT", x_took_ms="3", x_run="f" * 32)
        other = reply("cat", x_request_id=f"b{number}", date=f"{at}1 GMT", x_took_ms="3.7 ms", x_run="e" * 32)
        assert answers.compare(one, other, lossless=True).finding is AGREED


def test_a_header_that_was_once_the_same_belongs_to_the_answer() -> None:
    answers = ResponseComparer()
    assert answers.compare(reply(b"", x_label="cat"), reply(b"", x_label="cat"), lossless=True).finding is AGREED
    found = answers.compare(reply(b"", x_label="cat"), reply(b"", x_label="dog"), lossless=True)
    assert (found.finding, found.why) == (DIFFERED, "header x-label: cat and dog")
    assert answers.compare(reply(b"", x_label="cat"), reply(b""), lossless=True).finding is DIFFERED


def test_a_header_that_never_was_belongs_to_the_run() -> None:
    answers = ResponseComparer()
    for _ in range(30):
        assert answers.compare(reply(b"", x_host="ts1"), reply(b"", x_host="ts2"), lossless=True).finding is AGREED


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("body", [b"", {}, None, b"\n"])
def test_where_the_body_says_nothing_the_headers_decide(body: Any, lossless: bool) -> None:
    """A handler may put its whole answer into a header."""
    answers = ResponseComparer()
    found = answers.compare(reply(body, x_class="3", x_time="7"), reply(body, x_class="7", x_time="9"), lossless)
    assert (found.finding, "x-class" in found.why) == (UNKNOWN, True), "perhaps it is the run's"
    found = answers.compare(reply(body, x_class="3", x_time="7"), reply(body, x_class="3", x_time="9"), lossless)
    assert found.finding is AGREED
    found = answers.compare(reply(body, x_class="3"), reply(body, x_class="7"), lossless)
    assert (found.finding, found.why) == (DIFFERED, "header x-class: 3 and 7")
    assert answers.compare(reply(body, x_p="0.93001"), reply(body, x_p="0.93002"), lossless).finding is AGREED
    found = answers.compare(reply(body, x_p="0.93"), reply(body, x_p="0.97"), lossless)
    assert found.finding is (DIFFERED if lossless else AGREED)


def test_a_label_of_one_letter_is_no_number() -> None:
    answers = ResponseComparer()
    assert answers.compare(reply("x", x_label="E"), reply("x", x_label="E"), lossless=True).finding is AGREED
    assert answers.compare(reply("x", x_label="E"), reply("x", x_label="-"), lossless=True).finding is DIFFERED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_", max_size=3), inner, max_size=4),
    max_leaves=12,
)
BODIES = JSON | st.binary(max_size=20)


@given(BODIES, BODIES, st.booleans())
def test_the_order_makes_no_difference_and_everything_agrees_with_itself(one: Any, other: Any, lossless: bool) -> None:
    a, b = reply(one), reply(other)
    assert compare(a, b, lossless) == compare(b, a, lossless)
    assert compare(a, a, lossless).finding is AGREED
