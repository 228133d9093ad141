"""Lives of single queries, and the table at the top of engine/life.py: it says what is done and what happens."""

import random
from pathlib import Path

import pytest

from tests.engine.races import NEVER
from ts_parity.engine import (
    Arrived,
    Cause,
    Endpoint,
    Failed,
    Fleet,
    Instance,
    Kind,
    Pool,
    Query,
    Scheduler,
    Send,
    life,
    plain,
)
from ts_parity.engine.life import TABLE, Event, move
from ts_parity.engine.query import QueryState
from ts_parity.testing import POOL, fleet, scenario

from .world import World

ROWS = {(state, event): after for state, events in TABLE.items() for event, after in events.items()}


def written():
    """The rows of the table in the docstring."""
    source = Path(life.__file__).with_name("life.py").read_text()  # compiled, it has no docstring
    lines = source.split("----------  ---", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    rows, state = {}, ""
    for line in lines:
        state = line[4:16].strip() or state
        event, after = line[16:27].strip().replace(" ", "_"), line.split()[-1]
        rows[QueryState[state.upper()], Event[event.upper()]] = QueryState[after.upper()]
    return rows


def test_the_table_of_the_docstring_is_the_one_that_is_used():
    assert written() == ROWS


@pytest.mark.parametrize("state", QueryState)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_makes_no_sense_raises_and_changes_nothing(state, event):
    query = Query(0, "m")
    query.state = state
    if (state, event) in ROWS:
        move(query, event)
        assert query.state is ROWS[state, event]
    else:
        with pytest.raises(ValueError, match="makes no sense"):
            move(query, event)
        assert query.state is state


@pytest.fixture
def moves(monkeypatch):
    """The rows of the table that are used from here on."""
    if not life.__file__.endswith(".py"):
        pytest.skip("compiled, so that nobody can listen")
    seen = set()

    def recorded(query, event):
        seen.add((query.state, event))
        move(query, event)

    monkeypatch.setattr(life, "move", recorded)
    return seen


@pytest.mark.slow
def test_every_row_happens(moves):
    """In one world or another, or in the rarest lives of all, which stand below. Anything else would raise."""
    for seed in range(300):
        World(random.Random(seed)).play(40)
    test_its_copy_kills_a_worker_while_the_protection_still_has_it()
    for own, copy, deployed, _ in COPIES_THAT_FAIL:
        its_own_and_then_its_copy_fail(own, copy, deployed)
    assert moves == ROWS.keys()


KILLED = Failed("killed", cause=Cause.WORKER_DIED)
COPIES_THAT_FAIL = [
    (Failed("refused", retry=False), Failed("broken"), 3, (QueryState.RELYING, Event.ELSEWHERE)),
    (Failed("refused", retry=False), Failed("broken"), 2, (QueryState.RELYING, Event.AGAIN)),
    (KILLED, Failed("broken"), 3, (QueryState.POSTPONED, Event.ELSEWHERE)),
]


def its_own_and_then_its_copy_fail(own, copy, deployed):
    """-> the query, and what is sent when both are gone."""
    policy = plain(copies=True, extra_work=1.0, hedge_after_s=0.05)
    scheduler = Scheduler(fleet(deployed=deployed, code=None), policy)
    query = Query(0, POOL)
    [first] = scheduler.query_arrived(query, 0.0)
    [second] = scheduler.tick(0.05)
    assert scheduler.task_done(first.task, own, 0.06) == []
    return query, scheduler.task_done(second.task, copy, 0.07)


@pytest.mark.parametrize(("own", "copy", "deployed", "row"), COPIES_THAT_FAIL)
def test_a_copy_that_fails_after_its_own_is_tried_again(moves, own, copy, deployed, row):
    query, [again] = its_own_and_then_its_copy_fail(own, copy, deployed)
    assert row in moves
    assert (again.task.query, query.state) == (query, QueryState.RUNNING)


def test_its_copy_kills_a_worker_while_the_protection_still_has_it():
    """Its own task is lost for good. Its next attempt is due when the protection has brought nothing, not before."""
    policy = plain(copies=True, extra_work=1.0, hedge_after_s=0.05, launch="group")
    scheduler = Scheduler(fleet(deployed=3, code="exact", k=1), policy)
    query = Query(0, POOL, "key")
    own, protection = (send.task for send in scheduler.query_arrived(query, 0.0))
    [copy] = scheduler.tick(0.05)
    assert scheduler.task_done(own, Failed("refused", retry=False), 0.06) == []
    assert query.state is QueryState.RELYING
    assert scheduler.task_done(copy.task, Failed("killed", cause=Cause.WORKER_DIED), 0.07) == []
    assert query.state is QueryState.POSTPONED
    [again] = scheduler.task_done(protection, Failed("broken"), 0.08)
    assert (again.task.query, again.task.kind, query.state) == (query, Kind.DEPLOYED, QueryState.RUNNING)


def test_a_life_with_a_retry():
    """waiting, running, retrying (no instance elsewhere is free), running, done."""
    scheduler = Scheduler(fleet(deployed=2, code=None), plain())
    other, query = Query(0, POOL), Query(1, POOL)
    [first] = scheduler.query_arrived(other, 0.0)
    [own] = scheduler.query_arrived(query, 0.0)
    assert query.state is QueryState.RUNNING
    assert scheduler.task_done(own.task, Failed("broken"), 0.01) == []
    assert query.state is QueryState.RETRYING
    answer, again = scheduler.task_done(first.task, Arrived(), 0.02)
    assert answer.query is other
    assert isinstance(again, Send)
    assert query.state is QueryState.RUNNING
    scheduler.task_done(again.task, Arrived(), 0.03)
    assert query.state is QueryState.DONE


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
    run = scenario(arrivals=[0.0] * 4, deadlines={0: 10.0, 1: 0.04}, **shape)
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
