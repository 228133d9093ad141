"""One random world for the engine: a fleet, a policy and events in any order, all drawn from the dice it is given.

After each event it looks whether every promise at the top of engine/life.py holds, and looks inside too: who waits
stands in exactly one line, who stands in a line waits, and whoever is open has something under way that ends sooner or
later. `check_repeatable` tells a second scheduler the same.
"""

import math
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

from ts_parity.codes import make_code
from ts_parity.engine import (
    LOSSLESS,
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
)
from ts_parity.engine.accuracy import BURST
from ts_parity.engine.policy import PLAIN, is_setting
from ts_parity.engine.query import QueryState, Task
from ts_parity.engine.target import IN_TIME

CODES = [
    *(None, ("sum", 2, 1), ("sum", 2, 2), ("sum", 3, 1), ("sum", 4, 2)),
    *(("exact", 2, 1), ("exact", 3, 2), ("student", 1, 1), ("student", 3, 1)),
]
POLICIES = {
    "reconstruct_after_s": [None, 0.0, 0.05, 0.5], "group_wait_s": [None, 0.0, 0.3], "seal_early": [False, True],
    "deadline_s": [1.0, 5.0], "max_waiting": [1, 3, 100], "max_wait_s": [0.5, 10.0], "retry_ratio": [0.0, 0.1, 1.0],
    "retry_burst": [0.0, 1.0, 5.0], "max_attempts": [1, 2, 3], "default_answer": [False, True],
    "failures_until_out": [1, 2, 3], "launch": ["auto", "group", "late"], "launch_after_s": [None, 0.0, 0.3, 0.7],
    "target_s": [None, None, 0.05, 0.5], "launch_waiting": [0.0, 0.5, 1.0], "extra_work": [0.0, 0.1, 1.0],
    "copies": [True, True, False], "work_burst": [1.0, 3.0], "differing": [0.0, 0.0005, 0.05, 1.0],
    "hedge_after_s": [None, 0.0, 0.2], "learn_speed": [False, True, True],
    "spare_places": [0, 0, 1], "balance": ["least", "least", "round_robin"], "out_s": [0.1, 1.0],
}  # fmt: skip
OUTCOMES = [
    Arrived(False),
    Arrived(error=True),
    Failed("died"),
    Failed("refused", False),
    Failed("closed", cause=Cause.LOST),
    Failed("502 from a gateway", cause=Cause.LOST_BEHIND),
    Failed("nobody", cause=Cause.UNREACHABLE),
    Failed("no such model", cause=Cause.MISSING),
    Failed("killed", cause=Cause.WORKER_DIED),
    Rejected(),
]
LEAST = [0.0] * 10 + [0.75, 0.995, LOSSLESS, LOSSLESS]
AGREEMENTS = [1.0, 0.9999, 0.99, 0.8, 0.3]
FINDINGS = [Finding.AGREED] * 8 + [Finding.DIFFERED, Finding.UNKNOWN, Finding.FAILED]
STEPS = ["arrive"] * 8 + ["end"] * 9 + ["wait"] * 5 + ["leave", "change", "stream", "die", "reload"]
SETTINGS = [item.name for item in fields(Policy) if is_setting(item) and item.name in POLICIES]


def some_fleet(dice):
    """One model or two. An instance hosts some of them, their protections, or both; the first hosts every model."""
    pools = [some_pool(name, dice) for name in dice.choice(["m", "m", "mn"])]
    workers = frozenset({"first"} if dice.random() < 0.5 else ())
    instances, endpoints = [], []
    for i in range(dice.randint(1, 6)):
        places = dice.randint(1, 3)
        instances.append(Instance(f"i{i}", places, f"z{dice.randint(0, 2)}", capped=dice.random() < 0.2))
        for pool in pools:
            serves = i == 0 or dice.random() < 0.6
            rows = [None] if serves else []
            if pool.code is not None and (not serves or dice.random() < 0.4):
                rows.append(dice.randrange(pool.code.r))
            for row in rows:
                name = f"i{i}/{pool.name}" if row is None else f"i{i}/{pool.name}p{row}"
                endpoints.append(Endpoint(name, f"i{i}", pool.name, row, dice.randint(1, places), workers))
    return Fleet(tuple(instances), tuple(endpoints), tuple(pools))


