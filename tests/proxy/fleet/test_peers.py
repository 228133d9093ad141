"""Heartbeats: who is believed to be a peer, and who is not, whatever they send."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.conftest import PROMPT, until
from ts_parity.config import load_settings, parse_endpoint, settings_of
from ts_parity.engine.members import PeerState
from ts_parity.errors import ConfigError
from ts_parity.proxy.fleet import peers as module
from ts_parity.proxy.fleet.peers import HEARTBEAT, VERSION, Peers
from ts_parity.proxy.http.messages import Request, Response, split_controls
from ts_parity.wire import FORWARDED, PEER

POOLS = frozenset({"m/1.0"})


def peers(member: str = "a", secret: str = "s3cret", at: str = "http://127.0.0.1:9", **settings: Any) -> Peers:
    listed = (parse_endpoint("http://127.0.0.1:8080"),)
    chosen = settings_of({**PROMPT, "secret": secret, "peers": (at,), "instances": listed, **settings})
    return Peers(chosen, member, lambda: POOLS, lambda: False, lambda address, pools: None)


def asked(by: Peers, nonce: str = "n1") -> Request:
    """As a peer sends it, and as the server reads it."""
    return Request("GET", HEARTBEAT, (), b"", None, ((PEER, f"{nonce} {by._proof('ask', nonce)}"),))


def over_the_wire(response: Response | None) -> Response:
    assert response is not None
    headers, controls = split_controls(response.headers)
    return Response(response.status, response.phrase, headers, response.body, None, controls)


async def test_a_peer_says_who_it_is_and_what_it_serves() -> None:
    one, other = peers("a"), peers("b")
    word = one._read(over_the_wire(other.answer(asked(one))), "n1")
    assert (word.member, word.serves, word.fleet) == ("b", POOLS, one.members.fleet)


@pytest.mark.parametrize("proof", ["", "n1", "n1 ", f"n1 {'0' * 64}", "n1 \u00e9", f"{'n' * 65} x", "\udce9 \udce9"])
async def test_nobody_without_the_secret_is_answered(proof: str) -> None:
    request = Request("GET", HEARTBEAT, (), b"", None, ((PEER, proof),))
    assert peers().answer(request) is None
    assert peers().answer(asked(peers(secret="another"))) is None
    assert peers().answer(Request("GET", HEARTBEAT, (), b"")) is None


async def test_a_replayed_answer_is_not_believed() -> None:
    """Each question has a number of its own, and the proof is over it."""
    one, other = peers("a"), peers("b")
    recorded = over_the_wire(other.answer(asked(one, "n1")))
    with pytest.raises(ValueError, match="same secret"):
        one._read(recorded, "n2")


async def test_a_changed_answer_is_not_believed() -> None:
    one, other = peers("a"), peers("b")
    said = over_the_wire(other.answer(asked(one)))
    forged = Response(200, "", said.headers, said.body.replace(b'"b"', b'"c"'), None, said.controls)
    with pytest.raises(ValueError, match="same secret"):
        one._read(forged, "n1")


async def test_a_question_sent_back_as_an_answer_is_not_believed() -> None:
    one = peers("a")
    proof = one._proof("ask", "n1")
    with pytest.raises(ValueError, match="same secret"):
        one._read(Response(200, "", (), b"", None, ((PEER, proof),)), "n1")


async def test_a_heartbeat_changes_nothing_at_whom_it_asks() -> None:
    """So a replayed one is worth nothing."""
    one = peers("a")
    for _ in range(3):
        one.answer(asked(peers("b")))
    assert one.members.peers == {}


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ({"version": VERSION + 1}, "version 2"),
        ({"version": VERSION}, "cannot be read"),
        ({"version": VERSION, "member": "b", "serves": None, "fleet": "f", "draining": False}, "cannot be read"),
        ([], "cannot be read"),
        ("nonsense", "cannot be read"),
    ],
)
async def test_what_another_version_says_is_refused_in_words(word: Any, why: str) -> None:
    one = peers("a")
    body = json.dumps(word)
    said = Response(200, "", (), body.encode(), None, ((PEER, one._proof("say", "n1", body)),))
    with pytest.raises(ValueError, match=why):
        one._read(said, "n1")


async def test_what_is_no_proxy_is_refused_in_words() -> None:
    for response in (Response(404, "", (), b"{}"), Response(200, "", (), b"\xff\xfe")):
        with pytest.raises(ValueError, match="no proxy with the same secret"):
            peers()._read(response, "n1")


async def test_the_mark_of_a_forwarded_query_is_a_members() -> None:
    one, other = peers("a"), peers("b")

    def forwarded_by(value: str) -> str | None:
        return one.forwarded_by(Request("POST", "/predictions/m", (), b"", None, ((FORWARDED, value),)))

    assert forwarded_by(other.forwarding_header[1]) == "b"
    proof = other.forwarding_header[1].split(" ")[1]
    for forged in ("", "b", f"c {proof}", f"b {proof[:-1]}0" if proof[-1] != "0" else f"b {proof[:-1]}1", "\udce9 x"):
        assert forwarded_by(forged) is None
    assert forwarded_by(peers("b", secret="another").forwarding_header[1]) is None


def names(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        if not hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


async def test_a_name_stands_for_all_its_addresses_as_they_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    one = peers(at="http://proxies:8080")
    names(monkeypatch, "10.0.0.2", "10.0.0.1", "fd00::1")
    await one._resolve()
    assert [*one.members.peers] == ["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://[fd00::1]:8080"]
    names(monkeypatch, "10.0.0.2")
    await one._resolve()
    assert [*one.members.peers] == ["http://10.0.0.2:8080"]
    names(monkeypatch)
    await one._resolve()
    assert [*one.members.peers] == ["http://10.0.0.2:8080"], "a name server that is down takes nobody away"
    assert "has no address" in one.problems()[0]


async def test_a_name_that_cannot_be_one_is_a_problem() -> None:
    odd = peers(at=f"http://{'a' * 70}.example:8080")
    await odd._resolve()
    assert "its name has no address" in odd.problems()[0]


async def test_heartbeats_go_on_whatever_happens_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    one, failures = peers(), []

    def serves() -> frozenset[str]:
        failures.append(1)
        raise RuntimeError("on purpose")

    one._serves = serves
    await one.start()
    await until(lambda: len(failures) > 3, "it is tried again")
    await one.close()


async def test_who_is_asked_and_is_not_there_is_a_problem_unless_its_name_has_others() -> None:
    lonely = peers(at="http://127.0.0.1:9")
    await lonely._resolve()
    assert lonely.problems() == ["peer http://127.0.0.1:9: not heard from yet; queries are not forwarded to it"]
    (peer,) = lonely.members.peers.values()
    peer.state = PeerState.ALIVE
    assert lonely.problems() == []


async def test_a_port_that_takes_connections_and_never_answers_is_asked_on_and_never_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    connections = []
    server = await asyncio.start_server(lambda *pair: connections.append(pair), "127.0.0.1", 0)
    one = peers(at=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await one.start()
    await until(lambda: len(connections) > 3, "it is asked again")
    assert one.members.alive() == 0
    await one.close()
    server.close()


def test_settings_name_peers_and_need_a_secret(tmp_path: Path) -> None:
    def peers_of(text: str, **more: str) -> tuple[str, ...]:
        return load_settings(flags={"peers": text, "secret": "x", **more}, endpoints=["http://t:8080"]).peers

    assert peers_of("http://a:80, https://b:443,http://a:80,,unix:/run/p.sock") == (
        "http://a:80",
        "https://b:443",
        "unix:/run/p.sock",
    )
    assert peers_of("", secret="") == ()
    with pytest.raises(ConfigError, match="--peers must be like http://HOST:PORT"):
        peers_of("a:80")
    with pytest.raises(ConfigError, match="peers needs a secret"):
        peers_of("http://a:80", secret="")
    file = tmp_path / "ts-parity.toml"
    file.write_text('peers = ["http://a:80", "http://b:80"]\nsecret = "x"\n[[instance]]\ninference = "http://t:8080"\n')
    assert load_settings(file).peers == ("http://a:80", "http://b:80")
