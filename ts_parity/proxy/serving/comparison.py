"""Whether two answers to one query agree.

There are two tests. For a lossless protection and for second copies: are the answers equal, up to the last digits,
which batching and other kernels change? For other codes: is it the same decision? If neither can be told, the finding
is unknown and gives the reason; equal bytes always agree.

    part of the answer        equal                                    same decision
    ------------------------  ---------------------------------------  ---------------------------------------
    status                    equal                                    equal
    two errors                unknown: errors prove nothing            the same
    JSON numbers              whole ones equal, others to 1e-3         lists and dicts of them: the same largest
    JSON keys                 equal                                    equal
    JSON strings              equal but for the digits of numbers      equal
    ranked lists              equal, whatever comes first of a tie     the same first
    a number alone            to 1e-3                                  to a tenth
    numbers, with a tolerance -                                        to that; the rest as if equal
    other text                equal but for the digits of numbers      equal
    gzip                      what is in it                            what is in it
    other bytes               equal                                    unknown, unless equal
    content type, encoding    equal                                    equal
    other headers             equal if ever, see ResponseComparer      ignored, unless there is no body

Numbers, boxes and embeddings are no decisions. A protection for such a model declares how far off it usually is
(`tolerance`: the root mean square over all numbers of an answer), and its numbers are then compared by that alone.

Pure. Knows responses. Knows nothing of queries, or of what follows from a finding.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ts_parity.engine import Finding
from ts_parity.proxy.http.messages import Response

CLOSE: Final = 1e-3
"""A batch of two runs other kernels than one request, with other roundings; half precision has three digits."""
SMALLEST: Final = 1e-6
SIMILAR: Final = 0.1
"""A lone number is no decision. A student's price or share within a tenth counts as the same."""
LARGEST: Final = 256 * 1024
"""Bodies up to this size are parsed, which takes milliseconds; larger ones agree only if they are equal."""
MOST_HEADERS: Final = 64

_TYPES: Final = ("content-type", "content-encoding")
# Headers that change with each response, or are added between the model and its client.
_PER_RESPONSE: Final = frozenset(
    {
        *("x-request-id", "date", "age", "expires", "pragma", "cache-control", "content-length", "server", "via"),
        *("connection", "keep-alive", "transfer-encoding", "set-cookie", "etag", "last-modified", "server-timing"),
        *("traceparent", "tracestate", "x-ts-parity"),
    }
)
# Fields, as handlers spell them, that describe the run and not the input.
_OF_THE_RUN: Final = frozenset(
    {
        *("requestid", "reqid", "traceid", "uuid", "timestamp", "createdat", "inferencetime", "inferencetimems"),
        *("inferencems", "latency", "latencyms", "elapsed", "elapsedms", "processingtime", "processingtimems"),
        *("durationms", "tookms", "responsetime", "responsetimems", "executiontime", "predictiontime", "servertime"),
        *("starttime", "endtime", "totaltime", "responseid", "correlationid", "spanid"),
        *("hostname", "podname", "nodename", "servedby", "instanceid", "workerid", "workerpid", "pid", "gpuid"),
    }
)
# Values that naturally differ from answer to answer: numbers (times), instants, ids.
_VARYING_VALUE: Final = re.compile(r"[0-9a-fA-F-]{16,}|\d{4}-\d\d-\d\d[T ].*|\w{3}, \d\d \w{3} .*")
_NUMBER: Final = re.compile(r"(?=.*\d)[\d.,:+\-eE\s]+(ms|s|us)?")
# Headers that describe the run, judged by their names where the body is empty.
_NAMES_THE_RUN: Final = re.compile(
    r"time|latency|duration|elapsed|took|trace|uuid|host|server|instance|worker|node|pod|queue|memory|[-_]?(id|ms|us|ns)$"
)
_NOTHING: Final = frozenset({b"", b"{}", b"[]", b"null", b'""', b"[{}]", b"[null]"})
"""Bodies that say nothing about the input."""
_GZIP: Final = b"\x1f\x8b"
# It begins where digits do: from each of a long row of them it would look through all the rest.
_DECIMAL: Final = re.compile(r"((?:[-+]|(?<!\d))\d+(?:\.\d*(?:[eE][-+]?\d+)?|[eE][-+]?\d+))")
_NO_JSON: Final = object()


