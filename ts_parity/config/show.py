"""A configuration as it is in force: each setting with its value and where that came from.

Knows no secret's value: it says whether one is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ts_parity.config.reading import Configuration, Origins, ValueOrigin
from ts_parity.config.schema import GROUPS, OF_POLICY, InstanceSettings, ModelSettings, Settings, shown_default
from ts_parity.tables import columns

HIDDEN = "(set, not shown)"
"""In place of a secret."""
_DEFAULT = ValueOrigin()


def configuration_json(found: Configuration, settings: Settings) -> dict[str, Any]:
    """{"settings": {name: entry}, "instances": [{key: entry}], "models": [{key: entry}]}; an entry has the value, the
    default, the unit, and `origin`: its kind (default, file, environment, flag) and where (FILE:LINE, variable, flag).
    """
    return {
        "settings": {
            item.name: _entry(item, _value(settings, item), found.origins)
            for items in GROUPS.values()
            for item in items
        },
        "instances": _entries(settings.instances, found.instance_origins, fields(InstanceSettings)),
        "models": _entries(settings.models, found.model_origins, fields(ModelSettings)),
    }


def configuration_table(found: Configuration, settings: Settings) -> str:
    rows: list[tuple[str, str, str]] = []
    for title, items in GROUPS.items():
        rows.append((f"{title[0].upper()}{title[1:]}", "", ""))
        rows += (_row(item, _value(settings, item), found.origins) for item in items)
    rows += _tables("Instance", settings.instances, found.instance_origins, fields(InstanceSettings))
    rows += _tables("Model", settings.models, found.model_origins, fields(ModelSettings))
    return "\n".join(columns([("setting", "value", "from"), *rows]))


def _entries(values: Sequence[Any], origins: Sequence[Origins], items: Sequence[Field[Any]]) -> list[dict[str, Any]]:
    return [
        {item.name: _entry(item, getattr(value, item.name), given) for item in items}
        for value, given in zip(values, origins, strict=True)
    ]


def _tables(
    title: str, values: Sequence[Any], origins: Sequence[Origins], items: Sequence[Field[Any]]
) -> Iterator[tuple[str, str, str]]:
    for number, (value, given) in enumerate(zip(values, origins, strict=True), 1):
        yield f"{title} {number}", "", ""
        for item in items:
            yield _row(item, getattr(value, item.name), given)


def _value(settings: Settings, item: Field[Any]) -> Any:
    return getattr(settings.policy if item.name in OF_POLICY else settings, item.name)


def _entry(item: Field[Any], value: Any, origins: Origins) -> dict[str, Any]:
    origin = origins.get(item.name, _DEFAULT)
    return {
        "value": _hidden(item, value),
        "default": None if item.default is MISSING else item.default,
        "unit": item.metadata["unit"],
        "origin": {"kind": origin.kind, "where": origin.where},
    }


def _row(item: Field[Any], value: Any, origins: Origins) -> tuple[str, str, str]:
    return f"  {item.name}", shown_default(_hidden(item, value)), origins.get(item.name, _DEFAULT).where


def _hidden(item: Field[Any], value: Any) -> Any:
    return HIDDEN if item.metadata["secret"] and value else value
