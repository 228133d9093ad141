"""A configuration as it is in force: each setting with its value and where that came from; and what differs in another.

Knows no secret's value: it says whether one is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def configuration_table(told: Mapping[str, Any]) -> str:
    """`told`: as `configuration_json` made it, here or in a proxy, whose version may be another."""
    rows: list[tuple[str, str, str]] = []
    left = dict(told["settings"])
    for title, items in GROUPS.items():
        rows.append((f"{title[0].upper()}{title[1:]}", "", ""))
        rows += (_row(item.name, left.pop(item.name)) for item in items if item.name in left)
    if left:
        rows += [("Unknown here", "", ""), *(_row(name, entry) for name, entry in left.items())]
    for title, tables in (("Instance", told["instances"]), ("Model", told["models"])):
        for number, entries in enumerate(tables, 1):
            rows += [(f"{title} {number}", "", ""), *(_row(name, entry) for name, entry in entries.items())]
    return "\n".join(columns([("setting", "value", "from"), *rows]))


def differences(running: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Both as `configuration_json` made them. Sentences; two keys that are set are not compared."""
    told = [*_differing("", running["settings"], given["settings"])]
    for kind, name in (("instance", _instance_name), ("model", _model_name)):
        before, after = ({name(each): each for each in side[f"{kind}s"]} for side in (running, given))
        told += (f"{kind} {each}: runs, and is not given" for each in before if each not in after)
        told += (f"{kind} {each}: is given, and does not run" for each in after if each not in before)
        for each in before:
            if each in after:
                told += _differing(f"{kind} {each}: ", before[each], after[each])
    return told


def _differing(whose: str, running: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in given.items():
        if name not in running:
            yield f"{whose}{name}: unknown to the proxy, which is of another version"
        elif _comparable(running[name]["value"]) != _comparable(entry["value"]):
            runs, given_here = _shown(running[name]["value"]), _shown(entry["value"])
            yield f"{whose}{name}: {runs} runs, {given_here} is given ({entry['origin']['where']})"
    yield from (f"{whose}{name}: runs, and is unknown here" for name in running if name not in given)


def _instance_name(entries: Mapping[str, Any]) -> str:
    return str(entries["inference"]["value"])


def _model_name(entries: Mapping[str, Any]) -> str:
    name, version = str(entries["name"]["value"]), entries["version"]["value"]
    return f"{name}/{version}" if version else name


def _comparable(value: Any) -> Any:
    """JSON has lists only."""
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return shown_default(tuple(map(str, value)) if isinstance(value, list) else value)


def _entries(values: Sequence[Any], origins: Sequence[Origins], items: Sequence[Field[Any]]) -> list[dict[str, Any]]:
    return [
        {item.name: _entry(item, getattr(value, item.name), given) for item in items}
        for value, given in zip(values, origins, strict=True)
    ]


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


def _row(name: str, entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"  {name}", _shown(entry["value"]), entry["origin"]["where"]


def _hidden(item: Field[Any], value: Any) -> Any:
    return HIDDEN if item.metadata["secret"] and value else value
