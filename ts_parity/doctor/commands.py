"""`ts-parity doctor`: parse, gather, examine, print. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity.arguments import address, content_type, existing, to_write
from ts_parity.config import Settings, load_settings
from ts_parity.errors import ConfigError, Unreachable
from ts_parity.output import add_force, check_free

if TYPE_CHECKING:
    from ts_parity.doctor.check import CheckResult
    from ts_parity.doctor.gathered import Gathered
    from ts_parity.doctor.places import MeasuredPlaces


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    doctor = subparsers.add_parser(
        "doctor",
        help="find what is wrong with a fleet, a proxy and their configuration",
        description="Look for what is wrong, before a start or beside a running proxy, and say what to do about it. "
        "Changes nothing, and sends no prediction unless it is asked to measure. docs/doctor.md describes each check. "
        "Without --config and --endpoint the instances are those of the running proxy.",
        examples=(
            "ts-parity doctor",
            "ts-parity doctor --pre --config fleet.toml",
            "ts-parity doctor --admin http://10.0.0.5:8090 --json",
            "ts-parity doctor --config fleet.toml --bundle report.tar.gz",
            "ts-parity doctor --pre --endpoint http://10.0.0.1:8080 --measure-places dog.jpg",
        ),
    )
    what = doctor.add_argument_group("what to look at")
    what.add_argument("--pre", action="store_true", help="ask no running proxy: the fleet alone, before a start")
    what.add_argument(
        "--admin",
        type=address,
        metavar="URL",
        help="the proxy's admin address; default: as the configuration says, else http://127.0.0.1:8090",
    )
    what.add_argument("--config", type=existing(), metavar="FILE", help="the proxy's TOML file with settings")
    what.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL[,KEY=VALUE]",
        help="an instance, as serve takes it; repeat for each instance",
    )
    loads = doctor.add_argument_group("what to measure")
    loads.add_argument(
        "--measure-places",
        type=existing(),
        metavar="BODY",
        help="LOADS each instance with copies of this request body, to find out how many it answers at a time",
    )
    loads.add_argument(
        "--measure-model",
        metavar="NAME",
        help="the model, or NAME/VERSION, that the body is for; default: the only one",
    )
    loads.add_argument(
        "--measure-type",
        type=content_type,
        metavar="TYPE",
        help="the body's content type; default: as the file's ending says",
    )
    told = doctor.add_argument_group("what to tell")
    told.add_argument("--all", action="store_true", help="also the checks that found nothing, or could not be made")
    told.add_argument("--json", action="store_true", help="print the JSON of all results instead of a table")
    told.add_argument("--strict", action="store_true", help="warnings too make the command fail")
    told.add_argument("--bundle", type=to_write(), metavar="FILE", help="tar.gz for a bug report, without secrets")
    add_force(told)
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    import shutil

    from ts_parity.doctor.catalogue import CHECKS
    from ts_parity.doctor.check import examine, exit_code
    from ts_parity.doctor.gather import ask_proxy, gather, settings_of_status
    from ts_parity.doctor.places import measured_table
    from ts_parity.doctor.report import as_json, table

    check_free(args.bundle, args.force, "--bundle")
    configured = args.pre or bool(args.config or args.endpoint or os.environ.get("TS_PARITY_ENDPOINTS"))
    settings = load_settings(args.config, os.environ, {}, args.endpoint) if configured else None
    admin = args.admin or admin_address(settings or Settings())
    status, error = (None, "") if args.pre else ask_proxy(admin)
    if settings is None:
        if status is None:
            raise Unreachable(f"{error} Or before a start: --pre with --config or --endpoint")
        settings = Settings(instances=settings_of_status(status))
    gathered = gather(settings, configured, status, error)
    if args.measure_places is not None:
        gathered = replace(gathered, measured=_measure(args, gathered))
    results = examine(CHECKS, gathered)
    if args.bundle is not None:
        _bundle(args.bundle, admin, gathered, results)
    if args.json:
        measured = None if gathered.measured is None else [one.json() for one in gathered.measured]
        print(json.dumps({**as_json(results, args.strict), "measured_places": measured}, indent=2))
    else:
        if gathered.measured is not None:
            print(measured_table(gathered.measured), end="\n\n")
        print(table(results, shutil.get_terminal_size((120, 24)).columns, args.all))
    return exit_code(results, args.strict)


def _measure(args: argparse.Namespace, gathered: Gathered) -> tuple[MeasuredPlaces, ...]:
    """Raise ConfigError if it is not known which model the body is for."""
    import mimetypes

    from ts_parity.doctor.places import LONGEST_S, measure_places

    pool = _pool(args.measure_model or "", [*gathered.plan.pools])
    kind = args.measure_type or mimetypes.guess_type(args.measure_places.name)[0] or "application/octet-stream"
    hosts = len({e.instance for e in gathered.plan.fleet.endpoints if e.pool == pool and e.row is None})
    print(
        f"loading {hosts} instance{'s' if hosts != 1 else ''} of {pool} with copies of {args.measure_places}, one "
        f"after another, up to {LONGEST_S:.0f} s each; their clients wait longer meanwhile",
        file=sys.stderr,
    )

    def note(one: MeasuredPlaces) -> None:
        last = one.rounds[-1]
        print(f"  {one.instance}: {last.copies} at once, {1000 * last.slowest_s:.1f} ms", file=sys.stderr, flush=True)

    return measure_places(gathered.settings, gathered.plan, pool, args.measure_places.read_bytes(), kind, note)


def _pool(model: str, pools: Sequence[str]) -> str:
    fitting = [pool for pool in pools if model in ("", pool, pool.rpartition("/")[0])]
    if len(fitting) == 1:
        return fitting[0]
    there = f"there are {', '.join(pools)}" if pools else "no instance says what it hosts"
    raise ConfigError(f"--measure-model: {f'{model!r} is not one of them' if model else 'which one?'}; {there}")


def admin_address(settings: Settings) -> str:
    """Where a proxy with these settings is asked from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.admin_host, settings.admin_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.admin_port}"


def _bundle(path: Path, admin: str, gathered: Gathered, results: Sequence[CheckResult]) -> None:
    from ts_parity.admin_client import fetch
    from ts_parity.doctor.bundle import write_bundle

    metrics = None
    if gathered.status is not None:
        with suppress(Unreachable):
            metrics = fetch(f"{admin}/metrics")
    write_bundle(path, gathered, results, metrics)
