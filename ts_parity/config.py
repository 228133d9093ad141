"""Settings of the proxy: one frozen dataclass field is a setting's name, default, unit and help.

The TOML file, the environment, the flags and docs/settings.md are all made from these fields, and the later wins: file,
then `TS_PARITY_*`, then flags. Whatever is wrong raises ConfigError with the setting, what it was and what is allowed.
Knows nothing of what the settings do.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ts_parity.arguments import A_KEY, LARGEST, is_key, is_one_word
from ts_parity.errors import ConfigError

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
CODES = ("sum", "concat", "student", "exact")
"""The codes there are, for command lines that must not import numpy to say so; `codes` makes them."""


def _setting(
    default: Any,
    text: str,
    unit: str = "",
    least: float | None = None,
    below: float = math.inf,
    secret: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """`words`: all that a text may be."""
    meta = {"help": text, "unit": unit, "least": least, "below": below, "secret": secret, "words": words}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class InstanceSettings:
    """One TorchServe instance. In TOML a table `[[instance]]`, on the command line an `--endpoint`."""

    inference: str = _setting(
        MISSING, "address of the inference API, such as http://10.0.0.5:8080, https://ts1:8443 or unix:/run/ts1.sock"
    )
    management: str = _setting("", "address of the management API; default: same host, the inference port + 1")
    domain: str = _setting("", "failure domain (machine, rack, zone); default: the instance itself")
    token: str = _setting("", "TorchServe's inference key", secret=True)
    token_file: str = _setting("", "file with the inference key, or TorchServe's key_file.json; read again regularly")
    management_token: str = _setting("", "TorchServe's management key", secret=True)
    management_token_file: str = _setting("", "file with the management key, or TorchServe's key_file.json")
    places: int | None = _setting(
        None, "at most so many in flight, over all its models; default: READY workers x batch size, each", "requests", 1
    )
    tls_ca: str = _setting(
        "",
        "PEM file, or folder of such files, with the certificates to trust at https addresses; default: the system's",
    )
    tls_verify: bool = _setting(True, "false: take any certificate at https addresses, as in a test")
    tls_certificate: str = _setting("", "PEM file with the certificate to show to an instance that asks for one")
    tls_key: str = _setting("", "PEM file with its private key, not encrypted")

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

    name: str = _setting(MISSING, "the model's name, as clients ask for it")
    version: str = _setting("", "this version only; default: every version")
    repeatable: bool = _setting(
        True,
        "false: it answers otherwise when it is asked again, or keeps what it was asked: a query is run once, with no "
        "second copy, no protection, and no second attempt once it may have been run",
    )


@dataclass(frozen=True)
class Settings:
    """Everything `ts-parity serve` can be told."""

    instances: tuple[InstanceSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    host: str = _setting("127.0.0.1", "address the inference port listens on; 0.0.0.0 for all")
    port: int = _setting(8080, "inference port; 0 picks a free one", "port", 0, 65536)
    processes: int = _setting(
        1,
        "proxies on the one port, each with queues, groups and budgets of its own and a share of all places",
        "processes",
        1,
    )
    tls_certificate: str = _setting(
        "", "PEM file with a certificate and what follows it in its chain: the inference port speaks https only"
    )
    tls_key: str = _setting("", "PEM file with its private key, not encrypted; both are read again when they change")
    vouch: bool = _setting(
        False,
        "show the instances' keys (token, token_file) for every client, also for one that brings a key of its own, "
        "which nobody checks then; off: only for clients that bring none",
    )
    admin_host: str = _setting("127.0.0.1", "address the admin port listens on; it speaks plain http")
    admin_port: int = _setting(8090, "admin port (status, metrics, health, drain); 0: a free one", "port", 0, 65536)
    admin_token: str = _setting("", "key without which the admin port takes no action, such as a drain", secret=True)
    metrics_address: str = _setting(
        "", "HOST:PORT of a second port for what may only be read: /metrics, /health, /livez and /readyz"
    )
    code: str = _setting(
        AUTO,
        "auto: what the protections say; none: no coding; or the name of the code to use",
        words=(AUTO, "none", *CODES),
    )
    k: int | None = _setting(None, "use only protections of this group size; auto: as they are", "queries", 1, 65)
    secret: str = _setting("", "secret sent with every operation; the archives must declare the same", secret=True)
    group_by: tuple[str, ...] = _setting(
        (), "request headers that change what the model computes: queries that differ in them never share a group"
    )
    max_body_bytes: int = _setting(6_553_500, "larger requests are refused with 413, as TorchServe does", "bytes", 1)
    reconstruct_after_s: float | None = _setting(
        None,
        "a rebuilt answer may be used this long after its query was sent, and a query that has failed waits so long "
        "for an instance elsewhere; auto: a quantile of latency",
        "s",
        0,
    )
    reconstruct_quantile: float = _setting(0.95, "the quantile that auto takes", "", 0.01, 1)
    reconstruct_cold_s: float = _setting(1.0, "stands in for the quantile until enough latencies are known", "s", 0)
    group_wait_s: float | None = _setting(
        None, "a group is sealed with the members it has after this long; auto: as reconstruct_after_s", "s", 0
    )
    seal_early: bool = _setting(
        False, "seal a group at once when, at the present rate of arrivals, no other member would come in time"
    )
    launch: str = _setting(
        "group",
        "when a backup (student, exact) is launched: with its group, or late: only for queries late by then",
        words=("group", "late"),
    )
    launch_after_s: float | None = _setting(
        None, "late launch this long after the query was sent; auto: a quantile of latency, later under load", "s", 0
    )
    launch_quantile: float = _setting(0.9, "the quantile that auto takes for launch_after_s", "", 0.01, 1)
    launch_stretch: float = _setting(0.2, "how much later a launch is at full load", "", 0)
    launch_waiting: float = _setting(
        0.0, "a query that waits for a place for so many times launch_after_s gets its backup first; 0: never", "", 0
    )
    hedge_ratio: float = _setting(0.0, "second copies allowed per query, on average; 0: no hedging", "", 0)
    hedge_burst: float = _setting(10.0, "second copies allowed at once", "copies", 0)
    hedge_after_s: float | None = _setting(
        None, "a query without an answer gets a second copy this long after it was sent; auto: a quantile", "s", 0
    )
    hedge_quantile: float = _setting(0.95, "the quantile that auto takes for hedge_after_s", "", 0.01, 1)
    shed_load: float = _setting(
        0.85,
        "above this share of places taken, protections on shared machines are not launched with their group",
        "",
        0,
    )
    slow_factor: float = _setting(
        0.0, "an endpoint this many times slower than its pool's median is taken out; 0: never", "", 0
    )
    slow_until_out: int = _setting(3, "slow answers in a row that take an endpoint out", "answers", 1)
    age_factor: float = _setting(
        0.0, "an endpoint with a task in flight for this many release times is passed over; 0: never", "", 0
    )
    spare_places: int = _setting(
        0, "so many more than its places an instance gets when all are busy and only its reply seems late", "queries", 0
    )
    max_out: float = _setting(0.34, "share of a pool's endpoints that slowness may take out at one time", "", 0, 1)
    balance: str = _setting(
        "least",
        "least: outstanding; round_robin: looks at nothing, to compare with",
        words=("least", "round_robin"),
    )
    deadline_s: float = _setting(
        30.0, "a query without a prediction by then gets 504 or the default answer", "s", 0.001
    )
    max_waiting: int = _setting(1000, "queries that may wait for a place, per model; then 503", "queries", 1)
    max_wait_s: float = _setting(10.0, "new queries get 503 while the oldest has waited this long", "s", 0)
    retry_ratio: float = _setting(0.1, "retries allowed per query, on average", "", 0)
    retry_burst: float = _setting(10.0, "retries allowed at once", "retries", 0)
    max_attempts: int = _setting(3, "tasks one query may cost", "tasks", 1)
    failures_until_out: int = _setting(3, "consecutive failures that take an endpoint out", "failures", 1)
    out_s: float = _setting(1.0, "how long an endpoint that was taken out is left alone, at first", "s", 0)
    reject_pause_s: float = _setting(0.05, "how long an instance that said it is full is left alone", "s", 0)
    default_answer: str = _setting("", "file with the answer to give at the deadline instead of 504")
    default_answer_type: str = _setting("application/json", "content type of the default answer")
    access_log: str = _setting(
        "", "file that gets a JSON line for each request, and for each task that outlives one; -: standard error"
    )
    drain_delay_s: float = _setting(
        0.0, "after the first SIGTERM /readyz is 503 for so long before connections are refused; for balancers", "s", 0
    )
    drain_s: float = _setting(30.0, "requests in flight get this long to finish after that", "s", 0)
    discovery_interval_s: float = _setting(5.0, "the fleet is looked at this often", "s", 0.05)
    describe_timeout_s: float = _setting(2.0, "a management request without an answer by then has failed", "s", 0.01)
    connect_timeout_s: float = _setting(2.0, "an instance that accepts no connection by then is unreachable", "s", 0.01)
    task_timeout_s: float = _setting(
        130.0,
        "a task without an answer by then has failed; TorchServe's own response timeout is 120",
        "s",
        0.01,
    )

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
    settings = Settings(**values)
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


# What --help says of each setting, in a line of 80 columns: which settings a reader looks for together, and what they
# are about. docs/settings.md says the rest.
BRIEFLY = {
    "endpoints": {
        "vouch": "show our keys for clients with keys of their own",
        "discovery_interval_s": "how often the fleet is looked at",
        "describe_timeout_s": "a management request has failed by then",
        "connect_timeout_s": "an instance is unreachable by then",
        "task_timeout_s": "a task has failed by then",
    },
    "listening and TLS": {
        "host": "address of the inference port; 0.0.0.0 for all",
        "port": "inference port; 0: a free one",
        "processes": "proxies on the one port",
        "tls_certificate": "PEM file with a chain: speak https only",
        "tls_key": "PEM file with its key, not encrypted",
        "max_body_bytes": "larger requests are refused with 413",
    },
    "codes": {
        "code": f"{', '.join((AUTO, 'none', *CODES))}",
        "k": "use only protections of this group size",
        "secret": "sent with every operation of ours",
        "group_by": "headers that change what the model computes",
        "group_wait_s": "a group is sealed as it is after this long",
        "seal_early": "seal it when no other member would come in time",
    },
    "policy: rebuilt answers": {
        "reconstruct_after_s": "how long a query waits for its own answer",
        "reconstruct_quantile": "the quantile of latency that auto takes",
        "reconstruct_cold_s": "stands in for it until latencies are known",
        "launch": "backups: group, or late, for late queries only",
        "launch_after_s": "late launch this long after the query was sent",
        "launch_quantile": "the quantile of latency that auto takes",
        "launch_stretch": "how much later a launch is at full load",
        "launch_waiting": "launch for queries that wait so long for a place",
        "shed_load": "share of places taken that stops protections",
    },
    "policy: second copies and retries": {
        "hedge_ratio": "second copies allowed per query; 0: none",
        "hedge_burst": "second copies allowed at once",
        "hedge_after_s": "second copy this long after the query was sent",
        "hedge_quantile": "the quantile of latency that auto takes",
        "retry_ratio": "retries allowed per query",
        "retry_burst": "retries allowed at once",
        "max_attempts": "tasks one query may cost",
    },
    "policy: slow and failing endpoints": {
        "slow_factor": "take out what is this many times slower; 0: never",
        "slow_until_out": "slow answers in a row that take one out",
        "age_factor": "pass over what is late this many times; 0: never",
        "spare_places": "tasks beyond its places, if its reply seems late",
        "max_out": "share of a pool that slowness may take out",
        "balance": "least (outstanding) or round_robin",
        "failures_until_out": "failures in a row that take an endpoint out",
        "out_s": "how long it is left alone, at first",
        "reject_pause_s": "how long a full instance is left alone",
    },
    "limits": {
        "deadline_s": "a query gets 504 or the default answer by then",
        "max_waiting": "queries that may wait, per model; then 503",
        "max_wait_s": "503 while the oldest has waited this long",
        "default_answer": "file with an answer to give instead of 504",
        "default_answer_type": "its content type",
    },
    "operations": {
        "admin_host": "address of the admin port",
        "admin_port": "status, metrics, health, drain; 0: a free one",
        "admin_token": "key without which the admin port takes no action",
        "metrics_address": "HOST:PORT of a second port, only to be read",
        "access_log": "file for a JSON line a request; -: stderr",
        "drain_delay_s": "/readyz is 503 so long before a drain begins",
        "drain_s": "how long requests in flight may take to finish",
    },
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, with its default in place of a value; a flag that is not given is None, so that it does not
    win over file or environment.
    """
    groups = {group.title: group for group in parser._action_groups}
    for title, briefly in BRIEFLY.items():
        group = groups.get(title) or parser.add_argument_group(title)
        for name, text in briefly.items():
            default = "KEY" if _FIELDS[name].metadata["secret"] else _show(_FIELDS[name].default)
            group.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=default, help=text.replace("%", "%%"))


