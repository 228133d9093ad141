"""What a protection's worker does: it answers a group of original requests.

Parity family: each slot runs up to its model call, the inputs are combined on their device, the parity model computes
once, and its raw output is the answer. Backup family: each slot runs whole, alone or as a batch where samples have
shown that this is the same; the model call is made by the deployed model itself (`exact`) or by a small one
(`student`). A bad slot fails alone. Knows frames, codes and the boundary. Knows nothing of how groups are formed, or of
which query is late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ts_parity.confidence import CERTAIN
from ts_parity.errors import MalformedFrame, NotCodable, TsParityError
from ts_parity.wire import CONFIDENCE, Array, Frame, Part
from ts_parity.worker.boundary import Boundary, EntryPoint, finite
from ts_parity.worker.confidence import confidence_headers
from ts_parity.worker.encoders import encode, mismatched_slots, non_finite_slots, tensors
from ts_parity.worker.gpu import shared_gpu
from ts_parity.worker.operations import slot_request
from ts_parity.worker.outputs import take
from ts_parity.worker.repeatable import ObservedRun, RandomStates, RunOnce, check_repeats, check_run
from ts_parity.worker.requests import HandlerRequest
from ts_parity.worker.responses import (
    BadHandlerResponse,
    HandlerResponse,
    StreamingRefused,
    error_response,
    response_to_error,
    run,
)
from ts_parity.worker.selftest import LIVE_REQUESTS, described_input, judging, record_one
from ts_parity.worker.settings import Protection
from ts_parity.worker.verdict import HandlerVerdict, VerdictState, alike, in_a_batch, not_finite, shape_and_dtype
from ts_parity.worker.watches import ModelCall

log = logging.getLogger(__name__)

COVERED = Part((), b"", 200, "")
_REFUSED_SLOT = 400

ParityModel = Callable[[ModelCall], Any]
"""Computes one call whose inputs have been combined."""


class ParityGroups:
    """The parity family."""

    def __init__(
        self,
        boundary: Boundary,
        verdict: HandlerVerdict,
        protection: Protection,
        parity_model: ParityModel | None = None,
    ) -> None:
        self.verdict = verdict
        self._boundary = boundary
        self._protection = protection
        self._parity_model = parity_model or boundary.compute

    def answer(self, context: Any, frame: Frame, request_id: str) -> Frame:
        check_group(frame, self._protection, self.verdict)
        calls: dict[int, ModelCall] = {}
        errors: dict[int, HandlerResponse] = {}
        for slot in member_slots(frame):
            try:
                calls[slot] = self._captured(context, slot_request(frame, slot, f"{request_id}/{slot}"))
            except Exception as error:
                errors[slot] = _slot_error(slot, error)
        for find in (mismatched_slots, non_finite_slots):
            for slot, why in find(calls).items():
                del calls[slot]
                errors[slot] = error_response(_REFUSED_SLOT, why, "BadRequestException")
        parts = _parts(frame, {**dict.fromkeys(calls, COVERED), **_as_parts(errors)})
        return Frame(parts, *self._raw(frame.k, calls))

    def judge(self, context: Any, samples: Sequence[HandlerRequest], fresh: Callable[[], RunOnce]) -> None:
        """Test it on samples, each in a group by itself with all other slots empty."""
        with judging(self.verdict, samples):
            check_repeats(self.once(context), samples, fresh)

    def once(self, context: Any) -> RunOnce:
        def run_one(sample: HandlerRequest) -> ObservedRun:
            call = self._captured(context, sample)
            raw, computed_in = self._raw_of([call])
            return ObservedRun(HandlerResponse(b""), raw, computed_in=computed_in)

        return run_one

    def _captured(self, context: Any, request: HandlerRequest) -> ModelCall:
        captured: list[ModelCall] = []

        def entry(data: Any, ctx: Any) -> list[bytes]:
            captured.append(self._boundary.capture(data, ctx))
            return [b""]

        run(context, [request], entry)
        return captured[0]

    def _raw(self, k: int, calls: Mapping[int, ModelCall]) -> tuple[Array | None, str]:
        """-> the parity output and the dtype it was computed in, as in a frame."""
        if not calls:
            return None, ""
        if len(calls) < k and not self._protection.partial:
            raise NotCodable(
                f"the parity model was trained without empty slots (partial: false), and {k - len(calls)} of the "
                f"group's {k} slots are empty or could not be used"
            )
        return self._raw_of([calls.get(slot) for slot in range(k)])

    def _raw_of(self, calls: list[ModelCall | None]) -> tuple[Array, str]:
        encoded = encode(calls, self._protection.code, self._protection.row)
        if self.verdict.state is VerdictState.UNTESTED:
            self._check_mode(encoded)
        with torch.inference_mode(), shared_gpu():
            raw, container = take(self._parity_model(encoded), encoded.output)
        finite(raw)
        self.verdict.input, self.verdict.output = described_input(encoded), shape_and_dtype(raw)
        self.verdict.accept("inputs were combined and the parity model answered")
        return raw, container.computed_in

    def _check_mode(self, call: ModelCall) -> None:
        models = {site.path: site.get() for site in self._boundary.sites() if site.path == call.site}
        try:
            check_run(ObservedRun(HandlerResponse(b""), models=models), ())
        except NotCodable as refusal:
            self.verdict.refuse(refusal)
            raise


class BackupGroups:
    """The backup family: the user's own entry point runs on each slot.

    `entry` is the user's entry point with the model that answers here: its own, or a student in its place; then
    `boundary` is None, since the user's own model is not called. `may_batch`: slots may run as one batch if samples
    have shown that it gives the same answers. A batch rounds differently, so a lossless code does not use it on a CPU,
    where it saves next to nothing and answers can stay identical to the byte.
    """

    def __init__(
        self,
        entry: EntryPoint,
        boundary: Boundary | None,
        verdict: HandlerVerdict,
        protection: Protection,
        may_batch: bool = True,
    ) -> None:
        self.verdict = verdict
        self._boundary = boundary
        # Samples have shown more than the first live requests can.
        self._observed = LIVE_REQUESTS if verdict.state is VerdictState.CODABLE else 0
        self._entry = entry
        self._protection = protection
        self._may_batch = may_batch
        verdict.accept("each slot is answered by the handler itself")

    def answer(self, context: Any, frame: Frame, request_id: str) -> Frame:
        check_group(frame, self._protection, self.verdict)
        errors: dict[int, HandlerResponse] = {}
        requests: dict[int, HandlerRequest] = {}
        for slot in member_slots(frame):
            try:
                requests[slot] = slot_request(frame, slot, f"{request_id}/{slot}")
            except MalformedFrame as error:
                errors[slot] = response_to_error(error)
        return Frame(_parts(frame, _as_parts({**errors, **self._answers(context, requests)})))

    def judge(self, context: Any, samples: Sequence[HandlerRequest], fresh: Callable[[], RunOnce]) -> None:
        """Test it on samples."""
        with judging(self.verdict, samples):
            seen = check_repeats(self.once(context), samples, fresh)
            if self._may_batch and len({each.answer.body for each in seen}) > 1:
                self._judge_batch(context, samples, seen)
            self._observed = LIVE_REQUESTS
            count = f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"
            self.verdict.accept(f"each slot is answered by the handler itself; the self-test passed on {count}")

    def once(self, context: Any) -> RunOnce:
        def run_one(request: HandlerRequest) -> ObservedRun:
            if self._boundary is None:
                return ObservedRun(run(context, [request], self._entry)[0])
            record, answer = record_one(self._boundary, context, request)
            return ObservedRun(answer, record.raw, record.models, record.computed_in)

        return run_one

    def _answers(self, context: Any, requests: dict[int, HandlerRequest]) -> dict[int, HandlerResponse]:
        together = self._together(context, requests) if self._may_batch and self.verdict.batched else None
        if together is not None:
            return together
        return {slot: self._alone(context, request) for slot, request in requests.items()}

    def _judge_batch(self, context: Any, samples: Sequence[HandlerRequest], alone: Sequence[ObservedRun]) -> None:
        together = self._together(context, dict(enumerate(samples)))
        self.verdict.batched = together is not None and all(
            alike(seen.answer, together[slot], in_a_batch(seen.computed_in)) for slot, seen in enumerate(alone)
        )

    def _alone(self, context: Any, request: HandlerRequest) -> HandlerResponse:
        try:
            looked_at = self._observed < LIVE_REQUESTS
            answer = self._observed_run(context, request) if looked_at else run(context, [request], self._entry)[0]
        except Exception as error:
            log.warning("a slot's run failed", exc_info=True)
            return response_to_error(error)
        if not self._protection.code.lossless and not_finite(answer.body):
            return error_response(500, "the answer holds NaN or infinity")
        return answer

    def _observed_run(self, context: Any, request: HandlerRequest) -> HandlerResponse:
        """Run while watching: drawing random numbers and training mode show in a single run."""
        before = RandomStates()
        seen = self.once(context)(request)
        drawn = before.drawn() if self._observed else []  # as in Observer
        self._observed += 1
        try:
            check_run(seen, drawn)
        except NotCodable as refusal:
            self.verdict.refuse(refusal)
            raise
        return self._with_confidence(seen.answer, seen.raw)

    def _with_confidence(self, answer: HandlerResponse, raw: Array | None) -> HandlerResponse:
        """Add the confidence header, as `entry` would have done."""
        confidence, headers = self._protection.confidence, list[str]()
        if self._protection.code.lossless:
            headers.append(CERTAIN)
        elif raw is not None:
            finite(raw)
            headers += [] if confidence is None else confidence_headers(confidence, raw, 1)
        return replace(answer, headers={**answer.headers, CONFIDENCE: headers[0]}) if headers else answer

    def _together(self, context: Any, requests: dict[int, HandlerRequest]) -> dict[int, HandlerResponse] | None:
        try:
            answers = run(context, list(requests.values()), self._entry)
        except (Exception, StreamingRefused):
            return None  # one of them is bad; run alone, each gets its own answer
        if not self._protection.code.lossless and any(not_finite(answer.body) for answer in answers):
            return None
        return dict(zip(requests, answers, strict=True))


def check_group(frame: Frame, protection: Protection, verdict: HandlerVerdict) -> None:
    if verdict.refused:
        raise NotCodable(f"this handler cannot be protected with {protection.code.name}: {verdict.reason}")
    if frame.k != protection.code.k:
        raise MalformedFrame(f"this endpoint protects groups of k = {protection.code.k}, not {frame.k}")
    if not member_slots(frame):
        raise MalformedFrame("a group needs at least one member")


def member_slots(frame: Frame) -> list[int]:
    return [slot for slot, part in enumerate(frame.slots) if part is not None]


class ScriptedModel:
    """A parity model or a student from a TorchScript file. It gets the tensors of a call as positional arguments, on
    its device, floating ones in its dtype.
    """

    def __init__(self, file: str, device: torch.device) -> None:
        self._module = torch.jit.load(file, map_location=device).eval()  # type: ignore[no-untyped-call]
        for constant in device_constants(self._module):
            constant.s_("value", str(device))
        self._device = device
        self._dtype = _dtype_of(self._module)

    def __call__(self, call: ModelCall) -> Any:
        # A network of another architecture does not have the argument names and containers that user code uses.
        return self._module(*(self._moved(tensor) for tensor in tensors(call).values()))

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._device, self._dtype if self._dtype and value.is_floating_point() else value.dtype)


def device_constants(script: Any) -> list[Any]:
    """The nodes of its graphs that name a device. A trace writes the device down that it was made on, for whatever is
    created on the device of something else (`torch.arange(n, device=x.device)`), and moving the script leaves that.
    """
    graphs = [part.graph for part in script.modules() if part._c._has_method("forward")]
    nodes = [node for graph in graphs for node in graph.findAllNodes("prim::Constant")]
    return [node for node in nodes if str(node.output().type()) == "Device" and node.hasAttribute("value")]


def _dtype_of(script: Any) -> torch.dtype | None:
    """The dtype of its first floating weight; None without one. A frozen script holds weights as constants."""
    nodes = (node for node in script.graph.findAllNodes("prim::Constant") if node.hasAttribute("value"))
    constants = (node.t("value") for node in nodes if node.kindOf("value") == "t")
    weights = (*script.parameters(), *script.buffers(), *(value for value in constants if value.ndim))
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def _slot_error(slot: int, error: Exception) -> HandlerResponse:
    if isinstance(error, TsParityError) and not isinstance(error, BadHandlerResponse):
        return error_response(_REFUSED_SLOT, str(error), "BadRequestException")
    log.warning("slot %d: the handler failed before its model call", slot, exc_info=error)
    return response_to_error(error)


def _as_parts(answers: Mapping[int, HandlerResponse]) -> dict[int, Part]:
    return {slot: Part(a.header_pairs, a.body, a.status, a.phrase or "") for slot, a in answers.items()}


def _parts(frame: Frame, parts: Mapping[int, Part]) -> tuple[Part | None, ...]:
    return tuple(parts.get(slot) for slot in range(frame.k))
