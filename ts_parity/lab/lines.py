"""Lines of a text file as people have them: compressed or not, in UTF-8 or UTF-16, from a pipe, with any line ends.

Knows files and lines. Knows nothing of what stands on them.
"""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ts_parity.errors import ConfigError

STDIN = Path("-")
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(file: Path, what: str) -> Iterator[str]:
    """All lines of a file, or of standard input (`-`), with their ends. What it is, its first bytes tell: a pipe has no
    name that would. Bytes that are no text come escaped. Raise ConfigError, saying that `what` cannot be read.
    """
    number = 0
    try:
        with _opened(file) as lines:
            for line in lines:
                number += 1
                yield line
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read {what} {shown(file)}{after}: {why}") from None


def shown(file: Path) -> str:
    return "standard input" if file == STDIN else str(file)


@contextmanager
def _opened(file: Path) -> Iterator[Iterable[str]]:
    with io.BufferedReader(cast(Any, sys.stdin.buffer)) if file == STDIN else open(file, "rb") as raw:
        data = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" or raw.peek(2)[:2] == _GZIP else raw
        encoding = "utf-16" if data.peek(2)[:2] in _UTF16 else "utf-8-sig"
        with io.TextIOWrapper(data, encoding, errors="backslashreplace", newline="") as lines:
            yield lines
