"""Traces as OpenTelemetry spans, sent over OTLP by its own SDK, as OTEL_EXPORTER_OTLP_ENDPOINT and its like say.

One SERVER span for a query and one CLIENT span for each of its tasks, with the attributes of OpenTelemetry's HTTP
conventions and some of our own (docs/monitoring.md has them). A collector that is slow, full or gone costs spans, which
are counted, and nothing else. Needs the extra `otel`: importing this file raises ImportError without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import AttributeValue

from ts_parity import __version__
from ts_parity.proxy.serving.race import RaceTask
from ts_parity.proxy.serving.tracing import Trace

log = logging.getLogger(__name__)

MOST_SPANS: Final = 2048
"""On their way: not sent, or not answered for yet."""
BATCH: Final = 64
"""Packing a span holds the interpreter up for some 20 us, and so long at once no query is served."""
FLUSH_S: Final = 1.0
"""What is left at the end gets so much time; a supervisor of several processes waits for two seconds."""
NANOSECONDS: Final = 1e9
_EXPORTERS_LOG: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_STATES_LOG: Final = "opentelemetry.trace.span"


class OtlpSpans:
    """Of one process."""

    def __init__(self, scheme: str) -> None:
        """`scheme`: what clients speak, http or https. Raise ValueError for an OTEL_ variable that makes no sense."""
        self.dropped = 0
        """Never handed over: too many were on their way."""
        self._scheme = scheme
        self._given = 0
        self._ids = _TraceIds()
        self._exporter = _CountingExporter(OTLPSpanExporter())
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=MOST_SPANS, max_export_batch_size=BATCH)
        provider = TracerProvider(ALWAYS_ON, _resource(), shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        logging.getLogger(_STATES_LOG).setLevel(logging.ERROR)  # it warns of each client's `tracestate` that is none
        self._tracer = provider.get_tracer("ts_parity", __version__)

    def counts(self) -> dict[str, int]:
        return {"sent": self._exporter.sent, "failed": self._exporter.failed, "dropped": self.dropped}

    def root(self, trace: Trace) -> None:
        if not self._has_room(1):
            return
        client = trace.client
        self._ids.following = int(trace.trace_id, 16)
        parent = None
        if client is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if client.sampled else TraceFlags.DEFAULT)
            state = TraceState.from_header([client.state]) if client.state else None
            context = SpanContext(int(client.trace_id, 16), int(client.span_id, 16), True, flags, state)
            parent = set_span_in_context(NonRecordingSpan(context))
        told: dict[str, AttributeValue] = {
            "http.request.method": trace.method,
            "url.scheme": self._scheme,
            "url.path": trace.path,
            **_server(trace.host),
            "ts_parity.source": trace.source,
        }
        if trace.route:
            told["http.route"] = trace.route
        if trace.pool:
            told["ts_parity.pool"] = trace.pool
        if trace.query:
            told["ts_parity.query"] = trace.query
        if trace.status:
            told["http.response.status_code"] = trace.status
        if trace.error:
            told["error.type"] = trace.error
        if trace.user_agent:
            told["user_agent.original"] = trace.user_agent
        if trace.request_id:
            told["http.request.header.x-request-id"] = [trace.request_id]
        if trace.late_by_s > 0:
            told["ts_parity.late_by_s"] = round(trace.late_by_s, 6)
        name, began = f"{trace.method} {trace.route}".rstrip(), _instant(trace, trace.arrived_at)
        root = self._tracer.start_span(name, parent, SpanKind.SERVER, told, start_time=began)
        for task in trace.tasks:
            if task.code:  # it was decoded, and the output sent to be finished
                root.add_event("ts_parity.decoded", {"ts_parity.code": task.code}, _instant(trace, task.sent_at))
        if trace.error:
            root.set_status(StatusCode.ERROR)
        self._end(root, _instant(trace, trace.ended_at))
        trace.context = set_span_in_context(NonRecordingSpan(root.get_span_context()))

    def task(self, trace: Trace, task: RaceTask) -> None:
        if trace.context is None or task.ended_at is None or not self._has_room(1):
            self.dropped += trace.context is None
            return
        late = task.how == "arrived" and task.ended_at > trace.ended_at
        outcome = "won" if task.id == trace.given else "lost" if late else task.how
        method = "POST" if task.kind in ("protection", "finish", "trial") else trace.method
        told: dict[str, AttributeValue] = {
            "http.request.method": method,
            **_server(task.endpoint.partition("/")[0]),
            "ts_parity.task": task.kind,
            "ts_parity.endpoint": task.endpoint,
            "ts_parity.outcome": outcome,
        }
        if task.status:
            told["http.response.status_code"] = task.status
        if task.kind in ("retry", "copy"):
            told["http.request.resend_count"] = task.number
        if task.cause:
            told["error.type"] = task.cause
        # A protection that was launched with its group may have been sent before this query had arrived.
        began = _instant(trace, max(task.sent_at, trace.arrived_at))
        context = trace.context
        self._ids.span = int(task.span_id or "0", 16)
        span = self._tracer.start_span(f"{method} {task.kind}", context, SpanKind.CLIENT, told, start_time=began)  # type: ignore[arg-type]
        if outcome == "lost":
            span.add_event("ts_parity.lost_race", None, _instant(trace, trace.ended_at))
        if task.how == "failed":
            span.set_status(StatusCode.ERROR, task.reason[:200])
        self._end(span, _instant(trace, task.ended_at))

    async def close(self) -> None:
        """Send what there is, within `FLUSH_S`. What is not sent by then counts as failed."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # it took too long, and the loop has ended
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, daemon=True, name="ts_parity-last-spans").start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except asyncio.TimeoutError:
            log.warning("%d spans were not sent", self._given - self._exporter.done)
            self._exporter.give_up()

    def _has_room(self, spans: int) -> bool:
        if self._given - self._exporter.done + spans <= MOST_SPANS:
            return True
        self.dropped += spans
        return False

    def _end(self, span: Span, at: int) -> None:
        self._given += 1
        span.end(at)


