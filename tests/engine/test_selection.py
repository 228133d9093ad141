"""Selection: which endpoint each kind of work goes to; the rule alone, and at work in virtual time."""

import pytest

from tests.engine.races import NEVER
from ts_parity.engine import Instance, Query, plain
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.release import Release
from ts_parity.engine.selection import Selection
from ts_parity.testing import scenario

from .made import endpoints, group_of, sent


def selection(deployed, rows=None, **policy):
    made = plain(reconstruct_after_s=0.05, **policy)
    chosen = Selection(made, Release(made, LatencyWindow()))
    chosen.adopt(deployed, rows or {})
    return chosen


def name(place):
    return place and place.name


def out(place, resumes_at):
    """Taken out until then; then it is due for a trial."""
    before = place.health.condition
    place.health.condition, place.health.resumes_at, place.health.clean = Condition.OUT, resumes_at, False
    place.peers.count(before, Condition.OUT)
    place.host.judge()


def test_a_query_goes_to_the_least_outstanding_and_of_these_to_the_longest_idle():
    deployed = endpoints(3, places=2)
    first, second, third = deployed.everyone
    rule = selection(deployed)
    assert name(rule.for_query(Query(0, "m"), 0.0, 1)) == "d0"
    sent(Query(0, "m"), first, 1)
    sent(Query(1, "m"), second, 2)
    assert name(rule.for_query(Query(2, "m"), 0.0, 1)) == "d2"
    sent(Query(2, "m"), third, 3)
    assert name(rule.for_query(Query(3, "m"), 0.0, 1)) == "d0"


def test_where_there_is_no_place_a_query_waits():
    deployed = endpoints(1)
    sent(Query(0, "m"), deployed.everyone[0])
    assert selection(deployed).for_query(Query(1, "m"), 0.0, 1) is None


@pytest.mark.parametrize(("overdue_s", "chosen"), [(0.04, None), (0.06, "d0")])
def test_one_more_than_its_places_where_the_reply_is_overdue(overdue_s, chosen):
    deployed = endpoints(1)
    sent(Query(0, "m"), deployed.everyone[0])
    assert name(selection(deployed, spare_places=1).for_query(Query(1, "m"), overdue_s, 1)) == chosen


@pytest.mark.parametrize(("overdue_s", "chosen"), [(0.06, None), (0.19, None), (0.21, "d0")])
def test_a_reply_to_a_big_query_is_overdue_later(overdue_s, chosen):
    deployed, big = endpoints(1), Query(0, "m")
    big.scale = 4.0
    sent(big, deployed.everyone[0])
    assert name(selection(deployed, spare_places=1).for_query(Query(1, "m"), overdue_s, 1)) == chosen


def late_before(place):
    """Its last answer was late."""
    place.health.clean = False
    place.host.judge()


def test_a_machine_whose_last_answer_was_late_gets_no_more_than_its_places():
    deployed = endpoints(1)
    sent(Query(0, "m"), deployed.everyone[0])
    late_before(deployed.everyone[0])
    assert selection(deployed, spare_places=1).for_query(Query(1, "m"), 0.06, 1) is None


def test_a_query_goes_to_a_busy_machine_before_an_idle_one_whose_last_answer_was_late():
    deployed = endpoints(2, places=2)
    sent(Query(0, "m"), deployed.everyone[1])
    late_before(deployed.everyone[0])
    query = Query(1, "m")
    query.avoid = frozenset({"elsewhere"})
    assert name(selection(deployed).for_retry(query, 0.0, 1)) == "d1"


def test_work_for_idle_machines_goes_where_the_smaller_share_is_taken():
    backups = endpoints(2, places=4, row=0)
    wide, narrow = backups.everyone
    wide.host.instance = Instance("d0", 8, "d0")
    for number in (1, 2):
        sent(Query(number, "m"), wide, number)
    sent(Query(3, "m"), narrow, 3)
    rule = selection(endpoints(1), {0: backups})
    narrow.host.instance = Instance("d1", 3, "d1")
    assert name(rule.for_protection(group_of("elsewhere"), 0, 0.0)) == "d0"


def test_a_query_that_has_failed_probes_no_endpoint_while_others_are_there():
    deployed = endpoints(2, places=2)
    out(deployed.everyone[0], 5.0)
    deployed.everyone[0].health.clean = True  # as soon as it may be asked again
    deployed.everyone[0].host.judge()
    sent(Query(0, "m"), deployed.everyone[1])
    fresh, failed = Query(1, "m"), Query(2, "m")
    failed.avoid = frozenset({"elsewhere"})
    rule = selection(deployed)
    assert (name(rule.for_query(fresh, 6.0, 1)), name(rule.for_query(failed, 6.0, 1))) == ("d0", "d1")


def test_a_second_copy_waits_where_only_the_querys_own_domain_is_idle():
    deployed = endpoints(3, domains=["rack", "rack", "elsewhere"])
    query = Query(0, "m")
    sent(query, deployed.everyone[0])
    sent(Query(1, "m"), deployed.everyone[2], 2)
    assert selection(deployed).for_hedge(query, 0.0) is None


