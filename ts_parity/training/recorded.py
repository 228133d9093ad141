"""Recorded pairs as arrays: which numbers a service is given and which it answers, and in which form.

Two kinds: bodies of the Open Inference Protocol (JSON, or JSON and binary tensors), and any other JSON with arrays of
numbers, found by JSON pointers. Most pairs have one form; the others are left out and counted. Knows pairs, JSON and
arrays. Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ts_parity.errors import TrainingError, with_article
from ts_parity.pairs import Pair, read_pairs
from ts_parity.proxy.serving.comparison import describes_the_run
from ts_parity.wire import Array

OPEN_INFERENCE, JSON = "open-inference", "json"
DATATYPES: Mapping[str, str] = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Of the protocol, those that are numbers."""
MOST_OTHERS = 0.1
"""Pairs of other forms than the commonest; of more, nobody knows which form is meant."""
MOST_CONTRADICTIONS = 0.1
"""Of requests that came twice, those with two different answers; of more, there is nothing to learn."""
FEWEST = 50
"""Different requests."""
_LARGEST = 1e30
"""What is larger overflows when it is squared."""
_LABELS = 1000
"""Values that may follow from the largest output; of more, they are no names of classes."""


@dataclass(frozen=True)
class Tensor:
    """`name`: of the protocol, or a JSON pointer. `shape`: of one query, without an axis of queries."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        return not self.datatype.startswith("FP")


@dataclass(frozen=True)
class RecordedAnswers:
    """How an answer in JSON looks: the first one that was recorded. `follows`: pointers to values that differ, and for
    each class (the place of the largest output) what stands there. `largest`: pointers to the largest output itself.
    `unsaid`: pointers to what describes the run, such as a request id: a student says null there.
    """

    example: Any = None
    follows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    largest: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordedPairs:
    """given (n, numbers) and said (n, numbers): one query a row, the tensors' numbers one after the other. `keys`: of
    each query, the same for the same request. `batched`: a request has an axis of queries, of at most `most_rows`.
    """

    kind: str
    model: str
    path: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batched: bool
    most_rows: int
    given: Array
    said: Array
    keys: tuple[tuple[str, ...], ...]
    answers: RecordedAnswers
    pairs: int
    left_out: tuple[str, ...] = ()
    """Why pairs were left out, and how many."""
    left_out_count: int = 0
    warnings: tuple[str, ...] = ()


class _Unusable(Exception):
    """Why a pair cannot be used."""


@dataclass(frozen=True)
class _Arrays:
    """Of one pair: name -> datatype and array."""

    given: Mapping[str, tuple[str, Array]]
    said: Mapping[str, tuple[str, Array]]
    answer: Any = None

    @property
    def rows(self) -> int | None:
        """How many queries it may hold: the first side of every array, if they have one in common."""
        shapes = [array.shape for _, array in (*self.given.values(), *self.said.values())]
        sides = {shape[0] for shape in shapes if len(shape) > 1}
        return sides.pop() if len(sides) == 1 and all(len(shape) > 1 for shape in shapes) else None

    def form(self) -> tuple[Any, ...]:
        start = 0 if self.rows is None else 1
        return tuple(
            tuple((name, datatype, len(array.shape), array.shape[start:]) for name, (datatype, array) in side.items())
            for side in (self.given, self.said)
        )


def read_recorded(
    files: Sequence[Path], model: str | None = None, given: Sequence[str] = (), said: Sequence[str] = ()
) -> RecordedPairs:
    """`model`: NAME or NAME/VERSION of the pairs to take. `given`, `said`: JSON pointers to the numbers of a request
    and of an answer; by default those that can be meant. Raise TrainingError or ConfigError, each saying what to do.
    """
    pairs = _of_one_model([pair for file in files for pair in read_pairs(file)], files, model)
    is_open = _is_open_inference(pairs[0])
    if is_open and (given or said):
        raise TrainingError("--input and --output are for JSON of no protocol; these pairs name their tensors")
    read = _open_inference if is_open else _Pointers.of(pairs, given, said)
    usable, reasons = [], Counter[str]()
    for pair in pairs:
        try:
            usable.append(read(pair))
        except _Unusable as why:
            reasons[str(why)] += 1
    if not usable:
        raise TrainingError(f"none of the {len(pairs)} pairs can be learned from: {_told(reasons)}")
    usable, others = _of_one_form(usable)
    reasons.update(others)
    left_out = len(pairs) - len(usable)
    if left_out > MOST_OTHERS * len(pairs):
        raise TrainingError(
            f"{left_out} of {len(pairs)} pairs cannot be learned from together with the others: {_told(reasons)}. "
            "Leave lines of the file out, or say with --protects which model is meant"
        )
    told = _recorded(usable, pairs[0], OPEN_INFERENCE if is_open else JSON)
    names = tuple(f"{why} ({count})" for why, count in reasons.most_common())
    return replace(told, pairs=len(pairs), left_out=names, left_out_count=left_out)


def _told(reasons: Counter[str]) -> str:
    return "; ".join(f"{why} ({count})" for why, count in reasons.most_common(3))


def _of_one_model(pairs: list[Pair], files: Sequence[Path], model: str | None) -> list[Pair]:
    shown = ", ".join(map(str, files))
    if not pairs:
        raise TrainingError(f"there are no pairs in {shown}; record some with ts-parity record")
    known = sorted({pair.model for pair in pairs})
    chosen = [pair for pair in pairs if model in (None, pair.model, pair.model.rpartition("/")[0])]
    if not chosen:
        raise TrainingError(f"{shown} has no pairs of {model}; there are {', '.join(known)}")
    wanted = sorted({pair.model for pair in chosen})
    if len(wanted) > 1:
        raise TrainingError(f"{shown} has pairs of {', '.join(wanted)}: say with --protects which is meant")
    return chosen


def _of_one_form(usable: list[_Arrays]) -> tuple[list[_Arrays], Counter[str]]:
    """-> those of the commonest form, and the forms of the others."""
    forms = Counter(each.form() for each in usable)
    common = forms.most_common(1)[0][0]
    others = Counter({f"another form, {_form_told(form)}": n for form, n in forms.items() if form != common})
    return [each for each in usable if each.form() == common], others


def _form_told(form: tuple[Any, ...]) -> str:
    sides = (
        "+".join(f"{name or 'the body'} {datatype} {list(shape)}" for name, datatype, _, shape in side) for side in form
    )
    return " -> ".join(sides)


def _recorded(usable: list[_Arrays], first: Pair, kind: str) -> RecordedPairs:
    counts = [each.rows for each in usable]
    most = max(count or 1 for count in counts)
    # An axis whose length never changes may be anything; that of a single query is one of queries.
    batched = counts[0] is not None and (len(set(counts)) > 1 or most == 1)
    tensors = []
    for side in ("given", "said"):
        arrays: Mapping[str, tuple[str, Array]] = getattr(usable[0], side)
        tensors.append(
            tuple(Tensor(name, kind_, array.shape[1 if batched else 0 :]) for name, (kind_, array) in arrays.items())
        )
    given = np.concatenate([_rows(each.given, batched) for each in usable]).astype(np.float32)
    said = np.concatenate([_rows(each.said, batched) for each in usable])
    keys = tuple((hashlib.sha256(row.tobytes()).hexdigest(),) for row in given)
    if len(different := set(keys)) < FEWEST:
        of = "" if len(keys) == len(different) else f", {len(different)} of them different,"
        raise TrainingError(
            f"{len(keys)} queries{of} are too few to learn from: record some thousands, {FEWEST} at least"
        )
    outputs = _typed(tensors[1], said) if kind == JSON else tensors[1]
    answers, warnings = RecordedAnswers(), _contradictions(keys, said)
    if kind == JSON:
        answers = _answers([each.answer for each in usable], usable, outputs, batched)
    return RecordedPairs(
        kind, first.model, first.path, tensors[0], outputs, batched, most, given, said.astype(np.float32), keys,
        answers, len(usable), warnings=tuple(warnings),
    )  # fmt: skip


def _rows(arrays: Mapping[str, tuple[str, Array]], batched: bool) -> Array:
    """(queries, numbers)"""
    flat = [array.reshape(len(array) if batched else 1, -1).astype(np.float64) for _, array in arrays.values()]
    return np.concatenate(flat, axis=1)


def _typed(outputs: tuple[Tensor, ...], said: Array) -> tuple[Tensor, ...]:
    """JSON has one kind of number; those that are whole in every answer are whole in a student's."""
    typed, at = [], 0
    for each in outputs:
        numbers = said[:, at : at + each.size]
        typed.append(replace(each, datatype="INT64") if (numbers == np.rint(numbers)).all() else each)
        at += each.size
    return tuple(typed)


