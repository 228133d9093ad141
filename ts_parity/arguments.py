"""Numbers on command lines: what argparse is given as `type`, so that each flag says what it allows.

`float("nan")` and `int("1e9")` are traps that every command has; here they are met once. Knows texts and limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def number(
    least: float | None = None, above: float | None = None, most: float = math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """A finite number of at least `least` or above `above`, at most `most` and below `below`."""
    return lambda text: _checked(_float(text), text, "a number", least, above, most, below)


def count(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """A whole number of at least `least` and at most `most`."""
    return lambda text: int(_checked(_int(text), text, "a whole number", least, None, most, math.inf))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _int(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return math.nan


def _checked(
    value: float, text: str, word: str, least: float | None, above: float | None, most: float, below: float
) -> float:
    fits = math.isfinite(value) and value <= most and value < below
    if fits and (least is None or value >= least) and (above is None or value > above):
        return value
    limits = [f"of at least {least:g}"] if least is not None else [f"above {above:g}"] if above is not None else []
    limits += [f"at most {most:g}"] if most != math.inf else [f"below {below:g}"] if below != math.inf else []
    raise argparse.ArgumentTypeError(f"must be {word} {' and '.join(limits)}".rstrip() + f", not {text!r}")
