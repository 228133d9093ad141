"""What each kind of task says on the wire, and what its answer is taken for."""

from __future__ import annotations

import numpy as np
import pytest

from ts_parity.engine import Arrived, Failed
from ts_parity.errors import error_body
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.fleet.torchserve.tasks import (
    finish_request,
    group_request,
    prediction_request,
    read_finish,
    read_prediction,
    read_protection,
)
from ts_parity.proxy.http.messages import Request, Response, split_controls
from ts_parity.proxy.http.upstream import NoResponse
from ts_parity.wire import FRAME_TYPE, RAW, Frame, Part, attach_tail, pack_frame, unpack_frame

TARGET = Target("i", "m", "1.0", True)
ASK = QueryPayload(
    Request("POST", "/predictions/m", (("Content-Type", "image/png"), ("Connection", "close")), b"png"),
    Ask("m", "1.0", "/x"),
)


def test_an_ordinary_request_goes_as_it_came():
    sent = prediction_request(ASK, TARGET, raw=False, secret="s")
    assert (sent.method, sent.target, sent.headers, sent.body) == (
        "POST",
        "/predictions/m/1.0/x",
        ASK.request.headers,
        b"png",
    )
    asked = prediction_request(ASK, TARGET, raw=True, secret="s")
    assert asked.headers[-2:] == (("x-ts-parity-op", "raw"), ("x-ts-parity-secret", "s"))


def test_a_group_carries_originals_and_empty_slots():
    sent = group_request([ASK, None], TARGET, "")
    assert sent.header("content-type") == FRAME_TYPE
    assert sent.header("x-ts-parity-op") == "group"
    part, empty = unpack_frame(sent.body).slots
    assert empty is None
    assert part == Part((("Content-Type", "image/png"), ("url_path", "x")), b"png")


def test_a_finish_carries_the_original_and_the_output():
    sent = finish_request(ASK, np.array([1.5], dtype=np.float32), TARGET, "")
    frame = unpack_frame(sent.body)
    assert (sent.header("x-ts-parity-op"), frame.k, frame.raw.tolist()) == ("finish", 1, [1.5])


def response(body: bytes, *headers: tuple[str, str], status: int = 200) -> Response:
    ordinary, controls = split_controls((*headers, ("content-length", str(len(body)))))
    return Response(status, "", ordinary, body, None, controls)


def test_a_raw_tail_is_cut_off_and_kept():
    body, described = attach_tail(b"ordinary", np.array([1.0, 2.0], dtype=np.float32))
    outcome, value = read_prediction(response(body, (RAW, described), ("X-Mine", "1")))
    assert outcome == Arrived(raw=True)
    assert value.response == Response(200, "", (("X-Mine", "1"), ("content-length", "8")), b"ordinary")
    assert value.raw.tolist() == [1.0, 2.0]


def test_what_a_raw_output_was_computed_in_is_known():
    """A bfloat16 output travels as float32, and is known no better for it."""
    raw = np.array([1.0], dtype=np.float32)
    body, described = attach_tail(b"ordinary", raw, "bfloat16")
    assert read_prediction(response(body, (RAW, described)))[1].roundoff == 2**-8
    frame = Frame((Part((), b""),), raw, "float16")
    assert read_protection(group_reply(frame), "parity", 1, frozenset({0}))[1].roundoff == 2**-11
    body, described = attach_tail(b"ordinary", raw)
    assert read_prediction(response(body, (RAW, described)))[1].roundoff == 0.0


def test_an_answer_whose_headers_can_go_on_as_bytes_says_its_new_length():
    body, described = attach_tail(b"ordinary", np.array([1.0], dtype=np.float32))
    for block in (b"X-Mine: 1\r\ncontent-length: 12", b"Content-Length:  12\r\nX-Mine: 1"):
        headers = tuple(
            (name, value.strip()) for name, _, value in (line.decode().partition(":") for line in block.split(b"\r\n"))
        )
        _, value = read_prediction(Response(200, "", headers, body, block, ((RAW, described),)))
        said = dict(line.split(b": ") for line in value.response.block.split(b"\r\n"))
        assert {name.lower(): text for name, text in said.items()} == {b"x-mine": b"1", b"content-length": b"8"}
        assert dict(value.response.headers)[headers[-1][0] if block.endswith(b"12") else headers[0][0]] == "8"


def test_a_malformed_tail_is_no_answer():
    outcome, value = read_prediction(response(b"ordinary", (RAW, "v=1;dtype=float32;shape=9;offset=8")))
    assert isinstance(outcome, Failed)
    assert value.response is None


def test_no_answer_is_a_failure():
    assert read_prediction(NoResponse("no answer in time"))[0] == Failed("no answer in time")


def group_reply(frame: Frame) -> Response:
    return response(pack_frame(frame), ("content-type", FRAME_TYPE), ("x-request-id", "1"), ("Pragma", "no-cache"))


