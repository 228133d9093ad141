"""The self-test: does the handler make one model call with one floating output, repeatably, and can it be finished?

It runs the archive's samples repeatedly, in another order, finished from their own raw outputs, and in a batch. User
code may keep state from every run, so this happens where no client is served: in a separate process
(`selftest_process`). A worker without samples, or whose test failed to run, only watches: `Observer` learns what it can
from live requests, each run once as always.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ts_parity.errors import NotCodable
from ts_parity.wire import Array
from ts_parity.worker.boundary import Boundary, RecordedRun
from ts_parity.worker.encoders import model_input
from ts_parity.worker.gpu import is_out_of_memory
from ts_parity.worker.repeatable import ObservedRun, RandomStates, RunOnce, check_repeats, check_run
from ts_parity.worker.requests import HandlerRequest
from ts_parity.worker.responses import HandlerResponse, StreamingRefused, run
from ts_parity.worker.suggestions import Declaration
from ts_parity.worker.verdict import HandlerVerdict, alike, close, in_a_batch, same_answer, shape_and_dtype
from ts_parity.worker.watches import ModelCall

log = logging.getLogger(__name__)

LIVE_REQUESTS = 2
"""Answers carry a raw output once this many live requests have shown nothing against it."""
MAX_MISSES = 10
"""After this many live requests in a row that do not reach the model, as bad bodies do not, the handler is refused."""
STREAMS = "the handler streams its answer"


class Observer:
    """Fills in a worker's verdict from live requests, each run once, as always."""

    def __init__(self, verdict: HandlerVerdict, needed: int = LIVE_REQUESTS) -> None:
        self._verdict = verdict
        self._needed = needed
        self._runs = 0
        self._seen = 0
        self._misses = 0

    def observe(self, record: RecordedRun, answer: HandlerResponse, before: RandomStates) -> None:
        """One request that ran alone. `before`: the random generators before it."""
        # The first request may draw random numbers to create something lasting, such as a model.
        drawn = before.drawn() if self._runs else []
        self._runs += 1
        try:
            check_run(ObservedRun(answer, record.raw, record.models), drawn)
            if record.raw is None and record.calls:
                raise NotCodable(record.refusal or "")
        except NotCodable as refusal:
            self._verdict.refuse(refusal)
            return
        if record.raw is None:
            self.missed(record.refusal or "")
        elif np.isfinite(record.raw).all():
            self._passed(record.calls[0], record.raw)

    def _passed(self, call: ModelCall, raw: Array) -> None:
        self._misses = 0
        self._seen += 1
        self._verdict.input, self._verdict.output = described_input(call), shape_and_dtype(raw)
        if self._seen >= self._needed:
            self._verdict.accept(
                f"{self._seen} live requests showed nothing against it; none was run twice to test it, which takes "
                "samples (package --sample)"
            )
        else:
            self._verdict.reason = f"{self._seen} of {self._needed} live requests have shown nothing against it"

    def missed(self, why: str) -> None:
        """A request did not reach the model, or could not be watched."""
        self._misses += 1
        self._verdict.reason = why
        if self._misses >= MAX_MISSES:
            self._verdict.refuse(f"{why} ({MAX_MISSES} requests in a row)")


@dataclass(frozen=True)
class SampleTrial:
    """A sample and the results of two runs of it."""

    request: HandlerRequest
    raw: Array
    answer: HandlerResponse
    repeated: HandlerResponse


def judge_deployed(
    boundary: Boundary,
    verdict: HandlerVerdict,
    context: Any,
    samples: Sequence[HandlerRequest],
    fresh: Callable[[], RunOnce],
) -> None:
    """Test a handler on its samples: can answers be made from raw outputs? `fresh` makes another object of it."""
    records: list[RecordedRun] = []

    def once(request: HandlerRequest) -> ObservedRun:
        return observed_run(boundary, context, request, records)

    with judging(verdict, samples):
        first = check_repeats(once, samples, fresh)
        for sample, record in zip(samples, records, strict=False):
            if record.raw is None:
                raise NotCodable(why_not(boundary, context, sample, record))
            if not np.isfinite(record.raw).all():
                raise NotCodable("the model's output is not finite")
        repeated = [once(sample) for sample in samples]
        trials = [
            SampleTrial(sample, seen.raw, seen.answer, again.answer)
            for sample, seen, again in zip(samples, first, repeated, strict=True)
            if seen.raw is not None
        ]
        for trial in (*trials, *reversed(trials)):
            _check_finish(boundary, context, trial)
        _judge_batches(boundary, verdict, context, trials[-2:])
        verdict.input, verdict.output = described_input(records[0].calls[0]), shape_and_dtype(trials[0].raw)
        verdict.accept(f"the self-test passed on {len(samples)} sample{'s' if len(samples) > 1 else ''}")


