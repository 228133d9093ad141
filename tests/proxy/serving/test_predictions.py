"""What a client of a coded fleet sees: ordinary answers, rebuilt ones, and clear errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from tests.proxy.conftest import PATIENCE_S, Client, Clock, MakeFleet, Raw, nothing_left, until
from ts_parity.codes import ErasureCode, make_code, read_row_errors
from ts_parity.config import parse_endpoint
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection


def linear(n: int) -> list[float]:
    return [n + 2.0 * (n + 1), 3.0 * n + 4.0 * (n + 1)]


def coded(**settings: object) -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection(**settings))]


async def test_an_answer_that_arrives_goes_out_as_it_is(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded(), reconstruct_after_s=PATIENCE_S)
    direct = await make_fleet(FakeTorchServe(FakeModel(role=None)))
    answer, plain = await fleet.post(), await direct.post()
    assert answer.status_line == "HTTP/1.1 200 "
    assert answer.body == json.dumps([5.0, 11.0], indent=2).encode()
    assert answer.get("x-ts-parity") == "deployed"
    assert [name for name, _ in answer.headers] == [name for name, _ in plain.headers]
    assert answer.get("content-type") is None


@pytest.mark.parametrize("frozen", [0, 1])
async def test_a_frozen_workers_query_is_decoded(make_fleet: MakeFleet, frozen: int) -> None:
    """With one member's instance frozen, its answer is made of the neighbour's output and the parity output."""
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[frozen].freeze()
    answers = await fleet.posts(2)
    assert [answer.json() for answer in answers] == [linear(0), linear(1)]
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
    assert sum(op == "finish" for instance in instances for op in instance.operations()) in (1, 2)  # one more if late
    instances[frozen].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


@pytest.mark.parametrize(("code", "cost", "work"), [("sum", None, 1.0), ("sum", 1.2, 1.2), ("student", 0.5, 0.25)])
async def test_a_protections_work_is_what_its_archive_says_a_group_costs(
    make_fleet: MakeFleet, code: str, cost: float | None, work: float
) -> None:
    """A parity model runs once, however many its group has; of a backup's two slots only one is taken here."""
    instances = coded(code=code, cost=cost)
    fleet = await make_fleet(*instances)
    for instance in instances[:2] if code == "student" else instances[:1]:
        instance.freeze()
    await fleet.posts(1 if code == "student" else 2)
    assert (
        f'ts_parity_work_total{{kind="protection",pool="linear/1.0"}} {work}\n'
        in fleet.proxy.metrics.exposition().decode()
    )
    for instance in instances:
        instance.thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_rows_are_weighed_by_what_their_archives_say_of_their_errors(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"0,1": [[1.0, 1.5], [1.5, 4.0]]}
    rows = [protection(name=f"p{row}", r=2, row=row, row_errors=told) for row in range(2)]
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), *map(FakeTorchServe, rows)]
    fleet = await make_fleet(*instances)
    weighed, decode = [], ErasureCode.decode

    def watched(self: ErasureCode, *args: Any) -> Any:
        weighed.append(args[-1])
        return decode(self, *args)

    monkeypatch.setattr(ErasureCode, "decode", watched)
    instances[0].freeze()
    answers = await fleet.posts(2)
    instances[0].thaw()
    assert [answer.json() for answer in answers] == [linear(0), linear(1)]
    assert weighed
    assert weighed == [read_row_errors(told, make_code("sum", 2, 2))] * len(weighed), "on a busy machine both are late"


@pytest.mark.parametrize("failure", ["worker_died", "drop", "oom"])
async def test_a_dead_workers_query_is_answered(make_fleet: MakeFleet, failure: str) -> None:
    """An instance's failure is not the client's: the query is sent again or rebuilt."""
    canned = {
        "worker_died": Canned.worker_died(),
        "drop": Canned(drop=True),
        "oom": Canned.error(507, "InternalServerException", "Worker died."),
    }[failure]
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].models[0].script.append(canned)
    answers = await fleet.posts(2)
    assert [answer.json() for answer in answers] == [linear(0), linear(1)]
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_without_a_second_chance_the_instances_own_error_is_passed_on(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, max_attempts=1)
    instance.models[0].script.append(Canned.worker_died())
    answer = await fleet.post()
    assert answer.status == 500
    assert answer.json() == {"code": 500, "type": "InternalServerException", "message": "Worker died."}
    assert answer.get("x-ts-parity") is None


