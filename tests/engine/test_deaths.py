"""Instances that die with what they have: no client notices while others can bear it. In virtual time."""

from dataclasses import replace

import pytest

from ts_parity.engine import Answer, Arrived, Cause, Fail, Failed, Fleet, Kind, Query, Scheduler, Send, Source, plain
from ts_parity.engine.trust import Standing
from ts_parity.testing import POOL, fleet, scenario

FOREVER = 1000.0
NEVER = 0.0


@pytest.mark.parametrize("places", [1, 8, 64, 256])
@pytest.mark.parametrize("code", [None, "sum"])
def test_an_instance_dies_and_nobody_notices_whatever_its_places(places, code):
    """Three instances, two thirds busy when one dies; the two others take what it had, and the budget is ten."""
    arrivals = [0.0] * (2 * places)
    run = scenario(arrivals=arrivals, code=code, deployed=3, places=places, service=0.1, dead={"d0": (0.05, FOREVER)})
    assert len(run.answers) == 2 * places
    assert run.scheduler.sent["retry"] == 0, "the budget is for queries that fail everywhere"
    assert run.nothing_left_over()


@pytest.mark.parametrize("dead", [{}, {"d0": (0.05, 0.3)}])
def test_all_places_are_used_however_many_there_are(dead):
    """Three times 256 queries at a time, before one of three has died and been back for long, and after."""
    waves = [0.0] * 768 + [5.0 + 0.001 * n for n in range(1000)] + [10.0] * 768
    run = scenario(arrivals=waves, code=None, deployed=3, places=256, service=0.1, dead=dead)
    for at in (0.0, 10.0):
        assert sum(sent == at for sent, _, _ in run.sent) == 768
    assert len(run.answers) == len(waves)


def test_it_dies_again_and_again_under_load():
    """A query every 2 ms on 4 instances of 8 places; one dies for 100 ms, four times."""
    arrivals = [n * 0.002 for n in range(1000)]
    run = scenario(arrivals=arrivals, code=None, deployed=4, places=8, service=0.03, dead={"d1": (0.3, 1.4)})
    assert len(run.answers) == 1000
    assert run.nothing_left_over()


def test_two_of_five_die_at_once():
    arrivals = [0.0] * 40 + [0.02 + n * 0.001 for n in range(200)]
    dead = {"d0": (0.015, FOREVER), "d1": (0.015, FOREVER)}
    run = scenario(arrivals=arrivals, code=None, deployed=5, places=16, service=0.02, dead=dead)
    assert len(run.answers) == 240
    assert run.nothing_left_over()


@pytest.mark.parametrize("outcome", ["lost", "lost behind"])
def test_one_after_the_other_dies_under_the_same_query(outcome):
    """After the second it may be what they die of, unless only a gateway says that they are gone."""
    rows = [(0, 0.5, outcome)] + [("retry 0", 0.5, outcome)] * 2 + [("retry 0", 0.01, "ok")]
    run = scenario(arrivals=[0.0], code=None, deployed=4, tasks=rows, deadlines={0: 30.0})
    assert (set(run.answers) == {0}) == (outcome == "lost behind")
    assert len(run.sends(0)) == (2 if outcome == "lost" else 4)
    assert run.scheduler.sent["moved"] == 1
    assert run.scheduler.sent["retry"] == (0 if outcome == "lost" else 2)


def test_whoever_takes_connections_and_breaks_them_all_is_left_soon():
    """d0 closes whatever it accepts at once, and so is always idle."""
    rows = [(n, 0.001, "lost") for n in range(0, 6, 2)]
    run = scenario(arrivals=[n * 0.012 for n in range(50)], code=None, deployed=2, tasks=rows)
    assert len(run.answers) == 50
    on_d0 = [at for at, _, endpoint in run.sent if endpoint == "d0"]
    assert len(on_d0) <= 25


@pytest.mark.parametrize(("code", "sends"), [(None, 2), ("sum", 2)])
def test_a_query_that_breaks_every_connection_reaches_two_instances(code, sends):
    """Neither a second copy nor a protection takes it to a third."""
    rows = [(0, 0.001, "lost")] + [("retry 0", 0.001, "lost"), ("hedge 0", 0.001, "lost")] * 9
    run = scenario(arrivals=[0.0], code=code, deployed=9, tasks=rows)
    assert run.failures == {0: ("failed", pytest.approx(0.002))}
    assert len(run.sends(0)) == sends
    assert run.actions[-1].query.first_cause == "d0: it closed the connection"


