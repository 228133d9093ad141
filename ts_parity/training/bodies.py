"""Request bodies: what clients send, from a folder, a zip, an .npz of arrays or a file of JSON lines.

Knows files and formats. Knows nothing of handlers or models: what a body means is the handler's business.
"""

from __future__ import annotations

import io
import json
import mimetypes
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ts_parity.errors import TrainingError
from ts_parity.torchserve.mar import LARGEST_FILE, check_expansion, opened_zip, read_entry
from ts_parity.training import FORMATS, TrainSettings
from ts_parity.training.forms import ContentType, RequestBody, of_files, of_line, parse_content_type
from ts_parity.wire import Array

__all__ = ["RequestBody", "bodies_of", "list_bodies", "places_of", "read_array", "split_source"]

_CONTENT_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "raw": "application/octet-stream",
    "json": "application/json",
}
_JSON = parse_content_type("application/json")
_LINES = (".jsonl", ".ndjson")
_HINT = (
    "give a folder of files, a zip (FILE.zip or FILE.zip/FOLDER), an array of an .npz (FILE.npz/ARRAY with --body), or "
    "JSON lines (FILE.jsonl); each file, row or line is one request body"
)


def list_bodies(source: Path, body_format: str | None = None, content_type: str | None = None) -> list[RequestBody]:
    """Every body of `source`, in name order or in the order of the file. Raise TrainingError if there is none.

    `body_format`: how a row of an .npz array becomes a body, one of FORMATS. `content_type`: what clients send, where
    names of files do not tell; for forms see `forms`.
    """
    how = None if content_type is None else parse_content_type(content_type)
    file, inside = split_source(source)
    if file.is_dir():
        bodies = _from_folder(file)
    elif file.suffix == ".npz":
        bodies = _from_array(file, inside, body_format)
    elif file.suffix in _LINES:
        bodies = _from_lines(file, how)
    elif zipfile.is_zipfile(file):
        bodies = _from_zip(file, inside)
    else:
        raise TrainingError(f"--inputs {source} is no folder and no file of bodies; {_HINT}")
    if body_format is not None and file.suffix != ".npz":
        raise TrainingError(f"--body {body_format} is for an .npz of arrays; {source} holds bodies as they are")
    if not bodies:
        raise TrainingError(f"--inputs {source} holds no files; {_HINT}")
    return bodies if how is None or file.suffix in _LINES else of_files(bodies, how)


def bodies_of(settings: TrainSettings, source: Path) -> list[RequestBody]:
    """The bodies of `source`, read as the settings say."""
    return list_bodies(source, settings.body, settings.content_type)


def split_source(source: Path) -> tuple[Path, str]:
    """FILE.zip/FOLDER and FILE.npz/ARRAY -> the file, and what is inside it."""
    for parent in (source, *source.parents):
        if parent.is_file():
            return parent, source.relative_to(parent).as_posix() if parent != source else ""
    return source, ""


def _from_folder(folder: Path) -> list[RequestBody]:
    files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return [
        RequestBody(name.as_posix(), mimetypes.guess_type(name.name)[0], files[name].read_bytes)
        for name in sorted(files)
        if _is_meant(PurePosixPath(name.as_posix()))
    ]


def _is_meant(name: PurePosixPath) -> bool:
    """Excludes what editors, notebooks and file managers leave behind, such as hidden files and folders."""
    leftover = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return not leftover and name.name not in ("Thumbs.db", "desktop.ini")


def _from_zip(file: Path, inside: str) -> list[RequestBody]:
    opened = opened_zip(file)  # stays open as long as a body refers to it
    prefix = f"{inside}/" if inside else ""

    def reader(entry: zipfile.ZipInfo) -> Callable[[], bytes]:
        return lambda: read_entry(opened, entry, LARGEST_FILE)

    # By entry, not by name: a zip may hold one name twice, and both are bodies.
    entries = [entry for entry in opened.infolist() if entry.filename.startswith(prefix) and not entry.is_dir()]
    named = [(entry.filename.removeprefix(prefix), entry) for entry in entries]
    return [
        RequestBody(name, mimetypes.guess_type(name)[0], reader(entry))
        for name, entry in sorted(named, key=lambda pair: pair[0])
        if _is_meant(PurePosixPath(name))
    ]


def places_of(source: Path, bodies: Sequence[RequestBody]) -> list[int | None]:
    """Which row of an array each body is, or which of the JSON lines, counted from 0. None: it is neither."""
    file, _ = split_source(source)
    if file.suffix not in _LINES:
        return [int(body.name) if body.name.isdigit() else None for body in bodies]
    # Lines are called by their number in the file, where empty ones may stand between them.
    lines = [str(number) for number, line in enumerate(file.read_bytes().splitlines(), start=1) if line.strip()]
    place = {name: at for at, name in enumerate(lines)}
    return [place.get(body.name) for body in bodies]


def _from_lines(file: Path, how: ContentType | None) -> list[RequestBody]:
    bodies = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"{file} line {number} is not JSON: {error}") from None
        bodies.append(of_line(number, line, value, how or _JSON))
    return bodies


def _from_array(file: Path, name: str, body_format: str | None) -> list[RequestBody]:
    array = read_array(file, name, "--inputs")
    if body_format is None:
        raise TrainingError(
            f"{file} holds arrays: say how a row becomes a request body with --body {'|'.join(FORMATS)}"
        )
    write = _WRITERS[body_format]

    def reader(row: int) -> Callable[[], bytes]:
        return lambda: write(array[row])

    return [RequestBody(str(row), _CONTENT_TYPES[body_format], reader(row)) for row in range(len(array))]


def read_array(file: Path, name: str, option: str) -> Array:
    try:
        with np.load(file, allow_pickle=False) as opened:
            if not name and len(opened.files) == 1:
                name = opened.files[0]
            if name not in opened.files:
                raise TrainingError(
                    f"{option} {file}: name one of its arrays, {', '.join(f'{file}/{n}' for n in opened.files)}"
                )
            check_expansion(file, opened.zip.getinfo(f"{name}.npy").file_size)
            return np.asarray(opened[name])
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{option}: cannot read {file}: {error}") from None


def _png(row: Array) -> bytes:
    from PIL import Image

    if row.dtype != np.uint8 or row.ndim not in (2, 3) or (row.ndim == 3 and row.shape[2] not in (3, 4)):
        raise TrainingError(
            f"--body png needs uint8 images, (height, width) or (height, width, 3), not {row.dtype} {row.shape}"
        )
    written = io.BytesIO()
    Image.fromarray(row).save(written, "png")
    return written.getvalue()


def _npy(row: Array) -> bytes:
    written = io.BytesIO()
    np.save(written, row)
    return written.getvalue()


_WRITERS: dict[str, Callable[[Array], bytes]] = {
    "png": _png,
    "npy": _npy,
    "raw": lambda row: np.ascontiguousarray(row).tobytes(),
    "json": lambda row: json.dumps(row.tolist()).encode(),
}