Meaning = Callable[[Response], Any]
"""What an answer says, as JSON has it. Raises ValueError if it cannot be read."""


class Comparison(NamedTuple):
    finding: Finding
    why: str = ""


AGREES: Final = Comparison(Finding.AGREED)
_TOO_LARGE: Final = Comparison(Finding.UNKNOWN, f"over {LARGEST} bytes, which is too much to compare")


class ResponseComparer:
    """Compares the answers of one pool, and remembers which headers were ever equal in two of them.

    A header that never was equal, such as an instance's name, describes the run; one that was describes the answer.
    Where bodies are empty, headers are all there is: then numbers count too, and while a header was never equal, the
    finding is unknown.
    """

    def __init__(self, meaning: Meaning | None = None) -> None:
        """`meaning`: how the kind of server says that an answer is read; None: its JSON, else its bytes."""
        self._meaning = meaning
        self._steady: set[str] = set()

    def compare(self, own: Response, other: Response, lossless: bool, tolerance: float | None = None) -> Comparison:
        """`own` is the deployed model's answer. The order matters only for what is remembered."""
        comparison = compare(own, other, lossless, tolerance, self._meaning)
        if comparison.finding is not Finding.AGREED:
            return comparison
        empty = own.body.strip() in _NOTHING and other.body.strip() in _NOTHING
        if not (lossless or empty):
            return comparison
        mine, others = _texts(own, empty), _texts(other, empty)
        differing = []
        for name in sorted(mine.keys() | others.keys()):
            if not (name in mine and name in others and _same_text(mine[name], others[name], lossless)):
                differing.append(name)
            elif len(self._steady) < MOST_HEADERS:
                self._steady.add(name)
        for name in differing:
            if name in self._steady:
                return _differs(f"header {name}", mine.get(name), others.get(name))
        if empty and differing:
            return Comparison(Finding.UNKNOWN, f"their bodies are empty, and header {differing[0]} was never the same")
        return comparison


def compare(
    one: Response,
    other: Response,
    lossless: bool,
    tolerance: float | None = None,
    meaning: Meaning | None = None,
) -> Comparison:
    """Symmetric; a response agrees with itself, unless it is an error."""
    if one.status >= 400 and other.status >= 400:
        return Comparison(Finding.UNKNOWN, f"both are errors ({one.status} and {other.status})")
    if one.status != other.status:
        if any(status >= 500 or status in (408, 429) for status in (one.status, other.status)):
            return Comparison(Finding.UNKNOWN, f"one of them is an error ({one.status} and {other.status})")
        return _differs("status", one.status, other.status)
    if meaning is not None and one.status < 300:
        return _compare_meanings(one, other, meaning, lossless, tolerance)
    for name in _TYPES:
        if _kind(one, name) != _kind(other, name):
            return _differs(name, _kind(one, name), _kind(other, name))
    if one.body == other.body:
        return AGREES
    if one.body.startswith(_GZIP) and other.body.startswith(_GZIP):  # a gzip header holds the time of compression
        parts = _unzip(one.body), _unzip(other.body)
        return _TOO_LARGE if max(map(len, parts)) > LARGEST else _compare_bodies(*parts, lossless, tolerance)
    return _compare_bodies(one.body, other.body, lossless, tolerance)


def off_by(one: bytes, other: bytes) -> float | None:
    """How far apart the numbers of two answers are (root mean square); None if they hold none, or differ otherwise too.

    Tolerances are fitted to this, and compared with it.
    """
    differences = _differences(_json(one), _json(other))
    if isinstance(differences, Comparison) or not differences:
        return None
    return math.sqrt(sum(difference * difference for difference in differences) / len(differences))