def test_an_only_instance_that_dies_twice_under_a_query_is_asked_again():
    """It may be restarted again and again, and took the same query with it."""
    rows = [(0, 0.001, "lost"), ("retry 0", 0.001, "lost"), ("retry 0", 0.001, "ok")]
    run = scenario(arrivals=[0.0], code=None, deployed=1, tasks=rows)
    assert (set(run.answers), len(run.sends(0))) == ({0}, 3)


def test_what_breaks_connections_may_be_answered_by_a_copy_that_has_it():
    rows = [(0, 0.001, "lost"), ("retry 0", 0.1, "lost"), ("hedge 0", 0.2, "ok")]
    run = scenario(arrivals=[0.0], code=None, deployed=4, tasks=rows, policy=HEDGED)
    assert len(run.sends(0)) == 2
    assert run.answers == {0: ("hedged", pytest.approx(0.23))}


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 0.02, "lost"), ("retry 0", 0.02, "lost")], id="copy of the retry"),
        pytest.param([(0, 0.04, "lost"), ("hedge 0", 0.04, "lost")], id="retry beside the copy"),
    ],
)
def test_while_a_second_instance_may_die_of_a_query_no_third_gets_it(rows):
    run = scenario(arrivals=[0.0], code=None, deployed=4, tasks=rows, policy=HEDGED)
    assert set(run.failures) == {0}
    assert len(run.tasks) == 2
    assert run.nothing_left_over()


@pytest.mark.parametrize(
    ("rows", "kind", "third_at"),
    [
        ([(0, 0.02, "lost"), ("retry 0", 0.5, "ok")], "hedge 0", 0.06),
        ([(0, 0.04, "lost"), ("hedge 0", 0.5, "ok")], "0", 0.1),
        ([(0, 0.04, "lost"), ("hedge 0", 0.02, "fail")], "0", 0.05),
    ],
    ids=["copy of the retry", "retry beside the copy", "the copy has failed otherwise"],
)
def test_a_second_instance_that_has_a_query_for_longer_does_not_die_of_it(rows, kind, third_at):
    """Twice as long as the first; it may be frozen."""
    run = scenario(arrivals=[0.0], code=None, deployed=4, tasks=rows, policy=HEDGED)
    assert run.sends(kind)[-1][0] == third_at
    assert run.answers[0][1] == pytest.approx(third_at + 0.01)


def test_what_waits_for_a_place_while_its_copy_breaks_too_gets_none():
    rows = [(0, 0.04, "lost"), ("hedge 0", 0.02, "lost"), (1, 0.5, "ok")]
    run = scenario(arrivals=[0.0, 0.0], code=None, deployed=3, tasks=rows, policy=HEDGED)
    assert run.failures == {0: ("failed", 0.05)}
    assert (len(run.sends(0)), len(run.sends("hedge 0"))) == (1, 1)
    assert run.nothing_left_over()


def test_a_network_that_fails_for_a_moment_is_not_what_a_query_has_done():
    """Both connections break at once: the copy has had it for a quarter of the time."""
    rows = [(0, 0.04, "lost"), ("hedge 0", 0.01, "lost")]
    run = scenario(arrivals=[0.0], code=None, deployed=4, tasks=rows, policy=HEDGED)
    assert run.answers == {0: ("deployed", 0.05)}


@pytest.mark.parametrize("cause", [Cause.LOST, Cause.WORKER_DIED])
def test_what_has_broken_two_connections_is_launched_with_no_protection(cause):
    """It waited for its backup, which is another server to kill."""
    scheduler = Scheduler(fleet(deployed=2, protections=1), plain(reconstruct_after_s=0.01))
    own, other = sends(scheduler.query_arrived(Query(0, POOL, "k"), 0.0)), Failed("closed", cause=cause)
    [again] = sends(scheduler.task_done(own[0], other, 0.001))
    [failed] = scheduler.task_done(again, other, 0.002)
    assert (type(failed), failed.query.id) == (Fail, 0)
    actions = scheduler.query_arrived(Query(1, POOL, "k"), 0.003)
    assert [task.kind for task in sends(actions)] == [Kind.DEPLOYED]


@pytest.mark.parametrize(("outcome", "again"), [("lost", False), ("killed", False), ("unreachable", True)])
def test_with_one_attempt_nothing_is_run_twice(outcome, again):
    run = scenario(arrivals=[0.0], code=None, tasks=[(0, 0.001, outcome)], policy={"max_attempts": 1})
    assert (set(run.answers) == {0}) == again


