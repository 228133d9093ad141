"""Schedules are data, alike for every arm; the injector leaves nothing frozen, however it ends."""

import asyncio
import itertools
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from ts_parity.lab.faults import (
    CONTEND,
    CRASH,
    FREEZE,
    FREEZE_SERVER,
    KILL,
    RESET,
    RESTART,
    Fault,
    FaultPlan,
    Injector,
    make_schedule,
    now_and_then,
    shuffles,
)
from ts_parity.lab.live import _Contention, carriers_of


def test_a_seed_gives_one_schedule():
    assert make_schedule(FaultPlan(), 6, 4, 60.0, seed=1) == make_schedule(FaultPlan(), 6, 4, 60.0, seed=1)
    assert make_schedule(FaultPlan(), 6, 4, 60.0, seed=1) != make_schedule(FaultPlan(), 6, 4, 60.0, seed=2)


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_keeps_to_its_plan(seed):
    plan = FaultPlan(mean_gap_s=1.0, spell_s=(0.1, 0.4), kills=2)
    schedule = make_schedule(plan, instances=6, victims=4, duration_s=30.0, seed=seed)
    assert list(schedule) == sorted(schedule)
    kills = [fault for fault in schedule if fault.kind == KILL]
    assert len(kills) == 2
    assert all(fault.instance < 4 and 7.5 <= fault.at <= 22.5 for fault in kills)
    for instance in range(6):
        spells = [fault for fault in schedule if fault.kind == FREEZE and fault.instance == instance]
        assert len(spells) > 10
        assert all(0.1 <= fault.spell_s <= 0.4 and fault.ends_at <= 30.0 for fault in spells)
        assert all(before.ends_at <= after.at for before, after in itertools.pairwise(spells))


@pytest.mark.parametrize("plan", [{"mean_gap_s": 0}, {"spell_s": (0.2, 0.1)}, {"spell_s": (0.0, 0.1)}, {"kills": -1}])
def test_an_impossible_plan_is_refused(plan):
    with pytest.raises(ValueError, match="impossible fault plan"):
        FaultPlan(**plan)


@pytest.fixture
def worker():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def stopped(process):
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


async def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_a_spell_freezes_and_thaws(worker):
    injector = Injector(lookup=lambda instance: [worker.pid])
    run = asyncio.create_task(injector.run([Fault(0.0, 0, FREEZE, 2.0)], time.monotonic()))
    await until(lambda: stopped(worker))
    await run
    await until(lambda: not stopped(worker))
    assert injector.struck == {FREEZE: 1, KILL: 0}


@pytest.mark.slow
async def test_a_cancelled_run_thaws_what_it_froze(worker):
    injector = Injector(lookup=lambda instance: [worker.pid])
    run = asyncio.create_task(injector.run([Fault(0.0, 0, FREEZE, 60.0)], time.monotonic()))
    await until(lambda: stopped(worker))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await until(lambda: not stopped(worker))


@pytest.mark.slow
async def test_a_lookup_that_raises_thaws_the_others(worker):
    def lookup(instance):
        if instance == 1:
            while not stopped(worker):
                time.sleep(0.005)
            raise RuntimeError("management is down")
        return [worker.pid]

    injector = Injector(lookup)
    with pytest.raises(RuntimeError, match="management is down"):
        await injector.run([Fault(0.0, 0, FREEZE, 60.0), Fault(0.0, 1, FREEZE, 1.0)], time.monotonic())
    assert not injector._frozen, "before anything else of this loop has its turn, for there may be none"
    await until(lambda: not stopped(worker))


@pytest.mark.slow
async def test_a_kill_inside_a_spell_is_no_error(worker):
    injector = Injector(lookup=lambda instance: [worker.pid])
    await injector.run([Fault(0.0, 0, FREEZE, 0.2), Fault(0.1, 0, KILL)], time.monotonic())
    assert worker.wait(timeout=60) == -9
    assert injector.struck == {FREEZE: 1, KILL: 1}


async def test_a_worker_that_is_restarting_is_left_alone():
    injector = Injector(lookup=lambda instance: [])
    await injector.run([Fault(0.0, 0, FREEZE, 0.01), Fault(0.0, 0, KILL)], time.monotonic())
    assert injector.struck == {FREEZE: 0, KILL: 0}


async def test_what_is_no_signal_is_carried_out_and_ended():
    did = []

    def contend(fault):
        did.append(("begins", fault.instance))
        return lambda: did.append(("ends", fault.instance))

    injector = Injector(lambda instance: [], carriers={CONTEND: contend, CRASH: lambda fault: did.append("crash")})
    await injector.run([Fault(0.0, 2, CONTEND, 0.01, 0.5), Fault(0.05, 1, CRASH)], time.monotonic())
    assert did == [("begins", 2), ("ends", 2), "crash"]
    assert injector.struck == {FREEZE: 0, KILL: 0, CONTEND: 1, CRASH: 1}


