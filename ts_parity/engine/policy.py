"""The policy's numbers as one value, and the small instruments it measures with.

Knows numbers, and what is said of them to users. Knows nothing of queries, groups or endpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


def setting(
    default: Any,
    text: str,
    more: str = "",
    *,
    group: str = "",
    unit: str = "",
    least: float = 0,
    below: float = math.inf,
    auto: type | None = None,
    words: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A field that users can set: flags, file, environment, docs and checks are all made from it.

    `text`: a line for --help; `more`: what docs/settings.md says besides. `group`: the heading of this one and of those
    after it. `auto`: of what type it is where its default is None, which users call auto. `words`: all that it may be.
    """
    meta = {"text": text, "more": more, "group": group, "unit": unit, "auto": auto, "secret": secret}
    return field(default=default, metadata={**meta, "least": least, "below": below, "words": words})


@dataclass(frozen=True)
class Policy:
    """Every duration in seconds. What each rule does, and when it helps, is in docs/policy.md.

    The defaults are the recipe: what `ts-parity serve` does by itself, what the demo shows, `ours` in the simulator.
    """

    reconstruct_after_s: float | None = setting(
        None,
        "how long a query waits for its own answer",
        "then a rebuilt answer may be used, and a query that has failed waits so long for an instance elsewhere; auto: "
        "a quantile of latency",
        group="policy: rebuilt answers",
        unit="s",
        auto=float,
    )
    reconstruct_quantile: float = setting(0.95, "the quantile of latency that auto takes", least=0.01, below=1)
    reconstruct_cold_s: float = setting(1.0, "stands in for it until latencies are known", unit="s")
    group_wait_s: float | None = setting(
        None,
        "a group is sealed as it is after this long",
        "auto: as reconstruct_after_s",
        unit="s",
        auto=float,
    )
    seal_early: bool = setting(
        True,
        "seal it when no other member would come in time",
        "at the present rate of arrivals",
    )
    launch: str = setting(
        "auto",
        "backups: group, late (for late queries only) or auto",
        "with their group is the paper's way; auto: late where they stand beside the deployed model, with their group "
        "where they have machines of their own; parity models always are launched with it, for they need the other "
        "members' outputs",
        words=("auto", "group", "late"),
    )
    launch_after_s: float | None = setting(
        None,
        "late launch this long after the query was sent",
        "auto: a quantile of latency, later under load",
        unit="s",
        auto=float,
    )
    launch_quantile: float = setting(0.9, "the quantile of latency that auto takes", least=0.01, below=1)
    launch_stretch: float = setting(
        0.2,
        "how much later a launch is at full load",
        "the more queries are late only by bad luck, the less a launch is worth",
    )
    launch_waiting: float = setting(
        0.5,
        "launch for queries that wait so long for a place",
        "in times of launch_after_s; so a crowd is served with backups as far as places are short; 0: never",
    )
    shed_load: float = setting(
        0.85,
        "share of places taken that stops protections",
        "those on shared machines are not launched with their group above it",
    )
    hedge_ratio: float = setting(
        0.05,
        "second copies allowed per query; 0: none",
        "on average",
        group="policy: second copies and retries",
    )
    hedge_burst: float = setting(10.0, "second copies allowed at once", unit="copies")
    hedge_after_s: float | None = setting(
        None, "second copy this long after the query was sent", "auto: a quantile of latency", unit="s", auto=float
    )
    hedge_quantile: float = setting(0.98, "the quantile of latency that auto takes", least=0.01, below=1)
    retry_ratio: float = setting(0.1, "retries allowed per query", "on average")
    retry_burst: float = setting(10.0, "retries allowed at once", unit="retries")
    max_attempts: int = setting(3, "tasks one query may cost", unit="tasks", least=1)
    slow_factor: float = setting(
        3.0,
        "take out what is this many times slower; 0: never",
        "than its pool's median",
        group="policy: slow and failing endpoints",
    )
    slow_until_out: int = setting(3, "slow answers in a row that take one out", unit="answers", least=1)
    age_factor: float = setting(
        0.0,
        "pass over what is late this many times; 0: never",
        "an endpoint with a task in flight for so many release times, while there are others",
    )
    spare_places: int = setting(
        1,
        "tasks beyond its places, if its reply seems late",
        "given to an instance while all are busy, if its oldest task is overdue and its last answer was in time: that "
        "one reply may be late on its way while the machine is idle",
        unit="queries",
    )
    max_out: float = setting(0.34, "share of a pool that slowness may take out", "at one time", below=1)
    balance: str = setting(
        "least",
        "least (outstanding) or round_robin",
        "round_robin looks at nothing: a rival to compare with",
        words=("least", "round_robin"),
    )
    failures_until_out: int = setting(3, "failures in a row that take an endpoint out", unit="failures", least=1)
    out_s: float = setting(
        1.0,
        "how long it is left alone, at first",
        "doubled for each failed return, up to 30 s",
        unit="s",
    )
    reject_pause_s: float = setting(0.05, "how long a full instance is left alone", unit="s")
    deadline_s: float = setting(
        30.0, "a query gets 504 or the default answer by then", group="limits", unit="s", least=0.001
    )
    max_waiting: int = setting(1000, "queries that may wait, per model; then 503", unit="queries", least=1)
    max_wait_s: float = setting(10.0, "503 while the oldest has waited this long", unit="s")
    default_answer: bool = False
    """At its deadline a query gets the configured default answer instead of an error."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, told = getattr(self, item.name), item.metadata
            if "words" in told and told["words"] and value not in told["words"]:
                raise ValueError(f"{item.name} must be {' or '.join(told['words'])}, not {value!r}")
            if isinstance(value, float | int) and not isinstance(value, bool):
                least, below = told.get("least", 0), told.get("below", math.inf)
                if not (least <= value < below):
                    limit = "" if below == math.inf else f" and below {below:g}"
                    raise ValueError(f"{item.name} must be a number of at least {least:g}{limit}, not {value}")

    def in_units(self, unit_s: float) -> Policy:
        """The same where time is counted in units of so many seconds, as a simulator does."""
        durations = [item.name for item in fields(self) if item.name.endswith("_s")]
        told = {name: getattr(self, name) for name in durations}
        return replace(self, **{name: value / unit_s for name, value in told.items() if value is not None})

    def __reduce__(self) -> tuple[Any, ...]:
        """Compiled and frozen, it could not be pickled; processes are sent one."""
        return Policy, tuple([getattr(self, item.name) for item in fields(self)])


PLAIN: Mapping[str, Any] = {
    "seal_early": False,
    "launch": "group",
    "launch_waiting": 0.0,
    "hedge_ratio": 0.0,
    "hedge_quantile": 0.95,
    "slow_factor": 0.0,
    "spare_places": 0,
}
"""The recipe's own rules left out: one queue, least outstanding, and endpoints that fail are taken out."""


