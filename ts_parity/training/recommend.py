"""One plain sentence: which of the trained candidates to use, by a rule that is stated with it.

Pure: a report in, text out. What it cannot know is how many answers will be late; the simulator's job is that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMALL_LOSS = 0.01
"""A point on rebuilt answers: with 2 % of answers late it is 0.02 points of all."""


def loss(candidate: Mapping[str, Any]) -> float:
    """What a rebuilt answer loses: accuracy where labels are known, else agreement with the deployed model."""
    return float(candidate["drop"]) if "drop" in candidate else 1.0 - float(candidate["agreement"])


def extra_work(candidate: Mapping[str, Any]) -> float | None:
    """Per query, in deployed inferences."""
    cost = candidate.get("cost")
    return None if cost is None else float(cost) * int(candidate["r"]) / int(candidate["k"])


def recommend(report: Mapping[str, Any]) -> str:
    """Of the candidates that lose at most SMALL_LOSS the one that adds least work; if none does, the least loser."""
    measured = [c for c in report["candidates"] if extra_work(c) is not None]
    if not measured:
        return "exact loses nothing; what it costs was not measured (give --score or train another code beside it)."
    small = [c for c in measured if loss(c) <= SMALL_LOSS]
    chosen = min(small, key=lambda c: (extra_work(c), loss(c))) if small else min(measured, key=loss)
    sentence = f"Take {_named(chosen)}: {_price(chosen)}"
    others = [c for c in measured if c is not chosen]
    if others:
        other = _contrast(chosen, others)
        sentence += f"; {_named(other)} {_price(other)}"
    if not small:
        sentence += (
            f". No candidate loses less than {SMALL_LOSS:.0%}: more steps, more bodies or a larger --budget may help"
        )
    return sentence + "."


def _contrast(chosen: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The cheapest of the better ones, else the best of the rest."""
    better = [c for c in others if loss(c) < loss(chosen)]
    return min(better, key=lambda c: extra_work(c) or 0.0) if better else min(others, key=loss)


def _named(candidate: Mapping[str, Any]) -> str:
    return f"{candidate['code']} with k={candidate['k']}" + (f", r={candidate['r']}" if candidate["r"] > 1 else "")


def _price(candidate: Mapping[str, Any]) -> str:
    lost, work = loss(candidate), extra_work(candidate)
    what = "of accuracy" if "drop" in candidate else "of agreement"
    told = (
        "loses nothing on rebuilt answers" if lost <= 0 else f"loses {100 * lost:.2f} points {what} on rebuilt answers"
    )
    return f"{told} and adds {work:.0%} of work"
