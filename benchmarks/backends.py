"""What the proxy is worth before real model servers other than TorchServe: NVIDIA's Triton, LitServe, KServe's server.

    make backends                                 all of it: half an hour
    python benchmarks/backends.py --quick         one seed, 1,000 queries an arm: ten minutes
    python benchmarks/backends.py --tables        the table in the docs, from the kept results

Six instances of one place each. Inference is emulated: a server's model waits 50 ms (lognormal, cv 0.1), its student a
quarter of that, and each machine is five times as slow in spells. All arms of a seed get the same load and the same
spells, one after the other, on the same servers. The load comes from this process; servers and proxy run in their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend_programs.emulated import COSTS, FEATURES, scores
from backend_servers import DEPLOYED, KINDS, STUDENT, ModelServer, ServerKind, model_servers
from tables import renew
from ts_parity.lab.emulation import Emulation, make_spells, of_machine
from ts_parity.lab.live import CLIENT_TIMEOUT_S, LEAD_S, ProxyProcess, proxy_over
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.report import summarize
from ts_parity.lab.scenario import Outage, Spells
from ts_parity.lab.traffic import LabelledBody, Load, Reader, drive, poisson_load
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "backends.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
EMULATION = Emulation(service_s=0.05, cv=0.1)
SPELLS = Spells(share=0.06, mean=2.0, factor=5.0)
RATE = 50.0
"""As in the demo: 0.42 of what six such machines can do."""
WARM_UP = 300
ROUNDS = 4
"""Of the warm-up, at most, until a student has ended its trial."""
WRONG = "wrong"
AS_IT_IS = {"Accept-Encoding": "identity"}
"""Triton compresses for clients that take it."""


@dataclass(frozen=True)
class Arm:
    """One way to serve the same load. `flags`: of the proxy."""

    title: str
    flags: tuple[str, ...] = ()
    student: bool = False


ARMS = {
    "plain": Arm("plain balancing (least outstanding)", ("--protect", "off", "--extra-work", "0")),
    "copies": Arm("second copies only", ("--protect", "off")),
    "student": Arm("a student late", (), student=True),
}
TARGETS = {"copies": 0.65, "plain": 0.4}
"""p99 with a student late is at most so much of this arm's."""


@dataclass(frozen=True)
class Size:
    queries: int = 1600
    seeds: int = 3
    instances: int = 6
    rate: float = RATE


QUICK = Size(queries=1000, seeds=1)


def configuration(servers: Sequence[ModelServer], student: bool = False) -> str:
    """Addresses and places, and which model is the student."""
    kind = servers[0].kind
    lines = []
    for server in servers:
        lines += ["[[instance]]", f'inference = "{server.url}"', f'kind = "{kind.kind}"', "places = 1", ""]
    if student:
        named = kind.paths if kind.kind == "rest" else {model: model for model in (DEPLOYED, STUDENT)}
        lines += ["[[model]]", f'name = "{named[DEPLOYED]}"', f'student = "{named[STUDENT]}"']
        lines += [f"cost = {COSTS[STUDENT]}", ""]
    return "\n".join(lines)


@contextmanager
def proxy_before(
    servers: Sequence[ModelServer], folder: Path, name: str, flags: Sequence[str] = (), student: bool = False
) -> Iterator[ProxyProcess]:
    """A proxy in a process of its own. It knows nothing but addresses and places, and the student if there is one."""
    file = folder / f"{name}.toml"
    file.write_text(configuration(servers, student))
    kind = servers[0].kind
    model = kind.paths[DEPLOYED] if kind.kind == "rest" else DEPLOYED
    with proxy_over((), model, folder, name, ("--config", str(file), *flags)) as proxy:
        proxy.url = proxy.base_url + kind.paths[DEPLOYED]
        yield proxy


def bodies_of(kind: ServerKind, count: int = 50) -> list[LabelledBody]:
    """Different inputs. The label is the input's number, for `reader`."""
    return [LabelledBody(kind.body(_row(i), f"q{i}"), "application/json", str(i)) for i in range(count)]


def _row(number: int) -> list[float]:
    return [float(number), *(float((number * (2 * i + 1)) % 17) for i in range(1, FEATURES))]


def reader(kind: ServerKind, count: int = 50) -> Reader:
    """-> the number of the input that an answer belongs to, whichever of the two models gave it; else WRONG."""
    known = [(str(i), scores(model, _row(i))) for i in range(count) for model in (DEPLOYED, STUDENT)]

    def read(answer: bytes) -> str:
        given = kind.read(answer)
        return next((name for name, right in known if _equal(given, right)), WRONG)

    return read


def _equal(given: Sequence[float], right: Sequence[float]) -> bool:
    """Up to the rounding of float32, a hundred times finer than what tells the two models apart."""
    return len(given) == len(right) and all(map(_close, given, right))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)


def run_load(
    servers: Sequence[ModelServer],
    proxy: ProxyProcess,
    load: Load,
    seed: int,
    spells: Sequence[Outage] = (),
    emulation: Emulation = EMULATION,
    meanwhile: Callable[[float], Any] | None = None,
) -> list[QueryRecord]:
    """The load under these spells. `meanwhile`: run in a thread, told when the load begins (time.monotonic)."""
    kind = servers[0].kind

    async def under_way() -> list[QueryRecord]:
        started_at = time.monotonic() + LEAD_S
        for index, server in enumerate(servers):
            server.machine.set(of_machine(spells, index), started_at, seed, emulation)
        beside = asyncio.create_task(asyncio.to_thread(meanwhile, started_at)) if meanwhile is not None else None
        records = await drive(
            load, bodies_of(kind), [proxy.url], reader(kind), CLIENT_TIMEOUT_S, started_at=started_at, headers=AS_IT_IS
        )  # fmt: skip
        if beside is not None:
            await beside
        return records

    try:
        return asyncio.run(under_way())
    finally:
        for server in servers:
            server.machine.set(seed=seed, emulation=emulation)


