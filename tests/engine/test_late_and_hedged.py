"""Late launch, second copies, slow endpoints: the rules that go past the paper's, in virtual time."""

import pytest

from ts_parity.engine import Arrived, Failed, Fleet, Query, Rejected, Scheduler, Send, plain
from ts_parity.testing import POOL, fleet, scenario

NEVER = 0.0
LATE = {"launch": "late", "launch_after_s": 0.05, "reconstruct_after_s": 0.05}
STUDENT = {"code": "student", "k": 2, "shared": True, "protections": 4}


def late(**more):
    policy = {**LATE, **more.pop("policy", {})}
    return scenario(**{**STUDENT, **more}, policy=policy)


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


# ---- waiting for a place -------------------------------------------------------------------------------------------

CROWD = {"launch_waiting": 1.0, "launch_after_s": 0.02, "reconstruct_after_s": 0.02}


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


# ---- second copies -------------------------------------------------------------------------------------------------

HEDGE = {"hedge_ratio": 0.1, "hedge_burst": 1.0, "hedge_after_s": 0.03}


def hedged(**more):
    policy = {**HEDGE, **more.pop("policy", {})}
    return scenario(code=None, policy=policy, **more)


@pytest.mark.parametrize("outcome", ["fail", "fatal", "reject"])
def test_a_copy_that_fails_while_its_query_waits_to_be_tried_again_is_simply_gone(outcome):
    run = hedged(
        arrivals=[0.0, 0.035],
        tasks=[(0, 0.040, "fail"), ("hedge 0", 0.020, outcome), (1, 0.030, "ok")],
        deployed=3,
    )
    assert run.sends("hedge 0") == [(0.030, "d1")]
    assert [at for at, _ in run.sends(0)] == [0.0, 0.065]
    assert run.answers == {0: ("deployed", 0.075), 1: ("deployed", 0.065)}
    assert run.nothing_left_over()


def test_a_query_that_ends_while_it_waits_to_be_tried_again_ends_once():
    run = hedged(
        arrivals=[0.0, 0.035],
        tasks=[(0, 0.040, "fail"), ("hedge 0", 0.020, "fail"), (1, 0.100, "ok")],
        deadlines={0: 0.060},
        deployed=3,
    )
    assert run.failures == {0: ("deadline", 0.060)}
    assert len(run.sends(0)) == 2, "half of the time that was left was kept for an attempt anywhere"
    assert run.nothing_left_over()


LATE_AND_HEDGED = {"code": "student", "k": 1, "deployed": 3, "protections": 1, "shared": False}


@pytest.mark.parametrize("outcome", ["fail", "reject"])
def test_a_copy_that_fails_while_a_backup_runs_instead_of_the_query_does_not_start_it_again(outcome):
    run = late(
        arrivals=[0.0],
        **LATE_AND_HEDGED,
        policy={**HEDGE, "launch_after_s": 0.9, "max_attempts": 2, "retry_ratio": 0.0, "retry_burst": 2.0},
        tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, outcome), ("parity 0", 0.015, "fail"), ("retry 0", 0.015, "fail")],
    )
    assert run.sends("parity 0") == [(0.04, "p0.0")]
    assert len(run.sends(0)) == 2
    assert run.failures == {0: ("failed", 0.07)}


def test_a_copy_that_is_rejected_gives_no_attempt_beyond_the_budget():
    run = hedged(
        arrivals=[0.0],
        deployed=3,
        policy={"max_attempts": 1},
        tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "reject")],
    )
    assert run.sends(0) == [(0.0, "d0")]
    assert run.failures == {0: ("failed", 0.05)}


def test_who_was_rejected_late_is_not_refused_while_its_copy_runs():
    run = hedged(
        arrivals=[0.0], deployed=2, policy={"max_wait_s": 0.05}, tasks=[(0, 0.06, "reject"), ("hedge 0", 0.04, "ok")]
    )
    assert run.answers == {0: ("hedged", 0.07)}


def test_no_copy_is_sent_while_a_retry_waits():
    run = hedged(arrivals=[0.0, 0.019], deployed=2, tasks=[(0, 0.2, "ok"), (1, 0.001, "fail"), ("hedge 0", 0.15, "ok")])
    assert run.sends(1) == [(0.019, "d1"), (0.07, "d1")]
    assert run.sends("hedge 0") == [(0.08, "d1")]


