"""A dozen bodies whose rebuilt answers are not the deployed model's own, and what both said; and the same by class.

Knows answers, and what outputs mean. Knows nothing of networks or pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ts_parity.training.bodies import RequestBody
from ts_parity.training.intervals import ScoredAnswers, of_difference, of_share
from ts_parity.training.semantics import OutputSemantics
from ts_parity.wire import Array

SHOWN = 12
_NUMBERS = 6
"""Of an answer that are shown."""
MOST_CLASSES = 1000
"""Of a report. A model of more is one of words, and they are no classes that a reader would look through."""


@dataclass(frozen=True)
class RebuiltAnswers:
    """Every answer of full groups that was rebuilt (n, ...), flat: which scored body it is of, its raw output, the
    deployed model's own, which content the body has, and its label where it is known.
    """

    bodies: Array
    rebuilt: Array
    own: Array
    contents: Array
    labels: Array | None

    def scores(self, semantics: OutputSemantics) -> Array:
        """(n,): against the deployed model's own answers."""
        return semantics.scores(self.rebuilt, semantics.answers(self.own, 1), 1)


def by_class(answers: RebuiltAnswers, semantics: OutputSemantics) -> list[dict[str, Any]]:
    """What answers of each class lose, the worst first; nothing where answers are no single class.

    A class is that of the label, else of the deployed model's own answer. `bodies` counts different ones.
    """
    own = semantics.answers(answers.own, 1)
    if semantics.kind != "classes" or own.shape[-1] != 1:
        return []
    truth = own if answers.labels is None else semantics.truths(answers.labels, 1)
    if len(found := np.unique(truth)) > MOST_CLASSES:
        return []
    agreed, rows = answers.scores(semantics), []
    if answers.labels is None:
        lost = 1.0 - agreed
    else:
        lost = semantics.scores(answers.own, truth, 1) - semantics.scores(answers.rebuilt, truth, 1)
    for each in found:
        mine = truth[:, 0] == each
        contents, which = np.unique(answers.contents[mine], return_inverse=True)
        count = np.bincount(which)
        alone = ScoredAnswers((0,), contents[:, None], together=False)
        losses, agreements = (np.bincount(which, values[mine]) / count for values in (lost, agreed))
        interval = of_share if answers.labels is None else of_difference
        rows.append(
            {
                "class": int(each),
                "bodies": len(contents),
                "loss": round(float(losses.mean()), 5),
                "agreement": round(float(agreements.mean()), 5),
                "intervals": {
                    "loss": [round(end, 5) for end in interval(losses[None], alone)],
                    "agreement": [round(end, 5) for end in of_share(agreements[None], alone)],
                },
            }
        )
    return sorted(rows, key=lambda row: (-row["loss"], row["class"]))


def who_was_right(answers: RebuiltAnswers, semantics: OutputSemantics) -> dict[str, Any]:
    """Of how many answers how many differ, and with labels which of the two was right then."""
    if semantics.kind != "classes" or semantics.answers(answers.own[:1], 1).shape[-1] != 1:
        return {}
    differ = answers.scores(semantics) < 1.0
    told: dict[str, Any] = {"answers": len(differ), "differ": int(differ.sum())}
    if answers.labels is not None and semantics.metric == "accuracy":
        truth = semantics.truths(answers.labels, 1)
        own, rebuilt = (semantics.scores(said, truth, 1) == 1.0 for said in (answers.own, answers.rebuilt))
        told |= {"own_right": int((differ & own).sum()), "rebuilt_right": int((differ & rebuilt).sum())}
    return told


def chosen_from(
    answers: RebuiltAnswers, semantics: OutputSemantics, dice: np.random.Generator, most: int = SHOWN
) -> list[int]:
    """Places in `answers`, of different bodies: of classes any that differ, else those that are furthest off."""
    scores = answers.scores(semantics)
    badness = scores if semantics.figure.error else 1.0 - scores
    order = dice.permutation(len(scores)) if semantics.kind == "classes" else np.argsort(-badness, kind="stable")
    found: dict[int, int] = {}
    for place in order[badness[order] > 0]:
        found.setdefault(int(answers.contents[place]), int(place))
        if len(found) == most:
            break
    return [*found.values()]


def told_of(raw: Array, semantics: OutputSemantics, names: Sequence[str] = ()) -> str:
    """One raw output (*output) as a reader sees it."""
    said = semantics.answers(raw[None], 1)[0]
    if semantics.kind == "classes":
        if len(said) == 1:
            return class_name(int(said[0]), names)
        return _few([class_name(int(each), names) for each in said])
    if semantics.kind == "labels":
        return _few([class_name(int(each), names) for each in np.flatnonzero(said[0])]) or "none"
    return _few([f"{number:.4g}" for number in said.ravel()[: _NUMBERS + 1]], said.size)


def label_told(label: Array, semantics: OutputSemantics, names: Sequence[str] = ()) -> str:
    truth = semantics.truths(np.asarray(label)[None], 1)[0].reshape(-1)
    if semantics.kind == "classes":
        return _few([class_name(int(each), names) for each in truth])
    if semantics.kind == "labels":
        return _few([class_name(int(each), names) for each in np.flatnonzero(truth)]) or "none"
    return _few([f"{number:.4g}" for number in truth])


def _few(told: Sequence[str], count: int = 0) -> str:
    count = max(count, len(told))
    return ", ".join(told[:_NUMBERS]) + (f" … ({count} in all)" if count > _NUMBERS else "")


def class_name(number: int, names: Sequence[str]) -> str:
    return names[number] if 0 <= number < len(names) else f"class {number}"


def class_names(folder: Path, classes: int, bodies: Sequence[RequestBody] = ()) -> list[str]:
    """Of an archive's classes, by TorchServe's own custom, or else by the folders of `bodies` if these name classes;
    empty if nobody says.
    """
    try:
        mapping = json.loads((folder / "index_to_name.json").read_text(encoding="utf-8"))
        names = [mapping[str(number)] for number in range(classes)]
        return [str(name[-1] if isinstance(name, list) else name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        folders = sorted({PurePosixPath(body.name).parent.as_posix() for body in bodies} - {"."})
        return folders if len(folders) == classes else []
