"""Puts the rooms together: settings in, a running proxy out.

`Proxy` builds upstream, engine, driver, service, server, admin port and discovery, connects them, and keeps the fleet
up to date. Imports all rooms of the proxy. Decides nothing about queries: the engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import mimetypes
import time
from dataclasses import dataclass, replace
from typing import Any

from ts_parity.config import ConfigSource, Configuration, Settings
from ts_parity.engine import Fleet, Policy, Scheduler
from ts_parity.engine.members import STANDBY_S, keys_of
from ts_parity.errors import ConfigError
from ts_parity.proxy.fleet.backends.backend import Backend
from ts_parity.proxy.fleet.backends.kinds import backends_of
from ts_parity.proxy.fleet.discovery import Discovery
from ts_parity.proxy.fleet.peers import Peers, new_member
from ts_parity.proxy.fleet.plan import Plan, PlanOptions, make_plan
from ts_parity.proxy.fleet.reports import InstanceReport
from ts_parity.proxy.http.access import AccessLog
from ts_parity.proxy.http.certificates import Tls, client_side, instance_side, tls_settings
from ts_parity.proxy.http.descriptors import client_limit, open_files
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.server import Server
from ts_parity.proxy.http.upstream import Address, Upstream
from ts_parity.proxy.operations.admin import AdminServer
from ts_parity.proxy.operations.lifecycle import Lifecycle, url_of
from ts_parity.proxy.operations.overview import with_overview
from ts_parity.proxy.operations.reloading import Reloader
from ts_parity.proxy.operations.status import THIS_PROXY, health, status_json, trust_problems
from ts_parity.proxy.serving.driver import Driver, DriverOptions
from ts_parity.proxy.serving.forwarding import Forwarder
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.proxy.serving.recording import UNDER_WAY, NotRecorded, Recording, Wanted
from ts_parity.proxy.serving.service import Service
from ts_parity.proxy.serving.tracing import Tracer

log = logging.getLogger(__name__)

# Discovery runs this often while there are problems: a restarted worker is back after about two seconds.
_ATTENTIVE_S = 1.0
# A request for an unknown model starts discovery at once, but not more often than this.
_DISCOVERY_GAP_S = 0.2
_SETTLE_S = 1.0
"""So often what has been collected for metrics is counted."""
# A client accepted before a drain may have sent a request that is still on its way; it gets its answer.
_ON_ITS_WAY_S = 0.1
_STREAMED = "its answers are streamed, and what is streamed cannot be decoded"
# A gateway may have chunked one answer, or the handler may stream for one kind of request only.
_FIRST_UNCODED_S = 600.0
_LONGEST_UNCODED_S = 24 * 3600.0


class StreamedPools:
    """Pools whose answers were chunked. Each is coded again after a pause, which doubles every time it streams."""

    def __init__(self) -> None:
        self._uncoded: dict[str, tuple[float, float]] = {}
        """Pool -> until when it is not coded, and the length of that pause."""

    def streamed(self, pool: str, now: float) -> bool:
        """-> whether the pool has just stopped being coded."""
        until, lasted_s = self._uncoded.get(pool, (now, _FIRST_UNCODED_S / 2))
        if now < until:
            return False
        lasts_s = min(2 * lasted_s, _LONGEST_UNCODED_S)
        self._uncoded[pool] = (now + lasts_s, lasts_s)
        return True

    def reasons(self, now: float) -> dict[str, str]:
        """Pool -> why it is not coded now."""
        return {pool: _STREAMED for pool, (until, _) in self._uncoded.items() if now < until}


class Proxy(Lifecycle):
    """One proxy. `start`, then `drain` (or `run` for both), then `close`. Everything happens on one event loop."""

    def __init__(
        self,
        settings: Settings,
        process: int | None = None,
        proved: bool = False,
        member: str | None = None,
        source: ConfigSource | None = None,
        found: Configuration | None = None,
    ) -> None:
        """Raise ConfigError if the default answer or a certificate cannot be used. Needs a running event loop.

        `process`: which one of `settings.processes` it is. It shares port and places with the others, and the admin
        port is their parent's. `proved`: protections are used without a trial, for tests of what comes after it.
        `member`: its name among the proxies in front of this fleet, the same for all processes on one port. `source`:
        where the settings are read again, and `found`, what it said.
        """
        super().__init__()
        self.settings = settings
        self._process = process
        self._proved = proved
        self._logged_distrust: list[str] = []
        self.url = self.admin_url = ""
        self._default = settings.read_default_answer()
        tls, self._to_instances = client_side(settings), instance_side(settings)
        self._tls = [tls] if tls is not None else []
        self.scheduler = Scheduler(Fleet((), (), ()), policy_of(settings))
        self.metrics = Metrics(self._snapshot, self.scheduler.policy, lambda: self._server.clients())
        self.upstream = Upstream(settings.connect_timeout_s, settings.task_timeout_s, self._to_instances)
        self._access = access = _open_access_log(settings.access_log)
        self._tracer = tracer = _tracer(settings) if settings.tracing else None
        if tracer is not None:
            self.metrics.spans = tracer.sink.counts
        options = self._driver_options()
        self._first_kind = settings.instances[0].kind if settings.instances else ""
        backends = backends_of(settings.instances, settings.models)
        self.driver = Driver(
            self.scheduler,
            self.upstream,
            backends,
            self.metrics,
            options,
            self._stop_coding,
            self._discover_soon,
            self._doubt,
        )
        self.peers: Peers | None = None
        self._forwarder: Forwarder | None = None
        if settings.peers:
            self.peers = Peers(settings, member or new_member(), self._serves, lambda: self.draining, self._peer_lost)
            self._tls += self.peers.tls
            self.metrics.peers_alive = self.peers.members.alive
            given_up_s = self.scheduler.policy.deadline_s
            self._forwarder = Forwarder(self.peers, self.metrics, given_up_s, options.default_answer)
        self._service = Service(
            self.driver,
            self.upstream,
            backends,
            self.metrics,
            settings.group_by,
            self._discover_wanted,
            self._forwarder,
            tracer,
        )
        self._server = Server(self._service.handle, settings.max_body_bytes, access=access, tls=tls)
        if process is None:
            self.reloader = Reloader(settings, self.adopt, source, found)
            self.metrics.config = self.reloader.families
        self._admin = AdminServer(
            self.status,
            self.health,
            self.drain,
            self.metrics.exposition,
            self.record,
            self.reload_configuration,
            self.configuration,
        )
        self._settling: asyncio.Task[None] | None = None
        self._discovery = Discovery(settings.instances, backends, self.upstream, settings.describe_timeout_s)
        self.plan = Plan()
        self._reports: list[InstanceReport] = []
        self._streamed = StreamedPools()
        self._addresses: dict[str, Address] = {}
        self._discovery_task: asyncio.Task[None] | None = None
        self._refresh_asked = asyncio.Event()
        self._discovering = asyncio.Lock()
        self._next_discovery: asyncio.Task[None] | None = None
        self._discovered_at = -math.inf
        self._started_at = time.monotonic()
        self._stands_by_until = asyncio.get_running_loop().time() + STANDBY_S

    async def start(self) -> None:
        """Discover the fleet once, then listen, even if the whole fleet is down. Raise StartError."""
        settings = self.settings
        await self.discover()
        if self.peers is not None:
            await self.peers.start()
        if self._process is None:
            admin_port = await self._admin.start(settings)
            self.admin_url = url_of(settings.admin_host, admin_port)
        port = await self._server.start(settings.host, settings.port, reuse_port=self._process is not None)
        self.url = url_of(settings.host, port, bool(settings.tls_certificate))
        self._discovery_task = asyncio.get_running_loop().create_task(self._keep_discovering())
        self._settling = asyncio.get_running_loop().create_task(self._keep_settling())
        self._started.set()

    def refresh_files(self) -> None:
        self.reopen()
        self._refresh_asked.set()

    def reopen(self) -> None:
        if self._access is not None:
            self._access.reopen()

    def record(self, wanted: Wanted) -> Recording:
        """Sample pairs until it is closed. Raise NotRecorded if one is under way, or there is no such model."""
        if self.driver.recording is not None:
            raise NotRecorded(UNDER_WAY)
        wanted.check(self.plan.pools)
        return self.begin_recording(wanted)

    def begin_recording(self, wanted: Wanted) -> Recording:
        """The same where all that is checked: a process that has just started may not have found the model yet."""
        driver = self.driver

        def stop() -> None:
            driver.recording = None

        driver.recording = Recording(wanted, stop)
        return driver.recording

    async def close(self) -> None:
        if self.driver.recording is not None:
            self.driver.recording.close("the proxy has ended")
        own = [task for task in (self._discovery_task, self._next_discovery, self._settling) if task is not None]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        await self.end_reloads()
        await self._discovery.close()
        await self._server.close()
        await self.driver.close()
        if self._tracer is not None:
            await self._tracer.close()
        if self.peers is not None:
            await self.peers.close()
        await self._admin.close()
        await self.upstream.close()

    async def adopt(self, settings: Settings) -> tuple[str, ...]:
        """Run these settings from now on. -> what else has changed with them. Raise ConfigError, and change nothing, if
        a file that they name cannot be used.
        """
        return await self.commit(self.prepare(settings))

    def prepare(self, settings: Settings) -> PreparedSettings:
        """Read all that they name. Raise ConfigError."""
        before = {given.name: tls_settings(given) for given in self.settings.instances}
        same = [given for given in settings.instances if before.get(given.name) == tls_settings(given)]
        urls = {url for given in same for url in (given.inference, given.management)}
        kept = {url: tls for url, tls in self._to_instances.items() if url in urls}  # and so are their connections
        backends = backends_of(settings.instances, settings.models, self._first_kind)
        return PreparedSettings(settings, settings.read_default_answer(), instance_side(settings, kept), backends)

    async def commit(self, prepared: PreparedSettings) -> tuple[str, ...]:
        """Find out what the new instances host, and then, all at once, run what was prepared. Nothing can fail here: an
        instance that does not answer is a problem, as it is at any other time.
        """
        settings = prepared.settings
        async with self._discovering:
            self.upstream.adopt(prepared.tls)
            backends = prepared.backends
            await self._discovery.adopt(settings.instances, backends, settings.describe_timeout_s)
            names = {given.name for given in settings.instances}
            reports = [report for report in self._reports if report.name in names]
            try:
                reports = await self._discovery.refresh()
            except Exception:
                log.exception("the new instances could not be asked; the next discovery will")
            before, urls = self.settings, _urls(self.settings)
            besides = _other_content(before, settings, self._default != prepared.default)
            self.settings, self._default, self._to_instances = settings, prepared.default, prepared.tls
            self._reports = reports
            options, policy = self._driver_options(), policy_of(settings)
            self._service.change_settings(settings.group_by, backends)
            if self._forwarder is not None:
                self._forwarder.adopt(policy.deadline_s, options.default_answer)
            if self.peers is not None:
                self.peers.adopt(settings.instances)
            self._admin.token = settings.admin_token
            self.driver.change_settings(options, policy, backends)
            self._adopt_reports()
            for url in urls - _urls(settings):
                self.upstream.forget(url)
            self._discovered_at = asyncio.get_running_loop().time()
        self._refresh_asked.set()  # what has not told yet what it hosts is asked again soon
        return besides

    def configuration(self) -> dict[str, Any]:
        return {} if self.reloader is None else self.reloader.configuration()

    def _driver_options(self) -> DriverOptions:
        settings = self.settings
        default = _default_response(self._default, settings)
        return DriverOptions(settings.secret, default, settings.task_timeout_s, self._tracer, self._access)

    async def discover(self, may_describe: bool = True) -> None:
        """Refresh the plan now. `may_describe`: workers may be asked for describe, too."""
        async with self._discovering:
            self._next_discovery = None  # callers from now on need another one
            self._discovery.in_use(self._models_in_use())
            self._reports = await self._discovery.refresh(may_describe)
            self._adopt_reports()
            self._discovered_at = asyncio.get_running_loop().time()

    def _doubt(self, kind: str, instance: str, why: str, sample: Request | None) -> None:
        """It may confuse requests: it is not used until it answers rightly."""
        report = self._discovery.doubt(kind, instance, why, sample)
        if report is not None:
            self._reports = [report if each.name == instance else each for each in self._reports]
            self._adopt_reports()
            self._refresh_asked.set()

    def _models_in_use(self) -> dict[str, set[str]]:
        """Kind -> models that were asked for since the discovery before."""
        found: dict[str, set[str]] = {}
        for state in self.scheduler.pools():
            pool = self.plan.pools.get(state.pool.name)
            if pool is not None and state.asked_at >= self._discovered_at:
                named = {self.plan.targets[state.endpoint.name].model for state in state.deployed.everyone}
                found.setdefault(pool.kind, set()).update(named)
        return found

    def _discover_wanted(self, kind: str = "", name: str = "") -> asyncio.Task[None]:
        """`name`: a model that a client has asked for."""
        if name:
            self._discovery.want(kind, name)
        return self._discover_soon()

    def _discover_soon(self) -> asyncio.Task[None]:
        """Discovery that has yet to begin, shared by all callers until it does."""
        if self._next_discovery is None:
            self._next_discovery = asyncio.get_running_loop().create_task(self._rediscover())
        return self._next_discovery

    async def _rediscover(self) -> None:
        await asyncio.sleep(max(0.0, self._discovered_at + _DISCOVERY_GAP_S - asyncio.get_running_loop().time()))
        try:
            await self.discover(may_describe=False)
        except Exception:
            log.exception("discovery failed; the last plan stays in use")

    def status(self) -> dict[str, Any]:
        status = self.own_status()
        if self.reloader is not None:
            status["configuration"] = self.reloader.status()
            status["problems"] += self.reloader.problems()
        return with_overview(status, self.recent(), time.time())

    def recent(self) -> dict[str, Any]:
        """What has happened of late, as `overview` takes it."""
        now = asyncio.get_running_loop().time()
        self._settle(now)
        self.metrics.count()
        races = self.driver.races
        out = ((race.answered_at, self.metrics.pool(race.pool), now - race.arrived_at) for race in races.undecided())
        return {"slots": self.metrics.recent.described(out), "races": races.last(now)}

    def own_status(self) -> dict[str, Any]:
        """Without what has happened of late."""
        now = time.monotonic()
        state = {
            "state": "draining" if self.draining else "serving",
            "uptime_s": round(now - self._started_at, 3),
            "requests_in_flight": self._server.in_flight,
            "held": self.driver.left_over(),
        }
        engine = self._snapshot()
        slowness = self.metrics.slowness()
        status = status_json(self.plan, self._reports, self.settings, engine, state, now, slowness)
        for name, pool in status["pools"].items():
            pool["largest_body"] = self.driver.largest.get(name)
        if self._server.problem:
            status["problems"].append(self._server.problem)
        if self.peers is not None and self._forwarder is not None:
            status["problems"] += self.peers.problems()
            owners = {pool: self._forwarder.owner(pool) or THIS_PROXY for pool in self.plan.pools}
            for pool, owner in owners.items():
                if owner != THIS_PROXY:
                    does = f"queries are forwarded to {owner}, which serves this model for all proxies"
                    status["pools"][pool]["does"] = does
            status["sharing"] = {**self.peers.status(), "served_by": owners, "forwarded": self._forwarder.in_flight()}
        return status

    def _serves(self) -> frozenset[str]:
        """The pools that this proxy can serve, for its peers. One that has just started, or drains, leaves them."""
        now = asyncio.get_running_loop().time()
        if self.draining or now < self._stands_by_until:
            return frozenset()
        return frozenset(pool for pool in self.plan.serving if self.scheduler.can_serve(pool, now))

    def _peer_lost(self, address: str, pools: frozenset[str] | None) -> None:
        if self._forwarder is not None:
            self._forwarder.lost(address, pools)

    def _snapshot(self) -> dict[str, Any]:
        return self.scheduler.snapshot(asyncio.get_running_loop().time())

    def health(self) -> dict[str, Any]:
        return health(self.plan, self.draining, self.scheduler.snapshot())

    async def _keep_settling(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_at = loop.time() + _SETTLE_S
            await asyncio.sleep(_SETTLE_S)
            self.metrics.lag_s = max(0.0, loop.time() - due_at)
            try:
                self._settle(loop.time())
            except Exception:  # queries are served all the same
                log.exception("what has happened could not be counted")

    def _settle(self, now: float) -> None:
        """What has happened since is counted."""
        self.driver.races.settle(now)
        self.metrics.settle(*self.scheduler.spent())

    def _adopt_reports(self) -> None:
        settings = self.settings
        options = PlanOptions(settings.instances, settings.protect, self._streamed.reasons(time.monotonic()))
        options = replace(
            options, models=settings.models, lossless=settings.policy.differing == 0.0, proved=self._proved
        )
        if self._process is not None:
            options = replace(options, process=self._process, processes=settings.processes)
        plan = make_plan(self._reports, options)
        for problem in plan.problems:
            if problem not in self.plan.problems:
                log.warning("%s", problem)
        for problem in self.plan.problems:
            if problem not in plan.problems:
                log.warning("no longer: %s", problem)
        self._read_addresses()
        self.plan = plan
        places = sum(endpoint.places for endpoint in plan.fleet.endpoints)
        self._server.limit = client_limit(open_files(), places, len(settings.instances), self.peers is not None)
        if self._forwarder is not None:
            self._forwarder.change_keys(keys_of((each.pool, each.instance) for each in plan.fleet.endpoints))
        # The service first: it must not send the driver to a pool that the engine has dropped.
        self._service.change_fleet(plan, self._addresses)
        self.driver.change_fleet(plan, self._addresses)

    def _log_trust_changes(self) -> None:
        """Log, once each, that a protection or second copies were taken out or are back."""
        problems = trust_problems(self.scheduler.snapshot())
        for problem in problems:
            if problem not in self._logged_distrust:
                log.warning("%s", problem)
        for problem in self._logged_distrust:
            if problem not in problems:
                log.warning("no longer: %s", problem)
        self._logged_distrust = problems

    def _read_addresses(self) -> None:
        """TorchServe renews its key files every hour, so they are read again each time."""
        addresses = {}
        for instance in self.settings.instances:
            try:
                token = instance.inference_token()
            except ConfigError as error:
                log.warning("%s: %s; its last key is used", instance.name, error)
                last = self._addresses.get(instance.name)
                token = last.token if last is not None else ""
            addresses[instance.name] = Address(instance.inference, token, self.settings.vouch)
        self._addresses = addresses

    def _stop_coding(self, pool: str) -> None:
        if self._streamed.streamed(pool, time.monotonic()):
            self._adopt_reports()

    async def _keep_discovering(self) -> None:
        while True:
            interval = self.settings.discovery_interval_s
            pause_s = min(interval, _ATTENTIVE_S) if self.plan.problems else interval
            asked = asyncio.ensure_future(self._refresh_asked.wait())
            # Not wait_for: where both come at once, that of Python before 3.12 drops a cancellation, and `close` hangs.
            try:
                await asyncio.wait({asked}, timeout=pause_s)
            finally:
                asked.cancel()
            self._refresh_asked.clear()
            for tls in (*self._tls, *self._to_instances.values()):
                tls.reload()
            self._log_trust_changes()
            try:
                await self.discover()
            except Exception:
                # The last plan still serves; if this loop ended, the plan would never change again.
                log.exception("discovery failed; the last plan stays in use")

    async def _drained(self) -> int:
        log.info("draining: %d requests in flight", self._server.in_flight)
        self._server.draining = True
        with contextlib.suppress(asyncio.TimeoutError):  # load balancers take a while to notice that it is not ready
            await asyncio.wait_for(self._cut_asked.wait(), self.settings.drain_delay_s)
        await self._server.stop_accepting()
        quiet, cut = asyncio.ensure_future(self._until_quiet()), asyncio.ensure_future(self._cut_asked.wait())
        await asyncio.wait({quiet, cut}, timeout=self.settings.drain_s, return_when=asyncio.FIRST_COMPLETED)
        left = 0 if quiet.done() else self._server.unanswered
        quiet.cancel()
        cut.cancel()
        if left:
            log.warning("drain: cut %d requests", left)
        return 1 if left else 0

    async def _until_quiet(self) -> None:
        """Wait until nothing is in flight and nothing has arrived for a moment on the open connections; then close
        them, before anything else can arrive.
        """
        while True:
            await self._server.idle()
            await asyncio.sleep(_ON_ITS_WAY_S)
            if not self._server.unanswered:
                await self._server.close()
                return


@dataclass(frozen=True)
class PreparedSettings:
    """Settings with the content of the files that they name: the default answer, and TLS by https address."""

    settings: Settings
    default: bytes | None
    tls: dict[str, Tls]
    backends: dict[str, Backend]


def _urls(settings: Settings) -> set[str]:
    return {url for given in settings.instances for url in (given.inference, given.management)}


def _other_content(before: Settings, after: Settings, differs: bool) -> tuple[str, ...]:
    same_file = before.default_answer == after.default_answer
    return ("default_answer: its file has another content",) if differs and same_file else ()


def use_uvloop() -> None:
    """Make new event loops uvloop's. Without uvloop everything works at half the speed."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def policy_of(settings: Settings) -> Policy:
    """The settings name a file for the default answer; the policy only knows whether there is one."""
    return replace(settings.policy, default_answer=settings.default_answer != "")


def _open_access_log(path: str) -> AccessLog | None:
    try:
        return AccessLog(path) if path else None
    except OSError as error:
        raise ConfigError(f"access_log: cannot write {path!r}: {error.strerror}") from None


def _tracer(settings: Settings) -> Tracer:
    try:
        from ts_parity.proxy.serving.spans import OtlpSpans
    except ImportError as error:
        raise ConfigError(f"tracing: {error}; it takes OpenTelemetry: pip install ts_parity[otel]") from None
    try:
        return Tracer(OtlpSpans("https" if settings.tls_certificate else "http"))
    except ValueError as error:
        raise ConfigError(f"tracing: the OTEL_ variables of the environment make no sense: {error}") from None


def _default_response(body: bytes | None, settings: Settings) -> Response | None:
    if body is None:
        return None
    kind = mimetypes.guess_type(settings.default_answer)[0] or "application/octet-stream"
    headers = (("content-type", kind), ("content-length", str(len(body))))
    return Response(200, "", headers, body)
