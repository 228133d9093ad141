"""Which queries are traced, and what is told of their races: late, rescued, failed, and those whose client asks for it.

What is passed through, or forwarded to another proxy, is no race, but where it fails the same is told of it.

Nothing is told before a query has ended, so an ordinary one costs a look at its headers. What is sent beside its first
task is rare, so it is noted when it is sent, and tasks that fail when they fail. From these notes spans are built a
moment later, one query's at a time, when answers have gone out. A task that outlives its query is told when it ends.

Knows queries, tasks and what they brought. Knows nothing of OpenTelemetry: `spans` does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, cast, final
from urllib.parse import unquote

from ts_parity.engine import Arrived, Failed, Kind, Outcome, Query, Rejected, Source, Task
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, TaskResult
from ts_parity.proxy.http.access import AccessEntry
from ts_parity.proxy.http.messages import REQUEST_ID, Request, header
from ts_parity.proxy.http.trace_context import TraceContext, context_of, may_be_sampled, trace_context
from ts_parity.proxy.http.upstream import NoResponse, Result
from ts_parity.proxy.serving.race import RaceTask
from ts_parity.wire import SPAN

log = logging.getLogger(__name__)

MUCH_LATER: Final = 2.0
"""An answer for which nothing else was sent is traced if it took this many times its release time. One in twenty takes
longer than the release time itself."""
MOST_WAITING: Final = 1000
"""Traces, and tasks that outlived theirs, whose spans are not built yet. What is beyond is dropped, and counted."""
PAUSE_S: Final = 0.005
"""Between the spans of one query and the next: they take the processor for half a millisecond, and so long nobody is
served. So at most 200 queries a second are told of, however many fail, for some 15 % of a core.
"""
LEFT: Final = "client_left"
NOBODY: Final = "none"
PASSED: Final = "passed"
"""Sources, beside those of the engine."""
_ORDINARY: Final = frozenset({Source.DEPLOYED.value, PASSED, NOBODY})
SERVER_ERROR: Final = 500


class SpanSink(Protocol):
    """Where spans go; see `spans`."""

    dropped: int

    def counts(self) -> Mapping[str, int]: ...
    def root(self, trace: Trace) -> None: ...
    def task(self, trace: Trace, task: RaceTask) -> None: ...
    async def close(self) -> None: ...


@final
class Trace:
    """One query that is traced, from its end on. Instants are the event loop's; `begun_at`: its arrival, since 1970."""

    __slots__ = (
        "arrived_at", "begun_at", "client", "context", "ended_at", "error", "given", "host", "late_by_s", "method",
        "path", "pool", "query", "request_id", "route", "source", "status", "tasks", "trace_id", "user_agent",
    )  # fmt: skip

    def __init__(
        self, request: Request, ask: Ask | None, pool: str, client: TraceContext | None, trace_id: str,
        arrived_at: float, now: float,
    ) -> None:  # fmt: skip
        self.client = client
        self.trace_id = trace_id
        self.arrived_at = arrived_at
        self.ended_at = now
        self.begun_at = time.time() - (now - arrived_at)
        self.method = request.method
        self.path = request.path
        self.route = "" if ask is None else route_of(request.path, ask)
        """Empty: who knows what such paths have in common."""
        self.host = request.header("host") or ""
        self.user_agent = request.header("user-agent") or ""
        self.request_id = request.header(REQUEST_ID) or ""
        self.pool = pool
        self.query = 0
        """Its number; 0: it never was the engine's."""
        self.source = NOBODY
        self.given = 0
        """The task whose answer the client got; 0: none."""
        self.status = 0
        """Of the answer; 0: it got none."""
        self.error = ""
        self.late_by_s = 0.0
        self.tasks: list[RaceTask] = []
        """Those that had ended."""
        self.context: object | None = None
        """The sink's: its root span. None: it is not built, or dropped."""


