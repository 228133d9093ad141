"""What is written in one turn of the event loop goes out together at its end.

A write to a socket wakes whoever reads there, and where that is another core, waking it costs the processor more than
sending does. One right after the other, most writes find their reader awake. Only small messages wait here, for as long
as the events that came together take; whatever else is done with a transport, closing it too, comes after its `flush`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, final

log = logging.getLogger(__name__)
_MOST: Final = 65536
"""With more bytes than these waiting all go out at once, so that transports can say that they are full."""


@final
class Outbox:
    """For the transports of one event loop."""

    __slots__ = ("_bytes", "_due", "_held")

    def __init__(self) -> None:
        self._held: list[tuple[asyncio.Transport, bytes]] = []
        self._bytes = 0
        self._due = False

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        self._held.append((transport, data))
        self._bytes += len(data)
        if self._bytes > _MOST:
            self._write()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._end_of_turn)

    def flush(self, transport: asyncio.Transport) -> None:
        """Write what waits for this one."""
        for holder, _ in self._held:
            if holder is transport:
                self._write()
                return

    def _end_of_turn(self) -> None:
        self._due = False
        self._write()

    def _write(self) -> None:
        held, self._held = self._held, []
        self._bytes = 0
        for transport, data in held:
            if not transport.is_closing():
                try:
                    transport.write(data)
                except Exception:  # the others' messages must not be lost with this one
                    log.exception("a connection that takes nothing is given up")
                    transport.abort()
