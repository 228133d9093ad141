"""Carries out a rollout plan step by step, and undoes what was done if a step fails.

Each step that can be undone is remembered before it is done. Between steps that would otherwise leave a model without
an instance, it waits until the proxies have seen what was done before.

Knows management APIs, archives and what proxies say. Plans are made in `rollout_plan`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts_parity.describe import ModelDescription
from ts_parity.errors import ManagementError, Unreachable
from ts_parity.torchserve import proxies
from ts_parity.torchserve.management import ManagementClient, unready
from ts_parity.torchserve.mar import SECTION, Archive
from ts_parity.torchserve.rollout_plan import (
    TRIAL,
    InstanceModels,
    ModelOptions,
    PlanRefused,
    RolloutStep,
    StepAction,
    look,
)
from ts_parity.wire import PROTECTION_FIELDS

SETTLE_S = 10.0
"""Proxies ask the instances every 5 s (`discovery_interval_s`), may wait 2 s for an answer, and ask a new worker what
it is: after this time they have seen the change. A proxy that has not seen a model go would wait for the queries it had
there, and one that does not use an instance again yet has none left when the next one goes.
"""
SEEN_S = 120.0
"""Time limit for a proxy to see a change: the requests of a busy one fail now and then."""
DRAIN_S = 60.0
"""Time limit for the queue of an old version to empty, once another is the default."""
READY_S = 30.0
"""TorchServe answers when workers are READY; time limit for its description to say so."""
LOAD_S = 180.0
"""TorchServe gives a worker 120 s to load its model (`startupTimeout`), and answers after that."""
LATE_S = 5.0
"""A request that got no answer may still be carried out, usually within this time."""
POLL_S = 0.2
NOT_FOUND, CONFLICT = 404, 409
_REGISTERED = re.compile(r'Model "(?P<model>.+)" Version: (?P<version>.+) registered with')
# What a wrapped archive declares in its section and repeats in describe.
_IN_DESCRIBE = ("role", *PROTECTION_FIELDS, "never_code")


Say = Callable[[str], None]


@dataclass
class Rollout:
    """Carries out a plan. `said` prints each result as it comes, `told` what it waits for and undoes."""

    clients: Mapping[str, ManagementClient]
    said: Say
    told: Say
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    admins: Sequence[str] = ()
    """Admin ports of proxies to ask what they have seen; none: wait as long as they need to see it."""
    done: list[RolloutStep] = field(default_factory=list)
    undone: bool = False
    _undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    _changed: dict[str, float] = field(default_factory=dict)
    """By instance: when the last change there was done."""
    _again: list[tuple[str, str]] = field(default_factory=list)
    """Instances that serve a version with other content now, each with its model."""
    _lasting: bool = False
    _certain: bool = False
    """TorchServe answered that the last step failed, so it cannot take effect later."""

    def carry_out(self, steps: Sequence[RolloutStep]) -> None:
        """Raise ManagementError, or the interruption. Before that the steps are undone, and the error says so."""
        try:
            for step in steps:
                if step.settled:
                    self._settle(step)
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

    def _note(self, step: RolloutStep) -> None:
        self._changed[step.instance] = self.clock()
        serves = (step.instance, f"{step.model}/{step.version}")
        if step.action is StepAction.REGISTER and step.old is not None and step.old.version == step.version:
            archive = step.source.archive if step.source is not None else None
            if step.options.workers and (archive is None or archive.role != "parity"):
                self._again.append(serves)
        elif step.action is StepAction.UNREGISTER and serves in self._again:
            self._again.remove(serves)

    def _settle(self, step: RolloutStep) -> None:
        """Wait until the proxies know what was done, and have another instance for what goes in this step."""
        if not self.admins:
            self.told(f"waiting {SETTLE_S:g} s: by then every proxy has seen what was done")
            self.pause(SETTLE_S)
            return
        self.told("waiting until every proxy has seen what was done")
        ends_at = self.clock() + SEEN_S
        while missing := self._unseen(step):
            if self.clock() > ends_at:
                raise ManagementError(f"after {SEEN_S:g} s, {missing}")
            self.pause(POLL_S)

    def _unseen(self, step: RolloutStep) -> str:
        """What one of the proxies has not seen yet."""
        for admin in self.admins:
            asked_at = self.clock()
            view = proxies.ask(admin)
            if missing := view.missing(self._changed, self._again, asked_at):
                return f"the proxy at {admin} has not seen {missing}"
            if missing := view.alone(step.instance, f"{step.model}/{step.version}", step.others):
                return f"the proxy at {admin} has not seen {missing}: name an instance that it does not use first"
        return ""

    def _do(self, step: RolloutStep) -> None:
        client = self.clients[step.instance]
        if step.action is StepAction.TRY:
            self._try(client, step)
        elif step.action is StepAction.REGISTER:
            self._register(client, step)
        elif step.action is StepAction.SET_DEFAULT:
            old = step.old
            assert old is not None
            self._remember(
                f"make {old.name} {old.version} the default version on {client.url}",
                lambda: self._quietly(client.set_default, old.name, old.version),
            )
            self.said(f"{client.url}: {client.set_default(step.model, step.version)}")
        else:
            self._unregister(client, step)

    def _try(self, client: ManagementClient, step: RolloutStep) -> None:
        name = f"{step.model}-{TRIAL}"
        self._remember(f"unregister {name} on {client.url}", lambda: self._forget(client, name, step.version))
        self._load(client, step, name)
        client.unregister(name, step.version)
        self._undo.pop()

    def _register(self, client: ManagementClient, step: RolloutStep) -> None:
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

    def _unregister(self, client: ManagementClient, step: RolloutStep) -> None:
        old = step.old
        assert old is not None
        if step.lasting:
            self._lasting = True
            self._undo.clear()
            self._drain(client, old)
        else:
            self._remember(f"register {old.name} {old.version} on {client.url}", lambda: self._bring_back(client, old))
        self.said(f"{client.url}: {client.unregister(step.model, step.version)} (version {step.version})")

    def _load(self, client: ManagementClient, step: RolloutStep, name: str | None = None) -> str:
        """Register, and wait until it is READY and what it should be. -> TorchServe's message."""
        source, options = step.source, step.options
        assert source is not None
        archive = source.archive
        startup = 0 if archive is None else archive.config.get("startupTimeout")
        timeout_s = startup + 60.0 if isinstance(startup, (int, float)) else 0.0
        try:
            message = self._ask_to_register(client, source.url, name, options, max(LOAD_S, timeout_s))
        except ManagementError as error:
            if error.upstream_status == CONFLICT and self._undo:
                self._undo.pop()  # it was there before, and is not ours to remove
                if name is not None:
                    raise ManagementError(
                        f"{client.url} has {name} already: another rollout is at work there, or was killed. If none "
                        f"is: ts-parity unregister --management {client.url} {name}",
                        CONFLICT,
                    ) from None
            raise
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
        """Called before each change: an interrupted request may have been carried out."""
        if not self._lasting:
            self._undo.append((what, undo))

    def _ended(self, steps: Sequence[RolloutStep]) -> str:
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
        """A model that is gone already need not be unregistered."""
        try:
            act(*words)
        except ManagementError as error:
            if error.upstream_status != NOT_FOUND:
                raise

    def _forget(self, client: ManagementClient, model: str, version: str) -> None:
        """Unregister a model whose registration failed here; TorchServe may still complete it a little later."""
        ends_at = self._patience()
        while True:
            instance = look(client)
            if instance.find(model, version) is not None:
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
        """Until when a request without an answer may still take effect."""
        return self.clock() + (0.0 if self._certain else LATE_S)

    def _bring_back(self, client: ManagementClient, old: ModelDescription) -> None:
        if look(client).find(old.name, old.version) is not None:
            return
        self._ask_to_register(client, old.url, old.name, ModelOptions.of(old))

    def _ask_to_register(
        self, client: ManagementClient, url: str, name: str | None, options: ModelOptions, timeout_s: float = LOAD_S
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


def _keys(instance: InstanceModels) -> set[tuple[str, str]]:
    return {(each.name, each.version) for versions in instance.models.values() for each in versions}


def check_content(client: ManagementClient, model: str, version: str, archive: Archive) -> None:
    """Raise ManagementError unless what is registered describes itself as this wrapped archive does."""
    said = client.describe(model, version, customized=True).customized
    ours = said.get(SECTION) if said else None
    if not isinstance(ours, dict):
        differing = ["it is not wrapped"]
    else:
        section = archive.section or {}
        here = {"weights": archive.weights(), **{key: section[key] for key in _IN_DESCRIBE if key in section}}
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


def check_admins(admins: Sequence[str], instances: Sequence[str]) -> None:
    """Raise Unreachable, or Refused for a proxy that has none of these instances."""
    for admin in admins:
        ages = proxies.ask(admin).ages
        if not set(ages) & set(instances):
            raise PlanRefused(
                f"the proxy at {admin} has none of these instances, but {', '.join(ages)}: give the addresses as it "
                "has them. Nothing was done"
            )
