"""What the policy decides by itself: where a protection stands says when it is launched and when its answer is used."""

from dataclasses import replace

import pytest

from ts_parity.engine import Arrived, Fail, Failed, Policy, Query, Reason, Scheduler, Send, plain
from ts_parity.engine.policy import PLAIN
from ts_parity.testing import POOL, fleet, scenario

RECIPE = {name: getattr(Policy(), name) for name in PLAIN}
TIMES = {"launch_after_s": 0.05, "reconstruct_after_s": 0.05, "differing": 1.0}


def ours(**more):
    """The recipe, with times that a test can count."""
    return scenario(**more, policy={**RECIPE, **TIMES, **more.pop("policy", {})})


@pytest.mark.parametrize("code", ["student", "exact"])
def test_a_backup_beside_the_deployed_model_is_launched_for_a_late_query_only(code):
    run = ours(code=code, shared=True, protections=4, arrivals=[0.0, 0.0], tasks=[(0, 0.0, "never")])
    assert [at for at, _ in run.sends("parity 0")] == [0.05]
    assert run.answers[0] == ("reconstructed", 0.06)


@pytest.mark.parametrize("code", ["student", "exact"])
def test_a_backup_on_machines_of_its_own_is_launched_with_its_group(code):
    run = ours(code=code, arrivals=[0.0, 0.0])
    assert [at for at, _ in run.sends("parity 0")] == [0.0]


def test_a_parity_model_is_always_launched_with_its_group():
    for shared in (False, True):
        run = ours(code="sum", shared=shared, arrivals=[0.0, 0.0], deployed=6, protections=6)
        assert [at for at, _ in run.sends("parity 0")] == [0.0]


def test_a_protection_that_takes_only_whole_groups_is_not_launched_late():
    run = ours(code="student", shared=True, protections=4, partial=False, arrivals=[0.0, 0.0])
    assert [at for at, _ in run.sends("parity 0")] == [0.0]


def test_when_its_machines_serve_no_deployed_model_any_more_the_backup_goes_with_the_group():
    whole = fleet(deployed=4, code="student", shared=True, protections=2)
    scheduler = Scheduler(whole, Policy())
    [pool] = scheduler.pools()
    assert pool.launch.late
    apart = tuple(one for one in whole.endpoints if one.row is not None or one.name in ("d2", "d3"))
    scheduler.endpoints_changed(replace(whole, endpoints=apart), 1.0)
    assert not pool.launch.late
    scheduler.endpoints_changed(whole, 2.0)
    assert pool.launch.late


def test_a_late_backups_answer_may_be_used_from_its_launch_on():
    """It was asked for because its query was late; one launched with its group waits for the later quantile."""
    seen = [0.010 + 0.0001 * n for n in range(100)]
    quantiles = {}
    for shared in (True, False):
        scheduler = Scheduler(fleet(code="student", shared=shared, protections=4), Policy(launch_stretch=0.0))
        [pool] = scheduler.pools()
        assert pool.pool.name == POOL
        for latency in seen:
            pool.latency.add(latency)
        quantiles[shared] = (pool.release.after_s, pool.launch.after_s)
    assert quantiles[True][0] <= quantiles[True][1], "no launch is for nothing"
    assert quantiles[True][0] < quantiles[False][0]


def test_a_late_query_gets_a_second_copy_where_there_is_no_protection():
    run = scenario(code=None, arrivals=[0.0], tasks=[(0, 0.0, "never")], policy={**RECIPE, "hedge_after_s": 0.03})
    assert run.answers == {0: ("hedged", 0.04)}


def test_durations_are_told_in_other_units():
    told = Policy(hedge_after_s=0.1).in_units(0.05)
    assert (told.hedge_after_s, told.out_s, told.reconstruct_after_s) == (2.0, 20.0, None)
    assert told.in_units(20.0) == Policy(hedge_after_s=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"reconstruct_quantile": 1.0}, {"deadline_s": -1.0}, {"max_attempts": 0}, {"retry_ratio": float("nan")}],
)
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plain(**wrong)


@pytest.mark.parametrize(
    ("setting", "value"), [("launch", "never"), ("balance", "best"), ("hedge_quantile", 1.0), ("differing", -0.1)]
)
def test_settings_that_make_no_sense(setting, value):
    with pytest.raises(ValueError, match=setting):
        plain(**{setting: value})


def on(actions):
    """What is sent."""
    return [action.task for action in actions if isinstance(action, Send)]


