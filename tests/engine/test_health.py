"""Health: who is left alone, for how long, and how it comes back; in virtual time."""

from ts_parity.engine import (
    Answer,
    Arrived,
    Failed,
    Query,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.health import Condition, Health
from ts_parity.testing import POOL, fleet, scenario


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


def test_what_failed_is_not_merely_slow_because_an_older_task_of_it_comes_late():
    """Endpoints that are out for their slowness alone help in a crowd; this one would fail the crowd."""
    health = Health(1, 1.0)
    health.failed(0.0)
    health.was_slow(0.5, sure=True)
    assert (health.condition, health.only_slow) == (Condition.OUT, False)
    health.sent(2.0)
    health.was_slow(2.1, sure=False)
    assert (health.condition, health.only_slow) == (Condition.OUT, True)