async def test_exact_is_a_backup_with_nothing_to_finish(make_fleet: MakeFleet) -> None:
    """A backup's slot is F's own answer: archives need no wrapper, and clients that want it exact may have it."""
    deployed = [FakeTorchServe(FakeModel(role=None)), FakeTorchServe(FakeModel(role=None))]
    backup = FakeTorchServe(protection(code="exact"))
    fleet = await make_fleet(*deployed, backup)
    deployed[0].freeze()
    answers = await fleet.posts(2, x_ts_parity_exact="1")
    assert [answer.json() for answer in answers] == [linear(0), linear(1)]
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
    assert all(answer.get("pragma") == "no-cache" for answer in answers)
    assert set(deployed[0].operations() + deployed[1].operations()) == {"plain"}


async def test_a_client_may_refuse_rebuilt_answers(make_fleet: MakeFleet, clock: Clock) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    asked = asyncio.ensure_future(fleet.posts(2, x_ts_parity_exact="1", x_ts_parity_deadline_ms="20000"))
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 1, "the other to be answered")
    clock.advance(20.0)
    answers = await asked
    assert sorted(answer.status for answer in answers) == [200, 504]
    assert all(answer.get("x-ts-parity") in (None, "deployed") for answer in answers)


async def test_both_members_frozen(make_fleet: MakeFleet, clock: Clock) -> None:
    """R = 1 and two lost: each gets a clear error at its deadline, and nothing is left behind."""
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    instances[1].freeze()
    asked = asyncio.ensure_future(fleet.posts(2, x_ts_parity_deadline_ms="20000"))
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 2, "both to be in")
    await until(lambda: "group" in instances[2].operations(), "their group to be sent")
    assert not asked.done()
    clock.advance(20.0)
    answers = await asked
    for answer in answers:
        assert answer.status == 504
        assert answer.json()["type"] == "DeadlineExceededException"
    instances[0].thaw()
    instances[1].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "application/json"),
        ("a.txt", "text/plain"),
        ("a.png", "image/png"),
        ("a", "application/octet-stream"),
    ],
)
async def test_the_default_answer(name: str, kind: str, make_fleet: MakeFleet, tmp_path) -> None:
    (tmp_path / name).write_bytes(b'{"sorry": true}')
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, default_answer=str(tmp_path / name))
    instance.freeze()
    answer = await fleet.post(x_ts_parity_deadline_ms="50")
    assert (answer.status, answer.json()) == (200, {"sorry": True})
    assert answer.get("x-ts-parity") == "default"
    assert answer.get("content-type") == kind


async def test_a_lone_query_is_protected_by_a_group_that_is_not_full(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()  # the first query goes to the first instance
    answer = await fleet.post(x=(1, 2))
    assert (answer.json(), answer.get("x-ts-parity")) == ([5.0, 11.0], "reconstructed")


async def test_queries_that_differ_in_what_the_model_computes_share_no_group(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances, group_by=("x-top-k",), group_wait_s=0.3, reconstruct_after_s=PATIENCE_S)
    await asyncio.gather(fleet.post(x_top_k="1"), fleet.post(x_top_k="2"))
    assert "group" not in instances[2].operations()
    await asyncio.gather(fleet.post("/predictions/linear/1.0/a"), fleet.post("/predictions/linear/1.0/b"))
    assert "group" not in instances[2].operations()


async def test_overload_is_said_at_once(make_fleet: MakeFleet, clock: Clock) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, max_waiting=1)
    instance.freeze()
    waiting = [asyncio.ensure_future(fleet.post(x_ts_parity_deadline_ms="8000")) for _ in range(2)]
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 2, "both to be in")
    answer = await fleet.post()
    assert answer.status == 503
    assert answer.json()["type"] == "ServiceUnavailableException"
    assert answer.get("retry-after") == "1"
    clock.advance(8.0)
    assert [late.status for late in await asyncio.gather(*waiting)] == [504, 504]


