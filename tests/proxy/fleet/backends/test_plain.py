"""What an answer of a plain server means: section by section of the table in `plain`."""

from __future__ import annotations

import pytest

from ts_parity.config import ModelSettings, parse_endpoint
from ts_parity.engine import ARRIVED, Blame, Cause, Failed, Rejected
from ts_parity.errors import Unavailable
from ts_parity.proxy.fleet.backends.kinds import backend_of, backends_of
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.upstream import NoResponse

OIP = backend_of("open-inference")
REST = backend_of("rest")
GOOD = b'{"outputs": []}'


def answer(status: int, body: bytes = GOOD) -> Response:
    return Response(status, "", (), body)


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_has_run_nothing(status: int):
    assert OIP.read_prediction(answer(status))[0] == Rejected()
    assert OIP.read_protection(answer(status), "backup", 1, frozenset({0}))[0] == Rejected()


@pytest.mark.parametrize("status", [302, 400, 403, 409, 413, 422])
def test_what_is_the_clients_is_passed_on_and_held_against_nobody(status: int):
    outcome, value = OIP.read_prediction(answer(status))
    assert (outcome.error, outcome.blame) == (True, Blame.CLIENTS)
    assert value.response == answer(status)


@pytest.mark.parametrize("status", [500, 501, 502, 504, 599])
def test_a_server_error_is_no_verdict(status: int):
    outcome, value = OIP.read_prediction(answer(status))
    assert (outcome.error, outcome.blame) == (True, Blame.DOUBTFUL)
    assert value.response == answer(status)


def test_a_model_that_is_not_there_any_more_is_looked_for():
    outcome = OIP.read_prediction(answer(404))[0]
    assert isinstance(outcome, Failed)
    assert outcome.cause is Cause.MISSING
    assert REST.read_prediction(answer(404))[0].blame is Blame.CLIENTS, "the service itself may know no such thing"


def test_a_page_of_something_in_between_is_no_answer():
    assert OIP.read_prediction(answer(200))[0] == ARRIVED
    assert OIP.read_prediction(answer(200, b"<html>log in</html>"))[0].blame is Blame.DOUBTFUL
    binary = Response(200, "", (("Inference-Header-Content-Length", "0"),), b"\0\0\0\0")
    assert OIP.read_prediction(binary)[0] == ARRIVED
    assert REST.read_prediction(answer(200, b"<html>"))[0] == ARRIVED, "whatever a service answers, it may be meant"


def test_no_answer_is_the_instances_fault():
    for cause in (Cause.UNREACHABLE, Cause.LOST, Cause.ERROR):
        assert OIP.read_prediction(NoResponse("no", cause))[0] == Failed("no", cause=cause)


@pytest.mark.parametrize("status", [302, 400, 404, 422, 500, 502])
def test_nobody_is_shown_a_students_error(status: int):
    outcome, value = OIP.read_protection(answer(status), "backup", 1, frozenset({0}))
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    assert value.response is None


def test_a_students_answer_covers_its_query():
    outcome, value = OIP.read_protection(answer(200), "backup", 1, frozenset({0}))
    assert outcome.covers == frozenset({0})
    assert value.slot_response(0) == answer(200)
    sure = Response(200, "", (), GOOD, None, (("x-ts-parity-confidence", "0.97"),))
    assert OIP.read_protection(sure, "backup", 1, frozenset({0}))[0].agreement == {0: 0.97}


def test_a_query_goes_up_as_it_came_and_to_a_student_elsewhere_without_its_host():
    request = Request("POST", "/v2/models/m/infer?q=1", (("Host", "proxy"), ("X-A", "1")), b"{}", b"Host: proxy")
    payload = QueryPayload(request, Ask("m"))
    assert OIP.prediction(payload, Target("i", "m", "1", False), False, "") is request
    beside = OIP.protection([payload], Target("i", "small", "1", False), "")
    assert (beside.target, beside.block) == ("/v2/models/small/infer?q=1", request.block)
    elsewhere = OIP.protection([payload], Target("i", "small", "1", False, elsewhere=True), "")
    assert (elsewhere.headers, elsewhere.block) == ((("X-A", "1"),), None)


def test_an_error_of_the_proxy_looks_like_one_of_the_server():
    full = OIP.error(Unavailable("too many wait", 1.0))
    assert (full.status, full.body, full.header("retry-after")) == (503, b'{"error": "too many wait"}', "1")
    assert REST.error(Unavailable("too many wait")).body == b'{"detail": "too many wait"}'


def test_names_of_models_begin_with_the_kind_only_where_kinds_are_mixed():
    one = parse_endpoint("http://a:1,kind=open-inference")
    other = parse_endpoint("http://b:1,kind=rest")
    assert backends_of([one])[one.name].prefix == ""
    both = backends_of([one, other, parse_endpoint("http://c:1,kind=rest")])
    assert (both[one.name].prefix, both[other.name].prefix) == ("", "rest:")
    assert len({id(each) for each in both.values()}) == 2


def test_a_kind_knows_the_models_that_can_be_its_own():
    models = [ModelSettings("m", student="s"), ModelSettings("/p", student="/s")]
    assert backend_of("open-inference", models).models.keys() == {"m"}
    assert backend_of("rest", models).models.keys() == {"/p"}
