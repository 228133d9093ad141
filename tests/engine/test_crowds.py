"""What changes when most places are taken, and whom a crowd's queries go to."""

import pytest

from ts_parity.testing import scenario

NEVER = 0.0
CROWD = [0.041 * burst for burst in range(50) for _ in range(12)]
"""Twelve queries of 10 ms at once for four machines, and then a moment in which all are idle."""


@pytest.mark.parametrize(("shared", "source"), [(True, "deployed"), (False, "reconstructed")])
def test_a_crowded_pool_launches_no_groups_protections_on_its_own_machines(shared, source):
    """In the short moments in which one is idle they would be in the way; on machines of their own they are not."""
    run = scenario(
        arrivals=CROWD,
        tasks=[(500, 3.0, "ok")],
        code="student",
        shared=shared,
        protections=4,
        policy={"deadline_s": 9.0},
    )
    assert run.answers[500][0] == source


@pytest.mark.parametrize(("arrivals", "after"), [(CROWD, 0.06), ([0.1 * n for n in range(600)], 0.05)])
def test_the_fuller_the_later_is_a_backup_launched(arrivals, after):
    policy = {"launch": "late", "launch_after_s": 0.05, "launch_stretch": 0.2}
    tasks = [(599, NEVER, "never")]
    run = scenario(arrivals=arrivals, tasks=tasks, code="student", shared=True, protections=4, policy=policy)
    [(sent_at, _)] = run.sends(599)
    [(at, _)] = run.sends("parity 0")
    assert at - sent_at == pytest.approx(after, abs=0.0005)


def test_a_second_copy_goes_to_an_idle_machine_or_to_none():
    """Three machines with two places: the query's own never answers; the second is busy, the third is as well."""
    policy = {"hedge_ratio": 1.0, "hedge_after_s": 0.05}
    tasks = [(0, NEVER, "never"), (1, NEVER, "never"), (2, 0.2, "ok")]
    run = scenario(arrivals=[0.0, 0.0, 0.0], tasks=tasks, code=None, deployed=3, places=2, policy=policy)
    assert run.sends("hedge 0") == [(0.2, "d2")]


def test_a_second_attempt_goes_to_another_failure_domain():
    """d1 is as idle as d2, and was asked longer ago; but it stands in the rack of what has just failed."""
    run = scenario(
        arrivals=[0.0, 0.1, 0.2, 0.3],
        tasks=[(3, 0.001, "fail")],
        code=None,
        deployed=3,
        domains=["rack", "rack", "elsewhere"],
    )
    assert [run.sends(number)[0][1] for number in range(4)] == ["d0", "d1", "d2", "d0"]
    assert run.sends(3)[1] == (0.301, "d2")


def test_of_the_overdue_the_least_busy_gets_one_more():
    """Both machines' replies are overdue when two more queries come: each machine gets one, not d0 both."""
    policy = {"spare_places": 2, "reconstruct_after_s": 0.02}
    run = scenario(
        arrivals=[0.0, 0.0, 0.03, 0.03],
        tasks=[(number, NEVER, "never") for number in range(4)],
        code=None,
        deployed=2,
        policy=policy,
    )
    assert {run.sends(number)[0][1] for number in (2, 3)} == {"d0", "d1"}


def test_a_slow_endpoint_helps_only_where_more_wait_than_there_are_machines():
    """It is out for its slowness; three more than there are places wait their turn, and it is left alone."""
    arrivals = [*(n * 0.04 for n in range(60)), *([2.45] * 5)]
    policy = {"slow_factor": 3.0, "slow_until_out": 1, "max_out": 0.5, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert [change.endpoint for change in run.scheduler.changes] == ["d0"]
    assert [endpoint for at, _, endpoint in run.sent if at >= 2.45] == ["d1", "d2", "d1", "d2", "d1"]


def test_a_slow_endpoint_helps_as_soon_as_the_crowd_is_there():
    """The fourth to wait makes it one. It helped only when the next answer came."""
    arrivals = [*(n * 0.04 for n in range(60)), *([2.45] * 6)]
    policy = {"slow_factor": 3.0, "slow_until_out": 1, "max_out": 0.5, "out_s": 50.0}
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=policy, slow={"d0": (1.0, 0.05)})
    assert [(at, endpoint) for at, _, endpoint in run.sent if at >= 2.45][:3] == [
        (2.45, "d1"),
        (2.45, "d2"),
        (2.45, "d0"),
    ]