async def test_who_is_refused_is_told_how_long_the_queue_takes(make_fleet: MakeFleet, clock: Clock) -> None:
    instance = FakeTorchServe(FakeModel(workers=10))
    fleet = await make_fleet(instance, max_waiting=5, max_wait_s=60.0)

    async def six_seconds_each(number: int) -> list[asyncio.Future[Raw]]:
        asked = [asyncio.ensure_future(fleet.post(x_ts_parity_deadline_ms="90000")) for _ in range(number)]
        await until(lambda: fleet.proxy.driver.left_over()["clients"] == number, "all to be in")
        return asked

    instance.freeze()
    asked = await six_seconds_each(10)
    clock.advance(6.0)
    instance.thaw()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 10
    instance.freeze()
    asked = await six_seconds_each(15)
    refused = await fleet.post()
    assert (refused.status, refused.get("retry-after")) == (503, "3"), "five wait for ten places"
    instance.thaw()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 15


async def test_an_instant_model_never_waits_for_a_slow_one_beside_it(make_fleet: MakeFleet) -> None:
    """One worker each on one instance: directly both are served at once, and so they are through the proxy."""
    slow, instant = FakeModel("slow", role=None), FakeModel("instant", role=None)
    instance = FakeTorchServe(slow, instant)
    fleet = await make_fleet(instance)
    slow.script.append(Canned(hold_s=60.0))
    direct = Client(instance.inference)
    stuck = asyncio.create_task(fleet.post("/predictions/slow"))
    await until(lambda: len(instance.received) == 1, "the slow model to be asked")
    for client in (direct, fleet.client):
        answer = await client.post("/predictions/instant", b"[1, 2]")
        assert (answer.status, answer.json()) == (200, linear(1))
    assert not stuck.done()
    stuck.cancel()


async def test_a_full_instance_is_left_alone_and_the_query_goes_elsewhere(make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances)
    instances[0].models[0].script.append(Canned.no_worker())
    assert (await fleet.post()).status == 200


async def test_the_worker_gets_the_clients_path_and_headers(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances, reconstruct_after_s=PATIENCE_S)
    await fleet.post("/predictions/linear/1.0/some/path%20x?q=1", X_Odd="kept")
    received = [r for instance in instances[:2] for r in instance.received]
    assert [r.target for r in received] == ["/predictions/linear/1.0/some/path%20x?q=1"]
    assert received[0].header("x-odd") == "kept"
    assert received[0].header("host") == f"{fleet.client.host}:{fleet.client.port}"
    assert received[0].header("x-ts-parity-op") == "raw"


async def test_unversioned_requests_go_to_the_default_version(make_fleet: MakeFleet) -> None:
    old, new = FakeModel(default=False), FakeModel(version="2.0", matrix=FakeModel().matrix * 10)
    fleet = await make_fleet(FakeTorchServe(old, new))
    assert (await fleet.post("/predictions/linear")).json() == [50.0, 110.0]
    assert (await fleet.post("/predictions/linear/1.0")).json() == [5.0, 11.0]


@pytest.mark.parametrize("protected", [False, True])
async def test_a_version_that_no_client_asked_for_is_named_where_it_matters(
    make_fleet: MakeFleet, protected: bool
) -> None:
    """TorchServe's metrics label what has none as "default"; but a group never mixes two versions."""
    same, other = FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel(default=False), FakeModel(version="0.1"))
    more = [FakeTorchServe(FakeModel()), *([FakeTorchServe(protection())] if protected else [])]
    fleet = await make_fleet(same, other, *more)
    for _ in range(4):
        assert [answer.status for answer in await fleet.posts(3)] == [200] * 3
    versioned = "/predictions/linear/1.0"
    asked = {request.target for request in same.received + more[0].received}
    assert asked == {versioned if protected else "/predictions/linear"}
    assert {request.target for request in other.received} == {versioned}
    deployed = (same, other, more[0])  # a protection may still be asked for an earlier group
    for instance in deployed:
        instance.received.clear()
    await fleet.post(versioned)
    assert {request.target for instance in deployed for request in instance.received} <= {versioned}


