"""What an instance reports: its models, their workers, and what a wrapped archive publishes in describe.

Values. Knows nothing of how they were found out, or of what `plan` makes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ts_parity.codes import ErasureCode, RowErrors
from ts_parity.confidence import Confidence
from ts_parity.config import MANAGED
from ts_parity.describe import ProtectedModel
from ts_parity.exclusion import Exclusions

DEPLOYED = "deployed"
PARITY = "parity"
REFUSED = "refused"
UNTESTED = "untested"


@dataclass(frozen=True)
class ArchiveDescription:
    """What a wrapped archive publishes. The last nine are set for protections only."""

    role: str
    weights: str | None = None
    verdict: str = ""
    reason: str = ""
    output: str = ""
    """Shape and dtype of the raw output, as text to compare; empty where unknown."""
    repeatable: bool = True
    """False: its handler was seen to answer the same request differently, or to keep state between requests."""
    never_code: Exclusions | None = None
    code: ErasureCode | None = None
    row: int = 0
    partial: bool = False
    protects: ProtectedModel | None = None
    cost: float | None = None
    """Of a full group, in deployed inferences; None if it was not measured."""
    agreement: float | None = None
    """With the deployed model's own decisions, from its report; None if it was not measured."""
    tolerance: float | None = None
    """How far off its answers usually are, where they are numbers."""
    row_errors: RowErrors | None = None
    """Of all rows of its training, with r > 1; None if they were not measured."""
    confidence: Confidence | None = None
    """Expected agreement of its answers, from their raw output; None if it was not calibrated."""


@dataclass(frozen=True)
class ModelReport:
    """One model and version on one instance.

    `described` is None for an archive that is not wrapped. `silent`: it has not answered describe, so whether it is
    wrapped is not known; `describing`: its worker may be busy with that request. `problem`: its answer cannot be used.
    """

    model: str
    version: str
    default: bool
    ready: int
    batch_size: int
    pids: tuple[str, ...] = ()
    """Its worker processes. A name changes when its worker is restarted or registered again."""
    running: frozenset[str] = frozenset()
    """Those of them that are READY."""
    described: ArchiveDescription | None = None
    silent: bool = False
    describing: bool = False
    problem: str = ""
    cold: bool = False
    """It has workers, but none was READY yet or for a while. Its first prediction may make one READY."""
    batch_delay_ms: int = 0
    """How long its frontend waits for a batch to fill."""
    response_timeout_s: int = 0
    kind: str = MANAGED
    """Of server."""
    called: str = ""
    """What its server calls it, if that is not `model`: where kinds are mixed, names begin with the kind."""
    apart: bool = False
    """Its places are not taken from those of the other models there."""
    takes: str = ""
    """Its inputs and outputs, as text to compare; empty where not told."""
    passed: str = ""
    """Why its requests are only passed through; empty if they may be copied and protected."""

    @property
    def real_name(self) -> str:
        return self.called or self.model

    @property
    def places(self) -> int:
        return self.ready * self.batch_size

    @property
    def is_protection(self) -> bool:
        return self.described is not None and self.described.role == PARITY


@dataclass(frozen=True)
class InstanceReport:
    """One instance as last seen. Not `up`: nothing can be sent there; `problem` says why."""

    name: str
    up: bool
    models: tuple[ModelReport, ...] = ()
    problem: str = ""
    undescribed: tuple[str, ...] = ()
    """Models in its list that it did not describe."""
    last_hosted: tuple[ModelReport, ...] = ()
    """While it is down: what it hosted when it was last up."""
    down_by_gateway: bool = False
    """A gateway in front of it says that it is down. The gateway may be wrong, so a prediction may be tried."""
    unauthorized: bool = False
    """Its management API asks for another key, so what it hosts is unknown, or known from before only."""
    wrong_port: bool = False
    """Something answers there, and it is not the API that the configuration names."""
    seen_at: float = field(default=math.nan, compare=False)
    """When the refresh that this report is from began, on the clock of `time.monotonic`."""


def prefixed(report: InstanceReport, prefix: str) -> InstanceReport:
    """With this before the names of its models, and of those that they protect."""

    def renamed(model: ModelReport) -> ModelReport:
        described = model.described
        if described is not None and described.protects is not None:
            protects = replace(described.protects, model=prefix + described.protects.model)
            described = replace(described, protects=protects)
        return replace(model, model=prefix + model.model, called=model.model, described=described)

    return replace(
        report,
        models=tuple(map(renamed, report.models)),
        last_hosted=tuple(map(renamed, report.last_hosted)),
        undescribed=tuple(prefix + name for name in report.undescribed),
    )
