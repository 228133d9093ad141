"""Nobody is forgotten: fleets of several models whose pools and endpoints come and go, checked after every event.

Beside test_invariants.py, which checks the promises made to users, this looks inside: who waits stands in exactly one
line, who stands in a line waits, and whoever is open has something under way that ends sooner or later.
"""

import random
from collections import Counter
from dataclasses import replace

import pytest

from ts_parity.codes import make_code
from ts_parity.engine import (
    Arrived,
    Cause,
    Compare,
    Endpoint,
    Failed,
    Finding,
    Fleet,
    Instance,
    Kind,
    Pool,
    Query,
    Rejected,
    Scheduler,
    Send,
    plain,
)
from ts_parity.engine.query import QueryState

CODES = [None, ("sum", 2, 1), ("sum", 4, 2), ("exact", 2, 1), ("student", 1, 1), ("student", 3, 1)]
OUTCOMES = [
    Arrived(True),
    Arrived(True),
    Arrived(False),
    Arrived(error=True),
    Arrived(error=True),
    Failed("died"),
    Failed("died"),
    Failed("bad", False),
    Failed("closed", cause=Cause.LOST),
    Failed("nobody", cause=Cause.UNREACHABLE),
    Failed("killed", cause=Cause.WORKER_DIED),
    Rejected(),
]
FINDINGS = [Finding.AGREED] * 8 + [Finding.DIFFERED, Finding.UNKNOWN, Finding.FAILED]
STEPS = ["arrive"] * 3 + ["end"] * 4 + ["wait"] * 2 + ["leave", "change", "stream"]


def some_fleet(chance):
    codes = {name: chance.choice(CODES) for name in chance.choice(["m", "mn"])}
    pools = tuple(
        Pool(name, make_code(*code) if code else None, chance.random() < 0.6, proved=chance.random() < 0.5)
        for name, code in codes.items()
    )
    instances, endpoints = [], []
    for i in range(chance.randint(1, 5)):
        places = chance.randint(1, 3)
        instances.append(Instance(f"i{i}", places, f"z{chance.randint(0, 2)}"))
        for pool in pools:
            serves = i == 0 or chance.random() < 0.6
            if serves:
                endpoints.append(Endpoint(f"i{i}/{pool.name}", f"i{i}", pool.name, None, chance.randint(1, places)))
            if pool.code is not None and (not serves or chance.random() < 0.4):
                row = chance.randrange(pool.code.r)
                name = f"i{i}/{pool.name}p{row}"
                endpoints.append(Endpoint(name, f"i{i}", pool.name, row, chance.randint(1, places)))
    return Fleet(tuple(instances), tuple(endpoints), pools)


def some_policy(chance):
    choices = {
        "reconstruct_after_s": [None, 0.0, 0.05, 0.5], "group_wait_s": [None, 0.0, 0.3], "seal_early": [False, True],
        "deadline_s": [1.0, 5.0], "max_waiting": [1, 3, 100], "max_wait_s": [0.5, 10.0], "retry_ratio": [0.0, 0.1, 1.0],
        "retry_burst": [0.0, 1.0, 5.0], "max_attempts": [1, 2, 3], "default_answer": [False, True],
        "failures_until_out": [1, 2, 3], "launch": ["auto", "group", "late"], "launch_after_s": [None, 0.0, 0.3, 0.7],
        "launch_waiting": [0.0, 0.5, 1.0], "hedge_ratio": [0.0, 0.1, 1.0], "hedge_burst": [1.0, 3.0],
        "hedge_after_s": [None, 0.0, 0.2], "slow_factor": [0.0, 2.0],
        "spare_places": [0, 0, 1], "balance": ["least", "least", "round_robin"], "out_s": [0.1, 1.0],
    }  # fmt: skip
    return plain(**{name: chance.choice(values) for name, values in choices.items()})