def _contradictions(keys: Sequence[tuple[str, ...]], said: Array) -> list[str]:
    """Raise TrainingError if the same request mostly gets different answers."""
    first: dict[tuple[str, ...], int] = {}
    again, differing = 0, 0
    spread = np.maximum(said.std(0), 1e-9)
    for row, key in enumerate(keys):
        if (before := first.setdefault(key, row)) != row:
            again += 1
            differing += bool((np.abs(said[row] - said[before]) > 0.01 * spread + 1e-6 * np.abs(said[before])).any())
    if not differing:
        return []
    told = f"{differing} of {again} requests that came again had another answer than the first time"
    if differing > max(3, MOST_CONTRADICTIONS * again):
        raise TrainingError(
            f"{told}: the service looks at more than these numbers (--input names others), or is not repeatable, and "
            "then nobody can answer in its place"
        )
    return [told]


# ---- the Open Inference Protocol -------------------------------------------------------------------------------------


def _is_open_inference(pair: Pair) -> bool:
    if re.fullmatch(r"/v2/models/.+/infer", pair.path):
        return True
    try:
        told, _ = _json_and_rest(pair.body)
    except _Unusable:
        return False
    inputs = told.get("inputs") if isinstance(told, dict) else None
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict) and "datatype" in inputs[0]


