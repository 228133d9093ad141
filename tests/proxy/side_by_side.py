"""The same bytes sent to a TorchServe and to the proxy before it, and what may differ between the two answers.

A case is one request as data. What is compared is everything on the wire but what every proxy must change.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.proxy.conftest import PATIENCE_S, PROMPT, Raw, read_answer
from ts_parity.config import InstanceSettings, settings_of
from ts_parity.proxy.app import Proxy
from ts_parity.torchserve.launcher import TorchServeInstance

WITNESS = '''\
"""Answers with all it was given, or does what the header x-do says. Knows nothing of ts_parity."""

import json
import os

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

ERRORS = {"value": ValueError("on purpose"), "memory": MemoryError("on purpose"), "cuda": RuntimeError("CUDA: no")}


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        headers = context.get_all_request_header(index)
        do = json.loads(headers.get("x-do") or "{}")
        if "raise" in do:
            raise ERRORS[do["raise"]]
        if "refuse" in do:
            raise PredictionException("refused on purpose", do["refuse"])
        if "exit" in do:
            os._exit(do["exit"])
        if "return" in do:
            return do["return"]
        if "status" in do:
            context.set_response_status(do["status"], do["phrase"], index)
        for name, value in do.get("headers", ()):
            context.set_response_header(index, name, value)
        if "type" in do:
            context.set_response_content_type(index, do["type"])
        for part in do.get("stream", ()):
            send_intermediate_predict_response([part], context.request_ids, "Intermediate", 200, context)
        if "unserialisable" in do:
            answers.append({1})
        elif "bytes" in do:
            answers.append(bytes.fromhex(do["bytes"]))
        elif "size" in do:
            answers.append(b"x" * do["size"])
        elif "say" in do:
            answers.append(do["say"])
        else:
            answers.append({"inputs": {name: shown(value) for name, value in row.items()}, "headers": dict(headers)})
    return answers


def shown(value):
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, bytes(value).decode("latin-1")]
    return [type(value).__name__, value]
'''

Headers = tuple[tuple[str, str], ...]

HOST = ("Host", "fleet.example")
"""The same for both, whatever their addresses are: a handler can see it."""

# A new id for every request. The others speak of one connection only (RFC 9110, 7.6.1), and TorchServe's `connection`
# does not even say what it does: it keeps connections open that the client asked to close.
_NEW = frozenset({"x-request-id"})
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "trailer", "upgrade"})
_MARK = ("x-ts-parity", "deployed")


def do(**what: Any) -> tuple[str, str]:
    """The header that tells the witness what to do."""
    return "x-do", json.dumps(what)


def request(
    method: str = "POST",
    path: str = "/predictions/witness",
    body: bytes = b"",
    *headers: tuple[str, str],
    version: str = "HTTP/1.1",
    host: tuple[str, str] | None = HOST,
) -> bytes:
    """Latin-1 text becomes the bytes of the head. The length is added where a body is usual, unless `headers` say."""
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in ((host,) if host else ()))]
    lines += [f"{name}: {value}" for name, value in headers]
    told = {name.lower() for name, _ in headers} & {"content-length", "transfer-encoding"}
    if not told and (body or method in ("POST", "PUT", "PATCH")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Case:
    """One request. `marked`: it is a prediction of a model that the proxy knows, so its answer bears the mark.

    `status`: what TorchServe answers, so that a case which no longer asks what it means to ask is noticed.
    `hidden`: request headers that speak of one connection: a handler sees them directly and not behind a proxy.
    """

    status: int
    method: str = "POST"
    path: str = "/predictions/witness"
    body: bytes = b""
    headers: Headers = ()
    marked: bool = True
    hidden: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        return request(self.method, self.path, self.body, *self.headers)


def elsewhere(status: int, path: str, body: bytes = b"", headers: Headers = ()) -> Case:
    """A POST that is no prediction of a known model, so that its answer bears no mark."""
    return Case(status, "POST", path, body, headers, marked=False)


@asynccontextmanager
async def proxy_before(
    instance: TorchServeInstance, token: str = "", tls_ca: str = "", **settings: Any
) -> AsyncIterator[Proxy]:
    """A proxy whose only instance this is, unless `instances` says more. `token`: the inference key it holds."""
    keys = {"token": token, "management_token": instance.token() or "", "tls_ca": tls_ca}
    one = InstanceSettings(instance.inference_url, instance.management_url, "here", **keys)
    # A busy machine's worker takes its time to come back, and a look meanwhile would find that nobody is there.
    patient = {
        "discovery_interval_s": 600.0,
        "describe_timeout_s": 60.0,
        "task_timeout_s": 300.0,
        "max_wait_s": 300.0,
        "deadline_s": 300.0,
    }
    chosen = {**PROMPT, **patient, **settings}
    proxy = Proxy(settings_of({"instances": (one,), **chosen}))
    try:
        await proxy.start()
        yield proxy
    finally:
        await proxy.close()


@asynccontextmanager
async def connected(
    url: str, trusting: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """`trusting`: for an https address."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(parts.path)
    else:
        tls = trusting if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(
    url: str, *pieces: bytes, answers: int = 1, to_head: bool = False, trusting: ssl.SSLContext | None = None
) -> list[Raw]:
    """On one connection: every piece in a write of its own, then so many answers."""
    async with connected(url, trusting) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        return [await asyncio.wait_for(read_answer(reader, to_head), PATIENCE_S) for _ in range(answers)]


def comparable(answer: Raw, hidden: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """Status, phrase, headers with their spelling and order, body, chunks; less what any proxy must change."""
    vague = _NEW | ({"content-length"} if hidden else set())
    headers = [
        (name, "..." if name.lower() in vague else value)
        for name, value in answer.headers
        if name.lower() not in _HOP_BY_HOP
    ]
    body: Any = answer.body
    if hidden and answer.body:
        body = answer.json()
        body["headers"] = {name: value for name, value in body.get("headers", {}).items() if name.lower() not in hidden}
    return answer.status_line, headers, body, answer.chunks


def unmarked(answer: Raw) -> Raw:
    """The answer to a prediction as it was before the proxy put its mark behind all headers."""
    assert _MARK in answer.headers, "the answer to a prediction of a known model bears the mark"
    headers = [pair for pair in answer.headers if pair != _MARK]
    return Raw(answer.status_line, headers, answer.body, answer.chunks, answer.complete)


@dataclass(frozen=True)
class Pair:
    """The addresses of a TorchServe and of the proxy before it."""

    direct: str
    proxied: str
    proxy: Proxy

    async def same(self, case: Case) -> Raw:
        """Ask both; -> TorchServe's own answer, which is the proxy's too."""
        (direct,) = await ask(self.direct, case.data, to_head=case.method == "HEAD")
        (proxied,) = await ask(self.proxied, case.data, to_head=case.method == "HEAD")
        assert direct.status == case.status
        answer = unmarked(proxied) if case.marked else proxied
        assert comparable(answer, case.hidden) == comparable(direct, case.hidden)
        return direct

    async def same_on_the_wire(self, *pieces: bytes, answers: int = 1, hidden: tuple[str, ...] = ()) -> list[Raw]:
        """As `same`, for a client with ways of its own; whether an answer is marked is not asked."""
        direct = await ask(self.direct, *pieces, answers=answers)
        proxied = await ask(self.proxied, *pieces, answers=answers)
        plain = [unmarked(answer) if _MARK in answer.headers else answer for answer in proxied]
        assert [comparable(answer, hidden) for answer in plain] == [comparable(answer, hidden) for answer in direct]
        return direct
