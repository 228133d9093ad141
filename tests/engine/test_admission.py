"""Overload: who is sent, who is refused, and when. Virtual time; a service of 10 ms unless a test says otherwise."""

import math
from itertools import chain

import pytest

from tests.engine.races import NEVER
from ts_parity.engine import (
    Answer,
    Arrived,
    Fail,
    Query,
    Scheduler,
    plain,
)
from ts_parity.engine.admission import Admission, PatienceMeter, Verdict
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.testing import POOL, fleet, scenario

WARM = [0.1 * i for i in range(20)]
"""Twenty answers, so that the usual time is known."""
T0 = 5.0


def overload(arrivals, deadline_s=None, leave_s=None, deployed=1, policy=None, **shape):
    """WARM, then queries from T0 on; the latter's numbers count from 0 in what is returned."""
    first = len(WARM)
    at = [*WARM, *(T0 + a for a in arrivals)]
    numbers = range(first, len(at))
    run = scenario(
        arrivals=at,
        code=None,
        deployed=deployed,
        deadlines={n: at[n] + deadline_s for n in numbers} if deadline_s else None,
        abandons={n: at[n] + leave_s for n in numbers} if leave_s else None,
        policy={"deadline_s": 30.0, **(policy or {})},
        **shape,
    )
    assert run.nothing_left_over()
    answers = {n - first: round(when - T0, 6) for n, (_, when) in run.answers.items() if n >= first}
    failures = {n - first: (why, round(when - T0, 6)) for n, (why, when) in run.failures.items() if n >= first}
    order = [int(what) - first for at, what, _ in run.sent if at >= T0]
    return answers, failures, order


# ---- what cannot be answered in time -------------------------------------------------------------------------------


def test_what_cannot_finish_in_time_is_not_sent_and_is_told_so_at_once():
    answers, failures, order = overload([0.0, 0.0], deadline_s=0.015)
    assert answers == {0: 0.010}
    assert failures == {1: ("overloaded", 0.005)}
    assert order == [0]


def test_a_place_that_comes_free_before_a_timer_that_is_late_is_not_wasted():
    """On a busy machine the answer may be heard of first."""
    scheduler = Scheduler(fleet(deployed=1, code=None), plain())

    for number, at in enumerate(WARM):
        [send] = scheduler.query_arrived(Query(number, POOL, None), at)
        scheduler.task_done(send.task, Arrived(), at + 0.01)
    [own] = scheduler.query_arrived(Query(100, POOL, None), T0)
    waiting = Query(101, POOL, None, T0 + 0.05)
    assert scheduler.query_arrived(waiting, T0) == []
    actions = scheduler.task_done(own.task, Arrived(), T0 + 0.045)
    assert [type(action) for action in actions] == [Answer, Fail]


def test_one_that_finds_a_place_is_sent_whatever_is_usual():
    """Else nobody would notice that everything has become faster."""
    answers, _, order = overload([0.0], deadline_s=0.005)
    assert order == [0]
    assert answers == {}


def test_one_that_finds_no_place_and_has_less_time_than_usual_is_refused_at_once():
    _, failures, _ = overload([0.0, 0.001], deadline_s=0.008)
    assert failures[1] == ("overloaded", 0.001)


def test_whom_the_queue_before_it_leaves_no_time_is_refused_on_arrival():
    """Ten at once, one at a time, 55 ms for each: the sixth could not be sent before 50 ms."""
    answers, failures, _ = overload([0.0] * 10, deadline_s=0.055)
    assert len(answers) >= 4
    assert [failures[n] for n in range(7, 10)] == [("overloaded", 0.0)] * 3


def test_as_long_as_nobody_knows_what_is_usual_time_itself_is_the_limit():
    run = scenario(arrivals=[0.0, 0.0], code=None, deployed=1, tasks=[(0, 0.0, "never")], deadlines={0: 0.2, 1: 0.2})
    assert run.failures == {0: ("deadline", 0.2), 1: ("deadline", 0.2)}


def test_the_default_answer_is_given_as_soon_as_there_will_be_no_other():
    answers, failures, _ = overload([0.0, 0.0], deadline_s=0.015, policy={"default_answer": True})
    assert answers == {0: 0.010, 1: 0.005}
    assert failures == {}


# ---- order ---------------------------------------------------------------------------------------------------------


def test_without_deadlines_the_order_is_that_of_arrival():
    answers, failures, order = overload([0.001 * i for i in range(300)])
    assert order == list(range(300))
    assert failures == {}
    assert len(answers) == 300