def warm_up(servers: Sequence[ModelServer], proxy: ProxyProcess, student: bool, rate: float = RATE) -> None:
    """Without spells, until the proxy knows what is usual, and a student has ended its trial."""
    if student:
        proxy.wait_for_code("student")
    for each in range(ROUNDS):
        run_load(servers, proxy, poisson_load(WARM_UP, rate, 50, 1000 + each), each)
        if not proxy.on_trial():
            return


def measure(servers: Sequence[ModelServer], arm: Arm, size: Size, seed: int, folder: Path) -> dict[str, Any]:
    """One arm -> its row."""
    load = poisson_load(size.queries, size.rate, 50, seed)
    spells = make_spells(SPELLS, len(servers), load.duration_s, seed)
    with proxy_before(servers, folder, f"{arm.title.split()[0]}-{seed}", arm.flags, arm.student) as proxy:
        warm_up(servers, proxy, arm.student, size.rate)
        before = proxy.work()
        records = run_load(servers, proxy, load, seed, spells)
        work = (proxy.work() - before) / len(records)
    summary = summarize(records, work)
    return {
        "p50_ms": summary.p50_ms, "p99_ms": summary.p99_ms, "p999_ms": summary.p999_ms, "max_ms": summary.max_ms,
        "send_lag_p99_ms": summary.send_lag_p99_ms, "queries": len(records), "errors": summary.errors,
        "lost": summary.lost, "rebuilt": summary.reconstructed, "wrong": wrong(records), "work": summary.work_per_query,
    }  # fmt: skip


def wrong(records: Sequence[QueryRecord]) -> int:
    """Answers that are neither model's to this query."""
    return sum(record.answered and record.predicted != record.label for record in records)


def benchmark(kinds: Sequence[ServerKind], size: Size, say: Callable[[str], object]) -> list[dict[str, Any]]:
    rows = []
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backends-")))
            servers = stack.enter_context(model_servers(kind, size.instances, folder))
            for seed in range(size.seeds):
                for name, arm in ARMS.items():
                    row = {"server": kind.name, "seed": seed, "arm": name}
                    rows.append({**row, **measure(servers, arm, size, seed, folder)})
                    say(json.dumps(rows[-1]))
    return rows


# ---- tables ---------------------------------------------------------------------------------------------------------


def sections(document: Mapping[str, Any]) -> dict[str, str]:
    return {"backends": f"{_arms(document['rows'])}\n\n{_targets(document['rows'])}"}


def _arms(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["server", "seed", "arm", "p50 ms", "p99 ms", "p99.9 ms", "errors", "lost", "wrong", "rebuilt", "work"]
    return markdown(
        head,
        [
            [
                row["server"], str(row["seed"]), ARMS[row["arm"]].title,
                *(_ms(row[name]) for name in ("p50_ms", "p99_ms", "p999_ms")),
                *(str(row[name]) for name in ("errors", "lost", "wrong")),
                f"{row['rebuilt'] / row['queries']:.2%}", f"{row['work']:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def _targets(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for server in dict.fromkeys(row["server"] for row in rows):
        for against, most in TARGETS.items():
            found = ratios(rows, server, against)
            told = ", ".join(f"{ratio:.2f}" for ratio in found)
            middle = statistics.median(found)
            lines.append([server, ARMS[against].title, told, f"{most:g}", "reached" if middle <= most else "missed"])
    return markdown(["server", "p99 with a student late, relative to", "by seed", "target", "median"], lines)


def ratios(rows: Sequence[Mapping[str, Any]], server: str, against: str) -> list[float]:
    """Of p99 with a student late to that of another arm, seed by seed."""
    p99 = {(row["arm"], row["seed"]): row["p99_ms"] for row in rows if row["server"] == server}
    return [p99["student", seed] / p99[against, seed] for arm, seed in p99 if arm == "student"]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 1,000 queries an arm; the docs are left alone")
    parser.add_argument("--tables", action="store_true", help="renew the docs' table from the kept results")
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="where the results go; default with --quick: nowhere")
    args = parser.parse_args()
    if not args.tables:
        kinds = [KINDS[name] for name in args.servers]
        if missing := [reason for kind in kinds if (reason := kind.missing())]:
            raise SystemExit("\n".join(missing))
        rows = benchmark(kinds, QUICK if args.quick else Size(), lambda line: print(line, file=sys.stderr, flush=True))
        document = {
            "command": " ".join(["python", "benchmarks/backends.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "rows": rows,
        }
        print(sections(document)["backends"])
        out = args.out or (None if args.quick else RESULTS)
        if out is not None:
            out.write_text(json.dumps(document, indent=1) + "\n")
        if args.quick or args.out:
            return 0
    if not RESULTS.exists():
        raise SystemExit("nothing has been measured yet: make backends")
    document = json.loads(RESULTS.read_text())
    for mark, text in sections(document).items():
        renew(DOCS, mark, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
