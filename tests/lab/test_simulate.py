"""The simulator: its queues against theory, its slowdowns, its dice, and the engine's own decisions in it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from ts_parity.engine import Arrived, Query, Scheduler, Send
from ts_parity.errors import ConfigError
from ts_parity.lab.agreement import AgreementCurve
from ts_parity.lab.measure import doubtful, measured, needed
from ts_parity.lab.rivals import NAMES, arrange
from ts_parity.lab.scenario import Arrivals, Costs, Outage, Scenario, ServiceTimes, Spells
from ts_parity.lab.simulate import simulate


def scenario(name="none", load=0.5, queries=20_000, **more):
    shape = {key: more.pop(key) for key in ("workers", "extra", "code", "k", "cost", "domains") if key in more}
    made = arrange(name, **shape, **more.pop("policy", {}))
    rate = load * shape.get("workers", 12)
    return Scenario(made.fleet, made.policy, Arrivals(rate), queries, costs=made.costs, **more)


def mean(values):
    return sum(values) / len(values)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("cv", "load"), [(1e-6, 0.7), (1.0, 0.5)])
def test_one_worker_is_an_m_g_1_queue(cv, load):
    """Pollaczek-Khinchine: the mean wait is load / (1 - load) * (1 + cv^2) / 2 service times."""
    result = simulate(scenario(workers=1, load=load, queries=40_000, service=ServiceTimes(cv=cv)), seed=1)
    expected = 1 + load / (1 - load) * (1 + cv**2) / 2
    assert mean(result.latencies) == pytest.approx(expected, rel=0.06)


@pytest.mark.long
@pytest.mark.slow
def test_many_workers_with_one_queue_wait_as_erlang_says():
    """M/M/c by Erlang's C formula, with a lognormal of the same cv in place of the exponential."""
    workers, load = 4, 0.8
    offered = workers * load
    blocked = offered**workers / math.factorial(workers) / (1 - load)
    chance = blocked / (sum(offered**n / math.factorial(n) for n in range(workers)) + blocked)
    wait = chance / (workers * (1 - load))
    result = simulate(scenario(workers=workers, load=load, queries=60_000, service=ServiceTimes(cv=1.0)), seed=2)
    assert mean(result.latencies) - 1 == pytest.approx(wait, rel=0.2)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_rival_answers_every_query_once_and_repeats_itself(name):
    run = scenario(name, queries=3000, spells=Spells(0.04, 100, 5), net_share=0.02, net_mean=5.0)
    first, again, other = simulate(run, 1), simulate(run, 1), simulate(run, 2)
    assert first.latencies == again.latencies
    assert first.latencies != other.latencies
    assert len(first.latencies) + first.failed == 3000 - 60
    assert first.failed == 0
    assert 0.9 < first.work_per_query < 2.6
    if name in ("none", "round_robin", "equal", "hedge", "hedge_fixed", "replication"):
        assert first.reconstructed == 0


def test_there_are_no_other_rivals():
    with pytest.raises(ConfigError, match="there is no policy 'best'; there are none, round_robin"):
        arrange("best")


@pytest.mark.long
@pytest.mark.slow
def test_spells_take_their_share_of_the_time():
    result = simulate(scenario(load=0.1, queries=30_000, spells=Spells(0.1, 20, 3)), seed=0)
    slow = sum(latency > 2 for latency in result.latencies) / len(result.latencies)
    assert slow == pytest.approx(0.1, abs=0.03)
    assert result.work_per_query == pytest.approx(1.2, abs=0.06)


@pytest.mark.long
@pytest.mark.slow
def test_domains_are_slow_together():
    """All twelve machines in one domain: while it is slow nothing is fast, whatever the policy."""
    together = scenario("hedge", load=0.1, domains=1)
    apart = scenario("hedge", load=0.1, spells=Spells(0.06, 50, 5))
    together = replace(together, spells=Spells(0.06, 50, 5, by_domain=True))
    assert simulate(together, 0).percentile(0.99) > 3 > simulate(apart, 0).percentile(0.99)


@pytest.mark.long
@pytest.mark.slow
def test_replies_are_late_on_the_way():
    result = simulate(scenario(load=0.1, net_share=0.05, net_mean=50.0), seed=0)
    assert sum(latency > 5 for latency in result.latencies) / len(result.latencies) == pytest.approx(0.045, abs=0.01)
    assert result.work_per_query == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", ["frozen", "dead", "slow"])
