"""What differs between the settings that run and those that were read again, in words; and what of it may run at once.

Knows settings, and which of them a running proxy keeps. Knows no secret's value: it says that one has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from ts_parity.config.reading import Configuration
from ts_parity.config.schema import FIELDS, OF_POLICY, RESTART, InstanceSettings, ModelSettings, Settings, shown_default


@dataclass(frozen=True)
class Changes:
    """Sentences. `restart`: of what takes effect only when the proxy is started again."""

    at_once: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def changes(running: Settings, wanted: Settings) -> Changes:
    names = [name for name in FIELDS if value_of(running, name) != value_of(wanted, name)]
    told = {name: _told(FIELDS[name], value_of(running, name), value_of(wanted, name)) for name in names}
    return Changes(
        (
            *(told[name] for name in names if name not in RESTART),
            *_of_tables("instance", _instances(running), _instances(wanted), fields(InstanceSettings)),
            *_of_tables("model", _models(running), _models(wanted), fields(ModelSettings)),
        ),
        tuple(told[name] for name in names if name in RESTART),
    )


def kept_running(running: Configuration, wanted: Configuration) -> Configuration:
    """What runs once `wanted` is adopted: it, but for what needs a restart. Both are without problems."""
    assert running.settings is not None
    assert wanted.settings is not None
    settings = replace(wanted.settings, **{name: getattr(running.settings, name) for name in RESTART})
    kept = {name: origin for name, origin in running.origins.items() if name in RESTART}
    origins = {name: origin for name, origin in wanted.origins.items() if name not in RESTART}
    return replace(wanted, settings=settings, origins={**origins, **kept})


def value_of(settings: Settings, name: str) -> Any:
    """Of a setting, the policy's among them."""
    return getattr(settings.policy if name in OF_POLICY else settings, name)


def _told(item: Field[Any], before: Any, after: Any) -> str:
    if item.metadata["secret"]:
        return f"{item.name}: {'another key' if before and after else 'a key now' if after else 'no key any more'}"
    return f"{item.name}: {shown_default(before)} -> {shown_default(after)}"


def _instances(settings: Settings) -> dict[str, InstanceSettings]:
    return {instance.name: instance for instance in settings.instances}


def _models(settings: Settings) -> dict[str, ModelSettings]:
    return {f"{each.name}/{each.version}" if each.version else each.name: each for each in settings.models}


def _of_tables(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any], items: Sequence[Field[Any]]
) -> Iterable[str]:
    yield from (f"{kind} {name}: added" for name in after if name not in before)
    yield from (f"{kind} {name}: removed" for name in before if name not in after)
    for name in after:
        if name in before and before[name] != after[name]:
            pairs = [(item, getattr(before[name], item.name), getattr(after[name], item.name)) for item in items]
            yield f"{kind} {name}: {', '.join(_told(item, old, new) for item, old, new in pairs if old != new)}"
    if [*before] != [*after] and sorted(before) == sorted(after):
        yield f"{kind}s: in another order"
