"""Launch: when a protection is asked to run; the rule alone, and at work in virtual time."""

import math

import pytest

from tests.engine.races import NEVER, late
from ts_parity.codes import make_code
from ts_parity.engine import (
    LOSSLESS,
    Arrived,
    Failed,
    Fleet,
    Query,
    Rejected,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.launch import SHED_LOAD, Launch
from ts_parity.engine.policy import LoadMeter
from ts_parity.testing import POOL, fleet, scenario

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


@pytest.mark.parametrize(
    ("cost", "launched"), [(0.0, 0.90), (0.1, 0.90), (0.25, 0.94), (1.0, 0.985), (20.0, 0.999), (1e9, 0.999)]
)
def test_the_dearer_a_protection_the_fewer_queries_are_late_enough_for_it(cost, launched):
    """Where nothing is slow, three tenths of the budget for extra work go into it."""
    latency = LatencyWindow(1000)
    for n in range(1000):
        latency.add(1.0 + 0.0001 * (n * 619 % 1000))
    rule = Launch(plain(extra_work=0.05), latency, LoadMeter())
    rule.adopt(make_code("student", 1, 1), True, True, cost)
    assert rule.after_s == pytest.approx(1.0 + 0.1 * launched, abs=0.0011)


def test_without_a_budget_there_is_a_time_all_the_same():
    latency = LatencyWindow(1000)
    for n in range(1000):
        latency.add(1.0 + 0.0001 * (n * 619 % 1000))
    rule = Launch(plain(extra_work=0.0), latency, LoadMeter())
    rule.adopt(make_code("student", 1, 1), True, True, 0.25)
    assert rule.after_s == pytest.approx(1.0999, abs=0.0011)


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
    ("code", "least", "why_not", "suits"),
    [
        ("student", 0.0, {}, True),
        ("student", LOSSLESS, {}, False),
        ("student", 0.999, {}, True),
        ("exact", LOSSLESS, {}, True),
        ("student", 0.0, {"late": True}, False),
        ("student", 0.0, {"kills": 1}, False),
        ("student", 0.0, {"key": None}, False),
        ("student", 0.0, {"group": group_of()}, False),
    ],
)
def test_whom_a_backup_is_launched_for(code, least, why_not, suits):
    query = Query(0, "m", "key", least=least)
    for name, value in why_not.items():
        setattr(query, name, value)
    assert launch().suits(query, make_code(code, 1, 1)) is suits


@pytest.mark.parametrize(("code", "suits"), [("student", False), ("exact", True)])
def test_nothing_is_launched_whose_answer_may_not_be_given(code, suits):
    assert launch(differing=0.0).suits(Query(0, "m", "key"), make_code(code, 1, 1)) is suits


# ---- in the engine --------------------------------------------------------------------------------------------------

CROWD = {"launch_waiting": 1.0, "launch_after_s": 0.02, "reconstruct_after_s": 0.02}

BURSTS = [0.041 * burst for burst in range(50) for _ in range(12)]
"""Twelve queries of 10 ms at once for four machines, and then a moment in which all are idle."""


def test_nothing_is_launched_for_queries_in_time():
    run = late(arrivals=[0.0, 0.0, 0.03])
    assert set(run.answers.values()) == {("deployed", 0.010), ("deployed", 0.040)}
    assert all("parity" not in what for _, what, _ in run.sent)
    assert run.nothing_left_over()


def test_a_late_query_gets_a_backup_in_another_domain():
    """d1 is as idle as d2, but stands in d0's rack."""
    racks = ["rack", "rack", "elsewhere", "elsewhere"]
    run = late(arrivals=[0.0], tasks=[(0, NEVER, "never"), ("parity 0", 0.004, "ok")], domains=racks)
    assert run.sends("parity 0") == [(0.050, "p0.2")]
    assert run.answers == {0: ("reconstructed", 0.054)}
    assert run.nothing_left_over()


