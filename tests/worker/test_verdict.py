"""The comparisons that the self-test trusts, and its patience."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.worker.serving import InProcess, vector
from ts_parity.worker.responses import HandlerResponse
from ts_parity.worker.selftest import MAX_MISSES
from ts_parity.worker.verdict import HandlerVerdict, VerdictState, alike, close, same_answer


def _answer(**body: Any) -> HandlerResponse:
    return HandlerResponse(json.dumps(body).encode())


def test_what_differs_between_two_ordinary_runs_need_not_agree() -> None:
    one, two, three = (_answer(score=0.5, took=took) for took in (1, 2, 3))
    assert same_answer(one, two, three)
    assert not same_answer(one, two, _answer(score=0.6, took=1))
    assert not same_answer(one, two, _answer(score=0.5))
    assert not same_answer(one, one, two)
    assert not same_answer(HandlerResponse(b"text"), HandlerResponse(b"text"), HandlerResponse(b"other"))
    assert not same_answer(one, two, HandlerResponse(one.body, status=201))
    assert not same_answer(one, two, HandlerResponse(one.body, headers={"x": "1"}))


def test_batches_may_round_numbers_and_nothing_else() -> None:
    assert alike(_answer(scores=[0.5, 1.0], name="a"), _answer(scores=[0.50001, 1.0], name="a"))
    assert not alike(_answer(scores=[0.5], name="a"), _answer(scores=[0.5], name="b"))
    assert not alike(_answer(scores=[0.5]), _answer(scores=[0.5, 0.5]))
    assert not alike(_answer(top=3), _answer(top=4))


def test_close_is_relative_to_the_largest() -> None:
    assert close(np.array([1000.0, 0.0]), np.array([1000.01, 0.01]))
    assert not close(np.array([1.0, 0.0]), np.array([1.0, 0.01]))
    assert not close(np.zeros((1, 2)), np.zeros(2))


def test_refused_is_final() -> None:
    verdict = HandlerVerdict()
    verdict.refuse("first")
    verdict.accept("later")
    verdict.refuse("second")
    assert (verdict.state, verdict.reason) == (VerdictState.REFUSED, "first")


def test_bad_bodies_do_not_condemn_a_handler_at_once(serve: Callable[..., InProcess]) -> None:
    worker = serve("own_status", {})
    for _ in range(MAX_MISSES - 1):
        assert worker.ask(b"bad", "raw").status == 422
    for seed in (1, 2):
        worker.ask(vector(seed), "raw")
    assert worker.describe()["ts_parity"]["verdict"] == "codable"
    worker = serve("own_status", {})
    for _ in range(MAX_MISSES):
        worker.ask(b"bad", "raw")
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], "was not reached" in described["reason"]) == ("refused", True)


def test_requests_without_a_model_call_count_for_nothing(serve: Callable[..., InProcess]) -> None:
    worker = serve("echoes", {})
    assert worker.ask(b"1", "raw").raw is None
    assert worker.describe()["ts_parity"]["verdict"] == "untested"