def test_an_outage_loses_nothing(kind):
    """One of twelve machines: with ours a frozen or dead one costs at most the query that was on it its time."""
    outage = Outage("m3", at=100.0, lasts=400.0, kind=kind)
    run = scenario("default", load=0.3, queries=6000, cost=0.25, outages=(outage,))
    result = simulate(run, seed=0)
    assert len(result.latencies) == 6000 - 120
    assert result.percentile(0.999) < 2.0


def test_a_machine_of_several_places_runs_as_many_at_once_and_is_frozen_as_a_whole():
    made = arrange("none", 1, places=4)
    run = Scenario(
        made.fleet, made.policy, Arrivals(0.0, trace=(0.0, 0.1, 0.2, 0.3, 0.4)), 5, ServiceTimes(cv=1e-9), places=4
    )
    run = replace(run, warm_up=0.0, outages=(Outage("m0", 1.25, 10.0),))
    assert sorted(round(x, 2) for x in simulate(run, 0).latencies) == [1.0, 1.0, 1.0, 11.0, 11.6]


def test_a_proxy_whose_clock_is_coarse_decides_by_it_and_takes_as_long_as_it_takes():
    run = replace(scenario(queries=300, load=0.1, service=ServiceTimes(cv=0.3)), clock=0.25)
    seen = []
    result = simulate(run, 0, on_event=lambda what, now, subject, actions: seen.append((what, now, subject)))
    assert all(subject.arrived_at == math.floor(now / 0.25) * 0.25 for what, now, subject in seen if what == "arrived")
    assert result.latencies == pytest.approx(simulate(replace(run, clock=0.0), 0).latencies)


def test_a_machine_that_dies_takes_what_it_has_with_it():
    made = arrange("none", 2)
    run = Scenario(made.fleet, made.policy, Arrivals(0.0, trace=(0.0, 0.9)), 2, ServiceTimes(cv=1e-9), warm_up=0.0)
    run = replace(run, outages=(Outage("m0", 0.5, 1.0, "dead"), Outage("m1", 1.0, 10.0, "slow", 5.0)))
    # The first is sent to m1 at 0.5, which is slow for the second half of it: 0.5 + 0.5 + 2.5.
    assert simulate(run, 0).latencies[0] == pytest.approx(3.5, abs=1e-3)


def test_a_machine_that_batches_and_dies_takes_its_run_and_its_queue_with_it():
    made = arrange("round_robin", 1)
    run = Scenario(made.fleet, made.policy, Arrivals(0.0, trace=(0.0, 0.1, 0.2, 0.3)), 4, ServiceTimes(cv=1e-9))
    run = replace(run, warm_up=0.0, worker_batch=2, outages=(Outage("m0", 1.5, 2.0, "dead"),))
    ended = {}
    simulate(run, on_event=lambda what, now, task, _: what == "done" and ended.setdefault(task.query.id, round(now, 2)))
    # The first runs alone until 1.0, then the next two until 3.0, while the last waits.
    assert ended == {0: 1.0, 1: 1.5, 2: 1.5, 3: 1.5}


def test_a_worker_that_batches_saves_what_it_is_said_to():
    alone = scenario(workers=1, load=3.0, queries=2000, worker_batch=4, policy={})
    fleet = replace(
        alone.fleet,
        instances=tuple(replace(i, places=4) for i in alone.fleet.instances),
        endpoints=tuple(replace(e, places=4) for e in alone.fleet.endpoints),
    )
    batched = replace(alone, fleet=fleet, costs=Costs(batch_saves=1.0))
    assert simulate(batched, 0).percentile(0.5) < 3 < simulate(replace(batched, costs=Costs()), 0).percentile(0.5)


@pytest.mark.parametrize(
    ("arrivals", "gaps_cv"), [(Arrivals(5.0), 1.0), (Arrivals(5.0, cv=3.0), 3.0), (Arrivals(5.0, burst=8.0), 1.4)]
)
def test_arrivals_have_their_rate_and_their_variation(arrivals, gaps_cv):
    times = list(itertools.islice(arrivals.times(np.random.default_rng(0)), 60_000))
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(5.0, rel=0.12)
    assert gaps.std() / gaps.mean() == pytest.approx(gaps_cv, rel=0.3)


