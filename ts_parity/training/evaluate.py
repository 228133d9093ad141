"""Scores of rebuilt answers: one pure function from outputs to numbers, and the mean of several of its results.

Used by training, the command line, benchmarks and tests alike. Knows codes, arrays and what outputs mean. Knows nothing
of models, files or how the outputs were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.training.intervals import Interval, ScoredAnswers, of_difference, of_mean, of_root, of_share
from ts_parity.training.semantics import CLASSES, OutputSemantics
from ts_parity.wire import Array

SHARES = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Unavailable shares f at which the overall accuracy A_o = (1 - f) A_a + f A_d is stated."""

Protections = Mapping[int, Mapping[int, Array]]
"""Number of members present (slots 0 .. m-1) -> row -> what was answered: the parity output (groups, *output), or of a
backup its output for each slot (groups, k, *output)."""


def evaluate(
    code: ErasureCode,
    outputs: Array,
    protections: Protections,
    labels: Array | None = None,
    semantics: OutputSemantics = CLASSES,
    contents: Array | None = None,
    errors: RowErrors | None = None,
) -> dict[str, Any]:
    """Erase every slot once and compare what is decoded with what the deployed model said, and with the truth.

    outputs (groups, k, *output): the deployed raw outputs. labels: (groups, k) class indices, or (groups, k, numbers).
    meaning: of the outputs; by default they are scores of classes. contents: (groups, k) numbers, the same for the same
    body; by default no two are the same. errors: what decode weighs several rows by.

    -> `score`: of rebuilt answers against the deployed model's own, by the `metric`; called `agreement` as well if
    that is what it is. `A_a` and `A_d`: of own and of rebuilt answers against the labels; of an error `E_a` and `E_d`,
    in the outputs' unit. For full groups these stand at the top, per number of members present in `members`, and for a
    parity code of r = 2 with two slots erased in `two_erased`. `A_default` is what one constant answer would score,
    `A_o` and `A_o_default` the overall accuracy at shares f (of an error `E_default`, `E_o`, `E_o_default`).

    `error` is the root mean square error of rebuilt outputs in units of the deployed outputs' own spread. `loss` is
    what a rebuilt answer loses, as a share that can be compared between metrics: of accuracy where labels are known
    (`drop`), else of agreement; of numbers of their variance. `loss_of` says in words of what.

    `intervals` beside any of these holds their 95 % intervals, by the same names.
    """
    if contents is None:
        contents = np.arange(outputs.shape[0] * code.k).reshape(-1, code.k)
    return _Evaluation(code, outputs, protections, labels, semantics, contents, errors).result()


