"""Spans of late, rescued and failed queries, as a real OTLP receiver gets them; whoever serves the query."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from pathlib import Path

import pytest

from tests.proxy.collector import Collector, Told
from tests.proxy.conftest import Clock, Fleet, MakeFleet, until
from tests.proxy.fleet.backends.servers import PlainServer, triton
from tests.proxy.serving.sharing import Sharing, sharing
from tests.proxy.serving.test_races import fleet_of_three, metric, race, rescued, thawed
from ts_parity.config import parse_endpoint
from ts_parity.errors import ConfigError
from ts_parity.proxy.fleet.payloads import Ask
from ts_parity.proxy.serving import spans, tracing
from ts_parity.proxy.serving.tracing import route_of
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"


# ---- what is told --------------------------------------------------------------------------------------------------


async def test_a_rescued_query_is_told_with_its_whole_race(
    collector: Collector, make_fleet: MakeFleet, clock: Clock, tmp_path: Path
) -> None:
    log = tmp_path / "access.jsonl"
    fleet = await rescued(make_fleet, fleet_of_three(), more={"tracing": True, "access_log": str(log)})
    root, (protected,) = await collector.got(2)
    assert (root.name, root.parent, root.failed) == ("POST /predictions/{model}", "", False)
    host, port = fleet.client.host, fleet.client.port
    late_by_s = root.attributes.pop("ts_parity.late_by_s")
    assert 0 < late_by_s < (root.ended - root.began) / 1e9
    assert root.attributes.pop("ts_parity.query") > 0
    assert root.attributes == {
        "http.request.method": "POST", "url.scheme": "http", "url.path": "/predictions/linear",
        "http.route": "/predictions/{model}", "server.address": host, "server.port": port,
        "http.response.status_code": 200, "http.request.header.x-request-id": ["mine"],
        "ts_parity.pool": "linear/1.0", "ts_parity.source": "reconstructed",
    }  # fmt: skip
    assert protected.task == ("protection", "won")
    assert protected.name == "POST protection"
    where = fleet.instances[2].inference.removeprefix("http://")
    assert protected.attributes["server.address"] + f":{protected.attributes['server.port']}" == where
    assert protected.attributes["ts_parity.endpoint"] == f"{where}/linear_parity/1.0"
    assert root.began <= protected.began <= protected.ended <= root.ended + 1_000_000
    clock.advance(5.0)
    await thawed(fleet)
    _, (own, _) = await collector.got(3)
    assert own.task == ("own", "lost")
    assert own.events == ["ts_parity.lost_race"]
    assert own.attributes["http.response.status_code"] == 200
    assert own.ended - own.began >= 5e9

    fleet.proxy._server.access.flush()
    (line,) = [each for each in map(json.loads, log.read_text().splitlines()) if each.get("request_id") == "mine"]
    openmetrics = (("Accept", "application/openmetrics-text"),)
    exemplars = (await fleet.admin.ask("GET", "/metrics", headers=openmetrics)).body.decode()
    assert line["trace_id"] == (await race(fleet))["trace_id"] == root.trace_id
    assert f'# {{request_id="mine",trace_id="{root.trace_id}"}}' in exemplars
    assert await metric(fleet, 'ts_parity_spans_total{outcome="sent"}') == 3


async def test_a_parity_model_is_told_with_its_decoding_and_its_finish(
    collector: Collector, make_fleet: MakeFleet
) -> None:
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]
    fleet = await make_fleet(*instances, tracing=True)
    instances[0].freeze()
    await fleet.posts(2)
    await until(lambda: len(collector.spans) >= 3, "its spans")
    (root,) = [span for span in collector.spans if span.attributes.get("ts_parity.source") == "reconstructed"]
    tasks = [span for span in collector.spans if span.parent == root.id]
    assert root.events[0] == "ts_parity.decoded"
    assert ("protection", "arrived") in {span.task for span in tasks}
    assert ("finish", "won") in {span.task for span in tasks}
    await thawed(fleet)
    await until(lambda: any(span.parent == root.id and span.task == ("own", "lost") for span in collector.spans), "own")


async def test_a_query_that_had_failed_and_was_rescued_is_told(collector: Collector, make_fleet: MakeFleet) -> None:
    """Its own task is over, so nothing of it is out."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]
    fleet = await make_fleet(*instances, tracing=True, max_attempts=1, reconstruct_after_s=60.0)
    instances[0].models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
    answers = await fleet.posts(2)
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
    await until(lambda: any(not span.parent for span in collector.spans), "the query's span")
    (root,) = [span for span in collector.spans if not span.parent]
    assert root.attributes["ts_parity.source"] == "reconstructed"


