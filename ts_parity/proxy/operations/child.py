"""One of several proxies that share a port: a whole proxy in its own process.

    python -m ts_parity.proxy.operations.child    # by `processes`, with one end of a pair of sockets as its stdin

The parent first sends the settings (not as arguments, where a list of processes would show keys), then commands:
`report`, `refresh`, `reopen`, `record`, `stop recording`, `drain`, `cut`, and for a reload first `prepare`, with the
settings, and then, if all children can, `commit`. A reload and a recording have a number, and so has what the child
says to it: what comes late is not taken for the next one's. The child reports when it listens, or why it cannot; it
sends its status whenever it is asked and once more at its end, and what it records as it comes. When the parent's end
of the socket closes, however the parent died, the child drains, since no further command can come. Knows nothing of its
siblings but their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from ts_parity import startup
from ts_parity.config import Settings
from ts_parity.errors import TsParityError
from ts_parity.proxy.operations import signals
from ts_parity.proxy.operations.merge import families_json
from ts_parity.proxy.serving.recording import TAKEN_EVERY_S, Recording, Wanted

if TYPE_CHECKING:
    from ts_parity.proxy.app import PreparedSettings, Proxy

log = logging.getLogger(__name__)

_LENGTH_BYTES = 4
_RECORD = b"record "
STOP_RECORDING = b"stop recording"
_PAIR = b"\0"
"""The first byte of a message that is a frame of a recording; all others are JSON."""
_MOST_UNREAD_BYTES = 4 << 20
COULD_NOT_START = 3


def initial_message(settings: Settings, process: int, member: str, log_level: int) -> bytes:
    """The first message to a child. Both ends are the same code, so a pickle will do."""
    return pickle.dumps((settings, process, member, log_level))


_PREPARE = b"prepare "
_COMMIT = b"commit "


def prepare_message(number: int, settings: Settings) -> bytes:
    return b"%b%d %b" % (_PREPARE, number, pickle.dumps(settings))


def commit_message(number: int) -> bytes:
    return b"%b%d" % (_COMMIT, number)


def record_message(number: int, wanted: Wanted) -> bytes:
    return b"%b%d %b" % (_RECORD, number, json.dumps(wanted.as_json()).encode())


def pair_message(number: int, frame: bytes) -> bytes:
    return b"%b%d %b" % (_PAIR, number, frame)


def read_pair(message: bytes) -> tuple[int, bytes] | None:
    """-> the recording's number and the frame; None: it is another message."""
    if not message.startswith(_PAIR):
        return None
    number, _, frame = message.removeprefix(_PAIR).partition(b" ")
    return int(number), frame


def send(writer: asyncio.StreamWriter, message: bytes) -> None:
    if not writer.is_closing():
        writer.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


