"""Certificates as files: which can be used, what is said of the others, and proxies that are started with them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.proxy.authority import Authority
from tests.proxy.conftest import Client
from tests.proxy.test_app import JSON, Process
from ts_parity.config import InstanceSettings, Settings
from ts_parity.errors import ConfigError
from ts_parity.proxy.http.certificates import client_side, instance_side
from ts_parity.testing import FakeModel, FakeTorchServe

PAIRS: list[tuple[Callable[[Authority], tuple[str, str]], str]] = [
    (lambda a: ("/no/such", a.issue()[1]), "tls_certificate: cannot read '/no/such': No such file"),
    (lambda a: (a.issue()[0], str(a.folder)), "tls_key: cannot read .*: Is a directory"),
    (lambda a: (a.issue()[0], a.issue()[1]), "tls_key: .*2.key' is not the key of the certificate in .*1.pem'"),
    (lambda a: (a.write("x", b"nonsense"), a.issue()[1]), "no PEM certificate in .*x'"),
    (lambda a: weak(a), "OpenSSL takes none so weak as .*weak.pem' and .*weak.key': ee key too small"),
    (lambda a: (a.issue()[0], encrypted(a, a.issue()[1])), "tls_key: .* is encrypted, and there is nobody to ask"),
]


def weak(authority: Authority) -> tuple[str, str]:
    """As in TorchServe's own examples, whose Java takes it."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "h")])
    day, later = datetime(2020, 1, 1), datetime(2040, 1, 1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, day, later).sign(key, hashes.SHA256())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return (
        authority.write("weak.pem", made.public_bytes(pem)),
        authority.write("weak.key", key.private_bytes(pem, pkcs8, serialization.NoEncryption())),
    )


def encrypted(authority: Authority, key: str) -> str:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked = loaded.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"password"))
    return authority.write("locked.key", locked)


@pytest.mark.parametrize(("pair", "message"), PAIRS)
def test_certificates_that_cannot_be_used(
    authority: Authority, pair: Callable[[Authority], tuple[str, str]], message: str
) -> None:
    certificate, key = pair(authority)
    with pytest.raises(ConfigError, match=message):
        client_side(Settings(tls_certificate=certificate, tls_key=key))
    one = InstanceSettings("https://h:1", "https://h:2", tls_certificate=certificate, tls_key=key)
    with pytest.raises(ConfigError, match=f"instance h:1: .*{message}"):
        instance_side(Settings(instances=(one,)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tls_ca: cannot read '.*trusted.pem': No such file or directory"),
        (b"", "tls_ca: no PEM certificate in '.*trusted.pem'"),
        (b"nonsense", "tls_ca: no PEM certificate in '.*trusted.pem'"),
    ],
)
def test_a_tls_ca_that_cannot_be_used(authority: Authority, content: bytes | None, message: str) -> None:
    if content is not None:
        authority.write("trusted.pem", content)
    one = InstanceSettings("https://h:1", "https://h:2", tls_ca=str(authority.folder / "trusted.pem"))
    with pytest.raises(ConfigError, match=f"instance h:1: {message}"):
        instance_side(Settings(instances=(one,)))
    (authority.folder / "empty").mkdir()
    one = InstanceSettings("https://h:1", "https://h:2", tls_ca=str(authority.folder / "empty"))
    with pytest.raises(ConfigError, match=r"no PEM certificate in '.*empty'"):
        instance_side(Settings(instances=(one,)))


@pytest.mark.slow
async def test_several_processes_speak_tls_together(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue()
    async with FakeTorchServe(FakeModel()) as instance:
        process = Process(tmp_path)
        ready = await process.start(instance.endpoint, tls_certificate=certificate, tls_key=key, processes="2")
        assert ready["url"].startswith("https://")
        client = Client(ready["url"], authority.trusting)
        answers = await asyncio.gather(*(client.post("/predictions/linear", b"[1, 2]") for _ in range(8)))
        assert [answer.json() for answer in answers] == [[5.0, 11.0]] * 8
        await Client(ready["admin_url"]).post("/drain", headers=JSON)
        assert (await process.end())[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_wrong_certificate_is_exit_code_2(authority: Authority, processes: str) -> None:
    """And nobody is asked for a password."""
    certificate, key = authority.issue()
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ts_parity.cli", "serve", "--endpoint", "http://127.0.0.1:1", "--port", "0"),
        *("--tls-certificate", certificate, "--tls-key", encrypted(authority, key), "--processes", processes),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(ran.communicate(), 60)
    assert ran.returncode == 2
    assert b"is encrypted" in said
