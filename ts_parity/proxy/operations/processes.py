"""Several proxies on one port, and their parent, the supervisor: it starts, restarts, monitors and drains them.

Each child is a whole proxy with its own listening socket on the shared port (SO_REUSEPORT), so the kernel distributes
new connections by a hash of their addresses. If all accepted from one socket, any idle process could take connections;
since clients keep them open, one process could end up with all the work. The price: when a process is killed, the
connections that it had not accepted yet are reset.

Knows processes, signals and commands; `child` is what it starts, `merge` makes one report of theirs. The supervisor
handles no query, so no query waits for it. If it is killed, its children notice (see `child`), drain and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_parity import __version__
from ts_parity.config import ConfigSource, Configuration, Settings
from ts_parity.errors import ConfigError, StartError
from ts_parity.proxy.fleet.peers import new_member
from ts_parity.proxy.http.certificates import client_side, instance_side
from ts_parity.proxy.http.server import cannot_listen
from ts_parity.proxy.operations.admin import AdminServer
from ts_parity.proxy.operations.child import (
    STOP_RECORDING,
    commit_message,
    initial_message,
    prepare_message,
    read_pair,
    receive,
    record_message,
    send,
)
from ts_parity.proxy.operations.lifecycle import Lifecycle, url_of
from ts_parity.proxy.operations.merge import (
    Json,
    MetricFamilies,
    exposition,
    families_json,
    gauge,
    merge_health,
    merge_metrics,
    merge_status,
    outlasting_metrics,
    outlasting_status,
    read_metrics,
    still_told,
    told_no_more,
)
from ts_parity.proxy.operations.overview import merge_recent, with_overview
from ts_parity.proxy.operations.reloading import NoAnswer, Reloader
from ts_parity.proxy.serving.recording import UNDER_WAY, NotRecorded, Recording, Wanted

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a process that has ended is restarted; back to the first once one has run for the longest of these."""
# What a killed process counted since its last report is lost, so all report this often.
_REPORT_EVERY_S = 1.0
_REPORT_WAIT_S = 1.0
_SILENT_S = 5.0
_REQUESTS = 4
"""To an instance, one after another, until what it hosts is known."""
# A process gets this long beyond drain_s, or after a cut, to end; then it is killed.
_GRACE_S = 2.0


