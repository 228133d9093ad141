"""Several proxies in front of one fleet: which of them serves a model's queries. The others forward theirs to it.

One proxy that has all of a model's queries knows all there is to know: who is busy, slow or late. So each model is
served by one proxy at a time, its owner: of the members alive that can serve it, the one that ranks highest for it
(rendezvous hashing, so a member that comes or goes moves only its own models). Nobody is elected and nothing is agreed
on: each member decides by what it has heard itself. While two disagree, both serve, as proxies that know nothing of
each other do: that costs tail, never an answer.

    a peer is    from then on                                                       it may be an owner
    absent       at first, and when it refuses or is silent for SILENT_S               no
    returning    when it is heard again: for a pause that doubles with each loss       no
    alive        when that is over, or at once if it is new                            of what it says that it serves

A member that has just started says for STANDBY_S that it serves nothing, as one does that drains: so all think alike of
it, itself included. What a lost peer had is taken back when it is silent. If it refuses, its open connections say
first what becomes of that: they break, or it finishes; only if they say nothing for SILENT_S is it silent. Whoever was
not run itself for a while (stopped, or starved of the processor) holds nobody's
silence against them for that time.

Pure: knows names and times. Knows nothing of addresses' form, sockets, or of how a member proves who it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Final

BEAT_S: Final = 0.25
"""Between two questions to a peer."""
SILENT_S: Final = 1.0
"""Four beats: shorter than that is a collection of garbage, or a busy machine."""
STANDBY_S: Final = 2.0
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""A peer that comes and goes must not take its models with it each time."""
CALM_S: Final = 60.0
"""Alive for so long, the next loss is as its first."""


class PeerState(Enum):
    ABSENT = "absent"
    RETURNING = "returning"
    ALIVE = "alive"
    SELF = "this proxy"
    STRANGER = "another fleet"
    """It has other instances, so its answers are not those of this fleet."""


@dataclass(frozen=True)
class Word:
    """What a member says of itself. `serves`: the models (pools) that it can serve now; `fleet`: which instances it
    was given, so that nobody forwards to another fleet's proxy. `draining`: it finishes what it has.
    """

    member: str
    serves: frozenset[str] = frozenset()
    fleet: str = ""
    draining: bool = False


class Peer:
    """One address and what was heard from there."""

    __slots__ = ("address", "alive_at", "has_work", "heard_at", "lost_at", "pause_s", "reason", "state", "word")

    def __init__(self, address: str) -> None:
        self.address = address
        self.state = PeerState.ABSENT
        self.reason = "not heard from yet"
        """It is not alive, if it is not."""
        self.word = Word("")
        self.heard_at = -math.inf
        """When the last question was asked that it has answered."""
        self.alive_at = -math.inf
        """Since when it is alive or, if it is returning, from when on."""
        self.pause_s = 0.0
        self.lost_at = -math.inf
        self.has_work = False
        """It has refused, and what it had before has not been taken back."""

    def __repr__(self) -> str:
        return f"<Peer {self.address} {self.state.value} {self.word.member}>"


