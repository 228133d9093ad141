"""What discovery asks instances, how often, and what it makes of silence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.proxy.conftest import MakeFleet
from ts_parity.config import Settings, parse_endpoint
from ts_parity.proxy.fleet.plan import PlanOptions, make_plan
from ts_parity.proxy.fleet.torchserve.discovery import TorchServeProber
from ts_parity.proxy.http.upstream import Upstream
from ts_parity.proxy.operations.status import status_json
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, fakes, protection


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
    yield upstream
    await upstream.close()


def discovery_of(
    instance: FakeTorchServe, upstream: Upstream, more: str = "", timeout_s: float = 60.0
) -> TorchServeProber:
    return TorchServeProber((parse_endpoint(instance.endpoint + more),), upstream, timeout_s)


@pytest.mark.slow
async def test_everything_an_instance_hosts_is_found(upstream: Upstream) -> None:
    """More models than fit one page, and every version."""
    models = [FakeModel(name=f"m{n}", role=None) for n in range(150)]
    async with FakeTorchServe(*models, FakeModel(name="m0", version="2.0", default=False)) as instance:
        (report,) = await discovery_of(instance, upstream).refresh()
    assert report.up
    assert len(report.models) == 151
    assert [(m.version, m.default) for m in report.models if m.model == "m0"] == [("1.0", True), ("2.0", False)]


async def test_roles_codes_and_places_are_read(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(workers=2, batch_size=4), protection(k=3)) as instance:
        (report,) = await discovery_of(instance, upstream).refresh()
    deployed, parity = report.models
    assert (deployed.described.role, deployed.places, deployed.described.weights) == ("deployed", 8, "sha256:f")
    assert (parity.described.code.name, parity.described.code.k, parity.is_protection) == ("sum", 3, True)


async def test_describe_costs_a_workers_turn_so_it_is_asked_once_per_set_of_workers(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        for _ in range(3):
            await discovery.refresh()
        assert instance.describes == 1
        instance.models[0].pid += 1
        await discovery.refresh()
        assert instance.describes == 2


async def test_a_worker_that_is_being_restarted_is_what_it_was(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        await discovery.refresh()
        instance.models[0].ready = False
        instance.models[0].pid += 1
        (report,) = await discovery.refresh()
        assert (report.models[0].ready, report.models[0].described.role) == (0, "deployed")
        assert instance.describes == 1


async def test_a_frozen_worker_is_silent_and_then_speaks(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream, timeout_s=0.2)
        instance.freeze()
        (report,) = await discovery.refresh()
        assert (report.models[0].silent, report.models[0].described) == (True, None)
        await discovery.refresh()
        assert instance.describes == 1  # unanswered describes pile up in TorchServe's queue
        instance.thaw()
        while report.models[0].silent:
            await asyncio.sleep(0.01)
            (report,) = await discovery.refresh()
        assert report.models[0].described.role == "deployed"


async def test_a_handler_that_knows_no_describe_is_an_unwrapped_model(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(mute_describe=True)) as instance:
        discovery = discovery_of(instance, upstream)
        (report,) = await discovery.refresh()
        await discovery.refresh()
        assert (report.models[0].described, report.models[0].silent) == (None, False)
        assert instance.describes == 1


async def test_nobody_listening_is_down_and_silence_is_as_last_seen(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        (first,) = await discovery.refresh()
    (report,) = await discovery.refresh()
    assert not report.up
    assert "gave no answer" in report.problem
    assert "kind" not in report.problem
    assert first.up


async def test_who_was_never_seen_may_be_no_torchserve(upstream: Upstream) -> None:
    """A proxy that is told of a Triton by its address alone asks for a management API that nobody has."""
    async with FakeTorchServe() as instance:
        pass
    (report,) = await discovery_of(instance, upstream).refresh()
    assert not report.up
    assert report.problem.endswith("another server than TorchServe needs its kind, as in --endpoint URL,kind=rest")


async def test_keys_are_sent_and_a_wrong_one_is_reported(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(), management_token="m") as instance:
        (wrong,) = await discovery_of(instance, upstream, ",management_token=x").refresh()
        (right,) = await discovery_of(instance, upstream, ",management_token=m").refresh()
    assert (right.up, right.unauthorized) == (True, False)
    assert (wrong.up, wrong.unauthorized, wrong.models) == (True, True, ())
    assert "Token Authorization failed" in wrong.problem


async def test_another_port_than_managements_is_named_in_one_line(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        given = parse_endpoint(f"{instance.inference},management={instance.inference}")
        (report,) = await TorchServeProber((given,), upstream, 60.0).refresh()
    port = instance.inference.rpartition(":")[2]
    assert not report.up
    assert report.problem == (
        f"127.0.0.1:{port} answered 404 to GET /models. Is {port} the management port? "
        "(TorchServe's default is 8081; another server than TorchServe needs its kind, as in --endpoint URL,kind=rest."
        "); not used, asked again regularly"
    )


async def test_another_port_than_inference_is_named_and_not_used(upstream: Upstream) -> None:
    """The metrics port, or management's: predictions sent there would all come back as 404."""
    async with FakeTorchServe(FakeModel()) as instance, FakeTorchServe() as metrics:
        port = metrics.management.rpartition(":")[2]
        metrics.managed = Canned.error(404, "ResourceNotFoundException", "Requested resource is not found")
        given = parse_endpoint(f"{metrics.management},management={instance.management}")
        discovery = TorchServeProber((given,), upstream, 60.0)
        (report,) = await discovery.refresh()
        assert not report.up
        assert report.problem == (
            f"127.0.0.1:{port} answered 404 to GET /ping. Is {port} the inference port? "
            "(TorchServe's default is 8080.); not used, asked again regularly"
        )
        metrics.managed = Canned(404, "Not Found", (), b"a gateway that knows predictions only")
        (report,) = await discovery.refresh()
        assert report.up


