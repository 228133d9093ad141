"""Release alone: when a rebuilt answer may be used, and by whom."""

import pytest

from ts_parity.engine import Query, plain
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.query import QueryState
from ts_parity.engine.release import MAX_FINISHES, Release

from .made import group_of


def seen(*latencies):
    window = LatencyWindow()
    for latency in latencies:
        window.add(latency)
    return window


def test_as_set_and_else_as_measured_and_before_that_a_guess():
    assert Release(plain(reconstruct_after_s=0.2), seen()).after_s == 0.2
    assert Release(plain(), seen()).after_s == plain().reconstruct_cold_s
    assert Release(plain(), seen(*[0.01] * 100)).after_s == pytest.approx(0.01)


def test_where_backups_are_launched_late_their_answers_are_used_at_once():
    release = Release(plain(), seen(*[0.010 + 0.0001 * n for n in range(100)]))
    usual = release.after_s
    release.late = True
    assert release.after_s < usual


@pytest.mark.parametrize(("at", "finishes", "due"), [(0.9, 0, False), (1.0, 0, True), (1.0, 1, False)])
def test_due_when_it_has_waited_and_nothing_is_being_made_of_an_output(at, finishes, due):
    query = Query(0, "m")
    query.release_at, query.finishes_pending = 1.0, finishes
    assert Release.is_due(query, at) is due


@pytest.mark.parametrize(
    ("code", "exact", "finisher", "may"),
    [
        ("sum", False, True, True),
        ("sum", False, False, False),
        ("student", False, False, True),
        ("student", True, True, False),
        ("exact", True, False, True),
    ],
)
def test_whose_answer_may_be_rebuilt(code, exact, finisher, may):
    query = Query(0, "m", exact=exact)
    assert Release.may_be_rebuilt(query, group_of("a", code=code), finisher) is may


def test_what_two_instances_could_not_finish_is_given_up():
    query = Query(0, "m")
    query.finish_attempts = MAX_FINISHES
    assert not Release.may_be_finished(query, True)


@pytest.mark.parametrize(
    ("state", "may"), [(QueryState.RUNNING, True), (QueryState.WAITING, False), (QueryState.POSTPONED, False)]
)
def test_what_may_have_killed_a_worker_is_finished_only_if_it_does_not_run_itself(state, may):
    query = Query(0, "m")
    query.kills, query.state = 1, state
    assert Release.may_be_finished(query, True) is may
