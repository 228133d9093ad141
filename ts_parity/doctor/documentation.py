"""docs/doctor.md, made from the checks: `python -m ts_parity.doctor > docs/doctor.md`."""

from __future__ import annotations

from ts_parity.doctor.catalogue import CATEGORIES, CHECKS
from ts_parity.doctor.check import ERROR, NOTE, WARNING
from ts_parity.errors import EXIT_CODES
from ts_parity.tables import markdown

INTRODUCTION = f"""\
# What `ts-parity doctor` checks

Made by `python -m ts_parity.doctor` from the checks in `ts_parity/doctor/catalogue.py`; do not edit by hand.

    ts-parity doctor                                        # beside a running proxy
    ts-parity doctor --config fleet.toml                    # the same, with the keys and places of its configuration
    ts-parity doctor --pre --endpoint http://10.0.0.1:8080  # before a start: the fleet alone
    ts-parity doctor --bundle report.tar.gz                 # what a bug report needs, without secrets

    ts-parity doctor --pre --endpoint http://10.0.0.1:8080 --measure-places dog.jpg    # loads it: see TSP-310

It reads and changes nothing: it asks the management APIs what a proxy would ask, and the proxy for `/status`. No
prediction is sent, except with `--measure-places BODY`, which says so before it begins. An archive that is wrapped is
asked for its describe, which takes its worker a moment.

An {ERROR} keeps queries from being served or protected as configured, a {WARNING} costs latency or will cost an
outage, a {NOTE} is worth knowing. The command ends with 0 if there is no error, otherwise with the lowest of
their codes; `--strict` counts warnings too. A check that could not be made is neither: `--all` shows it and why.
`--json` prints all results, each with its id, which does not change from version to version.

The codes: {"; ".join(f"{code} {what}" for code, what in EXIT_CODES.items() if 2 <= code <= 4)}.

`--bundle` packs the versions, the settings, what the instances said, `/status`, `/metrics` and the results of the
checks. Keys and tokens are left out: settings that hold one say only that it is given, and wherever its text appears
elsewhere it is replaced. Addresses and names of models are in it.
"""


def doctor_markdown() -> str:
    """docs/doctor.md, whole."""
    rows = [(f"[{c.id}](#{c.id.lower()})", c.category, c.severity, c.title) for c in CHECKS]
    lines = [INTRODUCTION, markdown(("check", "about", "severity", "what holds if all is well"), rows), ""]
    for category in CATEGORIES:
        lines += [f"## {category[0].upper()}{category[1:]}", ""]
        for check in CHECKS:
            if check.category == category:
                ends = "" if check.severity == NOTE else f", exit code {check.exit_code}"
                lines += [f"### {check.id}", "", f"{check.title[0].upper()}{check.title[1:]} ({check.severity}{ends})."]
                lines += ["", check.meaning, "", f"What to do: {check.remedy}", ""]
    return "\n".join(lines)
