"""What a rollout will do: what instances have, what is wanted, and the steps from the one to the other.

A plan is data: steps, each for one instance, made from what the instances have (`look`) and what is wanted. The whole
plan stands before anything is changed, so `--dry-run` can show it, and whatever can be refused is refused beforehand.

A new version replaces the default one in three passes over all instances: it is registered beside the old one, and its
workers are READY; it becomes the default; the old one is unregistered. Every instance serves at each instant, and until
the last pass everything can be undone. The same version with other content cannot stand beside itself. So each instance
first loads it under another name, since a load that fails must not cost the old one, and is then without the model
while it loads, one instance after another.

Knows what instances host. Changes nothing: `rollout` carries plans out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ts_parity.describe import ModelDescription
from ts_parity.errors import ManagementError
from ts_parity.torchserve.management import ManagementClient
from ts_parity.torchserve.mar import Archive

TRIAL = "ts-parity-trial"
"""Added to a model's name while its archive is loaded to see whether it loads."""


@dataclass(frozen=True)
class RequestedOptions:
    """The registration options on the command line; None: not given."""

    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None

    def options(self, archive: Archive | None = None, replaced: ModelDescription | None = None) -> ModelOptions:
        """What is not given comes from the archive, or else from the version that it replaces."""
        said = {} if archive is None else archive.config
        before = ModelOptions() if replaced is None else ModelOptions.of(replaced)

        def chosen(key: str, requested: int | None, else_: int | None) -> int | None:
            return requested if requested is not None else None if key in said else else_

        return ModelOptions(
            before.workers if self.workers is None else self.workers,
            chosen("batchSize", self.batch_size, before.batch_size),
            chosen("maxBatchDelay", self.max_batch_delay_ms, before.max_batch_delay_ms),
            chosen("responseTimeout", None, before.response_timeout_s),
        )


class StepAction(str, Enum):
    TRY = "try"
    REGISTER = "register"
    SET_DEFAULT = "set-default"
    UNREGISTER = "unregister"


@dataclass(frozen=True)
class InstanceModels:
    """What one instance has: every version of every model, and the default versions."""

    url: str
    models: Mapping[str, tuple[ModelDescription, ...]]
    defaults: Mapping[str, str]

    def find(self, model: str, version: str) -> ModelDescription | None:
        return next((each for each in self.models.get(model, ()) if each.version == version), None)


@dataclass(frozen=True)
class ArchiveSource:
    """What to register. `url`: a file in the model store, or an address. `archive`: the file it must be, if known."""

    url: str
    archive: Archive | None = None

    def __str__(self) -> str:
        return self.url if self.archive is None else f"{self.archive.model_name} {self.archive.model_version}"


@dataclass(frozen=True)
class ModelOptions:
    """How a model is registered. None: as the archive says, as the one that it replaces has it, or TorchServe's own."""

    workers: int = 1
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None

    @classmethod
    def of(cls, described: ModelDescription) -> ModelOptions:
        return cls(
            described.min_workers,
            described.batch_size,
            described.max_batch_delay_ms,
            described.response_timeout_s or None,
        )


