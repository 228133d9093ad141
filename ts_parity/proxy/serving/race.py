"""One race: a query that was late, everything that was sent for it, and what came of each.

Values only. Knows times. Decides and counts nothing: `races` does.
"""

from __future__ import annotations

import time
from typing import Any, final

from ts_parity.engine import Query, Task

Json = dict[str, Any]


@final
class RaceTask:
    """One of a race's tasks. Instants are the event loop's; `ended_at` is None while it is out."""

    __slots__ = (
        "cause", "code", "ended_at", "endpoint", "how", "id", "kind", "number", "reason", "sent_at", "span_id",
        "status",
    )  # fmt: skip

    def __init__(
        self, kind: str, endpoint: str, sent_at: float, ended_at: float | None, how: str, id: int = 0, number: int = 1
    ) -> None:
        """`kind`: own, copy, retry, protection, finish or trial. `how`: out, won, late, failed, or what its group
        waited for; where it is traced: out, arrived, failed, cancelled, or unknown, as the proxy ended before it.
        `number`: of its query's own tasks before it, copies aside. What never was the engine's is `forwarded`, or own
        and retry, too.
        """
        self.kind = kind
        self.endpoint = endpoint
        self.sent_at = sent_at
        self.ended_at = ended_at
        self.how = how
        self.id = id
        self.number = number
        self.reason = ""
        self.cause = ""
        """If it failed: of which kind."""
        self.status = 0
        """Of the response, where that is known."""
        self.code = ""
        """Of a finish: what its output was decoded with."""
        self.span_id = ""
        """Of one that was forwarded: what the other proxy was told, 16 hexadecimal digits."""

    def described(self, arrived_at: float) -> Json:
        """Times are seconds since the query arrived."""
        ended_s = None if self.ended_at is None else _since(self.ended_at, arrived_at)
        told = {"kind": self.kind, "endpoint": self.endpoint, "sent_s": _since(self.sent_at, arrived_at)}
        return {**told, "ended_s": ended_s, "how": self.how, "reason": self.reason}


@final
class Race:
    """Of one late query, from its answer on."""

    __slots__ = (
        "answered_at", "arrived_at", "at", "confidence", "deadline_s", "finding", "given", "given_s", "pool", "query",
        "reason", "request_id", "source", "tasks", "trace_id", "unprotected", "unprotected_s",
    )  # fmt: skip

    def __init__(self, query: Query, request_id: str, source: str, given: Task | None, now: float) -> None:
        self.query = query.id
        self.pool = query.pool
        self.source = source
        self.given = 0 if given is None else given.id
        """The task whose answer the client got; 0: none."""
        self.arrived_at = query.arrived_at
        self.given_s = now - query.arrived_at
        self.deadline_s = self.given_s if query.deadline_at is None else query.deadline_at - query.arrived_at
        self.answered_at = time.time()
        self.request_id = request_id
        self.trace_id = ""
        """If it is traced."""
        self.confidence: float | None = None
        self.unprotected = "out"
        """Of its own answer: `out`; `came`; `failed`; `never` by its deadline; `unknown`, as there was none to come."""
        self.unprotected_s: float | None = None
        self.finding = ""
        """Of the comparison of what was given with what came, and in `reason` why."""
        self.reason = ""
        self.tasks: list[RaceTask] = []

    def described(self, now: float) -> Json:
        unprotected_s = None if self.unprotected_s is None else round(self.unprotected_s, 6)
        return {
            "query": self.query,
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "pool": self.pool,
            "answered_at": round(self.answered_at, 3),
            "source": self.source,
            "given_s": round(self.given_s, 6),
            "age_s": round(now - self.arrived_at, 6),
            "deadline_s": round(self.deadline_s, 6),
            "unprotected": self.unprotected,
            "unprotected_s": unprotected_s,
            "confidence": self.confidence,
            "finding": self.finding,
            "reason": self.reason,
            "tasks": [task.described(self.arrived_at) for task in self.tasks],
        }


def _since(at: float, arrived_at: float) -> float:
    return round(max(0.0, at - arrived_at), 6)
