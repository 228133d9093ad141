"""What a file of weights is: how it begins, and the names in it.

So a file that no worker could load is refused when it is packed, without torch, which takes seconds to import. Knows
formats; unpickles and runs nothing.
"""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path
from typing import IO

from ts_parity.errors import ArchiveError

_BLOCK = 1 << 20
_ZIP = b"PK\3\4"
_OLD_SAVED = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled magic number, before torch 1.6
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class WeightsFormat(Enum):
    """The value is for people."""

    SCRIPT = "a TorchScript program"
    EXPORTED = "a program of torch.export"
    SAVED = "what torch.save has written"
    PICKLED = "a pickled object"
    OTHER = "of no format of torch's"


_NAMES = {
    b"/constants.pkl": WeightsFormat.SCRIPT,
    b"/archive_format": WeightsFormat.EXPORTED,
    b"serialized_exported_program.json": WeightsFormat.EXPORTED,  # before torch 2.8
    b"/data.pkl": WeightsFormat.SAVED,  # a script has it too
}


def format_of(file: IO[bytes]) -> WeightsFormat:
    """Read once from first to last, since it may lie packed in an archive."""
    before = file.read(_BLOCK)
    if before.startswith(_OLD_SAVED):
        return WeightsFormat.SAVED
    if before.startswith(_PICKLES):
        return WeightsFormat.PICKLED
    if not before.startswith(_ZIP):
        return WeightsFormat.OTHER
    found = {name for name in _NAMES if name in before}
    while block := file.read(_BLOCK):
        found |= {name for name in _NAMES if name in before[-40:] + block}
        before = block
    return next((kind for name, kind in _NAMES.items() if name in found), WeightsFormat.OTHER)


def format_of_file(path: Path) -> WeightsFormat:
    """Raise ArchiveError for one that cannot be read, or is cut off or changed."""
    try:
        with open(path, "rb") as file:
            kind = format_of(file)
            file.seek(0)
            if file.read(len(_ZIP)) == _ZIP:
                with zipfile.ZipFile(path) as whole:
                    if (broken := whole.testzip()) is not None:
                        raise zipfile.BadZipFile(f"{broken} has another checksum than it should")
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # zipfile has many ways to complain
        raise ArchiveError(f"{path} is not whole: {error}") from None
    return kind


def check_script(path: Path) -> None:
    """Raise ArchiveError unless a worker can load it without any code of the user's."""
    kind = format_of_file(path)
    if kind is WeightsFormat.SCRIPT:
        return
    of_own_class = kind in (WeightsFormat.SAVED, WeightsFormat.PICKLED)
    raise ArchiveError(
        f"{path} is {kind.value}, and a parity model beside the archive's own is {WeightsFormat.SCRIPT.value}: write "
        "it with torch.jit.trace and torch.jit.save"
        + ("; or give it as the serialized file, if the handler loads its own model so" if of_own_class else "")
    )


def check_same_format(path: Path, own: IO[bytes], archive: Path) -> None:
    """Raise ArchiveError if a handler that loads `own`, the archive's serialized file, could not load this one."""
    kind, expected = format_of_file(path), format_of(own)
    if kind is not expected:
        raise ArchiveError(
            f"{path} is {kind.value}, and the serialized file of {archive} is {expected.value}: its handler loads both "
            "in one way"
        )
