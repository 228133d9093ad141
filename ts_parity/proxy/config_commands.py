"""`ts-parity config`: parse, call, print. Nothing is served, and no instance is asked; a proxy only by `--admin`."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from ts_parity import output
from ts_parity.arguments import Parser, address, existing, to_write
from ts_parity.config import (
    PROFILES,
    Configuration,
    Settings,
    add_sources,
    configuration,
    configuration_json,
    configuration_table,
    differences,
    given_flags,
    json_schema,
    profile_toml,
)
from ts_parity.errors import WRONG_INPUT, ConfigError, Unreachable

_PRIVATE = 0o600


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    config = subparsers.add_parser(
        "config",
        help="check, show or begin the configuration of a proxy",
        description="What `ts-parity serve` would make of its settings, without serving; and files to begin with.",
        examples=(
            "ts-parity config init",
            "ts-parity config check fleet.toml",
            "ts-parity config show",
            "ts-parity config schema",
        ),
    )
    parts = config.add_subparsers(title="commands", metavar="COMMAND", required=True, help="which of these")
    _add_check(parts)
    _add_show(parts)
    schema = parts.add_parser(
        "schema",
        help="print the JSON Schema of the file",
        description="The JSON Schema of the TOML file, for editors and for checks without ts_parity.",
        examples=("ts-parity config schema > ts-parity.schema.json",),
    )
    schema.set_defaults(run=run_schema)
    _add_init(parts)


def _add_check(parts: argparse._SubParsersAction[Parser]) -> None:
    check = parts.add_parser(
        "check",
        help="say everything that is wrong with a file",
        description="Says everything for which `ts-parity serve --config FILE` would refuse to start, the first of it "
        "in the same words: the file, if there is one, with the environment and the flags that are given here, and the "
        "files that they name. No instance is asked.",
        examples=("ts-parity config check fleet.toml", "ts-parity config check fleet.toml --json"),
    )
    checked = check.add_argument_group("what is checked")
    _add_file(checked)
    checked.add_argument("--json", action="store_true", help="print JSON instead of lines")
    add_sources(check)
    check.set_defaults(run=run_check)


def _add_show(parts: argparse._SubParsersAction[Parser]) -> None:
    show = parts.add_parser(
        "show",
        help="show each setting with its value, and where that came from",
        description="Each setting as `ts-parity serve` would have it with the same flags in the same environment, and "
        "where its value came from: default, file and line, environment variable, or flag. Of secrets it says only "
        "whether they are set. With --admin: what a running proxy runs with, where it has that from, and what waits "
        "for a restart; and what differs from the file and the flags, if any are given.",
        examples=(
            "ts-parity config show --config fleet.toml --port 8443",
            "ts-parity config show --admin http://127.0.0.1:8090",
            "ts-parity config show --admin http://127.0.0.1:8090 fleet.toml",
        ),
    )
    shown = show.add_argument_group("what is shown")
    _add_file(shown)
    shown.add_argument("--admin", type=address, metavar="URL", help="ask the running proxy that has this admin address")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_sources(show)
    show.set_defaults(run=run_show)


def _add_init(parts: argparse._SubParsersAction[Parser]) -> None:
    init = parts.add_parser(
        "init",
        help="print a commented file to begin with",
        description="A TOML file with every setting, its default and what it is. "
        + "; ".join(f"{name}: {profile.text}" for name, profile in PROFILES.items())
        + ".",
        examples=("ts-parity config init > fleet.toml", "ts-parity config init --profile proxies --out fleet.toml"),
    )
    init.add_argument("--profile", choices=[*PROFILES], default="plain", help="what the file is for")
    init.add_argument("--out", type=to_write(), metavar="FILE", help="file to write, readable for you alone")
    output.add_force(init)
    init.set_defaults(run=run_init)


def _add_file(group: argparse._ArgumentGroup) -> None:
    """By itself, or as `serve` is given it, so that a command line of `serve` can be asked about."""
    group.add_argument(
        "file", nargs="?", type=existing(), metavar="FILE", help="TOML file with settings, if there is one"
    )
    group.add_argument("--config", type=existing(), metavar="FILE", help="the same, as `serve` is given it")


def _file(args: argparse.Namespace) -> Path | None:
    if args.file is not None and args.config is not None:
        raise ConfigError(f"two files are given, {str(args.file)!r} and --config {str(args.config)!r}; serve reads one")
    found: Path | None = args.config if args.file is None else args.file
    return found


def _given(args: argparse.Namespace) -> Configuration:
    return configuration(_file(args), os.environ, given_flags(args), args.endpoint, args.model)


def run_check(args: argparse.Namespace) -> int:
    """-> 0 if `serve` would start with it, as far as that can be known here, else 2."""
    file = _file(args)
    found = _given(args)
    problems = [str(problem) for problem in found.problems]
    if found.settings is not None:
        problems += _problems_of_files(found.settings)
    if args.json:
        print(json.dumps({"file": file and str(file), "good": not problems, "problems": problems}, indent=2))
    else:
        for problem in problems:
            print(f"ts-parity: {problem}", file=sys.stderr)
    if problems or found.settings is None:
        return WRONG_INPUT
    if not args.json:
        print(f"{file or 'settings'}: good, with {len(found.settings.instances)} instances")
    return 0


def _problems_of_files(settings: Settings) -> list[str]:
    """Of those that are read before a proxy listens."""
    from ts_parity.proxy.http.certificates import client_side, instance_side

    problems = []
    for read in (Settings.read_default_answer, client_side, instance_side, _check_access_log):
        try:
            read(settings)
        except ConfigError as problem:
            problems.append(str(problem))
    return problems


def _check_access_log(settings: Settings) -> None:
    """Without making it."""
    if settings.access_log in ("", "-"):
        return
    try:
        path = to_write()(settings.access_log)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"access_log: {error}") from None
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"access_log: no permission to write {settings.access_log!r}")


def run_show(args: argparse.Namespace) -> int:
    given = None
    if args.admin is None or _file(args) is not None or given_flags(args) or args.endpoint or args.model:
        found = _given(args)
        if found.settings is None:
            raise found.problems[0]
        given = configuration_json(found, found.settings)
    shown = given if args.admin is None else _running(f"{args.admin}/config", given)
    assert shown is not None
    if args.json:
        print(json.dumps(shown, indent=2))
        return 0
    print(configuration_table(shown))
    for line in shown.get("needs_restart", ()):
        print(f"needs a restart: {line}")
    if "differing" in shown:
        for line in shown["differing"]:
            print(f"differs: {line}")
        if not shown["differing"]:
            print("nothing differs from what is given")
    return 0


def _running(url: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """What a proxy runs with; and under `differing`, what is otherwise in what is given."""
    from ts_parity.admin_client import ask

    told = ask(url)
    try:
        configuration_table(told)
        return told if given is None else {**told, "differing": differences(told, given)}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise Unreachable(f"{url}: that is no configuration of a proxy: {error!r}") from None


def run_schema(args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def run_init(args: argparse.Namespace) -> int:
    text = profile_toml(args.profile, secrets.token_urlsafe(24))
    if args.out is None:
        print(text, end="")
        return 0
    output.check_free(args.out, args.force)
    with output.written(args.out) as path:
        _write_private(path, text)
    return 0


def _write_private(path: Path, text: str) -> None:
    """It may hold keys, now or later."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE), "w", encoding="utf-8") as file:
        file.write(text)
