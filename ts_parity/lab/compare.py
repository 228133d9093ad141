"""Several policies under one scenario: rows, a table, a plot. What `ts-parity simulate` and the benchmarks share.

Knows scenarios and rivals. Knows nothing of command lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ts_parity.errors import ConfigError
from ts_parity.lab.agreement import AgreementCurve, measured_curve
from ts_parity.lab.history import TaskEnd, read_history
from ts_parity.lab.lines import shown
from ts_parity.lab.measure import PERCENTILES, doubtful, measured
from ts_parity.lab.report import needed
from ts_parity.lab.rivals import SERVICE_S, Arrangement, arrange
from ts_parity.lab.scenario import Arrivals, Outage, Scenario, ServiceTimes, Spells
from ts_parity.lab.simulate import Result, simulate
from ts_parity.lab.spells import ObservedFleet, seen_in
from ts_parity.tables import columns, markdown

LONGEST_ROUND = 3.0
"""At most this many times the requested queries are simulated to reach the end of a log."""
COMFORTABLE = 0.7
"""Load up to which a queue stays short; the advice to an overloaded fleet is to grow to it."""
_MOST_LOST = 0.999
"""Of a fleet's time in spells: one that does nothing at all has no load."""


@dataclass(frozen=True)
class World:
    """What happens to a fleet, whatever its policy. Times are in mean service times; `unit` is one of them in seconds,
    and the factor of printed latencies.
    """

    load: float = 0.6
    workers: int = 12
    queries: int = 100_000
    service: ServiceTimes = field(default_factory=ServiceTimes)
    spells: Spells | None = None
    outages: tuple[Outage, ...] = ()
    net_share: float = 0.0
    net_mean: float = 0.0
    arrival_cv: float = 1.0
    burst: float = 1.0
    trace: tuple[float, ...] = ()
    proxies: int = 1
    sharing: str = "blind"
    hop: float = 0.0
    exchange: float = 1.0
    """These three as in `Scenario`."""
    places: int = 1
    """How many tasks a worker runs at once."""
    worker_batch: int = 1
    sizes: tuple[tuple[float, float], ...] = ()
    own_cv: float = 0.0
    speeds: tuple[float, ...] = ()
    """These four as in `Scenario`."""
    slower_from_half: float = 1.0
    """Factor by which every machine slows down in the middle of the run, as with a new version of the model."""
    agreement: AgreementCurve | None = None
    """How sure protections are of their answers. None: as measured on Fashion-MNIST."""
    unit: float = 1.0
    seen: ObservedFleet | None = None
    """Whose spells are replayed, where and when they were."""

    @property
    def busy(self) -> float:
        """The share of the time that the workers would have to be busy, on average. From 1 on queues grow for ever."""
        lost = 0.0 if self.spells is None else self.spells.share * (1.0 - 1.0 / self.spells.factor)
        lost += 0.0 if self.seen is None else self.seen.lost
        return self.load * self._size / self._speed / (1.0 - min(lost, _MOST_LOST))

    @property
    def _size(self) -> float:
        """Of a body, on average."""
        return sum(size * share for size, share in self.sizes) if self.sizes else 1.0

    @property
    def _speed(self) -> float:
        """Of a machine, on average: inferences per unit of time."""
        return sum(1.0 / speed for speed in self.speeds) / len(self.speeds) if self.speeds else 1.0

    def with_nothing_slow(self) -> World:
        """The same fleet, queries and load without spells, outages, late replies or a change in the middle."""
        return replace(
            self, spells=None, outages=(), net_share=0.0, net_mean=0.0, seen=None, proxies=1, slower_from_half=1.0
        )

    @property
    def rate(self) -> float:
        """Queries per unit of time."""
        return self.load * self.workers * self.places

    @property
    def asked(self) -> int:
        """Queries to simulate: those of the trace; else `queries`, in whole rounds through what was seen, for
        the end of a log is worth as much as its beginning. A log that is far longer than asked for is not ended.
        """
        if self.trace or self.seen is None:
            return len(self.trace) or self.queries
        a_round = self.rate * self.seen.duration_s / self.unit
        rounds = max(1, round(self.queries / a_round))
        return round(rounds * a_round) if a_round <= LONGEST_ROUND * self.queries else self.queries

    def arranged(self, name: str, **shape: Any) -> Arrangement:
        """A policy for it, by name. A service time is known in seconds where there is a log of them."""
        service_s = self.unit if self.service.samples else SERVICE_S
        return arrange(name, self.workers, places=self.places, service_s=service_s, **shape)

    def scenario(self, arrangement: Arrangement, seed: int = 0) -> Scenario:
        """Load 1 is what `workers` machines can do, however many the arrangement has. With each seed but 0 a log's
        spells begin elsewhere in it, so that the seeds differ in more than in the usual service times.
        """
        rate = self.rate
        queries = self.asked
        outages = [*self.outages]
        if self.seen is not None:
            until_s = self.unit * (self.trace[-1] if self.trace else queries / rate)
            machines = [instance.name for instance in arrangement.fleet.instances]
            outages += (in_units(outage, self.unit) for outage in self.seen.outages(machines, until_s, seed))
        code, agreement = arrangement.code, self.agreement
        if agreement is None and code is not None:
            agreement = measured_curve(code.name, code.k)
        if self.slower_from_half != 1.0:
            names = [instance.name for instance in arrangement.fleet.instances]
            half = queries / rate / 2.0
            outages += [Outage(name, half, kind="slow", factor=self.slower_from_half) for name in names]
        return Scenario(
            arrangement.fleet,
            arrangement.policy,
            Arrivals(rate, self.arrival_cv, self.burst, trace=self.trace),
            queries,
            service=self.service,
            spells=self.spells,
            outages=tuple(outages),
            net_share=self.net_share,
            net_mean=self.net_mean,
            costs=arrangement.costs,
            proxies=self.proxies,
            sharing=self.sharing,
            hop=self.hop,
            exchange=self.exchange,
            places=self.places,
            worker_batch=self.worker_batch,
            clock=0.0 if self.seen is None else self.seen.clock_s / self.unit,
            sizes=self.sizes,
            own_cv=self.own_cv,
            speeds=self.speeds,
            agreement=agreement,
        )


