"""Command lines: how their help looks, what is said of a wrong one, and what argparse is given as `type`.

`float("nan")`, `int("1e9")` and a file that is not there are traps that every command has; here they are met once,
before anything heavy is imported. Knows texts, limits and paths. Knows nothing of what a command does.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ts_parity.errors import EXIT_CODES, ConfigError

_CODES = "Exit codes: " + ", ".join(f"{code} {what.partition(':')[0]}" for code, what in EXIT_CODES.items()) + "."


class Parser(argparse.ArgumentParser):
    """Its help begins with `examples` (whole command lines) and tells every default; what is wrong with a command line
    is a ConfigError of one line.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        options.setdefault("formatter_class", _Help)
        super().__init__(*args, **options)
        self._examples = examples

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+):( must)?", lambda found: found[1] + (found[2] or ":"), message)
        wrong = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        shown = [flag for flag, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        if wrong and (near := difflib.get_close_matches(wrong[1], shown, n=1)):
            message += f"; did you mean {near[0]}?"
        raise ConfigError(message if "did you mean" in message else f"{message}; {self.prog} --help says more")

    def format_help(self) -> str:
        top = self._get_formatter()
        top.add_usage(self._short_usage(), [], [])
        top.add_text(self.description)
        options = self._get_formatter()
        for group in self._action_groups:
            if all(isinstance(action, argparse._HelpAction) for action in group._group_actions):
                continue  # who reads this knows it
            options.start_section(group.title)
            options.add_text(group.description)
            options.add_arguments(group._group_actions)
            options.end_section()
        options.add_text(self.epilog or _CODES)
        examples = "".join(f"  {line}\n" for line in self._examples)
        return "\n".join(
            filter(None, [top.format_help(), examples and f"examples:\n{examples}", options.format_help()])
        )

    def format_usage(self) -> str:
        return f"usage: {self._short_usage()}\n"

    def _short_usage(self) -> str:
        """What must be given. The rest is in the help, and would be a screen of brackets here."""
        needed = [self.prog.replace("%", "%%")]
        for action in self._actions:
            if action.required and not isinstance(action, argparse._SubParsersAction):
                name = str(action.metavar or action.dest.upper())
                needed.append(" ".join([*action.option_strings[-1:], name]) + (" ..." if action.nargs == "+" else ""))
        commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        return " ".join([*needed, "COMMAND [OPTION ...]" if commands else "[OPTION ...]"])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"{value!r} is unknown; {hint}")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """By their names; empty for a command that has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


class SuggestingAction(argparse.Action):
    """Stores a text, of which something else finds out whether it is right; `words` are what a shell may offer for it.
    None: files. Empty: nothing.
    """

    def __init__(self, *args: Any, words: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.words = words

    def __call__(self, parser: object, namespace: argparse.Namespace, values: object, flag: object = None) -> None:
        setattr(namespace, self.dest, values)


class _Help(argparse.HelpFormatter):
    """Tells the default of every option that has one, unless its text does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        given = default is not None and default is not False and default not in ([], argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if given and "default" not in text else text


def existing(what: str = "file") -> Callable[[str], Path]:
    """A path that is there and can be read: a "file", a "folder", or a "file or folder"."""
    return lambda text: _readable(_given(text, what), what)


def source(text: str) -> Path:
    """A file, a folder, or something inside of a file: FILE.zip/FOLDER."""
    path = _given(text, "file or folder")
    outer = next((each for each in path.parents if _is(each, os.path.isfile)), path)
    _readable(outer, "file or folder")
    return path


def address(text: str) -> str:
    """http://HOST:PORT of a program to talk to."""
    if not _is_url(text) or urlsplit(text).query:
        raise argparse.ArgumentTypeError(f"must be like http://HOST:PORT, not {text!r}")
    return text.rstrip("/")


def url(text: str) -> str:
    """http://HOST:PORT/PATH?QUERY, which is what will be asked for."""
    if not _is_url(text):
        raise argparse.ArgumentTypeError(f"must be like http://HOST:PORT/PATH, not {text!r}")
    return text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        known = parts.scheme in ("http", "https") and host and ".." not in host and is_one_word(text)
        return bool(known) and parts.port != 0
    except ValueError:
        return False


def is_one_word(text: str) -> bool:
    """Without blanks and control characters, which `urlsplit` drops without a word."""
    return text.isprintable() and " " not in text


def is_key(text: str) -> bool:
    """A secret that can travel in a header."""
    return text.isascii() and text.isprintable() and text == text.strip() != ""


def key(text: str) -> str:
    """Never quoted, since messages are kept."""
    if text and not is_key(text):
        raise argparse.ArgumentTypeError(f"must be {A_KEY}")
    return text


A_KEY = "printable ASCII without spaces around it, since it travels in a header"


def content_type(text: str) -> str:
    """KIND/KIND, with parameters."""
    if not re.fullmatch(r"[\w.+-]+/[\w.+-]+\s*(;.*)?", text, re.ASCII) or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be like application/json, not {text!r}")
    return text


def certificates(text: str) -> Path:
    """A PEM file, or a folder of such."""
    import ssl  # here, for it takes longer than the rest of a help text

    path = existing("file or folder")(text)
    try:
        if path.is_file():
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise argparse.ArgumentTypeError(f"there is no PEM certificate in {text!r}") from None
    return path


def to_write(what: str = "file") -> Callable[[str], Path]:
    """A path that can probably be written: a "file" in a folder that is there, or a "folder" that is there or can be
    made.
    """

    def checked(text: str) -> Path:
        path = Path(text)
        if not text or (what == "file" and _is(path, os.path.isdir)):
            raise argparse.ArgumentTypeError(f"{text!r} is {'a folder' if text else 'no path'}, give a {what} to write")
        made = (path.parent,) if what == "file" else (path, *path.parents)
        above = next((each for each in made if _is(each, os.path.lexists)), path.parent)
        if not _is(above, os.path.isdir):
            told = "is not a folder" if _is(above, os.path.lexists) else "is not there; make it first"
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: {str(above)!r} {told}")
        if not os.access(above, os.W_OK | os.X_OK):
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: no permission to write in {str(above)!r}")
        return path

    return checked


def _given(text: str, what: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError(f"'' is no path, give a {what}")
    return Path(text)


def _readable(path: Path, what: str) -> Path:
    if not _is(path, os.path.exists):
        if _is(path, os.path.islink):
            raise argparse.ArgumentTypeError(f"{str(path)!r} is a link, and nothing is where it leads")
        closed = [each for each in path.parents if _is(each, os.path.isdir) and not os.access(each, os.X_OK)]
        if closed:
            raise argparse.ArgumentTypeError(f"no permission to look for {str(path)!r} in {str(closed[0])!r}")
        near = _neighbour(path)
        raise argparse.ArgumentTypeError(f"there is no {what} {str(path)!r}{near and f'; did you mean {near!r}?'}")
    found = "folder" if _is(path, os.path.isdir) else "file"
    if found not in what:
        raise argparse.ArgumentTypeError(f"{str(path)!r} is a {found}, give a {what}")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"no permission to read {str(path)!r}")
    return path


def _is(path: Path, asked: Callable[[Path], bool]) -> bool:
    """Also of a path that no file can have."""
    try:
        return asked(path)
    except (OSError, ValueError):
        return False


def _neighbour(path: Path) -> str:
    """What is nearly called so: of `path`, or of the folder that lacks."""
    lacking = next(each for each in (path, *path.parents) if each == each.parent or _is(each.parent, os.path.isdir))
    try:
        near = difflib.get_close_matches(lacking.name, os.listdir(lacking.parent), n=1)
    except OSError:
        return ""
    return str(lacking.with_name(near[0])) if near else ""


LARGEST, SMALLEST = 1e15, 1e-9
"""No count, time or share beyond these can be meant here, and what is made of them still fits where it goes: the square
of what is above zero is above zero, and a whole number is a float."""
_SHOWN = 40
"""Characters of what was given that a message quotes."""


def number(
    least: float | None = None, above: float | None = None, most: float = math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """A finite number of at least `least` or above `above`, at most `most` and below `below`; within LARGEST."""
    return lambda text: _checked(_float(text), text, "a number", least, above, most, below)


def count(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """A whole number of at least `least` and at most `most`; within LARGEST."""
    return lambda text: int(_checked(_int(text), text, "a whole number", least, None, most, math.inf))


def seconds(text: str) -> float:
    """A duration: seconds, or with their unit, s or ms."""
    unit = next((unit for unit in ("ms", "s") if text.endswith(unit)), "")
    try:
        return number(above=0)(text.removesuffix(unit)) / (1000 if unit == "ms" else 1)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (seconds, or as in 200ms), not {text!r}") from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _int(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return math.nan


def _checked(
    value: float, text: str, word: str, least: float | None, above: float | None, most: float, below: float
) -> float:
    # Compared and not converted: whole numbers have no end, and floats have.
    fits = -LARGEST <= value <= min(most, LARGEST) and value < below
    if fits and (least is None or value >= least) and (above is None or value >= above + SMALLEST):
        return value
    if above is not None and above < value < above + SMALLEST:
        least = above + SMALLEST
    limits = [f"of at least {least:g}"] if least is not None else [f"above {above:g}"] if above is not None else []
    if LARGEST < value < math.inf:
        most = min(most, LARGEST)
    limits += [f"at most {most:g}"] if most != math.inf else [f"below {below:g}"] if below != math.inf else []
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    raise argparse.ArgumentTypeError(f"must be {word} {' and '.join(limits)}".rstrip() + f", not {shown!r}")
