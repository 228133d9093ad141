"""Addresses in settings: of TorchServe's APIs, and of the metrics port. Knows their forms; asks nobody there."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ts_parity.arguments import is_one_word
from ts_parity.config.schema import UNIX
from ts_parity.errors import ConfigError

# What sockaddr_un holds, less the zero at its end.
_LONGEST_SOCKET = 107


def checked_url(text: str, where: str) -> str:
    if text.startswith(UNIX) and text.isprintable():
        return _unix(text, where)
    if "@" in text:  # not quoted: it may be a password
        raise ConfigError(f"{where} has a name or a password before its @; TorchServe takes keys instead (token=KEY)")
    if not is_one_word(text):
        raise ConfigError(f"{where} {text!r} is not an address: it holds blanks, or what cannot be printed")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{where} {text!r} is not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{where} must be like http://HOST:PORT or unix:/PATH, not {text!r}")
    if parts.path not in ("", "/"):
        raise ConfigError(f"{where} {text!r} has a path; TorchServe's APIs are at the root of their port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # in small letters, or one is two
    return f"{parts.scheme}://{host}" if port is None else f"{parts.scheme}://{host}:{port}"


def _unix(text: str, where: str) -> str:
    path = text.removeprefix(UNIX)
    path = path.removeprefix("//")  # as a URL has it
    if not path.startswith("/") or path.endswith("/"):
        raise ConfigError(
            f"{where} must be the absolute path of a socket, like unix:/run/torchserve.sock, not {text!r}"
        )
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise ConfigError(f"{where}: the path of a socket has room for {_LONGEST_SOCKET} bytes, and {path!r} is longer")
    return UNIX + path


def next_port(inference: str, where: str) -> str:
    if inference.startswith(UNIX):
        raise ConfigError(f"{where}: give management=ADDRESS too: nothing follows from {inference!r}")
    parts = urlsplit(inference)
    if parts.port is None:
        raise ConfigError(f"{where}: give management=URL too, or a port in {inference!r}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port + 1}"


def host_and_port(address: str) -> tuple[str, int]:
    """Raise ConfigError."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port is not None and parts.netloc == address and "@" not in address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"metrics_address must be like 0.0.0.0:9090 or [::]:9090, not {address!r}")
