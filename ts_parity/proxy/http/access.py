"""The access log: one JSON line for each request, for people, for their tools, and for `ts-parity plan --service-log`.

A query that something else answered (a protection, a second copy, an error of the proxy's) leaves its own task behind,
which says how slow the deployed model was: it has a second line when that ends. Without these lines exactly the slow
answers would be missing.

Lines are gathered and written about once a second, whole, by appending; so several processes may share a file, and one
that was moved away by a log rotation is made anew. Knows lines and files; is told what happened by server and driver.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, final

log = logging.getLogger(__name__)

VERSION = 2
"""Of the lines. 1, without this field, had no line for a task that ended after its query."""
TASK = "task"
"""The field that only such a line has."""
PASSED = "passed"
ERROR = "error"
REFUSED = "refused"
LEFT = "left"
# What a client that has left would have got, by the custom of nginx's logs.
STATUS_LEFT = 499
_MOST_BYTES = 1 << 22
"""So much is gathered at most before it is written, whatever the time."""


class OtherTask(NamedTuple):
    """A task of a query that has not answered it: it failed, or (`failed` False) was still out."""

    endpoint: str
    waited_s: float
    """From the query's arrival to when it was sent."""
    at_least_s: float
    """How long it took to fail, or had been out."""
    failed: bool

    def described(self) -> dict[str, Any]:
        times = {"waited_s": _rounded(self.waited_s), "at_least_s": _rounded(self.at_least_s)}
        return {"endpoint": self.endpoint, **times, "failed": self.failed}


@final
class AccessEntry:
    """How a request was answered, beyond what the client sees. Times in seconds; None where there is none."""

    __slots__ = (
        "attempts", "cause", "confidence", "endpoint", "group", "others", "outcome", "places", "pool", "query",
        "service_s", "waited_s",
    )  # fmt: skip

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
        self.places: int | None = None
        """How many tasks the endpoint may have at once, as far as this process may use them."""
        self.confidence: float | None = None
        """Of a rebuilt answer, where it is known."""
        self.query: int | None = None
        self.others: Sequence[OtherTask] = ()


class AccessLog:
    """Create with a file's name ("-": standard error), `add` lines, `flush` now and then, `close`."""

    def __init__(self, path: str) -> None:
        """Raise OSError if the file cannot be written."""
        self._path = path
        # Numbers of queries begin at 0 again with each process, and process ids in each container.
        self._id = secrets.token_hex(4)
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
        entry: AccessEntry,
    ) -> None:
        line: dict[str, Any] = {
            "at": _instant(time.time() - latency_s),
            "version": VERSION,
            "client": client,
            "method": method,
            "target": target,
            "status": status,
            "bytes": body_bytes,
            "request_id": request_id,
            "answer_id": answer_id,
            "latency_s": round(latency_s, 6),
            "outcome": entry.outcome,
            "pool": entry.pool,
            "group": entry.group,
            "endpoint": entry.endpoint,
            "attempts": entry.attempts,
            "waited_s": _rounded(entry.waited_s),
            "service_s": _rounded(entry.service_s),
            "cause": entry.cause,
            "places": entry.places,
            "confidence": _rounded(entry.confidence),
            "query": None if entry.query is None else f"{self._id}-{entry.query}",
            "others": [other.described() for other in entry.others],
        }
        self._append(line)

    def add_task(self, query: int, pool: str, other: OtherTask, cause: str | None) -> None:
        """A task of the deployed model has ended whose query had been answered, or given up, before."""
        line = {
            "at": _instant(time.time() - other.at_least_s),
            "version": VERSION,
            TASK: "failed" if other.failed else "arrived",
            "query": f"{self._id}-{query}",
            "pool": pool,
            "endpoint": other.endpoint,
            "waited_s": _rounded(other.waited_s),
            "service_s": None if other.failed else _rounded(other.at_least_s),
            "at_least_s": _rounded(other.at_least_s) if other.failed else None,
            "cause": cause,
        }
        self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
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
            self._cut_partial_line(data[: len(data) - len(rest)])
            return
        self._torn = False
        if self._lost:
            log.warning("access log %s: it can be written again; %d lines were lost", self._path, self._lost)
            self._lost = 0

    def _cut_partial_line(self, written: bytes) -> None:
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


def _instant(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1_000_000):06d}Z"


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 6)


def _ends_within_a_line(path: str) -> bool:
    """As after a crash, or of what another program wrote there."""
    with contextlib.suppress(OSError):
        there = os.stat(path)
        if stat.S_ISREG(there.st_mode) and there.st_size:
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
    return False
