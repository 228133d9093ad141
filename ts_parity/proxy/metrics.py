"""What Prometheus may know. One registry per proxy, base units, few label values and no ids.

Knows names and numbers; is told by the driver what happened and reads gauges from the engine when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a small model's millisecond to TorchServe's own patience; fine where tails are decided.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 1.5, 2.5, 5, 10, 30, 120)


Labelled = TypeVar("Labelled", Counter, Histogram)


class ByLabels(Generic[Labelled]):
    """A metric whose children are remembered: `labels` of the library costs more than counting does."""

    def __init__(self, metric: Labelled) -> None:
        self._children: dict[tuple[str, ...], Labelled] = {}
        self._metric: Labelled = metric

    def labels(self, *values: str) -> Labelled:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


class Metrics:
    """Counters and histograms, and the gauges that `snapshot` (the engine's) holds at the moment of asking."""

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self.queries = ByLabels(
            Counter(
                "ts_parity_queries",
                "Queries that ended, by the source of the answer (none: no prediction) and how they ended.",
                ["source", "outcome"],
                registry=self.registry,
            )
        )
        self.query_seconds = ByLabels(
            Histogram(
                "ts_parity_query_seconds",
                "From a query's arrival to its answer. Compare the sources to choose reconstruct_after_s.",
                ["source"],
                buckets=_SECONDS,
                registry=self.registry,
            )
        )
        self.tasks = ByLabels(
            Counter(
                "ts_parity_tasks", "Tasks that ended, by kind and outcome.", ["kind", "outcome"], registry=self.registry
            )
        )
        self.work = ByLabels(
            Counter(
                "ts_parity_work",
                "Work sent, in deployed inferences: a query 1, a parity query 1, a backup 1 per member.",
                ["kind"],
                registry=self.registry,
            )
        )
        self.decode_failures = Counter(
            "ts_parity_decode_failures", "Raw outputs that could not be decoded.", registry=self.registry
        )
        self.finish_failures = Counter(
            "ts_parity_finish_failures", "Rebuilt outputs that no worker made an answer of.", registry=self.registry
        )
        self.passed_through = ByLabels(
            Counter(
                "ts_parity_passed_through",
                "Requests that did not go through the engine.",
                ["outcome"],
                registry=self.registry,
            )
        )
        self.registry.register(_EngineGauges(snapshot))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class _EngineGauges(Collector):
    def __init__(self, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        yield GaugeMetricFamily("ts_parity_in_flight", "Tasks in flight.", value=snapshot["in_flight"])
        yield GaugeMetricFamily("ts_parity_open_queries", "Queries without an answer yet.", snapshot["open_queries"])
        waiting = GaugeMetricFamily(
            "ts_parity_waiting", "Queries waiting for a place; see max_waiting.", labels=["pool"]
        )
        release = GaugeMetricFamily(
            "ts_parity_reconstruct_after_seconds", "In force now; see reconstruct_after_s.", labels=["pool"]
        )
        for name, pool in snapshot["pools"].items():
            waiting.add_metric([name], pool["waiting"])
            release.add_metric([name], pool["reconstruct_after_s"])
        yield waiting
        yield release
