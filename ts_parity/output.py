"""What commands write: nothing is overwritten unless that was asked for, and nothing half written is left behind. What
does not belong on the screen, such as tracebacks of users' handlers, goes to a file aside.

Knows paths. Knows nothing of what is written. A file that other programs wait for, such as `--ready-file`, is no result
and is always replaced.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ts_parity.errors import ConfigError, Exhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def add_force(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is there already")


def check_free(path: Path | None, force: bool, option: str = "--out") -> None:
    """Raise ConfigError if `path` is taken and must stay. Call it before the work whose result goes there. An empty
    folder is free: nothing in it could be lost.
    """
    if path is None or force or _is_empty_folder(path) or _is_device(path):
        return
    if os.path.lexists(path):
        raise ConfigError(f"{option} {path} is there already; give another, or --force to replace it")


def _is_device(path: Path) -> bool:
    """A device or a pipe: it holds nothing, and must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_empty_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not any(path.iterdir())
    except OSError:
        return False


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write a file to; it becomes `path` when all went well, and vanishes otherwise."""
    unfinished = path.with_name(f".{os.getpid()}.unfinished.{path.name}")  # the suffix stays: plots go by it
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give the name of a file")
        if _is_device(path):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno in _FULL:
            raise Exhausted(f"cannot write {path}: {error.strerror}") from None
        if error.errno != errno.EROFS and str(error.filename) not in map(str, (unfinished, path, *path.parents)):
            raise
        what = f"{error.filename} is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"cannot write {path}: {what}") from None
    finally:
        with suppress(OSError):
            unfinished.unlink()


def moved(folder: Path, path: Path) -> None:
    """A finished folder becomes `path`, in place of what is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    folder.rename(path)


class SideLog(io.TextIOBase):
    """A file in the temporary folder, made when there is something to write: its `name` is empty before."""

    def __init__(self) -> None:
        self.name = ""
        self._file: Any = None

    def write(self, text: str, /) -> int:
        file = self._file
        if file is None:
            try:
                file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (others go on writing)
                    "w", prefix="ts-parity-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
                )
                self.name = file.name
            except OSError:
                file, self.name = sys.stderr, "the lines above"
            self._file = file
        file.write(text)
        file.flush()
        return len(text)


@contextmanager
def user_output_aside(side_log: SideLog) -> Iterator[None]:
    """What user code prints and logs goes to this file: standard output is for results."""
    kept, handler = logging.root.handlers, logging.StreamHandler(side_log)
    handler.setLevel(logging.WARNING)
    logging.root.handlers = [handler]
    try:
        with redirect_stdout(side_log):
            yield
    finally:
        logging.root.handlers = kept
