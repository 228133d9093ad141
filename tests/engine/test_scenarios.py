"""The rules of the race, one by one, in virtual time."""

import pytest

from ts_parity.engine import (
    Answer,
    Arrived,
    Endpoint,
    Failed,
    Fleet,
    Instance,
    Kind,
    Pool,
    Query,
    Scheduler,
    Send,
    plain,
)
from ts_parity.testing import POOL, fleet, scenario

NEVER = 0.0


# ---- the release of rebuilt answers --------------------------------------------------------------------------------


def test_a_deployed_answer_that_comes_in_time_is_used():
    """A usable parity output does not answer a query before reconstruct_after."""
    run = scenario(arrivals=[0.0, 0.0], tasks=[(0, 0.020, "ok"), (1, 0.045, "ok"), ("parity 0", 0.021, "ok")])
    assert run.answers == {0: ("deployed", 0.020), 1: ("deployed", 0.045)}
    assert run.nothing_left_over()


def test_a_rebuilt_answer_is_used_from_reconstruct_after_on():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, NEVER, "never")])
    assert run.answers == {0: ("deployed", 0.010), 1: ("reconstructed", 0.051)}
    assert run.sends("finish 1") == [(0.050, "p0.0")]
    assert run.nothing_left_over()


def test_a_rebuilt_answer_may_be_used_at_once_if_the_own_task_failed():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, 0.012, "fatal")])
    assert run.answers[1] == ("reconstructed", 0.013)


def test_a_late_neighbour_completes_the_equation_after_the_release():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(0, 0.080, "ok"), (1, NEVER, "never")])
    assert run.answers == {0: ("deployed", 0.080), 1: ("reconstructed", 0.081)}


def test_the_deployed_answer_wins_while_the_finish_is_under_way():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, 0.055, "ok"), ("finish 1", 0.020, "ok")])
    assert run.answers[1] == ("deployed", 0.055)
    assert run.nothing_left_over()


def test_a_neighbour_without_raw_output_leaves_nothing_to_decode_with():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(0, 0.010, "plain"), (1, NEVER, "never")])
    assert run.failures == {1: ("deadline", 1.0)}


def test_reconstruct_after_is_a_quantile_of_latency_once_there_are_enough():
    arrivals = [0.1 * i for i in range(42)]
    run = scenario(
        arrivals=arrivals,
        tasks=[(41, NEVER, "never")],
        policy={"reconstruct_after_s": None, "reconstruct_cold_s": 0.5},
    )
    source, at = run.answers[41]
    assert source == "reconstructed"
    assert at == pytest.approx(arrivals[41] + 0.020 + 0.010 + 0.001)  # sealed, parity, finish; the release was earlier


# ---- groups --------------------------------------------------------------------------------------------------------


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


# ---- codes ---------------------------------------------------------------------------------------------------------


def test_both_late_and_one_parity_is_one_too_few():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(0, NEVER, "never"), (1, NEVER, "never")])
    assert run.failures == {0: ("deadline", 1.0), 1: ("deadline", 1.0)}
    assert run.nothing_left_over()


def test_both_late_and_two_parities_are_enough():
    run = scenario(arrivals=[0.0, 0.0], r=2, tasks=[(0, NEVER, "never"), (1, NEVER, "never")])
    assert {source for source, _ in run.answers.values()} == {"reconstructed"}
    assert len(run.answers) == 2


def test_exact_answers_all_k_late_without_a_finish():
    run = scenario(arrivals=[0.0] * 3, code="exact", k=3, tasks=[(i, NEVER, "never") for i in range(3)])
    assert run.answers == dict.fromkeys(range(3), ("reconstructed", 0.05))
    assert not any(what.startswith("finish") for _, what, _ in run.sent)


def test_a_query_may_refuse_rebuilt_answers_but_not_exact_ones():
    late = [(0, NEVER, "never")]
    assert scenario(arrivals=[0.0, 0.0], exact={0}, tasks=late).failures == {0: ("deadline", 1.0)}
    assert scenario(arrivals=[0.0, 0.0], exact={0}, tasks=late, code="exact").answers[0] == ("reconstructed", 0.050)


