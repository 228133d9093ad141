"""Several processes' words as one's: what is added up, what is not, and that no counter ever falls."""

from __future__ import annotations

import random
from typing import Any

from ts_parity.proxy.operations.merge import (
    MetricFamilies,
    exposition,
    families_json,
    gauge,
    merge_metrics,
    merge_status,
    outlasting_metrics,
    outlasting_status,
    read_metrics,
)
from ts_parity.proxy.serving.durations import CountedDurations
from ts_parity.proxy.serving.exposition import ExposedFamily, exposed, written_labels
from ts_parity.proxy.serving.metrics import Counter, Histogram


class Process:
    """What a proxy would expose, with few numbers."""

    def __init__(self) -> None:
        self.queries = Counter("ts_parity_queries", "Queries that ended.", ["source"])
        self.seconds = Histogram("ts_parity_query_duration_seconds", "Text.", ["source"])
        self.seconds.begin("deployed")
        self.waiting = ExposedFamily("ts_parity_waiting", "gauge", "Text.")
        self.release = ExposedFamily("ts_parity_reconstruct_after_seconds", "gauge", "Text.")

    def families(self) -> list[ExposedFamily]:
        return [self.queries.family(), self.seconds.family(), self.waiting, self.release]

    def said(self) -> MetricFamilies:
        return read_metrics(families_json(self.families()))


def observe(histogram: Histogram, seconds: float, *labels: str) -> None:
    histogram.begin(*labels).add(CountedDurations([seconds]))


def value(families: MetricFamilies, sample: str, **labels: str) -> float:
    series = sample + written_labels(tuple(labels), tuple(labels.values()))
    return next(family.values[series] for family in families.values() if series in family.values)


def test_counters_and_histograms_are_added_up_by_their_labels():
    one, two = Process(), Process()
    one.queries.add("deployed", by=3)
    two.queries.add("deployed", by=4)
    two.queries.add('a "quoted"\n\\one')
    observe(one.seconds, 0.05, "deployed")
    observe(two.seconds, 0.5, "deployed")
    merged = merge_metrics([one.said(), two.said()])
    assert value(merged, "ts_parity_queries_total", source="deployed") == 7
    assert value(merged, "ts_parity_queries_total", source='a "quoted"\n\\one') == 1
    assert value(merged, "ts_parity_query_duration_seconds_bucket", source="deployed", le="0.1") == 1
    assert value(merged, "ts_parity_query_duration_seconds_bucket", source="deployed", le="+Inf") == 2
    assert value(merged, "ts_parity_query_duration_seconds_sum", source="deployed") == 0.55


def test_gauges_are_added_up_but_of_times_the_longest_counts():
    one, two = Process(), Process()
    for process, waiting, release in ((one, 2, 0.3), (two, 5, 0.2)):
        process.waiting.add('{pool="p"}', waiting)
        process.release.add('{pool="p"}', release)
    merged = merge_metrics([one.said(), two.said()])
    assert value(merged, "ts_parity_waiting", pool="p") == 7
    assert value(merged, "ts_parity_reconstruct_after_seconds", pool="p") == 0.3


def test_one_process_alone_is_exposed_as_it_exposes_itself():
    process = Process()
    process.queries.add('a "quoted"\n\\one', by=0.1)
    observe(process.seconds, 0.05, "deployed")
    process.waiting.add('{pool="p"}', 3)
    assert exposition(merge_metrics([process.said()]), openmetrics=True) == exposed(
        process.families(), openmetrics=True
    )


def test_what_a_process_has_counted_outlasts_it_and_what_it_held_does_not():
    process = Process()
    process.queries.add("deployed", by=3)
    observe(process.seconds, 0.05, "deployed")
    process.waiting.add('{pool="p"}', 9)
    left = outlasting_metrics(process.said())
    assert set(left) == {"ts_parity_queries", "ts_parity_query_duration_seconds"}
    successor = Process()
    successor.queries.add("deployed")
    assert value(merge_metrics([left, successor.said()]), "ts_parity_queries_total", source="deployed") == 4


def test_no_sum_falls_by_a_rounding_when_a_process_ends():
    """A sum that falls by its last bit is a restart to Prometheus, and the whole value is counted again."""
    dice = random.Random(1)
    processes, left = [Process() for _ in range(3)], [dict[str, Any]() for _ in range(3)]
    before = 0.0
    for _ in range(60):
        seat = dice.randrange(3)
        if dice.random() < 0.3:
            left[seat] = outlasting_metrics(merge_metrics([left[seat], processes[seat].said()]))
            processes[seat] = Process()
        else:
            observe(processes[seat].seconds, dice.choice([0.1, 0.7, 1e-9, 123.4]) * dice.random(), "deployed")
        merged = merge_metrics(merge_metrics([left[i], processes[i].said()]) for i in range(3))
        now = value(merged, "ts_parity_query_duration_seconds_sum", source="deployed")
        assert now >= before
        before = now


