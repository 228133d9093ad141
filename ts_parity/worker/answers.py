"""Running user code on chosen requests, and its answers: exactly what TorchServe would have sent, one per request.

While some requests of a batch run, the context shows these alone; it stays the same object, since handlers keep a
reference to it. Knows TorchServe's context and how it serialises; knows nothing of models or operations.
"""

from __future__ import annotations

import http
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from ts.context import RequestProcessor
from ts.utils.util import PredictionException

from ts_parity.errors import TsParityError, error_body
from ts_parity.wire import Headers
from ts_parity.worker.requests import Request

Run = Callable[[list[Any], Any], Any]
"""Something that is called as TorchServe calls an entry point: (data, context) -> list of results."""

ERROR_KIND = "InternalServerException"
JSON = "application/json"


class Streamed(BaseException):
    """User code began to send a chunked answer where none can be sent. Not an Exception: it must not be swallowed."""


class BadAnswer(TsParityError):
    """The user's handler broke TorchServe's contract for answers. The message is TorchServe's own."""

    status = 503
    kind = ERROR_KIND


@dataclass(frozen=True)
class Answer:
    """The ordinary answer to one request."""

    body: bytes
    status: int = 200
    phrase: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def header_pairs(self) -> Headers:
        return tuple((str(name), str(value)) for name, value in self.headers.items())


def run(context: Any, requests: Sequence[Request], entry: Run, socket: Any = None) -> list[Answer]:
    """The answers of the entry point to these requests alone.

    `socket` is where intermediate answers go; None refuses them with Streamed. Exceptions of user code pass through.
    """
    processors = [RequestProcessor(dict(request.headers)) for request in requests]
    no_socket = _NoSocket()
    with narrowed(context, requests, processors, socket or no_socket):
        results = entry([request.fresh_data() for request in requests], context)
    if no_socket.used:
        raise Streamed  # user code swallowed the first one
    if not isinstance(results, list):
        raise BadAnswer("Invalid model predict output")
    if len(results) != len(requests):
        raise BadAnswer("number of batch response mismatched")
    return [_answer(result, processor) for result, processor in zip(results, processors, strict=True)]


@contextmanager
def narrowed(context: Any, requests: Sequence[Request], processors: list[Any], socket: Any) -> Iterator[None]:
    """The context shows these requests only, to whoever holds it."""
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


class Tap:
    """Passes intermediate answers on and remembers that there were some."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.used = False

    def sendall(self, data: Any) -> None:
        self.used = True
        self._socket.sendall(data)


class _NoSocket:
    used = False

    def sendall(self, data: Any) -> None:
        self.used = True
        raise Streamed


def failed(error: BaseException) -> Answer:
    """The answer TorchServe gives when user code raises this."""
    if isinstance(error, TsParityError):
        return error_answer(error.status, str(error), error.kind)
    if isinstance(error, PredictionException):
        return error_answer(error.error_code, error.message)
    if isinstance(error, MemoryError) or "CUDA" in str(error):
        return error_answer(507, "Out of resources")
    return error_answer(503, "Prediction failed")


def error_answer(status: int, message: str, kind: str = ERROR_KIND) -> Answer:
    """An error in TorchServe's shape."""
    return Answer(error_body(status, kind, message), status, _phrase(status), {"content-type": JSON})


def put_answer(context: Any, index: int, answer: Answer) -> bytes:
    """Make this the answer of one request of the batch. -> what the entry point returns for it."""
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
        raise BadAnswer("Unsupported model output data type.") from None


def _answer(result: Any, processor: Any) -> Answer:
    status = processor.get_response_status_code()
    return Answer(
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
