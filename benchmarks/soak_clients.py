"""Clients for the soak: polite ones, hurried ones, and those that leave in the middle of everything.

Knows HTTP and what each answer must be; knows nothing of what is behind the address. Every request carries a number of
its own, of which its answer is made: another's answer would be seen.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections import Counter, deque
from typing import NamedTuple, cast

from soak_instances import BLANKS, cut, outputs

KEEP_ALIVE, PIPELINED, SINGLE, LEAVING = "keep-alive", "pipelined", "single", "leaving"
# How often a connection is of each kind, and how many requests it makes at most.
SESSIONS = {KEEP_ALIVE: (0.25, 100), PIPELINED: (0.15, 60), SINGLE: (0.4, 1), LEAVING: (0.2, 4)}
LEAVES = ("mid-head", "mid-headers", "mid-body", "mid-chunks", "waiting", "pipelining", "mid-answer")
# What was dear once: a head of tiny headers, a body of tiny chunks, and more requests than are read ahead.
TINY_HEADERS, TINY_CHUNKS, TOO_MANY = 150, 8000, 60
# Path, whether it goes through the engine, whether it is streamed, and how often.
ROUTES = {
    "coded": (b"/predictions/linear", True, False, 0.6),
    "streamed": (b"/predictions/stream", True, True, 0.05),
    "passed": (b"/v1/models/linear:predict", False, False, 0.2),
    "passed get": (b"/v1/models/linear?number=%d", False, False, 0.1),
    "passed streamed": (b"/v1/models/stream:predict", False, True, 0.05),
}
NAMES, WEIGHTS = list(ROUTES), [route[3] for route in ROUTES.values()]
CHUNKED_REQUESTS, SPLIT_REQUESTS, OLD_REQUESTS = 0.1, 0.05, 0.2
PATIENCE_S = 20.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
SOURCE = re.compile(rb"\r\nx-ts-parity: *(\w+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Asked(NamedTuple):
    """A request that is to be answered."""

    number: int
    route: str
    last: bool


class Load:
    """So many requests over so many connections at a time; afterwards `counts` and `faults` say what came of them."""

    def __init__(self, host: str, port: int, seed: int, requests: int) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.asked = 0
        self.requests = requests
        self.leaves = itertools.cycle(LEAVES)
        self._address = host, port
        self._visits: set[Visit] = set()

    async def run(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        watch = loop.create_task(self._watch())
        await asyncio.gather(*(self._visitor(loop) for _ in range(connections)))
        watch.cancel()

    def number(self) -> int:
        self.asked += 1
        return self.asked

    @property
    def enough(self) -> bool:
        return self.asked >= self.requests

    def fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 20:
            self.faults.append(text)

    async def _visitor(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self.enough:
            kind = self.chance.choices(list(SESSIONS), [share for share, _ in SESSIONS.values()])[0]
            try:
                _, visit = await loop.create_connection(lambda kind=kind: Visit(self, kind, loop), *self._address)
            except OSError as error:
                self.fault(f"no connection: {error}")
                return
            self._visits.add(visit)
            self.counts[f"connections, {kind}"] += 1
            await visit.over
            self._visits.discard(visit)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for visit in [*self._visits]:
                visit.check(loop.time())


class Visit(asyncio.Protocol):
    """One connection, from its first request to its end."""

    def __init__(self, load: Load, kind: str, loop: asyncio.AbstractEventLoop) -> None:
        self._load = load
        self._kind = kind
        self._loop = loop
        self._left = load.chance.randint(1, SESSIONS[kind][1])
        self._waiting: deque[Asked] = deque()
        self._buffer = b""
        self._leave = ""
        """How this client is leaving: from here on nothing is expected."""
        self._closing = False
        self._moved_at = loop.time()
        self.over: asyncio.Future[None] = loop.create_future()

    def check(self, now: float) -> None:
        if now - self._moved_at > PATIENCE_S:
            self._load.fault(f"nothing for {PATIENCE_S} s: {[*self._waiting][:3]}, {self._kind} {self._leave}")
            self._waiting.clear()
            self._leave = "gave up"
            self._transport.abort()

    # ---- asking ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        load, chance = self._load, self._load.chance
        if self._left <= 0 or (load.enough and self._kind is not LEAVING):
            self._closing = True
            self._transport.close()
            return
        if self._kind is LEAVING and self._left == 1:
            self._left = 0
            self._ask_and_leave(next(load.leaves))
            return
        burst = min(chance.randint(2, 8), self._left) if self._kind is PIPELINED else 1
        self._left -= burst
        data = []
        for n in range(burst):
            # A stream that breaks off takes what is behind it along, so there is nothing behind it.
            last = n == burst - 1
            route = chance.choices(NAMES, WEIGHTS)[0]
            if not last and ROUTES[route][2]:
                route = "coded"
            data.append(self._request(route, self._kind is SINGLE and chance.random() < 0.5))
        self._send(b"".join(data))

    def _request(self, route: str, last: bool) -> bytes:
        chance, number = self._load.chance, self._load.number()
        self._waiting.append(Asked(number, route, last))
        self._load.counts[f"stayed, {route}"] += 1
        return b"".join(request(chance, number, route, last))

    def _send(self, data: bytes) -> None:
        if self._load.chance.random() < SPLIT_REQUESTS:
            at = self._load.chance.randrange(len(data))
            self._transport.write(data[:at])
            self._loop.call_later(0.001, self._transport.write, data[at:])
        else:
            self._transport.write(data)

    def _ask_and_leave(self, leave: str) -> None:
        load, chance = self._load, self._load.chance
        self._leave = leave
        load.counts[f"left {leave}"] += 1
        route = chance.choice(["streamed", "passed streamed"] if leave == "mid-answer" else ["coded", "passed"])
        head, body = request(chance, load.number(), route, False, 1.0 if leave == "mid-body" else 0.0)
        if leave == "mid-headers":
            self._transport.write(head[:-2] + b"a: b\r\n" * chance.randrange(TINY_HEADERS))
        elif leave == "mid-chunks":
            chunked, _ = request(chance, load.number(), route, False, 1.0)
            self._transport.write(chunked + b"2\r\n[1\r\n" * chance.randrange(TINY_CHUNKS))
        elif leave == "pipelining":
            count = chance.randrange(17, TOO_MANY)
            load.counts["left whole, engine" if ROUTES[route][1] else "left whole, passed"] += count
            asked = [request(chance, load.number(), route, False) for _ in range(count)]
            self._transport.write(b"".join(head + body for head, body in asked))
        elif leave == "mid-head":
            self._transport.write(head[: chance.randrange(1, len(head) - 1)])
        elif leave == "mid-body":
            self._transport.write(head + body[: chance.randrange(len(body) - 1)])
        else:
            load.counts["left whole, engine" if ROUTES[route][1] else "left whole, passed"] += 1
            self._transport.write(head + body)
        if leave != "mid-answer":
            self._loop.call_later(chance.choice([0.0, chance.uniform(0, 0.005)]), self._go)

    def _go(self) -> None:
        if self._load.chance.random() < 0.5:
            cut(self._transport)
        else:
            self._transport.close()

    # ---- being answered --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._moved_at = self._loop.time()
        if self._leave:
            if self._leave == "mid-answer":
                self._go()
            return
        self._buffer = self._buffer + data if self._buffer else data
        while self._waiting and self._read():
            pass
        if self._waiting or self._leave:
            return
        if self._buffer:
            self._load.fault(f"bytes that nobody asked for: {self._buffer[:100]!r}")
            self._transport.abort()
        elif not self._closing:
            self._ask()

    def _read(self) -> bool:
        """-> whether an answer was there, and whole."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        head = buffer[: end - 2]
        length = LENGTH.search(head)
        if length is not None:
            until = end + int(length[1])
            if len(buffer) < until:
                return False
            body = buffer[end:until]
        else:
            found = _dechunked(buffer, end) if CHUNKED.search(head) else None
            if found is None:
                return False
            body, until = found
        self._buffer = buffer[until:]
        self._answered(self._waiting.popleft(), head, body)
        return True

    def _answered(self, asked: Asked, head: bytes, body: bytes) -> None:
        load = self._load
        status = int(head[9:12])
        engine, streamed = ROUTES[asked.route][1:3]
        load.counts[f"answered {status}, {'engine' if engine else 'passed'}"] += 1
        if status == 200:
            number = b"%d" % asked.number
            good = body == b"[%d, %d]" % outputs(asked.number)
            if streamed:
                good = body.startswith(number + b";") and body.endswith(b";" + number)
            if not good:
                load.fault(f"{asked} was answered with {body[:60]!r}...")
            if engine:
                source = SOURCE.search(head)
                load.counts[f"source {source[1].decode() if source else 'missing'}"] += 1
        elif "code" not in json.loads(body) or status not in (500, 502, 503, 504):
            load.fault(f"{asked} was answered with {status} {body[:200]!r}")
        if CLOSE.search(head):
            self._closing = True
            if not asked.last:
                load.fault(f"{asked}: the proxy closes the connection without being asked")

    def connection_lost(self, error: Exception | None) -> None:
        if not self._leave:
            if self._waiting and self._buffer and ROUTES[self._waiting[0].route][2] and len(self._waiting) == 1:
                self._load.counts["broken off"] += 1
            elif self._waiting:
                said = f"{[*self._waiting][:3]} and then {self._buffer[:100]!r}"
                self._load.fault(f"the connection ended ({error}) without an answer to {said}")
            elif not self._closing:
                self._load.fault(f"the connection ended ({error}) between two requests")
        self.over.set_result(None)


