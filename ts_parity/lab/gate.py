"""A small process between a proxy and its instances that delays, throttles and breaks connections when it is told to.

So network contention strikes where it does in the paper, between machines, and outside the process that measures. Each
gate leads to one address. While it is calm it passes bytes on as they come. One line of JSON on standard input is one
order; when standard input ends, so does this process. Knows bytes and clocks; the standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CHUNK = 1 << 16
IDLE_S = 0.001
"""After so long without a byte another message begins."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: closing sends a reset."""


class Gate:
    """Leads to one address."""

    def __init__(self, host: str, port: int, seed: str) -> None:
        self.host, self.port = host, port
        self.delay_s, self.bytes_per_s = 0.0, 0.0
        self._rng = random.Random(seed)
        self._free_at = [0.0, 0.0]
        """When each direction of the link is free again: all connections share it."""
        self._open: set[asyncio.StreamWriter] = set()

    def obey(self, order: dict[str, Any]) -> None:
        """`contend`: from now on, exponential delays of this mean and a slower link; zeros for calm. `reset`: break all
        connections. `aim`: lead elsewhere.
        """
        if order["do"] == "contend":
            self.delay_s, self.bytes_per_s = float(order["delay_s"]), float(order["bytes_per_s"])
        elif order["do"] == "reset":
            for writer in [*self._open]:
                _break(writer)
        elif order["do"] == "aim":
            self.host, self.port = str(order["host"]), int(order["port"])
        else:
            raise ValueError(f"no gate knows how to {order['do']!r}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            _break(writer)  # as where nobody listens
            return
        self._open |= {writer, to_writer}
        both = [
            asyncio.create_task(self._pump(reader, to_writer, 0)),
            asyncio.create_task(self._pump(to_reader, writer, 1)),
        ]
        try:
            await asyncio.gather(*both)
        except OSError:
            for each in (writer, to_writer):
                _break(each)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            self._open -= {writer, to_writer}
            for each in (writer, to_writer):
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        loop, passed_at = asyncio.get_running_loop(), 0.0
        while chunk := await reader.read(CHUNK):
            now = loop.time()
            # A message is late as a whole: what follows its first bytes has only the link to wait for.
            late_s = self._rng.expovariate(1 / self.delay_s) if self.delay_s and now - passed_at > IDLE_S else 0.0
            if late_s or self.bytes_per_s:
                takes_s = len(chunk) / self.bytes_per_s if self.bytes_per_s else 0.0
                self._free_at[way] = max(now, self._free_at[way]) + takes_s
                await asyncio.sleep(max(now + late_s + takes_s, self._free_at[way]) - now)
            writer.write(chunk)
            await writer.drain()
            passed_at = loop.time()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _break(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def run(addresses: Sequence[tuple[str, int]], seed: int) -> None:
    gates = [Gate(host, port, f"gate {seed} {index}") for index, (host, port) in enumerate(addresses)]
    servers = [await asyncio.start_server(gate.serve, "127.0.0.1", 0) for gate in gates]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        gates[order["gate"]].obey(order)


@dataclass
class GateProcess:
    """The other side: `ports` are where the gates listen, in the order of the addresses."""

    process: subprocess.Popen[str]
    ports: Sequence[int]

    def order(self, gate: int, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"gate": gate, "do": do, **more}) + "\n")
        self.process.stdin.flush()

    def contend(self, gate: int, delay_s: float, bytes_per_s: float = 0.0) -> None:
        self.order(gate, "contend", delay_s=delay_s, bytes_per_s=bytes_per_s)


@contextmanager
def gates(addresses: Sequence[tuple[str, int]], seed: int = 0) -> Iterator[GateProcess]:
    """One to each address, in one process of their own."""
    told = json.dumps([[list(address) for address in addresses], seed])
    command = [sys.executable, "-m", "ts_parity.lab.gate", told]
    # In a session of its own: Ctrl-C is for us, who end it.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield GateProcess(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    addresses_, seed_ = json.loads(sys.argv[1])
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run([(host, port) for host, port in addresses_], seed_))
