"""What metrics cost beside the engine: microseconds per query, of the same queries, seed by seed.

    python benchmarks/metrics.py [--queries N] [--runs N] [--json]

The engine serves a run as in benchmarks/engine.py. What a driver would have counted is kept, and counted afterwards by
the driver's own calls, with `settle` for each second of the run; every ten seconds Prometheus reads all of it. Both
times are of the processor. Target: at most 2 %.
"""

import argparse
import json
import platform
import statistics
import sys
import time

import engine

from ts_parity.arguments import count
from ts_parity.engine import Answer, Policy, Scheduler
from ts_parity.proxy.serving.metrics import COMPILED, Metrics
from ts_parity.testing import POOL, fleet

TARGET = 0.02
READ_EVERY_S = 10
"""Prometheus' default is every minute, and usual are 10 to 30 seconds."""


class Watched:
    """A Scheduler, and for each second of the run what a driver would have counted: a list for each statement."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.seconds = [([], [])]
        """Answered: source and seconds. Ended: endpoint and seconds."""
        self.next_deadline = scheduler.next_deadline

    def tick(self, now):
        return self._noted(self._scheduler.tick(now), now)

    def query_arrived(self, query, now):
        return self._noted(self._scheduler.query_arrived(query, now), now)

    def task_done(self, task, outcome, now):
        self.seconds[-1][1].append((task.place.name, now - task.sent_at))
        return self._noted(self._scheduler.task_done(task, outcome, now), now)

    def _noted(self, actions, now):
        answered, _ = self.seconds[-1]
        for action in actions:
            if isinstance(action, Answer):
                answered.append((action.source._value_, now - action.query.arrived_at))
        if now >= len(self.seconds):
            self.seconds.append(([], []))
        return actions


def one_run(queries: int, seed: int) -> tuple[float, float]:
    """-> seconds of processor per query: in the engine, and for metrics."""
    clock = time.process_time
    engine_s = engine.one_run(Policy(), queries, seed, clock)
    made: list[Watched] = []

    def watched(scheduler: Scheduler) -> Watched:
        made.append(Watched(scheduler))
        return made[0]

    engine.one_run(Policy(), queries, seed, clock, watched)
    wall = [0.0]
    engine_of_none = Scheduler(fleet(deployed=12, protections=6), Policy())
    metrics = Metrics(engine_of_none.snapshot, Policy(), clock=lambda: wall[0])
    names = {name for _, ended in made[0].seconds for name, _ in ended}
    metrics.adopt([POOL], dict.fromkeys(names, (POOL, "deployed")))
    metrics.exposition()  # labels are written once
    spent_s = 0.0
    for number, second in enumerate(made[0].seconds, 1):
        wall[0] = float(number)
        spent_s += counted(metrics, *second, number % READ_EVERY_S == 0, clock) - iterated(metrics, *second, clock)
    return engine_s, spent_s / queries


def counted(metrics: Metrics, answered, ended, wholly: bool, clock) -> float:
    """-> seconds that the driver's calls take, and after them `settle`; or every ten seconds a whole reading."""
    iterated(metrics, answered, ended, clock)  # the driver has just made what it notes: that is in the cache
    note_answer, note_arrival = metrics.answered, metrics.arrived
    started = clock()
    for source, seconds in answered:
        note_answer(POOL, source, seconds)
    for name, seconds in ended:
        note_arrival(name, seconds)
    metrics.settle(0.0, 0.0)
    if wholly:
        metrics.exposition()
    return clock() - started


def iterated(metrics: Metrics, answered, ended, clock) -> float:
    """-> seconds that going through them takes; and calling, if that is compiled: the driver then calls it as C does,
    and only this script as an interpreter does.
    """
    call = metrics.arrived if COMPILED else None
    started = clock()
    if call is None:
        for _source, _seconds in answered:
            pass
        for _name, _seconds in ended:
            pass
    else:
        for _source, seconds in answered:
            call("no such endpoint", seconds)
        for _name, seconds in ended:
            call("no such endpoint", seconds)
    return clock() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=20_000)
    parser.add_argument("--runs", type=count(), default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs = [one_run(args.queries, seed) for seed in range(args.runs)]
    shares = sorted(metrics_s / engine_s for engine_s, metrics_s in runs)
    told = {
        "what": "metrics, share of the engine's time per query, k=2 sum, 12 + 6 endpoints, load 0.6",
        "median": round(statistics.median(shares), 4),
        "min": round(shares[0], 4),
        "max": round(shares[-1], 4),
        "target": TARGET,
        "engine_us": round(1e6 * statistics.median(engine_s for engine_s, _ in runs), 2),
        "metrics_us": round(1e6 * statistics.median(metrics_s for _, metrics_s in runs), 3),
        "queries": args.queries,
        "seeds": [*range(args.runs)],
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    if args.json:
        print(json.dumps(told))
    else:
        print(f"{told['what']}: median {told['median']:.2%} ({told['min']:.2%} to {told['max']:.2%})")
        print(f"target {TARGET:.0%}; {told['metrics_us']} of {told['engine_us']} us; {args.queries} queries x seeds")
        print(f"{told['seeds']}; {told['machine']}")
    return 0 if told["median"] <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
