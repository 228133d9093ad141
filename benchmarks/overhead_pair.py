"""Two builds of our own proxy in turn: what a change has made of the processor time of a query.

    apt-get install wrk
    git worktree add ../before COMMIT && make -C ../before compiled && make compiled
    python benchmarks/overhead_pair.py ../before/build/compiled build/compiled

Both are started anew several times, for where a process happens to lie in memory changes its time by a tenth. Each time
they take turns before the same trivial instances (overhead_instances.py), in cells of a second; a ratio is of two cells
that follow each other. They are warmed up with small bodies, because clients do send several sizes, and a proxy that
has seen two does more than one that has seen one. The proxy runs on the first core, client and instances on the second.

Exit code 1: the median is above --most.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from overhead import CENTRE, MODES, Bench, played, rotated
from overhead_clients import wrk
from overhead_instances import body_of
from overhead_proxies import OTHERS_CORE, Arm, Running, build_of, proxy
from ts_parity.arguments import count, number
from ts_parity.tables import markdown

WARM_BYTES = 300
SECONDS = 1
CONNECTIONS, BODY_BYTES = CENTRE


def measure(roots: Sequence[Path], mode: str, starts: int, cells: int, quiet: bool = False) -> list[list[list[float]]]:
    """`roots`: the folders that the builds are imported from. -> for each start and build, what a query took in each
    cell, in microseconds of processor time. Raise NotServing.
    """
    measured = []
    with tqdm(total=starts * cells * len(roots), unit="cell", disable=quiet) as bar:
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                measured.append(_start(roots, mode, cells, Path(folder), bar, stack))
    return measured


def _start(roots: Sequence[Path], mode: str, cells: int, folder: Path, bar: Any, stack: ExitStack) -> list[list[float]]:
    arms = [Arm("ts_parity", mode, f"{build_of(root)} {place}") for place, root in enumerate(roots)]
    endpoints = played(arms[0].code or "sum", Bench(roots[-1], "", folder, bar, []), stack)
    listed = endpoints if arms[0].code else endpoints[:2]
    served: dict[Arm, Running] = {}
    for arm, root in zip(arms, roots, strict=True):
        served[arm] = stack.enter_context(proxy(arm, listed, folder, root))
        _cost_us(served[arm], folder, WARM_BYTES)
    costs: dict[Arm, list[float]] = {arm: [] for arm in arms}
    for turn in range(cells):
        for arm in rotated(arms, turn):
            costs[arm].append(_cost_us(served[arm], folder, BODY_BYTES))
            bar.update()
    return [costs[arm] for arm in arms]


def _cost_us(running: Running, folder: Path, size: int) -> float:
    before = running.cpu_s()
    seen = wrk([running.url + running.arm.path], CONNECTIONS, SECONDS, body_of(size), folder, OTHERS_CORE)
    if seen.errors or not seen.requests:
        raise SystemExit(f"{running.arm.name} has answered {seen.requests} requests, {seen.errors} with errors")
    return (running.cpu_s() - before) / seen.requests * 1e6


def compared(measured: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Of `measure`, for two builds. A start counts once, by the median of its cells."""
    ratios = [statistics.median(b / a for a, b in zip(*start, strict=True)) for start in measured]
    costs = [[statistics.median(cells) for cells in start] for start in measured]
    return {
        "before_us": round(statistics.median(a for a, _ in costs), 1),
        "after_us": round(statistics.median(b for _, b in costs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder that the one build is imported from")
    parser.add_argument("after", type=Path, help="and the other")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["uncoded", "coded-exact"])
    parser.add_argument("--starts", type=count(), default=6)
    parser.add_argument("--cells", type=count(), default=4, help="of a second, of each build after each start")
    parser.add_argument("--most", type=number(above=0), help="fail if the median ratio is above this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    roots = [args.before.resolve(), args.after.resolve()]
    rows = [{"mode": mode, **compared(measure(roots, mode, args.starts, args.cells))} for mode in args.modes]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if args.json:
        print(json.dumps({"machine": machine, "starts": args.starts, "cells": args.cells, "rows": rows}))
    else:
        lines = [
            [row["mode"], f"{row['before_us']:.1f}", f"{row['after_us']:.1f}", f"{row['ratio']:.2f} "
             f"({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})"]
            for row in rows
        ]  # fmt: skip
        print(f"{machine}; {args.starts} starts, {args.cells} cells of {SECONDS} s each\n")
        print(markdown(("mode", "before, us a query", "after", "ratio (of the starts)"), lines))
    return 1 if args.most and any(row["ratio"] > args.most for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