async def test_a_second_copy_is_told_beside_the_first(collector: Collector, make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel(role=None)), FakeTorchServe(FakeModel(role=None))]
    rules = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.01, "reconstruct_after_s": 0.01}
    fleet = await make_fleet(*instances, tracing=True, **rules)
    instances[0].freeze()
    while (await fleet.post(x_request_id="mine")).get("x-ts-parity") != "hedged":
        pass
    instances[0].thaw()

    def copied() -> list[list[Told]]:
        roots = [span.id for span in collector.spans if span.attributes.get("ts_parity.source") == "hedged"]
        return [[span for span in collector.spans if span.parent == root] for root in roots]

    await until(lambda: any(len(tasks) == 2 for tasks in copied()), "own task and copy")
    own, copy = sorted(next(tasks for tasks in copied() if len(tasks) == 2), key=lambda span: span.task, reverse=True)
    assert (own.task, copy.task) == (("own", "lost"), ("copy", "won"))
    assert copy.attributes["http.request.resend_count"] == 1


async def test_a_failed_query_is_told_with_each_attempt(collector: Collector, make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances, tracing=True, max_attempts=2)
    for instance in instances:
        instance.models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
    assert (await fleet.post()).status == 507
    root, (first, second) = await collector.got(3)
    assert root.failed
    assert (root.attributes["http.response.status_code"], root.attributes["error.type"]) == (507, "failed")
    assert (first.task, second.task) == (("own", "failed"), ("retry", "failed"))
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.request.resend_count"] == 1
    for span in (first, second):
        assert (span.failed, span.why) == (True, "507 Worker died.")
        assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("worker died", 507)


async def test_a_query_that_nothing_answered_in_time_is_told(collector: Collector, make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True)
    instance.freeze()
    assert (await fleet.post(x_ts_parity_deadline_ms="30")).status == 504
    root, _ = await collector.got(1)
    assert (root.attributes["error.type"], root.attributes["http.response.status_code"]) == ("deadline", 504)
    instance.thaw()
    _, (own,) = await collector.got(2)
    assert own.task == ("own", "lost")


async def test_an_answer_that_took_far_longer_than_usual_is_late_though_nothing_helped(
    collector: Collector, make_fleet: MakeFleet, clock: Clock
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True, reconstruct_after_s=1.0)
    instance.freeze()
    asked = asyncio.ensure_future(fleet.post())
    await until(lambda: len(instance.received) == 1, "the query to be sent")
    clock.advance(3.0)
    instance.thaw()
    await asked
    root, (own,) = await collector.got(2)
    assert root.attributes["ts_parity.late_by_s"] >= 2.0
    assert own.task == ("own", "won")


async def test_a_client_that_leaves_is_told(collector: Collector, make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True)
    instance.freeze()
    leaving = asyncio.ensure_future(fleet.post(traceparent=SAMPLED))
    await until(lambda: len(instance.received) == 1, "the query to be sent")
    leaving.cancel()
    root, _ = await collector.got(1)
    assert (root.trace_id, root.attributes["error.type"], root.failed) == (TRACE_ID, "client_left", True)
    assert root.attributes["http.response.status_code"] == 499
    instance.thaw()
    _, (own,) = await collector.got(2)
    assert own.task == ("own", "lost")


async def test_ordinary_queries_are_not_told(collector: Collector, make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tracing=True, reconstruct_after_s=30.0)
    await fleet.posts(3)
    await fleet.post(traceparent=SAMPLED[:-1] + "0")
    await fleet.client.get("/ping")
    await fleet.proxy.close()
    assert collector.spans == []


# ---- the client's own trace ----------------------------------------------------------------------------------------


