"""Request bodies as clients send them: with a content type of their own, or as forms of one part or several.

Knows content types and forms. Knows nothing of where files come from, or of what a handler makes of a part.
"""

from __future__ import annotations

import email.message
import itertools
import json
import mimetypes
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ts_parity.errors import TrainingError

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
BOUNDARY = "ts-parity-7d3c1f9be04a42c6"
"""Always the same, so that the same files are the same bodies."""


@dataclass(frozen=True)
class RequestBody:
    """One request body, and the content type that a client would send with it. `read` gives its bytes."""

    name: str
    content_type: str | None
    read: Callable[[], bytes]


@dataclass(frozen=True)
class FormPart:
    """`file`: the name of the file that it is; None: a plain field, whose type TorchServe forgets."""

    name: str
    file: str | None
    content_type: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ContentType:
    """How bodies are sent: what --content-type says."""

    content_type: str
    kind: str
    part: str | None
    """Of a form: every file is the one part of a request, and this is its name."""
    boundary: str | None

    @property
    def is_form(self) -> bool:
        return self.kind in (MULTIPART, URLENCODED)


def parse_content_type(content_type: str) -> ContentType:
    """Raise TrainingError for what is no content type."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.count("/") != 1 or not all(kind.split("/")) or not content_type.isascii() or not content_type.isprintable():
        raise TrainingError(f"--content-type {content_type!r} is no content type, such as image/jpeg or {MULTIPART}")
    message = email.message.Message()
    message["content-type"] = content_type
    part, boundary = message.get_param("name"), message.get_param("boundary")
    return ContentType(content_type, kind, str(part) if part else None, str(boundary) if boundary else None)


def of_files(files: Sequence[RequestBody], how: ContentType) -> list[RequestBody]:
    """Files as they are sent. Of a multipart form, a file may be the whole body as a client has sent it; else the files
    of one folder are the parts of one request: `image.png` the file `image`; `text`, without a suffix, a plain field.
    """
    if how.is_form and how.part is not None:
        return [_form(file.name, [_part(file, how.part)], how) for file in files]
    if how.kind != MULTIPART:
        return [replace(file, content_type=how.content_type) for file in files]
    return [body for folder, inside in _folders(files) for body in _requests(folder, inside, how)]


def of_line(number: int, line: bytes, value: Any, how: ContentType) -> RequestBody:
    """A JSON line as it is sent: an object as the fields of a form, a string as text; else the line itself."""
    name = str(number)
    if how.is_form:
        if not isinstance(value, dict):
            raise TrainingError(
                f"line {number} is no JSON object, the names in which would be those of a form's fields"
            )
        texts = {field: each if isinstance(each, str) else json.dumps(each) for field, each in value.items()}
        return _form(name, [FormPart(field, None, "", text.encode) for field, text in texts.items()], how)
    text = value.encode() if how.kind.startswith("text/") and isinstance(value, str) else line
    return RequestBody(name, how.content_type, lambda: text)


def _folders(files: Sequence[RequestBody]) -> Iterator[tuple[str, list[RequestBody]]]:
    def folder(file: RequestBody) -> str:
        return PurePosixPath(file.name).parent.as_posix()

    for name, inside in itertools.groupby(sorted(files, key=folder), folder):
        yield name, [*inside]


def _requests(folder: str, files: Sequence[RequestBody], how: ContentType) -> Iterator[RequestBody]:
    boundaries = [_boundary_of(file.read(), how) for file in files]
    if None not in boundaries:
        for file, boundary in zip(files, boundaries, strict=True):
            yield replace(file, content_type=f"{MULTIPART}; boundary={boundary}")
        return
    if folder == ".":
        raise TrainingError(
            f"{files[boundaries.index(None)].name} is no {MULTIPART} body: put the parts of each request into a folder "
            f"of its own, or say --content-type '{MULTIPART}; name=PART' if each file is the one part of a request"
        )
    parts = [_part(file) for file in files]
    names = [part.name for part in parts]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TrainingError(f"the folder {folder} is one request, and two of its files would be its part {twice}")
    yield _form(folder, parts, how)


def _boundary_of(body: bytes, how: ContentType) -> str | None:
    """Of a file that is a whole multipart body: what its first line says, and its last."""
    first = body[: max(0, body.find(b"\r\n"))]
    if not first.startswith(b"--") or not body.rstrip().endswith(first + b"--"):
        return None
    boundary = first[2:].decode("latin-1")
    return boundary if how.boundary in (None, boundary) else None


def _part(file: RequestBody, name: str | None = None) -> FormPart:
    own = PurePosixPath(file.name).name
    if name is None and "." not in own:
        return FormPart(own, None, "", file.read)
    kind = file.content_type or mimetypes.guess_type(own)[0] or "application/octet-stream"
    return FormPart(name or own.partition(".")[0], own, kind, file.read)


def _form(request: str, parts: Sequence[FormPart], how: ContentType) -> RequestBody:
    if how.kind == URLENCODED:
        return RequestBody(
            request, URLENCODED, lambda: urllib.parse.urlencode([(p.name, p.read()) for p in parts]).encode()
        )
    return RequestBody(request, f"{MULTIPART}; boundary={BOUNDARY}", lambda: _multipart(request, parts))


def _multipart(request: str, parts: Sequence[FormPart]) -> bytes:
    written = b""
    for part in parts:
        content = part.read()
        if BOUNDARY.encode() in content:
            raise TrainingError(f"part {part.name} of {request} holds {BOUNDARY}, which separates the parts here")
        written += b"--%s\r\n%s\r\n%s\r\n" % (BOUNDARY.encode(), _head(part).encode(), content)
    return written + b"--%s--\r\n" % BOUNDARY.encode()


def _head(part: FormPart) -> str:
    """As browsers write it: quotes in names are escaped."""
    name, file = (None if each is None else each.replace('"', "%22") for each in (part.name, part.file))
    disposition = f'Content-Disposition: form-data; name="{name}"'
    return (
        f"{disposition}\r\n"
        if file is None
        else f'{disposition}; filename="{file}"\r\nContent-Type: {part.content_type}\r\n'
    )
