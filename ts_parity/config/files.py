"""A TOML file, and the line on which each of its keys stands.

Knows TOML. Knows no settings.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ts_parity.errors import ConfigError

_BEGINS = re.compile(r"\s*($|#|\[|[\w\"'-].*=)")
"""Whatever begins a statement, and few other lines. Where none begins, none has ended: so a long list is not parsed
again for each of its lines."""


class TomlFile:
    """The content of a file. Raise ConfigError if it cannot be read, or is no TOML."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8")
            self.data = _loads(self._text)
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:  # a whole number of thousands of digits is a ValueError too
            raise ConfigError(f"{path} is not a TOML file: {error}") from None
        self._lines: dict[tuple[str, int, str], int] = {}
        self._find_lines()

    def line(self, name: str) -> int:
        """Of a key, or of the first table of that name. 0: not known."""
        return self._first((("", 0, name), (name, 1, "")))

    def line_in_table(self, table: str, number: int, name: str = "") -> int:
        """Of a key in the table `[[table]]` of that number, from 1. Of the table itself where the key has no line of
        its own, as in `table = [{...}]`.
        """
        return self._first(((table, number, name), (table, number, ""), ("", 0, table)))

    def _first(self, places: tuple[tuple[str, int, str], ...]) -> int:
        return next((self._lines[place] for place in places if place in self._lines), 0)

    def _find_lines(self) -> None:
        """The parser tells no lines. So lines are put together until they are TOML by themselves: a statement. Its keys
        are what it holds, however it spells them.
        """
        table, seen = "", Counter[str]()
        start, statement = 1, ""
        lines = self._text.split("\n")
        for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
            statement += line + "\n"
            if not _BEGINS.match(following):
                continue
            try:
                found = _loads(statement)
            except ValueError:
                continue
            if found and statement.startswith("[", len(statement) - len(statement.lstrip())):
                table = next(iter(found))
                seen[table] += 1
                self._lines[table, seen[table], ""] = start
            for name in found:
                self._lines.setdefault((table, seen[table], name), start)
            start, statement = number + 1, ""


def _loads(text: str) -> dict[str, Any]:
    # Here and not above: before Python 3.11 this is a package to install, and only a file needs it.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    data: dict[str, Any] = tomllib.loads(text)
    return data
