"""The policy's numbers as one value, and the small instruments it measures with.

Knows numbers, and what the docs say of them. Knows nothing of queries, groups or endpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
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
    restart: bool = False,
) -> Any:
    """A field that users can set: flags, file, environment, docs and checks are all made from it.

    `text`: a line for --help; `more`: what docs/settings.md says besides. `group`: the heading of this one and of those
    after it. `auto`: of what type it is where its default is None, which users call auto. `words`: all that it may be.
    `restart`: a running proxy keeps it as it was at its start, whatever it reads later.
    """
    meta = {"text": text, "more": more, "group": group, "unit": unit, "auto": auto, "secret": secret}
    limits = {"least": least, "below": below, "words": words, "restart": restart}
    return field(default=default, repr=not secret, metadata={**meta, **limits})


def constant(
    default: Any, *, least: float = 0, below: float = math.inf, auto: type | None = None, words: tuple[str, ...] = ()
) -> Any:
    """A field that users cannot set: a rule's own number, which rivals, benchmarks and tests vary."""
    return field(default=default, metadata={"auto": auto, "least": least, "below": below, "words": words})


def is_setting(item: Field[Any]) -> bool:
    """Whether users can set it, by themselves or, as `default_answer`, by naming a file."""
    return "text" in item.metadata or item.name == "default_answer"


