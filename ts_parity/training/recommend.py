"""One plain sentence: which of the trained candidates to use, if any, by rules that are stated with it.

Pure: a report in, text out. It cannot know how many answers will be late; `plan` simulates that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts_parity.training.figures import FIGURES, margin

SMALL_LOSS = 0.01
"""A point on rebuilt answers: with 2 % of answers late it is 0.02 points of all."""
MOST_LOSS = 0.10
"""What loses more is never recommended: one rebuilt answer in ten would be worse than the late one."""
AS_CHEAP = 1.25
"""`exact`, whose work is at most this many times that of a trained code, does as well: it loses nothing."""
FEW_BODIES = 2000

Candidate = Mapping[str, Any]


def loss(candidate: Candidate) -> float:
    """What a rebuilt answer loses, as a share of what `loss_of` says."""
    return float(candidate["loss"])


def extra_work(candidate: Candidate) -> float | None:
    """Per query, in deployed inferences."""
    cost = candidate.get("cost")
    return None if cost is None else float(cost) * int(candidate["r"]) / int(candidate["k"])


def recommend(report: Mapping[str, Any]) -> str:
    """Of what loses at most SMALL_LOSS, that which adds least work; `exact` and second copies are compared with."""
    made = _made(report)
    if not made:
        return "exact loses nothing; what it costs was not measured (give --score or train another code beside it)."
    compared = [*made, *report.get("beside", [])]
    taken = chosen(report)
    sentences = [_none_of(made) if taken is None else _take(taken, compared)]
    if taken is not None and (known := margin(taken, "loss") or 0.0) > SMALL_LOSS:
        unit = "%" if FIGURES[taken["metric"]].error else " points"
        sentences.append(f"That loss is known to ± {100 * known:.1f}{unit} only; more bodies would tell.")
    trained = _trained(made)
    if trained and all(loss(c) > SMALL_LOSS for c in trained):
        sentences.append(
            f"No trained protection loses less than {SMALL_LOSS:.0%}; to try: {', '.join(to_try(report))}."
        )
    sentences.append(_COPIES)
    return " ".join(sentences)


def chosen(report: Mapping[str, Any]) -> Candidate | None:
    """The recommended one, perhaps an `exact` that was only compared; None: none is recommended."""
    made = _made(report)
    if not made:  # `exact`, or a student from pairs, whose cost nobody knows
        return next((c for c in report["candidates"] if loss(c) <= MOST_LOSS), None)
    usable = [c for c in (*made, *report.get("beside", [])) if loss(c) <= MOST_LOSS]
    return _choose(usable) if usable else None


def looked_at(report: Mapping[str, Any]) -> Candidate | None:
    """The trained candidate that the page shows in detail: the recommended one, else the best."""
    taken, trained = chosen(report), _trained(report["candidates"])
    return taken if taken in trained else min(trained, key=loss, default=None)


def _made(report: Mapping[str, Any]) -> list[Candidate]:
    return [c for c in report["candidates"] if extra_work(c) is not None]


def _trained(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c["code"] != "exact"]


_COPIES = (
    "Second copies of late queries (`ts-parity serve` makes them) lose nothing and need no protection: `ts-parity "
    "plan` says whether they are enough for your traffic."
)


def _choose(usable: Sequence[Candidate]) -> Candidate:
    small = [c for c in usable if loss(c) <= SMALL_LOSS]
    if not small:
        return min(usable, key=loss)
    cheapest = min(small, key=lambda c: (_work(c), loss(c)))
    exact = [c for c in small if c["code"] == "exact" and _work(c) <= AS_CHEAP * _work(cheapest)]
    return min(exact, key=_work) if exact else cheapest


def _take(chosen: Candidate, compared: Sequence[Candidate]) -> str:
    told = f"{named(chosen)}: {_price(chosen)}"
    others = [c for c in compared if c is not chosen]
    if others:
        other = _contrast(chosen, others)
        told += f"; {named(other)} {_price(other)}"
    # A sum costs machines of its own: it has to be worth more than what loses nothing and needs none.
    return f"Where second copies are not enough, take {told}." if chosen["family"] == "parity" else f"Take {told}."


def _none_of(made: Sequence[Candidate]) -> str:
    best = min(made, key=loss)
    told = f"Take none of these: the best, {named(best)}, {_price(best)}"
    return f"{told}; what loses more than {MOST_LOSS:.0%} is never recommended."


def _contrast(chosen: Candidate, others: Sequence[Candidate]) -> Candidate:
    """The cheapest of the better ones, else the best of the rest. `exact` is not compared with itself of another k."""
    others = [c for c in others if c["code"] != "exact" or chosen["code"] != "exact"] or others
    better = [c for c in others if loss(c) < loss(chosen)]
    return min(better, key=_work) if better else min(others, key=loss)


def to_try(report: Mapping[str, Any]) -> list[str]:
    """Flags and advice with which a next training may lose less."""
    trained, tips = _trained(_made(report)), []
    if all(c["code"] != "student" for c in trained):
        tips.append("--code student")
    elif "budget" in report:
        tips.append(f"--budget {2 * report['budget']:g}")
    if trained and min(int(c["k"]) for c in trained) > 2:
        tips.append("--k 2")
    if "hyperparameters" in report:
        tips.append(f"--steps {4 * report['hyperparameters']['steps']}")
    if report.get("bodies", FEW_BODIES) < FEW_BODIES:
        tips.append(f"more bodies (these were {report['bodies']})")
    if all(c["loss_of"] == "agreement" for c in trained):
        tips.append("--labels (where your model is unsure, another answer is no worse)")
    return tips or ["another --architecture"]


def _work(candidate: Candidate) -> float:
    return extra_work(candidate) or 0.0


def named(candidate: Candidate) -> str:
    return f"{candidate['code']} with k={candidate['k']}" + (f", r={candidate['r']}" if candidate["r"] > 1 else "")


def _price(candidate: Candidate) -> str:
    return f"{lost_told(candidate)} and adds {_work(candidate):.0%} of work"


def lost_told(candidate: Candidate) -> str:
    """A verb and its object: what a rebuilt answer of it loses."""
    figure, lost = FIGURES[candidate["metric"]], loss(candidate)
    if candidate["code"] == "exact" or (lost <= 0 and not figure.error):
        return "loses nothing on rebuilt answers"
    if not figure.error:
        return f"loses {100 * lost:.2f} points of {candidate['loss_of']} on rebuilt answers"
    share = f"{lost:.2%} of {candidate['loss_of']}" if lost > 0 else "nothing"
    if "E_d" in candidate:
        return (
            f"loses {share} on rebuilt answers (their {figure.true} is {candidate['E_d']:.4g}, that of the deployed "
            f"model's own {candidate['E_a']:.4g})"
        )
    return (
        f"is off by {candidate['score']:.4g} on rebuilt answers ({figure.own}; the outputs' spread is "
        f"{candidate['spread']:.4g}, so that loses {share})"
    )
