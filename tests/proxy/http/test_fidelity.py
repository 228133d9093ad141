"""What passes through the proxy is not changed: bytes against bytes, on raw sockets at both ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from tests.proxy.conftest import Client, Fleet, MakeFleet, Raw, nothing_left, until
from ts_parity.config import InstanceSettings
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

TORCHSERVE_404 = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nx-request-id: 1\r\n"
    b"Pragma: no-cache\r\ncontent-length: 4\r\nconnection: close\r\n\r\n{ }\n"
)


class RawInstance:
    """Says exactly the bytes it was given, and keeps the bytes it heard. Its management answers "no models"."""

    def __init__(self) -> None:
        self.says = b""
        self.heard: list[bytes] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> InstanceSettings:
        inference = await self._listen(self._answer)
        management = await self._listen(self._no_models)
        return InstanceSettings(inference, management, "raw")

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    async def _listen(self, handler: Callable) -> str:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        self._servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        self.heard.append(head + await reader.readexactly(length))
        writer.write(self.says)
        await writer.drain()
        writer.close()

    async def _no_models(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"models": []}')
        await writer.drain()
        writer.close()


@pytest.fixture
async def raw() -> AsyncIterator[RawInstance]:
    instance = RawInstance()
    yield instance
    await instance.stop()


async def through(make_fleet: MakeFleet, raw: RawInstance) -> Fleet:
    return await make_fleet(given=(await raw.start(),))


def without(hop_by_hop: str, answer: Raw) -> list[tuple[str, str]]:
    return [pair for pair in answer.headers if pair[0].lower() != hop_by_hop]


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 200 \r\nx-request-id: 1\r\nPragma: no-cache\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 \r\nX-Odd: a\r\nX-Odd: b\r\nx-ODD: c\r\nContent-Type: image/png\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 \r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 418 My own words\r\ncontent-length: 3\r\nDate: never\r\nServer: mine\r\n\r\n\x00\xff\x00",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\ncontent-length: 3\r\n\r\nnot",
        b"HTTP/1.1 204 \r\nx-a: 1\r\n\r\n",
        TORCHSERVE_404,
    ],
)
async def test_answers_keep_every_byte(make_fleet: MakeFleet, raw: RawInstance, says: bytes) -> None:
    """Status, phrase, header names in their letter case and order, duplicates, absent content type, body."""
    fleet = await through(make_fleet, raw)
    raw.says = says
    direct = await Client(f"http://127.0.0.1:{_port(raw)}").post("/anything", b"x")
    proxied = await fleet.client.post("/anything", b"x")
    assert proxied.status_line == direct.status_line
    assert without("connection", proxied) == without("connection", direct)
    assert proxied.body == direct.body


async def test_requests_keep_every_byte(make_fleet: MakeFleet, raw: RawInstance) -> None:
    """Method, escaped path, query, odd and duplicate headers, body; only control and hop-by-hop headers go."""
    fleet = await through(make_fleet, raw)
    raw.says = b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"
    boundary = b'--x\r\nContent-Disposition: form-data; name="a b"\r\n\r\n\x00\x01\r\n--x--\r\n'
    headers = (
        ("X-Dup", "1"),
        ("x-dup", "2"),
        ("Content-Type", 'multipart/form-data; boundary="x"'),
        ("X-Empty", ""),
        ("X-Utf8", "grün"),
        ("Authorization", "Bearer of-the-client"),
        ("X-TS-Parity-Op", "finish"),
        ("x-ts-parity-secret", "guess"),
        ("Connection", "x-private"),
        ("X-Private", "for the proxy only"),
        ("TE", "trailers"),
    )
    answer = await fleet.client.ask("PATCH", "/a%2Fb/%7E;x=1//c?q=%20&q=2&e", boundary, headers)
    assert answer.status == 200
    head, _, body = raw.heard[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PATCH /a%2Fb/%7E;x=1//c?q=%20&q=2&e HTTP/1.1"
    assert body == boundary
    sent = [line.partition(b": ")[::2] for line in lines[1:]]
    assert sorted(sent) == sorted(
        [
            (b"Host", f"{fleet.client.host}:{fleet.client.port}".encode()),
            (b"X-Dup", b"1"),
            (b"x-dup", b"2"),
            (b"Content-Type", b'multipart/form-data; boundary="x"'),
            (b"X-Empty", b""),
            (b"X-Utf8", "grün".encode()),
            (b"Authorization", b"Bearer of-the-client"),
            (b"Content-Length", str(len(boundary)).encode()),
        ]
    )


async def test_a_compressed_body_is_not_touched(make_fleet: MakeFleet, raw: RawInstance) -> None:
    fleet = await through(make_fleet, raw)
    raw.says = b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"
    await fleet.client.post("/x", b"\x1f\x8bnot gzip", (("Content-Encoding", "gzip"),))
    assert raw.heard[0].endswith(b"\r\n\r\n\x1f\x8bnot gzip")


async def test_a_chunked_request_arrives_whole(make_fleet: MakeFleet, raw: RawInstance) -> None:
    fleet = await through(make_fleet, raw)
    raw.says = b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"
    answer = await fleet.client.send(
        b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )
    assert answer.status == 200
    assert raw.heard[0].endswith(b"content-length: 3\r\n\r\nabc")


async def test_a_streamed_answer_comes_chunk_by_chunk_and_ends_coding(make_fleet: MakeFleet) -> None:
    """Streaming cannot be coded: it is passed on as it comes, and the model is served plainly from then on."""
    deployed = FakeTorchServe(FakeModel())
    fleet = await make_fleet(deployed, FakeTorchServe(protection()))
    deployed.models[0].script.append(Canned(headers=(("ts_stream_next", "true"),), chunks=(b"one", b"two")))
    answer = await fleet.post()
    assert (answer.status_line, answer.chunks) == ("HTTP/1.1 200 ", [b"one", b"two"])
    assert answer.get("ts_stream_next") == "true"
    assert answer.get("x-ts-parity") == "deployed"
    assert answer.get("content-type") is None
    await fleet.post()
    assert deployed.operations() == ["raw", "plain"]
    status = (await fleet.admin.get("/status")).json()
    assert status["pools"]["linear/1.0"]["code"] is None
    assert "streamed" in status["pools"]["linear/1.0"]["reason"]
    await until(lambda: nothing_left(fleet.proxy), "the place to be free")


async def test_a_stream_that_breaks_off_breaks_off_for_the_client(make_fleet: MakeFleet) -> None:
    deployed = FakeTorchServe(FakeModel())
    fleet = await make_fleet(deployed)
    deployed.models[0].script.append(Canned(chunks=(b"one",), drop=True))
    answer = await fleet.post()
    assert (answer.chunks, answer.complete) == ([b"one"], False)
    await until(lambda: nothing_left(fleet.proxy), "the place to be free")


async def test_other_paths_reach_an_instance_that_hosts_the_model(make_fleet: MakeFleet) -> None:
    other = FakeTorchServe(FakeModel(name="other", role=None))
    fleet = await make_fleet(FakeTorchServe(FakeModel()), other)
    answer = await fleet.client.post("/explanations/other", b"[1, 2]")
    assert (answer.status, answer.get("x-ts-parity")) == (200, None)
    assert [request.target for request in other.received] == ["/explanations/other"]
    assert (await fleet.client.get("/ping")).json() == {"status": "Healthy"}


async def test_handlers_errors_are_the_clients(make_fleet: MakeFleet) -> None:
    """A 503 "Prediction failed" and a handler's own status are answers, not failures to be repaired."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances)
    for instance in instances:
        instance.models[0].script.append(Canned.own(422, b"teapot", (("x-mine", "1"),), "My own phrase"))
    answer = await fleet.post()
    assert (answer.status_line, answer.body, answer.get("x-mine")) == ("HTTP/1.1 422 My own phrase", b"teapot", "1")
    failed = await fleet.client.post("/predictions/linear", b"no list")
    while failed.status == 422:
        failed = await fleet.client.post("/predictions/linear", b"no list")
    assert failed.status == 503
    assert json.loads(failed.body)["message"] == "Prediction failed"
    assert sum(len(instance.received) for instance in instances) <= 3


def _port(raw: RawInstance) -> int:
    return raw._servers[0].sockets[0].getsockname()[1]