def overloaded(world: World) -> str:
    """The message for an overloaded fleet: no policy makes up for missing machines."""
    needed_now, at_ease = world.busy * world.workers, world.busy * world.workers / COMFORTABLE
    return (
        f"This fleet is overloaded: {world.workers} machines would have to be busy {world.busy:.0%} of the time, so "
        f"queries would wait longer and longer, whatever the policy. It needs at least {math.floor(needed_now) + 1} "
        f"machines, and {math.ceil(at_ease)} for a load of {COMFORTABLE:g}."
    )


def row_of(
    world: World,
    name: str,
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
    **arrangement: Any,
) -> dict[str, Any]:
    """One policy in this world: the object that is kept and printed. `doubtful` names the percentiles that too few
    answers stand behind, simulated or in the log.
    """
    made = world.arranged(name, **arrangement)
    scenario = world.scenario(made)
    told = measured(lambda seed: world.scenario(made, seed), seeds, progress)
    told["samples"] = min(told["samples"], len(world.service.samples) or told["samples"])
    return {
        "policy": name,
        "code": made.code.name if made.code is not None else None,
        "k": made.code.k if made.code is not None else None,
        "cost": made.costs.group if made.code is not None else None,
        "saves": made.costs.batch_saves,
        "workers": made.workers,
        "load": world.load,
        "cv": None if world.service.samples else world.service.cv,
        "seeds": len(seeds),
        "queries": scenario.queries,
        **_in_unit(told, world.unit),
        "doubtful": doubtful(told["samples"]),
    }


def _in_unit(row: Mapping[str, Any], unit: float) -> dict[str, Any]:
    return {
        name: round(value * unit, 6) if name.startswith("p") and value is not None else value
        for name, value in row.items()
    }


def latencies_of(world: World, name: str, seed: int, **arrangement: Any) -> Result:
    return simulate(world.scenario(world.arranged(name, **arrangement), seed), seed)


DOUBTFUL = "~"
NAMED = {"p50": "p50", "p99": "p99", "p999": "p99.9", "p9999": "p99.99"}
_COLUMNS = (
    ("policy", "policy", "{}"), ("code", "code", "{}"), ("k", "k", "{}"), ("machines", "workers", "{}"),
    ("load", "load", "{:.2f}"), ("p50", "p50", "{:.2f}"), ("p99", "p99", "{:.2f}"), ("p99.9", "p999", "{:.2f}"),
    ("(low", "p999_low", "{:.2f}"), ("high)", "p999_high", "{:.2f}"), ("p99.99", "p9999", "{:.2f}"),
    ("work", "work", "{:.3f}"), ("rebuilt", "reconstructed", "{:.2%}"), ("differing", "differing", "{:.3%}"),
    ("(drawn)", "differing_drawn", "{:.3%}"), ("unanswered", "unanswered", "{:.0f}"),
)  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[head for head, _, _ in _COLUMNS]]
    cells += [[_cell(row, key, form) for _, key, form in _COLUMNS] for row in rows]
    return "\n".join(columns(cells))


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    if row[key] is None:
        return "-"
    return DOUBTFUL * (key in row.get("doubtful", ())) + form.format(row[key])


