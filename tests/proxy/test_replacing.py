"""What is registered, replaced and unregistered beside a running proxy costs no client an answer."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TorchServeFactory, write_archive
from tests.proxy.conftest import Client, MakeFleet, Raw, until
from tests.proxy.side_by_side import proxy_before
from ts_parity.cli import main
from ts_parity.config import InstanceSettings
from ts_parity.testing import FakeModel, FakeTorchServe
from ts_parity.torchserve import rollout
from ts_parity.torchserve.archive import read_archive, wrap_deployed, wrap_parity
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = pytest.mark.slow

LOOK_S = 0.5
"""How often the proxy looks here; `register` waits a little longer."""


@pytest.fixture(autouse=True)
def settled_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SETTLE_S", 10 * LOOK_S)


@asynccontextmanager
async def load(url: str, body: bytes, clients: int = 4) -> AsyncIterator[list[Raw]]:
    """Clients that ask for the model `linear` without a version, one query after the other. -> every answer so far."""
    client, over = Client(url), asyncio.Event()
    answers: list[Raw] = []

    async def ask() -> None:
        while not over.is_set():
            answers.append(await client.post("/predictions/linear", body))

    asking = [asyncio.create_task(ask()) for _ in range(clients)]
    try:
        yield answers
        seen = len(answers)
        await until(lambda: len(answers) >= seen + 20, "answers of what is there now")
    finally:
        over.set()
        await asyncio.gather(*asking)


async def command(*words: Any, on: list[str]) -> int:
    urls = [part for url in on for part in ("--management", url)]
    return await asyncio.to_thread(main, [*map(str, words), *urls])


def wrapped(folder: Path, version: str, weights: str, handler: str | None = None) -> Path:
    written = {} if handler is None else {"handler": handler}
    plain = write_archive(
        folder / "plain" / f"{weights}.mar", name="linear", version=version, serialized=weights.encode(), **written
    )
    return wrap_deployed(plain, folder / "wrapped" / f"{weights}.mar")


async def test_beside_fakes(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Another version twice, then the same version with other content; each answer is of one of them."""
    archives = [wrapped(tmp_path, *each) for each in (("2.0", "b"), ("3.0", "c"), ("3.0", "d"))]
    store = {}
    for number, path in enumerate(archives):
        archive = read_archive(path)
        matrix = np.array([[number + 2.0, 0.0]], dtype=np.float32)
        store[path.name] = FakeModel("linear", archive.model_version, weights=archive.weights(), matrix=matrix)
    fleet = [FakeTorchServe(FakeModel(matrix=np.array([[1.0, 0.0]], dtype=np.float32))) for _ in range(2)]
    for instance in fleet:
        instance.store = {name: replace(model) for name, model in store.items()}
    running = await make_fleet(*fleet, discovery_interval_s=LOOK_S, group_wait_s=0.001)
    async with load(running.proxy.url, b"[1, 0]") as answers:
        for archive in archives:
            assert await command("register", "--replace", archive, on=[i.management for i in fleet]) == 0
    assert {answer.status for answer in answers} == {200}
    assert {answer.json()[0] for answer in answers} == {1.0, 2.0, 3.0, 4.0}
    assert answers[-1].json() == [4.0]
    assert [[m.version for m in instance.models] for instance in fleet] == [["3.0"], ["3.0"]]


