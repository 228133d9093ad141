"""Instances for the soak: fast, and as bad as instances can be, at seeded random.

    python benchmarks/soak_instances.py --seed S [--together N --reply-bytes B]

Two deployed instances (`linear`, which is coded, and `stream`, which answers in chunks and is not) and one with the
protection. Every answer is computed from the number in its request, so a client sees whether it is its own. Prints the
endpoints; then, for each line on its standard input, what it has counted; ends when that input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import numpy as np

from ts_parity.arguments import count
from ts_parity.errors import error_body
from ts_parity.testing import FakeModel, FakeTorchServe, protection
from ts_parity.wire import FRAME_TYPE, Frame, Part, pack_frame, unpack_frame

PLACES = 256
# What goes wrong with an answer, and how often.
FAULTS = {
    "reset before": 0.002,  # a reset instead of an answer
    "reset in it": 0.001,  # half an answer, then a reset
    "end in it": 0.001,  # half an answer, then an orderly end
    "worker died": 0.002,
    "slow": 0.003,
    "idle close": 0.01,  # a good answer; a moment later the idle connection is closed, perhaps as the proxy writes
}
BROKEN_STREAMS = 0.05
SLOW_S = (0.02, 0.1)
IDLE_CLOSE_S = (0.0, 0.005)
HEAD = b"HTTP/1.1 200 \r\nx-request-id: 0\r\nPragma: no-cache\r\ncontent-length: %d\r\n%b\r\n%b"
RAW = b"x-ts-parity-raw: v=1;dtype=float32;shape=2;offset=%d\r\n"
DIED = error_body(500, "InternalServerException", "Worker died.")
WORKER_DIED = (
    b"HTTP/1.1 500 \r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
) % (len(DIED), DIED)
NUMBER = re.compile(rb"\d+")
BLANKS = b" " * 2_000_000


def outputs(number: int) -> tuple[int, int]:
    """What FakeModel makes of the input [number, 2]; exact in float32, sums of two as well, below 2**22."""
    return number + 4, 3 * number + 8


class House:
    """What the three instances share: chance, and the count of everything."""

    def __init__(self, seed: int, together: int, reply_bytes: int) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.open: set[Player] = set()
        self.reply_bytes = reply_bytes
        self._together = together
        self._held: list[Callable[[], None]] = []
        self._names = list(FAULTS)
        self._until = [sum([*FAULTS.values()][: n + 1]) for n in range(len(FAULTS))]

    def fault(self) -> str:
        at = self.chance.random()
        if self._together or at > self._until[-1]:
            return ""
        return next(name for name, until in zip(self._names, self._until, strict=True) if at <= until)

    def held(self, answer: Callable[[], None]) -> None:
        """Answer all at once when `together` wait for it: then the proxy holds all that it can have to hold."""
        self._held.append(answer)
        if len(self._held) >= self._together:
            held, self._held = self._held, []
            for waiting in held:
                waiting()


class Player(asyncio.Protocol):
    """One connection from the proxy."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._answered = 0
        self._busy = False
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._operation = ""
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._house.open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._house.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._busy = True
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-ts-parity-op":
            self._operation = value.decode()

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        house = self._house
        kind, answer = self._answer(b"".join(self._pieces))
        house.counts[f"seen {kind}"] += 1
        self._pieces = []
        if b"/stream" in self._target:
            self._stream(kind, answer)
        elif house.reply_bytes and kind in ("deployed", "passed"):
            house.held(lambda: self._say(answer))
        else:
            self._play(kind, house.fault(), answer)
        self._answered += 1

    def _answer(self, body: bytes) -> tuple[str, bytes]:
        """-> what kind of task this is, as the proxy's metrics name it, and the answer that it deserves."""
        operation = self._operation
        if operation == "group":
            return "protection", _group_answer(body)
        if operation == "finish":
            raw = unpack_frame(body).raw
            assert raw is not None
            return "finish", _whole(b"[%d, %d]" % (int(raw[0]), int(raw[1])))
        found = NUMBER.search(body[:16] or self._target.partition(b"?")[2])
        assert found is not None, (self._target, body[:100])
        number = int(found[0])
        if b"/stream" in self._target:
            text = b"%d" % number
        else:
            text = b"[%d, %d" % outputs(number)
            text += BLANKS[: max(0, self._house.reply_bytes - len(text) - 1)] + b"]"
        kind = "deployed" if self._target.startswith(b"/predictions/") else "passed"
        if operation == "raw":
            return kind, _whole(text + struct.pack("<2f", *outputs(number)), RAW % len(text))
        return kind, text if b"/stream" in self._target else _whole(text)

    def _say(self, answer: bytes) -> None:
        self._busy = False
        if not self._transport.is_closing():  # the proxy may have given up meanwhile
            self._transport.write(answer)

    def _play(self, kind: str, fault: str, answer: bytes) -> None:
        house = self._house
        if not fault:
            self._say(answer)
            return
        # A reset on a connection that has served before looks like an idle connection closed: the proxy asks again.
        house.counts[f"{fault}, {kind}, {'used' if self._answered else 'new'}"] += 1
        if fault == "reset before":
            self._cut()
        elif fault in ("reset in it", "end in it"):
            self._transport.write(answer[: house.chance.randrange(1, len(answer))])
            if fault == "end in it":
                self._transport.close()
            else:
                self._cut()
        elif fault == "worker died":
            self._transport.write(WORKER_DIED)
            self._transport.close()
        elif fault == "slow":
            self._loop.call_later(house.chance.uniform(*SLOW_S), self._say, answer)
        else:
            self._say(answer)
            self._loop.call_later(house.chance.uniform(*IDLE_CLOSE_S), self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._busy:
            self._transport.close()

    def _cut(self) -> None:
        cut(self._transport)

    def _stream(self, kind: str, number: bytes) -> None:
        """The number, blanks, the number again; one in twenty breaks off, one in ten is slow."""
        house, chance = self._house, self._house.chance
        blanks = [BLANKS[: int(10 ** chance.uniform(1, 5))] for _ in range(chance.randrange(4))]
        pieces = [number + b";", *blanks, b";" + number]
        said = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
        said += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        said.append(b"0\r\n\r\n")
        pause_s = chance.uniform(0, 0.01) if chance.random() < 0.1 else 0.0
        if chance.random() < BROKEN_STREAMS:
            said = said[: chance.randrange(1, len(said))]
            end = chance.choice(["reset", "end"])
            house.counts[f"stream {end}, {kind}, {'used' if self._answered else 'new'}"] += 1
        else:
            end = ""
        house.counts["streams"] += 1
        self._stream_on(said, pause_s, end)

    def _stream_on(self, said: list[bytes], pause_s: float, end: str) -> None:
        if pause_s and len(said) > 1:
            self._say(said[0])
            self._busy = True
            self._loop.call_later(pause_s, self._stream_on, said[1:], pause_s, end)
            return
        self._say(b"".join(said))
        if end == "reset":
            self._cut()
        elif end:
            self._transport.close()


def cut(transport: asyncio.Transport) -> None:
    """End a connection with a reset, as a process that dies does."""
    if transport.is_closing():
        return
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _whole(body: bytes, headers: bytes = b"") -> bytes:
    return HEAD % (len(body), headers, body)


def _group_answer(body: bytes) -> bytes:
    """As a parity model that is exact for the linear one: the sum of its members' outputs."""
    total = np.zeros(2, np.float32)
    slots: list[Part | None] = []
    for part in unpack_frame(body).slots:
        slots.append(None if part is None else Part((), b""))
        if part is not None:
            found = NUMBER.search(part.body[:16])
            assert found is not None
            total += outputs(int(found[0]))
    return _whole(pack_frame(Frame(tuple(slots), total)), b"content-type: %b\r\n" % FRAME_TYPE.encode())


async def serve(seed: int, together: int, reply_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    house = House(seed, together, reply_bytes)
    many = {"workers": PLACES}
    deployed = (FakeModel(**many), FakeModel("stream", role=None, **many))
    endpoints = []
    for models in (deployed, deployed, (protection(**many),)):
        fake = FakeTorchServe(*models)
        await fake.start()
        server = await loop.create_server(partial(Player, house), "127.0.0.1", 0, backlog=1024)
        endpoints.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]},management={fake.management}")
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps(endpoints), flush=True)
    while await reader.readline():
        counted: dict[str, Any] = {**house.counts, "open": len(house.open)}
        print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=count(0), default=0)
    parser.add_argument("--together", type=count(0), default=0)
    parser.add_argument("--reply-bytes", type=count(0), default=0)
    args = parser.parse_args()
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(args.seed, args.together, args.reply_bytes))
