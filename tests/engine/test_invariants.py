"""The eight promises at the top of engine/life.py, on random fleets and random interleavings."""

import gc
import math
import weakref
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ts_parity.codes import make_code
from ts_parity.engine import (
    Answer,
    Arrived,
    Cause,
    Compare,
    Endpoint,
    Fail,
    Failed,
    Finding,
    Fleet,
    Instance,
    Kind,
    Policy,
    Pool,
    Query,
    Rejected,
    Scheduler,
    Send,
    Source,
    plain,
)

CODES = [
    None,
    ("sum", 2, 1),
    ("sum", 2, 2),
    ("sum", 3, 1),
    ("sum", 4, 2),
    ("exact", 2, 1),
    ("exact", 3, 2),
    ("student", 1, 1),
    ("student", 3, 1),
]


@st.composite
def fleets(draw):
    """Instances host the deployed model, protections or both; every pool has at least one deployed endpoint."""
    spec = draw(st.sampled_from(CODES))
    code = make_code(*spec) if spec else None
    instances, endpoints = [], []
    for i in range(draw(st.integers(1, 6))):
        places = draw(st.integers(1, 3))
        instances.append(Instance(f"i{i}", places, f"z{draw(st.integers(0, 2))}"))
        hosts_deployed = i == 0 or draw(st.booleans())
        if hosts_deployed:
            endpoints.append(Endpoint(f"i{i}/m", f"i{i}", "m", None, draw(st.integers(1, places))))
        if code is not None and (not hosts_deployed or draw(st.booleans())):
            row = draw(st.integers(0, code.r - 1))
            endpoints.append(Endpoint(f"i{i}/p{row}", f"i{i}", "m", row, draw(st.integers(1, places))))
    return Fleet(
        tuple(instances), tuple(endpoints), (Pool("m", code, draw(st.booleans()), proved=draw(st.booleans())),)
    )


POLICIES = st.builds(
    Policy,
    reconstruct_after_s=st.sampled_from([None, 0.0, 0.5]),
    group_wait_s=st.sampled_from([None, 0.0, 0.3]),
    seal_early=st.booleans(),
    deadline_s=st.sampled_from([1.0, 5.0]),
    max_waiting=st.sampled_from([1, 3, 100]),
    max_wait_s=st.sampled_from([0.5, 10.0]),
    retry_ratio=st.sampled_from([0.0, 0.1, 1.0]),
    retry_burst=st.sampled_from([0.0, 1.0, 5.0]),
    max_attempts=st.integers(1, 3),
    default_answer=st.booleans(),
    failures_until_out=st.integers(1, 3),
    launch=st.sampled_from(["auto", "group", "late"]),
    launch_after_s=st.sampled_from([None, 0.0, 0.3, 0.7]),
    launch_waiting=st.sampled_from([0.0, 0.5, 1.0]),
    hedge_ratio=st.sampled_from([0.0, 0.1, 1.0]),
    hedge_burst=st.sampled_from([1.0, 3.0]),
    hedge_after_s=st.sampled_from([None, 0.0, 0.2]),
    slow_factor=st.sampled_from([0.0, 2.0]),
    slow_until_out=st.integers(1, 3),
    spare_places=st.sampled_from([0, 0, 1]),
    balance=st.sampled_from(["least", "round_robin"]),
)
OUTCOMES = (
    Arrived(True),
    Arrived(True),
    Arrived(False),
    Arrived(error=True),
    Failed("x"),
    Failed("x", False),
    Rejected(),
    Failed("x", cause=Cause.LOST),
    Failed("x", cause=Cause.UNREACHABLE),
    Failed("x", cause=Cause.WORKER_DIED),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "arrive", "done", "done", "done", "wait", "abandon", "change", "stream"]),
        st.integers(0, 1000),
        st.sampled_from([0.0, 0.01, 0.2, 0.6]),
    ),
    min_size=1,
    max_size=60,
)


