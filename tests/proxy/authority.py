"""Certificates for tests: real ones, of an authority that nobody else knows."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = ("localhost", "127.0.0.1")
_KINDS = {False: trustme.KeyType.ECDSA, True: trustme.KeyType.RSA}


class Authority:
    """Issues certificates, and knows them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.pem = self.write("ca.pem", self._ca.cert_pem.bytes())
        self.trusting = ssl.create_default_context(cafile=self.pem)
        self._issued = 0

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def issue(self, *names: str, expired: bool = False, for_java: bool = False) -> tuple[str, str]:
        """-> files with a certificate and its key; Java wants RSA, in a form of its own."""
        ends = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1) if expired else None
        made = self._ca.issue_cert(*(names or HERE), not_after=ends, key_type=_KINDS[for_java])
        self._issued += 1
        key = made.private_key_pem.bytes()
        return (
            self.write(f"{self._issued}.pem", b"".join(pem.bytes() for pem in made.cert_chain_pems)),
            self.write(f"{self._issued}.key", _pkcs8(key) if for_java else key),
        )

    def serving(self, names: tuple[str, ...] = HERE, expired: bool = False, alone: bool = False) -> ssl.SSLContext:
        """For an instance. `alone`: its certificate is signed by itself, and to be found as `alone.pem`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(self._self_signed() if alone else self.issue(*names, expired=expired)))
        return context

    def _self_signed(self) -> tuple[str, str]:
        """As `openssl req -x509` and `keytool -genkeypair` make them."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "instance")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day).add_extension(here, False)
        return (
            self.write("alone.pem", made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)),
            self.write("alone.key", _in_pkcs8(key)),
        )


def _pkcs8(pem: bytes) -> bytes:
    return _in_pkcs8(serialization.load_pem_private_key(pem, None))


def _in_pkcs8(key: Any) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    data: bytes = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return data