@contextmanager
def judging(verdict: HandlerVerdict, samples: Sequence[HandlerRequest]) -> Iterator[None]:
    """While it lasts, any failure refuses the handler, with the reason. Out of memory says nothing about a handler, and
    passes through: the test is made again when the next worker starts.
    """
    try:
        yield
    except NotCodable as refusal:
        verdict.refuse(refusal)
    except StreamingRefused:
        verdict.refuse(STREAMS)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        names = ", ".join(sample.id for sample in samples)
        log.warning("self-test: %s failed", names, exc_info=True)
        verdict.refuse(f"running the samples ({names}) failed: {error!r}")


def _check_finish(boundary: Boundary, context: Any, trial: SampleTrial) -> None:
    [finished] = run(context, [trial.request], lambda data, ctx: boundary.finish(data, ctx, trial.raw))
    if not same_answer(trial.answer, trial.repeated, finished):
        raise NotCodable(
            "the answer made from a request and its raw output differs from the ordinary answer: the handler keeps "
            "something between requests or takes more from its model than the output"
        )


def observed_run(
    boundary: Boundary, context: Any, request: HandlerRequest, records: list[RecordedRun] | None = None
) -> ObservedRun:
    """One recorded run, in the form that `repeatable` compares."""
    record, answer = record_one(boundary, context, request)
    if not record.existed and record.raw is None:  # the first request may have created the model for the second
        record, answer = record_one(boundary, context, request)
    if records is not None:
        records.append(record)
    return ObservedRun(answer, record.raw, record.models, record.computed_in)


def why_not(boundary: Boundary, context: Any, request: HandlerRequest, record: RecordedRun) -> str:
    """Why this run gave no raw output, and what to declare, if that helps: found by running it again, watched."""
    try:
        if not record.parts:
            record, _ = record_one(boundary, context, request, look_around=True)
        known = {key: line for key, line in record.lines.items() if key != "output"}
        with boundary.declaring(**known):
            called = record_one(boundary, context, request)[0] if known else record
        if not called.parts:
            return record.refusal or ""
        for part in called.parts:
            if _answers_by(boundary, context, request, {**known, "output": part}):
                return replace(record, lines={**known, "output": part}).refusal or ""
        return f"{called.reason}, and the handler's answer is made from several of them"
    except Exception:  # user code may do anything with a stand-in for an object that is no model
        log.info("looking for a line to declare failed", exc_info=True)
        return record.refusal or ""


def _answers_by(boundary: Boundary, context: Any, request: HandlerRequest, lines: Declaration) -> bool:
    """Whether finishing from this part of the output gives the ordinary answer: then the handler uses this part."""
    with boundary.declaring(**lines):
        record, answer = record_one(boundary, context, request)
        raw = record.raw
        if raw is None:
            return False
        try:
            [finished] = run(context, [request], lambda data, ctx: boundary.finish(data, ctx, raw))
        except Exception:  # it uses another part
            return False
        return same_answer(answer, answer, finished)


def record_one(
    boundary: Boundary, context: Any, request: HandlerRequest, socket: Any = None, look_around: bool = False
) -> tuple[RecordedRun, HandlerResponse]:
    """One recorded run of one request. -> (record, its ordinary answer)."""
    record, [answer] = record_many(boundary, context, [request], socket, look_around)
    return record, answer


def record_many(
    boundary: Boundary, context: Any, requests: Sequence[HandlerRequest], socket: Any = None, look_around: bool = False
) -> tuple[RecordedRun, list[HandlerResponse]]:
    records: list[RecordedRun] = []

    def entry(data: Any, ctx: Any) -> Any:
        records.append(boundary.record(data, ctx, look_around=look_around))
        return records[0].answer

    answers = run(context, requests, entry, socket)
    return records[0], answers


def _judge_batches(boundary: Boundary, verdict: HandlerVerdict, context: Any, trials: Sequence[SampleTrial]) -> None:
    """Whether two requests in a batch get the answers they get alone. If their outputs are alike, this cannot tell."""
    if len(trials) < 2 or close(trials[0].raw, trials[1].raw):
        return
    try:
        record, answers = record_many(boundary, context, [trial.request for trial in trials])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.info("self-test: a batch of two failed", exc_info=True)
        verdict.batched = verdict.alone = False
        return
    rounding = in_a_batch(record.computed_in)
    verdict.alone = all(
        same_answer(trial.answer, trial.repeated, answer) or alike(answer, trial.answer, rounding)
        for answer, trial in zip(answers, trials, strict=True)
    )
    rows = split_rows(record.raw, len(trials))
    verdict.batched = (
        verdict.alone
        and rows is not None
        and all(close(row, trial.raw, rounding) for row, trial in zip(rows, trials, strict=True))
    )


def split_rows(raw: Array | None, rows: int) -> list[Array] | None:
    """The raw output of each request of a batch. Row i keeps its axis, as in a batch of one."""
    if raw is None or raw.ndim == 0 or raw.shape[0] != rows:
        return None
    return [raw[i : i + 1] for i in range(rows)]


def described_input(call: ModelCall) -> dict[str, Any] | None:
    try:
        return shape_and_dtype(model_input(call))
    except NotCodable:
        return None
