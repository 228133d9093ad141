"""How commands talk to a running proxy's admin port: one request, one answer in JSON, or a stream.

Knows HTTP and how long to wait. Knows nothing of what the answers mean.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Container
from typing import Any

from ts_parity.errors import Unreachable

TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 120.0
"""New instances are asked what they host, and one that does not answer takes a while."""
MOST_BYTES = 64 << 20
"""A fleet of thousands is described in a tenth of it."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """No admin port redirects, and a server that does must not get the token."""

    def redirect_request(self, *redirect: Any) -> None:
        return None


# An http_proxy for the outside world cannot reach a machine's own ports.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def ask(
    url: str, action: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S, also: Container[int] = ()
) -> dict[str, Any]:
    """Read, or with `action`'s headers do something. `also`: statuses that are answers and no errors. Raise
    Unreachable.
    """
    try:
        said = json.loads(fetch(url, action, timeout_s, also))
        if not isinstance(said, dict):
            raise ValueError("its answer is no JSON object")
    except (ValueError, RecursionError) as error:
        raise unreachable(url, error) from None
    return said


def fetch(
    url: str, action: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S, also: Container[int] = ()
) -> bytes:
    """The answer as it came. Raise Unreachable."""
    request = urllib.request.Request(url, None if action is None else b"", action or {})
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return _whole(answer)
    except urllib.error.HTTPError as error:
        if error.code in also:
            return _whole(error)  # type: ignore[arg-type]  # it has what it wraps
        raise Unreachable(f"{url}: {_reason(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise unreachable(url, error) from None


def stream(url: str, action: dict[str, str], body: bytes) -> http.client.HTTPResponse:
    """The answer, to be read while it comes; each part must come in time. Raise Unreachable."""
    try:
        answer: http.client.HTTPResponse = _OPENER.open(urllib.request.Request(url, body, action), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise Unreachable(f"{url}: {_reason(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise unreachable(url, error) from None
    return answer


def unreachable(url: str, error: Exception) -> Unreachable:
    """What to say of a port that does not answer, or not as it should."""
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    told = (why.strerror if isinstance(why, OSError) else None) or str(why) or type(why).__name__
    return Unreachable(
        f"no {url.rpartition('/')[2]} from {url}: {' '.join(told.split())}; is the proxy running, and is this its "
        "admin port?"
    )


def _whole(answer: http.client.HTTPResponse) -> bytes:
    """Raise TimeoutError, or ValueError if it does not end."""
    ends_at = time.monotonic() + TIMEOUT_S
    body = bytearray()
    while piece := answer.read1(1 << 16):
        body += piece
        if len(body) > MOST_BYTES:
            raise ValueError(f"over {MOST_BYTES >> 20} MB came")
        if time.monotonic() > ends_at:
            raise TimeoutError("timed out")
    return bytes(body)


def _reason(refused: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(_whole(refused))["reason"])  # type: ignore[arg-type]  # it has what it wraps
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        told = " ".join(str(refused.reason).split())
        return f"{refused.code} {told}; is this the admin port of a proxy?"
