"""Placement: which group a query joins, and when it takes no more; the rule alone, and at work in virtual time."""

import pytest

from tests.engine.races import NEVER
from ts_parity.codes import make_code
from ts_parity.engine import (
    Kind,
    plain,
)
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.placement import Placement
from ts_parity.engine.release import Release
from ts_parity.testing import scenario

from .made import group_of


def placement(k=2, domains=4, partial=True, **policy):
    made = plain(reconstruct_after_s=0.05, **policy)
    rule = Placement(made, Release(made, LatencyWindow()))
    rule.adopt(make_code("sum", k, 1), partial, domains)
    return rule


def test_members_stand_in_different_failure_domains():
    rule, group = placement(), group_of("rack")
    rule.open(group)
    assert rule.group_for("key", "rack") is None
    assert rule.group_for("key", "elsewhere") is group
    assert rule.group_for("another key", "elsewhere") is None


def test_where_there_are_fewer_domains_than_members_they_are_spread_evenly():
    rule, group = placement(k=4, domains=2), group_of("rack", k=4)
    rule.open(group)
    assert rule.group_for("key", "rack") is group
    rule.close(group)
    assert rule.group_for("key", "rack") is None
    assert not rule.open_groups


def test_a_group_takes_members_until_its_protection_would_be_too_late_for_the_first():
    assert placement().wait_s == 0.05
    assert placement(group_wait_s=0.2).wait_s == 0.2


@pytest.mark.parametrize(
    ("early", "partial", "expects"), [(False, True, True), (True, True, False), (True, False, True)]
)
def test_it_is_sealed_early_when_the_next_would_come_too_late(early, partial, expects):
    rule, group = placement(partial=partial, seal_early=early), group_of("rack")
    rule.gap.arrived(0.0)
    rule.gap.arrived(0.5)
    assert rule.expects_member(group, 0.4)
    assert rule.expects_member(group, 0.6) is expects


# ---- in the engine --------------------------------------------------------------------------------------------------


def test_a_group_that_does_not_fill_is_protected_all_the_same():
    run = scenario(arrivals=[0.0], tasks=[(0, NEVER, "never")])
    assert run.sends("parity 0") == [(0.020, "p0.0")]
    assert run.answers == {0: ("reconstructed", 0.051)}


def test_where_no_neighbour_is_expected_in_time_a_group_is_sealed_at_once():
    """One query every 0.1 s and 0.02 s to wait: the parity runs as soon as the rate is known, from the second on."""
    arrivals = [0.1 * i for i in range(4)]
    run = scenario(arrivals=arrivals, policy={"seal_early": True}, service=0.03)
    assert [at for at, _ in run.sends("parity 0")] == [0.020, 0.1, 0.2, 0.3]
    waits = scenario(arrivals=arrivals, service=0.03)
    assert [at for at, _ in waits.sends("parity 0")] == [0.020, 0.12, 0.22, 0.32]


def test_a_busy_pool_waits_for_its_neighbours_all_the_same():
    run = scenario(arrivals=[0.004 * i for i in range(12)], policy={"seal_early": True}, places=4)
    assert len(run.sends("parity 0")) == 6
    assert {task.group.size for task in run.tasks if task.kind is Kind.PROTECTION} == {2}


def test_a_protection_for_full_groups_only_is_never_sealed_early():
    run = scenario(arrivals=[0.0, 0.1, 0.2, 0.21], policy={"seal_early": True}, partial=False, service=0.03)
    assert len(run.sends("parity 0")) == 1


def test_a_protection_that_cannot_serve_part_groups_is_not_asked_to():
    run = scenario(arrivals=[0.0], tasks=[(0, NEVER, "never")], partial=False)
    assert run.sends("parity 0") == []
    assert run.failures == {0: ("deadline", 1.0)}
    assert run.nothing_left_over()


def test_a_protection_nobody_needs_is_not_launched():
    run = scenario(arrivals=[0.0], tasks=[(0, 0.005, "ok")])
    assert run.sends("parity 0") == []
    assert run.nothing_left_over()


def test_a_queued_protection_is_dropped_when_its_group_is_done():
    run = scenario(arrivals=[0.0] * 4, tasks=[("parity 0", 0.5, "ok")])
    assert len(run.sends("parity 0")) == 1
    assert run.nothing_left_over()


def test_members_of_one_group_are_on_different_instances():
    run = scenario(arrivals=[0.0] * 6, deployed=3, places=2, k=3)
    for task in run.tasks:
        if task.kind is Kind.PROTECTION:
            on = [t.endpoint.instance for t in run.tasks if t.kind is Kind.DEPLOYED and t.group is task.group]
            assert len(set(on)) == len(on) == 3


def test_members_of_one_group_are_spread_over_failure_domains():
    run = scenario(arrivals=[0.0] * 4, domains=["east", "east", "west", "west"])
    groups = {}
    for task in run.tasks:
        if task.kind is Kind.DEPLOYED:
            groups.setdefault(task.group.id, []).append(task.place.domain)
    assert sorted(map(sorted, groups.values())) == [["east", "west"], ["east", "west"]]


def test_with_one_failure_domain_groups_still_fill():
    run = scenario(arrivals=[0.0] * 2, domains=["only"] * 4)
    assert len(run.sends("parity 0")) == 1


def test_queries_of_different_keys_never_share_a_group():
    run = scenario(arrivals=[0.0, 0.0], keys={1: "other"}, tasks=[(0, NEVER, "never"), (1, NEVER, "never")])
    assert len(run.sends("parity 0")) == 2
    assert {source for source, _ in run.answers.values()} == {"reconstructed"}


def test_a_query_without_a_key_is_never_grouped():
    run = scenario(arrivals=[0.0, 0.0], keys={0: None, 1: None}, tasks=[(0, NEVER, "never")])
    assert run.sends("parity 0") == []
    assert run.failures == {0: ("deadline", 1.0)}
