"""Several proxies in front of one fleet: one serves, the others forward; nothing is lost, whoever dies or vanishes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.conftest import Clock, Raw, nothing_left, until
from tests.proxy.serving.sharing import POOL, Sharing, sharing
from ts_parity.proxy.http.messages import Response
from ts_parity.proxy.operations.status import status_table
from ts_parity.testing import Canned, FakeModel, FakeTorchServe

pytestmark = pytest.mark.slow

COUNT = 3


def twelve(**model: Any) -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel(**model)) for _ in range(12)]


def wanted(x: int) -> list[float]:
    return [x + 2.0 * (x + 1), 3.0 * x + 4.0 * (x + 1)]


def right(answer: Raw, x: int) -> bool:
    return answer.status == 200 and answer.json() == wanted(x)


@dataclass
class Load:
    """Each query once, and its answer."""

    answers: dict[int, Raw] = field(default_factory=dict)
    asked: int = 0


@asynccontextmanager
async def load(shared: Sharing, *at: int, clients: int = 4) -> AsyncIterator[Load]:
    """Clients at these proxies, one query after the other. At the end every query must have had its right answer."""
    running, over = Load(), asyncio.Event()

    async def ask(number: int) -> None:
        while not over.is_set():
            x, running.asked = running.asked, running.asked + 1
            running.answers[x] = await shared.post(number, x)

    asking = [asyncio.create_task(ask(number)) for number in at for _ in range(clients)]
    try:
        await until(lambda: len(running.answers) >= 20, "the first answers")
        yield running
        seen = len(running.answers)
        await until(lambda: len(running.answers) >= seen + 20, "answers after all this")
    finally:
        over.set()
        await asyncio.gather(*asking)
    assert sorted(running.answers) == [*range(running.asked)]
    wrong = {x: (answer.status, answer.body) for x, answer in running.answers.items() if not right(answer, x)}
    assert not wrong


async def test_one_serves_and_the_others_forward(clock: Clock) -> None:
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        answers = await asyncio.gather(*(shared.post(x % COUNT, x) for x in range(30)))
        assert all(right(answer, x) for x, answer in enumerate(answers))
        assert [shared.answered(number) for number in range(COUNT)] == [30 * (n == owner) for n in range(COUNT)]
        assert sum(len(instance.received) for instance in shared.instances) == 30
        for number in set(range(COUNT)) - {owner}:
            assert shared.forwarded(number, "answered") == 10
        await until(lambda: all(nothing_left(proxy) for proxy in shared.proxies.values()), "nothing left")


async def test_a_forwarded_answer_is_as_the_owner_gives_it(clock: Clock) -> None:
    """And no header that proxies exchange reaches the client, or an instance."""
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        own, forwarded = await shared.post(owner, 1), await shared.post((owner + 1) % COUNT, 1)
        assert own.status_line == forwarded.status_line
        assert own.body == forwarded.body
        names = [name for name, _ in own.headers]
        assert [name for name, _ in forwarded.headers] == names
        assert forwarded.get("x-ts-parity") == "deployed"
        ours = [name for i in shared.instances for r in i.received for name, _ in r.headers if "parity" in name.lower()]
        assert ours == []


async def test_what_a_client_asks_of_the_proxy_goes_with_its_query(clock: Clock) -> None:
    async with sharing(clock, twelve()) as shared:
        number = (shared.owner() + 1) % COUNT
        for instance in shared.instances:
            instance.freeze()
        late = await shared.post(number, 1, x_ts_parity_deadline_ms="80")
        assert late.status == 504
        assert late.json()["type"] == "DeadlineExceededException"
        assert shared.proxies[shared.owner()].scheduler.failed, "the owner knew the deadline"
        for instance in shared.instances:
            instance.thaw()
        wrong = await shared.post(number, 1, x_ts_parity_deadline_ms="soon")
        assert wrong.status == 400


async def test_errors_of_instances_come_back_as_they_are(clock: Clock) -> None:
    fleet = twelve()
    async with sharing(clock, fleet) as shared:
        for instance in fleet:
            instance.models[0].script.append(Canned.own(418, b"teapot", (("x-kind", "tea"),)))
        answer = await shared.post((shared.owner() + 1) % COUNT, 1)
        assert (answer.status, answer.body, answer.get("x-kind")) == (418, b"teapot", "tea")


async def test_a_streamed_answer_is_forwarded_as_it_comes(clock: Clock) -> None:
    fleet = twelve()
    async with sharing(clock, fleet) as shared:
        for instance in fleet:
            instance.models[0].script.append(Canned(chunks=(b"one", b"two")))
        answer = await shared.post((shared.owner() + 1) % COUNT, 1)
        assert answer.body == b"onetwo"
        assert answer.complete
        assert answer.get("x-ts-parity") == "deployed"


async def test_the_owner_is_killed_under_load(clock: Clock) -> None:
    async with sharing(clock, twelve(latency_s=0.01)) as shared:
        owner = shared.owner()
        others = [number for number in range(COUNT) if number != owner]
        async with load(shared, *others) as running:
            await shared.remove(owner)
            await until(lambda: all(owner not in shared.alive(number) for number in others), "its end is noticed")
            seen = len(running.answers)
            await until(lambda: len(running.answers) > seen + 20, "answers without it")
        assert shared.owner() in others
        assert sum(shared.forwarded(number, "taken back") for number in others) > 0


async def test_a_proxy_joins_under_load(clock: Clock) -> None:
    async with sharing(clock, twelve(latency_s=0.005), first=2) as shared, load(shared, 0, 1):
        await shared.add(2)
        assert shared.named(0) in (0, 1), "a newcomer stands by at first"
        assert shared.named(2) == shared.named(0)
        await shared.settled()
        shared.owner()
        assert shared.alive(2) == {0, 1}


@pytest.mark.parametrize("state", ["cut", "hung"])
async def test_a_partition_under_load(clock: Clock, state: str) -> None:
    """Each side carries on by itself. `hung`: packets vanish, so queries on their way wait until the silence counts."""
    async with sharing(clock, twelve(latency_s=0.005)) as shared:
        owner = shared.owner()
        apart = (owner + 1) % COUNT
        async with load(shared, *range(COUNT)):
            shared.split(apart, state=state)
            await shared.pass_time(3.0)
            await until(lambda: shared.alive(apart) == set(), "the other side is given up")
            assert shared.named(apart) == apart
            assert shared.answered(apart) > 0
            shared.join()
            await shared.pass_time(4.0)
            await until(lambda: all(len(shared.alive(n)) == 2 for n in range(COUNT)), "all see all again")
            assert shared.owner() == owner


async def test_views_that_differ_forward_nothing_twice(clock: Clock) -> None:
    """One sees the owner and another does not: what that one forwards to the first is served there."""
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        sees, blind = (owner + 1) % COUNT, (owner + 2) % COUNT
        shared.links[blind, owner].become("cut")
        await until(lambda: owner not in shared.alive(blind), "one does not see the owner")
        assert shared.named(sees) == owner
        before = shared.answered(owner)
        answers = [await shared.post(blind, x) for x in range(5)]
        assert all(right(answer, x) for x, answer in enumerate(answers))
        assert shared.answered(owner) == before
        assert shared.answered(sees) + shared.answered(blind) == 5


async def test_a_drained_owner_hands_over_and_forwards(clock: Clock) -> None:
    async with sharing(clock, twelve(), drain_delay_s=60.0) as shared:
        owner = shared.owner()
        shared.proxies[owner].drain()
        await shared.pass_time(1.0)
        assert shared.owner() != owner
        assert right(await shared.post(owner, 3), 3), "while it drains it forwards its own clients' queries"
        assert shared.answered(owner) == 0


async def test_a_client_that_leaves_is_gone_everywhere(clock: Clock) -> None:
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        for instance in shared.instances:
            instance.freeze()
        asking = asyncio.create_task(shared.post(number, 1))
        await until(lambda: shared.proxies[owner].driver.left_over()["clients"] == 1, "the owner has it")
        asking.cancel()
        await until(lambda: shared.proxies[owner].driver.left_over()["clients"] == 0, "the owner knows")
        assert shared.forwarded(number, "abandoned") == 1


async def test_a_model_that_must_be_asked_once_is_not_asked_again(clock: Clock) -> None:
    """The link breaks with the query at the owner: it may have run. Where nothing could have run, it is served."""
    async with sharing(clock, twelve(repeatable=False)) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        for instance in shared.instances:
            instance.freeze()
        asking = asyncio.create_task(shared.post(number, 1))
        await until(lambda: any(instance.received for instance in shared.instances), "an instance has it")
        shared.links[number, owner].become("cut")
        answer = await asking
        assert answer.status == 503
        assert b"must not be asked twice" in answer.body
        for instance in shared.instances:
            instance.thaw()
        assert sum(len(instance.received) for instance in shared.instances) == 1
        await until(lambda: owner not in shared.alive(number), "the cut is noticed")
        assert right(await shared.post(number, 2), 2)


async def test_the_same_of_a_model_that_may_be_repeated_is_answered(clock: Clock) -> None:
    async with sharing(clock, twelve(latency_s=0.05)) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        asking = asyncio.create_task(shared.post(number, 1))
        await until(lambda: shared.proxies[owner].driver.left_over()["clients"] == 1, "the owner has it")
        shared.links[number, owner].become("cut")
        assert right(await asking, 1)
        assert shared.forwarded(number, "taken back") == 1


async def test_what_is_taken_back_has_the_rest_of_its_time_and_no_more(clock: Clock, tmp_path: Path) -> None:
    """The owner hangs with the query, and the instances with the proxy that takes it back."""
    default = tmp_path / "default.json"
    default.write_text("[0]")
    async with sharing(clock, twelve(), deadline_s=5.0, default_answer=str(default)) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        for instance in shared.instances:
            instance.freeze()
        shared.links[number, owner].become("hung")
        asking = asyncio.create_task(shared.post(number, 1))
        proxy = shared.proxies[number]
        forwarder = proxy._forwarder
        assert forwarder is not None
        await until(lambda: forwarder.in_flight() == 1, "it is forwarded")
        (forwarded,) = forwarder._out[shared.links[number, owner].url]
        while not proxy.scheduler.open_queries():
            await shared.pass_time(0.25)
        (query,) = proxy.scheduler._life.live.values()
        assert query.deadline_at == pytest.approx(forwarded._ends_at, abs=1e-3)
        while not asking.done():
            await shared.pass_time(0.25)
        assert (asking.result().status, asking.result().body) == (200, b"[0]")
        assert asking.result().get("x-ts-parity") == "default"
        assert shared.forwarded(number, "taken back") == 1


async def test_an_owner_that_cannot_reach_the_instances_loses_nothing(clock: Clock) -> None:
    """Its answers say that it could not; whoever has forwarded them serves them, and later forwards to another."""
    fleet = twelve()
    async with sharing(clock, fleet) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        addresses = {i.inference for i in fleet}
        proxy = shared.proxies[owner]
        proxy.driver.change_fleet(
            proxy.plan, {n: type(a)("http://127.0.0.1:9") for n, a in proxy._addresses.items() if a.url in addresses}
        )
        answers = await asyncio.gather(*(shared.post(number, x) for x in range(20)))
        assert all(right(answer, x) for x, answer in enumerate(answers))


@pytest.mark.parametrize("status", [200, 413, 502])
async def test_a_page_of_something_in_between_is_no_answer(clock: Clock, status: int) -> None:
    """A gateway, a captive portal, the owner's own server that refuses: none of them is the member that was asked."""
    page = Response(status, "", (("content-length", "4"),), b"page")
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        shared.proxies[owner]._server.handle = lambda _, pending: pending.respond(page)
        assert right(await shared.post(number, 1), 1)
        assert shared.forwarded(number, "taken back") == 1