def test_who_finds_nobody_asks_again_until_somebody_is_back():
    """All three die with 24 queries and are back after two seconds; nobody has asked them without pause."""
    dead = {f"d{n}": (0.05, 2.0) for n in range(3)}
    run = scenario(
        arrivals=[0.0] * 24 + [1.0],
        code=None,
        deployed=3,
        places=8,
        service=0.1,
        dead=dead,
        policy={"deadline_s": 30.0},
    )
    assert len(run.answers) == 25
    assert max(at for _, at in run.answers.values()) < 3.6
    assert len(run.sent) < 25 * 12
    assert run.nothing_left_over()


def test_where_nobody_has_been_for_long_that_is_said_at_once():
    dead = {f"d{n}": (0.0, FOREVER) for n in range(2)}
    run = scenario(
        arrivals=[0.0, 20.0],
        code=None,
        deployed=2,
        dead=dead,
        policy={"deadline_s": 30.0, "max_wait_s": 10.0},
    )
    (_, first), (_, second) = run.failures[0], run.failures[1]
    assert 10.0 < first < 11.5
    assert 20.0 < second < 20.1
    assert run.actions[-1].query.first_cause.endswith("connection refused")


def test_who_found_nobody_until_its_deadline_is_told_so():
    dead = {f"d{n}": (0.0, FOREVER) for n in range(2)}
    run = scenario(arrivals=[0.0], code=None, deployed=2, dead=dead, policy={"deadline_s": 3.0})
    assert run.failures == {0: ("failed", 3.0)}


def test_who_has_no_token_waits_for_one():
    """Ten fail for no fault of their own; the budget has four tokens, and four more a second."""
    tasks = [(n, 0.001, "fail") for n in range(10)]
    policy = {"retry_burst": 4.0, "retry_ratio": 0.01, "deadline_s": 10.0, "failures_until_out": 100}
    run = scenario(arrivals=[0.0] * 10, code=None, deployed=2, places=16, tasks=tasks, policy=policy)
    assert len(run.answers) == 10
    assert sum(at < 0.1 for _, at in run.answers.values()) == 4
    assert max(at for _, at in run.answers.values()) == pytest.approx(0.001 + 6 / 4 - 0.1 / 4 + 0.010, abs=0.03)
    assert run.scheduler.sent["retry"] == 10
    assert run.nothing_left_over()


def test_traffic_brings_tokens_too():
    tasks = [(n, 0.001, "fail") for n in range(2)]
    policy = {"retry_burst": 1.0, "retry_ratio": 0.5, "deadline_s": 10.0}
    run = scenario(arrivals=[0.0, 0.0, 0.05, 0.06, 0.07], code=None, deployed=4, tasks=tasks, policy=policy)
    assert run.answers[1] == ("deployed", pytest.approx(0.06, abs=0.02))
    assert set(run.answers) == {0, 1, 2, 3, 4}


def test_a_protected_query_without_a_token_is_answered_by_whoever_comes_first():
    """Query 1 has no token; its neighbour is slow, so the token comes before a rebuilt answer can."""
    tasks = [(0, 5.0, "ok"), (1, 0.001, "fail"), (2, 0.001, "fail"), ("parity 0", 0.01, "ok")]
    policy = {"retry_burst": 1.0, "retry_ratio": 0.1, "deadline_s": 10.0}
    run = scenario(
        arrivals=[0.0] * 3, code="sum", deployed=4, tasks=tasks, policy=policy, keys={2: None}, deadlines={1: 10.0}
    )
    assert {run.answers[n][0] for n in (1, 2)} == {"deployed"}
    assert max(run.answers[n][1] for n in (1, 2)) < 2.0
    tasks[0] = (0, 0.02, "ok")
    run = scenario(
        arrivals=[0.0] * 3, code="sum", deployed=4, tasks=tasks, policy=policy, keys={0: "x", 1: "x", 2: "x"}
    )
    assert set(run.answers) == {0, 1, 2}


def test_nobody_waits_for_a_token_that_would_come_too_late():
    """At two a second, the second that is left is enough for one more."""
    tasks = [(n, 0.001, "fail") for n in range(10)]
    policy = {"retry_burst": 2.0, "retry_ratio": 0.001, "deadline_s": 1.0, "failures_until_out": 100}
    run = scenario(arrivals=[0.0] * 10, code=None, deployed=2, places=16, tasks=tasks, policy=policy)
    assert len(run.answers) == 3
    assert {at for _, at in run.failures.values()} == {0.001}


