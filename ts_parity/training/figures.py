"""The figures by which answers are scored: what each is called, against whom, and how it is written.

Names only, cheap to import. Knows nothing of arrays; how a figure is computed stands in `meaning`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`own`: its name against the deployed model's own answers, `true`: against labels. `kind`: of outputs it is for.

    An `error` is the better the smaller it is, in the outputs' own unit; the others are shares, at best 1.
    """

    kind: str
    own: str
    true: str
    error: bool = False

    def told(self, value: float, spread: float | None = None) -> str:
        """`spread`: over seeds."""
        if self.error:
            return f"{value:.4g}" + (f" ± {spread:.2g}" if spread else "")
        return f"{value:.2%}" + (f" ± {100 * spread:.2f}" if spread else "")


FIGURES = {
    "accuracy": Figure("classes", "agreement", "accuracy"),
    "top5": Figure("classes", "top-5 agreement", "top-5 accuracy"),
    "labels": Figure("labels", "overlap of labels", "overlap of labels"),
    "iou": Figure("box", "overlap of boxes", "overlap of boxes"),
    "cosine": Figure("embedding", "cosine similarity", "cosine similarity"),
    "mae": Figure("numbers", "mean absolute error", "mean absolute error", error=True),
    "rmse": Figure("numbers", "root mean square error", "root mean square error", error=True),
}
