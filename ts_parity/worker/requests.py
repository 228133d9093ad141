"""Makes a request as the user's code sees it under TorchServe from an original request (headers and body).

Does to a request what TorchServe's frontend and `ts.protocol.otf_message_handler` do, type for type. Knows their rules.
Knows nothing of models or operations.
"""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import json
import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ts_parity.wire import Part, without_control_headers
from ts_parity.worker.watches import copied

_FORM = "application/x-www-form-urlencoded"
_DEFAULT_FILE_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class HandlerRequest:
    """`data` is one entry of the list that handlers get; `headers` is what the context shows for it."""

    id: str
    data: Any
    headers: dict[str, Any]

    def fresh_data(self) -> Any:
        """User code may change its data in place; each run of the same request gets a copy of its own."""
        return copied(self.data)


def request_of(part: Part, request_id: str) -> HandlerRequest:
    """The request that the frontend would make from these headers and this body."""
    # A HashMap in the frontend: names keep their case, and a repeated one keeps its last value.
    headers: dict[str, Any] = dict(without_control_headers(part.headers))
    data: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    content_type = next((value for name, value in part.headers if name.lower() == "content-type"), "")
    for name, value, kind in _parameters(content_type, part.body):
        data[name] = _decoded(value, kind)
        parameters[name] = {"content-type": kind}
    return HandlerRequest(request_id, data, {**parameters, **headers})


def _parameters(content_type: str, body: bytes) -> Iterator[tuple[str, bytearray, str]]:
    """-> (name, value, content type) of each input of a request."""
    mime = content_type.partition(";")[0]
    if content_type.lower().startswith("multipart/form-data"):
        yield from _form_parts(content_type, body)
    elif mime.lower() == _FORM:
        # As text, since parse_qsl reads bytes as ASCII only. The frontend too reads UTF-8 and replaces invalid bytes.
        for name, value in urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True):
            yield name, bytearray(value.encode()), ""
    else:
        yield "body", bytearray(body), mime


def _form_parts(content_type: str, body: bytes) -> Iterator[tuple[str, bytearray, str]]:
    """Split at the boundary by hand: a mail parser would read an image line by line."""
    boundary = _headers(f"Content-Type: {content_type}".encode("latin-1", "replace")).get_boundary()
    if boundary is None:
        raise ValueError("a multipart body needs a boundary in its content type")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *sections = (b"\r\n" + body).split(delimiter)
    for section in sections:
        if section.startswith(b"--"):
            return
        head, separator, value = section.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not separator:
            raise ValueError("a part of the multipart body has no end of headers")
        yield _named_part(_headers(head), value)
    raise ValueError("the multipart body has no closing boundary")


def _named_part(headers: email.message.Message, value: bytes) -> tuple[str, bytearray, str]:
    name = headers.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise ValueError("a part of the multipart body has no name")
    if headers.get_param("filename", header="content-disposition") is None:
        return name, bytearray(value), ""  # a plain field: the frontend drops its type
    kind = str(headers.get("content-type", _DEFAULT_FILE_TYPE)).partition(";")[0].strip()
    return name, bytearray(value), kind


def _headers(block: bytes) -> email.message.Message:
    return email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(block + b"\r\n\r\n")


def _decoded(value: bytearray, content_type: str) -> Any:
    if os.environ.get("TS_DECODE_INPUT_REQUEST", "true") != "true":
        return value
    try:
        if content_type == "application/json":
            return json.loads(value.decode())
        if content_type.startswith("text"):
            return value.decode()
    except ValueError:  # TorchServe passes undecodable input on unchanged
        return value
    return value