async def test_a_forged_mark_of_a_peer_is_a_clients(clock: Clock) -> None:
    """It is forwarded like any other; so is one with the proof of another secret."""
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        number = (owner + 1) % COUNT
        peers = shared.proxies[number].peers
        assert peers is not None
        member = peers.members.own
        for forged in (member, f"{member} {'0' * 64}", f"x {peers.forwarding_header[1].split()[1]}", "\u00e9", ""):
            answer = await shared.post(number, 1, x_ts_parity_forwarded=forged)
            assert right(answer, 1)
            assert answer.get("x-ts-parity-forwarded") is None
        assert shared.forwarded(number, "answered") == 5
        assert shared.answered(number) == 0


async def test_a_replayed_mark_keeps_a_query_where_it_is_and_does_nothing_else(clock: Clock) -> None:
    async with sharing(clock, twelve()) as shared:
        owner = shared.owner()
        number, third = (owner + 1) % COUNT, (owner + 2) % COUNT
        peers = shared.proxies[number].peers
        assert peers is not None
        assert right(await shared.post(third, 1, x_ts_parity_forwarded=peers.forwarding_header[1]), 1)
        assert shared.answered(third) == 1


async def test_status_metrics_and_access_log_say_what_was_forwarded(clock: Clock, tmp_path: Path) -> None:
    async with sharing(clock, twelve(), first=0) as shared:
        logs = [tmp_path / f"{number}.jsonl" for number in range(COUNT)]
        for number in range(COUNT):
            await shared.add(number, access_log=str(logs[number]))
        await shared.settled()
        owner = shared.owner()
        number = (owner + 1) % COUNT
        await shared.post(number, 1)
        proxy = shared.proxies[number]
        status = proxy.status()["sharing"]
        assert [peer["state"] for peer in status["peers"]] == ["alive", "alive"]
        assert status["served_by"] == {POOL: shared.links[number, owner].url}
        assert shared.proxies[owner].status()["sharing"]["served_by"] == {POOL: "this proxy"}
        assert proxy.status()["pools"][POOL]["does"].startswith(
            f"queries are forwarded to {status['served_by'][POOL]},"
        )
        assert "forwarded" not in shared.proxies[owner].status()["pools"][POOL]["does"]
        table = status_table(proxy.status())
        assert "this proxy" in table
        assert f"{shared.links[number, owner].url}  alive  {POOL}" in table
        text = proxy.metrics.exposition().decode()
        assert 'ts_parity_forwarded_total{outcome="answered"} 1.0' in text
        assert "ts_parity_peers_alive 2.0" in text
        for each in shared.proxies.values():
            each._server.access.flush()  # type: ignore[union-attr]
        (line,) = map(json.loads, logs[number].read_text().splitlines())
        assert (line["outcome"], line["endpoint"]) == ("forwarded", shared.links[number, owner].url)
        (line,) = map(json.loads, logs[owner].read_text().splitlines())
        assert (line["outcome"], line["forwarded_by"]) == ("deployed", status["member"])


