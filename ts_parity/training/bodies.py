"""Request bodies: what clients send, from a folder, a zip, an .npz of arrays or a file of JSON lines; and their labels.

Bodies need no labels; labels, where there are some, only score. Knows files and formats. Knows nothing of handlers or
models: what a body means is the handler's business.
"""

from __future__ import annotations

import csv
import io
import json
import mimetypes
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ts_parity.errors import TrainingError
from ts_parity.torchserve.mar import LARGEST_FILE, check_expansion, opened_zip, read_entry
from ts_parity.training import FORMATS
from ts_parity.wire import Array

FOLDERS = "folders"
"""Labels from folder names: a body's class is the place of its folder's name among all of them, sorted."""
_CONTENT_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "raw": "application/octet-stream",
    "json": "application/json",
}
_HINT = (
    "give a folder of files, a zip (FILE.zip or FILE.zip/FOLDER), an array of an .npz (FILE.npz/ARRAY with --body), or "
    "JSON lines (FILE.jsonl); each file, row or line is one request body"
)


@dataclass(frozen=True)
class Body:
    """One request body, and the content type that a client would send with it. `read` gives its bytes."""

    name: str
    content_type: str | None
    read: Callable[[], bytes]


def list_bodies(source: Path, body_format: str | None = None) -> list[Body]:
    """Every body of `source`, in name order or in the order of the file. Raise TrainingError if there is none.

    `body_format`: how a row of an .npz array becomes a body, one of FORMATS.
    """
    file, inside = _split(source)
    if file.is_dir():
        bodies = _from_folder(file)
    elif file.suffix == ".npz":
        bodies = _from_array(file, inside, body_format)
    elif file.suffix in (".jsonl", ".ndjson"):
        bodies = _from_lines(file)
    elif zipfile.is_zipfile(file):
        bodies = _from_zip(file, inside)
    else:
        raise TrainingError(f"--inputs {source} is no folder and no file of bodies; {_HINT}")
    if body_format is not None and file.suffix != ".npz":
        raise TrainingError(f"--body {body_format} is for an .npz of arrays; {source} holds bodies as they are")
    if not bodies:
        raise TrainingError(f"--inputs {source} holds no files; {_HINT}")
    return bodies


def read_labels(labels: Path, source: Path, bodies: Sequence[Body]) -> Array:
    """-> (n,) class indices, or (n, m) numbers (boxes), one row for each body of `source` that is listed.

    `labels` is a CSV with a header (file,label or file,x1,y1,x2,y2), an array FILE.npz/ARRAY in the order of the
    bodies, or the word `folders`. Raise TrainingError for what is missing or wrong.
    """
    if str(labels) == FOLDERS:
        return _labels_of_folders(bodies)
    file, inside = _split(labels)
    if file.suffix == ".npz":
        by_row = _array(file, inside, "--labels")
        rows = [int(body.name) for body in bodies if body.name.isdigit()]
        if len(rows) != len(bodies) or max(rows, default=0) >= len(by_row):
            raise TrainingError(f"{labels} has {len(by_row)} labels, which do not belong to the bodies of {source}")
        return np.asarray(by_row[rows])
    return _labels_of_csv(file, bodies, source)


def _split(source: Path) -> tuple[Path, str]:
    """FILE.zip/FOLDER and FILE.npz/ARRAY -> the file, and what is inside it."""
    for parent in (source, *source.parents):
        if parent.is_file():
            return parent, source.relative_to(parent).as_posix() if parent != source else ""
    return source, ""


def _from_folder(folder: Path) -> list[Body]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [Body(p.relative_to(folder).as_posix(), mimetypes.guess_type(p.name)[0], p.read_bytes) for p in files]


def _from_zip(file: Path, inside: str) -> list[Body]:
    opened = opened_zip(file)  # stays open as long as a body refers to it
    prefix = f"{inside}/" if inside else ""
    names = sorted(
        name
        for name in opened.namelist()
        if name.startswith(prefix) and not name.endswith("/") and not PurePosixPath(name).name.startswith(".")
    )

    def reader(name: str) -> Callable[[], bytes]:
        return lambda: read_entry(opened, name, LARGEST_FILE)

    return [Body(name.removeprefix(prefix), mimetypes.guess_type(name)[0], reader(name)) for name in names]


def _from_lines(file: Path) -> list[Body]:
    bodies = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            json.loads(line)
        except ValueError as error:
            raise TrainingError(f"{file} line {number} is not JSON: {error}") from None
        bodies.append(Body(f"{number}", "application/json", lambda line=line: line))  # type: ignore[misc]
    return bodies


def _from_array(file: Path, name: str, body_format: str | None) -> list[Body]:
    array = _array(file, name, "--inputs")
    if body_format is None:
        raise TrainingError(
            f"{file} holds arrays: say how a row becomes a request body with --body {'|'.join(FORMATS)}"
        )
    write = _WRITERS[body_format]

    def reader(row: int) -> Callable[[], bytes]:
        return lambda: write(array[row])

    return [Body(str(row), _CONTENT_TYPES[body_format], reader(row)) for row in range(len(array))]


def _array(file: Path, name: str, option: str) -> Array:
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


def _labels_of_folders(bodies: Sequence[Body]) -> Array:
    folders = [PurePosixPath(body.name).parent.as_posix() for body in bodies]
    loose = [body.name for body, folder in zip(bodies, folders, strict=True) if folder == "."]
    if loose:
        raise TrainingError(f"--labels folders: {loose[0]} lies in no folder that could name its class")
    classes = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return np.array([classes[folder] for folder in folders])


def _labels_of_csv(file: Path, bodies: Sequence[Body], source: Path) -> Array:
    by_name: dict[str, list[float]] = {}
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = csv.reader(opened)
            if (next(rows, None) or [""])[0] != "file":
                raise TrainingError(f"{file}: expected the header file,label (or file and several numbers)")
            for line, row in enumerate(rows, start=2):
                try:
                    by_name[row[0]] = [float(cell) for cell in row[1:]]
                    if len(row) < 2 or (len(row) == 2 and not row[1].strip().isdigit()):
                        raise ValueError
                except (ValueError, IndexError):
                    raise TrainingError(
                        f"{file} line {line}: expected file,label with a class index (or several numbers), got {row}"
                    ) from None
    except OSError as error:
        raise TrainingError(f"cannot read the labels: {error}") from None
    # Names may be given relative to the CSV, as seen from its folder, or to the bodies' own folder.
    names = [(body.name, f"{source.name}/{body.name}") for body in bodies]
    missing = [own for own, outer in names if own not in by_name and outer not in by_name]
    if missing:
        raise TrainingError(f"{file} has no label for {len(missing)} of {len(bodies)} bodies, such as {missing[0]}")
    found = [by_name[outer] if outer in by_name else by_name[own] for own, outer in names]
    if len({len(row) for row in found}) > 1:
        raise TrainingError(f"{file}: all bodies need equally many numbers")
    return np.array([row[0] for row in found], dtype=np.int64) if len(found[0]) == 1 else np.array(found)