# ---- places, balance, the queue ------------------------------------------------------------------------------------


def test_a_query_is_bound_only_when_a_place_is_free_and_in_order_of_arrival():
    run = scenario(arrivals=[0.0, 0.001, 0.002, 0.003], deployed=2, code=None)
    assert [(at, what) for at, what, _ in run.sent] == [(0.0, "0"), (0.001, "1"), (0.010, "2"), (0.011, "3")]


def test_least_outstanding_and_then_the_longest_unused():
    run = scenario(arrivals=[0.0, 0.1, 0.2, 0.3, 0.4, 0.4], deployed=3, places=2, code=None)
    assert [endpoint for _, _, endpoint in run.sent] == ["d0", "d1", "d2", "d0", "d1", "d2"]


def test_protections_beside_the_deployed_model_use_idle_places_only():
    run = scenario(
        arrivals=[0.0, 0.0, 0.001], deployed=2, shared=True, protections=2, tasks=[(0, NEVER, "never")], service=0.010
    )
    assert run.sends(2) == [(0.010, "d1")]
    assert run.sends("parity 0")[0][0] == pytest.approx(0.020)
    assert run.answers[0] == ("reconstructed", 0.051)


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_failed_task_is_tried_elsewhere():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, 0.005, "fail")])
    assert run.sends(0) == [(0.0, "d0"), (0.005, "d1")]
    assert run.answers == {0: ("deployed", 0.015)}


def test_who_fails_fast_does_not_get_all_attempts_while_the_other_is_busy():
    """d1 refuses at once, so it always has a place; d0 is healthy and works on the query before."""
    run = scenario(arrivals=[0.0, 0.001], code=None, deployed=2, tasks=[(1, 0.001, "fail")])
    assert run.sends(1) == [(0.001, "d1"), (0.010, "d0")]
    assert run.answers[1] == ("deployed", 0.020)
    assert run.nothing_left_over()


def test_who_waits_for_the_other_holds_up_nobody():
    run = scenario(
        arrivals=[0.0, 0.001, 0.001, 0.005], code=None, deployed=2, tasks=[(0, 0.030, "ok"), (1, 0.001, "fail")]
    )
    assert run.sends(1) == [(0.001, "d1"), (0.030, "d0")]
    assert run.sends(2) == [(0.002, "d1")], "it came after, and waited already when the first became choosy"
    assert run.sends(3) == [(0.012, "d1")]
    assert set(run.answers) == {0, 1, 2, 3}


def test_who_comes_while_another_is_choosy_is_served_at_once():
    run = scenario(arrivals=[0.0, 0.001, 0.005], code=None, deployed=2, tasks=[(0, 0.030, "ok"), (1, 0.001, "fail")])
    assert run.sends(2) == [(0.005, "d1")]


def test_nobody_waits_for_a_frozen_instance_longer_than_for_a_late_answer():
    """d0 is frozen. d1 has failed one query, and serves others since."""
    run = scenario(arrivals=[0.0, 0.001], code=None, deployed=2, tasks=[(0, NEVER, "never"), (1, 0.001, "fail")])
    assert run.sends(1) == [(0.001, "d1"), (0.052, "d1")]
    assert run.answers[1] == ("deployed", 0.062)


def test_who_was_merely_full_is_still_worth_waiting_for():
    run = scenario(arrivals=[0.0], code=None, deployed=2, tasks=[(0, 0.001, "reject"), (0, 0.001, "fail")])
    assert run.sends(0) == [(0.0, "d0"), (0.001, "d1"), (0.051, "d0")]
    assert run.answers == {0: ("deployed", 0.061)}


def test_where_there_is_another_failure_domain_it_waits_for_that():
    """Three instances of one machine that has died would have all attempts."""
    tasks = [(0, 0.001, "ok"), (1, 0.001, "ok"), (2, 0.001, "ok"), (3, 0.030, "ok"), (4, 0.001, "fail")]
    run = scenario(arrivals=[0.0] * 4 + [0.002], code=None, domains=["a", "a", "a", "b"], tasks=tasks)
    assert run.sends(4) == [(0.002, "d0"), (0.030, "d3")]


