"""What travels between proxy and worker: header names, the group frame, the raw tail.

Knows bytes and arrays. Knows nothing of HTTP clients, TorchServe or torch.
Everything here is either parsed completely or refused with a named error: no length is believed before it is checked.

The frame (all integers big-endian):

    magic "TSPF"  version u8  k u8  flags u8  zero u8
    k times       head_length u32  body_length u32  head (JSON)  body        head_length 0xFFFFFFFF: an empty slot
    if flags & 1  head_length u32  body_length u32  head (JSON)  array bytes

A group request carries the k original requests. A group response carries one answer per slot (backup family), or one
status per slot and the raw parity output (parity family): a slot is covered by that output if its status is 200.
A finish request is a frame of one slot, the original request, with the raw output that stands in for the model's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ts_parity.errors import MalformedFrame, MalformedTail

Array: TypeAlias = npt.NDArray[Any]
Headers = tuple[tuple[str, str], ...]

CONTROL_PREFIX: Final = "x-ts-parity"
"""Request headers that begin so are ours; the proxy removes them from what clients send."""
OP: Final = "x-ts-parity-op"
OP_RAW: Final = "raw"
OP_GROUP: Final = "group"
OP_FINISH: Final = "finish"
SECRET: Final = "x-ts-parity-secret"
RAW: Final = "x-ts-parity-raw"
SOURCE: Final = "x-ts-parity"
EXACT: Final = "x-ts-parity-exact"
LEAST_CONFIDENCE: Final = "x-ts-parity-least-confidence"
DEADLINE_MS: Final = "x-ts-parity-deadline-ms"
CONFIDENCE: Final = "x-ts-parity-confidence"
"""Of a rebuilt answer: how often one that looks so is the deployed model's own, 0 to 1."""
PEER: Final = "x-ts-parity-peer"
"""Between proxies: the proof that goes with a heartbeat, and with its answer."""
FORWARDED: Final = "x-ts-parity-forwarded"
"""Between proxies: on a query, which member forwards it, and its proof; on the answer, what became of it."""
FORWARDED_ANSWERED: Final = "answered"
FORWARDED_UNABLE: Final = "unable"
"""The member that was asked cannot serve it, so whoever forwarded it serves it itself."""
SPAN: Final = "x-ts-parity-span"
"""Between proxies that trace: on a forwarded query, its span there, as `traceparent` has one; on the answer, that there
are spans of the query under it."""
FRAME_TYPE: Final = "application/x-ts-parity-group"
PROTECTION_FIELDS: Final = (
    "code", "k", "r", "row", "coefficients", "partial", "cost", "cost_on", "agreement", "tolerance", "row_errors",
    "confidence", "protects",
)  # fmt: skip
"""What a protection's archive declares in its `ts_parity` section, and its worker repeats in describe."""

VERSION: Final = 1
MAX_K: Final = 64
MAX_DIMENSIONS: Final = 16

_MAGIC: Final = b"TSPF"
_PREFIX: Final = struct.Struct(">4sBBBB")
_LENGTHS: Final = struct.Struct(">II")
_EMPTY: Final = 0xFFFFFFFF
_HAS_RAW: Final = 1
_REMEMBERED: Final = 1024
_LONGEST: Final = 1024
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_DTYPES: Final = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
ROUNDOFF: Final = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
"""By how much a number of this dtype may be off, relative to itself."""


class Part(NamedTuple):
    """One slot of a frame: an original request, or the answer to one (then `status` and `phrase` count)."""

    headers: Headers
    body: bytes
    status: int = 200
    phrase: str = ""


class Frame(NamedTuple):
    """k slots, some perhaps empty, and perhaps one raw output."""

    slots: tuple[Part | None, ...]
    raw: Array | None = None
    computed_in: str = ""
    """The dtype the raw output was computed in, where that is coarser than the one it travels in; else empty."""

    @property
    def k(self) -> int:
        return len(self.slots)

    @property
    def covers(self) -> frozenset[int]:
        """The slots that are present and whose status is 200."""
        return frozenset(i for i, part in enumerate(self.slots) if part is not None and part.status == 200)


def pack_frame(frame: Frame) -> bytes:
    """Raise MalformedFrame if there are no slots, more than MAX_K, or a raw output that is not floating."""
    if not 1 <= frame.k <= MAX_K:
        raise MalformedFrame(f"a frame has 1 to {MAX_K} slots, not {frame.k}")
    flags = 0 if frame.raw is None else _HAS_RAW
    pieces = [_PREFIX.pack(_MAGIC, VERSION, frame.k, flags, 0)]
    for part in frame.slots:
        if part is None:
            pieces.append(_LENGTHS.pack(_EMPTY, 0))
            continue
        pieces += _section(_head_of(part), part.body)
    if frame.raw is not None:
        array = _as_wire_array(frame.raw, MalformedFrame)
        computed = {"computed_in": frame.computed_in} if frame.computed_in else {}
        pieces += _section(_json({"dtype": array.dtype.name, "shape": array.shape, **computed}), array.tobytes())
    return b"".join(pieces)


