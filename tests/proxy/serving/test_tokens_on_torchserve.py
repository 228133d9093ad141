"""TorchServe's token authorization through the proxy, which holds a credential of its own for every instance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from tests.proxy.conftest import PATIENCE_S, MakeFleet
from tests.proxy.side_by_side import WITNESS, Case, Pair, ask, comparable, proxy_before, unmarked
from ts_parity.config import InstanceSettings
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = pytest.mark.torchserve


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    """One model only, so that /invocations need not name it; and bodies reach it undecoded."""
    folder: Path = tmp_path_factory.mktemp("archives")
    undecoded = {"decode_input_request": "false"}
    archive = write_archive(folder / "witness.mar", WITNESS)
    return torchserve_factory([archive], token_auth=True, properties=undecoded, env=NO_TORCH)


def inference_key(instance: TorchServeInstance) -> str:
    return instance.token("inference") or ""


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


# Case, and the status without a key: only the description of the whole API is for everybody.
ROUTES = [
    (Case(200, path="/predictions/witness", body=b"1"), 400),
    (Case(200, path="/predictions/witness/1.0/x", body=b"1"), 400),
    (Case(200, "HEAD", "/predictions/witness"), 400),
    (Case(200, path="/explanations/witness", body=b"1", marked=False), 400),
    (Case(200, path="/v1/models/witness:predict", body=b"1", marked=False), 400),
    (Case(200, path="/v2/models/witness/infer", body=b"1", marked=False), 400),
    (Case(200, path="/invocations", body=b"1", marked=False), 400),
    (Case(200, path="/witness/predict", body=b"1", marked=False), 400),
    (Case(200, "OPTIONS", "/predictions/witness", marked=False), 400),
    (Case(200, "GET", "/ping", marked=False), 400),
    (Case(404, "GET", "/predictions/nobody", marked=False), 400),
    (Case(404, "GET", "/nowhere", marked=False), 400),
    (Case(200, "OPTIONS", "/", marked=False), 200),
    (Case(200, "GET", "/api-description", marked=False), 200),
]


@pytest.mark.parametrize("clients", [(), (bearer("wrong"),)], ids=["none", "wrong"])
async def test_the_proxys_key_opens_what_a_clients_would(instance: TorchServeInstance, clients: tuple) -> None:
    """For clients that bring none; with `vouch`, whatever they bring."""
    key = inference_key(instance)
    async with proxy_before(instance, token=key, vouch=bool(clients)) as proxy:
        for case, _ in ROUTES:
            direct = Case(case.status, case.method, case.path, case.body, (bearer(key),))
            through = Case(case.status, case.method, case.path, case.body, clients)
            to_head = case.method == "HEAD"
            (expected,) = await ask(instance.inference_url, direct.data, to_head=to_head)
            (answer,) = await ask(proxy.url, through.data, to_head=to_head)
            assert expected.status == case.status
            assert comparable(unmarked(answer) if case.marked else answer) == comparable(expected)


@pytest.mark.parametrize(
    "clients",
    [
        (),
        (bearer("wrong"),),
        (("Authorization", "Basic wrong"),),
        (("Authorization", ""),),
        (("Authorization", "Bearer"),),
    ],
    ids=str,
)
async def test_without_a_key_of_its_own_the_proxy_passes_on_what_torchserve_says(
    instance: TorchServeInstance, clients: tuple
) -> None:
    async with proxy_before(instance) as proxy:
        pair = Pair(instance.inference_url, proxy.url, proxy)
        for case, status in ROUTES:
            await pair.same(Case(status, case.method, case.path, case.body, clients, case.marked))


@pytest.mark.parametrize("right", [False, True])
async def test_torchserve_judges_the_key_that_a_client_brings(instance: TorchServeInstance, right: bool) -> None:
    """Though the proxy has one."""
    key = inference_key(instance)
    async with proxy_before(instance, token=key) as proxy:
        pair = Pair(instance.inference_url, proxy.url, proxy)
        for case, status in ROUTES:
            shown = (bearer(key if right else "wrong"),)
            await pair.same(
                Case(case.status if right else status, case.method, case.path, case.body, shown, case.marked)
            )


async def test_without_a_key_of_its_own_the_proxy_passes_on_the_clients(instance: TorchServeInstance) -> None:
    async with proxy_before(instance) as proxy:
        pair = Pair(instance.inference_url, proxy.url, proxy)
        for case, _ in ROUTES:
            key = (bearer(inference_key(instance)),)
            await pair.same(Case(case.status, case.method, case.path, case.body, key, case.marked))


async def test_without_a_management_key_torchserve_judges_each_request(
    make_fleet: MakeFleet, instance: TorchServeInstance
) -> None:
    """Nothing is known of what it hosts then."""
    given = (InstanceSettings(instance.inference_url, instance.management_url, "here"),)
    fleet = await make_fleet(given=given, describe_timeout_s=5.0)
    pair = Pair(instance.inference_url, fleet.proxy.url, fleet.proxy)
    for case, status in ROUTES:
        for key, expected in ((inference_key(instance), case.status), ("wrong", status)):
            await pair.same(Case(expected, case.method, case.path, case.body, (bearer(key),), marked=False))


async def test_undecoded_input_is_the_same(instance: TorchServeInstance) -> None:
    """The handler of an instance with `decode_input_request=false` gets the bytes of a JSON body."""
    async with proxy_before(instance) as proxy:
        headers = (bearer(inference_key(instance)), ("Content-Type", "application/json"))
        answer = await Pair(instance.inference_url, proxy.url, proxy).same(Case(200, body=b'{"a": 1}', headers=headers))
        assert answer.json()["inputs"] == {"body": ["bytearray", '{"a": 1}']}


async def test_a_new_key_is_read_from_the_key_file(make_fleet: MakeFleet, instance: TorchServeInstance) -> None:
    """A renewed key ends the old one at once; the proxy, told of the file, needs nobody to tell it of the key."""
    file = str(instance.folder / "key_file.json")
    given = InstanceSettings(
        instance.inference_url, instance.management_url, "here", token_file=file, management_token_file=file
    )
    fleet = await make_fleet(given=(given,), describe_timeout_s=5.0, discovery_interval_s=0.1)
    old = inference_key(instance)
    prediction = Case(200, body=b"1")
    assert (await ask(fleet.proxy.url, prediction.data))[0].status == 200
    renewed = Case(200, "GET", "/token?type=inference", headers=(bearer(instance.token("API") or ""),))
    assert (await ask(instance.management_url, renewed.data))[0].status == 200
    assert inference_key(instance) != old
    (refused,) = await ask(instance.inference_url, Case(400, body=b"1", headers=(bearer(old),)).data)
    assert (refused.status, refused.json()["type"]) == (400, "InvalidKeyException")

    async def served() -> None:
        while (answer := (await ask(fleet.proxy.url, prediction.data))[0]).status != 200:
            assert comparable(answer) == comparable(refused), "it is no prediction, so it bears no mark"

    await asyncio.wait_for(served(), PATIENCE_S)
