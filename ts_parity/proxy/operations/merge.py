"""Merges the reports of several processes into one, as if one process had written it.

Pure: values in, values out. What an ended process has counted stays in the sums (`outlasting_...`): it did happen, and
a counter that decreased would look like a restart of the whole proxy. Knows which numbers may be added and which may
not. Knows nothing of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_parity.proxy.serving.conditions import CONDITIONS
from ts_parity.proxy.serving.exposition import ExposedExemplar, ExposedFamily, exposed

Json = dict[str, Any]

Series = str
"""A sample's name and its labels, as they are written."""


@dataclass(frozen=True)
class MetricFamily:
    """A metric with all its label values."""

    name: str
    kind: str
    text: str
    values: Mapping[Series, float]
    exemplars: Mapping[Series, ExposedExemplar] = field(default_factory=dict)


MetricFamilies = Mapping[str, MetricFamily]


def families_json(families: Iterable[ExposedFamily]) -> list[Json]:
    """For `read_metrics` in another process. Not as Prometheus gets them: what clients call their requests stands in
    exemplars, and not every parser reads all of it.
    """
    return [
        {
            "name": family.name,
            "kind": family.kind,
            "text": family.text,
            "lines": "".join(family.written),
            "exemplars": {_series(family.written[at]): example for at, example in family.exemplars.items()},
        }
        for family in families
    ]


def read_metrics(told: Iterable[Json]) -> MetricFamilies:
    """As `families_json` tells them."""
    return {
        each["name"]: MetricFamily(
            each["name"],
            each["kind"],
            each["text"],
            {_series(line): float(line.rpartition(" ")[2]) for line in each["lines"].split("\n")[:-1]},
            {series: ExposedExemplar(*example) for series, example in each["exemplars"].items()},
        )
        for each in told
    }


def _series(line: str) -> Series:
    return line.rpartition(" ")[0]


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


def told_no_more(before: MetricFamilies, now: MetricFamilies) -> MetricFamilies:
    """What a process had counted of endpoints and models that it has lost since, even if they are back: it counts them
    from 0 again. Its siblings may still have them, and in the sum that would look as if all had begun again.
    """
    lost = {}
    for name, family in outlasting_metrics(before).items():
        there = now[name].values if name in now else {}
        values = {
            series: family.values[series]
            for block in _blocks(family)
            if any(there.get(series, 0.0) < family.values[series] for series in block)
            for series in block
        }
        if values:
            lost[name] = replace(family, values=values, exemplars={})
    return lost


def still_told(left: MetricFamilies, told: Sequence[MetricFamilies]) -> MetricFamilies:
    """Of what is left of earlier reports: what no process has any more is not shown, as one alone does not show it."""
    there = {series for families in told for family in families.values() for series in family.values}
    if not there:
        return left
    return {
        name: replace(
            family, values={series: value for series, value in family.values.items() if not _goes(series, there)}
        )
        for name, family in left.items()
    }


def _goes(series: Series, there: Container[Series]) -> bool:
    """Series of models and endpoints are there from the first moment on; others, when they are first counted."""
    return series not in there and 'pool="' in series


def _blocks(family: MetricFamily) -> Iterator[list[Series]]:
    """Series that begin together: all of a histogram, of which the sum is written last."""
    block: list[Series] = []
    for series in family.values:
        block.append(series)
        if family.kind != "histogram" or series.startswith(f"{family.name}_sum"):
            yield block
            block = []


def exposition(families: MetricFamilies, openmetrics: bool = False) -> bytes:
    return exposed(map(_exposed_family, families.values()), openmetrics)


def _exposed_family(family: MetricFamily) -> ExposedFamily:
    shown = ExposedFamily(family.name, family.kind, family.text)
    for at, (series, value) in enumerate(family.values.items()):
        shown.written.append(f"{series} {value!r}\n")
        if series in family.exemplars:
            shown.exemplars[at] = family.exemplars[series]
    return shown


def gauge(name: str, text: str, value: float) -> MetricFamilies:
    return {name: MetricFamily(name, "gauge", text, {name: float(value)})}


def _rule(family: MetricFamily) -> Callable[[float, float], float]:
    if not _is_cumulative(family) and family.name.endswith(("_seconds", "_ratio", "_info")):
        return max
    return float.__add__


def _is_cumulative(family: MetricFamily) -> bool:
    return family.kind in ("counter", "histogram", "summary")


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
