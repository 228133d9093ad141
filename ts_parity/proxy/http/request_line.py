"""Checks the method, target and Host of a request.

What nginx refuses is refused here too, so that no request reaches an instance that another proxy or filter would have
read differently. Pure. Knows nothing of how a request is framed, or of TorchServe's routes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

# As in RFC 3986, 3.2.2, less the comma: a list of hosts is not one host. (nginx takes far more, "u@h" and "h?x"
# included; RFC 9112, 3.2, wants 400 for them.)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ABSOLUTE: Final = re.compile(r"(?i:https?)://([^/?#]*)(.*)", re.DOTALL)
_BROKEN_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")
REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE"})
"""A tunnel, and an echo of headers that proxies have added."""


def host_is_sound(host: str) -> bool:
    """Whether this is one host, with or without a port."""
    return _HOST.fullmatch(host) is not None and ".." not in host and host.partition(":")[0] != "."


def target_is_sound(target: str) -> bool:
    """Whether a target in origin form has a path that every parser unescapes and resolves alike."""
    path = re.split("[?#]", target, maxsplit=1)[0]
    if not path.startswith("/"):
        return False
    if "%" in path:
        if _BROKEN_ESCAPE.search(path) or "%00" in path:
            return False
        path = unquote(path, "latin-1")
    return ".." not in path or not _leaves_root(path)


def why_malformed(target: str, hosts: Sequence[str], http10: bool) -> str:
    """What is wrong with the target and its `Host` headers; empty if nothing. `http10`: HTTP/1.0 needs no Host."""
    if len(hosts) > 1:
        return "more than one Host"
    if not hosts and not http10:
        return "no Host"
    if hosts and not host_is_sound(hosts[0]):
        return f"the Host {hosts[0][:100]!r}"
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        authority, target = absolute[1], "/" + absolute[2].removeprefix("/")
        # The target counts (RFC 9112, 3.2.2), but TorchServe and its handlers look at Host.
        if authority.lower() != (hosts[0].lower() if hosts else authority.lower()) or not host_is_sound(authority):
            return "a target on another host than Host says"
    return "" if target_is_sound(target) else f"the target {target[:100]!r}"


def _leaves_root(path: str) -> bool:
    """Whether its `..` lead above the root at any point."""
    depth = 0
    for segment in path.split("/"):
        if segment == "..":
            depth -= 1
        elif segment not in ("", "."):
            depth += 1
        if depth < 0:
            return True
    return False
