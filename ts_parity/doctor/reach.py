"""Checks of what a proxy needs before it can serve anyone: the machine, the addresses, the keys, the certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ts_parity.doctor.check import CannotTell
from ts_parity.doctor.gathered import Gathered
from ts_parity.proxy.http.descriptors import client_limit

SOON_DAYS: Final = 14.0
"""Let's Encrypt renews 30 days before the end, so by then a renewal has failed for two weeks."""


def wrong_ports(gathered: Gathered) -> Sequence[str]:
    return [f"{report.name}: {report.problem}" for report in gathered.reports if report.wrong_port]


def silent_instances(gathered: Gathered) -> Sequence[str]:
    return [
        f"{report.name}: {report.problem}" for report in gathered.reports if not report.up and not report.wrong_port
    ]


def management_keys(gathered: Gathered) -> Sequence[str] | CannotTell:
    refused = [f"{report.name}: {report.problem}" for report in gathered.reports if report.unauthorized]
    return refused if gathered.configured or not refused else _no_keys("management")


def inference_keys(gathered: Gathered) -> Sequence[str] | CannotTell:
    refused = [f"{name}: {said}" for name, said in gathered.refused_keys.items()]
    return refused if gathered.configured or not refused else _no_keys("inference")


def _no_keys(api: str) -> CannotTell:
    return CannotTell(
        f"the {api} APIs want keys, which a running proxy does not tell; give the proxy's --config or --endpoint"
    )


def key_files(gathered: Gathered) -> Sequence[str]:
    """A file that is missing is no error of the configuration, since TorchServe writes it when it starts."""
    return [
        f"{given.name}: {name} {path!r} is not there or cannot be read"
        for given in gathered.settings.instances
        for name, path in (("token_file", given.token_file), ("management_token_file", given.management_token_file))
        if path and not _readable(path)
    ]


def _readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def idle_instances(gathered: Gathered) -> Sequence[str]:
    return [
        f"{report.name} hosts no model with a READY worker"
        for report in gathered.reports
        if report.up and not report.unauthorized and not any(model.ready for model in report.models)
    ]


def descriptors(gathered: Gathered) -> Sequence[str]:
    """A client needs a connection to wait in the queue; who gets none is refused without a reason that it can read."""
    fleet, settings = gathered.plan.fleet, gathered.settings
    places = sum(instance.places for instance in fleet.instances)
    wanted = places + settings.policy.max_waiting
    limit = client_limit(gathered.files, places, len(settings.instances), bool(settings.peers))
    if limit.connections >= wanted:
        return []
    return [
        f"{gathered.files} open files leave {limit.connections} connections for clients, and {wanted} queries may be "
        f"in work or wait ({places} places, max_waiting = {settings.policy.max_waiting})"
    ]


def expired(gathered: Gathered) -> Sequence[str]:
    return [f"the certificate of {c.whose} expired {_days(-c.days)} ago" for c in gathered.certificates if c.days <= 0]


def ending(gathered: Gathered) -> Sequence[str]:
    return [
        f"the certificate of {c.whose} expires in {_days(c.days)}"
        for c in gathered.certificates
        if 0 < c.days < SOON_DAYS
    ]


def _days(days: float) -> str:
    return f"{days:.0f} {'day' if round(days) == 1 else 'days'}"


def uncompiled(gathered: Gathered) -> Sequence[str]:
    return [] if gathered.compiled else ["the engine runs as plain Python"]
