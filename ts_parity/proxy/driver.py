"""Carries out what the engine decides: sends, decodes, answers. One branch per action.

Owns the tasks in flight, the one timer, and the futures clients wait on. Decides nothing: which endpoint, when to
rebuild, whom to answer with what, all comes from the engine. Knows nothing of routes, discovery or client sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from ts_parity.codes import Code, Family
from ts_parity.engine import (
    Action,
    Answer,
    Arrived,
    Fail,
    Failed,
    Kind,
    Outcome,
    Query,
    Reason,
    Scheduler,
    Send,
    Source,
    Task,
)
from ts_parity.errors import DeadlineExceeded, DecodeError, Overloaded, TsParityError, Unavailable, WireError
from ts_parity.proxy.connections import Stream
from ts_parity.proxy.messages import Reply, Request, without_control
from ts_parity.proxy.metrics import Metrics
from ts_parity.proxy.operations import (
    Ask,
    Target,
    Value,
    finish_request,
    group_request,
    prediction_request,
    read_finish,
    read_prediction,
    read_protection,
    slot_reply,
)
from ts_parity.proxy.pipe import Pipe
from ts_parity.proxy.plan import Plan
from ts_parity.proxy.upstream import Address, Unreachable, Upstream
from ts_parity.wire import Array

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0


class Delivered(NamedTuple):
    """What a client gets. `source` is None for an error that an instance made and that is passed on."""

    answer: Reply | Pipe
    source: Source | None


@dataclass(frozen=True)
class Manners:
    """What the configuration says about carrying out tasks."""

    secret: str = ""
    default_answer: Reply | None = None
    task_timeout_s: float = 130.0


class Driver:
    """One engine, its tasks in flight and its waiting clients."""

    def __init__(
        self,
        scheduler: Scheduler,
        upstream: Upstream,
        metrics: Metrics,
        manners: Manners,
        on_streaming: Callable[[str], None],
    ) -> None:
        """`on_streaming` is told the name of a pool whose answer came in chunks although it was to be coded."""
        self.scheduler = scheduler
        self._upstream = upstream
        self._metrics = metrics
        self._manners = manners
        self._on_streaming = on_streaming
        self._plan = Plan()
        self._addresses: Mapping[str, Address] = {}
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Delivered]] = {}
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    async def predict(
        self, pool: str, ask: Ask, key: Hashable, exact: bool = False, deadline_s: float | None = None
    ) -> Delivered:
        """Raise Unavailable if there will be no prediction. Cancelling this is a client that leaves."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        query = Query(next(self._ids), pool, key, None if deadline_s is None else now + deadline_s, exact, ask)
        future: asyncio.Future[Delivered] = loop.create_future()
        self._waiting[query.id] = future
        outcome, source = "abandoned", "none"
        try:
            self._obey(self.scheduler.query_arrived(query, now))
            delivered = await future
            outcome = "failed" if delivered.source is None else "answered"
            source = "none" if delivered.source is None else delivered.source.value
            self._metrics.query_seconds.labels(source).observe(loop.time() - now)
            return delivered
        except asyncio.CancelledError:
            self._abandon(query, future)
            raise
        except Unavailable as error:
            outcome = _OUTCOMES[type(error)]
            raise
        finally:
            del self._waiting[query.id]
            self._metrics.queries.labels(source, outcome).inc()

    def change_fleet(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        """Adopt a new plan; the engine hears of it only if its fleet is another one."""
        changed = plan.fleet != self._plan.fleet
        # First, since the actions that follow speak of the new endpoints.
        self._plan, self._addresses = plan, addresses
        if changed:
            self._obey(self.scheduler.endpoints_changed(plan.fleet, _now()))

    @property
    def idle(self) -> bool:
        """Nobody waits and nothing is in flight."""
        return not self._waiting and not self._in_flight

    def left_over(self) -> dict[str, int]:
        """What is held at this moment, for status and for tests that want nothing left."""
        return {"clients": len(self._waiting), "tasks": len(self._in_flight)}

    async def close(self) -> None:
        """Cut what is still in flight."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- actions ---------------------------------------------------------------------------------------------------

    def _obey(self, actions: list[Action]) -> None:
        # An action may lead to further ones (a group that cannot be framed has failed); they queue, they never nest.
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case Send(task):
                    todo.extend(self._send(task))
                case Answer(query, source, task):
                    self._deliver(query, self._answer(query, source, task))
                case Fail(query, reason, task):
                    self._refuse(query, reason, task)
        self._arm()

    def _send(self, task: Task) -> list[Action]:
        try:
            request = self._request(task)
        except (DecodeError, WireError) as error:
            return self._ended(task, Failed(str(error), retry=False))
        carrier = asyncio.get_running_loop().create_task(self._carry(task, request))
        self._in_flight[task.id] = carrier
        carrier.add_done_callback(lambda _: self._in_flight.pop(task.id, None))
        return []

    def _answer(self, query: Query, source: Source, task: Task | None) -> Delivered:
        if task is None:
            assert self._manners.default_answer is not None, "the policy allows default answers only if there is one"
            return Delivered(self._manners.default_answer, source)
        if isinstance(task.value, Pipe):
            return Delivered(task.value, source)
        value = cast(Value, task.value)
        if task.kind is Kind.PROTECTION:
            return Delivered(slot_reply(value, query.slot), source)
        assert value.reply is not None
        return Delivered(value.reply, source)

    def _deliver(self, query: Query, delivered: Delivered) -> None:
        future = self._waiting.get(query.id)
        if future is not None and not future.done():
            future.set_result(delivered)
        elif isinstance(delivered.answer, Pipe):
            delivered.answer.leave()

    def _refuse(self, query: Query, reason: Reason, task: Task | None) -> None:
        value = task.value if task is not None else None
        if reason is Reason.FAILED and isinstance(value, Value) and value.reply is not None:
            self._deliver(query, Delivered(value.reply, None))
            return
        future = self._waiting.get(query.id)
        if future is not None and not future.done():
            future.set_exception(_error(query, reason))

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def _request(self, task: Task) -> Request:
        """Raise DecodeError or WireError: then there is nothing to send."""
        target = self._plan.targets[task.endpoint.name]
        secret = self._manners.secret
        if task.kind is Kind.PROTECTION:
            assert task.group is not None
            # A group waits in the queue under its code; meanwhile other protections may have been registered.
            if task.group.code != self._code(task.endpoint.pool):
                raise DecodeError("the group's code is no longer the pool's")
            members = [None if member is None else cast(Ask, member.payload) for member in task.group.members]
            self._metrics.work.labels(task.kind.value).inc(_protection_work(task, target))
            return group_request(members, target, secret)
        assert task.query is not None
        ask = cast(Ask, task.query.payload)
        if task.kind is Kind.FINISH:
            try:
                return finish_request(ask, _decode(task), target, secret)
            except DecodeError:
                self._metrics.decode_failures.inc()
                raise
        self._metrics.work.labels(task.kind.value).inc()
        code = self._code(task.endpoint.pool)
        raw = target.wrapped and code is not None and code.family is Family.PARITY and task.query.key is not None
        return prediction_request(ask, target, raw, secret)

    def _code(self, pool: str) -> Code | None:
        plan = self._plan.pools.get(pool)
        return None if plan is None else plan.code

    async def _carry(self, task: Task, request: Request) -> None:
        """Send one task and tell the engine what came of it, whatever happens: its place depends on it."""
        outcome: Outcome
        try:
            address = self._addresses[self._plan.targets[task.endpoint.name].instance]
            result = await self._upstream.exchange(address, request)
            if isinstance(result, Stream):
                outcome = await self._stream(task, result)
            else:
                outcome, task.value = _read(task, result)
        except Exception:
            # Not a failure of the instance but of this program. The place must come back all the same.
            log.exception("task %r could not be carried out", task)
            outcome = Failed("internal error of the proxy", retry=False)
        self._obey(self._ended(task, outcome))

    def _ended(self, task: Task, outcome: Outcome) -> list[Action]:
        self._metrics.tasks.labels(task.kind.value, type(outcome).__name__.lower()).inc()
        if isinstance(outcome, Failed):
            log.info("%r failed: %s", task, outcome.reason)
            if task.kind is Kind.FINISH:
                self._metrics.finish_failures.inc()
        return self.scheduler.task_done(task, outcome, _now())

    async def _stream(self, task: Task, stream: Stream) -> Outcome:
        """Answer the query with the stream, then pass it on chunk by chunk."""
        if task.kind is not Kind.DEPLOYED:
            stream.leave()
            return Failed("the answer is streamed, which cannot be decoded", retry=False)
        if self._code(task.endpoint.pool) is not None:
            self._on_streaming(task.endpoint.pool)
        pipe = Pipe(stream, without_control(stream.headers), self._manners.task_timeout_s)
        task.value = pipe
        wanted = task.query is not None and task.query.open
        self._obey(self.scheduler.answer_started(task, _now()))
        if not wanted:
            pipe.leave()
        try:
            async for chunk in stream:
                await pipe.put(chunk)
            await pipe.put(None)
            return Arrived()
        except TsParityError as error:
            await pipe.put(str(error))
            return Failed(str(error), retry=False)
        finally:
            stream.leave()

    # ---- clients and time ------------------------------------------------------------------------------------------

    def _abandon(self, query: Query, future: asyncio.Future[Delivered]) -> None:
        if future.done() and not future.cancelled() and future.exception() is None:
            # Answered in the very moment of leaving.
            answer = future.result().answer
            if isinstance(answer, Pipe):
                answer.leave()
        self._obey(self.scheduler.query_abandoned(query, _now()))

    def _arm(self) -> None:
        """A timer that has become too early stays: it finds nothing due and arms anew; to move it would cost more."""
        at = self.scheduler.next_deadline()
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer_at, self._timer = math.inf, None
        self._obey(self.scheduler.tick(_now()))


_OUTCOMES: Mapping[type[Unavailable], str] = {
    Overloaded: "overloaded",
    DeadlineExceeded: "deadline",
    Unavailable: "unavailable",
}


def _now() -> float:
    return asyncio.get_running_loop().time()


def _protection_work(task: Task, target: Target) -> float:
    """In deployed inferences: as measured, else one for a parity model and one for each query of a backup."""
    group = task.group
    assert group is not None
    backup = group.code.family == Family.BACKUP
    if target.cost is None:
        return group.size if backup else 1
    return target.cost * (group.size / group.code.k if backup else 1.0)


def _decode(task: Task) -> Array:
    group, slot = task.group, task.slot
    assert group is not None
    assert slot is not None
    return cast(Code, group.code).decode(slot, _raws(group.have), _raws(group.protections), group.covers)


def _raws(tasks: Mapping[int, Task]) -> dict[int, Array]:
    values = {index: cast(Value, task.value) for index, task in tasks.items()}
    return {index: value.raw for index, value in values.items() if value.raw is not None}


def _read(task: Task, result: Reply | Unreachable) -> tuple[Outcome, Value]:
    if task.kind is Kind.DEPLOYED:
        return read_prediction(result)
    if task.kind is Kind.FINISH:
        return read_finish(result)
    assert task.group is not None
    return read_protection(result, task.group.code.family, task.group.present)


def _error(query: Query, reason: Reason) -> Unavailable:
    if reason is Reason.OVERLOADED:
        return Overloaded(f"too many requests for {query.pool} are waiting", _RETRY_AFTER_S)
    if reason is Reason.DEADLINE:
        return DeadlineExceeded(f"no prediction of {query.pool} arrived before the deadline")
    if reason is Reason.NO_ENDPOINT:
        return Unavailable(f"no instance with a READY worker serves {query.pool}", _RETRY_AFTER_S)
    return Unavailable(f"{query.pool}: every attempt failed; the last one without an answer", _RETRY_AFTER_S)