def test_a_gauge_of_our_own():
    assert exposition(gauge("ts_parity_processes", "Those that run.", 2)).decode().splitlines() == [
        "# HELP ts_parity_processes Those that run.",
        "# TYPE ts_parity_processes gauge",
        "ts_parity_processes 2.0",
    ]


def status(**changes: Any) -> dict[str, Any]:
    """What one process says, as `status_json` makes it."""
    endpoint = {"name": "h/m/1", "row": 0, "places": 2, "in_flight": 1, "health": "in", **changes.pop("endpoint", {})}
    return {
        "version": "1",
        "uptime_s": 5.0,
        "requests_in_flight": 1,
        "held": {"clients": 1, "tasks": 2},
        "problems": ["both see it"],
        "pools": {
            "m/1": {
                "code": {"name": "sum", "k": 2, "r": 1},
                "reason": "",
                "verdicts": ["codable"],
                "waiting": 3,
                "reconstruct_after_s": 0.1,
                "endpoints": [endpoint],
            }
        },
        "instances": [{"name": "h", "up": True, "places": 2, "models": [{"model": "m", "ready": 2}], "problem": ""}],
        "engine": {"load": 0.5, "sent": {"deployed": 4}, "answered": {"deployed": 3}, "failed": {}},
        **changes,
    }


def test_status_adds_what_each_has_and_keeps_what_all_agree_about():
    merged = merge_status([status(), status(uptime_s=7.0, problems=["both see it", "one sees it"])])
    pool = merged["pools"]["m/1"]
    assert merged["requests_in_flight"] == 2
    assert merged["held"] == {"clients": 2, "tasks": 4}
    assert merged["uptime_s"] == 7.0
    assert merged["problems"] == ["both see it", "one sees it"]
    assert (pool["waiting"], pool["reconstruct_after_s"]) == (6, 0.1)
    assert pool["code"] == {"name": "sum", "k": 2, "r": 1}
    assert pool["endpoints"] == [{"name": "h/m/1", "row": 0, "places": 4, "in_flight": 2, "health": "in"}]
    (instance,) = merged["instances"]
    assert (instance["up"], instance["places"], instance["models"]) == (True, 4, [{"model": "m", "ready": 2}])
    assert merged["engine"] == {"load": 0.5, "sent": {"deployed": 8}, "answered": {"deployed": 6}, "failed": {}}


def test_what_only_some_processes_know_is_there():
    other = status(pools={"n/1": {"code": None, "waiting": 1}}, endpoint={"health": "out"})
    merged = merge_status([status(), other])
    assert list(merged["pools"]) == ["m/1", "n/1"]
    assert merged["pools"]["n/1"] == {"code": None, "waiting": 1}
    worse = merge_status([status(), status(endpoint={"health": "out"}), status(endpoint={"health": "trial"})])
    assert worse["pools"]["m/1"]["endpoints"][0]["health"] == "out"


def test_the_engines_counts_outlast_a_process():
    merged = merge_status([status(), outlasting_status(status(requests_in_flight=9))])
    assert merged["requests_in_flight"] == 1
    assert merged["engine"]["answered"] == {"deployed": 6}
    assert merge_status([]) == {}


def test_of_trust_the_worst_is_believed_and_counts_are_added():
    first = {"state": "in use", "agreed": 20, "differed": 0, "unknown": 0, "failed": 1, "reason": ""}
    other = {"state": "out", "agreed": 3, "differed": 1, "unknown": 2, "failed": 0, "reason": "1 of 4 differed"}
    pools = [{"pools": {"m": {"trust": one, "copies": {"agreed": 1, "reason": ""}}}} for one in (first, other)]
    pools.append({"pools": {"m": {"trust": None, "copies": {"agreed": 2, "reason": "they contradict"}}}})
    merged = merge_status(pools)["pools"]["m"]
    assert merged["trust"] == {
        "state": "out", "agreed": 23, "differed": 1, "unknown": 2, "failed": 1, "reason": "1 of 4 differed",
    }  # fmt: skip
    assert merged["copies"] == {"agreed": 4, "reason": "they contradict"}


def test_processes_are_one_peer_and_what_they_forward_is_added_up():
    peers = [{"name": "http://b:8080", "state": "alive", "member": "b", "reason": "", "serves": ["m/1.0"]}]
    one = {"member": "a", "peers": peers, "served_by": {"m/1.0": "http://b:8080"}, "forwarded": 2}
    merged = merge_status([{"sharing": one}, {"sharing": {**one, "forwarded": 3}}])
    assert merged == {"sharing": {**one, "forwarded": 5}}
