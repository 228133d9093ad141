"""Schedules are data, alike for every arm; the injector leaves nothing frozen, however it ends."""

import asyncio
import itertools
import subprocess
import sys
import time

import psutil
import pytest

from ts_parity.lab.faults import FREEZE, KILL, Fault, FaultPlan, Injector, make_schedule


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
