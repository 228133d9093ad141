"""The door to the clients: reads requests, writes answers byte for byte as TorchServe would.

The only place that knows aiohttp's server. Knows nothing of models, engine or instances: whatever is asked is handed to
one function, `answer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

from ts_parity.errors import BadClientRequest, StartError, TsParityError
from ts_parity.proxy.messages import BrokenStream, Reply, Request, error_reply, too_large, torchserve_error
from ts_parity.proxy.service import Answered, Streamed

log = logging.getLogger(__name__)

# aiohttp adds these of its own accord; TorchServe's answers have them only if the handler set them.
_AUTO_HEADERS = ("Content-Type", "Server", "Date")
_MAX_HEADER_BYTES = 65536
# How long `close` waits for handlers that it has cut.
_CUT_S = 0.5


class _Exact(web.Response):
    """An answer whose headers are exactly those given."""

    wanted: CIMultiDict[str]


class _ExactStream(web.StreamResponse):
    wanted: CIMultiDict[str]


class Server:
    """One listening port. Create, `start`, and in the end `stop_accepting`, wait for `idle`, `close`."""

    def __init__(self, answer: Callable[[Request], Awaitable[Answered]], max_body_bytes: int) -> None:
        self._answer = answer
        self._max_body_bytes = max_body_bytes
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, host: str, port: int) -> int:
        """-> the port, which matters if 0 was asked for. Raise StartError."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle, expect_handler=self._expect)
        app.on_response_prepare.append(_without_auto_headers)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            shutdown_timeout=_CUT_S,
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port, backlog=1024)
        return await listen(self._site, self._runner, host, port)

    async def stop_accepting(self) -> None:
        """No new connections; connections that are open end with their next answer."""
        self._draining = True
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cut what is left."""
        self._draining = True
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self._idle.clear()
        try:
            request = await self._read(http)
            answered = too_large() if request is None else await self._answer(request)
            if isinstance(answered, Streamed):
                return await self._write_stream(http, answered)
            return self._respond(answered)
        except TsParityError as error:
            return self._respond(error_reply(error))
        except ConnectionError:
            raise  # the client left while it was being written to; aiohttp closes the connection
        except Exception:
            log.exception("a request could not be answered: %s %s", http.method, http.path)
            return self._respond(torchserve_error(500, "InternalServerException", "internal error of the proxy"))
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def _read(self, http: web.Request) -> Request | None:
        """None: the body is too large. Raise BadClientRequest."""
        if (http.content_length or 0) > self._max_body_bytes:
            return None
        pieces, size = [], 0
        try:
            async for piece in http.content.iter_any():
                size += len(piece)
                if size > self._max_body_bytes:
                    return None
                pieces.append(piece)
        except (web.RequestPayloadError, ValueError) as error:
            raise BadClientRequest(f"the request's body cannot be read: {error}") from None
        return Request(http.method, http.raw_path, _headers(http), b"".join(pieces))

    async def _expect(self, http: web.Request) -> None:
        """A client that asks first (curl does, for large bodies) is told to go on only if its body will be taken."""
        if http.headers.get("Expect", "").lower() != "100-continue":
            raise web.HTTPExpectationFailed
        if (http.content_length or 0) <= self._max_body_bytes:
            await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # The bytes of an interim answer are none of the final one's.
            http.writer.output_size = 0

    def _respond(self, reply: Reply) -> web.StreamResponse:
        response = _Exact(
            status=reply.status, reason=_phrase(reply.phrase), headers=CIMultiDict(reply.headers), body=reply.body
        )
        response.wanted = CIMultiDict(reply.headers)
        if self._draining:
            response.force_close()
        return response

    async def _write_stream(self, http: web.Request, streamed: Streamed) -> web.StreamResponse:
        chunks = streamed.chunks
        headers = CIMultiDict(pair for pair in streamed.headers if pair[0].lower() != "content-length")
        response = _ExactStream(status=chunks.status, reason=_phrase(chunks.phrase), headers=headers)
        response.wanted = headers.copy()
        try:
            if http.version >= (1, 1):
                response.enable_chunked_encoding()
            await response.prepare(http)
            async for chunk in chunks:
                await response.write(chunk)
            await response.write_eof()
            return response
        except BrokenStream as error:
            # The status is long gone; an end without the last chunk is the only way left to say it.
            log.info("%s", error)
            if http.transport is not None:
                http.transport.abort()
            return response
        finally:
            chunks.leave()


async def listen(site: web.TCPSite, runner: web.AppRunner, host: str, port: int) -> int:
    """Start listening; -> the port. Raise StartError, which says what to do."""
    try:
        await site.start()
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from None
    return int(runner.addresses[0][1])


async def _without_auto_headers(_: web.Request, response: web.StreamResponse) -> None:
    if isinstance(response, _Exact | _ExactStream):
        for name in _AUTO_HEADERS:
            if name not in response.wanted:
                response.headers.popall(name, None)


def _headers(http: web.Request) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((name.decode(), value.decode()) for name, value in http.raw_headers)
    except UnicodeDecodeError:
        # aiohttp could not send such a header on; losing its bytes silently would be worse than saying so.
        raise BadClientRequest("a request header holds bytes that are not UTF-8") from None


def _phrase(phrase: str) -> str:
    return phrase.replace("\r", " ").replace("\n", " ")
