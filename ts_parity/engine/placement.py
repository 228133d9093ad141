"""Placement: which coding group a query joins, and when the group takes no more.

What fails together must not be in one group together: its members are spread over failure domains, as evenly as there
are domains. (Where the protection itself goes is `selection`'s.)

Knows groups, domains and the rate of arrivals. Knows nothing of endpoints.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import final

from ts_parity.engine.events import Code
from ts_parity.engine.policy import GapMeter, Policy
from ts_parity.engine.query import CodingGroup
from ts_parity.engine.release import Release


@final
class Placement:
    """The open groups of one pool."""

    __slots__ = ("_partial", "_per_domain", "_release", "gap", "open_groups", "policy")

    def __init__(self, policy: Policy, release: Release) -> None:
        self.policy = policy
        self._release = release
        self._per_domain = 1
        self._partial = True
        self.gap = GapMeter()
        self.open_groups: dict[Hashable, list[CodingGroup]] = {}

    def adopt(self, code: Code | None, partial: bool, domains: int) -> None:
        """`domains`: of the deployed endpoints. With fewer than k, groups have several members in one."""
        self._partial = partial
        self._per_domain = math.ceil(code.k / domains) if code is not None and domains else 1

    @property
    def wait_s(self) -> float:
        """How long a group takes members: later its protection would be of no use to the first."""
        return self._release.after_s if self.policy.group_wait_s is None else self.policy.group_wait_s

    def group_for(self, key: Hashable, domain: str) -> CodingGroup | None:
        """The oldest open group that can take a member in this domain."""
        for group in self.open_groups.get(key, ()):
            if group.domains.get(domain, 0) < self._per_domain:
                return group
        return None

    def expects_member(self, group: CodingGroup, now: float) -> bool:
        """Whether one more is likely to come before the group is sealed anyway."""
        return not (self.policy.seal_early and self._partial) or now + self.gap.mean <= group.closes_at

    def open(self, group: CodingGroup) -> None:
        self.open_groups.setdefault(group.key, []).append(group)

    def close(self, group: CodingGroup) -> None:
        groups = self.open_groups.get(group.key)
        if groups is not None and group in groups:
            groups.remove(group)
            if not groups:
                del self.open_groups[group.key]
