"""Which bodies are learned from, which choose, and which are scored: parts that have no content in common.

Logged traffic repeats itself, and a body that stands on both sides makes a report too good. The parts and what each may
be used for:

    learn    the weights; all copies of a body, since clients will send it as often again
    choose   which weights, which seed, and how rows are weighed when they are decoded together
    score    the figures, which archives repeat: nothing is chosen by them, and what is fitted on some of these bodies
             is scored on others

Knows keys of bodies and dice. Knows nothing of models or of what is done with a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ts_parity.wire import Array

CHOOSE, SCORE = 0.10, 0.15
"""Shares of the contents; what is scored may be given apart, with --score."""

Keys = Sequence[tuple[str, ...]]
"""Of each body: two bodies that have any key in common are the same."""


@dataclass(frozen=True)
class Split:
    """Rows of what was observed. In `choose` and `score` every content stands once: a body that makes up half of the
    traffic would otherwise be half of the report, or none of it.
    """

    learn: Array
    choose: Array
    score: Array


def contents_of(*bodies: Keys) -> list[Array]:
    """-> for each list of bodies the number of each one's content, counted over all lists in order of appearance."""
    parent: list[int] = []
    first: dict[str, int] = {}

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for keys in (keys for each in bodies for keys in each):
        known = sorted({root(first[key]) for key in keys if key in first})
        own = known[0] if known else len(parent)
        parent.append(own)
        for other in known[1:]:
            parent[other] = own
        first |= dict.fromkeys(keys, own)
    roots = np.array([root(place) for place in range(len(parent))], dtype=np.int64)
    _, contents = np.unique(roots, return_inverse=True)
    return np.split(contents, np.cumsum([len(each) for each in bodies])[:-1])


def split(contents: Array, dice: np.random.Generator, scored_apart: bool = False) -> Split:
    """Contents (n,) as from `contents_of`. `scored_apart`: other bodies are scored, and none of these need be."""
    different, first = np.unique(contents, return_index=True)
    order = dice.permutation(len(different))
    score = 0 if scored_apart else max(2, round(SCORE * len(different)))
    choose = max(2, round(CHOOSE * len(different)))
    scored, chosen, learned = np.split(order, [score, score + choose])
    learn = dice.permutation(np.flatnonzero(np.isin(contents, different[learned])))
    return Split(learn, first[chosen], first[scored])


def repeated(contents: Array) -> int:
    """How many bodies are copies of an earlier one."""
    return len(contents) - len(np.unique(contents))
