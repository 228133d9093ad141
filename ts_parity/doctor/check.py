"""A check: what it looks for, how bad it is, what to do about it; and what came of all of them.

A check is a small function from what was gathered to sentences, one for each thing that is wrong. Knows nothing of what
is checked, or of how results are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ts_parity.doctor.gathered import Gathered

ERROR: Final = "error"
WARNING: Final = "warning"
NOTE: Final = "note"
SEVERITIES: Final = (ERROR, WARNING, NOTE)
OK: Final = "ok"
UNKNOWN: Final = "unknown"
"""Of a result: the check could not be made."""
PAGE: Final = "docs/doctor.md"


@dataclass(frozen=True)
class CannotTell:
    """The answer of a check that lacks what it looks at. It is neither good nor bad, and nobody should take it for
    either.
    """

    why: str


NO_PROXY: Final = CannotTell("no running proxy was asked")
NO_INSTANCE: Final = CannotTell("no instance says what it hosts")

Find = Callable[[Gathered], Sequence[str] | CannotTell]


@dataclass(frozen=True)
class Check:
    """`title` says what holds if nothing is wrong. `exit_code`: what the command ends with if it is an error, or a
    warning and --strict.
    """

    id: str
    category: str
    severity: str
    title: str
    meaning: str
    """Why it matters and how it is found out, for docs/doctor.md."""
    remedy: str
    exit_code: int
    find: Find

    @property
    def docs(self) -> str:
        return f"{PAGE}#{self.id.lower()}"


@dataclass(frozen=True)
class CheckResult:
    check: Check
    state: str
    """OK, UNKNOWN, or the check's severity."""
    findings: tuple[str, ...] = ()
    """What is wrong, a sentence each; or why it cannot be told."""


def examine(checks: Sequence[Check], gathered: Gathered) -> list[CheckResult]:
    results = []
    for check in checks:
        found = check.find(gathered)
        if isinstance(found, CannotTell):
            results.append(CheckResult(check, UNKNOWN, (found.why,)))
        else:
            results.append(CheckResult(check, check.severity if found else OK, tuple(found)))
    return results


def exit_code(results: Sequence[CheckResult], strict: bool = False) -> int:
    """0, or the lowest code of the errors: wrong input comes before what it makes impossible."""
    wrong = [r for r in results if r.state == ERROR or (strict and r.state == WARNING)]
    return min((r.check.exit_code for r in wrong), default=0)
