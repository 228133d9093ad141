"""An hour's wear on the proxy, in minutes: does it leak, and can it account for every request?

    python benchmarks/soak.py [--requests N] [--seed S] [--connections N]
    python benchmarks/soak.py --tables                         the tables of docs/benchmarks.md, from the kept results

`ts-parity serve` runs as a process of its own between clients (soak_clients.py: keep-alive, pipelined, one connection
per request, chunked bodies, some leave in mid-head, mid-body, while waiting, in mid-answer) and instances
(soak_instances.py: resets, half answers, dead workers, slow answers, streams that break off, idle connections closed).
Afterwards the three's books are compared, and what the proxy holds with what it held at rest. Then 128 clients send
1 MB at the same time, and the proxy's peak is compared with the formula of docs/behaviour.md. Exit code 1 if anything
is left over, unaccounted for or over its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import psutil
from tqdm import tqdm

from overhead_proxies import build_of, environment, imported_from
from soak_clients import ROUTES, Load, all_at_once
from tables import renew
from ts_parity.arguments import count
from ts_parity.tables import markdown

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "soak.json"
DOCS = HERE.parent / "docs" / "benchmarks.md"

REST_MB = 80
WARM = 100_000
"""Requests after which caches, pools and the allocator have their size."""
SLOPE = 4.0
"""Bytes per request that count as flat: a forgotten object of any kind has over fifty."""
SLOPE_NEEDS = 500_000
"""Requests; in fewer, the noise of the allocator is steeper than that."""
MEMORY_CONNECTIONS, MEMORY_BYTES, MEMORY_ROUNDS = 128, 1_000_000, 3
# Times a request's and a reply's body that a connection can cost at one moment: docs/behaviour.md, "Memory".
COPIES = {"passed": (2, 2), "coded": (3, 3)}
KINDS = ("deployed", "protection", "finish")
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Check:
    """A figure and the bounds that it must keep."""

    what: str
    low: float
    found: float
    high: float

    @property
    def good(self) -> bool:
        return self.low <= self.found <= self.high

    @property
    def bounds(self) -> str:
        return f"{self.low:,.10g}" if self.low == self.high else f"{self.low:,.10g} to {self.high:,.10g}"


def same(what: str, expected: float, found: float) -> Check:
    return Check(what, expected, found, expected)


# ---- the processes ---------------------------------------------------------------------------------------------------


class Instances:
    """The process of the instances, and what it has counted."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoints: list[str] = self._read()
        self.ports = {urlsplit(endpoint.partition(",")[0]).port for endpoint in self.endpoints}

    def counts(self) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class ProxyProcess:
    """`ts-parity serve` as its operator sees it: its addresses, its admin port, its process."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.host, self.port = urlsplit(ready["url"]).hostname or "", urlsplit(ready["url"]).port or 0
        self._admin = ready["admin_url"]
        self._log = log
        self._seen = psutil.Process(process.pid)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self._get("/status")))

    def metrics(self) -> dict[str, float]:
        """Counters by name and labels, as they are exposed."""
        lines = self._get("/metrics").decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if "_total{" in name}

    def rss(self) -> int:
        return int(self._seen.memory_info().rss)

    def peak(self) -> int:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def cpu_s(self) -> float:
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def descriptors(self) -> int:
        return int(self._seen.num_fds())

    def connections_to(self, ports: set[int | None]) -> int:
        return sum(bool(c.raddr) and c.raddr.port in ports for c in self._seen.net_connections("tcp"))

    def complaints(self) -> list[str]:
        """The errors in its log."""
        return [text for text in re.split(r"\n(?=\d{4}-)", self._log.read_text()) if " ERROR " in text]

    def end(self) -> int:
        """-> its exit code: 0 if it drained, 1 if it had to cut somebody."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._admin + path, timeout=10) as answer:
            return bytes(answer.read())


@contextmanager
def instances(*arguments: str) -> Iterator[Instances]:
    command = [sys.executable, str(HERE / "soak_instances.py"), *arguments]
    with _running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Instances(process)


