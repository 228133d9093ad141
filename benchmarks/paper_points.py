"""What `paper.py` measures: figures, arms, and the points they are made of. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_parity.lab.demo import AS_IN_THE_PAPER
from ts_parity.lab.scenario import Spells

SERVICE_S = 0.05
"""Of an inference, where nothing else is said: what lengths of spells and transfers in seconds are meant for."""
SLOW = Spells(share=0.06, mean=3.0, factor=5.0)


@dataclass(frozen=True)
class Size:
    """Of the whole evaluation. `machines`: the deployed ones; with k = 2 half as many more stand beside them."""

    machines: int = 12
    loads: tuple[float, ...] = (0.35, 0.5, 0.65, 0.85)
    load: float = 0.5
    """Where a figure has one. It is among `loads`, so figures share points."""
    queries: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 2000
    service_s: float = SERVICE_S
    """Of an inference. Spells, transfers and delays of messages grow with it, so a longer one is the same run in slow
    motion, but for what the host and the proxy take: for hosts whose cores do not suffice otherwise."""

    @property
    def slower(self) -> float:
        return self.service_s / SERVICE_S

    @property
    def spells(self) -> Spells:
        return replace(SLOW, mean=SLOW.mean * self.slower)


QUICK = Size(machines=4, loads=(0.5,), load=0.5, queries=500, seeds=(0,), steps=150)


@dataclass(frozen=True)
class ArmSpec:
    """One way to serve. `hosting`: what stands on the machines; see `HOSTINGS`. `flags`: of the proxy, None: nginx.

    `client`: what stands before it, such as a library that sends a request again. `extra`: whether it uses the machines
    beyond the deployed ones.
    """

    name: str
    hosting: str
    flags: tuple[str, ...] | None = ()
    client: str = ""
    extra: bool = True
    policy: str = "default"
    """Its name in the simulator."""
    changes: Mapping[str, float] = field(default_factory=dict)
    """What its flags change there."""


_ALONE = ("--protect", "off", "--extra-work", "0")
_PAPERS = {"extra_work": 0.0, "differing": 1.0, "reconstruct_after_s": 0.0}
ARMS = {
    arm.name: arm
    for arm in (
        ArmSpec("equal", "plain", _ALONE, policy="copies", changes={"extra_work": 0.0}),
        ArmSpec("nginx", "plain", None, policy="equal"),
        ArmSpec("replication", "plain", _ALONE, client="twice", policy="replication"),
        ArmSpec("hedge-python", "plain", None, client="hedge-python", policy="hedge"),
        ArmSpec("hedge", "plain", ("--protect", "off"), policy="copies"),
        ArmSpec("hedge, no machine more", "plain", ("--protect", "off"), extra=False, policy="copies"),
        ArmSpec("approximate", "approximate", policy="coded", changes=_PAPERS),
        ArmSpec("parm", "coded", AS_IN_THE_PAPER, policy="coded", changes=_PAPERS),
        ArmSpec("sum", "coded", policy="coded"),
        ArmSpec("exact", "exact"),
        ArmSpec("exact, no machine more", "exact", extra=False),
        ArmSpec("default", "student"),
        ArmSpec("default, no machine more", "student", extra=False),
    )
}
HOSTINGS = {
    "plain": "the model on every machine",
    "exact": "the model and `exact` on every machine",
    "student": "the model and a student on every machine",
    "approximate": "the model on the deployed machines, a student on the others (every query goes there too)",
    "coded": "the model on the deployed machines, a parity model on the others",
}
NO_MORE = ("hedge, no machine more", "exact, no machine more", "default, no machine more")


@dataclass(frozen=True)
class Figure:
    """`arms` by name; `loads`: at all of them, else at one. `about`: the arm without which it says nothing."""

    name: str
    told: str
    arms: tuple[str, ...]
    loads: bool = False
    ks: tuple[int, ...] = (2,)
    disturbances: tuple[int, ...] = (4,)
    batches: tuple[int, ...] = (1,)
    trouble: str = "shuffles"
    about: str = ""

    @property
    def varied(self) -> bool:
        return len(self.ks) * len(self.disturbances) * len(self.batches) > 1

    def has(self, point: Point) -> bool:
        """Whether this point is one of its own, at whatever load."""
        return (
            point.trouble == self.trouble
            and point.arm in self.arms
            and point.k in self.ks
            and point.disturbances in self.disturbances
            and point.batch in self.batches
        )


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("9", "loads, network contention", tuple(ARMS), loads=True),
        Figure("10", "k = 2, 3, 4", ("equal", "parm", "sum", "default"), ks=(2, 3, 4)),
        Figure("11", "2 to 5 transfers at a time", ("equal", "hedge", "parm", "default"), disturbances=(2, 3, 4, 5)),
        Figure(
            "12", "a second tenant on a ninth of the machines", ("equal", "hedge", "parm", "default"),
            loads=True, trouble="tenant",
        ),
        Figure(
            "13", "an approximate backup", ("equal", "approximate", "parm", "default"), loads=True, about="approximate"
        ),
        Figure("batch", "batches of 1, 2, 4", ("equal", "hedge", "parm", "default"), batches=(1, 2, 4)),
        Figure(
            "crash", "an instance crashes", ("equal", "nginx", "hedge", "parm", "exact", "default"), trouble="crash"
        ),
        Figure(
            "slow", "machines five times slower in spells", ("equal", *NO_MORE, "default"), loads=True, trouble="slow"
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What is measured at a time, whatever figures show it. `load`: of the deployed machines."""

    arm: str
    load: float
    k: int
    disturbances: int
    batch: int
    seed: int
    trouble: str
    service_ms: float = 1000 * SERVICE_S

    @property
    def key(self) -> str:
        arm = self.arm.replace(", no machine more", "-no-more")
        pace = "" if self.service_ms == 1000 * SERVICE_S else f"{self.service_ms:g}ms-"
        return f"{pace}{self.trouble}-{arm}-{self.load:g}-k{self.k}-d{self.disturbances}-b{self.batch}-s{self.seed}"

    @property
    def fleet(self) -> tuple[str, int, int]:
        """Points alike in this are measured on one fleet."""
        hosting = ARMS[self.arm].hosting
        shared = "beside" if hosting in ("plain", "exact", "student") else hosting
        return shared, self.k, self.batch


