"""Numbers on command lines: what argparse is given as `type`, so that each flag says what it allows.

`float("nan")` and `int("1e9")` are traps that every command has; here they are met once. Knows texts and limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

LARGEST, SMALLEST = 1e15, 1e-9
"""No count, time or share beyond these can be meant here, and what is made of them still fits where it goes: the square
of what is above zero is above zero, and a whole number is a float."""
_SHOWN = 40
"""Characters of what was given that a message quotes."""


def number(
    least: float | None = None, above: float | None = None, most: float = math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """A finite number of at least `least` or above `above`, at most `most` and below `below`; within LARGEST."""
    return lambda text: _checked(_float(text), text, "a number", least, above, most, below)


def count(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """A whole number of at least `least` and at most `most`; within LARGEST."""
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
    # Compared and not converted: whole numbers have no end, and floats have.
    fits = -LARGEST <= value <= min(most, LARGEST) and value < below
    if fits and (least is None or value >= least) and (above is None or value >= above + SMALLEST):
        return value
    if above is not None and above < value < above + SMALLEST:
        least = above + SMALLEST
    limits = [f"of at least {least:g}"] if least is not None else [f"above {above:g}"] if above is not None else []
    if LARGEST < value < math.inf:
        most = min(most, LARGEST)
    limits += [f"at most {most:g}"] if most != math.inf else [f"below {below:g}"] if below != math.inf else []
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    raise argparse.ArgumentTypeError(f"must be {word} {' and '.join(limits)}".rstrip() + f", not {shown!r}")
