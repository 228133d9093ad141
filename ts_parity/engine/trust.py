"""Trust: no protection answers a client before it has proved itself on live queries.

A pool's protection is on one of three standings:

    on trial   it runs beside the deployed model for early queries; no client gets its answers, and the two are compared
    in use     its answers may be given to clients; each one given is compared with the query's own late answer
    out        it has contradicted the deployed model, or brought nothing: it is not run, and its reason says why

    standing   event                                       next
    ---------  ------------------------------------------  --------------------------------------------------
    on trial   enough agreed                               in use
    on trial   clearly contradicts, or fails throughout    out
    in use     clearly contradicts, or fails throughout    out
    out        its pause is over                           on trial
    any        workers restarted, another code              on trial, from nothing

What "clearly" means depends on the code. A lossless one promises the deployed model's own answers, so one difference is
enough. Of the others an agreement is expected: what the protection's own report says, else `UNREPORTED`, with an
allowance because reports are measured on other queries than those that are late. A trial is lost once chance explains
so few agreements in fewer than one case in a thousand. In use, where there is no end, Page's test (CUSUM) watches: each
difference adds to a sum, each agreement takes from it, and the sum never falls below 0, so that a good past does not
hide a bad present.

The same comparison between second copies and their originals tells whether the deployed instances contradict each
other: `Repeats`.

Knows findings, numbers and times. Knows nothing of answers, queries or endpoints.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import Final, final

TRIAL: Final = 20
"""Comparisons that end a trial well: a student that agrees in half of all cases passes 20 once in 50,000 trials."""
TRIAL_WHERE_QUIET: Final = 5
QUIET_S: Final = 60.0
"""A model asked once in ten seconds would be on trial for minutes: after one, five comparisons have to do."""
LONGEST_TRIAL: Final = 320
"""Each trial after a contradiction is twice as long as the last, up to this: to pass is harder after being wrong."""
UNDECIDED: Final = 100
"""A trial that is neither clearly good nor clearly bad after this many comparisons has failed."""
WINDOW: Final = 200
"""Second copies that count: what happened long ago must not add up."""
DOUBT: Final = 1e-3
UNREPORTED: Final = 0.7
"""Agreement expected of a protection that does not report its own: one that agrees less often helps no one."""
SUPPOSED: Final = 10
"""Comparisons that `UNREPORTED` counts for, beside those that were made."""
FAILURES: Final = 10
"""Groups in a row that brought nothing."""
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 300.0
CONTRADICTIONS: Final = 2
"""Differing second copies within a window that show a fleet that contradicts itself; one may be a tie by a hair."""


class Finding(Enum):
    """What the comparison of a protection's answer with the deployed model's own has shown."""

    AGREED = "agreed"
    DIFFERED = "differed"
    UNKNOWN = "unknown"
    """They cannot be compared, or prove nothing: both are errors, say."""
    FAILED = "failed"
    """The deployed model has answered, the protection has not."""


class Standing(Enum):
    ON_TRIAL = "on trial"
    IN_USE = "in use"
    OUT = "out"


@final
class Trust:
    """The standing of one pool's protection, and what it rests on."""

    def __init__(self, name: str, lossless: bool, agreement: float | None = None, proved: bool = False) -> None:
        """`agreement`: what the protection's report says. `proved`: in use from the start and never compared, for
        simulations and tests of other things.
        """
        self.name = name
        self.lossless = lossless
        self.proved = proved
        self.standing = Standing.IN_USE if proved else Standing.ON_TRIAL
        self.reason = ""
        self.until = 0.0
        """When it is tried again, while it is out."""
        self.since = -math.inf
        """When its trial last started: what was sent before says nothing of these workers."""
        self.counts: dict[Finding, int] = dict.fromkeys(Finding, 0)
        """Since its trial last started."""
        self._reported = agreement
        self._allowed = allowed_agreement(UNREPORTED if agreement is None else agreement)
        self._needed = TRIAL
        self._pause_s = FIRST_PAUSE_S
        self._compared = self._agreed = self._unknown = 0
        """Since the present trial began."""
        self._drift = 0.0
        self._failures = self._undecoded = 0
        """In a row."""

    @property
    def in_use(self) -> bool:
        return self.standing is Standing.IN_USE

    @property
    def expected(self) -> float:
        """Agreement of an answer that does not tell its own confidence: as reported, else as comparisons have shown."""
        if self._reported is not None:
            return self._reported
        return (SUPPOSED * UNREPORTED + self.counts[Finding.AGREED]) / (
            SUPPOSED + self.counts[Finding.AGREED] + self.counts[Finding.DIFFERED]
        )

    @property
    def on_trial(self) -> bool:
        return self.standing is Standing.ON_TRIAL

    def is_slow(self, now: float) -> bool:
        """Whether its trial has gone on for long: there are few queries, or hardly a place is ever idle."""
        return now - self.since > QUIET_S

    def restart(self, now: float) -> None:
        """Workers were restarted or registered again: nothing is known of them."""
        if self.proved:
            return
        self._needed, self._pause_s = TRIAL, FIRST_PAUSE_S
        self.counts = dict.fromkeys(Finding, 0)
        self._begin_trial(now)

    def promise(self, agreement: float | None, now: float) -> bool:
        """The report says this now. -> whether that is new: then what was compared was held against something else, and
        the trial starts over.
        """
        if agreement == self._reported:
            return False
        self._reported = agreement
        self.restart(now)
        return True

    def try_again_if_due(self, now: float) -> None:
        if self.standing is Standing.OUT and now >= self.until:
            self._begin_trial(now)

    def compared(self, finding: Finding, why: str, now: float) -> None:
        """One answer of the protection beside the deployed model's own to the same query."""
        self.counts[finding] += 1
        if finding is Finding.FAILED:
            self.failed(why, now, counted=True)
            return
        if finding is Finding.UNKNOWN:
            if self.on_trial:
                self._not_comparable(why, now)
            return
        self._failures = 0
        if self.standing is not Standing.OUT:
            self._compared += 1
            self._agreed += finding is Finding.AGREED
            self._drift = max(0.0, self._drift + self._step(finding is Finding.AGREED))
            self._judge(why, now)

    def arrived(self) -> None:
        """A group has brought something."""
        self._failures = 0

    def decoded(self) -> None:
        """And an answer could be made of it."""
        self._undecoded = 0

    def failed(self, why: str, now: float, counted: bool = False, decoding: bool = False) -> None:
        """A group has brought nothing; or, `decoding`, nothing that an answer could be made of."""
        if not counted:
            self.counts[Finding.FAILED] += 1
        if decoding:
            self._undecoded += 1
        else:
            self._failures += 1
        if max(self._failures, self._undecoded) >= FAILURES and self.standing is not Standing.OUT and not self.proved:
            self._take_out(f"{FAILURES} of {FAILURES} groups in a row brought nothing; the last: {why}", now)

    def withdraw(self, reason: str, now: float) -> None:
        """It is taken out for a reason outside itself."""
        if self.standing is not Standing.OUT and not self.proved:
            self._take_out(reason, now)

    def snapshot(self) -> dict[str, object]:
        """For status."""
        counts = {finding.value: number for finding, number in self.counts.items()}
        return {"state": self.standing.value, **counts, "reason": self._said()}

    def _said(self) -> str:
        if self.standing is Standing.ON_TRIAL:
            unknown = self.counts[Finding.UNKNOWN]
            text = f"{self._compared} of {self._needed} comparisons made; its answers are not used yet"
            return f"{text}; {unknown} could not be compared: {self.reason}" if unknown and self.reason else text
        return self.reason

    def _not_comparable(self, why: str, now: float) -> None:
        self.reason = why
        self._unknown += 1
        if (
            self._unknown >= UNDECIDED and not self._compared
        ):  # it would be on trial for ever, and each trial costs work
            self._take_out(f"none of {self._unknown} answers could be compared; the last: {why}", now)

    def _judge(self, why: str, now: float) -> None:
        compared, differed = self._compared, self._compared - self._agreed
        if differed and self._is_wrong():
            text = f"{differed} of {compared} rebuilt answers differed from the deployed model's own"
            expected = "" if self.lossless else f", about {1 - self._allowed:.0%} may"
            self._needed = min(2 * self._needed, LONGEST_TRIAL)
            self._take_out(f"{text}{expected}; the last: {why}", now)
        elif self.on_trial and self._agreed >= self._allowed * compared and self._is_enough(now):
            if self._reported is None:  # what the trial has shown is what is expected from now on
                self._allowed = max(self._allowed, allowed_agreement((self._agreed + 1) / (compared + 2)))
            self.standing, self.reason, self._drift = Standing.IN_USE, "", 0.0

    def _is_wrong(self) -> bool:
        if self.lossless:
            return True
        if self.in_use:
            return self._drift >= -math.log(DOUBT)
        return self._compared >= max(UNDECIDED, self._needed) or unlikely(self._agreed, self._compared, self._allowed)

    def _step(self, agreed: bool) -> float:
        """Of Page's sum: the log of how much likelier this is if twice as many differ as are allowed."""
        differ = max(1.0 - self._allowed, 0.01)
        worse = min(0.95, 2.0 * differ + 0.05)
        return math.log((1.0 - worse) / (1.0 - differ)) if agreed else math.log(worse / differ)

    def _is_enough(self, now: float) -> bool:
        quiet = self._needed == TRIAL and now - self.since >= QUIET_S
        return self._compared >= (TRIAL_WHERE_QUIET if quiet else self._needed)

    def _begin_trial(self, now: float) -> None:
        self.standing, self.reason, self.since = Standing.ON_TRIAL, "", now
        self._allowed = allowed_agreement(UNREPORTED if self._reported is None else self._reported)
        self._compared = self._agreed = self._unknown = self._failures = self._undecoded = 0
        self._drift = 0.0

    def _take_out(self, reason: str, now: float) -> None:
        self.standing = Standing.OUT
        self.reason = f"{self.name}: {' '.join(reason.split())}; tried again after {self._pause_s:.0f} s"
        self.until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