def test_a_burst_that_will_be_served_in_time_is_served_in_order():
    _, failures, order = overload([0.0] * 5, deadline_s=0.2)
    assert order == list(range(5))
    assert failures == {}


@pytest.mark.parametrize("load", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    "clients", [{"deadline_s": 0.03}, {"deadline_s": 0.1}, {"leave_s": 0.1}], ids=["30 ms", "100 ms", "leave"]
)
def test_under_overload_nearly_all_work_is_for_somebody(load, clients):
    """Services of 10 ms, so the deadlines are three and ten of them; four machines."""
    seconds, machines = 2.0, 4
    rate = load * machines / 0.010
    arrivals = [i / rate for i in range(int(seconds * rate))]
    answers, _, _ = overload(arrivals, deployed=machines, **clients)
    limit = next(iter(clients.values()))
    in_time = sum(when - arrivals[n] <= limit + 1e-9 for n, when in answers.items())
    assert in_time >= 0.95 * seconds * machines / 0.010


def test_when_load_falls_newcomers_are_served_as_ever_at_once():
    crowd = [i / 1000 for i in range(500)]
    after = [0.6 + 0.02 * i for i in range(20)]
    for clients in ({"deadline_s": 0.1}, {"leave_s": 0.1}):
        answers, _, _ = overload([*crowd, *after], **clients)
        waited = [answers[500 + i] - at for i, at in enumerate(after)]
        assert sorted(waited)[10] == pytest.approx(0.010)


def test_those_passed_over_are_served_when_load_falls():
    """A standing queue, then nobody: what waits and can still make it is served."""
    crowd = [i / 150 for i in range(60)]
    answers, failures, _ = overload(crowd, deadline_s=0.2)
    assert len(answers) + len(failures) == 60
    assert max(answers.values()) > crowd[-1] + 0.05


def test_none_waits_longer_than_max_wait_though_newer_ones_come_for_ever():
    crowd = [i / 200 for i in range(2000)]
    _, failures, _ = overload(crowd, leave_s=20.0, deadline_s=3.0, policy={"max_wait_s": 1.0})
    assert all(when - crowd[n] <= 1.0 + 1e-6 for n, (_, when) in failures.items())


