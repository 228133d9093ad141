"""Files to begin with: `ts-parity config init`. Every setting is in them, with its default, as a comment.

A profile differs from the others in what is not a comment.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from ts_parity.config.schema import AUTO, GROUPS, InstanceSettings, ModelSettings

_WIDTH = 118


@dataclass(frozen=True)
class Profile:
    text: str
    """A line for --help."""
    intro: str
    given: Mapping[str, Any]
    instances: Sequence[Mapping[str, Any]]


GENERATED = "generated"
"""Stands in a profile for a secret: each file gets a new one."""
_MACHINES = tuple({"inference": f"http://10.0.0.{n}:8080", "domain": f"machine-{n}"} for n in (1, 2, 3))

PROFILES: Mapping[str, Profile] = {
    "plain": Profile(
        "a fleet of models as they are: second copies for late queries",
        "A fleet of models as they are: nothing is trained and no archive is changed. Late queries get second copies, "
        "slow and failing instances are left alone. Write the addresses of your instances where it says [[instance]], "
        "near the end, then: ts-parity config check FILE; ts-parity serve --config FILE.",
        {},
        _MACHINES,
    ),
    "student": Profile(
        "models with a student beside them, which answers for late queries",
        "Models with a student: a small model that answers late queries. `ts-parity train` makes it. On TorchServe "
        "`ts-parity register` puts it beside its model, and the proxy finds it there; for other servers, name it under "
        "[[model]] at the end. It answers clients after it has proved itself on the fleet's own queries, and "
        "`ts-parity status` says how far it is.",
        {"protect": "student", "differing": 0.0005, "extra_work": 0.05},
        _MACHINES,
    ),
    "proxies": Profile(
        "several proxies in front of one fleet",
        "Several proxies in front of one fleet. All of them get this file, with the same secret. Each model is served "
        "by one of them and the others forward to it. `peers` is a name that stands for all their addresses, or a "
        "list. The secret below was made for you; keep this file from other eyes, or leave the line out and set "
        "TS_PARITY_SECRET instead.",
        {"host": "0.0.0.0", "peers": ("http://ts-parity:8080",), "secret": GENERATED, "drain_delay_s": 5.0},
        _MACHINES,
    ),
}


def profile_toml(name: str, secret: str) -> str:
    """The file. `secret`: for the profiles that need one."""
    profile = PROFILES[name]
    given = {key: secret if value == GENERATED else value for key, value in profile.given.items()}
    lines = [
        *_comment(profile.intro),
        "#",
        *_comment(
            "A line that begins with `#` and a name shows a default; take the `#` away to change it. Environment "
            "variables (TS_PARITY_PORT=8080) win over this file, and flags over both. Editors check this file with "
            "the schema that `ts-parity config schema` prints."
        ),
    ]
    for title, items in GROUPS.items():
        lines += ["", f"# ---- {title} ".ljust(80, "-"), *_settings(items, given)]
    lines += ["", "# ---- instances ".ljust(80, "-")]
    first, *others = profile.instances
    lines += ["", "[[instance]]", *_settings(fields(InstanceSettings), first)]
    for instance in others:
        lines += ["", "[[instance]]", *(f"{key} = {_toml(value)}" for key, value in instance.items())]
    lines += ["", "# ---- models ".ljust(80, "-"), "", *_comment("Only for a model that needs one of these.")]
    lines += ["", "# [[model]]", *_settings(fields(ModelSettings), {}, "as-clients-call-it")]
    return "\n".join(lines) + "\n"


def _settings(items: Sequence[Field[Any]], given: Mapping[str, Any], required: str = "") -> Iterator[str]:
    for item in items:
        unit = f" [{item.metadata['unit']}]" if item.metadata["unit"] else ""
        yield ""
        yield from _comment("; ".join(filter(None, (item.metadata["text"], item.metadata["more"]))) + unit)
        if item.name in given:
            yield f"{item.name} = {_toml(given[item.name])}"
        else:
            yield f"# {item.name} = {_toml(required if item.default is MISSING else item.default)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml(value: Any) -> str:
    """JSON writes numbers, texts and lists as TOML does."""
    return json.dumps(AUTO if value is None else list(value) if isinstance(value, tuple) else value)
