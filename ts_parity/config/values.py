"""One value of a setting, as a file, a variable or a flag gives it, converted to the type of its field.

What does not fit raises ConfigError with the setting, what it was and what is allowed. Knows nothing of where values
come from, or of what the settings mean together.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import Field
from typing import Any

from ts_parity.arguments import A_KEY, LARGEST, is_key
from ts_parity.config.addresses import checked_url
from ts_parity.config.schema import AUTO, KIND_OF, KINDS
from ts_parity.errors import ConfigError

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")


def convert(item: Field[Any], value: Any, where: str) -> Any:
    auto = item.metadata["auto"]
    kind = auto or type(item.default)  # not what is annotated: compiled, a class does not tell that
    if auto is not None and value == AUTO:
        return None
    if kind is tuple:
        items = _items(value, where)
        if item.name == "compare":
            return tuple(" ".join(items).split())  # in --model a comma would end it
        return _addresses(items, where) if item.name == "peers" else _headers(items, where)
    if kind is bool:
        return _truth(value, where)
    if kind in (int, float):
        return _number(item, value, where, kind)
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text" + ("" if item.metadata["secret"] else f", not {value!r}"))
    if item.metadata["secret"] and value and not is_key(value):
        raise ConfigError(f"{where} must be {A_KEY}")
    words = item.metadata["words"]
    if words and value not in words:
        spoken = KIND_OF.get(value.lower()) if words is KINDS else None
        near = [spoken] if spoken else difflib.get_close_matches(value, words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where} must be {', '.join(words[:-1])} or {words[-1]}, not {value!r}{hint}")
    return value


def _items(value: Any, where: str) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(each, str) for each in items):
        raise ConfigError(f"{where} must be a list of names, not {value!r}")
    return [each.strip() for each in items if each.strip()]


def _headers(names: list[str], where: str) -> tuple[str, ...]:
    if odd := [name for name in names if not _HEADER.fullmatch(name)]:
        raise ConfigError(f"{where}: {odd[0]!r} cannot be the name of a header")
    return tuple(name.lower() for name in names)


def _addresses(urls: list[str], where: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(checked_url(url, where) for url in urls))


def _truth(value: Any, where: str) -> bool:
    truth = {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, (bool, str)) else None
    if truth is None:
        raise ConfigError(f"{where} must be true or false, not {value!r}")
    return truth


def _number(item: Field[Any], value: Any, where: str, kind: type[int] | type[float]) -> float:
    least, below = item.metadata["least"], item.metadata["below"]
    word = "a whole number" if kind is int else "a number"
    try:
        # Booleans are numbers to Python and never meant as such; "1.5" is no whole number, nor is 1.5.
        number = math.nan if isinstance(value, bool) or (kind is int and isinstance(value, float)) else kind(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (least <= number < min(below, LARGEST)):
        if LARGEST <= number < math.inf:
            below = min(below, LARGEST)
        allowed = f"{word} of at least {least:g}" + (f" and below {below:g}" if below != math.inf else "")
        if item.metadata["auto"] is not None:
            allowed += f", or {AUTO!r}"
        raise ConfigError(f"{where} must be {allowed}, not {value!r}")
    return number
