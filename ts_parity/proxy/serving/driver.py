"""Carries out what the engine decides: sends tasks, decodes raw outputs, answers queries. One branch per action.

Owns the outstanding tasks, the engine's one timer, and the callbacks that answer clients. Decides nothing: the engine
chooses endpoints, when to rebuild, and which answer a query gets. Knows nothing of routes, discovery or client sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.confidence import pattern_of
from ts_parity.engine import (
    Action,
    Answer,
    Arrived,
    Cause,
    Compare,
    Endpoint,
    Failed,
    Finding,
    HealthChange,
    Kind,
    Outcome,
    Policy,
    Query,
    Reason,
    Rejected,
    Scheduler,
    Send,
    Source,
    Task,
)
from ts_parity.engine.sizes import size_class
from ts_parity.errors import DeadlineExceeded, DecodeError, Overloaded, TsParityError, Unavailable, WireError
from ts_parity.proxy.fleet.backends.backend import Backend
from ts_parity.proxy.fleet.payloads import QueryPayload, Target, TaskResult
from ts_parity.proxy.fleet.plan import Plan, PoolPlan
from ts_parity.proxy.http.access import ERROR, LEFT, STATUS_LEFT, AccessEntry, AccessLog, OtherTask
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.streams import Pipe, Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Result, Upstream
from ts_parity.proxy.serving.comparison import Comparison, ResponseComparer
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.proxy.serving.races import Races
from ts_parity.proxy.serving.recording import Recording
from ts_parity.proxy.serving.tracing import LEFT as CLIENT_LEFT
from ts_parity.proxy.serving.tracing import Tracer
from ts_parity.wire import Array

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0


@final
class QueryResult:
    """What becomes of a query. `source` is None for an error: an instance's, which is passed on, or the proxy's."""

    __slots__ = ("answer", "confidence", "entry", "missing", "source", "traced", "unable")

    def __init__(
        self, answer: Response | Pipe | Unavailable, source: Source | None, confidence: float | None = None
    ) -> None:
        """`confidence`: of a rebuilt answer, how often one like it agrees with the deployed model's; None: unknown."""
        self.answer = answer
        self.source = source
        self.confidence = confidence
        self.missing = False
        """The error says that no instance has this version any more, and no worker has died of the query."""
        self.unable = False
        """No instance has answered, and another proxy may try: no worker has died of the query, and its model may be
        asked again or has not been asked."""
        self.traced = False
        """There are spans of it."""
        self.entry: AccessEntry | None = None
        """For the access log, if there is one."""


@dataclass(frozen=True)
class DriverOptions:
    """The settings that concern tasks and answers."""

    secret: str = ""
    default_answer: Response | None = None
    task_timeout_s: float = 130.0
    tracer: Tracer | None = None
    access: AccessLog | None = None
    """Gets an entry for each answer, and one for each task that ends after its query."""