def test_where_the_newest_goes_first_the_oldest_makes_room():
    """Two hundred may wait, and all of a crowd that leaves after a second would: newcomers are not the ones refused."""
    crowd = [i / 400 for i in range(1600)]
    answers, failures, _ = overload(crowd, leave_s=1.0, policy={"max_waiting": 200})
    waited = [answers[n] - crowd[n] for n in range(1200, 1600) if n in answers]
    assert sorted(waited)[len(waited) // 2] < 0.05
    refused_at_once = [n for n, (_, when) in failures.items() if n >= 1200 and when == pytest.approx(crowd[n])]
    assert refused_at_once == []


def test_a_few_impatient_clients_do_not_turn_the_order_round_for_all():
    crowd = [i / 150 for i in range(450)]
    leaving = {len(WARM) + n: T0 + crowd[n] + 0.1 for n in range(0, 450, 20)}
    run = scenario(
        arrivals=[*WARM, *(T0 + at for at in crowd)],
        code=None,
        deployed=1,
        abandons=leaving,
        policy={"deadline_s": 30.0},
    )
    sent = [int(what) for at, what, _ in run.sent if at >= T0]
    assert sent == sorted(sent)


def test_a_query_that_has_failed_goes_before_the_newest_too():
    crowd = [0.0, *(0.001 * i for i in range(100))]
    at = [*WARM, *(T0 + a for a in crowd)]
    first = len(WARM)
    run = scenario(
        arrivals=at,
        code=None,
        deployed=1,
        tasks=[(first + 1, 0.040, "fail")],
        deadlines={n: at[n] + 0.1 for n in range(first, len(at))},
        policy={"deadline_s": 30.0},
    )
    assert [int(what) - first for when, what, _ in run.sent if when >= T0][:3] == [0, 1, 1]


def test_a_query_whose_instance_was_full_goes_before_the_newest():
    """What was sent already and came back must not be passed over by all who came since."""
    crowd = [0.0, *(0.001 * i for i in range(100))]
    at = [*WARM, *(T0 + a for a in crowd)]
    first = len(WARM)
    run = scenario(
        arrivals=at,
        code=None,
        deployed=1,
        tasks=[(first, 0.060, "reject")],
        deadlines={n: at[n] + 0.1 for n in range(first, len(at))},
        policy={"deadline_s": 30.0, "reject_pause_s": 0.005},
    )
    assert [int(what) - first for when, what, _ in run.sent if when >= T0][:2] == [0, 0]


# ---- the parts -----------------------------------------------------------------------------------------------------


def test_the_patience_is_that_of_those_who_leave():
    meter = PatienceMeter()
    assert meter.patience_s == math.inf
    for _ in range(10):
        meter.left(1.0)
    assert meter.patience_s == 1.0


def test_a_few_who_leave_early_do_not_shorten_it():
    meter = PatienceMeter()
    for waited in chain([0.01] * 6, [1.0] * 26):
        meter.left(waited)
    assert meter.patience_s == 1.0


def test_those_who_stay_are_believed_too():
    meter = PatienceMeter()
    for _ in range(40):
        meter.left(1.0)
    for _ in range(40):
        meter.stayed(0.5)
    assert meter.patience_s == 1.0, "they had not waited for long enough to say anything"
    for _ in range(40):
        meter.stayed(2.0)
    assert meter.patience_s == math.inf


# ---- the rule alone ------------------------------------------------------------------------------------------------


def admission(usual_s=0.010, places=1, **policy):
    latency = LatencyWindow()
    for _ in range(100):
        latency.add(usual_s)
    rule = Admission(plain(**policy), latency)
    rule.adopt(places)
    return rule


def waiting(rule, number=0, arrived_at=0.0, deadline_at=1.0):
    query = Query(number, POOL, deadline_at=deadline_at)
    query.arrived_at = arrived_at
    rule.judge_time(query)
    return query


@pytest.mark.parametrize(
    ("others", "deadline_at", "verdict"),
    [(1, 1.0, Verdict.WAIT), (5, 0.05, Verdict.REFUSE), (3, 0.05, Verdict.WAIT), (7, 1.0, Verdict.REFUSE)],
)
def test_who_may_join_those_that_wait(others, deadline_at, verdict):
    rule = admission(max_waiting=7)
    oldest = waiting(rule)
    assert rule.judge(waiting(rule, 1, 0.0, deadline_at), oldest, others, 0.0) is verdict


def test_the_queue_takes_as_long_as_its_predictions_and_no_longer_than_it_may_wait():
    assert admission(0.010, places=2).clears_s(5) == pytest.approx(0.025)
    scheduler = Scheduler(fleet(deployed=1, code=None), plain(max_wait_s=0.05))
    for number in range(20):
        [send] = scheduler.query_arrived(Query(number, POOL), float(number))
        scheduler.task_done(send.task, Arrived(), number + 0.010)
    scheduler.query_arrived(Query(20, POOL), 21.0)
    for waiting, clears_s in ((0, 0.0), (1, 0.010), (2, 0.020)):
        assert scheduler.clears_s(POOL) == pytest.approx(clears_s)
        scheduler.query_arrived(Query(21 + waiting, POOL), 21.0)
    for number in range(30, 40):
        scheduler.query_arrived(Query(number, POOL), 21.0)
    assert scheduler.clears_s(POOL) == 0.05


def test_in_a_standing_queue_the_newest_goes_first_and_the_oldest_makes_room():
    rule = admission(max_waiting=7)
    oldest = waiting(rule, deadline_at=0.11)
    assert (oldest.start_by, oldest.stale_at) == pytest.approx((0.10, 0.05))
    assert [rule.newest_first(oldest, at) for at in (0.05, 0.06)] == [False, True]
    newest = waiting(rule, 1, 0.06, 0.2)
    assert rule.judge(newest, oldest, 3, 0.06) is Verdict.WAIT
    assert rule.judge(newest, oldest, 4, 0.06) is Verdict.MAKE_ROOM
    assert rule.judge(newest, oldest, 7, 0.06) is Verdict.MAKE_ROOM


def test_one_refused_makes_the_newest_go_first_for_as_long_as_it_waited():
    rule = admission()
    rule.refused(waiting(rule, deadline_at=0.05), 0.04)
    oldest = waiting(rule, 1, 0.04)
    assert [rule.newest_first(oldest, at) for at in (0.07, 0.08)] == [True, False]


def test_what_is_hopeless_is_asked_again_of_what_is_usual_now():
    rule = admission(usual_s=0.010)
    query = waiting(rule, deadline_at=0.05)
    assert [rule.is_hopeless(query, at) for at in (0.039, 0.041)] == [False, True]


# ---- in the engine --------------------------------------------------------------------------------------------------


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