async def test_a_cancelled_run_ends_what_it_began():
    did, began = [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def contend(fault):
        loop.call_soon_threadsafe(began.set)
        return lambda: did.append("ended")

    run = asyncio.create_task(
        Injector(lambda instance: [], carriers={CONTEND: contend}).run([Fault(0.0, 0, CONTEND, 60.0)], time.monotonic())
    )
    await began.wait()
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert did == ["ended"]


async def test_a_fault_that_nobody_can_carry_out_is_an_error():
    with pytest.raises(ValueError, match="nobody here can crash"):
        await Injector(lambda instance: []).run([Fault(0.0, 0, CRASH)], time.monotonic())


@pytest.mark.slow
async def test_a_frozen_server_is_another_process_than_its_workers(worker):
    injector = Injector(lambda instance: [], lambda instance: [worker.pid])
    run = asyncio.create_task(injector.run([Fault(0.0, 0, FREEZE_SERVER, 2.0)], time.monotonic()))
    await until(lambda: stopped(worker))
    await run
    await until(lambda: not stopped(worker))
    assert injector.struck[FREEZE_SERVER] == 1


def test_a_shuffle_contends_two_instances_at_any_time():
    made = shuffles(4, 18, 60.0, seed=1, strength_s=0.01)
    assert made == shuffles(4, 18, 60.0, seed=1, strength_s=0.01) != shuffles(4, 18, 60.0, seed=2, strength_s=0.01)
    for at in (0.5, 30.0, 59.0):
        now = [fault for fault in made if fault.at <= at < fault.ends_at]
        assert len(now) == 8
    assert max(fault.ends_at for fault in made) <= 60.0
    assert {fault.kind for fault in made} == {CONTEND}
    assert {fault.bytes_per_s for fault in made} == {0.0}
    slower = shuffles(4, 18, 60.0, seed=1, strength_s=0.01, bytes_per_s=1e6)
    assert slower == tuple(replace(fault, bytes_per_s=1e6) for fault in made)


class Recorder:
    """A gate process that writes down how gates are contended."""

    def __init__(self):
        self.said = []

    def contend(self, gate, delay_s, bytes_per_s=0.0):
        self.said.append((gate, delay_s, bytes_per_s))


def test_overlapping_contention_adds_up_and_ends_with_the_last():
    recorder = Recorder()
    contention = _Contention(recorder)
    ends = [contention(Fault(0.0, 3, CONTEND, 1.0, *each)) for each in ((0.25, 1e6), (0.5, 1e6), (0.0, 0.0))]
    for end in ends:
        end()
    calm_at_last = [(3, 0.75, 5e5), (3, 0.5, 1e6), (3, 0.0, 0.0), (3, 0.0, 0.0)]
    assert recorder.said == [(3, 0.25, 1e6), (3, 0.75, 5e5), *calm_at_last]


async def test_a_schedule_throttles_a_link():
    recorder = Recorder()
    schedule = [fault for fault in shuffles(1, 2, 0.01, seed=1, strength_s=0.25, bytes_per_s=1e6) if not fault.instance]
    await Injector(lambda instance: [], carriers=carriers_of([], recorder)).run(schedule, time.monotonic())
    assert recorder.said == [(0, 0.25, 1e6), (0, 0.0, 0.0)]


def test_a_whole_domain_is_struck_at_once():
    domains = [(0, 1, 2), (3, 4, 5)]
    made = now_and_then(RESTART, domains, 600.0, 1, mean_gap_s=60.0, spell_s=(2.0, 5.0))
    assert made == now_and_then(RESTART, domains, 600.0, 1, mean_gap_s=60.0, spell_s=(2.0, 5.0))
    for domain in domains:
        each = [[(f.at, f.spell_s) for f in made if f.instance == instance] for instance in domain]
        assert each[0] == each[1] == each[2] != []
        assert all(at + lasts <= after for (at, lasts), (after, _) in itertools.pairwise(each[0]))
    assert {f.at for f in made if f.instance == 0}.isdisjoint({f.at for f in made if f.instance == 3})


@pytest.mark.parametrize("wrong", [{"kind": "dance"}, {"mean_gap_s": 0.0}, {"spell_s": (2.0, 1.0)}])
def test_impossible_faults_are_refused(wrong):
    with pytest.raises(ValueError, match="no faults like"):
        now_and_then(**{"kind": RESET, "places": [(0,)], "duration_s": 9.0, "seed": 0, "mean_gap_s": 1.0} | wrong)