def test_where_everybody_fails_nobody_waits_for_a_token():
    """A fleet that answers every query with an error: the clients are told at once."""
    arrivals = [n * 0.01 for n in range(300)]
    tasks = [(n, 0.001, "fail") for n in range(300)] + [(f"retry {n}", 0.001, "fail") for n in range(300)] * 3
    run = scenario(arrivals=arrivals, code=None, deployed=2, tasks=tasks, policy={"deadline_s": 30.0})
    late = [number for number, (_, at) in run.failures.items() if at - arrivals[number] > 1.5]
    assert late == []
    assert len(run.failures) == 300


# ---- endpoints that are gone with what they had --------------------------------------------------------------------


def sends(actions):
    return [action.task for action in actions if isinstance(action, Send)]


def without(whole, *names):
    """The fleet as it is discovered when these endpoints are gone."""
    return Fleet(whole.instances, tuple(e for e in whole.endpoints if e.name not in names), whole.pools)


@pytest.mark.parametrize("places", [1, 64])
def test_what_an_endpoint_had_goes_elsewhere_when_it_is_scaled_to_nothing(places):
    whole = fleet(deployed=3, code=None, places=places)
    scheduler = Scheduler(whole, plain(retry_burst=0.0, retry_ratio=0.0))
    tasks = [sends(scheduler.query_arrived(Query(n, POOL), 0.0))[0] for n in range(2 * places)]
    left = [task for task in tasks if task.endpoint.name == "d0"]
    again = sends(scheduler.endpoints_changed(without(whole, "d0"), 1.0))
    assert len(left) >= places // 2
    assert {task.query.id for task in again} == {task.query.id for task in left}
    assert {task.endpoint.name for task in again} <= {"d1", "d2"}
    for task in again:
        [answer] = scheduler.task_done(task, Arrived(), 1.1)
        assert answer.source is Source.DEPLOYED
    for task in left:
        assert scheduler.task_done(task, Failed("Worker scaled down."), 2.0) == []
    assert scheduler.open_queries() == len(tasks) - len(left)


def with_workers(whole, workers, *names):
    """Of the endpoints with these names, or of all."""
    endpoints = tuple(
        replace(e, workers=frozenset({workers}) if workers else frozenset()) if e.name in names or not names else e
        for e in whole.endpoints
    )
    return replace(whole, endpoints=endpoints)


def test_should_it_answer_all_the_same_it_is_as_good_as_any_other():
    whole = fleet(deployed=2, code=None)
    scheduler = Scheduler(whole, plain())
    [old] = sends(scheduler.query_arrived(Query(0, POOL), 0.0))
    [new] = sends(scheduler.endpoints_changed(without(whole, old.endpoint.name), 1.0))
    [answer] = scheduler.task_done(old, Arrived(), 1.01)
    assert (answer.query.id, answer.task, answer.source) == (0, old, Source.DEPLOYED)
    assert scheduler.task_done(new, Failed("worker died"), 1.02) == []
    assert (scheduler.open_queries(), scheduler.in_flight()) == (0, 0)


def test_where_nobody_else_is_it_is_waited_for():
    """TorchServe keeps what it has for the next worker, so it may still come."""
    whole = fleet(deployed=1, code=None)
    scheduler = Scheduler(whole, plain(deadline_s=30.0))
    [old] = sends(scheduler.query_arrived(Query(0, POOL), 0.0))
    assert scheduler.endpoints_changed(without(whole, "d0"), 1.0) == []
    two = fleet(deployed=2, code=None)
    [new] = sends(scheduler.endpoints_changed(without(two, "d0"), 2.0))
    assert (new.query.id, new.endpoint.name) == (0, "d1")
    assert scheduler.task_done(old, Failed("Worker scaled down."), 2.1) == []
    assert len(scheduler.task_done(new, Arrived(), 2.2)) == 1