def test_settings_change_while_queries_are_under_way():
    """A query keeps the deadline that it came with; those that come now have the new one."""
    scheduler = Scheduler(fleet(deployed=2, code=None), plain(deadline_s=5.0, max_waiting=1))
    queries = [Query(number, POOL, None) for number in range(6)]
    for query in queries[:3]:
        scheduler.query_arrived(query, 0.0)
    assert [query.waiting for query in queries[:3]] == [False, False, True]
    assert scheduler.policy_changed(plain(deadline_s=1.0, max_waiting=2), 0.5) == []
    scheduler.query_arrived(queries[3], 0.5)
    assert queries[3].waiting
    assert [query.deadline_at for query in queries[:4]] == [5.0, 5.0, 5.0, 1.5]
    [refused] = scheduler.query_arrived(queries[4], 0.5)
    assert isinstance(refused, Fail)
    scheduler.policy_changed(plain(deadline_s=1.0, max_waiting=1), 0.5)
    assert queries[3].waiting, "it was let in"
    [refused] = scheduler.query_arrived(queries[5], 0.5)
    assert refused.reason is Reason.OVERLOADED


def test_a_change_of_settings_keeps_what_was_measured_and_who_is_out():
    numbers = {"failures_until_out": 1, "out_s": 20.0}
    scheduler = Scheduler(fleet(deployed=3, code="student", shared=True, protections=2), Policy(**numbers))
    [pool] = scheduler.pools()
    for number in range(9):
        for task in on(scheduler.query_arrived(Query(number, POOL, None), number)):
            outcome = Failed("died") if task.endpoint.name == "d0" else Arrived(False)
            for again in on(scheduler.task_done(task, outcome, number + 0.1)):
                scheduler.task_done(again, Arrived(False), number + 0.2)
    before, usual_s, trust = scheduler.snapshot(), pool.latency.median, pool.trust
    assert before["endpoints"]["d0"]["health"] == "out"
    assert usual_s
    scheduler.policy_changed(Policy(extra_work=0.2, differing=0.01, retry_ratio=0.3, target_s=0.5, **numbers), 9.0)
    after = scheduler.snapshot()
    assert after["endpoints"] == before["endpoints"]
    assert (pool.latency.median, pool.trust) == (usual_s, trust)
    assert after["work_tokens"] == before["work_tokens"]
    assert after["retry_tokens"] == before["retry_tokens"]


def test_a_lower_share_of_extra_work_launches_later_at_once():
    scheduler = Scheduler(fleet(deployed=3, code="student", shared=True, protections=2), Policy(extra_work=0.5))
    [pool] = scheduler.pools()
    for number in range(100):
        pool.latency.add(0.01 * (number + 1))
    before = pool.launch.after_s
    scheduler.policy_changed(Policy(extra_work=0.01), 1.0)
    assert pool.launch.after_s > before


def test_an_endpoint_that_waited_for_a_probe_is_tried_when_there_are_none_any_more():
    scheduler = Scheduler(fleet(deployed=2, code=None), Policy(failures_until_out=1))
    [task] = on(scheduler.query_arrived(Query(1, POOL, None), 0.0))
    scheduler.task_done(task, Failed("died"), 0.1)
    assert scheduler.snapshot()["endpoints"][task.endpoint.name]["suspect"]
    scheduler.policy_changed(Policy(failures_until_out=1, extra_work=0.0), 0.2)
    scheduler.tick(5.0)
    assert not scheduler.snapshot()["endpoints"][task.endpoint.name]["suspect"]


def test_a_query_that_waits_for_a_retry_fails_when_there_will_be_none():
    scheduler = Scheduler(fleet(deployed=2, code=None), plain(retry_ratio=0.01, retry_burst=1.0))
    owing = [Query(number, POOL, None) for number in range(2)]
    tasks = [on(scheduler.query_arrived(query, 0.0))[0] for query in owing]
    for task in tasks:
        scheduler.task_done(task, Failed("no"), 0.1)
    assert [query.owes for query in owing] == [False, True]
    actions = scheduler.policy_changed(plain(retry_ratio=0.0, retry_burst=1.0), 0.1)
    assert [action.query for action in actions if isinstance(action, Fail)] == [owing[1]]


def test_a_rules_own_number_does_not_change():
    scheduler = Scheduler(fleet(deployed=2, code=None), plain())
    with pytest.raises(ValueError, match="max_attempts stays as it is"):
        scheduler.policy_changed(plain(max_attempts=5, extra_work=0.3), 0.0)
    assert scheduler.policy == plain()