def unpack_frame(data: bytes | bytearray | memoryview) -> Frame:
    """The inverse of `pack_frame`. Raise MalformedFrame for anything else."""
    # A slot has bytes of its own. A slice of bytes is that already; of anything else it would be copied twice.
    view: bytes | memoryview = data if isinstance(data, bytes) else memoryview(data)
    if len(view) < _PREFIX.size:
        raise MalformedFrame(f"a frame has at least {_PREFIX.size} bytes, not {len(view)}")
    magic, version, k, flags, _ = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise MalformedFrame("not a ts_parity frame: wrong magic")
    if version != VERSION:
        raise MalformedFrame(f"frame of version {version}; this side speaks version {VERSION}")
    if not 1 <= k <= MAX_K:
        raise MalformedFrame(f"a frame has 1 to {MAX_K} slots, not {k}")
    at = _PREFIX.size
    slots: list[Part | None] = []
    for slot in range(k):
        section, at = _read_section(view, at, f"slot {slot}")
        slots.append(None if section is None else _part(section[0], section[1], slot))
    raw, computed_in = None, ""
    if flags & _HAS_RAW:
        section, at = _read_section(memoryview(view), at, "raw output")  # it is not copied
        if section is None:
            raise MalformedFrame("the raw output is announced and empty")
        raw, computed_in = _array(section[0], section[1])
    if at != len(view):
        raise MalformedFrame(f"{len(view) - at} bytes after the end of the frame")
    return Frame(tuple(slots), raw, computed_in)


def attach_tail(body: bytes, raw: Array, computed_in: str = "") -> tuple[bytes, str]:
    """-> (body + raw bytes, value of the RAW header). The ordinary body is the first `offset` bytes, unchanged."""
    array = _as_wire_array(raw, MalformedTail)
    shape = ",".join(map(str, array.shape))
    computed = f";computed_in={computed_in}" if computed_in else ""
    return body + array.tobytes(), f"v={VERSION};dtype={array.dtype.name};shape={shape};offset={len(body)}{computed}"


class Tail(NamedTuple):
    """Where in a body the raw output begins, and what it is. Made by `find_tail`, which has checked it."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    computed_in: str = ""
    """As in a frame."""

    def array(self, body: bytes) -> Array:
        return np.frombuffer(body, _DTYPES[self.dtype], offset=self.offset).reshape(self.shape)


def find_tail(body: bytes, header: str) -> Tail:
    """Raise MalformedTail unless header and bytes agree exactly."""
    tail = _described(header)
    if tail.offset > len(body):
        raise MalformedTail(f"the raw tail begins at byte {tail.offset} of a body of {len(body)}")
    if tail.offset + tail.size != len(body):
        left = len(body) - tail.offset
        raise MalformedTail(f"a {tail.dtype} output of shape {[*tail.shape]} has {tail.size} bytes, not {left}")
    return tail


@lru_cache(_REMEMBERED)
def _described(header: str) -> Tail:
    """One model's outputs are alike, so what is said of them is remembered."""
    try:
        fields = dict(item.split("=", 1) for item in header.split(";"))
        version, dtype = int(fields["v"]), fields["dtype"]
        shape = [int(n) for n in fields["shape"].split(",") if n]
        offset = int(fields["offset"])
        computed_in = fields.get("computed_in", "")
    except (KeyError, ValueError):
        raise MalformedTail(f"cannot read the raw tail header {header!r}") from None
    if version != VERSION:
        raise MalformedTail(f"raw tail of version {version}; this side speaks version {VERSION}")
    if offset < 0:
        raise MalformedTail(f"the raw tail begins at byte {offset}")
    size = _size(dtype, shape, MalformedTail)
    return Tail(offset, dtype, tuple(shape), size, _computed_in(computed_in, MalformedTail))


def without_control_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """What a client sent, less every header that could steer a worker."""
    return tuple((name, value) for name, value in headers if not name.lower().startswith(CONTROL_PREFIX))


def _section(head: bytes, body: bytes) -> list[bytes]:
    return [_LENGTHS.pack(len(head), len(body)), head, body]


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def _head_of(part: Part) -> bytes:
    size = sum([len(name) + len(value) for name, value in part.headers])
    pack = _packed_head if size <= _LONGEST else _packed_head.__wrapped__
    return pack(part.status, part.phrase, part.headers)


