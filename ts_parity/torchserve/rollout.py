"""Registering, replacing and unregistering on several instances: planned first, done step by step, undone if it fails.

A plan is data: steps, each for one instance, made from what the instances have (`look`) and what is wanted. Nothing is
asked to change before the whole plan stands, so that it can be shown (`--dry-run`), and whatever can be refused
beforehand is. Then the steps are done in order, and each that can be undone is remembered.

A new version takes the place of the default one in three passes over all instances: it is registered beside it and its
workers are READY; it becomes the default; the old one is unregistered. At each instant every instance serves, and until
the last pass everything can be undone. The same version with other content cannot stand beside itself. There each
instance first loads it under another name, since a load that fails must not cost the old one, and then goes without for
as long as loading takes, one instance after another.

Knows management APIs and archives. Knows nothing of command lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ts_parity.describe import ModelDescription
from ts_parity.errors import ManagementError, Unreachable
from ts_parity.torchserve import proxies
from ts_parity.torchserve.management import ManagementClient, unready
from ts_parity.torchserve.mar import SECTION, Archive

TRIAL = "ts-parity-trial"
"""Added to a model's name while its archive is loaded to see whether it loads."""
SETTLE_S = 10.0
"""Proxies look at the fleet every 5 s (`discovery_interval_s`), may wait 2 s for an answer, and ask a new worker what
it is: after this they know what was changed. One that has not seen a model go would wait for what it had there, and one
that does not use an instance again yet has nobody when the next one goes.
"""
SEEN_S = 120.0
"""So long at most a proxy that is asked may take to see a change: a busy one's looks fail now and then."""
DRAIN_S = 60.0
"""So long at most the queue of a version that is no default any more is waited for."""
READY_S = 30.0
"""TorchServe answers when workers are READY; so long at most they may take to be described so."""
LOAD_S = 180.0
"""TorchServe gives a worker 120 s to load its model (`startupTimeout`), and is asked for the whole time."""
LATE_S = 5.0
"""What was asked for and not answered may still come about, by then as a rule."""
POLL_S = 0.2
NOT_FOUND = 404
_REGISTERED = re.compile(r'Model "(?P<model>.+)" Version: (?P<version>.+) registered with')
# What a wrapped archive's section and its describe both say.
_SAID_TWICE = (
    "role",
    "code",
    "k",
    "r",
    "row",
    "coefficients",
    "partial",
    "cost",
    "agreement",
    "tolerance",
    "row_errors",
    "confidence",
    "protects",
    "never_code",
)


@dataclass(frozen=True)
class Asked:
    """What the command line says of how a model is registered; None if it says nothing."""

    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None

    def options(self, archive: Archive | None = None, replaced: ModelDescription | None = None) -> Options:
        """The rest is what the archive says, or else as it is with what it replaces."""
        said = {} if archive is None else archive.config
        before = Options() if replaced is None else Options.of(replaced)

        def chosen(key: str, asked: int | None, else_: int | None) -> int | None:
            return asked if asked is not None else None if key in said else else_

        return Options(
            before.workers if self.workers is None else self.workers,
            chosen("batchSize", self.batch_size, before.batch_size),
            chosen("maxBatchDelay", self.max_batch_delay_ms, before.max_batch_delay_ms),
            chosen("responseTimeout", None, before.response_timeout_s),
        )


class Action(str, Enum):
    TRY = "try"
    REGISTER = "register"
    SET_DEFAULT = "set-default"
    UNREGISTER = "unregister"


@dataclass(frozen=True)
class Hosted:
    """What one instance has: every version of every model, and the default versions."""

    url: str
    models: Mapping[str, tuple[ModelDescription, ...]]
    defaults: Mapping[str, str]

    def find(self, model: str, version: str) -> ModelDescription | None:
        return next((each for each in self.models.get(model, ()) if each.version == version), None)


@dataclass(frozen=True)
class Source:
    """What to register. `url`: a file in the model store, or an address. `archive`: the file it must be, if known."""

    url: str
    archive: Archive | None = None

    def __str__(self) -> str:
        return self.url if self.archive is None else f"{self.archive.model_name} {self.archive.model_version}"


@dataclass(frozen=True)
class Options:
    """How a model is registered. None: as the archive says, as the one that it replaces has it, or TorchServe's own."""

    workers: int = 1
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None

    @classmethod
    def of(cls, described: ModelDescription) -> Options:
        return cls(
            described.min_workers,
            described.batch_size,
            described.max_batch_delay_ms,
            described.response_timeout_s or None,
        )


