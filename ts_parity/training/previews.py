"""A request body as a reader sees it: an image, a sound, text or numbers; what cannot be shown has its name.

What a body holds is found as TorchServe finds it, so a form is taken into its parts. Nothing that a body holds can do
anything on the page. Knows content types and pictures. Knows nothing of models.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from typing import Any

from ts_parity.pages import note, text
from ts_parity.training.forms import RequestBody
from ts_parity.wire import Part
from ts_parity.worker.requests import request_of

MOST_BYTES = 48 << 10
"""Of a picture or a sound. A larger picture is made smaller; a longer sound has its name."""
MOST_SIGNS = 600
_SIDES = (320, 160, 80)
"""Pixels, of a picture that was made smaller, and of one that was not small enough then."""
_SMALL = 96
"""Pixels, below which a picture is shown enlarged, each of its pixels as a square."""
_MOST_PIXELS = 60_000_000
_AS_IT_IS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
_SOUNDS = {b"RIFF": "audio/wav", b"OggS": "audio/ogg", b"fLaC": "audio/flac", b"ID3": "audio/mpeg"}
_DEEPEST = 6


def preview(body: RequestBody) -> str:
    """As HTML of at most about 1.4 * MOST_BYTES a part."""
    try:
        data = body.read()
        headers = (("content-type", body.content_type),) if body.content_type else ()
        request = request_of(Part(headers, data), "preview")
    except (OSError, ValueError) as error:
        return _named(f"cannot be read: {error}")
    parts = list(request.data.items())
    kinds = request.headers
    shown = []
    for name, value in parts[:4]:
        kind = kinds.get(name, {}).get("content-type", "") if isinstance(kinds.get(name), dict) else ""
        told = _value(value, str(kind), body.name)
        shown.append(told if len(parts) == 1 else f'<div><span class="note">{text(name, 60)}</span>{told}</div>')
    more = len(parts) - len(shown)
    return "".join(shown) + (_named(f"and {more} parts more") if more else "") or _named("empty")


def _value(value: Any, kind: str, name: str) -> str:
    if isinstance(value, (bytes, bytearray)):
        return _bytes(bytes(value), kind, name)
    if not isinstance(value, str):  # JSON, of which an image may be a part
        pictures = (_picture(data, name) for data in _encoded(value))
        return "".join(filter(None, [next(filter(None, pictures), None), _text(json.dumps(value, ensure_ascii=False))]))
    return _text(value)


def _bytes(data: bytes, kind: str, name: str) -> str:
    if not data:
        return _named("empty")
    if (picture := _picture(data, name)) is not None:
        return picture
    if (sound := _sound(data, name)) is not None:
        return sound
    if (told := _as_text(data)) is not None:
        return _text(told)
    return _named(f"{len(data):,} bytes" + (f" of {kind}" if kind else ""))


def _picture(data: bytes, name: str) -> str | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            size, form = opened.size, opened.format or ""
            if size[0] * size[1] > _MOST_PIXELS:
                return None
            opened.load()  # what is no picture after all, or only half of one
            kind = _AS_IT_IS.get(form, "")
            if not kind or len(data) > MOST_BYTES:
                small = ImageOps.exif_transpose(opened)
                small = small.convert("RGBA" if "A" in small.getbands() or "transparency" in small.info else "RGB")
                for side in _SIDES:
                    small.thumbnail((side, side))
                    size, (data, kind) = small.size, _written(small)
                    if len(data) <= MOST_BYTES:
                        break
    except Exception:  # whatever a broken picture makes its decoder raise
        return None
    tiny = ' class="tiny"' if max(size) <= _SMALL else ""
    width, height = size
    return f'<img{tiny} src="{_address(kind, data)}" alt="{text(name, 120)}" width="{width}" height="{height}"/>'


def _written(picture: Any) -> tuple[bytes, str]:
    lossless, small = io.BytesIO(), io.BytesIO()
    picture.save(lossless, "PNG", optimize=True)
    if lossless.tell() <= MOST_BYTES:
        return lossless.getvalue(), "image/png"
    picture.convert("RGB").save(small, "JPEG", quality=80)
    return small.getvalue(), "image/jpeg"


def _sound(data: bytes, name: str) -> str | None:
    kind = next((kind for sign, kind in _SOUNDS.items() if data.startswith(sign)), None)
    if kind is None or len(data) > MOST_BYTES:
        return None
    return f'<audio controls="controls" src="{_address(kind, data)}" aria-label="{text(name, 120)}"></audio>'


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(value: Any, depth: int = 0) -> Iterator[bytes]:
    """Strings that may be images in base64, as JSON has to carry them."""
    if isinstance(value, str) and len(value) >= 64:
        try:
            yield base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
        except (binascii.Error, ValueError):
            return
    elif isinstance(value, (dict, list)) and depth < _DEEPEST:
        for child in value.values() if isinstance(value, dict) else value[:8]:
            yield from _encoded(child, depth + 1)


def as_text(data: bytes) -> str:
    """An answer as a reader sees it."""
    told = _as_text(data)
    return f"{len(data):,} bytes" if told is None else told


def _as_text(data: bytes) -> str | None:
    try:
        told = data.decode()
    except UnicodeDecodeError:
        return None
    strange = sum(not (sign.isprintable() or sign.isspace()) for sign in told[:MOST_SIGNS])
    return told if strange == 0 else None


def _text(told: str) -> str:
    return f'<pre class="body" tabindex="0">{text(told, MOST_SIGNS)}</pre>'


def _named(what: str) -> str:
    return note(f"({what})")
