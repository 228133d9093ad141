"""The promises of the proxy before real servers: three instances, of which one is slow, then one frozen, then one dead.

What is compared is an order, never milliseconds: a busy machine is slow and not wrong.
"""

from __future__ import annotations

import gzip
import re
import struct
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from backend_programs.emulated import scores
from backend_servers import DEPLOYED, KINDS, STUDENT, ModelServer
from backends import proxy_before, run_load
from tests.backends.conftest import Connection, Servers
from tests.backends.test_fakes import BINARY, INFER, ROW
from ts_parity.engine.policy import Policy
from ts_parity.lab.emulation import Emulation
from ts_parity.lab.live import ProxyProcess
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.report import percentile
from ts_parity.lab.scenario import Outage
from ts_parity.lab.traffic import poisson_load

pytestmark = [pytest.mark.backends, pytest.mark.slow]

EVERY = pytest.mark.parametrize("kind", KINDS)
EMULATION = Emulation(service_s=0.02, cv=0.1)
RATE, QUERIES = 36.0, 480
"""One machine alone can do that, so nobody waits for want of machines."""
SLOW = Outage("m2", 1.0, 2.5, "slow", 5.0)
FROZEN_AT, THAWED_AT, KILLED_AT = 4.0, 7.0, 9.0
POLICY = Policy()

Fleets = Callable[[str], list[ModelServer]]


@pytest.fixture(scope="module")
def fleets(servers: Servers) -> Fleets:
    """`fleets(kind)` -> three instances that serve; whichever was killed is started again."""

    def fleet(kind: str) -> list[ModelServer]:
        found = servers(kind, 3)
        for server in found:
            if not server.processes():
                server.start()
                server.wait()
        return found

    return fleet


def warmed_up(fleet: list[ModelServer], proxy: ProxyProcess, queries: int = 150) -> list[QueryRecord]:
    return run_load(fleet, proxy, poisson_load(queries, RATE, 50, 7), 7, emulation=EMULATION)


def in_trouble(fleet: list[ModelServer], proxy: ProxyProcess, seed: int) -> tuple[list[QueryRecord], float]:
    """The load while one is slow, one stands still (the processes that its models are in, so that Triton and LitServe
    go on to say that they are ready), and one is killed. -> and how long the second stood still.

    Not all of its processes: a Triton whose Python stub was stopped answers, once it goes on, one request with the
    outputs of the one before it, with and without a proxy.
    """
    stood = 0.0

    def strike(started_at: float) -> None:
        nonlocal stood
        time.sleep(max(0.0, started_at + FROZEN_AT - time.monotonic()))
        began = time.monotonic()
        fleet[0].freeze(fleet[0].inference_processes())
        time.sleep(max(0.0, started_at + THAWED_AT - time.monotonic()))
        fleet[0].thaw()
        stood = time.monotonic() - began
        time.sleep(max(0.0, started_at + KILLED_AT - time.monotonic()))
        fleet[1].stop()

    load = poisson_load(QUERIES, RATE, 50, seed)
    assert load.duration_s > KILLED_AT
    try:
        return run_load(fleet, proxy, load, seed, [SLOW], EMULATION, strike), stood
    finally:
        fleet[0].thaw()