def some_pool(name, dice):
    code = dice.choice(CODES)
    partial, repeatable, proved = dice.random() < 0.6, dice.random() < 0.9, dice.random() < 0.5
    return Pool(name, make_code(*code) if code else None, partial, repeatable, None, proved)


def some_policy(dice):
    base = dice.choice([PLAIN, {}])
    return Policy(**{**base, **{name: dice.choice(values) for name, values in POLICIES.items()}})


def described(action):
    if isinstance(action, Send):
        task = action.task
        return ("send", task.id, task.kind, task.endpoint.name, task.query.id if task.query else None, task.row)
    if isinstance(action, Answer):
        return ("answer", action.query.id, action.source, action.task.id if action.task else None)
    if isinstance(action, Compare):
        return ("compare", action.own.id, action.other.id, action.slot)
    assert isinstance(action, Fail)
    return ("fail", action.query.id, action.reason)


def noted(subject):
    """By what a second scheduler is told of the same."""
    if isinstance(subject, Query):
        return Query, (subject.id, subject.pool, subject.key, subject.deadline_at, subject.least)
    if isinstance(subject, Task):
        return Task, subject.id
    if isinstance(subject, Compare):
        return Compare, described(subject)
    return None, subject


def begun(fleet, policy):
    scheduler = Scheduler(fleet, policy)
    shorten_trials(scheduler)
    return scheduler


def shorten_trials(scheduler):
    """So that they end within a few steps."""
    for pool in scheduler.pools():
        if pool.trust is not None:
            pool.trust._needed = 2


def are_others(before, now):
    """Workers, as far as they are known."""
    return bool(before and now) and before.isdisjoint(now)


