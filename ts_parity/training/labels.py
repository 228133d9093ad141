"""Labels of request bodies: from a table, an array, or the names of folders. They only score.

Knows how people write tables (Excel too) and what a class index means. Knows nothing of handlers or models.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ts_parity.errors import TrainingError
from ts_parity.training import FOLDERS
from ts_parity.training.bodies import RequestBody, places_of, read_array, split_source
from ts_parity.wire import Array

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEPARATORS = (",", ";", "\t")
_SEEN_ALL = 20
"""So many bodies for each class: then one that none of them has is probably missing."""
_WORTH_TELLING = 0.2
"""Accuracy that other names for the classes would bring, from which on the labels are doubted."""


def read_labels(labels: Path, source: Path, bodies: Sequence[RequestBody], inputs: Sequence[RequestBody] = ()) -> Array:
    """-> (n,) class indices, (n,) numbers, or (n, m) numbers (boxes), one row for each of `bodies`, which come from
    `source`. Whole numbers come as integers.

    `labels` is a CSV with a header (file,label or file,x1,y1,x2,y2), an array FILE.npz/ARRAY in the order of the
    bodies, or the word `folders`: then all of `inputs` (none: of `bodies`) say which classes there are, since a part of
    them, kept back to be scored, may lack one. Raise TrainingError for what is missing or wrong.
    """
    if str(labels) == FOLDERS:
        return _of_folders(bodies, inputs or bodies)
    file, inside = split_source(labels)
    if file.suffix == ".npz":
        by_row = read_array(file, inside, "--labels")
        places = [place for place in places_of(source, bodies) if place is not None and place < len(by_row)]
        if len(places) != len(bodies):
            raise TrainingError(f"{labels} has {len(by_row)} labels, which do not belong to the bodies of {source}")
        return np.asarray(by_row[places])
    return _of_table(file, bodies, source)


def classes_of_folders(labels: Path | None, bodies: Sequence[RequestBody], inputs: Sequence[RequestBody]) -> int | None:
    """How many classes the folders name; None where it is not they that do."""
    return None if str(labels) != FOLDERS else len(_order_of_folders(bodies, inputs))


def doubts(labels: Array, rows: Array, said: Array, folders: int | None = None) -> list[str]:
    """What does not fit together, for the report: labels (n,) are class indices, `rows` (n, positions, scores) and
    `said` (n, positions) of the deployed model. `folders`: so many name the classes, by their place among themselves.
    """
    if labels.ndim != 1 or said.shape[1] != 1:
        return []
    classes, found, answers = max(2, rows.shape[-1]), np.unique(labels), said[:, 0]
    told = []
    if found[-1] >= classes or found[0] < 0:
        told.append(
            f"the labels have class {found[-1] if found[-1] >= classes else found[0]}, the model {classes} outputs"
        )
    elif folders not in (None, classes):
        told.append(
            f"{folders} folders name classes, and the model has {classes} outputs: one that lacks, or is no class, "
            "gives all that follow another number"
        )
    elif len(found) < classes and len(labels) >= _SEEN_ALL * classes:
        told.append(f"the scored bodies have {len(found)} classes, the model {classes} outputs")
    accuracy = float((answers == labels).mean())
    renamed = sum(int(np.bincount(answers[labels == each]).max()) for each in found) / len(labels)
    commonest = float(np.bincount(answers).max()) / len(labels)
    if renamed - accuracy > _WORTH_TELLING and renamed - commonest > _WORTH_TELLING:
        told.append(
            f"the deployed model is right about {accuracy:.1%} of the labels, and would be about {renamed:.1%} if its "
            "classes had other numbers: are the labels in the order of its outputs?"
        )
    return told


def _of_folders(bodies: Sequence[RequestBody], inputs: Sequence[RequestBody]) -> Array:
    scored = _folders(bodies)
    loose = [body.name for body, folder in zip(bodies, scored, strict=True) if folder == "."]
    if loose:
        raise TrainingError(f"--labels folders: {loose[0]} lies in no folder that could name its class")
    order = _order_of_folders(bodies, inputs)
    return np.array([order.index(folder) for folder in scored])


def _order_of_folders(bodies: Sequence[RequestBody], inputs: Sequence[RequestBody]) -> list[str]:
    scored, named = set(_folders(bodies)), set(_folders(inputs))
    strange = sorted(scored - named)
    if strange and named & scored:
        raise TrainingError(
            f"--labels folders: --score has the folder {strange[0]}, which --inputs has not; a class is the place of "
            "its folder among those of --inputs, so both need the same ones"
        )
    # Inputs in other folders, or in none, say nothing of classes.
    return sorted(scored if strange else named - {"."})


def _folders(bodies: Sequence[RequestBody]) -> list[str]:
    return [PurePosixPath(body.name).parent.as_posix() for body in bodies]


def _of_table(file: Path, bodies: Sequence[RequestBody], source: Path) -> Array:
    by_name = _read_table(file)
    # Names may be given relative to the CSV, as seen from its folder, or to the bodies' own folder.
    names = [(_plain(body.name), _plain(f"{source.name}/{body.name}")) for body in bodies]
    missing = [own for own, outer in names if own not in by_name and outer not in by_name]
    if missing:
        raise TrainingError(f"{file} has no label for {len(missing)} of {len(bodies)} bodies, such as {missing[0]}")
    found = [by_name[outer] if outer in by_name else by_name[own] for own, outer in names]
    if len({len(row) for row in found}) > 1:
        raise TrainingError(f"{file}: all bodies need equally many numbers")
    numbers = np.array(found)
    numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers
    return numbers.astype(np.int64) if (numbers == np.rint(numbers)).all() else numbers


def _plain(name: str) -> str:
    """A Mac writes an accent apart from its letter, and Windows folders with a backslash."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _read_table(file: Path) -> dict[str, list[float]]:
    text = _read_text(file)
    head, _, rest = text.partition("\n")
    if said := re.fullmatch(r'"?sep=(.)"?', head.strip(), re.IGNORECASE):  # to Excel
        head, text, separator = rest.partition("\n")[0], rest, said[1]
    else:
        separator = max(_SEPARATORS, key=head.count)
    by_name: dict[str, list[float]] = {}
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        if (next(rows, None) or [""])[0].strip().lower() != "file":
            raise TrainingError(f"{file}: expected the header file,label (or file and several numbers)")
        for row in rows:
            if any(cell.strip() for cell in row):
                name, where = _plain(row[0].strip()), f"{file} line {rows.line_num}"
                numbers = _numbers(row, separator, where)
                if by_name.setdefault(name, numbers) != numbers:
                    raise TrainingError(f"{where}: {name} had another label before; names include their folders")
    except csv.Error as error:
        raise TrainingError(f"{file} is no CSV: line {rows.line_num}: {error}") from None
    return by_name


def _numbers(row: Sequence[str], separator: str, where: str) -> list[float]:
    # Where commas stand in numbers, Excel separates cells by semicolons.
    cells = [cell.strip().replace(",", ".") if separator != "," else cell.strip() for cell in row[1:]]
    while len(cells) > 1 and not cells[-1]:  # columns that were emptied
        cells.pop()
    try:
        numbers = [float(cell) for cell in cells]
        if not numbers or not np.isfinite(numbers).all():
            raise ValueError
    except ValueError:
        raise TrainingError(f"{where}: expected file,label with a class index or numbers, got {[*row]}") from None
    return numbers


def _read_text(file: Path) -> str:
    """As Excel and others write it: UTF-8 or UTF-16 with a byte order mark, UTF-8, or what Windows calls ANSI."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TrainingError(f"cannot read the labels: {error}") from None
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    if data.startswith(b"PK"):
        raise TrainingError(f"{file} is a workbook; save the sheet as CSV UTF-8")
    raise TrainingError(f"{file} is not text in {marked or 'UTF-8 or Windows-1252'}; save it as CSV UTF-8")