async def test_who_samples_gets_a_span_of_each_query_and_the_instance_sees_the_clients_header(
    collector: Collector, make_fleet: MakeFleet
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True, reconstruct_after_s=30.0)
    await fleet.post("/predictions/linear/1.0", traceparent=SAMPLED, tracestate="rojo=00f067aa0ba902b7")
    root, (own,) = await collector.got(2)
    assert (root.trace_id, root.parent, root.state) == (TRACE_ID, SPAN_ID, "rojo=00f067aa0ba902b7")
    assert (root.name, own.task) == ("POST /predictions/{model}/{version}", ("own", "won"))
    assert own.attributes["http.response.status_code"] == 200
    assert "ts_parity.late_by_s" not in root.attributes
    assert instance.received[-1].header("traceparent") == SAMPLED


@pytest.mark.parametrize(
    "given",
    ["00-nonsense", SAMPLED.upper(), f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01", f"{SAMPLED}-x",
     f"{SAMPLED},{SAMPLED}", f"ff{SAMPLED[2:]}"],
)  # fmt: skip
async def test_a_malformed_traceparent_begins_a_new_trace(
    collector: Collector, make_fleet: MakeFleet, given: str
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True, max_attempts=1)
    instance.models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
    await fleet.post(traceparent=given)
    root, _ = await collector.got(2)
    assert (root.parent, root.state) == ("", "")
    assert root.trace_id not in (TRACE_ID, "0" * 32)
    assert instance.received[-1].header("traceparent") == given


async def test_one_that_is_late_stays_in_its_clients_trace_sampled_or_not(
    collector: Collector, make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True)
    instance.freeze()
    await fleet.post(x_ts_parity_deadline_ms="30", traceparent=SAMPLED[:-1] + "0", tracestate="no state, at all")
    root, _ = await collector.got(1)
    assert (root.trace_id, root.parent) == (TRACE_ID, SPAN_ID)
    assert not [record for record in caplog.records if "no state" in record.getMessage()], "no client fills the log"
    instance.thaw()


def test_routes_have_few_values() -> None:
    assert route_of("/predictions/linear", Ask("linear")) == "/predictions/{model}"
    extra = Ask("linear", "1.0", "/a/b")
    assert route_of("/predictions/linear/1.0/a/b", extra) == "/predictions/{model}/{version}/{path}"
    whole = Ask("m", None, "/v1/embeddings")
    assert route_of("/v1/embeddings", whole) == "/v1/embeddings", "the model stands in the body"
    assert route_of("/v2/models/my%20net/infer", Ask("my net")) == "/v2/models/{model}/infer"


# ---- what is passed through --------------------------------------------------------------------------------------


INFER = "/v2/models/big/infer"


async def passed(fleet: Fleet, **headers: str) -> int:
    """It may be one of a sequence, so it is passed through. -> the status."""
    return (await fleet.post(INFER, gzip.compress(b"{}"), content_encoding="gzip", **headers)).status


async def test_a_passed_through_query_that_fails_is_told(
    collector: Collector, make_fleet: MakeFleet, tmp_path: Path
) -> None:
    log = tmp_path / "access.jsonl"
    async with PlainServer(triton("big")) as server:
        fleet = await make_fleet(given=(parse_endpoint(server.endpoint),), tracing=True, access_log=str(log))
        assert await passed(fleet) == 200
        server.script.append((500, {"error": "broken"}))
        given = SAMPLED[:-1] + "0"
        assert await passed(fleet, traceparent=given) == 500
        root, (own,) = await collector.got(2)
        assert server.received[-1][2]["traceparent"] == given
    assert (root.trace_id, root.parent, root.failed) == (TRACE_ID, SPAN_ID, True)
    assert root.name == "POST /v2/models/{model}/infer"
    assert {name: root.attributes[name] for name in ("ts_parity.pool", "ts_parity.source", "error.type")} == {
        "ts_parity.pool": "big", "ts_parity.source": "passed", "error.type": "500",
    }  # fmt: skip
    assert "ts_parity.query" not in root.attributes
    assert (own.task, own.failed, own.why) == (("own", "won"), True, "500 Internal Server Error")
    assert own.attributes["ts_parity.endpoint"] == server.name
    fleet.proxy._server.access.flush()
    assert [json.loads(line)["trace_id"] for line in log.read_text().splitlines()] == [None, TRACE_ID]