class Supervisor(Lifecycle):
    """Runs like one Proxy; its status, health and metrics cover all processes."""

    def __init__(
        self,
        settings: Settings,
        pauses_s: Sequence[float] = PAUSES_S,
        source: ConfigSource | None = None,
        found: Configuration | None = None,
    ) -> None:
        """`source`: where the settings are read again, and `found`, what it said."""
        super().__init__()
        self.settings = settings
        self.url = self.admin_url = ""
        self._pauses_s = pauses_s
        self.reloader: Reloader = Reloader(settings, self.adopt, source, found)
        self._admin = AdminServer(
            self.status,
            self.health,
            self.drain,
            self.exposition,
            self.record,
            self.reload_configuration,
            self.reloader.configuration,
            self.refresh,
        )
        self._slots = [ProcessSlot(process) for process in range(settings.processes)]
        self._reserved: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._restarters: list[asyncio.Task[None]] = []
        self._started_at = asyncio.get_running_loop().time()
        self._member = new_member()
        self._recording: Recording | None = None

    async def start(self) -> None:
        """Start all; all listen. Raise StartError if one does not, ConfigError for settings that none could use."""
        settings = self.settings
        settings.read_default_answer()
        client_side(settings)
        instance_side(settings)
        self._reserved, port = await reserve(settings.host, settings.port)
        self.settings = replace(settings, port=port)
        admin_port = await self._admin.start(settings)
        self.url = url_of(settings.host, port, bool(settings.tls_certificate))
        self.admin_url = url_of(settings.admin_host, admin_port)
        for slot in self._slots:
            await self._start_child(slot)
        await asyncio.gather(*(slot.child.listening for slot in self._slots if slot.child is not None))
        loop = asyncio.get_running_loop()
        self._restarters = [loop.create_task(self._keep_running(slot)) for slot in self._slots]
        self._tasks = [*self._restarters, loop.create_task(self._keep_reporting())]
        self._started.set()

    def refresh_files(self) -> None:
        self._send_all(b"refresh")

    async def adopt(self, settings: Settings) -> tuple[str, ...]:
        """Have all processes run these settings, or none. -> what else has changed with them. Raise ConfigError or
        NoAnswer; then none does.
        """
        settings = replace(settings, port=self.settings.port)
        settings.read_default_answer()
        instance_side(settings)
        children = {slot.process: slot.child for slot in self._slots if slot.child is not None}
        said = await asyncio.gather(*(child.prepare(settings) for child in children.values()))
        for process, problem in zip(children, said, strict=True):
            if problem is None:
                raise NoAnswer(f"process {process} (pid {children[process].pid}) gives no answer, so none reloads")
            if problem:
                raise ConfigError(problem)
        # From here on it is so: a process that ends now is started again with these settings.
        self.settings = settings
        self._admin.token = settings.admin_token
        for slot in self._slots:
            if slot.child is not None and slot.child is not children.get(slot.process):
                slot.child.change(settings)
        patience_s = _SILENT_S + _REQUESTS * settings.describe_timeout_s
        done = await asyncio.gather(*(child.commit(patience_s) for child in children.values()))
        besides = dict.fromkeys(line for lines in done for line in lines or ())
        for process, lines in zip(children, done, strict=True):
            if lines is None:
                besides[f"process {process} (pid {children[process].pid}) has not said yet that it runs this"] = None
        return tuple(besides)

    def reopen(self) -> None:
        self._send_all(b"reopen")

    def drain(self) -> None:
        """Drain every child."""
        super().drain()
        self._send_all(b"drain")

    def cut(self) -> None:
        super().cut()
        self._send_all(b"cut")

    async def close(self) -> None:
        """Cut the processes that still run, and kill those that do not end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._recording is not None:
            self._recording.close("the proxy has ended")
        await self.end_reloads()
        children = [slot.child for slot in self._slots if slot.child is not None]
        await asyncio.gather(*(child.close() for child in children))
        await self._admin.close()
        for reserved in self._reserved:
            reserved.close()

    async def refresh(self) -> None:
        """Request a report from all; if one is slow, its last report stays."""
        await asyncio.gather(*(slot.child.request_report() for slot in self._slots if slot.child is not None))

    def status(self) -> Json:
        merged = merge_status([part for slot in self._slots for part in slot.status_parts()])
        own: Json = {
            "version": __version__,
            "state": "draining" if self.draining else "serving",
            "uptime_s": round(asyncio.get_running_loop().time() - self._started_at, 3),
            "requests_in_flight": 0,
            "held": {},
            "processes": [slot.row() for slot in self._slots],
            "configuration": self.reloader.status(),
            "problems": [],
            "pools": {},
            "instances": [],
        }
        problems = [problem for slot in self._slots if (problem := slot.problem())] + self.reloader.problems()
        ours = {key: own[key] for key in ("state", "uptime_s", "processes", "configuration")}
        status = {**own, **merged, **ours, "problems": [*problems, *merged.get("problems", [])]}
        recent = merge_recent([part for slot in self._slots for part in slot.recent_parts()])
        return with_overview(status, recent, time.time())

    def health(self) -> Json:
        if self.draining:
            return {"status": "draining", "reason": "this proxy is being stopped"}
        return merge_health([slot.child.health() for slot in self._slots if slot.child is not None])

    def exposition(self, openmetrics: bool = False) -> bytes:
        listening = sum(slot.child is not None and slot.child.listens for slot in self._slots)
        own = gauge("ts_parity_processes", "Processes that accept requests; see the setting of this name.", listening)
        # Always in this order: a rounded sum in another order could be slightly lower, and counters must not decrease.
        config = read_metrics(families_json(self.reloader.families()))
        told = [slot.read_metrics() for slot in self._slots]
        for slot in self._slots:
            slot.left_metrics = still_told(slot.left_metrics, told)
        each = (merge_metrics([slot.left_metrics, now]) for slot, now in zip(self._slots, told, strict=True))
        return exposition(merge_metrics([own, config, *each]), openmetrics)

    def record(self, wanted: Wanted) -> Recording:
        """All processes sample pairs until the recording is closed. Raise NotRecorded as one process does."""
        if self._recording is not None:
            raise NotRecorded(UNDER_WAY)
        wanted.check(self.status()["pools"])
        self._recording = Recording(wanted, self._stop_recording)
        for slot in self._slots:
            if slot.child is not None:
                slot.child.record(self._recording)
        return self._recording

    def _stop_recording(self) -> None:
        self._recording = None
        self._send_all(STOP_RECORDING)

    def _send_all(self, command: bytes) -> None:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.send(command)

    async def _start_child(self, slot: ProcessSlot) -> None:
        settings = self.settings
        slot.child = await ChildProcess.start(settings, slot.process, self._member)
        if settings is not self.settings:  # they were changed meanwhile
            slot.child.change(self.settings)
        if self.draining:
            slot.child.send(b"cut" if self._cut_asked.is_set() else b"drain")
        if self._recording is not None:
            slot.child.record(self._recording)

    async def _keep_running(self, slot: ProcessSlot) -> None:
        """Restart the slot's process whenever it ends, until draining."""
        falls = 0
        while True:
            lived_s = 0.0
            if slot.child is not None:
                ended, lived_s = await slot.child.ended(), slot.child.age_s
                # A process that never listened, stopped during its start say, has cut no requests, however it ended.
                slot.code = ended if slot.child.listens else 0
                await slot.record_exit()
            if self.draining:
                return
            if lived_s >= max(self._pauses_s):
                falls = 0
            pause_s = self._pauses_s[min(falls, len(self._pauses_s) - 1)]
            falls += 1
            slot.last_problem += f"; it is started again {pause_s:g} s later"
            log.warning("%s", slot.last_problem)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drain_asked.wait(), pause_s)
                slot.code = 0  # it has nothing to finish
                return
            slot.restarts += 1
            try:
                await self._start_child(slot)
            except StartError as error:
                slot.last_problem = str(error)

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            await self.refresh()

    async def _drained(self) -> int:
        log.info("draining %d processes", len(self._slots))
        self._tasks.append(asyncio.get_running_loop().create_task(self._kill_stuck()))
        await asyncio.gather(*self._restarters)
        return 1 if any(slot.code for slot in self._slots) else 0

    async def _kill_stuck(self) -> None:
        """Kill the children that should have ended by now, in time or after a cut: one may be frozen."""
        patience_s = self.settings.drain_delay_s + self.settings.drain_s
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._cut_asked.wait(), patience_s)
        await asyncio.sleep(_GRACE_S)
        for slot in self._slots:
            if slot.child is not None:
                log.warning("drain: process %d (pid %d) does not end; it is killed", slot.process, slot.child.pid)
                slot.child.kill()


