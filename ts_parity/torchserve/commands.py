"""The commands `package`, `register` and `unregister`: an archive is wrapped for its role, and made known to running
instances.

Parses, calls, prints: the work is in `archive`, `rollout` and `management`, imported when a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import A_KEY, address, certificates, content_type, count, existing, is_key, key, to_write
from ts_parity.config import CODES
from ts_parity.errors import ArchiveError, ConfigError
from ts_parity.exclusion import declared_never_code

if TYPE_CHECKING:
    from ts_parity.torchserve.management import ManagementClient
    from ts_parity.torchserve.rollout_plan import ArchiveSource, InstanceModels, RolloutStep

SECRET_VARIABLE = "TS_PARITY_SECRET"
TOKEN_VARIABLE = "TS_PARITY_MANAGEMENT_TOKEN"
JAVA_INT = 2**31 - 1
"""The largest number that TorchServe reads."""


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    _add_package(subparsers)
    _add_register(subparsers)
    _add_unregister(subparsers)


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
    given = parser.add_argument_group("input and output")
    given.add_argument("--archive", required=True, type=existing(), metavar="X.mar", help="the model's own archive")
    given.add_argument(
        "--out", required=True, type=archive_to_write, metavar="DIR", help="folder (or .mar file) to write to"
    )
    output.add_force(given)
    given.add_argument("--role", choices=("deployed", "parity"), default="deployed", help="role of the new archive")
    given.add_argument(
        "--name",
        metavar="NAME",
        help="the new archive's model name; default: unchanged, or of a protection MODEL-VERSION-CODE-kK, such as "
        "resnet-1.0-exact-k2",
    )
    given.add_argument(
        "--response-timeout-s",
        type=count(most=JAVA_INT),
        metavar="S",
        help="responseTimeout to write into a config YAML that has none; without it TorchServe uses 120 s, whatever "
        "the instance's default is",
    )
    protection = parser.add_argument_group("role parity")
    protection.add_argument("--code", choices=CODES, help="how the group is protected")
    protection.add_argument("--k", type=count(), metavar="N", help="queries per coding group")
    protection.add_argument("--r", type=count(), default=1, metavar="N", help="protections per coding group")
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
    told = parser.add_argument_group("about the handler, and the bodies")
    add_declaration(told)
    told.add_argument(
        "--sample",
        action="append",
        default=[],
        type=existing(),
        metavar="FILE",
        help="a request body for the self-test at load; may be repeated",
    )
    told.add_argument(
        "--content-type", type=content_type, metavar="TYPE", help="the content type that clients send such bodies with"
    )
    told.add_argument(
        "--never-code",
        action="append",
        default=[],
        metavar="TYPE|KEY",
        help="bodies that mean something only where they are answered, such as a path of a file, and are therefore "
        "never coded: a content type (text/uri-list, image/*), or a JSON key or form field (path); may be repeated",
    )
    told.add_argument(
        "--secret",
        metavar="KEY",
        help=f"secret that the worker requires of the proxy; or set {SECRET_VARIABLE}",
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
        help="register archives with running TorchServe instances, or replace what they serve",
        description="Register archives on every instance given and wait until their workers are ready. All steps are "
        "printed first; if one fails, or Ctrl-C comes, the steps before it are undone. TorchServe opens a local "
        "archive only from its own model store: copy it there first, or give an http(s) address. The instances must "
        "run with --enable-model-api.",
        examples=(
            "ts-parity register --management http://10.0.0.1:8081 protected/resnet.mar",
            "ts-parity register --management http://10.0.0.1:8081 --replace --dry-run protected/resnet.mar",
            "ts-parity register --management http://10.0.0.9:8081 --workers 2 https://store/resnet-1.0-exact-k2.mar",
        ),
    )
    given = parser.add_argument_group("what to change, and where")
    given.add_argument(
        "archives",
        nargs="+",
        metavar="ARCHIVE",
        help="the file that was copied into the model stores (what is registered is compared with it), the name of a "
        "file in them, or an address",
    )
    _add_instances(given)
    given.add_argument(
        "--admin",
        action="append",
        default=[],
        type=address,
        metavar="URL",
        help="admin port of a proxy before these instances; may be repeated: --replace waits until all of them have "
        "seen each change, however busy they are; default: it waits 10 s",
    )
    given.add_argument(
        "--replace",
        action="store_true",
        help="replace the default version: without a gap if the archive has another version; otherwise one instance "
        "after another is without the model while it loads",
    )
    served = parser.add_argument_group("how it is served")
    served.add_argument("--workers", type=count(0, JAVA_INT), metavar="N", help="default: what is replaced has, else 1")
    served.add_argument(
        "--batch-size", type=count(most=JAVA_INT), metavar="N", help="default: what the archive says, else 1"
    )
    served.add_argument(
        "--max-batch-delay-ms", type=count(0, JAVA_INT), metavar="MS", help="default: what the archive says, else 100"
    )
    parser.set_defaults(run=run_register)


def _add_unregister(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "unregister",
        help="unregister models from running TorchServe instances",
        description="Unregister models on every instance given that has them, one instance after another. All "
        "steps are printed first.",
        examples=(
            "ts-parity unregister --management http://10.0.0.9:8081 resnet-1.0-sum-k2",
            "ts-parity unregister --management http://10.0.0.1:8081 --dry-run resnet/1.0",
        ),
    )
    given = parser.add_argument_group("what to change, and where")
    given.add_argument("models", nargs="+", metavar="NAME[/VERSION]", help="the version, where there are several")
    _add_instances(given)
    parser.set_defaults(run=run_unregister)


def _add_instances(given: argparse._ArgumentGroup) -> None:
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
        type=key,
        metavar="KEY",
        help="that instance's management key, one for each --management in the same order; "
        f"or set {TOKEN_VARIABLE} for a single one",
    )
    given.add_argument(
        "--tls-ca",
        type=certificates,
        metavar="PATH",
        help="PEM file, or folder of such files, with the certificates to trust at https addresses",
    )
    given.add_argument("--dry-run", action="store_true", help="print the steps, and do nothing")
    given.add_argument("--json", action="store_true", help="print the steps, and which were done, as JSON")


DECLARATION = {"model": "model", "call": "call", "input": "model_input", "output": "model_output"}
"""What an archive may declare of its handler, and where argparse keeps it."""


def add_declaration(parser: argparse._ActionsContainer) -> None:
    """The flags for what a verdict or a refusal of `train` names as the line to write."""
    parser.add_argument("--model", metavar="PATH", help="where the handler keeps its model object, if it is not found")
    parser.add_argument("--call", metavar="METHOD", help="the method of it that is the model call, if it is not found")
    parser.add_argument(
        "--model-input", metavar="PLACE", help="which floating input is coded, if there are several: args.0, kwargs.x"
    )
    parser.add_argument(
        "--model-output",
        metavar="PLACE",
        help="which floating part of its output is coded, if there are several: logits",
    )


def declared(args: argparse.Namespace) -> dict[str, str]:
    return {name: told for name, flag in DECLARATION.items() if (told := getattr(args, flag))}


def run_package(args: argparse.Namespace) -> int:
    """Write one wrapped archive and print its path."""
    from ts_parity.torchserve.archive import SampleRequest, read_archive, wrap_deployed, wrap_parity

    common: dict[str, Any] = {
        "samples": [SampleRequest(file, args.content_type) for file in args.sample],
        "secret": args.secret or os.environ.get(SECRET_VARIABLE) or None,
        "declaration": declared(args),
        "never_code": declared_never_code(args.never_code),
        "response_timeout_s": args.response_timeout_s,
        "replace": args.force,
    }
    if args.role == "deployed":
        of_parity = ("code", "k", "parity_model", "serialized_file", "protects", "partial", "row")
        if args.r != 1 or any(getattr(args, name) for name in of_parity):
            raise ConfigError("--code, --k, --r, --row, --partial, --protects and parity models are for --role parity")
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
    from ts_parity.torchserve.rollout_plan import RequestedOptions, plan_registration

    sources = [_source(given, args.replace) for given in args.archives]
    known = [(each.archive.model_name, each.archive.model_version) for each in sources if each.archive is not None]
    if len(known) > len(set(known)) or len(sources) > len({each.url for each in sources}):
        raise ConfigError("two of these archives have one name and version: a TorchServe takes one of them")
    requested = RequestedOptions(args.workers, args.batch_size, args.max_batch_delay_ms)
    return _roll_out(args, lambda fleet: plan_registration(fleet, sources, requested, args.replace), args.admin)


def run_unregister(args: argparse.Namespace) -> int:
    from ts_parity.torchserve.rollout_plan import plan_unregistration

    for name in args.models:
        model, slash, version = name.partition("/")
        if not model or "/" in version or (slash and not version):
            raise ConfigError(f"a model is NAME or NAME/VERSION, not {name!r}")
    return _roll_out(args, lambda fleet: plan_unregistration(fleet, list(dict.fromkeys(args.models))))


def _source(given: str, replace: bool) -> ArchiveSource:
    """The URL for TorchServe, and the archive that it should find there."""
    from ts_parity.torchserve.archive import read_archive
    from ts_parity.torchserve.rollout_plan import ArchiveSource

    if given.startswith(("http://", "https://")):
        if replace:
            raise ConfigError(
                f"--replace looks into the archive: copy it into the model stores, and give that file, not {given}"
            )
        return ArchiveSource(given)
    if not given:
        raise ConfigError("'' is no archive: give a file, its name in the model stores, or an address")
    path = Path(given)
    if path.name == given:
        archive = None
        with contextlib.suppress(ArchiveError):  # it is the name of a file elsewhere, which need not be here
            archive = read_archive(path)
        if archive is None and replace:
            raise ConfigError(
                f"--replace looks into the archive: give the file {given} that was copied into the model stores"
            )
        return ArchiveSource(given, archive)
    if not path.is_file():
        raise ConfigError(f"there is no file {given}; one that is in the model stores only is given by its name alone")
    archive = read_archive(path)
    if archive.section is None:
        raise ConfigError(
            f"TorchServe would read {path.name} from its own model store, and whether that is {path} cannot be seen "
            f"from outside, since the archive is not wrapped: copy it there and give its name alone, {path.name}"
        )
    return ArchiveSource(path.name, archive)


def _roll_out(
    args: argparse.Namespace, plan: Callable[[list[InstanceModels]], list[RolloutStep]], admins: Sequence[str] = ()
) -> int:
    """Look at the instances, print the steps, and carry them out."""
    from ts_parity.torchserve.rollout import Rollout, check_admins
    from ts_parity.torchserve.rollout_plan import look

    steps: list[RolloutStep] = []
    error = ""
    with contextlib.ExitStack() as stack:
        clients = {client.url: stack.enter_context(client) for client in _clients(args)}
        rollout = Rollout(clients, said=_silent if args.json else print, told=_tell, admins=admins)
        try:
            check_admins(admins, [*clients])
            steps = plan([look(client) for client in clients.values()])
            if args.dry_run:
                for step in [] if args.json else steps:
                    print(step.text)
                return 0
            for step in steps:
                _tell(f"to do: {step.text}")
            with _terminated_by_exception():
                rollout.carry_out(steps)
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            if args.json:
                told = [{**step.as_json(), "done": step in rollout.done} for step in steps]
                result = {"dry_run": args.dry_run, "steps": told, "undone": rollout.undone, "error": error}
                print(json.dumps(result, indent=2))
    return 0


def _clients(args: argparse.Namespace) -> list[ManagementClient]:
    from ts_parity.torchserve.management import ManagementClient

    urls = args.management
    if len(urls) > len(set(urls)):
        raise ConfigError(f"--management {next(url for url in urls if urls.count(url) > 1)} is given twice")
    tls_ca = None if args.tls_ca is None else str(args.tls_ca)
    tokens = _tokens(urls, args.token)
    return [ManagementClient(url, token, tls_ca=tls_ca) for url, token in zip(urls, tokens, strict=True)]


@contextlib.contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM undoes what was done, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """With --json the result is one object."""


def _tokens(urls: list[str], tokens: list[str]) -> list[str | None]:
    if not tokens:
        single = os.environ.get(TOKEN_VARIABLE) or None
        if single and not is_key(single):
            raise ConfigError(f"{TOKEN_VARIABLE} must be {A_KEY}")
        if single and len(urls) > 1:
            raise ConfigError(f"{TOKEN_VARIABLE} is for one instance, each makes its own key: give --token for each")
        return [single] * len(urls)
    if len(tokens) != len(urls):
        raise ConfigError(f"{len(urls)} --management and {len(tokens)} --token: give one for each, in the same order")
    return list(tokens)