async def test_each_instance_that_cannot_be_reached_is_told(collector: Collector, make_fleet: MakeFleet) -> None:
    async with PlainServer(triton("big")) as one, PlainServer(triton("big")) as two:
        fleet = await make_fleet(given=(parse_endpoint(one.endpoint), parse_endpoint(two.endpoint)), tracing=True)
        await one.stop()
        await two.stop()
        assert await passed(fleet) == 503
    root, (first, second) = await collector.got(3)
    assert (root.attributes["ts_parity.source"], root.attributes["error.type"]) == ("none", "unavailable")
    assert (first.task, second.task) == (("own", "failed"), ("retry", "failed"))
    assert {span.attributes["error.type"] for span in (first, second)} == {"unreachable"}
    assert second.attributes["http.request.resend_count"] == 1


async def test_a_client_that_leaves_what_is_passed_through_is_told(collector: Collector, make_fleet: MakeFleet) -> None:
    async with PlainServer(triton("big")) as server:
        fleet = await make_fleet(given=(parse_endpoint(server.endpoint),), tracing=True)
        server.held.add(INFER)
        leaving = asyncio.ensure_future(passed(fleet))
        await until(lambda: len(server.asked(f"POST {INFER}")) == 1, "the query to be sent")
        leaving.cancel()
        root, (own,) = await collector.got(2)
    assert (root.attributes["error.type"], root.attributes["http.response.status_code"]) == ("client_left", 499)
    assert own.task == ("own", "cancelled")


async def test_a_prediction_of_a_model_that_is_not_ready_is_told_at_its_deadline(
    collector: Collector, make_fleet: MakeFleet
) -> None:
    instance = FakeTorchServe(FakeModel(warms_up="loading"))
    fleet = await make_fleet(instance, tracing=True)
    instance.freeze()
    assert (await fleet.post(x_ts_parity_deadline_ms="30")).status == 504
    root, (own,) = await collector.got(2)
    assert root.attributes["error.type"] == "deadline"
    assert (own.task, own.why) == (("own", "failed"), "no answer in time")


async def test_what_has_no_route_is_named_by_its_method(collector: Collector, make_fleet: MakeFleet) -> None:
    """Such paths may name anything, so a name for each would be too many."""
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    await fleet.client.ask("GET", "/ping", headers=(("traceparent", SAMPLED),))
    root, (own,) = await collector.got(2)
    assert (root.name, root.attributes["url.path"], own.task) == ("GET", "/ping", ("own", "won"))
    assert {"http.route", "ts_parity.pool"} & root.attributes.keys() == set()


# ---- several proxies ---------------------------------------------------------------------------------------------


async def tree(collector: Collector, count: int) -> list[tuple[str, str, str]]:
    """From the client's span down, when there are so many: the kind of each, what it was, and what came of it."""
    await until(lambda: len(collector.spans) >= count, "the spans")
    assert len(collector.spans) == count
    assert len({span.trace_id for span in collector.spans}) == 1
    above = [span for span in collector.spans if span.parent in ("", SPAN_ID)]
    found = []
    while above:
        assert len(above) == 1, "each has one under it"
        (span,) = above
        told = span.task if span.kind == "client" else (span.attributes["ts_parity.source"], span.name)
        found.append((span.kind, *told))
        above = [under for under in collector.spans if under.parent == span.id]
    assert len(found) == count
    return found


def ours(shared: Sharing) -> list[str]:
    return [name for i in shared.instances for r in i.received for name, _ in r.headers if "parity" in name.lower()]


