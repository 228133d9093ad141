"""The `ts_parity` section of a model's config YAML: what this worker does with the user's handler.

A wrong section stops the worker at load, with a message that says what to write. Knows names, types and which settings
belong together. Loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_parity.codes import ErasureCode, Family, RowErrors, make_code, read_row_errors
from ts_parity.confidence import Confidence, read_confidence
from ts_parity.errors import CodeError, ConfigError
from ts_parity.exclusion import Exclusions, read_never_code
from ts_parity.wire import PROTECTION_FIELDS

DEPLOYED = "deployed"
PARITY = "parity"
_EXAMPLE = "ts_parity:\n  role: {role}\n  handler: my_handler.py"
DECLARATION = ("model", "call", "input", "output")
"""Where the model object is, which method is the model call, which input and which part of its output are coded."""
_COMMON = frozenset({"role", "handler", *DECLARATION, "samples", "secret", "never_code"})
_PARITY_ONLY = frozenset({*PROTECTION_FIELDS, "parity_model"})


@dataclass(frozen=True)
class SampleFile:
    """A request body in the archive, for the self-test at load."""

    file: str
    content_type: str | None = None


@dataclass(frozen=True)
class Protection:
    """What only a protection's archive declares: its code and row, and the deployed model that it protects."""

    code: ErasureCode
    row: int
    partial: bool
    parity_model: str | None
    protects: Mapping[str, Any]
    cost: float | None = None
    """Of a full group, in deployed inferences, as measured by training."""
    cost_on: str | None = None
    """The kind of device it was measured on; None: not said."""
    agreement: float | None = None
    """With the deployed model's own decisions, as measured by training."""
    tolerance: float | None = None
    """How far off its answers usually are, if they are numbers and not decisions."""
    row_errors: RowErrors | None = None
    """Of all rows of its training, with r > 1."""
    confidence: Confidence | None = None
    """Expected agreement of an answer from its raw output, as calibrated by training."""

    @property
    def is_backup(self) -> bool:
        return self.code.family is Family.BACKUP


@dataclass(frozen=True)
class WorkerSettings:
    """`protection` is None for the deployed role."""

    role: str
    handler: str
    declaration: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[SampleFile, ...] = ()
    secret: str | None = None
    protection: Protection | None = None
    never_code: Exclusions = field(default_factory=Exclusions)


def read_settings(config: Mapping[str, Any] | None, role: str) -> WorkerSettings:
    """Raise ConfigError, saying which entry is wrong and what it must be."""
    section = (config or {}).get("ts_parity")
    if not isinstance(section, Mapping):
        raise ConfigError(
            "the model's config YAML has no section ts_parity. Write one like this and give the file to "
            f"torch-model-archiver --config-file:\n{_EXAMPLE.format(role=role)}"
        )
    allowed = _COMMON | (_PARITY_ONLY if role == PARITY else frozenset())
    unknown = sorted(set(section) - allowed)
    if unknown:
        raise ConfigError(f"ts_parity: {unknown[0]} is unknown for role {role}; there are {', '.join(sorted(allowed))}")
    declared = section.get("role", role)
    if declared != role:
        raise ConfigError(f"ts_parity: role is {declared!r}, but the archive's handler is the one for role {role!r}")
    return WorkerSettings(
        role,
        _string(section, "handler", required=True) or "",
        declaration(section),
        tuple(_samples(section.get("samples"))),
        _string(section, "secret"),
        _protection(section) if role == PARITY else None,
        _never_code(section.get("never_code")),
    )


def declaration(section: Mapping[str, Any]) -> dict[str, str]:
    """What an archive declares about its handler, as keyword arguments of Boundary."""
    declared = {}
    for name in DECLARATION:
        value = section.get(name)
        if name == "output" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)  # YAML reads 0 as a number
        if value is not None:
            declared[name] = _string({name: value}, name, required=True) or ""
    return declared


