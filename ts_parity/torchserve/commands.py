"""The commands `package` and `register`: an archive is wrapped for its role, and made known to running instances.

Parses, calls, prints: the work is in `archive` and `management`, imported when a command runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import count
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, ManagementError
from ts_parity.exclusion import declared_never_code

if TYPE_CHECKING:
    from ts_parity.torchserve.management import ManagementClient

SECRET_VARIABLE = "TS_PARITY_SECRET"
TOKEN_VARIABLE = "TS_PARITY_MANAGEMENT_TOKEN"


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_package(subparsers)
    _add_register(subparsers)


def _add_package(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "package",
        help="wrap a model archive for the deployed or the parity role",
        description="Wrap a .mar: the handler in it stays as it is and runs behind ours. A learned parity model comes "
        "from `ts-parity train`; `--role parity --code exact` needs none: it runs the model itself.",
    )
    parser.add_argument("--archive", required=True, type=Path, metavar="X.mar", help="the model's own archive")
    parser.add_argument("--role", choices=("deployed", "parity"), default="deployed", help="default: %(default)s")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder (or .mar file) to write to")
    output.add_force(parser)
    parser.add_argument(
        "--name",
        help="the model's name; default: as it is; of a protection MODEL-VERSION-CODE-kK, such as resnet-1.0-exact-k2",
    )
    parser.add_argument("--secret", help=f"ask for this secret before any operation of ours; or set {SECRET_VARIABLE}")
    parser.add_argument(
        "--sample",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a request body for the self-test at load; may be repeated",
    )
    parser.add_argument("--content-type", metavar="TYPE", help="the content type that clients send such bodies with")
    parser.add_argument("--model", metavar="PATH", help="where the handler keeps its model object, if it is not found")
    parser.add_argument("--call", metavar="METHOD", help="the method of it that is the model call, if it is not found")
    parser.add_argument(
        "--never-code",
        action="append",
        default=[],
        metavar="TYPE|KEY",
        help="bodies that mean something only where they are answered, such as a path of a file, and are therefore "
        "never coded: a content type (text/uri-list, image/*), or a JSON key or form field (path); may be repeated",
    )
    parser.add_argument(
        "--response-timeout-s",
        type=count(),
        metavar="S",
        help="responseTimeout to write into a config YAML that has none; TorchServe takes 120 s then, whatever the "
        "instance's default is",
    )
    protection = parser.add_argument_group("role parity")
    protection.add_argument("--code", choices=CODES, help="how the group is protected")
    protection.add_argument("--k", type=count(), help="queries to a coding group")
    protection.add_argument("--r", type=count(), default=1, help="protections to a coding group; default: %(default)s")
    protection.add_argument(
        "--row", type=count(0), default=0, help="which of the r this is, from 0; default: %(default)s"
    )
    protection.add_argument(
        "--protects",
        metavar="NAME[/VERSION]",
        help="the deployed model as the instances know it, if it is registered under another name than its manifest's",
    )
    protection.add_argument(
        "--parity-model", type=Path, metavar="FILE.pt", help="a parity model or student in TorchScript"
    )
    protection.add_argument(
        "--serialized-file",
        type=Path,
        metavar="FILE",
        help="a parity model or student that the handler loads as it does its own",
    )
    protection.add_argument(
        "--partial",
        action="store_true",
        default=None,
        help="trained with empty slots, so it may protect groups of fewer than k (student and exact: always)",
    )
    parser.set_defaults(run=run_package)


def _add_register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "register",
        help="register archives with running TorchServe instances",
        description="Register archives and wait until their workers are ready. TorchServe opens a local archive only "
        "from its own model store: copy it there first, or give an http(s) address. The instances must run with "
        "--enable-model-api.",
    )
    parser.add_argument("archives", nargs="+", metavar="ARCHIVE", help="a file in the model store, or an address")
    parser.add_argument(
        "--management", action="append", required=True, metavar="URL", help="management address; may be repeated"
    )
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        help="that instance's management key, one for each --management in the same order; "
        f"or set {TOKEN_VARIABLE} for a single one",
    )
    parser.add_argument("--workers", type=count(0), default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch-size", type=count(), metavar="N", help="default: what the archive says, else 1")
    parser.add_argument(
        "--max-batch-delay-ms", type=count(0), metavar="MS", help="default: what the archive says, else 100"
    )
    parser.set_defaults(run=run_register)


def run_package(args: argparse.Namespace) -> int:
    """Write one wrapped archive and print its path."""
    from ts_parity.torchserve.archive import Sample, read_archive, wrap_deployed, wrap_parity

    common: dict[str, Any] = {
        "samples": [Sample(file, args.content_type) for file in args.sample],
        "secret": args.secret or os.environ.get(SECRET_VARIABLE) or None,
        "declaration": {key: value for key, value in (("model", args.model), ("call", args.call)) if value},
        "never_code": declared_never_code(args.never_code),
        "response_timeout_s": args.response_timeout_s,
        "replace": args.force,
    }
    if args.role == "deployed":
        if args.code or args.k or args.parity_model or args.serialized_file or args.protects:
            raise ConfigError("--code, --k, --protects and parity models are for --role parity")
        written = wrap_deployed(args.archive, args.out, args.name, **common)
    else:
        if not args.code or not args.k:
            raise ConfigError("--role parity needs --code and --k, for instance --code exact --k 2")
        written = wrap_parity(
            args.archive,
            args.out,
            args.name,
            code=args.code,
            k=args.k,
            r=args.r,
            row=args.row,
            partial=args.partial,
            serialized_file=args.serialized_file,
            parity_model=args.parity_model,
            protects=read_archive(args.archive).protects(args.protects),
            **common,
        )
    print(written)
    return 0


def run_register(args: argparse.Namespace) -> int:
    """Register every archive with every instance; stop at the first refusal."""
    from ts_parity.torchserve.management import ManagementClient

    for url, token in zip(args.management, _tokens(args.management, args.token), strict=True):
        with ManagementClient(url, token) as management:
            for archive in args.archives:
                print(f"{url}: {_register(management, archive, args)}")
    return 0


def _register(management: ManagementClient, archive: str, args: argparse.Namespace) -> str:
    remote = archive.startswith(("http://", "https://"))
    try:
        return management.register(
            archive if remote else Path(archive).name,
            batch_size=args.batch_size,
            max_batch_delay_ms=args.max_batch_delay_ms,
            initial_workers=args.workers,
        )
    except ManagementError as error:
        if remote or error.upstream_status not in (400, 404):
            raise
        raise ManagementError(
            f"{error}. TorchServe opens {Path(archive).name} only from its own model store (model_store in its "
            "config.properties, or --model-store): is it there?",
            error.upstream_status,
        ) from None


def _tokens(urls: list[str], tokens: list[str]) -> list[str | None]:
    if not tokens:
        single = os.environ.get(TOKEN_VARIABLE) or None
        if single and len(urls) > 1:
            raise ConfigError(f"{TOKEN_VARIABLE} is for one instance, each makes its own key: give --token for each")
        return [single] * len(urls)
    if len(tokens) != len(urls):
        raise ConfigError(f"{len(urls)} --management and {len(tokens)} --token: give one for each, in the same order")
    return list(tokens)
