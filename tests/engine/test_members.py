"""Who serves a model, of the proxies in front of one fleet: given what each has heard, and when."""

from __future__ import annotations

from collections import Counter

import pytest

from ts_parity.engine.members import (
    BEAT_S,
    CALM_S,
    LONGEST_PAUSE_S,
    PAUSE_S,
    SILENT_S,
    Members,
    PeerState,
    Word,
    keys_of,
    rank,
)

POOLS = frozenset({"m/1.0"})
NAMES = ("a", "b", "c")


def knowing(own: str, *others: str, pools: frozenset[str] = POOLS, now: float = 0.0) -> Members:
    members = Members(own)
    members.adopt(f"at {name}" for name in others)
    members.serve(pools)
    members.tick(now)
    for name in others:
        members.heard(f"at {name}", Word(name, pools), now, now)
    return members


def beats(members: Members, start: float, ends: float, *speaking: str) -> list[str]:
    """Beat after beat these are heard, the others not. -> who was lost."""
    lost, now = [], start
    while now < ends:
        for name in speaking:
            members.heard(f"at {name}", Word(name, POOLS), now, now)
        lost += members.tick(now)
        now += BEAT_S
    return lost


def highest(*names: str, key: str = "m/1.0") -> str:
    return max(names, key=lambda name: rank(key, name))


def test_all_name_the_same_owner_and_it_names_itself():
    owner = highest(*NAMES)
    for own in NAMES:
        members = knowing(own, *(name for name in NAMES if name != own))
        assert members.owner("m/1.0", "m/1.0") == (None if own == owner else f"at {owner}")


def test_a_proxy_that_knows_nobody_serves_itself():
    assert knowing("a").owner("m/1.0", "m/1.0") is None
    assert knowing("a", pools=frozenset()).owner("m/1.0", "m/1.0") is None


def test_models_are_spread_and_a_member_that_goes_moves_its_own_only():
    pools = [f"m{n}/1.0" for n in range(3000)]
    before = {pool: highest(*NAMES, key=pool) for pool in pools}
    assert all(900 < number < 1100 for number in Counter(before.values()).values())
    after = {pool: highest("a", "b", key=pool) for pool in pools}
    assert all(after[pool] == before[pool] for pool in pools if before[pool] != "c")


def test_only_who_can_serve_a_model_owns_it():
    members = knowing("a", "b", "c")
    for name in ("b", "c"):
        members.heard(f"at {name}", Word(name, frozenset({"other/1.0"})), 0.1, 0.1)
    assert members.owner("m/1.0", "m/1.0") is None
    members.serve(frozenset())
    assert members.owner("other/1.0", "other/1.0") == f"at {highest('b', 'c', key='other/1.0')}"


def test_who_is_silent_is_lost_and_what_it_owned_goes_to_others():
    members = knowing("a", "b", "c")
    assert beats(members, 0.0, 0.9, "b") == []
    assert beats(members, 1.0, 1.6, "b") == ["at c"]
    assert members.state("at c") is PeerState.ABSENT
    assert members.owner("m/1.0", "m/1.0") == (None if highest("a", "b") == "a" else "at b")


def test_who_refuses_is_lost_at_once():
    members = knowing("a", "b")
    assert members.lost("at b", "refused", 0.1)
    assert not members.lost("at b", "refused", 0.2), "it was lost already"
    assert members.owner("m/1.0", "m/1.0") is None


def test_who_comes_and_goes_waits_longer_each_time():
    members = knowing("a", "b")
    now, pauses = 0.0, []
    for _ in range(8):
        now += 1.0
        members.lost("at b", "refused", now)
        lost_at = now
        while members.state("at b") is not PeerState.ALIVE:
            members.heard("at b", Word("b", POOLS), now, now)
            members.tick(now)
            now += BEAT_S
        pauses.append(now - BEAT_S - lost_at)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert max(pauses) == LONGEST_PAUSE_S
    beats(members, now, now + CALM_S + 1.0, "b")
    members.lost("at b", "refused", now + CALM_S + 2.0)
    assert members.peers["at b"].pause_s == PAUSE_S, "calm for a while, and it starts again"


def test_a_restarted_proxy_is_another_member_and_needs_no_pause():
    members = knowing("a", "b")
    members.lost("at b", "refused", 1.0)
    members.heard("at b", Word("b2", POOLS), 1.5, 1.5)
    assert members.state("at b") is PeerState.ALIVE