def _json_and_rest(body: bytes) -> tuple[Any, bytes]:
    """A body of JSON, and the binary tensors behind it. (Its length came in a header, which is not recorded.)"""
    try:
        return json.loads(body), b""
    except (ValueError, RecursionError):
        pass
    try:
        # Every byte is a letter here, and none of those beyond ASCII means anything in JSON: the end is found in bytes.
        text = body.decode("latin-1")
        start = len(text) - len(text.lstrip(" \t\r\n"))
        _, end = json.JSONDecoder().raw_decode(text, start)
        return json.loads(body[start:end]), body[end:]
    except (ValueError, RecursionError):
        raise _Unusable("the body is no JSON") from None


def _open_inference(pair: Pair) -> _Arrays:
    given, said = (_tensors(body, side) for body, side in ((pair.body, "inputs"), (pair.answer, "outputs")))
    return _Arrays(given, said)


def _tensors(body: bytes, side: str) -> dict[str, tuple[str, Array]]:
    told, rest = _json_and_rest(body)
    listed = told.get(side) if isinstance(told, dict) else None
    if not isinstance(listed, list) or not listed:
        raise _Unusable(f"there are no {side} in it, so it is not of the Open Inference Protocol")
    found = {}
    for each in listed:
        try:
            name, datatype, shape = str(each["name"]), str(each["datatype"]), tuple(map(int, each["shape"]))
            size = each.get("parameters", None) or {}
            taken = size.get("binary_data_size")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _Unusable(f"one of its {side} lacks a name, a datatype or a shape") from None
        if datatype not in DATATYPES:
            raise _Unusable(f"{side[:-1]} {name} is {datatype}: a student learns numbers")
        dtype = np.dtype(DATATYPES[datatype])
        if taken is not None:
            array, rest = _binary(rest[: int(taken)], dtype, name), rest[int(taken) :]
        else:
            with np.errstate(over="ignore"):
                array = _numbers(each.get("data"), name).ravel().astype(dtype)
        _checked(array, name)
        if array.size != math.prod(shape):
            raise _Unusable(f"{side[:-1]} {name} has {array.size} numbers and the shape {list(shape)}")
        found[name] = datatype, array.reshape(shape)
    return found


