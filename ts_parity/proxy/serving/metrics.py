"""The Prometheus metrics. One registry per proxy, base units, few label values and no ids.

To count is to add to a plain number; Prometheus' objects are made from these numbers when `/metrics` is read. The
driver counts events; gauges are read from the engine's snapshot at that moment. Knows names and numbers. Knows nothing
of queries or tasks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ts_parity.engine import Standing

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# From a small model's millisecond to TorchServe's own timeout; finest where tails lie.
_SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.4,
    0.6,
    1,
    1.5,
    2.5,
    5,
    10,
    30,
    120,
)
_BOUNDS: Final = (*(str(float(bound)) for bound in _SECONDS), "+Inf")


class Counter:
    """A counter: a number for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        # Without labels there is one number, which exists from the start.
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        values = self._values
        values[labels] = values.get(labels, 0.0) + by

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """A histogram of seconds by one label."""

    def __init__(self, name: str, text: str, label: str) -> None:
        self._name, self._text, self._label = name, text, label
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, label: str, seconds: float) -> None:
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * len(_BOUNDS)
            self._sums[label] = 0.0
        counts[bisect_left(_SECONDS, seconds)] += 1
        self._sums[label] += seconds

    def family(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for label, counts in self._counts.items():
            family.add_metric([label], [*zip(_BOUNDS, accumulate(counts), strict=True)], self._sums[label])
        return family


class Metrics(Collector):
    """Counters and histograms, and gauges from the engine's `snapshot` at the moment of reading."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        clients: Callable[[], tuple[int, int, int, int]] = lambda: (0, 0, 0, 0),
    ) -> None:
        """`clients`: connections now and at most; clients refused, and idle ones closed, for want of room."""
        self._snapshot = snapshot
        self._clients = clients
        self.queries = Counter(
            "ts_parity_queries",
            "Queries that ended, by the source of the answer (none: no prediction) and how they ended.",
            ["source", "outcome"],
        )
        self.query_seconds = Histogram(
            "ts_parity_query_seconds",
            "From a query's arrival to its answer. Compare the sources to choose reconstruct_after_s.",
            "source",
        )
        self.tasks = Counter("ts_parity_tasks", "Tasks that ended, by kind and outcome.", ["kind", "outcome"])
        self.work = Counter(
            "ts_parity_work",
            "Work sent, in deployed inferences: a query 1, a parity query 1, a backup 1 per member.",
            ["kind"],
        )
        self.comparisons = Counter(
            "ts_parity_comparisons",
            "Answers compared with the deployed model's own, of its protection or of second copies, by finding.",
            ["pool", "of", "finding"],
        )
        self.rebuilt = Counter(
            "ts_parity_rebuilt",
            "Rebuilt answers given, by whether their confidence is known.",
            ["pool", "confidence"],
        )
        self.differing = Counter(
            "ts_parity_expected_differing",
            "How many of those whose confidence is known are expected to differ from the deployed model's own.",
            ["pool"],
        )
        self.decode_failures = Counter("ts_parity_decode_failures", "Raw outputs that could not be decoded.")
        self.finish_failures = Counter("ts_parity_finish_failures", "Rebuilt outputs that no worker made an answer of.")
        self.passed_through = Counter(
            "ts_parity_passed_through", "Requests that did not go through the engine.", ["outcome"]
        )
        self.forwarded = Counter(
            "ts_parity_forwarded",
            "Queries that were forwarded to the proxy that serves their model; taken back: served here after all.",
            ["outcome"],
        )
        self.peers_alive: Callable[[], int] | None = None
        """Set where there are other proxies."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        yield self.queries.family()
        yield self.query_seconds.family()
        yield self.tasks.family()
        yield self.work.family()
        yield self.comparisons.family()
        yield self.rebuilt.family()
        yield self.differing.family()
        yield self.decode_failures.family()
        yield self.finish_failures.family()
        yield self.passed_through.family()
        if self.peers_alive is not None:
            yield self.forwarded.family()
            text = "Other proxies before this fleet that are alive, as each process sees it, added up."
            yield GaugeMetricFamily("ts_parity_peers_alive", text, value=self.peers_alive())
        now, most, refused, closed = self._clients()
        yield GaugeMetricFamily("ts_parity_client_connections", "Clients that are connected.", value=now)
        yield GaugeMetricFamily(
            "ts_parity_client_connections_limit", "As many as the limit of open files leaves for them.", value=most
        )
        turned_away = CounterMetricFamily(
            "ts_parity_clients_turned_away", "Clients over that limit: refused, or closed while idle.", labels=["how"]
        )
        turned_away.add_metric(["refused"], refused)
        turned_away.add_metric(["closed"], closed)
        yield turned_away
        yield from self._gauges()

    def _gauges(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        yield GaugeMetricFamily("ts_parity_in_flight", "Tasks in flight.", value=snapshot["in_flight"])
        yield GaugeMetricFamily("ts_parity_open_queries", "Queries without an answer yet.", snapshot["open_queries"])
        waiting = GaugeMetricFamily(
            "ts_parity_waiting", "Queries waiting for a place; see max_waiting.", labels=["pool"]
        )
        release = GaugeMetricFamily(
            "ts_parity_reconstruct_after_seconds", "In force now; see reconstruct_after_s.", labels=["pool"]
        )
        in_use = GaugeMetricFamily(
            "ts_parity_protection_in_use", "1: rebuilt answers may be given; 0: on trial or out.", labels=["pool"]
        )
        for name, pool in snapshot["pools"].items():
            if pool["trust"] is not None:
                in_use.add_metric([name], float(pool["trust"]["state"] == Standing.IN_USE.value))
            waiting.add_metric([name], pool["waiting"])
            release.add_metric([name], pool["reconstruct_after_s"])
        yield waiting
        yield release
        yield in_use
        yield from _of_endpoints(snapshot["endpoints"])


def _of_endpoints(endpoints: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
    """One series per endpoint of the present fleet; those of removed endpoints disappear."""
    labels = ["pool", "endpoint"]
    out = GaugeMetricFamily(
        "ts_parity_endpoint_out",
        "1: ejected, for the reason in /status; 0: in. With several processes, in how many of them it is ejected.",
        labels=labels,
    )
    busy = GaugeMetricFamily("ts_parity_endpoint_in_flight", "Tasks in flight at an endpoint.", labels=labels)
    failures = CounterMetricFamily(
        "ts_parity_endpoint_failures",
        "Tasks that it failed; three in a row eject it.",
        labels=labels,
    )
    ejections = CounterMetricFamily("ts_parity_endpoint_ejections", "How often it was ejected.", labels=labels)
    for name, endpoint in endpoints.items():
        values = [endpoint["pool"], name]
        out.add_metric(values, float(endpoint["health"] != "in"))
        busy.add_metric(values, endpoint["in_flight"])
        failures.add_metric(values, endpoint["failures"])
        ejections.add_metric(values, endpoint["ejections"])
    yield from (out, busy, failures, ejections)
