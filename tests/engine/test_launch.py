"""Launch alone: when a protection is asked to run."""

import math

import pytest

from ts_parity.codes import make_code
from ts_parity.engine import Query, plain
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.launch import SHED_LOAD, Launch
from ts_parity.engine.policy import LoadMeter

from .made import group_of


def launch(code="student", shared=True, partial=True, load=0.0, **policy):
    meter = LoadMeter()
    meter.value = load
    rule = Launch(plain(**policy), LatencyWindow(), meter)
    rule.adopt(make_code(code, 2, 1) if code else None, partial, shared)
    return rule


@pytest.mark.parametrize(
    ("when", "code", "shared", "partial", "late"),
    [
        ("auto", "student", True, True, True),
        ("auto", "student", False, True, False),
        ("group", "student", True, True, False),
        ("late", "student", False, True, True),
        ("late", "student", True, False, False),  # late queries seldom fill a group
        ("late", "sum", True, True, False),  # it needs the others' outputs
        ("late", None, False, True, False),
    ],
)
def test_late_or_with_the_group(when, code, shared, partial, late):
    assert launch(code, shared, partial, launch=when).late is late


@pytest.mark.parametrize(("load", "after"), [(0.0, 0.10), (0.5, 0.10), (0.75, 0.11), (1.0, 0.12), (3.0, 0.12)])
def test_the_fuller_the_later(load, after):
    assert launch(load=load, launch_after_s=0.1, launch_stretch=0.2).after_s == pytest.approx(after)


def test_a_query_without_a_place_gets_its_backup_first():
    policy = {"launch": "auto", "launch_after_s": 0.1, "launch_waiting": 0.5}
    assert launch(**policy).after_waiting_s == pytest.approx(0.05)
    assert launch(**policy, shared=False).after_waiting_s == math.inf
    assert launch(**{**policy, "launch_waiting": 0.0}).after_waiting_s == math.inf


@pytest.mark.parametrize(
    ("load", "shared", "sheds"), [(SHED_LOAD, True, False), (0.9, True, True), (0.9, False, False)]
)
def test_groups_go_without_where_queries_need_the_machines(load, shared, sheds):
    assert launch(load=load, shared=shared).sheds is sheds


@pytest.mark.parametrize(
    ("code", "exact", "why_not", "suits"),
    [
        ("student", False, {}, True),
        ("student", True, {}, False),
        ("exact", True, {}, True),
        ("student", False, {"late": True}, False),
        ("student", False, {"kills": 1}, False),
        ("student", False, {"key": None}, False),
        ("student", False, {"group": group_of()}, False),
    ],
)
def test_whom_a_backup_is_launched_for(code, exact, why_not, suits):
    query = Query(0, "m", "key", exact=exact)
    for name, value in why_not.items():
        setattr(query, name, value)
    assert Launch.suits(query, make_code(code, 1, 1)) is suits
