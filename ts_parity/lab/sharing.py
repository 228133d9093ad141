"""How several proxies in front of one fleet share its machines: who has which of them, and who gets a query.

Each way is one object. It knows schedulers and the machines' names. Knows nothing of service times or events: the
simulator asks it where a query goes, and lets it act when its next exchange is due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ts_parity.engine import Fleet, Scheduler
from ts_parity.engine.capacity import EndpointState, Occupant
from ts_parity.engine.members import rank
from ts_parity.engine.query import Action

WAYS = ("blind", "active", "owned", "hashed", "apart", "leased", "reported")


class Blind:
    """Each has all machines, sends them what its own clients ask, and knows nothing of the others."""

    exchange_at = math.inf
    """When `exchange` is due next."""

    def __init__(self, fleet: Fleet, proxies: int) -> None:
        self.fleets = [fleet] * proxies
        self.schedulers: Sequence[Scheduler] = ()

    def serves(self, asked: int, now: float) -> int:
        """Which proxy serves a query of a client that has asked this one."""
        return asked

    def exchange(self, now: float) -> list[tuple[Scheduler, list[Action]]]:
        """What all proxies learn of each other at this moment, and what follows."""
        return []


class OneActive(Blind):
    """One serves everything; the others stand by and forward."""

    def serves(self, asked: int, now: float) -> int:
        return 0


class Owned(Blind):
    """Each machine is one proxy's. A proxy without a free place forwards to the one that has most of them, or, if there
    are none anywhere, to the one with the shortest queue: the best that peers who know all of each
    other could do.
    """

    forwards = True

    def __init__(self, fleet: Fleet, proxies: int, hashed: bool = False) -> None:
        """`hashed`: by rendezvous hashing, so some own more than others; otherwise all own as many."""
        super().__init__(fleet, proxies)
        owner = {
            each.name: max(range(proxies), key=lambda one: rank(each.name, f"proxy {one}")) if hashed else i % proxies
            for i, each in enumerate(fleet.instances)
        }
        self.machines = [[name for name in owner if owner[name] == one] for one in range(proxies)]
        self._all = fleet
        self.fleets = [self._part(machines) for machines in self.machines]

    def _part(self, machines: Sequence[str]) -> Fleet:
        instances = tuple(each for each in self._all.instances if each.name in machines)
        return replace(
            self._all,
            instances=instances,
            endpoints=tuple(each for each in self._all.endpoints if each.instance in machines),
        )

    def serves(self, asked: int, now: float) -> int:
        if not self.forwards or self._free(asked) > 0:
            return asked
        return max(range(len(self.schedulers)), key=lambda one: (self._free(one), one == asked))

    def _free(self, one: int) -> int:
        """Healthy machines with a place; below zero: how many queries wait for each machine."""
        pool = next(self.schedulers[one].pools())
        waiting, machines = len(pool.waiting), len(pool.deployed)
        if machines == 0:
            return -1_000_000
        return -math.ceil(waiting / machines) if waiting else len(pool.deployed.ready)


class Apart(Owned):
    """Each has its own machines and forwards nothing."""

    forwards = False


class Leased(Apart):
    """As apart, but every `period` idle machines go from proxies with nothing waiting to those whose queries wait, and
    back to an even share when nothing waits.
    """

    def __init__(self, fleet: Fleet, proxies: int, period: float) -> None:
        super().__init__(fleet, proxies)
        self._period = self.exchange_at = period

    def exchange(self, now: float) -> list[tuple[Scheduler, list[Action]]]:
        self.exchange_at = now + self._period
        before = [[*machines] for machines in self.machines]
        waiting = [len(next(each.pools()).waiting) for each in self.schedulers]
        idle = [self._idle(one) for one in range(len(waiting))]
        while True:
            needy = max(range(len(waiting)), key=lambda one: (waiting[one], -len(self.machines[one])))
            givers = [one for one in range(len(waiting)) if idle[one] and not waiting[one] and one != needy]
            giver = max(givers, key=lambda one: (len(self.machines[one]), len(idle[one])), default=None)
            if giver is None:
                break
            if not waiting[needy] and len(self.machines[giver]) <= len(self.machines[needy]) + 1:
                break
            moved = idle[giver].pop()
            self.machines[giver].remove(moved)
            self.machines[needy].append(moved)
            waiting[needy] = max(0, waiting[needy] - 1)
        changed = [one for one in range(len(waiting)) if self.machines[one] != before[one]]
        return [
            (self.schedulers[one], self.schedulers[one].endpoints_changed(self._part(self.machines[one]), now))
            for one in changed
        ]

    def _idle(self, one: int) -> list[str]:
        pool = next(self.schedulers[one].pools())
        return [each.endpoint.instance for each in pool.deployed.ready.values() if not each.host.in_flight]


class Reported(Blind):
    """Each has all machines, and every `period` each machine tells all proxies how much it has to do."""

    def __init__(self, fleet: Fleet, proxies: int, period: float) -> None:
        super().__init__(fleet, proxies)
        self._period = self.exchange_at = period
        self._others: list[list[tuple[EndpointState, Occupant]]] = [[] for _ in range(proxies)]
        self._numbers = 0

    def exchange(self, now: float) -> list[tuple[Scheduler, list[Action]]]:
        self.exchange_at = now + self._period
        for taken in self._others:
            for state, occupant in taken:
                state.free_place(occupant)
            taken.clear()
        pools = [next(each.pools()) for each in self.schedulers]
        busy = [{s.endpoint.instance: s.host.in_flight for s in pool.deployed.everyone} for pool in pools]
        total = {name: sum(each[name] for each in busy) for name in busy[0]}
        for one, pool in enumerate(pools):
            for state in pool.deployed.everyone:
                if state.health.resumes_at <= now and not state.health.only_slow:
                    for _ in range(total[state.endpoint.instance] - busy[one][state.endpoint.instance]):
                        self._occupy(one, state, now)
        return [(each, each.tick(now)) for each in self.schedulers]

    def _occupy(self, one: int, state: EndpointState, now: float) -> None:
        self._numbers -= 1
        occupant, last = Occupant(self._numbers, now), state.last_sent
        state.take_place(occupant, now)
        state.last_sent = last
        self._others[one].append((state, occupant))


def sharing(way: str, fleet: Fleet, proxies: int, period: float) -> Blind:
    """`period`: between two exchanges, where there are any."""
    if way == "leased":
        return Leased(fleet, proxies, period)
    if way == "reported":
        return Reported(fleet, proxies, period)
    if way == "apart":
        return Apart(fleet, proxies)
    if way in ("owned", "hashed"):
        return Owned(fleet, proxies, hashed=way == "hashed")
    return OneActive(fleet, proxies) if way == "active" else Blind(fleet, proxies)
