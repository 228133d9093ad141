"""Places: how many tasks each endpoint, pool and machine has in flight, and which endpoints have a place left.

Knows numbers and health. Knows nothing of what a task is for, nor which of those with a place it goes to (`selection`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from ts_parity.engine.events import Endpoint, Instance
from ts_parity.engine.health import Condition, Health
from ts_parity.engine.outliers import ErrorRecord
from ts_parity.engine.policy import Policy
from ts_parity.engine.speed import Speed


class Occupant:
    """What takes a place, until it ends: the part of a task that matters here."""

    __slots__ = ("id", "lost", "scale", "sent_at")

    def __init__(self, id: int, sent_at: float, scale: float = 1.0) -> None:
        self.id = id
        self.scale = scale
        """How many times longer than usual it takes."""
        self.sent_at = sent_at
        self.lost = False
        """Its endpoint is gone. Nobody waits for it any more, but should it end well, it is as good as any other."""


class InstanceState:
    """One TorchServe and how many tasks it has in flight, over all models it hosts."""

    __slots__ = ("clean", "endpoints", "in_flight", "instance", "protects", "serves")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.endpoints: list[EndpointState] = []
        self.in_flight = 0
        self.protects = False
        self.serves = False
        self.clean = True
        """The last answer of each of its endpoints came, and in time."""

    def judge(self) -> None:
        """An endpoint's health has changed: a machine that is slow for one model is so for all."""
        self.clean = all(state.health.clean for state in self.endpoints)
        for state in self.endpoints:
            state.peers.settle(state)


class PoolShare:
    """What one pool has on one instance. Its deployed model and its protection there take turns, for they have one
    machine between them, and a query that waits can still go to another. It does not look at other pools. A protection
    whose server has places for it apart has a share of its own.
    """

    __slots__ = ("in_flight", "places")

    def __init__(self) -> None:
        self.in_flight = 0
        self.places = 0
        """Those of its largest endpoint."""

    def add(self, state: EndpointState) -> None:
        if state.share is not self:
            state.share.in_flight -= state.in_flight
            self.in_flight += state.in_flight
            state.share = self
        self.places = max(self.places, state.endpoint.places)


class EndpointState:
    """An endpoint, how many of its places are taken, and its health."""

    __slots__ = (
        "apart", "ejections", "endpoint", "failures", "health", "host", "in_flight", "last_sent", "machine_places",
        "name", "only", "peers", "record", "share", "speed", "tasks", "why",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, host: InstanceState, policy: Policy) -> None:
        self.name = endpoint.name
        self.endpoint = endpoint
        self.host = host
        self.peers = EndpointSet()
        self.share = PoolShare()
        self.only = frozenset({endpoint.instance})
        self.in_flight = 0
        self.last_sent = 0
        self.tasks: dict[int, Occupant] = {}
        """In flight, the oldest first."""
        self.machine_places: float = 0.0
        """Tasks in flight from which on its instance takes no more of this endpoint's; inf: it always takes more."""
        self.health = Health(policy.failures_until_out, policy.out_s)
        self.failures = self.ejections = 0
        self.why = ""
        """It is out, if it is."""
        self.record = ErrorRecord()
        self.speed = Speed()
        self.describe(endpoint, host)

    def describe(self, endpoint: Endpoint, host: InstanceState) -> None:
        """Independent models never wait for each other; protections use what the whole machine has idle."""
        self.endpoint = endpoint
        self.host = host
        self.apart = endpoint.apart
        bounded = not endpoint.apart and (endpoint.row is not None or host.instance.capped)
        self.machine_places = float(host.instance.places) if bounded else math.inf

    @property
    def domain(self) -> str:
        return self.host.instance.domain

    def has_place(self) -> bool:
        share = self.share
        if self.in_flight >= self.endpoint.places or share.in_flight >= share.places:
            return False
        return self.host.in_flight < self.machine_places

    def take_place(self, task: Occupant, now: float) -> None:
        """Task numbers grow, so the last one is also the order in which endpoints were used."""
        host, share = self.host, self.share
        self.in_flight += 1
        self.peers.taken += 1
        share.in_flight += 1
        host.in_flight += not self.apart
        self.last_sent = task.id
        self.tasks[task.id] = task
        if self.health.condition is Condition.OUT:
            self.health.sent(now)
        full = share.in_flight >= share.places
        if full or host.in_flight == host.instance.places:
            for state in host.endpoints:
                if (full and state.share is share) or not state.has_place():
                    state.peers.remove(state)
        if not full:
            self.peers.settle(self)

    def part(self) -> None:
        """Another has its name and machine now. What is in flight here takes none of its places."""
        alone = InstanceState(self.host.instance)
        if not self.apart:
            alone.in_flight = self.in_flight
            self.host.in_flight -= self.in_flight
        self.host = alone
        PoolShare().add(self)

    def free_place(self, task: Occupant) -> None:
        host, share = self.host, self.share
        self.in_flight -= 1
        self.peers.taken -= 1
        share.in_flight -= 1
        host.in_flight -= not self.apart
        del self.tasks[task.id]
        if share.in_flight == share.places - 1 or host.in_flight == host.instance.places - 1:
            for state in host.endpoints:
                state.peers.freed(state)
        else:
            self.peers.freed(self)


class EndpointSet:
    """Endpoints that do the same work: all of them, and those with a place, the longest idle first.

    So choosing costs little, however many there are, and however many are busy or out.
    """

    __slots__ = ("doubted", "everyone", "out", "parked", "ready", "taken", "trials")

    def __init__(self, everyone: Iterable[EndpointState] = ()) -> None:
        self.everyone = sorted(everyone, key=lambda state: state.last_sent)
        self.ready: dict[str, EndpointState] = {}
        self.doubted: dict[str, EndpointState] = {}
        """With a place, on an instance whose last answer came late or not at all: for want of others."""
        self.trials: dict[str, EndpointState] = {}
        """With a place, out, and due to be tried again: for want of others too."""
        self.parked: dict[str, EndpointState] = {}
        """Not to be asked for a while; in none of the three."""
        self.out = sum(state.health.condition is not Condition.IN for state in self.everyone)
        """How many are out or on trial."""
        self.taken = sum(state.in_flight for state in self.everyone)
        """Tasks in flight. A state that left counts in the line it left."""
        for state in self.everyone:
            state.peers = self
            self.freed(state)

    def __len__(self) -> int:
        return len(self.everyone)

    def remove(self, state: EndpointState) -> None:
        if self.ready.pop(state.name, None) is None and self.doubted.pop(state.name, None) is None:
            self.trials.pop(state.name, None)

    def freed(self, state: EndpointState) -> None:
        if state.name not in self.parked and state.has_place():
            if state.host.clean:
                self.ready.setdefault(state.name, state)
            else:
                out = state.health.condition is Condition.OUT
                (self.trials if out else self.doubted).setdefault(state.name, state)

    def settle(self, state: EndpointState) -> None:
        """To the end of where it belongs."""
        self.remove(state)
        self.freed(state)

    def park(self, state: EndpointState) -> None:
        self.remove(state)
        self.parked[state.name] = state

    def unpark(self, state: EndpointState) -> None:
        if self.parked.pop(state.name, None) is not None:
            self.freed(state)

    def with_place(self) -> Iterable[EndpointState]:
        if self.doubted or self.trials:
            return chain(self.ready.values(), self.doubted.values(), self.trials.values())
        return self.ready.values()

    def count(self, before: Condition, after: Condition) -> None:
        """An endpoint's condition has changed."""
        self.out += (after is not Condition.IN) - (before is not Condition.IN)