def test_where_there_is_one_failure_domain_any_other_place_will_do():
    """d1 is doubted, for it has failed before, and d2 is busy: d1 is asked at once."""
    tasks = [(0, 0.001, "ok"), (1, 0.001, "fail"), (2, 0.050, "ok"), (3, 0.001, "fail")]
    run = scenario(arrivals=[0.0] * 3 + [0.012], code=None, deployed=3, domains=["a"] * 3, tasks=tasks)
    assert run.sends(1) == [(0.0, "d1"), (0.001, "d0")]
    assert run.sends(3) == [(0.012, "d0"), (0.013, "d1")]


def test_it_takes_no_spare_place_while_others_are_idle():
    """Query 4 fails on d2. d1 has been stuck for long; d0 is busy, and d2 idle."""
    run = scenario(
        arrivals=[0.0, 0.0, 0.0, 0.1, 0.12],
        code=None,
        deployed=3,
        domains=["a", "a", "b"],
        policy={"spare_places": 1, "deadline_s": 5.0},
        tasks=[(0, 0.001, "ok"), (1, 5.0, "ok"), (2, 0.001, "ok"), (3, 0.04, "ok"), (4, 0.001, "fail")],
    )
    assert run.sends(4) == [(0.12, "d2"), (0.14, "d0")]


def test_it_goes_on_waiting_when_the_first_instance_elsewhere_is_full():
    tasks = [(0, 0.005, "ok"), (1, 0.03, "ok"), (2, 0.001, "fail"), (3, 0.001, "ok"), ("retry 2", 0.001, "reject")]
    run = scenario(arrivals=[0.0, 0.0, 0.0005, 0.003], code=None, deployed=3, tasks=tasks)
    assert run.sends(2) == [(0.0005, "d2"), (0.005, "d0"), (0.03, "d1")]


def test_half_of_the_time_that_is_left_is_kept_for_another_attempt():
    run = scenario(
        arrivals=[0.0, 0.001],
        code=None,
        deployed=2,
        tasks=[(0, NEVER, "never"), (1, 0.001, "fail")],
        deadlines={1: 0.030},
    )
    assert run.sends(1) == [(0.001, "d1"), (0.016, "d1")]
    assert run.answers[1] == ("deployed", 0.026)


def test_what_waits_for_another_instance_lets_nobody_pass_in_another_pool():
    """Both pools share two capped instances. x1 failed on the second, which y0 asked for before x3 did."""
    instances = (Instance("a", 1, "a", capped=True), Instance("b", 1, "b", capped=True))
    endpoints = tuple(Endpoint(f"{i}/{p}", i, p, None, 1) for p in "xy" for i in "ab")
    scheduler = Scheduler(Fleet(instances, endpoints, (Pool("x", None, True), Pool("y", None, True))), plain())
    sent = {}

    def obey(actions):
        sent.update((action.task.query.id, action.task) for action in actions if isinstance(action, Send))

    for number, pool, at in ((0, "x", 0.0), (1, "x", 0.001)):
        obey(scheduler.query_arrived(Query(number, pool), at))
    assert [sent[n].endpoint.instance for n in (0, 1)] == ["a", "b"]
    obey(scheduler.task_done(sent.pop(1), Failed("worker died"), 0.002))
    for number, pool, at in ((2, "x", 0.003), (3, "y", 0.004), (4, "x", 0.005)):
        obey(scheduler.query_arrived(Query(number, pool), at))
    assert set(sent) == {0, 2}
    obey(scheduler.task_done(sent[2], Arrived(), 0.013))
    assert set(sent) == {0, 2, 3}
    obey(scheduler.task_done(sent[0], Arrived(), 0.014))
    assert sent[1].endpoint.instance == "a"


