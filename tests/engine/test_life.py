"""The table at the top of engine/life.py: what it says, what is done, and what happens are the same."""

import random
from pathlib import Path

import pytest

from ts_parity.engine import Arrived, Cause, Failed, Kind, Query, Scheduler, Send, life, plain
from ts_parity.engine.life import TABLE, Event, move
from ts_parity.engine.query import QueryState
from ts_parity.testing import POOL, fleet

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


def test_every_row_happens(monkeypatch):
    """Soon, in one world or another; and in none does anything else, for it would raise."""
    if not life.__file__.endswith(".py"):
        pytest.skip("compiled, so that nobody can listen")
    seen = set()

    def recorded(query, event):
        seen.add((query.state, event))
        move(query, event)

    monkeypatch.setattr(life, "move", recorded)
    for seed in range(400):
        if len(seen) == len(ROWS):
            break
        World(random.Random(seed)).play(40)
    test_its_copy_kills_a_worker_while_the_protection_still_has_it()
    assert seen == ROWS.keys()


def test_its_copy_kills_a_worker_while_the_protection_still_has_it():
    """Its own task is lost for good. Its next attempt is due when the protection has brought nothing, not before."""
    policy = plain(hedge_ratio=1.0, hedge_after_s=0.05, launch="group")
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
