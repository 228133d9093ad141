"""What a proxy costs: ours beside nginx, HAProxy and a plain aiohttp proxy, in one run and interleaved.

    apt-get install nginx-light haproxy wrk
    python benchmarks/overhead.py [--seconds S] [--rounds N] [--connections 1 16 128] [--bodies 300 3000 100000 1000000]
    python benchmarks/overhead.py --tables                     the table of docs/benchmarks.md, from the kept results

Upstream are three trivial instances (a recorded answer for each kind of request). The proxy runs on the first core, wrk
and the instances on the second. Requests per second per core: requests divided by the processor time that the proxy
took, so neighbours on the machine matter less; p50 and p99 are what wrk saw. Medians over the rounds. Targets, at 16
connections and 3 KB: 0.6 of nginx's requests per second per core passed through, 0.4 uncoded through the engine, 0.25
coded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from tables import markdown, renew

RESULTS = Path(__file__).parent / "results" / "overhead.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
TARGETS = {"pass-through": 0.6, "uncoded": 0.4, "coded-exact": 0.25, "coded-sum": 0.25}
PATHS = {"pass-through": "/v1/models/linear:predict"}
PREDICT = "/predictions/linear"
PLACES = 256
PROXY_CORE, CLIENT_CORE = 0, 1


def body_of(size: int) -> bytes:
    """A model's input with blanks, so that it is as large as asked."""
    return b"[1, 2" + b" " * (size - 6) + b"]"


# ---- upstream: what instances answer, recorded once and played again -------------------------------------------------


async def play_instances(code: str, sizes: list[int]) -> None:
    """Two deployed instances and one with their protection; prints their endpoints and serves until killed."""
    import uvloop

    from ts_parity.testing import FakeModel, FakeTorchServe, protection

    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    many = {"workers": PLACES}
    models = [FakeModel(**many), FakeModel(**many), protection(code=code, **many)]
    endpoints = []
    for model in models:
        fake = FakeTorchServe(model)
        await fake.start()
        recorded = await record(fake, model, code, sizes)
        server = await asyncio.get_running_loop().create_server(lambda r=recorded: Player(r), "127.0.0.1", 0)
        endpoints.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]},management={fake.management}")
    print(json.dumps(endpoints), flush=True)
    await asyncio.Event().wait()


async def record(fake: Any, model: Any, code: str, sizes: list[int]) -> dict[str, bytes]:
    """The whole answer to each kind of request, by the operation asked for."""
    import aiohttp

    from ts_parity.wire import OP, OP_GROUP, OP_RAW, Frame, Part, pack_frame

    url = f"{fake.inference}/predictions/{model.name}"
    small = body_of(30)
    requests = {"": ({}, small), OP_RAW: ({OP: OP_RAW}, small)}
    if model.role == "parity":
        requests[OP_GROUP] = ({OP: OP_GROUP}, pack_frame(Frame((Part((), small), Part((), small)), None)))
    recorded = {}
    async with aiohttp.ClientSession() as session:
        for operation, (headers, body) in requests.items():
            async with session.post(url, data=body, headers=headers) as answer:
                lines = [f"HTTP/1.1 {answer.status} "] + [f"{name}: {value}" for name, value in answer.headers.items()]
                recorded[operation] = "\r\n".join(lines).encode() + b"\r\n\r\n" + await answer.read()
    return recorded


class Player(asyncio.Protocol):
    """Plays the recorded answer as soon as a request is complete."""

    def __init__(self, recorded: dict[str, bytes]) -> None:
        import httptools

        self._recorded = recorded
        self._parser = httptools.HttpRequestParser(self)
        self._operation = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._operation = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-ts-parity-op":
            self._operation = value.decode()

    def on_message_complete(self) -> None:
        self._transport.write(self._recorded[self._operation])


# ---- the proxies -----------------------------------------------------------------------------------------------------


async def serve_aiohttp(port: int, upstreams: list[str]) -> None:
    """The proxy that one writes with aiohttp at both ends in twenty lines."""
    from itertools import cycle

    import aiohttp
    from aiohttp import web

    turn = cycle(upstreams)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def forward(request: web.Request) -> web.Response:
        async with session.request(request.method, next(turn) + request.raw_path, data=await request.read()) as answer:
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