@final
class Relayed:
    """A query between two proxies, or passed through to an instance. Its sender says here what goes out, what comes,
    and how it ended, unless the engine takes it after all.
    """

    __slots__ = ("_clock", "_tracer", "arrived_at", "ask", "client", "pool", "request", "tasks", "trace_id")

    def __init__(
        self, tracer: Tracer, request: Request, ask: Ask | None, pool: str, parent: TraceContext | None,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._tracer = tracer
        self._clock = clock
        self.request = request
        self.ask = ask
        self.pool = pool
        self.arrived_at = clock()
        self.client = parent
        self.trace_id = new_trace_id() if parent is None else parent.trace_id
        self.tasks: list[RaceTask] = []

    def sent(self, instance: str) -> None:
        """It is passed through."""
        number = sum(task.kind != "forwarded" for task in self.tasks)
        kind, id = "retry" if number else "own", -1 - len(self.tasks)  # the engine's ids are positive
        task = RaceTask(kind, instance, self._clock(), None, "out", id, number)
        self.tasks.append(task)

    def forwarded(self, address: str) -> tuple[str, str]:
        """It goes to this peer. -> the header that says under which span it does."""
        where = address.partition("://")[2] or address
        task = RaceTask("forwarded", where, self._clock(), None, "out", -1 - len(self.tasks))
        task.span_id = f"{random.getrandbits(64) or 1:016x}"
        self.tasks.append(task)
        sampled = self.client is not None and self.client.sampled
        return SPAN, f"00-{self.trace_id}-{task.span_id}-{sampled:02x}"

    def came(self, result: Result) -> None:
        """Of what was sent last."""
        if isinstance(result, NoResponse):
            self.failed(result.reason, result.cause.value)
            return
        if result.status >= SERVER_ERROR:
            self.failed(f"{result.status} {result.phrase}".rstrip(), str(result.status))
        else:
            self.tasks[-1].ended_at, self.tasks[-1].how = self._clock(), "arrived"
        self.tasks[-1].status = result.status

    def failed(self, reason: str, cause: str) -> None:
        """What was sent last, whatever came of it."""
        task = self.tasks[-1]
        task.ended_at = task.ended_at or self._clock()
        task.how, task.reason, task.cause = "failed", reason, task.cause or cause

    def end(self, entry: AccessEntry | None, source: str, status: int, error: str = "", told: bool = False) -> None:
        """As `Tracer.ended` has it; with an answer if `error` is empty. `told`: another proxy has spans that belong
        under one of its own. `entry`: of the access log.
        """
        trace_id = self._tracer.relayed(self, source, status, error, told, self._clock())
        if trace_id and entry is not None:
            entry.trace_id = trace_id


@final
class Tracer:
    """Of one proxy. The driver tells it what it sends, what ends, and how each query ended."""

    def __init__(self, sink: SpanSink) -> None:
        self.sink = sink
        self._loop = asyncio.get_running_loop()
        self._noted: dict[int, RaceTask] = {}
        """By task id: those that are out and belong to a traced query, or may."""
        self._outlived: dict[int, list[Trace]] = {}
        """By task id: the traced queries that ended before it."""
        self._waiting: deque[tuple[Trace, RaceTask | None]] = deque()
        self._building: asyncio.TimerHandle | None = None

    def sent(self, task: Task) -> None:
        """A task beside a query's first one: a retry, a second copy, a protection, a finish."""
        if task.kind is Kind.DEPLOYED:
            self._note(task, "copy" if task.hedge else "retry")
        else:
            on_trial = task.group is not None and task.group.on_trial
            self._note(task, "trial" if on_trial else task.kind.value)

    def task_ended(self, task: Task, outcome: Outcome, now: float) -> None:
        noted = self._noted.pop(task.id, None)
        if noted is None:
            if isinstance(outcome, Arrived):
                return
            noted = self._note(task, "own")
            del self._noted[task.id]
        noted.ended_at = now
        noted.how = "arrived" if isinstance(outcome, Arrived) else "failed"
        if isinstance(outcome, Failed):
            noted.reason, noted.cause = outcome.reason, outcome.cause.value
        elif isinstance(outcome, Rejected):
            noted.reason = noted.cause = "rejected"
        value = task.value
        if isinstance(value, TaskResult) and value.response is not None:
            noted.status = value.response.status
        for trace in self._outlived.pop(task.id, ()):
            self._queue(trace, noted)

    def ended(
        self, query: Query, source: Source | None, given: Task | None, status: int, error: str, out: Sequence[Task],
        now: float,
    ) -> str:  # fmt: skip
        """A query has ended: answered, failed with `error`, or left by its client. `out`: its own tasks that are not
        done. -> the trace's id; empty if it is not traced.
        """
        payload = cast(QueryPayload, query.payload)
        relayed = cast("Relayed | None", payload.relayed)
        took_s, usual_s = now - query.arrived_at, query.release_at - query.arrived_at
        late = math.isfinite(usual_s) and took_s >= usual_s
        wanted = source is not Source.DEPLOYED or status >= SERVER_ERROR or (late and len(out) > 0)
        wanted = wanted or took_s >= MUCH_LATER * usual_s or (relayed is not None and len(relayed.tasks) > 0)
        if not wanted and relayed is None and not may_be_sampled(payload.request.headers):  # nearly all of them
            return ""
        client = trace_context(payload.request.headers) if relayed is None else relayed.client
        if not wanted and not (client is not None and client.sampled):
            return ""
        if relayed is not None:
            arrived_at, trace_id = relayed.arrived_at, relayed.trace_id
        else:
            arrived_at, trace_id = query.arrived_at, new_trace_id() if client is None else client.trace_id
        trace = Trace(payload.request, payload.ask, query.pool, client, trace_id, arrived_at, now)
        trace.query, trace.source = query.id, NOBODY if source is None else source.value
        trace.given = 0 if given is None else given.id
        trace.status, trace.error = status, error or (str(status) if status >= SERVER_ERROR else "")
        trace.late_by_s = took_s - usual_s if late else 0.0
        tasks = [*cast(tuple[RaceTask, ...], payload.tasks)]
        known = {task.id for task in tasks}
        for task in out:
            if task.id not in known:
                known.add(task.id)
                tasks.append(self._note(task, "own"))
        if source is not None and given is not None and given.id not in known:
            won = RaceTask("own", given.endpoint.name, given.sent_at, now, "arrived", given.id)
            won.status = status
            tasks.append(won)
        for noted in tasks:
            if noted.ended_at is None:
                self._outlived.setdefault(noted.id, []).append(trace)
            else:
                trace.tasks.append(noted)
        if relayed is not None:
            trace.tasks = [*relayed.tasks, *trace.tasks]
        self._queue(trace, None)
        return trace.trace_id

    def relays(self, request: Request, ask: Ask | None, pool: str, by_peer: bool = False) -> Relayed:
        """A query that has come, and does not go to the engine, or not yet. `by_peer`: another proxy has sent it, and
        may have said under which of its spans.
        """
        under = header(request.controls, SPAN) if by_peer else None
        parent = trace_context(request.headers) if under is None else context_of(under, request.headers)
        return Relayed(self, request, ask, pool, parent, self._loop.time)

    def relayed(self, relayed: Relayed, source: str, status: int, error: str, told: bool, now: float) -> str:
        """See `Relayed.end`. -> the trace's id; empty if it is not traced."""
        client = relayed.client
        wanted = told or bool(error) or status >= SERVER_ERROR or source not in _ORDINARY
        if not wanted and (client is None or not client.sampled):
            return ""
        trace = Trace(relayed.request, relayed.ask, relayed.pool, client, relayed.trace_id, relayed.arrived_at, now)
        trace.source, trace.status = source, status
        trace.error = error or (str(status) if status >= SERVER_ERROR else "")
        for task in relayed.tasks:
            if task.ended_at is None:  # its connection is closed
                task.ended_at, task.how = now, "cancelled"
            if not error and task.status == status:
                trace.given = task.id
        trace.tasks = relayed.tasks
        self._queue(trace, None)
        return trace.trace_id

    async def close(self) -> None:
        """Tell what there is to tell, and give the sink its time."""
        now = self._loop.time()
        for noted in self._noted.values():
            noted.ended_at, noted.how = now, "unknown"
            for trace in self._outlived.pop(noted.id, ()):
                self._queue(trace, noted)
        self._noted.clear()
        if self._building is not None:
            self._building.cancel()
        self._build(len(self._waiting))
        await self.sink.close()

    # ---- how it is done --------------------------------------------------------------------------------------------

    def _note(self, task: Task, kind: str) -> RaceTask:
        noted = self._noted[task.id] = RaceTask(kind, task.endpoint.name, task.sent_at, None, "out", task.id)
        if task.query is not None:
            noted.number = task.query.attempts - (0 if task.hedge else 1)
        group = task.group
        if task.query is not None:
            queries = [task.query]
        else:
            assert group is not None
            assert task.row is not None
            slots = group.sent.get(task.row, ())
            queries = [query for slot, query in enumerate(group.members) if query is not None and slot in slots]
        for query in queries:
            if query.open:
                payload = cast(QueryPayload, query.payload)
                payload.tasks = (*payload.tasks, noted)
        if task.kind is Kind.FINISH and group is not None:
            noted.code = f"{group.code.name} of {group.size}"
        return noted

    def _queue(self, trace: Trace, task: RaceTask | None) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.sink.dropped += 1 if task is not None else 1 + len(trace.tasks)
            return
        self._waiting.append((trace, task))
        if self._building is None:
            self._building = self._loop.call_later(PAUSE_S, self._build, 1)

    def _build(self, most: int) -> None:
        self._building = None
        for _ in range(min(most, len(self._waiting))):
            trace, task = self._waiting.popleft()
            try:
                if task is None:
                    self.sink.root(trace)
                for each in trace.tasks if task is None else (task,):
                    self.sink.task(trace, each)
            except Exception:  # queries are served all the same
                log.exception("a span could not be made")
        if self._waiting:
            self._building = self._loop.call_later(PAUSE_S, self._build, 1)


def new_trace_id() -> str:
    return f"{random.getrandbits(128) or 1:032x}"


def route_of(path: str, ask: Ask) -> str:
    """The path as a template, so that a span's name has few values: /predictions/{model}."""
    if ask.extra and path != ask.extra and path.endswith(ask.extra):
        path = f"{path.removesuffix(ask.extra)}/{{path}}"
    names = {ask.version or "": "{version}", ask.model: "{model}"}
    return "/".join(names.pop(unquote(segment), segment) if segment else "" for segment in path.split("/"))