@dataclass(frozen=True)
class RolloutStep:
    """One change on one instance. `old`: what it replaces or removes. `note`: for the reader of the plan."""

    instance: str
    action: StepAction
    model: str
    version: str
    source: ArchiveSource | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    old: ModelDescription | None = None
    lasting: bool = False
    """It is not undone, and neither is anything before it."""
    settled: bool = False
    """It waits until proxies have seen what was done before it."""
    others: tuple[str, ...] = ()
    """Instances that serve meanwhile what it unregisters only to register it with other content."""
    note: str = ""

    @property
    def text(self) -> str:
        name = f"{self.model} {self.version}".strip()
        source = f"{name} from {self.source.url}" if self.source is not None and self.source.url != name else name
        what = {
            StepAction.TRY: f"load {source} as {self.model}-{TRIAL}, to see whether it loads, and unload it",
            StepAction.REGISTER: f"register {source}, {_workers(self.options.workers)}",
            StepAction.SET_DEFAULT: f"make {name} the default version",
            StepAction.UNREGISTER: f"unregister {name}",
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


class PlanRefused(ManagementError):
    """The plan cannot be carried out as things are; nothing was done."""


def look(client: ManagementClient) -> InstanceModels:
    models, defaults = {}, {}
    for name in client.models():
        versions = models[name.name] = tuple(client.describe_all(name.name))
        defaults[name.name] = (versions[0] if len(versions) == 1 else client.describe(name.name)).version
    return InstanceModels(client.url, models, defaults)


# ---- plans ---------------------------------------------------------------------------------------------------------


def plan_registration(
    fleet: Sequence[InstanceModels], sources: Sequence[ArchiveSource], requested: RequestedOptions, replace: bool
) -> list[RolloutStep]:
    """Raise Refused, which names every instance that is in the way."""
    if replace:
        return _plan_replacement(fleet, sources, requested)
    taken = [
        f"{instance.url} has {source} already"
        for source in sources
        for instance in fleet
        if source.archive and instance.find(source.archive.model_name, source.archive.model_version)
    ]
    if taken:
        raise PlanRefused(
            f"{'; '.join(taken)}: --replace it, or pack the archive with another --version. Nothing was done"
        )
    return [_registration(instance, source, requested) for source in sources for instance in fleet]


def plan_unregistration(fleet: Sequence[InstanceModels], names: Sequence[str]) -> list[RolloutStep]:
    """`names`: NAME, or NAME/VERSION. What an instance does not have is left out; raise Refused if nobody has it."""
    steps = []
    wanted = [name.partition("/")[::2] for name in names]
    for instance in fleet:
        leaving = {key for model, version in wanted for key in _leaving(instance, model, version)}
        for model, version in sorted(leaving, key=lambda key: (key[0], key[1] == instance.defaults[key[0]], key[1])):
            staying = [each.version for each in instance.models[model] if (model, each.version) not in leaving]
            default = version == instance.defaults[model]
            if default and staying:
                raise PlanRefused(
                    f"{instance.url}: {model} {version} is the default version, and TorchServe keeps that while "
                    f"there is {' or '.join(staying)}: make another the default (PUT /models/{model}/VERSION/"
                    f"set-default), or unregister {model}/{staying[0]} too. Nothing was done"
                )
            old = instance.find(model, version)
            steps.append(
                RolloutStep(instance.url, StepAction.UNREGISTER, model, version, old=old, lasting=True, note=_busy(old))
            )
    for name, (model, version) in zip(names, wanted, strict=True):
        if not any(step.model == model and version in ("", step.version) for step in steps):
            raise PlanRefused(f"no instance has {name.replace('/', ' ')}: {_there(fleet, model)}. Nothing was done")
    return steps


def _plan_replacement(
    fleet: Sequence[InstanceModels], sources: Sequence[ArchiveSource], requested: RequestedOptions
) -> list[RolloutStep]:
    tries: list[RolloutStep] = []
    registrations: list[RolloutStep] = []
    defaults: list[RolloutStep] = []
    removals: list[RolloutStep] = []
    for source in sources:
        archive = source.archive
        assert archive is not None, "what replaces another must be known"
        model, version = archive.model_name, archive.model_version
        having = {instance.url: there for instance in fleet if (there := instance.find(model, version)) is not None}
        serving = [url for url, there in having.items() if there.min_workers and there.ready]
        for instance in fleet:
            same, default = instance.find(model, version), instance.defaults.get(model)
            if same is not None:
                if default == version and len(instance.models[model]) > 1:
                    beside = ", ".join(each.version for each in instance.models[model] if each.version != version)
                    raise PlanRefused(
                        f"{instance.url}: {model} {version} is the default beside {beside}, so TorchServe would refuse "
                        "to replace its content: pack the archive with another --version. Nothing was done"
                    )
                like = requested.options(archive, same)
                told = "" if len(having) > 1 else "no other instance given has it: nobody serves it meanwhile"
                back = "" if same.url != source.url else "the file it came from is overwritten, so it cannot come back"
                tries.append(RolloutStep(instance.url, StepAction.TRY, model, version, source, ModelOptions(workers=1)))
                note = "; ".join(filter(None, (_busy(same), back, told)))
                others = tuple(url for url in serving if url != instance.url) if like.workers else ()
                waits = bool(registrations or others)
                registrations += [
                    RolloutStep(
                        instance.url,
                        StepAction.UNREGISTER,
                        model,
                        version,
                        None,
                        like,
                        same,
                        settled=waits,
                        others=others,
                        note=note,
                    ),
                    RolloutStep(instance.url, StepAction.REGISTER, model, version, source, like, same, settled=True),
                ]
            elif default is None:
                registrations.append(_registration(instance, source, requested))
            else:
                old = instance.find(model, default)
                assert old is not None
                like = requested.options(archive, old)
                registrations.append(
                    RolloutStep(
                        instance.url, StepAction.REGISTER, model, version, source, like, note=f"beside {default}"
                    )
                )
                defaults.append(
                    RolloutStep(instance.url, StepAction.SET_DEFAULT, model, version, old=old, note=f"it was {default}")
                )
                removals.append(
                    RolloutStep(
                        instance.url,
                        StepAction.UNREGISTER,
                        model,
                        default,
                        old=old,
                        lasting=True,
                        settled=not removals,
                    )
                )
    return [*tries, *registrations, *defaults, *removals]


def _registration(instance: InstanceModels, source: ArchiveSource, requested: RequestedOptions) -> RolloutStep:
    options = requested.options(source.archive)
    if source.archive is None:
        return RolloutStep(
            instance.url,
            StepAction.REGISTER,
            source.url,
            "",
            source,
            options,
            note="name and version not known here",
        )
    model, version = source.archive.model_name, source.archive.model_version
    default = instance.defaults.get(model)
    note = "" if default is None else f"beside {default}, which stays the default"
    return RolloutStep(instance.url, StepAction.REGISTER, model, version, source, options, note=note)


def _leaving(instance: InstanceModels, model: str, version: str) -> list[tuple[str, str]]:
    versions = [each.version for each in instance.models.get(model, ())]
    if not version and len(versions) > 1:
        raise PlanRefused(
            f"{instance.url} has {model} in versions {', '.join(versions)}: say which, as {model}/{versions[0]}. "
            "Nothing was done"
        )
    return [(model, each) for each in versions if version in ("", each)]


def _there(fleet: Sequence[InstanceModels], model: str) -> str:
    versions = sorted({each.version for instance in fleet for each in instance.models.get(model, ())})
    if versions:
        return f"there is {model} {' and '.join(versions)}"
    names = sorted({name for instance in fleet for name in instance.models})
    return f"there is {', '.join(names)}" if names else "they have no models"


def _busy(old: ModelDescription | None) -> str:
    return f"{old.pending_requests} requests wait for it" if old is not None and old.pending_requests else ""


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"
