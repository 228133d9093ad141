"""What TorchServe calls: sorts the requests of a batch by operation, and has each answered.

A batch without control headers goes to the user's entry point untouched. There is one `Worker` per process, created
when TorchServe initialises the handler. Knows headers, secrets and the order of a batch. The operations themselves are
in `operations` (raw output, finish) and `protections` (groups).
"""

from __future__ import annotations

import functools
import hmac
import json
import logging
import mimetypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ts_parity
from ts_parity.errors import MalformedFrame, NotCodable, TsParityError
from ts_parity.fingerprint import fingerprint
from ts_parity.wire import (
    CONTROL_PREFIX,
    FRAME_TYPE,
    OP,
    OP_FINISH,
    OP_GROUP,
    OP_RAW,
    SECRET,
    VERSION,
    Frame,
    Part,
    pack_frame,
    unpack_frame,
)
from ts_parity.worker.boundary import Boundary, EntryPoint, load_entry_point
from ts_parity.worker.confidence import with_certainty, with_confidence
from ts_parity.worker.gpu import assigned_device, shared_gpu, yield_to_others
from ts_parity.worker.offline import make_context, without_modules_of, working_in
from ts_parity.worker.operations import DeployedOperations, max_response_size
from ts_parity.worker.protections import BackupGroups, ParityGroups, ScriptedModel
from ts_parity.worker.repeatable import RunOnce
from ts_parity.worker.requests import HandlerRequest, request_of
from ts_parity.worker.responses import (
    HandlerResponse,
    RecordingSocket,
    StreamingRefused,
    error_response,
    prediction_of,
    response_to_error,
    run,
    set_response,
)
from ts_parity.worker.selftest import STREAMS, judge_deployed, observed_run
from ts_parity.worker.selftest_process import verdict_on_samples
from ts_parity.worker.settings import PARITY, Protection, SampleFile, file_in_archive, read_settings
from ts_parity.worker.user_code import functions_of, owner_of
from ts_parity.worker.verdict import HandlerVerdict

log = logging.getLogger(__name__)

OP_DESCRIBE = "describe"
ENVELOPE = "a service envelope changes requests before the handler sees them"
_PREFIX_LENGTH = len(CONTROL_PREFIX)


class WrongOperation(TsParityError):
    """An operation that this endpoint does not have."""

    status = 400
    kind = "BadRequestException"


def make_handle(role: str) -> Callable[[Any, Any], Any]:
    """The function that a handler file offers to TorchServe."""
    workers: list[Worker] = []
    if role == PARITY:
        yield_to_others()

    def handle(data: Any, context: Any) -> Any:
        if data is None:
            workers[:] = [Worker(context, role)]
            return None
        with shared_gpu():
            return workers[0].answer(data, context)

    return handle


