"""TLS on both sides and Unix sockets to instances, on real sockets with real certificates, under both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.proxy.authority import HERE, Authority
from tests.proxy.conftest import PATIENCE_S, Fleet, MakeFleet, Raw, nothing_left, read_answer, until
from tests.proxy.http.both_ends import LIMIT, by, echo, ended
from ts_parity.config import InstanceSettings, Settings, parse_endpoint
from ts_parity.proxy.http.certificates import client_side
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.server import ClientTimeouts, PendingResponse, Server
from ts_parity.proxy.http.upstream import Address, Upstream
from ts_parity.proxy.serving.service import StreamedResponse
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

# The newer way needs a pytest-asyncio that is not everywhere yet.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: Any) -> Any:
    """Each has a TLS of its own."""
    return request.param()


@pytest.fixture
def troubles(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as a warning or worse."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


# ---- clients -------------------------------------------------------------------------------------------------------


Streams = tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def secured(
    authority: Authority, answer: Any = None, patience: ClientTimeouts | None = None
) -> AsyncIterator[Streams]:
    certificate, key = authority.issue()
    tls = client_side(Settings(tls_certificate=certificate, tls_key=key))
    server = Server(answer or by(echo), LIMIT, patience or ClientTimeouts(), tls=tls)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=authority.trusting)
    try:
        yield server, reader, writer
    finally:
        writer.close()
        await server.close()
        assert server.in_flight == 0


def port_of(writer: asyncio.StreamWriter) -> int:
    return int(writer.get_extra_info("peername")[1])


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_pipelined_requests_over_tls(authority: Authority, size: int) -> None:
    requests = b"".join(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n%02d" % (n, n) for n in range(20))
    async with secured(authority) as (_, reader, writer):
        for at in range(0, len(requests), size):
            writer.write(requests[at : at + size])
            await writer.drain()
        for n in range(20):
            assert (await read_answer(reader)).body == b"POST /%d 2 %02d" % (n, n)


def blocking(authority: Authority, port: int, talk: Callable[[ssl.SSLSocket], Any]) -> Any:
    """A client that tells an end that was said (close_notify) from one that was not, in a thread of its own."""
    context = ssl.create_default_context(cafile=authority.pem)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    def run() -> Any:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as secure,
        ):
            return talk(secure)

    return asyncio.get_running_loop().run_in_executor(None, run)


def read_to_the_end(secure: ssl.SSLSocket) -> bytes:
    data = b""
    while piece := secure.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize("old", [False, True])
async def test_a_connection_that_is_closed_says_so(authority: Authority, old: bool) -> None:
    def talk(secure: ssl.SSLSocket) -> bytes:
        secure.sendall(b"GET / HTTP/1.%d\r\nHost: h\r\nConnection: close\r\n\r\n" % (not old))
        return read_to_the_end(secure)

    async with secured(authority) as (server, _, writer):
        answer = await blocking(authority, port_of(writer), talk)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"GET / 1 ")
        await until(lambda: len(server.connections) == 1, "the connection to go")


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_refused_while_it_is_still_being_sent_is_answered(authority: Authority, chunked: bool) -> None:
    """The client sends all it has before it reads; were the connection reset, the answer would be lost."""

    def talk(secure: ssl.SSLSocket) -> bytes:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 8000000"
        secure.sendall(b"POST / HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
        for _ in range(80):
            secure.sendall((b"186a0\r\n" if chunked else b"") + b"x" * 100_000 + (b"\r\n" if chunked else b""))
        return read_to_the_end(secure)

    async with secured(authority) as (_, _, writer):
        answers = await asyncio.gather(*(blocking(authority, port_of(writer), talk) for _ in range(3)))
        assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 413 Request Entity Too Large"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("closes", [False, True])
async def test_a_client_that_reads_slowly_gets_all_of_a_large_answer(authority: Authority, closes: bool) -> None:
    body = bytes(range(256)) * 40_000

    def answer(request: Request, pending: PendingResponse) -> None:
        pending.respond(Response(200, "OK", (("content-length", str(len(body))),), body))

    async with secured(authority, answer, ClientTimeouts(idle_s=0.1, head_s=0.1, body_s=60.0)) as (_, reader, writer):
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n" % (b"Connection: close\r\n" if closes else b""))
        received = b""
        for _ in range(14):  # longer than it may be idle, and more than what kernels and TLS hold
            writer.transport.resume_reading()
            received += await reader.read(100_000)
            writer.transport.pause_reading()
            await asyncio.sleep(0.15)
        writer.transport.resume_reading()
        received += await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert received.partition(b"\r\n\r\n")[2] == body


class SlowChunks:
    """A stream that counts what was taken from it."""

    status, phrase = 200, "OK"

    def __init__(self, count: int, chunk: bytes) -> None:
        self.count, self.chunk, self.taken = count, chunk, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            self.taken += 1
            yield self.chunk
            await asyncio.sleep(0)

    def close(self) -> None:
        pass


async def test_a_streamed_answer_waits_for_its_client(authority: Authority) -> None:
    """No more is taken than kernels and buffers hold."""
    chunks = SlowChunks(400, b"x" * 100_000)

    def answer(request: Request, pending: PendingResponse) -> None:
        pending.respond(StreamedResponse(chunks, ()))

    async with secured(authority, answer) as (_, reader, writer):
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        taken = -1
        while chunks.taken > taken:
            taken = chunks.taken
            await asyncio.sleep(0.1)
        assert 0 < taken < 200
        writer.transport.resume_reading()
        assert len((await read_answer(reader)).body) == 400 * 100_000


@pytest.mark.slow
async def test_clients_that_do_not_speak_tls_harm_nobody(
    authority: Authority, troubles: Callable[[], list[str]]
) -> None:
    async with secured(authority, patience=ClientTimeouts(handshake_s=3.0)) as (server, reader, writer):
        port = port_of(writer)
        odd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        odd[0][1].write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        odd[1][1].write(b"\x16\x03\x01\x02\x00\x01")  # a handshake that stops
        odd[2][1].write(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")  # and one that means nothing
        distrusting = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("localhost", port, ssl=distrusting)
        writer.write(b"GET /mine HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_answer(reader)).body == b"GET /mine 1 "
        for their_reader, their_writer in odd:
            with suppress(ConnectionError):
                assert b"HTTP" not in await asyncio.wait_for(their_reader.read(), PATIENCE_S)
            their_writer.close()
        assert len(server.connections) == 1
    assert troubles() == []


async def test_a_client_that_is_gone_is_forgotten(authority: Authority) -> None:
    """It has said nothing and closes nothing; nor does it answer when it is told that the connection closes."""
    async with secured(authority, patience=ClientTimeouts(idle_s=0.1)) as (server, reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await read_answer(reader)
        assert await ended(reader)
        await until(lambda: not server.connections, "the connection to go")


async def test_what_is_negotiated(authority: Authority) -> None:
    """HTTP/1.1 and nothing below TLS 1.2, for clients that name the host and for those that cannot."""
    async with secured(authority) as (server, _, writer):
        assert server.tls is not None
        assert server.tls.context.minimum_version == ssl.TLSVersion.TLSv1_2
        for host in HERE:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context = ssl.create_default_context(cafile=authority.pem)
                context.maximum_version = version
                context.set_alpn_protocols(["h2", "http/1.1"])
                _, asking = await asyncio.open_connection(
                    "127.0.0.1", port_of(writer), ssl=context, server_hostname=host
                )
                secure = asking.get_extra_info("ssl_object")
                assert secure.version() == version.name.replace("_", ".")
                assert secure.selected_alpn_protocol() == "http/1.1"
                asking.close()


async def shown_by(fleet: Fleet, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port, ssl=authority.trusting)
    shown = int(writer.get_extra_info("peercert")["serialNumber"], 16)
    writer.close()
    return shown


async def test_a_renewed_certificate_is_shown_to_new_connections(
    make_fleet: MakeFleet, authority: Authority, troubles: Callable[[], list[str]]
) -> None:
    """Half of a new pair changes nothing, and is told once; connections that are open stay."""
    (certificate, key), (new_certificate, new_key) = authority.issue(), authority.issue()
    fleet = await make_fleet(
        FakeTorchServe(FakeModel()),
        trusting=authority.trusting,
        tls_certificate=certificate,
        tls_key=key,
        discovery_interval_s=0.05,
    )
    assert fleet.proxy.url == f"https://127.0.0.1:{fleet.client.port}"
    assert fleet.admin.port
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.client.port, ssl=authority.trusting)
    first = await shown_by(fleet, authority)
    shutil.copy(new_certificate, certificate)
    await until(lambda: bool(troubles()), "the half to be noticed")
    await asyncio.sleep(0.2)
    assert await shown_by(fleet, authority) == first
    shutil.copy(new_key, key)

    async def renewed() -> None:
        while await shown_by(fleet, authority) == first:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(renewed(), PATIENCE_S)
    (told,) = troubles()
    assert told.startswith("inference port: tls_key:")
    assert told.endswith("; the last one stays in use")
    writer.write(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await read_answer(reader)).status == 200
    writer.close()
    assert (await fleet.post()).json() == [5.0, 11.0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_is_served(make_fleet: MakeFleet, authority: Authority) -> None:
    """With a body so large that it asks first whether it may send it."""
    certificate, key = authority.issue()
    fleet = await make_fleet(FakeTorchServe(FakeModel()), tls_certificate=certificate, tls_key=key)
    url = f"https://localhost:{fleet.client.port}/predictions/linear"
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--cacert", authority.pem, "--data-binary", "@-", "--http1.1"),
        *("--resolve", f"localhost:{fleet.client.port}:127.0.0.1", "--write-out", "%{num_connects};", url, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(curl.communicate(b"[1, 2" + b" " * 3_000_000 + b"]"), PATIENCE_S)
    assert (curl.returncode, "".join(said.decode().split())) == (0, "[5.0,11.0]1;[5.0,11.0]0;")


# ---- instances -----------------------------------------------------------------------------------------------------


def settings_of(instance: FakeTorchServe, **tls: Any) -> InstanceSettings:
    return parse_endpoint(",".join([instance.endpoint, *(f"{name}={value}" for name, value in tls.items())]))


async def test_instances_with_certificates_of_their_own(make_fleet: MakeFleet, authority: Authority) -> None:
    """Predictions, coding and all else, over inference and management."""
    models = (FakeModel(), FakeModel(), protection())
    instances = [FakeTorchServe(model, tls=authority.serving(), token="t", management_token="m") for model in models]
    async with contextlib.AsyncExitStack() as stack:
        for instance in instances:
            await stack.enter_async_context(instance)
        given = tuple(settings_of(i, tls_ca=authority.pem, token="t", management_token="m") for i in instances)
        fleet = await make_fleet(given=given)
        assert fleet.proxy.plan.problems == ()
        instances[0].freeze()
        answers = await fleet.posts(2)
        assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
        instances[0].thaw()
        assert (await fleet.client.get("/ping")).status == 200
        await until(lambda: nothing_left(fleet.proxy), "everything to end")


TRUST: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {}, "certificate verify failed: .*; set tls_ca to what it should be trusted by"),
    ({}, {"tls_ca": "other.pem"}, "certificate verify failed: .*; set tls_ca"),
    ({"expired": True}, {"tls_ca": "ca.pem"}, r"certificate verify failed: certificate has expired\)"),
    ({"names": ("elsewhere",)}, {"tls_ca": "ca.pem"}, r"certificate verify failed: IP address mismatch, .*'127.0.0.1'"),
    ({}, {"tls_ca": "ca.pem"}, ""),
    ({}, {"tls_ca": "folder"}, ""),
    ({}, {"tls_ca": "1.pem"}, ""),
    ({"alone": True}, {"tls_ca": "alone.pem"}, ""),
    ({"alone": True}, {}, "certificate verify failed: self-signed certificate; set tls_ca"),
    ({"expired": True, "names": ("elsewhere",)}, {"tls_verify": "false"}, ""),
]


@pytest.mark.parametrize(("shown", "trusted", "problem"), TRUST)
async def test_whom_to_trust(
    make_fleet: MakeFleet, authority: Authority, shown: dict[str, Any], trusted: dict[str, str], problem: str
) -> None:
    """An instance that is not trusted is a problem that says so, and not used."""
    (authority.folder / "folder").mkdir()
    other = Authority(authority.folder / "other")
    shutil.copy(other.pem, authority.folder / "other.pem")
    shutil.copy(other.pem, authority.folder / "folder" / "a.pem")
    shutil.copy(authority.pem, authority.folder / "folder" / "b.pem")
    authority.write("folder/README", b"which these are")
    tls = {name: str(authority.folder / value) if name == "tls_ca" else value for name, value in trusted.items()}
    context = authority.serving(**shown)
    async with FakeTorchServe(FakeModel(), tls=context) as instance:
        fleet = await make_fleet(given=(settings_of(instance, **tls),))
        answer = await fleet.post()
        if not problem:
            assert answer.json() == [5.0, 11.0]
            return
        told = fleet.proxy.plan.problems[0]
        assert re.search(problem, told), told
        assert answer.status == 503
        assert (await fleet.admin.get("/status")).json()["problems"][0] == told


async def test_addresses_of_the_wrong_kind_are_told(make_fleet: MakeFleet, authority: Authority) -> None:
    async with FakeTorchServe(FakeModel(), tls=authority.serving()) as one, FakeTorchServe(FakeModel()) as other:
        given = (
            parse_endpoint(one.endpoint.replace("https://", "http://")),
            parse_endpoint(other.endpoint.replace("http://", "https://")),
        )
        fleet = await make_fleet(given=given, describe_timeout_s=5.0)  # both are told at once, however slow the machine
        first, second, *_ = fleet.proxy.plan.problems
        assert "it closed the connection" in first
        assert "it does not speak TLS; is its address http://?" in second


async def test_an_instance_that_asks_for_a_certificate_is_shown_one(
    make_fleet: MakeFleet, authority: Authority
) -> None:
    context = authority.serving()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.pem)
    certificate, key = authority.issue("proxy.example")
    async with FakeTorchServe(FakeModel(), tls=context) as instance:
        known = settings_of(instance, tls_ca=authority.pem, tls_certificate=certificate, tls_key=key)
        fleet = await make_fleet(given=(known,))
        assert (await fleet.post()).json() == [5.0, 11.0]
        fleet = await make_fleet(given=(settings_of(instance, tls_ca=authority.pem),))
        assert "gave no answer" in fleet.proxy.plan.problems[0]
        assert (await fleet.post()).status == 503


async def test_whom_to_trust_may_change(make_fleet: MakeFleet, authority: Authority) -> None:
    """An instance comes back with a certificate of another authority, whose own is then put in place."""
    other = Authority(authority.folder / "other")
    instance = FakeTorchServe(FakeModel(), tls=authority.serving())
    async with instance:
        trusted = shutil.copy(authority.pem, authority.folder / "trusted.pem")
        fleet = await make_fleet(given=(settings_of(instance, tls_ca=trusted),), discovery_interval_s=0.05)
        assert (await fleet.post()).status == 200
        ports = [int(url.rpartition(":")[2]) for url in (instance.inference, instance.management)]
        await instance.stop()
        instance.tls = other.serving()
        await instance.start(*ports)
        await until(lambda: "set tls_ca" in "".join(fleet.proxy.plan.problems), "the distrust")
        shutil.copy(other.pem, trusted)
        await until(lambda: not fleet.proxy.plan.problems, "the trust")
        assert (await fleet.post()).status == 200


# ---- Unix sockets --------------------------------------------------------------------------------------------------


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Folders with short names."""
    return lambda: tmp_path_factory.mktemp("s")