class World:
    def __init__(self, dice):
        self.dice = dice
        self.everything = self.fleet = some_fleet(dice)
        self.policies = [some_policy(dice)]
        """The last is in force."""
        self.scheduler = begun(self.fleet, self.policy)
        self.outcomes = OUTCOMES + [Arrived(True)] * dice.choice([2, 10, 30])
        """From a fleet that fails all the time to one that seldom does."""
        self.now = 0.5
        self.history = []
        """(event, what it was about, when, the actions, the next deadline)."""
        self.queries, self.flying = [], []
        self.arrived_under = {}
        """Query -> which of the policies was in force."""
        self.ended = {}
        self.dead = set()
        """Instances that nobody reaches."""
        self.parted = set()
        """Tasks whose endpoint was registered again, so that they take none of its places."""
        self.own, self.ran = Counter(), Counter()
        """A query's attempts; its tasks that may have run it, protections aside."""
        self.again = Counter()
        """Tasks that were sent with a query of which a worker may have died."""
        self.failed_own = set()
        self.first_sent = {}
        self.instead = 0
        """Queries whose backups were sent before themselves: that costs no extra work."""

    # ---- events ------------------------------------------------------------------------------------------------------

    def play(self, steps):
        for _ in range(steps):
            self.step()
        self.finish()

    def step(self):
        what = self.dice.choice(STEPS)
        if what == "arrive":
            self.arrive()
        elif what == "wait":
            self.wait(self.dice.choice([0.0, 0.01, 0.03, 0.2, 0.6]))
        elif what == "change":
            self.change()
        elif what == "reload":
            self.reload()
        elif what == "leave" and self.queries:
            self.leave(self.dice.choice(self.queries))
        elif what == "die":
            self.die_or_return()
        elif what == "end" and self.flying:
            self.end(self.dice.choice(self.flying))
        elif what == "stream" and self.flying:
            task = self.dice.choice(self.flying)
            if task.kind is Kind.DEPLOYED:
                self.tell("answer_started", task)

    def arrive(self):
        dice = self.dice
        pool, key, least = dice.choice(self.everything.pools).name, dice.choice([None, 1, 1, 2]), dice.choice(LEAST)
        deadline_at = self.now + dice.choice([0.0, 0.05, 0.3]) if dice.random() < 0.2 else None
        query = Query(len(self.queries), pool, key, deadline_at, least)
        self.queries.append(query)
        self.arrived_under[query.id] = len(self.policies) - 1
        self.tell("query_arrived", query)

    def wait(self, seconds):
        end = self.now + seconds
        for _ in range(1000):
            if (at := self.scheduler.next_deadline()) > end:
                break
            self.now = max(self.now, at)
            self.tell("tick")
        else:
            raise AssertionError("a timer that is always due")
        self.now = end
        for query in self.queries:
            assert not query.open or query.deadline_at >= self.now, f"{query!r} outlives its deadline"

    def change(self):
        """Pools and endpoints are gone, or back, some with other workers or places."""
        dice, before = self.dice, {endpoint.name for endpoint in self.fleet.endpoints}
        kept = {pool.name for pool in self.everything.pools if dice.random() < 0.9}
        share = dice.choice([0.6, 1.0, 1.0])
        there = [e for e in self.everything.endpoints if e.pool in kept and dice.random() < share]
        for index, endpoint in enumerate(there):
            if dice.random() < 0.2:
                there[index] = replace(endpoint, workers=frozenset({str(dice.randrange(3))}))
            elif dice.random() < 0.1:
                there[index] = replace(endpoint, places=1)
        self.parted |= {
            task.id
            for task in self.flying
            for endpoint in there
            if task.endpoint.name == endpoint.name not in before and are_others(task.endpoint.workers, endpoint.workers)
        }
        pools = tuple(pool for pool in self.everything.pools if pool.name in kept)
        self.fleet = Fleet(self.everything.instances, tuple(there), pools)
        self.tell("endpoints_changed", self.fleet)
        assert self.scheduler.snapshot()

    def reload(self):
        """The operator changes settings."""
        dice = self.dice
        changed = {name: dice.choice(POLICIES[name]) for name in SETTINGS if dice.random() < 0.4}
        self.policies.append(replace(self.policy, **changed))
        self.tell("policy_changed", self.policy)
        assert self.scheduler.snapshot()

    def leave(self, query):
        self.ended.setdefault(query.id, "left")
        self.tell("query_abandoned", query)

    def die_or_return(self):
        """An instance dies with all it has, and one that was dead is back."""
        name = self.dice.choice(self.everything.instances).name
        if name in self.dead:
            self.dead.discard(name)
            return
        for task in [task for task in self.flying if task.endpoint.instance == name]:
            self.end(task, Failed("closed", cause=Cause.LOST))
        self.dead.add(name)

    def end(self, task, outcome=None):
        dice = self.dice
        self.flying.remove(task)
        if outcome is None:
            outcome = dice.choice(self.outcomes)
            if task.endpoint.instance in self.dead:
                outcome = Failed("nobody", cause=Cause.UNREACHABLE)
            elif task.kind is Kind.PROTECTION and isinstance(outcome, Arrived) and dice.random() < 0.2:
                outcome = Arrived(covers=frozenset(range(dice.randrange(task.group.k))))
            if task.kind is not Kind.DEPLOYED and isinstance(outcome, Arrived) and dice.random() < 0.8:
                agreement = {slot: dice.choice(AGREEMENTS) for slot in range(task.group.k)}
                outcome = outcome._replace(agreement=agreement)
        if task.kind is Kind.DEPLOYED and isinstance(outcome, Failed):
            self.failed_own.add(task.query.id)
        cause = outcome.cause if isinstance(outcome, Failed) else None
        if isinstance(outcome, Rejected) or cause in (Cause.UNREACHABLE, Cause.MISSING):
            self.nothing_ran(task, rejected=cause is None)
        free = cause is Cause.UNREACHABLE or (
            cause in (Cause.LOST, Cause.LOST_BEHIND) and task.query is not None and not task.query.forgiven
        )
        owing = any(query.open and query.owes for query in self.queries)
        retries, ended = self.scheduler.sent["retry"], set(self.ended)
        self.tell("task_done", task, outcome)
        if free and not owing:
            assert self.scheduler.sent["retry"] == retries, "what an instance's death takes with it is no retry"
        if task.kind is Kind.PROTECTION and cause is not None:
            for number in set(self.ended) - ended:
                assert self.queries[number].in_flight == 0, "a protection's failure has failed a query"

    def nothing_ran(self, task, rejected):
        if task.kind is Kind.DEPLOYED:
            self.ran[task.query.id] -= 1
            self.own[task.query.id] -= rejected and not task.hedge
        if task.query is not None:
            self.again[task.query.id] = 0

    def finish(self):
        """Everything ends: what flies fails or arrives, and all timers run out."""
        self.dead.clear()
        for _ in range(10_000):
            if self.flying:
                self.end(self.flying[0])
            elif self.scheduler.open_queries() or self.scheduler.next_deadline() < math.inf:
                self.wait(1.0)  # a group on trial may be sealed when all its queries have ended
            else:
                break
        self.check_nothing_is_left()

    def tell(self, event, *about):
        notes = [noted(each) for each in about]
        actions = getattr(self.scheduler, event)(*about, self.now)
        if event == "endpoints_changed":
            shorten_trials(self.scheduler)
        self.history.append((event, notes, self.now, [*map(described, actions)], self.scheduler.next_deadline()))
        self.failed_own |= {task.query.id for task in self.flying if task.lost and task.kind is Kind.DEPLOYED}
        for action in actions:
            if isinstance(action, Send):
                self.check_sent(action.task)
            elif not isinstance(action, Compare):
                self.check_ended(action)
        self.check_inside()
        for pair in actions:
            if isinstance(pair, Compare):
                assert pair.own.done
                assert pair.other.done
                assert pair.own is not pair.other
                self.tell("compared", pair, self.dice.choice(FINDINGS), "why")

    # ---- promises ----------------------------------------------------------------------------------------------------

    def check_ended(self, action):
        """1 and 2: once; and if with a rebuilt answer, with one that may be used."""
        query = action.query
        assert query.id not in self.ended, f"{query!r} ended twice"
        self.ended[query.id] = action
        if isinstance(action, Answer) and action.source is Source.RECONSTRUCTED:
            task, group = action.task, action.task.group
            expected = group.agreement.get(query.slot, group.trust.expected)
            assert group.code.lossless or query.least <= expected
            assert not group.on_trial
            assert group.trust.in_use, "a rebuilt answer comes only from a protection in use"
            assert group.trust.since <= group.begun_at
            if task.kind is Kind.PROTECTION:
                assert group.code.family == "backup"
                assert task.done
                self.check_released(query, group)

    def check_released(self, query, group):
        """2: a rebuilt answer, or what is to become one, is used when the query's time has come, and not before."""
        assert self.now >= query.release_at
        assert query.least <= 1.0 or group.code.lossless
        since = self.policies[self.arrived_under[query.id] :]
        if query.id in self.failed_own or any(policy.reconstruct_after_s is None for policy in since):
            return
        assert self.now >= min(self.earliest(query, policy) for policy in since) - 1e-9

    def earliest(self, query, policy):
        at = self.first_sent.get(query.id, math.inf) + policy.reconstruct_after_s
        if policy.launch_waiting and policy.launch != "group":  # a backup that goes before its query
            at = min(at, query.arrived_at + policy.launch_waiting * (policy.launch_after_s or 0.0))
        return at if policy.target_s is None else min(at, query.arrived_at + IN_TIME * policy.target_s)

    def check_sent(self, task):
        self.flying.append(task)
        if task.kind is Kind.PROTECTION and task.group.size:
            self.instead += sum(member.state is QueryState.POSTPONED for member in task.group.members if member)
        self.check_places(task)
        query, group = task.query, task.group
        for each in self.sent_with(task):
            if each.kills:
                self.again[each.id] += 1
                assert self.again[each.id] <= 1, "6: what may kill workers runs once more, in whatever form"
        if task.kind is Kind.DEPLOYED:
            self.check_attempt(task, query)
        elif group.on_trial:
            assert not group.trust.proved
            assert group.unanswered >= 0
            assert query is None or query.group is not group, "no query knows that it is on trial"
        if task.kind is Kind.PROTECTION:
            pools = [pool for pool in self.everything.pools if pool.name == task.endpoint.pool]
            assert pools[0].partial or (group.full and not group.barred)
        elif task.kind is Kind.FINISH and group.on_trial:
            assert task.slot in group.recoverable_without(task.slot)
        elif task.kind is Kind.FINISH:
            assert task.slot in group.code.recoverable(frozenset(group.have), group.covers)
            self.check_released(query, group)

    def check_attempt(self, task, query):
        """5: within the attempts, and the second copies within what they may take. What must not be repeated is not."""
        self.first_sent.setdefault(query.id, self.now)
        self.ran[query.id] += 1
        pool = next(pool for pool in self.everything.pools if pool.name == query.pool)
        assert pool.repeatable or self.ran[query.id] == 1, "run twice"
        if not task.hedge:
            self.own[query.id] += 1
            assert self.own[query.id] - query.excused <= self.policy.max_attempts
            return
        assert len(self.on(task, "instance")) == 1, "a second copy goes to an idle instance only"
        state = self.pools()[query.pool]
        assert not state.waiting
        assert not any(self.now >= other.yields_until for other in state.retries.values()), "a retry goes first"

    def check_places(self, task):
        """4: the endpoint's, the pool's on the instance, and the instance's."""
        spare, place, host = 0, task.place, task.place.host.instance
        others = [other for other in self.on(task, "name") if other is not task]
        if task.kind is Kind.DEPLOYED and not task.hedge and others:
            overdue = (
                self.now - min(other.sent_at for other in others) > self.pools()[place.endpoint.pool].release.after_s
            )
            spare = self.policy.spare_places if overdue else 0
        on_instance = self.on(task, "instance")
        assert len(others) < place.endpoint.places + spare
        beside = [e for e in self.fleet.endpoints if (e.instance, e.pool) == (host.name, place.endpoint.pool)]
        of_pool = [other for other in on_instance if other.endpoint.pool == place.endpoint.pool]
        assert len(of_pool) <= max(e.places for e in beside) + spare
        if place.endpoint.row is not None or host.capped:
            assert len(on_instance) <= host.places + spare

    def on(self, task, what):
        """The tasks that take a place on the same instance, or the endpoint of the same name."""
        here = getattr(task.endpoint, what)
        return [t for t in self.flying if getattr(t.endpoint, what) == here and t.id not in self.parted]

    def check_inside(self):
        scheduler, lines = self.scheduler, Counter()
        assert scheduler.in_flight() == len(self.flying)
        assert scheduler.open_queries() == sum(query.open for query in self.queries)
        for pool in scheduler.pools():
            for state, queue in ((QueryState.WAITING, pool.waiting), (QueryState.RETRYING, pool.retries.values())):
                for query in queue:
                    assert query.state is state
                    lines[query.id] += 1
            assert all(query.open for query in [*pool.late.values(), *pool.hedges.values()])
            if pool.waiting and not self.policy.spare_places:
                place = pool.selection.for_query(pool.waiting[0], self.now, len(pool.waiting))
                assert place is None, "it has a place and is not sent"
        deployed = [task for task in self.flying if task.kind is Kind.DEPLOYED and not task.lost]
        for query in self.queries:
            if query.open:
                assert lines[query.id] == query.waiting
                tasks = [task for task in deployed if task.query is query]
                assert query.in_flight == len(tasks)
                assert sum(not task.hedge for task in tasks) == (query.state is QueryState.RUNNING)
                assert tasks or query.waiting or self.may_be_saved(query)

    def may_be_saved(self, query):
        """It is late and will get a backup, or its group goes on: an output, a place or a neighbour is waited for."""
        pools = self.pools()
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
        return (useful and under_way) or (query.held is not None and group.usable)

    def check_nothing_is_left(self):
        """1, 5 and 7: everybody has ended, within the budgets, and nothing is kept."""
        policy, scheduler = self.policy, self.scheduler
        assert set(self.ended) == {query.id for query in self.queries}
        retries = policy.retry_burst * self.switched_on("retry_ratio") + self.earned("retry_ratio")
        retries += policy.retry_burst * self.now if any(each.retry_ratio for each in self.policies) else 0
        assert scheduler.sent["retry"] <= retries + 1e-9
        work = policy.work_burst * self.switched_on("extra_work") + self.earned("extra_work")
        largest = max((pool.code.k for pool in self.everything.pools if pool.code is not None), default=1)
        paid = scheduler.sent["hedge"] + scheduler.sent["late"] - self.instead
        assert paid <= work + largest - 1 + 1e-9
        assert policy.copies or not scheduler.sent["hedge"]
        for pool in scheduler.pools():
            limit = BURST * self.switched_on("differing") + self.earned("differing", pool.pool.name)
            unlimited = any(each.differing == 1.0 for each in self.policies)
            assert unlimited or pool.release.budget.spent <= limit + 1e-9
        assert scheduler.open_queries() == scheduler.in_flight() == 0
        assert scheduler.next_deadline() == math.inf
        for pool in scheduler.pools():
            assert not any((pool.waiting, pool.retries, pool.late, pool.hedges, pool.placement.open_groups))
            assert all(group.done for group, _ in (*pool.trials.launches, *pool.trials.finishes, *pool.protections))
            assert not any(query.open for query in pool.finishes)

    def check_repeatable(self):
        """8: the same events at the same times give the same actions."""
        again, queries, made = begun(self.everything, self.policies[0]), {}, {}
        for event, notes, now, said, due in self.history:
            about = []
            for kind, note in notes:
                if kind is Query:
                    about.append(queries.setdefault(note[0], Query(*note)))
                else:
                    about.append(note if kind is None else made[kind, note])
            actions = getattr(again, event)(*about, now)
            if event == "endpoints_changed":
                shorten_trials(again)
            assert [*map(described, actions)] == said
            assert again.next_deadline() == due
            for action in actions:
                if isinstance(action, Send | Compare):
                    subject = action.task if isinstance(action, Send) else action
                    made[noted(subject)] = subject

    @property
    def policy(self):
        return self.policies[-1]

    def earned(self, share, pool=None):
        """What queries have brought to a budget."""
        asked = Counter(self.arrived_under[query.id] for query in self.queries if pool in (None, query.pool))
        return sum(getattr(policy, share) * asked[number] for number, policy in enumerate(self.policies))

    def switched_on(self, share):
        """How often a budget has begun full."""
        shares = [0.0, *(getattr(policy, share) for policy in self.policies)]
        return sum(after > before == 0.0 for before, after in pairwise(shares))

    def pools(self):
        return {pool.pool.name: pool for pool in self.scheduler.pools()}

    @staticmethod
    def sent_with(task):
        """The queries whose bodies a task brings."""
        if task.kind is not Kind.PROTECTION:
            return [task.query]
        return [
            member for member in task.group.members if member is not None and member.slot in task.group.sent[task.row]
        ]
