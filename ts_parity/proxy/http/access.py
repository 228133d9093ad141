"""The access log: one JSON line for each request, for people, for their tools, and for `ts-parity plan --service-log`.

When something else answers a query (a protection, a second copy, an error made by the proxy), the query's own task is
still running. When that task ends it gets a line of its own, which tells how slow the deployed model was. Without
these lines the log would lack exactly the slow answers.

Lines are collected and appended whole about once a second, so several processes can share a file. If a log rotation has
moved the file away, a new one is created. Knows lines and files. Knows nothing of requests or queries: server and
driver hand it finished entries.
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

VERSION = 3
"""Of the format: one more whenever a field is added, renamed or means something else. Version 1, which lacked the field
of this name, had no lines for tasks that ended after their query. Version 3 has `trace_id`."""
FIELDS = (
    "at", "version", "client", "method", "target", "status", "bytes", "request_id", "answer_id", "latency_s", "outcome",
    "pool", "group", "endpoint", "attempts", "waited_s", "service_s", "cause", "places", "confidence", "query",
    "others", "trace_id",
)  # fmt: skip
"""Of a request's line, in this order; then `forwarded_by`, on the lines that have it only."""
TASK_FIELDS = (
    "at", "version", "task", "query", "pool", "endpoint", "waited_s", "service_s", "at_least_s", "cause",
)  # fmt: skip
"""Of the line of a task that ended after its query."""
TASK = "task"
"""The field that only the line of such a task has."""
PASSED = "passed"
ERROR = "error"
REFUSED = "refused"
LEFT = "left"
# The status logged for a client that has left, as nginx logs it.
STATUS_LEFT = 499
_MOST_BYTES = 1 << 22
"""Collected lines are written once they exceed this, whatever the time."""


class OtherTask(NamedTuple):
    """A task that did not answer its query: it failed or, with `failed` False, was still outstanding."""

    endpoint: str
    waited_s: float
    """From the query's arrival to when it was sent."""
    at_least_s: float
    """How long it took to fail, or how long it had been outstanding."""
    failed: bool

    def described(self) -> dict[str, Any]:
        times = {"waited_s": _rounded(self.waited_s), "at_least_s": _rounded(self.at_least_s)}
        return {"endpoint": self.endpoint, **times, "failed": self.failed}


@final
class AccessEntry:
    """How a request was answered, beyond what the client sees. Times are in seconds; None where there is none."""

    __slots__ = (
        "attempts", "cause", "confidence", "endpoint", "forwarded_by", "group", "others", "outcome", "places", "pool",
        "query", "service_s", "trace_id", "waited_s",
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
        """Where the answer came from (`deployed`, `reconstructed`, `hedged`, `default`), or: `passed` through;
        `forwarded` to another proxy; an `error` made by the proxy; `refused` by the server; the client `left`.
        """
        self.endpoint = endpoint
        """Who answered; for a request passed through, the instance; for one that was forwarded, the proxy; without an
        answer, the endpoints asked.
        """
        self.pool = pool
        self.group = group
        self.attempts = attempts
        """How many tasks of its own the query took."""
        self.waited_s = waited_s
        """From the query's arrival to when the task that answered it was sent."""
        self.service_s = service_s
        """How long that task took, if the deployed model ran it."""
        self.cause = cause
        """The first thing that went wrong."""
        self.places: int | None = None
        """How many tasks this process may have outstanding at the endpoint."""
        self.confidence: float | None = None
        """In a rebuilt answer, where it is known."""
        self.query: int | None = None
        self.others: Sequence[OtherTask] = ()
        self.forwarded_by: str | None = None
        """The proxy that has forwarded it here, as a member."""
        self.trace_id: str | None = None
        """Of the trace that its spans are in, if it has any; otherwise its client's, if that names one, is logged."""


UNLOGGED = AccessEntry(PASSED)
"""Of a request that gets no line: no client's."""


class AccessLog:
    """Create with a file's name ("-": standard error), `add` lines, `flush` regularly, and `close`."""

    def __init__(self, path: str) -> None:
        """Raise OSError if the file cannot be written."""
        self._path = path
        # Query numbers restart with each process, and process ids with each container; this id tells them apart.
        self._id = secrets.token_hex(4)
        self._lines: list[str] = []
        self._size = 0
        self._torn = False
        """The file ends in the middle of a line."""
        self._lost = 0
        """Lines lost since the last successful write."""
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
        trace_id: str | None,
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
            "trace_id": entry.trace_id or trace_id,
        }
        if entry.forwarded_by is not None:
            line["forwarded_by"] = entry.forwarded_by
        self._append(line)

    def add_task(self, query: int, pool: str, other: OtherTask, cause: str | None) -> None:
        """A task of the deployed model has ended after its query was answered or abandoned."""
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
        """A full disk may take half a line. Cut that off; if it cannot be cut, start the next write on a new line."""
        if not written:
            return
        piece = len(written) - (written.rfind(b"\n") + 1)
        self._torn = piece > 0
        if piece:
            with contextlib.suppress(OSError):  # a pipe, say
                end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
                if os.fstat(self._descriptor).st_size == end:  # otherwise another process has written after it
                    os.ftruncate(self._descriptor, end - piece)
                    self._torn = False

    def reopen(self) -> None:
        """Open the file that has this name now."""
        self.flush()
        if self._path == "-":
            return
        try:
            new = self._open()
        except OSError as error:
            log.warning("access log %s: %s; still writing to the old file", self._path, error.strerror or error)
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
    """As after a crash, or when another program has written there."""
    with contextlib.suppress(OSError):
        there = os.stat(path)
        if stat.S_ISREG(there.st_mode) and there.st_size:
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
    return False
