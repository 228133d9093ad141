"""How sure a simulated protection is of its answers, and so how many of them differ from the deployed model's own.

Knows numbers only. A curve says how many of the surest 80 %, 90 %, ... of a protection's answers differ, as
`ts-parity report` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ts_parity.errors import ConfigError


@dataclass(frozen=True)
class AgreementCurve:
    """`points`: (share, differing). Of the surest `share` of all answers, a share of `differing` differs. Shares ascend
    to 1. Between two points all answers are taken to be equally sure. Raise ConfigError.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.points]
        if not shares or shares != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1.0:
            raise ConfigError(f"the shares of an agreement curve must ascend from above 0 to 1, not {shares}")
        for doubt in [doubt for _, doubt in self._parts()]:
            if not 0.0 <= doubt <= 1.0:
                raise ConfigError(f"an agreement curve of {self.points} would have answers that differ {doubt:.0%}")

    def draw(self, rng: np.random.Generator, size: int) -> list[float]:
        """The expected agreement of each of `size` answers, 0 to 1."""
        shares, doubts = zip(*self._parts(), strict=True)
        drawn: list[float] = (1.0 - rng.choice(np.asarray(doubts), size, p=np.asarray(shares))).tolist()
        return drawn

    def _parts(self) -> Sequence[tuple[float, float]]:
        """(share of the answers between two points, how many of those differ)."""
        parts, before, differing = [], 0.0, 0.0
        for share, doubt in self.points:
            parts.append((share - before, (share * doubt - differing) / (share - before)))
            before, differing = share, share * doubt
        return parts


FASHION: Mapping[tuple[str, int], AgreementCurve] = {
    ("student", 4): AgreementCurve(((0.8, 0.0007), (0.85, 0.0022), (0.9, 0.0065), (0.95, 0.0174), (1.0, 0.0371))),
    ("concat", 2): AgreementCurve(((1.0, 0.0567),)),
    ("concat", 4): AgreementCurve(((1.0, 0.0975),)),
    ("sum", 2): AgreementCurve(((1.0, 0.0843),)),
    ("sum", 3): AgreementCurve(((1.0, 0.1321),)),
    ("sum", 4): AgreementCurve(((1.0, 0.1846),)),
}
"""What protections of these codes and k do on the 10,000 test images of Fashion-MNIST; see the tables of
docs/benchmarks.md, which name the seeds. Only the student's confidence was measured; the others' answers are taken to
be equally sure."""


def measured_curve(code: str, k: int) -> AgreementCurve | None:
    """On Fashion-MNIST; None: not measured. A student does not depend on k, since it answers each query by itself."""
    return FASHION.get((code, 4 if code == "student" else k))
