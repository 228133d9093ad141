"""What an instance reports: its models, their workers, and what a wrapped archive publishes in describe.

Values, and the parser that turns foreign JSON into them and checks everything first. Knows nothing of how the JSON was
fetched, or of what `plan` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ts_parity.codes import ErasureCode, Family, RowErrors, make_code, read_row_errors
from ts_parity.confidence import Confidence, read_confidence
from ts_parity.describe import READY, UNREADABLE, ProtectedModel, customized_of, read_description, read_name, short_text
from ts_parity.errors import CodeError, ConfigError, TsParityError
from ts_parity.exclusion import Exclusions, read_never_code
from ts_parity.wire import VERSION

DEPLOYED = "deployed"
PARITY = "parity"
REFUSED = "refused"
UNTESTED = "untested"


class BadDescribe(TsParityError):
    """A describe that claims to be ours and cannot be understood."""


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


def read_model(entry: Any, default_version: str) -> ModelReport:
    """One entry of TorchServe's describe. Raise BadDescribe."""
    try:
        described = read_description(entry)
    except UNREADABLE as error:
        raise BadDescribe(f"its describe is not TorchServe's: {_error_text(error)}") from None
    ready = [worker for worker in described.workers if worker.status == READY]
    return ModelReport(
        model=described.name,
        version=described.version,
        default=described.version == default_version,
        ready=len(ready),
        batch_size=max(1, described.batch_size),
        pids=tuple(sorted(worker.process for worker in described.workers)),
        running=frozenset(worker.process for worker in ready),
        batch_delay_ms=described.max_batch_delay_ms,
        response_timeout_s=described.response_timeout_s,
    )


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__} {ascii(str(error))[1:100]}"


def read_customized(entry: Any) -> ArchiveDescription | None:
    """What a wrapped archive publishes; None for any other archive. Raise BadDescribe if it is unusable."""
    customized = customized_of(entry)
    ours = None if customized is None else customized.get("ts_parity")
    return read_described(ours) if isinstance(ours, Mapping) else None


def read_described(ours: Mapping[str, Any]) -> ArchiveDescription:
    """Raise BadDescribe."""
    if ours.get("wire") != VERSION:
        raise BadDescribe(f"its worker speaks wire version {short_text(ours.get('wire'))}, this proxy {VERSION}")
    role = ours.get("role")
    if role not in (DEPLOYED, PARITY):
        raise BadDescribe(f"its role is {short_text(role)!r}, neither {DEPLOYED} nor {PARITY}")
    weights = ours.get("weights")
    output = ours.get("output")
    never_code = None
    if "never_code" in ours:
        try:
            never_code = read_never_code(ours["never_code"])
        except ConfigError as error:  # otherwise it would not be known which bodies may be coded
            raise BadDescribe(short_text(error)) from None
    described = ArchiveDescription(
        role=role,
        weights=short_text(weights) if weights else None,
        verdict=short_text(ours.get("verdict", "")),
        reason=short_text(ours.get("reason") or ""),
        output=short_text(f"{output.get('dtype')}{output.get('shape')}") if isinstance(output, Mapping) else "",
        repeatable=ours.get("repeatable") is not False,
        never_code=never_code,
    )
    return described if role == DEPLOYED else _read_protection(ours, described)


def _read_protection(ours: Mapping[str, Any], common: ArchiveDescription) -> ArchiveDescription:
    try:
        rows = ours.get("coefficients")
        coefficients = tuple(tuple(float(c) for c in row) for row in rows) if rows else None
        code = make_code(str(ours["code"]), int(ours["k"]), int(ours.get("r", 1)), coefficients)
        row = int(ours.get("row", 0))
        protects = ours["protects"]
        weights = protects.get("weights")
        model, version = read_name(protects["model"]), read_name(protects["version"])
        protected = ProtectedModel(model, version, short_text(weights) if weights else None)
        # Backups serve any number of members; a parity model must have been trained for it.
        partial = bool(ours.get("partial", code.family is Family.BACKUP))
        cost = None if ours.get("cost") is None else float(ours["cost"])
        if cost is not None and not 0 <= cost < math.inf:
            raise ValueError(f"its cost is {cost}")
        if ours.get("cost_on") not in (None, ours.get("device")):  # measured on another kind of device
            cost = None
    except CodeError as error:
        raise BadDescribe(short_text(error)) from None
    except UNREADABLE as error:
        raise BadDescribe(f"its describe as a protection is incomplete: {_error_text(error)}") from None
    if not 0 <= row < code.r:
        raise BadDescribe(f"it says it is row {row} of {code.r}")
    return replace(
        common,
        code=code,
        row=row,
        partial=partial,
        protects=protected,
        cost=cost,
        agreement=_share(ours.get("agreement")),
        tolerance=_positive(ours.get("tolerance")),
        row_errors=_row_errors(ours.get("row_errors"), code),
        confidence=_confidence(ours.get("confidence")),
    )


def _row_errors(given: Any, code: ErasureCode) -> RowErrors | None:
    try:
        return None if given is None else read_row_errors(given, code)
    except CodeError:
        return None


def _confidence(given: Any) -> Confidence | None:
    """An unreadable one counts as absent: confidences are then unknown, and nothing else changes."""
    try:
        return None if given is None else read_confidence(given)
    except ConfigError:
        return None


def _share(given: Any) -> float | None:
    """Anything but a share counts as absent."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    return float(given) if number and 0.0 <= given <= 1.0 else None


def _positive(given: Any) -> float | None:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    return float(given) if number and 0.0 < given < math.inf else None