def test_a_trace_is_taken_as_it_is():
    run = replace(scenario(queries=3, warm_up=0.0), arrivals=Arrivals(0.0, trace=(1.0, 2.0, 5.0)))
    assert [r.due_at for r in simulate(run, 0, keep_records=True).records] == [1.0, 2.0, 5.0]


@pytest.mark.long
@pytest.mark.slow
def test_several_proxies_see_only_their_own_traffic():
    """Three queues for the same machines are worse than one, and nothing is lost."""
    one = scenario(load=0.8, queries=9000)
    three = replace(one, proxies=3)
    results = simulate(one, 0), simulate(three, 0)
    assert len(results[1].latencies) == len(results[0].latencies)
    assert results[1].percentile(0.99) > results[0].percentile(0.99)


def test_the_same_events_give_a_fresh_scheduler_the_same_actions():
    """A run is recorded and replayed into another Scheduler: it is the same object that the proxy drives."""
    run = scenario("default", load=0.6, queries=2000, cost=0.25, spells=Spells(0.04, 100, 5))
    log = []
    simulate(run, 3, on_event=lambda what, now, subject, actions: log.append((what, now, subject, actions)))
    fresh, queries, tasks = Scheduler(run.fleet, run.policy), {}, {}
    for what, now, subject, actions in log:
        if what == "tick":
            again = fresh.tick(now)
        elif what == "arrived":
            queries[subject.id] = Query(subject.id, subject.pool, subject.key)
            again = fresh.query_arrived(queries[subject.id], now)
        else:
            again = fresh.task_done(tasks[subject.id], Arrived(raw=True), now)
        tasks |= {action.task.id: action.task for action in again if isinstance(action, Send)}
        assert [described(action) for action in again] == [described(action) for action in actions]


def described(action):
    if isinstance(action, Send):
        task = action.task
        return (task.kind, task.endpoint.name, task.query.id if task.query else None, task.slot, task.hedge)
    return (type(action).__name__, action.query.id)


def test_measured_is_the_mean_of_the_seeds():
    run = scenario(queries=3000)
    each = [simulate(run, seed).percentile(0.999) for seed in (1, 2)]
    row = measured(run, (1, 2))
    assert row["p999"] == pytest.approx(sum(each) / 2, abs=1e-3)
    assert (row["p999_low"], row["p999_high"]) == (round(min(each), 3), round(max(each), 3))
    assert row["samples"] == 2940
    assert row["p50_low"] <= row["p50"] <= row["p50_high"]


def test_spells_without_end_are_no_loop_without_end():
    """A run of 1e12 service times on a slow machine sees some 1e12 spells of others go by."""
    result = simulate(scenario(queries=300, spells=Spells(0.5, 0.5, 1e12)), 0)
    assert len(result.latencies) + result.failed == 294


def test_what_no_answer_stands_behind_is_not_told():
    frozen = scenario(queries=50, outages=tuple(Outage(f"m{i}", 0.0) for i in range(15)))
    row = measured(frozen, (0,))
    assert (row["p50"], row["p999_low"], row["samples"]) == (None, None, 0)
    assert row["unanswered"] == 49


def test_so_many_samples_a_percentile_takes():
    """With 99 % confidence one of them at least is beyond it."""
    assert [needed(share) for share in (0.99, 0.999, 0.9999)] == [459, 4603, 46050]
    assert doubtful(46_050) == []
    assert doubtful(4_602) == ["p999", "p9999"]
    assert doubtful(458) == ["p99", "p999", "p9999"]


@pytest.mark.long
@pytest.mark.slow
def test_work_is_told_by_what_it_was_for():
    run = scenario("coded", load=0.6, queries=3000, extra=3, spells=Spells(0.04, 100, 5))
    result = simulate(run, 0)
    assert set(result.work_of) == {"deployed", "copy", "protection", "finish"}
    assert sum(result.work_of.values()) == pytest.approx(result.work)
    row = measured(run, (0,))
    # Full groups: a query in four costs a parity model's answer.
    assert 0.24 <= row["work_protection"] < 0.29
    assert row["work_copy"] > 0
    batched = replace(run, worker_batch=4)
    result = simulate(batched, 0)
    assert sum(result.work_of.values()) == pytest.approx(result.work)