def _compare_bodies(one: bytes, other: bytes, lossless: bool, tolerance: float | None) -> Comparison:
    if max(len(one), len(other)) > LARGEST:
        if lossless and not (_is_text(one) and _is_text(other)):
            return _differs("body", f"{len(one)} bytes", f"{len(other)} bytes")
        return _TOO_LARGE
    if one == other:
        return AGREES
    values = _json(one), _json(other)
    if _NO_JSON in values:
        return _compare_bytes(one, other, lossless)
    return _compare_values(*values, lossless, tolerance)


def _compare_values(one: Any, other: Any, lossless: bool, tolerance: float | None) -> Comparison:
    if lossless:
        return _equal(one, other)
    return _same_decision(one, other) if tolerance is None else _within(one, other, tolerance)


def _compare_meanings(
    one: Response, other: Response, meaning: Meaning, lossless: bool, tolerance: float | None
) -> Comparison:
    """Of what the answers say, in whichever form each of them says it."""
    if max(len(one.body), len(other.body)) > LARGEST:
        return _TOO_LARGE
    try:
        values = meaning(one), meaning(other)
    except (ValueError, RecursionError) as error:
        return Comparison(Finding.UNKNOWN, f"an answer cannot be read: {error}")
    return _compare_values(*values, lossless, tolerance)


def _unzip(body: bytes) -> bytes:
    """The first LARGEST bytes; a body that is not gzip after all is returned as it is."""
    try:
        return zlib.decompressobj(31).decompress(body, LARGEST + 1)
    except zlib.error:
        return body


def _kind(reply: Response, name: str) -> str:
    return (reply.header(name) or "").lower().replace(" ", "")


def _texts(reply: Response, empty: bool) -> dict[str, str]:
    """The headers that may describe the answer. Next to a body, a number is nearly always a run time."""
    texts: dict[str, str] = {}
    for name, value in reply.headers:
        lower = name.lower()
        if lower in _PER_RESPONSE or lower in _TYPES or _VARYING_VALUE.fullmatch(value):
            continue
        if not (_NAMES_THE_RUN.search(lower) if empty else _NUMBER.fullmatch(value)):
            texts[lower] = value
    return texts


def _same_text(one: str, other: str, lossless: bool) -> bool:
    """Equal except for the digits of decimal numbers; whole numbers count things or name classes."""
    if one == other:
        return True
    mine, others = _DECIMAL.split(one), _DECIMAL.split(other)
    if mine[::2] != others[::2]:
        return False
    numbers = [(float(a), float(b)) for a, b in zip(mine[1::2], others[1::2], strict=True)]
    return all(_near(a, b, 0.0) if lossless else _similar(a, b) for a, b in numbers)


def _differs(what: str, one: object, other: object) -> Comparison:
    first, second = sorted((_short(one), _short(other)))
    return Comparison(Finding.DIFFERED, f"{what}: {first} and {second}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ---- equal ---------------------------------------------------------------------------------------------------------


def _equal(one: Any, other: Any) -> Comparison:
    """Compare two JSON values, without recursion: clients and handlers choose how deep they are."""
    pairs: list[tuple[Any, Any, str, float]] = [(one, other, "", 0.0)]
    looked_at = 0
    while pairs:
        a, b, path, scale = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = _of_the_answer(a), _of_the_answer(b)
            if a.keys() != b.keys():
                return _differs(f"keys{_at(path)}", sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys()))
            scale = max(scale, _scale(a.values(), b.values()))
            pairs += [(a[key], b[key], f"{path}.{key}", _below(scale, a[key])) for key in reversed(a)]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return _differs(f"length{_at(path)}", len(a), len(b))
            if _is_ranking(a) and _is_ranking(b):
                a, b = sorted(a, key=_labels), sorted(b, key=_labels)
            scale = max(scale, _scale(a, b, *map(_parts, a), *map(_parts, b)))  # [label, score] each, say
            pairs += [(x, y, f"{path}[{n}]", scale) for n, (x, y) in enumerate(zip(a, b, strict=True))][::-1]
        elif _is_number(a) and _is_number(b) and (isinstance(a, float) or isinstance(b, float)):
            looked_at += 1
            if not _near(a, b, scale):
                return _differs(f"number{_at(path)}", a, b)
        else:
            looked_at += 1
            if isinstance(a, str) and isinstance(b, str) and _same_text(a, b, True):
                continue
            if type(a) is not type(b) or a != b:
                return _differs(f"value{_at(path)}", a, b)
    if not looked_at and one != other:
        return Comparison(Finding.UNKNOWN, "nothing in them tells of the input")
    return AGREES