def command_of(proxy: str, mode: str, port: int, endpoints: list[str], folder: Path) -> list[str]:
    upstreams = [endpoint.partition(",")[0] for endpoint in endpoints[:2]]
    hosts = [upstream.removeprefix("http://") for upstream in upstreams]
    if proxy == "nginx":
        file = folder / "nginx.conf"
        servers = " ".join(f"server {host};" for host in hosts)
        file.write_text(NGINX.format(folder=folder, servers=servers, port=port))
        return ["nginx", "-c", str(file), "-p", str(folder)]
    if proxy == "haproxy":
        file = folder / "haproxy.cfg"
        servers = "\n".join(f"  server s{n} {host}" for n, host in enumerate(hosts))
        file.write_text(HAPROXY.format(servers=servers, port=port))
        return ["haproxy", "-db", "-f", str(file)]
    if proxy == "aiohttp":
        return [sys.executable, __file__, "--serve-aiohttp", str(port), *upstreams]
    listed = endpoints if mode.startswith("coded") else endpoints[:2]
    command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", str(port), "--admin-port", "0"]
    command += ["--max-body-bytes", str(64 << 20), "--max-waiting", "100000"]
    command += ["--code", mode.removeprefix("coded-") if mode.startswith("coded") else "none"]
    for endpoint in listed:
        command += ["--endpoint", endpoint]
    return command


