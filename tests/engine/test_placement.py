"""Placement alone: which group a query joins, and when it takes no more."""

import pytest

from ts_parity.codes import make_code
from ts_parity.engine import plain
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.placement import Placement
from ts_parity.engine.release import Release

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
