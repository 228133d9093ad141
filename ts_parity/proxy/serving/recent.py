"""The last five minutes, in slots of five seconds: what clients waited, what they would have waited, and what it cost.

A query belongs to the slot in which it was answered, also if what it would have waited is known only later. Slots are
told by the clock on the wall, so those of several processes can be added up. Knows numbers. Knows nothing of queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, final

from ts_parity.proxy.serving.durations import Counts, added, bucket_of

Json = dict[str, Any]

SLOT_S: Final = 5.0
SLOTS: Final = 61
"""Five minutes, and the slot that has only begun."""


def slot_number(at: float) -> int:
    """`at`: seconds since 1970."""
    return int(at // SLOT_S)


@final
class RecentSlot:
    """What happened in five seconds, by pool."""

    __slots__ = ("differing", "extra_work", "findings", "given", "number", "sources", "unprotected")

    def __init__(self, number: int) -> None:
        self.number = number
        self.given: dict[str, dict[int, int]] = {}
        self.unprotected: dict[str, dict[int, int]] = {}
        self.sources: dict[str, dict[str, int]] = {}
        self.findings: dict[str, dict[str, int]] = {}
        self.extra_work = self.differing = 0.0

    def described(self) -> Json:
        told: Json = {"number": self.number, "extra_work": self.extra_work, "differing": self.differing}
        for name in ("given", "unprotected"):
            told[name] = {pool: [*map(list, counts.items())] for pool, counts in getattr(self, name).items()}
        return {**told, "sources": self.sources, "findings": self.findings}


@final
class Recent:
    """Of one process."""

    def __init__(self) -> None:
        self._slots: dict[int, RecentSlot] = {}
        self._spent = (0.0, 0.0)

    def given(self, at: float, pool: str, source: str, counts: Counts, unprotected: bool) -> None:
        """`unprotected`: nothing helped these, so they would have waited as long."""
        slot = self._slot(at)
        if slot is None:
            return
        slot.given[pool] = added([slot.given.get(pool, {}), counts])
        if unprotected:
            slot.unprotected[pool] = added([slot.unprotected.get(pool, {}), counts])
        by_source = slot.sources.setdefault(pool, {})
        by_source[source] = by_source.get(source, 0) + sum(counts.values())

    def unprotected(self, at: float, pool: str, seconds: float) -> None:
        slot = self._slot(at)
        if slot is not None:
            counts, bucket = slot.unprotected.setdefault(pool, {}), bucket_of(seconds)
            counts[bucket] = counts.get(bucket, 0) + 1

    def found(self, at: float, pool: str, finding: str) -> None:
        slot = self._slot(at)
        if slot is not None:
            findings = slot.findings.setdefault(pool, {})
            findings[finding] = findings.get(finding, 0) + 1

    def spent(self, at: float, extra_work: float, differing: float) -> None:
        """Since the start, of both budgets; told about once a second."""
        for ahead in [number for number in self._slots if number > slot_number(at) + 1]:
            del self._slots[ahead]  # the clock has been set back
        slot, (work, differed) = self._slot(at), self._spent
        if slot is not None:
            slot.extra_work += max(0.0, extra_work - work)
            slot.differing += max(0.0, differing - differed)
        self._spent = (extra_work, differing)

    def described(self, undecided: Iterable[tuple[float, str, float]]) -> list[Json]:
        """The oldest first. `undecided`: when answered, pool and present age of those that would still be waiting:
        so long they would have waited at least.
        """
        told = [self._slots[number].described() for number in sorted(self._slots)]
        by_number = {slot["number"]: slot for slot in told}
        for answered_at, pool, age_s in undecided:
            slot = by_number.get(slot_number(answered_at))
            if slot is not None:
                slot["unprotected"].setdefault(pool, []).append([bucket_of(age_s), 1])
        return told

    def _slot(self, at: float) -> RecentSlot | None:
        """The one of that moment, if it is not too long ago."""
        number = slot_number(at)
        slot = self._slots.get(number)
        if slot is None:
            newest = max(number, *self._slots) if self._slots else number
            if number <= newest - SLOTS:
                return None
            slot = self._slots[number] = RecentSlot(number)
            for old in [old for old in self._slots if old <= newest - SLOTS]:
                del self._slots[old]
        return slot