def given_flags(args: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(args, name) for name in _FIELDS if getattr(args, name, None) is not None}


def settings_markdown() -> str:
    """docs/settings.md, whole."""
    lines = [
        "# Settings of the proxy",
        "",
        "Made from `ts_parity/config.py` by `python -m ts_parity.config`; do not edit by hand.",
        "",
        "A TOML file (`ts-parity serve --config FILE`), then environment variables, then flags; the later wins.",
        "A setting `deadline_s` is `deadline_s = 2.0` in the file, `TS_PARITY_DEADLINE_S=2.0` in the environment and",
        "`--deadline-s 2.0` on the command line. Lists are separated by commas there. Unknown names are errors.",
        "",
        *_table(list(_FIELDS.values())),
        "",
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


_FIELDS: dict[str, Field[Any]] = {
    item.name: item for item in fields(Settings) if item.name not in ("instances", "models")
}


def _table(items: Sequence[Field[Any]]) -> list[str]:
    rows = ["| setting | default | unit | what it is |", "|---|---|---|---|"]
    for item in items:
        default = "required" if item.default is MISSING else f"`{_show(item.default)}`"
        rows.append(f"| `{item.name}` | {default} | {item.metadata['unit']} | {item.metadata['help']} |")
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
    kind = str(item.type)
    if kind.endswith("| None") and value == AUTO:
        return None
    if kind.startswith("tuple"):
        return _names(value, where)
    if kind == "bool":
        return _truth(value, where)
    if kind.startswith(("int", "float")):
        return _number(item, value, where, int if kind.startswith("int") else float)
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
        allowed = f"{word} of at least {least}" + (f" and below {below:g}" if below != math.inf else "")
        if str(item.type).endswith("| None"):
            allowed += f", or {AUTO!r}"
        raise ConfigError(f"{where} must be {allowed}, not {value!r}")
    return number


def _read_token(path: str, kind: str, setting: str) -> str:
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: cannot read {path!r}: {error}") from None
    try:
        key = str(json.loads(text)[kind]["key"]) if text.startswith("{") else text
        if not is_key(key):
            raise ValueError
        return key
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{setting}: {path!r} is no key and no key_file.json with a {kind} key") from None


if __name__ == "__main__":
    sys.stdout.write(settings_markdown())