@dataclass(frozen=True)
class Step:
    """One change on one instance. `old`: what it replaces or removes. `note`: for whoever reads the plan."""

    instance: str
    action: Action
    model: str
    version: str
    source: Source | None = None
    options: Options = field(default_factory=Options)
    old: ModelDescription | None = None
    lasting: bool = False
    """It is not undone, and neither is anything before it."""
    settled: bool = False
    """It waits until proxies have seen what was done before it."""
    note: str = ""

    @property
    def text(self) -> str:
        name = f"{self.model} {self.version}".strip()
        source = f"{name} from {self.source.url}" if self.source is not None and self.source.url != name else name
        what = {
            Action.TRY: f"load {source} as {self.model}-{TRIAL}, to see whether it loads, and unload it",
            Action.REGISTER: f"register {source}, {_workers(self.options.workers)}",
            Action.SET_DEFAULT: f"make {name} the default version",
            Action.UNREGISTER: f"unregister {name}",
        }[self.action]
        return f"{self.instance}: {what}{self.note and f' ({self.note})'}"

    def as_json(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "action": self.action.value,
            "model": self.model,
            "version": self.version,
            **({} if self.source is None else {"archive": self.source.url, "workers": self.options.workers}),
            "note": self.note,
        }


def check_admins(admins: Sequence[str], instances: Sequence[str]) -> None:
    """Raise Unreachable, or Refused for a proxy that has none of these instances."""
    for admin in admins:
        ages = proxies.ask(admin).ages
        if not set(ages) & set(instances):
            raise Refused(
                f"the proxy at {admin} has none of these instances, but {', '.join(ages)}: give the addresses as it "
                "has them. Nothing was done"
            )


class Refused(ManagementError):
    """The plan cannot be carried out as things are; nothing was done."""


def look(client: ManagementClient) -> Hosted:
    models, defaults = {}, {}
    for name in client.models():
        versions = models[name.name] = tuple(client.describe_all(name.name))
        defaults[name.name] = (versions[0] if len(versions) == 1 else client.describe(name.name)).version
    return Hosted(client.url, models, defaults)


# ---- plans ---------------------------------------------------------------------------------------------------------


def plan_registration(fleet: Sequence[Hosted], sources: Sequence[Source], asked: Asked, replace: bool) -> list[Step]:
    """Raise Refused, which names every instance that is in the way."""
    if replace:
        return _plan_replacement(fleet, sources, asked)
    taken = [
        f"{hosted.url} has {source} already"
        for source in sources
        for hosted in fleet
        if source.archive and hosted.find(source.archive.model_name, source.archive.model_version)
    ]
    if taken:
        raise Refused(f"{'; '.join(taken)}: --replace it, or pack the archive with another --version. Nothing was done")
    return [_registration(hosted, source, asked) for source in sources for hosted in fleet]


def plan_unregistration(fleet: Sequence[Hosted], names: Sequence[str]) -> list[Step]:
    """`names`: NAME, or NAME/VERSION. What an instance does not have is left out; raise Refused if nobody has it."""
    steps = []
    wanted = [name.partition("/")[::2] for name in names]
    for hosted in fleet:
        leaving = {key for model, version in wanted for key in _leaving(hosted, model, version)}
        for model, version in sorted(leaving, key=lambda key: (key[0], key[1] == hosted.defaults[key[0]], key[1])):
            staying = [each.version for each in hosted.models[model] if (model, each.version) not in leaving]
            default = version == hosted.defaults[model]
            if default and staying:
                raise Refused(
                    f"{hosted.url}: {model} {version} is the default version, and TorchServe does not give it up while "
                    f"there is {' or '.join(staying)}: make another the default (PUT /models/{model}/VERSION/"
                    f"set-default), or unregister {model}/{staying[0]} too. Nothing was done"
                )
            old = hosted.find(model, version)
            steps.append(Step(hosted.url, Action.UNREGISTER, model, version, old=old, lasting=True, note=_busy(old)))
    for name, (model, version) in zip(names, wanted, strict=True):
        if not any(step.model == model and version in ("", step.version) for step in steps):
            raise Refused(f"no instance has {name.replace('/', ' ')}: {_there(fleet, model)}. Nothing was done")
    return steps


