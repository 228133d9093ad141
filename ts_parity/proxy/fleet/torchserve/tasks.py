"""What each kind of task sends to a TorchServe, and what the response means.

Pure: makes requests from queries and groups, and outcomes from responses. Knows frames, raw tails and control headers.
Knows nothing of sockets, of time, or of which endpoint is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import final

import numpy as np

from ts_parity.codes import Family
from ts_parity.confidence import from_header
from ts_parity.engine import ARRIVED, ARRIVED_ERROR, ARRIVED_RAW, Arrived, Failed, Outcome
from ts_parity.errors import MalformedFrame, MalformedTail
from ts_parity.proxy.fleet.payloads import QueryPayload, Target, TaskResult
from ts_parity.proxy.fleet.torchserve.answers import classify
from ts_parity.proxy.fleet.torchserve.routes import prediction_target, url_path
from ts_parity.proxy.http.messages import (
    BODILESS,
    LENGTH,
    Request,
    Response,
    encode_headers,
    header,
    header_flags,
    split_controls,
    without_hop_by_hop,
)
from ts_parity.proxy.http.upstream import NoResponse
from ts_parity.wire import (
    CONFIDENCE,
    FRAME_TYPE,
    OP,
    OP_FINISH,
    OP_GROUP,
    OP_RAW,
    RAW,
    ROUNDOFF,
    SECRET,
    Array,
    Frame,
    Headers,
    Part,
    Tail,
    find_tail,
    pack_frame,
    unpack_frame,
)

_FRAME_HEADERS: Headers = (("Content-Type", FRAME_TYPE),)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE = re.compile(r"[\t -~\x80-\xff]{0,8192}")
# The headers that TorchServe's frontend puts on the response to a group and would put on an ordinary answer too.
_FRONTEND_HEADERS = frozenset({"x-request-id", "pragma", "cache-control", "expires"})


@final
class FrameResult(TaskResult):
    """The answer of a wrapped archive, with a raw tail behind its body or a frame in its place."""

    __slots__ = ("_body", "_tail", "frame")

    def __init__(
        self, response: Response, frame: Frame | None = None, body: bytes = b"", tail: Tail | None = None
    ) -> None:
        """`tail`: where in `body`, the whole body received, the raw output is; it is read only when needed."""
        super().__init__(response)
        self.frame = frame
        self._body = body
        self._tail = tail

    @property
    def raw(self) -> Array | None:
        if self._tail is not None:
            return self._tail.array(self._body)
        return None if self.frame is None else self.frame.raw

    @property
    def roundoff(self) -> float:
        dtype = self.frame.computed_in if self.frame is not None else self._tail.computed_in if self._tail else ""
        return ROUNDOFF[dtype] if dtype else 0.0

    def has_slot(self, slot: int) -> bool:
        return self.frame is not None and self.frame.slots[slot] is not None

    def slot_response(self, slot: int) -> Response:
        """From a backup's frame, with the headers that the frontend would have added."""
        assert self.frame is not None
        assert self.response is not None
        part = self.frame.slots[slot]
        assert part is not None, f"slot {slot} was not covered"
        own, _ = split_controls(without_hop_by_hop(part.headers))
        taken = {name.lower() for name, _ in own}
        frontend = tuple(
            (name, text)
            for name, text in self.response.headers
            if name.lower() in _FRONTEND_HEADERS and name.lower() not in taken
        )
        own = tuple(pair for pair in own if not header_flags(pair[0]) & LENGTH)
        if part.status in BODILESS:
            return Response(part.status, part.phrase, (*own, *frontend), b"")
        headers = (*own, *frontend, ("content-length", str(len(part.body))))
        return Response(part.status, part.phrase, headers, part.body)

    def slot_confidence(self, slot: int) -> float | None:
        part = None if self.frame is None else self.frame.slots[slot]
        return None if part is None else from_header(header(part.headers, CONFIDENCE))


def prediction_request(payload: QueryPayload, target: Target, raw: bool, secret: str) -> Request:
    """The client's own request. With `raw`, the worker appends the model's raw output to its answer."""
    request = payload.request
    ask = payload.ask
    version = "" if ask.version is None and target.default else target.version
    path = prediction_target(target.model, version, ask.extra, request.query_string)
    if not raw:
        return Request(request.method, path, request.headers, request.body, request.block)
    block = request.block
    if block is not None:
        block += _as_lines(OP_RAW, secret)
    return Request(request.method, path, (*request.headers, *_control(OP_RAW, secret)), request.body, block)


def group_request(members: Sequence[QueryPayload | None], target: Target, secret: str) -> Request:
    frame = Frame(tuple(None if payload is None else _part(payload) for payload in members))
    return _frame_request(frame, target, OP_GROUP, secret)


def finish_request(payload: QueryPayload, raw: Array, target: Target, secret: str) -> Request:
    return _frame_request(Frame((_part(payload),), raw), target, OP_FINISH, secret)


