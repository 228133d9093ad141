"""Instances that ask for keys which the proxy has not, or has no more: whoever has one is served as without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.proxy.conftest import PATIENCE_S, Fleet, MakeFleet, Raw
from ts_parity.config import parse_endpoint
from ts_parity.proxy.serving import service
from ts_parity.testing import FakeModel, FakeTorchServe, protection


def locked(*models: FakeModel, key: str = "t") -> FakeTorchServe:
    return FakeTorchServe(*models, token=key, management_token="m")


async def ask(fleet: Fleet, key: str, path: str = "/predictions/linear") -> Raw:
    return await fleet.client.post(path, b"[1, 2]", (("Authorization", f"Bearer {key}"),))


@pytest.mark.parametrize(
    "path", ["/predictions/linear", "/predictions/linear/1.0", "/explanations/linear", "/predictions/linear/1.0/x"]
)
async def test_without_a_management_key_torchserve_judges_each_request(make_fleet: MakeFleet, path: str) -> None:
    """Nothing is known of what the instance hosts; a client with the instance's own key got 503."""
    instance = locked(FakeModel())
    fleet = await make_fleet(instance)
    answer = await ask(fleet, "t", path)
    assert answer.status == 200
    assert answer.get("x-ts-parity") is None
    wrong, none = await ask(fleet, "wrong", path), await fleet.client.post(path, b"[1, 2]")
    assert [(each.status, each.json()["type"]) for each in (wrong, none)] == [(400, "InvalidKeyException")] * 2
    missing = await ask(fleet, "t", "/predictions/nobody")
    assert (missing.status, missing.json()["type"]) == (404, "ModelNotFoundException")


async def test_nobody_waits_for_a_look_that_can_tell_nothing(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such request waited for up to 0.2 s."""
    instance = locked(FakeModel())
    fleet = await make_fleet(instance, describe_timeout_s=1e6)
    monkeypatch.setattr(service, "_DISCOVERY_WAIT_S", 1e6)
    instance.management_pause_s = 1e6
    for _ in range(3):
        assert (await asyncio.wait_for(ask(fleet, "t"), PATIENCE_S)).status == 200


async def test_such_a_fleet_is_told_of_and_ready(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(locked(FakeModel()))
    health, status = await fleet.admin.get("/health"), await fleet.admin.get("/status")
    assert (health.status, health.json()["status"]) == (503, "degraded")
    assert "Token Authorization failed" in health.json()["reason"]
    assert (await fleet.admin.get("/readyz")).status == 200
    (problem,) = status.json()["problems"]
    assert problem.endswith("requests are only passed through to it")


async def test_each_of_several_is_asked_with_the_key_that_the_client_has(make_fleet: MakeFleet) -> None:
    """Every TorchServe makes its own."""
    fleet = await make_fleet(locked(FakeModel(), key="t1"), locked(FakeModel(), FakeModel(name="two"), key="t2"))
    for _ in range(4):
        assert [(await ask(fleet, key)).status for key in ("t1", "t2", "t3")] == [200, 200, 400]
        assert (await ask(fleet, "t2", "/predictions/two")).status == 200


async def test_what_is_known_elsewhere_goes_there(make_fleet: MakeFleet) -> None:
    """And what nobody known has goes to the one that does not say what it has, not to the one that has it not."""
    known, unknown = FakeTorchServe(FakeModel()), locked(FakeModel(name="two"), key="")
    fleet = await make_fleet(known, unknown)
    for _ in range(4):
        assert (await fleet.post()).status == 200
        assert (await fleet.post("/predictions/two")).status == 200
    assert len(known.received) == 4


async def test_a_key_that_has_expired_leaves_the_fleet_as_it_was(make_fleet: MakeFleet) -> None:
    """TorchServe's expire after an hour; that took the whole fleet out."""
    instances = [locked(model) for model in (FakeModel(), FakeModel(), protection())]
    for instance in instances:
        await instance.start()
    try:
        given = tuple(parse_endpoint(f"{each.endpoint},token=t,management_token=m") for each in instances)
        fleet = await make_fleet(given=given)
        for instance in instances:
            instance.renew_keys(token="t", management_token="new")
        await fleet.proxy.discover()
        instances[0].freeze()
        answers = await fleet.posts(2)
        assert [answer.status for answer in answers] == [200, 200]
        assert "reconstructed" in {answer.get("x-ts-parity") for answer in answers}
        problems = (await fleet.admin.get("/status")).json()["problems"]
        assert [problem.endswith("used as last seen") for problem in problems] == [True] * 3
        assert (await fleet.admin.get("/health")).status == 200
    finally:
        for instance in instances:
            instance.thaw()
            await instance.stop()


async def test_a_key_file_that_is_gone_is_told_and_the_last_key_is_used(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """TorchServe writes it anew in place, and takes it away when it stops."""
    file = tmp_path / "key"
    file.write_text("m")
    async with FakeTorchServe(FakeModel(), management_token="m") as instance:
        fleet = await make_fleet(given=(parse_endpoint(f"{instance.endpoint},management_token_file={file}"),))
        file.unlink()
        await fleet.proxy.discover()
        assert (await fleet.post()).get("x-ts-parity") == "deployed"
        (problem,) = (await fleet.admin.get("/status")).json()["problems"]
        assert "management_token_file: cannot read" in problem
        instance.renew_keys(management_token="new")
        file.write_text("new")
        await fleet.proxy.discover()
        assert (await fleet.admin.get("/status")).json()["problems"] == []


async def test_an_inference_key_file_that_is_gone_leaves_the_last_key_in_use(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("t")
    async with locked(FakeModel()) as instance:
        fleet = await make_fleet(given=(parse_endpoint(f"{instance.endpoint},token_file={file},management_token=m"),))
        file.unlink()
        await fleet.proxy.discover()
        assert (await fleet.post()).get("x-ts-parity") == "deployed"
        instance.renew_keys(token="new", management_token="m")
        file.write_text("new")
        await fleet.proxy.discover()
        assert (await fleet.post()).get("x-ts-parity") == "deployed"


async def test_a_key_file_that_never_was_hinders_nobody_who_needs_no_key(make_fleet: MakeFleet, tmp_path: Path) -> None:
    async with FakeTorchServe(FakeModel()) as instance:
        fleet = await make_fleet(given=(parse_endpoint(f"{instance.endpoint},management_token_file={tmp_path}/no"),))
        assert (await fleet.post()).get("x-ts-parity") == "deployed"


async def test_a_model_that_was_lost_may_be_where_nobody_says_what_there_is(make_fleet: MakeFleet) -> None:
    """An instance that was started anew has other keys: it is asked, and not "unreachable"."""
    async with FakeTorchServe(FakeModel(), management_token="m") as instance:
        fleet = await make_fleet(given=(parse_endpoint(f"{instance.endpoint},management_token=m"),))
        ports = [int(url.rpartition(":")[2]) for url in (instance.inference, instance.management)]
        await instance.stop()
        await fleet.proxy.discover()
        assert (await fleet.post()).status == 503
        instance.renew_keys(token="t", management_token="new")
        await instance.start(*ports)
        await fleet.proxy.discover()
        assert (await ask(fleet, "t")).status == 200
        assert (await ask(fleet, "wrong")).status == 400