class World:
    """Plays steps against a Scheduler and checks each promise as actions come."""

    def __init__(self, fleet, policy):
        self.fleet, self.policy = fleet, policy
        self.full = fleet
        self.scheduler = Scheduler(fleet, policy)
        self.now = 0.0
        self.queries, self.ended, self.flying = [], {}, []
        self.log = []
        self.failed_own = set()
        self.sent_first = {}
        self.arrived_raw = {}
        self.places = {}
        for pool in self.scheduler.pools():
            if pool.trust is not None:
                pool.trust._needed = 2  # so that a trial ends within these few steps

    def obey(self, actions):
        for action in actions:
            self.log.append(describe(action))
            if isinstance(action, Send):
                self.sent(action.task)
            elif isinstance(action, Compare):
                self.compare(action)
            else:
                query = action.query
                assert query.id not in self.ended, f"{query!r} ended twice"
                self.ended[query.id] = action
                if isinstance(action, Answer) and action.source is Source.RECONSTRUCTED:
                    self.check_rebuilt(action)

    def compare(self, pair):
        assert pair.own.done
        assert pair.other.done
        assert pair.own is not pair.other
        findings = [Finding.AGREED] * 7 + [Finding.DIFFERED, Finding.UNKNOWN, Finding.FAILED]
        self.obey(self.scheduler.compared(pair, findings[len(self.log) % 10], "why", self.now))

    def sent(self, task):
        if task.group is not None and task.group.on_trial:
            assert not task.group.trust.proved
            assert task.group.unanswered >= 0
            assert task.query is None or task.query.group is not task.group, "no query knows that it is on trial"
        self.flying.append(task)
        on_endpoint = sum(t.endpoint.name == task.endpoint.name for t in self.flying)
        on_instance = sum(t.endpoint.instance == task.endpoint.instance for t in self.flying)
        spare = 0
        if task.kind is Kind.DEPLOYED and not task.hedge and task.place.tasks:
            oldest = self.now - next(iter(task.place.tasks.values())).sent_at
            pool = next(iter(self.scheduler.pools()))
            spare = self.policy.spare_places if oldest > pool.release.after_s else 0
        assert on_endpoint <= task.place.endpoint.places + spare
        assert on_instance <= task.place.host.instance.places + spare
        if task.hedge:
            assert on_instance == 1, "a second copy goes to an idle instance only"
            assert not any(pool.waiting or pool.retries for pool in self.scheduler.pools())
        if task.kind is Kind.FINISH and task.group.on_trial:
            assert task.slot in task.group.recoverable_without(task.slot)
        elif task.kind is Kind.FINISH:
            code = task.group.code
            assert task.slot in code.recoverable(frozenset(task.group.have), task.group.covers)
            self.check_released(task)
        if task.kind is Kind.PROTECTION:
            assert task.group.full or next(iter(self.fleet.pools)).partial or self.fleet is not self.full

    def check_released(self, task):
        query = task.query
        assert self.now >= query.release_at
        if query.id not in self.failed_own and self.policy.reconstruct_after_s is not None:
            earliest = self.sent_first.get(query.id, math.inf) + self.policy.reconstruct_after_s
            if self.policy.launch_waiting and self.policy.launch == "late":
                waits = self.policy.launch_waiting * (self.policy.launch_after_s or 0.0)
                earliest = min(earliest, query.arrived_at + waits)
            assert self.now >= earliest - 1e-9
        assert not query.exact or task.group.code.lossless

    def check_rebuilt(self, action):
        task, query = action.task, action.query
        assert not query.exact or task.group.code.lossless
        assert not task.group.on_trial
        assert task.group.trust.in_use, "a rebuilt answer comes only from a protection in use"
        assert task.group.trust.since <= task.group.begun_at
        if task.kind is Kind.PROTECTION:
            assert task.group.code.family == "backup"
            assert task.done

    def step(self, what, pick, seconds):
        if what == "arrive":
            deadline_at = self.now + (0.0, 0.05, 0.3)[pick % 3] if pick % 5 == 0 else None
            query = Query(len(self.queries), "m", pick % 3 or None, deadline_at, exact=pick % 7 == 0)
            self.queries.append(query)
            self.obey(self.scheduler.query_arrived(query, self.now))
        elif what == "wait":
            self.wait(seconds)
        elif what == "abandon" and self.queries:
            query = self.queries[pick % len(self.queries)]
            if query.open:
                self.ended[query.id] = "abandoned"
            self.obey(self.scheduler.query_abandoned(query, self.now))
        elif what == "change":
            self.change(pick)
        elif what in ("done", "stream") and self.flying:
            self.end(self.flying[pick % len(self.flying)], what, pick)

    def wait(self, seconds):
        ends_at = self.now + seconds
        while (timer := self.scheduler.next_deadline()) <= ends_at:
            self.now = max(self.now, timer)
            self.obey(self.scheduler.tick(self.now))
        self.now = ends_at

    def change(self, pick):
        keep = [e for i, e in enumerate(self.full.endpoints) if pick % 2 or (pick >> i) % 2]
        if pick % 4 == 0:  # one worker is another one
            workers = frozenset({str(pick % 3)})
            keep = [replace(e, workers=workers) if i == pick % len(keep) else e for i, e in enumerate(keep)]
        self.fleet = Fleet(self.full.instances, tuple(keep), self.full.pools)
        self.obey(self.scheduler.endpoints_changed(self.fleet, self.now))

    def end(self, task, what, pick):
        if what == "stream":
            if task.kind is Kind.DEPLOYED:
                self.obey(self.scheduler.answer_started(task, self.now))
            return
        self.flying.remove(task)
        outcome = OUTCOMES[pick % len(OUTCOMES)]
        if task.kind is Kind.PROTECTION and isinstance(outcome, Arrived) and pick % 5 == 0:
            outcome = Arrived(covers=frozenset(range(pick % task.group.k)))
        if task.kind is Kind.DEPLOYED and isinstance(outcome, Failed):
            self.failed_own.add(task.query.id)
        others = set(self.ended)
        self.obey(self.scheduler.task_done(task, outcome, self.now))
        if task.kind is Kind.PROTECTION and isinstance(outcome, Failed):
            for number in set(self.ended) - others:  # only whom nothing else could save
                assert self.queries[number].in_flight == 0

    def finish(self):
        """Everything ends: what flies fails or arrives, and all timers run out."""
        for _ in range(10_000):
            if self.flying:
                self.end(self.flying[0], "done", len(self.log))
            elif self.scheduler.open_queries() or self.scheduler.next_deadline() < math.inf:
                self.wait(1.0)  # a group on trial may be sealed when all its queries have ended
            else:
                break