def test_a_member_by_two_addresses_is_one_member():
    members = knowing("a", "b")
    members.adopt(["at b", "also b"])
    members.heard("also b", Word("b", POOLS), 0.1, 0.1)
    members.serve(frozenset())
    assert members.owner("m/1.0", "m/1.0") == "at b"
    members.lost("at b", "refused", 0.2)
    assert members.owner("m/1.0", "m/1.0") == "also b"


def test_an_address_that_leads_back_here_is_no_peer():
    members = knowing("a", "b")
    members.heard("at b", Word("a", POOLS), 0.1, 0.1)
    assert members.state("at b") is PeerState.SELF
    assert members.owner("m/1.0", "m/1.0") is None


def test_nothing_is_forwarded_to_a_proxy_before_other_instances():
    members = knowing("a", "b")
    members.heard("at b", Word("b", POOLS, "another fleet"), 0.1, 0.1)
    assert members.state("at b") is PeerState.STRANGER
    members.serve(frozenset())
    assert members.owner("m/1.0", "m/1.0") is None


def test_an_address_that_is_no_longer_listed_is_lost():
    members = knowing("a", "b", "c")
    assert members.adopt(["at b"]) == ["at c"]
    members.heard("at c", Word("c", POOLS), 0.2, 0.2)
    assert [*members.peers] == ["at b"]
    assert not members.lost("at c", "refused", 0.3)


@pytest.mark.parametrize("late_s", [SILENT_S + 0.1, 5.0])
def test_an_answer_that_took_too_long_proves_nothing(late_s: float):
    members = knowing("a", "b")
    members.lost("at b", "refused", 1.0)
    members.heard("at b", Word("b", POOLS), 2.0, 2.0 + late_s)
    assert members.state("at b") is PeerState.ABSENT


def test_an_answer_that_was_overtaken_says_nothing_new():
    members = knowing("a", "b")
    members.heard("at b", Word("b", frozenset()), 0.5, 0.6)
    members.heard("at b", Word("b", POOLS), 0.4, 0.7)
    assert members.peers["at b"].word.serves == frozenset()


def test_who_was_away_itself_blames_nobody():
    """Stopped for ten seconds, a proxy finds all its peers silent for that long, and none was."""
    members = knowing("a", "b")
    beats(members, 0.0, 1.0, "b")
    assert members.tick(11.0) == []
    assert members.state("at b") is PeerState.ALIVE
    assert beats(members, 11.25, 13.0) == ["at b"], "but silence from then on counts"


def test_members_that_disagree_never_forward_in_a_circle_of_owners():
    """Each pair sees another part. Whoever is named may name somebody else, which is why nothing is forwarded twice."""
    a, b, c = knowing("a", "b"), knowing("b", "a", "c"), knowing("c", "b")
    named = [members.owner("m/1.0", "m/1.0") for members in (a, b, c)]
    assert any(owner is None for owner in named), "the highest of all that are seen serves itself"


def test_pools_that_share_an_instance_have_one_key():
    hosts = [("c/1", "i1"), ("a/1", "i1"), ("a/1", "i2"), ("b/1", "i2"), ("z/1", "i3"), ("y/1", "i3"), ("x/1", "i4")]
    assert keys_of(hosts) == {"a/1": "a/1", "b/1": "a/1", "c/1": "a/1", "y/1": "y/1", "z/1": "y/1", "x/1": "x/1"}
    assert keys_of([]) == {}


def test_who_refuses_finishes_what_it_has_or_its_connections_say_so():
    """Only if it says nothing at all for a second, what it has is taken back."""
    members = knowing("a", "b", "c")
    members.lost("at b", "refused", 0.1)
    assert beats(members, 0.1, 1.0, "c") == []
    assert beats(members, 1.25, 2.0, "c") == ["at b"]
    assert beats(members, 2.25, 5.0, "c") == [], "once"


def test_who_drains_finishes_what_it_has():
    members = knowing("a", "b", "c")
    members.heard("at b", Word("b", frozenset(), draining=True), 0.25, 0.25)
    members.lost("at b", "refused", 0.5)
    assert beats(members, 0.5, 5.0, "c") == []


def test_what_a_member_can_serve_no_more_is_taken_back_unless_it_drains():
    members = knowing("a", "b", "c")
    assert members.heard("at b", Word("b", frozenset()), 0.25, 0.25) == POOLS
    assert members.heard("at c", Word("c", frozenset(), draining=True), 0.25, 0.25) == frozenset()