def _within(one: Any, other: Any, tolerance: float) -> Comparison:
    differences = _differences(one, other)
    if isinstance(differences, Comparison):
        return differences
    if not differences:
        return _same_decision(one, other)
    off = math.sqrt(sum(difference * difference for difference in differences) / len(differences))
    if off <= tolerance or _equal(one, other).finding is Finding.AGREED:
        return AGREES
    return Comparison(Finding.DIFFERED, f"numbers: off by {off:.3g}, where {tolerance:.3g} is usual")


def _differences(one: Any, other: Any) -> list[float] | Comparison:
    """The differences of all numbers, whole ones too, since a handler may round; or what else differs."""
    pairs: list[tuple[Any, Any, str]] = [(one, other, "")]
    differences: list[float] = []
    while pairs:
        a, b, path = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = _of_the_answer(a), _of_the_answer(b)
            if a.keys() != b.keys():
                return _differs(f"keys{_at(path)}", sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys()))
            pairs += [(a[key], b[key], f"{path}.{key}") for key in reversed(a)]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return _differs(f"length{_at(path)}", len(a), len(b))
            pairs += [(x, y, f"{path}[{n}]") for n, (x, y) in enumerate(zip(a, b, strict=True))][::-1]
        elif _is_number(a) and _is_number(b):
            difference = 0.0 if a == b or (a != a and b != b) else abs(_as_float(a) - _as_float(b))
            differences.append(difference if difference == difference else math.inf)
        elif isinstance(a, str) and isinstance(b, str):
            if not _same_text(a, b, False):
                return _differs(f"value{_at(path)}", a, b)
        elif type(a) is not type(b) or a != b:
            return _differs(f"value{_at(path)}", a, b)
    return differences


def _as_float(number: Any) -> float:
    """Of any number. Compiled, an argument that is said to be a float cannot be a whole number that no float holds."""
    try:
        return float(number)
    except OverflowError:  # a whole number that no float can hold
        return math.inf


def describes_the_run(key: str) -> bool:
    """Whether a field of this name says something about the run and not about the input."""
    return key.lower().replace("_", "").replace("-", "") in _OF_THE_RUN


def _of_the_answer(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if not describes_the_run(key)}


def _at(path: str) -> str:
    return f" at {_short(path.lstrip('.'))}" if path else ""


def _scale(*groups: Any) -> float:
    """Small numbers beside large ones are only as exact as those; at most 1, for probabilities."""
    largest = 0.0
    for values in groups:
        for value in values:
            if isinstance(value, float) and abs(value) > largest and math.isfinite(value):
                largest = abs(value)
    return min(1.0, largest)


def _below(scale: float, value: Any) -> float:
    """The scale for a field: numbers in a list or dict of their own have a scale of their own."""
    return 0.0 if isinstance(value, dict | list) else scale


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _labels(item: Any) -> str:
    """The label of a ranked item: all of it but its score."""
    named = sorted(item.items()) if isinstance(item, dict) else item
    return json.dumps([part for part in named if not isinstance(part[1] if isinstance(item, dict) else part, float)])