def _binary(data: bytes, dtype: Any, name: str) -> Array:
    if len(data) % dtype.itemsize:
        raise _Unusable(f"the binary data of {name} is cut off")
    return np.frombuffer(data, dtype)


def _numbers(value: Any, name: str) -> Array:
    """Raise _Unusable unless these are numbers, as many in each row."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise _Unusable(f"{name or 'the body'} has rows of different lengths") from None
    if array.dtype.kind not in "iufb" or not array.size:
        raise _Unusable(f"{name or 'the body'} holds no numbers")
    return array


def _checked(array: Array, name: str) -> Array:
    numbers = array.astype(np.float64)
    if not (np.abs(numbers) < _LARGEST).all():
        raise _Unusable(f"{name or 'the body'} holds numbers that are not finite, or over {_LARGEST:g}")
    return array


# ---- any other JSON --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pointers:
    """Where the numbers stand. Called with a pair: -> its arrays."""

    given: tuple[str, ...]
    said: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair], given: Sequence[str], said: Sequence[str]) -> _Pointers:
        """Those that were named, or those that can be meant. Raise TrainingError."""
        for pointer in (*given, *said):
            if pointer and not pointer.startswith("/"):
                raise TrainingError(f"a JSON pointer begins with /, such as /{pointer}; empty, it means the whole body")
        bodies = [(pair.body, pair.answer) for pair in pairs[:200]]
        asked, answered = (_parsed([body[side] for body in bodies]) for side in (0, 1))
        if not asked or not answered:
            kind = pairs[0].content_type or "no content type"
            raise TrainingError(
                f"the bodies are no JSON (their content type: {kind}). From pairs a student learns tensors of the Open "
                "Inference Protocol and arrays of numbers in JSON; for images and texts train from an --archive"
            )
        return cls(tuple(given) or _inputs(asked), tuple(said) or _outputs(answered))

    def __call__(self, pair: Pair) -> _Arrays:
        answer = _loaded(pair.answer)
        given, said = (
            {pointer: self._array(value, pointer) for pointer in pointers}
            for value, pointers in ((_loaded(pair.body), self.given), (answer, self.said))
        )
        return _Arrays(given, said, answer)

    def _array(self, value: Any, pointer: str) -> tuple[str, Array]:
        try:
            found = at(value, pointer)
        except LookupError:
            raise _Unusable(f"it has no {pointer}") from None
        array = _checked(_numbers(found, pointer), pointer)
        return "FP64", array.astype(np.float64)


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _Unusable("the body is no JSON") from None


def _parsed(bodies: Sequence[bytes]) -> list[Any]:
    parsed = []
    for body in bodies:
        try:
            parsed.append(_loaded(body))
        except _Unusable:
            continue
    return parsed


def at(value: Any, pointer: str) -> Any:
    """RFC 6901. Raise LookupError."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and key.isdecimal():
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value[key]
        else:
            raise LookupError(pointer)
    return value


def leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Pointers to arrays of numbers as wholes, and to everything else that has no parts."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and value and not is_numbers(value):
        for place, part in enumerate(value):
            yield from leaves(part, f"{pointer}/{place}")
    else:
        yield pointer, value


def is_numbers(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, list)):
        return False
    try:
        return np.asarray(value).dtype.kind in "iuf"
    except (ValueError, TypeError, OverflowError):
        return False


