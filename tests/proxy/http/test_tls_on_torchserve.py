"""A TorchServe that is reached over Unix sockets, and one over https, behind a proxy that itself speaks https."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_TORCH, write_archive
from tests.proxy.authority import Authority
from tests.proxy.side_by_side import WITNESS, Case, ask, comparable, do, proxy_before, unmarked
from ts_parity.errors import ConfigError, ManagementError
from ts_parity.torchserve.configuration import InstanceOptions, free_ports
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = pytest.mark.torchserve


class Elsewhere(TorchServeInstance):
    """At addresses that the launcher's own client does not know how to ask."""

    def __init__(self, archive: Path, inference: str, management: str, ca: str = "", **properties: str) -> None:
        addresses = {"inference_address": inference, "management_address": management}
        options = InstanceOptions(token_auth=True, properties={**addresses, **properties}, env=NO_TORCH)
        super().__init__([archive], options, start_timeout_s=60.0)
        self._addresses = inference, management
        self.ca = ca
        self.trusting = ssl.create_default_context(cafile=ca) if ca else None

    @property
    def inference_url(self) -> str:
        return self._addresses[0]

    @property
    def management_url(self) -> str:
        return self._addresses[1]

    def _missing(self) -> str:
        try:
            with contextlib.closing(self._connected()) as connection:
                connection.request("GET", "/models/witness", headers={"Authorization": f"Bearer {self.token()}"})
                said = json.load(connection.getresponse())
            return "" if said[0]["workers"][0]["status"] == "READY" else "its worker is not ready"
        except (ManagementError, ConfigError, OSError, http.client.HTTPException, ValueError, LookupError) as error:
            return f"its management API does not answer: {error}"

    def _connected(self) -> http.client.HTTPConnection:
        if self.trusting is not None:
            port = int(self.management_url.rpartition(":")[2])
            return http.client.HTTPSConnection("127.0.0.1", port, context=self.trusting, timeout=60)
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.management_url.removeprefix("unix:"))
        return connection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ts")


@pytest.fixture(scope="module", params=["unix", "https"])
def instance(request: Any, folder: Path) -> Iterator[Elsewhere]:
    archive = write_archive(folder / "witness.mar", WITNESS)
    if request.param == "unix":
        made = Elsewhere(archive, f"unix:{folder}/i", f"unix:{folder}/m")
    else:
        authority, ports = Authority(folder), free_ports()
        certificate, key = authority.issue(for_java=True)
        urls = [f"https://127.0.0.1:{port}" for port in (ports.inference, ports.management)]
        made = Elsewhere(archive, *urls, authority.pem, certificate_file=certificate, private_key_file=key)
    try:
        made.start()
        yield made
    finally:
        made.stop(orderly=False)


CASES = [
    Case(200, body=b"1"),
    Case(200, path="/predictions/witness/1.0/x", body=b"x" * 3_000_000, headers=(("X-Odd", "a  b"), ("x-odd", "c"))),
    Case(200, "HEAD", "/predictions/witness"),
    Case(200, body=b"1", headers=(do(size=3_000_000),)),
    Case(200, body=b"1", headers=(do(stream=["a" * 700, "b" * 700], say="c"),)),
    Case(503, body=b"1", headers=(do(**{"raise": "value"}),)),
    Case(200, path="/v1/models/witness:predict", body=b"1", marked=False),
    Case(200, "GET", "/ping", marked=False),
    Case(404, "GET", "/nowhere", marked=False),
    Case(200, "OPTIONS", "/", marked=False),
    Case(200, body=b"1"),
]


async def test_the_proxy_answers_as_the_instance_does(instance: Elsewhere, folder: Path) -> None:
    """Byte for byte, through TLS to a Unix socket and through TLS to TLS; and the key is the proxy's."""
    authority = Authority(folder / "proxys")
    certificate, key = authority.issue()
    token = instance.token("inference") or ""
    given = {"tls_certificate": certificate, "tls_key": key}
    async with proxy_before(instance, token, instance.ca, **given) as proxy:
        assert proxy.plan.problems == ()
        for case in CASES:
            headers = (*case.headers, ("Authorization", f"Bearer {token}"))
            direct = Case(case.status, case.method, case.path, case.body, headers)
            to_head = case.method == "HEAD"
            (expected,) = await ask(instance.inference_url, direct.data, to_head=to_head, trusting=instance.trusting)
            (answer,) = await ask(proxy.url, case.data, to_head=to_head, trusting=authority.trusting)
            assert expected.status == case.status
            plain = unmarked(answer) if case.marked else answer
            assert without_key(comparable(plain), token) == without_key(comparable(expected), token)


def without_key(compared: tuple[Any, ...], token: str) -> str:
    """Where among the headers a handler finds the key is the proxy's choice."""
    return repr(compared).replace(f', "Authorization": "Bearer {token}"', "")
