"""The proxy's settings as command line flags, one for each, and a word for each flag of earlier versions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from ts_parity.arguments import SuggestingAction
from ts_parity.config.removed import REMOVED
from ts_parity.config.schema import AUTO, FIELDS, GROUPS, InstanceSettings, ModelSettings, shown_default
from ts_parity.errors import ConfigError


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Instances, models, and a flag for each setting."""
    endpoints = parser.add_argument_group(
        "endpoints",
        f"Keys of --endpoint: {_keys(InstanceSettings)}; of --model: {_keys(ModelSettings)}. Both replace those of "
        "file and environment.",
    )
    endpoints.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL[,KEY=VALUE]",
        help="an instance's inference address; repeat for each instance",
    )
    endpoints.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE]",
        help="settings of one model; repeat for each model",
    )
    add_flags(parser)


def _keys(table: type[InstanceSettings] | type[ModelSettings]) -> str:
    """All but the first, which comes without its name."""
    return ", ".join(item.name for item in fields(table)[1:])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, with its default in place of a value; a flag that is not given is None, so that it does not
    win over file or environment.
    """
    groups = {group.title: group for group in parser._action_groups}
    for title, items in GROUPS.items():
        group = groups.get(title) or parser.add_argument_group(title)
        for item in items:
            default = "KEY" if item.metadata["secret"] else shown_default(item.default)
            text = item.metadata["text"].replace("%", "%%")
            group.add_argument(
                f"--{item.name.replace('_', '-')}",
                dest=item.name,
                metavar=default,
                help=text,
                action=SuggestingAction,
                words=_offered(item),
            )
    for name in REMOVED:
        group.add_argument(f"--{name.replace('_', '-')}", nargs="?", action=_Removed, help=argparse.SUPPRESS)


def _offered(item: Field[Any]) -> Sequence[str] | None:
    """What a shell offers for a setting."""
    if item.metadata["words"]:
        return tuple(item.metadata["words"])
    if item.metadata["auto"] is not None:
        return (AUTO,)
    if isinstance(item.default, bool):
        return "true", "false"
    return None if isinstance(item.default, str) and not item.metadata["secret"] else ()


class _Removed(argparse.Action):
    """A flag of earlier versions: says what to type instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, flag: Any = None) -> None:
        raise ConfigError(f"{flag} is no flag any more: {REMOVED[self.dest]}")


def given_flags(args: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(args, name) for name in FIELDS if getattr(args, name, None) is not None}