@pytest.mark.long
async def test_the_next_instance_goes_when_the_proxy_uses_the_one_before_again(
    make_fleet: MakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --admin: not after some time, which a busy proxy's looks may take longer than."""
    monkeypatch.setattr(rollout, "SETTLE_S", 0.0)
    path = wrapped(tmp_path, "1.0", "b")
    fleet = [FakeTorchServe(FakeModel(matrix=np.array([[1.0, 0.0]], dtype=np.float32))) for _ in range(2)]
    for instance in fleet:
        matrix = np.array([[2.0, 0.0]], dtype=np.float32)
        instance.store = {path.name: FakeModel("linear", "1.0", weights=read_archive(path).weights(), matrix=matrix)}
    running = await make_fleet(*fleet, discovery_interval_s=LOOK_S)
    without: list[int] = []
    for instance in fleet:
        instance.management_pause_s = 2 * LOOK_S  # so long every answer takes, and a look is made of several
        instance.before_change = lambda change: without.append(sum(not each.models for each in fleet))  # type: ignore[misc]
    async with load(running.proxy.url, b"[1, 0]") as answers:
        words = ["register", "--replace", path, "--admin", running.proxy.admin_url]
        assert await command(*words, on=[i.management for i in fleet]) == 0
    assert {answer.status for answer in answers} == {200}
    assert answers[-1].json() == [2.0]
    assert max(without) <= 1


async def test_the_first_goes_when_the_proxy_uses_another(
    make_fleet: MakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has not said yet what it is, and is not used until it does."""
    monkeypatch.setattr(rollout, "SETTLE_S", 0.0)
    path = wrapped(tmp_path, "1.0", "b")
    fleet = [FakeTorchServe(FakeModel()), FakeTorchServe()]
    proxy = (await make_fleet(*fleet, discovery_interval_s=LOOK_S)).proxy
    first, second = (instance.inference.removeprefix("http://") for instance in fleet)
    fleet[1].models.append(FakeModel(describe_pause_s=5.0))
    unused = f"{second}: linear/1.0 did not answer describe; not used until it does"
    await until(lambda: unused in proxy.plan.problems, "the proxy to see the second")
    used_at_removal: list[set[str]] = []

    def note(change: str) -> None:
        if change.startswith("DELETE /models/linear/"):
            used_at_removal.append({endpoint.instance for endpoint in proxy.plan.fleet.endpoints})

    for instance in fleet:
        instance.store = {path.name: FakeModel(weights=read_archive(path).weights())}
        instance.before_change = note  # type: ignore[assignment]
    assert (
        await command("register", "--replace", path, "--admin", proxy.admin_url, on=[i.management for i in fleet]) == 0
    )
    assert used_at_removal == [{first, second}] * 2


HANDLER = """
import os, time

def handle(data, context):
    if data is None:
        return None
    time.sleep(0.02)
    folder = context.system_properties["model_dir"]
    with open(os.path.join(folder, context.manifest["model"]["serializedFile"])) as file:
        weights = file.read()
    return [weights for _ in data]
"""
SLOW_HANDLER = f"import time\ntime.sleep(8)\n{HANDLER}"


@pytest.fixture(scope="module")
def instances(
    torchserve_factory: TorchServeFactory, tmp_path_factory: pytest.TempPathFactory
) -> list[TorchServeInstance]:
    """Two with the deployed model, one with its protection."""
    folder = tmp_path_factory.mktemp("first")
    first = wrapped(folder, "1.0", "a", HANDLER)
    protection = wrap_parity(folder / "plain" / "a.mar", folder / "out", code="exact", k=2)
    return torchserve_factory.fleet([[first], [first], [protection]], model_api=True, workers=1)


@pytest.mark.long
@pytest.mark.torchserve
async def test_beside_real_instances(
    instances: list[TorchServeInstance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next version and its protection, then the same version with other content: no query fails."""
    monkeypatch.setattr(rollout, "SETTLE_S", 0.0)  # the proxy is asked what it has seen, however busy the machine is
    deployed, guards = [i.management_url for i in instances[:2]], [instances[2].management_url]
    second, third = wrapped(tmp_path, "2.0", "b", HANDLER), wrapped(tmp_path, "2.0", "c", HANDLER)
    guard = wrap_parity(tmp_path / "plain" / "b.mar", tmp_path / "out", code="exact", k=2)
    for instance in instances:
        for archive in (second, third, guard):
            instance.add_archive(archive)
    settings = tuple(InstanceSettings(i.inference_url, i.management_url, f"i{n}") for n, i in enumerate(instances))
    looking: dict[str, Any] = {"discovery_interval_s": LOOK_S, "deadline_s": 30.0}
    async with (
        proxy_before(instances[0], instances=settings, **looking) as proxy,
        load(proxy.url, b"x") as answers,
    ):
        await until(lambda: len(answers) > 20, "the first answers")
        assert await command("register", guard, on=guards) == 0
        replace_by = ["register", "--admin", proxy.admin_url, "--replace"]
        assert await command(*replace_by, second, on=deployed) == 0
        assert await command("unregister", "linear-1.0-exact-k2", on=guards) == 0
        assert await command(*replace_by, third, on=deployed) == 0
    assert [(answer.body, answer.headers) for answer in answers if answer.status != 200] == []
    assert {answer.body for answer in answers} == {b"a", b"b", b"c"}
    assert answers[-1].body == b"c"
    for instance in instances[:2]:
        with instance.management() as management:
            assert [each.version for each in management.describe_all("linear")] == ["2.0"]
            assert len(management.models()) == 1


@pytest.mark.torchserve
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_while_a_worker_loads(
    instances: list[TorchServeInstance], tmp_path: Path, number: signal.Signals
) -> None:
    """TorchServe goes on loading what nobody waits for any more; it is gone all the same."""
    slow = wrapped(tmp_path, "9.0", f"slow{number}", SLOW_HANDLER)
    urls = []
    for instance in instances[:2]:
        instance.add_archive(slow)
        urls += ["--management", instance.management_url]
    words = [sys.executable, "-m", "ts_parity.cli", "register", "--replace", str(slow), *urls]
    with instances[0].management() as management:
        before = {each.version for each in management.describe_all("linear")}
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await until(lambda: len(management.describe_all("linear")) > len(before), "it to be registered")
        process.send_signal(number)
        _, err = await process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else 143)
        assert b"What was done is undone" in err
        assert {each.version for each in management.describe_all("linear")} == before
