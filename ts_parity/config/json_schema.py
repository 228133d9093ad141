"""JSON Schema of the TOML file, made from the settings' fields: editors complete and check a file with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

from ts_parity.arguments import LARGEST
from ts_parity.config.schema import AUTO, FIELDS, InstanceSettings, ModelSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """What it takes, `serve` takes, but for what values mean together, and whether files are there."""
    return {
        "$schema": DIALECT,
        "title": "ts-parity",
        "description": "The file of `ts-parity serve --config FILE`.",
        **_object(FIELDS.values()),
        "properties": {
            **{name: _property(item) for name, item in FIELDS.items()},
            "instance": {
                "type": "array",
                "description": "one table for each TorchServe instance",
                "items": _object(fields(InstanceSettings)),
            },
            "model": {
                "type": "array",
                "description": "one table for each model of which something must be said; most need none",
                "items": _object(fields(ModelSettings)),
            },
        },
    }


def _object(items: Iterable[Field[Any]]) -> dict[str, Any]:
    listed = list(items)
    required = [item.name for item in listed if item.default is MISSING]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {item.name: _property(item) for item in listed},
        **({"required": required} if required else {}),
    }


def _property(item: Field[Any]) -> dict[str, Any]:
    told = "; ".join(filter(None, (item.metadata["text"], item.metadata["more"])))
    unit = item.metadata["unit"]
    described = {"description": f"{told} [{unit}]" if unit else told, **_type(item)}
    if item.metadata["secret"]:
        described["writeOnly"] = True
    if item.default is not MISSING and not item.metadata["secret"]:
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        described["default"] = AUTO if default is None else default
    return described


def _type(item: Field[Any]) -> dict[str, Any]:
    auto = item.metadata["auto"]
    kind = auto or type(item.default)
    if auto is not None:
        return {"anyOf": [_number(item, auto), {"const": AUTO}]}
    if kind is tuple:
        return {"type": "array", "items": {"type": "string"}}
    if kind is bool:
        return {"type": "boolean"}
    if kind in (int, float):
        return _number(item, kind)
    if item.metadata["words"]:
        return {"enum": list(item.metadata["words"])}
    return {"type": "string", "minLength": 1} if item.default is MISSING else {"type": "string"}


def _number(item: Field[Any], kind: type) -> dict[str, Any]:
    return {
        "type": "integer" if kind is int else "number",
        "minimum": item.metadata["least"],
        "exclusiveMaximum": LARGEST if item.metadata["below"] == math.inf else item.metadata["below"],
    }
