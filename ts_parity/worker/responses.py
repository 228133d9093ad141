"""Runs user code on chosen requests; gives the response to each, exactly as TorchServe would have sent it.

While some requests of a batch run, TorchServe's context shows only these. It stays the same object, since handlers keep
references to it. Knows the context, and how TorchServe serialises results. Knows nothing of models or operations.
"""

from __future__ import annotations

import http
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ts.context import RequestProcessor
from ts.utils.util import PredictionException

from ts_parity.errors import TsParityError, error_body
from ts_parity.wire import Headers
from ts_parity.worker.gpu import shared_gpu
from ts_parity.worker.requests import HandlerRequest

EntryCall = Callable[[list[Any], Any], Any]
"""Called as TorchServe calls an entry point: (data, context) -> list of results."""

ERROR_KIND = "InternalServerException"
JSON = "application/json"


class StreamingRefused(BaseException):
    """User code began to stream where that is not possible. Not an Exception, so that user code does not swallow it."""


class BadHandlerResponse(TsParityError):
    """The user's handler broke TorchServe's contract for results. The message is TorchServe's own."""

    status = 503
    kind = ERROR_KIND


@dataclass(frozen=True)
class HandlerResponse:
    """The handler's ordinary response to one request."""

    body: bytes
    status: int = 200
    phrase: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def header_pairs(self) -> Headers:
        return tuple((str(name), str(value)) for name, value in self.headers.items())


def run(
    context: Any, requests: Sequence[HandlerRequest], entry: EntryCall, socket: Any = None
) -> list[HandlerResponse]:
    """Run the entry point on these requests alone. -> its responses.

    `socket` takes intermediate responses; without one they raise StreamingRefused. Exceptions of user code pass
    through.
    """
    processors = [RequestProcessor(dict(request.headers)) for request in requests]
    no_socket = _RefusingSocket()
    with context_for(context, requests, processors, socket or no_socket), shared_gpu():
        results = entry([request.fresh_data() for request in requests], context)
    if no_socket.used:
        raise StreamingRefused  # user code has swallowed the first one
    if not isinstance(results, list):
        raise BadHandlerResponse("Invalid model predict output")
    if len(results) != len(requests):
        raise BadHandlerResponse("number of batch response mismatched")
    return [_response(result, processor) for result, processor in zip(results, processors, strict=True)]


def prediction_of(context: Any, request: HandlerRequest, entry: EntryCall, folder: Path) -> Callable[[], object]:
    """What TorchServe times as its worker's prediction: the entry point on one request that has been read already.

    It leaves the context and the working directory as it needs them. For measurements.
    """
    ids = {0: request.id}

    def predict() -> object:
        os.chdir(folder)
        context.request_ids, context.request_processor = ids, [RequestProcessor(dict(request.headers))]
        return entry([request.fresh_data()], context)

    return predict


@contextmanager
def context_for(context: Any, requests: Sequence[HandlerRequest], processors: list[Any], socket: Any) -> Iterator[None]:
    """While it lasts, the context shows only these requests."""
    ids = {index: request.id for index, request in enumerate(requests)}
    metrics = context.metrics
    kept = context.request_ids, context.request_processor, getattr(context, "cl_socket", None)
    kept_ids = getattr(metrics, "request_ids", None)
    context.request_ids, context.request_processor, context.cl_socket = ids, processors, socket
    if metrics is not None:
        metrics.request_ids = ids
    try:
        yield
    finally:
        context.request_ids, context.request_processor, context.cl_socket = kept
        if metrics is not None:
            metrics.request_ids = kept_ids


class RecordingSocket:
    """Passes intermediate responses on and remembers that there were some."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.used = False

    def sendall(self, data: Any) -> None:
        self.used = True
        self._socket.sendall(data)


class _RefusingSocket:
    used = False

    def sendall(self, data: Any) -> None:
        self.used = True
        raise StreamingRefused


def response_to_error(error: BaseException) -> HandlerResponse:
    """The response that TorchServe gives when user code raises this."""
    if isinstance(error, TsParityError):
        return error_response(error.status, str(error), error.kind)
    if isinstance(error, PredictionException):
        return error_response(error.error_code, error.message)
    if isinstance(error, MemoryError) or "CUDA" in str(error):
        return error_response(507, "Out of resources")
    return error_response(503, "Prediction failed")


def error_response(status: int, message: str, kind: str = ERROR_KIND) -> HandlerResponse:
    """An error in TorchServe's shape."""
    return HandlerResponse(error_body(status, kind, message), status, _phrase(status), {"content-type": JSON})


def set_response(context: Any, index: int, answer: HandlerResponse) -> bytes:
    """Make this the response to one request of the batch. -> what the entry point returns for it."""
    context.set_response_status(answer.status, answer.phrase, index)
    headers = context.get_response_headers(index)
    headers.clear()
    headers.update(answer.headers)
    return answer.body


def serialised(result: Any) -> bytes:
    """A result of user code as TorchServe would send it."""
    if isinstance(result, (bytes, bytearray)):
        return bytes(result)
    if isinstance(result, str):
        return result.encode()
    if isinstance(result, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(result, buffer)
        return buffer.getvalue()
    try:
        return json.dumps(result, indent=2).encode()
    except TypeError:
        raise BadHandlerResponse("Unsupported model output data type.") from None


def _response(result: Any, processor: Any) -> HandlerResponse:
    status = processor.get_response_status_code()
    return HandlerResponse(
        serialised(result),
        200 if status is None else status,
        processor.get_response_status_phrase(),
        dict(processor.get_response_headers()),
    )


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