def doubts(rows: Sequence[Mapping[str, Any]], shown: Sequence[str] = tuple(PERCENTILES)) -> str:
    """What DOUBTFUL means, if any of what is shown is that."""
    few = {name for row in rows for name in row.get("doubtful", ()) if name in shown}
    if not few:
        return ""
    least = min(row["samples"] for row in rows)
    told = " and ".join(f"{needed(share):,} for {NAMED[name]}" for name, share in PERCENTILES.items() if name in few)
    return f"{DOUBTFUL}: may be too low, for only {least:,} answers stand behind it, and it takes {told}."


_MARKDOWN_COLUMNS = (
    "policy", "code", "k", "machines", "load", "p50", "p99", "p99.9 (lowest, highest seed)", "p99.99", "work",
    "R", "extra work", "rebuilt", "differing (drawn)", "unanswered",
)  # fmt: skip


def _known(row: Mapping[str, Any], key: str, form: str) -> str:
    """Rows of earlier versions lack some figures."""
    return "-" if row.get(key) is None else form.format(row[key])


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        code = "-" if row["code"] is None else f"`{row['code']}`" + (f" {row['cost']:g}" if row["cost"] != 1 else "")
        if row["code"] == "exact":
            code += f", a group {1 + (1 - row['saves']) * (row['k'] - 1):g}"
        p999 = f"{row['p999']:.2f} ({row['p999_low']:.2f}, {row['p999_high']:.2f})"
        cells.append(
            [
                row["policy"], code, str(row["k"] or "-"), str(row["workers"]), f"{row['load']:g}", f"{row['p50']:.2f}",
                f"{row['p99']:.2f}", p999, f"{row['p9999']:.2f}", f"{row['work']:.3f}", _known(row, "r", "{:.2f}"),
                _known(row, "extra_work", "{:.1%}"), f"{row['reconstructed']:.2%}",
                f"{_known(row, 'differing', '{:.3%}')} ({_known(row, 'differing_drawn', '{:.3%}')})"
                if "differing" in row else "-",
                f"{row.get('unanswered', 0):.0f}",
            ]
        )  # fmt: skip
    return markdown(_MARKDOWN_COLUMNS, cells)


def plot(results: Mapping[str, Sequence[float]], file: Path, title: str) -> None:
    """Share of queries slower than t, on logarithmic axes, one line a policy."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, latencies in results.items():
        ordered = np.sort(np.asarray(latencies))
        slower = 1.0 - np.arange(len(ordered)) / len(ordered)
        axes.plot(ordered, slower, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency t")
    axes.set_ylabel("share of queries slower than t")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def in_units(outage: Outage, unit: float) -> Outage:
    return replace(outage, at=outage.at / unit, lasts=outage.lasts / unit)


def service_from(
    file: Path, model: str | None = None, note: Callable[[str], object] = str
) -> tuple[ServiceTimes, float, ObservedFleet | None]:
    """-> the service times of a latency log in units of their mean, and that mean in seconds; if the log says where and
    when, without the spells, which come third. `note` is called with what was left out. Raise ConfigError.
    """
    history = read_history(file, model)
    if history.cut_line:
        note(f"line {history.cut_line} of {shown(file)}, the last, is cut and was left out; is it still written to?")
    answered = sum(task.answered for task in history.served)
    if (unknown := sum(task.end is TaskEnd.UNKNOWN for task in history.served)) > answered + len(history.times):
        raise ConfigError(
            f"{shown(file)} does not say how long the model takes: of {unknown + answered} of its answers {unknown} "
            "were still waited for when the log ended"
        )
    seen = seen_in(history) if answered else None
    seconds = [*history.times, *(seen.usual if seen is not None else ())]
    mean = sum(seconds) / len(seconds)
    return ServiceTimes(samples=tuple(value / mean for value in seconds)), mean, seen
