"""Completion of command lines in bash and zsh, made from the parsers: what they take is what is offered.

Knows commands, options and the words that an option takes. Knows nothing of what they do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ts_parity.arguments import Parser, SuggestingAction, subcommands

SHELLS = ("bash", "zsh")


def add_parser(subparsers: argparse._SubParsersAction[Any], root: Parser) -> None:
    """`root`: the whole command line, with all commands in it."""
    parser = subparsers.add_parser(
        "completion",
        help="print a completion script for bash or zsh",
        description="Prints a script that completes commands, options and values. It asks nothing while you type.",
        examples=(
            "ts-parity completion bash > ~/.local/share/bash-completion/completions/ts-parity",
            'ts-parity completion zsh > "${fpath[1]}/_ts-parity"',
        ),
    )
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh; eval and source take the script too")
    parser.set_defaults(run=partial(run_completion, root))


def run_completion(root: Parser, args: argparse.Namespace) -> int:
    print({"bash": bash_script, "zsh": zsh_script}[args.shell](root), end="")
    return 0


def _commands(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Each command with the words that it is called by, the root first."""
    yield words, parser
    for name, below in subcommands(parser).items():
        yield from _commands(below, (*words, name))


def _options(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


def _positionals(parser: Parser) -> list[argparse.Action]:
    return [
        action
        for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]


def _words(action: argparse.Action) -> Sequence[str] | None:
    """What may be given; None: it is not known, and may be a file."""
    if isinstance(action, SuggestingAction):
        return action.words
    return None if action.choices is None else [str(choice) for choice in action.choices]


# ---- bash ------------------------------------------------------------------------------------------------------------

_BASH = """\
# Completion of ts-parity for bash: made by `ts-parity completion bash`.
_ts_parity() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at="" word words
    # Bash takes --option=value apart at the sign.
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$at/$word" in
            @PATHS@) at="$at/$word" ;;
        esac
    done
    COMPREPLY=()
    case "$at $prev" in
@VALUES@
    esac
    case "$at" in
@OFFERED@
    esac
    [[ $cur != -* ]] && words=${words%%|*} || words=${words#*|}
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
# Where nothing is offered bash completes files.
complete -o default -F _ts_parity ts-parity
"""


def bash_script(root: Parser) -> str:
    commands = list(_commands(root))
    values, offered = [], []
    for path, parser in commands:
        at = _bash_path(path)
        for action in _options(parser):
            if action.nargs == 0:
                continue
            names = "|".join(f'"{at} {name}"' for name in action.option_strings)
            values.append(f"        {names}) {_bash_value(_words(action))} ;;")
        plain = [*subcommands(parser), *(word for each in _positionals(parser) for word in _words(each) or ())]
        options = [name for action in _options(parser) for name in action.option_strings]
        offered.append(f'        "{at}") words="{" ".join(plain)}|{" ".join(options)}" ;;')
    return (
        _BASH.replace("@PATHS@", "|".join(f'"{_bash_path(path)}"' for path, _ in commands if path))
        .replace("@VALUES@", "\n".join(values))
        .replace("@OFFERED@", "\n".join(offered))
    )


def _bash_path(path: Sequence[str]) -> str:
    return "".join(f"/{word}" for word in path)


def _bash_value(words: Sequence[str] | None) -> str:
    if words is None:
        return "return"
    if not words:  # a number: no file is meant
        return "compopt +o default 2> /dev/null; return"
    return f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur")); return'


# ---- zsh -------------------------------------------------------------------------------------------------------------


def zsh_script(root: Parser) -> str:
    functions = "\n".join(_zsh_function(path, parser) for path, parser in _commands(root))
    return f"""\
#compdef ts-parity
# Completion of ts-parity for zsh: made by `ts-parity completion zsh`.
{functions}
if [[ "$funcstack[1]" == "_ts-parity" ]]; then
    _ts_parity "$@"
else
    compdef _ts_parity ts-parity
fi
"""


def _zsh_function(path: Sequence[str], parser: Parser) -> str:
    name = "_".join(("_ts_parity", *path))
    specs = [*(_zsh_option(action, parser) for action in _options(parser)), *map(_zsh_positional, _positionals(parser))]
    below = subcommands(parser)
    if not below:
        return "\n".join([f"{name}() {{", "    _arguments -s \\", *_continued(specs), "}", ""])
    specs += ["'1:command:->command'", "'*::argument:->argument'"]
    helped = _helped(parser)
    return "\n".join(
        [
            f"{name}() {{",
            "    local context state state_descr line",
            "    typeset -A opt_args",
            "    local -a commands",
            "    commands=(",
            *(f"        {_quoted(command + ':' + _one_line(helped[command]))}" for command in below),
            "    )",
            "    _arguments -C -s \\",
            *_continued(specs),
            "    case $state in",
            "        command) _describe -t commands command commands ;;",
            "        argument)",
            "            case $words[1] in",
            *(f"                {command}) {name}_{command} ;;" for command in below),
            "            esac",
            "            ;;",
            "    esac",
            "}",
            "",
        ]
    )


def _continued(specs: Sequence[str]) -> list[str]:
    return [f"        {spec} \\" for spec in specs[:-1]] + [f"        {spec}" for spec in specs[-1:]]


def _helped(parser: Parser) -> dict[str, str]:
    return {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }


def _zsh_option(action: argparse.Action, parser: Parser) -> str:
    text = _escaped(_one_line(parser._get_formatter()._expand_help(action)), "[]:\\")
    repeated = isinstance(action, argparse._AppendAction)
    value = "" if action.nargs == 0 else f":{_escaped(_metavar(action), ':')}:{_zsh_values(action)}"
    names = action.option_strings
    ready = [f"{name}{'=' if value and name.startswith('--') else ''}[{text}]{value}" for name in names]
    if repeated:
        return " ".join(_quoted(f"*{spec}") for spec in ready)
    others = f"({' '.join(names)})" if len(names) > 1 else ""
    return " ".join(_quoted(f"{others}{spec}") for spec in ready)


def _zsh_positional(action: argparse.Action) -> str:
    many = "*" if action.nargs in ("+", "*") else ""
    optional = ":" if action.nargs == "?" else ""
    return _quoted(f"{many}:{optional}{_escaped(_metavar(action), ':')}:{_zsh_values(action)}")


def _zsh_values(action: argparse.Action) -> str:
    words = _words(action)
    return "_files" if words is None else f"({' '.join(words)})" if words else " "


def _metavar(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{letter}" if letter in special else letter for letter in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
