"""Turns what TorchServe and wrapped archives say in describe into reports, and checks everything first.

Pure. Knows nothing of how the JSON was fetched, or of what `plan` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ts_parity.codes import ErasureCode, Family, RowErrors, make_code, read_row_errors
from ts_parity.confidence import Confidence, read_confidence
from ts_parity.describe import READY, UNREADABLE, ProtectedModel, customized_of, read_description, read_name, short_text
from ts_parity.errors import CodeError, ConfigError, TsParityError
from ts_parity.exclusion import read_never_code
from ts_parity.proxy.fleet.reports import DEPLOYED, PARITY, ArchiveDescription, ModelReport
from ts_parity.wire import VERSION


class BadDescribe(TsParityError):
    """A describe that claims to be ours and cannot be understood."""


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
