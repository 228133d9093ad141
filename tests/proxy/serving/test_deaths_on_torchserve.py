"""Real instances lose workers and their JVM under load: no client notices; a body that kills workers reaches two."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import NO_TORCH, TorchServeFactory, scale, write_archive
from tests.proxy.conftest import Client, Raw, until
from tests.proxy.side_by_side import proxy_before
from ts_parity.config import InstanceSettings
from ts_parity.proxy.app import Proxy
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = [pytest.mark.torchserve, pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

# A body of "die" ends its worker; each that dies so leaves a file.
HANDLER = """
import os, time

def handle(data, context):
    if data is None:
        return None
    bodies = [bytes(row.get("body") or b"") for row in data]
    if b"die" in bodies:
        open(os.path.join({deaths!r}, str(os.getpid())), "w").close()
        os._exit(1)
    time.sleep(0.05)
    return bodies
"""


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def instances(torchserve_factory: TorchServeFactory, tmp_path_factory: Any, deaths: Path) -> list[TorchServeInstance]:
    mortal = write_archive(tmp_path_factory.mktemp("archives") / "mortal.mar", HANDLER.format(deaths=str(deaths)))
    return torchserve_factory.fleet([[mortal]] * 3, workers=2, heap_mb=256, env=NO_TORCH)


def all_ready(instances: list[TorchServeInstance]) -> bool:
    """Whether whoever was killed by the test before is back."""
    return all(psutil.pid_exists(pid) for i in instances for pid in i.worker_pids("mortal")) and all(
        len(instance.worker_pids("mortal")) == 2 for instance in instances
    )


@asynccontextmanager
async def before(instances: list[TorchServeInstance]) -> AsyncIterator[Proxy]:
    await until(lambda: all_ready(instances), "all workers to be READY", 60.0)
    settings = tuple(
        InstanceSettings(i.inference_url, i.management_url, f"instance{n}", management_token=i.token() or "")
        for n, i in enumerate(instances)
    )
    async with proxy_before(instances[0], instances=settings, discovery_interval_s=1.0, deadline_s=30.0) as proxy:
        yield proxy


def how_many(deaths: Path) -> int:
    return len(list(deaths.iterdir()))


async def under_load(url: str, disturb: Any, clients: int = 8, least: int = 25) -> list[Raw]:
    """Clients that ask one query after the other, before, while and after it happens. -> every answer."""
    client, answers, over = Client(url), [], asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            answers.append(await client.post("/predictions/mortal", b"live"))

    asking = [asyncio.ensure_future(ask()) for _ in range(clients)]
    for happens in (None, disturb, None):
        if happens is not None:
            await happens()
        seen = len(answers)
        await until(lambda: len(answers) >= seen + least, "answers", 60.0)  # noqa: B023
    over.set()
    await asyncio.gather(*asking)
    return answers


async def test_nobody_notices_a_worker_that_is_killed(instances: list[TorchServeInstance]) -> None:
    async with before(instances) as proxy:

        async def kill() -> None:
            for pid in instances[1].worker_pids("mortal"):
                os.kill(pid, signal.SIGKILL)

        answers = await under_load(proxy.url, kill)
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"live")}


async def test_a_body_that_kills_its_worker_reaches_two(instances: list[TorchServeInstance], deaths: Path) -> None:
    async with before(instances) as proxy:
        answer = await Client(proxy.url).post("/predictions/mortal", b"die")
        assert answer.status in (500, 507)
        assert answer.json()["message"] == "Worker died."
        assert 1 <= how_many(deaths) <= 2

        async def poison() -> None:
            assert (await Client(proxy.url).post("/predictions/mortal", b"die")).status in (500, 507)

        answers = await under_load(proxy.url, poison)
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"live")}
        assert how_many(deaths) <= 4


async def test_nobody_notices_a_model_that_is_scaled_to_nothing(instances: list[TorchServeInstance]) -> None:
    """TorchServe answers none of what it had; the next look at the fleet sends that elsewhere."""
    async with before(instances) as proxy:
        try:
            answers = await under_load(
                proxy.url, lambda: asyncio.to_thread(scale, instances[1], "mortal", 0), least=200
            )
        finally:
            await asyncio.to_thread(scale, instances[1], "mortal", 2)
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"live")}


async def test_nobody_notices_a_jvm_that_is_killed(instances: list[TorchServeInstance]) -> None:
    async with before(instances) as proxy:

        async def kill() -> None:
            os.kill(instances[2].pid, signal.SIGKILL)

        answers = await under_load(proxy.url, kill)
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"live")}
