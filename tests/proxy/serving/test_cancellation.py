"""A client leaves at every point where it is waited for. Afterwards no task, future, group or connection is left."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.conftest import PATIENCE_S, Fleet, MakeFleet, nothing_left, until
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

HEAD = b"POST /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n%s\r\n"


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


async def connect(fleet: Fleet, data: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    writer.write(data)
    await writer.drain()
    return writer


def requests_in(fleet: Fleet) -> int:
    return int(fleet.proxy.status()["requests_in_flight"])


async def everything_gone(fleet: Fleet) -> None:
    for instance in fleet.instances:
        instance.thaw()
    await until(lambda: requests_in(fleet) == 0 and nothing_left(fleet.proxy), "everything to be let go")


async def test_while_its_body_is_read(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(*coded())
    writer = await connect(fleet, HEAD % b"" + b"[1,")
    await until(lambda: requests_in(fleet) == 1, "the request to be there")
    writer.close()
    await everything_gone(fleet)
    assert fleet.proxy.scheduler.answered["abandoned"] == 0


async def test_while_its_query_waits_for_a_place(make_fleet: MakeFleet) -> None:
    """The queued query is dropped; no instance ever hears of it."""
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.freeze()
    first = asyncio.ensure_future(fleet.post())
    await until(lambda: len(instance.received) == 1, "the place to be taken")
    writer = await connect(fleet, HEAD % b"" + b"[1, 2]")
    await until(lambda: fleet.proxy.scheduler.snapshot()["pools"]["linear/1.0"]["waiting"] == 1, "the query to wait")
    writer.close()
    await until(lambda: fleet.proxy.scheduler.answered["abandoned"] == 1, "the client's leave to be noticed")
    instance.thaw()
    assert (await first).status == 200
    await everything_gone(fleet)
    assert len(instance.received) == 1


async def test_while_its_task_is_in_flight(make_fleet: MakeFleet) -> None:
    """The work goes on: the neighbour, whose own instance is frozen, is rebuilt from the leaver's output."""
    instances = coded()
    fleet = await make_fleet(*instances, group_wait_s=PATIENCE_S)
    instances[0].freeze()
    leaver = await connect(fleet, HEAD % b"" + b"[1, 2]")
    await until(lambda: len(instances[0].received) == 1, "the first query to be sent")
    instances[1].freeze()
    stays = asyncio.ensure_future(fleet.post(x=(3, 4)))
    await until(lambda: len(instances[1].received) == 1, "the second query to be sent")
    leaver.close()
    await until(lambda: fleet.proxy.scheduler.answered["abandoned"] == 1, "the client's leave to be noticed")
    instances[0].thaw()
    answer = await stays
    assert (answer.json(), answer.get("x-ts-parity")) == ([11.0, 25.0], "reconstructed")
    await everything_gone(fleet)


async def test_while_its_answer_is_being_rebuilt(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    instances[2].freeze()
    writer = await connect(fleet, HEAD % b"" + b"[1, 2]")
    await until(lambda: "group" in instances[2].operations(), "the protection to be sent")
    writer.close()
    await until(lambda: fleet.proxy.scheduler.answered["abandoned"] == 1, "the client's leave to be noticed")
    await everything_gone(fleet)
    assert all("finish" not in instance.operations() for instance in instances)


async def test_while_its_answer_is_being_finished(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    writer = await connect(fleet, HEAD % b"" + b"[1, 2]")
    # Both places that could finish are slow enough to leave meanwhile.
    instances[1].models[0].latency_s = 0.2
    await until(lambda: any("finish" in i.operations() for i in instances), "the finish to be sent")
    writer.close()
    await everything_gone(fleet)


@pytest.mark.parametrize("chunks", [1, 200])
async def test_while_its_answer_is_streamed(make_fleet: MakeFleet, chunks: int) -> None:
    """The stream runs through to its end unread, and its place is free again."""
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.models[0].script.append(Canned(chunks=(b"x" * 65536,) * chunks))
    writer = await connect(fleet, HEAD % b"" + b"[1, 2]")
    await until(lambda: len(instance.received) == 1, "the query to be sent")
    writer.transport.abort()
    await everything_gone(fleet)
    assert (await fleet.post()).status == 200


async def test_while_it_is_passed_through(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.freeze()
    writer = await connect(fleet, b"GET /explanations/linear HTTP/1.1\r\nHost: h\r\n\r\n")
    await until(lambda: fleet.proxy.upstream.in_flight == 1, "the request to be passed on")
    writer.close()
    await until(lambda: fleet.proxy.upstream.in_flight == 0, "the connection to be closed")
    await everything_gone(fleet)


async def test_a_crowd_that_leaves(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    writers = [await connect(fleet, HEAD % b"" + b"[1, 2]") for _ in range(40)]
    await until(lambda: requests_in(fleet) > 0, "somebody to be in")
    for writer in writers:
        writer.transport.abort()
    await everything_gone(fleet)
    assert [answer.status for answer in await fleet.posts(4)] == [200] * 4


async def test_closing_with_work_in_flight_leaves_no_task(make_fleet: MakeFleet) -> None:
    before = asyncio.all_tasks()
    instances = coded()
    fleet = await make_fleet(*instances)
    for instance in instances:
        instance.freeze()
    clients = [asyncio.ensure_future(fleet.post()) for _ in range(3)]
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 3, "all to be in")
    await fleet.proxy.close()
    outcomes = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(outcome, (asyncio.IncompleteReadError, ConnectionError)) for outcome in outcomes)
    for instance in instances:
        await instance.stop()
    await until(lambda: asyncio.all_tasks() <= before, "all tasks to end")
