"""A receiver of OTLP over HTTP: what an operator runs as a collector, as far as a test looks at it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PATIENCE_S = 60.0


class Told:
    """A span, as an assertion reads best."""

    def __init__(self, span: Span, resource: dict[str, Any]) -> None:
        self.name, self.resource, self.state = span.name, resource, span.trace_state
        self.trace_id, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        self.attributes = read(span.attributes)
        self.events = [event.name for event in span.events]
        self.failed = span.status.code == Status.STATUS_CODE_ERROR
        self.why = span.status.message
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano

    @property
    def task(self) -> tuple[str, str]:
        return self.attributes["ts_parity.task"], self.attributes["ts_parity.outcome"]


def read(pairs: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [value_of(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Collector:
    """OTLP over HTTP, on a free port."""

    def __init__(self) -> None:
        self.spans: list[Told] = []
        self.status = 200
        self.answers = asyncio.Event()
        self.answers.set()
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/traces", self._on_traces)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _on_traces(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        await self.answers.wait()
        if self.status == 200:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = read(group.resource.attributes)
                self.spans += [Told(span, resource) for scope in group.scope_spans for span in scope.spans]
        return web.Response(status=self.status)

    async def got(self, count: int) -> tuple[Told, list[Told]]:
        """-> the one root, and the tasks by when they began, when there are so many spans."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while len(self.spans) < count:
            assert asyncio.get_running_loop().time() < deadline, f"{len(self.spans)} of {count} spans came"
            await asyncio.sleep(0.005)
        assert len(self.spans) == count
        (root,) = [span for span in self.spans if span.kind == "server"]
        tasks = [span for span in self.spans if span.kind == "client"]
        assert {(span.trace_id, span.parent) for span in tasks} <= {(root.trace_id, root.id)}
        return root, sorted(tasks, key=lambda span: (span.began, span.attributes["ts_parity.task"] != "own"))
