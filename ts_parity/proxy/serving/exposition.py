"""The text that Prometheus reads, in its own format and in OpenMetrics, which also has exemplars.

`prometheus_client` would take several times as long for it, during which no query is served: a dozen instances make a
thousand lines. Most are written once and kept, with room for their numbers. Knows the formats. Knows nothing of what
is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple, final

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class ExposedExemplar(NamedTuple):
    """One request that a bucket has counted. `labels`: as written, with their braces. `at`: seconds since 1970."""

    labels: str
    value: float
    at: float


@final
class ExposedFamily:
    """A metric with all its label values."""

    __slots__ = ("exemplars", "kind", "name", "text", "written")

    def __init__(self, name: str, kind: str, text: str) -> None:
        """`kind`: counter, gauge or histogram; a counter's name lacks its `_total`."""
        self.name = name
        self.kind = kind
        self.text = text
        self.written: list[str] = []
        """Lines, or several at once, each with its end."""
        self.exemplars: dict[int, ExposedExemplar] = {}
        """By where its line is in `written`, which is there alone."""

    def add(self, labels: str, value: float) -> None:
        """`labels`: as written, with their braces, or empty."""
        self.written.append(f"{self.name}{self._suffix()}{labels} {float(value)!r}\n")

    def add_all(self, labels: Iterable[str], values: Iterable[float]) -> None:
        """Those that come together each time. It takes a fifth of adding them one by one."""
        lines = _lines(f"{self.name}{self._suffix()}", tuple(labels))
        self.written.append(lines % tuple(map(float, values)))

    def _suffix(self) -> str:
        return "_total" if self.kind == "counter" else ""


@lru_cache(64)
def _lines(name: str, labels: tuple[str, ...]) -> str:
    """With room for the values."""
    return "".join(f"{name}{written.replace('%', '%%')} %r\n" for written in labels)


@lru_cache(8192)
def written_labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """In the order of their names, as everybody writes them. The same ones come with each reading."""
    told = (f'{name}="{_escaped(value)}"' for name, value in sorted(zip(names, values, strict=True)))
    return "{" + ",".join(told) + "}" if names else ""


def exposed(families: Iterable[ExposedFamily], openmetrics: bool) -> bytes:
    parts: list[str] = []
    for family in families:
        told = f"{family.name}_total" if family.kind == "counter" and not openmetrics else family.name
        parts.append(f"# HELP {told} {family.text}\n# TYPE {told} {family.kind}\n")
        begin = len(parts)
        parts += family.written
        if openmetrics:
            for at, (labels, value, noted_at) in family.exemplars.items():
                line = parts[begin + at].removesuffix("\n")
                parts[begin + at] = f"{line} # {labels} {value!r} {noted_at!r}\n"
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