@pytest.mark.slow
@pytest.mark.parametrize("own_trace", [False, True], ids=["of its own", "its client's"])
async def test_a_forwarded_query_that_fails_is_told_by_both_in_one_trace(
    collector: Collector, clock: Clock, own_trace: bool
) -> None:
    async with sharing(clock, [FakeTorchServe(FakeModel())], 2, 2, tracing=True, max_attempts=1) as shared:
        other = 1 - shared.owner()
        assert (await shared.post(other, 1)).status == 200
        shared.instances[0].models[0].script.append(Canned.error(507, "InternalServerException", "Worker died."))
        given = {"traceparent": SAMPLED[:-1] + "0"} if own_trace else {}
        answer = await shared.post(other, 1, **given)
        assert await tree(collector, 4) == [
            ("server", "none", "POST /predictions/{model}"),
            ("client", "forwarded", "won"),
            ("server", "none", "POST /predictions/{model}"),
            ("client", "own", "failed"),
        ]
        (top,) = [span for span in collector.spans if span.parent == (SPAN_ID if own_trace else "")]
        assert (top.trace_id == TRACE_ID, top.attributes["error.type"]) == (own_trace, "507")
        assert shared.instances[0].received[-1].header("traceparent") == given.get("traceparent")
        assert [name for name, _ in answer.headers if "span" in name] == []
        assert ours(shared) == []


@pytest.mark.slow
async def test_who_samples_gets_the_spans_of_both_proxies(collector: Collector, clock: Clock) -> None:
    async with sharing(clock, [FakeTorchServe(FakeModel())], 2, 2, tracing=True) as shared:
        assert (await shared.post(1 - shared.owner(), 1, traceparent=SAMPLED)).status == 200
        assert await tree(collector, 4) == [
            ("server", "deployed", "POST /predictions/{model}"),
            ("client", "forwarded", "won"),
            ("server", "deployed", "POST /predictions/{model}"),
            ("client", "own", "won"),
        ]


@pytest.mark.slow
async def test_a_query_that_is_taken_back_is_told_with_what_became_of_it_there(
    collector: Collector, clock: Clock
) -> None:
    """The owner sees its client leave. What it told before that is under the span of the one that has forwarded it."""
    async with sharing(clock, [FakeTorchServe(FakeModel())], 2, 2, tracing=True) as shared:
        owner, (instance,) = shared.owner(), shared.instances
        instance.freeze()
        asked = asyncio.ensure_future(shared.post(1 - owner, 1))
        await until(lambda: len(instance.received) == 1, "the query at the owner")
        shared.links[1 - owner, owner].become("cut")
        await until(lambda: len(instance.received) == 2, "the query to be taken back")
        instance.thaw()
        assert (await asked).status == 200
        await until(lambda: len(collector.spans) >= 5, "the spans")
    (root,) = [span for span in collector.spans if not span.parent]
    assert root.attributes["ts_parity.source"] == "deployed"
    tasks = sorted((span for span in collector.spans if span.parent == root.id), key=lambda span: span.began)
    assert [span.task for span in tasks] == [("forwarded", "failed"), ("own", "won")]
    assert tasks[0].attributes["ts_parity.endpoint"] == shared.links[1 - owner, owner].url.removeprefix("http://")
    assert root.began <= tasks[0].began <= tasks[0].ended <= tasks[1].began
    (left,) = [span for span in collector.spans if span.parent == tasks[0].id]
    assert left.attributes["error.type"] == "client_left"


@pytest.mark.slow
async def test_a_proxy_that_falls_silent_is_told_at_the_deadline(collector: Collector, clock: Clock) -> None:
    async with sharing(clock, [FakeTorchServe(FakeModel(repeatable=False))], 2, 2, tracing=True) as shared:
        owner = shared.owner()
        shared.links[1 - owner, owner].become("hung")
        assert (await shared.post(1 - owner, 1, x_ts_parity_deadline_ms="30")).status == 504
        root, (forwarded,) = await collector.got(2)
        assert (root.attributes["error.type"], forwarded.task) == ("deadline", ("forwarded", "cancelled"))


@pytest.mark.slow
async def test_whose_span_a_query_belongs_under_only_a_proxy_can_say(collector: Collector, clock: Clock) -> None:
    async with sharing(clock, [FakeTorchServe(FakeModel())], 2, 2, tracing=True) as shared:
        asked = {"traceparent": SAMPLED, "x_ts_parity_span": f"00-{'1' * 32}-{'2' * 16}-01"}
        for number in (shared.owner(), 1 - shared.owner()):
            collector.spans.clear()
            await shared.post(number, 1, **asked)
            assert len(await tree(collector, 2 if number == shared.owner() else 4)) > 0
            assert {span.trace_id for span in collector.spans} == {TRACE_ID}


