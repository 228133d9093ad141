"""Results for people and for programs. Says little if all is well, and what to do if not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

from ts_parity import __version__
from ts_parity.doctor.check import ERROR, NOTE, OK, UNKNOWN, WARNING, CheckResult, exit_code

_MARKS: Final = {OK: "ok", ERROR: "ERROR", WARNING: "warning", NOTE: "note", UNKNOWN: "not known"}


def table(results: Sequence[CheckResult], width: int, everything: bool = False) -> str:
    """One paragraph for each check that found something, under its category; a closing line. `everything`: also a line
    for each that found nothing, or could not be made.
    """
    lines: list[str] = []
    category = ""
    for result in results:
        check, wrong = result.check, result.state in (ERROR, WARNING, NOTE)
        if not (wrong or everything):
            continue
        if check.category != category:
            category = check.category
            lines += [*([""] if lines else []), category, "-" * len(category)]
        lines += _wrapped(f"{check.id} {_MARKS[result.state]}: {check.title}", "", width, "    ")
        for finding in result.findings:
            lines += _wrapped(finding, "    - ", width, "      ")
        if wrong:
            lines += _wrapped(f"what to do: {check.remedy}", "    ", width, "    ")
            lines.append(f"    see {check.docs}")
    return "\n".join([*lines, *([""] if lines else []), closing(results)])


def closing(results: Sequence[CheckResult]) -> str:
    counts = {state: sum(result.state == state for result in results) for state in _MARKS}
    found = [f"{n} {word}{'s' if n != 1 else ''}" for word in (ERROR, WARNING, NOTE) if (n := counts[word])]
    rest = f"{counts[OK]} of {len(results)} checks passed"
    if counts[UNKNOWN]:
        rest += f", {counts[UNKNOWN]} could not be made (--all says why)"
    return f"{', '.join(found) or 'all is well'}; {rest}"


def as_json(results: Sequence[CheckResult], strict: bool = False) -> dict[str, Any]:
    code = exit_code(results, strict)
    return {
        "version": __version__,
        "success": code == 0,
        "exit_code": code,
        "checks": [
            {
                "id": r.check.id,
                "category": r.check.category,
                "severity": r.check.severity,
                "title": r.check.title,
                "result": r.state,
                "findings": list(r.findings),
                "remedy": r.check.remedy,
                "docs": r.check.docs,
            }
            for r in results
        ],
    }


def _wrapped(text: str, before: str, width: int, after: str) -> list[str]:
    return textwrap.wrap(text, max(width, 40), initial_indent=before, subsequent_indent=after, break_on_hyphens=False)
