"""The clients of overhead.py: wrk, which asks again as soon as it is answered, and an open loop, which does not wait.

The open loop is a program of its own (`python benchmarks/overhead_clients.py`, told what to do on stdin): requests
leave at Poisson instants and their latency counts from when they were due. lab/traffic.py has one as well, whose
own time of half a millisecond a request would here be as much as what is measured: this one writes bytes and looks
for the end of the answer. It runs on `select`, whose time-outs are exact, where epoll's are rounded up to
milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SAME, UNIQUE = "same heads", "unique heads"

LUA = """
local addresses = {%(addresses)s}
local count = 0
local file = io.open("%(body)s", "rb")
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = file:read("*a")
file:close()
function setup(thread)
  count = count + 1
  local each = addresses[(count - 1) %% #addresses + 1]
  thread.addr = wrk.lookup(each[1], each[2])[1]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""
# A proxy that remembers the bytes of a head, or of its lines, remembers in vain: two lines of each are new.
LUA_UNIQUE = """
local asked = 0
function request()
  asked = asked + 1
  wrk.headers["X-Request-Id"] = string.format("%08x-%04x-%08x", asked * 2654435761 %% 4294967296, asked %% 65536, asked)
  return wrk.format(nil, wrk.path .. "?n=" .. asked)
end
"""


@dataclass(frozen=True)
class Seen:
    """What wrk says of one load."""

    requests: int
    seconds: float
    p50_us: int
    p99_us: int
    errors: int


def wrk(
    urls: Sequence[str], connections: int, seconds: int, body: bytes, folder: Path, core: int, client: str = SAME
) -> Seen:
    """Several addresses share the connections; with one connection the first has it."""
    file, script = folder / f"body-{len(body)}.bin", folder / "post.lua"
    file.write_bytes(body)
    parts = [urlsplit(url) for url in urls]
    addresses = ", ".join(f'{{"{part.hostname}", "{part.port}"}}' for part in parts)
    text = LUA % {"addresses": addresses, "body": file}
    script.write_text(text + (LUA_UNIQUE.replace("%%", "%") if client == UNIQUE else ""))
    threads = min(len(urls), connections)
    command = ["taskset", "-c", str(core), "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s"]
    command += ["--timeout", "20s", "-s", str(script), urls[0]]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    if found is None:
        raise RuntimeError(f"wrk said no result:\n{out}")
    requests, micros, p50, p99, errors = map(int, found.groups())
    return Seen(requests, micros / 1e6, p50, p99, errors)


# ---- the open loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """A load at so many requests a second, in turn at each of the addresses. The same seed gives the same instants."""

    urls: tuple[str, ...]
    rate: float
    warm_s: float
    seconds: float
    seed: int
    body_bytes: int
    patience_s: float = 20.0


@dataclass(frozen=True)
class Answers:
    """Of the requests due after the warm time, in microseconds since each was due; `lags_us` until it was sent."""

    latencies_us: list[int]
    lags_us: list[int]
    errors: int


def open_loop(load: Slice, core: int) -> Answers:
    command = ["taskset", "-c", str(core), sys.executable, __file__]
    done = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the open loop failed:\n{done.stderr}")
    return Answers(**json.loads(done.stdout))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, idle: list[_Connection], failed: list[int]) -> None:
        self._idle = idle
        self._failed = failed
        self._answered: Any = None
        self._came = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes, answered: Any) -> None:
        self._came = b""
        self._answered = answered
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, blank, body = self._came.partition(b"\r\n\r\n")
        if not blank:
            return
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        assert length is not None, head
        if len(body) >= int(length[1]):
            answered, self._answered = self._answered, None
            self._idle.append(self)
            answered(head.split(b" ", 2)[1] == b"200")

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._answered is not None:
            self._answered(False)


async def _drive(load: Slice) -> Answers:
    from overhead_instances import body_of
    from ts_parity.lab.traffic import poisson_load

    loop = asyncio.get_running_loop()
    due_at = poisson_load(int(load.rate * (load.warm_s + load.seconds)), load.rate, 1, load.seed).due_at
    body = body_of(load.body_bytes)
    targets = []
    for url in load.urls:
        part = urlsplit(url)
        head = f"POST {part.path} HTTP/1.1\r\nHost: {part.netloc}\r\nContent-Type: application/json\r\n"
        request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        idle: list[_Connection] = []
        targets.append((part.hostname, part.port, request, idle))
    latencies, lags, failed = [], [], []
    left = len(due_at)
    over = asyncio.Event()
    origin = time.perf_counter() + 0.05

    async def connected_and_asked(target: Any, answered: Any) -> None:
        host, port, request, idle = target
        try:
            _, connection = await loop.create_connection(lambda: _Connection(idle, failed), host, port)
        except OSError:
            answered(False)
        else:
            connection.ask(request, answered)

    flights = set()
    for seq, due in enumerate(due_at):
        delay = origin + due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        warm = due < load.warm_s

        def answered(good: bool, due: float = due, warm: bool = warm) -> None:
            nonlocal left
            left -= 1
            if not good:
                failed.append(1)
            elif not warm:
                latencies.append(round((time.perf_counter() - origin - due) * 1e6))
            if left == 0:
                over.set()

        target = targets[seq % len(targets)]
        if not warm:
            lags.append(round((time.perf_counter() - origin - due) * 1e6))
        if target[3]:
            target[3].pop().ask(target[2], answered)
        else:
            flight = asyncio.ensure_future(connected_and_asked(target, answered))
            flights.add(flight)
            flight.add_done_callback(flights.discard)
    try:
        await asyncio.wait_for(over.wait(), load.patience_s)
    except asyncio.TimeoutError:
        failed += [1] * left
    return Answers(latencies, lags, len(failed))


def main() -> None:
    given = json.load(sys.stdin)
    load = Slice(**{**given, "urls": tuple(given["urls"])})
    gc.disable()
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    print(json.dumps(asdict(loop.run_until_complete(_drive(load)))))


if __name__ == "__main__":
    main()
