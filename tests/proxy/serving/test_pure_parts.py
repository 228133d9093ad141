"""Routes, classification, and what tasks say on the wire: tables."""

from __future__ import annotations

import numpy as np
import pytest

from ts_parity.engine import Arrived, Failed, Rejected
from ts_parity.errors import Overloaded, error_body
from ts_parity.proxy.fleet.plan import Target
from ts_parity.proxy.http.messages import Request, Response, error_response, split_controls, without_hop_by_hop
from ts_parity.proxy.http.upstream import NoResponse, classify
from ts_parity.proxy.serving.routes import PredictionRoute, model_named, prediction_route, prediction_target, url_path
from ts_parity.proxy.serving.tasks import (
    QueryPayload,
    finish_request,
    group_request,
    prediction_request,
    read_finish,
    read_prediction,
    read_protection,
    slot_response,
)
from ts_parity.wire import FRAME_TYPE, RAW, Frame, Part, attach_tail, pack_frame, unpack_frame

FRONTEND = (
    ("Cache-Control", "no-cache; no-store, must-revalidate, private"),
    ("Expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
)
INTERNAL, UNAVAILABLE = "InternalServerException", "ServiceUnavailableException"

CLASSES = [
    # status, type, message -> what it is
    (500, INTERNAL, "Worker died.", "failed"),
    (507, INTERNAL, "Worker died.", "failed"),
    (507, INTERNAL, "Out of resources", "failed"),
    (503, UNAVAILABLE, 'Model "m" has no worker to serve inference request.', "rejected"),
    (503, INTERNAL, "Prediction failed", "answer"),
    (503, INTERNAL, "Invalid model predict output", "answer"),
    (500, INTERNAL, "the handler's own PredictionException", "answer"),
    (400, "InvalidKeyException", "Token Authorization failed.", "answer"),
    (400, "BadRequestException", "Parameter model_name is required.", "answer"),
    (403, "IllegalArgumentException", "no", "answer"),
    (404, "ModelNotFoundException", "Model not found: m", "failed"),
    (404, "ModelVersionNotFoundException", "m", "failed"),
    (405, "MethodNotAllowedException", "m", "answer"),
    (408, "RequestTimeoutException", "m", "answer"),
    (409, "ConflictStatusException", "m", "answer"),
    (200, INTERNAL, "Worker died.", "answer"),
]


@pytest.mark.parametrize(("status", "kind", "message", "expected"), CLASSES)
def test_torchserves_status_codes(status: int, kind: str, message: str, expected: str):
    outcome = classify(Response(status, "", (), error_body(status, kind, message)))
    names = {type(None): "answer", Failed: "failed", Rejected: "rejected"}
    assert names[type(outcome)] == expected


@pytest.mark.parametrize("body", [b"", b"Worker died.", b"[]", b'"x"', b"\xff", b"{" * 100, b"x" * 100_000])
@pytest.mark.parametrize("status", [500, 503, 507, 413, 418])
def test_a_handlers_own_status_is_an_answer_whatever_its_body(status: int, body: bytes):
    assert classify(Response(status, "", FRONTEND, body)) is None


GATEWAYS = [
    (503, b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"),
    (502, b"<html><h1>502 Bad Gateway</h1></html>"),
    (504, b""),
    (500, b"<html>" + b"x" * 100_000),
    (503, b'{"code": 503, "message": "no healthy upstream"}'),
    (503, b'{"code": "503", "type": "ServiceUnavailableException", "message": "in quotes"}'),
    (502, b'{"code": 503, "type": "ServiceUnavailableException", "message": "of another status"}'),
    (503, b'{"code": 503, "type": "no_healthy_upstream", "message": ""}'),
    (503, b'{"code": 503, "type": ["ServiceUnavailableException"]}'),
    (503, b"[" * 60_000),
    (503, b'{"code": 503, "type": ' + b"[" * 60_000),
    (520, b"error code: 520"),
    (429, b"local_rate_limited"),
    (408, b"stream timeout"),
    (404, b"default backend - 404"),
    (302, b""),
]


@pytest.mark.parametrize(("status", "body"), GATEWAYS)
def test_what_torchserve_did_not_write_is_its_instances_failure(status: int, body: bytes):
    outcome = classify(Response(status, "", (("content-type", "text/plain"), ("server", "envoy")), body))
    assert isinstance(outcome, Failed)
    assert outcome.retry
    assert f"{status} from a gateway" in outcome.reason
    assert len(outcome.reason) < 300
    assert "\n" not in outcome.reason


@pytest.mark.parametrize("mark", FRONTEND)
@pytest.mark.parametrize("status", [302, 404, 429, 502, 503, 504])
def test_either_of_torchserves_own_headers_is_enough(status: int, mark: tuple[str, str]):
    assert classify(Response(status, "", (mark,), b"the handler's own")) is None


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 403, 413, 422])
def test_what_speaks_of_the_request_is_an_answer_whoever_wrote_it(status: int):
    assert classify(Response(status, "", (), b"")) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/predictions/m", PredictionRoute("m", None, "")),
        ("/predictions/m/", PredictionRoute("m", None, "")),
        ("/predictions/m/1.0", PredictionRoute("m", "1.0", "")),
        ("/predictions/m/1.0/a/b%20c", PredictionRoute("m", "1.0", "/a/b%20c")),
        ("/predictions/my%20m", PredictionRoute("my m", None, "")),
        ("/predictions", None),
        ("/predictions/", None),
        ("/predictions//x", None),
        ("/predictions/m//x", None),
        ("/predictions/m/1.0//x", PredictionRoute("m", "1.0", "//x")),
        ("/predictions/m%2F1.0", PredictionRoute("m", "1.0", "")),
        ("/%70redictions/m/1%2E0/a%2Fb/", PredictionRoute("m", "1.0", "/a/b")),
        ("/predictions/m/1.0/a%3Fb%23c#d", PredictionRoute("m", "1.0", "/a%3Fb%23c")),
        ("/predictions/m/1.0/%zz", None),
        ("/predictions/m/1.0/%4", None),
        ("/explanations/m", None),
        ("/ping", None),
        ("/", None),
    ],
)
def test_prediction_paths(path: str, expected: PredictionRoute | None):
    assert prediction_route("POST", path) == expected
    assert prediction_route("GET", path) == expected
    assert prediction_route("OPTIONS", path) is None


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/explanations/m/1.0", "", "m"),
        ("/v1/models/m:predict", "", "m"),
        ("/v1/models/m:explain", "", "m"),
        ("/v2/models/m/infer", "", "m"),
        ("/v2/models/m/versions/1/infer", "", "m"),
        ("/invocations", "model_name=my%20m", "my m"),
        ("/v1/models/m%3Apredict", "", "m"),
        ("/invocations", "", None),
        ("/invocations", "model_name=m&model_name=n", "m"),
        ("/invocations", "a=b;model_name=m", "m"),
        ("/invocations", "model_name=&model_name=m", ""),
        ("/models/m/invoke", "", "m"),
        ("/m/predict", "", "m"),
        ("/m/1.0/predict", "", "m"),
        ("/predictions/m", "", "m"),
        ("/ping", "", None),
        ("/wfpredict/w", "", None),
        ("/", "", None),
    ],
)
def test_models_named_by_other_paths(path: str, query: str, expected: str | None):
    assert model_named(path, query) == expected