@pytest.mark.parametrize(("workers", "taken"), [("new", False), ("old", True), ("", True)])
def test_what_comes_back_with_other_workers_has_all_its_places(workers, taken):
    """It was registered anew, and TorchServe never answers what it had of the old one. With one place to a model, it
    would be no use for as long as a task may take.
    """
    whole = with_workers(fleet(deployed=2, code=None), "old")
    scheduler = Scheduler(whole, plain(deadline_s=300.0))
    tasks = [sends(scheduler.query_arrived(Query(n, POOL), 0.0))[0] for n in range(2)]
    lost = next(task for task in tasks if task.endpoint.name == "d0")
    other = next(task for task in tasks if task is not lost)
    assert scheduler.endpoints_changed(without(whole, "d0"), 1.0) == [], "d1 has no place"
    [moved] = sends(scheduler.task_done(other, Arrived(), 1.1))
    scheduler.task_done(moved, Arrived(), 1.2)
    scheduler.endpoints_changed(with_workers(whole, workers, "d0"), 2.0)
    sent = sends(scheduler.query_arrived(Query(2, POOL), 3.0)) + sends(scheduler.query_arrived(Query(3, POOL), 3.0))
    assert {task.endpoint.name for task in sent} == ({"d1"} if taken else {"d0", "d1"})
    open_tasks = [lost, *sent]  # whatever becomes of what was lost
    while open_tasks:
        open_tasks += sends(scheduler.task_done(open_tasks.pop(0), Arrived(), 130.0))
    assert (scheduler.open_queries(), scheduler.in_flight()) == (0, 0)


def test_what_nobody_else_could_serve_is_asked_again_of_the_same_model_registered_anew():
    whole = with_workers(fleet(deployed=1, code=None), "old")
    scheduler = Scheduler(whole, plain(deadline_s=30.0))
    [lost] = sends(scheduler.query_arrived(Query(0, POOL), 0.0))
    assert scheduler.endpoints_changed(without(whole, "d0"), 1.0) == []
    [new] = sends(scheduler.endpoints_changed(with_workers(whole, "new"), 2.0))
    assert (new.query.id, new.endpoint.name) == (0, "d0")
    assert len(scheduler.task_done(new, Arrived(), 2.1)) == 1
    assert scheduler.task_done(lost, Failed("no answer in time"), 130.0) == []
    assert (scheduler.open_queries(), scheduler.in_flight()) == (0, 0)


