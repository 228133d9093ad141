"""Frames and tails: what goes in comes out, and nothing else is ever believed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_parity.errors import MalformedFrame, MalformedTail, error_body
from ts_parity.wire import (
    ROUNDOFF,
    Frame,
    Part,
    attach_tail,
    find_tail,
    pack_frame,
    unpack_frame,
    without_control_headers,
)

TEXT = st.text(max_size=12)
PARTS = st.builds(
    Part,
    headers=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    body=st.binary(max_size=40),
    status=st.integers(100, 599),
    phrase=TEXT,
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
RAWS = st.builds(
    lambda shape, dtype: np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape),
    SHAPES,
    st.sampled_from(["float16", "float32", "float64"]),
)
COMPUTED_IN = st.sampled_from(["", *ROUNDOFF])
SLOTS = st.lists(st.none() | PARTS, min_size=1, max_size=5).map(tuple)
FRAMES = st.builds(Frame, SLOTS, st.none() | RAWS, COMPUTED_IN)


def same(one, other):
    if one.raw is None or other.raw is None:
        return one.slots == other.slots and one.raw is other.raw
    if one.computed_in != other.computed_in:
        return False
    return one.slots == other.slots and one.raw.dtype == other.raw.dtype and np.array_equal(one.raw, other.raw)


@pytest.mark.slow
@given(FRAMES)
def test_a_frame_comes_back_as_it_was(frame):
    packed = pack_frame(frame)
    for form in (bytes, bytearray, memoryview):
        back = unpack_frame(form(packed))
        assert same(back, frame)
        assert all(type(part.body) is bytes for part in back.slots if part is not None)
    assert back.covers == {i for i, part in enumerate(frame.slots) if part is not None and part.status == 200}


@given(FRAMES, st.data())
def test_a_frame_cut_anywhere_is_refused(frame, data):
    packed = pack_frame(frame)
    with pytest.raises(MalformedFrame):
        unpack_frame(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(FRAMES, st.data())
def test_a_damaged_frame_parses_or_is_refused_and_nothing_else(frame, data):
    packed = bytearray(pack_frame(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = unpack_frame(packed)
    except MalformedFrame:
        return
    assert 1 <= read.k <= 64


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data):
    try:
        read = unpack_frame(b"TSPF" + data)
    except MalformedFrame:
        return
    assert 1 <= read.k <= 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b + b"x", "1 bytes after"),
        (lambda b: b"XXXX" + b[4:], "magic"),
        (lambda b: b[:4] + b"\x02" + b[5:], "version 2"),
        (lambda b: b[:5] + b"\x00" + b[6:], "1 to 64 slots"),
        (lambda b: b[:8] + b"\xff\xff\xff\xfe" + b[12:], "ends inside slot 0"),
        (lambda b: b[:8] + b"\xff\xff\xff\xff" + b[12:], "empty and has"),
    ],
)
def test_a_refusal_says_what_is_wrong(change, says):
    packed = pack_frame(Frame((Part((("a", "b"),), b"body"),)))
    with pytest.raises(MalformedFrame, match=says):
        unpack_frame(change(packed))


@pytest.mark.parametrize("frame", [Frame(()), Frame((None,) * 65), Frame((None,), np.array([1, 2]))])
def test_what_cannot_be_a_frame_is_not_packed(frame):
    with pytest.raises(MalformedFrame):
        pack_frame(frame)


@given(st.binary(max_size=50), RAWS, COMPUTED_IN)
def test_a_tail_leaves_the_ordinary_body_alone(body, raw, computed_in):
    whole, header = attach_tail(body, raw, computed_in)
    tail = find_tail(whole, header)
    assert tail.computed_in == computed_in
    assert whole[: tail.offset] == body
    back = tail.array(whole)
    assert back.dtype == raw.dtype
    assert np.array_equal(back, raw)


@given(st.binary(min_size=1, max_size=30), RAWS, st.data())
def test_a_tail_that_does_not_fit_its_header_is_refused(body, raw, data):
    whole, header = attach_tail(body, raw)
    for other in (whole + b"x", whole[:-1]):
        with pytest.raises(MalformedTail):
            find_tail(other, header)


@pytest.mark.parametrize(
    "header",
    ["", "v=1", "v=2;dtype=float32;shape=1;offset=0", "v=1;dtype=int64;shape=1;offset=0",
     "v=1;dtype=float32;shape=-1;offset=0", "v=1;dtype=float32;shape=1;offset=99", "v=1;dtype=float32;shape=x;offset=0",
     "v=1;dtype=float32;shape=1;offset=0;computed_in=int8",
     "v=1;dtype=float32;shape=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1;offset=0"],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(header):
    with pytest.raises(MalformedTail):
        find_tail(b"1234", header)


def test_control_headers_of_clients_are_removed_whatever_their_case():
    sent = [("X-TS-Parity-Op", "finish"), ("x-ts-parity", "1"), ("Accept", "*/*"), ("x-ts-parity-secret", "s")]
    assert without_control_headers(sent) == (("Accept", "*/*"),)


def test_errors_have_torchserves_shape():
    body = error_body(503, "ServiceUnavailableException", "no")
    assert body == b'{\n  "code": 503,\n  "type": "ServiceUnavailableException",\n  "message": "no"\n}\n'
    assert json.loads(body)["code"] == 503