@pytest.mark.parametrize("said", [Canned.own(200, b"{"), Canned.error(500, "InternalServerException", "oops")])
async def test_what_served_before_serves_on_whatever_its_management_says(upstream: Upstream, said: Canned) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        (before,) = await discovery.refresh()
        instance.managed = said
        for _ in range(2):
            (report,) = await discovery.refresh()
            assert (report.up, report.models, report.unauthorized) == (True, before.models, False)
            assert report.problem.endswith("used as last seen")
            assert report.problem.count("as last seen") == 1
        instance.managed = None
        (after,) = await discovery.refresh()
        assert after == before


MALFORMED = {
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"models":' * 100_000,
    "infinite": b"Infinity",
    "not a number": b'{"models": NaN}',
    "a lone surrogate": b'{"models": [{"modelName": "\\ud800"}]}',
    "a surrogate for a page": b'{"models": [], "nextPageToken": "\\ud800"}',
    "control characters": b'{"models": [{"modelName": "a\\u001b[2J\\n"}]}',
    "a huge number": b'{"models": [{"modelName": ' + b"9" * 100_000 + b"}]}",
    "a list": b"[1, 2]",
    "no models": b"{}",
    "a word": b'"models"',
    "not UTF-8": b'{"models": "\xff\xfe"}',
    "nothing": b"",
    "100 MB": b" " * (100 << 20),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_one_instance_says_is_its_own_problem(upstream: Upstream, name: str) -> None:
    """Neither a start nor the discovery of the others is harmed, and what is told is one printable line."""
    async with FakeTorchServe(FakeModel()) as bad, FakeTorchServe(FakeModel()) as good:
        bad.managed = Canned.own(200, MALFORMED[name])
        instances = tuple(parse_endpoint(instance.endpoint) for instance in (bad, good))
        first, second = await TorchServeProber(instances, upstream, timeout_s=5).refresh()
    assert second.up
    assert not first.models
    assert first.problem.isprintable()
    assert 0 < len(first.problem) < 400
    json.dumps(status_of(first, second, instances)).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"batchSize": float("inf")},
        {"batchSize": 10**3000},
        {"workers": None},
        {"modelVersion": "\ud800"},
        None,
        {"modelName": "linear"},
        {"modelName": "odd/1"},
        {"modelVersion": "1/0"},
    ],
)
async def test_one_models_description_costs_that_model_only(
    upstream: Upstream, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = fakes._describe

    def lying(model: FakeModel) -> Any:
        return describe(model) if model.name == "linear" else change and {**describe(model), **change}

    monkeypatch.setattr(fakes, "_describe", lying)
    async with FakeTorchServe(FakeModel(), FakeModel(name="odd")) as instance:
        (report,) = await discovery_of(instance, upstream).refresh()
    assert report.up
    assert [model.model for model in report.models] == ["linear"]
    assert "odd" in report.problem


async def test_a_version_that_is_listed_twice_is_one(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one name would be two endpoints of one name, and no plan for anybody."""
    describe = fakes._json

    def twice(status: int, value: Any) -> Any:
        return describe(status, value * 2 if isinstance(value, list) else value)

    monkeypatch.setattr(fakes, "_json", twice)
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert [endpoint.places for endpoint in fleet.proxy.plan.fleet.endpoints] == [1]
    assert any("a version twice" in problem for problem in fleet.proxy.plan.problems)
    assert (await fleet.post()).status == 200


async def test_a_report_says_when_it_was_true(upstream: Upstream) -> None:
    """What is told again of an instance that gives no answer is as old as it was."""
    async with FakeTorchServe(FakeModel()) as instance:
        looks = discovery_of(instance, upstream)
        begun_at = time.monotonic()
        (first,) = await looks.refresh()
        instance.managed = Canned(drop=True)
        (again,) = await looks.refresh()
        instance.managed = None
        (later,) = await looks.refresh()
    assert begun_at <= first.seen_at == again.seen_at < later.seen_at
    assert "used as last seen" in again.problem


async def test_pages_without_end_end(upstream: Upstream) -> None:
    async with FakeTorchServe() as instance:
        instance.managed = Canned.own(200, b'{"models": [], "nextPageToken": "1"}')
        (report,) = await discovery_of(instance, upstream).refresh()
    assert (report.up, report.models) == (True, ())


async def test_management_behind_a_gateway_that_answers_in_chunks(upstream: Upstream) -> None:
    async with FakeTorchServe() as instance:
        instance.managed = Canned(200, chunks=(b'{"models"', b": []}"))
        (report,) = await discovery_of(instance, upstream).refresh()
    assert report.up


def status_of(*told: Any) -> Any:
    *reports, instances = told
    plan = make_plan(reports, PlanOptions(instances))
    settings = Settings(instances=instances)
    return status_json(plan, reports, settings, {"endpoints": {}, "pools": {}}, {}, time.monotonic(), {})