async def receive(reader: asyncio.StreamReader) -> bytes | None:
    """-> a message, or None if the other end is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return None


def main() -> int:
    startup.prepare()
    # Imported only now: it takes a while, and a SIGTERM meanwhile would end the process as if something were wrong.
    from ts_parity.proxy.app import use_uvloop

    use_uvloop()
    return asyncio.run(_serve_until_drained(socket.socket(fileno=sys.stdin.fileno())))


async def _serve_until_drained(to_parent: socket.socket) -> int:
    from ts_parity.proxy.app import Proxy

    reader, writer = await asyncio.open_unix_connection(sock=to_parent)
    received = await receive(reader)
    if received is None:
        return COULD_NOT_START
    settings, process, member, log_level = pickle.loads(received)
    logging.basicConfig(
        level=log_level,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s process {process} %(name)s: %(message)s",
    )
    try:
        return await _serve(Proxy(settings, process, member=member), reader, writer)
    except TsParityError as error:
        _send_message(writer, failed=str(error))
        return COULD_NOT_START
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _serve(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    loop = asyncio.get_running_loop()
    # A service manager sends SIGTERM to the children too, in addition to the parent's command, so a second one must not
    # cut: only the parent's command does. Ctrl-C is for the parent alone.
    signals.install_handlers(proxy.drain, proxy.refresh_files, proxy.reopen)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    commands = loop.create_task(_run_commands(proxy, reader, writer))
    try:
        code = await proxy.live(lambda _: _send_message(writer, listening=True, report=_report(proxy)))
        _send_message(writer, report=_report(proxy))
        return code
    finally:
        commands.cancel()
        await asyncio.gather(commands, return_exceptions=True)


async def _run_commands(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    recording = _Relay(proxy, writer)
    reloads = _Reloads(proxy, writer)
    try:
        while (command := await receive(reader)) is not None:
            match command:
                case b"report":
                    _send_message(writer, report=_report(proxy))
                case b"drain":
                    proxy.drain()
                case b"refresh":
                    proxy.refresh_files()
                case b"reopen":
                    proxy.reopen()
                case b"cut":
                    proxy.cut()
                case _ if command == STOP_RECORDING:
                    recording.stop()
                case _ if command.startswith(_RECORD):
                    number, _, told = command.removeprefix(_RECORD).partition(b" ")
                    recording.begin(int(number), Wanted.read(json.loads(told)))
                case _ if command.startswith(_PREPARE):
                    number, _, pickled = command.removeprefix(_PREPARE).partition(b" ")
                    reloads.prepare(int(number), pickle.loads(pickled))
                case _ if command.startswith(_COMMIT):
                    reloads.commit(int(command.removeprefix(_COMMIT)))
        log.warning("the parent process is gone: draining")
    except Exception:
        log.exception("the parent cannot be answered: draining")
    finally:
        proxy.drain()


class _Relay:
    """Sends to the parent what this process records. While the parent does not read, it waits in the recording, which
    is bounded.
    """

    def __init__(self, proxy: Proxy, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writer = writer
        self._recording: Recording | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, number: int, wanted: Wanted) -> None:
        self.stop()
        self._recording = self._proxy.begin_recording(wanted)
        self._task = asyncio.get_running_loop().create_task(self._send(number, self._recording))

    def stop(self) -> None:
        if self._recording is not None:
            self._recording.close("it is over")
        self._recording = None

    async def _send(self, number: int, recording: Recording) -> None:
        while not recording.ended:
            await asyncio.sleep(TAKEN_EVERY_S)
            if self._writer.transport.get_write_buffer_size() < _MOST_UNREAD_BYTES:
                for frame in recording.take():
                    send(self._writer, pair_message(number, frame))
                _send_message(self._writer, number=number, recorded=recording.take_counts())


class _Reloads:
    """Prepares and commits what the parent sends. A process that cannot run it drains, and its parent starts another
    with it: half of a configuration, or the old one, must not go on.
    """

    def __init__(self, proxy: Proxy, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writer = writer
        self._prepared: tuple[int, PreparedSettings] | None = None
        self._committing: set[asyncio.Task[None]] = set()

    def prepare(self, number: int, settings: Settings) -> None:
        self._prepared, problem = None, ""
        try:
            self._prepared = number, self._proxy.prepare(settings)
        except TsParityError as error:
            log.warning("the new configuration cannot be used: %s", error)
            problem = str(error)
        _send_message(self._writer, number=number, prepared=problem)

    def commit(self, number: int) -> None:
        if self._prepared is None or self._prepared[0] != number:
            log.error("the configuration that the other processes run cannot be used here: draining")
            self._proxy.drain()
            return
        task = asyncio.get_running_loop().create_task(self._commit(*self._prepared))
        self._committing.add(task)  # meanwhile other commands come
        task.add_done_callback(self._committing.discard)

    async def _commit(self, number: int, prepared: PreparedSettings) -> None:
        try:
            besides = await self._proxy.commit(prepared)
        except Exception:
            log.exception("the new configuration could not be adopted: draining")
            self._proxy.drain()
        else:
            _send_message(self._writer, number=number, committed=list(besides))


def _report(proxy: Proxy) -> dict[str, Any]:
    return {
        "status": proxy.own_status(),
        "recent": proxy.recent(),
        "health": proxy.health(),
        "metrics": families_json(proxy.metrics.families()),
    }


def _send_message(writer: asyncio.StreamWriter, **message: Any) -> None:
    send(writer, json.dumps(message).encode())


if __name__ == "__main__":
    sys.exit(main())
