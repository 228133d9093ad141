"""What a finished run of benchmarks/accuracy.py said, kept as it is: what is to be known of it later needs no training.

Knows arrays and one file a run. Knows nothing of networks, or of what the outputs mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.training.semantics import OutputSemantics
from ts_parity.training.weighing import row_errors
from ts_parity.wire import Array


@dataclass(frozen=True)
class Said:
    """To some bodies: outputs (n, *output) of the deployed model, groups (G, k) of indices into them, and what the
    protections said to these groups, by members present and row, as `evaluate` wants it. labels (n, ...).
    """

    outputs: Array
    labels: Array
    groups: Array
    protections: dict[int, dict[int, Array]]


@dataclass(frozen=True)
class KeptOutputs:
    """`test`: bodies that nobody has seen. `held`: those of the training set that no protection has learned from; the
    deployed model has, as it had of the bodies that `ts-parity train` holds out.
    """

    test: Said
    held: Said

    def save(self, file: Path) -> None:
        arrays: dict[str, Array] = {}
        for name, said in (("test", self.test), ("held", self.held)):
            arrays |= {f"{name} outputs": said.outputs, f"{name} labels": said.labels, f"{name} groups": said.groups}
            for members, rows in said.protections.items():
                arrays |= {f"{name} of {members} row {row}": answers for row, answers in rows.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        with open(unfinished, "wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
        unfinished.replace(file)

    @classmethod
    def load(cls, file: Path) -> KeptOutputs:
        with np.load(file) as opened:
            arrays = dict(opened.items())
        return cls(*(_said(name, arrays) for name in ("test", "held")))


def _said(name: str, arrays: dict[str, Array]) -> Said:
    protections: dict[int, dict[int, Array]] = {}
    for key, answers in arrays.items():
        words = key.split()
        if words[:2] == [name, "of"]:
            protections.setdefault(int(words[2]), {})[int(words[4])] = answers
    return Said(arrays[f"{name} outputs"], arrays[f"{name} labels"], arrays[f"{name} groups"], protections)


def without_repeats(code: ErasureCode, protections: dict[int, dict[int, Array]]) -> dict[int, dict[int, Array]]:
    """A backup's answer does not depend on how many members its group has: it is kept once."""
    return {code.k: protections[code.k]} if code.family is Family.BACKUP else protections


def with_repeats(code: ErasureCode, protections: dict[int, dict[int, Array]]) -> dict[int, dict[int, Array]]:
    if code.family is Family.BACKUP:
        return dict.fromkeys(range(1, code.k + 1), protections[code.k])
    return protections


def errors_of_rows(code: ErasureCode, held: Said, semantics: OutputSemantics) -> RowErrors:
    """For groups that are filled from the first slot on, which is all that `evaluate` looks at."""
    said = {tuple(range(members)): rows for members, rows in held.protections.items()}
    return row_errors(code, held.outputs[held.groups], said, semantics, len(held.outputs))