class _Evaluation:
    """The scores of one candidate, and what they share."""

    def __init__(
        self,
        code: ErasureCode,
        outputs: Array,
        protections: Protections,
        labels: Array | None,
        semantics: OutputSemantics,
        contents: Array,
        errors: RowErrors | None,
    ) -> None:
        self.code = code
        self.outputs = outputs
        self.protections = protections
        self.semantics = semantics
        self.own = semantics.answers(outputs)
        self.truth = None if labels is None else semantics.truths(labels)
        self.spread = semantics.spread(outputs)
        self.contents = contents
        self.errors = errors
        self.letter = "E" if semantics.figure.error else "A"

    def result(self) -> dict[str, Any]:
        code, semantics = self.code, self.semantics
        full, answers = self._scores(code.k, 1)
        result: dict[str, Any] = {"metric": semantics.metric, **full.figures}
        intervals: dict[str, Any] = full.intervals
        for more in (self._loss(full, answers), self._overall(full, answers)):
            result |= more.figures
            intervals |= more.intervals
        result["intervals"] = intervals
        result["members"] = {str(m): self._scores(m, 1)[0].told() for m in sorted(self.protections)}
        if code.r > 1 and code.family is Family.PARITY:
            result["two_erased"] = self._scores(code.k, 2)[0].told()
        if semantics.figure.error:
            result["spread"] = round(float(np.sqrt(np.square(self.spread).mean())), 5)
        return result

    def _scores(self, members: int, erased: int) -> tuple[_Figures, _RebuiltScores]:
        """`erased` of the slots of groups with so many members, in every way there is."""
        semantics = self.semantics
        slots, agreed, right, squares = [], [], [], []
        for slot, rebuilt in self._rebuilt(members, erased):
            slots.append(slot)
            agreed.append(semantics.scores(rebuilt, self.own[:, slot], 1))
            difference = (rebuilt - self.outputs[:, slot]).reshape(len(rebuilt), -1)
            squares.append(np.square(difference / self.spread).mean(1))
            if self.truth is not None:
                right.append(semantics.scores(rebuilt, self.truth[:, slot], 1))
        answers = ScoredAnswers(tuple(slots), self.contents[:, :members], self.code.family is Family.PARITY)
        scored = _RebuiltScores(answers, np.stack(squares), np.stack(right) if right else None)
        told = _Figures()
        score = self._figure(np.stack(agreed), answers, known=self.code.lossless)
        told.add("score", *score)
        if semantics.metric == "accuracy":
            told.add("agreement", *score)
        error = float(np.sqrt(scored.squares.mean()))
        told.add("error", error, (error, error) if self.code.lossless else of_root(scored.squares, answers))
        if scored.right is not None:
            told.add(f"{self.letter}_d", *self._figure(scored.right, answers))
        return told, scored

    def _figure(self, scores: Array, answers: ScoredAnswers, known: bool = False) -> tuple[float, Interval]:
        """Of the scores of single answers. `known`: it is so by construction, of all bodies."""
        value = self.semantics.figure_of(scores)
        if known:
            return value, (value, value)
        if self.semantics.metric == "rmse":
            return value, of_root(scores, answers)
        if self.semantics.figure.share:
            return value, of_share(scores, answers, self._binary)
        low, high = of_mean(scores, answers)
        return value, (max(0.0, low), high) if self.semantics.figure.error else (low, min(1.0, high))

    @property
    def _binary(self) -> bool:
        return self.semantics.kind == "classes" and self.own.shape[-1] == 1

    def _rebuilt(self, members: int, erased: int) -> Iterator[tuple[int, Array]]:
        return rebuilt_slots(self.code, self.outputs, self.protections[members], members, erased, self.errors)

    def _loss(self, full: _Figures, scored: _RebuiltScores) -> _Figures:
        semantics, figure, told, answers = self.semantics, self.semantics.figure, _Figures(), scored.answers
        if not figure.error:
            if self.truth is None:
                low, high = full.intervals["score"]
                told.add("loss", 1.0 - full.figures["score"], (1.0 - high, 1.0 - low))
            else:
                assert scored.right is not None
                lost = self._own(answers) - scored.right
                value = float(lost.mean())
                told.add("loss", value, (value, value) if self.code.lossless else of_difference(lost, answers))
            told.figures["loss_of"] = figure.own if self.truth is None else figure.true
            return told
        if self.truth is None:
            told.add("loss", full.figures["error"] ** 2, tuple(side**2 for side in full.intervals["error"]))
            told.figures["loss_of"] = "the outputs' variance"
            return told
        spread = semantics.spread(self.truth)
        lost = np.stack(
            [
                semantics.lost_variance(rebuilt, self.truth[:, slot], spread, 1)
                - semantics.lost_variance(self.outputs[:, slot], self.truth[:, slot], spread, 1)
                for slot, rebuilt in self._rebuilt(self.code.k, 1)
            ]
        )
        told.add("loss", float(lost.mean()), of_mean(lost, answers))
        told.figures["loss_of"] = "the labels' variance"
        return told

    def _overall(self, full: _Figures, scored: _RebuiltScores) -> _Figures:
        told, letter, answers = _Figures(), self.letter, scored.answers
        if self.truth is None:
            return told
        assert scored.right is not None
        own = self._own(answers)
        default = self.semantics.default_scores(self.truth)[:, list(answers.slots)].T
        told.add(f"{letter}_a", *self._figure(own, answers))
        if letter == "A":
            drop = own - scored.right
            value = float(drop.mean())
            told.add("drop", value, (value, value) if self.code.lossless else of_difference(drop, answers))
        told.add(f"{letter}_default", *self._figure(default, answers))
        for name, other in ((f"{letter}_o", scored.right), (f"{letter}_o_default", default)):
            mixed = {f"{f:.2f}": self._figure((1 - f) * own + f * other, answers) for f in SHARES}
            told.figures[name] = {f: round(value, 5) for f, (value, _) in mixed.items()}
            told.intervals[name] = {f: _rounded(interval) for f, (_, interval) in mixed.items()}
        return told

    def _own(self, answers: ScoredAnswers) -> Array:
        """What the deployed model's own answers score, in the order of the rebuilt ones."""
        assert self.truth is not None
        scores = self.semantics.scores(self.outputs, self.truth)
        return np.asarray(scores[:, list(answers.slots)].T)


@dataclass(frozen=True)
class _RebuiltScores:
    """Of all answers that were rebuilt: the squares of their errors, and what they score against the truth."""

    answers: ScoredAnswers
    squares: Array
    right: Array | None


@dataclass(frozen=True)
class _Figures:
    figures: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float, interval: tuple[float, ...]) -> None:
        self.figures[name] = round(value, 5)
        self.intervals[name] = _rounded(interval)

    def told(self) -> dict[str, Any]:
        return {**self.figures, "intervals": self.intervals}


def _rounded(interval: tuple[float, ...]) -> list[float]:
    return [round(side, 5) for side in interval]


def rebuilt_slots(
    code: ErasureCode,
    outputs: Array,
    rows: Mapping[int, Array],
    members: int,
    erased: int,
    errors: RowErrors | None = None,
) -> Iterator[tuple[int, Array]]:
    """Every slot that was erased, with what is decoded for it: (groups, *output). Arguments as in `evaluate`."""
    for lost in itertools.combinations(range(members), min(erased, members)):
        have = {other: outputs[:, other] for other in range(members) if other not in lost}
        for slot in lost:
            if code.family is Family.BACKUP:
                yield slot, rows[0][:, slot]
                continue
            # Unchecked: of a group with an outlier a proxy would decode nothing, and these are many groups at once.
            total, _ = code.combined(slot, have, rows, dict.fromkeys(rows, frozenset(range(members))), errors)
            yield slot, total


def of_packed(results: Sequence[Mapping[str, Any]], packed: int) -> dict[str, Any]:
    """Several results of `evaluate` for one candidate, of which one is packed: its figures, and beside them the mean
    and the spread over all (see `over_seeds`).
    """
    mean = over_seeds(results)
    beside = {name: mean[name] for told in SPREAD_TOLD for name in (told, f"{told}_spread") if told in mean}
    spreads = {name: value for name, value in beside.items() if name.endswith("_spread")}
    return {**results[packed], **spreads, "seeds": len(results), **({"over_seeds": beside} if len(results) > 1 else {})}


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `evaluate` for one candidate: the mean of every number; of what is reported first also the
    spread (standard deviation over seeds; 0 for one).
    """
    mean = _mean(results)
    for name in SPREAD_TOLD:
        if name in mean:
            values = [float(result[name]) for result in results]
            mean[f"{name}_spread"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else 0.0
    return {**mean, "seeds": len(results)}


SPREAD_TOLD = ("score", "agreement", "A_d", "E_d", "drop", "loss")


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
