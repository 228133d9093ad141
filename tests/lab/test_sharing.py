"""Simulated proxies in front of one fleet: each way to share it answers every query once, by the rules it names."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from tests.lab.test_simulate import scenario
from ts_parity.engine import ARRIVED, Query, Scheduler
from ts_parity.lab.scenario import Spells
from ts_parity.lab.sharing import WAYS, Leased, Owned, sharing
from ts_parity.lab.simulate import simulate
from ts_parity.lab.world_flags import HOP_S, add_world, world_of

EP = Spells(0.04, 100, 5)


def test_one_that_serves_for_all_is_one_proxy_and_a_hop():
    one = simulate(scenario("default", queries=2000, extra=0, cost=0.25, spells=EP), 1)
    shared = scenario("default", queries=2000, extra=0, cost=0.25, spells=EP, proxies=3, sharing="active")
    assert simulate(shared, 1).latencies == one.latencies
    far = simulate(replace(shared, hop=0.1), 1)
    hops = [round(there - here, 9) for there, here in zip(far.latencies, one.latencies, strict=True)]
    assert set(hops) == {0.0, 0.2}
    assert hops.count(0.0) == pytest.approx(len(hops) / 3, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_answers_every_query_once_and_repeats_itself(way: str):
    run = scenario("default", load=0.6, queries=3000, extra=0, cost=0.25, spells=EP, proxies=3, sharing=way, hop=0.02)
    first, again = simulate(run, 1), simulate(run, 1)
    assert first.latencies == again.latencies
    assert len(first.latencies) == 3000 - 60
    assert first.failed == first.unanswered == 0


@pytest.mark.parametrize("way", ["owned", "hashed", "apart", "leased"])
def test_each_machine_is_one_proxys(way: str):
    made = sharing(way, scenario().fleet, 3, 1.0)
    owned = sorted(each.name for fleet in made.fleets for each in fleet.instances)
    assert owned == sorted(each.name for each in scenario().fleet.instances)


def test_hashing_gives_some_more_than_others():
    sizes = sorted(len(machines) for machines in Owned(scenario().fleet, 3, hashed=True).machines)
    assert sum(sizes) == 12
    assert sizes != [4, 4, 4]


def test_idle_machines_go_to_whoever_has_queries_waiting_and_come_back():
    run = scenario(queries=10)
    made = Leased(run.fleet, 3, 1.0)
    made.schedulers = schedulers = [Scheduler(fleet, run.policy) for fleet in made.fleets]
    for number in range(6):
        schedulers[0].query_arrived(Query(number, "model"), 0.0)
    changed = made.exchange(1.0)
    assert [len(machines) for machines in made.machines] == [6, 3, 3]
    assert sum(len(actions) for _, actions in changed) == 2, "those that waited are sent"
    for scheduler, actions in changed:
        for action in actions:
            scheduler.task_done(action.task, ARRIVED, 2.0)
    made.exchange(3.0)
    assert [len(machines) for machines in made.machines] == [4, 4, 4]


def test_simulate_takes_proxies_that_know_each_other():
    parser = argparse.ArgumentParser()
    add_world(parser).add_argument("--workers", default=12)
    parser.add_argument("--load", default=0.3)
    parser.add_argument("--rate", default=None)
    strangers = world_of(parser.parse_args(["--proxies", "3"]))
    assert (strangers.proxies, strangers.sharing) == (3, "blind")
    peers = world_of(parser.parse_args(["--proxies", "3", "--peers"]))
    assert (peers.proxies, peers.sharing) == (3, "active")
    assert peers.hop == pytest.approx(HOP_S / 0.05)