async def test_the_secret_goes_with_every_operation(make_fleet: MakeFleet) -> None:
    models = [FakeModel(secret="s"), FakeModel(secret="s"), protection(secret="s")]
    instances = [FakeTorchServe(model) for model in models]
    fleet = await make_fleet(*instances, secret="s")
    instances[0].freeze()
    assert [answer.json() for answer in await fleet.posts(2)] == [linear(0), linear(1)]


async def test_a_key_per_instance(make_fleet: MakeFleet) -> None:
    """Every TorchServe makes its own keys; the client needs none of them."""
    one = FakeTorchServe(FakeModel(), token="t1", management_token="m1")
    two = FakeTorchServe(FakeModel(), token="t2", management_token="m2")
    await one.start()
    await two.start()
    try:
        given = tuple(
            parse_endpoint(f"{instance.endpoint},token=t{n},management_token=m{n}")
            for n, instance in ((1, one), (2, two))
        )
        fleet = await make_fleet(given=given)
        assert [answer.status for answer in await fleet.posts(6)] == [200] * 6
    finally:
        await one.stop()
        await two.stop()


@pytest.mark.parametrize("vouch", [False, True])
async def test_a_clients_own_key_is_the_instances_to_judge(make_fleet: MakeFleet, vouch: bool) -> None:
    """It was replaced by the proxy's, so that a wrong key got a 200. `vouch` asks for just that."""
    async with FakeTorchServe(FakeModel(), token="right", management_token="m") as instance:
        given = (parse_endpoint(f"{instance.endpoint},token=right,management_token=m"),)
        fleet = await make_fleet(given=given, vouch=vouch)
        paths = ("/predictions/linear", "/predictions/linear/1.0", "/explanations/linear", "/ping")
        for key, status in ((None, 200), ("Bearer right", 200), ("Bearer wrong", 400), ("", 400), ("Basic x", 400)):
            for path in paths:
                shown = () if key is None else (("Authorization", key),)
                for extra in ((), (("Connection", "x"),)):  # read with the parser
                    answer = await fleet.client.post(path, b"[1, 2]", (*shown, *extra))
                    assert answer.status == (200 if vouch else status), (key, path)
                    assert vouch or status == 200 or answer.json()["type"] == "InvalidKeyException"
                assert [value for name, value in instance.received[-1].headers if name.lower() == "authorization"] == [
                    "Bearer right" if vouch or key is None else key
                ]


async def test_a_wrong_key_buys_no_rebuilt_answer(make_fleet: MakeFleet) -> None:
    """A group goes to the parity instance with the proxy's key, so a query with a key of its own is in none."""
    models = (FakeModel(), FakeModel(), protection())
    instances = [FakeTorchServe(model, token="right", management_token="m") for model in models]
    async with contextlib.AsyncExitStack() as stack:
        for instance in instances:
            await stack.enter_async_context(instance)
        keys = ",token=right,management_token=m"
        fleet = await make_fleet(given=tuple(parse_endpoint(instance.endpoint + keys) for instance in instances))
        answers = await fleet.posts(4, Authorization="Bearer wrong")
        assert [answer.status for answer in answers] == [400] * 4
        assert {operation for instance in instances for operation in instance.operations()} == {"plain"}
        assert instances[2].received == []
        assert [answer.status for answer in await fleet.posts(4)] == [200] * 4
        assert "group" in instances[2].operations()


@pytest.mark.parametrize("code", ["sum", "exact"])
@pytest.mark.parametrize("launch", ["group", "late"])
async def test_what_is_declared_as_never_coded_is_not(make_fleet: MakeFleet, code: str, launch: str) -> None:
    """A body that names a file of the instance: no protection hears of it, whatever its code and launch."""
    if (code, launch) == ("sum", "late"):
        pytest.skip("parity models are launched with their group")
    declared = {"content_types": ["application/json"], "keys": []}
    instances = coded(code=code, never_code=declared)
    instances[0].models[0].latency_s = instances[1].models[0].latency_s = 0.05
    fleet = await make_fleet(*instances, launch=launch, reconstruct_after_s=0.001)
    answers = await fleet.posts(4)
    assert [answer.json() for answer in answers] == [linear(n) for n in range(4)]
    assert {answer.get("x-ts-parity") for answer in answers} == {"deployed"}
    assert all("group" not in each.operations() and "raw" not in each.operations() for each in instances)