def test_a_protection_registered_anew_has_its_places_too():
    whole = with_workers(fleet(deployed=2), "old")
    scheduler = Scheduler(whole, plain(reconstruct_after_s=0.05, deadline_s=30.0))
    sent = [task for n in (0, 1) for task in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    [lost] = [task for task in sent if task.kind is Kind.PROTECTION]
    scheduler.endpoints_changed(without(whole, lost.endpoint.name), 1.0)
    for task in sent:
        if task is not lost:
            scheduler.task_done(task, Arrived(), 1.1)
    scheduler.endpoints_changed(with_workers(whole, "new", lost.endpoint.name), 2.0)
    again = [task for n in (2, 3) for task in sends(scheduler.query_arrived(Query(n, POOL, "k"), 3.0))]
    assert [task.endpoint.name for task in again if task.kind is Kind.PROTECTION] == [lost.endpoint.name]


def test_a_second_copy_left_behind_is_simply_gone():
    whole = fleet(deployed=3, code=None)
    scheduler = Scheduler(whole, plain(copies=True, extra_work=1.0, hedge_after_s=0.05))
    [own] = sends(scheduler.query_arrived(Query(0, POOL), 0.0))
    [copy] = sends(scheduler.tick(0.05))
    assert copy.hedge
    assert scheduler.endpoints_changed(without(whole, copy.endpoint.name), 0.1) == []
    [answer] = scheduler.task_done(own, Arrived(), 0.2)
    assert answer.source is Source.DEPLOYED
    assert scheduler.task_done(copy, Arrived(), 0.3) == []


def test_a_protection_left_behind_is_launched_elsewhere_or_given_up():
    for protections, elsewhere in ((2, True), (1, False)):
        whole = fleet(deployed=2, protections=protections)
        scheduler = Scheduler(whole, plain(reconstruct_after_s=0.05, deadline_s=30.0))
        own, other, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
        assert protection.kind is Kind.PROTECTION
        scheduler.task_done(own, Arrived(True), 0.01)
        again = sends(scheduler.endpoints_changed(without(whole, protection.endpoint.name), 0.02))
        assert [task.kind for task in again] == [Kind.PROTECTION] * elsewhere
        actions = scheduler.task_done(other, Failed("bad", retry=False), 0.03)
        assert [type(action) for action in actions] == [] if elsewhere else [Fail]
        scheduler.task_done(protection, Arrived(), 0.04)
        assert scheduler.open_queries() == elsewhere, "the old one serves as well"


def test_a_finish_left_behind_is_asked_for_elsewhere():
    whole = fleet(deployed=3)
    scheduler = Scheduler(whole, plain(reconstruct_after_s=0.05, deadline_s=30.0))
    own, other, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    scheduler.task_done(own, Arrived(True), 0.01)
    scheduler.task_done(protection, Arrived(), 0.01)
    [finish] = sends(scheduler.tick(0.05))
    [again] = sends(scheduler.endpoints_changed(without(whole, finish.endpoint.name), 0.06))
    assert (again.kind, again.query.id) == (Kind.FINISH, 1)
    assert again.endpoint.name != finish.endpoint.name
    [answer] = scheduler.task_done(again, Arrived(), 0.07)
    assert answer.source is Source.RECONSTRUCTED
    for task in (finish, other):
        assert scheduler.task_done(task, Failed("gone"), 0.08) == []
    assert scheduler.in_flight() == 0


def test_a_finish_goes_to_no_endpoint_that_is_gone():
    """Its protection has just answered, so it is asked first, but meanwhile it has been unregistered."""
    whole = fleet(deployed=3)
    scheduler = Scheduler(whole, plain(reconstruct_after_s=0.05))
    own, _, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    scheduler.task_done(own, Arrived(True), 0.01)
    scheduler.task_done(protection, Arrived(), 0.01)
    assert scheduler.endpoints_changed(without(whole, protection.endpoint.name), 0.02) == []
    [finish] = sends(scheduler.tick(0.05))
    assert (finish.kind, finish.endpoint.name) == (Kind.FINISH, "d2")


@pytest.mark.parametrize("own_fails", [True, False])
@pytest.mark.parametrize("when", ["before its release", "while it is finished"])
def test_a_query_whose_answer_nobody_can_finish_any_more_does_not_hang(when, own_fails):
    """Everything to rebuild it is there when its pool goes. It hung to its deadline."""
    scheduler = Scheduler(fleet(deployed=2), plain(reconstruct_after_s=0.05, deadline_s=30.0))
    own, other, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    scheduler.task_done(own, Arrived(True), 0.01)
    scheduler.task_done(protection, Arrived(), 0.01)
    now = 0.02
    if when != "before its release":
        now = 0.05
        assert [task.kind for task in sends(scheduler.tick(now))] == [Kind.FINISH]
    ended = scheduler.endpoints_changed(Fleet((), (), ()), now)
    if own_fails:
        ended += scheduler.task_done(other, Failed("worker died"), now)
    ended += scheduler.tick(0.051)
    assert [(action.query.id, type(action)) for action in ended] == [(1, Fail)]
    assert scheduler.open_queries() == 0


def test_endpoints_that_come_and_go_lose_nothing():
    """One of three is discovered and gone again ten times; ten queries are in flight each time."""
    whole = fleet(deployed=3, code=None, places=8)
    scheduler = Scheduler(whole, plain(deadline_s=30.0))
    flying, answered, number = [], set(), 0
    for turn in range(20):
        now = float(turn)
        for _ in range(10):
            flying += sends(scheduler.query_arrived(Query(number, POOL), now))
            number += 1
        changed = without(whole, "d0") if turn % 2 == 0 else whole
        flying += sends(scheduler.endpoints_changed(changed, now + 0.1))
        for task in [*flying]:
            if task.endpoint.name != "d0":
                flying.remove(task)
                actions = scheduler.task_done(task, Arrived(), now + 0.2)
                answered |= {action.query.id for action in actions if isinstance(action, Answer)}
                flying += sends(actions)
    flying += sends(scheduler.endpoints_changed(without(whole, "d0"), 21.0))
    for task in flying:
        actions = scheduler.task_done(task, Arrived() if task.endpoint.name != "d0" else Failed("gone"), 22.0)
        answered |= {action.query.id for action in actions if isinstance(action, Answer)}
    assert answered == set(range(number))


# ---- queries that kill their workers -------------------------------------------------------------------------------


def test_a_query_that_kills_its_workers_is_sent_to_two_at_most():
    rows = [(0, 0.001, "killed")] + [("retry 0", 0.001, "killed")] * 9
    run = scenario(arrivals=[0.0], code=None, deployed=9, tasks=rows, policy={"max_attempts": 9})
    assert len(run.sends(0)) == 2
    assert run.failures == {0: ("failed", 0.002)}
    assert run.nothing_left_over()


def test_whoever_was_in_the_same_batch_has_one_more_attempt_whatever_the_budget():
    """A worker with a batch of 32 dies of one of them: 31 are innocent."""
    rows = [(n, 0.005, "killed") for n in range(32)] + [("retry 7", 0.001, "killed")]
    run = scenario(arrivals=[0.0] * 32, code=None, deployed=3, places=64, tasks=rows, policy={"retry_burst": 1.0})
    assert set(run.failures) == {7}
    assert len(run.answers) == 31


def test_after_a_worker_has_died_nothing_but_one_attempt_is_made():
    """Whatever else fails then: the attempts that are left are for others."""
    rows = [(0, 0.001, "killed"), ("retry 0", 0.001, "fail")]
    run = scenario(arrivals=[0.0], code=None, deployed=9, tasks=rows, policy={"max_attempts": 9})
    assert len(run.sends(0)) == 2
    assert run.failures == {0: ("failed", 0.002)}


@pytest.mark.parametrize("nothing_run", ["reject", "unreachable"])
def test_who_has_run_nothing_cannot_have_been_killed(nothing_run):
    rows = [(0, 0.001, "killed"), ("retry 0", 0.001, nothing_run)]
    run = scenario(arrivals=[0.0], code=None, deployed=9, tasks=rows)
    assert len(run.sends(0)) == 3
    assert set(run.answers) == {0}


def test_a_finish_that_waits_while_the_one_before_kills_is_the_one_more():
    """The first is left behind by its endpoint and so is no attempt; but both of them have been waited for too long.
    Nobody has a place for another until the second kills its worker: then it goes, and nothing after it.
    """
    whole = fleet(deployed=2, protections=2)
    scheduler = Scheduler(whole, plain(reconstruct_after_s=0.01))
    own, other, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    scheduler.task_done(protection, Arrived(), 0.001)
    scheduler.task_done(other, Arrived(True), 0.001)
    [first] = sends(scheduler.task_done(own, Failed("refused", retry=False), 0.001))
    for number in (2, 3):  # they take what places the others have
        scheduler.query_arrived(Query(number, POOL), 0.002)
    [second] = sends(scheduler.endpoints_changed(without(whole, first.endpoint.name), 0.003))
    assert scheduler.tick(0.02) == []
    [third] = sends(scheduler.task_done(second, Failed("killed", cause=Cause.WORKER_DIED), 0.021))
    assert {(task.kind, task.query.id) for task in (first, second, third)} == {(Kind.FINISH, 0)}
    [failed] = scheduler.task_done(third, Failed("broken", cause=Cause.LOST), 0.022)
    assert (type(failed), failed.query.id) == (Fail, 0)


def test_a_finish_that_waits_beside_its_waiting_query_is_given_up_when_the_one_before_kills():
    """The query's own attempt is the one more."""
    scheduler = Scheduler(fleet(deployed=2, protections=1), plain(reconstruct_after_s=0.01))
    own, other, protection = [t for n in (0, 1) for t in sends(scheduler.query_arrived(Query(n, POOL, "k"), 0.0))]
    scheduler.task_done(protection, Arrived(), 0.001)
    scheduler.task_done(other, Arrived(True), 0.001)
    [busy] = sends(scheduler.query_arrived(Query(2, POOL), 0.001))
    scheduler.query_arrived(Query(3, POOL), 0.001)
    sent = sends(scheduler.task_done(own, Failed("nobody", cause=Cause.UNREACHABLE), 0.002))
    [first] = [task for task in sent if task.kind is Kind.FINISH]
    assert sends(scheduler.tick(0.013)) == [], "another finish and the query itself wait for a place"
    assert sends(scheduler.task_done(first, Failed("killed", cause=Cause.WORKER_DIED), 0.014)) == []
    [again] = sends(scheduler.task_done(busy, Arrived(), 0.015))
    assert (again.kind, again.query.id) == (Kind.DEPLOYED, 0)
    [failed] = scheduler.task_done(again, Failed("killed", cause=Cause.WORKER_DIED), 0.016)
    assert (type(failed), failed.query.id) == (Fail, 0)


def test_what_waits_for_its_backup_only_is_told_when_its_group_on_trial_kills_a_worker():
    """The trial of others has ended well meanwhile. No backup gets it any more, so there is nothing to wait for."""
    whole = fleet(deployed=2, code="student", k=1, protections=1, proved=False)
    scheduler = Scheduler(whole, plain(launch="late"))
    own, trial = (send.task for send in scheduler.query_arrived(Query(0, POOL, "k"), 0.0))
    (pool,) = scheduler.pools()
    pool.trust.standing, pool.protecting = Standing.IN_USE, True
    assert scheduler.task_done(own, Failed("refused", retry=False), 0.01) == []
    [failed] = scheduler.task_done(trial, Failed("killed", cause=Cause.WORKER_DIED), 0.02)
    assert (type(failed), failed.query.id) == (Fail, 0)


HEDGED = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.03}


