"""`ts-parity serve`, `status` and `drain`: parse, build, call, print. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity.config import ENV_PREFIX, add_flags, given_flags, load_settings
from ts_parity.errors import ConfigError, StartError, TsParityError

TOKEN_VARIABLE = f"{ENV_PREFIX}ADMIN_TOKEN"

if TYPE_CHECKING:
    from ts_parity.proxy.app import Proxy
    from ts_parity.proxy.processes import Supervisor


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = subparsers.add_parser(
        "serve",
        help="run the proxy in front of TorchServe instances",
        description="Run the proxy. Roles, codes, places and shapes are discovered from the instances.",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file; see docs/settings.md")
    serve.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL[,key=value]...",
        help="an instance's inference address; keys: management, domain, token, token_file, management_token, "
        "management_token_file, places, tls_ca, tls_verify, tls_certificate, tls_key. May be given many times; "
        "replaces the instances of file and environment",
    )
    serve.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[,key=value]...",
        help="what must be said of a model; keys: version, repeatable. May be given many times; replaces the models "
        "of file and environment",
    )
    serve.add_argument("--ready-file", type=Path, metavar="FILE", help="written (JSON) when the proxy accepts requests")
    serve.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    add_flags(serve)
    serve.set_defaults(run=run_serve, drains=True)
    status = subparsers.add_parser("status", help="show what a running proxy knows about its fleet")
    _add_admin(status)
    status.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    status.set_defaults(run=run_status)
    drain = subparsers.add_parser("drain", help="let a running proxy finish what is in flight, and end")
    _add_admin(drain)
    drain.add_argument("--token", metavar="KEY", help=f"its admin_token; or set {TOKEN_VARIABLE}")
    drain.set_defaults(run=run_drain)


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--admin", default="http://127.0.0.1:8090", metavar="URL", help="the proxy's admin address")


def run_serve(args: argparse.Namespace) -> int:
    """Until drained. Exit codes: 0 drained, 1 cut, 2 usage, 3 could not start."""
    settings = load_settings(args.config, os.environ, given_flags(args), args.endpoint, args.model)
    logging.basicConfig(
        level=args.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    import asyncio

    from ts_parity.proxy.app import Proxy, use_uvloop
    from ts_parity.proxy.descriptors import raise_limit
    from ts_parity.proxy.processes import Supervisor

    async def life() -> int:
        if settings.processes > 1:
            return await Supervisor(settings).run(lambda all_of_them: _announce(all_of_them, args.ready_file))
        return await Proxy(settings).run(lambda proxy: _announce(proxy, args.ready_file))

    raise_limit()
    use_uvloop()
    return asyncio.run(life())


def run_status(args: argparse.Namespace) -> int:
    import shutil

    from ts_parity.proxy.status import status_table

    status = _ask(args.admin, "/status")
    width = shutil.get_terminal_size((120, 24)).columns
    print(json.dumps(status, indent=2) if args.json else status_table(status, width))
    return 0


def run_drain(args: argparse.Namespace) -> int:
    token = args.token or os.environ.get(TOKEN_VARIABLE, "")
    _ask(args.admin, "/drain", {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
    print("draining")
    return 0


def _announce(proxy: Proxy | Supervisor, ready_file: Path | None) -> None:
    print(f"serving on {proxy.url} (admin {proxy.admin_url})", file=sys.stderr, flush=True)
    if ready_file is not None:
        ready = {"url": proxy.url, "admin_url": proxy.admin_url, "pid": os.getpid()}
        # Whoever waits for the file must never see half of it.
        partial = ready_file.with_name(ready_file.name + ".partial")
        try:
            partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
            partial.replace(ready_file)
        except OSError as error:
            raise StartError(f"--ready-file: cannot write {str(ready_file)!r}: {error.strerror}") from None


def _ask(admin: str, path: str, action: dict[str, str] | None = None) -> dict[str, Any]:
    """Read, or with `action`'s headers do something. Raise TsParityError, or ConfigError for an odd address."""
    if not admin.startswith(("http://", "https://")):
        raise ConfigError(f"--admin must be like http://HOST:PORT, not {admin!r}")
    url = admin.rstrip("/") + path
    request = urllib.request.Request(url, None if action is None else b"", action or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            said: dict[str, Any] = json.load(answer)
            return said
    except urllib.error.HTTPError as error:
        raise TsParityError(f"{url}: {_reason(error)}") from None
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        said_so = why.strerror if isinstance(why, OSError) else None
        raise TsParityError(
            f"no {path[1:]} from {url}: {said_so or why}; is the proxy running, and is this its admin port?"
        ) from None


def _reason(refused: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(refused)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{refused.code} {refused.reason}; is this the admin port of a proxy?"
