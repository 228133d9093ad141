"""The Prometheus metrics. One registry per proxy, base units, labels of which each has few values, and no ids.

What happens to nearly every query costs one `append` where it happens: durations are counted together, some seconds
later or when somebody reads, by `settle` and `count`. Everything rare is added to a plain number. Gauges are read from
the engine's snapshot when `/metrics` is. Knows names and numbers. Knows nothing of queries or tasks.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import median
from typing import Any, Final

from prometheus_client import ProcessCollector

from ts_parity import __version__
from ts_parity.engine import Finding, Kind, Policy, Source, Standing, scheduler
from ts_parity.proxy.serving.conditions import CONDITIONS, endpoint_condition
from ts_parity.proxy.serving.durations import LABELS, CountedDurations, DurationHistogram, wide_label
from ts_parity.proxy.serving.exposition import (
    ExposedExemplar,
    ExposedFamily,
    exposed,
    written_labels,
)
from ts_parity.proxy.serving.recent import Recent, slot_number

MOST_POOLS: Final = 100
MOST_ENDPOINTS: Final = 200
"""Each makes some 150 time series of a pool, or 30 of an endpoint. What there is beyond is `other`."""
OTHER: Final = "other"
MOST_EXEMPLAR: Final = 128
"""Characters of an exemplar's labels, their names counted, as OpenMetrics allows."""
SOURCES: Final = tuple(source.value for source in Source)
ERRORS: Final = ("failed", "overloaded", "deadline", "unavailable", "abandoned")
ENDS: Final = ("arrived", "failed", "rejected")
ENDED_EVERY_S: Final = 10.0
"""Nobody asks for what endpoints took more often than Prometheus."""
MANY: Final = 4000
"""Collected durations that are counted within a second: counting them takes a fifth of a millisecond."""
LATEST: Final = 64
"""Tasks of an endpoint by which its speed is judged for people; the engine judges by itself (see its `speed`)."""
LATEST_S: Final = 60.0
FEW: Final = 5
_NEVER: Final[tuple[float, list[float]]] = (0.0, [])
COMPILED: Final = not str(scheduler.__file__).endswith(".py")
"""Whether the engine, and so the whole data path, is."""
_DEPLOYED: Final = Source.DEPLOYED.value
_OF_DEPLOYED: Final = Kind.DEPLOYED.value


class Counter:
    """A counter: a number for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        # Without labels there is one number, which exists from the start.
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._written: tuple[str, ...] = ()
        """Their labels, as far as they have been read."""

    def add(self, *labels: str, by: float = 1.0) -> None:
        values = self._values
        values[labels] = values.get(labels, 0.0) + by

    def begin(self, *labels: str) -> None:
        """From now on it is shown, if as 0: Prometheus sees no increase in what was not there before."""
        self._values.setdefault(labels, 0.0)

    def forget(self, first: Container[str]) -> None:
        """All with one of these values of the first label."""
        self._values = {labels: value for labels, value in self._values.items() if labels[0] not in first}
        self._written = ()

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def family(self) -> ExposedFamily:
        family = ExposedFamily(self._name, "counter", self._text)
        if len(self._written) != len(self._values):
            self._written = tuple(written_labels(self._labels, labels) for labels in self._values)
        family.add_all(self._written, self._values.values())
        return family


class Histogram:
    """A histogram of seconds: for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._of: dict[tuple[str, ...], DurationHistogram] = {}
        self._lines: dict[tuple[str, ...], str] = {}
        """All lines of each, with room for their numbers: those that Prometheus gets of the histogram, then `_count`
        and `_sum`. Written line by line they would take ten times as long.
        """
        self._exemplars: dict[tuple[str, ...], ExposedExemplar] = {}

    def begin(self, *labels: str) -> DurationHistogram:
        found = self._of.get(labels)
        if found is None:
            found = self._of[labels] = DurationHistogram()
            self._lines[labels] = self._lines_of(labels)
        return found

    def _lines_of(self, labels: tuple[str, ...]) -> str:
        names = (*self._labels, "le")
        told = [("_bucket", written_labels(names, (*labels, end)), "%d.0") for end in LABELS]
        whole = written_labels(self._labels, labels)
        told += [("_count", whole, "%d.0"), ("_sum", whole, "%r")]
        return "".join(
            f"{self._name}{suffix}{written.replace('%', '%%')} {number}\n" for suffix, written, number in told
        )

    def keep(self, first: Container[str]) -> None:
        """Forget all with other values of the first label."""
        for labels in [labels for labels in self._of if labels[0] not in first]:
            del self._of[labels], self._lines[labels]
            self._exemplars.pop(labels, None)

    def note(self, seconds: float, request_id: str, trace_id: str, *labels: str) -> None:
        """An example of these, the last one. A trace leads to more than a request's id, so that goes if both are too
        long.
        """
        told: dict[str, str] = {}
        if trace_id:
            told["trace_id"] = trace_id
        if 0 < len(request_id) <= MOST_EXEMPLAR - len("request_id") - sum(map(len, (*told, *told.values()))):
            told["request_id"] = request_id
        if told:
            written = written_labels(tuple(told), tuple(told.values()))
            self._exemplars[labels] = ExposedExemplar(written, seconds, round(time.time(), 3))

    def family(self) -> ExposedFamily:
        family = ExposedFamily(self._name, "histogram", self._text)
        for labels, one in self._of.items():
            exemplar, upto = self._exemplars.get(labels), one.wide()
            lines = self._lines[labels] % (*upto, upto[-1], one.total_s)
            if exemplar is None:
                family.written.append(lines)
            else:
                family.exemplars[len(family.written) + LABELS.index(wide_label(exemplar.value))] = exemplar
                family.written.extend(f"{line}\n" for line in lines.split("\n")[:-1])
        return family


