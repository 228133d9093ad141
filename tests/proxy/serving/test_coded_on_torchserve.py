"""The whole path on real TorchServe: wrapped archives, frozen and killed workers, answers decoded and finished."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from tests.conftest import TorchServeFactory
from tests.proxy.conftest import Fleet, MakeFleet, Raw, nothing_left, until
from tests.worker.serving import make_folder, network, pack, vector
from ts_parity.config import InstanceSettings
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.torchserve.wrapping import wrap_deployed, wrap_parity

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]

MODEL = "linear"


@pytest.fixture(scope="module")
def instances(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> list[TorchServeInstance]:
    """Two deployed and one with protections; linear without a bias, so a model that protects itself exactly."""
    folder = tmp_path_factory.mktemp("archives")
    state = network().state_dict()
    state["head.bias"] = state["head.bias"] * 0
    bare = pack(make_folder(folder / "linear", "overrides_steps", weights=state), MODEL)
    deployed = wrap_deployed(bare, folder / "out", MODEL, samples=_samples(folder))
    parity = wrap_parity(
        bare,
        folder / "out",
        "linear_parity",
        code="sum",
        k=2,
        partial=True,
        parity_model=folder / "linear" / "script.pt",
        samples=_samples(folder),
    )
    exact = wrap_parity(bare, folder / "out", "linear_exact", code="exact", k=2)
    return torchserve_factory.fleet([[deployed], [deployed], [parity, exact]])


def _samples(folder: Any) -> list[Any]:
    files = [folder / f"sample{n}.bin" for n in range(2)]
    for n, file in enumerate(files):
        file.write_bytes(vector(900 + n))
    return files


def given(instances: list[TorchServeInstance]) -> tuple[InstanceSettings, ...]:
    return tuple(InstanceSettings(i.inference_url, i.management_url, i.name) for i in instances)


@contextmanager
def frozen(*instances: TorchServeInstance) -> Iterator[None]:
    pids = [pid for instance in instances for pid in instance.worker_pids(MODEL)]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # killed meanwhile
                os.kill(pid, signal.SIGCONT)


SETTINGS: dict[str, Any] = {
    "describe_timeout_s": 10.0,
    "task_timeout_s": 60.0,
    "deadline_s": 20.0,
    "reconstruct_after_s": 0.1,
    "group_wait_s": 0.1,
    "protect": "sum",
}


@pytest.fixture
async def fleet(make_fleet: MakeFleet, instances: list[TorchServeInstance]) -> AsyncIterator[Fleet]:
    fleet = await make_fleet(given=given(instances), **SETTINGS)
    yield fleet
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def ask(fleet: Fleet, n: int, *headers: tuple[str, str]) -> Raw:
    return await fleet.client.post(f"/predictions/{MODEL}", vector(n), headers)


def close(one: Raw, other: Raw) -> bool:
    return _same(json.loads(one.body), json.loads(other.body))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(np.isclose(one, other, atol=1e-4)) if isinstance(one, float) else one == other


async def test_the_fleet_is_discovered(fleet: Fleet) -> None:
    pool = (await fleet.admin.get("/status")).json()["pools"][f"{MODEL}/1.0"]
    assert pool["code"] == {"name": "sum", "k": 2, "r": 1, "family": "parity", "partial": True}
    assert [endpoint["row"] for endpoint in pool["endpoints"]] == [None, None, 0]
    assert pool["verdicts"] == ["codable"]


@pytest.mark.parametrize("slow", [0, 1])
async def test_a_frozen_workers_query_is_answered_by_decoding(
    fleet: Fleet, instances: list[TorchServeInstance], slow: int
) -> None:
    ordinary = [await ask(fleet, n) for n in (1, 2)]
    with frozen(instances[slow]):
        rebuilt = await asyncio.gather(ask(fleet, 1), ask(fleet, 2))
    assert sorted(answer.get("x-ts-parity") or "" for answer in rebuilt) == ["deployed", "reconstructed"]
    for answer, expected in zip(rebuilt, ordinary, strict=True):
        assert answer.status_line == expected.status_line
        assert close(answer, expected), (answer.body, expected.body)
        assert [name for name, _ in answer.headers] == [name for name, _ in expected.headers]


async def test_exact_answers_as_the_model_itself(make_fleet: MakeFleet, instances: list[TorchServeInstance]) -> None:
    """To the last bits, that is, for a group may run as one batch, and a batch rounds differently."""
    fleet = await make_fleet(given=given(instances), **{**SETTINGS, "protect": "exact-only"})
    ordinary = [await ask(fleet, n) for n in (1, 2)]
    with frozen(instances[0]):
        rebuilt = await asyncio.gather(ask(fleet, 1, ("x-ts-parity-exact", "1")), ask(fleet, 2))
    assert sorted(answer.get("x-ts-parity") or "" for answer in rebuilt) == ["deployed", "reconstructed"]
    assert all(close(answer, expected) for answer, expected in zip(rebuilt, ordinary, strict=True))
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_both_members_frozen_get_a_clear_error_at_their_deadline(
    fleet: Fleet, instances: list[TorchServeInstance]
) -> None:
    with frozen(instances[0], instances[1]):
        answers = await asyncio.gather(*(ask(fleet, n, ("x-ts-parity-deadline-ms", "400")) for n in (1, 2)))
    assert [answer.status for answer in answers] == [504, 504]
    assert {answer.json()["type"] for answer in answers} == {"DeadlineExceededException"}


async def test_a_killed_workers_query_is_answered(fleet: Fleet, instances: list[TorchServeInstance]) -> None:
    ordinary = [await ask(fleet, n) for n in (1, 2)]
    with frozen(instances[0]):
        waiting = [asyncio.ensure_future(ask(fleet, n)) for n in (1, 2)]
        await until(lambda: fleet.proxy.scheduler.in_flight() >= 1, "the queries to be sent")
        for pid in instances[0].worker_pids(MODEL):
            os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*waiting)
    assert all(close(answer, expected) for answer, expected in zip(answers, ordinary, strict=True))
    await until(lambda: _all_ready(instances), "the worker to be back")


def _all_ready(instances: list[TorchServeInstance]) -> bool:
    return all(instance.worker_pids(MODEL) for instance in instances[:2])
