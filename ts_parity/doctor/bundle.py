"""What a bug report needs, in one archive, without secrets.

A setting that is a secret only says that it is given. Beside that, wherever the text of one appears in what was
gathered, it is replaced: an instance may repeat a key in its own words.
"""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from ts_parity import __version__
from ts_parity.config import Settings
from ts_parity.doctor.check import CheckResult
from ts_parity.doctor.gathered import Gathered
from ts_parity.doctor.report import as_json
from ts_parity.errors import ConfigError
from ts_parity.output import written

GIVEN: Final = "[given]"
REMOVED: Final = "[removed]"


def write_bundle(path: Path, gathered: Gathered, results: Sequence[CheckResult], metrics: bytes | None) -> None:
    """`metrics`: of the running proxy, as it exposes them."""
    files: dict[str, Any] = {
        "versions.json": {
            "ts_parity": __version__,
            "compiled": gathered.compiled,
            "python": sys.version,
            "platform": platform.platform(),
        },
        "checks.json": as_json(results),
        "settings.json": shown(gathered.settings),
        "instances.json": gathered.reports,
        "problems.json": gathered.plan.problems,
        "status.json": gathered.status or {"error": gathered.status_error or "no running proxy was asked"},
        "metrics.txt": metrics,
    }
    hidden = secrets(gathered.settings)
    with written(path) as unfinished, tarfile.open(unfinished, "w:gz") as archive:
        for name, value in files.items():
            if value is not None:
                text = value.decode(errors="replace") if isinstance(value, bytes) else _json(value)
                _add(archive, f"{path.name.partition('.')[0]}/{name}", without(text, hidden).encode())


def shown(settings: Any) -> Any:
    """Settings as JSON; of a secret, whether it is given."""
    if isinstance(settings, tuple):
        return [shown(each) for each in settings]
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    return {
        item.name: (GIVEN if value else "") if item.metadata.get("secret") else shown(value)
        for item in fields(settings)
        for value in (getattr(settings, item.name),)
    }


def secrets(settings: Settings) -> set[str]:
    """The texts of all keys, those in files too."""
    found = {settings.secret, settings.admin_token}
    for given in settings.instances:
        found |= {given.token, given.management_token}
        for read in (given.inference_token, given.management_key):
            with suppress(ConfigError):
                found.add(read())
    return found - {""}


def without(text: str, hidden: Iterable[str]) -> str:
    """Longest first: one secret may begin with another."""
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(json.dumps(secret)[1:-1], REMOVED).replace(secret, REMOVED)
    return text


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    """Of reports, what JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else repr(value)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
