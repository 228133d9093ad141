"""Thresholds of a bench: `p99.9>80ms`, `errors>0.1%`, `lost>0`. Parsed before the load, judged after it.

Knows texts and numbers. Knows nothing of how anything is measured.
"""

from __future__ import annotations

import argparse
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ts_parity.arguments import LARGEST, number
from ts_parity.errors import ConfigError
from ts_parity.lab.report import needed

_FORM = re.compile(r"(?P<what>[a-z]+[0-9.]*)\s*(?P<sign>>=|<=|>|<)\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|%|)")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
TIMES = ("mean", "max", "lag")
LAG = 0.99
"""Which percentile of the send lag is meant."""
COUNTS = ("errors", "lost", "reconstructed", "hedged", "differing")


@dataclass(frozen=True)
class Threshold:
    """The run fails if this holds. `value`: seconds of a time, a number of queries, or (`share`) a share of them."""

    text: str
    what: str
    sign: str
    value: float
    share: bool = False

    @property
    def percentile(self) -> float | None:
        """0.999 of p99.9; None: it is no percentile, and neither are p0 and p100."""
        return _percentile(self.what)

    def check_possible(self, queries: int) -> None:
        """Raise ConfigError if so many queries say nothing about it."""
        share = LAG if self.what == "lag" else self.percentile
        if share is not None and queries < needed(share):
            raise ConfigError(
                f"--fail-if {self.text}: {self.what} takes at least {needed(share):,} queries, and this load has "
                f"{queries:,}; raise --duration or --rate"
            )

    def broken_by(self, measured: Mapping[str, Any]) -> str:
        """What to say of it; empty: it holds. `measured`: seconds by the name of a time, counts, `queries`, `answered`,
        and `unknown`, the rebuilt answers of which nobody can tell whether they differ. A time is infinite where a
        query without an answer decides it.

        What was not measured fails: an answer that nobody compared is no agreement.
        """
        found, of, beside = measured.get(self.what), max(1, measured["queries"]) if self.share else 1, ""
        if self.what == "differing" and measured["unknown"]:
            unknown, rebuilt = measured["unknown"], measured["reconstructed"]
            beside = f"; {unknown} of {rebuilt} rebuilt answers could not be compared"
            found = self._of_all(measured["differing"], unknown, rebuilt, of)
        if found is None:
            return f"{self.text}: not measured{beside}"
        if not self._breaks(found / of):
            return ""
        if found == math.inf:
            queries, answered = measured["queries"], measured["answered"]
            return f"{self.text}: {queries - answered} of {queries} queries got no answer"
        return f"{self.text}: it is {self._shown(found, of)}{beside}"

    def _breaks(self, value: float) -> bool:
        return _SIGNS[self.sign](value, self.value)

    def _of_all(self, differing: int, unknown: int, rebuilt: int, of: int) -> float | None:
        """A share: those that could be compared stand for all rebuilt ones. A number, or 0 %: None where the others
        would decide it. None, too, if none could be compared.
        """
        if unknown == rebuilt:
            return None
        if self.share and self.value:
            return differing * rebuilt / (rebuilt - unknown)
        decided = self._breaks(differing / of) == self._breaks((differing + unknown) / of)
        return differing if decided else None

    def _shown(self, found: float, of: int) -> str:
        if self.share:
            return f"{found / of:.3%} ({found:.0f} of {of})"
        return f"{found:.0f}" if self.what in COUNTS else f"{1000 * found:.1f} ms"


def threshold(text: str) -> Threshold:
    """As a type for argparse."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"must be like 'p99.9>80ms' or 'errors>0.1%', not {text!r}")
    what, unit = found["what"], found["unit"]
    time = what in TIMES or _percentile(what) is not None
    if not time and what not in COUNTS:
        known = ", ".join(["p50, p99, p99.9 and the like", *TIMES, *COUNTS])
        raise argparse.ArgumentTypeError(f"there is nothing called {what!r} to judge; there are {known}")
    if time == (unit not in ("ms", "s")):
        right = "ms or s" if time else "nothing (a count) or %"
        raise argparse.ArgumentTypeError(f"the unit of {what} is {right}, not {unit or 'nothing'!r}")
    number(least=0, most=100 if unit == "%" else LARGEST)(found["value"])
    # Read once and not divided, so that 1.1 % is the float nearest to 0.011, as 11 of 1,000 are.
    value = float(found["value"] + {"ms": "e-3", "%": "e-2"}.get(unit, ""))
    return Threshold(text.strip(), what, found["sign"], value, unit == "%")


def _percentile(what: str) -> float | None:
    found = _PERCENTILE.fullmatch(what)
    share = float(f"{found[1]}e-2") if found else 0.0
    return share if 0 < share < 1 else None
