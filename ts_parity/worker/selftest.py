"""The self-test: is there one model call with one floating output, the same each time, that finishes as it should?

It runs on the archive's samples at load or, without them, on the first live requests, which are answered plainly
meanwhile. Each of them is run twice and finished from its own raw output; then the earlier ones are finished again,
which shows whether anything of another request is left over in user code; two together show whether batches are safe.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ts_parity.errors import NotCodable
from ts_parity.wire import Array
from ts_parity.worker.answers import Answer, Streamed, Tap, run
from ts_parity.worker.boundary import Boundary, Record
from ts_parity.worker.encoders import model_input
from ts_parity.worker.requests import Request
from ts_parity.worker.verdict import BATCH_CLOSE, Verdict, alike, close, described, same_answer
from ts_parity.worker.watches import ModelCall

log = logging.getLogger(__name__)

LIVE_REQUESTS = 2
"""So many live requests must agree before answers carry a raw output."""
MAX_MISSES = 10
"""So many live requests in a row may end without reaching the model (bad bodies do) before the handler is refused."""
STREAMS = "the handler streams its answer"


@dataclass(frozen=True)
class Trial:
    """One request that was run twice."""

    request: Request
    raw: Array
    answer: Answer
    repeated: Answer


class SelfTest:
    """Fills in the verdict of a deployed worker, one request at a time."""

    def __init__(self, boundary: Boundary, verdict: Verdict, needed: int = LIVE_REQUESTS) -> None:
        self._boundary = boundary
        self._verdict = verdict
        self._needed = needed
        self._trials: list[Trial] = []
        self._misses = 0

    def judge(self, context: Any, request: Request, socket: Any = None) -> Answer:
        """The ordinary answer to the request. Exceptions of its first run pass through and prove nothing."""
        tap = Tap(socket)
        record, answer = record_one(self._boundary, context, request, tap)
        if tap.used:
            self._verdict.refuse(STREAMS)
        elif record.raw is not None:
            self._prove(context, request, record.raw, answer, record)
        elif record.calls:
            self._verdict.refuse(record.refusal or "")
        else:
            self._missed(record)
        return answer

    def judge_samples(self, context: Any, samples: Sequence[Request]) -> None:
        """All samples are judged before the worker serves. One that fails refuses the handler."""
        self._needed = len(samples)
        for sample in samples:
            try:
                self._judge_sample(context, sample)
            except Streamed:
                self._verdict.refuse(STREAMS)
            except Exception as error:
                log.warning("self-test: sample %s failed", sample.id, exc_info=True)
                self._verdict.refuse(f"sample {sample.id} failed: {error!r}")

    def _judge_sample(self, context: Any, sample: Request) -> None:
        misses = self._misses
        self.judge(context, sample)
        if self._misses > misses and not self._verdict.refused:
            self.judge(context, sample)  # a model created by the first request is there for the second
        if self._misses > misses + 1:
            self._verdict.refuse(f"sample {sample.id} did not reach the model: {self._verdict.reason}")

    def _missed(self, record: Record) -> None:
        self._misses += 1
        self._verdict.reason = record.refusal or ""
        if self._misses >= MAX_MISSES:
            self._verdict.refuse(f"{record.refusal} ({MAX_MISSES} requests in a row)")

    def _prove(self, context: Any, request: Request, raw: Array, answer: Answer, record: Record) -> None:
        self._misses = 0
        try:
            again, repeated = record_one(self._boundary, context, request)
            self._check_repeat(raw, again)
            self._trials.append(Trial(request, raw, answer, repeated))
            for trial in reversed(self._trials):
                self._check_finish(context, trial)
            if self._verdict.batched is None:
                self._verdict.batched = batch_agrees(self._boundary, context, self._trials[-2:])
        except NotCodable as refusal:
            self._verdict.refuse(str(refusal))
        except Streamed:
            self._verdict.refuse(STREAMS)
        except Exception as error:
            log.warning("self-test: a second run of a request failed", exc_info=True)
            self._verdict.refuse(f"running a request a second time failed: {error!r}")
        else:
            self._passed(record.calls[0], raw)

    def _passed(self, call: ModelCall, raw: Array) -> None:
        self._verdict.input = described_input(call)
        self._verdict.output = described(raw)
        done = len(self._trials)
        if done >= self._needed:
            self._verdict.accept(f"the self-test passed on {done} request{'s' if done > 1 else ''}")
            self._trials.clear()
        else:
            self._verdict.reason = f"{done} of {self._needed} requests have passed the self-test"

    def _check_repeat(self, raw: Array, again: Record) -> None:
        if again.raw is None:
            raise NotCodable(f"a second run of one request differs: {again.refusal}")
        if not np.isfinite(raw).all():
            raise NotCodable("the model's output is not finite")
        if not close(raw, again.raw):
            raise NotCodable("the model is not deterministic: one request run twice gave different raw outputs")

    def _check_finish(self, context: Any, trial: Trial) -> None:
        [finished] = run(context, [trial.request], lambda data, ctx: self._boundary.give(data, ctx, trial.raw))
        if not same_answer(trial.answer, trial.repeated, finished):
            raise NotCodable(
                "the answer made from a request and its raw output differs from the ordinary answer: the handler keeps "
                "something between requests or takes more from its model than the output"
            )


def record_one(boundary: Boundary, context: Any, request: Request, socket: Any = None) -> tuple[Record, Answer]:
    """One recorded run of one request. -> (record, its ordinary answer)."""
    record, [answer] = record_many(boundary, context, [request], socket)
    return record, answer


def record_many(
    boundary: Boundary, context: Any, requests: Sequence[Request], socket: Any = None
) -> tuple[Record, list[Answer]]:
    records: list[Record] = []

    def entry(data: Any, ctx: Any) -> Any:
        records.append(boundary.record(data, ctx))
        return records[0].answer

    answers = run(context, requests, entry, socket)
    return records[0], answers


def batch_agrees(boundary: Boundary, context: Any, trials: Sequence[Trial]) -> bool | None:
    """Do two requests in one batch get the answers they get alone? None: these two cannot tell."""
    if len(trials) < 2 or close(trials[0].raw, trials[1].raw):
        return None
    try:
        record, answers = record_many(boundary, context, [trial.request for trial in trials])
    except Exception:
        log.info("self-test: a batch of two failed, so requests run one by one", exc_info=True)
        return False
    rows = split_rows(record.raw, len(trials))
    return rows is not None and all(
        close(row, trial.raw, BATCH_CLOSE) and alike(answer, trial.answer)
        for row, answer, trial in zip(rows, answers, trials, strict=True)
    )


def split_rows(raw: Array | None, rows: int) -> list[Array] | None:
    """The raw output of each request of a batch: row i keeps its axis, as a batch of one has it."""
    if raw is None or raw.ndim == 0 or raw.shape[0] != rows:
        return None
    return [raw[i : i + 1] for i in range(rows)]


def described_input(call: ModelCall) -> dict[str, Any] | None:
    try:
        return described(model_input(call))
    except NotCodable:
        return None