def test_a_retry_waits_for_its_copy_rather_than_ask_again_who_has_failed():
    run = hedged(arrivals=[0.0], deployed=2, tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "ok")])
    assert len(run.sends(0)) == 1
    assert run.answers == {0: ("hedged", 0.05)}
    run = hedged(arrivals=[0.0], deployed=2, tasks=[(0, 0.04, "fail"), ("hedge 0", 0.02, "fail")])
    assert [at for at, _ in run.sends(0)] == [0.0, 0.05]


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
    [own] = scheduler.query_arrived(Query(0, POOL, "same", exact=True), 0.0)
    assert scheduler.query_arrived(Query(1, POOL, "same"), 0.0) == []
    [backup] = [a for a in scheduler.tick(0.02) if isinstance(a, Send)]
    scheduler.task_done(backup.task, Rejected(), 0.03)
    scheduler.task_done(own.task, Arrived(), 0.031)
    [sent] = scheduler.endpoints_changed(fleet(deployed=1, code="student", k=1, protections=0), 0.04)
    assert (sent.task.query.id, sent.task.endpoint.name) == (1, "d0")


def test_a_second_copy_goes_to_another_domain_and_may_win():
    run = hedged(arrivals=[0.0], tasks=[(0, NEVER, "never")], deployed=3, domains=["a", "a", "b"])
    assert run.sends("hedge 0") == [(0.030, "d2")]
    assert run.answers == {0: ("hedged", 0.040)}
    assert run.nothing_left_over()


def test_without_a_token_the_query_itself_is_untouched():
    run = hedged(arrivals=[0.0, 0.0], tasks=[(0, NEVER, "never"), (1, 0.060, "ok")])
    assert len(run.sends("hedge 0")) == 1
    assert run.sends("hedge 1") == []
    assert run.answers[1] == ("deployed", 0.060)


def test_no_second_copy_on_a_busy_pool():
    """From 50 ms on d0 has a place, but is not idle."""
    tasks = [(0, 0.050, "ok"), (1, 0.060, "ok"), (2, 0.100, "ok"), (3, 0.100, "ok")]
    run = hedged(arrivals=[0.0] * 4, tasks=tasks, deployed=2, places=2)
    assert run.sends("hedge 0") == run.sends("hedge 1") == []
    assert run.answers[1] == ("deployed", 0.060)


@pytest.mark.parametrize("outcome", ["fail", "fatal", "reject"])
def test_a_copy_that_fails_does_not_fail_its_query(outcome):
    run = hedged(arrivals=[0.0], tasks=[(0, 0.070, "ok"), ("hedge 0", 0.005, outcome)])
    assert run.answers == {0: ("deployed", 0.070)}
    assert run.sends(0) == [(0.0, "d0")], "nor is it sent again"


def test_a_query_whose_own_task_fails_waits_for_its_copy():
    run = hedged(arrivals=[0.0], tasks=[(0, 0.035, "fatal"), ("hedge 0", 0.020, "ok")])
    assert run.answers == {0: ("hedged", 0.050)}


def test_a_copy_is_not_compared_with_a_stream_that_is_under_way():
    scheduler = Scheduler(fleet(deployed=3, code=None, proved=False), plain(hedge_ratio=1.0, hedge_after_s=0.05))
    [own] = scheduler.query_arrived(Query(0, POOL, "same"), 0.0)
    [copy] = [action for action in scheduler.tick(0.05) if isinstance(action, Send)]
    scheduler.answer_started(own.task, 0.06)
    assert scheduler.task_done(copy.task, Arrived(), 0.07) == []


