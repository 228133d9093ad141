"""The proxies that overhead.py compares: their configurations, their processes, what those have used.

Each proxy is one process with one thread of work, on a core that it shares with nobody who is busy.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SOURCES = Path(__file__).resolve().parent.parent
COMPILED, PLAIN = "compiled", "plain"
PROXY_CORE, OTHERS_CORE = 0, 1
START_S = 30.0
PREDICT = "/predictions/linear"
PASSED = "/v1/models/linear:predict"
"""Another address of the same prediction, which the proxy knows nothing of: it goes through untouched."""
TORCHSERVE, OPEN_INFERENCE = "torchserve", "open-inference"
INFER = "/v2/models/linear/infer"


@dataclass(frozen=True)
class Arm:
    proxy: str
    mode: str = "pass-through"
    build: str | None = None
    """Of ts_parity."""
    kind: str = TORCHSERVE
    """Of the servers behind it."""

    @property
    def name(self) -> str:
        kind = "" if self.kind == TORCHSERVE else self.kind
        return " ".join(filter(None, (self.proxy, self.mode if self.build else "", self.build, kind)))

    @property
    def path(self) -> str:
        if self.kind == OPEN_INFERENCE:
            return INFER
        return PASSED if self.mode == "pass-through" else PREDICT

    @property
    def code(self) -> str | None:
        return self.mode.removeprefix("coded-") if self.mode.startswith("coded-") else None


class NotServing(Exception):
    """It did not start, or has ended by itself: it is left out, and the others are compared all the same."""


# ---- which build of ours ---------------------------------------------------------------------------------------------


def imported_from() -> Path:
    """The folder that ts_parity is imported from here: what PYTHONPATH says, or the sources."""
    import ts_parity

    return Path(ts_parity.__file__).resolve().parent.parent


def build_of(root: Path) -> str:
    """Compiled or plain, as a process told to use this folder finds it."""
    ask = [sys.executable, "-c", "import ts_parity.proxy.http.server as server; print(server.__file__)"]
    file = subprocess.run(ask, env=environment(root), cwd="/", capture_output=True, text=True, check=True).stdout
    if not Path(file.strip()).is_relative_to(root):
        raise SystemExit(f"{root} was meant to be measured and {file.strip()} would be")
    return PLAIN if file.strip().endswith(".py") else COMPILED


def environment(root: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


# ---- the others ------------------------------------------------------------------------------------------------------


async def serve_aiohttp(port: int, upstreams: list[str]) -> None:
    """The proxy that one writes with aiohttp at both ends in twenty lines."""
    from itertools import cycle

    import aiohttp
    from aiohttp import web

    turn = cycle(upstreams)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def forward(request: web.Request) -> web.Response:
        # TorchServe reads a body by its type; other headers are left out, which is in this proxy's favour.
        headers = {"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
        url = next(turn) + request.raw_path
        async with session.request(request.method, url, data=await request.read(), headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log error; daemon off; worker_rlimit_nofile 65536;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 2m; proxy_buffers 16 64k; proxy_buffer_size 64k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 100000000;
  upstream instances {{ {servers} keepalive 512; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://instances; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  default_backend instances
backend instances
{servers}
"""


def command_of(arm: Arm, port: int, endpoints: Sequence[str], folder: Path) -> list[str]:
    """`endpoints`: the deployed instances, and for a coded arm their protections."""
    upstreams = [endpoint.partition(",")[0] for endpoint in endpoints]
    hosts = [upstream.removeprefix("http://") for upstream in upstreams]
    if arm.proxy == "nginx":
        file = folder / "nginx.conf"
        servers = " ".join(f"server {host};" for host in hosts)
        file.write_text(NGINX.format(folder=folder, servers=servers, port=port))
        return ["nginx", "-c", str(file), "-p", str(folder)]
    if arm.proxy == "haproxy":
        file = folder / "haproxy.cfg"
        servers = "\n".join(f"  server s{n} {host}" for n, host in enumerate(hosts))
        file.write_text(HAPROXY.format(servers=servers, port=port))
        return ["haproxy", "-db", "-f", str(file)]
    if arm.proxy == "aiohttp":
        return [sys.executable, str(SOURCES / "benchmarks" / "overhead.py"), "--serve-aiohttp", str(port), *upstreams]
    command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", str(port), "--admin-port", "0"]
    protect = {None: "off", "exact": "exact-only"}.get(arm.code, arm.code)
    command += ["--max-body-bytes", str(64 << 20), "--max-waiting", "100000", "--protect", protect]
    for endpoint in endpoints:
        command += ["--endpoint", endpoint]
    return command


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    arm: Arm
    url: str
    process: subprocess.Popen[str]
    rest_mb: float = 0.0

    def cpu_s(self) -> float:
        return sum(_cpu_s(process.pid) for process in self._family())

    def rss_mb(self) -> float:
        """Of all its processes together."""
        return sum(process.memory_info().rss for process in self._family()) / 1e6

    def _family(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            raise NotServing(f"{self.arm.name} has ended by itself, with exit code {self.process.returncode}")
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextmanager
def proxy(arm: Arm, endpoints: Sequence[str], folder: Path, root: Path) -> Iterator[Running]:
    """It listens; ended in the end. Raise NotServing with what it said."""
    folder = folder / f"{arm.name} {len(endpoints)}".replace(" ", "-")
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = command_of(arm, port, endpoints, folder)
    # In a folder of its own: `python -m` would take the ts_parity of the folder it is started in before PYTHONPATH's.
    with running(command, PROXY_CORE, folder, SOURCES if arm.build == PLAIN else root) as process:
        until = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                said = (folder / "stderr").read_text()[-2000:]
                raise NotServing(f"{arm.name} did not start: {' '.join(command)}\n{said}")
            time.sleep(0.02)
        time.sleep(0.3)
        found = Running(arm, f"http://127.0.0.1:{port}", process)
        found.rest_mb = found.rss_mb()
        yield found


@contextmanager
def running(command: list[str], core: int, folder: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """One process on one core, ended in the end by its own id."""
    if shutil.which(command[0]) is None:
        raise NotServing(f"there is no {command[0]}")
    with (folder / "stderr").open("w") as stderr:
        pinned = ["taskset", "-c", str(core), *command]
        process = subprocess.Popen(
            pinned, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=folder, env=environment(root)
        )
    try:
        yield process
    finally:
        with process:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    children = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _cpu_s(pid: int) -> float:
    """Processor time of all threads, to the nanosecond; the usual figures have steps of 10 ms."""
    spent = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError):
            spent += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return spent / 1e9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
