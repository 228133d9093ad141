"""The first steps of every program here, so that nothing about how it was started can break it later.

Descriptors 0 to 2 exist; printing works whatever the encoding, even when the reader has left; a
SIGTERM that comes while modules are imported is remembered; signals end what has something to undo as Ctrl-C does.
Knows nothing of what the program is for.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Any, TextIO, cast

TERMINATED = 128 + signal.SIGTERM
REPEATED_S = 5.0
"""Service managers send SIGHUP right after SIGTERM, and that must not cut what is being undone."""

_asked_to_end = False
_ended_by, _ended_at = 0, -math.inf
_printed: _Output | None = None


def prepare() -> None:
    """First thing in a process of its own; never in somebody else's, whose streams and signals it would change."""
    global _printed
    _open_descriptors()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    _printed = _Output(1)
    sys.stdout = _replaced(cast("TextIO | None", sys.stdout), _printed)
    sys.stderr = _replaced(cast("TextIO | None", sys.stderr), _Output(2))
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _remember)


def asked_to_end() -> bool:
    """Whether SIGTERM came since `prepare`."""
    return _asked_to_end


def let_sigterm_end(undoes: bool) -> None:
    """For programs without a drain of their own. The kernel keeps SIGTERM from a container's first process unless it is
    handled, so there it raises SystemExit; elsewhere it does what it always does.

    `undoes`: the program leaves something behind unless it is ended as by Ctrl-C, so SIGTERM and SIGHUP do that too.
    """
    if signal.getsignal(signal.SIGTERM) is not _remember:
        return
    if undoes:
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, _interrupt)
    else:
        signal.signal(signal.SIGTERM, _end if os.getpid() == 1 else signal.SIG_DFL)
    if _asked_to_end:  # looked at last: one that came just before the change was only remembered
        raise SystemExit(TERMINATED)


def exit_code(otherwise: int) -> int:
    """Of a program that `undoes`: 128 + the signal that ended it, if one has."""
    return 128 + _ended_by if _ended_by else otherwise


def unprinted() -> OSError | None:
    """Why what was printed on standard output is not all there, if it should be: its disk is full, say."""
    if _printed is None:
        return None
    with contextlib.suppress(OSError, ValueError):  # ValueError: somebody closed it
        sys.stdout.flush()
    return _printed.error


class _Output(io.FileIO):
    """Takes everything. A reader that has left (`| head`) has had enough, which is no reason to stop the work; other
    errors are kept for the end.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.error: OSError | None = None
        self._open = True

    def write(self, data: Any, /) -> int:
        size = len(data)
        if self._open:
            try:
                while (written := super().write(data)) is None:  # it is shared, and somebody has made it non-blocking
                    select.select([], [self], [])
                return written
            except OSError as error:
                self._open = False
                self.error = None if isinstance(error, BrokenPipeError) else error
        return size


def _replaced(stream: TextIO | None, output: _Output) -> TextIO:
    """The same stream with another way out. What cannot be encoded is escaped: better than no result."""
    through = isinstance(stream, io.TextIOWrapper) and stream.write_through
    encoding = "utf-8" if stream is None else stream.encoding
    return io.TextIOWrapper(
        cast(Any, output) if through else io.BufferedWriter(output),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=output.fileno() == 2 or (isinstance(stream, io.TextIOWrapper) and stream.line_buffering),
        write_through=through,
    )


def _open_descriptors() -> None:
    """Whoever started us may have closed some. What is opened next would take their numbers, and event loops abort on
    that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _remember(number: int, frame: object) -> None:
    global _asked_to_end
    _asked_to_end = True


def _end(number: int, frame: object) -> None:
    raise SystemExit(TERMINATED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Soon after the first, another one is the same request. A later one is not: the first one's exception may be
    lost, as it is in a `__del__`, or what is being undone takes too long.
    """
    global _ended_by, _ended_at
    now = time.monotonic()
    if now < _ended_at + REPEATED_S:
        return
    _ended_by, _ended_at = number, now
    interrupt = signal.getsignal(signal.SIGINT)  # an event loop has its own, which cancels what runs
    if not callable(interrupt):  # a shell has had Ctrl-C ignored
        raise KeyboardInterrupt
    interrupt(signal.SIGINT, frame)
