"""Odd but legal clients on raw sockets, before a real TorchServe and before the proxy: both understand the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from tests.proxy.conftest import PATIENCE_S, nothing_left, read_answer, until
from tests.proxy.side_by_side import WITNESS, Case, Pair, ask, comparable, connected, do, proxy_before, request
from ts_parity.config import InstanceSettings
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = [pytest.mark.torchserve, pytest.mark.asyncio(loop_scope="module")]

PREDICTION = request("POST", "/predictions/witness", b"[1, 2]", ("X-A", "1"))


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    folder: Path = tmp_path_factory.mktemp("archives")
    return torchserve_factory([write_archive(folder / "witness.mar", WITNESS)], env=NO_TORCH)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(instance: TorchServeInstance) -> AsyncIterator[Pair]:
    async with proxy_before(instance) as proxy:
        yield Pair(instance.inference_url, proxy.url, proxy)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
async def test_a_request_in_small_pieces(pair: Pair, size: int) -> None:
    pieces = [PREDICTION[at : at + size] for at in range(0, len(PREDICTION), size)]
    await pair.same_on_the_wire(*pieces)


async def test_a_request_split_anywhere(pair: Pair) -> None:
    """In two, at every place: within names, between CR and LF, before and within the body."""
    for at in range(1, len(PREDICTION)):
        (answer,) = await ask(pair.proxied, PREDICTION[:at], PREDICTION[at:])
        assert answer.json()["inputs"] == {"body": ["bytearray", "[1, 2]"]}, at


PIPELINED = [
    request("GET", "/ping"),
    request("POST", "/predictions/witness", b"1", do(say="one")),
    request("POST", "/predictions/witness/1.0", b"2", do(say="two")),
    request("POST", "/predictions/witness", b"", do(stream=["a", "b"], say="c")),
    request("GET", "/api-description"),
    request("POST", "/predictions/nobody", b"3"),
    request("POST", "/explanations/witness", b"4"),
    request("POST", "/predictions/witness", b"", do(**{"raise": "value"})),
    request("POST", "/predictions/witness", b"1\r\n5\r\n0\r\n\r\n", ("Transfer-Encoding", "chunked"), do(say=3)),
    request("GET", "/ping"),
]


async def test_pipelined_requests_are_answered_as_if_they_came_one_by_one(pair: Pair) -> None:
    """TorchServe itself answers them in the order in which it is done, and ends the connection with the first error.
    Clients that pipeline rely on the order in which they asked (RFC 9112, 9.3.2), so that is what the proxy gives.
    """
    one_by_one = [(await ask(pair.direct, each))[0] for each in PIPELINED]
    for pieces in ([b"".join(PIPELINED)], PIPELINED):
        answers = await ask(pair.proxied, *pieces, answers=len(PIPELINED))
        for answer in answers:
            answer.headers = [pair for pair in answer.headers if pair[0] != "x-ts-parity"]
        assert [comparable(answer) for answer in answers] == [comparable(answer) for answer in one_by_one]


async def test_the_answer_to_head_does_not_shift_those_behind_it(pair: Pair) -> None:
    async with connected(pair.proxied) as (reader, writer):
        writer.write(request("HEAD", "/predictions/witness") + request("GET", "/ping"))
        head = await read_answer(reader, to_head=True)
        assert (head.status, head.body, int(head.get("content-length") or 0) > 0) == (200, b"", True)
        assert (await read_answer(reader)).json() == {"status": "Healthy"}


def headers(*more: tuple[str, str]) -> bytes:
    return request("POST", "/predictions/witness", b"hi", *more)


def line(text: bytes) -> bytes:
    """The prediction, this line in place of its only header of its own."""
    return PREDICTION.replace(b"X-A: 1", text)


HEADERS = {
    "mixed case": headers(("x-mixed-Case", "1"), ("X-MIXED-CASE", "2"), ("X-Mixed-Case", "3")),
    "repeated": headers(("X-Twice", "1"), ("X-Twice", "2"), ("Cookie", "a=1"), ("Cookie", "b=2")),
    "repeated in two spellings": headers(("Accept", "x"), ("accept", "y")),
    "spaces around a value": line(b"X-A:   1  2   "),
    "tabs around a value": line(b"X-A:\t1\t2\t"),
    "no space": line(b"X-A:1"),
    "no value": line(b"X-A:"),
    "every sign a name may have": line(b"X_a!#$%&'*+.^`|~09: 1"),
    "quotes, commas, semicolons": headers(("X-Q", '"a\\"b" ; c, d=,;')),
    "latin-1": headers(("X-L", "gr\xfcn")),
    "UTF-8": headers(("X-U", "grün €".encode().decode("latin-1"))),
    "all bytes above ASCII": headers(("X-H", bytes(range(0x80, 0x100)).decode("latin-1"))),
    "names of TorchServe's own": headers(("explain", "True"), ("describe", "True"), ("url_path", "mine")),
    "a name of an input": headers(("body", "in the head")),
    "the id of another request": headers(("x-request-id", "mine"), ("ts_request_sequence_id", "7")),
    "of proxies before": headers(("Via", "1.1 a"), ("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=1")),
    "of browsers": headers(("Origin", "http://x"), ("Referer", "http://y/"), ("User-Agent", "odd/1")),
    "of caches": headers(("Range", "bytes=0-1"), ("If-None-Match", "*"), ("Cache-Control", "no-cache")),
    "of encodings": headers(("Accept-Encoding", "gzip, br"), ("Content-Encoding", "identity")),
    "credentials": headers(("Authorization", "Bearer of-the-client")),
    "a great many": headers(*((f"X-{i}", f"v{i}") for i in range(150))),
    "a long one": headers(("X-Long", "y" * 7000)),
    "longer than TorchServe takes": headers(("X-Long", "y" * 9000)),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_headers(pair: Pair, name: str) -> None:
    """What the handler sees says whether they arrived as they were sent."""
    await pair.same_on_the_wire(HEADERS[name])


HIDDEN = {
    "close": [("Connection", "close")],
    "Close": [("CONNECTION", "Close")],
    "keep-alive": [("Connection", "Keep-Alive"), ("Keep-Alive", "timeout=5")],
    "a header it names": [("Connection", "x-private"), ("X-Private", "for one hop")],
    "trailers": [("TE", "trailers"), ("Connection", "TE")],
    "of the proxy": [("Proxy-Connection", "keep-alive"), ("Proxy-Authorization", "Basic x")],
    "another protocol": [("Connection", "Upgrade"), ("Upgrade", "websocket")],
    "control of the proxy, forged": [("X-TS-Parity-Op", "finish"), ("x-ts-parity-secret", "guess")],
}


@pytest.mark.parametrize("name", HIDDEN)
async def test_headers_of_one_connection_go_no_further(pair: Pair, name: str) -> None:
    """But for them the answers are the same: TorchServe hands them to the handler, a proxy must not."""
    hidden = (*(key.lower() for key, _ in HIDDEN[name]), "content-length")
    await pair.same_on_the_wire(request("GET", "/predictions/witness", b"", *HIDDEN[name]), hidden=hidden)


async def test_a_body_goes_with_a_request_to_change_the_protocol(pair: Pair) -> None:
    """Java's HttpClient offers h2c with every first request, bodies too. Nobody takes the offer: it is a request like
    any other, and its body is no request.
    """
    offer = [("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "AAMA"), ("Upgrade", "h2c")]
    hidden = tuple(name.lower() for name, _ in offer)
    await pair.same_on_the_wire(request("POST", "/predictions/witness", b"[1, 2]", *offer), hidden=hidden)
    inside = request("POST", "/predictions/witness", request("GET", "/ping"), *offer)
    await pair.same_on_the_wire(inside + PREDICTION, answers=1, hidden=hidden)


async def test_requests_that_ask_for_a_websocket_of_2010_hold_nothing(
    instance: TorchServeInstance, torchserve_factory: TorchServeFactory, tmp_path_factory: Any
) -> None:
    """A real fleet of two. TorchServe itself waits for eight more bytes behind each, which never come."""
    keys = (("Sec-WebSocket-Key1", "4 @1  46546xW%0l 1 5"), ("Sec-WebSocket-Key2", "12998 5 Y3 1  .P00"))
    data = request("GET", "/predictions/witness", b"", *keys)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(ask(instance.inference_url, data), 2)
    archive = write_archive(tmp_path_factory.mktemp("second") / "witness.mar", WITNESS)
    second = torchserve_factory([archive], env=NO_TORCH)
    fleet = tuple(
        InstanceSettings(each.inference_url, each.management_url, f"{n}") for n, each in enumerate((instance, second))
    )
    async with proxy_before(instance, instances=fleet) as proxy:
        answers = await asyncio.gather(*(ask(proxy.url, data) for _ in range(3)), ask(proxy.url, PREDICTION))
        assert [answer.status for (answer,) in answers] == [200] * 4
        await until(lambda: nothing_left(proxy), "the places to be free")


def old(*more: tuple[str, str], body: bytes = b"hi") -> bytes:
    return request("POST", "/predictions/witness", body, *more, version="HTTP/1.0")


OLD = {
    "as it is": (old(), ()),
    "keep-alive": (old(("Connection", "keep-alive")), ("connection",)),
    "close": (old(("Connection", "close")), ("connection",)),
    "no body": (request("GET", "/predictions/witness", version="HTTP/1.0"), ()),
    "an error": (request("GET", "/nowhere", version="HTTP/1.0"), ()),
    # Behind the proxy it is an HTTP/1.1 request, which has a host.
    "no host": (request("POST", "/predictions/witness", b"hi", version="HTTP/1.0", host=None), ("host",)),
}


@pytest.mark.parametrize("name", OLD)
async def test_http_1_0(pair: Pair, name: str) -> None:
    data, hidden = OLD[name]
    await pair.same_on_the_wire(data, hidden=hidden)


@pytest.mark.parametrize(("more", "stays"), [((), False), ((("Connection", "keep-alive"),), True)])
async def test_a_connection_of_http_1_0_ends_unless_asked(pair: Pair, more: tuple, stays: bool) -> None:
    """TorchServe keeps all of them and says so; clients of HTTP/1.0 wait for the end (RFC 9112, 9.3)."""
    async with connected(pair.proxied) as (reader, writer):
        writer.write(old(*more))
        assert (await read_answer(reader)).get("connection") == ("keep-alive" if stays else "close")
        writer.write(old(*more))
        assert (await reader.read(5)) == (b"HTTP/" if stays else b"")


async def test_a_stream_for_http_1_0_ends_with_the_connection(pair: Pair) -> None:
    """TorchServe sends chunks, which HTTP/1.0 does not know."""
    async with connected(pair.proxied) as (reader, writer):
        writer.write(old(do(stream=["one", "two"], say="three")))
        answer = await read_answer(reader)
        assert (answer.status_line, answer.get("transfer-encoding")) == ("HTTP/1.1 200 ", None)
        assert answer.body + await reader.read() == b"onetwothree"


NO_ONE_HOST = {
    "none": request("POST", "/predictions/witness", b"hi", host=None),
    "two": headers(("Host", "other.example")),
    "the same twice": headers(("Host", "fleet.example")),
    "empty": request("POST", "/predictions/witness", b"hi", host=("Host", "")),
    "a list": request("POST", "/predictions/witness", b"hi", host=("Host", "a, b")),
    "with a path": request("POST", "/predictions/witness", b"hi", host=("Host", "fleet.example/x")),
    "another than in the target": request("POST", "http://other.example/predictions/witness", b"hi"),
}


@pytest.mark.parametrize("name", NO_ONE_HOST)
async def test_a_request_that_does_not_name_one_host_is_refused(pair: Pair, name: str) -> None:
    """TorchServe takes them all, but for the last; its handlers would be told one of two hosts, or none."""
    (direct,) = await ask(pair.direct, NO_ONE_HOST[name])
    (proxied,) = await ask(pair.proxied, NO_ONE_HOST[name])
    assert (direct.status, proxied.status, proxied.get("connection")) == (
        404 if "target" in name else 200,
        400,
        "close",
    )


@pytest.mark.parametrize(
    "host", [("host", "fleet.example"), ("HOST", "fleet.example:80"), ("Host", "[::1]:80"), ("Host", "a_b-c.")]
)
async def test_hosts(pair: Pair, host: tuple[str, str]) -> None:
    await pair.same_on_the_wire(request("POST", "/predictions/witness", b"hi", host=host))


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n\r\n", b"\n"])
async def test_empty_lines_before_a_request(pair: Pair, before: bytes) -> None:
    await pair.same_on_the_wire(before + PREDICTION)
    answers = await ask(pair.proxied, PREDICTION + before + PREDICTION, answers=2)
    assert answers[0].body == answers[1].body


LONG = {
    "a long path": request("POST", "/predictions/witness/1.0/" + "u" * 3000, b"hi"),
    "a path as long as TorchServe takes": request("POST", "/predictions/witness/1.0/" + "u" * 4040, b"hi"),
    "a longer path": request("POST", "/predictions/witness/1.0/" + "u" * 5000, b"hi"),
    "a long query": request("POST", "/models/witness/invoke?a=" + "u" * 3000, b"hi"),
    "a longer query": request("GET", "/ping?" + "u" * 5000),
    "odd signs in a path": request("POST", "/predictions/witness/1.0/a|b^c`d{e}\"g<h>i\\j[k]:@!$&'()*+,;=~", b"hi"),
    "odd signs in a query": request("POST", '/models/witness/invoke?a=|^`{}"<>\\[]&b=/?:@&&c&=d', b"hi"),
    "two spaces in the request line": request("GET", " /ping "),
}


@pytest.mark.parametrize("name", LONG)
async def test_targets(pair: Pair, name: str) -> None:
    await pair.same_on_the_wire(LONG[name])


@pytest.mark.parametrize("expect", [("Expect", "100-continue"), ("expect", "100-Continue")])
async def test_a_client_that_asks_before_it_sends_a_body(pair: Pair, expect: tuple[str, str]) -> None:
    data = request("POST", "/predictions/witness", b"[1]", expect)
    await pair.same_on_the_wire(data, answers=2)
    for url in (pair.direct, pair.proxied):
        async with connected(url) as (reader, writer):
            writer.write(data[:-3])
            assert (await read_answer(reader)).status_line == "HTTP/1.1 100 Continue"
            writer.write(data[-3:])
            assert (await read_answer(reader)).json()["inputs"] == {"body": ["bytearray", "[1]"]}


async def test_a_client_of_http_1_0_is_not_told_to_go_on(pair: Pair) -> None:
    """It knows no interim answers and would take this one for the answer (RFC 9110, 10.1.1)."""
    await pair.same_on_the_wire(old(("Expect", "100-continue")), hidden=("expect", "content-length"))


@pytest.mark.parametrize("close", [("Connection", "close"), ("connection", "Close"), ("Connection", "x, close")])
async def test_a_client_that_wants_the_connection_closed(pair: Pair, close: tuple[str, str]) -> None:
    """TorchServe leaves it open, and says so."""
    async with connected(pair.proxied) as (reader, writer):
        writer.write(headers(close))
        assert (await read_answer(reader)).get("connection") == "close"
        assert await reader.read() == b""


async def test_a_client_that_half_closes(pair: Pair) -> None:
    """TorchServe takes it for one that has left: it closes, having answered or not, as it happens. So does the proxy,
    and the query keeps no place.
    """
    for url in (pair.direct, pair.proxied):
        async with connected(url) as (reader, writer):
            writer.write(PREDICTION)
            writer.write_eof()
            try:
                said = await asyncio.wait_for(reader.read(), PATIENCE_S)
            except ConnectionError:
                said = b""
            assert said[:13] in (b"", b"HTTP/1.1 200 ")
    await until(lambda: nothing_left(pair.proxy), "the place to be free")


REFUSED = {
    "a space before the colon": line(b"X-A : 1"),
    "no colon": line(b"X-A"),
    "no name": line(b": 1"),
    "a name beyond ASCII": line(b"X-\xfc: 1"),
    "NUL in a value": line(b"X-A: a\x00b"),
    "a space in the target": b"GET /ping x HTTP/1.1\r\nHost: h\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: h\r\n\r\n",
    "two lengths": headers(("Content-Length", "2"), ("Content-Length", "3")),
    "a length that is none": headers(("Content-Length", "x")),
    "chunks that are none": request("POST", "/ping", b"zz\r\n", ("Transfer-Encoding", "chunked")),
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_http_is_refused_by_both(pair: Pair, name: str) -> None:
    """The proxy says what is wrong with it, TorchServe only that something is; and both close."""
    (direct,) = await ask(pair.direct, REFUSED[name])
    (proxied,) = await ask(pair.proxied, REFUSED[name])
    assert (proxied.status_line, proxied.get("connection")) == (direct.status_line, "close")
    for answer in (direct, proxied):
        assert (answer.status, answer.json()["code"], answer.json()["type"]) == (400, 400, "BadRequestException")


async def test_one_connection_for_all_kinds_of_requests(pair: Pair) -> None:
    """An error ends TorchServe's connection, but not the one between client and proxy."""
    raises = do(**{"raise": "value"})
    cases = [Case(200), Case(404, path="/nowhere"), Case(200, body=b"1"), Case(503, headers=(raises,)), Case(200)]
    async with connected(pair.proxied) as (reader, writer):
        for case in cases:
            writer.write(case.data)
            assert (await read_answer(reader)).status == case.status
