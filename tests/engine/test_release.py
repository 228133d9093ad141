"""Release: when a rebuilt answer may be used, and by whom; the rule alone, and at work in virtual time."""

import pytest

from tests.engine.races import NEVER
from ts_parity.engine import LOSSLESS, Query, plain
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.query import QueryState
from ts_parity.engine.release import MAX_FINISHES, Release
from ts_parity.engine.trust import UNREPORTED
from ts_parity.testing import scenario

from .made import group_of


def seen(*latencies):
    window = LatencyWindow()
    for latency in latencies:
        window.add(latency)
    return window


def rule(**policy):
    return Release(plain(**policy), LatencyWindow())


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
    ("code", "least", "finisher", "may"),
    [
        ("sum", 0.0, True, True),
        ("sum", 0.0, False, False),
        ("student", 0.0, False, True),
        ("student", LOSSLESS, True, False),
        ("student", 0.99, False, True),
        ("exact", LOSSLESS, False, True),
        ("exact", 1.0, False, True),
    ],
)
def test_whose_answer_may_be_rebuilt(code, least, finisher, may):
    group = group_of("a", code=code)
    group.members[0].least = least
    assert rule().may_be_rebuilt(group.members[0], group, finisher) is may


@pytest.mark.parametrize(("agreement", "may"), [(0.98, False), (0.99, True)])
def test_a_client_that_wants_confidence_gets_nothing_in_more_doubt(agreement, may):
    """What has not come yet may be sure enough."""
    group = group_of("a", code="student", k=1)
    [query] = group.members
    query.least = 0.99
    assert rule().may_be_rebuilt(query, group, False)
    group.agreement = {0: agreement}
    assert rule().may_be_rebuilt(query, group, False) is may


def test_what_came_without_a_word_is_as_good_as_its_protection_usually_is():
    group = group_of("a", code="student", k=1)
    [query] = group.members
    group.covers = {0: frozenset({0})}
    for query.least, may in ((UNREPORTED, True), (UNREPORTED + 0.01, False)):
        assert rule().may_be_rebuilt(query, group, False) is may


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


# ---- in the engine --------------------------------------------------------------------------------------------------


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