@final
class Repeats:
    """Whether the deployed instances of a pool answer one body alike, by its second copies and their originals.

    A fleet that does not (state, dice, two weights under one version) can be balanced and nothing more: a second copy
    or a rebuilt answer would be another answer. Where copies differ, none is made until the pause is over.
    """

    def __init__(self) -> None:
        self.counts: dict[Finding, int] = dict.fromkeys(Finding, 0)
        self.reason = ""
        self.since = -math.inf
        self._until = -math.inf
        self._pause_s = LONGEST_PAUSE_S
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def contradict(self, now: float) -> bool:
        """Whether the instances are known to contradict each other at present."""
        if self.reason and now >= self._until:
            self.reason, self.since = "", now
            self._recent.clear()
        return bool(self.reason)

    def restart(self, now: float) -> None:
        self.counts = dict.fromkeys(Finding, 0)
        self.reason, self.since = "", now
        self._pause_s = LONGEST_PAUSE_S
        self._recent.clear()

    def compared(self, finding: Finding, why: str, now: float) -> None:
        self.counts[finding] += 1
        if finding not in (Finding.AGREED, Finding.DIFFERED) or self.reason:
            return
        self._recent.append(finding is Finding.AGREED)
        compared, agreed = len(self._recent), sum(self._recent)
        if compared - agreed >= CONTRADICTIONS:
            self.reason = (
                f"{compared - agreed} of {compared} second copies were answered differently from their originals "
                f"({why}): neither second copies nor protections are used; tried again after {self._pause_s:.0f} s"
            )
            self._until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, 12 * LONGEST_PAUSE_S)

    def snapshot(self) -> dict[str, object]:
        counts = {finding.value: number for finding, number in self.counts.items() if finding is not Finding.FAILED}
        return {**counts, "reason": self.reason}


def allowed_agreement(expected: float) -> float:
    """Half as many differences again as expected, and two in a hundred: the queries that are late are not those that
    the report was measured on.
    """
    return max(0.0, 1.0 - (1.5 * (1.0 - expected) + 0.02))


def unlikely(agreed: int, compared: int, share: float) -> bool:
    """Whether so few agreements come by chance, at this share, in fewer than one case in a thousand."""
    if share >= 1.0:
        return agreed < compared
    chance = sum(math.comb(compared, n) * share**n * (1.0 - share) ** (compared - n) for n in range(agreed + 1))
    return chance < DOUBT
