"""Checks of the models as the instances host them: whether all host the same, and serve it as they should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ts_parity.doctor.check import NO_INSTANCE, CannotTell
from ts_parity.doctor.gathered import Gathered
from ts_parity.doctor.places import in_words
from ts_parity.proxy.serving.conditions import told_seconds


def versions(gathered: Gathered) -> Sequence[str] | CannotTell:
    """Of a model: instances that host other versions of it than the rest."""
    hosted = gathered.hosted()
    models: dict[str, dict[str, set[str]]] = {}
    for members in hosted.values():
        for host, model in members:
            models.setdefault(model.model, {}).setdefault(host, set()).add(model.version)
    found = []
    for model, by_host in models.items():
        what = _by_value({host: ", ".join(sorted(those)) for host, those in by_host.items()})
        if len(what) > 1:
            found.append(f"{model}: {_in_words(what, 'version ')}")
    return found if hosted else NO_INSTANCE


def default_versions(gathered: Gathered) -> Sequence[str] | CannotTell:
    hosted = gathered.hosted()
    defaults: dict[str, dict[str, str]] = {}
    for members in hosted.values():
        for host, model in members:
            if model.default:
                defaults.setdefault(model.model, {})[host] = model.version
    differing = {model: what for model, by_host in defaults.items() if len(what := _by_value(by_host)) > 1}
    return [f"{m}: {_in_words(what, 'version ')}" for m, what in differing.items()] if hosted else NO_INSTANCE


def weights(gathered: Gathered) -> Sequence[str] | CannotTell:
    return _differing(
        gathered, lambda model: model.described.weights[:19] if model.described and model.described.weights else None
    )


def outputs(gathered: Gathered) -> Sequence[str] | CannotTell:
    return _differing(gathered, lambda model: (model.described.output if model.described else "") or None)


def wrapped(gathered: Gathered) -> Sequence[str] | CannotTell:
    """Whether an archive is wrapped is not known of one that has not answered describe."""
    return _differing(
        gathered,
        lambda model: None if model.silent or model.describing else "wrapped" if model.described else "not wrapped",
    )


def defaults(gathered: Gathered) -> Sequence[str] | CannotTell:
    """What instances were registered with, where the requests of one of them are treated in another way."""
    found: list[str] = []
    hosted = gathered.hosted()
    for pool, members in hosted.items():
        for name, unit in (("batch_size", ""), ("batch_delay_ms", " ms"), ("response_timeout_s", " s")):
            what = _by_value({host: f"{getattr(model, name)}{unit}" for host, model in members})
            if len(what) > 1:
                label = name.removesuffix("_ms").removesuffix("_s").replace("_", " ")
                found.append(f"{pool}: {label} {_in_words(what)}")
    return found if hosted else NO_INSTANCE


def batch_delay(gathered: Gathered) -> Sequence[str] | CannotTell:
    """TorchServe waits `maxBatchDelay` from a batch's first request, unless it is full before: at a low rate every
    request waits all of it. A worker needs `batch_size - 1` more requests within the delay. Before a start there is no
    rate, so nothing can be said.
    """
    status = gathered.status
    if status is None:
        return CannotTell("no running proxy tells at which rate queries come")
    found = []
    for pool, members in gathered.hosted().items():
        recent = status.get("pools", {}).get(pool, {}).get("recent") or {}
        batching = [m for _, m in members if m.batch_size > 1 and m.batch_delay_ms > 0 and m.ready]
        if not recent.get("queries") or not batching:
            continue
        rate = recent["rate"] / len(members)
        slow = max(batching, key=lambda m: m.batch_delay_ms)
        others = rate * slow.batch_delay_ms / 1000.0
        if others < slow.batch_size - 1:
            found.append(
                f"{pool}: a query may wait {told_seconds(slow.batch_delay_ms / 1000.0)} for a batch of "
                f"{slow.batch_size}, and at {rate:.2g} queries a second to an instance {others:.2g} others come in "
                "that time"
            )
    return found


def too_many_places(gathered: Gathered) -> Sequence[str] | CannotTell:
    if not gathered.configured:
        return CannotTell("the settings are not known; give the proxy's --config or --endpoint")
    found = []
    for name, given, capacity in _places(gathered):
        if given > capacity:
            found.append(
                f"{name}: places = {given}, and its READY workers take {capacity} at a time; {given - capacity} would "
                "wait inside of TorchServe"
            )
    return found


def too_few_places(gathered: Gathered) -> Sequence[str] | CannotTell:
    if not gathered.configured:
        return CannotTell("the settings are not known; give the proxy's --config or --endpoint")
    return [
        f"{name}: places = {given}, and its READY workers take {capacity} at a time"
        for name, given, capacity in _places(gathered)
        if given < capacity
    ]


def measured_places(gathered: Gathered) -> Sequence[str] | CannotTell:
    if gathered.measured is None:
        return CannotTell("places are measured only if asked for (--measure-places BODY)")
    if not any(one.places is not None for one in gathered.measured):
        return CannotTell("; ".join(in_words(one) for one in gathered.measured) or "no instance serves the model")
    return [in_words(one) for one in gathered.measured if one.places is not None and one.places < one.declared]


def _places(gathered: Gathered) -> Iterable[tuple[str, int, int]]:
    """-> (instance, places as configured, tasks that its workers take at a time), where both are known."""
    for given in gathered.settings.instances:
        report = next((each for each in gathered.reports if each.name == given.name), None)
        if given.places is not None and report is not None and report.up and report.models:
            yield given.name, given.places, sum(model.places for model in report.models)


def _differing(gathered: Gathered, value: Callable[[Any], str | None]) -> Sequence[str] | CannotTell:
    """Pools whose members have several values; None counts as none."""
    hosted = gathered.hosted()
    found = []
    for pool, members in hosted.items():
        what = _by_value({host: said for host, model in members if (said := value(model)) is not None})
        if len(what) > 1:
            found.append(f"{pool}: {_in_words(what)}")
    return found if hosted else NO_INSTANCE


def _by_value(by_host: Mapping[str, str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for host, value in by_host.items():
        values.setdefault(value, []).append(host)
    return values


def _in_words(by_value: Mapping[str, Sequence[str]], before: str = "") -> str:
    """1.0 on a, b; 2.0 on c."""
    return "; ".join(f"{before}{value} on {', '.join(hosts)}" for value, hosts in by_value.items())
