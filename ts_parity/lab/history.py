"""What a log shows of a fleet: an access log of the proxy, the lab's records (both JSON lines), or a CSV.

Knows what may stand on a line; an error names the line. Knows nothing of what the figures are for.

Where a protection or a second copy answered, the deployed model did not, and what it took is the very thing to know.
An access log from version 2 on has it: on a line of its own when the task has ended, else as a time it took at least. A
log without it is refused: it shows a fleet without its slow answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ts_parity.errors import ConfigError
from ts_parity.lab.latencies import Numbered, is_table, last_cells, numbered, seconds
from ts_parity.lab.lines import shown
from ts_parity.lab.records import ANSWERED

DEPLOYED, HEDGED, DEFAULT, RECONSTRUCTED = "deployed", "hedged", "default", "reconstructed"
OTHERWISE = (RECONSTRUCTED, HEDGED, DEFAULT)
"""Something else than the query's own task has answered, and the task goes on."""
VERSIONS = (2, 3)
"""Of the access log's lines. Version 3 has one field more, which nobody needs here."""
MILLISECOND = 0.001
_BACK_S = 0.05
"""A process writes lines in the order in which requests ended; farther back than this, its clock was set."""
REMEDY = (
    "record again with this release, whose access log has one more line for each such task, or with a proxy that "
    "protects nothing (--protect off --extra-work 0)"
)


class TaskEnd(Enum):
    ANSWERED = "answered"
    FAILED = "failed"
    """It failed after this time: the instance was gone, or too late."""
    UNKNOWN = "unknown"
    """It took at least this long; the log says no more."""


class ServedTask(NamedTuple):
    """One task of the deployed model. Seconds; `sent_at` counts from the first arrival."""

    endpoint: str
    sent_at: float
    took_s: float
    end: TaskEnd

    @property
    def ends_at(self) -> float:
        return self.sent_at + self.took_s

    @property
    def answered(self) -> bool:
        return self.end is TaskEnd.ANSWERED


