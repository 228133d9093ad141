"""Where a request or an answer ends is said once, plainly, to everybody: by a length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.proxy.conftest import MakeFleet, nothing_left, read_answer, until
from ts_parity.config import InstanceSettings
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection


class NettyFraming:
    """Looks for the end of a request as Netty 4.1 under TorchServe does (captured; the table is in docs/behaviour.md),
    and answers it. Its management answers "no models".
    """

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> InstanceSettings:
        return InstanceSettings(await self._listen(self._answer), await self._listen(self._no_models), "netty")

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    async def _listen(self, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> str:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        self._servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                names = {line.partition(b":")[0].lower(): line.partition(b":")[2] for line in head.split(b"\r\n")[1:-2]}
                old_websocket = {b"sec-websocket-key1", b"sec-websocket-key2"} <= names.keys()
                otherwise = b"8" if head.startswith(b"GET ") and old_websocket else b"0"
                self.heard.append(head + await reader.readexactly(int(names.get(b"content-length", otherwise))))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _no_models(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"models": []}')
        writer.close()


@pytest.fixture
async def netty() -> AsyncIterator[NettyFraming]:
    instance = NettyFraming()
    yield instance
    await instance.stop()


WEBSOCKET = b"Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\nSec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\n"
OFFERS = {
    "the WebSocket of 2010": WEBSOCKET,
    "in lower case, without values": b"sec-websocket-key1:\r\nsec-websocket-key2:\r\n",
    "the WebSocket of today": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n" + WEBSOCKET,
    "HTTP/2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    "trailers": b"TE: trailers\r\nTrailer: X-T\r\n",
    "an expectation": b"Expect: 100-continue\r\n",
    "the length as a header of one hop": b"Connection: content-length\r\nContent-Length: 0\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("old", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("offer", OFFERS)
async def test_nothing_but_a_length_says_where_a_request_ends(
    make_fleet: MakeFleet, netty: NettyFraming, offer: str, old: bool
) -> None:
    """Three such requests held a fleet of two for as long as their task's time limit: each waited for eight bytes."""
    fleet = await make_fleet(given=(await netty.start(),), task_timeout_s=60.0)
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        netty.heard.clear()
        reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
        version = b"1.0\r\nConnection: keep-alive" if old else b"1.1"
        writer.write(b"%b /x HTTP/%b\r\nHost: h\r\n%b\r\n" % (method, version, OFFERS[offer]))
        final = await asyncio.wait_for(read_answer(reader, to_head=method == b"HEAD"), 10)
        while final.status == 100:
            final = await asyncio.wait_for(read_answer(reader, to_head=method == b"HEAD"), 10)
        assert final.status == 200
        [heard] = netty.heard
        names = [line.partition(b":")[0].lower() for line in heard.split(b"\r\n")[1:-2]]
        assert sorted(names) == [b"content-length", b"host"], "whatever asks for another protocol stays here"
        assert b"\r\ncontent-length: 0\r\n" in heard.lower()
        writer.close()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


# ---- answers without a body -----------------------------------------------------------------------------------------


def coded() -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection())]


async def test_head_on_a_coded_pool_is_no_failure_of_the_instance(make_fleet: MakeFleet) -> None:
    """It asked for a raw output behind a body that does not come; 25 such requests a second took a fleet out."""
    instances = coded()
    fleet = await make_fleet(*instances, failures_until_out=3)
    for _ in range(10):
        reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
        writer.write(b"HEAD /predictions/linear HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n[1, 2]")
        answer = await asyncio.wait_for(read_answer(reader, to_head=True), 10)
        assert (answer.status, answer.body, int(answer.get("content-length") or 0) > 0) == (200, b"", True)
        writer.close()
    assert {operation for instance in instances for operation in instance.operations()} == {"plain"}
    assert instances[2].received == []
    snapshot: Any = fleet.proxy.scheduler.snapshot()
    assert {endpoint["health"] for endpoint in snapshot["endpoints"].values()} == {"in"}
    assert (await fleet.post()).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_any_other_method_on_a_coded_pool_is_a_query_like_any_other(make_fleet: MakeFleet, method: str) -> None:
    """TorchServe predicts for them all, so they are protected too: here one is rebuilt."""
    instances = coded()
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    answers = await asyncio.gather(*(fleet.client.ask(method, "/predictions/linear", b"[1, 2]") for _ in range(2)))
    assert [(answer.status, answer.json()) for answer in answers] == [(200, [5.0, 11.0])] * 2


async def test_options_on_a_coded_pool_is_passed_through(make_fleet: MakeFleet) -> None:
    instances = coded()
    fleet = await make_fleet(*instances)
    answer = await fleet.client.ask("OPTIONS", "/predictions/linear")
    assert answer.get("x-ts-parity") is None


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_may_have_no_body_has_no_tail_either(make_fleet: MakeFleet, status: int) -> None:
    """Its header describes a tail that cannot be there: that is an answer, not a malformed one."""
    described = (("x-ts-parity-raw", "v=1;dtype=float32;shape=2;offset=0"), ("content-length", "8"))
    model = FakeModel()
    model.script.extend([Canned(status, "", described)] * 2)
    fleet = await make_fleet(FakeTorchServe(model), FakeTorchServe(protection()))
    answer = await fleet.post()
    assert (answer.status, answer.body) == (status, b"")
    assert answer.get("x-ts-parity-raw") is None
