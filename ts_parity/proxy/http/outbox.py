"""Collects the small messages written in one iteration of the event loop and writes them together at its end.

A write to a socket wakes the process that reads it. If that runs on another core, waking it costs more processor time
than the write itself; when writes follow each other closely, most readers are awake already. Only small messages wait
here, and only until the events that arrived together are handled. Before anything else is done with a transport, such
as closing it, call `flush`. Knows transports and bytes. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, final

log = logging.getLogger(__name__)
_MOST: Final = 65536
"""When more bytes than this wait, all are written at once, so that a full transport can pause its writer."""


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
        """Write now what waits for this transport."""
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
                except Exception:  # the other transports' messages must not be lost
                    log.exception("a connection that takes nothing is given up")
                    transport.abort()
