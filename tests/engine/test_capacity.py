"""Places: an endpoint's own, a pool's turn on a machine, and what a whole machine has idle."""

from tests.engine.made import sent
from ts_parity.codes import make_code
from ts_parity.engine import (
    Arrived,
    Endpoint,
    Fleet,
    Instance,
    Kind,
    Pool,
    Query,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.capacity import EndpointSet, EndpointState, InstanceState, PoolShare
from ts_parity.engine.fleet import FleetState

CODE = make_code("student", 1)


class World:
    """Several pools, driven by hand; `running` holds the tasks in flight by query number or "parity"."""

    def __init__(self, fleet, **policy):
        self.scheduler = Scheduler(fleet, plain(**policy))
        self.running = {}
        self.pool_of = {}

    def obey(self, actions):
        for action in actions:
            if isinstance(action, Send):
                task = action.task
                self.running["parity" if task.kind is Kind.PROTECTION else task.query.id] = task

    def arrives(self, number, pool, now):
        self.pool_of[number] = Query(number, pool, "key")
        self.obey(self.scheduler.query_arrived(self.pool_of[number], now))

    def ends(self, what, now):
        self.obey(self.scheduler.task_done(self.running.pop(what), Arrived(raw=True), now))

    def on(self, what):
        return self.running[what].endpoint.name


def fleet(*endpoints, places=1, capped=False, codes=()):
    """Endpoints as (instance, pool, row, places); pools in `codes` are protected by a student."""
    names = dict.fromkeys(instance for instance, *_ in endpoints)
    pools = dict.fromkeys(pool for _, pool, *_ in endpoints)
    return Fleet(
        tuple(Instance(name, places, name, capped) for name in names),
        tuple(Endpoint(f"{i}/{p}" + ("" if row is None else "/s"), i, p, row, n) for i, p, row, n in endpoints),
        tuple(Pool(pool, CODE if pool in codes else None) for pool in pools),
    )


def test_an_instant_model_never_waits_for_a_slow_one_on_its_instance():
    world = World(fleet(("a", "slow", None, 1), ("a", "instant", None, 1)))
    world.arrives(0, "slow", 0.0)
    world.arrives(1, "slow", 0.0)
    world.arrives(2, "instant", 0.001)
    assert set(world.running) == {0, 2}
    world.ends(2, 0.002)
    world.arrives(3, "instant", 0.003)
    assert set(world.running) == {0, 3}
    world.ends(0, 4.5)
    assert set(world.running) == {1, 3}


def test_two_versions_of_one_model_have_workers_of_their_own():
    world = World(fleet(("a", "m/1.0", None, 2), ("a", "m/2.0", None, 1), places=2))
    for number, pool in enumerate(("m/1.0", "m/1.0", "m/2.0", "m/1.0", "m/2.0")):
        world.arrives(number, pool, 0.0)
    assert set(world.running) == {0, 1, 2}


def test_a_protection_waits_until_the_machine_is_idle_whatever_model_keeps_it_busy():
    world = World(
        fleet(("a", "m", None, 1), ("b", "m", 0, 1), ("b", "other", None, 1), codes=("m",)),
        launch="late",
        launch_after_s=0.01,
        reconstruct_after_s=0.02,
    )
    world.arrives(0, "other", 0.0)
    world.arrives(1, "m", 0.001)
    world.obey(world.scheduler.tick(0.02))
    assert "parity" not in world.running
    world.ends(0, 0.03)
    assert world.on("parity") == "b/m/s"


def test_another_model_does_not_wait_for_a_protection():
    world = World(
        fleet(("a", "m", None, 1), ("b", "m", 0, 1), ("b", "other", None, 1), codes=("m",)),
        launch="late",
        launch_after_s=0.01,
    )
    world.arrives(0, "m", 0.0)
    world.obey(world.scheduler.tick(0.01))
    assert world.on("parity") == "b/m/s"
    world.arrives(1, "other", 0.011)
    assert world.on(1) == "b/other"


def test_a_model_and_its_own_protection_take_turns_on_a_machine():
    """They share its time, and a query that waits may still go to another machine."""
    world = World(
        fleet(("a", "m", None, 1), ("b", "m", None, 1), ("b", "m", 0, 1), codes=("m",)),
        launch="late",
        launch_after_s=0.01,
    )
    world.arrives(0, "m", 0.0)
    world.obey(world.scheduler.tick(0.01))
    assert world.on("parity") == "b/m/s"
    world.arrives(1, "m", 0.011)
    assert 1 not in world.running
    world.ends("parity", 0.012)
    assert world.on(1) == "b/m"


def test_places_that_an_operator_has_set_bound_all_models_together():
    world = World(fleet(("a", "x", None, 4), ("a", "y", None, 4), places=3, capped=True))
    for number, pool in enumerate("xyxyx"):
        world.arrives(number, pool, 0.0)
    assert set(world.running) == {0, 1, 2}


def test_a_crowd_in_one_pool_does_not_keep_another_out_of_a_capped_instance():
    """Those of x have all waited longer; y has nothing running."""
    world = World(fleet(("a", "x", None, 2), ("a", "y", None, 2), places=2, capped=True))
    for number in range(20):
        world.arrives(number, "x", 0.001 * number)
    world.arrives(20, "y", 0.1)
    world.ends(0, 0.2)
    assert set(world.running) == {1, 20}


def test_the_own_load_counts_first_and_then_the_machines():
    world = World(fleet(("a", "x", None, 2), ("b", "x", None, 2), ("a", "y", None, 1), places=2))
    world.arrives(0, "y", 0.0)
    world.arrives(1, "x", 0.001)
    assert world.on(1) == "b/x", "both are idle for x, but machine a works for y"
    world.arrives(2, "x", 0.002)
    assert world.on(2) == "a/x", "machine a is as busy as b, but b works for x"


def test_another_pools_load_launches_nothing_later():
    world = World(fleet(("a", "x", None, 1), ("b", "y", None, 1)))
    for number in range(300):
        world.arrives(number, "x", 0.0)
    for number in range(200):
        world.ends(number, 0.001 * number)
    x, y = world.scheduler.pools()
    assert x.load.value > 1.0
    assert y.load.value == 0.0


def test_work_of_an_endpoint_that_left_is_still_on_its_place_when_it_comes_back():
    whole = fleet(("a", "x", None, 1), ("a", "y", None, 1))
    world = World(whole)
    world.arrives(0, "x", 0.0)
    without = Fleet(whole.instances, whole.endpoints[1:], whole.pools)
    world.obey(world.scheduler.endpoints_changed(without, 0.1))
    world.obey(world.scheduler.endpoints_changed(whole, 0.2))
    world.arrives(1, "x", 0.3)
    assert 1 not in world.running
    world.ends(0, 0.4)
    assert set(world.running) == {1}
    world.ends(1, 0.5)
    assert [pool.in_flight() for pool in world.scheduler.pools()] == [0, 0]


def test_places_apart_are_taken_from_nobody_and_by_nobody():
    """Of a student whose server has workers of its own for it, on an instance whose places an operator has set."""
    host = InstanceState(Instance("i", 1, "i", capped=True))
    model = EndpointState(Endpoint("i/m", "i", "m", None, 1), host, plain())
    student = EndpointState(Endpoint("i/s", "i", "m", 0, 1, apart=True), host, plain())
    host.endpoints = [model, student]
    PoolShare().add(model)
    PoolShare().add(student)
    EndpointSet([model])
    EndpointSet([student])
    sent(Query(1, "m"), model)
    assert (model.has_place(), student.has_place()) == (False, True)
    task = sent(Query(2, "m"), student, number=2)
    assert (student.has_place(), host.in_flight) == (False, 1)
    student.free_place(task)
    assert (student.has_place(), host.in_flight) == (True, 1)


def test_a_pool_gives_a_student_apart_a_share_of_its_own():
    fleet = FleetState(plain())
    endpoints = (Endpoint("i/m", "i", "m", None, 1), Endpoint("i/s", "i", "m", 0, 1, apart=True))
    fleet.update(Fleet((Instance("i", 1, "i"),), endpoints, (Pool("m", make_code("student", 1)),)))
    shares = [state.share for state in fleet.endpoints.values()]
    assert shares[0] is not shares[1]
    assert fleet.pools["m"].places == 1