class Labels:
    """The names that are label values: so many at most, and what is beyond is `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.of: dict[str, str] = {}

    def adopt(self, present: Iterable[str]) -> list[str]:
        """-> those that are labels no more. One that has gone stays one until its room is needed."""
        there = dict.fromkeys(present)
        labels = [name for name, label in self.of.items() if label != OTHER]
        new = [name for name in there if name not in labels]
        gone = [name for name in labels if name not in there]
        dropped = gone[: max(0, len(labels) + len(new) - self._most)]
        kept = [name for name in labels if name not in dropped]
        fitting = dict.fromkeys([*kept, *new][: max(self._most, len(kept))])
        self.of = {name: name if name in fitting else OTHER for name in [*kept, *new]}
        return dropped


class Metrics:
    """Counters and histograms, and gauges from the engine's `snapshot` at the moment of reading."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        policy: Policy,
        clients: Callable[[], tuple[int, int, int, int]] = lambda: (0, 0, 0, 0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clients`: connections now and at most; clients refused, and idle ones closed, for want of room. `clock`:
        seconds since 1970.
        """
        self._clock = clock
        self._snapshot = snapshot
        self.policy = policy
        self._clients = clients
        self._pools = Labels(MOST_POOLS)
        self._endpoints = Labels(MOST_ENDPOINTS)
        self._rows: dict[str, tuple[str, str]] = {}
        """Endpoint -> its pool, and the kind of its tasks."""
        self.config: Callable[[], Iterable[ExposedFamily]] = tuple
        """What is counted of the configuration."""
        self.recent = Recent()
        self.lag_s = 0.0
        """How late the event loop was when it was last looked at."""
        self._answered: dict[str, dict[str, list[float]]] = {source: {OTHER: []} for source in SOURCES}
        """Source -> pool -> seconds from arrival to answer, of queries whose answers are not counted yet."""
        self._settled_at = self._clock()
        self._ended_due = 0.0
        self._latest: dict[str, tuple[float, list[float]]] = {}
        """Endpoint -> when it last answered, and what its last tasks took."""
        self._ended: dict[str, list[float]] = {}
        """Endpoint -> seconds that its tasks took which have arrived since; finishes aside."""
        self.queries = Counter(
            "ts_parity_queries",
            "Queries that ended, by the source of the answer (none: no prediction) and how they ended.",
            ["pool", "source", "outcome"],
        )
        self.query_seconds = Histogram(
            "ts_parity_query_duration_seconds",
            "From a query's arrival to its answer, by the source of the answer.",
            ["pool", "source"],
        )
        self.unprotected_seconds = Histogram(
            "ts_parity_unprotected_duration_seconds",
            "What the same queries would have waited without second copies and protections: until their own tasks "
            "ended. Queueing would have differed without them; what never came counts as its deadline.",
            ["pool"],
        )
        self.agreement = Counter(
            "ts_parity_agreement",
            "Answers given in place of a query's own, compared with that when it came, by finding.",
            ["pool", "source", "finding"],
        )
        self.tasks = Counter("ts_parity_tasks", "Tasks that ended, by kind and outcome.", ["pool", "kind", "outcome"])
        self.endpoint_seconds = Histogram(
            "ts_parity_endpoint_duration_seconds",
            "From when a task was sent to its answer; finishes aside.",
            ["endpoint", "pool"],
        )
        self.work = Counter(
            "ts_parity_work",
            "Work sent, in deployed inferences: a query 1, a parity query 1, a backup 1 per member.",
            ["pool", "kind"],
        )
        self.comparisons = Counter(
            "ts_parity_comparisons",
            "Answers compared with the deployed model's own, of its protection or of second copies, by finding; "
            "those on trial and those that nobody was given too.",
            ["pool", "of", "finding"],
        )
        self.rebuilt = Counter(
            "ts_parity_rebuilt",
            "Rebuilt answers given, by whether their confidence is known.",
            ["pool", "confidence"],
        )
        self.differing = Counter(
            "ts_parity_expected_differing",
            "How many of those whose confidence is known are expected to differ from the deployed model's own.",
            ["pool"],
        )
        self.decode_failures = Counter("ts_parity_decode_failures", "Raw outputs that could not be decoded.")
        self.finish_failures = Counter("ts_parity_finish_failures", "Rebuilt outputs that no worker made an answer of.")
        self.passed_through = Counter(
            "ts_parity_passed_through", "Requests that did not go through the engine, by outcome.", ["outcome"]
        )
        self.unrepeatable = Counter(
            "ts_parity_unrepeatable",
            "Predictions that were passed through, since they may not be repeated, by kind of server and reason.",
            ["kind", "reason"],
        )
        self.forwarded = Counter(
            "ts_parity_forwarded",
            "Queries that were forwarded to the proxy that serves their model; taken back: served here after all.",
            ["outcome"],
        )
        self.peers_alive: Callable[[], int] | None = None
        """Set where there are other proxies."""
        self.spans: Callable[[], Mapping[str, int]] | None = None
        """Set where queries are traced: what became of their spans."""
        for outcome in ("answered", "failed", "unavailable"):
            self.passed_through.begin(outcome)
        for outcome in ("answered", "failed", "taken back", "abandoned"):
            self.forwarded.begin(outcome)
        self._process = ProcessCollector(registry=None)
        self.adopt((), {})

    # ---- what the labels may be ------------------------------------------------------------------------------------

    def adopt(self, pools: Iterable[str], endpoints: Mapping[str, tuple[str, str]]) -> None:
        """The fleet has changed. `endpoints`: each with its pool and the kind of its tasks. All label values that can
        come are shown from now on.
        """
        self.count()
        if gone := self._pools.adopt(pools):
            self._forget(gone)
        for source, lists in self._answered.items():
            self._answered[source] = {name: lists.get(name, []) for name in (OTHER, *self._pools.of)}
        for label in self._pools.of.values():
            self._begin(label)
        for endpoint in [endpoint for endpoint in self._ended if endpoint not in endpoints]:
            del self._ended[endpoint]
            self._latest.pop(endpoint, None)
        self._endpoints.of = {}  # of the present fleet only
        self._endpoints.adopt(endpoints)
        self.endpoint_seconds.keep({*self._endpoints.of.values()})
        self._rows = dict(endpoints)
        for endpoint, (pool, _) in endpoints.items():
            self._ended.setdefault(endpoint, [])
            self.endpoint_seconds.begin(self._endpoint(endpoint), self.pool(pool))

    def pool(self, name: str) -> str:
        """The label of a pool."""
        return self._pools.of.get(name, OTHER)

    def _endpoint(self, name: str) -> str:
        return self._endpoints.of.get(name, OTHER)

    def _begin(self, pool: str) -> None:
        for source in SOURCES:
            self.queries.begin(pool, source, "answered")
            self.query_seconds.begin(pool, source)
        for error in ERRORS:
            self.queries.begin(pool, "none", error)
        self.unprotected_seconds.begin(pool)
        for kind in Kind:
            for end in ENDS:
                self.tasks.begin(pool, kind.value, end)
        for kind in (Kind.DEPLOYED, Kind.PROTECTION):
            self.work.begin(pool, kind.value)
        for finding in Finding:
            for of in ("protection", "copy"):
                self.comparisons.begin(pool, of, finding.value)
            for source in (Source.RECONSTRUCTED, Source.HEDGED):
                self.agreement.begin(pool, source.value, finding.value)
        for confidence in ("known", "unknown"):
            self.rebuilt.begin(pool, confidence)
        self.differing.begin(pool)

    def _forget(self, pools: Container[str]) -> None:
        for counter in (self.queries, self.tasks, self.work, self.comparisons, self.agreement, self.rebuilt,
                        self.differing):  # fmt: skip
            counter.forget(pools)
        for histogram in (self.query_seconds, self.unprotected_seconds):
            histogram.keep({OTHER, *self._pools.of.values()})

    # ---- what happens ----------------------------------------------------------------------------------------------

    def answered(self, pool: str, source: str, seconds: float) -> None:
        """A query has been answered, so long after its arrival."""
        lists = self._answered[source]
        durations = lists.get(pool)
        if durations is None:  # its pool has gone
            durations = lists[OTHER]
        durations.append(seconds)

    def arrived(self, endpoint: str, seconds: float) -> bool:
        """A task has brought an answer, so long after it was sent. -> whether that could be noted: its endpoint may
        have gone.
        """
        durations = self._ended.get(endpoint)
        if durations is None:
            return False
        durations.append(seconds)
        return True

    def settle(self, extra_work: float, differing: float) -> None:
        """About once a second: count what has been collected, as far as it is time. What both budgets have spent since
        the start. To count together pays for what are few; many would keep queries waiting meanwhile.
        """
        now, before = self._clock(), self._settled_at
        self._settled_at = now
        if slot_number(now) != slot_number(before):
            self._count_answered(before, 1)  # they belong to the slot that is over
        else:
            self._count_answered(now, MANY)
        self.recent.spent(now, extra_work, differing)
        self._count_ended(now, 1 if now >= self._ended_due else MANY)

    def count(self) -> None:
        """Now, for somebody who looks."""
        now = self._clock()
        self._count_answered(now, 1)
        self._count_ended(now, 1)

    def _count_answered(self, now: float, least: int) -> None:
        for source, lists in self._answered.items():
            for name, seconds in lists.items():
                if len(seconds) >= least:
                    pool, number, durations = self.pool(name), len(seconds), CountedDurations(seconds)
                    seconds.clear()
                    self.query_seconds.begin(pool, source).add(durations)
                    if source == _DEPLOYED:
                        self.unprotected_seconds.begin(pool).add(durations)
                    self.recent.given(now, pool, source, durations.counts(), source == _DEPLOYED)
                    self.queries.add(pool, source, "answered", by=number)

    def _count_ended(self, now: float, least: int) -> None:
        """By endpoint, so there are few of each."""
        for endpoint, seconds in self._ended.items():
            if len(seconds) >= least:
                pool, kind = self._rows[endpoint]
                label = self.pool(pool)
                self.endpoint_seconds.begin(self._endpoint(endpoint), label).add(CountedDurations(seconds))
                self.tasks.add(label, kind, "arrived", by=len(seconds))
                if kind == _OF_DEPLOYED:
                    self.work.add(label, kind, by=len(seconds))
                last = seconds[-LATEST:]
                if len(last) < LATEST:
                    last = [*self._latest.get(endpoint, _NEVER)[1], *last][-LATEST:]
                self._latest[endpoint] = (now, last)
                seconds.clear()
        if least == 1:
            self._ended_due = now + ENDED_EVERY_S

    def slowness(self) -> dict[str, float]:
        """Endpoint -> the median of what its last tasks took, to that of its peers; of those that answered of late."""
        now = self._clock()
        self._count_ended(now, 1)
        medians: dict[tuple[str, str], dict[str, float]] = {}
        for endpoint, (at, seconds) in self._latest.items():
            if len(seconds) >= FEW and now - at <= LATEST_S:
                medians.setdefault(self._rows[endpoint], {})[endpoint] = median(seconds)
        return {
            endpoint: own / usual
            for peers in medians.values()
            if (usual := median(peers.values())) > 0.0
            for endpoint, own in peers.items()
        }

    def unprotected(self, pool: str, at: float, seconds: float, request_id: str = "", trace_id: str = "") -> None:
        """A query answered then by something else would have waited so long."""
        label = self.pool(pool)
        self.unprotected_seconds.begin(label).add(CountedDurations([seconds]))
        self.unprotected_seconds.note(seconds, request_id, trace_id, label)
        self.recent.unprotected(at, label, seconds)

    def agreed(self, pool: str, source: str, finding: str) -> None:
        """What was given in place of a query's own answer was compared with that."""
        label = self.pool(pool)
        self.agreement.add(label, source, finding)
        self.recent.found(self._clock(), label, finding)

    def exemplar(self, pool: str, source: str, seconds: float, request_id: str, trace_id: str = "") -> None:
        self.query_seconds.note(seconds, request_id, trace_id, self.pool(pool), source)

    # ---- what Prometheus gets --------------------------------------------------------------------------------------

    def exposition(self, openmetrics: bool = False) -> bytes:
        """OpenMetrics has the same, with exemplars."""
        return exposed(self.families(), openmetrics)

    def families(self) -> Iterable[ExposedFamily]:
        self.count()
        return self._collected()

    def _collected(self) -> Iterable[ExposedFamily]:
        yield _build_info()
        yield self.queries.family()
        yield self.query_seconds.family()
        yield self.unprotected_seconds.family()
        yield self.agreement.family()
        yield self.tasks.family()
        yield self.endpoint_seconds.family()
        yield self.work.family()
        yield self.comparisons.family()
        yield self.rebuilt.family()
        yield self.differing.family()
        yield self.decode_failures.family()
        yield self.finish_failures.family()
        yield self.passed_through.family()
        yield self.unrepeatable.family()
        if self.peers_alive is not None:
            yield self.forwarded.family()
            text = "Other proxies in front of this fleet that are alive, as each process sees it, added up."
            yield _gauge("ts_parity_peers_alive", text, self.peers_alive())
        if self.spans is not None:
            spans = _family(
                "counter",
                "ts_parity_spans",
                "Spans (see tracing): failed if the collector has not taken them, dropped if there were too many.",
            )
            for outcome, number in self.spans().items():
                spans.add(written_labels(("outcome",), (outcome,)), number)
            yield spans
        now, most, refused, closed = self._clients()
        yield _gauge("ts_parity_client_connections", "Clients that are connected.", now)
        yield _gauge("ts_parity_client_connections_limit", "As many as the limit of open files leaves for them.", most)
        turned_away = _family(
            "counter", "ts_parity_clients_turned_away", "Clients over that limit: refused, or closed while idle."
        )
        turned_away.add('{how="refused"}', refused)
        turned_away.add('{how="closed"}', closed)
        yield turned_away
        text = "How late the proxy was with what was due: it lacks a processor, or compares long bodies."
        yield _gauge("ts_parity_event_loop_lag_seconds", text, self.lag_s)
        yield from self._gauges()
        yield from self.config()
        for metric in self._process.collect():
            family = ExposedFamily(metric.name, metric.type, metric.documentation)
            for sample in metric.samples:
                family.add("", sample.value)
            yield family

    def _gauges(self) -> Iterable[ExposedFamily]:
        snapshot, policy = self._snapshot(), self.policy
        yield _gauge("ts_parity_in_flight", "Tasks that are out.", snapshot["in_flight"])
        yield _gauge("ts_parity_open_queries", "Queries without an answer yet.", snapshot["open_queries"])
        spent = _family(
            "counter",
            "ts_parity_extra_work",
            "Extra work for late queries, in deployed inferences; divided by queries, extra_work limits it.",
        )
        spent.add("", snapshot["work_spent"])
        yield spent
        yield _gauge("ts_parity_extra_work_limit_ratio", "The setting extra_work: per query.", policy.extra_work)
        yield _gauge("ts_parity_differing_limit_ratio", "The setting differing: of all answers.", policy.differing)
        yield _gauge("ts_parity_waiting_limit", "The setting max_waiting: queries of a model.", policy.max_waiting)
        tokens = _family("gauge", "ts_parity_budget_tokens", "What is left to spend at once: 0 or less means none.")
        tokens.add('{budget="extra_work"}', snapshot["work_tokens"])
        tokens.add('{budget="retries"}', snapshot["retry_tokens"])
        yield tokens
        waiting = _family("gauge", "ts_parity_waiting", "Queries waiting for a place; see max_waiting.")
        release = _family("gauge", "ts_parity_reconstruct_after_seconds", "In force now; see reconstruct_after_s.")
        launch = _family("gauge", "ts_parity_launch_after_seconds", "In force now, for backups that are launched late.")
        in_use = _family("gauge", "ts_parity_protection_in_use", "1: rebuilt answers may be given; 0: on trial or out.")
        protected = _family("gauge", "ts_parity_protected", "1: the model has a protection.")
        for name, pool in snapshot["pools"].items():
            if self.pool(name) == OTHER:
                continue
            label = written_labels(("pool",), (name,))
            if pool["trust"] is not None:
                in_use.add(label, float(pool["trust"]["state"] == Standing.IN_USE.value))
            protected.add(label, float(pool["trust"] is not None))
            waiting.add(label, pool["waiting"])
            release.add(label, pool["reconstruct_after_s"])
            if pool["launch"] == "late":
                launch.add(label, pool["launch_after_s"])
        yield from (waiting, release, launch, in_use, protected)
        yield from self._of_endpoints(snapshot)

    def _of_endpoints(self, snapshot: Mapping[str, Any]) -> Iterable[ExposedFamily]:
        """Of the present fleet; the series of removed endpoints disappear."""
        out = _family(
            "gauge",
            "ts_parity_endpoint_out",
            "1: ejected, for the reason in /status; 0: in. With several processes, in how many of them it is ejected.",
        )
        state = _family(
            "gauge",
            "ts_parity_endpoint_state",
            "1 for the state that it is in, 0 for the others. With several processes, in how many of them.",
        )
        busy = _family("gauge", "ts_parity_endpoint_in_flight", "Tasks in flight at an endpoint.")
        places = _family("gauge", "ts_parity_endpoint_places", "Tasks that it may have in flight.")
        speed = _family(
            "gauge",
            "ts_parity_endpoint_slowness_ratio",
            "The median of what its last tasks took, to that of its peers.",
        )
        failures = _family("counter", "ts_parity_endpoint_failures", "Tasks that it failed; three in a row eject it.")
        ejections = _family("counter", "ts_parity_endpoint_ejections", "How often it was ejected.")
        slowness = self.slowness()
        of_pools = {pool: dict.fromkeys(CONDITIONS[:-1], 0) for pool in self._pools.of.values()}
        labels: list[str] = []
        states: list[str] = []
        shown: list[tuple[str, Mapping[str, Any]]] = []
        slow: dict[str, float] = {}
        for name, endpoint in snapshot["endpoints"].items():
            label, pool = self._endpoint(name), endpoint["pool"]
            now = endpoint_condition(endpoint, snapshot["pools"].get(pool, {})).state
            if self._rows.get(name, ("", ""))[1] == _OF_DEPLOYED:
                of_pools[self.pool(pool)][now] += 1
            if label == OTHER:
                continue
            written, of_states = _endpoint_labels(label, pool)
            labels.append(written)
            states += of_states
            shown.append((now, endpoint))
            if name in slowness:
                slow[written] = round(slowness[name], 4)
        out.add_all(labels, [endpoint["health"] != "in" for _, endpoint in shown])
        state.add_all(states, [each == now for now, _ in shown for each in CONDITIONS[:-1]])
        busy.add_all(labels, [endpoint["in_flight"] for _, endpoint in shown])
        places.add_all(labels, [endpoint["places"] for _, endpoint in shown])
        speed.add_all(slow, slow.values())
        failures.add_all(labels, [endpoint["failures"] for _, endpoint in shown])
        ejections.add_all(labels, [endpoint["ejections"] for _, endpoint in shown])
        yield from (out, state, busy, places, speed, failures, ejections)
        endpoints = _family("gauge", "ts_parity_endpoints", "Of a deployed model, by state; 0 while none is there.")
        for pool, counts in of_pools.items():
            for each, number in counts.items():
                endpoints.add(written_labels(("pool", "state"), (pool, each)), number)
        yield endpoints


@lru_cache(MOST_ENDPOINTS)
def _endpoint_labels(endpoint: str, pool: str) -> tuple[str, tuple[str, ...]]:
    """-> as written; and with each state that it may be in."""
    names, values = ("endpoint", "pool"), (endpoint, pool)
    of_states = tuple(written_labels((*names, "state"), (*values, each)) for each in CONDITIONS[:-1])
    return written_labels(names, values), of_states


def _family(kind: str, name: str, text: str) -> ExposedFamily:
    return ExposedFamily(name, kind, text)


def _gauge(name: str, text: str, value: float) -> ExposedFamily:
    family = _family("gauge", name, text)
    family.add("", value)
    return family


def _build_info() -> ExposedFamily:
    info = _family("gauge", "ts_parity_build_info", "1, with what runs.")
    values = (__version__, platform.python_version(), "yes" if COMPILED else "no")
    info.add(written_labels(("version", "python", "compiled"), values), 1.0)
    return info
