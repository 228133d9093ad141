"""Nothing that nginx refuses is passed on: a corpus of malformed requests, and what nginx made of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pytest

from tests.proxy.conftest import MakeFleet, nothing_left, until
from tests.proxy.http.corpus import CORPUS, NGINX, RECORDED, Recorder, ask_nginx, nginx_version, passed_on
from ts_parity.config import InstanceSettings
from ts_parity.testing import FakeTorchServe

_PARTS = 4
_SAME_TARGET = "http://h"
"""nginx cuts it off; TorchServe is to answer 404 as it does without us."""


ALLOWED = {"header b'Content-Length:\\t3'"}
"""A tab before a value is as good as a blank for RFC 9110 (5.6.3), TorchServe and everybody else; nginx refuses it."""


def found(heard: Iterable[str]) -> list[str]:
    return [asked.replace(f" {_SAME_TARGET}/", " /", 1).replace(" HTTP://h/", " /", 1) for asked in heard]


def within(ours: list[str], theirs: list[str]) -> bool:
    """Whether each of ours is among theirs, in this order and no more often."""
    rest = iter(theirs)
    return all(asked in rest for asked in ours)


async def through_ours(make_fleet: MakeFleet, names: Iterable[str]) -> Mapping[str, list[str]]:
    async with Recorder() as recorder, FakeTorchServe() as management:
        fleet = await make_fleet(given=(InstanceSettings(recorder.url, management.management, "recorder"),))
        heard = {}
        for name in names:
            begin = len(recorder.heard)
            await passed_on(fleet.client.port, recorder, CORPUS[name])
            await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
            heard[name] = found(recorder.heard[begin:])
        return heard


def recorded() -> dict[str, list[str]]:
    passed: dict[str, list[str]] = json.loads(RECORDED.read_text())["passed_on"]
    return passed


def test_what_nginx_did_is_known_of_the_whole_corpus() -> None:
    assert list(recorded()) == list(CORPUS), "run python -m tests.proxy.http.corpus"
    assert sum(not passed for passed in recorded().values()) > 100, "a corpus of what is refused"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
async def test_nothing_that_nginx_refuses_is_passed_on(make_fleet: MakeFleet, part: int) -> None:
    theirs = recorded()
    ours = await through_ours(make_fleet, list(CORPUS)[part::_PARTS])
    assert {name for name, heard in ours.items() if not within(heard, theirs[name])} <= ALLOWED


# Of each kind some, so that the quick tests see a slip too.
SOME = [
    "line b'POST /a RTSP/1.0'", "line b'CONNECT h:80 HTTP/1.1'", "line b'TRACE /a HTTP/1.1'",
    "line b'OPTIONS * HTTP/1.1'",
    "line b'GET /../a HTTP/1.1'", "line b'GET /a%00b HTTP/1.1'", "line b'GET /%zz HTTP/1.1'",
    "header b'Content-Length: +3'", "coding b'identity, chunked'", "chunks b'0x3\\r\\nabc\\r\\n0\\r\\n\\r\\n'",
    "hosts b''", "hosts b'Host:\\r\\n'", "hosts b'Host: h\\r\\nHost: h\\r\\n'", "hosts b'Host: h/a\\r\\n'",
]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
async def test_some_of_it(make_fleet: MakeFleet, name: str) -> None:
    async with Recorder() as recorder, FakeTorchServe() as management:
        fleet = await make_fleet(given=(InstanceSettings(recorder.url, management.management, "recorder"),))
        answer = await fleet.client.send(CORPUS[name])
        assert answer.status in (400, 405)
        assert answer.get("connection") == "close"
        assert recorder.heard == recorded()[name] == []


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")
async def test_the_nginx_of_this_machine_says_the_same(make_fleet: MakeFleet) -> None:
    theirs = await ask_nginx()
    if nginx_version() == json.loads(RECORDED.read_text())["version"]:
        differing = [name for name, heard in theirs.items() if heard != recorded()[name]]
        if differing:  # or this machine has stalled
            again = await ask_nginx(differing, quiet_s=3.0)
            assert again == {name: recorded()[name] for name in differing}
        return
    ours = await through_ours(make_fleet, CORPUS)
    assert {name for name, heard in ours.items() if not within(heard, theirs[name])} <= ALLOWED