def plain(**changes: Any) -> Policy:
    """What a policy adds is compared with this, and tests of a single rule begin with it."""
    return Policy(**{**PLAIN, **changes})


class TokenBucket:
    """A budget that grows with the traffic, by `ratio` per query, and with time, by `per_s`; never above `burst`."""

    def __init__(self, ratio: float, burst: float, per_s: float = 0.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self._per_s = per_s
        self._seen_at = 0.0
        self.tokens = burst

    def deposit(self) -> None:
        self.tokens = min(self._burst, self.tokens + self._ratio)

    def pass_time(self, now: float) -> None:
        if self._per_s:
            self.tokens = min(self._burst, self.tokens + self._per_s * max(0.0, now - self._seen_at))
            self._seen_at = now

    def wait_s(self, ahead: int) -> float:
        """How long it takes at most until there is a token for one behind `ahead` others; inf: perhaps for ever."""
        missing = ahead + 1.0 - self.tokens
        if missing < 1e-9:  # a timer that was armed for it may come a rounding too early
            return 0.0
        return missing / self._per_s if self._per_s and self._burst >= 1.0 else math.inf

    def take(self) -> bool:
        if self.wait_s(0):
            return False
        self.tokens -= 1.0
        return True


class GapMeter:
    """A running mean of the time between arrivals: when the next one is expected."""

    WEIGHT = 0.05

    def __init__(self) -> None:
        self.mean = 0.0
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        if self._last is not None:
            gap = now - self._last
            self.mean += self.WEIGHT * (gap - self.mean) if self.mean else gap
        self._last = now


class LoadMeter:
    """A running mean of the share of a pool's places that is taken, told at every dispatch: 1.0 is full."""

    WEIGHT = 0.02

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, taken: float, places: float) -> None:
        self.value += self.WEIGHT * (taken / max(places, 1.0) - self.value)