class Worker:
    """The user's handler, loaded in this process, and all that is done with it."""

    def __init__(self, context: Any, role: str, for_selftest: bool = False) -> None:
        """`for_selftest`: it only runs the samples and serves no clients."""
        self._settings = read_settings(context.model_yaml_config, role)
        self._folder = Path(context.system_properties["model_dir"])
        # User code that reads its handler's name from the manifest must find its own, not the wrapper's.
        context.manifest["model"]["handler"] = self._settings.handler
        self._samples = [_sample_request(self._folder, sample) for sample in self._settings.samples]
        self._verdict = HandlerVerdict()
        if self._samples and not for_selftest:
            # Before loading the handler, so that its model is never in memory twice.
            gpu_id = context.system_properties["gpu_id"]
            self._verdict = verdict_on_samples(self._folder, role, gpu_id, context.model_yaml_config)
            log.info("self-test: %s, %s", self._verdict.state.value, self._verdict.reason)
        entry = load_entry_point(self._settings.handler, context)
        self._boundary = Boundary(entry, **self._settings.declaration)
        self._weights = _weights(self._folder, context.manifest)
        self._limit = max_response_size()
        self._deployed = DeployedOperations(self._boundary, self._verdict, self._limit)
        self._other_model = self._load_other_model(context)
        self._entry = self._plain_entry()
        self._groups = self._make_groups(context, self._settings.protection)

    def self_test(self, context: Any, fresh: Callable[[], RunOnce]) -> HandlerVerdict:
        """Test the handler on its samples. `fresh` makes another object of it, with its own modules."""
        if self._groups is not None:
            self._groups.judge(context, self._samples, fresh)
        else:
            judge_deployed(self._boundary, self._verdict, context, self._samples, fresh)
        return self._verdict

    def once(self, context: Any) -> RunOnce:
        """The function that runs one sample."""
        if self._groups is not None:
            return self._groups.once(context)
        return lambda request: observed_run(self._boundary, context, request)

    def group(self, context: Any, frame: Frame, request_id: str) -> Frame:
        """Answer a group; only for a protection's archive."""
        assert self._groups is not None
        return self._groups.answer(context, frame, request_id)

    def answer(self, data: Any, context: Any) -> Any:
        processors = context.request_processor
        headers = [processor.get_request_properties() for processor in processors or ()]
        operations = [operation_of(each) for each in headers]
        # A service envelope may drop requests; then rows and headers do not correspond.
        if not any(operations) or len(headers) != len(data):
            return self._entry(data, context)
        if len(data) > 1 and not self._deployed.may_run_apart and self._only_ordinary(operations, headers):
            # As without this wrapper: one run of the whole batch, without raw outputs; if it fails, it fails for all.
            for each in headers:
                for name in [name for name in each if _is_control(name)]:
                    del each[name]
            return self._entry(data, context)
        if not all(isinstance(row, dict) for row in data):
            self._verdict.refuse(ENVELOPE)
        requests = [
            HandlerRequest(context.get_request_id(index) or "", row, _without_control(each))
            for index, (row, each) in enumerate(zip(data, headers, strict=True))
        ]
        answers = self._answers(context, requests, operations, [_header(each, SECRET) for each in headers])
        return [set_response(context, index, answer) for index, answer in enumerate(answers)]

    def _answers(
        self, context: Any, requests: list[HandlerRequest], operations: list[str], secrets: list[str]
    ) -> list[HandlerResponse]:
        answers: dict[int, HandlerResponse] = {}
        socket = getattr(context, "cl_socket", None)
        allowed = {index for index in range(len(requests)) if self._admits(operations[index], secrets[index])}
        raw = {i: requests[i] for i in sorted(allowed) if operations[i] == OP_RAW}
        plain = {index: requests[index] for index, operation in enumerate(operations) if not operation}
        if not self._deployed.may_run_apart and len(plain) + len(raw) > 1:
            answers.update(self._plain(context, {i: requests[i] for i in sorted({*plain, *raw})}, socket))
        else:
            answers.update(self._plain(context, plain, socket))
            answers.update(self._raw_batch(context, raw))
        for index, (request, operation) in enumerate(zip(requests, operations, strict=True)):
            if index in answers:
                continue
            if index not in allowed:
                answers[index] = error_response(403, f"{SECRET} is missing or wrong", "ForbiddenException")
                continue
            try:
                answers[index] = self._operate(context, request, operation, socket)
            except TsParityError as error:
                answers[index] = response_to_error(error)
            except StreamingRefused:
                self._verdict.refuse(STREAMS)
                answers[index] = response_to_error(NotCodable(STREAMS))
            except Exception as error:
                if len(requests) == 1:
                    raise  # TorchServe itself answers
                log.warning("a request failed", exc_info=True)
                answers[index] = response_to_error(error)
        return [answers[index] for index in range(len(requests))]

    def _plain(self, context: Any, requests: dict[int, HandlerRequest], socket: Any) -> dict[int, HandlerResponse]:
        """Plain requests beside operations run together, as TorchServe would have run them, and fail together."""
        if not requests:
            return {}
        try:
            answers = run(context, list(requests.values()), self._entry, RecordingSocket(socket))
        except Exception as error:
            log.warning("plain requests failed", exc_info=True)
            answers = [response_to_error(error)] * len(requests)
        return dict(zip(requests, answers, strict=True))

    def _raw_batch(self, context: Any, requests: dict[int, HandlerRequest]) -> dict[int, HandlerResponse]:
        answers = self._deployed.raw_batch(context, list(requests.values()))
        return {} if answers is None else dict(zip(requests, answers, strict=True))

    def _operate(self, context: Any, request: HandlerRequest, operation: str, socket: Any) -> HandlerResponse:
        if operation == OP_DESCRIBE:
            return self._describe(context, request)
        if operation == OP_RAW:
            return self._deployed.raw(context, request, socket)
        # A parity worker has the user's code too, and is often less busy.
        if operation == OP_FINISH and not isinstance(self._groups, BackupGroups):
            return self._deployed.finish(context, self._frame_to_code(request), request.id)
        if operation == OP_GROUP and self._groups is not None:
            return self._frame_response(self.group(context, self._frame_to_code(request), request.id))
        if operation in (OP_FINISH, OP_GROUP):
            raise WrongOperation(f"operation {operation} is not for an endpoint of role {self._settings.role}")
        raise WrongOperation(f"unknown operation {operation!r} in {OP}")

    def _frame_to_code(self, request: HandlerRequest) -> Frame:
        """The request's frame. Refuse bodies that are never coded; the proxy does not send them."""
        frame = _frame(request)
        never = self._settings.never_code
        if never and any(part is not None and never.covers(*part[:2]) for part in frame.slots):
            raise NotCodable("the model's archive declares such a body as one that is never coded (never_code)")
        return frame

    def _frame_response(self, frame: Frame) -> HandlerResponse:
        body = pack_frame(frame)
        if len(body) > self._limit:
            return error_response(500, f"the group's answer of {len(body)} bytes exceeds max_response_size")
        return HandlerResponse(body, headers={"content-type": FRAME_TYPE})

    def _only_ordinary(self, operations: list[str], headers: list[dict[str, Any]]) -> bool:
        """Whether all requests get the handler's ordinary response."""
        return all(
            not operation or (operation == OP_RAW and self._admits(operation, _header(each, SECRET)))
            for operation, each in zip(operations, headers, strict=True)
        )

    def _admits(self, operation: str, secret: str) -> bool:
        if self._settings.secret is None or operation in ("", OP_DESCRIBE):
            return True
        return hmac.compare_digest(secret.encode(), self._settings.secret.encode())

    def _load_other_model(self, context: Any) -> ScriptedModel | None:
        """The protection's model, if the user's handler could not load it as its own."""
        protection = self._settings.protection
        if protection is None or protection.parity_model is None:
            return None
        file = file_in_archive(self._folder, protection.parity_model, "parity_model")
        return ScriptedModel(str(file), assigned_device(context))

    def _plain_entry(self) -> EntryPoint:
        """What runs plain requests. A backup gets them too: as the backup of a single query."""
        protection = self._settings.protection
        if protection is None or not protection.is_backup:
            return self._boundary.plain
        if protection.code.lossless:
            return functools.partial(with_certainty, self._boundary.plain)
        if self._other_model is None:  # the handler itself has loaded the student
            return functools.partial(with_confidence, protection.confidence, self._boundary.run_checked)
        run_with = functools.partial(self._boundary.run_with, self._other_model)
        return functools.partial(with_confidence, protection.confidence, run_with)

    def _make_groups(self, context: Any, protection: Protection | None) -> ParityGroups | BackupGroups | None:
        if protection is None:
            return None
        if protection.is_backup:
            may_batch = not protection.code.lossless or assigned_device(context).type == "cuda"
            boundary = self._boundary if self._other_model is None else None
            return BackupGroups(self._entry, boundary, self._verdict, protection, may_batch)
        return ParityGroups(self._boundary, self._verdict, protection, self._other_model)

    def _describe(self, context: Any, request: HandlerRequest) -> HandlerResponse:
        described: dict[str, Any] = {"ts_parity": self._self_description(context)}
        if answers_describe(self._boundary.entry):
            try:
                [own] = run(context, [request], self._boundary.plain)
                described["handler"] = json.loads(own.body)
            except (Exception, StreamingRefused):
                # The handler's own description is optional; ours must be sent.
                log.info("the handler's own describe failed", exc_info=True)
        return HandlerResponse(json.dumps(described, indent=2).encode())

    def _self_description(self, context: Any) -> dict[str, Any]:
        model = context.manifest["model"]
        verdict = self._verdict
        description: dict[str, Any] = {
            "wire": VERSION,
            "package": ts_parity.__version__,
            "role": self._settings.role,
            "model": context.model_name,
            "version": str(model.get("modelVersion", "")),
            "weights": self._weights,
            "verdict": verdict.state.value,
            "reason": verdict.reason,
            "repeatable": verdict.repeatable,
            "batched": bool(verdict.batched),
            "device": assigned_device(context).type,
            "input": verdict.input,
            "output": verdict.output,
        }
        if self._settings.never_code:
            description["never_code"] = self._settings.never_code.as_json()
        protection = self._settings.protection
        if protection is not None:
            description |= {
                "code": protection.code.name,
                "k": protection.code.k,
                "r": protection.code.r,
                "row": protection.row,
                "coefficients": [list(row) for row in protection.code.coefficients],
                "partial": protection.partial,
                "cost": protection.cost,
                "cost_on": protection.cost_on,
                "agreement": protection.agreement,
                "tolerance": protection.tolerance,
                "row_errors": None if protection.row_errors is None else protection.row_errors.as_json(),
                "confidence": None if protection.confidence is None else protection.confidence.as_json(),
                "protects": {name: protection.protects.get(name) for name in ("model", "version", "weights")},
            }
        return description