def test_nobody_waits_for_an_instance_that_is_out():
    policy = {"failures_until_out": 2, "out_s": 10.0}
    tasks = [(i, 0.001, "fail") for i in range(3)]
    run = scenario(arrivals=[0.0, 0.002, 0.1], code=None, deployed=2, tasks=tasks, policy=policy)
    assert run.sends(1) == [(0.002, "d0"), (0.011, "d1")], "which takes d0 out"
    assert run.sends(2) == [(0.1, "d1"), (0.101, "d1")]


def test_retries_end_with_the_attempts():
    tasks = [(0, 0.001, "fail"), ("retry 0", 0.001, "fail"), ("retry 0", 0.001, "fail")]
    run = scenario(arrivals=[0.0], code=None, tasks=tasks)
    assert run.failures == {0: ("failed", 0.003)}


def test_retries_end_with_the_budget():
    run = scenario(
        arrivals=[0.0, 0.1, 0.2],
        code=None,
        tasks=[(i, 0.001, "fail") for i in range(3)],
        policy={"retry_burst": 1.0, "retry_ratio": 0.0},
    )
    assert set(run.answers) == {0}
    assert {reason for reason, _ in run.failures.values()} == {"failed"}


def test_a_rejection_costs_no_budget_and_goes_elsewhere():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, 0.001, "reject")], policy={"retry_burst": 0.0})
    assert run.sends(0) == [(0.0, "d0"), (0.001, "d1")]
    assert run.answers == {0: ("deployed", 0.011)}


def test_a_query_nothing_can_save_fails_at_once():
    run = scenario(arrivals=[0.0], tasks=[(0, 0.030, "fatal"), ("parity 0", 0.001, "fail")])
    assert run.failures == {0: ("failed", 0.030)}


def test_a_query_that_may_still_be_rebuilt_does_not_fail():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(0, 0.2, "ok"), (1, 0.001, "fatal")])
    assert run.answers == {0: ("deployed", 0.2), 1: ("reconstructed", 0.201)}


def test_a_failed_protection_fails_nobody():
    run = scenario(arrivals=[0.0, 0.0], tasks=[("parity 0", 0.001, "fail"), (1, 0.5, "ok")])
    assert run.answers == {0: ("deployed", 0.010), 1: ("deployed", 0.5)}


def test_a_failed_finish_is_tried_on_another_endpoint():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, NEVER, "never"), ("finish 1", 0.001, "fail")])
    first, second = (endpoint for _, endpoint in run.sends("finish 1"))
    assert first == "p0.0"
    assert second not in ("p0.0", "d1")
    assert run.answers[1] == ("reconstructed", 0.052)


def test_a_finish_on_a_frozen_endpoint_is_sent_a_second_time():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, NEVER, "never"), ("finish 1", NEVER, "never")])
    first, second = run.sends("finish 1")
    assert first == (0.050, "p0.0")
    assert second[0] == pytest.approx(0.1)
    assert second[1] not in ("p0.0", "d1")
    assert run.answers[1] == ("reconstructed", 0.101)


def test_after_two_failed_finishes_the_own_task_may_still_answer():
    run = scenario(
        arrivals=[0.0, 0.0], tasks=[(1, 0.3, "ok"), ("finish 1", 0.001, "fail"), ("finish 1", 0.001, "fail")]
    )
    assert run.answers[1] == ("deployed", 0.3)


# ---- health --------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_keeps_failing_is_left_alone_and_comes_back_by_one_trial():
    """Three refusals in a row, then out for a second, then one trial; it fails, and it is out for two."""
    policy = plain(failures_until_out=3, out_s=1.0, retry_ratio=0.0, retry_burst=0.0)
    scheduler = Scheduler(fleet(deployed=2, code=None), policy)
    number = 0

    def ask(at):
        """Two queries at a time, so that both endpoints are needed."""
        nonlocal number
        scheduler.tick(at)
        actions = []
        for _ in range(2):
            number += 1
            actions += scheduler.query_arrived(Query(number, POOL), at)
        tasks = [action.task for action in actions if isinstance(action, Send)]
        for task in tasks:
            refused = task.endpoint.name == "d0"
            more = scheduler.task_done(task, Failed("refused") if refused else Arrived(), at)
            tasks += [action.task for action in more if isinstance(action, Send)]
        return sum(task.endpoint.name == "d0" for task in tasks)

    assert [ask(at) for at in (0.0, 0.1, 0.2, 0.3, 0.9)] == [1, 1, 1, 0, 0]
    assert [ask(at) for at in (1.3, 1.4, 3.2)] == [1, 0, 0]
    assert ask(3.4) == 1