@pytest.mark.long
@pytest.mark.slow
def test_a_big_body_takes_long_on_whatever_machine():
    """Nothing else varies here, so the latencies of an idle fleet are the sizes, in their shares."""
    sizes = ((1.0, 0.9), (4.0, 0.1))
    result = simulate(scenario(load=0.05, queries=20_000, service=ServiceTimes(cv=1e-9), sizes=sizes), seed=1)
    rounded = [round(latency) for latency in result.latencies]
    assert set(rounded) == {1, 4}
    assert rounded.count(4) / len(rounded) == pytest.approx(0.1, abs=0.01)
    assert result.work_per_query == pytest.approx(1.3, rel=0.03)


@pytest.mark.long
@pytest.mark.slow
def test_what_belongs_to_a_query_its_second_copy_meets_again():
    """A second copy of a query that is slow by itself is as slow; of one that had a slow machine it is not."""
    hedge = {"name": "hedge", "extra": 0, "load": 0.1, "queries": 15_000}
    own = simulate(scenario(**hedge, service=ServiceTimes(cv=1e-9), own_cv=1.0), seed=1)
    machine = simulate(scenario(**hedge, service=ServiceTimes(cv=1.0)), seed=1)
    alone = simulate(scenario("none", load=0.1, queries=15_000, service=ServiceTimes(cv=1e-9), own_cv=1.0), seed=1)
    assert own.percentile(0.999) == pytest.approx(alone.percentile(0.999), rel=0.01)
    assert machine.percentile(0.999) < 0.6 * own.percentile(0.999)


def test_machines_of_different_speed():
    """Each query goes to the next machine, so half of them take twice as long."""
    run = scenario("round_robin", load=0.05, queries=4_000, workers=2, service=ServiceTimes(cv=1e-9), speeds=(1.0, 2.0))
    result = simulate(run, seed=1)
    assert result.percentile(0.4) == pytest.approx(1.0, abs=0.01)
    assert result.percentile(0.6) == pytest.approx(2.0, abs=0.01)
    assert result.work_per_query == pytest.approx(1.5, rel=0.01)


@pytest.mark.long
@pytest.mark.slow
def test_answers_differ_as_their_curve_says():
    curve = AgreementCurve(((0.8, 0.0), (1.0, 0.1)))  # the least sure fifth differs every second time
    shape = {"code": "student", "k": 4, "cost": 0.25, "extra": 0, "policy": {"differing": 1.0}}
    run = scenario("default", **shape, spells=Spells(0.2, 50.0, 5.0), queries=20_000)
    result = simulate(replace(run, agreement=curve), seed=1)
    rebuilt = result.answered["reconstructed"]
    assert rebuilt > 300
    assert result.differing == pytest.approx(0.1 * rebuilt, rel=0.2)
    assert result.differing_drawn == pytest.approx(result.differing, rel=0.4)
    told = measured(replace(run, agreement=curve), [1])
    assert told["differing"] == pytest.approx(result.differing / len(result.latencies), rel=1e-3)
    unknown = simulate(run, seed=1)
    assert unknown.differing == 0.0
    assert unknown.latencies == result.latencies, "its dice are its own"


def test_a_lossless_code_differs_never():
    run = scenario("default", code="exact", k=4, extra=0, spells=Spells(0.2, 50.0, 5.0), queries=5_000)
    result = simulate(replace(run, agreement=AgreementCurve(((1.0, 0.5),))), seed=1)
    assert result.answered["reconstructed"] > 0
    assert (result.differing, result.differing_drawn) == (0.0, 0)


@pytest.mark.parametrize(
    "points", [(), ((0.5, 0.1),), ((1.0, 0.1), (0.5, 0.0)), ((0.0, 0.0), (1.0, 0.1)), ((0.5, 0.4), (1.0, 0.1))]
)
def test_a_curve_that_cannot_be_is_refused(points):
    with pytest.raises(ConfigError, match="agreement curve"):
        AgreementCurve(points)


def test_two_policies_meet_the_same_queries_and_spells():
    """Else policies would be told apart by their dice. Where every query is run once, the work is the same."""
    slow = {"spells": Spells(0.2, 100.0, 5.0), "sizes": ((1.0, 0.5), (2.0, 0.5)), "queries": 3_000, "load": 0.2}
    seen = []
    for name in ("none", "default"):
        run = scenario(name, extra=0, **slow)
        seen.append({})
        simulate(run, seed=3, on_event=lambda what, now, subject, _: _note(seen[-1], what, now, subject))
    assert seen[0] == seen[1]


def _note(seen, what, now, subject):
    if what == "arrived":
        seen[subject.id] = (now, subject.payload.takes)
