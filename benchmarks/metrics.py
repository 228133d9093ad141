"""What metrics, or traces, cost beside the engine: microseconds per query, of the same queries, seed by seed.

    python benchmarks/metrics.py [--tracing] [--queries N] [--runs N] [--json]

The engine serves a run as in benchmarks/engine.py. What a driver would have counted is kept, and counted afterwards by
the driver's own calls, with `settle` for each second of the run; every ten seconds Prometheus reads all of it. Both
times are of the processor. Target: at most 2 %.

With --tracing, a tracer is told what a driver would tell it while the engine serves; after each second of the run its
spans are built and sent to a receiver, over OTLP. Each seed without late tasks and with a tenth of them late.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import engine

from ts_parity.arguments import count
from ts_parity.engine import Answer, Kind, Policy, Scheduler, Send
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload
from ts_parity.proxy.http.messages import Request
from ts_parity.proxy.serving.metrics import COMPILED, Metrics
from ts_parity.proxy.serving.tracing import Tracer
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


LATE_SHARES = {"nothing is late": 0.0, "a tenth of the tasks five times slow": 0.1}
HEADERS = (
    ("Host", "127.0.0.1:8000"), ("User-Agent", "client/1.0"), ("Accept", "*/*"), ("Content-Type", "application/json"),
    ("x-request-id", "0123456789abcdef"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
)  # fmt: skip
RECEIVER = """
import http.server
class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Traced:
    """A Scheduler, and a tracer that learns what a driver would tell it. `spent_s`: of all threads."""

    def __init__(self, scheduler: Scheduler, tracer: Tracer, clock) -> None:
        self._scheduler = scheduler
        self._tracer = tracer
        self._clock = clock
        self._clock_s = statistics.median(-clock() + clock() for _ in range(1000))
        self._second = 1.0
        self.spent_s = 0.0
        self.told = 0
        self.next_deadline = scheduler.next_deadline

    def tick(self, now):
        return self._followed(self._scheduler.tick(now), now)

    def query_arrived(self, query, now):
        query.payload = QueryPayload(Request("POST", f"/predictions/{POOL}", HEADERS, b""), Ask(POOL))
        return self._followed(self._scheduler.query_arrived(query, now), now)

    def task_done(self, task, outcome, now):
        self._timed(self._tracer.task_ended, task, outcome, now)
        return self._followed(self._scheduler.task_done(task, outcome, now), now)

    def _followed(self, actions, now):
        """The conditions are the driver's."""
        for action in actions:
            if isinstance(action, Answer):
                query, source = action.query, action.source
                out = self._scheduler.tasks_of(query) if query.in_flight else []
                self.told += bool(self._timed(self._tracer.ended, query, source, action.task, 200, "", out, now))
            elif isinstance(action, Send):
                task, query = action.task, action.task.query
                if task.kind is not Kind.DEPLOYED or task.hedge or query is None or query.attempts > 1:
                    self._timed(self._tracer.sent, task)
        if now >= self._second:
            self._second = now + 1.0
            self._timed(self.build)
        return actions

    def build(self) -> None:
        """What is one by one between queries, at once; and until the receiver has it."""
        self._tracer._build(len(self._tracer._waiting))
        self._tracer.sink._processor.force_flush()

    def _timed(self, call, *arguments):
        started = self._clock()
        result = call(*arguments)
        self.spent_s += self._clock() - started - self._clock_s
        return result


async def one_traced_run(queries: int, seed: int, late_share: float) -> tuple[float, float, float]:
    """-> seconds of processor per query: in the engine, and for tracing; and the share of queries that are told of."""
    from ts_parity.proxy.serving.spans import OtlpSpans

    clock = time.process_time
    engine_s = engine.one_run(Policy(), queries, seed, clock, late_share=late_share)
    sink, made = OtlpSpans("http"), []

    def traced(scheduler: Scheduler) -> Traced:
        made.append(Traced(scheduler, Tracer(sink), clock))
        return made[0]

    engine.one_run(Policy(), queries, seed, clock, traced, late_share)
    made[0]._timed(made[0].build)
    counts = sink.counts()
    assert counts["failed"] == counts["dropped"] == 0, counts
    await sink.close()
    return engine_s, made[0].spent_s / queries, made[0].told / queries


def tracing(args: argparse.Namespace) -> list[dict]:
    with subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
        try:
            seeds = range(args.runs)
            runs = [
                {what: asyncio.run(one_traced_run(args.queries, seed, late)) for what, late in LATE_SHARES.items()}
                for seed in seeds
            ]
        finally:
            receiver.kill()
    results = []
    for what in LATE_SHARES:
        shares = sorted(tracing_s / engine_s for engine_s, tracing_s, _ in (run[what] for run in runs))
        results.append(
            {
                "what": f"tracing, share of the engine's time per query, k=2 sum, 12 + 6 endpoints, load 0.6, {what}",
                "median": round(statistics.median(shares), 4),
                "min": round(shares[0], 4),
                "max": round(shares[-1], 4),
                "engine_us": round(1e6 * statistics.median(run[what][0] for run in runs), 2),
                "tracing_us": round(1e6 * statistics.median(run[what][1] for run in runs), 3),
                "told": round(statistics.median(run[what][2] for run in runs), 4),
                **_samples(args),
            }
        )
    return results


def _samples(args: argparse.Namespace) -> dict:
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    return {"queries": args.queries, "seeds": [*range(args.runs)], "machine": machine}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=count(), default=20_000)
    parser.add_argument("--runs", type=count(), default=5)
    parser.add_argument("--tracing", action="store_true", help="what traces cost (takes ts_parity[otel])")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.tracing:
        for told in tracing(args):
            if args.json:
                print(json.dumps(told))
                continue
            print(f"{told['what']}: median {told['median']:.2%} ({told['min']:.2%} to {told['max']:.2%})")
            print(f"{told['tracing_us']} of {told['engine_us']} us; {told['told']:.2%} of the queries are told of;")
            print(f"{args.queries} queries x seeds {told['seeds']}; {told['machine']}")
        return 0
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
        **_samples(args),
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
