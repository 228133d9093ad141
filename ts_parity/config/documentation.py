"""docs/settings.md, made from the settings' fields: `python -m ts_parity.config > docs/settings.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ts_parity.config.schema import GROUPS, InstanceSettings, ModelSettings, shown_default
from ts_parity.tables import markdown


def settings_markdown() -> str:
    """docs/settings.md, whole."""
    lines = [
        "# Settings of the proxy",
        "",
        "Made by `python -m ts_parity.config` from the fields in `ts_parity/config/schema.py` and `engine/policy.py`;",
        "do not edit by hand. What the policy does without any of them is in [Policy](policy.md#the-recipe).",
        "",
        "A TOML file (`ts-parity serve --config FILE`), then environment variables, then flags; the later wins.",
        "A setting `deadline_s` is `deadline_s = 2.0` in the file, `TS_PARITY_DEADLINE_S=2.0` in the environment and",
        "`--deadline-s 2.0` on the command line. Lists are separated by commas there. Unknown names are errors, and",
        "for a name of an earlier version the error says what replaces it.",
        "",
        "`ts-parity config init` prints a file to begin with, `config check FILE` says what is wrong with one,",
        "`config show` says where each value came from, and `config schema` prints a JSON Schema for editors",
        "([promises](behaviour.md#what-config-says)).",
        "",
        "A running proxy reads all of it again on SIGHUP or `ts-parity reload`; what it keeps until it is started",
        "again says *needs a restart* ([promises](behaviour.md#what-a-reload-does)).",
        "",
        *(
            line
            for title, items in GROUPS.items()
            for line in (f"## {title[0].upper()}{title[1:]}", "", *_table(items), "")
        ),
        "## `[[instance]]`, `--endpoint`",
        "",
        "One table per TorchServe instance in the file, or one `--endpoint URL[,key=value]...` each on the command",
        "line, or all of them, separated by blanks, in `TS_PARITY_ENDPOINTS`.",
        "",
        *_table(list(fields(InstanceSettings))),
        "",
        "## `[[model]]`, `--model`",
        "",
        "One table per model in the file, or one `--model NAME[,key=value]...` each on the command line, or all of",
        "them, separated by blanks, in `TS_PARITY_MODELS`. Most models need none.",
        "",
        *_table(list(fields(ModelSettings))),
        "",
    ]
    return "\n".join(lines)


def _table(items: Sequence[Field[Any]]) -> list[str]:
    return markdown(("setting", "default", "unit", "what it is"), [_row(item) for item in items]).splitlines()


def _row(item: Field[Any]) -> tuple[str, ...]:
    default = "required" if item.default is MISSING else f"`{shown_default(item.default)}`"
    restart = "needs a restart" if item.metadata["restart"] else ""
    what = "; ".join(filter(None, (item.metadata["text"], item.metadata["more"], restart)))
    return f"`{item.name}`", default, item.metadata["unit"], what
