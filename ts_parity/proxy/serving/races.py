"""Late queries: the race for each, and what its client would have waited without second copies and protections.

No task is ever cancelled, so when something else has answered a query, its own task still ends, later, for nobody. The
time until then is what the client would have waited. Two limits belong to every figure made of these times:

  - Without protections other queries would have stood in other queues, so the same query might have waited elsewhere.
  - What has not come by its query's deadline counts as the deadline.

No more is claimed than is known. A task that fails after its query was answered counts as if it had answered at that
moment, if it would have been tried again, and else as the deadline. A query with no task of its own out when something
else answered it (it had failed, or had given its place to its backup) counts as if nothing had been saved.

Knows queries, tasks and times. Knows nothing of sockets or of how anything is shown.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, cast, final

from ts_parity.engine import Arrived, Failed, Finding, Kind, Outcome, Query, Rejected, Source, Task
from ts_parity.proxy.fleet.payloads import QueryPayload
from ts_parity.proxy.http.messages import REQUEST_ID
from ts_parity.proxy.serving.race import Json, Race, RaceTask

KEPT: Final = 20
"""Races that are kept to be shown."""
SHOWN_EVERY_S: Final = 0.1
"""While many queries are late, ten races a second are as good as all, and drawing one costs more than counting it."""


class RaceCounts(Protocol):
    """Where a race's figures go; see `metrics`."""

    def unprotected(self, pool: str, at: float, seconds: float, request_id: str = "", trace_id: str = "") -> None: ...
    def agreed(self, pool: str, source: str, finding: str) -> None: ...
    def exemplar(self, pool: str, source: str, seconds: float, request_id: str, trace_id: str = "") -> None: ...


@final
class Races:
    """Of one proxy: those whose own answers are out, and the last ones to be shown."""

    def __init__(self, counts: RaceCounts, tasks_of: Callable[[Query], list[Task]]) -> None:
        self._counts = counts
        self._tasks_of = tasks_of
        self.out: dict[int, tuple[Race, RaceTask | None]] = {}
        """Task id -> the race that it is in, though its query is done, and what is shown of it."""
        self._undecided: list[tuple[float, int, Race]] = []
        """A heap by deadline: what a query would have waited is not known before its own task ends, or by then."""
        self._last: deque[Race] = deque(maxlen=KEPT)
        self._shown_at = -SHOWN_EVERY_S

    # ---- what happens ----------------------------------------------------------------------------------------------

    def answered(
        self, query: Query, source: Source, task: Task | None, confidence: float | None, now: float, trace_id: str = ""
    ) -> None:
        """A query has been answered by something else than its own task, or while copies of it were out."""
        if source is Source.DEPLOYED and now < query.release_at:
            return  # a copy of it probes an endpoint; the query itself is in time
        race = self._begin(query, source._value_, task, now)
        race.confidence, race.trace_id = confidence, trace_id
        out = self._tasks_of(query)
        self._show(race, query, task, out, now)
        if race.request_id or trace_id:
            self._counts.exemplar(race.pool, race.source, race.given_s, race.request_id, trace_id)
        if source is Source.DEPLOYED:
            race.unprotected, race.unprotected_s = "came", race.given_s
        elif any(not each.hedge for each in out):
            assert query.deadline_at is not None
            heapq.heappush(self._undecided, (query.deadline_at, query.id, race))
        else:
            self._decide(race, "unknown", race.given_s)

    def failed(self, query: Query, reason: str, now: float, trace_id: str = "") -> None:
        """A query got an error. It would have got one all the same, so this is shown and not counted."""
        race = self._begin(query, "none", query.last_failure, now)
        race.unprotected, race.reason, race.trace_id = "failed", reason, trace_id
        self._show(race, query, None, self._tasks_of(query), now)

    def task_ended(self, task: Task, outcome: Outcome, now: float) -> None:
        """One of `out` has ended, too late for its query."""
        race, shown = self.out.pop(task.id)
        took_s = now - race.arrived_at
        if shown is not None:
            shown.ended_at = now
            shown.how = "late" if isinstance(outcome, Arrived) else "failed"
            shown.reason = outcome.reason if isinstance(outcome, Failed) else ""
        if task.hedge or race.unprotected != "out":
            return
        again = isinstance(outcome, Rejected) or (isinstance(outcome, Failed) and outcome.retry)
        known_s = min(took_s, race.deadline_s)
        if isinstance(outcome, Arrived):
            self._decide(race, "came", known_s)
        else:
            self._decide(race, "failed", known_s if again else race.deadline_s)

    def compared(self, own: Task, other: Task, finding: Finding, why: str) -> None:
        """Two answers were compared; those of which one was given for a late query, and the other came, count here."""
        race = None if own.query is None else cast(QueryPayload, own.query.payload).race
        if not isinstance(race, Race) or race.given != other.id or own.hedge:
            return
        race.finding, race.reason = finding.value, "" if finding is Finding.AGREED else why
        self._counts.agreed(race.pool, race.source, race.finding)

    def settle(self, now: float) -> None:
        """What has not come by its deadline counts as the deadline."""
        while self._undecided and (self._undecided[0][0] <= now or self._undecided[0][2].unprotected != "out"):
            race = heapq.heappop(self._undecided)[2]
            if race.unprotected == "out":
                self._decide(race, "never", race.deadline_s)

    # ---- what is seen ----------------------------------------------------------------------------------------------

    def undecided(self) -> Iterable[Race]:
        """Those whose own answers may still come in time."""
        return (race for _, _, race in self._undecided if race.unprotected == "out")

    def last(self, now: float) -> list[Json]:
        """The newest first."""
        return [race.described(now) for race in reversed(self._last)]

    # ---- how it is done --------------------------------------------------------------------------------------------

    @staticmethod
    def _begin(query: Query, source: str, given: Task | None, now: float) -> Race:
        payload = cast(QueryPayload, query.payload)
        payload.race = race = Race(query, payload.request.header(REQUEST_ID) or "", source, given, now)
        return race

    def _decide(self, race: Race, how: str, seconds: float) -> None:
        race.unprotected, race.unprotected_s = how, max(seconds, race.given_s)
        self._counts.unprotected(race.pool, race.answered_at, race.unprotected_s, race.request_id, race.trace_id)

    def _show(self, race: Race, query: Query, given: Task | None, out: list[Task], now: float) -> None:
        shows = now >= self._shown_at + SHOWN_EVERY_S
        if shows:
            self._shown_at = now
            self._last.append(race)
            if given is not None:
                race.tasks += _winner(given, query, now)
        for task in out:
            if task is given:  # a stream that has begun
                continue
            shown = None
            if shows:
                shown = RaceTask("copy" if task.hedge else "own", task.endpoint.name, task.sent_at, None, "out")
                race.tasks.append(shown)
            self.out[task.id] = (race, shown)
        race.tasks.sort(key=lambda each: (max(each.sent_at, race.arrived_at), each.kind != "own"))


def _winner(given: Task, query: Query, now: float) -> list[RaceTask]:
    kind = ("copy" if given.hedge else "own") if given.kind is Kind.DEPLOYED else given.kind.value
    won = RaceTask(kind, given.endpoint.name, given.sent_at, now, "won")
    group = given.group
    if given.kind is not Kind.FINISH or group is None:
        return [won]
    began_at = max(query.arrived_at, group.begun_at)
    code = f"{group.code.name} of {group.size}"
    return [RaceTask("protection", code, began_at, max(began_at, won.sent_at), "decoded"), won]