def request(
    chance: random.Random, number: int, route: str, last: bool, chunked: float = CHUNKED_REQUESTS
) -> tuple[bytes, bytes]:
    """-> head and body. Bodies have 12 bytes to 100 KB, most of them few."""
    path = ROUTES[route][0]
    connection = b"Connection: close\r\n" if last else b""
    if b"%d" in path:
        return b"GET %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (path % number, connection), b""
    body = body_of(number, int(10 ** (1 + 4 * chance.random() ** 3)))
    if chance.random() < chunked:
        head = b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (path, connection)
        step = max(7, len(body) // 4)
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        return head, b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    old = last and not ROUTES[route][2] and chance.random() < OLD_REQUESTS
    version = b"1.0" if old else b"1.1"
    head = b"POST %b HTTP/%b\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path, version, len(body), connection), body


def body_of(number: int, size: int) -> bytes:
    start = b"[%d, 2" % number
    return start + BLANKS[: max(0, size - len(start) - 1)] + b"]"


def _dechunked(buffer: bytes, at: int) -> tuple[bytes, int] | None:
    """-> the body and where it ends, or None if it is not there yet."""
    pieces = []
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(buffer[at:line], 16)
        at = line + 2 + size + 2
        if len(buffer) < at:
            return None
        if not size:
            return b"".join(pieces), at
        pieces.append(buffer[line + 2 : at - 2])


async def all_at_once(host: str, port: int, path: bytes, connections: int, size: int, rounds: int) -> int:
    """So many large requests at the same time, again and again; -> how many were answered as they should be."""
    load = Load(host, port, 0, 0)

    async def one() -> int:
        reader, writer = await asyncio.open_connection(host, port, limit=2 * size)
        good = 0
        for _ in range(rounds):
            number = load.number()
            body = body_of(number, size)
            writer.write(b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path, len(body)))
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
            good += answer.startswith(b"[%d, %d" % outputs(number))
            await barrier()
        writer.close()
        return good

    arrived: list[int] = []
    everybody = asyncio.Condition()

    async def barrier() -> None:
        """The next round begins when all have their answer."""
        async with everybody:
            arrived.append(1)
            turn = -(-len(arrived) // connections) * connections
            everybody.notify_all()
            await everybody.wait_for(lambda: len(arrived) >= turn)

    return sum(await asyncio.wait_for(asyncio.gather(*(one() for _ in range(connections))), 120))
