"""Open files: how many this process may have, and what is left of them for clients.

Every connection takes one. Where they run out nothing works any more, least of all what would tell: neither instances
nor the admin port can be reached. So clients get what is left when everything else has its share.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

_ENOUGH = 65536
"""Connections that one process could serve; some systems' hard limit is a thousand million."""
_OWN = 20
"""Standard streams, the loop's own, listening sockets, logs, certificates while they are read."""
_ADMIN = 64
"""Probes, scrapers and operators at a time: more than there are, even if all come at once."""
_FOR_AN_INSTANCE = 2
"""Beside its places: for what is asked of its management address, and for a request that is passed through."""
_BURST = 1024


@dataclass(frozen=True)
class ClientLimit:
    """`connections`: clients at a time. `burst`: so many more may be there for a moment, to be told that they are too
    many; no more are accepted at once.
    """

    connections: int
    burst: int
    files: int


def raise_limit() -> None:
    """The soft limit of open files to the hard one: systemd's 1024 is for programs that use `select`."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(ValueError, OSError):  # macOS names a hard limit that it does not grant
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files() -> int:
    """How many this process may have."""
    if sys.platform == "win32":
        return _ENOUGH
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def admin_limit(files: int) -> int:
    """Connections that the admin port keeps at a time, and how many may wait there."""
    return max(8, min(files // 16, _ADMIN))


def client_limit(files: int, places: int, instances: int) -> ClientLimit:
    """What is left for clients before `instances` with so many places in all. An eighth at least, however many those
    are: a proxy without clients would be of no use.
    """
    burst = max(8, min(files // 16, _BURST))
    left = files - _OWN - admin_limit(files) - burst - places - _FOR_AN_INSTANCE * instances
    return ClientLimit(max(left, files // 8), burst, files)