def test_late_queries_share_a_launch():
    run = late(arrivals=[0.0, 0.0, 0.0], tasks=[(n, NEVER, "never") for n in range(3)], deployed=4, k=4)
    assert len(run.sends("parity 0")) == 1
    assert run.answers == dict.fromkeys(range(3), ("reconstructed", 0.06))


def test_the_deployed_answer_wins_if_it_comes_first():
    run = late(arrivals=[0.0], tasks=[(0, 0.055, "ok"), ("parity 0", 0.010, "ok")])
    assert run.answers == {0: ("deployed", 0.055)}
    assert run.nothing_left_over()


def test_a_backup_launched_early_waits_for_its_release():
    run = late(arrivals=[0.0], tasks=[(0, NEVER, "never")], policy={"launch_after_s": 0.02})
    assert run.sends("parity 0")[0][0] == 0.020
    assert run.answers == {0: ("reconstructed", 0.050)}


def test_late_queries_go_before_waiting_ones():
    """Two machines: both are busy, one for ever; what comes free first helps the late query."""
    run = late(
        arrivals=[0.0, 0.0, 0.01],
        tasks=[(0, NEVER, "never"), (1, 0.055, "ok")],
        deployed=2,
        protections=2,
    )
    assert run.sends("parity 0") == [(0.055, "p0.1")]
    assert run.sends(2) == [(0.065, "d1")]
    assert run.answers[0] == ("reconstructed", 0.065)


def test_a_failed_query_is_launched_at_once_and_not_failed():
    run = late(arrivals=[0.0], tasks=[(0, 0.005, "fatal"), ("parity 0", 0.004, "ok")])
    assert run.answers == {0: ("reconstructed", 0.009)}
    assert run.failures == {}


def test_when_the_backup_fails_too_the_query_fails():
    run = late(arrivals=[0.0], tasks=[(0, 0.005, "fatal"), ("parity 0", 0.004, "fatal")])
    assert run.failures == {0: ("failed", 0.009)}
    assert run.nothing_left_over()


def test_a_query_that_refuses_approximate_answers_gets_no_student_but_an_exact_backup():
    for code, answered in (("student", False), ("exact", True)):
        run = late(arrivals=[0.0], exact=[0], tasks=[(0, NEVER, "never")], code=code)
        assert (0 in run.answers) == answered
        assert len(run.sends("parity 0")) == answered


def test_a_client_that_leaves_takes_its_launch_along():
    run = late(arrivals=[0.0, 0.0], tasks=[(0, NEVER, "never"), (1, NEVER, "never")], abandons={0: 0.04})
    assert [at for at, _ in run.sends("parity 0")] == [0.05]
    assert run.scheduler.sent["late"] == 1, "the other one's alone"
    assert run.nothing_left_over()


def test_a_query_that_waits_too_long_for_a_place_gets_a_backup_instead():
    """One machine, busy for 30 ms: the second query is due at 20 ms and takes the first place; it is never sent."""
    run = late(
        arrivals=[0.0, 0.0],
        tasks=[(0, 0.030, "ok"), ("parity 0", 0.004, "ok")],
        deployed=1,
        protections=1,
        policy=CROWD,
    )
    assert run.sends("parity 0") == [(0.030, "p0.0")]
    assert run.sends(1) == []
    assert run.answers[1] == ("reconstructed", 0.034)
    assert run.nothing_left_over()


def test_when_that_backup_fails_the_query_is_sent_after_all():
    run = late(
        arrivals=[0.0, 0.0],
        tasks=[(0, 0.030, "ok"), ("parity 0", 0.004, "fatal")],
        deployed=1,
        protections=1,
        policy=CROWD,
    )
    assert run.sends(1) == [(0.034, "d0")]
    assert run.answers[1] == ("deployed", 0.044)
    assert run.nothing_left_over()