async def test_instances_behind_unix_sockets(make_fleet: MakeFleet, sockets: Callable[[], Path]) -> None:
    """Discovery, coding, keys, second attempts and what is passed through."""
    models = (FakeModel(), FakeModel(), protection())
    instances = [FakeTorchServe(model, sockets=sockets(), token="t", management_token="m") for model in models]
    async with contextlib.AsyncExitStack() as stack:
        for instance in instances:
            await stack.enter_async_context(instance)
        given = tuple(settings_of(i, token="t", management_token="m") for i in instances)
        fleet = await make_fleet(given=given, max_wait_s=0.2)
        assert fleet.proxy.plan.problems == ()
        status = (await fleet.admin.get("/status")).json()
        assert [i["name"] for i in status["instances"]] == [i.inference.removeprefix("unix:") for i in instances]
        assert status["instances"][0]["inference"] == instances[0].inference
        instances[0].freeze()
        answers = await fleet.posts(2)
        assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
        instances[0].thaw()
        await until(lambda: nothing_left(fleet.proxy), "everything to end")
        for instance in instances[:2]:
            instance.models[0].script.append(Canned(drop=True))
        assert (await fleet.post(x_ts_parity_exact="1")).status in (200, 503)
        assert (await fleet.client.get("/ping")).status == 200
        assert instances[0].received[-1].header("host") == f"127.0.0.1:{fleet.client.port}"
    answer = await fleet.post()
    assert answer.status == 503