@contextmanager
def running(command: list[str], core: int, port: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """One process on one core, ended in the end. With a port: wait until it listens."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    os.sched_setaffinity(process.pid, {core})
    try:
        deadline = time.monotonic() + 30
        while port is not None and not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- the client ------------------------------------------------------------------------------------------------------

LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def load(url: str, connections: int, seconds: float, body: bytes, folder: Path) -> dict[str, float]:
    """-> requests, seconds, p50_us, p99_us, errors."""
    (folder / "body").mkdir(exist_ok=True)
    file = folder / f"body-{len(body)}.bin"
    file.write_bytes(body)
    script = folder / "post.lua"
    script.write_text(LUA % file)
    command = [
        "taskset",
        "-c",
        str(CLIENT_CORE),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "20s",
    ]
    out = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    assert found is not None, out
    requests, micros, p50, p99, errors = map(int, found.groups())
    return {"requests": requests, "seconds": micros / 1e6, "p50_us": p50, "p99_us": p99, "errors": errors}


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def measure(proxy: str, mode: str, sizes: dict[int, list[int]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One proxy in one mode, started once: a row for each number of connections and each size of body."""
    rows = []
    code = mode.removeprefix("coded-") if mode.startswith("coded") else "sum"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upstream = [sys.executable, __file__, "--play", code]
        with running(upstream, CLIENT_CORE) as instances:
            assert instances.stdout is not None
            endpoints = json.loads(instances.stdout.readline())
            port = free_port()
            direct = endpoints[0].partition(",")[0]
            if proxy == "direct":
                for connections, size in _cells(sizes):
                    seen = load(direct + PREDICT, connections, args.seconds, body_of(size), folder)
                    rows.append(_row(proxy, mode, connections, size, seen, None, None))
                return rows
            with running(command_of(proxy, mode, port, endpoints, folder), PROXY_CORE, port) as process:
                time.sleep(0.5)
                url = f"http://127.0.0.1:{port}{PATHS.get(mode, PREDICT)}"
                load(url, 16, 1, body_of(300), folder)  # warm
                for connections, size in _cells(sizes):
                    members = family(process)
                    before = cpu_s(members)
                    seen = load(url, connections, args.seconds, body_of(size), folder)
                    spent = cpu_s(members) - before
                    rss = sum(member.memory_info().rss for member in members) / 1e6
                    rows.append(_row(proxy, mode, connections, size, seen, spent, rss))
    return rows


def _cells(sizes: dict[int, list[int]]) -> list[tuple[int, int]]:
    return [(connections, size) for connections, bodies in sizes.items() for size in bodies]


def _row(
    proxy: str, mode: str, connections: int, size: int, seen: dict[str, float], spent: float | None, rss: float | None
) -> dict[str, Any]:
    return {
        "proxy": proxy,
        "mode": mode,
        "upstream": "trivial",
        "connections": connections,
        "body_bytes": size,
        "requests_per_second": seen["requests"] / seen["seconds"],
        "requests_per_second_per_core": None if spent is None else seen["requests"] / max(spent, 1e-9),
        "p50_us": seen["p50_us"],
        "p99_us": seen["p99_us"],
        "rss_mb": rss,
        "errors": seen["errors"],
    }


# ---- results ---------------------------------------------------------------------------------------------------------

ARMS = (
    ("direct", "pass-through"),
    ("nginx", "pass-through"),
    ("haproxy", "pass-through"),
    ("ts_parity", "pass-through"),
    ("ts_parity", "uncoded"),
    ("ts_parity", "coded-exact"),
    ("ts_parity", "coded-sum"),
    ("aiohttp", "pass-through"),
)


def combined(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and the ratio to nginx of the same round."""
    by_key: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for rows in rounds:
        nginx = {
            (row["connections"], row["body_bytes"]): row["requests_per_second_per_core"]
            for row in rows
            if row["proxy"] == "nginx"
        }
        for row in rows:
            own, theirs = row["requests_per_second_per_core"], nginx.get((row["connections"], row["body_bytes"]))
            row["rps_ratio_to_nginx"] = own / theirs if own and theirs else None
            key = tuple(row[part] for part in ("proxy", "mode", "upstream", "connections", "body_bytes"))
            by_key.setdefault(key, []).append(row)
    out = []
    for rows in by_key.values():
        row = dict(rows[0])
        for name, digits in (
            ("requests_per_second", 0), ("requests_per_second_per_core", 0), ("p50_us", 0), ("p99_us", 0),
            ("rss_mb", 1), ("rps_ratio_to_nginx", 3),
        ):  # fmt: skip
            values = [r[name] for r in rows if r[name] is not None]
            row[name] = round(statistics.median(values), digits) if values else None
        row["errors"] = sum(r["errors"] for r in rows)
        out.append(row)
    return out


def table(document: dict[str, Any]) -> str:
    head = (
        "connections", "body", "proxy", "mode", "requests/s per core", "of nginx", "p50 us", "p99 us", "memory MB",
        "errors",
    )  # fmt: skip
    body = []
    for row in sorted(document["rows"], key=lambda row: (row["connections"], row["body_bytes"])):
        numbers = (
            (row["requests_per_second_per_core"], ",.0f"), (row["rps_ratio_to_nginx"], ".2f"), (row["p50_us"], ",.0f"),
            (row["p99_us"], ",.0f"), (row["rss_mb"], ".0f"),
        )  # fmt: skip
        shown = ["-" if value is None else format(value, form) for value, form in numbers]
        what = [str(row["connections"]), f"{row['body_bytes']:,}", row["proxy"], row["mode"]]
        body.append([*what, *shown, str(row["errors"])])
    return markdown(head, body)


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    said = (
        f"`{document['command']}`, {document['rounds']} rounds of {document['seconds']:g} s a cell, interleaved; "
        f"{document['machine']}."
    )
    return {"overhead": f"{said}\n\n{table(document)}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--bodies", type=int, nargs="+", default=[300, 3000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="renew the table of docs/benchmarks.md, run nothing")
    parser.add_argument("--play", metavar="CODE", help=argparse.SUPPRESS)
    parser.add_argument("--serve-aiohttp", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play or args.serve_aiohttp:
        if args.play:
            import uvloop

            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
            asyncio.run(play_instances(args.play, args.bodies))
        else:
            asyncio.run(serve_aiohttp(int(args.serve_aiohttp[0]), args.serve_aiohttp[1:]))
        return 0
    if args.tables:
        for mark, text in sections(json.loads(args.out.read_text())).items():
            renew(DOCS, mark, text)
        return 0
    missing = [program for program in ("nginx", "haproxy", "wrk", "taskset") if shutil.which(program) is None]
    if missing or (os.cpu_count() or 1) < 2:
        print(
            f"missing: {', '.join(missing) or 'a second core'}; apt-get install nginx-light haproxy wrk",
            file=sys.stderr,
        )
        return 3
    sizes = dict.fromkeys(args.connections, args.bodies)
    rounds = []
    with tqdm(total=args.rounds * len(ARMS), unit="arm") as bar:
        for _ in range(args.rounds):
            rows = []
            for proxy, mode in ARMS:
                bar.set_description(f"{proxy} {mode}")
                rows += measure(proxy, mode, sizes, args)
                bar.update()
            rounds.append(rows)
    document = {
        "command": " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": args.seconds,
        "rounds": args.rounds,
        "rows": combined(rounds),
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    ratios = {
        row["mode"]: row["rps_ratio_to_nginx"]
        for row in document["rows"]
        if (row["proxy"], row["connections"], row["body_bytes"]) == ("ts_parity", 16, 3000)
    }
    return 0 if all(ratios.get(mode, 1.0) >= target for mode, target in TARGETS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