def test_when_the_backup_of_a_query_that_has_failed_fails_too_it_is_tried_again():
    """Its second attempt, which the budget has paid for, was waiting for the busy machine."""
    run = late(
        arrivals=[0.0, 0.0],
        tasks=[(0, 0.001, "fail"), (1, 0.060, "ok"), ("parity 0", 0.004, "fail")],
        deployed=2,
        shared=False,
        protections=1,
    )
    assert run.sends("parity 0")[0] == (0.001, "p0.0")
    assert run.sends(0) == [(0.0, "d0"), (0.005, "d0")]
    assert run.answers[0] == ("deployed", 0.015)
    assert run.nothing_left_over()


def test_a_waiting_query_that_refuses_approximate_answers_goes_on_waiting():
    run = late(arrivals=[0.0, 0.0], exact=[1], tasks=[(0, 0.030, "ok")], deployed=1, protections=1, policy=CROWD)
    assert run.answers[1] == ("deployed", 0.040)


def test_waiting_queries_get_no_backup_unless_asked_for():
    """The second query has waited for 30 ms when it is sent, and a backup is launched after 20."""
    policy = {**CROWD, "launch_waiting": 0.0}
    run = late(arrivals=[0.0, 0.0], tasks=[(0, 0.030, "ok")], deployed=1, protections=1, policy=policy)
    assert run.sends("parity 0") == []
    assert run.answers[1] == ("deployed", 0.040)


def test_a_late_query_whose_pool_is_gone_fails_once():
    policy = plain(launch="late", launch_after_s=0.5)
    scheduler = Scheduler(fleet(deployed=2, code="student", k=1), policy)
    first, _ = (scheduler.query_arrived(Query(n, POOL, "same"), 0.0)[0] for n in (0, 1))
    scheduler.task_done(first.task, Failed("refused", retry=False), 0.001)  # its backup takes the only place for it
    [third] = scheduler.query_arrived(Query(2, POOL, "same"), 0.002)
    assert scheduler.task_done(third.task, Failed("worker died"), 0.003) == []
    ended = [action.query.id for action in scheduler.endpoints_changed(Fleet((), (), ()), 0.004)]
    assert ended.count(2) == 1


def test_a_backup_whose_endpoint_is_gone_gives_the_place_that_is_free_to_its_query():
    """Its backup was rejected, then the machine for it went; the deployed machine had come free before."""
    policy = plain(launch="late", launch_after_s=0.02, launch_waiting=1.0, reconstruct_after_s=0.02)
    scheduler = Scheduler(fleet(deployed=1, code="student", k=1), policy)
    [own] = scheduler.query_arrived(Query(0, POOL, "same", least=LOSSLESS), 0.0)
    assert scheduler.query_arrived(Query(1, POOL, "same"), 0.0) == []
    [backup] = [a for a in scheduler.tick(0.02) if isinstance(a, Send)]
    scheduler.task_done(backup.task, Rejected(), 0.03)
    scheduler.task_done(own.task, Arrived(), 0.031)
    [sent] = scheduler.endpoints_changed(fleet(deployed=1, code="student", k=1, protections=0), 0.04)
    assert (sent.task.query.id, sent.task.endpoint.name) == (1, "d0")


@pytest.mark.parametrize(("shared", "source"), [(True, "deployed"), (False, "reconstructed")])
def test_a_crowded_pool_launches_no_groups_protections_on_its_own_machines(shared, source):
    """In the short moments in which one is idle they would be in the way; on machines of their own they are not."""
    run = scenario(
        arrivals=BURSTS,
        tasks=[(500, 3.0, "ok")],
        code="student",
        shared=shared,
        protections=4,
        policy={"deadline_s": 9.0},
    )
    assert run.answers[500][0] == source


