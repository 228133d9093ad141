"""Every setting of the proxy, once: one frozen dataclass field is its name, default, unit, limits and help.

The policy's settings are the engine's own (`engine.policy.Policy`); the others are here. The TOML file, the
environment, the flags and docs/settings.md are all made from these fields. Knows nothing of how settings are given, or
of what they do.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ts_parity.engine.policy import Policy, setting
from ts_parity.errors import ConfigError
from ts_parity.keys import read_key

UNIX = "unix:"
"""Before a path: the address of a Unix socket, as TorchServe writes it."""
AUTO = "auto"
EXACT_ONLY, OFF = "exact-only", "off"
KINDS = ("torchserve", "open-inference", "rest", "tensorflow", "openai", "sagemaker")
"""The kinds of servers there are; each is a file in proxy/fleet/backends."""
KIND_OF = {
    **dict.fromkeys(("triton", "kserve", "mlserver", "openvino"), "open-inference"),
    **dict.fromkeys(("litserve", "bentoml", "ray", "fastapi", "flask", "http"), "rest"),
    **dict.fromkeys(("vllm", "embeddings"), "openai"),
}
"""For who names a server where its kind is asked for; docs/backends.md has them all."""
MANAGED = KINDS[0]
"""The kind with an API of its own for what it hosts, on another port."""
CODES = ("sum", "concat", "student", "exact")
"""The codes there are, for command lines that must not import numpy to say so; `codes` makes them."""


@dataclass(frozen=True)
class InstanceSettings:
    """One instance of a model server. In TOML a table `[[instance]]`, on the command line an `--endpoint`."""

    inference: str = setting(
        MISSING, "address of the inference API, such as http://10.0.0.5:8080, https://ts1:8443 or unix:/run/ts1.sock"
    )
    management: str = setting("", "address of TorchServe's management API; default: same host, the inference port + 1")
    domain: str = setting("", "failure domain (machine, rack, zone); default: the instance itself")
    token: str = setting("", "TorchServe's inference key", secret=True)
    token_file: str = setting("", "file with the inference key, or TorchServe's key_file.json; read again regularly")
    management_token: str = setting("", "TorchServe's management key", secret=True)
    management_token_file: str = setting("", "file with the management key, or TorchServe's key_file.json")
    places: int | None = setting(
        None,
        "most requests in flight, over all its models; default: what the server tells of each (TorchServe: READY "
        "workers x batch size), or 1 where it tells nothing",
        unit="requests",
        least=1,
        auto=int,
    )
    kind: str = setting(KINDS[0], "the kind of server: see docs/backends.md", words=KINDS)
    student_places: int | None = setting(
        None,
        "requests that a student there works on beside the deployed model's; default: what the server tells, else they "
        "share those of the instance",
        unit="requests",
        least=1,
        auto=int,
    )
    ready: str = setting("", "kind rest: the path that answers 2xx when it serves; default: it takes a connection")
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
    """What the proxy cannot find out about a model. In TOML a table `[[model]]`, on the command line a `--model`."""

    name: str = setting(MISSING, "the model's name, as clients ask for it")
    version: str = setting("", "this version only; default: every version")
    repeatable: bool = setting(
        True,
        "false: it may answer one query in two ways, or it remembers queries: each query runs once, with no second "
        "copy, no protection, and no second attempt once it may have run",
    )
    student: str = setting(
        "",
        "a small model that answers late queries: its name, a path, or an address with either; several separated by "
        "blanks (not for TorchServe, whose archives tell it)",
    )
    exact: bool = setting(
        False, "true: the student is the same function, at another precision or on another machine, say"
    )
    agreement: float | None = setting(
        None, "how often its answers agree with the deployed model's, as measured", below=1.000001, auto=float
    )
    tolerance: float | None = setting(
        None, "how far off its numbers usually are (root mean square), where answers are numbers", auto=float
    )
    cost: float | None = setting(None, "what an answer of it costs, in answers of the deployed model", auto=float)
    compare: tuple[str, ...] = setting(
        (), "kind rest: JSON pointers to what counts where two answers are compared, such as /output; default: all"
    )

    @property
    def students(self) -> tuple[tuple[str, str], ...]:
        """(instance, name) of each student; the instance is empty where every one has it."""
        return tuple(_student(given, self.name) for given in self.student.split())


def _student(given: str, protects: str) -> tuple[str, str]:
    if "://" not in given:
        return "", given
    parts = urlsplit(given)
    name = parts.path if protects.startswith("/") else parts.path.strip("/")
    return parts.netloc, protects if name in ("", "/") else name


@dataclass(frozen=True)
class Settings:
    """All settings of `ts-parity serve`."""

    instances: tuple[InstanceSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    vouch: bool = setting(
        False,
        "show our keys for clients with keys of their own",
        "then nobody checks a client's own key; false: only for clients that bring none",
        group="endpoints",
    )
    discovery_interval_s: float = setting(5.0, "how often instances are asked what they serve", unit="s", least=0.05)
    describe_timeout_s: float = setting(2.0, "time limit of a management request", unit="s", least=0.01)
    connect_timeout_s: float = setting(2.0, "time limit of a connection attempt", unit="s", least=0.01, restart=True)
    task_timeout_s: float = setting(
        130.0, "time limit of a task", "TorchServe's own response timeout is 120 s", unit="s", least=0.01, restart=True
    )
    secret: str = setting(
        "", "sent with the proxy's own requests", "the archives must declare the same", secret=True, restart=True
    )
    host: str = setting(
        "127.0.0.1", "address of the inference port; 0.0.0.0 for all", group="listening and TLS", restart=True
    )
    port: int = setting(8080, "inference port; 0: a free one", unit="port", below=65536, restart=True)
    processes: int = setting(
        1,
        "proxies on the one port",
        "each with queues, groups and budgets of its own and a share of all places",
        unit="processes",
        least=1,
        restart=True,
    )
    peers: tuple[str, ...] = setting(
        (),
        "inference addresses of the other proxies in front of this fleet",
        "a DNS name stands for all its addresses, and this proxy's own may be among them. "
        "One of them serves a model and the others forward to it. It takes a secret, and all must have the same",
        restart=True,
    )
    tls_certificate: str = setting(
        "",
        "PEM file with a chain: speak https only",
        "the inference port's certificate and what follows it",
        restart=True,
    )
    tls_key: str = setting(
        "", "PEM file with its key, not encrypted", "both are read again when they change", restart=True
    )
    max_body_bytes: int = setting(
        6_553_500, "larger requests are refused with 413", "as TorchServe does", unit="bytes", least=1, restart=True
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
    default_answer: str = setting(
        "", "file with an answer to give instead of 504", "its content type follows from its ending, such as .json"
    )
    admin_host: str = setting(
        "127.0.0.1", "address of the admin port", "it speaks plain http", group="operations", restart=True
    )
    admin_port: int = setting(
        8090, "status, metrics, health, drain; 0: a free one", unit="port", below=65536, restart=True
    )
    admin_token: str = setting("", "key without which the admin port takes no action", "such as a drain", secret=True)
    metrics_address: str = setting(
        "", "HOST:PORT of a second port, only to be read", "for /metrics, /health, /livez and /readyz", restart=True
    )
    access_log: str = setting(
        "",
        "file for a JSON line a request; -: stderr",
        "and a line for each task that outlives its request",
        restart=True,
    )
    tracing: bool = setting(
        False,
        "send spans of late, rescued and failed queries",
        "over OTLP, to where OTEL_EXPORTER_OTLP_ENDPOINT says; takes ts_parity[otel]",
        restart=True,
    )
    drain_delay_s: float = setting(
        0.0,
        "/readyz answers 503 for this long before a drain begins",
        "so that balancers notice before connections are refused",
        unit="s",
    )
    drain_s: float = setting(30.0, "time that requests in flight get to finish", "after that delay", unit="s")

    def read_default_answer(self) -> bytes | None:
        """The default answer's bytes, or None if none is configured."""
        if not self.default_answer:
            return None
        try:
            return Path(self.default_answer).read_bytes()
        except OSError as error:
            raise ConfigError(f"default_answer: cannot read {self.default_answer!r}: {error.strerror}") from None


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
FIELDS = {item.name: item for items in GROUPS.values() for item in items}
RESTART = tuple(name for name, item in FIELDS.items() if item.metadata["restart"])
"""Settings that a running proxy keeps."""
OF_POLICY = {item.name for item in fields(Policy)} - {item.name for item in fields(Settings)}


def shown_default(default: Any) -> str:
    if default is None:
        return AUTO
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    if isinstance(default, bool):
        return "true" if default else "false"
    return str(default) if default != "" else "none"


def _read_token(path: str, kind: str, setting: str) -> str:
    if not path:
        return ""
    try:
        return read_key(path, kind)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None
