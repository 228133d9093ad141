"""Merges the reports of several processes into one, as if one process had written it.

Pure: values in, values out. What an ended process has counted stays in the sums (`outlasting_...`): it did happen, and
a counter that decreased would look like a restart of the whole proxy. Knows which numbers may be added and which may
not. Knows nothing of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from ts_parity.proxy.serving.conditions import CONDITIONS

Json = dict[str, Any]

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels."""


@dataclass(frozen=True)
class MetricFamily:
    """A metric with all its label values."""

    name: str
    kind: str
    text: str
    values: Mapping[Series, float]
    exemplars: Mapping[Series, Exemplar] = field(default_factory=dict)


MetricFamilies = Mapping[str, MetricFamily]


def read_metrics(openmetrics: str) -> MetricFamilies:
    return {metric.name: _family(metric) for metric in text_string_to_metric_families(openmetrics)}  # type: ignore[no-untyped-call]


def _family(metric: Metric) -> MetricFamily:
    values, exemplars = {}, {}
    for sample in metric.samples:
        series = sample.name, tuple(sorted(sample.labels.items()))
        values[series] = sample.value
        if sample.exemplar is not None:
            exemplars[series] = sample.exemplar
    return MetricFamily(metric.name, metric.type, metric.documentation, values, exemplars)


def merge_metrics(parts: Iterable[MetricFamilies]) -> MetricFamilies:
    """Sums, from left to right; but the longest of times, and the largest of ratios."""
    merged: dict[str, MetricFamily] = {}
    for part in parts:
        for name, family in part.items():
            before = merged[name].values if name in merged else {}
            exemplars = merged[name].exemplars if name in merged else {}
            values = dict(before)
            rule = _rule(family)
            for series, value in family.values.items():
                values[series] = rule(before[series], value) if series in before else value
            merged[name] = MetricFamily(name, family.kind, family.text, values, {**exemplars, **family.exemplars})
    return merged


def outlasting_metrics(families: MetricFamilies) -> MetricFamilies:
    """The part of a report that stays true when its process has ended."""
    return {name: family for name, family in families.items() if _is_cumulative(family)}


def exposition(families: MetricFamilies, openmetrics: bool = False) -> bytes:
    registry = CollectorRegistry()
    registry.register(_MergedMetrics(families))
    if openmetrics:
        return bytes(generate_openmetrics(registry))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def gauge(name: str, text: str, value: float) -> MetricFamilies:
    return {name: MetricFamily(name, "gauge", text, {(name, ()): float(value)})}


def _rule(family: MetricFamily) -> Callable[[float, float], float]:
    if not _is_cumulative(family) and family.name.endswith(("_seconds", "_ratio", "_info")):
        return max
    return float.__add__


def _is_cumulative(family: MetricFamily) -> bool:
    return family.kind in ("counter", "histogram", "summary")


class _MergedMetrics(Collector):
    def __init__(self, families: MetricFamilies) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families.values():
            metric = Metric(family.name, family.text, family.kind)
            metric.samples = [
                Sample(series[0], dict(series[1]), value, exemplar=family.exemplars.get(series))
                for series, value in family.values.items()
            ]
            yield metric


_ADDED = {
    *("requests_in_flight", "clients", "tasks"),
    *("in_flight", "open_queries", "retry_tokens", "waiting", "open_groups", "late", "queued_protections"),
    *("places", "model_places", "failures", "ejections", "work_tokens", "work_spent", "expected", "budget_left"),
    "forwarded",
}
_COUNTS = ("sent", "answered", "failed")
# From best to worst: an operator should see what any one process finds wrong.
_HEALTH = ("in", "trial", "out")
_STANDINGS = ("in use", "on trial", "out")


def merge_status(parts: Sequence[Json]) -> Json:
    """Numbers of queries, tasks and places are added; of values that all should share, the first is taken."""
    merged: Json = _merge("", list(parts)) or {}
    return merged


def outlasting_status(status: Json) -> Json:
    return {"engine": {name: status["engine"].get(name, {}) for name in _COUNTS}}


def merge_health(parts: Sequence[Json]) -> Json:
    """The best one: a single process that can serve is enough."""
    best = [part for status in ("healthy", "degraded") for part in parts if part["status"] == status]
    if best:
        return best[0]
    reasons = dict.fromkeys(str(part.get("reason", "")) for part in parts)
    return {"status": "unhealthy", "reason": "; ".join(reasons) or "no process runs"}


def _merge(key: str, values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if key in _ADDED:
        return sum(known)
    if key in _COUNTS:
        return {name: sum(counts.get(name, 0) for counts in known) for name in _keys(known)}
    if key.endswith("_s"):
        return max(known)
    if key == "load":
        return round(sum(known) / len(known), 3)
    if key == "up":
        return any(known)
    if key == "why_out":
        return next(filter(None, known), "")
    if key == "health":
        return max(known, key=lambda health: _HEALTH.index(health) if health in _HEALTH else -1)
    if key in ("trust", "copies"):
        return _merge_trust(known)
    if key == "condition":
        return max(known, key=lambda one: CONDITIONS.index(one["state"]))
    if key in ("speed", "slowness", "slower", "largest_body"):
        return max(known)
    if isinstance(first, dict):
        # A process without a code for a pool reports None and a reason; both are taken from the first process.
        return values[0] if key == "code" else {k: _merge(k, [v[k] for v in known if k in v]) for k in _keys(known)}
    if isinstance(first, list):
        return _merge_lists(known)
    return values[0]


def _merge_trust(standings: list[Json]) -> Json:
    """Each process compares answers itself: their counts are added, and the worst standing is taken."""
    worst = max(standings, key=lambda one: (_STANDINGS.index(one.get("state", _STANDINGS[0])), bool(one["reason"])))
    return {key: sum(one[key] for one in standings) if isinstance(worst[key], int) else worst[key] for key in worst}


def _merge_lists(lists: list[list[Any]]) -> list[Any]:
    """Named items are merged by name; of texts each is kept once; otherwise the first list is taken."""
    items = [item for items in lists for item in items]
    if all(isinstance(item, dict) and "name" in item for item in items):
        names = dict.fromkeys(item["name"] for item in items)
        return [_merge("", [item for item in items if item["name"] == name]) for name in names]
    if all(isinstance(item, str) for item in items):
        return list(dict.fromkeys(items))
    return lists[0]


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