def _plan_replacement(fleet: Sequence[Hosted], sources: Sequence[Source], asked: Asked) -> list[Step]:
    tries: list[Step] = []
    registrations: list[Step] = []
    defaults: list[Step] = []
    removals: list[Step] = []
    for source in sources:
        archive = source.archive
        assert archive is not None, "what replaces another must be known"
        model, version = archive.model_name, archive.model_version
        elsewhere = sum(hosted.find(model, version) is not None for hosted in fleet) > 1
        for hosted in fleet:
            same, default = hosted.find(model, version), hosted.defaults.get(model)
            if same is not None:
                if default == version and len(hosted.models[model]) > 1:
                    others = ", ".join(each.version for each in hosted.models[model] if each.version != version)
                    raise Refused(
                        f"{hosted.url}: {model} {version} is the default beside {others}, so TorchServe would not let "
                        "its content be exchanged: pack the archive with another --version. Nothing was done"
                    )
                like = asked.options(archive, same)
                told = "" if elsewhere else "no other instance given has it: nobody serves it meanwhile"
                back = "" if same.url != source.url else "the file it came from is overwritten, so it cannot come back"
                tries.append(Step(hosted.url, Action.TRY, model, version, source, Options(workers=1)))
                registrations += [
                    Step(hosted.url, Action.UNREGISTER, model, version, None, like, same, settled=bool(registrations),
                         note="; ".join(filter(None, (_busy(same), back, told)))),
                    Step(hosted.url, Action.REGISTER, model, version, source, like, same, settled=True),
                ]  # fmt: skip
            elif default is None:
                registrations.append(_registration(hosted, source, asked))
            else:
                old = hosted.find(model, default)
                assert old is not None
                like = asked.options(archive, old)
                registrations.append(
                    Step(hosted.url, Action.REGISTER, model, version, source, like, note=f"beside {default}")
                )
                defaults.append(Step(hosted.url, Action.SET_DEFAULT, model, version, old=old, note=f"it was {default}"))
                removals.append(
                    Step(hosted.url, Action.UNREGISTER, model, default, old=old, lasting=True, settled=not removals)
                )
    return [*tries, *registrations, *defaults, *removals]


def _registration(hosted: Hosted, source: Source, asked: Asked) -> Step:
    options = asked.options(source.archive)
    if source.archive is None:
        return Step(
            hosted.url, Action.REGISTER, source.url, "", source, options, note="name and version not known here"
        )
    model, version = source.archive.model_name, source.archive.model_version
    default = hosted.defaults.get(model)
    note = "" if default is None else f"beside {default}, which stays the default"
    return Step(hosted.url, Action.REGISTER, model, version, source, options, note=note)


def _leaving(hosted: Hosted, model: str, version: str) -> list[tuple[str, str]]:
    versions = [each.version for each in hosted.models.get(model, ())]
    if not version and len(versions) > 1:
        raise Refused(
            f"{hosted.url} has {model} in versions {', '.join(versions)}: say which, as {model}/{versions[0]}. Nothing "
            "was done"
        )
    return [(model, each) for each in versions if version in ("", each)]


def _there(fleet: Sequence[Hosted], model: str) -> str:
    versions = sorted({each.version for hosted in fleet for each in hosted.models.get(model, ())})
    if versions:
        return f"there is {model} {' and '.join(versions)}"
    names = sorted({name for hosted in fleet for name in hosted.models})
    return f"there is {', '.join(names)}" if names else "they have no models"


def _busy(old: ModelDescription | None) -> str:
    return f"{old.pending_requests} requests wait for it" if old is not None and old.pending_requests else ""


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


# ---- what is done --------------------------------------------------------------------------------------------------


Say = Callable[[str], None]


