"""What is promised at the top of engine/life.py, in random worlds; see `world`, which looks after each event."""

import gc
import random
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.world import World, some_fleet, some_policy
from ts_parity.codes import make_code
from ts_parity.engine import Arrived, Endpoint, Failed, Fleet, Instance, Pool, Query, Scheduler, Send, plain

DICE = st.randoms(use_true_random=False)


@pytest.mark.slow
@settings(max_examples=150)
@given(DICE)
def test_the_promises(dice):
    world = World(dice)
    world.play(dice.randint(1, 60))
    world.check_repeatable()


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 1500, 250))
def test_the_promises_in_many_worlds(start):
    """Drawn evenly, and four times as fast; hypothesis makes its failures small."""
    for seed in range(start, start + 250):
        world = World(random.Random(seed))
        try:
            world.play(world.dice.randint(10, 60))
            world.check_repeatable()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.slow
@settings(max_examples=20)
@given(DICE)
def test_timers_of_answered_queries_do_not_pile_up(dice):
    fleet = some_fleet(dice)
    scheduler = Scheduler(fleet, some_policy(dice))
    for number in range(1000):
        actions = scheduler.query_arrived(Query(number, fleet.pools[0].name, 1), number * 1e-4)
        while sends := [a.task for a in actions if isinstance(a, Send)]:
            actions = [b for task in sends for b in scheduler.task_done(task, Arrived(True), number * 1e-4)]
    # Open groups may wait for members with their timers armed; what is stale is bounded.
    stale = scheduler._timers.stale()
    assert stale <= 2 * 256 + 8 * (scheduler.open_queries() + 1)


def test_what_was_answered_is_freed_without_the_garbage_collector():
    """Requests are large, and cycles between queries and groups would keep them until it runs."""

    class Body:
        pass

    fleet = Fleet(
        (Instance("a", 1, "a"), Instance("b", 1, "b")),
        (Endpoint("d", "a", "m", None, 1), Endpoint("p", "b", "m", 0, 1)),
        (Pool("m", make_code("sum", 2, 1)),),
    )
    scheduler = Scheduler(fleet, plain())
    bodies = []
    gc.disable()
    try:
        for number in range(1000):
            query = Query(number, "m", 1, payload=Body())
            bodies.append(weakref.ref(query.payload))
            actions = scheduler.query_arrived(query, number * 1e-4)
            failed = number % 10 == 0
            while sends := [a.task for a in actions if isinstance(a, Send)]:
                outcome = Failed("no") if failed else Arrived(True)
                failed = False
                actions = [b for task in sends for b in scheduler.task_done(task, outcome, number * 1e-4)]
        assert sum(body() is not None for body in bodies) <= 300  # those that a stale timer still names
    finally:
        gc.enable()
