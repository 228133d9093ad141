"""Pairs of what clients asked and what the deployed model answered: in a file, and on their way to it.

A file of pairs is JSON lines, so that it can be read, filtered and joined with ordinary tools. A line with the format's
version begins it (and may come again where files were joined); each other line is a pair:

    {"ts_parity_pairs": 1, "started": "2026-11-28T03:00:00Z", "share": 0.01}
    {"model": "resnet/1.0", "path": "/v2/models/resnet/infer", "type": "application/json", "body": "{...}",
     "answer_type": "application/json", "answer": "{...}"}

Bodies that are no UTF-8 stand under `body_base64` and `answer_base64`. Lines are written whole, so after a crash at
most the last one is cut off; readers leave that one out. A proxy sends the same pairs as frames, in which bodies stay
as they are: a line of JSON with the lengths, then the two bodies.

Knows bytes and files. Knows nothing of models, of HTTP or of what is learned.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ts_parity.errors import ConfigError, Exhausted

VERSION = 1
MODE = 0o600
"""What clients send is nobody else's business."""
SYNCED_EVERY_S = 1.0
_VERSION_KEY = "ts_parity_pairs"
_LONGEST_HEAD = 1 << 20


@dataclass(frozen=True)
class Pair:
    """One request and the deployed model's answer. `path` is without its query string, `model` is NAME/VERSION."""

    model: str
    path: str
    content_type: str
    body: bytes
    answer_type: str
    answer: bytes


# ---- in a file -------------------------------------------------------------------------------------------------------


class PairWriter:
    """A file of pairs that grows line by line. What was written survives the end of this process, however it ends, and
    all but the last second of it survives the machine's.
    """

    def __init__(self, path: Path, about: dict[str, Any], force: bool = False) -> None:
        """`about` goes into the first line. Raise ConfigError if the file is there (unless `force`: then an empty one
        takes its place at once), or cannot be made.
        """
        self.path = path
        self.bytes = 0
        self._synced_at = time.monotonic()
        made = path.with_name(f".{os.getpid()}.unfinished.{path.name}") if force else path
        try:
            self._file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, MODE)
        except FileExistsError:
            raise ConfigError(f"{path} is there already; give another name, or --force to replace it") from None
        started = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        self._line({_VERSION_KEY: VERSION, "started": started, **about})
        if force:
            os.replace(made, path)

    def add(self, pair: Pair) -> None:
        """Raise Exhausted if the disk is full. What was written before stays."""
        told = {"model": pair.model, "path": pair.path, "type": pair.content_type}
        self._line(
            {**told, **_text("body", pair.body), "answer_type": pair.answer_type, **_text("answer", pair.answer)}
        )
        now = time.monotonic()
        if now - self._synced_at >= SYNCED_EVERY_S:
            self._sync()
            self._synced_at = now

    def close(self) -> None:
        self._sync()
        os.close(self._file)

    def _line(self, value: dict[str, Any]) -> None:
        line = memoryview(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        size = len(line)
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise Exhausted(f"cannot write {self.path}: {error.strerror}; what was recorded before is there") from None
        self.bytes += size

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # a pipe, say, or a file system that cannot
            os.fsync(self._file)


def read_pairs(path: Path) -> Iterator[Pair]:
    """All pairs of a file; a last line that was cut off is left out. Raise ConfigError for what is no file of pairs."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number > 1 and not line.endswith(b"\n"):
                return
            if (pair := _read(line, f"{path}, line {number}", first=number == 1)) is not None:
                yield pair


def _read(line: bytes, where: str, first: bool) -> Pair | None:
    try:
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError("it is no JSON object")
        if _VERSION_KEY in told:
            if told[_VERSION_KEY] != VERSION:
                raise ConfigError(f"{where}: pairs of version {told[_VERSION_KEY]!r}; this ts_parity reads {VERSION}")
            return None
        if first:
            raise ValueError(f"its first line does not say {_VERSION_KEY}")
        words = [told[name] for name in ("model", "path", "type", "answer_type")]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("model, path, type and answer_type are texts")
        model, asked, kind, answer_kind = words
        return Pair(model, asked, kind, _bytes("body", told), answer_kind, _bytes("answer", told))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is no pair of `ts-parity record`: {error}") from None


def _text(name: str, body: bytes) -> dict[str, str]:
    try:
        return {name: body.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(body).decode()}


def _bytes(name: str, told: dict[str, Any]) -> bytes:
    if name in told:
        body: bytes = told[name].encode()
        return body
    return base64.b64decode(told[f"{name}_base64"], validate=True)


# ---- on its way ------------------------------------------------------------------------------------------------------


class Readable(Protocol):
    def readline(self, limit: int = ..., /) -> bytes: ...
    def read(self, size: int = ..., /) -> bytes: ...


def framed(pair: Pair) -> bytes:
    head = {
        "model": pair.model, "path": pair.path, "type": pair.content_type, "answer_type": pair.answer_type,
        "bytes": [len(pair.body), len(pair.answer)],
    }  # fmt: skip
    return b"%b\n%b%b" % (json.dumps(head).encode(), pair.body, pair.answer)


def note(**told: Any) -> bytes:
    """What is said between the frames: how much was seen, and why it ends."""
    return json.dumps(told).encode() + b"\n"


def frames(stream: Readable) -> Iterator[Pair | dict[str, Any]]:
    """Pairs, and the notes between them, until the stream ends. Raise ValueError for anything else, and if it ends
    within a frame.
    """
    while head := stream.readline(_LONGEST_HEAD):
        told = json.loads(head)
        if not isinstance(told, dict):
            raise ValueError("no frame")
        if "bytes" not in told:
            yield told
            continue
        body, answer = (_exactly(stream, int(size)) for size in told["bytes"])
        yield Pair(told["model"], told["path"], told["type"], body, told["answer_type"], answer)


def _exactly(stream: Readable, size: int) -> bytes:
    body = stream.read(size)
    if len(body) != size:
        raise ValueError("it ends within a pair")
    return body
