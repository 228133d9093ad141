"""File descriptors: how many this process may have open, and how many of them clients may use.

Every connection takes one. When they run out, the proxy can reach neither instances nor its own log, and nobody can
reach the admin port to see why. So clients get what is left after everything else has its share. Knows limits. Knows
no sockets.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

_MOST_FILES = 65536
"""More connections than one process can serve; the hard limit of some systems is a thousand million."""
_OWN_FILES = 20
"""Standard streams, the event loop's own, listening sockets, logs, certificates while they are read."""
_ADMIN_CONNECTIONS = 64
"""Probes, scrapers and operators, even if all connect at once."""
_FOR_AN_INSTANCE = 2
"""Besides its places: one for its management API, one for a request that is passed through."""
_BURST = 1024


@dataclass(frozen=True)
class ClientLimit:
    """`connections`: how many clients may be connected. `burst`: how many more may connect for a moment, only to be
    refused; it is also the listener's backlog.
    """

    connections: int
    burst: int
    files: int


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one: systemd's 1024 is for programs that use `select`."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(ValueError, OSError):  # macOS reports a hard limit that it does not grant
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files() -> int:
    """How many files this process may have open."""
    if sys.platform == "win32":
        return _MOST_FILES
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def admin_limit(files: int) -> int:
    """How many connections the admin port keeps, and the length of its backlog."""
    return max(8, min(files // 16, _ADMIN_CONNECTIONS))


def client_limit(files: int, places: int, instances: int, forwards: bool = False) -> ClientLimit:
    """What is left for clients, given `instances` with `places` in all. At least an eighth of the files: a proxy that
    takes no clients is of no use. `forwards`: to other proxies, so each client may need a second connection.
    """
    burst = max(8, min(files // 16, _BURST))
    left = files - _OWN_FILES - admin_limit(files) - burst - places - _FOR_AN_INSTANCE * instances
    if forwards:
        left //= 2
    return ClientLimit(max(left, files // 8), burst, files)
