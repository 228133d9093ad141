"""What a rebuilt answer is worth: one pure function from outputs to numbers, and the mean of several of its results.

Used by training, the command line, benchmarks and tests alike. Knows codes, arrays and what outputs mean. Knows nothing
of models, files or how the outputs were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ts_parity.codes import Code, Family
from ts_parity.training.meaning import CLASSES, Meaning
from ts_parity.wire import Array

SHARES = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Unavailable shares f at which the overall accuracy A_o = (1 - f) A_a + f A_d is stated."""

Protections = Mapping[int, Mapping[int, Array]]
"""Number of members present (slots 0 .. m-1) -> row -> what was answered: the parity output (groups, *output), or of a
backup its output for each slot (groups, k, *output)."""


def evaluate(
    code: Code, outputs: Array, protections: Protections, labels: Array | None = None, meaning: Meaning = CLASSES
) -> dict[str, Any]:
    """Erase every slot once and compare what is decoded with what the deployed model said, and with the truth.

    outputs (groups, k, *output): the deployed raw outputs. labels: (groups, k) class indices, or (groups, k, numbers).
    meaning: of the outputs; by default they are scores of classes.

    -> `score`: of rebuilt answers against the deployed model's own, by the `metric`; called `agreement` as well if
    that is what it is. `A_a` and `A_d`: of own and of rebuilt answers against the labels; of an error `E_a` and `E_d`,
    in the outputs' unit. For full groups these stand at the top, per number of members present in `members`, and for a
    parity code of r = 2 with two slots erased in `two_erased`. `A_default` is what one constant answer would score,
    `A_o` and `A_o_default` the overall accuracy at shares f (of an error `E_default`, `E_o`, `E_o_default`).

    `error` is the root mean square error of rebuilt outputs in units of the deployed outputs' own spread. `loss` is
    what a rebuilt answer loses, as a share that can be compared between metrics: of accuracy where labels are known
    (`drop`), else of agreement; of numbers of their variance. `loss_of` says in words of what.
    """
    return _Scored(code, outputs, protections, labels, meaning).result()


class _Scored:
    """What the scores of one candidate share."""

    def __init__(
        self, code: Code, outputs: Array, protections: Protections, labels: Array | None, meaning: Meaning
    ) -> None:
        self.code = code
        self.outputs = outputs
        self.protections = protections
        self.meaning = meaning
        self.said = meaning.answers(outputs)
        self.truth = None if labels is None else meaning.truths(labels)
        self.spread = meaning.spread(outputs)
        self.letter = "E" if meaning.figure.error else "A"

    def result(self) -> dict[str, Any]:
        code, meaning = self.code, self.meaning
        full = self._scores(code.k, 1)
        result: dict[str, Any] = {"metric": meaning.metric, **full, **self._loss(full)}
        result["members"] = {str(m): self._scores(m, 1) for m in sorted(self.protections)}
        if code.r > 1 and code.family is Family.PARITY:
            result["two_erased"] = self._scores(code.k, 2)
        if meaning.figure.error:
            result["spread"] = round(float(np.sqrt(np.square(self.spread).mean())), 5)
        return result if self.truth is None else {**result, **self._overall(full)}

    def _scores(self, members: int, erased: int) -> dict[str, float]:
        """`erased` of the slots of groups with so many members, in every way there is."""
        meaning = self.meaning
        agreed, right, squares = [], [], []
        for slot, rebuilt in self._rebuilt(members, erased):
            agreed.append(meaning.scores(rebuilt, self.said[:, slot], 1))
            difference = (rebuilt - self.outputs[:, slot]).reshape(len(rebuilt), -1)
            squares.append(float(np.square(difference / self.spread).mean()))
            if self.truth is not None:
                right.append(meaning.scores(rebuilt, self.truth[:, slot], 1))
        score = round(meaning.figure_of(np.stack(agreed)), 5)
        scores = {"score": score, **({"agreement": score} if meaning.metric == "accuracy" else {})}
        scores["error"] = round(float(np.sqrt(np.mean(squares))), 5)
        if self.truth is not None:
            scores[f"{self.letter}_d"] = round(meaning.figure_of(np.stack(right)), 5)
        return scores

    def _rebuilt(self, members: int, erased: int) -> Iterator[tuple[int, Array]]:
        return rebuilt_slots(self.code, self.outputs, self.protections[members], members, erased)

    def _loss(self, full: Mapping[str, float]) -> dict[str, Any]:
        meaning, figure = self.meaning, self.meaning.figure
        if not figure.error:
            if self.truth is None:
                return {"loss": round(1.0 - full["score"], 5), "loss_of": figure.own}
            return {"loss": round(self._own() - full["A_d"], 5), "loss_of": figure.true}
        if self.truth is None:
            return {"loss": round(full["error"] ** 2, 5), "loss_of": "the outputs' variance"}
        spread = meaning.spread(self.truth)
        lost = [
            meaning.lost_variance(rebuilt, self.truth[:, slot], spread, 1)
            for slot, rebuilt in self._rebuilt(self.code.k, 1)
        ]
        own = meaning.lost_variance(self.outputs, self.truth, spread)
        return {"loss": round(float(np.mean(lost)) - own, 5), "loss_of": "the labels' variance"}

    def _overall(self, full: Mapping[str, float]) -> dict[str, Any]:
        assert self.truth is not None
        letter, own, default = self.letter, self._own(), self.meaning.default(self.truth)
        rebuilt = full[f"{letter}_d"]
        drop = {"drop": round(own - rebuilt, 5)} if letter == "A" else {}
        return {
            f"{letter}_a": round(own, 5),
            **drop,
            f"{letter}_default": round(default, 5),
            f"{letter}_o": {f"{f:.2f}": round(self.meaning.mixed(own, rebuilt, f), 5) for f in SHARES},
            f"{letter}_o_default": {f"{f:.2f}": round(self.meaning.mixed(own, default, f), 5) for f in SHARES},
        }

    def _own(self) -> float:
        assert self.truth is not None
        return self.meaning.figure_of(self.meaning.scores(self.outputs, self.truth))


def rebuilt_slots(
    code: Code, outputs: Array, rows: Mapping[int, Array], members: int, erased: int
) -> Iterator[tuple[int, Array]]:
    """Every slot that was erased, with what is decoded for it: (groups, *output). Arguments as in `evaluate`."""
    for lost in itertools.combinations(range(members), min(erased, members)):
        have = {other: outputs[:, other] for other in range(members) if other not in lost}
        for slot in lost:
            if code.family is Family.BACKUP:
                yield slot, rows[0][:, slot]
                continue
            # Unchecked: of a group with an outlier a proxy would decode nothing, and these are many groups at once.
            total, _ = code.combined(slot, have, rows, dict.fromkeys(rows, frozenset(range(members))))
            yield slot, total


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `evaluate` for one candidate: the mean of every number; of what is reported first also the
    spread (standard deviation over seeds; 0 for one).
    """
    mean = _mean(results)
    for name in _SPREAD_TOLD:
        if name in mean:
            values = [float(result[name]) for result in results]
            mean[f"{name}_spread"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else 0.0
    return {**mean, "seeds": len(results)}


_SPREAD_TOLD = ("score", "agreement", "A_d", "E_d", "drop", "loss")


def _mean(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = results[0]
    mean: dict[str, Any] = {}
    for name, value in first.items():
        if isinstance(value, Mapping):
            mean[name] = _mean([result[name] for result in results])
        elif isinstance(value, float):
            mean[name] = round(float(np.mean([result[name] for result in results])), 5)
        else:
            mean[name] = value
    return mean
