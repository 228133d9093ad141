"""Method, target and Host: what passes, on either way of reading, and what does not."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.conftest import MakeFleet, read_answer
from tests.proxy.http.corpus import Recorder
from ts_parity.config import InstanceSettings
from ts_parity.proxy.fleet.torchserve.routes import model_named, prediction_route, prediction_target
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.request_line import host_is_sound, target_is_sound, why_malformed
from ts_parity.proxy.http.request_reader import RequestReader
from ts_parity.testing import FakeTorchServe


@pytest.mark.parametrize("host", ["h", "h:80", "h:", "a.b-c_d.", "1.2.3.4:1", "[::1]", "[::1]:80", "xn--bcher-kva.de"])
def test_a_host(host: str) -> None:
    assert host_is_sound(host)


@pytest.mark.parametrize(
    "host",
    ["", " ", "h/x", "h, g", "h,g", "h g", "u@h", "h:x", "h:80:80", ":80", "::1", "[::1", "[::1]x", "h?x", "h#x",
     "h\\g",
     "a..b", ".", "<h>", "h\tg", "\xfc", "http://h"],
)  # fmt: skip
def test_no_host(host: str) -> None:
    assert not host_is_sound(host)


@pytest.mark.parametrize(
    "target",
    ["/", "//", "/a?%zz", "/a#%zz", "/a/../b", "/a/..", "/a?/../..", "/...", "/..a", "/%2e/a", "/a%20b",
     "/\xc3\xbc", "/?"],
)  # fmt: skip
def test_a_target(target: str) -> None:
    assert target_is_sound(target)


@pytest.mark.parametrize(
    "target",
    ["", "*", "a", "?a", "/..", "/../a", "/a/../..", "/a//../..", "/%2e%2E", "/.%2e/a", "/%2f..%2f..", "/..?a", "/..#a",
     "/%", "/%2", "/%zz", "/a%00", "/%2%30"],
)  # fmt: skip
def test_no_target(target: str) -> None:
    assert not target_is_sound(target)


@pytest.mark.parametrize(
    ("target", "hosts", "old", "wrong"),
    [
        ("/", ["h"], False, ""),
        ("/", [], False, "no Host"),
        ("/", [], True, ""),
        ("/", ["h", "h"], True, "more than one Host"),
        ("http://h/a", ["H"], False, ""),
        ("http://h", ["h"], False, ""),
        ("http://g/a", ["h"], False, "a target on another host than Host says"),
        ("http://h:80/a", ["h"], False, "a target on another host than Host says"),
        ("http://u@h/a", [], True, "a target on another host than Host says"),
        ("http:///a", ["h"], False, "a target on another host than Host says"),
        ("http://h/../a", ["h"], False, "the target '/../a'"),
        ("ftp://h/a", ["h"], False, "the target 'ftp://h/a'"),
    ],
)
def test_target_and_host_together(target: str, hosts: list[str], old: bool, wrong: str) -> None:
    assert why_malformed(target, hosts, old) == wrong


class Heard:
    """Whoever wants the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def on_begin(self) -> None: ...
    def on_expect_continue(self) -> None: ...
    def on_request(self, request: Request, *_: object) -> None:
        self.requests.append(request)


CHUNKED = b"Host: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\r\n0\r\n0;x\r\nX-T: 1\r\n\r\n"
STREAM = (
    b"POST /1/\xc3\xbc HTTP/1.1\r\n" + CHUNKED + b"\r\n\nGET /2\xff HTTP/1.1\r\nHost: h\r\nConnection: x\r\n\r\n"
    b"POST /3 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n\r\n\r\n0"
    b"PUT  /4?\x80 HTTP/1.1\r\n" + CHUNKED + b"GET /5\xfc HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /6 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\n\r\n"
    b"GET /7 HTTP/1.1\r\nHost: h\r\nConnection: y\r\n\r\n"
)
ASKED = [
    ("POST", "/1/\xc3\xbc", b"\r\n0"), ("GET", "/2\xff", b""), ("POST", "/3", b"\r\n\r\n0"),
    ("PUT", "/4?\x80", b"\r\n0"),
    ("GET", "/5\xfc", b""), ("POST", "/6", b"\r\n"), ("GET", "/7", b""),
]  # fmt: skip