class Members:
    """What one proxy knows of the others."""

    def __init__(self, own: str, fleet: str = "") -> None:
        """`own`: this proxy's name as a member; a peer that says it is this proxy. `fleet`: see `Word`."""
        self.own = own
        self.peers: dict[str, Peer] = {}
        self.fleet = fleet
        self._serves: frozenset[str] = frozenset()
        self._owners: dict[tuple[str, str], str | None] = {}
        self._ticked_at = -math.inf

    def adopt(self, addresses: Iterable[str]) -> list[str]:
        """These are all addresses there are. -> those that were lost by it."""
        listed = dict.fromkeys(addresses)
        gone = [address for address in self.peers if address not in listed]
        alive = [address for address in gone if self.state(address) is PeerState.ALIVE]
        self.peers = {address: self.peers.get(address) or Peer(address) for address in listed}
        self._owners.clear()
        return alive

    def state(self, address: str) -> PeerState:
        peer = self.peers.get(address)
        return PeerState.ABSENT if peer is None else peer.state

    def alive(self) -> int:
        return sum(peer.state is PeerState.ALIVE for peer in self.peers.values())

    def serve(self, pools: frozenset[str]) -> None:
        """What this proxy can serve itself."""
        if pools != self._serves:
            self._serves = pools
            self._owners.clear()

    def heard(self, address: str, word: Word, asked_at: float, now: float) -> frozenset[str]:
        """It has proved to be a member, answering what was asked at `asked_at`. -> the pools that it can serve no more,
        not even what it has of them: it sees none of their instances.
        """
        peer = self.peers.get(address)
        if peer is None or asked_at < peer.heard_at:  # an answer that was overtaken says nothing new
            return frozenset()
        peer.heard_at = asked_at
        if now - asked_at > SILENT_S:
            return frozenset()
        peer.has_work = False  # it lives; or it is another by now, and the connections to the one before are broken
        withdrawn: frozenset[str] = frozenset()
        if word != peer.word:
            if word.member == peer.word.member and not word.draining:
                withdrawn = peer.word.serves - word.serves
            if word.member != peer.word.member:
                peer.pause_s, peer.state = 0.0, PeerState.ABSENT
            peer.word = word
            self._owners.clear()
        if word.member == self.own:
            self._become(peer, PeerState.SELF)
        elif word.fleet != self.fleet:
            self._become(peer, PeerState.STRANGER, "it was given other instances")
        elif peer.state in (PeerState.ABSENT, PeerState.SELF, PeerState.STRANGER):
            peer.alive_at = now + peer.pause_s
            if peer.pause_s:
                self._become(peer, PeerState.RETURNING, peer.reason)
            else:
                self._become(peer, PeerState.ALIVE)
        elif peer.state is PeerState.RETURNING and now >= peer.alive_at:
            self._become(peer, PeerState.ALIVE)
        return withdrawn

    def lost(self, address: str, reason: str, now: float) -> bool:
        """It refuses, breaks off, or answers as no member does. -> whether it was alive."""
        peer = self.peers.get(address)
        if peer is None:
            return False
        alive = peer.state is PeerState.ALIVE
        if alive:
            calm = now - peer.alive_at >= CALM_S
            peer.pause_s = PAUSE_S if calm or not peer.pause_s else min(2 * peer.pause_s, LONGEST_PAUSE_S)
            peer.lost_at, peer.has_work = now, not peer.word.draining
        peer.heard_at = -math.inf
        self._become(peer, PeerState.ABSENT, reason)
        return alive

    def tick(self, now: float) -> list[str]:
        """Every BEAT_S or so. -> the addresses that are silent now, so what they have must be taken back."""
        away_s = now - self._ticked_at - 2 * BEAT_S
        self._ticked_at = now
        silent = []
        for peer in self.peers.values():
            if 0.0 < away_s < math.inf:
                peer.heard_at += away_s
                peer.lost_at += away_s
            is_silent = peer.state is not PeerState.ABSENT and now - peer.heard_at > SILENT_S
            fell_silent = is_silent and self.lost(peer.address, f"no answer for {SILENT_S:g} s", now)
            if fell_silent or (peer.has_work and now - peer.lost_at > SILENT_S):
                peer.has_work = False
                silent.append(peer.address)
        return silent

    def owner(self, pool: str, key: str) -> str | None:
        """The address of the peer that serves this pool; None: this proxy. `key`: the same for pools that must have one
        owner.
        """
        known = (pool, key)
        if known in self._owners:
            return self._owners[known]
        owner, best = None, rank(key, self.own) if pool in self._serves else ""
        for peer in self.peers.values():
            if peer.state is PeerState.ALIVE and pool in peer.word.serves:
                ranked = rank(key, peer.word.member)
                if ranked > best:
                    owner, best = peer.address, ranked
        self._owners[known] = owner
        return owner

    def _become(self, peer: Peer, state: PeerState, reason: str = "") -> None:
        peer.reason = reason
        if state is not peer.state:
            peer.state = state
            self._owners.clear()


def rank(key: str, member: str) -> str:
    """Of a member, for this key: as good as random, and the same whoever asks."""
    return blake2b(f"{key}\0{member}".encode(), digest_size=8).hexdigest()


def keys_of(hosts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of (pool, instance) pairs, pool -> key: pools that share an instance, directly or over others, have one key.

    What is idle on a machine, and whether it is slow, only a proxy knows that has all its work.
    """
    first: dict[str, str] = {}
    leader: dict[str, str] = {}

    def led(pool: str) -> str:
        while leader[pool] != pool:
            leader[pool] = pool = leader[leader[pool]]
        return pool

    for pool, instance in hosts:
        leader.setdefault(pool, pool)
        one, other = led(pool), led(first.setdefault(instance, pool))
        leader[max(one, other)] = min(one, other)
    return {pool: led(pool) for pool in leader}
