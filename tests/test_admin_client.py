"""Whoever answers in a proxy's place is not believed, and not followed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ts_parity.admin_client import ask
from ts_parity.errors import Unreachable
from ts_parity.torchserve import proxies


class Elsewhere(BaseHTTPRequestHandler):
    """Sends everybody to itself once more, and notes with what they came."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(302 if self.path != "/there" else 200)
        self.send_header("Location", "/there")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *told: object) -> None:
        """Not on standard error."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    Elsewhere.seen = []
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nobody_is_followed_elsewhere_with_a_token(elsewhere: str) -> None:
    with pytest.raises(Unreachable, match=r"/drain: 302 Found; is this the admin port of a proxy\?"):
        ask(f"{elsewhere}/drain", {"Authorization": "Bearer secret"})
    with pytest.raises(Unreachable, match="302 Found"):
        proxies.ask(elsewhere)
    assert [path for path, _ in Elsewhere.seen] == ["/drain", "/status"]


def test_what_is_no_status_is_told(elsewhere: str) -> None:
    with pytest.raises(Unreachable, match=r"no status from .*; is the proxy running, and is this its admin port\?"):
        proxies.ask("http://127.0.0.1:1")
    assert ask(f"{elsewhere}/there") == {}
