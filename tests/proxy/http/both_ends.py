"""What stands at the other end of a socket: somebody to answer clients for a server, an instance for an upstream."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.proxy.conftest import PATIENCE_S
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.server import PendingResponse
from ts_parity.proxy.http.upstream import Address, Upstream

LIMIT = 1000


async def echo(request: Request) -> Response:
    """What was asked, as an answer."""
    body = f"{request.method} {request.target} {len(request.headers)} ".encode() + request.body
    return Response(200, "OK", (("x-echo", "1"), ("content-length", str(len(body)))), body)


def by(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request, PendingResponse], None]:
    """A coroutine as what a server asks; it is cancelled if its client leaves."""

    def ask(request: Request, pending: PendingResponse) -> None:
        task = asyncio.ensure_future(answer(request))
        pending.on_disconnect = task.cancel
        task.add_done_callback(lambda task: task.cancelled() or pending.respond(task.result()))

    return ask


async def ended(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    return True


class Instance:
    """Answers each request with the next of its lines; `None` closes the connection instead."""

    def __init__(self, *says: bytes | None) -> None:
        self.says = list(says)
        self.heard: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> "Instance":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address(f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")
        self.upstream = Upstream(connect_timeout_s=60.0, task_timeout_s=60.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.upstream.close()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while self.says:
                self.heard.append(await reader.readuntil(b"\r\n\r\n"))
                said = self.says.pop(0)
                if said is None:
                    break
                writer.write(said)
        writer.close()

    async def get(self, method: str = "GET", timeout_s: float = 60.0):
        request = Request(method, "/x", (("Host", "h"),), b"")
        return await self.upstream.exchange(self.address, request, timeout_s)


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
