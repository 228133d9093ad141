"""Sidecars and load balancers before the instances, which speak HTTP of their own when what is behind them fails."""

from __future__ import annotations

from collections import Counter, deque

import pytest

from tests.proxy.conftest import MakeFleet, nothing_left, until
from ts_parity.config import ModelSettings
from ts_parity.proxy.app import StreamedPools
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

HTML = (("content-type", "text/html"),)
PAGES = {
    "envoy": Canned(503, "Service Unavailable", (("content-type", "text/plain"),), b"upstream connect error"),
    "nginx": Canned(502, "Bad Gateway", HTML, b"<html><h1>502 Bad Gateway</h1></html>"),
    "a timeout": Canned(504, "Gateway Timeout", (), b"upstream request timeout"),
    "its own JSON": Canned(503, "", (("content-type", "application/json"),), b'{"code": 503, "message": "no"}'),
    "in TorchServe's shape": Canned(
        500, "", (("content-type", "application/json"),), b'{"code": 500, "type": "UpstreamException", "message": "no"}'
    ),
    "a limit": Canned(429, "Too Many Requests", (("retry-after", "1"),), b""),
    "nothing": Canned(503),
    "no such route": Canned(404, "Not Found", (), b"default backend - 404"),
    "in chunks": Canned(502, "Bad Gateway", HTML, chunks=(b"<html>upstream ", b"error</html>")),
    "in chunks and long": Canned(502, "Bad Gateway", HTML, chunks=(b"x" * 50_000,) * 3),
}


class Forever(deque[Canned]):
    """A script that is never used up."""

    def popleft(self) -> Canned:
        return self[0]


@pytest.mark.parametrize("page", PAGES)
async def test_a_dead_instance_behind_a_gateway_costs_no_client_an_error(make_fleet: MakeFleet, page: str) -> None:
    """Whatever its gateway says, the query goes elsewhere, and after three of them the endpoint is out."""
    instances = [FakeTorchServe(FakeModel()) for _ in range(3)]
    fleet = await make_fleet(*instances)
    instances[0].models[0].script = Forever([PAGES[page]])
    answers = [await fleet.post() for _ in range(30)]
    assert Counter(answer.status for answer in answers) == {200: 30}
    assert len(instances[0].received) <= 4
    assert fleet.proxy.scheduler.snapshot()["endpoints"] != {}
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_with_nobody_else_the_client_gets_the_gateways_own_page(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, max_attempts=1)
    instance.models[0].script.append(PAGES["in chunks"])
    answer = await fleet.post()
    assert (answer.status, answer.body, answer.get("x-ts-parity")) == (502, b"<html>upstream error</html>", None)


async def test_a_page_is_not_taken_for_a_handlers_stream(make_fleet: MakeFleet) -> None:
    """Only a 2xx in chunks says that the handler streams; an error page says nothing of it."""
    deployed = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*deployed, FakeTorchServe(protection()))
    for instance in deployed:
        instance.models[0].script.extend([PAGES["in chunks"], PAGES["in chunks and long"]])
    for _ in range(4):
        await fleet.post()
    assert fleet.proxy.plan.pools["linear/1.0"].code is not None


async def test_a_handlers_streamed_error_says_nothing_of_its_other_answers(make_fleet: MakeFleet) -> None:
    deployed = FakeTorchServe(FakeModel())
    fleet = await make_fleet(deployed, FakeTorchServe(protection()))
    own = Canned.own(422, b"", (("ts_stream_next", "true"),))
    own.chunks = (b"one", b"two")
    deployed.models[0].script.append(own)
    answer = await fleet.post()
    assert (answer.status, answer.body) == (422, b"onetwo")
    assert fleet.proxy.plan.pools["linear/1.0"].code is not None


async def test_what_is_passed_through_goes_elsewhere_too(make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances)
    instances[0].models[0].script = Forever([PAGES["nginx"]])
    answers = [await fleet.client.post("/explanations/linear", b"[1, 2]") for _ in range(4)]
    assert {answer.status for answer in answers} == {200}
    instances[1].models[0].script = Forever([PAGES["nginx"]])
    assert (await fleet.client.post("/explanations/linear", b"[1, 2]")).status == 502


async def test_what_may_not_be_repeated_is_asked_of_one_instance(make_fleet: MakeFleet) -> None:
    """A gateway does not say whether the instance behind it has run what was asked."""
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances, models=(ModelSettings("linear", repeatable=False),))
    for instance in instances:
        instance.models[0].script = Forever([PAGES["nginx"]])
    for path in ("/predictions/linear", "/explanations/linear"):
        assert (await fleet.client.post(path, b"[1, 2]")).status == 502
    assert sum(len(instance.received) for instance in instances) == 2


@pytest.mark.parametrize("page", ["envoy", "nginx", "a timeout", "in chunks"])
async def test_a_gateway_that_has_lost_its_management_port_is_as_down_as_nobody(
    make_fleet: MakeFleet, page: str
) -> None:
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances)
    instances[0].managed = PAGES[page]
    await fleet.proxy.discover()
    assert fleet.proxy.plan.up == (fleet.proxy.settings.instances[1].name,)
    assert any("a gateway answered 50" in problem for problem in fleet.proxy.plan.problems)
    instances[0].managed = None
    await fleet.proxy.discover()
    assert len(fleet.proxy.plan.up) == 2


def test_streamed_pools_are_coded_again_after_a_while_that_doubles():
    pools = StreamedPools()
    assert pools.streamed("m/1", 0.0)
    assert not pools.streamed("m/1", 599.0)
    assert "streamed" in pools.reasons(599.0)["m/1"]
    assert pools.reasons(600.0) == {}
    assert pools.streamed("m/1", 700.0)
    assert "m/1" in pools.reasons(1899.0)
    assert pools.reasons(1900.0) == {}
    for n in range(20):
        pools.streamed("m/1", 1e6 * (n + 1))
    assert pools.reasons(20e6 + 24 * 3600 - 1) != {}
    assert pools.reasons(20e6 + 24 * 3600) == {}
