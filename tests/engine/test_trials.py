"""Protections on trial, in virtual time: they are run beside, answer nobody, and take nothing from anybody."""

from dataclasses import replace

import pytest

from ts_parity.engine import Arrived, Compare, Query, Scheduler, Send, plain
from ts_parity.engine.trials import MOST
from ts_parity.engine.trust import TRIAL
from ts_parity.testing import OUTCOMES, POOL, fleet, scenario

NEVER = 1000.0
PACE = [0.05 * n for n in range(60)]
"""Slow enough that places are idle between them."""


def on_trial(**more):
    return scenario(**{"arrivals": PACE, "proved": False, **more})


def trust(run):
    [pool] = run.scheduler.pools()
    return pool.trust


@pytest.mark.parametrize(("code", "k"), [("exact", 1), ("exact", 2), ("student", 1), ("sum", 2), ("concat", 2)])
@pytest.mark.parametrize("launch", ["group", "late"])
def test_a_trial_ends_after_enough_comparisons(code, k, launch):
    run = on_trial(code=code, k=k, policy={"launch": launch, "group_wait_s": 0.2})
    assert trust(run).in_use
    assert len(run.compared) >= TRIAL
    assert {kind for _, kind, _ in run.compared} == {"finish" if code in ("sum", "concat") else "protection"}
    assert {source for source, _ in run.answers.values()} == {"deployed"}
    assert run.nothing_left_over()


@pytest.mark.parametrize("code", ["exact", "sum"])
def test_nobody_is_answered_by_a_protection_on_trial(code):
    run = on_trial(code=code, arrivals=[0.0, 0.0], tasks=[(0, NEVER, "never")], deployed=3)
    assert run.sends("parity 0"), "it is run"
    assert run.failures == {0: ("deadline", 1.0)}
    assert run.answers == {1: ("deployed", 0.010)}


def test_every_query_is_served_as_if_there_were_no_protection():
    plain = scenario(arrivals=PACE, code=None)
    tried = on_trial(code="exact")
    assert {n: at for n, (_, at) in tried.answers.items()} == {n: at for n, (_, at) in plain.answers.items()}


def test_every_member_of_a_parity_group_is_decoded_as_if_its_output_were_missing():
    run = on_trial(code="sum", arrivals=[0.0, 0.0])
    assert run.sends("finish 0")
    assert run.sends("finish 1")
    assert [query for query, _, _ in run.compared] == [0, 1]


def test_both_rows_of_a_backup_are_tried():
    run = on_trial(code="exact", k=2, r=2, arrivals=[0.0, 0.0])
    assert sorted(query for query, _, _ in run.compared) == [0, 0, 1, 1]


def test_a_machine_that_serves_is_left_to_its_queries():
    """One machine hosts model and student; while it is busy the student is not run."""
    run = on_trial(code="exact", k=1, deployed=1, shared=True, arrivals=[0.0, 0.0, 0.0])
    assert run.sends("parity 0")[0] == (0.030, "p0.0"), "after the last query"
    assert {source for source, _ in run.answers.values()} == {"deployed"}
    assert [at for _, at in run.answers.values()] == [0.010, 0.020, 0.030]


def test_a_contradiction_takes_it_out_and_it_is_run_no_more():
    run = on_trial(code="exact", k=1, findings=["agreed", "differed"])
    assert not trust(run).in_use
    assert len(run.compared) == 2
    assert len(run.sends("parity 0")) == 2


def test_it_is_tried_again_after_a_pause():
    run = on_trial(code="exact", k=1, findings=["differed"], arrivals=[0.0, *(40 + at for at in PACE)], until=200.0)
    assert trust(run).in_use, "the second trial is twice as long"
    assert len(run.compared) >= 2 * TRIAL


def test_a_rescued_query_is_compared_with_its_own_late_answer():
    late = len(PACE)
    run = on_trial(code="exact", k=1, arrivals=[*PACE, 4.0], tasks=[(late, 0.3, "ok")])
    assert run.answers[late] == ("reconstructed", 4.05)
    assert run.compared[-1] == (late, "protection", "agreed")


@pytest.mark.parametrize("code", ["exact", "sum"])
def test_a_rescued_query_that_was_answered_wrongly_ends_it(code):
    late = len(PACE)
    findings = ["agreed"] * 2 * late
    first = on_trial(code=code, k=2, arrivals=[*PACE, 4.0, 4.0], tasks=[(late, 0.3, "ok")], findings=findings)
    kind = "protection" if code == "exact" else "finish"
    assert first.compared[-1] == (late, kind, "agreed")
    findings[len(first.compared) - 1] = "differed"
    run = on_trial(code=code, k=2, arrivals=[*PACE, 4.0, 4.0], tasks=[(late, 0.3, "ok")], findings=findings)
    assert trust(run).in_use == (code == "sum"), "an approximate one may differ now and then"


