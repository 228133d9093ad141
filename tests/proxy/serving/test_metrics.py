"""Metrics: names and units as Prometheus wants them, every label value from the start, and never too many."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.proxy.conftest import Fleet, MakeFleet
from ts_parity.engine import Fleet as EngineFleet
from ts_parity.engine import Policy, Scheduler
from ts_parity.proxy.operations.merge import exposition, families_json, merge_metrics, read_metrics
from ts_parity.proxy.serving.metrics import (
    ENDS,
    ERRORS,
    MANY,
    MOST_ENDPOINTS,
    MOST_POOLS,
    OTHER,
    SOURCES,
    Labels,
    Metrics,
)
from ts_parity.testing import FakeModel, FakeTorchServe

OPENMETRICS = (("Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"),)
UNITS = ("seconds", "bytes", "ratio", "info")


def metrics() -> Metrics:
    return Metrics(Scheduler(EngineFleet((), (), ()), Policy()).snapshot, Policy())


async def read(fleet: Fleet) -> str:
    answer = await fleet.admin.ask("GET", "/metrics", headers=OPENMETRICS)
    assert "application/openmetrics-text; version=1.0.0" in (answer.get("content-type") or "")
    return answer.body.decode()


async def test_openmetrics_on_request_with_the_request_id_of_a_late_query(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    await fleet.posts(3)
    fleet.proxy.metrics.exemplar("linear/1.0", "deployed", 0.42, "mine-7")
    fleet.proxy.metrics.exemplar("linear/1.0", "hedged", 0.42, "too long" * 40)
    samples = [s for family in text_string_to_metric_families(await read(fleet)) for s in family.samples]  # type: ignore[no-untyped-call]
    (told,) = [sample for sample in samples if sample.exemplar is not None]
    assert told.name == "ts_parity_query_duration_seconds_bucket"
    assert (told.labels["le"], told.labels["source"]) == ("0.6", "deployed")
    assert (told.exemplar.labels, told.exemplar.value) == ({"request_id": "mine-7"}, 0.42)
    plain = await fleet.admin.get("/metrics")
    assert plain.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert b"mine-7" not in plain.body


async def test_exemplars_outlast_the_way_through_a_parent(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    fleet.proxy.metrics.exemplar("linear/1.0", "deployed", 0.42, '"mine" # {7} \\')
    told = json.loads(json.dumps(families_json(fleet.proxy.metrics.families())))
    merged = merge_metrics([read_metrics(told), read_metrics(told)])
    assert b'{request_id="\\"mine\\" # {7} \\\\"} 0.42 ' in exposition(merged, openmetrics=True)


async def test_names_and_units_are_prometheus_own(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    for family in text_string_to_metric_families(await read(fleet)):  # type: ignore[no-untyped-call]
        assert re.fullmatch("(ts_parity|process)_[a-z_]+", family.name)
        assert family.documentation.endswith((".", "none.")), family.name
        if family.type == "histogram":
            assert family.name.endswith("_duration_seconds")
        for word in ("_ms", "_milliseconds", "_percent", "_count"):
            assert not family.name.endswith(word)
        assert family.type != "gauge" or not family.name.endswith("_total")


async def test_every_label_value_is_there_before_anything_happens(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    text = await read(fleet)
    for source in SOURCES:
        assert f'ts_parity_queries_total{{outcome="answered",pool="linear/1.0",source="{source}"}} 0' in text
        assert f'ts_parity_query_duration_seconds_count{{pool="linear/1.0",source="{source}"}} 0' in text
    for error in ERRORS:
        assert f'ts_parity_queries_total{{outcome="{error}",pool="linear/1.0",source="none"}} 0' in text
    for end in ENDS:
        assert f'ts_parity_tasks_total{{kind="protection",outcome="{end}",pool="linear/1.0"}} 0' in text
    assert 'ts_parity_agreement_total{finding="differed",pool="linear/1.0",source="reconstructed"} 0' in text
    assert 'ts_parity_unprotected_duration_seconds_count{pool="linear/1.0"} 0' in text
    assert re.search(r'ts_parity_build_info\{compiled="(yes|no)",python="3\.\d+\.\d+",version="[\d.]+"\} 1\.0', text)
    before = set(re.findall(r"^(ts_parity_\S+) ", text, re.MULTILINE))
    await fleet.posts(4)
    assert set(re.findall(r"^(ts_parity_\S+) ", await read(fleet), re.MULTILINE)) == before


async def test_an_endpoint_has_its_own_latencies_and_state(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()))
    await fleet.posts(6)
    text = await read(fleet)
    counts = re.findall(r'ts_parity_endpoint_duration_seconds_count\{endpoint="(\S+?)",pool="linear/1.0"\} (\S+)', text)
    assert sorted(float(count) for _, count in counts) == [3.0, 3.0]
    for name in dict(counts):
        assert f'ts_parity_endpoint_state{{endpoint="{name}",pool="linear/1.0",state="serving"}} 1.0' in text
        assert f'ts_parity_endpoint_places{{endpoint="{name}",pool="linear/1.0"}} 1.0' in text


def test_a_name_may_hold_what_a_text_with_room_for_numbers_reads_as_such() -> None:
    told = metrics()
    told.adopt(["50%d/1"], {"h/50%d/1": ("50%d/1", "deployed")})
    told.answered("50%d/1", "hedged", 0.01)
    assert told.arrived("h/50%d/1", 0.01)
    lines = told.exposition().decode().splitlines()
    assert 'ts_parity_queries_total{outcome="answered",pool="50%d/1",source="hedged"} 1.0' in lines
    assert 'ts_parity_query_duration_seconds_sum{pool="50%d/1",source="hedged"} 0.01' in lines
    assert 'ts_parity_endpoint_duration_seconds_bucket{endpoint="h/50%d/1",le="0.01",pool="50%d/1"} 1.0' in lines
    assert 'ts_parity_endpoint_duration_seconds_bucket{endpoint="h/50%d/1",le="0.005",pool="50%d/1"} 0.0' in lines


def test_counted_together_or_read_at_once_is_the_same() -> None:
    told = metrics()
    told.adopt(["m/1"], {"h/m/1": ("m/1", "deployed")})
    told.answered("m/1", "deployed", 0.01)
    told.answered("m/1", "deployed", 0.02)
    assert told.arrived("h/m/1", 0.01)
    first = told.exposition()
    assert b'ts_parity_queries_total{outcome="answered",pool="m/1",source="deployed"} 2.0' in first
    assert b'ts_parity_tasks_total{kind="deployed",outcome="arrived",pool="m/1"} 1.0' in first
    assert b'ts_parity_work_total{kind="deployed",pool="m/1"} 1.0' in first
    told.settle(0.0, 0.0)
    assert told.exposition().split(b"# HELP process_")[0] == first.split(b"# HELP process_")[0]


def recent(told: Metrics) -> dict[int, int]:
    """Slot -> answers."""
    slots = told.recent.described(())
    return {slot["number"]: sum(n for counts in slot["given"].values() for _, n in counts) for slot in slots}


def test_answers_are_counted_when_their_slot_is_over_and_in_it() -> None:
    now = [100.5]
    told = Metrics(Scheduler(EngineFleet((), (), ()), Policy()).snapshot, Policy(), clock=lambda: now[0])
    told.adopt(["m/1"], {})
    for now[0] in (101.5, 104.5):
        told.answered("m/1", "deployed", 0.01)
        told.settle(0.0, 0.0)
        assert recent(told) == {20: 0}
    now[0] = 105.5
    told.settle(0.0, 0.0)
    assert recent(told) == {20: 2, 21: 0}
    told.answered("m/1", "deployed", 0.01)
    told.count()
    assert recent(told) == {20: 2, 21: 1}, "who looks sees all"


def test_many_are_counted_at_once() -> None:
    told = Metrics(Scheduler(EngineFleet((), (), ()), Policy()).snapshot, Policy(), clock=lambda: 100.0)
    told.adopt(["m/1"], {"h/m/1": ("m/1", "deployed")})
    told.count()
    for number, counted in ((MANY - 1, 0), (1, MANY)):
        for _ in range(number):
            told.answered("m/1", "deployed", 0.01)
            told.arrived("h/m/1", 0.01)
        told.settle(0.0, 0.0)
        assert told.queries.value("m/1", "deployed", "answered") == counted
        assert told.tasks.value("m/1", "deployed", "arrived") == counted


def test_what_has_gone_is_counted_all_the_same() -> None:
    told = metrics()
    told.answered("gone/1", "deployed", 0.01)
    assert not told.arrived("h/gone/1", 0.01)
    told.count()
    assert told.queries.value(OTHER, "deployed", "answered") == 1


def test_models_beyond_the_limit_are_counted_as_others_and_gone_ones_make_room() -> None:
    told = metrics()
    names = [f"m{n}/1" for n in range(MOST_POOLS + 5)]
    told.adopt(names, {})
    assert told.pool(names[0]) == names[0]
    assert told.pool(names[-1]) == OTHER
    told.answered(names[-1], "deployed", 0.01)
    assert b'pool="other",source="deployed"} 1.0' in told.exposition()
    told.adopt([*names[1:MOST_POOLS], "new/1"], {})
    assert told.pool("new/1") == "new/1"
    assert told.pool(names[0]) == OTHER
    assert f'pool="{names[0]}"'.encode() not in told.exposition()
    assert b'pool="other",source="deployed"} 1.0' in told.exposition(), "what was counted stays"


def test_endpoints_beyond_the_limit_are_others_also_if_they_were_not_before() -> None:
    told = metrics()
    for first in (0, 5):
        told.adopt(["m/1"], {f"h{n}/m/1": ("m/1", "deployed") for n in range(first, first + MOST_ENDPOINTS)})
        told.adopt(["m/1"], {f"h{n}/m/1": ("m/1", "deployed") for n in range(MOST_ENDPOINTS + 5)})
    lines = re.findall(r"ts_parity_endpoint_duration_seconds_count.*", told.exposition().decode())
    assert len(lines) == MOST_ENDPOINTS + 1


def test_nothing_is_kept_of_models_that_never_had_a_label() -> None:
    told = metrics()
    for day in range(3):
        told.adopt([f"m{n}/{day}" for n in range(MOST_POOLS + 5)], {})
    assert {len(lists) for lists in told._answered.values()} == {MOST_POOLS + 5 + 1}


def test_a_model_that_is_gone_for_a_while_goes_on_counting() -> None:
    told = metrics()
    told.adopt(["m/1"], {})
    told.answered("m/1", "deployed", 0.01)
    told.adopt([], {})
    told.adopt(["m/1"], {})
    told.answered("m/1", "deployed", 0.01)
    assert b'ts_parity_queries_total{outcome="answered",pool="m/1",source="deployed"} 2.0' in told.exposition()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_labels_never_exceed_their_number(most: int) -> None:
    labels = Labels(most)
    for present in (["a", "b", "c"], ["c", "d"], [], ["e", "a", "b", "c", "d"]):
        labels.adopt(present)
        assert len({label for label in labels.of.values() if label != OTHER}) <= most
        assert set(present) <= set(labels.of)
