"""Asks the instances what they host: each kind its own way, all at the same time.

Knows kinds of servers by name. Knows nothing of how any is asked, or of what `plan` makes of the reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ts_parity.config import InstanceSettings
from ts_parity.proxy.fleet.backends.backend import Backend
from ts_parity.proxy.fleet.backends.kinds import backend_of
from ts_parity.proxy.fleet.reports import InstanceReport
from ts_parity.proxy.http.upstream import Upstream


def backends_of(instances: Sequence[InstanceSettings]) -> dict[str, Backend]:
    """Instance -> its kind's backend, in the order of the configuration."""
    return {instance.name: backend_of(instance.kind) for instance in instances}


class Discovery:
    """Of all instances; the probers remember what they saw last."""

    def __init__(self, instances: Sequence[InstanceSettings], upstream: Upstream, timeout_s: float) -> None:
        self._names = [instance.name for instance in instances]
        kinds = dict.fromkeys(instance.kind for instance in instances)
        self.probers = {
            kind: backend_of(kind).prober([each for each in instances if each.kind == kind], upstream, timeout_s)
            for kind in kinds
        }

    async def refresh(self, may_describe: bool = True) -> list[InstanceReport]:
        """One report per instance, in the order of the configuration. Without `may_describe` no worker is asked for
        what its archive is: a request waits for this refresh, and perhaps for that very worker.
        """
        found = await asyncio.gather(*(prober.refresh(may_describe) for prober in self.probers.values()))
        reports: Mapping[str, InstanceReport] = {report.name: report for reports in found for report in reports}
        return [reports[name] for name in self._names]

    async def close(self) -> None:
        for prober in self.probers.values():
            await prober.close()