def test_a_second_copy_is_the_one_more():
    rows = [(0, 0.040, "killed"), ("hedge 0", 0.020, "killed")]
    run = scenario(arrivals=[0.0], code=None, deployed=5, tasks=rows, policy=HEDGED)
    assert (len(run.sends(0)), len(run.sends("hedge 0"))) == (1, 1)
    assert run.failures == {0: ("failed", 0.050)}


@pytest.mark.parametrize("copy", ["fail", "reject"])
def test_a_second_copy_that_does_not_kill_leaves_the_one_more(copy):
    rows = [(0, 0.040, "killed"), ("hedge 0", 0.020, copy)]
    run = scenario(arrivals=[0.0], code=None, deployed=5, tasks=rows, policy=HEDGED)
    assert [at for at, _ in run.sends(0)] == [0.0, 0.050]
    assert set(run.answers) == {0}


def test_no_second_copy_is_made_of_what_may_kill():
    rows = [(0, 0.010, "killed"), ("retry 0", 0.300, "ok")]
    run = scenario(arrivals=[0.0], code=None, deployed=5, tasks=rows, policy=HEDGED)
    assert run.sends("hedge 0") == []
    assert run.answers == {0: ("deployed", 0.310)}


@pytest.mark.parametrize("code", ["sum", "student", "exact"])
def test_a_protection_that_has_it_is_the_one_more(code):
    """Both are sent together, and both die of query 0; its neighbour is innocent."""
    rows = [(0, 0.010, "killed"), ("parity 0", 0.020, "killed"), (1, 0.200, "ok")]
    run = scenario(arrivals=[0.0, 0.0], code=code, tasks=rows)
    assert len(run.sends(0)) == 1
    assert len(run.sends("parity 0")) == 1
    assert run.failures == {0: ("failed", 0.020)}
    assert run.answers == {1: ("deployed", 0.200)}
    assert run.nothing_left_over()


