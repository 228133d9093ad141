"""The commands `package` and `register`: an archive is wrapped for its role, and made known to running instances.

Parses, calls, prints: the work is in `archive` and `management`, imported when a command runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import address, count, existing, to_write
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, ManagementError
from ts_parity.exclusion import declared_never_code

if TYPE_CHECKING:
    from ts_parity.torchserve.management import ManagementClient

SECRET_VARIABLE = "TS_PARITY_SECRET"
TOKEN_VARIABLE = "TS_PARITY_MANAGEMENT_TOKEN"


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    _add_package(subparsers)
    _add_register(subparsers)


def _add_package(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "package",
        help="wrap a model archive for the deployed or the parity role",
        description="Wrap a .mar: the handler in it stays as it is and runs behind ours. A learned parity model comes "
        "from `ts-parity train`; `--role parity --code exact` needs none: it runs the model itself.",
        examples=(
            "ts-parity package --archive resnet.mar --role parity --code exact --k 2 --out protected/",
            "ts-parity package --archive resnet.mar --out protected/ --sample dog.jpg",
        ),
    )
    given = parser.add_argument_group("what is wrapped, and where to")
    given.add_argument("--archive", required=True, type=existing(), metavar="X.mar", help="the model's own archive")
    given.add_argument(
        "--out", required=True, type=archive_to_write, metavar="DIR", help="folder (or .mar file) to write to"
    )
    output.add_force(given)
    given.add_argument("--role", choices=("deployed", "parity"), default="deployed", help="what it is to be")
    given.add_argument(
        "--name",
        metavar="NAME",
        help="the model's name; default: as it is; of a protection MODEL-VERSION-CODE-kK, such as resnet-1.0-exact-k2",
    )
    given.add_argument(
        "--response-timeout-s",
        type=count(),
        metavar="S",
        help="responseTimeout to write into a config YAML that has none; TorchServe takes 120 s then, whatever the "
        "instance's default is",
    )
    protection = parser.add_argument_group("role parity")
    protection.add_argument("--code", choices=CODES, help="how the group is protected")
    protection.add_argument("--k", type=count(), metavar="N", help="queries to a coding group")
    protection.add_argument("--r", type=count(), default=1, metavar="N", help="protections to a coding group")
    protection.add_argument("--row", type=count(0), default=0, metavar="N", help="which of the r this is, from 0")
    protection.add_argument(
        "--protects",
        metavar="NAME[/VERSION]",
        help="the deployed model as the instances know it, if it is registered under another name than its manifest's",
    )
    protection.add_argument(
        "--parity-model", type=existing(), metavar="FILE.pt", help="a parity model or student in TorchScript"
    )
    protection.add_argument(
        "--serialized-file",
        type=existing(),
        metavar="FILE",
        help="a parity model or student that the handler loads as it does its own",
    )
    protection.add_argument(
        "--partial",
        action="store_true",
        default=None,
        help="trained with empty slots, so it may protect groups of fewer than k (student and exact: always)",
    )
    told = parser.add_argument_group("what must be said of the handler, and of bodies")
    told.add_argument("--model", metavar="PATH", help="where the handler keeps its model object, if it is not found")
    told.add_argument("--call", metavar="METHOD", help="the method of it that is the model call, if it is not found")
    told.add_argument(
        "--sample",
        action="append",
        default=[],
        type=existing(),
        metavar="FILE",
        help="a request body for the self-test at load; may be repeated",
    )
    told.add_argument("--content-type", metavar="TYPE", help="the content type that clients send such bodies with")
    told.add_argument(
        "--never-code",
        action="append",
        default=[],
        metavar="TYPE|KEY",
        help="bodies that mean something only where they are answered, such as a path of a file, and are therefore "
        "never coded: a content type (text/uri-list, image/*), or a JSON key or form field (path); may be repeated",
    )
    told.add_argument(
        "--secret", metavar="KEY", help=f"ask for this secret before any operation of ours; or set {SECRET_VARIABLE}"
    )
    parser.set_defaults(run=run_package)


def archive_to_write(text: str) -> Path:
    """A folder, made if need be, or a .mar in one."""
    path = Path(text)
    if path.suffix == ".mar":
        to_write("folder")(str(path.parent))
        return path
    return to_write("folder")(text)


def _add_register(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "register",
        help="register archives with running TorchServe instances",
        description="Register archives and wait until their workers are ready. TorchServe opens a local archive only "
        "from its own model store: copy it there first, or give an http(s) address. The instances must run with "
        "--enable-model-api.",
        examples=(
            "ts-parity register --management http://10.0.0.1:8081 resnet.mar",
            "ts-parity register --management http://10.0.0.9:8081 --workers 2 https://store/resnet-parity.mar",
        ),
    )
    given = parser.add_argument_group("what, and where")
    given.add_argument("archives", nargs="+", metavar="ARCHIVE", help="a file in the model store, or an address")
    given.add_argument(
        "--management",
        action="append",
        type=address,
        required=True,
        metavar="URL",
        help="management address; may be repeated",
    )
    given.add_argument(
        "--token",
        action="append",
        default=[],
        metavar="KEY",
        help="that instance's management key, one for each --management in the same order; "
        f"or set {TOKEN_VARIABLE} for a single one",
    )
    served = parser.add_argument_group("how it is served")
    served.add_argument("--workers", type=count(0), default=1, metavar="N", help="worker processes")
    served.add_argument("--batch-size", type=count(), metavar="N", help="default: what the archive says, else 1")
    served.add_argument(
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