def test_an_endpoint_that_has_just_failed_is_used_for_want_of_others_only():
    scheduler = Scheduler(fleet(deployed=2, code=None), plain(out_s=1.0, retry_ratio=0.0, retry_burst=0.0))

    def ask(number, at):
        scheduler.tick(at)
        [send] = scheduler.query_arrived(Query(number, POOL), at)
        return send.task

    first = ask(0, 0.0)
    failed = first.endpoint.name
    scheduler.task_done(first, Failed("refused"), 0.0)
    for number in range(1, 5):
        task = ask(number, 0.1)
        assert task.endpoint.name != failed
        scheduler.task_done(task, Arrived(), 0.1)
    busy = ask(5, 0.2)
    assert ask(6, 0.2).endpoint.name == failed
    scheduler.task_done(busy, Arrived(), 0.3)
    assert ask(7, 0.3).endpoint.name == busy.endpoint.name


def test_doubt_of_an_endpoint_passes_with_time():
    scheduler = Scheduler(fleet(deployed=2, code=None), plain(out_s=1.0, retry_ratio=0.0, retry_burst=0.0))
    names = []
    for number, at in enumerate((0.0, 0.1, 0.2, 1.1, 1.2)):
        scheduler.tick(at)
        [send] = scheduler.query_arrived(Query(number, POOL), at)
        names.append(send.task.endpoint.name)
        scheduler.task_done(send.task, Arrived() if number else Failed("refused"), at)
    assert names[0] not in names[1:3]
    assert names[0] in names[3:]


def test_a_query_that_has_failed_once_is_not_the_trial_of_another_endpoint():
    """Three of four refuse everything and are due for their trials at one time: the retry goes to the fourth."""
    scheduler = Scheduler(fleet(deployed=4, code=None), plain(failures_until_out=1, out_s=1.0, retry_burst=100.0))
    lost = 0
    for number, at in enumerate((0.0, 0.1, 0.2, 1.5, 1.6, 1.7, 4.0, 4.1, 4.2)):
        scheduler.tick(at)
        actions = scheduler.query_arrived(Query(number, POOL), at)
        tried = []
        while sends := [action.task for action in actions if isinstance(action, Send)]:
            [task] = sends
            tried.append(task.endpoint.name)
            actions = scheduler.task_done(task, Arrived() if tried[-1] == "d3" else Failed("refused"), at)
        lost += not any(isinstance(action, Answer) for action in actions)
        if at > 1.0:
            assert len(tried) <= 2
    assert lost <= 1  # the first, which nothing was known about yet


def test_a_second_attempt_goes_to_another_failure_domain():
    run = scenario(
        arrivals=[0.0], code=None, deployed=3, domains=["a", "a", "b"], tasks=[(0, 0.001, "fail")], policy={}
    )
    assert [endpoint for _, _, endpoint in run.sent] == ["d0", "d2"]
    assert run.answers == {0: ("deployed", 0.011)}


def test_an_endpoint_that_returns_starts_slowly():
    """Eight places, but after its trial one task at a time, then two, then three."""
    scheduler = Scheduler(fleet(deployed=2, code=None, places=8), plain(failures_until_out=1, out_s=1.0, retry_burst=0))
    number = 0

    def ask(at):
        nonlocal number
        number += 1
        (send,) = [a for a in scheduler.query_arrived(Query(number, POOL), at) if isinstance(a, Send)]
        return send.task

    first = ask(0.0)
    name = first.endpoint.name
    scheduler.task_done(first, Failed("refused"), 0.0)
    scheduler.tick(1.5)
    trial = next(task for task in (ask(1.5) for _ in range(9)) if task.endpoint.name == name)
    allowed = []
    running = [trial]
    for step in range(3):
        for task in running:
            scheduler.task_done(task, Arrived(), 2.0 + step)
        others = [ask(2.0 + step) for _ in range(4)]
        running = [task for task in others if task.endpoint.name == name]
        allowed.append(len(running))
        for task in others:
            if task.endpoint.name != name:
                scheduler.task_done(task, Arrived(), 2.5 + step)
    assert allowed[0] == 1
    assert allowed == sorted(allowed)
    assert allowed[-1] > 1


