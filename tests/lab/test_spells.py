"""What a history says of a fleet, and whether a world that is replayed from it is the world it came from."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

import pytest

from ts_parity.engine import Kind, Send
from ts_parity.lab.compare import World, service_from
from ts_parity.lab.history import History, ServedTask, TaskEnd
from ts_parity.lab.rivals import Arrangement, arrange
from ts_parity.lab.scenario import Outage, ServiceTimes
from ts_parity.lab.simulate import Result, simulate
from ts_parity.lab.spells import ObservedFleet, as_samples, seen_in

USUAL_S = 0.02


def quiet(endpoint="a", seconds=20.0, gap_s=0.1, but=()):
    """A task every `gap_s`, none while one of `but` (begin, end) is out."""
    times = [n * gap_s for n in range(int(seconds / gap_s))]
    return [
        ServedTask(endpoint, at, USUAL_S * (1 + 0.1 * (n % 5)), TaskEnd.ANSWERED)
        for n, at in enumerate(times)
        if not any(begin - USUAL_S * 1.5 <= at < end for begin, end in but)
    ]


def fleet_of(*tasks, quiet_too=()):
    return seen_in(
        History(served=tuple(sorted([*tasks, *quiet_too], key=lambda task: task.sent_at)), arrivals=(0.0, 20.0))
    )


def test_one_late_answer_is_a_freeze_that_began_while_it_ran_or_just_before():
    fleet = fleet_of(ServedTask("a", 5.0, 0.6, TaskEnd.ANSWERED), quiet_too=quiet(but=[(4.95, 5.6)]))
    (spell,) = fleet.spells["a"]
    assert spell.kind == "frozen"
    assert 4.9 <= spell.at <= 5.0 + USUAL_S * 1.2
    assert 5.6 - 0.03 <= spell.ends_at <= 5.6
    assert max(fleet.usual) < 0.03


def test_alike_ones_in_a_row_are_a_machine_that_is_slow():
    slow = [ServedTask("a", 5.0 + 0.12 * n, 0.1, TaskEnd.ANSWERED) for n in range(6)]
    (spell,) = fleet_of(*slow, quiet_too=quiet(but=[(5.0, 5.75)])).spells["a"]
    assert (spell.kind, spell.at <= 5.0, spell.ends_at >= 5.7) == ("slow", True, True)
    assert spell.factor == pytest.approx(5.0, rel=0.3)


def test_a_machine_that_is_a_little_slow_for_long_is_seen_and_chance_is_not():
    rather = [ServedTask("a", 5.0 + 0.1 * n, 0.042, TaskEnd.ANSWERED) for n in range(12)]
    (spell,) = fleet_of(*rather, quiet_too=quiet(but=[(5.0, 6.2)], seconds=100)).spells["a"]
    assert (spell.kind, spell.factor) == ("slow", pytest.approx(1.8, rel=0.15))
    two = [ServedTask("a", 5.0 + 0.1 * n, 0.042, TaskEnd.ANSWERED) for n in range(2)]
    assert fleet_of(*two, quiet_too=quiet(but=[(5.0, 5.2)], seconds=100)).spells == {"a": ()}


def test_what_stands_still_together_is_seen_although_each_is_only_rather_late():
    """A pause of the whole machine, or of the proxy: it is not chance that all were late at the same time."""
    held = [ServedTask(name, 5.0, 0.045, TaskEnd.ANSWERED) for name in "abcdefgh"]
    rest = [task for name in "abcdefgh" for task in quiet(name, but=[(5.0, 5.045)])]
    fleet = fleet_of(*held, quiet_too=rest)
    kinds = {name: [spell.kind for spell in spells] for name, spells in fleet.spells.items()}
    assert kinds == {name: ["frozen"] for name in "abcdefgh"}
    assert fleet_of(*held[:2], quiet_too=rest).told()["frozen"] == 0


def test_failures_in_a_row_are_a_machine_that_is_dead():
    failed = [ServedTask("a", 5.0 + 0.1 * n, 0.001, TaskEnd.FAILED) for n in range(4)]
    (spell,) = fleet_of(*failed, quiet_too=quiet(but=[(5.0, 5.4)])).spells["a"]
    assert (spell.kind, spell.at <= 5.0, 5.301 <= spell.ends_at <= 5.5) == ("dead", True, True)


def test_what_was_still_out_lasted_as_long_as_those_that_lasted_longer():
    freezes = [ServedTask("a", at, took, TaskEnd.ANSWERED) for at, took in ((3.0, 0.3), (8.0, 2.0), (15.0, 2.0))]
    lost = ServedTask("b", 18.0, 1.0, TaskEnd.UNKNOWN)
    pauses = [(task.sent_at, task.ends_at) for task in freezes]
    fleet = fleet_of(*freezes, lost, quiet_too=[*quiet(but=pauses), *quiet("b", seconds=18.0)])
    (spell,) = fleet.spells["b"]
    assert spell.lasts == pytest.approx(2.0, abs=0.15)
    alone = fleet_of(lost, quiet_too=quiet("b", seconds=18.0))
    assert alone.spells["b"][0].lasts == pytest.approx(1.0, abs=0.15)  # nothing is known of any that lasted longer


def test_too_few_answers_say_nothing_of_what_is_usual():
    fleet = fleet_of(*(ServedTask("a", float(n), 0.01 * 10 ** (n % 3), TaskEnd.ANSWERED) for n in range(10)))
    assert fleet.spells == {"a": ()}
    assert len(fleet.usual) == 10


def test_as_samples_is_the_estimate_of_kaplan_and_meier():
    assert as_samples([3.0, 1.0, 2.0], [True] * 3) == [1.0, 2.0, 3.0]
    # Of four, the second is censored: half of it goes to each of the longer ones.
    counts = Counter(as_samples([1.0, 2.0, 3.0, 4.0] * 100, [True, False, True, True] * 100))
    assert counts == {1.0: 100, 3.0: 150, 4.0: 150}
    assert as_samples([1.0, 5.0], [True, False]) == [1.0, 5.0]


def test_machines_that_were_not_seen_get_what_others_had_at_another_time():
    seen = ObservedFleet((1.0,), {"a": (Outage("", 10.0, 5.0),), "b": ()}, (), 100.0)
    made = [*seen.outages(["m0", "m1", "m2", "m3", "m4"], 250.0)]
    assert [outage.at for outage in made if outage.worker == "m0"] == [10.0, 110.0, 210.0]
    assert not [outage for outage in made if outage.worker in ("m1", "m3")]
    others = [outage.at % 100 for outage in made if outage.worker in ("m2", "m4")]
    assert all(min(abs(at - 10.0), abs(at - 110.0)) > 5.0 for at in others)
    assert all(0 <= outage.at < 250 for outage in made)


def test_every_seed_begins_elsewhere_in_the_log_all_machines_together():
    seen = ObservedFleet((1.0,), {"a": (Outage("", 10.0, 5.0),), "b": (Outage("", 12.0, 5.0),)}, (), 100.0)
    world = World(0.5, 2, 200, unit=0.5, seen=seen)
    assert world.scenario(arranged("none", 2)) == world.scenario(arranged("none", 2), 0)
    begun = [
        {outage.worker: outage.at for outage in world.scenario(arranged("none", 2), seed).outages} for seed in (0, 1, 2)
    ]
    assert begun[0] == {"m0": 20.0, "m1": 24.0}
    assert all(spells["m1"] - spells["m0"] == pytest.approx(4.0) for spells in begun)
    assert len({round(spells["m0"], 3) for spells in begun}) == 3


def test_one_place_of_several_may_be_late_alone_and_all_are_late_together():
    """While one task is out, others come and go as usual: that is the task's own matter, or its place's."""
    alone = ServedTask("a", 5.0, 0.6, TaskEnd.ANSWERED)
    fleet = seen_in(History(served=(*quiet(), alone), places={"a": 4}))
    assert fleet.spells == {"a": ()}
    assert (max(fleet.usual), fleet.places) == (0.6, 4)
    together = [ServedTask("a", 5.0 + 0.01 * n, 0.6 - 0.01 * n, TaskEnd.ANSWERED) for n in range(3)]
    (spell,) = seen_in(History(served=(*quiet(but=[(5.0, 5.6)]), *together), places={"a": 4})).spells["a"]
    assert (spell.kind, spell.ends_at) == ("frozen", pytest.approx(5.6, abs=0.05))


def test_a_task_beyond_the_places_begins_when_another_has_ended():
    waited = [ServedTask("a", 5.0, 0.06, TaskEnd.ANSWERED), ServedTask("a", 5.001, 0.079, TaskEnd.ANSWERED)]
    fleet = seen_in(History(served=(*quiet(but=[(5.0, 5.1)]), *waited), places={"a": 1}))
    assert (fleet.spells, max(fleet.usual)) == ({"a": ()}, 0.06)


def test_a_log_is_replayed_in_whole_rounds():
    seen = ObservedFleet((1.0,), {"a": ()}, (), 100.0)
    world = World(0.5, 2, 250, seen=seen)
    assert (world.asked, replace(world, queries=40).asked, replace(world, queries=20).asked) == (200, 100, 20)
    assert replace(world, trace=(1.0, 2.0)).asked == 2


def test_it_says_how_often_how_long_and_how_many_at_once():
    spells = {"a": (Outage("", 10.0, 5.0), Outage("", 30.0, 5.0)), "b": (Outage("", 12.0, 2.0, "slow"),)}
    fleet = ObservedFleet((0.5, 1.5), spells, (0.0, 50.0), 100.0)
    told = fleet.told()
    assert (told["frozen"], told["slow"], told["dead"], told["most_at_once"]) == (2, 1, 0, 2)
    assert (told["mean_spell_s"], told["share_in_spells"]) == (4.0, 0.06)
    assert fleet.in_words() == (
        "replayed from 2 endpoints in 100 s: 2 frozen, 1 slow, of 4000 ms on average; "
        "6.0% of the time, at most 2 at once"
    )
    assert replace(fleet, spells={"a": ()}).in_words() == "none seen of 1 endpoints in 100 s"


# ---- a known world, its log, and what a plan makes of it ------------------------------------------------------------

POLICIES = {
    "none": {},
    "hedge": {},
    "student": {"k": 1, "cost": 0.25},
    "exact": {"k": 1, "cost": 1.0, "code": "exact"},
}


def arranged(name: str, machines: int) -> Arrangement:
    return arrange("default" if name in ("student", "exact") else name, machines, 0, **POLICIES[name])


class Log:
    """Writes what an access log would hold of a simulated run, a service time being 20 ms."""

    def __init__(self, file: Path) -> None:
        self._lines = file.open("w")
        self._out: dict[int, ServedTask] = {}

    def __call__(self, what: str, now: float, subject: object, actions: list[object]) -> None:
        if what == "done" and subject.kind is Kind.DEPLOYED:
            del self._out[subject.id]
            if not any(action.query is subject.query for action in actions if hasattr(action, "source")):
                self._write(subject, subject.query, task="arrived", at=subject.sent_at, service_s=now - subject.sent_at)
        for action in actions:
            if isinstance(action, Send) and action.task.kind is Kind.DEPLOYED:
                self._out[action.task.id] = action.task
            elif hasattr(action, "source"):
                query, task = action.query, action.task
                own = task.kind is Kind.DEPLOYED
                out = [
                    {"endpoint": t.endpoint.name, "waited_s": USUAL_S * (t.sent_at - query.arrived_at), "failed": False,
                     "at_least_s": USUAL_S * (now - t.sent_at)}
                    for t in self._out.values() if t.query is query
                ]  # fmt: skip
                self._write(
                    task, query, at=query.arrived_at, latency_s=USUAL_S * (now - query.arrived_at), status=200,
                    outcome=action.source.value, service_s=now - task.sent_at if own else None, others=out,
                )  # fmt: skip

    def _write(self, sent, query, *, at, service_s, **more) -> None:
        line = {
            "version": 2, "pool": "m/1.0", "query": f"p-{query.id}", "endpoint": sent.endpoint.name, "cause": None,
            "at": datetime.fromtimestamp(1.8e9 + USUAL_S * at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "waited_s": USUAL_S * max(0.0, sent.sent_at - query.arrived_at),
            "service_s": None if service_s is None else USUAL_S * service_s, **more,
        }  # fmt: skip
        self._lines.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._lines.close()


def one_at_a_time(machines: int, until: int) -> tuple[Outage, ...]:
    """Freezes of 30 service times, one machine after the other."""
    return tuple(Outage(f"m{n % machines}", at, 30.0) for n, at in enumerate(range(300, until, 370)))


def slow_in_turn(machines: int, until: float) -> tuple[Outage, ...]:
    """Five times slower for 100 service times, one machine after the other."""
    return tuple(Outage(f"m{n % machines}", at, 100.0, "slow", 5.0) for n, at in enumerate(range(150, until, 250)))


WORLDS = {
    "two machines, frozen in turn": World(0.5, 2, 5000, outages=one_at_a_time(2, 5000)),
    "six machines, slow in turn": World(0.4, 6, 5000, outages=slow_in_turn(6, 2100)),
    "service times that differ widely": World(0.4, 6, 5000, ServiceTimes(cv=1.0)),
}


@functools.cache
def truth(name: str, policy: str) -> Result:
    """The same, whatever the log was taken with."""
    world = WORLDS[name]
    return simulate(world.scenario(arranged(policy, world.workers)), 3)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("logged", ["none", "student"])
def test_a_plan_of_its_log_foretells_what_each_policy_makes_of_a_world(name, logged, tmp_path):
    """p99 and p99.9 within 25 %, for what the log was taken with and for what it was not."""
    log, world = Log(tmp_path / "access.jsonl"), WORLDS[name]
    simulate(world.scenario(arranged(logged, world.workers)), 3, on_event=log)
    log.close()
    service, unit, seen = service_from(tmp_path / "access.jsonl")
    foretold = replace(
        world,
        service=service,
        unit=unit,
        seen=seen,
        trace=tuple(at / unit for at in seen.arrivals),
        spells=None,
        outages=(),
    )
    for policy in POLICIES:
        true = truth(name, policy)
        told = [simulate(foretold.scenario(arranged(policy, world.workers)), seed) for seed in range(2)]
        for share in (0.99, 0.999):
            ratio = unit * fmean(run.percentile(share) for run in told) / (USUAL_S * true.percentile(share))
            assert math.isclose(ratio, 1.0, abs_tol=0.25), (policy, share, ratio)