@pytest.mark.parametrize("launch", ["group", "late"])
def test_a_protection_in_use_is_compared_when_it_came_too_late_as_well(launch):
    """Its query had its own answer before, and nobody needs the other; but who gets the next one wants it right."""
    last = len(PACE)
    policy = {"launch": launch, "launch_after_s": 0.02, "reconstruct_after_s": 0.02}
    slow = [(last, 0.025, "ok"), ("parity 0", 0.001, "ok")] if launch == "late" else []
    run = on_trial(code="exact", k=1, arrivals=[*PACE, 4.0], tasks=slow, policy=policy)
    assert run.answers[last][0] == "deployed"
    assert run.compared[-1] == (last, "protection", "agreed")
    assert run.nothing_left_over()


def test_such_comparisons_are_few():
    """Ten a second, however many queries there are."""
    run = on_trial(code="exact", k=1, arrivals=[0.005 * n for n in range(1000)], deployed=8)
    assert trust(run).in_use
    assert len(run.compared) <= TRIAL + MOST + 50 + 1


def test_second_copies_are_compared_with_their_originals():
    hedge = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.02}
    run = scenario(code=None, proved=False, arrivals=[0.0], tasks=[(0, 0.05, "ok")], policy=hedge)
    assert run.answers == {0: ("hedged", 0.03)}
    assert run.compared == [(0, "deployed", "agreed")]


def test_a_fleet_whose_copies_differ_is_not_hedged():
    hedge = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.02}
    slow = [(n, 0.05, "ok") for n in range(60)]
    run = scenario(code=None, proved=False, arrivals=PACE, tasks=slow, policy=hedge, findings=["differed"] * 60)
    assert 2 <= len(run.compared) <= 3, "one more was on its way"
    assert run.scheduler.sent["hedge"] == len(run.compared)
    assert len(run.answers) == len(PACE)


def test_copies_that_differ_take_the_protection_out_too():
    hedge = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.02}
    late = [(n, 0.045, "ok") for n in range(30, 60)]
    findings = ["agreed"] * TRIAL + ["differed"] * 40
    run = on_trial(code="exact", k=1, tasks=late, policy=hedge, findings=findings)
    assert not trust(run).in_use


@pytest.mark.parametrize("outcome", ["fail", "fatal"])
def test_a_protection_that_fails_every_group_is_out(outcome):
    run = on_trial(code="exact", k=1, tasks=[("parity 0", 0.001, outcome)] * 100)
    assert "10 of 10 groups in a row brought nothing" in trust(run).reason
    assert len(run.sends("parity 0")) == 10
    assert {source for source, _ in run.answers.values()} == {"deployed"}


def test_what_is_held_for_a_trial_is_bounded():
    """A protection that is frozen holds so many groups on trial, and no more; then they are given up."""
    scheduler = Scheduler(fleet(deployed=50, code="exact", k=2, protections=50, proved=False), plain(deadline_s=1.0))
    [pool] = scheduler.pools()
    held = 0
    for number in range(400):
        now = number * 0.01
        actions = scheduler.query_arrived(Query(number, POOL, "same"), now)
        for action in actions:
            if isinstance(action, Send) and action.task.query is not None:
                actions += scheduler.task_done(action.task, Arrived(), now)
        held = max(held, len(pool.trials._running))
        assert not any(isinstance(action, Compare) for action in actions)
    assert held == MOST
    assert pool.trust.snapshot()["failed"] >= MOST, "no answer in time is a failure"


def test_a_query_that_is_not_repeatable_is_tried_once():
    parts = fleet(deployed=3, code=None)
    [pool] = parts.pools
    once = replace(parts, pools=(replace(pool, repeatable=False),))
    for cause, tried in (("fail", 1), ("unreachable", 2)):
        scheduler = Scheduler(once, plain(copies=True, extra_work=1.0, hedge_after_s=0.01))
        [sent] = scheduler.query_arrived(Query(0, POOL, "same"), 0.0)
        actions = scheduler.task_done(sent.task, OUTCOMES[cause], 0.001)
        assert sum(isinstance(action, Send) for action in actions) == tried - 1
        assert scheduler.open_queries() == tried - 1


def test_a_protection_that_can_never_be_decoded_is_out():
    """Its groups arrive, as far as anybody can see; but no answer can be made of them."""
    start = len(PACE)
    arrivals = [*PACE, *(5.0 + 0.1 * n for n in range(30))]
    late = [(n, 0.07, "ok") for n in range(start, start + 30)]
    finishes = [(f"finish {n}", 0.001, "fatal") for n in range(start, start + 30)]
    run = on_trial(code="sum", k=2, arrivals=arrivals, tasks=[*late, *finishes])
    assert "10 of 10 groups in a row brought nothing" in trust(run).reason
    assert {source for source, _ in run.answers.values()} == {"deployed"}
    assert run.nothing_left_over()