def test_the_last_endpoint_is_never_taken_out():
    run = scenario(
        arrivals=[0.01 * i for i in range(8)],
        deployed=1,
        code=None,
        tasks=[(i, 0.001, "fail") for i in range(6)],
        policy={"retry_burst": 0.0, "retry_ratio": 0.0},
    )
    assert len(run.sent) == 8
    assert set(run.answers) == {6, 7}


# ---- deadlines, admission, clients that leave ----------------------------------------------------------------------


def test_a_query_without_prediction_fails_at_its_own_deadline():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, NEVER, "never")], deadlines={0: 0.25})
    assert run.failures == {0: ("deadline", 0.25)}


def test_or_gets_the_default_answer():
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, NEVER, "never")], policy={"default_answer": True})
    assert run.answers == {0: ("default", 1.0)}


def test_a_full_queue_refuses():
    run = scenario(arrivals=[0.0] * 4, deployed=1, code=None, policy={"max_waiting": 2})
    assert run.failures == {3: ("overloaded", 0.0)}


def test_a_queue_that_has_become_too_slow_refuses():
    run = scenario(arrivals=[0.0, 0.1], deployed=1, code=None, tasks=[(0, NEVER, "never")], policy={"max_wait_s": 0.3})
    assert run.failures[1] == ("overloaded", pytest.approx(0.4))


def test_a_queued_query_whose_client_left_is_never_sent():
    run = scenario(arrivals=[0.0, 0.0], deployed=1, code=None, abandons={1: 0.005})
    assert run.sends(1) == []
    assert set(run.answers) == {0}
    assert run.nothing_left_over()


def test_work_in_flight_of_a_client_that_left_helps_its_neighbour():
    run = scenario(arrivals=[0.0, 0.0], abandons={0: 0.005}, tasks=[(0, 0.030, "ok"), (1, NEVER, "never")])
    assert run.answers == {1: ("reconstructed", 0.051)}
    assert run.nothing_left_over()


def test_nobody_there_is_said_at_once():
    scheduler = Scheduler(Fleet((), (), (Pool(POOL),)), plain())
    (fail,) = scheduler.query_arrived(Query(1, POOL), 0.0)
    assert fail.reason.value == "no endpoint"
    (fail,) = scheduler.query_arrived(Query(2, "unknown"), 0.0)
    assert fail.reason.value == "no endpoint"


# ---- streamed answers, a changing fleet, nonsense ------------------------------------------------------------------


def test_a_streamed_answer_keeps_its_place_until_it_ends():
    scheduler = Scheduler(fleet(deployed=1, code=None), plain())
    (send,) = scheduler.query_arrived(Query(1, POOL), 0.0)
    assert scheduler.query_arrived(Query(2, POOL), 0.0) == []
    (answer,) = scheduler.answer_started(send.task, 0.1)
    assert answer.query.id == 1
    assert scheduler.in_flight() == 1
    (second,) = scheduler.task_done(send.task, Arrived(), 0.2)
    assert isinstance(second, Send)


def test_a_group_whose_pool_is_gone_fails_whom_nothing_can_save():
    scheduler = Scheduler(fleet(deployed=2), plain(group_wait_s=0.02))
    [send] = scheduler.query_arrived(Query(0, POOL, "same"), 0.0)
    assert scheduler.task_done(send.task, Failed("refused", retry=False), 0.001) == []
    [failed] = scheduler.endpoints_changed(Fleet((), (), ()), 0.002)
    assert failed.query.id == 0
    assert scheduler.open_queries() == 0