def describe(action):
    if isinstance(action, Send):
        task = action.task
        return ("send", task.kind.value, task.endpoint.name, task.query.id if task.query else None, task.slot, task.row)
    if isinstance(action, Answer):
        return ("answer", action.query.id, action.source.value)
    if isinstance(action, Compare):
        return ("compare", action.own.id, action.other.id, action.slot)
    return ("fail", action.query.id, action.reason.value)


def play(fleet, policy, steps):
    world = World(fleet, policy)
    original = world.sent

    def sent(task):
        if task.kind is Kind.DEPLOYED and task.query.attempts == 1:
            world.sent_first.setdefault(task.query.id, world.now)
        original(task)

    world.sent = sent
    for what, pick, seconds in steps:
        world.step(what, pick, seconds)
    world.finish()
    return world


@settings(max_examples=300)
@given(fleets(), POLICIES, STEPS)
def test_the_promises(fleet, policy, steps):
    world = play(fleet, policy, steps)
    # 1: every query ended exactly once (twice is checked as it happens)
    assert set(world.ended) == {query.id for query in world.queries}
    # 5: the budgets
    allowed = policy.retry_burst + policy.retry_ratio * len(world.queries)
    allowed += policy.retry_burst * world.now if policy.retry_ratio else 0
    assert world.scheduler.sent["retry"] <= allowed + 1e-9
    allowed = (policy.hedge_burst + policy.hedge_ratio * len(world.queries)) if policy.hedge_ratio else 0
    assert world.scheduler.sent["hedge"] <= allowed + 1e-9
    # 7: nothing is left
    assert world.scheduler.open_queries() == world.scheduler.in_flight() == 0
    assert world.scheduler.next_deadline() == math.inf
    for pool in world.scheduler.pools():
        assert not pool.waiting
        assert not pool.retries
        assert not pool.placement.open_groups
        assert not pool.late
        assert not pool.hedges
        assert all(group.done for group, _ in (*pool.trials.launches, *pool.trials.finishes))
        assert all(group.done for group, _ in pool.protections)
        assert not any(query.open for query in pool.finishes)
    # 8: the same events at the same times give the same actions
    assert play(fleet, policy, steps).log == world.log


@settings(max_examples=50)
@given(fleets(), POLICIES)
def test_timers_of_answered_queries_do_not_pile_up(fleet, policy):
    scheduler = Scheduler(fleet, policy)
    for number in range(1000):
        actions = scheduler.query_arrived(Query(number, "m", 1), number * 1e-4)
        while sends := [a.task for a in actions if isinstance(a, Send)]:
            actions = [b for task in sends for b in scheduler.task_done(task, Arrived(True), number * 1e-4)]
    # Open groups may wait for members with their timers armed; what is stale is bounded.
    stale = scheduler._timers.stale()
    assert stale <= 2 * 256 + 8 * (scheduler.open_queries() + 1)


def test_what_was_answered_is_freed_without_the_garbage_collector():
    """Requests are large, and cycles between queries and groups would keep them until it runs."""

    class Body:
        pass

    fleet = Fleet(
        (Instance("a", 1, "a"), Instance("b", 1, "b")),
        (Endpoint("d", "a", "m", None, 1), Endpoint("p", "b", "m", 0, 1)),
        (Pool("m", make_code("sum", 2, 1)),),
    )
    scheduler = Scheduler(fleet, plain())
    bodies = []
    gc.disable()
    try:
        for number in range(1000):
            query = Query(number, "m", 1, payload=Body())
            bodies.append(weakref.ref(query.payload))
            actions = scheduler.query_arrived(query, number * 1e-4)
            failed = number % 10 == 0
            while sends := [a.task for a in actions if isinstance(a, Send)]:
                outcome = Failed("no") if failed else Arrived(True)
                failed = False
                actions = [b for task in sends for b in scheduler.task_done(task, outcome, number * 1e-4)]
        assert sum(body() is not None for body in bodies) <= 300  # those that a stale timer still names
    finally:
        gc.enable()


def test_an_answer_is_a_fail_or_an_answer():
    """`describe` above tells all actions apart: a new kind of action must be added there."""
    assert {Send, Answer, Fail, Compare} == set(__import__("ts_parity.engine.query", fromlist=["x"]).Action.__args__)
