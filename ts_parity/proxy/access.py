"""The access log: one JSON line for each request, for people, for their tools, and for `ts-parity plan --service-log`.

Lines are gathered and written about once a second, whole, by appending; so several processes may share a file, and one
that was moved away by a log rotation is made anew. Knows lines and files; is told what happened by server and driver.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import time
from typing import Any, final

log = logging.getLogger(__name__)

PASSED = "passed"
ERROR = "error"
REFUSED = "refused"
LEFT = "left"
# What a client that has left would have got, by the custom of nginx's logs.
STATUS_LEFT = 499
_MOST_BYTES = 1 << 22
"""So much is gathered at most before it is written, whatever the time."""


@final
class Facts:
    """How a request was answered, beyond what the client sees. Times in seconds; None where there is none."""

    __slots__ = ("attempts", "cause", "endpoint", "group", "outcome", "pool", "service_s", "waited_s")

    def __init__(
        self,
        outcome: str,
        endpoint: str | None = None,
        pool: str | None = None,
        group: int | None = None,
        attempts: int | None = None,
        waited_s: float | None = None,
        service_s: float | None = None,
        cause: str | None = None,
    ) -> None:
        self.outcome = outcome
        """`deployed`, `reconstructed`, `hedged`, `default`; `passed` through; `error` of the proxy's own making;
        `refused` by the server; the client `left`.
        """
        self.endpoint = endpoint
        """Whose answer it was; for what was passed through, the instance; without an answer, who was asked for it."""
        self.pool = pool
        self.group = group
        self.attempts = attempts
        """Tasks that the query itself has cost."""
        self.waited_s = waited_s
        """From its arrival to when the task that answered it was sent."""
        self.service_s = service_s
        """That task's own time, if it was the deployed model's."""
        self.cause = cause
        """What went wrong first."""


class AccessLog:
    """Create with a file's name ("-": standard error), `add` lines, `flush` now and then, `close`."""

    def __init__(self, path: str) -> None:
        """Raise OSError if the file cannot be written."""
        self._path = path
        self._lines: list[str] = []
        self._size = 0
        self._torn = False
        """What is there ends within a line."""
        self._lost = 0
        """Lines, since writing last worked."""
        self._descriptor = self._open()

    def add(
        self,
        client: str,
        method: str,
        target: str,
        status: int,
        body_bytes: int,
        latency_s: float,
        request_id: str | None,
        answer_id: str | None,
        facts: Facts,
    ) -> None:
        asked_at = time.time() - latency_s
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(asked_at)) + f".{int(asked_at % 1 * 1000):03d}Z",
            "client": client,
            "method": method,
            "target": target,
            "status": status,
            "bytes": body_bytes,
            "request_id": request_id,
            "answer_id": answer_id,
            "latency_s": round(latency_s, 6),
            "outcome": facts.outcome,
            "pool": facts.pool,
            "group": facts.group,
            "endpoint": facts.endpoint,
            "attempts": facts.attempts,
            "waited_s": None if facts.waited_s is None else round(facts.waited_s, 6),
            "service_s": None if facts.service_s is None else round(facts.service_s, 6),
            "cause": facts.cause,
        }
        text = json.dumps(line) + "\n"
        self._lines.append(text)
        self._size += len(text)
        if self._size > _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        data = "".join(self._lines).encode()
        self._lines, self._size = [], 0
        rest = data
        try:
            self._reopen_if_moved()
            if self._torn:
                rest = data = b"\n" + data
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            if not self._lost:
                log.warning("access log %s: %s; lines are lost until it can be written", self._path, error.strerror)
            self._lost += rest.lstrip().count(b"\n")
            self._tidy(data[: len(data) - len(rest)])
            return
        self._torn = False
        if self._lost:
            log.warning("access log %s: it can be written again; %d lines were lost", self._path, self._lost)
            self._lost = 0

    def _tidy(self, written: bytes) -> None:
        """A full disk takes half a line: take it back, or if that cannot be, begin a line of its own next time."""
        if not written:
            return
        piece = len(written) - (written.rfind(b"\n") + 1)
        self._torn = piece > 0
        if piece:
            with contextlib.suppress(OSError):  # a pipe, say
                end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
                if os.fstat(self._descriptor).st_size == end:  # else another process has written behind it
                    os.ftruncate(self._descriptor, end - piece)
                    self._torn = False

    def reopen(self) -> None:
        """Whatever is there by that name now."""
        self.flush()
        if self._path == "-":
            return
        try:
            new = self._open()
        except OSError as error:
            log.warning("access log %s: %s; the old file stays in use", self._path, error.strerror or error)
            return
        os.close(self._descriptor)
        self._descriptor = new

    def close(self) -> None:
        self.flush()
        if self._path != "-":
            os.close(self._descriptor)

    def _open(self) -> int:
        if self._path == "-":
            return sys.stderr.fileno()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        self._torn = _ends_within_a_line(self._path)
        return descriptor

    def _reopen_if_moved(self) -> None:
        if self._path == "-":
            return
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        ours = os.fstat(self._descriptor)
        if there is None or (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
            new = self._open()
            os.close(self._descriptor)
            self._descriptor = new


def _ends_within_a_line(path: str) -> bool:
    """As after a crash, or of what another program wrote there."""
    with contextlib.suppress(OSError):
        there = os.stat(path)
        if stat.S_ISREG(there.st_mode) and there.st_size:
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
    return False