def _near(a: Any, b: Any, scale: float) -> bool:
    """Two numbers; see `_as_float`."""
    if a == b or (a != a and b != b):
        return True
    try:
        return bool(abs(a - b) <= max(CLOSE * max(abs(a), abs(b), scale), SMALLEST)) and math.isfinite(a - b)
    except OverflowError:  # a whole number that no float can hold
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compare_bytes(one: bytes, other: bytes, lossless: bool) -> Comparison:
    if not lossless:
        if _is_text(one) and _is_text(other):
            return AGREES if one.split() == other.split() else _differs("text", one[:40], other[:40])
        return Comparison(Finding.UNKNOWN, "the answers are neither JSON nor text, so there is no decision to compare")
    if _is_text(one) and _is_text(other):
        if _same_text(one.decode(), other.decode(), True):
            return AGREES
        return _differs("text", one[:40], other[:40])
    return _differs("body", f"{len(one)} bytes", f"{len(other)} bytes")


def _is_text(body: bytes) -> bool:
    if b"\0" in body:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NO_JSON


# ---- the same decision ---------------------------------------------------------------------------------------------


def _same_decision(one: Any, other: Any) -> Comparison:
    try:
        mine, others = _decision(one), _decision(other)
    except RecursionError:
        return Comparison(Finding.UNKNOWN, "nested too deeply to compare")
    if mine is None or others is None:
        if _is_lone(one) and _is_lone(other):
            a, b = _lone(one), _lone(other)
            return AGREES if _similar(a, b) else _differs("number", a, b)
        return Comparison(Finding.UNKNOWN, "there is no decision in the answers: no label, no scores, no single number")
    return AGREES if mine == others else _differs("decision", mine, others)


def _decision(value: Any) -> Any:
    """The decision in an answer, as a comparable value; None if it decides nothing."""
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        fields = _of_the_answer(value)
        if len(fields) > 1 and all(_is_number(score) for score in fields.values()) and _any_float(fields.values()):
            if any(score != score for score in fields.values()):
                return "NaN"
            return max(fields, key=lambda label: (fields[label], label))
        parts = {key: part for key in sorted(fields) if (part := _decision(fields[key])) is not None}
        return tuple(parts.items()) or None
    if isinstance(value, list):
        if len(value) > 1 and all(_is_number(score) for score in value) and _any_float(value):
            if any(score != score for score in value):
                return "NaN"
            return max(range(len(value)), key=lambda index: value[index])
        if _is_ranking(value):
            return _decision(value[0])
        parts_of_list = tuple(_decision(item) for item in value)
        return parts_of_list if any(part is not None for part in parts_of_list) else None
    return None


def _any_float(values: Any) -> bool:
    return any(isinstance(value, float) for value in values)


def _is_ranking(items: list[Any]) -> bool:
    """Labels with scores, best first: pairs, or dicts of a text and a number."""
    scores = [_score(item) for item in items]
    known = [score for score in scores if score is not None]
    return bool(items) and len(known) == len(items) and known == sorted(known, reverse=True)


def _score(item: Any) -> float | None:
    parts = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, list) else []
    floats = [part for part in parts if isinstance(part, float)]
    labels = [part for part in parts if isinstance(part, str | int)]
    return floats[0] if len(floats) == 1 and labels and len(parts) <= 3 else None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in _of_the_answer(value).values():
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _is_lone(value: Any) -> bool:
    leaves = list(_leaves(value))
    return len(leaves) == 1 and isinstance(leaves[0], float)


def _lone(value: Any) -> float:
    return float(next(_leaves(value)))


def _similar(a: float, b: float) -> bool:
    share = min(a, b) >= 0.0 and max(a, b) <= 1.0  # perhaps a probability, where small differences decide nothing
    return _near(a, b, 0.0) or abs(a - b) <= SIMILAR * (1.0 if share else max(abs(a), abs(b)))
