"""The admin port's manners: who may ask by which name, who may act, and what stands on a port of its own."""

from __future__ import annotations

import argparse
import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from tests.proxy.conftest import Client, MakeFleet
from tests.proxy.test_app import JSON, parse
from ts_parity.config import Settings, load_settings
from ts_parity.errors import ConfigError, StartError, TsParityError
from ts_parity.proxy.operations.admin import refusal
from ts_parity.proxy.operations.processes import Supervisor
from ts_parity.testing import FakeModel, FakeTorchServe

ACTION = {"Content-Type": "application/json"}
KEY = {"Authorization": "Bearer key"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8090", "10.0.0.7:80", "[::1]:8090", "[::ffff:10.0.0.7]", "localhost:8090", "LOCALHOST",
     "ts-parity:8090", "a.localhost", "ops.example.com:8090"],
)  # fmt: skip
def test_names_that_the_admin_port_answers_to(host: str) -> None:
    assert refusal(make_mocked_request("GET", "/status", {"Host": host}), "ops.example.com", "") == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8090", "127.0.0.1.nip.io", "127.0.0.1.evil.example:80", "localhost.evil.example",
     "evil.example.", "a@evil.example", "127.0.0.1:80@evil.example", "xops.example.com", "[::1].evil.example",
     "0x7f.1", "[evil.example]", "[::1", "127.0.0.1,evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_names_that_somebody_else_may_have_pointed_here(host: str, method: str) -> None:
    asked = make_mocked_request(method, "/status", {**ACTION, "Host": host})
    assert "no answer by the name" in refusal(asked, "ops.example.com", "")


def test_a_client_without_names_and_one_with_two() -> None:
    """Balancers probe with HTTP/1.0, which has no Host; no browser does."""
    assert refusal(make_mocked_request("GET", "/health"), "", "") == ""
    from multidict import CIMultiDict

    two = CIMultiDict([("Host", "localhost"), ("Host", "evil.example")])
    assert "evil.example" in refusal(make_mocked_request("GET", "/health", two), "", "")


def test_nobody_is_asked_in_the_name_of_another() -> None:
    """A target with a name of its own counts for more than Host."""
    asked = make_mocked_request("GET", "http://evil.example/status", {"Host": "localhost"})
    assert "anybody else's name" in refusal(asked, "", "")


