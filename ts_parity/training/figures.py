"""The figures by which answers are scored: what each is called, against whom, and how it is written.

Names only, cheap to import. Knows nothing of arrays; how a figure is computed stands in `semantics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """`own`: its name against the deployed model's own answers, `true`: against labels. `kind`: of outputs it is for.

    An `error` is the better the smaller it is, in the outputs' own unit; the others are shares, at best 1.
    """

    kind: str
    own: str
    true: str
    error: bool = False

    @property
    def share(self) -> bool:
        """Between 0 and 1."""
        return not self.error and self.kind != "embedding"

    def format(self, value: float, margin: float | None = None) -> str:
        """`margin`: to either side."""
        if self.error:
            return f"{value:.4g}" + (f" ± {margin:.2g}" if margin else "")
        return f"{value:.2%}" + (f" ± {100 * margin:.2f}" if margin else "")


FIGURES = {
    "accuracy": Figure("classes", "agreement", "accuracy"),
    "top5": Figure("classes", "top-5 agreement", "top-5 accuracy"),
    "labels": Figure("labels", "overlap of labels", "overlap of labels"),
    "iou": Figure("box", "overlap of boxes", "overlap of boxes"),
    "cosine": Figure("embedding", "cosine similarity", "cosine similarity"),
    "mae": Figure("numbers", "mean absolute error", "mean absolute error", error=True),
    "rmse": Figure("numbers", "root mean square error", "root mean square error", error=True),
}


def margin(scores: Mapping[str, Any], name: str, at: str | None = None) -> float | None:
    """Of what a report says by this name (and at this share), the larger side of its 95 % interval."""
    value, interval = scores[name], scores.get("intervals", {}).get(name)
    if at is not None:
        value, interval = value[at], None if interval is None else interval[at]
    return None if interval is None else max(value - interval[0], interval[1] - value)


NO_GUARD = (
    "a confidence holds for bodies like those of training; it is no guard against shift: other bodies get answers that "
    "look as sure and agree less often, and only live comparison with the late answers shows it"
)
