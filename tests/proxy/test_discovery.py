"""What discovery asks instances, how often, and what it makes of silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ts_parity.config import parse_endpoint
from ts_parity.proxy.discovery import Discovery
from ts_parity.proxy.upstream import Upstream
from ts_parity.testing import FakeModel, FakeTorchServe, protection


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream(connect_timeout_s=0.5, task_timeout_s=5)
    yield upstream
    await upstream.close()


def discovery_of(instance: FakeTorchServe, upstream: Upstream, more: str = "") -> Discovery:
    return Discovery((parse_endpoint(instance.endpoint + more),), upstream, timeout_s=0.2)


async def test_everything_an_instance_hosts_is_found(upstream: Upstream) -> None:
    """More models than fit one page, and every version."""
    models = [FakeModel(name=f"m{n}", role=None) for n in range(150)]
    async with FakeTorchServe(*models, FakeModel(name="m0", version="2.0", default=False)) as instance:
        (report,) = await discovery_of(instance, upstream).look()
    assert report.up
    assert len(report.models) == 151
    assert [(m.version, m.default) for m in report.models if m.model == "m0"] == [("1.0", True), ("2.0", False)]


async def test_roles_codes_and_places_are_read(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(workers=2, batch_size=4), protection(k=3)) as instance:
        (report,) = await discovery_of(instance, upstream).look()
    deployed, parity = report.models
    assert (deployed.described.role, deployed.places, deployed.described.weights) == ("deployed", 8, "sha256:f")
    assert (parity.described.code.name, parity.described.code.k, parity.is_protection) == ("sum", 3, True)


async def test_describe_costs_a_workers_turn_so_it_is_asked_once_per_set_of_workers(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        for _ in range(3):
            await discovery.look()
        assert instance.describes == 1
        instance.models[0].pid += 1
        await discovery.look()
        assert instance.describes == 2


async def test_a_worker_that_is_being_restarted_is_what_it_was(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        await discovery.look()
        instance.models[0].ready = False
        instance.models[0].pid += 1
        (report,) = await discovery.look()
        assert (report.models[0].ready, report.models[0].described.role) == (0, "deployed")
        assert instance.describes == 1


async def test_a_frozen_worker_is_silent_and_then_speaks(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        instance.freeze()
        (report,) = await discovery.look()
        assert (report.models[0].silent, report.models[0].described) == (True, None)
        await discovery.look()
        assert instance.describes == 1  # unanswered describes pile up in TorchServe's queue
        instance.thaw()
        while report.models[0].silent:
            await asyncio.sleep(0.01)
            (report,) = await discovery.look()
        assert report.models[0].described.role == "deployed"


async def test_a_handler_that_knows_no_describe_is_an_unwrapped_model(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(mute_describe=True)) as instance:
        discovery = discovery_of(instance, upstream)
        (report,) = await discovery.look()
        await discovery.look()
        assert (report.models[0].described, report.models[0].silent) == (None, False)
        assert instance.describes == 1


async def test_nobody_listening_is_down_and_silence_is_as_last_seen(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        discovery = discovery_of(instance, upstream)
        (first,) = await discovery.look()
    (report,) = await discovery.look()
    assert not report.up
    assert "gave no answer" in report.problem
    assert first.up


async def test_keys_are_sent_and_a_wrong_one_is_reported(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel(), management_token="m") as instance:
        (wrong,) = await discovery_of(instance, upstream, ",management_token=x").look()
        (right,) = await discovery_of(instance, upstream, ",management_token=m").look()
    assert right.up
    assert not wrong.up
    assert "Token Authorization failed" in wrong.problem


async def test_an_address_that_is_no_torchserve_is_reported(upstream: Upstream) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        given = parse_endpoint(f"{instance.inference},management={instance.inference}")
        (report,) = await Discovery((given,), upstream, 0.2).look()
    assert not report.up
    assert "404" in report.problem