async def test_peers_before_other_instances_are_left_alone(clock: Clock) -> None:
    async with sharing(clock, twelve(), count=2, first=1) as shared:
        more = FakeTorchServe(FakeModel())
        async with more:
            shared.instances.append(more)
            await shared.add(1)
            await shared.settled()
            assert shared.alive(0) == shared.alive(1) == set()
            assert [shared.named(number) for number in range(2)] == [0, 1]
            assert any("other instances" in problem for problem in shared.proxies[0].status()["problems"])
            shared.instances.remove(more)


async def test_peers_with_another_secret_are_left_alone(clock: Clock) -> None:
    async with sharing(clock, twelve(), count=2, first=1) as shared:
        await shared.add(1, secret="another")
        await shared.settled()
        assert shared.alive(0) == shared.alive(1) == set()
        assert any("same secret" in problem for problem in shared.proxies[0].status()["problems"])


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_between_proxies_each_query_has_its_answer(clock: Clock, seed: int) -> None:
    """Links are cut, hang and heal, each direction by itself, and proxies are killed and come back. `load` looks at
    each answer; and when all can see each other, all name the same owner.
    """
    dice = random.Random(seed)
    async with sharing(clock, twelve(latency_s=0.005)) as shared:
        async with load(shared, 0, clients=6) as running:
            for _ in range(12):
                what = dice.choice(("link", "link", "kill", "join", "heal"))
                if what == "link":
                    dice.choice([*shared.links.values()]).become(dice.choice(("cut", "hung", "whole")))
                elif what == "heal":
                    shared.join()
                elif what == "kill" and len(shared.proxies) > 1:
                    await shared.remove(dice.choice([number for number in shared.proxies if number]))
                elif what == "join":
                    for number in set(range(COUNT)) - set(shared.proxies):
                        await shared.add(number)
                await shared.pass_time(dice.choice((0.25, 0.5, 1.5, 3.0)))
            shared.join()
            await shared.settled()
            for _ in range(20):  # who was lost often is waited for longer
                if len({shared.named(number) for number in shared.proxies}) == 1:
                    break
                await shared.pass_time(3.0)
            owner = shared.owner()
            before, asked = shared.answered(owner), running.asked
            await until(lambda: running.asked >= asked + 20, "more queries")
            assert shared.answered(owner) > before, "it serves them"
        await until(lambda: all(nothing_left(proxy) for proxy in shared.proxies.values()), "nothing left")