async def test_a_dropped_task_is_tried_again_over_another_socket(
    make_fleet: MakeFleet, sockets: Callable[[], Path]
) -> None:
    instances = [FakeTorchServe(FakeModel(), sockets=sockets()) for _ in range(2)]
    fleet = await make_fleet(*instances)
    for instance in instances:
        instance.models[0].script.append(Canned(drop=True))
        assert (await fleet.post()).json() == [5.0, 11.0]
        instance.models[0].script.clear()


async def test_a_socket_that_is_not_there_yet(make_fleet: MakeFleet, sockets: Callable[[], Path]) -> None:
    folder = sockets()
    given = (parse_endpoint(f"unix:{folder}/inference,management=unix:{folder}/management"),)
    fleet = await make_fleet(given=given, discovery_interval_s=0.05)
    problem = fleet.proxy.plan.problems[0]
    assert f"its management API at unix:{folder}/management gave no answer (FileNotFoundError" in problem
    async with FakeTorchServe(FakeModel(), sockets=folder):
        await until(lambda: not fleet.proxy.plan.problems, "the instance")
        assert (await fleet.post()).json() == [5.0, 11.0]


async def test_a_full_backlog_is_waited_for(sockets: Callable[[], Path]) -> None:
    """As TCP does; asyncio alone would take the refusal for a connection."""
    path = sockets() / "s"
    upstream = Upstream(connect_timeout_s=2.0, task_timeout_s=5.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        address, request = Address(f"unix:{path}"), Request("GET", "/", (), b"")
        asking = [asyncio.ensure_future(upstream.exchange(address, request, 5.0)) for _ in range(8)]
        await asyncio.sleep(0.1)
        server = await asyncio.start_unix_server(serve, sock=listener)
        assert [answer.body for answer in await asyncio.gather(*asking)] == [b"ok"] * 8
        await upstream.close()
        server.close()


BODIES = (b"[1, 2]", b"[3, 4]" + b" " * 2_000_000, b"nonsense", b"")


async def test_tls_and_sockets_change_no_byte(
    make_fleet: MakeFleet, authority: Authority, sockets: Callable[[], Path]
) -> None:
    """The same requests through TLS to a Unix socket, and plainly all the way: what arrives, and what is answered."""
    certificate, key = authority.issue()
    chunks = tuple(b"%d" % n * 70_000 for n in range(9))
    heard, answered = [], []
    for tls, folder in (({"tls_certificate": certificate, "tls_key": key}, sockets()), ({}, None)):
        instance = FakeTorchServe(FakeModel(), sockets=folder)
        fleet = await make_fleet(instance, trusting=authority.trusting, **tls)
        fixed = (("Host", "h"), ("X-Odd", "a  b"), ("x-odd", "\xe4"))
        data = [b"POST /predictions/linear HTTP/1.1\r\n" + head_of(fixed, body) + body for body in BODIES]
        data += [b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /nonsense\r\n\r\n"]
        answers = [await fleet.client.send(each) for each in data]
        instance.models[0].script.append(Canned(chunks=chunks))
        answers.append(await fleet.client.send(data[0]))
        assert answers[-1].body == b"".join(chunks)
        heard.append(instance.received)
        answered.append([comparable(answer) for answer in answers])
    assert heard[0] == heard[1]
    assert answered[0] == answered[1]


def head_of(headers: tuple[tuple[str, str], ...], body: bytes) -> bytes:
    lines = [*(f"{name}: {value}\r\n" for name, value in headers), f"Content-Length: {len(body)}\r\n\r\n"]
    return "".join(lines).encode("latin-1")


def comparable(answer: Raw) -> tuple[Any, ...]:
    """All but the id, which is new for every request, and how a stream was cut."""
    headers = [(name, value) for name, value in answer.headers if name.lower() != "x-request-id"]
    return answer.status_line, headers, answer.body
