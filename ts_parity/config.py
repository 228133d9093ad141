"""Settings of the proxy: one frozen dataclass field is a setting's name, default, unit, limits and help.

Those of the policy are the engine's own (`engine.policy.Policy`); the others are here. The TOML file, the environment,
the flags and docs/settings.md are all made from these fields, and the later wins: file, then `TS_PARITY_*`, then flags.
Whatever is wrong raises ConfigError with the setting, what it was and what is allowed.
Knows nothing of what the settings do.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ts_parity.arguments import A_KEY, LARGEST, is_key, is_one_word
from ts_parity.engine.policy import Policy, setting
from ts_parity.errors import ConfigError
from ts_parity.former import FORMER
from ts_parity.keys import read_key

UNIX = "unix:"
"""Before a path: the address of a Unix socket, as TorchServe writes it."""
ENV_PREFIX = "TS_PARITY_"
_MOST_PROCESSES = 1024
"""More than a machine has cores: a slip of the finger does not fill its process table."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
# A Kubernetes service called "ts-parity" puts variables of these forms into every container beside it.
_KUBERNETES = re.compile(r"TS_PARITY_(SERVICE_(HOST|PORT)|PORT_\d+_|PORT$)")
# What sockaddr_un holds, less the zero at its end.
_LONGEST_SOCKET = 107
AUTO = "auto"
EXACT_ONLY, OFF = "exact-only", "off"
CODES = ("sum", "concat", "student", "exact")
"""The codes there are, for command lines that must not import numpy to say so; `codes` makes them."""


@dataclass(frozen=True)
class InstanceSettings:
    """One TorchServe instance. In TOML a table `[[instance]]`, on the command line an `--endpoint`."""

    inference: str = setting(
        MISSING, "address of the inference API, such as http://10.0.0.5:8080, https://ts1:8443 or unix:/run/ts1.sock"
    )
    management: str = setting("", "address of the management API; default: same host, the inference port + 1")
    domain: str = setting("", "failure domain (machine, rack, zone); default: the instance itself")
    token: str = setting("", "TorchServe's inference key", secret=True)
    token_file: str = setting("", "file with the inference key, or TorchServe's key_file.json; read again regularly")
    management_token: str = setting("", "TorchServe's management key", secret=True)
    management_token_file: str = setting("", "file with the management key, or TorchServe's key_file.json")
    places: int | None = setting(
        None,
        "at most so many in flight, over all its models; default: READY workers x batch size, each",
        unit="requests",
        least=1,
        auto=int,
    )
    tls_ca: str = setting(
        "",
        "PEM file, or folder of such files, with the certificates to trust at https addresses; default: the system's",
    )
    tls_verify: bool = setting(True, "false: take any certificate at https addresses, as in a test")
    tls_certificate: str = setting("", "PEM file with the certificate to show to an instance that asks for one")
    tls_key: str = setting("", "PEM file with its private key, not encrypted")

    @property
    def name(self) -> str:
        return urlsplit(self.inference).netloc or self.inference.removeprefix(UNIX)

    def inference_token(self) -> str:
        """Raise ConfigError if a token file cannot be read."""
        return self.token or _read_token(self.token_file, "inference", "token_file")

    def management_key(self) -> str:
        return self.management_token or _read_token(self.management_token_file, "management", "management_token_file")


@dataclass(frozen=True)
class ModelSettings:
    """What must be said of a model because nobody can see it. In TOML a table `[[model]]`, on the command line a
    `--model`.
    """

    name: str = setting(MISSING, "the model's name, as clients ask for it")
    version: str = setting("", "this version only; default: every version")
    repeatable: bool = setting(
        True,
        "false: it answers otherwise when it is asked again, or keeps what it was asked: a query is run once, with no "
        "second copy, no protection, and no second attempt once it may have been run",
    )


