"""Plain HTTP servers: what all kinds have in common that know nothing of ts_parity.

A query goes up as it came, and a late one's body goes to a student as an ordinary request of its own (k = 1: rows are
never merged, since only the server knows which may be). What an answer means is the same everywhere, but for details:

    2xx, whole                  an answer
    429, 503                    full: nothing was run, another is asked, and this one for a moment not
    404 where the model was     the instance no longer has it: look again, try another
    other 3xx and 4xx           the client's: passed on at once, and nothing is held against the instance
    other 5xx; a 2xx that is
    none of the model's         doubtful: a peer is asked within the retry budget, and what two say is the query's fault
    no answer                   the instance's fault

Pure. Knows requests and responses. Knows nothing of sockets, of queries, or of any one kind.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.engine import ARRIVED, Arrived, Blame, Cause, Failed, Rejected
from ts_parity.errors import DecodeError, TsParityError, Unavailable
from ts_parity.proxy.fleet.backends.backend import Prober, TaskEnd, Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.probing import PlainProber, Probe
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target, TaskResult
from ts_parity.proxy.http.messages import HOST, LENGTH, Request, Response, header_flags, phrase_of, with_header
from ts_parity.proxy.http.upstream import NoResponse, Upstream, excerpt
from ts_parity.wire import Array

CLIENTS_FAULT = Arrived(error=True, blame=Blame.CLIENTS)
DOUBTFUL = Arrived(error=True, blame=Blame.DOUBTFUL)
FULL = (429, 503)
STREAMS = ("text/event-stream", "application/x-ndjson", "application/jsonl")
MOST_JSON = 1 << 20
"""Bodies up to this size are parsed where only the body tells what a request is."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PlainBackend:
    """A kind says what differs: which requests are predictions, how the student is reached, what to ask."""

    kind: ClassVar[str] = ""
    whole: ClassVar[bool] = True
    """A chunked answer is read whole before it is used, unless its type says that it is a stream."""

    confuses: ClassVar[bool] = False

    def __init__(self, models: Sequence[ModelSettings] = (), prefix: str = "") -> None:
        """`models`: what the configuration says of any. `prefix`: before the names of its models, where kinds are
        mixed.
        """
        self.prefix = prefix
        self.models = {model.name: model for model in models if self.names_of_models(model.name)}

    def names_of_models(self, name: str) -> bool:
        """Whether a model of this kind can have the name."""
        return not name.startswith("/")

    # ---- what is asked ---------------------------------------------------------------------------------------------

    def match(self, request: Request) -> Ask | None:
        raise NotImplementedError

    def speaks(self, request: Request) -> bool:
        """Whether a request that asks for no prediction is for this kind."""
        return self.model_named(request) is not None

    def model_named(self, request: Request) -> str | None:
        return None

    def variants(self, ask: Ask, request: Request, group_by: frozenset[str]) -> Hashable:
        """Nothing shares a group, so nothing needs to be equal."""
        return ask.model

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        """Why this very request is passed through, and may be neither copied nor answered by anything else."""
        return None

    # ---- what goes up ----------------------------------------------------------------------------------------------

    def prediction(self, payload: QueryPayload, target: Target, raw: bool, secret: str) -> Request:
        return payload.request

    def protection(self, members: Sequence[QueryPayload | None], target: Target, secret: str) -> Request:
        (payload,) = members
        assert payload is not None
        sent = self.redirect(payload, target)
        if target.elsewhere:  # another service, perhaps told from others by its name
            sent = Request(sent.method, sent.target, without_host(sent), sent.body)
        return sent

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        """The query's own request, as it asks the student."""
        raise NotImplementedError

    def finish(self, payload: QueryPayload, raw: Array, target: Target, secret: str) -> Request:
        raise DecodeError("only wrapped archives of TorchServe make answers of raw outputs")

    # ---- what comes back -------------------------------------------------------------------------------------------

    def read_prediction(self, result: Response | NoResponse) -> TaskEnd:
        if isinstance(result, NoResponse):
            return Failed(result.reason, cause=result.cause), TaskResult()
        failure = self.trouble(result)
        if failure is not None:
            return failure, TaskResult(result)
        if result.status >= 500 or (result.status < 300 and not self.is_answer(result)):
            return DOUBTFUL, TaskResult(result)
        return CLIENTS_FAULT if result.status >= 300 else ARRIVED, TaskResult(result)

    def is_answer(self, response: Response) -> bool:
        """Whether a success is the model's, and no page of something in between."""
        return True

    def lacks_model(self, response: Response) -> bool:
        """Whether a 404 says that the model is not there."""
        return True

    def trouble(self, response: Response) -> Failed | Rejected | None:
        if response.status in FULL:
            return Rejected()
        if response.status == 404 and self.lacks_model(response):
            return Failed(f"404 {excerpt(response.body)}", cause=Cause.MISSING)
        return None

    def read_protection(self, result: Response | NoResponse, family: str, k: int, sent: frozenset[int]) -> TaskEnd:
        """Nobody is shown a student's error: the deployed model's answer may still come."""
        if isinstance(result, NoResponse):
            return Failed(result.reason, cause=result.cause), TaskResult()
        if result.status in FULL:
            return Rejected(), TaskResult(result)
        if not 200 <= result.status < 300 or not self.is_answer(result):
            return Failed(f"the student answered {result.status}: {excerpt(result.body)}", retry=False), TaskResult()
        value = TaskResult(result)
        sure = value.slot_confidence(0)
        return Arrived(covers=sent, agreement=None if sure is None else {0: sure}), value

    def read_finish(self, result: Response | NoResponse) -> TaskEnd:
        return Failed("there are no finishes here", retry=False), TaskResult()

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        """How an answer of this model is read to be compared; None: as it comes. Raise ValueError if it cannot be."""
        return None

    def confused(self, servers: str, request: Request, response: Response) -> str:
        return ""

    def says_same(self, one: Response, other: Response) -> bool:
        """Whether two answers to one request say the same, up to rounding."""
        return one.body == other.body

    def key_refused(self, response: Response) -> bool:
        return response.status == 401

    def from_gateway(self, response: Response) -> bool:
        return False

    def was_not_run(self, response: Response) -> bool:
        return False

    # ---- what is there ---------------------------------------------------------------------------------------------

    def prober(
        self,
        instances: Sequence[InstanceSettings],
        upstream: Upstream,
        timeout_s: float,
        before: Prober | None = None,
    ) -> Prober:
        models = [*self.models.values()]
        prober = PlainProber(self.kind, self.prefix, self.probe, instances, models, upstream, timeout_s, self.says_same)
        if isinstance(before, PlainProber):
            prober.remember(before)
        return prober

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        """`names`: models that the configuration or clients name. `known`: those that were seen there last."""
        raise NotImplementedError

    # ---- errors of the proxy's own ---------------------------------------------------------------------------------

    def error(self, error: TsParityError) -> Response:
        response = json_response(error.status, self.error_fields(error))
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            response = with_header(response, "Retry-After", str(max(1, round(error.retry_after_s))))
        return response

    def error_fields(self, error: TsParityError) -> Any:
        return {"error": str(error)}