class World:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.fleet, self.policy = some_fleet(self.chance), some_policy(self.chance)
        self.scheduler = Scheduler(self.fleet, self.policy)
        self.now = 0.5
        self.queries, self.flying, self.ended = [], [], {}
        self.own = Counter()
        self.again = Counter()
        """Tasks sent with a query of which a worker may have died."""
        self.shorten_trials()

    def shorten_trials(self):
        for pool in self.scheduler.pools():
            if pool.trust is not None:
                pool.trust._needed = 2

    def obey(self, actions):
        for action in actions:
            if isinstance(action, Compare):
                continue
            if not isinstance(action, Send):
                assert action.query.id not in self.ended, "ended twice"
                self.ended[action.query.id] = action
                continue
            task = action.task
            self.flying.append(task)
            for query in self.had(task):
                if query.kills:
                    self.again[query.id] += 1
                    assert self.again[query.id] <= 1, "what may kill workers runs once more, in whatever form"
            if task.kind is Kind.DEPLOYED and not task.hedge:
                self.own[task.query.id] += 1
                assert self.own[task.query.id] - task.query.excused <= self.policy.max_attempts
        self.check()
        for pair in actions:
            if isinstance(pair, Compare):
                self.obey(self.scheduler.compared(pair, self.chance.choice(FINDINGS), "why", self.now))

    def check(self):
        lines = Counter()
        for pool in self.scheduler.pools():
            for state, queue in ((QueryState.WAITING, pool.waiting), (QueryState.RETRYING, pool.retries.values())):
                for query in queue:
                    assert query.state is state
                    lines[query.id] += 1
            assert all(query.open for query in [*pool.late.values(), *pool.hedges.values()])
            if pool.waiting and not self.policy.spare_places:
                assert pool.selection.for_query(pool.waiting[0], self.now, len(pool.waiting)) is None, (
                    "it has a place and is not sent"
                )
        for query in self.queries:
            if query.open:
                assert lines[query.id] == query.waiting
                deployed = [task for task in self.flying if task.kind is Kind.DEPLOYED and not task.lost]
                tasks = [task for task in deployed if task.query is query]
                assert query.in_flight == len(tasks)
                own = sum(not task.hedge for task in tasks)
                assert own == (query.state is QueryState.RUNNING)
                assert tasks or query.waiting or self.may_be_saved(query)

    def may_be_saved(self, query):
        """It is late and will get a backup, or its group goes on: an output, a place or a neighbour is waited for."""
        pools = {pool.pool.name: pool for pool in self.scheduler.pools()}
        group, pool = query.group, pools.get(query.pool)
        finishing = any(task.kind is Kind.FINISH and task.query is query and not task.lost for task in self.flying)
        if finishing or any(query in pool.finishes or query.id in pool.late for pool in pools.values()):
            return True
        if group is None or group.done:
            return False
        useful = group.code.family == "backup" or (pool is not None and pool.can_finish)
        under_way = (
            not group.sealed
            or any(task.group is group and task.query is not query and not task.lost for task in self.flying)
            or any(member is not None and member.waiting for member in group.members)
            or any(queued is group for pool in pools.values() for queued, _ in pool.protections)
            or (query.slot in group.recoverable() and self.now < query.release_at)
        )
        return useful and under_way

    def wait(self, seconds):
        end = self.now + seconds
        for _ in range(1000):
            if (at := self.scheduler.next_deadline()) > end:
                break
            self.now = max(self.now, at)
            self.obey(self.scheduler.tick(self.now))
        else:
            raise AssertionError("a timer that is always due")
        self.now = end

    def end(self, task):
        self.flying.remove(task)
        outcome = self.chance.choice(OUTCOMES)
        if isinstance(outcome, Rejected) and task.kind is Kind.DEPLOYED and not task.hedge:
            self.own[task.query.id] -= 1
        nothing_run = isinstance(outcome, Rejected) or getattr(outcome, "cause", None) is Cause.UNREACHABLE
        if nothing_run and task.query is not None:
            self.again[task.query.id] = 0
        self.obey(self.scheduler.task_done(task, outcome, self.now))

    @staticmethod
    def had(task):
        """The queries whose bodies a task brings."""
        if task.kind is not Kind.PROTECTION:
            return [task.query]
        return [
            member for member in task.group.members if member is not None and member.slot in task.group.sent[task.row]
        ]

    def step(self):
        chance, what = self.chance, self.chance.choice(STEPS)
        if what == "arrive":
            key, exact = chance.choice([None, 1, 1, 2]), chance.random() < 0.15
            query = Query(len(self.queries), chance.choice(self.fleet.pools).name, key, exact=exact)
            self.queries.append(query)
            self.obey(self.scheduler.query_arrived(query, self.now))
        elif what == "wait":
            self.wait(chance.choice([0.0, 0.01, 0.03, 0.2, 0.6]))
        elif what == "change":
            kept = {pool.name for pool in self.fleet.pools if chance.random() < 0.8}
            share = chance.choice([0.6, 1.0])
            there = [e for e in self.fleet.endpoints if e.pool in kept and chance.random() < share]
            pools = tuple(pool for pool in self.fleet.pools if pool.name in kept)
            if there and chance.random() < 0.3:  # a worker was started anew
                which = chance.randrange(len(there))
                there[which] = replace(there[which], workers=frozenset({str(chance.random())}))
            fleet = Fleet(self.fleet.instances, tuple(there), pools)
            self.obey(self.scheduler.endpoints_changed(fleet, self.now))
            self.shorten_trials()
        elif what == "leave" and self.queries:
            query = chance.choice(self.queries)
            self.ended.setdefault(query.id, "left")
            self.obey(self.scheduler.query_abandoned(query, self.now))
        elif what == "end" and self.flying:
            self.end(chance.choice(self.flying))
        elif what == "stream" and self.flying:
            task = chance.choice(self.flying)
            if task.kind is Kind.DEPLOYED:
                self.obey(self.scheduler.answer_started(task, self.now))

    def finish(self):
        for _ in range(3000):
            if self.flying:
                self.end(self.flying[0])
            else:
                self.wait(1.0)
                if not self.flying and not self.scheduler.open_queries():
                    self.wait(40.0)


@pytest.mark.parametrize("start", range(0, 1500, 250))
def test_nobody_is_forgotten_and_nothing_is_left(start):
    for seed in range(start, start + 250):
        world = World(seed)
        try:
            for _ in range(world.chance.randint(10, 60)):
                world.step()
            world.finish()
            assert set(world.ended) == {query.id for query in world.queries}
            scheduler = world.scheduler
            assert (scheduler.open_queries(), scheduler.in_flight()) == (0, 0)
            for pool in scheduler.pools():
                assert not any((pool.waiting, pool.retries, pool.late, pool.hedges, pool.placement.open_groups))
                assert all(group.done for group, _ in (*pool.trials.launches, *pool.trials.finishes))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
