"""Model archives (.mar) as they are: reading, checking and unpacking them.

A .mar is a zip with the user's files at its root and MAR-INF/MANIFEST.json. Whatever is wrong with one is an
ArchiveError that says what and what to do. An archive may come from anywhere, so no size in it is believed: what is
read whole is read up to a limit, and an archive that expands beyond measure is refused. Knows the format; runs nothing
of what is inside.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import math
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from ts_parity.describe import ProtectedModel
from ts_parity.errors import ArchiveError, ConfigError, with_article
from ts_parity.fingerprint import fingerprint

if TYPE_CHECKING:
    import yaml

MANIFEST = "MAR-INF/MANIFEST.json"
SECTION = "ts_parity"
"""The section of an archive's config YAML that is ours."""
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
LARGEST_TEXT = 1 << 20
"""Of the manifest and of the config YAML, in bytes. TorchServe's own are some hundred."""
LARGEST_FILE = 64 << 20
"""Of any other file that is read whole. Weights are copied in blocks and may have any size."""
_LARGEST_DIRECTORY = 8 << 20
"""Bytes of a zip's table of contents, which zipfile reads whole and holds tenfold: some hundred thousand files."""
_ALWAYS_FINE, _MOST_EXPANSION = 256 << 20, 200
"""What a zip may expand to: the first in bytes, or beyond it the second times its own size. Weights hardly shrink."""
_LARGEST_CONFIG = 100_000
"""Nodes of a config YAML, aliases followed."""
_ENCRYPTED, _SIZES_BEHIND, _UTF8_FLAG = 0x1, 0x8, 0x800
"""Flags of an entry. The second: its checksum and sizes come after its data, since it was written to a pipe."""
_READ_FLAGS = _ENCRYPTED | _SIZES_BEHIND | _UTF8_FLAG
_LOCAL = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<6sHH4xLLLHH")
"""What stands before an entry's data: flags, method, checksum, packed size, size, lengths of name and extra fields."""
_ZIP64, _LARGEST_NARROW = 1, 0xFFFFFFFF
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Archive:
    """A model archive that could be read. Paths of files are as in the zip: relative, with forward slashes."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    config_text: str = field(repr=False)
    """The config YAML as it stands, comments and all; empty if there is none."""
    config: Mapping[str, Any] = field(repr=False)

    @property
    def model(self) -> Mapping[str, Any]:
        entry = self.manifest["model"]
        assert isinstance(entry, dict)
        return entry

    @property
    def model_name(self) -> str:
        return str(self.model["modelName"])

    @property
    def model_version(self) -> str:
        return str(self.model.get("modelVersion") or "1.0")  # TorchServe's own default

    @property
    def handler(self) -> str:
        return str(self.model["handler"])

    @property
    def serialized_file(self) -> str | None:
        return self._named("serializedFile")

    @property
    def config_file(self) -> str | None:
        return self._named("configFile")

    @property
    def section(self) -> Mapping[str, Any] | None:
        """What the config says to ts_parity; None in an archive that is not wrapped."""
        said = self.config.get(SECTION)
        return said if isinstance(said, dict) else None

    @property
    def role(self) -> str | None:
        return None if self.section is None else str(self.section.get("role"))

    def read(self, name: str) -> bytes:
        with open_zip(self.path) as archive:
            return read_entry(archive, name, LARGEST_FILE)

    def weights(self) -> str | None:
        """The fingerprint of the serialized file, by which a parity model knows what it protects. None without one."""
        if self.serialized_file is None:
            return None
        with open_zip(self.path) as archive, archive.open(self.serialized_file) as file:
            return fingerprint(file)

    def protects(self, registered_as: str | None = None) -> ProtectedModel:
        """What a protection made from this archive would protect; `registered_as`, NAME or NAME/VERSION, where that is
        not what the manifest says. Raise ConfigError.
        """
        model, slash, version = (registered_as or self.model_name).partition("/")
        if not model or "/" in version or (slash and not version):
            raise ConfigError(f"a protected model is NAME or NAME/VERSION, not {registered_as!r}")
        return ProtectedModel(model, version or self.model_version, self.weights())

    def _named(self, key: str) -> str | None:
        return str(self.model[key]) if self.model.get(key) else None


def read_archive(path: str | Path) -> Archive:
    """Raise ArchiveError unless it is a whole .mar whose manifest names a model, a handler and files that are there."""
    path = Path(path)
    with open_zip(path) as archive:
        files = tuple(sorted(_checked_names(archive, path)))
        _check_headers(archive, path)
        check_expansion(path, sum(entry.file_size for entry in archive.infolist()))
        manifest = _manifest(archive, path)
        config_file = manifest["model"].get("configFile")
        for key in ("serializedFile", "modelFile", "configFile"):
            named = manifest["model"].get(key)
            if named and named not in files:
                raise ArchiveError(
                    f"{path}: the manifest's {key} is {named}, which is not in the archive; pack it again"
                )
        text = ""
        if config_file:
            text = _text(read_entry(archive, config_file, LARGEST_TEXT), f"{path}: {config_file}")
    return Archive(path, manifest, files, text, parse_config(text, f"{path}: {config_file}"))


def extract_archive(path: str | Path, folder: str | Path) -> Archive:
    """Unpack into `folder`, which is made if need be. No file is written outside it."""
    archive = read_archive(path)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_zip(archive.path) as zipped:
        zipped.extractall(folder)
    return archive


def parse_config(text: str, what: str) -> dict[str, Any]:
    import yaml  # what reads zips of bodies alone is installed without it

    try:
        config = _loaded(text, what)
    except (yaml.YAMLError, ValueError) as error:
        raise ArchiveError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ArchiveError(f"{what} is nested too deeply") from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ArchiveError(f"{what} must be a mapping of settings, not {with_article(type(config).__name__)}")
    return config


def _loaded(text: str, what: str) -> Any:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _LARGEST_CONFIG:
            raise ArchiveError(f"{what} expands to over {_LARGEST_CONFIG} entries with its aliases; it is refused")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes below this one, each as often as aliases name it. A node that holds itself has no end."""
    if id(node) not in known:
        known[id(node)] = math.inf
        # A text, nodes, or pairs of nodes.
        items = node.value if isinstance(node.value, list) else []
        children = [child for item in items for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def check_expansion(path: Path, size: int) -> None:
    """Raise ArchiveError for a zip file that would become beyond measure large."""
    packed = path.stat().st_size
    if size > max(_ALWAYS_FINE, _MOST_EXPANSION * packed):
        raise ArchiveError(
            f"{path} of {_megabytes(packed)} would expand to {_megabytes(size)}; if that is meant, pack it without "
            "compression"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def read_entry(archive: zipfile.ZipFile, entry: str | zipfile.ZipInfo, limit: int) -> bytes:
    """A file of the zip, whole. Raise ArchiveError if it is not there, or is larger than `limit`, whatever it says."""
    path, name = archive.filename, entry if isinstance(entry, str) else entry.filename
    try:
        with zip_errors(path), archive.open(entry) as file:
            # A size is asked for, as without one zipfile expands everything before it looks at what was promised.
            data = file.read(limit + 1)
    except KeyError:
        raise ArchiveError(f"{path} holds no {name}") from None
    if len(data) > limit:
        raise ArchiveError(f"{path}: {name} is larger than {_megabytes(limit)}, the most that is read of such a file")
    return data


@contextmanager
def zip_errors(path: str | Path | None) -> Iterator[None]:
    """Everything zipfile may complain about becomes an ArchiveError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{path} is not a whole .mar (a zip file): {error}") from None


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open for reading; everything zipfile may complain about, now or while reading, becomes an ArchiveError."""
    try:
        if path.is_dir():
            raise ArchiveError(f"{path} is a folder: pack it as a .mar (torch-model-archiver without --archive-format)")
        with open(path, "rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                raise ArchiveError(
                    f"{path} is a tar.gz: pack it as a .mar (torch-model-archiver without --archive-format)"
                )
        with zip_errors(path), opened_zip(path) as archive:
            yield archive
    except FileNotFoundError:
        raise ArchiveError(f"there is no archive {path}") from None
    except OSError as error:
        raise ArchiveError(f"cannot work on {path}: {error}") from None


def opened_zip(path: Path) -> zipfile.ZipFile:
    """A zip file, open until it is closed. Raise ArchiveError before a table of contents beyond measure is read."""
    with open(path, "rb") as file:
        # What ZipFile itself asks first.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is not None and end[zipfile._ECD_SIZE] > _LARGEST_DIRECTORY:  # type: ignore[attr-defined]
        raise ArchiveError(f"{path} has a table of contents of over {_megabytes(_LARGEST_DIRECTORY)}; it is refused")
    try:
        with zip_errors(path):
            archive = zipfile.ZipFile(path)
    except (
        ValueError,
        struct.error,
    ) as error:  # a name that is not the UTF-8 it is said to be, an offset before the start
        raise ArchiveError(f"{path} is not a whole .mar (a zip file): {error}") from None
    for entry in archive.infolist():
        entry.filename = _meant(entry)
    archive.NameToInfo = {entry.filename: entry for entry in archive.infolist()}
    return archive


def _meant(entry: zipfile.ZipInfo) -> str:
    """An entry's name as Java reads it: UTF-8, whether the zip says so or not. The zip commands of Linux and macOS do
    not, and zipfile takes such names for code page 437. `./`, `a//b` and `a/./b` are what they are to a file system.
    The extra field with another name (0x7075) is nothing to Java.
    """
    name = entry.orig_filename
    if not entry.flag_bits & _UTF8_FLAG:
        with contextlib.suppress(UnicodeDecodeError):
            name = name.encode("cp437").decode("utf-8")
    plain = "/".join(part for part in name.split("/") if part not in ("", "."))
    if not plain:
        return name
    return ("/" if name.startswith("/") else "") + plain + ("/" if name.endswith("/") else "")


def _name_bytes(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8_FLAG else "cp437")


def _checked_names(archive: zipfile.ZipFile, path: Path) -> Iterator[str]:
    seen: set[str] = set()
    folders: set[str] = set()
    for entry in archive.infolist():
        name = entry.filename
        parts, is_folder = PurePosixPath(name).parts, name.endswith("/")
        if name.startswith("/") or ".." in parts:
            raise ArchiveError(f"{path} holds {name!r}, a path that leads out of the archive; it is refused whole")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ArchiveError(f"{path} holds the symbolic link {name!r}; put the file itself into it")
        if entry.flag_bits & _ENCRYPTED:
            raise ArchiveError(f"{path} is encrypted ({name!r}); TorchServe cannot read it either")
        if entry.compress_type not in _METHODS:
            raise ArchiveError(f"{path}: {name!r} is packed by a method that TorchServe cannot read; use deflate")
        if not (entry.flag_bits & _UTF8_FLAG or _is_utf8(_name_bytes(entry))):
            raise ArchiveError(f"{path}: the name {name!r} is not UTF-8, so TorchServe cannot read it; rename the file")
        if "\0" in name or not (parts or is_folder):
            raise ArchiveError(f"{path} holds {name!r}, which cannot be the name of a file; pack it again")
        if name in seen:
            raise ArchiveError(f"{path} holds {name!r} twice; pack it again")
        seen.add(name)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + is_folder))
        if not is_folder:
            yield name
    if both := sorted(folders & seen):
        raise ArchiveError(f"{path} holds {both[0]!r} as a file and as a folder; pack it again")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_headers(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ArchiveError unless TorchServe reads the same files. It reads a zip as a stream, header by header from the
    first byte to the first that is none, and never looks at the table of contents that zipfile goes by.
    """
    at = 0
    with zip_errors(path), open(path, "rb") as file:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
            if entry.header_offset != at:
                what = "begins with something else than a file" if at == 0 else f"has a gap before {entry.filename!r}"
                raise ArchiveError(f"{path} {what}, where TorchServe stops reading; pack it again")
            at = _after(file, entry, path)
        file.seek(at)
        if file.read(4) == _LOCAL[:4]:
            raise ArchiveError(
                f"{path} holds a file that is not in its table of contents and that TorchServe reads; pack it again"
            )


def _after(file: BinaryIO, entry: zipfile.ZipInfo, path: Path) -> int:
    """Where the next header is. Raise ArchiveError if this entry's says something else than the table of contents."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL):
        raise zipfile.BadZipFile(f"no header of {entry.filename!r} where its table of contents says")
    flags, method, crc, packed, size, name_length, extra_length = map(int, _LOCAL_HEADER.unpack(header)[1:])
    name, extra = file.read(name_length), file.read(extra_length)
    told = (entry.CRC, entry.compress_size, entry.file_size)
    behind = bool(flags & _SIZES_BEHIND)
    if behind and method == zipfile.ZIP_STORED:
        raise ArchiveError(
            f"{path}: {entry.filename!r} is stored without compression and has its size behind it, which TorchServe "
            "cannot read; pack it into a file instead of a pipe, or use deflate"
        )
    same = name == _name_bytes(entry) and method == entry.compress_type
    same = same and flags & _READ_FLAGS == entry.flag_bits & _READ_FLAGS
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    end = start + entry.compress_size
    if behind:
        length = _descriptor(file, end, told)
        same, end = same and length > 0, end + length
    else:
        size, packed = _large_sizes(extra) or (size, packed)
        same = same and (crc, packed, size) == told
    if not same:
        raise ArchiveError(
            f"{path}: what stands at {entry.filename!r} is not what the table of contents says, and TorchServe goes by "
            "the former; pack it again"
        )
    return end


def _descriptor(file: BinaryIO, at: int, told: tuple[int, int, int]) -> int:
    """The length of the checksum and sizes behind an entry's data, as Java reads them; 0 if they are not these."""
    file.seek(at)
    found = file.read(4 + 4 + 8 + 8)
    wide = max(told[1:]) > _LARGEST_NARROW
    sizes = struct.pack("<LQQ" if wide else "<LLL", *told)
    marked = b"PK\7\x08" + sizes
    return next((len(format_) for format_ in (marked, sizes) if found.startswith(format_)), 0)


def _large_sizes(extra: bytes) -> tuple[int, int] | None:
    """Size and packed size in a header's zip64 field, if it has one."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64 and 16 <= length <= len(extra) - 4:
            size, packed = struct.unpack_from("<QQ", extra, 4)
            return size, packed
        extra = extra[4 + length :]
    return None


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise ArchiveError(
            f"{path} has no {MANIFEST}: it is a zip but no model archive; make one with torch-model-archiver"
        )
    try:
        text = _text(read_entry(archive, MANIFEST, LARGEST_TEXT), f"{path}: {MANIFEST}")
        manifest = json.loads(text, parse_float=str)  # version 1.10 is not 1.1
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: {MANIFEST} is not JSON: {error}") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict):
        raise ArchiveError(f"{path}: {MANIFEST} says nothing of a model")
    for key in ("modelName", "handler"):
        if not isinstance(model.get(key), str) or not model[key]:
            raise ArchiveError(f"{path}: {MANIFEST} names no {key}")
    return dict(manifest)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveError(f"{what} is not UTF-8 text") from None
