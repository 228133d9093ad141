"""Which bodies are never coded: a declaration in a model's archive, which proxy and worker both obey.

A body may mean something only where it is answered: `{"path": "/data/1.png"}` names a file of that machine, and a
protection would answer with its own. No code can see that, so the archive says by which content types, JSON keys or
form fields such bodies are known. Knows headers and bytes; knows nothing of queries or codes.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ts_parity.errors import ConfigError

if TYPE_CHECKING:  # it would import numpy, and commands that only parse come by here
    from ts_parity.wire import Headers

_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/"
_HIDDEN = re.compile(rb"\\u00[2-7]")
"""An ASCII character written as an escape: nobody needs to, and a key could hide behind it."""
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_PART_TYPE = re.compile(rb"(?i)^content-type:[ \t]*([^\r\n;]+)", re.MULTILINE)


@dataclass(frozen=True)
class Exclusions:
    """`content_types` as in a header, `image/*` for all of a kind; `keys`: form fields, or at any depth of JSON."""

    content_types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def covers(self, headers: Headers, body: bytes) -> bool:
        """Is a request with this body never coded? In doubt it is: what merely looks like a key counts too."""
        told = [
            value for name, value in headers if name.lower() == "content-type"
        ]  # which of several counts is not sure
        kinds = [value.partition(";")[0].strip().lower() for value in told]
        if self.content_types and any(self._names(part) for kind in kinds for part in _kinds(kind, body)):
            return True
        if not self.keys:
            return False
        if _is_encoded(headers):  # whoever decodes it may find anything
            return True
        return any(self._has_key(kind, body) for kind in kinds or [""])

    def as_json(self) -> dict[str, list[str]]:
        return {"content_types": list(self.content_types), "keys": list(self.keys)}

    def __bool__(self) -> bool:
        """Is anything excluded?"""
        return bool(self.content_types or self.keys)

    def __or__(self, other: Exclusions) -> Exclusions:
        """What either excludes."""
        return Exclusions(
            tuple(dict.fromkeys((*self.content_types, *other.content_types))),
            tuple(dict.fromkeys((*self.keys, *other.keys))),
        )

    def _names(self, kind: str) -> bool:
        return any(fnmatchcase(kind, pattern.lower()) for pattern in self.content_types)

    def _has_key(self, kind: str, body: bytes) -> bool:
        if any(needle in body for needle in _needles(self.keys)) or _HIDDEN.search(body):
            return True
        if b"\0" in body and self._has_key("", body.replace(b"\0", b"")):  # UTF-16 or UTF-32, which json reads too
            return True
        if kind.startswith(_MULTIPART):
            return any(b"name=%b" % key.encode() in body for key in self.keys)
        if kind != _FORM:
            return False
        fields = {name for name, _ in urllib.parse.parse_qsl(body, keep_blank_values=True)}
        return any(key.encode() in fields for key in self.keys)


def read_never_code(told: Any) -> Exclusions:
    """The declaration as it stands in a config or in describe. Raise ConfigError."""
    if not isinstance(told, Mapping) or not set(told) <= {"content_types", "keys"}:
        raise ConfigError(f"never_code must have content_types and keys, each a list, not {told!r}")
    return Exclusions(_texts(told, "content_types"), _texts(told, "keys"))


def declared_never_code(words: Iterable[str]) -> Exclusions:
    """From a command line: what has a slash is a content type, anything else a key."""
    given = [word.strip() for word in words]
    if not all(given):
        raise ConfigError("--never-code must name a content type (text/uri-list) or a key (path), not nothing")
    if odd := [word for word in given if word.count("/") > 1 or word[0] == "/" or word[-1] == "/"]:
        raise ConfigError(f"--never-code {odd[0]!r} is neither a content type (text/uri-list, image/*) nor a key")
    return Exclusions(tuple(w for w in given if "/" in w), tuple(w for w in given if "/" not in w))


def _texts(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    listed = told.get(name) or ()
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) and each for each in listed):
        raise ConfigError(f"never_code: {name} must be a list of non-empty texts, not {listed!r}")
    return tuple(listed)


@lru_cache(64)
def _needles(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    quoted = [text for key in keys for text in (json.dumps(key), json.dumps(key, ensure_ascii=False), f"'{key}'")]
    wide = [text for text in quoted if not text.isascii()]  # ASCII is found in UTF-16 once its zeros are gone
    encoded = [text.encode() for text in quoted]
    encoded += [text.encode(encoding) for text in wide for encoding in _WIDE]
    without_zeros = [needle.replace(b"\0", b"") for needle in encoded]
    return tuple(dict.fromkeys((*encoded, *without_zeros)))


def _is_encoded(headers: Headers) -> bool:
    return any(
        name.lower() == "content-encoding" and value.strip().lower() not in ("", "identity") for name, value in headers
    )


def _kinds(kind: str, body: bytes) -> list[str]:
    if not kind.startswith(_MULTIPART):
        return [kind]
    return [kind, *(found.decode("latin-1").strip().lower() for found in _PART_TYPE.findall(body))]