async def test_what_is_not_http_is_told_to_its_sender_alone(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Each such request left a traceback in the log."""
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    for line in (b"GET /status HTTP/1.1\r\nHost: a", b"GET http://[::/ HTTP/1.1", b"PRI * HTTP/2.0", b"\xff"):
        assert (await fleet.admin.send(line + b"\r\nHost: a\r\n\r\n")).status == 400
    assert (await fleet.admin.get("/nothing")).status == 404
    refused = await fleet.admin.get("/drain")
    assert (refused.status, refused.get("allow")) == (405, "POST")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("headers", "token", "why"),
    [
        (ACTION, "", ""),
        ({"Content-Type": "application/json; charset=utf-8", "Origin": "http://localhost:8090"}, "", ""),
        ({**ACTION, "Sec-Fetch-Site": "same-origin"}, "", ""),
        ({**ACTION, "Sec-Fetch-Site": "none"}, "", ""),
        ({}, "", "need the header 'Content-Type"),
        (FORM, "", "need the header 'Content-Type"),
        ({"Content-Type": "text/plain"}, "", "need the header 'Content-Type"),
        ({**ACTION, "Origin": "http://evil.example"}, "", "pages from elsewhere"),
        ({**ACTION, "Origin": "null"}, "", "pages from elsewhere"),
        ({**ACTION, "Origin": "http://localhost:3000"}, "", "pages from elsewhere"),
        ({**ACTION, "Origin": "https://localhost:8090"}, "", "pages from elsewhere"),
        ({**ACTION, "Sec-Fetch-Site": "same-site"}, "", "pages from elsewhere"),
        ({**ACTION, "Sec-Fetch-Site": "cross-site"}, "", "pages from elsewhere"),
        (KEY, "key", ""),
        (ACTION, "key", "Authorization"),
        ({**ACTION, "Authorization": "Bearer kez"}, "key", "Authorization"),
        ({**ACTION, "Authorization": "Bearer "}, "key", "Authorization"),
        ({**ACTION, "Authorization": "Basic key"}, "key", "Authorization"),
    ],
)
def test_who_may_act(headers: dict[str, str], token: str, why: str) -> None:
    asked = make_mocked_request("POST", "/drain", {**headers, "Host": "localhost:8090"})
    refused = refusal(asked, "", token)
    assert why in refused
    assert bool(refused) is bool(why)


def test_who_has_the_token_may_use_any_name() -> None:
    asked = make_mocked_request("POST", "/drain", {**KEY, "Host": "ops.example.com"})
    assert refusal(asked, "", "key") == ""


async def test_a_page_from_elsewhere_neither_stops_nor_reads(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    page, text = ("Origin", "http://evil.example"), ("Content-Type", "text/plain")
    for headers in ((page, text), (page, *JSON), (text,), ()):
        answer = await fleet.admin.post("/drain", headers=headers)
        assert (answer.status, answer.json()["status"]) == (403, "refused")
    preflight = await fleet.admin.ask("OPTIONS", "/drain", headers=(("Origin", "http://evil.example"),))
    assert (preflight.status, preflight.get("access-control-allow-origin")) == (403, None)
    assert (await fleet.admin.get("/drain")).status == 405
    for path in ("/status", "/metrics", "/health", "/nothing"):
        assert (await fleet.admin.send(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())).status == 403
        assert (await fleet.admin.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())).status == 404 - 204 * (path[1] != "n")
    assert not fleet.proxy.draining
    assert (await fleet.admin.post("/drain", headers=JSON)).status == 202
    assert fleet.proxy.draining


async def test_all_processes_are_stopped_by_none_but_the_operator() -> None:
    supervisor = Supervisor(Settings(admin_token="key", admin_port=0, processes=2))
    await supervisor._admin.start(supervisor.settings)
    try:
        port = supervisor._admin._runners[0].addresses[0][1]
        admin = Client(f"http://127.0.0.1:{port}")
        assert (await admin.post("/drain", headers=JSON)).status == 403
        raw = b"POST /drain HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nAuthorization: Bearer \xe4\r\n\r\n"
        assert (await admin.send(raw)).status == 403
        assert not supervisor.draining
        assert (await admin.post("/drain", headers=(("Authorization", "Bearer key"),))).status == 202
        assert supervisor.draining
    finally:
        await supervisor._admin.close()


async def test_what_may_only_be_read_has_an_address_of_its_own(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), metrics_address="127.0.0.1:0")
    reading = Client(f"http://127.0.0.1:{fleet.proxy._admin._runners[0].addresses[0][1]}")
    for path in ("/metrics", "/health", "/livez", "/readyz"):
        assert (await reading.get(path)).status == (await fleet.admin.get(path)).status == 200
        by_name = f"GET {path} HTTP/1.1\r\nHost: ts-parity.prod.svc:9090\r\n\r\n"
        assert (await reading.send(by_name.encode())).status == 200
    assert (await reading.get("/status")).status == 404
    assert (await reading.post("/drain", headers=JSON)).status == 404
    taken = f"127.0.0.1:{reading.port}"
    with pytest.raises(StartError, match=rf"cannot listen on {taken}: .* \(--metrics-address\)"):
        await make_fleet(metrics_address=taken)


async def test_a_proxy_that_drains_is_alive_and_not_ready(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert [(await fleet.admin.get(path)).status for path in ("/livez", "/readyz")] == [200, 200]
    fleet.proxy.drain()
    assert [(await fleet.admin.get(path)).status for path in ("/livez", "/readyz")] == [200, 503]


@pytest.mark.parametrize("address", ["9090", ":9090", "h", "h:", "h:x", "h:99999", "http://h:1", "a@h:1", "h:1/x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_address must be like"):
        load_settings(flags={"metrics_address": address}, endpoints=("http://h:1",))
    assert load_settings(flags={"metrics_address": "[::]:9090"}, endpoints=("http://h:1",)).metrics_address


async def test_drain_command(make_fleet: MakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), admin_token="-key")

    def command(*more: str) -> argparse.Namespace:
        return parse("drain", "--admin", fleet.proxy.admin_url, *more)

    for args in (command(), command("--token=other")):
        with pytest.raises(TsParityError, match=r"/drain: actions need the header 'Authorization: Bearer TOKEN'"):
            await asyncio.to_thread(args.run, args)
    assert not fleet.proxy.draining
    args = command("--token=-key")
    assert await asyncio.to_thread(args.run, args) == 0
    assert fleet.proxy.draining
    assert capsys.readouterr().out == "draining\n"