def _protection(section: Mapping[str, Any]) -> Protection:
    coefficients = section.get("coefficients")
    try:
        rows = tuple(tuple(float(c) for c in row) for row in coefficients) if coefficients else None
    except (TypeError, ValueError):
        raise ConfigError(f"ts_parity: coefficients must be r rows of k numbers, not {coefficients!r}") from None
    k, r, row = _integer(section, "k", None), _integer(section, "r", 1), _integer(section, "row", 0)
    try:
        code = make_code(_string(section, "code", required=True) or "", k, r, rows)
    except CodeError as error:
        raise ConfigError(f"ts_parity: {error}") from None
    if not 0 <= row < r:
        raise ConfigError(f"ts_parity: row must be 0 to {r - 1} for r = {r}, not {row}")
    partial, protects = section.get("partial", code.family is Family.BACKUP), section.get("protects", {})
    if not isinstance(partial, bool):
        raise ConfigError(f"ts_parity: partial must be true or false, not {partial!r}")
    parity_model = _string(section, "parity_model")
    if code.lossless and parity_model is not None:
        raise ConfigError(f"ts_parity: code {code.name} runs the deployed model itself; it has no parity_model")
    if not isinstance(protects, Mapping):
        raise ConfigError(f"ts_parity: protects must have model, version and weights, not {protects!r}")
    cost = section.get("cost")
    if cost is not None and (not isinstance(cost, (int, float)) or isinstance(cost, bool) or not 0 < cost < math.inf):
        raise ConfigError(f"ts_parity: cost is what a group costs in deployed inferences, not {cost!r}")
    agreement = section.get("agreement")
    if agreement is not None and (
        not isinstance(agreement, (int, float)) or isinstance(agreement, bool) or not 0 <= agreement <= 1
    ):
        raise ConfigError(f"ts_parity: agreement is a share between 0 and 1, not {agreement!r}")
    tolerance = section.get("tolerance")
    if tolerance is not None and (
        not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool) or not 0 < tolerance < math.inf
    ):
        raise ConfigError(f"ts_parity: tolerance is how far off its numbers usually are, not {tolerance!r}")
    try:
        errors = None if (values := section.get("row_errors")) is None else read_row_errors(values, code)
    except CodeError as error:
        raise ConfigError(f"ts_parity: {error}") from None
    confidence = _confidence(section.get("confidence"))
    cost_on = _string(section, "cost_on")
    return Protection(
        code, row, partial, parity_model, protects, cost, cost_on, agreement, tolerance, errors, confidence
    )


def _confidence(values: Any) -> Confidence | None:
    try:
        return None if values is None else read_confidence(values)
    except ConfigError as error:
        raise ConfigError(f"ts_parity: {error}") from None


def _never_code(values: Any) -> Exclusions:
    try:
        return Exclusions() if values is None else read_never_code(values)
    except ConfigError as error:
        raise ConfigError(f"ts_parity: {error}") from None


def _samples(entries: Any) -> list[SampleFile]:
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise ConfigError(f"ts_parity: samples must be a list of files in the archive, not {entries!r}")
    return [_sample(entry) for entry in entries]


def _sample(entry: Any) -> SampleFile:
    if isinstance(entry, str):
        return SampleFile(entry)
    if isinstance(entry, Mapping) and set(entry) <= {"file", "content_type"} and isinstance(entry.get("file"), str):
        content_type = entry.get("content_type")
        if content_type is None or isinstance(content_type, str):
            return SampleFile(entry["file"], content_type)
    raise ConfigError(f"ts_parity: a sample is a file name or {{file:, content_type:}}, not {entry!r}")


def _string(section: Mapping[str, Any], name: str, required: bool = False) -> str | None:
    value = section.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"ts_parity: {name} must be a non-empty text, not {value!r}")
    return value


def _integer(section: Mapping[str, Any], name: str, default: int | None) -> int:
    value = section.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"ts_parity: {name} must be a whole number, not {value!r}")
    return value


def file_in_archive(folder: Path, name: str, what: str) -> Path:
    """Raise ConfigError unless the archive holds this file."""
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"ts_parity: {what} {name!r} is not in the archive; add it with --extra-files")
    return path
