"""What makes a simulated run: service times, slowdowns, arrivals and costs, beside a fleet and a policy.

Values only; the same scenario and seed give the same run. Knows nothing of how it is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ts_parity.engine import Fleet, Policy
from ts_parity.lab.agreement import AgreementCurve

BLOCK = 1 << 14
"""Random numbers are drawn in blocks: one by one they would cost more than the engine."""


@dataclass(frozen=True)
class ServiceTimes:
    """How long one deployed inference takes: lognormal of this mean and cv, or drawn from `samples` (a latency log)."""

    mean: float = 1.0
    cv: float = 0.1
    samples: tuple[float, ...] = ()

    def draw(self, rng: np.random.Generator, size: int) -> list[float]:
        if self.samples:
            drawn: list[float] = rng.choice(np.asarray(self.samples), size).tolist()
            return drawn
        sigma = math.sqrt(math.log(1 + self.cv**2))
        lognormal: list[float] = rng.lognormal(math.log(self.mean) - sigma**2 / 2, sigma, size).tolist()
        return lognormal


@dataclass(frozen=True)
class Spells:
    """Each worker, or each failure domain together, is `factor` times slower for a share of the time, in spells.

    `factor` inf: frozen, what it has begun goes on when the spell ends. Lengths and gaps are exponential.
    """

    share: float
    mean: float
    factor: float
    by_domain: bool = False


@dataclass(frozen=True)
class Outage:
    """From `at` on, for `lasts`, this worker does what `kind` says: frozen, dead (what is sent fails), or slow."""

    worker: str
    at: float
    lasts: float = math.inf
    kind: str = "frozen"
    factor: float = 5.0

    @property
    def ends_at(self) -> float:
        return self.at + self.lasts


@dataclass(frozen=True)
class Arrivals:
    """Poisson of a rate; Gamma gaps of this cv; bursts (`burst` times as many for a tenth of the time); or a trace."""

    rate: float
    cv: float = 1.0
    burst: float = 1.0
    burst_mean: float = 50.0
    trace: tuple[float, ...] = ()

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        if self.trace:
            yield from self.trace
            return
        at, high, until = 0.0, False, 0.0
        # So that the mean rate is `rate`: a tenth of the time at `burst` times the low rate.
        low = self.rate / (0.9 + 0.1 * self.burst)
        while True:
            shape = 1.0 / self.cv**2
            for gap in rng.gamma(shape, 1.0 / shape, BLOCK).tolist():
                while self.burst > 1.0 and at >= until:
                    high = not high
                    until = at + rng.exponential(self.burst_mean * (1.0 if high else 9.0))
                at += gap / (low * self.burst if high and self.burst > 1.0 else low if self.burst > 1.0 else self.rate)
                yield at


@dataclass(frozen=True)
class Costs:
    """In deployed inferences. `group`: of a parity model's answer, or of each query in a backup's group.

    `batch_saves`: what each further query in one run saves, from 0 (k cost k) to 1 (k cost one).
    """

    group: float = 1.0
    batch_saves: float = 0.0
    finish: float = 0.01
    decode: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Everything that makes a run. The same scenario and seed give the same run."""

    fleet: Fleet
    policy: Policy
    arrivals: Arrivals
    queries: int
    service: ServiceTimes = field(default_factory=ServiceTimes)
    spells: Spells | None = None
    outages: tuple[Outage, ...] = ()
    net_share: float = 0.0
    net_mean: float = 0.0
    costs: Costs = field(default_factory=Costs)
    proxies: int = 1
    sharing: str = "blind"
    """How they share the machines, and who serves a query; see `sharing.WAYS`."""
    hop: float = 0.0
    """One way from one proxy to another."""
    exchange: float = 1.0
    """How often they tell each other what they have, where they do."""
    places: int = 1
    """How many tasks a machine runs at once."""
    clock: float = 0.0
    """The tick of the proxies' clock; 0: exact. Their timers are up to two ticks late: one because the clock was read
    earlier, one because they sleep for whole ticks.
    """
    worker_batch: int = 1
    sizes: tuple[tuple[float, float], ...] = ()
    """(size, share): a body of size 4 takes four times as long, on whatever machine, its second copy too."""
    own_cv: float = 0.0
    """Coefficient of variation of the time that belongs to a query besides its size: the same on every machine."""
    speeds: tuple[float, ...] = ()
    """How many times longer each machine takes, always; repeated over the machines."""
    agreement: AgreementCurve | None = None
    """How sure a protection that is not lossless is of its answers, and so how many differ. None: none is counted."""
    deadline: float = math.inf
    """The deadline that each client asks for; inf: only the policy's."""
    patience: float = math.inf
    """A client leaves this long after its query; the proxy learns of it only then."""
    warm_up: float = 0.02
    """Share of the queries at the beginning that is not measured."""
