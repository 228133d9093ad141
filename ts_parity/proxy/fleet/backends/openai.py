"""OpenAI-style servers (vLLM's pooling models, OpenVINO's /v3, LitServe's specs): the model stands in the body.

Embeddings, classification and ranking are predictions. Generation is not: it is passed through, streamed or whole. A
late query's body goes to the student with one string replaced in place; the rest keeps its bytes. An index that
was built with one model's embeddings cannot be asked with another's, so a student for these is used only where it is
`exact`, or declared to be in the same space by its `tolerance`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, ClassVar, Final

from ts_parity.config import InstanceSettings
from ts_parity.errors import TsParityError
from ts_parity.proxy.fleet.backends.backend import Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.plain import (
    PlainBackend,
    asks_for_stream,
    get,
    is_compressed,
    is_text,
    read_json,
    with_body,
    without_coding,
)
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

_ROUTES: Final = re.compile(r"(?:/v[123])?/(embeddings|classify|score|rerank|pooling)")
_STRING: Final = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.)*"')
MOST_READ: Final = 256 << 10
"""Longer bodies are passed through: what they name is looked for in Python."""
_MARKS: Final = re.compile(rb'["{}\[\],]')
_DEEP_MARKS: Final = re.compile(rb'["{}\[\]]')
_BLANK: Final = re.compile(rb"[ \t\r\n]*")
_OF_THE_RUN: Final = frozenset({"id", "object", "created", "model", "usage"})


@mypyc_attr(allow_interpreted_subclasses=True)
class OpenAiBackend(PlainBackend):
    kind: ClassVar[str] = "openai"

    def __init__(self, models: Any = (), prefix: str = "") -> None:
        """Students in no declared space are not used."""
        super().__init__(models, prefix)
        for name, model in self.models.items():
            if model.student and not model.exact and model.tolerance is None:
                self.models[name] = replace(model, student="")

    def match(self, request: Request) -> Ask | None:
        """No body that can be read, no protection."""
        if request.method != "POST" or _ROUTES.fullmatch(request.path) is None or len(request.body) > MOST_READ:
            return None
        where = string_in(request.body, b"model")
        name = "" if where is None else json.loads(request.body[where[0] : where[1]])
        return Ask(name, None, request.path) if name and is_text(name) else None

    def speaks(self, request: Request) -> bool:
        return request.path.startswith(("/v1/", "/v3/"))

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        return asks_for_stream(request)

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        request = payload.request
        where = string_in(request.body, b"model")
        assert where is not None, "the query was recognised by it"
        body = request.body[: where[0]] + json.dumps(target.model).encode() + request.body[where[1] :]
        return with_body(request, body)

    def is_answer(self, response: Response) -> bool:
        return is_compressed(response) or response.body[:64].lstrip()[:1] in (b"{", b"[")

    def lacks_model(self, response: Response) -> bool:
        """Or a route that the service has for no model: whoever asks for that must have no instance ejected."""
        return b"model" in response.body

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        return _said

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        for path in ("/v1/models", "/v3/models"):
            told = read_json((yield get(path)))
            listed = told.get("data") if isinstance(told, dict) else None
            if isinstance(listed, list):
                hosted = [each["id"] for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]
                return Seen(True, tuple(Hosted(name) for name in hosted))
        yield None  # it lists none (LitServe's specs), so it has those that are named
        return Seen(True, tuple(Hosted(name) for name in names))

    def error_fields(self, error: TsParityError) -> Any:
        return {"error": {"message": str(error), "type": error.kind, "param": None, "code": error.status}}


def string_in(body: bytes, key: bytes) -> tuple[int, int] | None:
    """From where to where the string of a top-level key stands in a JSON object, quotes included; None if there is no
    such one, or two, or the whole is no JSON.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get(key.decode()), str):
        return None
    found, depth, at, name = [], 0, 0, b""
    while at < len(body):
        mark = (_MARKS if depth <= 1 else _DEEP_MARKS).search(body, at)
        if mark is None:
            break
        at, letter = mark.start(), mark[0]
        if letter == b'"':
            string = _STRING.match(body, at)
            if string is None:
                return None
            blank = _BLANK.match(body, string.end())
            assert blank is not None
            if depth == 1 and body[blank.end() : blank.end() + 1] == b":":
                name = string[0]
            elif depth == 1 and name and json.loads(name) == key.decode():
                found.append((string.start(), string.end()))
            at = string.end()
            continue
        depth += (letter in b"{[") - (letter in b"}]")
        if letter == b",":
            name = b"" if depth == 1 else name
        at += 1
    return found[0] if len(found) == 1 else None


def _said(response: Response) -> Any:
    """Without ids, dates and counts of tokens; rows in the order of their index."""
    told = json.loads(without_coding(response))
    if not isinstance(told, dict):
        return told
    said = {key: value for key, value in told.items() if key not in _OF_THE_RUN}
    for key, rows in said.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) and "index" in row for row in rows):
            try:
                said[key] = sorted(rows, key=lambda row: row["index"])
            except TypeError:
                raise ValueError("its rows have no order") from None
    return said


BACKEND = OpenAiBackend
