"""A kind that somebody else has written, in a file of its own: plain Python, which a compiled build takes too."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from tests.proxy.conftest import MakeFleet, until
from tests.proxy.fleet.backends.servers import PlainServer
from ts_parity.config import InstanceSettings, ModelSettings, parse_endpoint
from ts_parity.engine import Blame
from ts_parity.errors import TsParityError, Unavailable
from ts_parity.proxy.fleet.backends import kinds
from ts_parity.proxy.fleet.backends.plain import PlainBackend, get, with_path
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.backends.rest import RestBackend
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response


class OwnBackend(PlainBackend):
    kind: ClassVar[str] = "own"

    def names_of_models(self, name: str) -> bool:
        return name.startswith("own-")

    def match(self, request: Request) -> Ask | None:
        _, _, name = request.path.partition("/ask/")
        return Ask(name) if name else None

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        return with_path(payload.request, f"/ask/{target.model}")

    def is_answer(self, response: Response) -> bool:
        return b"own" in response.body

    def lacks_model(self, response: Response) -> bool:
        return False

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        health = yield get("/alive")
        return Seen(health.status == 200, tuple(Hosted(name) for name in names))

    def error_fields(self, error: TsParityError) -> Any:
        return {"own": str(error)}


BACKEND = OwnBackend


def test_what_it_says_otherwise_counts():
    """Where `plain` asks itself, the answer is the kind's."""
    backend = OwnBackend([ModelSettings("own-big"), ModelSettings("big")])
    assert backend.models.keys() == {"own-big"}
    assert backend.read_prediction(Response(200, "", (), b"another's"))[0].blame is Blame.DOUBTFUL
    assert backend.read_prediction(Response(404, "", (), b""))[0].blame is Blame.CLIENTS
    assert backend.error(Unavailable("full")).body == b'{"own": "full"}'


def test_a_kind_of_ours_can_be_extended():
    class Extended(RestBackend):
        def error_fields(self, error: TsParityError) -> Any:
            return {"extended": str(error)}

    backend = Extended([ModelSettings("/p")])
    assert backend.match(Request("POST", "/p", (), b"")) == Ask("/p")
    assert backend.error(Unavailable("full")).body == b'{"extended": "full"}'


async def test_queries_go_through_it(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch):
    """From discovery to the student's answer to a late query."""
    monkeypatch.setitem(sys.modules, f"{kinds.__package__}.own", sys.modules[__name__])
    says = {"GET /alive": (200, b""), "POST /ask/own-big": (200, b"own"), "POST /ask/own-small": (200, b"own, late")}
    async with PlainServer(says) as server:
        given = replace(parse_endpoint(server.inference), kind="own", places=4, student_places=4)
        models = (ModelSettings("own-big", student="own-small", exact=True),)
        fleet = await make_fleet(given=(given,), models=models, launch="late", launch_after_s=0.01)
        assert (await fleet.client.post("/ask/own-big", b"1")).body == b"own"
        server.held.add("/ask/own-big")
        asked = asyncio.ensure_future(fleet.client.post("/ask/own-big", b"2"))
        await until(lambda: bool(server.asked("POST /ask/own-small")), "its student")
        answer = await asked
        server.thaw()
        assert (answer.body, answer.get("x-ts-parity")) == (b"own, late", "reconstructed")
        assert [(what, body) for what, body, _ in server.asked("POST")] == [
            ("POST /ask/own-big", b"1"), ("POST /ask/own-big", b"2"), ("POST /ask/own-small", b"2"),
        ]  # fmt: skip