def test_a_second_copy_waits_until_the_backup_has_had_its_time():
    """Backups take 4 ms and are launched after 20: a copy goes out at 24, not at the usual quantile of 10 ms."""
    policy = {"hedge_ratio": 1.0, "launch_after_s": 0.02, "reconstruct_after_s": 0.02, "deadline_s": 50.0}
    lost = [(number, NEVER, "never") for number in range(30, 60)]
    backups = [*[("parity 0", 0.004, "ok")] * 29, ("parity 0", NEVER, "never")]
    run = late(
        arrivals=[0.1 * number for number in range(60)],
        tasks=[*lost, *backups],
        deployed=40,
        protections=40,
        policy=policy,
    )
    [(at, _)] = run.sends("hedge 59")
    assert at == pytest.approx(5.9 + 0.024, abs=1e-6)
    assert run.sends("hedge 58") == []


# ---- slow endpoints ------------------------------------------------------------------------------------------------

SLOW = {"slow_factor": 3.0, "slow_until_out": 2, "out_s": 1.0, "deadline_s": 100.0}


def test_an_endpoint_that_answers_far_too_slowly_is_taken_out_and_tried_again():
    """Of three, d0 becomes five times slower; the third slow answer is the trial, and it stays out for longer."""
    arrivals = [n * 0.02 for n in range(200)]
    policy = {**SLOW, "max_out": 0.34}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    on_d0 = [at for at, what, endpoint in run.sent if endpoint == "d0" and at >= 1.0]
    assert len(on_d0) <= 4
    assert any(at > 2.0 for at in on_d0), "a single trial brings it back or keeps it out"
    assert len(run.answers) == 200


def test_an_endpoint_that_is_out_is_tried_with_second_copies():
    """No query waits for what it does: with a budget for copies, after two slow answers none is late any more."""
    arrivals = [n * 0.02 for n in range(200)]
    policy = {**SLOW, "hedge_ratio": 0.1, "hedge_after_s": 10.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    tried = [at for at, what, endpoint in run.sent if endpoint == "d0" and at > 2.5]
    assert tried
    assert all(what.startswith("hedge") for at, what, endpoint in run.sent if endpoint == "d0" and at > 2.5)
    late_ones = [number for number, (_, at) in run.answers.items() if at - arrivals[number] > 0.02 and at > 2.5]
    assert late_ones == []


def test_never_more_than_the_allowed_share_is_out():
    """Of five, two become slow at once; the others could bear the load without both."""
    arrivals = [n * 0.01 for n in range(400)]
    slow = {"d0": (1.0, 0.05), "d1": (1.0, 0.05)}
    policy = {**SLOW, "slow_until_out": 1, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=5, policy={**policy, "max_out": 0.4}, slow=slow)
    assert {change.endpoint for change in run.scheduler.changes} == {"d0", "d1"}
    run = scenario(arrivals=arrivals, code=None, deployed=5, policy={**policy, "max_out": 0.34}, slow=slow)
    assert len(run.scheduler.changes) == 1
    assert len(run.answers) == 400


def test_a_slow_endpoint_stays_where_the_others_could_not_bear_the_load():
    """Two machines, one five times slower, as many queries as both can do: it is needed."""
    arrivals = [n * 0.009 for n in range(600)]
    policy = {**SLOW, "max_out": 0.5}
    run = scenario(arrivals=arrivals, code=None, deployed=2, policy=policy, slow={"d0": (2.0, 0.05)})
    assert not run.scheduler.changes
    assert sum(endpoint == "d0" for at, _, endpoint in run.sent if at > 2.5) > 10
    assert len(run.answers) == 600


def test_a_slow_endpoint_that_is_out_helps_when_many_wait():
    """It is taken out in quiet times; then a crowd comes, and it takes its share before its time out is over."""
    arrivals = [*(n * 0.04 for n in range(60)), *([2.45] * 40)]
    policy = {**SLOW, "slow_until_out": 1, "max_out": 0.5, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert [change.endpoint for change in run.scheduler.changes] == ["d0"]
    quiet = [at for at, _, endpoint in run.sent if endpoint == "d0" and 1.7 < at < 2.4]
    crowded = [at for at, _, endpoint in run.sent if endpoint == "d0" and at >= 2.45]
    assert quiet == []
    assert crowded
    assert len(run.answers) == 100


# ---- the instruments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("launch", "never"), ("balance", "best"), ("hedge_quantile", 1.0), ("max_out", 1.0)]
)
def test_settings_that_make_no_sense(setting, value):
    with pytest.raises(ValueError, match=setting):
        plain(**{setting: value})