def json_response(status: int, value: Any) -> Response:
    body = json.dumps(value).encode()
    headers = (("content-type", "application/json"), ("content-length", str(len(body))))
    return Response(status, phrase_of(status), headers, body)


def segment(name: str) -> str:
    """As one segment of a path."""
    return quote(name, safe="")


def get(path: str) -> Request:
    return Request("GET", path, (), b"")


def read_json(response: Response) -> Any:
    """None if it is none, or no success."""
    if not 200 <= response.status < 300:
        return None
    return parsed(response.body)


def parsed(body: bytes) -> Any:
    if len(body) > MOST_JSON:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def is_compressed(response: Response) -> bool:
    """Such an answer is one, though its first bytes do not show it."""
    return response.header("content-encoding") is not None


def is_text(name: str) -> bool:
    """Whether it can be sent and written down: JSON also knows halves of letters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_coding(response: Response) -> bytes:
    """Its body as it was before it was compressed. Raise ValueError if that cannot be told, or is too large."""
    coding = (response.header("content-encoding") or "identity").lower()
    if coding == "identity":
        return response.body
    if coding not in ("gzip", "deflate"):
        raise ValueError(f"its content coding is {coding}")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the header of either
    try:
        body = inflate.decompress(response.body, MOST_JSON)
    except zlib.error as error:
        raise ValueError(f"it is not {coding}: {error}") from None
    if not inflate.eof:
        raise ValueError("it is cut short, or too large to be compared")
    return body


def without_host(request: Request) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in request.headers if not header_flags(pair[0]) & HOST)


def with_path(request: Request, path: str) -> Request:
    """The same to another path; its query string stays."""
    query = request.query_string
    return Request(request.method, f"{path}?{query}" if query else path, request.headers, request.body, request.block)


def with_body(request: Request, body: bytes) -> Request:
    headers = tuple((name, str(len(body)) if header_flags(name) & LENGTH else value) for name, value in request.headers)
    return Request(request.method, request.target, headers, body)


def escapes(body: bytes, end: int) -> bool:
    """Whether words in its first `end` bytes may be escaped letter by letter, and so not be found as they are."""
    return body.find(b"\\", 0, end) >= 0 and body.find(b"\\u00", 0, end) >= 0  # one byte is found ten times as fast


def asks_for_stream(request: Request) -> Unprotected | None:
    """By its headers, or as most services are asked: by `"stream": true` in the body."""
    body = request.body
    streams = (request.header("accept") or "").startswith(STREAMS)
    if not streams and (body.find(b'"stream"') >= 0 or (escapes(body, len(body)) and body[:64].lstrip()[:1] == b"{")):
        told = parsed(body)
        if told is None and len(body) > MOST_JSON:
            return Unprotected("its body is too large to be read: it may ask for a stream")
        streams = isinstance(told, dict) and bool(told.get("stream"))
    return Unprotected("the client asks for a stream") if streams else None