def test_targets_are_escaped_and_extras_kept():
    assert prediction_target("my m", "1.0", "/a%20b", "q=1") == "/predictions/my%20m/1.0/a%20b?q=1"
    assert url_path("/a%20b/c") == "a b/c"


TARGET = Target("i", "m", "1.0", True)
ASK = QueryPayload(
    Request("POST", "/predictions/m", (("Content-Type", "image/png"), ("Connection", "close")), b"png"), "/x"
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
    assert slot_response(value, 0).headers == (("X-Mine", "1"), *frontends, ("content-length", "4"))
    _, value = read_protection(group_reply(Frame((Part(own, b"F(x)", 204),))), "backup", 1, frozenset({0}))
    assert slot_response(value, 0) == Response(204, "", (("X-Mine", "1"), *frontends), b"")


def test_a_backups_slot_is_an_ordinary_answer():
    frame = Frame((Part((("x-mine", "1"), ("Pragma", "mine"), ("connection", "close")), b"F(x)", 201, "Made"), None))
    outcome, value = read_protection(group_reply(frame), "backup", 2, frozenset({0}))
    assert outcome == Arrived(covers=frozenset({0}))
    headers = (("x-mine", "1"), ("Pragma", "mine"), ("x-request-id", "1"), ("content-length", "4"))
    assert slot_response(value, 0) == Response(201, "Made", headers, b"F(x)")


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


def test_hop_by_hop_headers_and_those_that_connection_names_are_dropped():
    headers = (("Connection", "keep-alive, X-Mine"), ("x-mine", "1"), ("Keep-Alive", "1"), ("X-Kept", "2"))
    assert without_hop_by_hop(headers) == (("X-Kept", "2"),)


def test_errors_of_the_proxy_have_torchserves_shape():
    made = error_response(Overloaded("full", retry_after_s=0.2))
    assert (made.status, made.phrase, made.header("retry-after")) == (503, "Service Unavailable", "1")
    assert made.body == error_body(503, "ServiceUnavailableException", "full")
