"""Settings as they are given: a TOML file, then `TS_PARITY_*` variables, then flags; the later wins.

Whatever is wrong raises ConfigError with the setting, what it was and what is allowed. Knows nothing of what the
settings do.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ts_parity.arguments import is_one_word
from ts_parity.config.addresses import checked_url, host_and_port, next_port
from ts_parity.config.files import TomlFile
from ts_parity.config.removed import REMOVED
from ts_parity.config.schema import FIELDS, MANAGED, OF_POLICY, InstanceSettings, ModelSettings, Settings
from ts_parity.config.values import convert
from ts_parity.engine.policy import Policy
from ts_parity.errors import ConfigError

ENV_PREFIX = "TS_PARITY_"
_MOST_PROCESSES = 1024
"""More than a machine has cores: a slip of the finger does not fill its process table."""
# A Kubernetes service called "ts-parity" puts variables of these forms into every container beside it.
_KUBERNETES = re.compile(r"TS_PARITY_(SERVICE_(HOST|PORT)|PORT_\d+_|PORT$)")


DEFAULT, FILE, ENVIRONMENT, FLAG = "default", "file", "environment", "flag"


@dataclass(frozen=True)
class ValueOrigin:
    """Where a value came from. `where`: FILE:LINE, the variable or the flag."""

    kind: str = DEFAULT
    where: str = DEFAULT


Origins = Mapping[str, ValueOrigin]
"""Of settings by their names; one that is not there has its default."""


@dataclass(frozen=True)
class Configuration:
    """All that was given. Where `problems` are none, `settings` are complete; they are None otherwise."""

    settings: Settings | None
    problems: tuple[ConfigError, ...]
    origins: Origins
    instance_origins: tuple[Origins, ...]
    model_origins: tuple[Origins, ...]


@dataclass(frozen=True)
class ConfigSource:
    """Where a proxy's configuration is read from, at its start and again whenever it is told to: what its command line
    says, and the environment.
    """

    file: Path | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    endpoints: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def read(self) -> Configuration:
        return configuration(self.file, os.environ, self.flags, self.endpoints, self.models)


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    endpoints: Sequence[str] = (),
    models: Sequence[str] = (),
) -> Settings:
    """As `configuration` finds them. Raise the first of its problems."""
    found = configuration(file, environ, flags, endpoints, models)
    if found.settings is None:
        raise found.problems[0]
    return found.settings


def configuration(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    endpoints: Sequence[str] = (),
    models: Sequence[str] = (),
) -> Configuration:
    """File, then environment, then flags. `endpoints` (or TS_PARITY_ENDPOINTS) replace the file's instances,
    `models` (or TS_PARITY_MODELS) its models.
    """
    return _SettingsReader().read(file, environ or {}, flags or {}, endpoints, models)


class _SettingsReader:
    """Reads on after a mistake, so that all of them can be told at once."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins: dict[str, ValueOrigin] = {}
        self._instances: list[tuple[InstanceSettings, Origins]] = []
        self._models: list[tuple[ModelSettings, Origins]] = []
        self._problems: list[ConfigError] = []

    def read(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        flags: Mapping[str, str],
        endpoints: Sequence[str],
        models: Sequence[str],
    ) -> Configuration:
        if file is not None:
            with self._noted():
                self._read_file(TomlFile(file))
        self._read_environ(environ)
        if endpoints:
            self._read_instances(endpoints, ValueOrigin(FLAG, "--endpoint"))
        if models:
            self._read_models(models, ValueOrigin(FLAG, "--model"))
        for name, text in flags.items():
            flag = f"--{name.replace('_', '-')}"
            with self._noted():
                self._take(name, text, flag, ValueOrigin(FLAG, flag))
        settings = None
        if not self._problems:
            with self._noted():
                settings = self._settings()
                self._problems += _contradictions(settings)
        return Configuration(
            None if self._problems else settings,
            tuple(self._problems),
            self._origins,
            tuple(origins for _, origins in self._instances),
            tuple(origins for _, origins in self._models),
        )

    @contextmanager
    def _noted(self, line: int = 0) -> Iterator[None]:
        try:
            yield
        except ConfigError as problem:
            # In the words of the TOML parser, for what it finds itself.
            self._problems.append(ConfigError(f"{problem} (at line {line})") if line else problem)

    def _settings(self) -> Settings:
        instances = tuple(instance for instance, _ in self._instances)
        return settings_of(
            {**self._values, "instances": instances, "models": tuple(model for model, _ in self._models)}
        )

    def _take(self, name: str, given: Any, where: str, origin: ValueOrigin) -> None:
        self._values[name] = convert(FIELDS[name], given, where)
        self._origins[name] = origin

    def _read_file(self, file: TomlFile) -> None:
        for number, table in self._tables(file, "instance"):
            with self._noted(file.line_in_table("instance", number)):
                instance = _instance(table, f"{file.path}: [[instance]] {number}")
                self._instances.append((instance, _in_table(file, "instance", number, table)))
        for number, table in self._tables(file, "model"):
            with self._noted(file.line_in_table("model", number)):
                model = _model(table, f"{file.path}: [[model]] {number}")
                self._models.append((model, _in_table(file, "model", number, table)))
        for name, value in file.data.items():
            if name not in ("instance", "model"):
                with self._noted(file.line(name)):
                    _known(name, [*FIELDS, "instance", "model"], str(file.path))
                    self._take(name, value, f"{file.path}: {name}", _in_file(file, file.line(name)))

    def _tables(self, file: TomlFile, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        tables = file.data.get(name, [])
        with self._noted(file.line(name)):
            if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
                raise ConfigError(f"{file.path}: {name}s are tables [[{name}]], one each")
            yield from enumerate(tables, 1)

    def _read_environ(self, environ: Mapping[str, str]) -> None:
        for variable, text in environ.items():
            if not variable.startswith(ENV_PREFIX):
                continue
            if _KUBERNETES.match(variable) and (variable != "TS_PARITY_PORT" or text.startswith("tcp://")):
                continue
            name = variable[len(ENV_PREFIX) :].lower()
            origin = ValueOrigin(ENVIRONMENT, variable)
            with self._noted():
                _known(name, [*FIELDS, "endpoints", "models"], f"environment variable {variable}")
                if name == "endpoints":
                    self._read_instances(text.split(), origin)
                elif name == "models":
                    self._read_models(text.split(), origin)
                else:
                    self._take(name, text, name, origin)

    def _read_instances(self, texts: Sequence[str], origin: ValueOrigin) -> None:
        """In place of those before."""
        if texts:
            self._instances.clear()
        for text in texts:
            with self._noted():
                given = _options(text, "inference", "--endpoint", fields(InstanceSettings))
                instance = _instance(given, _quoted("--endpoint", given["inference"]))
                self._instances.append((instance, dict.fromkeys(given, origin)))

    def _read_models(self, texts: Sequence[str], origin: ValueOrigin) -> None:
        if texts:
            self._models.clear()
        for text in texts:
            with self._noted():
                given = _options(text, "name", "--model", fields(ModelSettings))
                model = _model(given, _quoted("--model", given["name"]))
                self._models.append((model, dict.fromkeys(given, origin)))


def _in_table(file: TomlFile, table: str, number: int, values: Mapping[str, Any]) -> Origins:
    return {name: _in_file(file, file.line_in_table(table, number, name)) for name in values}


def _in_file(file: TomlFile, line: int) -> ValueOrigin:
    return ValueOrigin(FILE, f"{file.path}:{line}" if line else str(file.path))


def _contradictions(settings: Settings) -> list[ConfigError]:
    """What is wrong with values that are right each by itself."""
    problems = []
    for check in (_check_listening, _check_peers, _check_models, _check_instances):
        try:
            check(settings)
        except ConfigError as problem:
            problems.append(problem)
    return problems


def _check_listening(settings: Settings) -> None:
    _both_or_neither(settings.tls_certificate, settings.tls_key, "")
    if settings.processes > _MOST_PROCESSES:
        raise ConfigError(f"processes must be a whole number of at most {_MOST_PROCESSES}, not {settings.processes}")
    for name in ("host", "admin_host"):
        if not is_one_word(getattr(settings, name)) or not getattr(settings, name):
            raise ConfigError(f"{name} must be an address to listen on (0.0.0.0: all), not {getattr(settings, name)!r}")
    if settings.metrics_address:
        host_and_port(settings.metrics_address)


def _check_peers(settings: Settings) -> None:
    if settings.peers and not settings.secret:
        raise ConfigError("peers needs a secret too, the same for all proxies: it tells them from clients")


def _check_models(settings: Settings) -> None:
    names = [f"{model.name},version={model.version}" if model.version else model.name for model in settings.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"model {twice[0]} is given twice")
    instances = {instance.name: instance for instance in settings.instances}
    for model in settings.models:
        for where, _ in model.students:
            if where and where not in instances:
                raise ConfigError(f"model {model.name}: list the instance of its student, {where}, as [[instance]] too")
        if not model.student and (model.exact or model.cost is not None or model.agreement is not None):
            raise ConfigError(f"model {model.name}: exact, cost and agreement say something of a student; name it")
        if model.student and all(instance.kind == MANAGED for instance in settings.instances):
            raise ConfigError(
                f"model {model.name}: TorchServe's archives tell their students; see `ts-parity register`"
            )
        if odd := [pointer for pointer in model.compare if not pointer.startswith("/")]:
            raise ConfigError(f"model {model.name}: compare takes JSON pointers, such as /output, not {odd[0]!r}")


def settings_of(values: Mapping[str, Any]) -> Settings:
    """From values by name, the policy's constants included. Raise ConfigError if one is impossible."""
    try:
        policy = Policy(**{name: value for name, value in values.items() if name in OF_POLICY})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Settings(policy=policy, **{name: value for name, value in values.items() if name not in OF_POLICY})


def parse_endpoint(text: str) -> InstanceSettings:
    """`URL[,management=URL][,domain=NAME][,token=KEY][,...]`: any key of an `[[instance]]` table."""
    given = _options(text, "inference", "--endpoint", fields(InstanceSettings))
    return _instance(given, _quoted("--endpoint", given["inference"]))


def parse_model(text: str) -> ModelSettings:
    """`NAME[,version=VERSION][,repeatable=false]`: any key of a `[[model]]` table."""
    given = _options(text, "name", "--model", fields(ModelSettings))
    return _model(given, _quoted("--model", given["name"]))


def _quoted(flag: str, given: str) -> str:
    """Without what stands before an @, which may be a password."""
    return f"{flag} {given.rpartition('@')[2]!r}"


def _options(text: str, first: str, flag: str, known: Sequence[Field[Any]]) -> dict[str, Any]:
    """Messages quote the first part and names, and no value: it may be a key, or the half of one that has a comma."""
    given, *options = text.split(",")
    values: dict[str, Any] = {first: given}
    for number, option in enumerate(options, 2):
        name, equals, value = option.partition("=")
        if not equals:
            which = repr(name) if name in {item.name for item in known} else f"part {number} of what commas separate"
            raise ConfigError(f"{_quoted(flag, given)}: {which} is not of the form key=value")
        values[name] = value
    return values


def _known(name: str, known: Sequence[str], where: str) -> None:
    if name in known:
        return
    if name in REMOVED and "protect" in known:
        raise ConfigError(f"{where}: {name} is no setting any more: {REMOVED[name]}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def _model(values: Mapping[str, Any], where: str) -> ModelSettings:
    converted = _converted(values, fields(ModelSettings), where)
    if not converted.get("name"):
        raise ConfigError(f"{where}: name, the model's name, is missing")
    if "/" in converted["name"] and not converted["name"].startswith("/"):  # a path is the name of a model too
        name, _, version = converted["name"].partition("/")
        raise ConfigError(f"{where}: a model's name has no slash; write {name},version={version}")
    return ModelSettings(**converted)


def _converted(values: Mapping[str, Any], items: Sequence[Field[Any]], where: str) -> dict[str, Any]:
    known = {item.name: item for item in items}
    converted = {}
    for name, value in values.items():
        _known(name, list(known), where)
        converted[name] = convert(known[name], value, f"{where}: {name}")
    return converted


def _instance(values: Mapping[str, Any], where: str) -> InstanceSettings:
    converted = _converted(values, fields(InstanceSettings), where)
    if not converted.get("inference"):
        raise ConfigError(f"{where}: inference, the address of the inference API, is missing")
    found = InstanceSettings(**converted)
    inference = checked_url(found.inference, f"{where}: inference")
    if found.kind != MANAGED:
        if found.management or found.management_token or found.management_token_file:
            raise ConfigError(f"{where}: management is TorchServe's; an instance of kind {found.kind} has none")
        management = ""
    elif found.management:
        management = checked_url(found.management, f"{where}: management")
    else:
        management = next_port(inference, where)
    _both_or_neither(found.tls_certificate, found.tls_key, f"{where}: ")
    if "https" not in (urlsplit(inference).scheme, urlsplit(management).scheme):
        for name in ("tls_ca", "tls_certificate"):
            if getattr(found, name):
                raise ConfigError(f"{where}: {name} is of no use: neither address is https")
    return replace(found, inference=inference, management=management, domain=found.domain or found.name)


def _both_or_neither(certificate: str, key: str, where: str) -> None:
    if bool(certificate) != bool(key):
        given, missing = ("tls_certificate", "tls_key") if certificate else ("tls_key", "tls_certificate")
        raise ConfigError(f"{where}{given} needs {missing} too")


def _check_instances(settings: Settings) -> None:
    if not settings.instances:
        raise ConfigError("no instances: give --endpoint http://HOST:PORT, or [[instance]] tables in a file")
    names = [instance.name for instance in settings.instances]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"instance {twice[0]} is given twice")
    for instance in settings.instances:
        _check_key_files(instance)


def _check_key_files(instance: InstanceSettings) -> None:
    """A file that is not there yet may come: TorchServe writes it when it starts, and takes it away when it stops."""
    for name, read in (("token_file", instance.inference_token), ("management_token_file", instance.management_key)):
        path = getattr(instance, name)
        try:
            if path and not os.path.isdir(os.path.dirname(path) or "."):
                raise ConfigError(f"{name}: {path!r} can never be: there is no folder {os.path.dirname(path)!r}")
            if path and os.path.exists(path):
                read()
        except ConfigError as error:
            raise ConfigError(f"instance {instance.name}: {error}") from None
