"""Zips as other programs write them, byte by byte, and what TorchServe makes of each."""

from __future__ import annotations

import bz2
import json
import lzma
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

STORED, DEFLATED, DEFLATE64, BZIP2, LZMA, ZSTD = 0, 8, 9, 12, 14, 93
ENCRYPTED, BEHIND, UTF8 = 0x1, 0x8, 0x800
HANDLER = b"def handle(data, context):\n    return None if data is None else [b'' for _ in data]\n"

PACKERS: dict[int, Callable[[bytes], bytes]] = {
    STORED: bytes,
    DEFLATED: lambda data: zlib.compress(data, wbits=-15),
    BZIP2: bz2.compress,
    LZMA: lambda data: b"\x09\x04\x05\x00]\x00\x00\x80\x00" + lzma.compress(data, lzma.FORMAT_ALONE)[13:],
}


@dataclass(frozen=True)
class Entry:
    """`behind`: how checksum and sizes follow the data (marked, bare, wide). `local_name`: in the header before the
    data, if that is another. `zip64`: sizes in extra fields. `listed`: in the table of contents. `before`: bytes first.
    """

    name: bytes
    data: bytes = b"text"
    method: int = DEFLATED
    flags: int = 0
    behind: str = ""
    local_name: bytes | None = None
    extra: bytes = b""
    crc: int | None = None
    mode: int = 0
    zip64: bool = False
    listed: bool = True
    before: bytes = b""

    def written(self, at: int) -> tuple[bytes, bytes]:
        """What stands in the file, and in the table of contents. `at`: where the entry's header will be."""
        packed = PACKERS.get(self.method, bytes)(self.data)
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        flags = self.flags | (BEHIND if self.behind else 0)
        sizes = struct.pack("<LLL", crc, len(packed), len(self.data))
        local_sizes, extra = (bytes(12) if self.behind else sizes), self.extra
        if self.zip64:
            local_sizes = struct.pack("<LLL", crc, 0xFFFFFFFF, 0xFFFFFFFF)
            extra += struct.pack("<HHQQ", 1, 16, len(self.data), len(packed))
        name = self.name if self.local_name is None else self.local_name
        local = b"PK\3\4" + struct.pack("<HHHHH", 20, flags, self.method, 0, 33) + local_sizes
        local += struct.pack("<HH", len(name), len(extra)) + name + extra + packed
        local += {
            "": b"",
            "marked": b"PK\7\x08" + sizes,
            "bare": sizes,
            "wide": b"PK\7\x08" + struct.pack("<LQQ", crc, len(packed), len(self.data)),
        }[self.behind]
        central = b"PK\1\2" + struct.pack("<HHHHHH", 0x0314, 20, flags, self.method, 0, 33) + sizes
        central += struct.pack("<HHHHHLL", len(self.name), len(self.extra), 0, 0, 0, self.mode << 16, at)
        return local, central + self.name + self.extra


def write_zip(
    path: Path, entries: Sequence[Entry], prefix: bytes = b"", comment: bytes = b"", tail: bytes = b""
) -> Path:
    written, central, listed = prefix, b"", 0
    for entry in entries:
        written += entry.before
        local, entered = entry.written(len(written))
        written += local
        if entry.listed:
            central, listed = central + entered, listed + 1
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, listed, listed, len(central), len(written), len(comment))
    path.write_bytes(written + central + end + comment + tail)
    return path


@dataclass(frozen=True)
class Case:
    """`files`: what TorchServe unpacks, beside the handler; None: it refuses. `said`: why we refuse; empty: we read the
    same. Where TorchServe reads what we refuse, we are the stricter, for a reason.
    """

    entries: tuple[Entry, ...]
    files: dict[str, bytes] | None
    said: str = ""
    prefix: bytes = b""
    comment: bytes = b""
    tail: bytes = b""
    change: Callable[[Entry], Entry] = lambda entry: entry
    """Done to the entries of the manifest and the handler."""

    def write(self, path: Path) -> Path:
        manifest = {
            "runtime": "python",
            "model": {"modelName": path.stem, "modelVersion": "1.0", "handler": "handler.py"},
        }
        own = [Entry(b"MAR-INF/MANIFEST.json", json.dumps(manifest).encode()), Entry(b"handler.py", HANDLER)]
        return write_zip(path, [*map(self.change, own), *self.entries], self.prefix, self.comment, self.tail)


def unicode_path(name: bytes, other: bytes) -> bytes:
    """Info-ZIP's extra field with the name in UTF-8."""
    return struct.pack("<HHBL", 0x7075, 5 + len(other), 1, zlib.crc32(name)) + other


def dotted(entry: Entry) -> Entry:
    return replace(entry, name=b"./" + entry.name)


def streamed(entry: Entry) -> Entry:
    return replace(entry, behind="marked")


TEXT = b"text"
GERMAN, GERMAN_437 = "größen.json", "größen.json".encode("cp437")
STAMPS = struct.pack("<HHBLLHHL", 0x5455, 9, 3, 0, 0, 0x7875, 4, 0)