@dataclass
class Rollout:
    """Carries out a plan. `said`: each result, as it comes; `told`: what is waited for and undone."""

    clients: Mapping[str, ManagementClient]
    said: Say
    told: Say
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    admins: Sequence[str] = ()
    """Admin ports of proxies, which are asked what they have seen; none: what they need for it is waited for."""
    done: list[Step] = field(default_factory=list)
    undone: bool = False
    _undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    _changed: dict[str, float] = field(default_factory=dict)
    """By instance: when the last change there was done."""
    _again: list[tuple[str, str]] = field(default_factory=list)
    """Instances that serve a version with other content now, each with its model."""
    _lasting: bool = False
    _certain: bool = False
    """TorchServe has said that the last step failed, so it will not come about later."""

    def carry_out(self, steps: Sequence[Step]) -> None:
        """Raise ManagementError, and whatever interrupts: then what was done is undone, and the error says so."""
        try:
            for step in steps:
                if step.settled:
                    self._settle()
                self._do(step)
                self._note(step)
                self.done.append(step)
        except Unreachable as error:  # an instance, or a proxy
            status = error.upstream_status if isinstance(error, ManagementError) else None
            self._certain = status is not None
            raise ManagementError(f"{error}. {self._ended(steps)}", status) from None
        except BaseException:
            self.told(f"interrupted. {self._ended(steps)}")
            raise

    def _note(self, step: Step) -> None:
        self._changed[step.instance] = self.clock()
        serves = (step.instance, f"{step.model}/{step.version}")
        if step.action is Action.REGISTER and step.old is not None and step.old.version == step.version:
            archive = step.source.archive if step.source is not None else None
            if step.options.workers and (archive is None or archive.role != "parity"):
                self._again.append(serves)
        elif step.action is Action.UNREGISTER and serves in self._again:
            self._again.remove(serves)

    def _settle(self) -> None:
        """Until proxies know what was done."""
        if not self.admins:
            self.told(f"waiting {SETTLE_S:g} s: by then every proxy has seen what was done")
            self.pause(SETTLE_S)
            return
        self.told("waiting until every proxy has seen what was done")
        ends_at = self.clock() + SEEN_S
        for admin in self.admins:
            while True:
                asked_at = self.clock()
                missing = proxies.ask(admin).missing(self._changed, self._again, asked_at)
                if not missing:
                    break
                if asked_at > ends_at:
                    raise ManagementError(f"the proxy at {admin} has not seen {missing} within {SEEN_S:g} s")
                self.pause(POLL_S)

    def _do(self, step: Step) -> None:
        client = self.clients[step.instance]
        if step.action is Action.TRY:
            self._try(client, step)
        elif step.action is Action.REGISTER:
            self._register(client, step)
        elif step.action is Action.SET_DEFAULT:
            old = step.old
            assert old is not None
            self._remember(
                f"make {old.name} {old.version} the default version on {client.url}",
                lambda: self._quietly(client.set_default, old.name, old.version),
            )
            self.said(f"{client.url}: {client.set_default(step.model, step.version)}")
        else:
            self._unregister(client, step)

    def _try(self, client: ManagementClient, step: Step) -> None:
        name = f"{step.model}-{TRIAL}"
        self._remember(f"unregister {name} on {client.url}", lambda: self._forget(client, name, step.version))
        self._load(client, step, name)
        client.unregister(name, step.version)
        self._undo.pop()

    def _register(self, client: ManagementClient, step: Step) -> None:
        if step.version:
            self._remember(
                f"unregister {step.model} {step.version} on {client.url}",
                lambda: self._forget(client, step.model, step.version),
            )
        else:
            before = _keys(look(client))
            self._remember(
                f"unregister what came from {step.model} on {client.url}",
                lambda: self._forget_news(client, before, step.model),
            )
        self.said(f"{client.url}: {self._load(client, step)}")

    def _unregister(self, client: ManagementClient, step: Step) -> None:
        old = step.old
        assert old is not None
        if step.lasting:
            self._lasting = True
            self._undo.clear()
            self._drain(client, old)
        else:
            self._remember(f"register {old.name} {old.version} on {client.url}", lambda: self._bring_back(client, old))
        self.said(f"{client.url}: {client.unregister(step.model, step.version)} (version {step.version})")

    def _load(self, client: ManagementClient, step: Step, name: str | None = None) -> str:
        """Register, and wait until it is READY and what it should be. -> TorchServe's message."""
        source, options = step.source, step.options
        assert source is not None
        archive = source.archive
        startup = 0 if archive is None else archive.config.get("startupTimeout")
        timeout_s = startup + 60.0 if isinstance(startup, (int, float)) else 0.0
        message = self._ask_to_register(client, source.url, name, options, max(LOAD_S, timeout_s))
        if found := _REGISTERED.search(message):
            model, version = found["model"], found["version"]
        elif archive is not None:  # "Workers scaling in progress..."
            model, version = name or archive.model_name, archive.model_version
        else:
            raise ManagementError(f"{client.url} answered {message!r} when {source.url} was registered")
        if archive is not None and (model, version) != (name or archive.model_name, archive.model_version):
            client.unregister(model, version)
            raise ManagementError(
                f"{client.url}: {source.url} in its model store holds {model} {version}, not {source} as "
                f"{archive.path} does: copy the file there"
            )
        if not options.workers:  # an archive without workers cannot say what it is
            return message
        self._wait_until_ready(client, model, version)
        if archive is not None and archive.section is not None:
            check_content(client, model, version, archive)
        return message

    def _wait_until_ready(self, client: ManagementClient, model: str, version: str) -> None:
        ends_at = self.clock() + READY_S
        while not (described := client.describe(model, version)).ready:
            if self.clock() > ends_at:
                raise ManagementError(f"{client.url}: {'; '.join(unready([described]))} after {READY_S:g} s")
            self.pause(POLL_S)

    def _drain(self, client: ManagementClient, old: ModelDescription) -> None:
        ends_at = self.clock() + DRAIN_S
        while client.describe(old.name, old.version).pending_requests and self.clock() < ends_at:
            self.pause(POLL_S)

    # ---- undoing ----------------------------------------------------------------------------------------------------

    def _remember(self, what: str, undo: Callable[[], None]) -> None:
        """Before the deed: what is interrupted may have been done."""
        if not self._lasting:
            self._undo.append((what, undo))

    def _ended(self, steps: Sequence[Step]) -> str:
        """Undo, the last first. -> how things are now."""
        if self._lasting and self.done:
            left = "; ".join(step.text for step in steps[len(self.done) :])
            return f"What was done stays. Still to do: {left}"
        if not self._undo:
            return "Nothing was changed"
        failed: list[str] = []
        self.undone = True
        while self._undo:
            what, undo = self._undo[-1]
            try:
                undo()
                self.told(f"undone: {what}")
            except ManagementError as error:
                failed.append(f"Not undone: {what}, for {error}")
            except BaseException:
                self.told("interrupted again; not undone: " + "; ".join(what for what, _ in reversed(self._undo)))
                raise
            self._undo.pop()
        return ". ".join(failed) if failed else "What was done is undone"

    def _quietly(self, act: Callable[..., str], *words: str) -> None:
        """What is not there any more need not be undone."""
        try:
            act(*words)
        except ManagementError as error:
            if error.upstream_status != NOT_FOUND:
                raise

    def _forget(self, client: ManagementClient, model: str, version: str) -> None:
        """Unregister what was asked to be registered; it may come about a little later than we gave up."""
        ends_at = self._patience()
        while True:
            hosted = look(client)
            if hosted.find(model, version) is not None:
                self._quietly(client.unregister, model, version)
                return
            if self.clock() >= ends_at:
                return
            self.pause(POLL_S)

    def _forget_news(self, client: ManagementClient, before: set[tuple[str, str]], url: str) -> None:
        ends_at = self._patience()
        while not (news := _keys(look(client)) - before) and self.clock() < ends_at:
            self.pause(POLL_S)
        for model, version in sorted(news):
            if client.describe(model, version).url == url:
                self._quietly(client.unregister, model, version)

    def _patience(self) -> float:
        """Until when something may still come about."""
        return self.clock() + (0.0 if self._certain else LATE_S)

    def _bring_back(self, client: ManagementClient, old: ModelDescription) -> None:
        if look(client).find(old.name, old.version) is not None:
            return
        self._ask_to_register(client, old.url, old.name, Options.of(old))

    def _ask_to_register(
        self, client: ManagementClient, url: str, name: str | None, options: Options, timeout_s: float = LOAD_S
    ) -> str:
        return client.register(
            url,
            name,
            batch_size=options.batch_size,
            max_batch_delay_ms=options.max_batch_delay_ms,
            initial_workers=options.workers,
            response_timeout_s=options.response_timeout_s,
            timeout_s=timeout_s,
        )


def _keys(hosted: Hosted) -> set[tuple[str, str]]:
    return {(each.name, each.version) for versions in hosted.models.values() for each in versions}


def check_content(client: ManagementClient, model: str, version: str, archive: Archive) -> None:
    """Raise ManagementError unless what is registered describes itself as this wrapped archive does."""
    said = client.describe(model, version, customized=True).customized
    ours = said.get(SECTION) if said else None
    if not isinstance(ours, dict):
        differing = ["it is not wrapped"]
    else:
        section = archive.section or {}
        here = {"weights": archive.weights(), **{key: section[key] for key in _SAID_TWICE if key in section}}
        differing = [
            f"{key}: {_short(ours.get(key))} there, {_short(value)} here"
            for key, value in here.items()
            if not _covers(ours.get(key), value)
        ]
    if differing:
        raise ManagementError(
            f"{client.url}: the {archive.path.name} in its model store is not {archive.path} ({'; '.join(differing)}): "
            "copy the file there"
        )


def _covers(said: Any, value: Any) -> bool:
    """Archives made by hand leave out what has a default."""
    if isinstance(said, dict) and isinstance(value, dict):
        return all(said.get(key) == value[key] for key in value)
    return bool(said == value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