def test_a_retry_goes_to_another_failure_domain_or_waits():
    deployed = endpoints(3, domains=["rack", "rack", "elsewhere"])
    query = Query(0, "m")
    sent(query, deployed.everyone[0])
    query.in_flight = 0
    rule = selection(deployed)
    assert name(rule.for_retry(query, 0.0, 1)) == "d2"
    sent(Query(1, "m"), deployed.everyone[2], 2)
    assert rule.for_retry(query, 0.0, 1) is None
    assert rule.has_elsewhere(query)


def test_a_retry_goes_anywhere_where_there_is_no_elsewhere():
    deployed = endpoints(1)
    query = Query(0, "m")
    sent(query, deployed.everyone[0])
    deployed.everyone[0].free_place(deployed.everyone[0].tasks[1])
    query.in_flight = 0
    assert not selection(deployed).has_elsewhere(query)
    assert name(selection(deployed).for_retry(query, 0.0, 1)) == "d0"


def test_all_are_out_and_the_one_that_is_back_first_is_asked():
    deployed = endpoints(2)
    out(deployed.everyone[0], 9.0)
    out(deployed.everyone[1], 8.0)
    assert name(selection(deployed).for_query(Query(0, "m"), 0.0, 1)) == "d1"


def test_a_probe_goes_to_one_that_is_out_and_idle_once_it_is_due():
    deployed = endpoints(2)
    out(deployed.everyone[1], 5.0)
    rule = selection(deployed)
    assert rule.for_probe(Query(0, "m"), 4.9) is None
    assert name(rule.for_probe(Query(0, "m"), 5.0)) == "d1"


def test_a_second_copy_needs_an_idle_machine_in_another_domain():
    deployed = endpoints(2, places=2)
    query = Query(0, "m")
    sent(query, deployed.everyone[0])
    rule = selection(deployed)
    assert name(rule.for_hedge(query, 0.0)) == "d1"
    sent(Query(1, "m"), deployed.everyone[1], 2)
    assert rule.for_hedge(query, 0.0) is None


def test_a_late_querys_backup_runs_in_another_domain():
    backups = endpoints(2, row=0)
    query = Query(0, "m")
    query.domain = "d0"
    assert name(selection(endpoints(2), {0: backups}).for_late(query, 0.0)) == "d1"


def test_a_late_querys_backup_waits_while_only_its_own_domain_is_idle():
    backups = endpoints(2, row=0)
    query = Query(0, "m")
    query.domain = "d0"
    sent(Query(1, "m"), backups.everyone[1])
    assert selection(endpoints(2), {0: backups}).for_late(query, 0.0) is None


def test_a_groups_protection_runs_where_no_member_does():
    backups = endpoints(3, row=0)
    rule = selection(endpoints(2), {0: backups})
    assert name(rule.for_protection(group_of("d0", "d1"), 0, 0.0)) == "d2"


@pytest.mark.parametrize(("long", "chosen"), [(False, None), (True, "d0")])
def test_a_trial_takes_a_place_on_a_busy_machine_only_after_long(long, chosen):
    backups = endpoints(1, places=3, row=0)
    [place] = backups.everyone
    place.host.serves = True
    sent(Query(0, "m"), place, 1)
    sent(Query(1, "m"), place, 2)
    rule = selection(endpoints(1), {0: backups})
    assert name(rule.for_trial(group_of("elsewhere"), 0, 0.0, long)) == chosen


# ---- in the engine --------------------------------------------------------------------------------------------------


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


def test_a_second_attempt_goes_to_another_failure_domain():
    """d1 is as idle as d2, and was asked longer ago; but it stands in the rack of what has just failed."""
    run = scenario(
        arrivals=[0.0, 0.1, 0.2, 0.3],
        tasks=[(3, 0.001, "fail")],
        code=None,
        deployed=3,
        domains=["rack", "rack", "elsewhere"],
    )
    assert [run.sends(number)[0][1] for number in range(4)] == ["d0", "d1", "d2", "d0"]
    assert run.sends(3)[1] == (0.301, "d2")


def test_of_the_overdue_the_least_busy_gets_one_more():
    """Both machines' replies are overdue when two more queries come: each machine gets one, not d0 both."""
    policy = {"spare_places": 2, "reconstruct_after_s": 0.02}
    run = scenario(
        arrivals=[0.0, 0.0, 0.03, 0.03],
        tasks=[(number, NEVER, "never") for number in range(4)],
        code=None,
        deployed=2,
        policy=policy,
    )
    assert {run.sends(number)[0][1] for number in (2, 3)} == {"d0", "d1"}


CROWD = {"learn_speed": True, "out_s": 50.0}


@pytest.mark.parametrize(("waiting", "helped"), [(2, False), (3, True)])
def test_a_slow_endpoint_helps_where_it_is_sooner_done_than_the_queue(waiting, helped):
    """It is five times slower, which counts as twice since its queries are helped: it takes one where more wait than
    the two others can begin within a service time.
    """
    learnt = [*(n * 0.04 for n in range(40)), *(1.8 + n // 3 * 0.1 for n in range(15))]
    arrivals = [*learnt, *([2.45] * (2 + waiting))]
    run = scenario(arrivals=arrivals, code=None, deployed=3, policy=CROWD, slow={"d0": (1.0, 0.05)})
    assert [change.endpoint for change in run.scheduler.changes] == ["d0"]
    assert ((2.45, "d0") in [(at, endpoint) for at, _, endpoint in run.sent]) is helped
