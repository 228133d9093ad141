"""Asks plain servers what they host, and decides what their answers and their silence mean.

A server that answers a probe is not thereby one that answers predictions, and a slow answer is often a prediction that
holds its event loop. So a good answer brings an instance in, and only a refused connection takes it out; whatever else
a probe meets, what was seen last holds, and the engine judges by the answers that clients wait for.

Knows probes (see `plain`), times and connections. Knows nothing of any kind's routes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ts_parity.codes import make_code
from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.describe import ProtectedModel
from ts_parity.errors import ConfigError, TsParityError
from ts_parity.proxy.fleet.reports import PARITY, ArchiveDescription, InstanceReport, ModelReport
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Upstream

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 4 << 20
MOST_WANTED: Final = 64
"""Names that clients asked for are tried on servers that do not list their models; so many at a time."""
IDLE_S: Final = 60.0
"""One that nobody has asked for during this time makes room for another."""


@dataclass(frozen=True)
class Hosted:
    """A model as a server tells of it. `places`: how many requests it works on at a time, where the server says so."""

    name: str
    version: str = ""
    default: bool = True
    places: int | None = None
    takes: str = ""
    """Names, types and shapes of its inputs and outputs, as text to compare; empty where not told."""
    passed: str = ""
    """Why its requests are only passed through; empty if they may be copied and protected."""


@dataclass(frozen=True)
class Seen:
    """What came of asking an instance. `ready`: it says that it serves."""

    ready: bool
    models: tuple[Hosted, ...] = ()
    problem: str = ""


Probe = Generator[Request | None, Response, Seen]
"""Yields what to ask next (None: whether it takes connections) and is sent the answer; returns what was seen."""


RIGHT_AGAIN: Final = 2
"""Looks in a row at which a doubted instance has to answer rightly."""
MOST_SAMPLES: Final = 3
LARGEST_SAMPLE: Final = 256 << 10
"""Of all but the first."""
SUSPECT_TRIES: Final = 3


class Doubt:
    """In an instance that may answer one request with what is another's: why, and requests to find out with.

    They are sent to it forwards and then backwards. If each answer is that of the request before, or of the one before
    that, some request has two answers.
    """

    def __init__(self, why: str, suspect: Request | None) -> None:
        """`suspect`: the request that it failed. It may be what the server's process dies of, so it is asked only where
        there is no other, and a few times at most.
        """
        self.why = why
        self.passed = 0
        self._suspect = suspect
        self._tries = SUSPECT_TRIES
        self._samples: list[Request] = []

    def add(self, sample: Request) -> None:
        """One that another instance has answered."""
        known = any(sample.body == each.body and sample.target == each.target for each in self._samples)
        if (
            len(self._samples) < MOST_SAMPLES
            and not known
            and (not self._samples or len(sample.body) <= LARGEST_SAMPLE)
        ):
            self._samples.append(sample)

    def take(self) -> list[Request]:
        """What to ask it now."""
        if self._samples:
            return list(self._samples)
        self._tries -= 1
        return [self._suspect] if self._suspect is not None and self._tries >= 0 else []


class _NotSeen(TsParityError):
    """`refused`: nothing listens there."""

    def __init__(self, message: str, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class PlainProber:
    """Of the instances of one kind; it remembers each instance's last report."""

    def __init__(
        self,
        kind: str,
        prefix: str,
        probe: Callable[[InstanceSettings, Collection[str], Collection[str]], Probe],
        instances: Sequence[InstanceSettings],
        models: Sequence[ModelSettings],
        upstream: Upstream,
        timeout_s: float,
        says_same: Callable[[Response, Response], bool],
    ) -> None:
        """`prefix`: before the names of its models where kinds are mixed. `probe`, `says_same`: see `PlainBackend`."""
        self._kind, self._prefix, self._probe = kind, prefix, probe
        self._instances, self._models = instances, models
        self._upstream, self._timeout_s = upstream, timeout_s
        self._says_same = says_same
        self._doubts: dict[str, Doubt] = {}
        self._last: dict[str, InstanceReport] = {}
        self._seen: dict[str, Seen] = {}
        self._wanted: dict[str, float] = {}
        """Name -> when it was last asked for."""
        self._only_students = {where for model in models for where, _ in model.students if where}

    def want(self, name: str) -> None:
        """A client has asked for a model that nobody was seen to host. Whoever asks for many names takes the place of
        none that is in use: what finds no room is passed through.
        """
        now = time.monotonic()
        if name not in self._wanted and len(self._wanted) >= MOST_WANTED:
            idle = min(self._wanted, key=self._wanted.__getitem__)
            if self._wanted[idle] > now - IDLE_S:
                return
            del self._wanted[idle]
        self._wanted[name] = now

    def in_use(self, names: Collection[str]) -> None:
        for name in self._wanted.keys() & names:
            self._wanted[name] = time.monotonic()

    def doubt(self, instance: str, why: str, sample: Request | None) -> InstanceReport | None:
        new = instance not in self._doubts
        if all(given.name != instance for given in self._instances) or (new and not why):
            return None
        if not new:
            if sample is not None and not why:
                self._doubts[instance].add(sample)
            return None
        self._doubts[instance] = doubt = Doubt(why, sample)
        last = self._last.get(instance, InstanceReport(instance, False))
        self._last[instance] = report = _doubted(last, doubt)
        return report

    def remember(self, before: PlainProber) -> None:
        """Take over what another one saw of the same instances, read as the configuration is now."""
        self._wanted = before._wanted
        addresses = {given.name: given.inference for given in before._instances}
        for given in self._instances:
            if given.name in before._doubts and addresses.get(given.name) == given.inference:
                self._doubts[given.name] = before._doubts[given.name]
            last = before._last.get(given.name)
            seen = before._seen.get(given.name)
            if last is None or seen is None or addresses.get(given.name) != given.inference:
                continue
            self._seen[given.name], models = seen, self._models_of(given, seen)
            self._last[given.name] = replace(last, models=models) if last.up else replace(last, last_hosted=models)

    async def refresh(self, may_describe: bool = True) -> list[InstanceReport]:
        reports = list(await asyncio.gather(*(self._report(instance) for instance in self._instances)))
        hosted = {model.called for report in reports for model in report.models}
        self._wanted = {name: at for name, at in self._wanted.items() if name in hosted}
        return reports

    async def close(self) -> None:
        pass

    async def _report(self, given: InstanceSettings) -> InstanceReport:
        began_at = time.monotonic()
        try:
            report = self._report_of(given, await self._ask(given))
        except _NotSeen as error:
            report = self._not_seen(given, error)
        except Exception as error:
            log.exception("%s: what it says could not be read", given.name)
            report = self._not_seen(given, _NotSeen(f"{type(error).__name__}: it cannot be read", refused=False))
        if (doubt := self._doubts.get(given.name)) is not None:
            report = await self._after_doubt(given, report, doubt)
        if math.isnan(report.seen_at):  # it is not the previous report again
            report = replace(report, seen_at=began_at)
        self._last[given.name] = report
        return report

    async def _after_doubt(self, given: InstanceSettings, report: InstanceReport, doubt: Doubt) -> InstanceReport:
        """It is used again when it says that it is ready, and answers rightly, at one look and at the next."""
        right = report.up and await self._answers_rightly(_address(given), doubt.take())
        doubt.passed = doubt.passed + 1 if right else 0
        if doubt.passed < RIGHT_AGAIN:
            return _doubted(report, doubt)
        log.warning("%s answers rightly again", given.name)
        del self._doubts[given.name]
        return report

    async def _answers_rightly(self, address: Address, samples: Sequence[Request]) -> bool:
        there: list[Response] = []
        for sample in (*samples, *reversed(samples)):
            result = await self._upstream.exchange(address, sample, self._timeout_s, _MAX_BYTES, whole=True)
            if isinstance(result, Stream):
                result.close()
            if not isinstance(result, Response) or result.status >= 500:
                return False
            there.append(result)
        back = there[: len(samples) - 1 : -1]
        return all(map(self._says_same, there, back))

    async def _ask(self, given: InstanceSettings) -> Seen:
        """Raise _NotSeen."""
        address = _address(given)
        last = self._last.get(given.name)
        known = {model.called for model in last.models} if last is not None and last.up else set()
        names = [model.name for model in self._models] if given.name not in self._only_students else []
        names += [name for model in self._models for where, name in model.students if where in ("", given.name)]
        probe = self._probe(given, list(dict.fromkeys([*names, *self._wanted])), known)
        answer = None
        try:
            while True:
                request = probe.send(answer) if answer is not None else next(probe)
                answer = await self._answer(address, request)
        except StopIteration as stop:
            seen: Seen = stop.value
            return seen

    async def _answer(self, address: Address, request: Request | None) -> Response:
        if request is None:
            failure = await self._upstream.reach(address)
            if failure is not None:
                raise _NotSeen(failure.reason, failure.refused)
            return Response(200, "", (), b"")
        result = await self._upstream.exchange(address, request, self._timeout_s, _MAX_BYTES, whole=True)
        if isinstance(result, Stream):
            result.close()
            raise _NotSeen(f"a stream came for {request.target}", refused=False)
        if isinstance(result, NoResponse):
            raise _NotSeen(result.reason, result.refused)
        return result

    def _report_of(self, given: InstanceSettings, seen: Seen) -> InstanceReport:
        last = self._last.get(given.name)
        if not seen.ready:
            problem = seen.problem or "it says that it is not ready"
            if last is not None and last.up:  # readiness alone takes nobody out
                return replace(last, problem=f"{problem}; used as last seen")
            return InstanceReport(given.name, False, problem=f"{problem}; not used, asked again regularly")
        self._seen[given.name] = seen
        return InstanceReport(given.name, True, self._models_of(given, seen), seen.problem)

    def _not_seen(self, given: InstanceSettings, error: _NotSeen) -> InstanceReport:
        last = self._last.get(given.name)
        problem = f"{given.inference} gave no answer ({error})"
        if error.refused:  # what comes back is another process
            self._doubts.pop(given.name, None)
        if error.refused or last is None or not last.up:
            hosted = () if last is None else last.models if last.up else last.last_hosted
            problem += "; not used, asked again regularly"
            return InstanceReport(given.name, False, problem=problem, last_hosted=hosted)
        return replace(last, problem=f"{problem}; used as last seen")

    def _models_of(self, given: InstanceSettings, seen: Seen) -> tuple[ModelReport, ...]:
        """As the plan takes them: students as protections of the models that name them."""
        protects: dict[str, ModelSettings] = {}
        for model in self._models:
            for where, name in model.students:
                if where in ("", given.name):
                    protects.setdefault(name, model)
        reports = []
        for hosted in seen.models:
            named = f"{hosted.name}/{hosted.version}"
            called = named if hosted.version and named in protects else hosted.name
            protected = protects.get(called)
            if protected is not None or given.name not in self._only_students:
                reports.append(self._model(given, hosted, called, protected))
        return tuple(reports)

    def _model(
        self, given: InstanceSettings, hosted: Hosted, called: str, protected: ModelSettings | None
    ) -> ModelReport:
        places = given.places or hosted.places or 1
        apart = False
        if protected is not None and given.name not in self._only_students:
            own = given.student_places or hosted.places
            apart, places = own is not None, own or places
        return ModelReport(
            model=self._prefix + hosted.name,
            version=hosted.version,
            default=hosted.default,
            ready=places,
            batch_size=1,
            # Another student, or another version, goes on trial.
            running=frozenset({f"{called}/{hosted.version}"}),
            described=None if protected is None else description_of(protected, self._prefix),
            kind=self._kind,
            called=called,
            apart=apart,
            takes=hosted.takes,
            passed=hosted.passed,
        )


def _address(given: InstanceSettings) -> Address:
    try:
        return Address(given.inference, given.inference_token())
    except ConfigError:  # reported where the key is needed
        return Address(given.inference)


def _doubted(report: InstanceReport, doubt: Doubt) -> InstanceReport:
    problem = f"{doubt.why}; not used until it has answered rightly again"
    hosted = report.models if report.up else report.last_hosted
    return InstanceReport(report.name, False, problem=problem, last_hosted=hosted)


def description_of(protected: ModelSettings, prefix: str) -> ArchiveDescription:
    """A student as the configuration declares it. It protects the version that is named, else the default one."""
    return ArchiveDescription(
        role=PARITY,
        code=make_code("exact" if protected.exact else "student", 1),
        partial=True,
        protects=ProtectedModel(prefix + protected.name, protected.version, None),
        cost=protected.cost,
        agreement=protected.agreement,
        tolerance=protected.tolerance,
    )