class _CountingExporter(SpanExporter):
    """OpenTelemetry's, with a count of what becomes of the spans, and one line in the log when that changes."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.sent = self.failed = 0
        self._lost = 0
        """Since the last that was sent."""
        self._given_up = False
        self._why = ""
        # It would log each attempt, and it is in another thread all the time while a collector is gone.
        logging.getLogger(_EXPORTERS_LOG).addFilter(self._noted)

    @property
    def done(self) -> int:
        return self.sent + self.failed

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._given_up else self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
            if self._lost:
                log.warning("spans can be sent again; %d were lost", self._lost)
                self._lost = 0
        else:
            if not self._lost and not self._given_up:
                log.warning("spans cannot be sent, and are lost until they can: %s", self._why)
            self._lost += len(spans)
            self.failed += len(spans)
        return result

    def give_up(self) -> None:
        """Whatever is under way ends soon."""
        self._given_up = True
        self._exporter.shutdown()

    def shutdown(self) -> None:
        if not self._given_up:
            self.give_up()
        logging.getLogger(_EXPORTERS_LOG).removeFilter(self._noted)

    def _noted(self, record: logging.LogRecord) -> bool:
        self._why = record.getMessage()
        return False


class _TraceIds(RandomIdGenerator):
    """The id that a trace has already, in the access log; and one that another proxy knows a span by."""

    following = 0
    span = 0

    def generate_trace_id(self) -> int:
        return self.following or super().generate_trace_id()

    def generate_span_id(self) -> int:
        given, self.span = self.span, 0
        return given or super().generate_span_id()


def _resource() -> Resource:
    """As the variables say, and where they do not, what this is."""
    known = {SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: f"{os.uname().nodename}-{os.getpid()}"}
    given = os.environ.get(OTEL_RESOURCE_ATTRIBUTES, "")
    if not os.environ.get(OTEL_SERVICE_NAME) and f"{SERVICE_NAME}=" not in given:
        known[SERVICE_NAME] = "ts-parity"
    return Resource.create({name: value for name, value in known.items() if f"{name}=" not in given})


def _server(authority: str) -> dict[str, AttributeValue]:
    """Host and port as the conventions have them; a Unix socket has its path and no port."""
    host, colon, port = authority.rpartition(":")
    if colon and port.isdecimal():
        return {"server.address": host, "server.port": int(port)}
    return {"server.address": authority} if authority else {}


def _instant(trace: Trace, at: float) -> int:
    """Nanoseconds since 1970."""
    return int((trace.begun_at + (at - trace.arrived_at)) * NANOSECONDS)