def test_a_parity_output_covers_the_slots_that_were_good():
    frame = Frame((Part((), b""), Part((), b"bad", 503)), np.array([3.0], dtype=np.float32))
    outcome, value = read_protection(group_reply(frame), "parity", 2, frozenset({0, 1}))
    assert outcome == Arrived(covers=frozenset({0}))
    assert value.raw.tolist() == [3.0]


def test_a_protection_cannot_cover_a_slot_that_was_empty():
    frame = Frame((Part((), b""), Part((), b"")), np.array([3.0], dtype=np.float32))
    assert read_protection(group_reply(frame), "parity", 2, frozenset({0}))[0] == Arrived(covers=frozenset({0}))


@pytest.mark.parametrize(
    "part",
    [
        Part((("a\r\nb", "1"),), b"F(x)"),
        Part((("X-A", "1\r\nTransfer-Encoding: chunked"),), b"F(x)"),
        Part((("X-A", "1\n"),), b"F(x)"),
        Part((("X-A", "a\x00b"),), b"F(x)"),
        Part((("X-A", "\x1b[2J"),), b"F(x)"),
        Part((("X-A", "\u20ac"),), b"F(x)"),
        Part((("X A", "1"),), b"F(x)"),
        Part((("X-A:", "1"),), b"F(x)"),
        Part((("", "1"),), b"F(x)"),
        Part((("X-\xfc", "1"),), b"F(x)"),
        Part((("X-A", "y" * 9000),), b"F(x)"),
        Part((), b"F(x)", 200, "OK\r\nX-A: 1"),
        Part((), b"F(x)", 99),
        Part((), b"F(x)", 301),
    ],
    ids=lambda part: repr(part)[:60],
)
def test_a_slot_that_could_not_have_been_written_protects_nobody(part):
    """A worker's words, not a frontend's: they could end a header, or a head, where the worker likes."""
    outcome, _ = read_protection(group_reply(Frame((part, Part((), b"F(y)")))), "backup", 2, frozenset({0, 1}))
    assert outcome == Arrived(covers=frozenset({1}))


def test_what_a_slot_says_of_its_framing_or_its_connection_counts_for_nothing():
    own = (
        ("Content-Length", "99"), ("content-length", "1"), ("Transfer-Encoding", "chunked"),
        ("Connection", "close, x-hop"), ("X-Hop", "1"), ("Upgrade", "h2c"), ("Keep-Alive", "1"), ("Trailer", "X"),
        ("Sec-WebSocket-Accept", "1"),
        ("x-ts-parity-raw", "v=1"), ("x-ts-parity", "deployed"), ("X-Mine", "1"),
    )  # fmt: skip
    _, value = read_protection(group_reply(Frame((Part(own, b"F(x)"),))), "backup", 1, frozenset({0}))
    frontends = (("x-request-id", "1"), ("Pragma", "no-cache"))
    assert value.slot_response(0).headers == (("X-Mine", "1"), *frontends, ("content-length", "4"))
    _, value = read_protection(group_reply(Frame((Part(own, b"F(x)", 204),))), "backup", 1, frozenset({0}))
    assert value.slot_response(0) == Response(204, "", (("X-Mine", "1"), *frontends), b"")


def test_a_backups_slot_is_an_ordinary_answer():
    frame = Frame((Part((("x-mine", "1"), ("Pragma", "mine"), ("connection", "close")), b"F(x)", 201, "Made"), None))
    outcome, value = read_protection(group_reply(frame), "backup", 2, frozenset({0}))
    assert outcome == Arrived(covers=frozenset({0}))
    headers = (("x-mine", "1"), ("Pragma", "mine"), ("x-request-id", "1"), ("content-length", "4"))
    assert value.slot_response(0) == Response(201, "Made", headers, b"F(x)")


@pytest.mark.parametrize(
    "answer",
    [
        response(b"{}", ("content-type", "application/json")),
        response(b"short", ("content-type", FRAME_TYPE)),
        response(error_body(400, "BadRequestException", "no"), status=400),
        group_reply(Frame((Part((), b""),))),
        group_reply(Frame((Part((), b""), None), np.array([3.0], dtype=np.float32))),
        group_reply(Frame((Part((), b""),), np.array([3.0, np.nan], dtype=np.float32))),
        group_reply(Frame((Part((), b""),), np.array([np.inf], dtype=np.float32))),
    ],
)
def test_a_protections_nonsense_is_a_failure_that_is_not_repeated(answer: Response):
    outcome, _ = read_protection(answer, "parity", 1, frozenset({0}))
    assert isinstance(outcome, Failed)
    assert not outcome.retry


def test_a_finish_that_is_an_error_is_no_answer():
    assert read_finish(response(b"no", status=403))[0] == Failed("refused with 403: no", retry=False)
    assert read_finish(response(b"yes"))[0] == Arrived()