def extra_work(proxy: ProxyProcess) -> float:
    """What has been spent of the budget so far; attempts after a failure have another."""
    with urllib.request.urlopen(f"{proxy.admin_url}/metrics", timeout=30) as answer:
        (found,) = re.findall(r"^ts_parity_extra_work_total (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found)


def kept(records: list[QueryRecord], spent: float, stood_s: float) -> None:
    """No query lost, nothing wrong, extra work within its budget, and the tail is no machine's that stands still."""
    assert [(record.seq, record.outcome, record.reason) for record in records if not record.answered] == []
    assert [record for record in records if record.predicted != record.label] == []
    assert spent <= len(records) * POLICY.extra_work + POLICY.work_burst
    p99 = percentile(sorted(record.latency_s or 0.0 for record in records), 0.99)
    assert p99 is not None
    assert p99 < stood_s


@EVERY
def test_second_copies_with_nothing_but_addresses_and_places(kind: str, fleets: Fleets, tmp_path: Path) -> None:
    fleet = fleets(kind)
    with proxy_before(fleet, tmp_path, "copies") as proxy:
        warmed_up(fleet, proxy)
        before = extra_work(proxy)
        records, stood_s = in_trouble(fleet, proxy, 1)
        kept(records, extra_work(proxy) - before, stood_s)
        assert {record.outcome for record in records} == {"deployed", "hedged"}


@EVERY
def test_then_a_student_for_late_queries(kind: str, fleets: Fleets, tmp_path: Path) -> None:
    """It proves itself first, and goes on to be compared with the deployed model's own answers."""
    fleet = fleets(kind)
    with proxy_before(fleet, tmp_path, "student", student=True) as proxy:
        for _ in range(4):
            warmed_up(fleet, proxy)
            if not proxy.on_trial():
                break
        (pool,) = (each for each in proxy.status()["pools"].values() if each["trust"])
        assert pool["trust"]["state"] == "in use"
        before = extra_work(proxy)
        records, stood_s = in_trouble(fleet, proxy, 2)
        kept(records, extra_work(proxy) - before, stood_s)
        assert "reconstructed" in {record.outcome for record in records}


def untroubled(proxy: ProxyProcess) -> bool:
    endpoints = [each for pool in proxy.status()["pools"].values() for each in pool["endpoints"]]
    assert len(endpoints) >= 3
    return all(each["health"] == "in" and each["ejections"] == 0 and not each["suspect"] for each in endpoints)


async def test_a_client_whose_bodies_make_triton_answer_500_takes_no_machine_out(
    fleets: Fleets, tmp_path: Path
) -> None:
    with proxy_before(fleets("triton"), tmp_path, "faults") as proxy:
        async with Connection(proxy.base_url) as connection:
            good = KINDS["triton"].body(ROW, "7")
            for _ in range(40):
                answer = await connection.ask("POST", INFER, b"{bad")
                assert answer is not None
                assert (answer.status, [*answer.json()]) == (500, ["error"])
                answer = await connection.ask("POST", INFER, good)
                assert answer is not None
                assert answer.status == 200
        assert untroubled(proxy)


async def test_an_answer_that_triton_compresses_is_an_answer(fleets: Fleets, tmp_path: Path) -> None:
    """It does so for clients that take it. Nobody else is asked for it then, and the instance is not at fault."""
    with proxy_before(fleets("triton"), tmp_path, "gzip") as proxy:
        async with Connection(proxy.base_url) as connection:
            for _ in range(20):
                body = KINDS["triton"].body(ROW, "7")
                answer = await connection.ask("POST", INFER, body, "Accept-Encoding: gzip\r\n")
                assert answer is not None
                assert (answer.status, answer.get("content-encoding")) == (200, "gzip")
                assert KINDS["triton"].read(gzip.decompress(answer.body)) == pytest.approx(scores(DEPLOYED, ROW))
        assert proxy.work() == 20
        assert untroubled(proxy)


async def test_binary_tensors_go_through_to_triton_and_back(fleets: Fleets, tmp_path: Path) -> None:
    fleet = fleets("triton")
    with proxy_before(fleet, tmp_path, "binary") as proxy:
        async with Connection(proxy.base_url) as connection, Connection(fleet[0].url) as direct:
            through, straight = [await each.ask("POST", INFER, *BINARY) for each in (connection, direct)]
        assert through is not None
        assert straight is not None
        assert through.body == straight.body
        assert through.get("inference-header-content-length") == straight.get("inference-header-content-length")
        assert struct.unpack("<3f", through.body[-12:]) == pytest.approx(scores(DEPLOYED, ROW))


@EVERY
async def test_other_requests_are_passed_through(kind: str, fleets: Fleets, tmp_path: Path) -> None:
    fleet = fleets(kind)
    with proxy_before(fleet, tmp_path, "passed") as proxy:
        async with Connection(proxy.base_url) as connection:
            body = KINDS[kind].body(ROW, "7")
            for ask in (("GET", KINDS[kind].ready_path), ("POST", KINDS[kind].paths[STUDENT], body)):
                answer = await connection.ask(*ask)
                assert answer is not None
                assert answer.status == 200