@lru_cache(_REMEMBERED)
def _packed_head(status: int, phrase: str, headers: Headers) -> bytes:
    return _json({"status": status, "phrase": phrase, "headers": headers})


def _read_section(view: bytes | memoryview, at: int, what: str) -> tuple[tuple[bytes, bytes | memoryview] | None, int]:
    if len(view) - at < _LENGTHS.size:
        raise MalformedFrame(f"the frame ends before {what}")
    head_length, body_length = _LENGTHS.unpack_from(view, at)
    at += _LENGTHS.size
    if head_length == _EMPTY:
        if body_length:
            raise MalformedFrame(f"{what} is empty and has {body_length} bytes of body")
        return None, at
    if len(view) - at < head_length + body_length:
        raise MalformedFrame(f"the frame ends inside {what}")
    head = bytes(view[at : at + head_length])
    at += head_length
    return (head, view[at : at + body_length]), at + body_length


def _read_head(head: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(head)
    except (ValueError, RecursionError):
        raise MalformedFrame(f"the head of {what} is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedFrame(f"the head of {what} is not an object")
    return value


def _part(head: bytes, body: bytes | memoryview, slot: int) -> Part:
    headers, status, phrase = _part_head(head, slot) if len(head) <= _LONGEST else _part_head.__wrapped__(head, slot)
    return Part(headers, bytes(body), status, phrase)


@lru_cache(_REMEMBERED)
def _part_head(packed: bytes, slot: int) -> tuple[Headers, int, str]:
    """Most parts begin alike, so what a head says is remembered."""
    head = _read_head(packed, f"slot {slot}")
    headers, status, phrase = head.get("headers"), head.get("status"), head.get("phrase")
    well_formed = (
        isinstance(headers, list)
        and all(isinstance(h, list) and len(h) == 2 and all(isinstance(x, str) for x in h) for h in headers)
        and isinstance(status, int)
        and not isinstance(status, bool)
        and isinstance(phrase, str)
    )
    if not well_formed:
        raise MalformedFrame(f"the head of slot {slot} must hold status, phrase and a list of header pairs")
    assert isinstance(headers, list)
    assert isinstance(status, int)
    assert isinstance(phrase, str)
    return tuple((h[0], h[1]) for h in headers), status, phrase


def _as_wire_array(raw: Array, error: type[MalformedFrame] | type[MalformedTail]) -> Array:
    if raw.dtype.name not in _DTYPES:
        raise error(f"a raw output is one of {', '.join(_DTYPES)}, not {raw.dtype.name}")
    if raw.ndim > MAX_DIMENSIONS:
        raise error(f"a raw output has at most {MAX_DIMENSIONS} dimensions, not {raw.ndim}")
    return np.asarray(raw, dtype=_DTYPES[raw.dtype.name], order="C")


def _array(head: bytes, data: bytes | memoryview) -> tuple[Array, str]:
    """-> the array, and the dtype it was computed in."""
    dtype, shape, size, computed_in = _array_head(head) if len(head) <= _LONGEST else _array_head.__wrapped__(head)
    if size != len(data):
        raise MalformedFrame(f"a {dtype} output of shape {[*shape]} has {size} bytes, not {len(data)}")
    array: Array = np.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)
    return array, computed_in


@lru_cache(_REMEMBERED)
def _array_head(packed: bytes) -> tuple[str, tuple[int, ...], int, str]:
    """-> dtype, shape, bytes, and the dtype it was computed in."""
    head = _read_head(packed, "raw output")
    dtype, shape = head.get("dtype"), head.get("shape")
    size = _size(dtype, shape, MalformedFrame)
    assert isinstance(dtype, str)
    assert isinstance(shape, list)
    return dtype, tuple(shape), size, _computed_in(head.get("computed_in", ""), MalformedFrame)


def _computed_in(name: Any, error: type[MalformedFrame] | type[MalformedTail]) -> str:
    if name == "" or (isinstance(name, str) and name in ROUNDOFF):
        return str(name)
    raise error(f"a raw output is computed in one of {', '.join(ROUNDOFF)}, not {name!r}")


def _size(dtype: Any, shape: Any, error: type[MalformedFrame] | type[MalformedTail]) -> int:
    """Bytes of such an output, if there can be one."""
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise error(f"a raw output is one of {', '.join(_DTYPES)}, not {dtype!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    ):
        raise error(f"a raw output's shape is a list of sizes, not {shape!r}")
    expected = np.dtype(_DTYPES[dtype]).itemsize
    for n in shape:
        expected *= n
    return expected