CASES: dict[str, Case] = {
    "plain": Case((Entry(b"a.txt"),), {"a.txt": TEXT}),
    "utf8_flagged": Case((Entry(GERMAN.encode(), flags=UTF8),), {GERMAN: TEXT}),
    "utf8_without_flag": Case((Entry(GERMAN.encode()),), {GERMAN: TEXT}),
    "cp437": Case((Entry(GERMAN_437),), None, "is not UTF-8, so TorchServe cannot read it"),
    "cp437_and_unicode_path": Case(
        (Entry(GERMAN_437, extra=unicode_path(GERMAN_437, GERMAN.encode())),), None, "is not UTF-8, so TorchServe"
    ),
    "unicode_path_is_ignored": Case(
        (Entry(b"plain.txt", extra=unicode_path(b"plain.txt", b"other.txt")),), {"plain.txt": TEXT}
    ),
    "not_the_utf8_it_says": Case((Entry(b"a\xff", flags=UTF8),), None, "is not a whole .mar"),
    "dots": Case((Entry(b"./a.txt"), Entry(b"./d/./e//f.txt"), Entry(b"./", b"")), {"a.txt": TEXT, "d/e/f.txt": TEXT},
                 change=dotted),
    "backslash": Case((Entry(b"a\\b.txt"),), {"a\\b.txt": TEXT}),
    "drive": Case((Entry(b"C:\\a.txt"),), {"C:\\a.txt": TEXT}),
    "case": Case((Entry(b"A.txt", b"A"), Entry(b"a.txt", b"a")), {"A.txt": b"A", "a.txt": b"a"}),
    "blanks": Case((Entry(b" a b.txt "), Entry(b"c\n.txt")), {" a b.txt ": TEXT, "c\n.txt": TEXT}),
    "nul": Case((Entry(b"a\0.txt"),), None, "cannot be the name of a file"),
    "no_name": Case((Entry(b""),), None, "cannot be the name of a file"),
    "folders": Case((Entry(b"d/", b""), Entry(b"d/a.txt"), Entry(b"empty/", b"", STORED)), {"d/a.txt": TEXT}),
    "a_folder_only_by_mode": Case((Entry(b"d", b"", mode=stat.S_IFDIR | 0o755),), {"d": b""}),
    "file_and_folder": Case((Entry(b"d"), Entry(b"d/a.txt")), None, "'d' as a file and as a folder"),
    "folder_and_file": Case((Entry(b"d/a.txt"), Entry(b"d")), None, "'d' as a file and as a folder"),
    "stored": Case((Entry(b"a.txt", method=STORED),), {"a.txt": TEXT}),
    "bzip2": Case((Entry(b"a.txt", method=BZIP2),), None, "packed by a method that TorchServe cannot read"),
    "lzma": Case((Entry(b"a.txt", method=LZMA),), None, "packed by a method that TorchServe cannot read"),
    "zstd": Case((Entry(b"a.txt", method=ZSTD),), None, "packed by a method that TorchServe cannot read"),
    "deflate64": Case((Entry(b"a.txt", method=DEFLATE64),), None, "packed by a method that TorchServe cannot read"),
    "encrypted": Case((Entry(b"a.txt", flags=ENCRYPTED),), None, "is encrypted"),
    "streamed": Case((Entry(b"a.txt", behind="marked"), Entry(b"b.txt", behind="bare")), {"a.txt": TEXT, "b.txt": TEXT},
                     change=streamed),
    "streamed_and_stored": Case((Entry(b"a.txt", method=STORED, behind="marked"),), None, "has its size behind it"),
    "streamed_folder": Case((Entry(b"d/", b"", STORED, behind="marked"),), None, "has its size behind it"),
    "streamed_wide": Case((Entry(b"a.txt", behind="wide"), Entry(b"b.txt")), None, "is not what the table of contents"),
    "zip64": Case((Entry(b"a.txt", zip64=True), Entry(b"b.txt", method=STORED, zip64=True)),
                  {"a.txt": TEXT, "b.txt": TEXT}),
    "extra_fields": Case((Entry(b"a.txt", extra=STAMPS),), {"a.txt": TEXT}),
    "comment": Case((Entry(b"a.txt"),), {"a.txt": TEXT}, comment=b"made by hand" * 100),
    "tail": Case((Entry(b"a.txt"),), {"a.txt": TEXT}, tail=b"\n"),
    "prefix": Case((Entry(b"a.txt"),), None, "begins with something else", prefix=b"#!/bin/sh\nexit\n"),
    "gap": Case((Entry(b"a.txt", before=bytes(7)),), {}, "has a gap before 'a.txt'"),
    "unlisted": Case((Entry(b"a.txt"), Entry(b"b.txt", listed=False)), {"a.txt": TEXT, "b.txt": TEXT},
                     "not in its table of contents"),
    "unlisted_between": Case((Entry(b"b.txt", listed=False), Entry(b"a.txt")), {"a.txt": TEXT, "b.txt": TEXT},
                             "has a gap before 'a.txt'"),
    "two_names": Case((Entry(b"a.txt", local_name=b"b.txt"),), {"b.txt": TEXT}, "is not what the table of contents"),
    "wrong_checksum": Case((Entry(b"a.txt", crc=1),), None, "Bad CRC-32"),
    "twice": Case((Entry(b"a.txt", b"1"), Entry(b"a.txt", b"2")), {"a.txt": b"2"}, "'a.txt' twice"),
    "twice_with_a_dot": Case((Entry(b"a.txt", b"1"), Entry(b"./a.txt", b"2")), {"a.txt": b"2"}, "'a.txt' twice"),
    "link": Case((Entry(b"a.txt", mode=stat.S_IFLNK | 0o777),), {"a.txt": TEXT}, "symbolic link 'a.txt'"),
    "absolute": Case((Entry(b"/a.txt"),), {"a.txt": TEXT}, "leads out of the archive"),
    "up_and_out": Case((Entry(b"../../a.txt"),), None, "leads out of the archive"),
}  # fmt: skip
