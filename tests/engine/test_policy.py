"""What the policy decides by itself: where a protection stands says when it is launched and when its answer is used."""

from dataclasses import replace

import pytest

from ts_parity.engine import (
    Policy,
    Scheduler,
    plain,
)
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