@pytest.mark.parametrize(("arrivals", "after"), [(BURSTS, 0.06), ([0.1 * n for n in range(600)], 0.05)])
def test_the_fuller_the_later_is_a_backup_launched(arrivals, after):
    policy = {"launch": "late", "launch_after_s": 0.05, "launch_stretch": 0.2}
    tasks = [(599, NEVER, "never")]
    run = scenario(arrivals=arrivals, tasks=tasks, code="student", shared=True, protections=4, policy=policy)
    [(sent_at, _)] = run.sends(599)
    [(at, _)] = run.sends("parity 0")
    assert at - sent_at == pytest.approx(after, abs=0.0005)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def paid(tasks, **more):
    """What the budget of ten lost by two queries on one machine; protections cost a whole inference each."""
    policy = {**CROWD, "extra_work": 1e-9, "work_burst": 10.0}
    run = late(arrivals=[0.0, 0.0], tasks=tasks, deployed=1, protections=1, policy=policy, **more)
    assert len(run.answers) == 2
    return 10.0 - run.scheduler._life.work.tokens


def test_a_backup_in_its_querys_stead_costs_nothing():
    """The second query waits for the only machine, and its backup is all that is made of it."""
    assert paid([(0, 0.030, "ok"), ("parity 0", 0.005, "ok")]) == pytest.approx(0.0, abs=1e-6)


def test_it_is_paid_for_if_the_query_has_to_run_after_all():
    assert paid([(0, 0.030, "ok"), ("parity 0", 0.005, "fail")]) == pytest.approx(1.0, abs=1e-6)


def test_a_backup_of_a_query_that_runs_is_paid_for():
    policy = {"extra_work": 1e-9, "work_burst": 10.0}
    run = late(arrivals=[0.0], tasks=[(0, 0.5, "ok"), ("parity 0", 0.005, "ok")], policy=policy)
    assert run.answers[0][0] == "reconstructed"
    assert 10.0 - run.scheduler._life.work.tokens == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("extra_work", "backups"), [(1e-9, 1), (0.0, 0)])
def test_without_tokens_only_what_waits_gets_a_backup(extra_work, backups):
    policy = {**CROWD, "extra_work": extra_work, "work_burst": 0.5}
    run = late(arrivals=[0.0, 0.0], tasks=[(0, 0.2, "ok")], deployed=1, protections=1, policy=policy)
    assert len(run.sends("parity 0")) == backups
    assert len(run.answers) == 2


def test_backups_that_help_nobody_end_with_the_budget():
    """A crowd, and no answer that differs is wanted any more: whoever has a backup in its stead runs after all."""
    arrivals = [0.005 * n for n in range(200)]
    policy = {**CROWD, "extra_work": 0.05, "work_burst": 2.0, "differing": 0.0005, "deadline_s": 30.0}
    doubted = [("parity 0", 0.005, 0.5)] * 200
    run = late(arrivals=arrivals, tasks=doubted, deployed=1, protections=1, policy=policy, differing_left=0.0)
    assert {source for source, _ in run.answers.values()} == {"deployed"}
    assert len(run.answers) == 200
    assert 2.0 < len(run.sends("parity 0")) <= 2.0 + 0.05 * 200 + 1.0, "and the one that is out as nothing is left"


def test_without_tokens_nothing_that_has_to_be_paid_for_rides_along():
    """The first query runs and is late, the second waits. They would share a launch, if there were a token."""
    policy = {**CROWD, "extra_work": 1e-9, "work_burst": 0.5}
    shape = {"arrivals": [0.0, 0.0], "deployed": 1, "protections": 1, "shared": False, "policy": policy}
    run = late(**shape, tasks=[(0, 0.5, "ok"), ("parity 0", 0.005, "ok")])
    assert (run.answers[0][0], run.answers[1][0]) == ("deployed", "reconstructed")
    assert run.scheduler._life.work.tokens == pytest.approx(0.5, abs=1e-6)
    run = late(**{**shape, "policy": {**policy, "work_burst": 5.0}}, tasks=[(0, 0.5, "ok"), ("parity 0", 0.005, "ok")])
    assert run.answers[0][0] == "reconstructed"