@dataclass(frozen=True)
class Settings:
    """Everything `ts-parity serve` can be told."""

    instances: tuple[InstanceSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    vouch: bool = setting(
        False,
        "show our keys for clients with keys of their own",
        "a key of a client's own is checked by nobody then; false: only for clients that bring none",
        group="endpoints",
    )
    discovery_interval_s: float = setting(5.0, "how often the fleet is looked at", unit="s", least=0.05)
    describe_timeout_s: float = setting(2.0, "a management request has failed by then", unit="s", least=0.01)
    connect_timeout_s: float = setting(2.0, "an instance is unreachable by then", unit="s", least=0.01)
    task_timeout_s: float = setting(
        130.0, "a task has failed by then", "TorchServe's own response timeout is 120 s", unit="s", least=0.01
    )
    secret: str = setting("", "sent with every operation of ours", "the archives must declare the same", secret=True)
    host: str = setting("127.0.0.1", "address of the inference port; 0.0.0.0 for all", group="listening and TLS")
    port: int = setting(8080, "inference port; 0: a free one", unit="port", below=65536)
    processes: int = setting(
        1,
        "proxies on the one port",
        "each with queues, groups and budgets of its own and a share of all places",
        unit="processes",
        least=1,
    )
    tls_certificate: str = setting(
        "", "PEM file with a chain: speak https only", "the inference port's certificate and what follows it"
    )
    tls_key: str = setting("", "PEM file with its key, not encrypted", "both are read again when they change")
    max_body_bytes: int = setting(
        6_553_500, "larger requests are refused with 413", "as TorchServe does", unit="bytes", least=1
    )
    protect: str = setting(
        AUTO,
        "auto, exact-only, off, or a code's name",
        "auto: of the protections registered for a model the one that promises most; exact-only: of those that lose "
        "nothing; off: none, only second copies; or the one code to use: sum, concat or student",
        group="policy",
        words=(AUTO, EXACT_ONLY, OFF, *(code for code in CODES if code != "exact")),
    )
    group_by: tuple[str, ...] = setting(
        (), "headers that change what the model computes", "queries that differ in them never share a group"
    )
    policy: Policy = Policy()  # noqa: RUF009 (frozen)
    default_answer: str = setting("", "file with an answer to give instead of 504")
    default_answer_type: str = setting("application/json", "its content type")
    admin_host: str = setting("127.0.0.1", "address of the admin port", "it speaks plain http", group="operations")
    admin_port: int = setting(8090, "status, metrics, health, drain; 0: a free one", unit="port", below=65536)
    admin_token: str = setting("", "key without which the admin port takes no action", "such as a drain", secret=True)
    metrics_address: str = setting(
        "", "HOST:PORT of a second port, only to be read", "for /metrics, /health, /livez and /readyz"
    )
    access_log: str = setting(
        "", "file for a JSON line a request; -: stderr", "and a line for each task that outlives its request"
    )
    drain_delay_s: float = setting(
        0.0,
        "/readyz is 503 so long before a drain begins",
        "so that balancers notice before connections are refused",
        unit="s",
    )
    drain_s: float = setting(30.0, "how long requests in flight may take to finish", "after that delay", unit="s")

    def read_default_answer(self) -> bytes | None:
        """The default answer's bytes, or None if none is configured."""
        if not self.default_answer:
            return None
        try:
            return Path(self.default_answer).read_bytes()
        except OSError as error:
            raise ConfigError(f"default_answer: cannot read {self.default_answer!r}: {error.strerror}") from None


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
            values[name] = _convert(_FIELDS[name], text, f"{origin}{name.replace('_', '-') if origin else name}")
    settings = settings_of(values)
    _both_or_neither(settings.tls_certificate, settings.tls_key, "")
    if settings.processes > _MOST_PROCESSES:
        raise ConfigError(f"processes must be a whole number of at most {_MOST_PROCESSES}, not {settings.processes}")
    for name in ("host", "admin_host"):
        if not is_one_word(getattr(settings, name)) or not getattr(settings, name):
            raise ConfigError(f"{name} must be an address to listen on (0.0.0.0: all), not {getattr(settings, name)!r}")
    if settings.metrics_address:
        host_and_port(settings.metrics_address)
    names = [f"{model.name},version={model.version}" if model.version else model.name for model in settings.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"model {twice[0]} is given twice")
    return replace(settings, instances=_checked(settings.instances))


def settings_of(values: Mapping[str, Any]) -> Settings:
    """From values by name, also of the policy what users cannot set. Raise ConfigError if one is impossible."""
    try:
        policy = Policy(**{name: value for name, value in values.items() if name in _OF_POLICY})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Settings(policy=policy, **{name: value for name, value in values.items() if name not in _OF_POLICY})


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


def host_and_port(address: str) -> tuple[str, int]:
    """Raise ConfigError."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port is not None and parts.netloc == address and "@" not in address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"metrics_address must be like 0.0.0.0:9090 or [::]:9090, not {address!r}")


def parse_model(text: str) -> ModelSettings:
    """`NAME[,version=VERSION][,repeatable=false]`: any key of a `[[model]]` table."""
    return _model(_options(text, "name", "--model"), f"--model {text!r}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, with its default in place of a value; a flag that is not given is None, so that it does not
    win over file or environment.
    """
    groups = {group.title: group for group in parser._action_groups}
    for title, items in GROUPS.items():
        group = groups.get(title) or parser.add_argument_group(title)
        for item in items:
            default = "KEY" if item.metadata["secret"] else _show(item.default)
            text = item.metadata["text"].replace("%", "%%")
            group.add_argument(f"--{item.name.replace('_', '-')}", dest=item.name, metavar=default, help=text)
    for name in FORMER:
        group.add_argument(f"--{name.replace('_', '-')}", nargs="?", action=_Former, help=argparse.SUPPRESS)


class _Former(argparse.Action):
    """A flag of earlier versions: says what to type instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, flag: Any = None) -> None:
        raise ConfigError(f"{flag} is no flag any more: {FORMER[self.dest]}")


def given_flags(args: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(args, name) for name in _FIELDS if getattr(args, name, None) is not None}


def settings_markdown() -> str:
    """docs/settings.md, whole."""
    lines = [
        "# Settings of the proxy",
        "",
        "Made by `python -m ts_parity.config` from the fields in `ts_parity/config.py` and `engine/policy.py`;",
        "do not edit by hand. What the policy does without any of them is in [Policy](policy.md#the-recipe).",
        "",
        "A TOML file (`ts-parity serve --config FILE`), then environment variables, then flags; the later wins.",
        "A setting `deadline_s` is `deadline_s = 2.0` in the file, `TS_PARITY_DEADLINE_S=2.0` in the environment and",
        "`--deadline-s 2.0` on the command line. Lists are separated by commas there. Unknown names are errors, and",
        "for a name of an earlier version the error says what replaces it.",
        "",
        *(
            line
            for title, items in GROUPS.items()
            for line in (f"## {title[0].upper()}{title[1:]}", "", *_table(items), "")
        ),
        "## `[[instance]]`, `--endpoint`",
        "",
        "One table per TorchServe instance in the file, or one `--endpoint URL[,key=value]...` each on the command",
        "line, or all of them, separated by blanks, in `TS_PARITY_ENDPOINTS`.",
        "",
        *_table(list(fields(InstanceSettings))),
        "",
        "## `[[model]]`, `--model`",
        "",
        "One table per model in the file, or one `--model NAME[,key=value]...` each on the command line, or all of",
        "them, separated by blanks, in `TS_PARITY_MODELS`. Most models need none.",
        "",
        *_table(list(fields(ModelSettings))),
        "",
    ]
    return "\n".join(lines)


def _by_group() -> dict[str, list[Field[Any]]]:
    """Each setting once, the policy's where the policy stands, under the heading that it or one before it has."""
    items: list[Field[Any]] = []
    for item in fields(Settings):
        items += fields(Policy) if item.name == "policy" else [item]
    groups: dict[str, list[Field[Any]]] = {}
    title = ""
    for item in items:
        if "text" in item.metadata:
            title = item.metadata["group"] or title
            groups.setdefault(title, []).append(item)
    return groups


GROUPS = _by_group()
"""What readers look for together: heading -> settings."""
_FIELDS = {item.name: item for items in GROUPS.values() for item in items}
_OF_POLICY = {item.name for item in fields(Policy)} - {item.name for item in fields(Settings)}


def _table(items: Sequence[Field[Any]]) -> list[str]:
    rows = ["| setting | default | unit | what it is |", "|---|---|---|---|"]
    for item in items:
        told = (item.metadata["text"], item.metadata["more"])
        default = "required" if item.default is MISSING else f"`{_show(item.default)}`"
        rows.append(f"| `{item.name}` | {default} | {item.metadata['unit']} | {'; '.join(filter(None, told))} |")
    return rows


def _show(default: Any) -> str:
    if default is None:
        return AUTO
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    if isinstance(default, bool):
        return "true" if default else "false"
    return str(default) if default != "" else "none"


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
        _known(name, [*_FIELDS, "instance", "model"], str(path))
        values[name] = _convert(_FIELDS[name], value, f"{path}: {name}")
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
        _known(name, [*_FIELDS, "endpoints", "models"], f"environment variable {variable}")
        values[name] = text
    return values


def _known(name: str, known: Sequence[str], where: str) -> None:
    if name in known:
        return
    if name in FORMER and "protect" in known:
        raise ConfigError(f"{where}: {name} is no setting any more: {FORMER[name]}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def _model(values: Mapping[str, Any], where: str) -> ModelSettings:
    converted = _converted(values, fields(ModelSettings), where)
    if not converted.get("name"):
        raise ConfigError(f"{where}: name, the model's name, is missing")
    if "/" in converted["name"]:
        name, _, version = converted["name"].partition("/")
        raise ConfigError(f"{where}: a model's name has no slash; its version is told apart: {name},version={version}")
    return ModelSettings(**converted)


def _converted(values: Mapping[str, Any], items: Sequence[Field[Any]], where: str) -> dict[str, Any]:
    known = {item.name: item for item in items}
    converted = {}
    for name, value in values.items():
        _known(name, list(known), where)
        converted[name] = _convert(known[name], value, f"{where}: {name}")
    return converted


def _instance(values: Mapping[str, Any], where: str) -> InstanceSettings:
    converted = _converted(values, fields(InstanceSettings), where)
    if not converted.get("inference"):
        raise ConfigError(f"{where}: inference, the address of the inference API, is missing")
    found = InstanceSettings(**converted)
    inference = _url(found.inference, f"{where}: inference")
    management = _url(found.management, f"{where}: management") if found.management else _next_port(inference, where)
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


def _url(text: str, where: str) -> str:
    if text.startswith(UNIX) and text.isprintable():
        return _unix(text, where)
    if not is_one_word(text):
        raise ConfigError(f"{where} {text!r} is not an address: it holds blanks, or what cannot be printed")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{where} {text!r} is not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{where} must be like http://HOST:PORT or unix:/PATH, not {text!r}")
    if parts.path not in ("", "/"):
        raise ConfigError(f"{where} {text!r} has a path; TorchServe's APIs are at the root of their port")
    return f"{parts.scheme}://{parts.netloc}"


def _unix(text: str, where: str) -> str:
    path = text.removeprefix(UNIX)
    path = path.removeprefix("//")  # as a URL has it
    if not path.startswith("/") or path.endswith("/"):
        raise ConfigError(
            f"{where} must be the absolute path of a socket, like unix:/run/torchserve.sock, not {text!r}"
        )
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise ConfigError(f"{where}: the path of a socket has room for {_LONGEST_SOCKET} bytes, and {path!r} is longer")
    return UNIX + path


def _next_port(inference: str, where: str) -> str:
    if inference.startswith(UNIX):
        raise ConfigError(f"{where}: give management=ADDRESS too: nothing follows from {inference!r}")
    parts = urlsplit(inference)
    if parts.port is None:
        raise ConfigError(f"{where}: give management=URL too, or a port in {inference!r}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port + 1}"


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


def _convert(item: Field[Any], value: Any, where: str) -> Any:
    auto = item.metadata["auto"]
    kind = auto or type(item.default)  # not what is annotated: compiled, a class does not tell that
    if auto is not None and value == AUTO:
        return None
    if kind is tuple:
        return _names(value, where)
    if kind is bool:
        return _truth(value, where)
    if kind in (int, float):
        return _number(item, value, where, kind)
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text, not {value!r}")
    if item.metadata["secret"] and value and not is_key(value):
        raise ConfigError(f"{where} must be {A_KEY}")
    words = item.metadata["words"]
    if words and value not in words:
        near = difflib.get_close_matches(value, words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where} must be {', '.join(words[:-1])} or {words[-1]}, not {value!r}{hint}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} must be a list of names, not {value!r}")
    if odd := [name for name in names if not _HEADER.fullmatch(name)]:
        raise ConfigError(f"{where}: {odd[0]!r} cannot be the name of a header")
    return tuple(name.lower() for name in names if name)


def _truth(value: Any, where: str) -> bool:
    truth = {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, (bool, str)) else None
    if truth is None:
        raise ConfigError(f"{where} must be true or false, not {value!r}")
    return truth


def _number(item: Field[Any], value: Any, where: str, kind: type[int] | type[float]) -> float:
    least, below = item.metadata["least"], item.metadata["below"]
    word = "a whole number" if kind is int else "a number"
    try:
        # Booleans are numbers to Python and never meant as such; "1.5" is no whole number, nor is 1.5.
        number = math.nan if isinstance(value, bool) or (kind is int and isinstance(value, float)) else kind(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (least <= number < min(below, LARGEST)):
        if LARGEST <= number < math.inf:
            below = min(below, LARGEST)
        allowed = f"{word} of at least {least:g}" + (f" and below {below:g}" if below != math.inf else "")
        if item.metadata["auto"] is not None:
            allowed += f", or {AUTO!r}"
        raise ConfigError(f"{where} must be {allowed}, not {value!r}")
    return number


def _read_token(path: str, kind: str, setting: str) -> str:
    if not path:
        return ""
    try:
        return read_key(path, kind)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


if __name__ == "__main__":
    sys.stdout.write(settings_markdown())