def test_an_endpoint_that_is_out_comes_back_where_there_are_no_second_copies():
    """Where there are, it is tried by one; a model that must be run once has none."""
    hedge = {"copies": True, "extra_work": 1.0, "hedge_after_s": 10.0, "failures_until_out": 1, "out_s": 1.0}
    parts = fleet(deployed=2, code=None)
    [pool] = parts.pools
    for changed in (replace(pool, repeatable=False), pool):
        scheduler = Scheduler(replace(parts, pools=(changed,)), plain(**hedge))
        asked = set()
        for number in range(40):
            now = 0.1 * number
            while scheduler.next_deadline() <= now:
                scheduler.tick(scheduler.next_deadline())
            queue = scheduler.query_arrived(Query(number, POOL, "same"), now)
            for action in queue:
                if isinstance(action, Send):
                    ill = now < 0.5 and action.task.endpoint.name == "d0"
                    queue += scheduler.task_done(action.task, OUTCOMES["fail" if ill else "ok"], now)
                    asked |= {action.task.endpoint.name} if now > 2.5 else set()
        assert asked == {"d0", "d1"}


def test_a_frozen_worker_does_not_hold_up_a_trial():
    """Its queries' own answers come no more; their groups make room for others after a while."""
    frozen = [(n, NEVER, "never") for n in range(8)]
    run = on_trial(code="exact", k=1, deployed=12, tasks=frozen, policy={"deadline_s": 30.0}, until=20.0)
    assert trust(run).in_use


def test_nothing_is_held_for_a_model_that_nobody_serves_any_more():
    parts = fleet(deployed=1, code="sum", k=2, proved=False)
    scheduler = Scheduler(parts, plain(group_wait_s=0.01))
    [own] = scheduler.query_arrived(Query(0, POOL, "same"), 0.0)
    [tried] = scheduler.tick(0.01)
    scheduler.task_done(own.task, Arrived(raw=True), 0.02)
    without = replace(parts, endpoints=tuple(e for e in parts.endpoints if e.row is not None))
    scheduler.endpoints_changed(without, 0.03)
    assert scheduler.task_done(tried.task, Arrived(), 0.04) == []
    [pool] = scheduler.pools()
    assert not pool.trials._running
    assert scheduler.in_flight() == 0


def test_an_answer_without_its_raw_output_says_nothing_of_a_parity_model():
    run = on_trial(code="sum", arrivals=[0.0, 0.0], tasks=[(0, 0.010, "plain")])
    counts = trust(run).snapshot()
    assert (counts["unknown"], counts["reason"].endswith("came without its raw output")) == (1, True)
    assert not run.compared
    assert not run.sends("finish 1"), "nothing can be decoded without it"


def test_an_output_on_trial_that_cannot_be_finished_is_a_failure():
    run = on_trial(code="sum", arrivals=[0.0, 0.0], tasks=[("finish 0", 0.001, "fatal")])
    assert trust(run).snapshot()["failed"] == 1
    assert [query for query, _, _ in run.compared] == [1]


@pytest.mark.parametrize("what", ["parity 0", "finish 0"])
def test_what_is_rejected_on_trial_is_sent_again(what):
    run = on_trial(code="sum", arrivals=[0.0, 0.0], tasks=[(what, 0.001, "reject")])
    assert len(run.sends(what)) == 2
    assert sorted(query for query, _, _ in run.compared) == [0, 1]
    assert trust(run).snapshot()["failed"] == 0


@pytest.mark.parametrize(("code", "compared"), [("exact", [1]), ("sum", [])])
def test_of_a_member_that_fails_nothing_is_compared(code, compared):
    """A backup answers for each member; a parity output is decoded with all the others."""
    run = on_trial(code=code, arrivals=[0.0, 0.0], tasks=[(0, 0.010, "fatal")])
    assert [query for query, _, _ in run.compared] == compared
    [pool] = run.scheduler.pools()
    assert not pool.trials._running, "its group makes room for another"


def test_what_waits_for_a_place_when_its_protection_is_taken_out_is_not_sent():
    start, number = len(PACE), 12
    late = [(start, 0.06, "ok"), *((n, 0.3, "ok") for n in range(start + 1, start + number))]
    crowd = {"code": "exact", "k": 1, "deployed": 20, "arrivals": [*PACE, *[4.0] * number], "tasks": late}
    agreed = ["agreed"] * 2 * start
    first = on_trial(**crowd, findings=agreed)
    found = next(n for n, (query, _, _) in enumerate(first.compared) if query == start)
    run = on_trial(**crowd, findings=[*agreed[:found], "differed"])
    assert not trust(run).in_use
    assert len(run.sends("parity 0")) < len(first.sends("parity 0"))
    assert {run.answers[n][0] for n in range(start, start + number)} == {"reconstructed", "deployed"}
    assert run.nothing_left_over()


def test_an_answer_in_time_is_compared_with_the_protections_that_has_come_before_it():
    last = len(PACE)
    run = on_trial(code="exact", k=1, arrivals=[*PACE, 4.0], tasks=[(last, 0.02, "ok")])
    assert run.answers[last] == ("deployed", 4.02)
    assert run.compared[-1] == (last, "protection", "agreed")
