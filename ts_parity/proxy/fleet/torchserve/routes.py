"""Which model a path of TorchServe's inference API names, by TorchServe's own rules.

Pure. Knows paths. Knows nothing of which models there are or which instances serve them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import parse_qs, quote, unquote

from ts_parity.proxy.fleet.payloads import Ask

# Clients use the same few paths again and again.
_REMEMBERED = 1024
_LONGEST = 256
"""Longer paths are not cached, or a few clients could fill the memory."""
_MODEL_FIRST = frozenset({"predictions", "explanations"})
_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def prediction_route(method: str, path: str) -> Ask | None:
    """The prediction that `/predictions/{model}[/{version}[/extra...]]` asks for, or None. OPTIONS asks for a
    description instead. `extra` is escaped, with its leading slash, or empty.
    """
    return (_prediction if len(path) <= _LONGEST else _prediction.__wrapped__)(method, path)


@lru_cache(_REMEMBERED)
def _prediction(method: str, path: str) -> Ask | None:
    segments = _segments(path)
    if method == "OPTIONS" or len(segments) < 2 or segments[0] != "predictions":
        return None
    # Neither a model nor a version has an empty name: TorchServe looks for it and finds none.
    if not all(segments[1:3]):
        return None
    version = segments[2] if len(segments) > 2 else None
    extra = "".join(f"/{quote(segment, safe='')}" for segment in segments[3:])
    return Ask(segments[1], version, extra)


def model_named(path: str, query_string: str) -> str | None:
    """The model any other request is about, or None."""
    short = len(path) + len(query_string) <= _LONGEST
    return (_model_named if short else _model_named.__wrapped__)(path, query_string)


@lru_cache(_REMEMBERED)
def _model_named(path: str, query_string: str) -> str | None:
    segments = _segments(path)
    count = len(segments)
    if count >= 2 and segments[0] in _MODEL_FIRST:
        return segments[1]
    if count >= 3 and segments[:2] == ["v1", "models"]:
        return segments[2].rpartition(":")[0] or segments[2]
    if count >= 3 and segments[:2] == ["v2", "models"]:
        return segments[2]
    if segments == ["invocations"]:
        # The first one counts, and a semicolon separates too.
        named = parse_qs(query_string.replace(";", "&"), keep_blank_values=True).get("model_name")
        return named[0] if named else None
    if count == 3 and segments[0] == "models" and segments[2] == "invoke":
        return segments[1]
    if count in (2, 3) and segments[-1] == "predict":
        return segments[0]
    return None


def prediction_target(model: str, version: str, extra: str = "", query_string: str = "") -> str:
    """The path to send. With a version it means the same on every instance, whatever their defaults are. Without one
    (an empty text), TorchServe's own metrics count it as the client has asked for it.
    """
    path = _path(model, version)
    return f"{path}{extra}?{query_string}" if query_string else path + extra


@lru_cache(_REMEMBERED)
def _path(model: str, version: str) -> str:
    unversioned = f"/predictions/{quote(model, safe='')}"
    return f"{unversioned}/{quote(version, safe='')}" if version else unversioned


def url_path(extra: str) -> str:
    """What TorchServe hands to the handler as the header `url_path`."""
    return unquote(extra).removeprefix("/")


def _segments(path: str) -> list[str]:
    """As TorchServe does it: drop the fragment, unescape, then split. A broken escape gives no segments."""
    if _BROKEN_ESCAPE.search(path):
        return []
    segments = unquote(path.partition("#")[0]).split("/")[1:]
    # Java's split: trailing empty segments do not count.
    while segments and not segments[-1]:
        segments.pop()
    return segments