def read(pieces: list[bytes]) -> tuple[list[Request], Response | None]:
    heard = Heard()
    reader = RequestReader(heard, 1000)
    for piece in pieces:
        reader.feed(piece)
    return heard.requests, reader.refusal


def test_requests_are_told_apart_wherever_their_bytes_are_split() -> None:
    """Each ends in an empty line or after its length, and what looks like an end in a body is none."""
    for at in range(len(STREAM) + 1):
        requests, refusal = read([STREAM[:at], STREAM[at:]])
        assert refusal is None, at
        assert [(each.method, each.target, each.body) for each in requests] == ASKED, at
    requests, refusal = read([STREAM[at : at + 1] for at in range(len(STREAM))])
    assert [(each.method, each.target, each.body) for each in requests] == ASKED


@pytest.mark.parametrize(
    "line", [b"POST /x RTSP/1.0", b"OPTIONS /x RTSP/1.1", b"SOURCE /x ICE/1.0", b"GET /x \xffHTTP/1.1"]
)
@pytest.mark.parametrize("before", [b"", STREAM, b"POST / HTTP/1.1\r\n" + CHUNKED[:-2], b"\r\n"], ids=len)
def test_another_protocol_is_refused_wherever_it_begins(line: bytes, before: bytes) -> None:
    """The parser reads RTSP and ICE too, and tells nobody. A decoy in what comes before it changes nothing."""
    end = b"\r\n" if before.endswith(b"1\r\n") else b""
    data = before + end + line + b"\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    counts = set()
    for at in range(len(data) + 1):
        requests, refusal = read([data[:at], data[at:]])
        assert refusal is not None, at
        assert refusal.status == 400
        counts.add(len(requests))
    assert len(counts) == 1


def test_a_request_that_is_not_all_there_is_waited_for() -> None:
    """Wherever it stops: not refused, and not taken for a whole one."""
    for whole in (b"GET /a HTTP/1.1\r\nHost:\th\r\nX:\r\n\r\n", b"POST /a HTTP/1.1\r\n" + CHUNKED):
        for at in range(len(whole)):
            assert read([whole[:at]]) == ([], None), whole[:at]
        assert [request.target for request in read([whole])[0]] == ["/a"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_bytes_beyond_ascii_go_on_as_they_are(make_fleet: MakeFleet, chunked: bool) -> None:
    async with Recorder() as recorder, FakeTorchServe() as management:
        fleet = await make_fleet(given=(InstanceSettings(recorder.url, management.management, "recorder"),))
        framing = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" if chunked else b"\r\n"
        reader, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
        for target in (b"/predictions/m\xc3\xbc/\xff", b"/x?\x80\xfe", b"/models/\xe9/invoke"):
            writer.write(b"POST " + target + b" HTTP/1.1\r\nHost: h\r\n" + framing)
            assert (await asyncio.wait_for(read_answer(reader), 10)).body == b"ok"
            assert recorder.heard.pop() == "POST " + target.decode("latin-1")
        for bad in (b"/a\x7f", b"/a\x01", b"/a\tb"):
            answer = await fleet.client.send(b"POST " + bad + b" HTTP/1.1\r\nHost: h\r\n" + framing)
            assert answer.status == 400
        writer.close()


def test_models_are_found_in_such_paths_as_torchserve_finds_them() -> None:
    """Each byte is one sign (Latin-1), what is escaped is UTF-8; captured from TorchServe 0.12."""
    asked = prediction_route("POST", "/predictions/m\xc3\xbc/1.0/caf\xe9/%C3%A9\x80")
    assert asked is not None
    assert (asked.model, asked.version) == ("m\xc3\xbc", "1.0")
    again = prediction_route("POST", prediction_target(asked.model, "1.0", asked.extra))
    assert again == asked, "escaped on the way, and unescaped to the same by TorchServe"
    assert model_named("/invocations", "model_name=\xc3\xbc") == "\xc3\xbc"
    assert model_named("/invocations", "model_name=%C3%BC") == "\xfc"
