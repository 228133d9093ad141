"""Selection alone: which endpoint each kind of work goes to."""

import pytest

from ts_parity.engine import Query, plain
from ts_parity.engine.health import Condition
from ts_parity.engine.lateness import LatencyWindow
from ts_parity.engine.release import Release
from ts_parity.engine.selection import Selection

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