def read_prediction(result: Response | NoResponse) -> tuple[Outcome, TaskResult]:
    """The ordinary answer, and the raw tail if there is one. Clients never get the tail."""
    if isinstance(result, NoResponse):
        return Failed(result.reason, cause=result.cause), TaskResult()
    failure = classify(result)
    if failure is not None:
        return failure, TaskResult(result)
    described = header(result.controls, RAW)
    if described is None or result.status in BODILESS:  # no body, no tail
        return ARRIVED if result.status < 400 else ARRIVED_ERROR, TaskResult(result)
    try:
        tail = find_tail(result.body, described)
    except MalformedTail as error:
        # Without the tail's start the end of the ordinary body is unknown, so there is no answer in it.
        return Failed(str(error)), TaskResult()
    return ARRIVED_RAW, FrameResult(_ordinary(result, tail.offset), None, result.body, tail)


def _ordinary(response: Response, length: int) -> Response:
    """The answer as it would be without the tail: its length is corrected in place."""
    text = str(length)
    headers = tuple([(name, text if header_flags(name) & LENGTH else value) for name, value in response.headers])
    block = None
    if response.block is not None:
        whole = b"\r\ncontent-length: %d" % len(response.body)  # as TorchServe spells it
        once = response.block.count(whole) == 1 and response.block.endswith(whole)
        block = response.block[: -len(whole)] + b"\r\ncontent-length: %d" % length if once else encode_headers(headers)
    return Response(response.status, response.phrase, headers, response.body[:length], block)


def read_protection(
    result: Response | NoResponse, family: str, k: int, sent: frozenset[int]
) -> tuple[Outcome, TaskResult]:
    """A group's answer: one raw parity output, or one ordinary answer per slot. `sent`: the slots with a member.

    An answer that does not fit this group, or is not finite, is a failure.
    """
    failure = _no_answer(result)
    if failure is not None:
        return failure
    assert isinstance(result, Response)
    if result.header("content-type") != FRAME_TYPE:
        return Failed("the answer to a group request is no frame; is this a protection?", retry=False), TaskResult()
    try:
        frame = unpack_frame(result.body)
    except MalformedFrame as error:
        return Failed(str(error), retry=False), TaskResult()
    if frame.k != k:
        return Failed(f"the answer to a group of {k} is a frame of {frame.k} slots", retry=False), TaskResult()
    covers = frozenset([slot for slot in sent if (part := frame.slots[slot]) is not None and _is_answer(part)])
    if family == Family.PARITY and frame.raw is None:
        return Failed("no parity output in the answer to a group request", retry=False), TaskResult()
    if frame.raw is not None and not np.isfinite(frame.raw).all():
        return Failed("the parity output is not finite (NaN or infinity)", retry=False), TaskResult()
    value = FrameResult(result, frame)
    known: dict[int, float] = {}
    if family == Family.BACKUP:
        for slot in covers:
            if (confidence := value.slot_confidence(slot)) is not None:
                known[slot] = confidence
    return Arrived(covers=covers, agreement=known or None), value


def _is_answer(part: Part) -> bool:
    """A success whose headers are valid: TorchServe's frontend would have refused to write invalid ones."""
    return 200 <= part.status < 300 and _is_head(part.phrase, part.headers)


@lru_cache(256)
def _is_head(phrase: str, headers: Headers) -> bool:
    fits = all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers)
    return fits and _VALUE.fullmatch(phrase) is not None


def read_finish(result: Response | NoResponse) -> tuple[Outcome, TaskResult]:
    """Here an error is no answer: it may be about the operation, and the query's own task may still bring one."""
    failure = _no_answer(result)
    if failure is not None:
        return failure
    assert isinstance(result, Response)
    return Arrived(), TaskResult(result)


def _no_answer(result: Response | NoResponse) -> tuple[Outcome, TaskResult] | None:
    if isinstance(result, NoResponse):
        return Failed(result.reason, cause=result.cause), TaskResult()
    failure = classify(result)
    if failure is not None:
        return failure, TaskResult(result)
    if result.status >= 400:
        text = result.body[:200].decode("utf-8", "replace")
        return Failed(f"refused with {result.status}: {text}", retry=False), TaskResult(result)
    return None


def _control(operation: str, secret: str) -> Headers:
    return ((OP, operation), (SECRET, secret)) if secret else ((OP, operation),)


@lru_cache(16)
def _as_lines(operation: str, secret: str) -> bytes:
    """The control headers as bytes that follow a block."""
    return b"\r\n" + encode_headers(_control(operation, secret))


def _part(payload: QueryPayload) -> Part:
    headers = without_hop_by_hop(payload.request.headers)
    if payload.ask.extra and header(headers, "url_path") is None:
        headers = (*headers, ("url_path", url_path(payload.ask.extra)))
    return Part(headers, payload.request.body)


def _frame_request(frame: Frame, target: Target, operation: str, secret: str) -> Request:
    headers = (*_FRAME_HEADERS, *_control(operation, secret))
    return Request("POST", prediction_target(target.model, target.version), headers, pack_frame(frame))
