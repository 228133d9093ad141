"""What a deployed worker does besides plain requests: answers with a raw tail, and finishes.

Both run the user's own entry point behind the boundary. A finish makes an ordinary answer from a rebuilt raw output:
the entry point runs on the original request, and its model call returns that output. Knows responses and raw outputs.
Knows nothing of how operations arrive (`entry`) or of parity models (`protections`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ts_parity.errors import MalformedFrame, NotCodable
from ts_parity.wire import RAW, Array, Frame, attach_tail
from ts_parity.worker.boundary import Boundary
from ts_parity.worker.repeatable import RandomStates
from ts_parity.worker.requests import HandlerRequest, request_of
from ts_parity.worker.responses import HandlerResponse, RecordingSocket, StreamingRefused, response_to_error, run
from ts_parity.worker.selftest import STREAMS, Observer, record_many, record_one, split_rows
from ts_parity.worker.verdict import HandlerVerdict, VerdictState, not_finite

MAX_RESPONSE_SIZE = 6_553_500
"""TorchServe's default. A larger response makes its frontend drop the worker, so none with a tail exceeds it."""


class DeployedOperations:
    """The operations `raw` and `finish` for one user handler."""

    def __init__(self, boundary: Boundary, verdict: HandlerVerdict, max_response_size: int = MAX_RESPONSE_SIZE) -> None:
        self.verdict = verdict
        self._observer = Observer(verdict)
        self._boundary = boundary
        self._max_response_size = max_response_size

    def raw(self, context: Any, request: HandlerRequest, socket: Any) -> HandlerResponse:
        """The ordinary answer, with the raw output after its body if there is one. User exceptions pass through."""
        if self.verdict.refused:
            return run(context, [request], self._boundary.plain, socket)[0]
        untested = self.verdict.state is VerdictState.UNTESTED
        before = RandomStates() if untested else None
        tap = RecordingSocket(socket)
        try:
            record, answer = record_one(self._boundary, context, request, tap)
        except Exception as error:
            if not untested or tap.used:
                raise
            # Code that checks its model's class, or compiles it, may fail with a stand-in. The client must not suffer.
            answer = run(context, [request], self._boundary.plain, socket)[0]
            self._observer.missed(f"the handler fails while its model is watched, and not otherwise: {error!r}")
            return answer
        if tap.used:
            self.verdict.refuse(STREAMS)
            return answer
        if before is not None:
            self._observer.observe(record, answer, before)
            return answer
        return self._with_tail(answer, record.raw, record.computed_in)

    @property
    def may_run_apart(self) -> bool:
        """Whether requests of a batch may run separately, since samples have shown that it makes no difference."""
        return self.verdict.state is VerdictState.CODABLE and self.verdict.alone is True

    def raw_batch(self, context: Any, requests: Sequence[HandlerRequest]) -> list[HandlerResponse] | None:
        """All in one run, if the self-test has shown that a batch gives the same answers. None: run them one by one."""
        if len(requests) < 2 or not self.may_run_apart or not self.verdict.batched:
            return None
        try:
            record, answers = record_many(self._boundary, context, requests)
        except (Exception, StreamingRefused):
            return None  # one of them is bad; run alone, each gets its own answer
        rows = split_rows(record.raw, len(requests))
        if rows is None:
            return None
        return [self._with_tail(answer, row, record.computed_in) for answer, row in zip(answers, rows, strict=True)]

    def finish(self, context: Any, frame: Frame, request_id: str) -> HandlerResponse:
        """The ordinary answer, as if the model had returned the frame's raw output."""
        if self.verdict.refused:
            raise NotCodable(f"this handler cannot finish raw outputs: {self.verdict.reason}")
        part, raw = frame.slots[0], frame.raw
        if frame.k != 1 or part is None or raw is None:
            raise MalformedFrame("a finish needs a frame of one slot, the original request, and a raw output")
        request = slot_request(frame, 0, request_id)
        try:
            answer = run(context, [request], lambda data, ctx: self._boundary.finish(data, ctx, raw))[0]
        except NotCodable:
            raise
        except Exception as error:
            return response_to_error(error)
        if not_finite(answer.body):
            raise NotCodable("the answer made from the rebuilt output holds NaN or infinity")
        return answer

    def _with_tail(self, answer: HandlerResponse, raw: Array | None, computed_in: str) -> HandlerResponse:
        if raw is None or not 200 <= answer.status < 300 or not np.isfinite(raw).all():
            return answer
        if len(answer.body) + raw.nbytes > self._max_response_size:
            return answer
        body, described = attach_tail(answer.body, raw, computed_in)
        return replace(answer, body=body, headers={**answer.headers, RAW: described})


def slot_request(frame: Frame, slot: int, request_id: str) -> HandlerRequest:
    part = frame.slots[slot]
    assert part is not None
    try:
        return request_of(part, request_id)
    except ValueError as error:
        raise MalformedFrame(f"slot {slot}: {error}") from None


def max_response_size() -> int:
    """TorchServe's limit, if this process can find it out, else TorchServe's default."""
    limit = os.environ.get("TS_MAX_RESPONSE_SIZE") or _configured("max_response_size")
    return int(limit) if limit and limit.isdigit() else MAX_RESPONSE_SIZE


def _configured(key: str) -> str | None:
    file = _config_file()
    if file is None or not file.is_file():
        return None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, separator, value = line.partition("=")
        if separator and name.strip() == key:
            return value.strip()
    return None


def _config_file() -> Path | None:
    """The frontend's config.properties. The frontend is our parent process, and its command line names the file."""
    if path := os.environ.get("TS_CONFIG_FILE"):
        return Path(path)
    frontend = Path(f"/proc/{os.getppid()}")
    try:
        words = (frontend / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return None
    file = dict(itertools.pairwise(words)).get("-f")
    return None if file is None else frontend / "cwd" / file
