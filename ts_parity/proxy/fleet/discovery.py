"""Asks the instances what they host: each kind its own way, all at the same time.

Knows nothing of how any is asked, or of what `plan` makes of the reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from ts_parity.config import InstanceSettings
from ts_parity.proxy.fleet.backends.backend import Backend, Prober
from ts_parity.proxy.fleet.reports import InstanceReport
from ts_parity.proxy.http.messages import Request
from ts_parity.proxy.http.upstream import Upstream


class Discovery:
    """Of all instances; the probers remember what they saw last."""

    def __init__(
        self,
        instances: Sequence[InstanceSettings],
        backends: Mapping[str, Backend],
        upstream: Upstream,
        timeout_s: float,
    ) -> None:
        """`backends`: of each instance."""
        self._upstream = upstream
        self._doubted: dict[str, InstanceReport] = {}
        """Those that were doubted while others were asked."""
        self._names = [instance.name for instance in instances]
        kinds = {backend.kind: backend for backend in backends.values()}
        self.probers: dict[str, Prober] = {
            kind: backend.prober([each for each in instances if each.kind == kind], upstream, timeout_s)
            for kind, backend in kinds.items()
        }

    async def adopt(
        self, instances: Sequence[InstanceSettings], backends: Mapping[str, Backend], timeout_s: float
    ) -> None:
        """Ask these from the next refresh on. What is known of one stays as long as its addresses do."""
        self._names = [instance.name for instance in instances]
        kinds = {backend.kind: backend for backend in backends.values()}
        gone = [self.probers.pop(kind) for kind in [*self.probers] if kind not in kinds]
        for kind, backend in kinds.items():
            of_kind = [each for each in instances if each.kind == kind]
            self.probers[kind] = backend.prober(of_kind, self._upstream, timeout_s, self.probers.get(kind))
        for prober in gone:
            await prober.close()

    def want(self, kind: str, name: str) -> None:
        """A client has asked for a model that no instance of this kind was seen to host."""
        if (prober := self.probers.get(kind)) is not None:  # the configuration may have lost that kind
            prober.want(name)

    def doubt(self, kind: str, instance: str, why: str, sample: Request | None) -> InstanceReport | None:
        """See `Prober.doubt`."""
        prober = self.probers.get(kind)
        report = None if prober is None else prober.doubt(instance, why, sample)
        if report is not None:
            self._doubted[instance] = report
        return report

    def in_use(self, names: Mapping[str, Collection[str]]) -> None:
        """Kind -> models that clients have asked for of late, as the kind calls them."""
        for kind, of_kind in names.items():
            if (prober := self.probers.get(kind)) is not None:
                prober.in_use(of_kind)

    async def refresh(self, may_describe: bool = True) -> list[InstanceReport]:
        """One report per instance, in the order of the configuration. Without `may_describe` no worker is asked for
        what its archive is: a request waits for this refresh, and perhaps for that very worker.
        """
        self._doubted = {}
        found = await asyncio.gather(*(prober.refresh(may_describe) for prober in self.probers.values()))
        reports: Mapping[str, InstanceReport] = {report.name: report for reports in found for report in reports}
        return [self._doubted.get(name, reports[name]) for name in self._names]

    async def close(self) -> None:
        for prober in self.probers.values():
            await prober.close()