def self_test(folder: Path, role: str, gpu_id: int | None = None) -> HandlerVerdict:
    """Load an extracted archive in this process, test it on its samples, and unload it."""
    with without_modules_of(folder), working_in(folder):
        sys.path.insert(0, str(folder))
        try:
            context = make_context(folder, gpu_id)
            return Worker(context, role, for_selftest=True).self_test(context, lambda: _fresh_run(folder, role, gpu_id))
        finally:
            sys.path.remove(str(folder))


def _fresh_run(folder: Path, role: str, gpu_id: int | None) -> RunOnce:
    with without_modules_of(folder):
        context = make_context(folder, gpu_id)
        return Worker(context, role, for_selftest=True).once(context)


class OfflineProtection:
    """A protection's extracted archive outside TorchServe, loaded and self-tested as its worker would do it."""

    def __init__(self, folder: Path, gpu_id: int | None = None) -> None:
        self._folder = folder.resolve()
        with without_modules_of(self._folder), working_in(self._folder):
            sys.path.insert(0, str(self._folder))
            try:
                self._context = make_context(self._folder, gpu_id)
                self._worker = Worker(self._context, "parity", for_selftest=True)
                self.verdict = self._worker.self_test(self._context, lambda: _fresh_run(self._folder, "parity", gpu_id))
            finally:
                sys.path.remove(str(self._folder))

    def answer(self, frame: Frame) -> Frame:
        """Raise NotCodable with the verdict's reason if it refuses."""
        with working_in(self._folder):
            return self._worker.group(self._context, frame, "offline")

    def prediction(self, frame: Frame) -> Callable[[], object]:
        """A group's answer as its worker makes it, from the bytes of the request to those of the answer: for
        measurements.
        """
        headers = {OP: OP_GROUP, "content-type": FRAME_TYPE}
        request = HandlerRequest("offline", {"body": bytearray(pack_frame(frame))}, headers)
        return prediction_of(self._context, request, self._worker.answer, self._folder)


