"""Collects a body that arrives in pieces, at a memory cost per byte and not per piece.

A bytes object of one byte takes 34 bytes and its place in a list 8 more, so a list of tiny chunks would take forty
times the body's size. Knows bytes and nothing else.
"""

from __future__ import annotations

from typing import Final, final

_SMALL: Final = 4096
"""Pieces of at least this size are kept as they are: their overhead is 1 %, and they are copied only once."""
_FULL: Final = 65536


@final
class BodyBuffer:
    """`add` pieces, then `take` them all as one."""

    __slots__ = ("_pieces", "_small")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._small: bytearray | None = None
        """Collects small pieces; its bytes follow those in `_pieces`."""

    def add(self, piece: bytes) -> None:
        small = self._small
        if len(piece) >= _SMALL:
            if small is not None:
                self._pieces.append(bytes(small))
                self._small = None
            self._pieces.append(piece)
        elif small is None:
            self._small = bytearray(piece)
        else:
            small += piece
            if len(small) >= _FULL:
                self._pieces.append(bytes(small))
                self._small = None

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        small, self._small = self._small, None
        if small is not None:
            pieces.append(bytes(small))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drop(self) -> None:
        self._pieces = []
        self._small = None
