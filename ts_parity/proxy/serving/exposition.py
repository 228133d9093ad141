"""The text that Prometheus reads, in its own format and in OpenMetrics, which also has exemplars.

`prometheus_client` would take several times as long for it, during which no query is served: a dozen instances make a
thousand lines. Labels are written once and kept. Knows the formats. Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class ExposedExemplar(NamedTuple):
    """One request that a bucket has counted. `labels`: as written, with their braces. `at`: seconds since 1970."""

    labels: str
    value: float
    at: float


ExposedSample = tuple[str, str, float, ExposedExemplar | None]
"""A line: the suffix of the family's name; the labels as written, with their braces, or empty; the value; an exemplar.
A plain tuple, for there are thousands."""


@dataclass(frozen=True)
class ExposedFamily:
    """A metric with all its label values. `kind`: counter, gauge or histogram; a counter's name lacks its `_total`."""

    name: str
    kind: str
    text: str
    samples: list[ExposedSample] = field(default_factory=list)

    def add(self, labels: str, value: float) -> None:
        self.samples.append(("_total" if self.kind == "counter" else "", labels, value, None))


@lru_cache(8192)
def written_labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """In the order of their names, as everybody writes them. The same ones come with each reading."""
    told = (f'{name}="{_escaped(value)}"' for name, value in sorted(zip(names, values, strict=True)))
    return "{" + ",".join(told) + "}" if names else ""


def exposed(families: Iterable[ExposedFamily], openmetrics: bool) -> bytes:
    lines: list[str] = []
    for family in families:
        name = family.name
        told = f"{name}_total" if family.kind == "counter" and not openmetrics else name
        lines.append(f"# HELP {told} {family.text}\n# TYPE {told} {family.kind}\n")
        for suffix, labels, value, exemplar in family.samples:
            if exemplar is None or not openmetrics:
                lines.append(f"{name}{suffix}{labels} {float(value)!r}\n")
            else:
                marked = f"{exemplar.labels} {exemplar.value!r} {exemplar.at!r}"
                lines.append(f"{name}{suffix}{labels} {float(value)!r} # {marked}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