def _found(values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """-> pointers to arrays of numbers, and to lone numbers that are not always the same."""
    seen: dict[str, set[str]] = {}
    arrays = dict[str, None]()
    for value in values:
        for pointer, leaf in leaves(value):
            if is_numbers(leaf):
                seen.setdefault(pointer, set()).add(repr(leaf))
                if isinstance(leaf, list):
                    arrays[pointer] = None
    lone = [pointer for pointer, told in seen.items() if pointer not in arrays and len(told) > 1]
    return list(arrays), lone


def _inputs(values: Sequence[Any]) -> tuple[str, ...]:
    arrays, lone = _found(values)
    if len(arrays) == 1:
        return (arrays[0],)
    if not arrays and lone:
        return tuple(lone)
    raise _doubtful("request", "--input", [*arrays, *lone])


def _outputs(values: Sequence[Any]) -> tuple[str, ...]:
    arrays, lone = _found(values)
    lone = [pointer for pointer in lone if not describes_the_run(pointer.rpartition("/")[2])]
    found = arrays or lone
    if len(found) != 1:
        raise _doubtful("answer", "--output", [*arrays, *lone])
    return (found[0],)


def _doubtful(what: str, flag: str, found: Sequence[str]) -> TrainingError:
    if not found:
        return TrainingError(
            f"no numbers that differ from {what} to {what} were found; {flag} POINTER says where they are"
        )
    shown = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
    return TrainingError(f"several parts of {with_article(what)} are numbers: {shown}. Say with {flag} which are meant")


def _answers(
    answers: Sequence[Any], usable: Sequence[_Arrays], outputs: tuple[Tensor, ...], batched: bool
) -> RecordedAnswers:
    """Raise TrainingError for what differs from answer to answer and does not follow from the outputs."""
    names = {each.name for each in outputs}
    values = [{pointer: leaf for pointer, leaf in leaves(answer) if pointer not in names} for answer in answers]
    if batched:  # of several queries in one, other lists may be as long as the outputs'; which is not known
        values = [each for each, arrays in zip(values, usable, strict=True) if arrays.rows == 1] or values[:1]
        usable = [each for each in usable if each.rows == 1]
    lone = len(outputs) == 1 and (not usable or all(len(each.said) == 1 for each in usable))
    rows = [next(iter(each.said.values()))[1].ravel() for each in usable] if lone else []
    follows: dict[str, dict[str, Any]] = {}
    largest, unsaid = [], []
    for pointer in dict.fromkeys(pointer for each in values for pointer in each):
        told = [each.get(pointer, _ABSENT) for each in values]
        if all(each == told[0] and type(each) is type(told[0]) for each in told):
            continue
        if describes_the_run(pointer.rpartition("/")[2]):
            unsaid.append(pointer)
        elif rows and _are_largest(told, rows):
            largest.append(pointer)
        elif rows and (table := _table(told, rows)):
            follows[pointer] = table
        else:
            raise TrainingError(
                f"{pointer} differs from answer to answer and does not follow from {', '.join(sorted(names))}, so a "
                "student could not say it"
            )
    return RecordedAnswers(answers[0], follows, tuple(largest), tuple(unsaid))


_ABSENT = object()


def _are_largest(told: Sequence[Any], rows: Sequence[Array]) -> bool:
    return all(
        isinstance(each, float | int) and not isinstance(each, bool) and math.isclose(each, row.max(), rel_tol=1e-3)
        for each, row in zip(told, rows, strict=True)
    )


def _table(told: Sequence[Any], rows: Sequence[Array]) -> dict[str, Any]:
    """What stands there for each class; empty if it does not follow from it."""
    table: dict[str, Any] = {}
    for each, row in zip(told, rows, strict=True):
        if each is _ABSENT or table.setdefault(str(int(row.argmax())), each) != each:
            return {}
    return table if 1 < len(table) <= _LABELS else {}
