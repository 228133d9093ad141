"""Hostile bytes at both edges: some hundreds of cases (`make fuzz` has a hundred thousand), and what was found."""

import asyncio
import re
from collections import Counter
from random import Random

import pytest

from tests.proxy.http.fuzzing import _differs, fuzz, machine
from tests.proxy.http.strict import End, Message, read_answer, read_requests

HOST = b"Host: h\r\n"
NEXT = b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n"
UPGRADE = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_comes_nobody_gets_what_is_not_his(seed: int) -> None:
    faults, tally = await fuzz(seed, range(300))
    assert not faults, "\n".join(faults)
    assert tally["answered"] > 60
    assert tally["refused 400"] > 15
    assert tally["passed on"] > 30


def rows(*found):
    """Name, what was wrong, the bytes, whether they are good, and how they are answered: see `Machine.tally`."""
    return [pytest.param(pieces, clean, told, id=f"{name}: {what}") for name, what, pieces, clean, told in found]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "clean", "told"),
    rows(
        (
            "refusal",
            "the next one's answer takes its place",
            b"GET /a HTTP/1.1\r\n" + HOST + b"Expect: wonders\r\n\r\n" + NEXT,
            False,
            {"refused 417": 1},
        ),
        (
            "refusal",
            "a blank behind it, which should not matter",
            b"GET /a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue \r\n\r\n" + NEXT,
            True,
            {"answered": 2},
        ),
        (
            "refusal",
            "a body over the limit",
            b"POST /a HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n1d4c0\r\n" + b"x" * 120_000 + b"\r\n0\r\n\r\n" + NEXT,
            False,
            {"refused 413": 1},
        ),
        (
            "refusal",
            "a head over the limit",
            b"GET /a HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 66_000 + b"\r\n\r\n" + NEXT,
            False,
            {"refused 431": 1},
        ),
        (
            "upgrade",
            "its body is a request",
            b"POST /a HTTP/1.1\r\n" + HOST + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT,
            True,
            {"answered": 1},
        ),
        (
            "upgrade",
            "its body is lost",
            b"POST /a HTTP/1.1\r\n" + HOST + UPGRADE + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n" + NEXT,
            True,
            {"answered": 2},
        ),
        (
            "upgrade",
            "a thousand in one packet",
            (b"GET /a HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n") * 1100,
            True,
            {"answered": 1100},
        ),
        (
            "trailer",
            "becomes a header",
            b"POST /a HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
            True,
            {"answered": 1},
        ),
        (
            "version",
            "a line feed in the request line",
            b"GET /a\nX: Y HTTP/1.1\r\n" + HOST + b"\r\n",
            False,
            {"refused 400": 1},
        ),
        ("version", "none", b"GET /a\r\n" + HOST + b"\r\n", False, {"refused 400": 1}),
        ("version", "0.9", b"GET /a HTTP/0.9\r\n" + HOST + b"\r\n", False, {"refused 400": 1}),
        ("version", "2.0", b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n", False, {"refused 400": 1}),
        (
            "old and chunked",
            "faulty framing (RFC 9112, 6.1)",
            b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n" + NEXT,
            False,
            {"refused 400": 1},
        ),
        (
            "old, close and keep-alive",
            "close counts (RFC 9112, 9.3)",
            b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n" + NEXT,
            True,
            {"answered": 1},
        ),
    ),
)
async def test_requests_that_were_read_wrongly_once(data: bytes, clean: bool, told: dict[str, int]) -> None:
    async with machine(0) as it:
        await it.at_client([data], Random(1), clean, sum(told.values()))
        assert +it.tally == Counter(told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "clean", "told"),
    rows(
        ("chunked without body", "304", b"HTTP/1.1 304 Not Modified\r\n" + CHUNKED + b"\r\n", False, {"passed on": 6}),
        ("chunked without body", "204", b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n", False, {"passed on": 6}),
        (
            "odd coding of an answer",
            "a tab behind it",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            False,
            {"asked again": 2, "passed on": 1, "refused": 3},
        ),
    ),
)
async def test_answers_that_were_read_wrongly_once(data: bytes, clean: bool, told: dict[str, int]) -> None:
    async with machine(0) as it:
        for n in range(6):  # GET and POST, passed through and not
            await it.at_instance([data], Random(n), clean)
        assert +it.tally == Counter(told)


# ---- the second opinion itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "heard", "differs"),
    [
        (b"HTTP/1.1\r\nHost: h", b"Host: h", False),
        (b"HTTP/1.1\r\nHost: h", b"Host: another", True),
        (b"HTTP/1.1\r\nHost: h", b"Host: h\r\nHost: h", True),
        (b"HTTP/1.0\r\nA: b", b"Host: an-instance\r\nA: b", False),
        (b"HTTP/1.0\r\nA: b", b"Host: an-instance\r\nA: c", True),
        (b"HTTP/1.1\r\nHost: h\r\nConnection: close", b"Host: h\r\nConnection: close", True),
    ],
)
def test_what_an_instance_is_handed_is_compared_with_what_was_sent(sent: bytes, heard: bytes, differs: bool) -> None:
    ([asked], _) = read_requests(b"GET /a " + sent + b"\r\n\r\n")
    handed = Message(
        (b"GET", b"/a"),
        b"1.1",
        tuple(tuple(line.split(b": ")) for line in [*heard.split(b"\r\n"), b"Content-Length: 0"]),
        b"",
    )
    assert bool(_differs(handed, asked)) == differs


def test_the_reference_reads_what_is_good() -> None:
    data = (
        b"\r\nPOST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        b"PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nd\r\n2\r\nef\r\n0\r\nT: 1\r\n\r\n"
        b"GET /c HTTP/1.0\r\nA:  b \r\n\r\nGET /never HTTP/1.1\r\n\r\n"
    )
    found, end = read_requests(data)
    assert [(m.first, m.body) for m in found] == [
        ((b"POST", b"/a"), b"abc"), ((b"PUT", b"/b"), b"def"), ((b"GET", b"/c"), b""),
    ]  # fmt: skip
    assert found[2].headers == ((b"A", b"b"),)
    assert end is End.CLOSED


@pytest.mark.parametrize(
    "data",
    [
        b"GET /a\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: h\n\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"POST /a RTSP/1.0\r\nHost: h\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ],
)
def test_the_reference_refuses_what_is_not(data: bytes) -> None:
    assert read_requests(data) == ([], End.BAD)


def test_the_reference_reads_answers() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nokHTTP"
    message, end, rest = read_answer(data, b"GET", closed=False)
    assert message is not None
    assert (message.first, message.body, end, rest) == ((b"200", b""), b"ok", End.WHOLE, b"HTTP")
    message, end, rest = read_answer(b"HTTP/1.1 200 OK\r\n\r\nab", b"GET", closed=True)
    assert message is not None
    assert (message.body, end) == (b"ab", End.CLOSED)
    assert read_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", b"GET", closed=False)[1] is End.INSIDE


@pytest.mark.slow
def test_a_fault_is_told_so_that_it_can_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.proxy.http.fuzzing._differs", lambda heard, sent: "in all")
    faults, _ = asyncio.run(fuzz(3, range(0, 60, 2), most=1))
    assert re.match(r"case \d+ of seed 3: an instance was handed what the client did not send there", faults[0])
    assert "--client [b'" in faults[0]
