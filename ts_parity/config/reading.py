"""Settings as they are given: a TOML file, then `TS_PARITY_*` variables, then flags; the later wins.

Whatever is wrong raises ConfigError with the setting, what it was and what is allowed. Knows nothing of what the
settings do.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ts_parity.arguments import is_one_word
from ts_parity.config.addresses import checked_url, host_and_port, next_port
from ts_parity.config.removed import REMOVED
from ts_parity.config.schema import FIELDS, OF_POLICY, InstanceSettings, ModelSettings, Settings
from ts_parity.config.values import convert
from ts_parity.engine.policy import Policy
from ts_parity.errors import ConfigError

ENV_PREFIX = "TS_PARITY_"
_MOST_PROCESSES = 1024
"""More than a machine has cores: a slip of the finger does not fill its process table."""
# A Kubernetes service called "ts-parity" puts variables of these forms into every container beside it.
_KUBERNETES = re.compile(r"TS_PARITY_(SERVICE_(HOST|PORT)|PORT_\d+_|PORT$)")


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    endpoints: Sequence[str] = (),
    models: Sequence[str] = (),
) -> Settings:
    """File, then environment, then flags. `endpoints` (or TS_PARITY_ENDPOINTS) replace the file's instances,
    `models` (or TS_PARITY_MODELS) its models.
    """
    values: dict[str, Any] = {} if file is None else _from_file(file)
    from_env = _from_environ({} if environ is None else environ)
    in_env = from_env.pop("endpoints", "").split()
    if endpoints or in_env:
        values["instances"] = tuple(parse_endpoint(text) for text in (endpoints or in_env))
    models = models or from_env.pop("models", "").split()
    from_env.pop("models", None)
    if models:
        values["models"] = tuple(parse_model(text) for text in models)
    for origin, given in (("", from_env), ("--", flags or {})):
        for name, text in given.items():
            values[name] = convert(FIELDS[name], text, f"{origin}{name.replace('_', '-') if origin else name}")
    settings = settings_of(values)
    _both_or_neither(settings.tls_certificate, settings.tls_key, "")
    if settings.processes > _MOST_PROCESSES:
        raise ConfigError(f"processes must be a whole number of at most {_MOST_PROCESSES}, not {settings.processes}")
    for name in ("host", "admin_host"):
        if not is_one_word(getattr(settings, name)) or not getattr(settings, name):
            raise ConfigError(f"{name} must be an address to listen on (0.0.0.0: all), not {getattr(settings, name)!r}")
    if settings.metrics_address:
        host_and_port(settings.metrics_address)
    if settings.peers and not settings.secret:
        raise ConfigError("peers needs a secret too, the same for all proxies: it tells them from clients")
    names = [f"{model.name},version={model.version}" if model.version else model.name for model in settings.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"model {twice[0]} is given twice")
    return replace(settings, instances=_checked(settings.instances))


def settings_of(values: Mapping[str, Any]) -> Settings:
    """From values by name, the policy's constants included. Raise ConfigError if one is impossible."""
    try:
        policy = Policy(**{name: value for name, value in values.items() if name in OF_POLICY})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Settings(policy=policy, **{name: value for name, value in values.items() if name not in OF_POLICY})


def parse_endpoint(text: str) -> InstanceSettings:
    """`URL[,management=URL][,domain=NAME][,token=KEY][,...]`: any key of an `[[instance]]` table."""
    return _instance(_options(text, "inference", "--endpoint"), f"--endpoint {text!r}")


def _options(text: str, first: str, flag: str) -> dict[str, Any]:
    given, *options = text.split(",")
    values: dict[str, Any] = {first: given}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {text!r}: {option!r} is not of the form key=value")
        values[name] = value
    return values


def parse_model(text: str) -> ModelSettings:
    """`NAME[,version=VERSION][,repeatable=false]`: any key of a `[[model]]` table."""
    return _model(_options(text, "name", "--model"), f"--model {text!r}")


def _from_file(path: Path) -> dict[str, Any]:
    # Here and not above: before Python 3.11 this is a package to install, and only a file needs it.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a whole number of thousands of digits is a ValueError too
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    tables, models = _tables(data, "instance", path), _tables(data, "model", path)
    values: dict[str, Any] = {}
    for name, value in data.items():
        _known(name, [*FIELDS, "instance", "model"], str(path))
        values[name] = convert(FIELDS[name], value, f"{path}: {name}")
    instances = [_instance(table, f"{path}: [[instance]] {n}") for n, table in enumerate(tables, 1)]
    values["models"] = tuple(_model(table, f"{path}: [[model]] {n}") for n, table in enumerate(models, 1))
    return {**values, "instances": tuple(instances)}


def _tables(data: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    tables = data.pop(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: {name}s are tables [[{name}]], one each")
    return tables


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        if _KUBERNETES.match(variable) and (variable != "TS_PARITY_PORT" or text.startswith("tcp://")):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        _known(name, [*FIELDS, "endpoints", "models"], f"environment variable {variable}")
        values[name] = text
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
    if "/" in converted["name"]:
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
    if found.management:
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


def _checked(instances: tuple[InstanceSettings, ...]) -> tuple[InstanceSettings, ...]:
    if not instances:
        raise ConfigError("no instances: give --endpoint http://HOST:PORT, or [[instance]] tables in a file")
    names = [instance.name for instance in instances]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"instance {twice[0]} is given twice")
    for instance in instances:
        _check_key_files(instance)
    return instances


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