class Driver:
    """One engine, its tasks in flight and its waiting clients."""

    def __init__(
        self,
        scheduler: Scheduler,
        upstream: Upstream,
        backends: Mapping[str, Backend],
        metrics: Metrics,
        options: DriverOptions,
        on_streaming: Callable[[str], None],
        on_missing: Callable[[], object],
        on_confused: Callable[[str, str, str, Request | None], object],
    ) -> None:
        """`backends`: of each instance. `on_streaming` is called with the name of a coded pool whose answer was
        chunked; `on_missing`, when an instance lacks a model that it was seen to have; `on_confused`, with the kind
        and the name of an instance that may confuse requests, why, and one to find out with.
        """
        self.scheduler = scheduler
        self._upstream = upstream
        self._backends = backends
        self._kinds = {backend.kind: backend for backend in backends.values()}
        self._metrics = metrics
        self.races = Races(metrics, scheduler.tasks_of)
        self._racing = self.races.out
        self.recording: Recording | None = None
        """Whoever has asked for it ends it."""
        self._options = options
        self._tracer = options.tracer
        self._on_streaming = on_streaming
        self._on_missing = on_missing
        self._on_confused = on_confused
        self._doubted: dict[str, str] = {}
        """Instance that may confuse requests -> the pool in which that was seen."""
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}
        self._once: frozenset[str] = frozenset()
        """Pools whose queries run once only."""
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._comparers: dict[str, ResponseComparer] = {}
        self._waiting: dict[int, Callable[[QueryResult], None]] = {}
        self._in_flight = 0
        self.largest: dict[str, int] = {}
        """Pool -> bytes of the largest body yet that may be a group's."""
        self._sent: dict[int, tuple[Task, float]] = {}
        """If there is an access log: the deployed model's outstanding tasks and when they were sent. The event loop's
        clock counts milliseconds, which is too coarse for a fast model's quantiles, so this is a finer clock.
        """
        self._confidences: dict[int, float | None] = {}
        """Task id of an outstanding finish -> the confidence of the raw output that it finishes."""
        self._streams: set[asyncio.Task[None]] = set()
        self._todo: deque[Action] = deque()
        self._carrying_out = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def predict(
        self,
        pool: str,
        payload: QueryPayload,
        key: Hashable,
        client: Callable[[QueryResult], None],
        least: float = 0.0,
        deadline_s: float | None = None,
    ) -> Query:
        """`client` is called once, now or later, unless the query is abandoned first."""
        now = self._loop.time()
        deadline_at = None if deadline_s is None else now + deadline_s
        length = len(payload.request.body)
        if key is not None and length > self.largest.get(pool, -1):
            self.largest[pool] = length
        size = size_class(payload.ask.extra, length)
        query = Query(next(self._ids), pool, key, deadline_at, least, payload, size)
        self._waiting[query.id] = client
        self._carry_out(self.scheduler.query_arrived(query, now))
        return query

    def abandon(self, query: Query) -> AccessEntry | None:
        """The client has left. -> the entry for the access log, if there is one."""
        entry = None if self._options.access is None else self._entry_of_failure(query, LEFT, query.last_failure)
        if self._waiting.pop(query.id, None) is not None:
            trace_id = self._traced(query, None, None, STATUS_LEFT, CLIENT_LEFT)
            if entry is not None and trace_id:
                entry.trace_id = trace_id
            self._metrics.queries.add(self._metrics.pool(query.pool), "none", "abandoned")
            self._carry_out(self.scheduler.query_abandoned(query, self._loop.time()))
        return entry

    def may_copy(self, pool: str) -> bool:
        """Whether, as far as is known, running a query once more is harmless and gives the same answer."""
        return self.scheduler.may_copy(pool, self._loop.time())

    def change_fleet(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        """Adopt a new plan; the engine gets an event only if the fleet has changed. `addresses`: of all instances."""
        changed = plan.fleet != self._plan.fleet
        comparers = {}
        for name, pool in plan.pools.items():
            comparer = self._comparers.get(name)
            comparers[name] = ResponseComparer(self._meaning_of(pool)) if comparer is None else comparer
        self._comparers = comparers
        self._metrics.adopt(plan.pools, {one.name: (one.pool, _kind_of(one)) for one in plan.fleet.endpoints})
        # First, since the actions that follow name the new endpoints.
        self._plan, self._addresses = plan, addresses
        self._backends = {name: self._backends[name] for name in addresses}
        out = addresses.keys() - plan.up
        self._doubted = {name: pool for name, pool in self._doubted.items() if name in out}
        self._once = frozenset(name for name, pool in plan.pools.items() if not pool.repeatable)
        if changed:
            self._carry_out(self.scheduler.endpoints_changed(plan.fleet, self._loop.time()))

    def _meaning_of(self, pool: PoolPlan) -> Callable[[Response], Any] | None:
        """How answers of this pool are read to be compared."""
        backend = self._kinds.get(pool.kind)
        return None if backend is None else backend.meaning(pool.model.removeprefix(backend.prefix))

    def change_settings(self, options: DriverOptions, policy: Policy, backends: Mapping[str, Backend]) -> None:
        """Adopt the operator's settings, for what happens from now on."""
        self._backends = {**self._backends, **backends}  # until the fleet has changed too, some go to the old ones
        self._kinds = {backend.kind: backend for backend in backends.values()}
        self._comparers = {}  # what answers mean may be declared otherwise
        self._options = options
        self._metrics.policy = policy
        if policy != self.scheduler.policy:
            self._carry_out(self.scheduler.policy_changed(policy, self._loop.time()))

    def left_over(self) -> dict[str, int]:
        """What is held at this moment, for status and for tests that check that nothing is left."""
        return {"clients": len(self._waiting), "tasks": self._in_flight}

    async def close(self) -> None:
        """Drop what is still outstanding. No query is answered after this."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in [*self._streams]:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    # ---- actions ---------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: list[Action]) -> None:
        """Carry out these actions after all earlier ones. An action may cause more (a client that is answered sends its
        next request; a group that cannot be framed fails); those are queued and never nested.
        """
        todo = self._todo
        todo.extend(actions)
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while todo:
                self._act(todo.popleft())
        finally:
            self._carrying_out = False
        self._arm()

    def _act(self, action: Action) -> None:
        if isinstance(action, Send):
            self._send(action.task)
        elif isinstance(action, Answer):
            result = self._answer(action.query, action.source, action.task)
            if self.recording is not None and action.task is not None and action.task.kind is Kind.DEPLOYED:
                request = cast(QueryPayload, action.query.payload).request
                self.recording.offer(action.query.pool, request, result.answer)
            trace_id = ""
            if self._tracer is not None:
                trace_id = self._traced(action.query, action.source, action.task, result.answer.status, "")
                result.traced = bool(trace_id)
            if action.source is not Source.DEPLOYED or action.query.in_flight:  # rare
                now = self._loop.time()
                self.races.answered(action.query, action.source, action.task, result.confidence, now, trace_id)
            if self._options.access is not None:
                result.entry = self._entry_of_answer(action.query, action.source, action.task)
                result.entry.confidence = result.confidence
                result.entry.trace_id = trace_id or None
            self._deliver(action.query, result)
        elif isinstance(action, Compare):
            self._compare(action)
        else:
            self._refuse(action.query, action.reason, action.task)

    def _send(self, task: Task) -> None:
        self._in_flight += 1
        if self._tracer is not None:
            query = task.query
            if task.kind is not Kind.DEPLOYED or task.hedge or query is None or query.attempts > 1:
                self._tracer.sent(task)
        if self._options.access is not None and task.kind is Kind.DEPLOYED:
            self._sent[task.id] = (task, time.monotonic())
        try:
            target = self._plan.targets[task.endpoint.name]
            backend = self._backends[target.instance]
            request = self._request(task, target, backend)
            done = partial(self._on_result, task, backend)
            once = task.endpoint.pool in self._once
            self._upstream.send(self._addresses[target.instance], request, done, once, backend.whole)
        except (DecodeError, WireError) as error:
            self._task_ended(task, Failed(str(error), retry=False))
        except Exception:
            self._internal_error(task)

    def _compare(self, pair: Compare) -> None:
        """Its cost is bounded by the size of the bodies that are parsed; see `comparison`."""
        query = pair.own.query
        assert query is not None
        answers = self._comparers.get(query.pool)
        comparison = Comparison(Finding.UNKNOWN, "its pool is gone")
        if answers is not None:
            try:
                comparison = _compared(pair, answers, self._plan.pools[query.pool].tolerance)
            except Exception:  # the clients have their answers already
                log.exception("two answers of %s could not be compared", query.pool)
                comparison = Comparison(Finding.UNKNOWN, "internal error of the proxy")
        of = "copy" if pair.other.kind is Kind.DEPLOYED else "protection"
        self._metrics.comparisons.add(self._metrics.pool(query.pool), of, comparison.finding.value)
        self.races.compared(pair.own, pair.other, comparison.finding, comparison.why)
        self._carry_out(self.scheduler.compared(pair, comparison.finding, comparison.why, self._loop.time()))

    def _answer(self, query: Query, source: Source, task: Task | None) -> QueryResult:
        if task is None:
            assert self._options.default_answer is not None, "the policy allows default answers only if there is one"
            return QueryResult(self._options.default_answer, source)
        if isinstance(task.value, Pipe):
            return QueryResult(task.value, source)
        value = cast(TaskResult, task.value)
        if task.kind is Kind.PROTECTION:
            return QueryResult(value.slot_response(query.slot), source, self._confidence(task, value, query.slot))
        assert value.response is not None
        return QueryResult(value.response, source, value.confidence)

    def _confidence(self, task: Task, value: TaskResult, slot: int) -> float | None:
        assert task.group is not None
        return 1.0 if task.group.code.lossless else value.slot_confidence(slot)

    def _deliver(self, query: Query, result: QueryResult) -> None:
        client = self._waiting.pop(query.id, None)
        if client is None:
            if isinstance(result.answer, Pipe):
                result.answer.close()
            return
        if result.source is None:
            self._metrics.queries.add(self._metrics.pool(query.pool), "none", _outcome_of(result))
        else:
            took_s = self._loop.time() - query.arrived_at
            self._metrics.answered(query.pool, result.source._value_, took_s)
            if result.source is Source.RECONSTRUCTED:
                self._note_confidence(query.pool, result.confidence)
        self._notify(client, result)

    def _note_confidence(self, name: str, confidence: float | None) -> None:
        pool = self._metrics.pool(name)
        self._metrics.rebuilt.add(pool, "unknown" if confidence is None else "known")
        if confidence is not None:
            self._metrics.differing.add(pool, by=1.0 - confidence)

    def _refuse(self, query: Query, reason: Reason, task: Task | None) -> None:
        value = task.value if task is not None else None
        if reason is Reason.FAILED and isinstance(value, TaskResult) and value.response is not None:
            result = QueryResult(value.response, None)
        else:
            again_s = self.scheduler.clears_s(query.pool) if reason is Reason.OVERLOADED else RETRY_AFTER_S
            result = QueryResult(_error_of(query, reason, again_s), None)
        trace_id = self._traced(query, None, None, result.answer.status, _outcome_of(result))
        result.traced = bool(trace_id)
        if query.in_flight or reason is Reason.DEADLINE:
            self.races.failed(query, reason._value_, self._loop.time(), trace_id)
        if not query.kills:
            result.missing = reason is Reason.NO_ENDPOINT or result.answer.status == 404
            failed = reason is Reason.FAILED and isinstance(result.answer, Unavailable)
            result.unable = result.missing or (failed and self.scheduler.is_repeatable(query.pool))
        if self._options.access is not None:
            result.entry = self._entry_of_failure(query, ERROR, task)
            result.entry.cause = result.entry.cause or reason._value_
            result.entry.trace_id = trace_id or None
        self._deliver(query, result)

    def _traced(self, query: Query, source: Source | None, task: Task | None, status: int, error: str) -> str:
        """A query has ended. -> the id of the trace that its spans are in; empty: it has none."""
        tracer = self._tracer
        if tracer is None:
            return ""
        out = self.scheduler.tasks_of(query) if query.in_flight else []
        return tracer.ended(query, source, task, status, error, out, self._loop.time())

    def _notify(self, client: Callable[[QueryResult], None], what: QueryResult) -> None:
        try:
            client(what)
        except Exception:  # one client's failure must not affect the others
            log.exception("a client could not be answered")

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def _request(self, task: Task, target: Target, backend: Backend) -> Request:
        """The request of this task. Raise DecodeError or WireError if there is none."""
        secret = self._options.secret
        if task.kind is Kind.PROTECTION:
            assert task.group is not None
            # While a group waited in the queue, other protections may have been registered.
            code = self._code(task.endpoint.pool)
            if code is not task.group.code and code != task.group.code:  # nearly always one object, and quickly told
                raise DecodeError("the group's code is no longer the pool's")
            assert task.row is not None
            sent = task.group.sent[task.row]
            members = [
                cast(QueryPayload, member.payload) if member is not None and slot in sent else None
                for slot, member in enumerate(task.group.members)
            ]
            work = _protection_work(task, target)
            self._metrics.work.add(self._metrics.pool(task.endpoint.pool), task.kind._value_, by=work)
            return backend.protection(members, target, secret)
        assert task.query is not None
        payload = cast(QueryPayload, task.query.payload)
        if task.kind is Kind.FINISH:
            try:
                raw = _decode(task, self._row_errors(task.endpoint.pool))
            except DecodeError:
                self._metrics.decode_failures.add()
                raise
            self._confidences[task.id] = self._expected_confidence(task, raw)
            return backend.finish(payload, raw, target, secret)
        code = self._code(task.endpoint.pool)
        wants_raw = target.wrapped and code is not None and code.family is Family.PARITY and task.query.key is not None
        return backend.prediction(payload, target, wants_raw, secret)

    def _expected_confidence(self, task: Task, raw: Array) -> float | None:
        """The confidence of a decoded output; None if it fails, which must not cost the client its answer."""
        group = task.group
        assert group is not None
        plan = self._plan.pools.get(task.endpoint.pool)
        if plan is None or plan.confidence is None or plan.code != group.code:
            return None
        have = [slot for slot in group.have if slot != task.slot]
        try:
            return plan.confidence.of(raw, pattern_of(plan.code, have, group.covers))
        except Exception:
            log.exception("the confidence of %r could not be computed", task)
            return None

    def _code(self, pool: str) -> ErasureCode | None:
        plan = self._plan.pools.get(pool)
        return None if plan is None else plan.code

    def _row_errors(self, pool: str) -> RowErrors | None:
        plan = self._plan.pools.get(pool)
        return None if plan is None else plan.row_errors

    def _on_result(self, task: Task, backend: Backend, result: Result) -> None:
        """Report to the engine how a task ended, whatever happens: otherwise its place would be lost."""
        if isinstance(result, Stream):
            stream = asyncio.get_running_loop().create_task(self._stream(task, backend, result))
            self._streams.add(stream)
            stream.add_done_callback(self._streams.discard)
            # An asyncio task that is cancelled before it starts runs no code, so the callback closes the stream.
            stream.add_done_callback(lambda _: result.close())
            return
        outcome: Outcome
        why = ""
        try:
            outcome, task.value = _read(task, backend, result)
            looks = (backend.confuses or self._doubted) and isinstance(result, Response)
            if looks and (why := self._confused(task, backend, cast(Response, result))):
                # The server's process may have died of this very query, as a worker may.
                died = cast(Response, result).status >= 500
                outcome, task.value = Failed(why, cause=Cause.WORKER_DIED if died else Cause.GONE), TaskResult()
            elif self._doubted and isinstance(outcome, Arrived):
                self._offer_sample(task, backend)
            confidence = self._confidences.get(task.id)
            if task.kind is Kind.FINISH and confidence is not None:
                cast(TaskResult, task.value).confidence = confidence
                if isinstance(outcome, Arrived) and task.slot is not None:
                    outcome = Arrived(agreement={task.slot: confidence})
            if (
                isinstance(result, Response)
                and result.status in (400, 401)
                and backend.key_refused(result)
                and self._sent_our_key(task)
            ):
                outcome = Failed(f"{result.status} it refuses the key that it was configured with")
        except Exception:
            self._internal_error(task)
            return
        new = bool(why) and task.endpoint.instance not in self._doubted
        if new:
            self._doubted[task.endpoint.instance] = task.endpoint.pool
        # First: where its endpoint is gone already, what it failed of no longer counts.
        self._task_ended(task, outcome)
        if new:
            self._doubt(task, backend, why)

    def _confused(self, task: Task, backend: Backend, response: Response) -> str:
        """Why this answer may be another request's, so that nobody may have it; empty if it may not."""
        if task.endpoint.instance in self._doubted:
            return "its answers are in doubt"
        query = task.query
        if query is None:
            assert task.group is not None
            query = next((member for member in task.group.members if member is not None), None)
        if query is None:
            return ""
        endpoint = task.endpoint
        servers = endpoint.pool if endpoint.row is None else f"{endpoint.pool} {endpoint.row}"
        return backend.confused(servers, cast(QueryPayload, query.payload).request, response)

    def _doubt(self, task: Task, backend: Backend, why: str) -> None:
        pool, target = task.endpoint.pool, self._plan.targets.get(task.endpoint.name)
        request = None
        if target is not None and task.kind is Kind.DEPLOYED and self.scheduler.is_repeatable(pool):
            request = self._request(task, target, backend)
        self._on_confused(backend.kind, task.endpoint.instance, why, request)

    def _offer_sample(self, task: Task, backend: Backend) -> None:
        """What another has answered, a doubted instance may be asked, to find out whether it is right again."""
        pool = task.endpoint.pool
        if task.kind is not Kind.DEPLOYED or not self.scheduler.is_repeatable(pool):
            return
        doubted = [instance for instance, seen_in in self._doubted.items() if seen_in == pool]
        target = self._plan.targets.get(task.endpoint.name) if doubted else None
        if target is not None:
            request = self._request(task, target, backend)
            for instance in doubted:
                self._on_confused(backend.kind, instance, "", request)

    def _sent_our_key(self, task: Task) -> bool:
        """Whether a refused key was the proxy's. If it was the client's, the refusal is the client's answer."""
        target = self._plan.targets.get(task.endpoint.name)
        address = None if target is None else self._addresses.get(target.instance)
        if address is None or not address.token:
            return False
        payload = (
            None if task.query is None or task.kind is not Kind.DEPLOYED else cast(QueryPayload, task.query.payload)
        )
        return payload is None or not address.checks_client_key(payload.request)

    def _internal_error(self, task: Task) -> None:
        """An error in this program, not in the instance. The place must become free all the same."""
        log.exception("task %r could not be carried out", task)
        self._task_ended(task, Failed("internal error of the proxy", retry=False))

    def _task_ended(self, task: Task, outcome: Outcome) -> None:
        self._in_flight -= 1
        now = self._loop.time()
        if isinstance(outcome, Arrived) and task.kind is not Kind.FINISH:
            if not self._metrics.arrived(task.place.name, now - task.sent_at):  # its endpoint has gone
                self._count_end(task, outcome)
        else:
            self._count_end(task, outcome)
        if self._tracer is not None:
            self._tracer.task_ended(task, outcome, now)
        if self._racing and task.id in self._racing:
            self.races.task_ended(task, outcome, now)
        if self._options.access is not None and task.kind is Kind.DEPLOYED:
            self._log_task_end(task, outcome, self._options.access)
        if task.kind is Kind.FINISH:
            self._confidences.pop(task.id, None)
        if isinstance(outcome, Failed):
            log.info("%r failed: %s", task, outcome.reason)
            if task.kind is Kind.FINISH:
                self._metrics.finish_failures.add()
            if outcome.cause is Cause.MISSING:  # a model registered there next may have other weights
                self._on_missing()
        if not self._closed:
            self._carry_out(self.scheduler.task_done(task, outcome, now))
            changes = self.scheduler.changes
            while changes:
                _log_health_change(changes.popleft())

    def _count_end(self, task: Task, outcome: Outcome) -> None:
        pool = self._metrics.pool(task.endpoint.pool)
        self._metrics.tasks.add(pool, task.kind._value_, _OUTCOME_NAMES[type(outcome)])
        if task.kind is Kind.DEPLOYED and not isinstance(outcome, Rejected):  # then nothing was run
            self._metrics.work.add(pool, task.kind._value_)

    async def _stream(self, task: Task, backend: Backend, stream: Stream) -> None:
        outcome: Outcome = Failed("internal error of the proxy", retry=False)
        try:
            outcome = await self._relay(task, backend, stream)
        except Exception:
            log.exception("task %r could not be carried out", task)
        finally:
            stream.close()
            self._task_ended(task, outcome)

    async def _relay(self, task: Task, backend: Backend, stream: Stream) -> Outcome:
        """Answer the query with the stream, then pass it on chunk by chunk."""
        if task.kind is not Kind.DEPLOYED:
            return Failed("the answer is streamed, which cannot be decoded", retry=False)
        failure = backend.trouble(Response(stream.status, stream.phrase, stream.headers, b""))
        if failure is not None:  # a gateway's error page that is too long to be kept
            return failure
        if 200 <= stream.status < 300 and self._code(task.endpoint.pool) is not None:
            self._on_streaming(task.endpoint.pool)
        pipe = Pipe(stream, stream.headers, self._options.task_timeout_s)
        task.value = pipe
        wanted = task.query is not None and task.query.open
        self._carry_out(self.scheduler.answer_started(task, self._loop.time()))
        if not wanted:
            pipe.close()
        try:
            async for chunk in stream:
                await pipe.put(chunk)
            await pipe.put(None)
            return Arrived()
        except TsParityError as error:
            await pipe.put(str(error))
            return Failed(str(error), retry=False)

    # ---- for the access log ----------------------------------------------------------------------------------------

    def _log_task_end(self, task: Task, outcome: Outcome, access: AccessLog) -> None:
        """Log what the query's own line cannot: a task that failed, or that ended after its query."""
        _, sent_at = self._sent.pop(task.id)
        query = task.query
        assert query is not None
        failed, took_s = isinstance(outcome, Failed), time.monotonic() - sent_at
        if isinstance(outcome, Rejected) or isinstance(task.value, Pipe):
            return
        if query.open and not failed:
            cast(QueryPayload, query.payload).service_s = took_s
            return
        other = _other_task(task, took_s, failed)
        if not query.open:
            access.add_task(query.id, query.pool, other, outcome.reason if isinstance(outcome, Failed) else None)
            return
        payload = cast(QueryPayload, query.payload)
        payload.failed = [*(payload.failed or ()), other]

    def _entry_of_answer(self, query: Query, source: Source, task: Task | None) -> AccessEntry:
        payload = cast(QueryPayload, query.payload)
        cause = query.first_cause or None
        if task is None:
            entry = AccessEntry(
                source._value_, _asked_endpoints(query), query.pool, None, query.attempts, None, None, cause
            )
        else:
            service_s = None
            if task.kind is Kind.DEPLOYED:  # a streamed answer begins before its task ends
                service_s = self._loop.time() - task.sent_at if payload.service_s is None else payload.service_s
            group = None if task.group is None else task.group.id
            waited_s = max(0.0, task.sent_at - query.arrived_at)
            where = task.endpoint.name
            entry = AccessEntry(source._value_, where, query.pool, group, query.attempts, waited_s, service_s, cause)
            entry.places = task.endpoint.places if task.kind is Kind.DEPLOYED else None
        return self._with_other_tasks(entry, query, task)

    def _entry_of_failure(self, query: Query, outcome: str, task: Task | None) -> AccessEntry:
        """`task`: the query's last attempt, if that has ended."""
        where = _asked_endpoints(query) if task is None else task.endpoint.name
        entry = AccessEntry(outcome, where, query.pool, None, query.attempts, None, None, query.first_cause or None)
        return self._with_other_tasks(entry, query, task)

    def _with_other_tasks(self, entry: AccessEntry, query: Query, task: Task | None) -> AccessEntry:
        entry.query = query.id
        entry.others = cast(QueryPayload, query.payload).failed or ()
        if query.in_flight:  # rare: something else answered it, or its answer is a stream
            now = time.monotonic()
            out = [(other, at) for other, at in self._sent.values() if other.query is query and other is not task]
            entry.others = [*entry.others, *(_other_task(other, now - at, False) for other, at in out)]
        return entry

    # ---- time ------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set the timer for the next deadline. A timer that is too early stays: moving it costs more than a tick."""
        at = self.scheduler.next_deadline()
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer_at, self._timer = math.inf, None
        self._carry_out(self.scheduler.tick(self._loop.time()))


_OUTCOME_NAMES: Mapping[type[Outcome], str] = {Arrived: "arrived", Failed: "failed", Rejected: "rejected"}
_OUTCOMES: Mapping[type[Unavailable], str] = {
    Overloaded: "overloaded",
    DeadlineExceeded: "deadline",
    Unavailable: "unavailable",
}


def _outcome_of(result: QueryResult) -> str:
    """Of a query without an answer."""
    error = result.answer
    return _OUTCOMES[type(error)] if isinstance(error, Unavailable) else "failed"


def _log_health_change(change: HealthChange) -> None:
    if change.out:
        log.warning("%s is ejected: %s; it is probed regularly", change.endpoint, change.reason)
    else:
        log.warning("%s is back; it was ejected: %s", change.endpoint, change.reason)


def _kind_of(endpoint: Endpoint) -> str:
    """Of its tasks."""
    return str((Kind.DEPLOYED if endpoint.row is None else Kind.PROTECTION).value)


def _other_task(task: Task, at_least_s: float, failed: bool) -> OtherTask:
    assert task.query is not None
    return OtherTask(task.endpoint.name, max(0.0, task.sent_at - task.query.arrived_at), at_least_s, failed)


def _asked_endpoints(query: Query) -> str | None:
    """The endpoints that have the query, or have failed it."""
    return ", ".join(f"{instance}/{query.pool}" for instance in sorted(query.avoid)) or None


def _compared(pair: Compare, answers: ResponseComparer, tolerance: float | None) -> Comparison:
    own, other, lossless = pair.own.value, pair.other.value, True
    if (
        not isinstance(own, TaskResult)
        or not isinstance(other, TaskResult)
        or own.response is None
        or other.response is None
    ):
        return Comparison(Finding.UNKNOWN, "a streamed answer cannot be compared")
    response = other.response
    if pair.other.kind is not Kind.DEPLOYED:
        assert pair.other.group is not None
        lossless = pair.other.group.code.lossless
    if pair.other.kind is Kind.PROTECTION:
        if not other.has_slot(pair.slot):
            return Comparison(Finding.FAILED, "it left a member of its group out")
        response = other.slot_response(pair.slot)
    if pair.other.kind is not Kind.DEPLOYED and response.status >= 400 and own.response.status < 400:
        return Comparison(
            Finding.FAILED, f"it answered {response.status}: {response.body[:200].decode('utf-8', 'replace')}"
        )
    return answers.compare(own.response, response, lossless, tolerance)


def _protection_work(task: Task, target: Target) -> float:
    """In deployed inferences: as measured, otherwise 1 for a parity model and 1 for each query of a backup."""
    group = task.group
    assert group is not None
    backup = group.code.family == Family.BACKUP
    if target.cost is None:
        return group.size if backup else 1
    return target.cost * (group.size / group.code.k if backup else 1.0)


def _decode(task: Task, errors: RowErrors | None) -> Array:
    group, slot = task.group, task.slot
    assert group is not None
    assert slot is not None
    others = {
        member: own for member, own in group.have.items() if member != slot
    }  # on trial, its own answer may have arrived
    have, protections = _values(others), _values(group.protections)
    roundoff = max(value.roundoff for value in (*have.values(), *protections.values()))
    return cast(ErasureCode, group.code).decode(slot, _raws(have), _raws(protections), group.covers, roundoff, errors)


def _values(tasks: Mapping[int, Task]) -> dict[int, TaskResult]:
    return {index: cast(TaskResult, task.value) for index, task in tasks.items()}


def _raws(values: Mapping[int, TaskResult]) -> dict[int, Array]:
    return {index: raw for index, value in values.items() if (raw := value.raw) is not None}


def _read(task: Task, backend: Backend, result: Response | NoResponse) -> tuple[Outcome, TaskResult]:
    if task.kind is Kind.DEPLOYED:
        return backend.read_prediction(result)
    if task.kind is Kind.FINISH:
        return backend.read_finish(result)
    assert task.group is not None
    assert task.row is not None
    return backend.read_protection(result, task.group.code.family, task.group.code.k, task.group.sent[task.row])


def _error_of(query: Query, reason: Reason, again_s: float) -> Unavailable:
    if reason is Reason.OVERLOADED:
        return Overloaded(f"too many requests for {query.pool} are waiting", again_s)
    if reason is Reason.DEADLINE:
        return DeadlineExceeded(f"no prediction of {query.pool} arrived before the deadline")
    if reason is Reason.NO_ENDPOINT:
        return Unavailable(f"no instance with a READY worker serves {query.pool}", again_s)
    return Unavailable(f"{query.pool}: every attempt failed; the last one without an answer", again_s)
