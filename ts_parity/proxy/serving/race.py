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
    """One of a race's tasks. Times are seconds since the query arrived; `ended_s` is None while it is out."""

    __slots__ = ("ended_s", "endpoint", "how", "kind", "reason", "sent_s")

    def __init__(self, kind: str, endpoint: str, sent_s: float, ended_s: float | None, how: str) -> None:
        """`kind`: own, copy, protection or finish. `how`: out, won, late, failed, or what its group waited for."""
        self.kind = kind
        self.endpoint = endpoint
        self.sent_s = sent_s
        self.ended_s = ended_s
        self.how = how
        self.reason = ""

    def described(self) -> Json:
        ended_s = None if self.ended_s is None else round(self.ended_s, 6)
        told = {"kind": self.kind, "endpoint": self.endpoint, "sent_s": round(self.sent_s, 6), "ended_s": ended_s}
        return {**told, "how": self.how, "reason": self.reason}


@final
class Race:
    """Of one late query, from its answer on."""

    __slots__ = (
        "answered_at", "arrived_at", "at", "confidence", "deadline_s", "finding", "given", "given_s", "pool", "query",
        "reason", "request_id", "source", "tasks", "unprotected", "unprotected_s",
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
            "tasks": [task.described() for task in self.tasks],
        }