@dataclass(frozen=True)
class Policy:
    """Every duration in seconds. What each rule does, and when it helps, is in docs/policy.md.

    The defaults are the recipe: what `ts-parity serve` does by itself, what the demo shows, `default` in the simulator.
    """

    extra_work: float = setting(
        0.05,
        "extra inferences for late queries, per query; 0: none",
        "second copies, protections launched late, and probes of endpoints that are out, together; on average, in "
        "inferences of the deployed model",
        group="policy",
    )
    differing: float = setting(
        0.0005,
        "share of answers that may differ from the deployed model's",
        "expected by the confidence of rebuilt answers, and corrected by comparison with the queries' own late "
        "answers; 0: only `exact` answers, 1: no limit",
    )
    reconstruct_after_s: float | None = setting(
        None,
        "how long a query waits for its own answer",
        "then a rebuilt answer may be used, and a query that has failed waits so long for an instance elsewhere; auto: "
        "the 0.95 quantile of latency, or 0.9 where backups are launched for late queries only",
        unit="s",
        auto=float,
    )
    retry_ratio: float = setting(0.1, "retries per query, on average; 0: none")
    deadline_s: float = setting(30.0, "a query gets 504 or the default answer by then", unit="s", least=0.001)
    target_s: float | None = setting(
        None,
        "within this time queries should be answered",
        "protections are launched in time for it, as far as `extra_work` goes; auto: no such time is wanted, only the "
        "latest queries count. A query that takes longer is not given up",
        unit="s",
        least=0.001,
        auto=float,
    )
    max_waiting: int = setting(1000, "queries that may wait, per model; then 503", unit="queries", least=1)
    max_wait_s: float = setting(10.0, "503 while the oldest has waited this long", unit="s")

    # ---- the rules' own numbers, which are no settings -----------------------------------------------------------

    reconstruct_quantile: float = constant(0.95, least=0.01, below=1)
    """Of latency: when a query is late. Earlier spends accuracy where nothing is late, later spends latency: with 0.9 a
    parity code rebuilt 3.5 % of the answers of a fleet where nothing was late, with 0.95 2.0 % (docs/policy.md)."""
    reconstruct_cold_s: float = constant(1.0)
    """Stands in for every quantile of latency until five answers have come."""
    group_wait_s: float | None = constant(None, auto=float)
    """A group is sealed with the members it has after this long. None: as `reconstruct_after_s`, for later its
    protection would be of no use to the first."""
    seal_early: bool = constant(True)
    """And at once when the next member, at the present rate of arrivals, would come too late for it."""
    launch: str = constant("auto", words=("auto", "group", "late"))
    """When a backup is launched: with its `group` (the paper's way), or `late`, only for queries not answered by then.
    `auto`: late where it stands beside the deployed model, because there it would get in the way of queries.
    Parity models are always launched with the group: they need the other members' outputs."""
    launch_after_s: float | None = constant(None, auto=float)
    """Late launch this long after the query was sent. None: a quantile of latency, and later under load."""
    launch_stretch: float = constant(0.2)
    """Extra delay of a launch at full load, as a fraction: more queries are late by bad luck there."""
    launch_waiting: float = constant(0.5)
    """A query that has waited for a place this many times `launch_after_s` gets its backup first; 0: never. So a
    crowd is served with backups as far as places are short."""
    doubt_waits: bool = constant(True)
    """Whether a query whose rebuilt answer is in doubt waits longer for its own. See `accuracy`."""
    copies: bool = constant(True)
    """Whether second copies are made at all."""
    work_burst: float = constant(30.0)
    """Deployed inferences at once: while one of three machines is slow, a third of all queries are late."""
    hedge_after_s: float | None = constant(None, auto=float)
    """A second copy is made this long after the query was sent. None: a quantile of latency, and not before a backup of
    the query has had its time."""
    hedge_quantile: float = constant(0.98, least=0.01, below=1)
    """Of latency: when a second copy is made. Far enough behind 1 - `extra_work` that what is late by bad luck does
    not use up what is needed when a machine is slow (docs/policy.md)."""
    learn_speed: bool = constant(True)
    """Whether endpoints that are slower than their pool are used for want of others, or ejected. See `speed`."""
    spare_places: int = constant(1)
    """Extra tasks that an instance may get beyond its places while all are busy, if its oldest task is overdue and its
    last answer was in time: that one reply may be late on its way while the machine is idle."""
    balance: str = constant("least", words=("least", "round_robin"))
    """`least` outstanding, or `round_robin`, which looks at nothing: a rival to compare with."""
    retry_burst: float = constant(10.0)
    """Retries at once, unless `retry_ratio` is 0; with time they come back, within a second."""
    max_attempts: int = constant(3, least=1)
    """Tasks one query may cost: what has failed on three machines fails everywhere."""
    failures_until_out: int = constant(3, least=1)
    """Failures in a row that take an endpoint out."""
    out_s: float = constant(1.0)
    """How long an ejected endpoint is left alone, at first; doubled for each failed return, up to 30 s, or up to 4 s if
    it is merely slow."""
    reject_pause_s: float = constant(0.05)
    """How long an instance that is full is left alone: about a service time."""
    default_answer: bool = False
    """At its deadline a query gets the configured default answer instead of an error."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, limits = getattr(self, item.name), item.metadata
            if "words" in limits and limits["words"] and value not in limits["words"]:
                *some, last = limits["words"]
                raise ValueError(f"{item.name} must be {', '.join(some)} or {last}, not {value!r}")
            if isinstance(value, float | int) and not isinstance(value, bool):
                least, below = limits.get("least", 0), limits.get("below", math.inf)
                if not (least <= value < below):
                    limit = "" if below == math.inf else f" and below {below:g}"
                    raise ValueError(f"{item.name} must be a number of at least {least:g}{limit}, not {value}")

    def in_units(self, unit_s: float) -> Policy:
        """The same with time in units of `unit_s` seconds, as in a simulator."""
        durations = [item.name for item in fields(self) if item.name.endswith("_s")]
        values = {name: getattr(self, name) for name in durations}
        return replace(self, **{name: value / unit_s for name, value in values.items() if value is not None})

    def __reduce__(self) -> tuple[Any, ...]:
        """Compiled and frozen, it could not be pickled; processes are sent one."""
        return Policy, tuple([getattr(self, item.name) for item in fields(self)])


PLAIN: Mapping[str, Any] = {
    "seal_early": False,
    "launch": "group",
    "launch_waiting": 0.0,
    "extra_work": 1.0,
    "differing": 1.0,
    "copies": False,
    "hedge_quantile": 0.95,
    "learn_speed": False,
    "spare_places": 0,
}
"""Without the recipe's own rules: one queue, least outstanding, and ejection of endpoints that fail."""


def plain(**changes: Any) -> Policy:
    """What a policy adds is compared with this, and tests of a single rule begin with it."""
    return Policy(**{**PLAIN, **changes})


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
    """A running mean of the share of a pool's places that is taken, updated at every dispatch: 1.0 is full."""

    WEIGHT = 0.02

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, taken: float, places: float) -> None:
        self.value += self.WEIGHT * (taken / max(places, 1.0) - self.value)