@contextmanager
def proxy(endpoints: list[str], *arguments: str) -> Iterator[ProxyProcess]:
    with tempfile.TemporaryDirectory() as name:
        ready, log = Path(name) / "ready.json", Path(name) / "log"
        command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0"]
        command += ["--ready-file", str(ready), *arguments]
        for endpoint in endpoints:
            command += ["--endpoint", endpoint]
        # In another folder, or the sources would be found there before what PYTHONPATH says.
        where = {"cwd": name, "env": environment(imported_from())}
        with log.open("w") as stderr, _running(command, stderr=stderr, **where) as process:
            wait_for(lambda: ready.exists() or process.poll() is not None, 30)
            if process.poll() is not None:
                raise SystemExit(f"the proxy did not start: {log.read_text()}")
            yield ProxyProcess(process, json.loads(ready.read_text()), log)


@contextmanager
def _running(command: list[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, text=True, **pipes)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """-> whether it came true in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


# ---- the soak --------------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """What the three parties say at the end, and what the proxy held before, meanwhile and after."""

    clients: dict[str, int]
    faults: list[str]
    upstream: dict[str, int]
    metrics: dict[str, float]
    left: dict[str, int]
    held_before: dict[str, int]
    held_after: dict[str, int]
    samples: list[tuple[int, int]]
    """(requests, RSS in bytes)"""
    complaints: list[str]
    exit_code: int


def soak(requests: int, seed: int, connections: int, quiet: bool = False) -> tuple[Books, dict[str, float]]:
    """-> the books, and how fast it went."""
    with (
        instances("--seed", str(seed)) as behind,
        proxy(behind.endpoints, "--deadline-s", "10", "--log-level", "error") as served,
    ):
        load = Load(served.host, served.port, seed, requests)
        before = _held(served, behind)
        samples = [(0, served.rss())]
        started, spent = time.monotonic(), served.cpu_s()
        _run(_watched(load, connections, served, samples, quiet))
        seconds, spent = time.monotonic() - started, served.cpu_s() - spent
        wait_for(lambda: not any(left_over(served.status()).values()), 5)
        samples.append((load.asked, served.rss()))
        left, metrics = left_over(served.status()), served.metrics()
        # Connections that others close, the one that asked for the metrics among them, are closed here a moment later.
        after = _held(served, behind)
        for _ in range(50):
            if all(check.good for check in _descriptor_checks(before, after)):
                break
            time.sleep(0.1)
            after = _held(served, behind)
        books = Books(dict(load.counts), load.faults, behind.counts(), metrics, left, before, after, samples, [], 0)
        books.exit_code = served.end()
        books.complaints = served.complaints()
    return books, {"seconds": seconds, "proxy_cpu_s": spent}


def _run(what: Coroutine[Any, Any, Returned]) -> Returned:
    """On uvloop, and nothing but this."""
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(what)
    finally:
        loop.close()


async def _watched(
    load: Load, connections: int, served: ProxyProcess, samples: list[tuple[int, int]], quiet: bool
) -> None:
    every = max(1, load.requests // 200)
    with tqdm(total=load.requests, unit="request", disable=quiet) as bar:
        running = asyncio.ensure_future(load.run(connections))
        while not running.done():
            await asyncio.wait([running], timeout=0.1)
            bar.update(min(load.asked, load.requests) - bar.n)
            if load.asked - samples[-1][0] >= every:
                samples.append((load.asked, served.rss()))
        running.result()


def left_over(status: dict[str, Any]) -> dict[str, int]:
    """Everything that must be zero when all clients have gone."""
    engine = status["engine"]
    left = {
        "requests in flight": status["requests_in_flight"],
        "clients held": status["held"]["clients"],
        "tasks held": status["held"]["tasks"],
        "open queries": engine["open_queries"],
        "tasks in flight": engine["in_flight"],
        "places taken": sum(endpoint["in_flight"] for endpoint in engine["endpoints"].values()),
    }
    for what in ("waiting", "open_groups", "late", "queued_protections"):
        left[what.replace("_", " ")] = sum(pool[what] for pool in engine["pools"].values())
    return left


def _held(served: ProxyProcess, behind: Instances) -> dict[str, int]:
    return {
        "descriptors": served.descriptors(),
        "connections to instances": served.connections_to(behind.ports),
        "connections that instances count": behind.counts()["open"],
    }


# ---- the accounts ----------------------------------------------------------------------------------------------------


def accounts(books: Books) -> list[Check]:
    """Every request of a client that stayed exactly once; those of clients that left, at most once."""
    clients, upstream = books.clients, books.upstream
    checks = [same("clients that saw something wrong", 0, clients.get("faults", 0))]
    stayed = {side: _total(clients, "stayed, ", _routes(side)) for side in ("engine", "passed")}
    answered, broken = _sum(clients, "answered "), clients.get("broken off", 0)
    checks += [
        same(
            "requests whose client stayed: answered, or a streamed answer broke off",
            sum(stayed.values()),
            answered + broken,
        ),
        Check("streamed answers that broke off", 0, broken, _sum(upstream, "stream ")),
        Check("answers with an error", 0, answered - _sum(clients, "answered 200"), _faults(upstream)),
    ]
    left = {side: clients.get(f"left whole, {side}", 0) for side in stayed}
    counted = {"engine": _metric(books, "queries"), "passed": _metric(books, "passed_through")}
    names = {"engine": "queries, by the proxy's count", "passed": "passed through, by the proxy's count"}
    checks += [Check(names[side], stayed[side], counted[side], stayed[side] + left[side]) for side in stayed]
    for source in ("deployed", "reconstructed"):
        seen = clients.get(f"source {source}", 0)
        found = _metric(books, "queries", f'source="{source}"')
        # A client whose stream broke off has counted no answer, and one that left may have got one.
        checks.append(Check(f"queries answered, {source}", seen, found, seen + left["engine"] + broken))
    for kind in KINDS:
        seen, again, perhaps = (upstream.get(f"seen {kind}", 0), *_asked_again(upstream, kind))
        found = _metric(books, "tasks", f'kind="{kind}"')
        checks.append(Check(f"tasks, {kind}: seen by the instances", seen - again - perhaps, found, seen - again))
    return checks


def leftovers(books: Books) -> list[Check]:
    checks = [same(f"at the end: {what}", 0, found) for what, found in books.left.items()]
    checks += _descriptor_checks(books.held_before, books.held_after)
    return [
        *checks,
        same("errors in the proxy's log", 0, len(books.complaints)),
        same("exit code of the proxy, drained", 0, books.exit_code),
    ]


def _descriptor_checks(before: dict[str, int], after: dict[str, int]) -> list[Check]:
    idle, seen = before["connections to instances"], after["connections to instances"]
    expected = before["descriptors"] - idle + seen
    return [
        same("descriptors: as at rest, and the idle connections", expected, after["descriptors"]),
        same("idle connections, as the instances count them", after["connections that instances count"], seen),
    ]


def memory(samples: list[tuple[int, int]]) -> tuple[dict[str, float], list[Check]]:
    """-> RSS at rest, warm and at the end in MB, the slope over the last 80 % in bytes per request, and the verdict."""
    requests, rss = np.array(samples, dtype=np.float64).T
    warm = int(np.searchsorted(requests, min(WARM, requests[-1] / 5)))
    late = requests >= requests[-1] / 5
    slope = float(np.polyfit(requests[late], rss[late], 1)[0])
    said = {
        "rest_mb": rss[0] / 1e6,
        "warm_mb": rss[warm] / 1e6,
        "end_mb": rss[-1] / 1e6,
        "highest_mb": rss.max() / 1e6,
        "bytes_per_request": slope,
    }
    checks = [Check("memory at rest, MB", 0, round(said["rest_mb"], 1), REST_MB)]
    if requests[-1] >= SLOPE_NEEDS:
        checks.append(Check("memory, bytes per request", -1000, round(slope, 2), SLOPE))
    return said, checks


def _routes(side: str) -> tuple[str, ...]:
    return tuple(name for name, route in ROUTES.items() if route[1] == (side == "engine"))


def _total(counts: dict[str, int], prefix: str, names: tuple[str, ...]) -> int:
    return sum(counts.get(prefix + name, 0) for name in names)


def _sum(counts: dict[str, int], prefix: str) -> int:
    return sum(count for name, count in counts.items() if name.startswith(prefix))


def _faults(upstream: dict[str, int]) -> int:
    return sum(_sum(upstream, name) for name in ("reset", "end in it", "worker died", "stream "))


def _asked_again(upstream: dict[str, int], kind: str) -> tuple[int, int]:
    """Requests that the proxy sent once more, since a connection that had served before ended without a byte; and those
    of which a byte may have come, which a reset can overtake.
    """
    again = upstream.get(f"reset before, {kind}, used", 0)
    return again, sum(upstream.get(f"{name}, {kind}, used", 0) for name in ("reset in it", "stream reset"))


def _metric(books: Books, name: str, label: str = "") -> int:
    start = f"ts_parity_{name}_total{{"
    return int(sum(value for key, value in books.metrics.items() if key.startswith(start) and label in key))


# ---- large bodies ----------------------------------------------------------------------------------------------------


def burst(path: str) -> dict[str, float]:
    """Peak RSS of a fresh proxy while all clients' requests, and then all their answers, are in it at once."""
    together, size = MEMORY_CONNECTIONS, MEMORY_BYTES
    target = b"/predictions/linear" if path == "coded" else b"/v1/models/linear:predict"
    with (
        instances("--together", str(together), "--reply-bytes", str(size)) as behind,
        proxy(behind.endpoints, "--reconstruct-after-s", "60") as served,
    ):
        rest = served.rss()
        good = _run(all_at_once(served.host, served.port, target, together, size, MEMORY_ROUNDS))
        requests, replies = COPIES[path]
        return {
            "rest_mb": rest / 1e6,
            "peak_mb": served.peak() / 1e6,
            "bound_mb": (rest + together * (requests + replies) * size) / 1e6,
            "after_mb": served.rss() / 1e6,
            "good": good,
        }


def burst_checks(path: str, seen: dict[str, float]) -> list[Check]:
    return [
        same(f"1 MB bodies, {path}: answered", MEMORY_CONNECTIONS * MEMORY_ROUNDS, seen["good"]),
        Check(f"1 MB bodies, {path}: peak, MB", 0, round(seen["peak_mb"]), round(seen["bound_mb"])),
    ]


# ---- what is kept and said -------------------------------------------------------------------------------------------


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    said = (
        f"`{document['command']}`: {document['requests']:,} requests over {document['opened']:,} connections in "
        f"{document['seconds']:,.0f} s, {document['proxy_cpu_s']:,.0f} s of them of the proxy's processor time; "
        f"the {document['build']} build; {document['machine']}."
    )
    checks = [Check(*row) for row in document["checks"]]
    body = [[c.what, f"{c.found:,.10g}", c.bounds, "yes" if c.good else "NO"] for c in checks]
    accounted = markdown(("what", "found", "must be", "is"), body)
    use = document["memory"]
    sizes = [f"{use[name]:.1f} MB" for name in ("rest_mb", "warm_mb", "end_mb", "highest_mb")]
    rss = markdown(
        ("at rest", "warm", "at the end", "highest", "bytes per request"), [[*sizes, f"{use['bytes_per_request']:.2f}"]]
    )
    did = markdown(
        ("what clients and instances did", "times"), [[what, f"{n:,}"] for what, n in document["did"].items()]
    )
    return {"soak": f"{said}\n\n{rss}\n\n{accounted}\n\n{did}"}


def _did(books: Books) -> dict[str, int]:
    rows = {f"clients: {name}": times for name, times in sorted(books.clients.items()) if name != "faults"}
    merged: dict[str, int] = {}
    for name, times in books.upstream.items():
        if name != "open":
            what = "instances: " + re.sub(", (deployed|protection|finish|passed), (used|new)$", "", name)
            merged[what] = merged.get(what, 0) + times
    return {**rows, **dict(sorted(merged.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=count(), default=1_000_000)
    parser.add_argument("--seed", type=count(0), default=0)
    parser.add_argument("--connections", type=count(), default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="renew the tables of docs/benchmarks.md, run nothing")
    args = parser.parse_args()
    if args.tables:
        for mark, text in sections(json.loads(args.out.read_text())).items():
            renew(DOCS, mark, text)
        return 0
    books, speed = soak(args.requests, args.seed, args.connections)
    use, checks = memory(books.samples)
    checks = [*accounts(books), *leftovers(books), *checks]
    for path in COPIES:
        checks += burst_checks(path, burst(path))
    document = {
        "command": " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
        "build": build_of(imported_from()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "requests": books.samples[-1][0],
        "opened": _sum(books.clients, "connections, "),
        **speed,
        "memory": use,
        "checks": [[c.what, c.low, c.found, c.high] for c in checks],
        "did": _did(books),
        "samples": books.samples,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(sections(document)["soak"])
    for fault in [*books.faults, *books.complaints[:20]]:
        print(fault, file=sys.stderr)
    bad = [check.what for check in checks if not check.good]
    print(
        f"leaked or unaccounted for: {'; '.join(bad)}" if bad else "everything is accounted for, nothing is left over"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
