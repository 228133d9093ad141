"""What the checks look at, in one value: the configuration, what the instances say, and what a running proxy says.

Values only. Knows nothing of how they were gathered, or of what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ts_parity.config import Settings
from ts_parity.doctor.places import MeasuredPlaces
from ts_parity.engine import Endpoint
from ts_parity.proxy.fleet.plan import Plan
from ts_parity.proxy.fleet.reports import InstanceReport

Json = Mapping[str, Any]


@dataclass(frozen=True)
class CertificateEnd:
    """The first day on which a certificate, or one that follows it in its file, is no longer valid."""

    whose: str
    days: float
    """From now; negative if that day has passed."""


@dataclass(frozen=True)
class SizeProbe:
    """What an instance that hosts a protection answered to the announcement of a request of `size` bytes."""

    instance: str
    pool: str
    size: int
    taken: bool


@dataclass(frozen=True)
class Gathered:
    """Everything that was found out. An instance is named as the proxy names it: HOST:PORT of its inference API."""

    settings: Settings
    configured: bool = True
    """False: its instances are those that a running proxy tells, and their keys and places are not known."""
    reports: tuple[InstanceReport, ...] = ()
    """What each instance said, as the proxy's own discovery reads it."""
    plan: Plan = field(default_factory=Plan)
    """What a proxy would make of these."""
    status: Json | None = None
    """/status of the running proxy; None before a start, or if it did not answer."""
    status_error: str = ""
    """Why there is none although one was asked for."""
    refused_keys: Mapping[str, str] = field(default_factory=dict)
    """Instance -> what its inference API says of our key."""
    certificates: tuple[CertificateEnd, ...] = ()
    sizes: tuple[SizeProbe, ...] = ()
    measured: tuple[MeasuredPlaces, ...] | None = None
    """None: nobody asked for it."""
    files: int = 65536
    """How many files a proxy started here may have open."""
    compiled: bool = True
    """Whether the engine runs as machine code."""

    def hosted(self) -> dict[str, list[tuple[str, Any]]]:
        """Pool of each deployed model -> (instance, its `ModelReport`)."""
        pools: dict[str, list[tuple[str, Any]]] = {}
        for report in self.reports:
            for model in report.models if report.up else ():
                if not model.is_protection:
                    pools.setdefault(f"{model.model}/{model.version}", []).append((report.name, model))
        return pools

    def endpoints(self, pool: str) -> list[Endpoint]:
        return [endpoint for endpoint in self.plan.fleet.endpoints if endpoint.pool == pool]

    def domain(self, instance: str) -> str:
        given = next((each for each in self.settings.instances if each.name == instance), None)
        return instance if given is None else given.domain or given.name