def operation_of(headers: dict[str, Any]) -> str:
    """The operation that a request's headers ask for; empty for a plain request."""
    if headers.get("describe") == "True":
        return OP_DESCRIBE
    operation = _header(headers, OP)
    # An explanation is another function of the request, so it has no raw output.
    return "" if operation == OP_RAW and headers.get("explain") == "True" else operation


def answers_describe(entry: Any) -> bool:
    """Whether the user's code handles describe requests; otherwise it would fail on their empty body."""
    described = getattr(type(owner_of(entry)), "describe_handle", None)
    if described is not None and not described.__module__.startswith("ts."):
        return True
    return any("describe" in function.__code__.co_consts for function in functions_of(entry))


def _weights(folder: Path, manifest: dict[str, Any]) -> str | None:
    """The fingerprint of the weights: of the archive's serialized file."""
    name = manifest["model"].get("serializedFile")
    return fingerprint(folder / name) if name and (folder / name).is_file() else None


def _header(headers: dict[str, Any], wanted: str) -> str:
    """The value of a header. TorchServe keeps the letter case that the client sent."""
    for name, value in headers.items():
        if len(name) == len(wanted) and name.lower() == wanted and isinstance(value, str):
            return value
    return ""


def _without_control(headers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if not _is_control(name)}


def _is_control(name: str) -> bool:
    return name[:_PREFIX_LENGTH].lower() == CONTROL_PREFIX


def _frame(request: HandlerRequest) -> Frame:
    if not isinstance(request.data, dict):
        raise NotCodable(ENVELOPE)
    body = request.data.get("body")
    if not isinstance(body, (bytes, bytearray)):
        raise MalformedFrame(f"this operation needs a frame as its body, sent with content type {FRAME_TYPE}")
    return unpack_frame(body)


def _sample_request(folder: Path, sample: SampleFile) -> HandlerRequest:
    file = file_in_archive(folder, sample.file, "sample")
    content_type = sample.content_type or mimetypes.guess_type(sample.file)[0] or "application/octet-stream"
    return request_of(Part((("content-type", content_type),), file.read_bytes()), sample.file)
