"""`ts-parity serve`, `status`, `top`, `reload`, `drain`: parse, build, call, print. What they need is imported then."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity.arguments import A_KEY, address, existing, is_key, key, to_write
from ts_parity.config import ENV_PREFIX, ConfigSource, add_sources, given_flags
from ts_parity.errors import WRONG_INPUT, ConfigError, StartError, Unreachable

TOKEN_VARIABLE = f"{ENV_PREFIX}ADMIN_TOKEN"
TOP_EVERY_S = 1.0

if TYPE_CHECKING:
    from ts_parity.proxy.app import Proxy
    from ts_parity.proxy.operations.processes import Supervisor


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    _add_serve(subparsers)
    status = subparsers.add_parser(
        "status",
        help="show what a running proxy knows about its fleet",
        description="Codes, verdicts, endpoints and problems of a running proxy's fleet.",
        examples=("ts-parity status", "ts-parity status --admin http://10.0.0.5:8090 --json"),
    )
    add_admin(status)
    status.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    status.set_defaults(run=run_status)
    top = subparsers.add_parser(
        "top",
        help="watch a running proxy: the status page in a terminal",
        description="What the status page shows, in a terminal, again each second: what clients waited and would have "
        "waited, machines, models, late queries, problems and what to do. Ctrl-C ends it. Without a terminal it "
        "prints once.",
        examples=("ts-parity top", "ts-parity top --admin http://10.0.0.5:8090 --once"),
    )
    add_admin(top)
    top.add_argument("--json", action="store_true", help="print the status instead, a line of JSON each time")
    top.add_argument("--once", action="store_true", help="print once and end")
    top.set_defaults(run=run_top)
    reload = subparsers.add_parser(
        "reload",
        help="have a running proxy read its configuration again",
        description="The proxy reads its file and environment again, as SIGHUP makes it do. If anything in them is "
        "wrong, nothing changes, and this says what and where. Instances that are new are used, of those that are gone "
        "the work in flight is finished, and what takes a restart is named.",
        examples=("ts-parity reload", "ts-parity reload --admin http://127.0.0.1:8090 --token KEY --json"),
    )
    add_admin(reload)
    _add_token(reload)
    reload.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    reload.set_defaults(run=run_reload)
    drain = subparsers.add_parser(
        "drain",
        help="drain a running proxy: it finishes the requests in flight and ends",
        description="The proxy stops accepting connections, finishes the requests in flight, and ends.",
        examples=("ts-parity drain", "ts-parity drain --admin http://127.0.0.1:8090 --token KEY"),
    )
    add_admin(drain)
    _add_token(drain)
    drain.set_defaults(run=run_drain)


def _add_serve(subparsers: argparse._SubParsersAction[Any]) -> None:
    serve = subparsers.add_parser(
        "serve",
        help="run the proxy in front of your instances",
        description="Run the proxy. Roles, codes, places and shapes are discovered from the instances. Values shown "
        "are the defaults; docs/settings.md describes each setting. A setting may also come from a TOML file "
        "(--config) or the environment (TS_PARITY_PORT=8080); flags win.",
        examples=(
            "ts-parity serve --endpoint http://10.0.0.1:8080 --endpoint http://10.0.0.2:8080",
            "ts-parity serve --endpoint http://ts1:8080,management=http://ts1:9081,domain=rack1",
            "ts-parity serve --config fleet.toml --port 8443 --access-log requests.jsonl",
        ),
    )
    add_sources(serve)
    operations = next(group for group in serve._action_groups if group.title == "operations")
    operations.add_argument("--config", type=existing(), metavar="FILE", help="TOML file with settings")
    operations.add_argument(
        "--ready-file", type=to_write(), metavar="FILE", help="JSON file to write once requests are accepted"
    )
    operations.add_argument(
        "--log-level",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        metavar="warning",
        help="or debug, info, error: the least severe messages that are logged",
    )
    serve.set_defaults(run=run_serve, drains=True)


def add_admin(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--admin", type=address, default="http://127.0.0.1:8090", metavar="URL", help="the proxy's admin address"
    )


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", type=key, metavar="KEY", help=f"its admin_token; or set {TOKEN_VARIABLE}")


def run_serve(args: argparse.Namespace) -> int:
    """Until drained. -> 0 drained, 1 cut."""
    source = ConfigSource(args.config, given_flags(args), tuple(args.endpoint), tuple(args.model))
    found = source.read()
    if found.settings is None:
        raise found.problems[0]
    settings = found.settings
    logging.basicConfig(
        level=args.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    import asyncio

    from ts_parity.proxy.app import Proxy, use_uvloop
    from ts_parity.proxy.http.descriptors import raise_limit
    from ts_parity.proxy.operations.processes import Supervisor

    async def life() -> int:
        if settings.processes > 1:
            supervisor = Supervisor(settings, source=source, found=found)
            return await supervisor.run(lambda all_of_them: _announce(all_of_them, args.ready_file))
        return await Proxy(settings, source=source, found=found).run(lambda proxy: _announce(proxy, args.ready_file))

    raise_limit()
    use_uvloop()
    return asyncio.run(life())


def run_status(args: argparse.Namespace) -> int:
    import shutil

    from ts_parity.admin_client import ask
    from ts_parity.proxy.operations.status import status_table

    url = f"{args.admin}/status"
    status = ask(url)
    width = shutil.get_terminal_size((120, 24)).columns
    try:
        table = status_table(status, width)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise Unreachable(f"{url}: that is no status of a proxy of this version: {error!r}") from None
    print(json.dumps(status, indent=2) if args.json else table)
    return 0


def run_top(args: argparse.Namespace) -> int:
    """Until it is interrupted, or once."""
    import shutil
    import time

    from ts_parity.admin_client import ask
    from ts_parity.proxy.operations.top import screen

    url = f"{args.admin}/status"
    once = args.once or not sys.stdout.isatty()
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    try:
        while True:
            width, height = shutil.get_terminal_size((120, 24))
            try:
                status = ask(url)
                shown = screen(status, width, sys.maxsize if once else height - 1, colour)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise Unreachable(f"{url}: that is no status of a proxy of this version: {error!r}") from None
            # From the corner, each line to its end, and nothing below: a screen that is cleared first would flicker.
            if args.json:
                shown = json.dumps(status)
            print(
                shown if once or args.json else "\x1b[H" + shown.replace("\n", "\x1b[K\n") + "\x1b[K\x1b[J", flush=True
            )
            if once:
                return 0
            time.sleep(TOP_EVERY_S)
    except KeyboardInterrupt:
        return 0


def run_reload(args: argparse.Namespace) -> int:
    """-> 0 the configuration is in force, 2 it is wrong and the old one goes on."""
    from ts_parity.admin_client import RELOAD_TIMEOUT_S, ask

    url = f"{args.admin}/reload"
    answer = ask(url, _headers(args), RELOAD_TIMEOUT_S, also=(422,))
    result = answer.get("result")
    if result not in ("changed", "unchanged", "refused"):
        raise Unreachable(f"{url}: nothing was reloaded; is this the admin port of a proxy?")
    if args.json:
        print(json.dumps(answer, indent=2))
    elif result == "refused":
        for problem in answer["problems"]:
            print(f"ts-parity: {problem}", file=sys.stderr)
        print("ts-parity: nothing has changed, and the old configuration goes on", file=sys.stderr)
    else:
        print("reloaded" if result == "changed" else "nothing has changed")
        for line in answer["changed"]:
            print(f"  {line}")
        for line in answer["needs_restart"]:
            print(f"needs a restart: {line}")
    return WRONG_INPUT if result == "refused" else 0


def _headers(args: argparse.Namespace) -> dict[str, str]:
    token = args.token or os.environ.get(TOKEN_VARIABLE, "")
    if token and not is_key(token):
        raise ConfigError(f"{TOKEN_VARIABLE} must be {A_KEY}")
    return {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}


def run_drain(args: argparse.Namespace) -> int:
    from ts_parity.admin_client import ask

    url = f"{args.admin}/drain"
    answer = ask(url, _headers(args))
    if answer.get("status") != "draining":
        raise Unreachable(f"{url}: nothing drains; is this the admin port of a proxy?")
    print("draining")
    return 0


def _announce(proxy: Proxy | Supervisor, ready_file: Path | None) -> None:
    print(f"serving on {proxy.url} (admin {proxy.admin_url})", file=sys.stderr, flush=True)
    if ready_file is not None:
        ready = {"url": proxy.url, "admin_url": proxy.admin_url, "pid": os.getpid()}
        # A reader must never see half of the file.
        partial = ready_file.with_name(ready_file.name + ".partial")
        try:
            partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
            partial.replace(ready_file)
        except OSError as error:
            raise StartError(f"--ready-file: cannot write {str(ready_file)!r}: {error.strerror}") from None
