"""Servers that may answer one request with what is another's: nobody gets such an answer, nor is the server used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from tests.proxy.conftest import Fleet, MakeFleet
from tests.proxy.fleet.backends.servers import PlainServer, body, inferred, triton
from ts_parity.config import ModelSettings
from ts_parity.proxy.fleet.backends.open_inference import OpenInferenceBackend
from ts_parity.proxy.fleet.backends.probing import SUSPECT_TRIES
from ts_parity.proxy.http.messages import Request, Response

INFER = "/v2/models/big/infer"
POISON = [666.0]
"""What the stub of any server dies of. Triton starts another at once."""
FROZEN = {"error": "Stub process 'big_0_0' is not healthy."}


class StubServer(PlainServer):
    """Each answer holds its request's numbers. Triton's stub, stopped and gone on, gives those of the one before."""

    def __init__(self, **more: Any) -> None:
        super().__init__(triton("big"))
        self.answers[f"POST {INFER}"] = self.answer
        self.state = "well"
        self.poisoned = 0
        self.before = [0.0]

    def answer(self, _: web.Request, data: bytes) -> tuple[int, Any]:
        if self.state == "frozen":
            return 500, FROZEN
        asked = json.loads(data)
        now = asked["inputs"][0]["data"]
        if now == POISON:
            self.poisoned += 1
            return 500, FROZEN
        says, self.before = (self.before if self.state == "crossed" else now), now
        name = "another" if self.state == "renamed" else asked["id"]
        return 200, inferred("big", says, id=name)


async def ask(fleet: Fleet, number: float) -> None:
    sent = body([number], id=f"q{number}")
    answer = await fleet.client.post(INFER, sent, (("Content-Type", "application/json"),))
    assert (answer.status, answer.json()["id"]) == (200, f"q{number}")
    assert answer.json()["outputs"][0]["data"] == [number]


def up(fleet: Fleet) -> set[str]:
    return {*fleet.proxy.plan.up}


@pytest.mark.parametrize("state", ["frozen", "renamed"])
async def test_it_is_not_used_until_it_answers_rightly_again(make_fleet: MakeFleet, state: str):
    ill, well = StubServer(), StubServer()
    fleet = await make_fleet(ill, well, retry_ratio=0.0)
    await ask(fleet, 0)
    ill.state = state
    for number in range(1, 6):
        await ask(fleet, number)
    assert up(fleet) == {well.name}
    assert any("answered rightly" in problem for problem in fleet.proxy.plan.problems)
    ill.state = "crossed"
    for number in range(6, 12):
        await fleet.proxy.discover()
        await ask(fleet, number)
    assert up(fleet) == {well.name}
    ill.state = "well"
    await fleet.proxy.discover()
    assert up(fleet) == {well.name}, "one good look is not enough"
    await fleet.proxy.discover()
    assert up(fleet) == {ill.name, well.name}
    for number in range(12, 18):
        await ask(fleet, number)


async def test_one_that_has_died_and_is_back_needs_no_proof(make_fleet: MakeFleet):
    ill, well = StubServer(), StubServer()
    fleet = await make_fleet(ill, well, retry_ratio=0.0)
    ill.state = "frozen"
    for number in range(1, 6):
        await ask(fleet, number)
    await ill.stop()
    for number in range(6, 10):
        await fleet.proxy.discover()
        await ask(fleet, number)
        assert not any("answered rightly" in problem for problem in fleet.proxy.plan.problems)


async def test_a_body_that_stubs_die_of_reaches_two_and_is_no_sample(make_fleet: MakeFleet):
    """Else one request would take out all of a fleet for good."""
    servers = [StubServer() for _ in range(3)]
    fleet = await make_fleet(*servers, retry_ratio=1.0)
    answer = await fleet.client.post(INFER, body(POISON, id="q"), (("Content-Type", "application/json"),))
    assert answer.status >= 500
    assert sum(server.poisoned for server in servers) == 2
    assert len(up(fleet)) == 1
    for number in range(1, 4):
        await ask(fleet, number)
        await fleet.proxy.discover()
    assert up(fleet) == {server.name for server in servers}
    assert sum(server.poisoned for server in servers) == 2


async def test_where_nothing_else_was_asked_the_suspect_is_asked_a_few_times(make_fleet: MakeFleet):
    """A query runs once more where a stub has died with it, and there is only the one server here."""
    alone = StubServer()
    fleet = await make_fleet(alone)
    answer = await fleet.client.post(INFER, body(POISON, id="q"), (("Content-Type", "application/json"),))
    assert (answer.status >= 500, up(fleet)) == (True, set())
    for _ in range(6):
        await fleet.proxy.discover()
    assert (alone.poisoned, up(fleet)) == (2 + SUSPECT_TRIES, {alone.name})
    await ask(fleet, 1)


async def test_what_may_not_be_repeated_proves_nothing(make_fleet: MakeFleet):
    """Such a model is used again when its server has twice said that it is ready."""
    ill, well = StubServer(), StubServer()
    fleet = await make_fleet(ill, well, models=(ModelSettings("big", repeatable=False),))
    ill.state = "frozen"
    for number in range(1, 5):
        await fleet.client.post(INFER, body([number], id=f"q{number}"))
    asked = len(ill.asked(f"POST {INFER}"))
    assert up(fleet) == {well.name}
    for _ in range(2):
        await fleet.proxy.discover()
    assert up(fleet) == {ill.name, well.name}
    assert len(ill.asked(f"POST {INFER}")) == asked


@pytest.mark.parametrize(
    ("sent", "status", "said", "doubted"),
    [
        (b'{"id": "7", "inputs": []}', 200, b'{"id":"7","model_name":"m"}', False),
        (b'{"id": "7", "inputs": []}', 200, b'{"id":"8","model_name":"m"}', True),
        (b'{"id": "7", "inputs": []}', 200, b'{"model_name":"m","model_version":null,"id":"8"}', True),
        (b'{"id": "a", "inputs": []}', 200, b'{"id":"\\u0061","model_name":"m"}', False),
        (b'{"id": "", "inputs": []}', 200, b'{"id":"invented"}', False),
        (b'{"inputs": []}', 200, b'{"id":"invented"}', False),
        (b'{"id": "7"}', 200, b'{"model_name":"m"}', False),
        (b'{"id": "7"}', 500, b'{"error":"Stub process is not healthy."}', True),
        (b'{"id": "7"}', 500, b'{"error":"bad JSON"}', False),
        (b'{"inputs": [], "id": "7"}', 200, b'{"id":"8"}', False),
        (b'{"id": "7", "id": "8"}', 200, b'{"id":"8"}', False),
        (b'{"id": "7", "\\u0069d": "8"}', 200, b'{"id":"8"}', False),
        (b'{"id": "7\\u0000"}', 200, b'{"id":"7"}', False),
        (b'{"id": "7\xff"}', 200, b'{"id":"7?"}', False),
        (b'{"id": "%s"}' % (b"7" * 200), 200, b'{"id":"7"}', False),
        (b'{"id": "7", "inputs": ["stub is not healthy"]}', 500, b'{"error": "no stub is not healthy"}', False),
        (b'{"id": "7", "inputs": ["stub i\\u0073 not healthy"]}', 500, b'{"error": "stub is not healthy"}', False),
    ],
)  # fmt: skip
def test_which_answers_say_so(sent: bytes, status: int, said: bytes, doubted: bool):
    """An id is looked for where clients and servers write it; elsewhere nothing is known."""
    response, backend = Response(status, "", (), said), OpenInferenceBackend()
    good = b'{"id": "1"}'
    assert not backend.confused("big", Request("POST", INFER, (), good), Response(200, "", (), good))
    assert bool(backend.confused("big", Request("POST", INFER, (), sent), response)) is doubted


def test_a_server_that_makes_up_ids_is_not_doubted_for_them():
    asked, answer = Request("POST", INFER, (), b'{"id": "7"}'), Response(200, "", (), b'{"id":"its own"}')
    backend = OpenInferenceBackend()
    assert not backend.confused("big", asked, answer)
    assert not backend.confused("small", asked, Response(200, "", (), b'{"id":"7"}'))  # another model's servers do not
    assert not backend.confused("big", asked, answer)
    assert backend.confused("small", asked, answer)


async def test_no_client_can_have_all_servers_doubted(make_fleet: MakeFleet):
    """By an id that is there twice: Python's servers take the last."""
    servers = [StubServer() for _ in range(3)]
    fleet = await make_fleet(*servers)
    await ask(fleet, 1)
    sent = body([2], id="q2").replace(b"{", b'{"id": "q1", ', 1)
    answer = await fleet.client.post(INFER, sent, (("Content-Type", "application/json"),))
    assert (answer.status, answer.json()["id"]) == (200, "q2")
    assert up(fleet) == {server.name for server in servers}