@pytest.mark.parametrize("code", ["sum", "student"])
def test_a_protection_that_survives_it_leaves_the_one_more(code):
    """An innocent query in a batch with a killer: its group's protection fails for some other reason."""
    rows = [(0, 0.010, "killed"), ("parity 0", 0.020, "fail")]
    run = scenario(arrivals=[0.0, 0.0], code=code, tasks=rows)
    assert [at for at, _ in run.sends(0)] == [0.0, 0.020]
    assert set(run.answers) == {0, 1}


@pytest.mark.parametrize("exact", [False, True])
def test_an_innocent_query_is_rebuilt_or_tried_again(exact):
    rows = [(0, 0.015, "killed"), ("parity 0", 0.030, "ok")]
    run = scenario(arrivals=[0.0, 0.0], code="student", tasks=rows, exact=[0] if exact else [])
    assert run.answers[0] == (("deployed", 0.040) if exact else ("reconstructed", 0.030))


@pytest.mark.parametrize("code", ["sum", "student"])
def test_a_protection_that_waits_for_a_place_goes_without_it(code):
    """The protection's only machine is busy with another group; query 2 kills its worker meanwhile."""
    rows = [("parity 0", 0.100, "ok"), (2, 0.010, "killed"), ("retry 2", 0.5, "ok"), (3, 0.300, "ok")]
    run = scenario(arrivals=[0.0, 0.0, 0.001, 0.001], code=code, tasks=rows)
    second = [task for task in run.tasks if task.kind is Kind.PROTECTION][1]
    assert second.group.sent[0] == frozenset({1})
    assert len(run.sends(2)) == 2
    assert run.answers[2] == ("deployed", pytest.approx(0.511))
    assert run.answers[3][0] == ("deployed" if code == "sum" else "reconstructed") or code == "sum"
    assert run.nothing_left_over()


def test_a_protection_for_full_groups_only_is_not_asked_with_one_less():
    rows = [("parity 0", 0.100, "ok"), (2, 0.010, "killed"), ("retry 2", 0.5, "ok"), (3, 0.300, "ok")]
    run = scenario(arrivals=[0.0, 0.0, 0.001, 0.001], tasks=rows, partial=False)
    assert len(run.sends("parity 0")) == 1
    assert run.answers[3] == ("deployed", pytest.approx(0.301))
    assert run.nothing_left_over()


def test_no_late_backup_of_what_may_kill():
    rows = [(0, 0.010, "killed"), ("retry 0", 0.300, "ok")]
    late = {"launch": "late", "launch_after_s": 0.05}
    run = scenario(arrivals=[0.0], code="student", k=1, tasks=rows, policy=late)
    assert run.sends("parity 0") == []
    assert run.answers == {0: ("deployed", 0.310)}
