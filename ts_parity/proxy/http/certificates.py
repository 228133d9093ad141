"""TLS contexts from PEM files, for clients and for instances, reloaded when the files change.

Knows certificates, keys and whom to trust. Knows no sockets.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from ts_parity.config import InstanceSettings, Settings
from ts_parity.errors import ConfigError

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Tls:
    """`context` is for new connections; open ones keep theirs."""

    def __init__(self, whose: str, files: Sequence[str], make: Callable[[], ssl.SSLContext]) -> None:
        """`whose` names the owner in messages. Raise ConfigError if no context can be made from the files."""
        self._whose = whose
        self.name: str | None = None
        """The host that the other end's certificate has to name, if it is not the one that is connected to."""
        self._files = [Path(file) for file in files if file]
        self._make = make
        self._stamp = self._stamps()  # before reading: a change meanwhile makes it read again
        self.context = make()

    def reload(self) -> None:
        """Read the files again if they have changed. Unusable ones, or half of a new pair, only log a warning."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.context = self._make()
        except ConfigError as error:
            log.warning("%s: %s; the last one stays in use", self._whose, error)
        else:
            log.info("%s: %s read again", self._whose, ", ".join(map(str, self._files)))

    def _stamps(self) -> _Stamp:
        return tuple(_stamp(file) for file in self._files)


def client_side(settings: Settings) -> Tls | None:
    """The inference port's certificate; None: it speaks plain http. Raise ConfigError."""
    if not settings.tls_certificate:
        return None
    files = (settings.tls_certificate, settings.tls_key)

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # With renegotiation a client could make the proxy do the expensive part of a handshake again and again.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        _load_pair(context, *files)
        return context

    return Tls("inference port", files, make)


def listening(tls: Tls) -> ssl.SSLContext:
    """A context that a listener can keep for life: every handshake takes the latest certificate from `tls`."""
    context = tls.context

    def take_latest(handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        # Loading new files into the context in use could leave it with half of a pair.
        handshake.context = tls.context

    context.sni_callback = take_latest  # called whether or not the client names a host
    return context


def instance_side(settings: Settings, kept: Mapping[str, Tls] = MappingProxyType({})) -> dict[str, Tls]:
    """The TLS settings of each https address; `kept` holds those that are there already. Raise ConfigError."""
    found: dict[str, Tls] = {}
    for instance in settings.instances:
        secure = [url for url in (instance.inference, instance.management) if urlsplit(url).scheme == "https"]
        found |= {url: kept[url] for url in secure if url in kept}
        if new := [url for url in secure if url not in kept]:
            found |= dict.fromkeys(new, _trusting(instance))
    return found


def tls_settings(instance: InstanceSettings) -> tuple[Any, ...]:
    """Connections that were made with others do not do."""
    return instance.tls_ca, instance.tls_verify, instance.tls_certificate, instance.tls_key


def peer_side(settings: Settings, host: str) -> Tls:
    """For other proxies by this name: as the system trusts, and as our own certificate, which they often share, is
    trusted. Raise ConfigError.
    """
    own = settings.tls_certificate

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if own:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            try:
                context.load_verify_locations(own)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"tls_certificate: cannot read {own!r}: {error.strerror or error}") from None
        return context

    tls = Tls(f"peer {host}", (own,), make)
    tls.name = host
    return tls


def why_failed(error: ssl.SSLError) -> str:
    """Why a handshake with an instance failed, and the setting that may help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; set tls_ca to what it should be trusted by" if error.verify_code in _UNKNOWN_ISSUER else ""
        return f"certificate verify failed: {error.verify_message.rstrip('.')}{hint}"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "it does not speak TLS; is its address http://?"
    return f"TLS: {error.reason or error}"


# X509_V_ERR_ of OpenSSL's x509_vfy.h: self-signed, self-signed in the chain, no issuer known here, no issuer at all.
_UNKNOWN_ISSUER = (18, 19, 20, 21)


def _trusting(instance: InstanceSettings) -> Tls:
    def make() -> ssl.SSLContext:
        context = ssl.create_default_context() if not instance.tls_ca else _trusting_only(instance.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not instance.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if instance.tls_certificate:
            _load_pair(context, instance.tls_certificate, instance.tls_key)
        return context

    try:
        return Tls(instance.name, (instance.tls_ca, instance.tls_certificate, instance.tls_key), make)
    except ConfigError as error:
        raise ConfigError(f"instance {instance.name}: {error}") from None


def _trusting_only(path: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Any certificate that is named is trusted, even if it is no CA's.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # Given a folder, OpenSSL itself would read only files whose names are hashes.
        files = sorted(file for file in Path(path).iterdir() if file.is_file()) if Path(path).is_dir() else [Path(path)]
        for file in files:
            _trust(context, file, alone=len(files) == 1)
    except OSError as error:
        raise ConfigError(f"tls_ca: cannot read {path!r}: {error.strerror or error}") from None
    if not context.cert_store_stats()["x509"]:
        raise ConfigError(f"tls_ca: no PEM certificate in {path!r}")
    return context


def _trust(context: ssl.SSLContext, file: Path, alone: bool) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        if alone:
            raise ConfigError(f"tls_ca: no PEM certificate in {str(file)!r}") from None


_TOO_WEAK = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")


class _EncryptedKey(Exception):
    pass


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    def no_password() -> str:
        raise _EncryptedKey  # otherwise OpenSSL would ask on the terminal

    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{name}: cannot read {path!r}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, no_password)
    except _EncryptedKey:
        raise ConfigError(f"tls_key: {key!r} is encrypted, and there is nobody to ask for its password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key: {key!r} is not the key of the certificate in {certificate!r}") from None
        if error.reason in _TOO_WEAK:
            raise ConfigError(
                f"tls_certificate, tls_key: OpenSSL takes none so weak as {certificate!r} and {key!r}: "
                f"{error.reason.lower().replace('_', ' ')}"
            ) from None
        raise ConfigError(
            f"tls_certificate, tls_key: no PEM certificate in {certificate!r}, or no PEM key in {key!r}"
        ) from None
    except OSError as error:  # removed since it was opened above
        raise ConfigError(f"tls_certificate, tls_key: {error}") from None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes with the file. Links are followed, since Kubernetes renews a secret by changing a link."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