def test_who_ends_while_it_waits_takes_with_it_whom_only_it_could_save():
    """Query 0 has failed and needs 1's output; 1 has failed once and waits for a busy machine until its deadline."""
    tasks = [(0, 0.001, "fatal"), (1, 0.002, "fail"), (2, 0.5, "ok"), (3, 0.5, "ok"), ("parity 0", 0.001, "ok")]
    shape = {"deployed": 2, "domains": ["a", "b"], "keys": {2: None, 3: None}, "tasks": tasks}
    run = scenario(arrivals=[0.0] * 4, deadlines={0: 10.0, 1: 0.04}, policy={"retry_ratio": 0.0}, **shape)
    assert run.failures == {1: ("deadline", 0.04), 0: ("failed", 0.04)}
    run = scenario(arrivals=[0.0] * 4, deadlines={0: 10.0}, abandons={1: 0.02}, **shape)
    assert run.failures == {0: ("failed", 0.02)}


def test_a_pool_that_is_gone_fails_what_waits_for_it():
    scheduler = Scheduler(fleet(deployed=1, code=None), plain())
    (send,) = scheduler.query_arrived(Query(1, POOL), 0.0)
    scheduler.query_arrived(Query(2, POOL), 0.0)
    (fail,) = scheduler.endpoints_changed(Fleet((), (), ()), 0.1)
    assert (fail.query.id, fail.reason.value) == (2, "no endpoint")
    (answer,) = scheduler.task_done(send.task, Arrived(), 0.2)
    assert answer.query.id == 1


def test_an_instance_that_returns_has_its_old_work_on_its_places():
    one, none = fleet(deployed=1, code=None), Fleet((), (), (Pool(POOL),))
    scheduler = Scheduler(one, plain())
    (send,) = scheduler.query_arrived(Query(1, POOL), 0.0)
    scheduler.endpoints_changed(none, 0.1)
    scheduler.endpoints_changed(one, 0.2)
    assert scheduler.query_arrived(Query(2, POOL), 0.3) == []
    actions = scheduler.task_done(send.task, Arrived(), 0.4)
    assert [type(action).__name__ for action in actions] == ["Answer", "Send"]


def test_fewer_places_hold_back_what_waits():
    many, few = fleet(deployed=1, places=2, code=None), fleet(deployed=1, places=1, code=None)
    scheduler = Scheduler(many, plain())
    (first,) = scheduler.query_arrived(Query(1, POOL), 0.0)
    (second,) = scheduler.query_arrived(Query(2, POOL), 0.0)
    scheduler.query_arrived(Query(3, POOL), 0.0)
    scheduler.endpoints_changed(few, 0.1)
    assert len(scheduler.task_done(first.task, Arrived(), 0.2)) == 1
    assert len(scheduler.task_done(second.task, Arrived(), 0.3)) == 2


def test_nonsense_raises_and_changes_nothing():
    scheduler = Scheduler(fleet(), plain())
    query = Query(1, POOL, "same")
    (send,) = scheduler.query_arrived(query, 0.0)
    before = scheduler.snapshot()
    with pytest.raises(ValueError, match="arrived already"):
        scheduler.query_arrived(query, 0.1)
    bad = Fleet((Instance("a", 1, "a"),), (Endpoint("e", "b", POOL, None, 1),), (Pool(POOL),))
    with pytest.raises(ValueError, match="not listed"):
        scheduler.endpoints_changed(bad, 0.1)
    assert scheduler.snapshot() == before
    scheduler.task_done(send.task, Arrived(raw=True), 0.2)
    with pytest.raises(ValueError, match="ended already"):
        scheduler.task_done(send.task, Arrived(), 0.3)


def test_a_group_says_what_it_is():
    run = scenario(arrivals=[0.0, 0.0], tasks=[(1, NEVER, "never")], until=0.03)
    group = run.tasks[0].group
    assert repr(group) == f"<CodingGroup {group.id} k=2 r=1 [0 done+raw, 1 running | 0 arrived]>"


@pytest.mark.parametrize(
    "wrong",
    [{"reconstruct_quantile": 1.0}, {"deadline_s": -1.0}, {"max_attempts": 0}, {"retry_ratio": float("nan")}],
)
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plain(**wrong)
