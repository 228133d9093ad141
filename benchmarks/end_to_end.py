"""Is the accuracy that clients receive the one that the report promises? Through the running proxy and real TorchServe.

    python benchmarks/end_to_end.py [--late 0.01 0.05 0.1] [--queries N] [--code sum] [--k 2] [--seed S] [--json]

Four instances serve the digits example and two its protection. A relay in front of each deployed instance holds a share
f of its predictions back for longer than the client would wait, so that they are rebuilt. The accuracy of what clients
received is compared with (1 - f) A_a + f A_d, f being the share that was really rebuilt, A_a and A_d from the training
report on the same scans. Interval: 95 %, of the rebuilt answers' accuracy (binomial); exit code 1 if outside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from tqdm import tqdm

from relay import LateRelay
from ts_parity.arguments import count, number
from ts_parity.lab.demo import (
    DEPLOYED,
    INSTANCES,
    MODEL,
    DemoSettings,
    find_example,
    make_models,
    read_bodies,
    read_digit,
)
from ts_parity.lab.records import QueryRecord
from ts_parity.lab.report import summarize
from ts_parity.lab.traffic import drive, poisson_load
from ts_parity.tables import markdown
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance, start_fleet

BY_S = 1.0
RECONSTRUCT_AFTER_S = 0.08
RATE = 40.0
PLACES = 8


async def one_share(late: float, fleet: list[TorchServeInstance], bodies, args, out: Path) -> list[QueryRecord]:
    """-> the records of a whole load with this share of predictions late."""
    load = poisson_load(args.queries, RATE, len(bodies), args.seed)
    async with AsyncExitStack() as stack:
        relays = [LateRelay(i.inference_url, late, BY_S, args.seed * 10 + n) for n, i in enumerate(fleet[:DEPLOYED])]
        urls = [await stack.enter_async_context(relay.serving()) for relay in relays]
        urls += [instance.inference_url for instance in fleet[DEPLOYED:]]
        proxy = await stack.enter_async_context(proxied(urls, fleet, out))
        with tqdm(total=args.queries, desc=f"f = {late:.0%}", unit="query") as bar:
            return await drive(load, bodies, [f"{proxy}/predictions/{MODEL}"], read_digit, 30.0, lambda r: bar.update())


class proxied:
    """`ts-parity serve` in a process of its own."""

    def __init__(self, urls: list[str], fleet: list[TorchServeInstance], out: Path) -> None:
        self._ready = out / "proxy.json"
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "ts_parity.cli", "serve", "--port", "0", "--admin-port", "0"]
        command += ["--ready-file", str(self._ready), "--reconstruct-after-s", str(RECONSTRUCT_AFTER_S)]
        for url, instance in zip(urls, fleet, strict=True):
            command += ["--endpoint", f"{url},management={instance.management_url}"]
        self._command = command

    async def __aenter__(self) -> str:
        self._process = await asyncio.create_subprocess_exec(*self._command)
        for _ in range(600):
            if self._ready.exists() and (text := self._ready.read_text()):
                await asyncio.sleep(3)  # its second look at the instances sees the verdicts
                return str(json.loads(text)["url"])
            if self._process.returncode is not None:
                break
            await asyncio.sleep(0.1)
        raise RuntimeError("the proxy did not start")

    async def __aexit__(self, *exception: object) -> None:
        self._process.terminate()
        await self._process.wait()


def row_of(late: float, records: list[QueryRecord], report: dict) -> dict:
    summary = summarize(records)
    rebuilt = summary.reconstructed
    f = rebuilt / summary.answered
    expected = (1 - f) * report["A_a"] + f * report["A_d"]
    a_d = summary.accuracy_reconstructed or 0.0
    half = 1.96 * f * math.sqrt(max(report["A_d"] * (1 - report["A_d"]), 1e-6) / max(rebuilt, 1))
    return {
        "late": late,
        "queries": len(records),
        "errors": summary.errors + summary.lost,
        "rebuilt": rebuilt,
        "f": round(f, 5),
        "A_d_received": round(a_d, 5),
        "A_o_received": round(summary.accuracy or 0.0, 5),
        "A_o_expected": round(expected, 5),
        "half_width": round(half, 5),
        "within": abs((summary.accuracy or 0.0) - expected) <= half + 1 / len(records),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--late", nargs="+", type=number(least=0, below=1), default=[0.01, 0.05, 0.10])
    parser.add_argument("--queries", type=count(), default=4500, help="whole passes over the 450 scans, if a multiple")
    parser.add_argument("--code", default="sum")
    parser.add_argument("--k", type=count(), default=2)
    parser.add_argument("--seed", type=count(0), default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ts-parity-end-to-end-") as scratch, ExitStack() as stack:
        settings = DemoSettings(out=Path(scratch), code=args.code, k=args.k, seed=args.seed)
        data, archives, report = make_models(settings, find_example(settings))
        served = [archives["deployed"]] * DEPLOYED + [archives["parity"]] * (INSTANCES - DEPLOYED)
        # A batch size, hence several places: a late answer goes on taking its place while the worker is free.
        options = InstanceOptions(
            batch_size=PLACES, max_batch_delay_ms=1, properties={"disable_system_metrics": "true"}
        )
        fleet = stack.enter_context(start_fleet([TorchServeInstance([archive], options) for archive in served]))
        bodies = read_bodies(data)
        rows = [row_of(f, asyncio.run(one_share(f, fleet, bodies, args, Path(scratch))), report) for f in args.late]
    document = {
        "command": " ".join(["python", "benchmarks/end_to_end.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "code": args.code,
        "k": args.k,
        "seed": args.seed,
        "A_a": report["A_a"],
        "A_d": report["A_d"],
        "rows": rows,
    }
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        print(f"{args.code} k={args.k} seed {args.seed}: A_a {report['A_a']:.2%}, A_d {report['A_d']:.2%}")
        head = ("late", "queries", "errors", "rebuilt", "A_d received", "A_o received", "A_o expected", "95 %")
        print(markdown(head, [cells_of(row) for row in rows]))
    return 0 if all(row["within"] and not row["errors"] for row in rows) else 1


def cells_of(row: dict) -> list[str]:
    shares = [f"{row[part]:.2%}" for part in ("f", "A_d_received", "A_o_received", "A_o_expected")]
    half_width = f"± {100 * row['half_width']:.2f}{'' if row['within'] else ' OUTSIDE'}"
    return [f"{row['late']:.0%}", f"{row['queries']:,}", str(row["errors"]), *shares, half_width]


if __name__ == "__main__":
    sys.exit(main())