@dataclass(frozen=True)
class History:
    """`times`: how long answers took of which nobody says where and when. `arrivals`, ascending, begin at 0."""

    times: tuple[float, ...] = ()
    served: tuple[ServedTask, ...] = ()
    arrivals: tuple[float, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    """By endpoint, where it is known: how many tasks it may have at once."""
    clock_s: float = 0.0
    """The tick of the proxy's clock; 0: exact."""
    cut_line: int = 0
    """The number of the last line, if it was half written and therefore left out."""

    @property
    def duration_s(self) -> float:
        return max([*self.arrivals[-1:], *(task.ends_at for task in self.served)], default=0.0)


def read_history(file: Path, model: str | None = None) -> History:
    """Of one `model` (NAME or NAME/VERSION), where there are several. `-`: standard input.

    Raise ConfigError, with the line, for what is no such log.
    """
    lines = numbered(file, "latencies from")
    first = next(lines, (0, ""))
    every = chain([first], lines) if first[0] else lines
    if is_table(file, first[1]):
        if model is not None:
            raise ConfigError(f"{shown(file)} is a table of times and does not say whose they are: leave --model out")
        history = History(tuple(seconds(value, number, file) for number, value in last_cells(every, file)))
    else:
        history = _LogReader(file, model).read(every)
    if not history.times and not any(task.answered for task in history.served):
        raise ConfigError(f"{shown(file)} holds no latencies of answered queries")
    return history


class _LogClock:
    """One process's lines. Its wall clock may be set back; the files of a rotated log may come in any order."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        """What has been set back so far."""
        self._query = -1
        self._last_at = -math.inf
        self.begun_at, self.ended_at = math.inf, -math.inf
        """The first and the last that was heard of it."""
        self.places: dict[str, int] = {}

    def at(self, said: float, took_s: float, query: int | None) -> float:
        """-> the instant that a line gives, on a clock that never goes back. `query`: its number, if it is its line."""
        ends_at = said + took_s + self.ahead_s
        if query is not None and query > self._query and ends_at < self._last_at - _BACK_S:
            self.ahead_s += self._last_at - ends_at
            ends_at = self._last_at
        if query is not None:
            self._query, self._last_at = query, ends_at
        self.begun_at, self.ended_at = min(self.begun_at, ends_at), max(self.ended_at, ends_at)
        return ends_at - took_s


class _LogReader:
    def __init__(self, file: Path, model: str | None) -> None:
        self._file = file
        self._model = model
        self._number = self._cut = self._read = 0
        self._times: list[float] = []
        self._served: dict[str, list[ServedTask]] = {}
        self._arrivals: dict[str, list[float]] = {}
        self._clocks: dict[str, _LogClock] = {}
        self._out: dict[tuple[str, str], tuple[str, ServedTask]] = {}
        """By query and endpoint: tasks that were still out when their query ended, each with its pool."""
        self._counted = self._whole = 0
        """Queries that took whole milliseconds: an event loop like uvloop's counts these."""
        self._seen: set[str] = set()
        """Lines that name their query: the same file may have been put together twice."""

    def read(self, lines: Numbered) -> History:
        for self._number, line in lines:
            self._line(line)
            self._read += 1
        for (query, _), (owner, task) in self._out.items():
            ended_at = self._clocks[_process(query)].ended_at
            self._served.setdefault(owner, []).append(
                ServedTask(task.endpoint, task.sent_at, max(task.took_s, ended_at - task.sent_at), TaskEnd.UNKNOWN)
            )
        pool = self._chosen()
        served, arrivals = self._served.get(pool, []), sorted(self._arrivals.get(pool, []))
        begins_at = min([*arrivals[:1], *(task.sent_at for task in served)], default=0.0)
        return History(
            tuple(self._times),
            tuple(ServedTask(t.endpoint, t.sent_at - begins_at, t.took_s, t.end) for t in sorted(served, key=_by_time)),
            tuple(at - begins_at for at in arrivals),
            self._places(),
            MILLISECOND if self._whole > 0.99 * self._counted > 0 else 0.0,
            self._cut,
        )

    def _places(self) -> dict[str, int]:
        """Processes side by side have a share each; one after the other, each has all."""
        found: dict[str, int] = {}
        for one in self._clocks.values():
            beside = [other for other in self._clocks.values() if other.begun_at <= one.ended_at <= other.ended_at]
            for endpoint in one.places:
                found[endpoint] = max(found.get(endpoint, 0), sum(other.places.get(endpoint, 0) for other in beside))
        return found

    def _chosen(self) -> str:
        pools = sorted(self._served, key=lambda name: -len(self._served[name]))
        fitting = [name for name in pools if self._model in (None, name, name.rpartition("/")[0])]
        if self._model is not None and not fitting:
            raise ConfigError(
                f"{shown(self._file)} holds no queries of {self._model}; it has {', '.join(pools) or 'none'}"
            )
        if len(fitting) > 1:
            counts = ", ".join(f"{name} ({len(self._served[name])} tasks)" for name in fitting)
            raise ConfigError(f"{shown(self._file)} is of several models or versions; say which with --model: {counts}")
        return fitting[0] if fitting else ""

    def _line(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if self._read and line.startswith("{") and not line.endswith(("\n", "\r")):
                self._cut = self._number  # the last line; whoever writes it has not ended it yet
                return
            raise self._wrong(f"is not JSON, or is cut: {error}") from None
        if not isinstance(entry, dict):
            entry = {}
        if entry.get("version") not in (None, *VERSIONS):
            read = " and ".join(map(str, VERSIONS))
            raise self._wrong(f"is of version {entry['version']!r} of the access log, and this release reads {read}")
        try:
            if "task" in entry:
                self._task(entry)
            elif "service_s" in entry:
                self._query(entry)
            elif "outcome" in entry and "latency_s" in entry:
                self._record(entry)
            else:
                raise self._wrong("is neither a line of an access log nor a query record")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise self._wrong(f"is not as an access log has it: {error!r}") from None

    def _record(self, entry: dict[str, Any]) -> None:
        if entry["outcome"] in OTHERWISE:
            raise self._blind(entry["outcome"], "query records do not say how long the model itself took")
        if entry["outcome"] in ANSWERED and entry["latency_s"] is not None:
            self._times.append(self._positive(entry["latency_s"]))

    def _query(self, entry: dict[str, Any]) -> None:
        outcome, version = entry.get("outcome"), entry.get("version")
        if version is None and outcome in OTHERWISE:
            raise self._blind(outcome, "this log, of an earlier release, does not say how long the model itself took")
        service_s = None if entry["service_s"] is None else self._took(entry)
        if entry.get("at") is None or entry.get("pool") is None or entry.get("latency_s") is None:
            if service_s is not None:  # somebody's own lines
                self._times.append(service_s)
            return
        name = str(entry.get("query") or "")
        if name and name in self._seen:
            return
        self._seen.add(name)
        pool, latency_s = str(entry["pool"]), self._duration(entry["latency_s"])
        self._counted += 1
        self._whole += abs(1000 * latency_s - round(1000 * latency_s)) < 1e-3
        clock = self._clocks.setdefault(_process(name), _LogClock())
        number = int(name.rpartition("-")[2]) if name else None
        arrived_at = clock.at(_instant(entry["at"]), latency_s, number)
        self._arrivals.setdefault(pool, []).append(arrived_at)
        served = self._served.setdefault(pool, [])
        if service_s is not None and entry["status"] < 400:  # how fast errors are says nothing
            sent_at = arrived_at + self._duration(entry["waited_s"])
            served.append(ServedTask(str(entry["endpoint"]), sent_at, service_s, TaskEnd.ANSWERED))
            if entry.get("places"):
                clock.places[entry["endpoint"]] = int(entry["places"])
        for other in entry.get("others") or ():
            end = TaskEnd.FAILED if other["failed"] else TaskEnd.UNKNOWN
            sent_at, took_s = arrived_at + self._duration(other["waited_s"]), self._duration(other["at_least_s"])
            task = ServedTask(other["endpoint"], sent_at, took_s, end)
            if end is TaskEnd.FAILED:
                served.append(task)
            elif f"{name} {task.endpoint}" not in self._seen:
                self._out[name, task.endpoint] = (pool, task)
        if version is None and outcome in ("left", "error") and entry.get("cause") in (None, "deadline"):
            where = entry.get("endpoint") or ""
            if where and "," not in where:  # its task went on, and all there is to know is that it was out so long
                served.append(ServedTask(where, arrived_at, latency_s, TaskEnd.UNKNOWN))

    def _task(self, entry: dict[str, Any]) -> None:
        """A task that ended after its query."""
        name, endpoint = entry["query"], entry["endpoint"]
        if f"{name} {endpoint}" in self._seen:
            return
        self._seen.add(f"{name} {endpoint}")
        self._out.pop((name, endpoint), None)
        arrived = entry["service_s"] is not None
        took_s = self._took(entry) if arrived else self._duration(entry["at_least_s"])
        sent_at = self._clocks.setdefault(_process(name), _LogClock()).at(_instant(entry["at"]), took_s, None)
        task = ServedTask(endpoint, sent_at, took_s, TaskEnd.ANSWERED if arrived else TaskEnd.FAILED)
        self._served.setdefault(str(entry["pool"]), []).append(task)

    def _took(self, entry: Mapping[str, Any]) -> float:
        """An event loop that counts milliseconds has answers that came within one."""
        value = entry["service_s"]
        return MILLISECOND / 2 if value == 0 and entry.get("version") in VERSIONS else self._positive(value)

    def _duration(self, value: Any) -> float:
        """None is no time at all."""
        return self._positive(value) if value else 0.0

    def _positive(self, value: Any) -> float:
        return seconds(value, self._number, self._file)

    def _wrong(self, why: str) -> ConfigError:
        return ConfigError(f"line {self._number} of {shown(self._file)} {why}")

    def _blind(self, outcome: str, why: str) -> ConfigError:
        return self._wrong(f"was answered otherwise ({outcome}), and {why}: the slow answers are missing. {REMEDY}")


def _by_time(task: ServedTask) -> float:
    return task.sent_at


def _process(query: str) -> str:
    """Which process has written the line of this query."""
    return query.rpartition("-")[0]


def _instant(text: str) -> float:
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp()