def points(size: Size, names: Sequence[str]) -> list[Point]:
    """All, each once, in an order that starts as few fleets as possible. Arms that are compared follow each other
    closely, for the host is not the same ten minutes later.
    """
    made: list[Point] = []
    for name in names:
        figure = FIGURES[name]
        for load in size.loads if figure.loads else (size.load,):
            made += [
                Point(arm, load, k, disturbances, batch, seed, figure.trouble, 1000 * size.service_s)
                for arm in figure.arms
                for k in figure.ks
                for disturbances in figure.disturbances
                for batch in figure.batches
                for seed in size.seeds
            ]
    hostings = list(HOSTINGS)
    return sorted(
        dict.fromkeys(made),
        key=lambda p: (
            p.fleet, p.trouble, p.load, p.disturbances, p.seed, hostings.index(ARMS[p.arm].hosting),
        ),
    )  # fmt: skip


def point_of(row: Mapping[str, Any]) -> Point | None:
    """None: it does not say all that a point is."""
    names = ("load", "k", "disturbances", "batch", "seed", "trouble", "service_ms")
    return Point(arm=row["spec"], **{name: row[name] for name in names}) if row.keys() >= {"spec", *names} else None


def shown(made: Sequence[Point]) -> list[tuple[str, Point]]:
    """-> which figures show which of these points, in the order of the tables. A figure that varies something shows the
    loads at which there are two of its variants.
    """
    rows = []
    for figure in FIGURES.values():
        own = [point for point in made if figure.has(point)]
        for place in {(point.service_ms, point.load) for point in own}:
            here = [point for point in own if (point.service_ms, point.load) == place]
            variants = {(point.k, point.disturbances, point.batch) for point in here}
            if len(variants) >= (2 if figure.varied else 1) and any(figure.about in ("", p.arm) for p in here):
                rows += [(figure.name, point) for point in here]
    arms, order = list(ARMS), list(FIGURES)
    return sorted(
        rows,
        key=lambda row: (
            order.index(row[0]), row[1].service_ms, row[1].load, row[1].k, row[1].disturbances, row[1].batch,
            arms.index(row[1].arm), row[1].seed,
        ),
    )  # fmt: skip


def extra_machines(size: Size, k: int) -> int:
    return math.ceil(size.machines / k)