# ---- where it goes -------------------------------------------------------------------------------------------------


async def test_the_variables_name_the_service_and_what_they_leave_open_is_known(
    collector: Collector, make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=mine")
    plain = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "the-door")
    named = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    for fleet, name in ((plain, "ts-parity"), (named, "the-door")):
        collector.spans.clear()
        await fleet.post(traceparent=SAMPLED)
        root, _ = await collector.got(2)
        assert root.resource["service.name"] == name
        assert root.resource["deployment.environment.name"] == "test"
        assert root.resource["service.version"] == "mine"
        assert root.resource["service.instance.id"]


async def test_what_is_left_is_sent_when_the_proxy_ends(
    collector: Collector, make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of tasks that are still out: how they end nobody will know."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, tracing=True)
    instance.freeze()
    assert (await fleet.post(x_ts_parity_deadline_ms="30")).status == 504
    await fleet.proxy.close()
    _, (own,) = await collector.got(2)
    assert own.task == ("own", "unknown")


async def test_a_collector_that_refuses_or_is_gone_costs_spans_only(
    collector: Collector, make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    for _ in range(2):
        assert (await fleet.post(traceparent=SAMPLED)).status == 200
        failed = 'ts_parity_spans_total{outcome="failed"}'
        before = await metric(fleet, failed)
        while await metric(fleet, failed) == before:
            await asyncio.sleep(0.01)
    collector.status = 200
    await fleet.post(traceparent=SAMPLED)
    await until(lambda: bool(collector.spans), "spans to be sent again")
    await fleet.proxy.close()
    told = [record.getMessage() for record in caplog.records if "spans" in record.getMessage()]
    assert told[0].startswith("spans cannot be sent, and are lost until they can: ")
    assert "400" in told[0]
    assert [text for text in told if "again" in text] == [told[-1]]
    assert len(told) == 2


async def test_a_collector_that_hangs_fills_a_bounded_queue_and_holds_up_nobody(
    collector: Collector, make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans, "MOST_SPANS", 6)
    monkeypatch.setattr(spans, "BATCH", 2)
    monkeypatch.setattr(spans, "FLUSH_S", 0.05)
    collector.answers.clear()
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    for _ in range(8):
        assert (await fleet.post(traceparent=SAMPLED)).status == 200
    dropped = 'ts_parity_spans_total{outcome="dropped"}'
    while await metric(fleet, dropped) < 10:
        await asyncio.sleep(0.01)
    await fleet.proxy.close()
    assert any("spans were not sent" in record.getMessage() for record in caplog.records)
    collector.answers.set()


async def test_more_than_can_be_built_is_dropped_and_counted(
    collector: Collector, make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST_WAITING", 1)
    monkeypatch.setattr(tracing, "PAUSE_S", 3600.0)
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tracing=True)
    for _ in range(3):
        await fleet.post(traceparent=SAMPLED)
    assert await metric(fleet, 'ts_parity_spans_total{outcome="dropped"}') == 4
    await fleet.proxy.close()
    await collector.got(2)


async def test_without_opentelemetry_it_says_what_to_install(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ts_parity.proxy.serving.spans", None)
    with pytest.raises(ConfigError, match=r"pip install ts_parity\[otel\]"):
        await make_fleet(FakeTorchServe(FakeModel()), tracing=True)


async def test_a_variable_that_makes_no_sense_is_said_at_the_start(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-1")
    with pytest.raises(ConfigError, match="tracing: the OTEL_ variables"):
        await make_fleet(FakeTorchServe(FakeModel()), tracing=True)


async def test_nothing_is_kept_of_what_has_ended(collector: Collector, make_fleet: MakeFleet) -> None:
    instances = fleet_of_three()
    fleet = await rescued(make_fleet, instances, more={"tracing": True})
    await thawed(fleet)
    await fleet.posts(8)
    tracer = fleet.proxy._tracer
    assert tracer is not None
    await until(lambda: not tracer._waiting, "all to be built")
    assert (tracer._noted, tracer._outlived) == ({}, {})