class ChildProcess:
    """One process as its parent sees it, from its start to its end."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.listening: asyncio.Future[None] = loop.create_future()
        self.report: Json = {}
        """Its last report: status, health and metrics. Empty until it listens."""
        self.why = ""
        """Why it could not listen."""
        self._recording: Recording | None = None
        """The last one that it was told to take part in."""
        self._recordings = 0
        """So many it was told of; this is the number of the last."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._started_at = loop.time()
        # Requests for reports that are pending, with their times. The child answers in order.
        self._report_requests: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._reload = 0
        """The number of its last reload. A process that was frozen answers an earlier one late."""
        self._awaited: dict[tuple[str, int], asyncio.Future[Any]] = {}
        """Answers to a reload's two steps, by their names and its number."""
        self._overdue: int | None = None
        """The last reload that it was to run and does not run yet, though it has had the time."""
        self._reading = loop.create_task(self._read_messages())

    @classmethod
    async def start(cls, settings: Settings, process: int, member: str) -> ChildProcess:
        """Start one. Raise StartError if the process cannot be created; `listening` tells later whether it listens."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                started = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "ts_parity.proxy.operations.child"),
                    stdin=theirs.fileno(),
                    # The same import path as here and (from Python 3.11 on) not the current folder.
                    env={**os.environ, "PYTHONPATH": _python_path(), "PYTHONSAFEPATH": "1"},
                    # A terminal sends Ctrl-C to its whole foreground group; children must get it only as our command.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise StartError(f"process {process} cannot be started: {error}") from None
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        send(writer, initial_message(settings, process, member, logging.getLogger().getEffectiveLevel()))
        return cls(started, reader, writer)

    @property
    def listens(self) -> bool:
        return self.listening.done() and self.listening.exception() is None

    @property
    def silent(self) -> bool:
        return (
            bool(self._report_requests) and asyncio.get_running_loop().time() - self._report_requests[0][0] > _SILENT_S
        )

    @property
    def behind(self) -> bool:
        """Whether it runs settings from before a reload."""
        return self._overdue is not None

    @property
    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    def health(self) -> Json:
        if not self.listens or self.silent:
            how = "is silent" if self.listens else "is starting"
            return {"status": "unhealthy", "reason": f"the process with pid {self.pid} {how}"}
        report: Json = self.report["health"]
        return report

    def send(self, command: bytes) -> None:
        send(self._writer, command)

    def record(self, recording: Recording) -> None:
        self._recording = recording
        self._recordings += 1
        self.send(record_message(self._recordings, recording.wanted))

    async def request_report(self) -> None:
        """Wait briefly for a new `report`. A process that does not answer gets at most three requests."""
        if not self.listens or self._reading.done():
            return
        loop = asyncio.get_running_loop()
        if len(self._report_requests) < 3:
            self._report_requests.append((loop.time(), loop.create_future()))
            self.send(b"report")
        await asyncio.wait({self._report_requests[-1][1]}, timeout=_REPORT_WAIT_S)

    async def prepare(self, settings: Settings) -> str | None:
        """Have it read all that the settings name. -> why they cannot be used; empty if they can, or if it has ended
        and another will be started; None if it gives no answer.
        """
        self._reload += 1
        self.send(prepare_message(self._reload, settings))
        said: str | None = await self._answer_to("prepared", _SILENT_S, "")
        return said

    async def commit(self, patience_s: float) -> list[str] | None:
        """Have it run what it has prepared, if not now then as soon as it is awake. -> what else has changed; None: it
        has not answered, and is `behind` until it does.
        """
        number = self._reload
        self.send(commit_message(number))
        said: list[str] | None = await self._answer_to("committed", patience_s, [])
        if said is None:
            self._overdue = number
        return said

    def change(self, settings: Settings) -> None:
        """Both, without waiting: for one that has just been started with older settings."""
        self._reload += 1
        self._overdue = self._reload
        self.send(prepare_message(self._reload, settings))
        self.send(commit_message(self._reload))

    async def _answer_to(self, step: str, patience_s: float, if_ended: Any) -> Any:
        key = step, self._reload
        awaited = self._awaited[key] = asyncio.get_running_loop().create_future()
        reading = self._reading
        await asyncio.wait({awaited, reading}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        del self._awaited[key]
        return awaited.result() if awaited.done() else if_ended if reading.done() else None

    async def ended(self) -> int:
        """Wait until it has ended, and for its last report. -> the exit code, negative for a signal."""
        code = await self._process.wait()
        await asyncio.wait({self._reading}, timeout=1.0)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Cut it, then kill it if that does not help."""
        self.send(b"cut")
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE_S)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        await self.release()

    async def release(self) -> None:
        """It has ended: close the socket to it."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read_messages(self) -> None:
        """Read its messages until it ends."""
        try:
            while (message := await receive(self._reader)) is not None:
                if (pair := read_pair(message)) is not None:
                    number, frame = pair
                    if (recording := self._recording_of(number)) is not None:
                        recording.add(frame)
                else:
                    self._on_message(json.loads(message))
            why = f"{_exit_reason(await self._process.wait())} before it accepted requests"
            self._cannot_listen(why, f"the process with pid {self.pid} {why}")
        finally:
            for _, asked in self._report_requests:
                asked.cancel()

    def _on_message(self, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._cannot_listen(message["failed"], message["failed"])
            return
        if "recorded" in message:
            if (recording := self._recording_of(message["number"])) is not None:
                recording.count(message["recorded"])
            return
        for step in ("prepared", "committed"):
            if step in message:
                self._on_answer(step, message["number"], message[step])
                return
        self.report = message["report"]
        if "listening" in message:
            self.listening.set_result(None)
        elif self._report_requests:
            self._report_requests.popleft()[1].set_result(None)

    def _recording_of(self, number: int) -> Recording | None:
        """Unless it is over, also if the child did not know that yet."""
        if self._recording is None or number != self._recordings or self._recording.ended:
            return None
        return self._recording

    def _on_answer(self, step: str, number: int, said: Any) -> None:
        if step == "committed" and self._overdue is not None and number >= self._overdue:
            self._overdue = None
        if (awaited := self._awaited.get((step, number))) is not None and not awaited.done():
            awaited.set_result(said)

    def _cannot_listen(self, why: str, message: str) -> None:
        if not self.listening.done():
            self.why = why
            self.listening.set_exception(StartError(message))
            self.listening.exception()  # marked as retrieved: nobody awaits it after a restart


@dataclass
class ProcessSlot:
    """One of the `processes`: the child that runs in it now, and what earlier ones have counted."""

    process: int
    child: ChildProcess | None = None
    restarts: int = 0
    last_problem: str = ""
    code: int = 0
    left_status: Json = field(default_factory=dict)
    left_recent: Json = field(default_factory=dict)
    left_metrics: MetricFamilies = field(default_factory=dict)
    last_metrics: MetricFamilies = field(default_factory=dict)
    """What the present child said of itself when it was last read."""

    def row(self) -> Json:
        """Its row in the status; `answered` counts for the present child only."""
        child = self.child
        report = child.report.get("status", {}) if child is not None else {}
        return {
            "process": self.process,
            "pid": child.pid if child is not None else None,
            "state": self._state(),
            "uptime_s": round(child.age_s, 3) if child is not None else 0.0,
            "requests_in_flight": report.get("requests_in_flight", 0),
            "answered": sum(report["engine"]["answered"].values()) if report else 0,
            "restarts": self.restarts,
        }

    def problem(self) -> str:
        child = self.child
        if child is None or not child.listens:
            return self.last_problem
        facts = ["gives its parent no answer"] * child.silent + ["runs settings from before a reload"] * child.behind
        return f"process {self.process} (pid {child.pid}) accepts requests but {' and '.join(facts)}" if facts else ""

    def status_parts(self) -> list[Json]:
        report = self.child.report if self.child is not None else {}
        return [report["status"], self.left_status] if report else [self.left_status]

    def recent_parts(self) -> list[Json]:
        report = self.child.report if self.child is not None else {}
        return [part for part in (report.get("recent"), self.left_recent) if part]

    def read_metrics(self) -> MetricFamilies:
        """What its child says now. What of its counts it says no more is left."""
        report = self.child.report if self.child is not None else {}
        now = read_metrics(report["metrics"]) if report else {}
        self.left_metrics = merge_metrics([self.left_metrics, told_no_more(self.last_metrics, now)])
        self.last_metrics = now
        return now

    async def record_exit(self) -> None:
        """Its child has ended; keep what the child counted, as far as it was reported."""
        child = self.child
        if child is None:
            return
        self.last_problem = f"process {self.process} (pid {child.pid}) {child.why or _exit_reason(self.code)}"
        if child.report:
            self.left_status = merge_status([self.left_status, outlasting_status(child.report["status"])])
            self.left_recent = merge_recent(self.recent_parts())
            now = self.read_metrics()
            self.left_metrics = merge_metrics([self.left_metrics, outlasting_metrics(now)])
            self.last_metrics = {}
        self.child = None
        await child.release()

    def _state(self) -> str:
        if self.child is None:
            return "restarting"
        if not self.child.listens:
            return "starting"
        return "silent" if self.child.silent else str(self.child.report["status"]["state"])


async def reserve(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Bind the port without listening: -> the bound sockets, and the port, which differs from `port` if that is 0.

    Other programs of the same user, such as another ts-parity, could share the port and would get some of the
    requests. So it is first bound exclusively, as a test. Raise StartError.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("several processes need a platform with SO_REUSEPORT, such as Linux; set processes to 1")
    loop = asyncio.get_running_loop()
    held: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, (address, _, *more) in dict.fromkeys(found):
            if port:
                _bound(family, (address, port, *more), shared=False).close()
            held.append(_bound(family, (address, port, *more), shared=True))
            port = held[-1].getsockname()[1]
    except OSError as error:
        for reserved in held:
            reserved.close()
        raise cannot_listen(host, port, error) from None
    return held, port


def _bound(family: int, address: tuple[Any, ...], shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of an earlier process that are still closing must not block the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _python_path() -> str:
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _exit_reason(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
